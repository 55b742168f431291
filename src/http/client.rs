//! Who sent a request: the peer, or the client a trusted proxy speaks for.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use http::HeaderMap;
use ipnet::IpNet;

use super::fields::{Field, Fields, text};
use super::trusted::TrustedProxies;

/// So many proxies in a row are believed; a chain as long as that is a loop, or a lie.
const PROXIES_MAX: usize = 32;

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Ip(IpAddr),
    /// A Unix socket; counts as a trusted proxy, since the file system guards it.
    Unix,
}

/// The address that limits and logs use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client(pub Peer);

impl Client {
    /// compat: as uvicorn, the rightmost entry of X-Forwarded-For that is no trusted proxy, but
    /// only if the peer is one. Unlike uvicorn, what is no address falls back to the peer, so that
    /// a made-up text is no key of its own.
    pub fn of(peer: Peer, headers: &HeaderMap, trusted: &[IpNet]) -> Client {
        Client::among(peer, headers, &TrustedProxies::new(trusted))
    }

    /// As [`Client::of`], for any head.
    pub(crate) fn among(peer: Peer, fields: &impl Fields, trusted: &TrustedProxies) -> Client {
        let peer_is_trusted = || match peer {
            Peer::Ip(ip) => trusted.contain(ip),
            Peer::Unix => true,
        };
        if !fields.has(Field::XForwardedFor) || !peer_is_trusted() {
            return Client(peer);
        }
        let mut client = peer;
        let mut proxies = 0;
        for line in fields.all(Field::XForwardedFor).rev() {
            let Some(line) = text(line) else { return Client(peer) };
            for entry in line.rsplit(',').map(str::trim).filter(|entry| !entry.is_empty()) {
                let Some(ip) = address(entry) else { return Client(peer) };
                client = Peer::Ip(ip);
                if !trusted.contain(ip) {
                    return Client(client);
                }
                proxies += 1;
                if proxies > PROXIES_MAX {
                    return Client(peer);
                }
            }
        }
        Client(client)
    }

    /// What counts as one client: an IPv4 address, or the /64 of an IPv6 address, which is what
    /// one subscriber gets.
    pub fn key(&self) -> u128 {
        match self.0 {
            Peer::Ip(IpAddr::V4(ip)) => ip.to_ipv6_mapped().to_bits(),
            Peer::Ip(IpAddr::V6(ip)) => ip.to_bits() & !u128::from(u64::MAX),
            Peer::Unix => u128::MAX,
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Peer::Ip(ip) => ip.fmt(f),
            Peer::Unix => f.write_str("unix"),
        }
    }
}

impl Peer {
    /// A peer by its address; an IPv4-mapped IPv6 address is the IPv4 address.
    pub fn from_ip(ip: IpAddr) -> Peer {
        Peer::Ip(ip.to_canonical())
    }
}

/// An address, with or without a port and brackets.
fn address(entry: &str) -> Option<IpAddr> {
    let bare = match entry.strip_prefix('[') {
        Some(rest) => return rest.split_once(']')?.0.parse::<Ipv6Addr>().ok().map(|ip| IpAddr::V6(ip).to_canonical()),
        None if entry.matches(':').count() == 1 => entry.split_once(':')?.0,
        None => entry,
    };
    bare.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, lines: &[&str]) -> String {
        let trusted: Vec<IpNet> =
            ["127.0.0.1/32", "::1/128", "10.0.0.0/8"].iter().map(|n| n.parse().unwrap()).collect();
        let peer = peer.parse().map_or(Peer::Unix, Peer::from_ip);
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        Client::of(peer, &headers, &trusted).to_string()
    }

    #[test]
    fn only_trusted_peers_are_believed_and_only_from_the_right() {
        assert_eq!(client("192.0.2.1", &["203.0.113.1"]), "192.0.2.1");
        assert_eq!(client("127.0.0.1", &[]), "127.0.0.1");
        assert_eq!(client("127.0.0.1", &["203.0.113.1"]), "203.0.113.1");
        assert_eq!(client("127.0.0.1", &["1.1.1.1, 203.0.113.1, 10.1.1.1"]), "203.0.113.1");
        assert_eq!(client("127.0.0.1", &["1.1.1.1", "203.0.113.1", "10.1.1.1"]), "203.0.113.1");
        assert_eq!(client("127.0.0.1", &["10.2.2.2, 10.1.1.1"]), "10.2.2.2");
        assert_eq!(client("127.0.0.1", &["203.0.113.1, unknown"]), "127.0.0.1");
        assert_eq!(client("127.0.0.1", &["203.0.113.1:1234"]), "203.0.113.1");
        assert_eq!(client("::1", &["[2001:db8::1]:443"]), "2001:db8::1");
        assert_eq!(client("::ffff:127.0.0.1", &["::ffff:203.0.113.1"]), "203.0.113.1");
        assert_eq!(client("unix", &["203.0.113.1"]), "203.0.113.1");
        assert_eq!(client("unix", &[]), "unix");
    }

    /// Broken, a header of a thousand proxies costs a thousand looks, or a chain that an honest installation has is
    /// not believed.
    #[test]
    fn a_chain_of_proxies_has_an_end() {
        let chain = |proxies: usize| format!("203.0.113.1{}", ", 10.1.1.1".repeat(proxies));
        assert_eq!(client("127.0.0.1", &[&chain(PROXIES_MAX)]), "203.0.113.1");
        assert_eq!(client("127.0.0.1", &[&chain(PROXIES_MAX + 1)]), "127.0.0.1");
        let lines = vec!["10.1.1.1"; PROXIES_MAX + 1];
        assert_eq!(client("127.0.0.1", &[&["203.0.113.1"], &lines[..]].concat()), "127.0.0.1");
    }

    #[test]
    fn one_subscriber_is_one_client() {
        let key = |ip: &str| Client(Peer::from_ip(ip.parse().unwrap())).key();
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("::1"), Client(Peer::Unix).key());
    }
}
