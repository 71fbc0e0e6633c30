//! Rates of cutting, storing and reading chunks on this machine.
//!
//! `cargo run --release -p atrium-common --example chunk_bench [DIRECTORY]`. Each figure is the best and the median of
//! five rounds, with the processor seconds of all threads per GiB; the content is noise, so that every chunk is new.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use atrium_common::chunk::{ChunkStore, ChunkStoreSettings, ChunkedPiece, Chunker, ParallelChunker, cut_points};
use atrium_common::model::{ChunkId, UploadId};
use bytes::Bytes;

const GIB: usize = 1 << 30;
const ROUNDS: usize = 5;
const SMALL_FILES: usize = 10_000;
const SMALL_BYTES: usize = 4096;
/// Small files given to one append, as one upload message of 1 MiB carries them.
const SMALL_BATCH: usize = 256;

fn main() -> Result<()> {
    let place: PathBuf = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(&place)?;
    let source = directory.path().join("source");
    write_noise(&source)?;

    rate("read 1 GiB from the page cache", GIB, || drain(File::open(&source)?))?;
    rate("cut 1 GiB, no hashing", GIB, || Ok(cut_points(File::open(&source)?).count()))?;
    rate("cut and hash 1 GiB, one thread", GIB, || Ok(Chunker::new(File::open(&source)?).count()))?;
    rate("cut and hash 1 GiB, two threads", GIB, || Ok(ParallelChunker::new(File::open(&source)?)?.count()))?;

    let pieces: Vec<ChunkedPiece> = Chunker::new(File::open(&source)?).collect::<io::Result<_>>()?;
    println!("  {} chunks, {} KiB on average", pieces.len(), GIB / pieces.len() / 1024);
    rate("hash 1 GiB of chunks", GIB, || Ok(pieces.iter().filter(|p| ChunkId::of(&p.data) == p.chunk.id).count()))?;
    rate("append 1 GiB + sync", GIB, || {
        let store = open(directory.path())?;
        let lease = store.lease(UploadId::generate());
        for piece in &pieces {
            store.append(piece.chunk.id, std::slice::from_ref(&piece.data), &lease)?;
        }
        store.sync_blocking()?;
        Ok(pieces.len())
    })?;
    rate("append 1 GiB + sync, two appenders", GIB, || {
        let store = open(directory.path())?;
        std::thread::scope(|scope| {
            let half = |odd: usize| {
                let (store, pieces) = (&store, &pieces);
                move || -> Result<()> {
                    let lease = store.lease(UploadId::generate());
                    for piece in pieces.iter().skip(odd).step_by(2) {
                        store.append(piece.chunk.id, std::slice::from_ref(&piece.data), &lease)?;
                    }
                    Ok(store.sync_blocking()?)
                }
            };
            let other = scope.spawn(half(1));
            half(0)()?;
            other.join().map_err(|_| anyhow::anyhow!("an appender died"))?
        })?;
        Ok(pieces.len())
    })?;

    let store = open(directory.path())?;
    let lease = store.lease(UploadId::generate());
    for piece in &pieces {
        store.append(piece.chunk.id, std::slice::from_ref(&piece.data), &lease)?;
    }
    store.sync_blocking()?;
    for verify in [false, true] {
        rate(if verify { "read 1 GiB, verified" } else { "read 1 GiB" }, GIB, || {
            pieces.iter().try_fold(0, |n, p| {
                ensure!(store.read(&p.chunk.id, 0..p.chunk.len, verify)?.len() == p.data.len());
                Ok(n + 1)
            })
        })?;
    }
    drop((lease, store));
    rate("open a store of 1 GiB", GIB, || {
        Ok(ChunkStore::open(&settings(directory.path()))?.stats().chunk_count as usize)
    })?;
    drop(pieces);

    let mut small = vec![0; SMALL_FILES * SMALL_BYTES];
    blake3::Hasher::new().update(b"small").finalize_xof().fill(&mut small);
    let small = Bytes::from(small);
    let files: Vec<(ChunkId, Vec<Bytes>)> = (0..SMALL_FILES)
        .map(|n| small.slice(n * SMALL_BYTES..(n + 1) * SMALL_BYTES))
        .map(|data| (ChunkId::of(&data), vec![data]))
        .collect();
    let seconds = rate("10,000 x 4 KiB append_many + sync", small.len(), || {
        let store = open(directory.path())?;
        let lease = store.lease(UploadId::generate());
        for batch in files.chunks(SMALL_BATCH) {
            store.append_many(batch, &lease)?;
        }
        store.sync_blocking()?;
        Ok(SMALL_FILES)
    })?;
    println!("  {:.0} files/s", SMALL_FILES as f64 / seconds);
    let seconds = rate("1,000 x (append 4 KiB + sync)", 1000 * SMALL_BYTES, || {
        let store = open(directory.path())?;
        let lease = store.lease(UploadId::generate());
        for (id, data) in &files[..1000] {
            store.append(*id, data, &lease)?;
            store.sync_blocking()?;
        }
        Ok(1000)
    })?;
    println!("  {:.0} durable appends/s", 1000.0 / seconds);
    Ok(())
}

fn settings(directory: &Path) -> ChunkStoreSettings {
    ChunkStoreSettings::new(directory.join("chunks"))
}

/// An empty store.
fn open(directory: &Path) -> Result<ChunkStore> {
    let settings = settings(directory);
    if settings.directory.exists() {
        std::fs::remove_dir_all(&settings.directory)?;
    }
    Ok(ChunkStore::open(&settings)?)
}

fn write_noise(path: &Path) -> Result<()> {
    let mut noise = blake3::Hasher::new().update(b"noise").finalize_xof();
    let mut file = File::create(path)?;
    let mut block = vec![0; 4 << 20];
    for _ in 0..GIB / block.len() {
        noise.fill(&mut block);
        file.write_all(&block)?;
    }
    file.sync_all().context("the source could not be written")
}

fn drain(mut file: File) -> Result<usize> {
    let mut block = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match file.read(&mut block)? {
            0 => return Ok(total),
            n => total += n,
        }
    }
}

/// Runs it several times, prints the rates, gives the median of the seconds.
fn rate(what: &str, bytes: usize, mut work: impl FnMut() -> Result<usize>) -> Result<f64> {
    let mut seconds = Vec::new();
    let mut processor = Vec::new();
    for _ in 0..ROUNDS {
        let (begun, before) = (Instant::now(), processor_seconds()?);
        std::hint::black_box(work()?);
        seconds.push(begun.elapsed().as_secs_f64());
        processor.push(processor_seconds()? - before);
    }
    seconds.sort_by(f64::total_cmp);
    processor.sort_by(f64::total_cmp);
    let rate = |s: f64| bytes as f64 / s / 1e9;
    let (median, cost) = (seconds[ROUNDS / 2], processor[ROUNDS / 2] * GIB as f64 / bytes as f64);
    println!("{what:40} best {:6.2}  median {:6.2} GB/s  {cost:5.2} CPU s/GiB", rate(seconds[0]), rate(median));
    Ok(median)
}

/// User and system time of this process (fields 14 and 15 of /proc/self/stat, in hundredths).
fn processor_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').context("no process name in /proc/self/stat")?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).context("short /proc/self/stat").and_then(|f| Ok(f.parse::<f64>()?));
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}
