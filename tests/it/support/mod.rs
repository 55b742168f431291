//! `TestServer`: the real binary on a free port, with a directory of its own; and a small client.

mod http;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

pub use http::{Client, Hasty, Request, Response};

/// The shared secret of every test server.
pub const TOKEN: &str = "golden-token";
/// The admin secret of every test server.
pub const ADMIN_TOKEN: &str = "admin-token";
/// Longest wait for something that should happen at once. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The pages for people, if the binary has them.
pub const PAGES: &[&str] = if cfg!(feature = "docs") { &["/docs", "/openapi.json"] } else { &[] };

/// Requests with more to answer than the socket buffers hold, for clients that do not read.
pub fn more_than_buffers_hold() -> Vec<u8> {
    let (path, times) = if cfg!(feature = "docs") { ("/docs/swagger-ui-bundle.js", 20) } else { ("/metrics", 1000) };
    Request::get(path).bytes().repeat(times)
}

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_leitstand");

/// Variables of the process environment that could change what a test sees.
const FOREIGN_PREFIXES: [&str; 4] = ["LEITSTAND_", "CHRONIK_", "LOG_LEVEL", "RUST_"];

/// Asks again and again until there is an answer, and panics with `what` if there is none in time.
pub fn wait_for<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What comes of `work`, which must not take long; a test that waits for ever says nothing.
pub async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it ends in time")
}

/// Says why a test did not look, so that a skipped test is not mistaken for a passed one.
pub fn skip(reason: &str) {
    println!("skip: {reason}");
}

/// A command line of the binary, in an empty directory, with nothing inherited from the caller's
/// environment that the service would read.
pub fn command<S: AsRef<OsStr>>(cwd: &Path, args: &[S]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(args).current_dir(cwd).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if FOREIGN_PREFIXES.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end. Kills it when it does not end by itself.
pub fn run(command: &mut Command) -> Finished {
    run_within(command, PATIENCE)
}

/// As [`run`], for a command that takes its time.
pub fn run_within(command: &mut Command, patience: Duration) -> Finished {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the binary");
    let pid = Pid::from_child(&child);
    // Reads both pipes to their ends in the background, so that a long output does not block.
    let mut out = child.stdout.take().expect("piped");
    let mut err = child.stderr.take().expect("piped");
    let out = std::thread::spawn(move || read_all(&mut out));
    let err = std::thread::spawn(move || read_all(&mut err));
    let status = wait_exit(&mut child, patience).unwrap_or_else(|| {
        let _ = kill_process(pid, Signal::KILL);
        let _ = child.wait();
        panic!("{command:?} did not end by itself")
    });
    let output = Output {
        status,
        stdout: out.join().expect("reader does not panic"),
        stderr: err.join().expect("reader does not panic"),
    };
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
    }
}

fn read_all(from: &mut impl std::io::Read) -> Vec<u8> {
    let mut all = Vec::new();
    from.read_to_end(&mut all).expect("read a pipe");
    all
}

/// A mount, taken away when it is dropped, also by a test that fails.
pub struct Mounted(PathBuf);

impl Mounted {
    /// `None`: this user may not mount, or not here.
    pub fn new<S: AsRef<OsStr>>(args: &[S], at: &Path) -> Option<Mounted> {
        let mounted = Command::new("mount").args(args).arg(at).output().is_ok_and(|out| out.status.success());
        mounted.then(|| Mounted(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

/// What a command left behind.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// What went wrong: all of stderr, but for the lines of what took long on a busy machine.
    pub fn errors(&self) -> String {
        let is_progress = |line: &str| {
            ["snapshot: ", "restore: ", "verify: "].iter().any(|word| line.starts_with(word)) && line.contains(" % of ")
        };
        self.stderr.lines().filter(|line| !is_progress(line)).map(|line| format!("{line}\n")).collect()
    }
}

/// Waits for the end of a child, without blocking for longer than `patience`.
pub fn wait_exit(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().expect("wait for the child") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A server to be: name only what is special.
pub struct Builder {
    dir: TempDir,
    env: BTreeMap<String, OsString>,
    args: Vec<OsString>,
    user: Option<u32>,
}

impl Builder {
    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Builder {
        self.env.insert(name.to_owned(), value.as_ref().to_owned());
        self
    }

    /// Leaves a variable unset that is set by default.
    pub fn without(mut self, name: &str) -> Builder {
        self.env.remove(name);
        self
    }

    /// Adds an argument to `serve`.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Builder {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Runs it as this user, who gets the working directory and what is in it by now. Only for root.
    pub fn user(mut self, uid: u32) -> Builder {
        let data = self.dir.path().join("data");
        std::fs::create_dir_all(&data).expect("create the data directory");
        let files = std::fs::read_dir(&data).expect("list the data directory");
        let files = files.map(|entry| entry.expect("list the data directory").path());
        for path in files.chain([data.clone(), self.dir.path().to_owned()]) {
            std::os::unix::fs::chown(path, Some(uid), Some(uid)).expect("give a file away");
        }
        self.user = Some(uid);
        self
    }

    /// The working directory; the data directory is `data` in it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file into the working directory.
    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Builder {
        std::fs::write(self.dir.path().join(name), content).expect("write a file of the test");
        self
    }

    /// The data directory is there before the start, which otherwise makes it and says so with a warning.
    pub fn with_data_dir(self) -> Builder {
        std::fs::create_dir_all(self.dir.path().join("data")).expect("create the data directory");
        self
    }

    /// Writes a file into the data directory.
    pub fn data_file(self, name: &str, content: impl AsRef<[u8]>) -> Builder {
        let data = self.dir.path().join("data");
        std::fs::create_dir_all(&data).expect("create the data directory");
        std::fs::write(data.join(name), content).expect("write a data file of the test");
        self
    }

    /// Starts it and waits until it says where it listens.
    pub fn start(self) -> TestServer {
        self.start_and_find(|server| started_address(&std::fs::read_to_string(server.log_path()).unwrap_or_default()))
    }

    /// Starts a service that logs nothing, and waits until its Unix socket answers.
    pub fn start_quietly(self, socket: &Path) -> TestServer {
        let address = format!("unix:{}", socket.display());
        self.start_and_find(|_| UnixStream::connect(socket).is_ok().then(|| address.clone()))
    }

    fn start_and_find(self, find: impl Fn(&TestServer) -> Option<String>) -> TestServer {
        let log_path = self.dir.path().join("stdout.log");
        let err_path = self.dir.path().join("stderr.log");
        let args: Vec<OsString> = std::iter::once("serve".into()).chain(self.args.iter().cloned()).collect();
        let mut command = command(self.dir.path(), &args);
        command
            .envs(&self.env)
            .stdout(File::create(&log_path).expect("create the log file"))
            .stderr(File::create(&err_path).expect("create the error file"));
        if let Some(uid) = self.user {
            command.uid(uid).gid(uid);
        }
        let child = command.spawn().expect("start the server");
        let mut server = TestServer { child: Some(child), address: String::new(), dir: self.dir };
        server.address = wait_for("the server starts", PATIENCE, || {
            let child = server.child.as_mut().expect("running");
            if let Some(status) = child.try_wait().expect("wait for the server") {
                panic!("the server ended at the start: {status}\n{}", std::fs::read_to_string(&err_path).unwrap());
            }
            find(&server)
        });
        server
    }
}

/// The `address` field of the line "started", in either log format.
fn started_address(log: &str) -> Option<String> {
    let complete = &log[..log.rfind('\n')?];
    let line = complete.lines().find(|line| line.contains("started"))?;
    if let Ok(json) = serde_json::from_str::<Value>(line) {
        return Some(json["address"].as_str()?.to_owned());
    }
    let (_, rest) = line.split_once("address=")?;
    Some(rest.split_whitespace().next()?.trim_matches('"').to_owned())
}

/// A running server. Killed when dropped.
pub struct TestServer {
    child: Option<Child>,
    address: String,
    dir: TempDir,
}

/// How a server ended.
#[derive(Debug)]
pub struct Stopped {
    pub code: Option<i32>,
    pub took: Duration,
}

impl TestServer {
    /// A server with the defaults of the tests: no rate limit worth the name, JSON logs.
    pub fn new() -> TestServer {
        TestServer::builder().start()
    }

    pub fn builder() -> Builder {
        let dir = tempfile::Builder::new().prefix("leitstand-it-").tempdir().expect("create a directory");
        let builder = Builder { dir, env: BTreeMap::new(), args: Vec::new(), user: None };
        let data = builder.dir().join("data");
        builder
            .env("LEITSTAND_TOKEN", TOKEN)
            .env("LEITSTAND_ADMIN_TOKEN", ADMIN_TOKEN)
            .env("LEITSTAND_HOST", "127.0.0.1")
            .env("LEITSTAND_PORT", "0")
            .env("LEITSTAND_DATA_DIR", data)
            .env("LEITSTAND_RATE_LIMIT", "1000000/second")
            .env("LEITSTAND_LOG_FORMAT", "json")
            // The tests may run on a disk that is nearly full.
            .env("LEITSTAND_DISK_RESERVE", "0")
    }

    /// What the service says it listens on.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The working directory of the server.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The bytes of a domain's file; empty when there is none.
    pub fn data(&self, domain: &str) -> Vec<u8> {
        match std::fs::read(self.data_dir().join(format!("{domain}.jsonl"))) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            other => other.expect("read a data file"),
        }
    }

    /// The lines of a domain's file, each of which must be JSON and end in a newline.
    pub fn lines(&self, domain: &str) -> Vec<Value> {
        let text = String::from_utf8(self.data(domain)).expect("data is UTF-8");
        assert!(text.is_empty() || text.ends_with('\n'), "{domain}: torn tail in {text:?}");
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"))).collect()
    }

    /// Takes the lock of a domain's file, as another program would; dropping it gives it back.
    pub fn hold_lock(&self, domain: &str) -> File {
        let path = self.data_dir().join(format!("{domain}.jsonl.lock"));
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).expect("open a lock file");
        flock(&file, FlockOperation::NonBlockingLockExclusive).expect("nobody has the lock");
        file
    }

    /// The names in the data directory, sorted.
    pub fn data_names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.data_dir())
            .expect("list the data directory")
            .map(|entry| entry.expect("list the data directory").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Everything logged so far, stdout and stderr.
    pub fn log(&self) -> String {
        let read = |name| std::fs::read(self.dir().join(name)).expect("read the log");
        String::from_utf8_lossy(&[read("stdout.log"), read("stderr.log")].concat()).into_owned()
    }

    /// The log lines so far; only with the JSON format. What is known against the file system that the tests run on is left
    /// out: `tests/system/full_disk.py` tries that.
    pub fn log_lines(&self) -> Vec<Value> {
        let log = std::fs::read_to_string(self.log_path()).expect("read the log");
        let complete = log.rfind('\n').map_or("", |end| &log[..end]);
        let of_machine = |line: &Value| {
            let known = ["the data directory is on ", "the data directory is in memory"];
            line["message"].as_str().is_some_and(|said| known.iter().any(|known| said.starts_with(known)))
        };
        let lines = complete.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}")));
        lines.filter(|line| !of_machine(line)).collect()
    }

    /// The first log line that `fits`; waits for it, since a thread of its own writes the log.
    pub fn log_line(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, PATIENCE, || self.log_lines().into_iter().find(|line| fits(line)))
    }

    fn log_path(&self) -> PathBuf {
        self.dir().join("stdout.log")
    }

    /// A new connection.
    pub fn connect(&self) -> Client {
        match self.address.strip_prefix("unix:") {
            Some(path) => Client::connect_unix(Path::new(path)),
            None => Client::connect(&self.address),
        }
    }

    /// Sends a request on a new connection and reads the answer.
    pub fn send(&self, request: &Request) -> Response {
        self.connect().roundtrip(request)
    }

    pub fn get(&self, path: &str) -> Response {
        self.send(&Request::get(path))
    }

    /// Posts a JSON body for a domain to `/v1/ingest`.
    pub fn post(&self, domain: &str, body: impl AsRef<[u8]>) -> Response {
        self.send(&Request::post(domain, body))
    }

    /// The sum of all samples of a metric whose labels contain `labels`.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let page = self.get("/metrics");
        if page.status != 200 {
            // Refused, as a connection too many: nothing is known.
            return f64::NAN;
        }
        let page = page.text();
        page.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(series, _)| series.split('{').next() == Some(name) && series.contains(labels))
            .map(|(_, value)| value.parse::<f64>().expect("a sample is a number"))
            .sum()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("running"))
    }

    /// Most memory the process ever had, in KiB (`VmHWM`).
    pub fn peak_rss_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid().as_raw_nonzero());
        let status = std::fs::read_to_string(path).expect("read the status of the server");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("signal the server");
    }

    /// Waits for the end of a server that was told to stop.
    pub fn wait(&mut self, patience: Duration) -> Stopped {
        let began = Instant::now();
        let mut child = self.child.take().expect("running");
        let status = wait_exit(&mut child, patience);
        let took = began.elapsed();
        let Some(status) = status else {
            self.child = Some(child);
            panic!("the server did not end within {patience:?}; its log:\n{}", self.log());
        };
        Stopped { code: status.code(), took }
    }

    /// SIGTERM, and the end.
    pub fn stop(&mut self) -> Stopped {
        self.signal(Signal::TERM);
        self.wait(PATIENCE)
    }

    /// SIGKILL, and the end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the server:\n{}", self.log());
        }
        self.kill();
    }
}
