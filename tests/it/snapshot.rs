//! `leitstand snapshot`, `restore` and `verify --snapshot`: what goes in comes out, and whatever is
//! wrong is told and changes nothing.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use proptest::prelude::*;
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use leitstand::storage::RealDisk;
use leitstand::storage::snapshot::{
    MANIFEST, MANIFEST_SHA256, Manifest, RestoreOptions, SnapshotOptions, check, continues, restore, snapshot,
};

use crate::support::{
    Finished, Mounted, PATIENCE, Request, TOKEN, TestServer, command, run, skip, wait_exit, wait_for,
};

/// Stands in every payload; nothing that a command prints, and no manifest, may hold it.
pub(crate) const CANARY: &str = "payload-canary";

/// A directory for backups with a data directory in it.
pub(crate) struct Place {
    pub(crate) dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(place.data()).unwrap();
        place
    }

    /// With a few domains of every kind.
    pub(crate) fn filled() -> Place {
        let place = Place::new();
        for (domain, lines) in [("a", 3), ("b.example", 40_000), ("empty", 0)] {
            place.append(domain, 0..lines);
        }
        place
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn append(&self, domain: &str, ids: std::ops::Range<u32>) {
        let text: String = ids.map(|id| line(domain, id)).collect();
        self.append_raw(domain, text.as_bytes());
    }

    pub(crate) fn append_raw(&self, domain: &str, bytes: &[u8]) {
        let path = self.data().join(format!("{domain}.jsonl"));
        OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(bytes).unwrap();
    }

    pub(crate) fn leitstand(&self, args: &[&str]) -> Finished {
        let finished = run(command(self.dir.path(), args).env("LEITSTAND_DISK_RESERVE", "0"));
        for said in [&finished.stdout, &finished.stderr] {
            assert!(!said.contains(CANARY), "a payload is shown: {said}");
        }
        finished
    }

    pub(crate) fn snapshot(&self, to: &str, more: &[&str]) -> Finished {
        self.leitstand(&[&["snapshot", "--data-dir", "data", "--to", to], more].concat())
    }

    /// One that must succeed; gives what it says of itself.
    #[track_caller]
    pub(crate) fn taken(&self, to: &str, more: &[&str]) -> Value {
        let finished = self.snapshot(to, &[&["--json"], more].concat());
        assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{finished:?}");
        let manifest = fs::read_to_string(self.path(to).join(MANIFEST)).unwrap();
        assert!(!manifest.contains(CANARY) && !manifest.contains(&hex(CANARY.as_bytes())), "a payload in the manifest");
        serde_json::from_str(&finished.stdout).unwrap()
    }

    #[track_caller]
    pub(crate) fn restored(&self, from: &str, to: &str) -> BTreeMap<String, Vec<u8>> {
        let finished = self.leitstand(&["restore", "--from", from, "--to", to]);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        files(&self.path(to))
    }

    /// The findings of `verify --snapshot`, as kind and file.
    pub(crate) fn found(&self, name: &str) -> (Vec<(String, String)>, Option<i32>) {
        let finished = self.leitstand(&["verify", "--json", "--snapshot", name]);
        let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {finished:?}"));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let findings = report["findings"].as_array().unwrap_or_else(|| panic!("{finished:?}"));
        (findings.iter().map(|f| (text(&f["kind"]), text(&f["file"]))).collect(), finished.code)
    }

    /// What lies beside the data directory.
    pub(crate) fn names(&self) -> Vec<String> {
        names(self.dir.path()).into_iter().filter(|name| name != "data" && name != ".snapshot.lock").collect()
    }

    /// Makes the hash beside the manifest right again.
    pub(crate) fn sign(&self, name: &str) {
        let sha = hex(&Sha256::digest(fs::read(self.path(name).join(MANIFEST)).unwrap()));
        fs::write(self.path(name).join(MANIFEST_SHA256), format!("{sha}  {MANIFEST}\n")).unwrap();
    }

    /// Changes the manifest, with its hash.
    pub(crate) fn forge(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut manifest = self.manifest(name);
        change(&mut manifest);
        fs::write(self.path(name).join(MANIFEST), manifest_text(&manifest)).unwrap();
        self.sign(name);
    }

    /// The manifest, with all parts, also where a file is its own only one.
    pub(crate) fn manifest(&self, name: &str) -> Value {
        let text = fs::read(self.path(name).join(MANIFEST)).unwrap();
        let mut manifest: Value = serde_json::from_slice(&text).unwrap();
        for file in manifest["files"].as_array_mut().unwrap() {
            if file["segments"].is_null() {
                file["segments"] = json!([{"name": file["name"], "bytes": file["bytes"], "sha256": file["sha256"]}]);
            }
        }
        manifest
    }
}

/// The text of a manifest: a line for the head, which vouches for itself, one for each file, one for the rest.
pub(crate) fn manifest_text(manifest: &Value) -> String {
    let (Some(all), Some(files)) = (manifest.as_object(), manifest["files"].as_array()) else {
        return manifest.to_string();
    };
    let of = |names: &[&str]| {
        let named = all.iter().filter(|(name, _)| names.contains(&name.as_str()));
        Value::Object(named.map(|(name, value)| (name.clone(), value.clone())).collect()).to_string()
    };
    let head = of(&["format", "version", "id", "created", "tool", "data_dir", "base", "base_sha256"]);
    let head = head.strip_suffix('}').unwrap();
    let sha = hex(&Sha256::digest(head));
    let files: Vec<String> = files.iter().map(Value::to_string).collect();
    let foot = of(&["tokens", "skipped", "totals"]);
    format!("{head},\"head_sha256\":\"{sha}\",\"files\":[\n{}\n],{}\n", files.join(",\n"), &foot[1..])
}

pub(crate) fn line(domain: &str, id: u32) -> String {
    format!("{{\"id\":{id},\"p\":\"{CANARY}\",\"domain\":\"{domain}\"}}\n")
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Every data file with its bytes.
pub(crate) fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = names(dir).into_iter().filter(|name| name.ends_with(".jsonl"));
    names.map(|name| (name.clone(), fs::read(dir.join(&name)).unwrap())).collect()
}

/// Refused with this exit code, these words, and nothing left behind.
#[track_caller]
pub(crate) fn assert_refused(place: &Place, finished: &Finished, code: i32, words: &[&str], left: &[&str]) {
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(code), ""), "{finished:?}");
    assert_eq!(finished.errors().lines().count(), 1, "one line: {finished:?}");
    for word in words {
        assert!(finished.errors().contains(word), "{word:?} is not in {finished:?}");
    }
    assert_eq!(place.names(), left, "{finished:?}");
}

/// Broken, a backup would not be what was backed up.
#[test]
fn what_is_restored_is_what_was_there() {
    let place = Place::filled();
    // 253 characters: the name of the file is shortened, and so is that of its mark.
    let long = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
    let long_name = leitstand::storage::FileNames::of(&leitstand::domain::Domain::parse(&long).unwrap()).data;
    fs::write(place.data().join(&long_name), line(&long, 1)).unwrap();
    place.append_raw("whole", b"{\"id\":1,\"domain\":\"whole\"}\n{\"id\":2,\"domain\":\"whole\"}");
    let before = files(&place.data());
    let said = place.taken("s", &[]);
    let bytes: u64 = before.values().map(|bytes| bytes.len() as u64).sum();
    assert_eq!((&said["files"], &said["bytes"], &said["lines"]), (&json!(5), &json!(bytes), &json!(40_006)));
    assert_eq!(place.restored("s", "r"), before);
    assert_eq!(names(&place.path("r")), before.keys().cloned().collect::<Vec<_>>(), "and nothing else");
    assert_eq!(files(&place.path("s")), before, "a full snapshot is the files themselves");
    let alias = place.leitstand(&["--restore", "s", "--target", "r2"]);
    assert_eq!((alias.code, files(&place.path("r2"))), (Some(0), before.clone()), "{alias:?}");
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    for dir in ["s", "r"] {
        assert_eq!(mode(&place.path(dir)), 0o700);
        assert_eq!(mode(&place.path(dir).join("a.jsonl")), 0o600);
    }
    let sums = Command::new("sha256sum").args(["-c", MANIFEST_SHA256]).current_dir(place.path("s")).output().unwrap();
    assert!(sums.status.success(), "{sums:?}");
    assert_eq!(files(&place.data()), before);
    assert_eq!(names(&place.data()).len(), 5, "nothing is created in the data directory");
    // An unended line is told, as it is of a data directory.
    assert_eq!(place.found("s"), (vec![("missing_newline".into(), "whole.jsonl".into())], Some(1)));
}

/// Broken, half a line would be restored, or a doubt about a file would be forgotten.
#[test]
fn torn_tails_are_left_out_and_poison_stays() {
    let place = Place::filled();
    let before = files(&place.data());
    place.append_raw("a", b"{\"id\":3,\"p\":\"payload-can");
    fs::create_dir(place.data().join(".torn")).unwrap();
    let ino = fs::metadata(place.data().join("b.example.jsonl")).unwrap().ino();
    fs::write(place.data().join(".torn/b.example.jsonl.poisoned"), format!("reason=sync ino={ino}\n")).unwrap();
    fs::write(place.data().join(".torn/a.jsonl.poisoned"), "reason=sync ino=1\n").unwrap();
    fs::write(place.data().join(".torn/a.jsonl.3.4"), "half").unwrap();
    let said = place.taken("s", &[]);
    assert_eq!(said["torn_tails"], json!([{"file": "a.jsonl", "bytes": 24}]));
    assert_eq!(said["poisoned"], json!([{"file": "b.example.jsonl", "reason": "sync"}]), "and no mark that is stale");
    assert_eq!(place.found("s"), (vec![], Some(0)));
    assert_eq!(place.restored("s", "r"), before);
    assert_eq!(names(&place.path("r").join(".torn")), ["b.example.jsonl.poisoned"]);
    for dir in ["r", "copied"] {
        if dir == "copied" {
            assert!(
                Command::new("cp").args(["-r", "s", dir]).current_dir(place.dir.path()).status().unwrap().success()
            );
        }
        let looked = place.leitstand(&["verify", "--json", "--data-dir", dir]);
        let report: Value = serde_json::from_str(&looked.stdout).unwrap();
        assert_eq!((looked.code, &report["findings_total"]), (Some(1), &json!(1)), "{dir}: {looked:?}");
        assert_eq!(report["findings"][0]["kind"], "poisoned", "{dir}");
        let mended = place.leitstand(&["repair", "--apply", "--data-dir", dir]);
        assert_eq!(mended.code, Some(0), "{dir}: {mended:?}");
        assert_eq!(place.leitstand(&["verify", "--data-dir", dir]).code, Some(0), "{dir}");
    }
}

/// Broken, a restored service would refuse every producer that has a token of its own.
#[test]
fn named_tokens_come_back_with_the_data() {
    let place = Place::filled();
    let token = |dir: &str, args: &[&str]| {
        let finished = place.leitstand(&[&["token"], args, &["--data-dir", dir]].concat());
        assert_eq!(finished.code, Some(0), "{finished:?}");
        finished.stdout
    };
    token("data", &["add", "sensor-7"]);
    let store = fs::read(place.data().join(".leitstand/tokens.json")).unwrap();
    let said = place.taken("s", &[]);
    assert_eq!((&said["tokens"], &said["files"]), (&json!(true), &json!(3)));
    token("data", &["add", "later"]);
    assert_eq!(place.taken("s2", &["--base", "s"])["tokens"], json!(true), "beside a base too");
    for dir in ["r", "copied"] {
        if dir == "copied" {
            assert!(
                Command::new("cp").args(["-r", "s", dir]).current_dir(place.dir.path()).status().unwrap().success()
            );
        } else {
            let finished = place.leitstand(&["restore", "--from", "s", "--to", dir]);
            assert!(finished.code == Some(0) && finished.stdout.contains("revoked or rotated since"), "{finished:?}");
        }
        assert_eq!(fs::read(place.path(dir).join(".leitstand/tokens.json")).unwrap(), store, "{dir}");
        assert!(token(dir, &["list"]).contains("sensor-7"), "{dir}");
    }
    let mode = |path: &str| fs::metadata(place.path(path)).unwrap().mode() & 0o777;
    assert_eq!((mode("r/.leitstand"), mode("r/.leitstand/tokens.json")), (0o700, 0o600));
    assert_eq!((place.found("s"), place.found("s2")), ((vec![], Some(0)), (vec![], Some(0))));
    // What is wrong with it is found, and not restored.
    let path = place.path("s/.leitstand/tokens.json");
    let tell = |kind: &str, name: &str| (vec![(kind.to_owned(), name.to_owned())], Some(1));
    for (bytes, kind) in [
        (Some(store.iter().map(|b| b ^ 1).collect::<Vec<_>>()), "wrong_hash"),
        (Some(store[1..].to_vec()), "wrong_size"),
        (None, "missing_part"),
    ] {
        fs::remove_file(&path).unwrap();
        if let Some(bytes) = &bytes {
            fs::write(&path, bytes).unwrap();
        }
        assert_eq!(place.found("s"), tell(kind, ".leitstand/tokens.json"));
        let refused = place.leitstand(&["restore", "--from", "s", "--to", "r2"]);
        assert_eq!((refused.code, place.path("r2").exists()), (Some(1), false), "{kind}: {refused:?}");
        assert!(refused.stderr.contains("tokens.json"), "{refused:?}");
        if bytes.is_none() {
            fs::write(&path, &store).unwrap();
        }
    }
    fs::write(place.path("s/.leitstand/other"), "x").unwrap();
    assert_eq!(place.found("s"), tell("not_in_manifest", ".leitstand/other"));
    // A link is told and not followed.
    fs::rename(place.data().join(".leitstand"), place.path("elsewhere")).unwrap();
    symlink(place.path("elsewhere"), place.data().join(".leitstand")).unwrap();
    let finished = place.snapshot("s3", &[]);
    assert!(finished.code == Some(1) && finished.stdout.contains("tokens cannot be read"), "{finished:?}");
    assert!(!place.path("s3/.leitstand").exists());
}

/// Broken, whoever can write to the backups could change them, manifest and all, and nobody would know.
#[test]
fn a_hash_that_was_kept_elsewhere_is_held_against_the_manifest() {
    let place = Place::filled();
    let sha = place.taken("s", &[])["manifest_sha256"].as_str().unwrap().to_owned();
    place.append("a", 3..4);
    place.taken("next", &["--base", "s"]);
    let next: Value = serde_json::from_slice(&fs::read(place.path("next").join(MANIFEST)).unwrap()).unwrap();
    assert_eq!(next["base_sha256"], sha, "each vouches for the one before");
    for sha in [sha.clone(), sha.to_uppercase()] {
        assert_eq!(place.leitstand(&["verify", "--snapshot", "s", "--expect", &sha]).code, Some(0));
    }
    assert_eq!(place.leitstand(&["restore", "--from", "s", "--to", "r", "--expect", &sha]).code, Some(0));
    fs::remove_dir_all(place.path("r")).unwrap();
    // A forgery that is sound in itself.
    place.forge("s", |manifest| manifest["tool"] = json!("x"));
    assert_eq!(place.found("s"), (vec![], Some(0)));
    for args in [&["verify", "--snapshot", "s"][..], &["restore", "--from", "s", "--to", "r"]] {
        let finished = place.leitstand(&[args, &["--expect", &sha]].concat());
        assert_refused(&place, &finished, 1, &["is expected", &sha], &["next", "s"]);
        let finished = place.leitstand(&[args, &["--expect", "abc"]].concat());
        assert_eq!(finished.code, Some(2), "{finished:?}");
    }
}

/// Broken, a restore would go back to another time than was asked for.
#[test]
fn the_newest_snapshot_until_a_time_is_restored() {
    let place = Place::new();
    fs::create_dir(place.path("all")).unwrap();
    for (number, day) in ["2026-11-01", "2026-11-02", "2026-11-02", "2026-11-04"].into_iter().enumerate() {
        place.append("a", number as u32..number as u32 + 1);
        let name = format!("all/s{number}");
        place.taken(&name, &[]);
        place.forge(&name, |manifest| manifest["created"] = json!(format!("{day}T12:00:00Z")));
    }
    fs::create_dir(place.path("all/other")).unwrap();
    fs::write(place.path("all/file"), "x").unwrap();
    let until =
        |time: &str, to: &str| place.leitstand(&["restore", "--from", "all", "--until", time, "--to", to, "--json"]);
    for (number, (time, want)) in [
        ("2026-11-01T12:00:00Z", "all/s0"),
        ("2026-11-02T11:59:59Z", "all/s0"),
        ("2026-11-03T00:00:00+00:00", "all/s2"),
        ("2027-01-01T00:00:00Z", "all/s3"),
    ]
    .into_iter()
    .enumerate()
    {
        let finished = until(time, &format!("r{number}"));
        let said: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {finished:?}"));
        assert_eq!((finished.code, &said["from"]), (Some(0), &json!(want)), "{time}: {finished:?}");
        assert_eq!(files(&place.path(&format!("r{number}"))), files(&place.path(want)), "{time}");
    }
    let none = until("2026-10-01T00:00:00Z", "none");
    assert!(none.code == Some(2) && none.stderr.contains("none that was begun by then"), "{none:?}");
    assert_eq!(until("yesterday", "none").code, Some(2));
    // One that cannot be read may be the newest: it is told.
    fs::write(place.path("all/s3").join(MANIFEST), "{").unwrap();
    let finished = place.leitstand(&["restore", "--from", "all", "--until", "2027-01-01T00:00:00Z", "--to", "told"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    for part in ["\"all/s3\" is damaged and may be newer", "chosen is \"all/s2\""] {
        assert!(finished.stdout.contains(part), "{part}: {finished:?}");
    }
}

/// Broken, a link would carry foreign bytes into the backup, or a file that was left out would not be told.
#[test]
fn what_is_no_data_file_is_told_and_not_followed() {
    let place = Place::filled();
    fs::write(place.path("secret"), CANARY).unwrap();
    symlink(place.path("secret"), place.data().join("link.jsonl")).unwrap();
    symlink(place.data().join("a.jsonl"), place.data().join("c.jsonl")).unwrap();
    let fifo = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, place.data().join("fifo.jsonl"), rustix::fs::FileType::Fifo, fifo, 0).unwrap();
    fs::create_dir(place.data().join("dir.jsonl")).unwrap();
    fs::write(place.data().join("Other.jsonl"), CANARY).unwrap();
    fs::write(place.data().join("a.jsonl.lock"), "").unwrap();
    let finished = place.snapshot("s", &["--json"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let said: Value = serde_json::from_str(&finished.stdout).unwrap();
    let skipped = said["skipped"].as_array().unwrap().iter();
    let skipped: Vec<_> = skipped.map(|s| (s["name"].as_str().unwrap(), s["kind"].as_str().unwrap())).collect();
    let want = [
        ("Other.jsonl", "not_a_domain"),
        ("c.jsonl", "symlink"),
        ("dir.jsonl", "not_regular"),
        ("fifo.jsonl", "not_regular"),
        ("link.jsonl", "symlink"),
    ];
    assert_eq!(skipped, want);
    assert_eq!(files(&place.path("s")).into_keys().collect::<Vec<_>>(), ["a.jsonl", "b.example.jsonl", "empty.jsonl"]);
    let text = place.snapshot("s2", &[]);
    assert!(text.code == Some(1) && text.stdout.contains("skipped: link.jsonl: symlink"), "{text:?}");
    for (name, _) in want {
        let path = place.data().join(name);
        if path.is_dir() { fs::remove_dir(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    // What nobody takes for data is told, and is no reason to fail.
    fs::write(place.data().join("README"), CANARY).unwrap();
    let finished = place.snapshot("s3", &[]);
    assert!(finished.code == Some(0) && finished.stdout.contains("README: stray_name"), "{finished:?}");
}

/// Broken, a snapshot would land among the data, over something else, or nowhere.
#[test]
fn wrong_places_are_refused() {
    let place = Place::filled();
    let before = files(&place.data());
    fs::create_dir_all(place.path("full/x")).unwrap();
    fs::create_dir(place.data().join("sub")).unwrap();
    fs::write(place.path("file"), "").unwrap();
    fs::create_dir(place.path("hollow")).unwrap();
    let fifo = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, place.path("fifo"), rustix::fs::FileType::Fifo, fifo, 0).unwrap();
    symlink(place.data(), place.path("link")).unwrap();
    symlink(place.path("hollow"), place.path("to-hollow")).unwrap();
    let left = place.names();
    let left: Vec<&str> = left.iter().map(String::as_str).collect();
    for (to, words) in [
        ("data/s", &["lies in", "outside"][..]),
        ("data/sub/s", &["lies in", "outside"]),
        ("link/s", &["lies in", "outside"]),
        ("data/sub/../s", &["lies in", "outside"]),
        ("full", &["not an empty directory"]),
        ("file", &["not an empty directory"]),
        ("to-hollow", &["not an empty directory"]),
        ("fifo", &["not an empty directory"]),
        ("link", &["not an empty directory"]),
        ("missing/s", &["\"missing\"", "create it"]),
        ("..", &["name a directory"]),
        (".", &["name a directory"]),
        (&"x".repeat(250), &["too long"]),
    ] {
        assert_refused(&place, &place.snapshot(to, &[]), 2, words, &left);
    }
    for args in [
        &["snapshot", "--data-dir", "nowhere", "--to", "s"][..],
        &["snapshot", "--data-dir", "file", "--to", "s"],
        &["restore", "--from", "nowhere", "--to", "r"],
        &["restore", "--from", "file", "--to", "r"],
        &["restore", "--from", "hollow", "--to", "r"],
        &["verify", "--snapshot", "nowhere"],
        &["verify", "--snapshot", "hollow"],
        &["verify", "--data-dir", "data", "--manifest", "nowhere/manifest.json"],
        &["snapshot", "--data-dir", "data", "--to", "s", "--rate", "0"],
        &["snapshot", "--data-dir", "data", "--to", "s", "--rate", "fast"],
        &["snapshot", "--data-dir", "data"],
        &["verify", "--snapshot", "s", "--data-dir", "data"],
        &["--restore", "s"],
        &["--target", "r"],
        &["--restore", "s", "--target", "r", "serve"],
    ] {
        let finished = place.leitstand(args);
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""), "{args:?}: {finished:?}");
        assert!(!finished.stderr.is_empty(), "{args:?}");
        assert_eq!(place.names(), left, "{args:?}");
    }
    assert_eq!(files(&place.data()), before);
    assert_eq!(names(&place.data()), ["a.jsonl", "b.example.jsonl", "empty.jsonl", "sub"]);
    // An empty directory is as good as none.
    place.taken("hollow", &[]);
    for (to, words) in [
        ("full", &["not an empty directory"][..]),
        ("hollow/r", &["lies in", "outside"]),
        ("missing/r", &["create it"]),
    ] {
        let finished = place.leitstand(&["restore", "--from", "hollow", "--to", to]);
        assert_refused(&place, &finished, 2, words, &left);
    }
}

/// Broken, a snapshot or a restore into a snapshot would make that one unsound.
#[test]
fn nothing_is_made_in_a_snapshot() {
    let place = Place::filled();
    place.taken("s", &[]);
    fs::create_dir(place.path("below")).unwrap();
    place.taken("below/other", &[]);
    let before = names(&place.path("s"));
    for args in [
        &["snapshot", "--data-dir", "data", "--to", "s/x"][..],
        &["snapshot", "--data-dir", "data", "--to", "s/x", "--base", "s"],
        &["restore", "--from", "s", "--to", "s/x"],
        &["restore", "--from", "below/other", "--to", "s/x"],
    ] {
        let finished = place.leitstand(args);
        assert_refused(&place, &finished, 2, &["lies in", "outside"], &["below", "s"]);
        assert_eq!(names(&place.path("s")), before, "{args:?}");
    }
    assert_eq!(place.found("s"), (vec![], Some(0)));
    // A damaged one is still a snapshot; a foreign file of that name is nothing.
    fs::remove_file(place.path("s").join(MANIFEST_SHA256)).unwrap();
    assert_eq!(place.snapshot("s/x", &[]).code, Some(2));
    fs::write(place.path("below").join(MANIFEST), "{\"format\":\"other\"}").unwrap();
    place.taken("below/x", &[]);
}

/// Broken, a name would be too long for what is made beside it.
#[test]
fn a_name_leaves_room_for_what_is_made_beside_it() {
    let place = Place::filled();
    let (long, too_long) = ("x".repeat(228), "x".repeat(229));
    place.taken(&long, &[]);
    assert_eq!(place.restored(&long, &"y".repeat(228)), files(&place.data()));
    let left = [long.as_str(), &"y".repeat(228)];
    assert_refused(&place, &place.snapshot(&too_long, &[]), 2, &["too long"], &left);
    let finished = place.leitstand(&["restore", "--from", &long, "--to", &too_long]);
    assert_refused(&place, &finished, 2, &["too long"], &left);
}

/// Broken, a script could not tell what went wrong from what it printed.
#[test]
fn refusals_are_told_as_json_too() {
    let place = Place::filled();
    for (args, kind, code) in [
        (&["snapshot", "--json", "--data-dir", "data", "--to", "data/s"][..], "inside", 2),
        (&["restore", "--json", "--from", "nowhere", "--to", "r"], "not_found", 2),
        (&["verify", "--json", "--snapshot", "nowhere"], "not_found", 2),
    ] {
        let finished = place.leitstand(args);
        let said: Value = serde_json::from_str(&finished.stdout).unwrap();
        assert_eq!((finished.code, &said["error"]["kind"]), (Some(code), &json!(kind)), "{finished:?}");
        assert_eq!(finished.stderr, format!("leitstand: {}\n", said["error"]["message"].as_str().unwrap()));
    }
}

/// Broken, what was changed since it was written would be restored, or could lead out of the directory.
#[test]
fn a_manifest_that_is_not_what_it_was_is_refused() {
    let place = Place::filled();
    place.taken("good", &[]);
    let other = |name: &str| {
        fs::create_dir(place.path(name)).unwrap();
        for file in names(&place.path("good")) {
            fs::copy(place.path("good").join(&file), place.path(name).join(&file)).unwrap();
        }
    };
    type Change = Box<dyn Fn(&Place)>;
    let forged = |change: fn(&mut Value)| -> Change { Box::new(move |place: &Place| place.forge("bad", change)) };
    let written = |file: &'static str, text: &'static str| -> Change {
        Box::new(move |place: &Place| fs::write(place.path("bad").join(file), text).unwrap())
    };
    let cut: Change = Box::new(|place: &Place| {
        let path = place.path("bad").join(MANIFEST);
        let len = fs::metadata(&path).unwrap().len();
        File::options().write(true).open(path).unwrap().set_len(len / 2).unwrap();
    });
    let cut_and_signed: Change = Box::new(|place: &Place| {
        let text = fs::read(place.path("bad").join(MANIFEST)).unwrap();
        fs::write(place.path("bad").join(MANIFEST), &text[..text.len() / 2]).unwrap();
        place.sign("bad");
    });
    let changed: Change = Box::new(|place: &Place| {
        let path = place.path("bad").join(MANIFEST);
        let text = fs::read_to_string(&path).unwrap().replacen("\"lines\":3", "\"lines\":4", 1);
        fs::write(path, text).unwrap();
    });
    let without_hash: Change =
        Box::new(|place: &Place| fs::remove_file(place.path("bad").join(MANIFEST_SHA256)).unwrap());
    let linked: Change = Box::new(|place: &Place| {
        fs::remove_file(place.path("bad").join(MANIFEST)).unwrap();
        symlink(place.path("good").join(MANIFEST), place.path("bad").join(MANIFEST)).unwrap();
    });
    for (what, change, word) in [
        ("cut", cut, "SHA-256"),
        ("cut, with a right hash", cut_and_signed, "cannot be read"),
        ("changed", changed, "SHA-256"),
        ("no hash", without_hash, "manifest.json.sha256 is missing"),
        ("a link", linked, "not a regular file"),
        ("a hash of nothing", written(MANIFEST_SHA256, ""), "is not `<SHA-256>"),
        (
            "a hash of another file",
            written(
                MANIFEST_SHA256,
                concat!("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "  a.jsonl\n"),
            ),
            "is not `<SHA-256>",
        ),
        ("another format", forged(|m| m["format"] = json!("tar")), "format"),
        ("a later version", forged(|m| m["version"] = json!(3)), "version 3"),
        ("an earlier version", forged(|m| m["version"] = json!(0)), "version 0"),
        ("no files", forged(|m| m["files"] = json!(null)), "cannot be read"),
        ("negative bytes", forged(|m| m["files"][0]["bytes"] = json!(-1)), "cannot be read"),
        ("a path upwards", forged(|m| m["files"][0]["name"] = json!("../x.jsonl")), "no domain has a file"),
        ("an absolute path", forged(|m| m["files"][0]["name"] = json!("/etc/x.jsonl")), "no domain has a file"),
        ("a path down", forged(|m| m["files"][0]["name"] = json!("a/b.jsonl")), "no domain has a file"),
        ("no name", forged(|m| m["files"][0]["name"] = json!("")), "no domain has a file"),
        ("itself", forged(|m| m["files"][0]["name"] = json!("manifest.json")), "no domain has a file"),
        ("a part upwards", forged(|m| m["files"][0]["segments"][0]["name"] = json!("../a.jsonl")), "as part 0"),
        ("an absolute part", forged(|m| m["files"][0]["segments"][0]["name"] = json!("/etc/passwd")), "as part 0"),
        ("a part of another", forged(|m| m["files"][0]["segments"][0]["name"] = json!("b.example.jsonl")), "as part 0"),
        ("a file twice", forged(|m| m["files"][1] = m["files"][0].clone()), "twice"),
        ("files in disorder", forged(|m| m["files"].as_array_mut().unwrap().swap(0, 1)), "after"),
        ("other lengths", forged(|m| m["files"][0]["bytes"] = json!(1)), "parts"),
        ("a huge length", forged(|m| m["files"][0]["segments"][0]["bytes"] = json!(u64::MAX)), "parts"),
        ("no hash of a file", forged(|m| m["files"][0]["sha256"] = json!("")), "as a hash"),
        ("a reason of many lines", forged(|m| m["files"][0]["poisoned"] = json!("a\nino=1")), "poisoned"),
        (
            "states of no piece",
            forged(|m| m["files"][0]["piece_states"] = json!(["0".repeat(80)])),
            "states of the hash",
        ),
        ("other totals", forged(|m| m["totals"]["lines"] = json!(1)), "totals"),
        ("no JSON", written(MANIFEST, "{"), "SHA-256"),
    ] {
        other("bad");
        change(&place);
        let base = place.snapshot("s", &["--base", "bad"]);
        let looked = place.leitstand(&["verify", "--snapshot", "bad"]);
        let restored = place.leitstand(&["restore", "--from", "bad", "--to", "r"]);
        let against = place.leitstand(&["verify", "--data-dir", "data", "--manifest", "bad/manifest.json"]);
        for finished in [base, looked, restored, against] {
            assert!(finished.stderr.contains(word), "{what}: {finished:?}");
            assert_refused(&place, &finished, 1, &["bad"], &["bad", "good"]);
        }
        fs::remove_dir_all(place.path("bad")).unwrap();
    }
}

/// Broken, one wrong byte on the disk of the backups would reach the data directory.
#[test]
fn parts_that_are_not_what_they_were_are_found_and_not_restored() {
    let place = Place::filled();
    place.taken("s1", &[]);
    place.append("b.example", 40_000..40_100);
    place.taken("s2", &["--base", "s1"]);
    let bad = "b.example.jsonl.000001";
    let path = |name: &str| place.path("s2").join(name);
    let len = fs::metadata(path(bad)).unwrap().len();
    let refused = |words: &[&str]| {
        let finished = place.leitstand(&["restore", "--from", "s2", "--to", "r"]);
        assert_refused(&place, &finished, 1, words, &["s1", "s2"]);
    };
    // A digit of an id, so that every line stays what a line should be.
    let flip = |name: &str, digit: &[u8; 1]| {
        OpenOptions::new().write(true).open(path(name)).unwrap().write_all_at(digit, 6).unwrap();
    };
    flip(bad, b"9");
    assert_eq!(place.found("s2"), (vec![("wrong_hash".into(), bad.into())], Some(1)));
    refused(&["b.example.jsonl is not what the manifest says", "another copy"]);
    flip(bad, b"4");
    assert_eq!(place.found("s2"), (vec![], Some(0)), "right again");

    OpenOptions::new().append(true).open(path(bad)).unwrap().write_all(b"\n").unwrap();
    assert_eq!(place.found("s2"), (vec![("wrong_size".into(), bad.into())], Some(1)));
    refused(&[bad, "should have"]);
    assert_refused(&place, &place.snapshot("s3", &["--base", "s2"]), 1, &[bad, "without a base"], &["s1", "s2"]);
    OpenOptions::new().write(true).open(path(bad)).unwrap().set_len(len).unwrap();

    fs::rename(path(bad), place.path("away")).unwrap();
    assert_eq!(place.found("s2"), (vec![("missing_part".into(), bad.into())], Some(1)));
    let finished = place.leitstand(&["restore", "--from", "s2", "--to", "r"]);
    assert_refused(&place, &finished, 1, &[bad, "missing"], &["away", "s1", "s2"]);
    symlink(place.path("away"), path(bad)).unwrap();
    assert_eq!(place.found("s2"), (vec![("symlink".into(), bad.into())], Some(1)));
    let finished = place.leitstand(&["restore", "--from", "s2", "--to", "r"]);
    assert_refused(&place, &finished, 1, &[bad, "not a regular file"], &["away", "s1", "s2"]);
    fs::remove_file(path(bad)).unwrap();
    fs::rename(place.path("away"), path(bad)).unwrap();

    for stray in ["b.example.jsonl.000002", "x.jsonl", "note", ".torn"] {
        fs::write(path(stray), "").unwrap();
        assert_eq!(place.found("s2"), (vec![("not_in_manifest".into(), stray.into())], Some(1)));
        fs::remove_file(path(stray)).unwrap();
    }
    assert_eq!(place.restored("s2", "r"), files(&place.data()));
}

/// Broken, a large file would not come back, or with wrong bytes in the middle of it.
#[test]
fn large_files_are_restored_piece_by_piece() {
    let place = Place::new();
    // Not by the command: without optimisation it hashes for a while.
    let disk = RealDisk::open_existing(&place.data()).unwrap();
    let take = |to: &str, base: Option<&str>| {
        let base = base.map(|base| place.path(base));
        let options =
            SnapshotOptions { to: place.path(to), base, lock_timeout: PATIENCE, rate: None, reserve_bytes: Some(0) };
        snapshot(&disk, &options, &mut |_| {}).unwrap()
    };
    let back = |from: &str| {
        let options = RestoreOptions { from: place.path(from), to: place.path("r"), expected: None };
        let mut told = Told::new();
        restore(&options, &mut |progress| told.tell(&progress)).map(|_| {
            assert!(told.times > 0 && told.bytes_done > 0, "it takes far longer than it is silent");
            let restored = files(&place.path("r"));
            fs::remove_dir_all(place.path("r")).unwrap();
            restored
        })
    };
    // Lines of a MiB, so that they are quickly written; pieces are 32 MiB.
    let filler = format!("{{\"p\":\"{}\",\"domain\":\"a\"}}\n", "x".repeat(1 << 20));
    place.append_raw("a", filler.repeat(33).as_bytes());
    place.append("small", 0..1);
    take("s1", None);
    let first = files(&place.data());
    place.append_raw("a", filler.repeat(32).as_bytes());
    take("s2", Some("s1"));
    let large = &place.manifest("s2")["files"][0];
    assert_eq!([&large["piece_states"], &large["segments"]].map(|list| list.as_array().unwrap().len()), [2, 2]);
    assert!(back("s1").unwrap() == first && back("s2").unwrap() == files(&place.data()));
    let file = OpenOptions::new().write(true).open(place.path("s2/a.jsonl.000001")).unwrap();
    // In the second and in the last piece.
    for at in [1 << 20, 31 << 20] {
        file.write_all_at(b"y", at).unwrap();
        let refused = back("s2").unwrap_err();
        assert!(refused.is_wrong_content() && refused.to_string().contains("a.jsonl is not what"), "{refused}");
        file.write_all_at(b"x", at).unwrap();
    }
    // States that do not lead to the hash are as good as a wrong byte.
    place.forge("s2", |m| m["files"][0]["piece_states"][1] = m["files"][0]["piece_states"][0].clone());
    assert!(back("s2").unwrap_err().is_wrong_content());
    assert_eq!(place.names(), ["s1", "s2"]);
    let report = check(&place.path("s2"), None, &mut |_| {}).unwrap();
    let found: Vec<_> = report.findings.iter().map(|f| (f.kind.word(), f.file.as_str())).collect();
    assert_eq!(found, [("wrong_hash", "a.jsonl")]);
}

/// Broken, two snapshots would write into one another, or the second would remove the first.
#[test]
fn a_second_snapshot_into_the_same_parent_is_refused() {
    let place = Place::filled();
    let lock = File::create(place.path(".snapshot.lock")).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_refused(&place, &place.snapshot("s", &[]), 2, &["another snapshot", "is running"], &[]);
    drop(lock);
    place.taken("s", &[]);
}

/// Broken, a snapshot would read beside a writer of the old service, or hang for as long as one does.
#[test]
fn a_foreign_lock_is_waited_for_and_named() {
    let place = Place::filled();
    let path = place.data().join("b.example.jsonl.lock");
    let lock = File::create(&path).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let finished = place.snapshot("s", &["--lock-timeout", "0"]);
    assert_refused(&place, &finished, 2, &["b.example.jsonl: locked by another process", "--lock-timeout"], &[]);
    // Half a line stands there while the lock is held, and is whole when it is given back.
    place.append_raw("b.example", b"{\"id\":7,");
    let child = command(place.dir.path(), &["snapshot", "--data-dir", "data", "--to", "s", "--lock-timeout", "60"])
        .env("LEITSTAND_DISK_RESERVE", "0")
        .spawn();
    let mut child = child.unwrap();
    wait_for("it waits", PATIENCE, || place.names().iter().any(|name| name.contains("partial")).then_some(()));
    std::thread::sleep(Duration::from_millis(50));
    assert!(child.try_wait().unwrap().is_none(), "it waits for the lock");
    place.append_raw("b.example", b"\"domain\":\"b.example\"}\n");
    drop(lock);
    assert_eq!(wait_exit(&mut child, PATIENCE).unwrap().code(), Some(0));
    assert_eq!(place.restored("s", "r"), files(&place.data()));
}

/// Broken, a chain of incremental snapshots would drift from what a full one holds.
#[test]
fn incremental_snapshots_hold_what_full_ones_do() {
    let place = Place::filled();
    place.taken("s0", &[]);
    place.append("a", 3..5);
    place.append("new", 0..2);
    fs::remove_file(place.data().join("empty.jsonl")).unwrap();
    let said = place.taken("s1", &["--base", "s0"]);
    let copied = line("a", 3).len() * 5 + line("new", 0).len() * 2;
    assert_eq!(said["copied_bytes"], copied, "only what is new, and small files anew");
    assert_eq!(place.restored("s1", "r1"), files(&place.data()));
    place.taken("full", &[]);
    assert_eq!(place.restored("full", "rf"), files(&place.data()));
    let ino = |name: &str| fs::metadata(place.path(name)).unwrap().ino();
    assert_eq!(ino("s0/b.example.jsonl"), ino("s1/b.example.jsonl"), "linked");
    let entry = |name: &str, file: usize| {
        let manifest: Value = serde_json::from_slice(&fs::read(place.path(name).join(MANIFEST)).unwrap()).unwrap();
        manifest["files"][file].clone()
    };
    for file in 0..3 {
        for field in ["name", "bytes", "lines", "sha256", "hash_state", "source"] {
            assert_eq!(entry("s1", file)[field], entry("full", file)[field], "{field}");
        }
    }
    // The base may go: each snapshot stands for itself.
    fs::remove_dir_all(place.path("s0")).unwrap();
    assert_eq!(place.found("s1"), (vec![], Some(0)));
    assert_eq!(place.restored("s1", "r2"), files(&place.data()));
}

/// Broken, what a base holds would be taken for what the source holds, though somebody replaced it.
#[test]
fn a_base_is_trusted_only_as_far_as_it_is_known() {
    let place = Place::filled();
    place.taken("s0", &[]);
    let path = place.data().join("b.example.jsonl");
    let old = fs::read(&path).unwrap();
    let parts = |name: &str| names(&place.path(name)).iter().filter(|name| name.starts_with("b.example")).count();
    // Another file with the same beginning, as after a repair: its hash tells.
    fs::write(place.path("copy"), &old).unwrap();
    fs::rename(place.path("copy"), &path).unwrap();
    place.append("b.example", 40_000..40_001);
    place.taken("s1", &["--base", "s0"]);
    assert_eq!(parts("s1"), 2);
    // The same file with another end; shorter than the base; and another one in its place.
    for (number, bytes) in [
        [&old[..old.len() - 8], b"b.exampl", &old[old.len() - 8..]].concat(),
        old[..old.len() / 2].to_vec(),
        old.iter().rev().copied().collect(),
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(&path, &bytes).unwrap();
        place.append_raw("b.example", b"\n");
        let name = format!("full{number}");
        place.taken(&name, &["--base", "s1"]);
        assert_eq!(parts(&name), 1, "a full copy");
        assert_eq!(fs::read(place.path(&name).join("b.example.jsonl")).unwrap(), fs::read(&path).unwrap());
    }
    // Without the state of the hash, or with that of another file, everything is read again.
    fs::write(&path, &old).unwrap();
    place.append_raw("b.example", line("b.example", 40_000).as_bytes());
    for state in [Value::Null, json!("00"), json!("0".repeat(80))] {
        place.taken("base", &[]);
        place.forge("base", |m| m["files"][1]["hash_state"] = state.clone());
        place.append("b.example", 1..2);
        place.taken("next", &["--base", "base"]);
        assert_eq!((parts("next"), place.found("next")), (2, (vec![], Some(0))), "{state}");
        for name in ["base", "next"] {
            fs::remove_dir_all(place.path(name)).unwrap();
        }
    }
}

/// Broken, a flipped byte of a base would be linked into every later snapshot, each of them told to be good.
#[test]
fn a_base_with_a_damaged_end_is_refused() {
    let place = Place::filled();
    place.taken("s", &[]);
    // Copied from elsewhere, as a base may be; then its source has another number.
    for is_other_file in [false, true] {
        if is_other_file {
            fs::copy(place.data().join("a.jsonl"), place.path("copy")).unwrap();
            fs::rename(place.path("copy"), place.data().join("a.jsonl")).unwrap();
        }
        assert!(Command::new("cp").args(["-r", "s", "base"]).current_dir(place.dir.path()).status().unwrap().success());
        let part = OpenOptions::new().write(true).open(place.path("base/a.jsonl")).unwrap();
        part.write_all_at(b"X", 3).unwrap();
        let finished = place.snapshot("next", &["--base", "base"]);
        assert_refused(&place, &finished, 1, &["base cannot be used", "a.jsonl", "verify --snapshot"], &["base", "s"]);
        fs::remove_dir_all(place.path("base")).unwrap();
    }
}

/// Broken, a part that somebody wrote to would be linked, and no restore would take the snapshot that was told to be good.
#[test]
fn a_base_that_was_written_to_is_refused_wherever_that_was() {
    let place = Place::filled();
    place.taken("base", &[]);
    let part = place.path("base/b.example.jsonl");
    let (at, len) = (3, fs::metadata(&part).unwrap().len());
    assert!(len > 1 << 17, "the end is looked at in any case");
    let part = OpenOptions::new().write(true).open(part).unwrap();
    part.write_all_at(b"X", at).unwrap();
    let refused = |finished: &Finished| {
        let wanted = ["base cannot be used", "b.example.jsonl is not what its manifest says"];
        assert_refused(&place, finished, 1, &wanted, &["base"]);
    };
    refused(&place.snapshot("next", &["--base", "base"]));
    place.append("b.example", 1..2);
    refused(&place.snapshot("next", &["--base", "base"]));
    // As it was, though later.
    part.write_all_at(&fs::read(place.data().join("b.example.jsonl")).unwrap()[3..4], at).unwrap();
    place.taken("next", &["--base", "base"]);
    assert_eq!(place.found("next"), (vec![], Some(0)));
}

/// Broken, a directory would be restored over events that came later, or a foreign one be taken for ours.
#[test]
fn a_directory_is_told_to_go_on_where_a_snapshot_ends_or_not() {
    let place = Place::filled();
    place.taken("s", &[]);
    let told = || {
        let args = ["verify", "--json", "--data-dir", "data", "--manifest", "s/manifest.json"];
        let finished = place.leitstand(&args);
        let report: Value = serde_json::from_str(&finished.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap().iter();
        let findings: Vec<_> = findings.map(|f| format!("{} {}", f["kind"], f["file"]).replace('"', "")).collect();
        (findings, finished.code)
    };
    assert_eq!(told(), (vec![], Some(0)));
    place.append("a", 3..9);
    place.append("later", 0..1);
    assert_eq!(told(), (vec![], Some(0)), "a continuation");
    let path = place.data().join("b.example.jsonl");
    let whole = fs::read(&path).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"9", 6).unwrap();
    assert_eq!(told(), (vec!["not_continued b.example.jsonl".to_owned()], Some(1)));
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    fs::remove_file(place.data().join("a.jsonl")).unwrap();
    let want = ["missing_file a.jsonl", "shorter b.example.jsonl"].map(str::to_owned).to_vec();
    assert_eq!(told(), (want, Some(1)));
}

/// Broken, a base on another disk would end in half a snapshot, or in one without its data.
#[test]
fn a_base_on_another_file_system_is_refused() {
    let place = Place::filled();
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return skip("there is no /dev/shm to write to") };
    if fs::metadata(memory.path()).unwrap().dev() == fs::metadata(place.dir.path()).unwrap().dev() {
        return skip("/dev/shm is on the file system of the temporary directory");
    }
    let to = memory.path().join("s");
    place.taken(to.to_str().unwrap(), &[]);
    assert_eq!(files(&to), files(&place.data()), "a full one may go anywhere");
    let finished = place.snapshot("s", &["--base", to.to_str().unwrap()]);
    assert_refused(&place, &finished, 2, &["different file systems", "full one"], &[]);
    assert_eq!(place.restored(to.to_str().unwrap(), "r"), files(&place.data()));
}

/// Broken, a full disk would leave half a snapshot that looks whole, or half that nobody removes.
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let place = Place::filled();
    let before = files(&place.data());
    let small = place.path("small");
    fs::create_dir(&small).unwrap();
    let Some(_mounted) = Mounted::new(&["-t", "tmpfs", "-o", "size=512k", "none"], &small) else {
        return skip("needs root, to mount a small file system");
    };
    let finished = place.snapshot("small/s", &[]);
    assert_refused(&place, &finished, 2, &["no room in \"small/s\"", "make room"], &["small"]);
    assert_eq!(names(&small), [".snapshot.lock"]);
    let finished = place.snapshot("small", &[]);
    assert_refused(&place, &finished, 2, &["mounted there", "a directory in it"], &["small"]);
    place.taken("s", &[]);
    let finished = place.leitstand(&["restore", "--from", "s", "--to", "small/r"]);
    assert_refused(&place, &finished, 2, &["no room in \"small/r\""], &["s", "small"]);
    assert_eq!(names(&small), [".snapshot.lock"]);
    // The room that is asked for first is not all that is needed: here it ends with many small files.
    for n in 0..200 {
        place.append(&format!("d{n}"), 0..1);
    }
    fs::remove_file(place.data().join("b.example.jsonl")).unwrap();
    let finished = place.snapshot("small/s", &[]);
    assert_refused(&place, &finished, 2, &["no room"], &["s", "small"]);
    assert_eq!(names(&small), [".snapshot.lock"]);
    assert_eq!(before["a.jsonl"], files(&place.data())["a.jsonl"]);
}

/// Broken, the reserve of the service would be eaten by its own backup.
#[test]
fn the_reserve_of_the_service_stays_free() {
    let place = Place::filled();
    let args = ["snapshot", "--data-dir", "data", "--to", "s"];
    let finished = run(command(place.dir.path(), &args).env("LEITSTAND_DISK_RESERVE", "1000000GiB"));
    assert_refused(&place, &finished, 2, &["no room", "stay free for the service"], &[]);
    let finished = run(command(place.dir.path(), &args).env("LEITSTAND_DISK_RESERVE", "much"));
    assert_refused(&place, &finished, 2, &["LEITSTAND_DISK_RESERVE"], &[]);
}

/// Broken, what root restores could not be read by the service.
#[test]
fn the_owner_of_an_empty_directory_stays_its_owner() {
    if !rustix::process::geteuid().is_root() {
        return skip("needs root, to give a directory away");
    }
    let place = Place::filled();
    fs::create_dir(place.data().join(".torn")).unwrap();
    fs::write(place.data().join(".torn/a.jsonl.poisoned"), "reason=sync\n").unwrap();
    place.taken("s", &[]);
    fs::create_dir(place.path("r")).unwrap();
    std::os::unix::fs::chown(place.path("r"), Some(65_534), Some(65_534)).unwrap();
    place.restored("s", "r");
    for name in ["r", "r/a.jsonl", "r/b.example.jsonl", "r/.torn", "r/.torn/a.jsonl.poisoned"] {
        let meta = fs::metadata(place.path(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (65_534, 65_534), "{name}");
    }
}

/// Broken, a terminal would stay silent for minutes, or a log file be filled with control characters.
#[test]
fn nothing_but_lines_is_printed_where_there_is_no_terminal() {
    let place = Place::filled();
    for args in [
        &["snapshot", "--data-dir", "data", "--to", "s"][..],
        &["verify", "--snapshot", "s"],
        &["verify", "--data-dir", "data", "--manifest", "s/manifest.json"],
        &["restore", "--from", "s", "--to", "r"],
    ] {
        let finished = place.leitstand(args);
        assert_eq!((finished.code, finished.errors().as_str()), (Some(0), ""), "{finished:?}");
        assert!(!finished.stderr.contains(['\r', '\x1b']), "{finished:?}");
        assert!(finished.stdout.ends_with('\n') && !finished.stdout.contains(['\r', '\x1b']), "{finished:?}");
    }
}

/// Broken, a log would not say how far a long backup is.
#[test]
fn what_takes_long_says_how_far_it_is_in_plain_lines() {
    let place = Place::filled();
    let finished = place.snapshot("s", &["--rate", "700KiB"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let lines: Vec<&str> = finished.stderr.lines().collect();
    assert!(!lines.is_empty(), "{finished:?}");
    for line in lines {
        let rest = line.strip_prefix("snapshot: ").unwrap_or_else(|| panic!("{line}"));
        assert!(rest.contains(" % of 2.1 MiB, ") && rest.ends_with(".jsonl"), "{line}");
        assert!(!line.contains(['\r', '\x1b']), "{line:?}");
    }
    let silent = place.snapshot("s2", &["--rate", "700KiB", "--json"]);
    assert_eq!((silent.code, silent.stderr.as_str()), (Some(0), ""), "{silent:?}");
}

/// How often it was told how far something has come, checked on the way.
struct Told {
    times: usize,
    bytes_done: u64,
}

impl Told {
    fn new() -> Told {
        Told { times: 0, bytes_done: 0 }
    }

    fn tell(&mut self, progress: &leitstand::storage::verify::Progress<'_>) {
        assert!(progress.file.ends_with(".jsonl"), "{progress:?}");
        let range = self.bytes_done..=progress.bytes;
        assert!(range.contains(&progress.bytes_done), "{progress:?} after {}", self.bytes_done);
        *self = Told { times: self.times + 1, bytes_done: progress.bytes_done };
    }
}

pub(crate) fn options(to: PathBuf, base: Option<PathBuf>) -> SnapshotOptions {
    SnapshotOptions { to, base, lock_timeout: Duration::ZERO, rate: None, reserve_bytes: Some(0) }
}

/// Broken, a bar would stand still or run over its end, or a backup would take the processor from the service.
#[test]
fn progress_leads_from_nothing_to_all() {
    let place = Place::filled();
    place.append("c", 0..2000);
    let bytes = files(&place.data()).values().map(|bytes| bytes.len() as u64).sum::<u64>();
    let disk = RealDisk::open_existing(&place.data()).unwrap();
    let mut told = Told::new();
    let mut nice = 0;
    let report = snapshot(&disk, &options(place.path("s"), None), &mut |progress| {
        assert_eq!(progress.bytes, bytes);
        told.tell(&progress);
        nice = rustix::process::getpriority_process(None).unwrap();
    });
    assert_eq!((report.unwrap().copied_bytes, told.bytes_done, nice), (bytes, bytes, 19));
    let mut told = Told::new();
    let report = check(&place.path("s"), None, &mut |progress| told.tell(&progress)).unwrap();
    assert_eq!((report.files, report.lines, report.bytes), (4, 42_003, bytes));
    assert!(told.bytes_done > bytes / 2, "{}", told.bytes_done);
    let mut told = Told::new();
    place.append("a", 3..5);
    let report = continues(&disk, &place.path("s"), &mut |progress| told.tell(&progress)).unwrap();
    assert_eq!((report.files, report.lines, report.bytes, told.bytes_done), (4, 42_003, bytes, bytes));
}

/// Broken, a file would be missing from a backup without a word, or hold zeros where somebody cut it.
#[test]
fn what_changes_under_a_snapshot_is_told_unless_it_is_gone() {
    let place = Place::filled();
    place.append("c", 0..1);
    let disk = RealDisk::open_existing(&place.data()).unwrap();
    let path = place.data().join("c.jsonl");
    let take = |to: &str, meddle: &mut (dyn FnMut(&str) + Send)| {
        snapshot(&disk, &options(place.path(to), None), &mut |progress| meddle(progress.file))
    };
    let taken = take("s1", &mut |_| drop(fs::remove_file(&path))).unwrap();
    assert_eq!(taken.manifest.totals.files, 3, "whoever removes a domain may do so");
    assert_eq!(place.found("s1"), (vec![], Some(0)));
    place.append("c", 0..1);
    let refused = take("s2", &mut |_| {
        let _ = fs::remove_file(&path);
        let _ = symlink(place.data().join("a.jsonl"), &path);
    });
    assert!(refused.is_err(), "{refused:?}");
    fs::remove_file(&path).unwrap();
    let refused = take("s3", &mut |file| {
        if file == "b.example.jsonl" {
            OpenOptions::new().write(true).open(place.data().join(file)).unwrap().set_len(100).unwrap();
        }
    });
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("b.example.jsonl") && refused.contains("became shorter"), "{refused}");
    assert_eq!(place.names(), ["s1"]);
}

/// Broken, a snapshot that is asked for over HTTP would land beside its place.
#[test]
fn a_place_is_at_most_four_plain_names_below_the_root() {
    let place = Place::new();
    fs::create_dir_all(place.path("a/b/c/d/e")).unwrap();
    let root = place.dir.path().canonicalize().unwrap();
    let long = "x".repeat(128);
    for name in ["x", "a/x", "a/b/x", "a/b/c/x", "a/b/c/d", &long] {
        assert_eq!(leitstand::storage::snapshot::place(&root, name).unwrap(), root.join(name));
    }
    for name in ["a/b/c/d/x", "a/b/c/d/e/x", "x/y", "a/x/y", &format!("{long}x")] {
        assert!(leitstand::storage::snapshot::place(&root, name).is_err(), "{name}");
    }
}

/// Broken, a file that was changed would be linked from a base that holds what it was.
#[test]
fn a_base_is_not_trusted_when_the_source_was_changed_near_its_end() {
    let place = Place::new();
    // A whole number of blocks of SHA-256, so that nothing of the end goes into the hash once more.
    let text = |domain: &str, lines: u32| -> Vec<u8> {
        let line = |id| format!("{{\"id\":{id:06},\"domain\":\"{domain}\",\"pad\":\"{:>28}\"}}\n", "");
        (0..lines).flat_map(|id| line(id).into_bytes()).collect()
    };
    assert_eq!(text("a", 1).len(), 64);
    let path = place.data().join("a.jsonl");
    let parts = |name: &str| names(&place.path(name)).iter().filter(|name| name.starts_with("a.jsonl")).count();
    for (number, at) in [7, 64 * 10 + 7, 64 * 2990 + 7, 64 * 2999 + 7].into_iter().enumerate() {
        // The first two lie further away than what is looked at, so the file must be another one.
        let is_far = at < 64 * 1000;
        fs::write(&path, text("a", 3000)).unwrap();
        let (base, next) = (format!("base{number}"), format!("next{number}"));
        place.taken(&base, &[]);
        if is_far {
            fs::write(place.path("other"), text("a", 3000)).unwrap();
            fs::rename(place.path("other"), &path).unwrap();
        }
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"9", at).unwrap();
        place.append("a", 1..2);
        place.taken(&next, &["--base", &base]);
        assert_eq!(parts(&next), 1, "a full copy: {at}");
        assert_eq!(place.restored(&next, &format!("r{number}")), files(&place.data()), "{at}");
    }
}

/// Broken, a chain would grow by parts that hold nothing, or would be copied although nothing is new.
#[test]
fn a_chain_grows_only_by_what_is_new() {
    let place = Place::filled();
    place.taken("s0", &[]);
    place.append("empty", 0..1);
    let said = place.taken("s1", &["--base", "s0"]);
    assert_eq!(said["copied_bytes"], line("empty", 0).len());
    let parts = ["a.jsonl", "b.example.jsonl", "empty.jsonl", MANIFEST, MANIFEST_SHA256];
    assert_eq!(names(&place.path("s1")), parts, "no part without a byte");
    let manifest = |name: &str| -> Manifest {
        serde_json::from_slice(&fs::read(place.path(name).join(MANIFEST)).unwrap()).unwrap()
    };
    assert_eq!(manifest("s1").base, Some(manifest("s0").id));
    assert_ne!(manifest("s1").id, manifest("s0").id);
}

/// Broken, what somebody forged would be taken for what the snapshot holds.
#[test]
fn a_manifest_that_differs_from_its_files_is_told() {
    let place = Place::filled();
    place.taken("s", &[]);
    let found = |change: fn(&mut Value)| {
        let path = place.path("s").join(MANIFEST);
        let before = fs::read(&path).unwrap();
        place.forge("s", change);
        let found = place.found("s");
        fs::write(path, before).unwrap();
        place.sign("s");
        found
    };
    let wrong = |file: &str| (vec![("wrong_hash".to_owned(), file.to_owned())], Some(1));
    let lines = |m: &mut Value| {
        m["files"][0]["lines"] = json!(4);
        m["totals"]["lines"] = json!(40_004);
    };
    assert_eq!(found(lines), wrong("a.jsonl"));
    assert_eq!(found(|m| m["files"][0]["sha256"] = m["files"][1]["sha256"].clone()), wrong("a.jsonl"));
    assert_eq!(found(|m| m["files"][0]["segments"][0]["sha256"] = m["files"][1]["sha256"].clone()), wrong("a.jsonl"));
    assert_eq!(place.found("s"), (vec![], Some(0)));
    let refused = |change: fn(&mut Value), word: &str| {
        let path = place.path("s").join(MANIFEST);
        let before = fs::read(&path).unwrap();
        place.forge("s", change);
        let finished = place.leitstand(&["restore", "--from", "s", "--to", "r"]);
        assert_refused(&place, &finished, 1, &[word], &["s"]);
        fs::write(path, before).unwrap();
        place.sign("s");
    };
    refused(|m| m["files"][0]["sha256"] = json!("g".repeat(64)), "as a hash");
    refused(|m| m["files"][0]["sha256"] = json!("A".repeat(64)), "as a hash");
    refused(|m| m["files"][0]["sha256"] = json!("a".repeat(63)), "as a hash");
    refused(|m| m["files"][0]["poisoned"] = json!(""), "poisoned");
    refused(|m| m["files"][0]["poisoned"] = json!("Sync"), "poisoned");
    refused(|m| m["files"][0]["poisoned"] = json!("a".repeat(33)), "poisoned");
    fs::write(place.path("s").join(MANIFEST_SHA256), "a".repeat(2000)).unwrap();
    let finished = place.leitstand(&["restore", "--from", "s", "--to", "r"]);
    assert_refused(&place, &finished, 1, &["longer than any"], &["s"]);
}

/// Broken, foreign files in a snapshot of a poisoned domain would go unseen.
#[test]
fn strays_are_told_beside_marks() {
    let place = Place::filled();
    fs::create_dir(place.data().join(".torn")).unwrap();
    fs::write(place.data().join(".torn/a.jsonl.poisoned"), "reason=sync\n").unwrap();
    place.taken("s", &[]);
    assert_eq!(place.found("s"), (vec![], Some(0)));
    fs::write(place.path("s/note"), "").unwrap();
    fs::write(place.path("s/.torn/b.example.jsonl.poisoned"), "reason=sync\n").unwrap();
    let stray = |name: &str| ("not_in_manifest".to_owned(), name.to_owned());
    assert_eq!(place.found("s"), (vec![stray(".torn/b.example.jsonl.poisoned"), stray("note")], Some(1)));
    fs::remove_file(place.path("s/note")).unwrap();
    fs::remove_file(place.path("s/.torn/b.example.jsonl.poisoned")).unwrap();
    let mark = place.path("s/.torn/a.jsonl.poisoned");
    let wrong = (vec![("wrong_mark".to_owned(), ".torn/a.jsonl.poisoned".to_owned())], Some(1));
    let text = fs::read_to_string(&mark).unwrap();
    for bad in [format!("{text}x"), text[..text.len() - 1].to_owned(), String::new()] {
        fs::write(&mark, &bad).unwrap();
        assert_eq!(place.found("s"), wrong, "{bad:?}");
    }
    fs::write(place.path("mark"), text).unwrap();
    fs::remove_file(&mark).unwrap();
    symlink(place.path("mark"), &mark).unwrap();
    assert_eq!(place.found("s"), wrong, "a link");
}

/// Broken, what stands in the place of a file would be read as if it were the file.
#[test]
fn a_directory_is_looked_at_by_its_files_and_nothing_else() {
    let place = Place::filled();
    place.taken("s", &[]);
    let told = |manifest: &str| {
        let finished = place.leitstand(&["verify", "--json", "--data-dir", "data", "--manifest", manifest]);
        let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {finished:?}"));
        let findings = report["findings"].as_array().unwrap().iter();
        findings.map(|f| format!("{} {}", f["kind"], f["file"]).replace('"', "")).collect::<Vec<_>>()
    };
    for manifest in ["s", "s/", "s/manifest.json", "./s/manifest.json"] {
        assert_eq!(told(manifest), [""; 0], "{manifest}");
    }
    let args = ["verify", "--data-dir", "../data", "--manifest", "manifest.json"];
    assert_eq!(run(&mut command(&place.path("s"), &args)).code, Some(0));
    let path = place.data().join("a.jsonl");
    fs::rename(&path, place.path("away")).unwrap();
    symlink(place.path("away"), &path).unwrap();
    assert_eq!(told("s"), ["symlink a.jsonl"]);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(told("s"), ["not_regular a.jsonl"]);
    fs::remove_file(place.path("s/a.jsonl")).unwrap();
    fs::create_dir(place.path("s/a.jsonl")).unwrap();
    assert_eq!(place.found("s"), (vec![("not_regular".into(), "a.jsonl".into())], Some(1)));
}

// ---- POST /admin/snapshot

const ADMIN: &str = "admin-canary-token";

pub(crate) fn server() -> (TestServer, TempDir) {
    let backups = tempfile::tempdir().unwrap();
    let server = TestServer::builder()
        .env("LEITSTAND_ADMIN_TOKEN", ADMIN)
        .env("LEITSTAND_SNAPSHOT_DIR", backups.path())
        .env("LEITSTAND_LOCK_TIMEOUT", "1")
        .start();
    (server, backups)
}

pub(crate) fn admin(body: &Value) -> Request {
    Request::post_to("/admin/snapshot", body.to_string()).header("X-Auth", ADMIN)
}

/// Broken, who runs a backup over HTTP would not get one, or would not know what it holds.
#[test]
fn the_service_takes_a_snapshot_of_itself() {
    let (server, backups) = server();
    server.post("a", "{\"id\":1}").assert_accepted();
    let answer = server.send(&admin(&json!({"path": "one"})));
    assert_eq!(answer.status, 200, "{answer:?}");
    let said = answer.json();
    let manifest = fs::read(backups.path().join("one").join(MANIFEST)).unwrap();
    assert_eq!(said["sha256"], hex(&Sha256::digest(&manifest)));
    let manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
    assert_eq!((&said["id"], &said["path"]), (&json!(manifest.id), &json!("one")));
    assert_eq!((&said["files"], &said["lines"], &said["skipped"]), (&json!(1), &json!(1), &json!(0)));
    assert_eq!((said["bytes"].as_u64().unwrap(), said["duration_ms"].is_u64()), (manifest.totals.bytes, true));
    server.post("a", "{\"id\":2}").assert_accepted();
    let said = server.send(&admin(&json!({"path": "two", "base": "one"}))).json();
    assert_eq!((&said["lines"], &said["path"]), (&json!(2), &json!("two")));
    assert_eq!(names(&backups.path().join("two")), ["a.jsonl", MANIFEST, MANIFEST_SHA256]);
    // Without a body the time is the name.
    let said = server.send(&Request::new("POST", "/admin/snapshot").header("X-Auth", ADMIN).body("")).json();
    let name = said["path"].as_str().unwrap();
    assert!(name.len() == 16 && name.ends_with('Z') && backups.path().join(name).is_dir(), "{said}");
    for dir in ["one", "two", name] {
        let report = check(&backups.path().join(dir), None, &mut |_| {}).unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
    assert_eq!(server.metric("leitstand_snapshots_total", "result=\"ok\""), 3.0);
    let at = server.metric("leitstand_snapshot_last_success_timestamp_seconds", "");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - 60.0..=now).contains(&at), "{at}");
    assert!(server.metric("http_requests_total", "handler=\"/admin/snapshot\"") >= 3.0);
    server.log_line("a line for each", |line| line["message"] == "snapshot taken" && line["path"] == "two");
}

/// Broken, whoever has the token of a producer could fill the disk, or an administrator could write
/// where he must not.
#[test]
fn a_snapshot_over_http_is_refused_by_token_and_by_path() {
    let (server, backups) = server();
    server.post("a", "{\"id\":1}").assert_accepted();
    let good = json!({"path": "x"});
    server.send(&admin(&good).without("X-Auth")).assert_error(401, "unauthorized");
    server.send(&admin(&good).header("X-Auth", TOKEN)).assert_error(403, "forbidden");
    symlink(server.data_dir(), backups.path().join("link")).unwrap();
    fs::create_dir_all(backups.path().join("taken/x")).unwrap();
    for path in [
        "",
        ".",
        "..",
        "../x",
        "/tmp/x",
        "a/../b",
        "a//b",
        "x/",
        "/x",
        ".hidden",
        "taken/.x",
        "link",
        "link/x",
        "missing/x",
        "a\nb",
        "a\0b",
        "taken/x/y/z/w",
    ] {
        let answer = server.send(&admin(&json!({"path": path})));
        answer.assert_error(400, "invalid path");
    }
    server.send(&admin(&json!({"path": "taken"}))).assert_error(409, "path is taken");
    for base in ["..", "missing", "taken", "link", "/etc"] {
        server.send(&admin(&json!({"path": "x", "base": base}))).assert_error(400, "invalid base");
    }
    for body in ["[]", "{\"path\":1}", "{\"path\":\"x\",\"pat\":\"y\"}", "{", "\u{fffd}"] {
        let answer = server.send(&Request::post_to("/admin/snapshot", body).header("X-Auth", ADMIN));
        answer.assert_error(400, "invalid body");
    }
    server.send(&admin(&good).header("Content-Type", "text/plain")).assert_error(415, "unsupported content-type");
    server.send(&admin(&json!({"path": "x".repeat(5000)}))).assert_error(413, "payload too large");
    let lock = File::create(backups.path().join(".snapshot.lock")).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    server.send(&admin(&good)).assert_error(409, "another snapshot is running");
    drop(lock);
    let held = server.hold_lock("a");
    let answer = server.send(&admin(&good));
    answer.assert_error(503, "lock timeout");
    assert_eq!(answer.header("retry-after"), Some("1"));
    drop(held);
    assert_eq!(names(backups.path()), [".snapshot.lock", "link", "taken"], "nothing was made");
    assert_eq!(server.data_names(), ["a.jsonl", "a.jsonl.lock"]);
    for (result, times) in [("already_running", 1.0), ("locked", 1.0), ("not_empty", 1.0), ("ok", 0.0)] {
        assert_eq!(server.metric("leitstand_snapshots_total", &format!("result=\"{result}\"")), times, "{result}");
    }
    assert_eq!(server.send(&admin(&good)).status, 200);
    server.send(&admin(&json!({"path": "x/in-it"}))).assert_error(400, "invalid path");
    assert!(check(&backups.path().join("x"), None, &mut |_| {}).unwrap().is_clean(), "the one before is as it was");

    let without = TestServer::builder().env("LEITSTAND_ADMIN_TOKEN", ADMIN).start();
    without.send(&admin(&good)).assert_error(404, "Not Found");
    without.send(&admin(&good).header("X-Auth", TOKEN)).assert_error(403, "forbidden");
}

// ---- what goes in comes out

/// What happens to a directory between two snapshots.
#[derive(Debug, Clone)]
enum Change {
    /// So many bytes of whole lines.
    Append(usize, usize),
    /// Bytes that are no line.
    Tear(usize, Vec<u8>),
    /// The tail is mended as the service does it.
    Mend(usize),
    Remove(usize),
    /// Another file with the same bytes.
    Copy(usize),
    /// The same file with other bytes.
    Overwrite(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let file = 0..4usize;
    // Around the sizes of a block of SHA-256, a page, what is trusted, and a block of a copy.
    let sizes = prop_oneof![
        4 => 0..300usize, 2 => 4000..4200usize, 2 => 65_000..66_000usize, 1 => 1_048_000..1_049_000usize, 1 => 4_190_000..4_200_000usize,
    ];
    prop_oneof![
        6 => (file.clone(), sizes).prop_map(|(file, size)| Change::Append(file, size)),
        2 => (file.clone(), proptest::collection::vec(97..123u8, 1..100)).prop_map(|(file, bytes)| Change::Tear(file, bytes)),
        2 => file.clone().prop_map(Change::Mend),
        1 => file.clone().prop_map(Change::Remove),
        1 => file.clone().prop_map(Change::Copy),
        1 => (file, 0..3000usize).prop_map(|(file, size)| Change::Overwrite(file, size)),
    ]
}

/// Lines of together `size` bytes, or one less; all start with a number that is never used again.
fn filler(size: usize, next: &mut u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        *next += 1;
        let end = size.min(bytes.len() + 20 + (*next % 1500) as usize);
        bytes.extend_from_slice(format!("{next:020}").as_bytes());
        bytes.resize(end.max(1) - 1, b'.');
        bytes.push(b'\n');
    }
    bytes.truncate(size);
    if let Some(last) = bytes.last_mut() {
        *last = b'\n';
    }
    bytes
}

fn sound(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1)]
}

fn apply(data: &Path, change: &Change, next: &mut u64) {
    let path = |file: &usize| data.join(format!("d{file}.jsonl"));
    let append = |file: &usize, bytes: &[u8]| {
        OpenOptions::new().append(true).create(true).open(path(file)).unwrap().write_all(bytes).unwrap();
    };
    let read = |file: &usize| fs::read(path(file)).unwrap_or_default();
    match change {
        Change::Append(file, size) => append(file, &filler(*size, next)),
        Change::Tear(file, bytes) => append(file, bytes),
        Change::Mend(file) if path(file).exists() => {
            let len = sound(&read(file)).len() as u64;
            OpenOptions::new().write(true).open(path(file)).unwrap().set_len(len).unwrap();
        }
        Change::Remove(file) => drop(fs::remove_file(path(file))),
        Change::Copy(file) if path(file).exists() => {
            fs::write(data.join("copy"), read(file)).unwrap();
            fs::rename(data.join("copy"), path(file)).unwrap();
        }
        Change::Overwrite(file, size) => fs::write(path(file), filler(*size, next)).unwrap(),
        Change::Mend(_) | Change::Copy(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(24)))]

    /// Broken, a chain of snapshots would not hold what was there when each of them was taken.
    #[test]
    fn restored_is_what_was_there(steps in proptest::collection::vec((proptest::collection::vec(change(), 0..5), any::<bool>()), 1..6)) {
        let memory = tempfile::tempdir_in("/dev/shm");
        let dir = memory.or_else(|_| tempfile::tempdir()).unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("data")).unwrap();
        let disk = RealDisk::open_existing(&path("data")).unwrap();
        let mut next = 0;
        let mut taken: Vec<BTreeMap<String, Vec<u8>>> = Vec::new();
        for (number, (changes, full)) in steps.iter().enumerate() {
            changes.iter().for_each(|change| apply(&path("data"), change, &mut next));
            let options = SnapshotOptions {
                to: path(&format!("s{number}")),
                base: (number > 0 && !full).then(|| path(&format!("s{}", number.saturating_sub(1)))),
                lock_timeout: Duration::ZERO,
                rate: None,
                reserve_bytes: Some(0),
            };
            let report = snapshot(&disk, &options, &mut |_| {}).unwrap();
            let want: BTreeMap<_, _> =
                files(&path("data")).into_iter().map(|(name, bytes)| (name, sound(&bytes).to_vec())).collect();
            let lines = want.values().map(|bytes| bytes.iter().filter(|&&b| b == b'\n').count() as u64).sum::<u64>();
            prop_assert_eq!(report.manifest.totals.lines, lines);
            let on = continues(&disk, &options.to, &mut |_| {}).unwrap();
            prop_assert!(on.is_clean(), "{:?}", on);
            taken.push(want);
        }
        for (number, want) in taken.iter().enumerate() {
            let to = path(&format!("r{number}"));
            let from = path(&format!("s{number}"));
            restore(&RestoreOptions { from: from.clone(), to: to.clone(), expected: None }, &mut |_| {}).unwrap();
            let have = files(&to);
            prop_assert!(have == *want, "snapshot {} is not what was there", number);
            // The lines are made up, so that only what is not about lines counts.
            let report = check(&from, None, &mut |_| {}).unwrap();
            let of_parts = ["wrong_hash", "wrong_size", "missing_part", "not_in_manifest", "wrong_mark"];
            prop_assert!(!report.findings.iter().any(|f| of_parts.contains(&f.kind.word())), "{:?}", report.findings);
            fs::remove_dir_all(&to).unwrap();
        }
    }
}
