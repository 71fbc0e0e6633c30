//! How far a transfer is, what limits it, and how far it is from the floor.

use common::error::Error;
use common::model::DeviceId;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::TransferId;

/// Over which the rate is measured.
const SECOND: Duration = Duration::from_secs(1);

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

/// How fast a transfer is, over about a second.
#[derive(Clone, Debug)]
pub struct Pace {
    line_rate: Option<u64>,
    moved: u64,
    /// Time and bytes moved until then, the last second of them.
    looks: VecDeque<(Duration, u64)>,
    rate: u64,
    peak: u64,
    worked: Duration,
    last: Duration,
}

impl Pace {
    /// `line_rate`: bytes a second of this machine's line, if known.
    pub fn new(line_rate: Option<u64>) -> Self {
        let zero = Duration::ZERO;
        Self { line_rate, moved: 0, looks: VecDeque::from([(zero, 0)]), rate: 0, peak: 0, worked: zero, last: zero }
    }

    /// Content came.
    pub fn moved(&mut self, bytes: u64) {
        self.moved += bytes;
    }

    /// To be called often, with the time since the beginning and whether it was at work.
    pub fn tick(&mut self, now: Duration, at_work: bool) {
        if at_work {
            self.worked += now.saturating_sub(self.last);
        }
        self.last = now;
        self.looks.push_back((now, self.moved));
        while self.looks.len() > 2 && self.looks.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) > SECOND) {
            self.looks.pop_front();
        }
        if let Some((then, bytes)) = self.looks.front().copied()
            && now > then
        {
            self.rate = ((self.moved - bytes) as f64 / (now - then).as_secs_f64()) as u64;
            self.peak = self.peak.max(self.rate);
        }
    }

    /// Bytes a second now.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Milliseconds at work.
    pub fn worked_ms(&self) -> u64 {
        u64::try_from(self.worked.as_millis()).unwrap_or(u64::MAX)
    }

    /// True if the line gives no more.
    pub fn is_near_line(&self) -> bool {
        self.line_rate.is_some_and(|line| self.rate as f64 > line as f64 * 0.85)
    }

    /// Time used divided by the least time in which so many bytes could have come; 0 if that is not known. The lines of the
    /// others are not known here: they are taken to be like this one, and this one to do what it says, or the most that was
    /// seen. Then the floor is that of one node alone. Less than a second is too short to tell.
    pub fn floor_ratio(&self, bytes: u64, elapsed_ms: u64) -> f64 {
        let line = self.line_rate.unwrap_or(0).max(self.peak);
        let down = line as f64;
        if bytes == 0 || line == 0 || elapsed_ms < 1_000 {
            return 0.0;
        }
        let floor =
            floor_seconds(bytes as f64, &Lines { seeds_up: down, takers: 1, slowest_down: down, takers_up: 0.0 });
        (elapsed_ms as f64 / 1000.0 / floor).max(1.0)
    }
}

/// The lines of a swarm, bytes a second.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Lines {
    /// What those that have everything can send together.
    pub seeds_up: f64,
    /// Nodes that fetch.
    pub takers: u32,
    /// What the slowest of them can take.
    pub slowest_down: f64,
    /// What they can send together.
    pub takers_up: f64,
}

/// The least time in which everyone can have `bytes`, in seconds: `max(F/u_s, F/d_min, N·F/(u_s + Σu_i))`.
pub fn floor_seconds(bytes: f64, lines: &Lines) -> f64 {
    let all = f64::from(lines.takers) * bytes / (lines.seeds_up + lines.takers_up);
    (bytes / lines.seeds_up).max(bytes / lines.slowest_down).max(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_one_of_the_books() {
        let lines = |takers, seeds_up, takers_up| Lines { seeds_up, takers, slowest_down: 12.5e6, takers_up };
        assert_eq!(floor_seconds(200e6, &lines(8, 12.5e6, 100e6)), 16.0);
        assert_eq!(floor_seconds(200e6, &lines(8, 12.5e6, 0.0)), 128.0, "one server for all");
        assert_eq!(floor_seconds(200e6, &lines(1, 1e6, 0.0)), 200.0);
    }

    #[test]
    fn the_rate_is_that_of_the_last_second() {
        let mut pace = Pace::new(None);
        for n in 1..=50u32 {
            pace.moved(if n <= 25 { 1000 } else { 3000 });
            pace.tick(Duration::from_millis(100) * n, n % 2 == 0);
        }
        assert!((28_000..=30_000).contains(&pace.rate()), "{}", pace.rate());
        assert_eq!(pace.worked_ms(), 2500);
        let ratio = pace.floor_ratio(30_000, 2_000);
        assert!((1.9..2.1).contains(&ratio), "{ratio}");
        assert_eq!(pace.floor_ratio(30_000, 500), 0.0, "too short to tell");
        assert_eq!(pace.floor_ratio(300_000, 2_000), 1.0, "nobody is below the floor");
    }
}
