//! The configuration from the command line, the process environment, `.env` and a TOML file.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use super::BindArgs;
use super::mounted::Mounts;
use super::settings_file::{BYTES_MAX, read_text};
use crate::config::{
    self, Config, ConfigError, FileLayer, Layers, Problem, Setting, Values, bytes, is_service_link, unknown_variables,
};
use crate::token::STORE_BYTES_MAX;

/// File in the working directory that is read for what the environment does not set, if no other is named.
const DOT_ENV: &str = ".env";

/// Reads everything; the message names every wrong setting.
pub(super) fn config(args: &BindArgs) -> Result<Config, String> {
    let loader = Loader::new(args);
    loader.load(&Values::default()).map_err(|refused| loader.told(&refused))
}

/// Only the data directory: who looks at files needs no token.
pub(super) fn data_dir() -> Result<PathBuf, String> {
    one("LEITSTAND_DATA_DIR").map(|(text, _)| PathBuf::from(text))
}

/// Only where the named tokens are, in `data_dir` if that is given.
pub(super) fn token_store(data_dir: Option<&Path>) -> Result<PathBuf, String> {
    match data_dir {
        Some(dir) => Ok(config::token_store("", dir)),
        None => Ok(config::token_store(&one("LEITSTAND_TOKEN_STORE")?.0, &self::data_dir()?)),
    }
}

/// Only the disk reserve.
pub(super) fn reserve_bytes() -> Result<Option<u64>, String> {
    let (text, called) = one("LEITSTAND_DISK_RESERVE")?;
    if text.is_empty() {
        return Ok(None);
    }
    bytes(&text).map(Some).map_err(|why| format!("{called} is {text:?}: {why}"))
}

/// One setting, from wherever it is set, or its default, and what it is called there.
fn one(name: &str) -> Result<(String, String), String> {
    let loader = Loader::new(&BindArgs::default());
    let dot_env = loader.dot_env()?;
    let file = loader.file(&dot_env)?;
    let layers = Layers {
        environment: &|name| loader.environment.get(name).cloned(),
        dot_env: &|name| dot_env.get(name).cloned(),
        file: file.as_ref(),
        ..Layers::empty(&read)
    };
    let setting = Setting::named(name).expect("it is in SETTINGS");
    Config::text_of(&layers, setting).map_err(|refused| refused.to_string())
}

/// Where the configuration comes from; reads it as often as somebody wants to know.
pub(super) struct Loader {
    /// As it was at the start: nothing can change it.
    environment: HashMap<String, OsString>,
    flags: Values,
    socket: Option<PathBuf>,
    file: Option<PathBuf>,
    /// A file with variables that must be there.
    env_file: Option<PathBuf>,
    /// The TOML file was not empty when it was read last.
    had_content: AtomicBool,
    mounts: Mutex<Mounts>,
}

impl Loader {
    pub(super) fn new(args: &BindArgs) -> Loader {
        let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
        let mut flags = Values::default();
        let given = [("LEITSTAND_HOST", args.host.clone()), ("LEITSTAND_PORT", args.port.map(|port| port.to_string()))];
        for (name, value) in given {
            if let (Some(setting), Some(value)) = (Setting::named(name), value) {
                flags.set(setting, value);
            }
        }
        let environment: HashMap<String, OsString> = std::env::vars_os().filter_map(text).collect();
        let named = ["LEITSTAND_ENV_FILE", "CHRONIK_ENV_FILE"].iter().find_map(|name| named(environment.get(*name)?));
        let env_file = args.env_file.clone().filter(|path| !path.as_os_str().is_empty()).or(named);
        Loader {
            environment,
            flags,
            socket: args.uds.clone(),
            file: args.config.clone(),
            env_file,
            had_content: AtomicBool::new(false),
            mounts: Mutex::default(),
        }
    }

    /// Reads everything anew, with `patch` on top.
    ///
    /// # Errors
    /// All problems; when a file cannot be read or is no TOML, only such ones, as the others would follow
    /// from it.
    pub(super) fn load(&self, patch: &Values) -> Result<Config, ConfigError> {
        self.load_with(patch, None)
    }

    /// The same, as if the TOML file held `text`.
    pub(super) fn load_with(&self, patch: &Values, text: Option<&str>) -> Result<Config, ConfigError> {
        let refused = |text: String| ConfigError(vec![Problem { name: String::new(), text }]);
        let dot_env = self.dot_env().map_err(refused)?;
        let file = match (self.config_path(&dot_env), text) {
            (Some(path), Some(text)) => Some(layer(&path, text).map_err(refused)?),
            _ => self.file(&dot_env).map_err(refused)?,
        };
        let mut paths = vec![self.env_file().to_owned()];
        paths.extend(self.config_path(&dot_env));
        let paths = RefCell::new(paths);
        let noted = |path: &Path| {
            paths.borrow_mut().push(path.to_owned());
            read(path)
        };
        let mut config = Config::load(&Layers {
            patch,
            flags: &self.flags,
            socket: self.socket.as_deref(),
            environment: &|name| self.environment.get(name).cloned(),
            dot_env: &|name| dot_env.get(name).cloned(),
            dot_env_name: &self.env_file_name(),
            file: file.as_ref(),
            read: &noted,
            read_store: Some(&read_store),
        })?;
        let mut paths = paths.into_inner();
        paths.push(config.token_store.clone());
        config.stale = self.stale(&paths);
        config.warnings.extend(self.unknown_in(&dot_env));
        config.domains.compile();
        Ok(config)
    }

    /// What is to be said of those that are mounted and not what they were mounted from.
    fn stale(&self, paths: &[PathBuf]) -> Vec<String> {
        let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        paths.iter().filter_map(|path| mounts.stale(path)).collect()
    }

    /// A warning for each variable that looks like a setting and is none.
    pub(super) fn unknown_names(&self) -> Vec<String> {
        self.unknown_in(&self.dot_env().unwrap_or_default())
    }

    /// A refusal for people, with the names that may be the reason.
    pub(super) fn told(&self, refused: &ConfigError) -> String {
        let warnings = self.unknown_names().into_iter().map(|warning| format!("\n  warning: {warning}"));
        refused.to_string() + &warnings.collect::<String>()
    }

    fn unknown_in(&self, dot_env: &HashMap<String, OsString>) -> Vec<String> {
        // Beside a Service called `leitstand-web` there is a variable LEITSTAND_WEB_PORT.
        let names = |variables: &HashMap<String, OsString>, place: &str| {
            let linked = |value: &OsString| value.to_str().is_some_and(is_service_link);
            let ours = variables.iter().filter(|(_, value)| !linked(value)).map(|(name, _)| name.as_str());
            unknown_variables(ours, place)
        };
        let mut unknown = names(&self.environment, "environment");
        unknown.extend(names(dot_env, &self.env_file_name()));
        unknown
    }

    /// A digest of all that [`Loader::load`] reads and that can change, but for the named tokens: who
    /// changes those is not here. A mount that shows an old file is another one than before.
    pub(super) fn digest(&self) -> [u8; 32] {
        let digest = RefCell::new(Sha256::new());
        let note = |path: &Path| {
            let content = read(path);
            let mut digest = digest.borrow_mut();
            digest.update(path.as_os_str().as_encoded_bytes());
            digest.update([u8::from(!self.stale(&[path.to_owned()]).is_empty())]);
            match &content {
                Ok(bytes) => {
                    digest.update([1]);
                    digest.update((bytes.len() as u64).to_le_bytes());
                    digest.update(bytes);
                }
                Err(_) => digest.update([0]),
            }
            content
        };
        // What cannot be read may be a secret's file that is about to come.
        let _ = note(self.env_file());
        let dot_env = self.dot_env().unwrap_or_default();
        let file = self.config_path(&dot_env).and_then(|path| {
            let text = String::from_utf8(note(&path).ok()?).ok()?;
            layer(&path, &text).ok()
        });
        let _ = Config::load(&Layers {
            environment: &|name| self.environment.get(name).cloned(),
            dot_env: &|name| dot_env.get(name).cloned(),
            file: file.as_ref(),
            ..Layers::empty(&note)
        });
        digest.into_inner().finalize().into()
    }

    /// Path of the TOML file, if there is one.
    pub(super) fn path(&self) -> Option<PathBuf> {
        self.config_path(&self.dot_env().unwrap_or_default())
    }

    fn config_path(&self, dot_env: &HashMap<String, OsString>) -> Option<PathBuf> {
        let given =
            |name: &str| self.environment.get(name).and_then(named).or_else(|| dot_env.get(name).and_then(named));
        let option = self.file.clone().filter(|path| !path.as_os_str().is_empty());
        option.or_else(|| given("LEITSTAND_CONFIG")).or_else(|| given("CHRONIK_CONFIG"))
    }

    fn env_file(&self) -> &Path {
        self.env_file.as_deref().unwrap_or(Path::new(DOT_ENV))
    }

    fn env_file_name(&self) -> String {
        self.env_file().display().to_string()
    }

    fn dot_env(&self) -> Result<HashMap<String, OsString>, String> {
        match read_text(self.env_file()) {
            Ok(text) => parse(&text).map_err(|why| format!("{} {why}", self.env_file_name())),
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.env_file.is_none() => Ok(HashMap::new()),
            Err(e) => Err(format!("{} cannot be read: {e}", self.env_file_name())),
        }
    }

    fn file(&self, dot_env: &HashMap<String, OsString>) -> Result<Option<FileLayer>, String> {
        let Some(path) = self.config_path(dot_env) else { return Ok(None) };
        let text = read_text(&path).map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
        // Somebody has opened it to write it anew.
        if text.is_empty() && self.had_content.load(Ordering::Relaxed) {
            return Err(format!("{} is empty, and was not before; a comment is enough", path.display()));
        }
        self.had_content.fetch_or(!text.is_empty(), Ordering::Relaxed);
        layer(&path, &text).map(Some)
    }
}

fn layer(path: &Path, text: &str) -> Result<FileLayer, String> {
    let name = path.display().to_string();
    let said = config::toml(text).map_err(|e| format!("{name} {e}"))?;
    Ok(FileLayer::new(&name, said))
}

/// A file that a variable names, by the rules for the text of every setting.
fn named(text: &OsString) -> Option<PathBuf> {
    let trimmed = text.to_str().map_or(text.as_os_str(), |text| text.trim().as_ref());
    (!trimmed.is_empty()).then(|| PathBuf::from(trimmed))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    super::settings_file::read(path, BYTES_MAX)
}

/// The named tokens. Those who change them replace the file, so it is one.
fn read_store(path: &Path) -> io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.is_file() {
        super::settings_file::read(path, STORE_BYTES_MAX as u64)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
    }
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
            format!("line {number} is not NAME=value (a value in quotes must end with them)")
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
