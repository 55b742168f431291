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
    /// Why the first of the files that stay could neither be delivered nor put aside.
    pub stuck: Option<Failure>,
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
    /// Sends everything that can be sent. What is in nobody's hands stays, and is the error in the end.
    pub fn run(mut self) -> Result<(), Failure> {
        let result = self.send_all();
        match (result, self.stuck) {
            (Err(failure), Some(stuck)) => Err(failure.and_then(stuck)),
            (Err(failure), None) | (Ok(()), Some(failure)) => Err(failure),
            (Ok(()), None) => Ok(()),
        }
    }

    fn send_all(&mut self) -> Result<(), Failure> {
        self.locked.remove_left_over();
        self.locked.remove_delivered().map_err(doubling)?;
        loop {
            let names = self.locked.names().map_err(broken)?;
            if names.is_empty() {
                return Ok(());
            }
            let mut joined = Joined::default();
            for name in names {
                let lines = match self.locked.read(&name) {
                    Ok(Some(lines)) => lines,
                    Ok(None) => continue,
                    Err(e) if is_shortage(&e) => return Err(broken(e)),
                    Err(e) => {
                        self.leave(&name, &format!("it cannot be read: {e}"));
                        continue;
                    }
                };
                if !lines.others.is_empty() || lines.events.is_empty() {
                    if let Err(e) = self.locked.set_aside(&name, &lines) {
                        self.leave(&name, &format!("its lines that are no events cannot be put aside: {e}"));
                        continue;
                    }
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
    fn settle(&mut self, name: &str, lines: &[u8], start: usize, refused: &[u8], reasons: &str) -> Result<(), Failure> {
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

    /// Puts refused lines of a file where somebody will look at them. A file of nothing else stays if it must.
    fn reject(&mut self, name: &str, refused: &[u8], reasons: &str, whole: bool) -> Result<(), Failure> {
        match self.locked.reject(name, refused, reasons, whole) {
            Ok(()) => drop(self.live.parts().rejected.fetch_add(count(refused) as u64, Ordering::Relaxed)),
            Err(e) if whole => {
                let reason = reasons.lines().next().unwrap_or_default();
                self.leave(name, &format!("the service refused an event ({reason}), and it cannot be put aside: {e}"));
            }
            Err(e) => return Err(broken(e)),
        }
        Ok(())
    }

    /// Nothing behind a file has to wait because it cannot be read or put aside.
    fn leave(&mut self, name: &str, why: &str) {
        self.locked.leave(name);
        let told = format!("{}/{name} stays where it is, and what is behind it is delivered: {why}", self.domain);
        self.stuck.get_or_insert_with(|| Failure::spool(told, None));
    }
}

/// Another attempt may find it gone, so the order need not be broken for it.
fn is_shortage(e: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOMEM].map(Errno::raw_os_error);
    e.raw_os_error().is_some_and(|code| shortages.contains(&code))
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
