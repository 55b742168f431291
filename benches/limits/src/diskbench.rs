//! What the disk alone allows: one thread appends to one file, and syncs after every append.
//!
//! `diskbench DIR BYTES SECONDS` prints one JSON object. The time of one turn is write and
//! `fdatasync` together.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, bytes, seconds] = &args[..] else { panic!("usage: diskbench DIR BYTES SECONDS") };
    let bytes: usize = bytes.parse().expect("BYTES is a whole number");
    let length = Duration::from_secs_f64(seconds.parse().expect("SECONDS is a number"));
    let path = PathBuf::from(dir).join("diskbench.jsonl");
    let mut file = OpenOptions::new().create_new(true).append(true).open(&path).expect("a new file in DIR");
    let mut line = vec![b'x'; bytes];
    *line.last_mut().expect("BYTES is at least 1") = b'\n';

    // The first turns make the file and its first blocks; they are not counted.
    for _ in 0..3 {
        file.write_all(&line).and_then(|()| file.sync_all()).expect("an append");
    }
    let mut turns_us = Vec::new();
    let began = Instant::now();
    while began.elapsed() < length {
        let turn = Instant::now();
        file.write_all(&line).expect("an append");
        file.sync_data().expect("a sync");
        turns_us.push(turn.elapsed().as_secs_f64() * 1e6);
    }
    let seconds = began.elapsed().as_secs_f64();
    fs::remove_file(&path).expect("to remove the file");

    turns_us.sort_by(f64::total_cmp);
    let count = turns_us.len();
    let at = |share: f64| turns_us[((count as f64 * share) as usize).min(count - 1)];
    println!(
        "{{\"turns\":{count},\"seconds\":{seconds:.3},\"bytes\":{},\"p50_us\":{:.1},\"p99_us\":{:.1},\"max_us\":{:.1}}}",
        count * bytes,
        at(0.5),
        at(0.99),
        at(1.0)
    );
}
