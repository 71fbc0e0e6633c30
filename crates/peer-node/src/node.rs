//! A running node: all modules put together.
//!
//! # On disk
//!
//! ```text
//! STATE/lock         held while the node runs: one node for one state directory
//! STATE/device.key   the Ed25519 key of this device, mode 0600
//! STATE/store/       the records of all modules (common::store, sled)
//! SOCKET             the local socket, mode 0600
//! ```
//!
//! # Start and end
//!
//! Everything that can fail is opened before the first socket listens, so whoever connects finds a node that works. On
//! SIGTERM the node says goodbye to the others, ends its listeners, lets running calls and transfers go on for
//! `node.drain`, and closes the store. A kill at any instant loses nothing that was acknowledged: each module says in
//! its header what it finds at the next start.

mod notify;
mod upkeep;

use crate::catalogue::grpc::{CatalogueGrpc, by_connection};
use crate::catalogue::{self, Catalogue, CatalogueSettings};
use crate::local::{Local, LocalServing, Parts};
use crate::model::OfficeId;
use crate::net::{Endpoint, EndpointLimits, Network, NetworkOptions, RelayLimits, Serving};
use crate::office::{self, Office};
use crate::presence::{About, Presence, PresenceOptions};
use crate::settings::{DEFAULT_PORT, Settings};
use common::clock::{SharedClock, SystemClock};
use common::error::{Error, Reason, Result};
use common::identity::DeviceKey;
use common::shutdown::Shutdown;
use common::store::{EngineKind, Store, StoreSettings};
use common::tls::{AcceptLimits, UnixAcceptor};
use std::fs::{self, File, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;

/// Only the user of the node (and root) may connect; who it is is looked at again on each call.
const SOCKET_MODE: u32 = 0o600;

/// A running node.
pub struct Running {
    /// The local socket.
    pub socket: PathBuf,
    /// Where other nodes connect to.
    pub addresses: Vec<SocketAddr>,
    local: LocalServing,
    serving: Serving,
    parts: Arc<Parts>,
    shutdown: Shutdown,
    _lock: File,
}

/// Starts a node in the current runtime.
///
/// # Errors
/// STORE_BUSY if another node uses the state directory or an address; IO_FAILED if the directory or the socket cannot be
/// used; KEY_FILE_EXPOSED and KEY_FILE_INVALID; what opening the store ends with.
pub async fn start(settings: Settings, shutdown: Shutdown) -> Result<Running> {
    let settings = Arc::new(settings);
    let directory = settings.node.state_directory.clone();
    make_private(&directory)?;
    let lock = lock(&directory)?;
    let clock: SharedClock = Arc::new(SystemClock);
    let key = Arc::new(DeviceKey::load_or_generate(&directory.join("device.key"))?);
    let store = open_store(directory.join("store")).await?;

    let office = blocking({
        let (store, key, clock) = (store.clone(), key.clone(), clock.clone());
        move || Office::open(store, key, clock)
    })
    .await?;
    let network = network(&settings, &key, &office)?;
    let endpoint = Endpoint::bind(&network, &settings.node.listen, EndpointLimits::default())?;
    let addresses = endpoint.addresses();
    let parts = catalogue::Parts {
        store: store.clone(),
        roster: Arc::new(office.clone()),
        peers: Arc::new(network.clone()),
        key: key.clone(),
        clock: clock.clone(),
        shutdown: shutdown.clone(),
    };
    let options = CatalogueSettings { rescan: settings.index.rescan_interval.get(), ..CatalogueSettings::default() };
    let catalogue = blocking(move || Catalogue::open(parts, options)).await?;
    let serving = endpoint.serve(routes(&office, &network, &catalogue).await?);

    let presence = presence(&settings, &key, &office, &network, &clock)?;
    let parts = Arc::new(Parts { settings: settings.clone(), key, clock, store, office, network, catalogue, presence });
    upkeep::start(&parts, &shutdown);
    let socket = settings.node.socket.clone();
    if let Some(parent) = socket.parent() {
        fs::create_dir_all(parent)?;
    }
    let acceptor = UnixAcceptor::bind(&socket, SOCKET_MODE, AcceptLimits::default())?;
    let local = Local::serve(parts.clone(), acceptor, &shutdown).await?;
    Ok(Running { socket, addresses, local, serving, parts, shutdown, _lock: lock })
}

impl Running {
    /// Waits until it has ended: by the shutdown, or because its socket failed.
    ///
    /// # Errors
    /// IO_FAILED if the socket failed.
    pub async fn wait(mut self) -> Result<()> {
        let early = tokio::select! {
            served = &mut self.local => Some(served),
            () = self.shutdown.begun() => None,
        };
        self.shutdown.begin();
        let goodbye = office::say_goodbye(&self.parts.network, self.parts.presence.instance());
        tokio::join!(goodbye, self.parts.presence.leave());
        let patience = self.parts.settings.node.drain.get();
        let local = async {
            match early {
                Some(served) => Ok(served),
                // A program that does not take its answers does not keep the node.
                None => tokio::time::timeout(patience, &mut self.local).await,
            }
        };
        let (served, _, ()) = tokio::join!(local, self.shutdown.drained(), self.serving.stop(patience));
        self.parts.network.close().await;
        self.parts.store.clone().close().await;
        match served {
            Ok(Ok(served)) => served.map_err(|e| Error::new(Reason::IoFailed, "the local socket failed").caused_by(e)),
            Ok(Err(error)) => Err(Error::internal("the local socket").caused_by(error)),
            Err(_) => {
                self.local.abort();
                Ok(())
            }
        }
    }

    /// Tells systemd that the node is ready, how it is, and that it is alive. Does nothing without systemd.
    pub fn notify_systemd(&self) {
        notify::start(self.parts.clone(), &self.shutdown);
    }
}

fn network(settings: &Settings, key: &Arc<DeviceKey>, office: &Office) -> Result<Network> {
    let relay = match settings.relay.enabled {
        true => RelayLimits { rate: settings.relay.rate.bytes(), ..RelayLimits::on() },
        false => RelayLimits::default(),
    };
    Network::new(NetworkOptions { relay, ..NetworkOptions::new(key.clone(), Arc::new(office.clone())) })
}

/// What this node says of itself to the network that it is in.
struct Introduction {
    office: Office,
    settings: Arc<Settings>,
}

impl About for Introduction {
    fn office(&self) -> Option<OfficeId> {
        self.office.view().office_id()
    }

    fn inviting(&self) -> Vec<String> {
        self.office.inviting()
    }

    fn display_name(&self) -> String {
        self.settings.machine_name()
    }
}

fn presence(
    settings: &Arc<Settings>,
    key: &Arc<DeviceKey>,
    office: &Office,
    network: &Network,
    clock: &SharedClock,
) -> Result<Presence> {
    let options = PresenceOptions {
        key: key.clone(),
        mdns: settings.discovery.mdns,
        beacon: settings.discovery.beacon,
        beacon_port: settings.discovery.beacon_port,
        seeds: settings.discovery.seeds.clone(),
        default_port: DEFAULT_PORT,
        clock: clock.clone(),
    };
    let about = Arc::new(Introduction { office: office.clone(), settings: settings.clone() });
    Presence::start(network.clone(), about, options)
}

/// Everything that other nodes may call; the endpoint lets strangers through to health and enrolment only.
async fn routes(office: &Office, network: &Network, catalogue: &Catalogue) -> Result<Routes> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::PUBLIC_DESCRIPTORS)
        .build_v1()
        .map_err(|e| Error::internal("reflection").caused_by(e))?;
    let enrolment = office::enrolment_service(office.clone());
    let membership = office::membership_service(office.clone(), Arc::new(network.clone()));
    let shares = CatalogueGrpc::service(catalogue.clone(), by_connection);
    let relay = network.relay_server().service();
    for name in [name_of(&enrolment), name_of(&membership), name_of(&shares), name_of(&relay)] {
        reporter.set_service_status(name, ServingStatus::Serving).await;
    }
    Ok(Routes::new(health)
        .add_service(reflection)
        .add_service(enrolment)
        .add_service(membership)
        .add_service(shares)
        .add_service(relay))
}

fn name_of<S: NamedService>(_: &S) -> &'static str {
    S::NAME
}

/// Makes the state directory, and missing parents, for its owner only.
fn make_private(directory: &Path) -> Result<()> {
    let failed = |e: std::io::Error| {
        Error::new(Reason::IoFailed, "the state directory cannot be made")
            .why_is(e.to_string())
            .fix_is("check node.state_directory and the rights of its parent")
            .caused_by(e)
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(failed)
}

fn lock(directory: &Path) -> Result<File> {
    let lock = File::options().create(true).truncate(false).write(true).open(directory.join("lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        Error::new(Reason::StoreBusy, "another peer uses this state directory")
            .fix_is("stop the other peer, or give this one a directory of its own with --state-dir")
    })?;
    Ok(lock)
}

async fn open_store(directory: PathBuf) -> Result<Store> {
    blocking(move || Store::open(&StoreSettings { directory, engine: EngineKind::Sled, ..StoreSettings::default() }))
        .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("starting the node").caused_by(e))?
}
