//! What is wrong with the data directory, and what a client is told about it.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit, setrlimit};
use sha2::{Digest as _, Sha256};

use crate::support::{BINARY, Hasty, PATIENCE, Request, Response, TestServer, command, run, skip, wait_for};

/// Waits until a request is in the hands of the server.
fn wait_for_request_in_flight(server: &TestServer) {
    wait_for("a request is in flight", PATIENCE, || {
        (server.metric("leitstand_in_flight_bytes", "") > 0.0).then_some(())
    });
}

/// Broken, an answer would tell a client about our file system.
fn assert_mute(server: &TestServer, answer: &Response) {
    let said = answer.text();
    let path = server.data_dir().display().to_string();
    for secret in [path.as_str(), "/data", ".jsonl", "os error", "denied", "No such", "panic", "src/"] {
        assert!(!said.contains(secret), "{said:?} holds {secret:?}");
    }
}

/// The answers to a good event on both paths, as a plain error and as a problem.
fn refused_on_both_paths(server: &TestServer, domain: &str, status: u16, detail: &str) {
    for path in [format!("/v1/ingest?domain={domain}"), format!("/ingest/{domain}")] {
        let answer = server.send(&Request::post_to(&path, "{\"a\":1}"));
        answer.assert_error(status, detail);
        assert_mute(server, &answer);
        let problem = server.send(&Request::post_to(&path, "{\"a\":1}").header("Accept", "application/problem+json"));
        assert_eq!((problem.status, problem.json()["detail"].as_str()), (status, Some(detail)));
        assert_mute(server, &problem);
    }
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

/// Broken, whoever can put a link into the data directory could make the service write anywhere.
#[test]
fn a_symlinked_data_file_is_an_invalid_domain_and_its_target_untouched() {
    let server = TestServer::new();
    let victim = server.dir().join("victim");
    fs::write(&victim, "precious").unwrap();
    symlink(&victim, server.data_dir().join("outside.jsonl")).unwrap();
    symlink(server.dir().join("missing"), server.data_dir().join("dangling.jsonl")).unwrap();
    symlink("loop.jsonl", server.data_dir().join("loop.jsonl")).unwrap();
    server.post("other", "{\"o\":1}").assert_accepted();
    symlink("other.jsonl", server.data_dir().join("inside.jsonl")).unwrap();
    for domain in ["outside", "dangling", "loop", "inside"] {
        refused_on_both_paths(&server, domain, 400, "invalid domain");
    }
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert!(!server.dir().join("missing").exists());
    assert_eq!(server.lines("other").len(), 1);
    // The link gone, the domain is usable.
    fs::remove_file(server.data_dir().join("outside.jsonl")).unwrap();
    server.post("outside", "{}").assert_accepted();
}

/// Broken, a link that replaces an open data file would be written through.
#[test]
fn a_data_file_replaced_by_a_link_is_not_written_any_more() {
    let server = TestServer::new();
    server.post("swap", "{\"i\":1}").assert_accepted();
    let path = server.data_dir().join("swap.jsonl");
    let victim = server.dir().join("victim");
    fs::rename(&path, &victim).unwrap();
    symlink(&victim, &path).unwrap();
    server.post("swap", "{\"i\":2}").assert_error(400, "invalid domain");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "{\"i\":1,\"domain\":\"swap\"}\n");
    fs::remove_file(&path).unwrap();
    server.post("swap", "{\"i\":3}").assert_accepted();
    assert_eq!(server.lines("swap").len(), 1);
}

/// Broken, an event would vanish in a pipe, or a request would wait for a reader for ever.
#[test]
fn a_data_file_that_is_no_file_is_a_storage_error() {
    let server = TestServer::new();
    fs::create_dir(server.data_dir().join("dir.jsonl")).unwrap();
    fifo(&server.data_dir().join("fifo.jsonl"));
    fifo(&server.data_dir().join("read.jsonl"));
    let reader = OpenOptions::new().read(true).write(true).open(server.data_dir().join("read.jsonl")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(server.data_dir().join("socket.jsonl")).unwrap();
    for domain in ["dir", "fifo", "read", "socket"] {
        refused_on_both_paths(&server, domain, 500, "storage error");
    }
    assert_eq!(rustix::io::ioctl_fionread(&reader).unwrap(), 0, "nothing went into the pipe");
    server.post("healthy", "{}").assert_accepted();
}

/// Broken, a lock that nobody else sees would be taken, or a file elsewhere be created.
#[test]
fn a_lock_that_is_no_file_is_a_storage_error() {
    let server = TestServer::new();
    let data = server.data_dir();
    let victim = server.dir().join("victim");
    fs::write(&victim, "precious").unwrap();
    symlink(&victim, data.join("link.jsonl.lock")).unwrap();
    symlink(server.dir().join("missing"), data.join("dangling.jsonl.lock")).unwrap();
    fs::create_dir(data.join("dir.jsonl.lock")).unwrap();
    fifo(&data.join("fifo.jsonl.lock"));
    for domain in ["link", "dangling", "dir", "fifo"] {
        refused_on_both_paths(&server, domain, 500, "storage error");
        assert!(!data.join(format!("{domain}.jsonl")).exists(), "{domain}");
    }
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert!(!server.dir().join("missing").exists());
    fs::remove_dir(data.join("dir.jsonl.lock")).unwrap();
    server.post("dir", "{}").assert_accepted();
}

/// Broken, a client would wait longer than promised, or be refused too early.
#[test]
fn a_held_lock_is_503_when_the_timeout_is_over() {
    let server = TestServer::builder().env("LEITSTAND_LOCK_TIMEOUT", "1").start();
    server.post("held", "{\"i\":1}").assert_accepted();
    let _lock = server.hold_lock("held");
    let mut waits = Vec::new();
    // The machine may stop us for a moment; that does not make the promise untrue every time.
    while waits.len() < 3 {
        let began = Instant::now();
        let answer = server.post("held", "{\"i\":2}");
        let waited = began.elapsed();
        answer.assert_error(503, "lock timeout");
        assert!(answer.number("retry-after") >= 1);
        assert_mute(&server, &answer);
        assert!(waited >= Duration::from_secs(1), "{waited:?}");
        waits.push(waited);
        if waited <= Duration::from_millis(1300) {
            break;
        }
    }
    assert!(waits.iter().min().unwrap() <= &Duration::from_millis(1300), "{waits:?}");
    assert_eq!(server.lines("held").len(), 1);
    assert_eq!(server.metric("leitstand_append_failures_total", "lock_timeout"), waits.len() as f64);
}

/// Broken, a timeout of 0 would wait, or would refuse although the lock is free.
#[test]
fn a_lock_timeout_of_zero_is_one_try() {
    let server = TestServer::builder().env("LEITSTAND_LOCK_TIMEOUT", "0").start();
    server.post("try", "{}").assert_accepted();
    let lock = server.hold_lock("try");
    let began = Instant::now();
    server.post("try", "{}").assert_error(503, "lock timeout");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    drop(lock);
    server.post("try", "{}").assert_accepted();
}

/// Broken, one program that holds one lock would stop the whole service; or a request would be
/// refused although the lock came free in time.
#[test]
fn others_go_on_while_one_domain_waits_and_it_goes_on_when_the_lock_is_free() {
    let server = TestServer::builder().env("LEITSTAND_LOCK_TIMEOUT", "60").start();
    let lock = server.hold_lock("held");
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..5)
            .map(|i| {
                (
                    i,
                    scope.spawn({
                        let server = &server;
                        move || server.post("held", format!("{{\"i\":{i}}}"))
                    }),
                )
            })
            .collect();
        wait_for_request_in_flight(&server);
        for i in 0..100 {
            server.post(&format!("other-{}", i % 10), "{}").assert_accepted();
        }
        assert_eq!(server.get("/health/ready").status, 200);
        assert!(waiting.iter().all(|(_, request)| !request.is_finished()));
        assert_eq!(server.data("held"), b"");
        drop(lock);
        for (_, request) in waiting {
            request.join().unwrap().assert_accepted();
        }
    });
    assert_eq!(server.lines("held").len(), 5);
}

/// Broken, a client that hangs up would leave half an event, or its memory would be given away while
/// the event is still in it.
#[test]
fn a_client_that_hangs_up_cancels_nothing() {
    let server = TestServer::builder().env("LEITSTAND_LOCK_TIMEOUT", "600").start();
    let lock = server.hold_lock("held");
    let body = format!("{{\"a\":\"{}\"}}", "x".repeat(100_000));
    let in_flight = || server.metric("leitstand_in_flight_bytes", "");
    let queued = || server.metric("leitstand_queue_depth", "");
    let mut client = Hasty::connect(server.address(), &Request::post("first", "{}"));
    client.send(Request::post("held", &body).bytes());
    wait_for("the writer has the event", PATIENCE, || (queued() == 1.0).then_some(()));
    drop(client);
    wait_for("the server sees the end", PATIENCE, || (server.metric("leitstand_connections", "") <= 1.0).then_some(()));
    assert!(in_flight() > body.len() as f64, "the memory is still in use");
    drop(lock);
    wait_for("the event is in the file", PATIENCE, || (in_flight() == 0.0).then_some(()));
    assert_eq!(server.lines("held").len(), 1);
}

/// Broken, a crowd behind a lock would be written one by one, each with a sync of its own, while
/// everybody else waits (`IOV_MAX` is 1024).
#[test]
fn a_crowd_that_waited_for_a_lock_is_written_in_few_groups() {
    let crowd = 1_100;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    if limit.maximum.is_some_and(|most| most < 2 * crowd as u64) {
        return skip("too few descriptors for a crowd (ulimit -Hn)");
    }
    let server = TestServer::builder().env("LEITSTAND_LOCK_TIMEOUT", "600").env("LOG_LEVEL", "INFO").start();
    let lock = server.hold_lock("crowd");
    let mut clients: Vec<_> = (0..crowd)
        .map(|i| {
            let mut client = server.connect();
            client.send(Request::post("crowd", format!("{{\"i\":{i}}}")).bytes());
            client
        })
        .collect();
    // A queued event holds 64 bytes and more; a request before that only its body.
    wait_for("all are queued", PATIENCE, || {
        (server.metric("leitstand_in_flight_bytes", "") >= (crowd * 64) as f64).then_some(())
    });
    // The next look at the lock, at most 50 ms away, takes all of them as one group.
    std::thread::sleep(Duration::from_millis(150));
    drop(lock);
    for client in &mut clients {
        client.read_answer("POST").assert_accepted();
    }
    assert_eq!(server.lines("crowd").len(), crowd);
    let groups = server.metric("leitstand_group_batches_count", "");
    assert!(groups <= 10.0, "{groups} writes and syncs for {crowd} requests");
}

/// Broken, a bad request would wait for a lock that it does not need.
#[test]
fn a_bad_body_is_refused_at_once_although_the_lock_is_held() {
    let server = TestServer::builder().env("LEITSTAND_LOCK_TIMEOUT", "60").start();
    let _lock = server.hold_lock("held");
    server.post("held", "nope").assert_error(400, "invalid json");
    server.post("held", "[]").assert_accepted();
}

/// Broken, the service would hold a lock that no Python writer with filelock 3.20.4 sees, because
/// that one unlinks the file on release.
#[test]
fn only_the_lock_file_that_the_name_leads_to_counts() {
    let server = TestServer::builder().env("LEITSTAND_LOCK_TIMEOUT", "1").start();
    let path = server.data_dir().join("gone.jsonl.lock");
    // The server has the file open; another one of that name is locked by somebody else.
    server.post("gone", "{}").assert_accepted();
    fs::remove_file(&path).unwrap();
    let lock = server.hold_lock("gone");
    server.post("gone", "{}").assert_error(503, "lock timeout");
    drop(lock);
    server.post("gone", "{}").assert_accepted();
    // A lock on a file without a name is none.
    let _dead = server.hold_lock("gone");
    fs::remove_file(&path).unwrap();
    server.post("gone", "{}").assert_accepted();
    assert_eq!(server.lines("gone").len(), 3);
}

/// Broken, an event would be glued to half a line and lost with it, or the half line be lost.
#[test]
fn a_torn_tail_is_kept_aside_and_the_next_event_has_its_own_line() {
    let sound = "{\"old\":1}\n";
    let tails: [(&str, &[u8]); 6] = [
        ("half", b"{\"torn\":"),
        ("text", b"abc"),
        ("nul", b"\0\0\0\0"),
        ("utf8", b"{\"a\":\"\xc3"),
        ("cr", b"{\"a\":1\r"),
        ("extra", b"{\"a\":1}}"),
    ];
    let builder = tails.iter().fold(TestServer::builder(), |builder, (name, tail)| {
        builder.data_file(&format!("{name}.jsonl"), [sound.as_bytes(), tail].concat())
    });
    let server = builder.data_file("alone.jsonl", "{\"no newline at all").start();
    for (name, _) in tails {
        server.post(name, "{\"new\":1}").assert_accepted();
        let text = String::from_utf8(server.data(name)).unwrap();
        assert_eq!(text, format!("{sound}{{\"new\":1,\"domain\":\"{name}\"}}\n"));
    }
    server.post("alone", "{}").assert_accepted();
    assert_eq!(server.data("alone"), b"{\"domain\":\"alone\"}\n");

    let mut kept: Vec<(String, Vec<u8>)> = fs::read_dir(server.data_dir().join(".torn"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    kept.sort();
    assert!(kept.iter().all(|(name, _)| !name.ends_with(".jsonl")), "readers take *.jsonl: {kept:?}");
    assert_eq!(kept.len(), 7);
    for (name, tail) in tails {
        assert!(kept.iter().any(|(file, bytes)| file.starts_with(name) && bytes == tail), "{name}: {kept:?}");
    }
    assert_eq!(server.metric("leitstand_torn_tails_total", ""), 7.0);
    server.log_line("the torn tail is logged", |line| line["domain"] == "half" && line["bytes"] == 8);
}

/// Broken, a torn line that another program leaves while the service runs would be glued to.
#[test]
fn a_tail_that_is_torn_while_the_service_runs_is_repaired_too() {
    let server = TestServer::new();
    server.post("live", "{\"i\":1}").assert_accepted();
    let path = server.data_dir().join("live.jsonl");
    let foreign = |text: &str| OpenOptions::new().append(true).open(&path).unwrap().write_all(text.as_bytes()).unwrap();
    foreign("{\"foreign\":1}\n{\"torn");
    server.post("live", "{\"i\":2}").assert_accepted();
    let text = String::from_utf8(server.data("live")).unwrap();
    assert_eq!(text, "{\"i\":1,\"domain\":\"live\"}\n{\"foreign\":1}\n{\"i\":2,\"domain\":\"live\"}\n");
    assert!(server.metric("leitstand_foreign_writes_total", "") >= 1.0);
}

/// Broken, a whole event whose writer left out the newline would be thrown away.
#[test]
fn a_whole_line_without_its_newline_is_kept() {
    let server = TestServer::builder()
        .data_file("tail.jsonl", "{\"i\":1}\n{\"i\":2}")
        .data_file("only.jsonl", "{\"i\":\"ä\\u00e4\"}")
        .start();
    server.post("tail", "{\"i\":3}").assert_accepted();
    assert_eq!(server.data("tail"), b"{\"i\":1}\n{\"i\":2}\n{\"i\":3,\"domain\":\"tail\"}\n");
    server.post("only", "{}").assert_accepted();
    assert_eq!(String::from_utf8(server.data("only")).unwrap(), "{\"i\":\"ä\\u00e4\"}\n{\"domain\":\"only\"}\n");
    assert!(!server.data_dir().join(".torn").exists());
}

/// Broken, another program that keeps something in its lock files would lose it.
#[test]
fn a_lock_file_is_never_written() {
    let server = TestServer::builder().data_file("pid.jsonl.lock", "12345\n").start();
    for _ in 0..3 {
        server.post("pid", "{}").assert_accepted();
    }
    assert_eq!(fs::read(server.data_dir().join("pid.jsonl.lock")).unwrap(), b"12345\n");
}

/// Broken, domains of the allowed length could not be stored, or not where other programs look.
#[test]
fn long_domains_have_the_file_names_of_the_original() {
    let server = TestServer::new();
    let hex = |text: &str| Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let full = [&"a".repeat(63), &"b".repeat(63), &"c".repeat(63), &"d".repeat(61)].map(String::as_str).join(".");
    for length in [244, 245, 249, 250, 253] {
        let domain = &full[..length];
        server.post(domain, "{}").assert_accepted();
        let data = if length <= 249 {
            format!("{domain}.jsonl")
        } else {
            format!("{}-{}.jsonl", &domain[..240], &hex(domain)[..8])
        };
        let lock = if length <= 244 { format!("{data}.lock") } else { format!(".{}.lock", hex(&data)) };
        let names = server.data_names();
        assert!(names.contains(&data) && names.contains(&lock), "{length}: {names:?}");
        assert_eq!(server.lines(data.strip_suffix(".jsonl").unwrap()).len(), 1);
    }
    assert_eq!(server.data_names().len(), 10);
    server.post(&format!("{full}d"), "{}").assert_error(400, "invalid domain");
}

/// Broken, an operator's mode or a hard link for a backup would be lost.
#[test]
fn an_existing_file_keeps_its_mode_and_its_links() {
    let builder = TestServer::builder().data_file("kept.jsonl", "{\"i\":1}\n");
    let path = builder.dir().join("data/kept.jsonl");
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    let second = builder.dir().join("second-name");
    fs::hard_link(&path, &second).unwrap();
    let server = builder.start();
    server.post("kept", "{\"i\":2}").assert_accepted();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::read(&second).unwrap(), server.data("kept"));
    assert_eq!(server.lines("kept").len(), 2);
}

/// Broken, two writers of one file would cut off each other's lines when a write is taken back: each has its own lock.
#[test]
fn of_two_domains_with_the_same_file_only_one_is_written() {
    let server = TestServer::new();
    server.post("one", "{\"i\":1}").assert_accepted();
    server.post("other", "{\"i\":2}").assert_accepted();
    let [one, other] = ["one", "other"].map(|domain| server.data_dir().join(format!("{domain}.jsonl")));
    // `other` has its file open already.
    fs::remove_file(&other).unwrap();
    fs::hard_link(&one, &other).unwrap();
    server.post("one", "{\"i\":3}").assert_accepted();
    for _ in 0..2 {
        refused_on_both_paths(&server, "other", 500, "storage error");
        server.post("one", "{\"i\":4}").assert_accepted();
    }
    assert_eq!(server.lines("one").len(), 4);
    server.log_line("the name that is written is told", |line| {
        line["cause"].as_str().is_some_and(|cause| cause.contains("it is the same file as one.jsonl"))
    });
    // The name that was written is gone: now the other one may.
    fs::remove_file(&one).unwrap();
    server.post("other", "{\"i\":5}").assert_accepted();
    server.post("one", "{\"i\":6}").assert_accepted();
    assert_eq!((server.lines("other").len(), server.lines("one").len()), (5, 1));
}

/// Broken, events would be acknowledged into a directory that nobody looks at any more.
#[test]
fn a_data_directory_that_is_gone_is_an_error_until_it_is_back() {
    let server = TestServer::new();
    server.post("moved", "{\"i\":1}").assert_accepted();
    let away = server.dir().join("away");
    fs::rename(server.data_dir(), &away).unwrap();
    refused_on_both_paths(&server, "moved", 500, "storage error");
    let ready = server.get("/health/ready");
    assert_eq!((ready.status, &ready.json()["checks"]["data_dir_writable"]), (503, &false.into()));
    assert_mute(&server, &ready);
    // Another directory in its place is not the data directory.
    fs::create_dir(server.data_dir()).unwrap();
    refused_on_both_paths(&server, "moved", 500, "storage error");
    assert_eq!(fs::read_dir(server.data_dir()).unwrap().count(), 0);
    fs::remove_dir(server.data_dir()).unwrap();
    fs::rename(&away, server.data_dir()).unwrap();
    server.post("moved", "{\"i\":3}").assert_accepted();
    assert_eq!(server.data("moved"), b"{\"i\":1,\"domain\":\"moved\"}\n{\"i\":3,\"domain\":\"moved\"}\n");
    assert_eq!(server.get("/health/ready").status, 200);
}

/// Broken, a client would drop its events (4xx) or be told a path, because of our permissions.
#[test]
fn a_read_only_data_file_is_a_storage_error() {
    let builder = TestServer::builder().data_file("locked.jsonl", "{\"i\":1}\n");
    fs::set_permissions(builder.dir().join("data/locked.jsonl"), Permissions::from_mode(0o400)).unwrap();
    let builder = if rustix::process::geteuid().is_root() {
        let open_to_others = |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0);
        if !Path::new(BINARY).ancestors().filter(|path| !path.as_os_str().is_empty()).all(open_to_others) {
            return skip("root ignores permissions, and nobody else may run the binary where it lies");
        }
        builder.user(65_534)
    } else {
        builder
    };
    let server = builder.start();
    refused_on_both_paths(&server, "locked", 500, "storage error");
    assert_eq!(server.data("locked"), b"{\"i\":1}\n");
    server.post("free", "{}").assert_accepted();
    // A directory without write permission: the same, and not ready.
    fs::set_permissions(server.data_dir(), Permissions::from_mode(0o500)).unwrap();
    refused_on_both_paths(&server, "new", 500, "storage error");
    let ready = server.get("/health/ready");
    assert_eq!((ready.status, &ready.json()["checks"]["data_dir_writable"]), (503, &false.into()));
    assert_eq!(server.get("/health").status, 200);
    fs::set_permissions(server.data_dir(), Permissions::from_mode(0o700)).unwrap();
    server.post("new", "{}").assert_accepted();
}

/// Broken, the disk would be filled to the last byte, and other programs with it.
#[test]
fn below_the_disk_reserve_events_are_507() {
    let server = TestServer::builder().env("LEITSTAND_DISK_RESERVE", "1000000GiB").start();
    refused_on_both_paths(&server, "full", 507, "insufficient storage");
    let ready = server.get("/health/ready");
    assert_eq!((ready.status, &ready.json()["checks"]["disk_reserve"]), (503, &false.into()));
    assert_eq!(server.data_names(), [""; 0]);
}

/// Broken, half an event would stay in the file when there is no room for the rest, or a limit on
/// file sizes (SIGXFSZ) would end the service.
#[test]
fn a_write_that_does_not_fit_is_507_and_taken_back() {
    // Larger than the log will be: the limit is for every file of the process.
    let old = "{\"filler\":\"0123456789012345678901234567890123456789\"}\n".repeat(10_000);
    let server = TestServer::builder().data_file("size.jsonl", &old).start();
    let limit = |bytes: Option<u64>| {
        let limit = Rlimit { current: bytes, maximum: None };
        prlimit(Some(server.pid()), Resource::Fsize, limit).unwrap();
    };
    server.post("size", "{\"i\":1}").assert_accepted();
    let before = server.data("size");
    limit(Some(before.len() as u64 + 10));
    // One write is cut short, the next finds no room at all.
    for _ in 0..2 {
        refused_on_both_paths(&server, "size", 507, "insufficient storage");
        assert!(server.data("size") == before, "the file is as it was");
    }
    limit(Some(before.len() as u64));
    refused_on_both_paths(&server, "size", 507, "insufficient storage");
    assert!(server.data("size") == before, "the file is as it was");
    limit(None);
    server.post("size", "{\"i\":2}").assert_accepted();
    assert_eq!(server.lines("size").last().unwrap()["i"], 2);
}

/// Broken, a client is told that something is wrong with its request, and has to guess what and where.
#[test]
fn a_problem_says_what_is_wrong_and_where() {
    let builder = TestServer::builder().env("LEITSTAND_DENY_DOMAINS", "denied.*");
    let added = run(&mut command(builder.dir(), &["token", "add", "sensor", "--domain", "its.own"]));
    let secret = added.stdout.trim().to_owned();
    let server = builder.start();
    let problem = |request: Request| server.send(&request.header("Accept", "application/problem+json")).json();
    let lines = |body: &str| Request::post("lines", body).header("Content-Type", "application/x-ndjson");
    for (body, line, column) in [("{\"a\":1,}", 1, 8), ("{\n \"a\": nope}", 2, 8), ("[{},\n{},\n{\"a\" 1}]", 3, 6)] {
        let told = problem(Request::post("json", body));
        assert_eq!(
            (&told["code"], &told["line"], &told["column"]),
            (&"invalid_json".into(), &line.into(), &column.into()),
            "{told}"
        );
    }
    let told = problem(lines("{}\n{}\n{\"a\":}\n{}\n"));
    assert_eq!(
        (&told["code"], &told["line"], &told["column"]),
        (&"invalid_ndjson".into(), &3.into(), &6.into()),
        "{told}"
    );
    // What another reader takes, or does not go into, has no place that would be true.
    for body in ["[".repeat(2_000), "{\"a\":1e999}".to_owned()] {
        assert_eq!(problem(Request::post("json", body))["code"], "invalid_json");
    }
    for domain in ["-bad", "a..b", "a_b"] {
        let told = problem(Request::post(domain, "{}"));
        assert_eq!(told["code"], "invalid_domain");
        assert!(told["allowed"].as_str().unwrap().contains("hyphens"), "{told}");
    }
    let with = |request: Request| request.header("X-Auth", &secret);
    for (reason, request) in [
        ("domain_rules", Request::post("denied.here", "{}")),
        ("token_domain", with(Request::post("another", "{}"))),
        ("token_scope", with(Request::get("/stats"))),
    ] {
        let told = problem(request.clone());
        assert_eq!((&told["detail"], &told["reason"]), (&"forbidden".into(), &reason.into()), "{told}");
        server.send(&request).assert_error(403, "forbidden");
    }
}
