//! Looking through a shared folder: what is new, changed or gone, hashed on all cores.
//!
//! A few threads take work from one stack: directories to list, batches of files to hash, directories that are gone. What
//! they find goes through a bounded channel to the thread that writes it into the index, a thousand changes in one
//! transaction, while the others go on. Directories are compared with the index entry by entry in order of names, so
//! memory does not grow with the share: names of one directory for each thread, and the stack.
//!
//! # What is unchanged
//!
//! A file of the same size, modification time, inode and change time. The change time cannot be set by programs, but it
//! moves in steps of up to ten milliseconds: a file is read only when its change time is [`SETTLE`] in the past, so that any write
//! after the read began shows. One that changes while it is read is read again, and nothing of it is published before it
//! was read whole between two looks that agree.
//!
//! # What is gone
//!
//! An entry whose name is missing from a directory that could be listed. A folder that is missing or another one than was
//! shared, a directory that cannot be read, and one where another file system is mounted say nothing about deletions.

pub mod pace;
mod pool;
mod read;
mod worker;

use common::error::{Error, Reason, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

use self::pool::Pool;
use self::worker::{Work, Worker};
use super::beneath::Root;
use super::entry::{FileStamp, split};
use super::folder::Folder;
use super::index::Change;
use super::problem::Problem;
use super::rules::RULES_FILE;

/// How long a file must have been left alone before it is read: longer than the steps of file times (10 ms at most).
pub const SETTLE: Duration = Duration::from_millis(30);
/// Changes in one transaction.
const BATCH: usize = 1_000;
/// Changes that may wait to be written; at the bound the threads that look wait.
const QUEUE: usize = 2_000;
/// How often files that were not left alone are tried before the scan ends without them.
const ROUNDS: usize = 4;

/// What to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Below the share; empty is all of it.
    pub path: String,
    /// If it is a directory: everything in it, or only itself.
    pub below: bool,
}

/// What a scan did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanReport {
    /// Files and directories that were looked at.
    pub seen: u64,
    /// Files that were read.
    pub hashed_files: u64,
    /// Their bytes.
    pub hashed_bytes: u64,
    /// Entries that were added or changed.
    pub changed: u64,
    /// Entries that are gone.
    pub removed: u64,
    /// Paths to look at again in a while.
    pub again: Vec<String>,
}

/// How far the scans of a folder are; read by whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// A scan of everything is running.
    pub running: AtomicBool,
    /// Entries that it has looked at.
    pub seen: AtomicU64,
    /// Files that it has read.
    pub hashed_files: AtomicU64,
    /// Their bytes.
    pub hashed_bytes: AtomicU64,
}

/// Called with a file's path and the number of the attempt when a part of it has been read.
pub type ReadHook = Arc<dyn Fn(&str, u32) + Send + Sync>;

/// How to scan.
#[derive(Clone, Default)]
pub struct ScanOptions {
    /// Threads; 0 means as many as there are cores, at most 4.
    pub threads: usize,
    /// Reads files even if they seem unchanged.
    pub verify: bool,
    /// Leaves files alone that were read a short while ago, see `pace`.
    pub paced: bool,
    /// See there; for tests.
    pub hook: Option<ReadHook>,
}

impl ScanOptions {
    fn thread_count(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4),
            n => n.min(16),
        }
    }
}

fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// Has the file's last change been so long ago that the next one will show?
pub(super) fn is_settled(stat: &FileStamp) -> bool {
    now_ns().saturating_sub(stat.ctime_ns).unsigned_abs() >= SETTLE.as_nanos() as u64
}

/// Opens the folder, if it is the one that was shared.
pub(super) fn open(folder: &Folder) -> Result<Root> {
    let changed = |why: &str| {
        folder.problems.lock().add("", Problem::Folder(why.to_owned()));
        Error::new(Reason::FolderChanged, "the shared folder is not there").why_is(why.to_owned())
    };
    let root =
        Root::open(&folder.path).map_err(|_| changed("it cannot be opened; nothing of it was taken for deleted"))?;
    if root.inode() != folder.inode() {
        return Err(changed("another folder is in its place; nothing was taken for deleted"));
    }
    Ok(root)
}

/// Looks at the targets. Blocks.
///
/// # Errors
/// FOLDER_CHANGED, CANCELLED, and those of the store. What was written before stays.
pub fn run(
    folder: &Folder,
    targets: &[Target],
    options: &ScanOptions,
    cancel: &CancellationToken,
) -> Result<ScanReport> {
    let root = open(folder)?;
    let mut report = ScanReport::default();
    let counters = Counters::default();
    let mut work = Vec::new();
    {
        let mut problems = folder.problems.lock();
        problems.clear("", false);
        if targets.iter().any(|t| t.path.is_empty() && t.below) {
            problems.clear("", true);
            for mistake in &folder.rules().mistakes {
                problems.add("", Problem::Rule(mistake.clone()));
            }
            if let Some(why) = folder.rules_problem() {
                problems.add(RULES_FILE, Problem::Rule(why));
            }
            if let Some(why) = folder.watch_problem() {
                problems.add("", Problem::Watch(why));
            }
        }
    }
    for target in targets {
        work.push(first_missing(folder, target)?);
    }
    let mut late = Vec::new();
    for round in 0..=ROUNDS {
        let last = round == ROUNDS;
        late = round_of(folder, &root, options, cancel, work, (&counters, last), &mut report)?;
        if late.is_empty() || cancel.is_cancelled() {
            break;
        }
        if !last {
            settle();
        }
        work = late.iter().map(|path| Target { path: path.clone(), below: false }).collect();
    }
    if cancel.is_cancelled() {
        return Err(Error::new(Reason::Cancelled, "the scan was broken off"));
    }
    report.again.append(&mut late);
    report.again.sort_unstable();
    report.again.dedup();
    report.seen = counters.seen.load(Ordering::Relaxed);
    report.hashed_files = counters.hashed_files.load(Ordering::Relaxed);
    report.hashed_bytes = counters.hashed_bytes.load(Ordering::Relaxed);
    Ok(report)
}

#[expect(
    clippy::disallowed_methods,
    reason = "no event tells of it: a file's last change has to be old enough to be told from the next one"
)]
fn settle() {
    std::thread::sleep(SETTLE);
}

/// If a directory above the target is not in the index yet, that one and all in it is looked at instead.
fn first_missing(folder: &Folder, target: &Target) -> Result<Target> {
    for (at, _) in target.path.match_indices('/') {
        let above = &target.path[..at];
        if !folder.index.entry(above)?.is_some_and(|e| e.is_directory()) {
            return Ok(Target { path: above.to_owned(), below: true });
        }
    }
    Ok(target.clone())
}

#[derive(Default)]
struct Counters {
    seen: AtomicU64,
    hashed_files: AtomicU64,
    hashed_bytes: AtomicU64,
}

/// One pass over the targets. Gives back the files that were not left alone.
fn round_of(
    folder: &Folder,
    root: &Root,
    options: &ScanOptions,
    cancel: &CancellationToken,
    targets: Vec<Target>,
    (counters, last): (&Counters, bool),
    report: &mut ScanReport,
) -> Result<Vec<String>> {
    let pool = Pool::new(targets.into_iter().map(Work::Target).collect(), cancel.clone());
    let (found, changes) = sync_channel(QUEUE);
    let (late, resting) = (parking_lot::Mutex::new(Vec::new()), parking_lot::Mutex::new(Vec::new()));
    let rules = folder.rules();
    let written = std::thread::scope(|threads| {
        for _ in 0..options.thread_count() {
            let (found, pool, late, resting, rules) = (found.clone(), &pool, &late, &resting, &*rules);
            threads.spawn(move || {
                let buffer = Vec::new();
                Worker { folder, root, rules, options, pool, found, late, resting, counters, last, buffer }.run();
            });
        }
        drop(found);
        let written = write(folder, &changes, report);
        if written.is_err() {
            // The threads that look notice it at their next change.
            pool.stop();
            drop(changes);
        }
        written
    });
    written?;
    if let Some(error) = pool.failure() {
        return Err(error);
    }
    report.again.append(&mut resting.into_inner());
    Ok(late.into_inner())
}

/// Writes changes into the index as they come, until all threads that look have ended.
fn write(folder: &Folder, changes: &Receiver<Change>, report: &mut ScanReport) -> Result<()> {
    while let Ok(first) = changes.recv() {
        let mut batch = vec![first];
        batch.extend(changes.try_iter().take(BATCH - 1));
        batch.retain(|change| {
            let held = folder.index.is_held(change.path());
            if held {
                report.again.push(change.path().to_owned());
            }
            !held
        });
        if batch.is_empty() {
            continue;
        }
        let paths: Vec<(String, bool)> =
            batch.iter().map(|c| (c.path().to_owned(), matches!(c, Change::Remove { .. }))).collect();
        let outcome = folder.index.commit(batch)?;
        for &(at, _) in outcome.made.iter().filter(|made| made.1 > 0) {
            if paths[at].1 {
                report.removed += 1;
            } else {
                report.changed += 1;
            }
        }
        report.again.extend(outcome.outdated.iter().map(|&at| paths[at].0.clone()));
        if !outcome.refused.is_empty() {
            let mut problems = folder.problems.lock();
            outcome.refused.iter().for_each(|&at| problems.add(&paths[at].0, Problem::TooMany));
        }
    }
    Ok(())
}

/// Paths of files are looked at through the directory that they are in.
fn directory_of(path: &str) -> &str {
    split(path).0
}

#[cfg(test)]
mod tests;
