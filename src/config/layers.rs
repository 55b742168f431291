//! Which layer says what: defaults < file < `.env` < environment < options < run-time patch.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use super::document::Values;
use super::value::{is_service_link, trimmed};
use super::{Problem, Setting};

type Read<'a> = &'a dyn Fn(&Path) -> io::Result<Vec<u8>>;
type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Everything that may say something, the last word first.
pub struct Layers<'a> {
    /// What an admin has changed since the start.
    pub patch: &'a Values,
    /// Options of the command line.
    pub flags: &'a Values,
    /// `--uds`.
    pub socket: Option<&'a Path>,
    pub environment: Lookup<'a>,
    /// The file with variables, and its name.
    pub dot_env: Lookup<'a>,
    pub dot_env_name: &'a str,
    pub file: Option<&'a FileLayer>,
    /// Reads a file that a `*_FILE` variable names.
    pub read: Read<'a>,
    /// Reads the file with the named tokens; `None` takes it for empty.
    pub read_store: Option<Read<'a>>,
}

/// The settings of a TOML file.
pub struct FileLayer {
    name: Arc<str>,
    values: Values,
    problems: Vec<Problem>,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// The TOML file, by its name.
    File(Arc<str>),
    /// The file with variables, by its name.
    DotEnv(Arc<str>),
    Environment,
    Flag,
    Patch,
}

/// A value, where it stands, and what it is called there.
pub struct Found {
    pub text: OsString,
    pub origin: Origin,
    pub label: String,
}

static NOTHING: LazyLock<Values> = LazyLock::new(Values::default);

impl<'a> Layers<'a> {
    /// Defaults only.
    pub fn empty(read: Read<'a>) -> Layers<'a> {
        let nothing: Lookup<'a> = &|_| None;
        Layers {
            patch: &NOTHING,
            flags: &NOTHING,
            socket: None,
            environment: nothing,
            dot_env: nothing,
            dot_env_name: ".env",
            file: None,
            read,
            read_store: None,
        }
    }

    /// The value of the highest layer that says something.
    pub(super) fn find(&self, setting: &Setting, warnings: &mut Vec<String>) -> Option<Found> {
        let given = |values: &Values, origin| {
            let text = trimmed(setting, values.get(setting)?.into())?;
            Some(Found { text, origin, label: setting.key.to_owned() })
        };
        given(self.patch, Origin::Patch)
            .or_else(|| given(self.flags, Origin::Flag))
            .or_else(|| self.variable(setting, warnings))
            .or_else(|| {
                let file = self.file?;
                let found = given(&file.values, Origin::File(file.name.clone()))?;
                Some(Found { label: file.label(setting.key), ..found })
            })
    }

    /// The variable, by either name. compat: the own name comes first, even if it stands in `.env` and the older one
    /// in the environment.
    fn variable(&self, setting: &Setting, warnings: &mut Vec<String>) -> Option<Found> {
        let mut told = Vec::new();
        let mut said = |name: &str, lookup: Lookup<'a>, origin: Origin| {
            let given = lookup(name)?;
            let blank = given.to_str().is_some_and(|text| text.trim().is_empty());
            let text = trimmed(setting, given)?;
            if blank && setting.name == "LEITSTAND_DATA_DIR" {
                told.push(format!("{name} ({origin}) is empty: the data directory is the working directory"));
            }
            // Set by the cluster, and by nobody who wants this port.
            if setting.name == "LEITSTAND_PORT" && text.to_str().is_some_and(is_service_link) {
                told.push(format!(
                    "{name} ({origin}) is {text:?}, as Kubernetes sets it beside a Service of this name, and is ignored; \
                     enableServiceLinks: false keeps it away"
                ));
                return None;
            }
            Some(Found { text, origin, label: name.to_owned() })
        };
        let mut named = |name: &str| {
            said(name, self.environment, Origin::Environment)
                .or_else(|| said(name, self.dot_env, Origin::DotEnv(self.dot_env_name.into())))
        };
        let own = named(setting.name);
        let older = setting.older_name().and_then(|older| named(&older));
        warnings.append(&mut told);
        if let (Some(own), Some(older)) = (&own, &older)
            && own.text != older.text
        {
            warnings.push(format!("{} and {} are both set and differ; {} is used", own.label, older.label, own.label));
        }
        own.or(older)
    }
}

impl FileLayer {
    /// A file called `name` with what [`super::toml`] made of it.
    pub fn new(name: &str, (values, problems): (Values, Vec<Problem>)) -> FileLayer {
        FileLayer { name: name.into(), values, problems }
    }

    fn label(&self, key: &str) -> String {
        format!("{}: {key}", self.name)
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        self.problems.iter().map(|problem| Problem { name: self.label(&problem.name), text: problem.text.clone() })
    }

    /// The text of a setting that the file sets.
    pub fn get(&self, setting: &Setting) -> Option<&str> {
        self.values.get(setting)
    }
}

impl Found {
    pub(super) fn is_from_file(&self) -> bool {
        matches!(self.origin, Origin::File(_))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Default => "default",
            Origin::File(name) | Origin::DotEnv(name) => name,
            Origin::Environment => "environment",
            Origin::Flag => "option",
            Origin::Patch => "patch",
        })
    }
}
