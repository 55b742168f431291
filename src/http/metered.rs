//! `Metered`: a reader that stops when it has cost its thread too much processor time.

use std::io::{self, BufRead, Read};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The time is looked at after so many bytes that went in, or came out.
const PIECE_IN_BYTES: usize = 1 << 10;
const PIECE_OUT_BYTES: usize = 32 << 10;

/// The processor time of this thread: what others do on the machine does not count.
pub(super) fn cpu_time() -> Duration {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), spent.tv_nsec as u32)
}

/// When work that begins now has cost so much.
pub(super) fn until(cpu_max: Option<Duration>) -> Option<Duration> {
    cpu_max.map(|max| cpu_time() + max)
}

fn look_at_time(until: Option<Duration>) -> io::Result<()> {
    if until.is_some_and(|until| cpu_time() > until) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
}

/// The bytes of a body. If it may cost so much only, they come in pieces, and so does what they become: not even a body
/// of which nothing comes out is read to its end then.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] when the time is over.
#[derive(Debug, Clone)]
pub(super) struct Metered<R> {
    inner: R,
    until: Option<Duration>,
    /// What is left of the piece.
    left: usize,
}

impl<R> Metered<R> {
    /// Without `until` it may cost what it costs, and nothing is looked at.
    pub(super) fn new(inner: R, until: Option<Duration>) -> Metered<R> {
        Metered { inner, until, left: PIECE_IN_BYTES }
    }
}

impl Metered<&[u8]> {
    pub(super) fn is_at_end(&self) -> bool {
        self.inner.is_empty()
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.until.is_none() {
            return self.inner.read(into);
        }
        look_at_time(self.until)?;
        let piece = into.len().min(PIECE_OUT_BYTES);
        self.inner.read(&mut into[..piece])
    }
}

impl BufRead for Metered<&[u8]> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.until.is_none() {
            return Ok(self.inner);
        }
        if self.left == 0 {
            look_at_time(self.until)?;
            self.left = PIECE_IN_BYTES;
        }
        Ok(&self.inner[..self.left.min(self.inner.len())])
    }

    fn consume(&mut self, bytes: usize) {
        self.inner = &self.inner[bytes..];
        self.left = self.left.saturating_sub(bytes);
    }
}
