//! How many events a second go through `send_iter`: to a running service, in one feed.
//!
//! ```text
//! cargo run --release --example throughput -- http://127.0.0.1:8788 1000000
//! ```

use std::time::Instant;

use leitstand_producer::{ProducerClient, ProducerError};
use serde::Serialize;

#[derive(Serialize)]
struct Event {
    event: &'static str,
    status: &'static str,
    source: &'static str,
    n: u64,
}

fn main() -> Result<(), ProducerError> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "http://localhost:8788".to_owned());
    let events: u64 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let gzip = arguments.next().as_deref() == Some("gzip");
    let client = ProducerClient::builder(url).domain("throughput.example").gzip(gzip).build()?;
    let event = |n| Event { event: "throughput", status: "ok", source: "loopback", n };
    // The connection and the file are there before it counts.
    client.send_one(&event(0))?;
    let began = Instant::now();
    client.send_iter((1..=events).map(event))?;
    let seconds = began.elapsed().as_secs_f64();
    println!("{events} events in {seconds:.2} s: {:.0} events/s", events as f64 / seconds);
    Ok(())
}
