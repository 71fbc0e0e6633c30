//! Metadata: durable creates, look-ups, lists, renames, watchers. Over real connections, from this process. Creates and
//! look-ups are measured beside what people keep metadata in ([`super::metadata_peers`]), in turns.

use super::metadata_peers::{self, Peer, RECORDS};
use super::{median, percentile_ms, usage};
use crate::Office;
use anyhow::{Context, Result, ensure};
use common::rpc::{ConnectOptions, OfficeChannel, OfficeConnection};
use proto::v1;
use proto::v1::file_service_client::FileServiceClient;
use proto::v1::session_service_client::SessionServiceClient;
use proto::v1::watch_service_client::WatchServiceClient;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A measured figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
}

fn figure(name: impl Into<String>, value: f64, unit: &'static str) -> Figure {
    Figure { name: name.into(), value, unit }
}

/// A connection to the office with a new session of this user.
///
/// # Errors
/// The server refuses.
pub async fn sign_in(office: &Office, user: &str, password: &str) -> Result<(OfficeConnection, String)> {
    let ca = std::fs::read_to_string(office.ca_file())?;
    let options = ConnectOptions::new(office.address().to_string(), ca);
    let connection = OfficeConnection::connect(&options).await.map_err(|e| anyhow::anyhow!("{e:?}"))?;
    let request = v1::LoginRequest {
        user: user.to_owned(),
        password: password.to_owned(),
        purpose: "benchmark".to_owned(),
        lifetime_seconds: 0,
    };
    let token = SessionServiceClient::new(connection.control()).login(request).await?.into_inner().token;
    connection.set_token(Some(&token)).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    Ok((connection, token))
}

fn path(path: &str) -> Option<v1::Path> {
    Some(v1::Path { root: "home".to_owned(), path: path.to_owned() })
}

fn empty_file(name: &str) -> v1::FileCommit {
    v1::FileCommit {
        path: path(name),
        make_parents: true,
        expected: Some(v1::file_commit::Expected::Absent(true)),
        ..v1::FileCommit::default()
    }
}

async fn commit(files: &mut FileServiceClient<OfficeChannel>, list: Vec<v1::FileCommit>) -> Result<()> {
    let upload_id = uuid::Uuid::new_v4().to_string();
    let answer = files.commit_files(v1::CommitFilesRequest { upload_id, files: list }).await?.into_inner();
    for result in answer.results {
        if let Some(v1::file_commit_result::Result::Error(error)) = result.result {
            anyhow::bail!("{}: {}", error.reason, error.message);
        }
    }
    Ok(())
}

/// Fills a directory with this many empty files.
async fn fill(connection: &OfficeConnection, directory: &str, count: u32) -> Result<Duration> {
    let begin = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let mut files = FileServiceClient::new(connection.control());
        let (next, directory) = (next.clone(), directory.to_owned());
        tasks.push(tokio::spawn(async move {
            loop {
                let from = next.fetch_add(1000, Ordering::Relaxed);
                if from >= u64::from(count) {
                    return Ok::<(), anyhow::Error>(());
                }
                let to = (from + 1000).min(u64::from(count));
                commit(&mut files, (from..to).map(|i| empty_file(&format!("{directory}/{i:07}"))).collect()).await?;
            }
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(begin.elapsed())
}

/// Durable single-file commits by this many clients at once.
async fn creates(connection: &OfficeConnection, clients: usize, count: u64, round: usize) -> Result<f64> {
    let next = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..clients {
        let mut files = FileServiceClient::new(connection.control());
        let next = next.clone();
        tasks.push(tokio::spawn(async move {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= count {
                    return Ok::<(), anyhow::Error>(());
                }
                commit(&mut files, vec![empty_file(&format!("creates-{clients}-{round}/{i:07}"))]).await?;
            }
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(count as f64 / begin.elapsed().as_secs_f64())
}

async fn stats(connection: &OfficeConnection, clients: usize, count: u64) -> Result<f64> {
    let next = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..clients {
        let mut files = FileServiceClient::new(connection.control());
        let next = next.clone();
        tasks.push(tokio::spawn(async move {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= count {
                    return Ok::<(), anyhow::Error>(());
                }
                let request = v1::GetEntryRequest { path: path(&format!("list/{:07}", i * 7919 % RECORDS)) };
                files.get_entry(request).await?;
            }
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(count as f64 / begin.elapsed().as_secs_f64())
}

/// What is measured beside others.
#[derive(Clone, Copy)]
enum Work {
    CreatesOfOne,
    CreatesOfMany,
    LookUps,
}

impl Work {
    fn title(self) -> &'static str {
        match self {
            Work::CreatesOfOne => "durable creates, 1 client",
            Work::CreatesOfMany => "durable creates, 64 clients",
            Work::LookUps => "look-ups, 64 in flight",
        }
    }

    /// Rate of Atrium, or of a peer.
    async fn measure(self, connection: &OfficeConnection, peer: Option<&Peer>, round: usize) -> Result<f64> {
        let (clients, count) = match self {
            Work::CreatesOfOne => (1, 3_000),
            Work::CreatesOfMany => (64, 40_000),
            Work::LookUps => (64, 60_000),
        };
        match (self, peer) {
            (Work::LookUps, None) => stats(connection, clients, count).await,
            (Work::LookUps, Some(peer)) => peer.look_ups(clients, count).await,
            (_, None) => creates(connection, clients, count, round).await,
            (_, Some(peer)) => peer.creates(clients, count, round).await,
        }
    }
}

/// Rounds of what is measured beside others.
const ROUNDS: usize = 3;

/// The same work by all, who goes first changing with each round: medians of all, and the ratio to each peer.
async fn beside(connection: &OfficeConnection, peers: &[Peer], work: Work) -> Result<Vec<Figure>> {
    let mut all: Vec<Option<&Peer>> = vec![None];
    all.extend(peers.iter().map(Some));
    let mut rates = vec![Vec::new(); all.len()];
    for round in 0..ROUNDS {
        for turn in 0..all.len() {
            let who = (round + turn) % all.len();
            rates[who].push(work.measure(connection, all[who], round).await?);
        }
    }
    let rates: Vec<f64> = rates.iter_mut().map(|r| median(r)).collect();
    let mut out = vec![figure(work.title(), rates[0], "per s")];
    for (peer, rate) in peers.iter().zip(&rates[1..]) {
        out.push(figure(format!("{}: {}", work.title(), peer.name()), *rate, "per s"));
        out.push(figure(format!("{}: ratio to {}", work.title(), peer.name()), rates[0] / rate, "x"));
    }
    Ok(out)
}

async fn list(connection: &OfficeConnection, directory: &str) -> Result<(usize, Duration)> {
    let mut files = FileServiceClient::new(connection.control()).max_decoding_message_size(16 << 20);
    let begin = Instant::now();
    let (mut seen, mut token) = (0, String::new());
    loop {
        let request = v1::ListEntriesRequest { path: path(directory), page_size: 5000, page_token: token };
        let page = files.list_entries(request).await?.into_inner();
        seen += page.entries.len();
        token = page.next_page_token;
        if token.is_empty() {
            return Ok((seen, begin.elapsed()));
        }
    }
}

async fn renames(connection: &OfficeConnection, directory: &str) -> Result<f64> {
    let mut files = FileServiceClient::new(connection.control());
    let mut times = Vec::new();
    let mut from = directory.to_owned();
    for i in 0..200 {
        let to = format!("{directory}-{i}");
        let request = v1::MoveEntryRequest { source: path(&from), destination: path(&to), ..Default::default() };
        let begin = Instant::now();
        files.move_entry(request).await?;
        times.push(begin.elapsed());
        from = to;
    }
    let back = v1::MoveEntryRequest { source: path(&from), destination: path(directory), ..Default::default() };
    files.move_entry(back).await?;
    Ok(percentile_ms(&mut times, 50))
}

/// This many connections that watch: what they cost, and how long an event takes to all of them.
async fn watchers(office: &Office, connection: &OfficeConnection, token: &str, count: usize) -> Result<Vec<Figure>> {
    let server = office.server_id().context("the server does not run")?;
    let before = usage::resident(server);
    let ca = std::fs::read_to_string(office.ca_file())?;
    let mut streams = Vec::new();
    let mut connections = Vec::new();
    for _ in 0..count {
        let mut options = ConnectOptions::new(office.address().to_string(), ca.clone()).token(token);
        options.bulk_connections = 1;
        let one = OfficeConnection::lazy(&options).map_err(|e| anyhow::anyhow!("{e:?}"))?;
        let request = v1::WatchRequest { roots: vec!["home".to_owned()], cursor: 0 };
        let mut stream = WatchServiceClient::new(one.control()).watch(request).await?.into_inner();
        ensure!(stream.message().await?.is_some(), "no first message");
        streams.push(stream);
        connections.push(one);
    }
    let each = usage::resident(server).saturating_sub(before) as f64 / count as f64 / 1024.0;
    let (sender, mut arrivals) = tokio::sync::mpsc::unbounded_channel::<Instant>();
    let tasks: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            let sender = sender.clone();
            tokio::spawn(async move {
                while let Ok(Some(message)) = stream.message().await {
                    if !message.changes.is_empty() && sender.send(Instant::now()).is_err() {
                        return;
                    }
                }
            })
        })
        .collect();
    let mut files = FileServiceClient::new(connection.control());
    let mut delays = Vec::new();
    for i in 0..10 {
        let begin = Instant::now();
        commit(&mut files, vec![empty_file(&format!("event-{i}"))]).await?;
        for _ in 0..count {
            let at = tokio::time::timeout(Duration::from_secs(30), arrivals.recv()).await?.context("watchers ended")?;
            delays.push(at.saturating_duration_since(begin));
        }
    }
    tasks.iter().for_each(|t| t.abort());
    Ok(vec![
        figure(format!("server memory for each of {count} watching agents"), each, "KiB"),
        figure(format!("event to {count} agents, p50"), percentile_ms(&mut delays, 50), "ms"),
        figure(format!("event to {count} agents, p99"), percentile_ms(&mut delays, 99), "ms"),
    ])
}

/// Runs all.
///
/// # Errors
/// A call failed.
pub async fn run(office: &Office, user: &str, password: &str, million: u32) -> Result<Vec<Figure>> {
    let (connection, token) = sign_in(office, user, password).await?;
    let mut out = Vec::new();
    out.extend(watchers(office, &connection, &token, 1000).await?);
    let took = fill(&connection, "list", RECORDS as u32).await?;
    out.push(figure("durable creates in batches of 1,000", RECORDS as f64 / took.as_secs_f64(), "files/s"));
    let (peers, missing) = metadata_peers::start_all().await?;
    for name in &missing {
        println!("skipped, not installed: {name}");
    }
    for work in [Work::CreatesOfOne, Work::CreatesOfMany, Work::LookUps] {
        out.extend(beside(&connection, &peers, work).await?);
    }
    drop(peers);
    let (seen, took) = list(&connection, "list").await?;
    ensure!(seen as u64 == RECORDS, "listed {seen}");
    out.push(figure("list of 100,000 entries with attributes", took.as_secs_f64() * 1e3, "ms"));
    fill(&connection, "one", 1).await?;
    out.push(figure("directory rename, 1 entry below, p50", renames(&connection, "one").await?, "ms"));
    fill(&connection, "million", million).await?;
    out.push(figure(
        format!("directory rename, {million} entries below, p50"),
        renames(&connection, "million").await?,
        "ms",
    ));
    Ok(out)
}
