//! `Live`: what may change while the service runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::{ApiError, Barrier};
use super::limits::Limiter;
use crate::config::{Config, Feature, Features};
use crate::domain::Domain;
use crate::patterns::DomainRules;

/// One state of the settings. A request looks at it once, when it is admitted, and keeps to that.
pub(crate) struct Live {
    pub limiter: Arc<Limiter>,
    pub body_timeout: Duration,
    pub request_timeout: Duration,
    /// `None`: all domains may be written.
    pub domains: Option<Arc<DomainRules>>,
    pub features: Features,
}

/// What a request keeps of it over its waits.
#[derive(Clone)]
pub(crate) struct Terms {
    /// Until when the body must be there.
    pub body_deadline: Instant,
    /// Until when it may wait for anything but the disk.
    pub deadline: Instant,
    domains: Option<Arc<DomainRules>>,
}

impl Live {
    pub(crate) fn new(config: &Config) -> Live {
        let limiter = Arc::new(Limiter::new(config.rate_limit.clone()));
        Live::with(config, limiter)
    }

    /// What holds after a change. An unchanged rate limit keeps its counts; a changed one begins anew.
    pub(crate) fn changed(&self, old: &Config, new: &Config) -> Live {
        if old.rate_limit == new.rate_limit { Live::with(new, self.limiter.clone()) } else { Live::new(new) }
    }

    fn with(config: &Config, limiter: Arc<Limiter>) -> Live {
        Live {
            limiter,
            body_timeout: config.body_timeout,
            request_timeout: config.request_timeout,
            domains: (!config.domains.are_empty()).then(|| Arc::new(config.domains.clone())),
            features: config.features,
        }
    }

    /// For a request whose head was there at `started`.
    pub(crate) fn terms(&self, started: Instant) -> Terms {
        let deadline = started + self.request_timeout;
        Terms { body_deadline: deadline.min(started + self.body_timeout), deadline, domains: self.domains.clone() }
    }

    /// # Errors
    /// [`ApiError::NotFound`] when it is switched off.
    pub(crate) fn need(&self, feature: Feature) -> Result<(), ApiError> {
        if self.features.has(feature) { Ok(()) } else { Err(ApiError::NotFound) }
    }
}

impl Terms {
    /// # Errors
    /// [`ApiError::Forbidden`] when this domain may not be written.
    pub(crate) fn check(&self, domain: &Domain) -> Result<(), ApiError> {
        match &self.domains {
            Some(rules) if !rules.pass(domain) => Err(ApiError::Forbidden(Barrier::DomainRules)),
            _ => Ok(()),
        }
    }
}
