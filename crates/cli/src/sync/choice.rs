//! Ending a conflict as a person decides.
//!
//! Only names are changed, and only here: the version that goes is moved to `.atrium-trash`, and which one stands under the
//! file's name is changed by exchanging the two names in one step. A run that is under way at that moment sees a file
//! with other content, never a file that is gone; so it needs no lock, and the next run brings the choice to the server.

use super::local::{failed, rename_new, to_trash};
use super::state::{KeptConflict, Memory, MemoryStore};
use crate::args::Keep;
use crate::output::format::safe;
use common::clock::{Clock, SystemClock};
use common::error::{Error, Reason, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::path::{Path, PathBuf};

/// The open conflict of a file here, named by the file or by its other version.
///
/// # Errors
/// `ENTRY_UNKNOWN` if there is none, `FIELD_INVALID` if there are several and the file alone does not tell which.
pub fn find(store: &MemoryStore, file: &Path) -> Result<(Memory, KeptConflict)> {
    let none = || {
        Error::new(Reason::EntryUnknown, format!("{} has no conflict", file.display()))
            .why_is("no run of `atrium sync` has kept two versions of it, or one of them is gone already")
            .fix_is("see `atrium conflicts` for those that there are")
    };
    // The file itself may be a link or gone; the directory that it is in is what must be there.
    let absolute = std::path::absolute(file)?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else { return Err(none()) };
    let place = parent.canonicalize().map_err(|_| none())?.join(name);
    let mut found = Vec::new();
    for memory in store.all()? {
        let Ok(below) = place.strip_prefix(&memory.pair.directory) else { continue };
        for conflict in store.open_conflicts(&memory)? {
            if below == Path::new(&conflict.kept_as) {
                return Ok((memory, conflict));
            }
            if below == Path::new(&conflict.path) {
                found.push((memory.clone(), conflict));
            }
        }
    }
    if found.len() > 1 {
        let others: Vec<String> = found.iter().map(|(_, c)| safe(&c.kept_as)).collect();
        return Err(Error::new(Reason::FieldInvalid, format!("{} has {} other versions", file.display(), found.len()))
            .why_is("it was changed on both sides more than once")
            .fix_is(format!("name the other version: {}", others.join(", "))));
    }
    found.pop().ok_or_else(none)
}

/// Carries a choice out. Gives back where the version that went is now.
///
/// # Errors
/// `IO_FAILED`; both versions are still here then.
pub fn carry_out(store: &MemoryStore, memory: &Memory, conflict: &KeptConflict, keep: Keep) -> Result<Option<PathBuf>> {
    if keep == Keep::Both {
        store.accept(memory, conflict)?;
        return Ok(None);
    }
    let directory = &memory.pair.directory;
    let stays_under_its_name = (keep == Keep::Theirs) != conflict.kept_is_theirs;
    if !stays_under_its_name && !exchange(&directory.join(&conflict.path), &directory.join(&conflict.kept_as))? {
        return Ok(None);
    }
    let time = crate::output::format::timestamp_ms(SystemClock.now_ms()).to_string().replace(':', "");
    to_trash(directory, &time, &conflict.kept_as).map(Some)
}

/// Exchanges the names of two files. If the first is gone, the second gets its name, and nothing is left to go: false.
fn exchange(path: &Path, kept_as: &Path) -> Result<bool> {
    match renameat_with(CWD, kept_as, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::NOENT) => rename_new(kept_as, path).map(|()| false),
        // File systems that cannot: a third name, and three steps of which each leaves both versions.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
            let mut third = path.as_os_str().to_owned();
            third.push(".atrium-part");
            let third = PathBuf::from(third);
            rename_new(path, &third)?;
            rename_new(kept_as, path).inspect_err(|_| drop(rename_new(&third, path)))?;
            rename_new(&third, kept_as)?;
            Ok(true)
        }
        Err(errno) => Err(failed(path, errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::local::TRASH;
    use crate::sync::state::Pair;

    struct Place {
        dir: tempfile::TempDir,
        store: MemoryStore,
        memory: Memory,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let directory = dir.path().join("here").join("sync");
            std::fs::create_dir_all(directory.join("d")).unwrap();
            let directory = directory.canonicalize().unwrap();
            let store = MemoryStore::open(&dir.path().join("state")).unwrap();
            let pair = Pair { directory, office: "o".into(), user: "anna".into(), remote: "home:x".into() };
            Self { store, memory: Memory::new(pair, "uid".into(), (1, 2)), dir }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.memory.pair.directory.join(path)
        }

        /// `d/a` with the server's version, and the one from here beside it.
        fn conflict(&mut self, number: u32) -> String {
            let kept_as = format!("d/a (conflict anna {number})");
            std::fs::write(self.at("d/a"), "theirs").unwrap();
            std::fs::write(self.at(&kept_as), "mine").unwrap();
            self.keep(&kept_as, false);
            kept_as
        }

        fn keep(&mut self, kept_as: &str, kept_is_theirs: bool) {
            let (path, time) = ("d/a".to_owned(), "2026-11-22T19:04:05Z".to_owned());
            self.memory.keep_conflict(KeptConflict { path, kept_as: kept_as.to_owned(), time, kept_is_theirs });
            self.store.save(&self.memory).unwrap();
        }

        fn choose(&self, path: &str, keep: Keep) -> Result<Option<PathBuf>> {
            let (memory, conflict) = find(&self.store, &self.at(path))?;
            carry_out(&self.store, &memory, &conflict, keep)
        }

        fn open(&self) -> usize {
            self.store.open_conflicts(&self.memory).unwrap().len()
        }
    }

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn the_chosen_version_stays_and_the_other_is_in_the_trash() {
        for (keep, stays, goes) in [(Keep::Mine, "mine", "theirs"), (Keep::Theirs, "theirs", "mine")] {
            let mut place = Place::new();
            let kept_as = place.conflict(1);
            let trashed = place.choose("d/a", keep).unwrap().unwrap();
            assert_eq!((read(&place.at("d/a")), read(&trashed)), (stays.to_owned(), goes.to_owned()));
            assert!(trashed.starts_with(place.at(TRASH)) && !place.at(&kept_as).exists());
            assert_eq!(place.open(), 0);
            assert!(place.choose("d/a", keep).unwrap_err().is(Reason::EntryUnknown));
        }
    }

    #[test]
    fn where_the_servers_version_made_room_the_sides_are_the_other_way_round() {
        for (keep, directory_stays) in [(Keep::Mine, true), (Keep::Theirs, false)] {
            let mut place = Place::new();
            std::fs::create_dir(place.at("d/a")).unwrap();
            std::fs::write(place.at("d/a/new"), "mine").unwrap();
            std::fs::write(place.at("d/a (2)"), "theirs").unwrap();
            place.keep("d/a (2)", true);
            let trashed = place.choose("d/a", keep).unwrap().unwrap();
            assert_eq!(place.at("d/a").is_dir(), directory_stays);
            assert_eq!(trashed.is_dir(), !directory_stays);
        }
    }

    #[test]
    fn keeping_both_changes_nothing_but_the_list() {
        let mut place = Place::new();
        let kept_as = place.conflict(1);
        assert_eq!(place.choose(&kept_as, Keep::Both).unwrap(), None);
        assert_eq!((read(&place.at("d/a")), read(&place.at(&kept_as))), ("theirs".to_owned(), "mine".to_owned()));
        assert_eq!(place.open(), 0);
        place.conflict(2);
        assert_eq!(place.open(), 1, "a new conflict of the same file is one");
        assert!(!place.at(TRASH).exists());
    }

    #[test]
    fn of_several_versions_one_is_to_be_named() {
        let mut place = Place::new();
        let (first, second) = (place.conflict(1), place.conflict(2));
        assert!(place.choose("d/a", Keep::Mine).unwrap_err().is(Reason::FieldInvalid));
        place.choose(&first, Keep::Mine).unwrap();
        assert_eq!(read(&place.at("d/a")), "mine");
        assert_eq!(place.open(), 1);
        std::fs::remove_file(place.at("d/a")).unwrap();
        assert_eq!(place.choose(&second, Keep::Mine).unwrap(), None, "nothing has to go");
        assert_eq!(read(&place.at("d/a")), "mine");
        for other in ["d/b", "d", "", "missing/a"] {
            assert!(place.choose(other, Keep::Mine).unwrap_err().is(Reason::EntryUnknown), "{other:?}");
        }
        assert!(find(&place.store, place.dir.path()).is_err());
    }
}
