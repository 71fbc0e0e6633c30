//! Listeners: from sockets to connections of which it is known who is at the other end.
//!
//! Whoever connects costs something before it is known who it is, so everything before that is bounded: connections in
//! all and from one address, handshakes at a time, seconds for a handshake. At the bound for handshakes the oldest one
//! in progress is dropped, not the newest refused: an honest one takes milliseconds, so the oldest are those that only
//! hold the place. At the bounds for connections the newest is closed at once.

use super::limits::{Full, Origin, Slot, Slots};
use super::peer::{Connection, PeerCredentials, PeerIdentity};
use super::server::ServerTls;
use crate::error::{Error, Reason, Result};
use futures_util::Stream;
use std::collections::VecDeque;
use std::fmt;
use std::fs::Permissions;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

/// Finished handshakes that wait for the server to take them. It takes them at once.
const READY: usize = 64;
/// How long the other side has to read why its handshake failed.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes that are thrown away meanwhile.
const MAX_UNREAD: usize = 64 * 1024;
/// How long to wait when the process has no file descriptor left.
const OUT_OF_FILES: Duration = Duration::from_millis(100);

/// Bounds of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptLimits {
    /// Time for a TLS handshake.
    pub handshake_timeout: Duration,
    /// TLS handshakes in progress.
    pub handshakes: usize,
    /// Open connections, handshakes in progress included.
    pub connections: usize,
    /// Open connections from one IPv4 address, one IPv6 network of 64 bits, or one user of this machine.
    pub connections_from_one: usize,
}

impl Default for AcceptLimits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            handshakes: 256,
            // 1,000 machines with three connections each, twice over, since reconnecting ones overlap.
            connections: 8192,
            // Many machines may come through one address translator.
            connections_from_one: 2048,
        }
    }
}

/// What has happened at a listener.
#[derive(Debug, Default)]
pub struct AcceptStats {
    accepted: AtomicU64,
    refused_full: AtomicU64,
    refused_origin: AtomicU64,
    handshakes_failed: AtomicU64,
    handshakes_timed_out: AtomicU64,
    handshakes_dropped: AtomicU64,
    complained: AtomicBool,
}

impl AcceptStats {
    /// Connections handed to the server.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
    /// Closed because there were too many in all.
    pub fn refused_full(&self) -> u64 {
        self.refused_full.load(Ordering::Relaxed)
    }
    /// Closed because there were too many from there.
    pub fn refused_origin(&self) -> u64 {
        self.refused_origin.load(Ordering::Relaxed)
    }
    /// Handshakes that failed, for example for a certificate of another office.
    pub fn handshakes_failed(&self) -> u64 {
        self.handshakes_failed.load(Ordering::Relaxed)
    }
    /// Handshakes that took too long.
    pub fn handshakes_timed_out(&self) -> u64 {
        self.handshakes_timed_out.load(Ordering::Relaxed)
    }
    /// Handshakes dropped for newer ones.
    pub fn handshakes_dropped(&self) -> u64 {
        self.handshakes_dropped.load(Ordering::Relaxed)
    }

    fn take(&self, slots: &Arc<Slots>, origin: Origin) -> Option<Slot> {
        match slots.take(origin) {
            Ok(slot) => {
                self.complained.store(false, Ordering::Relaxed);
                Some(slot)
            }
            Err(full) => {
                let counter = if full == Full::InAll { &self.refused_full } else { &self.refused_origin };
                add(counter);
                // Once until there is room again: an attacker must not fill the log.
                if !self.complained.swap(true, Ordering::Relaxed) {
                    tracing::warn!(?full, ?origin, "too many connections; closing new ones");
                }
                None
            }
        }
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// How a listener finds out who has connected. Its handshakes run under the listener's bounds.
pub trait Handshake: Clone + Send + 'static {
    /// What comes of it.
    type Connection: Send + 'static;

    /// Makes the handshake. The slot is to live as long as the connection.
    fn accept(
        self,
        stream: TcpStream,
        remote: SocketAddr,
        slot: Slot,
    ) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

impl Handshake for ServerTls {
    type Connection = Connection;

    async fn accept(self, stream: TcpStream, remote: SocketAddr, slot: Slot) -> io::Result<Connection> {
        handshake(&self, stream, remote, slot).await
    }
}

/// A TLS listener: the stream of its connections, for `serve_with_incoming_shutdown`. Dropping it closes the listener
/// and all handshakes in progress.
pub struct Acceptor<C = Connection> {
    ready: Ready<C>,
    local: SocketAddr,
}

impl<C: Send + 'static> Acceptor<C> {
    /// Listens on a socket that is bound. Call it inside a runtime.
    pub fn new(listener: TcpListener, tls: impl Handshake<Connection = C>, limits: AcceptLimits) -> Result<Self> {
        let local = listener.local_addr()?;
        let slots = Slots::new(limits.connections, limits.connections_from_one);
        let stats = Arc::new(AcceptStats::default());
        let (sender, receiver) = mpsc::channel(READY);
        let listening =
            Listening { tls, limits, slots: slots.clone(), stats: stats.clone(), sender, progress: VecDeque::new() };
        let task = tokio::spawn(listening.run(listener));
        Ok(Self { ready: Ready { receiver, task, slots, stats }, local })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Its counters.
    pub fn stats(&self) -> Arc<AcceptStats> {
        self.ready.stats.clone()
    }

    /// Connections that are open now, handshakes in progress included.
    pub fn open(&self) -> usize {
        self.ready.slots.taken()
    }
}

struct Listening<H: Handshake> {
    tls: H,
    limits: AcceptLimits,
    slots: Arc<Slots>,
    stats: Arc<AcceptStats>,
    sender: mpsc::Sender<H::Connection>,
    // Handshakes in progress, oldest first.
    progress: VecDeque<AbortHandle>,
}

impl<H: Handshake> Listening<H> {
    async fn run(mut self, listener: TcpListener) {
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, remote)) => self.begin(stream, remote, &mut handshakes),
                    Err(error) => pause_after(&error).await,
                },
                Some(_) = handshakes.join_next() => {}
                () = self.sender.closed() => return,
            }
        }
    }

    fn begin(&mut self, stream: TcpStream, remote: SocketAddr, handshakes: &mut JoinSet<()>) {
        let Some(slot) = self.stats.take(&self.slots, remote.ip().into()) else { return };
        self.progress.retain(|h| !h.is_finished());
        while self.progress.len() >= self.limits.handshakes.max(1) {
            if let Some(oldest) = self.progress.pop_front() {
                oldest.abort();
                add(&self.stats.handshakes_dropped);
            }
        }
        let (tls, stats, sender) = (self.tls.clone(), self.stats.clone(), self.sender.clone());
        let deadline = self.limits.handshake_timeout;
        self.progress.push_back(handshakes.spawn(async move {
            match tokio::time::timeout(deadline, tls.accept(stream, remote, slot)).await {
                Ok(Ok(connection)) => {
                    add(&stats.accepted);
                    // Fails only when the server has stopped.
                    let _ = sender.send(connection).await;
                }
                Ok(Err(error)) => {
                    add(&stats.handshakes_failed);
                    tracing::debug!(%remote, %error, "handshake failed");
                }
                Err(_) => {
                    add(&stats.handshakes_timed_out);
                    tracing::debug!(%remote, "handshake took too long");
                }
            }
        }));
    }
}

async fn handshake(tls: &ServerTls, stream: TcpStream, remote: SocketAddr, slot: Slot) -> io::Result<Connection> {
    tune(&stream)?;
    let accepting = tokio_rustls::TlsAcceptor::from(tls.config()).accept(stream).into_fallible();
    let stream = match accepting.await {
        Ok(stream) => stream,
        Err((error, stream)) => {
            part(stream).await;
            return Err(error);
        }
    };
    let leaf = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
    let peer = PeerIdentity::of_tls(leaf, remote, tls.now_ms());
    Ok(Connection::tls(stream, peer, slot))
}

/// Ends a connection whose handshake failed so that the other side reads why: closing with bytes unread would reset the
/// connection, and the alert would be lost with it. The handshake's deadline counts for this too.
pub(super) async fn part(mut stream: TcpStream) {
    let lingering = async {
        stream.shutdown().await?;
        let mut unread = [0; 4096];
        for _ in 0..MAX_UNREAD / unread.len() {
            if stream.read(&mut unread).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    // However it ends, the connection is closed now.
    let _ = tokio::time::timeout(LINGER, lingering).await;
}

/// No delay for small packets; a peer that is gone is noticed within a minute, whether anything is being sent or not.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(stream, 60_000)?;
    Ok(())
}

/// A connection that was gone before it was accepted is no reason to wait; having no file descriptor left is.
async fn pause_after(error: &io::Error) {
    match error.kind() {
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted => {}
        _ => {
            tracing::warn!(%error, "no connection could be accepted");
            tokio::time::sleep(OUT_OF_FILES).await;
        }
    }
}

/// A Unix socket: the stream of its connections with the peers' credentials. Dropping it removes the socket's file.
pub struct UnixAcceptor {
    ready: Ready<Connection>,
    file: SocketFile,
}

impl UnixAcceptor {
    /// Binds a socket file with these permissions. A file that a dead process left is replaced. Call it inside a
    /// runtime.
    ///
    /// # Errors
    /// STORE_BUSY if another process listens there; IO_FAILED if something else than a socket is in the way.
    pub fn bind(path: &Path, mode: u32, limits: AcceptLimits) -> Result<Self> {
        let (listener, file) = SocketFile::bind(path, mode)?;
        let slots = Slots::new(limits.connections, limits.connections_from_one);
        let stats = Arc::new(AcceptStats::default());
        let (sender, receiver) = mpsc::channel(READY);
        let task = tokio::spawn(listen_unix(listener, slots.clone(), stats.clone(), sender));
        Ok(Self { ready: Ready { receiver, task, slots, stats }, file })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Its counters.
    pub fn stats(&self) -> Arc<AcceptStats> {
        self.ready.stats.clone()
    }
}

async fn listen_unix(
    listener: UnixListener,
    slots: Arc<Slots>,
    stats: Arc<AcceptStats>,
    sender: mpsc::Sender<Connection>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        let (stream, credentials) = match accepted.and_then(|(s, _)| s.peer_cred().map(|c| (s, c))) {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        let peer = PeerCredentials { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() };
        let Some(slot) = stats.take(&slots, Origin::User(peer.uid)) else { continue };
        let peer = PeerIdentity { local_unix: Some(peer), ..PeerIdentity::default() };
        add(&stats.accepted);
        if sender.send(Connection::unix(stream, peer, slot)).await.is_err() {
            return;
        }
    }
}

struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    fn bind(path: &Path, mode: u32) -> Result<(UnixListener, Self)> {
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(Error::new(Reason::IoFailed, "something that is no socket is in the socket's place"));
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                return Err(Error::new(Reason::StoreBusy, "another process listens on the socket"));
            }
            Ok(_) | Err(_) => {}
        }
        // Bound under another name, so that nobody can connect before the permissions are set, then renamed over
        // whatever a dead process left.
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let fresh = tempfile::Builder::new().prefix(".s").make_in(directory, |name| UnixListener::bind(name))?;
        std::fs::set_permissions(fresh.path(), Permissions::from_mode(mode))?;
        let inode = std::fs::symlink_metadata(fresh.path())?.ino();
        let listener = fresh.persist(path).map_err(|e| e.error)?;
        Ok((listener, Self { path: path.to_owned(), inode }))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Not if another process has put its own there.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

struct Ready<C> {
    receiver: mpsc::Receiver<C>,
    task: JoinHandle<()>,
    slots: Arc<Slots>,
    stats: Arc<AcceptStats>,
}

impl<C> Drop for Ready<C> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<C> Stream for Acceptor<C> {
    type Item = io::Result<C>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.receiver.poll_recv(cx).map(|c| c.map(Ok))
    }
}

impl Stream for UnixAcceptor {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.receiver.poll_recv(cx).map(|c| c.map(Ok))
    }
}

impl<C> fmt::Debug for Acceptor<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Acceptor({})", self.local)
    }
}

impl fmt::Debug for UnixAcceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnixAcceptor({})", self.file.path.display())
    }
}
