//! All printers of a node, running.
//!
//! One lock guards all decisions: under it an event is applied to a queue, and what is to be kept is handed to the journal,
//! so that the journal has changes in the order in which they were decided. Nothing waits under the lock. What follows from
//! a decision in the outside world (an output gets a job, a file is removed) happens after the journal has it on disk.

mod core;
mod run;
mod view;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::clock::{SharedClock, SystemClock};
use common::error::{Error, Reason, Result};
use common::model::pin::{pin_locked, pin_wrong};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::core::Core;
pub(super) use self::core::too_large;
pub use self::view::{Change, ChangeKind, PrinterState, PrinterView};
use super::fault::Faults;
use super::journal::{Journal, Ticket, Write, sync_dir};
use super::model::{Document, Hold, Job, JobId, Pin, PrinterConfig, Ticket as JobTicket, Who, clean, valid_name};
use super::queue::{Changes, Event, Refusal};
use super::upload::{DocumentRequest, Upload};

/// Printers of a node.
const MAX_PRINTERS: usize = 64;
/// Uploads at a time.
const MAX_UPLOADS: usize = 128;

/// How printers are opened.
#[derive(Clone)]
pub struct Options {
    /// Where everything is kept; made if it is missing.
    pub dir: PathBuf,
    /// Tells the time.
    pub clock: SharedClock,
    /// How often an output that is not ready is asked.
    pub probe_every: Duration,
    /// How often an idle output is asked, so that its state is known before somebody prints.
    pub idle_probe_every: Duration,
    /// Bytes of the disk that no upload takes.
    pub reserve_bytes: u64,
    /// Faults that tests put in.
    pub faults: Faults,
}

impl Options {
    /// The usual ones.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            clock: Arc::new(SystemClock),
            probe_every: Duration::from_secs(2),
            idle_probe_every: Duration::from_secs(30),
            reserve_bytes: 256 << 20,
            faults: Faults::none(),
        }
    }
}

/// A job that is asked for.
#[derive(Clone, Debug, Default)]
pub struct JobRequest {
    /// Its name, for people.
    pub name: String,
    /// What it asks of the printer.
    pub ticket: JobTicket,
    /// 1 to 100; 0 means the usual 50.
    pub priority: u8,
    /// Hold it.
    pub hold: Option<Hold>,
    /// Hold it until this is stated; 1 to 32 characters.
    pub pin: Option<String>,
    /// Its universal name, chosen by who asks: the same again by the same person is the same job, printed once.
    pub uuid: Option<uuid::Uuid>,
}

/// What somebody does to a job.
#[derive(Clone, PartialEq, Debug)]
pub enum Verb {
    /// Do not print it until it is released.
    Hold(Hold),
    /// Print it in its turn; with its PIN if it has one.
    Release(Option<String>),
    /// Take it back.
    Cancel,
    /// Take one of its documents back, counted from 0.
    CancelDocument(usize),
    /// Change it.
    Alter(Changes),
    /// Print it before all others; only for those who manage.
    Promote,
    /// No more documents come.
    Close,
}

/// All printers of a node. Clones are the same printers.
#[derive(Clone)]
pub struct Printers {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) options: Options,
    pub(super) journal: Journal,
    pub(super) core: Mutex<Core>,
    /// Counts changes.
    pub(super) changed: watch::Sender<u64>,
    /// Wakes the timer when its next moment may be another one.
    pub(super) wake: Notify,
    pub(super) uploads: Arc<Semaphore>,
    /// Documents whose pages are counted from a whole file in memory: one at a time.
    pub(super) counting: Semaphore,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    pub(super) started_ms: u64,
    /// Keeps the directory ours.
    _lock: std::fs::File,
}

impl Printers {
    /// Opens the printers that a directory keeps, and goes on printing.
    ///
    /// # Errors
    /// `STORE_BUSY` if another process has the directory; otherwise as reading it fails.
    pub async fn open(options: Options) -> Result<Self> {
        let inner = tokio::task::spawn_blocking(move || Inner::open(options)).await.map_err(stopped)??;
        let printers = Self { inner: Arc::new(inner) };
        run::start(&printers.inner);
        Ok(printers)
    }

    /// Adds a printer, or changes the one of that name: its `uuid`, jobs and use stay.
    ///
    /// # Errors
    /// `RESOURCE_INVALID` if the configuration has mistakes; disk errors.
    pub async fn put(&self, config: PrinterConfig) -> Result<()> {
        check_config(&config)?;
        let inner = &self.inner;
        let made = inner.make_outputs(&config).await?;
        let ticket = inner.core.lock().put(inner, config, made)?;
        self.done(ticket).await
    }

    /// Removes a printer with its jobs; those that are not over count as canceled.
    ///
    /// # Errors
    /// `RESOURCE_UNKNOWN`; disk errors.
    pub async fn remove(&self, printer: &str) -> Result<()> {
        let ticket = self.inner.core.lock().remove(&self.inner, printer)?;
        self.done(ticket).await
    }

    /// Whether such a job would be taken, as far as that can be known without its documents.
    ///
    /// # Errors
    /// Why not.
    pub fn validate(&self, printer: &str, who: &Who, request: &JobRequest, document: &DocumentRequest) -> Result<()> {
        let core = self.inner.core.lock();
        core.admit(&self.inner, printer, who, request, document, None).map(|_| ())
    }

    /// Begins a job with one document. `expected` is its length, if known: what is too large is refused here.
    ///
    /// # Errors
    /// `PRINT_QUOTA_EXCEEDED`, `QUEUE_LIMIT`, `PRINT_FORMAT_UNKNOWN`, `DISK_FULL`, `RESOURCE_UNKNOWN`, `PRINTER_UNREADY`
    /// (it takes no jobs), `OVERLOADED`.
    pub fn submit(
        &self,
        printer: &str,
        who: &Who,
        request: JobRequest,
        document: DocumentRequest,
        expected: Option<u64>,
    ) -> Result<Upload> {
        let bounds = self.inner.core.lock().admit(&self.inner, printer, who, &request, &document, expected)?;
        Upload::begin(self, printer, who.clone(), Some(request), document, bounds)
    }

    /// The job that was made under this universal name, if there is one: known as long as the job is listed.
    ///
    /// # Errors
    /// `REQUEST_ID_REUSED` if it is another person's or another printer's; `RESOURCE_UNKNOWN`.
    pub async fn repeated(&self, printer: &str, who: &Who, uuid: Option<uuid::Uuid>) -> Result<Option<Job>> {
        let (job, ticket) = {
            let core = self.inner.core.lock();
            let Some(job) = core.repeated(printer, who, uuid)? else { return Ok(None) };
            (job.clone(), self.inner.journal.write(vec![Core::record(job)]))
        };
        self.done(ticket).await?;
        Ok(Some(job))
    }

    /// Begins a job whose documents follow; it is aborted if none comes within two minutes.
    ///
    /// # Errors
    /// As [`Printers::submit`].
    pub async fn create(&self, printer: &str, who: &Who, request: JobRequest) -> Result<Job> {
        let (job, ticket) = {
            let mut core = self.inner.core.lock();
            core.admit(&self.inner, printer, who, &request, &DocumentRequest::default(), None)?;
            let job = core.new_job(&self.inner, printer, who, request, Vec::new(), false);
            let id = job.id;
            let ticket = core.apply(&self.inner, printer, Event::Submit(Box::new(job)), Vec::new())?;
            (core.job(id)?.clone(), ticket)
        };
        let recorded = core_access(self).record(printer.to_owned(), job.id, true, ticket).await;
        recorded.map_err(RecordError::into_inner)?;
        Ok(job)
    }

    /// Begins one more document of a job that was made by [`Printers::create`]; `last` if no more follow.
    ///
    /// # Errors
    /// As [`Printers::submit`], and `PRINT_JOB_UNKNOWN`, `PRINT_JOB_ENDED`, `ACCESS_DENIED`.
    pub fn add_document(
        &self,
        job: JobId,
        who: &Who,
        manage: bool,
        document: DocumentRequest,
        last: bool,
        expected: Option<u64>,
    ) -> Result<Upload> {
        let (printer, owner, bounds) = {
            let mut core = self.inner.core.lock();
            let found = core.owned(job, who, manage)?.clone();
            if found.state.is_over() {
                return Err(refused(Refusal::Over));
            }
            if found.complete {
                return Err(refused(Refusal::NotNow("its last document came already")));
            }
            if found.documents.len() >= 100 {
                return Err(Error::new(Reason::QueueLimit, "a job has at most 100 documents"));
            }
            let bounds = core.bounds(&self.inner, &found.printer, &found.owner, &found.ticket, &document, expected)?;
            core.touch(job, self.inner.options.clock.now_ms());
            (found.printer, found.owner, bounds)
        };
        Ok(Upload::begin(self, &printer, owner, None, document, bounds)?.into_job(job, last))
    }

    /// Does something to a job. `manage`: the caller may act on everybody's jobs.
    ///
    /// # Errors
    /// `PRINT_JOB_UNKNOWN`, `PRINT_JOB_ENDED`, `ACCESS_DENIED`, `PIN_WRONG`, `FIELD_INVALID` if it is not possible now.
    pub async fn control(&self, job: JobId, who: &Who, manage: bool, verb: Verb) -> Result<Job> {
        let ticket = {
            let mut core = self.inner.core.lock();
            let printer = core.owned(job, who, manage)?.printer.clone();
            if verb == Verb::Promote && !manage {
                return Err(denied());
            }
            let event = match verb {
                Verb::Hold(hold) => Event::Hold(job, hold),
                Verb::Release(pin) => Event::Release(job, pin),
                Verb::Cancel => Event::Cancel(job),
                Verb::CancelDocument(number) => Event::CancelDocument(job, number),
                Verb::Alter(changes) => Event::Alter(job, changes),
                Verb::Promote => Event::Promote(job),
                Verb::Close => Event::Close(job),
            };
            core.apply(&self.inner, &printer, event, Vec::new())?
        };
        self.done(ticket).await?;
        self.job(job)
    }

    /// Releases a job at the printer: whoever knows the PIN may, whoever it is.
    ///
    /// # Errors
    /// `PIN_WRONG`, `PRINT_JOB_UNKNOWN`, `PRINT_JOB_ENDED`.
    pub async fn release_by_pin(&self, job: JobId, pin: &str) -> Result<Job> {
        let ticket = {
            let mut core = self.inner.core.lock();
            let found = core.job(job)?;
            if found.pin.is_none() {
                return Err(denied());
            }
            let printer = found.printer.clone();
            core.apply(&self.inner, &printer, Event::Release(job, Some(pin.to_owned())), Vec::new())?
        };
        self.done(ticket).await?;
        self.job(job)
    }

    /// Cancels all jobs of a printer that are not over: the caller's own, or everybody's with `manage`.
    ///
    /// # Errors
    /// `RESOURCE_UNKNOWN`; disk errors.
    pub async fn cancel_all(&self, printer: &str, who: &Who, everybody: bool) -> Result<Vec<JobId>> {
        let (canceled, ticket) = {
            let mut core = self.inner.core.lock();
            let queue = core.queue(printer)?;
            let ids: Vec<JobId> = queue.active().filter(|j| everybody || j.owner.same(who)).map(|j| j.id).collect();
            let mut last = None;
            for id in &ids {
                last = core.apply(&self.inner, printer, Event::Cancel(*id), Vec::new()).ok().or(last);
            }
            (ids, last)
        };
        if let Some(ticket) = ticket {
            self.done(ticket).await?;
        }
        Ok(canceled)
    }

    /// Begins no more jobs of a printer, or begins them again.
    ///
    /// # Errors
    /// `RESOURCE_UNKNOWN`; disk errors.
    pub async fn pause(&self, printer: &str, paused: bool) -> Result<()> {
        self.event(printer, if paused { Event::Pause } else { Event::Resume }).await
    }

    /// Takes new jobs, or refuses them.
    ///
    /// # Errors
    /// `RESOURCE_UNKNOWN`; disk errors.
    pub async fn accept(&self, printer: &str, accept: bool) -> Result<()> {
        self.event(printer, Event::Accept(accept)).await
    }

    /// Holds new jobs, or releases those that were held so.
    ///
    /// # Errors
    /// `RESOURCE_UNKNOWN`; disk errors.
    pub async fn hold_new(&self, printer: &str, hold: bool) -> Result<()> {
        self.event(printer, Event::HoldNew(hold)).await
    }

    /// Ends all work as a kill would, only sooner and with the journal closed: what is being printed is looked for again
    /// when the directory is opened the next time.
    pub async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        let _ = self.inner.journal.flush().await;
    }

    async fn event(&self, printer: &str, event: Event) -> Result<()> {
        let ticket = self.inner.core.lock().apply(&self.inner, printer, event, Vec::new())?;
        self.done(ticket).await
    }

    pub(super) async fn done(&self, ticket: Ticket) -> Result<()> {
        ticket.await.map_err(Error::from)
    }
}

impl Inner {
    fn open(options: Options) -> Result<Self> {
        let spool = options.dir.join("spool");
        std::fs::create_dir_all(&spool)?;
        let lock =
            std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(options.dir.join("lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            Error::new(Reason::StoreBusy, "another process has this node's printers open").caused_by(error)
        })?;
        let journal = Journal::open(&options.dir, options.faults.clone())?;
        let started_ms = options.clock.now_ms();
        let (core, missing) = Core::load(&journal, &options)?;
        sweep(&spool, &core)?;
        let inner = Self {
            options,
            journal,
            core: Mutex::new(core),
            changed: watch::Sender::new(0),
            wake: Notify::new(),
            uploads: Arc::new(Semaphore::new(MAX_UPLOADS)),
            counting: Semaphore::new(1),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            started_ms,
            _lock: lock,
        };
        if !missing.is_empty() {
            drop(inner.journal.write(missing.into_iter().map(Write::Account).collect()));
        }
        Ok(inner)
    }

    /// A document's file in the spool.
    pub(super) fn spool_file(&self, name: &str) -> PathBuf {
        self.options.dir.join("spool").join(name)
    }
}

/// Removes files of the spool that no job names.
fn sweep(spool: &std::path::Path, core: &Core) -> Result<()> {
    let named: std::collections::HashSet<&str> = core.spool_files().collect();
    for entry in std::fs::read_dir(spool)? {
        let entry = entry?;
        if !entry.file_name().to_str().is_some_and(|name| named.contains(name)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    sync_dir(spool)?;
    Ok(())
}

fn check_config(config: &PrinterConfig) -> Result<()> {
    let invalid = |what: &str| Err(Error::new(Reason::ResourceInvalid, what.to_owned()));
    if !valid_name(&config.name) {
        return invalid("a printer's name has 1 to 63 of a-z, 0-9, '-' and '_' and begins with a letter or digit");
    }
    if config.outputs.is_empty() || config.outputs.len() > 32 {
        return invalid("a printer has 1 to 32 outputs");
    }
    let mut names = std::collections::HashSet::new();
    for output in &config.outputs {
        if !valid_name(&output.name) || !names.insert(&output.name) {
            return invalid("outputs have different names, made like a printer's");
        }
        if output.capabilities.media.is_empty() || output.capabilities.formats.is_empty() {
            return invalid("an output has at least one size and one format");
        }
    }
    if config.info.len() > 127 || config.location.len() > 127 || config.organization.len() > 127 {
        return invalid("texts about a printer have at most 127 bytes");
    }
    Ok(())
}

/// What a refusal of a queue is to a caller.
pub(super) fn refused(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Unknown => Error::new(Reason::PrintJobUnknown, "there is no such print job"),
        Refusal::Over => Error::new(Reason::PrintJobEnded, "the print job is over"),
        Refusal::NotNow(why) => {
            Error::new(Reason::PrintJobEnded, format!("this is not possible with the job: {why}")).why_is(why)
        }
        Refusal::PinWrong(left) => pin_wrong(left),
        Refusal::PinLocked(until) => pin_locked(until),
        Refusal::Full => Error::new(Reason::QueueLimit, "the print queue is full"),
        Refusal::Unsuitable => Error::new(Reason::PrintFormatUnknown, "no output of this printer can print such a job")
            .why_is("the printer lacks the colour, sides, size or document format that the job asks for")
            .fix_is("ask for less, or use another printer"),
        Refusal::NotAccepting => Error::new(Reason::PrinterUnready, "the printer takes no jobs at the moment")
            .why_is("whoever manages it has switched that off")
            .fix_is("try again later, or ask who manages it"),
    }
}

pub(super) fn denied() -> Error {
    Error::new(Reason::AccessDenied, "this print job belongs to somebody else")
}

pub(super) fn stopped(error: tokio::task::JoinError) -> Error {
    Error::new(Reason::ShuttingDown, "the printers are being closed").caused_by(error)
}

/// A job record from a request.
pub(super) fn job_of(id: JobId, printer: &str, who: &Who, request: JobRequest, now: u64) -> Job {
    let pin = request.pin.filter(|p| !p.is_empty());
    let name = clean(&request.name, 255);
    Job {
        id,
        uuid: request.uuid.unwrap_or_else(uuid::Uuid::new_v4),
        printer: printer.to_owned(),
        owner: who.clone(),
        name: if name.is_empty() { "untitled".into() } else { name },
        ticket: request.ticket,
        documents: Vec::new(),
        complete: false,
        state: super::model::JobState::Held,
        reason: "job-incoming".into(),
        message: String::new(),
        priority: if request.priority == 0 { 50 } else { request.priority.min(100) },
        promoted: 0,
        hold: request.hold,
        pin: pin.map(|pin| Pin::new(&pin, rand::random())),
        output: None,
        begun: false,
        moved: false,
        canceling: false,
        impressions: None,
        sheets: 0,
        impressions_done: 0,
        bytes: 0,
        created_ms: now,
        processing_ms: None,
        ended_ms: None,
        touched_ms: now,
    }
}

/// Why nobody is told that a job is accepted.
pub(super) enum RecordError {
    /// Its record is not on disk.
    NotThere(Error),
    /// It is, or may be.
    There(Error),
}

impl RecordError {
    pub(super) fn into_inner(self) -> Error {
        match self {
            Self::NotThere(error) | Self::There(error) => error,
        }
    }
}

/// What an upload needs of the printers.
pub(super) struct Access<'a>(&'a Arc<Inner>);

pub(super) fn core_access(printers: &Printers) -> Access<'_> {
    Access(&printers.inner)
}

impl Access<'_> {
    pub(super) fn uploads(&self) -> &Arc<Semaphore> {
        &self.0.uploads
    }

    pub(super) async fn counting(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        self.0.counting.acquire().await.ok()
    }

    pub(super) fn faults(&self) -> Faults {
        self.0.options.faults.clone()
    }

    pub(super) fn spool_file(&self, name: &str) -> PathBuf {
        self.0.spool_file(name)
    }

    pub(super) fn reserve_bytes(&self) -> u64 {
        self.0.options.reserve_bytes
    }

    /// A new job with its one document; false behind it if it was there already.
    pub(super) fn submit(
        &self,
        printer: &str,
        who: &Who,
        request: JobRequest,
        document: Document,
        inline: Option<Bytes>,
    ) -> Result<(Job, Ticket, bool)> {
        let mut core = self.0.core.lock();
        if let Some(job) = core.repeated(printer, who, request.uuid)? {
            // It may be on its way to the disk still: what is written after it is there after it.
            return Ok((job.clone(), self.0.journal.write(vec![Core::record(job)]), false));
        }
        let job = core.new_job(self.0, printer, who, request, vec![document], true);
        core.check_quota(self.0, printer, who, (u64::from(job.sheets), job.bytes))?;
        let id = job.id;
        let first = inline.map(|content| Core::inline(id, 0, content)).into_iter().collect();
        let ticket = core.apply(self.0, printer, Event::Submit(Box::new(job)), first)?;
        Ok((core.job(id)?.clone(), ticket, true))
    }

    /// Waits until a job's record is on disk. A new job whose record is not is forgotten again, for nobody was told of it;
    /// that happens also if the caller stops waiting.
    pub(super) async fn record(
        &self,
        printer: String,
        id: JobId,
        new: bool,
        ticket: Ticket,
    ) -> std::result::Result<(), RecordError> {
        let inner = Arc::clone(self.0);
        let wait = async move {
            if let Err(failure) = ticket.await {
                let mut core = inner.core.lock();
                if new {
                    core.unsubmit(&inner, &printer, id);
                } else {
                    // What its owner was told is missing must not be printed: the job ends.
                    let _ = core.apply(&inner, &printer, Event::Cancel(id), Vec::new());
                }
                drop(core);
                return Err(RecordError::NotThere(failure.into()));
            }
            inner.options.faults.at("accepted").map_err(|e| RecordError::There(e.into()))
        };
        let waited = self.0.tasks.spawn(wait).await;
        waited.unwrap_or_else(|e| Err(RecordError::There(stopped(e))))
    }

    /// One more document of a job.
    pub(super) fn add(
        &self,
        printer: &str,
        id: JobId,
        document: Document,
        inline: Option<Bytes>,
        last: bool,
    ) -> Result<(Job, Ticket)> {
        let mut core = self.0.core.lock();
        let job = core.job(id)?;
        let number = job.documents.len();
        if document.bytes == 0 && last {
            // An empty last document says only that no more come (RFC 8011 section 4.3.1).
            let ticket = core.apply(self.0, printer, Event::Close(id), Vec::new())?;
            return Ok((core.job(id)?.clone(), ticket));
        }
        let owner = job.owner.clone();
        let (_, sheets) = job.ticket.cost(document.pages.unwrap_or(1));
        core.check_quota(self.0, printer, &owner, (u64::from(sheets), document.bytes))?;
        let first = inline.map(|content| Core::inline(id, number, content)).into_iter().collect();
        let ticket = core.apply(self.0, printer, Event::AddDocument(id, document, last), first)?;
        Ok((core.job(id)?.clone(), ticket))
    }
}

pub(super) fn stopped_upload(error: tokio::task::JoinError) -> Error {
    stopped(error)
}

#[cfg(test)]
mod tests;
