//! Reading both trees.

use super::local::{failed, is_ours, stamp};
use super::plan::{Digest, Node, Tree};
use super::state::{Memory, Stamp};
use crate::bytes::content_digest;
use crate::commands::places;
use crate::connect::Office;
use common::error::{Error, Reason, Result};
use common::model::{EntryName, EntryPath};
use futures_util::stream::{FuturesUnordered, StreamExt};
use proto::v1;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Most entries of a synchronised tree; memory stays below a gigabyte.
const ENTRIES_MAX: usize = 2_000_000;
/// Directories of the server that are listed at a time.
const LISTINGS: usize = 8;
/// Most passed-over files that are named.
const SKIPPED_MAX: usize = 10_000;

/// The local side.
#[derive(Debug, Default)]
pub struct LocalTree {
    /// What is there.
    pub tree: Tree,
    /// How each file looked.
    pub stamps: BTreeMap<String, Stamp>,
    /// What was passed over, with the reason.
    pub skipped: Vec<String>,
}

/// The server's side.
#[derive(Debug, Default)]
pub struct RemoteTree {
    /// What is there.
    pub tree: Tree,
    /// The entries behind it.
    pub entries: BTreeMap<String, v1::Entry>,
    /// What was passed over, with the reason.
    pub skipped: Vec<String>,
}

/// Reads the local side. Files that look as they did when their content was known are not read again. Blocking.
///
/// # Errors
/// `IO_FAILED`, `TREE_TOO_LARGE`.
pub fn local(directory: &Path, memory: &Memory) -> Result<LocalTree> {
    let mut found = LocalTree::default();
    let mut open = vec![(directory.to_owned(), String::new())];
    while let Some((at, prefix)) = open.pop() {
        let listing = match std::fs::read_dir(&at) {
            Ok(listing) => listing,
            // Gone since its parent was read: then it is not there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !prefix.is_empty() => {
                found.tree.remove(prefix.trim_end_matches('/'));
                continue;
            }
            Err(error) => return Err(failed(&at, error)),
        };
        for entry in listing {
            let entry = entry.map_err(|e| failed(&at, e))?;
            let Some(path) = name_in(&entry.file_name(), &prefix, &mut found.skipped) else { continue };
            match look(&entry.path(), &path, memory) {
                Ok(Some((node, stamp))) => {
                    if node == Node::Directory {
                        open.push((entry.path(), format!("{path}/")));
                    }
                    found.stamps.extend(stamp.map(|s| (path.clone(), s)));
                    found.tree.insert(path, node);
                }
                Ok(None) => skip(&mut found.skipped, &path, "is neither a file nor a directory"),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                // What cannot be read must not look as if it were gone, so nothing is synchronised then.
                Err(error) => return Err(failed(&entry.path(), error)),
            }
            if found.tree.len() > ENTRIES_MAX {
                return Err(too_large(&directory.display().to_string()));
            }
        }
    }
    Ok(found)
}

fn too_large(what: &str) -> Error {
    Error::new(Reason::TreeTooLarge, format!("there are more than {ENTRIES_MAX} files and directories in {what}"))
        .fix_is("synchronise parts of it")
}

fn skip(skipped: &mut Vec<String>, path: &str, why: &str) {
    if skipped.len() < SKIPPED_MAX {
        skipped.push(format!("{path}: {why}"));
    }
}

/// The path of an entry, unless it is ours or its name cannot be one on the server.
fn name_in(name: &std::ffi::OsStr, prefix: &str, skipped: &mut Vec<String>) -> Option<String> {
    let Some(text) = name.to_str() else {
        skip(skipped, &format!("{prefix}{}", name.to_string_lossy()), "its name is not UTF-8");
        return None;
    };
    if is_ours(text) {
        return None;
    }
    let path = format!("{prefix}{text}");
    match EntryPath::new("home", &path) {
        Ok(_) => Some(path),
        Err(error) => {
            skip(skipped, &path, error.why());
            None
        }
    }
}

/// What stands at a path; `None` for links and special files.
fn look(file: &Path, path: &str, memory: &Memory) -> std::io::Result<Option<(Node, Option<Stamp>)>> {
    let metadata = file.symlink_metadata()?;
    if metadata.is_dir() {
        return Ok(Some((Node::Directory, None)));
    }
    if !metadata.is_file() {
        return Ok(None);
    }
    let seen = stamp(&metadata);
    if let Some(known) = memory.entries.get(path)
        && known.stamp == Some(seen)
        && let Some(digest) = known.digest.as_deref().and_then(super::state::parse_digest)
    {
        return Ok(Some((Node::File(digest), Some(seen))));
    }
    Ok(Some((Node::File(content_digest(File::open(file)?)?), Some(seen))))
}

/// Reads the server's side, several directories at a time.
///
/// # Errors
/// Whatever listing ends with; `TREE_TOO_LARGE`.
pub async fn remote(office: &Office, root: &EntryPath) -> Result<RemoteTree> {
    let mut found = RemoteTree::default();
    let mut waiting = VecDeque::from([(root.clone(), String::new())]);
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < LISTINGS
            && let Some((directory, prefix)) = waiting.pop_front()
        {
            running.push(list(office, directory, prefix));
        }
        let Some(listed) = running.next().await else { break };
        let (directory, prefix, entries) = listed?;
        for entry in entries {
            let Ok(name) = EntryName::new(entry.display_name.as_str()) else {
                skip(&mut found.skipped, &format!("{prefix}{}", entry.display_name), "its name cannot be used here");
                continue;
            };
            let path = format!("{prefix}{name}");
            if is_ours(name.as_str()) {
                continue;
            }
            let node = if places::is_directory(&entry) {
                waiting.push_back((directory.child(name), format!("{path}/")));
                Node::Directory
            } else {
                match <Digest>::try_from(entry.manifest_digest.as_ref()) {
                    Ok(digest) => Node::File(digest),
                    Err(_) => return Err(Error::internal(format!("the server sent no digest for {path}"))),
                }
            };
            found.tree.insert(path.clone(), node);
            found.entries.insert(path, entry);
            if found.tree.len() > ENTRIES_MAX {
                return Err(too_large(&root.to_string()));
            }
        }
    }
    Ok(found)
}

type Listed = (EntryPath, String, Vec<v1::Entry>);

/// A whole directory; one that vanished meanwhile is empty.
async fn list(office: &Office, directory: EntryPath, prefix: String) -> Result<Listed> {
    let (mut entries, mut token) = (Vec::new(), String::new());
    loop {
        let page = match places::page(office, &directory, token).await {
            Ok(page) => page,
            Err(error) if error.is(Reason::EntryUnknown) && !prefix.is_empty() => break,
            Err(error) => return Err(error),
        };
        entries.extend(page.entries);
        token = page.next_page_token;
        if token.is_empty() || entries.len() > ENTRIES_MAX {
            break;
        }
    }
    Ok((directory, prefix, entries))
}

/// The path here of a path in the trees.
pub fn local_path(directory: &Path, path: &str) -> PathBuf {
    directory.join(path)
}

/// The path on the server of a path in the trees.
///
/// # Errors
/// `PATH_INVALID` if it would be too long or too deep there.
pub fn remote_path(root: &EntryPath, path: &str) -> Result<EntryPath> {
    let below = if root.segments.is_empty() { path.to_owned() } else { format!("{}/{path}", root.relative()) };
    EntryPath::new(&root.root.to_string(), &below)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::state::Pair;
    use common::model::manifest_digest;

    fn memory(directory: &Path) -> Memory {
        let pair = Pair { directory: directory.into(), office: "o".into(), user: "u".into(), remote: "home:x".into() };
        Memory::new(pair, String::new(), (0, 0))
    }

    #[test]
    fn files_and_directories_are_found_and_the_rest_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("d/e")).unwrap();
        std::fs::write(dir.path().join("d/a"), "1").unwrap();
        std::fs::write(dir.path().join("new\nline"), "1").unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("d/link")).unwrap();
        std::fs::create_dir_all(dir.path().join(".atrium-trash/run")).unwrap();
        let found = local(dir.path(), &memory(dir.path())).unwrap();
        assert_eq!(found.tree.keys().collect::<Vec<_>>(), ["d", "d/a", "d/e"]);
        assert_eq!(found.skipped.len(), 2);
        assert_eq!(
            found.tree["d/a"],
            Node::File(manifest_digest(&[common::model::ChunkRef { id: common::model::ChunkId::of(b"1"), len: 1 }]))
        );
    }

    #[test]
    fn unchanged_files_are_not_read_again_and_changed_ones_are() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, "1").unwrap();
        let mut memory = memory(dir.path());
        let seen = stamp(&file.symlink_metadata().unwrap());
        memory.record_file("a", &[9; 32], Some(seen));
        assert_eq!(local(dir.path(), &memory).unwrap().tree["a"], Node::File([9; 32]));
        std::fs::write(&file, "22").unwrap();
        assert_ne!(local(dir.path(), &memory).unwrap().tree["a"], Node::File([9; 32]));
    }

    #[test]
    fn paths_are_put_together() {
        let root = EntryPath::parse("public:plans").unwrap();
        assert_eq!(remote_path(&root, "a/b").unwrap().to_string(), "public:plans/a/b");
        let below = EntryPath::parse("home:x/y").unwrap();
        assert_eq!(remote_path(&below, "a").unwrap().to_string(), "home:x/y/a");
        assert!(remote_path(&below, "a//b").is_err());
    }
}
