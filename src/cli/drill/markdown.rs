//! A report for people, to be filed: Markdown, with the table of the runbook first.

use super::clock::{human, readable};
use super::report::{Report, Snapshot, Source, push};
use crate::cli::host::bytes;

const LESSONS: &str = "
## Lessons learned

To be filled in by those who took part.

| question | answer |
|---|---|
| What went well? | |
| What was slow, unclear or missing? | |
| What do we change, who does it, until when? | |
| Is the runbook still right? | |
| Took part | |
| Seen by, on | |
";

impl Report {
    /// For people, to be filed.
    pub(super) fn markdown(&self) -> String {
        let mut text = String::new();
        let out = &mut text;
        let (began, ended) = (readable(self.began), readable(self.ended));
        push(out, format_args!("# Recovery drill of {}: {}\n\n", began, self.verdict()));
        push(out, format_args!("{}\n\n", self.scenario()));
        push(out, format_args!("| Start | End | RTO met? | RPO met? |\n|---|---|---|---|\n"));
        let (rto, rpo) = (boxes(self.rto.is_met()), boxes(self.rpo.is_met()));
        push(out, format_args!("| {} | {} | {rto} | {rpo} |\n\n", began, ended));
        push(out, format_args!("| | target | measured | met |\n|---|---|---|---|\n"));
        for (name, objective) in [("RTO (time to recover)", &self.rto), ("RPO (data lost, as time)", &self.rpo)] {
            let not_measured = if objective.applies { "not reached" } else { "not measured" };
            let measured = objective.measured.map_or(not_measured.to_owned(), human);
            let met = match objective.is_met() {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "–",
            };
            push(out, format_args!("| {name} | {} | {measured} | {met} |\n", human(objective.target)));
        }
        if let Some(survey) = &self.survey {
            let (lost, acknowledged) = (survey.sum(|d| d.lost), survey.sum(|d| d.acknowledged));
            push(out, format_args!("\nLost: **{lost} of {acknowledged}** acknowledged events"));
            push(out, format_args!("; {} of them from before the restored snapshot.\n", survey.lost_before_mark));
        }
        push(out, format_args!("\n{}\n", self.definitions()));
        self.push_failures(out);
        self.push_steps(out);
        self.push_losses(out);
        self.push_snapshots(out);
        self.push_checks(out);
        self.push_facts(out);
        out.push_str(LESSONS);
        text
    }

    fn scenario(&self) -> String {
        match &self.source {
            Source::Load { lasted, clients, domains, event_bytes, snapshot_every } => format!(
                "Scenario: total loss under load. {clients} clients posted events of {event_bytes} bytes to {domains} \
                 domains for {}, with a snapshot every {}. Then{} the service was killed (SIGKILL), its data \
                 directory was removed, and the newest complete snapshot was restored into an empty one.",
                human(*lasted),
                human(*snapshot_every),
                self.lost_after.map_or(String::new(), |after| format!(", at {},", readable(self.began + after)))
            ),
            Source::Snapshot { path } => {
                let taken = self.snapshot_created.map_or(String::new(), |at| format!(", taken {},", readable(at)));
                format!(
                    "Scenario: total loss. The snapshot {}{taken} was restored into an empty directory. There was no \
                     load, and nothing of the running service was touched.",
                    code(path)
                )
            }
        }
    }

    fn definitions(&self) -> String {
        let rto = "the drill sees at once that the service is gone. In earnest, add the time until somebody is \
                   alerted, has a machine, and has fetched the backup.";
        match &self.source {
            Source::Load { .. } => format!(
                "RTO runs from the kill to the first event that the restored service accepted; {rto}\n\n\
                 RPO is the age, at the kill, of the oldest acknowledged event that is lost; 0 when none is. It \
                 follows from the drill's own schedule of snapshots: with yours, expect at worst the time between two \
                 snapshots plus the time that one takes."
            ),
            Source::Snapshot { .. } => format!(
                "RTO runs from the begin of the restore to the first event that the restored service accepted; {rto}\n\n\
                 RPO is not measured without a load. A loss at the begin of this drill would have cost all events since \
                 the snapshot was taken{}.",
                self.snapshot_age().map_or(String::new(), |age| format!(", {} before", human(age)))
            ),
        }
    }

    fn push_failures(&self, out: &mut String) {
        if self.passed() {
            return;
        }
        out.push_str("\n## What failed\n\n");
        for (name, what) in self.failed() {
            push(out, format_args!("- {name}: {}\n", plain(what)));
        }
    }

    fn push_steps(&self, out: &mut String) {
        if self.steps.is_empty() {
            return;
        }
        out.push_str("\n## Recovery, step by step\n\n| step | what | took |\n|---|---|---:|\n");
        for step in &self.steps {
            let command =
                step.command.as_deref().map_or(String::new(), |command| format!(": {}", code(&plain(command))));
            push(out, format_args!("| {} | {}{command} | {} |\n", step.name, step.what, human(step.took)));
        }
        if let Some(rto) = self.rto.measured {
            push(
                out,
                format_args!("| **together** | from the loss to the first accepted event | **{}** |\n", human(rto)),
            );
        }
    }

    fn push_losses(&self, out: &mut String) {
        let Some(survey) = &self.survey else { return };
        out.push_str("\n## Events\n\n");
        out.push_str("Age: how long before the kill an event was acknowledged.\n\n");
        out.push_str("| domain | acknowledged | restored | lost | age of the first lost | age of the last lost |\n");
        out.push_str("|---|---:|---:|---:|---:|---:|\n");
        let mut row = |domain: &str, acknowledged, restored, lost, acks| {
            let (first, last) = match self.lost_before_kill(acks) {
                Some((first, last)) => (human(first), human(last)),
                None => ("–".to_owned(), "–".to_owned()),
            };
            push(out, format_args!("| {domain} | {acknowledged} | {restored} | {lost} | {first} | {last} |\n"));
        };
        for domain in &survey.domains {
            row(&domain.domain, domain.acknowledged, domain.restored, domain.lost, domain.lost_acks);
        }
        row(
            "**all**",
            survey.sum(|d| d.acknowledged),
            survey.sum(|d| d.restored),
            survey.sum(|d| d.lost),
            survey.lost_acks(),
        );
        out.push_str("\nAn event that was written but not yet acknowledged at the kill may be restored as well.\n");
        if !survey.examples.is_empty() {
            out.push_str("\nFaults, the first of them:\n\n");
            for example in &survey.examples {
                push(out, format_args!("- {example}\n"));
            }
        }
    }

    fn push_snapshots(&self, out: &mut String) {
        if self.snapshots.is_empty() {
            return;
        }
        let (taken, all) = (self.taken(), self.snapshots.len());
        push(
            out,
            format_args!(
                "\n## Snapshots\n\n{taken} of {all} complete. The newest three were kept, and their bases.\n\n"
            ),
        );
        out.push_str("| snapshot | base | began after | took | files | lines | size | copied | |\n");
        out.push_str("|---|---|---:|---:|---:|---:|---:|---:|---|\n");
        for snapshot in &self.snapshots {
            let (base, mark, took) =
                (snapshot.base.as_deref().unwrap_or("–"), human(snapshot.mark), human(snapshot.took));
            let size = match snapshot.counts {
                Some(c) => format!("{} | {} | {} | {}", c.files, c.lines, bytes(c.bytes), bytes(snapshot.copied_bytes)),
                None => "– | – | – | –".to_owned(),
            };
            let word = match snapshot {
                Snapshot { restored: true, .. } => "restored",
                Snapshot { cut_off: true, .. } => "cut off by the kill",
                Snapshot { counts: None, .. } => "**failed**",
                _ => "",
            };
            push(out, format_args!("| {} | {base} | {mark} | {took} | {size} | {word} |\n", snapshot.name));
        }
    }

    fn push_checks(&self, out: &mut String) {
        out.push_str("\n## Checks\n\n| check | | seen |\n|---|---|---|\n");
        for check in &self.checks {
            let (word, what) = match &check.result {
                Ok(what) => ("ok", what),
                Err(what) => ("**failed**", what),
            };
            push(out, format_args!("| {} | {word} | {} |\n", check.name, plain(what)));
        }
    }

    fn push_facts(&self, out: &mut String) {
        out.push_str("\n## Where and with what\n\n| | |\n|---|---|\n");
        push(out, format_args!("| leitstand | {} |\n| drill | {} |\n", env!("CARGO_PKG_VERSION"), self.run));
        for (name, value) in &self.host {
            push(out, format_args!("| {name} | {} |\n", plain(value)));
        }
        if let Some(restored) = self.restored {
            push(out, format_args!("| restored | {} |\n", restored));
        }
    }
}

fn boxes(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "[x] yes / [ ] no",
        Some(false) => "[ ] yes / [x] no",
        None => "[ ] yes / [ ] no",
    }
}

/// Words of others, for a cell of a table.
fn plain(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn code(text: &str) -> String {
    format!("`{}`", text.replace('`', "'"))
}
