//! Which form of an error a client prefers, by its `Accept` (RFC 9110, sections 12.4.2 and 12.5.1).
//!
//! Only errors have two forms: the one of the original, and a problem document, which nobody gets without naming it. A
//! client that accepts neither gets the first: what went wrong is told in any case, and no status depends on it.

use super::fields::{Field, Fields, text};

/// Does the client want errors as `application/problem+json`? It does if it names that type, with a weight that is not
/// 0 and not below the one of `application/json`.
pub(crate) fn prefers_problem(fields: &impl Fields) -> bool {
    let mut problem = 0.0_f32;
    // What says it in the fewest words counts (section 12.5.1).
    let mut json = (Precision::None, 0.0_f32);
    // What is no text names no type.
    for range in fields.all(Field::Accept).filter_map(text).flat_map(|value| split(value, ',')) {
        let mut parts = split(range, ';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        if media_type.eq_ignore_ascii_case("application/problem+json") {
            problem = problem.max(weight(parts));
        } else {
            let precision = Precision::of(media_type);
            if precision >= json.0 && precision != Precision::None {
                let before = if precision == json.0 { json.1 } else { 0.0 };
                json = (precision, weight(parts).max(before));
            }
        }
    }
    problem > 0.0 && problem >= json.1
}

/// How precisely a media range names `application/json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Precision {
    None,
    Any,
    Application,
    Json,
}

impl Precision {
    fn of(media_range: &str) -> Precision {
        let is = |other: &str| media_range.eq_ignore_ascii_case(other);
        if is("application/json") {
            Precision::Json
        } else if is("application/*") {
            Precision::Application
        } else if is("*/*") {
            Precision::Any
        } else {
            Precision::None
        }
    }
}

/// The weight among the parameters; 1 without one, and if it is no number between 0 and 1.
fn weight<'a>(mut parameters: impl Iterator<Item = &'a str>) -> f32 {
    let weight = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then_some(value.trim())
    });
    weight.and_then(|text| text.parse().ok()).filter(|weight| (0.0..=1.0).contains(weight)).unwrap_or(1.0)
}

/// The members of a list, whose separator may also stand within quotes.
fn split(list: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    list.split(move |c: char| {
        is_quoted ^= c == '"' && !is_escaped;
        is_escaped = is_quoted && !is_escaped && c == '\\';
        !is_quoted && c == separator
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use http::header::{ACCEPT, HeaderValue};

    use super::*;

    fn prefers(values: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        values.iter().for_each(|value| {
            headers.append(ACCEPT, HeaderValue::from_str(value).unwrap());
        });
        prefers_problem(&headers)
    }

    /// Broken, who says that it takes no problem document would get one, or who asks for it would not.
    #[test]
    fn a_problem_is_for_who_names_it_and_wants_nothing_else_more() {
        for wanted in [
            "application/problem+json",
            "Application/Problem+JSON",
            "application/problem+json;q=0.001",
            "application/problem+json ; Q=1.000",
            "application/problem+json;charset=utf-8;q=0.5",
            "application/problem+json;note=\"a,b;q=0\"",
            "application/problem+json;note=\"\\\",q=0\"",
            "text/html, application/problem+json",
            "application/json, application/problem+json",
            "application/problem+json, application/json;q=0.5, */*;q=0.1",
            "application/json;q=0, application/problem+json;q=0.1",
            "*/*, application/json;q=0.1, application/problem+json;q=0.2",
            "application/problem+json;q=x",
            ",, application/problem+json,",
        ] {
            assert!(prefers(&[wanted]), "{wanted}");
        }
        for other in [
            "",
            "*/*",
            "application/*",
            "application/json",
            "application/json;q=0, text/plain",
            "application/problem+json;q=0",
            "application/problem+json;q=0.000, application/json",
            "application/problem+json; q=0; charset=utf-8",
            "application/json, application/problem+json;q=0.9",
            "*/*, application/problem+json;q=0.5",
            "application/*;q=0.8, application/problem+json;q=0.5",
            "application/problem+jsonp",
            "x-application/problem+json",
            "application/problem+xml",
            "text/plain;note=\"application/problem+json\"",
            "text/plain;note=\", application/problem+json\"",
        ] {
            assert!(!prefers(&[other]), "{other}");
        }
        assert!(prefers(&["text/html", "application/problem+json"]));
        assert!(!prefers(&["application/problem+json;q=0.1", "application/json;q=0.2"]));
        assert!(!prefers(&[]));
    }
}
