//! https, with the certificates of the system.

use std::sync::{Arc, OnceLock};

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

use crate::error::{Failure, Kind, Written};

/// The certificates that are trusted, or why there are none: read once, with the settings.
#[derive(Clone)]
pub(crate) struct Trust(Result<Arc<RootCertStore>, String>);

impl Trust {
    /// Without certificates no connection can be made; that is told then, and a spool takes the events.
    pub fn of_system() -> Trust {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added > 0 {
            return Trust(Ok(Arc::new(roots)));
        }
        let why = found.errors.first().map(|e| format!(": {e}")).unwrap_or_default();
        Trust(Err(format!("no certificates to trust (SSL_CERT_FILE, SSL_CERT_DIR){why}")))
    }
}

/// Agrees on TLS. It remembers sessions, so each process has its own.
pub(crate) struct Tls {
    trust: Trust,
    connector: OnceLock<Result<TlsConnector, String>>,
}

impl Tls {
    pub fn new(trust: Trust) -> Tls {
        Tls { trust, connector: OnceLock::new() }
    }

    pub fn connector(&self) -> Result<&TlsConnector, Failure> {
        let made = self.connector.get_or_init(|| {
            let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(|e| e.to_string())?;
            let config = config.with_root_certificates(self.trust.0.clone()?).with_no_client_auth();
            Ok(TlsConnector::from(Arc::new(config)))
        });
        made.as_ref().map_err(|why| Failure::new(Kind::Connect, format!("https: {why}"), Written::No, true))
    }
}
