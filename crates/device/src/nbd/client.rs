//! A small client: one connection, requests in parallel. It is what ripping from an export and the tests use.
//!
//! What the server says is not trusted: lengths are held against what was asked for, an answer to nothing ends the
//! connection, and every request has a deadline.

mod replies;

use super::options::MAX_OPTION_SKIPPED;
use super::source::{BlockSource, Extent, MAX_READ, check_range};
use super::wire::{self, Request};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use futures_util::future::BoxFuture;
use replies::{Answer, Pending};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How to connect.
#[derive(Clone)]
pub struct ClientConfig {
    /// TLS with this configuration, to this name.
    pub tls: Option<(Arc<rustls::ClientConfig>, rustls_pki_types::ServerName<'static>)>,
    /// Ask for structured replies.
    pub structured: bool,
    /// Time for the negotiation.
    pub handshake: Duration,
    /// Time for a request.
    pub request: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        let (handshake, request) = (Duration::from_secs(10), Duration::from_secs(30));
        Self { tls: None, structured: true, handshake, request }
    }
}

/// Requests that one client has in work at most.
const IN_FLIGHT: usize = 64;
/// Most answers to one option that are read.
const MAX_REPLIES: usize = 4096;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection to one export. Dropping it closes it.
pub struct Client {
    size: u64,
    flags: u16,
    meta: bool,
    cookie: AtomicU64,
    pending: Arc<Pending>,
    output: mpsc::Sender<Outgoing>,
    places: Semaphore,
    request: Duration,
    _tasks: JoinSet<()>,
}

struct Outgoing {
    header: [u8; wire::REQUEST_LEN],
    payload: Bytes,
}

impl Client {
    /// Negotiates on a connected stream and opens an export.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, TLS_FAILED, MESSAGE_MALFORMED, DEVICE_AWAY if the connection breaks, DEADLINE_EXCEEDED.
    pub async fn connect<S>(stream: S, export: &str, config: ClientConfig) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let request = config.request;
        let opened = timeout(config.handshake, open(Box::new(stream), export, config)).await;
        let (stream, chosen) = opened.map_err(|_| late())??;
        let (mut read, mut write) = tokio::io::split(stream);
        let pending = Arc::new(Pending::new(chosen.structured));
        let (output, mut queue) = mpsc::channel::<Outgoing>(IN_FLIGHT);
        let mut tasks = JoinSet::new();
        let writer = pending.clone();
        tasks.spawn(async move {
            while let Some(message) = queue.recv().await {
                let sent = async {
                    write.write_all(&message.header).await?;
                    write.write_all(&message.payload).await?;
                    write.flush().await
                };
                if sent.await.is_err() {
                    writer.close();
                    return;
                }
            }
        });
        let reader = pending.clone();
        tasks.spawn(async move {
            let mut input = tokio::io::BufReader::with_capacity(64 << 10, &mut read);
            while reader.receive(&mut input).await.is_ok() {}
            reader.close();
        });
        Ok(Self {
            size: chosen.size,
            flags: chosen.flags,
            meta: chosen.meta,
            cookie: AtomicU64::new(1),
            pending,
            output,
            places: Semaphore::new(IN_FLIGHT),
            request,
            _tasks: tasks,
        })
    }

    /// Transmission flags of the export.
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// True if `base:allocation` was agreed on.
    pub fn has_extents(&self) -> bool {
        self.meta
    }

    async fn call(&self, command: u16, flags: u16, offset: u64, len: u32, payload: Bytes) -> Result<Answer> {
        timeout(self.request, self.exchange(command, flags, offset, len, payload)).await.map_err(|_| late())?
    }

    async fn exchange(&self, command: u16, flags: u16, offset: u64, len: u32, payload: Bytes) -> Result<Answer> {
        let _place = self.places.acquire().await.map_err(|_| gone())?;
        let cookie = self.cookie.fetch_add(1, Ordering::Relaxed);
        let request = Request { flags, command, cookie, offset, len };
        let (reply, answer) = oneshot::channel();
        self.pending.add(request, reply)?;
        // An answer that comes after the deadline is still read, and thrown away.
        self.output.send(Outgoing { header: request.encode(), payload }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    async fn act(&self, command: u16, flags: u16, offset: u64, len: u64, payload: Bytes) -> Result<()> {
        let len = u32::try_from(len).map_err(|_| Error::new(Reason::FieldInvalid, "more than 4 GiB at once"))?;
        self.call(command, flags, offset, len, payload).await.map(|_| ())
    }

    /// Says goodbye; the server answers what is in work first.
    pub async fn disconnect(self) {
        let request = Request { flags: 0, command: wire::CMD_DISC, cookie: 0, offset: 0, len: 0 };
        let _ = self.output.send(Outgoing { header: request.encode(), payload: Bytes::new() }).await;
        let Self { output, mut _tasks, request, .. } = self;
        drop(output);
        let _ = timeout(request, async { while _tasks.join_next().await.is_some() {} }).await;
    }
}

impl BlockSource for Client {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(async move {
            check_range(offset, len.into(), self.size)?;
            if len == 0 || len > MAX_READ {
                return Err(Error::new(Reason::FieldInvalid, "1 byte to 32 MiB at once"));
            }
            Ok(self.call(wire::CMD_READ, 0, offset, len, Bytes::new()).await?.data)
        })
    }

    fn extents(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<Vec<Extent>>> {
        Box::pin(async move {
            check_range(offset, len, self.size)?;
            if !self.meta || len == 0 {
                return Ok(vec![Extent::data(len)]);
            }
            let len = u32::try_from(len).unwrap_or(u32::MAX - (MAX_READ - 1));
            Ok(self.call(wire::CMD_BLOCK_STATUS, 0, offset, len, Bytes::new()).await?.extents)
        })
    }

    fn writable(&self) -> bool {
        self.flags & wire::TX_READ_ONLY == 0
    }

    fn write(&self, offset: u64, data: Bytes, durable: bool) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if data.len() > MAX_READ as usize {
                return Err(Error::new(Reason::FieldInvalid, "more than 32 MiB at once"));
            }
            self.act(wire::CMD_WRITE, u16::from(durable), offset, data.len() as u64, data).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, keep_space: bool, durable: bool) -> BoxFuture<'_, Result<()>> {
        let flags = u16::from(durable) | if keep_space { wire::CMD_FLAG_NO_HOLE } else { 0 };
        Box::pin(self.act(wire::CMD_WRITE_ZEROES, flags, offset, len, Bytes::new()))
    }

    fn trim(&self, offset: u64, len: u64, durable: bool) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.act(wire::CMD_TRIM, u16::from(durable), offset, len, Bytes::new()))
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.act(wire::CMD_FLUSH, 0, 0, 0, Bytes::new()))
    }
}

/// What the negotiation came to.
struct Chosen {
    size: u64,
    flags: u16,
    structured: bool,
    meta: bool,
}

async fn open(mut stream: Box<dyn Stream>, export: &str, config: ClientConfig) -> Result<(Box<dyn Stream>, Chosen)> {
    let mut hello = [0; 18];
    stream.read_exact(&mut hello).await.map_err(broken)?;
    let fixed = wire::be16(&hello, 16) & wire::FLAG_FIXED_NEWSTYLE != 0;
    if wire::be64(&hello, 0) != wire::NBD_MAGIC || wire::be64(&hello, 8) != wire::OPTION_MAGIC || !fixed {
        return Err(malformed("the other side is not a block device server of the fixed newstyle"));
    }
    let flags = wire::be16(&hello, 16) & (wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES);
    stream.write_all(&u32::from(flags).to_be_bytes()).await.map_err(broken)?;
    if let Some((tls, name)) = config.tls {
        send_option(&mut stream, wire::OPT_STARTTLS, &[]).await?;
        if !matches!(option_reply(&mut stream, wire::OPT_STARTTLS).await?.0, wire::REP_ACK) {
            return Err(Error::new(Reason::TlsFailed, "the block device server does not talk TLS"));
        }
        let connector = tokio_rustls::TlsConnector::from(tls);
        let tls = connector.connect(name, stream).await;
        stream = Box::new(tls.map_err(|e| Error::new(Reason::TlsFailed, "TLS could not be agreed on").caused_by(e))?);
    }
    let (mut structured, mut meta) = (false, false);
    if config.structured {
        send_option(&mut stream, wire::OPT_STRUCTURED_REPLY, &[]).await?;
        structured = option_reply(&mut stream, wire::OPT_STRUCTURED_REPLY).await?.0 == wire::REP_ACK;
    }
    if structured {
        meta = set_meta(&mut stream, export).await?;
    }
    let (size, flags) = go(&mut stream, export).await?;
    Ok((stream, Chosen { size, flags, structured, meta }))
}

fn with_len(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u32).to_be_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out
}

async fn set_meta(stream: &mut Box<dyn Stream>, export: &str) -> Result<bool> {
    let mut data = with_len(export);
    data.extend_from_slice(&1_u32.to_be_bytes());
    data.extend_from_slice(&with_len(wire::BASE_ALLOCATION));
    send_option(stream, wire::OPT_SET_META_CONTEXT, &data).await?;
    let mut found = false;
    for _ in 0..MAX_REPLIES {
        match option_reply(stream, wire::OPT_SET_META_CONTEXT).await?.0 {
            wire::REP_META_CONTEXT => found = true,
            wire::REP_ACK => return Ok(found),
            _ => return Ok(false),
        }
    }
    Err(malformed("endless answers"))
}

async fn go(stream: &mut Box<dyn Stream>, export: &str) -> Result<(u64, u16)> {
    let mut data = with_len(export);
    data.extend_from_slice(&0_u16.to_be_bytes());
    send_option(stream, wire::OPT_GO, &data).await?;
    let mut found = None;
    for _ in 0..MAX_REPLIES {
        let (kind, data) = option_reply(stream, wire::OPT_GO).await?;
        match kind {
            wire::REP_INFO if data.len() == 12 && wire::be16(&data, 0) == wire::INFO_EXPORT => {
                found = Some((wire::be64(&data, 2), wire::be16(&data, 10)));
            }
            wire::REP_INFO => {}
            wire::REP_ACK => return found.ok_or_else(|| malformed("an export without a size")),
            kind => return Err(refused(kind, &data)),
        }
    }
    Err(malformed("endless answers"))
}

fn refused(kind: u32, data: &[u8]) -> Error {
    let text: String = String::from_utf8_lossy(data).chars().filter(|c| !c.is_control()).take(200).collect();
    let reason = match kind {
        wire::REP_ERR_UNKNOWN => Reason::ResourceUnknown,
        wire::REP_ERR_POLICY => Reason::AccessDenied,
        wire::REP_ERR_TLS_REQD => Reason::TlsFailed,
        wire::REP_ERR_SHUTDOWN => Reason::ShuttingDown,
        _ => Reason::DeviceFailed,
    };
    Error::new(reason, format!("the block device server refused the export: {text}"))
}

async fn send_option(stream: &mut Box<dyn Stream>, option: u32, data: &[u8]) -> Result<()> {
    let mut out = wire::OPTION_MAGIC.to_be_bytes().to_vec();
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
    stream.write_all(&out).await.map_err(broken)?;
    stream.flush().await.map_err(broken)
}

async fn option_reply(stream: &mut Box<dyn Stream>, option: u32) -> Result<(u32, Vec<u8>)> {
    let mut header = [0; 20];
    stream.read_exact(&mut header).await.map_err(broken)?;
    let len = wire::be32(&header, 16);
    if wire::be64(&header, 0) != wire::OPTION_REPLY_MAGIC
        || wire::be32(&header, 8) != option
        || len > MAX_OPTION_SKIPPED
    {
        return Err(malformed("an answer to no option"));
    }
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data).await.map_err(broken)?;
    Ok((wire::be32(&header, 12), data))
}

fn malformed(text: &str) -> Error {
    Error::new(Reason::MessageMalformed, text)
}
fn broken(error: std::io::Error) -> Error {
    gone().caused_by(error)
}
fn gone() -> Error {
    Error::new(Reason::DeviceAway, "the connection to the block device server broke")
}
fn late() -> Error {
    Error::new(Reason::DeadlineExceeded, "the block device server did not answer in time")
}
