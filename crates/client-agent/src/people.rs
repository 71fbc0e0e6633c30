//! The sessions of this machine's Unix users with the central server.
//!
//! Kept in one file of mode 0600 in the state directory, replaced atomically, so that queued uploads go on after a
//! reboot. A token leaves this module only to the user whose it is, and to the server.

use common::error::{Error, Reason, Result};
use common::identity::write_secret;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// A Unix user's session.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Atrium user name.
    pub user: String,
    /// Session token.
    pub token: String,
    /// Milliseconds since 1970.
    pub expire_ms: u64,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({}, until {})", self.user, self.expire_ms)
    }
}

/// All sessions, by Unix uid.
pub struct People {
    file: PathBuf,
    sessions: Mutex<BTreeMap<u32, Session>>,
}

impl People {
    /// Reads the sessions.
    ///
    /// # Errors
    /// The file is there but cannot be read.
    pub fn open(file: &Path) -> Result<Self> {
        let sessions = match fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::new(Reason::IoFailed, "the agent's sessions cannot be read").caused_by(e))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { file: file.to_owned(), sessions: Mutex::new(sessions) })
    }

    /// A user's session.
    pub fn get(&self, uid: u32) -> Option<Session> {
        self.sessions.lock().get(&uid).cloned()
    }

    /// Keeps a session; durable on return.
    ///
    /// # Errors
    /// I/O; then nothing has changed.
    pub fn set(&self, uid: u32, session: Session) -> Result<()> {
        self.change(|all| {
            all.insert(uid, session);
        })
    }

    /// Forgets a session; returns it.
    ///
    /// # Errors
    /// I/O; then nothing has changed.
    pub fn remove(&self, uid: u32) -> Result<Option<Session>> {
        let old = self.get(uid);
        self.change(|all| {
            all.remove(&uid);
        })?;
        Ok(old)
    }

    fn change(&self, apply: impl FnOnce(&mut BTreeMap<u32, Session>)) -> Result<()> {
        let mut sessions = self.sessions.lock();
        let mut next = sessions.clone();
        apply(&mut next);
        let text = serde_json::to_vec(&next).map_err(|e| Error::internal("the agent's sessions").caused_by(e))?;
        write_secret(&self.file, &text)?;
        *sessions = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn sessions_survive_and_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sessions.json");
        let session = Session { user: "anna".into(), token: "atr_secret".into(), expire_ms: 5 };
        let people = People::open(&file).unwrap();
        people.set(1000, session.clone()).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let people = People::open(&file).unwrap();
        assert_eq!(people.get(1000), Some(session.clone()));
        assert_eq!(people.get(1001), None);
        assert_eq!(people.remove(1000).unwrap(), Some(session.clone()));
        assert_eq!(People::open(&file).unwrap().get(1000), None);
        assert!(!format!("{session:?}").contains("secret"));
    }
}
