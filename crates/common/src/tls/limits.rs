//! Bounds for connections: in all, and for each place they come from.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Where connections come from, as far as they share a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    /// An IPv4 address.
    V4([u8; 4]),
    /// An IPv6 network of 64 bits: whoever has one address of it has them all.
    V6([u8; 8]),
    /// A user of this machine.
    User(u32),
}

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Origin::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let mut network = [0; 8];
                network.copy_from_slice(&v6.octets()[..8]);
                Origin::V6(network)
            }
        }
    }
}

/// Why there is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// As many connections as there may be in all.
    InAll,
    /// As many as there may be from there.
    FromThere,
}

#[derive(Debug)]
pub(super) struct Slots {
    in_all: usize,
    from_one: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    count: usize,
    // Never larger than `count`: an origin without connections is removed.
    by_origin: HashMap<Origin, usize>,
}

/// One connection's place; free again when dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    origin: Origin,
}

impl Slots {
    pub(super) fn new(in_all: usize, from_one: usize) -> Arc<Self> {
        Arc::new(Self { in_all, from_one, taken: Mutex::default() })
    }

    pub(super) fn take(self: &Arc<Self>, origin: Origin) -> Result<Slot, Full> {
        let mut taken = self.taken.lock();
        if taken.count >= self.in_all {
            return Err(Full::InAll);
        }
        if taken.by_origin.get(&origin).copied().unwrap_or(0) >= self.from_one {
            return Err(Full::FromThere);
        }
        taken.count += 1;
        *taken.by_origin.entry(origin).or_default() += 1;
        Ok(Slot { slots: self.clone(), origin })
    }

    pub(super) fn taken(&self) -> usize {
        self.taken.lock().count
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock();
        taken.count -= 1;
        if let Some(count) = taken.by_origin.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                taken.by_origin.remove(&self.origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(address: &str) -> Origin {
        address.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn both_bounds_hold_and_slots_come_back() {
        let slots = Slots::new(3, 2);
        let a1 = slots.take(from("10.0.0.1")).unwrap();
        let _a2 = slots.take(from("10.0.0.1")).unwrap();
        assert_eq!(slots.take(from("10.0.0.1")).unwrap_err(), Full::FromThere);
        let _b = slots.take(from("10.0.0.2")).unwrap();
        assert_eq!(slots.take(from("10.0.0.3")).unwrap_err(), Full::InAll);
        drop(a1);
        let _c = slots.take(from("10.0.0.1")).unwrap();
        assert_eq!(slots.taken(), 3);
    }

    #[test]
    fn nothing_is_remembered_of_those_who_left() {
        let slots = Slots::new(10, 10);
        for n in 0..100u8 {
            drop(slots.take(Origin::V4([10, 0, 0, n])).unwrap());
        }
        assert!(slots.taken.lock().by_origin.is_empty());
    }

    #[test]
    fn addresses_of_one_v6_network_count_together_and_mapped_v4_counts_as_v4() {
        assert_eq!(from("2001:db8:1:2::1"), from("2001:db8:1:2:ffff::9"));
        assert_ne!(from("2001:db8:1:2::1"), from("2001:db8:1:3::1"));
        assert_eq!(from("::ffff:10.0.0.1"), from("10.0.0.1"));
    }
}
