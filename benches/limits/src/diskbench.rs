//! What the disk alone allows: each thread appends to a file of its own, and syncs after every append.
//!
//! `diskbench DIR BYTES SECONDS [THREADS]` prints one JSON object. The time of one turn is write and
//! `fdatasync` together. Without THREADS there is one.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (dir, bytes, seconds, threads) = match &args[1..] {
        [dir, bytes, seconds] => (dir, bytes, seconds, 1),
        [dir, bytes, seconds, threads] => (dir, bytes, seconds, threads.parse().expect("THREADS is a whole number")),
        _ => panic!("usage: diskbench DIR BYTES SECONDS [THREADS]"),
    };
    let bytes: usize = bytes.parse().expect("BYTES is a whole number");
    let length = Duration::from_secs_f64(seconds.parse().expect("SECONDS is a number"));
    let paths: Vec<PathBuf> = (0..threads).map(|n| PathBuf::from(dir).join(format!("diskbench-{n}.jsonl"))).collect();

    let began = Instant::now();
    let mut turns_us: Vec<f64> = thread::scope(|scope| {
        let turns: Vec<_> = paths.iter().map(|path| scope.spawn(move || turns_us(path, bytes, length))).collect();
        turns.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    let seconds = began.elapsed().as_secs_f64();
    paths.iter().for_each(|path| fs::remove_file(path).expect("to remove the file"));

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

fn turns_us(path: &Path, bytes: usize, length: Duration) -> Vec<f64> {
    let mut file = OpenOptions::new().create_new(true).append(true).open(path).expect("a new file in DIR");
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
    turns_us
}
