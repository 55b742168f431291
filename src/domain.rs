//! `Domain`: a checked name of an event stream, and nothing else.
//!
//! Whoever holds a [`Domain`] need not check it again: it is lower case, made of RFC 1035 like
//! labels, and safe as the stem of a file name (no separator, no dot file, no NUL).

use std::fmt;
use std::sync::Arc;

/// Longest domain in bytes (RFC 1035, section 2.3.4, without the root dot).
pub const DOMAIN_BYTES_MAX: usize = 253;
/// Longest label in bytes (RFC 1035, section 2.3.4).
pub const LABEL_BYTES_MAX: usize = 63;

/// A normalised, valid domain. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Arc<str>);

/// The text is not a domain, even after normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid domain")]
pub struct DomainError;

impl Domain {
    /// Strips Unicode white space, lower-cases, and checks the labels.
    ///
    /// compat: the original strips and lower-cases by Unicode rules before it looks at the
    /// characters, so `%20Example.COM%0A` is `example.com` and the Kelvin sign is a `k`.
    ///
    /// # Errors
    /// [`DomainError`] unless the rest is 1 to 253 bytes of labels of 1 to 63 bytes of
    /// `[a-z0-9-]` that neither begin nor end with `-`.
    pub fn parse(text: &str) -> Result<Domain, DomainError> {
        // As nearly every producer writes it.
        if let Some(domain) = Self::normal(text) {
            return Ok(domain);
        }
        let text = trim(text);
        // Lower-casing can shorten a text to ASCII (U+212A becomes `k`), never lengthen an
        // over-long one into a valid one, so the bound keeps hostile input cheap.
        if text.len() > 4 * DOMAIN_BYTES_MAX {
            return Err(DomainError);
        }
        let lower = if text.is_ascii() { text.to_ascii_lowercase() } else { text.to_lowercase() };
        Self::normal(&lower).ok_or(DomainError)
    }

    /// A text that is a domain as it stands.
    pub(crate) fn normal(text: &str) -> Option<Domain> {
        is_normal(text.as_bytes()).then(|| Domain(Arc::from(text)))
    }

    /// The normalised name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Labels with dots between them.
fn is_normal(text: &[u8]) -> bool {
    let (mut label_bytes, mut before) = (0, b'.');
    for &byte in text {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => label_bytes += 1,
            b'-' if label_bytes > 0 => label_bytes += 1,
            b'.' if label_bytes > 0 && before != b'-' => label_bytes = 0,
            _ => return false,
        }
        if label_bytes > LABEL_BYTES_MAX {
            return false;
        }
        before = byte;
    }
    text.len() <= DOMAIN_BYTES_MAX && label_bytes > 0 && before != b'-'
}

/// Strips what Python's `str.strip()` strips.
///
/// compat: that is Unicode `White_Space` plus the four separators U+001C to U+001F.
pub(crate) fn trim(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_normalised_as_the_original_does() {
        for (text, want) in [
            ("aussen", "aussen"),
            (" Example.COM\r\n", "example.com"),
            ("example.com\u{1c}", "example.com"),
            ("\u{a0}a\u{3000}", "a"),
            ("\u{212a}", "k"),
            ("a--b", "a--b"),
            ("123", "123"),
            ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
        ] {
            assert_eq!(Domain::parse(text).unwrap().as_str(), want, "{text:?}");
        }
    }

    #[test]
    fn names_that_are_no_domain_are_refused() {
        let long_label = "a".repeat(64);
        let long = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "a".repeat(62));
        assert_eq!(long.len(), 254);
        for text in [
            "",
            " ",
            ".",
            "..",
            "a..b",
            ".a",
            "a.",
            "-a",
            "a-",
            "a-.b",
            "a_b",
            "a b",
            "a/b",
            "a\\b",
            "a\0",
            "ä",
            "\u{200b}a",
            "\u{130}",
            "\u{17f}",
            "../../etc/passwd",
            &long_label,
            &long,
        ] {
            assert_eq!(Domain::parse(text), Err(DomainError), "{text:?}");
        }
        assert!(Domain::parse(&long[1..]).is_ok());
    }

    proptest! {
        /// A domain leads to itself, and can never leave its directory or hide in it.
        #[test]
        fn a_parsed_domain_is_stable_and_safe(text in "\\PC{0,40}|[a-zA-Z0-9.\\- ]{0,260}") {
            if let Ok(domain) = Domain::parse(&text) {
                prop_assert_eq!(Domain::parse(domain.as_str()), Ok(domain.clone()));
                let name = domain.as_str();
                prop_assert!(name.len() <= DOMAIN_BYTES_MAX);
                prop_assert!(!name.starts_with('.') && !name.contains(['/', '\0', '\\']));
                prop_assert!(name.is_ascii() && name == name.to_lowercase());
            }
        }
    }
}
