//! Where to send, and how hard to try: parameters first, then variables, then defaults.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::Read as _;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::HeaderValue;
use http::uri::{Scheme, Uri};

use crate::batch::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, normal_domain};
use crate::client::ProducerClient;
use crate::error::{Failure, ProducerError};
#[cfg(feature = "tls")]
use crate::tls::Trust;

pub(crate) const DEFAULT_URL: &str = "http://localhost:8788";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_RETRIES: u32 = 3;
const DEFAULT_BACKOFF: Duration = Duration::from_millis(500);
const DEFAULT_SPOOL_BYTES: u64 = 256 * 1024 * 1024;
/// Longer times are mistakes, and would overflow a clock.
const SECONDS_MAX: f64 = 1e6;
const TOKEN_FILE_BYTES_MAX: u64 = 16 * 1024;

/// Everything that a client goes by.
#[derive(Clone)]
pub(crate) struct Settings {
    pub target: Target,
    pub token: Option<HeaderValue>,
    pub domain: Option<String>,
    pub timeout: Duration,
    pub retries: u32,
    pub backoff: Duration,
    pub gzip: bool,
    pub batch_events: usize,
    pub batch_bytes: usize,
    pub spool: Option<(PathBuf, u64)>,
}

/// The parts of the base address.
#[derive(Clone)]
pub(crate) struct Target {
    pub url: String,
    /// For https; read once, when the settings are complete.
    #[cfg(feature = "tls")]
    pub trust: Option<Trust>,
    #[cfg(feature = "tls")]
    is_tls: bool,
    pub host: String,
    pub port: u16,
    /// For the Host header.
    pub authority: HeaderValue,
    /// In front of `/v1/ingest`; without a slash at its end.
    pub path: String,
}

impl Target {
    fn parse(url: &str) -> Result<Target, String> {
        let uri: Uri = url.trim().parse().map_err(|e| format!("is no address: {e}"))?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS && cfg!(feature = "tls") => true,
            Some(scheme) if *scheme == Scheme::HTTPS => {
                return Err("https needs the feature `tls` of this crate".to_owned());
            }
            _ => return Err("must begin with http:// or https://".to_owned()),
        };
        let authority = uri.authority().ok_or("names no host")?.as_str();
        if authority.contains('@') {
            return Err("must not hold a user or a password".to_owned());
        }
        if uri.query().is_some() || url.contains('#') {
            return Err("must not hold a query".to_owned());
        }
        let (host, port) = host_and_port(authority)?;
        let path = uri.path().trim_end_matches('/').to_owned();
        let port = port.unwrap_or(if tls { 443 } else { 80 });
        let header = HeaderValue::from_str(authority).map_err(|_| "names no host".to_owned())?;
        Ok(Target {
            url: url.trim().trim_end_matches('/').to_owned(),
            #[cfg(feature = "tls")]
            trust: None,
            #[cfg(feature = "tls")]
            is_tls: tls,
            host: host.to_owned(),
            port,
            authority: header,
            path,
        })
    }
}

/// The host without brackets, and the port if there is one. Nothing is guessed: a port that is none is an error.
fn host_and_port(authority: &str) -> Result<(&str, Option<u16>), &'static str> {
    let (host, rest) = match authority.strip_prefix('[') {
        Some(inside) => {
            let (host, rest) = inside.split_once(']').ok_or("has a bracket without its other half")?;
            host.parse::<Ipv6Addr>().map_err(|_| "has no IPv6 address in its brackets")?;
            (host, rest)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    if host.is_empty() {
        return Err("names no host");
    }
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if !authority.starts_with('[') && !host.bytes().all(is_name) {
        return Err("names a host that can be none");
    }
    if rest.is_empty() {
        return Ok((host, None));
    }
    let digits = rest.strip_prefix(':').filter(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    let port = digits.and_then(|digits| digits.parse().ok()).filter(|port| *port != 0);
    port.map(|port| (host, Some(port))).ok_or("has a port that is no number from 1 to 65535")
}

/// An address for a `Debug` output. One that is refused may hold a password, or anything else.
pub(crate) fn shown(url: &str) -> &str {
    if Target::parse(url).is_ok() { url } else { "(not shown: it is no valid address)" }
}

/// The token is not shown.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("url", &self.target.url)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("domain", &self.domain)
            .field("timeout", &self.timeout)
            .field("retries", &self.retries)
            .field("backoff", &self.backoff)
            .field("gzip", &self.gzip)
            .field("batch_events", &self.batch_events)
            .field("batch_bytes", &self.batch_bytes)
            .field("spool", &self.spool)
            .finish()
    }
}

/// A client to be: name only what is special.
///
/// A parameter wins over the variable, `LEITSTAND_…` over `CHRONIK_…`, a variable over the default.
///
/// ```
/// use std::time::Duration;
/// use leitstand_producer::ProducerClient;
///
/// # fn main() -> Result<(), leitstand_producer::ProducerError> {
/// let client = ProducerClient::builder("http://localhost:8788")
///     .token("dev")
///     .domain("example.com")
///     .timeout(Duration::from_secs(2))
///     .retries(5)
///     .gzip(true)
///     .build()?;
/// assert!(!format!("{client:?}").contains("dev"), "no token in a debug output");
///
/// let error = ProducerClient::builder("localhost:8788").build().unwrap_err();
/// assert!(error.to_string().contains("LEITSTAND_URL"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
#[must_use]
pub struct ProducerBuilder {
    url: Option<String>,
    token: Option<String>,
    domain: Option<String>,
    timeout: Option<Duration>,
    retries: Option<u32>,
    backoff: Option<Duration>,
    gzip: bool,
    batch_events: Option<usize>,
    batch_bytes: Option<usize>,
    spool: Option<PathBuf>,
    spool_max_bytes: Option<u64>,
}

impl ProducerBuilder {
    pub(crate) fn new(url: Option<String>) -> ProducerBuilder {
        ProducerBuilder { url, ..ProducerBuilder::default() }
    }

    /// The shared secret, sent as `X-Auth`. Else `LEITSTAND_TOKEN`, then `CHRONIK_TOKEN`, then what is in the
    /// file that `LEITSTAND_TOKEN_FILE` names, then none.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The domain of every event; one that names another is an error. Else each event goes to its own `domain`,
    /// and an event without one to that of the first event of its call.
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.domain = Some(domain.into());
        self
    }

    /// Longest time for one attempt, from connecting to the last byte of the answer. Else
    /// `LEITSTAND_TIMEOUT`, then 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Attempts after the first. Else `LEITSTAND_RETRIES`, then 3. With a spool a call makes one attempt.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = Some(retries);
        self
    }

    /// Base of the pauses: before attempt n + 1 a random time up to `backoff` × 2ⁿ. Else
    /// `LEITSTAND_BACKOFF`, then 0.5 s. With a spool, the time without an attempt after a failure.
    pub fn backoff(mut self, backoff: Duration) -> Self {
        self.backoff = Some(backoff);
        self
    }

    /// Compresses requests. Worth it on slow lines; costs time on fast ones. Off by default.
    pub fn gzip(mut self, gzip: bool) -> Self {
        self.gzip = gzip;
        self
    }

    /// Most events of one request: 1 to 10,000, which is the default.
    pub fn batch_events(mut self, events: usize) -> Self {
        self.batch_events = Some(events);
        self
    }

    /// Most bytes of a request of several events: 1 to 524,288, which is the default.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.batch_bytes = Some(bytes);
        self
    }

    /// Directory for events that could not be delivered. Else `LEITSTAND_SPOOL`, then none. A relative path is
    /// one from the working directory of now. A spool that cannot be used does not stop sending; `flush` tells.
    pub fn spool(mut self, directory: impl AsRef<Path>) -> Self {
        self.spool = Some(directory.as_ref().to_owned());
        self
    }

    /// A spool that would grow beyond this is full. Else `LEITSTAND_SPOOL_MAX_BYTES`, then 256 MiB.
    pub fn spool_max_bytes(mut self, bytes: u64) -> Self {
        self.spool_max_bytes = Some(bytes);
        self
    }

    /// The client, or the first setting that is wrong.
    pub fn build(self) -> Result<ProducerClient, ProducerError> {
        self.settings(&|name| std::env::var_os(name)).map(ProducerClient::with).map_err(ProducerError::from)
    }

    /// As [`build`](Self::build), for where there is no `Result`: a wrong setting is told by every call.
    pub(crate) fn build_or_tell_later(self) -> ProducerClient {
        let url = self.url.clone().unwrap_or_default();
        let settings = self.settings(&|name| std::env::var_os(name));
        settings.map(ProducerClient::with).unwrap_or_else(|failure| ProducerClient::unusable(url, &failure))
    }

    fn settings(self, get: &dyn Fn(&str) -> Option<OsString>) -> Result<Settings, Failure> {
        let vars = Variables { get };
        let url = match self.url {
            Some(url) => url,
            None => vars.text("URL")?.map_or(DEFAULT_URL.to_owned(), |(_, url)| url),
        };
        let target = Target::parse(&url).map_err(|why| Failure::setting("LEITSTAND_URL", why))?;
        #[cfg(feature = "tls")]
        let target = Target { trust: target.is_tls.then(Trust::of_system), ..target };
        let token = match self.token {
            Some(token) => Some(("LEITSTAND_TOKEN".to_owned(), token)),
            None => match vars.text("TOKEN")? {
                Some(found) => Some(found),
                None => vars.token_file()?,
            },
        };
        let token = match token {
            Some((name, token)) if !token.trim().is_empty() => {
                let wrong = || Failure::setting(&name, "holds a byte that a header cannot carry");
                // The service takes no token beyond ASCII; a byte order mark would be one.
                let text = Some(token.trim()).filter(|text| text.is_ascii()).ok_or_else(wrong)?;
                let mut value = HeaderValue::from_str(text).map_err(|_| wrong())?;
                value.set_sensitive(true);
                Some(value)
            }
            _ => None,
        };
        let domain = match self.domain {
            Some(text) => match normal_domain(&text) {
                Some(domain) => Some(domain),
                None => return Err(Failure::setting("domain", format_args!("{text:?} is none"))),
            },
            None => None,
        };
        let timeout = vars.or("TIMEOUT", self.timeout, DEFAULT_TIMEOUT, |text| {
            seconds(text).filter(|time| !time.is_zero()).ok_or("is no number of seconds over 0")
        })?;
        if timeout.is_zero() {
            return Err(Failure::setting("LEITSTAND_TIMEOUT", "must be over 0"));
        }
        let retries = vars.or("RETRIES", self.retries, DEFAULT_RETRIES, |text| {
            text.parse().map_err(|_| "is no whole number from 0 on")
        })?;
        let backoff = vars.or("BACKOFF", self.backoff, DEFAULT_BACKOFF, |text| {
            seconds(text).ok_or("is no number of seconds from 0 on")
        })?;
        let spool = match self.spool {
            Some(directory) => Some(directory),
            None => vars.raw("SPOOL").map(|(_, text)| PathBuf::from(text)),
        };
        // The program may go to another directory later.
        let spool = spool.map(std::path::absolute).transpose().map_err(|e| Failure::setting("LEITSTAND_SPOOL", e))?;
        let spool_max_bytes = vars.or("SPOOL_MAX_BYTES", self.spool_max_bytes, DEFAULT_SPOOL_BYTES, |text| {
            text.parse().map_err(|_| "is no whole number of bytes")
        })?;
        let within = |name: &str, value: Option<usize>, most: usize| match value {
            Some(value) if !(1..=most).contains(&value) => {
                Err(Failure::setting(name, format_args!("must be from 1 to {most}")))
            }
            value => Ok(value.unwrap_or(most)),
        };
        Ok(Settings {
            target,
            token,
            domain,
            timeout: timeout.min(Duration::from_secs_f64(SECONDS_MAX)),
            retries,
            backoff: backoff.min(Duration::from_secs_f64(SECONDS_MAX)),
            gzip: self.gzip,
            batch_events: within("batch_events", self.batch_events, BATCH_EVENTS_MAX)?,
            batch_bytes: within("batch_bytes", self.batch_bytes, BATCH_BYTES_MAX)?,
            spool: spool.map(|directory| (directory, spool_max_bytes)),
        })
    }
}

/// The token is not shown.
impl fmt::Debug for ProducerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProducerBuilder").field("url", &self.url.as_deref().map(shown)).finish_non_exhaustive()
    }
}

fn seconds(text: &str) -> Option<Duration> {
    let value: f64 = text.parse().ok()?;
    // False for NaN too.
    (0.0..=SECONDS_MAX).contains(&value).then(|| Duration::from_secs_f64(value))
}

/// The environment, by either prefix.
struct Variables<'a> {
    get: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Variables<'_> {
    /// The value, and the name under which it was found.
    fn raw(&self, name: &str) -> Option<(String, OsString)> {
        ["LEITSTAND", "CHRONIK"].iter().find_map(|prefix| {
            let name = format!("{prefix}_{name}");
            (self.get)(&name).filter(|value| !value.is_empty()).map(|value| (name, value))
        })
    }

    /// The token in the file that a variable names.
    fn token_file(&self) -> Result<Option<(String, String)>, Failure> {
        let Some((name, path)) = self.raw("TOKEN_FILE") else { return Ok(None) };
        let wrong = |why: &str| Failure::setting(&name, why);
        let cannot_read = |e: std::io::Error| wrong(&format!("cannot be read: {e}"));
        // To open a pipe could take for ever.
        if !fs::metadata(&path).map_err(cannot_read)?.is_file() {
            return Err(wrong("is no regular file"));
        }
        let mut text = String::new();
        File::open(&path)
            .map_err(cannot_read)?
            .take(TOKEN_FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(cannot_read)?;
        let mut tokens = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        match (tokens.next(), tokens.next()) {
            (Some(token), None) => Ok(Some((name, token.to_owned()))),
            (None, _) => Err(wrong("holds no token")),
            (Some(_), Some(_)) => Err(wrong("holds several lines that are no comments")),
        }
    }

    fn text(&self, name: &str) -> Result<Option<(String, String)>, Failure> {
        match self.raw(name) {
            None => Ok(None),
            Some((name, value)) => match value.into_string() {
                Ok(text) => Ok(Some((name, text))),
                Err(_) => Err(Failure::setting(&name, "is not UTF-8")),
            },
        }
    }

    fn or<T>(
        &self,
        name: &str,
        given: Option<T>,
        default: T,
        parse: impl Fn(&str) -> Result<T, &'static str>,
    ) -> Result<T, Failure> {
        if let Some(given) = given {
            return Ok(given);
        }
        let Some((name, text)) = self.text(name)? else { return Ok(default) };
        parse(text.trim()).map_err(|why| Failure::setting(&name, format_args!("{text:?} {why}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: Option<&str>, vars: &[(&str, &str)]) -> Result<Settings, String> {
        let get = |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        ProducerBuilder::new(url.map(str::to_owned)).settings(&get).map_err(|failure| failure.to_string())
    }

    /// Broken, a program would use another address, token or time than it was told.
    #[test]
    fn parameters_win_over_variables_and_those_over_defaults() {
        let plain = settings(None, &[]).unwrap();
        assert_eq!((plain.target.url.as_str(), plain.target.port), (DEFAULT_URL, 8788));
        assert_eq!((plain.timeout, plain.retries, plain.backoff), (DEFAULT_TIMEOUT, 3, DEFAULT_BACKOFF));
        assert!(plain.token.is_none() && plain.spool.is_none());
        let vars = [
            ("LEITSTAND_URL", "http://a:1/x/"),
            ("CHRONIK_URL", "http://b:2"),
            ("CHRONIK_TOKEN", " old "),
            ("LEITSTAND_TIMEOUT", "0.25"),
            ("CHRONIK_RETRIES", "0"),
            ("LEITSTAND_BACKOFF", "0"),
            ("LEITSTAND_SPOOL", "/s"),
            ("LEITSTAND_SPOOL_MAX_BYTES", "7"),
        ];
        let set = settings(None, &vars).unwrap();
        assert_eq!((set.target.host.as_str(), set.target.port, set.target.path.as_str()), ("a", 1, "/x"));
        assert_eq!(set.token.unwrap(), "old");
        assert_eq!((set.timeout, set.retries, set.backoff), (Duration::from_millis(250), 0, Duration::ZERO));
        assert_eq!(set.spool, Some(("/s".into(), 7)));
        assert_eq!(settings(Some("http://[::1]"), &vars).unwrap().target.host, "::1");
        let both = settings(None, &[("LEITSTAND_TOKEN", "new"), ("CHRONIK_TOKEN", "old")]).unwrap();
        assert_eq!(both.token.unwrap(), "new");
    }

    /// Broken, a typing mistake would silently become a default.
    #[test]
    fn a_setting_that_cannot_be_read_is_named() {
        let bad = [
            ("LEITSTAND_URL", "ftp://a"),
            ("LEITSTAND_URL", "http://a?x=1"),
            ("LEITSTAND_URL", "http://u:p@a"),
            ("LEITSTAND_URL", "a:1"),
            ("LEITSTAND_URL", "http://"),
            ("LEITSTAND_TOKEN", "a\nb"),
            ("CHRONIK_TIMEOUT", "soon"),
            ("LEITSTAND_TIMEOUT", "0"),
            ("LEITSTAND_TIMEOUT", "inf"),
            ("LEITSTAND_TIMEOUT", "-1"),
            ("LEITSTAND_RETRIES", "1.5"),
            ("LEITSTAND_BACKOFF", "nan"),
            ("LEITSTAND_SPOOL_MAX_BYTES", "1GB"),
        ];
        for (name, value) in bad {
            let told = settings(None, &[(name, value)]).unwrap_err();
            assert!(told.contains(name), "{name}={value:?}: {told}");
            assert!(!told.contains("a\nb"), "a token is not told: {told}");
        }
    }

    /// Broken, the token would go to whoever listens on port 80.
    #[test]
    fn a_malformed_address_is_refused_and_its_secrets_are_not_told() {
        let bad = [
            "http://127.0.0.1:99999",
            "http://h:65536",
            "http://h:0",
            "http://h:",
            "http://h:+80",
            "http://h:-1",
            "http://h:8o",
            "http://h: 80",
            "http://h:80:90",
            "http://[::1]:99999",
            "http://[::1]:",
            "http://[::1]80",
            "http://[::1",
            "http://::1",
            "http://[::zz]",
            "http://[1.2.3.4]",
            "http://[]:80",
            "http://:80",
            "http://",
            "http:///x",
            "http:h",
            "//h",
            "h:80",
            "http://h\\x",
            "http://h%41",
            "http://a b",
            "http://h,x",
            "http://u@h",
            "http://u:pa55@h:80",
            "http://u:pa55@h:99999",
            "http://h@pa55",
            "ftp://u:pa55@h",
            "u:pa55@h:80",
            "http://h?token=pa55",
            "http://h#pa55",
            "http://u:pa55@[::1]:x",
        ];
        for url in bad {
            let told = settings(Some(url), &[]).err().unwrap_or_else(|| panic!("{url} was taken"));
            assert!(told.starts_with("LEITSTAND_URL: "), "{url}: {told}");
            let builder = ProducerBuilder::new(Some(url.to_owned()));
            let debug = format!("{builder:?} {:?}", builder.clone().build_or_tell_later());
            let error = format!("{:?}", builder.build().unwrap_err());
            assert!(!(told + &debug + &error).contains("pa55"), "{url}: {debug} {error}");
        }
        for (url, host, port) in [
            ("http://h", "h", 80),
            ("http://h:080/", "h", 80),
            ("HTTP://h:65535/x", "h", 65535),
            ("http://[::1]:1", "::1", 1),
            (" http://my_host-1.local:8788/ ", "my_host-1.local", 8788),
        ] {
            let target = settings(Some(url), &[]).unwrap().target;
            assert_eq!((target.host.as_str(), target.port), (host, port), "{url}");
        }
    }

    /// Broken, an empty variable would be an error here and absent in the other clients.
    #[test]
    fn an_empty_variable_is_absent_and_a_token_may_come_from_a_file() {
        let vars =
            [("LEITSTAND_URL", ""), ("CHRONIK_URL", "http://b:2"), ("LEITSTAND_BACKOFF", ""), ("LEITSTAND_SPOOL", "")];
        let set = settings(None, &vars).unwrap();
        assert_eq!((set.target.url.as_str(), set.backoff), ("http://b:2", DEFAULT_BACKOFF));
        assert!(set.spool.is_none());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let path = file.to_str().unwrap();
        for (text, token) in [
            ("from-file\n", Some("from-file")),
            ("# rotated\n\ns3cret \n", Some("s3cret")),
            (" \n", None),
            ("\u{feff}x\n", None),
            ("two\nlines\n", None),
        ] {
            fs::write(&file, text).unwrap();
            let set = settings(None, &[("LEITSTAND_TOKEN_FILE", path)]);
            match token {
                Some(token) => assert_eq!(set.unwrap().token.unwrap(), token),
                None => assert!(set.err().unwrap().contains("LEITSTAND_TOKEN_FILE"), "{text:?}"),
            }
        }
        let both = [("LEITSTAND_TOKEN_FILE", path), ("CHRONIK_TOKEN", "direct")];
        assert_eq!(settings(None, &both).unwrap().token.unwrap(), "direct");
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(settings(None, &[("LEITSTAND_TOKEN_FILE", pipe.to_str().unwrap())]).is_err(), "it does not wait");
    }

    /// Broken, a program that changes its directory would leave its events in two places.
    #[test]
    fn the_spool_has_an_absolute_path() {
        let set = settings(None, &[("LEITSTAND_SPOOL", "some/spool")]).unwrap();
        assert_eq!(set.spool.unwrap().0, std::env::current_dir().unwrap().join("some/spool"));
    }

    /// Broken, the token would be in a log.
    #[test]
    fn no_debug_output_shows_the_token() {
        let builder = ProducerBuilder::new(Some(DEFAULT_URL.to_owned())).token("s3cret");
        assert!(!format!("{builder:?}").contains("s3cret"));
        let settings = builder.settings(&|_| None).unwrap();
        assert!(!format!("{settings:?}").contains("s3cret"));
    }
}
