//! `Patterns`: names of domains with `*` in them, and which domains may be written by them.

use std::fmt;

use crate::domain::{DOMAIN_BYTES_MAX, Domain};

/// Most patterns in one list.
pub const PATTERNS_MAX: usize = 1000;

/// A list of patterns. `*` stands for any run of characters, dots too.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Patterns(Vec<String>);

/// Which domains may be written: not what `deny` names; and if `allow` names any, only those.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DomainRules {
    pub allow: Patterns,
    pub deny: Patterns,
}

impl DomainRules {
    /// Do they pass every domain?
    pub fn are_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// May this domain be written?
    pub fn pass(&self, domain: &Domain) -> bool {
        !self.deny.match_any(domain) && (self.allow.is_empty() || self.allow.match_any(domain))
    }
}

impl Patterns {
    /// Reads a list, separated by commas.
    ///
    /// # Errors
    /// A message for a pattern that could match no domain, and for more than [`PATTERNS_MAX`].
    pub fn parse(text: &str) -> Result<Patterns, String> {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let patterns = items.map(pattern).collect::<Result<Vec<_>, _>>()?;
        if patterns.len() > PATTERNS_MAX {
            Err(format!("must be at most {PATTERNS_MAX} patterns"))
        } else {
            Ok(Patterns(patterns))
        }
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Does any of them match the whole name?
    pub fn match_any(&self, domain: &Domain) -> bool {
        self.0.iter().any(|pattern| matches(pattern.as_bytes(), domain.as_str().as_bytes()))
    }
}

impl fmt::Display for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

fn pattern(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'*');
    if lower.len() > DOMAIN_BYTES_MAX || !lower.bytes().all(plain) {
        return Err(format!("{text:?} is no domain with * for any characters"));
    }
    Ok(lower)
}

/// Does the whole name match? Remembers the last star only: what an earlier one could take, the
/// last one can take as well.
pub(crate) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            star = Some((p, n));
            p += 1;
        } else if p < pattern.len() && pattern[p] == name[n] {
            p += 1;
            n += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            n = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules(allow: &str, deny: &str) -> DomainRules {
        DomainRules { allow: Patterns::parse(allow).unwrap(), deny: Patterns::parse(deny).unwrap() }
    }

    fn pass(rules: &DomainRules, domain: &str) -> bool {
        rules.pass(&Domain::parse(domain).unwrap())
    }

    /// Broken, events of a domain would be taken that the operator refuses, or the other way round.
    #[test]
    fn deny_wins_and_an_empty_allow_passes_all() {
        assert!(rules("", "").are_empty() && pass(&rules("", ""), "a"));
        let only = rules("*.example.com, Test-*", "");
        for (domain, want) in [
            ("a.example.com", true),
            ("a.b.example.com", true),
            ("example.com", false),
            ("test-1", true),
            ("test", false),
            ("a.example.com.evil", false),
        ] {
            assert_eq!(pass(&only, domain), want, "{domain}");
        }
        let but = rules("*.example.com", "secret*,*.x.example.com");
        for (domain, want) in [
            ("a.example.com", true),
            ("secret.example.com", false),
            ("a.x.example.com", false),
            ("x.example.com", true),
        ] {
            assert_eq!(pass(&but, domain), want, "{domain}");
        }
        assert!(!pass(&rules("", "*"), "a"));
    }

    #[test]
    fn what_can_match_no_domain_is_refused() {
        for bad in ["a b", "ä.de", "[ab]", "a/b", "?", &"a".repeat(254)] {
            assert!(Patterns::parse(bad).is_err(), "{bad}");
        }
        assert!(Patterns::parse(&"a,".repeat(PATTERNS_MAX)).is_ok());
        assert!(Patterns::parse(&"a,".repeat(PATTERNS_MAX + 1)).is_err());
        assert_eq!(Patterns::parse(" A.b ,,*.c,").unwrap().to_string(), "a.b,*.c");
    }

    /// As slow and as plain as it can be said.
    fn oracle(pattern: &[u8], name: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'*', rest)) => (0..=name.len()).any(|n| oracle(rest, &name[n..])),
            Some((p, rest)) => name.split_first().is_some_and(|(n, more)| n == p && oracle(rest, more)),
        }
    }

    proptest! {
        #[test]
        fn stars_take_any_run(pattern in "[ab*]{0,8}", name in "[ab]{0,10}") {
            prop_assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), oracle(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
