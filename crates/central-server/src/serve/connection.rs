//! Connections: HTTP/2 with our windows, told to go when the server stops or when they are old.

use super::calls::{self, Begun};
use crate::grpc::auth::Peer;
use crate::grpc::pipeline::Pipeline;
use crate::settings::Grpc;
use common::tls::{Acceptor, Connection, UnixAcceptor};
use futures_util::{Stream, StreamExt};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Headers of a request together. Tokens and request ids are far below it.
const HEADERS_MAX: u32 = 16 * 1024;

/// Serves connections and knows which are open.
#[derive(Clone, Debug)]
pub(super) struct Served(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pipeline: Pipeline,
    http: Http,
    max_age: Duration,
    open: TaskTracker,
    drain: CancellationToken,
    abort: CancellationToken,
}

/// How HTTP/2 is spoken.
#[derive(Debug)]
struct Http {
    stream_window: u32,
    connection_window: u32,
    max_frame: u32,
    max_streams: u32,
    keepalive_interval: Duration,
    keepalive_timeout: Duration,
}

impl Http {
    fn builder(&self, begun: Begun) -> http2::Builder<Begun> {
        let mut http = http2::Builder::new(begun);
        http.timer(TokioTimer::new())
            .initial_stream_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_frame_size(self.max_frame)
            .max_concurrent_streams(self.max_streams)
            .keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .max_header_list_size(HEADERS_MAX);
        http
    }
}

impl Served {
    pub(super) fn new(pipeline: Pipeline, settings: &Grpc) -> Self {
        let window = |bytes: u64| u32::try_from(bytes).unwrap_or(i32::MAX as u32).min(i32::MAX as u32);
        let http = Http {
            stream_window: window(settings.stream_window.bytes()),
            connection_window: window(settings.connection_window.bytes()),
            max_frame: window(settings.max_frame.bytes()),
            max_streams: settings.max_streams,
            keepalive_interval: settings.keepalive_interval.get(),
            keepalive_timeout: settings.keepalive_timeout.get(),
        };
        Self(Arc::new(Inner {
            pipeline,
            http,
            max_age: settings.max_connection_age.get(),
            open: TaskTracker::new(),
            drain: CancellationToken::new(),
            abort: CancellationToken::new(),
        }))
    }

    /// How many are open.
    pub(super) fn open(&self) -> usize {
        self.0.open.len()
    }

    /// Tells all connections to go when their calls have ended.
    pub(super) fn drain(&self) {
        self.0.drain.cancel();
        self.0.open.close();
    }

    /// Waits until all have ended. Only after [`Served::drain`].
    pub(super) async fn ended(&self) {
        self.0.open.wait().await;
    }

    /// Drops what is left.
    pub(super) async fn abort(&self) {
        self.drain();
        self.0.abort.cancel();
        self.0.open.wait().await;
    }

    fn serve(&self, connection: Connection) {
        let this = self.clone();
        self.0.open.spawn(async move {
            let abort = this.0.abort.clone();
            tokio::select! {
                () = this.drive(connection) => {}
                () = abort.cancelled() => {}
            }
        });
    }

    async fn drive(&self, connection: Connection) {
        let peer = Arc::new(Peer::of(connection.peer()));
        let pipeline = self.0.pipeline.clone();
        let service = service_fn(move |request| {
            let (pipeline, peer) = (pipeline.clone(), peer.clone());
            async move { Ok::<_, Infallible>(pipeline.call(&peer, request).await) }
        });
        let begun = Begun::default();
        let http = self.0.http.builder(begun.clone()).serve_connection(TokioIo::new(connection), service);
        let mut http = pin!(http);
        let mut leave = pin!(self.leave());
        let mut leaving = false;
        let connection = poll_fn(|cx| {
            if !leaving && leave.as_mut().poll(cx).is_ready() {
                leaving = true;
                http.as_mut().graceful_shutdown();
            }
            http.as_mut().poll(cx)
        });
        let outcome = calls::drive(pin!(connection), &begun).await;
        if let Err(error) = outcome {
            // Peers go away without a word all the time.
            tracing::debug!(%error, "connection ended");
        }
    }

    async fn leave(&self) {
        tokio::select! {
            () = self.0.drain.cancelled() => {}
            () = tokio::time::sleep(self.0.max_age) => {}
        }
    }
}

/// The two listeners. Dropping it closes them.
#[derive(Debug)]
pub(super) struct Listening {
    stop: CancellationToken,
    _tasks: [JoinHandle<()>; 2],
}

impl Listening {
    pub(super) fn begin(tls: Acceptor, local: UnixAcceptor, served: Served) -> Self {
        let stop = CancellationToken::new();
        let tasks = [
            tokio::spawn(accept(tls, served.clone(), stop.clone())),
            tokio::spawn(accept(local, served, stop.clone())),
        ];
        Self { stop, _tasks: tasks }
    }

    /// No more connections.
    pub(super) fn close(self) {
        self.stop.cancel();
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(
    mut incoming: impl Stream<Item = io::Result<Connection>> + Unpin,
    served: Served,
    stop: CancellationToken,
) {
    while let Some(Some(accepted)) = stop.run_until_cancelled(incoming.next()).await {
        if let Ok(connection) = accepted {
            served.serve(connection);
        }
    }
}
