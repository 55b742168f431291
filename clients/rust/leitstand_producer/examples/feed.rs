//! Sends numbered events one by one, and prints the number of each that is safe: sent, or in the spool.
//! Settings come from the environment. The tests kill it at any point.
//!
//! ```text
//! LEITSTAND_SPOOL=/var/spool/feed cargo run --example feed -- example.com 0 1000
//! ```
//!
//! With `flush` instead of the numbers it delivers the spool again and again.

use std::io::Write as _;
use std::time::Duration;

use leitstand_producer::{Delivery, ProducerClient, ProducerError};
use serde::Serialize;

#[derive(Serialize)]
struct Event {
    event: &'static str,
    n: u64,
}

fn main() -> Result<(), ProducerError> {
    let mut arguments = std::env::args().skip(1);
    let domain = arguments.next().unwrap_or_else(|| "example.com".to_owned());
    let mut arguments = arguments.peekable();
    if arguments.peek().is_some_and(|word| word == "flush") {
        let client = ProducerClient::from_env().domain(domain).build()?;
        loop {
            // The service is away, or another process is at it: the next time.
            let _ = client.flush();
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let mut number = || arguments.next().and_then(|text| text.parse().ok());
    let (first, count) = (number().unwrap_or(0), number().unwrap_or(10));
    let client = ProducerClient::from_env().domain(domain).build()?;
    let mut out = std::io::stdout().lock();
    for n in first..first + count {
        let word = match client.deliver(&Event { event: "feed", n }) {
            Ok(Delivery::Sent) => "sent".to_owned(),
            Ok(Delivery::Spooled) => "spooled".to_owned(),
            Err(error) => format!("error {:?} {error}", error.written()),
        };
        // Nobody reads any more: then nobody wants to know.
        if writeln!(out, "{n} {word}").and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    Ok(())
}
