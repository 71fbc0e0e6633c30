//! What is to be fetched, and where to.

use crate::model::{Content, Scope};
use common::error::{Error, Reason, Result};
use common::model::{DeviceId, EntryName};
use std::collections::HashSet;
use std::path::PathBuf;

/// Most files of an order.
pub const MAX_FILES: usize = 1_000_000;
/// Most directories of an order.
pub const MAX_DIRECTORIES: usize = 1_000_000;
/// Most chunks of an order, counted in every place: 4 TiB of ordinary content.
pub const MAX_CHUNKS: usize = 4_000_000;
/// Longest path of an order's file, in bytes.
pub const MAX_PATH_BYTES: usize = 4_096;
/// Most sources that an order names.
pub const MAX_SOURCES: usize = 1_024;
/// End of the names of unfinished files; they begin with a dot.
pub const PART_SUFFIX: &str = ".atrium-part";

/// A file to fetch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OrderFile {
    /// Below the destination, '/'-separated.
    pub path: String,
    /// Modification time that it gets, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Unix permission bits that it gets; others than the lowest nine are left out.
    pub mode: u32,
    /// What is in it.
    pub content: Content,
}

/// A directory to make.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OrderDirectory {
    /// Below the destination, '/'-separated.
    pub path: String,
    /// Unix permission bits that it gets if it is made; its owner can always use it.
    pub mode: u32,
}

/// What is to be fetched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// Where the right to the chunks comes from.
    pub scope: Scope,
    /// For people.
    pub title: String,
    /// Absolute path of a directory; made if it is missing. A file that shall get a new name has that name as its path.
    pub destination: PathBuf,
    /// The files.
    pub files: Vec<OrderFile>,
    /// Directories besides those that the files need, for example empty ones.
    pub directories: Vec<OrderDirectory>,
    /// Where to ask first. Others that have chunks of the scope are found from there.
    pub sources: Vec<DeviceId>,
    /// Replace files that differ.
    pub overwrite: bool,
}

/// Checks a relative path and gives its segments.
///
/// # Errors
/// PATH_INVALID, NAME_INVALID.
pub fn check_path(path: &str) -> Result<Vec<&str>> {
    let wrong = |why: &'static str| {
        let shown: String = path.chars().take(64).collect();
        Error::new(Reason::PathInvalid, format!("the path {shown:?} cannot be used")).why_is(why)
    };
    if path.is_empty() || path.len() > MAX_PATH_BYTES {
        return Err(wrong("it is empty or longer than 4,096 bytes"));
    }
    let segments: Vec<&str> = path.split('/').collect();
    for segment in &segments {
        EntryName::new(*segment)?;
        if segment.ends_with(PART_SUFFIX) {
            return Err(wrong("a name in it is one of unfinished transfers"));
        }
    }
    Ok(segments)
}

impl Order {
    /// Checks everything that can be checked without the disk.
    ///
    /// # Errors
    /// PATH_INVALID or NAME_INVALID for names that could lead elsewhere, TREE_TOO_LARGE above the bounds, NAME_CLASH if a
    /// path is there twice or is a file and a directory, FIELD_INVALID for anything else.
    pub fn check(&self) -> Result<()> {
        let invalid = |what: &str| Error::new(Reason::FieldInvalid, what.to_owned());
        if !self.destination.is_absolute() {
            return Err(invalid("the destination is not an absolute path"));
        }
        if self.sources.len() > MAX_SOURCES {
            return Err(invalid("an order names more than 1,024 sources"));
        }
        let chunks: usize = self.files.iter().map(|f| f.content.chunks.len()).sum();
        if self.files.len() > MAX_FILES || self.directories.len() > MAX_DIRECTORIES || chunks > MAX_CHUNKS {
            return Err(Error::new(Reason::TreeTooLarge, "the order has too many files, directories or chunks")
                .fix_is("fetch its parts, one after the other"));
        }
        let mut files = HashSet::with_capacity(self.files.len());
        let mut directories = HashSet::new();
        for file in &self.files {
            let segments = check_path(&file.path)?;
            let sum: u64 = file.content.chunks.iter().map(|c| u64::from(c.len)).sum();
            if sum != file.content.size_bytes {
                return Err(invalid("a file's size is not the sum of its chunks"));
            }
            if !files.insert(file.path.as_str()) {
                return Err(clash(&file.path));
            }
            let name = segments.last().map_or(0, |name| name.len());
            let mut end = file.path.len() - name;
            while end > 0 {
                let parent = &file.path[..end - 1];
                if !directories.insert(parent) {
                    break;
                }
                end = parent.rfind('/').map_or(0, |at| at + 1);
            }
        }
        for directory in &self.directories {
            check_path(&directory.path)?;
            directories.insert(&directory.path);
        }
        match files.iter().find(|f| directories.contains(*f)) {
            Some(both) => Err(clash(both)),
            None => Ok(()),
        }
    }
}

fn clash(path: &str) -> Error {
    let shown: String = path.chars().take(64).collect();
    Error::new(Reason::NameClash, format!("{shown:?} is in the order twice"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ShareId;
    use common::model::{ChunkId, ChunkRef};

    fn order(files: &[&str], directories: &[&str]) -> Order {
        let content = Content::of(vec![ChunkRef { id: ChunkId::of(b"x"), len: 1 }]);
        let file = |p: &&str| OrderFile { path: (*p).to_owned(), mtime_ns: 0, mode: 0o644, content: content.clone() };
        let directory = |p: &&str| OrderDirectory { path: (*p).to_owned(), mode: 0o755 };
        Order {
            scope: Scope::Share(ShareId::generate()),
            title: "test".into(),
            destination: "/nowhere".into(),
            files: files.iter().map(file).collect(),
            directories: directories.iter().map(directory).collect(),
            sources: Vec::new(),
            overwrite: false,
        }
    }

    #[test]
    fn paths_that_could_lead_elsewhere_are_refused() {
        let long = "x".repeat(256);
        let deep = "a/".repeat(3000);
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../x",
            "a//b",
            "a/",
            "./a",
            "a/.",
            "a\0b",
            "a\nb",
            "x\u{202e}gpj.exe",
            &long,
            &deep,
            ".a.atrium-part",
            "b/.a.atrium-part/c",
        ] {
            assert!(order(&[bad], &[]).check().is_err(), "{bad:?} as a file");
            assert!(order(&[], &[bad]).check().is_err(), "{bad:?} as a directory");
        }
        order(&["a", "b/c", "b/d/e", "...", "日本/ü"], &["b", "z/y"]).check().unwrap();
    }

    #[test]
    fn one_path_is_one_thing() {
        for (files, directories) in
            [(&["a", "a"][..], &[][..]), (&["a", "a/b"], &[]), (&["a/b/c", "a/b"], &[]), (&["a"], &["a"])]
        {
            let error = order(files, directories).check().unwrap_err();
            assert!(error.is(Reason::NameClash), "{files:?} {directories:?}: {error:?}");
        }
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let mut wrong = order(&["a"], &[]);
        wrong.files[0].content.size_bytes = 2;
        assert!(wrong.check().unwrap_err().is(Reason::FieldInvalid));
        let mut relative = order(&["a"], &[]);
        relative.destination = "here".into();
        assert!(relative.check().unwrap_err().is(Reason::FieldInvalid));
    }
}
