//! `leitstand support-bundle`: what somebody elsewhere needs to help, in one directory. No payload and no
//! secret is in it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::{Value, json};

use super::data::{SOMETHING_FOUND, count, print};
use super::env::Loader;
use super::http::{Answer, Bounds, Connection};
use super::{BindArgs, config_check, doctor, host, settings_file};
use crate::config::{Config, Values};
use crate::storage::snapshot::{Purpose, Target};
use crate::timestamp::rfc3339_s;

const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(5), answer_bytes_max: 64 << 20 };
/// Names of the data directory that are listed; of the others only the number.
const LISTED_MAX: usize = 10_000;
/// Longest line of a log that is taken whole.
const LINE_BYTES_MAX: usize = 16 << 10;
/// How much of a file is read at once.
const CHUNK_BYTES: u64 = 256 << 10;
/// Largest log that comes through a pipe.
const LOG_PIPE_BYTES_MAX: u64 = 64 << 20;
/// What stands in the place of a secret.
const MASKED: &str = "(masked)";
/// What the service is asked for, and whether that needs an admin token.
const ASKED: [(&str, &str, bool); 5] = [
    ("ready.json", "/health/ready", false),
    ("metrics.txt", "/metrics", false),
    ("ops-metrics.json", "/api/v1/ops/metrics", false),
    ("running-config.json", "/config", true),
    ("stats.json", "/stats?limit=10000", true),
];

/// Where to, and what of.
#[derive(Debug, Args)]
pub struct SupportBundleArgs {
    #[command(flatten)]
    bind: BindArgs,
    /// Directory to make; it must not be there yet
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// File or pipe with the log of the service; its last lines are copied
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// How many of them
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    log_lines: u32,
    /// One JSON document instead of lines
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: &SupportBundleArgs) -> Result<ExitCode, String> {
    let loaded = Loader::new(&args.bind).load(&Values::default());
    let config = loaded.as_ref().ok();
    let secrets = config.map_or(Vec::new(), |config| {
        config.tokens.expose().iter().chain(config.admin_tokens.expose()).cloned().collect()
    });
    if args.to.symlink_metadata().is_ok() {
        return Err(format!("{:?} is there already; name a directory that is not there yet", args.to));
    }
    let target = Target::find(&args.to).map_err(|e| e.to_string())?;
    // What is told by it concerns snapshots, and `doctor` names it.
    let _ = target.clear();
    // Removed when this fails, with whatever is in it; when it is killed, by the next one.
    let partial = target.begin(Purpose::SupportBundle).map_err(|e| e.to_string())?;
    let mut bundle = Bundle { dir: partial.path().to_owned(), secrets, files: Vec::new(), lacks: Vec::new(), note: "" };
    bundle.put("config.json", &format!("{:#}\n", config_check::checked(&args.bind)))?;
    match doctor::document(&args.bind) {
        Ok(document) => bundle.put("doctor.json", &format!("{document:#}\n"))?,
        Err(why) => bundle.lacks("doctor.json", &why),
    }
    match config {
        Some(config) => bundle.ask(config)?,
        None => bundle.lacks("ready.json", "the settings are refused, so it is not known whom to ask"),
    }
    let data_dir = config.map_or_else(super::env::data_dir, |config| Ok(config.data_dir.clone()));
    match data_dir.and_then(|dir| listing(&dir).map_err(|e| format!("cannot look at {dir:?}: {e}"))) {
        Ok(text) => bundle.put("files.txt", &text)?,
        Err(why) => bundle.lacks("files.txt", &why),
    }
    match &args.log {
        Some(path) => match last_lines(path, args.log_lines as usize) {
            Ok(text) => bundle.put("log.txt", &text)?,
            Err(e) => bundle.lacks("log.txt", &format!("cannot read {path:?}: {e}")),
        },
        None => bundle.note = "without a log: give --log FILE, or add journalctl -u leitstand",
    }
    let facts = host::facts(Path::new(".")).into_iter().map(|(name, value)| (name.to_owned(), value.into()));
    let about = json!({
        "leitstand": env!("CARGO_PKG_VERSION"),
        "made": rfc3339_s(SystemTime::now()),
        "machine": facts.collect::<serde_json::Map<String, Value>>(),
        "files": bundle.files,
        "lacks": bundle.lacks.iter().map(|(name, why)| json!({"file": name, "why": why})).collect::<Vec<_>>(),
    });
    bundle.put("bundle.json", &format!("{about:#}\n"))?;
    partial.finish().map_err(|e| e.to_string())?;
    let whole = bundle.lacks.is_empty();
    if args.json {
        print(&format!("{:#}\n", json!({"path": args.to.to_string_lossy(), "bundle": about})));
    } else {
        print(&bundle.lines(&args.to));
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(SOMETHING_FOUND) })
}

struct Bundle {
    dir: PathBuf,
    secrets: Vec<String>,
    files: Vec<&'static str>,
    /// What could not be had, and why.
    lacks: Vec<(&'static str, String)>,
    /// What nobody asked for, and would help.
    note: &'static str,
}

impl Bundle {
    /// Writes a file, with all secrets of the settings masked, wherever they may have come from.
    fn put(&mut self, name: &'static str, text: &str) -> Result<(), String> {
        let masked = self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), MASKED));
        let path = self.dir.join(name);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(masked.as_bytes()))
            .map_err(|e| format!("cannot write {path:?}: {e}"))?;
        self.files.push(name);
        Ok(())
    }

    fn lacks(&mut self, name: &'static str, why: &str) {
        self.lacks.push((name, why.lines().next().unwrap_or_default().to_owned()));
    }

    /// What the service says of itself.
    fn ask(&mut self, config: &Config) -> Result<(), String> {
        let admin = config.admin_tokens.expose().first();
        for (name, path, needs_admin) in ASKED {
            let token = match (needs_admin, admin) {
                (true, None) => {
                    self.lacks(name, "it needs LEITSTAND_ADMIN_TOKEN");
                    continue;
                }
                (true, Some(token)) => vec![("X-Auth", token.as_str())],
                (false, _) => Vec::new(),
            };
            let answer = Connection::open(&config.bind, BOUNDS).and_then(|mut connection| {
                connection.request("GET", path, &[&token[..], &[("Connection", "close")]].concat(), b"")
            });
            match answer {
                // Not ready is an answer too.
                Ok(answer) if [200, 503].contains(&answer.status) => match is_ours(name, &answer) {
                    true => self.put(name, &answer.text())?,
                    false => self.lacks(name, "what answers is not this service"),
                },
                Ok(answer) => self.lacks(name, &format!("the service answered {}", answer.status)),
                Err(e) => self.lacks(name, &format!("no answer: {e}")),
            }
        }
        Ok(())
    }

    fn lines(&self, dir: &Path) -> String {
        let mut text = String::new();
        for (name, why) in &self.lacks {
            let _ = writeln!(text, "lacks {name}: {why}");
        }
        if !self.note.is_empty() {
            let _ = writeln!(text, "{}", self.note);
        }
        let files = count(self.files.len() as u64, "file");
        let _ = writeln!(
            text,
            "{files} in {dir:?}; look through them before you send them, domains and addresses are in there"
        );
        text
    }
}

/// Is it an answer to this question? Anybody may listen on a port, and say anything.
fn is_ours(name: &str, answer: &Answer) -> bool {
    if name.ends_with(".json") {
        serde_json::from_slice::<serde_json::Map<String, Value>>(&answer.body).is_ok()
    } else {
        memchr::memmem::find(&answer.body, b"\nleitstand_build_info{").is_some()
    }
}

/// Mode, owner, length, time and name of everything in a data directory. Nothing is opened.
fn listing(dir: &Path) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.symlink_metadata()?.is_dir() {
            let below = fs::read_dir(&path)?.filter_map(Result::ok).map(|entry| entry.path());
            names.extend(below);
        }
        names.push(path);
    }
    names.sort();
    let mut text = String::new();
    for path in names.iter().take(LISTED_MAX) {
        // What is gone meanwhile is not there.
        let Ok(meta) = path.symlink_metadata() else { continue };
        let (mode, user, group, bytes) = (meta.mode(), meta.uid(), meta.gid(), meta.len());
        let changed = meta.modified().map(rfc3339_s).unwrap_or_default();
        let name = path.strip_prefix(dir).unwrap_or(path).display();
        let _ = writeln!(text, "{mode:06o} {user:>5} {group:>5} {bytes:>14} {changed} {name}");
    }
    if let Some(more) = names.len().checked_sub(LISTED_MAX).filter(|more| *more > 0) {
        let _ = writeln!(text, "and {}", count(more as u64, "more name"));
    }
    Ok(text)
}

/// The last lines of a log: of a file those at its end, of a pipe (`<(journalctl …)`) all that comes within a time. Holes
/// and long lines of an old log cost nothing.
fn last_lines(path: &Path, lines_max: usize) -> io::Result<String> {
    let bytes = if fs::metadata(path)?.is_file() {
        end_of(path, lines_max)?
    } else {
        settings_file::read(path, LOG_PIPE_BYTES_MAX)?
    };
    let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
    let mut text = String::new();
    for line in &lines[lines.len().saturating_sub(lines_max)..] {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        text.push_str(&String::from_utf8_lossy(&line[..line.len().min(LINE_BYTES_MAX)]));
        text.push_str(if line.len() > LINE_BYTES_MAX { "…\n" } else { "\n" });
    }
    Ok(text)
}

/// At least so many lines of the end of a file, but no more bytes than they may have.
fn end_of(path: &Path, lines_max: usize) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(path)?;
    let len = file.metadata()?.len();
    let (mut start, mut newlines, mut chunks) = (len, 0, Vec::new());
    // The last line may lack its end, so one more.
    while start > 0 && newlines <= lines_max && len - start < (lines_max * LINE_BYTES_MAX) as u64 {
        let from = start.saturating_sub(CHUNK_BYTES);
        let mut chunk = vec![0; (start - from) as usize];
        file.read_exact_at(&mut chunk, from)?;
        newlines += chunk.iter().filter(|b| **b == b'\n').count();
        chunks.push(chunk);
        start = from;
    }
    chunks.reverse();
    Ok(chunks.concat())
}
