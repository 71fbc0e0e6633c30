//! Changing files of a shared folder, so that nothing outside is touched and nothing that was not indexed is lost.
//!
//! Every change happens to one name in a directory that was opened beneath the folder over no link and no mount. A file that
//! gives way is first given a second name, in the trash or as a conflict copy; then the new content and it swap places in
//! one step, and what came out is compared with what was meant: if someone has written meanwhile, they swap back.
//!
//! # Crashes
//!
//! Between any two steps the path has the old or the new content. What was left in the staging directory or has a second
//! name is a copy that nobody misses. A file that was moved away for a directory or a deletion is in the trash, and its
//! path is missing: that is what was to come.

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, fchmod, fsync, futimens, linkat, mkdirat,
    openat, renameat, renameat_with, syncfs, unlinkat,
};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use super::decide::{Save, State};
use super::{conflict, trash};
use crate::catalogue::FileStamp;
use crate::catalogue::beneath::{Look, Root, directory_in, look_again, look_at, names};
use crate::catalogue::entry::{Entry, Stored, join, split};
use crate::catalogue::rules::Rules;

/// At the top of the folder: what has been fetched and is not in place yet.
pub const STAGE: &str = ".atrium-stage";
/// Names tried for one file in the trash or one conflict copy.
const NAMES_MAX: u32 = 1_000;
/// Directories made safe one by one; beyond it the whole file system is.
const SYNC_MAX: usize = 64;

/// Why a change was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// What is there is not what the index says.
    Changed,
    /// The directory has something in it.
    NotEmpty,
    /// The system says no.
    System(Errno),
}

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Self {
        match errno {
            // Someone was faster.
            Errno::NOENT | Errno::EXIST | Errno::NOTDIR | Errno::ISDIR => Self::Changed,
            Errno::NOTEMPTY => Self::NotEmpty,
            other => Self::System(other),
        }
    }
}

/// What is in a directory that was to go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leftover {
    /// Something that is not shared, by name.
    Unshared(String),
    /// Something that the index says, by path.
    Known(String),
    /// Something that the index does not say yet, by path.
    Unknown(String),
}

/// A folder that is being changed.
pub struct Place<'a> {
    root: &'a Root,
    now_ms: u64,
    touched: BTreeSet<String>,
}

fn flags_unknown(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::NOTSUP)
}

/// The same file with the same bytes; its change time moves with its names.
fn same_file(a: &Look, b: FileStamp) -> bool {
    a.kind == FileType::RegularFile && (a.stat.inode, a.stat.size, a.stat.mtime_ns) == (b.inode, b.size, b.mtime_ns)
}

fn times(mtime_ns: i64) -> Timestamps {
    let at = Timespec { tv_sec: mtime_ns.div_euclid(1_000_000_000), tv_nsec: mtime_ns.rem_euclid(1_000_000_000) };
    Timestamps { last_access: at, last_modification: at }
}

impl<'a> Place<'a> {
    /// A folder; `now_ms` names what goes to the trash.
    pub fn new(root: &'a Root, now_ms: u64) -> Self {
        Self { root, now_ms, touched: BTreeSet::new() }
    }

    /// What is at the path, compared with what the index says of it.
    pub fn state(&self, path: &str, local: Option<&Stored>, rules: &Rules) -> State {
        let alive = local.filter(|l| !l.entry.deleted);
        if rules.ignores_any(path, alive.is_some_and(|l| l.entry.is_directory())) {
            return State::Occupied;
        }
        let look = match self.root.stat(path) {
            Ok(look) => look,
            Err(Errno::NOENT | Errno::NOTDIR) if alive.is_none() => return State::AsIndexed,
            Err(Errno::NOENT | Errno::NOTDIR) => return State::Changed,
            Err(_) => return State::Occupied,
        };
        match (alive, look.kind) {
            (Some(l), FileType::RegularFile) if l.entry.is_file() && l.file == Some(look.stat) => State::AsIndexed,
            (Some(l), FileType::Directory) if l.entry.is_directory() => State::AsIndexed,
            (Some(_), _) | (None, FileType::RegularFile | FileType::Directory) => State::Changed,
            (None, _) => State::Occupied,
        }
    }

    /// A name in the same directory that this system cannot tell from the path's own.
    pub fn clash(&self, path: &str) -> Option<String> {
        let (directory, name) = split(path);
        let listed = names(&self.root.directory(directory).ok()?).ok()?;
        let found: Vec<&str> = listed.iter().filter_map(|n| n.name.to_str()).collect();
        if found.contains(&name) {
            return None;
        }
        let folded = common::model::fold(name);
        found.into_iter().find(|other| common::model::fold(other) == folded).map(str::to_owned)
    }

    /// Opens a directory; makes it, and those above it, if they are missing.
    fn made(&mut self, path: &str) -> Result<OwnedFd, Errno> {
        match self.root.directory(path) {
            Err(Errno::NOENT) => {}
            opened => return opened,
        }
        let mut open = self.root.directory("")?;
        let mut above = String::new();
        for name in path.split('/') {
            match mkdirat(&open, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => drop(self.touched.insert(above.clone())),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            open = directory_in(&open, name)?;
            above = join(&above, name);
        }
        self.root.directory(path)
    }

    /// Makes the staging directory and empties it.
    ///
    /// # Errors
    /// What the system says.
    pub fn fresh_stage(&mut self) -> Result<(), Errno> {
        let top = self.root.directory("")?;
        match trash::erase(&top, STAGE, 0) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        mkdirat(&top, STAGE, Mode::RWXU)
    }

    /// Removes a directory of the staging directory with what was not taken from it.
    pub fn drop_stage(&self, batch: &str) {
        if let Ok(stage) = self.root.directory(STAGE)
            && let Err(errno) = trash::erase(&stage, batch, 0)
            && errno != Errno::NOENT
        {
            tracing::debug!(%errno, "fetched files could not be removed");
        }
    }

    /// Is this content fetched, whole?
    pub fn is_staged(&self, staged: &str, size: u64) -> bool {
        self.root.stat(staged).is_ok_and(|l| l.kind == FileType::RegularFile && l.stat.size == size)
    }

    /// Gives a file a second name, in the trash or as a conflict copy. Gives back where.
    fn keep(&mut self, path: &str, local: &Stored, save: Save, machine: &str) -> Result<Option<String>, Trouble> {
        let (directory, name) = split(path);
        let target = match save {
            Save::Nothing => return Ok(None),
            Save::Trash => trash::directory_for(directory, self.now_ms),
            Save::Conflict => directory.to_owned(),
        };
        let from = self.root.directory(directory)?;
        let into = self.made(&target)?;
        for number in 1..=NAMES_MAX {
            let kept = match save {
                Save::Conflict => conflict::name_for(name, machine, local.entry.modify_time_ns, number),
                _ => trash::name_for(name, self.now_ms, number),
            };
            match linkat(&from, name, &into, kept.as_str(), AtFlags::empty()) {
                Ok(()) => {}
                // From before a crash: it has its second name already.
                Err(Errno::EXIST) => match look_at(&into, kept.as_str()) {
                    Ok(there) if local.file.is_some_and(|f| f.inode == there.stat.inode) => {}
                    _ => continue,
                },
                Err(Errno::PERM | Errno::NOTSUP | Errno::MLINK | Errno::NOSYS) => {
                    copy(&from, name, &into, &kept, local)?;
                }
                Err(errno) => return Err(errno.into()),
            }
            self.touched.insert(target.clone());
            return Ok(Some(join(&target, &kept)));
        }
        Err(Trouble::System(Errno::EXIST))
    }

    fn unkeep(&self, kept: Option<String>) {
        let Some(path) = kept else { return };
        let (directory, name) = split(&path);
        if let Ok(fd) = self.root.directory(directory) {
            // It is only a second name; if it stays, it is one too many.
            let _ = unlinkat(&fd, name, AtFlags::empty());
        }
    }

    /// Puts a fetched file in place. `local` is the file that gives way. Gives back what is there now, and where the old one
    /// is kept.
    ///
    /// # Errors
    /// See [`Trouble`]; then the path is as it was.
    pub fn install(
        &mut self,
        path: &str,
        staged: &str,
        local: Option<&Stored>,
        save: Save,
        machine: &str,
    ) -> Result<(FileStamp, Option<String>), Trouble> {
        let (directory, name) = split(path);
        let (stage, staged) = split(staged);
        let from = self.root.directory(stage)?;
        let into = self.made(directory)?;
        let fresh = look_at(&from, staged)?;
        let mut kept = None;
        match local {
            None => place_new(&from, staged, &into, name)?,
            Some(local) => {
                let old = local.file.ok_or(Trouble::Changed)?;
                let there = look_at(&into, name)?;
                if !same_file(&there, old) || there.stat != old {
                    return Err(Trouble::Changed);
                }
                kept = self.keep(path, local, save, machine)?;
                if let Err(trouble) = swap(&from, staged, &into, name, old) {
                    self.unkeep(kept);
                    return Err(trouble);
                }
            }
        }
        self.touched.insert(directory.to_owned());
        let now = look_at(&into, name)?;
        // Whoever writes now is seen by the next scan: what is noted is not what is there then.
        if !same_file(&now, fresh.stat) {
            return Ok((fresh.stat, kept));
        }
        Ok((now.stat, kept))
    }

    /// Moves a file to the trash, or makes a conflict copy of it. Gives back where it is.
    ///
    /// # Errors
    /// See [`Trouble`]; then it is where it was.
    pub fn remove(&mut self, path: &str, local: &Stored, save: Save, machine: &str) -> Result<Option<String>, Trouble> {
        let (directory, name) = split(path);
        let old = local.file.ok_or(Trouble::Changed)?;
        let from = self.root.directory(directory)?;
        if look_at(&from, name)?.stat != old {
            return Err(Trouble::Changed);
        }
        let save = if save == Save::Conflict { save } else { Save::Trash };
        let kept = self.keep(path, local, save, machine)?;
        // Not removed but moved, so that it can be looked at once more.
        let stage = self.made(STAGE)?;
        let going = format!("going-{}", old.inode);
        renameat(&from, name, &stage, going.as_str())?;
        let out = look_at(&stage, going.as_str())?;
        if !same_file(&out, old) {
            place_new(&stage, &going, &from, name)?;
            self.unkeep(kept);
            return Err(Trouble::Changed);
        }
        unlinkat(&stage, going.as_str(), AtFlags::empty())?;
        self.touched.insert(directory.to_owned());
        Ok(kept)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn make_directory(&mut self, path: &str, mode: u32) -> Result<FileStamp, Trouble> {
        let (directory, name) = split(path);
        let into = self.made(directory)?;
        mkdirat(&into, name, Mode::RWXU)?;
        let made = directory_in(&into, name)?;
        fchmod(&made, Mode::from_raw_mode(mode & 0o777))?;
        self.touched.insert(directory.to_owned());
        Ok(look_at(&into, name)?.stat)
    }

    /// Removes a directory with nothing in it.
    ///
    /// # Errors
    /// [`Trouble::NotEmpty`] and others.
    pub fn remove_directory(&mut self, path: &str) -> Result<(), Trouble> {
        let (directory, name) = split(path);
        let from = self.root.directory(directory)?;
        unlinkat(&from, name, AtFlags::REMOVEDIR)?;
        self.touched.insert(directory.to_owned());
        Ok(())
    }

    /// Gives a file or directory the times and permissions of its entry. What is given back for a file makes the next scan
    /// read it: a write at the same moment would not show otherwise.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn touch(&mut self, local: &Stored, wanted: &Entry) -> Result<FileStamp, Trouble> {
        let path = wanted.path.as_str();
        if wanted.is_directory() {
            let open = self.root.directory(path)?;
            fchmod(&open, Mode::from_raw_mode(wanted.mode))?;
            return Ok(self.root.stat(path)?.stat);
        }
        let (file, look) = self.root.file(path)?;
        if Some(look.stat) != local.file {
            return Err(Trouble::Changed);
        }
        fchmod(&file, Mode::from_raw_mode(wanted.mode))?;
        futimens(&file, &times(wanted.modify_time_ns))?;
        Ok(FileStamp { ctime_ns: 0, ..look_again(&file)?.stat })
    }

    /// What is in a directory that was to go; one thing that decides.
    pub fn leftover(
        &self,
        path: &str,
        rules: &Rules,
        known: &dyn Fn(&str) -> common::error::Result<Option<Entry>>,
    ) -> common::error::Result<Option<Leftover>> {
        let listed = self.root.directory(path).and_then(|fd| {
            let found = names(&fd)?;
            Ok((fd, found))
        });
        let Ok((fd, found)) = listed else { return Ok(None) };
        let mut answer = None;
        for one in found {
            let Some(name) = one.name.to_str() else {
                return Ok(Some(Leftover::Unshared(one.name.to_string_lossy().into_owned())));
            };
            let inside = join(path, name);
            let Ok(look) = look_at(&fd, name) else { continue };
            let is_directory = look.kind == FileType::Directory;
            let shareable = is_directory || look.kind == FileType::RegularFile;
            if !shareable
                || rules.ignores(&inside, is_directory)
                || crate::catalogue::entry::check_path(&inside).is_err()
            {
                return Ok(Some(Leftover::Unshared(name.to_owned())));
            }
            match known(&inside)? {
                Some(entry) if !entry.deleted => answer = answer.or(Some(Leftover::Known(inside))),
                _ => answer = Some(Leftover::Unknown(inside)),
            }
        }
        Ok(answer)
    }

    /// Makes all changes up to now safe from a power cut: what the index says must not be ahead of the disk.
    ///
    /// # Errors
    /// What the system says.
    pub fn sync(&mut self) -> Result<(), Errno> {
        let touched = std::mem::take(&mut self.touched);
        if touched.len() > SYNC_MAX {
            return syncfs(self.root.directory("")?);
        }
        for directory in touched {
            match self.root.directory(&directory) {
                Ok(fd) => fsync(fd)?,
                // Gone since: its parent is among them, or someone else removed it.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Gives a file another name in its directory, one of those that `names` gives for 1, 2 and so on.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn rename(&mut self, path: &str, names: impl Fn(u32) -> String) -> Result<String, Trouble> {
        let (directory, name) = split(path);
        let fd = self.root.directory(directory)?;
        for number in 1..=NAMES_MAX {
            let new = names(number);
            match place_new(&fd, name, &fd, &new) {
                Err(Trouble::Changed) if look_at(&fd, new.as_str()).is_ok() => {}
                Err(trouble) => return Err(trouble),
                Ok(()) => {
                    self.touched.insert(directory.to_owned());
                    return Ok(join(directory, &new));
                }
            }
        }
        Err(Trouble::System(Errno::EXIST))
    }

    /// Gives a file the name of another one of the same directory, which goes to the trash if it is there.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub fn take_name(&mut self, from: &str, to: &str, old: Option<&Stored>) -> Result<(), Trouble> {
        let (directory, name) = split(to);
        let fd = self.root.directory(directory)?;
        match old {
            None => place_new(&fd, split(from).1, &fd, name)?,
            Some(stored) => {
                let file = stored.file.ok_or(Trouble::Changed)?;
                if look_at(&fd, name)?.stat != file {
                    return Err(Trouble::Changed);
                }
                let kept = self.keep(to, stored, Save::Trash, "")?;
                if let Err(trouble) = swap(&fd, split(from).1, &fd, name, file) {
                    self.unkeep(kept);
                    return Err(trouble);
                }
            }
        }
        self.touched.insert(directory.to_owned());
        Ok(())
    }
}

/// Moves a file to a name that is free.
fn place_new(from: &OwnedFd, name: &str, into: &OwnedFd, new: &str) -> Result<(), Trouble> {
    match renameat_with(from, name, into, new, RenameFlags::NOREPLACE) {
        Err(errno) if flags_unknown(errno) => {}
        done => return Ok(done?),
    }
    match linkat(from, name, into, new, AtFlags::empty()) {
        Ok(()) => return Ok(unlinkat(from, name, AtFlags::empty())?),
        Err(Errno::EXIST) => return Err(Trouble::Changed),
        Err(_) => {}
    }
    // A file system without either: a moment remains in which a new file of that name would be lost.
    match look_at(into, new) {
        Err(Errno::NOENT) => Ok(renameat(from, name, into, new)?),
        _ => Err(Trouble::Changed),
    }
}

/// Puts a new file in the place of an old one, which must be what `old` says also in the moment in which it comes out. The
/// new file's name is gone afterwards, and the old file has only its second name.
fn swap(from: &OwnedFd, fresh: &str, into: &OwnedFd, name: &str, old: FileStamp) -> Result<(), Trouble> {
    match renameat_with(from, fresh, into, name, RenameFlags::EXCHANGE) {
        Ok(()) => {}
        Err(errno) if flags_unknown(errno) => {
            if !same_file(&look_at(into, name)?, old) {
                return Err(Trouble::Changed);
            }
            return Ok(renameat(from, fresh, into, name)?);
        }
        Err(errno) => return Err(errno.into()),
    }
    if same_file(&look_at(from, fresh)?, old) {
        return Ok(unlinkat(from, fresh, AtFlags::empty())?);
    }
    renameat_with(from, fresh, into, name, RenameFlags::EXCHANGE)?;
    Err(Trouble::Changed)
}

/// A second name on a file system where files have one name: a copy.
fn copy(from: &OwnedFd, name: &str, into: &OwnedFd, kept: &str, local: &Stored) -> Result<(), Trouble> {
    let (mut source, look) = crate::catalogue::beneath::file_in(from.as_fd(), name)?;
    if Some(look.stat) != local.file {
        return Err(Trouble::Changed);
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut target = File::from(openat(into, kept, flags, Mode::from_raw_mode(look.mode | 0o600))?);
    let copied = std::io::copy(&mut source, &mut target).and_then(|_| target.sync_all());
    if let Err(error) = copied {
        let _ = unlinkat(into, kept, AtFlags::empty());
        return Err(Trouble::System(Errno::from_io_error(&error).unwrap_or(Errno::IO)));
    }
    Ok(futimens(&target, &times(look.stat.mtime_ns))?)
}
