//! Conflicts as people see and end them.
//!
//! A conflict is a file beside another one, called as `conflict` says; every copy of the share tells of it. It ends for
//! all when one of them removes the file, gives it the name, or renames it: these are changes like any other.

use common::error::{Error, Reason, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::TwoWay;
use super::conflict::{self, Parsed};
use super::copy::{Copy, blocking};
use super::decide::Save;
use super::place::{Place, Trouble};
use crate::catalogue::entry::{join, split};
use crate::model::ShareId;

/// Two versions of a file that were made at the same time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// Which share.
    pub share: ShareId,
    /// Its name.
    pub share_name: String,
    /// The file, absolute.
    pub path: PathBuf,
    /// The other version beside it, absolute.
    pub other_path: PathBuf,
    /// Machine that made the other version.
    pub other_node: String,
    /// When it was seen here, milliseconds since 1970.
    pub create_ms: u64,
}

/// What stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// The file at its own name. The other one goes to the trash.
    Mine,
    /// The other version takes the name. The one that had it goes to the trash.
    Theirs,
    /// Both stay as two files; it is no conflict any longer.
    Both,
}

fn refused(trouble: Trouble) -> Error {
    match trouble {
        Trouble::Changed | Trouble::NotEmpty => {
            Error::new(Reason::LocalFileChanged, "one of the files has been changed a moment ago")
        }
        Trouble::System(errno) => Error::from(std::io::Error::from(errno)),
    }
}

/// The conflict copies that a path means: itself, or those beside it.
fn meant(conflicts: &[(String, u64)], path: &str) -> Vec<(String, Parsed)> {
    let parsed = |copy: &str| conflict::parse(split(copy).1).map(|p| (copy.to_owned(), p));
    if let Some(itself) = conflicts.iter().find(|(copy, _)| copy == path) {
        return parsed(&itself.0).into_iter().collect();
    }
    let all = conflicts.iter().filter_map(|(copy, _)| parsed(copy));
    all.filter(|(copy, p)| join(split(copy).0, &p.name) == path).collect()
}

impl TwoWay {
    /// Conflicts that wait, of one share (by name, path or id) or of all, oldest first.
    pub fn conflicts(&self, share: Option<&str>) -> Vec<Conflict> {
        let mut found = Vec::new();
        for copy in self.0.copies_of(share) {
            let Ok(record) = self.0.catalogue.record(&copy.share) else { continue };
            found.extend(copy.conflicts().into_iter().filter_map(|(path, create_ms)| {
                let (directory, name) = split(&path);
                let parsed = conflict::parse(name)?;
                Some(Conflict {
                    share: copy.share,
                    share_name: record.name().to_owned(),
                    path: copy.path.join(join(directory, &parsed.name)),
                    other_path: copy.path.join(&path),
                    other_node: parsed.machine,
                    create_ms,
                })
            }));
        }
        found.sort_by(|a, b| (a.create_ms, &a.other_path).cmp(&(b.create_ms, &b.other_path)));
        found
    }

    /// Ends a conflict. `path` is the absolute path of either version.
    ///
    /// # Errors
    /// ENTRY_UNKNOWN if there is no conflict about the path; FIELD_INVALID if there are several and one has to be named;
    /// LOCAL_FILE_CHANGED if a file is being written; those of the disk.
    pub async fn resolve(&self, path: &Path, keep: Keep) -> Result<()> {
        let unknown = || Error::new(Reason::EntryUnknown, "there is no conflict about this file");
        let copy = self.0.copies.read().values().find(|c| path.starts_with(&c.path)).cloned().ok_or_else(unknown)?;
        let inside = path.strip_prefix(&copy.path).ok().and_then(Path::to_str).ok_or_else(unknown)?;
        let meant = meant(&copy.conflicts(), inside);
        if meant.is_empty() {
            return Err(unknown());
        }
        if keep == Keep::Theirs && meant.len() > 1 {
            return Err(Error::new(Reason::FieldInvalid, "there are several other versions of this file")
                .fix_is("name the one that is to stay; `atrium conflicts` lists them"));
        }
        let theirs = copy.clone();
        blocking(move || meant.iter().try_for_each(|(path, parsed)| end(&theirs, path, parsed, keep))).await?;
        copy.wake();
        Ok(())
    }
}

fn end(copy: &Arc<Copy>, path: &str, parsed: &Parsed, keep: Keep) -> Result<()> {
    let catalogue = &copy.inner.catalogue;
    let root = catalogue.open_folder(&copy.share)?;
    let mut place = Place::new(&root, copy.inner.clock.now_ms());
    let base = join(split(path).0, &parsed.name);
    let busy = || refused(Trouble::Changed);
    let _theirs = copy.index.hold(path).ok_or_else(busy)?;
    let _mine = copy.index.hold(&base).ok_or_else(busy)?;
    let stored = |path: &str| Ok::<_, Error>(copy.index.stored(path)?.filter(|s| s.entry.is_file()));
    let mut touched = vec![path.to_owned(), base.clone()];
    match keep {
        Keep::Mine => {
            let theirs = stored(path)?.ok_or_else(busy)?;
            place.remove(path, &theirs, Save::Trash, "").map_err(refused)?;
        }
        Keep::Theirs => place.take_name(path, &base, stored(&base)?.as_ref()).map_err(refused)?,
        Keep::Both => {
            let new = place.rename(path, |number| conflict::plain_name(parsed, number)).map_err(refused)?;
            touched.push(new);
        }
    }
    place.sync().map_err(std::io::Error::from)?;
    copy.ended_conflict(path);
    touched.iter().for_each(|path| catalogue.look_soon(&copy.share, path, false));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_version_names_the_conflict() {
        let one = "d/a.conflict-bert-20251122-230900.txt".to_owned();
        let two = "d/a.conflict-carl-20251122-230901.txt".to_owned();
        let all = [(one.clone(), 1), (two.clone(), 2), ("e/a.conflict-bert-20251122-230900.txt".to_owned(), 3)];
        assert_eq!(meant(&all, &one).len(), 1);
        let both: Vec<String> = meant(&all, "d/a.txt").into_iter().map(|m| m.0).collect();
        assert_eq!(both, [one, two]);
        assert!(meant(&all, "a.txt").is_empty());
    }
}
