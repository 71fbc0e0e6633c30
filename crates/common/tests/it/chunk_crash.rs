//! Crashes: at every byte of the last records, at every step that changes the disk, and at random.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use atrium_common::chunk::{ChunkStore, scan_segment_bytes};
use atrium_common::error::Result;
use proptest::prelude::*;

use crate::chunk_store::{assert_there, content, fill, get, id, lease, open, put, reference, settings};
use crate::powercut;
use testkit::disk::SimDisk;

/// A store with metadata beside it that is always durable at once: the hardest case for the chunks.
struct Office {
    disk: SimDisk,
    store: Option<ChunkStore>,
    needed: BTreeSet<u64>,
}

impl Office {
    fn new(disk: SimDisk) -> Self {
        Self { disk, store: None, needed: BTreeSet::new() }
    }

    fn store(&mut self) -> Result<ChunkStore> {
        if self.store.is_none() {
            self.store = Some(ChunkStore::open_on(Arc::new(self.disk.clone()), &settings())?);
        }
        Ok(self.store.clone().unwrap())
    }

    fn append(&mut self, chunks: &[u64]) -> Result<()> {
        let store = self.store()?;
        let held = lease(&store);
        let batch: Vec<_> = chunks.iter().map(|n| (id(*n), vec![content(*n)])).collect();
        let result = store.append_many(&batch, &held);
        held.end();
        result.map(drop)
    }

    /// True if the chunks were there.
    fn commit(&mut self, chunks: &[u64]) -> Result<bool> {
        let store = self.store()?;
        let guard = store.commit_guard();
        let refs: Vec<_> = chunks.iter().map(|n| reference(*n)).collect();
        if guard.require(&refs).is_err() {
            return Ok(false);
        }
        store.sync_blocking()?;
        self.needed.extend(chunks);
        Ok(true)
    }

    fn pass(&mut self) -> Result<()> {
        let needed = self.needed.clone();
        let report = self.store()?.reclaim_blocking(|mark| {
            needed.iter().for_each(|n| mark(id(*n)));
            Ok(())
        })?;
        assert_eq!(report.missing, 0, "{report:?}");
        Ok(())
    }

    /// Everything needed is there, and two passes leave nothing else.
    fn check(&mut self) {
        let store = self.store().unwrap();
        assert_there(&store, self.needed.iter().copied());
        assert!(store.damaged_chunks().is_empty());
        drop(store);
        self.pass().unwrap();
        self.pass().unwrap();
        let store = self.store().unwrap();
        assert_there(&store, self.needed.iter().copied());
        assert_eq!(store.stats().chunk_count, self.needed.len() as u64);
    }
}

#[test]
fn a_torn_tail_is_cut_at_every_byte() {
    let disk = SimDisk::default();
    let mut settings = settings();
    settings.lanes = 1;
    let store = ChunkStore::open_on(Arc::new(disk.clone()), &settings).unwrap();
    let mut ends = Vec::new();
    for n in 0..4 {
        put(&store, n);
        ends.push(disk.files()["00000001.seg"].len());
    }
    store.sync_blocking().unwrap();
    drop(store);
    let whole = disk.files()["00000001.seg"].clone();
    for len in ends[1]..=whole.len() {
        let cut = SimDisk::default();
        cut.put("00000001.seg", &whole[..len]);
        let store = ChunkStore::open_on(Arc::new(cut.clone()), &settings).unwrap();
        // A record whose content is complete counts, whether or not its padding is there.
        let there = (0..4).filter(|n| get(&store, *n).is_some()).count();
        let by_length = ends.iter().filter(|e| len + 7 >= **e).count();
        assert!(there == by_length || there + 1 == by_length, "{there} of {by_length} at {len}");
        assert!(len < whole.len() || there == 4);
        for n in 0..6 {
            put(&store, n);
        }
        store.sync_blocking().unwrap();
        drop(store);
        let again = ChunkStore::open_on(Arc::new(cut.after_power_cut(len as u64)), &settings).unwrap();
        assert_there(&again, 0..6);
        assert_eq!(again.stats().chunk_count, 6);
    }
}

#[test]
fn a_tail_overwritten_with_garbage_or_zeros_is_cut() {
    let disk = SimDisk::default();
    let mut settings = settings();
    settings.lanes = 1;
    let store = ChunkStore::open_on(Arc::new(disk.clone()), &settings).unwrap();
    fill(&store, 0..3);
    store.sync_blocking().unwrap();
    drop(store);
    let whole = disk.files()["00000001.seg"].clone();
    for (garbage, len) in [(0u8, 5000), (0xff, 77), (0, 3)] {
        let spoilt = SimDisk::default();
        let mut bytes = whole.clone();
        bytes.resize(whole.len() + len, garbage);
        spoilt.put("00000001.seg", &bytes);
        let store = ChunkStore::open_on(Arc::new(spoilt.clone()), &settings).unwrap();
        assert_there(&store, 0..3);
        assert_eq!(spoilt.files()["00000001.seg"].len(), whole.len());
    }
}

/// What the crash tests do: uploads, commits, deletions, removal, compaction, storing again what was removed.
fn scenario(office: &mut Office) -> Result<()> {
    for n in 0..12 {
        office.append(&[3 * n, 3 * n + 1, 3 * n + 2])?;
        if n % 2 == 0 {
            office.commit(&[3 * n, 3 * n + 1])?;
        }
    }
    office.pass()?;
    office.needed.retain(|n| n % 4 == 0);
    office.pass()?;
    office.pass()?;
    // Removed content comes again while its tombstone is still about.
    for n in [1, 3, 5, 7, 30, 31] {
        office.append(&[n])?;
        office.commit(&[n])?;
    }
    office.pass()?;
    office.needed.retain(|n| n % 3 != 0);
    office.pass()?;
    office.append(&(40..60).collect::<Vec<_>>())?;
    office.commit(&[41, 50])?;
    office.pass()?;
    office.store = None;
    office.append(&[70])?;
    office.commit(&[70]).map(drop)
}

#[test]
fn a_crash_at_any_step_loses_nothing_that_was_committed() {
    let mut dry = Office::new(SimDisk::default());
    scenario(&mut dry).unwrap();
    let steps = dry.disk.steps();
    dry.check();
    assert!(steps > 100, "{steps}");
    for step in 1..=steps {
        let mut office = Office::new(SimDisk::default());
        office.disk.die_at(step);
        let ended = scenario(&mut office);
        office.store = None;
        assert!(ended.is_err() || !office.disk.is_dead() || step + 10 > steps, "step {step} was not noticed");
        for seed in 0..4 {
            let disk = if seed == 0 { office.disk.after_kill() } else { office.disk.after_power_cut(step * 10 + seed) };
            let mut after = Office { disk, store: None, needed: office.needed.clone() };
            println!("step {step}, seed {seed}");
            after.check();
            // And it goes on.
            after.append(&[1, 2, 80, 81]).unwrap();
            assert!(after.commit(&[1, 2, 80, 81]).unwrap());
            after.store = None;
            after.disk = after.disk.after_power_cut(step);
            after.check();
        }
    }
}

#[test]
fn a_crash_during_recovery_is_recovered_from() {
    for first in [20, 45, 70, 95] {
        let mut office = Office::new(SimDisk::default());
        office.disk.die_at(first);
        assert!(scenario(&mut office).is_err());
        office.store = None;
        let image = office.disk.after_power_cut(first);
        for step in 1.. {
            let disk = image.after_kill();
            disk.die_at(disk.steps() + step);
            let opened = ChunkStore::open_on(Arc::new(disk.clone()), &settings());
            let done = opened.and_then(|s| s.sync_blocking()).is_ok();
            for seed in 0..3 {
                let disk = disk.after_power_cut(seed);
                Office { disk, store: None, needed: office.needed.clone() }.check();
            }
            if done && !disk.is_dead() {
                break;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Append(Vec<u64>),
    Commit(Vec<u64>),
    Delete(u64),
    Pass,
    Reopen,
    Kill,
    PowerCut(u64),
    Lease(u64),
    Read(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let some = || proptest::collection::vec(0u64..60, 1..5);
    prop_oneof![
        6 => some().prop_map(Op::Append),
        5 => some().prop_map(Op::Commit),
        2 => (0u64..60).prop_map(Op::Delete),
        3 => Just(Op::Pass),
        1 => Just(Op::Reopen),
        1 => Just(Op::Kill),
        2 => any::<u64>().prop_map(Op::PowerCut),
        1 => (0u64..60).prop_map(Op::Lease),
        3 => (0u64..60).prop_map(Op::Read),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn the_store_agrees_with_a_set(ops in proptest::collection::vec(op(), 1..120)) {
        let mut office = Office::new(SimDisk::default());
        // Chunks under a living lease, in this process.
        let mut leased: BTreeMap<u64, atrium_common::chunk::Lease> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Append(chunks) => office.append(&chunks).unwrap(),
                Op::Commit(chunks) => {
                    let there = chunks.iter().all(|n| office.store().unwrap().length(&id(*n)).is_some());
                    prop_assert_eq!(office.commit(&chunks).unwrap(), there);
                }
                Op::Delete(n) => {
                    office.needed.remove(&n);
                }
                Op::Pass => office.pass().unwrap(),
                Op::Lease(n) => {
                    let held = lease(&office.store().unwrap());
                    let unused = if held.missing(&[reference(n)]).is_empty() { leased.insert(n, held) } else { Some(held) };
                    unused.into_iter().for_each(atrium_common::chunk::Lease::end);
                }
                Op::Read(n) => {
                    let store = office.store().unwrap();
                    let read = get(&store, n);
                    prop_assert!(read.is_none_or(|r| r == content(n)));
                }
                Op::Reopen | Op::Kill | Op::PowerCut(_) => {
                    // Handles end with the process.
                    leased.clear();
                    let before = office.disk.clone();
                    if matches!(op, Op::Reopen) {
                        office.store = None;
                    }
                    office.disk = match op {
                        Op::PowerCut(seed) => before.after_power_cut(seed),
                        _ => before.after_kill(),
                    };
                    office.store = None;
                }
            }
            let store = office.store().unwrap();
            assert_there(&store, office.needed.iter().chain(leased.keys()).copied());
        }
        for held in std::mem::take(&mut leased).into_values() {
            held.end();
        }
        office.check();
    }

    #[test]
    fn no_bytes_make_a_scan_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..2000), cuts in 0usize..2000, n in 0u64..50) {
        use atrium_common::chunk::disk::Disk;
        use atrium_common::chunk::format::{RecordHeader, RecordKind, SegmentHeader};
        let disk = SimDisk::default();
        let mut image = SegmentHeader { id: 1, key: [3; 32], first_sequence: 1 }.encode().to_vec();
        let offset = image.len() as u32;
        let (id, len) = (id(n), content(n).len() as u32);
        image.extend(RecordHeader { kind: RecordKind::Chunk, id, len, sequence: 1, names: 0, synced: 0, offset }.encode(&[3; 32]));
        image.extend_from_slice(&content(n));
        image.append(&mut bytes);
        image.truncate(cuts.max(10));
        disk.put("00000001.seg", &image);
        let file = disk.open("00000001.seg").unwrap();
        let _ = scan_segment_bytes(file.as_ref()).unwrap();
        drop(ChunkStore::open_on(Arc::new(disk), &settings()).unwrap());
    }
}

/// A child for the tests below: commits contents one after the other and says so, removing most of them again.
#[test]
fn child_that_commits() {
    let Some((directory, _)) = powercut::child_directory() else { return };
    let mut settings = settings();
    settings.directory = directory.join("chunks");
    let store = ChunkStore::open(&settings).unwrap();
    for round in 0u64.. {
        let held = lease(&store);
        for n in round * 10..round * 10 + 10 {
            store.append(id(n), &[content(n)], &held).unwrap();
        }
        let guard = store.commit_guard();
        guard.require(&(round * 10..round * 10 + 10).map(reference).collect::<Vec<_>>()).unwrap();
        store.sync_blocking().unwrap();
        held.end();
        drop(guard);
        powercut::acknowledge(&round.to_string());
        // Of each round only the first content is needed when the next one has begun.
        store
            .reclaim_blocking(|mark| {
                (0..=round).for_each(|r| mark(id(r * 10)));
                (round * 10..round * 10 + 10).for_each(|n| mark(id(n)));
                Ok(())
            })
            .unwrap();
    }
}

fn check_child(directory: &std::path::Path, acknowledged: &[String]) {
    let mut settings = settings();
    settings.directory = directory.join("chunks");
    let store = ChunkStore::open(&settings).unwrap();
    let last = acknowledged.len() as u64 - 1;
    assert_there(&store, (0..=last).map(|r| r * 10));
    assert_there(&store, last * 10..last * 10 + 10);
}

#[test]
fn a_killed_process_loses_nothing() {
    for kill_after in [1, 7, 20] {
        let directory = tempfile::tempdir().unwrap();
        let child = powercut::start("chunk_crash::child_that_commits", directory.path(), "", None);
        check_child(directory.path(), &child.kill_after(kill_after));
    }
}

#[test]
fn a_power_cut_of_a_real_process_loses_nothing() {
    let Some(library) = powercut::library() else { return };
    for kill_after in [1, 7, 20] {
        let (directory, shadow) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let preload = Some((library, shadow.path()));
        let child = powercut::start("chunk_crash::child_that_commits", directory.path(), "", preload);
        let acknowledged = child.kill_after(kill_after);
        let survivor = tempfile::tempdir().unwrap();
        powercut::copy_tree(shadow.path(), survivor.path());
        check_child(survivor.path(), &acknowledged);
    }
}

#[test]
fn a_clean_end_syncs_what_was_appended() {
    let disk = SimDisk::default();
    let store = open(&disk);
    put(&store, 1);
    drop(store);
    assert_there(&open(&disk.after_power_cut(5)), [1]);
}
