//! All drives of a node, each on a thread of its own.
//!
//! ```text
//!   reader --block?--> cache --miss--> queue --> the drive's thread --> Drive
//!      ^                 |                          | after each read: still the same disc?
//!      +---- bytes ------+<------------ block ------+
//! ```
//!
//! Reads go by blocks of 1 MiB. Readers of the same block wait for one read of it. A block with a sector that cannot be
//! read is remembered as damaged; its sectors are then read as they are asked for. A scratched disc stalls its own drive
//! only.
//!
//! **Invariants.** Bytes are given out under the generation of the disc they came from: the thread asks the drive after
//! each read whether the disc is still the same, and throws the bytes away otherwise. A new generation is durable before
//! any state or byte shows it. Each call ends at its deadline, even while the kernel keeps the thread.
//!
//! **Bounds.** Reads in work per drive ([`Limits::readers`]), bytes of the cache, blocks read ahead, damaged blocks that
//! are remembered. Work whose caller has given up is skipped.

mod cache;
mod title;
mod worker;

use super::drive::{BLOCK_BYTES, Drive, SECTOR_BYTES};
use super::generation::Generations;
use crate::nbd::source::{BlockSource, MAX_READ, check_range};
use bytes::{Bytes, BytesMut};
use cache::{Cache, Found};
use common::error::{Error, Reason, Result};
use futures_util::future::{BoxFuture, try_join_all};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::timeout_at;
use worker::{Fault, Message, TrayOrder, Worker};

/// What is in a drive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Medium {
    /// The drive does not answer, or its generation cannot be kept.
    Away,
    /// Closed, no disc.
    Empty,
    /// The tray is open.
    TrayOpen,
    /// The disc is not ready yet.
    Loading,
    /// A disc can be read.
    Ready {
        /// Its volume's name, checked and shortened; empty if it has none.
        title: String,
        /// Its size.
        size_bytes: u64,
    },
}

/// A drive at a moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// What is in it.
    pub medium: Medium,
    /// Generation of the disc that is or was in it; 0 before the first.
    pub generation: u64,
    /// The tray's button is locked.
    pub locked: bool,
}

/// Decides who may move or lock a tray: the lease's fencing token is checked on the drive's thread, just before the act.
pub trait TrayGuard: Send + Sync + 'static {
    /// Checks a token, or that none is needed.
    ///
    /// # Errors
    /// LEASE_LOST, ACCESS_DENIED, RESOURCE_BUSY: handed to the caller as it is.
    fn check(&self, drive: &str, token: Option<u64>) -> Result<()>;
}

/// Lets everybody: for exports without leases and for tests.
pub struct NoGuard;

impl TrayGuard for NoGuard {
    fn check(&self, _: &str, _: Option<u64>) -> Result<()> {
        Ok(())
    }
}

/// Bounds of each drive.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time of a read, waiting included.
    pub read: Duration,
    /// Reads in work; more wait within their time.
    pub readers: usize,
    /// Bytes that are kept.
    pub cache_bytes: u64,
    /// Blocks that are read ahead of a reader in sequence, while nobody waits for the drive.
    pub ahead: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { read: Duration::from_secs(5), readers: 512, cache_bytes: 64 << 20, ahead: 4 }
    }
}

/// Drives a node has at most: a machine with more has another problem.
const MAX_DRIVES: usize = 64;

/// All drives of a node.
pub struct Drives {
    generations: Arc<dyn Generations>,
    guard: Arc<dyn TrayGuard>,
    limits: Limits,
    drives: Mutex<BTreeMap<String, DriveHandle>>,
    changes: watch::Sender<u64>,
}

impl Drives {
    /// None yet.
    pub fn new(generations: Arc<dyn Generations>, guard: Arc<dyn TrayGuard>, limits: Limits) -> Self {
        Self { generations, guard, limits, drives: Mutex::default(), changes: watch::channel(0).0 }
    }

    /// Adds a drive and starts its thread. Its state is *away* until the thread has looked.
    ///
    /// # Errors
    /// RESOURCE_EXISTS for a name in use, RESOURCE_INVALID past the bound of drives, INTERNAL without a thread.
    pub fn add(&self, name: &str, drive: Box<dyn Drive>) -> Result<DriveHandle> {
        let mut drives = self.drives.lock();
        if drives.contains_key(name) {
            return Err(Error::new(Reason::ResourceExists, format!("there is a drive {name} already")));
        }
        if drives.len() >= MAX_DRIVES {
            return Err(Error::new(Reason::ResourceInvalid, "this machine has too many drives"));
        }
        let handle = self.start(name, drive)?;
        drives.insert(name.to_owned(), handle.clone());
        drop(drives);
        self.changes.send_modify(|n| *n += 1);
        Ok(handle)
    }

    fn start(&self, name: &str, mut drive: Box<dyn Drive>) -> Result<DriveHandle> {
        let (sender, messages) = mpsc::channel();
        let queue = Queue { sender, queued: Arc::default() };
        let waker = Mutex::new(queue.clone());
        drive.wake_by(Arc::new(move || waker.lock().hint(Message::Look)));
        let queued = queue.queued.clone();
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            model: drive.model(),
            state: watch::channel(State { medium: Medium::Away, generation: 0, locked: false }).0,
            cache: Mutex::new(Cache::new(if drive.is_kept_below() { 0 } else { self.limits.cache_bytes })),
            places: Semaphore::new(self.limits.readers),
            limits: self.limits,
            ended: watch::channel(false).0,
        });
        let generations = self.generations.clone();
        let worker = Worker::new(drive, shared.clone(), generations, self.guard.clone(), self.changes.clone());
        let thread = std::thread::Builder::new().name(format!("drive-{name}"));
        thread.spawn(move || worker.run(&messages, &queued))?;
        Ok(DriveHandle { shared, queue })
    }

    /// A drive.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN.
    pub fn get(&self, name: &str) -> Result<DriveHandle> {
        let found = self.drives.lock().get(name).cloned();
        found.ok_or_else(|| Error::new(Reason::ResourceUnknown, format!("there is no drive {name:?} here")))
    }

    /// All drives by name, with their states.
    pub fn list(&self) -> Vec<(String, State)> {
        self.drives.lock().iter().map(|(name, drive)| (name.clone(), drive.state())).collect()
    }

    /// A number that rises with each change of a drive's state, and when one comes or goes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Takes a drive out. Readers get DEVICE_AWAY; the thread ends after what it is at.
    pub fn remove(&self, name: &str) {
        let removed = self.drives.lock().remove(name);
        if let Some(drive) = removed {
            let _ = drive.queue.send(Message::Stop);
            self.changes.send_modify(|n| *n += 1);
        }
    }

    /// Takes all drives out and waits for their threads, at most as long as a read may take.
    pub async fn shutdown(&self) {
        let all: Vec<_> = std::mem::take(&mut *self.drives.lock()).into_values().collect();
        for drive in &all {
            let _ = drive.queue.send(Message::Stop);
        }
        let deadline = tokio::time::Instant::now() + self.limits.read;
        for drive in &all {
            let mut ended = drive.shared.ended.subscribe();
            let _ = timeout_at(deadline, ended.wait_for(|e| *e)).await;
        }
    }
}

/// What a drive's thread and its readers share.
struct Shared {
    name: String,
    model: String,
    state: watch::Sender<State>,
    cache: Mutex<Cache>,
    places: Semaphore,
    limits: Limits,
    ended: watch::Sender<bool>,
}

/// Messages that wait for a thread at most; they are more than the readers only while the kernel keeps the thread.
const MAX_QUEUED: usize = 32 << 10;
/// Hints are dropped while more than this waits.
const MAX_HINTED: usize = 256;

/// The way to a drive's thread.
#[derive(Clone)]
struct Queue {
    sender: mpsc::Sender<Message>,
    queued: Arc<AtomicUsize>,
}

impl Queue {
    fn send(&self, message: Message) -> std::result::Result<(), Fault> {
        if self.queued.fetch_add(1, Ordering::Relaxed) >= MAX_QUEUED {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            return Err(Fault::Crowded);
        }
        self.sender.send(message).map_err(|_| Fault::Ended)
    }

    /// Sends what may as well be lost.
    fn hint(&self, message: Message) {
        if self.queued.load(Ordering::Relaxed) < MAX_HINTED {
            let _ = self.send(message);
        }
    }
}

/// A block of a disc: 1 MiB, or what is left at the end.
#[derive(Debug)]
pub struct Block {
    bytes: Bytes,
    digest: OnceLock<blake3::Hash>,
}

impl Block {
    fn new(bytes: Bytes) -> Self {
        Self { bytes, digest: OnceLock::new() }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The BLAKE3 digest of all its bytes; computed when it is first asked for.
    pub fn digest(&self) -> blake3::Hash {
        *self.digest.get_or_init(|| blake3::hash(&self.bytes))
    }
}

/// A drive of this node. Clones mean the same drive.
#[derive(Clone)]
pub struct DriveHandle {
    shared: Arc<Shared>,
    queue: Queue,
}

impl DriveHandle {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What it is, for people.
    pub fn model(&self) -> &str {
        &self.shared.model
    }

    /// Its state now.
    pub fn state(&self) -> State {
        self.shared.state.borrow().clone()
    }

    /// Its state, to be told of changes. A real change shows within a second.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// Asks the thread to look at the drive now.
    pub fn look(&self) {
        self.queue.hint(Message::Look);
    }

    /// The disc that is in it, as a block source that fails with DISC_CHANGED once it is another one.
    ///
    /// # Errors
    /// NO_MEDIUM, TRAY_OPEN, DEVICE_AWAY.
    pub fn source(&self) -> Result<DriveSource> {
        let state = self.state();
        let size = size_of(&state)?;
        Ok(DriveSource { drive: self.clone(), generation: state.generation, size })
    }

    /// Reads `len` bytes (at most 32 MiB, of any alignment) of the disc of this generation.
    ///
    /// # Errors
    /// DISC_CHANGED, SECTOR_BAD with the details `sector` and `offset`, RANGE_INVALID, DEADLINE_EXCEEDED, DEVICE_AWAY,
    /// DEVICE_FAILED, NO_MEDIUM, TRAY_OPEN.
    pub async fn read(&self, generation: u64, offset: u64, len: u32) -> Result<Bytes> {
        self.check(generation, offset, len)?;
        self.in_time(self.read_now(generation, offset, len)).await
    }

    /// The whole block of this number (offset / 1 MiB) of the disc of this generation, with its digest.
    ///
    /// # Errors
    /// As [`DriveHandle::read`]; a block with a bad sector cannot be had as a whole, its other sectors by reading them.
    pub async fn block(&self, generation: u64, index: u64) -> Result<Arc<Block>> {
        let offset = index.saturating_mul(BLOCK_BYTES.into());
        self.check(generation, offset, 1)?;
        let sector = index.saturating_mul(super::drive::BLOCK_SECTORS);
        self.in_time(async {
            match self.load(generation, index).await {
                Err(Fault::Damaged) => {
                    // Says which sector it is, or has it if it was luck.
                    let len = self.block_len(index)?;
                    self.sectors(generation, sector, len).await.map(|bytes| Arc::new(Block::new(bytes)))
                }
                other => other.map_err(|fault| self.error(generation, fault)),
            }
        })
        .await
    }

    /// Begins to read a range that will be needed, if the drive has time.
    ///
    /// # Errors
    /// As the checks of [`DriveHandle::read`].
    pub fn prefetch(&self, generation: u64, offset: u64, len: u32) -> Result<()> {
        self.check(generation, offset, len)?;
        for index in blocks(offset, len).take(worker::MAX_AHEAD) {
            self.queue.hint(Message::Want(index));
        }
        Ok(())
    }

    /// Opens the tray.
    ///
    /// # Errors
    /// What the guard says, DEVICE_FAILED, DEVICE_AWAY, DEADLINE_EXCEEDED if the drive is busy with a bad spot.
    pub async fn eject(&self, token: Option<u64>) -> Result<()> {
        self.order(TrayOrder::Eject, token).await
    }

    /// Closes the tray.
    ///
    /// # Errors
    /// As [`DriveHandle::eject`].
    pub async fn close_tray(&self, token: Option<u64>) -> Result<()> {
        self.order(TrayOrder::Close, token).await
    }

    /// Locks or unlocks the tray's button.
    ///
    /// # Errors
    /// As [`DriveHandle::eject`].
    pub async fn lock_tray(&self, token: Option<u64>, locked: bool) -> Result<()> {
        self.order(TrayOrder::Lock(locked), token).await
    }

    async fn order(&self, order: TrayOrder, token: Option<u64>) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(Message::Tray { order, token, reply }).map_err(|fault| self.error(0, fault))?;
        // Trays are slow; one that is not through in time is told to be so, and may still move.
        let deadline = tokio::time::Instant::now() + 3 * self.shared.limits.read;
        timeout_at(deadline, answer).await.map_err(|_| late())?.map_err(|_| away())?
    }

    fn check(&self, generation: u64, offset: u64, len: u32) -> Result<()> {
        let state = self.shared.state.borrow();
        if state.generation != generation {
            return Err(changed(state.generation));
        }
        let size = size_of(&state).map_err(|error| match state.medium {
            Medium::Away => error,
            // The disc of that generation has gone; it will have another one when it comes back.
            _ => changed(generation),
        })?;
        if len == 0 || len > MAX_READ {
            return Err(Error::new(Reason::FieldInvalid, "1 byte to 32 MiB are read at once"));
        }
        check_range(offset, len.into(), size)
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let deadline = tokio::time::Instant::now() + self.shared.limits.read;
        let placed = async {
            let _place = self.shared.places.acquire().await.map_err(|_| away())?;
            work.await
        };
        timeout_at(deadline, placed).await.map_err(|_| late())?
    }

    async fn read_now(&self, generation: u64, offset: u64, len: u32) -> Result<Bytes> {
        let pieces = blocks(offset, len).map(|index| self.piece(generation, index, offset, len));
        let mut pieces = try_join_all(pieces).await?;
        if pieces.len() == 1 {
            return Ok(pieces.swap_remove(0));
        }
        let mut whole = BytesMut::with_capacity(len as usize);
        pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
        Ok(whole.freeze())
    }

    /// What a block has of a range.
    async fn piece(&self, generation: u64, index: u64, offset: u64, len: u32) -> Result<Bytes> {
        let start = index * u64::from(BLOCK_BYTES);
        let from = offset.max(start);
        let to = (offset + u64::from(len)).min(start + u64::from(BLOCK_BYTES));
        match self.load(generation, index).await {
            Ok(block) => Ok(block.bytes.slice((from - start) as usize..(to - start) as usize)),
            Err(Fault::Damaged) => {
                let sector_bytes = u64::from(SECTOR_BYTES);
                let first = from / sector_bytes;
                let count = to.div_ceil(sector_bytes) - first;
                let bytes = self.sectors(generation, first, (count * sector_bytes) as u32).await?;
                let skipped = (from - first * sector_bytes) as usize;
                Ok(bytes.slice(skipped..skipped + (to - from) as usize))
            }
            Err(fault) => Err(self.error(generation, fault)),
        }
    }

    async fn load(&self, generation: u64, index: u64) -> std::result::Result<Arc<Block>, Fault> {
        let answer = {
            let mut cache = self.shared.cache.lock();
            match cache.find(generation, index) {
                Found::Block { block, was_ahead } => {
                    if was_ahead {
                        self.queue.hint(Message::Ahead(index));
                    }
                    return Ok(block);
                }
                Found::Changed => return Err(Fault::Gone),
                Found::Damaged => return Err(Fault::Damaged),
                Found::Wait { answer, first } => {
                    if first {
                        self.queue.send(Message::Load(index))?;
                    }
                    answer
                }
            }
        };
        answer.await.unwrap_or(Err(Fault::Ended))
    }

    async fn sectors(&self, generation: u64, sector: u64, len: u32) -> Result<Bytes> {
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + self.shared.limits.read;
        let message = Message::Sectors { generation, sector, len, deadline, reply };
        self.queue.send(message).map_err(|fault| self.error(generation, fault))?;
        let result = answer.await.unwrap_or(Err(Fault::Ended));
        result.map_err(|fault| self.error(generation, fault))
    }

    fn block_len(&self, index: u64) -> Result<u32> {
        let size = size_of(&self.shared.state.borrow())?;
        let left = size.saturating_sub(index.saturating_mul(BLOCK_BYTES.into()));
        Ok(left.min(BLOCK_BYTES.into()) as u32)
    }

    fn error(&self, generation: u64, fault: Fault) -> Error {
        match fault {
            Fault::Sector(sector) => {
                let error = Error::new(Reason::SectorBad, format!("sector {sector} cannot be read"));
                error.with("sector", sector).with("offset", sector * u64::from(SECTOR_BYTES))
            }
            Fault::Gone => {
                let now = self.shared.state.borrow().generation;
                changed(now.max(generation))
            }
            Fault::Late => late(),
            Fault::Crowded => Error::new(Reason::Overloaded, "too much waits for this drive"),
            Fault::Failed(text) => Error::new(Reason::DeviceFailed, format!("the drive says: {text}")),
            Fault::Damaged | Fault::Ended => away(),
        }
    }
}

/// Numbers of the blocks that a range touches.
fn blocks(offset: u64, len: u32) -> std::ops::RangeInclusive<u64> {
    let last = (offset + u64::from(len)).saturating_sub(1).max(offset);
    offset / u64::from(BLOCK_BYTES)..=last / u64::from(BLOCK_BYTES)
}

fn size_of(state: &State) -> Result<u64> {
    match &state.medium {
        Medium::Ready { size_bytes, .. } => Ok(*size_bytes),
        Medium::TrayOpen => Err(Error::new(Reason::TrayOpen, "the tray is open")),
        Medium::Loading => Err(Error::new(Reason::NoMedium, "the disc is not ready yet").why_is("it is being loaded")),
        Medium::Empty => Err(Error::new(Reason::NoMedium, "there is no disc in the drive")),
        Medium::Away => Err(away()),
    }
}

fn changed(now: u64) -> Error {
    Error::new(Reason::DiscChanged, "the disc is not the one that was opened").with("generation", now)
}
fn away() -> Error {
    Error::new(Reason::DeviceAway, "the drive does not answer")
}
fn late() -> Error {
    Error::new(Reason::DeadlineExceeded, "the drive did not answer in time")
        .why_is("the disc is scratched or the drive is busy")
}

/// A disc in a drive of this node as a block source.
#[derive(Clone)]
pub struct DriveSource {
    drive: DriveHandle,
    generation: u64,
    size: u64,
}

impl BlockSource for DriveSource {
    fn size_bytes(&self) -> u64 {
        self.size
    }
    fn generation(&self) -> u64 {
        self.generation
    }
    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(self.drive.read(self.generation, offset, len))
    }
    fn prefetch(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<()>> {
        let begun = self.drive.prefetch(self.generation, offset, len.max(1));
        Box::pin(async move { begun })
    }
}
