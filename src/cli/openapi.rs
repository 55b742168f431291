//! `leitstand openapi`: the description of the HTTP interface.

#[cfg(feature = "docs")]
pub(super) fn run(json: bool) -> Result<(), String> {
    let openapi = crate::http::openapi();
    let text = if json {
        openapi.to_pretty_json().map_err(|e| e.to_string())
    } else {
        openapi.to_yaml().map_err(|e| e.to_string())
    }?;
    super::data::print(&format!("{}\n", text.trim_end()));
    Ok(())
}

/// The command stays, so that a script is told what is missing, and not that it misspelled something.
#[cfg(not(feature = "docs"))]
pub(super) fn run(_json: bool) -> Result<(), String> {
    Err("this binary was built without the feature `docs`, so it holds no description of the interface".into())
}
