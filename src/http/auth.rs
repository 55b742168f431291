//! X-Auth or Bearer: is this one of our tokens, and may it do this? And: is this client guessing?

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use axum::extract::Request;
use http::HeaderMap;

use super::edge::{Call, Caller};
use super::error::{ApiError, Barrier};
use super::fields::{Field, Fields};
use super::limits::Limiter;
use super::state::AppState;
use crate::domain::Domain;
use crate::rate::RateLimits;
use crate::token::{Digest, Grant, Known, Scope, TokenSet, Transport};

const BEARER: &[u8] = b"bearer";

/// Checks tokens.
pub struct Auth {
    /// All that are accepted. A request looks once and keeps to what it saw.
    accepted: ArcSwap<TokenSet>,
    /// Where they come from; a change of one leaves the other.
    sources: Mutex<Sources>,
    /// Wrong tokens per client.
    failures: ArcSwap<Limiter>,
}

#[derive(Default)]
struct Sources {
    shared: TokenSet,
    stored: TokenSet,
}

/// What a request was let in with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pass(Option<Arc<Grant>>);

/// Where [`authorise`] leaves the pass for the access log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Admitted(pub Arc<OnceLock<Pass>>);

/// What a request has shown.
enum Shown<'a> {
    Right(&'a Known),
    Expired,
    Wrong,
}

/// Passes a request to a handler behind the router whose token may do what `need` says.
///
/// # Errors
/// As [`Auth::check`].
pub(crate) fn authorise(state: &AppState, request: &Request, need: Scope) -> Result<Pass, ApiError> {
    let pass = state.auth.check(request.headers(), &Caller::of(request.extensions()).call(), need)?;
    if let Some(admitted) = request.extensions().get::<Admitted>() {
        // A handler asks once.
        let _ = admitted.0.set(pass.clone());
    }
    Ok(pass)
}

/// Who it is, for the audit log: the name of the token, else the beginning of its digest.
pub(crate) fn actor(pass: &Pass, headers: &HeaderMap) -> String {
    match (pass.name(), credential(headers)) {
        (Some(name), _) => name.to_owned(),
        (None, Some((secret, _))) => format!("sha256:{:?}", Digest::of(secret)),
        (None, None) => "unknown".to_owned(),
    }
}

impl Auth {
    /// Accepts the tokens of `shared`; each client may be wrong as often as `failures` allows.
    pub fn new(shared: TokenSet, failures: RateLimits) -> Auth {
        let auth = Auth {
            accepted: ArcSwap::default(),
            sources: Mutex::default(),
            failures: ArcSwap::from_pointee(Limiter::new(failures)),
        };
        auth.replace(shared);
        auth
    }

    /// From now on `shared` are the shared tokens. Those of the store stay, and so does what is known
    /// about clients. For requests that come after it has returned.
    pub fn replace(&self, shared: TokenSet) {
        self.change(|sources| sources.shared = shared);
    }

    /// From now on `stored` are the tokens of the store. The shared ones stay.
    pub fn replace_stored(&self, stored: TokenSet) {
        self.change(|sources| sources.stored = stored);
    }

    /// From now on each client may be wrong as often as `failures` allows; all counts begin anew.
    pub fn limit(&self, failures: RateLimits) {
        self.failures.store(Arc::new(Limiter::new(failures)));
    }

    fn change(&self, change: impl FnOnce(&mut Sources)) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut sources);
        // What the store says of a secret wins: it is narrower, and it can be revoked.
        self.accepted.store(Arc::new(sources.shared.with(&sources.stored)));
    }

    /// Passes a request that carries exactly one right token that may do what `need` says.
    ///
    /// A client with too many wrong tokens is refused before its token is looked at, so that guessing costs
    /// time and a right guess does not show. But a connection on which this client has shown a right token
    /// before goes on with that token (docs/adr/0024): whoever sends there knows it already, so nothing is
    /// learned. No other connection does, not even with a token that is in use behind the same address.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`] and [`ApiError::TokenExpired`], or [`ApiError::TokenGuessing`] when
    /// the client was wrong too often; [`ApiError::Forbidden`] for a right token that may not do this.
    pub(crate) fn check(&self, fields: &impl Fields, caller: &Call<'_>, need: Scope) -> Result<Pass, ApiError> {
        let accepted = self.accepted.load();
        let known = self.known(&accepted, fields, caller)?;
        if known.may(need) { Ok(Pass(known.grant.clone())) } else { Err(ApiError::Forbidden(Barrier::Scope)) }
    }

    /// Whose token it is.
    fn known<'a>(
        &self,
        accepted: &'a TokenSet,
        fields: &impl Fields,
        caller: &Call<'_>,
    ) -> Result<&'a Known, ApiError> {
        let (client, now) = (caller.client.key(), caller.started);
        let failures = self.failures.load();
        if let Err(standing) = failures.peek(client, now) {
            let refused = ApiError::TokenGuessing { retry_after_s: standing.retry_after_s() };
            // Before anything is made of the secret, even its digest. Who comes through a proxy may share
            // its connections with whoever guesses.
            if !caller.direct || !caller.conn.has_shown_right_token() {
                return Err(refused);
            }
            return match shown(accepted, fields, |secret| caller.conn.digest_of(secret)) {
                Shown::Right(known) if caller.conn.has_shown(client, known.digest.key()) => Ok(known),
                _ => Err(refused),
            };
        }
        match shown(accepted, fields, |secret| caller.conn.digest_of(secret)) {
            Shown::Right(known) => {
                caller.conn.shows_right_token(client, known.digest.key());
                Ok(known)
            }
            shown => {
                // Counted; the peek above has said that it passes, and a race only counts less.
                let _ = failures.hit(client, now);
                Err(if matches!(shown, Shown::Expired) { ApiError::TokenExpired } else { ApiError::Unauthorized })
            }
        }
    }

    /// How many tokens of the store end soon.
    pub fn expiring(&self, now: SystemTime) -> usize {
        self.accepted.load().expiring(unix_s(now))
    }

    /// Forgets clients that have been quiet.
    pub(crate) fn sweep(&self, now: Instant) {
        self.failures.load().sweep(now);
    }
}

impl Pass {
    /// The name of the token; a shared one has none.
    pub(crate) fn name(&self) -> Option<&str> {
        self.0.as_ref().map(|grant| grant.name.as_str())
    }

    /// Passes a request that is about `domain`.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`] when the token is not for that domain.
    pub(crate) fn check_domain(&self, domain: &Domain) -> Result<(), ApiError> {
        match &self.0 {
            Some(grant) if !grant.allows(domain) => Err(ApiError::Forbidden(Barrier::TokenDomain)),
            _ => Ok(()),
        }
    }

    /// The domain of events whose request names none.
    pub(crate) fn default_domain(&self) -> Option<&Domain> {
        self.0.as_ref()?.default_domain.as_ref()
    }
}

fn shown<'a>(accepted: &'a TokenSet, fields: &impl Fields, digest: impl FnOnce(&[u8]) -> Digest) -> Shown<'a> {
    let Some((secret, transport)) = credential(fields) else { return Shown::Wrong };
    match accepted.find(&digest(secret)) {
        Some(known) if known.x_auth_only && transport != Transport::XAuth => Shown::Wrong,
        // The clock is asked only for a token that has an end.
        Some(known) if known.expires_s.is_some_and(|end_s| end_s <= now_s()) => Shown::Expired,
        Some(known) => Shown::Right(known),
        None => Shown::Wrong,
    }
}

/// The one secret that a request carries. Two are none, whatever they are: a proxy in front may have
/// looked at the other. Authorization of another scheme is between the client and that proxy.
fn credential(fields: &impl Fields) -> Option<(&[u8], Transport)> {
    let mut shown = fields.all(Field::XAuth);
    let x_auth = shown.next();
    if shown.next().is_some() {
        return None;
    }
    if !fields.has(Field::Authorization) {
        return Some((x_auth?, Transport::XAuth));
    }
    let authorizations = || fields.all(Field::Authorization);
    let secret = authorizations().find_map(bearer);
    match (x_auth, secret) {
        (Some(secret), None) => Some((secret, Transport::XAuth)),
        (None, Some(secret)) if authorizations().count() == 1 => Some((secret, Transport::Bearer)),
        _ => None,
    }
}

/// What follows the scheme `Bearer` (RFC 6750, section 2.1), which may be written in any case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(BEARER.len())?;
    let ends = rest.first().is_none_or(|byte| *byte == b' ' || *byte == b'\t');
    (ends && scheme.eq_ignore_ascii_case(BEARER)).then(|| rest.trim_ascii())
}

fn now_s() -> u64 {
    unix_s(SystemTime::now())
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::client::{Client, Peer};
    use crate::http::conn::ConnState;
    use crate::http::connections::Connections;
    use crate::token::LastDigest;

    const X_AUTH: &str = "x-auth";

    fn auth() -> Auth {
        let shared = TokenSet::shared(&["one".into(), "tökén".into()], &["root".into()]);
        Auth::new(shared, RateLimits::parse("3/minute").unwrap())
    }

    fn check(auth: &Auth, tokens: &[&[u8]], ip: &str) -> Result<(), u16> {
        check_for(auth, tokens, ip, Scope::Ingest)
    }

    /// On a connection of its own.
    fn check_for(auth: &Auth, tokens: &[&[u8]], ip: &str, need: Scope) -> Result<(), u16> {
        check_on(auth, &connection(), tokens, (ip, true), need)
    }

    fn connection() -> Arc<ConnState> {
        Connections::default().add().1
    }

    fn check_on(
        auth: &Auth,
        conn: &ConnState,
        tokens: &[&[u8]],
        (ip, direct): (&str, bool),
        need: Scope,
    ) -> Result<(), u16> {
        let mut headers = HeaderMap::new();
        for token in tokens {
            headers.append(X_AUTH, http::HeaderValue::from_bytes(token).unwrap());
        }
        let client = Client(Peer::from_ip(ip.parse().unwrap()));
        let caller = Call { client, direct, conn, started: Instant::now() };
        auth.check(&headers, &caller, need).map(|_| ()).map_err(|e| e.status().as_u16())
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

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    /// Broken, a proxy and the service could look at different tokens, or Bearer would not work.
    #[test]
    fn a_request_carries_one_secret_or_none() {
        const BASIC: (&str, &str) = ("authorization", "Basic dTpw");
        let x_auth = |secret: &'static str| Some((secret, Transport::XAuth));
        let bearer = |secret: &'static str| Some((secret, Transport::Bearer));
        for (fields, want) in [
            (&[][..], None),
            (&[("x-auth", "s")], x_auth("s")),
            (&[("authorization", "Bearer s")], bearer("s")),
            (&[("authorization", "bEARER  s")], bearer("s")),
            (&[("authorization", "Bearer")], bearer("")),
            (&[("authorization", "Bearers s")], None),
            (&[("authorization", "Bearer\u{e4} s")], None),
            (&[("authorization", "Bea")], None),
            (&[("authorization", "s")], None),
            (&[BASIC], None),
            (&[("x-auth", "s"), BASIC], x_auth("s")),
            (&[("x-auth", "s"), BASIC, BASIC], x_auth("s")),
            (&[("x-auth", "s"), ("authorization", "Bearer s")], None),
            (&[("x-auth", "s"), ("authorization", "Bearer")], None),
            (&[("x-auth", "s"), BASIC, ("authorization", "Bearer s")], None),
            (&[("authorization", "Bearer s"), ("authorization", "Bearer s")], None),
            (&[("authorization", "Bearer s"), BASIC], None),
            (&[BASIC, ("authorization", "Bearer s")], None),
        ] {
            let headers = headers(fields);
            let got = credential(&headers).map(|(secret, from)| (std::str::from_utf8(secret).unwrap(), from));
            assert_eq!(got, want, "{fields:?}");
        }
    }

    /// Broken, the original's secret would be taken where the original refuses it, or no other by Bearer.
    #[test]
    fn the_shared_secret_counts_in_x_auth_only() {
        let accepted = TokenSet::shared(&["one".into()], &["root".into()]);
        for (name, value, right) in [
            ("x-auth", "one", true),
            ("authorization", "Bearer one", false),
            ("x-auth", "root", true),
            ("authorization", "Bearer root", true),
        ] {
            let headers = headers(&[(name, value)]);
            assert_eq!(matches!(shown(&accepted, &headers, Digest::of), Shown::Right(_)), right, "{name}: {value}");
        }
    }

    fn stored(secret: &str, expires_s: Option<u64>) -> TokenSet {
        let grant = Grant { name: "ci".into(), domains: Vec::new(), default_domain: None };
        TokenSet::new(vec![Known {
            digest: Digest::of(secret.as_bytes()),
            scopes: [Scope::Ingest].into_iter().collect(),
            expires_s,
            superseded: false,
            grant: Some(Arc::new(grant)),
            x_auth_only: false,
        }])
    }

    /// Broken, a change of the settings would drop the tokens of the store, or the other way round.
    #[test]
    fn each_source_is_replaced_on_its_own() {
        let auth = auth();
        auth.replace_stored(stored("lst", None));
        assert_eq!([b"one".as_slice(), b"lst"].map(|t| check(&auth, &[t], "192.0.2.1")), [Ok(()), Ok(())]);
        auth.replace(TokenSet::shared(&["two".into()], &[]));
        assert_eq!([b"two".as_slice(), b"lst"].map(|t| check(&auth, &[t], "192.0.2.1")), [Ok(()), Ok(())]);
        assert_eq!([b"one".as_slice(), b"root"].map(|t| check(&auth, &[t], "192.0.2.2")), [Err(401), Err(401)]);
        auth.replace_stored(TokenSet::default());
        assert_eq!(check(&auth, &[b"lst"], "192.0.2.3"), Err(401));
        assert_eq!(check(&auth, &[b"two"], "192.0.2.3"), Ok(()));
        // A shared secret that is also in the store may only do what the store says.
        auth.replace_stored(stored("two", None));
        assert_eq!(check_for(&auth, &[b"two"], "192.0.2.3", Scope::Read), Err(403));
    }

    /// Broken, a client in good standing would be locked out by its neighbours because somebody
    /// changed another token, or would be let in with one that it never showed.
    #[test]
    fn a_change_mixes_up_nobody() {
        let (auth, conn) = (auth(), connection());
        let check_here = |token: &str| check_on(&auth, &conn, &[token.as_bytes()], ("192.0.2.1", true), Scope::Ingest);
        assert_eq!(check_here("tökén"), Ok(()));
        auth.replace(TokenSet::shared(&["new".into(), "tökén".into(), "one".into()], &[]));
        for _ in 0..3 {
            assert_eq!(check(&auth, &[b"guess"], "192.0.2.1"), Err(401));
        }
        assert_eq!(check_here("tökén"), Ok(()));
        assert_eq!((check_here("new"), check_here("one")), (Err(429), Err(429)));
        auth.replace(TokenSet::shared(&["one".into()], &[]));
        assert_eq!(check_here("tökén"), Err(429), "it was taken away");
    }

    /// Broken, a token would be good for longer than it was given for, or for less.
    #[test]
    fn a_token_ends_at_its_second() {
        let auth = auth();
        let expired = |expires_s| {
            auth.replace_stored(stored("lst", Some(expires_s)));
            let accepted = auth.accepted.load();
            matches!(shown(&accepted, &headers(&[("x-auth", "lst")]), Digest::of), Shown::Expired)
        };
        assert!(expired(0) && expired(now_s()));
        assert!(!expired(now_s() + 60) && !expired(u64::MAX));
        auth.replace_stored(stored("lst", Some(1)));
        assert_eq!(check(&auth, &[b"lst"], "192.0.2.1"), Err(401));
        for _ in 0..2 {
            assert_eq!(check(&auth, &[b"guess"], "192.0.2.1"), Err(401));
        }
        assert_eq!(check(&auth, &[b"lst"], "192.0.2.1"), Err(429), "an expired one counts as wrong");
    }

    /// Broken, whoever shares an address with a producer could guess its token at full speed, because a
    /// right guess is answered otherwise; or its open connections would be locked out with the guesser.
    #[test]
    fn guessing_costs_time_and_hurts_no_open_connection() {
        let (auth, conn) = (auth(), connection());
        let check_here = |token: &[u8], ip, direct| check_on(&auth, &conn, &[token], (ip, direct), Scope::Ingest);
        assert_eq!(check_here(b"one", "192.0.2.1", true), Ok(()));
        for _ in 0..3 {
            assert_eq!(check(&auth, &[b"guess"], "192.0.2.1"), Err(401));
        }
        let answers = [b"guess".as_slice(), b"one", "tökén".as_bytes(), b""].map(|t| check(&auth, &[t], "192.0.2.1"));
        assert_eq!(answers, [Err(429); 4], "no right guess shows, not even of a token in use");
        assert_eq!(check(&auth, &[], "192.0.2.1"), Err(429));
        assert_eq!(check_here(b"one", "192.0.2.1", true), Ok(()), "the connection in use goes on");
        assert_eq!(check_here("tökén".as_bytes(), "192.0.2.1", true), Err(429), "with its own token only");
        assert_eq!(check_here(b"one", "192.0.2.1", false), Err(429), "a proxy's connection is anybody's");
        assert_eq!(check(&auth, &[b"guess"], "192.0.2.2"), Err(401), "another client has its own count");
        assert_eq!(check_here(b"two", "192.0.2.2", true), Err(401), "and nothing of this connection's");
    }

    /// Broken, a connection that showed wrong tokens only, or belongs to another client, would be let
    /// guess.
    #[test]
    fn only_a_right_token_makes_an_exception() {
        let (auth, conn) = (auth(), connection());
        for _ in 0..3 {
            assert_eq!(check_on(&auth, &conn, &[b"guess"], ("192.0.2.1", true), Scope::Ingest), Err(401));
        }
        assert_eq!(check_on(&auth, &conn, &[b"one"], ("192.0.2.1", true), Scope::Ingest), Err(429));
        assert_eq!(check_on(&auth, &conn, &[b"one"], ("192.0.2.2", true), Scope::Ingest), Ok(()));
        assert_eq!(check_on(&auth, &conn, &[b"one"], ("192.0.2.1", true), Scope::Ingest), Err(429));
    }

    /// Broken, every client that ever showed a wrong token would be remembered for ever.
    #[test]
    fn quiet_clients_are_forgotten() {
        let auth = auth();
        for ip in ["192.0.2.1", "192.0.2.2"] {
            assert_eq!(check(&auth, &[b"guess"], ip), Err(401));
        }
        let now = Instant::now();
        for (later_s, failures) in [(30, 2), (61, 0)] {
            auth.sweep(now + std::time::Duration::from_secs(later_s));
            assert_eq!(auth.failures.load().keys(), failures, "{later_s} s");
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
        let digests = kinds.map(|(_, token)| Digest::of(token.as_bytes()));
        // The connection is one on which the right token was shown, as behind a proxy.
        let remembered = kinds.map(|(_, token)| {
            let mut last = LastDigest::default();
            last.of(token.as_bytes());
            last
        });
        let mut accepted = TokenSet::shared(&["x".to_owned()], &[]);
        let mut times = [const { Vec::<u32>::new() }; 2];
        while times.iter().map(Vec::len).sum::<usize>() < samples {
            // xorshift: which kind is next must not follow any pattern.
            *rng ^= *rng << 13;
            *rng ^= *rng >> 7;
            *rng ^= *rng << 17;
            let kind = (*rng >> 40) as usize & 1;
            accepted.set_only_digest(digests[kind]);
            let mut last = remembered[kind].clone();
            let mut headers = HeaderMap::with_capacity(1);
            headers.insert(X_AUTH, http::HeaderValue::from_bytes(kinds[kind].0).unwrap());
            let started = Instant::now();
            let digest = |secret: &[u8]| std::hint::black_box(&mut last).of(secret);
            let shown = shown(std::hint::black_box(&accepted), std::hint::black_box(&headers), digest);
            times[kind].push(started.elapsed().as_nanos() as u32);
            assert!(matches!(shown, Shown::Wrong));
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
