//! Where log lines go, and what never gets into them.
//!
//! Lines pass a bounded queue to one thread that writes them, so that a reader who does not keep up
//! costs lines, which are counted, and never events or a clean stop. So does a stdout that takes none of them.
//!
//! Lines of the target `leitstand::audit` say who changed what. They pass at every level.

pub(super) mod lines;
mod text;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber, callsite};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{DefaultFields, Format, Json};
use tracing_subscriber::layer::Context;
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;

use self::lines::{Dropped, LineQueue, Lines};
use crate::config::{LogFormat, LogLevel};

/// Who changed what: never filtered.
const AUDIT: &str = "leitstand::audit";
/// How long the end waits for the last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Keeps the log going; waits a moment for the last lines when it is dropped.
pub(super) struct Logging {
    queue: Arc<LineQueue>,
    switches: Arc<Switches>,
}

/// What may change while lines are written.
pub(super) struct Switches {
    /// 0 (`ERROR`) to 4 (`NOTSET`).
    level: AtomicU8,
    json: AtomicBool,
}

/// Starts logging to stdout.
pub(super) fn start(level: LogLevel, format: LogFormat) -> io::Result<Logging> {
    // A descriptor of our own: the lock of std's stdout would be held while a write is stuck.
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let queue = Arc::new(LineQueue::default());
    let written = queue.clone();
    std::thread::Builder::new().name("log".to_owned()).spawn(move || written.write_to(stdout))?;
    let switches = Arc::new(Switches { level: AtomicU8::new(0), json: AtomicBool::new(false) });
    switches.store(level, format);
    let lines = EitherFormat::new(switches.clone(), queue.clone());
    let subscriber = tracing_subscriber::registry().with(LevelSwitch(switches.clone())).with(lines);
    // Fails only when a subscriber was set before, which nothing here does.
    let _ = tracing::subscriber::set_global_default(subscriber);
    std::panic::set_hook(Box::new(log_panic));
    Ok(Logging { queue, switches })
}

impl Logging {
    /// What may change from now on.
    pub(super) fn switches(&self) -> Arc<Switches> {
        self.switches.clone()
    }

    /// A view of how many lines were dropped.
    pub(super) fn dropped(&self) -> Arc<Dropped> {
        self.queue.dropped()
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.queue.flush(LAST_LINES);
    }
}

impl Switches {
    /// Level and format of the lines from now on.
    pub(super) fn set(&self, level: LogLevel, format: LogFormat) {
        self.store(level, format);
        // Each place that logs remembers whether somebody listens; all are asked anew.
        callsite::rebuild_interest_cache();
    }

    fn store(&self, level: LogLevel, format: LogFormat) {
        self.level.store(level as u8, Ordering::Relaxed);
        self.json.store(format == LogFormat::Json, Ordering::Relaxed);
    }

    fn level(&self) -> LevelFilter {
        match self.level.load(Ordering::Relaxed) {
            0 => LevelFilter::ERROR,
            1 => LevelFilter::WARN,
            2 => LevelFilter::INFO,
            3 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        }
    }
}

/// As the filter of a constant level: the answer is remembered by each place that logs, so a line that
/// nobody wants costs as little as before.
struct LevelSwitch(Arc<Switches>);

impl LevelSwitch {
    fn passes(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.0.level() || metadata.target() == AUDIT
    }
}

impl<S: Subscriber> Layer<S> for LevelSwitch {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.passes(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.passes(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        // Audit lines are of this level.
        Some(self.0.level().max(LevelFilter::INFO))
    }
}

/// Text or JSON, by what is set when a line is made. Spans, whose fields the two would keep in different
/// forms, are not logged.
struct EitherFormat<S> {
    switches: Arc<Switches>,
    queue: Arc<LineQueue>,
    json: fmt::Layer<S, DefaultFields, Format<Json>, Writers>,
}

impl<S> EitherFormat<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn new(switches: Arc<Switches>, queue: Arc<LineQueue>) -> EitherFormat<S> {
        let format = fmt::format().json().flatten_event(true).with_current_span(false).with_span_list(false);
        let json = fmt::layer().with_ansi(false).with_writer(Writers(queue.clone())).event_format(format);
        EitherFormat { switches, queue, json }
    }
}

impl<S> Layer<S> for EitherFormat<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if self.switches.json.load(Ordering::Relaxed) {
            self.json.on_event(event, context);
        } else {
            let audit = event.metadata().target() == AUDIT;
            text::with_line(event, |line| if audit { self.queue.push_audit(line) } else { self.queue.push(line) });
        }
    }
}

/// A way into the queue for each line of the JSON format.
struct Writers(Arc<LineQueue>);

impl<'a> MakeWriter<'a> for Writers {
    type Writer = Lines<'a>;

    fn make_writer(&'a self) -> Lines<'a> {
        Lines { queue: &self.0, audit: false }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Lines<'a> {
        Lines { queue: &self.0, audit: metadata.target() == AUDIT }
    }
}

/// The place only: the message of a panic may quote a payload.
fn log_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
    tracing::error!(place, "panic; this is a bug, please report the place and the version");
    // The log may not be running any more; stderr is the last resort and nothing is left to do if it fails.
    let _ = writeln!(io::stderr(), "leitstand: panic at {place}");
}
