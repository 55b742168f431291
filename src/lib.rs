//! leitstand: HTTP ingest of JSON events into one append-only JSONL file per domain.
//!
//! One event takes one straight line through these modules, in this order:
//!
//! * [`http`] reads a request and picks the handler;
//! * [`domain`] makes a checked name of a text;
//! * [`event`] makes a checked batch of a body, as the exact bytes to append;
//! * [`storage`] makes them durable, and only then the request is answered;
//! * [`config`], [`rate`], [`token`] and [`metrics`] say how, how often, who, and how much;
//! * [`cli`] wires it all to a command line.
//!
//! Who may import whom is in `docs/architecture.md`; `tests/it/tidy.rs` watches it.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod domain;
pub mod event;
mod giving_way;
pub mod http;
mod json;
mod lane;
pub mod metrics;
pub mod patterns;
pub mod rate;
mod replace;
mod rng;
pub mod storage;
pub mod timestamp;
pub mod token;
