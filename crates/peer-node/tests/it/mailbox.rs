//! Mailboxes of several nodes in one process: real disks and calls, a network that can be switched off.

use bytes::Bytes;
use common::clock::SystemClock;
use common::error::{Error, Reason, Result};
use common::identity::DeviceKey;
use common::model::{ChunkId, DeviceId};
use common::shutdown::Shutdown;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use peer_node::mailbox::{
    ArrivedState, DeliveryState, Fetcher, Mailbox, MailboxSettings, Members, Prepared, Rules, SealingKey, Sent,
};
use peer_node::model::{OfficeId, ParcelId, TransferId};
use peer_node::net::NodeIdentity;
use peer_node::source::{ChunkSource, Place};
use peer_node::transfer::peers::{CallError, Channel};
use peer_node::transfer::{Limit, Order, PeerEvent, PeerLink, Peers, Progress, State, peers::Way};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};
use tower::ServiceExt;

const PATIENCE: Duration = Duration::from_secs(60);

struct Node {
    key: Arc<DeviceKey>,
    directory: PathBuf,
    mailbox: Option<Mailbox>,
    events: broadcast::Sender<PeerEvent>,
    shutdown: Shutdown,
}

/// All nodes, and who is on.
#[derive(Default)]
struct World {
    nodes: Mutex<BTreeMap<DeviceId, Node>>,
    on: Mutex<BTreeSet<DeviceId>>,
    strangers: Mutex<BTreeSet<DeviceId>>,
    /// What a fetch got from whom.
    fetched: Mutex<Vec<(DeviceId, DeviceId, usize)>>,
}

#[derive(Clone)]
struct View {
    world: Arc<World>,
    me: DeviceId,
    transfers: Arc<Mutex<HashMap<TransferId, watch::Receiver<Progress>>>>,
}

impl World {
    fn mailbox(&self, device: &DeviceId) -> Mailbox {
        self.nodes.lock()[device].mailbox.clone().expect("the node runs")
    }

    fn is_on(&self, device: &DeviceId) -> bool {
        self.on.lock().contains(device)
    }

    /// A new node, switched on.
    fn add(self: &Arc<Self>, directory: &Path, rules: Rules) -> DeviceId {
        let key = Arc::new(DeviceKey::generate());
        let me = key.device_id();
        let directory = directory.join(me.to_string());
        let node = Node {
            key,
            directory,
            mailbox: None,
            events: broadcast::channel(64).0,
            shutdown: Shutdown::new(Duration::ZERO),
        };
        self.nodes.lock().insert(me, node);
        self.start(me, rules);
        me
    }

    fn start(self: &Arc<Self>, me: DeviceId, rules: Rules) {
        let view = View { world: self.clone(), me, transfers: Arc::default() };
        let (key, directory, shutdown) = {
            let mut nodes = self.nodes.lock();
            let node = nodes.get_mut(&me).unwrap();
            node.shutdown = Shutdown::new(Duration::ZERO);
            (node.key.clone(), node.directory.clone(), node.shutdown.clone())
        };
        let settings = MailboxSettings {
            directory: directory.join("mailbox"),
            inbox: directory.join("inbox"),
            keep: Duration::from_secs(3_600),
            outbox_bytes: 1 << 30,
            keeper: true,
            keeper_bytes: 1 << 30,
            rules,
        };
        let view = Arc::new(view);
        let clock = Arc::new(SystemClock);
        let mailbox = Mailbox::open(settings, key, view.clone(), view.clone(), view, clock, &shutdown).unwrap();
        self.nodes.lock().get_mut(&me).unwrap().mailbox = Some(mailbox);
        self.on.lock().insert(me);
        let others: Vec<DeviceId> = self.on.lock().iter().copied().filter(|d| *d != me).collect();
        let nodes = self.nodes.lock();
        for other in others {
            let _ = nodes[&me].events.send(PeerEvent::Up(other));
            let _ = nodes[&other].events.send(PeerEvent::Up(me));
        }
    }

    fn stop(&self, me: DeviceId) {
        self.on.lock().remove(&me);
        let mut nodes = self.nodes.lock();
        let node = nodes.get_mut(&me).unwrap();
        node.shutdown.begin();
        node.mailbox = None;
        for (_, other) in nodes.iter() {
            let _ = other.events.send(PeerEvent::Down(me));
        }
    }

    fn inbox(&self, device: &DeviceId) -> PathBuf {
        self.nodes.lock()[device].directory.join("inbox")
    }
}

impl Members for View {
    fn office(&self) -> OfficeId {
        OfficeId([3; 32])
    }

    fn is_member(&self, device: &DeviceId) -> bool {
        self.world.nodes.lock().contains_key(device) && !self.world.strangers.lock().contains(device)
    }

    fn sealing_key(&self, device: &DeviceId) -> Option<[u8; 32]> {
        let key = self.world.nodes.lock().get(device)?.key.clone();
        Some(SealingKey::of(&key).unwrap().public())
    }

    fn person(&self, device: &DeviceId) -> String {
        format!("person-{:02x}", device.0[0])
    }

    fn keepers(&self) -> Vec<DeviceId> {
        self.world.nodes.lock().keys().copied().collect()
    }
}

impl Peers for View {
    fn me(&self) -> DeviceId {
        self.me
    }

    fn name_of(&self, device: &DeviceId) -> String {
        device.to_string()
    }

    fn link(&self, device: DeviceId) -> BoxFuture<'static, Result<PeerLink>> {
        let (world, me) = (self.world.clone(), self.me);
        Box::pin(async move {
            if !world.is_on(&device) {
                return Err(Error::new(Reason::ServerUnreachable, "it is off"));
            }
            let key = world.nodes.lock()[&me].key.public_key();
            let service = world.mailbox(&device).service();
            let calls = tower::service_fn(move |mut request: http::Request<tonic::body::Body>| {
                let device = DeviceId::of_key(&key);
                let way = peer_node::net::Way::Direct(([127, 0, 0, 1], 1).into());
                let identity = NodeIdentity { device, key, way, member: true };
                request.extensions_mut().insert(identity);
                let service = service.clone();
                async move { service.oneshot(request).await.map_err(CallError::new) }
            });
            let channel = Channel::new(calls);
            let bulk = vec![channel.clone()];
            Ok(PeerLink { control: channel, bulk, way: Way::Direct, round_trip: Duration::ZERO })
        })
    }

    fn neighbours(&self) -> Vec<DeviceId> {
        self.world.on.lock().iter().copied().filter(|d| *d != self.me).collect()
    }

    fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.world.nodes.lock()[&self.me].events.subscribe()
    }
}

/// Fetches by asking the sources' mailboxes for places, as the serving side of a transfer does.
impl Fetcher for View {
    fn start(&self, order: Order) -> BoxFuture<'static, Result<TransferId>> {
        let view = self.clone();
        Box::pin(async move {
            order.check()?;
            let id = TransferId::generate();
            let (sender, receiver) = watch::channel(progress(id, &order));
            view.transfers.lock().insert(id, receiver);
            tokio::spawn(async move {
                while !view.world.is_on(&view.me) || !view.fetch_all(&order) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    if sender.is_closed() {
                        return;
                    }
                }
                sender.send_modify(|p| {
                    (p.state, p.settled, p.done_bytes) = (State::Done, true, p.total_bytes);
                });
                // The last value stays readable for as long as the node runs.
                sender.closed().await;
            });
            Ok(id)
        })
    }

    fn watch(&self, id: &TransferId) -> Option<watch::Receiver<Progress>> {
        self.transfers.lock().get(id).cloned()
    }
}

impl View {
    fn fetch_all(&self, order: &Order) -> bool {
        for directory in &order.directories {
            fs::create_dir_all(order.destination.join(&directory.path)).unwrap();
        }
        for file in &order.files {
            let mut bytes = Vec::new();
            for chunk in file.content.chunks.iter() {
                let Some(piece) = self.fetch(order, &chunk.id) else { return false };
                bytes.extend_from_slice(&piece);
            }
            let target = order.destination.join(&file.path);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::write(target, bytes).unwrap();
        }
        true
    }

    fn fetch(&self, order: &Order, chunk: &ChunkId) -> Option<Vec<u8>> {
        for source in &order.sources {
            if !self.world.is_on(source) {
                continue;
            }
            let mailbox = self.world.mailbox(source);
            if !mailbox.may_have(&order.scope, &self.me).unwrap_or(false) {
                continue;
            }
            if let Ok(Some(Place::File { path, offset, len, .. })) = mailbox.locate(&order.scope, chunk) {
                let mut bytes = vec![0; len as usize];
                fs::File::open(path).ok()?.read_exact_at(&mut bytes, offset).ok()?;
                assert_eq!(ChunkId::of(&bytes), *chunk, "a place holds what it says");
                self.world.fetched.lock().push((self.me, *source, bytes.len()));
                return Some(bytes);
            }
        }
        None
    }
}

fn progress(id: TransferId, order: &Order) -> Progress {
    let total_bytes = order.files.iter().map(|f| f.content.size_bytes).sum();
    Progress {
        id,
        state: State::Running,
        title: order.title.clone(),
        destination: order.destination.clone(),
        file_count: order.files.len() as u64,
        done_file_count: 0,
        total_bytes,
        done_bytes: 0,
        local_bytes: 0,
        fetched_bytes: 0,
        rate: 0,
        served_bytes: 0,
        sources: Vec::new(),
        limit: Limit::None,
        floor_ratio: 0.0,
        problem: None,
        elapsed_ms: 0,
        create_ms: 0,
        end_ms: 0,
        settled: false,
    }
}

fn all() -> Rules {
    Rules { accept_all: true, ..Rules::default() }
}

async fn send(mailbox: &Mailbox, path: &Path, to: &[DeviceId]) -> ParcelId {
    let (progress, _) = watch::channel(Prepared::default());
    mailbox.send(vec![path.to_owned()], to.to_vec(), "a word".into(), progress).await.unwrap()
}

async fn until(mailbox: &Mailbox, id: ParcelId, is_so: impl Fn(&Sent) -> bool) -> Sent {
    let mut watched = mailbox.watch_sent(id).unwrap();
    let found = tokio::time::timeout(PATIENCE, watched.wait_for(|s| is_so(s))).await;
    found.expect("in time").expect("the mailbox runs").clone()
}

fn delivered(sent: &Sent) -> bool {
    sent.deliveries.iter().all(|d| d.state == DeliveryState::Delivered)
}

fn folder(directory: &Path) -> PathBuf {
    let folder = directory.join("plans");
    fs::create_dir_all(folder.join("empty")).unwrap();
    fs::write(folder.join("a.txt"), "first").unwrap();
    fs::write(folder.join("big.bin"), vec![7; 3_000_000]).unwrap();
    folder
}

fn name(sender: &DeviceId) -> String {
    format!("person-{:02x}", sender.0[0])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_arrives_whole_and_twice_is_two_folders() {
    let dir = tempfile::tempdir().unwrap();
    let world = Arc::new(World::default());
    let (anna, bert) = (world.add(dir.path(), all()), world.add(dir.path(), all()));
    let folder = folder(dir.path());
    let mailbox = world.mailbox(&anna);
    for round in ["plans", "plans (2)"] {
        let id = send(&mailbox, &folder, &[bert, anna, bert]).await;
        // What changes after sending changes nothing.
        fs::write(folder.join("a.txt"), "changed").unwrap();
        let sent = until(&mailbox, id, delivered).await;
        assert_eq!(sent.deliveries.len(), 1, "oneself and repetitions are left out");
        let there = world.inbox(&bert).join(name(&anna)).join(round);
        assert_eq!(fs::read_to_string(there.join("a.txt")).unwrap(), "first");
        assert_eq!(fs::read(there.join("big.bin")).unwrap(), vec![7; 3_000_000]);
        assert!(there.join("empty").is_dir());
        fs::write(folder.join("a.txt"), "first").unwrap();
    }
    let arrived = world.mailbox(&bert).arrived();
    assert!(arrived.iter().all(|a| a.state == ArrivedState::Done && a.note == "a word"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_off_gets_it_from_a_keeper_while_the_sender_is_off() {
    let dir = tempfile::tempdir().unwrap();
    let world = Arc::new(World::default());
    let (anna, bert, carl) = (world.add(dir.path(), all()), world.add(dir.path(), all()), world.add(dir.path(), all()));
    world.stop(bert);
    let folder = folder(dir.path());
    let mailbox = world.mailbox(&anna);
    let id = send(&mailbox, &folder, &[bert]).await;
    until(&mailbox, id, |s| s.keepers == [carl]).await;
    // The keeper answers before it has fetched; what it keeps must be complete before the sender goes.
    let kept = |w: &World| w.fetched.lock().iter().filter(|f| f.0 == carl).map(|f| f.2).sum::<usize>();
    tokio::time::timeout(PATIENCE, async {
        while kept(&world) < 3_000_000 || !complete(dir.path(), &carl) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    drop(mailbox);
    world.stop(anna);
    let secret = b"first";
    for entry in walk(&dir.path().join(carl.to_string())) {
        let bytes = fs::read(&entry).unwrap();
        assert!(!bytes.windows(secret.len()).any(|w| w == secret), "the keeper can read {}", entry.display());
    }
    world.start(bert, all());
    let there = world.inbox(&bert).join(name(&anna)).join("plans/a.txt");
    tokio::time::timeout(PATIENCE, async {
        while !world.mailbox(&bert).arrived().iter().any(|a| a.state == ArrivedState::Done) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(fs::read_to_string(there).unwrap(), "first");
    // The receipt reaches the sender through the keeper, the receiver being off again.
    tokio::time::timeout(PATIENCE, async {
        while !receipt_kept(dir.path(), &carl) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    world.stop(bert);
    world.start(anna, all());
    let mailbox = world.mailbox(&anna);
    until(&mailbox, id, delivered).await;
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() { found.extend(walk(&entry.path())) } else { found.push(entry.path()) }
    }
    found
}

fn keeper_states(directory: &Path, keeper: &DeviceId) -> Vec<String> {
    let states = walk(&directory.join(keeper.to_string()).join("mailbox/keep"));
    let states = states.into_iter().filter(|p| p.ends_with("state"));
    states.filter_map(|p| fs::read_to_string(p).ok()).collect()
}

fn complete(directory: &Path, keeper: &DeviceId) -> bool {
    keeper_states(directory, keeper).iter().any(|s| s.contains("\"complete\":true"))
}

fn receipt_kept(directory: &Path, keeper: &DeviceId) -> bool {
    keeper_states(directory, keeper).iter().any(|s| !s.contains("\"receipts\":[]"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parcel_of_another_person_asks_and_can_be_refused() {
    let dir = tempfile::tempdir().unwrap();
    let world = Arc::new(World::default());
    let (anna, bert) = (world.add(dir.path(), all()), world.add(dir.path(), Rules::default()));
    let file = dir.path().join("report.pdf");
    fs::write(&file, "pdf").unwrap();
    let mailbox = world.mailbox(&anna);
    let first = send(&mailbox, &file, &[bert]).await;
    until(&mailbox, first, |s| s.deliveries[0].state == DeliveryState::Asking).await;
    assert!(!world.inbox(&bert).exists(), "nothing arrives without a word");
    let theirs = world.mailbox(&bert);
    assert_eq!(theirs.find(&first.to_string()[..30]).unwrap(), first);
    theirs.answer(first, false, None).await.unwrap();
    until(&mailbox, first, |s| s.deliveries[0].state == DeliveryState::Refused).await;
    let again = theirs.answer(first, true, None).await.unwrap_err();
    assert!(again.is(Reason::ParcelAnswered), "{again:?}");
    let second = send(&mailbox, &file, &[bert]).await;
    until(&mailbox, second, |s| s.deliveries[0].state == DeliveryState::Asking).await;
    let elsewhere = dir.path().join("elsewhere");
    theirs.answer(second, true, Some(elsewhere.clone())).await.unwrap();
    until(&mailbox, second, delivered).await;
    assert_eq!(fs::read_to_string(elsewhere.join("report.pdf")).unwrap(), "pdf");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_survives_restarts_of_both_and_a_cancelled_one_does_not_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let world = Arc::new(World::default());
    let (anna, bert) = (world.add(dir.path(), all()), world.add(dir.path(), all()));
    world.stop(bert);
    let file = dir.path().join("a");
    fs::write(&file, "content").unwrap();
    let kept = send(&world.mailbox(&anna), &file, &[bert]).await;
    let cancelled = send(&world.mailbox(&anna), &file, &[bert]).await;
    let state = world.mailbox(&anna).cancel(cancelled).await.unwrap();
    assert_eq!(state.deliveries[0].state, DeliveryState::Cancelled);
    world.stop(anna);
    fs::remove_file(&file).unwrap();
    world.start(anna, all());
    world.start(bert, all());
    let mailbox = world.mailbox(&anna);
    until(&mailbox, kept, delivered).await;
    let inbox = world.inbox(&bert).join(name(&anna));
    assert_eq!(fs::read_dir(&inbox).unwrap().count(), 1);
    let content = dir.path().join(anna.to_string()).join("mailbox/out").join(kept.to_string()).join("content");
    tokio::time::timeout(PATIENCE, async {
        while content.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("delivered to all: the room is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_arrives_and_one_that_breaks_off_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let world = Arc::new(World::default());
    let (anna, bert) = (world.add(dir.path(), all()), world.add(dir.path(), all()));
    let mailbox = world.mailbox(&anna);
    let stream = async |pieces: &[&'static str]| {
        let (sender, receiver) = mpsc::channel(4);
        let (progress, _) = watch::channel(Prepared::default());
        let pieces: Vec<Bytes> = pieces.iter().map(|p| Bytes::from_static(p.as_bytes())).collect();
        tokio::spawn(async move {
            for piece in pieces {
                sender.send(piece).await.unwrap();
            }
        });
        mailbox.send_stream("dump.sql".into(), receiver, vec![bert], String::new(), progress).await
    };
    let cut = stream(&["select", " 1"]).await.unwrap_err();
    assert!(cut.is(Reason::Cancelled), "{cut:?}");
    assert!(mailbox.sent().is_empty());
    let id = stream(&["select", " 1", ""]).await.unwrap();
    until(&mailbox, id, delivered).await;
    let there = world.inbox(&bert).join(name(&anna)).join("dump.sql");
    assert_eq!(fs::read_to_string(there).unwrap(), "select 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_may_call_nothing_and_have_nothing() {
    use proto::peer::v1 as peer;
    use proto::peer::v1::mailbox_service_client::MailboxServiceClient;
    let dir = tempfile::tempdir().unwrap();
    let world = Arc::new(World::default());
    let (anna, bert, mallory) =
        (world.add(dir.path(), all()), world.add(dir.path(), all()), world.add(dir.path(), all()));
    world.stop(bert);
    let file = dir.path().join("a");
    fs::write(&file, "content").unwrap();
    let id = send(&world.mailbox(&anna), &file, &[bert]).await;
    let scope = peer_node::model::Scope::Parcel(id);
    assert!(world.mailbox(&anna).may_have(&scope, &bert).unwrap());
    assert!(world.mailbox(&anna).may_have(&scope, &mallory).is_err(), "a member that is no receiver");
    world.strangers.lock().insert(mallory);
    let view = View { world: world.clone(), me: mallory, transfers: Arc::default() };
    let link = view.link(anna).await.unwrap();
    let mut client = MailboxServiceClient::new(link.control);
    let code = |status: tonic::Status| status.code();
    let denied = tonic::Code::PermissionDenied;
    assert_eq!(client.list_parcels(peer::ListParcelsRequest {}).await.map_err(code).unwrap_err(), denied);
    let offer = peer::OfferRequest { parcel: None, keep: false };
    assert_eq!(client.offer(offer).await.map_err(code).unwrap_err(), denied);
    let receipts = peer::PushReceiptsRequest { receipts: vec![] };
    assert_eq!(client.push_receipts(receipts).await.map_err(code).unwrap_err(), denied);
}
