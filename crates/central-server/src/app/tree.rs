//! Finding the way from a root to an entry.
//!
//! An entry lives in its directory's range: key `f/`, the directory's id, the name as it is compared in that root. One
//! get per path segment leads from the root to the entry; nothing is keyed by path, so a rename touches one record
//! whatever hangs below. The steps down give all ancestors, which is what a cycle check needs.
//!
//! | key | value |
//! | --- | --- |
//! | `f/DIRECTORY NAME` | Entry; NAME is folded unless the root is case-sensitive |
//! | `p/DIRECTORY` | Parent: where a live directory hangs; one in the trash has none |
//! | `v/FILE VERSION` | Version: old content |
//! | `t/ROOT TRASH_ID` | Trash; what hangs below a deleted directory stays in `f/` and `p/` as it was |
//! | `z/DIRECTORY` | Purge: what hangs below is being deleted for good |
//! | `s/NAME` | Root, by its folded name |
//! | `q/ROOT` | Usage |

use super::directories::Root;
use super::records::{self, View};
use common::error::{Error, Reason, Result};
use common::model::{EntryName, EntryPath, NodeId, RootId};
use common::store::prefix_end;
use proto::record::v1 as record;

/// Records read with one call to the store in walks.
pub const PAGE: usize = 1_000;

fn joined(prefix: &[u8; 2], parts: [&[u8]; 2]) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + parts[0].len() + parts[1].len());
    key.extend_from_slice(prefix);
    parts.iter().for_each(|p| key.extend_from_slice(p));
    key
}

/// `f/DIRECTORY NAME`
pub fn entry_key(directory: NodeId, name: &EntryName, case_sensitive: bool) -> Vec<u8> {
    joined(b"f/", [directory.as_bytes(), name.key(case_sensitive).as_bytes()])
}
/// All entries of a directory.
pub fn entries_of(directory: NodeId) -> Vec<u8> {
    joined(b"f/", [directory.as_bytes(), b""])
}
/// `p/DIRECTORY`
pub fn parent_key(directory: NodeId) -> Vec<u8> {
    joined(b"p/", [directory.as_bytes(), b""])
}
/// `v/FILE VERSION`
pub fn version_key(file: NodeId, version: u64) -> Vec<u8> {
    joined(b"v/", [file.as_bytes(), &version.to_be_bytes()])
}
/// All old versions of a file.
pub fn versions_of(file: NodeId) -> Vec<u8> {
    joined(b"v/", [file.as_bytes(), b""])
}
/// `t/ROOT TRASH_ID`
pub fn trash_key(root: RootId, id: uuid::Uuid) -> Vec<u8> {
    joined(b"t/", [root.as_bytes(), id.as_bytes()])
}
/// All of a root's trash.
pub fn trash_of(root: RootId) -> Vec<u8> {
    joined(b"t/", [root.as_bytes(), b""])
}
/// `z/DIRECTORY`
pub fn purge_key(directory: NodeId) -> Vec<u8> {
    joined(b"z/", [directory.as_bytes(), b""])
}

/// An entry's id.
///
/// # Errors
/// `STORE_CORRUPT`.
pub fn id_of(entry: &record::Entry) -> Result<NodeId> {
    records::uuid(&entry.uid).map(NodeId)
}

/// The number of bytes of an entry's current content.
pub fn size_of(entry: &record::Entry) -> u64 {
    entry.content.as_ref().map_or(0, |c| c.size_bytes)
}

/// A directory that was reached from its root.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory.
    pub id: NodeId,
    /// From the root down to the directory, both included.
    pub line: Vec<NodeId>,
}

/// An entry that was found.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its directory.
    pub parent: NodeId,
    /// Its key.
    pub key: Vec<u8>,
    /// What is stored.
    pub record: record::Entry,
}

impl Node {
    /// The entry's id.
    ///
    /// # Errors
    /// `STORE_CORRUPT`.
    pub fn id(&self) -> Result<NodeId> {
        id_of(&self.record)
    }
}

/// A name in a directory, taken or free.
#[derive(Clone, Debug)]
pub struct Spot {
    /// The directory.
    pub place: Place,
    /// The key of the name.
    pub key: Vec<u8>,
    /// What has the key now. Its name may differ in letter case from the one asked for.
    pub present: Option<record::Entry>,
}

fn unknown(path: &EntryPath) -> Error {
    Error::new(Reason::EntryUnknown, format!("{path} is not there"))
}

fn shown(root: &Root, segments: &[EntryName]) -> EntryPath {
    EntryPath { root: root.root_name(), segments: segments.to_vec() }
}

/// Follows existing directories as far as they go: the last one, and how many segments led there.
///
/// # Errors
/// `NOT_A_DIRECTORY`; `NAME_CLASH` if a segment is there in other letters and `making` is set (it is `ENTRY_UNKNOWN`
/// otherwise).
fn follow(view: &impl View, root: &Root, segments: &[EntryName], making: bool) -> Result<(Place, usize)> {
    let mut place = Place { id: root.id.node(), line: vec![root.id.node()] };
    for (depth, name) in segments.iter().enumerate() {
        let key = entry_key(place.id, name, root.case_sensitive);
        let Some(entry) = records::load::<record::Entry>(view, &key)? else { return Ok((place, depth)) };
        if entry.name != name.as_str() {
            if making {
                return Err(clash(&shown(root, &segments[..=depth]), &entry.name));
            }
            return Ok((place, depth));
        }
        if !entry.directory {
            let path = shown(root, &segments[..=depth]);
            return Err(Error::new(Reason::NotADirectory, format!("{path} is a file")));
        }
        place.id = id_of(&entry)?;
        place.line.push(place.id);
    }
    Ok((place, segments.len()))
}

/// The refusal of a name that is there in other letters.
pub fn clash(path: &EntryPath, present: &str) -> Error {
    Error::new(Reason::NameClash, format!("{path} cannot stand beside {present:?}")).with("present", present)
}

/// A directory.
///
/// # Errors
/// `ENTRY_UNKNOWN`, `NOT_A_DIRECTORY`.
pub fn directory(view: &impl View, root: &Root, segments: &[EntryName]) -> Result<Place> {
    let (place, depth) = follow(view, root, segments, false)?;
    if depth < segments.len() {
        return Err(unknown(&shown(root, &segments[..=depth])));
    }
    Ok(place)
}

/// The part of a path that is there, and the number of segments that must be made.
///
/// # Errors
/// `NOT_A_DIRECTORY`, `NAME_CLASH`.
pub fn directory_or_missing(view: &impl View, root: &Root, segments: &[EntryName]) -> Result<(Place, usize)> {
    let (place, depth) = follow(view, root, segments, true)?;
    Ok((place, segments.len() - depth))
}

/// An entry below a root.
///
/// # Errors
/// `ROOT_FIXED` for the root itself, `ENTRY_UNKNOWN`, `NOT_A_DIRECTORY`.
pub fn find(view: &impl View, root: &Root, path: &EntryPath) -> Result<Node> {
    let spot = spot(view, root, path)?;
    match spot.present {
        Some(record) if path.name().is_some_and(|n| n.as_str() == record.name) => {
            Ok(Node { parent: spot.place.id, key: spot.key, record })
        }
        _ => Err(unknown(path)),
    }
}

/// A file below a root.
///
/// # Errors
/// As [`find`], and `IS_A_DIRECTORY`.
pub fn find_file(view: &impl View, root: &Root, path: &EntryPath) -> Result<Node> {
    if path.segments.is_empty() {
        return Err(is_directory(path));
    }
    let node = find(view, root, path)?;
    if node.record.directory {
        return Err(is_directory(path));
    }
    Ok(node)
}

/// The refusal of a directory where a file is wanted.
pub fn is_directory(path: &EntryPath) -> Error {
    Error::new(Reason::IsADirectory, format!("{path} is a directory"))
}

/// A name in a directory that exists.
///
/// # Errors
/// `ROOT_FIXED` for the root itself, `ENTRY_UNKNOWN` and `NOT_A_DIRECTORY` about the directory.
pub fn spot(view: &impl View, root: &Root, path: &EntryPath) -> Result<Spot> {
    let Some((name, parents)) = path.segments.split_last() else {
        return Err(Error::new(Reason::RootFixed, format!("{path} is a whole private or public directory")));
    };
    let place = directory(view, root, parents)?;
    let key = entry_key(place.id, name, root.case_sensitive);
    let present = records::load(view, &key)?;
    Ok(Spot { place, key, present })
}

/// Calls `each` with key and record of every entry of a directory, in order.
///
/// # Errors
/// Those of the store and of `each`.
pub fn each_entry(
    view: &impl View,
    directory: NodeId,
    mut each: impl FnMut(Vec<u8>, record::Entry) -> Result<()>,
) -> Result<()> {
    let mut from = entries_of(directory);
    let to = prefix_end(&from);
    loop {
        let page = view.range(&from, &to, PAGE)?;
        let full = page.len() == PAGE;
        if let Some((last, _)) = page.last() {
            from = last.to_vec();
            from.push(0);
        }
        for (key, value) in page {
            each(key.to_vec(), records::decode(value)?)?;
        }
        if !full {
            return Ok(());
        }
    }
}

/// Whether a directory has no entries.
///
/// # Errors
/// Those of the store.
pub fn is_empty(view: &impl View, directory: NodeId) -> Result<bool> {
    Ok(records::under(view, &entries_of(directory), 1)?.is_empty())
}
