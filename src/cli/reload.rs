//! New settings without a restart: SIGHUP at once, a changed file when it has rested.
//!
//! The files are looked at twice a second and compared by content. A few small files cost nothing, and it
//! works on every file system and whatever stands in between: an editor that renames, a file that appears
//! later, Kubernetes, which turns a link to another directory. A watch on a file sees none of these
//! (docs/adr/0015).

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::signal::unix::Signal;
use tokio::time::MissedTickBehavior;

use super::env::Loader;
use super::logging::Switches;
use super::settings_file::read_text;
use crate::config::{Config, Origin, Setting, Values, edit_toml, leaves};
use crate::http::{AppState, FILES, Outside, PersistError};

/// How often the files are looked at. A change is taken over when it is still the same one look later, so
/// that a file that is just being written is not read by halves.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What the service may ask of us.
pub(super) fn outside(loader: &Arc<Loader>, log: Arc<Switches>) -> Outside {
    let (load, persist) = (loader.clone(), loader.clone());
    Outside {
        load: Box::new(move |patch| load.load(patch)),
        persist: Box::new(move |document, rest| self::persist(&persist, document, rest)),
        log: Box::new(move |level, format| log.set(level, format)),
    }
}

/// Runs for as long as the service does. `seen`: the digest of the files that it was started with.
pub(super) async fn watch(loader: Arc<Loader>, state: Arc<AppState>, mut hangup: Signal, mut seen: [u8; 32]) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut resting = None;
    loop {
        let asked = tokio::select! {
            signal = hangup.recv() => signal.is_some(),
            _ = ticks.tick() => false,
        };
        let Ok(now) = blocking(&loader, |loader| loader.digest()).await else { return };
        let actor = match (asked, now == seen, resting == Some(now)) {
            (true, _, _) => "SIGHUP",
            (false, false, true) => FILES,
            (false, same, _) => {
                resting = (!same).then_some(now);
                continue;
            }
        };
        (seen, resting) = (now, None);
        let state = state.clone();
        if tokio::task::spawn_blocking(move || state.reload(actor)).await.is_err() {
            tracing::error!("reading the configuration anew panicked; it is not read again");
            return;
        }
    }
}

async fn blocking<T: Send + 'static>(
    loader: &Arc<Loader>,
    look: impl FnOnce(&Loader) -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    let loader = loader.clone();
    tokio::task::spawn_blocking(move || look(&loader)).await
}

/// Writes `document` into the TOML file, if that gives a good configuration in which it counts.
fn persist(loader: &Loader, document: &Map<String, Value>, rest: &Values) -> Result<Config, PersistError> {
    let path = loader.path().ok_or("there is no file to write to: start with --config FILE or LEITSTAND_CONFIG")?;
    let text = read_text(&path).map_err(PersistError::Read)?;
    let edited = edit_toml(&text, document).map_err(|e| format!("{} {e}", path.display()))?;
    let config = loader.load_with(rest, Some(&edited)).map_err(|e| e.to_string())?;
    for (key, value) in leaves(document) {
        let own = Setting::keyed(&key).or_else(|| Setting::keyed(key.split('.').next().unwrap_or_default()));
        let origin = own.map(|setting| config.origin(setting));
        if let Some(origin @ (Origin::Environment | Origin::DotEnv(_) | Origin::Flag)) = origin
            && !value.is_null()
        {
            return Err(format!("{key} comes from {origin}, which wins over the file").into());
        }
    }
    replace(&path, edited.as_bytes()).map_err(PersistError::Write)?;
    Ok(config)
}

/// The old content or the new one, whatever happens in between.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    // The file behind a link is replaced, not the link.
    let path = std::fs::canonicalize(path)?;
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mode = std::fs::metadata(&path)?.permissions().mode() & 0o777;
    crate::replace::replace(&path, 0o600, |file| {
        file.write_all(content)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.sync_all()
    })?;
    File::open(dir)?.sync_all()
}
