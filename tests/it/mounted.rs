//! Files that are mounted by themselves: what is replaced where they come from does not arrive, and that is said.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use leitstand::token::TokenFile;
use serde_json::Value;

use crate::support::{ADMIN_TOKEN, Builder, PATIENCE, Request, TestServer, command, run, skip, wait_for};

/// A mount of one file; taken away when it is dropped.
struct Mounted {
    from: PathBuf,
    to: PathBuf,
}

impl Mounted {
    /// Mounts `host/NAME` of a directory at `NAME` in it. `None`: this user may not mount.
    fn new(dir: &Path, name: &str, content: &str) -> Option<Mounted> {
        let mounted = Mounted { from: dir.join("host").join(name), to: dir.join(name) };
        fs::create_dir_all(dir.join("host")).unwrap();
        fs::write(&mounted.from, content).unwrap();
        fs::write(&mounted.to, "").unwrap();
        if mounted.mount() {
            return Some(mounted);
        }
        skip("this user may not mount a file");
        None
    }

    fn mount(&self) -> bool {
        Command::new("mount").arg("--bind").args([&self.from, &self.to]).output().is_ok_and(|out| out.status.success())
    }

    fn unmount(&self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.to).output();
    }

    /// Replaces the file where it comes from.
    fn replace(&self, how: Replaced, content: &str) {
        let (new, old) = (self.from.with_extension("new"), self.from.with_extension("old"));
        fs::write(&new, content).unwrap();
        match how {
            Replaced::ByRename => {}
            Replaced::WithACopy => fs::hard_link(&self.from, &old).unwrap(),
            Replaced::AndKept => fs::rename(&self.from, &old).unwrap(),
        }
        fs::rename(&new, &self.from).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// How tools replace files.
#[derive(Debug, Clone, Copy)]
enum Replaced {
    ByRename,
    /// Another name keeps the old file alive.
    WithACopy,
    /// The old file is renamed first, as editors do that keep a backup.
    AndKept,
}

/// A file, its content before and after, and how a service is made to read it.
type Case = (&'static str, &'static str, &'static str, fn(Builder) -> Builder);

fn reload(server: &TestServer) -> Value {
    server.send(&Request::get("/config").header("X-Auth", ADMIN_TOKEN)).json()
}

fn stale_files(server: &TestServer) -> f64 {
    server.metric("leitstand_config_stale_files", "")
}

/// Broken, a token that was withdrawn on the host stays good in the container, and everything says that all is well.
#[test]
fn a_file_that_was_replaced_behind_its_mount_is_told_until_it_is_mounted_anew() {
    let cases: [Case; 3] = [
        ("token", "first-token\n", "second-token\n", |b| {
            b.without("LEITSTAND_TOKEN").env("LEITSTAND_TOKEN_FILE", "token")
        }),
        ("set.toml", "rate_limit = \"7/second\"\n", "rate_limit = \"8/second\"\n", |b| {
            b.without("LEITSTAND_RATE_LIMIT").arg("--config").arg("set.toml")
        }),
        ("vars", "LOG_LEVEL=INFO\n", "LOG_LEVEL=DEBUG\n", |b| b.arg("--env-file").arg("vars")),
    ];
    for ((name, old, new, build), how) in
        cases.into_iter().zip([Replaced::ByRename, Replaced::WithACopy, Replaced::AndKept])
    {
        let builder = TestServer::builder();
        let Some(mounted) = Mounted::new(builder.dir(), name, old) else { return };
        let server = build(builder).start();
        assert_eq!(
            (stale_files(&server), reload(&server)["reload"]["successful"].clone()),
            (0.0, true.into()),
            "{name}"
        );
        mounted.replace(how, new);
        let told = server.log_line("the mount is told", |line| {
            line["message"].as_str().is_some_and(|text| text.contains(name) && text.contains("mount its directory"))
        });
        assert_eq!(told["level"], "WARN");
        wait_for("the figures say so", PATIENCE, || (stale_files(&server) == 1.0).then_some(()));
        assert_eq!(server.metric("leitstand_config_last_reload_successful", ""), 0.0, "{name}");
        let reload_now = reload(&server)["reload"].clone();
        assert!(reload_now["successful"] == false && reload_now["problems"][0].as_str().unwrap().contains(name));
        // From outside of the mount nothing is to be seen, but the service is asked.
        let url = format!("http://{}", server.address());
        let said = run(&mut command(Path::new("/"), &["doctor", "--url", &url]));
        assert!(said.stdout.contains("the service reads old files"), "{said:?}");
        if matches!(how, Replaced::ByRename | Replaced::WithACopy) {
            for args in [vec!["config", "check"], vec!["doctor"]] {
                let file = if name == "token" { vec![] } else { vec!["--config", "set.toml"] };
                let mut command = command(server.dir(), &[args.clone(), file].concat());
                let token = if name == "token" { ("LEITSTAND_TOKEN_FILE", "token") } else { ("LEITSTAND_TOKEN", "t") };
                let said = run(command.env("LEITSTAND_PORT", "1").env(token.0, token.1));
                let said = said.stdout + &said.stderr;
                assert!(said.contains("mount its directory"), "{args:?}: {said}");
            }
        }
        mounted.unmount();
        assert!(mounted.mount());
        wait_for("it is read again", PATIENCE, || (stale_files(&server) == 0.0).then_some(()));
        assert_eq!(reload(&server)["reload"]["successful"], true, "{name}");
        let warnings = server.log_lines().into_iter().filter(|line| line.to_string().contains("mount its directory"));
        assert_eq!(warnings.count(), 1, "{name}: {how:?}");
    }
}

/// Broken, a file that is written in place, or replaced without a mount of its own, would be told as an old one.
#[test]
fn what_is_written_in_place_arrives_and_is_not_told() {
    let builder = TestServer::builder()
        .without("LEITSTAND_TOKEN")
        .env("LEITSTAND_TOKEN_FILE", "token")
        .env("LEITSTAND_AUTH_RATE_LIMIT", "off");
    let Some(mounted) = Mounted::new(builder.dir(), "token", "first-token\n") else { return };
    let server = builder.start();
    let status = |token: &str| server.send(&Request::get("/health").header("X-Auth", token)).status;
    assert_eq!(status("first-token"), 200);
    fs::write(&mounted.from, "second-token\n").unwrap();
    wait_for("the new token counts", PATIENCE, || (status("second-token") == 200).then_some(()));
    mounted.unmount();
    for n in 0..20 {
        fs::write(server.dir().join("token.new"), format!("token-number-{n}\n")).unwrap();
        fs::rename(server.dir().join("token.new"), server.dir().join("token")).unwrap();
    }
    wait_for("the last token counts", PATIENCE, || (status("token-number-19") == 200).then_some(()));
    assert!(stale_files(&server) == 0.0 && !server.log().contains("mount its directory"));
}

/// Broken, a named token that was revoked on the host would be accepted in the container, and nothing would say so.
#[test]
fn a_token_store_that_was_replaced_behind_its_mount_is_told() {
    let builder = TestServer::builder().env("LEITSTAND_TOKEN_STORE", "store");
    let Some(mounted) = Mounted::new(builder.dir(), "store", "{\"version\":1,\"tokens\":[]}") else { return };
    let path = mounted.from.clone();
    let add = |name: &str| {
        let args = ["token", "add", name];
        run(command(path.parent().unwrap(), &args).env("LEITSTAND_TOKEN_STORE", &path))
    };
    fs::remove_file(&path).unwrap();
    mounted.unmount();
    let added = add("one");
    assert!(added.code == Some(0) && TokenFile::new(path.clone()).read().unwrap().is_some(), "{added:?}");
    assert!(mounted.mount());
    let server = builder.start();
    let gauge = || server.metric("leitstand_token_store_reload_successful", "");
    assert_eq!(gauge(), 1.0);
    // From inside it cannot be changed, and the reason is said.
    let inside = run(command(server.dir(), &["token", "add", "two"]).env("LEITSTAND_TOKEN_STORE", "store"));
    assert!(inside.code == Some(1) && inside.stderr.contains("mount its directory"), "{inside:?}");
    assert_eq!(add("three").code, Some(0));
    let told = server.log_line("the store is told", |line| line.to_string().contains("mount its directory"));
    assert_eq!(told["level"], "ERROR");
    wait_for("the figure says so", PATIENCE, || (gauge() == 0.0).then_some(()));
    mounted.unmount();
    assert!(mounted.mount());
    wait_for("it is read again", PATIENCE, || (gauge() == 1.0).then_some(()));
}

/// Broken, a heartbeat that is mounted into another container would only be called old, and the service be blamed.
#[test]
fn a_heartbeat_behind_a_mount_says_why_it_is_old() {
    let dir = tempfile::tempdir().unwrap();
    let beat = |at: &str| format!("{{\"at\":\"{at}\",\"last_success\":null}}\n");
    let Some(mounted) = Mounted::new(dir.path(), "beat", &beat("2020-01-01T00:00:00.000Z")) else { return };
    let judged = || run(&mut command(dir.path(), &["healthcheck", "--heartbeat", "beat"]));
    let old = judged();
    assert!(old.code == Some(1) && !old.stderr.contains("mounted by itself"), "{old:?}");
    mounted.replace(Replaced::ByRename, &beat("2099-01-01T00:00:00.000Z"));
    let stale = judged();
    assert!(stale.code == Some(1) && stale.stderr.contains("mount its directory"), "{stale:?}");
}
