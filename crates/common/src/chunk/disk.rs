//! The file operations that the chunk store needs, as a trait: the operating system's, or a simulated disk that loses
//! what was not synced, fails at any step or is full (tests).
//!
//! A disk is one flat directory. What the store relies on, and no more:
//! * bytes written and not followed by a returned [`DiskFile::sync_data`] may survive a power cut in any part;
//! * names made, changed or removed and not followed by a returned [`Disk::sync_names`] may or may not survive;
//! * a rename replaces in one step;
//! * cutting a file short never needs space.

use std::any::Any;
use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most slices that one call of `pwritev` takes (IOV_MAX on Linux).
const SLICES_MAX: usize = 1024;

/// A directory of files.
pub trait Disk: Send + Sync + 'static {
    /// Keeps other processes out while the value lives; `None` if one is in.
    ///
    /// # Errors
    /// If the lock file cannot be made.
    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>>;
    /// Names of all files.
    ///
    /// # Errors
    /// If the directory cannot be read.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes a file; fails if the name is taken.
    ///
    /// # Errors
    /// As the file system says.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// As the file system says.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Gives a file another name; a file of that name is replaced in one step.
    ///
    /// # Errors
    /// As the file system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a name.
    ///
    /// # Errors
    /// As the file system says.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Returns when all changes of names are on disk.
    ///
    /// # Errors
    /// If they may not be; never to be tried again.
    fn sync_names(&self) -> io::Result<()>;
    /// Bytes that may still be written.
    ///
    /// # Errors
    /// As the file system says.
    fn free_bytes(&self) -> io::Result<u64>;
    /// Where a file is, if it is a file of this machine.
    fn path(&self, name: &str) -> Option<PathBuf>;
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Bytes in it.
    ///
    /// # Errors
    /// As the file system says.
    fn len(&self) -> io::Result<u64>;
    /// True if it has none.
    ///
    /// # Errors
    /// As the file system says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Exactly these bytes; `UnexpectedEof` if the file ends before.
    ///
    /// # Errors
    /// As the file system says.
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>>;
    /// Fills a buffer with the bytes from `offset` on; `UnexpectedEof` if the file ends before.
    ///
    /// # Errors
    /// As the file system says.
    fn read_into(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.copy_from_slice(&self.read_at(offset, buffer.len())?);
        Ok(())
    }
    /// Writes all slices one after the other.
    ///
    /// # Errors
    /// As the file system says; an unknown part may have been written.
    fn write_at(&self, offset: u64, data: &mut [IoSlice<'_>]) -> io::Result<()>;
    /// Cuts the file off.
    ///
    /// # Errors
    /// As the file system says.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Returns when content and length are on disk.
    ///
    /// # Errors
    /// If they may not be; never to be tried again, because the kernel drops what it could not write.
    fn sync_data(&self) -> io::Result<()>;
    /// Asks that clean pages leave memory, so that the next read shows what the disk has.
    fn forget_pages(&self);
}

/// Writes `bytes` as `name` so that after a crash there is the old file or the new one, whole.
///
/// # Errors
/// As the file system says; the old file is then still there.
pub fn write_whole(disk: &dyn Disk, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{name}.tmp");
    match disk.remove(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let written = disk.create(&temporary).and_then(|file| {
        file.write_at(0, &mut [IoSlice::new(bytes)])?;
        file.sync_data()
    });
    let done = written.and_then(|()| disk.rename(&temporary, name)).and_then(|()| disk.sync_names());
    if done.is_err() {
        let _ = disk.remove(&temporary);
    }
    done
}

/// A directory of the operating system.
#[derive(Debug)]
pub struct OsDisk {
    directory: PathBuf,
    handle: File,
    writable: bool,
}

impl OsDisk {
    /// Opens the directory, made if missing, readable by its owner only.
    ///
    /// # Errors
    /// As the file system says.
    pub fn open(directory: &Path) -> io::Result<Self> {
        if !directory.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            if let Some(parent) = directory.parent().filter(|p| !p.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(Self { directory: directory.to_owned(), handle: File::open(directory)?, writable: true })
    }

    /// Opens a directory that must be there, only to read from it.
    ///
    /// # Errors
    /// As the file system says.
    pub fn read_only(directory: &Path) -> io::Result<Self> {
        Ok(Self { directory: directory.to_owned(), handle: File::open(directory)?, writable: false })
    }
}

impl Disk for OsDisk {
    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        let file = options().create(true).truncate(false).open(self.directory.join("lock"))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OsFile(options().create_new(true).open(self.directory.join(name))?)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OsFile(options().write(self.writable).open(self.directory.join(name))?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.directory.join(from), self.directory.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.directory.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let s = rustix::fs::fstatvfs(&self.handle)?;
        Ok(s.f_bavail.saturating_mul(s.f_frsize))
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.directory.join(name))
    }
}

fn options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

struct OsFile(File);

impl DiskFile for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(len);
        // A Vec may get more room than asked for; the spare part is not filled beyond `len`, because reads stop there.
        while out.len() < len {
            let at = offset + out.len() as u64;
            let got = if out.capacity() == len {
                retry(|| rustix::io::pread(&self.0, rustix::buffer::spare_capacity(&mut out), at))?
            } else {
                let mut rest = vec![0; len - out.len()];
                let got = retry(|| rustix::io::pread(&self.0, &mut rest, at))?;
                out.extend_from_slice(&rest[..got]);
                got
            };
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(out)
    }

    fn read_into(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        while at < buffer.len() {
            match retry(|| rustix::io::pread(&self.0, &mut buffer[at..], offset + at as u64))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                got => at += got,
            }
        }
        Ok(())
    }

    fn write_at(&self, mut offset: u64, data: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut rest = data;
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let some = &rest[..rest.len().min(SLICES_MAX)];
            let wrote = retry(|| rustix::io::pwritev(&self.0, some, offset))?;
            if wrote == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += wrote as u64;
            IoSlice::advance_slices(&mut rest, wrote);
        }
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn forget_pages(&self) {
        // A hint: if the file system does not take it, reads are served from memory as ever.
        let _ = rustix::fs::fadvise(&self.0, 0, None, rustix::fs::Advice::DontNeed);
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}
