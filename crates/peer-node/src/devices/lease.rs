//! Leases of this machine's drives, as other machines ask for them.

use common::error::{Error, Reason, Result};
use common::model::{DeviceId, Right};
use device::lease::{Ask, LeaseId, Mode, Standing};
use device::model::{Caller, Kind};
use proto::peer::v1 as wire;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

use super::Devices;
use super::book::Entry;

/// How soon one who waits asks again: several times before the place in the queue is lost.
const POLL_AFTER: Duration = Duration::from_secs(3);

/// A person at a machine, for people.
pub(super) fn who_text(who: &Caller) -> String {
    format!("{} at {}", who.person, who.machine)
}

/// Reads a lease's id.
///
/// # Errors
/// FIELD_INVALID.
pub(super) fn lease_id(bytes: &[u8]) -> Result<LeaseId> {
    Uuid::from_slice(bytes)
        .map(LeaseId)
        .map_err(|_| Error::new(Reason::FieldInvalid, "a lease's id has 16 bytes").with("field", "lease_id"))
}

fn mode_of(mode: i32) -> Result<Mode> {
    match wire::LeaseMode::try_from(mode) {
        Ok(wire::LeaseMode::Shared) => Ok(Mode::Shared),
        Ok(wire::LeaseMode::Exclusive) => Ok(Mode::Exclusive),
        _ => Err(Error::new(Reason::FieldInvalid, "the mode is neither shared nor exclusive").with("field", "mode")),
    }
}

fn wire_mode(mode: Mode) -> i32 {
    let mode = match mode {
        Mode::Shared => wire::LeaseMode::Shared,
        Mode::Exclusive => wire::LeaseMode::Exclusive,
    };
    mode as i32
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Devices {
    /// A device that leases are for. A printer's queue shares it; borrowed space is one's own.
    fn leased(&self, caller: &DeviceId, name: &str, right: Right) -> Result<(Arc<Entry>, Caller)> {
        let (entry, who) = self.allowed(caller, name, right, "use")?;
        if entry.kind != Kind::Drive {
            return Err(Error::new(Reason::ResourceInvalid, format!("{name} needs no lease"))
                .why_is("a printer's queue and lent space are shared by what they are")
                .fix_is("print, or borrow space"));
        }
        Ok((entry, who))
    }

    fn wire_lease(&self, name: &str, id: LeaseId, mode: Mode, standing: Standing) -> Result<wire::Lease> {
        let overview = self.0.leases.overview(name)?;
        let mut lease = wire::Lease {
            device: name.to_owned(),
            lease_id: id.0.as_bytes().to_vec().into(),
            mode: wire_mode(mode),
            ..wire::Lease::default()
        };
        match standing {
            Standing::Granted(grant) => {
                lease.state = wire::LeaseState::Held as i32;
                lease.fencing_token = grant.token.0;
                lease.mode = wire_mode(grant.mode);
                (lease.ttl_ms, lease.skew_ms) = (ms(grant.ttl), ms(grant.skew));
                lease.wanted = grant.wanted;
                lease.notes = overview
                    .notes
                    .iter()
                    .map(|n| wire::DeviceNote { from: who_text(&n.from), text: n.text.clone(), age_ms: ms(n.age) })
                    .collect();
            }
            Standing::Waiting { place, holders } => {
                lease.state = wire::LeaseState::Waiting as i32;
                lease.position = u32::try_from(place.saturating_sub(1)).unwrap_or(u32::MAX);
                lease.poll_after_ms = ms(POLL_AFTER);
                lease.holders = holders.iter().map(who_text).collect();
            }
        }
        Ok(lease)
    }

    /// `AcquireLease` for a device of this machine.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, ACCESS_DENIED, RESOURCE_INVALID, FIELD_INVALID; those of [`device::lease::Leases::ask`].
    pub async fn acquire_lease(&self, caller: &DeviceId, r: wire::AcquireLeaseRequest) -> Result<wire::Lease> {
        let mode = mode_of(r.mode)?;
        let needed = if mode == Mode::Exclusive { Right::Write } else { Right::Read };
        let (_, who) = self.leased(caller, &r.device, needed)?;
        let id = lease_id(&r.request_id)?;
        let ask = Ask { id, mode, wait: r.wait, purpose: r.purpose };
        let standing = self.0.leases.ask(&r.device, &who, ask).await?;
        self.changed();
        self.wire_lease(&r.device, id, mode, standing)
    }

    /// `RenewLease`. Also keeps a place in the queue.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, LEASE_LOST, LEASE_UNKNOWN.
    pub async fn renew_lease(&self, caller: &DeviceId, r: wire::RenewLeaseRequest) -> Result<wire::Lease> {
        let (_, who) = self.leased(caller, &r.device, Right::Read)?;
        let id = lease_id(&r.lease_id)?;
        let overview = self.0.leases.overview(&r.device)?;
        let held = overview.held.iter().map(|h| (h.id, h.mode));
        let alone = held.chain(overview.queue.iter().map(|w| (w.id, w.mode))).any(|l| l == (id, Mode::Exclusive));
        if alone && let Err(error) = self.allowed(caller, &r.device, Right::Write, "use") {
            // Whoever may not have it alone any more gives it up now, not when it would have ended.
            self.0.leases.release(&r.device, &who, id)?;
            self.changed();
            return Err(error);
        }
        let standing = self.0.leases.renew(&r.device, &who, id)?;
        self.wire_lease(&r.device, id, Mode::Shared, standing)
    }

    /// `ReleaseLease`. Whoever manages the device takes another's lease, or place in the queue, back by its id, or all that
    /// are held without one; their holders are told by whom.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, ACCESS_DENIED also for another's lease without the right to manage.
    pub async fn release_lease(
        &self,
        caller: &DeviceId,
        r: wire::ReleaseLeaseRequest,
    ) -> Result<wire::ReleaseLeaseResponse> {
        if r.lease_id.is_empty() {
            let (_, who) = self.leased(caller, &r.device, Right::Manage)?;
            self.0.leases.take_back(&r.device, &who, None, "")?;
        } else {
            let (_, who) = self.leased(caller, &r.device, Right::See)?;
            let id = lease_id(&r.lease_id)?;
            // A repeat finds nothing, and is harmless.
            if !self.0.leases.release(&r.device, &who, id)? && self.is_standing(&r.device, id)? {
                self.allowed(caller, &r.device, Right::Manage, "take-back")?;
                self.0.leases.take_back(&r.device, &who, Some(id), "")?;
            }
        }
        self.changed();
        Ok(wire::ReleaseLeaseResponse {})
    }

    /// Whether somebody holds or waits under this id.
    fn is_standing(&self, device: &str, id: LeaseId) -> Result<bool> {
        let overview = self.0.leases.overview(device)?;
        let held = overview.held.iter().filter(|h| !h.finishing).map(|h| h.id);
        Ok(held.chain(overview.queue.iter().map(|w| w.id)).any(|standing| standing == id))
    }

    /// Who holds a device and who waits for it, the next one first: for who manages it.
    pub(super) fn leases_of(&self, name: &str) -> Vec<wire::DeviceLease> {
        let overview = self.0.leases.overview(name).unwrap_or_default();
        let lease = |id: LeaseId, mode, state: wire::LeaseState, who: &Caller, purpose: String| wire::DeviceLease {
            lease_id: id.0.as_bytes().to_vec().into(),
            mode: wire_mode(mode),
            state: state as i32,
            holder: who_text(who),
            purpose,
        };
        let held = overview.held.into_iter().filter(|h| !h.finishing);
        let held = held.map(|h| lease(h.id, h.mode, wire::LeaseState::Held, &h.holder, h.purpose));
        let queue = overview.queue.into_iter();
        held.chain(queue.map(|w| lease(w.id, w.mode, wire::LeaseState::Waiting, &w.who, w.purpose))).collect()
    }

    /// `RequestDevice`: a note to who holds it.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, ACCESS_DENIED, OVERLOADED for too many notes.
    pub async fn request_device(
        &self,
        caller: &DeviceId,
        r: wire::RequestDeviceRequest,
    ) -> Result<wire::RequestDeviceResponse> {
        let (_, who) = self.leased(caller, &r.device, Right::Read)?;
        self.0.leases.request(&r.device, &who, &r.text)?;
        self.changed();
        Ok(wire::RequestDeviceResponse { holder: self.holder(&r.device) })
    }

    /// Who holds a device alone, for people; empty if nobody does.
    pub(super) fn holder(&self, name: &str) -> String {
        let held = self.0.leases.overview(name).map(|o| o.held).unwrap_or_default();
        held.iter().find(|h| h.mode == Mode::Exclusive).map(|h| who_text(&h.holder)).unwrap_or_default()
    }
}
