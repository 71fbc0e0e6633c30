//! The listening side: from sockets and relayed streams to calls.

use super::gate::Gate;
use super::identity::{NodeIdentity, Way};
use super::network::Network;
use super::registry::Incoming;
use common::error::{Error, Reason, Result};
use common::identity::DeviceId;
use common::rpc::BULK;
use common::tls::{AcceptLimits, AcceptStats, Acceptor, NodeConnection};
use futures_util::StreamExt;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpSocket;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;
/// Headers of a request together.
const HEADERS_MAX: u32 = 16 * 1024;
/// How long a stranger's connection may last: an enrolment takes seconds.
const STRANGERS_LIFE: Duration = Duration::from_secs(60);
/// For the handshake over a relayed stream.
const RELAYED_HANDSHAKE: Duration = Duration::from_secs(10);

/// Bounds of the listeners.
pub type EndpointLimits = AcceptLimits;

/// Bound listeners that do not serve yet.
pub struct Endpoint {
    network: Network,
    acceptors: Vec<Acceptor<NodeConnection>>,
}

impl Endpoint {
    /// Listens on these addresses; `[::]` takes IPv4 too, and `0.0.0.0` takes its place where there is no IPv6. Call it
    /// inside a runtime.
    ///
    /// # Errors
    /// IO_FAILED if an address cannot be had.
    pub fn bind(network: &Network, addresses: &[SocketAddr], limits: EndpointLimits) -> Result<Self> {
        let acceptors = addresses
            .iter()
            .map(|address| {
                let listener = listen(*address).or_else(|error| match address.ip() {
                    IpAddr::V6(v6) if v6 == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse => {
                        listen((Ipv4Addr::UNSPECIFIED, address.port()).into())
                    }
                    _ => Err(error),
                });
                let listener = listener.map_err(|e| {
                    Error::new(Reason::IoFailed, format!("the address {address} could not be listened on")).caused_by(e)
                })?;
                Acceptor::new(listener, network.tls(), limits)
            })
            .collect::<Result<Vec<_>>>()?;
        let endpoint = Self { network: network.clone(), acceptors };
        network.listens_on(endpoint.addresses());
        Ok(endpoint)
    }

    /// Where it listens, with the ports that the system chose.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.acceptors.iter().map(Acceptor::local_addr).collect()
    }

    /// Counters of the listeners.
    pub fn stats(&self) -> Vec<Arc<AcceptStats>> {
        self.acceptors.iter().map(Acceptor::stats).collect()
    }

    /// Begins to answer calls; also those that come through relays.
    pub fn serve(self, routes: Routes) -> Serving {
        let gate = Gate::new(self.network.admission(), routes);
        let server = Server(Arc::new(Inner {
            network: self.network.clone(),
            gate,
            for_members: http2_for(true),
            for_strangers: http2_for(false),
            open: TaskTracker::new(),
            drain: CancellationToken::new(),
            abort: CancellationToken::new(),
        }));
        self.network.serves_with(server.clone());
        let addresses = self.addresses();
        for acceptor in self.acceptors {
            tokio::spawn(server.clone().accept(acceptor));
        }
        Serving { server, addresses }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({:?})", self.addresses())
    }
}

fn listen(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn http2_for(member: bool) -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(10))
        // The answer may wait behind megabytes of data on a slow line.
        .keep_alive_timeout(Duration::from_secs(60))
        .max_header_list_size(HEADERS_MAX);
    if member {
        http.initial_stream_window_size(BULK.stream)
            .initial_connection_window_size(BULK.connection)
            .max_frame_size(256 * 1024)
            .max_concurrent_streams(256);
    } else {
        http.initial_stream_window_size(65_535)
            .initial_connection_window_size(128 * 1024)
            .max_frame_size(16 * 1024)
            .max_concurrent_streams(8)
            .max_send_buf_size(64 * 1024);
    }
    http
}

/// Listeners that answer calls.
pub struct Serving {
    server: Server,
    addresses: Vec<SocketAddr>,
}

impl Serving {
    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.server.0.open.len()
    }

    /// Closes the listeners, tells all connections to go when their calls have ended, and drops what is left after the
    /// patience.
    pub async fn stop(self, patience: Duration) {
        let inner = &self.server.0;
        inner.drain.cancel();
        inner.network.ends_listening();
        inner.open.close();
        if tokio::time::timeout(patience, inner.open.wait()).await.is_err() {
            inner.abort.cancel();
            inner.open.wait().await;
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.server.0.drain.cancel();
        self.server.0.abort.cancel();
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serving({:?})", self.addresses)
    }
}

/// Turns encrypted streams into calls.
#[derive(Clone)]
pub(super) struct Server(Arc<Inner>);

struct Inner {
    network: Network,
    gate: Gate,
    for_members: http2::Builder<TokioExecutor>,
    for_strangers: http2::Builder<TokioExecutor>,
    open: TaskTracker,
    drain: CancellationToken,
    abort: CancellationToken,
}

impl Server {
    async fn accept(self, mut acceptor: Acceptor<NodeConnection>) {
        let drain = self.0.drain.clone();
        while let Some(Some(accepted)) = drain.run_until_cancelled(acceptor.next()).await {
            let Ok(NodeConnection { stream, key, remote, slot }) = accepted else { continue };
            let this = self.clone();
            let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
            self.0.open.spawn(async move {
                // The place among the connections is given back when this one has ended.
                let _slot = slot;
                this.serve(stream, key, Way::Direct(remote)).await;
            });
        }
    }

    /// Serves a stream that came through a relay: first the handshake with the one at its other end.
    pub(super) async fn serve_relayed<S>(self, stream: S, relay: DeviceId)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let inner = self.0.clone();
        let tls = inner.network.tls();
        let serving = async move {
            match tokio::time::timeout(RELAYED_HANDSHAKE, tls.accept_over(stream)).await {
                Ok(Ok((stream, key))) => self.serve(stream, key, Way::Relayed(relay)).await,
                Ok(Err(error)) => tracing::debug!(?relay, %error, "handshake over a relayed stream failed"),
                Err(_) => tracing::debug!(?relay, "handshake over a relayed stream took too long"),
            }
        };
        inner.open.track_future(serving).await;
    }

    async fn serve<S>(&self, stream: S, key: [u8; 32], way: Way)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let device = DeviceId::of_key(&key);
        let member = self.0.network.admission().is_member(&device);
        let Some(incoming) = self.0.network.entered(device, member, way) else {
            tracing::warn!(?device, "a member has too many connections; the new one is closed");
            return;
        };
        let identity = NodeIdentity { device, key, way, member };
        tokio::select! {
            () = self.drive(stream, identity, &incoming) => {}
            () = incoming.ended() => tracing::debug!(?device, "connection ended by this node"),
            () = self.0.abort.cancelled() => {}
        }
    }

    async fn drive<S>(&self, stream: S, identity: NodeIdentity, _incoming: &Incoming)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let gate = self.0.gate.clone();
        let service = service_fn(move |request| {
            let gate = gate.clone();
            async move { Ok::<_, Infallible>(gate.call(identity, request).await) }
        });
        let builder = if identity.member { &self.0.for_members } else { &self.0.for_strangers };
        let mut http = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let outcome = tokio::select! {
            outcome = http.as_mut() => outcome,
            () = self.0.drain.cancelled() => {
                http.as_mut().graceful_shutdown();
                http.await
            }
            () = tokio::time::sleep(STRANGERS_LIFE), if !identity.member => return,
        };
        if let Err(error) = outcome {
            // Machines go away without a word all the time.
            tracing::debug!(device = ?identity.device, %error, "connection ended");
        }
    }
}
