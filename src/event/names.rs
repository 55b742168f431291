//! `Names`: which members of an object share a name, in five bytes a member, whatever the names are.

use std::hash::{BuildHasher as _, RandomState};

use super::memory::{Memory, Shortage};
use crate::json::{self, StrToken};

/// Longest text whose places fit in a slot, with a bit to spare.
pub(super) const TEXT_BYTES_MAX: usize = (1 << 31) - 2;
/// The member of that place was written.
const WRITTEN: u32 = 1 << 31;

/// A table with open addressing over the names of one object. A slot is 0, or says where the last member of a name
/// has its name, one higher; the bits that this leaves are of the hash of the name, so that most names that
/// differ are not compared. Hashes are keyed, so nobody can choose names that meet.
pub(super) struct Names {
    slots: Vec<u32>,
    /// The name that is looked for, when it was spelled with escapes.
    unescaped: Vec<u8>,
    keys: RandomState,
    place_bits: u32,
}

impl Names {
    pub(super) fn new() -> Names {
        Names { slots: Vec::new(), unescaped: Vec::new(), keys: RandomState::new(), place_bits: 0 }
    }

    /// Empties the table, with room for `members`, whose longest name with escapes has so many bytes, in a text of
    /// `text_bytes`.
    pub(super) fn prepare(
        &mut self,
        members: usize,
        escaped_bytes: usize,
        text_bytes: usize,
        memory: &mut Memory<'_>,
    ) -> Result<(), Shortage> {
        let slots = members + members / 4 + 1;
        if slots > self.slots.capacity() || escaped_bytes > self.unescaped.capacity() {
            let (slots, escaped_bytes) =
                (slots.max(self.slots.capacity()), escaped_bytes.max(self.unescaped.capacity()));
            (self.slots, self.unescaped) = (Vec::new(), Vec::new());
            memory.names(slots * size_of::<u32>() + escaped_bytes)?;
            self.slots.try_reserve_exact(slots).map_err(|_| Shortage::NotNow)?;
            self.unescaped.try_reserve_exact(escaped_bytes).map_err(|_| Shortage::NotNow)?;
        }
        self.slots.clear();
        self.slots.resize(slots, 0);
        self.place_bits = usize::BITS - (text_bytes + 1).leading_zeros();
        Ok(())
    }

    /// Notes a member. True: another one before had the same name.
    pub(super) fn note(&mut self, text: &[u8], key: StrToken) -> bool {
        let (slot, tag) = self.find(text, key);
        let known = self.slots[slot] != 0;
        self.slots[slot] = tag | (key.range().start as u32 + 1);
        known
    }

    /// Where the last member with this name has its name; `None` when it was asked for before.
    pub(super) fn take_last(&mut self, text: &[u8], key: StrToken) -> Option<usize> {
        let (slot, _) = self.find(text, key);
        let found = self.slots[slot];
        self.slots[slot] |= WRITTEN;
        (found & WRITTEN == 0).then(|| self.place(found) as usize - 1)
    }

    fn place(&self, slot: u32) -> u32 {
        slot & ((1 << self.place_bits) - 1)
    }

    /// The slot of this name, or the free one where it belongs, and its part of the hash.
    fn find(&mut self, text: &[u8], key: StrToken) -> (usize, u32) {
        let raw = &text[key.range()];
        let name = if key.is_escaped() {
            self.unescaped.clear();
            json::unescape(raw, &mut self.unescaped);
            &self.unescaped[..]
        } else {
            raw
        };
        let hash = self.keys.hash_one(name);
        let places = (1u32 << self.place_bits) - 1;
        let tag = hash as u32 & !WRITTEN & !places;
        // The upper half, spread over all slots.
        let mut at = (((hash >> 32) * self.slots.len() as u64) >> 32) as usize;
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return (at, tag);
            }
            if slot & !WRITTEN & !places == tag {
                let other = json::key_text(text, (slot & places) as usize - 1);
                if json::unescapes_to(other, name) {
                    return (at, tag);
                }
            }
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
    }
}
