//! `Config`: what the environment asks for, or every mistake in it at once.
//!
//! Reads through a lookup function, so it knows neither the process environment nor any file; the
//! CLI passes both in. Each setting is `LEITSTAND_X`, else `CHRONIK_X` of the same name.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::rate::RateLimits;
use crate::storage::Fsync;

/// Largest `LEITSTAND_MAX_BODY`: lengths inside the service are 32 bits in places.
pub const MAX_BODY_LIMIT_BYTES: u64 = 1 << 30;

/// A value from outside: the environment, or a `.env` file.
pub struct Source<'a> {
    /// Looks a variable up.
    pub get: &'a dyn Fn(&str) -> Option<OsString>,
    /// Reads a file that a `*_FILE` variable names.
    pub read: &'a dyn Fn(&Path) -> io::Result<Vec<u8>>,
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// `LEITSTAND_HOST` (`127.0.0.1`) and `LEITSTAND_PORT` (`8788`); port 0 lets the kernel choose.
    Tcp { host: String, port: u16 },
    /// `--uds`: a Unix socket.
    Unix(PathBuf),
}

/// Shared secrets. `Debug` shows how many, never what.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tokens(Vec<String>);

/// `LEITSTAND_LOG_FORMAT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// `LOG_LEVEL`, with Python's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warning,
    Info,
    Debug,
    /// compat: `NOTSET` lets everything through.
    NotSet,
}

/// Everything the service can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// `LEITSTAND_TOKEN` (required), secrets split at comma and newline, or `LEITSTAND_TOKEN_FILE`,
    /// the name of a file with them. compat, but the original had one secret only.
    pub tokens: Tokens,
    /// `LEITSTAND_ADMIN_TOKEN` or `LEITSTAND_ADMIN_TOKEN_FILE`, of the same form; they may do everything.
    /// Default none. New.
    pub admin_tokens: Tokens,
    /// `LEITSTAND_DATA_DIR`, default `data`. compat.
    pub data_dir: PathBuf,
    /// `LEITSTAND_MAX_BODY`, default 1048576 bytes; the limit of a body, decompressed. compat.
    pub max_body_bytes: usize,
    /// `LEITSTAND_LOCK_TIMEOUT`, default 30 seconds; 0 is one try. compat.
    pub lock_timeout: Duration,
    /// `LEITSTAND_RATE_LIMIT`, default `60/minute` per client and path; `off`. compat.
    pub rate_limit: RateLimits,
    /// `LEITSTAND_AUTH_RATE_LIMIT`, default `120/minute` wrong tokens per client; `off`. New.
    pub auth_rate_limit: RateLimits,
    /// `LOG_LEVEL`, default `INFO`. compat.
    pub log_level: LogLevel,
    /// `LEITSTAND_LOG_FORMAT`, default `text`. New.
    pub log_format: LogFormat,
    /// `LEITSTAND_HOST`, `LEITSTAND_PORT`, `--uds`. compat.
    pub bind: Bind,
    /// `LEITSTAND_VERSION`, default the package's version. compat.
    pub version: String,
    /// `LEITSTAND_FSYNC`, default `always`. New.
    pub fsync: Fsync,
    /// `LEITSTAND_TRUSTED_PROXIES`, default `127.0.0.1,::1`. New; the original trusted 127.0.0.1.
    pub trusted_proxies: Vec<IpNet>,
    /// `LEITSTAND_MAX_CONNECTIONS`, default 10000. New.
    pub max_connections: usize,
    /// `LEITSTAND_SHUTDOWN_TIMEOUT`, default 8 seconds. New.
    pub shutdown_timeout: Duration,
    /// `LEITSTAND_BODY_TIMEOUT`, default 30 seconds for the whole body. New.
    pub body_timeout: Duration,
    /// `LEITSTAND_MAX_IN_FLIGHT`, default 64 MiB of requests in memory. New.
    pub in_flight_bytes_max: usize,
    /// `LEITSTAND_DISK_RESERVE`, default 64 MiB or 1 % of the disk, whichever is less. New.
    pub reserve_bytes: Option<u64>,
    /// `LEITSTAND_SNAPSHOT_DIR`, below which `POST /admin/snapshot` may write. Default none. New.
    pub snapshot_dir: Option<PathBuf>,
    /// Things that are no mistake but worth a line in the log.
    pub warnings: Vec<String>,
}

/// One wrong setting: its name and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub name: String,
    pub text: String,
}

/// All wrong settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

/// The settings every value of which is read from the environment, with their defaults, in the
/// order of the documents. `.env.example` is compared with it.
pub const SETTINGS: [(&str, &str); 22] = [
    ("LEITSTAND_TOKEN", ""),
    ("LEITSTAND_TOKEN_FILE", ""),
    ("LEITSTAND_ADMIN_TOKEN", ""),
    ("LEITSTAND_ADMIN_TOKEN_FILE", ""),
    ("LEITSTAND_DATA_DIR", "data"),
    ("LEITSTAND_MAX_BODY", "1048576"),
    ("LEITSTAND_LOCK_TIMEOUT", "30"),
    ("LEITSTAND_RATE_LIMIT", "60/minute"),
    ("LEITSTAND_AUTH_RATE_LIMIT", "120/minute"),
    ("LOG_LEVEL", "INFO"),
    ("LEITSTAND_LOG_FORMAT", "text"),
    ("LEITSTAND_HOST", "127.0.0.1"),
    ("LEITSTAND_PORT", "8788"),
    ("LEITSTAND_VERSION", env!("CARGO_PKG_VERSION")),
    ("LEITSTAND_FSYNC", "always"),
    ("LEITSTAND_TRUSTED_PROXIES", "127.0.0.1,::1"),
    ("LEITSTAND_MAX_CONNECTIONS", "10000"),
    ("LEITSTAND_SHUTDOWN_TIMEOUT", "8"),
    ("LEITSTAND_BODY_TIMEOUT", "30"),
    ("LEITSTAND_MAX_IN_FLIGHT", "64MiB"),
    ("LEITSTAND_DISK_RESERVE", ""),
    ("LEITSTAND_SNAPSHOT_DIR", ""),
];

impl Config {
    /// Reads and checks every setting.
    ///
    /// # Errors
    /// [`ConfigError`] with all problems, not only the first. Never quotes a secret.
    pub fn from_source(source: &Source<'_>) -> Result<Config, ConfigError> {
        let mut reader = Reader { source, problems: Vec::new(), warnings: Vec::new() };
        let tokens = reader.tokens("LEITSTAND_TOKEN");
        if tokens.as_ref().is_some_and(|tokens| tokens.0.is_empty()) {
            reader.problem(
                "LEITSTAND_TOKEN",
                "is not set: every request must carry a shared secret, e.g. LEITSTAND_TOKEN=$(openssl rand -hex 24)",
            );
        }
        let admin_tokens = reader.tokens("LEITSTAND_ADMIN_TOKEN");
        let max_body_bytes = reader.get("LEITSTAND_MAX_BODY", |text| match bytes(text)? {
            n if n > MAX_BODY_LIMIT_BYTES => Err(format!("must be at most {MAX_BODY_LIMIT_BYTES}")),
            n => Ok(n as usize),
        });
        let config = Config {
            tokens: tokens.unwrap_or_default(),
            admin_tokens: admin_tokens.unwrap_or_default(),
            data_dir: reader.get("LEITSTAND_DATA_DIR", |text| Ok(PathBuf::from(text))),
            max_body_bytes,
            lock_timeout: reader.get("LEITSTAND_LOCK_TIMEOUT", |text| seconds(text, 0..=86_400)),
            rate_limit: reader.get("LEITSTAND_RATE_LIMIT", rate),
            auth_rate_limit: reader.get("LEITSTAND_AUTH_RATE_LIMIT", rate),
            log_level: reader.get("LOG_LEVEL", LogLevel::parse),
            log_format: reader.get("LEITSTAND_LOG_FORMAT", LogFormat::parse),
            bind: Bind::Tcp {
                host: reader.get("LEITSTAND_HOST", non_empty),
                port: reader.get("LEITSTAND_PORT", |text| {
                    text.trim().parse().map_err(|_| "must be a port, 0 to 65535".to_owned())
                }),
            },
            version: reader.get("LEITSTAND_VERSION", |text| Ok(text.to_owned())),
            fsync: reader.get("LEITSTAND_FSYNC", fsync),
            trusted_proxies: reader.get("LEITSTAND_TRUSTED_PROXIES", networks),
            max_connections: reader.get("LEITSTAND_MAX_CONNECTIONS", |text| Ok(integer(text, 1..=1_000_000)? as usize)),
            shutdown_timeout: reader.get("LEITSTAND_SHUTDOWN_TIMEOUT", |text| seconds(text, 0..=3_600)),
            body_timeout: reader.get("LEITSTAND_BODY_TIMEOUT", |text| seconds(text, 1..=3_600)),
            in_flight_bytes_max: reader
                .get("LEITSTAND_MAX_IN_FLIGHT", |text| match bytes(text)? {
                    n if n > u64::from(u32::MAX) || n < 1 << 20 => Err("must be between 1MiB and 4GiB".to_owned()),
                    n => Ok(n as usize),
                })
                // A body as large as allowed must fit, or it could never be accepted.
                .max(2 * max_body_bytes),
            reserve_bytes: reader
                .get("LEITSTAND_DISK_RESERVE", |text| if text.is_empty() { Ok(None) } else { bytes(text).map(Some) }),
            snapshot_dir: reader.get("LEITSTAND_SNAPSHOT_DIR", |text| {
                Ok(Some(text).filter(|text| !text.is_empty()).map(PathBuf::from))
            }),
            warnings: Vec::new(),
        };
        if !reader.problems.is_empty() {
            return Err(ConfigError(reader.problems));
        }
        Ok(Config { warnings: reader.warnings, ..config })
    }

    /// Effective values by name, secrets masked.
    pub fn effective(&self) -> Vec<(&'static str, String)> {
        let (host, port) = match &self.bind {
            Bind::Tcp { host, port } => (host.clone(), port.to_string()),
            Bind::Unix(path) => (format!("unix:{}", path.display()), String::new()),
        };
        let proxies: Vec<_> = self.trusted_proxies.iter().map(ToString::to_string).collect();
        vec![
            ("LEITSTAND_TOKEN", format!("{} (masked)", self.tokens.0.len())),
            ("LEITSTAND_ADMIN_TOKEN", format!("{} (masked)", self.admin_tokens.0.len())),
            ("LEITSTAND_DATA_DIR", self.data_dir.display().to_string()),
            ("LEITSTAND_MAX_BODY", self.max_body_bytes.to_string()),
            ("LEITSTAND_LOCK_TIMEOUT", self.lock_timeout.as_secs().to_string()),
            ("LEITSTAND_RATE_LIMIT", self.rate_limit.to_string()),
            ("LEITSTAND_AUTH_RATE_LIMIT", self.auth_rate_limit.to_string()),
            ("LOG_LEVEL", self.log_level.as_str().to_owned()),
            ("LEITSTAND_LOG_FORMAT", self.log_format.as_str().to_owned()),
            ("LEITSTAND_HOST", host),
            ("LEITSTAND_PORT", port),
            ("LEITSTAND_VERSION", self.version.clone()),
            ("LEITSTAND_FSYNC", self.fsync.as_str().to_owned()),
            ("LEITSTAND_TRUSTED_PROXIES", proxies.join(",")),
            ("LEITSTAND_MAX_CONNECTIONS", self.max_connections.to_string()),
            ("LEITSTAND_SHUTDOWN_TIMEOUT", self.shutdown_timeout.as_secs().to_string()),
            ("LEITSTAND_BODY_TIMEOUT", self.body_timeout.as_secs().to_string()),
            ("LEITSTAND_MAX_IN_FLIGHT", self.in_flight_bytes_max.to_string()),
            ("LEITSTAND_DISK_RESERVE", self.reserve_bytes.map_or("min(64MiB, 1%)".to_owned(), |n| n.to_string())),
            (
                "LEITSTAND_SNAPSHOT_DIR",
                self.snapshot_dir.as_ref().map(|dir| dir.display().to_string()).unwrap_or_default(),
            ),
        ]
    }
}

struct Reader<'a> {
    source: &'a Source<'a>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Reader<'_> {
    /// The value of a variable, by either prefix. compat: the own name comes first, even if empty.
    fn raw(&mut self, name: &str) -> Option<String> {
        let older = name.strip_prefix("LEITSTAND_").map(|rest| format!("CHRONIK_{rest}"));
        let new = (self.source.get)(name);
        let old = older.as_deref().and_then(|older| (self.source.get)(older));
        if let (Some(new), Some(old), Some(older)) = (&new, &old, &older)
            && new != old
        {
            self.warnings.push(format!("{name} and {older} are both set and differ; {name} is used"));
        }
        match (new.or(old))?.into_string() {
            Ok(text) => Some(text),
            Err(_) => {
                self.problem(&self.used_name(name), "is not UTF-8");
                None
            }
        }
    }

    /// The name under which the value was found, so that a problem names what is really set.
    fn used_name(&self, name: &str) -> String {
        match name.strip_prefix("LEITSTAND_") {
            Some(rest) if (self.source.get)(name).is_none() => format!("CHRONIK_{rest}"),
            _ => name.to_owned(),
        }
    }

    /// The value or its default, read by `parse`. After a problem any value will do, since the
    /// whole configuration is refused; the default is it.
    fn get<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let default = SETTINGS.iter().find(|(n, _)| *n == name).map_or("", |(_, default)| default);
        if let Some(text) = self.raw(name) {
            match parse(&text) {
                Ok(value) => return value,
                Err(why) => self.problem(&self.used_name(name), &format!("is {text:?}: {why}")),
            }
        }
        parse(default).expect("every default in SETTINGS can be read, see the test")
    }

    /// The secrets of `name` or of the file that `<name>_FILE` names; `None` after a problem.
    fn tokens(&mut self, name: &str) -> Option<Tokens> {
        let file_name = format!("{name}_FILE");
        let text = match (self.raw(name), self.raw(&file_name)) {
            (Some(_), Some(_)) => {
                self.problem(name, &format!("and {file_name} are both set: keep one of them"));
                return None;
            }
            (Some(text), None) => text,
            (None, Some(path)) => match (self.source.read)(Path::new(&path)).map(String::from_utf8) {
                Ok(Ok(text)) => text,
                Ok(Err(_)) => {
                    self.problem(&file_name, "names a file that is not UTF-8");
                    return None;
                }
                Err(e) => {
                    // The value is not quoted: people put the secret itself there by mistake.
                    self.problem(&file_name, &format!("must name a file that can be read: {e}"));
                    return None;
                }
            },
            (None, None) => String::new(),
        };
        let tokens: Vec<String> =
            text.split([',', '\n']).map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect();
        if tokens.iter().any(|t| t.chars().any(char::is_control)) {
            self.problem(name, "holds a control character, which no HTTP header can carry");
            return None;
        }
        Some(Tokens(tokens))
    }

    fn problem(&mut self, name: &str, text: &str) {
        self.problems.push(Problem { name: name.to_owned(), text: text.to_owned() });
    }
}

impl Tokens {
    /// The secrets. For hashing only.
    pub fn expose(&self) -> &[String] {
        &self.0
    }

    /// Tokens for tests and tools.
    pub fn new(tokens: Vec<String>) -> Tokens {
        Tokens(tokens)
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

impl LogLevel {
    /// compat: the names of Python's `logging`, any case.
    fn parse(text: &str) -> Result<LogLevel, String> {
        match text.to_uppercase().as_str() {
            "CRITICAL" | "FATAL" | "ERROR" => Ok(LogLevel::Error),
            "WARNING" | "WARN" => Ok(LogLevel::Warning),
            "INFO" => Ok(LogLevel::Info),
            "DEBUG" => Ok(LogLevel::Debug),
            "NOTSET" => Ok(LogLevel::NotSet),
            _ => Err("must be CRITICAL, ERROR, WARNING, INFO, DEBUG or NOTSET".to_owned()),
        }
    }

    /// The name as printed by `config check`.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "ERROR",
            LogLevel::Warning => "WARNING",
            LogLevel::Info => "INFO",
            LogLevel::Debug => "DEBUG",
            LogLevel::NotSet => "NOTSET",
        }
    }
}

impl LogFormat {
    fn parse(text: &str) -> Result<LogFormat, String> {
        match text.trim().to_ascii_lowercase().as_str() {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("must be text or json".to_owned()),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

fn non_empty(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("must not be empty".to_owned()),
        text => Ok(text.to_owned()),
    }
}

fn rate(text: &str) -> Result<RateLimits, String> {
    RateLimits::parse(text).map_err(|e| e.to_string())
}

fn fsync(text: &str) -> Result<Fsync, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "always" => Ok(Fsync::Always),
        "everysec" => Ok(Fsync::EverySecond),
        "never" => Ok(Fsync::Never),
        _ => Err("must be always, everysec or never".to_owned()),
    }
}

fn integer(text: &str, range: std::ops::RangeInclusive<u64>) -> Result<u64, String> {
    let digits = text.trim();
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    match digits.parse() {
        Ok(n) if plain && range.contains(&n) => Ok(n),
        _ => Err(format!("must be a whole number from {} to {}", range.start(), range.end())),
    }
}

fn seconds(text: &str, range: std::ops::RangeInclusive<u64>) -> Result<Duration, String> {
    Ok(Duration::from_secs(integer(text, range)?))
}

/// Whole bytes, or a whole number of KiB, MiB or GiB.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.bytes().take_while(u8::is_ascii_digit).count();
    let factor: u64 = match text[split..].trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err("must be a number of bytes, e.g. 1048576 or 1MiB".to_owned()),
    };
    let number: Option<u64> = text[..split].parse().ok();
    number
        .and_then(|n| n.checked_mul(factor))
        .ok_or_else(|| "must be a number of bytes, e.g. 1048576 or 1MiB".to_owned())
}

/// Addresses and networks, separated by commas; empty trusts nobody.
fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    let parse = |item: &str| {
        item.parse::<IpNet>()
            .or_else(|_| item.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| format!("{item:?} is neither an address nor a network"))
    };
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(parse).collect()
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("configuration refused:")?;
        for problem in &self.0 {
            write!(f, "\n  {} {}", problem.name, problem.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn load(vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let vars: HashMap<_, _> = vars.iter().copied().collect();
        let read = |path: &Path| match path.to_str() {
            Some("/secret") => Ok(b"from-file\n".to_vec()),
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        Config::from_source(&Source { get: &|name| vars.get(name).map(Into::into), read: &read })
    }

    fn names(vars: &[(&str, &str)]) -> Vec<String> {
        load(vars).unwrap_err().0.into_iter().map(|p| p.name).collect()
    }

    #[test]
    fn defaults_are_those_of_the_original() {
        let config = load(&[("LEITSTAND_TOKEN", "t")]).unwrap();
        assert_eq!(config.data_dir, Path::new("data"));
        assert_eq!(config.max_body_bytes, 1_048_576);
        assert_eq!(config.lock_timeout, Duration::from_secs(30));
        assert_eq!(config.rate_limit, RateLimits::parse("60/minute").unwrap());
        assert_eq!(config.bind, Bind::Tcp { host: "127.0.0.1".into(), port: 8788 });
        assert_eq!(config.fsync, Fsync::Always);
        assert_eq!(config.log_level, LogLevel::Info);
        assert!(config.warnings.is_empty());
    }

    #[test]
    fn every_default_can_be_read() {
        let vars: Vec<_> = SETTINGS.iter().copied().filter(|(name, _)| !name.contains("TOKEN")).collect();
        let mut all = vars.clone();
        all.push(("LEITSTAND_TOKEN", "t"));
        assert!(load(&all).is_ok());
    }

    #[test]
    fn the_older_names_are_read_and_a_difference_is_told() {
        let config = load(&[("CHRONIK_TOKEN", "t"), ("CHRONIK_MAX_BODY", "1MiB")]).unwrap();
        assert_eq!(config.tokens.expose(), ["t"]);
        let config = load(&[("CHRONIK_TOKEN", "old"), ("LEITSTAND_TOKEN", "new")]).unwrap();
        assert_eq!(config.tokens.expose(), ["new"]);
        assert_eq!(config.warnings.len(), 1);
        assert!(!config.warnings[0].contains("old\"") && !config.warnings[0].contains("new"), "no secret in a warning");
        assert!(load(&[("CHRONIK_TOKEN", "t"), ("LEITSTAND_TOKEN", "t")]).unwrap().warnings.is_empty());
    }

    #[test]
    fn all_mistakes_are_named_at_once() {
        let wrong = names(&[
            ("LEITSTAND_MAX_BODY", "abc"),
            ("LEITSTAND_LOCK_TIMEOUT", "-1"),
            ("LEITSTAND_RATE_LIMIT", "garbage"),
            ("LOG_LEVEL", "nope"),
            ("LEITSTAND_FSYNC", "sometimes"),
            ("LEITSTAND_PORT", "99999"),
            ("LEITSTAND_TRUSTED_PROXIES", "somebody"),
        ]);
        assert_eq!(
            wrong,
            [
                "LEITSTAND_TOKEN",
                "LEITSTAND_MAX_BODY",
                "LEITSTAND_LOCK_TIMEOUT",
                "LEITSTAND_RATE_LIMIT",
                "LOG_LEVEL",
                "LEITSTAND_PORT",
                "LEITSTAND_FSYNC",
                "LEITSTAND_TRUSTED_PROXIES"
            ]
        );
    }

    #[test]
    fn odd_values_are_refused_or_read_as_documented() {
        for (name, bad) in [
            ("LEITSTAND_MAX_BODY", &["", "-1", "1_000", "1.5", "1MB", "MiB", "99999999999999999999", "2GiB", "٣"][..]),
            ("LEITSTAND_LOCK_TIMEOUT", &["", "1.5", "abc", "100000"]),
            ("LEITSTAND_RATE_LIMIT", &["", "0/minute", "-1/minute"]),
            ("LOG_LEVEL", &["", "10"]),
            ("LEITSTAND_MAX_CONNECTIONS", &["0", "x"]),
            ("LEITSTAND_HOST", &["", " "]),
            ("LEITSTAND_LOG_FORMAT", &["xml"]),
            ("LEITSTAND_MAX_IN_FLIGHT", &["1", "5GiB"]),
        ] {
            for value in bad {
                assert_eq!(names(&[("LEITSTAND_TOKEN", "t"), (name, value)]), [name], "{value:?}");
            }
        }
        for (name, good) in [
            ("LEITSTAND_MAX_BODY", &["0", " 32 ", "1KiB", "1 GiB", "007"][..]),
            ("LEITSTAND_LOCK_TIMEOUT", &["0"]),
            ("LEITSTAND_RATE_LIMIT", &["off"]),
            ("LOG_LEVEL", &["debug", "Warning", "FATAL", "notset"]),
            ("LEITSTAND_DATA_DIR", &[""]),
            ("LEITSTAND_TRUSTED_PROXIES", &["", "10.0.0.0/8, ::1"]),
            ("LEITSTAND_PORT", &["0"]),
        ] {
            for value in good {
                assert!(load(&[("LEITSTAND_TOKEN", "t"), (name, value)]).is_ok(), "{name}={value:?}");
            }
        }
        assert!(
            load(&[("LEITSTAND_TOKEN", "t"), ("LEITSTAND_MAX_BODY", "100MiB")]).unwrap().in_flight_bytes_max
                >= 200 << 20
        );
    }

    #[test]
    fn tokens_are_split_trimmed_and_never_shown() {
        let config = load(&[("LEITSTAND_TOKEN", " a ,b\nc\n,")]).unwrap();
        assert_eq!(config.tokens.expose(), ["a", "b", "c"]);
        assert_eq!(load(&[("LEITSTAND_TOKEN_FILE", "/secret")]).unwrap().tokens.expose(), ["from-file"]);
        for vars in [
            &[("LEITSTAND_TOKEN", "")][..],
            &[("LEITSTAND_TOKEN", " , \n")],
            &[("LEITSTAND_TOKEN", "s3cret\u{7}")],
            &[("LEITSTAND_TOKEN", "s3cret"), ("LEITSTAND_TOKEN_FILE", "/secret")],
            &[("LEITSTAND_TOKEN_FILE", "/missing")],
        ] {
            let error = load(vars).unwrap_err();
            assert_eq!(error.0.len(), 1, "{error}");
            assert!(!error.to_string().contains("s3cret"));
        }
        let config = load(&[("LEITSTAND_TOKEN", "s3cret")]).unwrap();
        assert!(!format!("{config:?}").contains("s3cret"));
        assert!(!config.effective().iter().any(|(_, value)| value.contains("s3cret")));
    }
}
