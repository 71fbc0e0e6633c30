//! Entries as callers see them; looking at one, listing a directory, making directories.

use super::App;
use super::answers::{Answer, Once};
use super::caller::Caller;
use super::directories::{self, Root};
use super::edit::{self, ChangeKind, Edit, bytes_of};
use super::locks::{self, Lock};
use super::page::{PageToken, fingerprint};
use super::records;
use super::tree::{self, Place, entries_of};
use common::error::{Error, Reason, Result};
use common::model::{EntryName, EntryPath, NodeId, Right};
use common::store::prefix_end;
use proto::record::v1 as record;

/// Entries of a page of a directory if the caller does not say.
pub const DEFAULT_PAGE: usize = 1_000;
/// Most entries of a page of a directory.
pub const MAX_PAGE: usize = 5_000;
/// A page ends early when its entries take about this much on the wire, so that it stays below the 4 MiB which clients
/// take by default.
const PAGE_BYTES: usize = 2 << 20;
/// Pages of more entries than this are read on a blocking thread.
const INLINE_PAGE: usize = 1_000;

/// A modification time as a writer gave it: seconds since 1970 (may be negative) and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileTime {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

impl FileTime {
    /// Checks the range: years 1 to 9999.
    ///
    /// # Errors
    /// `FIELD_INVALID`.
    pub fn new(seconds: i64, nanos: i32) -> Result<Self> {
        match u32::try_from(nanos) {
            Ok(nanos) if nanos < 1_000_000_000 && (-62_135_596_800..=253_402_300_799).contains(&seconds) => {
                Ok(Self { seconds, nanos })
            }
            _ => {
                Err(Error::new(Reason::FieldInvalid, "the modification time is out of range")
                    .with("field", "modify_time"))
            }
        }
    }

    /// From milliseconds since 1970.
    pub fn from_ms(ms: u64) -> Self {
        Self { seconds: (ms / 1_000) as i64, nanos: (ms % 1_000) as u32 * 1_000_000 }
    }

    /// As stored: milliseconds since 1970 (two's complement) and the nanoseconds of the last one.
    pub fn parts(self) -> (u64, u32) {
        let ms = self.seconds * 1_000 + i64::from(self.nanos / 1_000_000);
        (ms as u64, self.nanos % 1_000_000)
    }

    /// From what is stored.
    pub fn of(content: &record::Content) -> Self {
        let ms = content.modify_ms as i64;
        let millis = ms.rem_euclid(1_000) as u32;
        Self { seconds: ms.div_euclid(1_000), nanos: millis * 1_000_000 + content.modify_nanos.min(999_999) }
    }
}

/// A file or directory as a caller sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is, as the caller named it.
    pub path: EntryPath,
    /// The last segment; for a root its name.
    pub display_name: String,
    /// Stays with it when it moves.
    pub id: NodeId,
    /// Directory or file.
    pub directory: bool,
    /// 0 for directories.
    pub size_bytes: u64,
    /// None for directories.
    pub modify_time: Option<FileTime>,
    /// Unix permission bits.
    pub mode: u32,
    /// 0 for directories.
    pub version: u64,
    /// Changes with every change of the entry itself.
    pub etag: String,
    /// None for directories.
    pub manifest_digest: Option<[u8; 32]>,
    /// Who wrote the content.
    pub author: String,
    /// When the server took the content; for directories when it was made.
    pub update_ms: u64,
    /// While checked out.
    pub lock: Option<Lock>,
}

impl Entry {
    /// A stored entry as it is at this moment.
    ///
    /// # Errors
    /// `STORE_CORRUPT`.
    pub fn new(path: EntryPath, record: &record::Entry, now_ms: u64) -> Result<Self> {
        let content = record.content.as_ref();
        Ok(Self {
            path,
            display_name: record.name.clone(),
            id: tree::id_of(record)?,
            directory: record.directory,
            size_bytes: tree::size_of(record),
            modify_time: content.map(FileTime::of),
            mode: content.map_or(0, |c| c.mode),
            version: record.version,
            etag: etag(record),
            manifest_digest: content.and_then(|c| c.manifest_digest[..].try_into().ok()),
            author: content.map(|c| c.author.clone()).unwrap_or_default(),
            update_ms: content.map_or(record.create_ms, |c| c.update_ms),
            lock: locks::living(record, now_ms),
        })
    }

    /// A root as an entry.
    pub fn of_root(path: EntryPath, root: &Root) -> Self {
        Self {
            path,
            display_name: root.name.clone(),
            id: root.id.node(),
            directory: true,
            size_bytes: 0,
            modify_time: None,
            mode: 0,
            version: 0,
            etag: root.etag(),
            manifest_digest: None,
            author: String::new(),
            update_ms: root.create_ms,
            lock: None,
        }
    }

    /// About what it takes on the wire without its path.
    fn weight(&self) -> usize {
        let lock = self.lock.as_ref().map_or(0, |l| l.user.len() + l.note.len() + 24);
        160 + self.display_name.len() + self.author.len() + lock
    }
}

/// The etag of a stored entry: the commit that wrote it, and the version, because one commit may write a file twice.
pub fn etag(record: &record::Entry) -> String {
    format!("{:x}-{:x}", record.revision, record.version)
}

/// Refuses a stale etag; an empty one is no condition.
///
/// # Errors
/// `ETAG_STALE`.
pub fn check_etag(record: &record::Entry, wanted: &str, path: &EntryPath) -> Result<()> {
    let present = etag(record);
    if wanted.is_empty() || wanted == present {
        return Ok(());
    }
    Err(Error::new(Reason::EtagStale, format!("{path} has changed")).with("present_etag", present))
}

/// One entry.
///
/// # Errors
/// Those of rights and of finding.
pub fn get(app: &App, caller: &Caller, path: &EntryPath) -> Result<Entry> {
    let root = directories::open_now(app, caller, &path.root, Right::Read)?;
    if path.segments.is_empty() {
        return Ok(Entry::of_root(path.clone(), &root));
    }
    let node = tree::find(&app.store, &root, path)?;
    Entry::new(path.clone(), &node.record, app.clock.now_ms())
}

/// A page of a directory.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// In the order of their folded names.
    pub entries: Vec<Entry>,
    /// Empty at the end.
    pub next_page_token: String,
}

/// A page of a directory, in the order of folded names. The token names the last entry's key, so pages stay in order and
/// without doubles whatever is added or removed between them.
///
/// # Errors
/// `NOT_A_DIRECTORY`, `PAGE_TOKEN_INVALID`, those of rights and of finding.
pub async fn list(app: &App, caller: &Caller, path: &EntryPath, page_size: u32, page_token: &str) -> Result<Listing> {
    let root = directories::open_now(app, caller, &path.root, Right::Read)?;
    let directory = tree::directory(&app.store, &root, &path.segments)?.id;
    let size = match page_size {
        0 => DEFAULT_PAGE,
        n => (n as usize).min(MAX_PAGE),
    };
    let token = fingerprint("entries", &[&directory.to_string()]);
    let prefix = entries_of(directory);
    let from = match PageToken::read(page_token, token)? {
        Some(after) => {
            let mut from = [&prefix[..], after.position()].concat();
            from.push(0);
            from
        }
        None => prefix.clone(),
    };
    let (store, now_ms, path) = (app.store.clone(), app.clock.now_ms(), path.clone());
    let read = move || -> Result<Listing> {
        let records = store.range(&from, &prefix_end(&prefix), size + 1)?;
        let mut out = Listing { entries: Vec::with_capacity(records.len().min(size)), ..Listing::default() };
        let (mut weight, mut last) = (0, None);
        for (key, value) in records {
            if out.entries.len() == size || weight > PAGE_BYTES {
                let last: &[u8] = last.as_deref().unwrap_or_default();
                out.next_page_token = PageToken::at(token, &last[prefix.len()..]);
                break;
            }
            let entry = Entry::new(path.clone(), &records::decode(value)?, now_ms)?;
            weight += entry.weight();
            out.entries.push(entry);
            last = Some(key);
        }
        Ok(out)
    };
    if size <= INLINE_PAGE { read() } else { blocking(read).await }
}

/// Runs disk or long work on a blocking thread.
///
/// # Errors
/// Those of the work.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::internal("work on a blocking thread ended unexpectedly").caused_by(e)),
    }
}

/// A new directory record.
fn new_directory(name: &EntryName, edit: &Edit<'_, '_>) -> record::Entry {
    record::Entry {
        uid: bytes_of(NodeId::generate()),
        name: name.as_str().to_owned(),
        directory: true,
        revision: edit.txn.revision(),
        create_ms: edit.now_ms,
        ..Default::default()
    }
}

/// Makes directories one below the other: the last `missing` segments of `segments`. They must have been charged.
///
/// # Errors
/// Those of the store.
pub fn make_directories(
    edit: &mut Edit<'_, '_>,
    root: &Root,
    mut place: Place,
    segments: &[EntryName],
    missing: usize,
) -> Result<(Place, Option<record::Entry>)> {
    let mut last = None;
    for depth in segments.len() - missing..segments.len() {
        let name = &segments[depth];
        let record = new_directory(name, edit);
        let id = tree::id_of(&record)?;
        edit.put_entry(&tree::entry_key(place.id, name, root.case_sensitive), &record)?;
        edit.put_parent(id, place.id, name.as_str(), root.id)?;
        let path = EntryPath { root: root.root_name(), segments: segments[..=depth].to_vec() };
        edit.tell(ChangeKind::Created, root.id, path.relative(), &record);
        place.id = id;
        place.line.push(id);
        last = Some(record);
    }
    Ok((place, last))
}

/// Makes a directory; with `parents` also what is missing above it, and it may be there already.
///
/// # Errors
/// `ENTRY_EXISTS`, `NAME_CLASH`, `ROOT_FIXED`, those of rights and of finding.
pub async fn make_directory(
    app: &App,
    caller: &Caller,
    path: EntryPath,
    parents: bool,
    once: Once<Entry>,
) -> Result<Answer<Entry>> {
    edit::change_once(app, caller, once, move |edit| {
        let root = edit.root(&path.root, Right::Write)?;
        if path.segments.is_empty() {
            if parents {
                return Ok(Entry::of_root(path.clone(), &root));
            }
            return Err(Error::new(Reason::EntryExists, format!("{path} is there already")));
        }
        let (place, missing) = if parents {
            tree::directory_or_missing(edit, &root, &path.segments)?
        } else {
            let spot = tree::spot(edit, &root, &path)?;
            if let Some(present) = &spot.present {
                if path.name().is_some_and(|n| n.as_str() == present.name) {
                    return Err(Error::new(Reason::EntryExists, format!("{path} is there already")));
                }
                return Err(tree::clash(&path, &present.name));
            }
            (spot.place, 1)
        };
        if missing == 0 {
            let node = tree::find(edit, &root, &path)?;
            return Entry::new(path.clone(), &node.record, edit.now_ms);
        }
        edit.charge(&root, 0, missing as i64)?;
        let (_, made) = make_directories(edit, &root, place, &path.segments, missing)?;
        let made = made.ok_or_else(|| Error::internal("no directory was made"))?;
        Entry::new(path.clone(), &made, edit.now_ms)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_storage_to_the_nanosecond() {
        for (seconds, nanos) in [(0, 0), (1_700_000_000, 123_456_789), (-1, 999_999_999), (-62_135_596_800, 1)] {
            let time = FileTime::new(seconds, nanos).unwrap();
            let (modify_ms, modify_nanos) = time.parts();
            let content = record::Content { modify_ms, modify_nanos, ..Default::default() };
            assert_eq!(FileTime::of(&content), time);
        }
        for (seconds, nanos) in [(i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, 1_000_000_000)] {
            assert!(FileTime::new(seconds, nanos).unwrap_err().is(Reason::FieldInvalid));
        }
        assert_eq!(FileTime::from_ms(1_500), FileTime { seconds: 1, nanos: 500_000_000 });
    }
}
