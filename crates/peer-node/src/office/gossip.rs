//! Whom to tell what, and when: a plain function of events, without IO.
//!
//! News go out at once. What this node states goes to all neighbours; what it learns goes on to those that the one it
//! learned from has not as a neighbour, and to a few more, since that list may be old. News that cut somebody off go on
//! to everybody. Everything else is repaired by comparison: on connecting, and every ten seconds, two neighbours tell
//! each other digests of what they hold (Hello), and bring together what differs. Two that differ in what neither can
//! take from the other do not try again until one of them has changed.
//!
//! Each neighbour has at most one call of a kind in progress; what comes up meanwhile is done after it, together.
//!
//! Bounds: 4,096 neighbours (further ones are not gossiped with); 4,096 records waiting for one neighbour, beyond which
//! everything is compared with it instead.

use super::record::RecordId;
use common::model::DeviceId;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Neighbours compare what they hold so often, give or take a fifth.
pub const HELLO_EVERY: Duration = Duration::from_secs(10);
/// After a call that failed, the first comparison.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// News are passed on to so many neighbours that should have them already.
const EXTRA: usize = 3;
const MAX_NEIGHBOURS: usize = 4_096;
const MAX_WAITING: usize = 4_096;

/// What a node says about what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Digest of its records.
    pub records: [u8; 32],
    /// Digest of its announcements.
    pub announcements: [u8; 32],
    /// Whom it is connected with.
    pub neighbours: Vec<DeviceId>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A member can be called.
    Up(DeviceId),
    /// It cannot any more.
    Down(DeviceId),
    /// New records are kept here.
    Records {
        /// Which.
        ids: Vec<RecordId>,
        /// They may cut somebody off.
        urgent: bool,
        /// Who brought them.
        from: Option<DeviceId>,
    },
    /// New announcements are kept here.
    Announcements {
        /// Who brought them.
        from: Option<DeviceId>,
    },
    /// A neighbour has what is needed to take what it brought.
    Behind(DeviceId),
    /// News were lost on the way to here.
    Missed,
    /// A neighbour said what it holds: it called, or it answered.
    Heard(DeviceId, Facts),
    /// [`Action::Hello`] has ended; [`Event::Heard`] came before if it went well.
    HelloEnded(DeviceId, bool),
    /// [`Action::Push`] has ended.
    PushEnded(DeviceId, bool),
    /// [`Action::ExchangeRecords`] has ended.
    RecordsEnded {
        /// With whom.
        device: DeviceId,
        /// Went well.
        ok: bool,
        /// One of the two has more than before.
        progress: bool,
    },
    /// [`Action::ExchangeAnnouncements`] has ended.
    AnnouncementsEnded {
        /// With whom.
        device: DeviceId,
        /// Went well.
        ok: bool,
        /// One of the two has more than before.
        progress: bool,
    },
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell what is held here and hear what is held there.
    Hello(DeviceId),
    /// Bring records.
    Push(DeviceId, Vec<RecordId>),
    /// Bring both sets of records together.
    ExchangeRecords(DeviceId),
    /// Bring both sets of announcements together.
    ExchangeAnnouncements(DeviceId),
}

/// An exchange of one kind with one neighbour.
#[derive(Debug, Default)]
struct Exchange {
    wanted: bool,
    busy: bool,
    /// Own and other digest with which the last one brought nothing.
    settled: Option<([u8; 32], [u8; 32])>,
}

impl Exchange {
    fn differs(&mut self, own: [u8; 32], theirs: [u8; 32]) {
        if own != theirs && self.settled != Some((own, theirs)) {
            self.wanted = true;
        }
    }

    fn begin(&mut self) -> bool {
        let go = self.wanted && !self.busy;
        if go {
            (self.wanted, self.busy) = (false, true);
        }
        go
    }
}

#[derive(Debug)]
struct Neighbour {
    facts: Facts,
    waiting: BTreeSet<RecordId>,
    pushing: bool,
    records: Exchange,
    announcements: Exchange,
    greeting: bool,
    hello_ms: u64,
    retry: Duration,
}

/// What gossip knows about the neighbours.
#[derive(Debug)]
pub struct Gossip {
    neighbours: BTreeMap<DeviceId, Neighbour>,
    random: StdRng,
}

impl Gossip {
    /// Without neighbours. The seed spreads nodes over time and decides who gets news twice; nothing else.
    pub fn new(seed: u64) -> Self {
        Self { neighbours: BTreeMap::new(), random: StdRng::seed_from_u64(seed) }
    }

    /// When [`Event::Tick`] is due, in milliseconds of the clock that is passed in.
    pub fn due_ms(&self) -> Option<u64> {
        self.neighbours.values().filter(|n| !n.greeting).map(|n| n.hello_ms).min()
    }

    /// Whom it talks to.
    pub fn neighbours(&self) -> impl Iterator<Item = &DeviceId> {
        self.neighbours.keys()
    }

    /// Takes an event in and says what to do. `own` is what this node holds now.
    pub fn handle(&mut self, event: Event, own: &Facts, now_ms: u64) -> Vec<Action> {
        match event {
            Event::Up(device) => {
                // A link that is made anew, too: what was under way on the old one will fail.
                if self.neighbours.len() < MAX_NEIGHBOURS || self.neighbours.contains_key(&device) {
                    let entry = self.neighbours.entry(device).or_insert_with(|| Neighbour::new(now_ms));
                    entry.hello_ms = now_ms;
                }
            }
            Event::Down(device) => {
                self.neighbours.remove(&device);
            }
            Event::Records { ids, urgent, from } => {
                let to = if urgent { self.all_but(from) } else { self.onward(from) };
                for device in to {
                    self.with(&device, |n| n.queue(&ids));
                }
            }
            Event::Announcements { from } => {
                for device in self.onward(from) {
                    self.with(&device, |n| n.announcements.wanted = true);
                }
            }
            Event::Behind(device) => self.with(&device, |n| n.records.wanted = true),
            Event::Missed => {
                for neighbour in self.neighbours.values_mut() {
                    neighbour.hello_ms = now_ms;
                }
            }
            Event::Heard(device, facts) => self.with(&device, |n| {
                n.records.differs(own.records, facts.records);
                n.announcements.differs(own.announcements, facts.announcements);
                n.facts = facts;
            }),
            Event::HelloEnded(device, ok) => {
                let jitter = self.random.random_range(0.8..1.2);
                self.with(&device, |n| {
                    n.greeting = false;
                    let next = if ok { HELLO_EVERY.mul_f64(jitter) } else { n.back_off() };
                    n.hello_ms = now_ms.saturating_add(next.as_millis() as u64);
                    if ok {
                        n.retry = RETRY_FIRST;
                    }
                });
            }
            Event::PushEnded(device, ok) => self.with(&device, |n| {
                n.pushing = false;
                n.repair(ok, now_ms);
            }),
            Event::RecordsEnded { device, ok, progress } => self.with(&device, |n| {
                n.records.busy = false;
                n.records.settled = (ok && !progress).then_some((own.records, n.facts.records));
                // What came may not be all: the other digest is an old one now.
                n.repair(ok && !progress, now_ms);
            }),
            Event::AnnouncementsEnded { device, ok, progress } => self.with(&device, |n| {
                n.announcements.busy = false;
                n.announcements.settled = (ok && !progress).then_some((own.announcements, n.facts.announcements));
                n.repair(ok, now_ms);
            }),
            Event::Tick => {}
        }
        self.actions(now_ms)
    }

    fn with(&mut self, device: &DeviceId, change: impl FnOnce(&mut Neighbour)) {
        if let Some(neighbour) = self.neighbours.get_mut(device) {
            change(neighbour);
        }
    }

    fn all_but(&self, from: Option<DeviceId>) -> Vec<DeviceId> {
        self.neighbours.keys().filter(|d| Some(**d) != from).copied().collect()
    }

    /// Those who may not have heard what `from` told, and a few more.
    fn onward(&mut self, from: Option<DeviceId>) -> Vec<DeviceId> {
        let all = self.all_but(from);
        let Some(source) = from.and_then(|d| self.neighbours.get(&d)) else { return all };
        let heard: BTreeSet<DeviceId> = source.facts.neighbours.iter().copied().collect();
        let (again, mut onward): (Vec<DeviceId>, Vec<DeviceId>) = all.into_iter().partition(|d| heard.contains(d));
        onward.extend(again.choose_multiple(&mut self.random, EXTRA));
        onward
    }

    fn actions(&mut self, now_ms: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        for (device, neighbour) in &mut self.neighbours {
            if !neighbour.pushing && !neighbour.waiting.is_empty() {
                neighbour.pushing = true;
                actions.push(Action::Push(*device, std::mem::take(&mut neighbour.waiting).into_iter().collect()));
            }
            if neighbour.records.begin() {
                actions.push(Action::ExchangeRecords(*device));
            }
            if neighbour.announcements.begin() {
                actions.push(Action::ExchangeAnnouncements(*device));
            }
            if !neighbour.greeting && neighbour.hello_ms <= now_ms {
                neighbour.greeting = true;
                actions.push(Action::Hello(*device));
            }
        }
        actions
    }
}

impl Neighbour {
    fn new(now_ms: u64) -> Self {
        Self {
            facts: Facts::default(),
            waiting: BTreeSet::new(),
            pushing: false,
            records: Exchange::default(),
            announcements: Exchange::default(),
            greeting: false,
            hello_ms: now_ms,
            retry: RETRY_FIRST,
        }
    }

    fn queue(&mut self, ids: &[RecordId]) {
        if self.waiting.len() + ids.len() > MAX_WAITING {
            self.waiting.clear();
            self.records.wanted = true;
        } else {
            self.waiting.extend(ids);
        }
    }

    /// If something did not go well, compares soon.
    fn repair(&mut self, ok: bool, now_ms: u64) {
        if !ok {
            let soon = now_ms.saturating_add(self.back_off().as_millis() as u64);
            self.hello_ms = self.hello_ms.min(soon);
        }
    }

    fn back_off(&mut self) -> Duration {
        let wait = self.retry;
        self.retry = (self.retry * 2).min(HELLO_EVERY);
        wait
    }
}
