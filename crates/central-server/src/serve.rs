//! Starting and stopping: from settings to a server that answers, and back to a directory at rest.
//!
//! Start: take the data directory, open the keys, listen (health says NOT_SERVING), open the stores, serve. So a client
//! that comes while a large store is being recovered is told to wait instead of being refused.
//!
//! Stop: health says NOT_SERVING and watches end, listeners close, connections are told to go; calls may go on for the
//! drain time; then what is left of streams ends with SHUTTING_DOWN; then the stores are synced and closed. Nothing that
//! was acknowledged depends on any of this.

mod calls;
mod connection;
mod notify;
mod web;

use crate::app::file_state::FileState;
use crate::app::office::{DataDirectory, Keys, Layout, Office};
use crate::app::{App, devices, print};
use crate::background;
use crate::grpc;
use crate::grpc::health::HealthReport;
use crate::grpc::pipeline::{Pipeline, Ready};
use crate::metrics::Metrics;
use crate::settings::Settings;
use common::chunk::{ChunkStore, ChunkStoreSettings};
use common::clock::{SharedClock, SystemClock};
use common::error::{Error, Reason, Result};
use common::shutdown::Shutdown;
use common::store::{Store, StoreSettings};
use common::tls::{AcceptLimits, AcceptStats, Acceptor, UnixAcceptor};
use connection::{Listening, Served};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Connections that the kernel keeps until they are accepted: many machines come back at once after a restart.
const BACKLOG: u32 = 1024;
/// How long streams that were ended may take to say so.
const CUT_GRACE: Duration = Duration::from_secs(2);
/// Connections over the administration socket.
const LOCAL_CONNECTIONS: usize = 256;
/// The administration socket is for root and the server's own user.
const LOCAL_MODE: u32 = 0o600;

/// A server that answers.
#[derive(Debug)]
pub struct Running {
    /// Where it answers gRPC over TLS.
    pub addr: SocketAddr,
    /// Where it answers administration on this machine.
    pub admin_socket: PathBuf,
    /// Where it answers metrics, if it does.
    pub metrics_addr: Option<SocketAddr>,
    app: App,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    task: JoinHandle<Result<()>>,
}

impl Running {
    /// The application, for tests that look inside.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// The numbers.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The office CA's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        self.app.office.ca.ca_pem()
    }

    /// Begins to stop. [`Running::wait`] says when it is done.
    pub fn stop(&self) {
        self.shutdown.begin();
    }

    /// Waits until the server has stopped: after [`Running::stop`], the shutdown it was started with, or a failure.
    ///
    /// # Errors
    /// What ended it.
    pub async fn wait(self) -> Result<()> {
        // The handle to the stores must go before they are closed.
        drop(self.app);
        self.task.await.map_err(|e| Error::internal("the server's task ended in a defect").caused_by(e))?
    }
}

/// Opened stores and who may use them.
#[derive(Debug)]
pub struct Opened {
    /// The application.
    pub app: App,
    /// Renews the server's certificate.
    pub identity: common::tls::ServerIdentity,
    directory: DataDirectory,
}

impl Opened {
    /// Closes the stores.
    pub async fn close(self) {
        let App { store, chunks, .. } = self.app;
        drop(chunks);
        store.close().await;
        drop(self.directory);
    }
}

/// Opens a data directory without listening: for `init` and the first part of [`start`].
///
/// # Errors
/// `STORE_BUSY`, `STORE_TOO_NEW`, `STORE_CORRUPT`, `CERTIFICATE_INVALID`, `IO_FAILED` and more: the data cannot be used.
pub fn open(settings: Settings, clock: SharedClock, shutdown: CancellationToken) -> Result<Opened> {
    let directory = DataDirectory::take(&settings.server.data_directory)?;
    let keys = Keys::open(&directory, &settings, &clock)?;
    open_stores(directory, keys, settings, clock, shutdown)
}

fn open_stores(
    directory: DataDirectory,
    keys: Keys,
    settings: Settings,
    clock: SharedClock,
    shutdown: CancellationToken,
) -> Result<Opened> {
    let layout = directory.layout();
    let store = Store::open(&store_settings(&settings, layout))?;
    let chunks = ChunkStore::open(&ChunkStoreSettings {
        segment_bytes: settings.chunks.segment.bytes(),
        clock: clock.clone(),
        ..ChunkStoreSettings::new(layout.chunks())
    })?;
    let office = Arc::new(Office::open(&store, keys.ca, keys.tls, clock.now_ms())?);
    let files = FileState::open(&layout.directory().join("uploads"), clock.now_ms())?;
    let app = App { files: Arc::new(files), ..App::open(store, chunks, clock, Arc::new(settings), office, shutdown)? };
    print::upkeep::recover(&app)?;
    Ok(Opened { app, identity: keys.identity, directory })
}

/// How the store in a data directory is opened.
pub fn store_settings(settings: &Settings, layout: &Layout) -> StoreSettings {
    StoreSettings {
        engine: settings.store.engine,
        directory: layout.store(),
        cache_bytes: settings.store.cache.bytes(),
        snapshot_keep: settings.store.snapshot_keep,
        ..StoreSettings::default()
    }
}

/// Starts a server on this machine's clock. It answers when this returns.
///
/// # Errors
/// As [`open`], and `IO_FAILED` if an address cannot be listened at.
pub async fn start(settings: Settings, shutdown: Shutdown) -> Result<Running> {
    start_at(settings, shutdown, Arc::new(SystemClock)).await
}

/// Starts a server on another clock.
///
/// # Errors
/// As [`start`].
pub async fn start_at(settings: Settings, shutdown: Shutdown, clock: SharedClock) -> Result<Running> {
    let (directory, keys) = {
        let (settings, clock) = (settings.clone(), clock.clone());
        blocking(move || {
            let directory = DataDirectory::take(&settings.server.data_directory)?;
            let keys = Keys::open(&directory, &settings, &clock)?;
            Ok((directory, keys))
        })
        .await?
    };
    let metrics = Arc::new(Metrics::default());
    let health = HealthReport::new().await;
    let always = grpc::always(&settings, &health)?;
    let pipeline = Pipeline::new(always, settings.grpc.max_calls, settings.grpc.call_timeout.get(), metrics.clone());

    let acceptor = Acceptor::new(listen(settings.grpc.listen)?, keys.tls.clone(), limits(&settings))?;
    let admin_socket = settings.admin_socket();
    let local_limits = AcceptLimits {
        connections: LOCAL_CONNECTIONS,
        connections_from_one: LOCAL_CONNECTIONS,
        ..AcceptLimits::default()
    };
    let local = UnixAcceptor::bind(&admin_socket, LOCAL_MODE, local_limits)?;
    let web = match settings.web.enabled {
        true => Some(listen(settings.web.listen)?),
        false => None,
    };
    let addr = acceptor.local_addr();
    let stats = acceptor.stats();
    let served = Served::new(pipeline.clone(), &settings.grpc);
    let listening = Listening::begin(acceptor, local, served.clone());

    let opened = {
        let (settings, clock, token) = (settings.clone(), clock.clone(), shutdown.token());
        blocking(move || open_stores(directory, keys, settings, clock, token)).await
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            listening.close();
            served.abort().await;
            return Err(error);
        }
    };
    let app = opened.app.clone();
    let shared = Shared { app: app.clone(), pipeline: pipeline.clone(), metrics: metrics.clone(), stats, served };
    pipeline.open(Ready { app: app.clone(), routes: grpc::routes(&shared) });
    let metrics_addr = match web {
        Some(listener) => {
            let bound = listener.local_addr()?;
            shutdown.spawn(web::serve(listener, shared.clone(), shutdown.token()));
            Some(bound)
        }
        None => None,
    };
    background::spawn(&shared, opened.identity, &shutdown);
    health.serving(true).await;
    shutdown.spawn(notify::watch(app.clone(), shutdown.token()));
    tracing::info!(%addr, admin = %admin_socket.display(), office = %app.office.name, "serving");
    let stop = Stop { shutdown: shutdown.clone(), health, listening, shared, directory: opened.directory };
    let task = tokio::spawn(stop.run());
    Ok(Running { addr, admin_socket, metrics_addr, app, metrics, shutdown, task })
}

/// What the parts of a running server share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The application.
    pub app: App,
    /// All calls.
    pub pipeline: Pipeline,
    /// All numbers.
    pub metrics: Arc<Metrics>,
    /// What happened at the listener.
    pub stats: Arc<AcceptStats>,
    served: Served,
}

impl Shared {
    /// Open connections, those on the administration socket included.
    pub fn connections(&self) -> u64 {
        self.served.open() as u64
    }
}

struct Stop {
    shutdown: Shutdown,
    health: HealthReport,
    listening: Listening,
    shared: Shared,
    directory: DataDirectory,
}

impl Stop {
    async fn run(self) -> Result<()> {
        let Self { shutdown, health, listening, shared, directory } = self;
        let failed = tokio::select! {
            () = shutdown.begun() => None,
            error = store_failure(&shared.app) => Some(error),
        };
        shutdown.begin();
        notify::stopping();
        health.serving(false).await;
        listening.close();
        shared.served.drain();
        // Connections and background work are both waited for, for the drain time together.
        let connections = shared.served.clone();
        shutdown.spawn(async move { connections.ended().await });
        let drained = shutdown.drained().await;
        tracing::info!(?drained, "drained");
        shared.pipeline.cut();
        if tokio::time::timeout(CUT_GRACE, shared.served.ended()).await.is_err() {
            shared.served.abort().await;
        }
        shared.pipeline.close();
        // Nobody calls any more: what is noted now is all there is. A store that failed takes nothing, and says so.
        if let Err(error) = devices::flush_seen(&shared.app).await {
            tracing::warn!(?error, "when devices were last seen was not written");
        }
        let App { store, chunks, .. } = shared.app;
        let synced = chunks.sync().await;
        drop(chunks);
        store.close().await;
        drop(directory);
        tracing::info!("stopped");
        match failed {
            Some(error) => Err(error),
            None => synced,
        }
    }
}

/// A store that failed takes no more changes until it is opened again: the server stops, and whoever started it starts
/// it anew.
async fn store_failure(app: &App) -> Error {
    let mut look = tokio::time::interval(Duration::from_secs(1));
    loop {
        look.tick().await;
        if app.store.is_failed() {
            return Error::new(Reason::StoreFailed, "the database reported an error; the server stops");
        }
    }
}

fn limits(settings: &Settings) -> AcceptLimits {
    AcceptLimits {
        handshake_timeout: settings.grpc.handshake_timeout.get(),
        handshakes: settings.grpc.max_handshakes,
        connections: settings.grpc.max_connections,
        connections_from_one: settings.grpc.max_connections_from_one,
    }
}

/// Listens at an address; an unspecified IPv6 address takes IPv4 too, where the machine has IPv6 at all.
fn listen(address: SocketAddr) -> Result<TcpListener> {
    let bound = listen_at(address).or_else(|error| {
        let no_ipv6 = address.is_ipv6() && address.ip().is_unspecified();
        let unsupported = error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
            || error.kind() == std::io::ErrorKind::AddrNotAvailable;
        if no_ipv6 && unsupported {
            return listen_at(SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, address.port())));
        }
        Err(error)
    });
    bound.map_err(|e| {
        let fix = match e.kind() {
            std::io::ErrorKind::AddrInUse => "stop the other program, or choose another port",
            std::io::ErrorKind::PermissionDenied => "choose a port above 1023",
            _ => "choose an address of this machine",
        };
        Error::new(Reason::IoFailed, format!("{address} cannot be listened at: {e}"))
            .why_is("the system refused it")
            .fix_is(fix)
            .caused_by(e)
    })
}

fn listen_at(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    if address.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    // So that a restart need not wait for the connections of the run before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Runs blocking work of a start.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("the start ran into a defect").caused_by(e))?
}
