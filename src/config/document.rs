//! Settings as a document: TOML of a file, JSON of a request. Both become texts, as the environment has
//! them, so that there is one way to read a value.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use toml_edit::{DocumentMut, Item, Table};

use super::features::{Feature, names};
use super::suggest::suggestion;
use super::{Kind, Problem, SETTINGS, Setting};

const FEATURES: &str = "features";

/// What one layer says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values {
    texts: BTreeMap<&'static str, String>,
    switches: BTreeMap<Feature, bool>,
}

impl Values {
    /// Says something, in the text that the environment would have.
    pub fn set(&mut self, setting: &Setting, text: String) {
        self.texts.insert(setting.name, text);
    }

    pub(super) fn get(&self, setting: &Setting) -> Option<&str> {
        self.texts.get(setting.name).map(String::as_str)
    }

    /// Single switches, which leave the others as the layers below have them.
    pub fn switches(&self) -> impl Iterator<Item = (Feature, bool)> {
        self.switches.iter().map(|(feature, on)| (*feature, *on))
    }
}

/// Reads a TOML file: what it says, and every wrong or unknown key.
///
/// # Errors
/// A message with a line number, which does not quote the file, when it is no TOML.
pub fn toml(text: &str) -> Result<(Values, Vec<Problem>), String> {
    let document = parse_toml(text)?;
    let (mut values, problems) = read(&table(document.as_table()));
    if !values.switches.is_empty() {
        let off = values.switches.iter().filter(|(_, on)| !**on).map(|(feature, _)| feature.name());
        let off = off.collect::<Vec<_>>().join(",");
        values.switches.clear();
        values.texts.insert("LEITSTAND_DISABLE", off);
    }
    Ok((values, problems))
}

/// Reads a run-time patch: as a file, but only what may change while the service runs and is no secret.
/// `null` says nothing.
pub fn patch(document: &Map<String, Value>) -> (Values, Vec<Problem>) {
    let (values, mut problems) = read(document);
    for (key, _) in leaves(document) {
        let Some(setting) = Setting::keyed(&key) else { continue };
        if setting.kind == Kind::Secret || key.ends_with("_file") {
            problems.push(problem(&key, "is a secret and cannot be set by a request: use the file or the environment"));
        } else if !setting.live {
            problems.push(problem(&key, "needs a restart: set it in the file or the environment"));
        }
    }
    (values, problems)
}

/// Applies a JSON merge patch (RFC 7396, section 2): `null` removes, objects merge, all else replaces.
pub fn merge_patch(target: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => drop(target.remove(&key)),
            Value::Object(members) => {
                let slot = target.entry(key).or_insert(Value::Null);
                let mut merged = slot.as_object().cloned().unwrap_or_default();
                merge_patch(&mut merged, members);
                *slot = Value::Object(merged);
            }
            other => drop(target.insert(key, other)),
        }
    }
}

/// What a file holds that sets nothing. An empty one would be taken for a file that is being written anew.
const NOTHING_SET: &str = "# Nothing is set here.\n";

/// Writes what `document` says into the text of a TOML file; `null` removes a key. All else stays as it
/// stands, comments too.
///
/// # Errors
/// As [`toml`].
pub fn edit_toml(text: &str, document: &Map<String, Value>) -> Result<String, String> {
    let mut edited = parse_toml(text)?;
    for (key, value) in leaves(document) {
        let (parent, name) = match key.split_once('.') {
            Some((parent, name)) => (Some(parent), name),
            None => (None, key.as_str()),
        };
        let table: &mut dyn toml_edit::TableLike = match parent {
            Some(parent) => {
                let made = edited.as_table_mut().entry(parent).or_insert(Item::Table(Table::new()));
                made.as_table_like_mut().ok_or_else(|| format!("{parent} is no table"))?
            }
            None => edited.as_table_mut(),
        };
        match (toml_value(value), table.get_mut(name).and_then(Item::as_value_mut)) {
            (None, _) => drop(table.remove(name)),
            (Some(new), Some(old)) => {
                let decor = old.decor().clone();
                *old = new;
                *old.decor_mut() = decor;
            }
            (Some(new), None) => drop(table.insert(name, Item::Value(new))),
        }
    }
    let text = edited.to_string();
    Ok(if text.is_empty() { NOTHING_SET.to_owned() } else { text })
}

fn parse_toml(text: &str) -> Result<DocumentMut, String> {
    text.trim_start_matches('\u{feff}').parse::<DocumentMut>().map_err(|e| {
        let at = e.span().map_or(0, |span| span.start.min(text.len()));
        let line = 1 + text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count();
        // Its own text would quote the line, which may hold a secret.
        format!("line {line} is no TOML: {}", e.message().lines().next().unwrap_or_default())
    })
}

fn read(document: &Map<String, Value>) -> (Values, Vec<Problem>) {
    let (mut values, mut problems) = (Values::default(), Vec::new());
    for (key, value) in leaves(document) {
        if value.is_null() && (Setting::keyed(&key).is_some() || is_table(&key) || feature_of(&key).is_some()) {
            continue;
        }
        match (feature_of(&key), Setting::keyed(&key).filter(|setting| setting.kind != Kind::Switches)) {
            (Some(feature), _) => match value {
                Value::Bool(on) => drop(values.switches.insert(feature, *on)),
                _ => problems.push(problem(&key, "must be true or false")),
            },
            (_, Some(setting)) => match text(setting.kind, value) {
                Ok(text) => values.set(setting, text),
                Err(why) => problems.push(problem(&key, why)),
            },
            _ if is_table(&key) => problems.push(problem(&key, "must be a table of settings")),
            _ => problems.push(unknown(&key)),
        }
    }
    (values, problems)
}

/// Every member, those of our tables by `table.key`.
pub fn leaves(document: &Map<String, Value>) -> Vec<(String, &Value)> {
    let mut leaves = Vec::new();
    for (key, value) in document {
        match value {
            Value::Object(members) if is_table(key) => {
                leaves.extend(members.iter().map(|(name, value)| (format!("{key}.{name}"), value)));
            }
            _ => leaves.push((key.clone(), value)),
        }
    }
    leaves
}

fn is_table(key: &str) -> bool {
    tables().any(|table| table == key)
}

fn tables() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().filter_map(|s| Some(s.key.split_once('.')?.0)).chain([FEATURES])
}

fn feature_of(key: &str) -> Option<Feature> {
    Feature::named(key.strip_prefix(FEATURES)?.strip_prefix('.')?)
}

fn unknown(key: &str) -> Problem {
    if let Some(name) = key.strip_prefix("features.") {
        return problem(&format!("features.{}", shown(name)), &format!("is none of {}", names()));
    }
    let meant = suggestion(key, SETTINGS.iter().map(|s| s.key).filter(|key| !key.is_empty()), |key| key)
        // Somebody wrote the name of the variable.
        .or_else(|| Setting::named(&key.to_ascii_uppercase()).map(|setting| setting.key).filter(|key| !key.is_empty()))
        // Somebody left out the table.
        .or_else(|| SETTINGS.iter().map(|s| s.key).find(|k| k.rsplit_once('.').is_some_and(|(_, name)| name == key)))
        .or_else(|| suggestion(key, tables(), |table| table));
    let text = match meant {
        Some(meant) => format!("is no setting; do you mean {meant}?"),
        None => "is no setting".to_owned(),
    };
    problem(&shown(key), &text)
}

/// The beginning of a name that may be anything.
fn shown(key: &str) -> String {
    key.chars().take(64).map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn problem(key: &str, text: &str) -> Problem {
    Problem { name: key.to_owned(), text: text.to_owned() }
}

/// As the environment would have it.
fn text(kind: Kind, value: &Value) -> Result<String, &'static str> {
    let list = |separator: &str| {
        let items = value.as_array()?.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?;
        // An item is one name: nothing that would be none or several.
        let single = |item: &&str| !item.is_empty() && !item.contains([',', '\n']);
        items.iter().all(single).then(|| items.join(separator))
    };
    let one = || value.as_str().map(str::to_owned);
    // To JSON, 5000.0 and 5e3 are whole numbers as well.
    let whole = |n: &f64| n.fract() == 0.0 && n.abs() < 9e15;
    let number = || match value.as_f64().filter(whole) {
        Some(n) if value.is_f64() => Some((n as i64).to_string()),
        _ => (value.is_i64() || value.is_u64()).then(|| value.to_string()),
    };
    match kind {
        Kind::Text | Kind::Rate => one().ok_or("must be a text"),
        Kind::Integer => number().ok_or("must be a whole number"),
        Kind::Bytes => number().or_else(one).ok_or("must be a number of bytes, e.g. 1048576 or \"1MiB\""),
        Kind::List => one().or_else(|| list(",")).ok_or("must be a list of texts, or one text with commas"),
        Kind::Secret => one().or_else(|| list("\n")).ok_or("must be a text or a list of texts"),
        Kind::Switches => Err("must be a table of settings"),
    }
}

fn table(table: &dyn toml_edit::TableLike) -> Map<String, Value> {
    table.iter().map(|(key, item)| (key.to_owned(), json(item))).collect()
}

fn json(item: &Item) -> Value {
    if let Some(members) = item.as_table_like() {
        return Value::Object(table(members));
    }
    item.as_value().map_or(Value::Array(vec![Value::Null]), json_value)
}

/// What no setting can be (a date, a number that is not whole) becomes what no setting takes.
fn json_value(value: &toml_edit::Value) -> Value {
    match value {
        toml_edit::Value::String(text) => Value::String(text.value().clone()),
        toml_edit::Value::Integer(n) => Value::from(*n.value()),
        toml_edit::Value::Boolean(on) => Value::Bool(*on.value()),
        toml_edit::Value::Array(items) => items.iter().map(json_value).collect(),
        toml_edit::Value::InlineTable(members) => Value::Object(table(members)),
        toml_edit::Value::Float(_) | toml_edit::Value::Datetime(_) => Value::Array(vec![Value::Null]),
    }
}

fn toml_value(value: &Value) -> Option<toml_edit::Value> {
    match value {
        Value::Bool(on) => Some((*on).into()),
        Value::Number(n) => n.as_i64().map(Into::into),
        Value::String(text) => Some(text.as_str().into()),
        Value::Array(items) => Some(items.iter().filter_map(toml_value).collect::<toml_edit::Array>().into()),
        Value::Null | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> (Values, Vec<String>) {
        let (values, problems) = toml(text).unwrap();
        (values, problems.into_iter().map(|p| format!("{} {}", p.name, p.text)).collect())
    }

    fn get(values: &Values, name: &str) -> String {
        values.get(Setting::named(name).unwrap()).unwrap_or("-").to_owned()
    }

    /// Broken, a file would say something else than the same values in the environment.
    #[test]
    fn every_form_becomes_the_text_of_the_environment() {
        let (values, problems) = said(
            "data_dir = 'd'\nmax_body = '1MiB'\nmax_in_flight = 2097152\nport = 0x10\nallow_domains = ['a', '*.b']\n\
             deny_domains = 'c,d'\ntoken = ['x', 'y']\n[logging]\nlevel = 'debug'\n[features]\nstats = false\ndocs = true\n",
        );
        assert_eq!(problems, [""; 0]);
        for (name, want) in [
            ("LEITSTAND_DATA_DIR", "d"),
            ("LEITSTAND_MAX_BODY", "1MiB"),
            ("LEITSTAND_MAX_IN_FLIGHT", "2097152"),
            ("LEITSTAND_PORT", "16"),
            ("LEITSTAND_ALLOW_DOMAINS", "a,*.b"),
            ("LEITSTAND_DENY_DOMAINS", "c,d"),
            ("LEITSTAND_TOKEN", "x\ny"),
            ("LOG_LEVEL", "debug"),
            ("LEITSTAND_DISABLE", "stats"),
            ("LEITSTAND_HOST", "-"),
        ] {
            assert_eq!(get(&values, name), want, "{name}");
        }
        assert_eq!(said("features.stats = true\nlogging = {format = 'json'}\n").1, [""; 0]);
    }

    /// Broken, a slip in a file would be taken as "not set".
    #[test]
    fn what_is_unknown_or_of_a_wrong_type_is_told() {
        for (text, want) in [
            ("max_bod = 1", "max_bod is no setting; do you mean max_body?"),
            ("level = 'INFO'", "level is no setting; do you mean logging.level?"),
            ("LEITSTAND_RATE_LIMIT = 'off'", "LEITSTAND_RATE_LIMIT is no setting; do you mean rate_limit?"),
            ("xyzzy_plugh = 1", "xyzzy_plugh is no setting"),
            ("[loging]\nlevel = 'x'", "loging is no setting; do you mean logging?"),
            ("[feature]\nstats = true", "feature is no setting; do you mean features?"),
            ("logging.levle = 'x'", "logging.levle is no setting; do you mean logging.level?"),
            ("port = '1'", "port must be a whole number"),
            ("port = 1.5", "port must be a whole number"),
            ("port = 1979-05-27", "port must be a whole number"),
            ("host = 1", "host must be a text"),
            ("host = {a = 1}", "host must be a text"),
            ("allow_domains = ['']", "allow_domains must be a list of texts, or one text with commas"),
            ("allow_domains = ['a,b']", "allow_domains must be a list of texts, or one text with commas"),
            ("allow_domains = [1]", "allow_domains must be a list of texts, or one text with commas"),
            ("max_body = true", "max_body must be a number of bytes, e.g. 1048576 or \"1MiB\""),
            ("logging = 'x'", "logging must be a table of settings"),
            ("features = []", "features must be a table of settings"),
            ("features.stats = 1", "features.stats must be true or false"),
            ("features.stat = true", "features.stat is none of version, stats, docs, metrics, config, admin, old_path"),
            ("config = 'x'", "config is no setting"),
        ] {
            assert_eq!(said(text).1, [want], "{text}");
        }
        for text in ["token = s3cret", "token = 's3cret", "= s3cret", "[s3cret", "a = 1\na = 's3cret'"] {
            let message = toml(&format!("\n{text}")).unwrap_err();
            assert!(message.starts_with("line ") && !message.contains("s3cret"), "{message}");
        }
    }

    /// Broken, a request could change a secret or something that does not change before a restart.
    #[test]
    fn a_patch_may_say_less_than_a_file() {
        let read = |text: &str| patch(serde_json::from_str::<Value>(text).unwrap().as_object().unwrap());
        assert_eq!(get(&read(r#"{"request_timeout_ms": 5e3}"#).0, "LEITSTAND_REQUEST_TIMEOUT_MS"), "5000");
        let (values, problems) = read(
            r#"{"logging": {"level": "DEBUG", "format": null}, "features": {"stats": false}, "rate_limit": null, "features": {"docs": true, "stats": false}}"#,
        );
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!((get(&values, "LOG_LEVEL").as_str(), get(&values, "LEITSTAND_DISABLE").as_str()), ("DEBUG", "-"));
        assert_eq!(values.switches().collect::<Vec<_>>(), [(Feature::Stats, false), (Feature::Docs, true)]);
        for (text, name, part) in [
            (r#"{"token": "x"}"#, "token", "secret"),
            (r#"{"admin_token": null}"#, "admin_token", "secret"),
            (r#"{"token_file": "/x"}"#, "token_file", "secret"),
            (r#"{"data_dir": "x"}"#, "data_dir", "restart"),
            (r#"{"nope": null}"#, "nope", "no setting"),
            (r#"{"request_timeout_ms": "5000"}"#, "request_timeout_ms", "whole number"),
            (r#"{"request_timeout_ms": 1.5}"#, "request_timeout_ms", "whole number"),
            (r#"{"LEITSTAND_DISABLE": "x"}"#, "LEITSTAND_DISABLE", "features"),
        ] {
            let (_, problems) = read(text);
            assert_eq!(problems.len(), 1, "{text}: {problems:?}");
            assert!(problems[0].name == name && problems[0].text.contains(part), "{text}: {problems:?}");
        }
        assert!(read(r#"{"logging": null, "features": null}"#).1.is_empty());
    }

    /// Broken, `null` would not take a change back, or take others with it. The cases are those of the RFC.
    #[test]
    fn patches_merge_as_the_rfc_says() {
        for (target, patch, want) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            (r#"{}"#, r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            let object = |text: &str| serde_json::from_str::<Map<String, Value>>(text).unwrap();
            let mut merged = object(target);
            merge_patch(&mut merged, object(patch));
            assert_eq!(merged, object(want), "{target} {patch}");
        }
    }

    /// Broken, what was changed by a request would be lost, or the file with it.
    #[test]
    fn a_file_is_edited_in_place() {
        let file =
            "# Ours.\nrate_limit = '1/minute' # low\nport = 1\n\n[logging]\n# why\nlevel = 'INFO'\nformat = 'json'\n";
        let document: Value = serde_json::from_str(
            r#"{"rate_limit": "2/minute", "logging": {"level": "DEBUG", "format": null}, "features": {"stats": false},
                "request_timeout_ms": 5000, "allow_domains": ["a"], "deny_domains": null}"#,
        )
        .unwrap();
        let edited = edit_toml(file, document.as_object().unwrap()).unwrap();
        for kept in ["# Ours.", "# low", "# why", "port = 1"] {
            assert!(edited.contains(kept), "{edited}");
        }
        let (values, problems) = said(&edited);
        assert_eq!(problems, [""; 0]);
        for (name, want) in [
            ("LEITSTAND_RATE_LIMIT", "2/minute"),
            ("LOG_LEVEL", "DEBUG"),
            ("LEITSTAND_LOG_FORMAT", "-"),
            ("LEITSTAND_DISABLE", "stats"),
            ("LEITSTAND_REQUEST_TIMEOUT_MS", "5000"),
            ("LEITSTAND_ALLOW_DOMAINS", "a"),
            ("LEITSTAND_DENY_DOMAINS", "-"),
            ("LEITSTAND_PORT", "1"),
        ] {
            assert_eq!(get(&values, name), want, "{name}: {edited}");
        }
    }
}
