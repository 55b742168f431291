//! Who may do what: scopes, grants, and the set of tokens that are accepted.

mod file;
mod set;
mod store;

pub use file::{Found, Presence, Stamp, TokenFile};
pub use set::{Digest, EXPIRES_SOON_S, Grant, Known, LastDigest, Pattern, TokenSet, Transport};
pub use store::{Change, Previous, STORE_BYTES_MAX, StoreFault, StoredToken, TOKENS_MAX, TokenStore, grant};

use std::fmt;

/// A kind of request. Each token is given some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Append events.
    Ingest,
    /// Ask for the version and whether the service is up.
    Read,
    /// See and change how the service runs.
    Admin,
}

/// A set of scopes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// What `LEITSTAND_TOKEN` may do: what the original's only secret could.
    pub const SERVICE: Scopes = Scopes(Scope::Ingest.bit() | Scope::Read.bit());
    /// What `LEITSTAND_ADMIN_TOKEN` may do.
    pub const ALL: Scopes = Scopes(Scope::Ingest.bit() | Scope::Read.bit() | Scope::Admin.bit());

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::EVERY.into_iter().filter(move |scope| self.has(*scope))
    }

    /// Is `scope` among them?
    pub fn has(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(Scope::as_str).collect();
        f.write_str(&names.join(","))
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Scopes {
        Scopes(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

impl Scope {
    /// All of them, in the order in which they are shown.
    pub const EVERY: [Scope; 3] = [Scope::Ingest, Scope::Read, Scope::Admin];

    const fn bit(self) -> u8 {
        1 << self as u8
    }

    /// The name in the store and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Ingest => "ingest",
            Scope::Read => "read",
            Scope::Admin => "admin",
        }
    }

    /// # Errors
    /// What the name must be.
    pub fn parse(text: &str) -> Result<Scope, String> {
        let known = Scope::EVERY.into_iter().find(|scope| scope.as_str() == text);
        known.ok_or_else(|| "must be ingest, read or admin".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, every producer could change how the service runs.
    #[test]
    fn the_shared_secret_is_no_key_to_the_service_itself() {
        assert!(Scopes::SERVICE.has(Scope::Ingest) && Scopes::SERVICE.has(Scope::Read));
        assert!(!Scopes::SERVICE.has(Scope::Admin) && Scopes::ALL.has(Scope::Admin));
        assert!(!Scopes::default().has(Scope::Read));
    }
}
