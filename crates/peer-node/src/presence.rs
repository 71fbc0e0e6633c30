//! Who is there and how to reach them: multicast DNS, beacon, seeds.
//!
//! ```text
//!   beacon: UDP broadcast on each card, IPv6 group ─┐                      ┌─▶ Network::learn: connections
//!   mdns:   _atrium._tcp ───────────────────────────┼─▶ Table (no IO) ─────┼─▶ beacons: to all, or to one that is new
//!   connections that stand or end ──────────────────┘                      └─▶ peers(): who is there
//!   seeds, typed addresses ───▶ Network::who_is_at ──▶ members are learnt
//!   cards, once a second ─────▶ sockets, Network::set_own_addresses
//! ```
//!
//! Three ways side by side, since each fails somewhere: access points drop multicast, firewalls drop broadcasts, names
//! need someone to type them. What is heard is a hint. Who is really there, and whether it belongs, is shown by the
//! connection that follows, so a liar in the network can cause an attempt to connect and nothing else.
//!
//! When it starts, or its addresses or what it has to say change, a node calls five times within two seconds and asks for
//! answers; then every thirty seconds. On a clean exit it says goodbye three times. See [`table`] for what is made of it.
//!
//! Whether a neighbour can also connect to this node is seen from its connections, or else it is asked to try
//! (`MembershipService.Probe`). [`Presence::peers`] puts this into words with a cause and a remedy ([`diagnose`]).
//!
//! # Bounds
//! Datagrams of 1,200 bytes; 500 a second are looked at, 40 from one address; 1,024 wait. Tables: see [`table`]. 64 seeds.
//! What is beyond is dropped: everything that is true is repeated. Nothing is kept on disk.

pub mod beacon;
pub mod cards;
pub mod diagnose;
mod mdns;
mod run;
mod seeds;
#[cfg(test)]
mod simulation;
pub mod table;
mod udp;
mod view;

pub use diagnose::{Problem, Reach};
pub use udp::GROUP;
pub use view::PeerView;

use crate::model::OfficeId;
use crate::net::{FoundBy, Network, ProbeAnswer};
use beacon::{InstanceId, OfficeTag};
use cards::Card;
use common::clock::SharedClock;
use common::error::{Error, Reason, Result};
use common::identity::{DeviceId, DeviceKey, random_bytes};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use table::Table;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Where beacons are heard when the settings say nothing.
pub const BEACON_PORT: u16 = 7445;
/// Seeds and typed addresses that are attended to.
pub const MAX_SEEDS: usize = 64;

/// What a node has to say about itself; asked whenever it calls.
pub trait About: Send + Sync + 'static {
    /// Its office, if it has one.
    fn office(&self) -> Option<OfficeId>;
    /// Public parts of the codes by which others can join here.
    fn inviting(&self) -> Vec<String>;
    /// What the machine is called; told to everyone only as long as it has no office.
    fn display_name(&self) -> String;
}

/// How others are looked for.
#[derive(Clone)]
pub struct PresenceOptions {
    /// This node's key, which signs beacons.
    pub key: Arc<DeviceKey>,
    /// Multicast DNS.
    pub mdns: bool,
    /// Beacons.
    pub beacon: bool,
    /// UDP port of beacons.
    pub beacon_port: u16,
    /// "host:port", "host", addresses.
    pub seeds: Vec<String>,
    /// Where a seed is asked that names no port.
    pub default_port: u16,
    /// For beacons' times.
    pub clock: SharedClock,
}

/// The tag by which members of one office know each other's beacons.
pub fn office_tag(office: &OfficeId) -> OfficeTag {
    let digest = blake3::hash(&office.0);
    let mut tag = [0; 8];
    tag.copy_from_slice(&digest.as_bytes()[..8]);
    tag
}

/// Looks for others and is found by them. Clones are the same. It works until [`Presence::leave`].
#[derive(Clone)]
pub struct Presence(Arc<Inner>);

struct Inner {
    network: Network,
    about: Arc<dyn About>,
    options: PresenceOptions,
    instance: InstanceId,
    began: Instant,
    state: Mutex<State>,
    /// What is to be said has changed.
    news: Notify,
    hurry: Notify,
    /// Rises when someone appears or leaves.
    changes: watch::Sender<u64>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct State {
    table: Table,
    cards: Vec<Card>,
    probes: HashMap<DeviceId, Probed>,
    seeds: BTreeMap<String, String>,
    /// How it looks for others, and what does not work of it.
    discovery: Vec<String>,
}

/// What a neighbour said when it was asked to connect back.
struct Probed {
    at_ms: u64,
    running: bool,
    answer: Option<Result<ProbeAnswer, String>>,
}

impl Presence {
    /// Begins to look for others. The network must have an endpoint already. Call it inside a runtime.
    ///
    /// # Errors
    /// INTERNAL if the network listens nowhere.
    pub fn start(network: Network, about: Arc<dyn About>, options: PresenceOptions) -> Result<Self> {
        let port = network.port().ok_or_else(|| Error::internal("presence without a listener"))?;
        let table = Table::new(network.me(), 0);
        let state =
            State { table, cards: Vec::new(), probes: HashMap::new(), seeds: BTreeMap::new(), discovery: Vec::new() };
        let presence = Self(Arc::new(Inner {
            network,
            about,
            instance: random_bytes(),
            began: Instant::now(),
            state: Mutex::new(state),
            news: Notify::new(),
            hurry: Notify::new(),
            changes: watch::channel(0).0,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            options,
        }));
        presence.0.tasks.spawn(run::run(presence.clone(), port));
        for seed in presence.0.options.seeds.clone() {
            presence.add_seed(&seed, FoundBy::Seed)?;
        }
        Ok(presence)
    }

    /// This start of the program.
    pub fn instance(&self) -> InstanceId {
        self.0.instance
    }

    /// Asks one more machine, from now on.
    ///
    /// # Errors
    /// OVERLOADED if there are 64 already.
    pub fn add_seed(&self, seed: &str, how: FoundBy) -> Result<()> {
        {
            let mut state = self.0.state.lock();
            if state.seeds.contains_key(seed) {
                return Ok(());
            }
            if state.seeds.len() >= MAX_SEEDS {
                return Err(Error::new(Reason::Overloaded, "there are 64 addresses to ask already"));
            }
            state.seeds.insert(seed.to_owned(), "being asked".to_owned());
        }
        let (stop, attending) = (self.0.stop.clone(), seeds::attend(self.clone(), seed.to_owned(), how));
        self.0.tasks.spawn(async move {
            stop.run_until_cancelled(attending).await;
        });
        Ok(())
    }

    /// Says at once what has changed: the office, an invite, the name. Also asks everyone to answer.
    pub fn announce(&self) {
        self.0.news.notify_one();
        self.0.hurry.notify_waiters();
    }

    /// Rises whenever someone appears or leaves.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Whether a device is there.
    pub fn is_present(&self, device: &DeviceId) -> bool {
        self.0.state.lock().table.get(device).is_some_and(|seen| seen.present)
    }

    /// Who in this network has given out a code with this public part, and where they are: at most four.
    pub fn inviters(&self, nameplate: &str) -> Vec<(DeviceId, Vec<SocketAddr>)> {
        let state = self.0.state.lock();
        let inviting = state.table.all().filter(|(_, s)| s.present && s.inviting.iter().any(|n| n == nameplate));
        let mut found: Vec<_> =
            inviting.map(|(d, s)| (*d, s.addresses.iter().rev().map(|(a, _)| *a).collect())).collect();
        found.sort();
        found.truncate(4);
        found
    }

    /// The same, waiting until one is found.
    ///
    /// # Errors
    /// INVITE_UNKNOWN if nobody is within the patience.
    pub async fn find_inviters(&self, nameplate: &str, patience: Duration) -> Result<Vec<(DeviceId, Vec<SocketAddr>)>> {
        let mut changes = self.changes();
        let finding = async {
            loop {
                changes.mark_unchanged();
                let found = self.inviters(nameplate);
                if !found.is_empty() {
                    return found;
                }
                self.announce();
                // An inviter that was there before its code was made does not appear anew.
                let _ = tokio::time::timeout(Duration::from_millis(500), changes.changed()).await;
            }
        };
        tokio::time::timeout(patience, finding).await.map_err(|_| {
            Error::new(Reason::InviteUnknown, "no machine of this network has given out this code")
                .fix_is("check the code; or name the inviting machine's address: `atrium join ADDRESS CODE`")
        })
    }

    /// How others are looked for, and what does not work of it; for people.
    pub fn discovery(&self) -> Vec<String> {
        let state = self.0.state.lock();
        let seeds = state.seeds.iter().map(|(seed, words)| format!("seed {seed}: {words}"));
        state.discovery.iter().cloned().chain(seeds).collect()
    }

    /// Says goodbye to everyone and ends. Repeating it is harmless.
    pub async fn leave(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    // ---- for the other parts of `presence`

    fn network(&self) -> &Network {
        &self.0.network
    }

    fn default_port(&self) -> u16 {
        self.0.options.default_port
    }

    fn note_seed(&self, seed: &str, words: String) {
        self.0.state.lock().seeds.insert(seed.to_owned(), words);
    }

    async fn hurried(&self) {
        self.0.hurry.notified().await;
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Presence({:?})", self.0.network.me())
    }
}
