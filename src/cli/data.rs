//! What the commands that work on a data directory without a service share.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use crate::domain::Domain;
use crate::storage::RealDisk;
use crate::storage::snapshot::SnapshotError;
use crate::storage::verify::Progress;

/// Exit codes of these commands; 2 is also that of wrong usage.
pub(super) const SOMETHING_FOUND: u8 = 1;
pub(super) const COULD_NOT_LOOK: u8 = 2;

/// How often the progress line is written anew.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

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
    RealDisk::open_existing(&dir).map_err(|e| format!("cannot look at the data directory {dir:?}: {e}"))
}

/// Tells why there is no snapshot, or none that was restored or looked at.
pub(super) fn refused(error: &SnapshotError, json: bool) -> ExitCode {
    if json {
        print(&format!("{:#}\n", json!({"error": {"kind": error.word(), "message": error.to_string()}})));
    }
    eprintln!("leitstand: {error}");
    ExitCode::from(if error.is_wrong_content() { SOMETHING_FOUND } else { COULD_NOT_LOOK })
}

/// Writes to stdout. A reader that went away is not our failure.
pub(super) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// "1 line", "2 lines".
pub(super) fn count(n: u64, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// One line on the terminal that says how far a look has come; nothing if there is no terminal.
pub(super) struct ProgressLine {
    shown: bool,
    last: Instant,
    enabled: bool,
}

impl ProgressLine {
    pub(super) fn new(wanted: bool) -> ProgressLine {
        let enabled = wanted && std::io::stderr().is_terminal();
        ProgressLine { shown: false, last: Instant::now(), enabled }
    }

    pub(super) fn tell(&mut self, progress: Progress<'_>) {
        if !self.enabled || self.last.elapsed() < PROGRESS_EVERY {
            return;
        }
        self.last = Instant::now();
        self.shown = true;
        let percent = progress.bytes_done * 100 / progress.bytes.max(1);
        let (done, all) = (progress.bytes_done >> 20, progress.bytes >> 20);
        // Carriage return, and the rest of the line is erased.
        eprint!("\r{percent:3} % of {all} MiB ({done} MiB)  {:.40}\x1b[K", progress.file);
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}
