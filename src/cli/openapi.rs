//! `leitstand openapi`: the description of the HTTP interface.

#[cfg(feature = "docs")]
pub(super) fn run(json: bool) -> Result<(), String> {
    let openapi = crate::http::openapi();
    let text = if json {
        openapi.to_pretty_json().map_err(|e| e.to_string())
    } else {
        openapi.to_yaml().map(|yaml| quote_for_yaml_1_1(&yaml)).map_err(|e| e.to_string())
    }?;
    super::data::print(&format!("{}\n", text.trim_end()));
    Ok(())
}

/// Quotes every plain name and value that YAML 1.1 reads as a boolean or as a point in time, so that readers of both versions see the same
/// document. The writer knows YAML 1.2, where `on` and `2026-11-21` are texts.
#[cfg(feature = "docs")]
fn quote_for_yaml_1_1(yaml: &str) -> String {
    let quoted = |text: &str| if is_text_in_1_2_only(text) { format!("'{text}'") } else { text.to_owned() };
    let mut block_indent = None;
    let mut out = String::with_capacity(yaml.len());
    for line in yaml.lines() {
        let text = line.trim_start_matches([' ', '-']);
        let indent = line.len() - text.len();
        if block_indent.is_some_and(|block| text.is_empty() || indent > block) {
            out += line;
        } else {
            block_indent = ["|", "|-", "|+", ">", ">-", ">+"]
                .iter()
                .any(|mark| text.ends_with(&format!(": {mark}")))
                .then_some(indent);
            out += &line[..indent];
            match text.split_once(": ") {
                Some((name, value)) => out += &format!("{}: {}", quoted(name), quoted(value)),
                None => match text.strip_suffix(':') {
                    Some(name) => out += &format!("{}:", quoted(name)),
                    None => out += &quoted(text),
                },
            }
        }
        out.push('\n');
    }
    out
}

/// The booleans of YAML 1.1 that are none in 1.2 (<https://yaml.org/type/bool.html>), and what begins as a number and is
/// none: dates, and numbers to the base 60.
#[cfg(feature = "docs")]
fn is_text_in_1_2_only(text: &str) -> bool {
    let boolean = ["y", "n", "yes", "no", "on", "off"].iter().any(|word| text.eq_ignore_ascii_case(word));
    boolean || text.starts_with(|c: char| c.is_ascii_digit()) && text.parse::<f64>().is_err()
}

/// The command stays, so that a script is told what is missing, and not that it misspelled something.
#[cfg(not(feature = "docs"))]
pub(super) fn run(_json: bool) -> Result<(), String> {
    Err("this binary was built without the feature `docs`, so it holds no description of the interface".into())
}

#[cfg(all(test, feature = "docs"))]
mod tests {
    use super::*;

    /// If this breaks: a reader of YAML 1.1, as PyYAML, would take the name `on` for `true`.
    #[test]
    fn what_yaml_1_1_takes_for_another_type_is_quoted() {
        let yaml = "required:\n- on\n- one\nproperties:\n  on:\n    type: boolean\n    example: Yes\n    required: true\n  text: |-\n    no\n\n    on: off\n  last: 'on'\n  since: 2026-11-21\n  port: 8788\n";
        let want = "required:\n- 'on'\n- one\nproperties:\n  'on':\n    type: boolean\n    example: 'Yes'\n    required: true\n  text: |-\n    no\n\n    on: off\n  last: 'on'\n  since: '2026-11-21'\n  port: 8788\n";
        assert_eq!(quote_for_yaml_1_1(yaml), want);
    }
}
