//! What a store promises, on every engine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use atrium_common::error::{Error, Reason, Result};
use atrium_common::store::{
    ChangeRecord, Committed, EngineKind, KEY_MAX, Store, StoreSettings, TXN_RECORDS_MAX, VALUE_MAX, prefix_end,
};
use bytes::Bytes;
use tempfile::TempDir;

/// A store in a directory of its own.
pub struct Place {
    directory: TempDir,
    pub kind: EngineKind,
}

impl Place {
    pub fn new(kind: EngineKind) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), kind }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    pub fn settings(&self) -> StoreSettings {
        StoreSettings { engine: self.kind, directory: self.path(), cache_bytes: 8 << 20, ..StoreSettings::default() }
    }

    pub fn open(&self) -> Store {
        Store::open(&self.settings()).unwrap()
    }

    pub fn is_durable(&self) -> bool {
        self.kind != EngineKind::Memory
    }
}

fn put(store: &Store, key: &str, value: &str) -> u64 {
    let (key, value) = (key.to_owned(), value.to_owned());
    store.transact_blocking(move |txn| txn.put(key.as_str(), value.clone())).unwrap().revision
}

fn pairs(list: Vec<(Bytes, Bytes)>) -> Vec<(String, String)> {
    let text = |b: Bytes| String::from_utf8(b.to_vec()).unwrap();
    list.into_iter().map(|(k, v)| (text(k), text(v))).collect()
}

fn keys(list: Vec<(Bytes, Bytes)>) -> Vec<String> {
    pairs(list).into_iter().map(|(k, _)| k).collect()
}

fn refused() -> Error {
    Error::new(Reason::EtagStale, "as the test asked")
}

fn reads_and_writes(kind: EngineKind) {
    let place = Place::new(kind);
    let store = place.open();
    assert_eq!(store.revision(), 0);
    let seen = store.subscribe();
    let done = store
        .transact_blocking(|txn| {
            assert_eq!(txn.revision(), 1);
            assert_eq!(txn.get(b"a")?, None);
            txn.put("a", "1")?;
            txn.put(b"b".to_vec(), Bytes::from_static(b"2"))?;
            txn.put("", "an empty key is a key")?;
            assert_eq!(txn.get(b"a")?.unwrap(), "1");
            txn.delete("b")?;
            assert_eq!(txn.get(b"b")?, None);
            Ok("value")
        })
        .unwrap();
    assert_eq!((done.value, done.revision), ("value", 1));
    assert!(seen.has_changed().unwrap());
    assert_eq!(*seen.borrow(), 1);
    assert_eq!(store.get(b"a").unwrap().unwrap(), "1");
    assert_eq!(store.get(b"b").unwrap(), None);
    assert_eq!(store.get(b"").unwrap().unwrap(), "an empty key is a key");
    assert_eq!(store.get(&vec![b'x'; 5_000]).unwrap(), None);

    let read_only = store.transact_blocking(|txn| txn.get(b"a")).unwrap();
    assert_eq!(read_only.revision, 1, "a transaction that writes nothing is no commit");
    let error = store
        .transact_blocking(|txn| {
            txn.put("a", "lost")?;
            txn.put("c", "lost")?;
            txn.change(Bytes::from_static(b"lost"));
            Err::<(), _>(refused())
        })
        .unwrap_err();
    assert!(error.is(Reason::EtagStale));
    assert_eq!(store.get(b"a").unwrap().unwrap(), "1");
    assert_eq!(store.get(b"c").unwrap(), None);
    assert_eq!((store.revision(), store.changes(0, 10).unwrap().len()), (1, 1));
    let stats = store.stats();
    assert_eq!((stats.engine, stats.revision, stats.records, stats.queued), (kind, 1, 2, 0));
    assert_eq!((stats.failed, stats.stalled), (false, false));
    let one_state = store.read(|view| Ok((view.revision(), view.get(b"a")?, view.range(b"", b"", 9)?.len()))).unwrap();
    assert_eq!(one_state, (1, Some(Bytes::from_static(b"1")), 2));
    assert!(store.verify().unwrap().is_sound());
}

fn ranges(kind: EngineKind) {
    let place = Place::new(kind);
    let store = place.open();
    for key in ["a", "b", "b/1", "b/2", "b/3", "b0", "c", "d"] {
        put(&store, key, key);
    }
    assert_eq!(keys(store.range(b"b/", b"b0", 10).unwrap()), ["b/1", "b/2", "b/3"]);
    assert_eq!(keys(store.range(b"b/", &prefix_end(b"b/"), 2).unwrap()), ["b/1", "b/2"]);
    assert_eq!(keys(store.range_back(b"b/", b"b0", 2).unwrap()), ["b/3", "b/2"]);
    assert_eq!(keys(store.range(b"c", b"", 10).unwrap()), ["c", "d"]);
    assert!(store.range(b"c", b"a", 10).unwrap().is_empty());
    assert!(store.range(b"c", b"c", 10).unwrap().is_empty());
    assert!(store.range(b"", b"", 0).unwrap().is_empty());
    store
        .transact_blocking(|txn| {
            txn.delete("b/1")?;
            txn.delete("b/2")?;
            txn.put("b/25", "new")?;
            txn.put("a", "new")?;
            txn.put("z", "new")?;
            assert_eq!(keys(txn.range(b"b/", b"b0", 1)?), ["b/25"], "a limit counts what is left");
            assert_eq!(keys(txn.range(b"b/", b"b0", 10)?), ["b/25", "b/3"]);
            assert_eq!(keys(txn.range_back(b"", b"", 3)?), ["z", "d", "c"]);
            assert_eq!(pairs(txn.range(b"", b"b", 3)?), [("a".to_owned(), "new".to_owned())]);
            assert_eq!(keys(txn.range_back(b"a", b"b/3", 10)?), ["b/25", "b", "a"]);
            Ok(())
        })
        .unwrap();
    assert_eq!(keys(store.range(b"b/", b"b0", 10).unwrap()), ["b/25", "b/3"]);
}

fn limits(kind: EngineKind) {
    let place = Place::new(kind);
    let store = place.open();
    store.transact_blocking(|txn| txn.put(vec![1; KEY_MAX], vec![2; VALUE_MAX])).unwrap();
    assert_eq!(store.get(&[1; KEY_MAX]).unwrap().unwrap().len(), VALUE_MAX);
    let too_much = |result: Result<Committed<()>>| assert!(result.unwrap_err().is(Reason::StoreLimit));
    too_much(store.transact_blocking(|txn| txn.put(vec![1; KEY_MAX + 1], "")));
    too_much(store.transact_blocking(|txn| txn.delete(vec![1; KEY_MAX + 1])));
    too_much(store.transact_blocking(|txn| txn.put("a", vec![0; VALUE_MAX + 1])));
    too_much(store.transact_blocking(|txn| {
        txn.put("a", "x")?;
        txn.change(Bytes::from(vec![0; VALUE_MAX + 1]));
        Ok(())
    }));
    too_much(store.transact_blocking(|txn| {
        txn.put("a", "x")?;
        // An error that is not passed on makes the transaction fail all the same.
        assert!(txn.put("b", vec![0; VALUE_MAX + 1]).is_err());
        Ok(())
    }));
    too_much(store.transact_blocking(|txn| {
        for i in 0..=TXN_RECORDS_MAX as u32 {
            txn.put(i.to_be_bytes(), "")?;
        }
        Ok(())
    }));
    too_much(store.transact_blocking(|txn| {
        for i in 0..2_000_u32 {
            txn.put(i.to_be_bytes(), vec![0; VALUE_MAX])?;
        }
        Ok(())
    }));
    assert_eq!((store.revision(), store.stats().records), (1, 1));
    store
        .transact_blocking(|txn| {
            for i in 0..TXN_RECORDS_MAX as u32 {
                txn.put(i.to_be_bytes(), Bytes::from_static(b"v"))?;
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(store.stats().records, 1 + TXN_RECORDS_MAX as u64);
    assert_eq!(store.range(b"", b"", usize::MAX).unwrap().len(), 1 + TXN_RECORDS_MAX);
    assert!(store.verify().unwrap().is_sound());
}

fn change_log(kind: EngineKind) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let place = Place::new(kind);
    let store = place.open();
    for i in 0..50_u8 {
        store
            .transact_blocking(move |txn| {
                for part in 0..i % 4 {
                    // Some commits fill several blocks of the log.
                    txn.change(Bytes::from(vec![part; 100 + 200 * usize::from(i)]));
                }
                txn.put([i], "")
            })
            .unwrap();
    }
    let all = store.changes(0, 1_000).unwrap();
    assert_eq!(all.iter().map(|c| c.revision).collect::<Vec<_>>(), (1..=50).collect::<Vec<_>>());
    for (i, change) in (0..50_u8).zip(&all) {
        assert_eq!(change.payloads.len(), usize::from(i % 4));
        for (part, payload) in (0_u8..).zip(&change.payloads) {
            assert_eq!(payload, &vec![part; 100 + 200 * usize::from(i)]);
        }
    }
    for after in [0, 1, 17, 49, 50] {
        assert_eq!(store.changes(after, 1_000).unwrap(), all[after as usize..]);
        assert_eq!(store.changes(after, 3).unwrap(), all[after as usize..(after as usize + 3).min(50)]);
    }
    assert!(store.changes(0, 0).unwrap().is_empty());
    assert!(store.changes(51, 10).unwrap_err().is(Reason::CursorTooOld), "a revision that never was");

    runtime.block_on(store.trim_changes(20)).unwrap();
    let error = store.changes(19, 10).unwrap_err();
    assert!(error.is(Reason::CursorTooOld));
    assert_eq!(error.detail("oldest_cursor"), Some("20"));
    assert_eq!(store.changes(20, 1_000).unwrap(), all[20..]);
    assert_eq!((store.revision(), store.stats().oldest_cursor), (50, 20));
    runtime.block_on(store.trim_changes(5)).unwrap();
    assert_eq!(store.stats().oldest_cursor, 20, "what is trimmed stays trimmed");
    assert!(store.verify().unwrap().is_sound());
    runtime.block_on(store.trim_changes(u64::MAX)).unwrap();
    assert_eq!((store.stats().oldest_cursor, store.stats().log_blocks), (50, 0));
    assert!(store.changes(50, 10).unwrap().is_empty());
    put(&store, "more", "x");
    assert_eq!(store.changes(50, 10).unwrap().len(), 1);
    assert!(store.verify().unwrap().is_sound());
}

fn opening(kind: EngineKind) {
    let place = Place::new(kind);
    if !place.is_durable() {
        return;
    }
    let store = place.open();
    let instance = store.instance();
    put(&store, "a", "1");
    let at_once = StoreSettings { lock_wait: Duration::ZERO, ..place.settings() };
    assert!(Store::open(&at_once).unwrap_err().is(Reason::StoreBusy));
    drop(store);
    let store = Store::open(&at_once).unwrap();
    assert_eq!(store.instance(), instance);
    assert_eq!(store.get(b"a").unwrap().unwrap(), "1");
    assert_eq!(put(&store, "b", "2"), 2);
    drop(store);
    let other = if kind == EngineKind::Sled { EngineKind::Redb } else { EngineKind::Sled };
    let wrong = StoreSettings { engine: other, ..at_once.clone() };
    assert!(Store::open(&wrong).unwrap_err().is(Reason::SettingsInvalid), "never an empty store beside the real one");
    let newer = StoreSettings { schema: 3, ..at_once.clone() };
    drop(Store::open(&newer).unwrap());
    assert!(Store::open(&at_once).unwrap_err().is(Reason::StoreTooNew));
    assert_eq!(Store::open(&newer).unwrap().range(b"", b"", 9).unwrap().len(), 2);
    assert!(
        Store::open(&StoreSettings { directory: PathBuf::new(), ..newer }).unwrap_err().is(Reason::SettingsInvalid)
    );
}

fn leftovers_of_a_crash_do_no_harm(kind: EngineKind) {
    let place = Place::new(kind);
    if !place.is_durable() {
        return;
    }
    std::fs::create_dir_all(place.path().join("new-store/sled")).unwrap();
    std::fs::write(place.path().join("new-store/sled/db"), b"half").unwrap();
    let store = place.open();
    put(&store, "a", "1");
    drop(store);
    if kind == EngineKind::Sled {
        let unfinished = place.path().join("sled/snap.00000000000000FF.generating");
        std::fs::write(&unfinished, b"a snapshot that was being written when the power went").unwrap();
        assert_eq!(place.open().get(b"a").unwrap().unwrap(), "1");
        assert!(!unfinished.exists());
    }
    std::fs::create_dir_all(place.path().join("snapshots")).unwrap();
    std::fs::write(place.path().join("snapshots/unfinished-snapshot"), b"half").unwrap();
    let store = place.open();
    store.snapshot().unwrap();
    assert_eq!(store.snapshots().unwrap().len(), 1);
    assert_eq!(store.get(b"a").unwrap().unwrap(), "1");
}

/// An engine that lost its last commits, but is sound otherwise, does not pass for the real store.
fn an_older_state_is_noticed(kind: EngineKind) {
    let place = Place::new(kind);
    if !place.is_durable() {
        return;
    }
    let home = place.path().join(kind.word());
    let store = place.open();
    put(&store, "a", "1");
    drop(store);
    let old: Vec<_> = std::fs::read_dir(&home)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (std::fs::read(&path).unwrap(), path))
        .collect();
    let store = place.open();
    put(&store, "a", "2");
    drop(store);
    assert_eq!(place.open().get(b"a").unwrap().unwrap(), "2");
    std::fs::remove_dir_all(&home).unwrap();
    std::fs::create_dir(&home).unwrap();
    for (content, path) in old {
        std::fs::write(path, content).unwrap();
    }
    let error = Store::open(&place.settings()).unwrap_err();
    assert!(error.is(Reason::StoreCorrupt), "{error:?}");
    assert_eq!((error.detail("found_revision"), error.detail("expected_revision")), (Some("1"), Some("2")));
    std::fs::remove_file(place.path().join("witness")).unwrap();
    assert_eq!(place.open().get(b"a").unwrap().unwrap(), "1");
}

fn closing(kind: EngineKind) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let place = Place::new(kind);
    let store = place.open();
    runtime.block_on(async {
        let writers: Vec<_> = (0..50_u8)
            .map(|i| {
                let store = store.clone();
                tokio::spawn(async move { store.transact(move |txn| txn.put([i], "x")).await })
            })
            .collect();
        let mut written = Vec::new();
        let other = store.clone();
        store.transact(|txn| txn.put("first", "x")).await.unwrap();
        store.close().await;
        for (i, writer) in (0..50_u8).zip(writers) {
            match writer.await.unwrap() {
                Ok(_) => written.push(i),
                Err(error) => assert!(error.is(Reason::ShuttingDown), "{error:?}"),
            }
        }
        assert!(other.transact(|txn| txn.put("late", "x")).await.unwrap_err().is(Reason::ShuttingDown));
        assert!(other.get(b"first").unwrap_err().is(Reason::ShuttingDown));
        assert!(other.export(&mut Vec::new()).unwrap_err().is(Reason::ShuttingDown));
        if place.is_durable() {
            let again = Store::open(&StoreSettings { lock_wait: Duration::ZERO, ..place.settings() }).unwrap();
            assert_eq!(again.range(b"", b"first", 100).unwrap().len(), written.len());
            assert!(written.into_iter().all(|i| again.get(&[i]).unwrap().is_some()));
            assert_eq!(again.get(b"late").unwrap(), None);
        }
    });
}

/// Many tasks add to the same counters; nothing is lost, and the log tells each commit once.
fn serializable(kind: EngineKind) {
    const TASKS: u64 = 24;
    const EACH: u64 = 40;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let place = Place::new(kind);
    let store = place.open();
    runtime.block_on(async {
        let watcher = tokio::spawn({
            let store = store.clone();
            async move {
                let (mut revisions, mut cursor, mut seen) = (store.subscribe(), 0, Vec::<ChangeRecord>::new());
                while cursor < TASKS * EACH {
                    let newest = *revisions.borrow_and_update();
                    while cursor < newest {
                        let more = store.changes(cursor, 7).unwrap();
                        cursor = more.last().unwrap().revision;
                        seen.extend(more);
                    }
                    if cursor < TASKS * EACH {
                        revisions.changed().await.unwrap();
                    }
                }
                seen
            }
        });
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let store = store.clone();
                tokio::spawn(async move {
                    for n in 0..EACH {
                        let counter = format!("counter/{}", (task + n) % 3);
                        let done = store
                            .transact(move |txn| {
                                let old = txn
                                    .get(counter.as_bytes())?
                                    .map_or(0, |v| v.iter().fold(0, |a, b| a << 8 | u64::from(*b)));
                                txn.put(counter.as_str(), (old + 1).to_be_bytes().to_vec())?;
                                txn.put(format!("by/{task}/{n}"), counter.clone())?;
                                txn.change(Bytes::from(format!("{counter} {}", old + 1)));
                                Ok(txn.revision())
                            })
                            .await
                            .unwrap();
                        assert_eq!(done.value, done.revision);
                        assert!(store.revision() >= done.revision, "an answer before the revision was public");
                        assert!(
                            store.get(format!("by/{task}/{n}").as_bytes()).unwrap().is_some(),
                            "own writes are readable"
                        );
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let total: u64 = store
            .range(b"counter/", b"counter0", 10)
            .unwrap()
            .iter()
            .map(|(_, v)| u64::from_be_bytes(v[..].try_into().unwrap()))
            .sum();
        assert_eq!(total, TASKS * EACH);
        let seen = watcher.await.unwrap();
        assert_eq!(seen.iter().map(|c| c.revision).collect::<Vec<_>>(), (1..=TASKS * EACH).collect::<Vec<_>>());
        let mut counts = BTreeMap::new();
        for change in seen {
            let text = String::from_utf8(change.payloads[0].to_vec()).unwrap();
            let (counter, value) = text.split_once(' ').unwrap();
            let count = counts.entry(counter.to_owned()).or_insert(0_u64);
            *count += 1;
            assert_eq!(value.parse::<u64>().unwrap(), *count, "the log's order is the order of execution");
        }
        assert!(store.verify().unwrap().is_sound());
    });
}

/// Money moves between accounts while the store is exported; no copy shows a moment at which the sum was wrong.
fn export_while_writing(kind: EngineKind) {
    const ACCOUNTS: u64 = 1_500;
    let place = Place::new(kind);
    let store = place.open();
    store
        .transact_blocking(|txn| {
            for account in 0..ACCOUNTS {
                txn.put(format!("a/{account:05}"), 100_u64.to_be_bytes().to_vec())?;
            }
            Ok(())
        })
        .unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..3_u64)
        .map(|writer| {
            let (store, stop) = (store.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut n = writer;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    n += 3;
                    let (from, to) = (n * 7919 % ACCOUNTS, n * 104_729 % ACCOUNTS);
                    store
                        .transact_blocking(move |txn| {
                            let number = |v: Bytes| u64::from_be_bytes(v[..].try_into().unwrap());
                            let (from, to) = (format!("a/{from:05}"), format!("a/{to:05}"));
                            let have = txn.get(from.as_bytes())?.map_or(0, number);
                            if have == 1 {
                                txn.delete(&from)?
                            } else if have > 1 {
                                txn.put(from.as_str(), (have - 1).to_be_bytes().to_vec())?
                            } else {
                                return Ok(());
                            }
                            let other = txn.get(to.as_bytes())?.map_or(0, number);
                            txn.put(to.as_str(), (other + 1).to_be_bytes().to_vec())
                        })
                        .unwrap();
                }
            })
        })
        .collect();
    let mut copies = Vec::new();
    for _ in 0..3 {
        let mut copy = Vec::new();
        let summary = store.export(&mut copy).unwrap();
        assert!(store.verify().unwrap().is_sound());
        copies.push((summary, copy));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        writer.join().unwrap();
    }
    for ((summary, copy), kind) in copies.into_iter().zip(EngineKind::ALL) {
        let other = Place::new(kind);
        let store = Store::import(&other.settings(), &mut &copy[..]).unwrap();
        let money = store.range(b"a/", b"a0", 10_000).unwrap();
        assert_eq!(
            money.iter().map(|(_, v)| u64::from_be_bytes(v[..].try_into().unwrap())).sum::<u64>(),
            100 * ACCOUNTS
        );
        assert_eq!(store.revision(), summary.revision);
        assert_eq!(store.stats().records + store.stats().log_blocks, summary.records);
        assert!(store.verify().unwrap().is_sound());
        let mut again = Vec::new();
        let second = store.export(&mut again).unwrap();
        assert_eq!((second.revision, second.records, second.bytes), (summary.revision, summary.records, summary.bytes));
        // Head digest and end digest cover the instance, which is another one.
        assert!(copy[86..copy.len() - 32] == again[86..again.len() - 32], "the records are the same bytes");
    }
}

fn bad_copies_are_refused(kind: EngineKind) {
    let place = Place::new(kind);
    let store = place.open();
    for i in 0..30 {
        put(&store, &format!("k{i}"), "some value");
    }
    let mut copy = Vec::new();
    store.export(&mut copy).unwrap();
    let attempt = |bytes: &[u8]| {
        let other = Place::new(kind);
        let error = Store::import(&other.settings(), &mut &bytes[..]).unwrap_err();
        if other.is_durable() {
            assert!(!other.path().join("new-store").exists());
            assert!(
                Store::open(&other.settings()).unwrap().range(b"", b"", 1).unwrap().is_empty(),
                "nothing of it stays"
            );
        }
        error
    };
    let step = if kind == EngineKind::Memory { 1 } else { copy.len() / 6 };
    for cut in (0..copy.len()).step_by(step) {
        assert!(attempt(&copy[..cut]).is(Reason::StoreCorrupt), "cut at {cut}");
    }
    for at in (0..copy.len()).step_by(step) {
        let mut hurt = copy.clone();
        hurt[at] ^= 1 << (at % 8);
        let error = attempt(&hurt);
        assert!(error.is(Reason::StoreCorrupt) || error.is(Reason::StoreTooNew), "flipped at {at}: {error:?}");
    }
    assert!(attempt(&[&copy[..], b"x"].concat()).is(Reason::StoreCorrupt));
    assert!(attempt(b"").is(Reason::StoreCorrupt));
    if place.is_durable() {
        drop(store);
        assert!(Store::import(&place.settings(), &mut &copy[..]).unwrap_err().is(Reason::StoreBusy));
        assert_eq!(place.open().revision(), 30);
    }
}

fn snapshots(kind: EngineKind) {
    let place = Place::new(kind);
    let store = Store::open(&StoreSettings { snapshot_keep: 2, ..place.settings() }).unwrap();
    assert!(store.snapshots().unwrap().is_empty());
    for i in 1..=4_u64 {
        put(&store, "k", &i.to_string());
        let path = store.snapshot().unwrap();
        assert!(path.ends_with(format!("snapshots/rev-{i:020}.atr")), "{}", path.display());
    }
    let kept = store.snapshots().unwrap();
    assert_eq!(kept.len(), 2);
    for (path, value) in kept.iter().zip(["3", "4"]) {
        let other = Place::new(EngineKind::Memory);
        let copy = Store::import(&other.settings(), &mut std::fs::File::open(path).unwrap()).unwrap();
        assert_eq!(copy.get(b"k").unwrap().unwrap(), value);
        assert_ne!(copy.instance(), store.instance());
    }
}

/// Flips bits of the engine's files: afterwards each record is right or an error, never something else.
fn flipped_bits_on_disk(kind: EngineKind) {
    let file = match kind {
        EngineKind::Sled => "sled/db",
        EngineKind::Redb => "redb/data.redb",
        EngineKind::Memory => return,
    };
    let place = Place::new(kind);
    let store = place.open();
    let value = |i: u32| format!("value {i} ").repeat(20);
    for chunk in 0..20 {
        store
            .transact_blocking(move |txn| {
                (0..20).try_for_each(|i| txn.put(format!("k{}", chunk * 20 + i), value(chunk * 20 + i)))
            })
            .unwrap();
    }
    drop(store);
    let path = place.path().join(file);
    let sound = std::fs::read(&path).unwrap();
    let used: Vec<usize> = (0..sound.len()).filter(|&i| sound[i] != 0).collect();
    let mut noticed = 0;
    for round in 0..24 {
        let copy = Place::new(kind);
        for entry in std::fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().path()) {
            let to = copy.path().join(file).with_file_name(entry.file_name().unwrap());
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            if entry.is_file() {
                std::fs::copy(&entry, &to).unwrap();
            }
        }
        std::fs::copy(place.path().join("witness"), copy.path().join("witness")).unwrap();
        let mut hurt = sound.clone();
        let at = used[used.len() / 24 * round + round % 7];
        hurt[at] ^= 1 << (round % 8);
        std::fs::write(copy.path().join(file), &hurt).unwrap();
        let store = match Store::open(&copy.settings()) {
            Ok(store) => store,
            Err(error) => {
                assert!(!error.message().is_empty());
                noticed += 1;
                continue;
            }
        };
        let mut hit = false;
        for i in 0..400 {
            match store.get(format!("k{i}").as_bytes()) {
                Ok(Some(found)) => assert_eq!(found, value(i), "wrong bytes were served"),
                Ok(None) | Err(_) => hit = true,
            }
        }
        let sound = store.verify().is_ok_and(|report| report.is_sound());
        assert!(!hit || !sound, "verify says that all is well, and a record is gone or unreadable");
        noticed += u32::from(!sound);
    }
    assert!(noticed > 0, "no flip had any effect: the test flips the wrong bytes");
}

macro_rules! conformance {
    ($($engine:ident $kind:ident),*; $tests:tt) => { $(conformance!(@engine $engine $kind $tests);)* };
    (@engine $engine:ident $kind:ident ($($test:ident),*)) => {
        mod $engine {
            $(#[test] fn $test() { super::$test(super::EngineKind::$kind); })*
        }
    };
}

conformance! {
    memory Memory, sled Sled, redb Redb;
    (reads_and_writes, ranges, limits, change_log, opening, leftovers_of_a_crash_do_no_harm, an_older_state_is_noticed, closing, serializable,
     export_while_writing, bad_copies_are_refused, snapshots, flipped_bits_on_disk)
}

#[test]
fn the_end_of_a_prefix_is_the_next_key_that_is_not_below_it() {
    assert_eq!(prefix_end(b"a/"), b"a0");
    assert_eq!(prefix_end(b"a\xff\xff"), b"b");
    assert_eq!(prefix_end(b"\xff\xff"), b"");
    assert_eq!(prefix_end(b""), b"");
}

#[test]
fn engines_have_words() {
    for kind in EngineKind::ALL {
        assert_eq!(kind.word().parse::<EngineKind>().unwrap(), kind);
    }
    assert!("rocksdb".parse::<EngineKind>().unwrap_err().is(Reason::SettingsInvalid));
}
