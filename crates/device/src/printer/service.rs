//! The IPP service: printers for every program of the local network, over HTTP/1.1 on plain TCP and TLS.
//!
//! IPP/2.2 and IPP Everywhere (RFC 8011, PWG 5100.12, 5100.14). A listener serves one printer at `/ipp/print`, or all of them
//! at `/printers/NAME` and `/ipp/print/NAME`; jobs are at `/jobs/NUMBER`.
//!
//! Who may do what is asked of [`Access`] on every request. In the local network nobody proves who they are: a caller is a
//! stated name at an address, and acts on the jobs that came under that name from that address.
//!
//! # Bounds
//!
//! Connections in all and from one address; attributes as the codec says; every wait for a client's bytes; a document as
//! the queue and the quota say. A malformed request is answered with an IPP error if its first 8 bytes are there, with
//! HTTP 400 otherwise, and takes no more memory than its attributes may have.

mod attributes;
mod documents;
mod http;
mod jobs;
mod operations;
mod request;
mod subscriptions;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::attributes::{is_ours, make_and_model, urf};
use self::subscriptions::Subscriptions;
use super::model::{Right, Who};
use super::printers::Printers;
use crate::ipp::codes::Operation;

/// How long a TLS handshake, or the head of an HTTP request, may take.
const HEAD: Duration = Duration::from_secs(10);
/// How long open requests may still run when the service ends.
const DRAIN: Duration = Duration::from_secs(5);

/// Where a request comes from.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Whether it came over TLS.
    pub tls: bool,
}

/// Decides who may do what.
pub trait Access: Send + Sync + 'static {
    /// Who somebody is that states this name; without an identity by default.
    fn who(&self, peer: &Peer, stated: &str) -> Who {
        Who::stated(stated, &peer.address.ip().to_string())
    }

    /// Whether the caller may. Seeing is asked before anything else: who may not see a printer hears that there is none.
    fn allows(&self, who: &Who, peer: &Peer, printer: &str, right: Right) -> bool;

    /// A request that changes something was granted or refused; for the audit.
    fn decided(&self, who: &Who, peer: &Peer, printer: &str, operation: Operation, granted: bool) {
        let _ = (who, peer, printer, operation, granted);
    }
}

/// Everybody may see and print; only this machine itself may manage. For tests, examples and single machines.
#[derive(Clone, Copy, Debug, Default)]
pub struct Open;

impl Access for Open {
    fn allows(&self, _who: &Who, peer: &Peer, _printer: &str, right: Right) -> bool {
        right != Right::Manage || peer.address.ip().to_canonical().is_loopback()
    }
}

/// Limits of the service.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    /// Connections at a time.
    pub connections: usize,
    /// Connections at a time from one address.
    pub connections_per_address: usize,
    /// How long a client may send nothing.
    pub idle: Duration,
    /// The name or address in URIs if the client does not say which it used.
    pub host: String,
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self { connections: 256, connections_per_address: 64, idle: Duration::from_secs(30), host: "localhost".into() }
    }
}

/// The service. Clones are the same one.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

struct Shared {
    printers: Printers,
    access: Arc<dyn Access>,
    options: ServiceOptions,
    connections: Arc<Semaphore>,
    addresses: Mutex<HashMap<IpAddr, usize>>,
    subscriptions: Mutex<Subscriptions>,
    /// Ports that are served, for `printer-uri-supported`; 0 if none.
    port: AtomicU16,
    tls_port: AtomicU16,
}

/// A connection's share of its address; given back when it ends.
struct Seat {
    shared: Arc<Shared>,
    address: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut addresses = self.shared.addresses.lock();
        if let Some(count) = addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

impl Service {
    /// A service for these printers.
    pub fn new(printers: Printers, access: Arc<dyn Access>, options: ServiceOptions) -> Self {
        let connections = Arc::new(Semaphore::new(options.connections));
        let shared = Shared {
            printers,
            access,
            options,
            connections,
            addresses: Mutex::default(),
            subscriptions: Mutex::default(),
            port: AtomicU16::new(0),
            tls_port: AtomicU16::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Serves a listener until `stop`, then lets open requests end. `tls`: over TLS with these settings. `only`: the one
    /// printer that this listener is for.
    pub async fn serve(
        &self,
        listener: TcpListener,
        tls: Option<Arc<rustls::ServerConfig>>,
        only: Option<String>,
        stop: CancellationToken,
    ) {
        let port = listener.local_addr().map_or(0, |a| a.port());
        let kept = if tls.is_some() { &self.shared.tls_port } else { &self.shared.port };
        kept.store(port, Ordering::Relaxed);
        let acceptor = tls.map(tokio_rustls::TlsAcceptor::from);
        let only: Option<Arc<str>> = only.map(Into::into);
        let tasks = TaskTracker::new();
        loop {
            let (stream, address) = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of file descriptors, most likely: others must end first.
                        tracing::warn!(%error, "a connection to a printer could not be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let Some(seat) = self.seat(address.ip()) else { continue };
            let Ok(permit) = Arc::clone(&self.shared.connections).try_acquire_owned() else { continue };
            let (shared, acceptor, only, stop) =
                (Arc::clone(&self.shared), acceptor.clone(), only.clone(), stop.clone());
            tasks.spawn(async move {
                let _held = (seat, permit);
                let peer = Peer { address, tls: acceptor.is_some() };
                connection(shared, stream, acceptor, peer, only, stop).await;
            });
        }
        kept.store(0, Ordering::Relaxed);
        drop(listener);
        tasks.close();
        let _ = tokio::time::timeout(DRAIN, tasks.wait()).await;
    }

    fn seat(&self, address: IpAddr) -> Option<Seat> {
        let mut addresses = self.shared.addresses.lock();
        let count = addresses.entry(address).or_default();
        if *count >= self.shared.options.connections_per_address {
            return None;
        }
        *count += 1;
        Some(Seat { shared: Arc::clone(&self.shared), address })
    }
}

async fn connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    acceptor: Option<tokio_rustls::TlsAcceptor>,
    peer: Peer,
    only: Option<Arc<str>>,
    stop: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    match acceptor {
        None => exchange(shared, TokioIo::new(stream), peer, only, stop).await,
        Some(acceptor) => {
            if let Ok(Ok(stream)) = tokio::time::timeout(HEAD, acceptor.accept(stream)).await {
                exchange(shared, TokioIo::new(stream), peer, only, stop).await;
            }
        }
    }
}

async fn exchange<I>(shared: Arc<Shared>, io: I, peer: Peer, only: Option<Arc<str>>, stop: CancellationToken)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let (shared, peer, only) = (Arc::clone(&shared), peer.clone(), only.clone());
        async move { Ok::<_, std::convert::Infallible>(http::answer(shared, peer, only, request).await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(128 * 1024);
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(DRAIN, connection).await;
        }
    }
}
