//! One pass over JSON text: check it strictly and copy it without insignificant white space.
//!
//! No tree is built and nothing is re-spelled: numbers, escapes and key order stay as sent. The
//! scanner distinguishes two kinds of badness, because the original does:
//!
//! * text that no JSON parser takes ([`Malformed`]), found before anything else is looked at;
//! * text that Python's `json` takes but RFC 8259 readers do not (NaN, Infinity, `1e400`, lone
//!   surrogates): [`Scanner::lenient`] becomes true, so the caller can still report what the
//!   original reported first (compat: a domain mismatch beside a NaN is a domain mismatch).

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
    pub start: usize,
    pub end: usize,
    /// The content holds escapes, so the raw bytes are not its value.
    pub escaped: bool,
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
        if !matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            return;
        }
        self.flush();
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.pos += 1;
        }
        self.copied = self.pos;
    }

    /// Copies everything passed so far.
    #[inline]
    pub(crate) fn flush(&mut self) {
        self.out.extend_from_slice(&self.src[self.copied..self.pos]);
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

    /// Passes one whole value of any kind. White space before it must have been passed.
    ///
    /// `outer` is how many containers of the same event are open around it.
    pub(crate) fn value(&mut self, outer: usize) -> Result<(), Malformed> {
        let open_max = NESTING_MAX + 1 - outer;
        let mut open = OpenContainers::default();
        loop {
            match self.peek().ok_or(Malformed)? {
                b'"' => {
                    self.string()?;
                }
                b'{' => {
                    self.pos += 1;
                    open.push(true, open_max)?;
                    self.space();
                    if self.peek() != Some(b'}') {
                        self.key()?;
                        continue;
                    }
                    self.pos += 1;
                    open.pop();
                }
                b'[' => {
                    self.pos += 1;
                    open.push(false, open_max)?;
                    self.space();
                    if self.peek() != Some(b']') {
                        continue;
                    }
                    self.pos += 1;
                    open.pop();
                }
                _ => self.scalar()?,
            }
            if self.close(&mut open)? {
                return Ok(());
            }
        }
    }

    /// After a value: passes closing brackets and one comma. True when the outermost value ended.
    fn close(&mut self, open: &mut OpenContainers) -> Result<bool, Malformed> {
        while let Some(in_object) = open.innermost() {
            self.space();
            match self.peek() {
                Some(b',') => {
                    self.pos += 1;
                    self.space();
                    if in_object {
                        self.key()?;
                    }
                    return Ok(false);
                }
                Some(b'}') if in_object => self.pos += 1,
                Some(b']') if !in_object => self.pos += 1,
                _ => return Err(Malformed),
            }
            open.pop();
        }
        Ok(true)
    }

    /// Passes a key, the colon and the white space around it.
    #[inline]
    pub(crate) fn key(&mut self) -> Result<StrToken, Malformed> {
        let key = self.string()?;
        self.space();
        self.expect(b':')?;
        self.space();
        Ok(key)
    }

    /// Passes a string token.
    #[inline]
    pub(crate) fn string(&mut self) -> Result<StrToken, Malformed> {
        self.expect(b'"')?;
        let start = self.pos;
        let mut escaped = false;
        loop {
            self.pos = next_special(self.src, self.pos);
            match self.peek().ok_or(Malformed)? {
                b'"' => {
                    self.pos += 1;
                    return Ok(StrToken { start, end: self.pos - 1, escaped });
                }
                b'\\' => {
                    escaped = true;
                    self.escape()?;
                }
                _ => return Err(Malformed),
            }
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

    fn scalar(&mut self) -> Result<(), Malformed> {
        match self.src[self.pos] {
            b'0'..=b'9' => self.number(),
            b'-' if self.src[self.pos..].starts_with(b"-Infinity") => self.not_a_number(9),
            b'-' => self.number(),
            b't' => self.literal(b"true"),
            b'f' => self.literal(b"false"),
            b'n' => self.literal(b"null"),
            b'N' if self.src[self.pos..].starts_with(b"NaN") => self.not_a_number(3),
            b'I' if self.src[self.pos..].starts_with(b"Infinity") => self.not_a_number(8),
            _ => Err(Malformed),
        }
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), Malformed> {
        if !self.src[self.pos..].starts_with(word) {
            return Err(Malformed);
        }
        self.pos += word.len();
        Ok(())
    }

    fn not_a_number(&mut self, len: usize) -> Result<(), Malformed> {
        self.lenient = true;
        self.pos += len;
        Ok(())
    }

    fn number(&mut self) -> Result<(), Malformed> {
        let start = self.pos;
        if self.src[self.pos] == b'-' {
            self.pos += 1;
        }
        let int_start = self.pos;
        match self.peek() {
            Some(b'0') => self.pos += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return Err(Malformed),
        }
        let int_digits = self.pos - int_start;
        let mut real = false;
        if self.peek() == Some(b'.') {
            real = true;
            self.pos += 1;
            self.some_digits()?;
        }
        let mut exponent = false;
        if matches!(self.peek(), Some(b'e' | b'E')) {
            exponent = true;
            self.pos += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.pos += 1;
            }
            self.some_digits()?;
        }
        // Integers of any length stay. A real number must fit a double; without an exponent
        // 308 integer digits always do.
        if exponent || (real && int_digits > 308) {
            let text = std::str::from_utf8(&self.src[start..self.pos]).map_err(|_| Malformed)?;
            if !text.parse::<f64>().map_err(|_| Malformed)?.is_finite() {
                self.lenient = true;
            }
        }
        Ok(())
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.pos += 1;
        }
    }

    fn some_digits(&mut self) -> Result<(), Malformed> {
        let start = self.pos;
        self.digits();
        if self.pos == start { Err(Malformed) } else { Ok(()) }
    }
}

/// Which containers are open: one bit each, 1 for an object.
#[derive(Default)]
struct OpenContainers {
    bits: [u64; NESTING_MAX.div_ceil(64) + 1],
    depth: usize,
}

impl OpenContainers {
    #[inline]
    fn push(&mut self, object: bool, max: usize) -> Result<(), Malformed> {
        if self.depth >= max {
            return Err(Malformed);
        }
        let (word, bit) = (self.depth / 64, 1 << (self.depth % 64));
        if object {
            self.bits[word] |= bit;
        } else {
            self.bits[word] &= !bit;
        }
        self.depth += 1;
        Ok(())
    }

    #[inline]
    fn pop(&mut self) {
        self.depth -= 1;
    }

    #[inline]
    fn innermost(&self) -> Option<bool> {
        let top = self.depth.checked_sub(1)?;
        Some(self.bits[top / 64] >> (top % 64) & 1 == 1)
    }
}

/// The first position from `pos` on that holds a quote, a backslash or a control character, or
/// the end. Eight bytes a step.
#[inline]
fn next_special(src: &[u8], mut pos: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    while let Some(chunk) = src.get(pos..pos + 8) {
        let word = u64::from_le_bytes(chunk.try_into().expect("eight bytes were taken"));
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
