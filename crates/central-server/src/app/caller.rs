//! Who makes a call.

use common::error::{Error, Reason, Result};
use common::model::{DeviceId, Role};
use std::sync::Arc;
use uuid::Uuid;

/// The signed-in user behind a call.
#[derive(Clone, Debug)]
pub struct UserIdentity {
    /// Stable id.
    pub uid: Uuid,
    /// Account name.
    pub name: Arc<str>,
    /// Role in the office.
    pub role: Role,
    /// Groups the user is in.
    pub groups: Arc<[Uuid]>,
    /// The session that the call came under.
    pub session: Uuid,
    /// When that session ends, milliseconds since 1970.
    pub session_expire_ms: u64,
}

/// Everything known about who makes a call. Put into the request's extensions by the authentication layer.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// From the session token.
    pub user: Option<UserIdentity>,
    /// From the client certificate; not revoked.
    pub device: Option<DeviceId>,
    /// Over the local administration socket, as root or as the server's own user.
    pub local_admin: bool,
    /// The call's id in logs and errors.
    pub request_id: Arc<str>,
}

impl Caller {
    /// The caller in the audit log: "user:anna", "device:…", "local", "anonymous".
    pub fn actor(&self) -> String {
        match (&self.user, &self.device) {
            (Some(user), _) => format!("user:{}", user.name),
            _ if self.local_admin => "local".to_owned(),
            (None, Some(device)) => format!("device:{device}"),
            (None, None) => "anonymous".to_owned(),
        }
    }

    /// The signed-in user.
    ///
    /// # Errors
    /// `CREDENTIALS_MISSING`.
    pub fn require_user(&self) -> Result<&UserIdentity> {
        self.user.as_ref().ok_or_else(|| Error::new(Reason::CredentialsMissing, "this needs a signed-in user"))
    }

    /// True for the role ADMIN and for the local administrator.
    pub fn is_admin(&self) -> bool {
        self.local_admin || self.user.as_ref().is_some_and(|u| u.role == Role::Admin)
    }

    /// # Errors
    /// `ADMIN_REQUIRED`, or `CREDENTIALS_MISSING` for a caller without any credentials.
    pub fn require_admin(&self) -> Result<()> {
        if self.is_admin() {
            return Ok(());
        }
        self.require_user()?;
        Err(Error::new(Reason::AdminRequired, "this needs an administrator"))
    }
}
