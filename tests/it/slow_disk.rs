//! What hangs on one domain, or with the whole disk, holds nobody else.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use leitstand::config::{Config, Source};
use leitstand::http::{AppState, BoundListener, ServerOptions, serve};
use leitstand::metrics::Metrics;
use leitstand::storage::{Fsync, Store, StoreError, StoreOptions};

use crate::faulty::{FaultyDisk, Plan};
use crate::storage::{append, faulty_with, options, runtime};
use crate::support::{PATIENCE, Request, TestServer, skip, wait_for};

/// Longest wait for others, on a machine that may be busy.
const SOON: Duration = Duration::from_secs(2);

/// As the service has it: calls that may hang have a runtime of their own.
fn served(options: StoreOptions) -> StoreOptions {
    static ASIDE: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    StoreOptions { runtime: Some(ASIDE.get_or_init(runtime).handle().clone()), ..options }
}

fn kept_up(fsync: Fsync) -> (tempfile::TempDir, Store<FaultyDisk>, Arc<Plan>) {
    let dir = tempfile::tempdir().unwrap();
    let (store, plan) = faulty_with(dir.path(), served(options(fsync)));
    let upkeep = store.clone();
    tokio::spawn(async move { upkeep.maintain().await });
    (dir, store, plan)
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.unwrap_or_else(|_| panic!("{what} waits for what hangs"))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < SOON, "not soon: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Broken, one file that hangs would delay the sync of all others, and what `everysec` promises.
#[test]
fn a_sync_that_hangs_delays_no_other() {
    runtime().block_on(async {
        let (_dir, store, plan) = kept_up(Fsync::EverySecond);
        for hung in 1..=12 {
            plan.hang_next("sync_data");
            append(&store, &format!("hangs-{hung}"), &[1]).await.unwrap();
            until("it hangs", || plan.hung() == hung).await;
            for id in 0..3 {
                let before = plan.count("sync_data");
                soon("an append", append(&store, "other", &[id])).await.unwrap();
                until("the other is synced", || plan.count("sync_data") > before).await;
            }
        }
        plan.let_hung_go();
        soon("the end", store.drained()).await;
    });
}

/// Broken, syncs that are asked for every half second would pile up behind one that hangs.
#[test]
fn a_domain_that_hangs_is_asked_once() {
    runtime().block_on(async {
        let (_dir, store, plan) = kept_up(Fsync::EverySecond);
        plan.hang_next("sync_data");
        append(&store, "a", &[1]).await.unwrap();
        until("it hangs", || plan.hung() == 1).await;
        let second = tokio::spawn({
            let store = store.clone();
            async move { append(&store, "a", &[2]).await }
        });
        tokio::time::sleep(Duration::from_millis(1600)).await;
        let before = plan.count("sync_data");
        plan.let_hung_go();
        soon("its turn", second).await.unwrap().unwrap();
        soon("the end", store.drained()).await;
        assert!(plan.count("sync_data") <= before + 2, "{}", plan.count("sync_data") - before);
    });
}

/// Broken, a call that hangs in the turn of one domain would hold the appends of others, in any mode.
#[test]
fn a_turn_that_hangs_holds_no_other_domain() {
    for fsync in [Fsync::Always, Fsync::EverySecond, Fsync::Never] {
        for call in ["append", "try_lock", "open_lock", "open_data", "stat_by_path", "read_side"] {
            runtime().block_on(async {
                let (_dir, store, plan) = kept_up(fsync);
                plan.hang_next(call);
                let hangs = tokio::spawn({
                    let store = store.clone();
                    async move { append(&store, "hangs", &[1]).await }
                });
                until("it hangs", || plan.hung() == 1).await;
                // Longer than the two looks that notice it.
                tokio::time::sleep(Duration::from_millis(1500)).await;
                for id in 0..20 {
                    let case = format!("{fsync:?}, {call}, append {id}");
                    soon(&case, append(&store, "other", &[id])).await.expect(&case);
                    soon(&case, append(&store, &format!("new-{id}"), &[id])).await.expect(&case);
                }
                assert!(soon("health", store.health_now()).await.writable);
                plan.let_hung_go();
                soon("the end", hangs).await.unwrap().unwrap();
            });
        }
    }
}

/// Broken, everybody who asks for health or metrics would hang with the disk, each on a thread of its own.
#[test]
fn health_does_not_wait_for_a_disk_that_hangs() {
    for call in ["check_root", "space"] {
        runtime().block_on(async {
            let (_dir, store, plan) = kept_up(Fsync::Always);
            append(&store, "a", &[1]).await.unwrap();
            let space = soon("health", store.health_now()).await.space;
            assert!(space.is_some());
            plan.hang_next(call);
            let health = soon("health", store.health_now()).await;
            assert_eq!((health.writable, health.space), (false, space), "{call}: what was known last");
            for _ in 0..100 {
                let began = Instant::now();
                assert!(!store.health_now().await.writable, "{call}");
                assert!(began.elapsed() < Duration::from_millis(300), "{call}: it is known to hang");
            }
            assert_eq!(plan.hung(), 1, "{call}: one look at a time");
            // The write itself tells.
            soon("an append", append(&store, "a", &[2])).await.unwrap();
            plan.let_hung_go();
            until("it answers again", || store.health().writable).await;
        });
    }
}

/// Broken, the reserve would be forgotten while the file system does not say how much is free.
#[test]
fn a_reserve_that_was_reached_stays_so_while_the_disk_hangs() {
    runtime().block_on(async {
        let low = served(StoreOptions { reserve_bytes: Some(1), ..options(Fsync::Always) });
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty_with(dir.path(), low);
        plan.set_space(0, 1 << 40);
        assert!(matches!(append(&store, "a", &[1]).await, Err(StoreError::Full { .. })));
        plan.hang_next("space");
        assert!(matches!(soon("a refusal", append(&store, "a", &[2])).await, Err(StoreError::Full { .. })));
        plan.let_hung_go();
    });
}

/// Broken, the alert on slow syncs could never fire with `everysec`.
#[test]
fn syncs_of_every_second_are_measured() {
    let server = TestServer::builder().env("LEITSTAND_FSYNC", "everysec").start();
    server.post("a", "{}").assert_accepted();
    wait_for("a sync is measured", PATIENCE, || {
        (server.metric("leitstand_sync_seconds_count", "") > 0.0).then_some(())
    });
}

/// A runtime of one thread, as the service has one for each worker.
fn worker() -> tokio::runtime::Handle {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    handle
}

/// Asks for `/health/live` on a connection of its own.
fn ask_live(socket: &Path) -> Duration {
    let began = Instant::now();
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    began.elapsed()
}

/// Broken, every other new connection would first wait for a worker that is known to hang.
#[test]
fn a_worker_that_hangs_gets_no_new_connections() {
    for (workers, hung) in [(1, 1), (2, 1), (2, 2)] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let get = |name: &str| (name == "LEITSTAND_TOKEN").then(|| "t".into());
        let read = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
        let config = Config::from_source(&Source { get: &get, read: &read }).unwrap();
        let metrics = Metrics::new("test", "never");
        let store = Store::open(&dir.path().join("data"), options(Fsync::Never), metrics.store()).unwrap();
        let state = Arc::new(AppState::new(&config, store, metrics, 64));
        let workers: Vec<_> = (0..workers).map(|_| worker()).collect();
        let server = ServerOptions { shutdown_timeout: SOON, workers: workers.clone(), refusers_max: 8 };
        let main = worker();
        let listener = {
            let _inside = main.enter();
            BoundListener::Unix(tokio::net::UnixListener::bind(&socket).unwrap())
        };
        main.spawn(serve(listener, state, server, std::future::pending()));
        ask_live(&socket);
        let gates: Vec<_> = workers
            .iter()
            .take(hung)
            .map(|worker| {
                let (open, opened) = std::sync::mpsc::channel::<()>();
                worker.spawn(async move {
                    let _ = opened.recv();
                });
                open
            })
            .collect();
        let late = (0..40).filter(|_| ask_live(&socket) > Duration::from_millis(200)).count();
        // The first to come to each of them finds out; the rest is for a machine that is busy.
        assert!(late <= hung + 4, "{hung} of {} hang: {late} of 40 answers were late", workers.len());
        drop(gates);
        // As soon as it goes on, it gets its share again.
        let busy = || workers.iter().filter(|worker| worker.metrics().num_alive_tasks() > 0).count();
        wait_for("the workers rest", PATIENCE, || (busy() == 0).then_some(()));
        let _open: Vec<_> = workers.iter().map(|_| UnixStream::connect(&socket).unwrap()).collect();
        wait_for("each has a connection", PATIENCE, || (busy() == workers.len()).then_some(()));
    }
}

/// The real thing, with a kernel that does not come back from one file: health, metrics, other domains on new
/// connections, and the stop go on.
#[test]
fn a_file_that_hangs_holds_neither_health_nor_the_stop() {
    for fsync in ["always", "everysec", "never"] {
        let mut server =
            TestServer::builder().env("LEITSTAND_FSYNC", fsync).env("LEITSTAND_SHUTDOWN_TIMEOUT", "2").start();
        server.post("hangs", "{}").assert_accepted();
        server.post("other", "{}").assert_accepted();
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=writev,write,fdatasync,sync_file_range,syncfs"])
            .args(["-e", "inject=writev,write:delay_enter=30000000", "-P"])
            .arg(server.data_dir().join("hangs.jsonl"))
            .args(["-p", &server.pid().as_raw_nonzero().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut strace) = strace else { return skip("there is no strace") };
        let status = format!("/proc/{}/status", server.pid().as_raw_nonzero());
        let traced = wait_for("strace is there", PATIENCE, || {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let by_us = text.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"));
            (by_us || strace.try_wait().unwrap().is_some()).then_some(by_us)
        });
        if !traced {
            return skip("this user may not trace");
        }
        let mut hung = server.connect();
        hung.send(Request::post("hangs", "{}").bytes());
        std::thread::sleep(Duration::from_millis(1500));
        for round in 0..5 {
            for path in ["/health/live", "/health/ready", "/metrics"] {
                let began = Instant::now();
                assert_eq!(server.get(path).status, 200, "{fsync}: {path}");
                assert!(began.elapsed() < SOON, "{fsync}, round {round}: {path} took {:?}", began.elapsed());
            }
            let began = Instant::now();
            server.post("other", "{}").assert_accepted();
            assert!(began.elapsed() < SOON, "{fsync}, round {round}: an append took {:?}", began.elapsed());
        }
        let began = Instant::now();
        server.signal(Signal::TERM);
        wait_for("it has stopped", PATIENCE, || {
            server.log().contains("\"stopped with appends in flight").then_some(())
        });
        assert!(began.elapsed() < Duration::from_millis(3500), "{fsync}: the stop took {:?}", began.elapsed());
        // The thread that hangs is in the hands of the tracer, and the process ends when that lets it go.
        let _ = strace.kill();
        let _ = strace.wait();
        server.wait(PATIENCE);
        assert_eq!(server.lines("other").len(), 6, "{fsync}");
        drop(hung);
    }
}
