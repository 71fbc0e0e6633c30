//! Who is welcome.

use common::identity::DeviceId;

/// Answers whether a device belongs to this node's office. It is asked on every call and for every open connection
/// again and again, so it must be quick and must not block.
pub trait Admission: Send + Sync + 'static {
    /// Belongs to the office now.
    fn is_member(&self, device: &DeviceId) -> bool;

    /// Belonged to the office and was cut off.
    fn is_revoked(&self, device: &DeviceId) -> bool;
}
