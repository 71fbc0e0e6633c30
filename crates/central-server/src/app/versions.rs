//! Versions of a file: the content that it has and the contents that it had.
//!
//! New content gets the next number; the content before it becomes a record `v/FILE VERSION`. A version that comes back
//! becomes a new one with the old content, so numbers never go back and nothing is lost by trying.

use super::answers::{Answer, Once};
use super::caller::Caller;
use super::directories;
use super::edit::{self, ChangeKind, Edit, bytes_of};
use super::entries::{self, Entry, FileTime};
use super::page::{self, PageToken, fingerprint};
use super::records::{self, View};
use super::retention::Policy;
use super::tree::{self, version_key, versions_of};
use super::{App, locks};
use bytes::Bytes;
use common::chunk::ChunkStore;
use common::error::{Error, Reason, Result};
use common::model::{ChunkId, ChunkRef, EntryPath, NodeId, Right, RootId};
use common::store::prefix_end;
use proto::record::v1 as record;
use std::sync::Arc;

/// Chunks of a manifest that are kept in the record itself.
pub const INLINE_CHUNKS: usize = 64;
/// Chunks of one manifest chunk.
pub const CHUNKS_PER_MANIFEST: usize = 65_536;
/// Chunks of a page of a manifest if the caller does not say.
const DEFAULT_MANIFEST_PAGE: usize = 16_384;
/// More old versions than any policy keeps: reading them all is one call.
pub(super) const MANY: usize = 10_000;

/// Old versions that new content of one file drops at most, so that the size of a transaction can be foretold. More are
/// there only after the policy was changed, and retention takes those.
const MOST_DROPPED: usize = 8;

/// A file version that may be read.
#[derive(Clone, Debug)]
pub struct OpenFile {
    /// The file as of this version.
    pub entry: Entry,
    /// Its content in order.
    pub chunks: Arc<[ChunkRef]>,
    /// BLAKE3-256 over the manifest.
    pub digest: [u8; 32],
}

/// One version of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its number.
    pub version: u64,
    /// Bytes.
    pub size_bytes: u64,
    /// The writer's modification time.
    pub modify_time: FileTime,
    /// When the server took it.
    pub update_ms: u64,
    /// Who wrote it.
    pub author: String,
    /// See [`Entry`].
    pub manifest_digest: Option<[u8; 32]>,
    /// Whether it is the present content.
    pub current: bool,
}

impl Version {
    fn new(version: u64, content: &record::Content, current: bool) -> Self {
        Self {
            version,
            size_bytes: content.size_bytes,
            modify_time: FileTime::of(content),
            update_ms: content.update_ms,
            author: content.author.clone(),
            manifest_digest: content.manifest_digest[..].try_into().ok(),
            current,
        }
    }
}

fn corrupt(what: &str) -> Error {
    Error::new(Reason::StoreCorrupt, what)
}

fn content_of(entry: &record::Entry) -> Result<&record::Content> {
    entry.content.as_ref().ok_or_else(|| corrupt("a file's record has no content"))
}

fn unknown(path: &EntryPath, version: u64) -> Error {
    Error::new(Reason::VersionUnknown, format!("{path} has no version {version}"))
}

/// The chunks of a content. Reads manifest chunks from disk if there are any.
///
/// # Errors
/// `CHUNK_DAMAGED`, `STORE_CORRUPT`.
pub fn chunks_of(chunks: &ChunkStore, content: &record::Content) -> Result<Vec<ChunkRef>> {
    if content.manifest_chunks.is_empty() {
        return ChunkRef::decode_all(&content.inline_chunks).ok_or_else(|| corrupt("a manifest is damaged"));
    }
    let mut out = Vec::with_capacity(usize::try_from(content.chunk_count).unwrap_or(0).min(1 << 20));
    for id in &content.manifest_chunks {
        out.extend(manifest_chunk(chunks, id)?);
    }
    Ok(out)
}

/// The entries of one manifest chunk.
///
/// # Errors
/// `CHUNK_DAMAGED`.
pub fn manifest_chunk(chunks: &ChunkStore, id: &[u8]) -> Result<Vec<ChunkRef>> {
    let id = ChunkId::from_slice(id).ok_or_else(|| corrupt("a manifest names a damaged chunk id"))?;
    let damaged = || Error::new(Reason::ChunkDamaged, "the list of a file's chunks is not on the server any more");
    let len = chunks.length(&id).ok_or_else(damaged)?;
    let bytes = chunks.read(&id, 0..len, true)?;
    ChunkRef::decode_all(&bytes).ok_or_else(damaged)
}

/// A file's record as of a version; 0 is the present one.
fn as_of(view: &impl View, entry: &record::Entry, version: u64, path: &EntryPath) -> Result<record::Entry> {
    if version == 0 || version == entry.version {
        return Ok(entry.clone());
    }
    let old: Option<record::Version> = records::load(view, &version_key(tree::id_of(entry)?, version))?;
    let old = old.ok_or_else(|| unknown(path, version))?;
    Ok(record::Entry { version, content: old.content, ..entry.clone() })
}

/// A file's version and its content, for those who may read it.
pub(super) fn find_version(
    app: &App,
    caller: &Caller,
    path: &EntryPath,
    version: u64,
) -> Result<(Entry, record::Content)> {
    let (root, entry) = app.store.read(|view| {
        let view = &Reading(view);
        let root = directories::open(view, caller, &path.root, Right::Read)?;
        let node = tree::find_file(view, &root, path)?;
        Ok((root, as_of(view, &node.record, version, path)?))
    })?;
    drop(root);
    let content = content_of(&entry)?.clone();
    Ok((Entry::new(path.clone(), &entry, app.clock.now_ms())?, content))
}

/// One state of the store.
struct Reading<'a, 'b>(&'a common::store::ReadView<'b>);

impl View for Reading<'_, '_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.0.get(key)
    }
    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        self.0.range(from, to, limit)
    }
    fn range_back(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        self.0.range_back(from, to, limit)
    }
}

/// Opens a file version for reading; 0 is the present one. Blocks for files with long manifests.
///
/// # Errors
/// `VERSION_UNKNOWN`, `CHUNK_DAMAGED`, those of rights and of finding.
pub fn open(app: &App, caller: &Caller, path: &EntryPath, version: u64) -> Result<OpenFile> {
    let (entry, content) = find_version(app, caller, path, version)?;
    let chunks = chunks_of(&app.chunks, &content)?.into();
    let digest = entry.manifest_digest.ok_or_else(|| corrupt("a file's record has no manifest digest"))?;
    Ok(OpenFile { entry, chunks, digest })
}

/// [`chunks_of`], on a blocking thread if the disk is needed.
async fn load_chunks(app: &App, content: record::Content) -> Result<Vec<ChunkRef>> {
    if content.manifest_chunks.is_empty() {
        return chunks_of(&app.chunks, &content);
    }
    let chunks = app.chunks.clone();
    entries::blocking(move || chunks_of(&chunks, &content)).await
}

/// A page of a manifest.
#[derive(Clone, Debug)]
pub struct ManifestPage {
    /// In file order.
    pub chunks: Vec<ChunkRef>,
    /// Empty at the end.
    pub next_page_token: String,
    /// Which version it is.
    pub version: u64,
    /// Of the whole file.
    pub manifest_digest: [u8; 32],
    /// Of the whole file.
    pub size_bytes: u64,
}

/// A page of a file version's chunks; version 0 is the present one when the first page is read, and the token keeps to it.
///
/// # Errors
/// As [`open`], and `PAGE_TOKEN_INVALID`.
pub async fn manifest(
    app: &App,
    caller: &Caller,
    path: &EntryPath,
    version: u64,
    page_size: u32,
    page_token: &str,
) -> Result<ManifestPage> {
    let place = path.to_string();
    let list = fingerprint("manifest", &[&place, &version.to_string()]);
    let invalid = || Error::new(Reason::PageTokenInvalid, "the page token does not belong to this list");
    let (version, skip) = match PageToken::read(page_token, list)? {
        Some(token) => {
            let position: [u8; 16] = token.position().try_into().map_err(|_| invalid())?;
            let (v, n) = position.split_at(8);
            let number = |b: &[u8]| b.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
            (number(v), usize::try_from(number(n)).map_err(|_| invalid())?)
        }
        None => (version, 0),
    };
    let size = match page_size {
        0 => DEFAULT_MANIFEST_PAGE,
        n => (n as usize).min(CHUNKS_PER_MANIFEST),
    };
    let (entry, mut content) = find_version(app, caller, path, version)?;
    // Of a long manifest only the parts that the page touches are read; all parts but the last are full.
    let before = skip / CHUNKS_PER_MANIFEST;
    let mut from = skip;
    if !content.manifest_chunks.is_empty() {
        from = skip % CHUNKS_PER_MANIFEST;
        content.manifest_chunks = content.manifest_chunks.into_iter().skip(before).take(2).collect();
        if content.manifest_chunks.is_empty() {
            content.inline_chunks = Bytes::new();
        }
    }
    let total = content.chunk_count;
    let manifest_digest = entry.manifest_digest.ok_or_else(|| corrupt("a file's record has no manifest digest"))?;
    let chunks = load_chunks(app, content).await?;
    let chunks: Vec<ChunkRef> = chunks.into_iter().skip(from).take(size).collect();
    let next = (skip + chunks.len()) as u64;
    let next_page_token = if next < total && !chunks.is_empty() {
        PageToken::at(list, &[entry.version.to_be_bytes(), next.to_be_bytes()].concat())
    } else {
        String::new()
    };
    Ok(ManifestPage { chunks, next_page_token, version: entry.version, manifest_digest, size_bytes: entry.size_bytes })
}

/// A page of a file's versions, newest first, the present one included.
///
/// # Errors
/// `PAGE_TOKEN_INVALID`, those of rights and of finding.
pub fn list(
    app: &App,
    caller: &Caller,
    path: &EntryPath,
    page_size: u32,
    page_token: &str,
) -> Result<(Vec<Version>, String)> {
    app.store.read(|view| {
        let view = &Reading(view);
        let root = directories::open(view, caller, &path.root, Right::Read)?;
        let node = tree::find_file(view, &root, path)?;
        let id = node.id()?;
        let token = fingerprint("versions", &[&id.to_string()]);
        let size = page::size(page_size);
        let mut out = Vec::new();
        let to = match PageToken::read(page_token, token)? {
            Some(after) => version_key(id, after.number()?),
            None => {
                out.push(Version::new(node.record.version, content_of(&node.record)?, true));
                prefix_end(&versions_of(id))
            }
        };
        for (_, value) in view.range_back(&versions_of(id), &to, size + 1)? {
            if out.len() == size {
                let last = out.last().map_or(0, |v| v.version);
                return Ok((out, PageToken::at_number(token, last)));
            }
            let old: record::Version = records::decode(value)?;
            let content = old.content.as_ref().ok_or_else(|| corrupt("an old version has no content"))?;
            out.push(Version::new(old.version, content, false));
        }
        Ok((out, String::new()))
    })
}

/// Makes an old version the present one, as a new version with the old content. The present one, or one that is equal
/// to it, changes nothing.
///
/// # Errors
/// `VERSION_UNKNOWN`, `LOCKED`, `QUOTA_EXCEEDED`, those of rights and of finding.
pub async fn restore(
    app: &App,
    caller: &Caller,
    path: EntryPath,
    version: u64,
    once: Once<Entry>,
) -> Result<Answer<Entry>> {
    let policy = Policy::of(&app.settings);
    edit::change_once(app, caller, once, move |edit| {
        let root = edit.root(&path.root, Right::Write)?;
        let mut node = tree::find_file(edit, &root, &path)?;
        if version == 0 {
            return Err(unknown(&path, 0));
        }
        locks::check(&node.record, edit.author, edit.now_ms, &path)?;
        let old = as_of(edit, &node.record, version, &path)?;
        let (wanted, present) = (content_of(&old)?, content_of(&node.record)?);
        let same = |c: &record::Content| (c.manifest_digest.clone(), c.modify_ms, c.modify_nanos, c.mode);
        if same(wanted) == same(present) {
            return Entry::new(path.clone(), &node.record, edit.now_ms);
        }
        let mut content = wanted.clone();
        content.author = edit.author.to_owned();
        content.update_ms = edit.now_ms;
        content.upload = Bytes::new();
        edit.relocates(Some(&content));
        replace(edit, &policy, &root, &mut node.record, content)?;
        edit.put_entry(&node.key, &node.record)?;
        edit.tell(ChangeKind::Modified, root.id, path.relative(), &node.record);
        Entry::new(path.clone(), &node.record, edit.now_ms)
    })
    .await
}

/// Gives a file new content: charges it, keeps the present one as an old version, drops the oldest beyond the policy's
/// number. The entry's record is the caller's to write. Gives back the number of other writes.
///
/// # Errors
/// `QUOTA_EXCEEDED`; nothing is written then.
pub(super) fn replace(
    edit: &mut Edit<'_, '_>,
    policy: &Policy,
    root: &directories::Root,
    entry: &mut record::Entry,
    content: record::Content,
) -> Result<usize> {
    let id = tree::id_of(entry)?;
    let mut surplus = Vec::new();
    // Numbers rise by one, so a file with few numbers has few versions.
    if entry.version > policy.version_max as u64 {
        let mut versions = old(edit, id)?;
        let keep = policy.version_max.saturating_sub(1);
        let count = versions.len().saturating_sub(keep).min(MOST_DROPPED);
        surplus = versions.drain(..count).collect();
    }
    let freed: u64 = surplus.iter().map(|(_, v)| v.content.as_ref().map_or(0, |c| c.size_bytes)).sum();
    let more = i64::try_from(content.size_bytes).unwrap_or(i64::MAX) - i64::try_from(freed).unwrap_or(0);
    edit.charge(root, more, 0)?;
    for (key, _) in &surplus {
        edit.txn.delete(key)?;
    }
    let before = record::Version {
        version: entry.version,
        content: entry.content.replace(content),
        root: bytes_of(root.id.node()),
    };
    edit.relocates(before.content.as_ref());
    records::save(edit.txn, &version_key(id, entry.version), &before)?;
    entry.version += 1;
    entry.revision = edit.txn.revision();
    Ok(surplus.len() + 1)
}

/// All old versions of a file with their keys, oldest first.
///
/// # Errors
/// Those of the store.
pub(super) fn old(view: &impl View, file: NodeId) -> Result<Vec<(Vec<u8>, record::Version)>> {
    records::under(view, &versions_of(file), MANY)?
        .into_iter()
        .map(|(key, value)| Ok((key.to_vec(), records::decode(value)?)))
        .collect()
}

/// Removes a file that has left the tree and the trash: its old versions and its charge. Gives back the number of
/// writes.
///
/// # Errors
/// Those of the store.
pub(super) fn remove_file(edit: &mut Edit<'_, '_>, root: RootId, entry: &record::Entry) -> Result<usize> {
    let mut bytes = tree::size_of(entry);
    let mut writes = 0;
    if entry.version > 1 {
        for (key, version) in old(edit, tree::id_of(entry)?)? {
            bytes += version.content.as_ref().map_or(0, |c| c.size_bytes);
            edit.txn.delete(&key)?;
            writes += 1;
        }
    }
    edit.release(root, bytes, 1)?;
    Ok(writes)
}
