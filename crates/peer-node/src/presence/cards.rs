//! This machine's network cards and their addresses.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

/// Addresses that are looked at.
const MAX_CARDS: usize = 128;

/// One address of one card.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Card {
    /// The card's name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Where everyone in its network hears.
    pub broadcast: Option<Ipv4Addr>,
    /// Bits of the network's part.
    pub prefix: u8,
}

impl Card {
    /// Whether an address is in this card's network.
    pub fn contains(&self, other: IpAddr) -> bool {
        match (self.ip, other.to_canonical()) {
            (IpAddr::V4(mine), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
                mine.to_bits() & mask == other.to_bits() & mask
            }
            (IpAddr::V6(mine), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix.min(128))).unwrap_or(0);
                mine.to_bits() & mask == other.to_bits() & mask
            }
            _ => false,
        }
    }

    /// Whether others can be told of the address: not this machine only, and not without the card's number.
    pub fn is_public(&self) -> bool {
        match self.ip {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        }
    }
}

/// All cards that are up, in a fixed order. Blocks for a moment.
///
/// # Errors
/// The system does not tell.
pub fn cards() -> io::Result<Vec<Card>> {
    use if_addrs::{IfAddr, IfOperStatus};
    let found = if_addrs::get_if_addrs()?;
    let up = |status: &IfOperStatus| matches!(status, IfOperStatus::Up | IfOperStatus::Unknown);
    let mut cards: BTreeSet<Card> = BTreeSet::new();
    for interface in found.into_iter().filter(|i| i.is_loopback() || up(&i.oper_status)).take(MAX_CARDS) {
        let (broadcast, prefix) = match &interface.addr {
            IfAddr::V4(v4) => (v4.broadcast.or_else(|| broadcast_of(v4.ip, v4.prefixlen)), v4.prefixlen),
            IfAddr::V6(v6) => (None, v6.prefixlen),
        };
        cards.insert(Card {
            ip: interface.ip(),
            index: interface.index.unwrap_or(0),
            name: interface.name,
            broadcast,
            prefix,
        });
    }
    Ok(cards.into_iter().collect())
}

/// The last address of a network; none if it has no room for one.
fn broadcast_of(ip: Ipv4Addr, prefix: u8) -> Option<Ipv4Addr> {
    (prefix <= 30).then(|| Ipv4Addr::from_bits(ip.to_bits() | u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(ip: &str, prefix: u8) -> Card {
        Card { name: "eth0".into(), index: 1, ip: ip.parse().unwrap(), broadcast: None, prefix }
    }

    #[test]
    fn networks_contain_their_addresses() {
        let within = |card: Card, other: &str| card.contains(other.parse().unwrap());
        assert!(within(card("10.0.0.1", 24), "10.0.0.200") && !within(card("10.0.0.1", 24), "10.0.1.1"));
        assert!(within(card("10.0.0.1", 24), "::ffff:10.0.0.9"));
        assert!(within(card("10.0.0.1", 0), "1.2.3.4") && !within(card("10.0.0.1", 32), "10.0.0.2"));
        assert!(within(card("fd00::1", 64), "fd00::2") && !within(card("fd00::1", 64), "fd00:0:0:1::2"));
        assert!(within(card("fd00::1", 0), "2001::1") && !within(card("fd00::1", 64), "10.0.0.1"));
    }

    #[test]
    fn broadcast_addresses() {
        let of = |ip: &str, prefix| broadcast_of(ip.parse().unwrap(), prefix).map(|b| b.to_string());
        assert_eq!(of("10.0.0.1", 24).unwrap(), "10.0.0.255");
        assert_eq!(of("127.0.0.1", 8).unwrap(), "127.255.255.255");
        assert_eq!(of("10.0.0.1", 30).unwrap(), "10.0.0.3");
        assert_eq!(of("10.0.0.1", 31), None);
        assert_eq!(of("10.0.0.1", 0).unwrap(), "255.255.255.255");
    }

    #[test]
    fn this_machine_has_loopback() {
        assert!(cards().unwrap().iter().any(|c| c.ip.is_loopback() && !c.is_public()));
    }
}
