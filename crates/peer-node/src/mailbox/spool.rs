//! Writing what is sent into the outbox: each chunk once, one after the other, in one file.

use super::Prepared;
use super::parcel::ParcelFile;
use crate::model::Content;
use bytes::Bytes;
use common::chunk::Chunker;
use common::error::{Error, Reason, Result};
use common::model::{ChunkId, ChunkRef, EntryName};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, watch};

/// Most files and directories of a parcel.
const MAX_ENTRIES: usize = 200_000;
/// Deepest folder.
const MAX_DEPTH: usize = 128;

/// What to send.
pub enum Contents {
    /// Files and folders.
    Paths(Vec<PathBuf>),
    /// One file whose content comes through a channel; an empty piece is its end.
    Stream {
        /// Its name.
        name: String,
        /// What is in it.
        pieces: mpsc::Receiver<Bytes>,
    },
}

/// What was written.
#[derive(Debug)]
pub struct Spooled {
    /// In the order of the content file.
    pub files: Vec<ParcelFile>,
    /// What the parcel is called.
    pub title: String,
    /// Bytes of all files.
    pub total_bytes: u64,
}

/// Writes the contents into a file, which is on disk when this returns. Blocking.
///
/// Symbolic links and special files are left out. A file that changes meanwhile is sent as it was read.
///
/// # Errors
/// IO_FAILED, naming the file; NAME_INVALID; TREE_TOO_LARGE; OUTBOX_FULL above `limit` bytes; CANCELLED.
pub fn write(contents: Contents, to: &Path, limit: u64, progress: &watch::Sender<Prepared>) -> Result<Spooled> {
    let out = BufWriter::with_capacity(1 << 20, File::create(to)?);
    let mut writer = Writer { out, known: HashSet::new(), written: 0, limit, read: 0, progress, files: Vec::new() };
    let title = match contents {
        Contents::Paths(paths) => writer.paths(&paths)?,
        Contents::Stream { name, pieces } => writer.stream(name, pieces)?,
    };
    let Writer { mut out, files, .. } = writer;
    out.flush()?;
    out.get_ref().sync_all()?;
    let total_bytes = files.iter().filter_map(|f| f.content.as_ref()).map(|c| c.size_bytes).sum();
    Ok(Spooled { files, title, total_bytes })
}

/// Where each chunk is in a content file that was written so.
pub fn offsets(chunks: &[ChunkRef]) -> HashMap<ChunkId, (u64, u32)> {
    let mut at = 0;
    let mut places = HashMap::with_capacity(chunks.len());
    for chunk in chunks {
        if let std::collections::hash_map::Entry::Vacant(free) = places.entry(chunk.id) {
            free.insert((at, chunk.len));
            at += u64::from(chunk.len);
        }
    }
    places
}

struct Writer<'a> {
    out: BufWriter<File>,
    known: HashSet<ChunkId>,
    written: u64,
    limit: u64,
    read: u64,
    progress: &'a watch::Sender<Prepared>,
    files: Vec<ParcelFile>,
}

impl Writer<'_> {
    fn paths(&mut self, paths: &[PathBuf]) -> Result<String> {
        let mut names = HashSet::new();
        for path in paths {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let name = EntryName::new(name)?;
            if !names.insert(name.as_str().to_owned()) {
                return Err(Error::new(
                    Reason::NameClash,
                    format!("two things named {:?} are to be sent", name.as_str()),
                ));
            }
            // What the person names may be a link; what is found below a folder may not.
            let metadata = fs::metadata(path).map_err(|e| cannot_read(path, e))?;
            if metadata.is_dir() {
                self.folder(path, name.as_str(), 1)?;
            } else {
                self.file(path, name.as_str())?;
            }
        }
        match paths {
            [one] => Ok(one.file_name().unwrap_or_default().to_string_lossy().into_owned()),
            many => Ok(format!("{} things", many.len())),
        }
    }

    fn folder(&mut self, path: &Path, name: &str, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::new(Reason::TreeTooLarge, format!("{} is deeper than 128 folders", path.display())));
        }
        let metadata = fs::symlink_metadata(path).map_err(|e| cannot_read(path, e))?;
        self.push(ParcelFile { path: name.to_owned(), mtime_ns: 0, mode: metadata.mode() & 0o777, content: None })?;
        let entries = fs::read_dir(path).map_err(|e| cannot_read(path, e))?;
        let mut entries = entries.collect::<std::io::Result<Vec<_>>>().map_err(|e| cannot_read(path, e))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let kind = entry.file_type()?;
            let file_name = entry.file_name();
            let Some(child) = file_name.to_str().and_then(|n| EntryName::new(n).ok()) else { continue };
            let child = format!("{name}/{}", child.as_str());
            if kind.is_dir() {
                self.folder(&entry.path(), &child, depth + 1)?;
            } else if kind.is_file() {
                self.file(&entry.path(), &child)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, name: &str) -> Result<()> {
        // Not blocking, should a pipe stand where a file was.
        use std::os::unix::fs::OpenOptionsExt;
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(path).map_err(|e| cannot_read(path, e))?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(Error::new(Reason::IoFailed, format!("{} is no file", path.display())));
        }
        let content = self.content(file).map_err(|e| match e.is(Reason::IoFailed) {
            true => Error::new(Reason::IoFailed, format!("{} cannot be read", path.display())).caused_by(e),
            false => e,
        })?;
        let mtime_ns = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
        let mode = metadata.permissions().mode() & 0o777;
        self.push(ParcelFile { path: name.to_owned(), mtime_ns, mode, content: Some(content) })
    }

    fn stream(&mut self, name: String, pieces: mpsc::Receiver<Bytes>) -> Result<String> {
        let name = EntryName::new(name)?.as_str().to_owned();
        let content = self.content(Pieces { pieces, now: Bytes::new(), ended: false }).map_err(|e| {
            match e.is(Reason::IoFailed) {
                true => Error::new(Reason::Cancelled, "the stream broke off; nothing was sent").caused_by(e),
                false => e,
            }
        })?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mtime_ns = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        self.push(ParcelFile { path: name.clone(), mtime_ns, mode: 0o644, content: Some(content) })?;
        Ok(name)
    }

    fn content(&mut self, from: impl Read) -> Result<Content> {
        let mut chunks = Vec::new();
        for piece in Chunker::new(from) {
            let piece = piece?;
            self.read += piece.data.len() as u64;
            if self.known.insert(piece.chunk.id) {
                self.written += piece.data.len() as u64;
                if self.written > self.limit {
                    return Err(Error::new(Reason::OutboxFull, "there is no room in the outbox"));
                }
                self.out.write_all(&piece.data)?;
            }
            chunks.push(piece.chunk);
            self.progress.send_modify(|p| p.bytes = self.read);
        }
        Ok(Content::of(chunks))
    }

    fn push(&mut self, file: ParcelFile) -> Result<()> {
        if self.files.len() == MAX_ENTRIES {
            return Err(Error::new(Reason::TreeTooLarge, "more than 200,000 files are to be sent at once"));
        }
        self.files.push(file);
        Ok(())
    }
}

fn cannot_read(path: &Path, error: std::io::Error) -> Error {
    Error::new(Reason::IoFailed, format!("{} cannot be read", path.display()))
        .why_is(error.to_string())
        .fix_is("check its name and rights")
}

struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    now: Bytes,
    ended: bool,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.now.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(piece) if piece.is_empty() => self.ended = true,
                Some(piece) => self.now = piece,
                None => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let n = buffer.len().min(self.now.len());
        buffer[..n].copy_from_slice(&self.now.split_to(n));
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(contents: Contents, limit: u64) -> (tempfile::TempDir, Result<Spooled>) {
        let dir = tempfile::tempdir().unwrap();
        let (progress, _) = watch::channel(Prepared::default());
        let done = write(contents, &dir.path().join("content"), limit, &progress);
        (dir, done)
    }

    #[test]
    fn each_chunk_is_written_once_and_links_are_left_out() {
        let source = tempfile::tempdir().unwrap();
        let folder = source.path().join("folder");
        fs::create_dir_all(folder.join("sub")).unwrap();
        fs::write(folder.join("a"), b"same").unwrap();
        fs::write(folder.join("sub/b"), b"same").unwrap();
        fs::write(folder.join("sub/c"), b"other").unwrap();
        fs::write(folder.join("empty"), b"").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.join("link")).unwrap();
        let (dir, spooled) = spool(Contents::Paths(vec![folder]), 1_000);
        let spooled = spooled.unwrap();
        let paths: Vec<&str> = spooled.files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(paths, ["folder", "folder/a", "folder/empty", "folder/sub", "folder/sub/b", "folder/sub/c"]);
        assert_eq!((spooled.title.as_str(), spooled.total_bytes), ("folder", 13));
        assert_eq!(fs::read(dir.path().join("content")).unwrap(), b"sameother");
        let all: Vec<ChunkRef> =
            spooled.files.iter().filter_map(|f| f.content.as_ref()).flat_map(|c| c.chunks.to_vec()).collect();
        assert_eq!(offsets(&all)[&ChunkId::of(b"other")], (4, 5));
    }

    #[test]
    fn a_stream_that_breaks_off_sends_nothing_and_a_full_outbox_says_so() {
        let feed = |pieces: &[&'static [u8]]| {
            let (sender, receiver) = mpsc::channel(8);
            pieces.iter().for_each(|p| sender.try_send(Bytes::from_static(p)).unwrap());
            Contents::Stream { name: "dump.tar".into(), pieces: receiver }
        };
        let (_dir, whole) = spool(feed(&[b"ab", b"c", b""]), 100);
        assert_eq!(whole.unwrap().total_bytes, 3);
        let (_dir, cut) = spool(feed(&[b"ab", b"c"]), 100);
        assert!(cut.unwrap_err().is(Reason::Cancelled));
        let (_dir, full) = spool(feed(&[b"abc", b""]), 2);
        assert!(full.unwrap_err().is(Reason::OutboxFull));
    }
}
