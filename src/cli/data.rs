//! What the commands that work on a data directory without a service share.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::config::{Config, Origin, Setting};
use crate::domain::Domain;
use crate::storage::RealDisk;
use crate::storage::snapshot::SnapshotError;

/// Exit codes of these commands; 2 is also that of wrong usage.
pub(super) const SOMETHING_FOUND: u8 = 1;
pub(super) const COULD_NOT_LOOK: u8 = 2;
/// As clap has it.
const WRONG_USAGE: u8 = 2;

/// Which files, and how to tell.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// Data directory [env: LEITSTAND_DATA_DIR] [default: data]
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Only the file of this domain
    #[arg(long, value_parser = Domain::parse)]
    pub(super) domain: Option<Domain>,
    /// One JSON document instead of lines
    #[arg(long)]
    pub(super) json: bool,
    /// Longest wait for the lock of a file, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    lock_timeout: u16,
}

impl DataArgs {
    pub(super) fn lock_timeout(&self) -> Duration {
        Duration::from_secs(u64::from(self.lock_timeout))
    }

    /// Opens the directory, which must be there.
    pub(super) fn open(&self) -> Result<RealDisk, String> {
        open_data_dir(self.data_dir.as_deref())
    }
}

/// Opens the data directory that was named, else that of the configuration. It must be there.
pub(super) fn open_data_dir(named: Option<&Path>) -> Result<RealDisk, String> {
    let dir = match named {
        Some(dir) => dir.to_owned(),
        None => super::env::data_dir()?,
    };
    RealDisk::open_existing(&dir).map_err(|e| {
        format!("cannot look at the data directory {dir:?}: {e}; name that of the service by --data-dir or LEITSTAND_DATA_DIR")
    })
}

/// The data directory as a message names it: the setting by the name that somebody gave it, and what it is. Nobody is
/// blamed for a default.
pub(super) fn data_dir_setting(config: &Config) -> (String, String) {
    let setting = Setting::named("LEITSTAND_DATA_DIR").expect("it is in SETTINGS");
    let dir = config.data_dir.display().to_string();
    let text = match config.origin(setting) {
        Origin::Default => {
            let below = std::env::current_dir().map_or(".".into(), |dir| dir.display().to_string());
            format!("is not set; the default {dir:?} below {below}")
        }
        _ => format!("is {dir:?}"),
    };
    (config.called(setting).to_owned(), text)
}

/// Tells why there is no snapshot, or none that was restored or looked at.
pub(super) fn refused(error: &SnapshotError, json: bool) -> ExitCode {
    if json {
        print_error(error.word(), &error.to_string());
    }
    tell(format_args!("leitstand: {error}"));
    ExitCode::from(if error.is_wrong_content() { SOMETHING_FOUND } else { COULD_NOT_LOOK })
}

/// Something that belongs on stdout is not there.
static UNPRINTED: AtomicBool = AtomicBool::new(false);

/// Writes to stdout. A reader that went away is not our failure; anything else is told, and
/// [`is_unprinted`] from then on.
pub(super) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            UNPRINTED.store(true, Ordering::Relaxed);
            tell(format_args!("leitstand: what was to be done is done, but stdout cannot be written: {e}"));
        }
        _ => {}
    }
}

/// Has [`print()`] failed?
pub(super) fn is_unprinted() -> bool {
    UNPRINTED.load(Ordering::Relaxed)
}

/// Tells what is wrong with the arguments, and ends as for any other wrong usage.
pub(super) fn wrong_usage(message: &str, json: bool) -> ExitCode {
    if json {
        print_error("could_not", message);
    }
    tell(format_args!("leitstand: {message}"));
    ExitCode::from(WRONG_USAGE)
}

/// Writes a line to stderr. Whoever has closed it does not want to know, and the work goes on.
pub(super) fn tell(line: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// The same without an end, for what is written anew.
pub(super) fn draw(text: impl Display) {
    let mut out = std::io::stderr().lock();
    let _ = write!(out, "{text}").and_then(|()| out.flush());
}

/// Tells a script what went wrong, as the document that it waits for.
pub(super) fn print_error(kind: &str, message: &str) {
    print(&format!("{:#}\n", json!({"error": {"kind": kind, "message": message}})));
}

/// Why nothing is found by a relative path, if the working directory is not there any more.
pub(super) fn working_dir_gone() -> Option<&'static str> {
    let is_gone = std::env::current_dir().is_err_and(|e| e.kind() == ErrorKind::NotFound);
    is_gone.then_some("the working directory was removed, and .env and relative paths with it: cd to one that is there")
}

/// What somebody else says, for a line of ours: nothing in it can do something to a terminal, and it has an end.
pub(super) fn plain(text: &str, chars_max: usize) -> String {
    let mut plain = String::new();
    for (n, c) in text.chars().enumerate() {
        match c {
            _ if n == chars_max => {
                plain.push('…');
                break;
            }
            '"' | '\'' | '\\' => plain.push(c),
            // Signs for control, direction and the end of a line, and what cannot be seen.
            _ => plain.extend(c.escape_debug()),
        }
    }
    plain
}

/// 64 hex digits, of either case.
pub(super) fn sha256(text: &str) -> Result<String, String> {
    let text = text.trim();
    let is_hash = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_hash.then(|| text.to_ascii_lowercase()).ok_or_else(|| "must be 64 hex digits".to_owned())
}

/// "1 line", "2 lines".
pub(super) fn count(n: u64, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, whoever answers on the port of a service could write anything on the terminal of an operator.
    #[test]
    fn what_others_say_is_plain_and_has_an_end() {
        for (said, want) in [
            ("0.1.0", "0.1.0"),
            ("größer \"a\" 'b' \\", "größer \"a\" 'b' \\"),
            ("\u{1b}[2J\r\n\t\0", "\\u{1b}[2J\\r\\n\\t\\0"),
            ("\u{9b}2J\u{7f}", "\\u{9b}2J\\u{7f}"),
            ("\u{202e}\u{2066}\u{200b}\u{2028}\u{feff}", "\\u{202e}\\u{2066}\\u{200b}\\u{2028}\\u{feff}"),
            ("12345678901234567", "12345678901234567"),
            ("123456789012345678", "12345678901234567…"),
        ] {
            assert_eq!(plain(said, 17), want, "{said:?}");
        }
    }
}
