//! A few random bits, for jitter and ids. Not for secrets.

use std::hash::{BuildHasher, RandomState};

/// 64 bits that differ between processes and calls. Seeded by the operating system through
/// [`RandomState`], whose keys are random.
pub(crate) fn random_u64() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// A small generator (SplitMix64, Steele et al. 2014) for jitter.
#[derive(Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn new() -> Self {
        Jitter(random_u64())
    }

    /// A number in `range`, which must not be empty. The modulo bias is of no account here.
    pub(crate) fn pick(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        range.start + (z ^ (z >> 31)) % (range.end - range.start)
    }
}
