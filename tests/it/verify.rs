//! `leitstand verify`: what it finds, what it lets pass, and that it may run beside writers.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use tempfile::TempDir;

use leitstand::domain::Domain;
use leitstand::storage::verify::VerifyOptions;
use leitstand::storage::{FileNames, RealDisk};

use crate::support::{Finished, PATIENCE, Request, TestServer, command, run, skip, wait_exit, wait_for};

const SOUND: &str = "{\"id\":1,\"domain\":\"a\"}\n";
/// Stands in every payload; nothing that verify prints may hold it.
const CANARY: &str = "payload-canary";

fn data_dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub fn verify(dir: &Path, more: &[&str]) -> Finished {
    let args = [&["verify", "--data-dir", dir.to_str().unwrap()], more].concat();
    let finished = run(&mut command(dir.parent().unwrap(), &args));
    assert!(!finished.stdout.contains(CANARY) && !finished.stderr.contains(CANARY), "a payload is shown: {finished:?}");
    finished
}

/// The document and the exit code.
fn document(dir: &Path, more: &[&str]) -> (Value, Option<i32>) {
    let finished = verify(dir, &[&["--json"], more].concat());
    assert_eq!(finished.errors(), "", "{finished:?}");
    (serde_json::from_str(&finished.stdout).unwrap(), finished.code)
}

/// Kind, line and offset of each.
fn told(list: &Value) -> Vec<(String, Option<u64>, Option<u64>)> {
    let entries = list.as_array().unwrap().iter();
    entries.map(|f| (f["kind"].as_str().unwrap().to_owned(), f["line"].as_u64(), f["offset"].as_u64())).collect()
}

fn one(kind: &str, line: u64, offset: u64) -> Vec<(String, Option<u64>, Option<u64>)> {
    vec![(kind.to_owned(), Some(line), Some(offset))]
}

/// Broken, damage would go unnoticed, or an operator would look at the wrong line.
#[test]
fn each_kind_of_damage_is_found_where_it_is() {
    let sound = SOUND.len() as u64;
    for (line, kind, offset) in [
        (&b"{\"id\":2,\"p\":\"payload-canary\",\"domain\":\"a\"\n"[..], "invalid_json", 0),
        (b"{\"id\":2,\"domain\":\"a\"}{\"id\":3,\"domain\":\"a\"}\n", "invalid_json", 0),
        (b"payload-canary\n", "invalid_json", 0),
        (b"\xef\xbb\xbf{\"domain\":\"a\"}\n", "invalid_json", 0),
        (b"{\"p\":\"payload-canary\xff\",\"domain\":\"a\"}\n", "invalid_utf8", 20),
        (b"\0\0\0\0{\"domain\":\"a\"}\n", "zero_bytes", 0),
        (b"{\"p\":\"\0\0\",\"domain\":\"a\"}\n", "zero_bytes", 6),
        (b"[{\"domain\":\"a\"}]\n", "not_an_object", 0),
        (b"\"payload-canary\"\n", "not_an_object", 0),
        (b"{\"p\":\"payload-canary\"}\n", "domain_missing", 0),
        (b"{\"p\":\"payload-canary\",\"domain\":7}\n", "domain_missing", 0),
        (b"{\"domain\":\"payload-canary\"}\n", "other_domain", 0),
        (b"{\"domain\":\"A\"}\n", "other_domain", 0),
        (b"{\"domain\":\"b\",\"p\":NaN}\n", "other_domain", 0),
        (b"{\"p\":\"payload-canary", "torn_tail", 0),
        (b"\0\0\0\0", "torn_tail", 0),
        (b"{\"p\":\"payload-canary\",\"domain\":\"a\"}", "missing_newline", 0),
    ] {
        let dir = data_dir();
        let after = if line.ends_with(b"\n") { SOUND } else { "" };
        fs::write(dir.path().join("a.jsonl"), [SOUND.as_bytes(), line, after.as_bytes()].concat()).unwrap();
        let (report, code) = document(dir.path(), &[]);
        let case = String::from_utf8_lossy(line);
        assert_eq!((code, &report["clean"]), (Some(1), &Value::Bool(false)), "{case}");
        assert_eq!(told(&report["findings"]), one(kind, 2, sound + offset), "{case}");
        assert_eq!(report["lines"], if after.is_empty() { 2 } else { 3 }, "{case}");
        if after.is_empty() {
            assert_eq!(report["findings"][0]["bytes"], line.len(), "{case}");
        }
        let text = verify(dir.path(), &[]);
        let place = format!("finding: a.jsonl, line 2, offset {}", sound + offset);
        assert!(text.code == Some(1) && text.stdout.contains(&place) && text.stdout.contains(kind), "{text:?}");
    }
}

/// Broken, files that the Python service wrote would be called damaged.
#[test]
fn what_a_reader_can_live_with_is_a_note() {
    for (line, kind) in [
        ("{\"id\": 2, \"domain\": \"a\"}", "foreign_form"),
        ("{\"id\":2,\"domain\":\"a\"}\r", "foreign_form"),
        ("{\"id\":1,\"id\":2,\"domain\":\"a\"}", "foreign_form"),
        ("{\"p\":NaN,\"domain\":\"a\"}", "lenient_json"),
        ("{\"p\":1e400,\"domain\":\"a\"}", "lenient_json"),
        ("{\"p\":\"\\ud800\",\"domain\":\"a\"}", "lenient_json"),
        ("", "blank_line"),
        (" \r", "blank_line"),
    ] {
        let dir = data_dir();
        fs::write(dir.path().join("a.jsonl"), format!("{SOUND}{line}\n{SOUND}")).unwrap();
        let (report, code) = document(dir.path(), &[]);
        assert_eq!((code, &report["clean"]), (Some(0), &Value::Bool(true)), "{line:?}");
        assert_eq!(told(&report["notes"]), one(kind, 2, SOUND.len() as u64), "{line:?}");
        assert_eq!(report["findings_total"], 0, "{line:?}");
    }
}

/// Broken, a name that the service refuses, or that readers take for data, would not be told.
#[test]
fn names_that_break_the_rules_are_told() {
    let dir = data_dir();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("a.jsonl"), SOUND).unwrap();
    fs::write(path("a.jsonl.lock"), "").unwrap();
    fs::create_dir(path(".other")).unwrap();
    assert_eq!(verify(dir.path(), &[]).code, Some(0), "nothing odd yet");

    fs::write(path("Upper.jsonl"), SOUND).unwrap();
    symlink(path("a.jsonl"), path("link.jsonl")).unwrap();
    symlink("nowhere", path("dangling")).unwrap();
    fs::create_dir(path("dir.jsonl")).unwrap();
    fs::create_dir(path("sub")).unwrap();
    fs::create_dir(path("b.jsonl.lock")).unwrap();
    fs::write(path("c.jsonl.lock"), "17").unwrap();
    fs::write(path("a.1"), SOUND).unwrap();
    fs::write(path(".torn"), "").unwrap();
    let (report, code) = document(dir.path(), &[]);
    assert_eq!(code, Some(1));
    let names = |list: &Value| -> Vec<(String, String)> {
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        list.as_array().unwrap().iter().map(|f| (text(&f["file"]), text(&f["kind"]))).collect()
    };
    let pair = |(name, kind): (&str, &str)| (name.to_owned(), kind.to_owned());
    let findings = [
        (".torn", "side_directory"),
        ("Upper.jsonl", "not_a_domain"),
        ("b.jsonl.lock", "not_regular"),
        ("dangling", "symlink"),
        ("dir.jsonl", "not_regular"),
        ("link.jsonl", "symlink"),
    ];
    assert_eq!(names(&report["findings"]), findings.map(pair));
    let notes = [("a.1", "stray_name"), ("c.jsonl.lock", "lock_not_empty"), ("sub", "stray_name")];
    assert_eq!(names(&report["notes"]), notes.map(pair));
    assert_eq!(report["files"], 1, "only the real data file is read");
    assert_eq!(report["not_checked"], serde_json::json!([]));
    assert_eq!(verify(dir.path(), &["--domain", "dir"]).code, Some(2), "its data file is a directory");
}

/// Broken, what a repair or a poison left behind would be forgotten, also under a shortened name.
#[test]
fn the_side_directory_is_looked_at_too() {
    let dir = data_dir();
    let torn = dir.path().join(".torn");
    fs::create_dir(&torn).unwrap();
    let domain = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "a".repeat(60));
    let names = FileNames::of(&Domain::parse(&domain).unwrap());
    let data = dir.path().join(&names.data);
    fs::write(&data, format!("{{\"domain\":\"{domain}\"}}\n")).unwrap();
    fs::write(dir.path().join("a.jsonl"), SOUND).unwrap();
    fs::write(torn.join("a.jsonl.22.1700000000000000000"), CANARY).unwrap();
    let (report, code) = document(dir.path(), &[]);
    assert_eq!((code, &report["torn"]["files"], &report["torn"]["bytes"]), (Some(0), &1.into(), &14.into()));
    assert_eq!((&report["findings_total"], &report["notes_total"]), (&0.into(), &0.into()), "kept bytes are no damage");

    // As the service names the mark of a long domain: by the hash of the name of its file.
    use sha2::Digest as _;
    let hash: String = sha2::Sha256::digest(names.data.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    let ino = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&data).unwrap());
    fs::write(torn.join(format!("{hash}.poisoned")), format!("reason=sync ino={ino}\n")).unwrap();
    fs::write(torn.join("gone.jsonl.poisoned"), "reason=sync ino=1\n").unwrap();
    fs::write(torn.join("a.jsonl.poisoned"), "reason=sync ino=1\n").unwrap();
    fs::write(torn.join("a.jsonl.rewrite"), CANARY).unwrap();
    fs::write(torn.join("readme"), CANARY).unwrap();
    let (report, code) = document(dir.path(), &[]);
    let kinds = |list: &Value| told(list).into_iter().map(|(kind, ..)| kind).collect::<Vec<_>>();
    assert_eq!((code, kinds(&report["findings"])), (Some(1), vec!["poisoned".into(), "orphan_marker".into()]));
    assert_eq!(report["findings"][0]["file"], names.data);
    assert_eq!(kinds(&report["notes"]), ["stale_marker", "unfinished_rewrite", "stray_name"]);
    fs::write(torn.join("b.jsonl.22.1700000000000000000"), CANARY).unwrap();
    // One domain: only what belongs to it.
    let (report, code) = document(dir.path(), &["--domain", "a"]);
    assert_eq!((code, &report["torn"]["files"], &report["notes_total"]), (Some(0), &1.into(), &2.into()), "{report:#}");
    let (report, code) = document(dir.path(), &["--domain", &domain]);
    assert_eq!((code, kinds(&report["findings"])), (Some(1), vec!["poisoned".into()]), "{report:#}");
}

/// Broken, somebody who waits would be told a wrong share.
#[test]
fn progress_goes_up_to_all_bytes() {
    let dir = data_dir();
    for domain in ["a", "b", "c"] {
        fs::write(dir.path().join(format!("{domain}.jsonl")), format!("{{\"domain\":\"{domain}\"}}\n").repeat(3))
            .unwrap();
    }
    let disk = RealDisk::open_existing(dir.path()).unwrap();
    let mut seen = Vec::new();
    let options = VerifyOptions { only: None, lock_timeout: Duration::ZERO };
    leitstand::storage::verify::verify(&disk, &options, &mut |at| seen.push((at.bytes_done, at.bytes))).unwrap();
    let all = 9 * "{\"domain\":\"a\"}\n".len() as u64;
    assert!(seen.is_sorted() && seen.iter().all(|&(_, bytes)| bytes == all), "{seen:?}");
    assert_eq!(seen.last(), Some(&(all, all)));
}

/// Broken, the file of a long domain would be taken for a stray, or for another domain's.
#[test]
fn shortened_names_hold_the_events_of_their_domain_only() {
    let dir = data_dir();
    let long = |c: &str| format!("{0}.{0}.{0}.{1}", c.repeat(63), c.repeat(60));
    let line = |domain: &str| format!("{{\"domain\":\"{domain}\"}}\n");
    let domain = Domain::parse(&long("a")).unwrap();
    let names = FileNames::of(&domain);
    assert!(names.data.len() == 255 && names.lock.starts_with('.'));
    fs::write(dir.path().join(&names.data), line(domain.as_str()).repeat(3)).unwrap();
    fs::write(dir.path().join(&names.lock), "").unwrap();
    let (report, code) = document(dir.path(), &[]);
    assert_eq!((code, &report["lines"], &report["notes_total"]), (Some(0), &3.into(), &0.into()), "{report}");
    assert_eq!(verify(dir.path(), &["--domain", domain.as_str()]).code, Some(0));

    fs::write(dir.path().join(&names.data), line(domain.as_str()) + &line(&long("b"))).unwrap();
    let (report, _) = document(dir.path(), &[]);
    assert_eq!(told(&report["findings"])[0].0, "other_domain");
}

/// Broken, a file full of damage would fill the memory or the screen, or be counted too low.
#[test]
fn many_findings_are_counted_and_some_are_told() {
    let dir = data_dir();
    fs::write(dir.path().join("a.jsonl"), "x\n".repeat(1000) + &"\n".repeat(500)).unwrap();
    fs::write(dir.path().join("b.jsonl"), "x\n").unwrap();
    let (report, code) = document(dir.path(), &[]);
    assert_eq!((code, &report["findings_total"], &report["notes_total"]), (Some(1), &1001.into(), &500.into()));
    assert_eq!(report["findings"].as_array().unwrap().len(), 21);
    assert_eq!(report["notes"].as_array().unwrap().len(), 5);
    assert!(verify(dir.path(), &[]).stdout.contains("980 more"));
    let (report, code) = document(dir.path(), &["--domain", "b"]);
    assert_eq!((code, &report["findings_total"], &report["files"]), (Some(1), &1.into(), &1.into()));
}

/// Broken, scripts could not rely on the exit code or on the names in the document.
#[test]
fn exit_codes_and_the_document_keep_their_shape() {
    let dir = data_dir();
    let missing = verify(&dir.path().join("none"), &[]);
    assert_eq!((missing.code, missing.stdout.as_str()), (Some(2), ""), "{missing:?}");
    assert!(missing.stderr.contains("cannot look at the data directory"), "{missing:?}");
    assert!(!dir.path().join("none").exists(), "nothing is created");
    for args in [&["--domain", "not a domain"][..], &["--nonsense"], &["--lock-timeout", "x"]] {
        assert_eq!(verify(dir.path(), args).code, Some(2), "{args:?}");
    }
    let unknown = verify(dir.path(), &["--domain", "b"]);
    assert!(unknown.code == Some(2) && unknown.stderr.contains("no data file"), "{unknown:?}");

    fs::write(dir.path().join("a.jsonl"), SOUND).unwrap();
    let (report, code) = document(dir.path(), &[]);
    assert_eq!(code, Some(0));
    let keys: Vec<&str> = report.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "bytes",
            "clean",
            "data_dir",
            "files",
            "findings",
            "findings_total",
            "lines",
            "not_checked",
            "notes",
            "notes_total",
            "torn"
        ]
    );
    assert_eq!((&report["files"], &report["lines"], &report["bytes"]), (&1.into(), &1.into(), &SOUND.len().into()));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left in the directory");

    fs::write(dir.path().join("a.jsonl"), "x\n").unwrap();
    let (report, _) = document(dir.path(), &[]);
    let keys: Vec<&str> = report["findings"][0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["advice", "bytes", "file", "kind", "line", "offset", "what"]);
    assert_eq!(report["findings"][0]["what"], "not JSON");
    assert!(report["findings"][0]["advice"].as_str().unwrap().contains("RUNBOOK"));

    // The directory comes from the environment and from .env too, and no token is needed.
    let outer = data_dir();
    fs::create_dir(outer.path().join("data")).unwrap();
    assert_eq!(run(&mut command(outer.path(), &["verify"])).code, Some(0));
    for name in ["LEITSTAND_DATA_DIR", "CHRONIK_DATA_DIR"] {
        assert_eq!(run(command(outer.path(), &["verify"]).env(name, dir.path())).code, Some(1), "{name}");
    }
    fs::write(outer.path().join(".env"), format!("LEITSTAND_DATA_DIR={}\n", dir.path().display())).unwrap();
    assert_eq!(run(&mut command(outer.path(), &["verify"])).code, Some(1));
}

/// Broken, a file that could not be read would count as clean.
#[test]
fn what_cannot_be_read_is_said() {
    if !rustix::process::geteuid().is_root() {
        return skip("needs root, to look as another user");
    }
    use std::os::unix::process::CommandExt as _;
    let dir = data_dir();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.path().join("a.jsonl"), SOUND).unwrap();
    fs::write(dir.path().join("b.jsonl"), "{\"domain\":\"b\"}\n").unwrap();
    fs::set_permissions(dir.path().join("a.jsonl"), fs::Permissions::from_mode(0o600)).unwrap();
    // Another user may not be able to reach the binary where it was built.
    let copy = data_dir();
    fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = copy.path().join("leitstand");
    // By another process: a child of another test could hold our file open for writing, and what is
    // open for writing cannot be run.
    assert!(std::process::Command::new("cp").arg(crate::support::BINARY).arg(&binary).status().unwrap().success());
    let look = || {
        let mut command = std::process::Command::new(&binary);
        run(command.args(["verify", "--data-dir"]).arg(dir.path()).current_dir("/").uid(65534).gid(65534))
    };
    let finished = look();
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stdout.contains("not checked: a.jsonl: ") && finished.stdout.contains("1 file,"), "{finished:?}");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let finished = look();
    assert!(finished.code == Some(2) && finished.stdout.is_empty() && !finished.stderr.is_empty(), "{finished:?}");
}

/// Broken, a line that a writer is about to end would be called torn, or a hung writer would hold
/// verify up for ever.
#[test]
fn a_last_line_under_a_foreign_lock_is_not_judged() {
    let dir = data_dir();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, [SOUND, "{\"id\":2,"].concat()).unwrap();
    let lock = File::create(dir.path().join("a.jsonl.lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let began = Instant::now();
    let (report, code) = document(dir.path(), &["--lock-timeout", "1"]);
    assert_eq!((code, &report["findings_total"]), (Some(2), &0.into()), "{report}");
    assert!(report["not_checked"][0]["reason"].as_str().unwrap().contains("locked by another process"), "{report}");
    assert!(began.elapsed() < PATIENCE / 2);

    // The writer ends its line while verify waits.
    let finished = std::thread::scope(|scope| {
        let look = scope.spawn(|| document(dir.path(), &["--lock-timeout", "20"]));
        std::thread::sleep(Duration::from_millis(300));
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"\"domain\":\"a\"}\n").unwrap();
        drop(lock);
        look.join().unwrap()
    });
    assert_eq!((finished.1, &finished.0["lines"]), (Some(0), &2.into()), "{}", finished.0);
}

/// Broken, verify could not be used while the service runs: each look would find what is just being
/// written.
#[test]
fn beside_a_service_at_full_load_all_is_clean() {
    const BATCH_EVENTS: u64 = 50;
    // A slow machine must not have gigabytes to read in the end.
    const ROUND_BATCHES_MAX: u32 = 100;
    let server = TestServer::builder().env("LEITSTAND_FSYNC", "never").start();
    let (stop, sent, round) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        // Ends the load also when a look below panics.
        let _stop = StopOnDrop(&stop);
        for _ in 0..4 {
            let (server, stop, sent, round) = (&server, &stop, &sent, &round);
            scope.spawn(move || {
                let mut connection = server.connect();
                let body = format!("{{\"p\":\"{}\"}}\n", "x".repeat(900)).repeat(BATCH_EVENTS as usize);
                let (mut batches, mut now) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    let last = std::mem::replace(&mut now, round.load(Ordering::Relaxed));
                    batches = if now == last { batches + 1 } else { 0 };
                    if batches > ROUND_BATCHES_MAX {
                        std::thread::sleep(Duration::from_millis(1));
                        continue;
                    }
                    let domain = format!("load.{now}");
                    let request = Request::post(&domain, &body).header("Content-Type", "application/x-ndjson");
                    connection.roundtrip(&request).assert_accepted();
                    sent.fetch_add(BATCH_EVENTS, Ordering::Relaxed);
                }
            });
        }
        // A file for each look, so that it is a small one and the look ends where the writer is.
        for now in 0..20 {
            round.store(now, Ordering::Relaxed);
            let name = format!("load.{now}");
            wait_for("the service writes", PATIENCE, || (!server.data(&name).is_empty()).then_some(()));
            let (report, code) = document(&server.data_dir(), &["--domain", &name]);
            assert_eq!(code, Some(0), "look {now}: {report:#}");
        }
    });
    let (report, code) = document(&server.data_dir(), &[]);
    assert_eq!((code, report["lines"].as_u64()), (Some(0), Some(sent.into_inner())), "every stored line is seen");
    assert_eq!(report["notes_total"], 0, "the service writes nothing that is worth a note: {report:#}");
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Broken, a look beside a service that rolls a failed write back would find damage where two
/// states of the file meet.
#[test]
fn bytes_that_are_replaced_under_the_look_are_no_damage() {
    let dir = data_dir();
    let path = dir.path().join("a.jsonl");
    let lines = |id: u64| -> Vec<u8> {
        let line =
            |n: u64| format!("{{\"id\":{n},\"p\":\"{}\",\"domain\":\"a\"}}\n", "x".repeat((n * id % 97) as usize));
        (0..8_000).flat_map(|n| line(n).into_bytes()).collect()
    };
    let states: Vec<Vec<u8>> = (1..5).map(lines).collect();
    fs::write(&path, &states[0]).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            let file = File::options().append(true).open(&path).unwrap();
            for state in states.iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // Back to a line end in the first half, then other lines.
                let len = file.metadata().unwrap().len() / 3;
                let text = fs::read(&path).unwrap();
                let end = text[..len as usize].iter().rposition(|&b| b == b'\n').unwrap() + 1;
                file.set_len(end as u64).unwrap();
                (&file).write_all(state).unwrap();
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        for round in 0..10 {
            let (report, code) = document(dir.path(), &[]);
            assert_eq!(report["findings_total"], 0, "round {round}: {report:#}");
            assert!(
                code == Some(0) || report["not_checked"][0]["reason"].as_str().unwrap().contains("changed"),
                "{report:#}"
            );
        }
    });
    assert_eq!(verify(dir.path(), &[]).code, Some(0));
}

/// Broken, a large file would be loaded whole, and a small machine could not look at its data.
#[test]
fn a_large_file_is_streamed() {
    let dir = data_dir();
    let mut file = File::create(dir.path().join("a.jsonl")).unwrap();
    let lines = SOUND.repeat(1000);
    for _ in 0..1000 {
        file.write_all(lines.as_bytes()).unwrap();
    }
    // A hole reads as zero bytes and takes no room on the disk.
    let hole: u64 = 256 << 20;
    let at = file.stream_position().unwrap();
    file.seek(SeekFrom::Start(at + hole)).unwrap();
    file.write_all(b"\n").unwrap();
    file.write_all(lines.as_bytes()).unwrap();
    drop(file);
    let mut child = command(dir.path(), &["verify", "--json", "--data-dir", "."])
        .stdout(File::create(dir.path().parent().unwrap().join(format!("verify-{}", std::process::id()))).unwrap())
        .spawn()
        .unwrap();
    let mut peak_kib = 0;
    let status = loop {
        if let Ok(text) = fs::read_to_string(format!("/proc/{}/status", child.id())) {
            let line = text.lines().find(|line| line.starts_with("VmHWM:"));
            let kib = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|n| n.parse().ok());
            peak_kib = peak_kib.max(kib.unwrap_or(0));
        }
        if let Some(status) = wait_exit(&mut child, Duration::from_millis(2)) {
            break status;
        }
    };
    let path = dir.path().parent().unwrap().join(format!("verify-{}", std::process::id()));
    let report: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    fs::remove_file(path).unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(told(&report["findings"]), one("zero_bytes", 1_000_001, at), "{report}");
    assert_eq!((&report["findings"][0]["bytes"], &report["lines"]), (&hole.into(), &1_001_001.into()));
    assert!((1..48 << 10).contains(&peak_kib), "{peak_kib} KiB at most");
}

/// Broken, a reader of the files would stop at a line, or take a file for data, of which `verify` said nothing.
#[test]
fn names_and_numbers_that_other_readers_stumble_over_are_told() {
    use std::os::unix::ffi::OsStrExt as _;
    let dir = data_dir();
    for name in [&b"caf\xe9.jsonl"[..], b"X.jsonl", b"\xff.jsonl"] {
        fs::write(dir.path().join(std::ffi::OsStr::from_bytes(name)), SOUND).unwrap();
    }
    let (report, code) = document(dir.path(), &[]);
    let kinds: Vec<_> = report["findings"].as_array().unwrap().iter().map(|f| f["kind"].clone()).collect();
    assert_eq!((code, kinds), (Some(1), vec![Value::from("not_a_domain"); 3]), "{report}");

    let server = TestServer::new();
    let integers = [309, 4301].map(|digits| format!("{{\"n\":{}}}", "9".repeat(digits)));
    integers.iter().for_each(|event| server.post("a", event).assert_accepted());
    let path = server.data_dir().join("a.jsonl");
    let mut file = File::options().append(true).open(&path).unwrap();
    file.write_all(b"{\"n\":1e309,\"domain\":\"a\"}\n").unwrap();
    let (report, code) = document(&server.data_dir(), &[]);
    let notes: Vec<_> =
        report["notes"].as_array().unwrap().iter().map(|n| (n["line"].as_u64(), n["kind"].as_str().unwrap())).collect();
    let want = [(Some(1), "lenient_json"), (Some(2), "long_number"), (Some(3), "lenient_json")];
    assert_eq!((code, notes.as_slice()), (Some(0), &want[..]), "{report}");
}
