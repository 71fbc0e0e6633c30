//! A running node: all modules put together.
//!
//! # On disk
//!
//! ```text
//! STATE/lock         held while the node runs: one node for one state directory
//! STATE/device.key   the Ed25519 key of this device, mode 0600
//! STATE/store/       the records of all modules (common::store, sled)
//! STATE/transfers/   what is being fetched, and how far it is
//! STATE/mailbox/     parcels that were sent, came in, or are kept for others
//! STATE/server/      this machine's place at the office's central server, if it has one
//! SOCKET             the local socket, mode 0600
//! ```
//!
//! # Start and end
//!
//! Everything that can fail is opened before the first socket listens, so whoever connects finds a node that works. On
//! SIGTERM the node says goodbye to the others, ends its listeners, lets running calls and transfers go on for
//! `node.drain`, and closes the store. A kill at any instant loses nothing that was acknowledged: each module says in
//! its header what it finds at the next start.

mod fetchers;
mod modules;
mod notify;
mod services;
mod upkeep;

use crate::local::{Local, LocalServing, Parts};
use crate::net::Serving;
use crate::office;
use crate::settings::Settings;
use common::clock::SystemClock;
use common::error::{Error, Reason, Result};
use common::identity::DeviceKey;
use common::shutdown::Shutdown;
use common::store::{EngineKind, Store, StoreSettings};
use common::tls::{AcceptLimits, UnixAcceptor};
use modules::{Ground, blocking};
use std::fs::{self, File, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Only the user of the node (and root) may connect; who it is is looked at again on each call.
const SOCKET_MODE: u32 = 0o600;

/// A running node.
pub struct Running {
    /// The local socket.
    pub socket: PathBuf,
    /// Where other nodes connect to.
    pub addresses: Vec<SocketAddr>,
    local: LocalServing,
    serving: Serving,
    parts: Arc<Parts>,
    shutdown: Shutdown,
    _lock: File,
}

/// Starts a node in the current runtime.
///
/// # Errors
/// STORE_BUSY if another node uses the state directory or an address; IO_FAILED if the directory or the socket cannot be
/// used; KEY_FILE_EXPOSED and KEY_FILE_INVALID; what opening the store ends with.
pub async fn start(settings: Settings, shutdown: Shutdown) -> Result<Running> {
    let settings = Arc::new(settings);
    let directory = settings.node.state_directory.clone();
    make_private(&directory)?;
    let lock = lock(&directory)?;
    let socket = settings.node.socket.clone();
    if let Some(parent) = socket.parent() {
        fs::create_dir_all(parent)?;
    }
    // Whoever connects from now on waits until the node answers.
    let acceptor = UnixAcceptor::bind(&socket, SOCKET_MODE, AcceptLimits::default())?;
    let key = Arc::new(DeviceKey::load_or_generate(&directory.join("device.key"))?);
    let store = open_store(directory.join("store")).await?;
    let ground = Ground { settings, key, clock: Arc::new(SystemClock), store, shutdown: shutdown.clone() };
    let (parts, serving) = modules::open(ground).await?;
    let parts = Arc::new(parts);
    upkeep::start(&parts, &shutdown);
    let local = Local::serve(parts.clone(), acceptor, &shutdown).await?;
    Ok(Running { socket, addresses: serving.addresses().to_vec(), local, serving, parts, shutdown, _lock: lock })
}

impl Running {
    /// Waits until it has ended: by the shutdown, or because its socket failed.
    ///
    /// # Errors
    /// IO_FAILED if the socket failed.
    pub async fn wait(mut self) -> Result<()> {
        let early = tokio::select! {
            served = &mut self.local => Some(served),
            () = self.shutdown.begun() => None,
        };
        self.shutdown.begin();
        let goodbye = office::say_goodbye(&self.parts.network, self.parts.presence.instance());
        tokio::join!(goodbye, self.parts.presence.leave());
        let patience = self.parts.settings.node.drain.get();
        let local = async {
            match early {
                Some(served) => Ok(served),
                // A program that does not take its answers does not keep the node.
                None => tokio::time::timeout(patience, &mut self.local).await,
            }
        };
        let (served, _, ()) = tokio::join!(local, self.shutdown.drained(), self.serving.stop(patience));
        self.parts.devices.close().await;
        self.parts.transfers.close().await;
        self.parts.network.close().await;
        self.parts.store.clone().close().await;
        match served {
            Ok(Ok(served)) => served.map_err(|e| Error::new(Reason::IoFailed, "the local socket failed").caused_by(e)),
            Ok(Err(error)) => Err(Error::internal("the local socket").caused_by(error)),
            Err(_) => {
                self.local.abort();
                Ok(())
            }
        }
    }

    /// Tells systemd that the node is ready, how it is, and that it is alive. Does nothing without systemd.
    pub fn notify_systemd(&self) {
        notify::start(self.parts.clone(), &self.shutdown);
    }
}

/// Makes the state directory, and missing parents, for its owner only.
fn make_private(directory: &Path) -> Result<()> {
    let failed = |e: std::io::Error| {
        Error::new(Reason::IoFailed, "the state directory cannot be made")
            .why_is(e.to_string())
            .fix_is("check node.state_directory and the rights of its parent")
            .caused_by(e)
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(failed)
}

fn lock(directory: &Path) -> Result<File> {
    let lock = File::options().create(true).truncate(false).write(true).open(directory.join("lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        Error::new(Reason::StoreBusy, "another peer uses this state directory")
            .fix_is("stop the other peer, or give this one a directory of its own with --state-dir")
    })?;
    Ok(lock)
}

async fn open_store(directory: PathBuf) -> Result<Store> {
    blocking(move || Store::open(&StoreSettings { directory, engine: EngineKind::Sled, ..StoreSettings::default() }))
        .await
}
