//! The command line: options to one library call to a line of output.
//!
//! Exit codes: 0 fine or stopped by a signal, 1 configuration, start or check failed, 2 wrong usage.
//! `verify`, `repair`, `doctor`, `snapshot`, `restore` and `drill` end with 1 when there is something to
//! tell or the contents are wrong, with 2 when they could not look. Whatever a command does, it does not end with
//! 0 when its output could not be written.

mod config_check;
mod data;
mod doctor;
mod drill;
// Public for the fuzz target of the `.env` reader, which only this module needs otherwise.
#[doc(hidden)]
pub mod env;
mod healthcheck;
mod heartbeat;
mod host;
mod http;
mod logging;
mod mounted;
mod openapi;
mod progress;
mod reload;
mod repair;
mod restore;
mod serve;
mod settings_file;
mod snapshot;
mod starting;
mod support_bundle;
mod token;
mod token_watch;
mod unix_socket;
mod verify;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use self::starting::Starting;
use crate::timestamp::parse_span;

/// The kind of an error, to scripts, that has no word of its own.
const COULD_NOT: &str = "could_not";

/// HTTP ingest of JSON events into one append-only JSONL file per domain.
///
/// Settings come from options, the environment (LEITSTAND_*, else CHRONIK_*), .env in the working
/// directory or the file of --env-file, and a TOML file, in this order; `leitstand config check` shows them.
#[derive(Debug, Parser)]
#[command(
    name = "leitstand",
    bin_name = "leitstand",
    version,
    about,
    arg_required_else_help = true,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Same as `config check`
    #[arg(long)]
    validate: bool,
    #[command(flatten)]
    check: config_check::CheckArgs,
    /// As `restore --from SNAPSHOT`; with --target, and --json if wanted
    #[arg(
        long,
        value_name = "SNAPSHOT",
        requires = "target",
        conflicts_with_all = ["validate", "config", "env_file", "host", "port", "uds"]
    )]
    restore: Option<PathBuf>,
    /// As `restore --to DIR`
    #[arg(long, value_name = "DIR", requires = "restore")]
    target: Option<PathBuf>,
}

impl Cli {
    /// The command, or the one that the options stand for.
    fn chosen(self) -> Command {
        let json = self.check.json;
        match (self.command, self.validate, self.restore, self.target) {
            (Some(command), ..) => command,
            (None, true, ..) => Command::Config { command: ConfigCommand::Check(self.check) },
            (None, false, Some(from), Some(to)) => {
                Command::Restore(restore::RestoreArgs { from, to, json, until: None, expect: None })
            }
            // Each of the last two requires the other.
            (None, false, ..) => Cli::command()
                .error(ErrorKind::MissingSubcommand, "a command is required, or --validate, or --restore")
                .exit(),
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service until SIGTERM or SIGINT
    Serve(BindArgs),
    /// Look at the configuration without starting anything
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Same as `config check`
    Validate(config_check::CheckArgs),
    /// Ask a running service whether it would accept an event; for containers
    ///
    /// Exit code 0: it would, 1: it would not, or nobody can tell.
    Healthcheck(HealthcheckArgs),
    /// Look at a service and its machine, and say what to do next; writes nothing
    ///
    /// Exit code 0: fine, or warnings only, 1: something fails, 2: could not look.
    Doctor(doctor::DoctorArgs),
    /// Look at every line of every file; changes nothing, may run beside the service
    ///
    /// Exit code 0: clean, 1: something was found, 2: something could not be looked at.
    Verify(verify::VerifyArgs),
    /// Mend unfinished last lines, and write files anew whose sync failed; may run beside the service
    ///
    /// Exit code 0: nothing (left) to do, 1: something to do or not to be done, 2: could not look.
    Repair(repair::RepairArgs),
    /// Copy the data directory, consistent for each domain, while the service runs
    ///
    /// Exit code 0: done, 1: done but for what is told, or the base is damaged, 2: not done.
    Snapshot(snapshot::SnapshotArgs),
    /// Make a data directory of a snapshot, whole or not at all
    ///
    /// Exit code 0: done, 1: the snapshot is damaged, 2: not done.
    Restore(restore::RestoreArgs),
    /// Exercise total loss and recovery on a service of its own, and report RTO and RPO
    ///
    /// Exit code 0: recovered within the targets, 1: a target missed or something lost, 2: could not run.
    Drill(drill::DrillArgs),
    /// Gather what somebody elsewhere needs to help: settings, figures, file names, log; no payload, no secret
    ///
    /// Exit code 0: done, 1: something could not be had and is told, 2: not done.
    SupportBundle(support_bundle::SupportBundleArgs),
    /// Give, show, revoke and rotate named tokens; a running service notices within a second
    ///
    /// Exit code 0: done, 1: not done, and nothing was changed.
    Token {
        #[command(subcommand)]
        command: token::TokenCommand,
    },
    /// Print the description of the HTTP interface
    #[cfg_attr(not(feature = "docs"), command(hide = true))]
    Openapi {
        /// JSON instead of YAML
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print every problem at once, or the effective values with secrets masked; starts nothing
    ///
    /// Exit code 0: the service would start with it, 1: problems.
    Check(config_check::CheckArgs),
}

/// Where settings come from, and where to listen; wins over the environment.
#[derive(Debug, Default, Args)]
pub struct BindArgs {
    /// TOML file with settings [env: LEITSTAND_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// File with variables, NAME=value a line, read for what the environment does not set; changes to it are
    /// taken over [env: LEITSTAND_ENV_FILE] [default: .env, if it is there]
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Address or name to listen on [env: LEITSTAND_HOST] [default: 127.0.0.1]
    #[arg(long)]
    host: Option<String>,
    /// Port to listen on; 0 lets the kernel choose [env: LEITSTAND_PORT] [default: 8788]
    #[arg(long)]
    port: Option<u16>,
    /// Unix socket to listen on instead
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port"])]
    uds: Option<PathBuf>,
}

/// How to judge a service.
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    #[command(flatten)]
    bind: BindArgs,
    /// Judge it by its heartbeat file (LEITSTAND_HEARTBEAT_FILE) instead of asking it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["host", "port", "uds"])]
    heartbeat: Option<PathBuf>,
    /// Oldest good heartbeat, as 90s, 10m or 1h [default: 60s]
    #[arg(long, value_name = "AGE", requires = "heartbeat", value_parser = span)]
    max_age: Option<Duration>,
    /// Longest good time without an acknowledged append [default: any]
    #[arg(long, value_name = "AGE", requires = "heartbeat", value_parser = span)]
    max_success_age: Option<Duration>,
    /// One JSON document instead of a line
    #[arg(long)]
    json: bool,
}

fn span(text: &str) -> Result<Duration, String> {
    parse_span(text).ok_or_else(|| "must be a time span as 500ms, 90s, 5m or 4h".to_owned())
}

impl Command {
    /// Does whoever called it read one JSON document, whatever happens?
    fn wants_json(&self) -> bool {
        match self {
            Command::Serve(_) | Command::Openapi { .. } => false,
            Command::Config { command: ConfigCommand::Check(args) } | Command::Validate(args) => args.json,
            Command::Healthcheck(args) => args.json,
            Command::Doctor(args) => args.json,
            Command::Verify(args) => args.data.json,
            Command::Repair(args) => args.data.json,
            Command::Snapshot(args) => args.json,
            Command::Restore(args) => args.json,
            Command::Drill(args) => args.json,
            Command::SupportBundle(args) => args.json,
            Command::Token { command } => command.wants_json(),
        }
    }

    /// Exit code of an error.
    fn failed(&self) -> u8 {
        match self {
            Command::Serve(_)
            | Command::Config { .. }
            | Command::Validate(_)
            | Command::Healthcheck(_)
            | Command::Token { .. } => 1,
            Command::Doctor(_)
            | Command::Verify(_)
            | Command::Repair(_)
            | Command::Snapshot(_)
            | Command::Restore(_)
            | Command::SupportBundle(_) => data::COULD_NOT_LOOK,
            Command::Drill(_) => drill::COULD_NOT_RUN,
            Command::Openapi { .. } => {
                if cfg!(feature = "docs") {
                    1
                } else {
                    2
                }
            }
        }
    }

    /// Exit code when the work is done and cannot be told.
    fn unprinted(&self) -> u8 {
        match self {
            // 2 would say that there is no snapshot, or that nothing was restored.
            Command::Snapshot(_) | Command::Restore(_) | Command::SupportBundle(_) => data::SOMETHING_FOUND,
            _ => self.failed(),
        }
    }

    fn run(&self, starting: Starting) -> Result<ExitCode, String> {
        let done = |result: Result<(), String>| result.map(|()| ExitCode::SUCCESS);
        match self {
            Command::Serve(bind) => done(serve::run(bind, starting)),
            Command::Config { command: ConfigCommand::Check(args) } | Command::Validate(args) => {
                config_check::run(args)
            }
            Command::Healthcheck(args) => healthcheck::run(args),
            Command::Doctor(args) => doctor::run(args),
            Command::Verify(args) => verify::run(args),
            Command::Repair(args) => repair::run(args),
            Command::Snapshot(args) => snapshot::run(args),
            Command::Restore(args) => restore::run(args),
            Command::Drill(args) => drill::run(args),
            Command::SupportBundle(args) => support_bundle::run(args),
            Command::Token { command } => token::run(command),
            Command::Openapi { json } => done(openapi::run(*json)),
        }
    }
}

/// Runs the command that the arguments of the process name.
pub fn run() -> ExitCode {
    // Before anything that takes time.
    let starting = Starting::of(std::env::args_os());
    if !drill::outlives_nobody() {
        return ExitCode::FAILURE;
    }
    let command = match Cli::try_parse() {
        Ok(cli) => cli.chosen(),
        // Wrong usage, help, or the version.
        Err(told) => {
            let printed = told.print().is_ok() && std::io::stdout().flush().is_ok();
            let code = u8::try_from(told.exit_code()).unwrap_or(1);
            return ExitCode::from(if printed { code } else { code.max(1) });
        }
    };
    let code = match command.run(starting) {
        Ok(code) => {
            if let Some(why) = data::working_dir_gone().filter(|_| code != ExitCode::SUCCESS) {
                data::tell(format_args!("leitstand: {why}"));
            }
            code
        }
        Err(message) => {
            let message = data::working_dir_gone().map_or(message.clone(), |why| format!("{message}\n  {why}"));
            if command.wants_json() {
                data::print_error(COULD_NOT, &message);
            }
            data::tell(format_args!("leitstand: {message}"));
            ExitCode::from(command.failed())
        }
    };
    if data::is_unprinted() { ExitCode::from(command.unprinted()) } else { code }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
