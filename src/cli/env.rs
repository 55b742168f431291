//! The configuration from the process environment, `.env` and the command line.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;

use super::BindArgs;
use crate::config::{Bind, Config, Source};

/// File in the working directory that is read for what the environment does not set.
const DOT_ENV: &str = ".env";

/// Reads everything; the message names every wrong setting.
pub(super) fn config(args: &BindArgs) -> Result<Config, String> {
    let dot_env = dot_env()?;
    let get = |name: &str| std::env::var_os(name).or_else(|| dot_env.get(name).cloned());
    let read = |path: &Path| std::fs::read(path);
    let mut config = Config::from_source(&Source { get: &get, read: &read }).map_err(|e| e.to_string())?;
    apply(args, &mut config.bind);
    Ok(config)
}

fn apply(args: &BindArgs, bind: &mut Bind) {
    if let Some(path) = &args.uds {
        *bind = Bind::Unix(path.clone());
    }
    if let Bind::Tcp { host, port } = bind {
        if let Some(given) = &args.host {
            host.clone_from(given);
        }
        *port = args.port.unwrap_or(*port);
    }
}

fn dot_env() -> Result<HashMap<String, OsString>, String> {
    let lines = match dotenvy::from_path_iter(Path::new(DOT_ENV)) {
        Ok(lines) => lines,
        Err(e) if e.not_found() => return Ok(HashMap::new()),
        Err(e) => return Err(format!("{DOT_ENV} cannot be read: {e}")),
    };
    let mut vars = HashMap::new();
    for line in lines {
        // The parser's message quotes the line, which may hold a secret.
        let (name, value) =
            line.map_err(|_| format!("{DOT_ENV} has a line that is not NAME=value (quote values with spaces or $)"))?;
        vars.insert(name, value.into());
    }
    Ok(vars)
}
