//! Epochs, and who holds on to them.
//!
//! An epoch begins with each mark pass; it is a count, no time of day. Whoever reads or sets `seen` of a chunk, or has
//! made sure of chunks and not yet committed the reference, holds a ticket. [`Gate::advance`] begins the next epoch and
//! then waits until every ticket of older epochs is back. Nobody ever waits to get a ticket, so a commit cannot be held
//! up by the sweep, and commits that never pause cannot hold up the sweep either.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::model::UploadId;

/// A lease ends this long after it was last used.
pub const LEASE_IDLE: Duration = Duration::from_secs(60 * 60);
/// And this long after it began in any case, so that nobody can keep removed chunks for ever.
pub const LEASE_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// Most leases; a further one ends the one that was used least recently, whose upload then finds chunks missing at worst.
pub const LEASES_MAX: usize = 16_384;

/// Epoch counter and tickets.
#[derive(Default)]
pub struct Gate {
    state: Mutex<GateState>,
    returned: Condvar,
}

struct GateState {
    epoch: u32,
    /// Tickets of this epoch.
    present: usize,
    /// Tickets of earlier ones.
    older: usize,
    /// Newest epoch whose mark pass was completed, since the store was opened.
    completed: Option<u32>,
    /// For each backup that is running, the newest completed epoch when it began.
    pins: Vec<Option<u32>>,
}

impl Default for GateState {
    fn default() -> Self {
        Self { epoch: 1, present: 0, older: 0, completed: None, pins: Vec::new() }
    }
}

/// A held epoch; give it back with [`Gate::leave`].
#[derive(Debug)]
pub struct Ticket {
    epoch: u32,
}

impl Ticket {
    /// The epoch that it holds. Chunks may be stamped with it as long as it is held, even if the next one has begun.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }
}

impl Gate {
    /// Takes a ticket; never waits.
    pub fn enter(&self) -> Ticket {
        let mut s = self.state.lock();
        s.present += 1;
        Ticket { epoch: s.epoch }
    }

    /// Gives it back.
    pub fn leave(&self, ticket: &Ticket) {
        let mut s = self.state.lock();
        if ticket.epoch == s.epoch {
            s.present -= 1;
        } else {
            s.older -= 1;
            if s.older == 0 {
                self.returned.notify_all();
            }
        }
    }

    /// The present epoch.
    pub fn epoch(&self) -> u32 {
        self.state.lock().epoch
    }

    /// Begins the next epoch and waits until nobody holds an older one. `None` if somebody still does after `patience`.
    pub fn advance(&self, patience: Duration) -> Option<u32> {
        let until = Instant::now() + patience;
        let mut s = self.state.lock();
        s.epoch += 1;
        s.older += s.present;
        s.present = 0;
        while s.older > 0 {
            if self.returned.wait_until(&mut s, until).timed_out() && s.older > 0 {
                return None;
            }
        }
        Some(s.epoch)
    }

    /// Notes that the mark pass of the present epoch is complete; gives the one before.
    pub fn complete(&self) -> Option<u32> {
        let mut s = self.state.lock();
        let now = s.epoch;
        s.completed.replace(now)
    }

    /// Holds back the removal of everything that is referenced now.
    pub fn pin(&self) {
        let mut s = self.state.lock();
        let completed = s.completed;
        s.pins.push(completed);
    }

    /// Ends a pin. Pins are alike but for their age; the youngest is dropped, so that what stays holds back enough for
    /// whichever it was that ended.
    pub fn unpin(&self) {
        self.state.lock().pins.pop();
    }

    /// `Some(epoch)`: chunks last seen before that epoch may be removed as far as pins are concerned; `None`: any.
    pub fn pinned_below(&self) -> Option<u32> {
        self.state.lock().pins.iter().map(|p| p.unwrap_or(0)).min()
    }

    /// True while a backup is running.
    pub fn is_pinned(&self) -> bool {
        !self.state.lock().pins.is_empty()
    }
}

#[derive(Clone, Copy)]
struct LeaseState {
    /// Epoch in which it began: chunks seen in it or later stay.
    begin: u32,
    first_ms: u64,
    last_ms: u64,
}

impl LeaseState {
    fn is_over(&self, now_ms: u64) -> bool {
        // A clock that ran back makes a lease live longer, never shorter.
        now_ms.saturating_sub(self.last_ms) >= LEASE_IDLE.as_millis() as u64
            || now_ms.saturating_sub(self.first_ms) >= LEASE_LIFE.as_millis() as u64
    }
}

/// The leases of all uploads, in memory only. A lease names no chunks: it pins the epoch in which it began, and using a
/// chunk under it stamps the chunk with the present epoch, which is the same one or a later one.
#[derive(Default)]
pub struct Leases(Mutex<LeaseTable>);

/// Leases, and the same in the order of their last use: the one to end at the bound must be found without looking at all
/// of them, for at the bound that happens with every new upload.
#[derive(Default)]
struct LeaseTable {
    all: HashMap<UploadId, LeaseState>,
    by_use: BTreeSet<(u64, uuid::Uuid)>,
}

impl LeaseTable {
    fn remove(&mut self, upload: UploadId) {
        if let Some(lease) = self.all.remove(&upload) {
            self.by_use.remove(&(lease.last_ms, upload.0));
        }
    }

    fn insert(&mut self, upload: UploadId, lease: LeaseState) {
        self.remove(upload);
        self.by_use.insert((lease.last_ms, upload.0));
        self.all.insert(upload, lease);
    }
}

impl Leases {
    /// Begins or uses a lease. `epoch` is read by the caller under a ticket.
    pub fn touch(&self, upload: UploadId, epoch: u32, now_ms: u64) {
        let mut table = self.0.lock();
        let mut lease = LeaseState { begin: epoch, first_ms: now_ms, last_ms: now_ms };
        match table.all.get(&upload).filter(|l| !l.is_over(now_ms)) {
            Some(held) => {
                lease.last_ms = held.last_ms.max(now_ms);
                lease.first_ms = held.first_ms;
                // A slow caller may come with a ticket that is older than the lease.
                lease.begin = held.begin.min(epoch);
            }
            None if table.all.len() >= LEASES_MAX && !table.all.contains_key(&upload) => {
                if let Some((_, oldest)) = table.by_use.first().copied() {
                    table.remove(UploadId(oldest));
                }
            }
            None => {}
        }
        table.insert(upload, lease);
    }

    /// Ends a lease.
    pub fn end(&self, upload: UploadId) {
        self.0.lock().remove(upload);
    }

    /// The earliest epoch that a living lease pins. Leases that are over are forgotten.
    pub fn oldest(&self, now_ms: u64) -> Option<u32> {
        let mut table = self.0.lock();
        let LeaseTable { all, by_use } = &mut *table;
        all.retain(|upload, lease| {
            let over = lease.is_over(now_ms);
            if over {
                by_use.remove(&(lease.last_ms, upload.0));
            }
            !over
        });
        all.values().map(|l| l.begin).min()
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.lock().all.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn the_next_epoch_waits_for_tickets_of_older_ones_only() {
        let gate = Arc::new(Gate::default());
        let old = gate.enter();
        assert_eq!(gate.advance(Duration::ZERO), None, "the old ticket is still out");
        let new = gate.enter();
        gate.leave(&old);
        let newer = Arc::new(AtomicBool::new(false));
        let thread = {
            let (gate, newer) = (gate.clone(), newer.clone());
            std::thread::spawn(move || {
                let epoch = gate.advance(Duration::from_secs(60));
                assert!(newer.load(Ordering::SeqCst), "went on before the ticket was back");
                epoch
            })
        };
        while gate.epoch() < 3 {
            std::thread::yield_now();
        }
        let unrelated = gate.enter();
        newer.store(true, Ordering::SeqCst);
        gate.leave(&new);
        assert_eq!(thread.join().unwrap(), Some(3));
        gate.leave(&unrelated);
    }

    #[test]
    fn leases_end_by_idleness_and_age_and_number() {
        let leases = Leases::default();
        let (a, b) = (UploadId::generate(), UploadId::generate());
        let hour = LEASE_IDLE.as_millis() as u64;
        leases.touch(a, 1, 0);
        leases.touch(b, 2, hour / 2);
        assert_eq!(leases.oldest(hour - 1), Some(1));
        assert_eq!(leases.oldest(hour), Some(2), "a was idle for an hour");
        leases.touch(a, 5, hour);
        assert_eq!(leases.oldest(hour), Some(2));
        for step in 2..48 {
            leases.touch(b, 9, step * hour / 2);
        }
        assert_eq!(leases.oldest(47 * hour / 2), Some(2), "used all the time");
        leases.touch(b, 9, 49 * hour / 2);
        assert_eq!(leases.oldest(49 * hour / 2), Some(9), "a day is the end, then it begins anew");
        for _ in 0..LEASES_MAX + 10 {
            leases.touch(UploadId::generate(), 10, 50 * hour / 2);
        }
        assert_eq!(leases.count(), LEASES_MAX);
        assert_eq!(leases.oldest(0), Some(10));
        assert_eq!(leases.count(), LEASES_MAX, "a clock that ran back ends nothing");
    }
}
