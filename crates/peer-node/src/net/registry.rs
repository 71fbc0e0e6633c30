//! Connections that others have made to this node.

use super::identity::Way;
use common::identity::DeviceId;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Connections of one member.
const FOR_MEMBER: usize = 64;
/// Connections of strangers.
const FOR_STRANGERS: usize = 64;
/// Of these, from one address.
const FOR_STRANGER: usize = 8;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Registry(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// In the order in which they were made.
    open: BTreeMap<u64, Open>,
    members: HashMap<DeviceId, usize>,
    strangers: usize,
}

#[derive(Debug)]
struct Open {
    device: DeviceId,
    member: bool,
    way: Way,
    end: CancellationToken,
}

/// One of them; gone from the registry when dropped.
#[derive(Debug)]
pub(super) struct Incoming {
    registry: Arc<Registry>,
    id: u64,
    end: CancellationToken,
}

impl Incoming {
    /// Ends when the connection must.
    pub(super) async fn ended(&self) {
        self.end.cancelled().await;
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.registry.0.lock().remove(self.id);
    }
}

impl Registry {
    /// Enters a connection; `None` if the member has too many. A stranger takes the place of the oldest one.
    pub(super) fn enter(self: &Arc<Self>, device: DeviceId, member: bool, way: Way) -> Option<Incoming> {
        let mut state = self.0.lock();
        if member && state.members.get(&device).copied().unwrap_or(0) >= FOR_MEMBER {
            return None;
        }
        if !member {
            state.make_room(way);
        }
        let id = state.next;
        state.next += 1;
        let end = CancellationToken::new();
        state.open.insert(id, Open { device, member, way, end: end.clone() });
        match member {
            true => *state.members.entry(device).or_default() += 1,
            false => state.strangers += 1,
        }
        Some(Incoming { registry: self.clone(), id, end })
    }

    /// Ends the connections of devices for which this is false. Gives back how many.
    pub(super) fn keep(&self, mut welcome: impl FnMut(&DeviceId) -> bool) -> usize {
        let open: Vec<(DeviceId, CancellationToken)> =
            self.0.lock().open.values().filter(|o| o.member).map(|o| (o.device, o.end.clone())).collect();
        let ending: Vec<_> = open.into_iter().filter(|(device, end)| !end.is_cancelled() && !welcome(device)).collect();
        ending.iter().for_each(|(_, end)| end.cancel());
        ending.len()
    }

    /// How members come here now: one way each, a direct one if there is one.
    pub(super) fn ways(&self) -> HashMap<DeviceId, Way> {
        let mut ways = HashMap::new();
        for open in self.0.lock().open.values().filter(|o| o.member) {
            let way = ways.entry(open.device).or_insert(open.way);
            if matches!(way, Way::Relayed(_)) {
                *way = open.way;
            }
        }
        ways
    }

    /// Connections that are open: of members, of strangers.
    pub(super) fn count(&self) -> (usize, usize) {
        let state = self.0.lock();
        (state.open.len() - state.strangers, state.strangers)
    }
}

impl State {
    fn remove(&mut self, id: u64) {
        let Some(open) = self.open.remove(&id) else { return };
        if !open.member {
            self.strangers -= 1;
            return;
        }
        if let Some(count) = self.members.get_mut(&open.device) {
            *count -= 1;
            if *count == 0 {
                self.members.remove(&open.device);
            }
        }
    }

    fn make_room(&mut self, way: Way) {
        let origin = |w: Way| w.address().map(|a| a.ip());
        let strangers = |state: &Self, from: Option<Option<IpAddr>>| -> Vec<u64> {
            let theirs = |o: &Open| !o.member && from.is_none_or(|f| origin(o.way) == f);
            state.open.iter().filter(|(_, o)| theirs(o)).map(|(id, _)| *id).collect()
        };
        let of_one = strangers(self, Some(origin(way)));
        let oldest = if of_one.len() >= FOR_STRANGER {
            of_one.first().copied()
        } else if self.strangers >= FOR_STRANGERS {
            strangers(self, None).first().copied()
        } else {
            None
        };
        if let Some(id) = oldest {
            if let Some(open) = self.open.get(&id) {
                open.end.cancel();
            }
            self.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn from(n: u8) -> Way {
        Way::Direct(SocketAddr::from(([10, 0, 0, n], 1)))
    }

    #[test]
    fn strangers_push_out_strangers_and_nobody_else() {
        let registry = Arc::new(Registry::default());
        let member = registry.enter(DeviceId([1; 32]), true, from(1)).unwrap();
        let mut strangers: Vec<Incoming> =
            (0..200u8).map(|n| registry.enter(DeviceId([n; 32]), false, from(n)).unwrap()).collect();
        assert_eq!(registry.count(), (1, FOR_STRANGERS));
        assert!(!member.end.is_cancelled());
        assert_eq!(strangers.iter().filter(|s| !s.end.is_cancelled()).count(), FOR_STRANGERS);
        assert!(strangers[0].end.is_cancelled() && !strangers[199].end.is_cancelled());
        strangers.clear();
        let one: Vec<Incoming> =
            (0..50u8).map(|n| registry.enter(DeviceId([n; 32]), false, from(7)).unwrap()).collect();
        assert_eq!(registry.count(), (1, FOR_STRANGER));
        drop((one, member));
        assert_eq!(registry.count(), (0, 0));
        assert!(registry.0.lock().members.is_empty());
    }

    #[test]
    fn one_member_has_so_many_connections_and_all_end_when_it_is_cut_off() {
        let registry = Arc::new(Registry::default());
        let (anna, bert) = (DeviceId([1; 32]), DeviceId([2; 32]));
        let open: Vec<Incoming> = (0..FOR_MEMBER).map(|_| registry.enter(anna, true, from(1)).unwrap()).collect();
        assert!(registry.enter(anna, true, from(1)).is_none());
        let other = registry.enter(bert, true, Way::Relayed(anna)).unwrap();
        let direct = registry.enter(bert, true, from(2)).unwrap();
        assert_eq!(registry.ways()[&bert], from(2));
        assert_eq!(registry.keep(|d| *d == bert), FOR_MEMBER);
        assert_eq!(registry.keep(|d| *d == bert), 0);
        assert!(open.iter().all(|o| o.end.is_cancelled()));
        assert!(!other.end.is_cancelled() && !direct.end.is_cancelled());
    }
}
