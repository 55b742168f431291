//! `ConnIo`: a connection's bytes, watched on their way to and from hyper.
//!
//! Does what hyper does not: sees each request head as it came in (hyper has resolved doubtful
//! framing before a service can look), gives up on a client that does not read its answer, and
//! knows whether the client has ended its side. And it gives what hyper answers by itself, to what
//! it cannot parse, the text and the request id that every other answer has. Deadlines for heads and idle
//! connections are one number per connection that `Connections` looks at twice a second: no timer per request.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::connections::HeadBudget;
use crate::token::{Digest, LastDigest};

/// How long a client may refuse to take any byte of an answer.
pub(crate) const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// Longest head that is looked at; hyper's own buffer is not larger.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// What may come of a head in more than one piece without being counted, behind the requests before it.
const HEAD_BYTES_FREE: usize = 1 << 10;
/// So long a head leaves room behind in hyper's buffer that is worth counting.
const HEAD_BYTES_SHORT: usize = 8 << 10;
/// So much hyper gets at once. Who reads less than it has room for does not make it double its buffer of 8 KiB, which is
/// worth while beside a large body only, of which as much has come already.
const READ_BYTES_MAX: usize = (8 << 10) - 64;
const LARGE_BODY_BYTES: usize = 16 << 10;
/// And so much of a large body: its buffer becomes 56 KiB, of which the rest stays out of the processor's cache.
const LARGE_READ_BYTES_MAX: usize = (32 << 10) - 64;
/// What hyper's buffer takes beside what it holds of a head.
const HYPER_BUFFER_BYTES: usize = 16 << 10;

/// Time for the first byte of a connection, and for a whole head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How often deadlines are looked at.
pub(crate) const TICK: Duration = Duration::from_millis(500);
/// [`HEAD_TIMEOUT`] in ticks, and one for the tick under way.
pub(crate) const HEAD_TICKS: u64 = HEAD_TIMEOUT.as_millis() as u64 / TICK.as_millis() as u64 + 1;
/// No deadline: a request is being handled, and has deadlines of its own.
const NEVER: u64 = u64::MAX;

/// What the connection and its requests tell each other.
#[derive(Debug)]
pub(crate) struct ConnState {
    id_prefix: u32,
    key: u64,
    clock: Arc<AtomicU64>,
    /// The tick after which the connection has been idle, or at a head, for too long.
    deadline: AtomicU64,
    /// How many ticks there were to the deadline when it was set.
    span_ticks: AtomicU64,
    /// Between two requests.
    keep_alive_ticks: u64,
    expired: AtomicBool,
    /// Ended for the sake of others.
    evicted: AtomicBool,
    /// A byte has come.
    heard: AtomicBool,
    /// The request after the first is not served.
    only_one: AtomicBool,
    /// Bytes of heads that count in the budget.
    head_bytes: AtomicUsize,
    head_refused: AtomicBool,
    heads: Arc<HeadBudget>,
    stop: AtomicBool,
    waker: AtomicWaker,
    /// A request is being handled: its own deadlines hold.
    in_request: AtomicBool,
    /// Number of the first request, from 1, that two readers could understand differently.
    doubtful: AtomicU64,
    /// Requests that have begun.
    begun: AtomicU64,
    /// Number of the last request of whose head something has come and not all.
    head_of: AtomicU64,
    /// Who showed which right token here last, in one number; 0 is nobody.
    token_shown: AtomicU64,
    /// The digest of the secret that was shown here last.
    last_digest: Mutex<LastDigest>,
    /// The body of the current request was read to its end.
    body_done: AtomicBool,
    /// The client has ended its side. It may still want its answer (RFC 9112, section 9.6).
    ended: AtomicBool,
    /// The connection is broken: no answer can reach the client.
    gone: AtomicBool,
    /// Answers of ours that hyper has not begun to write.
    answers_due: AtomicU64,
    /// A request has come through a proxy, which may send anybody's.
    pub(crate) is_shared: AtomicBool,
    /// A refusal left bytes unread.
    linger: AtomicBool,
    /// The last answer through hyper did not say that the connection will be closed.
    goes_on: AtomicBool,
    /// hyper has answered all that came and has nothing to do.
    at_rest: AtomicBool,
}

impl ConnState {
    pub(super) fn new(
        id_prefix: u32,
        key: u64,
        clock: Arc<AtomicU64>,
        heads: Arc<HeadBudget>,
        keep_alive_ticks: u64,
    ) -> ConnState {
        let deadline = AtomicU64::new(clock.load(Ordering::Relaxed) + HEAD_TICKS);
        ConnState {
            id_prefix,
            key,
            clock,
            deadline,
            span_ticks: AtomicU64::new(HEAD_TICKS),
            keep_alive_ticks,
            expired: AtomicBool::new(false),
            evicted: AtomicBool::new(false),
            heard: AtomicBool::new(false),
            only_one: AtomicBool::new(false),
            head_bytes: AtomicUsize::new(0),
            head_refused: AtomicBool::new(false),
            heads,
            stop: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            in_request: AtomicBool::new(false),
            doubtful: AtomicU64::new(NEVER),
            begun: AtomicU64::new(0),
            head_of: AtomicU64::new(0),
            token_shown: AtomicU64::new(0),
            last_digest: Mutex::default(),
            answers_due: AtomicU64::new(0),
            body_done: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            is_shared: AtomicBool::new(false),
            linger: AtomicBool::new(false),
            goes_on: AtomicBool::new(false),
            at_rest: AtomicBool::new(false),
        }
    }

    /// The task of the connection wants to know of [`ConnState::is_expired`] and
    /// [`ConnState::must_stop`].
    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    pub(super) fn key(&self) -> u64 {
        self.key
    }

    pub(super) fn tell_to_stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
    }

    /// How readily it is given up for others, the least first, and for how many ticks nothing has been served
    /// on it. `None`: it holds no place, is at a request, or belongs to somebody with a token who has used it lately.
    pub(super) fn idle(&self) -> Option<(Idle, u64)> {
        let ticks = self.ticks_without_request()?;
        if self.is_expired() || !self.holds_place() {
            return None;
        }
        let kind = match (self.was_used(), self.heard.load(Ordering::Relaxed)) {
            _ if self.has_shown_right_token() => Idle::Known,
            (false, false) => Idle::Silent,
            (false, true) => Idle::AtFirstHead,
            (true, _) => Idle::Unknown,
        };
        (kind != Idle::Known || ticks > HEAD_TICKS).then_some((kind, ticks))
    }

    /// `None`: it is at a request.
    fn ticks_without_request(&self) -> Option<u64> {
        let deadline = self.deadline.load(Ordering::Relaxed);
        let span_ticks = self.span_ticks.load(Ordering::Relaxed);
        (deadline != NEVER).then(|| (self.clock.load(Ordering::Relaxed) + span_ticks).saturating_sub(deadline))
    }

    /// Is it at a head that counts in the budget, for so many ticks?
    pub(super) fn is_at_long_head(&self, ticks: u64) -> bool {
        let long = self.head_bytes.load(Ordering::Relaxed) > 0;
        long && self.ticks_without_request().is_some_and(|since| since >= ticks)
    }

    /// Makes it late now, unless it has got something to do. It is still to be told to [`ConnState::expire`].
    pub(super) fn cut_deadline(&self) {
        let deadline = self.deadline.load(Ordering::Relaxed);
        if deadline != NEVER {
            // Broken by a request that begins at this moment, which is served.
            let _ = self.deadline.compare_exchange(deadline, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Ends it for the sake of others.
    pub(super) fn evict(&self) {
        self.cut_deadline();
        if self.is_late() {
            self.evicted.store(true, Ordering::Relaxed);
            self.expire();
        }
    }

    pub(crate) fn was_evicted(&self) -> bool {
        self.evicted.load(Ordering::Relaxed)
    }

    /// The first byte of a head has come, behind `before` requests.
    fn head_begins_behind(&self, before: u64) {
        self.heard.store(true, Ordering::Relaxed);
        self.head_of.store(before + 1, Ordering::Relaxed);
        self.restart_deadline();
    }

    /// The first byte of a head has come, behind the requests that have begun.
    pub(crate) fn head_begins(&self) {
        self.head_begins_behind(self.begun.load(Ordering::Relaxed));
    }

    /// Does it count against the limit of connections? Those beyond it serve only one request.
    pub(super) fn holds_place(&self) -> bool {
        !self.only_one.load(Ordering::Relaxed)
    }

    /// Only one request is served here.
    pub(crate) fn serve_only_one(&self) {
        self.only_one.store(true, Ordering::Relaxed);
    }

    /// Counts the memory of a head that is not whole, in all, against the budget of all connections.
    pub(crate) fn takes_head_bytes(&self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.head_bytes.load(Ordering::Relaxed));
        let taken = more == 0 || self.heads.take(more);
        if taken {
            // Only the task of the connection changes it.
            self.head_bytes.fetch_add(more, Ordering::Relaxed);
        } else {
            self.head_refused.store(true, Ordering::Relaxed);
        }
        taken
    }

    pub(crate) fn gives_head_bytes_back(&self) {
        self.heads.give_back(self.head_bytes.swap(0, Ordering::Relaxed));
    }

    /// There was no room for its head.
    pub(crate) fn was_head_refused(&self) -> bool {
        self.head_refused.load(Ordering::Relaxed)
    }

    pub(super) fn is_late(&self) -> bool {
        self.deadline.load(Ordering::Relaxed) < self.clock.load(Ordering::Relaxed)
    }

    /// Wakes the connection to end, unless it has got something to do since it was late.
    pub(crate) fn expire(&self) {
        if self.is_late() {
            self.expired.store(true, Ordering::Relaxed);
            self.waker.wake();
        }
    }

    pub(crate) fn is_expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }

    pub(crate) fn must_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn restart_deadline(&self) {
        if self.in_request.load(Ordering::Relaxed) {
            return;
        }
        let begun = self.begun.load(Ordering::Relaxed);
        let between_two = begun > 0 && self.head_of.load(Ordering::Relaxed) <= begun;
        let span_ticks = if between_two { self.keep_alive_ticks } else { HEAD_TICKS };
        self.span_ticks.store(span_ticks, Ordering::Relaxed);
        self.deadline.store(self.clock.load(Ordering::Relaxed) + span_ticks, Ordering::Relaxed);
    }

    fn is_in_request(&self) -> bool {
        self.in_request.load(Ordering::Relaxed)
    }

    fn suspend_deadline(&self) {
        self.deadline.store(NEVER, Ordering::Relaxed);
    }

    /// The request that has just begun, or one before it, had framing that two readers could
    /// understand differently: a length beside a transfer coding or twice (RFC 9112, section 6.3),
    /// or a body that goes on after its length.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.doubtful.load(Ordering::Relaxed) <= self.begun.load(Ordering::Relaxed)
    }

    fn doubt(&self, request: u64) {
        self.doubtful.fetch_min(request, Ordering::Relaxed);
    }

    pub(crate) fn request_begins(&self, has_body: bool) {
        self.body_done.store(!has_body, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.in_request.store(true, Ordering::Relaxed);
        self.suspend_deadline();
    }

    pub(crate) fn body_read(&self) {
        self.body_done.store(true, Ordering::Relaxed);
    }

    /// The answer is ready. True when the connection can carry another request.
    pub(crate) fn answer_begins(&self) -> bool {
        // A long head has left large buffers behind.
        let reusable = self.body_done.load(Ordering::Relaxed)
            && self.head_bytes.load(Ordering::Relaxed) == 0
            && !self.only_one.load(Ordering::Relaxed);
        self.in_request.store(false, Ordering::Relaxed);
        self.linger.store(!self.body_done.load(Ordering::Relaxed), Ordering::Relaxed);
        self.restart_deadline();
        reusable
    }

    /// hyper will write the answer that is ready. `goes_on`: it does not say that the connection will be closed.
    pub(crate) fn answer_is_due(&self, goes_on: bool) {
        self.goes_on.store(goes_on, Ordering::Relaxed);
        self.answers_due.fetch_add(1, Ordering::Relaxed);
    }

    /// hyper has answered all that it has got, to the last byte, and waits for a head. What it keeps for the next
    /// request can go.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.at_rest.load(Ordering::Relaxed)
    }

    /// The client has ended its side.
    pub(crate) fn client_ends(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Reading has failed.
    pub(crate) fn client_is_gone(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.gone.store(true, Ordering::Relaxed);
    }

    /// A refusal left bytes unread, or may have: they are to be read off before closing.
    pub(crate) fn must_linger(&self) -> bool {
        self.linger.load(Ordering::Relaxed)
    }

    /// No answer can reach the client.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// `client` has shown the right `token` here.
    pub(crate) fn shows_right_token(&self, client: u128, token: u64) {
        let shown = mixed(client, token);
        // Nearly always the one before.
        if self.token_shown.load(Ordering::Relaxed) != shown {
            self.token_shown.store(shown, Ordering::Relaxed);
        }
    }

    /// Has anybody shown a right token here?
    pub(crate) fn has_shown_right_token(&self) -> bool {
        self.token_shown.load(Ordering::Relaxed) != 0
    }

    /// Was `token` the last right one that was shown here, and by `client`?
    pub(crate) fn has_shown(&self, client: u128, token: u64) -> bool {
        self.token_shown.load(Ordering::Relaxed) == mixed(client, token)
    }

    /// The digest of a secret that was shown here.
    pub(crate) fn digest_of(&self, secret: &[u8]) -> Digest {
        // Only whole values are put in its place.
        self.last_digest.lock().unwrap_or_else(PoisonError::into_inner).of(secret)
    }

    /// An id for the request that has begun last: process, connection, request. No counter is
    /// shared between connections.
    pub(crate) fn request_id(&self) -> [u8; 26] {
        let mut id = *b"00000000-00000000-00000000";
        write_hex(&mut id[..8], u64::from(self.id_prefix));
        write_hex(&mut id[9..17], self.key);
        write_hex(&mut id[18..], self.begun.load(Ordering::Relaxed));
        id
    }

    /// hyper begins to write an answer: is it one of ours?
    fn takes_due_answer(&self) -> bool {
        self.answers_due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| due.checked_sub(1)).is_ok()
    }

    /// At least one head has arrived.
    pub(crate) fn was_used(&self) -> bool {
        self.begun.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

impl Drop for ConnState {
    fn drop(&mut self) {
        self.gives_head_bytes_back();
    }
}

/// What a connection is that no request is served on, in the order in which they make way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Idle {
    /// No byte has come.
    Silent,
    AtFirstHead,
    /// It has been used, by nobody with a token.
    Unknown,
    /// By somebody with a token, but not for as long as a head may take.
    Known,
}

/// A client and a token as one number that is not 0. `token` is a part of a digest.
fn mixed(client: u128, token: u64) -> u64 {
    let client = (client ^ (client >> 64)) as u64;
    (client.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ token).max(1)
}

/// A stream under watch.
pub(crate) struct ConnIo<S> {
    stream: S,
    state: Arc<ConnState>,
    phase: Phase,
    /// Heads that have come so far, and those of them that came before the watch.
    heads: u64,
    heads_before: u64,
    /// Of the body that comes, so much has come.
    body_bytes: usize,
    /// The time for the head that comes next runs already.
    has_deadline: bool,
    patience: Patience,
    /// What is not yet out of a `100 Continue`.
    interim_left: usize,
    /// What is written instead of hyper's own answer, and how much of it is out.
    instead: Option<(Vec<u8>, usize)>,
    /// hyper has answered by itself what it could not read.
    has_refused: bool,
    /// The head of an answer of ours was offered to the stream and not taken yet.
    head_waits: bool,
    /// So many bytes come from a buffer that is counted already.
    counted_bytes: usize,
    /// A byte that came while a request was served.
    ahead: Option<u8>,
}

/// What the next byte of the client belongs to (RFC 9112, sections 2.1, 6 and 7.1).
#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// A head, of which these bytes have come. `after_length`: directly behind a body of announced
    /// length.
    Head { before: Vec<u8>, after_length: bool },
    /// A body of announced length, of which so much is missing.
    Body { missing: usize },
    /// A line of a chunked body: the size of a chunk, or a trailer field after the last one.
    Line { before: Vec<u8>, trailer: bool },
    /// The content of a chunk, and the line end after it.
    Chunk { missing: usize },
    /// What hyper will refuse; nothing after it matters.
    Broken,
}

impl<S> ConnIo<S> {
    /// Watches from here on, behind the requests that have begun on the connection.
    /// The first `counted_bytes` were read already. `after_length`: the last of those requests had a body of
    /// announced length.
    pub(crate) fn new(stream: S, state: Arc<ConnState>, counted_bytes: usize, after_length: bool) -> Self {
        let heads = state.begun.load(Ordering::Relaxed);
        ConnIo {
            stream,
            phase: Phase::Head { before: Vec::new(), after_length },
            heads,
            heads_before: heads,
            body_bytes: 0,
            // Whoever read before has seen its first byte, or the connection has just begun.
            has_deadline: true,
            state,
            patience: Patience::default(),
            interim_left: 0,
            instead: None,
            has_refused: false,
            head_waits: false,
            counted_bytes,
            ahead: None,
        }
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }

    /// Did a body of announced length end here, and nothing has come since?
    pub(crate) fn is_after_length(&self) -> bool {
        matches!(self.phase, Phase::Head { after_length: true, .. })
    }

    /// All that came is answered. To be asked when hyper has nothing left to write.
    fn is_answered(&self) -> bool {
        let begun = self.state.begun.load(Ordering::Relaxed);
        matches!(self.phase, Phase::Head { .. })
            && self.heads > self.heads_before
            && self.heads == begun
            && self.ahead.is_none()
            && self.instead.is_none()
            && !self.state.is_in_request()
            && !self.state.has_ended()
            && self.state.goes_on.load(Ordering::Relaxed)
            && self.state.answers_due.load(Ordering::Relaxed) == 0
    }

    /// Follows the framing of what the client sends, also of requests that come in one piece.
    fn watch(&mut self, mut new: &[u8]) {
        while !new.is_empty() {
            let used = match &mut self.phase {
                Phase::Broken => return,
                Phase::Head { .. } => self.watch_head(new),
                Phase::Body { missing } | Phase::Chunk { missing } => {
                    let used = new.len().min(*missing);
                    *missing -= used;
                    self.body_bytes = self.body_bytes.saturating_add(used);
                    used
                }
                Phase::Line { .. } => self.watch_line(new),
            };
            new = &new[used..];
            match self.phase {
                Phase::Body { missing: 0 } => self.phase = Phase::Head { before: Vec::new(), after_length: true },
                Phase::Chunk { missing: 0 } => self.phase = Phase::Line { before: Vec::new(), trailer: false },
                _ => {}
            }
        }
    }

    /// Returns how much belongs to the head.
    fn watch_head(&mut self, new: &[u8]) -> usize {
        let Phase::Head { before, after_length } = &mut self.phase else { return 0 };
        let known = before.len();
        // compat: the original's parser refused a message as a whole whose body goes on after its
        // announced length with something that begins no request. A client that counts characters
        // instead of bytes sends it.
        if known == 0 && *after_length && !new[0].is_ascii_uppercase() && !b"\r\n".contains(&new[0]) {
            self.state.doubt(self.heads);
            self.phase = Phase::Broken;
            return new.len();
        }
        // Usually a head comes in one piece and is not copied.
        let judged = if known == 0 {
            judge_head(new)
        } else {
            before.extend_from_slice(new);
            judge_head(before)
        };
        let Some(head) = judged else {
            if known == 0 {
                before.extend_from_slice(new);
                if !std::mem::take(&mut self.has_deadline) {
                    self.state.head_begins_behind(self.heads);
                }
            }
            let (held, counted) = (before.len(), self.counted_bytes > 0);
            let has_room = held <= HEAD_BYTES_FREE
                || counted
                || self.state.takes_head_bytes(HYPER_BUFFER_BYTES + held + before.capacity());
            if held > HEAD_BYTES_MAX || !has_room {
                self.phase = Phase::Broken;
            }
            return new.len();
        };
        if head.len <= HEAD_BYTES_SHORT {
            self.state.gives_head_bytes_back();
        }
        self.state.suspend_deadline();
        self.has_deadline = false;
        self.heads += 1;
        self.body_bytes = 0;
        if head.framing == Framing::Doubtful {
            self.state.doubt(self.heads);
        }
        self.phase = match head.body {
            BodyLength::None => Phase::head(),
            BodyLength::Announced(missing) => Phase::Body { missing },
            BodyLength::Chunked => Phase::Line { before: Vec::new(), trailer: false },
        };
        head.len.saturating_sub(known).min(new.len())
    }

    /// Returns how much belongs to the line.
    fn watch_line(&mut self, new: &[u8]) -> usize {
        let Phase::Line { before, trailer } = &mut self.phase else { return 0 };
        let end = memchr::memchr(b'\n', new);
        before.extend_from_slice(&new[..end.unwrap_or(new.len())]);
        if end.is_none() {
            if before.len() > HEAD_BYTES_MAX {
                self.phase = Phase::Broken;
            }
            return new.len();
        }
        let line = before.strip_suffix(b"\r").unwrap_or(before);
        self.phase = match (*trailer, chunk_size(line)) {
            (true, _) if line.is_empty() => Phase::head(),
            (true, _) | (false, Some(0)) => Phase::Line { before: Vec::new(), trailer: true },
            // The line end after the content counts with it.
            (false, Some(size)) => size.checked_add(2).map_or(Phase::Broken, |missing| Phase::Chunk { missing }),
            (false, None) => Phase::Broken,
        };
        end.map_or(new.len(), |end| end + 1)
    }
}

impl Phase {
    fn head() -> Phase {
        Phase::Head { before: Vec::new(), after_length: false }
    }
}

fn chunk_size(line: &[u8]) -> Option<usize> {
    let digits = line.split(|b| *b == b';').next()?.trim_ascii();
    usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// A whole request head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    len: usize,
    framing: Framing,
    body: BodyLength,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyLength {
    None,
    Announced(usize),
    Chunked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Clear,
    Doubtful,
}

/// Looks at the lines up to the empty one; `None` when that has not come yet. Doubtful is a length
/// beside a transfer coding, and two lengths.
fn judge_head(bytes: &[u8]) -> Option<Head> {
    let mut lengths = 0;
    let mut codings = 0;
    let mut announced = 0;
    let mut requested = false;
    let mut rest = bytes;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        rest = &rest[end + 1..];
        match line.first() {
            // Empty lines before the request line are allowed (RFC 9112, section 2.2).
            None if !requested => {}
            None => {
                let doubtful = lengths > 1 || (lengths > 0 && codings > 0);
                let framing = if doubtful { Framing::Doubtful } else { Framing::Clear };
                let body = match (codings, lengths) {
                    (0, 0) => BodyLength::None,
                    (0, _) => BodyLength::Announced(announced),
                    _ => BodyLength::Chunked,
                };
                return Some(Head { len: bytes.len() - rest.len(), framing, body });
            }
            Some(b'c' | b'C') => {
                if let Some(value) = field_value(line, b"content-length") {
                    lengths += 1;
                    announced = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
                }
            }
            Some(b't' | b'T') => codings += usize::from(field_value(line, b"transfer-encoding").is_some()),
            Some(_) => {}
        }
        requested |= !line.is_empty();
    }
    None
}

fn field_value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (field, value) = line.split_at_checked(name.len())?;
    value.strip_prefix(b":").filter(|_| field.eq_ignore_ascii_case(name))
}

impl<S: AsyncRead + Unpin> AsyncRead for ConnIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let most = if self.body_bytes < LARGE_BODY_BYTES { READ_BYTES_MAX } else { LARGE_READ_BYTES_MAX };
        if buf.remaining() <= most {
            return self.poll_watched(cx, buf);
        }
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
        let polled = self.poll_watched(cx, &mut part);
        let read = part.filled().len();
        buf.advance(read);
        polled
    }
}

impl<S: AsyncRead + Unpin> ConnIo<S> {
    fn poll_watched(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let room = buf.remaining() > 0;
        if room && let Some(byte) = self.ahead.take() {
            buf.put_slice(&[byte]);
        }
        let mut polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Err(_)) = polled {
            self.state.client_is_gone();
        }
        if buf.filled().len() > before {
            // Whatever happened behind the byte happens again.
            polled = Poll::Ready(Ok(()));
        }
        if let Poll::Ready(Ok(())) = polled {
            self.state.at_rest.store(false, Ordering::Relaxed);
            if buf.filled().len() == before && room {
                self.state.client_ends();
            } else {
                self.watch(&buf.filled()[before..]);
                self.counted_bytes = self.counted_bytes.saturating_sub(buf.filled().len() - before);
                if self.state.was_head_refused() {
                    return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
                }
            }
        }
        polled
    }

    /// While a request is served that has come whole, hyper reads nothing, so that a client may end its side and be
    /// answered. Looks whether the connection breaks.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let is_whole = matches!(&self.phase, Phase::Head { before, .. } if before.is_empty());
        if self.ahead.is_some() || !is_whole || self.state.has_ended() || !self.state.is_in_request() {
            return Ok(());
        }
        let mut byte = [0];
        let mut room = ReadBuf::new(&mut byte);
        match Pin::new(&mut self.stream).poll_read(cx, &mut room) {
            Poll::Ready(Ok(())) => {
                self.ahead = room.filled().first().copied();
                if self.ahead.is_none() {
                    self.state.client_ends();
                }
                Ok(())
            }
            Poll::Ready(Err(e)) => {
                self.state.client_is_gone();
                Err(e)
            }
            Poll::Pending => Ok(()),
        }
    }
}

/// With a client that does not read its answer.
#[derive(Debug, Default)]
pub(crate) struct Patience(Option<Pin<Box<Sleep>>>);

impl Patience {
    /// Is something waiting to be written?
    pub(crate) fn is_tried(&self) -> bool {
        self.0.is_some()
    }

    /// Passes a write result on; after 30 s without any progress the write fails.
    pub(crate) fn with<T>(
        &mut self,
        state: &ConnState,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            if self.0.take().is_some() {
                state.restart_deadline();
            }
            return polled;
        }
        state.suspend_deadline();
        let deadline = || Box::pin(tokio::time::sleep_until(Instant::now() + WRITE_STALL_MAX));
        if self.0.get_or_insert_with(deadline).as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> ConnIo<S> {
    fn with_patience<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.state.at_rest.store(false, Ordering::Relaxed);
        self.head_waits &= polled.is_pending();
        self.patience.with(&self.state, cx, polled)
    }
}

impl<S: AsyncWrite + Unpin> ConnIo<S> {
    /// `100 Continue` goes out alone, because hyper puts what it answers next behind it, and an answer
    /// is known by its first bytes. `None`: there is none.
    fn write_interim(&mut self, cx: &mut Context<'_>, first: &[u8]) -> Option<Poll<io::Result<usize>>> {
        if self.interim_left == 0 && self.instead.is_none() && is_interim(first) {
            self.interim_left = memchr::memmem::find(first, b"\r\n\r\n").map_or(first.len(), |at| at + 4);
        }
        if self.interim_left == 0 {
            return None;
        }
        let polled = Pin::new(&mut self.stream).poll_write(cx, &first[..self.interim_left.min(first.len())]);
        if let Poll::Ready(Ok(n)) = polled {
            self.interim_left -= n;
        }
        Some(polled)
    }

    /// If hyper answers by itself, writes our form of that answer, and says that all of hyper's was
    /// taken. `None`: the bytes are ours and go out as they are.
    fn write_instead(&mut self, cx: &mut Context<'_>, first: &[u8], len: usize) -> Option<Poll<io::Result<usize>>> {
        if self.instead.is_none() {
            // Only the head of an answer begins like this: our bodies are JSON, pages and figures.
            let head = first.starts_with(b"HTTP/1.");
            // A head that found no room comes again, and is counted once.
            if !head || self.head_waits || self.state.takes_due_answer() {
                self.head_waits |= head;
                return None;
            }
            self.instead = Some((self.refusal(first), 0));
        }
        let (answer, out) = self.instead.as_mut()?;
        while *out < answer.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &answer[*out..]) {
                Poll::Ready(Ok(0)) => return Some(Poll::Ready(Err(io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(n)) => *out += n,
                Poll::Ready(Err(e)) => return Some(Poll::Ready(Err(e))),
                Poll::Pending => return Some(Poll::Pending),
            }
        }
        self.instead = None;
        Some(Poll::Ready(Ok(len)))
    }
}

impl<S: AsyncWrite + Unpin> ConnIo<S> {
    /// hyper has ended over what it cannot read. Where it has not said so itself, as to the preface of HTTP/2, that is
    /// done here, but not where it could be taken for the answer to a request before it.
    pub(crate) async fn refuse_untold(&mut self) {
        let is_due = self.state.answers_due.load(Ordering::Relaxed) > 0 || self.state.is_in_request();
        let is_behind = self.interim_left > 0 || self.instead.is_some() || self.patience.is_tried();
        if is_due || is_behind || self.has_refused || self.state.is_gone() {
            return;
        }
        let answer = self.refusal(b"HTTP/1.1 400 Bad Request\r");
        // The client may be gone, or take nothing.
        let _ = tokio::time::timeout(WRITE_STALL_MAX, self.stream.write_all(&answer)).await;
    }

    /// Our form of an answer to something that is no request.
    fn refusal(&mut self, head: &[u8]) -> Vec<u8> {
        self.has_refused = true;
        self.state.begun.fetch_add(1, Ordering::Relaxed);
        self.state.linger.store(true, Ordering::Relaxed);
        own_refusal(head, &self.state.request_id())
    }
}

fn is_interim(head: &[u8]) -> bool {
    head.starts_with(b"HTTP/1.") && head.get(8..).is_some_and(|rest| rest.starts_with(b" 100 "))
}

/// compat: the text of the original, with hyper's status.
fn own_refusal(head: &[u8], id: &[u8]) -> Vec<u8> {
    let end = memchr::memchr(b'\r', head).unwrap_or(head.len());
    let mut answer = head[..end].to_vec();
    answer.extend_from_slice(b"\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\nx-request-id: ");
    answer.extend_from_slice(id);
    answer.extend_from_slice(b"\r\ncontent-length: 30\r\n\r\nInvalid HTTP request received.");
    answer
}

fn write_hex(into: &mut [u8], mut number: u64) {
    for digit in into.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ConnIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = match self.write_interim(cx, buf).or_else(|| self.write_instead(cx, buf, buf.len())) {
            Some(polled) => polled,
            None => Pin::new(&mut self.stream).poll_write(cx, buf),
        };
        self.with_patience(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
        let len = bufs.iter().map(|buf| buf.len()).sum();
        let polled = match self.write_interim(cx, first).or_else(|| self.write_instead(cx, first, len)) {
            Some(polled) => polled,
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, bufs),
        };
        self.with_patience(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper comes by here whenever the task of the connection is woken.
        self.poll_broken(cx)?;
        // It does so with what it had to write written.
        self.state.at_rest.store(self.is_answered(), Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::connections::Connections;

    /// Which of the requests in `pieces` is the first doubtful one.
    fn doubtful(pieces: &[&[u8]]) -> Option<u64> {
        let (_, state) = Connections::default().add();
        let mut io = ConnIo::new(tokio::io::empty(), state.clone(), 0, false);
        pieces.iter().for_each(|piece| io.watch(piece));
        Some(state.doubtful.load(Ordering::Relaxed)).filter(|number| *number != NEVER)
    }

    #[test]
    fn heads_that_two_readers_could_understand_differently_are_seen() {
        let both = "POST / HTTP/1.1\r\nTRANSFER-ENCODING: chunked\r\ncontent-length:1\r\n\r\n";
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\n{}\n\r\n0\r\nA: b\r\n\r\n";
        let cases = [
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n".to_owned(), None),
            ("\r\n\n\r\nPOST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), None),
            ("POST / HTTP/1.1\nContent-Length: 1\n\n".to_owned(), None),
            (both.to_owned(), Some(1)),
            (format!("\r\n\r\n\n{both}"), Some(1)),
            (format!("GET / HTTP/1.1\r\n\r\n{both}"), Some(2)),
            (format!("{chunked}{both}"), Some(2)),
            (format!("{chunked}{chunked}{both}"), Some(3)),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n".to_owned(), Some(1)),
            ("POST / HTTP/1.1\r\nContent-Length: 7\r\n\r\n{\"a\":1}{\"smuggled\":1}".to_owned(), Some(1)),
            ("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}POST / HTTP/1.1\r\n".to_owned(), None),
            ("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}\r\n".to_owned(), None),
            ("POST / HTTP/1.1\r\n\r\n{}".to_owned(), None),
            (format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{both}", both.len()), None),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\n".to_owned(), None),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n".to_owned(), None),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n".to_owned(), None),
        ];
        for (text, want) in cases {
            let bytes = text.as_bytes();
            assert_eq!(doubtful(&[bytes]), want, "{text:?}");
            for cut in 1..bytes.len() {
                assert_eq!(doubtful(&[&bytes[..cut], &bytes[cut..]]), want, "{text:?} cut at {cut}");
            }
            let single: Vec<_> = bytes.chunks(1).collect();
            assert_eq!(doubtful(&single), want, "{text:?} byte by byte");
        }
    }

    /// As the server does it, but at once.
    fn pass(connections: &Connections) {
        connections.tick().iter().for_each(|conn| conn.expire());
    }

    /// Broken, who sends a long head slowly would have the time for it twice.
    #[test]
    fn a_head_has_the_time_that_it_had_with_the_reader_before() {
        let connections = Connections::default();
        let (_, state) = connections.add();
        (0..HEAD_TICKS).for_each(|_| pass(&connections));
        assert!(!state.is_expired());
        let mut io = ConnIo::new(tokio::io::empty(), state.clone(), 0, false);
        io.watch(b"POST / HTTP/1.1\r\nX-A: ");
        pass(&connections);
        assert!(state.is_expired());
    }

    #[test]
    fn a_request_that_came_with_the_one_before_has_no_head_deadline() {
        let connections = Connections::default();
        let (_, state) = connections.add();
        let mut io = ConnIo::new(tokio::io::empty(), state.clone(), 0, false);
        io.watch(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\nGET");
        for _ in 0..2 {
            state.request_begins(false);
            (0..3 * HEAD_TICKS).for_each(|_| pass(&connections));
            assert!(!state.is_expired() && !state.is_doubtful());
            state.answer_begins();
        }
        (0..=HEAD_TICKS).for_each(|_| pass(&connections));
        assert!(state.is_expired(), "the third head never came");
    }

    /// Broken, a client that reads slowly would get a refusal in place of its answer.
    #[tokio::test]
    async fn answers_of_ours_go_out_as_they_are_even_if_they_have_to_wait() {
        use tokio::io::AsyncReadExt as _;
        let (mut client, server) = tokio::io::duplex(8);
        let (_, state) = Connections::default().add();
        let mut io = ConnIo::new(server, state.clone(), 0, false);
        let ours = b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\nok";
        let theirs = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
        let write = async {
            for _ in 0..3 {
                state.answer_is_due(true);
                io.write_all(ours).await.unwrap();
            }
            // As hyper does it with a body that is there at once: in one piece.
            state.answer_is_due(true);
            io.write_all(&[&b"HTTP/1.1 100 Continue\r\n\r\n"[..], ours].concat()).await.unwrap();
            io.write_all(&[&b"HTTP/1.1 100 Continue\r\n\r\n"[..], theirs].concat()).await.unwrap();
            drop(io);
        };
        let read = async {
            let mut all = Vec::new();
            while client.read_buf(&mut all).await.unwrap() > 0 {
                tokio::task::yield_now().await;
            }
            String::from_utf8(all).unwrap()
        };
        let ((), all) = tokio::join!(write, read);
        assert_eq!(all.matches("HTTP/1.1 202 Accepted").count(), 4, "{all}");
        assert_eq!(all.matches("x-request-id").count(), 1, "{all}");
        assert!(all.contains("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400 Bad Request\r\n"), "{all}");
        assert!(all.ends_with("Invalid HTTP request received."), "{all}");
    }

    /// Broken, hyper would keep its buffers for ever, or a connection would go on that was to be closed.
    #[tokio::test]
    async fn hyper_is_at_rest_once_all_is_answered_and_the_connection_goes_on() {
        for goes_on in [true, false] {
            let (_, state) = Connections::default().add();
            let mut io = ConnIo::new(tokio::io::join(tokio::io::empty(), tokio::io::sink()), state.clone(), 0, false);
            io.flush().await.unwrap();
            assert!(!state.is_at_rest(), "nothing was served");
            io.watch(b"GET / HTTP/1.1\r\n\r\nGE");
            io.flush().await.unwrap();
            assert!(!state.is_at_rest(), "it has not begun");
            state.request_begins(false);
            io.flush().await.unwrap();
            assert!(!state.is_at_rest(), "it is served");
            state.answer_begins();
            state.answer_is_due(goes_on);
            io.flush().await.unwrap();
            assert!(!state.is_at_rest(), "it is not written");
            io.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
            assert!(!state.is_at_rest(), "there may be more to write");
            io.flush().await.unwrap();
            assert_eq!(state.is_at_rest(), goes_on);
            io.watch(b"T / HTTP/1.1\r\n\r\n");
            io.flush().await.unwrap();
            assert!(!state.is_at_rest(), "the next one has come");
        }
    }

    #[test]
    fn idle_connections_expire_and_busy_ones_do_not() {
        let connections = Connections::default();
        let (_, silent) = connections.add();
        let (_, slow) = connections.add();
        let (gone, _) = connections.add();
        connections.remove(gone);
        let mut slow_io = ConnIo::new(tokio::io::empty(), slow.clone(), 0, false);
        slow_io.watch(b"GET / HTTP/1.1\r\n\r\n");
        slow.request_begins(false);
        slow.answer_begins();
        let (_, busy) = connections.add();
        busy.request_begins(false);
        for tick in 0..=HEAD_TICKS {
            if tick == HEAD_TICKS {
                assert!(!silent.is_expired());
            }
            if tick == 5 {
                slow_io.watch(b"G");
            }
            if tick > 5 {
                slow_io.watch(b"E");
            }
            pass(&connections);
        }
        assert!(silent.is_expired() && !slow.is_expired() && !busy.is_expired());
        (0..5).for_each(|_| pass(&connections));
        assert!(slow.is_expired(), "a byte now and then is no head");
        assert!(!busy.is_expired());
        busy.answer_begins();
        (0..=HEAD_TICKS).for_each(|_| pass(&connections));
        assert!(!busy.is_expired(), "between two requests there is more time");
        (0..150).for_each(|_| pass(&connections));
        assert!(busy.is_expired());
    }

    /// Broken, a request that comes while many others are being ended would get no answer.
    #[test]
    fn a_late_connection_that_has_something_to_do_goes_on() {
        let connections = Connections::default();
        let states = [connections.add().1, connections.add().1];
        (0..HEAD_TICKS).for_each(|_| assert!(connections.tick().is_empty()));
        let late = connections.tick();
        assert_eq!(late.len(), 2);
        states[0].request_begins(false);
        late.iter().for_each(|conn| conn.expire());
        assert!(!states[0].is_expired() && states[1].is_expired());
    }

    /// Broken, a client that asks and never reads keeps its connection, and the answer, for ever; or
    /// one on a slow line is cut off.
    #[test]
    fn a_client_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        use tokio::io::AsyncReadExt as _;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let io = |room| {
            let (near, far) = tokio::io::duplex(room);
            (ConnIo::new(near, Connections::default().add().1, 0, false), far)
        };
        runtime.block_on(async {
            let (mut near, _far) = io(64);
            let started = Instant::now();
            let written = tokio::time::timeout(2 * WRITE_STALL_MAX, near.write_all(&[b'x'; 65])).await;
            assert_eq!(written.expect("it is given up").unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert!((WRITE_STALL_MAX..WRITE_STALL_MAX + TICK).contains(&started.elapsed()), "{:?}", started.elapsed());

            let (mut near, mut far) = io(1);
            let slow = tokio::spawn(async move {
                for _ in 0..5 {
                    tokio::time::sleep(WRITE_STALL_MAX - TICK).await;
                    far.read_u8().await.unwrap();
                }
                far
            });
            near.write_all(&[b'x'; 6]).await.unwrap();
            assert!(started.elapsed() > 4 * WRITE_STALL_MAX);
            slow.await.unwrap();
        });
    }
}
