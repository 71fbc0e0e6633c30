//! The store's directory: made durably, locked against a second process.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Reason, Result};

/// Makes a directory and its missing parents, readable by their owner only, and syncs every directory that got an entry.
pub(super) fn create(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(parent) = parent {
        create(parent)?;
    }
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        other => other?,
    }
    sync(path)?;
    sync(parent.unwrap_or(Path::new(".")))
}

/// Makes the entries of a directory durable.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The lock on a store's directory; given up when dropped or when the process ends.
pub(super) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Locks `directory`, waiting up to `patience` for a process that is just ending.
    ///
    /// # Errors
    /// `STORE_BUSY` if another process (or another store in this one) has it.
    pub fn take(directory: &Path, patience: Duration) -> Result<Self> {
        let file = File::options().create(true).truncate(false).write(true).open(directory.join("LOCK"))?;
        let started = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if started.elapsed() < patience => {
                    std::thread::park_timeout(Duration::from_millis(20));
                }
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {
                    return Err(Error::new(Reason::StoreBusy, "the store's directory is in use by another process"));
                }
                Err(e) => return Err(io::Error::from(e).into()),
            }
        }
    }
}
