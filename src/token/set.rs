//! `TokenSet`: the tokens that are accepted, as digests, and which of them a request shows.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use super::{Scope, Scopes};
use crate::domain::Domain;
use crate::patterns;

/// Up to so many digests are all compared, in constant time; more are looked up.
const COMPARED_MAX: usize = 16;

/// From so long before its end on a token is warned of.
pub const EXPIRES_SOON_S: u64 = 14 * 86_400;

/// SHA-256 of a secret. What is stored, compared and, in part, shown.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

/// Longest secret that [`LastDigest`] remembers.
const REMEMBERED_BYTES_MAX: usize = 64;

/// The digest of the secret that was seen last, which is most often that of the next one.
///
/// It is the digest of that secret whatever is accepted, so nothing has to be forgotten when that changes.
#[derive(Debug, Clone)]
pub struct LastDigest {
    secret: Padded,
    digest: Digest,
}

/// A secret in a room of fixed size, so that comparing two takes the same time whatever they are.
#[derive(Clone, Copy)]
struct Padded {
    words: [u64; REMEMBERED_BYTES_MAX / 8],
    len: u64,
}

/// How a secret came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// `X-Auth`.
    XAuth,
    /// `Authorization: Bearer`.
    Bearer,
}

/// What a token with a name gives. Shared secrets have none: they are good for every domain.
#[derive(Debug, PartialEq, Eq)]
pub struct Grant {
    pub name: String,
    /// Empty: all.
    pub domains: Vec<Pattern>,
    /// The domain of events whose request names none.
    pub default_domain: Option<Domain>,
}

/// Domains, with `*` for any characters.
#[derive(Clone, PartialEq, Eq)]
pub struct Pattern(String);

/// A secret that is accepted.
#[derive(Debug, Clone)]
pub struct Known {
    pub digest: Digest,
    pub scopes: Scopes,
    /// Refused from this Unix time on.
    pub expires_s: Option<u64>,
    /// An older secret of its token, which ends with the overlap of a rotation.
    pub superseded: bool,
    /// `None`: one of the shared secrets.
    pub grant: Option<Arc<Grant>>,
    /// compat: the original refused its secret in any other header than X-Auth, and so do we.
    pub x_auth_only: bool,
}

/// Secrets that are accepted. An index: it changes as a whole.
#[derive(Debug, Clone, Default)]
pub struct TokenSet {
    known: Vec<Known>,
    /// Only with more than [`COMPARED_MAX`].
    by_digest: HashMap<Digest, usize>,
}

impl TokenSet {
    /// The shared secrets: those of `LEITSTAND_TOKEN`, and those of `LEITSTAND_ADMIN_TOKEN`, which may do
    /// everything.
    pub fn shared(service: &[String], admin: &[String]) -> TokenSet {
        let known = |secret: &String, scopes, x_auth_only| Known {
            digest: Digest::of(secret.as_bytes()),
            scopes,
            expires_s: None,
            superseded: false,
            grant: None,
            x_auth_only,
        };
        let service = service.iter().map(|secret| known(secret, Scopes::SERVICE, true));
        let admin = admin.iter().map(|secret| known(secret, Scopes::ALL, false));
        TokenSet::new(service.chain(admin).collect())
    }

    /// Of a secret that is there twice the last place counts.
    pub fn new(known: Vec<Known>) -> TokenSet {
        let by_digest = if known.len() > COMPARED_MAX {
            known.iter().enumerate().map(|(at, known)| (known.digest, at)).collect()
        } else {
            HashMap::new()
        };
        TokenSet { known, by_digest }
    }

    /// How many named tokens end within [`EXPIRES_SOON_S`], but not yet.
    pub fn expiring(&self, now_s: u64) -> usize {
        let soon = now_s + 1..=now_s + EXPIRES_SOON_S;
        self.known
            .iter()
            .filter(|known| !known.superseded && known.expires_s.is_some_and(|end| soon.contains(&end)))
            .count()
    }

    /// The secrets of both.
    pub fn with(&self, other: &TokenSet) -> TokenSet {
        TokenSet::new(self.known.iter().chain(&other.known).cloned().collect())
    }

    /// How many secrets there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Changes the only secret where it is, so that times can be compared.
    #[cfg(test)]
    pub(crate) fn set_only_digest(&mut self, digest: Digest) {
        self.known[0].digest = digest;
    }

    /// The secret with this digest.
    ///
    /// Few digests are all compared, in constant time. Many are looked up in a map, which is not
    /// constant-time, but what its time depends on is the digest of a guess: who could choose that
    /// byte by byte could invert SHA-256.
    pub fn find(&self, digest: &Digest) -> Option<&Known> {
        if self.known.len() > COMPARED_MAX {
            return self.by_digest.get(digest).map(|at| &self.known[*at]);
        }
        let mut found = Choice::from(0);
        let mut index = 0;
        for (at, known) in self.known.iter().enumerate() {
            let equal = known.digest.words().ct_eq(&digest.words());
            index.conditional_assign(&(at as u32), equal);
            found |= equal;
        }
        bool::from(found).then(|| &self.known[index as usize])
    }
}

impl Known {
    /// May it do what `scope` says?
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.has(scope)
    }
}

impl Digest {
    /// The digest of a secret.
    pub fn of(secret: &[u8]) -> Digest {
        Digest(Sha256::digest(secret).into())
    }

    /// As numbers, which are compared in an eighth of the steps.
    fn words(&self) -> [u64; 4] {
        let word = |at: usize| u64::from_le_bytes(self.0[8 * at..8 * at + 8].try_into().expect("eight of 32 bytes"));
        [word(0), word(1), word(2), word(3)]
    }

    /// All 64 digits, as in the store.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The other way round; `None` unless they are 64 hex digits.
    pub fn from_hex(text: &str) -> Option<Digest> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
        }
        Some(Digest(bytes))
    }

    /// A key for maps that lasts as long as the secret. Tells nothing about it.
    pub fn key(&self) -> u64 {
        self.words()[0]
    }
}

impl LastDigest {
    /// The digest of `secret`.
    pub fn of(&mut self, secret: &[u8]) -> Digest {
        let Some(padded) = Padded::new(secret) else { return Digest::of(secret) };
        if !self.secret.is(&padded) {
            *self = LastDigest { secret: padded, digest: Digest::of(secret) };
        }
        self.digest
    }
}

impl Default for LastDigest {
    /// Of nothing. Also that is compared, so that the time does not tell whether there was a secret.
    fn default() -> LastDigest {
        let nothing = Padded { words: [0; REMEMBERED_BYTES_MAX / 8], len: u64::MAX };
        LastDigest { secret: nothing, digest: Digest([0; 32]) }
    }
}

impl Padded {
    /// `None` if it is too long.
    fn new(secret: &[u8]) -> Option<Padded> {
        let mut bytes = [0; REMEMBERED_BYTES_MAX];
        bytes.get_mut(..secret.len())?.copy_from_slice(secret);
        let word = |at: usize| u64::from_le_bytes(bytes[8 * at..8 * at + 8].try_into().expect("eight bytes"));
        Some(Padded { words: std::array::from_fn(word), len: secret.len() as u64 })
    }

    fn is(&self, other: &Padded) -> bool {
        (self.words.ct_eq(&other.words) & self.len.ct_eq(&other.len)).into()
    }
}

impl fmt::Debug for Padded {
    /// A secret is not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl fmt::Debug for Digest {
    /// As much as logs and lists show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Grant {
    /// May events go to `domain`?
    pub fn allows(&self, domain: &Domain) -> bool {
        self.domains.is_empty() || self.domains.iter().any(|pattern| pattern.matches(domain))
    }
}

impl Pattern {
    /// # Errors
    /// What it must be: a domain in which `*` may stand for any characters.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        let lower = text.trim().to_ascii_lowercase();
        // With a letter for each star it must be a domain, or no domain could ever match.
        match Domain::parse(&lower.replace('*', "a")) {
            Ok(domain) if domain.as_str() == lower.replace('*', "a") => Ok(Pattern(lower)),
            _ => Err("must be a domain, in which * may stand for any characters, e.g. app.*".to_owned()),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Does the whole of `domain` match?
    pub fn matches(&self, domain: &Domain) -> bool {
        patterns::matches(self.0.as_bytes(), domain.as_str().as_bytes())
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(secret: &str) -> Known {
        Known {
            digest: Digest::of(secret.as_bytes()),
            scopes: Scopes::SERVICE,
            expires_s: None,
            superseded: false,
            grant: None,
            x_auth_only: false,
        }
    }

    /// Broken, a token would stop working, or start to, when the number of tokens grows.
    #[test]
    fn any_number_of_tokens_is_told_apart() {
        for count in [0, 1, 2, COMPARED_MAX, COMPARED_MAX + 1, 1000] {
            let set = TokenSet::new((0..count).map(|n| known(&format!("secret {n}"))).collect());
            for n in 0..count {
                let digest = Digest::of(format!("secret {n}").as_bytes());
                assert_eq!(set.find(&digest).map(|known| known.digest), Some(digest), "{n} of {count}");
            }
            for wrong in ["", "secret", "secret -1", "secret 1000"] {
                assert!(set.find(&Digest::of(wrong.as_bytes())).is_none(), "{wrong:?} of {count}");
            }
        }
    }

    /// Broken, a guess would be let in because somebody showed a token on the same connection, or a token
    /// refused because somebody guessed.
    #[test]
    fn a_remembered_digest_is_that_of_its_secret() {
        let longest = "x".repeat(REMEMBERED_BYTES_MAX);
        let shown =
            ["", "\0", "secret", "secret\0", "secre", "Secret", &longest, &longest[1..], &format!("{longest}x")];
        let mut last = LastDigest::default();
        for first in shown {
            for second in shown {
                for secret in [first, second, second] {
                    assert_eq!(last.of(secret.as_bytes()), Digest::of(secret.as_bytes()), "{secret:?}");
                }
            }
        }
        assert!(!format!("{last:?}").contains("xx"));
    }

    /// Broken, a guess that shares a part of its digest with a secret would be let in.
    #[test]
    fn every_byte_of_a_digest_counts() {
        let set = TokenSet::new(vec![known("secret")]);
        let right = Digest::of(b"secret");
        assert!(set.find(&right).is_some());
        for at in 0..32 {
            let mut digest = right;
            digest.0[at] ^= 1;
            assert!(set.find(&digest).is_none(), "byte {at}");
        }
    }

    /// Broken, an admin token that is also a service token would lose rights by chance.
    #[test]
    fn of_a_secret_in_two_places_the_last_counts() {
        let text = |n: usize| (0..n).map(|n| format!("s{n}")).collect::<Vec<_>>();
        for count in [1, COMPARED_MAX + 1] {
            let set = TokenSet::shared(&text(count), &text(count));
            assert!(set.find(&Digest::of(b"s0")).is_some_and(|known| known.may(Scope::Admin)), "{count}");
        }
    }

    /// Broken, a token would write to domains it was not given, or not to its own.
    #[test]
    fn patterns_match_whole_domains() {
        for (pattern, yes, no) in [
            ("app", &["app"][..], &["app.x", "xapp", "ap"][..]),
            ("app.*", &["app.x", "app.x.y"], &["app", "apps.x", "x.app.y"]),
            ("*", &["a", "a.b"], &[]),
            ("*.log", &["a.log", "a.b.log"], &["log", "a.logs"]),
            ("a*b*c", &["abc", "axbxc", "abbcc", "a.b.c"], &["ab", "acb", "abcd"]),
            ("APP.*", &["app.x"], &["app"]),
            ("a**b", &["ab", "axb"], &["a", "b"]),
        ] {
            let pattern = Pattern::parse(pattern).unwrap();
            for (domains, want) in [(yes, true), (no, false)] {
                for domain in domains {
                    assert_eq!(pattern.matches(&Domain::parse(domain).unwrap()), want, "{pattern:?} {domain}");
                }
            }
        }
        for bad in ["", ".", "a..b", "-*", "*-", "a b", "a/*", "\u{fc}", "?"] {
            assert!(Pattern::parse(bad).is_err(), "{bad:?}");
        }
    }
}
