//! How two versions of an entry stand to each other, and which of two concurrent ones wins.
//!
//! Each bump of a vector is an *event*: one device gave the path one content, or deleted it. The content of a version is that
//! of an event of the device that the entry names as its maker, and always of the newest one of that device in the vector:
//! so from maker and vector one can tell whether another version [has seen](has_seen) this content.
//!
//! A vector stands for one content: that of the events in it that no other event in it has seen, where a change outweighs a
//! deletion. Such vectors can be joined by anyone without a new event. Where two different contents have not seen each other,
//! there is no such rule: whoever has the one that loses makes a new event that has seen both.

use crate::catalogue::entry::{Entry, VERSION_MAX};
use crate::catalogue::{Relation, VersionVector};

/// Highest believable count: a device that changes a file each microsecond needs nine years for it. Beyond it, room to
/// count is left.
const COUNT_MAX: u64 = 1 << 48;

/// What decides between concurrent versions: the greater one wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Rank {
    /// A directory outweighs a file, since there may be others' files in it, and both outweigh a deletion.
    weight: u8,
    modify_time_ns: i64,
    modified_by: u64,
    digest: [u8; 32],
    mode: u32,
}

impl Rank {
    /// Of an entry.
    pub fn of(entry: &Entry) -> Self {
        let weight = if entry.deleted {
            0
        } else if entry.is_file() {
            1
        } else {
            2
        };
        Self {
            weight,
            modify_time_ns: entry.modify_time_ns,
            modified_by: entry.modified_by,
            digest: entry.digest,
            mode: entry.mode,
        }
    }
}

/// How `local` stands to `remote`; nothing is older than anything.
pub fn relation(local: Option<&Entry>, remote: &Entry) -> Relation {
    local.map_or(Relation::Older, |l| l.version.relation(&remote.version))
}

/// The same thing under the path: both gone, both directories, or files of the same content.
pub fn same_thing(a: &Entry, b: &Entry) -> bool {
    match (a.deleted, b.deleted) {
        (true, true) => true,
        (false, false) => a.kind == b.kind && a.digest == b.digest && a.size_bytes == b.size_bytes,
        _ => false,
    }
}

/// The same times and permissions.
pub fn same_look(a: &Entry, b: &Entry) -> bool {
    let times = a.deleted || !a.is_file() || a.modify_time_ns == b.modify_time_ns;
    times && (a.deleted || a.mode == b.mode)
}

/// Has who made `version` seen the content of the entry?
pub fn has_seen(version: &VersionVector, entry: &Entry) -> bool {
    let count = entry.version.count(entry.modified_by);
    count > 0 && version.count(entry.modified_by) >= count
}

/// Did both get their content by the same event?
pub fn same_event(a: &Entry, b: &Entry) -> bool {
    a.modified_by == b.modified_by && a.version.count(a.modified_by) == b.version.count(b.modified_by)
}

/// Can this vector have come about honestly, and is there room to count on?
pub fn is_plausible(version: &VersionVector) -> bool {
    !version.counts().is_empty() && version.counts().iter().all(|c| c.1 <= COUNT_MAX)
}

/// What has seen both; `None` if it would name more devices than a vector can, with one more to come.
pub fn join(a: &VersionVector, b: &VersionVector) -> Option<VersionVector> {
    let joined = a.merged(b);
    (joined.counts().len() < VERSION_MAX).then_some(joined)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::EntryKind;

    fn entry(deleted: bool, kind: EntryKind, mtime: i64, by: u64) -> Entry {
        Entry {
            path: "a".into(),
            kind,
            size_bytes: 0,
            modify_time_ns: mtime,
            mode: 0o644,
            chunks: [].into(),
            chunk_count: 0,
            digest: [0; 32],
            sequence: 0,
            deleted,
            version: VersionVector::new(vec![(by, 1)]).unwrap(),
            modified_by: by,
        }
    }

    #[test]
    fn changes_outweigh_deletions_and_the_later_one_wins() {
        let file = |mtime, by| Rank::of(&entry(false, EntryKind::File, mtime, by));
        let gone = Rank::of(&entry(true, EntryKind::File, 99, 9));
        let directory = Rank::of(&entry(false, EntryKind::Directory, 0, 0));
        assert!(file(5, 1) > file(4, 9) && file(5, 2) > file(5, 1));
        assert!(gone < file(0, 0) && directory > file(99, 9));
    }

    #[test]
    fn vectors_that_leave_no_room_are_refused() {
        let v = |counts: Vec<(u64, u64)>| VersionVector::new(counts).unwrap();
        assert!(is_plausible(&v(vec![(1, 5)])) && !is_plausible(&v(vec![(1, u64::MAX)])) && !is_plausible(&v(vec![])));
        let many = v((0..VERSION_MAX as u64 - 1).map(|d| (d, 1)).collect());
        assert!(join(&many, &v(vec![(3, 7)])).is_some());
        assert!(join(&many, &v(vec![(5_000, 1)])).is_none());
    }
}
