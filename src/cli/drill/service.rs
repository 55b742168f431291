//! The children of a drill: the service, and the commands that an operator would type.
//!
//! All of them are this same binary. They work in the work directory, with settings of the drill only:
//! whatever the caller's environment says of a service does not reach them.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Halt;
use super::interrupt::Interrupt;
use super::report::Counts;
use crate::cli::http::{Bounds, Connection};
use crate::config::Bind;

/// The socket, in the work directory. A relative path, because an absolute one may be too long for a socket.
const SOCKET: &str = "service.sock";
/// Name of the token that must come back with the data.
const NAMED: &str = "drill";
/// How long a start may take until the service is ready, and a stop until it is gone.
const START_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(30);
/// How long one answer may take.
const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(30), answer_bytes_max: 4 << 20 };
/// How often something under way is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Findings of a command that are told.
const FINDINGS_TOLD_MAX: usize = 3;
/// The last words of a failed child that are told.
const LAST_WORDS_BYTES: usize = 2000;

/// Tells a child whose it is. No setting: only a drill gives it, and only to its own children.
const DRILL_PID: &str = "_LEITSTAND_DRILL_PID";

/// Makes a child of a drill end with it, however that ends; SIGKILL leaves a process no time to see to its children.
/// False: the drill has ended already. Any other process is none of a drill's.
pub(in crate::cli) fn outlives_nobody() -> bool {
    let Some(drill) = std::env::var(DRILL_PID).ok().and_then(|pid| pid.parse().ok()) else { return true };
    // Who may not ask for it goes on all the same, as every process does.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    rustix::process::getppid().map(Pid::as_raw_pid) == Some(drill)
}

/// How to start children.
pub(super) struct Binary {
    path: PathBuf,
    token: String,
    /// The secret of a named token, which must come back with the data.
    named_token: Option<String>,
    /// How many files there are with what they said.
    outputs: u32,
}

/// A running service. Killed when dropped.
pub(super) struct Service {
    child: Child,
    log: PathBuf,
}

/// A command under way. Killed when dropped before its end.
pub(super) struct Running {
    child: Child,
    began: Instant,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// A command that has ended.
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) took: Duration,
    pub(super) stdout: String,
    stderr: String,
}

impl Binary {
    pub(super) fn new(token: String) -> io::Result<Binary> {
        Ok(Binary { path: std::env::current_exe()?, token, named_token: None, outputs: 0 })
    }

    pub(super) fn token(&self) -> &str {
        &self.token
    }

    pub(super) fn named_token(&self) -> Option<&str> {
        self.named_token.as_deref()
    }

    /// Gives a named token, as every producer should have one.
    pub(super) fn add_named_token(&mut self, data_dir: &Path) -> Result<(), Halt> {
        let broken = |why: String| Halt::Broken(format!("cannot give a named token: {why}"));
        let added = self.command().args(["token", "add", NAMED, "--data-dir"]).arg(data_dir).output();
        let added = added.map_err(|e| broken(e.to_string()))?;
        if !added.status.success() {
            return Err(broken(String::from_utf8_lossy(&added.stderr).trim().to_owned()));
        }
        // Not into a file as what the other commands say.
        self.named_token = Some(String::from_utf8_lossy(&added.stdout).trim().to_owned());
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        for (name, _) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            if name_text.starts_with("LEITSTAND_") || name_text.starts_with("CHRONIK_") || name_text == "LOG_LEVEL" {
                command.env_remove(&name);
            }
        }
        command.stdin(Stdio::null()).env(DRILL_PID, std::process::id().to_string());
        command
    }

    /// Starts the service on this data directory and waits until it is ready.
    pub(super) fn serve(&mut self, data_dir: &Path, interrupt: &Interrupt) -> Result<Service, Halt> {
        let log = self.output("serve.log");
        let start = |e: io::Error| Halt::Broken(format!("cannot start the service: {e}"));
        let out = File::create(&log).map_err(start)?;
        let child = self
            .command()
            .args(["serve", "--uds", SOCKET])
            .env("LEITSTAND_TOKEN", &self.token)
            .env("LEITSTAND_DATA_DIR", data_dir)
            .env("LEITSTAND_RATE_LIMIT", "off")
            // A line for each event of the load would be longer than the event.
            .env("LOG_LEVEL", "WARNING")
            .stderr(out.try_clone().map_err(start)?)
            .stdout(out)
            .spawn()
            .map_err(start)?;
        let mut service = Service { child, log };
        let deadline = Instant::now() + START_MAX;
        loop {
            if interrupt.came() {
                return Err(Halt::Interrupted);
            }
            if let Some(status) = service.child.try_wait().map_err(start)? {
                return Err(Halt::Broken(format!("the service ended at its start, {status}: {}", tail(&service.log))));
            }
            if connect().and_then(|mut c| c.get("/health/ready")).is_ok_and(|answer| answer.status == 200) {
                return Ok(service);
            }
            if Instant::now() >= deadline {
                let words = tail(&service.log);
                return Err(Halt::Broken(format!("the service is not ready after {START_MAX:?}: {words}")));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Starts a command.
    pub(super) fn start(&mut self, args: &[&str]) -> Result<Running, Halt> {
        let start = |e: io::Error| Halt::Broken(format!("cannot start leitstand {}: {e}", args[0]));
        let (stdout, stderr) = (self.output(&format!("{}.out", args[0])), self.output(&format!("{}.err", args[0])));
        let began = Instant::now();
        let child = self
            .command()
            .args(args)
            .stdout(File::create(&stdout).map_err(start)?)
            .stderr(File::create(&stderr).map_err(start)?)
            .spawn()
            .map_err(start)?;
        Ok(Running { child, began, stdout, stderr })
    }

    /// Runs a command to its end.
    pub(super) fn run(&mut self, args: &[&str], interrupt: &Interrupt) -> Result<Ended, Halt> {
        let mut running = self.start(args)?;
        loop {
            if interrupt.came() {
                return Err(Halt::Interrupted);
            }
            if let Some(ended) = running.ended()? {
                return Ok(ended);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// A new file in the work directory: `003-verify.out`.
    fn output(&mut self, name: &str) -> PathBuf {
        self.outputs += 1;
        PathBuf::from(format!("{:03}-{name}", self.outputs))
    }
}

impl Running {
    pub(super) fn so_far(&self) -> Duration {
        self.began.elapsed()
    }

    /// What became of it, if it has ended.
    pub(super) fn ended(&mut self) -> Result<Option<Ended>, Halt> {
        let lost = |e: io::Error| Halt::Broken(format!("cannot look at a command: {e}"));
        let Some(status) = self.child.try_wait().map_err(lost)? else { return Ok(None) };
        let took = self.began.elapsed();
        let stdout = std::fs::read_to_string(&self.stdout).map_err(lost)?;
        Ok(Some(Ended { code: status.code(), took, stdout, stderr: tail(&self.stderr) }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

impl Ended {
    pub(super) fn is_fine(&self) -> bool {
        self.code == Some(0)
    }

    /// Its document; `Null` if it is none.
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_default()
    }

    /// How it ended, with its last words and the first things that it found.
    pub(super) fn words(&self) -> String {
        let mut words = self.code.map_or("ended by a signal".to_owned(), |code| format!("ended with {code}"));
        if !self.stderr.is_empty() {
            words += &format!(": {}", self.stderr);
        }
        for finding in self.json()["findings"].as_array().into_iter().flatten().take(FINDINGS_TOLD_MAX) {
            let part = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
            words += &format!("; {}: {}", part("file"), part("what"));
        }
        words
    }

    /// Of `verify`: how much was looked at, and what was found.
    pub(super) fn found(&self) -> String {
        let document = self.json();
        let counts = Counts::of(&document).map_or(String::new(), |counts| format!("{counts}: "));
        format!("{counts}{} findings, {} notes", document["findings_total"], document["notes_total"])
    }
}

impl Service {
    /// SIGKILL: the process ends in the middle of whatever it does.
    pub(super) fn kill(mut self) {
        end(&mut self.child);
    }

    /// Has it ended by itself? With its last words.
    pub(super) fn is_gone(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        Some(format!("the service ended by itself, {status}: {}", tail(&self.log)))
    }

    /// SIGTERM, and waits for the end.
    pub(super) fn stop(mut self) -> io::Result<ExitStatus> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let deadline = Instant::now() + STOP_MAX;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("still there after {STOP_MAX:?}")));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A new connection to the service.
pub(super) fn connect() -> io::Result<Connection> {
    Connection::open(&Bind::Unix(SOCKET.into()), BOUNDS)
}

/// Kills it, if it is still there, and takes its end.
fn end(child: &mut Child) {
    // Both fail only for a child that has ended and was waited for.
    let _ = child.kill();
    let _ = child.wait();
}

/// The last words in a file, on one line.
fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(LAST_WORDS_BYTES)..]).into_owned();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
