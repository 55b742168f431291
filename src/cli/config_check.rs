//! `leitstand config check`, also `leitstand validate` and `--validate`: every problem at once, or what would hold.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use rustix::fs::{Access, access};
use serde_json::{Map, Value, json};

use super::env::Loader;
use super::{BindArgs, data};
use crate::config::{Config, ConfigError, Problem, Setting, Values};

/// How to check, and what.
#[derive(Debug, Default, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    bind: BindArgs,
    /// One JSON document instead of lines
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: &CheckArgs) -> Result<ExitCode, String> {
    let (loaded, warnings) = load(&args.bind);
    let code = if loaded.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.json {
        data::print(&format!("{:#}\n", document(&loaded, &warnings)));
        return Ok(code);
    }
    match &loaded {
        Ok(config) => data::print(&lines(config)),
        Err(refused) => data::tell(format_args!("leitstand: {refused}")),
    }
    for warning in &warnings {
        data::tell(format_args!("leitstand: warning: {warning}"));
    }
    Ok(code)
}

/// What it prints as JSON.
pub(super) fn checked(bind: &BindArgs) -> Value {
    let (loaded, warnings) = load(bind);
    document(&loaded, &warnings)
}

/// What would hold, and what is doubtful.
fn load(bind: &BindArgs) -> (Result<Config, ConfigError>, Vec<String>) {
    let loader = Loader::new(bind);
    let loaded = loader.load(&Values::default()).and_then(|config| {
        let problems = data_dir_problems(&config.data_dir);
        if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
    });
    // A name with a slip is often the reason for a problem.
    let warnings = loaded.as_ref().map_or_else(
        |_| loader.unknown_names(),
        |config| config.warnings.iter().chain(&config.stale).cloned().collect(),
    );
    (loaded, warnings)
}

/// `NAME=value  # source`
fn lines(config: &Config) -> String {
    let mut text = String::new();
    for (name, value) in config.effective() {
        let origin = Setting::named(name).map_or(String::new(), |setting| config.origin(setting).to_string());
        writeln!(text, "{name}={value}  # {origin}").expect("a String takes everything");
    }
    text
}

fn document(loaded: &Result<Config, ConfigError>, warnings: &[String]) -> Value {
    match loaded {
        Ok(config) => json!({
            "ok": true,
            "problems": [],
            "warnings": warnings,
            "settings": settings(config),
        }),
        Err(ConfigError(problems)) => {
            let told = |problem: &Problem| json!({"name": problem.name, "text": problem.text});
            json!({"ok": false, "problems": problems.iter().map(told).collect::<Vec<_>>(), "warnings": warnings})
        }
    }
}

fn settings(config: &Config) -> Map<String, Value> {
    let told = |(name, value): (&'static str, String)| {
        let setting = Setting::named(name).expect("it is in SETTINGS");
        let told = json!({
            "value": value,
            "source": config.origin(setting).to_string(),
            "key": setting.key,
            "restart_required": !setting.live,
        });
        (name.to_owned(), told)
    };
    config.effective().into_iter().map(told).collect()
}

/// Could the service use this directory, or make it? Creates nothing.
fn data_dir_problems(dir: &Path) -> Vec<Problem> {
    let text = match std::fs::metadata(dir) {
        Ok(meta) if !meta.is_dir() => Some("is no directory".to_owned()),
        Ok(_) => unusable(dir),
        Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Some(format!("cannot be looked at: {e}"))
        }
        Err(_) => {
            // The one that is there and in which the others would be made.
            let mut parents =
                dir.ancestors().skip(1).map(|dir| if dir == Path::new("") { Path::new(".") } else { dir });
            let parent = parents.find(|parent| parent.symlink_metadata().is_ok());
            match parent {
                Some(parent) if parent.is_dir() => {
                    unusable(parent).map(|why| format!("cannot be made: {} {why}", parent.display()))
                }
                Some(parent) => Some(format!("cannot be made: {} is no directory", parent.display())),
                None => Some("cannot be made".to_owned()),
            }
        }
    };
    let problem = |text| Problem {
        name: "LEITSTAND_DATA_DIR".to_owned(),
        text: format!("is {:?}: it {text}", dir.display().to_string()),
    };
    text.map(problem).into_iter().collect()
}

fn unusable(dir: &Path) -> Option<String> {
    let wanted = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    access(dir, wanted).err().map(|e| format!("cannot be used: {}", std::io::Error::from(e)))
}
