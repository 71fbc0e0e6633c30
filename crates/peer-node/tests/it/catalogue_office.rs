//! A few catalogues that reach each other without a network.

use common::clock::{ManualClock, SharedClock};
use common::error::{Error, Reason, Result};
use common::identity::DeviceKey;
use common::model::{DeviceId, Right};
use common::shutdown::Shutdown;
use common::store::Store;
use futures_util::future::BoxFuture;
use http::Extensions;
use parking_lot::Mutex;
use peer_node::catalogue::grpc::CatalogueGrpc;
use peer_node::catalogue::{
    Catalogue, CatalogueSettings, ChannelError, LocalShare, NewShare, Node, Parts, PeerChannel, Peers, Roster,
};
use peer_node::model::OfficeId;
use proto::peer::v1::catalogue_service_client::CatalogueServiceClient;
use proto::v1::{Grant, Principal, principal::Kind};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tower::Service;
use tower::util::BoxCloneSyncService;

/// Who calls, in these tests.
#[derive(Clone, Copy)]
pub struct Caller(pub DeviceId);

pub fn caller(extensions: &Extensions) -> Option<DeviceId> {
    extensions.get::<Caller>().map(|c| c.0)
}

/// The office as it is for all of them.
#[derive(Default)]
pub struct Members {
    pub nodes: Vec<Node>,
    pub groups: HashMap<String, Vec<String>>,
    pub revoked: HashSet<DeviceId>,
}

pub struct Office {
    pub id: OfficeId,
    pub members: Mutex<Members>,
    changes: watch::Sender<u64>,
    pub services: Mutex<HashMap<DeviceId, PeerService>>,
    pub off: Mutex<HashSet<DeviceId>>,
    /// Nodes that take a call and never answer.
    pub silent: Mutex<HashSet<DeviceId>>,
}

/// Makes a channel for a caller.
pub type PeerService = Arc<dyn Fn(DeviceId) -> PeerChannel + Send + Sync>;

impl Office {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            id: OfficeId([9; 32]),
            members: Mutex::default(),
            changes: watch::Sender::new(0),
            services: Mutex::default(),
            off: Mutex::default(),
            silent: Mutex::default(),
        })
    }

    pub fn change(&self, f: impl FnOnce(&mut Members)) {
        f(&mut self.members.lock());
        self.changes.send_modify(|n| *n += 1);
    }
}

/// The office as one node sees it.
pub struct Seat {
    office: Arc<Office>,
    me: DeviceId,
}

impl Seat {
    /// A node's view of the office.
    pub fn new(office: &Arc<Office>, me: DeviceId) -> Arc<Self> {
        Arc::new(Self { office: office.clone(), me })
    }
}

impl Roster for Seat {
    fn office(&self) -> Option<OfficeId> {
        Some(self.office.id)
    }
    fn me(&self) -> DeviceId {
        self.me
    }
    fn is_member(&self, device: &DeviceId) -> bool {
        let members = self.office.members.lock();
        members.nodes.iter().any(|n| n.device == *device) && !members.revoked.contains(device)
    }
    fn right(&self, device: &DeviceId, grants: &[Grant]) -> Option<Right> {
        if !self.is_member(device) {
            return None;
        }
        let members = self.office.members.lock();
        let person = members.nodes.iter().find(|n| n.device == *device)?.person.clone();
        let fits = |grant: &&Grant| match grant.principal.as_ref().and_then(|p| p.kind.as_ref()) {
            Some(Kind::User(name)) => *name == person,
            Some(Kind::Group(name)) => members.groups.get(name).is_some_and(|g| g.contains(&person)),
            Some(Kind::Device(id)) => *id == device.to_string(),
            Some(Kind::Everyone(all)) => *all,
            None => false,
        };
        grants.iter().filter(fits).filter_map(|g| Right::from_number(g.right)).max()
    }
    fn nodes(&self) -> Vec<Node> {
        let members = self.office.members.lock();
        members.nodes.iter().filter(|n| !members.revoked.contains(&n.device)).cloned().collect()
    }
    fn changed(&self) -> BoxFuture<'static, ()> {
        let mut changes = self.office.changes.subscribe();
        Box::pin(async move {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

impl Peers for Seat {
    fn channel(&self, device: DeviceId) -> BoxFuture<'static, Result<PeerChannel>> {
        let (office, me) = (self.office.clone(), self.me);
        Box::pin(async move {
            if office.silent.lock().contains(&device) {
                std::future::pending::<()>().await;
            }
            let service = office.services.lock().get(&device).cloned();
            let here = !office.off.lock().contains(&device);
            service
                .filter(|_| here)
                .map(|service| service(me))
                .ok_or_else(|| Error::new(Reason::PeerUnreachable, "it is off"))
        })
    }
    fn is_connected(&self, device: &DeviceId) -> bool {
        self.office.services.lock().contains_key(device) && !self.office.off.lock().contains(device)
    }
}

/// A channel to a service in the same process.
pub fn in_process<S>(service: S, from: DeviceId) -> PeerChannel
where
    S: Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
        > + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    BoxCloneSyncService::new(tower::service_fn(move |mut request: http::Request<tonic::body::Body>| {
        request.extensions_mut().insert(Caller(from));
        let mut service = service.clone();
        async move { service.call(request).await.map_err(|never| ChannelError(Box::new(never))) }
    }))
}

/// A node: its catalogue, and what outlives a restart of it.
pub struct Machine {
    pub office: Arc<Office>,
    pub key: Arc<DeviceKey>,
    pub store: Store,
    pub clock: Arc<ManualClock>,
    pub catalogue: Catalogue,
    pub shutdown: Shutdown,
    pub settings: CatalogueSettings,
    pub dir: tempfile::TempDir,
}

pub fn settings() -> CatalogueSettings {
    CatalogueSettings { watch: false, fresh: Duration::ZERO, ..CatalogueSettings::default() }
}

impl Machine {
    pub fn new(office: &Arc<Office>, name: &str, person: &str) -> Self {
        Self::with(office, name, person, settings())
    }

    pub fn with(office: &Arc<Office>, name: &str, person: &str, settings: CatalogueSettings) -> Self {
        let key = Arc::new(DeviceKey::generate());
        let node = Node { device: key.device_id(), name: name.to_owned(), person: person.to_owned() };
        office.change(|m| m.nodes.push(node));
        let (store, clock) = (Store::memory(), Arc::new(ManualClock::new(1_000)));
        let (catalogue, shutdown) = Self::open(office, &key, &store, &clock, &settings);
        let dir = tempfile::tempdir().unwrap();
        Self { office: office.clone(), key, store, clock, catalogue, shutdown, settings, dir }
    }

    fn open(
        office: &Arc<Office>,
        key: &Arc<DeviceKey>,
        store: &Store,
        clock: &Arc<ManualClock>,
        settings: &CatalogueSettings,
    ) -> (Catalogue, Shutdown) {
        let shutdown = Shutdown::new(Duration::from_secs(30));
        let seat = Arc::new(Seat { office: office.clone(), me: key.device_id() });
        let clock: SharedClock = clock.clone();
        let parts = Parts {
            store: store.clone(),
            roster: seat.clone(),
            peers: seat,
            key: key.clone(),
            clock,
            shutdown: shutdown.clone(),
        };
        let catalogue = Catalogue::open(parts, settings.clone()).unwrap();
        let service = CatalogueGrpc::service(catalogue.clone(), caller);
        let made: PeerService = Arc::new(move |from| in_process(service.clone(), from));
        office.services.lock().insert(key.device_id(), made);
        (catalogue, shutdown)
    }

    /// As after a restart of the program.
    pub async fn restart(&mut self) {
        self.shutdown.begin();
        self.shutdown.drained().await;
        (self.catalogue, self.shutdown) = Self::open(&self.office, &self.key, &self.store, &self.clock, &self.settings);
    }

    pub fn id(&self) -> DeviceId {
        self.key.device_id()
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path.canonicalize().unwrap()
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Shares a folder and waits until it was looked through.
    pub async fn share(&self, name: &str, grants: &[Grant]) -> LocalShare {
        let path = self.folder(name);
        let new = NewShare { path, grants: grants.to_vec(), ..NewShare::default() };
        let share = self.catalogue.share(new).await.unwrap();
        self.catalogue.scan(&share.record.share()).await.unwrap();
        self.catalogue.local_share(name).unwrap()
    }

    /// A client of this machine's service, as another device.
    pub fn client(&self, from: DeviceId) -> CatalogueServiceClient<PeerChannel> {
        let service = self.office.services.lock().get(&self.id()).unwrap().clone();
        CatalogueServiceClient::new(service(from))
    }
}

pub fn everyone(right: Right) -> Grant {
    grant(Kind::Everyone(true), right)
}

pub fn grant(kind: Kind, right: Right) -> Grant {
    Grant { principal: Some(Principal { kind: Some(kind) }), right: right as i32 }
}

/// Waits until something holds, looking again whenever the catalogue says that something has changed.
pub async fn until(catalogue: &Catalogue, what: &str, holds: impl Fn() -> bool) {
    let mut changes = catalogue.changes();
    let wait = async {
        while !holds() {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("{what}: not within 30 s"));
}

/// Files below a folder.
pub fn count_files(path: &Path) -> usize {
    let entries = std::fs::read_dir(path).unwrap().map(|e| e.unwrap());
    entries.map(|e| if e.file_type().unwrap().is_dir() { count_files(&e.path()) } else { 1 }).sum()
}
