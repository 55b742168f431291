//! `TrustedProxies`: whose word about the client is taken.

use std::net::IpAddr;

use ipnet::IpNet;

/// Addresses as ranges that do not overlap, in their order: a look costs the same for ten networks and for ten thousand, because
/// X-Forwarded-For makes many of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrustedProxies {
    v4: Box<[Range]>,
    v6: Box<[Range]>,
}

/// The first and the last address.
type Range = (u128, u128);

impl TrustedProxies {
    pub(crate) fn new(networks: &[IpNet]) -> TrustedProxies {
        let of = |v4: bool| {
            let same = networks.iter().filter(|network| network.addr().is_ipv4() == v4);
            merged(same.map(|network| (number(network.network()), number(network.broadcast()))).collect())
        };
        TrustedProxies { v4: of(true), v6: of(false) }
    }

    pub(crate) fn contain(&self, ip: IpAddr) -> bool {
        let ranges = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        let ip = number(ip);
        let behind = ranges.partition_point(|(first, _)| *first <= ip);
        behind.checked_sub(1).is_some_and(|at| ip <= ranges[at].1)
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn merged(mut ranges: Vec<Range>) -> Box<[Range]> {
    ranges.sort_unstable();
    let mut apart: Vec<Range> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match apart.last_mut() {
            Some(before) if first <= before.1 => before.1 = before.1.max(last),
            _ => apart.push((first, last)),
        }
    }
    apart.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network() -> impl Strategy<Value = IpNet> {
        let v4 = (0..64u32, 24..=32u8)
            .prop_map(|(host, len)| IpNet::new(IpAddr::V4((0x0a00_0000 + host).into()), len).unwrap());
        let v6 = (0..64u128, 120..=128u8)
            .prop_map(|(host, len)| IpNet::new(IpAddr::V6((0xfd << 120 | host).into()), len).unwrap());
        prop_oneof![4 => v4, 4 => v6, 1 => Just("0.0.0.0/0".parse().unwrap()), 1 => Just("::/0".parse().unwrap())]
    }

    proptest! {
        /// Broken, a stranger could speak for others, or a proxy could not.
        #[test]
        fn an_address_is_in_the_ranges_if_it_is_in_a_network(networks in proptest::collection::vec(network(), 0..8)) {
            let trusted = TrustedProxies::new(&networks);
            for host in 0..80u32 {
                let v6 = 0xfd << 120 | u128::from(host);
                for ip in [IpAddr::V4((0x0a00_0000 + host).into()), IpAddr::V6(v6.into()), IpAddr::V6(u128::from(host).into())] {
                    prop_assert_eq!(trusted.contain(ip), networks.iter().any(|network| network.contains(&ip)), "{}", ip);
                }
            }
        }
    }
}
