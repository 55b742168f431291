//! `Pieces`: a large group goes to the disk a little at a time while others want it too.
//!
//! A sync waits for what is before it in the device. Behind four mebibytes of another domain that is
//! many times what it takes alone, and the other file's journal comes with it. So when somebody has
//! written little lately, a large group is written and synced in pieces, and small syncs come in
//! between. It is acknowledged after its last piece. See docs/adr/0013.

use std::io::IoSlice;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Most bytes of a piece: what a good disk writes in the time of a sync or two.
pub(crate) const PIECE_BYTES: usize = 128 << 10;
/// After a sync that took longer the next piece is twice as large: where syncs are slow, few of them
/// are better.
const SLOW_SYNC: Duration = Duration::from_millis(2);
/// How long a small group counts as "lately": so many full seconds, and the one that has begun. Longer, and
/// the large pay for rare requests, which would hardly notice.
const NEIGHBOUR_S: u64 = 1;
/// Places for writers that wrote little; two that share one may hide each other for a while.
const PLACES: usize = 16;

/// Whole lines, in pieces of whole lines.
pub(crate) struct Pieces<'a> {
    lines: &'a [&'a [u8]],
    /// Of the first, what earlier pieces took.
    taken: usize,
    bytes_max: usize,
}

impl<'a> Pieces<'a> {
    /// Each of `lines` is one line or several. A piece has at most `bytes_max` bytes, unless one
    /// line has more.
    pub(crate) fn new(lines: &'a [&'a [u8]], bytes_max: usize) -> Self {
        Pieces { lines, taken: 0, bytes_max }
    }

    /// Tells how long the sync of the last piece took.
    pub(crate) fn synced(&mut self, sync: Duration) {
        if sync > SLOW_SYNC {
            self.bytes_max = self.bytes_max.saturating_mul(2);
        }
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Vec<IoSlice<'a>>;

    fn next(&mut self) -> Option<Vec<IoSlice<'a>>> {
        let mut piece = Vec::with_capacity(self.lines.len());
        let mut room = self.bytes_max;
        while let Some((first, others)) = self.lines.split_first() {
            let rest = &first[self.taken..];
            if rest.len() <= room {
                piece.push(IoSlice::new(rest));
                room -= rest.len();
                (self.lines, self.taken) = (others, 0);
                continue;
            }
            let fits = match rest[..room].iter().rposition(|&byte| byte == b'\n') {
                Some(newline) => newline + 1,
                None if piece.is_empty() => rest.iter().position(|&byte| byte == b'\n').map_or(rest.len(), |at| at + 1),
                None => break,
            };
            piece.push(IoSlice::new(&rest[..fits]));
            self.taken += fits;
            if self.taken == first.len() {
                (self.lines, self.taken) = (others, 0);
            }
            break;
        }
        (!piece.is_empty()).then_some(piece)
    }
}

/// Which writers have written little lately?
pub(crate) struct Neighbours {
    started: Instant,
    /// The last small group in each place: seconds after `started`, plus one, in the upper half, and its
    /// writer in the lower; 0 for none.
    small: [AtomicU64; PLACES],
    next: AtomicU32,
}

/// One of the writers of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WriterId(u32);

impl Neighbours {
    pub(crate) fn new() -> Self {
        Neighbours { started: Instant::now(), small: Default::default(), next: AtomicU32::new(0) }
    }

    /// For one more writer.
    pub(crate) fn join(&self) -> WriterId {
        WriterId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn wrote_little(&self, writer: WriterId, now: Instant) {
        let place = &self.small[writer.0 as usize % PLACES];
        let said = self.second(now) << 32 | u64::from(writer.0);
        // Written once a second, so that writers do not fight for it.
        if place.load(Ordering::Relaxed) != said {
            place.store(said, Ordering::Relaxed);
        }
    }

    /// Has anybody but `writer` written little lately? A writer whose groups are now small, now large has
    /// nobody to make way for but himself.
    pub(crate) fn near(&self, writer: WriterId, now: Instant) -> bool {
        let second = self.second(now);
        self.small
            .iter()
            .map(|place| place.load(Ordering::Relaxed))
            .any(|said| said != 0 && said as u32 != writer.0 && second.saturating_sub(said >> 32) <= NEIGHBOUR_S)
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs() + 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Broken, a piece would end within a line, or bytes of a batch would be lost or doubled.
        #[test]
        fn pieces_are_whole_lines_and_all_of_them(
            batches in prop::collection::vec(prop::collection::vec(0_usize..40, 1..6), 0..8),
            bytes_max in 1_usize..100,
            slow in prop::collection::vec(any::<bool>(), 48),
        ) {
            let mut fill = (b'a'..=b'z').cycle();
            let texts: Vec<Vec<u8>> = batches.iter().map(|lines| {
                lines.iter().flat_map(|&len| fill.by_ref().take(len).chain([b'\n']).collect::<Vec<u8>>()).collect()
            }).collect();
            let lines: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
            let (mut pieces, mut all, mut max) = (Pieces::new(&lines, bytes_max), Vec::new(), bytes_max);
            for slow in slow {
                let Some(piece) = pieces.next() else { break };
                let piece: Vec<u8> = piece.iter().flat_map(|slice| slice.iter().copied()).collect();
                prop_assert!(piece.ends_with(b"\n"));
                let newlines = piece.iter().filter(|&&byte| byte == b'\n').count();
                prop_assert!(piece.len() <= max || newlines == 1, "{} bytes in {newlines} lines", piece.len());
                // No smaller than it must be: the next line would not have fitted.
                all.extend_from_slice(&piece);
                let rest = &texts.concat()[all.len()..];
                let next = rest.iter().position(|&byte| byte == b'\n').map_or(0, |at| at + 1);
                prop_assert!(next == 0 || piece.len() + next > max);
                if slow {
                    pieces.synced(SLOW_SYNC + Duration::from_nanos(1));
                    max *= 2;
                } else {
                    pieces.synced(SLOW_SYNC);
                }
            }
            prop_assert!(pieces.next().is_none());
            prop_assert_eq!(all, texts.concat());
        }
    }

    /// Broken, small requests would wait behind a whole group, or a lone large writer would sync often.
    #[test]
    fn a_neighbour_is_near_for_a_second() {
        let neighbours = Neighbours::new();
        let after = |seconds| neighbours.started + Duration::from_secs(seconds);
        let (small, large) = (neighbours.join(), neighbours.join());
        assert!(!neighbours.near(large, after(0)) && !neighbours.near(large, after(100)));
        for wrote in [0, 50] {
            neighbours.wrote_little(small, after(wrote));
            assert!(neighbours.near(large, after(wrote)) && neighbours.near(large, after(wrote + 1)));
            assert!(!neighbours.near(large, after(wrote + 2)));
            assert!(!neighbours.near(small, after(wrote)), "it is nobody's neighbour but others'");
        }
        neighbours.wrote_little(large, after(100));
        neighbours.wrote_little(small, after(100));
        assert!(neighbours.near(large, after(100)) && neighbours.near(small, after(100)));
    }
}
