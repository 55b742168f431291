//! The text that a string token stands for: its escapes, compared, counted and resolved.

/// The value of a string token as UTF-8. A lone surrogate becomes U+FFFD.
///
/// `raw` is the content without quotes, already checked by a [`Scanner`](super::Scanner).
pub(crate) fn unescape(raw: &[u8], into: &mut Vec<u8>) {
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        into.extend_from_slice(&rest[..at]);
        let mut value = [0; 4];
        let (value, used) = unescape_one(&rest[at + 1..], &mut value);
        into.extend_from_slice(value);
        rest = &rest[at + 1 + used..];
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

/// Is `name` the value of a string token, as [`unescape`] would write it?
pub(crate) fn unescapes_to(raw: &[u8], mut name: &[u8]) -> bool {
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        let Some(behind) = name.strip_prefix(&rest[..at]) else { return false };
        let mut value = [0; 4];
        let (value, used) = unescape_one(&rest[at + 1..], &mut value);
        let Some(behind) = behind.strip_prefix(value) else { return false };
        name = behind;
        rest = &rest[at + 1 + used..];
    }
    rest == name
}

/// The content, without its quotes, of the string token of `src` that begins behind the quote before `start`.
pub(crate) fn key_text(src: &[u8], start: usize) -> &[u8] {
    let mut end = start;
    while let Some(at) = src.get(end..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        end += at;
        if src[end] == b'"' {
            return &src[start..end];
        }
        end += 2;
    }
    &src[start..]
}

/// Resolves the escape whose backslash stands before `rest`; how many bytes of `rest` it took.
fn unescape_one<'a>(rest: &[u8], value: &'a mut [u8; 4]) -> (&'a [u8], usize) {
    let plain = match rest[0] {
        b'u' => {
            let (c, used) = unescape_unicode(rest);
            return (c.encode_utf8(value).as_bytes(), used);
        }
        b'b' => 8,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        other => other,
    };
    value[0] = plain;
    (&value[..1], 1)
}
