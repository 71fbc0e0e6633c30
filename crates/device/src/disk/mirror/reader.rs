//! Reading a mirror: listing, restoring, checking all of it.

use super::key::{MirrorKey, Part, damaged};
use super::manifest::{FileEntry, Manifest, Root};
use super::place::{MirrorPlace, ObjectId};
use super::writer::blocking;
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::model::{ChunkId, ChunkRef};
use rustix::fs::{AtFlags, Mode, OFlags};
use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

/// Reads the root of a generation, or of the newest one.
pub(super) async fn read_root(
    key: &MirrorKey,
    place: &dyn MirrorPlace,
    generation: Option<u64>,
    at_least: u64,
) -> Result<Root> {
    let none = || Error::new(Reason::EntryUnknown, "the mirror has no such generation");
    let newest = match generation {
        // One that is retired can be read until it goes.
        Some(generation) => Some(generation),
        None => place.generations().await?.last().copied(),
    };
    let generation = newest.unwrap_or(0);
    if generation < at_least {
        return Err(damaged().why_is(format!("generation {at_least} was written, and the lender does not show it")));
    }
    if newest.is_none() {
        return Err(none());
    }
    let root = Root::decode(&key.open_root(generation, &place.get(ObjectId::root(generation)).await?)?)?;
    if root.generation != generation { Err(damaged()) } else { Ok(root) }
}

/// Reads the snapshot that a root leads to.
pub(super) async fn read_manifest(key: &MirrorKey, place: &dyn MirrorPlace, root: &Root) -> Result<Manifest> {
    let mut body = Vec::new();
    for chunk in &root.chunks {
        body.extend_from_slice(&read_chunk(key, place, Part::Snapshot, chunk).await?);
    }
    if blake3::hash(&body).as_bytes() != &root.digest {
        return Err(damaged());
    }
    blocking(move || Manifest::decode(&body)).await
}

async fn read_chunk(key: &MirrorKey, place: &dyn MirrorPlace, part: Part, chunk: &ChunkRef) -> Result<Bytes> {
    let sealed = place.get(key.id(part, &chunk.id)).await?;
    key.open(part, chunk, &sealed)
}

/// What a check of a generation showed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VerifyReport {
    /// Objects that were read.
    pub objects: usize,
    /// Bytes of their content.
    pub bytes: u64,
    /// Files with a chunk that is missing or damaged.
    pub hit: Vec<String>,
}

/// What a restore has done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Restored {
    /// Files that were written.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Files that were there already, whole.
    pub present: usize,
    /// Files that could not be restored, with why.
    pub failed: Vec<(String, String)>,
}

/// A generation of a mirror.
pub struct MirrorReader {
    key: Arc<MirrorKey>,
    place: Arc<dyn MirrorPlace>,
    root: Root,
    manifest: Arc<Manifest>,
}

impl MirrorReader {
    /// Opens a generation, or the newest one, which must be `at_least` the one that is remembered (0 if none is).
    ///
    /// # Errors
    /// `ENTRY_UNKNOWN` if there is no such generation; `CHUNK_DAMAGED` if it is not what was written, or not new enough, or
    /// the key is another mirror's; those of the place.
    pub async fn open(
        key: Arc<MirrorKey>,
        place: Arc<dyn MirrorPlace>,
        generation: Option<u64>,
        at_least: u64,
    ) -> Result<Self> {
        let root = read_root(&key, &*place, generation, at_least).await?;
        let manifest = Arc::new(read_manifest(&key, &*place, &root).await?);
        Ok(Self { key, place, root, manifest })
    }

    /// Its root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Its files, in the order of their paths.
    pub fn files(&self) -> &[FileEntry] {
        &self.manifest.files
    }

    /// Writes a file's content. Each chunk is checked before it is written.
    ///
    /// # Errors
    /// `ENTRY_UNKNOWN`, `CHUNK_DAMAGED`, those of the place and of `to`.
    pub async fn read(&self, file: &FileEntry, to: &mut (dyn Write + Send)) -> Result<()> {
        for chunk in &file.chunks {
            let data = read_chunk(&self.key, &*self.place, Part::Data, chunk).await?;
            to.write_all(&data)?;
        }
        Ok(())
    }

    /// Restores all files below a folder, which is made if it is missing. A file that is there with the right content stays;
    /// one with other content is *not* replaced and is told as failed. Files appear whole or not at all. No link is followed
    /// below the folder.
    ///
    /// # Errors
    /// `IO_FAILED` if the folder cannot be made. What is wrong with single files is in the report.
    pub async fn restore(&self, folder: &Path) -> Result<Restored> {
        let folder = folder.to_owned();
        let top = blocking(move || {
            std::fs::create_dir_all(&folder)?;
            Ok(Arc::new(rustix::fs::open(&folder, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(io)?))
        })
        .await?;
        let mut report = Restored::default();
        for file in &self.manifest.files {
            match self.restore_file(&top, file).await {
                Ok(true) => {
                    report.files += 1;
                    report.bytes += file.size;
                }
                Ok(false) => report.present += 1,
                Err(error) => report.failed.push((file.path.clone(), error.to_string())),
            }
        }
        Ok(report)
    }

    async fn restore_file(&self, top: &Arc<OwnedFd>, file: &FileEntry) -> Result<bool> {
        let entry = file.clone();
        let top = top.clone();
        let begun = blocking(move || begin(&top, &entry)).await?;
        let Some(mut unfinished) = begun else { return Ok(false) };
        for chunk in &file.chunks {
            let data = read_chunk(&self.key, &*self.place, Part::Data, chunk).await?;
            unfinished = blocking(move || {
                unfinished.file.write_all(&data)?;
                Ok(unfinished)
            })
            .await?;
        }
        let entry = file.clone();
        blocking(move || unfinished.finish(&entry)).await?;
        Ok(true)
    }

    /// Reads everything that the generation needs, and compares it. Give it time: all bytes are transferred.
    ///
    /// # Errors
    /// Those of the place that concern no single object.
    pub async fn verify(&self) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let mut known: HashSet<ChunkId> = HashSet::new();
        let mut bad: HashSet<ChunkId> = HashSet::new();
        for chunk in self.manifest.files.iter().flat_map(|f| &f.chunks) {
            if !known.insert(chunk.id) {
                continue;
            }
            match read_chunk(&self.key, &*self.place, Part::Data, chunk).await {
                Ok(data) => {
                    report.objects += 1;
                    report.bytes += data.len() as u64;
                }
                Err(e) if e.is(Reason::ChunkDamaged) || e.is(Reason::EntryUnknown) => {
                    bad.insert(chunk.id);
                }
                Err(e) => return Err(e),
            }
        }
        let hit = self.manifest.files.iter().filter(|f| f.chunks.iter().any(|c| bad.contains(&c.id)));
        report.hit = hit.map(|f| f.path.clone()).collect::<BTreeSet<_>>().into_iter().collect();
        Ok(report)
    }
}

fn io(error: rustix::io::Errno) -> Error {
    Error::from(std::io::Error::from(error))
}

/// A file that is being restored, under a temporary name.
struct Unfinished {
    folder: OwnedFd,
    temporary: String,
    name: String,
    file: File,
    done: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.done {
            let _ = rustix::fs::unlinkat(&self.folder, &self.temporary, AtFlags::empty());
        }
    }
}

impl Unfinished {
    fn finish(mut self, entry: &FileEntry) -> Result<()> {
        let mode = entry.mode & 0o777;
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode)).map_err(io)?;
        let since = Duration::from_millis(entry.mtime_ms.unsigned_abs());
        let time = if entry.mtime_ms < 0 { UNIX_EPOCH.checked_sub(since) } else { UNIX_EPOCH.checked_add(since) };
        if let Some(time) = time {
            // A time that the file system does not take is no reason to lose the file.
            let _ = self.file.set_modified(time);
        }
        self.file.sync_all()?;
        // A link fails if there is something of that name by now, where a rename would replace it.
        rustix::fs::linkat(&self.folder, &self.temporary, &self.folder, &self.name, AtFlags::empty()).map_err(io)?;
        rustix::fs::unlinkat(&self.folder, &self.temporary, AtFlags::empty()).map_err(io)?;
        self.done = true;
        rustix::fs::fsync(&self.folder).map_err(io)
    }
}

/// Opens the folder that a file belongs into, making what is missing and following no link, and begins the file; `None` if it
/// is there already with the right content.
fn begin(top: &OwnedFd, entry: &FileEntry) -> Result<Option<Unfinished>> {
    let folder_flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut folder = rustix::io::fcntl_dupfd_cloexec(top, 0).map_err(io)?;
    let (above, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
    for segment in above.split('/').filter(|s| !s.is_empty()) {
        match rustix::fs::mkdirat(&folder, segment, Mode::from_raw_mode(0o755)) {
            Err(e) if e != rustix::io::Errno::EXIST => return Err(io(e)),
            _ => {}
        }
        folder = rustix::fs::openat(&folder, segment, folder_flags, Mode::empty()).map_err(io)?;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(&folder, name, flags, Mode::empty()) {
        Ok(there) => {
            if is_same(File::from(there), entry)? {
                return Ok(None);
            }
            return Err(in_the_way());
        }
        Err(rustix::io::Errno::NOENT) => {}
        Err(_) => return Err(in_the_way()),
    }
    let temporary = format!(".atrium-restore-{}", uuid::Uuid::new_v4().simple());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&folder, &temporary, flags, Mode::from_raw_mode(0o600)).map_err(io)?;
    Ok(Some(Unfinished { folder, temporary, name: name.to_owned(), file: File::from(file), done: false }))
}

fn in_the_way() -> Error {
    Error::new(Reason::EntryExists, "something else is there under that name, and was left alone")
}

fn is_same(mut file: File, entry: &FileEntry) -> Result<bool> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() != entry.size {
        return Ok(false);
    }
    for chunk in &entry.chunks {
        let mut data = vec![0; chunk.len as usize];
        if file.read_exact(&mut data).is_err() || ChunkId::of(&data) != chunk.id {
            return Ok(false);
        }
    }
    Ok(true)
}
