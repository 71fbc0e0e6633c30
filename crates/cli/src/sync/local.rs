//! Changes of the local side, each made so that nothing is overwritten by accident.

use super::state::Stamp;
use common::error::{Error, Reason, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where deleted files go, below the synchronised directory. Never synchronised itself.
pub const TRASH: &str = ".atrium-trash";
/// Where files come together before they get their place.
pub const STAGING: &str = ".atrium-staging";
/// Names of ours: the trash, the staging place, and downloads that are not finished.
pub fn is_ours(name: &str) -> bool {
    name.starts_with(".atrium-") || name.ends_with(".atrium-part")
}

/// How the file looks.
pub fn stamp(metadata: &Metadata) -> Stamp {
    let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    Stamp {
        size: metadata.size(),
        mtime: nanos(metadata.mtime(), metadata.mtime_nsec()),
        ctime: nanos(metadata.ctime(), metadata.ctime_nsec()),
        inode: metadata.ino(),
    }
}

/// Whether the path looks as it did: the same file, unchanged, or still nothing.
pub fn unchanged(path: &Path, seen: Option<&Stamp>) -> bool {
    match (path.symlink_metadata(), seen) {
        (Ok(metadata), Some(seen)) => metadata.is_file() && stamp(&metadata) == *seen,
        (Ok(_), None) => false,
        (Err(error), None) => error.kind() == std::io::ErrorKind::NotFound,
        (Err(_), Some(_)) => false,
    }
}

/// Renames, unless something of the new name is there.
///
/// # Errors
/// `ENTRY_EXISTS`, `IO_FAILED`.
pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::EXIST) => Err(changed_meanwhile(to)),
        // File systems without the flag: the check and the rename are two steps then.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
            if to.symlink_metadata().is_ok() {
                return Err(changed_meanwhile(to));
            }
            std::fs::rename(from, to).map_err(|e| failed(from, e))
        }
        Err(errno) => Err(failed(from, errno.into())),
    }
}

/// Moves a file or a directory with everything in it to the trash of this directory, under the given run's name.
///
/// # Errors
/// `IO_FAILED`.
pub fn to_trash(directory: &Path, run: &str, path: &str) -> Result<PathBuf> {
    let target = directory.join(TRASH).join(run).join(path);
    let parent = target.parent().unwrap_or(directory);
    std::fs::create_dir_all(parent).map_err(|e| failed(parent, e))?;
    let source = directory.join(path);
    for number in 1..=1000 {
        let candidate = match number {
            1 => target.clone(),
            _ => {
                let mut name = target.clone().into_os_string();
                name.push(format!(".{number}"));
                PathBuf::from(name)
            }
        };
        match rename_new(&source, &candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) if error.is(Reason::EntryExists) => {}
            Err(error) => return Err(error),
        }
    }
    Err(changed_meanwhile(&target))
}

/// The path is not what it was when it was decided what to do with it.
pub fn changed_meanwhile(path: &Path) -> Error {
    Error::new(Reason::EntryExists, format!("{} has changed meanwhile", path.display()))
        .why_is("somebody wrote to it while it was being synchronised")
        .fix_is("nothing was overwritten; synchronise again")
}

/// A local step that failed.
pub fn failed(path: &Path, error: std::io::Error) -> Error {
    let cause = error.to_string();
    let shell = Error::from(error);
    let reason = if shell.is(Reason::DiskFull) { Reason::DiskFull } else { Reason::IoFailed };
    Error::new(reason, format!("{} cannot be changed", path.display()))
        .why_is(cause)
        .fix_is("check the rights of the directory and the free space of the disk, then synchronise again")
        .caused_by(shell)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "1").unwrap();
        std::fs::write(&b, "2").unwrap();
        assert!(rename_new(&a, &b).unwrap_err().is(Reason::EntryExists));
        assert_eq!(std::fs::read(&b).unwrap(), b"2");
        rename_new(&a, &dir.path().join("c")).unwrap();
    }

    #[test]
    fn the_trash_keeps_everything_also_twice_in_one_run() {
        let dir = tempfile::tempdir().unwrap();
        for content in ["1", "2"] {
            std::fs::create_dir_all(dir.path().join("d")).unwrap();
            std::fs::write(dir.path().join("d/a.txt"), content).unwrap();
            to_trash(dir.path(), "run", "d/a.txt").unwrap();
        }
        let trash = dir.path().join(TRASH).join("run/d");
        assert_eq!(std::fs::read(trash.join("a.txt")).unwrap(), b"1");
        assert_eq!(std::fs::read(trash.join("a.txt.2")).unwrap(), b"2");
    }

    #[test]
    fn changes_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        assert!(unchanged(&path, None));
        std::fs::write(&path, "1").unwrap();
        let seen = stamp(&path.symlink_metadata().unwrap());
        assert!(unchanged(&path, Some(&seen)) && !unchanged(&path, None));
        std::fs::write(&path, "22").unwrap();
        assert!(!unchanged(&path, Some(&seen)));
        std::fs::remove_file(&path).unwrap();
        assert!(!unchanged(&path, Some(&seen)));
    }
}
