//! `leitstand repair`: ends or cuts unfinished last lines, and writes poisoned files anew.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::data::{COULD_NOT_LOOK, DataArgs, SOMETHING_FOUND, count, print};
use super::verify::not_checked;
use crate::storage::TORN_DIR;
use crate::storage::repair::{Act, Outcome, RepairOptions, RepairReport, Step, repair};

/// What to repair, and whether.
#[derive(Debug, Args)]
pub struct RepairArgs {
    #[command(flatten)]
    pub(super) data: DataArgs,
    /// Do it; without this nothing is changed
    #[arg(long)]
    apply: bool,
    /// Write the file anew, as it is, even if nothing says that a sync failed
    #[arg(long, requires = "domain")]
    rewrite: bool,
}

pub(super) fn run(args: &RepairArgs) -> Result<ExitCode, String> {
    let disk = args.data.open()?;
    let options = RepairOptions {
        only: args.data.domain.clone(),
        rewrite: args.rewrite,
        apply: args.apply,
        lock_timeout: args.data.lock_timeout(),
    };
    let report = repair(&disk, &options).map_err(|e| format!("cannot look at {:?}: {e}", disk.root()))?;
    if args.data.json {
        print(&format!("{:#}\n", document(&report, &disk.root().to_string_lossy(), args.apply)));
    } else {
        print(&lines(&report, args.apply));
    }
    Ok(match &report {
        _ if report.is_done() => ExitCode::SUCCESS,
        // Whoever asked for a repair did not get it; whoever only looked could not.
        report if report.steps.is_empty() && !args.apply => ExitCode::from(COULD_NOT_LOOK),
        _ => ExitCode::from(SOMETHING_FOUND),
    })
}

fn document(report: &RepairReport, data_dir: &str, apply: bool) -> Value {
    let step = |step: &Step| {
        let (outcome, error) = outcome(step);
        json!({
            "file": step.file,
            "act": step.act.word(),
            "offset": step.offset,
            "bytes": step.bytes,
            "outcome": outcome,
            "error": error,
        })
    };
    json!({
        "data_dir": data_dir,
        "apply": apply,
        "done": report.is_done(),
        "files": report.files,
        "steps": report.steps.iter().map(step).collect::<Vec<_>>(),
        "not_checked": not_checked(&report.not_checked),
    })
}

fn outcome(step: &Step) -> (&'static str, Option<&str>) {
    match &step.outcome {
        Outcome::Planned => ("planned", None),
        Outcome::Done => ("done", None),
        Outcome::Failed(error) => ("failed", Some(error)),
    }
}

fn lines(report: &RepairReport, apply: bool) -> String {
    let mut text = String::new();
    for step in &report.steps {
        let bytes = count(step.bytes, "byte");
        let what = match step.act {
            Act::EndLine => format!("end the last line, offset {}, {bytes}", step.offset),
            Act::MoveTornTail => format!("move the torn tail to {TORN_DIR}/, offset {}, {bytes}", step.offset),
            Act::Rewrite => format!("write the file anew, {bytes}"),
            Act::RemoveMarker => "remove the mark of a poison that is over".to_owned(),
        };
        let line = match outcome(step) {
            (word, Some(error)) => format!("{word}: {}: {what}: {error}\n", step.file),
            (word, None) => format!("{word}: {}: {what}\n", step.file),
        };
        text.push_str(&line);
    }
    for file in &report.not_checked {
        writeln!(text, "not repaired: {}: {}", file.file, file.reason).expect("a String takes everything");
    }
    let files = count(report.files, "file");
    let rest = match report.steps.len() as u64 {
        0 if report.not_checked.is_empty() => "nothing to repair".to_owned(),
        0 => "see above".to_owned(),
        n if apply => count(n, "step"),
        n => format!("{}, nothing was changed; --apply does it", count(n, "step")),
    };
    writeln!(text, "{files}: {rest}").expect("a String takes everything");
    text
}
