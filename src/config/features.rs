//! `Features`: routes that may be switched off. A route that is off is an unknown path.

use std::fmt;

/// Something that may be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// `/version`
    Version,
    /// `/stats`
    Stats,
    /// `/docs`, `/redoc` and `/openapi.json`
    Docs,
    /// `/metrics`
    Metrics,
    /// `/config`
    Config,
    /// `/admin/…`
    Admin,
    /// `POST /ingest/{domain}`
    OldPath,
}

/// Which are on. By default all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    off: u16,
}

impl Feature {
    pub const ALL: [Feature; 7] = [
        Feature::Version,
        Feature::Stats,
        Feature::Docs,
        Feature::Metrics,
        Feature::Config,
        Feature::Admin,
        Feature::OldPath,
    ];

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Feature::Version => "version",
            Feature::Stats => "stats",
            Feature::Docs => "docs",
            Feature::Metrics => "metrics",
            Feature::Config => "config",
            Feature::Admin => "admin",
            Feature::OldPath => "old_path",
        }
    }

    /// The feature with this name.
    pub fn named(name: &str) -> Option<Feature> {
        Feature::ALL.into_iter().find(|feature| feature.name() == name)
    }
}

impl Features {
    /// Reads a list, separated by commas, of those that are off.
    ///
    /// # Errors
    /// A message for a name that is none.
    pub fn parse(text: &str) -> Result<Features, String> {
        let mut features = Features::default();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let feature = Feature::named(&name.to_ascii_lowercase());
            features.set(feature.ok_or_else(|| format!("{name:?} is none of {}", names()))?, false);
        }
        Ok(features)
    }

    /// Is it on?
    pub fn has(self, feature: Feature) -> bool {
        self.off & (1 << feature as u16) == 0
    }

    /// Switches one on or off.
    pub fn set(&mut self, feature: Feature, on: bool) {
        if on { self.off &= !(1 << feature as u16) } else { self.off |= 1 << feature as u16 }
    }
}

/// All names, for messages.
pub(super) fn names() -> String {
    Feature::ALL.map(Feature::name).join(", ")
}

/// The list of those that are off, as [`Features::parse`] reads it.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let off: Vec<_> = Feature::ALL.into_iter().filter(|feature| !self.has(*feature)).map(Feature::name).collect();
        f.write_str(&off.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a route would be on that an operator switched off.
    #[test]
    fn a_list_names_what_is_off() {
        let features = Features::parse(" docs, STATS,,").unwrap();
        for feature in Feature::ALL {
            assert_eq!(features.has(feature), !matches!(feature, Feature::Docs | Feature::Stats), "{feature:?}");
            assert_eq!(Feature::named(feature.name()), Some(feature));
        }
        assert_eq!(features.to_string(), "stats,docs");
        assert!(Features::parse("doc").unwrap_err().contains("old_path"));
        let mut features = Features::parse("").unwrap();
        features.set(Feature::Admin, false);
        features.set(Feature::Stats, false);
        features.set(Feature::Admin, true);
        assert_eq!(features.to_string(), "stats");
    }
}
