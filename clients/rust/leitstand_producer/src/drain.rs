//! The delivery of what the spool holds of one domain.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::batch::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, Batch};
use crate::delivery::Live;
use crate::error::{Failure, Written};
use crate::spool::Locked;
use crate::wish::Wish;

/// The delivery of one domain of the spool, under its lock.
pub(crate) struct Drain<'a> {
    pub live: &'a Arc<Live>,
    pub domain: Arc<str>,
    pub locked: Locked<'a>,
    /// Attempts of each request after the first.
    pub retries: u32,
    pub wish: &'a Wish,
    /// Grows by the events that were acknowledged, also when it fails.
    pub delivered: &'a mut u64,
}

/// Files that go in one request.
#[derive(Default)]
struct Joined {
    names: Vec<String>,
    /// The length of each file in `lines`.
    lengths: Vec<usize>,
    lines: Vec<u8>,
    events: usize,
}

impl Drain<'_> {
    /// Sends everything.
    pub fn run(&mut self) -> Result<(), Failure> {
        self.locked.remove_left_over().map_err(broken)?;
        self.locked.remove_delivered().map_err(doubling)?;
        loop {
            let names = self.locked.names().map_err(broken)?;
            if names.is_empty() {
                return Ok(());
            }
            let mut joined = Joined::default();
            for name in names {
                let lines = self.locked.read(&name).map_err(broken)?;
                if !lines.others.is_empty() || lines.events.is_empty() {
                    self.locked.set_aside(&name, &lines).map_err(broken)?;
                    self.live.parts().broken.fetch_add(1, Ordering::Relaxed);
                }
                let lines = lines.events;
                let events = count(&lines);
                if events == 0 {
                    continue;
                }
                let fits =
                    joined.lines.len() + lines.len() <= BATCH_BYTES_MAX && joined.events + events <= BATCH_EVENTS_MAX;
                if !fits && !joined.names.is_empty() {
                    self.send(std::mem::take(&mut joined))?;
                }
                joined.names.push(name);
                joined.lengths.push(lines.len());
                joined.lines.extend_from_slice(&lines);
                joined.events += events;
            }
            if !joined.names.is_empty() {
                self.send(joined)?;
            }
            // Others may have put events behind meanwhile.
        }
    }

    fn attempt(&self, lines: Bytes, events: u64) -> Result<(), Failure> {
        let batch = Batch { lines, events, domain: Some(self.domain.clone()) };
        self.live.attempt(&batch, self.retries, self.wish)
    }

    /// Sends files in one request; if that is refused, file by file, and then event by event.
    fn send(&mut self, joined: Joined) -> Result<(), Failure> {
        let (lines, events) = (Bytes::from(joined.lines), joined.events as u64);
        let failure = match self.attempt(lines.clone(), events) {
            Ok(()) => {
                *self.delivered += events;
                return self.locked.remove(&joined.names).map_err(doubling);
            }
            Err(failure) if is_about_events(&failure) => failure,
            Err(failure) => return Err(failure),
        };
        let [name] = &joined.names[..] else {
            let mut start = 0;
            for (name, length) in joined.names.into_iter().zip(joined.lengths) {
                let lines = lines[start..start + length].to_vec();
                start += length;
                let events = count(&lines);
                self.send(Joined { names: vec![name], lengths: vec![length], lines, events })?;
            }
            return Ok(());
        };
        if events == 1 {
            return self.reject(name, &lines, &reason(&failure), true);
        }
        self.send_each(name, &lines)
    }

    /// Sends the events of a file one by one. Whatever fails, what is done is not sent again.
    fn send_each(&mut self, name: &str, lines: &Bytes) -> Result<(), Failure> {
        let mut refused = Vec::new();
        let mut reasons = String::new();
        let mut start = 0;
        let mut result = Ok(());
        for line in lines.split_inclusive(|b| *b == b'\n') {
            match self.attempt(lines.slice_ref(line), 1) {
                Ok(()) => *self.delivered += 1,
                Err(failure) if is_about_events(&failure) => {
                    refused.extend_from_slice(line);
                    reasons.push_str(&reason(&failure));
                }
                Err(failure) => {
                    result = Err(failure);
                    break;
                }
            }
            start += line.len();
        }
        match (result, self.settle(name, lines, start, &refused, &reasons)) {
            (Err(failure), Err(unsettled)) => Err(failure.and_then(unsettled)),
            (result, settled) => result.and(settled),
        }
    }

    /// Leaves of a file what is after `start`. Before anything else goes what was acknowledged, whatever becomes of
    /// what was refused: that stays in front until it is put aside.
    fn settle(&self, name: &str, lines: &[u8], start: usize, refused: &[u8], reasons: &str) -> Result<(), Failure> {
        let rest = &lines[start..];
        if refused.len() < start {
            if refused.is_empty() && rest.is_empty() {
                return self.locked.remove(&[name.to_owned()]).map_err(doubling);
            }
            self.locked.keep(name, &[refused, rest].concat()).map_err(doubling)?;
        }
        if refused.is_empty() {
            return Ok(());
        }
        self.reject(name, refused, reasons, rest.is_empty())?;
        if rest.is_empty() { Ok(()) } else { self.locked.keep(name, rest).map_err(broken) }
    }

    /// Puts refused lines of a file where somebody will look at them.
    fn reject(&self, name: &str, refused: &[u8], reasons: &str, whole: bool) -> Result<(), Failure> {
        self.locked.reject(name, refused, reasons, whole).map_err(broken)?;
        self.live.parts().rejected.fetch_add(count(refused) as u64, Ordering::Relaxed);
        Ok(())
    }
}

fn broken(e: std::io::Error) -> Failure {
    Failure::spool(e, None)
}

/// What was acknowledged is still in the spool: another process sends it again.
fn doubling(e: std::io::Error) -> Failure {
    let what = format!("what was delivered cannot be removed, another process may send it again: {e}");
    Failure { written: Written::Maybe, ..Failure::spool(what, None) }
}

fn count(lines: &[u8]) -> usize {
    lines.iter().filter(|b| **b == b'\n').count()
}

/// Is this answer about the events, and not about the token, the address or the service?
fn is_about_events(failure: &Failure) -> bool {
    matches!(failure.status, Some(400 | 413 | 422))
}

/// One line for the `.reason` file.
fn reason(failure: &Failure) -> String {
    let text = failure.text.as_deref().unwrap_or_default().replace(['\n', '\r'], " ");
    let id = failure.request_id.as_deref().map(|id| format!(" (request {id})")).unwrap_or_default();
    format!("{} {}{id}\n", failure.status.unwrap_or_default(), text.trim())
}
