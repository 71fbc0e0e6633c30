//! A disk of this machine that is to be shared no more, although second copies of others' shares are on it.
//!
//! What a lender keeps is sealed and its owners' own, so it is the owners who copy it elsewhere (`keeper` on their
//! machines). The lender says that it leaves, which it remembers over a restart; from then on it takes nothing new and gives
//! everything out. When an owner has given its place back, that place is wiped, and when the last one has, the disk is
//! shared no more. A machine that is away is waited for.

use super::Devices;
use super::book::Entry;
use super::disk::{blocking, lent};
use super::grpc::Asked;
use common::error::{Error, Reason, Result};
use device::disk::{Kind as PlaceKind, Lender, PlaceView};
use device::model::Kind;
use futures_util::StreamExt;
use proto::peer::v1 as wire;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use uuid::Uuid;

/// How often it is looked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Bytes that owners have fetched of places that leave.
pub(super) type Fetched = HashMap<Uuid, u64>;

impl Devices {
    /// Counts what an owner fetches, for who waits.
    pub(super) fn note_fetched(&self, space: &[u8], bytes: usize) {
        let Ok(place) = Uuid::from_slice(space) else { return };
        if let Some(count) = self.0.fetched.lock().get_mut(&place) {
            *count += bytes as u64;
        }
    }

    /// Lets second copies leave a disk of this machine, and then shares it no more.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, RESOURCE_REMOTE, RESOURCE_INVALID for what is no disk; RESOURCE_BUSY while scratch space is lent
    /// and it is not forced; DEVICE_AWAY.
    pub(super) async fn leave_disk(&self, r: wire::LeaveDiskRequest) -> Result<Asked<wire::LeaveProgress>> {
        let entry = self.own_entry(&r.device).await?;
        if entry.kind != Kind::Disk {
            return Err(Error::new(Reason::ResourceInvalid, format!("{} is no disk", entry.local_name())));
        }
        let (tell, told) = mpsc::channel(4);
        let done = wire::LeaveProgress { mirrors: Vec::new(), done: true };
        let answers = tokio_stream::wrappers::ReceiverStream::new(told).boxed();
        let Some(lender) = self.0.lenders.lock().get(&entry.local_name()).cloned() else {
            // Nothing can be let go of a disk that is away; it is forgotten, or waited for.
            self.unshare(&r.device, r.force, r.force).await?;
            let _ = tell.send(Ok(done)).await;
            return Ok(answers);
        };
        self.begin_leaving(&lender, r.force).await?;
        self.changed();
        let devices = self.clone();
        self.0.shutdown.spawn_until(async move {
            let work = devices.until_left(&entry, &lender, &tell);
            tokio::select! {
                left = work => {
                    let _ = tell.send(left.map(|()| done)).await;
                }
                // Nobody waits; the copies leave all the same.
                () = tell.closed() => {}
            }
        });
        Ok(answers)
    }

    async fn begin_leaving(&self, lender: &Lender, force: bool) -> Result<()> {
        let lender = lender.clone();
        let places = blocking(move || {
            let was = lender.overview()?.leaving;
            // First nothing new is lent, then it is looked what is.
            lender.set_leaving(true)?;
            let places = lender.places(None);
            let scratch: Vec<&PlaceView> = places.iter().filter(|p| p.kind == PlaceKind::Scratch).collect();
            if !scratch.is_empty() && !force {
                if !was {
                    lender.set_leaving(false)?;
                }
                return Err(lent(scratch.len()));
            }
            scratch.iter().try_for_each(|p| lender.take_back(p.id))?;
            lender.tick()?;
            Ok(lender.places(None))
        })
        .await?;
        let mut fetched = self.0.fetched.lock();
        for place in places {
            fetched.entry(place.id.0).or_default();
        }
        Ok(())
    }

    async fn until_left(
        &self,
        entry: &Arc<Entry>,
        lender: &Lender,
        tell: &mpsc::Sender<Result<wire::LeaveProgress>>,
    ) -> Result<()> {
        let mut last = None;
        loop {
            let (places, overview) = {
                let lender = lender.clone();
                blocking(move || Ok((lender.places(None), lender.overview()?))).await?
            };
            if !overview.leaving {
                return Err(Error::new(Reason::ResourceBusy, format!("{} stays", entry.local_name()))
                    .why_is("it was shared again meanwhile")
                    .fix_is("unshare it again, if it is to leave"));
            }
            if places.is_empty() {
                return self.unshare_entry(entry, false, false).await;
            }
            let mirrors: Vec<wire::LeavingMirror> = places.iter().map(|p| self.leaving_mirror(p)).collect();
            let now = wire::LeaveProgress { mirrors, done: false };
            if last.as_ref() != Some(&now) {
                last = Some(now.clone());
                let _ = tell.send(Ok(now)).await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn leaving_mirror(&self, place: &PlaceView) -> wire::LeavingMirror {
        let claims = self.0.remote.claims();
        let claim = claims.iter().find(|c| c.what.device.to_string() == place.owner.device);
        let online = claim.is_some_and(|c| c.what.device == self.me() || self.0.remote.is_connected(&c.what.device));
        wire::LeavingMirror {
            person: place.owner.person.clone(),
            node_name: claim.map(|c| c.shown()).unwrap_or_default(),
            label: place.label.clone(),
            total_bytes: place.used,
            fetched_bytes: self.0.fetched.lock().get(&place.id.0).copied().unwrap_or(0),
            online,
        }
    }
}
