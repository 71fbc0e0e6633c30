//! One source: connects, follows what it has, and does so again when it was away.

use super::Event;
use crate::model::Scope;
use crate::transfer::peers::Peers;
use crate::transfer::scheduler::SourceKey;
use common::error::{Error, Kind, Reason, Result};
use common::model::DeviceId;
use common::status::from_status;
use proto::peer::v1::FollowRequest;
use proto::peer::v1::transfer_service_client::TransferServiceClient;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// A node that has nothing of the scope, or does not give it, is asked again after so long.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A source to follow.
pub struct Following {
    /// The source's number.
    pub source: SourceKey,
    /// Which device.
    pub device: DeviceId,
    /// Where the right comes from.
    pub scope: Scope,
    /// What of it.
    pub manifests: Arc<[[u8; 32]]>,
    /// How it is reached.
    pub peers: Arc<dyn Peers>,
    /// Ends a pause.
    pub wake: Arc<Notify>,
    /// Pause after the first failure.
    pub first_pause: Duration,
    /// Where to tell.
    pub events: mpsc::Sender<Event>,
}

impl Following {
    /// Runs until it is dropped or the transfer has ended.
    pub async fn run(self) {
        let mut pause = self.first_pause;
        loop {
            let mut told = false;
            let error = match self.follow(&mut told).await {
                Ok(()) => return,
                Err(error) => error,
            };
            let refused = matches!(error.kind(), Kind::NotFound | Kind::PermissionDenied | Kind::Unauthenticated);
            if self.events.send(Event::Down { source: self.source, error }).await.is_err() {
                return;
            }
            if told {
                pause = self.first_pause;
            }
            let wait = if refused { REFUSED_PAUSE } else { pause };
            pause = (pause * 2).min(LONGEST_PAUSE);
            // Woken when the node can be reached again.
            let _ = tokio::time::timeout(wait, self.wake.notified()).await;
        }
    }

    /// `Ok` if nobody listens any more.
    async fn follow(&self, told: &mut bool) -> Result<()> {
        let link = self.peers.link(self.device).await?;
        let mut client = TransferServiceClient::new(link.control.clone());
        let scope = self.peers.renewed(self.scope.clone()).await;
        let request = FollowRequest {
            scope: Some(scope.wire()),
            takes_part: true,
            manifest_digests: self.manifests.iter().map(|d| d.to_vec().into()).collect(),
        };
        let mut stream = client.follow(request).await.map_err(|s| from_status(&s))?.into_inner();
        if self.events.send(Event::Up { source: self.source, link }).await.is_err() {
            return Ok(());
        }
        while let Some(message) = stream.message().await.map_err(|s| from_status(&s))? {
            *told = true;
            if self.events.send(Event::Told { source: self.source, message }).await.is_err() {
                return Ok(());
            }
        }
        Err(Error::new(Reason::ServerUnreachable, "the node ended the call"))
    }
}
