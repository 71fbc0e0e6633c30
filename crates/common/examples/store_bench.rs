//! Durable commits per second of each engine, alone and with 64 writers.
//!
//! `cargo run --release -p atrium-common --example store_bench [DIRECTORY]`
//!
//! A *create* is what putting a file does to the metadata: two reads, a record of 300 bytes, a counter that all writers
//! share, and a change record. A *plain* commit writes one record of 200 bytes. *Records* are 10,000 records of 300 bytes in
//! transactions of 500 and of 1,000.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use atrium_common::store::{EngineKind, Store, StoreSettings};
use bytes::Bytes;

const WINDOW: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> Result<()> {
    let below = std::env::args_os().nth(1).unwrap_or_else(|| std::env::temp_dir().into_os_string());
    println!("{:<8} {:<22} {:>10} {:>9} {:>9} {:>9}", "engine", "work", "per s", "p50 ms", "p99 ms", "group");
    for engine in EngineKind::ALL {
        for writers in [1, 64] {
            measure(engine, Path::new(&below), "plain", writers).await?;
            measure(engine, Path::new(&below), "create", writers).await?;
        }
        for size in [500, 1_000] {
            bulk(engine, Path::new(&below), size).await?;
        }
        reads(engine, Path::new(&below)).await?;
    }
    Ok(())
}

fn open(engine: EngineKind, below: &Path) -> Result<(tempfile::TempDir, Store)> {
    let directory = tempfile::tempdir_in(below)?;
    let settings = StoreSettings { engine, directory: directory.path().join("store"), ..StoreSettings::default() };
    Ok((directory, Store::open(&settings)?))
}

async fn commit(store: &Store, kind: &'static str, writer: u64, n: u64) -> Result<()> {
    let spread = (writer << 40 | n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    store
        .transact(move |txn| {
            let mut key = vec![b'f', b'/'];
            key.extend_from_slice(&spread.to_be_bytes());
            if kind == "plain" {
                return txn.put(key, Bytes::from_static(&[7; 200]));
            }
            if txn.get(b"s/public/plans")?.is_some() || txn.get(&key)?.is_some() {
                return Ok(());
            }
            let used = txn.get(b"q/root")?.map_or(0, |v| v.iter().fold(0, |sum, b| sum << 8 | u64::from(*b)));
            txn.put("q/root", (used + 4_096).to_be_bytes().to_vec())?;
            txn.put(key, Bytes::from_static(&[7; 300]))?;
            txn.change(Bytes::from_static(&[7; 100]));
            Ok(())
        })
        .await?;
    Ok(())
}

async fn measure(engine: EngineKind, below: &Path, kind: &'static str, writers: u64) -> Result<()> {
    let (_directory, store) = open(engine, below)?;
    let started = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                for n in 0.. {
                    let before = Instant::now();
                    if before - started > WINDOW {
                        break;
                    }
                    commit(&store, kind, writer, n).await?;
                    times.push(before.elapsed());
                }
                anyhow::Ok(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let seconds = started.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).map_or(0.0, |t| t.as_secs_f64() * 1e3);
    let stats = store.stats();
    let group = stats.commits as f64 / stats.batches.max(1) as f64;
    let work = format!("{kind}, {writers} writers");
    let rate = times.len() as f64 / seconds;
    println!("{:<8} {work:<22} {rate:>10.0} {:>9.2} {:>9.2} {group:>9.1}", engine.word(), at(50), at(99));
    store.close().await;
    Ok(())
}

async fn bulk(engine: EngineKind, below: &Path, size: u64) -> Result<()> {
    let (_directory, store) = open(engine, below)?;
    let started = Instant::now();
    for part in 0..10_000 / size {
        store
            .transact(move |txn| {
                for i in part * size..(part + 1) * size {
                    let mut key = b"f/0123456789abcdef".to_vec();
                    key.extend_from_slice(format!("file-{i:06}").as_bytes());
                    if txn.get(&key)?.is_none() {
                        txn.put(key, Bytes::from_static(&[7; 300]))?;
                        txn.change(Bytes::from_static(&[7; 60]));
                    }
                }
                Ok(())
            })
            .await?;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{:<8} {:<22} {:>10.0} {:>25.3} s",
        engine.word(),
        format!("10,000 records / {size}"),
        1e4 / seconds,
        seconds
    );
    store.close().await;
    Ok(())
}

async fn reads(engine: EngineKind, below: &Path) -> Result<()> {
    const RECORDS: u64 = 100_000;
    let (_directory, store) = open(engine, below)?;
    for part in 0..RECORDS / 5_000 {
        store
            .transact(move |txn| {
                (part * 5_000..(part + 1) * 5_000)
                    .try_for_each(|i| txn.put(format!("f/{i:08}"), Bytes::from_static(&[7; 300])))
            })
            .await?;
    }
    let started = Instant::now();
    for i in 0..RECORDS {
        anyhow::ensure!(
            store.get(format!("f/{:08}", i * 7_919 % RECORDS).as_bytes())?.is_some(),
            "a record is missing"
        );
    }
    println!("{:<8} {:<22} {:>10.0}", engine.word(), "get, 1 thread", RECORDS as f64 / started.elapsed().as_secs_f64());
    let started = Instant::now();
    let mut from = b"f/".to_vec();
    let mut seen = 0;
    loop {
        let page = store.range(&from, b"f0", 1_000)?;
        let Some((last, _)) = page.last() else { break };
        from = [&last[..], b"\0"].concat();
        seen += page.len();
    }
    println!(
        "{:<8} {:<22} {:>10.0}",
        engine.word(),
        "range, pages of 1,000",
        seen as f64 / started.elapsed().as_secs_f64()
    );
    let started = Instant::now();
    let report = store.verify()?;
    println!("{:<8} {:<22} {:>10.0}", engine.word(), "verify", report.records as f64 / started.elapsed().as_secs_f64());
    store.close().await;
    Ok(())
}
