use super::*;
use crate::catalogue::entry::{Entry, EntryKind, FileStamp, Relation};
use common::error::Reason;
use common::model::{ChunkId, manifest_digest};
use common::store::{EngineKind, StoreSettings};

fn chunk(n: u32) -> ChunkRef {
    ChunkRef { id: ChunkId(*blake3::hash(&n.to_le_bytes()).as_bytes()), len: 1000 + n }
}

fn put(path: &str, chunks: &[ChunkRef], expected: u64) -> Change {
    let size = chunks.iter().map(|c| u64::from(c.len)).sum();
    let file = FileStamp { inode: 1, size, mtime_ns: 2, ctime_ns: 3 };
    Change::Put { path: path.into(), kind: EntryKind::File, file, mode: 0o644, chunks: chunks.into(), expected }
}

fn folder(path: &str) -> Change {
    let file = FileStamp::default();
    Change::Put { path: path.into(), kind: EntryKind::Directory, file, mode: 0o755, chunks: [].into(), expected: 0 }
}

fn open(store: &Store) -> IndexHandle {
    IndexHandle::open(store.clone(), ShareId(uuid::Uuid::from_u128(5)), 77).unwrap()
}

fn paths(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|e| e.path.as_str()).collect()
}

#[test]
fn each_change_has_the_next_sequence_and_is_counted() {
    let index = open(&Store::memory());
    index.commit(vec![put("a", &[chunk(1)], 0), folder("d"), put("d/b", &[chunk(2), chunk(3)], 0)]).unwrap();
    let head = index.head();
    assert_eq!((head.max_sequence, head.file_count, head.total_bytes, head.entry_count), (3, 2, 1001 + 1002 + 1003, 3));
    index.commit(vec![put("a", &[chunk(4)], 1)]).unwrap();
    assert_eq!(paths(&index.after(0, 10).unwrap()), ["d", "d/b", "a"]);
    assert_eq!(paths(&index.after(2, 10).unwrap()), ["d/b", "a"]);
    assert_eq!(paths(&index.after(2, 1).unwrap()), ["d/b"]);
    assert!(index.after(u64::MAX, 10).unwrap().is_empty());
    index.commit(vec![Change::Remove { path: "d/b".into(), expected: 3 }]).unwrap();
    let gone = index.after(4, 10).unwrap();
    assert!(gone[0].deleted && gone[0].chunks.is_empty() && gone[0].path == "d/b");
    assert_eq!((index.head().file_count, index.head().total_bytes, index.head().entry_count), (1, 1004, 3));
    assert!(index.present("d/b").unwrap_err().is(Reason::EntryUnknown));
}

#[test]
fn versions_count_this_devices_changes() {
    let index = open(&Store::memory());
    index.commit(vec![put("a", &[chunk(1)], 0)]).unwrap();
    let first = index.entry("a").unwrap().unwrap();
    assert_eq!((first.version.counts(), first.modified_by), (&[(77, 1)][..], 77));
    index.commit(vec![Change::Remove { path: "a".into(), expected: 1 }]).unwrap();
    index.commit(vec![put("a", &[chunk(2)], 2)]).unwrap();
    let third = index.entry("a").unwrap().unwrap();
    assert_eq!(third.version.relation(&first.version), Relation::Newer);
    assert_eq!(third.version.count(77), 3);
}

#[test]
fn a_change_of_an_entry_that_was_replaced_is_not_made() {
    let index = open(&Store::memory());
    index.commit(vec![put("a", &[chunk(1)], 0)]).unwrap();
    let outcome =
        index.commit(vec![put("a", &[chunk(2)], 0), Change::Remove { path: "b".into(), expected: 9 }]).unwrap();
    assert_eq!((outcome.outdated, outcome.made.len()), (vec![0, 1], 0));
    assert_eq!(index.entry("a").unwrap().unwrap().chunks[..], [chunk(1)]);
    // Only what is known of the file: no new sequence.
    let file = FileStamp { inode: 9, size: 1001, ..FileStamp::default() };
    index.commit(vec![Change::Seen { path: "a".into(), file, expected: 1 }]).unwrap();
    assert_eq!((index.stored("a").unwrap().unwrap().file, index.head().max_sequence), (Some(file), 1));
}

#[test]
fn long_contents_are_found_by_chunk_and_by_digest() {
    let store = Store::memory();
    let index = open(&store);
    let long: Vec<ChunkRef> = (0..1_234).map(chunk).collect();
    index.commit(vec![put("long", &long, 0), put("short", &long[..3], 0)]).unwrap();
    for index in [index.clone(), open(&store)] {
        let entry = index.entry("long").unwrap().unwrap();
        assert!(entry.chunks.is_empty() && entry.chunk_count == 1_234);
        assert_eq!(index.content(&entry).unwrap().unwrap().chunks[..], long[..]);
        for at in [0, 1, 199, 200, 1_233] {
            let (found, offset, len) = index.by_chunk(&long[at].id).unwrap().into_iter().next_back().unwrap();
            let expected: u64 = long[..at].iter().map(|c| u64::from(c.len)).sum();
            assert_eq!((found.entry.path.as_str(), offset, len), ("long", expected, long[at].len));
        }
        assert_eq!(index.by_chunk(&long[2].id).unwrap().len(), 2, "the chunk is in both");
        assert_eq!(index.by_digest(&manifest_digest(&long)).unwrap().unwrap().0.path, "long");
        assert!(index.by_digest(&[0; 32]).unwrap().is_none());
    }
    // Replaced: its pages go, and nothing leads to them.
    let sequence = index.entry("long").unwrap().unwrap().sequence;
    index.commit(vec![put("long", &[chunk(9_999)], sequence)]).unwrap();
    assert!(index.by_chunk(&long[1_000].id).unwrap().is_empty());
    assert!(store.range(SPACE_MANIFEST, &prefix_end(SPACE_MANIFEST), 10).unwrap().is_empty());
}

#[test]
fn an_index_goes_on_where_it_was_and_a_restored_one_has_a_new_id() {
    let dir = tempfile::tempdir().unwrap();
    let settings = |name: &str| StoreSettings { directory: dir.path().join(name), ..StoreSettings::default() };
    let store = Store::open(&settings("a")).unwrap();
    let index = open(&store);
    index.commit(vec![put("a", &[chunk(1)], 0), folder("d")]).unwrap();
    let (before, entries) = (index.head(), index.after(0, 10).unwrap());
    let mut export = Vec::new();
    store.export(&mut export).unwrap();
    drop((index, store));
    let again = open(&Store::open(&settings("a")).unwrap());
    assert_eq!((again.head(), again.after(0, 10).unwrap()), (before, entries));
    // A store from a backup gives out sequences again that readers have seen.
    let restored = StoreSettings { engine: EngineKind::Memory, ..StoreSettings::default() };
    let restored = Store::import(&restored, &mut &export[..]).unwrap();
    let index = open(&restored);
    assert_ne!(index.head().index_id, before.index_id);
    let id = index.head().index_id;
    index.commit(vec![put("b", &[chunk(1)], 0)]).unwrap();
    assert_eq!(open(&restored).head().index_id, id);
}

#[test]
fn walking_is_depth_first_and_goes_on_anywhere() {
    let index = open(&Store::memory());
    let all = ["a", "d", "d/e", "d/e/f", "d/e-", "d/g", "h", "i", "i/x"];
    let changes = all.iter().map(|p| if p.ends_with(['d', 'e', 'i']) { folder(p) } else { put(p, &[chunk(1)], 0) });
    index.commit(changes.collect()).unwrap();
    let walk =
        |top: &str, after: &str| -> Vec<String> { index.walk(top, after).map(|s| s.unwrap().entry.path).collect() };
    let whole = walk("", "");
    assert_eq!(whole, ["a", "d", "d/e", "d/e/f", "d/e-", "d/g", "h", "i", "i/x"]);
    for (at, after) in whole.iter().enumerate() {
        assert_eq!(walk("", after), whole[at + 1..], "after {after}");
    }
    assert_eq!(walk("d", ""), ["d/e", "d/e/f", "d/e-", "d/g"]);
    assert_eq!(walk("d", "d/e/f"), ["d/e-", "d/g"]);
    assert_eq!(walk("", "d/zzz"), ["h", "i", "i/x"], "also after something that is not there any more");
}

#[test]
fn another_devices_version_is_noted_only_by_who_holds_the_path() {
    let index = open(&Store::memory());
    index.commit(vec![put("a", &[chunk(1)], 0)]).unwrap();
    let mine = index.entry("a").unwrap().unwrap();
    let theirs = Entry {
        size_bytes: 1002,
        chunks: [chunk(2)].into(),
        digest: manifest_digest(&[chunk(2)]),
        version: mine.version.bumped(88),
        modified_by: 88,
        sequence: 4_000,
        ..mine.clone()
    };
    let file = Some(FileStamp { size: 1002, ..FileStamp::default() });
    let hold = index.hold("a").unwrap();
    assert!(index.hold("a").is_none() && index.is_held("a") && index.is_held("a/below") && !index.is_held("ab"));
    let stale = index.apply(&hold, theirs.clone(), theirs.chunks.clone(), file, 99).unwrap_err();
    assert!(stale.is(Reason::VersionStale));
    let wrong = index.apply(&hold, theirs.clone(), [chunk(3)].into(), file, 1).unwrap_err();
    assert!(wrong.is(Reason::FieldInvalid));
    assert_eq!(index.apply(&hold, theirs.clone(), theirs.chunks.clone(), file, 1).unwrap(), 2);
    let now = index.entry("a").unwrap().unwrap();
    assert_eq!((now.version, now.modified_by, now.sequence), (theirs.version.clone(), 88, 2));
    let gone = Entry { deleted: true, chunks: [].into(), chunk_count: 0, size_bytes: 0, digest: [0; 32], ..theirs };
    assert_eq!(index.apply(&hold, gone, [].into(), None, 2).unwrap(), 3);
    drop(hold);
    assert!(!index.is_held("a"));
}

#[test]
fn a_closed_index_takes_nothing_and_an_erased_one_leaves_nothing() {
    let store = Store::memory();
    let index = open(&store);
    let long: Vec<ChunkRef> = (0..700).map(chunk).collect();
    index
        .commit((0..1_500).map(|i| put(&format!("f{i}"), &[chunk(i)], 0)).chain([put("long", &long, 0)]).collect())
        .unwrap();
    index.close();
    assert!(index.commit(vec![folder("d")]).unwrap_err().is(Reason::Cancelled));
    IndexHandle::erase(&store, index.share()).unwrap();
    assert!(store.range(b"c/", b"c0", 10).unwrap().is_empty());
}
