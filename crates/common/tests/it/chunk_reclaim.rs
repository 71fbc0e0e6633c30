//! Removal: nothing that is needed, everything that is not.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atrium_common::chunk::{ChunkStore, LEASE_IDLE, ReclaimReport};
use atrium_common::clock::ManualClock;
use atrium_common::error::{Error, Reason};
use atrium_common::model::{ChunkId, UploadId};

use crate::chunk_store::{assert_there, content, get, id, lease, open, put, reference, settings};
use testkit::disk::SimDisk;

/// One pass over metadata that refers to these contents.
fn pass(store: &ChunkStore, needed: impl IntoIterator<Item = u64>) -> ReclaimReport {
    store
        .reclaim_blocking(|mark| {
            needed.into_iter().for_each(|n| mark(id(n)));
            Ok(())
        })
        .unwrap()
}

fn put_and_commit(store: &ChunkStore, n: u64) {
    let held = lease(store);
    store.append(id(n), &[content(n)], &held).unwrap();
    store.commit_guard().require(&[reference(n)]).unwrap();
    store.sync_blocking().unwrap();
    held.end();
}

#[test]
fn what_nothing_refers_to_goes_after_two_passes_and_its_space_comes_back() {
    let disk = SimDisk::default();
    let store = open(&disk);
    (0..100).for_each(|n| put_and_commit(&store, n));
    let before = store.stats();
    let first = pass(&store, 0..10);
    assert!(first.first_pass);
    assert_eq!((first.marked, first.removed_chunks), (10, 0));
    let second = pass(&store, 0..10);
    assert_eq!((second.removed_chunks, second.missing), (90, 0));
    assert!(second.compacted_segments > 0 && second.freed_bytes > before.stored_bytes / 2, "{second:?}");
    assert_there(&store, 0..10);
    assert_eq!(get(&store, 50), None);
    let after = store.stats();
    assert_eq!(after.chunk_count, 10);
    assert!(after.stored_bytes < before.stored_bytes / 3, "{after:?}");
    drop(store);
    let store = open(&disk);
    assert_eq!(store.stats().chunk_count, 10);
    assert_there(&store, 0..10);
    assert!(put(&store, 50), "what was removed can be stored again");
    drop(store);
    assert_there(&open(&disk), (0..10).chain([50]));
}

#[test]
fn a_pass_counts_references_to_chunks_that_are_not_there() {
    let store = open(&SimDisk::default());
    put_and_commit(&store, 1);
    let report = pass(&store, [1, 2, 1]);
    assert_eq!((report.marked, report.missing, report.missing_ids), (3, 1, vec![id(2)]));
}

#[test]
fn a_mark_pass_that_fails_counts_for_nothing() {
    let store = open(&SimDisk::default());
    put_and_commit(&store, 1);
    let broken = || Err(Error::new(Reason::StoreFailed, "metadata cannot be read"));
    assert!(store.reclaim_blocking(|_| broken()).unwrap_err().is(Reason::StoreFailed));
    assert!(pass(&store, []).first_pass);
    assert!(store.reclaim_blocking(|_| broken()).is_err());
    assert_there(&store, [1]);
    // The failed one stamped nothing and removed nothing; the next whole one is the second.
    assert_eq!(pass(&store, []).removed_chunks, 1);
}

#[test]
fn a_restart_begins_counting_anew() {
    let disk = SimDisk::default();
    let store = open(&disk);
    put_and_commit(&store, 1);
    pass(&store, []);
    drop(store);
    let store = open(&disk);
    assert_eq!(pass(&store, []).removed_chunks, 0);
    assert_there(&store, [1]);
    assert_eq!(pass(&store, []).removed_chunks, 1);
}

#[test]
fn an_upload_in_flight_keeps_its_chunks_until_its_lease_ends() {
    let clock = Arc::new(ManualClock::new(1_000_000));
    let mut settings = settings();
    settings.clock = clock.clone();
    let store = ChunkStore::open_on(Arc::new(SimDisk::default()), &settings).unwrap();
    put_and_commit(&store, 9);
    pass(&store, []);
    let upload = UploadId::generate();
    store.append(id(1), &[content(1)], &store.lease(upload)).unwrap();
    for _ in 0..5 {
        pass(&store, []);
    }
    assert_eq!(get(&store, 9), None, "older garbage goes all the same");
    assert_there(&store, [1]);
    // It asks again and again, once in 50 minutes: a chunk that was there before and one that it sent.
    put_and_commit(&store, 2);
    for _ in 0..5 {
        clock.advance(LEASE_IDLE - Duration::from_secs(600));
        assert_eq!(store.lease(upload).missing(&[reference(1), reference(2), reference(3)]), [2]);
        pass(&store, []);
        pass(&store, []);
    }
    let guard = store.commit_guard();
    guard.require(&[reference(1), reference(2)]).unwrap();
    drop(guard);
    // Committed: metadata refers to chunk 1 only. Nobody uses the lease any more.
    clock.advance(LEASE_IDLE);
    pass(&store, [1]);
    pass(&store, [1]);
    assert_eq!(store.stats().chunk_count, 1);
    assert_there(&store, [1]);
    assert_eq!(store.lease(upload).missing(&[reference(1), reference(2)]), [1]);
}

#[test]
fn a_commit_is_waited_for_and_cannot_be_overtaken() {
    let mut settings = settings();
    settings.patience = Duration::ZERO;
    let store = ChunkStore::open_on(Arc::new(SimDisk::default()), &settings).unwrap();
    put_and_commit(&store, 1);
    pass(&store, []);
    let guard = store.commit_guard();
    guard.require(&[reference(1)]).unwrap();
    // Its transaction is under way. A pass waits for it, and gives up for now rather than read metadata too early.
    let read = AtomicBool::new(false);
    let refused = store.reclaim_blocking(|_| {
        read.store(true, Ordering::SeqCst);
        Ok(())
    });
    assert!(refused.unwrap_err().is(Reason::Overloaded));
    assert!(!read.load(Ordering::SeqCst));
    drop(guard);
    let report = pass(&store, [1]);
    assert_eq!((report.removed_chunks, report.missing), (0, 0));
    pass(&store, [1]);
    assert_there(&store, [1]);
}

#[test]
fn a_commit_that_comes_while_the_sweep_runs_keeps_the_chunk_or_fails() {
    let store = open(&SimDisk::default());
    put_and_commit(&store, 1);
    pass(&store, []);
    // After the metadata was read and before the sweep: required now, so seen in this epoch.
    let report = store.reclaim_blocking(|_| {
        store.commit_guard().require(&[reference(1)]).unwrap();
        Ok(())
    });
    assert_eq!(report.unwrap().removed_chunks, 0);
    pass(&store, [1]);
    assert_there(&store, [1]);
    pass(&store, []);
    pass(&store, []);
    assert_eq!(store.commit_guard().require(&[reference(1)]), Err(vec![0]));
}

#[test]
fn a_wrong_length_is_missing() {
    let store = open(&SimDisk::default());
    put_and_commit(&store, 1);
    let mut wrong = reference(1);
    wrong.len += 1;
    assert_eq!(store.commit_guard().require(&[reference(1), wrong]), Err(vec![1]));
    assert_eq!(lease(&store).missing(&[wrong]), [0]);
}

#[test]
fn only_one_pass_runs_at_a_time() {
    let store = open(&SimDisk::default());
    let outer = store.reclaim_blocking(|_| {
        let inner = store.reclaim_blocking(|_| Ok(()));
        assert!(inner.unwrap_err().is(Reason::Overloaded));
        Ok(())
    });
    outer.unwrap();
}

#[test]
fn a_pin_keeps_what_metadata_referred_to_and_every_segment() {
    let disk = SimDisk::default();
    let store = open(&disk);
    (0..60).for_each(|n| put_and_commit(&store, n));
    pass(&store, 0..60);
    let pin = store.pin();
    let segments = |disk: &SimDisk| disk.files().keys().filter(|n| n.ends_with(".seg")).count();
    let before = segments(&disk);
    // Everything is deleted from metadata while the backup runs.
    for _ in 0..4 {
        assert_eq!(pass(&store, []).removed_chunks, 0);
    }
    assert!(segments(&disk) >= before);
    assert_there(&store, 0..60);
    drop(pin);
    assert_eq!(pass(&store, []).removed_chunks, 60);
    assert!(segments(&disk) < before);
}

#[test]
fn tombstones_live_as_long_as_what_they_remove_and_no_longer() {
    let disk = SimDisk::default();
    let mut store = open(&disk);
    // A keeper in each segment holds it above the threshold for compaction, so removed records stay on disk.
    (0..200).for_each(|n| put_and_commit(&store, n));
    for round in 0..6 {
        let keep = |n: &u64| n % 10 < 9 - round;
        for _ in 0..2 {
            pass(&store, (0..200).filter(keep));
        }
        drop(store);
        store = open(&disk);
        assert_eq!(store.stats().chunk_count, (0..200).filter(keep).count() as u64, "round {round}");
        assert_there(&store, (0..200).filter(keep));
    }
    for _ in 0..4 {
        pass(&store, []);
    }
    let left = store.stats();
    assert_eq!(left.chunk_count, 0);
    assert!(left.stored_bytes < 32 << 10, "{left:?}");
}

#[test]
fn damaged_chunks_are_not_copied_and_not_dropped() {
    let disk = SimDisk::default();
    let store = open(&disk);
    (0..60).for_each(|n| put_and_commit(&store, n));
    let needle = content(30);
    let (name, at) = disk
        .files()
        .into_iter()
        .find_map(|(name, bytes)| Some((name, bytes.windows(needle.len()).position(|w| w == needle)?)))
        .unwrap();
    disk.flip(&name, at);
    pass(&store, [30]);
    let report = pass(&store, [30]);
    assert_eq!((report.removed_chunks, report.damaged), (59, 1));
    assert!(disk.files().contains_key(&name), "its segment stays, for whoever can still make something of it");
    assert_eq!(store.damaged_chunks(), [id(30)]);
    drop(store);
    let store = open(&disk);
    assert_eq!(store.damaged_chunks(), [id(30)]);
    assert!(put(&store, 30));
    store.sync_blocking().unwrap();
    pass(&store, [30]);
    pass(&store, [30]);
    assert!(!disk.files().contains_key(&name), "healed: now it goes");
    assert_there(&store, [30]);
    drop(store);
    let store = open(&disk);
    assert_there(&store, [30]);
    assert_eq!(store.scrub(0, |_| ControlFlow::Continue(())).unwrap().damaged, []);
}

#[test]
fn space_can_be_freed_on_a_full_disk() {
    let disk = SimDisk::default();
    let mut settings = settings();
    settings.min_free_bytes = 20_000;
    disk.set_capacity(Some(120_000));
    let store = ChunkStore::open_on(Arc::new(disk.clone()), &settings).unwrap();
    let filled = (0..).take_while(|n| store.append(id(*n), &[content(*n)], &lease(&store)).is_ok()).count() as u64;
    assert!(filled > 50);
    drop(store);
    let store = ChunkStore::open_on(Arc::new(disk.clone()), &settings).unwrap();
    let needed = || (0..filled).filter(|n| n % 5 == 0);
    pass(&store, needed());
    let report = pass(&store, needed());
    assert!(report.freed_bytes > 40_000, "{report:?}");
    assert_there(&store, needed());
    assert!(put(&store, 1));
}

/// Metadata for the race: which file holds which content. Reading all of it under the lock is a consistent state.
#[derive(Default)]
struct Metadata {
    files: Mutex<HashMap<u64, u64>>,
}

#[test]
fn commits_moves_and_deletions_race_the_sweep_and_lose_nothing() {
    const CONTENTS: u64 = 40;
    let disk = SimDisk::default();
    let store = open(&disk);
    let metadata = Metadata::default();
    let (working, refused, passes) = (AtomicU64::new(6), AtomicU64::new(0), AtomicU64::new(0));
    let removed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for t in 0..6u64 {
            let (store, metadata, working, refused) = (&store, &metadata, &working, &refused);
            scope.spawn(move || {
                let mut random = t + 1;
                let mut next = || {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    random >> 33
                };
                for step in 0..400 {
                    let (n, file) = (next() % CONTENTS, t * 1000 + next() % 8);
                    match next() % 6 {
                        // An upload whose lease is gone before its commit: the worst case.
                        0..3 => {
                            let held = lease(store);
                            store.append(id(n), &[content(n)], &held).unwrap();
                            if step % 4 > 0 {
                                held.clone().end();
                            }
                            if step % 3 == 0 {
                                std::thread::yield_now();
                            }
                            commit(store, metadata, refused, file, n);
                            held.end();
                        }
                        // A commit that hopes the content is there.
                        3 => commit(store, metadata, refused, file, n),
                        // A move: the reference goes from one file to another in one transaction.
                        4 => {
                            let mut files = metadata.files.lock().unwrap();
                            if let Some(n) = files.remove(&file) {
                                files.insert(t * 1000 + 500 + next() % 8, n);
                            }
                        }
                        _ => {
                            metadata.files.lock().unwrap().remove(&file);
                        }
                    }
                    let some = metadata.files.lock().unwrap().get(&(t * 1000 + 500 + next() % 8)).copied();
                    if let Some(n) = some {
                        // Only this thread deletes its files, so the content must be there.
                        assert_eq!(get(store, n), Some(content(n)), "content {n} in step {step}");
                    }
                }
                working.fetch_sub(1, Ordering::SeqCst);
            });
        }
        let (store, metadata) = (&store, &metadata);
        let (working, passes, removed) = (&working, &passes, &removed);
        scope.spawn(move || {
            while working.load(Ordering::SeqCst) > 0 {
                let report = store
                    .reclaim_blocking(|mark| {
                        let state: Vec<u64> = metadata.files.lock().unwrap().values().copied().collect();
                        state.into_iter().for_each(|n| mark(id(n)));
                        Ok(())
                    })
                    .unwrap();
                assert_eq!(report.missing, 0, "metadata refers to a chunk that is gone: {report:?}");
                passes.fetch_add(1, Ordering::SeqCst);
                removed.fetch_add(report.removed_chunks, Ordering::SeqCst);
            }
        });
    });
    let needed: HashSet<u64> = metadata.files.lock().unwrap().values().copied().collect();
    assert_there(&store, needed.iter().copied());
    assert!(passes.load(Ordering::SeqCst) > 2 && removed.load(Ordering::SeqCst) > 0, "the race was none");
    drop(store);
    let store = open(&disk.after_power_cut(1));
    assert_there(&store, needed.iter().copied());
    pass(&store, needed.iter().copied());
    pass(&store, needed.iter().copied());
    let ids: HashSet<ChunkId> = needed.iter().map(|n| id(*n)).collect();
    assert_eq!(store.stats().chunk_count, ids.len() as u64);
}

fn commit(store: &ChunkStore, metadata: &Metadata, refused: &AtomicU64, file: u64, n: u64) {
    let guard = store.commit_guard();
    if guard.require(&[reference(n)]).is_err() {
        refused.fetch_add(1, Ordering::SeqCst);
        return;
    }
    store.sync_blocking().unwrap();
    metadata.files.lock().unwrap().insert(file, n);
}
