//! `leitstand snapshot`: a copy of the data directory, taken beside the service.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::data::{SOMETHING_FOUND, count, open_data_dir, print, refused};
use super::progress::ProgressLine;
use crate::storage::snapshot::{LeftAlone, Poisoned, SnapshotOptions, SnapshotReport, snapshot};

/// What to copy, and where to.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// Directory of the snapshot; it must not be there yet, or be empty
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Data directory [env: LEITSTAND_DATA_DIR] [default: data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Earlier snapshot on the same file system; what it holds is linked, only the rest is copied
    #[arg(long, value_name = "EARLIER")]
    base: Option<PathBuf>,
    /// One JSON document instead of lines
    #[arg(long)]
    pub(super) json: bool,
    /// Longest wait for the lock of a file, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    lock_timeout: u16,
    /// Most bytes a second, e.g. 50MiB; without it, half of what disk and processor would give
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    rate: Option<u64>,
}

fn rate(text: &str) -> Result<u64, String> {
    match crate::config::bytes(text)? {
        0 => Err("must be more than 0".to_owned()),
        n => Ok(n),
    }
}

pub(super) fn run(args: &SnapshotArgs) -> Result<ExitCode, String> {
    let disk = open_data_dir(args.data_dir.as_deref())?;
    let options = SnapshotOptions {
        to: args.to.clone(),
        base: args.base.clone(),
        lock_timeout: Duration::from_secs(u64::from(args.lock_timeout)),
        rate: args.rate,
        reserve_bytes: super::env::reserve_bytes()?,
    };
    let mut line = ProgressLine::new("snapshot", !args.json);
    let report = snapshot(&disk, &options, &mut |progress| line.tell(progress));
    drop(line);
    let report = match report {
        Ok(report) => report,
        Err(e) => return Ok(refused(&e, args.json)),
    };
    if args.json {
        print(&format!("{:#}\n", document(&report)));
    } else {
        print(&lines(&report));
    }
    let complete = report.manifest.losses().next().is_none();
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::from(SOMETHING_FOUND) })
}

fn document(report: &SnapshotReport) -> Value {
    let manifest = &report.manifest;
    json!({
        "path": report.path.to_string_lossy(),
        "id": manifest.id,
        "created": manifest.created,
        "base": manifest.base,
        "files": manifest.totals.files,
        "lines": manifest.totals.lines,
        "bytes": manifest.totals.bytes,
        "copied_bytes": report.copied_bytes,
        "manifest_sha256": report.manifest_sha256,
        "torn_tails": manifest.torn_tails.iter().map(|tail| json!({
            "file": tail.file, "bytes": tail.bytes,
        })).collect::<Vec<_>>(),
        "poisoned": poisoned(manifest.poisoned.iter().cloned()),
        "tokens": manifest.has_tokens,
        "skipped": manifest.skipped,
        "left_alone": left_alone(&report.left_alone),
        "duration_ms": report.took.as_millis() as u64,
    })
}

pub(super) fn poisoned(poisoned: impl Iterator<Item = Poisoned>) -> Vec<Value> {
    poisoned.map(|Poisoned { file, reason }| json!({"file": file, "reason": reason})).collect()
}

pub(super) fn left_alone(left: &[LeftAlone]) -> Vec<Value> {
    left.iter().map(|left| json!({"name": left.name, "reason": left.reason})).collect()
}

/// What stands beside and was not touched.
pub(super) fn left_alone_lines(left: &[LeftAlone]) -> String {
    left.iter().map(|left| format!("note: {:?} beside it was left alone: {}\n", left.name, left.reason)).collect()
}

fn lines(report: &SnapshotReport) -> String {
    let manifest = &report.manifest;
    let mut text = left_alone_lines(&report.left_alone);
    for skipped in &manifest.skipped {
        let word = if skipped.harmless { "note: not copied" } else { "skipped" };
        text += &format!("{word}: {}: {}: {}\n", skipped.name, skipped.kind, skipped.reason);
    }
    for tail in &manifest.torn_tails {
        let bytes = count(tail.bytes, "byte");
        text += &format!("note: {}: half a line at the end is left out, {bytes}\n", tail.file);
    }
    for Poisoned { file, reason } in &manifest.poisoned {
        text += &format!("note: {file}: poisoned ({reason}), and so will it be when restored\n");
    }
    let totals = manifest.totals;
    text += &format!(
        "snapshot {} in {:?}: {}, {}, {}; {} copied in {:.1} s\n",
        manifest.id,
        report.path,
        count(totals.files, "file"),
        count(totals.lines, "line"),
        count(totals.bytes, "byte"),
        count(report.copied_bytes, "byte"),
        report.took.as_secs_f64(),
    );
    text += &format!("manifest SHA-256: {}\n", report.manifest_sha256);
    text
}
