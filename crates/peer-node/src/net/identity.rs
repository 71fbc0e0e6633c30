//! Who is at the other end.

use common::error::{Error, Reason, Result};
use common::identity::DeviceId;
use std::fmt;
use std::net::SocketAddr;

/// How a connection gets to the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// Straight to, or from, this address.
    Direct(SocketAddr),
    /// Through this member. If that is the node itself or the other end, the bytes go over the connection that exists
    /// between the two in the other direction.
    Relayed(DeviceId),
}

impl Way {
    /// The address, unless it is relayed.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Direct(address) => Some(*address),
            Self::Relayed(_) => None,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(address) => address.fmt(f),
            Self::Relayed(device) => write!(f, "relayed by {device:?}"),
        }
    }
}

/// Who calls; in the extensions of every request that reaches a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    /// The device: it holds the key of this id.
    pub device: DeviceId,
    /// Its Ed25519 public key.
    pub key: [u8; 32],
    /// How it comes here.
    pub way: Way,
    /// Was a member when the call began.
    pub member: bool,
}

impl NodeIdentity {
    /// Who makes this call.
    ///
    /// # Errors
    /// CREDENTIALS_MISSING if it did not come through an [`super::Endpoint`].
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self> {
        Self::in_extensions(request.extensions().get::<Self>())
    }

    /// The same for services below tonic's.
    ///
    /// # Errors
    /// As [`NodeIdentity::of`].
    pub fn of_http<T>(request: &http::Request<T>) -> Result<Self> {
        Self::in_extensions(request.extensions().get::<Self>())
    }

    /// The member that makes this call. Strangers' calls do not get as far as the services for members; this is the
    /// second look.
    ///
    /// # Errors
    /// CREDENTIALS_MISSING, NOT_A_MEMBER.
    pub fn member_of<T>(request: &tonic::Request<T>) -> Result<DeviceId> {
        let identity = Self::of(request)?;
        if !identity.member {
            return Err(Error::new(Reason::NotAMember, "only members of the office may call this"));
        }
        Ok(identity.device)
    }

    fn in_extensions(found: Option<&Self>) -> Result<Self> {
        found
            .copied()
            .ok_or_else(|| Error::new(Reason::CredentialsMissing, "the call did not come over a node's connection"))
    }
}
