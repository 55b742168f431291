//! Services that answer as a test says: the scripted one of `clients/tests`, one in this process, and the
//! real binary.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use leitstand_producer::{ProducerBuilder, ProducerClient};
use serde::Serialize;
use serde_json::Value;

/// Longest wait for something that should happen at once. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").canonicalize().expect("the repository is there")
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    pub n: u64,
}

pub fn event(n: u64) -> Event {
    Event { n }
}

/// A client that does not wait for long.
pub fn quick(url: impl Into<String>) -> ProducerBuilder {
    ProducerClient::builder(url)
        .token("test-token")
        .domain("example.com")
        .backoff(Duration::from_millis(20))
        .timeout(PATIENCE)
}

pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// `clients/tests/scripted_server.py` with one of its cases.
pub struct Scripted {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    pub url: String,
}

impl Scripted {
    pub fn start(case: &str) -> Scripted {
        let mut child = Command::new("python3")
            .arg(root().join("clients/tests/scripted_server.py"))
            .arg(case)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python 3 is there");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut port = String::new();
        stdout.read_line(&mut port).expect("the server tells its port");
        let url = format!("http://127.0.0.1:{}", port.trim());
        let stdin = child.stdin.take();
        Scripted { child, stdin, stdout, url }
    }

    /// Ends it; what it saw.
    pub fn seen(mut self) -> Value {
        drop(self.stdin.take());
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the server tells what it saw");
        self.child.wait().expect("the server ends");
        serde_json::from_str(&line).expect("what it saw is JSON")
    }
}

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The number of its connection.
    pub connection: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body is UTF-8")
    }

    /// The field `n` of each event.
    pub fn numbers(&self) -> Vec<u64> {
        let number = |event: &Value| event["n"].as_u64().expect("n is a number");
        if let Ok(Value::Array(events)) = serde_json::from_slice(&self.body) {
            return events.iter().map(number).collect();
        }
        self.text().lines().map(|line| number(&serde_json::from_str(line).expect("a line is JSON"))).collect()
    }
}

pub const OK: (u16, &str) = (202, "ok");
pub const AWAY: (u16, &str) = (503, "{\"detail\":\"busy\",\"code\":\"busy\",\"written\":\"no\"}");
/// An answer that is none: the connection ends.
pub const HANG_UP: (u16, &str) = (0, "");

type Answers = dyn Fn(&Request) -> (u16, &'static str) + Send + Sync;

/// A service in this process.
pub struct Stub {
    pub url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    answers: Arc<Mutex<Arc<Answers>>>,
    retry_after: Arc<Mutex<Option<Duration>>>,
}

impl Stub {
    pub fn start(answers: impl Fn(&Request) -> (u16, &'static str) + Send + Sync + 'static) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let answers: Arc<Mutex<Arc<Answers>>> = Arc::new(Mutex::new(Arc::new(answers)));
        let retry_after = Arc::new(Mutex::new(None));
        let (seen, given, pause) = (requests.clone(), answers.clone(), retry_after.clone());
        thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let (seen, given, pause) = (seen.clone(), given.clone(), pause.clone());
                thread::spawn(move || serve(stream.expect("a connection"), connection, &seen, &given, &pause));
            }
        });
        Stub { url, requests, answers, retry_after }
    }

    /// Every answer from now on has this `Retry-After`, in whole seconds.
    pub fn retry_after(&self, pause: Duration) {
        *self.retry_after.lock().unwrap() = Some(pause);
    }

    pub fn answer(&self, answers: impl Fn(&Request) -> (u16, &'static str) + Send + Sync + 'static) {
        *self.answers.lock().unwrap() = Arc::new(answers);
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// All events that came, in this order.
    pub fn numbers(&self) -> Vec<u64> {
        self.requests().iter().flat_map(Request::numbers).collect()
    }

    pub fn forget(&self) {
        self.requests.lock().unwrap().clear();
    }
}

fn serve(
    stream: TcpStream,
    connection: usize,
    seen: &Mutex<Vec<Request>>,
    given: &Mutex<Arc<Answers>>,
    retry_after: &Mutex<Option<Duration>>,
) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut writer = stream;
    loop {
        let mut request = Request { connection, ..Request::default() };
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        request.path = line.split(' ').nth(1).expect("a request line").to_owned();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let Some((name, value)) = line.trim().split_once(':') else { break };
            request.headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let length = request.header("content-length").map_or(0, |text| text.parse().expect("a length"));
        request.body = vec![0; length];
        if reader.read_exact(&mut request.body).is_err() {
            return;
        }
        let answers = given.lock().unwrap().clone();
        let (status, text) = answers(&request);
        // As the service does.
        let id = request.header("x-request-id").unwrap_or("id-7").to_owned();
        seen.lock().unwrap().push(request);
        if status == HANG_UP.0 {
            return;
        }
        let mut head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nX-Request-ID: {id}\r\n", text.len());
        if let Some(pause) = *retry_after.lock().unwrap() {
            head += &format!("Retry-After: {}\r\n", pause.as_secs());
        }
        head += "\r\n";
        if writer.write_all(format!("{head}{text}").as_bytes()).is_err() {
            return;
        }
    }
}

/// The release binary of the service, or why there is none.
pub fn leitstand() -> Option<PathBuf> {
    let binary = match std::env::var_os("LEITSTAND_BIN") {
        Some(binary) => PathBuf::from(binary),
        None => root().join("target/release/leitstand"),
    };
    if !binary.exists() {
        println!("skip: {} is not there; run cargo build --release", binary.display());
        return None;
    }
    Some(binary)
}

/// An example, which cargo builds with the tests.
pub fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("this test is a file");
    let binary = tests.parent().and_then(Path::parent).expect("target/<profile>").join("examples").join(name);
    assert!(binary.exists(), "{} is built by cargo test", binary.display());
    binary
}

/// The example `feed`.
pub fn feed() -> Command {
    let mut command = Command::new(example("feed"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("LEITSTAND_") || name.starts_with("CHRONIK_") {
            command.env_remove(name);
        }
    }
    command.env("LEITSTAND_TOKEN", "test-token").stdout(Stdio::piped());
    command
}

/// The real service on a port of its own, to be killed and started again.
pub struct Service {
    binary: PathBuf,
    directory: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Service {
    pub fn new(binary: PathBuf, directory: &Path) -> Service {
        // Below the ports that the kernel gives to clients, so that no connection takes it between two starts;
        // and another one for each service of this process.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let mine = u16::try_from(std::process::id() % 20_000).expect("below 20,000");
        let free = std::iter::repeat_with(|| 10_000 + (mine + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000)
            .take(1_000)
            .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
        Service { binary, directory: directory.to_owned(), port: free.expect("a free port"), child: None }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn start(&mut self, variables: &[(&str, &str)]) {
        assert!(self.child.is_none());
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("LEITSTAND_") || name.starts_with("CHRONIK_") {
                command.env_remove(name);
            }
        }
        let child = command
            .args(["serve", "--host", "127.0.0.1", "--port", &self.port.to_string()])
            .current_dir(&self.directory)
            .env("LEITSTAND_TOKEN", "test-token")
            .env("LEITSTAND_RATE_LIMIT", "off")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut child = child.expect("start the service");
        wait_for("the service listens", || TcpStream::connect(("127.0.0.1", self.port)).ok());
        assert!(child.try_wait().expect("ask for it").is_none(), "it is this service that listens");
        self.child = Some(child);
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill the service");
            child.wait().expect("it ends");
        }
    }

    /// The field `n` of every stored event of a domain, in the order of the file.
    pub fn stored(&self, domain: &str) -> Vec<u64> {
        let file = self.directory.join(format!("data/{domain}.jsonl"));
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let number = |line| serde_json::from_str::<Value>(line).expect("a line is JSON")["n"].as_u64();
        text.lines().map(|line| number(line).expect("n is a number")).collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Numbers for a test; the seed is printed, and `SEED` repeats it.
pub struct Random(u64);

impl Random {
    pub fn new() -> Random {
        use std::hash::{BuildHasher as _, RandomState};
        let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 32);
        println!("seed {seed}");
        Random(seed)
    }

    /// From 0 up to and without `most` (xorshift* of a Weyl sequence).
    pub fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % most
    }
}
