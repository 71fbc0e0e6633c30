//! Files of this machine: opened without following links, noticed when they change, replaced in one step.

use crate::error::{Error, Reason, Result};
use std::fs::{self, File, FileTimes, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

/// End of the names of unfinished downloads; they begin with a dot.
pub(super) const PART_SUFFIX: &str = ".atrium-part";

/// Attempts to get hold of an unfinished file that others finish or throw away meanwhile; then another name is taken.
const CLAIMS_MAX: usize = 16;

/// The error for a local file, in the system's words.
pub(super) fn local_error(path: &Path, what: &str, error: io::Error) -> Error {
    let why = error.to_string();
    let fix = match error.kind() {
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::PermissionDenied => "check the file's permissions",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space on this machine",
        _ => "check the file and the disk",
    };
    let reason = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Reason::DiskFull,
        _ => Reason::IoFailed,
    };
    Error::new(reason, format!("{} could not be {what}", path.display())).why_is(why).fix_is(fix).caused_by(error)
}

/// What tells whether a file's content is still the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// A regular file that is open for reading.
#[derive(Debug)]
pub(super) struct LocalFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
    pub(super) mode: u32,
    pub(super) modified: SystemTime,
}

impl LocalFile {
    /// Opens it. Links are followed only if asked; anything but a regular file is refused, without waiting for the other
    /// end of a pipe.
    pub(super) fn open(path: &Path, follow: bool) -> Result<Self> {
        let mut flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
        if !follow {
            flags |= rustix::fs::OFlags::NOFOLLOW;
        }
        let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path);
        let file = file.map_err(|e| local_error(path, "opened", e))?;
        Self::from_file(file, path)
    }

    pub(super) fn from_file(file: File, path: &Path) -> Result<Self> {
        let meta = file.metadata().map_err(|e| local_error(path, "read", e))?;
        if meta.is_dir() {
            return Err(Error::new(Reason::IsADirectory, format!("{} is a directory", path.display())));
        }
        if !meta.is_file() {
            return Err(Error::new(Reason::IoFailed, format!("{} is not a regular file", path.display()))
                .why_is("it is a device, a pipe or a socket")
                .fix_is("name a regular file"));
        }
        Ok(Self {
            stamp: Stamp::of(&meta),
            mode: meta.mode() & 0o777,
            modified: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            file,
            path: path.to_owned(),
        })
    }

    /// Fails if the file was changed since it was opened.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let meta = self.file.metadata().map_err(|e| local_error(&self.path, "read", e))?;
        if Stamp::of(&meta) == self.stamp { Ok(()) } else { Err(changed(&self.path)) }
    }

    /// Content from this position on; fails if there is less.
    pub(super) fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; len];
        match self.file.read_exact_at(&mut data, offset) {
            Ok(()) => Ok(data),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(changed(&self.path)),
            Err(e) => Err(local_error(&self.path, "read", e)),
        }
    }
}

/// The error for a file that did not hold still.
pub(super) fn changed(path: &Path) -> Error {
    Error::new(Reason::LocalFileChanged, format!("{} changed while it was read", path.display()))
}

/// Reads at a position of its own, so that clones of one open file do not disturb each other.
#[derive(Debug)]
pub(super) struct PositionReader {
    pub(super) file: std::sync::Arc<LocalFile>,
    pub(super) position: u64,
}

impl io::Read for PositionReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.file.read_at(buffer, self.position)?;
        self.position += got as u64;
        Ok(got)
    }
}

/// The unfinished file beside a target.
pub(super) fn part_path(target: &Path) -> Result<PathBuf> {
    let nameless = || Error::new(Reason::NameInvalid, format!("{} names no file", target.display()));
    let name = target.file_name().ok_or_else(nameless)?;
    let bytes = name.as_encoded_bytes();
    let part = if bytes.len() + 1 + PART_SUFFIX.len() <= 255 {
        let mut part = std::ffi::OsString::from(".");
        part.push(name);
        part.push(PART_SUFFIX);
        part
    } else {
        format!(".{}{PART_SUFFIX}", blake3::hash(bytes).to_hex()).into()
    };
    Ok(target.with_file_name(part))
}

/// True for names that [`part_path`] makes.
pub(super) fn is_part(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(PART_SUFFIX)
}

fn new_part(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

fn open_part(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    OpenOptions::new().read(true).write(true).custom_flags(flags.bits() as i32).open(path)
}

/// An unfinished file that nobody else uses. Its content may be of any version: it counts only where it has the digest
/// that is wanted.
#[derive(Debug)]
pub(super) struct PartFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

impl PartFile {
    /// The one of an earlier attempt if there is one, else a new one. If it is in use, or is no file of ours, one of another
    /// name.
    ///
    /// Whoever holds the lock of the file that has the name owns the name: nobody else removes or renames it. A file that is
    /// locked only after it was made, or opened, may have changed hands in between, which is seen by looking again.
    pub(super) fn claim(target: &Path) -> Result<Self> {
        let path = part_path(target)?;
        for _ in 0..CLAIMS_MAX {
            let file = match new_part(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match open_part(&path) {
                    Ok(file) if is_ours(&file) => file,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    // A link, a device, somebody else's file: left alone.
                    _ => break,
                },
                Err(e) => return Err(local_error(&path, "created", e)),
            };
            if !lock(&file) {
                break;
            }
            if same_file(&file, &path) {
                return Ok(Self { file, path });
            }
        }
        let path = target.with_file_name(format!(".{}{PART_SUFFIX}", uuid::Uuid::new_v4()));
        let file = new_part(&path).map_err(|e| local_error(&path, "created", e))?;
        lock(&file);
        Ok(Self { file, path })
    }

    /// Throws the content away; with it goes the file, unless it has been published.
    pub(super) fn clear(&self) -> Result<()> {
        self.file.set_len(0).map_err(|e| local_error(&self.path, "written", e))
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        // One without content helps nobody. After it has been published its name is gone.
        if self.file.metadata().is_ok_and(|m| m.len() == 0) && same_file(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Regular, of this user, and not linked elsewhere.
fn is_ours(file: &File) -> bool {
    let ours = |m: Metadata| m.is_file() && m.nlink() == 1 && m.uid() == rustix::process::geteuid().as_raw();
    file.metadata().is_ok_and(ours)
}

fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Marks a file as in use; false if it is already. The mark goes with the file handle.
fn lock(file: &File) -> bool {
    rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// Gives the finished file its attributes and its name.
pub(super) fn publish(
    file: &File,
    part: &Path,
    target: &Path,
    mode: u32,
    modified: Option<SystemTime>,
    replace: bool,
    sync: bool,
) -> Result<()> {
    let mode = if mode & 0o777 == 0 { default_mode() } else { mode & 0o777 };
    let failed = |what: &'static str| move |e| local_error(target, what, e);
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed("given its mode"))?;
    if let Some(modified) = modified {
        file.set_times(FileTimes::new().set_modified(modified)).map_err(failed("given its time"))?;
    }
    if sync {
        file.sync_all().map_err(failed("written to the disk"))?;
    }
    if replace {
        fs::rename(part, target).map_err(failed("replaced"))?;
    } else {
        let cwd = rustix::fs::CWD;
        match rustix::fs::renameat_with(cwd, part, cwd, target, rustix::fs::RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::EXIST) => return Err(exists(target)),
            other => other.map_err(|e| local_error(target, "created", e.into()))?,
        }
    }
    if sync {
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|d| d.sync_all()).map_err(failed("written to the disk"))?;
    }
    Ok(())
}

/// The error for a target that must not be replaced.
pub(super) fn exists(target: &Path) -> Error {
    Error::new(Reason::EntryExists, format!("{} is there already", target.display()))
}

/// What a program would give a new file.
fn default_mode() -> u32 {
    static MODE: OnceLock<u32> = OnceLock::new();
    *MODE.get_or_init(|| {
        // The system call that tells the mask also sets it, for all threads; this file does not.
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|l| l.strip_prefix("Umask:"));
        let mask = mask.and_then(|m| u32::from_str_radix(m.trim(), 8).ok()).unwrap_or(0o022);
        0o666 & !mask
    })
}

/// Runs file work on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(Error::internal("a thread of a transfer ended").caused_by(e)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::thread;

    #[test]
    fn one_at_a_time_has_an_unfinished_file() {
        const WRITERS: u8 = 4;
        const ROUNDS: usize = 200;
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a");
        let write = |letter: u8, round: usize| {
            let part = PartFile::claim(&target).unwrap();
            part.clear().unwrap();
            for piece in [round % 7, round % 5] {
                (&part.file).write_all(&vec![letter; 100 * piece]).unwrap();
            }
            // Some give up: what they leave is found by others.
            if !round.is_multiple_of(3) {
                publish(&part.file, &part.path, &target, 0, None, true, false).unwrap();
            }
            let whole = fs::read(&target).unwrap_or_default();
            let first = whole.first().copied().unwrap_or(letter);
            assert!(whole.iter().all(|b| *b == first), "two contents in one file");
        };
        thread::scope(|scope| {
            for letter in 0..WRITERS {
                scope.spawn(move || (0..ROUNDS).for_each(|round| write(letter, round)));
            }
        });
    }

    #[test]
    fn what_an_earlier_attempt_left_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a");
        let part = PartFile::claim(&target).unwrap();
        (&part.file).write_all(b"half").unwrap();
        let other = PartFile::claim(&target).unwrap();
        assert_ne!(other.path, part.path, "in use");
        let (path, another) = (part.path.clone(), other.path.clone());
        drop((part, other));
        assert!(path.exists() && !another.exists(), "one without content is not kept");
        let again = PartFile::claim(&target).unwrap();
        assert_eq!((again.file.metadata().unwrap().len(), &again.path), (4, &path));
    }
}
