//! `Config`: what file, environment and options ask for, or every mistake in them at once.
//!
//! [`SETTINGS`] has a line for each setting: its variable, its key in TOML and JSON, its default, its
//! form, and whether it may change while the service runs. Everything that lists settings is made of
//! it. Reads through functions, so it knows neither the process environment nor any file; the CLI
//! passes both in (docs/adr/0015). In the environment each setting is `LEITSTAND_X`, else `CHRONIK_X`.

mod document;
mod features;
mod layers;
mod suggest;
mod tokens;
mod value;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::patterns::{DomainRules, Patterns};
use crate::rate::RateLimits;
use crate::storage::{Fsync, TOKEN_STORE, TOKEN_STORE_DIR};
use crate::token::TokenStore;

pub use document::{Values, edit_toml, leaves, merge_patch, patch, toml};
pub use features::{Feature, Features};
pub use layers::{FileLayer, Found, Layers, Origin};
pub use suggest::unknown_variables;
pub use tokens::{Tokens, token_fault};
pub use value::is_service_link;

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
    /// `LEITSTAND_TOKEN_STORE`, default `.leitstand/tokens.json` in the data directory: named tokens, see
    /// `leitstand token`. With one there that may append, `LEITSTAND_TOKEN` may be missing. New.
    pub token_store: PathBuf,
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
    /// `LEITSTAND_MAX_CONNECTIONS_PER_CLIENT`, default a tenth of all, at least 16; trusted proxies and Unix
    /// sockets have no such limit. New.
    pub max_connections_per_client: Option<usize>,
    /// `LEITSTAND_MAX_DOMAINS`, default 100000: with so many files no new one is made. New.
    pub max_domains: usize,
    /// `LEITSTAND_NEW_DOMAINS_PER_HOUR`, default 1000 per client. New.
    pub new_domains_per_hour: u32,
    /// `LEITSTAND_SHUTDOWN_TIMEOUT`, default 8 seconds. New.
    pub shutdown_timeout: Duration,
    /// `LEITSTAND_BODY_TIMEOUT`, default 30 seconds for the whole body. New.
    pub body_timeout: Duration,
    /// `LEITSTAND_KEEP_ALIVE_TIMEOUT`, default 75 seconds between two requests of a connection. New.
    pub keep_alive_timeout: Duration,
    /// `LEITSTAND_MAX_IN_FLIGHT`, default 64 MiB of requests in memory. New.
    pub in_flight_bytes_max: usize,
    /// `LEITSTAND_DISK_RESERVE`, default 64 MiB or 1 % of the disk, whichever is less. New.
    pub reserve_bytes: Option<u64>,
    /// `LEITSTAND_REQUEST_TIMEOUT_MS`, default 300000 milliseconds from the head of a request to the end
    /// of its waits, for its body and for a lock. New.
    pub request_timeout: Duration,
    /// `LEITSTAND_ALLOW_DOMAINS`, default all, and `LEITSTAND_DENY_DOMAINS`, default none. New.
    pub domains: DomainRules,
    /// `LEITSTAND_DISABLE`, default nothing: routes that are switched off. New.
    pub features: Features,
    /// `LEITSTAND_SNAPSHOT_DIR`, below which `POST /admin/snapshot` may write. Default none. New.
    pub snapshot_dir: Option<PathBuf>,
    /// `LEITSTAND_HEARTBEAT_FILE`, default none: written every 5 seconds while the service is ready. New.
    pub heartbeat_file: Option<PathBuf>,
    /// Things that are no mistake but worth a line in the log.
    pub warnings: Vec<String>,
    /// Files that were read and are not what stands in their place by now, each with what to do: they are mounted by
    /// themselves, and were replaced where they come from.
    pub stale: Vec<String>,
    /// Where each of [`SETTINGS`] comes from.
    pub origins: Vec<Origin>,
    /// What each is called there; its own name for a default.
    pub called: Vec<String>,
}

/// One wrong setting: its name (none if a whole file is wrong) and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub name: String,
    pub text: String,
}

/// All wrong settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its variable.
    pub name: &'static str,
    /// Its key in TOML and JSON, a dot after the name of its table; empty if it has none.
    pub key: &'static str,
    /// What holds when nobody says anything.
    pub default: &'static str,
    pub kind: Kind,
    /// May it change while the service runs?
    pub live: bool,
}

/// How a value is written in TOML and JSON. In the environment all are text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Integer,
    /// An amount for a span of time, or `off`.
    Rate,
    /// A number, or a text such as `1MiB`.
    Bytes,
    /// A list of texts, or one text with commas.
    List,
    /// A text or a list of texts that is never shown.
    Secret,
    /// A table of names and booleans; in the environment the list of those that are false.
    Switches,
}

const fn fixed(name: &'static str, key: &'static str, default: &'static str, kind: Kind) -> Setting {
    Setting { name, key, default, kind, live: false }
}

const fn live(name: &'static str, key: &'static str, default: &'static str, kind: Kind) -> Setting {
    Setting { name, key, default, kind, live: true }
}

/// All settings, in the order of the documents; `live` ones may change while the service runs, `fixed`
/// ones need a restart. `.env.example` is compared with it.
pub const SETTINGS: [Setting; 34] = [
    fixed("LEITSTAND_CONFIG", "", "", Kind::Text),
    fixed("LEITSTAND_ENV_FILE", "", ".env", Kind::Text),
    live("LEITSTAND_TOKEN", "token", "", Kind::Secret),
    live("LEITSTAND_TOKEN_FILE", "token_file", "", Kind::Text),
    live("LEITSTAND_ADMIN_TOKEN", "admin_token", "", Kind::Secret),
    live("LEITSTAND_ADMIN_TOKEN_FILE", "admin_token_file", "", Kind::Text),
    fixed("LEITSTAND_TOKEN_STORE", "token_store", "", Kind::Text),
    fixed("LEITSTAND_DATA_DIR", "data_dir", "data", Kind::Text),
    fixed("LEITSTAND_MAX_BODY", "max_body", "1048576", Kind::Bytes),
    fixed("LEITSTAND_LOCK_TIMEOUT", "lock_timeout", "30", Kind::Integer),
    live("LEITSTAND_RATE_LIMIT", "rate_limit", "60/minute", Kind::Rate),
    live("LEITSTAND_AUTH_RATE_LIMIT", "auth_rate_limit", "120/minute", Kind::Rate),
    live("LOG_LEVEL", "logging.level", "INFO", Kind::Text),
    live("LEITSTAND_LOG_FORMAT", "logging.format", "text", Kind::Text),
    fixed("LEITSTAND_HOST", "host", "127.0.0.1", Kind::Text),
    fixed("LEITSTAND_PORT", "port", "8788", Kind::Integer),
    fixed("LEITSTAND_VERSION", "version", env!("CARGO_PKG_VERSION"), Kind::Text),
    fixed("LEITSTAND_FSYNC", "fsync", "always", Kind::Text),
    fixed("LEITSTAND_TRUSTED_PROXIES", "trusted_proxies", "127.0.0.1,::1", Kind::List),
    fixed("LEITSTAND_MAX_CONNECTIONS", "max_connections", "10000", Kind::Integer),
    fixed("LEITSTAND_MAX_CONNECTIONS_PER_CLIENT", "max_connections_per_client", "", Kind::Integer),
    fixed("LEITSTAND_MAX_DOMAINS", "max_domains", "100000", Kind::Integer),
    fixed("LEITSTAND_NEW_DOMAINS_PER_HOUR", "new_domains_per_hour", "1000", Kind::Integer),
    fixed("LEITSTAND_SHUTDOWN_TIMEOUT", "shutdown_timeout", "8", Kind::Integer),
    live("LEITSTAND_BODY_TIMEOUT", "body_timeout", "30", Kind::Integer),
    fixed("LEITSTAND_KEEP_ALIVE_TIMEOUT", "keep_alive_timeout", "75", Kind::Integer),
    fixed("LEITSTAND_MAX_IN_FLIGHT", "max_in_flight", "64MiB", Kind::Bytes),
    fixed("LEITSTAND_DISK_RESERVE", "disk_reserve", "", Kind::Bytes),
    fixed("LEITSTAND_SNAPSHOT_DIR", "snapshot_dir", "", Kind::Text),
    live("LEITSTAND_REQUEST_TIMEOUT_MS", "request_timeout_ms", "300000", Kind::Integer),
    live("LEITSTAND_ALLOW_DOMAINS", "allow_domains", "", Kind::List),
    live("LEITSTAND_DENY_DOMAINS", "deny_domains", "", Kind::List),
    live("LEITSTAND_DISABLE", "features", "", Kind::Switches),
    fixed("LEITSTAND_HEARTBEAT_FILE", "heartbeat_file", "", Kind::Text),
];

impl Setting {
    /// The setting with this variable.
    pub fn named(name: &str) -> Option<&'static Setting> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }

    /// The setting with this key.
    pub fn keyed(key: &str) -> Option<&'static Setting> {
        SETTINGS.iter().find(|setting| setting.key == key && !key.is_empty())
    }

    /// compat: the older name of its variable.
    pub fn older_name(&self) -> Option<String> {
        self.name.strip_prefix("LEITSTAND_").map(|rest| format!("CHRONIK_{rest}"))
    }

    fn index(&self) -> usize {
        SETTINGS.iter().position(|setting| setting.name == self.name).expect("settings come from SETTINGS")
    }
}

/// A setting that two configurations say differently, as both say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub name: &'static str,
    pub old: String,
    pub new: String,
}

impl Config {
    /// Reads and checks every setting of an environment.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_source(source: &Source<'_>) -> Result<Config, ConfigError> {
        Config::load(&Layers { environment: source.get, read_store: Some(source.read), ..Layers::empty(source.read) })
    }

    /// Reads and checks every setting.
    ///
    /// # Errors
    /// [`ConfigError`] with all problems, not only the first. Never quotes a secret.
    pub fn load(layers: &Layers<'_>) -> Result<Config, ConfigError> {
        let problems = layers.file.iter().flat_map(|file| file.problems()).collect();
        let mut reader = Reader::new(layers, problems);
        let tokens = reader.tokens("LEITSTAND_TOKEN");
        let data_dir = reader.get("LEITSTAND_DATA_DIR", |text| Ok(PathBuf::from(text)));
        let token_store = reader.get("LEITSTAND_TOKEN_STORE", |text| Ok(token_store(text, &data_dir)));
        let stored = reader.stored(&token_store, &data_dir);
        if tokens.as_ref().is_some_and(|tokens| tokens.expose().is_empty())
            && stored.is_some_and(|stored| !stored.has_ingest())
        {
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
            token_store,
            data_dir,
            max_body_bytes,
            lock_timeout: reader.get("LEITSTAND_LOCK_TIMEOUT", |text| seconds(text, 0..=86_400)),
            rate_limit: reader.get("LEITSTAND_RATE_LIMIT", rate),
            auth_rate_limit: reader.get("LEITSTAND_AUTH_RATE_LIMIT", rate),
            log_level: reader.get("LOG_LEVEL", LogLevel::parse),
            log_format: reader.get("LEITSTAND_LOG_FORMAT", LogFormat::parse),
            bind: Bind::Tcp {
                host: reader.get("LEITSTAND_HOST", host),
                port: reader.get("LEITSTAND_PORT", |text| {
                    text.trim().parse().map_err(|_| "must be a port, 0 to 65535".to_owned())
                }),
            },
            version: reader.get("LEITSTAND_VERSION", |text| Ok(text.to_owned())),
            fsync: reader.get("LEITSTAND_FSYNC", fsync),
            trusted_proxies: reader.get("LEITSTAND_TRUSTED_PROXIES", networks),
            max_connections: reader.get("LEITSTAND_MAX_CONNECTIONS", |text| Ok(integer(text, 1..=1_000_000)? as usize)),
            max_connections_per_client: reader.get("LEITSTAND_MAX_CONNECTIONS_PER_CLIENT", |text| match text {
                "" => Ok(None),
                text => Ok(Some(integer(text, 1..=1_000_000)? as usize)),
            }),
            max_domains: reader.get("LEITSTAND_MAX_DOMAINS", |text| Ok(integer(text, 1..=10_000_000)? as usize)),
            new_domains_per_hour: reader
                .get("LEITSTAND_NEW_DOMAINS_PER_HOUR", |text| Ok(integer(text, 1..=1_000_000)? as u32)),
            shutdown_timeout: reader.get("LEITSTAND_SHUTDOWN_TIMEOUT", |text| seconds(text, 0..=3_600)),
            body_timeout: reader.get("LEITSTAND_BODY_TIMEOUT", |text| seconds(text, 1..=3_600)),
            keep_alive_timeout: reader.get("LEITSTAND_KEEP_ALIVE_TIMEOUT", |text| seconds(text, 1..=3_600)),
            in_flight_bytes_max: reader
                .get("LEITSTAND_MAX_IN_FLIGHT", |text| match bytes(text)? {
                    n if n > u64::from(u32::MAX) || n < 1 << 20 => Err("must be between 1MiB and 4GiB".to_owned()),
                    n => Ok(n as usize),
                })
                // A body as large as allowed must fit, or it could never be accepted.
                .max(3 * max_body_bytes),
            reserve_bytes: reader
                .get("LEITSTAND_DISK_RESERVE", |text| if text.is_empty() { Ok(None) } else { bytes(text).map(Some) }),
            request_timeout: reader
                .get("LEITSTAND_REQUEST_TIMEOUT_MS", |text| Ok(Duration::from_millis(integer(text, 1_000..=300_000)?))),
            domains: DomainRules {
                allow: reader.get("LEITSTAND_ALLOW_DOMAINS", Patterns::parse),
                deny: reader.get("LEITSTAND_DENY_DOMAINS", Patterns::parse),
            },
            features: reader.features(),
            snapshot_dir: reader.get("LEITSTAND_SNAPSHOT_DIR", |text| {
                Ok(Some(text).filter(|text| !text.is_empty()).map(PathBuf::from))
            }),
            heartbeat_file: reader.get("LEITSTAND_HEARTBEAT_FILE", heartbeat_file),
            warnings: Vec::new(),
            stale: Vec::new(),
            origins: Vec::new(),
            called: Vec::new(),
        };
        if !reader.problems.is_empty() {
            return Err(ConfigError(reader.problems));
        }
        let Reader { warnings, origins, called, .. } = reader;
        let mut config = Config { warnings, origins, called, ..config };
        if let Some(path) = layers.socket {
            config.bind = Bind::Unix(path.to_owned());
            for name in ["LEITSTAND_HOST", "LEITSTAND_PORT"] {
                config.origins[Setting::named(name).expect("it is in SETTINGS").index()] = Origin::Flag;
            }
        }
        Ok(config)
    }

    /// The text of one setting and nothing else, by the same rules, and what it is called where it stands; its default
    /// and its name if nobody says anything.
    ///
    /// # Errors
    /// What is wrong with it, and with the form of the file.
    pub fn text_of(layers: &Layers<'_>, setting: &Setting) -> Result<(String, String), ConfigError> {
        let problems = layers.file.iter().flat_map(|file| file.problems()).collect();
        let mut reader = Reader::new(layers, problems);
        let text = reader.get(setting.name, |text| Ok(text.to_owned()));
        let called = reader.called.swap_remove(setting.index());
        if reader.problems.is_empty() { Ok((text, called)) } else { Err(ConfigError(reader.problems)) }
    }

    /// This configuration, but with all that may change at run time as `newer` has it.
    pub fn with_live_of(&self, newer: &Config) -> Config {
        let origins = SETTINGS.iter().zip(self.origins.iter().zip(&newer.origins));
        let called = SETTINGS.iter().zip(self.called.iter().zip(&newer.called));
        Config {
            tokens: newer.tokens.clone(),
            admin_tokens: newer.admin_tokens.clone(),
            rate_limit: newer.rate_limit.clone(),
            auth_rate_limit: newer.auth_rate_limit.clone(),
            log_level: newer.log_level,
            log_format: newer.log_format,
            body_timeout: newer.body_timeout,
            request_timeout: newer.request_timeout,
            domains: newer.domains.clone(),
            features: newer.features,
            warnings: newer.warnings.clone(),
            stale: newer.stale.clone(),
            origins: origins.map(|(s, (old, new))| if s.live { new.clone() } else { old.clone() }).collect(),
            called: called.map(|(s, (old, new))| if s.live { new.clone() } else { old.clone() }).collect(),
            ..self.clone()
        }
    }

    /// What `newer` says otherwise. Secrets are told by their number and the beginnings of their digests.
    pub fn differences(&self, newer: &Config) -> Vec<Difference> {
        let both = self.shown(Tokens::fingerprint).into_iter().zip(newer.shown(Tokens::fingerprint));
        both.filter(|((_, old), (_, new))| old != new)
            .map(|((name, old), (_, new))| Difference { name, old, new })
            .collect()
    }

    /// Where a setting comes from.
    pub fn origin(&self, setting: &Setting) -> &Origin {
        self.origins.get(setting.index()).unwrap_or(&Origin::Default)
    }

    /// What a setting is called where it comes from: its variable, the older name of that, or its key in the file.
    pub fn called(&self, setting: &Setting) -> &str {
        self.called.get(setting.index()).map_or(setting.name, String::as_str)
    }

    /// Effective values by name, secrets masked.
    pub fn effective(&self) -> Vec<(&'static str, String)> {
        self.shown(|tokens| format!("{} (masked)", tokens.expose().len()))
    }

    fn shown(&self, tokens: impl Fn(&Tokens) -> String) -> Vec<(&'static str, String)> {
        let (host, port) = match &self.bind {
            Bind::Tcp { host, port } => (host.clone(), port.to_string()),
            Bind::Unix(path) => (format!("unix:{}", path.display()), String::new()),
        };
        let proxies: Vec<_> = self.trusted_proxies.iter().map(ToString::to_string).collect();
        vec![
            ("LEITSTAND_TOKEN", tokens(&self.tokens)),
            ("LEITSTAND_ADMIN_TOKEN", tokens(&self.admin_tokens)),
            ("LEITSTAND_TOKEN_STORE", self.token_store.display().to_string()),
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
            (
                "LEITSTAND_MAX_CONNECTIONS_PER_CLIENT",
                self.max_connections_per_client.map_or("a tenth".to_owned(), |n| n.to_string()),
            ),
            ("LEITSTAND_MAX_DOMAINS", self.max_domains.to_string()),
            ("LEITSTAND_NEW_DOMAINS_PER_HOUR", self.new_domains_per_hour.to_string()),
            ("LEITSTAND_SHUTDOWN_TIMEOUT", self.shutdown_timeout.as_secs().to_string()),
            ("LEITSTAND_BODY_TIMEOUT", self.body_timeout.as_secs().to_string()),
            ("LEITSTAND_KEEP_ALIVE_TIMEOUT", self.keep_alive_timeout.as_secs().to_string()),
            ("LEITSTAND_MAX_IN_FLIGHT", self.in_flight_bytes_max.to_string()),
            ("LEITSTAND_DISK_RESERVE", self.reserve_bytes.map_or("min(64MiB, 1%)".to_owned(), |n| n.to_string())),
            ("LEITSTAND_REQUEST_TIMEOUT_MS", self.request_timeout.as_millis().to_string()),
            ("LEITSTAND_ALLOW_DOMAINS", self.domains.allow.to_string()),
            ("LEITSTAND_DENY_DOMAINS", self.domains.deny.to_string()),
            ("LEITSTAND_DISABLE", self.features.to_string()),
            (
                "LEITSTAND_SNAPSHOT_DIR",
                self.snapshot_dir.as_ref().map(|dir| dir.display().to_string()).unwrap_or_default(),
            ),
            (
                "LEITSTAND_HEARTBEAT_FILE",
                self.heartbeat_file.as_ref().map_or(String::new(), |path| path.display().to_string()),
            ),
        ]
    }
}

struct Reader<'a> {
    layers: &'a Layers<'a>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
    origins: Vec<Origin>,
    called: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(layers: &'a Layers<'a>, problems: Vec<Problem>) -> Reader<'a> {
        let called = SETTINGS.iter().map(|setting| setting.name.to_owned()).collect();
        Reader { layers, problems, warnings: Vec::new(), origins: vec![Origin::Default; SETTINGS.len()], called }
    }
}

impl Reader<'_> {
    /// The value that counts, and where it stands.
    fn raw(&mut self, name: &str) -> Option<Found> {
        let setting = Setting::named(name).expect("it is in SETTINGS");
        let found = self.layers.find(setting, &mut self.warnings)?;
        let Some(text) = found.text.to_str() else {
            self.problem(&found.label, "is not UTF-8");
            return None;
        };
        if let Some(why) = value::fault(setting, text) {
            // Where a file with a secret is named, people put the secret itself.
            let told =
                if name.ends_with("TOKEN_FILE") { String::new() } else { format!("is {}: ", value::quoted(text)) };
            self.problem(&found.label, &format!("{told}{why}"));
            return None;
        }
        self.note(setting, &found);
        Some(found)
    }

    fn note(&mut self, setting: &Setting, found: &Found) {
        self.origins[setting.index()] = found.origin.clone();
        self.called[setting.index()] = found.label.clone();
    }

    /// Has nobody set it?
    fn is_default(&self, name: &str) -> bool {
        self.origins[Setting::named(name).expect("it is in SETTINGS").index()] == Origin::Default
    }

    /// A problem with what a setting leads to. `what` it is, and what is wrong with it.
    fn problem_with(&mut self, name: &str, what: &str, text: &str) {
        let is = if self.is_default(name) { "is not set, and the default is" } else { "is" };
        let told = format!("{is} {what}{text}");
        let called = self.called[Setting::named(name).expect("it is in SETTINGS").index()].clone();
        self.problem(&called, &told);
    }

    /// The value or its default, read by `parse`. After a problem any value will do, since the
    /// whole configuration is refused; the default is it.
    fn get<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let default = Setting::named(name).map_or("", |setting| setting.default);
        if let Some(found) = self.raw(name) {
            let text = found.text.to_str().unwrap_or_default();
            match parse(text) {
                Ok(value) => return value,
                // Whoever sent it knows what it was.
                Err(why) if found.origin == Origin::Patch => self.problem(&found.label, &why),
                Err(why) => self.problem(&found.label, &format!("is {}: {why}", value::quoted(text))),
            }
        }
        parse(default).expect("every default in SETTINGS can be read, see the test")
    }

    /// What the lower layers switch off, then single switches of the run-time patch.
    fn features(&mut self) -> Features {
        let mut features = self.get("LEITSTAND_DISABLE", Features::parse);
        for (feature, on) in self.layers.patch.switches() {
            features.set(feature, on);
            self.origins[Setting::named("LEITSTAND_DISABLE").expect("it is in SETTINGS").index()] = Origin::Patch;
        }
        features
    }

    /// The secrets of `name` or of the file that `<name>_FILE` names; `None` after a problem.
    fn tokens(&mut self, name: &str) -> Option<Tokens> {
        let file_name = format!("{name}_FILE");
        let (own, file) = match (self.raw(name), self.raw(&file_name)) {
            // The layer above hides both names of the layer below.
            (Some(own), Some(file)) if own.is_from_file() != file.is_from_file() => {
                if own.is_from_file() {
                    (None, Some(file))
                } else {
                    (Some(own), None)
                }
            }
            both => both,
        };
        match (own, file) {
            (Some(own), Some(file)) => {
                self.problem(&own.label, &format!("and {} are both set: keep one of them", file.label));
                None
            }
            (Some(own), None) => {
                let said = Tokens::of_value(own.text.to_str().unwrap_or_default());
                said.map_err(|why| self.problem(&own.label, &why)).ok()
            }
            (None, Some(file)) => {
                self.note(Setting::named(name).expect("it is in SETTINGS"), &file);
                let path = Path::new(&file.text);
                let said = match (self.layers.read)(path).map(String::from_utf8) {
                    Ok(Ok(text)) => Tokens::of_file(&text).map_err(|why| format!("names {path:?}: {why}")),
                    Ok(Err(_)) => Err(format!("names {path:?}, which is not UTF-8")),
                    // The value is not quoted: people put the secret itself there by mistake.
                    Err(e) => Err(format!("must name a file that can be read: {e}")),
                };
                said.map_err(|why| self.problem(&file.label, &why)).ok()
            }
            (None, None) => Some(Tokens::default()),
        }
    }

    /// The named tokens; `None` after a problem.
    fn stored(&mut self, path: &Path, data_dir: &Path) -> Option<TokenStore> {
        let in_data_dir = path == token_store("", data_dir);
        let Some(read) = self.layers.read_store else { return Some(TokenStore::default()) };
        match read(path) {
            Ok(bytes) => TokenStore::parse(&bytes)
                .map_err(|fault| {
                    let why =
                        format!(", which {fault}: put a good copy there, or move it away and add the tokens anew");
                    self.problem_with("LEITSTAND_TOKEN_STORE", &format!("{path:?}"), &why)
                })
                .ok(),
            // What is wrong with the data directory itself is told by those who open it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Some(TokenStore::default()),
            Err(e) if e.kind() == io::ErrorKind::NotADirectory && in_data_dir => Some(TokenStore::default()),
            Err(e) if in_data_dir && e.kind() == io::ErrorKind::PermissionDenied => {
                // Nobody has set the name of the store.
                let why = format!(": {path:?} in it cannot be read: {e}");
                let below = if self.is_default("LEITSTAND_DATA_DIR") { " in the working directory" } else { "" };
                self.problem_with("LEITSTAND_DATA_DIR", &format!("{data_dir:?}{below}"), &why);
                None
            }
            Err(e) => {
                self.problem_with(
                    "LEITSTAND_TOKEN_STORE",
                    &format!("{path:?}"),
                    &format!(", which cannot be read: {e}"),
                );
                None
            }
        }
    }

    fn problem(&mut self, name: &str, text: &str) {
        self.problems.push(Problem { name: name.to_owned(), text: text.to_owned() });
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
            "NOTSET" | "TRACE" => Ok(LogLevel::NotSet),
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

/// Where the named tokens are: `given`, or a place in the data directory.
pub fn token_store(given: &str, data_dir: &Path) -> PathBuf {
    if given.is_empty() { data_dir.join(TOKEN_STORE_DIR).join(TOKEN_STORE) } else { PathBuf::from(given) }
}

/// The file is written over, so it must not be one with events.
fn heartbeat_file(text: &str) -> Result<Option<PathBuf>, String> {
    match text {
        "" => Ok(None),
        text if text.ends_with(".jsonl") || text.ends_with(".lock") => {
            Err("must not end in .jsonl or .lock, the names of files with events".to_owned())
        }
        text if text.ends_with('/') => Err("must name a file".to_owned()),
        text => Ok(Some(PathBuf::from(text))),
    }
}

/// An address, in brackets or not, or a name that could be one. Whether it is one, only the start can tell.
fn host(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let zone = bare.split_once('%').map_or(bare, |(address, _)| address);
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    let name = text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label);
    if zone.parse::<IpAddr>().is_ok() || name {
        Ok(text.to_owned())
    } else {
        Err("must be an address or the name of a host".to_owned())
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
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { name, text } = self;
        if name.is_empty() { f.write_str(text) } else { write!(f, "{name} {text}") }
    }
}

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
        let vars: Vec<_> =
            SETTINGS.iter().map(|s| (s.name, s.default)).filter(|(name, _)| !name.contains("TOKEN")).collect();
        let mut all = vars.clone();
        all.push(("LEITSTAND_TOKEN", "t"));
        assert!(load(&all).is_ok());
    }

    #[test]
    fn the_older_names_are_read_and_a_difference_is_told() {
        let config = load(&[("CHRONIK_TOKEN", "t"), ("CHRONIK_MAX_BODY", "1MiB")]).unwrap();
        assert_eq!(config.tokens.expose(), ["t"]);
        let called = |config: &Config, name| config.called(Setting::named(name).unwrap()).to_owned();
        assert_eq!(called(&config, "LEITSTAND_TOKEN"), "CHRONIK_TOKEN");
        assert_eq!(called(&config, "LEITSTAND_PORT"), "LEITSTAND_PORT");
        let file = load(&[("CHRONIK_TOKEN_FILE", "/secret")]).unwrap();
        assert_eq!(called(&file, "LEITSTAND_TOKEN"), "CHRONIK_TOKEN_FILE");
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
            ("LEITSTAND_MAX_BODY", &["-1", "1_000", "1.5", "1MB", "MiB", "99999999999999999999", "2GiB", "٣"][..]),
            ("LEITSTAND_LOCK_TIMEOUT", &["1.5", "abc", "100000"]),
            ("LEITSTAND_RATE_LIMIT", &["0/minute", "-1/minute"]),
            ("LOG_LEVEL", &["10"]),
            ("LEITSTAND_MAX_CONNECTIONS", &["0", "x"]),
            ("LEITSTAND_MAX_CONNECTIONS_PER_CLIENT", &["0", "x"]),
            ("LEITSTAND_MAX_DOMAINS", &["0", "off", "10000001"]),
            ("LEITSTAND_NEW_DOMAINS_PER_HOUR", &["0", "-1", "1000001"]),
            ("LEITSTAND_HOST", &["a b", "a/b", "..", "ä"]),
            ("LEITSTAND_LOG_FORMAT", &["xml"]),
            ("LEITSTAND_MAX_IN_FLIGHT", &["1", "5GiB"]),
            ("LEITSTAND_HEARTBEAT_FILE", &["data/a.jsonl", "data/a.jsonl.lock", "/run/"]),
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
                >= 300 << 20
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

    /// Broken, an empty variable, a blank, a carriage return or quotation marks would mean one thing for one setting
    /// and another for the next.
    #[test]
    fn one_rule_for_the_text_of_every_setting() {
        let good = |setting: &Setting| match setting.name {
            "LEITSTAND_TOKEN_FILE" | "LEITSTAND_ADMIN_TOKEN_FILE" => "/secret".to_owned(),
            "LEITSTAND_DISABLE" => "stats".to_owned(),
            _ if setting.default.is_empty() => "7".to_owned(),
            _ => setting.default.to_owned(),
        };
        let shown = |name: &str, value: Option<&str>| {
            let token = ("LEITSTAND_TOKEN", "t");
            let vars: Vec<_> =
                [token].into_iter().filter(|_| !["LEITSTAND_TOKEN", "LEITSTAND_TOKEN_FILE"].contains(&name)).collect();
            load(&vars.into_iter().chain(value.map(|value| (name, value))).collect::<Vec<_>>())
                .map(|config| config.shown(Tokens::fingerprint))
                .map_err(|e| e.to_string())
        };
        // These two are read by the command line, which is tested as a whole.
        for setting in SETTINGS.iter().filter(|s| !["LEITSTAND_CONFIG", "LEITSTAND_ENV_FILE"].contains(&s.name)) {
            let (name, value) = (setting.name, good(setting));
            let plain = shown(name, Some(&value));
            assert!(plain.is_ok(), "{name}={value}: {plain:?}");
            for odd in [format!(" {value}"), format!("{value}\r"), format!("\t{value} \r\n"), format!("{value}\u{a0}")]
            {
                assert_eq!(shown(name, Some(&odd)), plain, "{name}={odd:?}");
            }
            for empty in ["", " ", "\r", "\t\n"] {
                let got = shown(name, Some(empty));
                if name == "LEITSTAND_DATA_DIR" {
                    assert_eq!(got, shown(name, Some(".")), "{empty:?}: the working directory");
                    continue;
                }
                let a_number = matches!(setting.kind, Kind::Integer | Kind::Rate | Kind::Bytes);
                if a_number && !setting.default.is_empty() {
                    assert!(got.unwrap_err().contains(name), "{name}={empty:?}");
                } else {
                    assert_eq!(got == shown(name, None), name != "LEITSTAND_TRUSTED_PROXIES", "{name}={empty:?}");
                }
            }
            for slip in [
                format!("\"{value}\""),
                format!("'{value}"),
                format!("{value}”"),
                format!("\u{feff}{value}"),
                format!("{value}\u{1}"),
            ] {
                let refused = shown(name, Some(&slip)).unwrap_err();
                assert!(refused.contains(name), "{name}={slip:?}: {refused}");
            }
        }
        let refused = load(&[("LEITSTAND_TOKEN", "t"), ("LEITSTAND_ALLOW_DOMAINS", &"a,".repeat(5000))]).unwrap_err();
        assert!(refused.to_string().len() < 400, "a long value is not printed whole");
    }

    /// Broken, a Service of the cluster that has our name would stop the start, or hide the port that is set.
    #[test]
    fn a_link_of_a_service_is_no_port_and_is_told() {
        for name in ["LEITSTAND_PORT", "CHRONIK_PORT"] {
            let config = load(&[("LEITSTAND_TOKEN", "t"), (name, "tcp://10.0.0.1:8788")]).unwrap();
            assert_eq!(config.bind, Bind::Tcp { host: "127.0.0.1".into(), port: 8788 });
            assert!(
                matches!(&config.warnings[..], [one] if one.contains(name) && one.contains("Service")),
                "{config:?}"
            );
        }
        let both = [("LEITSTAND_TOKEN", "t"), ("LEITSTAND_PORT", "tcp://[fd00::1]:8788"), ("CHRONIK_PORT", "9")];
        assert_eq!(load(&both).unwrap().bind, Bind::Tcp { host: "127.0.0.1".into(), port: 9 });
        assert_eq!(names(&[("LEITSTAND_TOKEN", "t"), ("LEITSTAND_PORT", "tcp://web:8788")]), ["LEITSTAND_PORT"]);
    }

    /// Broken, a reload would leave out a setting that may change, or seem to change one that cannot.
    #[test]
    fn a_reload_takes_what_is_live_and_nothing_else() {
        let others = [
            ("LEITSTAND_TOKEN", "u"),
            ("LEITSTAND_ADMIN_TOKEN", "v"),
            ("LEITSTAND_TOKEN_STORE", "elsewhere.json"),
            ("LEITSTAND_DATA_DIR", "d"),
            ("LEITSTAND_MAX_BODY", "1"),
            ("LEITSTAND_LOCK_TIMEOUT", "1"),
            ("LEITSTAND_RATE_LIMIT", "off"),
            ("LEITSTAND_AUTH_RATE_LIMIT", "off"),
            ("LOG_LEVEL", "DEBUG"),
            ("LEITSTAND_LOG_FORMAT", "json"),
            ("LEITSTAND_HOST", "localhost"),
            ("LEITSTAND_PORT", "1"),
            ("LEITSTAND_VERSION", "x"),
            ("LEITSTAND_FSYNC", "never"),
            ("LEITSTAND_TRUSTED_PROXIES", ""),
            ("LEITSTAND_MAX_CONNECTIONS", "1"),
            ("LEITSTAND_MAX_CONNECTIONS_PER_CLIENT", "1"),
            ("LEITSTAND_MAX_DOMAINS", "1"),
            ("LEITSTAND_NEW_DOMAINS_PER_HOUR", "1"),
            ("LEITSTAND_SHUTDOWN_TIMEOUT", "1"),
            ("LEITSTAND_BODY_TIMEOUT", "1"),
            ("LEITSTAND_KEEP_ALIVE_TIMEOUT", "1"),
            ("LEITSTAND_MAX_IN_FLIGHT", "1GiB"),
            ("LEITSTAND_DISK_RESERVE", "1"),
            ("LEITSTAND_REQUEST_TIMEOUT_MS", "1000"),
            ("LEITSTAND_ALLOW_DOMAINS", "a"),
            ("LEITSTAND_DENY_DOMAINS", "b"),
            ("LEITSTAND_DISABLE", "stats"),
            ("LEITSTAND_SNAPSHOT_DIR", "s"),
            ("LEITSTAND_HEARTBEAT_FILE", "h"),
        ];
        let (old, new) = (load(&[("LEITSTAND_TOKEN", "t")]).unwrap(), load(&others).unwrap());
        let names = |differences: Vec<Difference>| differences.into_iter().map(|d| d.name).collect::<Vec<_>>();
        let told: Vec<_> = old.effective().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names(old.differences(&new)), told, "every setting that is told is changed here");
        let reloaded = old.with_live_of(&new);
        let is_live = |name: &&str| Setting::named(name).unwrap().live;
        assert_eq!(names(old.differences(&reloaded)), told.iter().copied().filter(is_live).collect::<Vec<_>>());
        assert_eq!(names(reloaded.differences(&new)), told.iter().copied().filter(|n| !is_live(n)).collect::<Vec<_>>());
        for setting in told.iter().map(|name| Setting::named(name).unwrap()) {
            let want = if setting.live { Origin::Environment } else { old.origin(setting).clone() };
            assert_eq!(*reloaded.origin(setting), want, "{}", setting.name);
            assert_eq!(reloaded.called(setting), setting.name);
        }
        assert!(!names(new.differences(&old)).is_empty() && new.differences(&new).is_empty());
        assert!(!old.differences(&new).iter().any(|d| d.old == "t" || d.new == "u"), "no secret is told");
    }
}
