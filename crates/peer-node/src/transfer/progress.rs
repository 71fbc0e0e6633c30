//! How far a transfer is, what limits it, and how far it is from the floor.

use common::error::Error;
use common::model::DeviceId;
use std::path::PathBuf;

use crate::model::TransferId;

/// State of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum State {
    /// Looking up what is here already.
    Listing,
    /// Moving bytes.
    Running,
    /// Nothing can be moved now; goes on by itself.
    Waiting,
    /// Paused by the user.
    Paused,
    /// All there and verified.
    Done,
    /// Ended with an error.
    Failed,
    /// Cancelled.
    Cancelled,
}

impl State {
    /// True if nothing happens any more.
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// What limits a transfer now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Limit {
    /// Not known, or nothing.
    #[default]
    None,
    /// The sources give no more.
    Source,
    /// This machine's line.
    Network,
    /// Writing.
    Disk,
    /// A cap that the user has set.
    Cap,
    /// Stays out of the way of other traffic.
    Yield,
    /// No source is there.
    Waiting,
}

impl Limit {
    /// As the contract writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Source => "source",
            Self::Network => "network",
            Self::Disk => "disk",
            Self::Cap => "cap",
            Self::Yield => "yield",
            Self::Waiting => "waiting",
        }
    }
}

/// Something is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Stable word.
    pub reason: String,
    /// What.
    pub message: String,
    /// Why.
    pub why: String,
    /// What to do.
    pub fix: String,
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        Self {
            reason: error.reason().to_owned(),
            message: error.message().to_owned(),
            why: error.why().to_owned(),
            fix: error.fix().to_owned(),
        }
    }
}

/// A source of a transfer.
#[derive(Clone, PartialEq, Debug)]
pub struct SourceProgress {
    /// Which device; this one for what was taken from the local disk.
    pub device: DeviceId,
    /// How people call it.
    pub name: String,
    /// Verified bytes from it.
    pub received_bytes: u64,
    /// Present rate, bytes a second.
    pub rate: u64,
    /// Chunks from it that were wrong.
    pub bad_chunk_count: u32,
    /// "direct", "relayed" or "local disk".
    pub way: &'static str,
    /// It gave wrong chunks and is not asked any more.
    pub banned: bool,
}

/// How far a transfer is.
#[derive(Clone, PartialEq, Debug)]
pub struct Progress {
    /// Which.
    pub id: TransferId,
    /// See the enum.
    pub state: State,
    /// What is fetched.
    pub title: String,
    /// Where it goes.
    pub destination: PathBuf,
    /// Files in all.
    pub file_count: u64,
    /// Files that are there.
    pub done_file_count: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes there and verified, with those that were here already.
    pub done_bytes: u64,
    /// Of these, taken from the local disk.
    pub local_bytes: u64,
    /// Content that came over the network, also what came twice or was wrong.
    pub fetched_bytes: u64,
    /// Bytes a second now.
    pub rate: u64,
    /// Bytes given to others meanwhile.
    pub served_bytes: u64,
    /// By source.
    pub sources: Vec<SourceProgress>,
    /// What limits it now.
    pub limit: Limit,
    /// Time used divided by the floor; 0 if not known.
    pub floor_ratio: f64,
    /// Why it failed, or why it waits.
    pub problem: Option<Problem>,
    /// Milliseconds that it was moving bytes or waiting for them.
    pub elapsed_ms: u64,
    /// When it was ordered, milliseconds since 1970.
    pub create_ms: u64,
    /// When it ended, milliseconds since 1970; 0 before.
    pub end_ms: u64,
    /// Done, and safe from a power cut. Follows [`State::Done`] within moments.
    pub settled: bool,
}
