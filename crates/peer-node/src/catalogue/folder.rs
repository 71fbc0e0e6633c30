//! A folder of this machine that is shared, or that is the copy of another node's share.

use arc_swap::ArcSwap;
use common::error::{Error, Reason, Result};
use common::store::Store;
use parking_lot::Mutex;
use prost::Message;
use rustix::fs::fstat;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot};

use super::beneath::Root;
use super::index::{IndexHandle, key};
use super::problem::Problems;
use super::rules::Rules;
use super::scan::pace::Pace;
use super::scan::{Progress, ScanReport};
use crate::model::ShareId;

pub(super) const SPACE_FOLDER: &[u8] = b"c/l";

/// Things asked of the keeper that may wait; at the bound single paths are given up and the whole folder is looked at.
const REQUESTS: usize = 4_096;

/// The stored form.
#[derive(Clone, PartialEq, Message)]
pub(super) struct FolderRecord {
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub inode: u64,
    // The owner's rules without those of the file in the folder.
    #[prost(string, tag = "3")]
    pub own_rules: String,
    // A copy of another node's share.
    #[prost(bool, tag = "4")]
    pub mirror: bool,
}

impl FolderRecord {
    pub fn new(root: &Root, own_rules: &str, mirror: bool) -> Self {
        Self {
            path: root.path().as_os_str().as_bytes().to_vec(),
            inode: root.inode(),
            own_rules: own_rules.to_owned(),
            mirror,
        }
    }

    pub fn decode_from(bytes: &[u8]) -> Result<Self> {
        Self::decode(bytes)
            .map_err(|_| Error::new(Reason::StoreCorrupt, "the record of a shared folder cannot be decoded"))
    }
}

/// What the keeper of a folder is asked.
pub(super) enum Request {
    /// Something has happened at a path below the folder; `below` if it may be a whole directory.
    Touched { path: String, below: bool },
    /// A path's content is not what its entry says.
    Doubted { path: String },
    /// More has happened than could be told.
    Overflow,
    /// Look at everything soon: the rules or the folder are others now.
    Everything,
    /// Look at everything now, and answer.
    Scan(oneshot::Sender<Result<ScanReport>>),
}

/// See the module.
pub struct Folder {
    pub(super) index: IndexHandle,
    pub(super) path: PathBuf,
    pub(super) mirror: bool,
    inode: AtomicU64,
    device: AtomicU64,
    rules: ArcSwap<Rules>,
    own_rules: Mutex<String>,
    pub(super) problems: Mutex<Problems>,
    pub(super) progress: Progress,
    pub(super) pace: Mutex<Pace>,
    since: std::time::Instant,
    /// Everything was looked at since the start of the program.
    pub(super) complete: AtomicBool,
    watch_problem: Mutex<Option<String>>,
    rules_problem: Mutex<Option<String>>,
    requests: mpsc::Sender<Request>,
    overflow: AtomicBool,
    /// Ends the keeper.
    pub(super) ended: tokio_util::sync::CancellationToken,
}

impl Folder {
    /// With the receiver of what is asked of its keeper.
    pub(super) fn new(
        index: IndexHandle,
        record: &FolderRecord,
        rules: Rules,
        ended: tokio_util::sync::CancellationToken,
    ) -> (Arc<Self>, mpsc::Receiver<Request>) {
        let (requests, asked) = mpsc::channel(REQUESTS);
        let folder = Self {
            index,
            path: PathBuf::from(OsString::from_vec(record.path.clone())),
            mirror: record.mirror,
            inode: AtomicU64::new(record.inode),
            device: AtomicU64::new(0),
            rules: ArcSwap::from_pointee(rules),
            own_rules: Mutex::new(record.own_rules.clone()),
            problems: Mutex::default(),
            progress: Progress::default(),
            pace: Mutex::default(),
            since: std::time::Instant::now(),
            complete: AtomicBool::new(false),
            watch_problem: Mutex::default(),
            rules_problem: Mutex::default(),
            requests,
            overflow: AtomicBool::new(false),
            ended,
        };
        (Arc::new(folder), asked)
    }

    /// Which share.
    pub fn share(&self) -> ShareId {
        self.index.share()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The inode that it had when it was shared.
    pub(super) fn inode(&self) -> u64 {
        self.inode.load(Ordering::Relaxed)
    }

    /// Takes the folder that is there now for the one that is meant.
    pub(super) fn accept(&self, root: &Root) {
        self.inode.store(root.inode(), Ordering::Relaxed);
    }

    /// The device number of the file system that the folder is on.
    pub(super) fn device(&self, root: &Root) -> u64 {
        match self.device.load(Ordering::Relaxed) {
            0 => {
                let found = root.directory("").ok().and_then(|fd| fstat(&fd).ok()).map_or(0, |s| s.st_dev);
                self.device.store(found, Ordering::Relaxed);
                found
            }
            known => known,
        }
    }

    /// The device number may be another one after a mount.
    pub(super) fn forget_device(&self) {
        self.device.store(0, Ordering::Relaxed);
    }

    /// Milliseconds since this began.
    pub(super) fn now_ms(&self) -> u64 {
        self.since.elapsed().as_millis() as u64
    }

    /// The rules in force.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    pub(super) fn set_rules(&self, rules: Rules) {
        self.rules.store(Arc::new(rules));
    }

    pub(super) fn own_rules(&self) -> String {
        self.own_rules.lock().clone()
    }

    pub(super) fn set_own_rules(&self, rules: &str) {
        rules.clone_into(&mut self.own_rules.lock());
    }

    pub(super) fn record(&self) -> FolderRecord {
        FolderRecord {
            path: self.path.as_os_str().as_bytes().to_vec(),
            inode: self.inode(),
            own_rules: self.own_rules(),
            mirror: self.mirror,
        }
    }

    pub(super) fn watch_problem(&self) -> Option<String> {
        self.watch_problem.lock().clone()
    }

    pub(super) fn set_watch_problem(&self, why: Option<String>) {
        *self.watch_problem.lock() = why;
    }

    /// Why the rules in force are not those of the file.
    pub(super) fn rules_problem(&self) -> Option<String> {
        self.rules_problem.lock().clone()
    }

    pub(super) fn set_rules_problem(&self, why: Option<String>) {
        *self.rules_problem.lock() = why;
    }

    /// Asks the keeper for something without waiting.
    pub(super) fn ask(&self, request: Request) {
        if self.requests.try_send(request).is_err() {
            self.overflow.store(true, Ordering::Relaxed);
        }
    }

    /// True once after more was asked than could wait.
    pub(super) fn took_overflow(&self) -> bool {
        self.overflow.swap(false, Ordering::Relaxed)
    }

    /// Has everything looked at, and waits for it.
    pub(super) async fn scan(&self) -> Result<ScanReport> {
        let ended = || Error::new(Reason::Cancelled, "the share has ended");
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Scan(answer)).await.map_err(|_| ended())?;
        answered.await.unwrap_or_else(|_| Err(ended()))
    }

    pub(super) fn store_key(share: ShareId) -> Vec<u8> {
        key(SPACE_FOLDER, share, &[])
    }

    pub(super) fn forget(store: &Store, share: ShareId) -> Result<()> {
        let key = Self::store_key(share);
        store.transact_blocking(move |txn| txn.delete(&key)).map(drop)
    }
}
