//! Sends one event, and then a few. Works against `make dev` with `LEITSTAND_TOKEN=dev`.
//!
//! ```text
//! LEITSTAND_TOKEN=dev cargo run --example send
//! ```

use leitstand_producer::{ProducerClient, ProducerError};
use serde::Serialize;

#[derive(Serialize)]
struct Event {
    event: &'static str,
    status: &'static str,
    n: u32,
}

fn main() -> Result<(), ProducerError> {
    // The address comes from LEITSTAND_URL or is http://localhost:8788, the token from LEITSTAND_TOKEN.
    let client = ProducerClient::from_env().domain("example.com").build()?;
    client.send_one(&Event { event: "demo", status: "ok", n: 0 })?;
    client.send_iter((1..=3).map(|n| Event { event: "demo", status: "ok", n }))?;
    println!("4 events are written");
    Ok(())
}
