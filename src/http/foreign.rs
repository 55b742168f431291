//! Clients that speak another protocol to a port of HTTP/1: what the log says of them.
//!
//! They get 400 like whatever else is no request, and none of them can show it to anybody. So the log says what they
//! want, by whom, and what helps: at once, and then now and then, because a client that does so does it again and again.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::client::{Client, Peer};
use super::complaint::Complaint;

/// So often at most the log says it of each protocol.
const TOLD_EVERY: Duration = Duration::from_secs(600);

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Foreign {
    Tls,
    Http2,
}

impl Foreign {
    /// By the first bytes that are no request.
    pub(super) fn of(begin: &[u8]) -> Option<Foreign> {
        // The record of a handshake, and the preface (RFC 8446, section 5.1; RFC 9113, section 3.4).
        if begin.first() == Some(&0x16) {
            Some(Foreign::Tls)
        } else if begin.starts_with(b"PRI * HTTP/2") {
            Some(Foreign::Http2)
        } else {
            None
        }
    }

    /// Tells that a client was refused for it.
    pub(super) fn tell(self, peer: Peer) {
        static TLS: Mutex<Complaint> = Mutex::new(Complaint::new(TOLD_EVERY));
        static HTTP2: Mutex<Complaint> = Mutex::new(Complaint::new(TOLD_EVERY));
        let (complaint, what) = match self {
            Foreign::Tls => {
                (&TLS, "a client speaks TLS to this port of plain HTTP: give it http://, or let a proxy end TLS")
            }
            Foreign::Http2 => (&HTTP2, "a client speaks HTTP/2 without asking: give it HTTP/1.1"),
        };
        complaint.lock().unwrap_or_else(PoisonError::into_inner).tell(Instant::now(), |connections| {
            tracing::warn!(client = %Client(peer), connections, "{what}");
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, the log would call a typing error TLS, or say nothing of it.
    #[test]
    fn a_protocol_is_known_by_its_first_bytes() {
        for (begin, want) in [
            (&b"\x16\x03\x01\x02\x00"[..], Some(Foreign::Tls)),
            (b"\x16", Some(Foreign::Tls)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Foreign::Http2)),
            (b"PRI * HTTP/1.1\r\n", None),
            (b"GET / HTTP/2.0\r\n", None),
            (b"\x03\x16", None),
            (b"", None),
        ] {
            assert_eq!(Foreign::of(begin), want, "{begin:?}");
        }
    }
}
