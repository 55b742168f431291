//! The rules of docs/architecture.md that a compiler does not see.

use std::fs;
use std::path::{Path, PathBuf};

/// A rule: what may stand only where.
struct Rule {
    /// As it is told when it is broken.
    name: &'static str,
    words: &'static [&'static str],
    /// Files, or directories with a slash at the end, that may.
    allowed: &'static [&'static str],
    /// Comments may name it all the same.
    comments_may: bool,
}

const RULES: [Rule; 8] = [
    Rule {
        name: "HTTP stays in src/http/",
        words: &["axum", "hyper", "StatusCode"],
        allowed: &["http/"],
        comments_may: true,
    },
    Rule {
        name: "files are opened in src/storage/, src/token/file.rs, src/replace.rs and src/cli/ only",
        words: &["std::fs", "rustix::fs"],
        allowed: &["storage/", "token/file.rs", "replace.rs", "cli/"],
        comments_may: true,
    },
    Rule {
        name: "work of requests goes to threads in src/http/blocking.rs only, where it keeps its turn",
        words: &["spawn_blocking"],
        allowed: &["http/blocking.rs", "storage/", "cli/"],
        comments_may: true,
    },
    Rule {
        name: "the process environment is read in src/cli/ and main.rs only",
        words: &["std::env::", "std::env;", "std::env}"],
        allowed: &["cli/", "main.rs"],
        comments_may: true,
    },
    Rule {
        name: "the terminal is written to by print, tell and draw of src/cli/data.rs, which do not panic",
        words: &["eprintln!", "eprint!", "println!"],
        allowed: &[],
        comments_may: true,
    },
    Rule { name: "no unwrap(): say in expect() why it holds", words: &["unwrap()"], allowed: &[], comments_may: true },
    Rule { name: "no todo!()", words: &["todo!", "unimplemented!"], allowed: &[], comments_may: false },
    Rule { name: "nothing is left for later", words: &["TODO", "FIXME"], allowed: &[], comments_may: false },
];

/// Where `source`, without its tests, breaks `rule`.
fn broken(rule: &Rule, path: &str, source: &str) -> Vec<String> {
    // Tests in a file of their own, behind `#[cfg(test)] mod tests;`.
    if path.ends_with("/tests.rs") {
        return Vec::new();
    }
    let is_in = |place: &str| if place.ends_with('/') { path.starts_with(place) } else { path == place };
    if rule.allowed.iter().any(|place| is_in(place)) {
        return Vec::new();
    }
    let code = source.lines().take_while(|line| line.trim() != "#[cfg(test)]").enumerate();
    let looked_at = code.filter(|(_, line)| !(rule.comments_may && line.trim_start().starts_with("//")));
    looked_at
        // What the kernel says there is a figure, and no file of anybody.
        .filter(|(_, line)| !line.contains("\"/proc/"))
        .filter(|(_, line)| rule.words.iter().any(|word| line.contains(word)))
        .map(|(at, line)| format!("src/{path}:{}: {}", at + 1, line.trim()))
        .collect()
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Broken, a module would do what another is for, and the next reader would look in the wrong place.
#[test]
fn every_module_keeps_to_its_side() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = rust_files(&src);
    assert!(files.len() >= 20, "the sources are looked at: {files:?}");
    let mut told = String::new();
    for rule in &RULES {
        let mut places = Vec::new();
        for file in &files {
            let path = file.strip_prefix(&src).unwrap().to_str().unwrap();
            places.extend(broken(rule, path, &fs::read_to_string(file).unwrap()));
        }
        if !places.is_empty() {
            told.push_str(&format!("\n{} (docs/architecture.md):\n  {}\n", rule.name, places.join("\n  ")));
        }
    }
    assert!(told.is_empty(), "{told}");
}

/// Broken, the rules above would find nothing, whatever is written.
#[test]
fn each_rule_sees_what_it_forbids() {
    for rule in &RULES {
        for word in rule.words {
            let source = format!("fn f() {{ {word} }}\n#[cfg(test)]\nmod tests {{ {word} }}\n");
            assert_eq!(broken(rule, "event.rs", &source).len(), 1, "{word}");
            assert_eq!(broken(rule, "event.rs", &format!("/// {word}\n")).is_empty(), rule.comments_may, "{word}");
            for place in rule.allowed {
                let path = if place.ends_with('/') { format!("{place}x.rs") } else { (*place).to_owned() };
                assert!(broken(rule, &path, &source).is_empty(), "{word} in {path}");
            }
        }
    }
}

/// The headings that messages send the reader to: what stands behind `RUNBOOK, ` in quotes.
fn sections_named(source: &str) -> impl Iterator<Item = &str> {
    source.split("RUNBOOK, \\\"").skip(1).filter_map(|rest| rest.split_once("\\\"")).map(|(name, _)| name)
}

/// Broken, a message would send the reader to a section that is not there.
#[test]
fn the_runbook_has_every_section_that_a_message_names() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let runbook = fs::read_to_string(root.join("RUNBOOK.md")).unwrap();
    let headings: Vec<_> =
        runbook.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches(['#', ' '])).collect();
    let mut named = 0;
    for file in rust_files(&root.join("src")) {
        for name in sections_named(&fs::read_to_string(&file).unwrap()) {
            assert!(headings.contains(&name), "{}: RUNBOOK.md has no section {name:?}", file.display());
            named += 1;
        }
    }
    assert!(named >= 40, "the messages are looked at: {named}");
}
