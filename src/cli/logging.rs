//! Where log lines go, and what never gets into them.
//!
//! Lines pass a bounded queue to one thread that writes them, so that a reader who does not keep up
//! costs lines, which are counted, and never events or a clean stop.
//!
//! Lines of the target `leitstand::audit` say who changed what. They pass at every level.

mod text;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber, callsite};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{DefaultFields, Format, Json};
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::Context;
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;

use crate::config::{LogFormat, LogLevel};

/// Lines waiting for a slow reader; further ones are dropped and counted.
const QUEUED_LINES_MAX: usize = 8192;
/// Lines written in one go.
const BATCH_BYTES: usize = 64 << 10;
/// How long lines gather after a write. A lone line goes out at once; under load nobody has to wake the
/// thread for each of his lines.
const GATHER: Duration = Duration::from_millis(2);
/// Who changed what: never filtered.
const AUDIT: &str = "leitstand::audit";
/// How long the end waits for the last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Keeps the log going; waits a moment for the last lines when it is dropped.
pub(super) struct Logging {
    queue: LineQueue,
    switches: Arc<Switches>,
}

/// What may change while lines are written.
pub(super) struct Switches {
    /// 0 (`ERROR`) to 4 (`NOTSET`).
    level: AtomicU8,
    json: AtomicBool,
}

#[derive(Clone)]
struct LineQueue {
    lines: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

enum Message {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// Starts logging to stdout.
pub(super) fn start(level: LogLevel, format: LogFormat) -> io::Result<Logging> {
    // A descriptor of our own: the lock of std's stdout would be held while a write is stuck.
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let (lines, written) = sync_channel(QUEUED_LINES_MAX);
    std::thread::Builder::new().name("log".to_owned()).spawn(move || write_lines(stdout, &written))?;
    let queue = LineQueue { lines, dropped: Arc::default() };
    let switches = Arc::new(Switches { level: AtomicU8::new(0), json: AtomicBool::new(false) });
    switches.store(level, format);
    let lines = EitherFormat::new(switches.clone(), queue.clone());
    let subscriber = tracing_subscriber::registry().with(LevelSwitch(switches.clone())).with(lines);
    // Fails only when a subscriber was set before, which nothing here does.
    let _ = tracing::subscriber::set_global_default(subscriber);
    std::panic::set_hook(Box::new(log_panic));
    Ok(Logging { queue, switches })
}

fn write_lines(mut stdout: File, lines: &Receiver<Message>) {
    let mut batch = Vec::with_capacity(BATCH_BYTES);
    while let Ok(first) = lines.recv() {
        let mut flushed = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Line(line) => batch.extend_from_slice(&line),
                Message::Flush(done) => flushed.push(done),
            }
            next = if batch.len() < BATCH_BYTES { lines.try_recv().ok() } else { None };
        }
        // Nobody reads any more: there is nowhere left to complain.
        let _ = stdout.write_all(&batch);
        batch.clear();
        for done in flushed {
            // Whoever asked may have stopped waiting.
            let _ = done.send(());
        }
        std::thread::sleep(GATHER);
    }
}

impl Logging {
    /// What may change from now on.
    pub(super) fn switches(&self) -> Arc<Switches> {
        self.switches.clone()
    }

    /// A view of how many lines were dropped.
    pub(super) fn dropped(&self) -> Arc<AtomicU64> {
        self.queue.dropped.clone()
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        let (done, written) = sync_channel(1);
        if self.queue.lines.try_send(Message::Flush(done)).is_ok() {
            // A stuck reader costs the last lines, not the end.
            let _ = written.recv_timeout(LAST_LINES);
        }
    }
}

/// One line on its way into the queue.
struct Line {
    queue: LineQueue,
    bytes: Vec<u8>,
}

impl<'a> MakeWriter<'a> for LineQueue {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { queue: self.clone(), bytes: Vec::with_capacity(256) }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.queue.push(std::mem::take(&mut self.bytes));
    }
}

impl LineQueue {
    fn push(&self, line: Vec<u8>) {
        if self.lines.try_send(Message::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
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
    queue: LineQueue,
    json: fmt::Layer<S, DefaultFields, Format<Json>, LineQueue>,
}

impl<S> EitherFormat<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn new(switches: Arc<Switches>, queue: LineQueue) -> EitherFormat<S> {
        let format = fmt::format().json().flatten_event(true).with_current_span(false).with_span_list(false);
        let json = fmt::layer().with_ansi(false).with_writer(queue.clone()).event_format(format);
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
            text::with_line(event, |line| self.queue.push(line.to_vec()));
        }
    }
}

/// The place only: the message of a panic may quote a payload.
fn log_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
    tracing::error!(place, "panic; this is a bug, please report the place and the version");
    // The log may not be running any more; stderr is the last resort and nothing is left to do if it fails.
    let _ = writeln!(io::stderr(), "leitstand: panic at {place}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_find_no_room_are_counted_and_block_nobody() {
        let (lines, kept) = sync_channel(2);
        let queue = LineQueue { lines, dropped: Arc::default() };
        for n in 0..5 {
            writeln!(queue.make_writer(), "line {n}").unwrap();
        }
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 3);
        assert!(matches!(kept.try_recv(), Ok(Message::Line(line)) if line == b"line 0\n"));
    }
}
