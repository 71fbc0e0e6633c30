//! Connections of clients: negotiation, then requests in parallel.
//!
//! One task per connection; inside it one half reads requests and one half runs them and writes replies, in whatever
//! order they get ready. Bounds: connections per server, time for the whole negotiation, options in it, requests in work
//! per connection and the bytes they stand for, time of a request, time in which a client takes no byte of a reply. At
//! the bound of requests or bytes no further request is read, so that a greedy client waits for itself.
//!
//! A connection holds nothing that outlives it, and nothing is acknowledged before the source has said so; a crash is to
//! a client the loss of its connection.

mod negotiation;
mod transmission;

use super::source::BlockSource;
use super::wire;
use common::error::{Error, Reason, Result};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What `LIST` shows of an export.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExportEntry {
    /// Its name.
    pub name: String,
    /// A line for people, such as the disc's title.
    pub description: String,
}

/// An export that a client has asked for by name.
#[derive(Clone)]
pub struct Export {
    /// Its canonical name and description.
    pub entry: ExportEntry,
    /// Where its bytes are.
    pub source: Arc<dyn BlockSource>,
    /// Writes are refused even if the source takes them.
    pub read_only: bool,
}

impl Export {
    /// A read-only export.
    pub fn read_only(name: impl Into<String>, description: impl Into<String>, source: Arc<dyn BlockSource>) -> Self {
        Self { entry: ExportEntry { name: name.into(), description: description.into() }, source, read_only: true }
    }

    fn may_write(&self) -> bool {
        !self.read_only && self.source.writable()
    }

    /// Transmission flags. Several connections see each other's writes, because no cache lies between them and the source.
    fn flags(&self, structured: bool) -> u16 {
        let mut flags = wire::TX_HAS_FLAGS | wire::TX_CAN_MULTI_CONN | wire::TX_SEND_CACHE | wire::TX_SEND_FLUSH;
        if self.may_write() {
            flags |= wire::TX_SEND_FUA | wire::TX_SEND_TRIM | wire::TX_SEND_WRITE_ZEROES;
        } else {
            flags |= wire::TX_READ_ONLY;
        }
        if structured { flags | wire::TX_SEND_DF } else { flags }
    }
}

/// Which exports there are, for whom the connection comes from (a server belongs to one listener, so the implementation
/// knows who can reach it).
pub trait Exports: Send + Sync + 'static {
    /// Those that a client may see; the first 1,000 are sent.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ExportEntry>>>;

    /// Opens one; an empty name means the default export, if there is one.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, which becomes `ERR_UNKNOWN`, as do NO_MEDIUM and TRAY_OPEN; ACCESS_DENIED becomes `ERR_POLICY`.
    fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Export>>;
}

/// A fixed list of exports; the only one of a list of one is the default export.
impl Exports for Vec<Export> {
    fn list(&self) -> BoxFuture<'_, Result<Vec<ExportEntry>>> {
        Box::pin(async { Ok(self.iter().map(|e| e.entry.clone()).collect()) })
    }

    fn open<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Export>> {
        let found = self.iter().find(|e| e.entry.name == name);
        let found = found.or_else(|| self.first().filter(|_| name.is_empty() && self.len() == 1)).cloned();
        Box::pin(async move { found.ok_or_else(|| unknown(name)) })
    }
}

/// The refusal of an export's name.
pub fn unknown(name: &str) -> Error {
    Error::new(Reason::ResourceUnknown, format!("there is no export {:?}", name.chars().take(64).collect::<String>()))
}

/// If connections are encrypted.
#[derive(Clone)]
pub enum Tls {
    /// Not offered: for Unix sockets and loopback.
    Off,
    /// Offered.
    Optional(Arc<rustls::ServerConfig>),
    /// Nothing is told before it.
    Required(Arc<rustls::ServerConfig>),
}

/// Limits of a server.
#[derive(Clone)]
pub struct ServerConfig {
    /// If connections are encrypted.
    pub tls: Tls,
    /// Time for the whole negotiation, TLS included.
    pub handshake: Duration,
    /// Time of one request; the source's own deadline should be shorter. Then the client gets EIO.
    pub request: Duration,
    /// Time in which a client must take some byte of a reply, or send the rest of a request.
    pub stall: Duration,
    /// Requests that wait per connection.
    pub in_flight: usize,
    /// Bytes that they stand for.
    pub in_flight_bytes: u32,
    /// Bytes that are read or written at the same time per connection; the rest waits its turn, so that few buffers are in
    /// use and stay in the processor's cache.
    pub parallel_bytes: u32,
    /// Connections at once; more are closed at once.
    pub connections: usize,
}

impl Default for ServerConfig {
    /// Two requests of the largest size per connection, and more small ones than any known client sends at once.
    fn default() -> Self {
        Self {
            tls: Tls::Off,
            handshake: Duration::from_secs(10),
            request: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            in_flight: 128,
            in_flight_bytes: 64 << 20,
            parallel_bytes: 4 << 20,
            connections: 64,
        }
    }
}

/// How a connection ended, for the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The client said so.
    Disconnected,
    /// The client closed the connection between two messages.
    Closed,
    /// The client broke the protocol.
    Violation(&'static str),
    /// The client was too slow.
    TooSlow,
    /// The connection broke.
    Broken,
    /// The server stops.
    Stopped,
}

/// A server of some exports.
#[derive(Clone)]
pub struct Server {
    exports: Arc<dyn Exports>,
    config: Arc<ServerConfig>,
    places: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// A server that listens nowhere yet.
    pub fn new(exports: Arc<dyn Exports>, config: ServerConfig) -> Self {
        let places = Arc::new(Semaphore::new(config.connections));
        Self { exports, config: Arc::new(config), places, stop: CancellationToken::new(), tasks: TaskTracker::new() }
    }

    /// Serves a TCP listener until [`Server::stop`].
    pub async fn serve_tcp(&self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => {
                    // Replies are written whole, so waiting for more to send only delays them.
                    let _ = stream.set_nodelay(true);
                    self.start(stream, from.to_string());
                }
                Err(error) => self.pause(&error).await,
            }
        }
    }

    /// Serves a Unix listener until [`Server::stop`]. See [`super::listen::bind_unix`].
    pub async fn serve_unix(&self, listener: UnixListener) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => self.start(stream, "unix".to_owned()),
                Err(error) => self.pause(&error).await,
            }
        }
    }

    /// Accepting fails while the process has no descriptor left; it goes on when one is free.
    async fn pause(&self, error: &std::io::Error) {
        tracing::warn!(%error, "a connection could not be accepted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    fn start<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(&self, stream: S, from: String) {
        let Some(place) = self.place() else {
            tracing::warn!(from, "too many connections to the block device server");
            return;
        };
        let server = self.clone();
        self.tasks.spawn(async move {
            let _place = place;
            match server.serve(stream).await {
                end @ (End::Violation(_) | End::TooSlow) => {
                    tracing::warn!(from, ?end, "a block device client was cut off")
                }
                end => tracing::debug!(from, ?end, "a block device client has gone"),
            }
        });
    }

    fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().ok()
    }

    /// Serves one connection to its end.
    pub async fn serve<S: AsyncRead + AsyncWrite + Send + Unpin>(&self, stream: S) -> End {
        negotiation::run(self, stream).await
    }

    /// Stops: no new connections, no new requests; those in work are answered.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
