//! Who else may answer where a service is looked for, and what an operator sees of that.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;

use serde_json::Value;

use crate::support::{Finished, command, run};

/// What a terminal would act on, or nobody could see.
const ODD: &str = r"\u001b[2J\u001b]0;owned\u0007\u009b31m\u202e\u0000\r\n\u007f";

/// Answers each request by its path, for as long as the test runs. Gives its port.
fn stranger(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let body = answer(head.split(' ').nth(1).unwrap_or_default());
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(&body);
        }
    });
    port
}

fn leitstand(dir: &Path, args: &[&str]) -> Finished {
    run(command(dir, args).env("LEITSTAND_TOKEN", "some-other-token").env("LEITSTAND_ADMIN_TOKEN", "admin-admin"))
}

/// Nothing of what was shown does anything to a terminal, and it has an end.
fn assert_plain(finished: &Finished, what: &str) {
    let shown = format!("{}{}", finished.stdout, finished.stderr);
    let is_odd = |c: char| (c.is_control() && c != '\n') || ('\u{200b}'..='\u{200f}').contains(&c) || c == '\u{202e}';
    assert!(!shown.contains(is_odd), "{what}: {:?}", &shown.chars().take(3_000).collect::<String>());
    assert!(shown.len() < 20_000, "{what}: {} bytes are shown", shown.len());
}

/// Broken, a web server that has taken the port would be a healthy service, and write on the terminal of whoever asks.
#[test]
fn healthcheck_is_healthy_for_nobody_else_and_shows_only_what_it_understands() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(60_000);
    for body in [
        "<html><body>It works!</body></html>".to_owned(),
        "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\r\n".to_owned(),
        "ok".to_owned(),
        String::new(),
        r#"{"status":"ok"}"#.to_owned(),
        r#"{"status":"UP","components":{}}"#.to_owned(),
        format!(r#"{{"status":"ok","odd":"{ODD}"}}"#),
        format!(r#"{{"status":"ok","version":"{ODD}{long}"}}"#),
        format!(r#"{{"detail":"{ODD}{long}"}}"#),
        "y".repeat(10 << 20),
        "[".repeat(50_000),
    ] {
        let shown: String = body.chars().take(60).collect();
        let port = stranger(move |_| body.clone().into_bytes());
        for json in [false, true] {
            let args = [&["healthcheck", "--port", &port][..], if json { &["--json"] } else { &[] }].concat();
            let finished = leitstand(dir.path(), &args);
            assert_eq!(finished.code, Some(1), "{shown:?}: {:.300}", finished.stdout);
            assert_plain(&finished, &shown);
            assert!(!finished.stdout.contains("It works") && !finished.stderr.contains("It works"), "{finished:?}");
            if json {
                let document: Value = serde_json::from_str(&finished.stdout).unwrap();
                assert_eq!(document["healthy"], false, "{document}");
            } else {
                assert!(finished.stdout.is_empty() && finished.stderr.starts_with("leitstand: "), "{finished:?}");
            }
        }
    }
    // Ours says odd things at most in its version, which an operator chooses.
    let ours = format!(
        r#"{{"status":"ok","version":"{ODD}{long}","fsync":"{ODD}","checks":{{"{ODD}":true}},"more":"{ODD}"}}"#
    );
    let port = stranger(move |_| ours.clone().into_bytes());
    for args in [&["healthcheck", "--port", &port][..], &["healthcheck", "--port", &port, "--json"]] {
        let finished = leitstand(dir.path(), args);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert_plain(&finished, "ours");
    }
}

/// Broken, whoever looks at a service elsewhere would let it write on his terminal, or fill it.
#[test]
fn doctor_and_bundles_show_nothing_odd_of_who_answers() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(60_000);
    let port = stranger(move |path| {
        let checks = (0..3_000).map(|n| format!(r#""{ODD}{n}":false"#)).collect::<Vec<_>>().join(",");
        let body = match path.split('?').next().unwrap_or_default() {
            "/health/live" => format!(r#"{{"status":"ok","version":"{ODD}{long}"}}"#),
            "/health/ready" => format!(r#"{{"status":"unavailable","version":"{ODD}","checks":{{{checks}}}}}"#),
            "/metrics" => format!("\u{1b}[2J{long}"),
            "/stats" => format!(r#"{{"domains":[{{"name":"{ODD}{long}","poisoned":true}}],"truncated":false}}"#),
            "/v1/ingest" => format!("\u{1b}[2J\r\n\u{9b}31m{long}"),
            _ => format!("\u{1b}[2J<html>{long}"),
        };
        body.into_bytes()
    });
    let url = format!("http://127.0.0.1:{port}");
    std::fs::write(dir.path().join("token"), "some-token").unwrap();
    for json in [&["--json"][..], &[]] {
        let args = ["doctor", "--url", &url, "--token-file", "token", "--write-probe", "a"];
        let finished = leitstand(dir.path(), &[&args[..], json].concat());
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(finished.stdout.contains("see the documents of that version"), "{finished:?}");
        assert_plain(&finished, "doctor");
    }
    let finished = leitstand(dir.path(), &["support-bundle", "--to", "bundle", "--port", &port]);
    assert_eq!(finished.code, Some(1), "what is none of ours is lacking: {finished:?}");
    assert_plain(&finished, "support-bundle");
    for file in std::fs::read_dir(dir.path().join("bundle")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{7}']), "{:?}", text.chars().take(500).collect::<String>());
    }
    let about = std::fs::read_to_string(dir.path().join("bundle/bundle.json")).unwrap();
    let about: Value = serde_json::from_str(&about).unwrap();
    let lacks: Vec<&str> = about["lacks"].as_array().unwrap().iter().filter_map(|l| l["file"].as_str()).collect();
    assert_eq!(lacks, ["metrics.txt", "ops-metrics.json", "running-config.json", "files.txt"]);
}
