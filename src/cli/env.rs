//! The configuration from the process environment, `.env` and the command line.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::BindArgs;
use crate::config::{Bind, Config, Source};

/// File in the working directory that is read for what the environment does not set.
const DOT_ENV: &str = ".env";

/// Reads everything; the message names every wrong setting.
pub(super) fn config(args: &BindArgs) -> Result<Config, String> {
    let dot_env = dot_env()?;
    let get = |name: &str| std::env::var_os(name).or_else(|| dot_env.get(name).cloned());
    let read = |path: &Path| std::fs::read(path);
    let mut config = Config::from_source(&Source { get: &get, read: &read }).map_err(|e| e.to_string())?;
    apply(args, &mut config.bind);
    Ok(config)
}

/// Only the data directory: who looks at files needs no token.
pub(super) fn data_dir() -> Result<PathBuf, String> {
    Ok(path("DATA_DIR")?.unwrap_or_else(|| PathBuf::from("data")))
}

/// Only where the named tokens are, in `data_dir` if that is given.
pub(super) fn token_store(data_dir: Option<&Path>) -> Result<PathBuf, String> {
    let given = if data_dir.is_some() { None } else { path("TOKEN_STORE")? };
    let dir = data_dir.map_or_else(self::data_dir, |dir| Ok(dir.to_owned()))?;
    Ok(given.filter(|given| !given.as_os_str().is_empty()).unwrap_or_else(|| crate::config::token_store("", &dir)))
}

/// The value of `LEITSTAND_X`, else `CHRONIK_X`.
fn path(name: &str) -> Result<Option<PathBuf>, String> {
    let dot_env = dot_env()?;
    let get = |prefix: &str| {
        let name = format!("{prefix}_{name}");
        std::env::var_os(&name).or_else(|| dot_env.get(&name).cloned())
    };
    Ok(get("LEITSTAND").or_else(|| get("CHRONIK")).map(PathBuf::from))
}

fn apply(args: &BindArgs, bind: &mut Bind) {
    if let Some(path) = &args.uds {
        *bind = Bind::Unix(path.clone());
    }
    if let Bind::Tcp { host, port } = bind {
        if let Some(given) = &args.host {
            host.clone_from(given);
        }
        *port = args.port.unwrap_or(*port);
    }
}

fn dot_env() -> Result<HashMap<String, OsString>, String> {
    let text = match std::fs::read_to_string(DOT_ENV) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(e) => return Err(format!("{DOT_ENV} cannot be read: {e}")),
    };
    parse(&text)
}

/// `NAME=value` lines, as systemd's EnvironmentFile reads them: `#` begins a comment line, quotes
/// around a value are taken off, and nothing is expanded, so that a `$` in a secret stays one.
///
/// # Errors
/// A message with the number of the first line that is neither; it does not quote the line.
pub fn parse(text: &str) -> Result<HashMap<String, OsString>, String> {
    let mut vars = HashMap::new();
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = assignment(line).ok_or_else(|| {
            // The line itself may hold a secret.
            format!("{DOT_ENV} line {number} is not NAME=value (a value in quotes must end with them)")
        })?;
        vars.insert(name.to_owned(), value.into());
    }
    Ok(vars)
}

fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (name, value) = line.split_once('=')?;
    let (name, value) = (name.trim(), value.trim());
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let value = match value.chars().next() {
        Some(quote @ ('"' | '\'')) => value[1..].strip_suffix(quote)?,
        // As shells do: a comment may follow after a blank.
        _ => value.split_once(" #").map_or(value, |(value, _)| value.trim_end()),
    };
    is_name.then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_written() {
        let text = "\u{feff}# comment\n\nA=1\r\nexport B = two words \nC='a$b #c'\nD=\"x=y\"\nE=\nF=p # comment\nG=a#b\nH=a$b\n";
        let vars = parse(text).unwrap();
        for (name, want) in [
            ("A", "1"),
            ("B", "two words"),
            ("C", "a$b #c"),
            ("D", "x=y"),
            ("E", ""),
            ("F", "p"),
            ("G", "a#b"),
            ("H", "a$b"),
        ] {
            assert_eq!(vars[name], want, "{name}");
        }
        assert_eq!(vars.len(), 8);
    }

    #[test]
    fn what_is_no_assignment_is_told_by_line_and_not_quoted() {
        for bad in ["s3cret", "A B=s3cret", "=s3cret", "A='s3cret", "A=\"s3cret'"] {
            let message = parse(&format!("X=1\n{bad}\n")).unwrap_err();
            assert!(message.contains("line 2") && !message.contains("s3cret"), "{message}");
        }
    }
}
