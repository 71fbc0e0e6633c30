//! One transfer at work: a task that owns the scheduler and is told of everything by events.
//!
//! ```text
//!  follow (one task a source) ─┐                      ┌─▶ call (one task a call of Fetch) ─┐
//!  survey (local disk) ────────┼─▶ events ─▶ Engine ──┼─▶ verify and write (blocking) ─────┼─▶ events
//!  control, ticks, feed ───────┘     scheduler        └─▶ sync point (blocking) ───────────┘
//! ```
//!
//! Content waits in at most [`MEMORY`] bytes between the line and the disk; when that is used up, streams are not read and
//! the other side waits. All tasks end with the engine.

mod call;
mod follow;
mod sources;

use self::call::{Arrival, Call, MEMORY_UNIT};
use self::sources::SourceTable;
use super::feed::{Feed, Feeds, Taker};
use super::journal::{Journal, boot_id};
use super::limits::Limiter;
use super::local::{Finding, Survey, present};
use super::parts::{Holding, Parts};
use super::peers::{PeerEvent, PeerLink, Peers};
use super::plan::Plan;
use super::progress::{Limit, Pace, Problem, Progress, SourceProgress, State};
use super::record::Record;
use super::scheduler::{Action, CallKey, Piece, Scheduler, SourceKey};
use super::writer::{Beneath, Disk, Writer};
use crate::model::TransferId;
use crate::source::Sources;
use common::bulk::Rope;
use common::clock::SharedClock;
use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use common::store::Store;
use proto::peer::v1::FollowResponse;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

/// Content between the line and the disk, of one transfer.
const MEMORY: usize = 32 << 20;
/// Events that wait.
const EVENTS: usize = 256;
/// How often is looked at what does not tell by itself.
const TICK: Duration = Duration::from_millis(100);
/// A sync point follows after so many bytes, or after so long.
const SYNC_BYTES: u64 = 256 << 20;
/// See [`SYNC_BYTES`].
const SYNC_EVERY: Duration = Duration::from_secs(5);
/// Asked for at a time while there is a cap, so that transfers take turns.
const CAPPED_BUDGET: u64 = 256 << 10;
/// Room that is left on a disk.
const SPARE_BYTES: u64 = 16 << 20;
/// The longest pause before writing is tried again.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// When nothing else is left to try for so long, sources are asked again for what they did not have or sent wrong.
const FORGIVE_AFTER: Duration = Duration::from_secs(10);
/// A source that is to be spared is asked when the others have said what they have and who takes part: not before the one,
/// and not later than the other.
const HEARD_AT_FIRST: Duration = Duration::from_millis(150);
/// See [`HEARD_AT_FIRST`].
const HEARD_AT_LAST: Duration = Duration::from_millis(500);
/// For less than this nobody waits.
const SPARED_FROM: u64 = 4 << 20;
/// How often the state is kept while it changes all the time.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// What to do with a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// Stop for now.
    Pause,
    /// Go on.
    Resume,
    /// Stop for good. Files that are whole stay.
    Cancel,
}

/// What all transfers of a node share.
pub struct Shared {
    /// Records.
    pub store: Store,
    /// Other nodes.
    pub peers: Arc<dyn Peers>,
    /// What is on this machine.
    pub sources: Sources,
    /// News for followers.
    pub feeds: Feeds,
    /// What transfers have fetched.
    pub parts: Arc<Parts>,
    /// Bandwidth.
    pub limiter: Limiter,
    /// Time of day.
    pub clock: SharedClock,
    /// Where plans and journals are.
    pub directory: PathBuf,
    /// How bytes get into files.
    pub disk: Arc<dyn Disk>,
    /// Pause after the first failure of a source or of writing.
    pub first_pause: Duration,
    /// This machine's line, bytes a second, if known.
    pub line_rate: Option<u64>,
}

impl Shared {
    /// Where the files of a transfer are.
    pub fn directory_of(&self, id: &TransferId) -> PathBuf {
        self.directory.join(id.to_string())
    }
}

/// What happens to a transfer.
pub enum Event {
    /// A source can be asked.
    Up {
        /// Which.
        source: SourceKey,
        /// How.
        link: PeerLink,
    },
    /// A source cannot be asked any more.
    Down {
        /// Which.
        source: SourceKey,
        /// Why.
        error: Error,
    },
    /// A source says what it has.
    Told {
        /// Which.
        source: SourceKey,
        /// What.
        message: FollowResponse,
    },
    /// Content came.
    Arrived(Arrival),
    /// A call is over.
    CallEnded {
        /// Which.
        call: CallKey,
        /// Whose.
        source: SourceKey,
        /// Why, if not well.
        failed: Option<Error>,
    },
    /// Pieces were verified and written.
    Written {
        /// From whom.
        source: SourceKey,
        /// What came of each.
        results: Vec<(Piece, Outcome)>,
    },
    /// Pieces were looked for on this machine.
    Found(Finding),
    /// That is done.
    Surveyed(Result<()>),
    /// A sync point was made.
    Synced(Result<()>),
    /// All files have their names.
    Published(Result<()>),
}

/// What came of a piece that arrived.
pub enum Outcome {
    /// It is in its places.
    Good,
    /// It is not what its digest says.
    Wrong,
    /// It could not be written.
    Failed(Error),
}

/// A plan, opened.
struct Opened {
    plan: Arc<Plan>,
    writer: Arc<Writer>,
    present: Vec<u32>,
    doubtful: BTreeSet<Piece>,
}

/// Opens plan, destination and journal. Blocks.
fn open(shared: &Shared, id: TransferId) -> Result<Opened> {
    let directory = shared.directory_of(&id);
    let plan = Arc::new(Plan::load(&directory.join("plan"))?);
    let tree = Beneath::open(&plan.order.destination)?;
    let (journal, mut found) = Journal::open(&directory.join("have"), boot_id())?;
    let mark: String = id.as_bytes()[12..].iter().map(|b| format!("{b:02x}")).collect();
    let writer = Arc::new(Writer::new(plan.clone(), tree, mark, shared.disk.clone(), journal));
    let mut pieces = std::mem::take(&mut found.have);
    drop_what_is_gone(&plan, &writer, &found.published, &mut pieces);
    writer.recover(pieces, found.published);
    writer.make_directories()?;
    let present = present(&plan, &writer)?;
    Ok(Opened { plan, writer, present, doubtful: found.doubtful })
}

/// Takes pieces out whose unfinished files are gone.
fn drop_what_is_gone(plan: &Plan, writer: &Writer, published: &BTreeSet<u32>, pieces: &mut BTreeSet<Piece>) {
    if pieces.is_empty() {
        return;
    }
    for file in 0..plan.order.files.len() as u32 {
        let some = plan.pieces_of(file).iter().any(|p| pieces.contains(p));
        if some && !published.contains(&file) && !writer.has_part(file) {
            for piece in plan.pieces_of(file) {
                pieces.remove(piece);
            }
        }
    }
}

/// Lets others fetch what an ended transfer has. Blocks.
///
/// # Errors
/// Those of the plan and the destination.
pub fn serve_ended(shared: &Shared, id: TransferId) -> Result<()> {
    let opened = open(shared, id)?;
    let (lost, _) = mpsc::channel(1);
    shared.parts.add(id, Holding { plan: opened.plan, writer: opened.writer, lost });
    Ok(())
}

/// A transfer at work.
pub struct Engine {
    shared: Arc<Shared>,
    record: Record,
    progress: watch::Sender<Progress>,
    events: mpsc::Sender<Event>,
    state: State,
    plan: Arc<Plan>,
    writer: Arc<Writer>,
    scheduler: Scheduler,
    sources: SourceTable,
    calls: HashMap<CallKey, (SourceKey, AbortOnDropHandle<()>)>,
    feed: Arc<Feed>,
    _taking_part: Taker,
    memory: Arc<Semaphore>,
    stop: CancellationToken,
    _stop_with_me: DropGuard,
    pace: Pace,
    began: Instant,
    elapsed_before_ms: u64,
    served_before: u64,
    /// Blocking work that is under way.
    jobs: usize,
    surveying: bool,
    syncing: bool,
    publishing: bool,
    synced_at: Instant,
    saved_at: Instant,
    /// Something has happened, so that there may be something to ask.
    hungry: bool,
    /// Writing failed: nothing is asked until then.
    blocked: Option<(Instant, Error)>,
    retry: Duration,
    ended: Option<Result<()>>,
    done_bytes: u64,
    stuck_since: Option<Instant>,
}

/// How a transfer left its task.
pub enum Left {
    /// It has ended, and its state is kept.
    Ended,
    /// The node stops.
    Stopped,
}

impl Engine {
    /// Runs a transfer until it has ended or `stop` is cancelled.
    pub async fn run(
        shared: Arc<Shared>,
        record: Record,
        progress: watch::Sender<Progress>,
        mut control: mpsc::Receiver<Verb>,
        stop: CancellationToken,
    ) -> Left {
        let id = record.id;
        let mut retry = shared.first_pause;
        let opened = loop {
            let opening = shared.clone();
            let opened = tokio::task::spawn_blocking(move || open(&opening, id)).await;
            let error = match opened.unwrap_or_else(|e| Err(Error::internal("opening a transfer").caused_by(e))) {
                Ok(opened) => break opened,
                Err(error) => error,
            };
            if is_final(&error) {
                return end_early(&shared, record, &progress, State::Failed, Some((&error).into())).await;
            }
            progress.send_modify(|p| (p.state, p.problem) = (State::Waiting, Some((&error).into())));
            tokio::select! {
                () = tokio::time::sleep(retry) => {}
                () = stop.cancelled() => return Left::Stopped,
                Some(Verb::Cancel) = control.recv() => {
                    return end_early(&shared, record, &progress, State::Cancelled, None).await;
                }
            }
            retry = (retry * 2).min(LONGEST_RETRY);
        };
        let (events, receiver) = mpsc::channel(EVENTS);
        let (lost, lost_pieces) = mpsc::channel(EVENTS);
        let mut engine = Self::new(shared, record, progress, events, &opened, stop.child_token());
        engine.shared.parts.add(id, Holding { plan: opened.plan.clone(), writer: opened.writer.clone(), lost });
        if engine.state == State::Running {
            engine.start_survey(opened.present, opened.doubtful);
            engine.start_sources();
        }
        engine.work(receiver, lost_pieces, &mut control, &stop).await
    }

    fn new(
        shared: Arc<Shared>,
        record: Record,
        progress: watch::Sender<Progress>,
        events: mpsc::Sender<Event>,
        opened: &Opened,
        stop: CancellationToken,
    ) -> Self {
        let (plan, writer) = (opened.plan.clone(), opened.writer.clone());
        let me = shared.peers.me();
        let mut seed = [0; 8];
        seed.copy_from_slice(&me.0[..8]);
        let mut scheduler =
            Scheduler::new(plan.pieces.iter().map(|p| p.len).collect(), u64::from_le_bytes(seed) ^ plan.total_bytes);
        let mut done_bytes = 0;
        for piece in 0..plan.pieces.len() as Piece {
            if writer.has(piece) {
                scheduler.hold(piece);
                done_bytes += plan.bytes_of(piece);
            } else {
                scheduler.withhold(piece);
            }
        }
        let feed = shared.feeds.of(&plan.order.scope);
        let sources = SourceTable::new(&shared, &plan, events.clone());
        let paused = record.state == State::Paused;
        let now = Instant::now();
        Self {
            state: if paused { State::Paused } else { State::Running },
            elapsed_before_ms: record.elapsed_ms,
            served_before: feed.served(),
            _taking_part: feed.enter(me),
            feed,
            scheduler,
            sources,
            plan,
            writer,
            calls: HashMap::new(),
            memory: Arc::new(Semaphore::new(MEMORY / MEMORY_UNIT)),
            _stop_with_me: stop.clone().drop_guard(),
            stop,
            pace: Pace::new(shared.line_rate),
            began: now,
            jobs: 0,
            surveying: false,
            syncing: false,
            publishing: false,
            synced_at: now,
            saved_at: now,
            hungry: true,
            blocked: None,
            retry: shared.first_pause,
            ended: None,
            done_bytes,
            stuck_since: None,
            events,
            progress,
            record,
            shared,
        }
    }

    async fn work(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut lost: mpsc::Receiver<Piece>,
        control: &mut mpsc::Receiver<Verb>,
        stop: &CancellationToken,
    ) -> Left {
        let mut peers = self.shared.peers.events();
        let mut feed = self.feed.subscribe();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let shared = self.shared.clone();
        self.take_part();
        loop {
            if let Some(left) = self.settle().await {
                return left;
            }
            let capped = shared.limiter.download().is_capped();
            if self.hungry && !capped {
                self.pump(u64::MAX);
            }
            tokio::select! {
                () = stop.cancelled() => return self.leave().await,
                Some(event) = events.recv() => self.handle(event),
                Some(piece) = lost.recv() => self.lost(piece),
                Some(verb) = control.recv() => {
                    if verb == Verb::Cancel {
                        return self.cancel(&mut events).await;
                    }
                    self.control(verb).await;
                }
                () = shared.limiter.download().ready(), if self.hungry && capped => self.pump(CAPPED_BUDGET),
                event = peers.recv() => self.peer(event),
                Ok(()) = feed.changed() => self.take_part(),
                _ = tick.tick() => self.tick().await,
            }
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Ends the transfer if there is nothing more to do.
    async fn settle(&mut self) -> Option<Left> {
        if self.ended.is_none() && self.scheduler.left() == 0 && self.state != State::Paused && !self.publishing {
            let all = self.writer.published_count() == self.plan.order.files.len() as u64;
            if all && self.jobs == 0 && !self.surveying {
                self.ended = Some(Ok(()));
            } else if self.jobs == 0 && !self.surveying && self.blocked.is_none() {
                self.publishing = true;
                let writer = self.writer.clone();
                self.blocking(move || Event::Published(writer.publish_whole()));
            }
        }
        let result = self.ended.take()?;
        self.stop_network();
        self.stop.cancel();
        Some(match result {
            Ok(()) => self.finish_well().await,
            Err(error) => {
                self.shared.parts.remove(&self.record.id);
                self.finish(State::Failed, Some((&error).into())).await
            }
        })
    }

    fn handle(&mut self, event: Event) {
        self.hungry = true;
        match event {
            Event::Up { source, link } => {
                if self.sources.up(source, link) {
                    self.scheduler.join(source, self.now_us());
                    if self.sources.is_spared(source) {
                        self.scheduler.spare(source);
                    }
                }
            }
            Event::Down { source, error } => {
                tracing::debug!(source = self.sources.name(source), %error, "a source of a transfer is away");
                self.scheduler.leave(source);
                self.calls.retain(|_, (of, _)| *of != source);
                self.sources.down(source, error);
            }
            Event::Told { source, message } => self.told(source, &message),
            Event::Arrived(arrival) => self.arrived(arrival),
            Event::CallEnded { call, source, failed } => {
                self.calls.remove(&call);
                if let Some(error) = &failed {
                    tracing::debug!(source = self.sources.name(source), %error, "a call for chunks ended early");
                }
                self.scheduler.ended(call, failed.is_some(), self.now_us());
            }
            Event::Written { source, results } => self.written(source, results),
            Event::Found(finding) => self.found(&finding),
            Event::Surveyed(result) => {
                self.jobs -= 1;
                self.surveying = false;
                if let Err(error) = result {
                    self.not_written(error);
                }
            }
            Event::Synced(result) => {
                self.jobs -= 1;
                self.syncing = false;
                if let Err(error) = result {
                    self.not_written(error);
                }
            }
            Event::Published(result) => {
                self.jobs -= 1;
                self.publishing = false;
                if let Err(error) = result {
                    self.not_written(error);
                }
            }
        }
    }

    /// Lets a source that is to be spared be asked, once it is known who else takes part.
    fn open_spared(&mut self) {
        let since = self.began.elapsed();
        let at_once = self.plan.total_bytes < SPARED_FROM || self.sources.has_spared_only();
        if at_once || since >= HEARD_AT_LAST || since >= HEARD_AT_FIRST && self.sources.all_heard() {
            self.scheduler.open_spared();
        }
    }

    fn told(&mut self, source: SourceKey, message: &FollowResponse) {
        self.sources.heard(source);
        if message.complete {
            self.scheduler.complete(source);
        }
        for piece in self.sources.pieces(&message.have) {
            self.scheduler.has(source, piece);
        }
        for piece in self.sources.pieces(&message.lost) {
            self.scheduler.lacks(source, piece);
        }
        if self.sources.told_of_others(source, message) {
            self.take_part();
        }
    }

    /// Looks anew at who takes part.
    fn take_part(&mut self) {
        self.sources.try_all(&self.feed.related_takers());
        let (position, count) = self.sources.take_part(&self.feed.takers());
        self.scheduler.set_position(position, count);
        self.hungry = true;
    }

    fn arrived(&mut self, mut arrival: Arrival) {
        let source = arrival.source;
        self.scheduler.moved(source, arrival.bytes, self.now_us());
        self.shared.limiter.download().count(arrival.bytes);
        self.record.fetched_bytes += arrival.bytes;
        self.pace.moved(arrival.bytes);
        for piece in std::mem::take(&mut arrival.absent) {
            self.scheduler.absent(arrival.call, piece);
        }
        for piece in std::mem::take(&mut arrival.wrong) {
            self.blame(source, piece);
        }
        let call = arrival.call;
        arrival.whole.retain(|(piece, _)| self.scheduler.arrived(call, *piece));
        if arrival.whole.is_empty() {
            return;
        }
        let (plan, writer) = (self.plan.clone(), self.writer.clone());
        self.blocking(move || {
            let _memory = arrival.memory;
            let put = |(piece, content)| (piece, put(&plan, &writer, piece, &content));
            Event::Written { source, results: arrival.whole.into_iter().map(put).collect() }
        });
    }

    fn written(&mut self, source: SourceKey, results: Vec<(Piece, Outcome)>) {
        self.jobs -= 1;
        let mut news: Vec<Piece> = Vec::with_capacity(results.len());
        for (piece, outcome) in results {
            match outcome {
                Outcome::Good => {
                    let actions = self.scheduler.verified(piece);
                    self.act(actions);
                    news.push(piece);
                    self.done_bytes += self.plan.bytes_of(piece);
                    self.sources.received(source, u64::from(self.plan.pieces[piece as usize].len));
                    self.retry = self.shared.first_pause;
                }
                Outcome::Wrong => self.blame(source, piece),
                Outcome::Failed(error) => {
                    self.scheduler.not_written(piece);
                    self.not_written(error);
                }
            }
        }
        self.shared.feeds.publish_pieces(&self.plan, &news, &[]);
    }

    fn blame(&mut self, source: SourceKey, piece: Piece) {
        let actions = self.scheduler.wrong(source, piece);
        let (bad, banned) = self.scheduler.blame(source);
        self.sources.blamed(source, bad, banned);
        tracing::warn!(node = self.sources.name(source), wrong_chunks = bad, banned, "a node sent a wrong chunk");
        self.act(actions);
    }

    fn found(&mut self, finding: &Finding) {
        for piece in &finding.missing {
            self.scheduler.release(*piece);
        }
        let mut bytes = 0;
        for piece in &finding.had {
            let actions = self.scheduler.hold(*piece);
            self.act(actions);
            bytes += self.plan.bytes_of(*piece);
        }
        self.done_bytes += bytes;
        self.record.local_bytes += bytes;
        self.shared.feeds.publish_pieces(&self.plan, &finding.had, &[]);
    }

    fn lost(&mut self, piece: Piece) {
        self.done_bytes = self.done_bytes.saturating_sub(self.plan.bytes_of(piece));
        self.scheduler.lose(piece);
        self.hungry = true;
    }

    /// Writing failed: ends the transfer, or waits.
    fn not_written(&mut self, error: Error) {
        if is_final(&error) {
            self.ended.get_or_insert(Err(error));
        } else if self.blocked.is_none() {
            tracing::warn!(%error, "a transfer cannot write and waits");
            self.blocked = Some((Instant::now() + self.retry, error));
            self.retry = (self.retry * 2).min(LONGEST_RETRY);
        }
    }

    /// Asks for what there is to ask for.
    fn pump(&mut self, budget: u64) {
        self.hungry = false;
        self.open_spared();
        if self.state == State::Paused || self.blocked.is_some() || self.ended.is_some() {
            return;
        }
        let actions = self.scheduler.poll(self.now_us(), budget);
        // There may be more when it is this transfer's turn again.
        self.hungry = budget != u64::MAX && actions.iter().any(|a| matches!(a, Action::Ask { .. }));
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Ask { call, source, pieces } => self.ask(call, source, &pieces),
                Action::Cancel { call } => drop(self.calls.remove(&call)),
                Action::Ban { source } => {
                    tracing::warn!(node = self.sources.name(source), "a node is not asked any more in this transfer");
                }
            }
        }
    }

    fn ask(&mut self, key: CallKey, source: SourceKey, pieces: &[Piece]) {
        let pieces: Vec<_> = pieces.iter().map(|p| (*p, self.plan.pieces[*p as usize])).collect();
        let bytes: u64 = pieces.iter().map(|(_, chunk)| u64::from(chunk.len)).sum();
        self.shared.limiter.download().take(bytes);
        let Some(channel) = self.sources.channel(source) else {
            self.scheduler.ended(key, true, self.now_us());
            return;
        };
        let call = Call {
            key,
            source,
            scope: self.shared.peers.shown(&self.plan.order.scope).wire(),
            pieces,
            memory: self.memory.clone(),
            events: self.events.clone(),
        };
        self.calls.insert(key, (source, AbortOnDropHandle::new(tokio::spawn(call.run(channel)))));
    }

    fn peer(&mut self, event: Result<PeerEvent, broadcast::error::RecvError>) {
        match event {
            Ok(PeerEvent::Up(device)) => self.sources.wake(Some(device)),
            Ok(PeerEvent::Down(_)) => {}
            Err(_) => self.sources.wake(None),
        }
    }

    async fn control(&mut self, verb: Verb) {
        match (verb, self.state) {
            (Verb::Pause, State::Paused) => {}
            (Verb::Pause, _) => {
                self.state = State::Paused;
                self.stop_network();
                self.start_sync();
            }
            (Verb::Resume, State::Paused) => {
                self.state = State::Running;
                self.blocked = None;
                if !self.surveying {
                    self.start_survey(Vec::new(), BTreeSet::new());
                }
                self.start_sources();
                self.take_part();
            }
            (Verb::Resume, _) => {
                self.blocked = None;
                self.sources.wake(None);
            }
            (Verb::Cancel, _) => {}
        }
        self.hungry = true;
        self.save(if self.state == State::Paused { State::Paused } else { State::Running }).await;
        self.show();
    }

    async fn tick(&mut self) {
        self.hungry = true;
        if let Some((until, _)) = &self.blocked
            && Instant::now() >= *until
        {
            self.blocked = None;
        }
        self.pace.tick(self.began.elapsed(), self.state == State::Running);
        let due = self.writer.unsynced() >= SYNC_BYTES
            || self.writer.unsynced() > 0 && self.synced_at.elapsed() >= SYNC_EVERY;
        if due && self.blocked.is_none() {
            self.start_sync();
        }
        if self.sources.is_short() || self.state == State::Running && self.is_waiting() {
            self.sources.try_neighbours(&self.shared.peers.neighbours());
        }
        if self.sources.take_changed() && self.saved_at.elapsed() >= SAVE_EVERY {
            self.save(if self.state == State::Paused { State::Paused } else { State::Running }).await;
        }
        if self.is_waiting() {
            let since = *self.stuck_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= FORGIVE_AFTER {
                self.stuck_since = None;
                self.scheduler.forgive();
            }
        } else {
            self.stuck_since = None;
        }
        self.check_space();
        self.show();
    }

    /// Waits before the disk is full, not after.
    fn check_space(&mut self) {
        let missing = self.plan.total_bytes.saturating_sub(self.done_bytes);
        if self.blocked.is_some() || self.done_bytes > 0 || missing == 0 {
            return;
        }
        if self.writer.tree().free_bytes().is_some_and(|free| free < missing.saturating_add(SPARE_BYTES)) {
            let error =
                Error::new(Reason::DiskFull, "there is not enough room at the destination for the whole transfer")
                    .why_is(format!("{missing} bytes are missing"))
                    .fix_is("free some space on this machine; the transfer goes on by itself");
            self.not_written(error);
        }
    }

    fn blocking(&mut self, work: impl FnOnce() -> Event + Send + 'static) {
        self.jobs += 1;
        let events = self.events.clone();
        tokio::task::spawn_blocking(move || {
            // Nobody listens when the node stops.
            let _ = events.blocking_send(work());
        });
    }

    fn start_survey(&mut self, present: Vec<u32>, doubtful: BTreeSet<Piece>) {
        self.surveying = true;
        let survey = Survey {
            plan: self.plan.clone(),
            writer: self.writer.clone(),
            sources: self.shared.sources.clone(),
            present,
            doubtful,
            stop: self.stop.clone(),
        };
        let events = self.events.clone();
        self.blocking(move || {
            Event::Surveyed(survey.run(|finding| events.blocking_send(Event::Found(finding)).is_ok()))
        });
    }

    fn start_sync(&mut self) {
        if self.syncing {
            return;
        }
        self.syncing = true;
        self.synced_at = Instant::now();
        let writer = self.writer.clone();
        self.blocking(move || Event::Synced(writer.sync()));
    }

    fn start_sources(&mut self) {
        let first: Vec<DeviceId> = self.plan.order.sources.iter().chain(&self.record.sources).copied().collect();
        self.sources.start(first);
    }

    fn stop_network(&mut self) {
        self.calls.clear();
        for source in self.sources.stop() {
            self.scheduler.leave(source);
        }
    }

    async fn cancel(mut self, events: &mut mpsc::Receiver<Event>) -> Left {
        self.stop_network();
        self.stop.cancel();
        // What is being written is let finish, so that nothing is written after the files are gone.
        while self.jobs > 0 {
            match events.recv().await {
                Some(Event::Written { .. } | Event::Surveyed(_) | Event::Synced(_) | Event::Published(_)) => {
                    self.jobs -= 1
                }
                Some(_) => {}
                None => break,
            }
        }
        self.shared.parts.remove(&self.record.id);
        let writer = self.writer.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || writer.discard()).await {
            tracing::error!(%error, "removing unfinished files");
        }
        self.finish(State::Cancelled, None).await
    }

    /// The node stops: what is there is noted.
    async fn leave(self) -> Left {
        let writer = self.writer.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || writer.sync()).await {
            tracing::warn!(%error, "a transfer could not be synced before the end");
        }
        Left::Stopped
    }

    async fn finish_well(&mut self) -> Left {
        self.state = State::Done;
        self.record.elapsed_ms = self.elapsed_ms();
        self.record.end_ms = self.shared.clock.now_ms();
        self.show();
        let mut retry = self.shared.first_pause;
        loop {
            let writer = self.writer.clone();
            match tokio::task::spawn_blocking(move || writer.sync()).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) => tracing::warn!(%error, "a finished transfer could not be synced yet"),
                Err(error) => tracing::error!(%error, "syncing a transfer"),
            }
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(LONGEST_RETRY);
        }
        self.record.settled = true;
        self.finish(State::Done, None).await
    }

    async fn finish(&mut self, state: State, problem: Option<Problem>) -> Left {
        self.state = state;
        if self.record.end_ms == 0 {
            self.record.elapsed_ms = self.elapsed_ms();
            self.record.end_ms = self.shared.clock.now_ms();
        }
        self.record.problem = problem;
        self.save(state).await;
        self.show();
        Left::Ended
    }

    async fn save(&mut self, state: State) {
        self.saved_at = Instant::now();
        self.record.state = state;
        self.record.sources = self.sources.known();
        if !state.is_ended() {
            self.record.elapsed_ms = self.elapsed_ms();
        }
        if let Err(error) = self.record.save(&self.shared.store).await {
            tracing::error!(%error, "the state of a transfer could not be kept");
        }
    }

    fn elapsed_ms(&self) -> u64 {
        self.elapsed_before_ms + self.pace.worked_ms()
    }

    /// Tells those who watch.
    fn show(&mut self) {
        let waiting = self.is_waiting();
        let state = if self.state == State::Running && waiting {
            State::Waiting
        } else if self.state == State::Running && self.surveying && self.calls.is_empty() && self.done_bytes == 0 {
            State::Listing
        } else {
            self.state
        };
        let problem = match (&self.record.problem, &self.blocked) {
            (Some(problem), _) => Some(problem.clone()),
            (None, Some((_, error))) => Some(error.into()),
            (None, None) if state == State::Waiting => Some(self.sources.why_waiting()),
            (None, None) => None,
        };
        let limit = self.limit(state);
        let elapsed_ms = if self.state.is_ended() { self.record.elapsed_ms } else { self.elapsed_ms() };
        let mut sources: Vec<SourceProgress> = self.sources.progress(|key| self.scheduler.rate(key));
        if self.record.local_bytes > 0 {
            sources.push(self.sources.local(self.record.local_bytes));
        }
        let floor_ratio = self.pace.floor_ratio(self.record.fetched_bytes, elapsed_ms);
        self.progress.send_modify(|p| {
            p.state = state;
            p.done_file_count = self.writer.published_count();
            p.done_bytes = self.done_bytes.min(p.total_bytes);
            p.local_bytes = self.record.local_bytes;
            p.fetched_bytes = self.record.fetched_bytes;
            p.rate = if state == State::Running { self.pace.rate() } else { 0 };
            p.served_bytes = self.feed.served().saturating_sub(self.served_before);
            p.sources = sources;
            p.limit = limit;
            p.floor_ratio = floor_ratio;
            p.problem = problem;
            p.elapsed_ms = elapsed_ms;
            p.end_ms = self.record.end_ms;
            p.settled = self.record.settled;
        });
    }

    fn is_waiting(&self) -> bool {
        self.blocked.is_some()
            || self.scheduler.left() > 0
                && self.calls.is_empty()
                && self.jobs == 0
                && (!self.sources.any_up() || self.scheduler.is_stuck(self.now_us()))
    }

    fn limit(&self, state: State) -> Limit {
        let limiter = &self.shared.limiter;
        match state {
            State::Waiting if self.blocked.is_some() => Limit::Disk,
            State::Waiting => Limit::Waiting,
            State::Running if limiter.download().is_capped() && limiter.is_yielding() => Limit::Yield,
            State::Running if limiter.download().is_capped() => Limit::Cap,
            State::Running if self.memory.available_permits() < MEMORY / MEMORY_UNIT / 4 => Limit::Disk,
            State::Running if self.pace.is_near_line() => Limit::Network,
            State::Running if self.scheduler.outstanding() > 0 => Limit::Source,
            _ => Limit::None,
        }
    }
}

/// Verifies and writes one piece.
fn put(plan: &Plan, writer: &Writer, piece: Piece, content: &Rope) -> Outcome {
    let wanted = plan.pieces[piece as usize];
    if content.len() != wanted.len as usize || content.chunk_id() != wanted.id {
        return Outcome::Wrong;
    }
    match writer.write(piece, content) {
        Ok(_) => Outcome::Good,
        Err(error) => Outcome::Failed(error),
    }
}

/// True if trying again does not help.
fn is_final(error: &Error) -> bool {
    [
        Reason::EntryExists,
        Reason::IsADirectory,
        Reason::NotADirectory,
        Reason::NameClash,
        Reason::NameInvalid,
        Reason::PathInvalid,
        Reason::FieldInvalid,
        Reason::TreeTooLarge,
        Reason::StoreCorrupt,
        Reason::Internal,
    ]
    .into_iter()
    .any(|reason| error.is(reason))
}

async fn end_early(
    shared: &Shared,
    mut record: Record,
    progress: &watch::Sender<Progress>,
    state: State,
    problem: Option<Problem>,
) -> Left {
    record.state = state;
    record.end_ms = shared.clock.now_ms();
    record.problem = problem;
    if let Err(error) = record.save(&shared.store).await {
        tracing::error!(%error, "the state of a transfer could not be kept");
    }
    progress.send_modify(|p| {
        (p.state, p.end_ms) = (state, record.end_ms);
        p.problem = record.problem;
    });
    Left::Ended
}
