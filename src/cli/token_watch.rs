//! `TokenWatch`: what `leitstand token` changes, the running service notices.
//!
//! The name is looked at four times a second: one `stat`, about a microsecond. Unlike inotify it sees
//! every way in which a file can change (renames, mounts, links that are swapped, network file systems),
//! and there is nothing that can go stale. A thread of its own, so that a disk that hangs holds up nobody.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::mounted::Mounts;
use super::token::roughly;
use crate::http::AppState;
use crate::metrics::{Metrics, TokenFigures};
use crate::timestamp::unix_rfc3339;
use crate::token::{EXPIRES_SOON_S, Found, Presence, Stamp, StoredToken, TokenFile, TokenStore};

/// A revoked token is refused after so long, and the time to read the store.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A file that was changed so lately may change again without a new stamp, so it is read again.
const SETTLED_AFTER_S: u64 = 2;
/// A file must be gone at so many looks in a row, because some programs remove it before they write
/// it anew.
const LOOKS_UNTIL_GONE: u32 = 2;
const WARN_EVERY_S: u64 = 86_400;
/// Most tokens that the log tells of at once.
const TOLD_MAX: usize = 100;

/// Ends when it is dropped.
pub(super) struct TokenWatch {
    _stop: mpsc::Sender<()>,
}

impl TokenWatch {
    /// Reads the store at `path` and keeps `state` at it.
    ///
    /// # Errors
    /// A store that is there but cannot be used.
    pub(super) fn start(path: PathBuf, state: Arc<AppState>, metrics: Metrics) -> Result<TokenWatch, String> {
        let mut eye = Eye::new(TokenFile::new(path), state, metrics);
        eye.first(now_s())?;
        let (stop, stopped) = mpsc::channel::<()>();
        let watch = move || {
            while matches!(stopped.recv_timeout(LOOK_EVERY), Err(RecvTimeoutError::Timeout)) {
                let now_s = now_s();
                eye.look(now_s);
                eye.tell_time(now_s);
            }
        };
        let thread = std::thread::Builder::new().name("leitstand-token".to_owned());
        thread.spawn(watch).map_err(|e| format!("cannot start a thread: {e}"))?;
        Ok(TokenWatch { _stop: stop })
    }
}

/// What was seen last.
struct Eye {
    file: TokenFile,
    presence: Presence,
    mounts: Mounts,
    state: Arc<AppState>,
    metrics: Metrics,
    /// What is in use.
    store: TokenStore,
    /// What was read last, good or bad.
    stamp: Option<Stamp>,
    /// Why the file cannot be used, if it cannot.
    fault: Option<String>,
    too_open: Option<u32>,
    looks_gone: u32,
    /// Up to when ends have been told.
    told_s: u64,
    /// Tokens that were told of, by name: for which end, and when.
    warned: HashMap<String, (u64, u64)>,
}

impl Eye {
    fn new(file: TokenFile, state: Arc<AppState>, metrics: Metrics) -> Eye {
        Eye {
            file,
            presence: Presence::default(),
            mounts: Mounts::default(),
            state,
            metrics,
            store: TokenStore::default(),
            stamp: None,
            fault: None,
            too_open: None,
            looks_gone: 0,
            told_s: 0,
            warned: HashMap::new(),
        }
    }

    fn first(&mut self, now_s: u64) -> Result<(), String> {
        self.file.be_present(&mut self.presence);
        let found = self.file.read().map_err(|why| self.file.broken(&why))?;
        if let Some(found) = found {
            self.tell_mode(&found);
            self.store = found.store;
            tracing::info!(
                path = %self.file.path().display(),
                tokens = self.store.tokens().len(),
                "token store read"
            );
        }
        self.told_s = now_s;
        self.use_store();
        self.warn(now_s);
        Ok(())
    }

    /// One look at the file.
    fn look(&mut self, now_s: u64) {
        self.file.be_present(&mut self.presence);
        let stamp = match self.file.stamp() {
            Ok(Some(stamp)) => stamp,
            Ok(None) => return self.is_gone(),
            Err(why) => return self.is_broken(why),
        };
        self.looks_gone = 0;
        if let Some(why) = self.mounts.stale(self.file.path()) {
            return self.is_broken(why);
        }
        let settled = stamp.changed_s().saturating_add_unsigned(SETTLED_AFTER_S) < now_s as i64;
        if self.stamp == Some(stamp) && settled {
            return;
        }
        match self.file.read() {
            Ok(Some(found)) => {
                self.tell_mode(&found);
                self.is_good(found.store);
            }
            // Just now: the next look will tell.
            Ok(None) => return,
            Err(why) => self.is_broken(why),
        }
        self.stamp = Some(stamp);
    }

    fn is_gone(&mut self) {
        self.looks_gone = self.looks_gone.saturating_add(1);
        if self.store.tokens().is_empty() && self.fault.is_none() {
            return;
        }
        if !self.file.has_directory() {
            // Not a removed store but a disk that is not there: nobody has revoked anything.
            self.is_broken("is not there, nor is its directory".to_owned());
        } else if self.looks_gone >= LOOKS_UNTIL_GONE {
            self.stamp = None;
            self.is_good(TokenStore::default());
        }
    }

    fn is_broken(&mut self, why: String) {
        // Read anew as soon as it looks different.
        self.stamp = None;
        if self.fault.as_ref() != Some(&why) {
            tracing::error!(
                path = %self.file.path().display(),
                cause = why,
                "token store cannot be used; the tokens that were read before stay as they are"
            );
            self.fault = Some(why);
            self.show();
        }
    }

    fn is_good(&mut self, store: TokenStore) {
        let was_broken = self.fault.take().is_some();
        if was_broken {
            tracing::info!("token store can be used again");
        }
        if store != self.store {
            let before = std::mem::replace(&mut self.store, store);
            self.use_store();
            for (change, token) in self.store.changes_since(&before) {
                let name = &token.grant.name;
                audit(change.action(), token, &told(before.get(name)), &told(self.store.get(name)));
            }
        } else if was_broken {
            self.show();
        }
    }

    fn use_store(&self) {
        self.state.auth.replace_stored(self.store.accepted());
        self.show();
    }

    fn show(&self) {
        let ends_s = self.store.tokens().iter().filter_map(|token| token.expires_s).collect();
        let count = self.store.tokens().len();
        self.metrics.tokens(TokenFigures { reload_successful: self.fault.is_none(), count, ends_s });
    }

    fn tell_mode(&mut self, found: &Found) {
        if let Some(mode) = found.too_open.filter(|mode| self.too_open != Some(*mode)) {
            tracing::warn!(
                path = %self.file.path().display(),
                mode = format!("{mode:04o}"),
                "token store is open to other users; chmod 600"
            );
        }
        self.too_open = found.too_open;
    }

    /// Tells of ends that have come, and once a day of those that will.
    fn tell_time(&mut self, now_s: u64) {
        let since_s = std::mem::replace(&mut self.told_s, now_s);
        let came = |end_s: u64| since_s < end_s && end_s <= now_s;
        for token in self.store.tokens() {
            if token.expires_s.is_some_and(came) {
                audit("token_expired", token, &told(Some(token)), "refused");
            }
            for previous in token.previous.iter().filter(|previous| came(previous.until_s)) {
                audit("token_overlap_ended", token, &format!("sha256:{:?}", previous.digest), "refused");
            }
        }
        self.warn(now_s);
    }

    /// Tells of each token that ends soon or has ended: as soon as that is so, and then once a day.
    fn warn(&mut self, now_s: u64) {
        let soon = |token: &&StoredToken| token.expires_s.is_some_and(|end_s| end_s <= now_s + EXPIRES_SOON_S);
        let mut warned = HashMap::new();
        for token in self.store.tokens().iter().filter(soon).take(TOLD_MAX) {
            let (name, end_s) = (token.grant.name.as_str(), token.expires_s.unwrap_or_default());
            // What was told of another end is not told of this one.
            let before_s = self.warned.get(name).filter(|(told_end_s, _)| *told_end_s == end_s).map(|(_, at_s)| *at_s);
            if let Some(before_s) = before_s.filter(|at_s| now_s.saturating_sub(*at_s) < WARN_EVERY_S) {
                warned.insert(name.to_owned(), (end_s, before_s));
                continue;
            }
            warned.insert(name.to_owned(), (end_s, now_s));
            let expires = unix_rfc3339(end_s);
            match end_s.checked_sub(now_s) {
                None | Some(0) => tracing::warn!(token = name, expires, "token has expired: rotate or revoke it"),
                Some(left_s) => {
                    let left = roughly(left_s);
                    tracing::warn!(token = name, expires, left, "token expires soon: rotate it");
                }
            }
        }
        self.warned = warned;
    }
}

/// What a token is, in one text; never its secret.
fn told(token: Option<&StoredToken>) -> String {
    let Some(token) = token else { return "none".to_owned() };
    let domains: Vec<&str> = token.grant.domains.iter().map(|pattern| pattern.as_str()).collect();
    let domains = if domains.is_empty() { "*".to_owned() } else { domains.join(",") };
    let end = token.expires_s.map_or("never".to_owned(), unix_rfc3339);
    format!("sha256:{:?} scopes={} domains={domains} expires={end}", token.digest, token.scopes)
}

/// A line for whoever must know later what a token could do when, before and from then on.
fn audit(action: &str, token: &StoredToken, old: &str, new: &str) {
    tracing::info!(
        target: "leitstand::audit",
        action,
        token = token.grant.name.as_str(),
        sha256 = ?token.digest,
        scopes = token.scopes.to_string(),
        expires = token.expires_s.map(unix_rfc3339),
        old,
        new,
        "token store changed"
    );
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
