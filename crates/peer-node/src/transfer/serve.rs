//! `atrium.peer.v1.TransferService`: giving chunks, and telling which there are.
//!
//! *Fetch* sends a small frame of headers and then the payload untouched (`common::bulk`). A step of about `STEP_BYTES` is
//! read on a blocking thread while what was read before is on its way; a call so holds about 3 MiB, however slow the caller
//! is. *Follow* sends what is there and then news, at once but not more often than every [`TELL_EVERY`]; a follower has a
//! position in a shared log, so a slow one costs nothing.
//!
//! Who calls is what the connection says ([`NodeIdentity`]); whether it may have chunks of the scope is asked of the sources
//! for each Fetch, and for each Follow at the beginning and every [`ASK_AGAIN`]. A chunk that is not in the scope is answered
//! as absent, whether it is here or not.
//!
//! | what | bound | at the bound |
//! |---|---|---|
//! | request | 256 KiB of Fetch, 1 MiB of Follow; 1,024 chunks; 20,000 manifests | refused |
//! | calls of Fetch that are served | [`ACTIVE_PER_DEVICE`] a device, [`ACTIVE`] in all | wait, first come first served |
//! | calls of Fetch that wait | [`WAITING_PER_DEVICE`] a device | OVERLOADED |
//! | calls of Follow | [`FOLLOWS_PER_DEVICE`] a device, [`FOLLOWS`] in all | OVERLOADED |
//! | a caller that takes nothing | `common::bulk::IDLE` | the call ends |

mod gate;
mod read;

pub use gate::{Gate, Pass};
pub use read::{Buffers, Reader};

use super::feed::Feeds;
use super::limits::Limiter;
use crate::model::Scope;
use crate::net::NodeIdentity;
use crate::source::Sources;
use bytes::Bytes;
use common::bulk::{
    Encoded, FETCH_PATH, FetchEncoder, IDLE, MAX_FETCH_CHUNKS, MessageReader, MessageSender, Rope, Side, channel,
    respond_error, respond_stream,
};
use common::error::{Error, Reason, Result};
use common::model::{ChunkId, DeviceId};
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, header};
use http_body::Frame;
use prost::Message;
use proto::peer::v1 as peer;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::body::Body;

/// Full name of the service.
pub const SERVICE: &str = "atrium.peer.v1.TransferService";
/// Path of the method that tells which chunks there are.
pub const FOLLOW_PATH: &str = "/atrium.peer.v1.TransferService/Follow";
/// Content that a blocking step reads.
const STEP_BYTES: usize = 1024 * 1024;
/// Chunks that a blocking step reads.
const STEP_CHUNKS: usize = 256;
/// Content that waits for the connection.
const QUEUE_BYTES: usize = 2 * 1024 * 1024;
/// Calls of Fetch that are served at a time, for one device and for all.
pub const ACTIVE_PER_DEVICE: usize = 4;
/// See [`ACTIVE_PER_DEVICE`].
pub const ACTIVE: usize = 96;
/// Calls of Fetch of one device that wait.
pub const WAITING_PER_DEVICE: usize = 32;
/// Calls of Follow of one device.
pub const FOLLOWS_PER_DEVICE: usize = 256;
/// Calls of Follow in all.
pub const FOLLOWS: usize = 4_096;
/// News are sent at once, but not more often.
pub const TELL_EVERY: Duration = Duration::from_millis(50);
/// A follower's right is asked for again after so long.
pub const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Chunks that are told of in one message.
const TELL_MAX: usize = 32_768;
const MAX_FETCH_REQUEST: usize = 256 * 1024;
const MAX_FOLLOW_REQUEST: usize = 1024 * 1024;
const MAX_MANIFESTS: usize = 20_000;

/// Serves this node's chunks. Clones are handles to the same.
#[derive(Clone)]
pub struct TransferServer(Arc<Inner>);

struct Inner {
    sources: Sources,
    feeds: Feeds,
    limiter: Limiter,
    buffers: Buffers,
    fetches: Gate,
    follows: Gate,
    ending: CancellationToken,
    served: Arc<AtomicU64>,
}

impl TransferServer {
    /// Serves what the sources have. Streams end when `ending` is cancelled.
    pub fn new(sources: Sources, feeds: Feeds, limiter: Limiter, ending: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            sources,
            feeds,
            limiter,
            buffers: Buffers::default(),
            fetches: Gate::new(ACTIVE, ACTIVE_PER_DEVICE, WAITING_PER_DEVICE),
            follows: Gate::new(FOLLOWS, FOLLOWS_PER_DEVICE, 0),
            ending,
            served: Arc::default(),
        }))
    }

    /// Bytes given to others since the start.
    pub fn served_bytes(&self) -> u64 {
        self.0.served.load(Ordering::Relaxed)
    }
}

impl tonic::server::NamedService for TransferServer {
    const NAME: &'static str = SERVICE;
}

impl tower::Service<Request<Body>> for TransferServer {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move { Ok(answer(inner, request).await.unwrap_or_else(|e| respond_error(&e))) })
    }
}

async fn answer(inner: Arc<Inner>, request: Request<Body>) -> Result<Response<Body>> {
    let caller = NodeIdentity::of_http(&request)?;
    if !caller.member {
        return Err(Error::new(Reason::NotAMember, "only members of the office may call this"));
    }
    let (head, body) = request.into_parts();
    let content_type = head.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if head.method != http::Method::POST || !content_type.starts_with(b"application/grpc") {
        return Err(Error::new(Reason::MessageMalformed, "this is not a gRPC call"));
    }
    let limit = if head.uri.path() == FETCH_PATH { MAX_FETCH_REQUEST } else { MAX_FOLLOW_REQUEST };
    let (sender, stream) = channel(Side::Server, QUEUE_BYTES, IDLE);
    let task = match head.uri.path() {
        FETCH_PATH => {
            let asked = Asked::read(&read_message::<peer::FetchRequest>(body, limit).await?)?;
            tokio::spawn(inner.fetch(caller.device, asked, sender))
        }
        FOLLOW_PATH => {
            let request = read_message::<peer::FollowRequest>(body, limit).await?;
            let scope = Scope::read(request.scope.as_ref())?;
            let manifests = manifests(&request)?;
            let pass = inner.follows.enter(caller.device).await?;
            let follow = Follow { inner, caller: caller.device, scope, manifests, takes_part: request.takes_part };
            tokio::spawn(follow.run(sender, pass))
        }
        path => return Err(Error::new(Reason::MethodUnknown, format!("there is no method {path:.100}"))),
    };
    Ok(respond_stream(WithTask { stream, _task: AbortOnDropHandle::new(task) }))
}

async fn read_message<M: Message + Default>(body: Body, limit: usize) -> Result<M> {
    let mut reader = MessageReader::new(body, limit, IDLE);
    let message = reader.next().await?.ok_or_else(|| Error::new(Reason::MessageMalformed, "the request is missing"))?;
    M::decode(message.to_bytes())
        .map_err(|e| Error::new(Reason::MessageMalformed, "the request could not be decoded").caused_by(e))
}

fn manifests(request: &peer::FollowRequest) -> Result<Vec<[u8; 32]>> {
    let invalid = |what: &str| Error::new(Reason::FieldInvalid, what.to_owned()).with("field", "manifest_digests");
    if request.manifest_digests.len() > MAX_MANIFESTS {
        return Err(invalid("more than 20,000 manifests"));
    }
    let digest = |d: &Bytes| d.as_ref().try_into().map_err(|_| invalid("a manifest's digest has not 32 bytes"));
    request.manifest_digests.iter().map(digest).collect()
}

/// What a Fetch asks for.
struct Asked {
    scope: Scope,
    chunks: Vec<ChunkId>,
}

impl Asked {
    fn read(request: &peer::FetchRequest) -> Result<Self> {
        let scope = Scope::read(request.scope.as_ref())?;
        let digests = &request.digests;
        if digests.is_empty() || !digests.len().is_multiple_of(32) || digests.len() / 32 > MAX_FETCH_CHUNKS {
            return Err(Error::new(Reason::FieldInvalid, "a fetch asks for 1 to 1,024 chunks").with("field", "digests"));
        }
        Ok(Self { scope, chunks: digests.chunks_exact(32).filter_map(ChunkId::from_slice).collect() })
    }
}

/// What a blocking step leaves.
struct Step {
    work: Work,
    encoder: FetchEncoder,
    bytes: u64,
}

struct Work {
    reader: Reader,
    asked: Arc<Asked>,
    at: usize,
}

impl Work {
    /// Reads the next chunks into messages.
    fn step(mut self) -> Result<Step> {
        let mut encoder = FetchEncoder::default();
        let (mut bytes, mut count) = (0, 0);
        while bytes < STEP_BYTES && count < STEP_CHUNKS {
            let Some(chunk) = self.asked.chunks.get(self.at) else { break };
            match self.reader.read(&self.asked.scope, chunk)? {
                Some(content) => {
                    bytes += content.len();
                    encoder.chunk(self.at as u32, &Rope::from(content));
                }
                None => encoder.absent(self.at as u32),
            }
            self.at += 1;
            count += 1;
        }
        encoder.flush();
        Ok(Step { work: self, encoder, bytes: bytes as u64 })
    }
}

fn lost(error: tokio::task::JoinError) -> Error {
    Error::internal("a thread that reads chunks").caused_by(error)
}

impl Inner {
    async fn fetch(self: Arc<Self>, caller: DeviceId, asked: Asked, mut sender: MessageSender) {
        let ending = self.ending.clone();
        let result = ending.run_until_cancelled(self.send_chunks(caller, asked, &mut sender)).await;
        sender.finish(result.unwrap_or_else(|| Err(shutting_down())));
    }

    async fn send_chunks(&self, caller: DeviceId, asked: Asked, sender: &mut MessageSender) -> Result<()> {
        let _pass = self.fetches.enter(caller).await?;
        let feed = self.feeds.of(&asked.scope);
        let asked = Arc::new(asked);
        let (sources, question) = (self.sources.clone(), asked.clone());
        let mut work =
            Work { reader: Reader::new(self.sources.clone(), self.buffers.clone()), asked: asked.clone(), at: 0 };
        work = tokio::task::spawn_blocking(move || sources.authorize(&question.scope, &caller).map(|()| work))
            .await
            .map_err(lost)??;
        loop {
            let step = tokio::task::spawn_blocking(move || work.step()).await.map_err(lost)??;
            let Step { work: rest, mut encoder, bytes } = step;
            while let Some(message) = encoder.pop() {
                self.limiter.upload().ready().await;
                let bytes = message.len() as u64;
                self.limiter.upload().take(bytes);
                self.limiter.upload().count(bytes);
                sender.send(message).await?;
            }
            self.served.fetch_add(bytes, Ordering::Relaxed);
            feed.count_served(bytes);
            work = rest;
            if work.at >= asked.chunks.len() {
                return Ok(());
            }
        }
    }
}

fn shutting_down() -> Error {
    Error::new(Reason::ShuttingDown, "the node is shutting down")
}

/// A follower.
struct Follow {
    inner: Arc<Inner>,
    caller: DeviceId,
    scope: Scope,
    manifests: Vec<[u8; 32]>,
    takes_part: bool,
}

impl Follow {
    async fn run(self, mut sender: MessageSender, _pass: Pass) {
        let ending = self.inner.ending.clone();
        let result = ending.run_until_cancelled(self.tell(&mut sender)).await;
        sender.finish(result.unwrap_or_else(|| Err(shutting_down())));
    }

    async fn tell(&self, sender: &mut MessageSender) -> Result<()> {
        self.authorize().await?;
        let feed = self.inner.feeds.of(&self.scope);
        let _taker = self.takes_part.then(|| feed.enter(self.caller));
        let mut changes = feed.subscribe();
        let (mut position, complete) = self.tell_all(&feed, sender).await?;
        let mut others = BTreeSet::new();
        let mut asked = Instant::now();
        loop {
            changes.mark_unchanged();
            let news = feed.since(position, TELL_MAX);
            if news.gap {
                position = self.tell_all(&feed, sender).await?.0;
                continue;
            }
            position = news.position;
            let mut takers = feed.takers();
            takers.remove(&self.caller);
            let (have, gone) = if complete { (Vec::new(), news.lost) } else { (news.have, news.lost) };
            let message = peer::FollowResponse {
                complete: false,
                have: have.concat().into(),
                lost: gone.concat().into(),
                others: takers.difference(&others).map(|d| Bytes::copy_from_slice(&d.0)).collect(),
                others_left: others.difference(&takers).map(|d| Bytes::copy_from_slice(&d.0)).collect(),
                idle_rate: 0,
            };
            others = takers;
            if message != peer::FollowResponse::default() {
                sender.send(Encoded::of(&message)).await?;
            }
            let pause = tokio::time::sleep(TELL_EVERY);
            if feed.position() == position {
                changes.changed().await.map_err(|_| shutting_down())?;
            }
            pause.await;
            if asked.elapsed() >= ASK_AGAIN {
                self.authorize().await?;
                asked = Instant::now();
            }
        }
    }

    async fn authorize(&self) -> Result<()> {
        let (sources, scope, caller) = (self.inner.sources.clone(), self.scope.clone(), self.caller);
        tokio::task::spawn_blocking(move || sources.authorize(&scope, &caller)).await.map_err(lost)?
    }

    /// Tells of everything that is here; gives the position from which news follow, and whether all of it is here.
    async fn tell_all(&self, feed: &super::feed::Feed, sender: &mut MessageSender) -> Result<(u64, bool)> {
        let position = feed.position();
        let (sources, scope, manifests) = (self.inner.sources.clone(), self.scope.clone(), self.manifests.clone());
        let held = tokio::task::spawn_blocking(move || sources.holdings(&scope, &manifests)).await.map_err(lost)??;
        let mut first = true;
        let mut parts = held.have.chunks(TELL_MAX);
        while let Some(part) = parts.next().or(if first { Some(&[][..]) } else { None }) {
            first = false;
            let have: Vec<u8> = part.iter().flat_map(super::plan::prefix).collect();
            let message = peer::FollowResponse { complete: held.complete, have: have.into(), ..Default::default() };
            sender.send(Encoded::of(&message)).await?;
        }
        Ok((position, held.complete))
    }
}

/// A body whose producer ends with it.
struct WithTask {
    stream: common::bulk::MessageBody,
    _task: AbortOnDropHandle<()>,
}

impl http_body::Body for WithTask {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.stream).poll_frame(cx)
    }
}
