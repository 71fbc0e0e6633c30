//! One file down.

use super::PARALLEL_FROM;
use super::fetch::{Source, Use, Wanted, fetch, fetch_entry};
use super::link::{Link, Manifest};
use super::local::{LocalFile, PartFile, blocking, exists, local_error, publish};
use super::options::GetOptions;
use super::progress::{Progress, Tracker};
use crate::bulk::Rope;
use crate::chunk::ParallelChunker;
use crate::error::{Error, Reason, Result};
use crate::model::{ChunkId, EntryPath};
use crate::rpc::OfficeConnection;
use crate::wire::system_from_timestamp;
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use proto::v1;
use std::collections::{HashMap, VecDeque};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Content that one request of a parallel download asks for: large enough to keep a line busy, small enough that both
/// connections end at about the same time.
const SEGMENT: u64 = 128 * 1024 * 1024;

/// Gets a file. What is here already, in the file at the target or in an unfinished one of an earlier attempt, is not
/// fetched again. The target is replaced in one step when everything has been verified. Gives the entry of the version.
///
/// # Errors
/// `CHUNK_DAMAGED` if the server cannot give a chunk as it should be; `ENTRY_EXISTS` if the target may not be replaced;
/// what the server said; `IO_FAILED` or `DISK_FULL` for the local file. What was verified is kept in an unfinished file
/// beside the target.
pub async fn get_file(
    connection: &OfficeConnection,
    from: &EntryPath,
    local: &Path,
    options: &GetOptions,
    progress: &dyn Progress,
) -> Result<v1::Entry> {
    let tracker = Tracker::new(progress);
    tracker.expect(1, 0);
    let link = Link { connection, tracker: &tracker, retry: options.retry };
    let entry = get_tracked(&link, from, local, options, 0).await?;
    tracker.file_done();
    Ok(entry)
}

/// Gives the content of a file, in order and verified, to a writer.
///
/// # Errors
/// As [`get_file`]; the writer's.
pub async fn read_file(
    connection: &OfficeConnection,
    from: &EntryPath,
    options: &GetOptions,
    writer: &mut (dyn AsyncWrite + Send + Unpin),
    progress: &dyn Progress,
) -> Result<()> {
    let tracker = Tracker::new(progress);
    let link = Link { connection, tracker: &tracker, retry: options.retry };
    let manifest = link.manifest(from, options.version).await?;
    tracker.expect(1, manifest.size);
    let mut offset = 0;
    let mut wanted = Vec::with_capacity(manifest.chunks.len());
    for chunk in &manifest.chunks {
        wanted.push(Wanted { chunk: *chunk, offset, also: Vec::new() });
        offset += u64::from(chunk.len);
    }
    let nothing: Use = Arc::new(|_, _| Ok(()));
    let writer = tokio::sync::Mutex::new(writer);
    let deliver = |_, content: Rope| async {
        let mut writer = writer.lock().await;
        for piece in content.into_pieces() {
            writer.write_all(&piece).await.map_err(|e| local_error(Path::new("the output"), "written", e))?;
        }
        Ok(())
    };
    fetch(&link, Source { path: from, version: manifest.version }, wanted, &nothing, deliver).await?;
    writer.lock().await.flush().await.map_err(|e| local_error(Path::new("the output"), "written", e))?;
    tracker.file_done();
    Ok(())
}

/// [`get_file`] as part of something larger. `counted` is the size that the tracker has been told already.
pub(super) async fn get_tracked(
    link: &Link<'_>,
    from: &EntryPath,
    local: &Path,
    options: &GetOptions,
    counted: u64,
) -> Result<v1::Entry> {
    let manifest = Arc::new(link.manifest(from, options.version).await?);
    link.tracker.correct(counted, manifest.size);
    let (target, replace, known) = (local.to_owned(), options.replace, manifest.clone());
    let (part, missing) = blocking(move || prepare(&target, replace, &known)).await?;
    let part = Arc::new(part);
    let missing_bytes: u64 = missing.iter().map(Wanted::bytes).sum();
    link.tracker.done(manifest.size - missing_bytes, 0);

    let source = Source { path: from, version: manifest.version };
    let entry = fetch_parallel(link, source, missing, &part).await?;
    let entry = match entry {
        Some(entry) => entry,
        None => fetch_entry(link, source, manifest.size).await?,
    };
    // A time that this system cannot keep is no reason to refuse the content.
    let modified = entry.modify_time.as_ref().and_then(|t| system_from_timestamp(t, "modify_time").ok());
    let (target, mode, options) = (local.to_owned(), entry.mode, options.clone());
    blocking(move || {
        let failed = |e| local_error(&target, "written", e);
        part.file.set_len(manifest.size).map_err(failed)?;
        publish(&part.file, &part.path, &target, mode, modified, options.replace, options.sync)
    })
    .await?;
    Ok(entry)
}

/// Fetches into the file over all bulk connections if there is much to fetch.
async fn fetch_parallel(
    link: &Link<'_>,
    source: Source<'_>,
    missing: Vec<Wanted>,
    part: &Arc<PartFile>,
) -> Result<Option<v1::Entry>> {
    let total: u64 = missing.iter().map(|w| u64::from(w.chunk.len)).sum();
    let file = part.clone();
    let write: Use = Arc::new(move |wanted, content| write(&file, wanted, content));
    if total < PARALLEL_FROM {
        return fetch(link, source, missing, &write, |_, _| async { Ok(()) }).await;
    }
    let _all = link.connection.all_bulk().await;
    let connections = link.connection.bulk_count();
    let segment = SEGMENT.min(total.div_ceil(connections as u64));
    let segments = Mutex::new(segments(missing, segment));
    let workers = (0..connections).map(|_| async {
        let mut entry = None;
        loop {
            let Some(segment) = segments.lock().pop_front() else { return Ok::<_, Error>(entry) };
            let found = fetch(link, source, segment, &write, |_, _| async { Ok(()) }).await?;
            entry = entry.or(found);
        }
    });
    Ok(try_join_all(workers).await?.into_iter().flatten().next())
}

fn segments(wanted: Vec<Wanted>, size: u64) -> VecDeque<Vec<Wanted>> {
    let mut out = VecDeque::new();
    let (mut segment, mut bytes) = (Vec::new(), 0);
    for w in wanted {
        bytes += u64::from(w.chunk.len);
        segment.push(w);
        if bytes >= size {
            out.push_back(std::mem::take(&mut segment));
            bytes = 0;
        }
    }
    if !segment.is_empty() {
        out.push_back(segment);
    }
    out
}

fn write(part: &PartFile, wanted: &Wanted, content: &Rope) -> Result<()> {
    let failed = |e| local_error(&part.path, "written", e);
    for offset in std::iter::once(wanted.offset).chain(wanted.also.iter().copied()) {
        let mut at = offset;
        for piece in content.pieces() {
            part.file.write_all_at(piece, at).map_err(failed)?;
            at += piece.len() as u64;
        }
    }
    Ok(())
}

impl Wanted {
    /// Bytes of the file that this chunk fills.
    fn bytes(&self) -> u64 {
        u64::from(self.chunk.len) * (1 + self.also.len() as u64)
    }
}

/// Claims the unfinished file and finds out what is missing in it, taking what the present target has.
fn prepare(target: &Path, replace: bool, manifest: &Manifest) -> Result<(PartFile, Vec<Wanted>)> {
    let present = match std::fs::symlink_metadata(target) {
        Ok(meta) if meta.is_dir() => {
            return Err(Error::new(Reason::IsADirectory, format!("{} is a directory", target.display())));
        }
        Ok(_) if !replace => return Err(exists(target)),
        Ok(meta) => meta.is_file() && meta.len() > 0,
        Err(_) => false,
    };
    let part = PartFile::claim(target)?;
    let mut missing = scan(&part, manifest)?;
    if present && !missing.is_empty() {
        // The file at the target is only an aid: what cannot be read is fetched.
        if let Ok(file) = LocalFile::open(target, false) {
            missing = reuse(&part, file, missing)?;
        }
    }
    Ok((part, missing))
}

/// The chunks that the unfinished file does not have at their places. Equal chunks are wanted once.
fn scan(part: &PartFile, manifest: &Manifest) -> Result<Vec<Wanted>> {
    let len = part.file.metadata().map_err(|e| local_error(&part.path, "read", e))?.len();
    let mut missing: Vec<Wanted> = Vec::new();
    let mut first: HashMap<ChunkId, usize> = HashMap::new();
    let mut buffer = Vec::new();
    let mut offset = 0;
    for chunk in &manifest.chunks {
        let end = offset + u64::from(chunk.len);
        if end > len || !holds(part, offset, chunk.len as usize, &chunk.id, &mut buffer) {
            match first.get(&chunk.id) {
                Some(n) => missing[*n].also.push(offset),
                None => {
                    first.insert(chunk.id, missing.len());
                    missing.push(Wanted { chunk: *chunk, offset, also: Vec::new() });
                }
            }
        }
        offset = end;
    }
    Ok(missing)
}

fn holds(part: &PartFile, offset: u64, len: usize, id: &ChunkId, buffer: &mut Vec<u8>) -> bool {
    buffer.resize(len, 0);
    part.file.read_exact_at(buffer, offset).is_ok() && ChunkId::of(buffer) == *id
}

/// Cuts a local file and takes the chunks that are wanted.
fn reuse(part: &PartFile, file: LocalFile, missing: Vec<Wanted>) -> Result<Vec<Wanted>> {
    let mut wanted: HashMap<ChunkId, Wanted> = missing.into_iter().map(|w| (w.chunk.id, w)).collect();
    // Cut and hashed by other threads, while this one writes.
    let Ok(pieces) = ParallelChunker::new(file.file) else { return Ok(sorted(wanted)) };
    for piece in pieces {
        let Ok(piece) = piece else { break };
        if let Some(w) = wanted.remove(&piece.chunk.id) {
            write(part, &w, &piece.data.into())?;
        }
        if wanted.is_empty() {
            break;
        }
    }
    Ok(sorted(wanted))
}

fn sorted(wanted: HashMap<ChunkId, Wanted>) -> Vec<Wanted> {
    let mut missing: Vec<Wanted> = wanted.into_values().collect();
    missing.sort_unstable_by_key(|w| w.offset);
    missing
}
