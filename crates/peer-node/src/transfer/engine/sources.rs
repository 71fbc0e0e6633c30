//! The sources of one transfer: who they are, what they said of others, and how they are doing.

use super::follow::Following;
use super::{Event, Shared};
use crate::model::Scope;
use crate::transfer::peers::{Channel, PeerLink, Peers};
use crate::transfer::plan::Plan;
use crate::transfer::progress::{Problem, SourceProgress};
use crate::transfer::scheduler::{Piece, SourceKey};
use common::error::{Error, Kind, Reason};
use common::model::DeviceId;
use proto::peer::v1::FollowResponse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Sources that are followed at a time.
const FOLLOWED: usize = 48;
/// Devices that are known of.
const KNOWN: usize = 1_024;
/// Neighbours that nobody named are asked every so often while there is no source.
const NEIGHBOURS_EVERY: Duration = Duration::from_secs(10);

struct Source {
    device: DeviceId,
    name: String,
    link: Option<PeerLink>,
    /// It has said what it has.
    heard: bool,
    spared: bool,
    next_bulk: usize,
    wake: Arc<Notify>,
    task: Option<AbortOnDropHandle<()>>,
    /// Devices that it says take part.
    others: BTreeSet<DeviceId>,
    received: u64,
    bad: u32,
    banned: bool,
    way: &'static str,
    failed: Option<Error>,
}

/// See the module.
pub struct SourceTable {
    peers: Arc<dyn Peers>,
    me: DeviceId,
    scope: Scope,
    manifests: Arc<[[u8; 32]]>,
    prefixes: HashMap<[u8; 8], Piece>,
    events: mpsc::Sender<Event>,
    first_pause: Duration,
    all: BTreeMap<SourceKey, Source>,
    keys: HashMap<DeviceId, SourceKey>,
    next: SourceKey,
    running: bool,
    changed: bool,
    neighbours_at: Option<Instant>,
}

impl SourceTable {
    /// None yet.
    pub fn new(shared: &Shared, plan: &Plan, events: mpsc::Sender<Event>) -> Self {
        Self {
            peers: shared.peers.clone(),
            me: shared.peers.me(),
            scope: plan.order.scope.clone(),
            manifests: plan.manifests().into(),
            prefixes: plan.prefixes(),
            events,
            first_pause: shared.first_pause,
            all: BTreeMap::new(),
            keys: HashMap::new(),
            next: 0,
            running: false,
            changed: false,
            neighbours_at: None,
        }
    }

    /// Begins to follow these, and those who were known before.
    pub fn start(&mut self, devices: Vec<DeviceId>) {
        self.running = true;
        devices.into_iter().for_each(|d| self.add(d));
        let keys: Vec<SourceKey> = self.all.keys().copied().collect();
        keys.into_iter().for_each(|key| self.follow(key));
    }

    /// Follows nobody any more; gives the sources that there were.
    pub fn stop(&mut self) -> Vec<SourceKey> {
        self.running = false;
        for source in self.all.values_mut() {
            source.task = None;
            source.link = None;
            source.others.clear();
        }
        self.all.keys().copied().collect()
    }

    /// A device that may have something.
    fn add(&mut self, device: DeviceId) {
        if device == self.me || self.keys.contains_key(&device) || self.all.len() >= KNOWN {
            return;
        }
        let key = self.next;
        self.next += 1;
        let source = Source {
            device,
            name: self.peers.name_of(&device),
            link: None,
            heard: false,
            spared: self.peers.is_spared(&device),
            next_bulk: 0,
            wake: Arc::default(),
            task: None,
            others: BTreeSet::new(),
            received: 0,
            bad: 0,
            banned: false,
            way: "direct",
            failed: None,
        };
        self.all.insert(key, source);
        self.keys.insert(device, key);
        self.changed = true;
        if self.running {
            self.follow(key);
        }
    }

    fn follow(&mut self, key: SourceKey) {
        let followed = self.all.values().filter(|s| s.task.is_some()).count();
        let Some(source) = self.all.get_mut(&key) else { return };
        if source.task.is_some() || followed >= FOLLOWED {
            return;
        }
        let following = Following {
            source: key,
            device: source.device,
            scope: self.scope.clone(),
            manifests: self.manifests.clone(),
            peers: self.peers.clone(),
            wake: source.wake.clone(),
            first_pause: self.first_pause,
            events: self.events.clone(),
        };
        source.task = Some(AbortOnDropHandle::new(tokio::spawn(following.run())));
    }

    /// A source can be reached; true if it may be asked.
    pub fn up(&mut self, key: SourceKey, link: PeerLink) -> bool {
        let Some(source) = self.all.get_mut(&key) else { return false };
        source.way = link.way.word();
        source.link = Some(link);
        source.failed = None;
        !source.banned
    }

    /// A source cannot be asked. One that has nothing to give makes room for another one.
    pub fn down(&mut self, key: SourceKey, error: Error) {
        let Some(source) = self.all.get_mut(&key) else { return };
        let refused = matches!(error.kind(), Kind::NotFound | Kind::PermissionDenied | Kind::Unauthenticated);
        source.link = None;
        source.others.clear();
        source.failed = Some(error);
        let followed = self.all.values().filter(|s| s.task.is_some()).count();
        let waiting = self.all.iter().find(|(_, s)| s.task.is_none() && !s.banned).map(|(key, _)| *key);
        if refused
            && followed >= FOLLOWED
            && let Some(next) = waiting
        {
            if let Some(source) = self.all.get_mut(&key) {
                source.task = None;
            }
            self.follow(next);
        }
    }

    /// The pieces that are told of by the beginnings of their digests. Others than ours are passed over.
    pub fn pieces(&self, told: &[u8]) -> Vec<Piece> {
        told.chunks_exact(8).filter_map(|p| self.prefixes.get(p).copied()).collect()
    }

    /// Takes what a source says of others; true if that changed who takes part.
    pub fn told_of_others(&mut self, key: SourceKey, message: &FollowResponse) -> bool {
        if message.others.is_empty() && message.others_left.is_empty() {
            return false;
        }
        let devices = |list: &[bytes::Bytes]| -> Vec<DeviceId> {
            list.iter().take(KNOWN).filter_map(|d| Some(DeviceId(d.as_ref().try_into().ok()?))).collect()
        };
        let (came, left) = (devices(&message.others), devices(&message.others_left));
        let Some(source) = self.all.get_mut(&key) else { return false };
        for device in left {
            source.others.remove(&device);
        }
        for device in &came {
            if source.others.len() < KNOWN {
                source.others.insert(*device);
            }
        }
        came.into_iter().for_each(|d| self.add(d));
        true
    }

    /// This node's position among those that take part, and their number. Those who follow this node are sources too.
    pub fn take_part(&mut self, here: &BTreeSet<DeviceId>) -> (usize, usize) {
        here.iter().for_each(|d| self.add(*d));
        let mut all: BTreeSet<DeviceId> = self.all.values().flat_map(|s| &s.others).copied().collect();
        all.extend(here);
        all.insert(self.me);
        (all.range(..self.me).count(), all.len())
    }

    /// Devices that may have something, though they do not take part in just the same.
    pub fn try_all(&mut self, devices: &BTreeSet<DeviceId>) {
        devices.iter().for_each(|d| self.add(*d));
    }

    /// Ends the pause of one that can be reached again, or of all.
    pub fn wake(&self, device: Option<DeviceId>) {
        match device {
            Some(device) => {
                if let Some(source) = self.keys.get(&device).and_then(|key| self.all.get(key)) {
                    source.wake.notify_one();
                }
            }
            None => self.all.values().for_each(|s| s.wake.notify_one()),
        }
    }

    /// A source has said what it has.
    pub fn heard(&mut self, key: SourceKey) {
        if let Some(source) = self.all.get_mut(&key) {
            source.heard = true;
        }
    }

    /// True if it is to be asked for no more than the others cannot bring.
    pub fn is_spared(&self, key: SourceKey) -> bool {
        self.all.get(&key).is_some_and(|s| s.spared)
    }

    /// True if nobody else is known.
    pub fn has_spared_only(&self) -> bool {
        self.all.values().all(|s| s.spared)
    }

    /// True if each of those that are followed has said what it has, or cannot be asked.
    pub fn all_heard(&self) -> bool {
        self.all.values().filter(|s| s.task.is_some()).all(|s| s.spared || s.heard || s.failed.is_some())
    }

    /// True if no source is there, so that others may be tried.
    pub fn is_short(&self) -> bool {
        self.running && !self.any_up()
    }

    /// True if some source is there.
    pub fn any_up(&self) -> bool {
        self.all.values().any(|s| s.link.is_some() && !s.banned)
    }

    /// Asks nodes that nobody named, now and then.
    pub fn try_neighbours(&mut self, neighbours: &[DeviceId]) {
        if self.neighbours_at.is_some_and(|at| at.elapsed() < NEIGHBOURS_EVERY) {
            return;
        }
        self.neighbours_at = Some(Instant::now());
        neighbours.iter().for_each(|d| self.add(*d));
    }

    /// What the next call to a source is made on.
    pub fn channel(&mut self, key: SourceKey) -> Option<Channel> {
        let source = self.all.get_mut(&key)?;
        let link = source.link.as_ref()?;
        source.next_bulk = source.next_bulk.wrapping_add(1);
        link.bulk.get(source.next_bulk % link.bulk.len().max(1)).cloned()
    }

    /// How people call a source.
    pub fn name(&self, key: SourceKey) -> &str {
        self.all.get(&key).map_or("", |s| &s.name)
    }

    /// Verified content came from it.
    pub fn received(&mut self, key: SourceKey, bytes: u64) {
        if let Some(source) = self.all.get_mut(&key) {
            source.received += bytes;
        }
    }

    /// It sent wrong pieces.
    pub fn blamed(&mut self, key: SourceKey, bad: u32, banned: bool) {
        if let Some(source) = self.all.get_mut(&key) {
            (source.bad, source.banned) = (bad, banned);
        }
    }

    /// True once after the list of sources has become longer.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The sources that are worth keeping.
    pub fn known(&self) -> Vec<DeviceId> {
        let useful = |s: &&Source| !s.banned && (s.received > 0 || s.link.is_some());
        self.all.values().filter(useful).map(|s| s.device).collect()
    }

    /// Why nothing moves.
    pub fn why_waiting(&self) -> Problem {
        let error = Error::new(Reason::NoSource, "nothing can be fetched at the moment");
        let named = |s: &&Source| s.banned || s.failed.is_some();
        let mut names: Vec<String> = Vec::new();
        for source in self.all.values().filter(named).take(5) {
            let why = match &source.failed {
                _ if source.banned => "sent wrong content",
                Some(error) => error.message(),
                None => "",
            };
            names.push(format!("{}: {why}", source.name));
        }
        if names.is_empty() { (&error).into() } else { (&error.why_is(names.join("; "))).into() }
    }

    /// For those who watch.
    pub fn progress(&self, rate: impl Fn(SourceKey) -> u64) -> Vec<SourceProgress> {
        let shown = |s: &&Source| s.link.is_some() || s.received > 0 || s.bad > 0;
        let one = |key: &SourceKey, s: &Source| SourceProgress {
            device: s.device,
            name: s.name.clone(),
            received_bytes: s.received,
            rate: if s.link.is_some() { rate(*key) } else { 0 },
            bad_chunk_count: s.bad,
            way: s.way,
            banned: s.banned,
        };
        self.all.iter().filter(|(_, s)| shown(s)).take(64).map(|(key, s)| one(key, s)).collect()
    }

    /// What was taken from the local disk, as a source.
    pub fn local(&self, bytes: u64) -> SourceProgress {
        SourceProgress {
            device: self.me,
            name: self.peers.name_of(&self.me),
            received_bytes: bytes,
            rate: 0,
            bad_chunk_count: 0,
            way: "local disk",
            banned: false,
        }
    }
}
