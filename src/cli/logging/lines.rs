//! Lines on their way to the thread that writes them.
//!
//! They wait in one piece of memory, in the order in which they were made. The thread takes all of it in exchange
//! for an empty one, so neither a line nor its memory passes from thread to thread alone.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Lines waiting for a slow reader; further ones are dropped and counted. As many may be on their way to him.
const QUEUED_LINES_MAX: usize = 8192;
/// The same in bytes: room for so many access lines in JSON.
const QUEUED_BYTES_MAX: usize = 3 << 20;
/// Memory that is kept for the next lines.
const KEPT_BYTES: usize = 256 << 10;
/// How long lines gather after a write. A lone line goes out at once; under load nobody has to wake the
/// thread for each of his lines.
const GATHER: Duration = Duration::from_millis(2);

/// Takes lines from any thread, and makes none of them wait for the reader.
#[derive(Default)]
pub(super) struct LineQueue {
    waiting: Mutex<Waiting>,
    /// There is something to write, and the thread that writes sleeps.
    more: Condvar,
    dropped: Arc<AtomicU64>,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    lines: usize,
    /// Answered when everything before it is written.
    flush: Option<SyncSender<()>>,
    /// The thread that writes waits to be woken.
    sleeps: bool,
}

impl LineQueue {
    /// Adds a line, which ends with a newline; without room it is dropped and counted.
    pub(super) fn push(&self, line: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.lines == QUEUED_LINES_MAX || waiting.bytes.len() + line.len() > QUEUED_BYTES_MAX {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.bytes.extend_from_slice(line);
        waiting.lines += 1;
        self.wake(waiting);
    }

    /// Waits until all lines before it are written, at most for so long.
    pub(super) fn flush(&self, at_most: Duration) {
        let (done, written) = sync_channel(1);
        let mut waiting = self.waiting();
        waiting.flush = Some(done);
        self.wake(waiting);
        // A stuck reader costs the last lines, not the end.
        let _ = written.recv_timeout(at_most);
    }

    /// A view of how many lines were dropped.
    pub(super) fn dropped(&self) -> Arc<AtomicU64> {
        self.dropped.clone()
    }

    /// Writes what comes, for ever.
    pub(super) fn write_to(&self, mut out: File) {
        let mut batch = Vec::new();
        loop {
            let flush = self.take(&mut batch);
            // Nobody reads any more: there is nowhere left to complain.
            let _ = out.write_all(&batch);
            if let Some(done) = flush {
                // Whoever asked may have stopped waiting.
                let _ = done.send(());
            }
            std::thread::sleep(GATHER);
        }
    }

    /// Waits for lines and puts all of them in the place of what `batch` held; returns who waits for them.
    fn take(&self, batch: &mut Vec<u8>) -> Option<SyncSender<()>> {
        batch.clear();
        // Grows when lines have waited for a slow reader.
        batch.shrink_to(KEPT_BYTES);
        let mut waiting = self.waiting();
        while waiting.lines == 0 && waiting.flush.is_none() {
            waiting.sleeps = true;
            waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.sleeps = false;
        waiting.lines = 0;
        std::mem::swap(&mut waiting.bytes, batch);
        waiting.flush.take()
    }

    /// A thread that is awake looks by itself.
    fn wake(&self, mut waiting: MutexGuard<'_, Waiting>) {
        if std::mem::take(&mut waiting.sleeps) {
            drop(waiting);
            self.more.notify_one();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing under the lock panics.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For a formatter that writes each line in one piece, as that of `tracing_subscriber` does.
impl Write for &LineQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::thread;

    fn dropped(queue: &LineQueue) -> u64 {
        queue.dropped().load(Ordering::Relaxed)
    }

    /// Broken, a reader who stands still would stop the service, or fill its memory.
    #[test]
    fn lines_that_find_no_room_are_counted_and_block_nobody() {
        let queue = LineQueue::default();
        for n in 0..QUEUED_LINES_MAX + 3 {
            queue.push(format!("line {n}\n").as_bytes());
        }
        assert_eq!(dropped(&queue), 3);
        let mut batch = Vec::new();
        queue.take(&mut batch);
        assert!(batch.starts_with(b"line 0\nline 1\n") && batch.ends_with(b"line 8191\n"));
        // There is room again.
        queue.push(b"next\n");
        queue.take(&mut batch);
        assert_eq!((batch.as_slice(), dropped(&queue)), (&b"next\n"[..], 3));
    }

    /// Broken, long lines would take more memory than a service may have, or it would be kept for ever.
    #[test]
    fn long_lines_find_less_room_and_their_memory_is_given_back() {
        let queue = LineQueue::default();
        let line = vec![b'x'; 1 << 20];
        for _ in 0..5 {
            queue.push(&line);
        }
        assert_eq!(dropped(&queue), 2);
        queue.push(b"");
        let mut batch = Vec::new();
        queue.take(&mut batch);
        assert_eq!(batch.len(), QUEUED_BYTES_MAX);
        queue.push(b"short\n");
        queue.take(&mut batch);
        assert_eq!(batch, b"short\n");
        assert!(queue.waiting().bytes.capacity() <= KEPT_BYTES);
    }

    /// Broken, lines of several threads would run into each other, change places or get lost.
    #[test]
    fn lines_of_many_threads_arrive_whole_and_in_order() {
        const LINES: usize = 2000;
        let queue = Arc::new(LineQueue::default());
        let (mut reader, writer) = io::pipe().unwrap();
        let written = queue.clone();
        thread::spawn(move || written.write_to(File::from(std::os::fd::OwnedFd::from(writer))));
        let makers: Vec<_> = (0..4)
            .map(|maker| {
                let queue = queue.clone();
                thread::spawn(move || (0..LINES).for_each(|n| queue.push(format!("{maker} {n}\n").as_bytes())))
            })
            .collect();
        let mut next = [0; 4];
        let mut lines = io::BufRead::lines(io::BufReader::new(reader.by_ref()));
        for _ in 0..4 * LINES {
            let line = lines.next().unwrap().unwrap();
            let (maker, n) = line.split_once(' ').unwrap();
            let next = &mut next[maker.parse::<usize>().unwrap()];
            assert_eq!(n.parse(), Ok(*next));
            *next += 1;
        }
        makers.into_iter().for_each(|maker| maker.join().unwrap());
        assert_eq!((next, dropped(&queue)), ([LINES; 4], 0));
    }

    /// Broken, the last lines of a service would be missing, or it would not end.
    #[test]
    fn a_flush_waits_for_what_was_made_before_and_no_longer_than_it_may() {
        let queue = Arc::new(LineQueue::default());
        queue.push(b"last\n");
        queue.flush(Duration::from_millis(1));
        let (mut reader, writer) = io::pipe().unwrap();
        let written = queue.clone();
        thread::spawn(move || written.write_to(File::from(std::os::fd::OwnedFd::from(writer))));
        queue.push(b"very last\n");
        queue.flush(Duration::from_secs(60));
        let mut lines = [0; 15];
        reader.read_exact(&mut lines).unwrap();
        assert_eq!(&lines, b"last\nvery last\n");
    }
}
