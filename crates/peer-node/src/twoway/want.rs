//! What a copy knows of the others and has not done yet, on disk.
//!
//! ```text
//! w/p SHARE DEVICE                      how far a device's index was read
//! w/w SHARE CLASS DEPTH PATH DEVICE     an entry of that device that is to be taken
//! w/m SHARE KIND PATH                   a path that is told to people: a conflict copy, a change that does not count
//! w/s SHARE                             under which rules and rights all of this was gathered
//! ```
//!
//! SHARE is 16 bytes; PATH the first 16 bytes of its BLAKE3; DEVICE 32 bytes, of an entry 16. CLASS and DEPTH put the keys
//! into the order in which the work is done: directories from the top, files, then deletions from the bottom.
//!
//! A page of a device's index and what is wanted of it are written in one transaction, so that nothing is missed or asked
//! for twice, whatever ends when. What is wanted goes when it has been done.

use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use common::store::{Store, Txn, prefix_end};
use prost::Message;
use proto::peer::v1 as wire;

use crate::catalogue::entry::Entry;
use crate::catalogue::short_id;
use crate::model::ShareId;

const SPACE_POSITION: &[u8] = b"w/p";
const SPACE_WANT: &[u8] = b"w/w";
const SPACE_MARK: &[u8] = b"w/m";
const SPACE_STATE: &[u8] = b"w/s";
/// Records removed in one transaction.
const STEP: usize = 1_000;

/// When an entry's turn is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Class {
    /// Directories, those at the top first.
    Directory = 0,
    /// Files.
    File = 1,
    /// What is deleted, the deepest first.
    Deletion = 2,
}

impl Class {
    const ALL: [Self; 3] = [Self::Directory, Self::File, Self::Deletion];

    /// Of an entry.
    pub fn of(entry: &Entry) -> Self {
        match (entry.deleted, entry.is_file()) {
            (true, _) => Self::Deletion,
            (_, true) => Self::File,
            (_, false) => Self::Directory,
        }
    }
}

/// How far a device's index was read.
#[derive(Clone, PartialEq, Message)]
pub struct Position {
    /// The index.
    #[prost(fixed64, tag = "1")]
    pub index_id: u64,
    /// Everything up to here.
    #[prost(uint64, tag = "2")]
    pub up_to: u64,
    /// The device's word counted then.
    #[prost(bool, tag = "3")]
    pub trusted: bool,
}

/// Under which rules and rights things were gathered.
#[derive(Clone, PartialEq, Message)]
pub struct Gathered {
    /// The copy only followed.
    #[prost(bool, tag = "1")]
    pub follows: bool,
    /// BLAKE3 of the ignore rules.
    #[prost(bytes = "vec", tag = "2")]
    pub rules: Vec<u8>,
    /// The copy's own index.
    #[prost(fixed64, tag = "3")]
    pub index_id: u64,
    /// How far it was looked through for conflict copies.
    #[prost(uint64, tag = "4")]
    pub followed: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WantRecord {
    #[prost(bytes = "vec", tag = "1")]
    device: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    entry: Option<wire::IndexEntry>,
}

#[derive(Clone, PartialEq, Message)]
struct MarkRecord {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(uint64, tag = "2")]
    time_ms: u64,
}

/// Why a path is told to people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// It is a conflict copy.
    Conflict = b'c' as isize,
    /// It was changed here, and that does not count.
    Own = b'o' as isize,
}

/// An entry of a device that is to be taken.
#[derive(Clone, Debug)]
pub struct Want {
    /// In the store.
    pub key: Vec<u8>,
    /// Whose index has it.
    pub device: DeviceId,
    /// As it is there.
    pub entry: Entry,
}

/// An entry that was read.
#[derive(Clone, Debug)]
pub struct Read {
    /// As it is there.
    pub entry: Entry,
    /// It is to be taken.
    pub wanted: bool,
    /// It is what is here: a change of this copy that has been taken there.
    pub known: bool,
}

/// What one copy knows. Clones are handles to the same. Everything blocks for the disk.
#[derive(Clone)]
pub struct Wants {
    store: Store,
    share: ShareId,
}

fn damaged() -> Error {
    Error::new(Reason::StoreCorrupt, "a record of a copy's state cannot be decoded")
}

fn path_part(path: &str) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&blake3::hash(path.as_bytes()).as_bytes()[..16]);
    out
}

impl Wants {
    /// Of a share.
    pub fn new(store: Store, share: ShareId) -> Self {
        Self { store, share }
    }

    fn key(&self, space: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let mut key = [space, self.share.as_bytes()].concat();
        parts.iter().for_each(|part| key.extend_from_slice(part));
        key
    }

    fn place(&self, class: Class, path: &str, device: &[u8]) -> Vec<u8> {
        // At most 128 segments.
        let depth = path.bytes().filter(|b| *b == b'/').count().min(254) as u8;
        let depth = if class == Class::Deletion { 255 - depth } else { depth };
        self.key(SPACE_WANT, &[&[class as u8, depth], &path_part(path), device])
    }

    /// How far a device's index was read.
    ///
    /// # Errors
    /// Those of the store.
    pub fn position(&self, device: &DeviceId) -> Result<Position> {
        let found = self.store.get(&self.key(SPACE_POSITION, &[&device.0]))?;
        found.map_or_else(|| Ok(Position::default()), |bytes| Position::decode(&bytes[..]).map_err(|_| damaged()))
    }

    /// Notes a page of a device's index.
    ///
    /// # Errors
    /// Those of the store.
    pub fn note_page(&self, device: &DeviceId, position: Position, page: Vec<Read>) -> Result<()> {
        let (this, device) = (self.clone(), *device);
        let work = move |txn: &mut Txn<'_>| {
            for read in &page {
                for class in Class::ALL {
                    let old = this.place(class, &read.entry.path, &device.0[..16]);
                    if txn.get(&old)?.is_some() {
                        txn.delete(&old)?;
                    }
                }
                if read.wanted {
                    let record = WantRecord { device: device.0.to_vec(), entry: Some(read.entry.to_wire()) };
                    let at = this.place(Class::of(&read.entry), &read.entry.path, &device.0[..16]);
                    txn.put(at, record.encode_to_vec())?;
                }
                if read.known {
                    txn.delete(this.mark_key(Mark::Own, &read.entry.path))?;
                }
            }
            txn.put(this.key(SPACE_POSITION, &[&device.0]), position.encode_to_vec())
        };
        self.store.transact_blocking(work).map(drop)
    }

    /// Wants in the order of the work, after a key.
    ///
    /// # Errors
    /// Those of the store.
    pub fn page(&self, after: &[u8], limit: usize) -> Result<Vec<Want>> {
        let space = self.key(SPACE_WANT, &[]);
        let from = if after.is_empty() { space.clone() } else { [after, &[0]].concat() };
        let found = self.store.range(&from, &prefix_end(&space), limit)?;
        found.iter().map(|(key, bytes)| Self::want(key, bytes)).collect()
    }

    fn want(key: &[u8], bytes: &[u8]) -> Result<Want> {
        let record = WantRecord::decode(bytes).map_err(|_| damaged())?;
        let device = DeviceId(record.device[..].try_into().map_err(|_| damaged())?);
        let entry = Entry::from_wire(record.entry.ok_or_else(damaged)?).map_err(|_| damaged())?;
        Ok(Want { key: key.to_vec(), device, entry })
    }

    /// Is the path's deletion wanted?
    ///
    /// # Errors
    /// Those of the store.
    pub fn is_going(&self, path: &str) -> Result<bool> {
        let from = self.place(Class::Deletion, path, &[]);
        Ok(!self.store.range(&from, &prefix_end(&from), 1)?.is_empty())
    }

    /// Files that are not here yet, as devices have them.
    ///
    /// # Errors
    /// Those of the store.
    pub fn count_files(&self) -> Result<u64> {
        let space = self.key(SPACE_WANT, &[&[Class::File as u8]]);
        let (mut from, to, mut count, mut last) = (space.clone(), prefix_end(&space), 0, Vec::new());
        loop {
            let page = self.store.range(&from, &to, STEP)?;
            for (key, _) in &page {
                // One path of several devices is one file.
                let path = &key[..key.len().saturating_sub(16)];
                count += u64::from(path != last);
                path.clone_into(&mut last);
            }
            match page.last() {
                Some((key, _)) if page.len() == STEP => from = [&key[..], &[0]].concat(),
                _ => return Ok(count),
            }
        }
    }

    /// Takes wants out that have been done and are still what they were.
    ///
    /// # Errors
    /// Those of the store.
    pub fn done(&self, wants: Vec<Want>) -> Result<()> {
        if wants.is_empty() {
            return Ok(());
        }
        let work = move |txn: &mut Txn<'_>| {
            for want in &wants {
                let same = match txn.get(&want.key)? {
                    Some(bytes) => Self::want(&want.key, &bytes)?.entry == want.entry,
                    None => false,
                };
                if same {
                    txn.delete(&want.key)?;
                }
            }
            Ok(())
        };
        self.store.transact_blocking(work).map(drop)
    }

    /// What was gathered, and under which rules and rights.
    ///
    /// # Errors
    /// Those of the store.
    pub fn gathered(&self) -> Result<Gathered> {
        let found = self.store.get(&self.key(SPACE_STATE, &[]))?;
        found.map_or_else(|| Ok(Gathered::default()), |bytes| Gathered::decode(&bytes[..]).map_err(|_| damaged()))
    }

    /// Begins anew under other rules or rights: all is read again, nothing is wanted until then.
    ///
    /// # Errors
    /// Those of the store.
    pub fn begin(&self, gathered: Gathered) -> Result<()> {
        self.erase(&[SPACE_POSITION, SPACE_WANT, SPACE_MARK])?;
        let at = self.key(SPACE_STATE, &[]);
        self.store.transact_blocking(move |txn| txn.put(at.clone(), gathered.encode_to_vec())).map(drop)
    }

    /// Forgets everything about the share.
    ///
    /// # Errors
    /// Those of the store.
    pub fn forget(&self) -> Result<()> {
        self.erase(&[SPACE_STATE, SPACE_POSITION, SPACE_WANT, SPACE_MARK])
    }

    fn erase(&self, spaces: &[&[u8]]) -> Result<()> {
        for space in spaces {
            let from = self.key(space, &[]);
            let to = prefix_end(&from);
            loop {
                let (from, to) = (from.clone(), to.clone());
                let removed = self.store.transact_blocking(move |txn| {
                    let found = txn.range(&from, &to, STEP)?;
                    found.iter().try_for_each(|(key, _)| txn.delete(key))?;
                    Ok(found.len())
                })?;
                if removed.value < STEP {
                    break;
                }
            }
        }
        Ok(())
    }

    fn mark_key(&self, mark: Mark, path: &str) -> Vec<u8> {
        self.key(SPACE_MARK, &[&[mark as u8], &path_part(path)])
    }

    /// Notes which paths have a mark and which have none any longer, and how far the index was looked through.
    ///
    /// # Errors
    /// Those of the store.
    pub fn note_marks(&self, marks: Vec<(Mark, String, bool)>, gathered: Gathered, now_ms: u64) -> Result<()> {
        let this = self.clone();
        let work = move |txn: &mut Txn<'_>| {
            for (mark, path, set) in &marks {
                let at = this.mark_key(*mark, path);
                match (txn.get(&at)?.is_some(), set) {
                    (false, true) => {
                        txn.put(at, MarkRecord { path: path.clone(), time_ms: now_ms }.encode_to_vec())?;
                    }
                    (true, false) => txn.delete(&at)?,
                    _ => {}
                }
            }
            txn.put(this.key(SPACE_STATE, &[]), gathered.encode_to_vec())
        };
        self.store.transact_blocking(work).map(drop)
    }

    /// Paths with a mark and since when, at most `limit`.
    ///
    /// # Errors
    /// Those of the store.
    pub fn marks(&self, mark: Mark, limit: usize) -> Result<Vec<(String, u64)>> {
        let from = self.key(SPACE_MARK, &[&[mark as u8]]);
        let found = self.store.range(&from, &prefix_end(&from), limit)?;
        let read = |bytes: &[u8]| MarkRecord::decode(bytes).map(|m| (m.path, m.time_ms)).map_err(|_| damaged());
        found.iter().map(|(_, bytes)| read(bytes)).collect()
    }
}

/// Is it this device that a version vector means?
pub fn is_device(short: u64, device: &DeviceId) -> bool {
    short_id(device) == short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{EntryKind, VersionVector};

    fn entry(path: &str, kind: EntryKind, deleted: bool, count: u64) -> Entry {
        Entry {
            path: path.into(),
            kind,
            size_bytes: 0,
            modify_time_ns: 0,
            mode: 0o644,
            chunks: [].into(),
            chunk_count: 0,
            digest: if kind == EntryKind::File && !deleted { common::model::manifest_digest(&[]) } else { [0; 32] },
            sequence: count,
            deleted,
            version: VersionVector::new(vec![(1, count)]).unwrap(),
            modified_by: 1,
        }
    }

    fn wants() -> Wants {
        Wants::new(Store::memory(), ShareId::generate())
    }

    fn read(entry: Entry) -> Read {
        Read { entry, wanted: true, known: false }
    }

    #[test]
    fn work_comes_in_an_order_in_which_it_can_be_done() {
        let wants = wants();
        let page = vec![
            read(entry("d/e", EntryKind::Directory, true, 1)),
            read(entry("d", EntryKind::Directory, true, 2)),
            read(entry("d/e/f", EntryKind::File, true, 3)),
            read(entry("a/b/c", EntryKind::File, false, 4)),
            read(entry("a/b", EntryKind::Directory, false, 5)),
            read(entry("a", EntryKind::Directory, false, 6)),
        ];
        wants.note_page(&DeviceId([1; 32]), Position { index_id: 7, up_to: 6, trusted: true }, page).unwrap();
        let order: Vec<String> = wants.page(&[], 100).unwrap().into_iter().map(|w| w.entry.path).collect();
        assert_eq!(order, ["a", "a/b", "a/b/c", "d/e/f", "d/e", "d"]);
        let first = wants.page(&[], 2).unwrap();
        assert_eq!(wants.page(&first[1].key, 1).unwrap()[0].entry.path, "a/b/c");
        assert!(wants.is_going("d/e").unwrap() && !wants.is_going("a").unwrap());
        assert_eq!(wants.count_files().unwrap(), 1);
        assert_eq!(wants.position(&DeviceId([1; 32])).unwrap().up_to, 6);
        assert_eq!(wants.position(&DeviceId([2; 32])).unwrap(), Position::default());
    }

    #[test]
    fn a_later_entry_of_a_device_takes_the_place_of_its_earlier_one() {
        let wants = wants();
        let (a, b) = (DeviceId([1; 32]), DeviceId([2; 32]));
        let note = |device: &DeviceId, entry: Entry, wanted| {
            let page = vec![Read { entry, wanted, known: false }];
            wants.note_page(device, Position::default(), page).unwrap();
        };
        note(&a, entry("x", EntryKind::File, false, 1), true);
        note(&b, entry("x", EntryKind::File, false, 1), true);
        assert_eq!((wants.page(&[], 9).unwrap().len(), wants.count_files().unwrap()), (2, 1));
        let old = wants.page(&[], 1).unwrap();
        note(&a, entry("x", EntryKind::File, true, 2), true);
        let now = wants.page(&[], 9).unwrap();
        assert_eq!((now.len(), now[1].entry.deleted, now[1].device), (2, true, a));
        note(&a, entry("x", EntryKind::File, false, 3), true);
        wants.done(old).unwrap();
        assert_eq!(wants.page(&[], 9).unwrap().len(), 2, "what was done is not what is wanted now");
        wants.done(wants.page(&[], 9).unwrap()).unwrap();
        note(&a, entry("x", EntryKind::File, false, 4), false);
        assert!(wants.page(&[], 9).unwrap().is_empty());
    }

    #[test]
    fn marks_keep_their_time_and_end_when_others_have_the_change() {
        let wants = wants();
        let marks = |set| vec![(Mark::Own, "x".to_owned(), set), (Mark::Conflict, "y".to_owned(), set)];
        wants.note_marks(marks(true), Gathered::default(), 5).unwrap();
        wants.note_marks(marks(true), Gathered { followed: 3, ..Gathered::default() }, 9).unwrap();
        assert_eq!(wants.marks(Mark::Own, 10).unwrap(), [("x".to_owned(), 5)]);
        assert_eq!(wants.gathered().unwrap().followed, 3);
        let known = Read { entry: entry("x", EntryKind::File, false, 1), wanted: false, known: true };
        wants.note_page(&DeviceId([1; 32]), Position::default(), vec![known]).unwrap();
        assert!(wants.marks(Mark::Own, 10).unwrap().is_empty());
        wants.begin(Gathered::default()).unwrap();
        assert!(wants.marks(Mark::Conflict, 10).unwrap().is_empty());
    }
}
