//! Each grant and refusal of a device, in an append-only, hash-chained log.
//!
//! # Layout
//!
//! The log lives in a [`Store`] under a prefix that the caller chooses, beside whatever else the node keeps there.
//!
//! ```text
//! PREFIX h              head: first and last number that are kept, the hash before the first, the hash of the last
//! PREFIX r SEQUENCE     a record, numbered from 1 without gaps; its hash covers the hash of the one before and itself
//! ```
//!
//! # What verification finds
//!
//! [`Audit::verify`] finds a record that was changed, removed, added or put in another place, a cut-off tail (the head tells
//! the last one) and a cut-off beginning: old records go only by rotation, and a rotation is itself a record in the chain
//! that states up to where it went and which hash stood there. Whoever can write the database can of course compute a new
//! chain; that is why `verify` gives the last hash, to be noted down elsewhere.
//!
//! # Speed and floods
//!
//! [`Audit::note`] only puts a line into a bounded queue; [`Audit::run`] writes what has gathered in one transaction, many
//! lines under one sync. [`Audit::write`] waits until its line is on disk. Refusals are bounded by source (see `flood.rs`):
//! what goes beyond is counted, and written as one summary a minute. A grant is never left out for being frequent; if the
//! queue is full, [`Audit::admit`] says so *before* something is granted. If the log cannot be written, it says
//! `AUDIT_FAILED`, and nothing is granted until it can be written again.
//!
//! # Crashes
//!
//! Records and head are written in one transaction: both are there or neither. Lines that were only noted can be lost with
//! the process, at most those of the last [`Settings::gather`]; lines that were written cannot.
//!
//! # Bounds
//!
//! [`Settings::records_max`] records (about 300 bytes each) plus the slack until the next rotation; 4,096 lines that wait;
//! texts of 256 bytes, details of 512; 4,096 sources whose rate is known.

mod chain;
mod flood;
mod list;
#[cfg(test)]
mod tests;

use crate::model::Caller;
use common::clock::SharedClock;
use common::error::{Error, Reason, Result};
use common::store::Store;
use flood::Flood;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use chain::Verified;
pub use list::{Page, Query};

/// Lines that may wait to be written.
const PENDING_MAX: usize = 4096;
/// Lines that one transaction writes.
const GROUP_MAX: usize = 512;
/// Longest text of a field in bytes.
const TEXT_MAX: usize = 256;
/// Longest detail in bytes.
const DETAIL_MAX: usize = 512;

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Outcome {
    /// It was allowed.
    Granted,
    /// It was not.
    Refused,
    /// Something came to its end, such as a lease.
    Ended,
}

impl Outcome {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Refused => "refused",
            Self::Ended => "ended",
        }
    }
}

/// What is to be noted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Who asked.
    pub who: Caller,
    /// For what: the device's name, such as `drives/dvd`.
    pub resource: String,
    /// To do what, such as `use`.
    pub verb: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// The word of the error, if it was refused; why it ended, if it ended.
    pub reason: String,
    /// More, for people.
    pub detail: String,
}

impl Line {
    /// Something that was allowed.
    pub fn granted(who: &Caller, resource: &str, verb: &'static str) -> Self {
        Self::of(who, resource, verb, Outcome::Granted)
    }

    /// Something that was refused, with the error that the caller got.
    pub fn refused(who: &Caller, resource: &str, verb: &'static str, error: &Error) -> Self {
        let mut line = Self::of(who, resource, verb, Outcome::Refused);
        line.reason = error.reason().to_owned();
        line.detail = error.message().to_owned();
        line
    }

    /// Something that came to its end.
    pub fn ended(who: &Caller, resource: &str, verb: &'static str, reason: &str) -> Self {
        let mut line = Self::of(who, resource, verb, Outcome::Ended);
        line.reason = reason.to_owned();
        line
    }

    /// The same with more for people.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    fn of(who: &Caller, resource: &str, verb: &'static str, outcome: Outcome) -> Self {
        let (resource, reason, detail) = (resource.to_owned(), String::new(), String::new());
        Self { who: who.clone(), resource, verb, outcome, reason, detail }
    }
}

/// One record of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// 1, 2, 3 …
    pub sequence: u64,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// Who asked.
    pub who: Caller,
    /// For what.
    pub resource: String,
    /// To do what.
    pub verb: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The word of the error, or why it ended.
    pub reason: String,
    /// More, for people.
    pub detail: String,
    /// How many it stands for: 1, or more for a summary.
    pub count: u32,
    /// Over the previous record's hash and this record.
    pub hash: [u8; 32],
}

/// How a log is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Records to keep, at least 16. Default: 100,000.
    pub records_max: u64,
    /// How long lines are gathered before they are written together. Default: 50 ms.
    pub gather: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { records_max: 100_000, gather: Duration::from_millis(50) }
    }
}

/// A line as it goes into the chain.
#[derive(Clone, Debug)]
struct Pending {
    line: Line,
    time_ms: u64,
    count: u32,
}

struct Inner {
    store: Store,
    prefix: Vec<u8>,
    clock: SharedClock,
    settings: Settings,
    state: Mutex<State>,
    /// One writer at a time keeps lines in the order in which they were noted.
    writing: tokio::sync::Mutex<()>,
    wake: Notify,
}

struct State {
    pending: VecDeque<Pending>,
    /// Number of the next line that is noted, and of the first that is not yet on disk.
    next: u64,
    written: u64,
    flood: Flood,
    failed: bool,
}

/// An open log. Clones are handles to the same one.
#[derive(Clone)]
pub struct Audit(Arc<Inner>);

impl Audit {
    /// Opens the log under `prefix`, or begins one.
    ///
    /// # Errors
    /// `SETTINGS_INVALID` if fewer than 16 records are to be kept; `STORE_CORRUPT` if its head cannot be read.
    pub fn open(store: Store, prefix: &[u8], clock: SharedClock, settings: Settings) -> Result<Self> {
        if settings.records_max < 16 {
            return Err(Error::new(Reason::SettingsInvalid, "an audit log keeps at least 16 records"));
        }
        chain::head(&store, prefix)?;
        let state = State { pending: VecDeque::new(), next: 0, written: 0, flood: Flood::default(), failed: false };
        Ok(Self(Arc::new(Inner {
            store,
            prefix: prefix.to_vec(),
            clock,
            settings,
            state: Mutex::new(state),
            writing: tokio::sync::Mutex::new(()),
            wake: Notify::new(),
        })))
    }

    /// Whether something may be granted now: asked before, so that no grant goes unnoted.
    ///
    /// # Errors
    /// `AUDIT_FAILED` if the log could not be written last time; `OVERLOADED` if too many lines wait.
    pub fn admit(&self) -> Result<()> {
        let state = self.0.state.lock();
        if state.failed {
            drop(state);
            // The next attempt to write may find the disk with room again.
            self.0.wake.notify_one();
            return Err(failed());
        }
        // Places are left for what ends or is granted from a queue meanwhile.
        if state.pending.len() >= PENDING_MAX / 4 * 3 {
            return Err(Error::new(Reason::Overloaded, "too many uses of devices wait to be noted")
                .retry_after(Duration::from_secs(1)));
        }
        Ok(())
    }

    /// Notes a line, to be written soon. Never waits. Refusals beyond what a source may cause are counted instead.
    pub fn note(&self, line: Line) {
        let now = self.0.clock.now_ms();
        self.0.state.lock().push(line, now);
        self.0.wake.notify_one();
    }

    /// Notes a line and gives back once it is on disk (or was only counted, see [`Audit::note`]).
    ///
    /// # Errors
    /// `AUDIT_FAILED`. The line stays in the queue then.
    pub async fn write(&self, line: Line) -> Result<()> {
        let now = self.0.clock.now_ms();
        let upto = {
            let mut state = self.0.state.lock();
            state.push(line, now);
            state.next
        };
        self.write_upto(upto).await
    }

    /// Writes everything that was noted so far, and summaries that are due.
    ///
    /// # Errors
    /// `AUDIT_FAILED`. What was not written stays in the queue.
    pub async fn flush(&self) -> Result<()> {
        let upto = {
            let mut state = self.0.state.lock();
            let now = self.0.clock.now_ms();
            state.summarize(now);
            state.next
        };
        self.write_upto(upto).await
    }

    async fn write_upto(&self, upto: u64) -> Result<()> {
        let inner = &self.0;
        let _one = inner.writing.lock().await;
        loop {
            let group: Vec<Pending> = {
                let state = inner.state.lock();
                if state.written >= upto || state.pending.is_empty() {
                    return Ok(());
                }
                state.pending.iter().take(GROUP_MAX).cloned().collect()
            };
            let count = group.len();
            let (prefix, keep) = (inner.prefix.clone(), inner.settings.records_max);
            let done = inner.store.transact(move |txn| chain::append(txn, &prefix, &group, keep)).await;
            let mut state = inner.state.lock();
            state.failed = done.is_err();
            if let Err(error) = done {
                return Err(failed().caused_by(error));
            }
            state.pending.drain(..count);
            state.written += count as u64;
        }
    }

    /// Writes what is noted, until `stop`; then writes the rest and ends. One of these runs for a log.
    pub async fn run(self, stop: CancellationToken) {
        let inner = self.0.clone();
        loop {
            let due = tokio::time::sleep(Duration::from_secs(flood::SUMMARY_EVERY_MS / 1000));
            tokio::select! {
                () = stop.cancelled() => break,
                () = inner.wake.notified() => {}
                () = due => {}
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(inner.settings.gather) => {}
            }
            self.flush_or_log().await;
        }
        self.flush_or_log().await;
    }

    async fn flush_or_log(&self) {
        if let Err(error) = self.flush().await {
            tracing::error!(?error, "grants and refusals of devices could not be noted");
        }
    }

    /// True if the last attempt to write failed.
    pub fn is_failed(&self) -> bool {
        self.0.state.lock().failed
    }

    /// A page of the log. Blocks for up to 10,000 reads.
    ///
    /// # Errors
    /// `PAGE_TOKEN_INVALID`; those of the store.
    pub fn list(&self, query: &Query) -> Result<Page> {
        list::list(&self.0.store, &self.0.prefix, query)
    }

    /// Checks the whole chain. Blocks; reads all records.
    ///
    /// # Errors
    /// Those of the store; damage is no error but the result.
    pub fn verify(&self) -> Result<Verified> {
        chain::verify(&self.0.store, &self.0.prefix)
    }
}

impl State {
    fn push(&mut self, line: Line, now_ms: u64) {
        self.summarize(now_ms);
        if line.outcome == Outcome::Refused && !self.flood.admit(&line.who, now_ms) {
            return;
        }
        if self.pending.len() >= PENDING_MAX {
            self.flood.left_out(&line.who, now_ms);
            return;
        }
        self.pending.push_back(Pending { line, time_ms: now_ms, count: 1 });
        self.next += 1;
    }

    fn summarize(&mut self, now_ms: u64) {
        if self.pending.len() >= PENDING_MAX {
            return;
        }
        if let Some((line, count)) = self.flood.summary(now_ms) {
            self.pending.push_back(Pending { line, time_ms: now_ms, count });
            self.next += 1;
        }
    }
}

fn failed() -> Error {
    Error::new(Reason::AuditFailed, "the log of grants and refusals could not be written")
}

/// A text from outside, cut to a bound and freed of control characters.
pub(crate) fn clean(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    for c in text.chars() {
        let c = if c.is_control() { '\u{FFFD}' } else { c };
        if out.len() + c.len_utf8() > max {
            while out.len() + '…'.len_utf8() > max && out.pop().is_some() {}
            out.push('…');
            break;
        }
        out.push(c);
    }
    out
}
