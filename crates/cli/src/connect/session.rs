//! Sessions of people who sign in without an agent: one file per server below `$XDG_STATE_HOME/atrium/sessions`, which
//! only its owner can read. `current` names the one signed in to last.

use super::Target;
use crate::dirs;
use common::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Largest session file that is read.
const MAX: u64 = 256 * 1024;
const CURRENT: &str = "current";

/// A session.
#[derive(Serialize, Deserialize)]
pub struct Saved {
    schema: u32,
    /// "host:port".
    pub server: String,
    /// The office's certificate.
    pub ca_pem: String,
    /// Who.
    pub user: String,
    /// Session token.
    pub token: String,
}

impl std::fmt::Debug for Saved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Saved({} at {})", self.user, self.server)
    }
}

impl Saved {
    /// As a target to call.
    pub fn into_target(self) -> Target {
        Target::Remote { server: self.server, ca_pem: self.ca_pem, token: Some(self.token), user: Some(self.user) }
    }
}

fn directory() -> Result<PathBuf> {
    Ok(dirs::state()?.join("sessions"))
}

fn file_name(server: &str) -> String {
    let safe: String =
        server.chars().map(|c| if c.is_ascii_alphanumeric() || ".-".contains(c) { c } else { '_' }).collect();
    format!("{safe}.json")
}

/// The session at this server, if there is one.
///
/// # Errors
/// If the file is there but cannot be read.
pub fn of(server: &str) -> Result<Option<Saved>> {
    match directory() {
        Ok(directory) => Ok(read(&directory.join(file_name(server)))?.filter(|s| s.server == server)),
        // Without a home there is no session.
        Err(_) => Ok(None),
    }
}

/// The session signed in to last.
///
/// # Errors
/// As [`of`].
pub fn current() -> Result<Option<Saved>> {
    let Ok(directory) = directory() else { return Ok(None) };
    match std::fs::read_to_string(directory.join(CURRENT)) {
        Ok(server) => of(server.trim()),
        Err(_) => Ok(None),
    }
}

fn read(path: &Path) -> Result<Option<Saved>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let saved = serde_json::from_reader(std::io::Read::take(file, MAX)).ok();
    Ok(saved.filter(|s: &Saved| s.schema == 1))
}

/// Keeps a session for this server and makes it the current one.
///
/// # Errors
/// If it cannot be written.
pub fn save(target: &Target, user: &str, token: &str) -> Result<()> {
    let Target::Remote { server, ca_pem, .. } = target else {
        return Err(crate::output::usage(
            "the server's own socket knows no sessions",
            "use it without signing in, or name the server by HOST:PORT",
        ));
    };
    let directory = directory()?;
    dirs::make_private(&directory)?;
    let saved = Saved {
        schema: 1,
        server: server.clone(),
        ca_pem: ca_pem.clone(),
        user: user.to_owned(),
        token: token.to_owned(),
    };
    let text = serde_json::to_vec(&saved).map_err(|e| Error::internal("JSON").caused_by(e))?;
    write(&directory, &file_name(server), &text)?;
    write(&directory, CURRENT, server.as_bytes())
}

/// Temporary files of this kind are made with rights for the owner only.
fn write(directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(directory.join(name)).map_err(|e| Error::from(e.error))?;
    Ok(())
}

/// Forgets the session at this server.
///
/// # Errors
/// If the file cannot be removed.
pub fn remove(target: &Target) -> Result<()> {
    let (Target::Remote { server, .. }, Ok(directory)) = (target, directory()) else { return Ok(()) };
    let mut names = vec![file_name(server)];
    if std::fs::read_to_string(directory.join(CURRENT)).is_ok_and(|s| s.trim() == server) {
        names.push(CURRENT.to_owned());
    }
    for name in names {
        match std::fs::remove_file(directory.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
