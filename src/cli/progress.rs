//! How far a command is, on stderr: a bar that is drawn anew on a terminal, plain lines elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use super::data::{draw, tell};
use super::host::bytes;
use super::token::roughly;
use crate::storage::verify::Progress;

/// How often the bar is drawn anew.
const DRAWN_EVERY: Duration = Duration::from_millis(100);
/// Pauses between plain lines: so long at least, and so long at most while less than a step is done. What is
/// done sooner has none.
const LINE_MIN: Duration = Duration::from_secs(2);
const LINE_MAX: Duration = Duration::from_secs(30);
const STEP_PERCENT: u64 = 5;
const BAR_CHARS: u64 = 20;
const NAME_CHARS: usize = 20;

enum Way {
    Silent,
    Terminal,
    Lines,
}

/// Of one command, from its begin to its end.
pub(super) struct ProgressLine {
    /// Word for what is done, in plain lines.
    what: &'static str,
    way: Way,
    began: Instant,
    last: Instant,
    last_percent: u64,
    /// Something stands on the line now.
    drawn: bool,
}

impl ProgressLine {
    pub(super) fn new(what: &'static str, wanted: bool) -> ProgressLine {
        let way = match (wanted, std::io::stderr().is_terminal()) {
            (false, _) => Way::Silent,
            (true, true) => Way::Terminal,
            (true, false) => Way::Lines,
        };
        let now = Instant::now();
        ProgressLine { what, way, began: now, last: now, last_percent: 0, drawn: false }
    }

    pub(super) fn tell(&mut self, progress: Progress<'_>) {
        match self.way {
            Way::Silent => {}
            Way::Terminal if self.last.elapsed() < DRAWN_EVERY => {}
            Way::Terminal => {
                // Carriage return, and the rest of the line is erased.
                draw(format_args!("\r{} {}\x1b[K", bar(percent(progress)), told(progress, self.began.elapsed())));
                (self.last, self.drawn) = (Instant::now(), true);
            }
            Way::Lines => {
                let (paused, percent) = (self.last.elapsed(), percent(progress));
                if is_due(paused, percent.saturating_sub(self.last_percent)) {
                    tell(format_args!("{}: {}", self.what, told(progress, self.began.elapsed())));
                    (self.last, self.last_percent) = (Instant::now(), percent);
                }
            }
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.drawn {
            draw("\r\x1b[K");
        }
    }
}

fn percent(progress: Progress<'_>) -> u64 {
    progress.bytes_done.saturating_mul(100) / progress.bytes.max(1)
}

/// `[#########           ]`
pub(super) fn bar(percent: u64) -> String {
    let done = (percent.min(100) * BAR_CHARS / 100) as usize;
    format!("[{:<width$}]", "#".repeat(done), width = BAR_CHARS as usize)
}

/// ` 45 % of 315.2 MiB, 120.5 MiB/s, 2 seconds left, a.jsonl`
fn told(progress: Progress<'_>, took: Duration) -> String {
    let rate = (progress.bytes_done as f64 / took.as_secs_f64().max(0.001)) as u64;
    let bytes_left = progress.bytes.saturating_sub(progress.bytes_done);
    let left = if rate == 0 { String::new() } else { format!("{} left, ", roughly(bytes_left.div_ceil(rate))) };
    let (percent, all, rate) = (percent(progress), bytes(progress.bytes), bytes(rate));
    format!("{percent:3} % of {all}, {rate}/s, {left}{:.NAME_CHARS$}", progress.file)
}

fn is_due(paused: Duration, percent_more: u64) -> bool {
    paused >= LINE_MAX || (paused >= LINE_MIN && percent_more >= STEP_PERCENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a bar would run over its end, or a line over the width of a terminal.
    #[test]
    fn a_bar_says_how_much_is_done_and_left() {
        let progress = |mib: u64| Progress { file: "a.jsonl", bytes_done: mib << 20, bytes: 400 << 20 };
        assert_eq!(bar(0), "[                    ]");
        assert_eq!(bar(percent(progress(180))), "[#########           ]");
        assert_eq!((bar(100), bar(250)), (format!("[{}]", "#".repeat(20)), bar(100)));
        let second = Duration::from_secs(1);
        assert_eq!(told(progress(100), second), " 25 % of 400.0 MiB, 100.0 MiB/s, 3 seconds left, a.jsonl");
        assert_eq!(told(progress(0), second), "  0 % of 400.0 MiB, 0 bytes/s, a.jsonl");
        let nothing = Progress { file: "a.jsonl", bytes_done: 0, bytes: 0 };
        assert_eq!(told(nothing, Duration::ZERO), "  0 % of 0 bytes, 0 bytes/s, a.jsonl");
        let long = "x".repeat(200);
        let large = Progress { file: &long, bytes_done: 1 << 40, bytes: 4 << 40 };
        let width = bar(percent(large)).len() + 1 + told(large, 1000 * second).len();
        assert!(width < 100, "{width}");
    }

    /// Broken, a log would be filled with lines, or stay silent for minutes.
    #[test]
    fn plain_lines_are_rare_and_come() {
        let second = Duration::from_secs(1);
        for (paused_s, more, due) in [(1, 50, false), (2, 5, true), (2, 4, false), (29, 4, false), (30, 0, true)] {
            assert_eq!(is_due(paused_s * second, more), due, "{paused_s} s, {more} %");
        }
    }
}
