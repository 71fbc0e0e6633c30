//! What `put` has to put: files and directories of this machine and where each goes.

use crate::output::usage;
use common::error::{Error, Reason, Result};
use common::model::{EntryName, EntryPath};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Most files of one command.
const FILES_MAX: usize = 2_000_000;

/// A file to put.
#[derive(Debug, Clone)]
pub struct Source {
    /// Here.
    pub local: PathBuf,
    /// There.
    pub target: EntryPath,
    /// Bytes.
    pub size: u64,
    /// Modification time.
    pub modified: Option<SystemTime>,
    /// Unix permission bits.
    pub mode: u32,
}

/// What was named on the command line.
#[derive(Debug, Default)]
pub struct Sources {
    /// Files.
    pub named: Vec<Source>,
    /// Directories and where their content goes.
    pub trees: Vec<(PathBuf, EntryPath)>,
}

impl Sources {
    /// Adds a file or a directory.
    ///
    /// # Errors
    /// `ENTRY_UNKNOWN`, `IO_FAILED`.
    pub fn add(&mut self, local: &Path, target: EntryPath) -> Result<()> {
        // A link that is named on the command line is followed, those found in directories are not.
        let metadata = local.metadata().map_err(|e| unreadable(local, e))?;
        if metadata.is_dir() {
            self.trees.push((local.to_owned(), target));
        } else if metadata.is_file() {
            self.named.push(Source::of(local.to_owned(), target, &metadata));
        } else {
            return Err(usage(
                format!("{} is neither a file nor a directory", local.display()),
                "put what it contains: `cat THING | atrium put - PLACE`",
            ));
        }
        Ok(())
    }

    /// All files, those below directories too. Blocking.
    ///
    /// # Errors
    /// `IO_FAILED`, `TREE_TOO_LARGE`.
    pub fn expand(&self) -> Result<Expanded> {
        let mut all = Expanded { files: self.named.clone(), named: self.named.len(), ..Expanded::default() };
        for (local, target) in &self.trees {
            all.add_directory(local.clone(), target.clone())?;
        }
        Ok(all)
    }
}

impl Source {
    fn of(local: PathBuf, target: EntryPath, metadata: &std::fs::Metadata) -> Self {
        let (size, mode) = (metadata.len(), metadata.mode() & 0o777);
        Self { local, target, size, modified: metadata.modified().ok(), mode }
    }
}

/// Every single file to put.
#[derive(Debug, Default)]
pub struct Expanded {
    /// Files; those that were named themselves come first.
    pub files: Vec<Source>,
    /// How many were named themselves.
    pub named: usize,
    /// Directories of the server that belong to it, parents first.
    pub directories: Vec<EntryPath>,
    /// What is passed over, with the reason.
    pub skipped: Vec<String>,
}

impl Expanded {
    fn push(&mut self, local: PathBuf, target: EntryPath, metadata: &std::fs::Metadata) -> Result<()> {
        if self.files.len() >= FILES_MAX {
            return Err(Error::new(Reason::TreeTooLarge, format!("there are more than {FILES_MAX} files to put"))
                .fix_is("put parts of it, one after the other"));
        }
        self.files.push(Source::of(local, target, metadata));
        Ok(())
    }

    fn add_directory(&mut self, local: PathBuf, target: EntryPath) -> Result<()> {
        let mut open = vec![(local, target)];
        while let Some((directory, target)) = open.pop() {
            let mut listing = std::fs::read_dir(&directory)
                .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
                .map_err(|e| unreadable(&directory, e))?;
            listing.sort_by_key(std::fs::DirEntry::file_name);
            self.directories.push(target.clone());
            for entry in listing {
                let local = entry.path();
                let Some(name) = entry.file_name().to_str().and_then(|n| EntryName::new(n).ok()) else {
                    self.skipped.push(format!("{}: its name cannot be used on the server", local.display()));
                    continue;
                };
                let metadata = match local.symlink_metadata() {
                    Ok(metadata) => metadata,
                    Err(error) => return Err(unreadable(&local, error)),
                };
                let target = target.child(name);
                if metadata.is_dir() {
                    open.push((local, target));
                } else if metadata.is_file() {
                    self.push(local, target, &metadata)?;
                } else {
                    self.skipped.push(format!("{}: is neither a file nor a directory", local.display()));
                }
            }
        }
        Ok(())
    }
}

/// The name that a source gets in a directory of the server.
///
/// # Errors
/// `NAME_INVALID`, `USAGE`.
pub fn name_of(local: &Path) -> Result<EntryName> {
    let resolved;
    let named = match local.file_name() {
        Some(name) => name,
        // ".", ".." and "/": by what they really are.
        None => {
            resolved = local.canonicalize().map_err(|e| unreadable(local, e))?;
            resolved
                .file_name()
                .ok_or_else(|| usage("the whole disk has no name of its own", "name a directory in it"))?
        }
    };
    let text = named.to_str().ok_or_else(|| {
        Error::new(Reason::NameInvalid, format!("the name {} cannot be used", local.display()))
            .why_is("it is not UTF-8")
            .fix_is("give it another name: atrium put FILE home:NAME")
    })?;
    EntryName::new(text)
}

/// Standard input, kept in a file without a name: its size must be known, and it may have to be sent again.
#[derive(Debug)]
pub struct Spool(File);

impl Spool {
    /// Reads standard input to its end. Blocking.
    ///
    /// # Errors
    /// `IO_FAILED`, `DISK_FULL`.
    pub fn of_stdin() -> Result<Self> {
        let mut file = tempfile::tempfile()?;
        std::io::copy(&mut std::io::stdin().lock(), &mut file)?;
        Ok(Self(file))
    }

    /// By which it can be opened again, as long as this lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    let reason = if missing { Reason::EntryUnknown } else { Reason::IoFailed };
    let (why, fix) = if missing {
        (
            "there is no such file or directory on this machine".to_owned(),
            "check the path; the place on the server comes last",
        )
    } else {
        (error.to_string(), "check the rights of the file")
    };
    Error::new(reason, format!("{} cannot be read", path.display())).why_is(why).fix_is(fix).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_gathered_with_what_was_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("photos");
        std::fs::create_dir_all(top.join("2026/empty")).unwrap();
        std::fs::write(top.join("2026/a.jpg"), "12345").unwrap();
        std::fs::write(top.join("b.jpg"), "1").unwrap();
        std::os::unix::fs::symlink("b.jpg", top.join("c.jpg")).unwrap();
        let mut sources = Sources::default();
        sources.add(&top, EntryPath::parse("home:pictures/photos").unwrap()).unwrap();
        // A link that was named is followed.
        sources.add(&top.join("c.jpg"), EntryPath::parse("home:c.jpg").unwrap()).unwrap();
        let all = sources.expand().unwrap();
        let mut targets: Vec<String> = all.files.iter().map(|f| f.target.to_string()).collect();
        targets.sort();
        assert_eq!(targets, ["home:c.jpg", "home:pictures/photos/2026/a.jpg", "home:pictures/photos/b.jpg"]);
        assert_eq!((all.named, all.directories.len(), all.skipped.len()), (1, 3, 1));
        assert_eq!(all.files.iter().map(|f| f.size).sum::<u64>(), 7);
        assert!(
            sources
                .add(&top.join("missing"), EntryPath::parse("home:x").unwrap())
                .unwrap_err()
                .is(Reason::EntryUnknown)
        );
    }

    #[test]
    fn names_come_from_the_path_or_from_what_it_really_is() {
        assert_eq!(name_of(Path::new("a/b.txt")).unwrap().as_str(), "b.txt");
        assert_eq!(name_of(Path::new("a/photos/")).unwrap().as_str(), "photos");
        let here = std::env::current_dir().unwrap();
        assert_eq!(name_of(Path::new(".")).unwrap().as_str(), here.file_name().unwrap().to_str().unwrap());
        assert!(name_of(Path::new("/")).is_err());
    }
}
