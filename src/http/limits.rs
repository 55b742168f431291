//! Rate limits: fixed windows per key, in a bounded map.
//!
//! compat: the original counts in fixed windows that start with a key's first request. A token
//! bucket (tower_governor, governor) gives tokens back within the window and so answers 202 where
//! the recording says 429; see docs/adr/0006.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use crate::rate::{LIMITS_MAX, RateLimits};

const SHARDS: usize = 16;
/// Most keys remembered, over all shards. When a shard is full of live keys, those that end first
/// are forgotten: their clients gain at most what is left of one window.
const KEYS_MAX: usize = 100_000;

/// compat: the three header fields of SlowAPI, of which the last is a Unix time. See also `plain::answer`.
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Counts events per key.
pub struct Limiter {
    limits: RateLimits,
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    started: Instant,
    /// Something may be remembered; spares the quiet case every lock.
    in_use: AtomicBool,
}

/// Keys are hashes already, made with a secret seed; the map takes them as they are.
type Shard = HashMap<u64, Windows, BuildHasherDefault<Hashed>>;

/// One window per limit: when it ends (milliseconds after the limiter started) and what it used.
type Windows = [Window; LIMITS_MAX];

///
/// Packed, because a hundred thousand keys have four of them each: 48 bytes instead of 64.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, packed(4))]
struct Window {
    ends_ms: u64,
    used: u32,
}

/// Where a key stands with the limit that is closest to refusing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub limit: u32,
    pub remaining: u32,
    /// Time until the window ends.
    pub reset_ms: u64,
}

impl Limiter {
    /// A limiter for `limits`; with no limits it passes everything and remembers nothing.
    pub fn new(limits: RateLimits) -> Limiter {
        Limiter {
            limits,
            shards: Default::default(),
            hasher: RandomState::new(),
            started: Instant::now(),
            in_use: AtomicBool::new(false),
        }
    }

    /// Counts one event of `key`: `Ok(None)` when there is no limit.
    ///
    /// # Errors
    /// The [`Standing`] when a limit is used up; then nothing is counted.
    pub fn hit(&self, key: impl Hash, now: Instant) -> Result<Option<Standing>, Standing> {
        self.count(key, now, true)
    }

    /// Whether [`Limiter::hit`] would pass, without counting.
    ///
    /// # Errors
    /// As [`Limiter::hit`].
    pub fn peek(&self, key: impl Hash, now: Instant) -> Result<Option<Standing>, Standing> {
        if !self.in_use.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.count(key, now, false)
    }

    fn count(&self, key: impl Hash, now: Instant, take: bool) -> Result<Option<Standing>, Standing> {
        let limits = self.limits.as_slice();
        if limits.is_empty() {
            return Ok(None);
        }
        let now_ms = self.ms(now);
        let hash = self.hasher.hash_one(key);
        let mut shard = self.shards[(hash >> 32) as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner);
        let known = shard.get(&hash).copied();
        let mut windows = known.unwrap_or_default();
        for (window, limit) in windows.iter_mut().zip(limits) {
            if window.ends_ms <= now_ms {
                *window = Window { ends_ms: now_ms + limit.window.as_millis() as u64, used: 0 };
            }
        }
        let standings = windows.iter().zip(limits).map(|(window, limit)| Standing {
            limit: limit.amount,
            remaining: limit.amount - window.used,
            reset_ms: window.ends_ms - now_ms,
        });
        // Of several used-up limits the longest wait is the one that is enough.
        if let Some(refused) = standings.clone().filter(|s| s.remaining == 0).max_by_key(|s| s.reset_ms) {
            return Err(refused);
        }
        let mut tightest = standings.min_by_key(|s| s.remaining).expect("there is a limit");
        tightest.remaining -= u32::from(take);
        if take {
            windows.iter_mut().zip(limits).for_each(|(window, _)| window.used += 1);
            if known.is_none() {
                provide(&mut shard, now_ms);
            }
            shard.insert(hash, windows);
            self.in_use.store(true, Ordering::Relaxed);
        }
        Ok(Some(tightest))
    }

    /// How many keys are remembered.
    pub fn keys(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Forgets keys whose windows have all ended.
    pub fn sweep(&self, now: Instant) {
        let now_ms = self.ms(now);
        for shard in &self.shards {
            shard.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, windows| last_end_ms(windows) > now_ms);
        }
    }

    fn ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_millis() as u64
    }
}

/// Passes one `u64` through.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only u64 keys are used; anything else would still be a hash, if a poor one.
        self.0 = bytes.iter().fold(self.0, |hash, &b| hash.rotate_left(8) ^ u64::from(b));
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

fn last_end_ms(windows: &Windows) -> u64 {
    windows.iter().map(|window| window.ends_ms).max().unwrap_or(0)
}

/// A place for one more key. The first takes room for all that the shard may ever hold: growing
/// would need the old and the new room at once, and what is not used of it costs nothing yet.
fn provide(shard: &mut Shard, now_ms: u64) {
    if shard.capacity() == 0 {
        shard.reserve(KEYS_MAX / SHARDS);
    }
    if shard.len() >= KEYS_MAX / SHARDS {
        make_room(shard, now_ms);
    }
}

/// Drops ended keys; if that is not enough, the eighth of the shard that ends first.
fn make_room(shard: &mut Shard, now_ms: u64) {
    let full = shard.len();
    shard.retain(|_, windows| last_end_ms(windows) > now_ms);
    if shard.len() > full - full / 8 {
        let mut ends: Vec<u64> = shard.values().map(last_end_ms).collect();
        let (_, cut, _) = ends.select_nth_unstable(full / 8);
        let cut = *cut;
        // Many keys may end in the same millisecond: drop just so many.
        let mut surplus = full / 8;
        shard.retain(|_, windows| {
            let drop = surplus > 0 && last_end_ms(windows) <= cut;
            surplus -= usize::from(drop);
            !drop
        });
    }
    // A map counts the places of removed keys as used, and would grow although it holds no more than
    // before. Emptied, all are free.
    let kept: Vec<_> = shard.drain().collect();
    shard.extend(kept);
}

impl Standing {
    /// Whole seconds that are enough to wait, at least 1.
    pub fn retry_after_s(&self) -> u64 {
        self.reset_ms.div_ceil(1000).max(1)
    }

    /// When the window ends, as a Unix time that is not too early.
    pub(crate) fn reset_s(&self, now: SystemTime) -> u64 {
        let now_ms = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        (now_ms + self.reset_ms).div_ceil(1000)
    }

    /// The three header fields.
    pub(crate) fn add_headers(&self, headers: &mut HeaderMap) {
        headers.insert(LIMIT, HeaderValue::from(self.limit));
        headers.insert(REMAINING, HeaderValue::from(self.remaining));
        headers.insert(RESET, HeaderValue::from(self.reset_s(SystemTime::now())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn limiter(text: &str) -> Limiter {
        Limiter::new(RateLimits::parse(text).unwrap())
    }

    #[test]
    fn a_window_passes_its_amount_and_then_says_when_to_come_back() {
        let limiter = limiter("3/minute");
        let now = Instant::now();
        for remaining in [2, 1, 0] {
            assert_eq!(limiter.hit("a", now).unwrap().unwrap().remaining, remaining);
        }
        let refused = limiter.hit("a", now + Duration::from_millis(500)).unwrap_err();
        assert_eq!((refused.limit, refused.remaining, refused.retry_after_s()), (3, 0, 60));
        assert!(limiter.hit("b", now).is_ok(), "another key has its own window");
        assert!(limiter.peek("a", now).is_err() && limiter.peek("b", now).is_ok());
        let later = now + Duration::from_secs(refused.retry_after_s());
        assert!(limiter.hit("a", later).is_ok(), "Retry-After is enough");
    }

    #[test]
    fn of_several_limits_all_must_hold() {
        let limiter = limiter("2/second;3/hour");
        let now = Instant::now();
        assert_eq!(limiter.hit("a", now).unwrap().unwrap().limit, 2);
        assert!(limiter.hit("a", now).is_ok());
        assert_eq!(limiter.hit("a", now).unwrap_err().retry_after_s(), 1);
        let later = now + Duration::from_secs(1);
        let standing = limiter.hit("a", later).unwrap().unwrap();
        assert_eq!((standing.limit, standing.remaining), (3, 0));
        let refused = limiter.hit("a", later).unwrap_err();
        assert_eq!((refused.limit, refused.retry_after_s()), (3, 3599));
    }

    #[test]
    fn the_map_is_bounded_and_swept() {
        let limiter = limiter("1/second");
        let now = Instant::now();
        for key in 0..3 * KEYS_MAX {
            assert!(limiter.hit(key, now).is_ok());
        }
        assert!(limiter.keys() <= KEYS_MAX && limiter.keys() > KEYS_MAX / 2);
        let places: usize = limiter.shards.iter().map(|shard| shard.lock().unwrap().capacity()).sum();
        assert!(places < 2 * KEYS_MAX, "{places} places for {KEYS_MAX} keys: the map grows for ever");
        limiter.sweep(now + Duration::from_secs(2));
        assert_eq!(limiter.keys(), 0);
    }

    /// Broken, a window would end a moment too late for somebody.
    #[test]
    fn a_window_is_over_in_the_very_moment_it_ends() {
        let limiter = limiter("1/second");
        let end = limiter.started + Duration::from_secs(1);
        let before = end - Duration::from_millis(1);
        assert!(limiter.hit("a", limiter.started).is_ok());
        assert!(limiter.hit("a", before).is_err());
        limiter.sweep(before);
        assert_eq!(limiter.keys(), 1);
        limiter.sweep(end);
        assert_eq!(limiter.keys(), 0);
    }

    /// Broken, the room for a hundred thousand clients would be doubled while it is filled.
    #[test]
    fn the_first_key_takes_room_for_all_of_its_shard() {
        let limiter = limiter("1/second");
        assert!(limiter.hit("a", Instant::now()).is_ok());
        let places: usize = limiter.shards.iter().map(|shard| shard.lock().unwrap().capacity()).sum();
        assert!((KEYS_MAX / SHARDS..2 * KEYS_MAX / SHARDS).contains(&places), "{places}");
    }

    fn shard(ends_ms: impl IntoIterator<Item = u64>) -> Shard {
        let windows = |ends_ms| [Window { ends_ms, used: 1 }, Window::default(), Window::default(), Window::default()];
        (0..).zip(ends_ms).map(|(key, ends_ms)| (key, windows(ends_ms))).collect()
    }

    /// Broken, clients that are still limited would be forgotten without need, or the wrong ones.
    #[test]
    fn room_is_made_by_what_has_ended_and_else_by_what_ends_first() {
        for (name, first_ms, len, kept) in [
            ("half has ended", 93, 8, 8..16),
            ("as much has ended as is needed", 99, 14, 2..16),
            ("less has ended", 100, 13, 4..16),
            ("nothing has ended", 101, 14, 3..16),
        ] {
            let mut shard = shard(first_ms..first_ms + 16);
            make_room(&mut shard, 100);
            assert_eq!(shard.len(), len, "{name}");
            assert!(kept.into_iter().all(|key| shard.contains_key(&key)), "{name}");
        }
        let mut same = shard([200; 16]);
        make_room(&mut same, 100);
        assert_eq!(same.len(), 14, "all end together");
    }

    /// Broken, a shard would hold more than its share, or make room before it is full.
    #[test]
    fn room_is_made_only_in_a_full_shard() {
        let full = KEYS_MAX / SHARDS;
        for (held, kept) in [(full - 1, full - 1), (full, full - full / 8), (full + 1, full + 1 - (full + 1) / 8)] {
            let mut shard = shard((200..).take(held));
            provide(&mut shard, 100);
            assert_eq!(shard.len(), kept, "{held}");
        }
    }

    /// Broken, clients that read the headers would come back at the wrong time.
    #[test]
    fn the_headers_say_when_the_window_ends() {
        let now_s = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut headers = HeaderMap::new();
        let before = now_s();
        Standing { limit: 9, remaining: 4, reset_ms: 30_500 }.add_headers(&mut headers);
        let [limit, remaining, reset] =
            [LIMIT, REMAINING, RESET].map(|name| headers[name].to_str().unwrap().parse::<u64>().unwrap());
        assert_eq!((limit, remaining), (9, 4));
        assert!((before + 31..=now_s() + 32).contains(&reset), "{before} {reset}");
    }

    /// Broken, keys of another type would all be one.
    #[test]
    fn any_key_has_a_hash_of_its_own() {
        let hash = |bytes: &[u8]| {
            let mut hasher = Hashed::default();
            hasher.write(bytes);
            hasher.finish()
        };
        let mut hasher = Hashed::default();
        hasher.write_u64(7);
        assert_eq!(hasher.finish(), 7);
        assert_eq!([hash(&[1]), hash(&[1, 2]), hash(&[1, 0, 0, 0, 0, 0, 0, 0, 3])], [1, 0x102, 2]);
    }

    #[test]
    fn off_passes_everything_and_remembers_nothing() {
        let limiter = limiter("off");
        assert_eq!(limiter.hit(1, Instant::now()), Ok(None));
        assert_eq!(limiter.keys(), 0);
    }
}
