//! How far a drill is, on stderr: one line that is written anew on a terminal, plain lines elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use crate::cli::data::{draw, tell};

/// How often the line is written anew.
const EVERY: Duration = Duration::from_millis(100);

pub(super) struct Progress {
    enabled: bool,
    terminal: bool,
    /// Something stands on the line now.
    shown: bool,
    last: Instant,
}

impl Progress {
    pub(super) fn new(enabled: bool) -> Progress {
        Progress { enabled, terminal: std::io::stderr().is_terminal(), shown: false, last: Instant::now() }
    }

    /// A part that begins, or something that is worth a line of its own.
    pub(super) fn say(&mut self, text: &str) {
        match (self.enabled, self.terminal) {
            (false, _) => {}
            (true, true) => self.write(text),
            (true, false) => tell(text),
        }
    }

    /// How far the current part is; on a terminal only.
    pub(super) fn tick(&mut self, text: impl FnOnce() -> String) {
        if self.enabled && self.terminal && self.last.elapsed() >= EVERY {
            self.write(&text());
        }
    }

    fn write(&mut self, text: &str) {
        // Carriage return, and the rest of the line is erased.
        draw(format_args!("\r{text:.100}\x1b[K"));
        self.shown = true;
        self.last = Instant::now();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            draw("\r\x1b[K");
        }
    }
}
