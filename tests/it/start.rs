//! Signals that come while a service starts.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{PATIENCE, command, wait_exit, wait_for};

const SETTINGS: &str = "LEITSTAND_TOKEN=t\nLEITSTAND_PORT=0\nLEITSTAND_DISK_RESERVE=0\nLOG_LEVEL=INFO\n";

/// A service in `dir`, which logs to a file there. Killed when dropped.
struct Serve(Child);

impl Serve {
    fn spawn(dir: &Path, env_file: &str) -> Serve {
        let mut serve = command(dir, &["serve", "--env-file", env_file]);
        Serve(Serve::logging(&mut serve, dir).spawn().unwrap())
    }

    fn logging<'a>(serve: &'a mut Command, dir: &Path) -> &'a mut Command {
        let log = File::create(dir.join("log")).unwrap();
        serve.stderr(log.try_clone().unwrap()).stdout(log)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn proc(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0.id())
    }

    /// Has it said what becomes of SIGHUP?
    fn looks_after_hangup(&self) -> bool {
        let status = fs::read_to_string(self.proc("status")).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
    }

    fn wait(&mut self, what: &str) -> ExitStatus {
        wait_exit(&mut self.0, PATIENCE).unwrap_or_else(|| panic!("it has not ended: {what}"))
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn log(dir: &Path) -> String {
    fs::read_to_string(dir.join("log")).unwrap_or_default()
}

/// A start that waits for its settings, which come through a pipe.
fn waiting_for_settings() -> (TempDir, Serve) {
    let dir = tempfile::tempdir().unwrap();
    mknodat(CWD, dir.path().join("settings"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let serve = Serve::spawn(dir.path(), "settings");
    wait_for("it reads its settings", PATIENCE, || {
        let open = fs::read_dir(serve.proc("fd")).ok()?;
        let mut names = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        names.any(|name| name.ends_with("settings")).then_some(())
    });
    (dir, serve)
}

/// Broken, a deployment that starts a service and tells it of new settings at once would end it.
#[test]
fn a_hangup_while_settings_are_read_waits_until_the_service_stands() {
    let (dir, mut serve) = waiting_for_settings();
    (0..3).for_each(|_| serve.signal(Signal::HUP));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(serve.0.try_wait().unwrap(), None, "{}", log(dir.path()));
    let mut pipe = File::options().write(true).open(dir.path().join("settings")).unwrap();
    pipe.write_all(SETTINGS.as_bytes()).unwrap();
    drop(pipe);
    // It has started, and what came meanwhile is done now, once.
    wait_for("the settings are read anew", PATIENCE, || log(dir.path()).contains("SIGHUP").then_some(()));
    assert!(log(dir.path()).contains(" started "), "{}", log(dir.path()));
    serve.signal(Signal::TERM);
    assert_eq!(serve.wait("SIGTERM").code(), Some(0), "{}", log(dir.path()));
    assert_eq!(log(dir.path()).matches("SIGHUP").count(), 1, "{}", log(dir.path()));
}

/// Broken, a service that waits for its settings or its disk could be ended by force only, as the first process of a
/// container at least.
#[test]
fn who_is_told_to_stop_while_it_starts_stops_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let (dir, mut serve) = waiting_for_settings();
        let status = fs::read_to_string(serve.proc("status")).unwrap();
        serve.signal(signal);
        let began = std::time::Instant::now();
        assert_eq!(serve.wait("a signal").code(), Some(0), "{signal:?}: {status}");
        // A pipe is waited for longer.
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        assert!(log(dir.path()).contains("before it had started"), "{}", log(dir.path()));
    }
}

/// Broken, there would be a moment of the start in which SIGHUP ends a service, or SIGTERM does not.
#[test]
fn no_moment_of_a_start_is_without_somebody_for_its_signals() {
    let mut random = std::hash::Hasher::finish(&std::hash::BuildHasher::build_hasher(&std::hash::RandomState::new()));
    println!("seed {random}");
    for round in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("settings"), SETTINGS).unwrap();
        let mut serve = Serve::spawn(dir.path(), "settings");
        // What comes before the process has got as far as its own code nobody can catch.
        wait_for("it looks after SIGHUP", PATIENCE, || serve.looks_after_hangup().then_some(()));
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_micros((random >> 33) % 30_000));
        let stops = round % 2 == 0;
        serve.signal(if stops { Signal::TERM } else { Signal::HUP });
        if !stops {
            wait_for("it starts", PATIENCE, || {
                let ended = serve.0.try_wait().unwrap();
                assert_eq!(ended, None, "round {round}: {}", log(dir.path()));
                log(dir.path()).contains(" started ").then_some(())
            });
            serve.signal(Signal::TERM);
        }
        let status = serve.wait("SIGTERM");
        let is_well = status.code() == Some(0) || (stops && status.signal() == Some(15));
        assert!(is_well, "round {round}: {status}: {}", log(dir.path()));
    }
}
