//! How fast one node fetches from another: both in this process, over TLS on loopback, files in the page cache.
//!
//! ```text
//! cargo run --release -p peer-node --example transfer_bench -- [DIRECTORY] [MIB] [ROUNDS]
//! ```
//! Prints the rate, and the processor time of both sides together. The 20-node swarm at the end is simulated.

use common::chunk::{CHUNK_MIN, ParallelChunker};
use common::clock::SystemClock;
use common::error::Result;
use common::model::{ChunkId, ChunkRef, DeviceId};
use common::store::Store;
use peer_node::model::{Content, Scope, ShareId};
use peer_node::net::testing::{Members, TestNode};
use peer_node::source::{ChunkSource, FileStamp, Holdings, Place, Sources};
use peer_node::transfer::sim::{Random, SimNode, SimSetup, floor, lengths, run};
use peer_node::transfer::{NetworkPeers, Order, OrderFile, Progress, State, TransferSettings, Transfers};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tonic::service::Routes;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type AnyError = Box<dyn std::error::Error>;

/// Files whose chunks are known.
#[derive(Default)]
struct Shared {
    files: Vec<(PathBuf, FileStamp)>,
    places: HashMap<ChunkId, (usize, u64, u32)>,
}

impl Shared {
    fn add(&mut self, path: &Path, content: &Content) -> Result<()> {
        self.files.push((path.to_owned(), FileStamp::of(&fs::metadata(path)?)));
        let mut offset = 0;
        for chunk in content.chunks.iter() {
            self.places.insert(chunk.id, (self.files.len() - 1, offset, chunk.len));
            offset += u64::from(chunk.len);
        }
        Ok(())
    }
}

impl ChunkSource for Shared {
    fn may_have(&self, _: &Scope, _: &DeviceId) -> Result<bool> {
        Ok(true)
    }

    fn locate(&self, _: &Scope, chunk: &ChunkId) -> Result<Option<Place>> {
        Ok(self.places.get(chunk).map(|(file, offset, len)| {
            let (path, stamp) = &self.files[*file];
            Place::File { path: path.clone(), offset: *offset, len: *len, stamp: Some(*stamp) }
        }))
    }

    fn holdings(&self, _: &Scope, _: &[[u8; 32]]) -> Result<Holdings> {
        Ok(Holdings { complete: !self.places.is_empty(), have: Vec::new() })
    }

    fn moved(&self, _: &Scope, _: &ChunkId, _: &Place) {}
}

async fn node(members: &Members, state: &Path, shared: Shared) -> (TestNode, Transfers) {
    let sources = Sources::default();
    sources.register(Arc::new(shared));
    let mut settings = TransferSettings::new(state);
    settings.traffic = None;
    let mut opened = None;
    let slot = &mut opened;
    let test = TestNode::start(members, move |network| {
        let peers = Arc::new(NetworkPeers::new(network.clone(), Arc::new(|d: &DeviceId| d.to_string())));
        let transfers = Transfers::open(Store::memory(), peers, sources, settings, Arc::new(SystemClock));
        let transfers = transfers.expect("a new directory");
        let routes = Routes::new(transfers.server());
        *slot = Some(transfers);
        routes
    })
    .await;
    (test, opened.expect("the routes were made"))
}

/// Seconds of processor time of this process.
fn processor_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

struct Bench {
    source: TestNode,
    target: TestNode,
    transfers: Transfers,
    directory: PathBuf,
    scope: Scope,
    _served_by: Transfers,
}

impl Bench {
    async fn fetch(&self, name: &str, files: &[OrderFile]) -> Result<(Progress, f64, f64), AnyError> {
        let destination = self.directory.join(name);
        let order = Order {
            scope: self.scope.clone(),
            title: name.to_owned(),
            destination: destination.clone(),
            files: files.to_vec(),
            directories: Vec::new(),
            sources: vec![self.source.device()],
            overwrite: false,
        };
        let (began, used) = (Instant::now(), processor_seconds());
        let id = self.transfers.start(order).await?;
        let done = self.transfers.wait(&id).await?;
        let (seconds, used) = (began.elapsed().as_secs_f64(), processor_seconds() - used);
        if done.state != State::Done {
            return Err(format!("{done:?}").into());
        }
        self.transfers.wait_settled(&id).await?;
        fs::remove_dir_all(&destination)?;
        Ok((done, seconds, used))
    }
}

fn random_file(path: &Path, seed: u64, mib: usize) -> Result<(), AnyError> {
    let mut bytes = vec![0; 1 << 20];
    let mut file = File::create(path)?;
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    for _ in 0..mib {
        reader.fill(&mut bytes);
        file.write_all(&bytes)?;
    }
    Ok(())
}

fn content_of(path: &Path) -> Result<Content, AnyError> {
    let bytes = fs::metadata(path)?.len();
    if bytes < CHUNK_MIN as u64 {
        let data = fs::read(path)?;
        return Ok(Content::of(vec![ChunkRef { id: ChunkId::of(&data), len: data.len() as u32 }]));
    }
    let chunks: std::io::Result<Vec<ChunkRef>> =
        ParallelChunker::new(File::open(path)?)?.map(|p| p.map(|p| p.chunk)).collect();
    Ok(Content::of(chunks?))
}

async fn measure(base: PathBuf, mib: usize, rounds: usize) -> Result<(), AnyError> {
    let directory = tempfile::Builder::new().prefix("transfer-bench").tempdir_in(base)?;
    let members = Members::default();
    let mut shared = Shared::default();
    let order_file = |path: &str, content| OrderFile { path: path.into(), mtime_ns: 0, mode: 0o644, content };
    let big = directory.path().join("big");
    random_file(&big, 1, mib)?;
    let content = content_of(&big)?;
    shared.add(&big, &content)?;
    let large = vec![order_file("big", content)];
    let mut small = Vec::new();
    fs::create_dir(directory.path().join("small"))?;
    for n in 0..10_000u64 {
        let path = directory.path().join(format!("small/{n}"));
        let mut data = vec![0; 4096];
        blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut data);
        fs::write(&path, &data)?;
        let content = content_of(&path)?;
        shared.add(&path, &content)?;
        small.push(order_file(&format!("d{}/{n}", n % 20), content));
    }
    let (source, served_by) = node(&members, &directory.path().join("state-a"), shared).await;
    let (target, transfers) = node(&members, &directory.path().join("state-b"), Shared::default()).await;
    target.knows(&source);
    let scope = Scope::Share(ShareId::generate());
    let bench =
        Bench { source, target, transfers, directory: directory.path().to_owned(), scope, _served_by: served_by };
    bench.target.network.link(bench.source.device()).await?;
    for round in 0..rounds {
        let (done, seconds, used) = bench.fetch(&format!("large-{round}"), &large).await?;
        let gib = done.total_bytes as f64 / f64::from(1 << 30);
        println!(
            "{mib} MiB: {:.0} MB/s, {:.2} processor seconds a GiB, {:.3} times the content came",
            done.total_bytes as f64 / seconds / 1e6,
            used / gib,
            done.fetched_bytes as f64 / done.total_bytes as f64,
        );
        let (_, seconds, used) = bench.fetch(&format!("small-{round}"), &small).await?;
        println!("10,000 x 4 KiB: {:.0} files/s ({seconds:.2} s), {used:.2} processor seconds", 10_000.0 / seconds);
    }
    Ok(())
}

fn simulate(takers: usize, bytes: u64, seed: u64) {
    let rate = 12.5e6;
    let mut nodes = vec![SimNode { seed: true, ..SimNode::new(rate) }];
    nodes.extend((0..takers).map(|_| SimNode::new(rate)));
    let pieces = lengths(bytes, &mut Random::new(seed + 1_000));
    let setup = SimSetup { seed, nodes, pieces, latency_us: 300, until_us: 100_000_000_000 };
    let (outcome, floor) = (run(&setup), floor(&setup));
    println!(
        "simulated, {takers} nodes, {} MB, 100 Mbit/s: last {:.3} x floor, median {:.3}, source sent {:.3} copies",
        bytes / 1_000_000,
        outcome.last() / floor,
        outcome.median() / floor,
        outcome.sent[0] as f64 / bytes as f64,
    );
}

fn main() -> Result<(), AnyError> {
    common::tls::install_provider();
    let mut args = std::env::args().skip(1);
    let base = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let mib = args.next().map_or(Ok(1024), |t| t.parse())?;
    let rounds = args.next().map_or(Ok(3), |t| t.parse())?;
    tokio::runtime::Runtime::new()?.block_on(measure(base, mib, rounds))?;
    for seed in 0..3 {
        simulate(8, 200_000_000, seed);
        simulate(20, 1_000_000_000, seed);
    }
    Ok(())
}
