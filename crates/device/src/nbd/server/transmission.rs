//! Requests in parallel, replies as they get ready.

use super::negotiation::Session;
use super::{End, Export, Server, ServerConfig};
use crate::nbd::options::shorten;
use crate::nbd::source::{Extent, MAX_READ, check_range};
use crate::nbd::wire::{self, Request};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use common::error::{Error, Kind, Reason, Result};
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

/// Bytes that one permit of the byte bound stands for.
const UNIT: u32 = 4096;
/// Most extents of one reply.
const MAX_EXTENTS: usize = 1024;
/// Replies that are written with one call at most.
const BATCH: usize = 32;

/// A request with what came behind its header.
struct Command {
    request: Request,
    payload: Bytes,
    permit: OwnedSemaphorePermit,
}

/// A reply that is ready.
struct Reply {
    header: Bytes,
    payload: Bytes,
    /// Given back when it is written.
    permit: OwnedSemaphorePermit,
    cost: u64,
}

/// What a request counts against the bytes that are worked on at the same time.
fn cost(request: &Request) -> u64 {
    match request.command {
        wire::CMD_READ | wire::CMD_WRITE => u64::from(request.len.clamp(UNIT, MAX_READ)),
        _ => UNIT.into(),
    }
}

/// What a connection has agreed on.
struct Agreed {
    export: Export,
    structured: bool,
    meta: bool,
}

/// Serves requests until one side ends it.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Send + Unpin>(
    server: &Server,
    stream: S,
    export: Export,
    session: Session,
    meta: bool,
) -> End {
    let agreed = Agreed { export, structured: session.structured, meta };
    let (input, output) = tokio::io::split(stream);
    let (commands, queue) = mpsc::channel(server.config.in_flight.max(1));
    let intake = Intake {
        input: BufReader::with_capacity(64 << 10, input),
        commands,
        bytes: Arc::new(Semaphore::new((server.config.in_flight_bytes.max(MAX_READ) / UNIT) as usize)),
        config: &server.config,
    };
    let mut intake = std::pin::pin!(intake.run(server));
    let mut output = std::pin::pin!(answer(&agreed, &server.config, queue, output));
    // The intake drops its end of the queue when it is done; the output then answers what is left.
    tokio::select! {
        end = &mut intake => match (output.await, end) {
            (Ok(()), end) => end,
            (Err(end), _) => end,
        },
        Err(end) = &mut output => end,
    }
}

/// The half that reads.
struct Intake<'a, S> {
    input: BufReader<ReadHalf<S>>,
    commands: mpsc::Sender<Command>,
    bytes: Arc<Semaphore>,
    config: &'a ServerConfig,
}

impl<S: AsyncRead + AsyncWrite> Intake<'_, S> {
    async fn run(mut self, server: &Server) -> End {
        loop {
            let command = tokio::select! {
                () = server.stop.cancelled() => return End::Stopped,
                command = self.next() => command,
            };
            let sent = match command {
                Ok(Some(command)) => self.commands.send(command).await,
                Ok(None) => return End::Disconnected,
                Err(end) => return end,
            };
            if sent.is_err() {
                return End::Broken;
            }
        }
    }

    /// The next command; nothing at the client's goodbye.
    async fn next(&mut self) -> Result<Option<Command>, End> {
        let mut raw = [0; wire::REQUEST_LEN];
        // A client may be idle between requests for as long as it likes, but not inside of one.
        raw[0] = match self.input.read_u8().await {
            Ok(first) => first,
            Err(_) => return Err(End::Closed),
        };
        self.fill(&mut raw[1..]).await?;
        let Some(request) = Request::decode(&raw) else { return Err(End::Violation("request magic")) };
        let carried = match request.command {
            wire::CMD_DISC => return Ok(None),
            wire::CMD_WRITE => request.len,
            _ => 0,
        };
        if carried > MAX_READ {
            return Err(End::Violation("write too long"));
        }
        let held = match request.command {
            wire::CMD_WRITE | wire::CMD_READ => request.len.min(MAX_READ),
            _ => 0,
        };
        let units = held.div_ceil(UNIT).max(1);
        let permit = self.bytes.clone().acquire_many_owned(units).await.map_err(|_| End::Stopped)?;
        let mut payload = BytesMut::zeroed(carried as usize);
        self.fill(&mut payload).await?;
        Ok(Some(Command { request, payload: payload.freeze(), permit }))
    }

    /// Reads all of it; each piece within the time of a stall.
    async fn fill(&mut self, mut into: &mut [u8]) -> Result<(), End> {
        while !into.is_empty() {
            match timeout(self.config.stall, self.input.read(into)).await {
                Ok(Ok(read)) if read > 0 => into = &mut into[read..],
                Ok(_) => return Err(End::Broken),
                Err(_) => return Err(End::TooSlow),
            }
        }
        Ok(())
    }
}

/// The half that runs requests and writes replies; ends when the queue has ended and all is answered.
async fn answer<S: AsyncRead + AsyncWrite>(
    agreed: &Agreed,
    config: &ServerConfig,
    mut queue: mpsc::Receiver<Command>,
    mut output: WriteHalf<S>,
) -> Result<(), End> {
    let mut running = FuturesUnordered::new();
    let mut running_bytes = 0;
    let mut more = true;
    loop {
        let mut next = None;
        tokio::select! {
            command = queue.recv(), if more && running_bytes < u64::from(config.parallel_bytes) => match command {
                Some(command) => {
                    running_bytes += cost(&command.request);
                    running.push(run_one(agreed, config, command));
                }
                None => more = false,
            },
            reply = running.next(), if !running.is_empty() => next = reply,
            else => return Ok(()),
        }
        let Some(reply) = next else { continue };
        let mut batch = Batch::default();
        batch.push(reply);
        while batch.permits.len() < BATCH {
            let Some(Some(reply)) = running.next().now_or_never() else { break };
            batch.push(reply);
        }
        running_bytes -= batch.cost;
        batch.write(&mut output, config).await?;
    }
}

/// Replies that are written together.
#[derive(Default)]
struct Batch {
    pieces: VecDeque<Bytes>,
    permits: Vec<OwnedSemaphorePermit>,
    cost: u64,
}

impl Batch {
    fn push(&mut self, reply: Reply) {
        self.pieces.extend([reply.header, reply.payload].into_iter().filter(|p| !p.is_empty()));
        self.permits.push(reply.permit);
        self.cost += reply.cost;
    }

    async fn write<W: AsyncWrite + Unpin>(mut self, output: &mut W, config: &ServerConfig) -> Result<(), End> {
        while self.has_remaining() {
            match timeout(config.stall, output.write_buf(&mut self)).await {
                Ok(Ok(written)) if written > 0 => {}
                Ok(_) => return Err(End::Broken),
                Err(_) => return Err(End::TooSlow),
            }
        }
        match timeout(config.stall, output.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Broken),
            Err(_) => Err(End::TooSlow),
        }
    }
}

impl Buf for Batch {
    fn remaining(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }
    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |p| &p[..])
    }
    fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let pieces = self.pieces.iter().zip(into.iter_mut());
        pieces.map(|(piece, slot)| *slot = IoSlice::new(piece)).count()
    }
    fn advance(&mut self, mut by: usize) {
        while by > 0 {
            let Some(front) = self.pieces.front_mut() else { return };
            if front.len() > by {
                front.advance(by);
                return;
            }
            by -= front.len();
            self.pieces.pop_front();
        }
    }
}

/// What a command came to.
enum Done {
    Nothing,
    Data(Bytes),
    Extents(Vec<Extent>),
}

async fn run_one(agreed: &Agreed, config: &ServerConfig, command: Command) -> Reply {
    let Command { request, payload, permit } = command;
    let result = match timeout(config.request, execute(agreed, &request, payload)).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(Reason::DeadlineExceeded, "the device did not answer in time")),
    };
    let (header, payload) = encode(agreed.structured, &request, result);
    Reply { header, payload, permit, cost: cost(&request) }
}

async fn execute(agreed: &Agreed, request: &Request, payload: Bytes) -> Result<Done> {
    let source = &agreed.export.source;
    let (offset, len) = (request.offset, request.len);
    check_flags(agreed, request)?;
    let writes = matches!(request.command, wire::CMD_WRITE | wire::CMD_TRIM | wire::CMD_WRITE_ZEROES);
    if writes && !agreed.export.may_write() {
        return Err(crate::nbd::source::read_only());
    }
    if request.command != wire::CMD_FLUSH {
        check_range(offset, u64::from(len), source.size_bytes())?;
    }
    let durable = request.flags & wire::CMD_FLAG_FUA != 0;
    match request.command {
        wire::CMD_READ if len > MAX_READ => Err(invalid("more than 32 MiB at once")),
        wire::CMD_READ if len == 0 => Ok(Done::Data(Bytes::new())),
        wire::CMD_READ => source.read(offset, len).await.map(Done::Data),
        wire::CMD_CACHE => source.prefetch(offset, len).await.map(|()| Done::Nothing),
        wire::CMD_FLUSH => source.flush().await.map(|()| Done::Nothing),
        wire::CMD_WRITE => source.write(offset, payload, durable).await.map(|()| Done::Nothing),
        wire::CMD_TRIM => source.trim(offset, len.into(), durable).await.map(|()| Done::Nothing),
        wire::CMD_WRITE_ZEROES => {
            let keep = request.flags & wire::CMD_FLAG_NO_HOLE != 0;
            source.write_zeroes(offset, len.into(), keep, durable).await.map(|()| Done::Nothing)
        }
        wire::CMD_BLOCK_STATUS if !agreed.meta => Err(invalid("no metadata context was chosen")),
        wire::CMD_BLOCK_STATUS if len == 0 => Err(invalid("an empty range has no status")),
        wire::CMD_BLOCK_STATUS => {
            let mut extents = source.extents(offset, len.into()).await?;
            let most = if request.flags & wire::CMD_FLAG_REQ_ONE != 0 { 1 } else { MAX_EXTENTS };
            extents.truncate(most);
            Ok(Done::Extents(extents))
        }
        _ => Err(invalid("this command is not known here")),
    }
}

fn check_flags(agreed: &Agreed, request: &Request) -> Result<()> {
    let allowed = match request.command {
        wire::CMD_READ if agreed.structured => wire::CMD_FLAG_DF,
        wire::CMD_WRITE | wire::CMD_TRIM | wire::CMD_FLUSH => 0,
        wire::CMD_WRITE_ZEROES => wire::CMD_FLAG_NO_HOLE,
        wire::CMD_BLOCK_STATUS => wire::CMD_FLAG_REQ_ONE,
        _ => 0,
    };
    // FUA is allowed on every command once it was offered.
    let fua = if agreed.export.may_write() { wire::CMD_FLAG_FUA } else { 0 };
    if request.flags & !(allowed | fua) == 0 { Ok(()) } else { Err(invalid("a flag is not allowed here")) }
}

fn invalid(text: &str) -> Error {
    Error::new(Reason::FieldInvalid, text)
}

/// The error number of the protocol for an error.
pub(super) fn errno(error: &Error, command: u16) -> u32 {
    let writes = matches!(command, wire::CMD_WRITE | wire::CMD_WRITE_ZEROES);
    match error.kind() {
        Kind::PermissionDenied | Kind::Unauthenticated => wire::EPERM,
        Kind::InvalidArgument => wire::EINVAL,
        Kind::OutOfRange if writes => wire::ENOSPC,
        Kind::OutOfRange => wire::EINVAL,
        Kind::Unimplemented => wire::ENOTSUP,
        _ if error.is(Reason::DiskFull) || error.is(Reason::SpaceFull) => wire::ENOSPC,
        _ if error.is(Reason::ShuttingDown) => wire::ESHUTDOWN,
        _ => wire::EIO,
    }
}

/// Header and payload of a reply.
fn encode(structured: bool, request: &Request, result: Result<Done>) -> (Bytes, Bytes) {
    let cookie = request.cookie;
    if !structured {
        return match result {
            Ok(Done::Data(data)) => (wire::simple_reply(0, cookie), data),
            Ok(_) => (wire::simple_reply(0, cookie), Bytes::new()),
            Err(error) => (wire::simple_reply(errno(&error, request.command), cookie), Bytes::new()),
        };
    }
    match result {
        Ok(Done::Data(data)) if data.is_empty() => nothing(cookie),
        Ok(Done::Data(data)) => {
            let mut header = wire::chunk(wire::CHUNK_DONE, wire::CHUNK_OFFSET_DATA, cookie, 8 + data.len() as u32, 8);
            header.put_u64(request.offset);
            (header.freeze(), data)
        }
        Ok(Done::Nothing) => nothing(cookie),
        Ok(Done::Extents(extents)) => (extents_chunk(cookie, request, &extents), Bytes::new()),
        Err(error) => (error_chunk(request, &error), Bytes::new()),
    }
}

fn nothing(cookie: u64) -> (Bytes, Bytes) {
    (wire::chunk(wire::CHUNK_DONE, wire::CHUNK_NONE, cookie, 0, 0).freeze(), Bytes::new())
}

fn extents_chunk(cookie: u64, request: &Request, extents: &[Extent]) -> Bytes {
    let len = 4 + 8 * extents.len();
    let mut out = wire::chunk(wire::CHUNK_DONE, wire::CHUNK_BLOCK_STATUS, cookie, len as u32, len);
    out.put_u32(wire::BASE_ALLOCATION_ID);
    let mut left = u64::from(request.len);
    for extent in extents {
        // Lengths on the wire have 32 bits, and stay inside of what was asked for.
        let len = extent.len.min(left).max(1);
        left -= len.min(left);
        out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
        let hole = if extent.hole { wire::STATE_HOLE } else { 0 };
        out.put_u32(hole | if extent.zero { wire::STATE_ZERO } else { 0 });
    }
    out.freeze()
}

fn error_chunk(request: &Request, error: &Error) -> Bytes {
    let text = format!("{}: {}: {}", error.reason(), error.message(), error.why());
    let text = shorten(&text);
    // An offset outside of the request would be a lie to the client.
    let end = request.offset.saturating_add(request.len.into());
    let at = error.detail("offset").and_then(|o| o.parse::<u64>().ok()).filter(|o| (request.offset..end).contains(o));
    let at = at.filter(|_| request.command == wire::CMD_READ);
    let kind = if at.is_some() { wire::CHUNK_ERROR_OFFSET } else { wire::CHUNK_ERROR };
    let len = 6 + text.len() + if at.is_some() { 8 } else { 0 };
    let mut out = wire::chunk(wire::CHUNK_DONE, kind, request.cookie, len as u32, len);
    out.put_u32(errno(error, request.command));
    out.put_u16(text.len() as u16);
    out.put_slice(text.as_bytes());
    if let Some(at) = at {
        out.put_u64(at);
    }
    out.freeze()
}
