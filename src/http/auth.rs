//! X-Auth: is this one of our secrets, and may it do this? And: is this client guessing?

use std::time::Instant;

use axum::extract::Request;
use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::edge::Caller;
use super::error::ApiError;
use super::limits::Limiter;
use super::state::AppState;
use crate::config::Tokens;
use crate::rate::RateLimits;
use crate::token::{Scope, Scopes};

const X_AUTH: HeaderName = HeaderName::from_static("x-auth");
/// How long a client that showed a right token is known for it.
const ESTABLISHED_FOR: &str = "1/hour";

/// Checks tokens.
pub struct Auth {
    known: Vec<Known>,
    /// Wrong tokens per client.
    failures: Limiter,
    /// Which client has shown which right token lately.
    established: Limiter,
}

/// A token that is accepted.
struct Known {
    digest: [u8; 32],
    scopes: Scopes,
}

/// Passes a request to a handler behind the router whose token may do what `need` says.
///
/// # Errors
/// As [`Auth::check`].
pub(crate) fn authorise(state: &AppState, request: &Request, need: Scope) -> Result<(), ApiError> {
    state.auth.check(request.headers(), Caller::of(request.extensions()), need)
}

impl Auth {
    /// Accepts any of `tokens` and, for everything, any of `admin`; each client may be wrong as often
    /// as `failures` allows.
    pub fn new(tokens: &Tokens, admin: &Tokens, failures: RateLimits) -> Auth {
        let of = |tokens: &Tokens, scopes: Scopes| -> Vec<Known> {
            let known = |token: &String| Known { digest: Sha256::digest(token.as_bytes()).into(), scopes };
            tokens.expose().iter().map(known).collect()
        };
        // Of a secret that is in both the last place counts.
        let known = of(tokens, Scopes::SERVICE).into_iter().chain(of(admin, Scopes::ALL)).collect();
        let established = RateLimits::parse(ESTABLISHED_FOR).expect("a constant of the grammar");
        Auth { known, failures: Limiter::new(failures), established: Limiter::new(established) }
    }

    /// Passes a request that carries exactly one X-Auth with a right token that may do what `need`
    /// says.
    ///
    /// A client with too many wrong tokens is refused before its token is looked at, so that
    /// guessing costs time; but a token that this client used before is let through all the same,
    /// so that one misconfigured producer does not lock out its neighbours behind the same address.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`], or [`ApiError::TokenGuessing`] when the client was wrong too
    /// often; [`ApiError::Forbidden`] for a right token that may not do this.
    pub(crate) fn check(&self, headers: &HeaderMap, caller: &Caller, need: Scope) -> Result<(), ApiError> {
        let index = self.token(headers, caller)?;
        if self.known[index as usize].scopes.has(need) { Ok(()) } else { Err(ApiError::Forbidden) }
    }

    /// Whose token it is.
    fn token(&self, headers: &HeaderMap, caller: &Caller) -> Result<u32, ApiError> {
        let (key, now) = (caller.client.key(), caller.started);
        let suspect = self.failures.peek(key, now).err();
        match (self.token_index(headers), suspect) {
            (Some(index), None) => {
                if caller.conn.shows_token_anew(key, index) {
                    self.established.remember((key, index), now);
                }
                Ok(index)
            }
            (Some(index), Some(_)) if self.established.knows((key, index), now) => {
                self.established.remember((key, index), now);
                Ok(index)
            }
            (_, Some(standing)) => Err(ApiError::TokenGuessing { retry_after_s: standing.retry_after_s() }),
            (None, None) => {
                // Counted; the peek above has said that it passes, and a race only counts less.
                let _ = self.failures.hit(key, now);
                Err(ApiError::Unauthorized)
            }
        }
    }

    /// Forgets clients that have been quiet.
    pub(crate) fn sweep(&self, now: Instant) {
        self.failures.sweep(now);
        self.established.sweep(now);
    }

    /// Which token the request carries. Looks at all of them, in constant time, over digests of
    /// one length.
    fn token_index(&self, headers: &HeaderMap) -> Option<u32> {
        let mut values = headers.get_all(X_AUTH).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let digest: [u8; 32] = Sha256::digest(value.as_bytes()).into();
        let mut found = Choice::from(0);
        let mut index = 0;
        for (i, known) in self.known.iter().enumerate() {
            let equal = known.digest.ct_eq(&digest);
            index.conditional_assign(&(i as u32), equal);
            found |= equal;
        }
        bool::from(found).then_some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::client::{Client, Peer};
    use crate::http::conn::Connections;

    fn auth() -> Auth {
        let tokens = Tokens::new(vec!["one".into(), "tökén".into()]);
        Auth::new(&tokens, &Tokens::new(vec!["root".into()]), RateLimits::parse("3/minute").unwrap())
    }

    fn check(auth: &Auth, tokens: &[&[u8]], ip: &str) -> Result<(), u16> {
        check_for(auth, tokens, ip, Scope::Ingest)
    }

    fn check_for(auth: &Auth, tokens: &[&[u8]], ip: &str, need: Scope) -> Result<(), u16> {
        let mut headers = HeaderMap::new();
        for token in tokens {
            headers.append(X_AUTH, http::HeaderValue::from_bytes(token).unwrap());
        }
        let (_, conn) = Connections::default().add();
        let caller = Caller { client: Client(Peer::from_ip(ip.parse().unwrap())), conn, started: Instant::now() };
        auth.check(&headers, &caller, need).map_err(|e| e.status().as_u16())
    }

    #[test]
    fn exactly_one_right_token_passes() {
        for (tokens, want) in [
            (&[b"one".as_slice()][..], Ok(())),
            (&["tökén".as_bytes()], Ok(())),
            (&[], Err(401)),
            (&[b""], Err(401)),
            (&[b"on"], Err(401)),
            (&[b"ONE"], Err(401)),
            (&[b"one", b"one"], Err(401)),
            (&[b"one", b"two"], Err(401)),
            (&[b"\xff\xfe"], Err(401)),
            (&[b"one,tok"], Err(401)),
        ] {
            assert_eq!(check(&auth(), tokens, "192.0.2.1"), want, "{tokens:?}");
        }
    }

    /// Broken, every producer could change how the service runs, or an admin could not.
    #[test]
    fn a_token_may_do_what_its_scopes_say() {
        let auth = auth();
        for need in [Scope::Ingest, Scope::Read, Scope::Admin] {
            assert_eq!(check_for(&auth, &[b"root"], "192.0.2.1", need), Ok(()), "{need:?}");
            let service = if need == Scope::Admin { Err(403) } else { Ok(()) };
            assert_eq!(check_for(&auth, &[b"one"], "192.0.2.1", need), service, "{need:?}");
            assert_eq!(check_for(&auth, &[b"wrong"], "192.0.2.2", need), Err(401), "{need:?}");
        }
    }

    #[test]
    fn guessing_costs_time_and_hurts_no_neighbour() {
        let auth = auth();
        assert_eq!(check(&auth, &[b"one"], "192.0.2.1"), Ok(()));
        for _ in 0..3 {
            assert_eq!(check(&auth, &[b"guess"], "192.0.2.1"), Err(401));
        }
        assert_eq!(check(&auth, &[b"guess"], "192.0.2.1"), Err(429));
        assert_eq!(check(&auth, &["tökén".as_bytes()], "192.0.2.1"), Err(429), "a right guess does not show");
        assert_eq!(check(&auth, &[b"one"], "192.0.2.1"), Ok(()), "the token in use goes on");
        assert_eq!(check(&auth, &[b"guess"], "192.0.2.2"), Err(401), "another client has its own count");
    }

    /// Broken, every client that ever showed a token would be remembered for ever.
    #[test]
    fn quiet_clients_are_forgotten() {
        let auth = auth();
        for ip in ["192.0.2.1", "192.0.2.2"] {
            assert_eq!(check(&auth, &[b"one"], ip), Ok(()));
            assert_eq!(check(&auth, &[b"guess"], ip), Err(401));
        }
        let now = Instant::now();
        for (later_s, failures, established) in [(30, 2, 2), (61, 0, 2), (3601, 0, 0)] {
            auth.sweep(now + std::time::Duration::from_secs(later_s));
            assert_eq!((auth.failures.keys(), auth.established.keys()), (failures, established), "{later_s} s");
        }
    }

    /// Welch's t between two sets of times, without the slowest tenth of both: those are interrupts.
    fn welch_t(first: &[u32], second: &[u32]) -> f64 {
        let mut all: Vec<u32> = first.iter().chain(second).copied().collect();
        let cut = all.len() * 9 / 10;
        let cut = *all.select_nth_unstable(cut).1;
        let moments = |times: &[u32]| {
            let kept: Vec<f64> = times.iter().filter(|t| **t <= cut).map(|t| f64::from(*t)).collect();
            let n = kept.len() as f64;
            let mean = kept.iter().sum::<f64>() / n;
            (mean, kept.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / (n - 1.0) / n)
        };
        let ((m1, v1), (m2, v2)) = (moments(first), moments(second));
        (m1 - m2) / (v1 + v2).sqrt()
    }

    /// Times `samples` comparisons of two kinds in random order; a kind is a guess and the token that
    /// is configured. All of them use the same memory, so that only the comparison can differ.
    fn timed(kinds: [(&[u8], &str); 2], samples: usize, rng: &mut u64) -> f64 {
        let none = Tokens::new(Vec::new());
        let mut auth = Auth::new(&Tokens::new(vec!["x".into()]), &none, RateLimits::parse("off").unwrap());
        let built = kinds.map(|(_, token)| {
            Auth::new(&Tokens::new(vec![token.into()]), &none, RateLimits::default()).known[0].digest
        });
        let mut times = [const { Vec::<u32>::new() }; 2];
        while times.iter().map(Vec::len).sum::<usize>() < samples {
            // xorshift: which kind is next must not follow any pattern.
            *rng ^= *rng << 13;
            *rng ^= *rng >> 7;
            *rng ^= *rng << 17;
            let kind = (*rng >> 40) as usize & 1;
            auth.known[0].digest = built[kind];
            let mut headers = HeaderMap::with_capacity(1);
            headers.insert(X_AUTH, http::HeaderValue::from_bytes(kinds[kind].0).unwrap());
            let started = Instant::now();
            let found = std::hint::black_box(&auth).token_index(std::hint::black_box(&headers));
            times[kind].push(started.elapsed().as_nanos() as u32);
            assert_eq!(found, None);
        }
        welch_t(&times[0], &times[1])
    }

    /// Broken, a guesser finds the token byte by byte, or its length, by the time that refusals take.
    ///
    /// `TIMING_SAMPLES=1000000 cargo test --release --lib time_of_a_refusal -- --nocapture` is the
    /// measurement; the default is a short form of it.
    #[test]
    fn the_time_of_a_refusal_tells_nothing_of_the_token() {
        let samples = std::env::var("TIMING_SAMPLES").map_or(50_000, |text| text.parse().unwrap());
        let mut rng = crate::rng::random_u64() | 1;
        println!("seed {rng}");
        let token = "abcdefghijklmnopqrstuvwxyz0123456789-ABCDEFGHIJKL";
        let longer = format!("{token}{token}{token}");
        let first = format!("_{}", &token[1..]);
        let last = format!("{}_", &token[..token.len() - 1]);
        for (name, kinds) in [
            ("wrong first byte, wrong last byte", [(first.as_bytes(), token), (last.as_bytes(), token)]),
            ("all but one byte right, all wrong", [(last.as_bytes(), token), (&[b'_'; 49], token)]),
            ("a token of the guess's length, a longer one", [(last.as_bytes(), token), (last.as_bytes(), &longer)]),
            ("one token, the same one", [(first.as_bytes(), token), (first.as_bytes(), token)]),
        ] {
            // A machine that is busy with something else may disturb one measurement, not three.
            let mut t = Vec::new();
            while t.len() < 3 && t.last().is_none_or(|t: &f64| t.abs() >= 4.5) {
                t.push(timed(kinds, samples, &mut rng));
            }
            println!("{name}: t {t:.2?}, {samples} samples each");
            let least = t.iter().fold(f64::INFINITY, |least, t| least.min(t.abs()));
            assert!(least < 4.5, "{name}: {t:?}");
        }
    }
}
