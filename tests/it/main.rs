//! The service from outside: the real binary, real sockets, real files.
//!
//! One binary, so that it links once. Each file mirrors a module of `src`; `support` starts servers
//! and speaks HTTP byte by byte. No test sleeps to wait for something: it asks until a deadline.

mod support;

mod admin;
mod auth;
mod cli;
mod clients;
mod config;
mod config_check;
mod crashdisk;
mod data_directory;
mod disk;
mod doctor;
mod drill;
mod errors;
mod failed_sync;
mod faulty;
mod framing;
mod fuzz_corpus;
mod handover;
mod heartbeat;
mod holes;
mod ingest;
mod leaving;
mod limits;
mod logs;
mod model;
mod mounted;
mod odd_files;
mod ops;
mod plain;
mod poison_marks;
mod power_cut;
mod producer;
mod repair;
mod shared_file;
mod shutdown;
mod slow_disk;
mod snapshot;
mod snapshot_chains;
mod snapshot_leftovers;
mod snapshot_names;
mod start;
mod stats;
mod storage;
mod strangers;
mod threads;
mod tidy;
mod tokens;
mod torn_copies;
mod verify;
mod writeback;
mod writeback_disk;
