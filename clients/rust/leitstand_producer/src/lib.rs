//! Sends JSON events to a leitstand service.
//!
//! ```no_run
//! use leitstand_producer::ProducerClient;
//! use serde::Serialize;
//!
//! #[derive(Serialize)]
//! struct Reading {
//!     domain: &'static str,
//!     celsius: f64,
//! }
//!
//! # fn main() -> Result<(), leitstand_producer::ProducerError> {
//! // The token comes from LEITSTAND_TOKEN.
//! let client = ProducerClient::new("http://localhost:8788");
//! client.send_one(&Reading { domain: "example.com", celsius: 21.5 })?;
//! client.send_iter((0..10_000).map(|n| Reading { domain: "example.com", celsius: f64::from(n) }))?;
//! # Ok(())
//! # }
//! ```
//!
//! # What `Ok` means
//!
//! Without a spool: the service has answered that every event is written. With a spool
//! ([`ProducerBuilder::spool`]): every event is either written there or synced to the spool on this
//! machine. [`deliver`](ProducerClient::deliver) tells the two apart.
//!
//! # What an error means
//!
//! [`ProducerError`] says what the service answered, whether another try may help, whether events of
//! the failed request may have been written all the same ([`Written::Maybe`]), and how far a feed had
//! come. What is tried again, and what may double, is in the README of this crate.
//!
//! # Threads
//!
//! A client starts one thread with its first call; all clones share it and its connections. With a spool it
//! has up to 128 more while so many calls wait for the disk, and one for a name lookup. So the blocking
//! functions work everywhere, inside an async runtime too (where they block the caller), and the async
//! functions need no particular executor. Where the system gives no thread, a call is an error, or its event is
//! spooled. After a fork the child has threads, connections and locks of its own.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod answer;
mod attempt;
mod batch;
#[cfg(feature = "blocking")]
mod blocking;
mod client;
mod connection;
mod delivery;
mod drain;
mod error;
mod exact;
mod form;
mod lookup;
mod settings;
mod spool;
#[cfg(feature = "async")]
mod streaming;
mod tally;
mod threads;
#[cfg(feature = "tls")]
mod tls;
mod wish;

pub use client::{Delivery, FlushReport, ProducerClient, Summary};
pub use error::{HttpError, JsonError, Kind, ProducerError, Written};
pub use settings::ProducerBuilder;
