//! One copy of a share: a task that learns what others have, and puts it into the folder.
//!
//! Round by round: look whether rules or rights are others now (then all is read again); note what was changed here; read
//! what is new at the others; do what is wanted. It sleeps until something is heard, the folder's index changes, or
//! something that could not be done is to be tried again.
//!
//! # Whose word counts
//!
//! Of a read-only share the owner's, of a two-way share that of all who may write, as the owner's record and the office say
//! in the moment in which a version is taken. Who may write vouches for what he passes on, also if who made it may not write
//! any longer: else the work of someone who has left would never reach a new copy. What others offer is refused by name.
//!
//! # Bounds
//!
//! 4,000,000 wants of one device, as many as a share has entries; beyond them its index is not read on. 100,000 entries or
//! 20 s of one device in a round, then it is the others' turn. 1,000 files or 256 MiB are fetched together; a larger file by
//! itself, beside them. 100,000 paths wait for another attempt; beyond them all are tried at once.

mod work;

use common::error::{Error, Reason, Result};
use common::model::{DeviceId, Right};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use proto::peer::v1::NodeProblem;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::decide::{Action, Policy, State, Why, decide};
use super::place::{Place, STAGE};
use super::trash::{self, Calm};
use super::vector::{relation, same_thing};
use super::want::{Gathered, Mark, Position, Read, Wants, is_device};
use super::{Inner, conflict};
use crate::catalogue::entry::{Entry, Relation};
use crate::catalogue::problem::printable;
use crate::catalogue::rules::Rules;
use crate::catalogue::{IndexHandle, short_id};
use crate::model::ShareId;

/// Entries of one device in one round, and time.
const READ_MAX: usize = 100_000;
const READ_TIME: Duration = Duration::from_secs(20);
/// Devices that are read at a time.
const READERS: usize = 4;
/// Wants of one device.
const WANTS_MAX: u64 = crate::catalogue::index::ENTRIES_MAX;
/// Entries of the own index looked through at a time.
const FOLLOWED: usize = 1_000;
/// Conflicts and own changes that are told.
const TOLD_MAX: usize = 10_000;
/// Problems kept.
const PROBLEMS_MAX: usize = 1_000;
/// Paths that wait for another attempt.
const LATER_MAX: usize = 100_000;
/// Between attempts for one path.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));
/// Without any news.
const IDLE: Duration = Duration::from_secs(60);
/// Between two looks at the trash.
const TRASH_EVERY: Duration = Duration::from_secs(3_600);

/// What of a copy is told beside its catalogue.
#[derive(Clone, Debug, Default)]
pub struct CopyStatus {
    /// Files that are not here yet.
    pub missing: u64,
    /// Conflicts that wait.
    pub conflicts: u64,
    /// What could not be done, and why; at most 100.
    pub problems: Vec<NodeProblem>,
}

/// See the module.
pub(super) struct Copy {
    pub inner: Arc<Inner>,
    pub share: ShareId,
    pub index: IndexHandle,
    pub path: PathBuf,
    pub wants: Wants,
    pub ended: CancellationToken,
    news: Notify,
    missing: AtomicU64,
    conflicts: Mutex<BTreeMap<String, u64>>,
    own: Mutex<BTreeMap<String, u64>>,
    problems: Mutex<BTreeMap<(String, String), NodeProblem>>,
    /// Wants noted of each device since its index was read from the beginning.
    wanted: Mutex<HashMap<DeviceId, u64>>,
    /// Paths that are being fetched, and paths to try again, with the number of attempts.
    busy: Mutex<HashSet<String>>,
    later: Mutex<HashMap<String, (Instant, u32)>>,
    batches: AtomicU64,
}

/// Runs work that waits for the disk.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Error::internal("a piece of work panicked")))
}

fn problem(reason: &str, message: String, why: &str, fix: &str) -> NodeProblem {
    NodeProblem { reason: reason.to_owned(), message, why: why.to_owned(), fix: fix.to_owned() }
}

impl Copy {
    pub fn new(inner: Arc<Inner>, share: ShareId, index: IndexHandle, path: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            wants: Wants::new(inner.store.clone(), share),
            ended: inner.shutdown.token(),
            inner,
            share,
            index,
            path,
            news: Notify::new(),
            missing: AtomicU64::new(0),
            conflicts: Mutex::default(),
            own: Mutex::default(),
            problems: Mutex::default(),
            wanted: Mutex::default(),
            busy: Mutex::default(),
            later: Mutex::default(),
            batches: AtomicU64::new(0),
        })
    }

    /// There is something new.
    pub fn wake(&self) {
        self.news.notify_one();
    }

    pub fn status(&self) -> CopyStatus {
        let problems = self.problems.lock().values().take(100).cloned().collect::<Vec<_>>();
        let own = self.own.lock();
        let told = own.keys().take(100 - problems.len().min(100)).map(|path| {
            problem(
                "CHANGE_NOT_SHARED",
                printable(path),
                "it was changed here, and this copy only follows its owner",
                "ask the owner for the right to write, or take the change back",
            )
        });
        CopyStatus {
            missing: self.missing.load(Ordering::Relaxed),
            conflicts: self.conflicts.lock().len() as u64,
            problems: problems.iter().cloned().chain(told).collect(),
        }
    }

    /// Conflict copies and when they were seen first.
    pub fn conflicts(&self) -> Vec<(String, u64)> {
        self.conflicts.lock().iter().map(|(path, at)| (path.clone(), *at)).collect()
    }

    /// A conflict has been ended here; the index learns of it a little later.
    pub fn ended_conflict(&self, path: &str) {
        self.conflicts.lock().remove(path);
    }

    fn tell(&self, path: &str, problem: NodeProblem) {
        let mut problems = self.problems.lock();
        let key = (path.to_owned(), problem.reason.clone());
        if problems.len() < PROBLEMS_MAX || problems.contains_key(&key) {
            problems.insert(key, problem);
        }
    }

    fn untell(&self, path: &str) {
        self.problems.lock().retain(|(p, _), _| p != path);
    }

    /// What this copy may do now; `None` if it may not even read.
    pub fn policy(&self) -> Option<Policy> {
        let catalogue = &self.inner.catalogue;
        let record = catalogue.record(&self.share).ok()?;
        let right = catalogue.right(&self.share, &self.inner.me).filter(|r| *r >= Right::Read)?;
        let counts = record.terms().two_way && right >= Right::Write;
        Some(if counts { Policy::TwoWay } else { Policy::Follow })
    }

    /// Does a device's word about the share count now?
    pub fn trusts(&self, device: &DeviceId) -> bool {
        let catalogue = &self.inner.catalogue;
        let Ok(record) = catalogue.record(&self.share) else { return false };
        let right = catalogue.right(&self.share, device);
        let writes = record.terms().two_way && right.is_some_and(|r| r >= Right::Write);
        right.is_some() && (record.owner() == *device || writes)
    }

    pub fn rules(&self) -> Result<Arc<Rules>> {
        Ok(self.inner.catalogue.folder(&self.share)?.rules())
    }

    /// Has everything of a device's index been read that it is known to have?
    fn is_read(&self, device: &DeviceId) -> Result<bool> {
        let Some(heard) = self.inner.news.get(&self.share, device) else { return Ok(false) };
        let position = self.wants.position(device)?;
        Ok(position.index_id == heard.index_id && position.up_to >= heard.max_sequence)
    }

    pub async fn run(self: Arc<Self>) {
        self.inner.fetcher.give_up(self.path.join(STAGE)).await;
        let mut large = JoinSet::new();
        let mut changes = self.index.subscribe();
        let mut clean_at = Instant::now();
        let mut calm = Calm::default();
        let mut staged = false;
        loop {
            changes.mark_unchanged();
            if !staged {
                staged = self.prepare().await;
            }
            let retry = if staged { self.round(&mut large).await } else { Instant::now() + IDLE };
            if Instant::now() >= clean_at {
                clean_at = Instant::now() + TRASH_EVERY;
                self.clean(&mut calm).await;
            }
            tokio::select! {
                biased;
                () = self.ended.cancelled() => break,
                () = self.news.notified() => {}
                changed = changes.changed() => if changed.is_err() { break },
                Some(_) = large.join_next() => {}
                () = sleep_until(retry) => {}
            }
        }
        large.shutdown().await;
    }

    /// Makes the staging directory. False if the folder is not there.
    async fn prepare(self: &Arc<Self>) -> bool {
        let this = self.clone();
        let made = blocking(move || {
            let root = this.inner.catalogue.open_folder(&this.share)?;
            let now_ms = this.inner.clock.now_ms();
            Place::new(&root, now_ms).fresh_stage().map_err(|e| std::io::Error::from(e).into())
        });
        match made.await {
            Ok(()) => true,
            Err(error) => {
                let path = STAGE;
                self.tell(path, problem("FOLDER_INVALID", path.to_owned(), &error.to_string(), error.fix()));
                false
            }
        }
    }

    /// One round. Gives back when there is to be another one without any news.
    async fn round(self: &Arc<Self>, large: &mut JoinSet<()>) -> Instant {
        let done = async {
            let Some(policy) = self.policy() else { return Ok(()) };
            self.begin(policy).await?;
            self.follow(policy).await?;
            self.read(policy).await;
            self.work(large).await?;
            // What was put in place may have been a conflict copy.
            self.follow(policy).await
        };
        if let Err(error) = done.await {
            if !error.is(Reason::Cancelled) {
                tracing::debug!(share = %self.share, ?error, "a round of a copy was broken off");
            }
            return Instant::now() + Duration::from_secs(1);
        }
        let later = self.later.lock().values().map(|l| l.0).min();
        later.unwrap_or_else(|| Instant::now() + IDLE).min(Instant::now() + IDLE)
    }

    /// If rules or rights are others than those under which things were gathered, all is gathered again.
    async fn begin(self: &Arc<Self>, policy: Policy) -> Result<()> {
        let this = self.clone();
        blocking(move || {
            let rules = blake3::hash(this.rules()?.text().as_bytes()).as_bytes().to_vec();
            let now = Gathered {
                follows: policy == Policy::Follow,
                rules,
                index_id: this.index.head().index_id,
                followed: 0,
            };
            let then = this.wants.gathered()?;
            if (Gathered { followed: 0, ..then }) != now {
                this.wants.begin(now)?;
                this.problems.lock().clear();
                this.later.lock().clear();
                this.wanted.lock().clear();
            }
            Ok(())
        })
        .await
    }

    /// Looks at what has changed in the own index: conflict copies that came or went, and changes that do not count.
    async fn follow(self: &Arc<Self>, policy: Policy) -> Result<()> {
        let this = self.clone();
        blocking(move || {
            let me = short_id(&this.inner.me);
            let mut gathered = this.wants.gathered()?;
            loop {
                let page = this.index.after(gathered.followed, FOLLOWED)?;
                let Some(last) = page.last() else { break };
                gathered.followed = last.sequence;
                let mut marks = Vec::new();
                for entry in &page {
                    if conflict::parse(entry.name()).is_some() {
                        marks.push((Mark::Conflict, entry.path.clone(), entry.is_file()));
                    }
                    let own = policy == Policy::Follow && entry.modified_by == me;
                    marks.push((Mark::Own, entry.path.clone(), own));
                    this.later.lock().remove(&entry.path);
                }
                this.wants.note_marks(marks, gathered.clone(), this.inner.clock.now_ms())?;
            }
            *this.conflicts.lock() = this.wants.marks(Mark::Conflict, TOLD_MAX)?.into_iter().collect();
            *this.own.lock() = this.wants.marks(Mark::Own, TOLD_MAX)?.into_iter().collect();
            Ok(())
        })
        .await
    }

    /// Reads what is new at the others.
    async fn read(self: &Arc<Self>, policy: Policy) {
        let heard = self.inner.news.of(&self.share);
        let read = heard.into_iter().map(|(device, heard)| {
            let this = self.clone();
            async move {
                let done = timeout(READ_TIME, this.read_one(policy, device, heard.index_id, heard.max_sequence)).await;
                match done {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) if error.is(Reason::PeerMisbehaves) => {
                        this.tell("", problem(error.reason(), error.message().to_owned(), error.why(), error.fix()));
                    }
                    Ok(Err(error)) => tracing::debug!(%device, ?error, "an index could not be read"),
                    // What was read is noted; the rest is for the next round.
                    Err(_) => this.wake(),
                }
            }
        });
        stream::iter(read).buffer_unordered(READERS).collect::<Vec<()>>().await;
    }

    async fn read_one(
        self: &Arc<Self>,
        policy: Policy,
        device: DeviceId,
        index_id: u64,
        max_sequence: u64,
    ) -> Result<()> {
        let this = self.clone();
        let trusted = self.trusts(&device);
        let mut position = blocking(move || this.wants.position(&device)).await?;
        if position.trusted != trusted {
            position = Position { trusted, ..Position::default() };
        }
        if position.index_id == index_id && position.up_to >= max_sequence {
            return Ok(());
        }
        if position.up_to == 0 || position.index_id != index_id {
            self.wanted.lock().remove(&device);
        }
        let from = (position.index_id, position.up_to);
        let mut pages = self.inner.catalogue.read_index_of(device, self.share, from, "").await?;
        let mut seen = 0;
        while let Some(page) = pages.next().await? {
            if self.ended.is_cancelled() || self.trusts(&device) != trusted {
                return Ok(());
            }
            if self.wanted.lock().get(&device).is_some_and(|n| *n > WANTS_MAX) {
                let name = self.inner.catalogue.node_name(&device);
                let message = format!("{name} offers more than 4,000,000 changes that this copy has not");
                return Err(Error::new(Reason::PeerMisbehaves, message));
            }
            seen += page.entries.len();
            position = Position { index_id: page.index_id, up_to: page.up_to_sequence, trusted };
            let (this, position) = (self.clone(), position.clone());
            blocking(move || {
                let rules = this.rules()?;
                let judged: Result<Vec<Read>> =
                    page.entries.into_iter().map(|entry| this.judge(policy, &rules, &device, trusted, entry)).collect();
                let judged = judged?;
                let wanted = judged.iter().filter(|r| r.wanted).count() as u64;
                *this.wanted.lock().entry(device).or_default() += wanted;
                this.wants.note_page(&device, position, judged)
            })
            .await?;
            if seen >= READ_MAX {
                self.wake();
                return Ok(());
            }
        }
        Ok(())
    }

    /// Is an entry of another copy to be taken?
    fn judge(&self, policy: Policy, rules: &Rules, device: &DeviceId, trusted: bool, entry: Entry) -> Result<Read> {
        let pass = |entry, known| Ok(Read { entry, wanted: false, known });
        if rules.ignores_any(&entry.path, entry.is_directory()) {
            return pass(entry, false);
        }
        let local = self.index.entry(&entry.path)?;
        let me = short_id(&self.inner.me);
        let known = trusted
            && local.as_ref().is_some_and(|l| same_thing(l, &entry) && relation(Some(l), &entry) == Relation::Equal);
        match decide(me, policy, local.as_ref(), &entry, State::AsIndexed) {
            Action::Nothing => return pass(entry, known),
            Action::Blocked(why) => {
                self.blocked(&entry.path, why);
                return pass(entry, false);
            }
            _ => {}
        }
        if !trusted {
            if is_device(entry.modified_by, device) {
                let name = self.inner.catalogue.node_name(device);
                self.tell(
                    &entry.path,
                    problem(
                        "CHANGE_REFUSED",
                        format!("{} as {name} has changed it", printable(&entry.path)),
                        "this member has not the right to write",
                        "the owner can give it: atrium share FOLDER --with WHO --write",
                    ),
                );
            }
            return pass(entry, false);
        }
        Ok(Read { entry, wanted: true, known: false })
    }

    fn blocked(&self, path: &str, why: Why) {
        let (reason, why, fix) = match why {
            Why::Occupied => (
                "NAME_CLASH",
                "another copy has a file here; in this folder the name belongs to something that is not shared",
                "rename it or move it away",
            ),
            Why::Version => (
                "PEER_MISBEHAVES",
                "its version cannot have come about honestly, or too many devices have changed it",
                "copy the file under another name",
            ),
        };
        self.tell(path, problem(reason, printable(path), why, fix));
    }

    /// Tries a path again after a while. Gives back how often it was tried.
    fn try_later(&self, path: &str) -> u32 {
        let mut later = self.later.lock();
        if later.len() >= LATER_MAX && !later.contains_key(path) {
            later.clear();
        }
        let tries = later.get(path).map_or(0, |l| l.1) + 1;
        let pause = AGAIN.0.saturating_mul(1 << tries.min(10)).min(AGAIN.1);
        later.insert(path.to_owned(), (Instant::now() + pause, tries));
        tries
    }

    fn is_waiting(&self, path: &str) -> bool {
        self.later.lock().get(path).is_some_and(|l| l.0 > Instant::now()) || self.busy.lock().contains(path)
    }

    async fn clean(self: &Arc<Self>, calm: &mut Calm) {
        let now_ms = self.inner.clock.now_ms();
        if !calm.is_calm(now_ms) {
            return;
        }
        let (this, days) = (self.clone(), self.inner.settings.trash_days);
        let cleaned = blocking(move || trash::clean(&this.inner.catalogue.open_folder(&this.share)?, now_ms, days));
        if let Err(error) = cleaned.await {
            tracing::debug!(share = %self.share, ?error, "the trash could not be cleaned");
        }
    }
}
