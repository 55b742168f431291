//! `leitstand token`: named tokens, for one producer or person each.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::data::{print, tell, wrong_usage};
use super::settings_file::BYTES_MAX;
use crate::config::token_fault;
use crate::timestamp::{parse_span, parse_unix_s, unix_rfc3339};
use crate::token::{Digest, Scope, StoredToken, TokenFile, grant};

/// What our secrets begin with, so that people and scanners know them when they see them.
const PREFIX: &str = "lst_";
const SECRET_BYTES: usize = 32;
/// Limits of a secret that somebody else has made. A shorter one could be guessed from its digest.
const GIVEN_BYTES: std::ops::RangeInclusive<usize> = 16..=4096;
/// By then a running service has noticed, so that what has been said here holds there too.
const NOTICED_AFTER: Duration = Duration::from_secs(1);
/// Longest span that can be given.
const SPAN_MAX: Duration = Duration::from_secs(100 * 366 * 86_400);

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token; prints its secret on stdout, once
    Add(AddArgs),
    /// Show all tokens; never a secret
    List {
        /// One JSON document instead of a table
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Refuse tokens from now on; all that are named, or none
    Revoke {
        /// Names of the tokens
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Give a token a new secret; prints it on stdout, once. The old one is good for a while longer
    Rotate(RotateArgs),
}

#[derive(Debug, Args)]
pub struct AddArgs {
    /// Names, each for a token of its own: letters, digits, dots, underscores and dashes. Log and metrics show them.
    /// With several names stdout has lines of a name, a tab and a secret
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// What it may do: ingest, read, admin; may be given several times [default: ingest and read]
    #[arg(long, value_parser = Scope::parse)]
    scope: Vec<Scope>,
    /// Domain that it may append to, with * for any characters; may be given several times [default: all]
    #[arg(long)]
    domain: Vec<String>,
    /// Domain of events on /v1/ingest whose request names none
    #[arg(long, value_name = "DOMAIN")]
    default_domain: Option<String>,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub struct RotateArgs {
    /// Names of the tokens; all of them get a new secret, or none
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// How long the old secret is still good; 0 ends it, and older ones, at once
    #[arg(long, value_name = "SPAN", default_value = "24h", value_parser = parse_span_s)]
    overlap: u64,
    #[command(flatten)]
    secret: SecretArgs,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub struct SecretArgs {
    /// When the secret ends: a span as 90d, or a time as 2026-12-31T23:59:59Z
    #[arg(long, value_name = "SPAN|TIME", value_parser = end_s)]
    expires: Option<u64>,
    /// Take the secret from this file, or from stdin with -, instead of making one; it is not printed then
    #[arg(long, value_name = "FILE|-")]
    secret_file: Option<PathBuf>,
    /// One JSON document on stdout instead of the bare secret
    #[arg(long)]
    json: bool,
}

/// Where the tokens are.
#[derive(Debug, Args)]
pub struct Place {
    /// Data directory with the tokens [env: LEITSTAND_DATA_DIR, or the file LEITSTAND_TOKEN_STORE]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl TokenCommand {
    pub(super) fn wants_json(&self) -> bool {
        match self {
            TokenCommand::Add(args) => args.secret.json,
            TokenCommand::Rotate(args) => args.secret.json,
            TokenCommand::List { json, .. } | TokenCommand::Revoke { json, .. } => *json,
        }
    }
}

pub(super) fn run(command: &TokenCommand) -> Result<ExitCode, String> {
    let done = |result: Result<(), String>| result.map(|()| ExitCode::SUCCESS);
    match command {
        TokenCommand::Add(args) => add(args),
        TokenCommand::List { json, place } => done(list(*json, place)),
        TokenCommand::Revoke { names, json, place } => done(revoke(names, *json, place)),
        TokenCommand::Rotate(args) => done(rotate(args)),
    }
}

fn add(args: &AddArgs) -> Result<ExitCode, String> {
    let now_s = now_s();
    let default = [Scope::Ingest, Scope::Read];
    let scopes = if args.scope.is_empty() { &default[..] } else { &args.scope };
    let granted = |name: &String| grant(name.clone(), &args.domain, args.default_domain.as_deref());
    let grants = match args.names.iter().map(granted).collect::<Result<Vec<_>, _>>() {
        Ok(grants) => grants,
        Err(why) => return Ok(wrong_usage(&format!("the token cannot be made: {why}"), args.secret.json)),
    };
    let file = args.place.open()?;
    let is_new = !file.has_directory();
    let secrets = args.secret.take(&args.names)?;
    let token = |(secret, grant): (&Secret, _)| StoredToken {
        digest: Digest::of(secret.text.as_bytes()),
        scopes: scopes.iter().copied().collect(),
        created_s: now_s,
        expires_s: args.secret.expires,
        previous: Vec::new(),
        grant: Arc::new(grant),
    };
    let tokens: Vec<_> = secrets.iter().zip(grants).map(token).collect();
    file.update(|store| tokens.iter().try_for_each(|token| store.add(token.clone())))?;
    if is_new {
        // A slip in the name of the directory looks the same, and no service would ever know the token.
        tell(format_args!(
            "leitstand: note: {:?} is the first store there; is that the directory of the service?",
            file.path()
        ));
    }
    args.secret.tell(&file, &secrets, &tokens, "added", now_s).map(|()| ExitCode::SUCCESS)
}

fn rotate(args: &RotateArgs) -> Result<(), String> {
    let file = args.place.open_with(&args.names)?;
    let now_s = now_s();
    let secrets = args.secret.take(&args.names)?;
    let tokens = file.update(|store| {
        let rotated = args.names.iter().zip(&secrets).map(|(name, secret)| {
            let digest = Digest::of(secret.text.as_bytes());
            store.rotate(name, digest, now_s, args.overlap, args.secret.expires).cloned()
        });
        rotated.collect::<Result<Vec<_>, _>>()
    })?;
    for token in &tokens {
        let which = if tokens.len() == 1 { String::new() } else { format!(" of {:?}", token.grant.name) };
        match token.previous.last() {
            Some(previous) => {
                let (until, left) = (unix_rfc3339(previous.until_s), roughly(previous.until_s.saturating_sub(now_s)));
                tell(format_args!("The old secret{which} is good until {until} (in {left})."));
            }
            None => tell(format_args!("The old secret{which} is refused.")),
        }
    }
    args.secret.tell(&file, &secrets, &tokens, "rotated", now_s)
}

fn revoke(names: &[String], as_json: bool, place: &Place) -> Result<(), String> {
    let file = place.open_with(names)?;
    let tokens = file.update(|store| names.iter().map(|name| store.revoke(name)).collect::<Result<Vec<_>, _>>())?;
    wait_until_noticed(&file);
    if as_json {
        let told: Vec<_> = tokens.iter().map(|token| document(token, now_s())).collect();
        print(&format!("{:#}\n", json!({"revoked": one_or_all(told)})));
    }
    for token in &tokens {
        tell(format_args!("Token {:?} (sha256:{:?}) is revoked.", token.grant.name, token.digest));
    }
    Ok(())
}

/// What has been said here holds in a running service too; where none runs, nobody has to notice.
fn wait_until_noticed(file: &TokenFile) {
    if file.is_watched() {
        std::thread::sleep(NOTICED_AFTER);
    }
}

/// The document of one token, or a list of several.
fn one_or_all(mut documents: Vec<Value>) -> Value {
    if documents.len() == 1 { documents.remove(0) } else { Value::Array(documents) }
}

fn list(as_json: bool, place: &Place) -> Result<(), String> {
    let file = place.open()?;
    let found = file.read().map_err(|why| file.broken(&why))?;
    if found.is_none() {
        tell(format_args!("leitstand: note: there is no token store {:?}", file.path()));
    }
    let store = found.map(|found| found.store).unwrap_or_default();
    let now_s = now_s();
    if as_json {
        let tokens: Vec<Value> = store.tokens().iter().map(|token| document(token, now_s)).collect();
        print(&format!("{:#}\n", json!({"tokens": tokens})));
    } else {
        print(&table(store.tokens(), now_s));
    }
    Ok(())
}

fn document(token: &StoredToken, now_s: u64) -> Value {
    let previous = token.previous.iter().filter(|previous| previous.until_s > now_s);
    json!({
        "name": token.grant.name,
        "sha256": format!("{:?}", token.digest),
        "scopes": token.scopes.iter().map(Scope::as_str).collect::<Vec<_>>(),
        "domains": token.grant.domains.iter().map(|pattern| pattern.as_str()).collect::<Vec<_>>(),
        "default_domain": token.grant.default_domain.as_ref().map(|domain| domain.as_str()),
        "created": unix_rfc3339(token.created_s),
        "expires": token.expires_s.map(unix_rfc3339),
        "expired": token.is_expired(now_s),
        "older_secrets": previous.map(|previous| json!({
            "sha256": format!("{:?}", previous.digest),
            "until": unix_rfc3339(previous.until_s),
        })).collect::<Vec<_>>(),
    })
}

fn table(tokens: &[StoredToken], now_s: u64) -> String {
    let end = |end_s: u64| match end_s.checked_sub(now_s) {
        None | Some(0) => format!("{} (expired)", unix_rfc3339(end_s)),
        Some(left_s) => format!("{} (in {})", unix_rfc3339(end_s), roughly(left_s)),
    };
    let mut rows = vec![["NAME", "SCOPES", "DOMAINS", "CREATED", "EXPIRES", "SECRET"].map(str::to_owned)];
    for token in tokens {
        let mut domains: Vec<&str> = token.grant.domains.iter().map(|pattern| pattern.as_str()).collect();
        if domains.is_empty() {
            domains.push("*");
        }
        let mut domains = domains.join(",");
        if let Some(default) = &token.grant.default_domain {
            let _ = write!(domains, " (default {default})");
        }
        rows.push([
            token.grant.name.clone(),
            token.scopes.to_string(),
            domains,
            unix_rfc3339(token.created_s),
            token.expires_s.map_or("never".to_owned(), end),
            format!("sha256:{:?}", token.digest),
        ]);
        for previous in token.previous.iter().filter(|previous| previous.until_s > now_s) {
            let [name, sha256] = ["  older secret".to_owned(), format!("sha256:{:?}", previous.digest)];
            rows.push([name, String::new(), String::new(), String::new(), end(previous.until_s), sha256]);
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// A secret in clear text, for as long as it takes to print it.
struct Secret {
    text: String,
    made_here: bool,
}

impl SecretArgs {
    /// A secret for each of these names.
    fn take(&self, names: &[String]) -> Result<Vec<Secret>, String> {
        match &self.secret_file {
            Some(_) if names.len() > 1 => Err("--secret-file is for one token, and several are named".to_owned()),
            Some(path) => Ok(vec![Secret { text: given(path)?, made_here: false }]),
            None => names.iter().map(|_| Ok(Secret { text: make()?, made_here: true })).collect(),
        }
    }

    /// The secrets go to stdout and nowhere else, everything about them to stderr.
    fn tell(
        &self,
        file: &TokenFile,
        secrets: &[Secret],
        tokens: &[StoredToken],
        done: &str,
        now_s: u64,
    ) -> Result<(), String> {
        for token in tokens {
            let end = token.expires_s.map_or("never expires".to_owned(), |end_s| {
                format!("expires {} (in {})", unix_rfc3339(end_s), roughly(end_s.saturating_sub(now_s)))
            });
            let (name, digest) = (&token.grant.name, &token.digest);
            tell(format_args!("Token {name:?} {done}: scopes {}, {end}, sha256:{digest:?}.", token.scopes));
        }
        wait_until_noticed(file);
        let made_here = secrets.iter().all(|secret| secret.made_here);
        if !self.json && !made_here {
            return Ok(());
        }
        let pairs = secrets.iter().zip(tokens);
        let text = if self.json {
            let documents = pairs.map(|(secret, token)| {
                let mut document = document(token, now_s);
                if secret.made_here {
                    document["secret"] = json!(secret.text);
                }
                document
            });
            let documents: Vec<_> = documents.collect();
            format!("{:#}\n", if documents.len() == 1 { one_or_all(documents) } else { json!({"tokens": documents}) })
        } else if let [secret] = secrets {
            format!("{}\n", secret.text)
        } else {
            pairs.map(|(secret, token)| format!("{}\t{}\n", token.grant.name, secret.text)).collect()
        };
        if made_here {
            let whose = if secrets.len() == 1 { "Its secret is shown" } else { "Their secrets are shown" };
            tell(format_args!("{whose} this once; clients send it as X-Auth, or as Authorization: Bearer."));
        }
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| {
            let names: Vec<_> = tokens.iter().map(|token| token.grant.name.as_str()).collect();
            format!("the secret could not be printed and is lost: {e}\n  rotate or revoke {:?}", names.join(" "))
        })
    }
}

impl Place {
    /// The store, which must be there: it is to hold a token of this name. Makes nothing.
    fn open_with(&self, names: &[String]) -> Result<TokenFile, String> {
        let file = self.open()?;
        match file.stamp() {
            Ok(None) => Err(format!(
                "there is no token {:?}: there is no token store {:?}; name the directory of the service by --data-dir",
                names.join(" "),
                file.path()
            )),
            // Whatever else is wrong is told by who reads it.
            _ => Ok(file),
        }
    }

    fn open(&self) -> Result<TokenFile, String> {
        let file = TokenFile::new(super::env::token_store(self.data_dir.as_deref())?);
        if let Ok(Some(found)) = file.read()
            && let Some(mode) = found.too_open
        {
            tell(format_args!(
                "leitstand: warning: {:?} is open to other users (mode {mode:04o}): chmod 600",
                file.path()
            ));
        }
        Ok(file)
    }
}

/// A new secret from the kernel.
fn make() -> Result<String, String> {
    let mut bytes = [0; SECRET_BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut bytes[filled..], flags) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(format!("the kernel gives no random bytes: {e}")),
        }
    }
    Ok(format!("{PREFIX}{}", base64url(&bytes)))
}

/// The secret in a file. Never quoted.
fn given(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let most = *GIVEN_BYTES.end() as u64 + 2;
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        super::settings_file::read(path, BYTES_MAX).map(|read| {
            bytes = read;
            bytes.len()
        })
    };
    read.map_err(|e| format!("the secret cannot be read from {path:?}: {e}"))?;
    let text = String::from_utf8(bytes).map_err(|_| "the secret is not UTF-8".to_owned())?;
    let text = text.trim();
    if !GIVEN_BYTES.contains(&text.len()) {
        return Err(format!("the secret must be {} to {} bytes", GIVEN_BYTES.start(), GIVEN_BYTES.end()));
    }
    match token_fault(text) {
        Some(why) => Err(format!("the secret {why}")),
        None => Ok(text.to_owned()),
    }
}

/// RFC 4648, section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * place)) as usize & 63]));
        }
    }
    text
}

/// When something ends, in Unix seconds.
fn end_s(text: &str) -> Result<u64, String> {
    let now_s = now_s();
    let end_s = parse_span_s(text).ok().map(|span_s| now_s + span_s).or_else(|| parse_unix_s(text));
    match end_s {
        Some(end_s) if end_s > now_s => Ok(end_s),
        Some(_) => Err("must be in the future".to_owned()),
        None => Err("must be a time span as 90d or 12h, or a time as 2026-12-31T23:59:59Z".to_owned()),
    }
}

/// Whole seconds, of a hundred years at most; `0` needs no unit.
fn parse_span_s(text: &str) -> Result<u64, String> {
    let span = if text == "0" { Some(Duration::ZERO) } else { parse_span(text) };
    let allowed = |span: &Duration| *span <= SPAN_MAX && span.subsec_nanos() == 0;
    let span = span.filter(allowed).ok_or("must be a time span as 90d, 24h, 30m or 45s")?;
    Ok(span.as_secs())
}

/// A span in its largest whole unit but one, for people: "12 days", "3 hours".
pub(super) fn roughly(span_s: u64) -> String {
    let (n, unit) = match span_s {
        s if s >= 2 * 86_400 => (s / 86_400, "day"),
        s if s >= 2 * 3600 => (s / 3600, "hour"),
        s if s >= 120 => (s / 60, "minute"),
        s => (s, "second"),
    };
    format!("{n} {unit}{}", if n == 1 { "" } else { "s" })
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a typing error would make a token that never ends.
    #[test]
    fn spans_need_a_unit_and_an_end() {
        for (text, span_s) in
            [("90d", 7_776_000), ("24h", 86_400), ("2000ms", 2), ("0", 0), ("0d", 0), ("36600d", 3_162_240_000)]
        {
            assert_eq!(parse_span_s(text), Ok(span_s), "{text}");
        }
        for bad in ["", "90", "1y", "36601d", "99999999999999999999d", "500ms"] {
            assert!(parse_span_s(bad).is_err(), "{bad:?}");
        }
    }

    /// Broken, a token would be said to live longer or shorter than it does.
    #[test]
    fn spans_are_told_in_their_largest_unit() {
        assert_eq!(
            [0, 1, 119, 120, 7199, 7200, 172_799, 172_800].map(roughly),
            ["0 seconds", "1 second", "119 seconds", "2 minutes", "119 minutes", "2 hours", "47 hours", "2 days"]
        );
    }

    /// Broken, a secret would hold less than was drawn.
    #[test]
    fn secrets_are_all_of_the_random_bytes() {
        // RFC 4648, section 10, and the two digits that base64url has for itself.
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg"),
            (b"fo", "Zm8"),
            (b"foo", "Zm9v"),
            (b"foob", "Zm9vYg"),
            (b"fooba", "Zm9vYmE"),
            (b"foobar", "Zm9vYmFy"),
            (b"\xfb\xff\xbf", "-_-_"),
        ] {
            assert_eq!(base64url(bytes), text);
        }
        let secrets: std::collections::HashSet<String> = (0..100).map(|_| make().unwrap()).collect();
        assert_eq!(secrets.len(), 100);
        assert!(secrets.iter().all(|secret| secret.len() == 47 && secret.starts_with("lst_")), "{secrets:?}");
    }
}
