//! What the lock guards: queues, use, who has what.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use common::error::{Error, Reason, Result};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::super::journal::{Journal, Ticket, Write};
use super::super::model::{
    Destination, Document, Job, JobId, JobState, OutputConfig, PrinterConfig, Ticket as JobTicket, Who,
};
use super::super::output::{Folder, Output, remote};
use super::super::queue::{Action, Condition, Event, Queue, Refusal, Switches};
use super::super::quota::{self, Usage};
use super::super::upload::{Bounds, DocumentRequest};
use super::view::{Change, ChangeKind};
use super::{Inner, JobRequest, MAX_PRINTERS, Options, denied, job_of, refused, run};
use crate::ipp::client::{Endpoint, Piece, Target};
use crate::ipp::trust::is_secure;

/// Job numbers that are reserved at a time, so that not every job writes the counter.
const RESERVE: u32 = 64;
/// Changes that are remembered for those who ask.
const CHANGES: usize = 1000;

/// A printer.
pub(crate) struct Printer {
    pub(crate) config: PrinterConfig,
    pub(crate) queue: Queue,
    pub(crate) outputs: HashMap<String, Arc<dyn Output>>,
    /// When it was last configured.
    pub(crate) configured_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct PrinterRecord {
    config: PrinterConfig,
    switches: Switches,
    configured_ms: u64,
}

/// All of it.
pub(crate) struct Core {
    pub(crate) printers: BTreeMap<String, Printer>,
    homes: HashMap<JobId, String>,
    usage: HashMap<String, Usage>,
    next_job: u32,
    reserved: u32,
    /// How to tell outputs to let jobs go.
    pub(crate) running: HashMap<JobId, CancellationToken>,
    changes: VecDeque<Change>,
    next_change: u64,
}

fn job_key(id: JobId) -> String {
    format!("j/{:010}", id.0)
}

fn document_key(id: JobId, number: usize) -> String {
    format!("d/{:010}/{number}", id.0)
}

fn printer_key(name: &str) -> String {
    format!("p/{name}")
}

fn usage_key(printer: &str, account: &str) -> String {
    format!("q/{printer}/{account}")
}

fn json<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect("plain values can be written as JSON").into()
}

fn read<T: for<'a> Deserialize<'a>>(key: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::new(Reason::StoreCorrupt, format!("the print journal's record {key} cannot be read")).caused_by(error)
    })
}

/// Makes one output.
fn make_output(config: &OutputConfig, options: &Options) -> Result<Arc<dyn Output>> {
    Ok(match &config.destination {
        Destination::Folder { path, pages_per_minute } => {
            Arc::new(Folder::new(path, *pages_per_minute, options.faults.clone()))
        }
        Destination::Cups { queue, server } => {
            let endpoint = match server.as_deref() {
                None => Endpoint::Unix("/run/cups/cups.sock".into()),
                Some(path) if path.starts_with('/') => Endpoint::Unix(path.into()),
                Some(address) => {
                    let (host, port) = address.rsplit_once(':').unwrap_or((address, "631"));
                    let port = port.parse().map_err(|_| {
                        Error::new(Reason::ResourceInvalid, "a CUPS server is a socket's path, or HOST:PORT")
                    })?;
                    Endpoint::Tcp { host: host.to_owned(), port, tls: false }
                }
            };
            Arc::new(remote::connect(Target::of_cups(queue, endpoint)?, None))
        }
        Destination::Ipp { uri, trust } => {
            let target = Target::of_uri(uri)?;
            let tls = if is_secure(&target) { Some(trust.config()?) } else { None };
            Arc::new(remote::connect(target, tls))
        }
    })
}

impl Inner {
    /// Outputs for a configuration; folders are made.
    pub(super) async fn make_outputs(&self, config: &PrinterConfig) -> Result<HashMap<String, Arc<dyn Output>>> {
        let (config, options) = (config.clone(), self.options.clone());
        let made = tokio::task::spawn_blocking(move || {
            for output in &config.outputs {
                if let Destination::Folder { path, .. } = &output.destination {
                    std::fs::create_dir_all(path)?;
                }
            }
            outputs(&config, &options)
        });
        made.await.map_err(super::stopped)?
    }
}

fn outputs(config: &PrinterConfig, options: &Options) -> Result<HashMap<String, Arc<dyn Output>>> {
    config.outputs.iter().map(|o| Ok((o.name.clone(), make_output(o, options)?))).collect()
}

impl Core {
    /// Reads what is kept; gives also the accounting lines that a crash kept out of the file.
    pub(super) fn load(journal: &Journal, options: &Options) -> Result<(Self, Vec<String>)> {
        let mut core = Self {
            printers: BTreeMap::new(),
            homes: HashMap::new(),
            usage: HashMap::new(),
            next_job: 1,
            reserved: 1,
            running: HashMap::new(),
            changes: VecDeque::new(),
            next_change: 1,
        };
        let mut jobs: HashMap<String, Vec<Job>> = HashMap::new();
        let mut missing = Vec::new();
        for (key, value) in journal.load("j/")? {
            let job: Job = read(&key, &value)?;
            core.next_job = core.next_job.max(job.id.0 + 1);
            core.homes.insert(job.id, job.printer.clone());
            if job.state.is_over() && !journal.accounted(&job.uuid.to_string()) {
                missing.push(accounting_line(&job));
            }
            jobs.entry(job.printer.clone()).or_default().push(job);
        }
        if let Some(value) = journal.load("n/job")?.get("n/job") {
            core.next_job = core.next_job.max(read("n/job", value)?);
        }
        core.reserved = core.next_job;
        for (key, value) in journal.load("q/")? {
            core.usage.insert(key.clone(), read(&key, &value)?);
        }
        for (key, value) in journal.load("p/")? {
            let record: PrinterRecord = read(&key, &value)?;
            let outputs = outputs(&record.config, options)?;
            let own = jobs.remove(&record.config.name).unwrap_or_default();
            let queue =
                Queue::new(&record.config, |o| outputs.get(&o.name).map_or(1, |o| o.lanes()), record.switches, own);
            let printer = Printer { queue, outputs, configured_ms: record.configured_ms, config: record.config };
            core.printers.insert(printer.config.name.clone(), printer);
        }
        Ok((core, missing))
    }

    /// Names of the files that jobs have in the spool.
    pub(super) fn spool_files(&self) -> impl Iterator<Item = &str> {
        let jobs = self.printers.values().flat_map(|p| p.queue.active());
        jobs.flat_map(|j| &j.documents).filter_map(|d| d.file.as_deref())
    }

    /// A printer.
    pub(super) fn printer(&self, name: &str) -> Result<&Printer> {
        self.printers
            .get(name)
            .ok_or_else(|| Error::new(Reason::ResourceUnknown, format!("there is no printer '{name}' here")))
    }

    /// A printer's queue.
    pub(super) fn queue(&self, name: &str) -> Result<&Queue> {
        self.printer(name).map(|p| &p.queue)
    }

    /// A job.
    pub(super) fn job(&self, id: JobId) -> Result<&Job> {
        let queue = self.homes.get(&id).and_then(|name| self.printers.get(name)).map(|p| &p.queue);
        queue.and_then(|q| q.job(id)).ok_or_else(|| refused(Refusal::Unknown))
    }

    /// The job that was made under this universal name.
    pub(super) fn repeated(&self, printer: &str, who: &Who, uuid: Option<uuid::Uuid>) -> Result<Option<&Job>> {
        self.printer(printer)?;
        let Some(uuid) = uuid else { return Ok(None) };
        let found = self.printers.values().find_map(|p| p.queue.jobs().find(|j| j.uuid == uuid));
        match found {
            Some(job) if job.printer != printer || !job.owner.same(who) => {
                Err(Error::new(Reason::RequestIdReused, "another job has this id"))
            }
            found => Ok(found),
        }
    }

    /// A job's record as it is now.
    pub(super) fn record(job: &Job) -> Write {
        Write::Put(job_key(job.id), json(job))
    }

    /// A job of the caller, or of anybody with `manage`.
    pub(super) fn owned(&self, id: JobId, who: &Who, manage: bool) -> Result<&Job> {
        let job = self.job(id)?;
        if manage || job.owner.same(who) { Ok(job) } else { Err(denied()) }
    }

    /// Something came of a job that is not complete.
    pub(super) fn touch(&mut self, id: JobId, now: u64) {
        if let Some(printer) = self.homes.get(&id).and_then(|name| self.printers.get_mut(name)) {
            printer.queue.touch(id, now);
        }
    }

    /// Adds or changes a printer.
    pub(super) fn put(
        &mut self,
        inner: &Arc<Inner>,
        mut config: PrinterConfig,
        mut made: HashMap<String, Arc<dyn Output>>,
    ) -> Result<Ticket> {
        let now = inner.options.clock.now_ms();
        let name = config.name.clone();
        if let Some(printer) = self.printers.get_mut(&name) {
            config.uuid = printer.config.uuid;
            for output in &config.outputs {
                // The same output is kept, with what it is doing.
                if let Some(same) = printer.config.outputs.iter().find(|o| o.name == output.name)
                    && same.destination == output.destination
                    && let Some(running) = printer.outputs.remove(&output.name)
                {
                    made.insert(output.name.clone(), running);
                }
            }
            printer.outputs = made;
            let outputs = &printer.outputs;
            printer.queue.configure(&config, |o| outputs.get(&o.name).map_or(1, |o| o.lanes()));
            printer.config = config;
            printer.configured_ms = now;
        } else {
            if self.printers.len() >= MAX_PRINTERS {
                return Err(Error::new(
                    Reason::ResourceInvalid,
                    format!("a machine shares at most {MAX_PRINTERS} printers"),
                ));
            }
            let queue =
                Queue::new(&config, |o| made.get(&o.name).map_or(1, |o| o.lanes()), Switches::default(), Vec::new());
            self.printers.insert(name.clone(), Printer { config, queue, outputs: made, configured_ms: now });
        }
        let save = vec![self.printer_record(&name)?];
        self.note(inner, &name, None, ChangeKind::Configured);
        self.apply(inner, &name, Event::Tick, save)
    }

    /// Removes a printer with all that it has.
    pub(super) fn remove(&mut self, inner: &Arc<Inner>, name: &str) -> Result<Ticket> {
        let printer = self
            .printers
            .remove(name)
            .ok_or_else(|| Error::new(Reason::ResourceUnknown, format!("there is no printer '{name}' here")))?;
        let mut batch = vec![Write::Delete(printer_key(name))];
        let mut files = Vec::new();
        for job in printer.queue.jobs() {
            if let Some(running) = self.running.remove(&job.id) {
                running.cancel();
            }
            if !job.state.is_over() {
                let ended = Job { state: JobState::Canceled, reason: "job-canceled-by-operator".into(), ..job.clone() };
                batch.push(Write::Account(accounting_line(&ended)));
            }
            batch.push(Write::Delete(job_key(job.id)));
            wipe(job, &mut batch, &mut files);
            self.homes.remove(&job.id);
        }
        let own = usage_key(name, "");
        self.usage.retain(|key, _| !key.starts_with(&own));
        batch.extend(inner.journal.keys(&own).into_iter().map(Write::Delete));
        self.note(inner, name, None, ChangeKind::Removed);
        let ticket = inner.journal.write(batch);
        run::after(inner, ticket.clone(), Vec::new(), files);
        Ok(ticket)
    }

    fn printer_record(&self, name: &str) -> Result<Write> {
        let printer = self.printer(name)?;
        let record = PrinterRecord {
            config: printer.config.clone(),
            switches: printer.queue.switches().clone(),
            configured_ms: printer.configured_ms,
        };
        Ok(Write::Put(printer_key(name), json(&record)))
    }

    /// Whether a job may begin, and within which bounds its document stays.
    pub(super) fn admit(
        &self,
        inner: &Inner,
        printer: &str,
        who: &Who,
        request: &JobRequest,
        document: &DocumentRequest,
        expected: Option<u64>,
    ) -> Result<Bounds> {
        let queue = self.queue(printer)?;
        let mut draft = job_of(JobId(0), printer, who, request.clone(), 0);
        if let Some(format) = document.known_format() {
            draft.documents.push(Document {
                name: String::new(),
                format: format.to_owned(),
                bytes: expected.unwrap_or(0),
                pages: None,
                file: None,
                canceled: false,
            });
        }
        draft.bytes = expected.unwrap_or(0);
        queue.admit(&draft).map_err(refused)?;
        self.bounds(inner, printer, who, &request.ticket, document, expected)
    }

    /// Bounds of one more document.
    pub(super) fn bounds(
        &self,
        inner: &Inner,
        printer: &str,
        who: &Who,
        ticket: &JobTicket,
        document: &DocumentRequest,
        expected: Option<u64>,
    ) -> Result<Bounds> {
        let found = self.printer(printer)?;
        if let Some(format) = document.known_format()
            && !found.config.outputs.iter().any(|o| o.capabilities.suffice(ticket, &[format]))
        {
            return Err(refused(Refusal::Unsuitable));
        }
        let most = found.config.limits.job_bytes;
        if expected.is_some_and(|n| n > most) {
            return Err(too_large(most));
        }
        self.check_quota(inner, printer, who, (0, expected.unwrap_or(0)))?;
        let allowed = quota::allowance(&found.config.quotas, who);
        let quota_bytes = allowed.bytes.map(|limit| {
            let usage = self.used(inner, printer, who);
            limit.saturating_sub(usage.bytes + self.waiting(printer, who).1)
        });
        Ok(Bounds { most, quota_bytes })
    }

    /// Whether so many (sheets, bytes) more are allowed.
    pub(super) fn check_quota(&self, inner: &Inner, printer: &str, who: &Who, more: (u64, u64)) -> Result<()> {
        let found = self.printer(printer)?;
        let allowed = quota::allowance(&found.config.quotas, who);
        if allowed.sheets.is_none() && allowed.bytes.is_none() {
            return Ok(());
        }
        let usage = self.used(inner, printer, who);
        quota::check(allowed, &usage, self.waiting(printer, who), more).map_err(|exceeded| {
            Error::new(Reason::PrintQuotaExceeded, format!("the quota for printer '{printer}' is used up: {exceeded}"))
        })
    }

    /// Use in the present period.
    pub(super) fn used(&self, inner: &Inner, printer: &str, who: &Who) -> Usage {
        let now = inner.options.clock.now_ms();
        let period = self.printers.get(printer).map(|p| p.config.quotas.period).unwrap_or_default();
        quota::current(period, self.usage.get(&usage_key(printer, &who.account())), now)
    }

    /// Sheets and bytes of a person that wait or are being printed.
    pub(super) fn waiting(&self, printer: &str, who: &Who) -> (u64, u64) {
        let Ok(queue) = self.queue(printer) else { return (0, 0) };
        let own = queue.active().filter(|j| j.owner.same_account(who));
        own.fold((0, 0), |(sheets, bytes), j| (sheets + u64::from(j.sheets), bytes + j.bytes))
    }

    /// A record for a new job, with a number that was never given.
    pub(super) fn new_job(
        &mut self,
        inner: &Inner,
        printer: &str,
        who: &Who,
        request: JobRequest,
        documents: Vec<Document>,
        complete: bool,
    ) -> Job {
        let id = JobId(self.next_job);
        self.next_job += 1;
        let mut job = job_of(id, printer, who, request, inner.options.clock.now_ms());
        job.documents = documents;
        job.complete = complete;
        job.recount();
        job
    }

    /// Where a document is kept that lies in the journal.
    pub(super) fn inline(id: JobId, number: usize, content: Bytes) -> Write {
        Write::Put(document_key(id, number), content)
    }

    /// Applies an event; what is to be kept goes to the journal together with `first`, and what is to be done is done when
    /// it is on disk.
    pub(super) fn apply(
        &mut self,
        inner: &Arc<Inner>,
        printer: &str,
        event: Event,
        first: Vec<Write>,
    ) -> Result<Ticket> {
        let now = inner.options.clock.now_ms();
        let guess = match &event {
            Event::Release(id, Some(_)) => Some(*id),
            _ => None,
        };
        if let Event::Submit(job) = &event {
            self.homes.insert(job.id, printer.to_owned());
        }
        let found = self
            .printers
            .get_mut(printer)
            .ok_or_else(|| Error::new(Reason::ResourceUnknown, "there is no such printer"))?;
        let asked = matches!(event, Event::Condition(..)).then(|| stands(&found.queue));
        let actions = match found.queue.apply(event, now) {
            Ok(actions) => actions,
            Err(refusal) => {
                // The count of wrong PINs must not begin anew with a restart.
                if let Some(job) = guess.and_then(|id| found.queue.job(id)) {
                    drop(inner.journal.write(vec![Write::Put(job_key(job.id), json(job))]));
                }
                return Err(refused(refusal));
            }
        };
        let changed = asked.is_some_and(|before| before != stands(&found.queue));
        if changed {
            self.note(inner, printer, None, ChangeKind::State);
        }
        let mut batch = first;
        let (mut starts, mut files) = (Vec::new(), Vec::new());
        if self.next_job > self.reserved {
            self.reserved = self.next_job + RESERVE;
            batch.push(Write::Put("n/job".into(), json(&self.reserved)));
        }
        for action in actions {
            self.perform(inner, printer, action, &mut batch, &mut starts, &mut files);
        }
        let ticket = inner.journal.write(batch);
        inner.wake.notify_one();
        run::after(inner, ticket.clone(), starts, files);
        Ok(ticket)
    }

    fn perform(
        &mut self,
        inner: &Arc<Inner>,
        printer: &str,
        action: Action,
        batch: &mut Vec<Write>,
        starts: &mut Vec<run::Start>,
        files: &mut Vec<String>,
    ) {
        match action {
            Action::Save(id) => {
                if let Ok(job) = self.job(id) {
                    batch.push(Write::Put(job_key(id), json(job)));
                }
                self.note(inner, printer, Some(id), ChangeKind::Job);
            }
            Action::Ended(id) => {
                self.running.remove(&id);
                self.charge(inner, printer, id, batch);
                if let Ok(job) = self.job(id) {
                    batch.push(Write::Put(job_key(id), json(job)));
                    batch.push(Write::Account(accounting_line(job)));
                    wipe(job, batch, files);
                }
                self.note(inner, printer, Some(id), ChangeKind::Job);
            }
            Action::Forget(id) => {
                self.homes.remove(&id);
                batch.push(Write::Delete(job_key(id)));
            }
            Action::SavePrinter => {
                batch.extend(self.printer_record(printer));
                self.note(inner, printer, None, ChangeKind::State);
            }
            Action::Start { job, output, repeat } => {
                let withdraw = CancellationToken::new();
                self.running.insert(job, withdraw.clone());
                starts.push(run::Start { printer: printer.to_owned(), job, output, repeat, withdraw });
                self.note(inner, printer, None, ChangeKind::State);
            }
            Action::Withdraw(id) => {
                if let Some(running) = self.running.get(&id) {
                    running.cancel();
                }
            }
            // The timer asks outputs that are not ready.
            Action::Probe(_) => self.note(inner, printer, None, ChangeKind::State),
        }
    }

    fn charge(&mut self, inner: &Inner, printer: &str, id: JobId, batch: &mut Vec<Write>) {
        let Ok(job) = self.job(id) else { return };
        if job.impressions_done == 0 {
            return;
        }
        let (sheets, bytes, owner) = (u64::from(job.sheets_done()), job.bytes, job.owner.clone());
        let mut usage = self.used(inner, printer, &owner);
        usage.jobs += 1;
        usage.sheets += sheets;
        usage.bytes += bytes;
        let key = usage_key(printer, &owner.account());
        batch.push(Write::Put(key.clone(), json(&usage)));
        self.usage.insert(key, usage);
    }

    /// A job whose record did not reach the disk was never there.
    pub(super) fn unsubmit(&mut self, inner: &Arc<Inner>, printer: &str, id: JobId) {
        if let Some(running) = self.running.remove(&id) {
            running.cancel();
        }
        self.homes.remove(&id);
        if let Some(printer) = self.printers.get_mut(printer) {
            printer.queue.forget(id);
        }
        self.note(inner, printer, None, ChangeKind::State);
    }

    /// Documents of a job for an output.
    pub(super) fn pieces(&self, inner: &Inner, job: &Job) -> Result<Vec<(String, String, Piece)>> {
        let piece = |number: usize, document: &Document| {
            let piece = match &document.file {
                Some(name) => {
                    let file = Arc::new(std::fs::File::open(inner.spool_file(name))?);
                    Piece { file, offset: 0, length: document.bytes }
                }
                None => {
                    let place = inner.journal.place(&document_key(job.id, number)).ok_or_else(|| {
                        Error::new(Reason::StoreCorrupt, format!("the document of print job {} is missing", job.id))
                    })?;
                    Piece { file: place.file, offset: place.offset, length: place.length }
                }
            };
            Ok((document.name.clone(), document.format.clone(), piece))
        };
        job.printed().map(|(number, document)| piece(number, document)).collect()
    }

    /// Tells everybody who watches that something changed.
    fn note(&mut self, inner: &Inner, printer: &str, job: Option<JobId>, kind: ChangeKind) {
        let state = job.and_then(|id| self.job(id).ok()).map(|j| j.state);
        let at_ms = inner.options.clock.now_ms();
        let change = Change { number: self.next_change, at_ms, printer: printer.to_owned(), job, state, kind };
        self.next_change += 1;
        if self.changes.len() == CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
        inner.changed.send_replace(self.next_change - 1);
    }

    /// Changes after a number, the oldest first.
    pub(super) fn changes(&self, after: u64) -> Vec<Change> {
        self.changes.iter().filter(|c| c.number > after).cloned().collect()
    }
}

/// Why each output is not ready.
fn stands(queue: &Queue) -> Vec<Option<String>> {
    let reason = |condition: &Condition| match condition {
        Condition::Unready { reason } => Some(reason.clone()),
        Condition::Ready { .. } => None,
    };
    queue.slots().iter().map(|slot| reason(&slot.condition)).collect()
}

/// What of a job goes with its end.
fn wipe(job: &Job, batch: &mut Vec<Write>, files: &mut Vec<String>) {
    for (number, document) in job.documents.iter().enumerate() {
        match &document.file {
            Some(name) => files.push(name.clone()),
            None => batch.push(Write::Delete(document_key(job.id, number))),
        }
    }
}

pub(crate) fn too_large(most: u64) -> Error {
    Error::new(Reason::QueueLimit, format!("a print job has at most {most} bytes here"))
        .why_is("the document is larger than the printer takes")
        .fix_is("divide it, or ask who manages the printer")
}

/// The line of a job that is over.
fn accounting_line(job: &Job) -> String {
    serde_json::json!({
        "uuid": job.uuid.to_string(),
        "job": job.id.0,
        "printer": job.printer,
        "output": job.output,
        "person": job.owner.caller.person,
        "class": job.owner.class,
        "machine": job.owner.caller.machine,
        "name": job.name,
        "state": job.state,
        "copies": job.ticket.copies(),
        "sides": job.ticket.sides.unwrap_or_default(),
        "media": job.ticket.media,
        "impressions": job.impressions_done,
        "sheets": job.sheets_done(),
        "bytes": job.bytes,
        "created_ms": job.created_ms,
        "ended_ms": job.ended_ms,
    })
    .to_string()
}
