//! The office and the network as the catalogue uses them.

use common::error::Result;
use common::model::{DeviceId, Right};
use futures_util::future::BoxFuture;
use proto::v1::Grant;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use super::access::{ChannelError, Node, PeerChannel, Peers, Roster};
use crate::model::OfficeId;
use crate::net::{Network, NodeChannel};
use crate::office::Office;

impl Roster for Office {
    fn office(&self) -> Option<OfficeId> {
        self.view().office_id()
    }

    fn me(&self) -> DeviceId {
        Office::me(self)
    }

    fn is_member(&self, device: &DeviceId) -> bool {
        self.view().is_member(device)
    }

    fn right(&self, device: &DeviceId, grants: &[Grant]) -> Option<Right> {
        self.view().right(device, grants)
    }

    fn nodes(&self) -> Vec<Node> {
        let view = self.view();
        // The plain name: who else claims it is found out where addresses are.
        let name = |unit: &str, machine: &str| match unit {
            "" => format!("{}/{machine}", view.name()),
            unit => format!("{}/{unit}/{machine}", view.name()),
        };
        let node = |m: &crate::office::Member| Node {
            device: m.device,
            name: name(&m.unit, &m.display_name),
            person: m.person.clone(),
        };
        view.present().map(node).collect()
    }

    fn changed(&self) -> BoxFuture<'static, ()> {
        let mut views = self.subscribe();
        Box::pin(async move {
            // An office that is gone changes no more.
            if views.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

/// A node's connection as the catalogue uses it.
pub fn peer_channel(channel: NodeChannel) -> PeerChannel {
    BoxCloneSyncService::new(channel.map_err(|e| ChannelError(Box::new(e))))
}

impl Peers for Network {
    fn channel(&self, device: DeviceId) -> BoxFuture<'static, Result<PeerChannel>> {
        let network = self.clone();
        Box::pin(async move { Ok(peer_channel(network.link(device).await?.control())) })
    }

    fn bulk_channel(&self, device: DeviceId) -> BoxFuture<'static, Result<PeerChannel>> {
        let network = self.clone();
        Box::pin(async move { Ok(peer_channel(network.link(device).await?.bulk())) })
    }

    fn is_connected(&self, device: &DeviceId) -> bool {
        self.linked(device).is_some()
    }
}
