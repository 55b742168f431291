//! `Connections`: all that are open, how many of each client, who makes way, and what heads may hold.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::conn::{ConnState, HEAD_TICKS, Idle, TICK};

/// Part of the budget for heads from which on slow ones are given up early, and after how many ticks.
const SCARCE_PERCENT: usize = 75;
const LONG_HEAD_TICKS: u64 = 4;
/// For so many ticks a connection is idle before it makes way. Whoever has just come is about to say something.
const IDLE_TICKS_MIN: u64 = 2;
/// A client that sends within the time it was told of begins to count when the answer arrives, and its request has to
/// arrive too: so much more time there is than is told.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// Pause between two looks for connections that may make way; each sees all of them.
pub(super) const MAKE_WAY_EVERY: Duration = Duration::from_millis(20);
/// After so long each connection that nobody uses may make way, and has been looked at since.
pub(super) const MAKE_WAY_WITHIN: Duration = TICK.saturating_mul(IDLE_TICKS_MIN as u32 + 1);

/// All open connections, for deadlines and for the end.
#[derive(Debug)]
pub(crate) struct Connections {
    /// First part of the request ids of this process.
    id_prefix: u32,
    open: Mutex<Open>,
    next_key: AtomicU64,
    clock: Arc<AtomicU64>,
    heads: Arc<HeadBudget>,
    /// Between two requests of a connection.
    keep_alive_ticks: u64,
    last_look: Mutex<Option<Look>>,
}

#[derive(Debug, Default)]
struct Open {
    all: HashMap<u64, (Arc<ConnState>, Option<u128>)>,
    of_client: HashMap<u128, usize>,
}

/// For connections that may make way.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    worth_waiting: bool,
}

impl Connections {
    /// Heads that are not whole may hold `head_bytes_max` together, beside a small part of each. `keep_alive` is what
    /// clients are told of the time between two requests; they have a second more.
    pub(crate) fn new(head_bytes_max: usize, keep_alive: Duration) -> Connections {
        Connections {
            id_prefix: crate::rng::random_u64() as u32,
            open: Mutex::default(),
            next_key: AtomicU64::default(),
            clock: Arc::default(),
            heads: Arc::new(HeadBudget { used: AtomicUsize::new(0), bytes_max: head_bytes_max }),
            // And one for the tick under way.
            keep_alive_ticks: ((keep_alive + ON_ITS_WAY).as_millis() / TICK.as_millis()) as u64 + 1,
            last_look: Mutex::default(),
        }
    }

    /// Adds a connection; it counts until the returned key is removed.
    pub(crate) fn add(&self) -> (u64, Arc<ConnState>) {
        self.add_of(None, 0).expect("nobody counts it")
    }

    /// The same for one of a client that may have `client_max` of them; `None` if it has.
    pub(crate) fn add_of(&self, client: Option<u128>, client_max: usize) -> Option<(u64, Arc<ConnState>)> {
        self.with_open(|open| {
            if let Some(client) = client {
                let count = open.of_client.entry(client).or_default();
                if *count >= client_max {
                    return None;
                }
                *count += 1;
            }
            let key = self.next_key.fetch_add(1, Ordering::Relaxed);
            let state = Arc::new(ConnState::new(
                self.id_prefix,
                key,
                self.clock.clone(),
                self.heads.clone(),
                self.keep_alive_ticks,
            ));
            open.all.insert(key, (state.clone(), client));
            Some((key, state))
        })
    }

    pub(crate) fn remove(&self, key: u64) {
        self.with_open(|open| {
            let Some((_, Some(client))) = open.all.remove(&key) else { return };
            match open.of_client.get_mut(&client) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(open.of_client.remove(&client)),
            }
        });
    }

    /// Lets time pass, and gives the connections that are beyond their deadline: each is to be told to
    /// [`ConnState::expire`]. Call it every [`super::conn::TICK`]. While the budget for heads is nearly used up,
    /// those that are slow with a long one are late early.
    #[must_use]
    pub(crate) fn tick(&self) -> Vec<Arc<ConnState>> {
        self.clock.fetch_add(1, Ordering::Relaxed);
        let scarce = self.heads.is_scarce();
        self.with_open(|open| {
            let late = |conn: &&Arc<ConnState>| {
                if scarce && conn.is_at_long_head(LONG_HEAD_TICKS) {
                    conn.cut_deadline();
                }
                conn.is_late()
            };
            open.all.values().map(|(conn, _)| conn).filter(late).cloned().collect()
        })
    }

    /// Ends so many connections that nobody uses: silent ones first, of these the oldest, and those of somebody with
    /// a token last, and only after as long as a head may take. Looks at all of them, so not again within
    /// [`MAKE_WAY_EVERY`].
    ///
    /// Is it worth waiting for a place, by a look not before `since`? It is when one of those that nobody with a token
    /// uses was ended, is ending, or may be ended within [`MAKE_WAY_WITHIN`]. `None`: there was no such look.
    pub(crate) fn make_way(&self, wanted: usize, since: Instant) -> Option<bool> {
        let mut last_look = self.last_look.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(look) = last_look.filter(|look| now - look.at < MAKE_WAY_EVERY) {
            return (look.at >= since).then_some(look.worth_waiting);
        }
        let worth_waiting = self.end_idle(wanted);
        *last_look = Some(Look { at: now, worth_waiting });
        Some(worth_waiting)
    }

    /// Is, or was, there any that makes way, now or soon?
    fn end_idle(&self, wanted: usize) -> bool {
        let mut worth_waiting = false;
        let mut idle: Vec<_> = self.with_open(|open| {
            let mut idle = |conn: &Arc<ConnState>| {
                worth_waiting |= conn.was_evicted() && conn.holds_place();
                let (kind, ticks) = conn.idle()?;
                worth_waiting |= kind != Idle::Known;
                (ticks >= IDLE_TICKS_MIN).then(|| (kind, conn.key(), conn.clone()))
            };
            open.all.values().filter_map(|(conn, _)| idle(conn)).collect()
        });
        if idle.len() > wanted {
            idle.select_nth_unstable_by_key(wanted, |(kind, key, _)| (*kind, *key));
            idle.truncate(wanted);
        }
        idle.iter().for_each(|(_, _, conn)| conn.evict());
        worth_waiting || !idle.is_empty()
    }

    /// Tells every connection to end after the request it is at.
    pub(crate) fn stop(&self) {
        self.with_open(|open| open.all.values().for_each(|(conn, _)| conn.tell_to_stop()));
    }

    fn with_open<T>(&self, use_it: impl FnOnce(&mut Open) -> T) -> T {
        use_it(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Memory of long heads that are not whole, over all connections: nobody has shown a token for it.
#[derive(Debug)]
pub(crate) struct HeadBudget {
    used: AtomicUsize,
    bytes_max: usize,
}

impl HeadBudget {
    /// Takes all of `bytes` or nothing.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let room = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.bytes_max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok()
    }

    pub(super) fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn is_scarce(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.bytes_max / 100 * SCARCE_PERCENT
    }
}

const _: () = assert!(LONG_HEAD_TICKS < HEAD_TICKS && IDLE_TICKS_MIN < HEAD_TICKS);

/// Between two requests, where nobody says otherwise.
#[cfg(test)]
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(75);

#[cfg(test)]
impl Default for Connections {
    /// Without a limit for heads, and with a known first part of the ids.
    fn default() -> Connections {
        Connections { id_prefix: 0, ..Connections::new(usize::MAX, KEEP_ALIVE_TIMEOUT) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(connections: &Connections, ticks: u64) {
        (0..ticks).for_each(|_| connections.tick().iter().for_each(|conn| conn.expire()));
    }

    /// Broken, one client could take all connections, or would be refused for ever after it had many.
    #[test]
    fn each_client_has_so_many_connections_at_most() {
        let connections = Connections::new(0, KEEP_ALIVE_TIMEOUT);
        let (one, two) = (Some(1), Some(2));
        let mut of_one: Vec<_> = (0..3).map(|_| connections.add_of(one, 3).unwrap().0).collect();
        assert!(connections.add_of(one, 3).is_none());
        assert!(connections.add_of(two, 3).is_some() && connections.add_of(None, 0).is_some());
        connections.remove(of_one.pop().unwrap());
        of_one.push(connections.add_of(one, 3).unwrap().0);
        assert!(connections.add_of(one, 3).is_none());
        of_one.into_iter().for_each(|key| connections.remove(key));
        assert_eq!(connections.open.lock().unwrap().of_client.len(), 1, "who has none is not remembered");
    }

    /// Broken, a proxy's connections would be closed while its requests are under way to them, or a client could take
    /// as long for a head as between two requests.
    #[test]
    fn between_two_requests_there_is_more_time_than_for_a_head() {
        let connections = Connections::new(0, Duration::from_secs(60));
        let (kept, at_head, fresh) = (connections.add().1, connections.add().1, connections.add().1);
        for conn in [&kept, &at_head] {
            conn.request_begins(false);
        }
        // A part of the next head comes before the answer.
        at_head.head_begins();
        for conn in [&kept, &at_head] {
            conn.answer_begins();
        }
        pass(&connections, HEAD_TICKS);
        assert!(!at_head.is_expired() && !fresh.is_expired());
        pass(&connections, 1);
        assert!(at_head.is_expired() && fresh.is_expired());
        pass(&connections, 120 - HEAD_TICKS);
        assert!(!kept.is_expired(), "a minute");
        pass(&connections, 2);
        assert!(!kept.is_expired(), "what was sent in time has arrived");
        pass(&connections, 1);
        assert!(kept.is_expired());
        let later = connections.add().1;
        later.request_begins(false);
        later.answer_begins();
        pass(&connections, 100);
        later.head_begins();
        pass(&connections, HEAD_TICKS + 1);
        assert!(later.is_expired(), "its head has its own time");
    }

    /// Broken, silent connections would keep everybody else out; or a request that is served, or a
    /// connection of somebody with a token, would be cut for a stranger.
    #[test]
    fn silent_connections_make_way_first_and_those_in_use_never() {
        let connections = Connections::new(0, KEEP_ALIVE_TIMEOUT);
        let add = || connections.add().1;
        let (busy, known, used, begun) = (add(), add(), add(), add());
        busy.request_begins(false);
        for conn in [&known, &used] {
            conn.request_begins(false);
            conn.answer_begins();
        }
        known.shows_right_token(1, 1);
        begun.head_begins();
        let silent: Vec<_> = (0..3).map(|_| add()).collect();
        pass(&connections, IDLE_TICKS_MIN);
        let new = add();
        let evicted = |conns: &[&Arc<ConnState>]| conns.iter().map(|conn| conn.was_evicted()).collect::<Vec<_>>();
        connections.end_idle(2);
        assert_eq!(evicted(&[&silent[0], &silent[1], &silent[2], &begun, &used]), [true, true, false, false, false]);
        connections.end_idle(2);
        assert_eq!(evicted(&[&silent[2], &begun, &used]), [true, true, false]);
        connections.end_idle(9);
        assert_eq!(evicted(&[&used, &new, &busy, &known]), [true, false, false, false]);
        assert!(silent.iter().all(|conn| conn.is_expired()) && !new.is_expired() && !busy.is_expired());
        pass(&connections, IDLE_TICKS_MIN);
        connections.end_idle(9);
        assert_eq!(evicted(&[&new, &busy, &known]), [true, false, false]);
        pass(&connections, HEAD_TICKS);
        connections.end_idle(9);
        assert_eq!(evicted(&[&busy, &known]), [false, true], "not used for so long, it makes way as well");
    }

    /// Broken, who has something to say would be refused while somebody silent keeps a place, or would wait for
    /// nothing; or each of many would have all connections looked at.
    #[test]
    fn waiting_is_worth_while_as_long_as_somebody_may_make_way() {
        let connections = Connections::new(0, KEEP_ALIVE_TIMEOUT);
        let add = || connections.add().1;
        let (busy, known, beyond) = (add(), add(), add());
        for conn in [&busy, &known] {
            conn.request_begins(false);
        }
        known.answer_begins();
        known.shows_right_token(1, 1);
        beyond.serve_only_one();
        pass(&connections, IDLE_TICKS_MIN);
        assert!(!connections.end_idle(1) && !beyond.was_evicted(), "the end of who has no place makes none");
        let began = Instant::now();
        assert_eq!(connections.make_way(1, began), Some(false));
        let silent = add();
        assert_eq!(connections.make_way(1, Instant::now()), None, "a look before it came says nothing");
        assert_eq!(connections.make_way(1, began), Some(false), "one look is enough for all who came before it");
        std::thread::sleep(MAKE_WAY_EVERY);
        assert_eq!(connections.make_way(1, began), Some(true));
        assert!(!silent.was_evicted(), "it has just come");
        pass(&connections, IDLE_TICKS_MIN);
        assert!(connections.end_idle(1) && silent.was_evicted());
        assert!(connections.end_idle(1), "it is ending");
    }

    /// Broken, long heads would take memory without end, or keep it for the ten seconds of a head while
    /// others wait.
    #[test]
    fn long_heads_share_a_budget_and_slow_ones_go_early_when_it_is_scarce() {
        let connections = Connections::new(1000, KEEP_ALIVE_TIMEOUT);
        let conns: Vec<_> = (0..3).map(|_| connections.add()).collect();
        let [first, second, third] = [0, 1, 2].map(|n| &conns[n].1);
        assert!(first.takes_head_bytes(400) && first.takes_head_bytes(300) && second.takes_head_bytes(300));
        pass(&connections, LONG_HEAD_TICKS + 1);
        assert!(!first.is_expired(), "there is enough for others");
        assert!(!third.takes_head_bytes(301) && third.was_head_refused());
        third.request_begins(true);
        assert!(second.takes_head_bytes(600));
        pass(&connections, 1);
        assert!(first.is_expired() && second.is_expired() && !third.is_expired());
        drop(conns.into_iter().map(|(key, _)| connections.remove(key)).collect::<Vec<_>>());
        assert_eq!(connections.heads.used.load(Ordering::Relaxed), 0, "all is given back");
        assert!(connections.heads.take(1000) && !connections.heads.take(1));
    }
}
