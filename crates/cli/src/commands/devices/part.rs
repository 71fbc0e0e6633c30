//! A file that is not whole yet, beside the place where it will be.
//!
//! It is the hidden `.NAME.KEY.atrium-part`, where KEY is made from what the content is (the disc's generation and the path
//! on it, or a digest), so that a part of something else is never gone on with. It stays when the command is interrupted.
//! When whole it is synced and takes its place, never that of a file that may not be replaced.

use common::error::{Error, Reason, Result};
use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Bytes of the name that are kept in the part's.
const NAME_MAX: usize = 180;

/// A part of a file.
#[derive(Debug)]
pub(super) struct Part {
    file: File,
    path: PathBuf,
    target: PathBuf,
    length: u64,
}

impl Part {
    /// The part of this content for this place, as far as it is here already; its directory is made if missing.
    ///
    /// # Errors
    /// `IO_FAILED`, also while another command writes it; `DISK_FULL`.
    pub(super) fn open(target: &Path, content: &[&[u8]]) -> Result<Self> {
        let mut hasher = blake3::Hasher::new();
        for piece in content {
            hasher.update(&(piece.len() as u64).to_le_bytes()).update(piece);
        }
        let key = &hasher.finalize().to_hex()[..12];
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let name = super::cut(&name, NAME_MAX);
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let path = parent.join(format!(".{name}.{key}.atrium-part"));
        let opened = std::fs::create_dir_all(parent).and_then(|()| {
            loop {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(false);
                let file = options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(&path)?;
                flock(&file, FlockOperation::NonBlockingLockExclusive)?;
                let (opened, named) = (file.metadata()?, std::fs::symlink_metadata(&path));
                // Whoever had it may just have finished it: then the name is free again.
                if named.is_ok_and(|named| (named.dev(), named.ino()) == (opened.dev(), opened.ino())) {
                    return Ok((file, opened.len()));
                }
            }
        });
        let (mut file, length) = opened.map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock => busy(target),
            _ => cannot_write(&path, e),
        })?;
        file.seek(SeekFrom::Start(length)).map_err(|e| cannot_write(&path, e))?;
        Ok(Self { file, path, target: target.to_owned(), length })
    }

    /// Bytes that are here.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// What is here, for digests.
    ///
    /// # Errors
    /// `IO_FAILED`.
    pub(super) fn read_all(&self, mut sink: impl FnMut(&[u8])) -> Result<()> {
        let mut file = File::open(&self.path)?.take(self.length);
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                n => sink(&buffer[..n]),
            }
        }
    }

    /// Adds what follows.
    ///
    /// # Errors
    /// `IO_FAILED`, `DISK_FULL`.
    pub(super) fn write(&mut self, data: &[u8]) -> Result<()> {
        self.file.write_all(data).map_err(|e| cannot_write(&self.path, e))?;
        self.length += data.len() as u64;
        Ok(())
    }

    /// Begins anew.
    ///
    /// # Errors
    /// `IO_FAILED`.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(|e| cannot_write(&self.path, e))?;
        self.length = 0;
        Ok(())
    }

    /// Throws it away: nothing will ever go on from it.
    pub(super) fn remove(self) {
        // Left behind, it is only a file that nobody needs.
        let _ = std::fs::remove_file(&self.path);
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// `ENTRY_EXISTS` if something is there that may not be replaced, `IO_FAILED`, `DISK_FULL`.
    pub(super) fn finish(self, replace: bool, modified: Option<SystemTime>) -> Result<()> {
        let placed = (|| {
            if let Some(time) = modified {
                self.file.set_modified(time)?;
            }
            self.file.sync_all()?;
            if replace {
                std::fs::rename(&self.path, &self.target)?;
            } else {
                rename_new(&self.path, &self.target)?;
            }
            let parent = self.target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(parent)?.sync_all()
        })();
        placed.map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => exists(&self.target),
            _ => cannot_write(&self.target, e),
        })
    }
}

/// Renames to a name that must be free.
fn rename_new(from: &Path, to: &Path) -> std::io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // File systems that do not know this can make a second name, which must be free too.
        Err(Errno::INVAL | Errno::NOSYS) => std::fs::hard_link(from, to).and_then(|()| std::fs::remove_file(from)),
        other => other.map_err(Into::into),
    }
}

/// Something is at the place that may not be replaced.
pub(super) fn exists(target: &Path) -> Error {
    Error::new(Reason::EntryExists, format!("{} is here already and differs", target.display()))
        .why_is("replacing it would lose what is in it")
        .fix_is("name another place, or replace it with --overwrite")
}

/// Another command has the part.
fn busy(target: &Path) -> Error {
    Error::new(Reason::IoFailed, format!("{} is being written by another command", target.display()))
        .why_is("both would write the same file")
        .fix_is("wait until the other one is through, or name another place")
}

fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    let shell = Error::from(std::io::Error::from(error.kind()));
    let reason = if shell.is(Reason::DiskFull) { Reason::DiskFull } else { Reason::IoFailed };
    Error::new(reason, format!("{} cannot be written", path.display()))
        .why_is(error.to_string())
        .fix_is("check the rights of the directory and the free space, or name another place")
        .caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(target: &Path, content: &str) -> Part {
        Part::open(target, &[content.as_bytes()]).unwrap()
    }

    #[test]
    fn a_part_of_the_same_content_goes_on_and_another_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("new/a.txt");
        let mut first = part(&target, "x");
        first.write(b"hel").unwrap();
        drop(first);
        assert_eq!(part(&target, "y").length(), 0, "another content");
        let mut again = part(&target, "x");
        assert_eq!(again.length(), 3);
        again.write(b"lo").unwrap();
        let mut all = Vec::new();
        again.read_all(|data| all.extend_from_slice(data)).unwrap();
        assert_eq!(all, b"hello");
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        again.finish(false, Some(time)).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"hello");
        assert_eq!(target.metadata().unwrap().modified().unwrap(), time);
        assert_eq!(part(&target, "x").length(), 0, "nothing is left of it");
    }

    #[test]
    fn two_commands_do_not_write_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a");
        let mut first = part(&target, "x");
        first.write(b"one").unwrap();
        let error = Part::open(&target, &[b"x"]).unwrap_err();
        assert!(error.is(Reason::IoFailed) && error.to_string().contains("another command"), "{error}");
        first.finish(false, None).unwrap();
        assert_eq!(part(&target, "x").length(), 0);
    }

    #[test]
    fn nothing_is_replaced_unless_it_is_meant() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a");
        std::fs::write(&target, "mine").unwrap();
        let mut new = part(&target, "x");
        new.write(b"new").unwrap();
        assert!(new.finish(false, None).unwrap_err().is(Reason::EntryExists));
        assert_eq!(std::fs::read(&target).unwrap(), b"mine");
        let mut again = part(&target, "x");
        again.restart().unwrap();
        again.write(b"newer").unwrap();
        again.finish(true, None).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"newer");
    }

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a");
        let made = part(&target, "x");
        std::fs::remove_file(&made.path).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &made.path).unwrap();
        assert!(Part::open(&target, &[b"x"]).is_err());
        assert!(!dir.path().join("elsewhere").exists());
    }

    #[test]
    fn long_names_have_parts_too() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("ä".repeat(127));
        part(&target, "x").finish(false, None).unwrap();
        assert!(target.exists());
    }
}
