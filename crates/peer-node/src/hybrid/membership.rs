//! This node's place at the central server, on disk.

use crate::office::CentralServer;
use arc_swap::ArcSwapOption;
use common::error::{Error, Reason, Result};
use common::identity::write_secret;
use common::model::DeviceId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the server gave this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The office's name at the server.
    pub office: String,
    /// "host:port".
    pub server: String,
    /// This machine's name there.
    pub display_name: String,
    /// This machine's id, the same as among the peers.
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

impl Membership {
    /// True if it is at this server. The certificates decide: an address may change.
    pub fn is_of(&self, server: &CentralServer) -> bool {
        self.ca_pem.trim() == server.ca_pem.trim()
    }
}

/// The session with which the server was brought in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// "host:port".
    pub server: String,
    /// Certificates of the server that it is of, PEM.
    pub ca_pem: String,
    /// The token.
    pub token: String,
    /// Devices that have joined, hexadecimal.
    pub joined: BTreeSet<String>,
}

impl Session {
    /// True if the device is known to have joined.
    pub fn has_joined(&self, device: &DeviceId) -> bool {
        self.joined.contains(&device.to_string())
    }
}

/// The session of the person of this machine, if it has no agent.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    /// User name.
    pub user: String,
    /// Certificates of the server that it is of, PEM.
    pub ca_pem: String,
    /// The token.
    pub token: String,
}

/// All of it, in memory and on disk.
pub struct Memory {
    directory: PathBuf,
    membership: ArcSwapOption<Membership>,
    session: ArcSwapOption<Session>,
    person: ArcSwapOption<Person>,
}

const MEMBERSHIP: &str = "membership.json";
const SESSION: &str = "session.json";
const PERSON: &str = "person.json";

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<Arc<T>>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(|value| Some(Arc::new(value)))
            .map_err(|e| Error::new(Reason::IoFailed, format!("{} cannot be understood", path.display())).caused_by(e)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Memory {
    /// Reads what is there. Blocks.
    ///
    /// # Errors
    /// IO_FAILED.
    pub fn open(directory: &Path) -> Result<Self> {
        let membership = ArcSwapOption::new(read(&directory.join(MEMBERSHIP))?);
        let session = ArcSwapOption::new(read(&directory.join(SESSION))?);
        let person = ArcSwapOption::new(read(&directory.join(PERSON))?);
        Ok(Self { directory: directory.to_owned(), membership, session, person })
    }

    pub fn membership(&self) -> Option<Arc<Membership>> {
        self.membership.load_full()
    }

    pub fn session(&self) -> Option<Arc<Session>> {
        self.session.load_full()
    }

    pub fn person(&self) -> Option<Arc<Person>> {
        self.person.load_full()
    }

    /// Replaces the membership; durable on return. Blocks.
    ///
    /// # Errors
    /// IO_FAILED, DISK_FULL; then nothing has changed.
    pub fn set_membership(&self, membership: Membership) -> Result<()> {
        self.write(MEMBERSHIP, &membership)?;
        self.membership.store(Some(Arc::new(membership)));
        Ok(())
    }

    /// Replaces or forgets the session; durable on return. Blocks.
    ///
    /// # Errors
    /// IO_FAILED, DISK_FULL; then nothing has changed.
    pub fn set_session(&self, session: Option<Session>) -> Result<()> {
        self.write_or_remove(SESSION, session.as_ref())?;
        self.session.store(session.map(Arc::new));
        Ok(())
    }

    /// Replaces or forgets the person's session; durable on return. Blocks.
    ///
    /// # Errors
    /// IO_FAILED, DISK_FULL; then nothing has changed.
    pub fn set_person(&self, person: Option<Person>) -> Result<()> {
        self.write_or_remove(PERSON, person.as_ref())?;
        self.person.store(person.map(Arc::new));
        Ok(())
    }

    fn write_or_remove(&self, name: &str, value: Option<&impl Serialize>) -> Result<()> {
        match value {
            Some(value) => self.write(name, value),
            None => match fs::remove_file(self.directory.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            },
        }
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec_pretty(value).map_err(|e| Error::internal("a membership").caused_by(e))?;
        fs::create_dir_all(&self.directory)?;
        write_secret(&self.directory.join(name), &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_was_written_is_read_again_and_is_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("server");
        let memory = Memory::open(&place).unwrap();
        assert!(memory.membership().is_none() && memory.session().is_none());
        let membership = Membership {
            office: "acme".into(),
            server: "localhost:7443".into(),
            display_name: "pc".into(),
            device_id: "00".into(),
            ca_pem: "ca".into(),
            certificate_pem: "cert".into(),
            certificate_begin_ms: 1,
            certificate_end_ms: 2,
        };
        let session = Session {
            server: "s".into(),
            ca_pem: "ca".into(),
            token: "t".into(),
            joined: BTreeSet::from(["a".into()]),
        };
        memory.set_membership(membership.clone()).unwrap();
        memory.set_session(Some(session.clone())).unwrap();
        let person = Person { user: "anna".into(), ca_pem: "ca".into(), token: "t".into() };
        memory.set_person(Some(person.clone())).unwrap();
        let again = Memory::open(&place).unwrap();
        assert_eq!(*again.membership().unwrap(), membership);
        assert!(*again.session().unwrap() == session);
        assert!(*again.person().unwrap() == person);
        for name in [MEMBERSHIP, SESSION, PERSON] {
            assert_eq!(fs::metadata(place.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        again.set_session(None).unwrap();
        again.set_session(None).unwrap();
        assert!(Memory::open(&place).unwrap().session().is_none());
        again.set_person(None).unwrap();
        assert!(Memory::open(&place).unwrap().person().is_none());
    }
}
