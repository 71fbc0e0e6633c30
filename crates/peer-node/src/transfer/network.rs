//! The node's own connections, as transfers see them.

use super::peers::{CallError, Channel, PeerEvent, PeerLink, Peers, Way};
use crate::net::{self, LinkEvent, Network};
use common::error::Result;
use common::model::DeviceId;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

/// Events that wait for a transfer; one that falls behind looks at everything anew.
const EVENTS: usize = 256;

/// Tells how people call a node.
pub type Names = Arc<dyn Fn(&DeviceId) -> String + Send + Sync>;

/// Other nodes over [`Network`].
pub struct NetworkPeers {
    network: Network,
    names: Names,
    events: broadcast::Sender<PeerEvent>,
    _forwarding: AbortOnDropHandle<()>,
}

impl NetworkPeers {
    /// Over this network. Call it inside a runtime.
    pub fn new(network: Network, names: Names) -> Self {
        let (events, _) = broadcast::channel(EVENTS);
        let forwarding = tokio::spawn(forward(network.events(), events.clone()));
        Self { network, names, events, _forwarding: AbortOnDropHandle::new(forwarding) }
    }
}

async fn forward(mut from: broadcast::Receiver<LinkEvent>, to: broadcast::Sender<PeerEvent>) {
    loop {
        let event = match from.recv().await {
            Ok(LinkEvent::Up { device, .. } | LinkEvent::Incoming { device, .. }) => PeerEvent::Up(device),
            Ok(LinkEvent::Down { device, .. }) => PeerEvent::Down(device),
            Ok(LinkEvent::AddressChanged) | Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        // Nobody listens while there is no transfer.
        let _ = to.send(event);
    }
}

fn boxed(channel: net::NodeChannel) -> Channel {
    BoxCloneSyncService::new(channel.map_err(CallError::new))
}

impl Peers for NetworkPeers {
    fn me(&self) -> DeviceId {
        self.network.me()
    }

    fn name_of(&self, device: &DeviceId) -> String {
        (self.names)(device)
    }

    fn link(&self, device: DeviceId) -> BoxFuture<'static, Result<PeerLink>> {
        let network = self.network.clone();
        Box::pin(async move {
            let link = network.link(device).await?;
            Ok(PeerLink {
                control: boxed(link.control()),
                bulk: (0..link.bulk_count()).map(|_| boxed(link.bulk())).collect(),
                way: match link.way() {
                    net::Way::Direct(_) => Way::Direct,
                    net::Way::Relayed(_) => Way::Relayed,
                },
                round_trip: link.round_trip(),
            })
        })
    }

    fn neighbours(&self) -> Vec<DeviceId> {
        self.network.neighbours()
    }

    fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.events.subscribe()
    }
}
