//! Which addresses every device has been seen at, which of them work, and when to try again. Free of IO.
//!
//! Times are milliseconds of a clock that never goes back. What comes from the network can only add addresses; what was
//! tried decides their order. At most [`MAX_DEVICES`] devices with [`MAX_ADDRESSES`] addresses each: the least useful goes.

use super::dial::Failure;
use common::identity::DeviceId;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

/// Devices with known addresses.
pub const MAX_DEVICES: usize = 4096;
/// Addresses of one device.
pub const MAX_ADDRESSES: usize = 16;
/// An address that was neither heard of nor worked for so long is forgotten.
pub const FORGET_MS: u64 = 24 * 3600 * 1000;
/// First delay after a failure.
pub const FIRST_DELAY_MS: u64 = 500;
/// Longest delay, before jitter.
pub const LONGEST_DELAY_MS: u64 = 60_000;

/// How an address became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FoundBy {
    /// Multicast DNS.
    Mdns,
    /// A beacon.
    Beacon,
    /// The seed list of the settings.
    Seed,
    /// Another member said so.
    Member,
    /// It connected to this node.
    Incoming,
    /// A person typed it.
    Typed,
}

impl FoundBy {
    /// As `Peer.found_by` of the contract has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Mdns => "mdns",
            Self::Beacon => "beacon",
            Self::Seed => "seed",
            Self::Member => "member",
            Self::Incoming => "incoming",
            Self::Typed => "typed",
        }
    }
}

/// One address of a device.
#[derive(Clone, Debug)]
pub struct Known {
    /// Where.
    pub address: SocketAddr,
    /// Who said so.
    pub found_by: BTreeSet<FoundBy>,
    /// When it was heard of last.
    pub heard_ms: u64,
    /// When the device answered there last.
    pub reached_ms: Option<u64>,
    /// What became of the last attempt, if that failed.
    pub failed: Option<(u64, Failure)>,
}

impl Known {
    /// Greater is better: worked before failing, then heard of lately.
    fn worth(&self) -> (bool, bool, Option<u64>, u64) {
        let asked_for = self.found_by.contains(&FoundBy::Seed) || self.found_by.contains(&FoundBy::Typed);
        (self.reached_ms.is_some() && self.failed.is_none(), asked_for, self.reached_ms, self.heard_ms)
    }
}

#[derive(Debug, Default)]
struct Entry {
    addresses: Vec<Known>,
    /// It can be called over a connection that it keeps here.
    callable: bool,
    failures: u32,
    retry_ms: u64,
}

impl Entry {
    fn is_known(&self) -> bool {
        self.callable || !self.addresses.is_empty()
    }
}

/// The addresses of all devices.
#[derive(Debug, Default)]
pub struct Book {
    devices: HashMap<DeviceId, Entry>,
}

impl Book {
    /// Notes that a device was heard of at an address. True if the address is new for it: then the next attempt may be
    /// made at once.
    pub fn learn(&mut self, device: DeviceId, address: SocketAddr, how: FoundBy, now_ms: u64) -> bool {
        if !usable(&address) {
            return false;
        }
        if !self.devices.contains_key(&device) && self.devices.len() >= MAX_DEVICES {
            self.drop_oldest();
        }
        let entry = self.devices.entry(device).or_default();
        if let Some(known) = entry.addresses.iter_mut().find(|k| k.address == address) {
            known.heard_ms = known.heard_ms.max(now_ms);
            known.found_by.insert(how);
            return false;
        }
        entry.addresses.retain(|k| now_ms.saturating_sub(k.heard_ms.max(k.reached_ms.unwrap_or(0))) < FORGET_MS);
        if entry.addresses.len() >= MAX_ADDRESSES {
            let worst = (0..entry.addresses.len()).min_by_key(|i| entry.addresses[*i].worth());
            if let Some(worst) = worst {
                entry.addresses.swap_remove(worst);
            }
        }
        let found_by = BTreeSet::from([how]);
        entry.addresses.push(Known { address, found_by, heard_ms: now_ms, reached_ms: None, failed: None });
        entry.failures = 0;
        entry.retry_ms = 0;
        true
    }

    fn drop_oldest(&mut self) {
        let heard = |e: &Entry| e.addresses.iter().map(|k| k.heard_ms).max().unwrap_or(0);
        if let Some(oldest) = self.devices.iter().min_by_key(|(id, e)| (heard(e), **id)).map(|(id, _)| *id) {
            self.devices.remove(&oldest);
        }
    }

    /// Notes that a device can be called without an address.
    pub fn callable(&mut self, device: DeviceId) {
        if self.devices.contains_key(&device) || self.devices.len() < MAX_DEVICES {
            self.devices.entry(device).or_default().callable = true;
        }
    }

    /// Addresses to try, the most promising first.
    pub fn candidates(&self, device: &DeviceId) -> Vec<SocketAddr> {
        let mut known: Vec<&Known> = self.known(device).iter().collect();
        known.sort_by_key(|k| std::cmp::Reverse(k.worth()));
        known.into_iter().map(|k| k.address).collect()
    }

    /// All that is known of a device.
    pub fn known(&self, device: &DeviceId) -> &[Known] {
        self.devices.get(device).map_or(&[], |e| &e.addresses)
    }

    /// The device answered there.
    pub fn reached(&mut self, device: DeviceId, address: SocketAddr, now_ms: u64) {
        self.learn(device, address, FoundBy::Member, now_ms);
        let Some(entry) = self.devices.get_mut(&device) else { return };
        entry.failures = 0;
        entry.retry_ms = 0;
        if let Some(known) = entry.addresses.iter_mut().find(|k| k.address == address) {
            known.reached_ms = Some(now_ms);
            known.failed = None;
        }
    }

    /// It did not.
    pub fn failed(&mut self, device: &DeviceId, address: SocketAddr, failure: Failure, now_ms: u64) {
        let Some(entry) = self.devices.get_mut(device) else { return };
        if let Some(known) = entry.addresses.iter_mut().find(|k| k.address == address) {
            known.failed = Some((now_ms, failure));
        }
    }

    /// An attempt over all addresses failed. `jitter` is random, 0 to 1: it spreads those who try the same device.
    pub fn gave_up(&mut self, device: &DeviceId, now_ms: u64, jitter: f64) {
        let Some(entry) = self.devices.get_mut(device) else { return };
        let delay = FIRST_DELAY_MS.saturating_mul(1 << entry.failures.min(12)).min(LONGEST_DELAY_MS);
        entry.failures = entry.failures.saturating_add(1);
        entry.retry_ms = now_ms + delay / 2 + (delay as f64 * jitter.clamp(0.0, 1.0)) as u64;
    }

    /// Lets the next attempt begin at once, because something has changed.
    pub fn hurry(&mut self, device: &DeviceId) {
        if let Some(entry) = self.devices.get_mut(device) {
            entry.failures = 0;
            entry.retry_ms = 0;
        }
    }

    /// The same for all devices.
    pub fn hurry_all(&mut self) {
        self.devices.values_mut().for_each(|e| (e.failures, e.retry_ms) = (0, 0));
    }

    /// When the next attempt is due; `None` if nothing is known of the device.
    pub fn retry_ms(&self, device: &DeviceId) -> Option<u64> {
        self.devices.get(device).filter(|e| e.is_known()).map(|e| e.retry_ms)
    }

    /// Devices whose next attempt is due.
    pub fn due(&self, now_ms: u64) -> Vec<DeviceId> {
        let due = |e: &Entry| e.is_known() && e.retry_ms <= now_ms;
        self.devices.iter().filter(|(_, e)| due(e)).map(|(id, _)| *id).collect()
    }

    /// Forgets a device.
    pub fn forget(&mut self, device: &DeviceId) {
        self.devices.remove(device);
    }
}

/// Whether there can be a node at an address.
fn usable(address: &SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> DeviceId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        DeviceId(bytes)
    }

    fn at(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], n))
    }

    #[test]
    fn what_worked_comes_first_and_what_failed_last() {
        let mut book = Book::default();
        for n in 1..=4 {
            assert!(book.learn(id(1), at(n), FoundBy::Beacon, u64::from(n)));
        }
        assert!(!book.learn(id(1), at(1), FoundBy::Mdns, 10));
        assert_eq!(book.candidates(&id(1)), [at(1), at(4), at(3), at(2)]);
        book.reached(id(1), at(2), 20);
        assert_eq!(book.candidates(&id(1))[0], at(2));
        book.failed(&id(1), at(2), Failure::Refused, 30);
        book.reached(id(1), at(3), 31);
        assert_eq!(book.candidates(&id(1))[0], at(3));
        assert_eq!(book.known(&id(1))[0].found_by, BTreeSet::from([FoundBy::Beacon, FoundBy::Mdns]));
    }

    #[test]
    fn a_flood_of_addresses_does_not_push_out_the_one_that_works_nor_a_seed() {
        let mut book = Book::default();
        book.learn(id(1), at(1), FoundBy::Beacon, 1);
        book.reached(id(1), at(1), 1);
        book.learn(id(1), at(2), FoundBy::Seed, 1);
        for n in 1000..3000 {
            book.learn(id(1), at(n), FoundBy::Mdns, u64::from(n));
        }
        assert_eq!(book.known(&id(1)).len(), MAX_ADDRESSES);
        assert_eq!(book.candidates(&id(1))[..2], [at(1), at(2)]);
        for n in 2..(MAX_DEVICES as u32 + 50) {
            book.learn(id(n), at(1), FoundBy::Mdns, 10_000);
        }
        assert_eq!(book.devices.len(), MAX_DEVICES);
    }

    #[test]
    fn delays_double_up_to_a_bound_and_a_new_address_ends_them() {
        let mut book = Book::default();
        book.learn(id(1), at(1), FoundBy::Beacon, 0);
        assert_eq!(book.due(0), [id(1)]);
        let (mut now, mut last) = (0, 0);
        for _ in 0..20 {
            book.gave_up(&id(1), now, 0.5);
            let delay = book.retry_ms(&id(1)).unwrap() - now;
            assert!(delay >= last && delay <= LONGEST_DELAY_MS * 3 / 2, "{delay}");
            assert!(book.due(now).is_empty());
            (now, last) = (now + delay, delay);
        }
        assert_eq!(last, LONGEST_DELAY_MS);
        book.gave_up(&id(1), now, 1.0);
        assert!(book.learn(id(1), at(2), FoundBy::Mdns, now));
        assert_eq!(book.due(now), [id(1)]);
    }

    #[test]
    fn addresses_where_nobody_can_be_are_not_noted_and_old_ones_are_forgotten() {
        let mut book = Book::default();
        for text in ["0.0.0.0:1", "[::]:1", "255.255.255.255:1", "224.0.0.1:1", "[ff02::1]:1", "10.0.0.1:0"] {
            assert!(!book.learn(id(1), text.parse().unwrap(), FoundBy::Mdns, 0), "{text}");
        }
        assert_eq!(book.retry_ms(&id(1)), None);
        book.learn(id(1), at(1), FoundBy::Mdns, 0);
        book.learn(id(1), at(2), FoundBy::Mdns, FORGET_MS);
        assert_eq!(book.candidates(&id(1)), [at(2)]);
    }
}
