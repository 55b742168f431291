//! `look`: is this the head of a plain request, of another one, or not whole yet?

use std::mem::MaybeUninit;
use std::num::NonZeroU16;

use super::super::fields::{FIELDS, Field, Fields};
use super::super::ingest::{OLD_PREFIX, Route};

/// More fields than that are unusual enough to be hyper's.
const FIELDS_MAX: usize = 32;
/// What hyper takes at most.
const ANY_FIELDS_MAX: usize = 100;
const METHOD: &[u8] = b"POST ";
const VERSION: &[u8] = b" HTTP/1.1\r\n";
/// A length of so many digits is a number of 64 bits.
const LENGTH_DIGITS_MAX: usize = 15;

/// What stands at the beginning of what a client has sent.
#[derive(Debug)]
pub(crate) enum Seen<'a> {
    /// More has to come before it can be told.
    Partial,
    Plain(Head<'a>),
    /// A request that is not plain, whole, or none.
    Other,
}

/// The head of a plain request, in which every field that means something here stands once at most.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    /// Of the head in bytes, with the empty line.
    pub len: usize,
    pub route: Route,
    pub path: &'a str,
    /// Without the question mark; empty if there is none.
    pub query: &'a str,
    /// As announced.
    pub body_bytes: usize,
    bytes: &'a [u8],
    known: Known,
}

/// Where the values of known fields lie.
type Known = [Option<Place>; FIELDS];

/// A part of a head. Small, because every head has some of them.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: NonZeroU16,
    len: u16,
}

impl Place {
    fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[usize::from(self.start.get())..][..usize::from(self.len)]
    }
}

impl Fields for Head<'_> {
    fn all(&self, field: Field) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.known[field as usize].map(|place| place.of(self.bytes)).into_iter()
    }

    fn have_cloud_event(&self) -> bool {
        // Such a head is not plain.
        false
    }
}

/// Looks at `bytes`, which begin with a head or a part of one.
///
/// A request is plain if its framing and its meaning are beyond doubt: no reader of HTTP could take it
/// for another. It is of the form `POST /v1/ingest` or `POST /ingest/{domain}`, HTTP/1.1, with every
/// character standing for itself; it has one Host, one Content-Length of digits and nothing else that
/// could frame a body; and what follows its body, as far as it is there, may begin another request.
pub(crate) fn look(bytes: &[u8]) -> Seen<'_> {
    let begins = bytes.len().min(METHOD.len());
    if bytes[..begins] != METHOD[..begins] {
        return look_at_any(bytes);
    }
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Partial) => Seen::Partial,
        Ok(httparse::Status::Complete(len)) => plain(bytes, len, &request).map_or(Seen::Other, Seen::Plain),
        Err(httparse::Error::TooManyHeaders) => look_at_any(bytes),
        Err(_) => Seen::Other,
    }
}

/// Looks at a head that is not plain: only whether it is whole. Until it is, it waits where it takes little
/// room.
#[cold]
#[inline(never)]
pub(super) fn look_at_any(bytes: &[u8]) -> Seen<'_> {
    let mut fields = [const { MaybeUninit::uninit() }; ANY_FIELDS_MAX];
    match httparse::Request::new(&mut []).parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Partial) => Seen::Partial,
        Ok(httparse::Status::Complete(_)) | Err(_) => Seen::Other,
    }
}

fn plain<'a>(bytes: &'a [u8], len: usize, request: &httparse::Request<'_, 'a>) -> Option<Head<'a>> {
    let target = request.path?;
    let version = bytes.get(METHOD.len() + target.len()..)?;
    if !version.starts_with(VERSION) || !bytes[..len].ends_with(b"\r\n\r\n") {
        return None;
    }
    let (path, query) = match memchr::memchr(b'?', target.as_bytes()) {
        Some(at) => (&target[..at], &target[at + 1..]),
        None => (target, ""),
    };
    let route = route(path)?;
    if !query.bytes().all(|b| IN_QUERY[usize::from(b)]) {
        return None;
    }
    let known = known(bytes, request.headers)?;
    known[Field::Host as usize]?;
    let body_bytes = length(known[Field::ContentLength as usize]?.of(bytes))?;
    let head = Head { len, route, path, query, body_bytes, bytes, known };
    goes_on_well(&bytes[len..], body_bytes).then_some(head)
}

fn route(path: &str) -> Option<Route> {
    if path == "/v1/ingest" {
        return Some(Route::V1);
    }
    let domain = path.strip_prefix(OLD_PREFIX)?;
    (!domain.is_empty() && domain.bytes().all(|b| IN_PATH[usize::from(b)])).then_some(Route::Old)
}

/// What stands for itself in a target, whoever reads it (RFC 3986, section 2.3).
const IN_PATH: [bool; 256] = letters_digits_and(b"-._~");
/// The same, and what a query is made of.
const IN_QUERY: [bool; 256] = letters_digits_and(b"-._~=&%+");

const fn letters_digits_and(others: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
}

/// `None` if a field leaves room for doubt.
fn known(bytes: &[u8], fields: &[httparse::Header<'_>]) -> Option<Known> {
    let mut known = [None; FIELDS];
    for field in fields {
        let place = place(bytes, field.value)?;
        match meaning(field.name.as_bytes()) {
            Meaning::None => {}
            Meaning::Known(field) if known[field as usize].is_none() => known[field as usize] = Some(place),
            Meaning::Connection if field.value.eq_ignore_ascii_case(b"keep-alive") => {}
            Meaning::Known(_) | Meaning::Connection | Meaning::Framing | Meaning::CloudEvent => return None,
        }
    }
    Some(known)
}

/// Where `value` lies in `bytes`. `None` if its line does not end behind it, with the line end of the
/// standard.
fn place(bytes: &[u8], value: &[u8]) -> Option<Place> {
    // The parser gives parts of what it was given; for anything else there would be no place here.
    let start = (value.as_ptr() as usize).wrapping_sub(bytes.as_ptr() as usize);
    let behind = bytes.get(start..)?.get(value.len()..)?;
    let place = Place { start: u16::try_from(start).ok()?.try_into().ok()?, len: value.len().try_into().ok()? };
    behind.starts_with(b"\r\n").then_some(place)
}

enum Meaning {
    /// Nothing that is asked here.
    None,
    Known(Field),
    Connection,
    /// Says how long the body is, or whether it comes at all, otherwise than by its length.
    Framing,
    /// The event is not all in the body.
    CloudEvent,
}

fn meaning(name: &[u8]) -> Meaning {
    match name.len() {
        4 if is(name, b"host") => Meaning::Known(Field::Host),
        5 if is(name, b"ce-id") => Meaning::CloudEvent,
        6 if is(name, b"x-auth") => Meaning::Known(Field::XAuth),
        6 if is(name, b"accept") => Meaning::Known(Field::Accept),
        6 if is(name, b"expect") => Meaning::Framing,
        7 if is(name, b"upgrade") => Meaning::Framing,
        7 if is(name, b"ce-type") => Meaning::CloudEvent,
        9 if is(name, b"ce-source") => Meaning::CloudEvent,
        10 if is(name, b"connection") => Meaning::Connection,
        12 if is(name, b"content-type") => Meaning::Known(Field::ContentType),
        12 if is(name, b"x-request-id") => Meaning::Known(Field::XRequestId),
        13 if is(name, b"authorization") => Meaning::Known(Field::Authorization),
        14 if is(name, b"content-length") => Meaning::Known(Field::ContentLength),
        14 if is(name, b"ce-specversion") => Meaning::CloudEvent,
        15 if is(name, b"x-forwarded-for") => Meaning::Known(Field::XForwardedFor),
        16 if is(name, b"content-encoding") => Meaning::Known(Field::ContentEncoding),
        17 if is(name, b"transfer-encoding") => Meaning::Framing,
        _ => Meaning::None,
    }
}

/// Is it this name, in any case? Of a known length, so that it is a few comparisons of many bytes. Every
/// name that the parser lets pass is made of letters, digits and signs; with this bit set, only the two
/// cases of a letter are the same as it, and only the hyphen as itself.
fn is<const N: usize>(name: &[u8], text: &[u8; N]) -> bool {
    let Ok(name) = <&[u8; N]>::try_from(name) else { return false };
    let differs = name.iter().zip(text).fold(0, |differs, (&byte, &wanted)| differs | ((byte | 0x20) ^ wanted));
    differs == 0
}

fn length(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > LENGTH_DIGITS_MAX || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |number, digit| 10 * number + usize::from(digit - b'0')))
}

/// compat: what follows the body at once may begin another request, or be empty lines; else the
/// original refused the request, see `conn::ConnIo`.
fn goes_on_well(behind: &[u8], body_bytes: usize) -> bool {
    behind.get(body_bytes).is_none_or(|next| next.is_ascii_uppercase() || b"\r\n".contains(next))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS_OF_ALL: &str = "Host: a\r\nX-Auth: t\r\n";

    /// A head that announces two bytes.
    fn head(line: &str, fields: &str) -> String {
        format!("{line}\r\n{FIELDS_OF_ALL}{fields}Content-Length: 2\r\n\r\n")
    }

    fn post(fields: &str) -> String {
        head("POST /v1/ingest HTTP/1.1", fields)
    }

    fn is_plain(bytes: &[u8]) -> Option<bool> {
        match look(bytes) {
            Seen::Partial => None,
            Seen::Plain(_) => Some(true),
            Seen::Other => Some(false),
        }
    }

    /// Broken, hyper would serve what producers send every day, and an event would cost half as much again.
    #[test]
    fn what_producers_send_is_plain() {
        for text in [
            post(""),
            head("POST /v1/ingest?domain=a.b-c HTTP/1.1", ""),
            head("POST /v1/ingest?domain=a&domain=%20b+c HTTP/1.1", ""),
            head("POST /v1/ingest? HTTP/1.1", ""),
            head("POST /ingest/a.b HTTP/1.1", ""),
            post("Connection: keep-alive\r\n"),
            post("connection:Keep-Alive\r\n"),
            post("Content-Type: application/json\r\nAccept: */*\r\nUser-Agent: curl/8\r\nAccept-Encoding: gzip\r\n"),
            post("content-encoding: gzip\r\nX-Request-ID: \r\nAuthorization: Bearer x\r\nX-Forwarded-For: 1.2.3.4\r\n"),
            post("x-auths: a\r\nx-auths: b\r\nTE: trailers\r\nX-L\u{e4}: b\r\n").replace('\u{e4}', "a"),
            post("X-Text: \u{e4}\r\n"),
            post("Content-Lengthy: 5\r\nUpgrade-Insecure-Requests: 1\r\n"),
        ] {
            assert_eq!(is_plain(text.as_bytes()), Some(true), "{text:?}");
            for behind in ["{", "{}", "{}POST", "{}\r\n", "{}\n", "\u{0}\u{0}G"] {
                assert_eq!(is_plain(format!("{text}{behind}").as_bytes()), Some(true), "{text:?} {behind:?}");
            }
        }
    }

    /// Broken, a request whose framing or meaning is in doubt would be served as if it were not.
    #[test]
    fn what_leaves_room_for_doubt_is_for_hyper() {
        for text in [
            head("GET /v1/ingest HTTP/1.1", ""),
            head("post /v1/ingest HTTP/1.1", ""),
            head("POSTS /v1/ingest HTTP/1.1", ""),
            head(" POST /v1/ingest HTTP/1.1", ""),
            head("\r\nPOST /v1/ingest HTTP/1.1", ""),
            head("POST  /v1/ingest HTTP/1.1", ""),
            head("POST /v1/ingest  HTTP/1.1", ""),
            head("POST\t/v1/ingest HTTP/1.1", ""),
            head("POST /v1/ingest HTTP/1.0", ""),
            head("POST /v1/ingest HTTP/1.2", ""),
            head("POST /v1/ingest HTTP/1.1 ", ""),
            head("POST /v1/ingest/ HTTP/1.1", ""),
            head("POST //v1/ingest HTTP/1.1", ""),
            head("POST /v1/%69ngest HTTP/1.1", ""),
            head("POST /v1/ingest#a HTTP/1.1", ""),
            head("POST /v1/ingest?a=\u{e4} HTTP/1.1", ""),
            head("POST /v1/ingest?a=\" HTTP/1.1", ""),
            head("POST /v1/ingest?a=? HTTP/1.1", ""),
            head("POST /ingest/ HTTP/1.1", ""),
            head("POST /ingest/a/ HTTP/1.1", ""),
            head("POST /ingest/a%2e HTTP/1.1", ""),
            head("POST /ingest/a%20 HTTP/1.1", ""),
            head("POST http://a/v1/ingest HTTP/1.1", ""),
            head("POST * HTTP/1.1", ""),
            head("POST /admin/snapshot HTTP/1.1", ""),
            post("Host: b\r\n"),
            post("").replace("Host: a\r\n", ""),
            post("X-Auth: u\r\n"),
            post("Content-Length: 2\r\n"),
            post("").replace("Content-Length: 2\r\n", ""),
            post("").replace(": 2\r\n", ": +2\r\n"),
            post("").replace(": 2\r\n", ": -2\r\n"),
            post("").replace(": 2\r\n", ": 2, 2\r\n"),
            post("").replace(": 2\r\n", ": 0x2\r\n"),
            post("").replace(": 2\r\n", ": \r\n"),
            post("").replace(": 2\r\n", ": 2 \r\n"),
            post("").replace(": 2\r\n", ": 1000000000000000\r\n"),
            post("").replace(": 2\r\n", " : 2\r\n"),
            post("Transfer-Encoding: chunked\r\n"),
            post("transfer-encoding: identity\r\n"),
            post("Expect: 100-continue\r\n"),
            post("EXPECT: x\r\n"),
            post("Upgrade: h2c\r\n"),
            post("Connection: close\r\n"),
            post("Connection: keep-alive, x\r\n"),
            post("Connection: \r\n"),
            post("Accept: a\r\nAccept: b\r\n"),
            post("Content-Type: a\r\nContent-Type: a\r\n"),
            post("X-A: b\r\n c\r\n"),
            post("X-A: b\r\n\tContent-Length: 0\r\n"),
            post("X A: b\r\n"),
            post("X-A\r\n"),
            post("X-A: b\n"),
            post("X-A:\n"),
            post("X-A: \u{0}\r\n"),
            post("X-A: a\rb\r\n"),
            post("").replace("\r\n", "\n"),
            post("").replacen("\r\n", "\n", 1),
            post("").replace("\r\n\r\n", "\r\n\n"),
            post(&"X-A: b\r\n".repeat(FIELDS_MAX)),
            post("") + "{}{",
            post("") + "{} ",
            post("") + "{}p",
            post("").replace(": 2\r\n", ": 0\r\n") + "{}",
        ] {
            assert_eq!(is_plain(text.as_bytes()), Some(false), "{text:?}");
        }
    }

    /// Broken, a head that comes in pieces would be judged before it is there, or another one for it.
    #[test]
    fn a_part_of_a_plain_head_is_neither() {
        let text = head("POST /ingest/a?b=c HTTP/1.1", "Content-Type: application/json\r\n");
        for cut in 0..text.len() {
            assert_eq!(is_plain(&text.as_bytes()[..cut]), None, "cut at {cut}");
        }
        for text in ["{", "POST\r", "G\0", "\u{16}\u{3}\u{1}", "PRI * HTTP/2.0\r\n"] {
            assert_eq!(is_plain(text.as_bytes()), Some(false), "{text:?} can become no head");
        }
    }

    /// Broken, hyper would keep parts of heads in buffers that nobody counts.
    #[test]
    fn a_head_that_is_not_plain_waits_until_it_is_whole() {
        let many = format!("X-A: b\r\n{}", "X: y\r\n".repeat(FIELDS_MAX));
        for text in [head("GET /health HTTP/1.1", ""), head("PUT / HTTP/1.1", ""), head("POST /x HTTP/1.1", &many)] {
            for cut in 0..text.len() {
                assert_eq!(is_plain(&text.as_bytes()[..cut]), None, "cut at {cut}");
            }
            assert_eq!(is_plain(text.as_bytes()), Some(false), "{text:?}");
        }
        let too_many = head("GET / HTTP/1.1", &"X: y\r\n".repeat(ANY_FIELDS_MAX + 1));
        assert_eq!(is_plain(&too_many.as_bytes()[..too_many.len() - 4]), Some(false), "it is refused in any case");
    }

    /// Broken, a field would be taken for another, and two readers would not agree on the body.
    #[test]
    fn a_name_is_known_in_any_case_and_by_no_other_byte() {
        for text in [&b"content-length"[..], b"x-request-id", b"transfer-encoding", b"host"] {
            for at in 0..text.len() {
                // What the parser lets pass in a name.
                for byte in (0..=u8::MAX).filter(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b)) {
                    let mut name = text.to_vec();
                    name[at] = byte;
                    let known = !matches!(meaning(&name), Meaning::None);
                    assert_eq!(known, name.eq_ignore_ascii_case(text), "{}", name.escape_ascii());
                }
            }
        }
    }

    /// Broken, the service would see other fields, or another path, than the client has sent.
    #[test]
    fn a_head_is_read_as_it_was_sent() {
        let text = head("POST /ingest/a.b?c=d&e HTTP/1.1", "aCCept:  x/y \tz\r\nX-Other: 1\r\n");
        let Seen::Plain(head) = look(text.as_bytes()) else { panic!("{text:?}") };
        assert_eq!((head.len, head.route, head.path, head.query), (text.len(), Route::Old, "/ingest/a.b", "c=d&e"));
        assert_eq!(head.body_bytes, 2);
        for (field, value) in [(Field::Accept, "x/y \tz"), (Field::XAuth, "t"), (Field::ContentLength, "2")] {
            assert_eq!(head.all(field).collect::<Vec<_>>(), [value.as_bytes()], "{field:?}");
        }
        for field in [Field::Authorization, Field::ContentType, Field::TransferEncoding, Field::XRequestId] {
            assert!(!head.has(field), "{field:?}");
        }
    }
}
