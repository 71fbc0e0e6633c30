//! Reads a file through the chunk cache.
//!
//! The server is asked which version is current and for its manifest; chunks that are here are read here, the others are
//! asked for in one download and kept. Every chunk is checked against its digest, wherever it came from. With the server
//! away, a file that is known and wholly cached is served as it was, and says so.

use crate::cache::ChunkCache;
use crate::known::{KnownFile, KnownFiles};
use bytes::Bytes;
use common::bulk::{DownloadStream, Part, download};
use common::error::{Error, Reason, Result};
use common::model::{ChunkId, ChunkRef};
use common::rpc::OfficeConnection;
use common::status::from_status;
use proto::agent::v1 as agent;
use proto::v1;
use proto::v1::file_service_client::FileServiceClient;
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::Status;

/// Manifests longer than this (about 64 GiB) are not fetched through the agent.
const CHUNKS_MAX: usize = 65_536;
/// Data in one message to the caller.
const BLOCK: usize = 256 * 1024;

/// Where the parts of an answer go.
pub type Sink = mpsc::Sender<Result<agent::FetchResponse, Status>>;

/// A file to read, as an account.
pub struct Fetch {
    /// Chunks that are here.
    pub cache: Arc<ChunkCache>,
    /// Files whose manifests are here.
    pub known: Arc<KnownFiles>,
    /// The account's connection; `None` never asks the server.
    pub connection: Option<OfficeConnection>,
    /// Account name.
    pub account: String,
    /// As in `atrium.v1.Path`.
    pub root: String,
    /// As in `atrium.v1.Path`.
    pub path: String,
}

impl Fetch {
    /// Sends header and content.
    ///
    /// # Errors
    /// What the server says, `NOT_CACHED`, or `CANCELLED` when the caller has gone.
    pub async fn run(self, sink: &Sink) -> Result<()> {
        let (file, current) = match &self.connection {
            Some(connection) => match self.ask(connection).await {
                Ok(file) => (file, true),
                Err(error) if error.is_transient() => (self.remembered()?, false),
                Err(error) => {
                    // Gone, or not ours any more: what is remembered must not be served later.
                    self.known.forget(&self.account, &self.root, &self.path);
                    return Err(error);
                }
            },
            None => (self.remembered()?, false),
        };
        let chunks = file.chunks().ok_or_else(|| self.not_cached())?;
        let cached: u64 = chunks.iter().filter(|c| self.cache.has(&c.id)).map(|c| u64::from(c.len)).sum();
        if !current && cached < file.size_bytes {
            return Err(self.not_cached());
        }
        let header = agent::FetchHeader {
            size_bytes: file.size_bytes,
            version: file.version,
            modify_time: Some(prost_types::Timestamp { seconds: file.modified.0, nanos: file.modified.1 }),
            mode: file.mode,
            maybe_stale: !current,
            cached_bytes: cached,
        };
        send(sink, agent::fetch_response::Part::Header(header)).await?;
        let mut remote = Remote::new(&self, &file, &chunks, current);
        let mut offset = 0;
        for chunk in &chunks {
            let cache = self.cache.clone();
            let id = chunk.id;
            let here = tokio::task::spawn_blocking(move || cache.get(&id))
                .await
                .map_err(|e| Error::internal("reading the cache").caused_by(e))?;
            let data = match here {
                Some(data) => Bytes::from(data),
                None => remote.chunk(chunk, offset).await?,
            };
            offset += u64::from(chunk.len);
            let mut rest = data;
            while !rest.is_empty() {
                let block = rest.split_to(rest.len().min(BLOCK));
                send(sink, agent::fetch_response::Part::Data(block)).await?;
            }
        }
        if current {
            self.known.put(&self.account, &self.root, &self.path, &file);
        }
        Ok(())
    }

    async fn ask(&self, connection: &OfficeConnection) -> Result<KnownFile> {
        let mut files = FileServiceClient::new(connection.control());
        let path = Some(v1::Path { root: self.root.clone(), path: self.path.clone() });
        let mut chunks = Vec::new();
        let mut version = 0;
        let mut token = String::new();
        let entry = files
            .get_entry(v1::GetEntryRequest { path: path.clone() })
            .await
            .map_err(|s| from_status(&s))?
            .into_inner();
        if entry.kind != v1::EntryKind::File as i32 {
            return Err(Error::new(Reason::IsADirectory, "this is a directory"));
        }
        version = version.max(entry.version);
        loop {
            let request = v1::GetManifestRequest { path: path.clone(), version, page_size: 0, page_token: token };
            let page = files.get_manifest(request).await.map_err(|s| from_status(&s))?.into_inner();
            for chunk in &page.chunks {
                let id = ChunkId::from_slice(&chunk.digest);
                let id = id.ok_or_else(|| {
                    Error::new(Reason::MessageMalformed, "the server sent a digest of a wrong length")
                })?;
                chunks.push(ChunkRef { id, len: chunk.length_bytes });
            }
            if chunks.len() > CHUNKS_MAX {
                return Err(Error::new(Reason::TreeTooLarge, "the file is too large to be read through the agent")
                    .fix_is("get it without the agent's cache: `atrium get --direct`"));
            }
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        let modified = entry.modify_time.map_or((0, 0), |t| (t.seconds, t.nanos));
        Ok(KnownFile::new(entry.size_bytes, entry.version, modified, entry.mode, &chunks))
    }

    fn remembered(&self) -> Result<KnownFile> {
        self.known.get(&self.account, &self.root, &self.path).ok_or_else(|| self.not_cached())
    }

    fn not_cached(&self) -> Error {
        Error::new(Reason::NotCached, "the server is away, and the file is not in this machine's cache")
    }
}

async fn send(sink: &Sink, part: agent::fetch_response::Part) -> Result<()> {
    sink.send(Ok(agent::FetchResponse { part: Some(part) }))
        .await
        .map_err(|_| Error::new(Reason::Cancelled, "the caller has gone"))
}

/// The chunks that are not here, in file order, over one download that is opened when the first is needed.
struct Remote<'a> {
    fetch: &'a Fetch,
    file: &'a KnownFile,
    chunks: &'a [ChunkRef],
    current: bool,
    stream: Option<DownloadStream>,
    /// Content that came and was not taken yet, and its place in the file.
    pending: Vec<Bytes>,
    pending_offset: u64,
    pending_len: usize,
}

impl<'a> Remote<'a> {
    fn new(fetch: &'a Fetch, file: &'a KnownFile, chunks: &'a [ChunkRef], current: bool) -> Self {
        Self { fetch, file, chunks, current, stream: None, pending: Vec::new(), pending_offset: 0, pending_len: 0 }
    }

    /// The content of this chunk at this place of the file.
    async fn chunk(&mut self, chunk: &ChunkRef, offset: u64) -> Result<Bytes> {
        let connection = self.fetch.connection.as_ref().filter(|_| self.current);
        let connection = connection.ok_or_else(|| self.fetch.not_cached())?;
        if self.stream.is_none() {
            self.stream = Some(self.open(connection, offset).await?);
        }
        let data = match self.read(offset, chunk.len as usize).await? {
            Some(data) => data,
            None => {
                // The cache lost something that the open download does not bring: begin again from here.
                self.stream = Some(self.open(connection, offset).await?);
                let missing = || Error::new(Reason::ServerUnreachable, "the download ended early");
                self.read(offset, chunk.len as usize).await?.ok_or_else(missing)?
            }
        };
        if ChunkId::of(&data) != chunk.id {
            return Err(Error::new(Reason::ChunkDamaged, "a chunk that the server sent does not match its digest"));
        }
        let (cache, id, kept) = (self.fetch.cache.clone(), chunk.id, data.clone());
        tokio::task::spawn_blocking(move || cache.put(&id, &kept))
            .await
            .map_err(|e| Error::internal("writing the cache").caused_by(e))?;
        Ok(data)
    }

    /// Asks for everything from here on that is not cached.
    async fn open(&mut self, connection: &OfficeConnection, from: u64) -> Result<DownloadStream> {
        let mut ranges: Vec<v1::ByteRange> = Vec::new();
        let mut offset = 0;
        for chunk in self.chunks {
            let length = u64::from(chunk.len);
            if offset == from || (offset > from && !self.fetch.cache.has(&chunk.id)) {
                match ranges.last_mut() {
                    Some(last) if last.offset_bytes + last.length_bytes == offset => last.length_bytes += length,
                    _ => ranges.push(v1::ByteRange { offset_bytes: offset, length_bytes: length }),
                }
            }
            offset += length;
        }
        // A server takes 10,000 ranges; beyond that, more than is needed is asked for.
        if ranges.len() > 10_000 {
            ranges = vec![v1::ByteRange { offset_bytes: from, length_bytes: 0 }];
        }
        self.pending.clear();
        self.pending_len = 0;
        let item = v1::DownloadItem {
            path: Some(v1::Path { root: self.fetch.root.clone(), path: self.fetch.path.clone() }),
            version: self.file.version,
            ranges,
            with_manifest: false,
        };
        let request = v1::DownloadRequest { items: vec![item], client_verifies: true, block_size_bytes: 0 };
        download(connection.bulk(), &request).await
    }

    /// This piece of the file; `None` if the download does not bring it. What comes before it is dropped: the cache had
    /// it after all.
    async fn read(&mut self, offset: u64, length: usize) -> Result<Option<Bytes>> {
        loop {
            self.drop_before(offset);
            if self.pending_len > 0 && self.pending_offset > offset {
                return Ok(None);
            }
            if self.pending_len >= length {
                return Ok(Some(self.take(length)));
            }
            let Some(stream) = &mut self.stream else { return Ok(None) };
            match stream.next().await?.map(|p| p.part) {
                Some(Part::Data { offset: at, data }) => {
                    if self.pending_len == 0 {
                        self.pending_offset = at;
                    } else if at != self.pending_offset + self.pending_len as u64 {
                        // A gap: the piece that was begun is not wanted any more.
                        self.pending.clear();
                        self.pending_len = 0;
                        self.pending_offset = at;
                    }
                    self.pending_len += data.len();
                    self.pending.extend(data.into_pieces());
                }
                Some(Part::Failed(error)) => return Err(error),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    fn drop_before(&mut self, offset: u64) {
        let surplus = offset.saturating_sub(self.pending_offset).min(self.pending_len as u64) as usize;
        if surplus > 0 {
            self.take(surplus);
        }
    }

    fn take(&mut self, length: usize) -> Bytes {
        let mut out = bytes::BytesMut::with_capacity(length);
        while out.len() < length {
            let mut piece = self.pending.remove(0);
            let wanted = length - out.len();
            if piece.len() > wanted {
                self.pending.insert(0, piece.split_off(wanted));
            }
            out.extend_from_slice(&piece);
        }
        self.pending_len -= length;
        self.pending_offset += length as u64;
        out.freeze()
    }
}
