//! Publishing files whose chunks are on the server.
//!
//! ```text
//! validate, compare with what the upload has proven      nothing is written
//! long manifests into the chunk store                    under the upload's lease
//! commit guard: all chunks there?                        what is missing is said per file
//! sync of the chunk store                                all of them durable
//! transactions of up to BATCH_FILES files                each: rights, locks, expectations, quota, write, change record
//! ```
//! A file is published by itself: one that is refused leaves nothing behind, not even the parents it asked for. The guard
//! is held until the last transaction is durable.
//!
//! **Sending a commit again is harmless.** Content carries the id of the upload that brought it. A file is taken for
//! published already if the present content, or one of the newest `REPEATS` old versions, was brought by the same upload
//! with the same chunks, mode and time; the answer is the version of then. That needs no memory beside the file itself, so
//! it holds after a restart, however the files are grouped when they are sent again, and for expectations that the first
//! attempt itself made false. Two things are not known for repetitions: a file that somebody has deleted or moved away
//! meanwhile is made anew (nothing is lost by that), and one whose own old version was dropped by retention.
//!
//! Content that is there already makes no new version; a new time or mode is noted. No chunks are needed for that: who
//! may write a file may read it.

use super::App;
use super::caller::Caller;
use super::directories::Root;
use super::edit::{self, ChangeKind, Edit, bytes_of};
use super::entries::{self, Entry, FileTime};
use super::records::{self, View};
use super::retention::Policy;
use super::tree::{self, Place, versions_of};
use super::uploads::{self, Owned};
use super::versions::{self, CHUNKS_PER_MANIFEST, INLINE_CHUNKS};
use super::{disk, locks};
use bytes::Bytes;
use common::chunk::CommitGuard;
use common::error::{Error, Reason, Result};
use common::model::{
    ChunkId, ChunkRef, EntryName, EntryPath, NodeId, Right, RootId, RootName, UploadId, manifest_digest,
};
use common::store::prefix_end;
use futures_util::future::try_join_all;
use proto::record::v1 as record;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

/// Most files of a call.
pub const MAX_FILES: usize = 1_000;
/// Most chunks of all files of a call.
pub const MAX_CHUNKS: usize = 262_144;
/// Most chunks that can be asked about at once.
pub const MAX_ASKED: usize = 65_536;
/// Most bases of one question.
pub const MAX_BASES: usize = 16;
/// Most chunks of bases that are looked at for one question; further bases are passed over.
const MAX_BASE_CHUNKS: u64 = 1 << 20;
/// Files of one transaction.
const BATCH_FILES: usize = 500;
/// Records that one transaction may have to write, by a high estimate; the store takes 20,000.
const BATCH_WRITES: usize = 12_000;
/// Old versions that are looked at to know a repetition.
const REPEATS: usize = 8;
/// Chunks after which the loop over files lets others run.
const YIELD_CHUNKS: usize = 8_192;

/// What must be there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Whatever is there becomes an old version.
    Any,
    /// Nothing.
    Absent,
    /// This version.
    Version(u64),
}

/// One file to publish.
#[derive(Clone, Debug)]
pub struct FileCommit {
    /// Where.
    pub path: EntryPath,
    /// In file order.
    pub chunks: Vec<ChunkRef>,
    /// What must be there now.
    pub expected: Expected,
    /// None means now.
    pub modify_time: Option<FileTime>,
    /// Unix permission bits; 0 if not given.
    pub mode: u32,
    /// Make missing parents.
    pub make_parents: bool,
    /// Of the caller's lock; 0 for none.
    pub fencing_token: u64,
}

/// A file that was not published.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub error: Error,
    /// With CHUNKS_MISSING: positions of the chunks to upload again.
    pub missing: Vec<u32>,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { error, missing: Vec::new() }
    }
}

/// What became of a file.
pub type Published = Result<Entry, Refused>;

/// Positions of chunks that must be uploaded: those that the server does not have, and those that the caller cannot read
/// by a base nor has uploaded under this upload. Bases that cannot be read are passed over.
///
/// # Errors
/// `FIELD_INVALID` beyond the bounds, `UPLOAD_INVALID`.
pub async fn find_missing(
    app: &App,
    caller: &Caller,
    upload: UploadId,
    chunks: Vec<ChunkRef>,
    bases: Vec<EntryPath>,
) -> Result<Vec<u32>> {
    if chunks.len() > MAX_ASKED || bases.len() > MAX_BASES {
        return Err(Error::new(Reason::FieldInvalid, "more chunks or bases than one question takes")
            .why_is(format!("a question names up to {MAX_ASKED} chunks and {MAX_BASES} bases"))
            .with("field", if bases.len() > MAX_BASES { "bases" } else { "chunks" }));
    }
    let upload = uploads::begin(app, caller, upload)?;
    if bases.is_empty() && chunks.len() <= YIELD_CHUNKS {
        return Ok(missing_of(&upload, &chunks));
    }
    let (app, caller) = (app.clone(), caller.clone());
    entries::blocking(move || {
        let asked: HashSet<ChunkId> = chunks.iter().map(|c| c.id).collect();
        let mut looked_at = 0;
        for base in &bases {
            let Ok((entry, content)) = versions::find_version(&app, &caller, base, 0) else { continue };
            looked_at += content.chunk_count;
            if looked_at > MAX_BASE_CHUNKS {
                break;
            }
            match versions::chunks_of(&app.chunks, &content) {
                // Only what was asked for: a base may be far larger than the question.
                Ok(found) => upload.prove(found.into_iter().map(|c| c.id).filter(|id| asked.contains(id))),
                Err(error) => tracing::warn!(?error, file = %entry.id, "a base of an upload cannot be read"),
            }
        }
        Ok(missing_of(&upload, &chunks))
    })
    .await
}

fn missing_of(upload: &Owned, chunks: &[ChunkRef]) -> Vec<u32> {
    merge(&upload.unproven(chunks), &upload.lease().missing(chunks))
}

/// Two ascending lists as one, without doubles.
fn merge(a: &[usize], b: &[usize]) -> Vec<u32> {
    let mut all: Vec<u32> = a.iter().chain(b).map(|at| u32::try_from(*at).unwrap_or(u32::MAX)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// A file that was looked at outside of the transaction.
struct Prepared {
    /// Position in the call.
    at: usize,
    order: FileCommit,
    /// The new content, but for author and time.
    content: record::Content,
    missing: Vec<u32>,
}

/// Publishes files, each by itself, in order. Durable when it returns.
///
/// # Errors
/// For the call as a whole: `FIELD_INVALID` beyond the bounds, `UPLOAD_INVALID`, `DISK_FULL`, those of the stores. A call
/// that fails this way may have published some of the files; sending it again is harmless.
pub async fn commit(
    app: &App,
    caller: &Caller,
    upload: UploadId,
    files: Vec<Result<FileCommit>>,
) -> Result<Vec<Published>> {
    let chunk_count: usize = files.iter().flatten().map(|f| f.chunks.len()).sum();
    if files.len() > MAX_FILES || chunk_count > MAX_CHUNKS {
        return Err(Error::new(Reason::FieldInvalid, "more files or chunks than one commit takes")
            .why_is(format!("a commit takes up to {MAX_FILES} files and {MAX_CHUNKS} chunks"))
            .with("field", "files"));
    }
    disk::require_space(app)?;
    let id = upload;
    // Files without content need none of what keeps chunks: no proof, no lease, no sync of the chunk store.
    let upload = if chunk_count > 0 { Some(uploads::begin(app, caller, id)?) } else { None };
    if upload.is_none() {
        uploads::name(app, caller, id)?;
    }
    let mut results: Vec<Option<Published>> = Vec::new();
    results.resize_with(files.len(), || None);
    let guard = app.chunks.commit_guard();
    let mut prepared = Vec::with_capacity(files.len());
    let mut manifests = Vec::new();
    let mut since_yield = 0;
    for (at, file) in files.into_iter().enumerate() {
        since_yield += file.as_ref().map_or(0, |f| f.chunks.len());
        match file.and_then(|order| prepare(app, (id, upload.as_ref()), &guard, at, order, &mut manifests)) {
            Ok(file) => prepared.push(file),
            Err(error) => results[at] = Some(Err(error.into())),
        }
        if since_yield > YIELD_CHUNKS {
            since_yield = 0;
            tokio::task::yield_now().await;
        }
    }
    if let Some(upload) = &upload {
        if !manifests.is_empty() {
            store_manifests(app, upload, &guard, manifests).await?;
        }
        app.chunks.sync().await?;
    }

    let policy = Policy::of(&app.settings);
    let mut batches = Vec::new();
    for batch in divide(prepared) {
        let (batch, policy) = (Arc::new(batch), policy.clone());
        batches.push(edit::change(app, caller, move |edit| apply_batch(edit, &policy, &batch)));
    }
    // All at once, so that they become durable together; the store takes them in the order in which they come.
    for batch in try_join_all(batches).await? {
        for (at, result) in batch {
            results[at] = Some(result);
        }
    }
    drop(guard);
    let lost = || Err(Error::internal("a file of a commit was lost").into());
    Ok(results.into_iter().map(|r| r.unwrap_or_else(lost)).collect())
}

fn prepare(
    app: &App,
    (id, upload): (UploadId, Option<&Owned>),
    guard: &CommitGuard<'_>,
    at: usize,
    order: FileCommit,
    manifests: &mut Vec<(ChunkId, Vec<Bytes>)>,
) -> Result<Prepared> {
    if order.expected == Expected::Version(0) {
        return Err(Error::new(Reason::FieldInvalid, "there is no version 0; say absent").with("field", "expected"));
    }
    if order.path.segments.is_empty() {
        return Err(tree::is_directory(&order.path));
    }
    let size_bytes: u64 = order.chunks.iter().map(|c| u64::from(c.len)).sum();
    let limit = app.settings.files.max_file.0;
    if size_bytes > limit {
        return Err(Error::new(Reason::FileTooLarge, format!("{} has {size_bytes} bytes", order.path))
            .why_is(format!("the server takes files of up to {limit} bytes"))
            .with("limit_bytes", limit));
    }
    let unproven = upload.map(|upload| upload.unproven(&order.chunks)).unwrap_or_default();
    let absent = guard.require(&order.chunks).err().unwrap_or_default();
    let missing = merge(&unproven, &absent);
    let (mut inline_chunks, mut manifest_chunks) = (Bytes::new(), Vec::new());
    if order.chunks.len() <= INLINE_CHUNKS {
        inline_chunks = ChunkRef::encode_all(&order.chunks).into();
    } else if missing.is_empty() {
        for part in order.chunks.chunks(CHUNKS_PER_MANIFEST) {
            let part = Bytes::from(ChunkRef::encode_all(part));
            let id = ChunkId::of(&part);
            manifest_chunks.push(Bytes::copy_from_slice(id.as_bytes()));
            manifests.push((id, vec![part]));
        }
    }
    let (modify_ms, modify_nanos) = order.modify_time.map_or((0, 0), FileTime::parts);
    let content = record::Content {
        size_bytes,
        inline_chunks,
        manifest_chunks,
        manifest_digest: Bytes::copy_from_slice(&manifest_digest(&order.chunks)),
        modify_ms,
        modify_nanos,
        mode: order.mode,
        author: String::new(),
        update_ms: 0,
        chunk_count: order.chunks.len() as u64,
        upload: Bytes::copy_from_slice(id.0.as_bytes()),
    };
    let order = FileCommit { chunks: Vec::new(), ..order };
    Ok(Prepared { at, order, content, missing })
}

async fn store_manifests(
    app: &App,
    upload: &Owned,
    guard: &CommitGuard<'_>,
    manifests: Vec<(ChunkId, Vec<Bytes>)>,
) -> Result<()> {
    let refs: Vec<ChunkRef> = manifests
        .iter()
        .map(|(id, data)| ChunkRef { id: *id, len: data.iter().map(|d| d.len() as u32).sum() })
        .collect();
    let (chunks, lease) = (app.chunks.clone(), upload.lease().clone());
    entries::blocking(move || chunks.append_many(&manifests, &lease).map(drop)).await?;
    guard.require(&refs).map_err(|_| Error::internal("a manifest went away between writing and commit"))
}

/// Parts of at most [`BATCH_FILES`] files and about [`BATCH_WRITES`] writes.
fn divide(files: Vec<Prepared>) -> Vec<Vec<Prepared>> {
    let mut batches: Vec<Vec<Prepared>> = Vec::new();
    let mut writes = 0;
    for file in files {
        let parents = if file.order.make_parents { file.order.path.segments.len() - 1 } else { 0 };
        // A directory: entry, parent and its share of the change records. A file: entry, old version, change record.
        let more = 3 + 3 * parents;
        match batches.last_mut() {
            Some(batch) if batch.len() < BATCH_FILES && writes + more <= BATCH_WRITES => {
                batch.push(file);
                writes += more;
            }
            _ => {
                batches.push(vec![file]);
                writes = more;
            }
        }
    }
    batches
}

/// What a transaction has found out already.
#[derive(Default)]
struct Known<'a> {
    roots: HashMap<&'a RootName, Rc<Root>>,
    directories: HashMap<(RootId, &'a [EntryName]), NodeId>,
}

fn apply_batch(edit: &mut Edit<'_, '_>, policy: &Policy, batch: &[Prepared]) -> Result<Vec<(usize, Published)>> {
    let mut known = Known::default();
    let mut out = Vec::with_capacity(batch.len());
    for file in batch {
        out.push((file.at, apply(edit, policy, &mut known, file)?));
    }
    Ok(out)
}

/// What is to be done for a file.
enum Decision {
    /// It is there already.
    Done(Entry),
    Create {
        place: Place,
        missing: usize,
        key: Vec<u8>,
    },
    Replace {
        key: Vec<u8>,
        present: record::Entry,
    },
    Touch {
        key: Vec<u8>,
        present: record::Entry,
    },
}

/// Publishes one file. The outer error ends the transaction, the inner one is the file's own and comes before anything is
/// written.
fn apply<'a>(edit: &mut Edit<'_, '_>, policy: &Policy, known: &mut Known<'a>, file: &'a Prepared) -> Result<Published> {
    let root = match known.roots.get(&file.order.path.root) {
        Some(root) => root.clone(),
        None => match edit.root(&file.order.path.root, Right::Write) {
            Ok(root) => known.roots.entry(&file.order.path.root).or_insert(Rc::new(root)).clone(),
            Err(error) => return Ok(Err(error.into())),
        },
    };
    let decision = match decide(edit, known, &root, file) {
        Ok(decision) => decision,
        Err(refused) => return Ok(Err(refused)),
    };
    let path = &file.order.path;
    let (key, mut entry, kind) = match decision {
        Decision::Done(entry) => return Ok(Ok(entry)),
        Decision::Create { place, missing, key } => {
            let bytes = i64::try_from(file.content.size_bytes).unwrap_or(i64::MAX);
            if let Err(error) = edit.charge(&root, bytes, 1 + missing as i64) {
                return refusal(error);
            }
            let name = path.name().ok_or_else(|| Error::internal("a file without a name"))?;
            let parents = &path.segments[..path.segments.len() - 1];
            let mut key = key;
            if missing > 0 {
                let (place, _) = entries::make_directories(edit, &root, place, parents, missing)?;
                for depth in parents.len() - missing..parents.len() {
                    known.directories.insert((root.id, &parents[..=depth]), place.line[depth + 1]);
                }
                key = tree::entry_key(place.id, name, root.case_sensitive);
            }
            let entry = record::Entry {
                uid: bytes_of(NodeId::generate()),
                name: name.as_str().to_owned(),
                version: 1,
                content: Some(content_for(edit, file)),
                revision: edit.txn.revision(),
                create_ms: edit.now_ms,
                ..Default::default()
            };
            (key, entry, ChangeKind::Created)
        }
        Decision::Replace { key, present } => {
            let mut entry = present;
            let content = content_for(edit, file);
            if let Err(error) = versions::replace(edit, policy, &root, &mut entry, content) {
                return refusal(error);
            }
            (key, entry, ChangeKind::Modified)
        }
        Decision::Touch { key, present } => {
            let mut entry = present;
            if let Some(content) = &mut entry.content {
                if file.order.modify_time.is_some() {
                    (content.modify_ms, content.modify_nanos) = (file.content.modify_ms, file.content.modify_nanos);
                }
                if file.order.mode != 0 {
                    content.mode = file.order.mode;
                }
            }
            (key, entry, ChangeKind::Modified)
        }
    };
    entry.revision = edit.txn.revision();
    edit.put_entry(&key, &entry)?;
    edit.tell(kind, root.id, path.relative(), &entry);
    Entry::new(path.clone(), &entry, edit.now_ms).map(Ok)
}

/// A charge that was refused is the file's error; any other one ends the transaction, for something may be half written.
fn refusal(error: Error) -> Result<Published> {
    if error.is(Reason::QuotaExceeded) { Ok(Err(error.into())) } else { Err(error) }
}

fn content_for(edit: &Edit<'_, '_>, file: &Prepared) -> record::Content {
    let mut content = file.content.clone();
    content.author = edit.author.to_owned();
    content.update_ms = edit.now_ms;
    if file.order.modify_time.is_none() {
        (content.modify_ms, content.modify_nanos) = (edit.now_ms, 0);
    }
    content
}

/// Decides without writing anything.
fn decide<'a>(
    edit: &Edit<'_, '_>,
    known: &mut Known<'a>,
    root: &Root,
    file: &'a Prepared,
) -> Result<Decision, Refused> {
    let (order, path) = (&file.order, &file.order.path);
    let (name, parents) = path.segments.split_last().ok_or_else(|| Error::internal("a file without a name"))?;
    let (place, missing) = match known.directories.get(&(root.id, parents)) {
        Some(id) => (Place { id: *id, line: Vec::new() }, 0),
        None => {
            let (place, missing) = if order.make_parents {
                tree::directory_or_missing(edit, root, parents)?
            } else {
                (tree::directory(edit, root, parents)?, 0)
            };
            if missing == 0 {
                known.directories.insert((root.id, parents), place.id);
            }
            (place, missing)
        }
    };
    let key = tree::entry_key(place.id, name, root.case_sensitive);
    let present: Option<record::Entry> = if missing > 0 { None } else { records::load(edit, &key)? };
    let Some(present) = present else {
        if let Expected::Version(_) = order.expected {
            return Err(stale(path, 0).into());
        }
        if order.fencing_token != 0 {
            return Err(Error::new(Reason::LockLost, format!("{path} is not there any more")).into());
        }
        complete(path, file)?;
        return Ok(Decision::Create { place, missing, key });
    };
    if present.name != name.as_str() {
        return Err(tree::clash(path, &present.name).into());
    }
    if present.directory {
        return Err(match order.expected {
            Expected::Absent => exists(path),
            _ => tree::is_directory(path),
        }
        .into());
    }
    let content = present.content.as_ref().ok_or_else(|| Error::new(Reason::StoreCorrupt, "a file without content"))?;
    if is_repeat(content, file) {
        return Ok(Decision::Done(Entry::new(path.clone(), &present, edit.now_ms)?));
    }
    let same = content.manifest_digest == file.content.manifest_digest;
    let unexpected = match order.expected {
        Expected::Any => None,
        Expected::Absent => Some(exists(path)),
        Expected::Version(version) if version == present.version => None,
        Expected::Version(_) => Some(stale(path, present.version)),
    };
    if (unexpected.is_some() || !same)
        && let Some(entry) = published_before(edit, &present, file)?
    {
        return Ok(Decision::Done(entry));
    }
    if let Some(error) = unexpected {
        return Err(error.into());
    }
    locks::check_write(&present, edit.author, order.fencing_token, edit.now_ms, path)?;
    if same {
        let time = (file.content.modify_ms, file.content.modify_nanos);
        let same_time = order.modify_time.is_none() || time == (content.modify_ms, content.modify_nanos);
        if same_time && (order.mode == 0 || order.mode == content.mode) {
            return Ok(Decision::Done(Entry::new(path.clone(), &present, edit.now_ms)?));
        }
        return Ok(Decision::Touch { key, present });
    }
    complete(path, file)?;
    Ok(Decision::Replace { key, present })
}

fn exists(path: &EntryPath) -> Error {
    Error::new(Reason::EntryExists, format!("{path} is there already"))
}

fn stale(path: &EntryPath, present: u64) -> Error {
    let message = match present {
        0 => format!("{path} is not there"),
        n => format!("{path} has version {n} now"),
    };
    Error::new(Reason::VersionStale, message).with("present_version", present)
}

/// Refuses a file with chunks missing.
fn complete(path: &EntryPath, file: &Prepared) -> Result<(), Refused> {
    if file.missing.is_empty() {
        return Ok(());
    }
    let text = format!("{} of {} chunks of {path} are not there", file.missing.len(), file.content.chunk_count);
    Err(Refused { error: Error::new(Reason::ChunksMissing, text), missing: file.missing.clone() })
}

/// Whether this content was brought by the very same commit.
fn is_repeat(content: &record::Content, file: &Prepared) -> bool {
    content.upload == file.content.upload
        && content.manifest_digest == file.content.manifest_digest
        && content.mode == file.order.mode
        && (file.order.modify_time.is_none()
            || (content.modify_ms, content.modify_nanos) == (file.content.modify_ms, file.content.modify_nanos))
}

/// The version that the very same commit published before, if others came after it.
fn published_before(edit: &Edit<'_, '_>, present: &record::Entry, file: &Prepared) -> Result<Option<Entry>> {
    if present.version < 2 {
        return Ok(None);
    }
    let prefix = versions_of(tree::id_of(present)?);
    for (_, value) in edit.range_back(&prefix, &prefix_end(&prefix), REPEATS)? {
        let old: record::Version = records::decode(value)?;
        if old.content.as_ref().is_some_and(|c| is_repeat(c, file)) {
            let then = record::Entry { version: old.version, content: old.content, ..present.clone() };
            return Entry::new(file.order.path.clone(), &then, edit.now_ms).map(Some);
        }
    }
    Ok(None)
}
