//! `leitstand doctor`: the sixty-second check of the runbook, as a command. Changes nothing, and writes
//! no event unless it is told to.

mod machine;
mod service;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::BindArgs;
use super::data::{SOMETHING_FOUND, plain, print};
use super::settings_file::read_text;
use crate::config::{Bind, Config, Tokens};
use crate::domain::Domain;

/// What to look at, and how strictly.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    bind: BindArgs,
    /// A service elsewhere, e.g. http://10.0.0.7:8788; without it the one of this machine's settings
    #[arg(long, conflicts_with_all = ["host", "port", "uds"])]
    url: Option<String>,
    /// File with the token to try; with an admin token domains are looked at too
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// One JSON document instead of lines
    #[arg(long)]
    pub(super) json: bool,
    /// Also what should be in order before a release goes out
    #[arg(long, conflicts_with = "post_deploy")]
    release: bool,
    /// Also what should be so after a deployment: the version is this one, no switch is left on
    #[arg(long)]
    post_deploy: bool,
    /// Write one event for this domain, to see the whole way; it is stored
    #[arg(long, value_name = "DOMAIN", value_parser = Domain::parse)]
    write_probe: Option<Domain>,
}

/// Longest text of a check, in characters.
const TEXT_CHARS_MAX: usize = 2_000;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        }
    }
}

/// One line of the report.
#[derive(Debug)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    text: String,
    /// What helps next; empty if nothing is wrong.
    next: String,
}

/// All lines, in the order in which they were found.
#[derive(Debug, Default)]
struct Report(Vec<Check>);

impl Report {
    fn ok(&mut self, name: &'static str, text: impl Into<String>) {
        self.push(name, Verdict::Ok, text, "");
    }

    fn warn(&mut self, name: &'static str, text: impl Into<String>, next: impl Into<String>) {
        self.push(name, Verdict::Warn, text, next);
    }

    fn fail(&mut self, name: &'static str, text: impl Into<String>, next: impl Into<String>) {
        self.push(name, Verdict::Fail, text, next);
    }

    fn push(&mut self, name: &'static str, verdict: Verdict, text: impl Into<String>, next: impl Into<String>) {
        let text: String = text.into();
        // Some of it comes from whoever answers.
        self.0.push(Check { name, verdict, text: plain(&text, TEXT_CHARS_MAX), next: next.into() });
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.0.iter().filter(|check| check.verdict == verdict).count()
    }

    fn summary(&self) -> String {
        let [ok, warn, fail] = [Verdict::Ok, Verdict::Warn, Verdict::Fail].map(|verdict| self.count(verdict));
        let s = if warn == 1 { "" } else { "s" };
        format!("{ok} ok, {warn} warning{s}, {fail} failed")
    }

    fn lines(&self) -> String {
        let mut text = String::new();
        for check in &self.0 {
            text.push_str(&format!("{:<4}  {:<10}  {}", check.verdict.word(), check.name, check.text));
            if !check.next.is_empty() {
                text.push_str(&format!("; next: {}", check.next));
            }
            text.push('\n');
        }
        text + &self.summary() + "\n"
    }

    fn document(&self, target: &str) -> Value {
        let check = |check: &Check| {
            let next = if check.next.is_empty() { Value::Null } else { check.next.as_str().into() };
            json!({"name": check.name, "verdict": check.verdict.word(), "text": check.text, "next": next})
        };
        json!({
            "service": target,
            "ok": self.count(Verdict::Ok),
            "warnings": self.count(Verdict::Warn),
            "failed": self.count(Verdict::Fail),
            "checks": self.0.iter().map(check).collect::<Vec<_>>(),
        })
    }
}

/// What is looked at, and what is known of it beforehand.
struct Patient {
    bind: Bind,
    token: Option<String>,
    /// Of this machine; `None` for a service elsewhere.
    config: Option<Config>,
    post_deploy: bool,
    release: bool,
    write_probe: Option<Domain>,
}

pub(super) fn run(args: &DoctorArgs) -> Result<ExitCode, String> {
    let patient = Patient::of(args)?;
    let report = patient.report();
    if args.json {
        print(&format!("{:#}\n", report.document(&shown(&patient.bind))));
    } else {
        print(&report.lines());
    }
    Ok(if report.count(Verdict::Fail) > 0 { ExitCode::from(SOMETHING_FOUND) } else { ExitCode::SUCCESS })
}

/// What it says as JSON of the service of these settings.
///
/// # Errors
/// The settings are refused.
pub(super) fn document(bind: &BindArgs) -> Result<Value, String> {
    let config = super::env::config(bind)?;
    let patient = Patient::of_machine(config);
    Ok(patient.report().document(&shown(&patient.bind)))
}

impl Patient {
    fn report(&self) -> Report {
        let mut report = Report::default();
        if let Some(config) = &self.config {
            machine::look(config, self, &mut report);
        }
        service::look(self, &mut report);
        report
    }

    /// The service of this machine, as its settings know it.
    fn of_machine(config: Config) -> Patient {
        let token = config.admin_tokens.expose().first().or(config.tokens.expose().first()).cloned();
        Patient {
            bind: config.bind.clone(),
            token,
            config: Some(config),
            post_deploy: false,
            release: false,
            write_probe: None,
        }
    }

    fn of(args: &DoctorArgs) -> Result<Patient, String> {
        let given = args.token_file.as_deref().map(token).transpose()?;
        let mut patient = match &args.url {
            // Secrets of this machine are not shown to another.
            Some(url) => Patient {
                bind: parse_url(url)?,
                token: None,
                config: None,
                post_deploy: false,
                release: false,
                write_probe: None,
            },
            None => Patient::of_machine(super::env::config(&args.bind)?),
        };
        patient.token = given.or(patient.token);
        if args.write_probe.is_some() && patient.token.is_none() {
            return Err("--write-probe needs a token: give --token-file".to_owned());
        }
        Ok(Patient {
            post_deploy: args.post_deploy,
            release: args.release,
            write_probe: args.write_probe.clone(),
            ..patient
        })
    }
}

/// The first token of a file.
fn token(path: &std::path::Path) -> Result<String, String> {
    // What is in it is not quoted.
    let text = read_text(path).map_err(|e| {
        format!("the token file cannot be read: {e}; --token-file takes the name of a file with a token in it")
    })?;
    let tokens = Tokens::of_file(&text).map_err(|why| {
        // "it holds no token", or a line that is none.
        why.strip_prefix("it ").map_or(format!("the token file: {why}"), |why| format!("the token file {why}"))
    })?;
    Ok(tokens.expose().first().cloned().unwrap_or_default())
}

/// `http://host[:port][/]`.
fn parse_url(url: &str) -> Result<Bind, String> {
    if url.starts_with("https://") {
        return Err(format!(
            "{url}: https is not spoken here; ask the service itself, behind the proxy, e.g. http://127.0.0.1:8788"
        ));
    }
    let wrong = || format!("{url:?} is no URL of a service, e.g. http://127.0.0.1:8788");
    let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    // After the bracket of an IPv6 address, or after the only colon.
    let (host, port) = match authority.rfind(']') {
        Some(end) => (&authority[..=end], authority[end + 1..].strip_prefix(':')),
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let is_host = |b: u8| b.is_ascii_alphanumeric() || b".-_:[]%".contains(&b);
    let rest_is_port = authority.len() == host.len() + port.map_or(0, |port| port.len() + 1);
    if host.is_empty() || !host.bytes().all(is_host) || !rest_is_port {
        return Err(wrong());
    }
    let port = port.map_or(Ok(80), |port| port.parse().map_err(|_| wrong()))?;
    Ok(Bind::Tcp { host: host.to_owned(), port })
}

fn shown(bind: &Bind) -> String {
    match bind {
        Bind::Tcp { host, port } if host.contains(':') && !host.starts_with('[') => format!("http://[{host}]:{port}"),
        Bind::Tcp { host, port } => format!("http://{host}:{port}"),
        Bind::Unix(path) => format!("unix:{}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, somebody would look at another service than he named.
    #[test]
    fn urls_are_read_strictly() {
        for (url, host, port) in [
            ("http://127.0.0.1:8788", "127.0.0.1", 8788),
            ("http://leitstand.internal:1/", "leitstand.internal", 1),
            ("http://[::1]:8788", "[::1]", 8788),
            ("http://[::1]", "[::1]", 80),
            ("http://host", "host", 80),
        ] {
            assert_eq!(parse_url(url), Ok(Bind::Tcp { host: host.into(), port }), "{url}");
        }
        for bad in [
            "",
            "host:1",
            "ftp://host",
            "http://",
            "http://:1",
            "http://host:",
            "http://host:99999",
            "http://host:1:2",
            "http://user@host",
            "http://host/path",
            "http://ho st",
            "http://host?x",
            "http://[::1]x:1",
            "http://host\r\n:1",
        ] {
            assert!(parse_url(bad).is_err(), "{bad:?}");
        }
        assert!(parse_url("https://host").unwrap_err().contains("behind the proxy"));
    }
}
