//! What other nodes say about the state of their copies, as they say it.

use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use common::status::from_status;
use parking_lot::Mutex;
use proto::peer::v1 as wire;
use proto::peer::v1::catalogue_service_client::CatalogueServiceClient;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

use super::Inner;
use crate::catalogue::ShareRecord;
use crate::model::ShareId;

/// Most shares in one message; further ones are passed over.
const SHARES_MAX: usize = 2_000;
/// Between two messages of one node that are taken.
const GATHER: Duration = Duration::from_millis(20);
/// Between two attempts to reach a node.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// How often it is seen whether a node has connected by itself.
const LOOK: Duration = Duration::from_millis(500);

/// The state of a copy elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    /// Its index.
    pub index_id: u64,
    /// Highest sequence.
    pub max_sequence: u64,
}

/// All that was heard, by share and device. Only of shares with a copy here.
#[derive(Default)]
pub struct News(Mutex<HashMap<ShareId, HashMap<DeviceId, Heard>>>);

impl News {
    /// What was heard about a share.
    pub fn of(&self, share: &ShareId) -> Vec<(DeviceId, Heard)> {
        self.0.lock().get(share).map(|by| by.iter().map(|(d, h)| (*d, *h)).collect()).unwrap_or_default()
    }

    /// One of them.
    pub fn get(&self, share: &ShareId, device: &DeviceId) -> Option<Heard> {
        self.0.lock().get(share)?.get(device).copied()
    }

    fn set(&self, share: ShareId, device: DeviceId, heard: Option<Heard>) -> bool {
        let mut all = self.0.lock();
        let by = all.entry(share).or_default();
        match heard {
            Some(heard) => by.insert(device, heard) != Some(heard),
            None => by.remove(&device).is_some(),
        }
    }

    /// Forgets a share.
    pub fn forget(&self, share: &ShareId) {
        self.0.lock().remove(share);
    }

    fn forget_device(&self, device: &DeviceId) {
        self.0.lock().values_mut().for_each(|by| by.retain(|d, _| d != device));
    }
}

/// Listens to a node for as long as the task lives.
pub(super) async fn listen(inner: Arc<Inner>, device: DeviceId) {
    let mut pause = AGAIN.0;
    loop {
        let begun = Instant::now();
        match listen_once(&inner, device).await {
            Ok(()) => tracing::debug!(%device, "a node ended its news of shares"),
            Err(error) => tracing::debug!(%device, ?error, "no news of shares from a node"),
        }
        pause = if begun.elapsed() > AGAIN.1 { AGAIN.0 } else { (pause * 2).min(AGAIN.1) };
        let until = Instant::now() + pause;
        while Instant::now() < until {
            sleep(LOOK).await;
            if inner.peers.is_connected(&device) && begun.elapsed() > AGAIN.0 {
                break;
            }
        }
    }
}

async fn listen_once(inner: &Arc<Inner>, device: DeviceId) -> Result<()> {
    let mut client = CatalogueServiceClient::new(inner.peers.channel(device).await?);
    let answer = client.watch_shares(wire::WatchSharesRequest {}).await.map_err(|s| from_status(&s))?;
    let mut stream = answer.into_inner();
    let mut first = true;
    while let Some(message) = stream.message().await.map_err(|s| from_status(&s))? {
        if std::mem::take(&mut first) {
            // The first message is the whole state.
            inner.news.forget_device(&device);
        }
        for share in inner.hear(device, message).await {
            inner.wake(&share);
        }
        sleep(GATHER).await;
    }
    Ok(())
}

impl Inner {
    /// Takes what a node says. Gives back the shares with a copy here about which it said something new.
    async fn hear(&self, device: DeviceId, message: wire::WatchSharesResponse) -> Vec<ShareId> {
        let mut touched = Vec::new();
        for state in message.changed.into_iter().take(SHARES_MAX) {
            let Some(signed) = &state.record else { continue };
            let Some(share) = self.known_share(signed) else { continue };
            if self.catalogue.record(&share).is_ok_and(|known| known.signed() != signed) {
                let merged = match ShareRecord::verify(signed) {
                    Ok(record) => self.catalogue.merge_record(&record).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = merged {
                    tracing::warn!(%device, ?error, "a node's share record was refused");
                    continue;
                }
            }
            let heard = Heard { index_id: state.index_id, max_sequence: state.max_sequence };
            let heard = (state.index_id != 0).then_some(heard);
            if self.news.set(share, device, heard) {
                touched.push(share);
            }
        }
        for share in message.gone.iter().take(SHARES_MAX).filter_map(|id| ShareId::from_slice(id)) {
            if self.copy(&share).is_some() && self.news.set(share, device, None) {
                touched.push(share);
            }
        }
        touched
    }

    /// The share of a record, if it has a copy here. Not verified.
    fn known_share(&self, signed: &wire::ShareRecord) -> Option<ShareId> {
        use prost::Message;
        if signed.share.len() > crate::catalogue::record::RECORD_BYTES_MAX {
            return None;
        }
        let share = wire::Share::decode(&signed.share[..]).ok()?;
        let share = ShareId::from_slice(&share.share_id)?;
        self.copy(&share).map(|_| share)
    }
}

/// Told when a call is about a share without a copy here.
pub(super) fn no_copy() -> Error {
    Error::new(Reason::ShareUnknown, "there is no copy of this share here")
}
