//! A central server in memory that can be told to misbehave, and a wire in front of it that can be cut.

use crate::office::Office;
use atrium_common::bulk::{BulkHandler, BulkServer, BulkSettings, DownloadSink, UploadStream};
use atrium_common::error::{Error, Reason, Result};
use atrium_common::flow::{PutOptions, RetryPolicy};
use atrium_common::model::{ChunkId, ChunkRef, EntryPath, UploadId, manifest_digest};
use atrium_common::rpc::{ConnectOptions, OfficeConnection, tuned_server};
use atrium_common::status::{to_item_error, to_status};
use atrium_common::tls::{AcceptLimits, Acceptor};
use atrium_common::wire::{chunks_from, chunks_to, path_from};
use bytes::Bytes;
use http::request::Parts;
use parking_lot::Mutex;
use proto::v1;
use proto::v1::file_service_server::{FileService, FileServiceServer};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status};

/// Patience for tests: many tries, short waits.
pub const RETRY: RetryPolicy = RetryPolicy {
    first: Duration::from_millis(1),
    longest: Duration::from_millis(20),
    retries: 10_000,
    in_all: Duration::from_secs(120),
};

/// Two tries, then the end.
pub const IMPATIENT: RetryPolicy = RetryPolicy { retries: 2, ..RETRY };

/// What the server does wrong.
#[derive(Default)]
pub struct Faults {
    /// So many of the next uploaded chunks are confirmed and lost.
    pub lose_chunks: usize,
    /// So many of the next chunks that are sent unverified are sent with a flipped bit.
    pub damage: usize,
    /// Chunks of a file of this name are always damaged.
    pub damage_always: Option<String>,
    /// Commits of such names are refused.
    pub refuse: Option<String>,
    /// So many of the next commits are done but their answer is UNAVAILABLE.
    pub swallow_commits: usize,
    /// Names that are added to every listing as files.
    pub hostile_names: Vec<String>,
}

/// What the server has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub uploaded_bytes: u64,
    pub downloaded_bytes: u64,
    pub commits: u64,
    pub verified_downloads: u64,
}

#[derive(Clone)]
struct File {
    entry: v1::Entry,
    chunks: Vec<ChunkRef>,
}

#[derive(Default)]
struct State {
    /// By root and path; `None` is a directory.
    entries: BTreeMap<(String, String), Option<File>>,
    chunks: HashMap<ChunkId, Bytes>,
    /// What each upload brought or was told it may use.
    uploads: HashMap<UploadId, HashSet<ChunkId>>,
    faults: Faults,
    seen: Seen,
}

/// The server's memory.
#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<State>>);

type Key = (String, String);

fn key(path: &EntryPath) -> Key {
    (path.root.to_string(), path.relative())
}

fn parent(key: &Key) -> Option<Key> {
    if key.1.is_empty() {
        return None;
    }
    Some((key.0.clone(), key.1.rsplit_once('/').map_or("", |(p, _)| p).to_owned()))
}

fn unknown(key: &Key) -> Error {
    Error::new(Reason::EntryUnknown, format!("{} is not there", key.1))
}

impl State {
    fn exists(&self, key: &Key) -> bool {
        key.1.is_empty() || self.entries.contains_key(key)
    }

    fn file(&self, path: Option<&v1::Path>) -> Result<File> {
        let key = key(&path_from(path, "path")?);
        match self.entries.get(&key) {
            Some(Some(file)) => Ok(file.clone()),
            Some(None) => Err(Error::new(Reason::IsADirectory, "a directory")),
            None => Err(unknown(&key)),
        }
    }

    fn describe(&self, key: &Key) -> Option<v1::Entry> {
        let name = key.1.rsplit('/').next().unwrap_or_default().to_owned();
        match self.entries.get(key) {
            Some(Some(file)) => Some(file.entry.clone()),
            found if found.is_some() || key.1.is_empty() => {
                Some(v1::Entry { kind: v1::EntryKind::Directory as i32, display_name: name, ..Default::default() })
            }
            _ => None,
        }
    }

    fn make_parents(&mut self, key: &Key) -> Result<()> {
        let mut up = parent(key);
        while let Some(directory) = up {
            up = parent(&directory);
            if !directory.1.is_empty() {
                match self.entries.get(&directory) {
                    Some(Some(_)) => return Err(Error::new(Reason::NotADirectory, "a file is in the way")),
                    Some(None) => {}
                    None => drop(self.entries.insert(directory, None)),
                }
            }
        }
        Ok(())
    }

    fn commit(&mut self, upload: UploadId, file: &v1::FileCommit) -> Result<v1::Entry, (Error, Vec<u32>)> {
        let plain = |e| (e, Vec::new());
        let path = path_from(file.path.as_ref(), "path").map_err(plain)?;
        let key = key(&path);
        if self.faults.refuse.as_ref().is_some_and(|r| key.1.contains(r)) {
            return Err(plain(Error::new(Reason::AccessDenied, "this one is refused")));
        }
        let chunks = chunks_from(&file.chunks, 1 << 20).map_err(plain)?;
        let owned = self.uploads.entry(upload).or_default();
        let lacks = |c: &ChunkRef| !owned.contains(&c.id) || !self.chunks.contains_key(&c.id);
        let missing: Vec<u32> = chunks.iter().enumerate().filter(|(_, c)| lacks(c)).map(|(n, _)| n as u32).collect();
        if !missing.is_empty() {
            return Err((Error::new(Reason::ChunksMissing, "some are missing"), missing));
        }
        let present = match self.entries.get(&key) {
            Some(None) => return Err(plain(Error::new(Reason::IsADirectory, "a directory"))),
            Some(Some(file)) => Some(file.entry.clone()),
            None => None,
        };
        let digest = manifest_digest(&chunks);
        // The same again: its answer may have been lost.
        if let Some(present) =
            present.as_ref().filter(|e| e.etag == upload.to_string() && e.manifest_digest[..] == digest)
        {
            return Ok(present.clone());
        }
        match (&file.expected, &present) {
            (Some(v1::file_commit::Expected::Absent(true)), Some(_)) => {
                return Err(plain(Error::new(Reason::EntryExists, "it is there")));
            }
            (Some(v1::file_commit::Expected::Version(v)), found) if found.as_ref().map(|e| e.version) != Some(*v) => {
                return Err(plain(Error::new(Reason::VersionStale, "another version")));
            }
            _ => {}
        }
        if file.make_parents {
            self.make_parents(&key).map_err(plain)?;
        } else if parent(&key).is_some_and(|p| !self.exists(&p)) {
            return Err(plain(unknown(&key)));
        }
        let entry = v1::Entry {
            path: file.path.clone(),
            kind: v1::EntryKind::File as i32,
            size_bytes: chunks.iter().map(|c| u64::from(c.len)).sum(),
            modify_time: file.modify_time,
            mode: file.mode,
            version: present.map_or(1, |e| e.version + 1),
            etag: upload.to_string(),
            manifest_digest: Bytes::copy_from_slice(&digest),
            display_name: key.1.rsplit('/').next().unwrap_or_default().to_owned(),
            ..Default::default()
        };
        self.entries.insert(key, Some(File { entry: entry.clone(), chunks }));
        Ok(entry)
    }
}

impl Fake {
    /// Makes it misbehave.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.0.lock().faults);
    }

    /// What it has seen since the last time, and forgets it.
    pub fn seen(&self) -> Seen {
        std::mem::take(&mut self.0.lock().seen)
    }

    /// A file's content.
    pub fn content(&self, path: &str) -> Option<Vec<u8>> {
        let path = EntryPath::parse(path).unwrap();
        let state = self.0.lock();
        let file = state.entries.get(&key(&path))?.as_ref()?;
        Some(file.chunks.iter().flat_map(|c| state.chunks[&c.id].to_vec()).collect())
    }

    /// All paths below a root, directories with a '/' at the end.
    pub fn paths(&self) -> Vec<String> {
        let state = self.0.lock();
        let name = |(k, v): (&Key, &Option<File>)| if v.is_some() { k.1.clone() } else { format!("{}/", k.1) };
        state.entries.iter().map(name).collect()
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl FileService for Fake {
    async fn get_entry(&self, request: Request<v1::GetEntryRequest>) -> Answer<v1::Entry> {
        let key = key(&path_from(request.get_ref().path.as_ref(), "path").map_err(|e| to_status(&e))?);
        self.0.lock().describe(&key).map(Response::new).ok_or_else(|| to_status(&unknown(&key)))
    }

    async fn list_entries(&self, request: Request<v1::ListEntriesRequest>) -> Answer<v1::ListEntriesResponse> {
        let request = request.into_inner();
        let key = key(&path_from(request.path.as_ref(), "path").map_err(|e| to_status(&e))?);
        let state = self.0.lock();
        if !state.exists(&key) {
            return Err(to_status(&unknown(&key)));
        }
        let from: usize = request.page_token.parse().unwrap_or(0);
        let below = if key.1.is_empty() { String::new() } else { format!("{}/", key.1) };
        let children: Vec<&Key> = state
            .entries
            .range((key.0.clone(), below.clone())..)
            .map(|(k, _)| k)
            .take_while(|k| k.0 == key.0 && k.1.starts_with(&below))
            .filter(|k| !k.1[below.len()..].contains('/'))
            .collect();
        let mut entries: Vec<_> = children.iter().skip(from).take(300).filter_map(|k| state.describe(k)).collect();
        let next = from + entries.len();
        if from == 0 {
            entries.extend(state.faults.hostile_names.iter().map(|name| v1::Entry {
                kind: v1::EntryKind::File as i32,
                size_bytes: 5,
                display_name: name.clone(),
                ..Default::default()
            }));
        }
        let next_page_token = if next < children.len() { next.to_string() } else { String::new() };
        Ok(Response::new(v1::ListEntriesResponse { entries, next_page_token }))
    }

    async fn make_directory(&self, request: Request<v1::MakeDirectoryRequest>) -> Answer<v1::Entry> {
        let key = key(&path_from(request.get_ref().path.as_ref(), "path").map_err(|e| to_status(&e))?);
        let mut state = self.0.lock();
        state.make_parents(&key).map_err(|e| to_status(&e))?;
        if !key.1.is_empty() {
            state.entries.entry(key.clone()).or_default();
        }
        Ok(Response::new(state.describe(&key).unwrap_or_default()))
    }

    async fn get_manifest(&self, request: Request<v1::GetManifestRequest>) -> Answer<v1::GetManifestResponse> {
        let request = request.into_inner();
        let file = self.0.lock().file(request.path.as_ref()).map_err(|e| to_status(&e))?;
        if request.version != 0 && request.version != file.entry.version {
            return Err(to_status(&Error::new(Reason::VersionUnknown, "only one is kept")));
        }
        // Small pages, so that there are several.
        let from: usize = request.page_token.parse().unwrap_or(0);
        let to = file.chunks.len().min(from + 10);
        Ok(Response::new(v1::GetManifestResponse {
            chunks: chunks_to(&file.chunks[from..to]),
            next_page_token: if to < file.chunks.len() { to.to_string() } else { String::new() },
            version: file.entry.version,
            manifest_digest: file.entry.manifest_digest,
            size_bytes: file.entry.size_bytes,
        }))
    }

    async fn find_missing_chunks(
        &self,
        request: Request<v1::FindMissingChunksRequest>,
    ) -> Answer<v1::FindMissingChunksResponse> {
        let request = request.into_inner();
        let upload: UploadId = request.upload_id.parse().map_err(|_| Status::invalid_argument("no uuid"))?;
        let chunks = chunks_from(&request.chunks, 65_536).map_err(|e| to_status(&e))?;
        let mut state = self.0.lock();
        let mut may: HashSet<ChunkId> = state.uploads.get(&upload).cloned().unwrap_or_default();
        for base in &request.bases {
            if let Ok(file) = state.file(Some(base)) {
                may.extend(file.chunks.iter().map(|c| c.id));
            }
        }
        let has = |c: &ChunkRef| may.contains(&c.id) && state.chunks.contains_key(&c.id);
        let (found, missing): (Vec<_>, Vec<_>) = chunks.iter().enumerate().partition(|(_, c)| has(c));
        let found: Vec<ChunkId> = found.iter().map(|(_, c)| c.id).collect();
        let missing = missing.iter().map(|(n, _)| *n as u32).collect();
        state.uploads.entry(upload).or_default().extend(found);
        Ok(Response::new(v1::FindMissingChunksResponse { missing }))
    }

    async fn issue_read_ticket(&self, _: Request<v1::IssueReadTicketRequest>) -> Answer<v1::IssueReadTicketResponse> {
        Err(Status::unimplemented("no test needs it"))
    }

    async fn commit_files(&self, request: Request<v1::CommitFilesRequest>) -> Answer<v1::CommitFilesResponse> {
        let request = request.into_inner();
        let upload: UploadId = request.upload_id.parse().map_err(|_| Status::invalid_argument("no uuid"))?;
        let mut state = self.0.lock();
        state.seen.commits += 1;
        let mut results = Vec::new();
        for file in &request.files {
            results.push(match state.commit(upload, file) {
                Ok(entry) => v1::FileCommitResult {
                    result: Some(v1::file_commit_result::Result::Entry(entry)),
                    missing_chunks: Vec::new(),
                },
                Err((error, missing_chunks)) => v1::FileCommitResult {
                    result: Some(v1::file_commit_result::Result::Error(to_item_error(&error))),
                    missing_chunks,
                },
            });
        }
        if state.faults.swallow_commits > 0 {
            state.faults.swallow_commits -= 1;
            return Err(to_status(&Error::new(Reason::ShuttingDown, "the answer is lost")));
        }
        Ok(Response::new(v1::CommitFilesResponse { results }))
    }

    async fn move_entry(&self, _: Request<v1::MoveEntryRequest>) -> Answer<v1::Entry> {
        Err(Status::unimplemented("not needed"))
    }
    async fn copy_entry(&self, _: Request<v1::CopyEntryRequest>) -> Answer<v1::CopyEntryResponse> {
        Err(Status::unimplemented("not needed"))
    }
    async fn delete_entry(&self, _: Request<v1::DeleteEntryRequest>) -> Answer<v1::DeleteEntryResponse> {
        Err(Status::unimplemented("not needed"))
    }
    async fn list_trash(&self, _: Request<v1::ListTrashRequest>) -> Answer<v1::ListTrashResponse> {
        Err(Status::unimplemented("not needed"))
    }
    async fn restore_trash(&self, _: Request<v1::RestoreTrashRequest>) -> Answer<v1::Entry> {
        Err(Status::unimplemented("not needed"))
    }
    async fn purge_trash(&self, _: Request<v1::PurgeTrashRequest>) -> Answer<v1::PurgeTrashResponse> {
        Err(Status::unimplemented("not needed"))
    }
    async fn list_versions(&self, _: Request<v1::ListVersionsRequest>) -> Answer<v1::ListVersionsResponse> {
        Err(Status::unimplemented("not needed"))
    }
    async fn restore_version(&self, _: Request<v1::RestoreVersionRequest>) -> Answer<v1::Entry> {
        Err(Status::unimplemented("not needed"))
    }
    async fn lock_entry(&self, _: Request<v1::LockEntryRequest>) -> Answer<v1::Entry> {
        Err(Status::unimplemented("not needed"))
    }
    async fn unlock_entry(&self, _: Request<v1::UnlockEntryRequest>) -> Answer<v1::Entry> {
        Err(Status::unimplemented("not needed"))
    }
}

impl BulkHandler for Fake {
    async fn upload(&self, _: Parts, mut stream: UploadStream) -> Result<v1::UploadChunksResponse> {
        let mut answer = v1::UploadChunksResponse::default();
        while let Some((upload, chunks)) = stream.next().await? {
            for (id, data) in chunks {
                if data.chunk_id() != id {
                    return Err(Error::new(Reason::ChunkDigestMismatch, "not what it says"));
                }
                let mut state = self.0.lock();
                state.seen.uploaded_bytes += data.len() as u64;
                answer.chunk_count += 1;
                answer.received_bytes += data.len() as u64;
                if state.faults.lose_chunks > 0 {
                    state.faults.lose_chunks -= 1;
                    continue;
                }
                state.chunks.insert(id, data.compact());
                state.uploads.entry(upload).or_default().insert(id);
            }
        }
        Ok(answer)
    }

    async fn download(&self, _: Parts, request: v1::DownloadRequest, sink: &mut DownloadSink) -> Result<()> {
        if !request.client_verifies {
            self.0.lock().seen.verified_downloads += 1;
        }
        for (n, item) in request.items.iter().enumerate() {
            let n = n as u32;
            let file = self.0.lock().file(item.path.as_ref());
            let file = match file {
                Ok(file) => file,
                Err(error) => {
                    sink.failed(n, &error).await?;
                    continue;
                }
            };
            sink.header(n, &file.entry, if item.with_manifest { &file.chunks } else { &[] }).await?;
            let whole = [v1::ByteRange::default()];
            let ranges = if item.ranges.is_empty() { &whole[..] } else { &item.ranges[..] };
            let mut sent = 0;
            for range in ranges {
                let end = match range.length_bytes {
                    0 => file.entry.size_bytes,
                    len => range.offset_bytes + len,
                };
                let mut at = 0;
                for chunk in &file.chunks {
                    let (from, to) = (at.max(range.offset_bytes), (at + u64::from(chunk.len)).min(end));
                    if from < to {
                        let data = self.outgoing(chunk, &file.entry, request.client_verifies);
                        let part = data.slice((from - at) as usize..(to - at) as usize);
                        sent += part.len() as u64;
                        sink.data(n, from, part).await?;
                    }
                    at += u64::from(chunk.len);
                }
            }
            sink.trailer(n, &manifest_digest(&file.chunks), sent).await?;
        }
        Ok(())
    }
}

impl Fake {
    fn outgoing(&self, chunk: &ChunkRef, entry: &v1::Entry, unverified: bool) -> Bytes {
        let mut state = self.0.lock();
        let data = state.chunks[&chunk.id].clone();
        state.seen.downloaded_bytes += data.len() as u64;
        let always = state.faults.damage_always.as_deref() == Some(entry.display_name.as_str());
        if !always && (state.faults.damage == 0 || !unverified) {
            return data;
        }
        state.faults.damage = state.faults.damage.saturating_sub(1);
        let mut data = data.to_vec();
        let at = data.len() / 2;
        data[at] ^= 1;
        data.into()
    }
}

/// A server, the wire to it, and a client's connection.
pub struct Place {
    pub fake: Fake,
    pub wire: Wire,
    pub connection: OfficeConnection,
    pub dir: tempfile::TempDir,
    _stop: DropGuard,
}

impl Place {
    pub async fn new() -> Self {
        let office = Office::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let acceptor = Acceptor::new(listener, office.tls.clone(), AcceptLimits::default()).unwrap();
        let wire = Wire::to(acceptor.local_addr()).await;
        let fake = Fake::default();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let (files, bulk) = (fake.clone(), Arc::new(fake.clone()));
        tokio::spawn(async move {
            tuned_server()
                .add_service(FileServiceServer::new(files).max_decoding_message_size(32 << 20))
                .add_service(BulkServer::new(bulk, BulkSettings::default()))
                .serve_with_incoming_shutdown(acceptor, stopped)
                .await
                .unwrap();
        });
        let connection =
            OfficeConnection::lazy(&ConnectOptions::new(wire.address.to_string(), office.ca.ca_pem())).unwrap();
        Self { fake, wire, connection, dir: tempfile::tempdir().unwrap(), _stop: stop.drop_guard() }
    }

    /// A path in the test's directory.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// A file there.
    pub fn file(&self, name: &str, content: &[u8]) -> std::path::PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }
}

pub fn put_options() -> PutOptions {
    PutOptions { make_parents: true, retry: RETRY, ..PutOptions::default() }
}

pub fn at(path: &str) -> EntryPath {
    EntryPath::parse(path).unwrap()
}

/// Content without repetitions that depends on a seed.
pub fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Passes connections on until a cut is due.
pub struct Wire {
    pub address: SocketAddr,
    cuts: Arc<Mutex<Cuts>>,
    _stop: DropGuard,
}

#[derive(Default)]
struct Cuts {
    /// After so many bytes in all, everything is cut; then the next number counts.
    due: VecDeque<u64>,
    passed: u64,
    /// All connections end when this is cancelled; there is a new one after each cut.
    now: CancellationToken,
    /// Nobody gets through.
    down: bool,
    done: u64,
}

impl Wire {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cuts: Arc<Mutex<Cuts>> = Arc::default();
        let stop = CancellationToken::new();
        let (stopped, shared) = (stop.clone(), cuts.clone());
        tokio::spawn(async move {
            while let Some(Ok((client, _))) = stopped.run_until_cancelled(listener.accept()).await {
                let (cut, down) = {
                    let cuts = shared.lock();
                    (cuts.now.clone(), cuts.down)
                };
                if down {
                    continue;
                }
                let (shared, stopped) = (shared.clone(), stopped.clone());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    let (client_read, client_write) = client.into_split();
                    let (server_read, server_write) = server.into_split();
                    tokio::select! {
                        () = pass(client_read, server_write, &shared) => {}
                        () = pass(server_read, client_write, &shared) => {}
                        () = cut.cancelled() => {}
                        () = stopped.cancelled() => {}
                    }
                });
            }
        });
        Self { address, cuts, _stop: stop.drop_guard() }
    }

    /// Cuts everything after so many bytes, then again after the next number, and so on.
    pub fn cut_after(&self, due: impl IntoIterator<Item = u64>) {
        let mut cuts = self.cuts.lock();
        cuts.passed = 0;
        cuts.due = due.into_iter().collect();
    }

    /// Cuts everything now, and lets nobody through any more.
    pub fn down(&self) {
        let mut cuts = self.cuts.lock();
        cuts.down = true;
        cuts.now.cancel();
    }

    /// Cuts so far.
    pub fn cuts_done(&self) -> u64 {
        self.cuts.lock().done
    }
}

async fn pass(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf, cuts: &Mutex<Cuts>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(n @ 1..) = from.read(&mut buffer).await else { return };
        {
            let mut cuts = cuts.lock();
            cuts.passed += n as u64;
            if cuts.due.front().is_some_and(|due| cuts.passed >= *due) {
                cuts.due.pop_front();
                cuts.passed = 0;
                cuts.done += 1;
                std::mem::take(&mut cuts.now).cancel();
                return;
            }
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
