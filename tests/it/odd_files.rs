//! What is given to a command as a file and is none, and where a command is run from.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::{BINARY, Finished, TestServer, command, run, run_within};

/// The longest a command may take: a pipe is waited for during 5 s, and some look at one twice.
const LONGEST: Duration = Duration::from_secs(15);
/// More than any of them needs, and less than what one of these files could give.
const MEMORY_KIB_MAX: u64 = 2 << 20;

/// Arguments, and variables beside them.
type Case<'a> = (Vec<&'a str>, &'a [(&'a str, &'a str)]);

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// Runs the binary in bounded memory.
fn leitstand(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Finished {
    // The same environment as for any command.
    let like = command(dir, args);
    let mut bounded = Command::new("sh");
    bounded.arg("-c").arg(format!("ulimit -v {MEMORY_KIB_MAX}; exec \"$0\" \"$@\"")).arg(BINARY).args(args);
    bounded.current_dir(dir).stdin(std::process::Stdio::null());
    for (name, value) in like.get_envs() {
        if value.is_none() {
            bounded.env_remove(name);
        }
    }
    run_within(bounded.envs(env.iter().copied()), LONGEST + Duration::from_secs(10))
}

/// A sound snapshot of one event, beside its data directory.
fn snapshot(dir: &Path) {
    let server = TestServer::builder().env("LEITSTAND_DATA_DIR", dir.join("data")).start();
    server.post("a", "{}").assert_accepted();
    drop(server);
    let taken = run(&mut command(dir, &["snapshot", "--data-dir", "data", "--to", "snap"]));
    assert_eq!(taken.code, Some(0), "{taken:?}");
}

/// Broken, a command would hang for ever over a pipe, or read a device until memory is gone.
#[test]
fn no_command_hangs_over_what_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    snapshot(dir.path());
    fifo(&dir.path().join("fifo"));
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    symlink("loop", dir.path().join("loop")).unwrap();
    symlink("/dev/zero", dir.path().join("zero")).unwrap();
    let url = "http://127.0.0.1:1";
    for path in ["fifo", "socket", "data", "/dev/zero", "zero", "/dev/full", "/proc/self/mem", "/proc/kmsg", "loop"] {
        let is_dir = path == "data";
        let mut cases: Vec<Case<'_>> = vec![
            (vec!["verify", "--manifest", path, "--data-dir", "data"], &[]),
            (vec!["verify", "--snapshot", path], &[]),
            (vec!["restore", "--from", path, "--to", "out"], &[]),
            (vec!["restore", "--from", path, "--until", "2030-01-01T00:00:00Z", "--to", "out"], &[]),
            (vec!["snapshot", "--data-dir", "data", "--to", "out", "--base", path], &[]),
            (vec!["config", "check", "--config", path], &[("LEITSTAND_TOKEN", "t")]),
            (vec!["config", "check", "--env-file", path], &[("LEITSTAND_TOKEN", "t")]),
            (vec!["config", "check"], &[]),
            (vec!["healthcheck", "--heartbeat", path], &[]),
            (vec!["doctor", "--url", url, "--token-file", path], &[]),
            (vec!["token", "add", "ci", "--scope", "ingest", "--secret-file", path, "--data-dir", "data"], &[]),
        ];
        // Some take a directory, and find out later that it is none of theirs.
        if !is_dir {
            cases.extend([
                (vec!["drill", "--restore-from", path, "--dir", "work"], &[][..]),
                (vec!["verify", "--data-dir", path], &[]),
                (vec!["repair", "--data-dir", path], &[]),
                (vec!["snapshot", "--data-dir", path, "--to", "out"], &[]),
                (vec!["drill", "--dir", path], &[]),
                (vec!["support-bundle", "--to", path], &[]),
                (vec!["snapshot", "--data-dir", "data", "--to", path], &[]),
                (vec!["token", "list", "--data-dir", path], &[]),
            ]);
        }
        let token_file = [("LEITSTAND_TOKEN_FILE", path)];
        for (args, env) in &cases {
            let env = if env.is_empty() && args[0] == "config" { &token_file[..] } else { env };
            let began = Instant::now();
            let finished = leitstand(dir.path(), args, env);
            let told = format!("{args:?} {env:?}: {finished:?}");
            assert!(matches!(finished.code, Some(1 | 2)), "{told}");
            assert!(began.elapsed() < LONGEST, "{:?}: {told}", began.elapsed());
            let text = finished.errors();
            assert!(text.starts_with("leitstand: ") && text.len() < 2_000, "{told}");
            assert!(
                !text.contains("panicked") && !text.contains("out of memory") && !text.contains("os error 12"),
                "{told}"
            );
            assert!(["out", "work"].iter().all(|name| !dir.path().join(name).exists()), "{told}");
        }
        // A bundle has what there is, and says what it lacks.
        let finished = leitstand(dir.path(), &["support-bundle", "--to", "bundle", "--log", path], &[]);
        assert!(matches!(finished.code, Some(0 | 1)) || path == "loop", "{path}: {finished:?}");
        let _ = fs::remove_dir_all(dir.path().join("bundle"));
    }
}

/// Broken, whatever stands in a snapshot in the place of one of its files would hang whoever reads it.
#[test]
fn no_command_hangs_over_what_is_no_file_of_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    snapshot(dir.path());
    for name in ["manifest.json", "manifest.json.sha256", "a.jsonl"] {
        let place = dir.path().join("snap").join(name);
        let aside = dir.path().join("aside");
        fs::rename(&place, &aside).unwrap();
        let makes: [&dyn Fn(&PathBuf); 5] = [
            &|at| fifo(at),
            &|at| drop(std::os::unix::net::UnixListener::bind(at).unwrap()),
            &|at| fs::create_dir(at).unwrap(),
            &|at| symlink("/dev/zero", at).unwrap(),
            // A file of nothing but a hole, larger than memory.
            &|at| fs::File::create(at).unwrap().set_len(1 << 40).unwrap(),
        ];
        for (kind, make) in makes.iter().enumerate() {
            make(&place);
            for args in [
                &["verify", "--snapshot", "snap"][..],
                &["verify", "--manifest", "snap/manifest.json", "--data-dir", "data"],
                &["restore", "--from", "snap", "--to", "out"],
                &["restore", "--from", ".", "--until", "2030-01-01T00:00:00Z", "--to", "out"],
                &["snapshot", "--data-dir", "data", "--to", "out", "--base", "snap"],
            ] {
                let began = Instant::now();
                let finished = leitstand(dir.path(), args, &[]);
                let told = format!("{name} kind {kind}: {args:?}: {finished:?}");
                // The hash of the manifest and the data are not asked for by everybody.
                let may_pass = name != "manifest.json";
                assert!(matches!(finished.code, Some(1 | 2)) || (may_pass && finished.code == Some(0)), "{told}");
                assert!(began.elapsed() < LONGEST, "{:?}: {told}", began.elapsed());
                assert!(!finished.stderr.contains("panicked") && !finished.stderr.contains("os error 12"), "{told}");
                let _ = fs::remove_dir_all(dir.path().join("out"));
            }
            if fs::symlink_metadata(&place).unwrap().is_dir() {
                fs::remove_dir(&place).unwrap();
            } else {
                fs::remove_file(&place).unwrap();
            }
        }
        fs::rename(&aside, &place).unwrap();
    }
}

/// Broken, a command would say that all is well where a service could not start, or leave who uses it with "No such file
/// or directory".
#[test]
fn a_working_directory_that_was_removed_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let gone = |args: &[&str], env: &[(&str, &str)]| {
        let mut shell = Command::new("sh");
        let script = "mkdir gone && cd gone && rmdir ../gone && exec \"$0\" \"$@\"";
        shell.arg("-c").arg(script).arg(BINARY).args(args).current_dir(dir.path());
        for (name, _) in std::env::vars_os() {
            if ["LEITSTAND_", "CHRONIK_", "LOG_LEVEL"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                shell.env_remove(name);
            }
        }
        run(shell.env("LEITSTAND_TOKEN", "t").env("LEITSTAND_PORT", "0").envs(env.iter().copied()))
    };
    for (args, code) in [
        (&["config", "check"][..], 1),
        (&["config", "check", "--json"], 1),
        (&["validate", "--config", "a.toml"], 1),
        (&["config", "check", "--env-file", "a.env"], 1),
        (&["serve"], 1),
        (&["healthcheck", "--port", "1"], 1),
        (&["healthcheck", "--heartbeat", "beat"], 1),
        (&["verify"], 2),
        (&["verify", "--snapshot", "snap"], 2),
        (&["repair"], 2),
        (&["snapshot", "--to", "snap"], 2),
        (&["restore", "--from", "a", "--to", "b"], 2),
        (&["token", "add", "ci", "--scope", "ingest"], 1),
        (&["support-bundle", "--to", "bundle"], 2),
        (&["drill", "--dir", "work"], 2),
        (&["doctor", "--url", "http://127.0.0.1:1", "--token-file", "t"], 2),
    ] {
        let finished = gone(args, &[]);
        assert_eq!(finished.code, Some(code), "{args:?}: {finished:?}");
        assert!(finished.stderr.contains("the working directory was removed"), "{args:?}: {finished:?}");
        assert!(!finished.stderr.contains("panicked"), "{args:?}: {finished:?}");
        if args.contains(&"--json") {
            let document: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
            assert!(document.to_string().contains("was removed"), "{document}");
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was begun");
    // Who names all by whole paths needs none.
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let data = data.to_str().unwrap();
    for args in [&["config", "check"][..], &["verify", "--data-dir", data], &["verify"], &["token", "list"]] {
        let finished = gone(args, &[("LEITSTAND_DATA_DIR", data)]);
        assert_eq!(finished.code, Some(0), "{args:?}: {finished:?}");
        assert!(!finished.stderr.contains("removed"), "{args:?}: {finished:?}");
    }
}

/// Broken, a text would name a program that nobody has, or two names for one.
#[test]
fn every_text_calls_the_program_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("renamed-by-somebody");
    symlink(BINARY, &other).unwrap();
    for args in [
        &[][..],
        &["--help"],
        &["--version"],
        &["help", "token"],
        &["help", "token", "add"],
        &["serve", "--help"],
        &["serve", "--nonsense"],
        &["config"],
        &["config", "check", "--help"],
        &["doctor", "--help"],
        &["doctor", "--nonsense"],
        &["token"],
        &["token", "add"],
        &["snapshot"],
        &["restore", "--to", "x"],
        &["drill", "--seconds", "x"],
        &["nonsense"],
        &["--restore", "x"],
        &["--json"],
        &["config", "check"],
        &["verify", "--data-dir", "nowhere"],
    ] {
        let finished = run(Command::new(&other).args(args).current_dir(dir.path()).env_remove("LEITSTAND_TOKEN"));
        let text = format!("{}{}", finished.stdout, finished.stderr);
        assert!(!text.contains("renamed-by-somebody"), "{args:?}: {text}");
        assert!(text.contains("leitstand") || !text.contains("Usage:"), "{args:?}: {text}");
    }
}
