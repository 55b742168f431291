//! `leitstand openapi`: the description of the HTTP interface.

pub(super) fn run(json: bool) -> Result<(), String> {
    let openapi = crate::http::openapi();
    let text = if json {
        openapi.to_pretty_json().map_err(|e| e.to_string())
    } else {
        openapi.to_yaml().map_err(|e| e.to_string())
    }?;
    println!("{}", text.trim_end());
    Ok(())
}
