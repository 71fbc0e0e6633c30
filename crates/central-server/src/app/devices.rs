//! Machines of the office.
//!
//! A device's record is made when it joins and stays for good: a device that was cut off must stay known as such. On
//! every call its id is looked up, so a revocation counts from the next call on; open streams are told through
//! [`super::identity::Identity::subscribe`]. When a device was last seen is kept in memory and written once a minute
//! ([`flush_seen`]), never with a call.

use super::App;
use super::audit;
use super::caller::Caller;
use super::identity::{self, require_admin};
use super::page::{self, PageToken};
use super::records::{self, View, device_key};
use common::error::{Error, Reason, Result};
use common::identity::DeviceRequest;
use common::model::DeviceId;
use common::store::prefix_end;
use parking_lot::Mutex;
use proto::record::v1 as record;
use std::collections::HashMap;

/// Devices whose calls are remembered between two writes; calls of further ones are not.
const MAX_SEEN: usize = 20_000;
/// Records per transaction of [`flush_seen`].
const FLUSH_STEP: usize = 500;
const MINUTE_MS: u64 = 60_000;
/// Fewest digits of an id that name a device.
const MIN_PREFIX: usize = 8;

/// A member machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// 64 lower-case hex digits.
    pub id: String,
    /// The name it gave itself.
    pub display_name: String,
    /// When it joined, milliseconds since 1970.
    pub create_ms: u64,
    /// End of its newest certificate, milliseconds since 1970.
    pub certificate_expire_ms: u64,
    /// Last call, to the minute, milliseconds since 1970; 0 for never.
    pub last_seen_ms: u64,
    /// It was cut off.
    pub revoked: bool,
    /// Civic address.
    pub address: String,
}

/// A page of devices.
#[derive(Clone, Debug)]
pub struct DevicePage {
    /// In order of ids.
    pub devices: Vec<Device>,
    /// Empty at the end.
    pub next_page_token: String,
}

/// A fresh certificate.
#[derive(Clone, Debug)]
pub struct Renewed {
    /// PEM chain, leaf first.
    pub certificate_pem: String,
    /// Certificates to trust, PEM.
    pub ca_pem: String,
}

/// Minutes in which devices called, since the last write.
#[derive(Debug, Default)]
pub struct LastSeen(Mutex<HashMap<DeviceId, u64>>);

impl LastSeen {
    fn touch(&self, device: &DeviceId, now_ms: u64) {
        let minute = now_ms / MINUTE_MS * MINUTE_MS;
        let mut seen = self.0.lock();
        if let Some(last) = seen.get_mut(device) {
            *last = minute;
        } else if seen.len() < MAX_SEEN {
            seen.insert(*device, minute);
        }
    }

    fn get(&self, device: &DeviceId) -> Option<u64> {
        self.0.lock().get(device).copied()
    }
}

/// First bytes of the keys that membership is read from.
pub(crate) const KINDS: &[u8] = b"m";

/// True for a member that was not cut off. Notes that it was seen. One point read, unless it is known already.
///
/// # Errors
/// Those of the store.
pub fn is_allowed(app: &App, device: &DeviceId) -> Result<bool> {
    let read = || Ok(is_member(&app.store, &device.to_string())?.then_some(()));
    let allowed = app.identity.members.get(&app.store, device, read)?.is_some();
    if allowed {
        app.identity.seen.touch(device, app.clock.now_ms());
    }
    Ok(allowed)
}

/// True for the id of a member that was not cut off.
pub(crate) fn is_member(view: &impl View, id: &str) -> Result<bool> {
    Ok(records::load::<record::Device>(view, &device_key(id))?.is_some_and(|d| !d.revoked))
}

fn view(app: &App, device: record::Device) -> Device {
    let seen = device.id.parse().ok().and_then(|id| app.identity.seen.get(&id)).unwrap_or(0);
    Device {
        last_seen_ms: device.last_seen_ms.max(seen),
        id: device.id,
        display_name: device.display_name,
        create_ms: device.create_ms,
        certificate_expire_ms: device.certificate_expire_ms,
        revoked: device.revoked,
        address: device.address,
    }
}

/// Writes when devices were last seen. Called each minute and at the end.
///
/// # Errors
/// Those of the store; what was not written is lost, which costs nothing but the exact minute.
pub async fn flush_seen(app: &App) -> Result<()> {
    let seen: Vec<(DeviceId, u64)> = std::mem::take(&mut *app.identity.seen.0.lock()).into_iter().collect();
    for step in seen.chunks(FLUSH_STEP) {
        let step = step.to_vec();
        app.store
            .transact(move |txn| {
                for (id, minute) in &step {
                    let key = device_key(&id.to_string());
                    if let Some(mut device) = records::load::<record::Device>(txn, &key)?
                        && device.last_seen_ms < *minute
                    {
                        device.last_seen_ms = *minute;
                        records::save(txn, &key, &device)?;
                    }
                }
                Ok(())
            })
            .await?;
    }
    Ok(())
}

/// Devices in order of their ids, also those that were cut off.
///
/// # Errors
/// `ADMIN_REQUIRED`, `PAGE_TOKEN_INVALID`.
pub async fn list(app: &App, caller: &Caller, page_size: u32, page_token: &str) -> Result<DevicePage> {
    require_admin(app, caller, "device.list", "").await?;
    let list = page::fingerprint("devices", &[]);
    let mut from = device_key("");
    if let Some(token) = PageToken::read(page_token, list)? {
        from = [&device_key(token.text()?)[..], b"\0"].concat();
    }
    let size = page::size(page_size);
    let mut found = app.store.range(&from, &prefix_end(b"m/"), size + 1)?;
    let mut next_page_token = String::new();
    if found.len() > size {
        found.truncate(size);
        next_page_token = found.last().map_or_else(String::new, |(key, _)| PageToken::at(list, &key[2..]));
    }
    let devices = found.into_iter().map(|(_, value)| Ok(view(app, records::decode(value)?))).collect::<Result<_>>()?;
    Ok(DevicePage { devices, next_page_token })
}

/// The device whose id is or begins with these digits.
fn find(view: &impl View, id: &str) -> Result<record::Device> {
    let bad = |message: &str| Error::new(Reason::FieldInvalid, message).with("field", "id");
    if !(MIN_PREFIX..=64).contains(&id.len()) || !id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(bad(
            "a device id has 64 lower-case hex digits; the first 8 or more are enough if no other begins so",
        ));
    }
    let mut found = records::under(view, &device_key(id), 2)?;
    match (found.len(), found.pop()) {
        (1, Some((_, value))) => records::decode(value),
        (0, _) => Err(Error::new(Reason::DeviceUnknown, format!("there is no device {id}"))),
        _ => Err(bad("several devices begin with these digits; give more")),
    }
}

fn subject(id: &str) -> String {
    format!("device:{id}")
}

/// Cuts a device off: certificate and sessions opened from it count no more. Repeating it is harmless.
///
/// # Errors
/// `ADMIN_REQUIRED`, `DEVICE_UNKNOWN`, `FIELD_INVALID`, `AUDIT_FAILED`.
pub async fn revoke(app: &App, caller: &Caller, id: &str) -> Result<Device> {
    let shown: String = id.chars().take(64).collect();
    require_admin(app, caller, "device.revoke", &subject(&shown)).await?;
    let (actor, now_ms, id) = (caller.actor(), app.clock.now_ms(), id.to_owned());
    let revoked = app
        .store
        .transact(move |txn| {
            let mut device = find(txn, &id)?;
            if !device.revoked {
                device.revoked = true;
                records::save(txn, &device_key(&device.id), &device)?;
                audit::record(txn, now_ms, &actor, "device.revoke", &subject(&device.id), true, &device.display_name)?;
            }
            Ok(device)
        })
        .await?
        .value;
    app.identity.announce();
    Ok(view(app, revoked))
}

/// Gives the calling device a fresh certificate for the key it has.
///
/// # Errors
/// `DEVICE_REQUIRED`, `DEVICE_REVOKED`, `CERTIFICATE_REQUEST_INVALID` (also for another key), `AUDIT_FAILED`.
pub async fn renew(app: &App, caller: &Caller, certificate_request: &[u8]) -> Result<Renewed> {
    let device = caller
        .device
        .ok_or_else(|| Error::new(Reason::DeviceRequired, "only a joined machine can renew its certificate"))?;
    let request = DeviceRequest::check(certificate_request)?;
    let id = device.to_string();
    if request.device_id() != device {
        let error = Error::new(
            Reason::CertificateRequestInvalid,
            "the certificate request is for another key than the device's",
        );
        identity::refuse(app, caller, "device.renew", &subject(&id), &error).await;
        return Err(error);
    }
    let now_ms = app.clock.now_ms();
    let (certificate_pem, expire_ms) = issue(app, &request, now_ms)?;
    let renewed = app
        .store
        .transact(move |txn| {
            let key = device_key(&id);
            let mut device = records::load::<record::Device>(txn, &key)?
                .filter(|d| !d.revoked)
                .ok_or_else(|| Error::new(Reason::DeviceRevoked, "this device was cut off"))?;
            device.certificate_expire_ms = expire_ms;
            records::save(txn, &key, &device)?;
            audit::record(txn, now_ms, &subject(&id), "device.renew", &subject(&id), true, "")
        })
        .await;
    if let Err(error) = renewed {
        if error.is(Reason::DeviceRevoked) {
            identity::refuse(app, caller, "device.renew", &subject(&device.to_string()), &error).await;
        }
        return Err(error);
    }
    Ok(Renewed { certificate_pem, ca_pem: app.office.ca.ca_pem().to_owned() })
}

/// Signs a device's certificate. Gives it back with its end, as it is written in the certificate.
///
/// # Errors
/// `INTERNAL` if it cannot be signed.
pub(crate) fn issue(app: &App, request: &DeviceRequest, now_ms: u64) -> Result<(String, u64)> {
    let lifetime = app.settings.devices.certificate_lifetime.get();
    let pem = app.office.ca.issue_device(request, lifetime, now_ms)?;
    let end_ms = now_ms.saturating_add(u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX));
    Ok((pem, end_ms.min(app.office.ca.not_after_ms()) / 1000 * 1000))
}
