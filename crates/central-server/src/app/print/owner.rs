//! What the machine asks that a printer hangs on: which jobs there are, taking them, their documents, how they went.
//!
//! Only the machine that a job is for sees it here; to any other one there is no such job.

use super::super::caller::Caller;
use super::super::{App, audit, entries};
use super::printers::machine;
use super::records::{self, JobState, job_in, job_unknown, jobs_of_device};
use super::{Job, Watching, jobs, transitions};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::store::{Txn, prefix_end};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use tokio::sync::watch;
use uuid::Uuid;

/// Jobs in one batch.
pub const BATCH: usize = 100;
/// A job that nobody claimed is told again after this time.
pub const RESEND_MS: u64 = 60_000;
/// How often it is looked whether something is to be told again.
const LOOK: Duration = Duration::from_secs(10);
/// Bytes of a document read at a time.
pub const BLOCK: usize = 256 * 1024;

/// A job of this machine.
fn open(txn: &Txn<'_>, device: &str, id: Uuid) -> Result<Job> {
    let job = records::load_job(txn, id)?;
    job.filter(|j| j.device == device).ok_or_else(job_unknown)
}

/// Changes a job of the calling machine. `note` says what of it belongs into the audit log: action and detail.
async fn change(
    app: &App,
    caller: &Caller,
    id: Uuid,
    decide: impl Fn(&Job, u64) -> Result<Option<Job>> + Send + 'static,
    note: impl Fn(&Job) -> Option<(&'static str, String)> + Send + 'static,
) -> Result<Job> {
    let (device, actor, clock) = (machine(caller)?.to_string(), caller.actor(), app.clock.clone());
    let committed = app
        .store
        .transact(move |txn| {
            let now_ms = clock.now_ms();
            let job = open(txn, &device, id)?;
            let Some(next) = decide(&job, now_ms)? else { return Ok((job, false)) };
            let next = records::put_job(txn, Some(&job), next)?;
            if let Some((action, detail)) = note(&next) {
                audit::record(txn, now_ms, &actor, action, &jobs::subject(&next), true, &detail)?;
            }
            Ok((next, true))
        })
        .await?;
    let (job, changed) = committed.value;
    if changed {
        jobs::settle(app, &job).await;
    }
    Ok(job)
}

/// A machine takes a job into its spool. Gives the job as it is: taken by this spool, or held or ended and not to be
/// printed.
///
/// # Errors
/// `DEVICE_REQUIRED`, `PRINT_JOB_UNKNOWN`.
pub async fn claim(app: &App, caller: &Caller, id: Uuid, spool: Uuid) -> Result<Job> {
    // The first time is told by the end of the job; another one is what somebody will ask about.
    let note = move |job: &Job| {
        let detail = format!("job {id}, attempt {}: it may be on paper already", job.attempt);
        job.may_be_printed_twice.then_some(("print.again", detail))
    };
    change(app, caller, id, move |job, now_ms| Ok(transitions::claim(job, spool, now_ms)), note).await
}

/// What a machine says of a job.
#[derive(Clone, Debug)]
pub struct Report {
    /// As the claim gave it.
    pub attempt: u32,
    /// How it goes.
    pub state: JobState,
    /// Why, for people.
    pub reason: String,
    /// Sheets so far.
    pub sheets: u64,
}

/// A machine says how a job goes.
///
/// # Errors
/// `DEVICE_REQUIRED`, `PRINT_JOB_UNKNOWN`, `PRINT_ATTEMPT_STALE`, `PRINT_JOB_ENDED`.
pub async fn update(app: &App, caller: &Caller, id: Uuid, r: Report) -> Result<Job> {
    let note = move |job: &Job| {
        let state = records::state(job);
        let detail = format!("job {id} {}, {} sheets, {}", state.word(), job.sheets, job.user_name);
        state.is_end().then_some(("print.end", detail))
    };
    let decide = move |job: &Job, now_ms| transitions::update(job, r.attempt, r.state, &r.reason, r.sheets, now_ms);
    change(app, caller, id, decide, note).await
}

/// A document that is being fetched.
#[derive(Debug)]
pub struct Document {
    file: File,
    offset: u64,
    size: u64,
}

/// Opens the document of a job that the machine has claimed.
///
/// # Errors
/// `DEVICE_REQUIRED`, `PRINT_JOB_UNKNOWN`, `PRINT_ATTEMPT_STALE`, `PRINT_JOB_ENDED`, `RANGE_INVALID`.
pub async fn document(app: &App, caller: &Caller, id: Uuid, attempt: u32, offset: u64) -> Result<Document> {
    let (device, app) = (machine(caller)?.to_string(), app.clone());
    entries::blocking(move || {
        let job = records::load_job(&app.store, id)?.filter(|j| j.device == device).ok_or_else(job_unknown)?;
        if attempt == 0 || job.attempt != attempt {
            return Err(Error::new(Reason::PrintAttemptStale, format!("attempt {attempt} is not the present one")));
        }
        if records::state(&job).is_end() {
            return Err(Error::new(Reason::PrintJobEnded, "the job has ended, and its document is gone"));
        }
        if offset > job.size_bytes {
            return Err(Error::new(Reason::RangeInvalid, "the document is shorter").with("size_bytes", job.size_bytes));
        }
        // A job ends between the look and this: then there is no document any more.
        let file = app.prints.spool.open(id)?;
        let file = file.ok_or_else(|| Error::new(Reason::PrintJobEnded, "the job's document is gone"))?;
        Ok(Document { file, offset, size: job.size_bytes })
    })
    .await
}

impl Document {
    /// Where the next block is.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next block, empty at the end. Blocks.
    ///
    /// # Errors
    /// `IO_FAILED`, `CHUNK_DAMAGED` for a file that is shorter than it was.
    pub fn read(&mut self) -> Result<Bytes> {
        let length = self.size.saturating_sub(self.offset).min(BLOCK as u64) as usize;
        let mut block = vec![0; length];
        self.file.read_exact_at(&mut block, self.offset)?;
        self.offset += length as u64;
        Ok(block.into())
    }
}

/// Jobs for a watching machine.
#[derive(Debug, PartialEq)]
pub struct Batch {
    /// As they are now.
    pub jobs: Vec<Job>,
    /// All that there were when the watch began were told.
    pub complete: bool,
}

/// A machine that watches for jobs. What it was told is remembered, so that it is told changes only; at most as many as
/// its printers can have.
#[derive(Debug)]
pub struct Watcher {
    app: App,
    device: String,
    changed: watch::Receiver<u64>,
    told: HashMap<Uuid, Told>,
    complete: bool,
    /// The machine is there as long as it watches.
    _present: Watching,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    revision: u64,
    at_ms: u64,
}

impl Watcher {
    /// For the calling machine.
    ///
    /// # Errors
    /// `DEVICE_REQUIRED`.
    pub fn open(app: App, caller: &Caller) -> Result<Self> {
        let device = machine(caller)?.to_string();
        let mut changed = app.prints.subscribe();
        changed.mark_changed();
        let present = app.prints.begin_watch(&device);
        Ok(Self { app, device, changed, told: HashMap::new(), complete: false, _present: present })
    }

    /// Waits for something to tell. Safe to cancel.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn next(&mut self) -> Result<Batch> {
        loop {
            // Seen before looking: what comes in between is looked at once more.
            self.changed.borrow_and_update();
            let batch = self.look().await?;
            if let Some(batch) = batch {
                return Ok(batch);
            }
            // The sender lives in the application, which this holds.
            let _ = tokio::time::timeout(LOOK, self.changed.changed()).await;
        }
    }

    async fn look(&mut self) -> Result<Option<Batch>> {
        let (app, device, known) = (self.app.clone(), self.device.clone(), self.told.clone());
        let now_ms = self.app.clock.now_ms();
        let found = entries::blocking(move || look(&app, &device, &known, now_ms)).await?;
        let first = found.all && !self.complete;
        for job in &found.jobs {
            let Ok(id) = records::id_of(job) else { continue };
            self.told.insert(id, Told { revision: job.revision, at_ms: now_ms });
        }
        for gone in &found.gone {
            self.told.remove(gone);
        }
        self.complete |= found.all;
        let batch = Batch { jobs: found.jobs, complete: self.complete };
        Ok((first || !batch.jobs.is_empty()).then_some(batch))
    }
}

#[derive(Debug, Default)]
struct Found {
    jobs: Vec<Job>,
    /// Told jobs that are not for this machine any more.
    gone: Vec<Uuid>,
    /// Everything was looked at.
    all: bool,
}

fn look(app: &App, device: &str, told: &HashMap<Uuid, Told>, now_ms: u64) -> Result<Found> {
    let mut found = Found::default();
    let prefix = jobs_of_device(device);
    let (mut from, to) = (prefix.clone(), prefix_end(&prefix));
    let mut present = HashSet::new();
    loop {
        let page = app.store.range(&from, &to, 500)?;
        let ended = page.len() < 500;
        for (key, _) in page {
            from = [&key[..], b"\0"].concat();
            let Some(id) = job_in(&key) else { continue };
            present.insert(id);
            let Some(job) = records::load_job(&app.store, id)? else { continue };
            let waits = records::state(&job) == JobState::Pending;
            let fresh = told
                .get(&id)
                .is_some_and(|t| t.revision == job.revision && (!waits || now_ms.saturating_sub(t.at_ms) < RESEND_MS));
            if fresh {
                continue;
            }
            if found.jobs.len() == BATCH {
                return Ok(found);
            }
            found.jobs.push(job);
        }
        if ended {
            break;
        }
    }
    for id in told.keys().filter(|id| !present.contains(id)) {
        if found.jobs.len() == BATCH {
            return Ok(found);
        }
        found.gone.push(*id);
        let told_now = told.get(id).map(|t| t.revision);
        let last = records::load_job(&app.store, *id)?;
        // Its last word, unless that was told.
        found.jobs.extend(last.filter(|j| Some(j.revision) != told_now));
    }
    found.all = true;
    Ok(found)
}
