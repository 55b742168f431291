//! One pass over JSON text: check it strictly and copy it without insignificant white space.
//!
//! No tree is built and nothing is re-spelled: numbers, escapes and key order stay as sent. The
//! scanner distinguishes two kinds of badness, because the original does:
//!
//! * text that no JSON parser takes ([`Malformed`]), found before anything else is looked at;
//! * text that Python's `json` takes but RFC 8259 readers do not (NaN, Infinity, `1e400`, lone
//!   surrogates): [`Scanner::lenient`] becomes true, so the caller can still report what the
//!   original reported first (compat: a domain mismatch beside a NaN is a domain mismatch).

use std::ops::Range;

/// Deepest nesting below the outermost value of an event.
///
/// compat: Python's recursion limit made the original fail with 500 from 977 levels on.
pub const NESTING_MAX: usize = 976;

/// The text is not JSON in any reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A string token: where its content lies in the source, without the quotes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StrToken {
    start: usize,
    /// Twice the end, and 1 if there are escapes. A `bool` of its own makes the compiler copy tokens
    /// in odd pieces, which costs a fifth of the whole pass.
    end_escaped: usize,
}

impl StrToken {
    #[inline(always)]
    fn new(range: Range<usize>, escaped: bool) -> StrToken {
        StrToken { start: range.start, end_escaped: range.end << 1 | usize::from(escaped) }
    }

    /// Where the content lies.
    #[inline(always)]
    pub(crate) fn range(self) -> Range<usize> {
        self.start..self.end_escaped >> 1
    }

    /// The content holds escapes, so the raw bytes are not its value.
    #[inline(always)]
    pub(crate) fn is_escaped(self) -> bool {
        self.end_escaped & 1 == 1
    }

    /// Where the closing quote ends.
    #[inline(always)]
    fn after(self) -> usize {
        (self.end_escaped >> 1) + 1
    }
}

/// Reads `src` once from the front and copies what it has passed to `out`.
///
/// Bytes are copied in runs: everything between two stretches of white space at once.
pub(crate) struct Scanner<'a> {
    src: &'a [u8],
    pos: usize,
    /// Up to here `src` is already in `out` (or was left out on purpose).
    copied: usize,
    out: &'a mut Vec<u8>,
    lenient: bool,
}

impl<'a> Scanner<'a> {
    /// Starts at the front of `src`; copies go to the end of `out`.
    pub(crate) fn new(src: &'a str, out: &'a mut Vec<u8>) -> Self {
        Scanner { src: src.as_bytes(), pos: 0, copied: 0, out, lenient: false }
    }

    /// Something was passed that Python reads and RFC 8259 does not allow.
    pub(crate) fn lenient(&self) -> bool {
        self.lenient
    }

    /// The next byte, if any.
    #[inline]
    pub(crate) fn peek(&self) -> Option<u8> {
        self.src.get(self.pos).copied()
    }

    /// Passes white space, leaving it out of the copy.
    #[inline]
    pub(crate) fn space(&mut self) {
        self.pos = self.space_at(self.pos);
    }

    /// [`Scanner::space`] from `pos` on; where it ends.
    #[inline(always)]
    fn space_at(&mut self, pos: usize) -> usize {
        match self.src.get(pos) {
            Some(0..=b' ') => self.leave_out_space(pos),
            _ => pos,
        }
    }

    fn leave_out_space(&mut self, start: usize) -> usize {
        let src = self.src;
        let mut pos = start;
        while matches!(src.get(pos), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            pos += 1;
        }
        if pos > start {
            copy_run(src, self.copied..start, self.out);
            self.copied = pos;
        }
        pos
    }

    /// Copies everything passed so far.
    #[inline]
    pub(crate) fn flush(&mut self) {
        copy_run(self.src, self.copied..self.pos, self.out);
        self.copied = self.pos;
    }

    /// Leaves out everything passed since the last copy.
    pub(crate) fn discard(&mut self) {
        self.copied = self.pos;
    }

    /// The output, with everything passed so far in it.
    pub(crate) fn flushed(&mut self) -> &mut Vec<u8> {
        self.flush();
        self.out
    }

    /// Where the next byte passed will stand in the output.
    #[inline]
    pub(crate) fn out_pos(&self) -> usize {
        self.out.len() + (self.pos - self.copied)
    }

    /// Passes `byte` or fails.
    #[inline]
    pub(crate) fn expect(&mut self, byte: u8) -> Result<(), Malformed> {
        if self.peek() == Some(byte) {
            self.pos += 1;
            return Ok(());
        }
        Err(Malformed)
    }

    /// Where the scanner is, to come back to.
    pub(crate) fn mark(&self) -> Mark {
        Mark { pos: self.pos, copied: self.copied, out_len: self.out.len() }
    }

    /// Goes back to `mark`, as if nothing after it had been passed.
    pub(crate) fn rewind(&mut self, mark: Mark) {
        self.pos = mark.pos;
        self.copied = mark.copied;
        self.out.truncate(mark.out_len);
    }

    /// Passes an object whose `{` is next, and tells `member` each key and, where it is a string,
    /// each value. Gives up (false) at a key with escapes, or when `member` says so.
    #[inline(always)]
    pub(crate) fn plain_object(
        &mut self,
        mut member: impl FnMut(StrToken, Option<StrToken>) -> bool,
    ) -> Result<bool, Malformed> {
        let mut pos = self.space_at(self.pos + 1);
        if self.src.get(pos) == Some(&b'}') {
            self.pos = pos + 1;
            return Ok(true);
        }
        loop {
            let key = self.string_at(pos)?;
            pos = self.colon_at(key.after())?;
            let value = if self.src.get(pos) == Some(&b'"') {
                let token = self.string_at(pos)?;
                pos = token.after();
                Some(token)
            } else {
                pos = self.value_at(pos, 1)?;
                None
            };
            if key.is_escaped() || !member(key, value) {
                return Ok(false);
            }
            pos = self.space_at(pos);
            match self.src.get(pos) {
                Some(b',') => pos = self.space_at(pos + 1),
                Some(b'}') => {
                    self.pos = pos + 1;
                    return Ok(true);
                }
                _ => return Err(Malformed),
            }
        }
    }

    /// Passes one whole value of any kind. White space before it must have been passed.
    ///
    /// `outer` is how many containers of the same event are open around it.
    pub(crate) fn value(&mut self, outer: usize) -> Result<(), Malformed> {
        self.pos =
            if self.peek() == Some(b'"') { self.string_at(self.pos)?.after() } else { self.value_at(self.pos, outer)? };
        Ok(())
    }

    /// A value that is no string.
    #[inline(always)]
    fn value_at(&mut self, pos: usize, outer: usize) -> Result<usize, Malformed> {
        match self.src.get(pos) {
            Some(b'{' | b'[') => self.container_at(pos, outer),
            _ => self.scalar_at(pos),
        }
    }

    /// An object or array with all that is in it.
    fn container_at(&mut self, mut pos: usize, outer: usize) -> Result<usize, Malformed> {
        let open_max = NESTING_MAX + 1 - outer;
        let mut open = OpenContainers::default();
        loop {
            match self.src.get(pos) {
                Some(b'"') => pos = self.string_at(pos)?.after(),
                Some(b'{') => {
                    open.push(true, open_max)?;
                    pos = self.space_at(pos + 1);
                    if self.src.get(pos) != Some(&b'}') {
                        pos = self.key_at(pos)?;
                        continue;
                    }
                    pos += 1;
                    open.pop();
                }
                Some(b'[') => {
                    open.push(false, open_max)?;
                    pos = self.space_at(pos + 1);
                    if self.src.get(pos) != Some(&b']') {
                        continue;
                    }
                    pos += 1;
                    open.pop();
                }
                _ => pos = self.scalar_at(pos)?,
            }
            // After a value: closing brackets, and one comma.
            loop {
                let Some(in_object) = open.innermost() else { return Ok(pos) };
                pos = self.space_at(pos);
                match self.src.get(pos) {
                    Some(b',') => {
                        pos = self.space_at(pos + 1);
                        if in_object {
                            pos = self.key_at(pos)?;
                        }
                        break;
                    }
                    Some(b'}') if in_object => pos += 1,
                    Some(b']') if !in_object => pos += 1,
                    _ => return Err(Malformed),
                }
                open.pop();
            }
        }
    }

    /// A key, the colon and the white space around it.
    #[inline(always)]
    fn key_at(&mut self, pos: usize) -> Result<usize, Malformed> {
        let key = self.string_at(pos)?;
        self.colon_at(key.after())
    }

    /// A colon and the white space around it.
    #[inline(always)]
    fn colon_at(&mut self, pos: usize) -> Result<usize, Malformed> {
        let pos = self.space_at(pos);
        if self.src.get(pos) != Some(&b':') {
            return Err(Malformed);
        }
        Ok(self.space_at(pos + 1))
    }

    /// Passes a string token.
    #[inline]
    pub(crate) fn string(&mut self) -> Result<StrToken, Malformed> {
        let token = self.string_at(self.pos)?;
        self.pos = token.after();
        Ok(token)
    }

    #[inline(always)]
    fn string_at(&mut self, pos: usize) -> Result<StrToken, Malformed> {
        if self.src.get(pos) != Some(&b'"') {
            return Err(Malformed);
        }
        let start = pos + 1;
        let end = next_special(self.src, start);
        if self.src.get(end) == Some(&b'"') {
            return Ok(StrToken::new(start..end, false));
        }
        self.escaped_string(start, end)
    }

    /// A string that goes on at `pos` with an escape, or with something that it may not hold.
    fn escaped_string(&mut self, start: usize, pos: usize) -> Result<StrToken, Malformed> {
        self.pos = pos;
        loop {
            match self.peek() {
                Some(b'"') => return Ok(StrToken::new(start..self.pos, true)),
                Some(b'\\') => self.escape()?,
                _ => return Err(Malformed),
            }
            self.pos = next_special(self.src, self.pos);
        }
    }

    fn escape(&mut self) -> Result<(), Malformed> {
        match self.src.get(self.pos + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.pos += 2,
            Some(b'u') => {
                let unit = self.hex4(self.pos + 2)?;
                self.pos += 6;
                match unit {
                    0xd800..=0xdbff if self.src[self.pos..].starts_with(b"\\u") => {
                        let low = self.hex4(self.pos + 2)?;
                        if (0xdc00..=0xdfff).contains(&low) {
                            self.pos += 6;
                        } else {
                            self.lenient = true;
                        }
                    }
                    0xd800..=0xdfff => self.lenient = true,
                    _ => {}
                }
            }
            _ => return Err(Malformed),
        }
        Ok(())
    }

    fn hex4(&self, at: usize) -> Result<u32, Malformed> {
        let digits = self.src.get(at..at + 4).ok_or(Malformed)?;
        digits.iter().try_fold(0, |unit, &b| {
            let digit = (b as char).to_digit(16).ok_or(Malformed)?;
            Ok(unit << 4 | digit)
        })
    }

    /// A number or a word.
    #[inline]
    fn scalar_at(&mut self, pos: usize) -> Result<usize, Malformed> {
        let rest = self.src.get(pos..).ok_or(Malformed)?;
        let word = |word: &[u8]| if rest.starts_with(word) { Ok(pos + word.len()) } else { Err(Malformed) };
        match rest.first() {
            Some(b'0'..=b'9') => self.number_at(pos, pos),
            Some(b'-') if rest.starts_with(b"-Infinity") => self.not_a_number(pos + 9),
            Some(b'-') => self.number_at(pos, pos + 1),
            Some(b't') => word(b"true"),
            Some(b'f') => word(b"false"),
            Some(b'n') => word(b"null"),
            Some(b'N') if rest.starts_with(b"NaN") => self.not_a_number(pos + 3),
            Some(b'I') if rest.starts_with(b"Infinity") => self.not_a_number(pos + 8),
            _ => Err(Malformed),
        }
    }

    fn not_a_number(&mut self, end: usize) -> Result<usize, Malformed> {
        self.lenient = true;
        Ok(end)
    }

    /// A number from `start` on, whose integer part begins at `int_start`.
    #[inline]
    fn number_at(&mut self, start: usize, int_start: usize) -> Result<usize, Malformed> {
        let src = self.src;
        let mut pos = digits_end(src, int_start);
        let int_digits = pos - int_start;
        if int_digits == 0 || (int_digits > 1 && src[int_start] == b'0') {
            return Err(Malformed);
        }
        let mut real = false;
        if src.get(pos) == Some(&b'.') {
            real = true;
            pos = some_digits_end(src, pos + 1)?;
        }
        let mut exponent = false;
        if matches!(src.get(pos), Some(b'e' | b'E')) {
            exponent = true;
            pos += 1;
            if matches!(src.get(pos), Some(b'+' | b'-')) {
                pos += 1;
            }
            pos = some_digits_end(src, pos)?;
        }
        // Integers of any length stay. A real number must fit a double; without an exponent
        // 308 integer digits always do.
        if exponent || (real && int_digits > 308) {
            let text = std::str::from_utf8(&src[start..pos]).map_err(|_| Malformed)?;
            if !text.parse::<f64>().map_err(|_| Malformed)?.is_finite() {
                self.lenient = true;
            }
        }
        Ok(pos)
    }
}

/// A place that [`Scanner::rewind`] goes back to.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    pos: usize,
    copied: usize,
    out_len: usize,
}

/// Which containers are open: one bit each, 1 for an object, the innermost lowest.
#[derive(Default)]
struct OpenContainers {
    /// The innermost 64.
    inner: u64,
    /// Those around them, 64 each.
    outer: [u64; NESTING_MAX.div_ceil(64)],
    depth: usize,
}

impl OpenContainers {
    #[inline(always)]
    fn push(&mut self, object: bool, max: usize) -> Result<(), Malformed> {
        if self.depth >= max {
            return Err(Malformed);
        }
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer[self.depth / 64 - 1] = self.inner;
        }
        self.inner = self.inner << 1 | u64::from(object);
        self.depth += 1;
        Ok(())
    }

    #[inline(always)]
    fn pop(&mut self) {
        self.depth -= 1;
        self.inner >>= 1;
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.inner = self.outer[self.depth / 64 - 1];
        }
    }

    #[inline(always)]
    fn innermost(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.inner & 1 == 1)
    }
}

/// Copies a part of `src`. Most are short, so those need no call.
#[inline(always)]
fn copy_run(src: &[u8], run: Range<usize>, out: &mut Vec<u8>) {
    const BLOCK: usize = 16;
    let len = run.end - run.start;
    if len <= BLOCK
        && let Some(block) = src[run.start..].first_chunk::<BLOCK>()
    {
        let end = out.len() + len;
        out.extend_from_slice(block);
        out.truncate(end);
    } else {
        out.extend_from_slice(&src[run]);
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Eight bytes from `pos` on, if there are as many.
#[inline(always)]
fn word_at(src: &[u8], pos: usize) -> Option<u64> {
    src.get(pos..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// The first position from `pos` on that holds no digit, or the end. Eight bytes a step.
#[inline(always)]
fn digits_end(src: &[u8], mut pos: usize) -> usize {
    while let Some(word) = word_at(src, pos) {
        // A digit is 0x30 to 0x39: high half 3 with and without 6 added. Bytes below a byte that is
        // none carry nothing into it, so the lowest difference is exact.
        let other =
            ((word & (ONES * 0xf0)) ^ (ONES * 0x30)) | ((word.wrapping_add(ONES * 6) & (ONES * 0xf0)) ^ (ONES * 0x30));
        if other != 0 {
            return pos + (other.trailing_zeros() / 8) as usize;
        }
        pos += 8;
    }
    while matches!(src.get(pos), Some(b'0'..=b'9')) {
        pos += 1;
    }
    pos
}

#[inline(always)]
fn some_digits_end(src: &[u8], pos: usize) -> Result<usize, Malformed> {
    let end = digits_end(src, pos);
    if end == pos { Err(Malformed) } else { Ok(end) }
}

/// The first position from `pos` on that holds a quote, a backslash or a control character, or
/// the end. Eight bytes a step.
#[inline(always)]
fn next_special(src: &[u8], mut pos: usize) -> usize {
    while let Some(word) = word_at(src, pos) {
        let zero_if = |byte: u8| {
            let x = word ^ (ONES * u64::from(byte));
            x.wrapping_sub(ONES) & !x
        };
        // Exact in its lowest set bit, which is the only one used ("haszero" and "hasless" of
        // Bit Twiddling Hacks); bytes of 0x80 and above never count as control characters.
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let hit = (zero_if(b'"') | zero_if(b'\\') | control) & HIGHS;
        if hit != 0 {
            return pos + (hit.trailing_zeros() / 8) as usize;
        }
        pos += 8;
    }
    while pos < src.len() && src[pos] != b'"' && src[pos] != b'\\' && src[pos] >= 0x20 {
        pos += 1;
    }
    pos
}

/// A number that names with the same bytes share, and others nearly always do not.
#[inline(always)]
pub(crate) fn name_hash(src: &[u8], name: Range<usize>) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let len = name.end - name.start;
    let word = match (len, word_at(src, name.start)) {
        (0, _) => 0,
        (1..=8, Some(word)) => word << (64 - 8 * len),
        (9.., Some(word)) => word ^ word_at(src, name.end - 8).unwrap_or(0).rotate_left(29),
        (_, None) => src[name].iter().rev().fold(0, |word, &b| word << 8 | u64::from(b)) << (64 - 8 * len),
    };
    (word ^ len as u64).wrapping_mul(ODD)
}

/// The value of a string token as UTF-8. A lone surrogate becomes U+FFFD.
///
/// `raw` is the content without quotes, already checked by a [`Scanner`].
pub(crate) fn unescape(raw: &[u8], into: &mut Vec<u8>) {
    let mut rest = raw;
    while let Some(at) = rest.iter().position(|&b| b == b'\\') {
        into.extend_from_slice(&rest[..at]);
        rest = &rest[at + 1..];
        let plain = match rest[0] {
            b'u' => {
                let (c, used) = unescape_unicode(rest);
                into.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = &rest[used..];
                continue;
            }
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            other => other,
        };
        into.push(plain);
        rest = &rest[1..];
    }
    into.extend_from_slice(rest);
}

/// Decodes `uXXXX`, or `uXXXX\uXXXX` when that is a surrogate pair; how many bytes it took.
fn unescape_unicode(text: &[u8]) -> (char, usize) {
    let unit = |at: usize| {
        text.get(at..at + 4)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u32::from_str_radix(hex, 16).ok())
    };
    let high = unit(1).unwrap_or(0xfffd);
    if (0xd800..0xdc00).contains(&high)
        && text.get(5..7) == Some(b"\\u")
        && let Some(low @ 0xdc00..=0xdfff) = unit(7)
    {
        let c = char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00));
        return (c.unwrap_or(char::REPLACEMENT_CHARACTER), 11);
    }
    (char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER), 5)
}

/// How many code points a checked string token has; a surrogate pair counts one, a lone one too.
pub(crate) fn code_points(raw: &[u8]) -> usize {
    let mut count = 0;
    let mut rest = raw;
    while let Some((&first, tail)) = rest.split_first() {
        let used = match (first, tail.first()) {
            (b'\\', Some(b'u')) => 1 + unescape_unicode(tail).1,
            (b'\\', _) => 2,
            _ => 1,
        };
        // Continuation bytes belong to the code point before them.
        count += usize::from(first & 0xc0 != 0x80);
        rest = &rest[used..];
    }
    count
}

/// Is `text` exactly one JSON value that every strict reader takes, with white space around it
/// at most?
pub(crate) fn is_whole_value(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let mut out = Vec::new();
    let mut scanner = Scanner::new(text, &mut out);
    scanner.space();
    if scanner.value(0).is_err() {
        return false;
    }
    scanner.space();
    scanner.peek().is_none() && !scanner.lenient()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `None`: malformed. `Some((copy, lenient))` otherwise.
    fn compact(text: &str) -> Option<(String, bool)> {
        let mut out = Vec::new();
        let mut scanner = Scanner::new(text, &mut out);
        scanner.space();
        scanner.value(0).ok()?;
        scanner.space();
        if scanner.peek().is_some() {
            return None;
        }
        scanner.flush();
        let lenient = scanner.lenient();
        Some((String::from_utf8(out).unwrap(), lenient))
    }

    #[test]
    fn white_space_goes_and_spelling_stays() {
        for (text, want) in [
            (" { \"a\" : [ 1 , 2 ] }\r\n", "{\"a\":[1,2]}"),
            ("[1.10, 1E+2,-0, 1e-7]", "[1.10,1E+2,-0,1e-7]"),
            ("\"\\u00e9\\/ x\\ud83d\\ude00\"", "\"\\u00e9\\/ x\\ud83d\\ude00\""),
            ("[ ]", "[]"),
            ("{ }", "{}"),
            ("[{ },[ ] , null ,true,false]", "[{},[],null,true,false]"),
            ("\"\u{7f}\u{2028}  two  blanks\"", "\"\u{7f}\u{2028}  two  blanks\""),
        ] {
            assert_eq!(compact(text), Some((want.to_owned(), false)), "{text}");
        }
    }

    #[test]
    fn what_only_python_reads_is_told_apart() {
        for text in [
            "NaN",
            "[Infinity]",
            "-Infinity",
            "1e400",
            "-1e400",
            "{\"a\":1.5e9999}",
            "\"\\ud800\"",
            "\"\\udc00\"",
            "\"\\ud800\\ud800\"",
            "{\"\\ud800\":1}",
            "\"\\ud800x\"",
        ] {
            assert!(compact(text).unwrap().1, "{text}");
        }
        let digits = "9".repeat(4300);
        assert!(!compact(&digits).unwrap().1, "integers of any length stay");
        assert!(compact(&format!("{digits}.5")).unwrap().1, "no double can hold it");
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in [
            "",
            " ",
            "{",
            "[",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1",
            "{\"a\":1,}",
            "[1,]",
            "[,1]",
            "{,}",
            "{'a':1}",
            "{a:1}",
            "{\"a\" 1}",
            "01",
            "+1",
            ".5",
            "5.",
            "1e",
            "1e+",
            "-",
            "0x10",
            "1_0",
            "tru",
            "nul",
            "nan",
            "-NaN",
            "\"a",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u12g4\"",
            "\"a\nb\"",
            "\"\0\"",
            "{\"a\":1}x",
            "{\"a\":1/*x*/}",
            "\u{feff}{}",
            "\u{a0}1",
            "[1}",
            "{\"a\":1]",
            "1 2",
        ] {
            assert_eq!(compact(text), None, "{text:?}");
        }
    }

    #[test]
    fn nesting_ends_at_the_limit() {
        let nested = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(compact(&nested(NESTING_MAX)).is_some());
        assert!(compact(&nested(NESTING_MAX + 1)).is_none());
        assert!(compact(&"[".repeat(100_000)).is_none());
    }

    /// Broken, an object could be closed as an array where another 64 levels begin.
    #[test]
    fn brackets_match_at_every_depth() {
        let mut seed = 20_261_121_u32;
        for depth in (1..200).chain([511, 512, 513, 975, 976]) {
            let kinds: Vec<bool> = (0..depth)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    seed >> 31 == 1
                })
                .collect();
            let open: String = kinds.iter().map(|object| if *object { "{\"a\":" } else { "[1," }).collect();
            let close: Vec<u8> = kinds.iter().rev().map(|object| if *object { b'}' } else { b']' }).collect();
            let text = |close: &[u8]| format!("{open}0{}", std::str::from_utf8(close).unwrap());
            assert_eq!(compact(&text(&close)), Some((text(&close), false)), "{depth}");
            for at in [0, depth / 2, depth - 1] {
                let mut wrong = close.clone();
                wrong[at] ^= b'}' ^ b']';
                assert_eq!(compact(&text(&wrong)), None, "{depth}, {at}");
            }
        }
    }

    #[test]
    fn code_points_are_counted_as_python_counts_them() {
        for (raw, want) in
            [("", 0), ("abc", 3), ("ü€😀", 3), ("\\ud83d\\ude00", 1), ("\\ud800", 1), ("\\n\\u00e9x", 3), ("\\\\u", 2)]
        {
            assert_eq!(code_points(raw.as_bytes()), want, "{raw}");
        }
    }

    /// JSON text with white space in odd places, from a generated value.
    fn spaced_json() -> impl Strategy<Value = (serde_json::Value, String)> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Into::into),
            "\\PC{0,12}".prop_map(Into::into),
            "[\\x00-\\x7f]{0,12}".prop_map(Into::into),
        ];
        let value = leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                proptest::collection::btree_map("[a-z\"\\\\\n]{0,4}", inner, 0..6)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        });
        value.prop_map(|value| {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            (value, pretty.replace("\n", "\r\n\t"))
        })
    }

    proptest! {
        #[test]
        fn valid_json_is_compacted_as_serde_json_writes_it((value, text) in spaced_json()) {
            let (copy, lenient) = compact(&text).expect("valid");
            prop_assert!(!lenient);
            prop_assert_eq!(copy, serde_json::to_string(&value).unwrap());
        }

        /// Damaged text: whenever we call it clean, serde_json takes it, and the other way round.
        #[test]
        fn damaged_json_is_judged_as_serde_json_judges_it(
            (_, text) in spaced_json(), at in any::<proptest::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()
        ) {
            let mut bytes = text.into_bytes();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            if let Ok(text) = std::str::from_utf8(&bytes) {
                let ours = compact(text).is_some_and(|(_, lenient)| !lenient);
                let theirs = serde_json::from_str::<serde_json::Value>(text).is_ok();
                prop_assert_eq!(ours, theirs, "{:?}", text);
            }
        }

        #[test]
        fn any_text_is_scanned_without_panic(text in "\\PC{0,60}|[\\[\\]{}\",:\\\\u0-9dDeE.+\\- ntfNI]{0,60}") {
            if let Some((copy, false)) = compact(&text) {
                prop_assert!(!copy.contains('\n'));
                prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(), "{:?}", text);
            }
        }

        #[test]
        fn unescape_agrees_with_serde_json(text in "\\PC{0,30}|[\\x00-\\x7f]{0,30}") {
            let quoted = serde_json::to_string(&text).unwrap();
            let mut out = Vec::new();
            unescape(&quoted.as_bytes()[1..quoted.len() - 1], &mut out);
            prop_assert_eq!(out, text.as_bytes());
            prop_assert_eq!(code_points(&quoted.as_bytes()[1..quoted.len() - 1]), text.chars().count());
        }
    }
}
