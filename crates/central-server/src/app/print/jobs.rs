//! What people ask of jobs.

use super::super::caller::Caller;
use super::super::page::{self, PageToken};
use super::super::records::View;
use super::super::{App, audit, entries, identity, rights};
use super::records::{self, JobState, job_in, job_unknown, jobs_of_printer, jobs_of_user, printer_unknown};
use super::{Condition, Job, transitions};
use common::error::{Error, Reason, Result};
use common::model::Right;
use common::store::{Store, Txn, prefix_end};
use uuid::Uuid;

/// Jobs that one page looks at; with a filter that fits few, pages may be short.
const MAX_SCAN: usize = 10_000;

/// Which jobs.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Of this printer; empty: of all.
    pub printer: String,
    /// Everybody's instead of one's own.
    pub everyone: bool,
    /// Ended ones too.
    pub ended: bool,
    /// 1 to 1,000; 0 means 100.
    pub page_size: u32,
    /// From the last page.
    pub page_token: String,
}

/// True if the job is the caller's, or on a printer that the caller manages.
fn may_touch(view: &impl View, caller: &Caller, job: &Job) -> Result<bool> {
    if caller.is_admin() || caller.user.as_ref().is_some_and(|u| u.uid.as_bytes()[..] == job.user[..]) {
        return Ok(true);
    }
    let printer = records::load_printer(view, &job.printer_name)?;
    let same = printer.filter(|p| p.uid.as_bytes()[..] == job.printer[..]);
    Ok(same.is_some_and(|p| rights::granted(&p.grants, caller) >= Some(Right::Manage)))
}

fn open(view: &impl View, caller: &Caller, id: Uuid) -> Result<Job> {
    let job = records::load_job(view, id)?.ok_or_else(job_unknown)?;
    if may_touch(view, caller, &job)? { Ok(job) } else { Err(job_unknown()) }
}

/// One job.
///
/// # Errors
/// `PRINT_JOB_UNKNOWN`.
pub fn get(app: &App, caller: &Caller, id: Uuid) -> Result<Job> {
    Ok(explained(app, open(&app.store, caller, id)?))
}

/// A job that waits says what it waits for, if that is its printer. This is not kept: printers come and go.
fn explained(app: &App, job: Job) -> Job {
    if !job.state_reason.is_empty() || !matches!(records::state(&job), JobState::Pending | JobState::Taken) {
        return job;
    }
    let presence = app.prints.presence(&job.printer_name, &job.device, app.clock.now_ms());
    let state_reason = match presence.condition {
        Condition::Away => "the printer's machine is away".to_owned(),
        Condition::Stopped if presence.reason.is_empty() => "the printer is stopped".to_owned(),
        Condition::Stopped => format!("the printer is stopped: {}", presence.reason),
        Condition::Idle | Condition::Processing => String::new(),
    };
    Job { state_reason, ..job }
}

/// The prefix of the keys that a list goes through, and whether jobs of other people and printers must be left out.
fn source(view: &impl View, caller: &Caller, query: &Query) -> Result<Vec<u8>> {
    let manages = |name: &str| -> Result<Vec<u8>> {
        let printer = records::load_printer(view, name)?;
        let right = printer.as_ref().and_then(|p| rights::granted(&p.grants, caller));
        match (printer, right) {
            (Some(printer), Some(Right::Manage)) => Ok(jobs_of_printer(printer.uid.as_bytes(), query.ended)),
            (Some(_), Some(right)) => Err(Error::new(
                Reason::AccessDenied,
                format!("everybody's jobs of {name} are for those who manage it; you may {} it", right.word()),
            )),
            _ => Err(printer_unknown(name)),
        }
    };
    match (query.everyone, query.printer.as_str()) {
        (true, "") => {
            caller.require_admin()?;
            Ok(b"w/j/".to_vec())
        }
        (true, name) => manages(name),
        (false, _) => Ok(jobs_of_user(caller.require_user()?.uid.as_bytes(), query.ended)),
    }
}

/// A page of jobs, the newest first.
///
/// # Errors
/// `CREDENTIALS_MISSING`, `ADMIN_REQUIRED`, `ACCESS_DENIED`, `RESOURCE_UNKNOWN`, `PAGE_TOKEN_INVALID`.
pub async fn list(app: &App, caller: &Caller, query: Query) -> Result<(Vec<Job>, String)> {
    let prefix = match source(&app.store, caller, &query) {
        Ok(prefix) => prefix,
        Err(error) => {
            if error.is(Reason::AdminRequired) || error.is(Reason::AccessDenied) {
                identity::refuse(app, caller, "print.list", &query.printer, &error).await;
            }
            return Err(error);
        }
    };
    let filters = [caller.actor(), query.printer.clone(), query.everyone.to_string(), query.ended.to_string()];
    let list = page::fingerprint("print jobs", &filters.each_ref().map(String::as_str));
    let start = PageToken::read(&query.page_token, list)?.map(|t| t.position().to_vec());
    let store = app.store.clone();
    let (jobs, next) = entries::blocking(move || read_page(&store, &prefix, start, &query, list)).await?;
    Ok((jobs.into_iter().map(|job| explained(app, job)).collect(), next))
}

fn read_page(
    store: &Store,
    prefix: &[u8],
    start: Option<Vec<u8>>,
    query: &Query,
    list: page::Fingerprint,
) -> Result<(Vec<Job>, String)> {
    let mut to = match start {
        Some(id) => [prefix, &id].concat(),
        None => prefix_end(prefix),
    };
    let size = page::size(query.page_size);
    let (mut jobs, mut seen) = (Vec::new(), 0);
    loop {
        let page = store.range_back(prefix, &to, 500)?;
        let ended = page.len() < 500;
        for (key, _) in page {
            to = key.to_vec();
            let Some(id) = job_in(&key) else { continue };
            if jobs.len() == size || seen == MAX_SCAN {
                // The job before this one was the last of the page.
                let last = next_id(id);
                return Ok((jobs, PageToken::at(list, &last)));
            }
            seen += 1;
            let Some(job) = records::load_job(store, id)? else { continue };
            let wanted = query.printer.is_empty() || query.everyone || job.printer_name == query.printer;
            if wanted && (query.ended || !records::state(&job).is_end()) {
                jobs.push(job);
            }
        }
        if ended {
            return Ok((jobs, String::new()));
        }
    }
}

/// A range downwards ends before its upper end, so a page that goes on with a job begins right above it.
fn next_id(id: Uuid) -> Vec<u8> {
    let mut position = id.as_bytes().to_vec();
    position.push(0);
    position
}

/// What comes of asking for something: the job as it is then, if that is another one, and why it was refused, if it was.
type Decided = (Option<Job>, Option<Error>);

/// Changes a job that the caller may touch, and notes it.
async fn change(
    app: &App,
    caller: &Caller,
    id: Uuid,
    action: &'static str,
    decide: impl Fn(&Job, u64) -> Result<Decided> + Send + 'static,
) -> Result<Job> {
    let (asker, clock) = (caller.clone(), app.clock.clone());
    let committed = app
        .store
        .transact(move |txn| {
            let now_ms = clock.now_ms();
            let job = open(&*txn, &asker, id)?;
            let (next, refused) = decide(&job, now_ms)?;
            let Some(next) = next else { return Ok((job, false, refused)) };
            let next = records::put_job(txn, Some(&job), next)?;
            let detail = format!("job {id}");
            audit::record(txn, now_ms, &asker.actor(), action, &subject(&next), refused.is_none(), &detail)?;
            Ok((next, true, refused))
        })
        .await?;
    let (job, changed, refused) = committed.value;
    if changed {
        settle(app, &job).await;
    }
    match refused {
        Some(error) => Err(error),
        None => Ok(job),
    }
}

/// The printer of a job in the audit log.
pub(super) fn subject(job: &Job) -> String {
    format!("printer:{}", job.printer_name)
}

/// After a change is durable: wakes those who wait, and removes the document of a job that has ended.
pub(super) async fn settle(app: &App, job: &Job) {
    app.prints.announce();
    let state = records::state(job);
    if !state.is_end() {
        return;
    }
    app.prints.count_end(state);
    let Ok(id) = records::id_of(job) else { return };
    let spool = app.prints.spool.clone();
    if let Err(error) = entries::blocking(move || spool.remove(id)).await {
        tracing::warn!(?error, "the document of an ended print job was not removed; the next start does");
    }
}

/// Prints it no more.
///
/// # Errors
/// `PRINT_JOB_UNKNOWN`, `PRINT_JOB_ENDED`.
pub async fn cancel(app: &App, caller: &Caller, id: Uuid) -> Result<Job> {
    let decide = |job: &Job, now_ms| Ok((transitions::cancel(job, transitions::CANCELED, now_ms)?, None));
    change(app, caller, id, "print.cancel", decide).await
}

/// Not printed until it is released.
///
/// # Errors
/// `PRINT_JOB_UNKNOWN`, `PRINT_JOB_ENDED`, `PRINT_JOB_TAKEN`.
pub async fn hold(app: &App, caller: &Caller, id: Uuid) -> Result<Job> {
    change(app, caller, id, "print.hold", |job, _| Ok((transitions::hold(job)?, None))).await
}

/// Printed after all; with its PIN, if it has one. Wrong ones are counted and noted.
///
/// # Errors
/// `PRINT_JOB_UNKNOWN`, `PRINT_JOB_ENDED`, `PIN_WRONG`.
pub async fn release(app: &App, caller: &Caller, id: Uuid, pin: Option<String>) -> Result<Job> {
    let decide = move |job: &Job, now_ms| transitions::release(job, pin.as_deref(), now_ms);
    change(app, caller, id, "print.release", decide).await
}

/// Printed earlier or later than others.
///
/// # Errors
/// `PRINT_JOB_UNKNOWN`, `PRINT_JOB_ENDED`.
pub async fn set_priority(app: &App, caller: &Caller, id: Uuid, priority: u32) -> Result<Job> {
    let decide = move |job: &Job, _| Ok((transitions::prioritize(job, priority)?, None));
    change(app, caller, id, "print.priority", decide).await
}

/// Ids of the open jobs of a printer, at most as many as it can have.
pub(super) fn open_of_printer(txn: &Txn<'_>, printer: Uuid) -> Result<Vec<Uuid>> {
    let found =
        super::super::records::under(txn, &jobs_of_printer(printer.as_bytes(), false), super::JOBS_PER_PRINTER)?;
    Ok(found.iter().filter_map(|(key, _)| job_in(key)).collect())
}
