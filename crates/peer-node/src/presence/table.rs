//! Who is there, as far as can be told from what was heard. Free of IO.
//!
//! Events go in with the time at which they happened; what is to be done comes out. Times are milliseconds of a clock
//! that does not go back; it may leap ahead, as after a sleep. Nothing here is proof: an entry is a hint that makes
//! [`crate::net`] connect, and the connection shows who is there.
//!
//! # Rules
//! * A beacon is signed, so it can say which *instance* (start of the program) of a device lives. A beacon of an instance
//!   that is known to have ended is old or replayed and passed over, and so is one that is older than another. Multicast DNS is
//!   not signed: it adds addresses and nothing else, and is passed over if it is about an instance that has ended.
//! * Whoever hears an instance for the first time answers, to that one alone, so that a newcomer knows everybody after
//!   one exchange; so does everyone who is asked, at most five times a second for one device.
//! * An entry lives as long as something keeps it alive: a connection, an mDNS record, a beacon of the last
//!   [`BEACON_LIFE_MS`]. A goodbye ends it at once. If a connection breaks without a goodbye, everyone is asked; a device
//!   that then stays silent for [`DOUBT_MS`] is gone.
//! * After a leap of the clock nothing expires before everyone had time to answer again.
//!
//! # Bounds
//! 4,096 members and 256 strangers; the longest unheard goes. Eight addresses a device.

use super::beacon::{InstanceId, OfficeTag};
use crate::net::FoundBy;
use common::identity::DeviceId;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

/// How often a node calls when nothing happens.
pub const ANNOUNCE_MS: u64 = 30_000;
/// How long a beacon counts: three may be lost.
pub const BEACON_LIFE_MS: u64 = 95_000;
/// How long after a connection broke a device may be silent.
pub const DOUBT_MS: u64 = 3_000;
/// How long after a goodbye connections may still stand, or come to stand.
const PARTING_MS: u64 = 1500;
/// When an announcement is repeated, since datagrams get lost.
pub const BURST_MS: [u64; 5] = [0, 100, 350, 900, 2000];
/// A longer gap between two events is a leap of the clock.
pub const LEAP_MS: u64 = 20_000;
/// Members that are remembered.
pub const MAX_MEMBERS: usize = 4096;
/// Strangers that are remembered.
pub const MAX_STRANGERS: usize = 256;
/// Addresses of a device.
pub const MAX_ADDRESSES: usize = 8;
/// Shortest time between two answers to one device.
const ANSWER_MS: u64 = 200;
/// Ended instances of a device that are remembered.
const ENDED: usize = 4;
/// How long one that has left is still shown.
pub const LEFT_MS: u64 = 24 * 3600 * 1000;

/// Something was heard of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Which.
    pub device: DeviceId,
    /// How.
    pub how: FoundBy,
    /// Where it is said to be.
    pub addresses: Vec<SocketAddr>,
    /// Of beacons only: instance and sequence, signed.
    pub instance: Option<(InstanceId, u64)>,
    /// Of mDNS only: the instance that it says to be, unsigned.
    pub claimed: Option<InstanceId>,
    /// Of beacons only: where it came from, and whether an answer is wanted.
    pub from: Option<(SocketAddr, bool)>,
    /// Its office.
    pub office: Option<OfficeTag>,
    /// Its program's version.
    pub version: String,
    /// Codes by which others can join there.
    pub inviting: Vec<String>,
    /// The machine's name, if it has no office.
    pub display_name: String,
    /// How far its clock is ahead of this machine's, in milliseconds.
    pub clock_ahead_ms: Option<i64>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something was heard.
    Heard(Sighting),
    /// An instance says goodbye.
    Goodbye {
        /// Of this device.
        device: DeviceId,
        /// Which ends.
        instance: InstanceId,
    },
    /// Multicast DNS knows it no longer.
    Unlisted(DeviceId),
    /// It can be called over a connection that is watched by pings.
    Connected(DeviceId),
    /// There is none any longer.
    Disconnected(DeviceId),
    /// This machine has other addresses, or other things to say.
    Changed,
    /// Time has passed; at least once a second.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The device may be at this address.
    Learn(DeviceId, SocketAddr, FoundBy),
    /// Send a beacon to this address.
    Answer(SocketAddr),
    /// Send a beacon to everyone; true: and ask for answers.
    Announce(bool),
    /// A device is there that was not.
    Appeared(DeviceId),
    /// It is there no longer.
    Left(DeviceId),
}

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Addresses and how each became known.
    pub addresses: Vec<(SocketAddr, FoundBy)>,
    /// When it was heard last, each way. Multicast DNS counts until it takes back what it said.
    pub heard_ms: BTreeMap<FoundBy, u64>,
    /// Its office.
    pub office: Option<OfficeTag>,
    /// Its program's version.
    pub version: String,
    /// Codes by which others can join there.
    pub inviting: Vec<String>,
    /// The machine's name, if it has no office.
    pub display_name: String,
    /// How far its clock is ahead.
    pub clock_ahead_ms: Option<i64>,
    /// A connection stands.
    pub connected: bool,
    /// It is there.
    pub present: bool,
    /// Last sign of life.
    pub alive_ms: u64,
    /// It said goodbye, and has not been heard of since.
    pub goodbye: bool,
    instance: Option<(InstanceId, u64)>,
    ended: VecDeque<InstanceId>,
    listed: bool,
    unlisted_ms: Option<u64>,
    goodbye_ms: u64,
    doubt_ms: Option<u64>,
    answered_ms: Option<u64>,
}

impl Seen {
    fn new() -> Self {
        Self {
            addresses: Vec::new(),
            heard_ms: BTreeMap::new(),
            office: None,
            version: String::new(),
            inviting: Vec::new(),
            display_name: String::new(),
            clock_ahead_ms: None,
            connected: false,
            present: false,
            alive_ms: 0,
            goodbye: false,
            instance: None,
            ended: VecDeque::new(),
            listed: false,
            unlisted_ms: None,
            goodbye_ms: 0,
            doubt_ms: None,
            answered_ms: None,
        }
    }

    fn end(&mut self, instance: InstanceId) {
        if self.ended.contains(&instance) {
            return;
        }
        if self.ended.len() == ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(instance);
    }

    fn kept_alive(&self, now_ms: u64) -> bool {
        if self.goodbye {
            return false;
        }
        if self.connected {
            return true;
        }
        if self.doubt_ms.is_some_and(|at| now_ms >= at) {
            return false;
        }
        let beacon = self.heard_ms.get(&FoundBy::Beacon).is_some_and(|at| now_ms < at + BEACON_LIFE_MS);
        beacon || self.listed || self.doubt_ms.is_some()
    }
}

/// Everyone who was heard of.
#[derive(Debug)]
pub struct Table {
    me: DeviceId,
    devices: BTreeMap<DeviceId, Seen>,
    now_ms: u64,
    next_announce_ms: u64,
    burst: VecDeque<(u64, bool)>,
    /// Nothing expires before.
    grace_ms: u64,
}

impl Table {
    /// An empty one, which announces itself at once.
    pub fn new(me: DeviceId, now_ms: u64) -> Self {
        let mut table = Self {
            me,
            devices: BTreeMap::new(),
            now_ms,
            next_announce_ms: now_ms + ANNOUNCE_MS,
            burst: VecDeque::new(),
            grace_ms: 0,
        };
        table.begin_burst(now_ms, true);
        table
    }

    /// What is known of a device.
    pub fn get(&self, device: &DeviceId) -> Option<&Seen> {
        self.devices.get(device)
    }

    /// All devices.
    pub fn all(&self) -> impl Iterator<Item = (&DeviceId, &Seen)> {
        self.devices.iter()
    }

    /// When [`Event::Tick`] is due.
    pub fn next_ms(&self) -> u64 {
        let burst = self.burst.front().map_or(u64::MAX, |(at, _)| *at);
        let doubt = self.devices.values().filter_map(|s| s.doubt_ms).filter(|at| *at > self.now_ms).min();
        burst.min(self.next_announce_ms).min(doubt.unwrap_or(u64::MAX)).min(self.now_ms + 1000)
    }

    /// Takes note of what happened. `is_member` tells members from strangers, which have little room.
    pub fn handle(&mut self, now_ms: u64, event: Event, is_member: impl Fn(&DeviceId) -> bool) -> Vec<Action> {
        let mut actions = Vec::new();
        self.pass_time(now_ms);
        let now_ms = self.now_ms;
        match event {
            Event::Heard(sighting) if sighting.device == self.me => {}
            Event::Heard(sighting) => self.heard(now_ms, sighting, &is_member, &mut actions),
            Event::Goodbye { device, instance } => self.goodbye(now_ms, device, instance, &mut actions),
            Event::Unlisted(device) => {
                if let Some(seen) = self.devices.get_mut(&device) {
                    seen.listed = false;
                    seen.unlisted_ms = Some(now_ms);
                    // It takes back its record and its connection has broken: that is a goodbye.
                    seen.doubt_ms = seen.doubt_ms.map(|_| now_ms);
                    seen.addresses.retain(|(_, how)| *how != FoundBy::Mdns);
                }
            }
            Event::Connected(device) => self.connected(now_ms, device, &is_member, &mut actions),
            Event::Disconnected(device) => self.disconnected(now_ms, device),
            Event::Changed => self.begin_burst(now_ms, true),
            Event::Tick => {}
        }
        self.announce(now_ms, &mut actions);
        self.expire(now_ms, &mut actions);
        actions
    }

    fn pass_time(&mut self, now_ms: u64) {
        let now_ms = now_ms.max(self.now_ms);
        if now_ms - self.now_ms > LEAP_MS {
            // The machine has slept: others may have waited in vain, and what was heard is old for no fault of theirs.
            self.begin_burst(now_ms, true);
            self.grace_ms = now_ms + 2 * DOUBT_MS;
        }
        self.now_ms = now_ms;
    }

    fn begin_burst(&mut self, now_ms: u64, asks: bool) {
        self.burst = BURST_MS.iter().map(|delay| (now_ms + delay, asks)).collect();
    }

    fn announce(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        let mut due = false;
        let mut asks = false;
        while let Some((_, asking)) = self.burst.front().copied().filter(|(at, _)| *at <= now_ms) {
            self.burst.pop_front();
            (due, asks) = (true, asks || asking);
        }
        due |= self.next_announce_ms <= now_ms;
        if due {
            self.next_announce_ms = now_ms + ANNOUNCE_MS;
            actions.push(Action::Announce(asks));
        }
    }

    fn heard(
        &mut self,
        now_ms: u64,
        sighting: Sighting,
        is_member: &impl Fn(&DeviceId) -> bool,
        actions: &mut Vec<Action>,
    ) {
        self.make_room(sighting.device, is_member);
        let seen = self.devices.entry(sighting.device).or_insert_with(Seen::new);
        // What is left in somebody's cache of a start that has ended.
        if sighting.claimed.is_some_and(|claimed| seen.ended.contains(&claimed)) {
            return;
        }
        if let Some((instance, sequence)) = sighting.instance {
            if seen.ended.contains(&instance) {
                return;
            }
            match seen.instance {
                Some((known, last)) if known == instance && sequence <= last => {
                    // Heard by another card as well: its address counts, nothing else is new.
                    Self::note(seen, &sighting, actions);
                    return;
                }
                Some((known, _)) if known != instance => {
                    // A new start: what the old one said counts no longer.
                    seen.end(known);
                    seen.addresses.retain(|(_, how)| *how != FoundBy::Beacon);
                    Self::answer(seen, now_ms, &sighting, true, actions);
                }
                Some(_) => Self::answer(seen, now_ms, &sighting, false, actions),
                None => Self::answer(seen, now_ms, &sighting, true, actions),
            }
            seen.instance = Some((instance, sequence));
            seen.office = sighting.office;
            seen.version.clone_from(&sighting.version);
            seen.inviting.clone_from(&sighting.inviting);
            seen.display_name.clone_from(&sighting.display_name);
            seen.clock_ahead_ms = sighting.clock_ahead_ms;
        } else if seen.instance.is_none() {
            seen.office = sighting.office;
            seen.version.clone_from(&sighting.version);
            seen.inviting.clone_from(&sighting.inviting);
            seen.display_name.clone_from(&sighting.display_name);
        }
        seen.heard_ms.insert(sighting.how, now_ms);
        seen.listed |= sighting.how == FoundBy::Mdns;
        seen.alive_ms = now_ms;
        seen.doubt_ms = None;
        seen.goodbye = false;
        if !std::mem::replace(&mut seen.present, true) {
            actions.push(Action::Appeared(sighting.device));
        }
        Self::note(seen, &sighting, actions);
    }

    fn answer(seen: &mut Seen, now_ms: u64, sighting: &Sighting, unknown: bool, actions: &mut Vec<Action>) {
        let Some((from, asks)) = sighting.from else { return };
        let rested = seen.answered_ms.is_none_or(|at| now_ms >= at + ANSWER_MS);
        if (unknown || asks) && rested {
            seen.answered_ms = Some(now_ms);
            actions.push(Action::Answer(from));
        }
    }

    fn note(seen: &mut Seen, sighting: &Sighting, actions: &mut Vec<Action>) {
        for address in sighting.addresses.iter().take(MAX_ADDRESSES) {
            seen.addresses.retain(|(known, how)| known != address || *how != sighting.how);
            if seen.addresses.len() >= MAX_ADDRESSES {
                seen.addresses.remove(0);
            }
            seen.addresses.push((*address, sighting.how));
            actions.push(Action::Learn(sighting.device, *address, sighting.how));
        }
    }

    fn goodbye(&mut self, now_ms: u64, device: DeviceId, instance: InstanceId, actions: &mut Vec<Action>) {
        let Some(seen) = self.devices.get_mut(&device) else { return };
        let current = seen.instance.is_none_or(|(known, _)| known == instance);
        seen.end(instance);
        if !current {
            return;
        }
        seen.instance = None;
        seen.heard_ms.clear();
        seen.addresses.clear();
        seen.inviting.clear();
        seen.listed = false;
        seen.doubt_ms = None;
        // A connection may stand for a moment longer, or even be made while the other side ends.
        seen.goodbye = true;
        seen.goodbye_ms = now_ms;
        if std::mem::replace(&mut seen.present, false) {
            actions.push(Action::Left(device));
        }
    }

    fn connected(
        &mut self,
        now_ms: u64,
        device: DeviceId,
        is_member: &impl Fn(&DeviceId) -> bool,
        actions: &mut Vec<Action>,
    ) {
        self.make_room(device, is_member);
        let seen = self.devices.entry(device).or_insert_with(Seen::new);
        let before = std::mem::replace(&mut seen.connected, true);
        if before || seen.goodbye && now_ms < seen.goodbye_ms + PARTING_MS {
            return;
        }
        seen.alive_ms = now_ms;
        seen.doubt_ms = None;
        seen.goodbye = false;
        if !std::mem::replace(&mut seen.present, true) {
            actions.push(Action::Appeared(device));
        }
    }

    fn disconnected(&mut self, now_ms: u64, device: DeviceId) {
        let Some(seen) = self.devices.get_mut(&device).filter(|s| s.connected) else { return };
        seen.connected = false;
        if seen.goodbye {
            return;
        }
        seen.alive_ms = now_ms;
        let unlisted = seen.unlisted_ms.is_some_and(|at| now_ms < at + DOUBT_MS);
        seen.doubt_ms = Some(if unlisted { now_ms } else { now_ms + DOUBT_MS });
        if self.burst.is_empty() {
            self.begin_burst(now_ms, true);
        }
    }

    fn expire(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        if now_ms < self.grace_ms {
            return;
        }
        for (device, seen) in &mut self.devices {
            if seen.goodbye && seen.connected && now_ms >= seen.goodbye_ms + PARTING_MS {
                // It has come back, and nothing was heard of that.
                seen.goodbye = false;
                seen.present = true;
                actions.push(Action::Appeared(*device));
            }
            if seen.present && !seen.kept_alive(now_ms) {
                seen.present = false;
                seen.listed = false;
                seen.doubt_ms = None;
                seen.addresses.clear();
                seen.inviting.clear();
                actions.push(Action::Left(*device));
            }
        }
        self.devices.retain(|_, seen| seen.present || now_ms < seen.alive_ms + LEFT_MS);
    }

    fn make_room(&mut self, device: DeviceId, is_member: &impl Fn(&DeviceId) -> bool) {
        if self.devices.contains_key(&device) {
            return;
        }
        let member = is_member(&device);
        let most = if member { MAX_MEMBERS } else { MAX_STRANGERS };
        // Only when it may be needed: counting asks for every device.
        if self.devices.len() < most.min(MAX_STRANGERS) {
            return;
        }
        let alike: Vec<(u64, DeviceId)> = self
            .devices
            .iter()
            .filter(|(id, seen)| is_member(id) == member && !seen.connected)
            .map(|(id, seen)| (seen.alive_ms, *id))
            .collect();
        if alike.len() >= most
            && let Some((_, oldest)) = alike.into_iter().min()
        {
            self.devices.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests;
