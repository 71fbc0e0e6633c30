//! The bounded queue in front of the committer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Semaphore, TryAcquireError};

use super::committer::Job;
use super::view::closed;
use crate::error::{Error, Reason, Result};

/// Jobs that wait for the committer. At the bound callers wait for `patience`, then get `OVERLOADED`.
pub(super) struct Queue {
    state: Mutex<State>,
    ready: Condvar,
    room: Condvar,
    places: Semaphore,
    patience: Duration,
}

struct State {
    jobs: VecDeque<Box<dyn Job>>,
    closed: bool,
}

impl Queue {
    pub fn new(places: usize, patience: Duration) -> Self {
        Self {
            state: Mutex::new(State { jobs: VecDeque::new(), closed: false }),
            ready: Condvar::new(),
            room: Condvar::new(),
            places: Semaphore::new(places.clamp(1, Semaphore::MAX_PERMITS)),
            patience,
        }
    }

    fn overloaded(&self) -> Error {
        Error::new(Reason::Overloaded, "the store has too many changes waiting").retry_after(Duration::from_secs(1))
    }

    fn put(&self, job: Box<dyn Job>) -> Result<()> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(closed());
        }
        state.jobs.push_back(job);
        // The committer only sleeps when the queue is empty.
        if state.jobs.len() == 1 {
            self.ready.notify_one();
        }
        Ok(())
    }

    pub async fn push(&self, job: Box<dyn Job>) -> Result<()> {
        let place = match self.places.try_acquire() {
            Ok(place) => place,
            Err(TryAcquireError::Closed) => return Err(closed()),
            Err(TryAcquireError::NoPermits) => tokio::time::timeout(self.patience, self.places.acquire())
                .await
                .map_err(|_| self.overloaded())?
                .map_err(|_| closed())?,
        };
        place.forget();
        self.put(job)
    }

    pub fn push_blocking(&self, job: Box<dyn Job>) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        let mut state = self.state.lock();
        loop {
            match self.places.try_acquire() {
                Ok(place) => {
                    place.forget();
                    break;
                }
                Err(TryAcquireError::Closed) => return Err(closed()),
                Err(TryAcquireError::NoPermits) => {
                    if self.room.wait_until(&mut state, deadline).timed_out() {
                        return Err(self.overloaded());
                    }
                }
            }
        }
        drop(state);
        self.put(job)
    }

    /// Waits for a job; nothing once the queue is closed and empty.
    pub fn wait(&self) -> Option<Box<dyn Job>> {
        let mut state = self.state.lock();
        while state.jobs.is_empty() {
            if state.closed {
                return None;
            }
            self.ready.wait(&mut state);
        }
        self.pop(&mut state)
    }

    /// Takes a job if there is one.
    pub fn try_next(&self) -> Option<Box<dyn Job>> {
        self.pop(&mut self.state.lock())
    }

    fn pop(&self, state: &mut State) -> Option<Box<dyn Job>> {
        let job = state.jobs.pop_front()?;
        // Under the lock: a blocking caller checks for a place under it before it waits.
        self.places.add_permits(1);
        self.room.notify_one();
        Some(job)
    }

    pub fn len(&self) -> usize {
        self.state.lock().jobs.len()
    }

    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        self.places.close();
        self.ready.notify_all();
        self.room.notify_all();
    }
}
