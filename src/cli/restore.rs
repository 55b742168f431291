//! `leitstand restore`: a snapshot becomes a data directory.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::data::{count, print, refused};
use super::progress::ProgressLine;
use super::snapshot::poisoned;
use crate::storage::snapshot::{RestoreOptions, RestoreReport, restore};

/// What to restore, and where to.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Snapshot to restore
    #[arg(long, value_name = "SNAPSHOT")]
    pub(super) from: PathBuf,
    /// Data directory to be; it must not be there yet, or be empty
    #[arg(long, value_name = "DIR")]
    pub(super) to: PathBuf,
    /// One JSON document instead of lines
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: &RestoreArgs) -> Result<ExitCode, String> {
    let options = RestoreOptions { from: args.from.clone(), to: args.to.clone() };
    let mut line = ProgressLine::new("restore", !args.json);
    let report = restore(&options, &mut |progress| line.tell(progress));
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
    Ok(ExitCode::SUCCESS)
}

fn document(report: &RestoreReport) -> Value {
    let manifest = &report.manifest;
    json!({
        "path": report.path.to_string_lossy(),
        "id": manifest.id,
        "created": manifest.created,
        "files": manifest.totals.files,
        "lines": manifest.totals.lines,
        "bytes": manifest.totals.bytes,
        "poisoned": poisoned(manifest),
        "tokens": manifest.tokens.is_some(),
        "duration_ms": report.took.as_millis() as u64,
    })
}

fn lines(report: &RestoreReport) -> String {
    let manifest = &report.manifest;
    let mut text = String::new();
    for file in &manifest.files {
        if let Some(reason) = &file.poisoned {
            text += &format!(
                "note: {}: was poisoned ({reason}); `leitstand repair` says what to do, see RUNBOOK, \"Poisoned domain\"\n",
                file.name
            );
        }
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
