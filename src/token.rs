//! What a token may do.

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

    /// Is `scope` among them?
    pub fn has(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }
}

impl Scope {
    const fn bit(self) -> u8 {
        1 << self as u8
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
