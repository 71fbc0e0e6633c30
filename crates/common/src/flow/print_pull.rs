//! Pulling print jobs from the central server: the side of the machine that a printer hangs on.
//!
//! [`pull`] says which printers there are (at the beginning, all of them: others that the server still knows of this machine
//! are withdrawn), and every minute and with each change how they are. It watches for their jobs, takes each into the
//! machine's own spool, and says how it goes until the server knows how it ended. All connections are opened from here, so
//! a machine behind a firewall prints too. While the server is away nothing here matters to the machine's own printing: the
//! loop tries again, with delays that double up to a minute, and goes on where it was.
//!
//! **Once.** The machine's spool is the memory; nothing is kept here that matters. Its id ([`PulledPrinter::spool_id`]) is
//! what a job is claimed under, so a claim that is repeated after a crash gets the same attempt, and accepting is
//! idempotent by the job's id. A job stays known to the spool until the server has noted its end
//! ([`PulledPrinter::forget`]); so there is no moment at which both have forgotten it, and none at which a job that was
//! printed looks new. A spool that was lost has another id, and the server then says of its jobs that they may be printed
//! twice.
//!
//! **Bounds.** [`FETCHES`] documents at a time; jobs known here are those that the server keeps for this machine's
//! printers and those in its spool. A document that the spool does not take is tried [`TRIES`] times, then the job is
//! aborted.

mod document;
mod session;

pub use document::Document;

use crate::error::{Error, Reason, Result};
use crate::retry::RetryPolicy;
use crate::rpc::{OfficeChannel, OfficeConnection};
use proto::v1;
use proto::v1::print_service_client::PrintServiceClient;
use session::Pull;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Documents that are fetched at a time.
pub const FETCHES: usize = 2;
/// How often a document is tried before its job is aborted, if the spool refuses it.
pub const TRIES: u32 = 5;

/// A printer of this machine, as it is offered to the office.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedPrinter {
    /// Unique in the office: 1 to 64 lower-case letters, digits, '.', '_' and '-', beginning with a letter.
    pub name: String,
    /// For people.
    pub description: String,
    /// Where it stands.
    pub location: String,
    /// Media types; none means any.
    pub formats: Vec<String>,
    /// Prints in colour.
    pub color: bool,
    /// Prints on both sides.
    pub duplex: bool,
    /// How it is.
    pub condition: PrinterCondition,
    /// Why it is stopped.
    pub reason: String,
}

/// How a printer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrinterCondition {
    /// Ready.
    Idle,
    /// Prints.
    Processing,
    /// Needs somebody.
    Stopped,
}

/// A job of the office for a printer of this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct PulledJob {
    /// Names it everywhere.
    pub id: Uuid,
    /// The printer's name in the office.
    pub printer: String,
    /// For people.
    pub display_name: String,
    /// Whose.
    pub user: String,
    /// Of the document.
    pub size_bytes: u64,
    /// BLAKE3-256 of the document.
    pub digest: [u8; 32],
    /// Media type; may be empty.
    pub format: String,
    /// How to print it.
    pub options: v1::PrintOptions,
    /// 1 to 100; higher is earlier.
    pub priority: u8,
    /// It was given out before, to a spool that is lost: it may be on paper already.
    pub may_be_printed_twice: bool,
}

/// Where a job stands in the machine's spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// In the queue.
    Waiting,
    /// Being printed.
    Printing,
    /// The printer stopped in the middle.
    Stopped,
    /// Was not wanted any more.
    Canceled,
    /// Could not be printed.
    Aborted,
    /// On paper.
    Completed,
}

impl Progress {
    /// Nothing more becomes of it.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Canceled | Self::Aborted | Self::Completed)
    }
}

/// How a job goes in the machine's spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobReport {
    /// Where it stands.
    pub progress: Progress,
    /// Why, for people.
    pub reason: String,
    /// Sheets so far.
    pub sheets: u64,
}

/// The machine's own spool and printers. Jobs are named by the ids that the server gave them. Only one program at a time pulls
/// into a spool.
pub trait PulledPrinter: Send + Sync + 'static {
    /// Names the place where accepted jobs are kept. It must be another one after that place was lost or replaced.
    fn spool_id(&self) -> Uuid;

    /// Printers that the office may use. One that is not among them is withdrawn, with its jobs: what cannot be said now is
    /// an error.
    fn printers(&self) -> impl Future<Output = Result<Vec<OfferedPrinter>>> + Send;

    /// Jobs that were accepted and not forgotten.
    fn jobs(&self) -> impl Future<Output = Result<Vec<Uuid>>> + Send;

    /// Takes a job. When it returns, job and document are on disk. A job that was accepted before is accepted again
    /// without any effect. May be dropped at any point: then the job was accepted or not.
    ///
    /// # Errors
    /// Of the kinds INVALID_ARGUMENT, FAILED_PRECONDITION, NOT_FOUND: it will never be printed, the job is aborted. Any
    /// other: it is tried again.
    fn accept(&self, job: PulledJob, document: Document) -> impl Future<Output = Result<()>> + Send;

    /// How a job goes; none if it was never accepted, or was forgotten.
    fn state(&self, job: Uuid) -> impl Future<Output = Result<Option<JobReport>>> + Send;

    /// Prints it earlier or later than others that wait, if it waits. Harmless for jobs that are not known.
    fn prioritize(&self, job: Uuid, priority: u8) -> impl Future<Output = Result<()>> + Send;

    /// Prints it no more, if it is not too late. Harmless for jobs that have ended or are not known.
    fn cancel(&self, job: Uuid, why: &str) -> impl Future<Output = Result<()>> + Send;

    /// The server knows how it ended: it need not be remembered any more.
    fn forget(&self, job: Uuid) -> impl Future<Output = Result<()>> + Send;

    /// Waits until a job or a printer may have changed. Safe to cancel; must not miss a change between two calls.
    fn changed(&self) -> impl Future<Output = ()> + Send;
}

/// How often things are done.
#[derive(Clone, Copy, Debug)]
pub struct PullSettings {
    /// Says how printers are, unless the server wants it sooner.
    pub renew: Duration,
    /// Looks at all jobs even if nothing seems to have changed.
    pub look: Duration,
    /// A watch on which nothing comes for so long is taken for broken; the server sends a mark every 15 seconds.
    pub silence: Duration,
    /// Delays between attempts to reach the server; it never gives up.
    pub retry: RetryPolicy,
}

impl Default for PullSettings {
    fn default() -> Self {
        Self {
            renew: Duration::from_secs(60),
            look: Duration::from_secs(30),
            silence: Duration::from_secs(45),
            retry: RetryPolicy {
                first: Duration::from_millis(500),
                longest: Duration::from_secs(60),
                retries: usize::MAX,
                in_all: Duration::MAX,
            },
        }
    }
}

/// How pulling goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullStatus {
    /// The server is there and tells of jobs.
    pub connected: bool,
    /// Reason and message of what went wrong last; empty if nothing is wrong.
    pub problem: Option<(String, String)>,
    /// Printers that the server does not take under their names, and why.
    pub refused: Vec<(String, String)>,
}

/// A client of the service.
pub(super) type Client = PrintServiceClient<OfficeChannel>;

/// Pulls until told to stop. Only then it returns.
pub async fn pull<P: PulledPrinter>(
    connection: OfficeConnection,
    printer: Arc<P>,
    settings: PullSettings,
    status: watch::Sender<PullStatus>,
    stop: CancellationToken,
) {
    let mut pull = Pull::new(connection, printer, settings, status);
    let mut delays = settings.retry.delays();
    loop {
        let Some(ended) = stop.run_until_cancelled(pull.session(&mut delays)).await else { return };
        let error = ended.err().unwrap_or_else(|| Error::new(Reason::ServerUnreachable, "the server ended the watch"));
        tracing::debug!(reason = error.reason(), ?error, "the server's print jobs cannot be pulled for now");
        pull.failed(&error);
        // An error that trying again does not mend may be mended by somebody; then patience is all there is.
        let wait = delays.after(&error).unwrap_or(settings.retry.longest);
        if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
    }
}

/// A job's priority; the server of an older version says none.
fn priority_of(job: &v1::PrintJob) -> u8 {
    u8::try_from(job.priority).ok().filter(|p| (1..=100).contains(p)).unwrap_or(50)
}

/// Tells the server that a printer is offered no more.
///
/// # Errors
/// `RESOURCE_UNKNOWN` if it is not there or another machine's; those of the connection.
pub async fn withdraw(connection: &OfficeConnection, name: &str) -> Result<()> {
    let request = v1::WithdrawPrinterRequest { name: name.to_owned() };
    PrintServiceClient::new(connection.control()).withdraw_printer(request).await?;
    Ok(())
}
