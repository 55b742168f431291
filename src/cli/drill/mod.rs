//! `leitstand drill`: total loss and recovery, exercised and measured.
//!
//! A service of the drill's own is loaded with numbered events and snapshotted as an operator would.
//! It is killed, its data removed, the newest snapshot restored, and what comes back is held against
//! what was acknowledged. Nothing of a running service is touched: the drill works in a directory of
//! its own, on a socket in it, and passes none of the caller's settings on.

mod clock;
mod course;
mod interrupt;
mod load;
mod markdown;
mod progress;
mod report;
mod service;
mod smoke;
mod survey;
mod workdir;

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;

use self::course::Drill;
use self::interrupt::Interrupt;
use self::progress::Progress;
use self::report::{Report, Source};
use self::service::Binary;
pub(super) use self::service::outlives_nobody;
use self::workdir::WorkDir;
use super::data::{SOMETHING_FOUND, print};
use super::span;
use crate::rng::random_u64;
use crate::timestamp::compact;

/// A drill that ends with this says nothing about the recovery.
pub(super) const COULD_NOT_RUN: u8 = 2;

/// What to drill.
#[derive(Debug, Args)]
pub struct DrillArgs {
    /// Where to work, an empty or a new directory [default: a new one in the temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where the report goes [default: the work directory]
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Restore this snapshot instead of one of the drill's own; no load, and RPO is not measured
    #[arg(long, value_name = "SNAP", conflicts_with_all = ["seconds", "clients", "domains", "event_bytes", "snapshot_every", "rpo"])]
    restore_from: Option<PathBuf>,
    /// How long the load lasts before the kill
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Clients that post events, one after the other
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    clients: u16,
    /// Domains that they post to
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    domains: u16,
    /// Length of an event
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=524_288))]
    event_bytes: u32,
    /// Time from snapshot to snapshot; every second one is incremental
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = span)]
    snapshot_every: Duration,
    /// Most time from the kill to the first event that is accepted again
    #[arg(long, value_name = "TIME", default_value = "4h", value_parser = span)]
    rto: Duration,
    /// Most time from the ack of the oldest lost event to the kill
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = span)]
    rpo: Duration,
    /// Keep data and snapshots in the work directory when all is well, too
    #[arg(long)]
    keep: bool,
    /// Print the report as one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

/// Why a drill does not go on.
enum Halt {
    /// By a signal.
    Interrupted,
    /// Something that says nothing about the recovery.
    Broken(String),
    /// The recovery failed; the report says at what.
    Failed,
}

pub(super) fn run(args: &DrillArgs) -> Result<ExitCode, String> {
    if args.restore_from.is_none() && args.snapshot_every >= Duration::from_secs(u64::from(args.seconds)) {
        return Err("--snapshot-every must be shorter than --seconds: there would be no snapshot to restore".to_owned());
    }
    let run = format!("{:016x}", random_u64());
    let report_dir = args.report.as_deref().map(made).transpose()?;
    let snapshot = args.restore_from.as_deref().map(|path| found(path, args, report_dir.as_deref())).transpose()?;
    let interrupt = Interrupt::watch()?;
    let token = secret().map_err(|e| format!("cannot make a token: {e}"))?;
    let binary = Binary::new(token).map_err(|e| format!("cannot find this binary: {e}"))?;
    let work = WorkDir::enter(args.dir.as_deref(), &run)?;
    let report =
        Report::new(run, source(args, snapshot.as_deref()), args.rto, args.rpo, crate::cli::host::facts(work.path()));
    let mut drill = Drill::new(report, binary, interrupt.clone(), Progress::new(!args.json));
    let course = match &snapshot {
        Some(snapshot) => drill.restore_only(snapshot),
        None => drill.under_load(args),
    };
    let report = drill.into_report();
    // A terminal's Ctrl-C reaches the children too, and their end may be seen first.
    let course = if interrupt.came() { Err(Halt::Interrupted) } else { course };
    match course {
        Ok(()) | Err(Halt::Failed) => conclude(report, args, &work, report_dir.as_deref()),
        Err(Halt::Interrupted) => {
            if !args.keep {
                work.clear()?;
            }
            Err("interrupted".to_owned())
        }
        Err(Halt::Broken(why)) => Err(format!("the drill could not run: {why}\n  kept: {}", work.path().display())),
    }
}

/// Files the report, says the verdict, and clears up.
fn conclude(
    mut report: Report,
    args: &DrillArgs,
    work: &WorkDir,
    report_dir: Option<&Path>,
) -> Result<ExitCode, String> {
    report.ended = SystemTime::now();
    report.check_objectives();
    let document = format!("{:#}\n", report.json());
    let dir = report_dir.unwrap_or(work.path());
    let when = compact(report.began);
    let filed = workdir::file_report(dir, &when, &report.markdown(), &document)
        .map_err(|e| format!("cannot write the report to {dir:?}: {e}"))?;
    let passed = report.passed();
    let mut text = report.summary();
    text.push_str(&format!("report: {}\n", filed.display()));
    if passed && !args.keep {
        work.clear()?;
    } else {
        text.push_str(&format!("kept: {}\n", work.path().display()));
    }
    print(if args.json { &document } else { &text });
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(SOMETHING_FOUND) })
}

/// A directory for reports, made if it is missing.
fn made(dir: &Path) -> Result<PathBuf, String> {
    fs::create_dir_all(dir)
        .and_then(|()| dir.canonicalize())
        .map_err(|e| format!("cannot write reports to {dir:?}: {e}"))
}

/// The operator's snapshot, which nothing may be written into.
fn found(path: &Path, args: &DrillArgs, report_dir: Option<&Path>) -> Result<PathBuf, String> {
    let snapshot = path.canonicalize().map_err(|e| format!("cannot look at the snapshot {path:?}: {e}"))?;
    if !snapshot.is_dir() {
        return Err(format!("cannot look at the snapshot {path:?}: it is no directory"));
    }
    let dir = args.dir.as_deref().map(std::path::absolute).transpose().map_err(|e| e.to_string())?;
    if [dir.as_deref(), report_dir].into_iter().flatten().any(|dir| dir.starts_with(&snapshot)) {
        return Err(format!("--dir and --report must not lie in the snapshot {path:?}"));
    }
    Ok(snapshot)
}

fn source(args: &DrillArgs, snapshot: Option<&Path>) -> Source {
    match snapshot {
        Some(path) => Source::Snapshot { path: path.display().to_string() },
        None => Source::Load {
            lasted: Duration::from_secs(u64::from(args.seconds)),
            clients: usize::from(args.clients),
            domains: usize::from(args.domains),
            event_bytes: args.event_bytes as usize,
            snapshot_every: args.snapshot_every,
        },
    }
}

fn secret() -> io::Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
