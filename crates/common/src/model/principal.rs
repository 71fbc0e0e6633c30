//! Who may do what.

use super::id::DeviceId;
use uuid::Uuid;

/// What a principal may do with a resource. Each level includes the ones below it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Right {
    /// The name appears in lists.
    See = 1,
    /// Content may be read.
    Read = 2,
    /// Content may be changed.
    Write = 3,
    /// Rights may be changed.
    Manage = 4,
}

impl Right {
    /// From the wire's number.
    pub fn from_number(n: i32) -> Option<Self> {
        Some(match n {
            1 => Self::See,
            2 => Self::Read,
            3 => Self::Write,
            4 => Self::Manage,
            _ => return None,
        })
    }
    /// The word people type.
    pub fn word(self) -> &'static str {
        match self {
            Self::See => "see",
            Self::Read => "read",
            Self::Write => "write",
            Self::Manage => "manage",
        }
    }
}

/// What a user may do in the office as a whole.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Role {
    /// Only what is granted by name.
    Guest = 1,
    /// The usual role.
    Member = 2,
    /// May also read the audit log.
    Auditor = 3,
    /// May manage everything, but not read other people's private directories.
    Admin = 4,
}

impl Role {
    /// From the wire's number.
    pub fn from_number(n: i32) -> Option<Self> {
        Some(match n {
            1 => Self::Guest,
            2 => Self::Member,
            3 => Self::Auditor,
            4 => Self::Admin,
            _ => return None,
        })
    }
    /// The word people type.
    pub fn word(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Member => "member",
            Self::Auditor => "auditor",
            Self::Admin => "admin",
        }
    }
}

/// Whom a grant is for, by stable id.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum Principal {
    /// A user.
    User(Uuid),
    /// A group.
    Group(Uuid),
    /// A device.
    Device(DeviceId),
    /// Every member (guests are not).
    Everyone,
}
