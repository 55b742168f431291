//! Lines on their way to the thread that writes them.
//!
//! They wait in one piece of memory, in the order in which they were made. The thread takes all of it in exchange
//! for an empty one, so neither a line nor its memory passes from thread to thread alone.
//!
//! A line that is lost is counted, whatever the reason: no room, a full disk, a reader that has gone. Lines of the audit
//! wait a while for room and for a disk; those that are lost all the same have a count of their own, and go to stderr.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lines waiting for a slow reader; further ones are dropped and counted. As many may be on their way to him.
const QUEUED_LINES_MAX: usize = 8192;
/// The same in bytes: room for so many access lines in JSON.
const QUEUED_BYTES_MAX: usize = 3 << 20;
/// Memory that is kept for the next lines.
const KEPT_BYTES: usize = 256 << 10;
/// How long lines gather after a write. A lone line goes out at once; under load nobody has to wake the
/// thread for each of his lines.
const GATHER: Duration = Duration::from_millis(2);
/// How long a stdout that takes nothing just now (`O_NONBLOCK`) is left alone.
const RETRY: Duration = Duration::from_millis(2);
/// How long an audit line waits, for room in the queue and again for a disk that takes it.
const AUDIT_WAIT: Duration = Duration::from_secs(1);
const AUDIT_RETRY: Duration = Duration::from_millis(50);

/// Takes lines from any thread, and makes none of them wait for the reader, but for a moment those of the audit.
#[derive(Default)]
pub(super) struct LineQueue {
    waiting: Mutex<Waiting>,
    /// There is something to write, and the thread that writes sleeps.
    more: Condvar,
    /// The thread that writes has taken what waited.
    room: Condvar,
    dropped: Arc<Dropped>,
}

/// Lines that are not in the log, since the start.
#[derive(Debug, Default)]
pub(crate) struct Dropped {
    /// All of them.
    pub(crate) lines: AtomicU64,
    /// Those of the audit.
    pub(crate) audit: AtomicU64,
    /// Somebody is telling stderr.
    telling: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    lines: usize,
    /// Where the lines of the audit end in `bytes`.
    audit_ends: Vec<usize>,
    /// Answered when everything before it is written.
    flush: Option<SyncSender<()>>,
    /// The thread that writes waits to be woken.
    sleeps: bool,
}

/// What is written at once.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    audit_ends: Vec<usize>,
}

impl LineQueue {
    /// Adds a line, which ends with a newline; without room it is dropped and counted.
    pub(super) fn push(&self, line: &[u8]) {
        let waiting = self.waiting();
        if waiting.has_room(line) { self.add(waiting, line) } else { self.dropped.count(1) }
    }

    /// Adds a line of the audit, which waits for room for at most [`AUDIT_WAIT`].
    pub(super) fn push_audit(&self, line: &[u8]) {
        let full = |waiting: &mut Waiting| !waiting.has_room(line);
        let waited = self.room.wait_timeout_while(self.waiting(), AUDIT_WAIT, full);
        let (mut waiting, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            drop(waiting);
            return self.dropped.audit_line(line);
        }
        let end = waiting.bytes.len() + line.len();
        waiting.audit_ends.push(end);
        self.add(waiting, line);
    }

    fn add(&self, mut waiting: MutexGuard<'_, Waiting>, line: &[u8]) {
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
    pub(super) fn dropped(&self) -> Arc<Dropped> {
        self.dropped.clone()
    }

    /// Writes what comes, for ever.
    pub(super) fn write_to(&self, mut out: File) {
        let mut batch = Batch::default();
        // The last line that is there may be half of one.
        let mut torn = false;
        loop {
            let flush = self.take(&mut batch);
            torn = self.write_batch(&mut out, &batch, torn);
            if let Some(done) = flush {
                // Whoever asked may have stopped waiting.
                let _ = done.send(());
            }
            std::thread::sleep(GATHER);
        }
    }

    /// Writes a batch and counts what could not be written. Is half a line the last that is there?
    fn write_batch(&self, out: &mut impl Write, batch: &Batch, torn: bool) -> bool {
        let mut ended = !torn;
        let written = if batch.bytes.is_empty() { Ok(()) } else { end_line(out, &mut ended) };
        let (mut written, mut failed) = match written {
            Ok(()) => write_waiting(out, &batch.bytes),
            Err(e) => (0, Some(e)),
        };
        if failed.is_none() {
            return !ended;
        }
        ended = ended && (written == 0 || batch.bytes[written - 1] == b'\n');
        // A line of which a part is there is lost.
        written = batch.bytes[..written].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let lost = batch.bytes[written..].iter().filter(|b| **b == b'\n').count() as u64;
        let audit: Vec<&[u8]> =
            batch.audit_lines().filter(|(begin, _)| *begin >= written).map(|(_, line)| line).collect();
        self.dropped.count(lost - audit.len() as u64);
        let deadline = Instant::now() + AUDIT_WAIT;
        for line in audit {
            // What was counted lost above is not tried again; these are.
            failed = Some(ErrorKind::Other.into());
            while failed.is_some() && Instant::now() < deadline {
                failed = end_line(out, &mut ended).err();
                if failed.is_none() {
                    let (bytes, error) = write_waiting(out, line);
                    ended = ended && (bytes == 0 || bytes == line.len());
                    failed = error;
                }
                if failed.is_some() {
                    std::thread::sleep(AUDIT_RETRY);
                }
            }
            if failed.is_some() {
                self.dropped.audit_line(line);
            }
        }
        !ended
    }

    /// Waits for lines and puts all of them in the place of what `batch` held; returns who waits for them.
    fn take(&self, batch: &mut Batch) -> Option<SyncSender<()>> {
        batch.bytes.clear();
        batch.audit_ends.clear();
        // Grows when lines have waited for a slow reader.
        batch.bytes.shrink_to(KEPT_BYTES);
        let mut waiting = self.waiting();
        while waiting.lines == 0 && waiting.flush.is_none() {
            waiting.sleeps = true;
            waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.sleeps = false;
        waiting.lines = 0;
        std::mem::swap(&mut waiting.bytes, &mut batch.bytes);
        std::mem::swap(&mut waiting.audit_ends, &mut batch.audit_ends);
        let flush = waiting.flush.take();
        drop(waiting);
        self.room.notify_all();
        flush
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

impl Waiting {
    fn has_room(&self, line: &[u8]) -> bool {
        self.lines < QUEUED_LINES_MAX && self.bytes.len() + line.len() <= QUEUED_BYTES_MAX
    }
}

impl Batch {
    /// Where each line of the audit begins, and the line.
    fn audit_lines(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.audit_ends.iter().map(|end| {
            let begin = self.bytes[..end - 1].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            (begin, &self.bytes[begin..*end])
        })
    }
}

impl Dropped {
    fn count(&self, lines: u64) {
        self.lines.fetch_add(lines, Ordering::Relaxed);
    }

    /// Counts a line of the audit that the log does not have, and shows it on stderr.
    fn audit_line(self: &Arc<Dropped>, line: &[u8]) {
        self.count(1);
        self.audit.fetch_add(1, Ordering::Relaxed);
        // Stderr may be as stuck as stdout, so a thread waits for it, and one only.
        if self.telling.swap(true, Ordering::AcqRel) {
            return;
        }
        let (dropped, told) = (self.clone(), [b"leitstand: not in the log: ".as_slice(), line].concat());
        let tell = move || {
            let _ = io::stderr().write_all(&told);
            dropped.telling.store(false, Ordering::Release);
        };
        if std::thread::Builder::new().name("log-stderr".to_owned()).spawn(tell).is_err() {
            self.telling.store(false, Ordering::Release);
        }
    }
}

/// Ends the line that is there by halves.
fn end_line(out: &mut impl Write, ended: &mut bool) -> io::Result<()> {
    if !*ended {
        match write_waiting(out, b"\n") {
            (_, None) => *ended = true,
            (_, Some(e)) => return Err(e),
        }
    }
    Ok(())
}

/// Writes all of it, and waits as long as it takes while stdout takes nothing. How much was written, and why no more.
fn write_waiting(out: &mut impl Write, bytes: &[u8]) -> (usize, Option<io::Error>) {
    let mut written = 0;
    while written < bytes.len() {
        match out.write(&bytes[written..]) {
            Ok(0) => return (written, Some(ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // As a reader that is slow: lines wait, and then there is no room for more.
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(RETRY),
            Err(e) => return (written, Some(e)),
        }
    }
    (written, None)
}

/// For a formatter that writes each line in one piece, as that of `tracing_subscriber` does.
pub(super) struct Lines<'a> {
    pub(super) queue: &'a LineQueue,
    pub(super) audit: bool,
}

impl Write for Lines<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.audit {
            self.queue.push_audit(line)
        } else {
            self.queue.push(line)
        }
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
        queue.dropped().lines.load(Ordering::Relaxed)
    }

    /// Broken, a reader who stands still would stop the service, or fill its memory.
    #[test]
    fn lines_that_find_no_room_are_counted_and_block_nobody() {
        let queue = LineQueue::default();
        for n in 0..QUEUED_LINES_MAX + 3 {
            queue.push(format!("line {n}\n").as_bytes());
        }
        assert_eq!(dropped(&queue), 3);
        let mut batch = Batch::default();
        queue.take(&mut batch);
        assert!(batch.bytes.starts_with(b"line 0\nline 1\n") && batch.bytes.ends_with(b"line 8191\n"));
        // There is room again.
        queue.push(b"next\n");
        queue.take(&mut batch);
        assert_eq!((batch.bytes.as_slice(), dropped(&queue)), (&b"next\n"[..], 3));
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
        let mut batch = Batch::default();
        queue.take(&mut batch);
        assert_eq!(batch.bytes.len(), QUEUED_BYTES_MAX);
        queue.push(b"short\n");
        queue.take(&mut batch);
        assert_eq!(batch.bytes, b"short\n");
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

    /// Takes `room` bytes, then fails as it is told; a full disk that is made room on.
    struct Sink {
        room: usize,
        full: ErrorKind,
        /// After so many refusals there is room again.
        refusals: usize,
        held: Vec<u8>,
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                if self.refusals == 0 {
                    self.room = usize::MAX;
                } else {
                    self.refusals -= 1;
                    return Err(self.full.into());
                }
            }
            let taken = bytes.len().min(self.room);
            self.room -= taken;
            self.held.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn batch(queue: &LineQueue, lines: &[(&str, bool)]) -> Batch {
        for (line, audit) in lines {
            let line = format!("{line}\n");
            if *audit { queue.push_audit(line.as_bytes()) } else { queue.push(line.as_bytes()) }
        }
        let mut batch = Batch::default();
        queue.take(&mut batch);
        batch
    }

    /// Broken, lines would be lost on a full disk or a closed pipe, and the count of lost lines stay 0.
    #[test]
    fn lines_that_cannot_be_written_are_counted_and_those_of_the_audit_tried_again() {
        let queue = LineQueue::default();
        let audits = || queue.dropped().audit.load(Ordering::Relaxed);
        let lines = [("one", false), ("two", false), ("audit", true), ("three", false)];
        // Just now nothing is taken: nothing is lost.
        let mut slow = Sink { room: 6, full: ErrorKind::WouldBlock, refusals: 5, held: Vec::new() };
        assert!(!queue.write_batch(&mut slow, &batch(&queue, &lines), false));
        assert_eq!((slow.held.as_slice(), dropped(&queue)), (&b"one\ntwo\naudit\nthree\n"[..], 0));
        // No room for a while: half a line is ended, and the line of the audit comes later.
        let mut full = Sink { room: 6, full: ErrorKind::StorageFull, refusals: 3, held: Vec::new() };
        assert!(!queue.write_batch(&mut full, &batch(&queue, &lines), false));
        assert_eq!((full.held.as_slice(), dropped(&queue), audits()), (&b"one\ntw\naudit\n"[..], 2, 0));
        // For longer than anybody waits.
        let mut gone = Sink { room: 5, full: ErrorKind::BrokenPipe, refusals: usize::MAX, held: Vec::new() };
        let torn = queue.write_batch(&mut gone, &batch(&queue, &lines), false);
        assert_eq!((torn, gone.held.as_slice(), dropped(&queue), audits()), (true, &b"one\nt"[..], 5, 1));
        gone.refusals = 0;
        assert!(!queue.write_batch(&mut gone, &batch(&queue, &[("next", false)]), torn));
        assert_eq!((gone.held.as_slice(), dropped(&queue)), (&b"one\nt\nnext\n"[..], 5));
    }

    /// Broken, a change of tokens or settings would leave no trace because access lines came first.
    #[test]
    fn a_line_of_the_audit_waits_for_room_and_no_longer_than_it_may() {
        let queue = Arc::new(LineQueue::default());
        (0..QUEUED_LINES_MAX).for_each(|_| queue.push(b"x\n"));
        let began = Instant::now();
        queue.push_audit(b"lost\n");
        assert!(began.elapsed() >= AUDIT_WAIT && queue.dropped().audit.load(Ordering::Relaxed) == 1);
        let waits = thread::spawn({
            let queue = queue.clone();
            move || queue.push_audit(b"kept\n")
        });
        thread::sleep(Duration::from_millis(20));
        let mut batch = Batch::default();
        queue.take(&mut batch);
        waits.join().unwrap();
        queue.take(&mut batch);
        assert_eq!((batch.bytes.as_slice(), dropped(&queue)), (&b"kept\n"[..], 1));
    }
}
