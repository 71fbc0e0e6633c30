//! The chunk store: what goes in comes out, damage is found, limits hold.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use atrium_common::chunk::disk::Disk;
use atrium_common::chunk::format::{
    RECORD_ALIGN, RECORD_HEADER, RecordHeader, RecordKind, SEGMENT_HEADER, SegmentHeader,
};
use atrium_common::chunk::{ChunkStore, ChunkStoreSettings, LEASE_IDLE, Lease, backup};
use atrium_common::error::Reason;
use atrium_common::model::{ChunkId, ChunkRef, UploadId};
use bytes::Bytes;
use tempfile::TempDir;

use crate::chunk_cut::noise;
use testkit::disk::SimDisk;

/// Small segments, so that little content makes many.
pub fn settings() -> ChunkStoreSettings {
    let mut settings = ChunkStoreSettings::new("unused");
    (settings.segment_bytes, settings.lanes, settings.min_free_bytes) = (16 << 10, 2, 0);
    settings
}

pub fn open(disk: &SimDisk) -> ChunkStore {
    ChunkStore::open_on(Arc::new(disk.clone()), &settings()).unwrap()
}

pub fn lease(store: &ChunkStore) -> Lease {
    store.lease(UploadId::generate())
}

/// The n-th content: 1 to 2,000 bytes.
pub fn content(n: u64) -> Bytes {
    noise(n, 1 + (n as usize * 677) % 2000).into()
}

pub fn id(n: u64) -> ChunkId {
    ChunkId::of(&content(n))
}

pub fn reference(n: u64) -> ChunkRef {
    ChunkRef { id: id(n), len: content(n).len() as u32 }
}

pub fn put(store: &ChunkStore, n: u64) -> bool {
    store.append(id(n), &[content(n)], &lease(store)).unwrap()
}

pub fn fill(store: &ChunkStore, chunks: impl IntoIterator<Item = u64>) {
    for n in chunks {
        put(store, n);
    }
}

pub fn get(store: &ChunkStore, n: u64) -> Option<Bytes> {
    match store.read(&id(n), 0..content(n).len() as u32, true) {
        Ok(bytes) => Some(bytes),
        Err(e) if e.is(Reason::ChunkDamaged) => None,
        Err(e) => panic!("{e:?}"),
    }
}

pub fn assert_there(store: &ChunkStore, chunks: impl IntoIterator<Item = u64>) {
    for n in chunks {
        assert_eq!(get(store, n).as_ref(), Some(&content(n)), "chunk {n}");
    }
}

#[test]
fn what_goes_in_comes_out_also_after_reopening_and_by_real_files() {
    let directory = TempDir::new().unwrap();
    let mut settings = settings();
    settings.directory = directory.path().join("chunks");
    for round in 0..3 {
        let store = ChunkStore::open(&settings).unwrap();
        for n in 0..100 {
            assert_eq!(put(&store, n), round == 0, "chunk {n}");
        }
        assert_there(&store, 0..100);
        assert_eq!(store.length(&id(5)), Some(content(5).len() as u32));
        assert_eq!(store.length(&id(500)), None);
        let stats = store.stats();
        assert_eq!(stats.chunk_count, 100);
        assert!(stats.segment_count > 5, "{stats:?}");
        store.sync_blocking().unwrap();
        let second = ChunkStore::open(&settings).err().unwrap();
        assert!(second.is(Reason::StoreBusy), "{second:?}");
    }
}

#[test]
fn large_chunks_go_into_small_segments_and_ranges_come_out() {
    let (disk, data) = (SimDisk::default(), Bytes::from(noise(1, 4 << 20)));
    let (store, id) = (open(&disk), ChunkId::of(&data));
    let rope: Vec<Bytes> = (0..64).map(|n| data.slice(n * 65_536..(n + 1) * 65_536)).collect();
    assert!(store.append(id, &rope, &lease(&store)).unwrap());
    for verify in [false, true] {
        assert_eq!(store.read(&id, 0..4 << 20, verify).unwrap(), data);
        assert_eq!(store.read(&id, 1000..70_000, verify).unwrap(), data[1000..70_000]);
        assert_eq!(store.read(&id, 7..7, verify).unwrap(), Bytes::new());
        let error = store.read(&id, 0..(4 << 20) + 1, verify).unwrap_err();
        assert!(error.is(Reason::RangeInvalid));
        #[expect(clippy::reversed_empty_ranges, reason = "that is the hostile input")]
        let reversed = store.read(&id, 9..3, verify).unwrap_err();
        assert!(reversed.is(Reason::RangeInvalid));
    }
}

#[test]
fn hostile_appends_are_refused_and_store_nothing() {
    let disk = SimDisk::default();
    let (store, good) = (open(&disk), content(1));
    let held = lease(&store);
    let wrong = store.append(id(2), std::slice::from_ref(&good), &held).unwrap_err();
    assert!(wrong.is(Reason::ChunkDigestMismatch));
    assert!(put(&store, 2));
    let known_but_not_had = store.append(id(2), std::slice::from_ref(&good), &held).unwrap_err();
    assert!(known_but_not_had.is(Reason::ChunkDigestMismatch), "a digest alone must not tell what is there");
    let empty = store.append(ChunkId::of(b""), &[], &held).unwrap_err();
    assert!(empty.is(Reason::FieldInvalid));
    let long = Bytes::from(vec![0; (4 << 20) + 1]);
    assert!(store.append(ChunkId::of(&long), &[long], &held).unwrap_err().is(Reason::FieldInvalid));
    let batch = vec![(id(3), vec![content(3)]), (id(4), vec![good])];
    let error = store.append_many(&batch, &held).unwrap_err();
    assert_eq!((error.is(Reason::ChunkDigestMismatch), error.detail("index")), (true, Some("1")));
    assert_eq!(store.stats().chunk_count, 1);
}

#[test]
fn a_batch_is_stored_once_and_in_few_writes() {
    let disk = SimDisk::default();
    let mut wide = settings();
    wide.segment_bytes = 64 << 20;
    let store = ChunkStore::open_on(Arc::new(disk.clone()), &wide).unwrap();
    put(&store, 7);
    let before = disk.steps();
    let mut batch: Vec<_> = (0..1000).map(|n| (id(n), vec![content(n)])).collect();
    batch.push(batch[3].clone());
    let done = store.append_many(&batch, &lease(&store)).unwrap();
    assert_eq!((done.new, done.known), (999, 2));
    assert!(disk.steps() - before <= 2, "{} steps", disk.steps() - before);
    assert_there(&store, 0..1000);
    assert_eq!(store.append_many(&[], &lease(&store)).unwrap(), Default::default());
}

#[tokio::test]
async fn a_sync_covers_what_was_appended_and_costs_nothing_when_clean() {
    let disk = SimDisk::default();
    let store = open(&disk);
    store.sync().await.unwrap();
    for n in 0..40 {
        put(&store, n);
        if n % 4 == 3 {
            store.sync().await.unwrap();
            let survivor = open(&disk.after_power_cut(n));
            assert_there(&survivor, 0..=n);
        }
    }
    let steps = disk.steps();
    store.sync().await.unwrap();
    assert_eq!(disk.steps(), steps);
}

#[test]
fn many_threads_append_read_and_sync() {
    let disk = SimDisk::default();
    let store = open(&disk);
    std::thread::scope(|scope| {
        for t in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..60 {
                    let n = (n * 7 + t * 13) % 150;
                    put(store, n);
                    assert_there(store, [n]);
                    if n % 5 == 0 {
                        store.sync_blocking().unwrap();
                    }
                }
            });
        }
    });
    let count = store.stats().chunk_count;
    store.sync_blocking().unwrap();
    drop(store);
    let again = open(&disk.after_power_cut(3));
    assert_eq!(again.stats().chunk_count, count);
}

#[test]
fn a_failed_sync_ends_all_writing_and_reads_go_on() {
    let disk = SimDisk::default();
    let store = open(&disk);
    put(&store, 1);
    store.sync_blocking().unwrap();
    put(&store, 2);
    disk.fail_syncs(true);
    assert!(store.sync_blocking().unwrap_err().is(Reason::StoreFailed));
    disk.fail_syncs(false);
    assert!(store.sync_blocking().unwrap_err().is(Reason::StoreFailed), "never tried again");
    let refused = store.append(id(3), &[content(3)], &lease(&store)).unwrap_err();
    assert!(refused.is(Reason::StoreFailed));
    assert!(store.reclaim_blocking(|_| Ok(())).is_err());
    assert_there(&store, [1, 2]);
    drop(store);
    assert_there(&open(&disk.after_power_cut(1)), [1]);
}

#[test]
fn a_full_disk_is_a_clean_error_and_leaves_whole_records() {
    for cut_fails in [false, true] {
        let disk = SimDisk::default();
        let store = open(&disk);
        for n in 0..10 {
            put(&store, n);
        }
        let used: usize = disk.files().values().map(Vec::len).sum();
        disk.fail_truncate(cut_fails);
        for extra in [100, 2000, 6000] {
            disk.set_capacity(Some((used + extra) as u64));
            let mut errors = 0;
            for n in 10..30 {
                // Without asking for free space first, as if others had taken it in between.
                match store.append(id(n), &[content(n)], &lease(&store)) {
                    Ok(new) => assert!(new || store.length(&id(n)).is_some()),
                    Err(error) => {
                        errors += 1;
                        assert!(error.is(Reason::DiskFull), "{error:?}");
                        assert_eq!(store.length(&id(n)), None);
                    }
                }
            }
            assert!(errors > 0);
        }
        disk.set_capacity(None);
        for n in 0..30 {
            put(&store, n);
        }
        store.sync_blocking().unwrap();
        assert_there(&store, 0..30);
        drop(store);
        disk.fail_truncate(false);
        assert_there(&open(&disk), 0..30);
    }
}

#[test]
fn the_reserve_is_kept_free() {
    let disk = SimDisk::default();
    let mut settings = settings();
    settings.min_free_bytes = 50_000;
    disk.set_capacity(Some(60_000));
    let store = ChunkStore::open_on(Arc::new(disk.clone()), &settings).unwrap();
    let refused = (0..100).find_map(|n| store.append(id(n), &[content(n)], &lease(&store)).err()).unwrap();
    assert!(refused.is(Reason::DiskFull), "{refused:?}");
    assert!(disk.free_bytes().unwrap() >= 50_000 - 4096);
}

#[test]
fn files_kept_open_are_bounded() {
    let disk = SimDisk::default();
    let mut settings = settings();
    settings.handles_max = 8;
    let store = ChunkStore::open_on(Arc::new(disk.clone()), &settings).unwrap();
    fill(&store, 0..300);
    store.sync_blocking().unwrap();
    assert!(store.stats().segment_count > 15);
    assert_there(&store, (0..300).chain(0..300));
    // The handles, the lanes, those that wait to be sealed, and what is being read or replaced at the moment.
    assert!(disk.open_files_max() <= 8 + 2 + 8 + 4, "{}", disk.open_files_max());
}

/// The file and place of a content in the disk's files.
fn find(disk: &SimDisk, n: u64) -> (String, usize) {
    let needle = content(n);
    let hit = |(name, bytes): (String, Vec<u8>)| {
        bytes.windows(needle.len()).position(|w| w == needle).map(|at| (name.clone(), at))
    };
    disk.files().into_iter().filter(|(n, _)| n.ends_with(".seg")).find_map(hit).unwrap()
}

#[test]
fn flipped_bits_are_found_remembered_and_healed_by_storing_again() {
    let disk = SimDisk::default();
    let store = open(&disk);
    fill(&store, 0..60);
    store.sync_blocking().unwrap();
    let bad = [3, 20, 41];
    for n in bad {
        let (name, at) = find(&disk, n);
        disk.flip(&name, at + content(n).len() / 2);
    }
    assert!(get(&store, 3).is_none(), "a verifying read finds it");
    let mut steps = 0;
    let report = store
        .scrub(0, |_| {
            steps += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(report.complete && steps >= 1);
    assert_eq!((report.progress.chunk_count, report.progress.damaged_count), (60, 3));
    let mut damaged = report.damaged.clone();
    damaged.sort();
    let mut expected: Vec<_> = bad.iter().map(|n| id(*n)).collect();
    expected.sort();
    assert_eq!(damaged, expected);

    let after = |store: &ChunkStore| {
        let refs: Vec<_> = (0..60).map(reference).collect();
        lease(store).missing(&refs)
    };
    assert_eq!(after(&store), [3, 20, 41], "counts as missing, so that it is sent again");
    assert_eq!(store.commit_guard().require(&[reference(1), reference(20)]), Err(vec![1]));
    drop(store);

    let store = open(&disk);
    assert_eq!(after(&store), [3, 20, 41], "also after a restart");
    assert_eq!(store.stats().damaged_count, 3);
    for n in bad {
        assert!(put(&store, n), "chunk {n} is stored again");
    }
    assert_eq!((after(&store), store.damaged_chunks()), (vec![], vec![]));
    store.sync_blocking().unwrap();
    drop(store);
    let store = open(&disk);
    assert_there(&store, 0..60);
    assert_eq!(store.scrub(0, |_| ControlFlow::Continue(())).unwrap().damaged, []);
}

#[test]
fn a_scrub_can_be_ended() {
    let disk = SimDisk::default();
    let mut wide = settings();
    wide.segment_bytes = 64 << 20;
    let store = ChunkStore::open_on(Arc::new(disk), &wide).unwrap();
    for n in 0..3 {
        let data = Bytes::from(noise(n, 4 << 20));
        store.append(ChunkId::of(&data), &[data], &lease(&store)).unwrap();
    }
    // One byte a second: it would take months.
    let mut asked = 0;
    let report = store
        .scrub(1, |_| {
            asked += 1;
            if asked == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!((report.complete, report.progress.chunk_count), (false, 1));
}

#[test]
fn index_files_that_are_gone_or_bad_are_made_again() {
    let disk = SimDisk::default();
    let store = open(&disk);
    fill(&store, 0..100);
    store.sync_blocking().unwrap();
    drop(store);
    let indexes: Vec<String> = disk.files().into_keys().filter(|n| n.ends_with(".idx")).collect();
    assert!(indexes.len() > 3);
    disk.take(&indexes[0]);
    disk.flip(&indexes[1], 70);
    disk.put(&indexes[2], b"short");
    let store = open(&disk);
    assert_there(&store, 0..100);
    drop(store);
    let again: Vec<String> = disk.files().into_keys().filter(|n| n.ends_with(".idx")).collect();
    assert!(indexes.iter().all(|i| again.contains(i)), "{again:?}");
    assert_there(&open(&disk), 0..100);
}

#[test]
fn damaged_headers_cost_no_chunk_but_their_own() {
    let disk = SimDisk::default();
    let store = open(&disk);
    fill(&store, 0..100);
    store.sync_blocking().unwrap();
    drop(store);
    // A record header in a segment without index file: only this record is lost, also though recovery reads on by search.
    let (name, at) = find(&disk, 10);
    disk.flip(&name, at - 20);
    disk.take(&name.replace(".seg", ".idx"));
    // A segment header beside an index file: nothing is lost.
    let (other, _) = find(&disk, 50);
    assert_ne!(name, other);
    disk.flip(&other, 20);
    let store = open(&disk);
    assert_there(&store, (0..100).filter(|n| *n != 10));
    assert_eq!(get(&store, 10), None);
    drop(store);
    assert_there(&open(&disk), (0..100).filter(|n| *n != 10));

    // A segment header without index file: nothing can be read, but nothing is deleted.
    let (name, _) = find(&disk, 30);
    disk.flip(&name, 20);
    disk.take(&name.replace(".seg", ".idx"));
    drop(open(&disk));
    assert!(disk.files().contains_key(&format!("{name}.bad")));
    // A short segment: what is cut off is damaged, the rest is whole.
    let (name, at) = find(&disk, 55);
    let mut bytes = disk.files()[&name].clone();
    bytes.truncate(at + 1);
    disk.put(&name, &bytes);
    let store = open(&disk);
    assert_eq!(store.length(&id(55)), None);
    assert!(put(&store, 55));
    assert_there(&store, [55]);
}

#[test]
fn leftovers_are_cleared_away() {
    let disk = SimDisk::default();
    drop(open(&disk));
    disk.put("00000077.idx", b"orphan");
    disk.put("00000005.idx.tmp", b"half");
    disk.put("00000009.seg", b"ATRSEG1\0 half a header");
    disk.put("damaged", b"nonsense");
    disk.put("notes.txt", b"not ours");
    let store = open(&disk);
    put(&store, 1);
    let names: Vec<String> = disk.files().into_keys().collect();
    assert_eq!(names, ["00000078.seg", "damaged", "notes.txt"], "numbers of lost segments are not given again");
}

#[test]
fn content_that_imitates_records_is_content() {
    let disk = SimDisk::default();
    let store = open(&disk);
    fill(&store, 0..8);
    store.sync_blocking().unwrap();
    // A whole segment of this very store as content, aligned like records, and the same with a torn record before it.
    let segment = Bytes::from(disk.files().into_iter().find(|(n, _)| n.ends_with(".seg")).unwrap().1);
    let spoof = ChunkId::of(&segment);
    store.append(spoof, std::slice::from_ref(&segment), &lease(&store)).unwrap();
    put(&store, 100);
    store.sync_blocking().unwrap();
    drop(store);
    let place = disk.files().into_iter().find_map(|(name, bytes)| {
        let at = bytes.windows(32).enumerate().skip(64).find(|(_, w)| *w == spoof.as_bytes())?.0;
        name.ends_with(".seg").then_some((name, at))
    });
    let (name, at) = place.unwrap();
    disk.flip(&name, at);
    disk.take(&name.replace(".seg", ".idx"));
    let before = 8 + 1;
    let store = open(&disk);
    assert_eq!(
        store.stats().chunk_count,
        before,
        "the spoilt record is gone and nothing in its content took its place"
    );
    assert_there(&store, (0..8).chain([100]));
}

#[test]
fn a_backup_opens_verifies_ingests_and_copies_only_what_is_new() {
    let (home, place) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut at_home = settings();
    at_home.directory = home.path().to_owned();
    let target = place.path().join("backup");
    let store = ChunkStore::open(&at_home).unwrap();
    fill(&store, 0..80);
    let pin = store.pin();
    let first = store.backup_to(&pin, &target, |_, _| ()).unwrap();
    drop(pin);
    assert_eq!(first.copied_bytes, first.total_bytes);
    fill(&store, 80..90);
    let pin = store.pin();
    let mut told = 0;
    let second = store.backup_to(&pin, &target, |copied, total| told = copied * 100 / total).unwrap();
    assert!(second.copied_bytes < second.total_bytes / 3 && told > 0, "{second:?}");
    backup::prune_backup(&target, &second).unwrap();
    drop(pin);

    let verified = backup::verify_backup(&target, |_| ()).unwrap();
    assert_eq!((verified.chunk_count, verified.damaged.len()), (90, 0));
    let fresh = open(&SimDisk::default());
    put(&fresh, 5);
    let taken = fresh.ingest(&target, &lease(&fresh), |_| ()).unwrap();
    assert_eq!((taken.appended.new, taken.appended.known), (89, 1));
    assert_there(&fresh, 0..90);

    // Removed chunks leave the backup with the next one, and a flipped bit in it is seen.
    drop(store);
    let store = ChunkStore::open(&at_home).unwrap();
    for _ in 0..2 {
        store
            .reclaim_blocking(|mark| {
                (40..90).for_each(|n| mark(id(n)));
                Ok(())
            })
            .unwrap();
    }
    assert_eq!(store.stats().chunk_count, 50);
    let pin = store.pin();
    let third = store.backup_to(&pin, &target, |_, _| ()).unwrap();
    backup::prune_backup(&target, &third).unwrap();
    let needle = content(45);
    let mut flipped = 0;
    for name in &third.segments {
        let path = target.join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(needle.len()).position(|w| w == needle) {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            flipped += 1;
        }
    }
    assert!(flipped > 0);
    let verified = backup::verify_backup(&target, |_| ()).unwrap();
    assert_eq!((verified.chunk_count, verified.damaged.len()), (50, 1));
    let mut opened = settings();
    opened.directory = target;
    let restored = ChunkStore::open(&opened).unwrap();
    let whole = (40..90).filter(|n| get(&restored, *n).is_some()).count();
    assert_eq!(whole, 49);
}

#[test]
fn settings_that_make_no_sense_are_refused_together() {
    let mut wrong = ChunkStoreSettings::new("unused");
    (wrong.segment_bytes, wrong.lanes, wrong.compact_dead_percent) = (1, 0, 101);
    wrong.patience = Duration::ZERO;
    let error = ChunkStore::open(&wrong).err().unwrap();
    assert!(error.is(Reason::SettingsInvalid));
    assert_eq!(error.message().matches(';').count(), 2);
    assert!(LEASE_IDLE >= Duration::from_secs(3600));
}

/// Found by the fuzz target "recovery".
#[test]
fn what_an_opening_found_damaged_is_known_to_the_next_one() {
    let header = SegmentHeader { id: 1, key: [5; 32], first_sequence: 1 };
    let mut segment = header.encode().to_vec();
    // Two records of one chunk; the later number is on the one that is damaged, and the other says that it had been on disk.
    for (sequence, synced) in [(9, 0), (3, 4_096)] {
        let (kind, offset, len) = (RecordKind::Chunk, segment.len() as u32, content(1).len() as u32);
        let record = RecordHeader { kind, id: id(1), len, sequence, names: 0, synced, offset };
        segment.extend_from_slice(&record.encode(&header.key));
        segment.extend_from_slice(&content(1));
        segment.resize(segment.len().next_multiple_of(RECORD_ALIGN), 0);
    }
    segment[SEGMENT_HEADER + RECORD_HEADER] ^= 1;
    let disk = SimDisk::default();
    disk.put("00000001.seg", &segment);
    for opening in 0..3 {
        let store = open(&disk);
        assert_eq!(get(&store, 1), Some(content(1)), "opening {opening}");
    }
}
