//! This machine's printers at the office's central server: jobs of people who print there are pulled into the queues here.
//!
//! A printer that is shared with everyone is offered under `NAME.MACHINE`. `common::flow::print_pull` does the work and
//! never prints twice, as long as the spool here remembers what it took; [`Spool`] is that memory:
//!
//! ```text
//! STATE/devices/printers/pulled/SPOOL       this spool's id: another one after the directory was lost
//! STATE/devices/printers/pulled/JOB         a job that was taken and whose end the server has not noted yet
//! ```
//!
//! A job's file is made, synced, *after* the job is in the printer's journal; a job that is in the journal and has no file
//! (a kill in between) gets it when the jobs are looked at the next time, and is not printed twice. How a job ended stands in
//! the journal; when the printer is removed with its jobs, it is written into the job's file before. A job of which neither
//! says it had ended long ago, and is told as completed.

use super::disk::blocking;
use super::{Devices, access};
use crate::hybrid::Hybrid;
use common::error::{Error, Reason, Result};
use common::flow::print_pull::{
    Document, JobReport, OfferedPrinter, PrinterCondition, Progress, PullSettings, PullStatus, PulledJob,
    PulledPrinter, pull,
};
use common::identity::write_secret;
use common::model::Right;
use device::model::{Caller, Kind};
use device::printer::model::{Class, JobState, Who};
use device::printer::queue::Changes;
use device::printer::{DocumentRequest, Job, JobRequest, PrinterState, Printers, Sides, Ticket, Verb};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often it is looked whether the office has a server now.
const LOOK: Duration = Duration::from_secs(5);
/// Jobs that are remembered.
const JOBS_MAX: usize = 100_000;
/// Stands for the machine from which jobs of the server come.
const SERVER: &str = "central-server";

struct Spool {
    devices: Devices,
    directory: PathBuf,
    id: Uuid,
    changes: Mutex<watch::Receiver<u64>>,
}

fn open(directory: &Path) -> Result<Uuid> {
    std::fs::create_dir_all(directory)?;
    let path = directory.join("SPOOL");
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| Error::new(Reason::StoreCorrupt, "the id of the print spool")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let id = Uuid::new_v4();
            write_secret(&path, id.to_string().as_bytes())?;
            Ok(id)
        }
        Err(e) => Err(e.into()),
    }
}

/// Somebody who printed at the server, which has checked who it is.
fn who(user: &str) -> Who {
    Who::member(Caller { person: user.to_owned(), machine: SERVER.to_owned(), device: String::new() })
}

/// True if a job was pulled: no member's job comes from no device.
fn is_pulled(job: &Job) -> bool {
    job.owner.class == Class::Member && job.owner.caller.device.is_empty() && job.owner.caller.machine == SERVER
}

/// How a job goes, as the server is told.
fn report(job: &Job) -> JobReport {
    let progress = match job.state {
        JobState::Pending | JobState::Held => Progress::Waiting,
        JobState::Processing => Progress::Printing,
        JobState::Stopped => Progress::Stopped,
        JobState::Canceled => Progress::Canceled,
        JobState::Aborted => Progress::Aborted,
        JobState::Completed => Progress::Completed,
    };
    // What the state says by itself is no reason.
    let silent = ["none", "job-printing", "job-completed-successfully"].contains(&job.reason.as_str());
    let reason = if job.message.is_empty() && !silent { &job.reason } else { &job.message };
    JobReport { progress, reason: reason.clone(), sheets: job.sheets_done().into() }
}

/// How a job ended, in its file: a word, sheets, why.
fn end_text(report: &JobReport) -> String {
    let word = match report.progress {
        Progress::Canceled => "canceled",
        Progress::Aborted => "aborted",
        _ => "completed",
    };
    format!("{word} {} {}", report.sheets, report.reason)
}

/// The same, read; nothing stands there as long as the journal knows.
fn end_of(text: &str) -> JobReport {
    let mut words = text.splitn(3, ' ');
    let progress = match words.next() {
        Some("canceled") => Progress::Canceled,
        Some("aborted") => Progress::Aborted,
        Some("completed") => Progress::Completed,
        _ => {
            let reason = "ended while the server was away; how is no longer known".to_owned();
            return JobReport { progress: Progress::Completed, reason, sheets: 0 };
        }
    };
    let sheets = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    JobReport { progress, reason: words.next().unwrap_or_default().to_owned(), sheets }
}

fn ticket(job: &PulledJob) -> Ticket {
    let o = &job.options;
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Ticket {
        copies: o.copies,
        sides: Sides::of(&o.sides),
        media: given(&o.media),
        color: given(&o.color_mode),
        pages: super::print::pages_of(&o.pages).unwrap_or_default(),
        ..Ticket::default()
    }
}

impl Spool {
    /// What stands behind the names of printers at the server.
    ///
    /// # Errors
    /// The machine is no member (now). Names without it would be other printers'.
    fn label(&self) -> Result<String> {
        let name = access::caller(&*self.devices.0.roster, &self.devices.me())?.machine;
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c.to_ascii_lowercase() } else { '-' };
        Ok(name.chars().map(plain).collect())
    }

    /// The printer here that the office knows by this name.
    fn printer(&self, name: &str) -> Result<String> {
        let unknown = || Error::new(Reason::ResourceUnknown, format!("there is no printer {name:?} here"));
        let plain = name.strip_suffix(&format!(".{}", self.label()?)).ok_or_else(unknown)?;
        let entry = self.devices.0.book.get(Kind::Printer, plain).ok_or_else(unknown)?;
        self.offered(&entry).then(|| entry.name.clone()).ok_or_else(unknown)
    }

    fn offered(&self, entry: &super::book::Entry) -> bool {
        entry.kind == Kind::Printer && super::book::everyones(&entry.share).is_some_and(|r| r >= Right::Write)
    }

    fn find(&self, job: Uuid) -> Result<Option<Job>> {
        Ok(self.devices.0.printers.jobs(None, |j| j.uuid == job, 1)?.pop())
    }

    /// A printer as it is offered, also one that could not be opened: its jobs wait for it.
    fn offer(&self, entry: &super::book::Entry, label: &str) -> OfferedPrinter {
        let name = format!("{}.{label}", entry.name);
        let Ok(view) = self.devices.0.printers.get(&entry.name) else {
            let problem = self.devices.problems_of(entry).pop();
            return OfferedPrinter {
                name,
                description: entry.share.description.clone(),
                location: String::new(),
                formats: Vec::new(),
                color: false,
                duplex: false,
                condition: PrinterCondition::Stopped,
                reason: cut(problem.map_or_else(|| "it could not be opened".to_owned(), |p| p.message)),
            };
        };
        let can = view.config.capabilities();
        OfferedPrinter {
            name,
            description: cut(view.config.info.clone()),
            location: cut(view.config.location.clone()),
            formats: can.formats.clone(),
            color: can.color,
            duplex: can.duplex,
            condition: match view.state {
                PrinterState::Idle => PrinterCondition::Idle,
                PrinterState::Processing => PrinterCondition::Processing,
                PrinterState::Stopped => PrinterCondition::Stopped,
            },
            reason: cut(super::print::reasons_of(&view)),
        }
    }
}

/// Jobs that were taken and whose end the server has not noted.
async fn known(printers: &Printers, directory: &Path) -> Result<Vec<Uuid>> {
    let waiting = printers.jobs(None, |j| is_pulled(j) && !j.state.is_over(), JOBS_MAX)?;
    let directory = directory.to_owned();
    blocking(move || {
        let names = std::fs::read_dir(&directory)?.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let mut known: Vec<Uuid> = names.filter_map(|n| n.parse().ok()).take(JOBS_MAX).collect();
        let noted: HashSet<Uuid> = known.iter().copied().collect();
        // Taken, and then something came in between.
        for job in waiting.iter().filter(|j| !noted.contains(&j.uuid)) {
            write_secret(&directory.join(job.uuid.to_string()), b"")?;
            known.push(job.uuid);
        }
        Ok(known)
    })
    .await
}

/// A text for people, as long as the server takes it.
fn cut(text: String) -> String {
    text.chars().filter(|c| !c.is_control()).take(128).collect()
}

impl PulledPrinter for Spool {
    fn spool_id(&self) -> Uuid {
        self.id
    }

    async fn printers(&self) -> Result<Vec<OfferedPrinter>> {
        let label = self.label()?;
        let offered = self.devices.0.book.all().into_iter().filter(|e| self.offered(e));
        Ok(offered.map(|entry| self.offer(&entry, &label)).collect())
    }

    async fn jobs(&self) -> Result<Vec<Uuid>> {
        known(&self.devices.0.printers, &self.directory).await
    }

    async fn accept(&self, job: PulledJob, mut document: Document) -> Result<()> {
        let (name, who) = (self.printer(&job.printer)?, who(&job.user));
        let printers = &self.devices.0.printers;
        if printers.repeated(&name, &who, Some(job.id)).await?.is_none() {
            let request = JobRequest {
                name: job.display_name.clone(),
                ticket: ticket(&job),
                priority: job.priority,
                uuid: Some(job.id),
                ..JobRequest::default()
            };
            let format = (!job.format.is_empty()).then(|| job.format.clone());
            let what = DocumentRequest { name: job.display_name.clone(), format, ..DocumentRequest::default() };
            let mut upload = printers.submit(&name, &who, request, what, Some(job.size_bytes))?;
            // The last piece comes when the digest was compared.
            while let Some(piece) = document.next().await? {
                upload.write(&piece).await?;
            }
            upload.finish().await?;
        }
        let directory = self.directory.clone();
        blocking(move || write_secret(&directory.join(job.id.to_string()), b"")).await?;
        self.devices.changed();
        Ok(())
    }

    async fn state(&self, job: Uuid) -> Result<Option<JobReport>> {
        if let Some(found) = self.find(job)? {
            return Ok(Some(report(&found)));
        }
        let path = self.directory.join(job.to_string());
        blocking(move || match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(end_of(&text))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        })
        .await
    }

    async fn prioritize(&self, job: Uuid, priority: u8) -> Result<()> {
        let Some(found) = self.find(job)?.filter(|j| j.priority != priority) else { return Ok(()) };
        let change = Verb::Alter(Changes { priority: Some(priority), ..Changes::default() });
        match self.devices.0.printers.control(found.id, &found.owner, true, change).await {
            // It is being printed, or was.
            Err(error) if !error.is(Reason::PrintJobEnded) => Err(error),
            _ => Ok(()),
        }
    }

    async fn cancel(&self, job: Uuid, _: &str) -> Result<()> {
        let Some(found) = self.find(job)? else { return Ok(()) };
        if found.state.is_over() {
            return Ok(());
        }
        match self.devices.0.printers.control(found.id, &found.owner, true, Verb::Cancel).await {
            Err(error) if !error.is(Reason::PrintJobEnded) => Err(error),
            _ => Ok(()),
        }
    }

    async fn forget(&self, job: Uuid) -> Result<()> {
        let path = self.directory.join(job.to_string());
        blocking(move || match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        })
        .await
    }

    async fn changed(&self) {
        if self.changes.lock().await.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Devices {
    fn pulled(&self) -> PathBuf {
        self.0.directory.join("printers").join("pulled")
    }

    /// Notes how the server's jobs on a printer end that is about to be removed with all its jobs. As long as they are in the
    /// journal, that counts.
    ///
    /// # Errors
    /// Those of the disk.
    pub(super) async fn note_pulled(&self, printer: &str) -> Result<()> {
        let jobs = self.0.printers.jobs(Some(printer), is_pulled, JOBS_MAX)?;
        let directory = self.pulled();
        blocking(move || {
            for job in jobs {
                let name = job.uuid.to_string();
                let mut end = report(&job);
                if !end.progress.is_end() {
                    end.progress = Progress::Canceled;
                    end.reason = "the printer is shared no more".to_owned();
                } else if !directory.join(&name).exists() {
                    // The server knows already.
                    continue;
                }
                write_secret(&directory.join(&name), end_text(&end).as_bytes())?;
            }
            Ok(())
        })
        .await
    }

    /// Keeps what the server says against printers, for their owner; for ever.
    async fn note_refused(&self, mut told: watch::Receiver<PullStatus>) {
        loop {
            let now = refusals(&told.borrow_and_update().refused);
            *self.0.refused.lock() = now;
            if told.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// What the server says against a printer of this machine.
    pub(super) fn refused_by_server(&self, entry: &super::book::Entry) -> Option<proto::peer::v1::NodeProblem> {
        let said = (entry.kind == Kind::Printer).then(|| self.0.refused.lock().get(&entry.name).cloned()).flatten()?;
        let error = Error::new(Reason::ResourceInvalid, said)
            .why_is("printers of the office have names of their own there: letters, digits, '.', '_' and '-', beginning with a letter")
            .fix_is("unshare it and share it under another name; people cannot print on it through the server until then");
        Some(super::remote::own_problem(&entry.local_name(), &error))
    }

    /// Pulls jobs from the office's server, whenever there is one that this machine has joined, for ever.
    pub async fn pull_prints(self, hybrid: Hybrid) {
        let directory = self.pulled();
        let opened = {
            let directory = directory.clone();
            blocking(move || open(&directory)).await
        };
        let id = match opened {
            Ok(id) => id,
            Err(error) => {
                tracing::warn!(%error, "print jobs of the central server are not pulled");
                return;
            }
        };
        let changes = Mutex::new(self.0.changes.subscribe());
        let spool = Arc::new(Spool { devices: self.clone(), directory, id, changes });
        loop {
            if let Some(connection) = hybrid.device_connection() {
                let stop = CancellationToken::new();
                let (status, told) = watch::channel(PullStatus::default());
                let guard = stop.clone().drop_guard();
                let membership = hybrid.membership();
                let pulling = pull(connection, spool.clone(), PullSettings::default(), status, stop.clone());
                tokio::select! {
                    () = pulling => {}
                    // Another server or certificate: begun anew with that one.
                    () = until_other(&hybrid, membership) => {}
                    () = self.note_refused(told) => {}
                }
                drop(guard);
                self.0.refused.lock().clear();
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// What is wrong with printers that the server does not take, by their names here.
fn refusals(refused: &[(String, String)]) -> HashMap<String, String> {
    let plain = |name: &str| name.rsplit_once('.').map_or(name, |(plain, _)| plain).to_owned();
    refused
        .iter()
        .map(|(name, message)| (plain(name), format!("the server does not take it as {name}: {message}")))
        .collect()
}

async fn until_other(hybrid: &Hybrid, before: Option<Arc<crate::hybrid::Membership>>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let now = hybrid.membership();
        let same = match (&before, &now) {
            (Some(a), Some(b)) => a.server == b.server && a.certificate_pem == b.certificate_pem,
            (None, None) => true,
            _ => false,
        };
        if !same {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::printer::{Destination, Options, PrinterConfig};

    async fn submit(printers: &Printers, who: &Who) -> Uuid {
        let uuid = Uuid::new_v4();
        let request = JobRequest { uuid: Some(uuid), ..JobRequest::default() };
        let mut upload = printers.submit("laser", who, request, DocumentRequest::default(), None).unwrap();
        upload.write(b"%PDF-1.4 something").await.unwrap();
        upload.finish().await.unwrap();
        uuid
    }

    #[tokio::test]
    async fn a_job_that_a_kill_left_without_its_file_is_known_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let pulled = dir.path().join("pulled");
        let id = open(&pulled).unwrap();
        assert_eq!(open(&pulled).unwrap(), id, "the same spool");
        let printers =
            Printers::open(Options { reserve_bytes: 0, ..Options::new(dir.path().join("state")) }).await.unwrap();
        let folder = Destination::Folder { path: dir.path().join("out"), pages_per_minute: None };
        printers.put(PrinterConfig::new("laser", folder)).await.unwrap();
        printers.pause("laser", true).await.unwrap();
        // In the journal; the program is killed before the file is made.
        let left = submit(&printers, &who("bert")).await;
        let members = Caller { person: "bert".into(), machine: SERVER.into(), device: "aa".into() };
        submit(&printers, &Who::member(members)).await;
        submit(&printers, &Who::stated("bert", SERVER)).await;
        assert_eq!(known(&printers, &pulled).await.unwrap(), [left]);
        assert!(pulled.join(left.to_string()).exists());
        // It ends and is forgotten by the server: then it is by us.
        std::fs::remove_file(pulled.join(left.to_string())).unwrap();
        let job = printers.jobs(None, |j| j.uuid == left, 1).unwrap().pop().unwrap();
        printers.control(job.id, &job.owner, true, Verb::Cancel).await.unwrap();
        assert!(known(&printers, &pulled).await.unwrap().is_empty());
        printers.close().await;
    }

    #[test]
    fn a_printer_that_the_server_does_not_take_is_known_by_its_name_here() {
        let said = [("3d.anna-pc".to_owned(), "it begins with a digit".to_owned())];
        let kept = refusals(&said);
        assert_eq!(kept["3d"], "the server does not take it as 3d.anna-pc: it begins with a digit");
        assert!(refusals(&[]).is_empty());
    }

    #[test]
    fn how_a_job_ended_is_read_as_it_was_written() {
        for progress in [Progress::Canceled, Progress::Aborted, Progress::Completed] {
            let report = JobReport { progress, reason: "the printer is shared no more".into(), sheets: 7 };
            assert_eq!(end_of(&end_text(&report)), report);
        }
        let unknown = end_of("");
        assert_eq!((unknown.progress, unknown.sheets), (Progress::Completed, 0));
        assert!(unknown.reason.contains("no longer known"));
    }
}
