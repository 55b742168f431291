//! `TokenStore`: named tokens as they stand in the store, a JSON document without any secret.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::set::{Digest, Grant, Known, Pattern, TokenSet};
use super::{Scope, Scopes};
use crate::domain::Domain;
use crate::timestamp::{parse_unix_s, unix_rfc3339};

/// Most tokens in a store.
pub const TOKENS_MAX: usize = 1000;
/// Most patterns of a token.
pub const DOMAINS_MAX: usize = 32;
/// Most older secrets of a token that are still good, each from a rotation with an overlap.
pub const PREVIOUS_MAX: usize = 4;
/// Longest name of a token.
pub const NAME_CHARS_MAX: usize = 64;
/// A store that is longer is none.
pub const STORE_BYTES_MAX: usize = 16 << 20;
const VERSION: u64 = 1;

/// All named tokens. Names and digests are there once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenStore {
    tokens: Vec<StoredToken>,
}

/// A named token: its present secret, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredToken {
    pub digest: Digest,
    pub scopes: Scopes,
    /// When the present secret was made, in Unix seconds.
    pub created_s: u64,
    /// From when on it is refused.
    pub expires_s: Option<u64>,
    /// Secrets from before a rotation.
    pub previous: Vec<Previous>,
    /// Name, domains and default domain.
    pub grant: Arc<Grant>,
}

/// A secret from before a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Previous {
    pub digest: Digest,
    /// From when on it is refused.
    pub until_s: u64,
}

/// Why a text is no store. Says where, never what stands there: it may be somebody's secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreFault(String);

/// What has changed between two states of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Added,
    Revoked,
    Rotated,
    /// Scopes, domains or the end.
    Changed,
}

#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u64,
    tokens: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    name: String,
    sha256: String,
    created: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    scopes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    domains: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    default_domain: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    previous: Vec<PreviousRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PreviousRecord {
    sha256: String,
    until: String,
}

impl TokenStore {
    /// Reads a whole store.
    ///
    /// # Errors
    /// [`StoreFault`]: it is cut off, foreign, of a later version, or at odds with itself.
    pub fn parse(bytes: &[u8]) -> Result<TokenStore, StoreFault> {
        if bytes.len() > STORE_BYTES_MAX {
            return Err(StoreFault(format!("is longer than {} MiB", STORE_BYTES_MAX >> 20)));
        }
        let Versioned { version } = serde_json::from_slice(bytes).map_err(|e| StoreFault::of(&e))?;
        if version != VERSION {
            return Err(StoreFault(format!("has version {version}, and only {VERSION} is known here")));
        }
        let document: Document = serde_json::from_slice(bytes).map_err(|e| StoreFault::of(&e))?;
        if document.tokens.len() > TOKENS_MAX {
            return Err(StoreFault(format!("holds more than {TOKENS_MAX} tokens")));
        }
        let mut store = TokenStore::default();
        for (at, record) in (1..).zip(document.tokens) {
            let token = record.read().map_err(|why| StoreFault(format!("is wrong at token {at}: {why}")))?;
            store.tokens.push(token);
        }
        store.check_once()?;
        Ok(store)
    }

    /// The document, for people to read as well.
    pub fn to_json(&self) -> String {
        let tokens = self.tokens.iter().map(Record::of).collect();
        let document = Document { version: VERSION, tokens };
        let mut text = serde_json::to_string_pretty(&document).expect("texts, lists and numbers are JSON");
        text.push('\n');
        text
    }

    /// The tokens, in the order in which they were added.
    pub fn tokens(&self) -> &[StoredToken] {
        &self.tokens
    }

    /// The token of that name.
    pub fn get(&self, name: &str) -> Option<&StoredToken> {
        self.tokens.iter().find(|token| token.grant.name == name)
    }

    /// Adds a token.
    ///
    /// # Errors
    /// Name or secret is there already, or there is no room.
    pub fn add(&mut self, token: StoredToken) -> Result<(), String> {
        let name = &token.grant.name;
        if self.get(name).is_some() {
            return Err(format!(
                "a token {name:?} is there already: choose another name, or rotate or revoke it first"
            ));
        }
        self.check_new(&token.digest)?;
        if self.tokens.len() >= TOKENS_MAX {
            return Err(format!("there are {TOKENS_MAX} tokens already, which is the most: revoke some"));
        }
        self.tokens.push(token);
        Ok(())
    }

    /// Removes a token with all its secrets.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn revoke(&mut self, name: &str) -> Result<StoredToken, String> {
        let at = self.tokens.iter().position(|token| token.grant.name == name);
        Ok(self.tokens.remove(at.ok_or_else(|| unknown(name))?))
    }

    /// Gives a token a new secret. The old one is good for another `overlap_s`. The new one ends at
    /// `expires_s`; if that is not given, it lives as long as the old one was meant to.
    ///
    /// # Errors
    /// There is none of that name, or too many older secrets are still good.
    pub fn rotate(
        &mut self,
        name: &str,
        digest: Digest,
        now_s: u64,
        overlap_s: u64,
        expires_s: Option<u64>,
    ) -> Result<&StoredToken, String> {
        self.check_new(&digest)?;
        let token = self.tokens.iter_mut().find(|token| token.grant.name == name).ok_or_else(|| unknown(name))?;
        token.previous.retain(|previous| previous.until_s > now_s);
        let until_s = now_s.saturating_add(overlap_s).min(token.expires_s.unwrap_or(u64::MAX));
        if until_s > now_s {
            if token.previous.len() >= PREVIOUS_MAX {
                return Err(format!(
                    "{PREVIOUS_MAX} older secrets of {name:?} are still good, which is the most: wait, or take --overlap 0"
                ));
            }
            token.previous.push(Previous { digest: token.digest, until_s });
        }
        if overlap_s == 0 {
            token.previous.clear();
        }
        let life_s = token.expires_s.map(|end_s| end_s.saturating_sub(token.created_s));
        token.expires_s = expires_s.or(life_s.map(|life_s| now_s.saturating_add(life_s)));
        token.digest = digest;
        token.created_s = now_s;
        Ok(token)
    }

    /// Everything that lets somebody in, with its end.
    pub fn accepted(&self) -> TokenSet {
        let known = self.tokens.iter().flat_map(|token| {
            let known = |digest, expires_s, superseded| Known {
                digest,
                scopes: token.scopes,
                expires_s,
                superseded,
                grant: Some(token.grant.clone()),
                x_auth_only: false,
            };
            let end_s = token.expires_s;
            let previous =
                token.previous.iter().map(move |previous| known(previous.digest, Some(previous.until_s), true));
            previous.chain([known(token.digest, end_s, false)])
        });
        TokenSet::new(known.collect())
    }

    /// Is there a token that may append events?
    pub fn has_ingest(&self) -> bool {
        self.tokens.iter().any(|token| token.scopes.has(Scope::Ingest))
    }

    /// How `self` differs from `before`, by token.
    pub fn changes_since<'a>(&'a self, before: &'a TokenStore) -> Vec<(Change, &'a StoredToken)> {
        let gone = before.tokens.iter().filter(|old| self.get(&old.grant.name).is_none());
        let gone = gone.map(|old| (Change::Revoked, old));
        let here = self.tokens.iter().filter_map(|new| {
            let change = match before.get(&new.grant.name) {
                None => Change::Added,
                Some(old) if old == new => return None,
                Some(old) if old.digest != new.digest => Change::Rotated,
                Some(_) => Change::Changed,
            };
            Some((change, new))
        });
        gone.chain(here).collect()
    }

    fn check_new(&self, digest: &Digest) -> Result<(), String> {
        let used = self.tokens.iter().find(|token| token.digests().any(|known| known == *digest));
        used.map_or(Ok(()), |token| Err(format!("this is a secret of the token {:?} already", token.grant.name)))
    }

    fn check_once(&self) -> Result<(), StoreFault> {
        let (mut names, mut digests) = (HashSet::new(), HashSet::new());
        for (at, token) in (1..).zip(&self.tokens) {
            if !names.insert(&token.grant.name) || !token.digests().all(|digest| digests.insert(digest)) {
                return Err(StoreFault(format!("has a name or a sha256 twice, the second time at token {at}")));
            }
        }
        Ok(())
    }
}

impl StoredToken {
    /// Is it refused at that time?
    pub fn is_expired(&self, now_s: u64) -> bool {
        self.expires_s.is_some_and(|end_s| end_s <= now_s)
    }

    fn digests(&self) -> impl Iterator<Item = Digest> {
        self.previous.iter().map(|previous| previous.digest).chain([self.digest])
    }
}

impl Change {
    /// Its name in the audit log.
    pub fn action(self) -> &'static str {
        match self {
            Change::Added => "token_added",
            Change::Revoked => "token_revoked",
            Change::Rotated => "token_rotated",
            Change::Changed => "token_changed",
        }
    }
}

impl StoreFault {
    fn of(error: &serde_json::Error) -> StoreFault {
        let place = format!("(line {}, column {})", error.line(), error.column());
        StoreFault(match error.classify() {
            serde_json::error::Category::Eof => "is empty or cut off".to_owned(),
            serde_json::error::Category::Data => format!("is JSON, but no token store {place}"),
            serde_json::error::Category::Syntax | serde_json::error::Category::Io => format!("is not JSON {place}"),
        })
    }
}

impl fmt::Display for StoreFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StoreFault {}

impl Record {
    fn of(token: &StoredToken) -> Record {
        let previous = |previous: &Previous| PreviousRecord {
            sha256: previous.digest.to_hex(),
            until: unix_rfc3339(previous.until_s),
        };
        Record {
            name: token.grant.name.clone(),
            sha256: token.digest.to_hex(),
            created: unix_rfc3339(token.created_s),
            expires: token.expires_s.map(unix_rfc3339),
            scopes: token.scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
            domains: token.grant.domains.iter().map(|pattern| pattern.as_str().to_owned()).collect(),
            default_domain: token.grant.default_domain.as_ref().map(|domain| domain.as_str().to_owned()),
            previous: token.previous.iter().map(previous).collect(),
        }
    }

    /// The value of a member is never quoted.
    fn read(self) -> Result<StoredToken, String> {
        let grant = grant(self.name, &self.domains, self.default_domain.as_deref())?;
        let scopes: Result<Vec<Scope>, String> = self.scopes.iter().map(|scope| Scope::parse(scope)).collect();
        let scopes = scopes.map_err(|why| format!("each of its scopes {why}"))?;
        if scopes.is_empty() {
            return Err("it has no scopes".to_owned());
        }
        let digest = |hex: &str| Digest::from_hex(hex).ok_or("a sha256 must be 64 hex digits");
        let time = |text: &str| parse_unix_s(text).ok_or("a time must be as 2026-12-31T23:59:59Z");
        let previous: Result<Vec<Previous>, String> = self
            .previous
            .iter()
            .map(|record| Ok(Previous { digest: digest(&record.sha256)?, until_s: time(&record.until)? }))
            .collect();
        let previous = previous?;
        if previous.len() > PREVIOUS_MAX {
            return Err(format!("it has more than {PREVIOUS_MAX} older secrets"));
        }
        Ok(StoredToken {
            digest: digest(&self.sha256)?,
            scopes: scopes.into_iter().collect(),
            created_s: time(&self.created)?,
            expires_s: self.expires.as_deref().map(time).transpose()?,
            previous,
            grant: Arc::new(grant),
        })
    }
}

/// What a token gives, checked.
///
/// # Errors
/// What is wrong; quotes nothing.
pub fn grant(name: String, domains: &[String], default_domain: Option<&str>) -> Result<Grant, String> {
    let is_name = (1..=NAME_CHARS_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !is_name {
        return Err(format!("its name must be 1 to {NAME_CHARS_MAX} letters, digits, dots, underscores and dashes"));
    }
    if domains.len() > DOMAINS_MAX {
        return Err(format!("it has more than {DOMAINS_MAX} domains"));
    }
    let domains: Result<Vec<Pattern>, String> = domains.iter().map(|text| Pattern::parse(text)).collect();
    let domains = domains.map_err(|why| format!("each of its domains {why}"))?;
    let default_domain = default_domain.map(Domain::parse).transpose();
    let default_domain = default_domain.map_err(|_| "its default domain must be a domain".to_owned())?;
    let grant = Grant { name, domains, default_domain };
    match &grant.default_domain {
        Some(domain) if !grant.allows(domain) => Err("its default domain must be one of its domains".to_owned()),
        _ => Ok(grant),
    }
}

fn unknown(name: &str) -> String {
    format!("there is no token {name:?}; `leitstand token list` shows all")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(name: &str, secret: &str) -> StoredToken {
        StoredToken {
            digest: Digest::of(secret.as_bytes()),
            scopes: Scopes::SERVICE,
            created_s: 1000,
            expires_s: None,
            previous: Vec::new(),
            grant: Arc::new(grant(name.to_owned(), &[], None).unwrap()),
        }
    }

    fn store() -> TokenStore {
        let mut store = TokenStore::default();
        store.add(token("plain", "a")).unwrap();
        store
            .add(StoredToken {
                expires_s: Some(5000),
                scopes: [Scope::Admin].into_iter().collect(),
                grant: Arc::new(grant("full".into(), &["app.*".into(), "x".into()], Some("app.y")).unwrap()),
                ..token("full", "b")
            })
            .unwrap();
        store.rotate("full", Digest::of(b"c"), 2000, 100, None).unwrap();
        store
    }

    /// Broken, tokens would be lost or changed by the next command.
    #[test]
    fn what_is_written_is_read_again() {
        let text = store().to_json();
        assert_eq!(TokenStore::parse(text.as_bytes()), Ok(store()), "{text}");
        assert_eq!(store().get("full").unwrap().expires_s, Some(6000), "as long a life as before");
        let empty = TokenStore::default();
        assert_eq!(TokenStore::parse(empty.to_json().as_bytes()), Ok(empty));
    }

    /// Broken, a half-written or foreign file would be taken for a store without some of the tokens.
    #[test]
    fn what_is_not_whole_is_no_store() {
        let text = store().to_json();
        let end = text.trim_end().len();
        for cut in 0..end {
            assert!(TokenStore::parse(&text.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
        let id = "\"sha256\": \"";
        let first = text.find(id).unwrap() + id.len();
        let digest = &text[first..first + 64];
        for (from, to, why) in [
            ("\"version\": 1", "\"version\": 2", "has version 2"),
            ("\"version\": 1,", "", "no token store"),
            ("\"name\": \"full\"", "\"name\": \"plain\"", "twice"),
            ("\"name\": \"full\"", "\"name\": \"fu ll\"", "its name"),
            ("\"name\": \"full\"", "\"name\": \"full\", \"secret\": \"s3cret\"", "no token store"),
            (digest, "s3cret", "64 hex digits"),
            ("\"app.y\"", "\"s3cret\"", "one of its domains"),
            ("\"app.*\"", "\"-s3cret\"", "must be a domain"),
            ("\"admin\"", "\"s3cret\"", "ingest, read or admin"),
            ("\"admin\"", "", "no scopes"),
            ("1970-01-01T00:16:40Z", "s3cret", "a time must be"),
            ("{", "s3cret", "is not JSON"),
        ] {
            let broken = text.replacen(from, to, 1);
            assert_ne!(broken, text, "{from}");
            let fault = TokenStore::parse(broken.as_bytes()).unwrap_err().to_string();
            assert!(fault.contains(why) && !fault.contains("s3cret"), "{from} -> {to}: {fault}");
        }
        let twice = text.replacen(&store().tokens()[1].digest.to_hex(), digest, 1);
        assert!(TokenStore::parse(twice.as_bytes()).is_err());
        assert!(TokenStore::parse(&vec![b' '; STORE_BYTES_MAX + 1]).is_err());
    }

    /// Broken, the bounds that keep a look cheap would not hold.
    #[test]
    fn there_is_a_most_of_everything() {
        let mut store = TokenStore::default();
        for n in 0..TOKENS_MAX {
            store.add(token(&format!("t{n}"), &format!("s{n}"))).unwrap();
        }
        assert!(store.add(token("one-more", "one more")).is_err());
        assert_eq!(TokenStore::parse(store.to_json().as_bytes()).as_ref(), Ok(&store));
        store.tokens.push(token("one-more", "one more"));
        assert!(TokenStore::parse(store.to_json().as_bytes()).is_err());
        let domains = vec!["a".to_owned(); DOMAINS_MAX + 1];
        assert!(grant("a".into(), &domains[1..], None).is_ok() && grant("a".into(), &domains, None).is_err());
        assert!(grant("a".repeat(64), &[], None).is_ok() && grant("a".repeat(65), &[], None).is_err());
    }

    /// Broken, producers would be refused while they change to the new secret, or the old one would
    /// stay good.
    #[test]
    fn a_rotation_leaves_the_old_secret_for_a_while() {
        let ends = |store: &TokenStore, secret: &[u8]| {
            let accepted = store.accepted();
            accepted.find(&Digest::of(secret)).map(|known| known.expires_s)
        };
        let mut store = store();
        assert_eq!(ends(&store, b"b"), Some(Some(2100)));
        assert_eq!(ends(&store, b"c"), Some(Some(6000)));
        store.rotate("full", Digest::of(b"d"), 2050, 86_400, Some(9000)).unwrap();
        assert_eq!([b"b", b"c", b"d"].map(|s| ends(&store, s)), [Some(Some(2100)), Some(Some(6000)), Some(Some(9000))]);
        store.rotate("full", Digest::of(b"e"), 2200, 0, None).unwrap();
        assert_eq!([b"b", b"c", b"d"].map(|s| ends(&store, s)), [None; 3], "at once is at once");
        for n in 0..PREVIOUS_MAX {
            store.rotate("full", Digest::of(format!("n{n}").as_bytes()), 2300, 10, None).unwrap();
        }
        assert!(store.rotate("full", Digest::of(b"f"), 2300, 10, None).is_err());
        assert!(store.rotate("full", Digest::of(b"f"), 2311, 10, None).is_ok());
        assert!(store.rotate("full", Digest::of(b"a"), 2311, 10, None).is_err(), "the secret of another");
        assert!(store.rotate("nobody", Digest::of(b"g"), 2311, 10, None).is_err());
        store.revoke("full").unwrap();
        assert_eq!(store.accepted().len(), 1);
        assert!(store.revoke("full").is_err());
    }

    /// Broken, a rotation of a token that is meant for ever would leave a store that nobody can read.
    #[test]
    fn a_token_may_end_with_the_last_year() {
        let end = "9999-12-31T23:59:59Z";
        let mut store = TokenStore::default();
        store.add(StoredToken { expires_s: parse_unix_s(end), ..token("ever", "a") }).unwrap();
        store.rotate("ever", Digest::of(b"b"), 2000, 0, None).unwrap();
        let text = store.to_json();
        assert!(text.contains(end), "{text}");
        assert!(TokenStore::parse(text.as_bytes()).is_ok(), "{text}");
    }

    /// Broken, the audit log would not say who changed.
    #[test]
    fn changes_are_told_by_token() {
        let before = store();
        let mut after = before.clone();
        assert_eq!(after.changes_since(&before), []);
        after.revoke("plain").unwrap();
        after.add(token("new", "x")).unwrap();
        after.rotate("full", Digest::of(b"y"), 3000, 10, None).unwrap();
        let told = |after: &TokenStore, before| -> Vec<_> {
            after.changes_since(before).iter().map(|(change, t)| (*change, t.grant.name.clone())).collect()
        };
        let want = [(Change::Revoked, "plain"), (Change::Rotated, "full"), (Change::Added, "new")];
        assert_eq!(told(&after, &before), want.map(|(change, name)| (change, name.to_owned())));
        let mut wider = after.clone();
        wider.tokens[0].scopes = Scopes::ALL;
        assert_eq!(told(&wider, &after), [(Change::Changed, "full".to_owned())]);
    }

    proptest! {
        /// Broken, a damaged store would end the service.
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = TokenStore::parse(&bytes);
        }

        /// As above, close to a store that is right.
        #[test]
        fn a_store_with_any_damage_is_read_without_a_panic(
            at in 0..2000_usize, drop in 0..40_usize, insert in proptest::collection::vec(any::<u8>(), 0..8)
        ) {
            let mut bytes = store().to_json().into_bytes();
            let at = at % bytes.len();
            let end = bytes.len().min(at + drop);
            bytes.splice(at..end, insert);
            if let Ok(store) = TokenStore::parse(&bytes) {
                prop_assert_eq!(TokenStore::parse(store.to_json().as_bytes()), Ok(store));
            }
        }
    }
}
