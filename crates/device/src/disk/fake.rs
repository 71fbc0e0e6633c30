//! A disk of a stated size on a real directory: for demos, and for tests of what a full disk does.

use common::chunk::disk::{Disk, DiskFile, OsDisk};
use std::any::Any;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Says that it has as many bytes as it was told, and takes no more; its files lie in a directory. Bytes that "others" use
/// can be set, as when the owner fills the disk.
#[derive(Clone)]
pub struct SmallDisk {
    inner: Arc<OsDisk>,
    capacity: u64,
    others: Arc<AtomicU64>,
}

impl SmallDisk {
    /// With this capacity, in this directory.
    ///
    /// # Errors
    /// As the file system says.
    pub fn open(directory: &Path, capacity: u64) -> io::Result<Self> {
        Ok(Self { inner: Arc::new(OsDisk::open(directory)?), capacity, others: Arc::default() })
    }

    /// So many bytes are used by others from now on.
    pub fn set_others(&self, bytes: u64) {
        self.others.store(bytes, Ordering::SeqCst);
    }

    fn free(&self) -> io::Result<u64> {
        let mut used = self.others.load(Ordering::SeqCst);
        for name in self.inner.list()? {
            // A file that goes meanwhile is not counted.
            used += self.inner.path(&name).and_then(|p| std::fs::metadata(p).ok()).map_or(0, |m| m.len());
        }
        Ok(self.capacity.saturating_sub(used))
    }
}

impl Disk for SmallDisk {
    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        self.inner.lock()
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SmallFile { file: self.inner.create(name)?, disk: self.clone() }))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SmallFile { file: self.inner.open(name)?, disk: self.clone() }))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn sync_names(&self) -> io::Result<()> {
        self.inner.sync_names()
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.free()
    }
    fn path(&self, name: &str) -> Option<PathBuf> {
        self.inner.path(name)
    }
}

struct SmallFile {
    file: Arc<dyn DiskFile>,
    disk: SmallDisk,
}

impl DiskFile for SmallFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.file.read_at(offset, len)
    }
    fn write_at(&self, offset: u64, data: &mut [IoSlice<'_>]) -> io::Result<()> {
        let end = offset + data.iter().map(|d| d.len() as u64).sum::<u64>();
        if end.saturating_sub(self.file.len()?) > self.disk.free()? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_at(offset, data)
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn forget_pages(&self) {
        self.file.forget_pages();
    }
}
