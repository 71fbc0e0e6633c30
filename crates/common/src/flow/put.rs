//! One file up.

use super::PARALLEL_FROM;
use super::link::Link;
use super::local::{LocalFile, PositionReader, blocking, changed, local_error};
use super::options::{Expect, PutOptions};
use super::progress::{Event, Progress, Tracker};
use super::same::Same;
use super::send::{Piece, Pieces, Placed, make_sure, read_chunk, send_again, send_all};
use crate::chunk::{ChunkedPiece, Chunker, ParallelChunker};
use crate::error::{Error, Reason, Result};
use crate::model::{ChunkId, ChunkRef, EntryPath, UploadId, manifest_digest};
use crate::rpc::OfficeConnection;
use crate::status::from_item_error;
use crate::wire::{chunks_to, path_to, timestamp_from_system};
use proto::v1;
use std::collections::HashSet;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::sync::Arc;

/// Files up to this size are read at once by one thread; larger ones are cut and hashed while they are sent.
const WHOLE: u64 = 4 * 1024 * 1024;
/// The server is asked about so many chunks at a time, first fewer so that sending begins soon ...
const FIRST_WINDOW: usize = 8;
const WINDOW: usize = 48;
/// ... or about so many bytes, because the chunks are held until the answer.
const WINDOW_BYTES: u64 = 48 * 1024 * 1024;
/// Chunks that are known to be the same are asked about so many at a time: about 1 GiB.
const SAME_WINDOW: usize = 1024;
/// A file that changes while it is read is read again so many times.
const RESTARTS: u32 = 3;
/// Commits that say that chunks are missing, which are then sent again.
const COMMITS: u32 = 5;

/// Puts a local file. Gives the entry as published.
///
/// # Errors
/// `LOCAL_FILE_CHANGED` if the file did not hold still for three attempts; what the server said; `IO_FAILED` for the
/// local file.
pub async fn put_file(
    connection: &OfficeConnection,
    local: &Path,
    to: &EntryPath,
    options: &PutOptions,
    progress: &dyn Progress,
) -> Result<v1::Entry> {
    let tracker = Tracker::new(progress);
    tracker.expect(1, 0);
    let link = Link { connection, tracker: &tracker, retry: options.retry };
    let (entry, _) = put_tracked(&link, local, true, to, options, 0).await?;
    tracker.file_done();
    Ok(entry)
}

/// Puts what a reader gives, a pipe for example. The content is kept in an unnamed file in the system's directory for
/// temporary files until it has arrived, because what breaks off must be sent again.
///
/// # Errors
/// As [`put_file`].
pub async fn put_reader(
    connection: &OfficeConnection,
    mut reader: impl Read + Send + 'static,
    to: &EntryPath,
    options: &PutOptions,
    progress: &dyn Progress,
) -> Result<v1::Entry> {
    let tracker = Tracker::new(progress);
    tracker.expect(1, 0);
    let link = Link { connection, tracker: &tracker, retry: options.retry };
    let spool = blocking(move || {
        let path = Path::new("the input");
        let mut file = tempfile::tempfile().map_err(|e| local_error(path, "kept", e))?;
        io::copy(&mut reader, &mut file).map_err(|e| local_error(path, "kept", e))?;
        file.rewind().map_err(|e| local_error(path, "kept", e))?;
        LocalFile::from_file(file, path)
    })
    .await?;
    let options = PutOptions { mode: Some(options.mode.unwrap_or(0)), ..options.clone() };
    let (entry, _) = Put::new(&link, to, &options).await?.once(Arc::new(spool), 0).await?;
    tracker.file_done();
    Ok(entry)
}

/// [`put_file`] as part of something larger. `counted` is the size that the tracker has been told already. The flag says
/// whether the content was the same on the server already, so that nothing was published.
pub(super) async fn put_tracked(
    link: &Link<'_>,
    local: &Path,
    follow: bool,
    to: &EntryPath,
    options: &PutOptions,
    counted: u64,
) -> Result<(v1::Entry, bool)> {
    let tracker = Tracker::part_of(link.tracker);
    let link = &Link { connection: link.connection, tracker: &tracker, retry: link.retry };
    let put = Put::new(link, to, options).await?;
    let mut counted = counted;
    for attempt in 0.. {
        let path = local.to_owned();
        let file = Arc::new(blocking(move || LocalFile::open(&path, follow)).await?);
        let size = file.stamp.size;
        match put.once(file, counted).await {
            Err(error) if error.is(Reason::LocalFileChanged) && attempt < RESTARTS => {
                counted = size;
                tracker.undo_all();
                tracker.event(Event::Restarted { path: &to.to_string() });
            }
            other => return other,
        }
    }
    Err(Error::internal("the attempts have ended"))
}

/// What stays the same over all attempts.
struct Put<'a> {
    link: &'a Link<'a>,
    to: &'a EntryPath,
    options: &'a PutOptions,
    upload: UploadId,
    /// The present file at the target.
    present: Option<v1::Entry>,
    bases: Vec<EntryPath>,
}

impl<'a> Put<'a> {
    async fn new(link: &'a Link<'a>, to: &'a EntryPath, options: &'a PutOptions) -> Result<Self> {
        let present = match options.expect {
            Expect::Absent => None,
            _ => link.entry(to).await?.filter(|e| e.kind == v1::EntryKind::File as i32),
        };
        let own = present.is_some().then_some(to);
        let bases = own.into_iter().chain(&options.bases).take(16).cloned().collect();
        Ok(Self { link, to, options, upload: options.upload.unwrap_or_else(UploadId::generate), present, bases })
    }

    async fn once(&self, file: Arc<LocalFile>, counted: u64) -> Result<(v1::Entry, bool)> {
        let tracker = self.link.tracker;
        let size = file.stamp.size;
        tracker.correct(counted, size);
        let all = if size >= PARALLEL_FROM { self.link.connection.all_bulk().await } else { None };
        let connections = if all.is_some() { self.link.connection.bulk_count() } else { 1 };
        let sent = send_all(self.link, self.upload, connections, |pieces| self.produce(file.clone(), pieces));
        let (manifest, lost) = sent.await?;
        make_sure(self.link, self.upload, connections, &file, lost).await?;
        drop(all);
        let checked = file.clone();
        blocking(move || checked.check_unchanged()).await?;
        if self.options.skip_unchanged
            && let Some(present) = &self.present
            && present.manifest_digest[..] == manifest_digest(&manifest)
        {
            return Ok((present.clone(), true));
        }
        Ok((self.commit(&file, &manifest, connections).await?, false))
    }

    /// Cuts, hashes, asks, and hands over what the server lacks. Gives the manifest.
    async fn produce(&self, file: Arc<LocalFile>, pieces: Pieces) -> Result<Vec<ChunkRef>> {
        let mut out = Producer {
            put: self,
            pieces,
            manifest: Vec::new(),
            seen: HashSet::new(),
            held: Vec::new(),
            held_bytes: 0,
            same: Vec::new(),
            file: file.clone(),
            window: FIRST_WINDOW,
            size: 0,
        };
        if file.stamp.size <= WHOLE {
            let whole = file.clone();
            let all = blocking(move || {
                // One byte more than expected shows that the file has grown.
                let reader = PositionReader { file: whole.clone(), position: 0 }.take(whole.stamp.size + 1);
                Chunker::new(reader).collect::<io::Result<Vec<_>>>().map_err(|e| local_error(&whole.path, "read", e))
            });
            for piece in all.await? {
                out.piece(piece).await?;
            }
        } else {
            self.produce_large(&file, &mut out).await?;
        }
        out.ask().await?;
        if out.size != file.stamp.size {
            return Err(changed(&file.path));
        }
        Ok(out.manifest)
    }

    /// Cuts what the server's present file does not say already.
    async fn produce_large(&self, file: &Arc<LocalFile>, out: &mut Producer<'_>) -> Result<()> {
        let mut same = self.same(file).await;
        loop {
            if let Some(same) = &mut same {
                loop {
                    let run = same.from(out.size).await?;
                    if run.is_empty() {
                        break;
                    }
                    run.into_iter().for_each(|chunk| out.same(chunk));
                    if out.same.len() >= SAME_WINDOW {
                        out.ask_same().await?;
                    }
                }
            }
            let read_failed = |e| local_error(&file.path, "read", e);
            let reader = PositionReader { file: file.clone(), position: out.size };
            // One byte more than expected shows that the file has grown.
            let reader = reader.take((file.stamp.size + 1).saturating_sub(out.size));
            let mut chunker = ParallelChunker::new(reader).map_err(read_failed)?;
            loop {
                let Some(piece) = chunker.recv().await else { return Ok(()) };
                out.piece(piece.map_err(read_failed)?).await?;
                if same.as_mut().is_some_and(|s| s.resumes_at(out.size)) {
                    break;
                }
            }
        }
    }

    /// The present file's manifest to compare with, if there is one. It only saves work: without it everything is cut.
    async fn same(&self, file: &Arc<LocalFile>) -> Option<Same> {
        let present = self.present.as_ref().filter(|p| p.size_bytes > WHOLE)?;
        let manifest = self.link.manifest(self.to, present.version).await.ok()?;
        Some(Same::new(file.clone(), manifest))
    }

    async fn commit(&self, file: &Arc<LocalFile>, manifest: &[ChunkRef], connections: usize) -> Result<v1::Entry> {
        let message = v1::FileCommit {
            path: Some(path_to(self.to)),
            chunks: chunks_to(manifest),
            expected: Some(self.options.expect.message()),
            modify_time: Some(timestamp_from_system(self.options.modified.unwrap_or(file.modified))),
            mode: self.options.mode.unwrap_or(file.mode),
            make_parents: self.options.make_parents,
            fencing_token: self.options.fencing_token,
        };
        for _ in 0..COMMITS {
            let result = self.link.commit(self.upload, vec![message.clone()]).await?.pop();
            let (error, missing) = match result.and_then(|r| Some((r.result?, r.missing_chunks))) {
                Some((v1::file_commit_result::Result::Entry(entry), _)) => return Ok(entry),
                Some((v1::file_commit_result::Result::Error(error), missing)) => (from_item_error(&error), missing),
                None => return Err(super::link::strange("no result")),
            };
            if !error.is(Reason::ChunksMissing) {
                return Err(error);
            }
            let missing = placed(manifest, &missing)?;
            self.link.tracker.undo(missing.iter().map(|p| u64::from(p.chunk.len)).sum());
            let lost = send_again(self.link, self.upload, connections, file, missing).await?;
            make_sure(self.link, self.upload, connections, file, lost).await?;
        }
        Err(Error::new(Reason::ChunksMissing, "the server keeps asking for chunks that it has been sent"))
    }
}

/// The chunks at these positions of a manifest, each once; all of them if the server named none.
fn placed(manifest: &[ChunkRef], positions: &[u32]) -> Result<Vec<Placed>> {
    let mut offset = 0;
    let all: Vec<Placed> = manifest
        .iter()
        .map(|chunk| {
            let placed = Placed { chunk: *chunk, offset };
            offset += u64::from(chunk.len);
            placed
        })
        .collect();
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    let every: Vec<u32> = (0..u32::try_from(all.len()).unwrap_or(u32::MAX)).collect();
    for position in if positions.is_empty() { &every } else { positions } {
        let placed =
            all.get(*position as usize).ok_or_else(|| super::link::strange("a position past the manifest's end"))?;
        if seen.insert(placed.chunk.id) {
            out.push(*placed);
        }
    }
    Ok(out)
}

struct Producer<'a> {
    put: &'a Put<'a>,
    pieces: Pieces,
    manifest: Vec<ChunkRef>,
    seen: HashSet<ChunkId>,
    /// Chunks about which the server is to be asked.
    held: Vec<ChunkedPiece>,
    held_bytes: u64,
    /// Chunks that the server's present file has too, so that the answer is known but for accidents.
    same: Vec<Placed>,
    file: Arc<LocalFile>,
    window: usize,
    size: u64,
}

impl Producer<'_> {
    async fn piece(&mut self, piece: ChunkedPiece) -> Result<()> {
        let len = u64::from(piece.chunk.len);
        self.size += len;
        self.manifest.push(piece.chunk);
        if !self.seen.insert(piece.chunk.id) {
            self.put.link.tracker.done(len, 0);
            return Ok(());
        }
        // Of a new file and a new upload the server can know nothing.
        if self.put.bases.is_empty() && self.put.options.upload.is_none() {
            return self.hand_over(piece).await;
        }
        self.held_bytes += len;
        self.held.push(piece);
        if self.held.len() >= self.window || self.held_bytes >= WINDOW_BYTES {
            self.window = WINDOW;
            self.ask().await?;
        }
        Ok(())
    }

    /// Takes a chunk that is the same at the server, without its content.
    fn same(&mut self, chunk: ChunkRef) {
        let placed = Placed { chunk, offset: self.size };
        self.size += u64::from(chunk.len);
        self.manifest.push(chunk);
        if self.seen.insert(chunk.id) {
            self.same.push(placed);
        } else {
            self.put.link.tracker.done(u64::from(chunk.len), 0);
        }
    }

    async fn ask(&mut self) -> Result<()> {
        self.ask_same().await?;
        if self.held.is_empty() {
            return Ok(());
        }
        let held = std::mem::take(&mut self.held);
        self.held_bytes = 0;
        let chunks: Vec<ChunkRef> = held.iter().map(|p| p.chunk).collect();
        let link = self.put.link;
        let missing = link.find_missing(self.put.upload, &chunks, &self.put.bases).await?;
        let missing: HashSet<usize> = missing.into_iter().collect();
        for (n, piece) in held.into_iter().enumerate() {
            if missing.contains(&n) {
                self.hand_over(piece).await?;
            } else {
                link.tracker.done(u64::from(piece.chunk.len), 0);
            }
        }
        Ok(())
    }

    /// Makes these chunks part of the upload; one that the server has lost meanwhile is sent.
    async fn ask_same(&mut self) -> Result<()> {
        let same = std::mem::take(&mut self.same);
        if same.is_empty() {
            return Ok(());
        }
        let chunks: Vec<ChunkRef> = same.iter().map(|p| p.chunk).collect();
        let link = self.put.link;
        let missing = link.find_missing(self.put.upload, &chunks, &self.put.bases).await?;
        let missing: HashSet<usize> = missing.into_iter().collect();
        for (n, placed) in same.into_iter().enumerate() {
            if missing.contains(&n) {
                let data = read_chunk(&self.file, placed).await?;
                let gone = |_| Error::new(Reason::Cancelled, "the sending side of an upload has ended");
                self.pieces.send(Piece { placed, data }).await.map_err(gone)?;
            } else {
                link.tracker.done(u64::from(placed.chunk.len), 0);
            }
        }
        Ok(())
    }

    async fn hand_over(&self, piece: ChunkedPiece) -> Result<()> {
        let placed = Placed { chunk: piece.chunk, offset: piece.offset };
        let piece = Piece { placed, data: piece.data.into() };
        let gone = |_| Error::new(Reason::Cancelled, "the sending side of an upload has ended");
        self.pieces.send(piece).await.map_err(gone)
    }
}
