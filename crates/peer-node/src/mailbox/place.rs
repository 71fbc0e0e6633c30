//! From where a parcel arrived to the inbox, without replacing anything.

use common::error::{Error, Reason, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::fs;
use std::path::{Path, PathBuf};

/// More names than this are not tried.
const MAX_TRIES: u32 = 10_000;

/// Moves everything that is directly in `from` into `to`, each under its own name or, if that is taken, with a number.
/// Gives the names that are now in `to`, by the names they had. What was moved by an earlier run is not there any more
/// and so not moved again.
///
/// # Errors
/// IO_FAILED. What was moved before stays.
pub fn place(from: &Path, to: &Path) -> Result<Vec<(String, PathBuf)>> {
    fs::create_dir_all(to)?;
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name().into_string();
        names.push(name.map_err(|_| Error::new(Reason::NameInvalid, "a name that arrived is not UTF-8"))?);
    }
    names.sort();
    let mut placed = Vec::with_capacity(names.len());
    for name in names {
        let there = move_to_free_name(&from.join(&name), to, &name)?;
        placed.push((name, there));
    }
    fs::File::open(to)?.sync_all()?;
    Ok(placed)
}

fn move_to_free_name(from: &Path, to: &Path, name: &str) -> Result<PathBuf> {
    for number in 1..=MAX_TRIES {
        let target = to.join(numbered(name, number));
        match renameat_with(CWD, from, CWD, &target, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(target),
            Err(Errno::EXIST | Errno::NOTEMPTY) => {}
            Err(Errno::XDEV) => return copy_over(from, to, name, number),
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
    }
    Err(Error::new(Reason::EntryExists, format!("no free name for {name:?} in the inbox")))
}

/// The inbox is on another file system: copied beside the target under a hidden name, then moved like the others.
fn copy_over(from: &Path, to: &Path, name: &str, number: u32) -> Result<PathBuf> {
    let hidden = tempfile::Builder::new().prefix(".atrium-parcel-").tempdir_in(to)?;
    let copy = hidden.path().join("copy");
    copy_all(from, &copy)?;
    let mut target = None;
    for number in number..=MAX_TRIES {
        let wanted = to.join(numbered(name, number));
        match renameat_with(CWD, &copy, CWD, &wanted, RenameFlags::NOREPLACE) {
            Ok(()) => {
                target = Some(wanted);
                break;
            }
            Err(Errno::EXIST | Errno::NOTEMPTY) => {}
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
    }
    let target = target.ok_or_else(|| Error::new(Reason::EntryExists, format!("no free name for {name:?}")))?;
    if from.is_dir() {
        fs::remove_dir_all(from)?
    } else {
        fs::remove_file(from)?
    };
    Ok(target)
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    if metadata.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_all(&entry.path(), &to.join(entry.file_name()))?;
        }
        fs::set_permissions(to, metadata.permissions())?;
    } else {
        fs::copy(from, to)?;
        let file = fs::File::options().write(true).open(to).or_else(|_| fs::File::open(to))?;
        file.set_modified(metadata.modified()?)?;
        file.sync_all()?;
    }
    Ok(())
}

/// "plan.tar.gz", 2 -> "plan (2).tar.gz".
fn numbered(name: &str, number: u32) -> String {
    if number == 1 {
        return name.to_owned();
    }
    // The dot of a hidden name is no extension.
    let split = name.char_indices().skip(1).find(|(_, c)| *c == '.').map_or(name.len(), |(at, _)| at);
    let (stem, rest) = name.split_at(split);
    let mark = format!(" ({number})");
    // A name has at most 255 bytes; the stem gives way.
    let room = 255usize.saturating_sub(mark.len() + rest.len());
    let mut end = stem.len().min(room);
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{mark}{rest}", &stem[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_the_inbox_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("folder")).unwrap();
        fs::create_dir_all(to.join("folder")).unwrap();
        fs::write(from.join("a.tar.gz"), "new").unwrap();
        fs::write(from.join("folder/x"), "new").unwrap();
        fs::write(to.join("a.tar.gz"), "old").unwrap();
        fs::write(to.join("a (2).tar.gz"), "older").unwrap();
        let placed = place(&from, &to).unwrap();
        assert_eq!(placed[0], ("a.tar.gz".to_owned(), to.join("a (3).tar.gz")));
        assert_eq!(placed[1], ("folder".to_owned(), to.join("folder (2)")));
        assert_eq!(fs::read_to_string(to.join("a.tar.gz")).unwrap(), "old");
        assert_eq!(fs::read_to_string(to.join("a (3).tar.gz")).unwrap(), "new");
        assert_eq!(fs::read_to_string(to.join("folder (2)/x")).unwrap(), "new");
        assert!(place(&from, &to).unwrap().is_empty(), "a second run finds nothing left");
    }

    #[test]
    fn numbers_fit_into_names() {
        assert_eq!(numbered("a", 2), "a (2)");
        assert_eq!(numbered(".bashrc", 2), ".bashrc (2)");
        assert_eq!(numbered("a.b", 12), "a (12).b");
        let long = "ü".repeat(127);
        assert!(numbered(&long, 2).len() <= 255);
    }
}
