//! The store against SIGKILL and against power cuts.
//!
//! A child writes transactions of several records from several threads and reports each one that was acknowledged. It is
//! killed after a number of reports; then either the directory itself is opened again (kill) or only what had been synced
//! (power cut). Nothing that was reported may be missing, no transaction may be there in part, and the next child goes on
//! from there.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use atrium_common::store::{EngineKind, Store, StoreSettings};
use bytes::Bytes;

use crate::powercut::{self, acknowledge, child_directory};

const WRITERS: u64 = 3;
const CHILD: &str = "store_crash::child_that_writes";

fn settings(kind: EngineKind, directory: &Path) -> StoreSettings {
    StoreSettings {
        engine: kind,
        directory: directory.join("store"),
        cache_bytes: 4 << 20,
        snapshot_keep: 1,
        ..StoreSettings::default()
    }
}

/// Records of a transaction, and their values.
fn records(writer: u64, n: u64) -> impl Iterator<Item = (String, Vec<u8>)> {
    let count = 1 + (n * 7 + writer) % 6;
    (0..count).map(move |i| {
        let length = (n * 37 + i * 911 + writer * 5) % 900;
        (format!("w/{writer}/{n:08}/{i}"), vec![(n + i) as u8; length as usize])
    })
}

fn counter(writer: u64) -> String {
    format!("c/{writer}")
}

fn number(value: Option<Bytes>) -> u64 {
    value.map_or(0, |v| u64::from_be_bytes(v[..].try_into().expect("a counter has eight bytes")))
}

#[test]
fn child_that_writes() {
    let Some((directory, engine)) = child_directory() else { return };
    let store = Store::open(&settings(engine.parse().unwrap(), &directory)).unwrap();
    let total = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (store, total) = (store.clone(), &total);
            scope.spawn(move || {
                loop {
                    let done = store
                        .transact_blocking(move |txn| {
                            let n = number(txn.get(counter(writer).as_bytes())?) + 1;
                            txn.put(counter(writer), n.to_be_bytes().to_vec())?;
                            for (key, value) in records(writer, n) {
                                txn.put(key, value)?;
                            }
                            // What lies forty transactions back goes, so that the files stay small and pages are reused.
                            if let Some(old) = n.checked_sub(40) {
                                for (key, _) in records(writer, old) {
                                    txn.delete(key)?;
                                }
                            }
                            txn.change(Bytes::from(format!("{writer} {n}")));
                            Ok(n)
                        })
                        .unwrap();
                    acknowledge(&format!("{writer} {} {}", done.value, done.revision));
                    if total.fetch_add(1, Ordering::Relaxed) % 100 == 99 {
                        store.snapshot().unwrap();
                    }
                }
            });
        }
        let store = store.clone();
        scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut revisions = store.subscribe();
            loop {
                runtime.block_on(revisions.changed()).unwrap();
                let revision = *revisions.borrow_and_update();
                if revision.is_multiple_of(50) {
                    runtime.block_on(store.trim_changes(revision.saturating_sub(200))).unwrap();
                }
            }
        });
    });
}

/// Opens what is left and compares it with what was acknowledged.
fn check(kind: EngineKind, directory: &Path, acknowledged: &[String]) {
    let store = Store::open(&settings(kind, directory)).unwrap();
    let report = store.verify().unwrap();
    assert!(report.is_sound(), "{report:?}");
    for ack in acknowledged {
        let mut words = ack.split(' ').map(|word| word.parse::<u64>().unwrap());
        let (writer, n, revision) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        let last = number(store.get(counter(writer).as_bytes()).unwrap());
        assert!(last >= n, "writer {writer}: transaction {n} was acknowledged, {last} is the last one");
        assert!(store.revision() >= revision);
    }
    let mut expected = Vec::new();
    let mut commits = 0;
    for writer in 0..WRITERS {
        let last = number(store.get(counter(writer).as_bytes()).unwrap());
        commits += last;
        expected.extend((last.saturating_sub(39).max(1)..=last).flat_map(|n| records(writer, n)));
    }
    assert_eq!(store.revision(), commits, "each commit has one revision");
    expected.sort();
    let found: Vec<_> = store
        .range(b"w/", b"w0", 100_000)
        .unwrap()
        .into_iter()
        .map(|(key, value)| (String::from_utf8(key.to_vec()).unwrap(), value.to_vec()))
        .collect();
    assert!(found == expected, "a transaction is there in part: {} records, {} expected", found.len(), expected.len());

    let oldest = store.stats().oldest_cursor;
    let mut last = [0; WRITERS as usize];
    let changes = store.changes(oldest, 100_000).unwrap();
    assert_eq!(changes.len() as u64, commits - oldest);
    for (change, revision) in changes.iter().zip(oldest + 1..) {
        assert_eq!((change.revision, change.payloads.len()), (revision, 1));
        let text = String::from_utf8(change.payloads[0].to_vec()).unwrap();
        let (writer, n) = text.split_once(' ').unwrap();
        let (writer, n) = (writer.parse::<usize>().unwrap(), n.parse::<u64>().unwrap());
        assert!(last[writer] == 0 || n == last[writer] + 1, "the change log skips {writer} {}", last[writer] + 1);
        last[writer] = n;
    }
    for snapshot in store.snapshots().unwrap() {
        let copy = StoreSettings { engine: EngineKind::Memory, ..StoreSettings::default() };
        let copy = Store::import(&copy, &mut std::fs::File::open(snapshot).unwrap()).unwrap();
        assert!(copy.verify().unwrap().is_sound());
    }
}

/// How often to crash; `ATRIUM_CRASH_ROUNDS` asks for more by hand.
fn rounds() -> usize {
    std::env::var("ATRIUM_CRASH_ROUNDS").map_or(6, |rounds| rounds.parse().expect("ATRIUM_CRASH_ROUNDS is a number"))
}

fn killed(kind: EngineKind) {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..rounds() {
        let child = powercut::start(CHILD, directory.path(), kind.word(), None);
        let acknowledged = child.kill_after([1, 40, 137, 260, 333, 77][round % 6]);
        check(kind, directory.path(), &acknowledged);
    }
}

fn power_cut(kind: EngineKind) {
    let Some(library) = powercut::library() else { return };
    let places = tempfile::tempdir().unwrap();
    for round in 0..rounds() {
        let (now, shadow, next) = (format!("{round}"), format!("{round}-shadow"), format!("{}", round + 1));
        let [now, shadow, next] = [now, shadow, next].map(|name| places.path().join(name));
        std::fs::create_dir_all(&now).unwrap();
        powercut::copy_tree(&now, &shadow);
        let child = powercut::start(CHILD, &now, kind.word(), Some((library, &shadow)));
        let acknowledged = child.kill_after([1, 25, 60, 111, 90, 170][round % 6]);
        powercut::copy_tree(&shadow, &next);
        check(kind, &next, &acknowledged);
        for done in [now, shadow] {
            std::fs::remove_dir_all(done).unwrap();
        }
    }
}

#[test]
fn sled_loses_nothing_when_it_is_killed() {
    killed(EngineKind::Sled);
}

#[test]
fn redb_loses_nothing_when_it_is_killed() {
    killed(EngineKind::Redb);
}

#[test]
fn sled_loses_nothing_in_a_power_cut() {
    power_cut(EngineKind::Sled);
}

#[test]
fn redb_loses_nothing_in_a_power_cut() {
    power_cut(EngineKind::Redb);
}
