//! Nodes within one process, for tests of the modules above: listening on loopback, members of one office by a list.

use super::{Admission, Endpoint, EndpointLimits, FoundBy, LinkEvent, Network, NetworkOptions, RelayLimits, Serving};
use common::identity::{DeviceId, DeviceKey};
use parking_lot::RwLock;
use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tonic::service::Routes;

/// An office as a list. Clones are the same list.
#[derive(Clone, Debug, Default)]
pub struct Members(Arc<RwLock<(HashSet<DeviceId>, HashSet<DeviceId>)>>);

impl Members {
    /// An office with these members.
    pub fn of(keys: &[&DeviceKey]) -> Self {
        let members = Self::default();
        keys.iter().for_each(|key| members.admit(key.device_id()));
        members
    }

    /// One more member.
    pub fn admit(&self, device: DeviceId) {
        self.0.write().0.insert(device);
    }

    /// Cuts one off.
    pub fn revoke(&self, device: DeviceId) {
        let mut lists = self.0.write();
        lists.0.remove(&device);
        lists.1.insert(device);
    }
}

impl Admission for Members {
    fn is_member(&self, device: &DeviceId) -> bool {
        self.0.read().0.contains(device)
    }

    fn is_revoked(&self, device: &DeviceId) -> bool {
        self.0.read().1.contains(device)
    }
}

/// A node that listens on loopback.
#[derive(Debug)]
pub struct TestNode {
    /// Its key.
    pub key: Arc<DeviceKey>,
    /// Its connections.
    pub network: Network,
    /// Its listener.
    pub serving: Serving,
}

impl TestNode {
    /// A node with a new key, which becomes a member. `routes` makes its services.
    pub async fn start(members: &Members, routes: impl FnOnce(&Network) -> Routes) -> Self {
        let key = Arc::new(DeviceKey::generate());
        members.admit(key.device_id());
        Self::with_key(key, members, RelayLimits::default(), routes).await
    }

    /// A node with this key, which may be a stranger.
    pub async fn with_key(
        key: Arc<DeviceKey>,
        members: &Members,
        relay: RelayLimits,
        routes: impl FnOnce(&Network) -> Routes,
    ) -> Self {
        let options = NetworkOptions { relay, ..NetworkOptions::new(key.clone(), Arc::new(members.clone())) };
        let network = Network::new(options).expect("a new key can be used");
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let endpoint = Endpoint::bind(&network, &[loopback], EndpointLimits::default()).expect("a port of loopback");
        let serving = endpoint.serve(routes(&network).add_service(network.relay_server().service()));
        Self { key, network, serving }
    }

    /// Its id.
    pub fn device(&self) -> DeviceId {
        self.network.me()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.serving.addresses()[0]
    }

    /// Learns where another node is.
    pub fn knows(&self, other: &TestNode) {
        self.network.learn(other.device(), other.address(), FoundBy::Typed);
    }

    /// Ends: the links at once, the listener after its calls.
    pub async fn stop(self) {
        self.network.close().await;
        self.serving.stop(Duration::from_secs(5)).await;
    }
}

/// Two members that know where the other is.
pub async fn pair(
    routes_of_first: impl FnOnce(&Network) -> Routes,
    routes_of_second: impl FnOnce(&Network) -> Routes,
) -> (TestNode, TestNode, Members) {
    let members = Members::default();
    let first = TestNode::start(&members, routes_of_first).await;
    let second = TestNode::start(&members, routes_of_second).await;
    first.knows(&second);
    second.knows(&first);
    (first, second, members)
}

/// No services.
pub fn nothing(_: &Network) -> Routes {
    Routes::default()
}

/// Waits for an event that fits, for 30 seconds.
///
/// # Panics
/// If it does not come.
pub async fn event(
    events: &mut tokio::sync::broadcast::Receiver<LinkEvent>,
    fits: impl Fn(&LinkEvent) -> bool,
) -> LinkEvent {
    let waiting = async {
        loop {
            match events.recv().await {
                Ok(event) if fits(&event) => return event,
                Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(closed) => panic!("no more events: {closed}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("the event comes")
}
