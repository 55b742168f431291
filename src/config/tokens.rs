//! `Tokens`: shared secrets, and what cannot be one.

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::value::{is_quoted, is_unseen};

/// Longest secret, in bytes; a longer one does not fit into the head of a request beside the rest.
const TOKEN_BYTES_MAX: usize = 4096;
/// What programs write where they have no value.
const PLACEHOLDERS: [&str; 7] = ["null", "none", "nil", "undefined", "true", "false", "nan"];

/// Shared secrets. `Debug` shows how many, never what.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tokens(Vec<String>);

impl Tokens {
    /// The secrets. For hashing only.
    pub fn expose(&self) -> &[String] {
        &self.0
    }

    /// How many, and the first eight digits of the SHA-256 of each: enough to tell two sets apart.
    pub fn fingerprint(&self) -> String {
        let hex = |digest: &[u8]| digest[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let digests = self.0.iter().map(|token| hex(&Sha256::digest(token.as_bytes())));
        format!("{} (sha256 {})", self.0.len(), digests.collect::<Vec<_>>().join(","))
    }

    /// Tokens for tests and tools.
    pub fn new(tokens: Vec<String>) -> Tokens {
        Tokens(tokens)
    }

    /// The secrets of a value, split at comma and newline. None is fine.
    ///
    /// # Errors
    /// The number of the first that cannot be one, and why; never the secret.
    pub(super) fn of_value(text: &str) -> Result<Tokens, String> {
        let tokens: Vec<_> = text.split([',', '\n']).map(str::trim).filter(|token| !token.is_empty()).collect();
        for (number, token) in (1..).zip(&tokens) {
            if let Some(why) = token_fault(token) {
                return Err(format!("cannot be used: secret {number} {why}"));
            }
        }
        Ok(Tokens(tokens.into_iter().map(str::to_owned).collect()))
    }

    /// The secrets of a file: some in a line with commas, or one a line. Blank lines, and lines that begin with `#`
    /// and a blank, say nothing; so does a byte order mark.
    ///
    /// # Errors
    /// The number of the first line that holds something else, or that there is no secret at all; never the line.
    pub fn of_file(text: &str) -> Result<Tokens, String> {
        let mut tokens = Vec::new();
        for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').split('\n')) {
            let line = line.trim();
            if line == "#" || line.strip_prefix('#').is_some_and(|rest| rest.starts_with(char::is_whitespace)) {
                continue;
            }
            if let Some(why) = line_fault(line) {
                return Err(format!("line {number} is no token: it {why}"));
            }
            for token in line.split(',').map(str::trim).filter(|token| !token.is_empty()) {
                if let Some(why) = file_token_fault(token).or_else(|| token_fault(token)) {
                    return Err(format!("line {number} is no token: it {why}"));
                }
                tokens.push(token.to_owned());
            }
        }
        if tokens.is_empty() { Err("it holds no token".to_owned()) } else { Ok(Tokens(tokens)) }
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

/// Why nobody meant it. Never quotes it.
///
/// compat: a letter that is not ASCII is taken in a variable, though no header field carries it; the original starts.
pub fn token_fault(token: &str) -> Option<String> {
    let wrapped = |open: char, close: char| token.starts_with(open) && token.ends_with(close);
    let why = if token.chars().any(char::is_control) {
        "holds a control character, which no HTTP header can carry"
    } else if let Some(c) = token.chars().find(|c| is_unseen(*c)) {
        return Some(format!("holds U+{:04X}, which cannot be seen", u32::from(c)));
    } else if is_quoted(token) {
        "begins or ends with a quotation mark, which would be part of it: leave the marks out"
    } else if PLACEHOLDERS.iter().any(|word| token.eq_ignore_ascii_case(word)) {
        "is a word for no value (null, none, undefined, true, …)"
    } else if wrapped('<', '>') || wrapped('{', '}') || wrapped('[', ']') || token.starts_with("${") {
        "is in brackets: a place for a secret, HTML or JSON"
    } else if token.len() > TOKEN_BYTES_MAX {
        "is longer than 4096 bytes"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// What the whole line of a file shows, before it is split at commas.
fn line_fault(line: &str) -> Option<&'static str> {
    let begins = |marks: &[char]| line.starts_with(marks);
    if begins(&['<'])
        || begins(&['{', '[']) && (line.len() == 1 || line.contains(['"', ':']) || line.ends_with(['}', ']']))
    {
        Some("is HTML or JSON")
    } else if begins(&['#']) {
        Some("begins with #; a comment has a blank after it")
    } else {
        None
    }
}

/// What a file holds that was not made for this: a text, or variables.
fn file_token_fault(token: &str) -> Option<String> {
    let name = token.split_once('=').map_or("", |(name, _)| name);
    let variable =
        name.to_ascii_uppercase().ends_with("TOKEN") && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if let Some(c) = token.chars().find(|c| !c.is_ascii() && !c.is_whitespace() && !is_quoted(token)) {
        Some(format!("holds U+{:04X}; a header field carries ASCII only", u32::from(c)))
    } else if token.contains(char::is_whitespace) {
        Some("holds a blank: a comment begins with # in a line of its own".to_owned())
    } else if variable {
        Some("is an assignment: the file holds the secret alone".to_owned())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a file that no token can be in would be taken, and every client get 401; or a sound one refused.
    #[test]
    fn a_file_holds_tokens_and_comments_and_nothing_else() {
        for (text, want) in [
            ("a\n", &["a"][..]),
            ("\u{feff}a\r\n\r\nb , c\r\n", &["a", "b", "c"]),
            ("# rotated 2026-11-01, by ops\na\n#\n#\tx\nb=\n", &["a", "b="]),
            ("p4$$[w0rd]x\n", &["p4$$[w0rd]x"]),
        ] {
            assert_eq!(Tokens::of_file(text).unwrap().expose(), want, "{text:?}");
        }
        for (text, part) in [
            ("good\nb\u{200b}ad-s3cret\n", "line 2 is no token: it holds U+200B"),
            ("\u{feff}\u{feff}", "holds no token"),
            ("good\n\u{feff}s3cret", "line 2 is no token: it holds U+FEFF"),
            ("s3cret\u{a0}x", "line 1 is no token: it holds a blank"),
            ("\"s3cret\"", "quotation mark"),
            ("'s3cret", "quotation mark"),
            ("“s3cret”", "line 1"),
            ("s3cret\rs3cret", "line 1 is no token: it holds a"),
            ("<!DOCTYPE html>\n<html>", "HTML"),
            ("good\n<p>s3cret", "line 2 is no token: it is HTML"),
            ("{\"token\": \"s3cret\", \"x\": 1}", "line 1 is no token: it is HTML or JSON"),
            ("{\n", "JSON"),
            ("[\"s3cret\"]", "JSON"),
            ("null\n", "no value"),
            ("good\nNone", "line 2"),
            ("undefined", "no value"),
            ("${s3cret}", "brackets"),
            ("<s3cret>", "HTML"),
            ("#s3cret", "a blank after it"),
            ("s3cret # rotated", "holds a blank"),
            ("404 page not found s3cret", "holds a blank"),
            ("LEITSTAND_TOKEN=s3cret", "assignment"),
            ("s3cret\0", "control"),
            ("", "holds no token"),
            ("# only a comment\n", "holds no token"),
            (&"x".repeat(4097), "longer"),
        ] {
            let why = Tokens::of_file(text).unwrap_err();
            assert!(why.contains(part) && !why.contains("s3cret"), "{text:?}: {why}");
        }
    }

    /// Broken, a passphrase that the original took would be refused, or quotation marks be part of a secret.
    #[test]
    fn a_value_may_hold_blanks_and_no_marks() {
        assert_eq!(Tokens::of_value("correct horse,b\n#c").unwrap().expose(), ["correct horse", "b", "#c"]);
        // compat: nobody can send it, and the original starts.
        assert_eq!(Tokens::of_value("s3crét").unwrap().expose(), ["s3crét"]);
        for text in ["\"s3cret\"", "a,'s3cret'", "null", "s3cret\u{200b}", "<s3cret>"] {
            let why = Tokens::of_value(text).unwrap_err();
            assert!(why.contains("secret ") && !why.contains("s3cr"), "{text:?}: {why}");
        }
    }
}
