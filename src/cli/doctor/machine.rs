//! What this machine's settings and files say, without the service.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::service::some_of;
use super::{Patient, Report};
use crate::cli::data::{count, data_dir_setting};
use crate::cli::{heartbeat, host};
use crate::config::{Bind, Config, Setting};
use crate::rate::RateLimits;
use crate::storage::file_system::weakness;
use crate::storage::snapshot::look_at_left_overs;
use crate::storage::stats::look_at_ends;
use crate::storage::{Disk as _, Fsync, RealDisk};

/// A shorter secret can be guessed; see the limit of wrong tokens.
const TOKEN_CHARS_MIN: usize = 16;

pub(super) fn look(config: &Config, patient: &Patient, report: &mut Report) {
    settings(config, patient, report);
    if patient.release {
        release(config, report);
    }
    data_dir(config, report);
    left_overs(config, report);
    if let Some(path) = &config.heartbeat_file {
        let next = "is the service ready? (RUNBOOK, \"Heartbeat\")";
        let judged =
            heartbeat::read(path).and_then(|beat| heartbeat::judge(&beat, heartbeat::MAX_AGE, None, SystemTime::now()));
        match judged {
            Ok(text) => report.ok("heartbeat", text),
            // The second line of a message is advice of its own.
            Err(text) => report.fail("heartbeat", text.lines().next().unwrap_or_default(), next),
        }
    }
}

fn settings(config: &Config, patient: &Patient, report: &mut Report) {
    let before = report.0.len();
    for warning in &config.warnings {
        report.warn("settings", warning, "leitstand config check (RUNBOOK, \"Errors at the start\")");
    }
    for stale in &config.stale {
        report.warn("settings", stale, "RUNBOOK, \"Files that are mounted by themselves\"");
    }
    if config.tokens.expose().iter().chain(config.admin_tokens.expose()).any(|token| token == "dev") {
        let next = "LEITSTAND_TOKEN=$(openssl rand -hex 24) (RUNBOOK, \"Tokens: give, rotate, revoke\")";
        match (is_loopback(&config.bind), patient.release) {
            (true, false) => {}
            (false, false) => report.warn("settings", "the token is \"dev\" and the address is not loopback", next),
            (_, true) => report.fail("settings", "the token is \"dev\"", next),
        }
    }
    if report.0.len() == before {
        report.ok("settings", format!("{} values are read", config.effective().len()));
    }
}

fn is_loopback(bind: &Bind) -> bool {
    match bind {
        Bind::Tcp { host, .. } => {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
        Bind::Unix(_) => true,
    }
}

/// What should be so before a release goes out.
fn release(config: &Config, report: &mut Report) {
    let tokens = config.tokens.expose().iter().chain(config.admin_tokens.expose());
    if tokens.filter(|token| *token != "dev").any(|token| token.chars().count() < TOKEN_CHARS_MIN) {
        let next = "openssl rand -hex 24 (RUNBOOK, \"Tokens: give, rotate, revoke\")";
        report.fail("release", format!("a token is shorter than {TOKEN_CHARS_MIN} characters"), next);
    }
    if config.admin_tokens.expose().is_empty() {
        let next = "set LEITSTAND_ADMIN_TOKEN (RUNBOOK, \"Maintenance window\")";
        report.warn("release", "nobody may use the admin routes", next);
    }
    if config.fsync != Fsync::Always {
        let setting = Setting::named("LEITSTAND_FSYNC").expect("it is in SETTINGS");
        let (name, fsync) = (config.called(setting), config.fsync.as_str());
        let text = format!("{name} is {fsync}: a power cut costs acknowledged events");
        report.warn("release", text, "unset it, or accept it (docs/durability.md)");
    }
    let off = RateLimits::default();
    if config.rate_limit == off || config.auth_rate_limit == off {
        report.warn("release", "a rate limit is off", "unset it (RUNBOOK, \"Rate limits and 429\")");
    }
    // Not to be seen from here, and forgotten most often.
    report.warn("release", "whether a backup is made cannot be seen from here", "RUNBOOK, \"Backup by copy\"");
}

/// What killed snapshots and restores left, and what only looks like it.
fn left_overs(config: &Config, report: &mut Report) {
    let above = config.data_dir.canonicalize().ok().and_then(|dir| dir.parent().map(Path::to_owned));
    let mut dirs: Vec<PathBuf> = config.snapshot_dir.iter().cloned().chain(above).collect();
    dirs.dedup();
    for dir in dirs {
        // What this user may not look into is none of his business.
        for left in look_at_left_overs(&dir).unwrap_or_default() {
            let text = format!("{:?} in {}: {}", left.name, dir.display(), left.reason);
            report.warn("left-overs", text, "RUNBOOK, \"Take a snapshot\"");
        }
    }
}

fn data_dir(config: &Config, report: &mut Report) {
    let dir = &config.data_dir;
    let next = format!("ls -ld {} (RUNBOOK, \"Not ready\")", dir.display());
    let disk = match RealDisk::open_existing(dir) {
        Ok(disk) => disk,
        Err(error) => {
            let (name, what) = data_dir_setting(config);
            return report.fail("data dir", format!("{dir:?}: {error}; {name} {what}"), next);
        }
    };
    if let Some(weakness) = weakness(disk.root()) {
        report.warn(
            "filesystem",
            format!("{} {weakness}", disk.root().display()),
            "docs/durability.md, \"What we assume\"",
        );
    }
    let before = report.0.len();
    match std::fs::metadata(disk.root()) {
        Ok(meta) if meta.mode() & 0o077 != 0 => {
            let text = format!("others may look into {} (mode {:o})", disk.root().display(), meta.mode() & 0o7777);
            report.warn("data dir", text, format!("chmod 700 {}", disk.root().display()));
        }
        Ok(_) => {}
        Err(error) => report.fail("data dir", error.to_string(), &next),
    }
    space(&disk, config, report);
    match look_at_ends(&disk) {
        Ok(ends) => {
            let found = [
                ("unfinished last lines", &ends.unfinished, "\"Torn tails\""),
                ("last lines that are no event of their domain", &ends.damaged, "\"Damaged lines\""),
                ("files that cannot be read", &ends.unread, "\"Check the data\""),
            ];
            for (what, names, chapter) in found.into_iter().filter(|(_, names, _)| !names.is_empty()) {
                let next = format!("leitstand verify --data-dir {} (RUNBOOK, {chapter})", disk.root().display());
                report.warn("data", format!("{what}: {}", some_of(names)), next);
            }
            if report.0.len() == before {
                let more = if ends.truncated { " and more" } else { "" };
                let text = format!(
                    "{}{more}, last lines are whole, {} without a file",
                    count(ends.files, "file"),
                    count(ends.stale_locks, "lock")
                );
                report.ok("data", text);
            }
        }
        Err(error) => report.fail("data", format!("cannot be listed: {error}"), next),
    }
}

/// What the service would say too; but it may be down because of it.
fn space(disk: &RealDisk, config: &Config, report: &mut Report) {
    let Ok(space) = disk.space() else { return };
    let reserve = config.reserve_bytes.unwrap_or_else(|| (space.total_bytes / 100).min(64 << 20));
    if space.free_bytes < reserve {
        let (free, reserve) = apart(space.free_bytes, reserve);
        let text = format!("{free} are free, the reserve is {reserve}");
        report.fail("disk", text, format!("df -h {} (RUNBOOK, \"Full disk\")", disk.root().display()));
    }
}

/// Two sizes as people read them; to the byte where they would look the same.
pub(super) fn apart(one: u64, other: u64) -> (String, String) {
    match (host::bytes(one), host::bytes(other)) {
        (a, b) if a == b => (format!("{one} bytes"), format!("{other} bytes")),
        both => both,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a small disk would have 0 of 0 MiB, and nobody would know what is wrong.
    #[test]
    fn sizes_are_told_apart_whatever_they_are() {
        let texts = |one: u64, other: u64| {
            let (one, other) = apart(one, other);
            format!("{one}, {other}")
        };
        assert_eq!(texts(300 << 10, 500 << 10), "300.0 KiB, 500.0 KiB");
        assert_eq!(texts(0, 64 << 20), "0 bytes, 64.0 MiB");
        assert_eq!(
            texts((64 << 20) - 4096, 64 << 20),
            "64.0 MiB, 67108864 bytes".replace("64.0 MiB", "67104768 bytes")
        );
    }
}
