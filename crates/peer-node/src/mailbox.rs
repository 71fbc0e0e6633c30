//! Store and re-send: parcels, outbox, inbox, keepers, receipts (ADR 0010).
//!
//! A parcel is a signed list of files. What is sent is copied into the outbox and is on disk before `send` answers, so
//! that a file that changes later, or a machine that is switched off, changes nothing. Receivers fetch it like anything
//! else, from whoever has it: the sender, other receivers, keepers.
//!
//! ```text
//! DIRECTORY/out/<parcel>/parcel    the SignedParcel          DIRECTORY/in/<parcel>/parcel   as it was offered
//! DIRECTORY/out/<parcel>/content   its chunks, each once     DIRECTORY/in/<parcel>/state    what became of it
//! DIRECTORY/out/<parcel>/sealed    the same, encrypted       DIRECTORY/in/<parcel>/files/   arriving
//! DIRECTORY/out/<parcel>/state     receivers, receipts       DIRECTORY/in/<parcel>/sealed/  arriving from a keeper
//! DIRECTORY/keep/<parcel>/{parcel,sealed,state}              kept for others, encrypted
//! ```
//!
//! Order of writing, and what a crash leaves: `content` and `parcel` are synced before `state` appears; a directory
//! without `state` was never acknowledged and is removed at the next start. `state` is replaced as a whole. Files are
//! renamed into the inbox without replacing anything; if the crash falls between the rename and the `state` that says so,
//! the names under `files/` that are left are moved at the next start. The receipt is written after that.
//!
//! **A send never deletes or replaces anything at a receiver**: names that are taken get a number.
//!
//! Bounds: a parcel's description 16 MiB, 1,000 receivers, 10,000 parcels in each of the three places (then sends are
//! refused, offers answered "later"), 50 GiB in the outbox and 5 GiB kept for others unless told otherwise, 4 parcels
//! fetched at a time, 30 days.

mod courier;
mod members;
mod parcel;
mod place;
mod plan;
mod rules;
mod seal;
mod service;
mod shelf;
mod spool;

pub use courier::{Fetcher, Members};
pub use parcel::{MAX_PARCEL_BYTES, MAX_RECEIVERS, Parcel, ParcelFile, fuzz_parcel};
pub use plan::{Delivery, DeliveryState};
pub use rules::Rules;
pub use seal::SealingKey;
pub use service::{Desk, MailboxServer};
pub use shelf::{Arrived, ArrivedState, Sent};

use crate::model::{ParcelId, Scope};
use crate::source::{ChunkSource, Holdings, Place};
use crate::transfer::Peers;
use common::clock::SharedClock;
use common::error::{Error, Reason, Result};
use common::identity::DeviceKey;
use common::model::{ChunkId, DeviceId};
use common::shutdown::Shutdown;
use courier::Courier;
use shelf::Shelf;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Where things are and how much there may be.
#[derive(Clone, Debug)]
pub struct MailboxSettings {
    /// Everything that the mailbox keeps.
    pub directory: PathBuf,
    /// Where parcels that came in are put.
    pub inbox: PathBuf,
    /// How long a parcel waits for its receivers.
    pub keep: Duration,
    /// Most bytes in the outbox.
    pub outbox_bytes: u64,
    /// Whether parcels of others are kept, sealed.
    pub keeper: bool,
    /// Most bytes of those.
    pub keeper_bytes: u64,
    /// Rules that hold until the person changes them.
    pub rules: Rules,
}

/// How far preparing a parcel is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Bytes that were read, hashed and copied.
    pub bytes: u64,
    /// In all; 0 while that is not known.
    pub total_bytes: u64,
}

/// The mailbox of this node. Clones share it.
#[derive(Clone)]
pub struct Mailbox {
    shelf: Arc<Shelf>,
    courier: Arc<Courier>,
}

impl Mailbox {
    /// Opens the mailbox and begins to deliver. Blocking: reads the directory.
    ///
    /// # Errors
    /// IO_FAILED if the directory cannot be used.
    pub fn open(
        settings: MailboxSettings,
        key: Arc<DeviceKey>,
        members: Arc<dyn Members>,
        peers: Arc<dyn Peers>,
        fetcher: Arc<dyn Fetcher>,
        clock: SharedClock,
        shutdown: &Shutdown,
    ) -> Result<Self> {
        let shelf = Arc::new(Shelf::open(settings, clock)?);
        let courier = Arc::new(Courier::new(shelf.clone(), key, members, peers, fetcher));
        shutdown.spawn_until(courier.clone().run());
        Ok(Self { shelf, courier })
    }

    /// Sends files and folders to devices. Answers when the parcel is safe on disk; what becomes of it is in
    /// [`Mailbox::watch_sent`]. Devices that are this one are left out.
    ///
    /// # Errors
    /// FIELD_INVALID without receivers or paths; OUTBOX_FULL; PARCEL_TOO_LARGE if its description exceeds 16 MiB;
    /// IO_FAILED, naming the file, if one cannot be read.
    pub async fn send(
        &self,
        paths: Vec<PathBuf>,
        to: Vec<DeviceId>,
        note: String,
        progress: watch::Sender<Prepared>,
    ) -> Result<ParcelId> {
        let id = self.courier.send(spool::Contents::Paths(paths), to, note, progress).await?;
        self.courier.wake();
        Ok(id)
    }

    /// Sends what comes through a channel as one file of this name. The stream ends well only with an empty piece, so
    /// that a sender that breaks off is not taken for one that has finished.
    ///
    /// # Errors
    /// As [`Mailbox::send`]; CANCELLED if the stream broke off.
    pub async fn send_stream(
        &self,
        name: String,
        pieces: tokio::sync::mpsc::Receiver<bytes::Bytes>,
        to: Vec<DeviceId>,
        note: String,
        progress: watch::Sender<Prepared>,
    ) -> Result<ParcelId> {
        let id = self.courier.send(spool::Contents::Stream { name, pieces }, to, note, progress).await?;
        self.courier.wake();
        Ok(id)
    }

    /// Parcels that were sent, newest first.
    pub fn sent(&self) -> Vec<Sent> {
        self.shelf.sent()
    }

    /// A parcel that was sent, and its changes.
    ///
    /// # Errors
    /// PARCEL_UNKNOWN.
    pub fn watch_sent(&self, id: ParcelId) -> Result<watch::Receiver<Sent>> {
        self.shelf.watch_sent(&id).ok_or_else(unknown)
    }

    /// Takes a parcel back from the receivers that do not have it. Those that have it keep it.
    ///
    /// # Errors
    /// PARCEL_UNKNOWN; IO_FAILED.
    pub async fn cancel(&self, id: ParcelId) -> Result<Sent> {
        let shelf = self.shelf.clone();
        blocking(move || shelf.cancel(&id)).await
    }

    /// Parcels that came in, newest first.
    pub fn arrived(&self) -> Vec<Arrived> {
        self.shelf.arrived()
    }

    /// Accepts or refuses a parcel that asks; with `directory` it is put there instead of the inbox.
    ///
    /// # Errors
    /// PARCEL_UNKNOWN; PARCEL_ANSWERED if it does not ask any more; IO_FAILED.
    pub async fn answer(&self, id: ParcelId, accept: bool, directory: Option<PathBuf>) -> Result<Arrived> {
        let shelf = self.shelf.clone();
        let answered = blocking(move || shelf.answer(&id, accept, directory)).await?;
        self.courier.wake();
        Ok(answered)
    }

    /// Who may send without asking.
    pub fn rules(&self) -> Rules {
        self.shelf.rules()
    }

    /// Changes that.
    ///
    /// # Errors
    /// FIELD_INVALID for a directory that is not absolute; IO_FAILED.
    pub async fn set_rules(&self, rules: Rules) -> Result<Rules> {
        let shelf = self.shelf.clone();
        blocking(move || shelf.set_rules(rules)).await
    }

    /// The gRPC service for other nodes.
    pub fn service(&self) -> MailboxServer {
        service::serve(self.courier.clone())
    }

    /// The one parcel whose id begins so.
    ///
    /// # Errors
    /// PARCEL_UNKNOWN if there is none or more than one.
    pub fn find(&self, beginning: &str) -> Result<ParcelId> {
        let ids = self.sent().into_iter().map(|s| s.id).chain(self.arrived().into_iter().map(|a| a.id));
        let mut found: Vec<ParcelId> = ids.filter(|id| id.to_string().starts_with(beginning)).collect();
        found.sort();
        found.dedup();
        match found[..] {
            [id] if !beginning.is_empty() => Ok(id),
            _ => Err(unknown()),
        }
    }
}

impl ChunkSource for Mailbox {
    fn may_have(&self, scope: &Scope, asker: &DeviceId) -> Result<bool> {
        let Scope::Parcel(id) = scope else { return Ok(false) };
        match self.shelf.may_have(id, asker) {
            None => Ok(false),
            Some(true) => Ok(true),
            // Not told apart from a parcel that does not exist.
            Some(false) => Err(unknown()),
        }
    }

    fn locate(&self, scope: &Scope, chunk: &ChunkId) -> Result<Option<Place>> {
        let Scope::Parcel(id) = scope else { return Ok(None) };
        self.shelf.locate(id, chunk)
    }

    fn holdings(&self, scope: &Scope, _manifests: &[[u8; 32]]) -> Result<Holdings> {
        let Scope::Parcel(id) = scope else { return Ok(Holdings::default()) };
        self.shelf.holdings(id)
    }

    fn moved(&self, scope: &Scope, chunk: &ChunkId, _place: &Place) {
        if let Scope::Parcel(id) = scope {
            self.shelf.moved(id, chunk);
        }
    }
}

fn unknown() -> Error {
    Error::new(Reason::ParcelUnknown, "there is no such parcel")
}

/// Runs disk work on a blocking thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("a disk task").caused_by(e))?
}
