//! The one thread that writes.
//!
//! It takes the transactions that wait, runs them one after the other over one layer of writes, gives the engine the
//! whole layer as one durable batch, makes the new state visible and only then answers. So transactions are serializable
//! by construction, and one sync pays for all that came while the last one ran.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};

use super::directory::Witness;
use super::engine::{self, Guarded, Write};
use super::queue::Queue;
use super::record::{self, META_KEY, Meta};
use super::txn::{Group, Txn};
use super::view::{Layer, Visible};
use super::{Committed, log};
use crate::error::{Error, Reason, Result};

/// Transactions in one batch: more would not make it cheaper, only slower to answer.
const GROUP_JOBS: usize = 512;
/// Records and bytes after which a batch takes no further transaction.
const GROUP_RECORDS: usize = 4_096;
const GROUP_BYTES: usize = 8 << 20;

/// A transaction without its types.
pub(super) trait Job: Send {
    /// True if nobody waits for it any more.
    fn is_abandoned(&self) -> bool;
    /// Runs the closure. The revision is set by [`Job::answer`].
    fn run(&mut self, txn: &mut Txn<'_>) -> Result<()>;
    /// Answers the caller: with the value of the last run and this revision, or with the error.
    fn answer(self: Box<Self>, outcome: Result<u64>);
}

/// A transaction with its types.
pub(super) struct Call<T, F> {
    f: F,
    value: Option<T>,
    reply: oneshot::Sender<Result<Committed<T>>>,
}

impl<T, F> Call<T, F>
where
    T: Send + 'static,
    F: FnMut(&mut Txn<'_>) -> Result<T> + Send + 'static,
{
    /// A job, and where its answer comes.
    pub fn job(f: F) -> (Box<dyn Job>, oneshot::Receiver<Result<Committed<T>>>) {
        let (reply, answer) = oneshot::channel();
        (Box::new(Self { f, value: None, reply }), answer)
    }
}

impl<T, F> Job for Call<T, F>
where
    T: Send,
    F: FnMut(&mut Txn<'_>) -> Result<T> + Send,
{
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn run(&mut self, txn: &mut Txn<'_>) -> Result<()> {
        self.value = Some((self.f)(txn)?);
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<u64>) {
        let Self { value, reply, .. } = *self;
        let outcome = outcome.and_then(|revision| {
            let value = value.ok_or_else(|| Error::internal("a transaction was answered before it ran"))?;
            Ok(Committed { value, revision })
        });
        // Nobody may be waiting any more; the commit stands all the same.
        drop(reply.send(outcome));
    }
}

/// What the committer shares with the store's handles.
pub(super) struct Shared {
    pub visible: RwLock<Visible>,
    pub queue: Queue,
    pub witness: Option<Witness>,
    pub revision: watch::Sender<u64>,
    /// For each first byte of the callers' keys, the last durable revision that wrote or deleted such a record.
    pub changed: Changed,
    pub ended: watch::Sender<bool>,
    /// When the engine got the batch in flight.
    pub batch_since: Mutex<Option<Instant>>,
    pub commits: AtomicU64,
    pub batches: AtomicU64,
}

/// See [`Store::last_change`](super::Store::last_change).
pub(super) struct Changed([AtomicU64; 256]);

impl Changed {
    /// What happened before the store was opened counts as having happened just then.
    pub fn at(revision: u64) -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(revision)))
    }

    pub fn of(&self, first: u8) -> u64 {
        self.0[usize::from(first)].load(Ordering::Acquire)
    }

    fn note(&self, firsts: &[bool; 256], revision: u64) {
        for (last, _) in self.0.iter().zip(firsts).filter(|(_, touched)| **touched) {
            last.store(revision, Ordering::Release);
        }
    }
}

impl Shared {
    /// How long the batch in flight has been with the engine.
    pub fn batch_age(&self) -> Option<Duration> {
        self.batch_since.lock().map(|since| since.elapsed())
    }
}

/// Runs until the queue is closed and empty, then closes the engine.
pub(super) fn run(shared: &Shared, engine: Arc<Guarded>) {
    while let Some(first) = shared.queue.wait() {
        run_group(shared, &engine, first);
    }
    let closed = shared.visible.write().engine.take();
    drop(closed);
    if let Err(error) = engine.close() {
        tracing::error!(?error, "the store could not be closed cleanly");
    }
    drop(engine);
    shared.ended.send_replace(true);
}

fn run_group(shared: &Shared, engine: &Arc<Guarded>, first: Box<dyn Job>) {
    let meta = shared.visible.read().meta;
    let mut group = Group::new(engine.clone(), &meta);
    let mut done: Vec<(Box<dyn Job>, Result<u64>)> = Vec::new();
    let mut next = Some(first);
    while let Some(mut job) = next {
        if !job.is_abandoned() {
            let outcome = if engine.has_failed() { Err(engine::failed()) } else { run_job(&mut group, &mut *job) };
            done.push((job, outcome));
        }
        let full = done.len() >= GROUP_JOBS || group.writes.len() >= GROUP_RECORDS || group.bytes >= GROUP_BYTES;
        next = if full { None } else { shared.queue.try_next() };
    }
    let commits = group.changes.len() as u64;
    let applied = if group.is_dirty(&meta) { apply(shared, engine, group, meta) } else { Ok(()) };
    match applied {
        Ok(()) => {
            shared.commits.fetch_add(commits, Ordering::Relaxed);
            for (job, outcome) in done {
                job.answer(outcome);
            }
        }
        Err(error) => {
            // Also those that failed by themselves or only read: what they saw has not become true.
            let full = error.is(Reason::DiskFull);
            for (job, _) in done {
                job.answer(Err(if !engine.has_failed() {
                    engine::no_room()
                } else if full {
                    Error::new(Reason::DiskFull, "the store's disk is full")
                        .fix_is("free space, then restart the server")
                } else {
                    engine::failed()
                }));
            }
        }
    }
}

fn run_job(group: &mut Group, job: &mut dyn Job) -> Result<u64> {
    let mut txn = group.begin();
    match catch_unwind(AssertUnwindSafe(|| job.run(&mut txn))) {
        Ok(Ok(())) => txn.keep(),
        Ok(Err(error)) => {
            txn.undo();
            Err(error)
        }
        Err(_) => {
            txn.undo();
            Err(Error::internal("a transaction panicked; nothing of it was written"))
        }
    }
}

/// Makes a group durable, then visible.
fn apply(shared: &Shared, engine: &Guarded, mut group: Group, old: Meta) -> Result<()> {
    let mut meta = Meta { revision: group.revision, oldest: group.oldest, ..old };
    let writes = std::mem::take(&mut group.writes);
    let mut stored = std::mem::take(&mut group.stored).into_inner();
    let blocks = log::encode(&group.changes);
    let mut batch: Vec<Write> = Vec::with_capacity(writes.len() + blocks.len() + 1);
    let mut before = Vec::with_capacity(writes.len() + blocks.len());
    let mut firsts = [false; 256];
    for (key, block) in blocks {
        let raw = record::seal(&key, &block);
        meta.add(&key, &raw);
        before.push((key.clone(), None));
        batch.push((key, Some(raw)));
    }
    for (key, value) in writes {
        // Behind the byte that names the space.
        firsts[usize::from(key.get(1).copied().unwrap_or(0))] = true;
        let was = match stored.remove(&key) {
            Some(was) => was,
            None => engine.get(&key)?,
        };
        let now = value.map(|value| record::seal(&key, &value));
        if was.is_none() && now.is_none() {
            continue;
        }
        if let Some(raw) = &was {
            meta.remove(&key, raw);
        }
        if let Some(raw) = &now {
            meta.add(&key, raw);
        }
        before.push((key.clone(), was));
        batch.push((key, now));
    }
    batch.push((Bytes::from_static(META_KEY), Some(record::seal(META_KEY, &meta.encode()))));
    engine.require_room(&batch)?;
    let before: Layer = BTreeMap::from_iter(before);

    let frozen = shared.visible.read().frozen.clone();
    for frozen in frozen {
        frozen.wait_for_room();
    }
    {
        let mut visible = shared.visible.write();
        for frozen in &visible.frozen {
            frozen.keep(&before);
        }
        visible.before = before;
    }
    *shared.batch_since.lock() = Some(Instant::now());
    let applied = engine.apply(&batch);
    *shared.batch_since.lock() = None;
    // After an error the pre-images stay: readers keep seeing the last state that is known to be durable.
    applied?;
    if let Some(witness) = &shared.witness {
        witness.note(meta.revision);
    }
    let before = {
        let mut visible = shared.visible.write();
        visible.meta = meta;
        // Under the lock: whoever reads the new state also learns that what was remembered of the old one is over.
        shared.changed.note(&firsts, meta.revision);
        std::mem::take(&mut visible.before)
    };
    drop(before);
    shared.batches.fetch_add(1, Ordering::Relaxed);
    if meta.revision != old.revision {
        shared.revision.send_replace(meta.revision);
    }
    Ok(())
}
