//! The store's directory: made durably, locked against a second process.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
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

/// The newest revision that was known to be durable, in a file beside the engine's.
///
/// An engine takes a damaged end of its log for a batch that was cut off by a crash, and quietly goes back to the state
/// before it. The store would then be sound, and acknowledged commits would be gone. This file tells: it is written after
/// each batch, without a sync, so whatever version of it survives names a revision that the engine must have.
pub(super) struct Witness {
    file: File,
    instance: [u8; 16],
}

const WITNESS: &str = "witness";

impl Witness {
    /// Opens the witness and hears it.
    ///
    /// # Errors
    /// `STORE_CORRUPT` if it has seen a later revision of this instance than `revision`.
    pub fn open(directory: &Path, instance: [u8; 16], revision: u64) -> Result<Self> {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(directory.join(WITNESS))?;
        let mut said = [0; 32];
        // A file that is short or does not match its own checksum was cut off by a crash and says nothing.
        if file.read_exact_at(&mut said, 0).is_ok()
            && said == Self::encode(instance, seen(&said))
            && seen(&said) > revision
        {
            return Err(Error::new(Reason::StoreCorrupt, "the newest commits of the store are gone")
                .why_is("the end of the database file is damaged, or the file was replaced by an older one")
                .fix_is("restore the newest snapshot or backup; to go on without the lost commits, remove the file 'witness'")
                .with("found_revision", revision)
                .with("expected_revision", seen(&said)));
        }
        Ok(Self { file, instance })
    }

    fn encode(instance: [u8; 16], revision: u64) -> [u8; 32] {
        let mut out = [0; 32];
        out[..16].copy_from_slice(&instance);
        out[16..24].copy_from_slice(&revision.to_le_bytes());
        let sum = blake3::hash(&out[..24]);
        out[24..].copy_from_slice(&sum.as_bytes()[..8]);
        out
    }

    /// Notes a durable revision.
    pub fn note(&self, revision: u64) {
        if let Err(error) = self.file.write_all_at(&Self::encode(self.instance, revision), 0) {
            tracing::warn!(%error, "the store's witness file could not be written");
        }
    }
}

fn seen(said: &[u8; 32]) -> u64 {
    super::record::read_u64(said, 16).unwrap_or(0)
}
