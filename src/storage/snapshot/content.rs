//! `Content`: what a file holds, told while it is read once.

use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest, Sha256};

use super::manifest::FileEntry;

/// How much of a file can be hashed without what stands before.
pub(super) const PIECE_BYTES: u64 = 32 << 20;
/// A block of SHA-256.
const BLOCK_BYTES: u64 = 64;
/// Eight words, and how many blocks there were.
const STATE_BYTES: usize = 40;

/// A SHA-256 that can be left and gone on with.
#[derive(Clone)]
pub(super) struct Hash(Sha256);

impl Hash {
    pub(super) fn new() -> Hash {
        Hash(Sha256::new())
    }

    /// Goes on behind a whole number of blocks. `None`: no state, or a later library spells it
    /// otherwise.
    pub(super) fn resume(state: &str) -> Option<Hash> {
        let state = unhex(state).filter(|state| state.len() == STATE_BYTES)?;
        // Behind it would stand what is left of a block.
        let mut serialized = SerializedState::<Sha256>::default();
        serialized[..STATE_BYTES].copy_from_slice(&state);
        Sha256::deserialize(&serialized).ok().map(Hash)
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Where it stands after the last whole block. Holds no byte of an event.
    pub(super) fn state(&self) -> String {
        hex(&self.0.serialize()[..STATE_BYTES])
    }

    pub(super) fn sha256(&self) -> String {
        hex(&self.0.clone().finalize())
    }
}

/// The hash and the lines of the bytes so far.
#[derive(Clone)]
pub(super) struct Content {
    hash: Hash,
    /// Where the hash stood after each piece.
    states: Vec<String>,
    newlines: u64,
    bytes: u64,
    /// The last byte is a newline, or there is none.
    ended: bool,
}

impl Content {
    pub(super) fn new() -> Content {
        Content { hash: Hash::new(), states: Vec::new(), newlines: 0, bytes: 0, ended: true }
    }

    pub(super) fn add(&mut self, mut bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        self.ended = *last == b'\n';
        self.newlines += memchr::memchr_iter(b'\n', bytes).count() as u64;
        while !bytes.is_empty() {
            let to_end = PIECE_BYTES - self.bytes % PIECE_BYTES;
            let (now, later) = bytes.split_at(bytes.len().min(to_end as usize));
            self.hash.add(now);
            self.bytes += now.len() as u64;
            if now.len() as u64 == to_end {
                self.states.push(self.hash.state());
            }
            bytes = later;
        }
    }

    pub(super) fn sha256(&self) -> String {
        self.hash.sha256()
    }

    /// A last line that lacks its newline counts too.
    pub(super) fn lines(&self) -> u64 {
        self.newlines + u64::from(!self.ended)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the hash stands after the last whole block, so that whoever has more bytes need not
    /// read these again.
    pub(super) fn state(&self) -> String {
        self.hash.state()
    }

    /// The same after each piece, so that pieces can be hashed side by side.
    pub(super) fn states(&self) -> &[String] {
        &self.states
    }

    /// Goes on behind what `entry` holds, whose end is `end`, at least a block long unless the whole
    /// is shorter. `None`: the entry does not know how.
    pub(super) fn resume(entry: &FileEntry, end: &[u8]) -> Option<Content> {
        let mut hash = Hash::resume(entry.hash_state.as_deref()?)?;
        hash.add(&end[end.len().checked_sub((entry.bytes % BLOCK_BYTES) as usize)?..]);
        let ended = end.last().is_none_or(|&b| b == b'\n');
        let newlines = entry.lines.checked_sub(u64::from(!ended))?;
        let content = Content { hash, states: entry.piece_states.clone(), newlines, bytes: entry.bytes, ended };
        let fits = content.sha256() == entry.sha256 && content.states.len() as u64 == entry.bytes / PIECE_BYTES;
        fits.then_some(content)
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Could it be from [`Hash::state`]?
pub(super) fn is_state(text: &str) -> bool {
    unhex(text).is_some_and(|state| state.len() == STATE_BYTES)
}

/// 64 lower case hex digits?
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let digit = |n: u8| char::from(DIGITS[usize::from(n)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::super::manifest::Source;
    use super::*;
    use proptest::prelude::*;

    fn entry(content: &Content) -> FileEntry {
        FileEntry {
            name: "a.jsonl".to_owned(),
            domain: None,
            bytes: content.bytes(),
            lines: content.lines(),
            sha256: content.sha256(),
            modified: String::new(),
            source: Source { dev: 1, ino: 1, changed_ns: None },
            torn_tail_bytes: 0,
            poisoned: None,
            hash_state: Some(content.state()),
            piece_states: content.states().to_vec(),
            segments: Vec::new(),
        }
    }

    proptest! {
        /// Broken, an incremental snapshot would name a hash that its bytes do not have.
        #[test]
        fn a_hash_goes_on_where_it_stood(
            first in proptest::collection::vec(any::<u8>(), 0..300),
            second in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut all = Content::new();
            all.add(&first);
            let mut more = Content::resume(&entry(&all), &first).unwrap();
            all.add(&second);
            more.add(&second);
            prop_assert_eq!((all.sha256(), all.lines(), all.bytes()), (more.sha256(), more.lines(), more.bytes()));
            prop_assert_eq!(all.sha256(), sha256(&[first, second].concat()));
        }
    }

    /// Broken, a state that a hand or a later library wrote would be trusted.
    #[test]
    fn a_state_of_other_bytes_is_refused() {
        let mut content = Content::new();
        let text = "{\"id\":1}\n".repeat(9);
        content.add(text.as_bytes());
        let good = entry(&content);
        let resumes = |change: &dyn Fn(&mut FileEntry), end: &[u8]| {
            let mut entry = good.clone();
            change(&mut entry);
            Content::resume(&entry, end).is_some()
        };
        assert!(resumes(&|_| {}, text.as_bytes()) && resumes(&|_| {}, &text.as_bytes()[17..]));
        assert!(!resumes(&|e| e.sha256 = sha256(b"{}\n"), text.as_bytes()), "another hash");
        assert!(!resumes(&|_| {}, text.replace('1', "2").as_bytes()), "another end");
        assert!(!resumes(&|_| {}, b"\n"), "too short an end");
        assert!(!resumes(&|e| e.hash_state = None, text.as_bytes()), "no state");
        assert!(!resumes(&|e| e.piece_states.push(content.state()), text.as_bytes()), "too many pieces");
        let state = content.state();
        for bad in ["", "0", "zz", &state[2..], &format!("{state}00"), &state.replace('a', "b")] {
            assert!(!resumes(&|e| e.hash_state = Some(bad.to_owned()), text.as_bytes()), "{bad}");
        }
    }

    /// Broken, a large file could not be restored, or wrong bytes in its middle would be.
    #[test]
    fn pieces_can_be_hashed_alone() {
        let bytes: Vec<u8> = (0..2 * PIECE_BYTES + 77).map(|n| (n % 251) as u8).collect();
        let mut content = Content::new();
        bytes.chunks(1_000_003).for_each(|chunk| content.add(chunk));
        assert_eq!((content.states().len(), content.sha256()), (2, sha256(&bytes)));
        let pieces: Vec<&[u8]> = bytes.chunks(PIECE_BYTES as usize).collect();
        let after = |state: &str, piece: &[u8]| {
            let mut hash = Hash::resume(state).unwrap();
            hash.add(piece);
            hash
        };
        assert_eq!(after(&content.states()[0], pieces[1]).state(), content.states()[1]);
        assert_eq!(after(&content.states()[1], pieces[2]).sha256(), content.sha256());
        let mut other = pieces[1].to_vec();
        other[1 << 20] ^= 1;
        assert_ne!(after(&content.states()[0], &other).state(), content.states()[1]);
    }

    #[test]
    fn lines_are_counted_by_their_ends() {
        for (bytes, lines) in [("", 0), ("\n", 1), ("{}\n", 1), ("{}\n{}", 2), ("{}\n\n{}\n", 3)] {
            let mut content = Content::new();
            bytes.bytes().for_each(|b| content.add(&[b]));
            assert_eq!(content.lines(), lines, "{bytes:?}");
        }
    }
}
