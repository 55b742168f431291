//! `leitstand verify`: is every line of every file what it should be?

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::data::{COULD_NOT_LOOK, DataArgs, SOMETHING_FOUND, count, print, refused, sha256};
use super::progress::ProgressLine;
use crate::storage::TORN_DIR;
use crate::storage::snapshot::{SnapshotError, check, continues};
use crate::storage::verify::{Finding, NotChecked, VerifyOptions, VerifyReport, verify};

/// What to look at.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// Look at this snapshot instead: its manifest, every hash, every line
    #[arg(long, value_name = "DIR", conflicts_with_all = ["data_dir", "domain", "manifest"])]
    snapshot: Option<PathBuf>,
    /// SHA-256 that the manifest of the snapshot must have, as it was kept elsewhere
    #[arg(long, value_name = "SHA256", requires = "snapshot", value_parser = sha256)]
    expect: Option<String>,
    /// Does the data directory go on where this snapshot ends? Takes its manifest.json; looks at no line
    #[arg(long, value_name = "FILE", conflicts_with = "domain")]
    manifest: Option<PathBuf>,
}

pub(super) fn run(args: &VerifyArgs) -> Result<ExitCode, String> {
    match (&args.snapshot, &args.manifest) {
        (Some(path), _) => {
            let mut line = ProgressLine::new("verify", !args.data.json);
            let report = check(path, args.expect.as_deref(), &mut |progress| line.tell(progress));
            drop(line);
            Ok(told_or_refused(report, "snapshot", &path.to_string_lossy(), args.data.json))
        }
        (None, Some(manifest)) => {
            let disk = args.data.open()?;
            let mut line = ProgressLine::new("verify", !args.data.json);
            let report = continues(&disk, manifest, &mut |progress| line.tell(progress));
            drop(line);
            Ok(told_or_refused(report, "data_dir", &disk.root().to_string_lossy(), args.data.json))
        }
        (None, None) => lines_of_data(&args.data),
    }
}

fn told_or_refused(report: Result<VerifyReport, SnapshotError>, what: &str, path: &str, json: bool) -> ExitCode {
    match report {
        Ok(report) => tell(&report, what, path, json),
        Err(e) => refused(&e, json),
    }
}

fn lines_of_data(args: &DataArgs) -> Result<ExitCode, String> {
    let disk = args.open()?;
    let options = VerifyOptions { only: args.domain.clone(), lock_timeout: args.lock_timeout() };
    let mut line = ProgressLine::new("verify", !args.json);
    let report = verify(&disk, &options, &mut |progress| line.tell(progress));
    drop(line);
    let report = report.map_err(|e| format!("cannot look at {:?}: {e}", disk.root()))?;
    Ok(tell(&report, "data_dir", &disk.root().to_string_lossy(), args.json))
}

fn tell(report: &VerifyReport, what: &str, path: &str, json: bool) -> ExitCode {
    if json {
        print(&format!("{:#}\n", document(report, what, path)));
    } else {
        print(&lines(report));
    }
    match report {
        _ if report.is_clean() => ExitCode::SUCCESS,
        report if report.findings_total > 0 => ExitCode::from(SOMETHING_FOUND),
        _ => ExitCode::from(COULD_NOT_LOOK),
    }
}

fn document(report: &VerifyReport, what: &str, path: &str) -> Value {
    json!({
        what: path,
        "clean": report.is_clean(),
        "files": report.files,
        "lines": report.lines,
        "bytes": report.bytes,
        "torn": {"files": report.torn_files, "bytes": report.torn_bytes},
        "findings_total": report.findings_total,
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "notes_total": report.notes_total,
        "notes": report.notes.iter().map(finding).collect::<Vec<_>>(),
        "not_checked": not_checked(&report.not_checked),
    })
}

fn finding(finding: &Finding) -> Value {
    json!({
        "file": finding.file,
        "line": finding.line,
        "offset": finding.offset,
        "bytes": finding.bytes,
        "kind": finding.kind.word(),
        "what": finding.kind.what(),
        "advice": finding.kind.advice(),
    })
}

pub(super) fn not_checked(files: &[NotChecked]) -> Vec<Value> {
    files.iter().map(|file| json!({"file": file.file, "reason": file.reason})).collect()
}

fn lines(report: &VerifyReport) -> String {
    let mut text = String::new();
    let lists = [("finding", &report.findings, report.findings_total), ("note", &report.notes, report.notes_total)];
    for (word, list, total) in lists {
        for finding in list {
            push_finding(&mut text, word, finding);
        }
        let untold = total - list.len() as u64;
        if untold > 0 {
            push(&mut text, format_args!("{word}: {untold} more are counted only\n"));
        }
    }
    for file in &report.not_checked {
        push(&mut text, format_args!("not checked: {}: {}\n", file.file, file.reason));
    }
    if report.torn_files > 0 {
        let (files, bytes) = (count(report.torn_files, "torn tail"), count(report.torn_bytes, "byte"));
        push(&mut text, format_args!("kept: {files} in {TORN_DIR}/, {bytes}; see RUNBOOK, \"Torn tails\"\n"));
    }
    push(
        &mut text,
        format_args!(
            "{}, {}, {}: {}, {}, {} not checked\n",
            count(report.files, "file"),
            count(report.lines, "line"),
            count(report.bytes, "byte"),
            count(report.findings_total, "finding"),
            count(report.notes_total, "note"),
            report.not_checked.len(),
        ),
    );
    text
}

fn push_finding(text: &mut String, word: &str, finding: &Finding) {
    push(text, format_args!("{word}: {}", finding.file));
    if let Some(line) = finding.line {
        push(text, format_args!(", line {line}"));
    }
    if let Some(offset) = finding.offset {
        push(text, format_args!(", offset {offset}"));
    }
    if let Some(bytes) = finding.bytes {
        push(text, format_args!(", {}", count(bytes, "byte")));
    }
    let kind = finding.kind;
    push(text, format_args!(": {}: {}; {}\n", kind.word(), kind.what(), kind.advice()));
}

fn push(text: &mut String, args: std::fmt::Arguments<'_>) {
    text.write_fmt(args).expect("a String takes everything");
}
