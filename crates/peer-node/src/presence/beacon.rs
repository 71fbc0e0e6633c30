//! Datagrams: written, signed, read and checked. Free of IO.

use common::identity::{DeviceId, DeviceKey};
use ed25519_dalek::{Signature, VerifyingKey};
use prost::Message;
use proto::peer::v1 as peer;
use std::collections::HashMap;
use std::net::IpAddr;

/// Longest datagram: fits into every network's packet.
pub const MAX_DATAGRAM: usize = 1200;
/// Nameplates in one beacon.
pub const MAX_INVITING: usize = 8;
const MAGIC: &[u8; 4] = b"ATRB";
const CONTEXT: &[u8] = b"atrium beacon v1\0";
const MAX_VERSION: usize = 32;
const MAX_NAMEPLATE: usize = 32;
const MAX_NAME: usize = 128;

/// A start of the program.
pub type InstanceId = [u8; 8];
/// Tells offices apart without naming them: the beginning of BLAKE3 of the office's id.
pub type OfficeTag = [u8; 8];

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beacon {
    /// Its device, whose key has signed.
    pub device: DeviceId,
    /// This start of it.
    pub instance: InstanceId,
    /// Rises.
    pub sequence: u64,
    /// Where it listens.
    pub port: u16,
    /// Its office.
    pub office: Option<OfficeTag>,
    /// Its program's version.
    pub version: String,
    /// Codes by which others can join.
    pub inviting: Vec<String>,
    /// It ends.
    pub leaving: bool,
    /// It wants answers.
    pub asks: bool,
    /// The machine's name, if it has no office.
    pub display_name: String,
    /// Its clock.
    pub clock_ms: u64,
}

impl Beacon {
    /// The datagram. What is too long is cut, what is too much left out.
    pub fn sign(&self, key: &DeviceKey) -> Vec<u8> {
        let body = peer::Beacon {
            device_key: key.public_key().to_vec().into(),
            instance_id: self.instance.to_vec().into(),
            sequence: self.sequence,
            port: self.port.into(),
            office_tag: self.office.map_or_else(Vec::new, |tag| tag.to_vec()).into(),
            version: cut(&self.version, MAX_VERSION),
            inviting: self.inviting.iter().take(MAX_INVITING).map(|n| cut(n, MAX_NAMEPLATE)).collect(),
            leaving: self.leaving,
            asks: self.asks,
            display_name: cut(&self.display_name, MAX_NAME),
            clock_ms: self.clock_ms,
        }
        .encode_to_vec();
        let signature = key.sign(&[CONTEXT, &body].concat());
        [MAGIC, &signature[..], &body].concat()
    }

    /// Reads a datagram; `None` if it is not one of this protocol or its signature is wrong.
    pub fn read(datagram: &[u8]) -> Option<Self> {
        if datagram.len() > MAX_DATAGRAM {
            return None;
        }
        let (signature, body) = datagram.strip_prefix(MAGIC)?.split_at_checked(64)?;
        let wire = peer::Beacon::decode(body).ok()?;
        let key: [u8; 32] = wire.device_key[..].try_into().ok()?;
        let port = u16::try_from(wire.port).ok().filter(|p| *p != 0)?;
        let office = match wire.office_tag.len() {
            0 => None,
            _ => Some(wire.office_tag[..].try_into().ok()?),
        };
        let verifying = VerifyingKey::from_bytes(&key).ok().filter(|k| !k.is_weak())?;
        let signature = Signature::from_slice(signature).ok()?;
        verifying.verify_strict(&[CONTEXT, body].concat(), &signature).ok()?;
        Some(Self {
            device: DeviceId::of_key(&key),
            instance: wire.instance_id[..].try_into().ok()?,
            sequence: wire.sequence,
            port,
            office,
            version: shown(&wire.version, MAX_VERSION),
            inviting: wire.inviting.iter().take(MAX_INVITING).map(|n| shown(n, MAX_NAMEPLATE)).collect(),
            leaving: wire.leaving,
            asks: wire.asks,
            display_name: shown(&wire.display_name, MAX_NAME),
            clock_ms: wire.clock_ms,
        })
    }
}

fn cut(text: &str, most: usize) -> String {
    text.chars().scan(0, |sum, c| (*sum + c.len_utf8() <= most).then(|| *sum += c.len_utf8()).map(|()| c)).collect()
}

/// For people's eyes: no control characters, not too long.
pub(super) fn shown(text: &str, most: usize) -> String {
    cut(&text.replace(char::is_control, ""), most)
}

/// Lets through only as many datagrams as may be looked at, since each costs a check of a signature.
#[derive(Debug, Default)]
pub struct Sieve {
    second: u64,
    in_all: u32,
    from: HashMap<IpAddr, u32>,
}

impl Sieve {
    /// Datagrams a second, in all: about three percent of a processor.
    pub const IN_ALL: u32 = 500;
    /// From one address.
    pub const FROM_ONE: u32 = 40;

    /// Whether this one may be looked at.
    pub fn pass(&mut self, from: IpAddr, now_ms: u64) -> bool {
        if now_ms / 1000 != self.second {
            *self = Self { second: now_ms / 1000, ..Self::default() };
        }
        let of_one = self.from.entry(from).or_default();
        *of_one += 1;
        let pass = *of_one <= Self::FROM_ONE && self.in_all < Self::IN_ALL;
        self.in_all += u32::from(pass);
        // Forged senders must not make the map grow: beyond the bound nothing passes within this second anyway.
        if self.from.len() > 2 * Self::IN_ALL as usize {
            self.in_all = Self::IN_ALL;
            self.from.clear();
        }
        pass
    }
}

/// For fuzzing: reads a body that is signed, whatever it says, and writes what could be read again.
///
/// # Panics
/// If what could be read is read in another way once it was written.
pub fn fuzz_beacon(key: &DeviceKey, body: &[u8]) {
    let Ok(wire) = peer::Beacon::decode(body) else { return };
    let body = peer::Beacon { device_key: key.public_key().to_vec().into(), ..wire }.encode_to_vec();
    let signature = key.sign(&[CONTEXT, &body].concat());
    if let Some(read) = Beacon::read(&[MAGIC, &signature[..], &body].concat()) {
        assert_eq!(Beacon::read(&read.sign(key)), Some(read));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn beacon(key: &DeviceKey) -> Beacon {
        Beacon {
            device: key.device_id(),
            instance: [3; 8],
            sequence: 7,
            port: 7444,
            office: Some([9; 8]),
            version: "0.1.0".into(),
            inviting: vec!["42".into(), "7".into()],
            leaving: false,
            asks: true,
            display_name: "anna-pc".into(),
            clock_ms: 1_700_000_000_000,
        }
    }

    #[test]
    fn what_is_written_is_read_and_a_changed_bit_is_noticed() {
        let key = DeviceKey::generate();
        let datagram = beacon(&key).sign(&key);
        assert!(datagram.len() <= 400, "{}", datagram.len());
        assert_eq!(Beacon::read(&datagram), Some(beacon(&key)));
        for at in 0..datagram.len() {
            let mut damaged = datagram.clone();
            damaged[at] ^= 4;
            assert_eq!(Beacon::read(&damaged), None, "byte {at}");
        }
        for len in 0..datagram.len() {
            assert_eq!(Beacon::read(&datagram[..len]), None);
        }
        let forged = Beacon { device: DeviceKey::generate().device_id(), ..beacon(&key) }.sign(&key);
        assert_eq!(Beacon::read(&forged).unwrap().device, key.device_id());
    }

    #[test]
    fn the_longest_beacon_fits_and_names_are_made_harmless() {
        let key = DeviceKey::generate();
        let long = Beacon {
            inviting: vec!["n".repeat(500); 50],
            display_name: "ä\u{1b}[2J".repeat(500),
            version: "v".repeat(500),
            sequence: u64::MAX,
            clock_ms: u64::MAX,
            ..beacon(&key)
        };
        let datagram = long.sign(&key);
        assert!(datagram.len() <= MAX_DATAGRAM, "{}", datagram.len());
        let read = Beacon::read(&datagram).unwrap();
        assert!(!read.display_name.contains('\u{1b}') && read.display_name.len() <= MAX_NAME);
        assert_eq!(read.inviting.len(), MAX_INVITING);
    }

    #[test]
    fn a_flood_is_thinned_and_costs_bounded_memory() {
        let mut sieve = Sieve::default();
        let from = |n: u32| IpAddr::from(n.to_be_bytes());
        let passed = (0..10_000).filter(|_| sieve.pass(from(1), 500)).count();
        assert_eq!(passed, Sieve::FROM_ONE as usize);
        assert!(sieve.pass(from(2), 600));
        let passed = (0..100_000u32).filter(|n| sieve.pass(from(10 + n), 700)).count();
        assert!(passed <= Sieve::IN_ALL as usize);
        assert!(sieve.from.len() <= 2 * Sieve::IN_ALL as usize);
        assert!(sieve.pass(from(1), 1000));
    }

    proptest! {
        #[test]
        fn random_datagrams_are_no_beacons(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
            prop_assert_eq!(Beacon::read(&bytes), None);
            prop_assert_eq!(Beacon::read(&[MAGIC, &bytes[..]].concat()), None);
        }
    }
}
