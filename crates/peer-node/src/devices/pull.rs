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
//! (a kill in between) is found by its id when it comes again, and is not printed twice. A job that has a file and is no
//! longer in the journal had ended long ago, and is told as completed.

use super::disk::blocking;
use super::{Devices, access};
use crate::hybrid::Hybrid;
use common::error::{Error, Reason, Result};
use common::flow::print_pull::{
    Document, JobReport, OfferedPrinter, PrinterCondition, Progress, PullSettings, PullStatus, PulledJob,
    PulledPrinter, pull,
};
use common::model::Right;
use device::model::{Caller, Kind};
use device::printer::model::{JobState, Who};
use device::printer::{DocumentRequest, Job, JobRequest, PrinterState, Sides, Ticket, Verb};
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
            note(directory, "SPOOL", id.to_string().as_bytes())?;
            Ok(id)
        }
        Err(e) => Err(e.into()),
    }
}

/// Writes a small file, whole and synced.
fn note(directory: &Path, name: &str, text: &[u8]) -> Result<()> {
    use std::io::Write;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    file.persist(directory.join(name)).map_err(|e| e.error)?;
    std::fs::File::open(directory)?.sync_all()?;
    Ok(())
}

/// Somebody who printed at the server, which has checked who it is.
fn who(user: &str) -> Who {
    Who::member(Caller { person: user.to_owned(), machine: "central-server".to_owned(), device: String::new() })
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
    fn label(&self) -> String {
        let name = access::caller(&*self.devices.0.roster, &self.devices.me()).map(|c| c.machine).unwrap_or_default();
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c.to_ascii_lowercase() } else { '-' };
        name.chars().map(plain).collect()
    }

    /// The printer here that the office knows by this name.
    fn printer(&self, name: &str) -> Result<String> {
        let unknown = || Error::new(Reason::ResourceUnknown, format!("there is no printer {name:?} here"));
        let plain = name.strip_suffix(&format!(".{}", self.label())).ok_or_else(unknown)?;
        let entry = self.devices.0.book.get(Kind::Printer, plain).ok_or_else(unknown)?;
        self.offered(&entry).then(|| entry.name.clone()).ok_or_else(unknown)
    }

    fn offered(&self, entry: &super::book::Entry) -> bool {
        entry.kind == Kind::Printer && super::book::everyones(&entry.share).is_some_and(|r| r >= Right::Write)
    }

    fn find(&self, job: Uuid) -> Result<Option<Job>> {
        Ok(self.devices.0.printers.jobs(None, |j| j.uuid == job, 1)?.pop())
    }
}

impl PulledPrinter for Spool {
    fn spool_id(&self) -> Uuid {
        self.id
    }

    async fn printers(&self) -> Result<Vec<OfferedPrinter>> {
        let label = self.label();
        let offered = self.devices.0.book.all().into_iter().filter(|e| self.offered(e));
        let views = offered.filter_map(|e| self.devices.0.printers.get(&e.name).ok());
        Ok(views
            .map(|view| {
                let can = view.config.capabilities();
                OfferedPrinter {
                    name: format!("{}.{label}", view.config.name),
                    description: view.config.info.clone(),
                    location: view.config.location.clone(),
                    formats: can.formats.clone(),
                    color: can.color,
                    duplex: can.duplex,
                    condition: match view.state {
                        PrinterState::Idle => PrinterCondition::Idle,
                        PrinterState::Processing => PrinterCondition::Processing,
                        PrinterState::Stopped => PrinterCondition::Stopped,
                    },
                    reason: super::print::reasons_of(&view),
                }
            })
            .collect())
    }

    async fn jobs(&self) -> Result<Vec<Uuid>> {
        let directory = self.directory.clone();
        blocking(move || {
            let names = std::fs::read_dir(directory)?.filter_map(|e| e.ok()?.file_name().into_string().ok());
            Ok(names.filter_map(|n| n.parse().ok()).take(JOBS_MAX).collect())
        })
        .await
    }

    async fn accept(&self, job: PulledJob, mut document: Document) -> Result<()> {
        let (name, who) = (self.printer(&job.printer)?, who(&job.user));
        let printers = &self.devices.0.printers;
        if printers.repeated(&name, &who, Some(job.id)).await?.is_none() {
            let request = JobRequest {
                name: job.display_name.clone(),
                ticket: ticket(&job),
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
        blocking(move || note(&directory, &job.id.to_string(), b"")).await?;
        self.devices.changed();
        Ok(())
    }

    async fn state(&self, job: Uuid) -> Result<Option<JobReport>> {
        if let Some(found) = self.find(job)? {
            let progress = match found.state {
                JobState::Pending | JobState::Held => Progress::Waiting,
                JobState::Processing => Progress::Printing,
                JobState::Stopped => Progress::Stopped,
                JobState::Canceled => Progress::Canceled,
                JobState::Aborted => Progress::Aborted,
                JobState::Completed => Progress::Completed,
            };
            let reason = if found.message.is_empty() { found.reason } else { found.message };
            return Ok(Some(JobReport { progress, reason, sheets: found.sheets.into() }));
        }
        let path = self.directory.join(job.to_string());
        let taken = blocking(move || Ok(path.exists())).await?;
        let gone = || "ended while the server was away; how is no longer known".to_owned();
        Ok(taken.then(|| JobReport { progress: Progress::Completed, reason: gone(), sheets: 0 }))
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
    /// Pulls jobs from the office's server, whenever there is one that this machine has joined, for ever.
    pub async fn pull_prints(self, hybrid: Hybrid) {
        let directory = self.0.directory.join("printers").join("pulled");
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
                let (status, _) = watch::channel(PullStatus::default());
                let guard = stop.clone().drop_guard();
                let membership = hybrid.membership();
                let pulling = pull(connection, spool.clone(), PullSettings::default(), status, stop.clone());
                tokio::select! {
                    () = pulling => {}
                    // Another server or certificate: begun anew with that one.
                    () = until_other(&hybrid, membership) => {}
                }
                drop(guard);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
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
