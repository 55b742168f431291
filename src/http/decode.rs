//! `Decoders`: takes a Content-Encoding off, within a limit and at a bounded price.
//!
//! What a client sends decides how much comes out, so nothing may be allocated in proportion to
//! it before it is known to be within the limit. A body that decodes to no more than
//! [`SCRATCH_BYTES`] is decoded once, into a buffer that is used again. A larger one is decoded
//! twice: first only counted, then, if it is within the limit, into a buffer of exactly its size. A
//! bomb is never stored.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flate2::bufread::GzDecoder;
use zstd::zstd_safe::{DCtx, DParameter, ResetDirective};

use super::blocking::Turns;
use super::body::{Coding, Held, Whole, no_memory};
use super::error::ApiError;
use super::metered::{Metered, until};
use crate::storage::{Reservation, StoreError};

/// Most bodies being decoded at once on threads, and no more than half of the processors can carry: others have work too. Bounds
/// the memory for zstd windows (8 MiB each, but never more than what is decoded).
const DECODERS_MAX: usize = 4;
/// Bodies of up to so many bytes, as sent, do not wait for longer ones. They are decoded at once, by whoever read them, as
/// long as they cost no more than [`HERE_CPU_MAX`]; then on threads, with turns of their own; and those that cost more than
/// [`SHORT_CPU_MAX`] of processor time there, of empty members or blocks, or because much comes out, among the long ones.
/// Each time they begin anew.
const SHORT_BYTES_MAX: usize = 16 << 10;
const SHORT_DECODERS_MAX: usize = 2;
const HERE_CPU_MAX: Duration = Duration::from_micros(100);
const SHORT_CPU_MAX: Duration = Duration::from_micros(500);
/// Most members of a gzip body. Each costs some microseconds, whether anything comes out or not.
const MEMBERS_MAX: usize = 4_096;
/// Largest window a zstd frame may ask for: 8 MiB, what RFC 8878 asks decoders to support.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Largest zstd context that is kept for the next body.
const KEPT_BYTES_MAX: usize = 2 << 20;
/// Bodies up to this size are decoded once.
const SCRATCH_BYTES: usize = 256 << 10;

impl From<StoreError> for Stopped {
    fn from(error: StoreError) -> Stopped {
        Stopped::Refused(error.into())
    }
}

/// All decoders of the process.
pub(crate) struct Decoders {
    turns: Turns,
    /// For short bodies.
    short_turns: Turns,
    idle: Arc<Mutex<Vec<Decoder>>>,
}

/// What one decoding needs, kept for the next.
struct Decoder {
    scratch: Vec<u8>,
    zstd: DCtx<'static>,
}

/// Where a body is decoded.
#[derive(Clone, Copy)]
enum Way {
    Here,
    Short,
    Long,
}

/// Why nothing came out.
#[derive(Debug)]
enum Stopped {
    /// It costs more than it may where it is decoded.
    TooDear,
    Refused(ApiError),
}

impl Decoders {
    pub(crate) fn new() -> Decoders {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let at_once = (processors / 2).clamp(1, DECODERS_MAX);
        Decoders { turns: Turns::new(at_once), short_turns: Turns::new(SHORT_DECODERS_MAX), idle: Arc::default() }
    }

    /// Decodes a whole body. What comes out is reserved before it is allocated, and what was sent is given back.
    ///
    /// # Errors
    /// [`ApiError::TooLarge`] when more than `limit_bytes` come out, [`ApiError::InvalidEncoding`]
    /// when the bytes are not what `coding` says, [`ApiError::Store`] when too much is in memory.
    ///
    /// # Cancel safety
    /// As [`Turns::run`]: dropped while it runs, it ends by itself, and holds its share until then.
    pub(crate) async fn decode(
        &self,
        coding: Coding,
        held: Held<'static>,
        limit_bytes: usize,
    ) -> Result<Held<'static>, ApiError> {
        let Held { body: mut sent, mut reservation } = held;
        let mut way = Way::of(sent.len());
        let decoded = loop {
            let work = move |decoder: &mut Decoder| {
                let decoded = decoder.decode(coding, &sent, limit_bytes, way.cpu_max(), &mut reservation);
                (decoded, sent, reservation)
            };
            let decoded;
            (decoded, sent, reservation) = self.run(way, work).await?;
            match decoded {
                Ok(decoded) => break Ok(decoded),
                Err(Stopped::Refused(error)) => break Err(error),
                Err(Stopped::TooDear) => {
                    reservation.shrink_to(sent.len());
                    way = way.behind();
                }
            }
        };
        // The bytes come back, so that they are freed on the thread that allocated them: the
        // allocator cannot use them again at once otherwise.
        drop(sent);
        let decoded = decoded?;
        reservation.shrink_to(decoded.len());
        Ok(Held { body: Whole::Owned(decoded), reservation })
    }

    /// Looks at the beginning of a body, so that a bomb is refused before the rest of it is held. Gives back
    /// what it got.
    ///
    /// # Errors
    /// As [`Decoders::decode`]; that it ends early is no error.
    ///
    /// # Cancel safety
    /// As [`Decoders::decode`].
    pub(crate) async fn probe(
        &self,
        coding: Coding,
        mut beginning: Vec<u8>,
        limit_bytes: usize,
        mut reservation: Reservation,
    ) -> Result<(Vec<u8>, Reservation), ApiError> {
        let mut way = Way::of(beginning.len());
        loop {
            let work = move |decoder: &mut Decoder| {
                let window = reservation.grow_to(beginning.len() + window_bytes(coding, limit_bytes));
                let measured = window.map(|()| decoder.measure(coding, &beginning, limit_bytes, until(way.cpu_max())));
                reservation.shrink_to(beginning.len());
                (measured, beginning, reservation)
            };
            let measured;
            (measured, beginning, reservation) = self.run(way, work).await?;
            match measured? {
                Ok(len) if len > limit_bytes => return Err(ApiError::TooLarge { limit_bytes }),
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => match stopped(&error, limit_bytes) {
                    Stopped::TooDear => way = way.behind(),
                    Stopped::Refused(error) => return Err(error),
                },
                Ok(_) | Err(_) => return Ok((beginning, reservation)),
            }
        }
    }

    /// Works here, or off the async workers.
    async fn run<T: Send + 'static>(
        &self,
        way: Way,
        work: impl FnOnce(&mut Decoder) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let idle = self.idle.clone();
        let work = move || {
            let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut decoder = kept.unwrap_or_else(Decoder::new);
            let result = work(&mut decoder);
            decoder.rest();
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(decoder);
            result
        };
        match way {
            Way::Here => Ok(work()),
            Way::Short => self.short_turns.run(work).await,
            Way::Long => self.turns.run(work).await,
        }
    }
}

impl Way {
    fn of(sent_bytes: usize) -> Way {
        if sent_bytes <= SHORT_BYTES_MAX { Way::Here } else { Way::Long }
    }

    /// Where a body goes on that costs more than it may.
    fn behind(self) -> Way {
        match self {
            Way::Here => Way::Short,
            Way::Short | Way::Long => Way::Long,
        }
    }

    fn cpu_max(self) -> Option<Duration> {
        match self {
            Way::Here => Some(HERE_CPU_MAX),
            Way::Short => Some(SHORT_CPU_MAX),
            Way::Long => None,
        }
    }
}

fn stopped(error: &io::Error, limit_bytes: usize) -> Stopped {
    match error.kind() {
        io::ErrorKind::TimedOut => Stopped::TooDear,
        io::ErrorKind::FileTooLarge => Stopped::Refused(ApiError::TooLarge { limit_bytes }),
        _ => Stopped::Refused(ApiError::InvalidEncoding),
    }
}

/// The members of a gzip body, one behind the other (RFC 1952, section 2.2), but only so many.
struct Members<'a> {
    current: GzDecoder<Metered<&'a [u8]>>,
    begun: usize,
}

impl<'a> Members<'a> {
    fn new(bytes: Metered<&'a [u8]>) -> Members<'a> {
        Members { current: GzDecoder::new(bytes), begun: 1 }
    }
}

impl Read for Members<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.current.read(into)?;
            let rest = self.current.get_ref();
            if read > 0 || into.is_empty() || rest.is_at_end() {
                return Ok(read);
            }
            if self.begun == MEMBERS_MAX {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            // What it takes to decode is there already, and large beside a member that holds nothing.
            let rest = rest.clone();
            self.current.reset(rest);
            self.begun += 1;
        }
    }
}

/// What a decoder itself may hold for a body.
fn window_bytes(coding: Coding, limit_bytes: usize) -> usize {
    match coding {
        Coding::Zstd => limit_bytes.min(1 << ZSTD_WINDOW_LOG_MAX),
        Coding::Gzip | Coding::Identity => 0,
    }
}

impl Decoder {
    fn new() -> Decoder {
        Decoder { scratch: Vec::new(), zstd: DCtx::create() }
    }

    /// Forgets a large window; it was counted for one body only.
    fn rest(&mut self) {
        if self.zstd.sizeof() > KEPT_BYTES_MAX {
            self.zstd = DCtx::create();
        }
    }

    fn decode(
        &mut self,
        coding: Coding,
        bytes: &[u8],
        limit_bytes: usize,
        cpu_max: Option<Duration>,
        reservation: &mut Reservation,
    ) -> Result<Bytes, Stopped> {
        let until = until(cpu_max);
        let invalid = |error| stopped(&error, limit_bytes);
        let held_bytes = bytes.len() + window_bytes(coding, limit_bytes);
        reservation.grow_to(held_bytes)?;
        let len = self.measure(coding, bytes, limit_bytes, until).map_err(invalid)?;
        if len > limit_bytes {
            return Err(Stopped::Refused(ApiError::TooLarge { limit_bytes }));
        }
        reservation.grow_to(held_bytes + len)?;
        if len == self.scratch.len() {
            return Ok(Bytes::copy_from_slice(&self.scratch));
        }
        let mut decoded = Vec::new();
        decoded.try_reserve_exact(len).map_err(no_memory)?;
        self.reader(coding, bytes, until)
            .and_then(|reader| reader.take(len as u64).read_to_end(&mut decoded))
            .map_err(invalid)?;
        Ok(decoded.into())
    }

    /// How many bytes come out, but no more than one above the limit. The first of them are in
    /// `scratch` then.
    fn measure(
        &mut self,
        coding: Coding,
        bytes: &[u8],
        limit_bytes: usize,
        until: Option<Duration>,
    ) -> io::Result<usize> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        scratch.reserve_exact(SCRATCH_BYTES);
        let counted = self.reader(coding, bytes, until).and_then(|mut reader| {
            let first = SCRATCH_BYTES.min(limit_bytes + 1);
            reader.by_ref().take(first as u64).read_to_end(&mut scratch)?;
            let rest = (limit_bytes + 1 - first) as u64;
            Ok(scratch.len() + io::copy(&mut reader.take(rest), &mut io::sink())? as usize)
        });
        self.scratch = scratch;
        counted
    }

    fn reader<'a>(
        &'a mut self,
        coding: Coding,
        bytes: &'a [u8],
        until: Option<Duration>,
    ) -> io::Result<Box<dyn Read + 'a>> {
        let sent = Metered::new(bytes, until);
        Ok(match coding {
            Coding::Identity => Box::new(bytes),
            Coding::Gzip => Box::new(Metered::new(Members::new(sent), until)),
            Coding::Zstd => {
                // The last body may have been refused in the middle of a frame.
                let ready = self.zstd.reset(ResetDirective::SessionOnly);
                let ready = ready.and_then(|_| self.zstd.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX)));
                ready.map_err(|code| io::Error::other(zstd::zstd_safe::get_error_name(code)))?;
                let decoder = zstd::stream::read::Decoder::with_context(sent, &mut self.zstd);
                Box::new(Metered::new(decoder, until))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::metered::cpu_time;
    use futures_util::{FutureExt as _, TryFutureExt as _};
    use std::io::Write as _;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn reservation() -> Reservation {
        Reservation::alone(1 << 30)
    }

    fn decode(coding: Coding, bytes: &[u8], limit_bytes: usize) -> Result<Bytes, ApiError> {
        refused(Decoder::new().decode(coding, bytes, limit_bytes, None, &mut reservation()))
    }

    fn refused(decoded: Result<Bytes, Stopped>) -> Result<Bytes, ApiError> {
        decoded.map_err(|stopped| match stopped {
            Stopped::Refused(error) => error,
            Stopped::TooDear => unreachable!("it may cost what it costs"),
        })
    }

    #[test]
    fn codings_come_off_within_the_limit() {
        let text = b"{\"a\":1}".repeat(100);
        let zstd = zstd::encode_all(&text[..], 3).unwrap();
        for (coding, body) in [(Coding::Gzip, gzip(&text)), (Coding::Zstd, zstd)] {
            assert_eq!(decode(coding, &body, text.len()).unwrap(), text);
            assert!(matches!(decode(coding, &body, text.len() - 1), Err(ApiError::TooLarge { .. })));
            for cut in [0, 1, body.len() / 2, body.len() - 1] {
                let result = decode(coding, &body[..cut], text.len());
                // An empty zstd input has no frame and so no content.
                assert!(
                    matches!(result, Err(ApiError::InvalidEncoding)) || result.unwrap().is_empty(),
                    "{coding:?} {cut}"
                );
            }
            assert!(matches!(decode(coding, b"{\"a\":1}", 100), Err(ApiError::InvalidEncoding)));
        }
    }

    /// Broken, bodies that need the second pass, or that come after a refused one, are cut or mixed.
    #[test]
    fn one_decoder_takes_bodies_of_any_size_one_after_the_other() {
        let mut decoder = Decoder::new();
        let limit_bytes = 3 * SCRATCH_BYTES;
        for len in [0, 1, SCRATCH_BYTES - 1, SCRATCH_BYTES, SCRATCH_BYTES + 1, limit_bytes, limit_bytes + 1, 7] {
            let content: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let one_frame = zstd::encode_all(&content[..], 3).unwrap();
            let (head, tail) = content.split_at(len / 3);
            let members = [gzip(head), gzip(tail)].concat();
            let frames = [zstd::encode_all(head, 1).unwrap(), zstd::encode_all(tail, 19).unwrap()].concat();
            for (coding, body) in [
                (Coding::Gzip, gzip(&content)),
                (Coding::Gzip, members),
                (Coding::Zstd, one_frame),
                (Coding::Zstd, frames),
                (Coding::Identity, content.clone()),
            ] {
                match refused(decoder.decode(coding, &body, limit_bytes, None, &mut reservation())) {
                    Ok(decoded) => assert!(len <= limit_bytes && decoded == content, "{coding:?} {len}"),
                    Err(error) => {
                        assert!(matches!(error, ApiError::TooLarge { .. }) && len > limit_bytes, "{coding:?} {len}");
                    }
                }
                assert!(decoder.scratch.capacity() <= SCRATCH_BYTES, "the buffer does not grow");
            }
        }
    }

    /// Broken, a body of nothing but beginnings and ends keeps a decoder busy for many times what it is worth.
    #[test]
    fn a_body_has_so_many_members_at_most() {
        let (empty, one) = (gzip(b""), gzip(b"x"));
        let members = |count: usize| [empty.repeat(count - 1), one.clone()].concat();
        assert_eq!(decode(Coding::Gzip, &members(MEMBERS_MAX), 100).unwrap(), b"x"[..]);
        for body in [members(MEMBERS_MAX + 1), one.repeat(MEMBERS_MAX + 1)] {
            let refused = decode(Coding::Gzip, &body, MEMBERS_MAX + 1);
            assert!(matches!(refused, Err(ApiError::TooLarge { .. })), "{refused:?}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let probed =
            runtime.block_on(Decoders::new().probe(Coding::Gzip, members(MEMBERS_MAX + 1), 100, reservation()));
        assert!(matches!(probed, Err(ApiError::TooLarge { .. })));
        assert!(matches!(decode(Coding::Gzip, &[&one[..], b"x"].concat(), 100), Err(ApiError::InvalidEncoding)));
    }

    /// Broken, whoever sends long bodies makes everybody else wait, whose bodies are short.
    #[test]
    fn short_bodies_do_not_wait_for_long_ones() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let decoders = Decoders::new();
            let _held: Vec<_> = (0..decoders.turns.free()).map(|_| decoders.turns.hold()).collect();
            let body = Whole::Owned(gzip(b"{}").into());
            let short = decoders.decode(Coding::Gzip, Held { body, reservation: reservation() }, 100);
            let decoded =
                tokio::time::timeout(std::time::Duration::from_secs(20), short).await.expect("at once").unwrap();
            assert_eq!(*decoded.body, b"{}"[..]);
        });
    }

    /// Bodies of at most [`SHORT_BYTES_MAX`] that take long, each in another way.
    fn short_and_dear() -> Vec<(&'static str, Coding, Vec<u8>)> {
        let (empty, one) = (gzip(b""), gzip(b"{}"));
        let members = [empty.repeat((SHORT_BYTES_MAX - one.len()) / empty.len()), one].concat();
        // A block with codes of its own and nothing in it, again and again (RFC 1951, section 3.2.7): 258 lengths of
        // codes, of which one is for the end of the block, and one for a distance.
        let mut bits = Vec::new();
        let mut put = |value: usize, count: usize| bits.extend((0..count).map(|n| value >> n & 1 == 1));
        let blocks = SHORT_BYTES_MAX * 8 / 110;
        for block in 0..blocks {
            put(usize::from(block + 1 == blocks) | 2 << 1, 3);
            put(0, 5);
            put(0, 5);
            put(14, 4);
            // The lengths of the codes of lengths, in their odd order: 18 has 1, 1 has 1.
            (0..18).for_each(|n| put(usize::from(n == 2 || n == 17), 3));
            // 1 is the code 0, 18 is the code 1: so many times nothing. 138 and 118 of it, and then two of length 1.
            for (code, more) in [(1, Some(127)), (1, Some(107)), (0, None), (0, None)] {
                put(code, 1);
                more.into_iter().for_each(|more| put(more, 7));
            }
            put(0, 1);
        }
        let packed = bits.chunks(8).map(|byte| byte.iter().rev().fold(0, |all, bit| all << 1 | u8::from(*bit)));
        let header = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
        let blocks: Vec<u8> = header.into_iter().chain(packed).chain([0; 8]).collect();
        let frames = zstd::encode_all(&b""[..], 3).unwrap();
        let frames = [frames.repeat(1_700), zstd::encode_all(&b"{}"[..], 3).unwrap()].concat();
        let much = vec![b' '; 8 << 20];
        vec![
            ("members", Coding::Gzip, members),
            ("blocks", Coding::Gzip, blocks),
            ("frames", Coding::Zstd, frames),
            ("much of one byte", Coding::Gzip, gzip(&much)),
        ]
    }

    /// Broken, whoever sends short bodies that take long makes everybody else wait, whose bodies are short and take no time.
    #[test]
    fn short_bodies_that_are_dear_wait_with_the_long_ones() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let decoders = Decoders::new();
            let held: Vec<_> = (0..decoders.turns.free()).map(|_| decoders.turns.hold()).collect();
            let decode = |coding, bytes: Vec<u8>| {
                let body = Whole::Owned(bytes.into());
                decoders.decode(coding, Held { body, reservation: reservation() }, 16 << 20)
            };
            for (what, coding, body) in short_and_dear() {
                assert!(body.len() <= SHORT_BYTES_MAX, "{what}: {}", body.len());
                let until = cpu_time_of(|| Decoder::new().measure(coding, &body, 16 << 20, None)).1;
                if until < SHORT_CPU_MAX * 2 {
                    println!("skip: {what} take only {until:?} here");
                    continue;
                }
                let probed = decoders.probe(coding, body.clone(), 16 << 20, reservation());
                for waits in [
                    decode(coding, body).boxed(),
                    probed.map_ok(|(_, r)| Held { body: Whole::Owned(Bytes::new()), reservation: r }).boxed(),
                ] {
                    let waited = tokio::time::timeout(Duration::from_millis(300), waits).await;
                    assert!(waited.is_err(), "{what} are decoded among the short ones: {until:?}");
                    assert_eq!(decoders.short_turns.free(), SHORT_DECODERS_MAX, "{what}");
                }
            }
            let short = decode(Coding::Gzip, gzip(b"{}"));
            let decoded = tokio::time::timeout(Duration::from_secs(20), short).await.expect("at once").unwrap();
            assert_eq!(*decoded.body, b"{}"[..]);
            // They are no worse than others when a turn is free.
            drop(held);
            let (_, coding, body) = short_and_dear().swap_remove(0);
            assert_eq!(*decode(coding, body).await.unwrap().body, b"{}"[..]);
        });
    }

    fn cpu_time_of<T>(work: impl FnOnce() -> T) -> (T, Duration) {
        let began = cpu_time();
        (work(), cpu_time() - began)
    }

    /// Broken, an honest body that arrives in pieces is refused in the middle.
    #[test]
    fn a_beginning_is_refused_only_for_what_no_end_can_mend() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let content: Vec<u8> = (0..100_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let decoders = Decoders::new();
        let probe = |coding, bytes: &[u8], limit_bytes| {
            runtime.block_on(decoders.probe(coding, bytes.to_vec(), limit_bytes, reservation()))
        };
        for (coding, body) in
            [(Coding::Gzip, gzip(&content)), (Coding::Zstd, zstd::encode_all(&content[..], 3).unwrap())]
        {
            for cut in (0..100).chain((0..body.len()).step_by(4099)).chain([body.len()]) {
                assert!(probe(coding, &body[..cut], content.len()).is_ok(), "{coding:?} {cut}");
            }
            assert!(matches!(probe(coding, &body[..body.len() / 2], 1000), Err(ApiError::TooLarge { .. })));
            assert!(matches!(probe(coding, &[b"x", &body[..1000]].concat(), 1000), Err(ApiError::InvalidEncoding)));
        }
    }

    #[test]
    fn a_bomb_costs_no_more_than_the_limit() {
        let zeros = vec![0; 64 << 20];
        for (coding, body) in [(Coding::Gzip, gzip(&zeros)), (Coding::Zstd, zstd::encode_all(&zeros[..], 19).unwrap())]
        {
            assert!(body.len() < 100_000);
            assert!(matches!(decode(coding, &body, 1 << 20), Err(ApiError::TooLarge { limit_bytes: 1_048_576 })));
        }
    }
}
