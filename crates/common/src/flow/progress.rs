//! Telling how far the work is.

use crate::error::Error;
use parking_lot::Mutex;
use std::time::Duration;

/// How far the work is. Totals grow while a tree is being looked through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes of content that are where they belong, whether they had to be moved or not.
    pub done_bytes: u64,
    /// Bytes of content in all, as far as known.
    pub total_bytes: u64,
    /// Files that are finished, failed ones included.
    pub done_files: u64,
    /// Files in all, as far as known.
    pub total_files: u64,
    /// Bytes of content that were handed to or came from a connection, what had to be sent again included.
    pub moved_bytes: u64,
}

/// Something to mention.
#[derive(Debug)]
pub enum Event<'a> {
    /// The server is away or busy; the work goes on after the delay.
    Waiting {
        /// Why.
        error: &'a Error,
        /// How long.
        delay: Duration,
    },
    /// A local file changed while it was read; it is read again.
    Restarted {
        /// Which.
        path: &'a str,
    },
    /// A file is finished.
    Finished {
        /// Which.
        path: &'a str,
    },
    /// A file is the same on both sides.
    Unchanged {
        /// Which.
        path: &'a str,
    },
    /// Something that is neither file nor directory was passed over.
    Skipped {
        /// Which.
        path: &'a str,
        /// Why.
        why: &'a str,
    },
    /// A file of a tree failed.
    Failed {
        /// Which.
        path: &'a str,
        /// Why.
        error: &'a Error,
    },
}

/// Is told how far the work is. Called often (for every chunk and every small file) and from the thread that moves the
/// bytes, so it must be quick.
pub trait Progress: Send + Sync {
    /// The work is this far.
    fn totals(&self, totals: Totals) {
        let _ = totals;
    }
    /// Something to mention.
    fn event(&self, event: Event<'_>) {
        let _ = event;
    }
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {}

/// Sums up and passes on.
pub(super) struct Tracker<'a> {
    to: Target<'a>,
    totals: Mutex<Totals>,
}

enum Target<'a> {
    Caller(&'a dyn Progress),
    /// A file of something larger.
    Whole(&'a Tracker<'a>),
}

impl<'a> Tracker<'a> {
    pub(super) fn new(progress: &'a dyn Progress) -> Self {
        Self { to: Target::Caller(progress), totals: Mutex::default() }
    }

    /// For one file of several: what it adds can be taken back together.
    pub(super) fn part_of(whole: &'a Tracker<'_>) -> Self {
        Self { to: Target::Whole(whole), totals: Mutex::default() }
    }

    pub(super) fn expect(&self, files: u64, bytes: u64) {
        self.change(&|t| {
            t.total_files += files;
            t.total_bytes += bytes;
        });
    }

    /// A file's size turned out to be another one.
    pub(super) fn correct(&self, was: u64, is: u64) {
        if was != is {
            self.change(&|t| t.total_bytes = (t.total_bytes + is).saturating_sub(was));
        }
    }

    /// Content is where it belongs; `moved` of it crossed the line.
    pub(super) fn done(&self, bytes: u64, moved: u64) {
        if bytes > 0 || moved > 0 {
            self.change(&|t| {
                t.done_bytes += bytes;
                t.moved_bytes += moved;
            });
        }
    }

    /// Content has to be done again.
    pub(super) fn undo(&self, bytes: u64) {
        if bytes > 0 {
            self.change(&|t| t.done_bytes = t.done_bytes.saturating_sub(bytes));
        }
    }

    /// Everything has to be done again.
    pub(super) fn undo_all(&self) {
        let done = self.totals.lock().done_bytes;
        self.undo(done);
    }

    pub(super) fn file_done(&self) {
        self.change(&|t| t.done_files += 1);
    }

    pub(super) fn moved(&self) -> u64 {
        self.totals.lock().moved_bytes
    }

    pub(super) fn event(&self, event: Event<'_>) {
        match self.to {
            Target::Caller(progress) => progress.event(event),
            Target::Whole(whole) => whole.event(event),
        }
    }

    fn change(&self, change: &dyn Fn(&mut Totals)) {
        let totals = {
            let mut totals = self.totals.lock();
            change(&mut totals);
            *totals
        };
        match self.to {
            Target::Caller(progress) => progress.totals(totals),
            Target::Whole(whole) => whole.change(change),
        }
    }
}

impl std::fmt::Debug for Tracker<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tracker").field(&*self.totals.lock()).finish()
    }
}
