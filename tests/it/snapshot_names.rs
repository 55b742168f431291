//! Names of what is not finished yet: nobody's data has one, and nothing is removed for its name alone.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::snapshot::{Place, admin, assert_refused, files, names, server};
use crate::snapshot_leftovers::killed_snapshot;
use crate::support::{Mounted, skip};

/// Broken, whoever calls a backup so would lose it to the next one.
#[test]
fn no_target_has_a_name_of_something_unfinished() {
    let place = Place::filled();
    place.taken("s", &[]);
    let long = format!("s.partial-{:016x}", 7);
    for name in ["x.partial-5", "x.restoring-5", "a.b.partial-1", ".partial-f", &long, ".snapshot.lock"] {
        let words = ["is kept for what is not finished yet", "choose another"];
        assert_refused(&place, &place.snapshot(name, &[]), 2, &words, &["s"]);
        let restored = place.leitstand(&["restore", "--from", "s", "--to", name]);
        assert_refused(&place, &restored, 2, &words, &["s"]);
    }
    for name in ["x.partial", "x.partial-", "x.partial-2026-11-28", "partial-5", "x.partial-5.old"] {
        place.taken(name, &[]);
    }
    let (server, _backups) = server();
    server.post("a", "{\"id\":1}").assert_accepted();
    server.send(&admin(&json!({"path": "x.partial-5"}))).assert_error(400, "invalid path");
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// Broken, a directory would be removed because somebody gave it a name that we use as well.
#[test]
fn what_others_called_so_stays_and_is_told() {
    let place = Place::filled();
    place.taken("s", &[]);
    copy(&place.path("s"), &place.path("s.partial-5"));
    copy(&place.data(), &place.path("s.restoring-5"));
    copy(&place.path("s"), &place.path("t.partial-00000000000000aa"));
    fs::create_dir(place.path("empty.partial-6")).unwrap();
    fs::create_dir(place.path("half.partial-7")).unwrap();
    let unfinished = "{\"format\":\"leitstand-snapshot\",\"unfinished\":true}\n";
    fs::write(place.path("half.partial-7/manifest.json"), unfinished).unwrap();
    fs::create_dir(place.path("mark.restoring-8")).unwrap();
    fs::write(place.path("mark.restoring-8/.leitstand-unfinished"), "{}").unwrap();
    symlink(place.path("s"), place.path("link.partial-9")).unwrap();
    fs::write(place.path("file.partial-10"), "x").unwrap();
    // What we left ourselves, but somebody gave it another name.
    let left = killed_snapshot(&place, "u");
    fs::rename(place.path(&left), place.path("moved")).unwrap();
    copy(&place.path("moved"), &place.path("copied.partial-11"));
    let foreign = [
        "copied.partial-11",
        "empty.partial-6",
        "file.partial-10",
        "half.partial-7",
        "link.partial-9",
        "mark.restoring-8",
        "s.partial-5",
        "s.restoring-5",
        "t.partial-00000000000000aa",
    ];
    let before: Vec<_> = foreign.iter().map(|name| names_below(&place.path(name))).collect();
    let told = |said: &Value| {
        let left = said["left_alone"].as_array().unwrap().iter();
        left.map(|left| left["name"].as_str().unwrap().to_owned()).filter(|name| name != "moved").collect::<Vec<_>>()
    };
    assert_eq!(told(&place.taken("s2", &[])), foreign);
    let restored = place.leitstand(&["restore", "--from", "s", "--to", "r", "--json"]);
    assert_eq!(told(&serde_json::from_str(&restored.stdout).unwrap()), foreign, "{restored:?}");
    let shown = place.snapshot("s3", &[]).stdout;
    assert!(
        shown.contains("note: \"s.partial-5\" beside it was left alone: it holds no mark of leitstand\n"),
        "{shown}"
    );
    let after: Vec<_> = foreign.iter().map(|name| names_below(&place.path(name))).collect();
    assert_eq!(before, after);
    assert_eq!(files(&place.path("s.restoring-5")), files(&place.data()));
    assert!(place.path("moved").exists());
}

fn names_below(path: &Path) -> Vec<String> {
    if path.is_dir() { names(path) } else { vec!["no directory".to_owned()] }
}

/// Broken, what a link in a left-over leads to would be removed with it.
#[test]
fn links_in_a_left_over_are_not_followed() {
    let place = Place::filled();
    let left = killed_snapshot(&place, "s");
    fs::create_dir(place.path("outside")).unwrap();
    fs::write(place.path("outside/precious"), "x").unwrap();
    symlink(place.path("outside"), place.path(&left).join("dir")).unwrap();
    symlink(place.path("outside/precious"), place.path(&left).join("file")).unwrap();
    fs::create_dir_all(place.path(&left).join("deep/er")).unwrap();
    symlink("../../../outside", place.path(&left).join("deep/er/link")).unwrap();
    place.taken("s", &[]);
    assert_eq!(place.names(), ["outside", "s"]);
    assert_eq!(names(&place.path("outside")), ["precious"]);
}

/// Broken, a file system that somebody mounted in a left-over would be emptied.
#[test]
fn what_is_mounted_in_a_left_over_stays() {
    let place = Place::filled();
    let left = killed_snapshot(&place, "s");
    fs::create_dir(place.path("outside")).unwrap();
    fs::write(place.path("outside/precious"), "x").unwrap();
    let within = place.path(&left).join("within");
    fs::create_dir(&within).unwrap();
    let before = names(&place.path(&left));
    // Of the same file system, so that its number tells nothing.
    let Some(mounted) = Mounted::new(&["--bind".as_ref(), place.path("outside").as_os_str()], &within) else {
        return skip("needs root, to mount a directory");
    };
    let said = place.taken("s", &[]);
    let shown = said["left_alone"][0].to_string();
    assert!(shown.contains("mounted at") && shown.contains(&left), "{said}");
    assert_eq!((names(&place.path("outside")), names(&place.path(&left))), (vec!["precious".to_owned()], before));
    drop(mounted);
    assert_eq!(place.taken("s2", &[])["left_alone"], json!([]));
    assert_eq!(place.names(), ["outside", "s", "s2"]);
}
