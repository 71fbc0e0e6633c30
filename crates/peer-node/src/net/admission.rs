//! Who is welcome.

use super::link::NodeChannel;
use common::identity::DeviceId;
use futures_util::future::BoxFuture;

/// Answers whether a device belongs to this node's office. It is asked on every call and for every open connection
/// again and again, so it must be quick and must not block.
pub trait Admission: Send + Sync + 'static {
    /// Belongs to the office now.
    fn is_member(&self, device: &DeviceId) -> bool;

    /// Belonged to the office and was cut off.
    fn is_revoked(&self, device: &DeviceId) -> bool;

    /// Introduces this node to a member that does not count it as one: it was admitted by another while that one was
    /// away. Gives back whether it does now. By default there is nothing to show.
    fn introduce(&self, channel: NodeChannel) -> BoxFuture<'static, bool> {
        drop(channel);
        Box::pin(std::future::ready(false))
    }
}
