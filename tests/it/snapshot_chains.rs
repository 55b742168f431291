//! Many snapshots, each built on the one before: what they cost, and what they hold.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use leitstand::storage::snapshot::MANIFEST;
use leitstand::timestamp::rfc3339_s;

use crate::snapshot::{Place, files, line, names};

/// Broken, the manifest would grow with every snapshot of a chain, until nobody could read it, and so would the names.
#[test]
fn small_files_have_one_part_however_long_the_chain_is() {
    let place = Place::new();
    let domains = ["a", "b", "c", "still"];
    domains.iter().for_each(|domain| place.append(domain, 0..1));
    place.taken("s0", &[]);
    let bytes = |name: &str| fs::metadata(place.path(name).join(MANIFEST)).unwrap().len();
    for n in 1..=40u32 {
        domains[..3].iter().for_each(|domain| place.append(domain, n..n + 1));
        place.taken(&format!("s{n}"), &["--base", &format!("s{}", n - 1)]);
    }
    assert_eq!(names(&place.path("s40")), names(&place.path("s0")));
    assert!(bytes("s40") <= bytes("s1") + 32, "{} and {}", bytes("s1"), bytes("s40"));
    assert_eq!(place.found("s40"), (vec![], Some(0)));
    assert_eq!(place.restored("s40", "r"), files(&place.data()));
    // The bases may go.
    (0..40).for_each(|n| fs::remove_dir_all(place.path(&format!("s{n}"))).unwrap());
    assert_eq!(place.restored("s40", "r2"), files(&place.data()));
}

fn filler(bytes: usize, mark: u32) -> Vec<u8> {
    let line = format!("{{\"n\":\"{mark:08}\",\"domain\":\"big\",\"pad\":\"{}\"}}\n", "x".repeat(1000));
    line.repeat(bytes / line.len() + 1).into_bytes()
}

/// Broken, a large file would be copied again and again, or be in as many parts as there were snapshots.
#[test]
fn a_large_file_has_few_parts_and_keeps_its_first() {
    let place = Place::new();
    place.append_raw("big", &filler(4 << 20, 0));
    place.taken("s0", &[]);
    let mut held = vec![files(&place.data())];
    let ino = |name: &str| fs::metadata(place.path(name).join("big.jsonl")).unwrap().ino();
    let mut copied = 0;
    for n in 1..=30u32 {
        place.append_raw("big", &filler(100 << 10, n));
        let said = place.taken(&format!("s{n}"), &["--base", &format!("s{}", n - 1)]);
        copied += said["copied_bytes"].as_u64().unwrap();
        held.push(files(&place.data()));
        assert_eq!(ino(&format!("s{n}")), ino("s0"), "linked");
        let parts = names(&place.path(&format!("s{n}"))).len() - 2;
        assert!(parts <= 7, "{parts} parts after {n}");
    }
    assert!(copied < 4 * ((30 * 101) << 10), "each byte a few times: {copied}");
    for n in [1, 2, 3, 7, 15, 16, 29, 30] {
        assert_eq!(place.found(&format!("s{n}")).0, vec![] as Vec<(String, String)>, "{n}");
        assert_eq!(place.restored(&format!("s{n}"), &format!("r{n}")), held[n], "{n}");
    }
}

/// Broken, what somebody changed in the middle would stand under a hash that it has not, and no restore would take it.
#[test]
fn what_was_changed_in_parts_that_become_one_is_copied_in_full() {
    let place = Place::new();
    place.append_raw("big", &filler(1 << 20, 0));
    place.taken("s0", &[]);
    place.append_raw("big", &filler(200 << 10, 1));
    place.taken("s1", &["--base", "s0"]);
    assert!(place.path("s1/big.jsonl.000001").exists());
    let source = OpenOptions::new().write(true).open(place.data().join("big.jsonl")).unwrap();
    source.write_all_at(b"7", (1 << 20) + 5000).unwrap();
    place.append_raw("big", &filler(250 << 10, 2));
    let said = place.taken("s2", &["--base", "s1"]);
    assert_eq!(said["copied_bytes"], said["bytes"]);
    assert_eq!(place.found("s2").0, vec![] as Vec<(String, String)>);
    assert_eq!(place.restored("s2", "r"), files(&place.data()));
}

/// As if the base had been begun a while after the last change of its files.
fn rested(place: &Place, base: &str) {
    let later = SystemTime::now() + Duration::from_secs(60);
    place.forge(base, |m| m["created"] = json!(rfc3339_s(later)));
}

/// Broken, a file in which nothing happens would cost as much as one in which something does.
#[test]
fn an_unchanged_file_is_linked_without_being_opened() {
    let place = Place::filled();
    place.taken("s0", &[]);
    rested(&place, "s0");
    // Whoever opens a file takes its lock before.
    let locks: Vec<File> = ["a", "b.example"]
        .iter()
        .map(|domain| {
            let lock = File::create(place.data().join(format!("{domain}.jsonl.lock"))).unwrap();
            flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
            lock
        })
        .collect();
    let said = place.taken("s1", &["--base", "s0", "--lock-timeout", "0"]);
    assert_eq!(said["copied_bytes"], 0);
    assert_eq!(place.found("s1"), (vec![], Some(0)));
    // It holds for the next one too, though the file did not change since the first.
    rested(&place, "s1");
    place.taken("s2", &["--base", "s1", "--lock-timeout", "0"]);
    assert_eq!(place.manifest("s2")["files"], place.manifest("s0")["files"]);
    // One that changed shortly before its base is looked at.
    let refused = place.snapshot("s3", &["--base", "s2", "--lock-timeout", "0"]);
    assert!(refused.stderr.contains("locked by another process"), "{refused:?}");
    drop(locks);
    // The same length, and other bytes.
    let path = place.data().join("a.jsonl");
    let other = fs::read_to_string(&path).unwrap().replace("\"id\":1", "\"id\":7");
    fs::write(&path, other).unwrap();
    rested(&place, "s2");
    let said = place.taken("s3", &["--base", "s2"]);
    assert_eq!(said["copied_bytes"], fs::metadata(&path).unwrap().len());
    assert_eq!(place.restored("s3", "r"), files(&place.data()));
}

/// Broken, a domain would come back as sound, or as poisoned, because its file did not change.
#[test]
fn an_unchanged_file_may_have_been_poisoned_since() {
    let place = Place::filled();
    place.taken("s0", &[]);
    rested(&place, "s0");
    fs::create_dir(place.data().join(".torn")).unwrap();
    fs::write(place.data().join(".torn/a.jsonl.poisoned"), "reason=sync\n").unwrap();
    assert_eq!(place.taken("s1", &["--base", "s0"])["poisoned"], json!([{"file": "a.jsonl", "reason": "sync"}]));
    assert_eq!(place.found("s1"), (vec![], Some(0)));
    rested(&place, "s1");
    fs::remove_file(place.data().join(".torn/a.jsonl.poisoned")).unwrap();
    assert_eq!(place.taken("s2", &["--base", "s1"])["poisoned"], json!([]));
}

/// Broken, a part that somebody wrote to, or took away, would be linked into every later snapshot.
#[test]
fn a_base_is_looked_at_also_where_nothing_changed() {
    let place = Place::filled();
    place.taken("s0", &[]);
    rested(&place, "s0");
    let part = place.path("s0/a.jsonl");
    let good = fs::read(&part).unwrap();
    OpenOptions::new().write(true).open(&part).unwrap().write_all_at(b"X", 3).unwrap();
    let refused = place.snapshot("s1", &["--base", "s0"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("a.jsonl does not end as"), "{refused:?}");
    fs::write(&part, &good[1..]).unwrap();
    let refused = place.snapshot("s1", &["--base", "s0"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("should have"), "{refused:?}");
    fs::remove_file(&part).unwrap();
    let refused = place.snapshot("s1", &["--base", "s0"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("missing"), "{refused:?}");
    assert_eq!(place.names(), ["s0"]);
}

/// Makes of a snapshot one as the first version wrote it.
fn as_version_1(place: &Place, name: &str) {
    let mut manifest = place.manifest(name);
    manifest["version"] = json!(1);
    manifest.as_object_mut().unwrap().remove("head_sha256");
    for file in manifest["files"].as_array_mut().unwrap() {
        file["source"].as_object_mut().unwrap().remove("changed_ns");
        let defaults = json!({"torn_tail_bytes": 0, "poisoned": null, "hash_state": null, "piece_states": []});
        for (key, value) in defaults.as_object().unwrap() {
            if file[key].is_null() {
                file[key] = value.clone();
            }
        }
    }
    fs::write(place.path(name).join(MANIFEST), serde_json::to_string_pretty(&manifest).unwrap() + "\n").unwrap();
    place.sign(name);
}

/// Broken, nobody could restore what was backed up before the last update.
#[test]
fn snapshots_of_version_1_are_read_and_built_upon() {
    let place = Place::filled();
    fs::create_dir(place.path("all")).unwrap();
    place.taken("all/s0", &[]);
    place.append("b.example", 40_000..40_010);
    place.taken("all/s1", &["--base", "all/s0"]);
    for name in ["all/s0", "all/s1"] {
        as_version_1(&place, name);
        assert_eq!(place.found(name), (vec![], Some(0)));
    }
    let held = files(&place.data());
    assert_eq!(place.restored("all/s1", "r1"), held);
    let args = ["restore", "--from", "all", "--until", "2099-01-01T00:00:00Z", "--to", "r2"];
    assert_eq!(place.leitstand(&args).code, Some(0));
    assert_eq!(files(&place.path("r2")), held);
    let against = place.leitstand(&["verify", "--data-dir", "data", "--manifest", "all/s1/manifest.json"]);
    assert_eq!(against.code, Some(0), "{against:?}");
    place.append("a", 3..5);
    let said = place.taken("all/s2", &["--base", "all/s1"]);
    assert!(said["copied_bytes"].as_u64().unwrap() < 1000, "{said}");
    assert_eq!(place.manifest("all/s2")["version"], 2);
    assert_eq!(place.restored("all/s2", "r3"), files(&place.data()));
    // A chain of many parts becomes a short one.
    let many: Vec<Vec<u8>> = (0..30u32).map(|n| line("many", n).into_bytes()).collect();
    place.append_raw("many", &many.concat());
    place.taken("long", &[]);
    place.forge("long", |m| {
        let file = m["files"].as_array_mut().unwrap().iter_mut().find(|file| file["name"] == "many.jsonl").unwrap();
        let part = |(n, bytes): (usize, &Vec<u8>)| {
            let name = if n == 0 { "many.jsonl".to_owned() } else { format!("many.jsonl.{n:06}") };
            fs::write(place.path("long").join(&name), bytes).unwrap();
            let sha = crate::snapshot::hex(&<sha2::Sha256 as sha2::Digest>::digest(bytes));
            json!({"name": name, "bytes": bytes.len(), "sha256": sha})
        };
        file["segments"] = many.iter().enumerate().map(part).collect();
    });
    as_version_1(&place, "long");
    assert_eq!(place.found("long"), (vec![], Some(0)));
    place.taken("short", &["--base", "long"]);
    assert!(!place.path("short/many.jsonl.000001").exists());
    assert_eq!(place.restored("short", "r4"), files(&place.data()));
}

/// Broken, a restore to a time would read the manifests of all snapshots that there are, in the middle of a disaster.
#[test]
fn a_date_is_told_by_the_first_line_alone() {
    let place = Place::new();
    fs::create_dir(place.path("all")).unwrap();
    let mut held: BTreeMap<&str, _> = BTreeMap::new();
    for (number, day) in [("1", "01"), ("2", "02"), ("3", "03"), ("4", "04")] {
        place.append("a", 0..1);
        let name = format!("all/s{number}");
        place.taken(&name, &[]);
        place.forge(&name, |manifest| manifest["created"] = json!(format!("2026-11-{day}T12:00:00Z")));
        held.insert(number, files(&place.data()));
    }
    let spoil = |name: &str, from: &str, to: &str| {
        let path = place.path(name).join(MANIFEST);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
    };
    let until = |time: &str, to: &str| {
        let args = ["restore", "--from", "all", "--until", time, "--to", to, "--json"];
        let finished = place.leitstand(&args);
        let said: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {finished:?}"));
        (said["from"].clone(), said["damaged"].clone())
    };
    // An older and a newer one than what is asked for: their files are nobody's business.
    spoil("all/s1", "\"lines\":", "\"LINES\":");
    spoil("all/s4", "\"lines\":", "\"LINES\":");
    assert_eq!(until("2026-11-03T12:00:00Z", "r1"), (json!("all/s3"), json!([])));
    assert_eq!(files(&place.path("r1")), held["3"]);
    // The one that is chosen is looked at whole.
    assert_eq!(until("2026-11-09T12:00:00Z", "r2"), (json!("all/s3"), json!(["all/s4"])));
    // A date that is not what it was is none.
    spoil("all/s3", "2026-11-03", "2036-11-03");
    assert_eq!(until("2026-11-03T12:00:00Z", "r3"), (json!("all/s2"), json!(["all/s3"])));
    assert_eq!(files(&place.path("r3")), held["2"]);
}
