//! What is shared, here and elsewhere: shares, their indexes, rights, names and search.
//!
//! A share is a folder of one machine. Its files stay where they are; the catalogue knows what is in them. An *index*
//! holds an entry for each file and directory, with the chunks of its content, and keeps those of entries that are gone.
//! `keeper` has it looked through (`scan`) at the start, when the system tells of changes (`events`), and now and then. A
//! *record*, signed by the owner, says who may do what; whoever holds anything of a share checks each asker against it.
//!
//! ```text
//!   manage    share, unshare, update, mirror           resolve, search  addresses and listing, over all nodes
//!   keeper ─▶ scan ─▶ index ◀── source  (ChunkSource)  names    hierarchical names, without IO
//!      ▲                ▲                              remote   other nodes' shares: asking, checking, keeping
//!   events              └────── grpc    (CatalogueService)
//! ```
//!
//! # In the store
//!
//! `c/r` records that are known (`book`), `c/l` folders that are shared here (`folder`), and `c/h`, `c/e`, `c/q`, `c/m`
//! the indexes (`index`): those of folders here, and those that were read from other nodes and are kept so that an
//! address can be resolved while its owner is away.
//!
//! # Invariants
//!
//! 1. Nothing outside of a shared folder is ever opened, listed or hashed (`beneath`).
//! 2. What an index says of a file was true of the whole file at one moment (`scan`).
//! 3. A call about a share that the caller may not see is answered like one about a share that does not exist.
//! 4. A removed share stays removed. A record that counts less than the one that is known changes nothing (`record`).
//! 5. Only the owner's own word about a read-only share is taken for its index, never that of a third node.
//!
//! # Crashes
//!
//! Each transaction of the store is whole or not there; an interrupted scan goes on by comparing again. What was hashed
//! and written is not hashed again.
//!
//! # Bounds
//!
//! 256 folders; 4,000,000 entries a share; 20,000 known records; 2,000,000 kept entries of other nodes, beyond which the
//! index that was not used for longest goes. Answers are pages. At each bound something is refused with a reason, and
//! nothing else suffers.
//!
//! # For two-way shares
//!
//! [`Catalogue::mirror`] makes the folder and the index of a copy. [`IndexHandle::subscribe`] and [`IndexHandle::after`]
//! tell of changes made here; [`IndexHandle::hold`] keeps the scanner from a path while another device's version is put
//! there, and [`IndexHandle::apply`] notes that version. The scanner gives each local change a version vector of its own.

pub mod access;
pub mod adapters;
pub mod beneath;
mod book;
pub mod entry;
pub mod events;
pub mod folder;
pub mod grpc;
pub mod index;
mod keeper;
mod manage;
pub mod names;
pub mod problem;
pub mod record;
mod remote;
mod resolve;
pub mod rules;
pub mod scan;
mod search;
mod source;

pub use access::{Alone, ChannelError, Node, PeerChannel, Peers, Roster};
pub use entry::{Entry, EntryKind, FileStamp, Relation, VersionVector, short_id};
pub use index::{Adoption, Hold, IndexHandle, IndexHead};
pub use manage::{LocalShare, NewShare, ShareChange};
pub use record::{ShareRecord, Terms};
pub use remote::{IndexPage, IndexReader, RemoteShare};
pub use resolve::{Item, ItemKind, Page, Resolved, TreeFile};
pub use scan::{ScanOptions, ScanReport};
pub use search::Found;
pub use source::ManifestSource;

use common::clock::SharedClock;
use common::error::Result;
use common::identity::DeviceKey;
use common::model::{DeviceId, Right};
use common::shutdown::Shutdown;
use common::store::{Store, prefix_end};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

use self::access::{right_of, unknown_share};
use self::book::Book;
use self::folder::{Folder, FolderRecord, SPACE_FOLDER};
use self::keeper::Keeper;
use self::remote::Kept;
use self::rules::Rules;
use crate::model::ShareId;

/// Most folders of a node.
pub const FOLDERS_MAX: usize = 256;
/// Scans of everything at a time: each uses several threads.
const SCANS: usize = 2;

/// Runs work that may wait for the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let panicked = |_| Err(common::error::Error::internal("a piece of work panicked"));
    tokio::task::spawn_blocking(work).await.unwrap_or_else(panicked)
}

/// How the catalogue works.
#[derive(Clone, Debug)]
pub struct CatalogueSettings {
    /// Have the system tell of changes. Default: true.
    pub watch: bool,
    /// How long a change rests before it is looked at. Default: 200 ms.
    pub quiet: Duration,
    /// How often everything is looked at. Default: 1 h.
    pub rescan: Duration,
    /// Threads of a scan; 0: as many as cores, at most 4. Default: 0.
    pub scan_threads: usize,
    /// Entries of other nodes' indexes that are kept. Default: 2,000,000.
    pub kept_entries: u64,
    /// How long a search or a listing waits for a node. Default: 5 s.
    pub patience: Duration,
    /// How long another node's list of shares is taken for new. Default: 1 s.
    pub fresh: Duration,
}

impl Default for CatalogueSettings {
    fn default() -> Self {
        Self {
            watch: true,
            quiet: Duration::from_millis(200),
            rescan: Duration::from_secs(3600),
            scan_threads: 0,
            kept_entries: 2_000_000,
            patience: Duration::from_secs(5),
            fresh: Duration::from_secs(1),
        }
    }
}

/// What the catalogue works with.
pub struct Parts {
    /// Where it keeps what it knows.
    pub store: Store,
    /// Who belongs.
    pub roster: Arc<dyn Roster>,
    /// Ways to other nodes.
    pub peers: Arc<dyn Peers>,
    /// This device's key.
    pub key: Arc<DeviceKey>,
    /// Time of day, for what is kept of others.
    pub clock: SharedClock,
    /// Ends its tasks.
    pub shutdown: Shutdown,
}

/// See the module. Clones are handles to the same catalogue.
#[derive(Clone)]
pub struct Catalogue(Arc<Inner>);

struct Inner {
    store: Store,
    roster: Arc<dyn Roster>,
    peers: Arc<dyn Peers>,
    key: Arc<DeviceKey>,
    clock: SharedClock,
    shutdown: Shutdown,
    settings: CatalogueSettings,
    book: Book,
    folders: RwLock<HashMap<ShareId, Arc<Folder>>>,
    kept: Kept,
    managing: tokio::sync::Mutex<()>,
    changes: watch::Sender<u64>,
    turns: Arc<Semaphore>,
    options: RwLock<ScanOptions>,
    manifests: RwLock<Vec<Arc<dyn ManifestSource>>>,
}

impl Catalogue {
    /// Opens it and begins to look through the shared folders. Call it inside a runtime; blocks for the store.
    ///
    /// # Errors
    /// Those of the store.
    pub fn open(parts: Parts, settings: CatalogueSettings) -> Result<Catalogue> {
        let Parts { store, roster, peers, key, clock, shutdown } = parts;
        let catalogue = Catalogue(Arc::new(Inner {
            book: Book::open(store.clone())?,
            kept: Kept::open(&store)?,
            store,
            roster,
            peers,
            key,
            clock,
            shutdown,
            settings,
            folders: RwLock::default(),
            managing: tokio::sync::Mutex::new(()),
            changes: watch::Sender::new(0),
            turns: Arc::new(Semaphore::new(SCANS)),
            options: RwLock::default(),
            manifests: RwLock::default(),
        }));
        let store = &catalogue.0.store;
        for (key, bytes) in store.range(SPACE_FOLDER, &prefix_end(SPACE_FOLDER), FOLDERS_MAX)? {
            let stored = FolderRecord::decode_from(&bytes)?;
            let share = ShareId::from_slice(&key[SPACE_FOLDER.len()..]);
            let Some(known) = share.and_then(|id| catalogue.0.book.get(&id)) else {
                tracing::error!("a shared folder has no record of its share and is passed over");
                continue;
            };
            let rules = match Rules::new(&known.record.terms().ignore_rules) {
                Ok(rules) => rules,
                Err(error) => {
                    tracing::error!(?error, "a shared folder is not kept, since its ignore rules cannot be used");
                    continue;
                }
            };
            let index = IndexHandle::open(store.clone(), known.record.share(), catalogue.me_short())?;
            catalogue.keep(index, &stored, rules);
        }
        Ok(catalogue)
    }

    /// Begins to keep a folder's index fresh.
    fn keep(&self, index: IndexHandle, stored: &FolderRecord, rules: Rules) -> Arc<Folder> {
        let (folder, asked) = Folder::new(index, stored, rules, self.0.shutdown.token());
        self.0.folders.write().insert(folder.share(), folder.clone());
        let keeper = Keeper { catalogue: self.clone(), folder: folder.clone(), asked, turns: self.0.turns.clone() };
        self.0.shutdown.spawn(keeper.run());
        folder
    }

    fn settings(&self) -> &CatalogueSettings {
        &self.0.settings
    }

    fn scan_options(&self) -> ScanOptions {
        self.0.options.read().clone()
    }

    /// How folders are scanned from now on.
    pub fn set_scan_options(&self, options: ScanOptions) {
        *self.0.options.write() = options;
    }

    fn me_short(&self) -> u64 {
        short_id(&self.0.key.device_id())
    }

    fn folders(&self) -> Vec<Arc<Folder>> {
        self.0.folders.read().values().cloned().collect()
    }

    fn changed(&self) {
        self.0.changes.send_modify(|n| *n += 1);
    }

    /// Counts changes of anything here: shares, records, entries.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// The index of a share that has a folder here.
    ///
    /// # Errors
    /// SHARE_UNKNOWN.
    pub fn index(&self, share: &ShareId) -> Result<IndexHandle> {
        self.folder(share).map(|f| f.index.clone())
    }

    /// A share's folder here, with its rules and progress.
    ///
    /// # Errors
    /// SHARE_UNKNOWN.
    pub fn folder(&self, share: &ShareId) -> Result<Arc<Folder>> {
        self.0.folders.read().get(share).cloned().ok_or_else(unknown_share)
    }

    /// The record of a share that counts, as far as this node knows.
    ///
    /// # Errors
    /// SHARE_UNKNOWN.
    pub fn record(&self, share: &ShareId) -> Result<ShareRecord> {
        self.0.book.get(share).map(|k| k.record).ok_or_else(unknown_share)
    }

    /// What a device may do with a share now. `None` also for one that is not known or removed.
    pub fn right(&self, share: &ShareId, device: &DeviceId) -> Option<Right> {
        let known = self.0.book.get(share)?;
        right_of(&*self.0.roster, device, &known.record)
    }

    /// Takes a record that came from anywhere. True if it counts more than what was known.
    ///
    /// # Errors
    /// SHARE_INVALID if it is not of this office; OVERLOADED beyond the bounds; those of the store.
    pub async fn merge_record(&self, record: &ShareRecord) -> Result<bool> {
        let (inner, record) = (self.0.clone(), record.clone());
        let new = blocking(move || inner.merge(&record, false)).await?;
        if new {
            self.changed();
        }
        Ok(new)
    }

    /// Has a folder looked through now, and waits for it.
    ///
    /// # Errors
    /// SHARE_UNKNOWN, FOLDER_CHANGED, those of the store.
    pub async fn scan(&self, share: &ShareId) -> Result<ScanReport> {
        let folder = self.folder(share)?;
        folder.scan().await
    }

    /// Has a path of a folder looked at soon, or the directory with all below it; does not wait for it.
    pub fn look_soon(&self, share: &ShareId, path: &str, below: bool) {
        if let Ok(folder) = self.folder(share) {
            folder.ask(folder::Request::Touched { path: path.to_owned(), below });
        }
    }

    /// Opens a share's folder here, if it is the one that was shared. Blocks.
    ///
    /// # Errors
    /// SHARE_UNKNOWN; FOLDER_CHANGED, which is also noted as a problem of the folder.
    pub fn open_folder(&self, share: &ShareId) -> Result<beneath::Root> {
        scan::open(&*self.folder(share)?)
    }

    /// Lets another module answer for manifests of its scopes in `ReadManifest`.
    pub fn add_manifests(&self, source: Arc<dyn ManifestSource>) {
        self.0.manifests.write().push(source);
    }

    /// A node's hierarchical name; the beginning of its id if it is no member.
    pub fn node_name(&self, device: &DeviceId) -> String {
        let nodes = self.0.roster.nodes();
        let found = nodes.into_iter().find(|n| n.device == *device);
        found.map_or_else(|| format!("~{}", &device.to_string()[..8]), |n| n.name)
    }
}

impl Inner {
    fn merge(&self, record: &ShareRecord, hidden: bool) -> Result<bool> {
        if self.roster.office() != Some(record.terms().office) {
            return Err(common::error::Error::new(
                common::error::Reason::ShareInvalid,
                "the share is another office's",
            ));
        }
        let new = self.book.merge(record, hidden)?;
        if new
            && let Some(folder) = self.folders.read().get(&record.share()).filter(|f| f.mirror)
            && folder.rules().text() != record.terms().ignore_rules
        {
            folder.set_rules(Rules::new(&record.terms().ignore_rules)?);
            folder.ask(folder::Request::Everything);
        }
        Ok(new)
    }
}
