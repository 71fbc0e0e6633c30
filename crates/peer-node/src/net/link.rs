//! The connections to one device, as those who call it see them.

use super::gate::{MEMBER, STANDING};
use super::identity::Way;
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::identity::DeviceId;
use common::rpc::{BULK, CONTROL, REQUEST_ID_HEADER, Windows};
use common::status::unreachable_because;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::transport::channel::ResponseFuture;
use tonic::transport::{Channel, Endpoint, Error as TransportError};
use tower::{Service, ServiceExt};
use uuid::Uuid;

/// A control connection that is silent for so long is asked whether its other end is alive.
pub const PING_AFTER: Duration = Duration::from_secs(2);
/// And the answer may take so long: a busy machine is not a dead one.
pub const PONG_WITHIN: Duration = Duration::from_secs(6);
/// HTTP/2 frames; see `common::rpc`.
const MAX_FRAME: u32 = 256 * 1024;

/// Bytes both ways.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}
/// Any stream of a link.
pub(super) type AnyStream = Box<dyn Duplex>;

/// What calls to a node are made on. Clones share the connection.
#[derive(Clone)]
pub struct NodeChannel {
    channel: Channel,
    device: DeviceId,
}

impl NodeChannel {
    /// The device at the other end.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// Over a stream that stands. When it ends, so does the channel.
    pub(super) async fn over(stream: AnyStream, device: DeviceId, end: CancellationToken) -> Result<Self> {
        let once = Mutex::new(Some(Cut::new(stream, end.clone(), true)));
        let connector = tower::service_fn(move |_: Uri| {
            let stream = once.lock().take().map(TokioIo::new);
            async move { stream.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection has ended")) }
        });
        let endpoint = endpoint(CONTROL).http2_keep_alive_interval(PING_AFTER).keep_alive_timeout(PONG_WITHIN);
        let channel = endpoint.connect_with_connector(connector).await?;
        Ok(Self { channel, device })
    }

    /// Connects when first used and again when it broke, until the link ends.
    pub(super) fn lazy<F, Fut>(device: DeviceId, end: CancellationToken, open: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<AnyStream>> + Send + 'static,
    {
        let connector = tower::service_fn(move |_: Uri| {
            let (opening, end) = (open(), end.clone());
            async move {
                let gone = || io::Error::new(io::ErrorKind::NotConnected, "the link has ended");
                let stream = end.run_until_cancelled(opening).await.ok_or_else(gone)??;
                io::Result::Ok(TokioIo::new(Cut::new(stream, end, false)))
            }
        });
        let endpoint = endpoint(BULK)
            .http2_keep_alive_interval(Duration::from_secs(10))
            // The answer may wait behind megabytes of data on a slow line. The control connection notices a dead machine.
            .keep_alive_timeout(Duration::from_secs(60));
        Self { channel: endpoint.connect_with_connector_lazy(connector), device }
    }

    /// Asks for the other side's health and takes any answer. Gives back whether it counts this node as a member.
    pub(super) async fn check(&self) -> Result<bool> {
        // A gRPC message of no bytes: not compressed, length 0.
        let request = Request::post("/grpc.health.v1.Health/Check")
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(Body::new(Full::new(Bytes::from_static(&[0; 5]))))
            .map_err(|e| Error::internal("the question could not be written").caused_by(e))?;
        let answer = self.clone().oneshot(request).await.map_err(|e| unreachable_because(&e))?;
        Ok(answer.headers().get(STANDING) == Some(&MEMBER))
    }
}

fn endpoint(windows: Windows) -> Endpoint {
    Endpoint::from_static("http://node.atrium")
        .origin(Uri::from_static("https://node.atrium"))
        .user_agent(concat!("atrium/", env!("CARGO_PKG_VERSION")))
        .unwrap_or_else(|_| Endpoint::from_static("http://node.atrium"))
        .initial_stream_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .max_frame_size(MAX_FRAME)
        .keep_alive_while_idle(true)
}

impl Service<Request<Body>> for NodeChannel {
    type Response = Response<Body>;
    type Error = TransportError;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> ResponseFuture {
        let headers = request.headers_mut();
        if !headers.contains_key(REQUEST_ID_HEADER)
            && let Ok(id) = HeaderValue::try_from(Uuid::new_v4().to_string())
        {
            headers.insert(REQUEST_ID_HEADER, id);
        }
        self.channel.call(request)
    }
}

impl fmt::Debug for NodeChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeChannel({:?})", self.device)
    }
}

/// The connections to one device. Clones share them. They live as long as the network keeps the link or someone holds it.
#[derive(Clone)]
pub struct Link(Arc<Inner>);

struct Inner {
    device: DeviceId,
    way: Way,
    local: Option<SocketAddr>,
    control: NodeChannel,
    bulk: Vec<NodeChannel>,
    next: AtomicUsize,
    /// All connections end with it, and it with the control connection.
    end: CancellationToken,
    /// Another link has taken its place; what runs on this one may finish.
    retired: CancellationToken,
    round_trip_us: AtomicU64,
}

impl Link {
    pub(super) fn new(
        way: Way,
        local: Option<SocketAddr>,
        control: NodeChannel,
        bulk: Vec<NodeChannel>,
        end: CancellationToken,
        round_trip: Duration,
    ) -> Self {
        Self(Arc::new(Inner {
            device: control.device(),
            way,
            local,
            control,
            bulk,
            next: AtomicUsize::new(0),
            end,
            retired: CancellationToken::new(),
            round_trip_us: AtomicU64::new(micros(round_trip)),
        }))
    }

    /// The device at the other end.
    pub fn device(&self) -> DeviceId {
        self.0.device
    }

    /// For small calls: never behind bulk data.
    pub fn control(&self) -> NodeChannel {
        self.0.control.clone()
    }

    /// For bulk data: one of a few connections, the next one in turn.
    pub fn bulk(&self) -> NodeChannel {
        let at = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.0.bulk.get(at % self.0.bulk.len().max(1)).unwrap_or(&self.0.control).clone()
    }

    /// How many bulk connections there are at most.
    pub fn bulk_count(&self) -> usize {
        self.0.bulk.len().max(1)
    }

    /// How the connections get there.
    pub fn way(&self) -> Way {
        self.0.way
    }

    /// This machine's end, if the link is direct.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.0.local
    }

    /// The shortest time that an answer took lately.
    pub fn round_trip(&self) -> Duration {
        Duration::from_micros(self.0.round_trip_us.load(Ordering::Relaxed))
    }

    /// Whether the link still stands.
    pub fn is_up(&self) -> bool {
        !self.0.end.is_cancelled()
    }

    /// Waits until the link has ended.
    pub async fn ended(&self) {
        self.0.end.cancelled().await;
    }

    pub(super) fn end(&self) {
        self.0.end.cancel();
    }

    pub(super) fn retire(&self) {
        self.0.retired.cancel();
    }

    pub(super) async fn retired(&self) {
        self.0.retired.cancelled().await;
    }

    pub(super) fn same(&self, other: &Link) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Measures the round trip by a small call.
    ///
    /// # Errors
    /// NOT_A_MEMBER if the other side does not count this node as a member any longer; what broke the call.
    pub(super) async fn measure(&self) -> Result<()> {
        let began = tokio::time::Instant::now();
        let member = self.0.control.check().await?;
        let now = micros(began.elapsed());
        // Follows a change of the way slowly upwards and at once downwards: a busy machine answers late.
        let before = self.0.round_trip_us.load(Ordering::Relaxed);
        let next = if before == 0 || now < before { now } else { before + (now - before) / 8 };
        self.0.round_trip_us.store(next.max(1), Ordering::Relaxed);
        match member {
            true => Ok(()),
            false => Err(Error::new(Reason::NotAMember, "the other machine does not count this one as a member")),
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({:?}, {})", self.0.device, self.0.way)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A stream that breaks when it is told to, and that tells when it has ended.
pub(super) struct Cut<S> {
    stream: S,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Cancelled with the stream.
    ends: Option<CancellationToken>,
}

impl<S> Cut<S> {
    pub(super) fn new(stream: S, end: CancellationToken, takes_along: bool) -> Self {
        Self { stream, cut: Box::pin(end.clone().cancelled_owned()), ends: takes_along.then_some(end) }
    }
}

impl<S> Drop for Cut<S> {
    fn drop(&mut self) {
        if let Some(ends) = &self.ends {
            ends.cancel();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cut<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the link was ended")));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cut<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
