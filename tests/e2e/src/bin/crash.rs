//! `make crash`: kills the server again and again while clients work, at random instants and at chosen steps of writing,
//! and checks after each restart that nothing acknowledged is lost, nothing half done is visible, quota equals the sum,
//! and the change log has no gap.
//!
//! A failing round prints its seed.

use anyhow::{Context, Result, anyhow, bail, ensure};
use atrium_e2e::bench::micro::sign_in;
use atrium_e2e::{Office, sample};
use bytes::Bytes;
use clap::Parser;
use common::bulk::{Rope, upload_chunks};
use common::model::{ChunkId, UploadId};
use common::rpc::OfficeConnection;
use proto::v1;
use proto::v1::file_commit::Expected;
use proto::v1::file_service_client::FileServiceClient;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

const CLIENTS: u64 = 4;
const ROOT: &str = "home";

/// A file's content, by which it can be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Content {
    seed: u64,
    length: usize,
}

impl Content {
    fn bytes(self) -> Vec<u8> {
        sample::bytes(self.seed, self.length)
    }
}

/// What a client did to its own directory; only its own, so that its order is the order.
#[derive(Clone, Debug)]
enum Step {
    Put(String, Content),
    Move(String, String),
    Delete(String),
}

/// What must be there, and the one step that may or may not have happened.
#[derive(Clone, Debug, Default)]
struct Model {
    files: BTreeMap<String, Content>,
    charged: u64,
    changes: u64,
    acknowledged: u64,
    pending: Option<Step>,
    next: u64,
}

impl Model {
    fn apply(&mut self, step: &Step) {
        match step {
            Step::Put(name, content) => {
                self.files.insert(name.clone(), *content);
                self.charged += content.length as u64;
            }
            Step::Move(from, to) => {
                if let Some(content) = self.files.remove(from) {
                    self.files.insert(to.clone(), content);
                }
            }
            Step::Delete(name) => {
                self.files.remove(name);
            }
        }
        self.changes += 1;
    }

    /// The next step. Names are new, so that a step that was not answered cannot be taken for another.
    fn choose(&mut self, client: u64, rng: &mut SmallRng) -> Step {
        self.next += 1;
        let fresh = format!("c{client}/{:06}", self.next);
        let old = (!self.files.is_empty())
            .then(|| self.files.keys().nth(rng.random_range(0..self.files.len())).cloned())
            .flatten();
        let length = match rng.random_range(0..10) {
            0 => 3_000_000 + rng.random_range(0..2_000_000),
            1 => 0,
            _ => rng.random_range(1..20_000),
        };
        let content = Content { seed: client << 40 | self.next, length };
        match (rng.random_range(0..10), old) {
            (0, Some(old)) => Step::Delete(old),
            (1 | 2, Some(old)) => Step::Move(old, fresh),
            // Not empty: the same content again is no change, and the log would rightly not tell of it.
            (3 | 4, Some(old)) => Step::Put(old, Content { length: length.max(1), ..content }),
            _ => Step::Put(fresh, content),
        }
    }
}

fn path(name: &str) -> Option<v1::Path> {
    Some(v1::Path { root: ROOT.to_owned(), path: name.to_owned() })
}

async fn perform(connection: &OfficeConnection, step: &Step) -> Result<()> {
    let mut files = FileServiceClient::new(connection.control());
    match step {
        Step::Put(name, content) => {
            let data = Bytes::from(content.bytes());
            let pieces: Vec<Bytes> =
                (0..data.len()).step_by(1 << 20).map(|i| data.slice(i..data.len().min(i + (1 << 20)))).collect();
            let upload = UploadId::generate();
            let chunks: Vec<(ChunkId, Rope)> = pieces.iter().map(|p| (ChunkId::of(p), Rope::from(p.clone()))).collect();
            if !chunks.is_empty() {
                upload_chunks(connection.bulk(), upload, tokio_stream::iter(chunks.clone()))
                    .await
                    .map_err(|e| anyhow!("{e:?}"))?;
            }
            let commit = v1::FileCommit {
                path: path(name),
                chunks: chunks
                    .iter()
                    .map(|(id, data)| v1::Chunk {
                        digest: Bytes::copy_from_slice(id.as_bytes()),
                        length_bytes: data.len() as u32,
                    })
                    .collect(),
                expected: Some(Expected::Any(true)),
                make_parents: true,
                ..Default::default()
            };
            let request = v1::CommitFilesRequest { upload_id: upload.to_string(), files: vec![commit] };
            let answer = files.commit_files(request).await?.into_inner();
            match answer.results.into_iter().next().and_then(|r| r.result) {
                Some(v1::file_commit_result::Result::Entry(_)) => Ok(()),
                other => bail!("{other:?}"),
            }
        }
        Step::Move(from, to) => {
            let request = v1::MoveEntryRequest { source: path(from), destination: path(to), ..Default::default() };
            files.move_entry(request).await?;
            Ok(())
        }
        Step::Delete(name) => {
            files.delete_entry(v1::DeleteEntryRequest { path: path(name), ..Default::default() }).await?;
            Ok(())
        }
    }
}

/// Works until the server dies.
async fn work(connection: OfficeConnection, mut model: Model, client: u64, mut rng: SmallRng) -> Result<Model> {
    loop {
        let step = model.choose(client, &mut rng);
        model.pending = Some(step.clone());
        match tokio::time::timeout(Duration::from_secs(30), perform(&connection, &step)).await {
            Ok(Ok(())) => {
                model.apply(&step);
                model.acknowledged += 1;
                model.pending = None;
            }
            Ok(Err(error)) => {
                let died = error.downcast_ref::<tonic::Status>().map_or_else(
                    || {
                        format!("{error:?}").contains("SERVER_UNREACHABLE")
                            || format!("{error:?}").contains("Unavailable")
                    },
                    |s| matches!(s.code(), tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Unknown),
                );
                ensure!(died, "the server refused a good step {step:?}: {error:?}");
                return Ok(model);
            }
            Err(_) => bail!("a step hung: {step:?}"),
        }
    }
}

/// What the server has in a client's directory: names with size, version and manifest.
async fn listing(connection: &OfficeConnection, client: u64) -> Result<BTreeMap<String, v1::Entry>> {
    let mut files = FileServiceClient::new(connection.control());
    let mut out = BTreeMap::new();
    let mut token = String::new();
    loop {
        let request = v1::ListEntriesRequest { path: path(&format!("c{client}")), page_size: 1000, page_token: token };
        let page = match files.list_entries(request).await {
            Ok(page) => page.into_inner(),
            // Nothing was acknowledged yet.
            Err(status) if status.code() == tonic::Code::NotFound => return Ok(out),
            Err(status) => return Err(status.into()),
        };
        for entry in page.entries {
            out.insert(format!("c{client}/{}", entry.display_name), entry);
        }
        token = page.next_page_token;
        if token.is_empty() {
            return Ok(out);
        }
    }
}

async fn content(connection: &OfficeConnection, name: &str) -> Result<Vec<u8>> {
    let item = v1::DownloadItem { path: path(name), ..Default::default() };
    let request = v1::DownloadRequest { items: vec![item], ..Default::default() };
    let mut stream = common::bulk::download(connection.bulk(), &request).await.map_err(|e| anyhow!("{e:?}"))?;
    let mut out = Vec::new();
    while let Some(part) = stream.next().await.map_err(|e| anyhow!("{e:?}"))? {
        match part.part {
            common::bulk::Part::Data { offset, data } => {
                ensure!(offset == out.len() as u64, "a hole");
                out.extend_from_slice(&data.to_bytes());
            }
            common::bulk::Part::Failed(error) => bail!("{name}: {error:?}"),
            _ => {}
        }
    }
    Ok(out)
}

/// Settles the pending step by what is there, then compares everything; contents of what this round touched or of all.
async fn check(connection: &OfficeConnection, client: u64, model: &mut Model, all: bool) -> Result<()> {
    let there = listing(connection, client).await?;
    let same = |model: &Model| {
        there.len() == model.files.len()
            && model.files.iter().all(|(n, c)| there.get(n).is_some_and(|e| e.size_bytes == c.length as u64))
    };
    let mut recheck = Vec::new();
    if let Some(step) = model.pending.take() {
        let mut done = model.clone();
        done.apply(&step);
        // A put over a file of the same length cannot be told by the listing; its content decides.
        let happened = match &step {
            Step::Put(name, new) if same(model) && same(&done) => content(connection, name).await? == new.bytes(),
            _ => same(&done),
        };
        if happened {
            *model = done;
        }
        if let Step::Put(name, _) = &step {
            recheck.push(name.clone());
        }
    }
    if !same(model) {
        let names: Vec<&String> = there.keys().collect();
        bail!("client {client}: the server has {names:?}, acknowledged was {:?}", model.files.keys());
    }
    let last = format!("c{client}/{:06}", model.next.saturating_sub(12));
    for (name, wanted) in &model.files {
        if all || *name >= last || recheck.contains(name) {
            ensure!(content(connection, name).await? == wanted.bytes(), "{name} has other content");
        }
    }
    Ok(())
}

/// Counts changes by client from a cursor to the end of the log.
async fn changes(
    connection: &OfficeConnection,
    cursor: u64,
    revision: u64,
    counts: &mut BTreeMap<u64, u64>,
) -> Result<u64> {
    let mut watch = proto::v1::watch_service_client::WatchServiceClient::new(connection.control());
    let request = v1::WatchRequest { roots: vec![ROOT.to_owned()], cursor };
    let mut stream = watch.watch(request).await?.into_inner();
    let mut at = cursor;
    while at < revision {
        let message = tokio::time::timeout(Duration::from_secs(30), stream.message()).await;
        let message = message.context("the watch stood still")??.context("the watch ended")?;
        ensure!(message.cursor >= at, "the cursor went back");
        at = message.cursor;
        for change in message.changes {
            let name = change.path.map(|p| p.path).unwrap_or_default();
            if let Some((client, _)) = name.strip_prefix('c').and_then(|n| n.split_once('/')) {
                *counts.entry(client.parse()?).or_default() += 1;
            }
        }
    }
    Ok(at)
}

fn compile_killer(directory: &Path) -> Option<PathBuf> {
    let source = directory.join("killat.c");
    std::fs::write(&source, include_str!("../../killat.c")).ok()?;
    let library = directory.join("killat.so");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
    built.is_ok_and(|s| s.success()).then_some(library)
}

/// Kills the central server again and again while clients work, and checks after each restart that nothing acknowledged is
/// lost.
#[derive(Parser)]
#[command(name = "crash", max_term_width = 100)]
struct Arguments {
    /// How often
    #[arg(long, default_value_t = 200, value_name = "N")]
    rounds: u64,
    /// That of a run that failed, to do the same again
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    common::tls::install_provider();
    match begin() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("crash: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn begin() -> Result<ExitCode> {
    let Arguments { rounds, seed } = Arguments::parse();
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    let scratch = tempfile::Builder::new().prefix("atrium-crash-").tempdir()?;
    let killer = compile_killer(scratch.path());
    if killer.is_none() {
        println!("no C compiler: only random instants, no chosen steps");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = run(&runtime, scratch.path(), rounds, seed, killer.as_deref());
    if let Err(error) = done {
        println!("crash: FAILED, seed {seed}: {error:#}");
        // The data stays for whoever looks into it.
        println!("data: {}", scratch.keep().display());
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn run(runtime: &tokio::runtime::Runtime, scratch: &Path, rounds: u64, seed: u64, killer: Option<&Path>) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut office = Office::start(&scratch.join("office"), &[])?;
    office.add_user("crash", "correct horse crash")?;
    let mut models: Vec<Model> = vec![Model::default(); CLIENTS as usize];
    let (mut connection, token) = runtime.block_on(sign_in(&office, "crash", "correct horse crash"))?;
    let mut cursor = runtime.block_on(first_cursor(&connection))?;
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    let mut by_step = 0;
    for round in 1..=rounds {
        // Every other round dies at a step of its own writing, which is set when it starts.
        let step = (killer.is_some() && round % 2 == 0).then(|| rng.random_range(1..1500u64));
        if let (Some(step), Some(killer)) = (step, killer) {
            office.kill()?;
            let armed =
                office.restart_with(&[("LD_PRELOAD", &killer.to_string_lossy()), ("KILL_AT", &step.to_string())]);
            // The chosen step may come before the server is ready: that is a round too.
            if armed.is_err() {
                by_step += 1;
                office.restart()?;
            }
        }
        connection = runtime.block_on(reconnect(&office, &token))?;
        let working: Vec<_> = models
            .drain(..)
            .enumerate()
            .map(|(i, model)| {
                let rng = SmallRng::seed_from_u64(seed ^ (round << 8) ^ i as u64);
                runtime.spawn(work(connection.clone(), model, i as u64, rng))
            })
            .collect();
        let patience = Duration::from_millis(if step.is_some() { 1500 } else { rng.random_range(5..300) });
        let died = office.server()?.wait_up_to(patience)?.is_some();
        by_step += u64::from(died && step.is_some());
        office.kill_if_running()?;
        for task in working {
            let model = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), task).await });
            models.push(model.context("a client hung")???);
        }
        office.restart()?;
        connection = runtime.block_on(reconnect(&office, &token))?;
        let all = round % 25 == 0 || round == rounds;
        for (client, model) in models.iter_mut().enumerate() {
            runtime
                .block_on(check(&connection, client as u64, model, all))
                .with_context(|| format!("round {round}"))?;
        }
        let status = office.admin(&["admin", "status", "--json"], "")?.json()?;
        let revision = status["revision"].as_u64().with_context(|| format!("no revision in {status}"))?;
        cursor = runtime.block_on(changes(&connection, cursor, revision, &mut counts)).context("change log")?;
        for (client, model) in models.iter().enumerate() {
            let seen = counts.get(&(client as u64)).copied().unwrap_or(0);
            ensure!(
                seen == model.changes,
                "round {round}, client {client}: {seen} changes in the log, {} were made",
                model.changes
            );
        }
        let charged: u64 = models.iter().map(|m| m.charged).sum();
        let used = runtime.block_on(used_bytes(&connection))?;
        ensure!(used == charged, "round {round}: {used} bytes are charged, {charged} were put");
        if round % 20 == 0 {
            let steps: u64 = models.iter().map(|m| m.acknowledged).sum();
            println!("round {round}: {steps} acknowledged steps, all there; {by_step} deaths at chosen steps");
        }
    }
    drop(connection);
    let scrub = office.admin(&["admin", "scrub", "--json"], "")?.text();
    ensure!(!scrub.contains("\"damaged\":[\""), "damaged chunks: {scrub}");
    office.stop()?;
    let steps: u64 = models.iter().map(|m| m.acknowledged).sum();
    println!(
        "crash: {rounds} rounds, {by_step} of them at chosen steps, {steps} acknowledged steps, nothing lost (seed {seed})"
    );
    Ok(())
}

async fn reconnect(office: &Office, token: &str) -> Result<OfficeConnection> {
    let ca = std::fs::read_to_string(office.ca_file())?;
    let options = common::rpc::ConnectOptions::new(office.address().to_string(), ca).token(token);
    OfficeConnection::connect(&options).await.map_err(|e| anyhow!("{e:?}"))
}

async fn first_cursor(connection: &OfficeConnection) -> Result<u64> {
    let mut watch = proto::v1::watch_service_client::WatchServiceClient::new(connection.control());
    let request = v1::WatchRequest { roots: vec![ROOT.to_owned()], cursor: 0 };
    let mut stream = watch.watch(request).await?.into_inner();
    Ok(stream.message().await?.context("the watch ended")?.cursor)
}

async fn used_bytes(connection: &OfficeConnection) -> Result<u64> {
    let mut directories = proto::v1::directory_service_client::DirectoryServiceClient::new(connection.control());
    let request = v1::GetDirectoryRequest { name: ROOT.to_owned() };
    Ok(directories.get_directory(request).await?.into_inner().used_bytes)
}
