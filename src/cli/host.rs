//! What a reader of a report or of a bundle wants to know of the machine. What cannot be found out is left out.

use std::fs;
use std::path::Path;

use rustix::fs::statvfs;

/// Names and values, in the order of the report. `dir` is on the file system that is told of.
pub(super) fn facts(dir: &Path) -> Vec<(&'static str, String)> {
    let processors = std::thread::available_parallelism().ok().map(|n| n.to_string());
    let facts = [
        ("host", line("/proc/sys/kernel/hostname")),
        ("kernel", line("/proc/sys/kernel/osrelease").map(|release| format!("Linux {release}"))),
        ("processor", field("/proc/cpuinfo", "model name")),
        ("processors", processors),
        ("memory", field("/proc/meminfo", "MemTotal").and_then(|text| memory(&text))),
        ("file system", file_system(dir)),
        ("free space", statvfs(dir).ok().map(|stat| bytes(stat.f_bavail * stat.f_frsize))),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// "96 bytes", "1.5 MiB".
pub(super) fn bytes(n: u64) -> String {
    for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if n >> shift > 0 {
            return format!("{:.1} {unit}", n as f64 / (1u64 << shift) as f64);
        }
    }
    format!("{n} bytes")
}

fn line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn field(path: &str, name: &str) -> Option<String> {
    fs::read_to_string(path).ok()?.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

fn memory(text: &str) -> Option<String> {
    let kib: u64 = text.strip_suffix(" kB")?.parse().ok()?;
    Some(bytes(kib << 10))
}

/// Type of the mount that holds `dir`: the longest mount point that is above it, the last one of equals.
fn file_system(dir: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let above = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (point, kind) = (words.next()?, words.next()?);
        dir.starts_with(point).then_some((point.len(), kind))
    });
    above.max_by_key(|(length, _)| *length).map(|(_, kind)| kind.to_owned())
}
