//! What tests of files have at hand: people, roots, short ways to put and look, and a check of everything that must hold.

use crate::fixture::{TestOffice, fresh, local};
use bytes::Bytes;
use central_server::app::answers::Once;
use central_server::app::caller::Caller;
use central_server::app::commits::{self, Expected, FileCommit, Published};
use central_server::app::directories::{self, Directory, NewDirectory, PrincipalName};
use central_server::app::entries::{self, Entry, FileTime};
use central_server::app::moves::{self, Move};
use central_server::app::{App, copies, records, trash, tree, uploads, versions};
use central_server::settings::Settings;
use common::error::{Error, Reason};
use common::model::{ChunkId, ChunkRef, EntryName, EntryPath, NodeId, Right, Role, RootName, UploadId};
use common::store::prefix_end;
use proto::record::v1 as record;
use std::collections::{BTreeMap, HashMap, HashSet};
use uuid::Uuid;

/// Bytes of a chunk in tests: small, so that small files have several.
pub const CHUNK: usize = 1_000;

/// An office with people and roots:
/// anna and bert are members, gast is a guest, chef an administrator;
/// public/plans: anna writes, bert manages, everyone reads; public/cases: case-sensitive, anna manages, bert reads;
/// public/board: everyone sees.
pub struct Desk {
    pub office: TestOffice,
    pub app: App,
    pub anna: Caller,
    pub bert: Caller,
    pub gast: Caller,
    pub chef: Caller,
}

impl Desk {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let office = TestOffice::with(change);
        for (name, role) in
            [("anna", Role::Member), ("bert", Role::Member), ("gast", Role::Guest), ("chef", Role::Admin)]
        {
            office.user(name, role).await;
        }
        let user = |name: &str| PrincipalName::User(name.to_owned());
        let everyone = PrincipalName::Everyone;
        let plans = vec![(user("anna"), Right::Write), (user("bert"), Right::Manage), (everyone.clone(), Right::Read)];
        make(&office.app, "plans", plans, false).await;
        make(&office.app, "cases", vec![(user("anna"), Right::Manage), (user("bert"), Right::Read)], true).await;
        make(&office.app, "board", vec![(everyone, Right::See)], false).await;
        let (anna, bert) = (office.caller("anna").await, office.caller("bert").await);
        let (gast, chef) = (office.caller("gast").await, office.caller("chef").await);
        Self { app: office.app.clone(), office, anna, bert, gast, chef }
    }

    pub async fn put(&self, who: &Caller, at: &str, data: &[u8]) -> Published {
        put(&self.app, who, at, data, Expected::Any).await
    }

    /// Puts a file and gives back its entry.
    pub async fn file(&self, at: &str, data: &[u8]) -> Entry {
        self.put(&self.anna, at, data).await.unwrap_or_else(|r| panic!("{at}: {:?}", r.error))
    }

    pub async fn dir(&self, at: &str) -> Entry {
        fresh(entries::make_directory(&self.app, &self.anna, path(at), true, Once::always()).await.unwrap())
    }

    pub fn look(&self, at: &str) -> Entry {
        entries::get(&self.app, &self.anna, &path(at)).unwrap_or_else(|e| panic!("{at}: {e:?}"))
    }

    pub fn gone(&self, at: &str) {
        let error = entries::get(&self.app, &self.anna, &path(at)).expect_err("it is still there");
        assert!(error.is(Reason::EntryUnknown), "{error:?}");
    }

    pub fn read(&self, at: &str, version: u64) -> Vec<u8> {
        read(&self.app, &self.anna, at, version)
    }

    pub fn used(&self, root: &str) -> (u64, u64) {
        let found = directories::load(&self.app.store, root).unwrap().unwrap();
        let usage = central_server::app::quota::load(&self.app.store, found.id).unwrap();
        (usage.used_bytes, usage.entry_count)
    }

    pub async fn limit(&self, root: &str, quota_bytes: u64) {
        set_quota(&self.app, root, quota_bytes).await;
    }

    /// Everything that must hold.
    pub fn check(&self) {
        check(&self.app);
    }
}

pub async fn set_quota(app: &App, root: &str, quota_bytes: u64) {
    match root.strip_prefix("home/") {
        Some(user) => {
            let user = user.to_owned();
            app.store.transact(move |txn| directories::set_home_quota(txn, &user, quota_bytes)).await.unwrap();
        }
        None => {
            let name = RootName::parse(root).unwrap();
            directories::set_quota(app, &local(), name, quota_bytes).await.unwrap();
        }
    }
}

pub async fn make(app: &App, name: &str, grants: Vec<(PrincipalName, Right)>, case_sensitive: bool) -> Directory {
    let name = EntryName::new(name).unwrap();
    let new = NewDirectory { name, grants, quota_bytes: 0, case_sensitive };
    fresh(directories::create(app, &local(), new, Once::always()).await.unwrap())
}

pub fn path(text: &str) -> EntryPath {
    EntryPath::parse(text).unwrap()
}

pub fn is<T: std::fmt::Debug>(result: Result<T, Error>, reason: Reason) {
    match result {
        Err(error) if error.is(reason) => {}
        other => panic!("{other:?} is not {reason:?}"),
    }
}

pub fn refused(result: Published, reason: Reason) {
    is(result.map_err(|r| r.error), reason);
}

pub fn chunks_of(data: &[u8]) -> Vec<ChunkRef> {
    data.chunks(CHUNK).map(|c| ChunkRef { id: ChunkId::of(c), len: c.len() as u32 }).collect()
}

/// Uploads content as UploadChunks does.
pub fn send(app: &App, who: &Caller, upload: UploadId, data: &[u8]) -> Vec<ChunkRef> {
    let owned = uploads::begin(app, who, upload).unwrap();
    for piece in data.chunks(CHUNK) {
        app.chunks.append(ChunkId::of(piece), &[Bytes::copy_from_slice(piece)], owned.lease()).unwrap();
    }
    let chunks = chunks_of(data);
    owned.arrived(&chunks).unwrap();
    chunks
}

pub fn order(at: &str, chunks: Vec<ChunkRef>, expected: Expected) -> FileCommit {
    FileCommit {
        path: path(at),
        chunks,
        expected,
        modify_time: Some(FileTime { seconds: 1_600_000_000, nanos: 7 }),
        mode: 0o644,
        make_parents: false,
        fencing_token: 0,
    }
}

pub async fn put(app: &App, who: &Caller, at: &str, data: &[u8], expected: Expected) -> Published {
    let upload = UploadId::generate();
    let chunks = send(app, who, upload, data);
    let result = commit_one(app, who, upload, order(at, chunks, expected)).await;
    // What the file does not hold may be reclaimed at once.
    uploads::begin(app, who, upload).unwrap().lease().clone().end();
    result
}

pub async fn commit_one(app: &App, who: &Caller, upload: UploadId, file: FileCommit) -> Published {
    commits::commit(app, who, upload, vec![Ok(file)]).await.unwrap().remove(0)
}

pub fn read(app: &App, who: &Caller, at: &str, version: u64) -> Vec<u8> {
    let open = versions::open(app, who, &path(at), version).unwrap();
    let mut out = Vec::new();
    for chunk in open.chunks.iter() {
        out.extend_from_slice(&app.chunks.read(&chunk.id, 0..chunk.len, true).unwrap());
    }
    assert_eq!(out.len() as u64, open.entry.size_bytes);
    out
}

fn all<M: prost::Message + Default>(app: &App, prefix: &[u8]) -> Vec<(Vec<u8>, M)> {
    let found = app.store.range(prefix, &prefix_end(prefix), 100_000).unwrap();
    found.into_iter().map(|(k, v)| (k[prefix.len()..].to_vec(), records::decode(v).unwrap())).collect()
}

fn node(bytes: &[u8]) -> NodeId {
    NodeId::from_slice(bytes).unwrap()
}

fn size(content: &Option<record::Content>) -> u64 {
    content.as_ref().map_or(0, |c| c.size_bytes)
}

/// Everything that must hold of the records, whatever was done:
/// every entry hangs below a root, the trash or a purge, once; every live directory knows its parent; every old version
/// belongs to a file; every root is charged for exactly what it holds; every chunk that is named is there.
pub fn check(app: &App) {
    let roots: Vec<(Vec<u8>, record::Root)> = all(app, b"s/");
    let entries: Vec<(Vec<u8>, record::Entry)> = all(app, b"f/");
    let parents: HashMap<NodeId, record::Parent> = all(app, b"p/").into_iter().map(|(k, p)| (node(&k), p)).collect();
    let trash: Vec<(Vec<u8>, record::Trash)> = all(app, b"t/");
    let purges: Vec<(Vec<u8>, record::Purge)> = all(app, b"z/");
    let olds: Vec<(Vec<u8>, record::Version)> = all(app, b"v/");

    let mut below: BTreeMap<NodeId, Vec<&record::Entry>> = BTreeMap::new();
    for (key, entry) in &entries {
        below.entry(node(&key[..16])).or_default().push(entry);
    }
    let mut sums: HashMap<NodeId, (u64, u64)> = HashMap::new();
    let mut holder: HashMap<NodeId, NodeId> = HashMap::new();
    let mut seen: HashSet<NodeId> = HashSet::new();
    let mut files: HashMap<NodeId, u64> = HashMap::new();
    // Directory, root, and the path of what can be reached from the root.
    let mut waiting: Vec<(NodeId, NodeId, Option<String>)> =
        roots.iter().map(|(_, r)| (node(&r.uid), node(&r.uid), Some(String::new()))).collect();
    let mut live: HashMap<NodeId, (NodeId, String)> = HashMap::new();
    let case: HashMap<NodeId, bool> = roots.iter().map(|(_, r)| (node(&r.uid), r.case_sensitive)).collect();
    let mut knows_parent: HashSet<NodeId> = HashSet::new();
    for (key, item) in &trash {
        let (root, entry) = (node(&key[..16]), item.entry.as_ref().unwrap());
        let id = tree::id_of(entry).unwrap();
        assert!(seen.insert(id), "{} is in two places", entry.name);
        let sum = sums.entry(root).or_default();
        *sum = (sum.0 + size(&entry.content), sum.1 + 1);
        holder.insert(id, root);
        if entry.directory {
            waiting.push((id, root, None));
        } else {
            files.insert(id, entry.version);
        }
    }
    for (key, purge) in &purges {
        waiting.push((node(key), node(&purge.root), None));
    }
    while let Some((directory, root, path)) = waiting.pop() {
        for entry in below.remove(&directory).unwrap_or_default() {
            let id = tree::id_of(entry).unwrap();
            assert!(seen.insert(id), "{} is in two places, or its own ancestor", entry.name);
            let sum = sums.entry(root).or_default();
            *sum = (sum.0 + size(&entry.content), sum.1 + 1);
            holder.insert(id, root);
            let path = path.as_ref().map(|above| match above.is_empty() {
                true => entry.name.clone(),
                false => format!("{above}/{}", entry.name),
            });
            if let Some(path) = &path {
                live.insert(id, (root, path.clone()));
            }
            if let Some(case) = case.get(&root) {
                let name = EntryName::new(entry.name.as_str()).unwrap();
                let key = tree::entry_key(directory, &name, *case);
                let found: Option<record::Entry> = records::load(&app.store, &key).unwrap();
                assert_eq!(found.as_ref(), Some(entry), "{} is not under its own key", entry.name);
            }
            if entry.directory {
                let parent = parents.get(&id).unwrap_or_else(|| panic!("{} knows no parent", entry.name));
                assert_eq!((node(&parent.parent), &parent.name, node(&parent.root)), (directory, &entry.name, root));
                knows_parent.insert(id);
                waiting.push((id, root, path));
            } else {
                files.insert(id, entry.version);
            }
        }
    }
    assert!(below.is_empty(), "entries that nothing leads to: {below:?}");
    for id in parents.keys() {
        assert!(knows_parent.contains(id), "a parent record of something that is not there");
    }
    for (key, version) in &olds {
        let file = node(&key[..16]);
        let present = files.get(&file).expect("an old version of a file that is not there");
        assert!(version.version < *present && version.version > 0);
        assert_eq!(key[16..], version.version.to_be_bytes());
        assert_eq!(holder[&file], node(&version.root), "an old version is charged to the wrong root");
        sums.entry(holder[&file]).or_default().0 += size(&version.content);
    }
    for (key, usage) in all::<record::Usage>(app, b"q/") {
        let sum = sums.remove(&node(&key)).unwrap_or_default();
        assert_eq!((usage.used_bytes, usage.entry_count), sum, "a root is charged for something else than it holds");
    }
    sums.retain(|_, sum| *sum != (0, 0));
    assert!(sums.is_empty(), "roots that are not charged: {sums:?}");

    let contents = entries.iter().filter_map(|(_, e)| e.content.as_ref());
    let contents = contents.chain(olds.iter().filter_map(|(_, v)| v.content.as_ref()));
    for content in contents.chain(trash.iter().filter_map(|(_, t)| t.entry.as_ref()?.content.as_ref())) {
        let chunks = versions::chunks_of(&app.chunks, content).unwrap();
        assert_eq!(chunks.iter().map(|c| u64::from(c.len)).sum::<u64>(), content.size_bytes);
        assert_eq!(common::model::manifest_digest(&chunks)[..], content.manifest_digest[..]);
        assert!(chunks.iter().all(|c| app.chunks.length(&c.id) == Some(c.len)));
    }
    check_log(app, &roots.iter().map(|(_, r)| node(&r.uid)).collect(), &live);
}

/// All change records with their revisions, in order.
pub fn changes(app: &App) -> Vec<(u64, record::Change)> {
    let mut out = Vec::new();
    let mut after = 0;
    loop {
        let page = app.store.changes(after, 1_000).unwrap();
        let Some(last) = page.last() else { return out };
        after = last.revision;
        for commit in page {
            for payload in commit.payloads {
                assert!(payload.len() <= 16 * 1024, "a payload has {} bytes", payload.len());
                let set: record::ChangeSet = records::decode(payload).unwrap();
                out.extend(set.changes.into_iter().map(|c| (commit.revision, c)));
            }
        }
    }
}

/// Replays the change log: what it tells of is the tree that is there. Only what hangs below a directory that came back
/// from the trash is told of by the directory alone.
fn check_log(app: &App, roots: &HashSet<NodeId>, live: &HashMap<NodeId, (NodeId, String)>) {
    let mut last = 0;
    let mut once = HashSet::new();
    let mut told: HashMap<NodeId, (NodeId, String)> = HashMap::new();
    let mut restored = HashSet::new();
    let mut deleted = HashSet::new();
    let inside = |at: &(NodeId, String), above: &(NodeId, String)| {
        at.0 == above.0 && at.1.strip_prefix(&above.1).is_some_and(|rest| rest.starts_with('/'))
    };
    for (revision, change) in changes(app) {
        assert!(revision >= last);
        last = revision;
        let key = (revision, change.uid.clone(), change.kind, change.version, change.path.clone());
        assert!(once.insert(key), "twice: {change:?}");
        let (id, at) = (node(&change.uid), (node(&change.root), change.path));
        match change.kind {
            1 => {
                if deleted.remove(&id) && change.directory {
                    restored.insert(id);
                }
                assert!(told.insert(id, at).is_none(), "created twice");
            }
            3 => {
                let from = (node(&change.previous_root), change.previous_path);
                for (_, below) in told.iter_mut().filter(|(_, below)| inside(below, &from)) {
                    *below = (at.0, format!("{}{}", at.1, &below.1[from.1.len()..]));
                }
                let before = told.insert(id, at);
                assert!(before.is_none_or(|b| b == from), "moved from elsewhere");
            }
            4 => {
                told.retain(|_, below| !inside(below, &at));
                assert!(told.remove(&id).is_none_or(|before| before == at), "deleted elsewhere");
                deleted.insert(id);
            }
            2 | 5 => assert!(told.get(&id).is_none_or(|before| *before == at), "changed elsewhere"),
            6 => {}
            other => panic!("unknown kind {other}"),
        }
    }
    told.retain(|_, (root, _)| roots.contains(root));
    for (id, at) in &told {
        assert_eq!(live.get(id), Some(at), "the log tells of something that is not there");
    }
    if restored.is_empty() {
        assert_eq!(told.len(), live.len(), "the log does not tell of everything");
    }
}

pub async fn rename(desk: &Desk, from: &str, to: &str, overwrite: bool) -> common::error::Result<entries::Entry> {
    let order = Move { source: path(from), destination: path(to), overwrite, etag: String::new() };
    moves::move_entry(&desk.app, &desk.anna, order, Once::always()).await.map(fresh)
}

pub async fn copy(desk: &Desk, from: &str, to: &str) -> common::error::Result<copies::Copied> {
    copies::copy(&desk.app, &desk.anna, path(from), path(to), Once::always()).await.map(fresh)
}

pub async fn delete(desk: &Desk, at: &str, recursive: bool) -> common::error::Result<Uuid> {
    trash::delete(&desk.app, &desk.anna, path(at), recursive, String::new(), Once::always()).await.map(fresh)
}

pub async fn restore(desk: &Desk, root: &str, id: Uuid, to: Option<&str>) -> common::error::Result<entries::Entry> {
    let (root, to) = (RootName::parse(root).unwrap(), to.map(path));
    trash::restore(&desk.app, &desk.anna, root, id, to, Once::always()).await.map(fresh)
}

/// The same stores with nothing in memory.
pub fn restarted(desk: &Desk) -> App {
    let mut app = desk.app.clone();
    app.files = Default::default();
    app
}
