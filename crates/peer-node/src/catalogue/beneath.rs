//! Opening files below a folder, and nowhere else.
//!
//! Whatever is done to the folder meanwhile, an open ends at something that lies below it and was reached through no
//! symbolic link and no mount point: the kernel sees to that (openat2 with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and
//! RESOLVE_NO_XDEV). Where the kernel does not know openat2, the path is walked step by step with O_NOFOLLOW, each step
//! below the directory that the one before has opened.

use common::error::{Error, Reason, Result};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::entry::FileStamp;

/// An open folder.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    fd: OwnedFd,
    inode: u64,
}

/// A name in a directory, with what it is as far as the directory tells.
#[derive(Clone, Debug)]
pub struct Name {
    /// The name as the system has it.
    pub name: OsString,
}

/// What is known of something in a folder.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// What it is.
    pub kind: FileType,
    /// Permission bits.
    pub mode: u32,
    /// What tells whether it has changed.
    pub stat: FileStamp,
    /// Its device number.
    pub device: u64,
}

#[expect(clippy::unnecessary_cast, reason = "the fields have other types on other systems")]
fn look(stat: &Stat) -> Look {
    let ns = |seconds: i64, nanos: u64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos as i64);
    Look {
        kind: FileType::from_raw_mode(stat.st_mode),
        mode: (stat.st_mode & 0o777) as u32,
        stat: FileStamp {
            inode: stat.st_ino as u64,
            size: stat.st_size as u64,
            mtime_ns: ns(stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            ctime_ns: ns(stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        },
        device: stat.st_dev as u64,
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
/// Not blocking: a pipe may have been put in the file's place.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

impl Root {
    /// Opens a folder by its absolute path, which may lead over symbolic links: the person chose it.
    ///
    /// # Errors
    /// FOLDER_INVALID if it is not a folder that can be read.
    pub fn open(path: &Path) -> Result<Self> {
        let invalid = |e: Errno| Error::new(Reason::FolderInvalid, "the folder cannot be opened").caused_by(e);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(invalid)?;
        let inode = look(&fstat(&fd).map_err(invalid)?).stat.inode;
        Ok(Self { path: path.to_owned(), fd, inode })
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its inode: another folder in its place has another.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Opens a directory below it; empty is the folder itself.
    ///
    /// # Errors
    /// ELOOP if a symbolic link is on the way, EXDEV if a mount point is, ENOTDIR, ENOENT, EACCES and others.
    pub fn directory(&self, path: &str) -> Result<OwnedFd, Errno> {
        if path.is_empty() {
            openat(&self.fd, ".", DIRECTORY, Mode::empty())
        } else {
            open_beneath(&self.fd, path, DIRECTORY)
        }
    }

    /// Opens a regular file below it for reading, with what is known of it.
    ///
    /// # Errors
    /// As [`Root::directory`]; EINVAL if it is not a regular file.
    pub fn file(&self, path: &str) -> Result<(File, Look), Errno> {
        file_in(self.fd.as_fd(), path)
    }

    /// What is at a path below it; the thing itself, if it is a symbolic link.
    ///
    /// # Errors
    /// As [`Root::directory`].
    pub fn stat(&self, path: &str) -> Result<Look, Errno> {
        let (directory, name) = super::entry::split(path);
        let directory = self.directory(directory)?;
        look_at(&directory, name)
    }
}

/// What a name in a directory is.
pub fn look_at(directory: &OwnedFd, name: impl rustix::path::Arg) -> Result<Look, Errno> {
    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map(|s| look(&s))
}

/// Opens a directory in an open directory; no link is followed.
pub fn directory_in(directory: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    open_beneath(directory, name, DIRECTORY)
}

/// What an open file is now.
pub fn look_again(file: &File) -> Result<Look, Errno> {
    fstat(file).map(|s| look(&s))
}

/// Opens a regular file below an open directory.
pub fn file_in(directory: BorrowedFd<'_>, path: &str) -> Result<(File, Look), Errno> {
    let fd = open_beneath(directory, path, FILE)?;
    let found = look(&fstat(&fd)?);
    if found.kind != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    Ok((File::from(fd), found))
}

/// Names in a directory but "." and "..".
pub fn names(directory: &OwnedFd) -> Result<Vec<Name>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(Name { name: OsString::from_vec(name) });
        }
    }
    Ok(names)
}

#[cfg(target_os = "linux")]
fn open_beneath(root: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    use rustix::fs::{ResolveFlags, openat2};
    let rules = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    // EAGAIN: something was renamed during the walk.
    for _ in 0..8 {
        match openat2(&root, path, flags, Mode::empty(), rules) {
            Err(Errno::AGAIN) => {}
            Err(Errno::NOSYS) => return step_by_step(root, path, flags),
            done => return done,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(not(target_os = "linux"))]
fn open_beneath(root: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    step_by_step(root, path, flags)
}

fn step_by_step(root: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let device = fstat(&root)?.st_dev;
    let mut held: Option<OwnedFd> = None;
    let mut rest = path;
    loop {
        let (name, more) = rest.split_once('/').unwrap_or((rest, ""));
        if name.is_empty() || name == "." || name == ".." {
            return Err(Errno::XDEV);
        }
        let last = more.is_empty();
        let how = if last { flags } else { DIRECTORY };
        let above = held.as_ref().map_or_else(|| root.as_fd(), AsFd::as_fd);
        let next = openat(above, name, how, Mode::empty())?;
        if fstat(&next)?.st_dev != device {
            return Err(Errno::XDEV);
        }
        if last {
            return Ok(next);
        }
        (held, rest) = (Some(next), more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_outside_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        for d in [&inside.join("sub"), &outside] {
            std::fs::create_dir_all(d).unwrap();
        }
        std::fs::write(outside.join("secret"), "s").unwrap();
        std::fs::write(inside.join("sub/file"), "f").unwrap();
        symlink(&outside, inside.join("way")).unwrap();
        symlink(outside.join("secret"), inside.join("link")).unwrap();
        symlink("sub", inside.join("inner")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, inside.join("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let root = Root::open(&inside).unwrap();
        assert!(root.file("sub/file").is_ok() && root.directory("sub").is_ok() && root.directory("").is_ok());
        for bad in
            ["way/secret", "link", "inner/file", "../out/secret", "sub/../../out/secret", "/etc/passwd", "pipe", "sub"]
        {
            assert!(root.file(bad).is_err(), "{bad}");
            assert!(step_by_step(&root.fd, bad, FILE).is_err() || bad == "pipe" || bad == "sub", "{bad}");
        }
        assert!(root.directory("way").is_err() && root.directory("inner").is_err());
        assert!(step_by_step(&root.fd, "sub/file", FILE).is_ok());
        assert_eq!(root.stat("link").unwrap().kind, FileType::Symlink);
    }
}
