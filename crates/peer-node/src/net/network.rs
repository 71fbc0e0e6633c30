//! All connections of a node, and the making of new ones.

use super::admission::Admission;
use super::book::{Book, FoundBy, Known};
use super::dial::{DIAL_TIMEOUT, Dialed, Failure, dial, race};
use super::endpoint::Server;
use super::identity::{NodeIdentity, Way};
use super::link::{AnyStream, Link, NodeChannel};
use super::registry::{Incoming, Registry};
use super::relay::{Hub, RelayLimits, RelayServer, RelayStream, connect_through, listen_at};
use common::error::{Error, Kind, Reason, Result};
use common::identity::{DeviceId, DeviceKey, random_bytes};
use common::status::from_status;
use common::tls::NodeTls;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use proto::peer::v1 as peer;
use proto::peer::v1::enrolment_service_client::EnrolmentServiceClient;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often open connections are compared with who is welcome, and links looked for that are due.
pub const TICK: Duration = Duration::from_millis(400);
/// Where nodes listen when nothing else is said.
pub const DEFAULT_PORT: u16 = 7444;
/// How long direct attempts have before relays are tried as well.
const RELAY_GRACE: Duration = Duration::from_millis(1500);
/// For the first answer on a new connection.
const CHECK: Duration = Duration::from_secs(5);
/// Relays asked at a time.
const RELAYS: usize = 8;
/// For an answer over a link whose other end has been seen at a new address.
const DOUBTED: Duration = Duration::from_millis(1500);
/// How often a link's round trip is measured.
const MEASURE: Duration = Duration::from_secs(10);
/// Links being made by themselves at a time.
const MAKING: usize = 16;
/// How often a relayed link is tried to be made direct, at first.
const UPGRADE: Duration = Duration::from_secs(5);
/// Somebody who asks for a link gets the last failure again for so long, without a new attempt.
const ASKED_AGAIN_MS: u64 = 1000;
/// Addresses of one probe.
const PROBED: usize = 8;
/// For one address of a probe.
const PROBE: Duration = Duration::from_secs(3);
/// Probes at a time, over all callers.
const PROBES: usize = 16;

/// Gives the records that make this node a member.
pub type Introduction = Arc<dyn Fn() -> Vec<peer::Record> + Send + Sync>;

/// What a network needs.
#[derive(Clone)]
pub struct NetworkOptions {
    /// This node.
    pub key: Arc<DeviceKey>,
    /// Who is welcome.
    pub admission: Arc<dyn Admission>,
    /// Bulk connections of a link: 1 to 8.
    pub bulk_connections: usize,
    /// Links to members that are kept by themselves.
    pub max_links: usize,
    /// What this node passes on for others.
    pub relay: RelayLimits,
    /// Records that make this node a member, for one that has not heard of it; none until the office is known.
    pub introduction: Option<Introduction>,
    /// Where a node is tried of which nothing is known but that it came from an address.
    pub default_port: u16,
}

impl NetworkOptions {
    /// With the defaults.
    pub fn new(key: Arc<DeviceKey>, admission: Arc<dyn Admission>) -> Self {
        Self {
            key,
            admission,
            bulk_connections: 2,
            max_links: 64,
            relay: RelayLimits::default(),
            introduction: None,
            default_port: DEFAULT_PORT,
        }
    }
}

/// Why a link went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyDown {
    /// The other side ended it, or does not answer any longer.
    Gone,
    /// The device is no member any longer.
    NotAMember,
    /// This machine's address of it has gone.
    AddressGone,
    /// This node stops.
    Stopping,
}

/// What happens to links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// A device can be called; also when the way has changed.
    Up {
        /// Which.
        device: DeviceId,
        /// How.
        way: Way,
    },
    /// It cannot any longer.
    Down {
        /// Which.
        device: DeviceId,
        /// Why.
        why: WhyDown,
    },
    /// A member has connected to this node that was not connected before.
    Incoming {
        /// Which.
        device: DeviceId,
        /// How.
        way: Way,
    },
    /// This machine has other addresses now; see [`Network::addresses`].
    AddressChanged,
}

/// What came of connecting back to a caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeAnswer {
    /// Where it was reached, with its key verified.
    pub reached: Vec<SocketAddr>,
    /// For each of the others, why not.
    pub problems: Vec<String>,
}

/// Connects back to a caller: what `MembershipService.Probe` answers.
#[tonic::async_trait]
pub trait Prober: Send + Sync + 'static {
    /// Tries these addresses of the caller; see [`Network::probe`].
    ///
    /// # Errors
    /// OVERLOADED if a probe for this caller runs already or too many do.
    async fn probe(&self, caller: DeviceId, addresses: &[String]) -> Result<ProbeAnswer>;
}

#[tonic::async_trait]
impl Prober for Network {
    async fn probe(&self, caller: DeviceId, addresses: &[String]) -> Result<ProbeAnswer> {
        Network::probe(self, caller, addresses).await
    }
}

impl From<ProbeAnswer> for peer::ProbeResponse {
    fn from(answer: ProbeAnswer) -> Self {
        Self { reached: answer.reached.iter().map(SocketAddr::to_string).collect(), problems: answer.problems }
    }
}

/// All connections of a node. Clones are the same network. It works until [`Network::close`].
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    options: NetworkOptions,
    tls: NodeTls,
    me: DeviceId,
    began: Instant,
    state: Mutex<State>,
    registry: Arc<Registry>,
    hub: Arc<Hub>,
    server: OnceLock<Server>,
    events: broadcast::Sender<LinkEvent>,
    look: Notify,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
struct State {
    book: Book,
    links: HashMap<DeviceId, Link>,
    making: HashMap<DeviceId, watch::Receiver<Option<Made>>>,
    failed: HashMap<DeviceId, (u64, Arc<Error>)>,
    why_down: HashMap<DeviceId, WhyDown>,
    /// When a relayed link is tried to be made direct, and how long after that again.
    upgrade: HashMap<DeviceId, (u64, u64)>,
    ports: Vec<SocketAddr>,
    mine: BTreeSet<IpAddr>,
    relays: BTreeMap<DeviceId, bool>,
    probing: HashSet<DeviceId>,
}

type Made = std::result::Result<Link, Arc<Error>>;

/// A stream to a device whose key has been seen.
struct Reached {
    stream: AnyStream,
    way: Way,
    local: Option<SocketAddr>,
    round_trip: Duration,
}

impl Network {
    /// A network without connections, which makes links to members by itself as soon as their addresses are learnt.
    /// Call it inside a runtime.
    ///
    /// # Errors
    /// INTERNAL if the cryptography refuses the key.
    pub fn new(options: NetworkOptions) -> Result<Self> {
        let tls = NodeTls::new(&options.key)?;
        let network = Self(Arc::new(Inner {
            me: tls.me(),
            tls,
            began: Instant::now(),
            state: Mutex::default(),
            registry: Arc::default(),
            hub: Hub::new(options.relay),
            server: OnceLock::new(),
            events: broadcast::channel(1024).0,
            look: Notify::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            options,
        }));
        let keeper = network.clone();
        network.spawn(async move { keeper.keep().await });
        Ok(network)
    }

    /// This node's id.
    pub fn me(&self) -> DeviceId {
        self.0.me
    }

    /// The link to a member: the one that stands, or a new one. Callers that ask at the same time share one attempt; if
    /// an attempt has failed within the last second, they get its failure.
    ///
    /// # Errors
    /// NOT_A_MEMBER or DEVICE_REVOKED if the device is not welcome; PEER_UNREACHABLE with the reasons.
    pub async fn link(&self, device: DeviceId) -> Result<Link> {
        self.must_be_welcome(&device)?;
        let now = self.now_ms();
        let mut making = {
            let mut state = self.0.state.lock();
            if let Some(link) = state.links.get(&device).filter(|l| l.is_up()) {
                return Ok(link.clone());
            }
            let failed = state.failed.get(&device).filter(|(at, _)| now < at + ASKED_AGAIN_MS);
            if let Some((_, error)) = failed
                && !state.making.contains_key(&device)
                && state.book.retry_ms(&device).is_none_or(|at| at > now)
            {
                return Err(repeated(error));
            }
            self.make(&mut state, device)
        };
        let made = making.wait_for(Option::is_some).await.map(|made| made.clone());
        match made {
            Ok(Some(Ok(link))) => Ok(link),
            Ok(Some(Err(error))) => Err(repeated(&error)),
            _ => Err(Error::new(Reason::ShuttingDown, "this node is stopping")),
        }
    }

    /// The link to a device, if it stands now.
    pub fn linked(&self, device: &DeviceId) -> Option<Link> {
        self.0.state.lock().links.get(device).filter(|l| l.is_up()).cloned()
    }

    /// All links that stand.
    pub fn links(&self) -> Vec<Link> {
        self.0.state.lock().links.values().filter(|l| l.is_up()).cloned().collect()
    }

    /// The devices that can be called without making a connection first, in order of ids.
    pub fn neighbours(&self) -> Vec<DeviceId> {
        let mut devices: Vec<DeviceId> = self.links().iter().map(Link::device).collect();
        devices.sort();
        devices
    }

    /// Members that are connected to this node, and how they come here.
    pub fn incoming(&self) -> HashMap<DeviceId, Way> {
        self.0.registry.ways()
    }

    /// Connections that others have made: of members, of strangers.
    pub fn incoming_count(&self) -> (usize, usize) {
        self.0.registry.count()
    }

    /// What happens to links from now on. Who reads too slowly loses the oldest of 1,024 events and is told.
    pub fn events(&self) -> broadcast::Receiver<LinkEvent> {
        self.0.events.subscribe()
    }

    /// Notes where a device is. If it is a member without a link, one is made.
    pub fn learn(&self, device: DeviceId, address: SocketAddr, how: FoundBy) {
        if device == self.0.me {
            return;
        }
        let now = self.now_ms();
        let doubted = {
            let mut state = self.0.state.lock();
            if !state.book.learn(device, address, how, now) {
                return;
            }
            let elsewhere = |l: &&Link| l.is_up() && l.way() != Way::Direct(address);
            state.links.get(&device).filter(elsewhere).cloned()
        };
        match doubted {
            // It has one more address, or another one instead: then the link is dead, and nobody has noticed yet.
            Some(link) => self.spawn(async move {
                if tokio::time::timeout(DOUBTED, link.measure()).await.is_err() {
                    link.end();
                }
            }),
            None => self.0.look.notify_one(),
        }
    }

    /// What is known of a device's addresses.
    pub fn known(&self, device: &DeviceId) -> Vec<Known> {
        self.0.state.lock().book.known(device).to_vec()
    }

    /// Why the last attempt to make a link failed, if it did and there is none.
    pub fn last_failure(&self, device: &DeviceId) -> Option<Error> {
        let state = self.0.state.lock();
        if state.links.contains_key(device) {
            return None;
        }
        state.failed.get(device).map(|(_, error)| repeated(error))
    }

    /// Notes whether a member passes connections on, as it announces itself. Others are asked last.
    pub fn set_relay(&self, device: DeviceId, relays: bool) {
        let mut state = self.0.state.lock();
        if state.relays.len() < super::book::MAX_DEVICES || state.relays.contains_key(&device) {
            state.relays.insert(device, relays);
        }
    }

    /// Tries all members without a link at once, for example because a person asks or the machine has slept.
    pub fn hurry(&self) {
        self.0.state.lock().book.hurry_all();
        self.0.look.notify_one();
    }

    /// Compares all open connections with who is welcome now; it is done every [`TICK`] anyway.
    pub fn recheck(&self) {
        let welcome = |device: &DeviceId| self.0.options.admission.is_member(device);
        let ended = self.0.registry.keep(welcome);
        let mut unwelcome = Vec::new();
        {
            let mut state = self.0.state.lock();
            for (device, link) in state.links.iter().filter(|(d, l)| l.is_up() && !welcome(d)) {
                unwelcome.push((*device, link.clone()));
            }
            for (device, _) in &unwelcome {
                state.why_down.insert(*device, WhyDown::NotAMember);
                state.book.forget(device);
            }
        }
        for (device, link) in &unwelcome {
            tracing::info!(?device, "the link to a device that is no member any longer is closed");
            link.end();
        }
        if ended > 0 {
            tracing::info!(ended, "connections of devices that are no members any longer are closed");
        }
    }

    /// A connection to whoever answers at an address: for joining. The channel's other end is the device named in the
    /// identity; its connection ends when the last clone of the channel is dropped.
    ///
    /// # Errors
    /// PEER_UNREACHABLE with the reason.
    pub async fn dial_stranger(&self, address: SocketAddr) -> Result<(NodeIdentity, NodeChannel)> {
        let dialed = dial(&self.0.tls, address, None, DIAL_TIMEOUT).await.map_err(|failure| {
            unreachable(format!("no connection to {address}: {failure}")).with("failure", format!("{failure:?}"))
        })?;
        let device = DeviceId::of_key(&dialed.key);
        let member = self.0.options.admission.is_member(&device);
        let identity = NodeIdentity { device, key: dialed.key, way: Way::Direct(address), member };
        let channel = NodeChannel::over(Box::new(dialed.stream), device, self.0.stop.child_token()).await?;
        Ok((identity, channel))
    }

    /// Who answers at an address. Members are noted as being there.
    ///
    /// # Errors
    /// PEER_UNREACHABLE with the reason.
    pub async fn who_is_at(&self, address: SocketAddr, how: FoundBy) -> Result<NodeIdentity> {
        let (identity, _channel) = self.dial_stranger(address).await?;
        if identity.member {
            self.learn(identity.device, address, how);
        }
        Ok(identity)
    }

    /// Connects back to a member, to find out whether it can be reached: `MembershipService.Probe`. At most eight of its
    /// addresses are tried, for three seconds; addresses at which no other machine can be are refused.
    ///
    /// # Errors
    /// OVERLOADED if a probe for this caller runs already or too many do.
    pub async fn probe(&self, caller: DeviceId, addresses: &[String]) -> Result<ProbeAnswer> {
        let _probing = Probing::begin(self, caller)?;
        let mut answer = ProbeAnswer::default();
        let mut dialing = FuturesUnordered::new();
        for text in addresses.iter().take(PROBED) {
            match probed(text) {
                Ok(address) => dialing
                    .push(async move { (address, dial(&self.0.tls, address, Some(caller), PROBE).await.map(|_| ())) }),
                Err(problem) => answer.problems.push(problem),
            }
        }
        while let Some((address, outcome)) = dialing.next().await {
            match outcome {
                Ok(()) => {
                    self.learn(caller, address, FoundBy::Member);
                    answer.reached.push(address);
                }
                Err(failure) => answer.problems.push(format!("{address}: {failure}")),
            }
        }
        Ok(answer)
    }

    /// Where this node can be reached: the addresses of its listeners, with those of this machine in place of
    /// unspecified ones.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let state = self.0.state.lock();
        let mut all = BTreeSet::new();
        for listener in &state.ports {
            match listener.ip() {
                ip if !ip.is_unspecified() => _ = all.insert(*listener),
                ip => {
                    let fits = |mine: &&IpAddr| mine.is_ipv4() || ip.is_ipv6();
                    all.extend(state.mine.iter().filter(fits).map(|mine| SocketAddr::new(*mine, listener.port())));
                }
            }
        }
        all.into_iter().collect()
    }

    /// Whether a device is a member now.
    pub fn welcomes(&self, device: &DeviceId) -> bool {
        self.0.options.admission.is_member(device)
    }

    /// Whether a listener takes connections to this address of this machine.
    pub fn listens_at(&self, mine: IpAddr) -> bool {
        let fits = |ip: IpAddr| ip == mine || (ip.is_unspecified() && (ip.is_ipv6() || mine.is_ipv4()));
        self.0.state.lock().ports.iter().any(|listener| fits(listener.ip()))
    }

    /// The port of the first listener; `None` before there is one.
    pub fn port(&self) -> Option<u16> {
        self.0.state.lock().ports.first().map(SocketAddr::port)
    }

    /// Says which addresses this machine has now. Links over one that is gone end at once, and everything that failed
    /// is tried again.
    pub fn set_own_addresses(&self, mine: BTreeSet<IpAddr>) {
        let mut ending = Vec::new();
        {
            let mut state = self.0.state.lock();
            if state.mine == mine {
                return;
            }
            let gone = |link: &Link| {
                let local = link.local_address().map(|a| a.ip().to_canonical());
                local.is_some_and(|ip| !ip.is_loopback() && state.mine.contains(&ip) && !mine.contains(&ip))
            };
            ending.extend(state.links.values().filter(|l| l.is_up() && gone(l)).cloned());
            for link in &ending {
                state.why_down.insert(link.device(), WhyDown::AddressGone);
            }
            state.mine = mine;
            state.book.hurry_all();
        }
        ending.iter().for_each(Link::end);
        self.emit(LinkEvent::AddressChanged);
        self.0.look.notify_one();
    }

    /// The relay's service, to be mounted beside the others.
    pub fn relay_server(&self) -> RelayServer {
        RelayServer::new(self.0.hub.clone())
    }

    /// Connections that this node passes on now.
    pub fn relaying(&self) -> usize {
        self.0.hub.passing()
    }

    /// Whether this node passes connections on for others.
    pub fn relays(&self) -> bool {
        self.0.options.relay.connections > 0
    }

    /// Whether a device keeps a connection here by which it can be called back.
    pub fn can_call_back(&self, device: &DeviceId) -> bool {
        self.0.hub.listens(device)
    }

    /// Ends all links and makes no more. Neighbours notice at once.
    pub async fn close(&self) {
        let links: Vec<Link> = {
            let mut state = self.0.state.lock();
            let links: Vec<Link> = state.links.values().cloned().collect();
            for link in &links {
                state.why_down.insert(link.device(), WhyDown::Stopping);
            }
            links
        };
        self.0.stop.cancel();
        links.iter().for_each(Link::end);
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    // ---- for the other parts of `net`

    pub(super) fn tls(&self) -> NodeTls {
        self.0.tls.clone()
    }

    pub(super) fn admission(&self) -> Arc<dyn Admission> {
        self.0.options.admission.clone()
    }

    pub(super) fn listens_on(&self, addresses: Vec<SocketAddr>) {
        self.0.state.lock().ports.extend(addresses);
    }

    pub(super) fn serves_with(&self, server: Server) {
        // A second endpoint takes connections of its own; relayed ones go to the first.
        let _ = self.0.server.set(server);
    }

    /// Lets go of those who keep a call open here to be called back.
    pub(super) fn ends_listening(&self) {
        self.0.hub.close();
    }

    pub(super) fn server(&self) -> Option<Server> {
        self.0.server.get().cloned()
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.0.stop.clone();
        self.0.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// A connection has come in.
    pub(super) fn entered(&self, device: DeviceId, member: bool, way: Way) -> Option<Incoming> {
        let first = member && !self.0.registry.ways().contains_key(&device);
        let incoming = self.0.registry.enter(device, member, way)?;
        if first {
            self.emit(LinkEvent::Incoming { device, way });
            self.came_from(device, way);
        }
        Some(incoming)
    }

    /// Whoever has come here is awake, and probably listens where it came from.
    fn came_from(&self, device: DeviceId, way: Way) {
        let now = self.now_ms();
        let mut state = self.0.state.lock();
        if state.links.contains_key(&device) {
            return;
        }
        if let Some(address) = way.address() {
            let known = state.book.known(&device).iter().any(|k| k.address.ip() == address.ip());
            if !known {
                let guess = SocketAddr::new(address.ip(), self.0.options.default_port);
                state.book.learn(device, guess, FoundBy::Incoming, now);
            }
        }
        state.book.hurry(&device);
        drop(state);
        self.0.look.notify_one();
    }

    // ---- keeping links

    async fn keep(&self) {
        loop {
            let _ = tokio::time::timeout(TICK, self.0.look.notified()).await;
            self.recheck();
            self.make_due();
            self.upgrade_due();
        }
    }

    /// Begins to make the links that are missing.
    fn make_due(&self) {
        let now = self.now_ms();
        let mut state = self.0.state.lock();
        for device in self.0.hub.listening() {
            state.book.callable(device);
        }
        let room =
            self.0.options.max_links.saturating_sub(state.links.len()).min(MAKING.saturating_sub(state.making.len()));
        if room == 0 {
            return;
        }
        let mut due: Vec<DeviceId> = state
            .book
            .due(now)
            .into_iter()
            .filter(|d| !state.links.contains_key(d) && !state.making.contains_key(d))
            .filter(|d| self.0.options.admission.is_member(d))
            .collect();
        // Every node prefers others, so that the links of a large office make one connected whole.
        due.sort_by_cached_key(|d| *blake3::hash(&[self.0.me.0, d.0].concat()).as_bytes());
        for device in due.into_iter().take(room) {
            self.make(&mut state, device);
        }
    }

    fn upgrade_due(&self) {
        let now = self.now_ms();
        let due: Vec<Link> = {
            let mut state = self.0.state.lock();
            let relayed: Vec<Link> =
                state.links.values().filter(|l| matches!(l.way(), Way::Relayed(_)) && l.is_up()).cloned().collect();
            state.upgrade.retain(|device, _| relayed.iter().any(|l| l.device() == *device));
            let first = UPGRADE.as_millis() as u64;
            relayed
                .into_iter()
                .filter(|link| {
                    let (at, delay) = state.upgrade.entry(link.device()).or_insert((now + first, first));
                    let is_due = *at <= now;
                    if is_due {
                        *delay = (*delay * 2).min(super::book::LONGEST_DELAY_MS);
                        *at = now + *delay;
                    }
                    is_due
                })
                .collect()
        };
        for link in due {
            let this = self.clone();
            self.spawn(async move { this.upgrade(link).await });
        }
    }

    async fn upgrade(&self, old: Link) {
        let device = old.device();
        if let Some(reached) = self.directly(device).await
            && let Ok(new) = self.establish(device, reached).await
        {
            self.install(new, Some(&old));
        }
    }

    /// Begins an attempt, or joins the one that runs.
    fn make(&self, state: &mut State, device: DeviceId) -> watch::Receiver<Option<Made>> {
        if let Some(running) = state.making.get(&device) {
            return running.clone();
        }
        let (sender, receiver) = watch::channel(None);
        state.making.insert(device, receiver.clone());
        let this = self.clone();
        self.spawn(async move {
            let made = this.try_to_make(device).await.map_err(Arc::new);
            this.made(device, &made);
            sender.send_replace(Some(made));
        });
        receiver
    }

    fn made(&self, device: DeviceId, made: &Made) {
        let now = self.now_ms();
        {
            let mut state = self.0.state.lock();
            state.making.remove(&device);
            if let Err(error) = made {
                let jitter = f64::from(u32::from_le_bytes(random_bytes())) / f64::from(u32::MAX);
                state.book.gave_up(&device, now, jitter);
                state.failed.retain(|_, (at, _)| now < *at + super::book::FORGET_MS);
                if state.failed.len() < super::book::MAX_DEVICES {
                    state.failed.insert(device, (now, error.clone()));
                }
                return;
            }
            state.failed.remove(&device);
        }
        if let Ok(link) = made {
            self.install(link.clone(), None);
        }
    }

    /// Puts a link in its place, which may be another link's.
    fn install(&self, link: Link, instead_of: Option<&Link>) {
        let (device, way) = (link.device(), link.way());
        let before = {
            let mut state = self.0.state.lock();
            if let Some(old) = instead_of
                && !state.links.get(&device).is_some_and(|l| l.same(old))
            {
                return;
            }
            state.why_down.remove(&device);
            // The new neighbour may be the way to those who could not be reached until now.
            state.failed.clear();
            state.links.insert(device, link.clone())
        };
        if let Some(before) = before {
            before.retire();
        }
        self.emit(LinkEvent::Up { device, way });
        let this = self.clone();
        self.0.tasks.spawn(async move { this.watch(link).await });
    }

    /// Attends to a link until it has ended.
    async fn watch(&self, link: Link) {
        let attend = async {
            let mut tick = tokio::time::interval(MEASURE);
            tick.tick().await;
            loop {
                tick.tick().await;
                match tokio::time::timeout(MEASURE, link.measure()).await {
                    Ok(Err(error)) if error.is(Reason::NotAMember) => return link.end(),
                    _ => {}
                }
            }
        };
        tokio::select! {
            () = link.ended() => {}
            () = link.retired() => return,
            () = attend => {}
            () = listen_at(self.clone(), link.clone()) => link.ended().await,
            () = self.0.stop.cancelled() => link.end(),
        }
        let device = link.device();
        let why = {
            let mut state = self.0.state.lock();
            if !state.links.get(&device).is_some_and(|l| l.same(&link)) {
                return;
            }
            state.links.remove(&device);
            state.book.hurry(&device);
            state.why_down.remove(&device).unwrap_or(WhyDown::Gone)
        };
        self.emit(LinkEvent::Down { device, why });
        self.0.look.notify_one();
    }

    // ---- making one

    async fn try_to_make(&self, device: DeviceId) -> Result<Link> {
        self.must_be_welcome(&device)?;
        let mut direct = pin!(self.directly(device));
        let reached = match tokio::time::timeout(RELAY_GRACE, direct.as_mut()).await {
            Ok(Some(reached)) => Some(reached),
            Ok(None) => self.indirectly(device).await,
            Err(_) => tokio::select! {
                Some(reached) = direct.as_mut() => Some(reached),
                Some(reached) = self.indirectly(device) => Some(reached),
                else => None,
            },
        };
        match reached {
            Some(reached) => self.establish(device, reached).await,
            None => Err(self.why_unreachable(&device)),
        }
    }

    async fn directly(&self, device: DeviceId) -> Option<Reached> {
        let addresses = self.0.state.lock().book.candidates(&device);
        let failed = |address, failure: Failure| {
            tracing::debug!(?device, %address, %failure, "an address did not work");
            self.0.state.lock().book.failed(&device, address, failure, self.now_ms());
        };
        let dialed = race(&self.0.tls, &addresses, device, DIAL_TIMEOUT, failed).await?;
        self.0.state.lock().book.reached(device, dialed.address, self.now_ms());
        let Dialed { stream, address, local, round_trip, .. } = dialed;
        Some(Reached { stream: Box::new(stream), way: Way::Direct(address), local: Some(local), round_trip })
    }

    /// Through this node itself, if the device keeps a connection here, or through a neighbour.
    async fn indirectly(&self, device: DeviceId) -> Option<Reached> {
        if self.0.hub.listens(&device)
            && let Ok(reached) = self.through(self.0.me, device).await
        {
            return Some(reached);
        }
        let mut relays: Vec<(bool, DeviceId)> = {
            let state = self.0.state.lock();
            let direct = |l: &&Link| matches!(l.way(), Way::Direct(_)) && l.is_up() && l.device() != device;
            let relays = |id| state.relays.get(&id).copied();
            let possible = state.links.values().filter(direct).map(|l| (relays(l.device()), l.device()));
            possible.filter(|(says, _)| *says != Some(false)).map(|(says, id)| (says.is_none(), id)).collect()
        };
        relays.sort();
        let mut asking: FuturesUnordered<_> =
            relays.into_iter().take(RELAYS).map(|(_, relay)| self.through(relay, device)).collect();
        while let Some(outcome) = asking.next().await {
            match outcome {
                Ok(reached) => return Some(reached),
                Err(error) => tracing::debug!(?device, reason = error.reason(), "a relay did not help"),
            }
        }
        None
    }

    async fn through(&self, relay: DeviceId, device: DeviceId) -> Result<Reached> {
        let stream = self.relayed_stream(relay, device).await?;
        Ok(Reached { stream, way: Way::Relayed(relay), local: None, round_trip: Duration::ZERO })
    }

    async fn relayed_stream(&self, relay: DeviceId, device: DeviceId) -> Result<AnyStream> {
        let raw = if relay == self.0.me {
            RelayStream::from(self.0.hub.call_back(self.0.me, device)?)
        } else {
            let link = self.linked(&relay).ok_or_else(|| unreachable("the relay is not connected".into()))?;
            connect_through(&link, device).await?
        };
        let (stream, _) = tokio::time::timeout(DIAL_TIMEOUT, self.0.tls.connect_over(raw, Some(device)))
            .await
            .map_err(|_| unreachable("no answer through the relay".into()))?
            .map_err(|e| unreachable("the handshake through the relay failed".into()).caused_by(e))?;
        Ok(Box::new(stream))
    }

    /// From a stream to a link: the other side must answer, and count this node as a member.
    async fn establish(&self, device: DeviceId, reached: Reached) -> Result<Link> {
        let mut end = self.0.stop.child_token();
        let Reached { stream, way, local, round_trip } = reached;
        let mut control = NodeChannel::over(stream, device, end.clone()).await?;
        let asked = tokio::time::timeout(CHECK, control.check()).await;
        if matches!(asked, Ok(Ok(false))) && self.0.options.admission.introduce(control.clone()).await {
            // It takes this node for a stranger as long as that connection lasts.
            let stream = self.again(device, way).await.map_err(|e| unreachable("it went away".into()).caused_by(e))?;
            end = self.0.stop.child_token();
            control = NodeChannel::over(stream, device, end.clone()).await?;
        }
        let bulk = (0..self.0.options.bulk_connections.clamp(1, 8)).map(|_| {
            // The link must not keep the network alive, nor the network the link.
            let this = Arc::downgrade(&self.0);
            NodeChannel::lazy(device, end.clone(), move || {
                let this = this.upgrade().map(Network);
                async move {
                    let gone = || io::Error::new(io::ErrorKind::NotConnected, "the network is closed");
                    this.ok_or_else(gone)?.again(device, way).await
                }
            })
        });
        let link = Link::new(way, local, control, bulk.collect(), end, round_trip);
        match tokio::time::timeout(CHECK, self.check(&link)).await {
            Ok(Ok(())) => Ok(link),
            Ok(Err(error)) => {
                if let (true, Some(address)) = (error.is(Reason::NotAMember), way.address()) {
                    self.0.state.lock().book.failed(&device, address, Failure::NotWelcome, self.now_ms());
                }
                link.end();
                Err(error)
            }
            Err(_) => {
                link.end();
                Err(unreachable("it took the connection and does not answer".into()))
            }
        }
    }

    /// The first call. One that does not know this node as a member is shown why it is one.
    async fn check(&self, link: &Link) -> Result<()> {
        let Err(error) = link.measure().await else { return Ok(()) };
        let records = self.0.options.introduction.as_ref().map(|records| records()).unwrap_or_default();
        if !error.is(Reason::NotAMember) || records.is_empty() {
            return Err(error);
        }
        let mut client = EnrolmentServiceClient::new(link.control());
        client.introduce(peer::IntroduceRequest { records }).await.map_err(|s| from_status(&s))?;
        link.measure().await
    }

    /// One more connection, the same way.
    async fn again(&self, device: DeviceId, way: Way) -> io::Result<AnyStream> {
        if !self.0.options.admission.is_member(&device) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the device is no member any longer"));
        }
        match way {
            Way::Direct(address) => match dial(&self.0.tls, address, Some(device), DIAL_TIMEOUT).await {
                Ok(dialed) => Ok(Box::new(dialed.stream)),
                Err(failure) => Err(io::Error::new(io::ErrorKind::NotConnected, failure.to_string())),
            },
            Way::Relayed(relay) => self.relayed_stream(relay, device).await.map_err(io::Error::other),
        }
    }

    // ---- small things

    fn must_be_welcome(&self, device: &DeviceId) -> Result<()> {
        let admission = &self.0.options.admission;
        if admission.is_member(device) {
            return Ok(());
        }
        Err(match admission.is_revoked(device) {
            true => Error::new(Reason::DeviceRevoked, "that machine was cut off from the office"),
            false => Error::new(Reason::NotAMember, "that machine is not a member of the office"),
        })
    }

    fn why_unreachable(&self, device: &DeviceId) -> Error {
        let state = self.0.state.lock();
        let known = state.book.known(device);
        if known.is_empty() {
            return unreachable("no address of it is known, and no member passes connections on to it".into());
        }
        let tried: Vec<String> = known
            .iter()
            .filter_map(|k| k.failed.as_ref().map(|(_, failure)| format!("{}: {failure}", k.address)))
            .collect();
        unreachable(format!("no connection to the machine ({})", tried.join("; ")))
    }

    fn emit(&self, event: LinkEvent) {
        // Fails only if nobody listens.
        let _ = self.0.events.send(event);
    }

    /// Milliseconds since this network began.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl fmt::Debug for NetworkOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkOptions({:?})", self.key)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Network({:?})", self.0.me)
    }
}

fn unreachable(what: String) -> Error {
    Error::new(Reason::PeerUnreachable, what)
}

/// The same error for one more who asked.
fn repeated(error: &Error) -> Error {
    let mut copy = Error::remote(
        error.kind(),
        error.reason().to_owned(),
        error.message().to_owned(),
        error.why().to_owned(),
        error.fix().to_owned(),
    );
    for (key, value) in error.metadata() {
        copy = copy.with(key, value);
    }
    if error.kind() == Kind::Unavailable {
        copy = copy.retry_after(Duration::from_millis(ASKED_AGAIN_MS));
    }
    copy
}

/// Reads an address that a caller wants to be tried at.
fn probed(text: &str) -> std::result::Result<SocketAddr, String> {
    let shown: String = text.chars().filter(|c| !c.is_control()).take(64).collect();
    let address: SocketAddr = text.parse().map_err(|_| format!("{shown}: not an address"))?;
    let ip = address.ip().to_canonical();
    let nobody = ip.is_unspecified() || ip.is_multicast() || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if nobody || address.port() < 1024 {
        return Err(format!("{shown}: nothing of a node can be there"));
    }
    Ok(SocketAddr::new(ip, address.port()))
}

/// A probe that runs.
struct Probing<'a> {
    network: &'a Network,
    caller: DeviceId,
}

impl<'a> Probing<'a> {
    fn begin(network: &'a Network, caller: DeviceId) -> Result<Self> {
        let mut state = network.0.state.lock();
        if state.probing.len() >= PROBES || !state.probing.insert(caller) {
            return Err(Error::new(Reason::Overloaded, "a probe is running already").retry_after(PROBE));
        }
        Ok(Self { network, caller })
    }
}

impl Drop for Probing<'_> {
    fn drop(&mut self) {
        self.network.0.state.lock().probing.remove(&self.caller);
    }
}
