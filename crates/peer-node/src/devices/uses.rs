//! Leases that this machine holds, here or at other machines, for its person.
//!
//! One task for each: it asks until the lease is given, renews it after a third of its time, and stops by itself before
//! it could have ended at the owner (`device::lease::Held`). Whoever watches gets each change. A lease that was lost ends
//! the task; nobody goes on with it by mistake.
//!
//! Bounds: [`USES_MAX`] leases at a time.

use common::error::{Error, Reason, Result};
use common::model::DeviceId;
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


/// A lease that is held or waited for.
pub(super) struct Use {
    target: Target,
    states: watch::Sender<Option<Result<wire::Lease, tonic::Status>>>,
    end: CancellationToken,
}

/// All of them, by node and name.
#[derive(Default)]
pub(super) struct Uses(Mutex<HashMap<(DeviceId, String), Arc<Use>>>);

impl Uses {
    /// The lease that is held now: its id and token.
    pub fn held(&self, target: &Target) -> Option<wire::Lease> {
        let uses = self.0.lock();
        let states = uses.get(&(target.node, target.local_name()))?.states.borrow();
        let lease = states.as_ref()?.as_ref().ok()?;
        (lease.state() == wire::LeaseState::Held).then(|| lease.clone())
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
    pub(super) async fn begin_use(&self, target: Target, wish: Wish) -> Result<watch::Receiver<Told>> {
        let key = (target.node, target.local_name());
        {
            let uses = self.0.uses.0.lock();
            if uses.contains_key(&key) {
                return Err(Error::new(Reason::ResourceBusy, "this machine uses the device already")
                    .fix_is("give it back first: atrium release"));
            }
            if uses.len() >= USES_MAX {
                return Err(Error::new(Reason::Overloaded, "this machine uses as many devices as it can"));
            }
        }
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
        let this = Arc::new(Use { target, states, end: CancellationToken::new() });
        self.0.uses.0.lock().insert(key.clone(), this.clone());
        let (devices, stop) = (self.clone(), self.0.shutdown.token());
        let until = wish.seconds.map(|s| sent + s);
        self.0.shutdown.spawn(async move {
            let ended = devices.keep_use(&this, request, first, sent, until, &stop).await;
            // Given back if it may still be ours; the owner forgets it by silence otherwise.
            let id = this.states.borrow().as_ref().and_then(|s| s.as_ref().ok().map(|l| l.lease_id.clone()));
            if let Some(id) = id {
                let _ = devices.give_back(&this.target, id).await;
            }
            devices.0.uses.0.lock().remove(&key);
            this.states.send_replace(ended.err().map(|e| Err(to_status(&e))));
            devices.changed();
        });
        Ok(watcher)
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
        loop {
            let held = lease.state() == wire::LeaseState::Held;
            let ttl = Duration::from_millis(lease.ttl_ms.max(3_000));
            let wait = if held { ttl / 3 } else { Duration::from_millis(lease.poll_after_ms.clamp(100, 10_000)) };
            tokio::select! {
                () = this.end.cancelled() => return Ok(()),
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep_until(until.unwrap_or(far)) => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
            let asked = Instant::now();
            let answer = if held {
                let renew = wire::RenewLeaseRequest { device: lease.device.clone(), lease_id: lease.lease_id.clone() };
                self.renew_use(&this.target, renew).await
            } else {
                self.ask_lease(&this.target, request.clone()).await
            };
            match answer {
                Ok(now) => {
                    (lease, sent) = (now.clone(), asked);
                    this.states.send_replace(Some(Ok(now)));
                }
                Err(error) if error.kind() == common::error::Kind::Unavailable => {
                    let last = sent + ttl.saturating_sub(Duration::from_millis(lease.skew_ms));
                    if held && Instant::now() + AGAIN >= last {
                        return Err(Error::new(Reason::LeaseLost, "the device's machine did not answer in time")
                            .caused_by(error));
                    }
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends a use of this machine.
    ///
    /// # Errors
    /// LEASE_UNKNOWN if there is none.
    pub(super) async fn end_use(&self, target: &Target) -> Result<()> {
        let key = (target.node, target.local_name());
        let this = self.0.uses.0.lock().get(&key).cloned();
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
