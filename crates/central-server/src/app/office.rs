//! The office itself: its data directory, its keys and its record.
//!
//! ```text
//! DATA/LOCK          held while a server runs; two on one directory would destroy each other's work
//! DATA/keys/ca.*     the office's certificate authority: whoever has it can make machines members
//! DATA/ca.pem         copy of its certificate, for clients
//! DATA/keys/server.* the server's key and certificate
//! DATA/store/        metadata (see common::store)
//! DATA/chunks/       content (see common::chunk)
//! DATA/print/        documents of print jobs (see super::print)
//! DATA/admin.sock    administration on this machine
//! ```
//!
//! A first start makes the keys, then the store, then the office's record. Each step is whole or not there, and a start
//! that was cut off goes on where it stopped. The keys come first, so a store without keys means that they were lost;
//! that is refused, since new keys would silently turn all members into strangers.

use crate::settings::Settings;
use common::clock::SharedClock;
use common::error::{Error, Reason, Result};
use common::identity::write_public;
use common::store::Store;
use common::tls::{OfficeCa, ServerIdentity, ServerTls, local_names};
use prost::Message;
use proto::record::v1 as record;
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

const KEY: &[u8] = b"o/";

/// Where the parts of a data directory are.
#[derive(Clone, Debug)]
pub struct Layout(PathBuf);

impl Layout {
    /// Of this directory.
    pub fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }
    /// The directory itself.
    pub fn directory(&self) -> &Path {
        &self.0
    }
    /// Keys and certificates.
    pub fn keys(&self) -> PathBuf {
        self.0.join("keys")
    }
    /// Metadata.
    pub fn store(&self) -> PathBuf {
        self.0.join("store")
    }
    /// Content.
    pub fn chunks(&self) -> PathBuf {
        self.0.join("chunks")
    }
    fn lock(&self) -> PathBuf {
        self.0.join("LOCK")
    }
}

/// The data directory, for this process alone as long as this lives.
#[derive(Debug)]
pub struct DataDirectory {
    layout: Layout,
    _lock: File,
}

impl DataDirectory {
    /// Makes the directory if it is missing and takes it.
    ///
    /// # Errors
    /// `STORE_BUSY` if another process has it, `IO_FAILED`.
    pub fn take(directory: &Path) -> Result<Self> {
        let layout = Layout::new(directory);
        make_private(directory)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(layout.lock())
            .map_err(|e| failed("the data directory cannot be written", e))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
            rustix::io::Errno::WOULDBLOCK => {
                Error::new(Reason::StoreBusy, format!("{} is in use by another process", directory.display()))
            }
            other => failed("the data directory cannot be locked", other.into()),
        })?;
        Ok(Self { layout, _lock: lock })
    }

    /// Where its parts are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}

/// Makes a directory that only this user can enter; one that is there already stays as it is.
///
/// # Errors
/// `IO_FAILED`, `DISK_FULL`.
pub fn make_private(directory: &Path) -> Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|e| failed("a directory cannot be made", e))?;
    // The name of a new directory is on disk only when its parent is.
    if let Some(parent) = directory.parent() {
        File::open(parent).and_then(|d| d.sync_all()).map_err(|e| failed("a directory cannot be synced", e))?;
    }
    Ok(())
}

fn failed(what: &str, error: std::io::Error) -> Error {
    let error = Error::from(error);
    let reason = if error.is(Reason::DiskFull) { Reason::DiskFull } else { Reason::IoFailed };
    Error::new(reason, what).caused_by(error)
}

/// The office's keys, loaded or made.
#[derive(Debug)]
pub struct Keys {
    /// The certificate authority.
    pub ca: Arc<OfficeCa>,
    /// The TLS end with the server's certificate.
    pub tls: ServerTls,
    /// What renews that certificate.
    pub identity: ServerIdentity,
}

impl Keys {
    /// Loads the keys, or makes them in a directory without data.
    ///
    /// # Errors
    /// `CERTIFICATE_INVALID` if there is data but no CA; `KEY_FILE_EXPOSED`, `KEY_FILE_INVALID`, `IO_FAILED`.
    pub fn open(directory: &DataDirectory, settings: &Settings, clock: &SharedClock) -> Result<Self> {
        let layout = directory.layout();
        let keys = layout.keys();
        if !keys.join("ca.pem").exists() && layout.store().exists() {
            return Err(Error::new(Reason::CertificateInvalid, "the office's keys are missing, but its data is there")
                .why_is("without them every machine of the office would have to join again")
                .fix_is(format!("put {} back from a backup", keys.display())));
        }
        make_private(&keys)?;
        let now_ms = clock.now_ms();
        let ca = Arc::new(OfficeCa::load_or_create(&keys, &settings.office.name, now_ms)?);
        // The one file that clients in any language need, where people find it.
        let public = layout.directory().join("ca.pem");
        if std::fs::read(&public).ok().as_deref() != Some(ca.ca_pem().as_bytes()) {
            write_public(&public, ca.ca_pem().as_bytes())?;
        }
        let identity = ServerIdentity::new(&keys, ca.clone(), names(settings));
        let certificate = identity.certificate(now_ms)?;
        let tls = ServerTls::new(&certificate, ca.ca_pem(), clock.clone())?;
        Ok(Self { ca, tls, identity })
    }
}

/// Names and addresses under which the server is reached.
fn names(settings: &Settings) -> Vec<String> {
    let mut names = local_names();
    let listen: IpAddr = settings.grpc.listen.ip();
    if !listen.is_unspecified() {
        names.push(listen.to_string());
    }
    names.extend(settings.server.names.iter().cloned());
    names.sort();
    names.dedup();
    names
}

/// The office as the application knows it.
#[derive(Debug)]
pub struct Office {
    /// Its name.
    pub name: String,
    /// Its id.
    pub uid: Uuid,
    /// When it was founded, milliseconds since 1970.
    pub create_ms: u64,
    /// Signs the certificates of its machines.
    pub ca: Arc<OfficeCa>,
    /// The TLS end that machines see.
    pub tls: ServerTls,
}

impl Office {
    /// Reads the office's record, or writes it at the first start. The name is the one in the CA's certificate.
    ///
    /// # Errors
    /// Those of the store.
    pub fn open(store: &Store, ca: Arc<OfficeCa>, tls: ServerTls, now_ms: u64) -> Result<Self> {
        let name = ca.office().to_owned();
        let fresh = record::Office { name, uid: Uuid::new_v4().into_bytes().to_vec().into(), create_ms: now_ms };
        let found = store
            .transact_blocking(move |txn| match txn.get(KEY)? {
                Some(bytes) => record::Office::decode(bytes).map_err(|e| damaged().caused_by(e)),
                None => {
                    txn.put(KEY, fresh.encode_to_vec())?;
                    Ok(fresh.clone())
                }
            })?
            .value;
        let uid = Uuid::from_slice(&found.uid).map_err(|e| damaged().caused_by(e))?;
        Ok(Self { name: found.name, uid, create_ms: found.create_ms, ca, tls })
    }

    /// An office with new keys that are kept nowhere, for tests of the application and for checks.
    ///
    /// # Errors
    /// `INTERNAL` if no keys can be made.
    pub fn ephemeral(clock: &SharedClock) -> Result<Self> {
        let create_ms = clock.now_ms();
        let ca = Arc::new(OfficeCa::create("office", create_ms)?);
        let certificate = ca.issue_server(&[], &common::tls::ServerKey::generate()?, create_ms)?;
        let tls = ServerTls::new(&certificate, ca.ca_pem(), clock.clone())?;
        Ok(Self { name: "office".to_owned(), uid: Uuid::new_v4(), create_ms, ca, tls })
    }
}

fn damaged() -> Error {
    Error::new(Reason::StoreCorrupt, "the office's record cannot be read")
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::clock::SystemClock;
    use std::os::unix::fs::PermissionsExt;

    fn clock() -> SharedClock {
        Arc::new(SystemClock)
    }

    #[test]
    fn a_first_start_makes_everything_and_a_second_one_finds_it() {
        let dir = tempfile::tempdir().expect("temp dir");
        let data = dir.path().join("data");
        let mut settings = Settings::in_directory(&data);
        settings.office.name = "Acme".into();
        settings.server.names = vec!["files.acme.example".into()];
        let store = Store::memory();
        let first = {
            let directory = DataDirectory::take(&data).expect("takes");
            let keys = Keys::open(&directory, &settings, &clock()).expect("makes keys");
            Office::open(&store, keys.ca, keys.tls, 7).expect("makes the office")
        };
        settings.office.name = "Other".into();
        let directory = DataDirectory::take(&data).expect("takes again");
        let keys = Keys::open(&directory, &settings, &clock()).expect("loads keys");
        assert_eq!(keys.ca.ca_pem(), first.ca.ca_pem());
        assert_eq!(keys.tls.spki_sha256().expect("key"), first.tls.spki_sha256().expect("key"));
        let second = Office::open(&store, keys.ca, keys.tls, 8).expect("finds the office");
        assert_eq!((second.uid, second.name.as_str(), second.create_ms), (first.uid, "Acme", 7));
        for (file, mode) in [("", 0o700), ("keys", 0o700), ("keys/ca.key", 0o600), ("keys/server.key", 0o600)] {
            let found = std::fs::metadata(data.join(file)).expect("exists").permissions().mode() & 0o777;
            assert_eq!(found, mode, "{file}");
        }
    }

    #[test]
    fn a_directory_has_one_server() {
        let dir = tempfile::tempdir().expect("temp dir");
        let _first = DataDirectory::take(dir.path()).expect("takes");
        assert!(DataDirectory::take(dir.path()).expect_err("busy").is(Reason::StoreBusy));
    }

    #[test]
    fn data_without_keys_is_refused() {
        let dir = tempfile::tempdir().expect("temp dir");
        let settings = Settings::in_directory(dir.path());
        let directory = DataDirectory::take(dir.path()).expect("takes");
        std::fs::create_dir(directory.layout().store()).expect("mkdir");
        let error = Keys::open(&directory, &settings, &clock()).expect_err("refused");
        assert!(error.is(Reason::CertificateInvalid) && error.message().contains("missing"), "{error}");
    }
}
