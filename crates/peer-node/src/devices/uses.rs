//! Leases that this machine holds, here or at other machines, for its person.
//!
//! One task for each: it asks until the lease is given, renews it after a third of its time, and stops by itself before
//! it could have ended at the owner (`device::lease::Held`). Whoever watches gets each change. A lease that was lost ends
//! the task; nobody goes on with it by mistake.
//!
//! Bounds: [`USES_MAX`] leases at a time.

use common::error::{Error, Reason, Result};
use common::model::{DeviceId, fold};
use common::status::{from_status, to_status};
use parking_lot::Mutex;
use proto::peer::v1 as wire;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Devices;
use super::address::Target;
use super::remote::in_time;

/// Most leases that a machine holds.
const USES_MAX: usize = 64;
/// Between two attempts when the owner does not answer.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest time of a lease that is believed: a day.
const TTL_MAX_MS: u64 = 86_400_000;

/// A lease that is held or waited for.
pub(super) struct Use {
    target: Target,
    states: watch::Sender<Option<Result<wire::Lease, tonic::Status>>>,
    end: CancellationToken,
}

/// A device: its node, and its name there without regard to letter case.
type Key = (DeviceId, String);

fn key_of(target: &Target) -> Key {
    (target.node, fold(&target.local_name()))
}

fn free(uses: &HashMap<Key, Arc<Use>>, key: &Key) -> Result<()> {
    if uses.contains_key(key) {
        return Err(Error::new(Reason::ResourceBusy, "this machine uses the device already")
            .fix_is("give it back first: atrium release"));
    }
    if uses.len() >= USES_MAX {
        return Err(Error::new(Reason::Overloaded, "this machine uses as many devices as it can"));
    }
    Ok(())
}

/// All of them.
#[derive(Default)]
pub(super) struct Uses(Mutex<HashMap<Key, Arc<Use>>>);

impl Uses {
    /// The lease that is held now: its id and token.
    pub fn held(&self, target: &Target) -> Option<wire::Lease> {
        let uses = self.0.lock();
        let states = uses.get(&key_of(target))?.states.borrow();
        let lease = states.as_ref()?.as_ref().ok()?;
        (lease.state() == wire::LeaseState::Held).then(|| lease.clone())
    }

    /// Is there room for another one?
    ///
    /// # Errors
    /// RESOURCE_BUSY, OVERLOADED.
    fn room(&self, key: &Key) -> Result<()> {
        free(&self.0.lock(), key)
    }

    fn begin(&self, key: &Key, this: &Arc<Use>) -> Result<()> {
        let mut uses = self.0.lock();
        free(&uses, key)?;
        uses.insert(key.clone(), this.clone());
        Ok(())
    }

    fn end(&self, key: &Key, this: &Arc<Use>) {
        let mut uses = self.0.lock();
        if uses.get(key).is_some_and(|u| Arc::ptr_eq(u, this)) {
            uses.remove(key);
        }
    }
}

impl Devices {
    /// The lease that this machine holds on a device now.
    pub(super) fn held(&self, target: &Target) -> Option<wire::Lease> {
        self.0.uses.held(target)
    }

    async fn ask_lease(&self, target: &Target, r: wire::AcquireLeaseRequest) -> Result<wire::Lease> {
        if target.node == self.me() {
            return self.acquire_lease(&self.me(), r).await;
        }
        let asked = async {
            let mut client = self.client(target.node).await?;
            client.acquire_lease(r).await.map(tonic::Response::into_inner).map_err(|s| from_status(&s))
        };
        in_time(asked).await
    }

    async fn renew_use(&self, target: &Target, r: wire::RenewLeaseRequest) -> Result<wire::Lease> {
        if target.node == self.me() {
            return self.renew_lease(&self.me(), r).await;
        }
        let asked = async {
            let mut client = self.client(target.node).await?;
            client.renew_lease(r).await.map(tonic::Response::into_inner).map_err(|s| from_status(&s))
        };
        in_time(asked).await
    }

    /// Gives a lease back, or takes it back with an empty id.
    ///
    /// # Errors
    /// Those of the owner.
    pub(super) async fn give_back(&self, target: &Target, lease_id: bytes::Bytes) -> Result<()> {
        let r = wire::ReleaseLeaseRequest { device: target.local_name(), lease_id };
        if target.node == self.me() {
            return self.release_lease(&self.me(), r).await.map(drop);
        }
        let asked = async {
            let mut client = self.client(target.node).await?;
            client.release_lease(r).await.map(drop).map_err(|s| from_status(&s))
        };
        in_time(asked).await
    }

    /// Takes a lease and keeps it. The first answer of the owner decides whether it begins at all.
    ///
    /// # Errors
    /// RESOURCE_BUSY and the like; ALREADY: RESOURCE_BUSY if this machine holds or waits for it.
    pub(super) async fn begin_use(
        &self,
        target: Target,
        wish: Wish,
    ) -> Result<(watch::Receiver<Told>, CancellationToken)> {
        let key = key_of(&target);
        self.0.uses.room(&key)?;
        let request = wire::AcquireLeaseRequest {
            device: target.local_name(),
            mode: wish.mode as i32,
            purpose: wish.purpose,
            request_id: Uuid::new_v4().as_bytes().to_vec().into(),
            wait: wish.wait,
        };
        let sent = Instant::now();
        let first = self.ask_lease(&target, request.clone()).await?;
        let (states, watcher) = watch::channel(Some(Ok(first.clone())));
        let end = CancellationToken::new();
        let this = Arc::new(Use { target, states, end: end.clone() });
        if let Err(error) = self.0.uses.begin(&key, &this) {
            // Two asked at the same time: the first one has it.
            let _ = self.give_back(&this.target, first.lease_id).await;
            return Err(error);
        }
        let (devices, stop) = (self.clone(), self.0.shutdown.token());
        let until = wish.seconds.map(|s| sent + s);
        self.0.shutdown.spawn(async move {
            let ended = devices.keep_use(&this, request, first, sent, until, &stop).await;
            // Given back if it may still be ours; the owner forgets it by silence otherwise.
            let id = this.states.borrow().as_ref().and_then(|s| s.as_ref().ok().map(|l| l.lease_id.clone()));
            if let Some(id) = id {
                let _ = devices.give_back(&this.target, id).await;
            }
            devices.0.uses.end(&key, &this);
            this.states.send_replace(ended.err().map(|e| Err(to_status(&e))));
            devices.changed();
        });
        Ok((watcher, end))
    }

    /// Asks and renews until the end is asked for (`Ok`), or the lease is lost.
    async fn keep_use(
        &self,
        this: &Use,
        request: wire::AcquireLeaseRequest,
        mut lease: wire::Lease,
        mut sent: Instant,
        until: Option<Instant>,
        stop: &CancellationToken,
    ) -> Result<()> {
        let far = Instant::now() + Duration::from_secs(86_400 * 365);
        let late = || Error::new(Reason::LeaseLost, "the device's machine did not prolong the lease in time");
        let mut failed = false;
        loop {
            let held = lease.state() == wire::LeaseState::Held;
            let ttl = Duration::from_millis(lease.ttl_ms.min(TTL_MAX_MS));
            // Its end here is before its end at the owner, whatever happens.
            let last = if held { sent + ttl.saturating_sub(Duration::from_millis(lease.skew_ms)) } else { far };
            let wait = match held {
                _ if failed => AGAIN,
                true => (ttl / 3).max(Duration::from_millis(100)),
                false => Duration::from_millis(lease.poll_after_ms.clamp(100, 10_000)),
            };
            tokio::select! {
                () = this.end.cancelled() => return Ok(()),
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep_until(until.unwrap_or(far)) => return Ok(()),
                () = tokio::time::sleep_until(last) => return Err(late()),
                () = tokio::time::sleep(wait) => {}
            }
            let asked = Instant::now();
            let asking = async {
                if held {
                    let (device, lease_id) = (lease.device.clone(), lease.lease_id.clone());
                    self.renew_use(&this.target, wire::RenewLeaseRequest { device, lease_id }).await
                } else {
                    self.ask_lease(&this.target, request.clone()).await
                }
            };
            let answer = tokio::select! {
                answer = asking => answer,
                () = this.end.cancelled() => return Ok(()),
                () = tokio::time::sleep_until(last) => return Err(late()),
            };
            match answer {
                Ok(now) => {
                    (lease, sent, failed) = (now.clone(), asked, false);
                    this.states.send_replace(Some(Ok(now)));
                }
                Err(error) if error.kind() == common::error::Kind::Unavailable => failed = true,
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends a use of this machine.
    ///
    /// # Errors
    /// LEASE_UNKNOWN if there is none.
    pub(super) async fn end_use(&self, target: &Target) -> Result<()> {
        let this = self.0.uses.0.lock().get(&key_of(target)).cloned();
        let this = this.ok_or_else(|| Error::new(Reason::LeaseUnknown, "this machine does not use the device"))?;
        let mut states = this.states.subscribe();
        this.end.cancel();
        drop(this);
        // Ended when its last word was said.
        let _ = states.wait_for(|s| !matches!(s, Some(Ok(_)))).await;
        Ok(())
    }
}

/// What watchers get: the newest standing, why it was lost, or nothing when it was given back.
pub(super) type Told = Option<Result<wire::Lease, tonic::Status>>;

/// What a person wants.
pub(super) struct Wish {
    pub mode: wire::LeaseMode,
    pub purpose: String,
    pub wait: bool,
    pub seconds: Option<Duration>,
}
