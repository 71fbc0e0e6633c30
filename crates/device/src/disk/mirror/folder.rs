//! A folder of this machine as the source of a mirror.

use super::manifest::FileEntry;
use super::writer::Source;
use bytes::Bytes;
use common::chunk::Chunker;
use common::error::{Error, Reason, Result};
use common::model::{ChunkRef, EntryName};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

const DEPTH_MAX: usize = 127;

/// All regular files below a folder. Links are not followed; what has a name that Atrium does not take is passed over, as are
/// devices, sockets and empty folders. Cuts and hashes everything each time: a node that has an index of a share uses that.
#[derive(Clone, Debug)]
pub struct FolderSource {
    folder: PathBuf,
}

impl FolderSource {
    /// Of this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn walk(&self, folder: &Path, below: &str, depth: usize, files: &mut Vec<FileEntry>) -> Result<()> {
        if depth > DEPTH_MAX {
            return Ok(());
        }
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().and_then(|n| EntryName::new(n).ok()) else { continue };
            let path = if below.is_empty() { name.to_string() } else { format!("{below}/{name}") };
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.walk(&entry.path(), &path, depth + 1, files)?;
            } else if kind.is_file() {
                // One that went meanwhile is not there.
                files.extend(read_entry(&entry.path(), path).ok());
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<File> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed();
    Ok(std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?)
}

fn read_entry(path: &Path, name: String) -> Result<FileEntry> {
    let file = open(path)?;
    let metadata = file.metadata()?;
    let chunks: Vec<ChunkRef> = Chunker::new(&file).map(|p| Ok(p?.chunk)).collect::<Result<_>>()?;
    let modified = metadata.modified()?;
    let millis = |d: std::time::Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
    let mtime_ms = match modified.duration_since(UNIX_EPOCH) {
        Ok(since) => millis(since),
        Err(before) => -millis(before.duration()),
    };
    let size = chunks.iter().map(|c| u64::from(c.len)).sum();
    Ok(FileEntry { path: name, mode: metadata.mode() & 0o777, mtime_ms, size, chunks })
}

impl Source for FolderSource {
    fn files(&self) -> Result<Vec<FileEntry>> {
        let mut files = Vec::new();
        self.walk(&self.folder, "", 0, &mut files)?;
        Ok(files)
    }

    fn read(&self, file: &FileEntry, offset: u64, chunk: &ChunkRef) -> Result<Bytes> {
        let mut data = vec![0; chunk.len as usize];
        let file = open(&self.folder.join(&file.path))?;
        file.read_exact_at(&mut data, offset)
            .map_err(|e| Error::new(Reason::LocalFileChanged, "the file was changed while it was read").caused_by(e))?;
        Ok(Bytes::from(data))
    }
}
