//! The thread that makes things durable: group sync, early write-back, sealing.
//!
//! A finished append has, in this order: written its bytes, put its segment on the dirty list, counted itself in
//! `appended`. A round of the thread, in this order: reads `appended`, takes the dirty list, syncs each file on it,
//! publishes what it read as `durable`. So whatever was counted when a round began is on disk when it ends: its segment
//! was on this round's list, or on the list of an earlier round that has ended, which synced after the bytes were there.
//! Waiters that come during a round share the next one.
//!
//! A sync that fails is never tried again, for the kernel has dropped the pages by then and would report success. The
//! store takes no more writes until it is opened anew; reads go on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::disk::{Disk, write_whole};
use super::segment::{Segment, index_name};
use crate::error::{Error, Reason, Result};

/// Most segments that wait to be sealed; an append that fills another one waits until there is room.
const SEAL_QUEUE_MAX: usize = 8;

/// What waiters see.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    durable: u64,
    poisoned: bool,
}

#[derive(Default)]
struct Work {
    wanted: u64,
    nudged: bool,
    seal: VecDeque<Arc<Segment>>,
    sealing: bool,
    stop: bool,
}

/// Shared by the store and its thread.
pub struct Flusher {
    disk: Arc<dyn Disk>,
    appended: AtomicU64,
    dirty: Mutex<Vec<Arc<Segment>>>,
    work: Mutex<Work>,
    wake: Condvar,
    sealed: Condvar,
    poisoned: AtomicBool,
    progress: watch::Sender<Progress>,
    blocking: (Mutex<()>, Condvar),
}

impl Flusher {
    /// Nothing is dirty yet.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            appended: AtomicU64::new(0),
            dirty: Mutex::default(),
            work: Mutex::default(),
            wake: Condvar::new(),
            sealed: Condvar::new(),
            poisoned: AtomicBool::new(false),
            progress: watch::Sender::new(Progress::default()),
            blocking: (Mutex::new(()), Condvar::new()),
        }
    }

    /// Notes that bytes were written to a segment. To be called after the write and before anybody can learn of it.
    pub fn wrote(&self, segment: &Arc<Segment>) {
        if !segment.dirty.swap(true, Ordering::SeqCst) {
            self.dirty.lock().push(segment.clone());
        }
        self.appended.fetch_add(1, Ordering::SeqCst);
    }

    /// Fails if a sync has failed before.
    pub fn check(&self) -> Result<()> {
        if self.poisoned.load(Ordering::SeqCst) { Err(poisoned()) } else { Ok(()) }
    }

    /// Asks for a round without waiting for it.
    pub fn nudge(&self) {
        self.work.lock().nudged = true;
        self.wake.notify_one();
    }

    fn want(&self, target: u64) {
        let mut work = self.work.lock();
        work.wanted = work.wanted.max(target);
        drop(work);
        self.wake.notify_one();
    }

    /// Returns when everything that was appended before the call is on disk.
    pub async fn sync(&self) -> Result<()> {
        self.check()?;
        let target = self.appended.load(Ordering::SeqCst);
        let mut progress = self.progress.subscribe();
        if progress.borrow().durable >= target {
            return Ok(());
        }
        self.want(target);
        let seen = progress.wait_for(|p| p.poisoned || p.durable >= target).await;
        match seen.map(|p| p.durable >= target) {
            Ok(true) => Ok(()),
            _ => Err(poisoned()),
        }
    }

    /// The same for threads.
    pub fn sync_blocking(&self) -> Result<()> {
        self.check()?;
        let target = self.appended.load(Ordering::SeqCst);
        if self.progress.borrow().durable < target {
            self.want(target);
        }
        let mut lock = self.blocking.0.lock();
        loop {
            let now = *self.progress.borrow();
            if now.durable >= target {
                return Ok(());
            }
            if now.poisoned {
                return Err(poisoned());
            }
            self.blocking.1.wait(&mut lock);
        }
    }

    /// Hands over a full segment: it will be synced and get its index file.
    pub fn seal(&self, segment: Arc<Segment>) {
        let mut work = self.work.lock();
        while work.seal.len() >= SEAL_QUEUE_MAX && !work.stop && self.check().is_ok() {
            self.sealed.wait(&mut work);
        }
        work.seal.push_back(segment);
        drop(work);
        self.wake.notify_one();
    }

    /// Waits until every segment handed over before is sealed.
    pub fn sealed_all(&self) -> Result<()> {
        let mut work = self.work.lock();
        while !work.seal.is_empty() || work.sealing {
            self.check()?;
            self.sealed.wait(&mut work);
        }
        self.check()
    }

    /// Ends the thread after a last round and the sealing that is queued.
    pub fn stop(&self) {
        self.work.lock().stop = true;
        self.wake.notify_one();
    }

    /// The thread's body.
    pub fn run(&self) {
        loop {
            let mut work = self.work.lock();
            while !work.stop && !work.nudged && work.seal.is_empty() && work.wanted <= self.progress.borrow().durable {
                self.wake.wait(&mut work);
            }
            let stop = work.stop;
            let sync = stop || work.nudged || work.wanted > self.progress.borrow().durable;
            work.nudged = false;
            let job = work.seal.pop_front();
            work.sealing = job.is_some();
            drop(work);
            if sync {
                self.round();
            }
            if let Some(segment) = job.filter(|_| self.check().is_ok()) {
                self.seal_one(&segment);
            }
            let mut work = self.work.lock();
            work.sealing = false;
            let finished = stop && work.seal.is_empty();
            drop(work);
            self.sealed.notify_all();
            if finished || self.check().is_err() {
                return;
            }
        }
    }

    fn round(&self) {
        let target = self.appended.load(Ordering::SeqCst);
        let dirty = std::mem::take(&mut *self.dirty.lock());
        for segment in &dirty {
            segment.dirty.store(false, Ordering::SeqCst);
        }
        for segment in dirty {
            if !self.sync_segment(&segment) {
                return;
            }
        }
        self.publish(|p| p.durable = p.durable.max(target));
    }

    /// False, and poisoned, if the segment may not be on disk. A sealed one is: it was synced by this thread.
    fn sync_segment(&self, segment: &Segment) -> bool {
        let end = segment.end();
        match segment.writer().map_or(Ok(()), |file| file.sync_data()) {
            Ok(()) => {
                segment.synced.store(end, Ordering::SeqCst);
                true
            }
            Err(error) => {
                tracing::error!(segment = segment.id(), %error, "a chunk segment could not be synced; no more writes");
                self.poison();
                false
            }
        }
    }

    fn seal_one(&self, segment: &Arc<Segment>) {
        if !self.sync_segment(segment) {
            return;
        }
        let Some(index) = segment.index_file() else { return };
        // Without an index file the segment is read from end to end when it is next needed; nothing is lost.
        if let Err(error) = write_whole(self.disk.as_ref(), &index_name(segment.id()), &index.encode()) {
            tracing::warn!(segment = segment.id(), %error, "the index file of a chunk segment could not be written");
        }
        segment.seal();
    }

    fn poison(&self) {
        self.poisoned.store(true, Ordering::SeqCst);
        self.publish(|p| p.poisoned = true);
        // Under the lock, so that nobody checks and then waits in between.
        drop(self.work.lock());
        self.sealed.notify_all();
    }

    fn publish(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
        drop(self.blocking.0.lock());
        self.blocking.1.notify_all();
    }
}

fn poisoned() -> Error {
    Error::new(Reason::StoreFailed, "the chunk store takes no more writes, because the disk reported an error")
}
