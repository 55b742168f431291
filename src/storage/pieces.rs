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
/// Whoever writes so many small groups in a second writes little. Less, and the large pay for rare requests,
/// which would hardly notice: a group of their own that is written at once holds those up once for
/// what it takes the disk.
const OFTEN: u64 = 10;
/// No more groups of a second are counted; half of them still count in the next, so that who goes on is known
/// from its first moment.
const COUNTED_MAX: u64 = 2 * OFTEN;
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

/// Which writers write little, and often?
pub(crate) struct Neighbours {
    started: Instant,
    /// The writer of small groups in each place, and how many, as [`Said`]; 0 for none.
    small: [AtomicU64; PLACES],
    next: AtomicU32,
}

/// One of the writers of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WriterId(u32);

/// What is known of a writer, in one number: 32 bits for a second after the start, 8 for the groups that
/// count in it, and 24 for the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Said(u64);

impl Said {
    fn new(second: u64, groups: u64, writer: WriterId) -> Said {
        Said(second << 32 | groups << 24 | writer.mark())
    }

    fn second(self) -> u64 {
        self.0 >> 32
    }

    fn groups(self) -> u64 {
        self.0 >> 24 & 0xff
    }

    fn is_of(self, writer: WriterId) -> bool {
        self.0 & 0xff_ffff == writer.mark()
    }

    /// One more group in `second`.
    fn and_one(self, second: u64, writer: WriterId) -> Said {
        let before = match second.saturating_sub(self.second()) {
            _ if !self.is_of(writer) => 0,
            0 => self.groups(),
            1 => self.groups() / 2,
            _ => 0,
        };
        Said::new(second, (before + 1).min(COUNTED_MAX), writer)
    }

    fn is_near(self, second: u64) -> bool {
        self.groups() >= OFTEN && second.saturating_sub(self.second()) <= 1
    }
}

impl WriterId {
    /// Two writers that are 16 million apart may be taken for each other.
    fn mark(self) -> u64 {
        u64::from(self.0) & 0xff_ffff
    }
}

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
        let said = Said(place.load(Ordering::Relaxed));
        let says = said.and_one(self.second(now), writer);
        // Written a few times a second, so that writers do not fight for it. One that is overwritten in
        // between is not counted.
        if said != says {
            place.store(says.0, Ordering::Relaxed);
        }
    }

    /// Does anybody but `writer` write little, and often, up to a second or two ago? A writer whose groups are
    /// now small, now large has nobody to make way for but himself.
    pub(crate) fn near(&self, writer: WriterId, now: Instant) -> bool {
        let second = self.second(now);
        let said = self.small.iter().map(|place| Said(place.load(Ordering::Relaxed)));
        said.into_iter().any(|said| !said.is_of(writer) && said.is_near(second))
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

    /// Broken, small requests would wait behind a whole group, or a large writer would sync often for the
    /// sake of who hardly writes.
    #[test]
    fn a_neighbour_writes_often_and_is_near_for_a_second() {
        let neighbours = Neighbours::new();
        let after = |seconds| neighbours.started + Duration::from_secs(seconds);
        let (small, large) = (neighbours.join(), neighbours.join());
        assert!(!neighbours.near(large, after(0)) && !neighbours.near(large, after(100)));
        for wrote in [0, 50] {
            for _ in 0..OFTEN {
                assert!(!neighbours.near(large, after(wrote)));
                neighbours.wrote_little(small, after(wrote));
            }
            assert!(neighbours.near(large, after(wrote)) && neighbours.near(large, after(wrote + 1)));
            assert!(!neighbours.near(large, after(wrote + 2)));
            assert!(!neighbours.near(small, after(wrote)), "it is nobody's neighbour but others'");
        }
        for writer in [large, small].repeat(OFTEN as usize) {
            neighbours.wrote_little(writer, after(100));
        }
        assert!(neighbours.near(large, after(100)) && neighbours.near(small, after(100)));
    }

    /// Broken, the first requests of each second would wait, or rare ones would add up to a neighbour.
    #[test]
    fn who_goes_on_stays_a_neighbour_and_who_writes_rarely_never_is() {
        let neighbours = Neighbours::new();
        let after = |seconds| neighbours.started + Duration::from_secs(seconds);
        let (often, rarely, large) = (neighbours.join(), neighbours.join(), neighbours.join());
        for second in 0..1000 {
            for _ in 0..OFTEN / 2 {
                neighbours.wrote_little(rarely, after(second));
                assert!(!neighbours.near(large, after(second)));
            }
        }
        for second in 2000..2100 {
            for n in 0..500 {
                neighbours.wrote_little(often, after(second));
                assert!(neighbours.near(large, after(second)) || (second == 2000 && n + 1 < OFTEN));
            }
        }
    }

    /// Broken, a writer would be taken for another, or hide it for good.
    #[test]
    fn what_is_said_of_a_writer_is_what_was_meant() {
        for (second, groups, writer) in [(1, 1, 0), (u64::from(u32::MAX), COUNTED_MAX, 0xff_ffff), (7, 3, 0x1_0000)] {
            let said = Said::new(second, groups, WriterId(writer));
            assert_eq!((said.second(), said.groups(), said.is_of(WriterId(writer))), (second, groups, true));
            assert!(!said.is_of(WriterId(writer ^ 1)));
            assert_eq!(said.and_one(second + 1, WriterId(writer ^ 1)).groups(), 1);
        }
    }
}
