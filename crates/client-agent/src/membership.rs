//! This machine's place in an office, on disk.
//!
//! `device.key` (the machine's Ed25519 key, made once), `membership.json` (everything else, replaced atomically). The
//! machine has joined exactly if `membership.json` is there; joining writes it last.

use arc_swap::ArcSwapOption;
use common::error::{Error, Reason, Result};
use common::identity::{DeviceKey, write_secret};
use common::tls::DeviceCredentials;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the office gave this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The office's name.
    pub office: String,
    /// "host:port" of the central server.
    pub server: String,
    /// This machine's name.
    pub display_name: String,
    /// This machine's id.
    pub device_id: String,
    /// Certificates to trust, PEM.
    pub ca_pem: String,
    /// This machine's certificate chain, PEM.
    pub certificate_pem: String,
    /// Beginning of its validity, milliseconds since 1970.
    pub certificate_begin_ms: u64,
    /// End of its validity.
    pub certificate_end_ms: u64,
}

/// The membership and the key, shared.
pub struct Member {
    file: PathBuf,
    /// This machine's key.
    pub key: Arc<DeviceKey>,
    current: ArcSwapOption<Membership>,
}

impl Member {
    /// Reads what is there; makes a key on the first start.
    ///
    /// # Errors
    /// I/O; a key file that others can read; a membership that cannot be understood.
    pub fn open(directory: &Path) -> Result<Self> {
        let key = Arc::new(DeviceKey::load_or_generate(&directory.join("device.key"))?);
        let file = directory.join("membership.json");
        let current = match std::fs::read(&file) {
            Ok(bytes) => {
                let membership: Membership = serde_json::from_slice(&bytes)
                    .map_err(|e| Error::new(Reason::IoFailed, "the membership cannot be read").caused_by(e))?;
                Some(Arc::new(membership))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { file, key, current: ArcSwapOption::new(current) })
    }

    /// The membership.
    ///
    /// # Errors
    /// `NOT_JOINED`.
    pub fn get(&self) -> Result<Arc<Membership>> {
        self.current.load_full().ok_or_else(|| Error::new(Reason::NotJoined, "this machine has not joined an office"))
    }

    /// What this machine shows to the office.
    ///
    /// # Errors
    /// `NOT_JOINED`.
    pub fn credentials(&self) -> Result<DeviceCredentials> {
        let membership = self.get()?;
        Ok(DeviceCredentials { key: self.key.clone(), certificate_pem: membership.certificate_pem.clone() })
    }

    /// Replaces it; durable on return.
    ///
    /// # Errors
    /// I/O; then nothing has changed.
    pub fn set(&self, membership: Membership) -> Result<()> {
        let text =
            serde_json::to_vec_pretty(&membership).map_err(|e| Error::internal("the membership").caused_by(e))?;
        write_secret(&self.file, &text)?;
        self.current.store(Some(Arc::new(membership)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_means_written() {
        let dir = tempfile::tempdir().unwrap();
        let member = Member::open(dir.path()).unwrap();
        assert!(member.get().is_err_and(|e| e.is(Reason::NotJoined)));
        let membership = Membership {
            office: "acme".into(),
            server: "localhost:7443".into(),
            display_name: "pc".into(),
            device_id: member.key.device_id().to_string(),
            ca_pem: "ca".into(),
            certificate_pem: "cert".into(),
            certificate_begin_ms: 100,
            certificate_end_ms: 1100,
        };
        member.set(membership.clone()).unwrap();
        let again = Member::open(dir.path()).unwrap();
        assert_eq!(*again.get().unwrap(), membership);
        assert_eq!(again.key.device_id(), member.key.device_id());
    }
}
