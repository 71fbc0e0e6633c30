//! What happens to a queue, and what is to be done about it.

use serde::{Deserialize, Serialize};

use crate::printer::model::{Document, Hold, Job, JobId};

/// Whether an output can print now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Condition {
    /// It can.
    Ready {
        /// Jobs that it has from others.
        backlog: u32,
    },
    /// It cannot, for now.
    Unready {
        /// A keyword of `printer-state-reasons`, such as `media-empty`.
        reason: String,
    },
}

impl Condition {
    /// Ready with nothing before us.
    pub const READY: Self = Self::Ready { backlog: 0 };

    /// Not ready for this reason.
    pub fn unready(reason: impl Into<String>) -> Self {
        Self::Unready { reason: reason.into() }
    }

    /// True if it can print.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready { .. })
    }
}

/// How an output let a job go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// All of it is printed; how many sides, if the output knows.
    Done {
        /// Printed sides.
        impressions: Option<u32>,
    },
    /// The output has nothing of it any more, and will print no more of it; so many sides came out.
    Withdrawn {
        /// Printed sides.
        impressions: u32,
    },
    /// It can never be printed there.
    Aborted {
        /// Why, for people.
        message: String,
    },
    /// The output took nothing of it.
    Refused {
        /// A keyword of `printer-state-reasons`.
        reason: String,
    },
    /// Nobody knows how much the output has of it.
    Lost {
        /// A keyword of `printer-state-reasons`.
        reason: String,
    },
}

/// Changes of a job that its owner may make before it is printed.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Changes {
    /// New name.
    pub name: Option<String>,
    /// New priority, 1 to 100.
    pub priority: Option<u8>,
    /// New number of copies.
    pub copies: Option<u32>,
    /// Held until; `Some(None)` releases a job that has no PIN.
    pub hold: Option<Option<Hold>>,
}

/// What happens to a queue.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A new job, with or without documents.
    Submit(Box<Job>),
    /// One more document for a job that is not complete; `last` completes it.
    AddDocument(JobId, Document, bool),
    /// No more documents come.
    Close(JobId),
    /// Do not print it until it is released.
    Hold(JobId, Hold),
    /// Print it in its turn; with the PIN if it has one.
    Release(JobId, Option<String>),
    /// Take it back.
    Cancel(JobId),
    /// Take one of its documents back.
    CancelDocument(JobId, usize),
    /// Change it.
    Alter(JobId, Changes),
    /// Print it before all others.
    Promote(JobId),
    /// Begin no more jobs.
    Pause,
    /// Begin jobs again.
    Resume,
    /// Take new jobs, or refuse them.
    Accept(bool),
    /// Hold all jobs that come from now on, or release those and hold no more.
    HoldNew(bool),
    /// What an output said about itself.
    Condition(String, Condition),
    /// A job's printer stopped in the middle, after so many sides.
    Stalled(JobId, String, u32),
    /// It goes on, or has printed so many sides.
    Going(JobId, u32),
    /// An output let a job go.
    Ended(JobId, Outcome),
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// The job changed: keep it.
    Save(JobId),
    /// The job is over: keep it, charge what was used, write it down, wipe its documents.
    Ended(JobId),
    /// The job is history that nobody lists any more.
    Forget(JobId),
    /// The printer's own state changed: keep it.
    SavePrinter,
    /// Give a job to an output, once everything before this is on disk.
    Start {
        /// The job.
        job: JobId,
        /// The output.
        output: String,
        /// It may have it already.
        repeat: bool,
    },
    /// Tell the output that has the job to let it go.
    Withdraw(JobId),
    /// Ask an output soon how it is.
    Probe(String),
}

/// Why an event is refused; nothing changed, except for the count of wrong PINs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// There is no such job.
    Unknown,
    /// The job is over.
    Over,
    /// The job is not in a state for this.
    NotNow(&'static str),
    /// The PIN is wrong or missing; so many tries are left.
    PinWrong(u8),
    /// Too many PINs were wrong; until this time.
    PinLocked(u64),
    /// The queue has as many jobs or bytes as it keeps.
    Full,
    /// No output suffices for the job.
    Unsuitable,
    /// The printer takes no jobs.
    NotAccepting,
}
