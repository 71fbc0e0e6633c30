//! Documents on disk.
//!
//! A document comes in as `.ID.part`. [`Part::seal`] syncs it, gives it its name and syncs the directory: from then on it
//! is durable. A part that is dropped before is removed. What a crash leaves is removed by the next start.
//!
//! What is coming in is bounded: [`INCOMING_MAX`] documents at a time, [`INCOMING_PER_USER`] of one person; their bytes
//! count against the size of the spool from the moment they are written.

use super::super::office::make_private;
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// Documents that come in at a time.
pub const INCOMING_MAX: usize = 64;
/// Documents of one person that come in at a time.
pub const INCOMING_PER_USER: usize = 4;

/// The directory of documents.
#[derive(Clone, Debug)]
pub struct Spool {
    directory: PathBuf,
    incoming: Arc<Mutex<Incoming>>,
}

#[derive(Debug, Default)]
struct Incoming {
    count: usize,
    bytes: u64,
    by_user: HashMap<Uuid, usize>,
}

/// A place among the documents that come in; given back when dropped.
#[derive(Debug)]
struct Place {
    incoming: Arc<Mutex<Incoming>>,
    user: Uuid,
    bytes: u64,
}

impl Place {
    fn take(spool: &Spool, user: Uuid) -> Result<Self> {
        let mut incoming = spool.incoming.lock();
        let own = incoming.by_user.get(&user).copied().unwrap_or(0);
        if incoming.count >= INCOMING_MAX || own >= INCOMING_PER_USER {
            return Err(Error::new(Reason::Overloaded, "as many documents as are taken at a time are coming in")
                .retry_after(std::time::Duration::from_secs(2)));
        }
        incoming.count += 1;
        incoming.by_user.insert(user, own + 1);
        Ok(Self { incoming: spool.incoming.clone(), user, bytes: 0 })
    }

    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.incoming.lock().bytes += bytes;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut incoming = self.incoming.lock();
        incoming.count -= 1;
        incoming.bytes -= self.bytes;
        match incoming.by_user.get_mut(&self.user) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                incoming.by_user.remove(&self.user);
            }
        }
    }
}

/// A document that is coming in.
#[derive(Debug)]
pub struct Part {
    id: Uuid,
    file: Option<File>,
    path: PathBuf,
    directory: PathBuf,
    hasher: blake3::Hasher,
    size: u64,
    place: Place,
}

impl Spool {
    /// In this directory, which is made when it is needed.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, incoming: Arc::default() }
    }

    /// Begins a document. Blocks.
    ///
    /// # Errors
    /// `OVERLOADED`, `IO_FAILED`, `DISK_FULL`.
    pub fn begin(&self, id: Uuid, user: Uuid) -> Result<Part> {
        let place = Place::take(self, user)?;
        make_private(&self.directory)?;
        let path = self.directory.join(format!(".{id}.part"));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let directory = self.directory.clone();
        Ok(Part { id, file: Some(file), path, directory, hasher: blake3::Hasher::new(), size: 0, place })
    }

    /// Bytes of documents that are coming in.
    pub fn incoming_bytes(&self) -> u64 {
        self.incoming.lock().bytes
    }

    /// Opens a document. Blocks.
    ///
    /// # Errors
    /// `IO_FAILED`; none if it is not there.
    pub fn open(&self, id: Uuid) -> Result<Option<File>> {
        match File::open(self.path(id)) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes a document. Blocks. One that is read at the moment stays readable for its reader.
    ///
    /// # Errors
    /// `IO_FAILED`.
    pub fn remove(&self, id: Uuid) -> Result<()> {
        match std::fs::remove_file(self.path(id)) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Removes everything that `keep` does not know, and gives back how much. Only at the start. Blocks.
    ///
    /// # Errors
    /// `IO_FAILED`, and those of `keep`.
    pub fn sweep(&self, mut keep: impl FnMut(Uuid) -> Result<bool>) -> Result<usize> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
            Err(e) => return Err(e.into()),
        };
        let mut removed = 0;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|n| Uuid::try_parse(n).ok());
            let ours = id.is_some() || name.to_str().is_some_and(|n| n.starts_with('.') && n.ends_with(".part"));
            // What somebody else put here stays.
            let wanted = match id {
                Some(id) => keep(id)?,
                None => !ours,
            };
            if !wanted {
                std::fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// True if the document is there.
    ///
    /// # Errors
    /// `IO_FAILED`.
    pub fn has(&self, id: Uuid) -> Result<bool> {
        Ok(std::fs::exists(self.path(id))?)
    }

    fn path(&self, id: Uuid) -> PathBuf {
        self.directory.join(id.to_string())
    }
}

fn sync_directory(directory: &Path) -> Result<()> {
    Ok(File::open(directory)?.sync_all()?)
}

impl Part {
    /// Its id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds to it. Blocks.
    ///
    /// # Errors
    /// `IO_FAILED`, `DISK_FULL`.
    pub fn write(&mut self, data: &Bytes) -> Result<()> {
        let file = self.file.as_mut().ok_or_else(|| Error::internal("the document is sealed"))?;
        file.write_all(data)?;
        self.hasher.update(data);
        self.size += data.len() as u64;
        self.place.add(data.len() as u64);
        Ok(())
    }

    /// Makes it durable under its name. From now on dropping it removes nothing. Blocks. Gives its digest.
    ///
    /// # Errors
    /// `IO_FAILED`, `DISK_FULL`.
    pub fn seal(&mut self) -> Result<[u8; 32]> {
        let file = self.file.as_ref().ok_or_else(|| Error::internal("the document is sealed"))?;
        file.sync_all()?;
        let named = self.directory.join(self.id.to_string());
        std::fs::rename(&self.path, &named)?;
        // It has its name: whatever happens from here on, it is a start that decides whether it is wanted.
        self.file = None;
        sync_directory(&self.directory)?;
        Ok(*self.hasher.finalize().as_bytes())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool() -> (tempfile::TempDir, Spool) {
        let dir = tempfile::tempdir().expect("temp dir");
        let spool = Spool::new(dir.path().join("print"));
        (dir, spool)
    }

    fn names(spool: &Spool) -> usize {
        std::fs::read_dir(&spool.directory).map_or(0, Iterator::count)
    }

    #[test]
    fn a_document_is_there_when_it_is_sealed_and_gone_when_it_is_not() {
        let (_dir, spool) = spool();
        let (id, user) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut part = spool.begin(id, user).expect("begun");
        part.write(&Bytes::from_static(b"hello ")).expect("written");
        part.write(&Bytes::from_static(b"paper")).expect("written");
        assert_eq!((spool.incoming_bytes(), spool.has(id).expect("looked")), (11, false));
        assert_eq!(part.seal().expect("sealed"), *blake3::hash(b"hello paper").as_bytes());
        assert!(part.write(&Bytes::from_static(b"!")).is_err());
        drop(part);
        assert_eq!((spool.incoming_bytes(), spool.has(id).expect("looked"), names(&spool)), (0, true, 1));
        let mut given_up = spool.begin(Uuid::from_u128(3), user).expect("begun");
        given_up.write(&Bytes::from_static(b"x")).expect("written");
        drop(given_up);
        assert_eq!(names(&spool), 1);
        spool.remove(id).expect("removed");
        spool.remove(id).expect("harmless");
        assert!(spool.open(id).expect("looked").is_none());
    }

    #[test]
    fn a_start_removes_what_nobody_wants_and_nothing_else() {
        let (_dir, spool) = spool();
        assert_eq!(spool.sweep(|_| Ok(false)).expect("no directory yet"), 0);
        let user = Uuid::from_u128(9);
        let wanted = Uuid::from_u128(1);
        for n in 1..4 {
            spool.begin(Uuid::from_u128(n), user).expect("begun").seal().expect("sealed");
        }
        std::mem::forget(spool.begin(Uuid::from_u128(7), user).expect("a crash leaves it"));
        std::fs::write(spool.directory.join("notes.txt"), b"somebody's").expect("written");
        assert_eq!(spool.sweep(|id| Ok(id == wanted)).expect("swept"), 3);
        assert!(spool.has(wanted).expect("looked") && names(&spool) == 2);
    }

    #[test]
    fn what_comes_in_at_a_time_is_bounded() {
        let (_dir, spool) = spool();
        let begin = |n: u128, user: u128| spool.begin(Uuid::from_u128(n), Uuid::from_u128(user));
        let own: Vec<Part> = (0..INCOMING_PER_USER as u128).map(|n| begin(n, 1).expect("begun")).collect();
        assert!(begin(99, 1).expect_err("refused").is(Reason::Overloaded));
        let mut all = own;
        let mut n = 100;
        while all.len() < INCOMING_MAX {
            all.push(begin(n, n).expect("begun"));
            n += 1;
        }
        assert!(begin(5_000, 5_000).expect_err("refused").is(Reason::Overloaded));
        all.clear();
        begin(5_000, 1).expect("all places are free again");
    }
}
