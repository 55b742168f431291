//! `leitstand restore`: a snapshot becomes a data directory.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use serde_json::{Value, json};

use super::data::{count, print, refused, sha256};
use super::progress::ProgressLine;
use super::snapshot::{left_alone, left_alone_lines, poisoned};
use crate::storage::snapshot::{Chosen, Poisoned, RestoreOptions, RestoreReport, newest_until, restore};
use crate::timestamp::parse_rfc3339;

/// What to restore, and where to.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Snapshot to restore; with --until the directory that holds several
    #[arg(long, value_name = "SNAPSHOT")]
    pub(super) from: PathBuf,
    /// The newest snapshot that was begun at this time or before, e.g. 2026-01-01T12:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "expect", value_parser = time)]
    pub(super) until: Option<SystemTime>,
    /// SHA-256 that the manifest must have, as it was kept elsewhere
    #[arg(long, value_name = "SHA256", value_parser = sha256)]
    pub(super) expect: Option<String>,
    /// Data directory to be; it must not be there yet, or be empty
    #[arg(long, value_name = "DIR")]
    pub(super) to: PathBuf,
    /// One JSON document instead of lines
    #[arg(long)]
    pub(super) json: bool,
}

fn time(text: &str) -> Result<SystemTime, String> {
    parse_rfc3339(text).ok_or_else(|| "must be a time as 2026-01-01T12:00:00Z".to_owned())
}

pub(super) fn run(args: &RestoreArgs) -> Result<ExitCode, String> {
    let chosen = match args.until.map(|until| newest_until(&args.from, until)).transpose() {
        Ok(chosen) => chosen,
        Err(e) => return Ok(refused(&e, args.json)),
    };
    let from = chosen.as_ref().map_or(&args.from, |chosen| &chosen.path).clone();
    let options = RestoreOptions { from, to: args.to.clone(), expected: args.expect.clone() };
    let mut line = ProgressLine::new("restore", !args.json);
    let report = restore(&options, &mut |progress| line.tell(progress));
    drop(line);
    let report = match report {
        Ok(report) => report,
        Err(e) => return Ok(refused(&e, args.json)),
    };
    if args.json {
        print(&format!("{:#}\n", document(&report, &options, chosen.as_ref())));
    } else {
        print(&lines(&report, chosen.as_ref()));
    }
    Ok(ExitCode::SUCCESS)
}

fn document(report: &RestoreReport, options: &RestoreOptions, chosen: Option<&Chosen>) -> Value {
    let damaged = chosen.map_or(&[][..], |chosen| &chosen.damaged).iter().map(|path| path.to_string_lossy());
    let manifest = &report.manifest;
    json!({
        "path": report.path.to_string_lossy(),
        "from": options.from.to_string_lossy(),
        "damaged": damaged.collect::<Vec<_>>(),
        "id": manifest.id,
        "created": manifest.created,
        "files": manifest.totals.files,
        "lines": manifest.totals.lines,
        "bytes": manifest.totals.bytes,
        "poisoned": poisoned(manifest.poisoned()),
        "tokens": manifest.tokens.is_some(),
        "left_alone": left_alone(&report.left_alone),
        "duration_ms": report.took.as_millis() as u64,
    })
}

fn lines(report: &RestoreReport, chosen: Option<&Chosen>) -> String {
    let manifest = &report.manifest;
    let mut text = left_alone_lines(&report.left_alone);
    if let Some(chosen) = chosen {
        for path in &chosen.damaged {
            text += &format!("note: {path:?} is damaged and may be newer; see `leitstand verify --snapshot`\n");
        }
        text += &format!("note: chosen is {:?}\n", chosen.path);
    }
    for Poisoned { file, reason } in manifest.poisoned() {
        text += &format!(
            "note: {file}: was poisoned ({reason}); `leitstand repair` says what to do, see RUNBOOK, \"Poisoned domain\"\n"
        );
    }
    if manifest.tokens.is_some() {
        text += "note: the named tokens are those of the snapshot, so what was revoked or rotated since is good again; \
                 look with `leitstand token list`, see RUNBOOK, \"Restore\"\n";
    }
    let totals = manifest.totals;
    text += &format!(
        "restored {} of {} to {:?}: {}, {}, {} in {:.1} s\n",
        manifest.id,
        manifest.created,
        report.path,
        count(totals.files, "file"),
        count(totals.lines, "line"),
        count(totals.bytes, "byte"),
        report.took.as_secs_f64(),
    );
    text
}
