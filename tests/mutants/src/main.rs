//! Writes all mutants of `cargo mutants --list --json` into one tree, each behind a switch.
//!
//! `a < b` becomes `({ if crate::mutant_is_on(7) { a <= b } else { a < b } })`, and a function whose
//! value is replaced begins with `if crate::mutant_is_on(8) { return …; }`. So the tree is built once,
//! and each run of the tests chooses its mutant. Numbers are places in the list, from 1.
//!
//! `switch <list.json> <tree> <numbers to leave out>...` prints the numbers that have no place: in
//! constants, in functions that are `const`, and in conditions with `let`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use proc_macro2::{LineColumn, Span};
use serde::Deserialize;
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

#[derive(Deserialize)]
struct Listed {
    file: String,
    genre: String,
    replacement: String,
    span: ListedSpan,
}

#[derive(Deserialize)]
struct ListedSpan {
    start: ListedPlace,
    end: ListedPlace,
}

/// From 1, columns in characters.
#[derive(Deserialize)]
struct ListedPlace {
    line: usize,
    column: usize,
}

/// One mutant: what stands in place of the bytes from `start` to `end`.
#[derive(Clone)]
struct Mutant {
    number: usize,
    genre: String,
    text: String,
    start: usize,
    end: usize,
}

/// A piece of source that is written otherwise.
struct Node {
    start: usize,
    end: usize,
    kind: Kind,
    mutants: Vec<Mutant>,
}

enum Kind {
    /// The beginning of a function's body.
    Body,
    /// Operators without parentheses between them, or `!`: mutants are the same text, changed.
    Operators,
    /// The guard of an arm, and the numbers that take the arm away.
    Guard(Vec<usize>),
    /// The end of a pattern without a guard.
    Pattern(Vec<usize>),
}

struct Source {
    text: String,
    lines: Vec<usize>,
}

impl Source {
    fn new(text: String) -> Source {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Source { text, lines }
    }

    /// Line from 1, column from 0 in characters, as `proc_macro2` counts.
    fn offset(&self, line: usize, column: usize) -> usize {
        let start = self.lines[line - 1];
        self.text[start..].char_indices().nth(column).map_or(self.text.len(), |(at, _)| start + at)
    }

    fn range(&self, span: Span) -> (usize, usize) {
        let at = |place: LineColumn| self.offset(place.line, place.column);
        (at(span.start()), at(span.end()))
    }
}

/// The functions that the compiler may run; they cannot ask at run time.
struct ConstFunctions<'a> {
    source: &'a Source,
    ranges: Vec<(usize, usize)>,
}

impl<'ast> Visit<'ast> for ConstFunctions<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        if function.sig.constness.is_some() {
            self.ranges.push(self.source.range(function.span()));
        }
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if function.sig.constness.is_some() {
            self.ranges.push(self.source.range(function.span()));
        }
        visit::visit_impl_item_fn(self, function);
    }
}

/// Looks for the places of the mutants of one file.
struct Places<'a> {
    source: &'a Source,
    wanted: HashMap<(usize, usize), Vec<Mutant>>,
    nodes: Vec<Node>,
    placed: HashSet<usize>,
}

impl Places<'_> {
    fn take(&mut self, range: (usize, usize), genre: &str) -> Vec<Mutant> {
        let found = self.wanted.get(&range).into_iter().flatten().filter(|m| m.genre == genre);
        let found: Vec<Mutant> = found.cloned().collect();
        self.placed.extend(found.iter().map(|m| m.number));
        found
    }

    fn add(&mut self, (start, end): (usize, usize), kind: Kind, mutants: Vec<Mutant>) {
        self.nodes.push(Node { start, end, kind, mutants });
    }

    /// All operators up to the next parentheses belong together: another operator may bind otherwise.
    fn operators(&mut self, binary: &syn::ExprBinary, found: &mut Vec<Mutant>) {
        found.extend(self.take(self.source.range(binary.op.span()), "BinaryOperator"));
        for side in [&*binary.left, &*binary.right] {
            if let syn::Expr::Binary(inner) = side { self.operators(inner, found) } else { self.visit_expr(side) }
        }
    }
}

fn has_let(expr: &syn::Expr) -> bool {
    match expr {
        syn::Expr::Let(_) => true,
        syn::Expr::Binary(binary) => has_let(&binary.left) || has_let(&binary.right),
        _ => false,
    }
}

impl<'ast> Visit<'ast> for Places<'_> {
    /// A constant cannot ask at run time.
    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}

    fn visit_expr_binary(&mut self, binary: &'ast syn::ExprBinary) {
        if has_let(&binary.left) || has_let(&binary.right) {
            return visit::visit_expr_binary(self, binary);
        }
        let mut found = Vec::new();
        self.operators(binary, &mut found);
        if !found.is_empty() {
            self.add(self.source.range(binary.span()), Kind::Operators, found);
        }
    }

    fn visit_expr_unary(&mut self, unary: &'ast syn::ExprUnary) {
        let found = self.take(self.source.range(unary.op.span()), "UnaryOperator");
        if !found.is_empty() {
            self.add(self.source.range(unary.span()), Kind::Operators, found);
        }
        visit::visit_expr_unary(self, unary);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        let (start, end) = self.source.range(arm.span());
        // With or without its comma.
        let mut gone = self.take((start, end), "MatchArm");
        gone.extend(self.take((start, end + 1), "MatchArm"));
        let gone: Vec<usize> = gone.iter().map(|m| m.number).collect();
        if let Some((_, guard)) = &arm.guard {
            let range = self.source.range(guard.span());
            let found = self.take(range, "MatchArmGuard");
            self.add(range, Kind::Guard(gone), found);
        } else if !gone.is_empty() {
            let (_, end) = self.source.range(arm.pat.span());
            self.add((end, end), Kind::Pattern(gone), Vec::new());
        }
        visit::visit_arm(self, arm);
    }
}

fn is_on(number: usize) -> String {
    format!("crate::mutant_is_on({number})")
}

/// The text from `start` to `end`. `nodes` lie in it, outer ones before inner ones.
///
/// What belongs to a mutant stands between `/*M<number>*/` and `/*E*/`, so that an error of the
/// compiler can be told to be its own.
fn rewritten(source: &str, nodes: &[Node], start: usize, end: usize) -> String {
    let mut out = String::new();
    let (mut at, mut next) = (start, 0);
    while let Some(node) = nodes.get(next) {
        let inner = nodes[next + 1..].iter().take_while(|inner| inner.start < node.end).count();
        let inside = || rewritten(source, &nodes[next + 1..next + 1 + inner], node.start, node.end);
        out += &source[at..node.start];
        match &node.kind {
            Kind::Body => {
                for Mutant { number, text, .. } in &node.mutants {
                    out += &format!("if {} {{ return /*M{number}*/ {text} /*E*/; }}\n", is_on(*number));
                }
            }
            Kind::Pattern(gone) => out.extend(gone.iter().map(|number| format!(" if !{}", is_on(*number)))),
            Kind::Guard(gone) => {
                let mut guard = format!("({})", inside());
                for Mutant { number, text, .. } in &node.mutants {
                    let on = is_on(*number);
                    guard = if text == "true" { format!("({on} || {guard})") } else { format!("(!{on} && {guard})") };
                }
                out += &gone.iter().fold(guard, |guard, number| format!("(!{} && {guard})", is_on(*number)));
            }
            Kind::Operators => {
                out += "({";
                for Mutant { number, text, start, end, .. } in &node.mutants {
                    let (before, after) = (&source[node.start..*start], &source[*end..node.end]);
                    out += &format!(" if {} {{ /*M{number}*/ {before}{text}{after}\n/*E*/ }} else", is_on(*number));
                }
                out += &format!(" {{\n{}\n}} }})", inside());
            }
        }
        at = node.end;
        next += 1 + inner;
    }
    out + &source[at..end]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [list, tree, left_out @ ..] = &args[..] else { return Err("see the head of main.rs".into()) };
    let left_out: HashSet<usize> = left_out.iter().map(|number| number.parse()).collect::<Result<_, _>>()?;
    let list: Vec<Listed> = serde_json::from_str(&std::fs::read_to_string(list)?)?;
    let mut files: BTreeMap<String, Vec<(usize, Listed)>> = BTreeMap::new();
    for (number, listed) in (1..).zip(list) {
        files.entry(listed.file.clone()).or_default().push((number, listed));
    }
    for (file, listed) in files {
        let path = Path::new(tree).join(&file);
        let source = Source::new(std::fs::read_to_string(&path)?);
        let numbers: Vec<usize> = listed.iter().map(|(number, _)| *number).filter(|n| !left_out.contains(n)).collect();
        let syntax = syn::parse_file(&source.text)?;
        let mut constant = ConstFunctions { source: &source, ranges: Vec::new() };
        constant.visit_file(&syntax);
        let mut bodies: BTreeMap<usize, Vec<Mutant>> = BTreeMap::new();
        let mut wanted: HashMap<(usize, usize), Vec<Mutant>> = HashMap::new();
        for (number, Listed { genre, replacement: text, span, .. }) in listed {
            if left_out.contains(&number) {
                continue;
            }
            let start = source.offset(span.start.line, span.start.column - 1);
            let end = source.offset(span.end.line, span.end.column - 1);
            if constant.ranges.iter().any(|&(from, to)| from <= start && end <= to) {
                continue;
            }
            let is_body = genre == "FnValue";
            let mutant = Mutant { number, genre, text, start, end };
            if is_body {
                bodies.entry(start).or_default().push(mutant);
            } else {
                wanted.entry((start, end)).or_default().push(mutant);
            }
        }
        let mut places = Places { source: &source, wanted, nodes: Vec::new(), placed: HashSet::new() };
        for (at, mutants) in bodies {
            places.placed.extend(mutants.iter().map(|m| m.number));
            places.add((at, at), Kind::Body, mutants);
        }
        places.visit_file(&syntax);
        let Places { mut nodes, placed, .. } = places;
        nodes.sort_by_key(|node| (node.start, node.end != node.start, std::cmp::Reverse(node.end)));
        std::fs::write(&path, rewritten(&source.text, &nodes, 0, source.text.len()))?;
        for number in numbers.iter().filter(|number| !placed.contains(number)) {
            println!("{number}");
        }
    }
    Ok(())
}
