//! Handing over a document.
//!
//! Rights, limits and quota are asked at the beginning, so that what cannot be printed is refused before it is sent;
//! while data comes in; and again in the transaction that makes the job, where they decide.

use super::super::answers::{Answer, Once, RequestKey, lookup};
use super::super::caller::Caller;
use super::super::records::{self as stored, View};
use super::super::{App, audit, disk, entries, identity, rights};
use super::records::{self, JobState, Printer, jobs_of_printer, jobs_of_user, printer_unknown};
use super::spool::Part;
use super::{JOBS_PER_PRINTER, Job, accounts};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::model::{Pin, Right};
use uuid::Uuid;

/// A document that somebody wants printed. Checked as far as that needs no look at the store.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// The printer's name.
    pub printer: String,
    /// For people.
    pub display_name: String,
    /// Media type; may be empty.
    pub format: String,
    /// How, as the printer's machine will get it.
    pub options: Bytes,
    /// Wait for a release.
    pub hold: bool,
    /// Wait for a release with this PIN.
    pub pin: Option<Pin>,
    /// 1 to 100.
    pub priority: u32,
    /// If known, else 0.
    pub size_bytes: u64,
    /// If known, else 0.
    pub sheets: u64,
}

impl NewJob {
    fn reserved_sheets(&self) -> u64 {
        self.sheets.max(1)
    }
}

/// A call that begins.
#[derive(Debug)]
pub enum Begun {
    /// Data may come.
    New(Box<Submission>),
    /// The job was made before; this is the first answer.
    Repeated(Bytes),
}

/// A document that is coming in.
#[derive(Debug)]
pub struct Submission {
    app: App,
    caller: Caller,
    new: NewJob,
    user: Uuid,
    part: Part,
    bytes_left: u64,
}

/// The printer, if the caller may print on it.
fn open(view: &impl View, caller: &Caller, name: &str) -> Result<Printer> {
    let printer = records::load_printer(view, name)?;
    let right = printer.as_ref().and_then(|p| rights::granted(&p.grants, caller));
    match (printer, right) {
        (Some(printer), Some(right)) if right >= Right::Write => Ok(printer),
        (Some(_), Some(right)) => {
            Err(Error::new(Reason::AccessDenied, format!("you may {} {name}, not print on it", right.word()))
                .with("right", right.word())
                .with("needed", Right::Write.word()))
        }
        _ => Err(printer_unknown(name)),
    }
}

/// Refuses a job that the limits do not allow. Gives the bytes that the person's quota leaves.
fn admit(
    app: &Limits,
    view: &impl View,
    printer: &Printer,
    user: Uuid,
    new: &NewJob,
    size: u64,
    now_ms: u64,
) -> Result<u64> {
    if !new.format.is_empty() && !printer.formats.is_empty() && !printer.formats.contains(&new.format) {
        return Err(Error::new(Reason::PrintFormatUnknown, format!("{} does not take {}", printer.name, new.format))
            .why_is(format!("it takes {}", printer.formats.join(", "))));
    }
    if size > app.max_job {
        return Err(too_large(app.max_job));
    }
    let full = |what: String| Err(Error::new(Reason::QueueLimit, what));
    let open_of = |prefix: Vec<u8>, most: usize| Ok::<_, Error>(stored::under(view, &prefix, most)?.len());
    if open_of(jobs_of_user(user.as_bytes(), false), app.per_person)? >= app.per_person {
        return full(format!("you have {} jobs that are not printed yet", app.per_person));
    }
    if open_of(jobs_of_printer(printer.uid.as_bytes(), false), JOBS_PER_PRINTER)? >= JOBS_PER_PRINTER {
        return full(format!("{JOBS_PER_PRINTER} jobs wait for {}", printer.name));
    }
    let waiting = records::totals(view)?.size_bytes;
    if waiting.saturating_add(size) > app.spool {
        return full(format!("documents of {waiting} bytes wait to be printed, as much as the server keeps"));
    }
    accounts::require(view, user, new.reserved_sheets(), size, now_ms)
}

fn too_large(most: u64) -> Error {
    Error::new(Reason::FileTooLarge, format!("a document to print may have {most} bytes"))
        .fix_is("print a part of it, or ask an administrator to raise print.max_job")
        .with("limit", most)
}

/// The settings that bound jobs.
#[derive(Clone, Copy, Debug)]
struct Limits {
    max_job: u64,
    spool: u64,
    per_person: usize,
}

impl Limits {
    fn of(app: &App) -> Self {
        let print = &app.settings.print;
        Self { max_job: print.max_job.bytes(), spool: print.spool.bytes(), per_person: print.jobs_per_person }
    }
}

/// Refusals that belong into the audit log.
async fn note(app: &App, caller: &Caller, printer: &str, error: &Error) {
    if error.is(Reason::AccessDenied) || error.is(Reason::PrintQuotaExceeded) {
        let shown: String = printer.chars().take(64).collect();
        identity::refuse(app, caller, "print.submit", &format!("printer:{shown}"), error).await;
    }
}

/// Begins to take a document.
///
/// # Errors
/// `CREDENTIALS_MISSING`, `RESOURCE_UNKNOWN`, `ACCESS_DENIED`, `PRINT_FORMAT_UNKNOWN`, `FILE_TOO_LARGE`, `QUEUE_LIMIT`,
/// `PRINT_QUOTA_EXCEEDED`, `DISK_FULL`, `OVERLOADED`, `REQUEST_ID_REUSED`.
pub async fn begin(app: &App, caller: &Caller, new: NewJob, key: Option<&RequestKey>) -> Result<Begun> {
    let user = caller.require_user()?.uid;
    let now_ms = app.clock.now_ms();
    let printer = match open(&app.store, caller, &new.printer) {
        Ok(printer) => printer,
        Err(error) => {
            note(app, caller, &new.printer, &error).await;
            return Err(error);
        }
    };
    if let Some(key) = key
        && let Some(first) = lookup(&app.store, key, now_ms)?
    {
        return Ok(Begun::Repeated(first));
    }
    disk::require_space(app)?;
    let bytes_left = match admit(&Limits::of(app), &app.store, &printer, user, &new, new.size_bytes, now_ms) {
        Ok(left) => left,
        Err(error) => {
            note(app, caller, &new.printer, &error).await;
            return Err(error);
        }
    };
    let spool = app.prints.spool.clone();
    let part = entries::blocking(move || spool.begin(Uuid::now_v7(), user)).await?;
    let (app, caller) = (app.clone(), caller.clone());
    Ok(Begun::New(Box::new(Submission { app, caller, new, user, part, bytes_left })))
}

impl Submission {
    /// Adds to the document. Blocks.
    ///
    /// # Errors
    /// `FILE_TOO_LARGE`, `QUEUE_LIMIT`, `PRINT_QUOTA_EXCEEDED`, `DISK_FULL`.
    pub fn write(&mut self, data: &Bytes) -> Result<()> {
        disk::require_space(&self.app)?;
        let limits = Limits::of(&self.app);
        let size = self.part.size().saturating_add(data.len() as u64);
        if size > limits.max_job {
            return Err(too_large(limits.max_job));
        }
        if size > self.bytes_left {
            return Err(accounts::bytes_exceeded());
        }
        let waiting = records::totals(&self.app.store)?.size_bytes;
        let incoming = self.app.prints.spool.incoming_bytes();
        if waiting.saturating_add(incoming).saturating_add(data.len() as u64) > limits.spool {
            return Err(Error::new(Reason::QueueLimit, "the server keeps as many documents as it is set to"));
        }
        self.part.write(data)
    }

    /// Makes the document durable, then the job. Goes on to its end even if the caller does not wait.
    ///
    /// # Errors
    /// As [`begin`]; `FIELD_INVALID` for an empty document or one of another size than was said.
    pub async fn finish(self, once: Once<Job>) -> Result<Answer<Job>> {
        let task = tokio::spawn(self.run(once));
        task.await.map_err(|e| Error::internal("a print job's task").caused_by(e))?
    }

    async fn run(mut self, once: Once<Job>) -> Result<Answer<Job>> {
        let size = self.part.size();
        let wrong = |message: &str| Err(Error::new(Reason::FieldInvalid, message).with("field", "size_bytes"));
        if size == 0 {
            return wrong("the document is empty");
        }
        if self.new.size_bytes > 0 && self.new.size_bytes != size {
            return wrong("the document has not the size that was said");
        }
        let (mut part, digest) = entries::blocking(move || {
            let digest = self.part.seal()?;
            Ok((self, digest))
        })
        .await?;
        let made = part.make(once, digest).await;
        let keep = matches!(&made, Ok(Answer::New(_)));
        if keep {
            part.app.prints.announce();
        } else {
            part.unmake().await;
        }
        if let Err(error) = &made {
            note(&part.app, &part.caller, &part.new.printer, error).await;
        }
        made
    }

    async fn make(&mut self, once: Once<Job>, digest: [u8; 32]) -> Result<Answer<Job>> {
        let (caller, new, user) = (self.caller.clone(), self.new.clone(), self.user);
        let (id, size, limits, clock) =
            (self.part.id(), self.part.size(), Limits::of(&self.app), self.app.clock.clone());
        let actor = caller.actor();
        let user_name = caller.require_user()?.name.to_string();
        let committed = self
            .app
            .store
            .transact(move |txn| {
                let now_ms = clock.now_ms();
                once.run(txn, now_ms, |txn| {
                    let printer = open(&*txn, &caller, &new.printer)?;
                    admit(&limits, &*txn, &printer, user, &new, size, now_ms)?;
                    let job = Job {
                        id: Bytes::copy_from_slice(id.as_bytes()),
                        printer: Bytes::copy_from_slice(printer.uid.as_bytes()),
                        printer_name: printer.name.clone(),
                        device: printer.device.clone(),
                        user: Bytes::copy_from_slice(user.as_bytes()),
                        user_name: user_name.clone(),
                        display_name: new.display_name.clone(),
                        state: if new.hold || new.pin.is_some() { JobState::Held } else { JobState::Pending } as u32,
                        size_bytes: size,
                        digest: Bytes::copy_from_slice(&digest),
                        format: new.format.clone(),
                        options: new.options.clone(),
                        create_ms: now_ms,
                        reserved_sheets: new.reserved_sheets(),
                        priority: new.priority,
                        pin: new.pin.as_ref().map(records::encode_pin),
                        ..Job::default()
                    };
                    let job = records::put_job(txn, None, job)?;
                    let detail = format!("job {id}, {size} bytes");
                    audit::record(
                        txn,
                        now_ms,
                        &actor,
                        "print.submit",
                        &format!("printer:{}", printer.name),
                        true,
                        &detail,
                    )?;
                    Ok(job)
                })
            })
            .await?;
        Ok(committed.value)
    }

    /// Removes a document for which no job was made. If that is not certain, it stays for the next start to decide.
    async fn unmake(&mut self) {
        let (app, id) = (self.app.clone(), self.part.id());
        let removed = entries::blocking(move || {
            if app.store.is_failed() || records::load_job(&app.store, id)?.is_some() {
                return Ok(());
            }
            app.prints.spool.remove(id)
        });
        if let Err(error) = removed.await {
            tracing::warn!(?error, "the document of a refused print job was not removed");
        }
    }
}
