//! What a drill found, as a document for the files of the operator and as one for programs.

use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::clock::human;
use super::survey::Survey;
use crate::cli::data::count;
use crate::cli::host::bytes;
use crate::timestamp::rfc3339_ms;

/// Everything that a report tells.
pub(super) struct Report {
    pub(super) run: String,
    /// What was restored: a snapshot of the drill's own load, or one of the operator.
    pub(super) source: Source,
    pub(super) began: SystemTime,
    pub(super) ended: SystemTime,
    /// When the service was killed, or the loss was assumed, from the begin.
    pub(super) lost_after: Option<Duration>,
    pub(super) rto: Objective,
    pub(super) rpo: Objective,
    pub(super) host: Vec<(&'static str, String)>,
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) steps: Vec<Step>,
    pub(super) checks: Vec<Check>,
    pub(super) survey: Option<Survey>,
    /// Of the restored directory, as `leitstand verify` counts.
    pub(super) restored: Option<Counts>,
    /// When the restored snapshot was taken, as it says itself.
    pub(super) snapshot_created: Option<SystemTime>,
}

pub(super) enum Source {
    Load { lasted: Duration, clients: usize, domains: usize, event_bytes: usize, snapshot_every: Duration },
    Snapshot { path: String },
}

/// A target and what was reached.
pub(super) struct Objective {
    pub(super) target: Duration,
    /// `None`: the drill did not come so far.
    pub(super) measured: Option<Duration>,
    /// Some kinds of drill cannot measure it.
    pub(super) applies: bool,
}

impl Objective {
    pub(super) fn is_met(&self) -> Option<bool> {
        self.applies.then(|| self.measured.is_some_and(|measured| measured <= self.target))
    }

    fn check(&self, name: &str) -> Option<Check> {
        let result = if self.is_met()? { Ok(self.words()) } else { Err(self.words()) };
        Some(Check { name: format!("{name} is within its target"), result })
    }

    /// "412 ms (target 4 h)"
    fn words(&self) -> String {
        let measured = self.measured.map_or("not reached".to_owned(), human);
        format!("{measured} (target {})", human(self.target))
    }
}

/// A snapshot that was taken during the load.
pub(super) struct Snapshot {
    pub(super) name: String,
    pub(super) base: Option<String>,
    /// Right before it began, from the begin of the drill: what was acknowledged before must be in it.
    pub(super) mark: Duration,
    pub(super) took: Duration,
    pub(super) counts: Option<Counts>,
    /// The rest is linked from its base.
    pub(super) copied_bytes: u64,
    pub(super) restored: bool,
    /// Under way at the kill.
    pub(super) cut_off: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) files: u64,
    pub(super) lines: u64,
    pub(super) bytes: u64,
}

impl Counts {
    /// From a document of `snapshot`, `restore` or `verify`.
    pub(super) fn of(document: &Value) -> Option<Counts> {
        let number = |name: &str| document[name].as_u64();
        Some(Counts { files: number("files")?, lines: number("lines")?, bytes: number("bytes")? })
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {}", count(self.files, "file"), count(self.lines, "line"), bytes(self.bytes))
    }
}

/// One part of the recovery.
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    /// What an operator would type.
    pub(super) command: Option<String>,
    pub(super) took: Duration,
}

/// Something that must hold, and what was seen.
pub(super) struct Check {
    pub(super) name: String,
    pub(super) result: Result<String, String>,
}

impl Report {
    pub(super) fn new(
        run: String,
        source: Source,
        rto: Duration,
        rpo: Duration,
        host: Vec<(&'static str, String)>,
    ) -> Report {
        let now = SystemTime::now();
        let under_load = matches!(source, Source::Load { .. });
        Report {
            run,
            source,
            began: now,
            ended: now,
            lost_after: None,
            rto: Objective { target: rto, measured: None, applies: true },
            rpo: Objective { target: rpo, measured: None, applies: under_load },
            host,
            snapshots: Vec::new(),
            steps: Vec::new(),
            checks: Vec::new(),
            survey: None,
            restored: None,
            snapshot_created: None,
        }
    }

    /// Are the targets met? To be asked last.
    pub(super) fn check_objectives(&mut self) {
        let checks = [self.rto.check("RTO"), self.rpo.check("RPO")];
        self.checks.extend(checks.into_iter().flatten());
    }

    pub(super) fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.result.is_ok())
    }

    pub(super) fn failed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.checks.iter().filter_map(|check| Some((check.name.as_str(), check.result.as_ref().err()?.as_str())))
    }

    pub(super) fn verdict(&self) -> &'static str {
        if self.passed() { "passed" } else { "failed" }
    }

    /// How long before the loss the first and the last of the lost events were acknowledged.
    pub(super) fn lost_before_kill(&self, acks: Option<(Duration, Duration)>) -> Option<(Duration, Duration)> {
        let lost_after = self.lost_after?;
        acks.map(|(first, last)| (lost_after.saturating_sub(first), lost_after.saturating_sub(last)))
    }

    /// How old the restored snapshot was when the loss was assumed.
    pub(super) fn snapshot_age(&self) -> Option<Duration> {
        (self.began + self.lost_after?).duration_since(self.snapshot_created?).ok()
    }

    /// The verdict in a few lines.
    pub(super) fn summary(&self) -> String {
        let mut text = format!("recovery drill {}: RTO {}", self.verdict(), self.rto.words());
        if self.rpo.applies {
            push(&mut text, format_args!(", RPO {}", self.rpo.words()));
        }
        text.push('\n');
        if let Some(survey) = &self.survey {
            let (lost, acknowledged) = (survey.sum(|d| d.lost), survey.sum(|d| d.acknowledged));
            push(&mut text, format_args!("lost: {lost} of {acknowledged} acknowledged events"));
            if let Some((first, _)) = self.lost_before_kill(survey.lost_acks()) {
                push(&mut text, format_args!(", the oldest {} before the kill", human(first)));
            }
            push(&mut text, format_args!("; {} from before the restored snapshot\n", survey.lost_before_mark));
        }
        if let Some(restored) = self.restored {
            push(&mut text, format_args!("restored: {}", restored));
            match &self.source {
                Source::Load { .. } => push(&mut text, format_args!(" from the last of {} snapshots\n", self.taken())),
                Source::Snapshot { path } => push(&mut text, format_args!(" from {path}\n")),
            }
        }
        for (name, what) in self.failed() {
            push(&mut text, format_args!("FAILED: {}: {what}\n", name.replace('`', "")));
        }
        text
    }

    /// Complete snapshots.
    pub(super) fn taken(&self) -> usize {
        self.snapshots.iter().filter(|snapshot| snapshot.counts.is_some()).count()
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let source = match &self.source {
            Source::Load { lasted, clients, domains, event_bytes, snapshot_every } => json!({
                "kind": "load",
                "lasted_ms": ms(*lasted),
                "clients": clients,
                "domains": domains,
                "event_bytes": event_bytes,
                "snapshot_every_ms": ms(*snapshot_every),
            }),
            Source::Snapshot { path } => json!({
                "kind": "snapshot",
                "path": path,
                "created": self.snapshot_created.map(rfc3339_ms),
                "age_ms": self.snapshot_age().map(ms),
            }),
        };
        let snapshots = self.snapshots.iter().map(|snapshot| {
            json!({
                "name": snapshot.name,
                "base": snapshot.base,
                "mark_ms": ms(snapshot.mark),
                "duration_ms": ms(snapshot.took),
                "complete": snapshot.counts.is_some(),
                "restored": snapshot.restored,
                "cut_off": snapshot.cut_off,
                "files": snapshot.counts.map(|c| c.files),
                "lines": snapshot.counts.map(|c| c.lines),
                "bytes": snapshot.counts.map(|c| c.bytes),
                "copied_bytes": snapshot.copied_bytes,
            })
        });
        let steps = self.steps.iter().map(
            |step| json!({"name": step.name, "what": step.what, "command": step.command, "duration_ms": ms(step.took)}),
        );
        let checks = self.checks.iter().map(|check| {
            let (Ok(what) | Err(what)) = &check.result;
            json!({"name": check.name, "ok": check.result.is_ok(), "what": what})
        });
        json!({
            "drill": self.run,
            "verdict": self.verdict(),
            "version": env!("CARGO_PKG_VERSION"),
            "source": source,
            "began_at": rfc3339_ms(self.began),
            "lost_at": self.lost_after.map(|after| rfc3339_ms(self.began + after)),
            "lost_after_ms": self.lost_after.map(ms),
            "ended_at": rfc3339_ms(self.ended),
            "rto": objective_json(&self.rto),
            "rpo": objective_json(&self.rpo),
            "events": self.survey.as_ref().map(|survey| self.events_json(survey)),
            "restored": self.restored.map(|c| json!({"files": c.files, "lines": c.lines, "bytes": c.bytes})),
            "snapshots": snapshots.collect::<Vec<_>>(),
            "steps": steps.collect::<Vec<_>>(),
            "checks": checks.collect::<Vec<_>>(),
            "host": self.host.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into())).collect::<serde_json::Map<_, _>>(),
        })
    }

    fn events_json(&self, survey: &Survey) -> Value {
        let span =
            |acks| self.lost_before_kill(acks).map(|(first, last)| json!({"first_ms": ms(first), "last_ms": ms(last)}));
        let domains = survey.domains.iter().map(|domain| {
            json!({
                "domain": domain.domain,
                "acknowledged": domain.acknowledged,
                "restored": domain.restored,
                "lost": domain.lost,
                "lost_before_kill": span(domain.lost_acks),
            })
        });
        json!({
            "acknowledged": survey.sum(|d| d.acknowledged),
            "restored": survey.sum(|d| d.restored),
            "lost": survey.sum(|d| d.lost),
            "lost_before_kill": span(survey.lost_acks()),
            "lost_before_snapshot": survey.lost_before_mark,
            "doubled": survey.doubled,
            "out_of_order": survey.out_of_order,
            "holes": survey.holes,
            "damaged": survey.damaged,
            "examples": survey.examples,
            "domains": domains.collect::<Vec<_>>(),
        })
    }
}

/// Milliseconds with three digits behind the point.
fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

fn objective_json(objective: &Objective) -> Value {
    json!({"target_ms": ms(objective.target), "measured_ms": objective.measured.map(ms), "met": objective.is_met()})
}

pub(super) fn push(text: &mut String, args: std::fmt::Arguments<'_>) {
    text.write_fmt(args).expect("a String takes everything");
}
