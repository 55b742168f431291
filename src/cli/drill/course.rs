//! The course of a drill: load, kill, recovery, and what came back.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::clock::human;
use super::interrupt::Interrupt;
use super::load::{Acks, Load, Plan};
use super::progress::Progress;
use super::report::{Check, Counts, Report, Snapshot, Source, Step};
use super::service::{self, Binary, Ended, Running, Service};
use super::workdir::{DATA, SNAPSHOTS};
use super::{DrillArgs, Halt, smoke, survey};
use crate::cli::progress::bar;
use crate::timestamp::parse_rfc3339;

/// How often the course of the load is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long the killed service may still be found alive.
const DETECT_MAX: Duration = Duration::from_secs(10);
/// How much longer the load may last on a busy machine, until there is something to restore.
const FIRST_SNAPSHOT_MAX: Duration = Duration::from_secs(60);
/// How many complete snapshots stay, and what they are based on.
const SNAPSHOTS_KEPT: usize = 3;
/// Domain of the smoke test when the load has none.
const SMOKE_DOMAIN: &str = "recovery-drill";

/// A drill under way.
pub(super) struct Drill {
    report: Report,
    binary: Binary,
    interrupt: Interrupt,
    progress: Progress,
    /// All times of the report are counted from here.
    origin: Instant,
}

/// What a killed service leaves to hold its restored files against.
struct Loss {
    killed: Instant,
    acks: Acks,
    /// Index in the report, of the newest complete snapshot.
    newest: Option<usize>,
}

impl Drill {
    pub(super) fn new(report: Report, binary: Binary, interrupt: Interrupt, progress: Progress) -> Drill {
        Drill { report, binary, interrupt, progress, origin: Instant::now() }
    }

    pub(super) fn into_report(self) -> Report {
        self.report
    }

    /// Total loss under load, and the recovery from a snapshot of the drill's own.
    pub(super) fn under_load(&mut self, args: &DrillArgs) -> Result<(), Halt> {
        let plan = Plan {
            run: self.report.run.clone(),
            clients: usize::from(args.clients),
            domains: (1..=args.domains).map(|n| format!("drill-{n}")).collect(),
            event_bytes: args.event_bytes as usize,
        };
        let loss = self.load_and_kill(args, &plan)?;
        self.step("wipe", "the data directory is removed", None, |_| remove_all(Path::new(DATA)))?;
        let Some(newest) = loss.newest else {
            return self.fail("a snapshot is complete before the kill", "none was".to_owned());
        };
        let snapshot = &mut self.report.snapshots[newest];
        snapshot.restored = true;
        let (path, mark) = (snapshot.path(), snapshot.mark);
        let service = self.recover(&path, loss.killed, &plan.domains[0])?;
        self.smoke(service, &plan.domains[0]);
        self.hold_against(&plan, &loss.acks, mark)
    }

    /// The recovery from a snapshot of the operator.
    pub(super) fn restore_only(&mut self, snapshot: &Path) -> Result<(), Halt> {
        let path = snapshot.to_str().ok_or_else(|| Halt::Broken(format!("{snapshot:?} is not UTF-8")))?;
        let lost = Instant::now();
        self.report.lost_after = Some(self.origin.elapsed());
        let service = self.recover(path, lost, SMOKE_DOMAIN)?;
        self.smoke(service, SMOKE_DOMAIN);
        Ok(())
    }

    /// Loads a new service, takes snapshots beside it, and kills it when the time is over.
    fn load_and_kill(&mut self, args: &DrillArgs, plan: &Plan) -> Result<Loss, Halt> {
        self.binary.add_named_token(Path::new(DATA))?;
        let mut service = self.binary.serve(Path::new(DATA), &self.interrupt)?;
        let load = Load::start(plan.clone(), self.binary.token().to_owned(), self.origin)
            .map_err(|e| Halt::Broken(format!("cannot start the clients: {e}")))?;
        let (began, until) = (Instant::now(), Duration::from_secs(u64::from(args.seconds)));
        self.progress.say(&format!("load: {} clients for {}", plan.clients, human(until)));
        let mut snapshots =
            Snapshots { every: args.snapshot_every, next: args.snapshot_every, running: None, newest: None };
        loop {
            let waits_for_first = snapshots.newest.is_none() && self.report.passed();
            let until = if waits_for_first { until + FIRST_SNAPSHOT_MAX } else { until };
            if began.elapsed() >= until {
                break;
            }
            if self.interrupt.came() {
                return Err(Halt::Interrupted);
            }
            if let Some(fault) = service.is_gone().or_else(|| load.fault()) {
                return Err(Halt::Broken(fault));
            }
            self.look_at(&mut snapshots, began.elapsed())?;
            let acknowledged = load.acknowledged();
            self.progress.tick(|| {
                let percent = (100 * began.elapsed().as_millis() / until.as_millis().max(1)).min(100) as u64;
                format!(
                    "{} {percent:3} % of {} of load, {acknowledged} events acknowledged",
                    bar(percent),
                    human(until)
                )
            });
            std::thread::sleep(LOOK_EVERY);
        }
        let lasted = began.elapsed();
        if let Source::Load { lasted: told, .. } = &mut self.report.source {
            *told = lasted;
        }
        if load.acknowledged() == 0 {
            return Err(Halt::Broken("no event was acknowledged; is the disk full?".to_owned()));
        }
        load.expect_kill();
        let killed = Instant::now();
        self.report.lost_after = Some(killed - self.origin);
        let acks = self.step("detect", "the killed service no longer answers", None, |_| {
            service.kill();
            let acks = load.join();
            nobody_answers().map(|()| acks)
        })?;
        if let Some((running, mut snapshot)) = snapshots.running {
            // Cut off with everything else.
            (snapshot.took, snapshot.cut_off) = (running.so_far(), true);
            self.report.snapshots.push(snapshot);
        }
        Ok(Loss { killed, acks, newest: snapshots.newest })
    }

    /// Takes the end of a snapshot, or begins the next one.
    fn look_at(&mut self, snapshots: &mut Snapshots, now: Duration) -> Result<(), Halt> {
        if let Some((running, _)) = &mut snapshots.running {
            let Some(ended) = running.ended()? else { return Ok(()) };
            let (_, snapshot) = snapshots.running.take().expect("it was there");
            let snapshot = self.taken(snapshot, &ended);
            let complete = snapshot.counts.is_some();
            self.report.snapshots.push(snapshot);
            if complete {
                snapshots.newest = Some(self.report.snapshots.len() - 1);
                self.rotate()?;
            }
        }
        if now < snapshots.next {
            return Ok(());
        }
        snapshots.next = now + snapshots.every;
        let number = self.report.snapshots.len();
        let base = snapshots.newest.filter(|newest| number % 2 == 1 && newest + 1 == number);
        let name = format!("{:04}-{}", number + 1, if base.is_some() { "incremental" } else { "full" });
        let snapshot = Snapshot {
            name,
            base: base.map(|base| self.report.snapshots[base].name.clone()),
            mark: self.origin.elapsed(),
            took: Duration::ZERO,
            counts: None,
            copied_bytes: 0,
            restored: false,
            cut_off: false,
        };
        let (to, base) = (snapshot.path(), base.map(|base| self.report.snapshots[base].path()));
        let mut command = vec!["snapshot", "--to", &to, "--data-dir", DATA, "--json"];
        command.extend(base.iter().flat_map(|base| ["--base", base]));
        snapshots.running = Some((self.binary.start(&command)?, snapshot));
        Ok(())
    }

    /// Removes old snapshots, so that a long load does not fill the disk.
    fn rotate(&self) -> Result<(), Halt> {
        let complete: Vec<&Snapshot> = self.report.snapshots.iter().filter(|s| s.counts.is_some()).collect();
        let (old, kept) = complete.split_at(complete.len().saturating_sub(SNAPSHOTS_KEPT));
        let is_base = |old: &Snapshot| kept.iter().any(|kept| kept.base.as_ref() == Some(&old.name));
        for old in old.iter().filter(|old| !is_base(old)) {
            match fs::remove_dir_all(old.path()) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Halt::Broken(format!("cannot remove the snapshot {}: {e}", old.name)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A snapshot that has ended, well or not.
    fn taken(&mut self, mut snapshot: Snapshot, ended: &Ended) -> Snapshot {
        snapshot.took = ended.took;
        snapshot.counts = if ended.is_fine() { Counts::of(&ended.json()) } else { None };
        snapshot.copied_bytes = ended.json()["copied_bytes"].as_u64().unwrap_or(0);
        match snapshot.counts {
            Some(counts) => {
                let (name, took) = (&snapshot.name, human(ended.took));
                self.progress.say(&format!("snapshot {name}: {} lines in {took}", counts.lines));
            }
            None => self.check(&format!("`leitstand snapshot` makes {}", snapshot.name), Err(ended.words())),
        }
        snapshot
    }

    /// From a snapshot to a service that accepts events.
    fn recover(&mut self, snapshot: &str, lost: Instant, domain: &str) -> Result<Service, Halt> {
        let sound = self.command("verify", "the snapshot is sound", &["verify", "--snapshot", snapshot, "--json"])?;
        self.check("the snapshot is sound", Ok(sound.found()));
        let restore = ["restore", "--from", snapshot, "--to", DATA, "--json"];
        let restored = self.command("restore", "the snapshot is restored", &restore)?;
        self.report.snapshot_created = restored.json()["created"].as_str().and_then(parse_rfc3339);
        let verify = ["verify", "--data-dir", DATA, "--json"];
        let verified = self.command("verify", "every restored line is sound", &verify)?;
        self.check("every restored line is sound", Ok(verified.found()));
        let (had, has) = (Counts::of(&sound.json()), Counts::of(&verified.json()));
        let same = if had.is_some() && had == has { Ok } else { Err };
        let told = |counts: Option<Counts>| counts.map_or("nothing".to_owned(), |counts| counts.to_string());
        let words = format!("in the snapshot {}; restored {}", told(had), told(has));
        self.check("as much is restored as the snapshot holds", same(words));
        self.report.restored = has;
        let service = self.step("start", "the restored service is ready", None, |drill| {
            drill.binary.serve(Path::new(DATA), &drill.interrupt)
        })?;
        let accepted = self.step("accept", "the restored service accepts an event", None, |drill| {
            smoke::first_event(&drill.report.run, drill.binary.token(), domain).map_err(Halt::Broken)
        })?;
        self.report.rto.measured = Some(lost.elapsed());
        self.check("the restored service accepts an event", Ok(accepted));
        Ok(service)
    }

    /// A step that is a command of this binary.
    fn command(&mut self, name: &'static str, what: &'static str, args: &[&str]) -> Result<Ended, Halt> {
        self.step(name, what, Some(format!("leitstand {}", args.join(" "))), |drill| {
            let ended = drill.binary.run(args, &drill.interrupt)?;
            if ended.is_fine() { Ok(ended) } else { Err(Halt::Broken(ended.words())) }
        })
    }

    /// Runs and times one part of the recovery. What breaks it ends the drill, as a failed one.
    fn step<T>(
        &mut self,
        name: &'static str,
        what: &'static str,
        command: Option<String>,
        part: impl FnOnce(&mut Drill) -> Result<T, Halt>,
    ) -> Result<T, Halt> {
        let began = Instant::now();
        let result = part(self);
        let took = began.elapsed();
        self.progress.say(&format!("{name}: {}", human(took)));
        self.report.steps.push(Step { name, what, command, took });
        result.or_else(|halt| match halt {
            Halt::Broken(why) => self.fail(what, why),
            halt => Err(halt),
        })
    }

    fn smoke(&mut self, service: Service, domain: &str) {
        self.progress.say("smoke tests");
        for smoke in smoke::tests(&self.report.run, self.binary.token(), domain, Path::new(DATA)) {
            self.check(smoke.name, smoke.result);
        }
        if let Some(secret) = self.binary.named_token().map(str::to_owned) {
            let smoke = smoke::named_token(&secret);
            self.check(smoke.name, smoke.result);
        }
        let stopped = match service.stop() {
            Ok(status) if status.success() => Ok("exit code 0".to_owned()),
            Ok(status) => Err(status.to_string()),
            Err(e) => Err(e.to_string()),
        };
        self.check("SIGTERM stops the service in order", stopped);
    }

    /// Are all events there that must be, and how much is lost?
    fn hold_against(&mut self, plan: &Plan, acks: &Acks, mark: Duration) -> Result<(), Halt> {
        self.progress.say("counting events");
        let survey = survey::survey(Path::new(DATA), plan, acks, mark)
            .map_err(|e| Halt::Broken(format!("cannot read the restored files: {e}")))?;
        let lost_after = self.report.lost_after.expect("set by the kill");
        let oldest = survey.lost_acks().map_or(Duration::ZERO, |(first, _)| lost_after.saturating_sub(first));
        self.report.rpo.measured = Some(oldest);
        let counts = format!(
            "{} doubled, {} out of order, {} missing before later ones, {} damaged lines",
            survey.doubled, survey.out_of_order, survey.holes, survey.damaged
        );
        self.check(
            "each client's events are there once, whole and in order",
            if survey.is_in_order() { Ok(counts) } else { Err(counts) },
        );
        let missing = format!("{} are missing", survey.lost_before_mark);
        let kept = if survey.lost_before_mark == 0 { Ok(missing) } else { Err(missing) };
        self.check("every event acknowledged before the snapshot is there", kept);
        self.report.survey = Some(survey);
        Ok(())
    }

    fn check(&mut self, name: &str, result: Result<String, String>) {
        self.report.checks.push(Check { name: name.to_owned(), result });
    }

    fn fail<T>(&mut self, name: &str, why: String) -> Result<T, Halt> {
        self.check(name, Err(why));
        Err(Halt::Failed)
    }
}

/// The snapshots of a load.
struct Snapshots {
    every: Duration,
    /// When the next one is due, from the begin of the load.
    next: Duration,
    running: Option<(Running, Snapshot)>,
    /// Index in the report.
    newest: Option<usize>,
}

impl Snapshot {
    fn path(&self) -> String {
        format!("{SNAPSHOTS}/{}", self.name)
    }
}

/// Asks until no connection is taken any more.
fn nobody_answers() -> Result<(), Halt> {
    let deadline = Instant::now() + DETECT_MAX;
    while service::connect().is_ok() {
        if Instant::now() >= deadline {
            return Err(Halt::Broken("somebody still answers".to_owned()));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn remove_all(dir: &Path) -> Result<(), Halt> {
    fs::remove_dir_all(dir).map_err(|e| Halt::Broken(format!("cannot remove {dir:?}: {e}")))
}
