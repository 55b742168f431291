//! `Content`: what a file holds, told while it is read once.

use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest, Sha256};

/// A block of SHA-256.
const BLOCK_BYTES: u64 = 64;
/// Eight words, and how many blocks there were.
const STATE_BYTES: usize = 40;

/// The hash and the lines of the bytes so far.
#[derive(Clone)]
pub(super) struct Content {
    sha: Sha256,
    newlines: u64,
    bytes: u64,
    /// The last byte is a newline, or there is none.
    ended: bool,
}

impl Content {
    pub(super) fn new() -> Content {
        Content { sha: Sha256::new(), newlines: 0, bytes: 0, ended: true }
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        self.sha.update(bytes);
        self.newlines += memchr::memchr_iter(b'\n', bytes).count() as u64;
        self.bytes += bytes.len() as u64;
        self.ended = *last == b'\n';
    }

    pub(super) fn sha256(&self) -> String {
        hex(&self.sha.clone().finalize())
    }

    /// A last line that lacks its newline counts too.
    pub(super) fn lines(&self) -> u64 {
        self.newlines + u64::from(!self.ended)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the hash stands after the last whole block, so that whoever has more bytes need not
    /// read these again. Holds no byte of an event.
    pub(super) fn state(&self) -> String {
        hex(&self.sha.serialize()[..STATE_BYTES])
    }

    /// Goes on where [`Content::state`] was taken of `bytes` bytes with this hash and so many lines,
    /// whose end is `end`, at least a block long unless they are fewer. `None`: it is not the state
    /// of these bytes, or a later library spells it otherwise.
    pub(super) fn resume(state: &str, sha256: &str, lines: u64, bytes: u64, end: &[u8]) -> Option<Content> {
        let state = unhex(state).filter(|state| state.len() == STATE_BYTES)?;
        // Behind it stands what is left of the last block; that is added anew.
        let mut serialized = SerializedState::<Sha256>::default();
        serialized[..STATE_BYTES].copy_from_slice(&state);
        let mut sha = Sha256::deserialize(&serialized).ok()?;
        sha.update(&end[end.len().checked_sub((bytes % BLOCK_BYTES) as usize)?..]);
        let ended = end.last().is_none_or(|&b| b == b'\n');
        let newlines = lines.checked_sub(u64::from(!ended))?;
        let content = Content { sha, newlines, bytes, ended };
        (content.sha256() == sha256).then_some(content)
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
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
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Broken, an incremental snapshot would name a hash that its bytes do not have.
        #[test]
        fn a_hash_goes_on_where_it_stood(
            first in proptest::collection::vec(any::<u8>(), 0..300),
            second in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut all = Content::new();
            all.add(&first);
            let mut more = Content::resume(&all.state(), &all.sha256(), all.lines(), all.bytes(), &first).unwrap();
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
        let (state, sha, bytes) = (content.state(), content.sha256(), text.len() as u64);
        let resume = |state: &str, sha: &str, end: &[u8]| Content::resume(state, sha, 9, bytes, end).is_some();
        assert!(resume(&state, &sha, text.as_bytes()) && resume(&state, &sha, &text.as_bytes()[17..]));
        assert!(!resume(&state, &sha256(b"{}\n"), text.as_bytes()), "another hash");
        assert!(!resume(&state, &sha, text.replace('1', "2").as_bytes()), "another end");
        assert!(!resume(&state, &sha, b"\n"), "too short an end");
        for bad in ["", "0", "zz", &state[2..], &format!("{state}00"), &state.replace('a', "b")] {
            assert!(!resume(bad, &sha, text.as_bytes()), "{bad}");
        }
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
