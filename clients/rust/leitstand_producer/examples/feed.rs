//! Sends numbered events one by one, and prints the number of each that is safe: sent, or in the spool.
//! Settings come from the environment. The tests kill it at any point.
//!
//! ```text
//! LEITSTAND_SPOOL=/var/spool/feed cargo run --example feed -- example.com 0 1000
//! ```

use std::io::Write as _;

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
