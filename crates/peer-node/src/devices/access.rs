//! Who asks, and what they may do with a device of this machine.

use crate::catalogue::Roster;
use common::error::{Error, Reason, Result};
use common::model::{DeviceId, Right};
use device::model::Caller;

use super::book::Entry;

/// The one answer for a device that is not there and for one that the caller may not see.
pub fn unknown(name: &str) -> Error {
    Error::new(Reason::ResourceUnknown, format!("there is no device {name:?}"))
}

/// The answer for whoever is no member, or no member any more.
pub fn stranger() -> Error {
    Error::new(Reason::NotAMember, "only members of the office may ask")
}

/// The calling machine as the office knows it.
///
/// # Errors
/// NOT_A_MEMBER.
pub fn caller(roster: &dyn Roster, device: &DeviceId) -> Result<Caller> {
    if !roster.is_member(device) {
        return Err(stranger());
    }
    let node = roster.nodes().into_iter().find(|n| n.device == *device).ok_or_else(stranger)?;
    let machine = node.name.rsplit('/').next().unwrap_or_default().to_owned();
    Ok(Caller { person: node.person, machine, device: device.to_string() })
}

/// What a device may do: everything if it is this machine, else what the grants say.
pub fn right_of(roster: &dyn Roster, device: &DeviceId, entry: &Entry) -> Option<Right> {
    if !roster.is_member(device) {
        return None;
    }
    if roster.me() == *device {
        return Some(Right::Manage);
    }
    roster.right(device, &entry.share.grants)
}

/// Lets through who has at least this right.
///
/// # Errors
/// RESOURCE_UNKNOWN if the caller may not even see it; ACCESS_DENIED.
pub fn require(right: Option<Right>, needed: Right, name: &str) -> Result<Right> {
    match right {
        None => Err(unknown(name)),
        Some(right) if right < needed => Err(Error::new(
            Reason::AccessDenied,
            format!("you may {} {name}, and this needs the right to {}", right.word(), needed.word()),
        )
        .fix_is("ask the person whose machine it is; `atrium devices` shows who")),
        Some(right) => Ok(right),
    }
}
