//! Directories and files below a destination, reached step by step from an open directory: no link is followed, and no
//! name leads elsewhere.

use crate::transfer::order::PART_SUFFIX;
use common::error::{Error, Reason, Result};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directories that are kept open; all are closed when there are more.
const OPEN_MAX: usize = 128;
/// Longest name of a file.
const NAME_MAX: usize = 255;

/// The tree below a destination.
#[derive(Debug)]
pub struct Beneath {
    path: PathBuf,
    root: Arc<OwnedFd>,
    open: Mutex<HashMap<String, Arc<OwnedFd>>>,
}

/// What is at a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nothing.
    Nothing,
    /// A regular file of this size.
    File(u64),
    /// A directory.
    Directory,
    /// A link, a device, a pipe or a socket.
    Other,
}

impl Beneath {
    /// Opens the destination, or makes it. Links in the path of the destination itself are the user's business.
    ///
    /// # Errors
    /// NOT_A_DIRECTORY; IO_FAILED, DISK_FULL.
    pub fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(|e| named(path, "made", e))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| named(path, "opened", e.into()))?;
        Ok(Self { path: path.to_owned(), root: Arc::new(root), open: Mutex::new(HashMap::new()) })
    }

    /// The destination.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open destination.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Makes a directory, and those above it. One that is there is left as it is.
    ///
    /// # Errors
    /// NOT_A_DIRECTORY if something else is there; IO_FAILED, DISK_FULL.
    pub fn make(&self, path: &str, mode: u32) -> Result<()> {
        let (parent, name) = self.parent(path, true)?;
        match rustix::fs::mkdirat(&*parent, name, Mode::from_raw_mode(mode & 0o777 | 0o700)) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => self.directory(path, false).map(drop),
            Err(error) => Err(named(&self.path.join(path), "made", error.into())),
        }
    }

    /// What is at a path; nothing, too, if a directory above it is missing.
    ///
    /// # Errors
    /// NOT_A_DIRECTORY if the path leads through a file or a link; IO_FAILED.
    pub fn kind(&self, path: &str) -> Result<Kind> {
        let (parent, name) = match self.parent(path, false) {
            Err(error) if error.is(Reason::EntryUnknown) => return Ok(Kind::Nothing),
            other => other?,
        };
        match rustix::fs::statat(&*parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
                rustix::fs::FileType::RegularFile => Kind::File(u64::try_from(stat.st_size).unwrap_or(0)),
                rustix::fs::FileType::Directory => Kind::Directory,
                _ => Kind::Other,
            }),
            Err(Errno::NOENT) => Ok(Kind::Nothing),
            Err(error) => Err(named(&self.path.join(path), "looked at", error.into())),
        }
    }

    /// Opens a regular file for reading; `None` if there is none.
    ///
    /// # Errors
    /// As [`Beneath::kind`].
    pub fn read(&self, path: &str) -> Result<Option<File>> {
        let (parent, name) = match self.parent(path, false) {
            Err(error) if error.is(Reason::EntryUnknown) => return Ok(None),
            other => other?,
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match rustix::fs::openat(&*parent, name, flags, Mode::empty()) {
            Ok(fd) => {
                let file = File::from(fd);
                Ok(file.metadata()?.is_file().then_some(file))
            }
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => Ok(None),
            Err(error) => Err(named(&self.path.join(path), "opened", error.into())),
        }
    }

    /// Opens the unfinished file of a path for writing; with `make`, makes it and the directories above.
    ///
    /// # Errors
    /// NOT_A_DIRECTORY; IO_FAILED, DISK_FULL; ENTRY_UNKNOWN if it is not there and not to be made.
    pub fn part(&self, path: &str, mark: &str, make: bool) -> Result<File> {
        let (parent, name) = self.parent(path, make)?;
        let part = part_name(name, mark);
        let mut flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        if make {
            flags |= OFlags::CREATE;
        }
        match rustix::fs::openat(&*parent, part.as_str(), flags, Mode::from_raw_mode(0o600)) {
            Ok(fd) => {
                let file = File::from(fd);
                if !file.metadata()?.is_file() {
                    return Err(Error::new(Reason::IoFailed, "an unfinished file is not a regular file"));
                }
                Ok(file)
            }
            Err(Errno::NOENT) if !make => Err(Error::new(Reason::EntryUnknown, "the unfinished file is gone")),
            Err(error) => Err(named(&self.path.join(path), "made", error.into())),
        }
    }

    /// The path of an unfinished file.
    pub fn part_path(&self, path: &str, mark: &str) -> PathBuf {
        let full = self.path.join(path);
        let name = path.rsplit('/').next().unwrap_or(path);
        full.with_file_name(part_name(name, mark))
    }

    /// Gives an unfinished file its name.
    ///
    /// # Errors
    /// ENTRY_EXISTS if something is there and not to be replaced; IS_A_DIRECTORY; IO_FAILED, DISK_FULL.
    pub fn publish(&self, path: &str, mark: &str, replace: bool) -> Result<()> {
        let (parent, name) = self.parent(path, false)?;
        let part = part_name(name, mark);
        let renamed = if replace {
            rustix::fs::renameat(&*parent, part.as_str(), &*parent, name)
        } else {
            match rustix::fs::renameat_with(&*parent, part.as_str(), &*parent, name, RenameFlags::NOREPLACE) {
                // Not every file system can refuse by itself.
                Err(Errno::INVAL | Errno::NOSYS) if self.kind(path)? == Kind::Nothing => {
                    rustix::fs::renameat(&*parent, part.as_str(), &*parent, name)
                }
                other => other,
            }
        };
        renamed.map_err(|error| match error {
            Errno::EXIST | Errno::INVAL | Errno::NOSYS => exists(&self.path.join(path)),
            Errno::ISDIR | Errno::NOTEMPTY => {
                Error::new(Reason::IsADirectory, format!("{} is a directory", self.path.join(path).display()))
            }
            error => named(&self.path.join(path), "put in its place", error.into()),
        })
    }

    /// Removes an unfinished file; none there is fine.
    ///
    /// # Errors
    /// IO_FAILED.
    pub fn discard(&self, path: &str, mark: &str) -> Result<()> {
        let (parent, name) = match self.parent(path, false) {
            Err(error) if error.is(Reason::EntryUnknown) => return Ok(()),
            other => other?,
        };
        match rustix::fs::unlinkat(&*parent, part_name(name, mark).as_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(named(&self.path.join(path), "removed", error.into())),
        }
    }

    /// Bytes that may still be written; `None` if the system does not say.
    pub fn free_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::fstatvfs(&*self.root).ok()?;
        stat.f_bavail.checked_mul(stat.f_frsize)
    }

    /// The directory that a path is in, and the last name.
    fn parent<'a>(&self, path: &'a str, make: bool) -> Result<(Arc<OwnedFd>, &'a str)> {
        match path.rsplit_once('/') {
            None => Ok((self.root.clone(), path)),
            Some((parent, name)) => Ok((self.directory(parent, make)?, name)),
        }
    }

    fn directory(&self, path: &str, make: bool) -> Result<Arc<OwnedFd>> {
        if let Some(found) = self.open.lock().get(path) {
            return Ok(found.clone());
        }
        let (parent, name) = self.parent(path, make)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&*parent, name, flags, Mode::empty());
        let opened = match open() {
            Err(Errno::NOENT) if make => match rustix::fs::mkdirat(&*parent, name, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => open(),
                Err(error) => Err(error),
            },
            other => other,
        };
        let fd = Arc::new(opened.map_err(|error| self.not_a_directory(path, error))?);
        let mut kept = self.open.lock();
        if kept.len() >= OPEN_MAX {
            kept.clear();
        }
        kept.insert(path.to_owned(), fd.clone());
        Ok(fd)
    }

    fn not_a_directory(&self, path: &str, error: Errno) -> Error {
        let full = self.path.join(path);
        match error {
            Errno::NOENT => Error::new(Reason::EntryUnknown, format!("{} is not there", full.display())),
            Errno::NOTDIR | Errno::LOOP => {
                Error::new(Reason::NotADirectory, format!("{} is not a directory", full.display()))
                    .why_is("a file or a link is where a directory should be; links are not followed")
                    .fix_is("move it away, or choose another destination")
            }
            error => named(&full, "opened", error.into()),
        }
    }
}

/// Name of an unfinished file. `mark` tells transfers to the same place apart.
fn part_name(name: &str, mark: &str) -> String {
    let part = format!(".{name}.{mark}{PART_SUFFIX}");
    if part.len() <= NAME_MAX {
        return part;
    }
    let digest = blake3::hash(name.as_bytes()).to_hex();
    format!(".{}.{mark}{PART_SUFFIX}", &digest[..32])
}

/// The error for something that is in the way.
pub fn exists(path: &Path) -> Error {
    Error::new(Reason::EntryExists, format!("{} is there already", path.display()))
        .fix_is("choose another destination, or say that files may be replaced")
}

/// The error for a local file, in the system's words.
pub fn named(path: &Path, what: &str, error: io::Error) -> Error {
    let why = error.to_string();
    let (reason, fix) = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            (Reason::DiskFull, "free some space on this machine; the transfer goes on by itself")
        }
        io::ErrorKind::NotADirectory => (Reason::NotADirectory, "choose another destination"),
        io::ErrorKind::PermissionDenied => (Reason::IoFailed, "check the permissions of the destination"),
        _ => (Reason::IoFailed, "check the destination and its disk"),
    };
    Error::new(reason, format!("{} could not be {what}", path.display())).why_is(why).fix_is(fix).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        symlink(outside.path(), inside.path().join("out")).unwrap();
        symlink(outside.path().join("secret"), inside.path().join("file")).unwrap();
        symlink(outside.path().join("new"), inside.path().join(".x.m.atrium-part")).unwrap();
        let tree = Beneath::open(inside.path()).unwrap();
        assert!(tree.part("out/x", "m", true).unwrap_err().is(Reason::NotADirectory));
        assert!(tree.make("out/sub", 0o755).unwrap_err().is(Reason::NotADirectory));
        assert!(tree.kind("out/secret").unwrap_err().is(Reason::NotADirectory));
        assert!(tree.part("x", "m", true).is_err(), "a link in place of the unfinished file");
        assert_eq!(tree.kind("file").unwrap(), Kind::Other);
        assert!(tree.read("file").unwrap().is_none());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "nothing was made outside");
    }

    #[test]
    fn what_is_there_is_replaced_only_if_asked() {
        let directory = tempfile::tempdir().unwrap();
        let tree = Beneath::open(&directory.path().join("new/one")).unwrap();
        let long = "n".repeat(255);
        for name in ["a/b/c", "top", &long] {
            tree.part(name, "12ab", true).unwrap();
            assert!(tree.part_path(name, "12ab").exists());
            tree.publish(name, "12ab", false).unwrap();
            tree.part(name, "12ab", true).unwrap();
            assert!(tree.publish(name, "12ab", false).unwrap_err().is(Reason::EntryExists));
            tree.publish(name, "12ab", true).unwrap();
            assert_eq!(tree.kind(name).unwrap(), Kind::File(0));
        }
        tree.make("dir/x", 0).unwrap();
        tree.make("dir/x", 0).unwrap();
        tree.part("dir", "m", true).unwrap();
        assert!(tree.publish("dir", "m", true).unwrap_err().is(Reason::IsADirectory));
        tree.discard("dir", "m").unwrap();
        tree.discard("no/such", "m").unwrap();
        assert!(tree.make("top", 0o755).unwrap_err().is(Reason::NotADirectory));
        assert!(tree.free_bytes().unwrap() > 0);
    }
}
