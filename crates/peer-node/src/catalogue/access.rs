//! Who may do what with a share, and what the catalogue needs of the modules beside it.

use common::error::{Error, Reason, Result};
use common::model::{DeviceId, Right};
use futures_util::future::BoxFuture;
use proto::v1::Grant;
use tower::util::BoxCloneSyncService;

use super::record::ShareRecord;
use crate::model::OfficeId;

/// What the catalogue asks of the office.
pub trait Roster: Send + Sync + 'static {
    /// The office; `None` before this machine is in one.
    fn office(&self) -> Option<OfficeId>;
    /// This device.
    fn me(&self) -> DeviceId;
    /// A member that is not revoked.
    fn is_member(&self, device: &DeviceId) -> bool;
    /// The highest right that any of the grants gives a member: by person, by group, by device, as everyone.
    fn right(&self, device: &DeviceId, grants: &[Grant]) -> Option<Right>;
    /// All members, this device included, in any order.
    fn nodes(&self) -> Vec<Node>;
    /// Resolves when any of this may have changed since the call.
    fn changed(&self) -> BoxFuture<'static, ()>;
}

/// A member's machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Which.
    pub device: DeviceId,
    /// Hierarchical name, for example `acme/sales/anna-pc`; two nodes may claim the same.
    pub name: String,
    /// The person that it belongs to.
    pub person: String,
}

/// An error of whatever carries calls to a node.
#[derive(Debug, thiserror::Error)]
#[error("the connection failed")]
pub struct ChannelError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// A gRPC connection to a node, whatever carries it. Use it with a generated client.
pub type PeerChannel =
    BoxCloneSyncService<http::Request<tonic::body::Body>, http::Response<tonic::body::Body>, ChannelError>;

/// How the catalogue reaches other nodes.
pub trait Peers: Send + Sync + 'static {
    /// A connection to a node, for control calls.
    ///
    /// # Errors
    /// PEER_UNREACHABLE and the like.
    fn channel(&self, device: DeviceId) -> BoxFuture<'static, Result<PeerChannel>>;
    /// A connection for many bytes; the same one where there is no other.
    ///
    /// # Errors
    /// PEER_UNREACHABLE and the like.
    fn bulk_channel(&self, device: DeviceId) -> BoxFuture<'static, Result<PeerChannel>> {
        self.channel(device)
    }
    /// Is there a connection now?
    fn is_connected(&self, device: &DeviceId) -> bool;
}

/// A node without any connections.
pub struct Alone;

impl Peers for Alone {
    fn channel(&self, _: DeviceId) -> BoxFuture<'static, Result<PeerChannel>> {
        Box::pin(async { Err(Error::new(Reason::PeerUnreachable, "this node has no connections")) })
    }
    fn is_connected(&self, _: &DeviceId) -> bool {
        false
    }
}

/// What a device may do with a share: everything if it is the owner's, else what the grants say. Nothing if the share is
/// removed or the device is no member.
pub fn right_of(roster: &dyn Roster, device: &DeviceId, record: &ShareRecord) -> Option<Right> {
    if record.removed() || roster.office() != Some(record.terms().office) || !roster.is_member(device) {
        return None;
    }
    if record.owner() == *device {
        return Some(Right::Manage);
    }
    roster.right(device, &record.terms().grants)
}

/// The one answer to whoever asks for a share that is not there, or that he may not see: nothing in it tells which.
pub fn unknown_share() -> Error {
    Error::new(Reason::ShareUnknown, "there is no such share")
}

/// Lets a device through that has at least this right.
///
/// # Errors
/// SHARE_UNKNOWN if it may not even see the share, ACCESS_DENIED if it may see it but has not that right.
pub fn require(right: Option<Right>, needed: Right) -> Result<Right> {
    match right {
        None => Err(unknown_share()),
        Some(right) if right < needed => Err(Error::new(
            Reason::AccessDenied,
            format!("you may {} this share, not {} it", right.word(), needed.word()),
        )),
        Some(right) => Ok(right),
    }
}
