//! Information about the server, and what is wrong with it.

use super::{App, disk, records};
use bytes::Bytes;
use common::error::{Reason, Result};
use common::store::prefix_end;
use parking_lot::Mutex;
use proto::record::v1 as record;
use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

/// Oldest client that this server still serves.
pub const MIN_CLIENT_VERSION: &str = "0.1.0";

/// What this server offers, for clients that ask before they try.
pub const FEATURES: &[&str] =
    &["enrolment", "files", "versions", "trash", "locks", "delta-upload", "range-download", "watch", "audit", "backup"];

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Stable word.
    pub reason: &'static str,
    /// What.
    pub message: String,
    /// Why.
    pub why: String,
    /// What to do.
    pub fix: String,
}

impl Problem {
    /// A problem in the words of the catalogue.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason: reason.word(), message: message.into(), why: reason.why().into(), fix: reason.fix().into() }
    }

    /// Replaces why and fix.
    #[must_use]
    pub fn with_help(mut self, why: &str, fix: &str) -> Self {
        self.why = why.to_owned();
        self.fix = fix.to_owned();
        self
    }
}

/// What upkeep has found. One problem per part, so that it cannot grow, and what is mended disappears.
#[derive(Debug)]
pub struct Health {
    start_ms: u64,
    problems: Mutex<BTreeMap<&'static str, Problem>>,
}

impl Health {
    /// Nothing is wrong so far.
    pub fn new(start_ms: u64) -> Self {
        Self { start_ms, problems: Mutex::default() }
    }

    /// Says how a part is now; a change is logged.
    pub fn report(&self, part: &'static str, problem: Option<Problem>) {
        let mut problems = self.problems.lock();
        match problem {
            Some(problem) => {
                if problems.get(part).is_none_or(|known| known.reason != problem.reason) {
                    tracing::error!(part, reason = problem.reason, fix = %problem.fix, "{}", problem.message);
                }
                problems.insert(part, problem);
            }
            None => {
                if problems.remove(part).is_some() {
                    tracing::info!(part, "in order again");
                }
            }
        }
    }

    /// Says how a part is from the outcome of its work.
    pub fn report_outcome<T>(&self, part: &'static str, outcome: &Result<T>) {
        let problem = outcome.as_ref().err().map(|error| Problem {
            reason: Reason::ALL.iter().find(|r| error.is(**r)).map_or("INTERNAL", |r| r.word()),
            message: format!("{part}: {}", error.message()),
            why: error.why().to_owned(),
            fix: error.fix().to_owned(),
        });
        self.report(part, problem);
    }

    /// Everything that is wrong.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.lock().values().cloned().collect()
    }

    /// When the server began, milliseconds since 1970.
    pub fn start_ms(&self) -> u64 {
        self.start_ms
    }
}

/// How the server is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
    /// Accounts that were not deleted.
    pub user_count: u64,
    /// Devices that were not cut off.
    pub device_count: u64,
    /// Entries of all private and public directories.
    pub entry_count: u64,
    /// Logical bytes of all of them.
    pub used_bytes: u64,
    /// Bytes in segment files.
    pub stored_bytes: u64,
    /// Free bytes of the data file system.
    pub disk_free_bytes: u64,
    /// Last durable revision.
    pub revision: u64,
    /// Storage engine.
    pub engine: &'static str,
    /// When the server began, milliseconds since 1970.
    pub start_ms: u64,
    /// Newest snapshot; 0 if there is none.
    pub snapshot_ms: u64,
}

/// Looks at everything. Blocks: counts accounts, devices and directories.
///
/// # Errors
/// Those of the store.
pub fn status(app: &App) -> Result<Status> {
    let mut status = Status {
        problems: app.health.problems(),
        stored_bytes: app.chunks.stats().stored_bytes,
        disk_free_bytes: disk::free_bytes(&app.settings.server.data_directory).unwrap_or(0),
        revision: app.store.revision(),
        engine: app.settings.store.engine.word(),
        start_ms: app.health.start_ms(),
        snapshot_ms: snapshot_ms(app),
        ..Status::default()
    };
    if app.store.is_failed() {
        status.problems.push(Problem::new(Reason::StoreFailed, "the database takes no more changes"));
    } else if app.store.is_stalled() {
        let problem = Problem::new(Reason::StoreFailed, "the database has not finished a change for a long time")
            .with_help("the disk does not answer", "look at the disk and at the kernel's log");
        status.problems.push(problem);
    }
    each(app, b"u/", |value| {
        status.user_count += u64::from(!records::decode::<record::User>(value)?.deleted);
        Ok(())
    })?;
    each(app, b"m/", |value| {
        status.device_count += u64::from(!records::decode::<record::Device>(value)?.revoked);
        Ok(())
    })?;
    each(app, b"q/", |value| {
        let usage = records::decode::<record::Usage>(value)?;
        status.entry_count += usage.entry_count;
        status.used_bytes += usage.used_bytes;
        Ok(())
    })?;
    Ok(status)
}

/// When the newest snapshot was written, milliseconds since 1970; 0 if there is none.
pub fn snapshot_ms(app: &App) -> u64 {
    let newest = app.store.snapshots().ok().and_then(|all| all.last().cloned());
    let written = newest.and_then(|path| path.metadata().ok()).and_then(|m| m.modified().ok());
    let since = written.and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

fn each(app: &App, prefix: &[u8], mut visit: impl FnMut(Bytes) -> Result<()>) -> Result<()> {
    const PAGE: usize = 1_000;
    let (mut from, to) = (prefix.to_vec(), prefix_end(prefix));
    loop {
        let page = app.store.range(&from, &to, PAGE)?;
        let full = page.len() == PAGE;
        for (key, value) in page {
            from = key.to_vec();
            from.push(0);
            visit(value)?;
        }
        if !full {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_stays_until_its_part_is_well_again() {
        let health = Health::new(1);
        health.report("disk", Some(Problem::new(Reason::DiskFull, "full")));
        health.report("disk", Some(Problem::new(Reason::DiskFull, "fuller")));
        health.report_outcome::<()>("snapshot", &Err(common::error::Error::new(Reason::IoFailed, "no")));
        let problems = health.problems();
        assert_eq!(problems.len(), 2);
        assert_eq!((problems[0].reason, problems[0].message.as_str()), ("DISK_FULL", "fuller"));
        assert_eq!((problems[1].reason, problems[1].message.as_str()), ("IO_FAILED", "snapshot: no"));
        health.report("disk", None);
        health.report_outcome("snapshot", &Ok(()));
        assert!(health.problems().is_empty());
    }
}
