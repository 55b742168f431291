//! The load of a drill: clients that post numbered events and remember when each was acknowledged.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::service;
use crate::timestamp::rfc3339_ms;

/// Pause after an answer that says "later"; nothing was written then.
const PAUSE: Duration = Duration::from_millis(20);

/// What the clients do.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Stands in every event, so that no other drill's can be taken for ours.
    pub(super) run: String,
    pub(super) clients: usize,
    pub(super) domains: Vec<String>,
    /// Length that events are filled up to.
    pub(super) event_bytes: usize,
}

/// When each event was acknowledged, counted from the begin of the drill: `acks[client][domain][n - 1]`.
/// Event `n + 1` of a client and a domain is sent only after the ack of `n`.
pub(super) type Acks = Vec<Vec<Vec<Duration>>>;

/// Running clients.
pub(super) struct Load {
    clients: Vec<JoinHandle<Vec<Vec<Duration>>>>,
    shared: Arc<Shared>,
}

struct Shared {
    plan: Plan,
    token: String,
    origin: Instant,
    /// The service is about to be killed: from here on a broken connection is no fault.
    kill_near: AtomicBool,
    acknowledged: AtomicU64,
    fault: Mutex<Option<String>>,
}

impl Load {
    /// Starts the clients. Times are counted from `origin`.
    pub(super) fn start(plan: Plan, token: String, origin: Instant) -> std::io::Result<Load> {
        let numbers = 0..plan.clients;
        let shared = Arc::new(Shared {
            plan,
            token,
            origin,
            kill_near: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            fault: Mutex::new(None),
        });
        let spawn = |number| {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("client-{number}")).spawn(move || client(&shared, number))
        };
        let clients = numbers.map(spawn).collect::<Result<_, _>>()?;
        Ok(Load { clients, shared })
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// What went wrong before the kill.
    pub(super) fn fault(&self) -> Option<String> {
        self.shared.fault.lock().expect("no client panics with the lock").clone()
    }

    /// To be called right before the kill.
    pub(super) fn expect_kill(&self) {
        self.shared.kill_near.store(true, Ordering::SeqCst);
    }

    /// Waits for the clients, whose service is gone.
    pub(super) fn join(self) -> Acks {
        self.clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect()
    }
}

fn client(shared: &Shared, number: usize) -> Vec<Vec<Duration>> {
    let mut acks = vec![Vec::new(); shared.plan.domains.len()];
    if let Err(fault) = post_until_killed(shared, number, &mut acks)
        && !shared.kill_near.load(Ordering::SeqCst)
    {
        shared.fault.lock().expect("no client panics with the lock").get_or_insert(fault);
    }
    acks
}

/// Ends with an error only, which is what is wanted after the kill.
fn post_until_killed(shared: &Shared, client: usize, acks: &mut [Vec<Duration>]) -> Result<(), String> {
    let broken = |e: std::io::Error| format!("a client lost the service before the kill: {e}");
    let mut connection = service::connect().map_err(broken)?;
    let headers = [("X-Auth", shared.token.as_str()), ("Content-Type", "application/json")];
    let paths: Vec<String> = shared.plan.domains.iter().map(|domain| format!("/v1/ingest?domain={domain}")).collect();
    loop {
        for (path, acks) in paths.iter().zip(acks.iter_mut()) {
            let event = event(&shared.plan, client, acks.len() as u64 + 1);
            loop {
                let answer = connection.request("POST", path, &headers, event.as_bytes()).map_err(broken)?;
                match answer.status {
                    202 => break,
                    // Nothing was written, so the same number goes out again.
                    503 | 507 => std::thread::sleep(PAUSE),
                    status => return Err(format!("the service answered {status} to the load: {}", answer.text())),
                }
            }
            acks.push(shared.origin.elapsed());
            shared.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn event(plan: &Plan, client: usize, n: u64) -> String {
    let (run, sent_at) = (&plan.run, rfc3339_ms(SystemTime::now()));
    let bare = format!("{{\"drill\":\"{run}\",\"client\":{client},\"n\":{n},\"sent_at\":\"{sent_at}\"");
    let around = bare.len() + r#","pad":""}"#.len();
    match plan.event_bytes.saturating_sub(around) {
        0 => format!("{bare}}}"),
        pad => format!("{bare},\"pad\":\"{}\"}}", "x".repeat(pad)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, the load would be of another size than was asked for, or no JSON.
    #[test]
    fn events_have_the_length_that_was_asked_for() {
        for event_bytes in [0, 200, 4096] {
            let plan = Plan { run: "r".to_owned(), clients: 1, domains: Vec::new(), event_bytes };
            let event = event(&plan, 3, 17);
            let value: serde_json::Value = serde_json::from_str(&event).unwrap();
            assert_eq!((&value["client"], &value["n"]), (&3.into(), &17.into()));
            assert!(event_bytes == 0 || event.len() == event_bytes, "{}", event.len());
        }
    }
}
