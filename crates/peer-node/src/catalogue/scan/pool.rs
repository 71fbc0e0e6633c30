//! The stack of work that the threads of a scan share.

use common::error::Error;
use parking_lot::{Condvar, Mutex};
use tokio_util::sync::CancellationToken;

use super::worker::Work;

/// Batches of files are not put aside beyond this, but worked off at once by who found them.
const DEEP: usize = 2_048;

pub(super) struct Pool {
    state: Mutex<State>,
    ready: Condvar,
    cancel: CancellationToken,
}

struct State {
    work: Vec<Work>,
    active: usize,
    stopped: bool,
    failure: Option<Error>,
}

impl Pool {
    pub fn new(mut work: Vec<Work>, cancel: CancellationToken) -> Self {
        work.reverse();
        let state = State { work, active: 0, stopped: false, failure: None };
        Self { state: Mutex::new(state), ready: Condvar::new(), cancel }
    }

    /// The next piece of work; `None` when there is none and nobody can bring any more.
    pub fn next(&self) -> Option<Work> {
        let mut state = self.state.lock();
        loop {
            if state.stopped || self.cancel.is_cancelled() {
                self.ready.notify_all();
                return None;
            }
            if let Some(work) = state.work.pop() {
                state.active += 1;
                return Some(work);
            }
            if state.active == 0 {
                self.ready.notify_all();
                return None;
            }
            self.ready.wait(&mut state);
        }
    }

    /// A piece of work is done.
    pub fn done(&self) {
        let mut state = self.state.lock();
        state.active -= 1;
        if state.active == 0 {
            self.ready.notify_all();
        }
    }

    pub fn push(&self, work: Work) {
        self.state.lock().work.push(work);
        self.ready.notify_one();
    }

    /// Puts a batch of files aside for whoever is free, or gives it back if there is enough already.
    pub fn offer(&self, work: Work) -> Option<Work> {
        let mut state = self.state.lock();
        if state.work.len() >= DEEP {
            return Some(work);
        }
        state.work.push(work);
        self.ready.notify_one();
        None
    }

    pub fn stop(&self) {
        self.state.lock().stopped = true;
        self.ready.notify_all();
    }

    pub fn is_stopped(&self) -> bool {
        self.cancel.is_cancelled() || self.state.lock().stopped
    }

    /// Ends everything because of an error.
    pub fn fail(&self, error: Error) {
        let mut state = self.state.lock();
        state.stopped = true;
        state.failure.get_or_insert(error);
        self.ready.notify_all();
    }

    pub fn failure(&self) -> Option<Error> {
        self.state.lock().failure.take()
    }
}
