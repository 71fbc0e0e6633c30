//! Moving chunks: serving, following, scheduling, writing, resuming.
//!
//! A transfer fetches the chunks of an [`Order`] from every node that has them, at once, and serves them again from the
//! first one on. The design is in `docs/adr/0009-swarm.md`.
//!
//! ```text
//!   order ─▶ plan: pieces (different chunks) and their places         Follow: who has what, who else takes part
//!              │                                                             │
//!              ▼                                                             ▼
//!   engine: one task a transfer ── scheduler: whom to ask for which piece (pure, simulated in `sim`)
//!              │        ▲                                                    │
//!              ▼        └──── verified, written, or wrong: blamed by name    ▼
//!   writer: NAME.atrium-part, journal, sync points            Fetch: several calls a source, zero-copy
//!              │
//!              └─▶ parts: a source for others ─▶ serve: Fetch and Follow
//! ```
//!
//! # On disk
//!
//! ```text
//! STATE/transfers/ID/plan    the order, immutable, with its digest      (plan.rs)
//! STATE/transfers/ID/have    which pieces are written, append-only      (journal.rs)
//! store "t/" + id            state, totals, times, problem, known nodes (record.rs);  "tl"  limits
//! DESTINATION/.NAME.MARK.atrium-part   an unfinished file, beside its place
//! ```
//!
//! # Invariants
//!
//! 1. Nothing is written that does not match its digest; nothing is served that does not.
//! 2. No piece is asked for twice but in the endgame, after a wrong answer, and from a source that has fallen silent.
//! 3. A file has its name only when it is whole. What was there before is replaced in one step, synced first.
//! 4. No path leads out of the destination, and no link is followed.
//! 5. A piece counts as there only while its journal says so, or until it is found damaged.
//!
//! # Crashes
//!
//! | when | then |
//! |---|---|
//! | before the record is in the store | the order was not accepted; its files are removed at the next start |
//! | a killed process, at any instant | goes on with everything that was written; what was on the line is fetched again |
//! | a power cut | pieces since the last sync point are read and hashed; what is damaged is fetched again |
//! | after the last piece, before the sync point | the same: the transfer ends once more |
//!
//! # Bounds
//!
//! Transfers that are not ended: [`TRANSFERS_MAX`]; one more is OVERLOADED. Ended ones are listed for a day, at most
//! [`ENDED_MAX`], and served from for [`TransferSettings::serve_after`]. An order: see `order.rs`. A transfer keeps 32 MiB
//! between line and disk and follows 48 sources; about 100 bytes of memory a chunk. The serving side: see `serve.rs`.

pub mod bits;
mod engine;
pub mod feed;
mod journal;
pub mod limits;
mod local;
mod network;
pub mod order;
mod parts;
pub mod peers;
pub mod plan;
pub mod progress;
mod record;
pub mod scheduler;
pub mod serve;
#[doc(hidden)]
pub mod sim;
#[cfg(test)]
mod sim_tests;
mod writer;

pub use engine::Verb;
pub use journal::fuzz_journal;
pub use limits::Limits;
pub use network::NetworkPeers;
pub use order::{Order, OrderDirectory, OrderFile};
pub use peers::{PeerEvent, PeerLink, Peers};
pub use progress::{Limit, Problem, Progress, SourceProgress, State};
pub use scheduler::Scheduler;
pub use serve::TransferServer;
pub use writer::{Disk, RealDisk};

use self::engine::{Engine, Left, Shared};
use self::feed::Feeds;
use self::limits::{Limiter, Traffic};
use self::parts::Parts;
use self::plan::Plan;
use self::record::Record;
use crate::model::{Scope, TransferId};
use crate::source::{ChunkSource, Holdings, Place, Sources};
use common::clock::SharedClock;
use common::error::{Error, Reason, Result};
use common::model::{ChunkId, DeviceId};
use common::store::Store;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Transfers that are not ended.
pub const TRANSFERS_MAX: usize = 1_000;
/// Ended transfers that are listed.
pub const ENDED_MAX: usize = 100;
/// How long they are listed.
const ENDED_FOR_MS: u64 = 24 * 3600 * 1000;
/// Commands to one transfer that wait.
const COMMANDS: usize = 16;
/// How often bandwidth is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often what is old is put away.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// How transfers are kept and run.
pub struct TransferSettings {
    /// Where plans and journals are; made if it is missing.
    pub directory: PathBuf,
    /// Limits until the user sets others, which are kept.
    pub limits: Limits,
    /// How long an ended transfer is served from.
    pub serve_after: Duration,
    /// Pause after the first failure of a source or of writing; doubles up to 30 s.
    pub first_pause: Duration,
    /// How bytes get into files.
    pub disk: Arc<dyn Disk>,
    /// What else goes over the line; `None`: nobody looks, and nothing yields.
    pub traffic: Option<Box<dyn Traffic>>,
    /// This machine's line, bytes a second, if known.
    pub line_rate: Option<u64>,
}

impl TransferSettings {
    /// The usual ones.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            limits: Limits { yields: true, ..Limits::default() },
            serve_after: Duration::from_secs(3600),
            first_pause: Duration::from_millis(500),
            disk: Arc::new(RealDisk),
            traffic: Some(Box::new(limits::NetworkCards::default())),
            line_rate: None,
        }
    }
}

/// All transfers of this node. Clones are handles to the same; when the last one is dropped, everything stops where it is.
#[derive(Clone)]
pub struct Transfers(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    server: TransferServer,
    all: Arc<Mutex<BTreeMap<TransferId, Entry>>>,
    serve_after: Duration,
    stop: CancellationToken,
    _stop_with_me: DropGuard,
    tasks: TaskTracker,
}

struct Entry {
    progress: watch::Receiver<Progress>,
    control: mpsc::Sender<Verb>,
}

impl Transfers {
    /// Opens what there is, and goes on with what was not ended. Registers what was fetched as a source. Call it inside a
    /// runtime; blocks for a moment.
    ///
    /// # Errors
    /// STORE_CORRUPT, IO_FAILED, DISK_FULL; FIELD_INVALID for limits that cannot be read.
    pub fn open(
        store: Store,
        peers: Arc<dyn Peers>,
        sources: Sources,
        settings: TransferSettings,
        clock: SharedClock,
    ) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&settings.directory)?;
        let limiter = Limiter::new(record::load_limits(&store)?.unwrap_or(settings.limits))?;
        limiter.apply(clock.now_ms(), None);
        let records = Record::all(&store)?;
        remove_orphans(&settings.directory, &records)?;
        let feeds = Feeds::default();
        let parts = Arc::new(Parts::new(feeds.clone()));
        sources.register(parts.clone());
        let stop = CancellationToken::new();
        let server = TransferServer::new(sources.clone(), feeds.clone(), limiter.clone(), stop.clone());
        let shared = Arc::new(Shared {
            store,
            peers,
            sources,
            feeds,
            parts,
            limiter,
            clock,
            directory: settings.directory,
            disk: settings.disk,
            first_pause: settings.first_pause,
            line_rate: settings.line_rate,
        });
        let transfers = Self(Arc::new(Inner {
            shared,
            server,
            all: Arc::default(),
            serve_after: settings.serve_after,
            _stop_with_me: stop.clone().drop_guard(),
            stop,
            tasks: TaskTracker::new(),
        }));
        records.into_iter().for_each(|record| transfers.restore(record));
        transfers.look_at_bandwidth(settings.traffic);
        transfers.tidy_now_and_then();
        Ok(transfers)
    }

    /// The service for other nodes.
    pub fn server(&self) -> TransferServer {
        self.0.server.clone()
    }

    /// Begins a transfer. It is kept: it goes on after a restart, until it is done, failed or cancelled.
    ///
    /// # Errors
    /// What [`Order::check`] says; OVERLOADED if there are too many; IO_FAILED, DISK_FULL; those of the store.
    pub async fn start(&self, order: Order) -> Result<TransferId> {
        if self.0.all.lock().values().filter(|e| !e.progress.borrow().state.is_ended()).count() >= TRANSFERS_MAX {
            return Err(Error::new(Reason::Overloaded, "there are too many transfers at a time"));
        }
        let id = TransferId::generate();
        let directory = self.0.shared.directory_of(&id);
        let plan = tokio::task::spawn_blocking(move || -> Result<Plan> {
            let plan = Plan::new(order)?;
            fs::DirBuilder::new().mode(0o700).create(&directory)?;
            plan.save(&directory.join("plan"))?;
            Ok(plan)
        })
        .await
        .map_err(|e| Error::internal("working out an order").caused_by(e))??;
        let record = Record {
            id,
            state: State::Running,
            title: plan.order.title.clone(),
            destination: plan.order.destination.clone(),
            create_ms: self.0.shared.clock.now_ms(),
            end_ms: 0,
            elapsed_ms: 0,
            file_count: plan.order.files.len() as u64,
            total_bytes: plan.total_bytes,
            local_bytes: 0,
            fetched_bytes: 0,
            settled: false,
            problem: None,
            sources: Vec::new(),
        };
        record.save(&self.0.shared.store).await?;
        self.run(record);
        Ok(id)
    }

    /// Progress of a transfer, as it goes.
    ///
    /// # Errors
    /// TRANSFER_UNKNOWN.
    pub fn watch(&self, id: &TransferId) -> Result<watch::Receiver<Progress>> {
        self.0.all.lock().get(id).map(|e| e.progress.clone()).ok_or_else(unknown)
    }

    /// All transfers, newest first.
    pub fn list(&self) -> Vec<Progress> {
        let mut all: Vec<Progress> = self.0.all.lock().values().map(|e| e.progress.borrow().clone()).collect();
        all.sort_by_key(|p| std::cmp::Reverse((p.create_ms, p.id)));
        all
    }

    /// Pauses, goes on with or cancels a transfer. One that has ended stays as it is.
    ///
    /// # Errors
    /// TRANSFER_UNKNOWN; OVERLOADED if it has too many commands to do.
    pub fn control(&self, id: &TransferId, verb: Verb) -> Result<()> {
        let all = self.0.all.lock();
        let entry = all.get(id).ok_or_else(unknown)?;
        match entry.control.try_send(verb) {
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(Error::new(Reason::Overloaded, "the transfer has too many commands to do"))
            }
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }

    /// Waits until a transfer has ended.
    ///
    /// # Errors
    /// TRANSFER_UNKNOWN; SHUTTING_DOWN if the node stops first.
    pub async fn wait(&self, id: &TransferId) -> Result<Progress> {
        self.wait_for(id, |p| p.state.is_ended()).await
    }

    /// Waits until a transfer has ended and, if it is done, is safe from a power cut.
    ///
    /// # Errors
    /// As [`Transfers::wait`].
    pub async fn wait_settled(&self, id: &TransferId) -> Result<Progress> {
        self.wait_for(id, |p| p.state.is_ended() && (p.settled || p.state != State::Done)).await
    }

    async fn wait_for(&self, id: &TransferId, fits: impl Fn(&Progress) -> bool) -> Result<Progress> {
        let mut progress = self.watch(id)?;
        let stopped = || Error::new(Reason::ShuttingDown, "the node stops before the transfer has ended");
        let found = progress.wait_for(|p| fits(p)).await.map_err(|_| stopped())?;
        Ok(found.clone())
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.0.shared.limiter.limits()
    }

    /// Puts others in force, and keeps them.
    ///
    /// # Errors
    /// FIELD_INVALID for a schedule that cannot be read; those of the store.
    pub async fn set_limits(&self, limits: Limits) -> Result<()> {
        limits.check()?;
        record::save_limits(&self.0.shared.store, &limits).await?;
        self.0.shared.limiter.set(limits, self.0.shared.clock.now_ms())
    }

    /// Tells followers of a scope about chunks that came or went by other ways than a transfer.
    pub fn announce(&self, scope: &Scope, have: Vec<ChunkId>, lost: Vec<ChunkId>) {
        self.0.shared.feeds.publish(scope, have, lost);
    }

    /// Bytes given to others since the start.
    pub fn served_bytes(&self) -> u64 {
        self.0.server.served_bytes()
    }

    /// Stops everything where it is; it goes on at the next start. What is written is synced.
    pub async fn close(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn restore(&self, record: Record) {
        let ended = record.state.is_ended() && (record.settled || record.state != State::Done);
        if !ended {
            // Done but not settled: looks once more whether everything is there.
            let state = if record.state == State::Paused { State::Paused } else { State::Running };
            self.run(Record { state, end_ms: 0, ..record });
            return;
        }
        let (control, _) = mpsc::channel(1);
        let (_, progress) = watch::channel(shown(&record));
        self.0.all.lock().insert(record.id, Entry { progress, control });
        let age = self.0.shared.clock.now_ms().saturating_sub(record.end_ms);
        if record.state == State::Done && u128::from(age) < self.0.serve_after.as_millis() {
            let (shared, id) = (self.0.shared.clone(), record.id);
            self.0.tasks.spawn_blocking(move || {
                if let Err(error) = engine::serve_ended(&shared, id) {
                    tracing::info!(%error, "what a transfer has fetched cannot be served any more");
                }
            });
        }
    }

    fn run(&self, record: Record) {
        let (control, commands) = mpsc::channel(COMMANDS);
        let (show, progress) = watch::channel(shown(&record));
        self.0.all.lock().insert(record.id, Entry { progress, control });
        let (shared, stop) = (self.0.shared.clone(), self.0.stop.clone());
        self.0.tasks.spawn(async move {
            let id = record.id;
            match Engine::run(shared, record, show, commands, stop).await {
                Left::Ended => tracing::info!(transfer = %id, "a transfer has ended"),
                Left::Stopped => tracing::debug!(transfer = %id, "a transfer goes on at the next start"),
            }
        });
    }

    /// Caps and yielding, twice a second.
    fn look_at_bandwidth(&self, mut traffic: Option<Box<dyn Traffic>>) -> JoinHandle<()> {
        let (shared, stop) = (self.0.shared.clone(), self.0.stop.clone());
        self.0.tasks.spawn(async move {
            let mut tick = tokio::time::interval(LOOK_EVERY);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                // Reading two small files of the system's memory: no disk.
                let usage = traffic.as_mut().and_then(|t| t.usage());
                shared.limiter.apply(shared.clock.now_ms(), usage);
            }
        })
    }

    fn tidy_now_and_then(&self) -> JoinHandle<()> {
        let (shared, stop, all) = (self.0.shared.clone(), self.0.stop.clone(), self.0.all.clone());
        let serve_ms = u64::try_from(self.0.serve_after.as_millis()).unwrap_or(u64::MAX);
        self.0.tasks.spawn(async move {
            let mut tick = tokio::time::interval(TIDY_EVERY);
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                tidy(&shared, &all, serve_ms).await;
            }
        })
    }
}

/// Forgets what ended long ago.
async fn tidy(shared: &Shared, all: &Mutex<BTreeMap<TransferId, Entry>>, serve_ms: u64) {
    let now = shared.clock.now_ms();
    let mut ended: Vec<(u64, TransferId)> = {
        let all = all.lock();
        let ended = all.iter().map(|(id, e)| (id, e.progress.borrow()));
        ended
            .filter(|(_, p)| p.state.is_ended() && (p.settled || p.state != State::Done))
            .map(|(id, p)| (p.end_ms, *id))
            .collect()
    };
    ended.sort_unstable();
    let surplus = ended.len().saturating_sub(ENDED_MAX);
    for (n, (end_ms, id)) in ended.into_iter().enumerate() {
        let age = now.saturating_sub(end_ms);
        if age >= serve_ms {
            shared.parts.remove(&id);
        }
        if n >= surplus && age < ENDED_FOR_MS {
            continue;
        }
        shared.parts.remove(&id);
        if let Err(error) = Record::remove(id, &shared.store).await {
            tracing::error!(%error, "an old transfer could not be forgotten");
            continue;
        }
        all.lock().remove(&id);
        let directory = shared.directory_of(&id);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || fs::remove_dir_all(directory)).await {
            tracing::debug!(%error, "the files of an old transfer stay until the next start");
        }
    }
}

/// What others can fetch of what was fetched here.
impl ChunkSource for Transfers {
    fn may_have(&self, scope: &Scope, asker: &DeviceId) -> Result<bool> {
        self.0.shared.parts.may_have(scope, asker)
    }

    fn locate(&self, scope: &Scope, chunk: &ChunkId) -> Result<Option<Place>> {
        self.0.shared.parts.locate(scope, chunk)
    }

    fn holdings(&self, scope: &Scope, manifests: &[[u8; 32]]) -> Result<Holdings> {
        self.0.shared.parts.holdings(scope, manifests)
    }

    fn moved(&self, scope: &Scope, chunk: &ChunkId, place: &Place) {
        self.0.shared.parts.moved(scope, chunk, place);
    }
}

fn unknown() -> Error {
    Error::new(Reason::TransferUnknown, "there is no such transfer")
}

/// What is known of a transfer before its task says more.
fn shown(record: &Record) -> Progress {
    let done = record.state == State::Done;
    Progress {
        id: record.id,
        state: if record.state == State::Running { State::Listing } else { record.state },
        title: record.title.clone(),
        destination: record.destination.clone(),
        file_count: record.file_count,
        done_file_count: if done { record.file_count } else { 0 },
        total_bytes: record.total_bytes,
        done_bytes: if done { record.total_bytes } else { 0 },
        local_bytes: record.local_bytes,
        fetched_bytes: record.fetched_bytes,
        rate: 0,
        served_bytes: 0,
        sources: Vec::new(),
        limit: Limit::None,
        floor_ratio: 0.0,
        problem: record.problem.clone(),
        elapsed_ms: record.elapsed_ms,
        create_ms: record.create_ms,
        end_ms: record.end_ms,
        settled: record.settled,
    }
}

/// Directories of orders that were not accepted, or that are forgotten.
fn remove_orphans(directory: &Path, records: &[Record]) -> Result<()> {
    let known: HashSet<String> = records.iter().map(|r| r.id.to_string()).collect();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|n| n.parse::<TransferId>().is_ok() && !known.contains(n));
        if is_ours && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
