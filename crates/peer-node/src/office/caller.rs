//! Who calls, as the connection has it.

use super::view::View;
use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use std::net::SocketAddr;

/// The device at the other end of a connection, by the key of its TLS certificate; in the extensions of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    /// BLAKE3 of the key.
    pub device: DeviceId,
    /// Its Ed25519 key.
    pub public_key: [u8; 32],
    /// Where it comes from; `None` through a relay.
    pub remote: Option<SocketAddr>,
}

/// Refuses those who are no members now. Looked up on each call: who is cut off is refused on open connections too.
///
/// # Errors
/// DEVICE_REVOKED, MEMBER_REQUIRED.
pub fn check_member(view: &View, device: &DeviceId) -> Result<()> {
    if view.is_member(device) {
        Ok(())
    } else if view.revoked(device) {
        Err(Error::new(Reason::DeviceRevoked, "this device was cut off from the office"))
    } else {
        Err(Error::new(Reason::MemberRequired, "this device is no member of the office"))
    }
}
