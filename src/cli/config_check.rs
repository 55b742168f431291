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
use crate::config::{Bind, Config, ConfigError, Kind, Origin, Problem, Setting, Values};

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
        Ok(config) => data::print(&lines(config, warnings.len())),
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
        let problems = data_dir_problems(&config);
        if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
    });
    // A name with a slip is often the reason for a problem.
    let warnings = loaded.as_ref().map_or_else(
        |_| loader.unknown_names(),
        |config| config.warnings.iter().chain(&config.stale).cloned().collect(),
    );
    (loaded, warnings)
}

/// A file with variables: a shell (`set -a; . FILE`), systemd (`EnvironmentFile=`) and `--env-file` read it back to the
/// same configuration, but for the secrets. A comment before each says where it comes from, one at the end that it would do.
fn lines(config: &Config, warnings: usize) -> String {
    let mut text = String::new();
    for (name, value) in config.effective() {
        let setting = Setting::named(name).expect("it is in SETTINGS");
        let source = source(config, setting);
        let told = match (is_writable(config, setting, &value), quoted(&value)) {
            (true, Some(quoted)) => writeln!(text, "# {name}: {source}\n{name}={quoted}"),
            (true, None) => writeln!(text, "# {name}: {source}; not written, because readers differ: {value}"),
            (false, _) => writeln!(text, "# {name}: {source}; {value}"),
        };
        told.expect("a String takes everything");
    }
    let warnings = match warnings {
        0 => String::new(),
        n => format!(", {}", data::count(n as u64, "warning")),
    };
    text + &format!("# configuration ok{warnings}\n")
}

/// Where a value comes from, and by which variable if that has another name.
fn source(config: &Config, setting: &Setting) -> String {
    let (origin, called) = (config.origin(setting), config.called(setting));
    match origin {
        Origin::Environment | Origin::DotEnv(_) if called != setting.name => format!("{origin}, as {called}"),
        _ => origin.to_string(),
    }
}

/// May a file with variables say this, and would it mean the same?
fn is_writable(config: &Config, setting: &Setting, value: &str) -> bool {
    let is_socket =
        matches!(config.bind, Bind::Unix(_)) && ["LEITSTAND_HOST", "LEITSTAND_PORT"].contains(&setting.name);
    // Such a default is made of something else, and told in words.
    let is_made = *config.origin(setting) == Origin::Default && setting.default.is_empty() && !value.is_empty();
    setting.kind != Kind::Secret && !is_socket && !is_made
}

/// In quotes if need be, which mean the same to shells, to systemd and to us. `None`: no quotes do.
fn quoted(value: &str) -> Option<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-./:,@%+".contains(&b);
    if value.bytes().all(plain) {
        Some(value.to_owned())
    } else if !value.contains(['\'', '\n']) {
        Some(format!("'{value}'"))
    } else if !value.contains(['"', '$', '`', '\\', '\n']) {
        Some(format!("\"{value}\""))
    } else {
        None
    }
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
            "variable": variable(config, setting),
            "key": setting.key,
            "restart_required": !setting.live,
        });
        (name.to_owned(), told)
    };
    config.effective().into_iter().map(told).collect()
}

/// The variable that says it, by whichever of its names.
fn variable(config: &Config, setting: &Setting) -> Option<String> {
    let is_variable = matches!(config.origin(setting), Origin::Environment | Origin::DotEnv(_));
    is_variable.then(|| config.called(setting).to_owned())
}

/// Could the service use this directory, or make it? Creates nothing.
fn data_dir_problems(config: &Config) -> Vec<Problem> {
    let dir = &config.data_dir;
    let text = match std::fs::metadata(dir) {
        // Such a directory looks as if something could be made in it.
        _ if dir.is_relative() && data::working_dir_gone().is_some() => {
            Some("lies below a working directory that was removed".to_owned())
        }
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
    let problem = |why: String| {
        let (name, text) = data::data_dir_setting(config);
        let it = if text.starts_with("is not set") { "" } else { "it " };
        Problem { name, text: format!("{text}: {it}{why}") }
    };
    text.map(problem).into_iter().collect()
}

fn unusable(dir: &Path) -> Option<String> {
    let wanted = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    access(dir, wanted).err().map(|e| format!("cannot be used: {}", std::io::Error::from(e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a value would be another one for whoever reads the file.
    #[test]
    fn what_is_written_is_the_same_for_every_reader() {
        for (value, want) in [
            ("60/minute", Some("60/minute")),
            ("", Some("")),
            ("a b", Some("'a b'")),
            ("~/x", Some("'~/x'")),
            ("a$b`c\\\"", Some("'a$b`c\\\"'")),
            ("it's", Some("\"it's\"")),
            ("it's $5", None),
            ("a\nb", None),
        ] {
            assert_eq!(quoted(value).as_deref(), want, "{value:?}");
        }
    }
}
