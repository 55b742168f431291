//! One rule for the text of every setting, wherever it stands.
//!
//! White space around it is no part of it, a carriage return neither. What is empty then counts as not set, and
//! the next layer is asked; but an empty list is a list of nothing, and no number and no rate is empty (compat: the
//! original did not start with an empty number), unless it has no default. An empty data directory is the working
//! directory (compat). A quotation mark at an end, a control
//! character and a character that nobody can see are slips of whoever wrote it, and are refused.

use std::ffi::OsString;
use std::net::SocketAddr;

use super::{Kind, Setting};

/// Most characters of a value that a message quotes.
const QUOTED_CHARS_MAX: usize = 80;
const QUOTATION_MARKS: [char; 11] = ['"', '\'', '`', '“', '”', '„', '‘', '’', '‚', '«', '»'];

/// What a text says; `None`: nothing, as if it were not there.
pub(super) fn trimmed(setting: &Setting, text: OsString) -> Option<OsString> {
    let Some(readable) = text.to_str() else { return Some(text) };
    let trimmed = readable.trim();
    if trimmed.is_empty() && setting.name == "LEITSTAND_DATA_DIR" {
        return Some(".".into());
    }
    let list = matches!(setting.kind, Kind::List | Kind::Switches);
    let absent = trimmed.is_empty()
        && !list
        && (setting.default.is_empty() || matches!(setting.kind, Kind::Text | Kind::Secret));
    (!absent).then(|| trimmed.into())
}

/// Why no value of this setting can look like this.
pub(super) fn fault(setting: &Setting, text: &str) -> Option<String> {
    if setting.kind == Kind::Secret {
        // Each of its secrets is looked at alone.
        return None;
    }
    let list = matches!(setting.kind, Kind::List | Kind::Switches);
    if text.starts_with(QUOTATION_MARKS) || text.ends_with(QUOTATION_MARKS) {
        return Some("quotation marks are part of the value here: leave them out".to_owned());
    }
    let odd = text.chars().find(|c| is_unseen(*c) || c.is_control() && !(list && c.is_whitespace()));
    odd.map(|c| format!("it holds U+{:04X}, which cannot be seen: write it anew", u32::from(c)))
}

/// Does it begin or end with a quotation mark?
pub(super) fn is_quoted(text: &str) -> bool {
    text.starts_with(QUOTATION_MARKS) || text.ends_with(QUOTATION_MARKS)
}

/// Format characters, fillers and variation selectors of Unicode: nothing is seen of them.
pub(super) fn is_unseen(c: char) -> bool {
    matches!(u32::from(c),
        0xAD | 0x34F | 0x61C | 0x115F..=0x1160 | 0x17B4..=0x17B5 | 0x180B..=0x180F | 0x200B..=0x200F
        | 0x2028..=0x202E | 0x2060..=0x206F | 0x3164 | 0xFE00..=0xFE0F | 0xFEFF | 0xFFA0 | 0xFFF0..=0xFFFD
        | 0xE0000..=0xE0FFF)
}

/// The value as a message quotes it: escaped, and only its beginning if it is long.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS_MAX) {
        Some((end, _)) => format!("{:?}… ({} characters)", &text[..end], text.chars().count()),
        None => format!("{text:?}"),
    }
}

/// Is it what Kubernetes, and Docker before it, sets in a variable `<NAME>_PORT` of every container beside a
/// Service `<name>`: `tcp://10.0.0.1:8788`?
pub fn is_service_link(value: &str) -> bool {
    value.trim().split_once("://").is_some_and(|(scheme, rest)| {
        ["tcp", "udp", "sctp"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
            && rest.parse::<SocketAddr>().is_ok()
    })
}

/// Is it the name of a further variable of such a Service? `bare`: without `LEITSTAND_`.
pub(super) fn is_service_variable(bare: &str) -> bool {
    let after = |word: &str| {
        let at = if bare.starts_with(word) { Some(0) } else { bare.find(&format!("_{word}")).map(|at| at + 1) };
        at.map(|at| &bare[at + word.len()..])
    };
    let of_port = |rest: &str| {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let protocol = ["_TCP", "_UDP", "_SCTP"].iter().find_map(|word| rest[digits..].strip_prefix(word));
        digits > 0 && protocol.is_some_and(|rest| ["", "_PROTO", "_PORT", "_ADDR"].contains(&rest))
    };
    after("SERVICE_HOST").is_some_and(str::is_empty)
        || after("SERVICE_PORT").is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        || after("PORT_").is_some_and(of_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a Service of this name would stop the start, or a wrong port would be taken for one.
    #[test]
    fn links_of_a_service_are_known_and_nothing_else_is() {
        for link in ["tcp://10.0.0.1:8788", "TCP://[fd00::1]:80", "udp://127.0.0.1:1", " sctp://1.2.3.4:5\n"] {
            assert!(is_service_link(link), "{link}");
        }
        for other in ["8788", "tcp://", "tcp://host:1", "http://10.0.0.1:1", "tcp://10.0.0.1", "tcp://10.0.0.1:99999"] {
            assert!(!is_service_link(other), "{other}");
        }
        for name in [
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_HTTP",
            "PORT_8788_TCP",
            "PORT_8788_TCP_ADDR",
            "PORT_1_UDP_PROTO",
            "WEB_SERVICE_HOST",
            "WEB_PORT_80_TCP_PORT",
            "PORT_9_SCTP",
        ] {
            assert!(is_service_variable(name), "{name}");
        }
        for name in ["PORT", "PORTS", "PORT_8788", "PORT_TCP", "HOST", "SERVICE", "SERVICE_HOSTS", "PORT_1_TCP_X"] {
            assert!(!is_service_variable(name), "{name}");
        }
    }
}
