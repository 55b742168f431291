//! `Live`: what may change while the service runs.

use std::sync::Arc;
use std::time::Duration;

use super::limits::Limiter;
use crate::config::Config;

/// One state of the settings. A request looks at it once, when it is admitted, and keeps to that.
pub(crate) struct Live {
    pub limiter: Arc<Limiter>,
    pub body_timeout: Duration,
}

impl Live {
    pub(crate) fn new(config: &Config) -> Live {
        Live { limiter: Arc::new(Limiter::new(config.rate_limit.clone())), body_timeout: config.body_timeout }
    }
}
