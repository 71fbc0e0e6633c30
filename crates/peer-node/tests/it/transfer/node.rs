//! A node with transfers, a shared folder, and faults to order.

use common::chunk::{CHUNK_MIN, Chunker};
use common::clock::SystemClock;
use common::error::{Error, Reason, Result};
use common::model::{ChunkId, ChunkRef, DeviceId};
use common::store::Store;
use parking_lot::{Mutex, RwLock};
use peer_node::model::{Content, Scope, ShareId, TransferId};
use peer_node::net::testing::{Members, TestNode};
use peer_node::source::{ChunkSource, FileStamp, Holdings, Place, Sources};
use peer_node::transfer::{
    Disk, Limits, NetworkPeers, Order, OrderFile, Progress, RealDisk, State, TransferSettings, Transfers,
};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tonic::service::Routes;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(100);

/// What all nodes of a test share.
#[derive(Clone)]
pub struct Office {
    pub members: Members,
    pub scope: Scope,
    names: Arc<RwLock<HashMap<DeviceId, String>>>,
}

impl Office {
    pub fn new() -> Self {
        Self { members: Members::default(), scope: Scope::Share(ShareId::generate()), names: Arc::default() }
    }
}

/// Milliseconds, at least one.
pub fn ms(began: Instant) -> u64 {
    (began.elapsed().as_millis() as u64).max(1)
}

/// Bytes that do not repeat.
pub fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// The chunks of these bytes.
pub fn content(data: &[u8]) -> Content {
    // What is shorter than the shortest chunk is one: saves a buffer of megabytes for each small file.
    if (1..CHUNK_MIN).contains(&data.len()) {
        return Content::of(vec![ChunkRef { id: ChunkId::of(data), len: data.len() as u32 }]);
    }
    let chunks: Vec<ChunkRef> = Chunker::new(data).map(|piece| piece.unwrap().chunk).collect();
    Content::of(chunks)
}

/// An order without destination and sources.
pub fn order(office: &Office, files: &[OrderFile]) -> Order {
    Order {
        scope: office.scope.clone(),
        title: "test".into(),
        destination: PathBuf::new(),
        files: files.to_vec(),
        directories: Vec::new(),
        sources: Vec::new(),
        overwrite: false,
    }
}

/// A shared folder, as far as transfers see one.
pub struct Folder {
    scope: Scope,
    root: PathBuf,
    places: RwLock<HashMap<ChunkId, (PathBuf, u64, u32)>>,
    /// Has everything of the scope.
    pub complete: AtomicBool,
    /// Says that files are as they were hashed, whatever is in them.
    pub lies: AtomicBool,
    /// Devices that may not.
    pub refused: RwLock<HashSet<DeviceId>>,
    /// How often each chunk was looked up for somebody.
    pub asked: Mutex<HashMap<ChunkId, u32>>,
}

impl ChunkSource for Folder {
    fn may_have(&self, scope: &Scope, asker: &DeviceId) -> Result<bool> {
        if *scope != self.scope {
            return Ok(false);
        }
        match self.refused.read().contains(asker) {
            true => Err(Error::new(Reason::AccessDenied, "not for you")),
            false => Ok(true),
        }
    }

    fn locate(&self, scope: &Scope, chunk: &ChunkId) -> Result<Option<Place>> {
        if *scope != self.scope {
            return Ok(None);
        }
        *self.asked.lock().entry(*chunk).or_default() += 1;
        let places = self.places.read();
        let Some((path, offset, len)) = places.get(chunk) else { return Ok(None) };
        let lies = self.lies.load(Ordering::SeqCst);
        let stamp = lies.then(|| FileStamp::of(&fs::metadata(path).unwrap()));
        Ok(Some(Place::File { path: path.clone(), offset: *offset, len: *len, stamp }))
    }

    fn holdings(&self, scope: &Scope, _: &[[u8; 32]]) -> Result<Holdings> {
        if *scope != self.scope {
            return Ok(Holdings::default());
        }
        let places = self.places.read();
        let complete = self.complete.load(Ordering::SeqCst) && !places.is_empty();
        Ok(Holdings { complete, have: if complete { Vec::new() } else { places.keys().copied().collect() } })
    }

    fn moved(&self, _: &Scope, chunk: &ChunkId, _: &Place) {
        self.places.write().remove(chunk);
    }
}

/// A disk that can be full.
#[derive(Default)]
pub struct FullDisk {
    pub full: AtomicBool,
}

impl Disk for FullDisk {
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        RealDisk.write_at(file, bytes, offset)
    }
}

/// A node.
pub struct Node {
    pub test: TestNode,
    pub transfers: Transfers,
    pub folder: Arc<Folder>,
    pub dir: Arc<TempDir>,
}

/// What is different about a node.
#[derive(Default, Clone)]
pub struct With {
    pub dir: Option<Arc<TempDir>>,
    pub store: Option<Store>,
    pub disk: Option<Arc<FullDisk>>,
}

impl Node {
    pub async fn start(office: &Office, name: &str) -> Self {
        Self::start_with(office, name, With::default()).await
    }

    pub async fn start_with(office: &Office, name: &str, with: With) -> Self {
        let dir = with.dir.unwrap_or_else(|| Arc::new(tempfile::tempdir().unwrap()));
        let store = with.store.unwrap_or_else(Store::memory);
        let sources = Sources::default();
        let root = dir.path().join("share");
        fs::create_dir_all(&root).unwrap();
        let folder = Arc::new(Folder {
            scope: office.scope.clone(),
            root,
            places: RwLock::default(),
            complete: AtomicBool::new(true),
            lies: AtomicBool::new(false),
            refused: RwLock::default(),
            asked: Mutex::default(),
        });
        sources.register(folder.clone());
        let mut settings = TransferSettings::new(dir.path().join("state"));
        settings.first_pause = Duration::from_millis(20);
        settings.traffic = None;
        if let Some(disk) = with.disk {
            settings.disk = disk;
        }
        let names = office.names.clone();
        let mut opened = None;
        let slot = &mut opened;
        let test = TestNode::start(&office.members, move |network| {
            let names = Arc::new(move |d: &DeviceId| names.read().get(d).cloned().unwrap_or_default());
            let peers = Arc::new(NetworkPeers::new(network.clone(), names));
            let transfers = Transfers::open(store, peers, sources, settings, Arc::new(SystemClock)).unwrap();
            let routes = Routes::new(transfers.server());
            *slot = Some(transfers);
            routes
        })
        .await;
        office.names.write().insert(test.device(), format!("node {name}"));
        Self { test, transfers: opened.unwrap(), folder, dir }
    }

    /// Puts a file into the shared folder.
    pub fn share(&self, path: &str, data: &[u8]) -> OrderFile {
        let full = self.folder.root.join(path);
        fs::create_dir_all(full.parent().unwrap()).unwrap();
        fs::write(&full, data).unwrap();
        let content = content(data);
        let mut offset = 0;
        for chunk in content.chunks.iter() {
            self.folder.places.write().insert(chunk.id, (full.clone(), offset, chunk.len));
            offset += u64::from(chunk.len);
        }
        OrderFile { path: path.into(), mtime_ns: 1_600_000_000_000_000_007, mode: 0o640, content }
    }

    /// Changes a shared file without telling anyone.
    pub fn spoil(&self, path: &str, data: &[u8]) {
        fs::write(self.folder.root.join(path), data).unwrap();
    }

    pub async fn cap_upload(&self, rate: u64) {
        self.transfers.set_limits(Limits { upload_rate: rate, ..Limits::default() }).await.unwrap();
    }

    pub fn destination(&self) -> PathBuf {
        self.dir.path().join("got")
    }

    /// Completes an order.
    pub fn to(&self, sources: &[&Node], mut order: Order) -> Order {
        if order.destination.as_os_str().is_empty() {
            order.destination = self.destination();
        }
        order.sources = sources.iter().map(|n| n.test.device()).collect();
        order
    }

    pub async fn begin(&self, sources: &[&Node], order: Order) -> TransferId {
        self.transfers.start(self.to(sources, order)).await.unwrap()
    }

    /// Fetches, and waits for the end.
    pub async fn fetch(&self, sources: &[&Node], order: Order) -> Progress {
        let id = self.begin(sources, order).await;
        self.until(&id, |p| p.state.is_ended()).await
    }

    /// Waits for something.
    pub async fn until(&self, id: &TransferId, fits: impl Fn(&Progress) -> bool) -> Progress {
        let mut progress = self.transfers.watch(id).unwrap();
        let waited = tokio::time::timeout(PATIENCE, progress.wait_for(|p| fits(p))).await;
        match waited {
            Ok(found) => found.expect("the transfer is known as long as the node runs").clone(),
            Err(_) => panic!("it does not come: {:?}", *self.transfers.watch(id).unwrap().borrow()),
        }
    }

    /// Unfinished files below the destination.
    pub fn leftovers(&self) -> usize {
        fn count(directory: &Path) -> usize {
            let Ok(entries) = fs::read_dir(directory) else { return 0 };
            let one = |e: fs::DirEntry| match e.file_type().unwrap().is_dir() {
                true => count(&e.path()),
                false => usize::from(e.file_name().to_string_lossy().ends_with(".atrium-part")),
            };
            entries.map(|e| one(e.unwrap())).sum()
        }
        count(&self.destination())
    }

    /// Bytes from another node, as a transfer tells them.
    pub fn from(&self, progress: &Progress, other: &Node) -> u64 {
        progress.sources.iter().filter(|s| s.device == other.test.device()).map(|s| s.received_bytes).sum()
    }
}

/// Ended well, with these bytes.
pub fn assert_done(node: &Node, progress: &Progress, path: &str, data: &[u8]) {
    assert_eq!(progress.state, State::Done, "{progress:?}");
    assert!(fs::read(node.destination().join(path)).unwrap() == data, "the content is another");
}
