//! Where log lines go, and what never gets into them.

use std::io::{self, Write};
use std::panic::PanicHookInfo;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::config::{LogFormat, LogLevel};

/// Lines waiting for a slow reader of stdout; further ones are dropped and counted.
const BUFFERED_LINES_MAX: usize = 8192;

/// Keeps the log going; the last lines are written when it is dropped.
pub(super) struct Logging {
    _guard: WorkerGuard,
    pub(super) dropped: ErrorCounter,
}

/// Starts logging to stdout. A reader that does not keep up loses lines, never events.
pub(super) fn start(level: LogLevel, format: LogFormat) -> Logging {
    let (writer, guard) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(BUFFERED_LINES_MAX).finish(io::stdout());
    let dropped = writer.error_counter();
    let subscriber = tracing_subscriber::registry().with(filter(level)).with(layer(format, writer));
    // Fails only when a subscriber was set before, which nothing here does.
    let _ = tracing::subscriber::set_global_default(subscriber);
    std::panic::set_hook(Box::new(log_panic));
    Logging { _guard: guard, dropped }
}

fn layer<S>(format: LogFormat, writer: NonBlocking) -> Box<dyn tracing_subscriber::Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    match format {
        LogFormat::Text => fmt::layer().with_ansi(false).with_writer(writer).boxed(),
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(writer)
            .boxed(),
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::NotSet => LevelFilter::TRACE,
    }
}

/// The place only: the message of a panic may quote a payload.
fn log_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
    tracing::error!(place, "panic; this is a bug, please report the place and the version");
    // The log may not be running any more; stderr is the last resort and nothing is left to do if it fails.
    let _ = writeln!(io::stderr(), "leitstand: panic at {place}");
}
