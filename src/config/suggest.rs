//! Names that nobody reads, and what may have been meant.

use super::SETTINGS;
use super::value::is_service_variable;

/// Variables of the clients and of the tests; set on a machine that runs both, they are no mistake.
const OTHERS: [&str; 10] =
    ["URL", "TIMEOUT", "RETRIES", "BACKOFF", "SPOOL", "SPOOL_MAX_BYTES", "REPLAY_CMD", "BIN", "LONG", "NO_BUILD"];
const PREFIXES: [&str; 2] = ["LEITSTAND_", "CHRONIK_"];

/// A warning for each of `names` that looks like a setting of ours and is none. `place`: where they stand.
pub fn unknown_variables<'a>(names: impl Iterator<Item = &'a str>, place: &str) -> Vec<String> {
    let mut unknown: Vec<&str> = names.filter(|name| is_unknown(name)).collect();
    unknown.sort_unstable();
    let tell = |name: &str| {
        let settings = SETTINGS.iter().map(|setting| setting.name);
        match suggestion(bare(name), settings, bare) {
            Some(meant) => format!("{name} ({place}) is no setting; do you mean {meant}?"),
            None => format!("{name} ({place}) is no setting"),
        }
    };
    unknown.into_iter().map(tell).collect()
}

fn is_unknown(name: &str) -> bool {
    let Some(bare) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) else { return false };
    let known = SETTINGS.iter().any(|setting| setting.name.strip_prefix("LEITSTAND_") == Some(bare));
    !known && !OTHERS.contains(&bare) && !is_service_variable(bare)
}

fn bare(name: &str) -> &str {
    PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// The one of `known` that is nearest to `name`, if it is near. `part` is what is compared of each.
pub(super) fn suggestion<'a>(
    name: &str,
    known: impl Iterator<Item = &'a str>,
    part: impl Fn(&str) -> &str,
) -> Option<&'a str> {
    let near = 1 + name.len() / 4;
    known.map(|k| (distance(name, part(k)), k)).filter(|(d, _)| *d <= near).min().map(|(_, k)| k)
}

/// Levenshtein's: how many letters must be added, removed or changed.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted_in_letters() {
        for (a, b, want) in [("", "", 0), ("a", "", 1), ("", "ab", 2), ("kitten", "sitting", 3), ("max", "amx", 2)] {
            assert_eq!((distance(a, b), distance(b, a)), (want, want), "{a} {b}");
        }
    }

    /// Broken, a setting with a slip in its name would do nothing, and nobody would know.
    #[test]
    fn unknown_names_are_told_with_what_was_meant() {
        let names = [
            "LEITSTAND_MAXBODY",
            "LEITSTAND_TOKEN",
            "CHRONIK_TOKEN",
            "LOG_LEVEL",
            "LEITSTAND_LOG_LEVEL",
            "CHRONIK_RATELIMIT",
            "LEITSTAND_SPOOL",
            "LEITSTAND_SERVICE_HOST",
            "CHRONIK_PORT_8788_TCP_ADDR",
            "LEITSTAND_XYZZY_PLUGH",
            "HOME",
        ];
        let told = unknown_variables(names.into_iter(), ".env");
        assert_eq!(
            told,
            [
                "CHRONIK_RATELIMIT (.env) is no setting; do you mean LEITSTAND_RATE_LIMIT?",
                "LEITSTAND_LOG_LEVEL (.env) is no setting; do you mean LOG_LEVEL?",
                "LEITSTAND_MAXBODY (.env) is no setting; do you mean LEITSTAND_MAX_BODY?",
                "LEITSTAND_XYZZY_PLUGH (.env) is no setting",
            ]
        );
    }
}
