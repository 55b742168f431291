//! `Settings`: what holds now, and the one way to change it; and `/config`, which shows and changes it.
//!
//! Whatever asks for a change (a signal, a file, a request), the files are read anew, the run-time patch
//! is put on top, and the result is taken whole or not at all. Requests under way keep what they saw.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap};
use serde::Serialize;
use serde_json::{Map, Value};

use super::auth::{actor, authorise};
use super::body::read_small;
use super::error::ApiError;
use super::ops::json;
use super::state::AppState;
use crate::config::{
    Config, ConfigError, Feature, Features, Kind, LogFormat, LogLevel, Problem, Setting, Values, leaves, merge_patch,
    patch,
};
use crate::storage::StoreError;
use crate::token::Scope;

/// Largest body of a patch.
const PATCH_BYTES_MAX: usize = 64 << 10;
const AUDIT: &str = "leitstand::audit";
/// The variable of the features that are off.
const SWITCHES: &str = "LEITSTAND_DISABLE";
/// The actor of a change that was found in the files.
pub const FILES: &str = "file";

/// What only the command line can do: look at files, and tell the log.
pub struct Outside {
    /// Reads all layers anew, with this patch on top.
    pub load: Box<Load>,
    /// Writes a patch into the file with the settings, if all would be right then, and says what would
    /// hold. The values are what stays of the run-time patch.
    pub persist: Box<Persist>,
    /// Level and format of the log from now on.
    pub log: Box<dyn Fn(LogLevel, LogFormat) + Send + Sync>,
}

type Load = dyn Fn(&Values) -> Result<Config, ConfigError> + Send + Sync;
type Persist = dyn Fn(&Map<String, Value>, &Values) -> Result<Config, PersistError> + Send + Sync;

/// Why a patch is not in the file; nothing was changed.
#[derive(Debug)]
pub enum PersistError {
    /// It is the request's fault; the text says what would do.
    Refused(String),
    /// The file cannot be read.
    Read(io::Error),
    /// The file cannot be written.
    Write(io::Error),
}

impl From<String> for PersistError {
    fn from(text: String) -> PersistError {
        PersistError::Refused(text)
    }
}

impl From<&str> for PersistError {
    fn from(text: &str) -> PersistError {
        PersistError::Refused(text.to_owned())
    }
}

impl From<PersistError> for ApiError {
    /// Path and cause are for the log; the client is told whether there was room.
    fn from(error: PersistError) -> ApiError {
        match error {
            PersistError::Refused(text) => bad(text),
            PersistError::Read(e) => ApiError::Store(StoreError::io("read the file with settings", e)),
            PersistError::Write(e) => ApiError::Store(StoreError::io("write the file with settings", e)),
        }
    }
}

/// What holds, and why.
pub(crate) struct Settings {
    outside: Outside,
    inner: Mutex<Inner>,
}

struct Inner {
    running: Config,
    /// What requests have changed since the start; RFC 7396 without `null`.
    patch: Map<String, Value>,
    last: LastReload,
}

/// How the last reading of the files ended.
#[derive(Clone, Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct LastReload {
    /// `false`: the values from before it still hold, or a file is an old one that its mount still shows.
    successful: bool,
    /// Unix time of the last attempt, or of the start.
    at_seconds: u64,
    /// What is wrong in the files.
    problems: Vec<String>,
}

/// `GET /config`
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct ConfigDocument {
    /// Effective values under the keys that the TOML file and `POST /config` have; secrets masked.
    #[cfg_attr(feature = "docs", schema(value_type = Object))]
    config: Map<String, Value>,
    /// By key, with a dot after the name of a table: where the value comes from, and what else there is to
    /// know.
    #[cfg_attr(feature = "docs", schema(value_type = std::collections::HashMap<String, SettingState>))]
    settings: Map<String, Value>,
    /// The last reading of the files.
    reload: LastReload,
}

/// One setting.
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct SettingState {
    /// The effective value.
    value: Value,
    /// `default`, the name of the TOML file, `.env`, `environment`, `option` or `patch`.
    source: String,
    /// The name of its environment variable.
    variable: &'static str,
    /// `true`: a change takes effect with the next start only.
    restart_required: bool,
    /// Only when files, environment and options say something else than what holds now.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "docs", schema(required = false, nullable = false))]
    drift: Option<Drift>,
}

/// What would hold after a restart.
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct Drift {
    value: Value,
    source: String,
}

/// What holds, and where it comes from
///
/// With `drift` where the files say something else by now.
#[cfg_attr(feature = "docs", utoipa::path(get, path = "/config", operation_id = "get_config", tag = "admin", security(("x-auth" = []), ("bearer" = [])),
    responses((status = 200, description = "What holds now.", body = ConfigDocument), super::openapi::TokenErrors)))]
pub(crate) async fn show(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    authorise(&state, &request, Scope::Admin)?;
    answer(state, |state| Ok(state.settings.document())).await
}

/// Change what may change at run time
///
/// A JSON merge patch (RFC 7396): all of it or nothing. `null` takes a change back. Gone with the next
/// start, unless `persist=1` writes it into the TOML file.
#[cfg_attr(feature = "docs", utoipa::path(post, path = "/config", operation_id = "change_config", tag = "admin", security(("x-auth" = []), ("bearer" = [])),
    params(("persist" = Option<String>, Query, pattern = "^[01]$", description = "1: also write it into the TOML file.")),
    request_body(content(
        (super::openapi::ConfigPatch = "application/json", example = json!({"logging": {"level": "DEBUG"}})),
        (super::openapi::ConfigPatch = "application/merge-patch+json"),
    )),
    responses((status = 200, description = "What holds now.", body = ConfigDocument), super::openapi::TokenErrors, super::openapi::AdminBodyErrors,
        (status = 415, description = "`unsupported content-type`: neither JSON nor a merge patch.", body = super::openapi::Detail),
        (status = 507, description = "`insufficient storage`: no room for the TOML file; nothing is changed.", body = super::openapi::Detail))))]
pub(crate) async fn change(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    let pass = authorise(&state, &request, Scope::Admin)?;
    let actor = actor(&pass, request.headers());
    let persist = wants_to_persist(request.uri().query())?;
    if !is_json(request.headers()) {
        return Err(ApiError::ContentType);
    }
    let (body, held) = read_small(&state, request, PATCH_BYTES_MAX).await?;
    let document = match serde_json::from_slice(&body) {
        Ok(Value::Object(document)) => document,
        Ok(_) => return Err(bad("the patch must be a JSON object")),
        Err(_) => return Err(bad("the patch is no JSON")),
    };
    answer(state, move |state| {
        let _held = held;
        state.patch(document, persist, &actor)?;
        Ok(state.settings.document())
    })
    .await
}

/// Files are read, so not on a worker.
async fn answer(
    state: Arc<AppState>,
    work: impl FnOnce(&AppState) -> Result<ConfigDocument, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let worked = state.clone();
    let document = state.settings_looks.run(move || work(&worked)).await??;
    Ok(json(StatusCode::OK, &document))
}

fn wants_to_persist(query: Option<&str>) -> Result<bool, ApiError> {
    let query = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    match query.filter(|(name, _)| name == "persist").last().as_ref().map(|(_, value)| value.as_ref()) {
        None | Some("0") => Ok(false),
        Some("1") => Ok(true),
        Some(_) => Err(bad("persist must be 0 or 1")),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default().trim();
    ["application/json", "application/merge-patch+json"].iter().any(|known| media_type.eq_ignore_ascii_case(known))
}

fn bad(text: impl Into<String>) -> ApiError {
    ApiError::BadInput(text.into())
}

impl AppState {
    /// Reads the files anew and takes over what may change while the service runs; keeps what holds when
    /// something is wrong with them. Blocks. `actor`: who asked for it.
    pub fn reload(&self, actor: &str) {
        let mut inner = self.settings.lock();
        let loaded = (self.settings.outside.load)(&inner.values());
        self.reloaded(&mut inner, &loaded, actor);
    }

    fn reloaded(&self, inner: &mut Inner, loaded: &Result<Config, ConfigError>, actor: &str) {
        self.metrics.config_reloaded(loaded.as_ref().ok().map(|newer| newer.stale.len()));
        inner.last = LastReload::now(loaded.as_ref());
        match loaded {
            Ok(newer) => {
                for warning in newer.warnings.iter().filter(|told| !inner.running.warnings.contains(told)) {
                    tracing::warn!("{warning}");
                }
                for stale in newer.stale.iter().filter(|told| !inner.running.stale.contains(told)) {
                    tracing::warn!(actor, "{stale}");
                }
                if newer.stale.is_empty() && !inner.running.stale.is_empty() {
                    tracing::info!("every file that is mounted is again what it was mounted from");
                }
                let changed = self.adopt(inner, newer, "reload", actor);
                // Named by somebody, or with an effect.
                if changed > 0 || actor != FILES {
                    tracing::info!(actor, changed, "configuration read anew");
                }
                for difference in inner.running.differences(newer) {
                    let (setting, running, configured) = (difference.name, difference.old, difference.new);
                    tracing::warn!(setting, running, configured, "changed, but needs a restart");
                }
            }
            Err(ConfigError(problems)) => {
                for problem in problems {
                    tracing::error!(actor, %problem, "configuration not read anew, the values from before hold");
                }
            }
        }
    }

    /// Takes a patch over, whole or not at all.
    fn patch(&self, document: Map<String, Value>, persist: bool, actor: &str) -> Result<(), ApiError> {
        let (said, problems) = patch(&document);
        if !problems.is_empty() {
            return Err(refused(&self.all_problems(&document, &said, problems)));
        }
        if said.switches().any(|(feature, on)| feature == Feature::Config && !on) {
            return Err(bad("features.config cannot be switched off by a request: none could switch it on again"));
        }
        let mut inner = self.settings.lock();
        // What the files say by now is no deed of whoever sends the patch.
        let loaded = (self.settings.outside.load)(&inner.values());
        if let Err(error) = &loaded {
            return Err(bad(format!("the files must be mended first: {}", told(error))));
        }
        let news = |newer: &Config| !inner.running.differences(&inner.running.with_live_of(newer)).is_empty();
        if loaded.as_ref().is_ok_and(news) {
            self.reloaded(&mut inner, &loaded, FILES);
        }
        let mut patched = inner.patch.clone();
        let newer = if persist {
            merge_patch(&mut patched, emptied(&document));
            let (rest, _) = patch(&patched);
            (self.settings.outside.persist)(&document, &rest)?
        } else {
            merge_patch(&mut patched, document);
            let (values, _) = patch(&patched);
            (self.settings.outside.load)(&values).map_err(|error| refused(&error))?
        };
        inner.patch = patched;
        let action = if persist { "patch and persist" } else { "patch" };
        self.adopt(&mut inner, &newer, action, actor);
        Ok(())
    }

    /// What is wrong with the form of a patch, and with the values of the keys whose form is right.
    fn all_problems(&self, document: &Map<String, Value>, said: &Values, mut problems: Vec<Problem>) -> ConfigError {
        let loaded = (self.settings.outside.load)(said);
        let keys = leaves(document);
        let is_new = |problem: &Problem| {
            keys.iter().any(|(key, _)| *key == problem.name) && problems.iter().all(|known| known.name != problem.name)
        };
        let more: Vec<_> = loaded.err().into_iter().flat_map(|ConfigError(all)| all).filter(is_new).collect();
        problems.extend(more);
        ConfigError(problems)
    }

    /// What of `newer` may change at run time holds from now on. How many settings that changed.
    fn adopt(&self, inner: &mut Inner, newer: &Config, action: &str, actor: &str) -> usize {
        let (old, new) = (&inner.running, inner.running.with_live_of(newer));
        let changes = old.differences(&new);
        self.set_live(self.live().changed(old, &new));
        if (&old.tokens, &old.admin_tokens) != (&new.tokens, &new.admin_tokens) {
            self.auth.replace(crate::token::TokenSet::shared(new.tokens.expose(), new.admin_tokens.expose()));
        }
        if old.auth_rate_limit != new.auth_rate_limit {
            self.auth.limit(new.auth_rate_limit.clone());
        }
        if (old.log_level, old.log_format) != (new.log_level, new.log_format) {
            (self.settings.outside.log)(new.log_level, new.log_format);
        }
        for change in changes.iter().filter(|change| change.name != SWITCHES) {
            let key = Setting::named(change.name).map_or(change.name, |setting| setting.key);
            tracing::info!(target: AUDIT, action, key, old = change.old, new = change.new, actor, "changed");
        }
        // The list names what is off; whoever reads the log wants to know what is on.
        for feature in
            Feature::ALL.into_iter().filter(|feature| old.features.has(*feature) != new.features.has(*feature))
        {
            let (key, on) = (format!("features.{}", feature.name()), new.features.has(feature));
            let (old, new) = ((!on).to_string(), on.to_string());
            tracing::info!(target: AUDIT, action, key, old, new, actor, "changed");
        }
        inner.running = new;
        changes.len()
    }
}

/// All keys of a document, each `null`.
fn emptied(document: &Map<String, Value>) -> Map<String, Value> {
    let empty = |value: &Value| match value {
        Value::Object(members) => Value::Object(emptied(members)),
        _ => Value::Null,
    };
    document.iter().map(|(key, value)| (key.clone(), empty(value))).collect()
}

fn refused(error: &ConfigError) -> ApiError {
    bad(told(error))
}

fn told(ConfigError(problems): &ConfigError) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Outside {
    /// Nothing to read: what holds at the start holds for ever, but for patches that say nothing.
    pub fn none(config: &Config) -> Outside {
        let config = config.clone();
        Outside {
            load: Box::new(move |_| Ok(config.clone())),
            persist: Box::new(|_, _| Err("there is no file to write to".into())),
            log: Box::new(|_, _| {}),
        }
    }
}

impl Settings {
    pub(crate) fn new(config: &Config, outside: Outside) -> Settings {
        let inner = Inner { running: config.clone(), patch: Map::new(), last: LastReload::now(Ok(config)) };
        Settings { outside, inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Only whole values are put in its place.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the files, to see whether they differ from what holds.
    fn document(&self) -> ConfigDocument {
        let inner = self.lock();
        let unpatched = (self.outside.load)(&Values::default());
        let running = &inner.running;
        let drifts = unpatched.as_ref().map_or(Vec::new(), |config| running.differences(config));
        let (mut config, mut settings) = (Map::new(), Map::new());
        for (name, text) in running.effective() {
            let setting = Setting::named(name).expect("effective values are those of SETTINGS");
            let value = typed(setting, &text);
            let drift = drifts.iter().find(|drift| drift.name == name).map(|drift| Drift {
                value: typed(setting, &drift.new),
                source: unpatched.as_ref().map_or_else(|_| String::new(), |u| u.origin(setting).to_string()),
            });
            let state = SettingState {
                value: value.clone(),
                source: running.origin(setting).to_string(),
                variable: name,
                restart_required: !setting.live,
                drift,
            };
            put(&mut config, setting.key, value);
            settings.insert(setting.key.to_owned(), serde_json::to_value(state).unwrap_or_default());
        }
        let mut reload = inner.last.clone();
        // The next attempt would end like this.
        let next = LastReload::now(unpatched.as_ref());
        if !next.successful {
            reload.problems = next.problems;
        }
        ConfigDocument { config, settings, reload }
    }
}

impl Inner {
    fn values(&self) -> Values {
        patch(&self.patch).0
    }
}

impl LastReload {
    fn now(loaded: Result<&Config, &ConfigError>) -> LastReload {
        let problems: Vec<String> = match loaded {
            Ok(config) => config.stale.clone(),
            Err(error) => error.0.iter().map(ToString::to_string).collect(),
        };
        let at_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        LastReload { successful: problems.is_empty(), at_seconds, problems }
    }
}

fn put(into: &mut Map<String, Value>, key: &str, value: Value) {
    match key.split_once('.') {
        None => drop(into.insert(key.to_owned(), value)),
        Some((table, name)) => {
            let members = into.entry(table).or_insert_with(|| Value::Object(Map::new()));
            members.as_object_mut().expect("a table is no setting").insert(name.to_owned(), value);
        }
    }
}

/// As a document has it.
fn typed(setting: &Setting, text: &str) -> Value {
    match setting.kind {
        Kind::Integer | Kind::Bytes => text.parse::<u64>().map_or_else(|_| text.into(), Value::from),
        Kind::List => text.split(',').filter(|item| !item.is_empty()).collect(),
        Kind::Switches => {
            let features = Features::parse(text).unwrap_or_default();
            let told = |feature: Feature| (feature.name().to_owned(), Value::Bool(features.has(feature)));
            Feature::ALL.into_iter().map(told).collect()
        }
        Kind::Text | Kind::Rate | Kind::Secret => text.into(),
    }
}
