//! The heartbeat: a file that is written anew while the service is ready, so that its age is an alarm.
//!
//! It stays when the service stops: what it says of the last success is worth reading then, and a
//! restart within the age that the alarm allows raises none.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use super::healthcheck::Health;
use super::mounted::Mounts;
use crate::http::AppState;
use crate::timestamp::{parse_rfc3339, rfc3339_ms};

const EVERY: Duration = Duration::from_secs(5);
/// Oldest good heartbeat, if nothing else is said.
pub(super) const MAX_AGE: Duration = Duration::from_secs(60);
/// More than any heartbeat that we write.
const BYTES_MAX: u64 = 64 << 10;

/// Writes the heartbeat for as long as the service runs.
pub(super) async fn keep(path: PathBuf, state: Arc<AppState>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        ticks.tick().await;
        if !state.is_ready().await {
            continue;
        }
        let beat = json!({
            "at": rfc3339_ms(SystemTime::now()),
            "last_success": state.metrics.last_success().map(rfc3339_ms),
            "version": state.version,
            "pid": std::process::id(),
        });
        let target = path.clone();
        // The disk of that file may hang; nothing else may wait for it.
        let written = tokio::task::spawn_blocking(move || write(&target, &format!("{beat}\n"))).await;
        match written.unwrap_or_else(|_| Err(io::Error::other("the writer panicked"))) {
            Ok(()) if failing => {
                failing = false;
                tracing::info!(path = %path.display(), "the heartbeat is written again");
            }
            Ok(()) => {}
            Err(error) => {
                state.metrics.heartbeat_failed();
                if !failing {
                    failing = true;
                    tracing::warn!(path = %path.display(), %error, "the heartbeat cannot be written");
                }
            }
        }
    }
}

/// Whole or not at all, and without a sync: after a crash of the machine it is old anyway.
fn write(path: &Path, text: &str) -> io::Result<()> {
    crate::replace::replace(path, 0o644, |file| file.write_all(text.as_bytes()))
}

/// What a heartbeat says.
pub(super) struct Beat {
    at: SystemTime,
    last_success: Option<SystemTime>,
}

/// `leitstand healthcheck --heartbeat`.
pub(super) fn health(path: &Path, max_age: Option<Duration>, max_success_age: Option<Duration>) -> Health {
    let beat = match read(path) {
        Ok(beat) => beat,
        Err(text) => return Health { healthy: false, text, said: Value::Null },
    };
    let said = json!({"at": rfc3339_ms(beat.at), "last_success": beat.last_success.map(rfc3339_ms)});
    let judged = judge(&beat, max_age.unwrap_or(MAX_AGE), max_success_age, SystemTime::now());
    // Each beat is a new file.
    let judged =
        judged.map_err(|why| Mounts::default().stale(path).map_or(why.clone(), |stale| format!("{why}\n  {stale}")));
    Health { healthy: judged.is_ok(), text: judged.unwrap_or_else(|why| why), said }
}

/// # Errors
/// What is wrong with the file.
pub(super) fn read(path: &Path) -> Result<Beat, String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(path);
    let read = file.and_then(|file| file.take(BYTES_MAX).read_to_string(&mut text));
    read.map_err(|e| {
        format!("no heartbeat in {path:?}: {e}\n  is LEITSTAND_HEARTBEAT_FILE set, and was the service ever ready?")
    })?;
    let beat: Value = serde_json::from_str(&text).unwrap_or_default();
    let time = |key: &str| beat[key].as_str().and_then(parse_rfc3339);
    match time("at") {
        Some(at) => Ok(Beat { at, last_success: time("last_success") }),
        None => Err(format!("{path:?} is no heartbeat of this service")),
    }
}

/// # Errors
/// Why the beat is no good sign.
pub(super) fn judge(
    beat: &Beat,
    max_age: Duration,
    max_success_age: Option<Duration>,
    now: SystemTime,
) -> Result<String, String> {
    let since = |at: SystemTime| now.duration_since(at);
    let age = match since(beat.at) {
        Ok(age) => age,
        // Clocks of one machine differ by less than the pause between two beats.
        Err(e) if e.duration() <= EVERY => Duration::ZERO,
        Err(e) => {
            return Err(format!("the heartbeat is {} s in the future: was the clock set?", e.duration().as_secs()));
        }
    };
    if age > max_age {
        return Err(format!(
            "the last heartbeat is {} s old: not ready, or not running; see RUNBOOK, \"Heartbeat\"",
            age.as_secs()
        ));
    }
    let success = beat.last_success.map(|at| since(at).unwrap_or_default());
    let late = max_success_age.filter(|max| success.is_none_or(|success| success > *max));
    let told =
        success.map_or("no append since the start".to_owned(), |age| format!("last append {} s ago", age.as_secs()));
    match late {
        Some(max) => Err(format!("{told}, more than {} s are not allowed", max.as_secs())),
        None => Ok(format!("heartbeat {} s old, {told}", age.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn ago(s: u64) -> SystemTime {
        SystemTime::now() - Duration::from_secs(s)
    }

    /// Broken, the alarm would ring for nothing, or never.
    #[test]
    fn a_beat_is_judged_by_its_age() {
        let minute = Duration::from_secs(60);
        let judged = |age_s, success: Option<u64>, max: Option<u64>| {
            let beat = Beat { at: ago(age_s), last_success: success.map(ago) };
            judge(&beat, minute, max.map(Duration::from_secs), SystemTime::now()).is_ok()
        };
        for (age_s, success, max, ok) in [
            (1, None, None, true),
            (59, None, None, true),
            (62, Some(1), None, false),
            (1, Some(5000), None, true),
            (1, Some(5000), Some(600), false),
            (1, Some(500), Some(600), true),
            (1, None, Some(600), false),
        ] {
            assert_eq!(judged(age_s, success, max), ok, "{age_s} {success:?} {max:?}");
        }
        let future = |s| Beat { at: SystemTime::now() + Duration::from_secs(s), last_success: None };
        assert!(judge(&future(3), minute, None, SystemTime::now()).is_ok());
        assert!(judge(&future(3600), minute, None, SystemTime::now()).is_err(), "a clock that was set back");
    }

    /// Broken, a reader would see half a heartbeat, or a link would lead the service elsewhere.
    #[test]
    fn a_beat_is_written_whole_and_where_it_belongs() {
        let dir = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (dir.path().join("beat"), dir.path().join("elsewhere"));
        fs::write(&elsewhere, "mine").unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.path().join("beat.tmp")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        write(&path, "{\"at\":\"2026-11-21T18:42:00.000Z\",\"last_success\":null}\n").unwrap();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "mine");
        assert!(read(&path).unwrap().last_success.is_none());
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            3,
            "nothing is left beside it, and nothing of others is gone"
        );
        for (name, text) in [("empty", ""), ("half", "{\"at\":\"2026"), ("other", "{}")] {
            fs::write(dir.path().join(name), text).unwrap();
            assert!(read(&dir.path().join(name)).is_err(), "{name}");
        }
        assert!(write(dir.path(), "x").is_err() && read(dir.path()).is_err(), "a directory");
    }
}
