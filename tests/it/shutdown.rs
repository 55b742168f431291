//! The orderly end: who is still answered, who is cut off, and when it is over.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{Client, PATIENCE, Request, TestServer, wait_for};

/// A request that waits for a lock, and is in the hands of the server.
fn waiting_request(server: &TestServer, domain: &str) -> Client {
    let mut client = server.connect();
    client.send(Request::post(domain, "{\"waited\":1}").bytes());
    wait_for("the request is in flight", PATIENCE, || {
        (server.metric("leitstand_in_flight_bytes", "") > 0.0).then_some(())
    });
    client
}

/// Broken, every deployment would wait, or look like a crash.
#[test]
fn an_idle_service_ends_at_once_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = TestServer::new();
        server.post("idle", "{}").assert_accepted();
        server.signal(signal);
        let stopped = server.wait(PATIENCE);
        assert_eq!(stopped.code, Some(0), "{signal:?}");
        assert!(stopped.took < Duration::from_secs(2), "{signal:?}: {:?}", stopped.took);
        server.log_line("the stop is logged", |line| line["message"].as_str().unwrap().starts_with("stopped"));
        assert_eq!(server.lines("idle").len(), 1);
    }
}

/// Broken, one rude client could keep the service from stopping until it is killed; or an event
/// that was acknowledged just before the end would be lost.
#[test]
fn under_load_and_with_rude_clients_it_ends_in_time_and_loses_nothing() {
    let mut server = TestServer::builder().env("LEITSTAND_SHUTDOWN_TIMEOUT", "2").start();
    // Silent; half a head; half a body with a length, and in chunks; idle after a request; never
    // reading its answers.
    let mut rude: Vec<Client> = (0..6).map(|_| server.connect()).collect();
    rude[1].send("POST /v1/ingest HTTP/1.1\r\nHost: a\r\nX-");
    rude[2].send(Request::post("rude", "").header("Content-Length", "100").head());
    rude[2].send("{\"half\":");
    rude[3].send(Request::post("rude", "").chunked("", 1).head());
    rude[3].send("7\r\n{\"a\":1}\r\n");
    assert_eq!(rude[4].roundtrip(&Request::get("/health")).status, 200);
    rude[5].send(crate::support::more_than_buffers_hold());

    let acknowledged = AtomicUsize::new(0);
    let told_to_stop = AtomicBool::new(false);
    let address = server.address().to_owned();
    let (acked, stopped) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let (address, acknowledged, told_to_stop) = (&address, &acknowledged, &told_to_stop);
                scope.spawn(move || {
                    let mut acked = Vec::new();
                    let mut client = Client::connect(address);
                    for i in 0.. {
                        let id = format!("{writer}-{i}");
                        let request = Request::post(&format!("load-{}", i % 3), format!("{{\"id\":\"{id}\"}}"));
                        let answer = client.try_send(request.bytes()).and_then(|()| client.try_read_answer("POST"));
                        match answer {
                            Ok(answer) if answer.status == 202 => {
                                acked.push(id);
                                acknowledged.fetch_add(1, Ordering::Relaxed);
                            }
                            // Refused or cut off, but only because of the end.
                            Ok(answer) => {
                                assert!(told_to_stop.load(Ordering::SeqCst));
                                answer.assert_error(503, "shutting down");
                                break;
                            }
                            Err(error) => {
                                assert!(told_to_stop.load(Ordering::SeqCst), "{error}");
                                break;
                            }
                        }
                    }
                    acked
                })
            })
            .collect();
        wait_for("some load", PATIENCE, || (acknowledged.load(Ordering::Relaxed) >= 200).then_some(()));
        told_to_stop.store(true, Ordering::SeqCst);
        let stopped = server.stop();
        let acked: Vec<String> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        (acked, stopped)
    });
    assert_eq!(stopped.code, Some(0));
    assert!(stopped.took < Duration::from_secs(4), "{:?}", stopped.took);
    let stored: Vec<String> = (0..3)
        .flat_map(|i| server.lines(&format!("load-{i}")))
        .map(|line| line["id"].as_str().unwrap().to_owned())
        .collect();
    let once: HashSet<_> = stored.iter().collect();
    assert_eq!(once.len(), stored.len(), "nothing is there twice");
    assert!(acked.len() >= 200);
    for id in &acked {
        assert!(once.contains(id), "{id} was acknowledged and is not there");
    }
    assert_eq!(server.data("rude"), b"");
    drop(rude);
}

/// Broken, an event that had arrived before the signal would go unanswered, and be sent again.
#[test]
fn a_request_that_was_sent_before_the_signal_is_answered() {
    for frozen in [false, true] {
        let mut server = TestServer::new();
        // Idle connections whose request arrives just before the signal, and new ones.
        let mut clients: Vec<Client> = (0..10).map(|_| server.connect()).collect();
        for client in &mut clients {
            assert_eq!(client.roundtrip(&Request::get("/health/live")).status, 200);
        }
        if frozen {
            // So that it finds requests and signal at the same time when it goes on.
            server.signal(Signal::STOP);
        }
        clients.extend((0..10).map(|_| server.connect()));
        for (i, client) in clients.iter_mut().enumerate() {
            client.send(Request::post("sent", format!("{{\"i\":{i}}}")).bytes());
        }
        server.signal(Signal::TERM);
        server.signal(Signal::CONT);
        let mut acked = Vec::new();
        for (i, client) in clients.iter_mut().enumerate() {
            let answer = client.read_answer("POST");
            if answer.status == 202 {
                acked.push(i as u64);
            } else {
                answer.assert_error(503, "shutting down");
            }
            assert!(client.is_closed_within(PATIENCE), "the connection ends with the answer");
        }
        assert_eq!(server.wait(PATIENCE).code, Some(0));
        let mut stored: Vec<_> = server.lines("sent").iter().map(|line| line["i"].as_u64().unwrap()).collect();
        stored.sort_unstable();
        assert_eq!(stored, acked, "202 and stored are the same");
    }
}

/// Broken, an append under way at the signal would be thrown away.
#[test]
fn an_append_that_waits_at_the_signal_is_finished_when_it_can_be() {
    let mut server = TestServer::builder().env("LEITSTAND_SHUTDOWN_TIMEOUT", "30").start();
    let lock = server.hold_lock("held");
    let mut waiting = waiting_request(&server, "held");
    server.signal(Signal::TERM);
    server.log_line("the signal is taken", |line| line["message"].as_str().unwrap().starts_with("stopping"));
    drop(lock);
    let answer = waiting.read_answer("POST");
    answer.assert_accepted();
    assert_eq!(answer.header("connection"), Some("close"));
    let stopped = server.wait(PATIENCE);
    assert_eq!(stopped.code, Some(0));
    assert!(stopped.took < Duration::from_secs(10), "no need to wait any longer: {:?}", stopped.took);
    assert_eq!(server.lines("held").len(), 1);
}

/// Broken, a lock held elsewhere would keep the service from stopping, or its client from an answer.
#[test]
fn a_lock_held_during_the_stop_is_503_shutting_down() {
    let mut server =
        TestServer::builder().env("LEITSTAND_SHUTDOWN_TIMEOUT", "2").env("LEITSTAND_LOCK_TIMEOUT", "600").start();
    let _lock = server.hold_lock("held");
    let mut waiting = waiting_request(&server, "held");
    server.signal(Signal::TERM);
    let answer = waiting.read_answer("POST");
    answer.assert_error(503, "shutting down");
    assert!(answer.number("retry-after") >= 1);
    let stopped = server.wait(PATIENCE);
    assert_eq!(stopped.code, Some(0));
    assert!(stopped.took < Duration::from_secs(4), "{:?}", stopped.took);
    assert_eq!(server.data("held"), b"");
}

/// Broken, new events would be taken while the service is on its way out.
#[test]
fn nobody_new_is_served_after_the_signal() {
    let mut server =
        TestServer::builder().env("LEITSTAND_SHUTDOWN_TIMEOUT", "30").env("LEITSTAND_LOCK_TIMEOUT", "600").start();
    let lock = server.hold_lock("held");
    let mut waiting = waiting_request(&server, "held");
    server.signal(Signal::TERM);
    let address = server.address().to_owned();
    wait_for("new connections are refused", PATIENCE, || std::net::TcpStream::connect(&address).err());
    drop(lock);
    waiting.read_answer("POST").assert_accepted();
    assert_eq!(server.wait(PATIENCE).code, Some(0));
}

/// Broken, "stop now" would wait, or end as a failure.
#[test]
fn a_shutdown_timeout_of_zero_is_at_once() {
    let mut server =
        TestServer::builder().env("LEITSTAND_SHUTDOWN_TIMEOUT", "0").env("LEITSTAND_LOCK_TIMEOUT", "600").start();
    let _lock = server.hold_lock("held");
    let _waiting = waiting_request(&server, "held");
    let _silent = server.connect();
    let stopped = server.stop();
    assert_eq!(stopped.code, Some(0));
    assert!(stopped.took < Duration::from_secs(2), "{:?}", stopped.took);
    assert_eq!(server.data("held"), b"");
}

/// Broken, an operator in a hurry would have to look up the process id.
#[test]
fn a_second_signal_ends_at_once() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::INT), (Signal::INT, Signal::TERM)] {
        let mut server =
            TestServer::builder().env("LEITSTAND_SHUTDOWN_TIMEOUT", "600").env("LEITSTAND_LOCK_TIMEOUT", "600").start();
        let _lock = server.hold_lock("held");
        let mut waiting = waiting_request(&server, "held");
        server.signal(first);
        server.log_line("the signal is taken", |line| line["message"].as_str().unwrap().starts_with("stopping"));
        assert!(waiting.is_silent_for(Duration::from_millis(500)), "one signal does not end it");
        server.signal(second);
        let stopped = server.wait(PATIENCE);
        assert_eq!(stopped.code, Some(0));
        assert!(stopped.took < Duration::from_secs(2), "{:?}", stopped.took);
        assert_eq!(server.data("held"), b"");
    }
}
