//! Tests that need an engine of their own making: one that waits, fails, panics or was tampered with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};

use super::engine::{Engine, EngineError, EngineResult, Guarded, Visit, Write};
use super::record::{META_KEY, SPACE_LOG, SPACE_USER};
use super::view::FrozenScan;
use super::*;

/// A map that shows a batch at once, like sled, and then does what the test wants.
#[derive(Default)]
struct Stage {
    map: RwLock<BTreeMap<Vec<u8>, Bytes>>,
    /// Batches stop here after they became visible in the map.
    gate: Mutex<Gate>,
    moved: Condvar,
    fail: AtomicBool,
    panic: AtomicBool,
}

#[derive(Default)]
struct Gate {
    shut: bool,
    waiting: bool,
}

impl Stage {
    fn shut(&self) {
        self.gate.lock().shut = true;
    }
    fn open(&self) {
        self.gate.lock().shut = false;
        self.moved.notify_all();
    }
    /// Waits until a batch stands at the gate.
    fn wait_for_batch(&self) {
        let mut gate = self.gate.lock();
        while !gate.waiting {
            self.moved.wait(&mut gate);
        }
    }
}

struct Staged(Arc<Stage>);

impl Engine for Staged {
    fn get(&self, key: &[u8]) -> EngineResult<Option<Bytes>> {
        Ok(self.0.map.read().get(key).cloned())
    }
    fn range(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> EngineResult<()> {
        let _ = self.0.map.read().range(from.to_vec()..to.to_vec()).try_for_each(|(k, v)| visit(k, v));
        Ok(())
    }
    fn range_back(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> EngineResult<()> {
        let _ = self.0.map.read().range(from.to_vec()..to.to_vec()).rev().try_for_each(|(k, v)| visit(k, v));
        Ok(())
    }
    fn apply(&self, batch: &[Write]) -> EngineResult<()> {
        assert!(!self.0.panic.load(Ordering::SeqCst), "as the test asked");
        let half = if self.0.fail.load(Ordering::SeqCst) { batch.len() / 2 } else { batch.len() };
        for (key, value) in &batch[..half] {
            match value {
                Some(value) => self.0.map.write().insert(key.to_vec(), value.clone()),
                None => self.0.map.write().remove(&key[..]),
            };
        }
        let mut gate = self.0.gate.lock();
        gate.waiting = true;
        self.0.moved.notify_all();
        while gate.shut {
            self.0.moved.wait(&mut gate);
        }
        gate.waiting = false;
        if half < batch.len() { Err(EngineError::Failed("the disk is gone".into())) } else { Ok(()) }
    }
    fn disk_bytes(&self) -> EngineResult<u64> {
        Ok(0)
    }
    fn close(&self) -> EngineResult<()> {
        Ok(())
    }
}

fn settings() -> StoreSettings {
    StoreSettings { engine: EngineKind::Memory, ..StoreSettings::default() }
}

fn staged(settings: &StoreSettings) -> (Arc<Stage>, Store) {
    let stage = Arc::new(Stage::default());
    let engine = Guarded::new(Box::new(Staged(stage.clone())), None);
    lay_out(&engine, settings.schema).unwrap();
    (stage, Store::start(engine, settings).unwrap())
}

fn put(store: &Store, key: &str, value: &str) -> Result<u64> {
    let (key, value) = (key.to_owned(), value.to_owned());
    let done = store.transact_blocking(move |txn| {
        txn.change(Bytes::from(key.clone()));
        txn.put(key.as_str(), value.clone())
    })?;
    Ok(done.revision)
}

#[test]
fn readers_see_a_commit_only_when_it_is_durable() {
    let (stage, store) = staged(&settings());
    put(&store, "a", "old").unwrap();
    put(&store, "b", "old").unwrap();
    stage.shut();
    let writer = std::thread::spawn({
        let store = store.clone();
        move || {
            store.transact_blocking(|txn| {
                txn.put("a", "new")?;
                txn.delete("b")?;
                txn.put("c", "new")
            })
        }
    });
    stage.wait_for_batch();
    assert!(stage.map.read().contains_key(&b"\x02c"[..]), "the engine shows it already");
    assert_eq!(store.get(b"a").unwrap().unwrap(), "old");
    assert_eq!(store.get(b"b").unwrap().unwrap(), "old");
    assert_eq!(store.get(b"c").unwrap(), None);
    let keys = |list: Vec<(Bytes, Bytes)>| list.into_iter().map(|(k, _)| k).collect::<Vec<_>>();
    assert_eq!(keys(store.range(b"", b"", 10).unwrap()), ["a", "b"]);
    assert_eq!(keys(store.range_back(b"", b"", 10).unwrap()), ["b", "a"]);
    assert_eq!(store.revision(), 2);
    assert_eq!(store.changes(0, 10).unwrap().len(), 2);
    assert!(store.changes(2, 10).unwrap().is_empty());
    let mut copy = Vec::new();
    assert_eq!(store.export(&mut copy).unwrap().revision, 2);
    stage.open();
    assert_eq!(writer.join().unwrap().unwrap().revision, 3);
    assert_eq!(keys(store.range(b"", b"", 10).unwrap()), ["a", "c"]);
    assert_eq!(store.get(b"a").unwrap().unwrap(), "new");
    assert_eq!(store.revision(), 3);
    let before = Store::import(&settings(), &mut &copy[..]).unwrap();
    assert_eq!(keys(before.range(b"", b"", 10).unwrap()), ["a", "b"]);
}

#[test]
fn an_engine_error_ends_writing_and_readers_keep_the_last_durable_state() {
    let (stage, store) = staged(&settings());
    put(&store, "a", "old").unwrap();
    stage.fail.store(true, Ordering::SeqCst);
    assert!(!store.is_failed());
    let error = put(&store, "a", "new").unwrap_err();
    assert!(error.is(Reason::StoreFailed), "{error:?}");
    assert!(store.is_failed() && store.stats().failed);
    stage.fail.store(false, Ordering::SeqCst);
    assert!(put(&store, "b", "new").unwrap_err().is(Reason::StoreFailed), "it must not go on");
    assert_eq!(store.get(b"a").unwrap().unwrap(), "old");
    assert_eq!(store.get(b"b").unwrap(), None);
    assert_eq!(store.revision(), 1);
    assert_eq!(store.changes(0, 10).unwrap().len(), 1);
}

#[test]
fn a_panic_of_the_engine_is_an_error() {
    let (stage, store) = staged(&settings());
    stage.panic.store(true, Ordering::SeqCst);
    assert!(put(&store, "a", "new").unwrap_err().is(Reason::StoreFailed));
    assert!(store.is_failed());
    assert_eq!(store.get(b"a").unwrap(), None);
}

#[test]
fn a_full_queue_makes_callers_wait_and_then_says_so() {
    let settings = StoreSettings { queue_limit: 2, queue_wait: Duration::from_millis(5), ..settings() };
    let (stage, store) = staged(&settings);
    stage.shut();
    let writer = |key: &'static str| {
        let store = store.clone();
        std::thread::spawn(move || put(&store, key, "x"))
    };
    let first = writer("a");
    stage.wait_for_batch();
    let (second, third) = (writer("b"), writer("c"));
    while store.stats().queued < 2 {
        std::thread::yield_now();
    }
    assert!(put(&store, "d", "x").unwrap_err().is(Reason::Overloaded));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let error = runtime.block_on(store.transact(|txn| txn.put("e", "x"))).unwrap_err();
    assert!(error.is(Reason::Overloaded) && error.retry_delay().is_some());
    stage.open();
    for done in [first, second, third] {
        done.join().unwrap().unwrap();
    }
    assert_eq!(store.revision(), 3);
    assert_eq!(store.get(b"d").unwrap(), None);
    put(&store, "d", "x").unwrap();
    runtime.block_on(store.transact(|txn| txn.put("e", "x"))).unwrap();
}

#[test]
fn waiting_transactions_share_a_batch_and_fail_alone() {
    let (stage, store) = staged(&settings());
    stage.shut();
    let first = std::thread::spawn({
        let store = store.clone();
        move || put(&store, "first", "x").unwrap()
    });
    stage.wait_for_batch();
    let writers: Vec<_> = (0..40_u64)
        .map(|i| {
            let store = store.clone();
            std::thread::spawn(move || {
                store.transact_blocking(move |txn| {
                    let n = txn.get(b"n")?.map_or(0, |v| u64::from_be_bytes(v[..].try_into().unwrap()));
                    txn.put("n", Bytes::copy_from_slice(&(n + 1).to_be_bytes()))?;
                    txn.put(format!("w/{i}"), "x")?;
                    match i % 4 {
                        0 => Err(Error::new(Reason::EtagStale, "as the test asked")),
                        1 => panic!("as the test asked"),
                        _ => Ok(n),
                    }
                })
            })
        })
        .collect();
    while store.stats().queued < 40 {
        std::thread::yield_now();
    }
    stage.open();
    first.join().unwrap();
    let mut values = Vec::new();
    for (i, writer) in writers.into_iter().enumerate() {
        match (i % 4, writer.join().unwrap()) {
            (0, Err(error)) => assert!(error.is(Reason::EtagStale)),
            (1, Err(error)) => assert!(error.is(Reason::Internal)),
            (_, Ok(done)) => {
                assert_eq!(done.revision, done.value + 2);
                values.push(done.value);
            }
            (_, Err(error)) => panic!("{error:?}"),
        }
    }
    values.sort_unstable();
    assert_eq!(values, (0..20).collect::<Vec<_>>());
    assert_eq!(store.range(b"w/", b"w0", 100).unwrap().len(), 20);
    assert_eq!(store.stats().batches, 2, "all that waited went to the engine at once");
    assert_eq!(store.changes(0, 100).unwrap().len(), 21);
    // The twenty share a block of the log, which no trim in their midst can remove.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(store.trim_changes(10)).unwrap();
    assert_eq!(store.stats().oldest_cursor, 10);
    assert!(store.changes(9, 100).unwrap_err().is(Reason::CursorTooOld));
    assert_eq!(store.changes(10, 100).unwrap().len(), 11);
    assert!(store.verify().unwrap().is_sound());
}

#[test]
fn a_batch_that_hangs_is_reported() {
    let (stage, store) = staged(&StoreSettings { stall_after: Duration::ZERO, ..settings() });
    assert!(!store.is_stalled(), "nothing is in flight");
    stage.shut();
    let writer = std::thread::spawn({
        let store = store.clone();
        move || put(&store, "a", "x")
    });
    stage.wait_for_batch();
    assert!(store.is_stalled() && store.stats().stalled);
    stage.open();
    writer.join().unwrap().unwrap();
    assert!(!store.is_stalled());
}

#[test]
fn damage_is_found_and_never_served() {
    let (stage, store) = staged(&settings());
    for i in 0..20 {
        put(&store, &format!("k{i:02}"), "some value").unwrap();
    }
    assert!(store.verify().unwrap().is_sound());
    let key = |k: &str| [&[SPACE_USER], k.as_bytes()].concat();
    let flip = |key: &[u8], bit: usize| {
        let mut map = stage.map.write();
        let mut raw = map[key].to_vec();
        raw[bit / 8] ^= 1 << (bit % 8);
        map.insert(key.to_vec(), Bytes::from(raw));
    };
    for bit in [0, 9, 75, 100] {
        flip(&key("k05"), bit);
        assert!(store.get(b"k05").unwrap_err().is(Reason::StoreCorrupt));
        assert!(store.range(b"k", b"l", 100).unwrap_err().is(Reason::StoreCorrupt));
        assert!(store.range_back(b"k05", b"", 100).unwrap_err().is(Reason::StoreCorrupt));
        assert!(store.transact_blocking(|txn| txn.get(b"k05")).unwrap_err().is(Reason::StoreCorrupt));
        assert!(store.transact_blocking(|txn| txn.range(b"k", b"l", 100)).unwrap_err().is(Reason::StoreCorrupt));
        assert!(store.export(&mut Vec::new()).unwrap_err().is(Reason::StoreCorrupt));
        let report = store.verify().unwrap();
        assert!(!report.is_sound());
        assert_eq!((report.damaged_count, &report.damaged[0].key[..]), (1, "k05"));
        flip(&key("k05"), bit);
        assert!(store.verify().unwrap().is_sound());
    }
    assert!(!store.is_failed(), "one bad record does not stop the store");

    let lost = stage.map.write().remove(&key("k07")).unwrap();
    let report = store.verify().unwrap();
    assert!(!report.totals_match && report.damaged_count == 0, "a lost record");
    assert!(store.export(&mut Vec::new()).unwrap_err().is(Reason::StoreCorrupt));
    stage.map.write().insert(key("k07"), lost.clone());
    assert!(store.verify().unwrap().is_sound());

    put(&store, "k07", "newer value").unwrap();
    let newer = stage.map.write().insert(key("k07"), lost).unwrap();
    assert!(!store.verify().unwrap().totals_match, "a record from the past, with a good checksum");
    stage.map.write().insert(key("k07"), newer);
    assert!(store.verify().unwrap().is_sound());

    let block = log::key(10, 0);
    let gone = stage.map.write().remove(&block).unwrap();
    assert!(store.changes(0, 100).unwrap_err().is(Reason::StoreCorrupt));
    assert!(store.changes(9, 100).unwrap_err().is(Reason::StoreCorrupt));
    assert_eq!(store.changes(10, 100).unwrap().len(), 11);
    assert!(!store.verify().unwrap().log_is_whole);
    stage.map.write().insert(block, gone);
    assert!(stage.map.read().keys().any(|key| key[0] == SPACE_LOG));
    assert!(store.verify().unwrap().is_sound());
}

#[test]
fn a_store_without_its_totals_does_not_open() {
    let stage = Arc::new(Stage::default());
    let engine = Guarded::new(Box::new(Staged(stage.clone())), None);
    lay_out(&engine, 1).unwrap();
    stage.map.write().remove(META_KEY);
    assert!(Store::start(engine, &settings()).unwrap_err().is(Reason::StoreCorrupt));
}

#[test]
fn a_frozen_state_stays_the_same_while_everything_changes() {
    let (_stage, store) = staged(&settings());
    for i in 0..3_000 {
        store.transact_blocking(move |txn| txn.put(format!("k{i:05}"), "before")).unwrap();
    }
    let scan = store.freeze().unwrap();
    let mut seen = scan.page().unwrap();
    for i in 0..3_000 {
        store
            .transact_blocking(move |txn| match i % 3 {
                0 => txn.put(format!("k{i:05}"), "after"),
                1 => txn.delete(format!("k{i:05}")),
                _ => txn.put(format!("k{i:05}/more"), "after"),
            })
            .unwrap();
        if i % 500 == 0 {
            seen.extend(scan.page().unwrap());
        }
    }
    loop {
        let page = scan.page().unwrap();
        if page.is_empty() {
            break;
        }
        seen.extend(page);
    }
    assert!(seen.windows(2).all(|w| w[0].0 < w[1].0));
    let users: Vec<_> = seen.iter().filter(|(k, _)| k[0] == SPACE_USER).collect();
    assert_eq!(users.len(), 3_000);
    for (i, (key, raw)) in users.into_iter().enumerate() {
        assert_eq!(key[1..], *format!("k{i:05}").as_bytes());
        assert_eq!(record::open(key, raw).unwrap(), "before");
    }
    drop(scan);
    assert!(store.0.shared.visible.read().frozen.is_empty());
}

#[test]
fn an_export_that_stands_still_loses_to_the_writers() {
    let settings = StoreSettings { export_memory_bytes: 20_000, export_wait: Duration::from_millis(5), ..settings() };
    let (_stage, store) = staged(&settings);
    let stuck: FrozenScan<'_> = store.freeze().unwrap();
    for i in 0..300 {
        put(&store, &format!("k{i}"), "x").unwrap();
    }
    assert!(stuck.page().unwrap_err().is(Reason::Overloaded));
    drop(stuck);
    assert!(store.verify().unwrap().is_sound());
}

#[tokio::test]
async fn the_last_change_of_a_kind_of_record_is_known_once_it_is_durable() {
    let (stage, store) = staged(&settings());
    let opened = store.revision();
    assert_eq!((store.last_change(b'a'), store.last_change(b'b')), (opened, opened));
    store.transact(|txn| txn.put("a/1", "x")).await.unwrap();
    let first = store.revision();
    assert_eq!((store.last_change(b'a'), store.last_change(b'b')), (first, opened));

    stage.shut();
    let other = store.clone();
    let waiting = tokio::spawn(async move { other.transact(|txn| txn.delete("a/1")).await });
    let at_gate = stage.clone();
    tokio::task::spawn_blocking(move || at_gate.wait_for_batch()).await.unwrap();
    assert_eq!(store.last_change(b'a'), first, "the batch is not durable yet");
    stage.open();
    let second = waiting.await.unwrap().unwrap().revision;
    assert_eq!((store.last_change(b'a'), store.last_change(b'b')), (second, opened));
    store.transact(|txn| txn.get(b"a/1").map(drop)).await.unwrap();
    assert_eq!(store.last_change(b'a'), second, "reading changes nothing");
}
