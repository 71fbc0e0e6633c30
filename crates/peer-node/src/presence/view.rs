//! What people see of who is there.

use super::Presence;
use super::beacon::OfficeTag;
use super::diagnose::{Facts, Problem, Reach, judge};
use super::table::Seen;
use crate::net::book::Known;
use crate::net::{FoundBy, Way};
use common::identity::DeviceId;
use proto::peer::v1 as peer;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

/// Another node, as this one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// Which.
    pub device: DeviceId,
    /// In which directions it is reachable.
    pub reach: Reach,
    /// It is there.
    pub present: bool,
    /// The address in use, or that was tried last.
    pub address: Option<SocketAddr>,
    /// How it was found.
    pub found_by: BTreeSet<FoundBy>,
    /// Of a small call; zero if not known.
    pub round_trip: Duration,
    /// Last sign of life, milliseconds since 1970; `None` if there was none since this node began.
    pub last_seen_ms: Option<u64>,
    /// Why it cannot be reached, or only one way.
    pub problem: Option<Problem>,
    /// Program version.
    pub version: String,
    /// The member through which the connection goes.
    pub relayed_by: Option<DeviceId>,
    /// No member of this office.
    pub stranger: bool,
    /// What a machine without an office calls itself.
    pub display_name: String,
    /// The office it says to be of.
    pub office: Option<OfficeTag>,
}

impl Presence {
    /// These members, but for this node itself, and the strangers of this network, in order of ids.
    pub fn peers(&self, members: &[DeviceId]) -> Vec<PeerView> {
        let network = self.network();
        let me = network.me();
        let mut devices: BTreeSet<DeviceId> = members.iter().copied().filter(|d| *d != me).collect();
        {
            let state = self.0.state.lock();
            devices.extend(state.table.all().filter(|(_, seen)| seen.present).map(|(device, _)| *device));
        }
        let incoming = network.incoming();
        devices.into_iter().map(|device| self.view(device, incoming.get(&device).copied())).collect()
    }

    fn view(&self, device: DeviceId, incoming: Option<Way>) -> PeerView {
        let network = self.network();
        let link = network.linked(&device);
        let known = network.known(&device);
        let refused = network.last_failure(&device);
        let stranger = !network.welcomes(&device);
        let (now_ms, now_unix) = (self.now_ms(), self.0.options.clock.now_ms());
        let state = self.0.state.lock();
        let seen = state.table.get(&device);
        let present = seen.is_some_and(|s| s.present);
        let facts = Facts {
            me: network.me(),
            port: network.port().unwrap_or(0),
            cards: &state.cards,
            link: link.as_ref().map(|l| l.way()),
            incoming,
            probe: state.probes.get(&device).and_then(|p| p.answer.as_ref()),
            known: &known,
            heard: present && seen.is_some_and(|s| !s.addresses.is_empty()),
            left: seen.is_some_and(|s| !s.present),
            goodbye: seen.is_some_and(|s| s.goodbye),
            refused: refused.as_ref(),
            version: seen.map_or("", |s| &s.version),
            clock_ahead_ms: seen.and_then(|s| s.clock_ahead_ms),
        };
        let (reach, problem) = judge(&facts);
        let way = link.as_ref().map(|l| l.way());
        let alive = seen.filter(|s| s.alive_ms > 0 || s.connected);
        let ago = |s: &Seen| if s.connected { 0 } else { now_ms.saturating_sub(s.alive_ms) };
        PeerView {
            device,
            reach,
            present,
            address: way
                .and_then(|w| w.address())
                .or_else(|| tried_last(&known))
                .or(incoming.and_then(|w| w.address())),
            found_by: found_by(seen, &known, incoming),
            round_trip: link.as_ref().map(|l| l.round_trip()).unwrap_or_default(),
            last_seen_ms: alive.map(|s| now_unix.saturating_sub(ago(s))),
            problem: problem.filter(|_| !stranger),
            version: facts.version.to_owned(),
            relayed_by: match way {
                Some(Way::Relayed(by)) if by != network.me() => Some(by),
                _ => None,
            },
            stranger,
            display_name: seen.map(|s| s.display_name.clone()).unwrap_or_default(),
            office: seen.and_then(|s| s.office),
        }
    }
}

fn tried_last(known: &[Known]) -> Option<SocketAddr> {
    known.iter().max_by_key(|k| (k.failed.as_ref().map(|(at, _)| *at), k.heard_ms)).map(|k| k.address)
}

fn found_by(seen: Option<&Seen>, known: &[Known], incoming: Option<Way>) -> BTreeSet<FoundBy> {
    let mut found: BTreeSet<FoundBy> = known.iter().flat_map(|k| k.found_by.iter().copied()).collect();
    found.extend(seen.iter().flat_map(|s| s.addresses.iter().map(|(_, how)| *how)));
    found.extend(incoming.map(|_| FoundBy::Incoming));
    found
}

impl PeerView {
    /// As the contract has it. `node_name` and `person` come from the office; `relay_name` too.
    pub fn wire(&self, node_name: String, person: String, relay_name: String) -> peer::Peer {
        use peer::peer::Reach as Wire;
        let reach = match self.reach {
            Reach::Both => Wire::Both,
            Reach::OutOnly => Wire::OutOnly,
            Reach::InOnly => Wire::InOnly,
            Reach::Relayed => Wire::Relayed,
            Reach::None => Wire::None,
        };
        let seen = self.last_seen_ms.map(|ms| prost_types::Timestamp {
            seconds: i64::try_from(ms / 1000).unwrap_or(0),
            nanos: i32::try_from(ms % 1000 * 1_000_000).unwrap_or(0),
        });
        peer::Peer {
            device_id: self.device.to_string(),
            node_name,
            person,
            reach: reach.into(),
            address: self.address.map(|a| a.to_string()).unwrap_or_default(),
            found_by: self.found_by.iter().map(|how| how.word().to_owned()).collect(),
            round_trip_us: u64::try_from(self.round_trip.as_micros()).unwrap_or(u64::MAX),
            last_seen_time: seen,
            problem: self.problem.as_ref().map(|p| peer::NodeProblem {
                reason: p.reason.to_owned(),
                message: p.message.clone(),
                why: p.why.clone(),
                fix: p.fix.clone(),
            }),
            version: self.version.clone(),
            relayed_by: relay_name,
            stranger: self.stranger,
        }
    }
}
