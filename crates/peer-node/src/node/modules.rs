//! Opens the modules, each with what it needs of those before it.

use super::services;
use crate::catalogue::{self, Catalogue, CatalogueSettings};
use crate::devices::{DeviceParts, Devices};
use crate::hybrid::{Hybrid, HybridParts, agent_sockets};
use crate::local::Parts;
use crate::mailbox::Mailbox;
use crate::model::OfficeId;
use crate::net::{Endpoint, EndpointLimits, Network, NetworkOptions, RelayLimits, Serving};
use crate::office::Office;
use crate::presence::{About, Presence, PresenceOptions};
use crate::settings::{DEFAULT_PORT, Settings};
use crate::source::Sources;
use crate::transfer::{NetworkPeers, Peers, Transfers};
use crate::twoway::{self, TwoWay, TwoWaySettings};
use common::clock::SharedClock;
use common::error::{Error, Result};
use common::identity::DeviceKey;
use common::shutdown::Shutdown;
use common::store::Store;
use std::sync::Arc;

/// What every module stands on.
pub(super) struct Ground {
    pub settings: Arc<Settings>,
    pub key: Arc<DeviceKey>,
    pub clock: SharedClock,
    pub store: Store,
    pub shutdown: Shutdown,
}

/// Opens all of them and begins to answer other nodes.
///
/// # Errors
/// Those of the modules; IO_FAILED if an address cannot be listened on.
pub(super) async fn open(ground: Ground) -> Result<(Parts, Serving)> {
    let office = ground.office().await?;
    let network = ground.network(&office)?;
    let endpoint = Endpoint::bind(&network, &ground.settings.node.listen, EndpointLimits::default())?;
    let catalogue = ground.catalogue(&office, &network).await?;
    let names = office.clone();
    let nodes = Arc::new(NetworkPeers::new(network.clone(), Arc::new(move |device| names.view().node_name(device))));
    let hybrid = ground.hybrid(&office).await?;
    let peers = hybrid.peers(nodes);
    let sources = Sources::default();
    sources.register(Arc::new(catalogue.clone()));
    sources.register(hybrid.source());
    let transfers = ground.transfers(peers.clone(), &sources).await?;
    let mailbox = ground.mailbox(&office, peers.clone(), &transfers).await?;
    sources.register(Arc::new(mailbox.clone()));
    let twoway = ground.twoway(&office, &network, &catalogue, &transfers)?;
    let devices = ground.devices(&office, &network, &catalogue).await?;
    let routes = services::routes(&office, &network, &catalogue, &transfers, &mailbox, &hybrid, &devices).await?;
    let serving = endpoint.serve(routes);
    let presence = ground.presence(&office, &network)?;
    hybrid.start(&network, &ground.shutdown);
    ground.shutdown.spawn_until(devices.clone().pull_prints(hybrid.clone()));
    let Ground { settings, key, clock, store, .. } = ground;
    let parts = Parts {
        settings,
        key,
        clock,
        store,
        office,
        network,
        presence,
        catalogue,
        transfers,
        mailbox,
        twoway,
        hybrid,
        devices,
        peers,
    };
    Ok((parts, serving))
}

/// Runs work that waits for the disk.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("starting the node").caused_by(e))?
}

impl Ground {
    async fn office(&self) -> Result<Office> {
        let (store, key, clock) = (self.store.clone(), self.key.clone(), self.clock.clone());
        blocking(move || Office::open(store, key, clock)).await
    }

    fn network(&self, office: &Office) -> Result<Network> {
        let relay = match self.settings.relay.enabled {
            true => RelayLimits { rate: self.settings.relay.rate.bytes(), ..RelayLimits::on() },
            false => RelayLimits::default(),
        };
        let options = NetworkOptions::new(self.key.clone(), Arc::new(office.clone()));
        Network::new(NetworkOptions { relay, ..options })
    }

    async fn catalogue(&self, office: &Office, network: &Network) -> Result<Catalogue> {
        let parts = catalogue::Parts {
            store: self.store.clone(),
            roster: Arc::new(office.clone()),
            peers: Arc::new(network.clone()),
            key: self.key.clone(),
            clock: self.clock.clone(),
            shutdown: self.shutdown.clone(),
        };
        let rescan = self.settings.index.rescan_interval.get();
        // It starts its tasks in the runtime that it is opened in.
        blocking(move || Catalogue::open(parts, CatalogueSettings { rescan, ..CatalogueSettings::default() })).await
    }

    async fn hybrid(&self, office: &Office) -> Result<Hybrid> {
        let parts = HybridParts {
            office: office.clone(),
            key: self.key.clone(),
            store: self.store.clone(),
            clock: self.clock.clone(),
            state_directory: self.settings.node.state_directory.clone(),
            agent_sockets: agent_sockets(),
        };
        blocking(move || Hybrid::open(parts)).await
    }

    async fn transfers(&self, peers: Arc<dyn Peers>, sources: &Sources) -> Result<Transfers> {
        let (store, sources, clock) = (self.store.clone(), sources.clone(), self.clock.clone());
        let options = self.settings.transfers();
        blocking(move || Transfers::open(store, peers, sources, options, clock)).await
    }

    async fn mailbox(&self, office: &Office, peers: Arc<dyn Peers>, transfers: &Transfers) -> Result<Mailbox> {
        let (office, fetcher) = (Arc::new(office.clone()), Arc::new(transfers.clone()));
        let (key, clock, shutdown) = (self.key.clone(), self.clock.clone(), self.shutdown.clone());
        let options = self.settings.mailbox();
        blocking(move || Mailbox::open(options, key, office, peers, fetcher, clock, &shutdown)).await
    }

    fn twoway(
        &self,
        office: &Office,
        network: &Network,
        catalogue: &Catalogue,
        transfers: &Transfers,
    ) -> Result<TwoWay> {
        let parts = twoway::Parts {
            store: self.store.clone(),
            catalogue: catalogue.clone(),
            fetcher: Arc::new(transfers.clone()),
            roster: Arc::new(office.clone()),
            peers: Arc::new(network.clone()),
            clock: self.clock.clone(),
            shutdown: self.shutdown.clone(),
        };
        TwoWay::open(parts, TwoWaySettings::default())
    }

    async fn devices(&self, office: &Office, network: &Network, catalogue: &Catalogue) -> Result<Devices> {
        let parts = DeviceParts {
            store: self.store.clone(),
            roster: Arc::new(office.clone()),
            peers: Arc::new(network.clone()),
            clock: self.clock.clone(),
            shutdown: self.shutdown.clone(),
            directory: self.settings.node.state_directory.join("devices"),
            settings: self.settings.devices.clone(),
            catalogue: catalogue.clone(),
        };
        Devices::open(parts).await
    }

    fn presence(&self, office: &Office, network: &Network) -> Result<Presence> {
        let options = PresenceOptions {
            key: self.key.clone(),
            mdns: self.settings.discovery.mdns,
            beacon: self.settings.discovery.beacon,
            beacon_port: self.settings.discovery.beacon_port,
            seeds: self.settings.discovery.seeds.clone(),
            default_port: DEFAULT_PORT,
            clock: self.clock.clone(),
        };
        let about = Introduction { office: office.clone(), settings: self.settings.clone() };
        Presence::start(network.clone(), Arc::new(about), options)
    }
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
