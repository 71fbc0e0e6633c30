//! Atrium's workstation agent as a library.
//!
//! A workstation shares nothing: the agent listens on a Unix socket of its machine only and dials out to the central
//! server. `membership` and `people` are what it keeps, `link` is the way to the server, `queue` and `uploader` bring
//! files there, `cache`, `known` and `fetch` read them from there, `service` is what programs of this machine ask.

pub mod cache;
pub mod fetch;
pub mod known;
pub mod link;
pub mod membership;
pub mod people;
pub mod queue;
pub mod service;
pub mod settings;
pub mod uploader;

use cache::ChunkCache;
use common::clock::{SharedClock, SystemClock};
use common::error::{Error, Reason, Result};
use common::shutdown::Shutdown;
use common::tls::{AcceptLimits, UnixAcceptor};
use known::KnownFiles;
use link::{Link, State};
use membership::Member;
use people::People;
use proto::agent::v1::agent_service_server::AgentServiceServer;
use queue::Queue;
use service::Service;
use settings::Settings;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use uploader::Uploader;

/// Everyone may connect; what they may do is decided per call.
const SOCKET_MODE: u32 = 0o666;
/// Largest message on the local socket.
const MESSAGE_MAX: usize = 2 * 1024 * 1024;

/// A running agent.
pub struct Running {
    /// Its socket.
    pub socket: PathBuf,
    /// The way to the server.
    pub link: Arc<Link>,
    serving: tokio::task::JoinHandle<std::result::Result<(), tonic::transport::Error>>,
    shutdown: Shutdown,
    _lock: File,
}

impl Running {
    /// Waits until it has ended.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn wait(self) -> Result<()> {
        let served = self.serving.await.map_err(|e| Error::internal("the local socket").caused_by(e))?;
        self.shutdown.drained().await;
        served.map_err(|e| Error::new(Reason::IoFailed, "the local socket failed").caused_by(e))
    }
}

/// Starts an agent in the current runtime.
///
/// # Errors
/// The state directory is used by another agent or cannot be used; the socket cannot be made.
pub async fn start(settings: Settings, shutdown: Shutdown) -> Result<Running> {
    let settings = Arc::new(settings);
    let directory = settings.agent.state_directory.clone();
    fs::create_dir_all(&directory)?;
    fs::set_permissions(&directory, Permissions::from_mode(0o700))?;
    let lock = File::options().create(true).truncate(false).write(true).open(directory.join("lock"))?;
    if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(Error::new(Reason::StoreBusy, "another agent uses this state directory"));
    }
    let clock: SharedClock = Arc::new(SystemClock);
    let member = Arc::new(Member::open(&directory)?);
    let people = Arc::new(People::open(&directory.join("sessions.json"))?);
    let queue =
        Arc::new(Queue::open(&directory.join("queue"), settings.queue.limit.bytes(), settings.queue.items_max)?);
    let cache = Arc::new(ChunkCache::open(&directory.join("cache"), settings.cache.limit.bytes())?);
    let known = Arc::new(KnownFiles::open(&directory.join("known"), settings.cache.files_max)?);
    let link = Arc::new(Link::new(member.clone(), people.clone(), settings.clone(), clock.clone()));

    let socket = settings.agent.socket.clone();
    if let Some(parent) = socket.parent() {
        fs::create_dir_all(parent)?;
    }
    let acceptor = UnixAcceptor::bind(&socket, SOCKET_MODE, AcceptLimits::default())?;
    let service = Service {
        member,
        people: people.clone(),
        link: link.clone(),
        queue: queue.clone(),
        cache,
        known,
        clock: clock.clone(),
    };
    let stop = shutdown.token();
    shutdown.spawn({
        let (link, stop) = (link.clone(), stop.clone());
        async move { link.keep(stop).await }
    });
    shutdown.spawn(Uploader { queue, link: link.clone(), people, clock }.run(stop));
    let service = AgentServiceServer::new(service).max_decoding_message_size(MESSAGE_MAX);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::PUBLIC_DESCRIPTORS)
        .build_v1()
        .map_err(|e| Error::internal("reflection").caused_by(e))?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<AgentServiceServer<Service>>().await;
    let serving = tokio::spawn(
        common::rpc::tuned_server()
            .add_service(health_service)
            .add_service(reflection)
            .add_service(service)
            .serve_with_incoming_shutdown(acceptor, shutdown.signal()),
    );
    Ok(Running { socket, link, serving, shutdown, _lock: lock })
}

/// Tells systemd that we are ready, how the connection is, and that we are alive.
pub fn notify_systemd(link: Arc<Link>, shutdown: &Shutdown) {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let period = sd_notify::watchdog_enabled().map_or(Duration::from_secs(20), |d| d / 2);
    let stop = shutdown.token();
    shutdown.spawn(async move {
        let mut state = link.state();
        loop {
            let text = match &*state.borrow_and_update() {
                State::NotJoined => "not joined: atrium join SERVER".to_owned(),
                State::Connecting => "connecting".to_owned(),
                State::Connected => "connected".to_owned(),
                State::Lost(p) | State::Revoked(p) => p.message.clone(),
            };
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(&text), sd_notify::NotifyState::Watchdog]);
            tokio::select! {
                () = tokio::time::sleep(period) => {}
                changed = state.changed() => if changed.is_err() { return },
                () = stop.cancelled() => {
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
                    return;
                }
            }
        }
    });
}
