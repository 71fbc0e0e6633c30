//! Read tickets: this server's word that a machine may have some contents from other machines (`common::ticket`).
//!
//! Whoever may read a file gets a ticket for its present content. A ticket cannot be taken back; it ends after a day, and
//! who has lost the right gets no new one.

use super::App;
use super::caller::Caller;
use super::entries::{self, Entry};
use super::{devices, versions};
use common::error::{Error, Reason, Result};
use common::model::{DeviceId, EntryPath};
use common::ticket::{MAX_MANIFESTS, Ticket};

/// A ticket.
#[derive(Debug)]
pub struct Issued {
    /// A serialized `atrium.v1.ReadTicket`; empty if no file may be read.
    pub ticket: Vec<u8>,
    /// Its signature.
    pub signature: Vec<u8>,
    /// Each path's file, or why it is not in the ticket; in the order of the paths.
    pub items: Vec<Result<Entry>>,
}

/// Issues a ticket for files that the caller may read.
///
/// # Errors
/// `FIELD_INVALID` for no or too many paths or a malformed device; `ACCESS_DENIED` if the call comes from another machine
/// than the ticket is for; `DEVICE_UNKNOWN` if that is no machine of the office; those of the store.
pub async fn issue(app: &App, caller: &Caller, paths: Vec<Result<EntryPath>>, device: &[u8]) -> Result<Issued> {
    if paths.is_empty() || paths.len() > MAX_MANIFESTS {
        let wrong = Error::new(Reason::FieldInvalid, "a ticket is for 1 to 1,000 files");
        return Err(wrong.with("field", "paths"));
    }
    let device = device_of(app, caller, device)?;
    let (for_app, for_caller) = (app.clone(), caller.clone());
    let find = move |path: Result<EntryPath>| -> Result<Entry> {
        Ok(versions::find_version(&for_app, &for_caller, &path?, 0)?.0)
    };
    let items = entries::blocking(move || Ok(paths.into_iter().map(find).collect::<Vec<_>>())).await?;
    let digests: Vec<[u8; 32]> = items.iter().flatten().filter_map(|e| e.manifest_digest).collect();
    if digests.is_empty() {
        return Ok(Issued { ticket: Vec::new(), signature: Vec::new(), items });
    }
    let ticket = Ticket::new(&app.office.name, device, digests, app.clock.now_ms());
    let (ticket, signature) = ticket.sign(&app.office.ca)?;
    Ok(Issued { ticket, signature, items })
}

fn device_of(app: &App, caller: &Caller, device: &[u8]) -> Result<DeviceId> {
    let wrong = || Error::new(Reason::FieldInvalid, "a device's id has 32 bytes").with("field", "device_id");
    let device = DeviceId(device.try_into().map_err(|_| wrong())?);
    if caller.device.is_some_and(|from| from != device) {
        return Err(Error::new(Reason::AccessDenied, "a machine gets tickets for itself only"));
    }
    match devices::is_member(&app.store, &device.to_string())? {
        true => Ok(device),
        false => Err(Error::new(Reason::DeviceUnknown, "the ticket is for no machine of this office")
            .fix_is("have the machine join the office")),
    }
}
