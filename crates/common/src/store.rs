//! The ordered key-value store under everything the central server knows, on one of several embedded engines.
//!
//! # Contract
//!
//! Keys are bytes in order, values are small. [`Store::transact`] takes a *function*: it runs on the one committer thread,
//! reads what all transactions before it have written, and its writes become durable all together or not at all. Serial
//! execution makes transactions serializable; nothing is ever tried again because of a conflict. Every commit that writes
//! gets the next revision and one record in the change log. `Ok` from `transact` means: on disk.
//!
//! # Layout
//!
//! One engine tree with three key spaces, told apart by the first byte: the store's own header and totals (`00`), the
//! change log (`01`, see `log.rs`) and the callers' records (`02`). Each value has an envelope with format and checksum
//! (`record.rs`). The totals record is rewritten in every batch and holds the revision, the number of records and the sum
//! of their checksums, so that [`Store::verify`] also finds records that were lost or came back from the past.
//!
//! ```text
//! DIRECTORY/LOCK                 held while the store is open
//! DIRECTORY/sled/ or redb/       the engine's files; the store is made elsewhere and renamed, so it exists whole or not
//! DIRECTORY/new-store/           a store that is being made or imported; removed when it is found at open
//! DIRECTORY/witness              the newest revision that was durable, to notice an engine that has lost its last commits
//! DIRECTORY/snapshots/rev-N.atr  exports made by Store::snapshot
//! ```
//!
//! # What readers see
//!
//! Only durable commits, and whole ones: while a batch is with the engine, the values from before it lie over it (see
//! `view.rs`). sled would show a batch before it is on disk; a reader of this store never learns of a commit that a power
//! cut could take back. [`Store::revision`] and [`Store::subscribe`] are published after that.
//!
//! # Crashes
//!
//! | the process or the power goes | then |
//! |---|---|
//! | before the engine's batch is whole on disk | the whole batch is gone; nobody had an answer |
//! | after that, before the answers | the batch is there; callers do not know and ask again with their request id |
//! | while a store is made or imported | the unfinished directory is removed at the next open |
//! | in a snapshot | an unfinished file that the next one overwrites |
//! | in a trim of the change log | a part is trimmed; the next trim goes on |
//!
//! A batch for which the disk may have no room is refused with `DISK_FULL` before the engine is touched; the next one is
//! tried again. Any error of the engine ends writing for good ([`Store::is_failed`], `STORE_FAILED`); reads go on with the last durable
//! state as far as the engine lets them. Whether the last batch is on disk is not known then: a restart finds out.
//!
//! # Bounds
//!
//! Keys 1,024 bytes; values 64 KiB (aim at 8 KiB); a transaction 20,000 records and 64 MiB; a batch about 4,096 records, 8 MiB
//! and one transaction more, at most 512 transactions; the queue 4,096 transactions, behind which callers wait five seconds
//! and get `OVERLOADED`; one range 100,000 records, beyond which it is refused, not cut; the pre-images of an export 256 MiB,
//! at which commits wait ten seconds for it, then it is given up.

mod committer;
mod directory;
mod engine;
mod export;
mod log;
mod queue;
mod record;
mod snapshot;
mod txn;
mod verify;
mod view;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use self::committer::{Call, Changed, Shared};
use self::engine::Guarded;
use self::queue::Queue;
use self::record::{HEADER_KEY, Header, META_KEY, Meta};
use self::view::{FrozenScan, Visible};
use crate::error::{Error, Reason, Result};

pub use self::txn::Txn;
pub use self::view::ReadView;

/// Longest key.
pub const KEY_MAX: usize = 1_024;
/// Longest value. Records are meant to stay below 8 KiB.
pub const VALUE_MAX: usize = 64 << 10;
/// Most writes, deletions and change payloads of one transaction.
pub const TXN_RECORDS_MAX: usize = 20_000;
/// Most bytes that one transaction writes.
pub const TXN_BYTES_MAX: usize = 64 << 20;
/// Most records that one range gives.
pub const RANGE_MAX: usize = 100_000;

/// Where a store is made before it is whole.
const UNFINISHED: &str = "new-store";

/// Which engine keeps the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// sled 0.34: the default.
    #[default]
    Sled,
    /// redb 4: the proven way out.
    Redb,
    /// Keeps nothing after the process: for tests.
    Memory,
}

impl EngineKind {
    /// All engines.
    pub const ALL: [EngineKind; 3] = [EngineKind::Sled, EngineKind::Redb, EngineKind::Memory];

    /// The word for it in settings.
    pub fn word(self) -> &'static str {
        match self {
            EngineKind::Sled => "sled",
            EngineKind::Redb => "redb",
            EngineKind::Memory => "memory",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for EngineKind {
    type Err = Error;
    fn from_str(word: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word).ok_or_else(|| {
            Error::new(Reason::SettingsInvalid, "the store's engine is sled, redb or memory").with("engine", word)
        })
    }
}

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// Default: sled.
    pub engine: EngineKind,
    /// Made if it is missing, readable by its owner only.
    pub directory: PathBuf,
    /// Cache of the engine; sled's memory is two to four times that. Default: 64 MiB.
    pub cache_bytes: u64,
    /// Snapshots to keep, at least 1. Default: 7.
    pub snapshot_keep: usize,
    /// Schema of the caller's records. A store with a higher one is refused; one with a lower one is opened and marked
    /// with this one. Default: 1.
    pub schema: u32,
    /// Transactions that may wait. Default: 4,096.
    pub queue_limit: usize,
    /// How long a caller waits for a place in a full queue. Default: 5 s.
    pub queue_wait: Duration,
    /// How long to wait for another process that has the directory. Default: 10 s.
    pub lock_wait: Duration,
    /// Pre-images that an export or a check may keep in memory. Default: 256 MiB.
    pub export_memory_bytes: u64,
    /// How long commits wait for an export that has reached that bound, before it is given up. Default: 10 s.
    pub export_wait: Duration,
    /// A batch that is with the engine for longer than this means a stuck disk. Default: 30 s.
    pub stall_after: Duration,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            engine: EngineKind::default(),
            directory: PathBuf::new(),
            cache_bytes: 64 << 20,
            snapshot_keep: 7,
            schema: 1,
            queue_limit: 4_096,
            queue_wait: Duration::from_secs(5),
            lock_wait: Duration::from_secs(10),
            export_memory_bytes: 256 << 20,
            export_wait: Duration::from_secs(10),
            stall_after: Duration::from_secs(30),
        }
    }
}

/// What a transaction gave back, and the revision at which it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed<T> {
    /// What the function returned.
    pub value: T,
    /// The commit's revision; for a transaction that wrote nothing, that of the state it saw.
    pub revision: u64,
}

/// What one commit changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeRecord {
    /// The commit.
    pub revision: u64,
    /// What the transaction gave to [`Txn::change`], in order; may be empty.
    pub payloads: Vec<Bytes>,
}

/// What an export holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportSummary {
    /// State that was exported.
    pub revision: u64,
    /// Records and blocks of the change log.
    pub records: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// BLAKE3 of the whole export.
    pub digest: [u8; 32],
}

/// A record that does not match its checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedRecord {
    /// Its key, with `\xNN` for bytes that cannot be shown.
    pub key: String,
    /// What is wrong with it.
    pub what: String,
}

/// What [`Store::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// State that was checked.
    pub revision: u64,
    /// Records and blocks of the change log that were read.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Records that do not match their checksums.
    pub damaged_count: u64,
    /// The first 1,000 of them.
    pub damaged: Vec<DamagedRecord>,
    /// Number of records and sum of their checksums are what the last commit wrote down: none is lost or from the past.
    pub totals_match: bool,
    /// The change log goes without a gap from its oldest revision to the last one.
    pub log_is_whole: bool,
}

impl VerifyReport {
    /// True if nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.damaged_count == 0 && self.totals_match && self.log_is_whole
    }
}

/// Figures of an open store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Its engine.
    pub engine: EngineKind,
    /// Last durable revision.
    pub revision: u64,
    /// Oldest cursor from which [`Store::changes`] can go on.
    pub oldest_cursor: u64,
    /// Records of the callers.
    pub records: u64,
    /// Bytes of their keys and values.
    pub record_bytes: u64,
    /// Blocks of the change log.
    pub log_blocks: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Transactions that wait.
    pub queued: usize,
    /// Commits since the store was opened.
    pub commits: u64,
    /// Durable batches since the store was opened.
    pub batches: u64,
    /// See [`Store::is_failed`].
    pub failed: bool,
    /// See [`Store::is_stalled`].
    pub stalled: bool,
}

/// An open store. Clones are handles to the same one; the last one that is dropped closes it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    failed: Arc<AtomicBool>,
    settings: StoreSettings,
    committer: Mutex<Option<JoinHandle<()>>>,
    snapshot: Mutex<()>,
}

/// The first key after all keys that begin with `prefix`; empty, which ranges take for the end, if there is none.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}

fn too_new(found: u32, known: u32) -> Error {
    Error::new(Reason::StoreTooNew, format!("the store's records have schema {found}, this program knows {known}"))
}

fn read_own(engine: &Guarded, key: &[u8]) -> Result<Option<Bytes>> {
    engine.get(key)?.map(|raw| record::open(key, &raw)).transpose()
}

/// Writes what an empty store consists of.
fn lay_out(engine: &Guarded, schema: u32) -> Result<()> {
    let header = Header { schema, instance: new_instance() };
    let batch = [(HEADER_KEY, header.encode()), (META_KEY, Meta::default().encode())]
        .map(|(key, payload)| (Bytes::from_static(key), Some(record::seal(key, &payload))));
    engine.apply(&batch)
}

impl Store {
    /// Opens a store, or makes one. Blocks; may take seconds after a crash.
    ///
    /// # Errors
    /// `STORE_BUSY` if another process has it, `STORE_TOO_NEW`, `STORE_CORRUPT`, `SETTINGS_INVALID` if the directory holds
    /// a store of another engine, `DISK_FULL`, `IO_FAILED`, `STORE_FAILED`.
    pub fn open(settings: &StoreSettings) -> Result<Store> {
        let engine = Self::open_engine(settings, false, &mut |engine| lay_out(engine, settings.schema))?;
        Self::start(engine, settings)
    }

    /// A store in memory.
    pub fn memory() -> Store {
        let settings = StoreSettings { engine: EngineKind::Memory, ..StoreSettings::default() };
        Self::open(&settings).expect("a store in memory needs no file, and its own thread is all that it starts")
    }

    /// Reads an export into an empty directory and opens the new store.
    ///
    /// It gets a new [`Store::instance`], since its revisions go on from the exported one independently.
    ///
    /// # Errors
    /// `STORE_BUSY` if there is a store already, `STORE_CORRUPT` if anything in the export does not match (nothing is left
    /// behind then), `STORE_TOO_NEW`, and what [`Store::open`] gives.
    pub fn import(settings: &StoreSettings, from: &mut dyn Read) -> Result<Store> {
        let engine = Self::open_engine(settings, true, &mut |engine| {
            export::read(from, engine, settings.schema, new_instance()).map(drop)
        })?;
        Self::start(engine, settings)
    }

    /// Opens the engine. A new one is filled by `fill` in a directory aside, which is then renamed.
    fn open_engine(
        settings: &StoreSettings,
        must_be_new: bool,
        fill: &mut dyn FnMut(&Guarded) -> Result<()>,
    ) -> Result<Guarded> {
        let kind = settings.engine;
        let Some(home) = engine::home(kind) else {
            let engine = Guarded::new(engine::open(kind, &settings.directory, settings.cache_bytes)?, None);
            fill(&engine)?;
            return Ok(engine);
        };
        if settings.directory.as_os_str().is_empty() {
            return Err(Error::new(Reason::SettingsInvalid, "the store has no directory"));
        }
        directory::create(&settings.directory)?;
        let lock = directory::DirectoryLock::take(&settings.directory, settings.lock_wait)?;
        for other in EngineKind::ALL.into_iter().filter(|other| *other != kind) {
            if engine::home(other).is_some_and(|home| settings.directory.join(home).exists()) {
                return Err(Error::new(
                    Reason::SettingsInvalid,
                    format!("the store's directory holds a store of {other}, the settings ask for {kind}"),
                )
                .fix_is("export it with its own engine, then import it into an empty directory"));
            }
        }
        let unfinished = settings.directory.join(UNFINISHED);
        if unfinished.exists() {
            std::fs::remove_dir_all(&unfinished)?;
        }
        let place = settings.directory.join(home);
        if place.exists() && must_be_new {
            return Err(Error::new(Reason::StoreBusy, "the directory has a store already")
                .why_is("a store is imported only into an empty directory")
                .fix_is("choose another directory, or move the present store away"));
        }
        if !place.exists() {
            directory::create(&unfinished)?;
            let filled =
                engine::open(kind, &unfinished, settings.cache_bytes).map_err(Error::from).and_then(|engine| {
                    let engine = Guarded::new(engine, None);
                    fill(&engine)?;
                    engine.close()
                });
            if let Err(error) = filled {
                std::fs::remove_dir_all(&unfinished)?;
                return Err(error);
            }
            directory::sync(&unfinished)?;
            std::fs::rename(unfinished.join(home), &place)?;
            directory::sync(&settings.directory)?;
            std::fs::remove_dir(&unfinished)?;
        }
        let engine = engine::open(kind, &settings.directory, settings.cache_bytes)?;
        Ok(Guarded::new(engine, Some(lock)))
    }

    fn start(engine: Guarded, settings: &StoreSettings) -> Result<Store> {
        let no_header = || Error::new(Reason::StoreCorrupt, "the store has no header");
        let mut header = Header::decode(&read_own(&engine, HEADER_KEY)?.ok_or_else(no_header)?)?;
        let meta = Meta::decode(&read_own(&engine, META_KEY)?.ok_or_else(no_header)?)?;
        if header.schema > settings.schema {
            return Err(too_new(header.schema, settings.schema));
        }
        if header.schema < settings.schema {
            header.schema = settings.schema;
            let raw = record::seal(HEADER_KEY, &header.encode());
            engine.apply(&[(Bytes::from_static(HEADER_KEY), Some(raw))])?;
        }
        let witness = match engine::home(settings.engine) {
            Some(_) => Some(directory::Witness::open(&settings.directory, header.instance, meta.revision)?),
            None => None,
        };
        let engine = Arc::new(engine);
        let visible =
            Visible { engine: Some(engine.clone()), before: view::Layer::new(), meta, header, frozen: Vec::new() };
        let shared = Arc::new(Shared {
            visible: RwLock::new(visible),
            queue: Queue::new(settings.queue_limit, settings.queue_wait),
            witness,
            revision: watch::Sender::new(meta.revision),
            changed: Changed::at(meta.revision),
            ended: watch::Sender::new(false),
            batch_since: Mutex::new(None),
            commits: AtomicU64::new(0),
            batches: AtomicU64::new(0),
        });
        let failed = engine.failure_flag();
        let theirs = shared.clone();
        let committer = std::thread::Builder::new()
            .name("store-committer".to_owned())
            .spawn(move || committer::run(&theirs, engine))?;
        Ok(Store(Arc::new(Inner {
            shared,
            failed,
            settings: settings.clone(),
            committer: Mutex::new(Some(committer)),
            snapshot: Mutex::new(()),
        })))
    }

    /// The value of a key in the last durable state. Takes microseconds.
    ///
    /// # Errors
    /// `STORE_CORRUPT` if the record does not match its checksum, `STORE_FAILED`, `SHUTTING_DOWN`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        ReadView(&self.0.shared.visible.read()).get(key)
    }

    /// The first `limit` records with `from <= key < to`, ascending, of one durable state. An empty `to` means the end.
    ///
    /// # Errors
    /// `STORE_LIMIT` if there are more than 100,000 and `limit` would let them all through; like [`Store::get`].
    pub fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        ReadView(&self.0.shared.visible.read()).range(from, to, limit)
    }

    /// The last `limit` records with `from <= key < to`, descending, of one durable state. An empty `to` means the end.
    ///
    /// # Errors
    /// Like [`Store::range`].
    pub fn range_back(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        ReadView(&self.0.shared.visible.read()).range_back(from, to, limit)
    }

    /// Runs several reads over one durable state. Commits wait meanwhile, so it must be short; it must use the view only,
    /// never the store, or both can wait for each other for ever.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn read<T>(&self, f: impl FnOnce(&ReadView<'_>) -> Result<T>) -> Result<T> {
        f(&ReadView(&self.0.shared.visible.read()))
    }

    /// Runs `f` as a transaction and gives back its value once its writes are durable.
    ///
    /// An error of `f` means that nothing was written. `f` has no effects but on the transaction: other engines may run it
    /// again. It runs on the committer thread, so it is quick and never waits. If the future is dropped, the transaction
    /// may happen or not.
    ///
    /// # Errors
    /// Those of `f`; `OVERLOADED` if the queue stays full, `STORE_LIMIT`, `STORE_FAILED`, `DISK_FULL`, `SHUTTING_DOWN`.
    pub async fn transact<T, F>(&self, f: F) -> Result<Committed<T>>
    where
        T: Send + 'static,
        F: FnMut(&mut Txn<'_>) -> Result<T> + Send + 'static,
    {
        let (job, answer) = Call::job(f);
        self.0.shared.queue.push(job).await?;
        answer.await.unwrap_or_else(|_| Err(view::closed()))
    }

    /// [`Store::transact`] for threads. Never to be called from async code or from within a transaction.
    ///
    /// # Errors
    /// Like [`Store::transact`].
    pub fn transact_blocking<T, F>(&self, f: F) -> Result<Committed<T>>
    where
        T: Send + 'static,
        F: FnMut(&mut Txn<'_>) -> Result<T> + Send + 'static,
    {
        if self.on_committer() {
            return Err(Error::internal("a transaction was begun within a transaction"));
        }
        let (job, answer) = Call::job(f);
        self.0.shared.queue.push_blocking(job)?;
        answer.blocking_recv().unwrap_or_else(|_| Err(view::closed()))
    }

    fn on_committer(&self) -> bool {
        let me = std::thread::current().id();
        self.0.committer.lock().as_ref().is_some_and(|thread| thread.thread().id() == me)
    }

    /// The last durable revision. What is read after this call is at least as new.
    pub fn revision(&self) -> u64 {
        *self.0.shared.revision.borrow()
    }

    /// Follows the last durable revision.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.shared.revision.subscribe()
    }

    /// The last durable revision that wrote or deleted a record whose key begins with this byte; an empty key counts as 0.
    /// Nothing is known of before the store was opened: the answer is then the revision of that time.
    ///
    /// With it, what was worked out of some records can be remembered without ever being stale: ask [`Store::revision`],
    /// then read, and use the outcome again as long as `last_change` of these keys is not above that revision. A
    /// transaction that was acknowledged is always seen. Takes nanoseconds.
    pub fn last_change(&self, first: u8) -> u64 {
        self.0.shared.changed.of(first)
    }

    /// Chosen at random when the store was made or imported. A revision is a cursor only together with it.
    pub fn instance(&self) -> [u8; 16] {
        self.0.shared.visible.read().header.instance
    }

    /// The changes of the commits after revision `after`, in commit order without gaps: whole commits, at most `limit`
    /// of them, fewer if they hold more than about 4 MiB. Empty if `after` is the last revision.
    ///
    /// # Errors
    /// `CURSOR_TOO_OLD` (details `oldest_cursor`, `newest_cursor`) if the log does not reach back to `after`, or if `after`
    /// is no revision of this store; like [`Store::get`].
    pub fn changes(&self, after: u64, limit: usize) -> Result<Vec<ChangeRecord>> {
        ReadView(&self.0.shared.visible.read()).changes(after, limit)
    }

    /// Takes the changes up to and including revision `keep_after` away. A crash in between leaves a part of it to do.
    ///
    /// # Errors
    /// Like [`Store::transact`].
    pub async fn trim_changes(&self, keep_after: u64) -> Result<()> {
        while !self.transact(move |txn| txn.trim(keep_after, 1_000)).await?.value {}
        Ok(())
    }

    /// Writes one state of the store, as of now, while transactions go on. The format is in `store/export.rs`.
    ///
    /// # Errors
    /// `STORE_CORRUPT` if a record does not match its checksum or one is missing, `OVERLOADED` if `to` is so slow that the
    /// pre-images reach their bound, `IO_FAILED` and `DISK_FULL` from `to`, `STORE_FAILED`, `SHUTTING_DOWN`.
    pub fn export(&self, to: &mut dyn Write) -> Result<ExportSummary> {
        export::write(&self.freeze()?, to)
    }

    fn freeze(&self) -> Result<FrozenScan<'_>> {
        let settings = &self.0.settings;
        FrozenScan::begin(&self.0.shared.visible, settings.export_memory_bytes, settings.export_wait)
    }

    /// Reads every record of one state and checks it, while transactions go on.
    ///
    /// # Errors
    /// `OVERLOADED` like [`Store::export`], `STORE_FAILED`, `SHUTTING_DOWN`. Damaged records are in the report.
    pub fn verify(&self) -> Result<VerifyReport> {
        verify::run(&self.freeze()?)
    }

    /// Exports to `DIRECTORY/snapshots/rev-N.atr` and removes all but the newest [`StoreSettings::snapshot_keep`].
    /// One at a time; a second caller waits.
    ///
    /// # Errors
    /// Like [`Store::export`]; `SETTINGS_INVALID` if the store has no directory.
    pub fn snapshot(&self) -> Result<PathBuf> {
        let settings = &self.0.settings;
        if settings.directory.as_os_str().is_empty() {
            return Err(Error::new(Reason::SettingsInvalid, "the store has no directory for snapshots"));
        }
        let _one_at_a_time = self.0.snapshot.lock();
        let snapshots = settings.directory.join("snapshots");
        snapshot::write(&snapshots, settings.snapshot_keep, |to| self.export(to))
    }

    /// The snapshots that are there, oldest first.
    ///
    /// # Errors
    /// `IO_FAILED`.
    pub fn snapshots(&self) -> Result<Vec<PathBuf>> {
        snapshot::list(&self.0.settings.directory.join("snapshots"))
    }

    /// True once the engine has reported an error. The store takes no more changes; restart the program.
    pub fn is_failed(&self) -> bool {
        self.0.failed.load(Ordering::Acquire)
    }

    /// True while a batch has been with the engine for [`StoreSettings::stall_after`] or longer.
    pub fn is_stalled(&self) -> bool {
        self.0.shared.batch_age().is_some_and(|age| age >= self.0.settings.stall_after)
    }

    /// Figures for metrics and people.
    pub fn stats(&self) -> Stats {
        let shared = &self.0.shared;
        let (meta, disk_bytes) = {
            let visible = shared.visible.read();
            // A figure, no more: without it the rest is still worth having.
            let disk = visible.engine.as_ref().and_then(|engine| engine.disk_bytes().ok());
            (visible.meta, disk.unwrap_or(0))
        };
        Stats {
            engine: self.0.settings.engine,
            revision: meta.revision,
            oldest_cursor: meta.oldest,
            records: meta.records,
            record_bytes: meta.bytes,
            log_blocks: meta.log_blocks,
            disk_bytes,
            queued: shared.queue.len(),
            commits: shared.commits.load(Ordering::Relaxed),
            batches: shared.batches.load(Ordering::Relaxed),
            failed: self.is_failed(),
            stalled: self.is_stalled(),
        }
    }

    /// Takes no more transactions, finishes those that wait, closes the engine and gives the directory up. Other handles
    /// then get `SHUTTING_DOWN`.
    pub async fn close(self) {
        let mut ended = self.0.shared.ended.subscribe();
        self.0.shared.queue.close();
        // The sender is in `shared`, which we hold: this ends only with the committer.
        let _ = ended.wait_for(|ended| *ended).await;
    }
}

fn new_instance() -> [u8; 16] {
    *uuid::Uuid::new_v4().as_bytes()
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(committer) = self.committer.get_mut().take()
            && committer.thread().id() != std::thread::current().id()
            && committer.join().is_err()
        {
            tracing::error!("the committer panicked");
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("settings", &self.0.settings).field("revision", &self.revision()).finish()
    }
}
