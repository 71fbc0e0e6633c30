//! What is done while the server is there.

use super::{
    Client, Document, FETCHES, JobReport, OfferedPrinter, PrinterCondition, Progress, PullSettings, PullStatus,
    PulledJob, PulledPrinter, TRIES,
};
use crate::error::{Error, Kind, Reason, Result};
use crate::retry::{Backoff, RetryPolicy};
use crate::rpc::OfficeConnection;
use proto::v1;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use uuid::Uuid;

/// A document that the spool did not take now is tried again after this time, times the number of tries.
const AGAIN: Duration = Duration::from_secs(5);

/// State between sessions. All of it may be lost.
pub(super) struct Pull<P> {
    connection: OfficeConnection,
    printer: Arc<P>,
    spool: Uuid,
    settings: PullSettings,
    status: watch::Sender<PullStatus>,
    /// Jobs that are to be taken.
    waiting: BTreeMap<Uuid, Wanted>,
    /// Jobs that are being taken.
    taking: JoinSet<(Uuid, Result<Taken>)>,
    active: HashMap<Uuid, CancellationToken>,
    tries: HashMap<Uuid, u32>,
    /// Under which attempt this spool has a job.
    attempts: HashMap<Uuid, u32>,
    /// What the server knows.
    reported: HashMap<Uuid, JobReport>,
    /// Jobs whose end here does not interest the server any more.
    given_up: HashSet<Uuid>,
    /// Jobs that somebody wants canceled.
    unwanted: HashSet<Uuid>,
    /// Jobs that the server told of in this session.
    told: HashSet<Uuid>,
    /// Priorities that the server told of last.
    priorities: HashMap<Uuid, u8>,
    /// What the server knows of printers.
    offered: HashMap<String, OfferedPrinter>,
    renew: Duration,
}

/// A job that is to be taken: of those that are due the one with the highest priority, then the oldest.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    at: Instant,
    priority: u8,
}

/// How taking a job went.
#[derive(Debug)]
enum Taken {
    /// It is in the spool, under this attempt.
    Accepted(u32),
    /// It is not for this spool, or not now.
    NotOurs,
    /// The spool did not take it, under this attempt.
    Refused(u32, Error),
}

impl<P: PulledPrinter> Pull<P> {
    pub(super) fn new(
        connection: OfficeConnection,
        printer: Arc<P>,
        settings: PullSettings,
        status: watch::Sender<PullStatus>,
    ) -> Self {
        Self {
            connection,
            spool: printer.spool_id(),
            printer,
            renew: settings.renew,
            settings,
            status,
            waiting: BTreeMap::new(),
            taking: JoinSet::new(),
            active: HashMap::new(),
            tries: HashMap::new(),
            attempts: HashMap::new(),
            reported: HashMap::new(),
            given_up: HashSet::new(),
            unwanted: HashSet::new(),
            told: HashSet::new(),
            priorities: HashMap::new(),
            offered: HashMap::new(),
        }
    }

    fn client(&self) -> Client {
        Client::new(self.connection.control())
    }

    /// Notes why a session ended.
    pub(super) fn failed(&self, error: &Error) {
        self.status.send_modify(|status| {
            status.connected = false;
            status.problem = Some((error.reason().to_owned(), error.message().to_owned()));
        });
    }

    /// Everything, until the server is away. Safe to cancel.
    ///
    /// # Errors
    /// Why the server is away.
    pub(super) async fn session(&mut self, delays: &mut Backoff) -> Result<()> {
        self.offer(true).await?;
        self.withdraw_others().await?;
        let mut watch = self.client().watch_print_jobs(v1::WatchPrintJobsRequest {}).await?.into_inner();
        self.told.clear();
        // What the server knew before may be another server's memory now: say everything again.
        self.reported.clear();
        let mut complete = false;
        let mut renew = Instant::now() + self.renew;
        let mut look = Instant::now() + self.settings.look;
        loop {
            self.start_taking();
            let next_try = self.next_try();
            tokio::select! {
                message = receive(&mut watch, self.settings.silence) => {
                    let Some(message) = message? else { return Ok(()) };
                    for job in &message.jobs {
                        self.told(job).await?;
                    }
                    if message.complete && !complete {
                        complete = true;
                        delays.reset();
                        self.status.send_modify(|s| (s.connected, s.problem) = (true, None));
                        self.reconcile().await?;
                    }
                }
                Some(done) = self.taking.join_next(), if !self.taking.is_empty() => {
                    if let Ok((id, taken)) = done {
                        self.taken(id, taken).await?;
                    }
                }
                () = self.printer.changed() => {
                    self.offer(false).await?;
                    if complete {
                        self.report_all().await?;
                    }
                }
                () = tokio::time::sleep_until(renew) => {
                    self.offer(true).await?;
                    renew = Instant::now() + self.renew;
                }
                () = tokio::time::sleep_until(look) => {
                    if complete {
                        self.report_all().await?;
                    }
                    look = Instant::now() + self.settings.look;
                }
                () = tokio::time::sleep_until(next_try) => {}
            }
        }
    }

    /// Says which printers there are and how they are: `all`, or those of which the server knows something else. One that
    /// is not taken does not hold up the others.
    async fn offer(&mut self, all: bool) -> Result<()> {
        let printers = self.printer.printers().await?;
        let mut refused = Vec::new();
        for printer in &printers {
            if !all && self.offered.get(&printer.name) == Some(printer) {
                continue;
            }
            match self.client().register_printer(register(printer)).await.map_err(Error::from) {
                Ok(answer) => {
                    let asked = Duration::from_secs(u64::from(answer.into_inner().renew_seconds));
                    self.renew = if asked.is_zero() { self.settings.renew } else { asked.min(self.settings.renew) };
                }
                Err(error)
                    if error.is_transient()
                        || matches!(error.kind(), Kind::PermissionDenied | Kind::Unauthenticated) =>
                {
                    return Err(error);
                }
                Err(error) => refused.push((printer.name.clone(), error.message().to_owned())),
            }
        }
        let offered: HashMap<_, _> = printers.into_iter().map(|p| (p.name.clone(), p)).collect();
        for gone in self.offered.keys().filter(|name| !offered.contains_key(*name)) {
            match super::withdraw(&self.connection, gone).await {
                Err(error) if error.is_transient() => return Err(error),
                _ => {}
            }
        }
        self.status.send_if_modified(|status| {
            // Of one that was not said again nothing new is known.
            let same = |(name, _): &&(String, String)| !all && self.offered.get(name) == offered.get(name);
            let before = status.refused.iter().filter(same).cloned();
            let refused: Vec<_> = before.chain(refused).collect();
            let changed = status.refused != refused;
            status.refused = refused;
            changed
        });
        self.offered = offered;
        Ok(())
    }

    /// Printers may have gone while there was no connection: the server forgets those.
    async fn withdraw_others(&self) -> Result<()> {
        let keep = self.offered.keys().cloned().collect();
        match self.client().withdraw_other_printers(v1::WithdrawOtherPrintersRequest { keep }).await {
            Ok(_) => Ok(()),
            Err(status) => match Error::from(status) {
                // A server of an older version keeps them until an administrator removes them.
                error if error.kind() == Kind::Unimplemented => Ok(()),
                error => Err(error),
            },
        }
    }

    /// The server tells of a job.
    async fn told(&mut self, job: &v1::PrintJob) -> Result<()> {
        let id = Uuid::try_parse(&job.id)
            .map_err(|_| Error::new(Reason::PeerMisbehaves, "the server told of a job without an id"))?;
        self.told.insert(id);
        let ours = job.spool_id == self.spool.to_string();
        if ours {
            self.attempts.insert(id, job.attempt);
        }
        use v1::PrintJobState as S;
        match job.state() {
            S::Canceled | S::Aborted | S::Completed => return self.not_ours(id, "it was ended at the server").await,
            S::Held => {
                self.waiting.remove(&id);
                return Ok(());
            }
            S::Unspecified => return Ok(()),
            S::Pending | S::Taken | S::Processing | S::Stopped => {}
        }
        if job.cancel_requested {
            return self.cancel(id).await;
        }
        let priority = super::priority_of(job);
        let other = self.priorities.insert(id, priority) != Some(priority);
        if self.printer.state(id).await?.is_some() && ours {
            if other {
                self.printer.prioritize(id, priority).await?;
            }
            return self.report(id).await;
        }
        if !self.active.contains_key(&id) {
            self.waiting.entry(id).or_insert(Wanted { at: Instant::now(), priority }).priority = priority;
        }
        Ok(())
    }

    /// Somebody does not want a job that this spool has.
    async fn cancel(&mut self, id: Uuid) -> Result<()> {
        self.unwanted.insert(id);
        self.waiting.remove(&id);
        if let Some(active) = self.active.get(&id) {
            // It is told when taking it has ended.
            active.cancel();
            return Ok(());
        }
        if self.printer.state(id).await?.is_some() {
            self.printer.cancel(id, "canceled at the server").await?;
            return self.report(id).await;
        }
        self.say_canceled(id).await
    }

    /// A job that was canceled before the spool had it.
    async fn say_canceled(&mut self, id: Uuid) -> Result<()> {
        let report = JobReport { progress: Progress::Canceled, reason: String::new(), sheets: 0 };
        self.send(id, report).await?;
        self.clear(id);
        Ok(())
    }

    /// A job is nothing of this spool's any more.
    async fn not_ours(&mut self, id: Uuid, why: &str) -> Result<()> {
        self.waiting.remove(&id);
        if let Some(active) = self.active.get(&id) {
            active.cancel();
            self.given_up.insert(id);
            return Ok(());
        }
        match self.printer.state(id).await? {
            None => self.clear(id),
            Some(state) if state.progress.is_end() => {
                self.printer.forget(id).await?;
                self.clear(id);
            }
            Some(_) => {
                // It may be too late; what became of it is looked at with the next change.
                self.given_up.insert(id);
                self.printer.cancel(id, why).await?;
            }
        }
        Ok(())
    }

    fn clear(&mut self, id: Uuid) {
        self.given_up.remove(&id);
        self.unwanted.remove(&id);
        self.attempts.remove(&id);
        self.reported.remove(&id);
        self.tries.remove(&id);
        self.priorities.remove(&id);
    }

    /// Jobs in the spool that the server did not tell of: it may have given them up, or to another machine.
    async fn reconcile(&mut self) -> Result<()> {
        for id in self.printer.jobs().await? {
            if self.told.contains(&id) {
                continue;
            }
            match self.claim(id).await {
                Ok(job) if is_ours(&job, self.spool) => {
                    self.attempts.insert(id, job.attempt);
                }
                Ok(_) => self.not_ours(id, "the server gave it up").await?,
                Err(error) if is_gone(&error) => self.not_ours(id, "the server does not know it any more").await?,
                Err(error) => return Err(error),
            }
        }
        self.report_all().await
    }

    async fn report_all(&mut self) -> Result<()> {
        for id in self.printer.jobs().await? {
            if !self.active.contains_key(&id) {
                self.report(id).await?;
            }
        }
        Ok(())
    }

    /// Says how a job goes, if the server does not know; forgets one whose end it knows.
    async fn report(&mut self, id: Uuid) -> Result<()> {
        let Some(state) = self.printer.state(id).await? else { return Ok(()) };
        if self.given_up.contains(&id) {
            if state.progress.is_end() {
                self.printer.forget(id).await?;
                self.clear(id);
            }
            return Ok(());
        }
        if self.reported.get(&id) == Some(&state) {
            return Ok(());
        }
        let ended = state.progress.is_end();
        if self.send(id, state).await? && ended {
            self.printer.forget(id).await?;
            self.clear(id);
        }
        Ok(())
    }

    /// Says it; false if the server does not want to hear it.
    async fn send(&mut self, id: Uuid, report: JobReport) -> Result<bool> {
        let attempt = match self.attempts.get(&id) {
            Some(attempt) => *attempt,
            None => match self.claim(id).await {
                Ok(job) if is_ours(&job, self.spool) => job.attempt,
                Ok(_) => return self.not_ours(id, "the server gave it up").await.map(|()| false),
                Err(error) if is_gone(&error) => {
                    return self.not_ours(id, "the server does not know it any more").await.map(|()| false);
                }
                Err(error) => return Err(error),
            },
        };
        self.attempts.insert(id, attempt);
        let request = v1::UpdatePrintJobRequest {
            id: id.to_string(),
            attempt,
            state: state_of(report.progress) as i32,
            state_reason: report.reason.clone(),
            sheets: report.sheets,
        };
        match self.client().update_print_job(request).await.map_err(Error::from) {
            Ok(_) => {
                self.reported.insert(id, report);
                Ok(true)
            }
            Err(error) if is_gone(&error) => {
                self.not_ours(id, "the server gave it up").await?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn claim(&self, id: Uuid) -> Result<v1::PrintJob> {
        claim(&mut self.client(), id, self.spool).await
    }

    fn start_taking(&mut self) {
        let now = Instant::now();
        while self.taking.len() < FETCHES {
            let due = self.waiting.iter().filter(|(_, w)| w.at <= now);
            let first = due.min_by_key(|(id, w)| (std::cmp::Reverse(w.priority), **id));
            let Some(id) = first.map(|(id, _)| *id) else { return };
            self.waiting.remove(&id);
            let unwanted = CancellationToken::new();
            self.active.insert(id, unwanted.clone());
            let (control, bulk) = (self.client(), Client::new(self.connection.bulk()));
            let (printer, spool, retry) = (self.printer.clone(), self.spool, self.settings.retry);
            self.taking.spawn(async move { (id, take(control, bulk, printer, id, spool, retry, unwanted).await) });
        }
    }

    fn next_try(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        if self.taking.len() >= FETCHES {
            return far;
        }
        self.waiting.values().map(|w| w.at).min().unwrap_or(far).max(Instant::now())
    }

    /// Taking a job has ended.
    async fn taken(&mut self, id: Uuid, taken: Result<Taken>) -> Result<()> {
        self.active.remove(&id);
        let known = self.printer.state(id).await?.is_some();
        if self.given_up.remove(&id) {
            return self.not_ours(id, "it was ended at the server").await;
        }
        match taken {
            Ok(Taken::Accepted(attempt)) => {
                self.attempts.insert(id, attempt);
                self.tries.remove(&id);
                if self.unwanted.contains(&id) {
                    return self.cancel(id).await;
                }
                self.report(id).await
            }
            Ok(Taken::Refused(attempt, error)) => {
                self.attempts.insert(id, attempt);
                match (known, self.unwanted.contains(&id)) {
                    (true, _) => self.report(id).await,
                    (false, true) => self.say_canceled(id).await,
                    (false, false) => self.refused(id, error).await,
                }
            }
            Ok(Taken::NotOurs) => self.not_ours(id, "it is not for this machine").await,
            // The server is away: it tells of the job again when it is back.
            Err(error) => {
                tracing::debug!(reason = error.reason(), job = %id, "a print job could not be taken for now");
                self.again(id);
                Ok(())
            }
        }
    }

    fn again(&mut self, id: Uuid) {
        let tries = self.tries.get(&id).copied().unwrap_or(0);
        let priority = self.priorities.get(&id).copied().unwrap_or(50);
        self.waiting.insert(id, Wanted { at: Instant::now() + AGAIN * (tries + 1), priority });
    }

    async fn refused(&mut self, id: Uuid, error: Error) -> Result<()> {
        if is_gone(&error) {
            return self.not_ours(id, "the server gave it up").await;
        }
        let tries = self.tries.entry(id).or_default();
        *tries += 1;
        let never = matches!(error.kind(), Kind::InvalidArgument | Kind::FailedPrecondition | Kind::NotFound);
        if !never && *tries < TRIES {
            tracing::info!(reason = error.reason(), job = %id, "a print job was not accepted, it is tried again");
            self.again(id);
            return Ok(());
        }
        let reason = format!("the printer's machine did not take it: {}", error.message());
        let report = JobReport { progress: Progress::Aborted, reason, sheets: 0 };
        self.send(id, report).await?;
        self.clear(id);
        Ok(())
    }
}

async fn receive(
    watch: &mut Streaming<v1::WatchPrintJobsResponse>,
    silence: Duration,
) -> Result<Option<v1::WatchPrintJobsResponse>> {
    match tokio::time::timeout(silence, watch.message()).await {
        Ok(message) => Ok(message?),
        Err(_) => Err(Error::new(Reason::ServerUnreachable, "the server has fallen silent")),
    }
}

async fn claim(client: &mut Client, id: Uuid, spool: Uuid) -> Result<v1::PrintJob> {
    let request = v1::ClaimPrintJobRequest { id: id.to_string(), spool_id: spool.to_string() };
    Ok(client.claim_print_job(request).await?.into_inner())
}

/// Claims a job and puts it into the spool.
async fn take<P: PulledPrinter>(
    mut control: Client,
    bulk: Client,
    printer: Arc<P>,
    id: Uuid,
    spool: Uuid,
    retry: RetryPolicy,
    unwanted: CancellationToken,
) -> Result<Taken> {
    let job = match claim(&mut control, id, spool).await {
        Ok(job) if is_ours(&job, spool) => job,
        Ok(_) => return Ok(Taken::NotOurs),
        Err(error) if is_gone(&error) => return Ok(Taken::NotOurs),
        Err(error) => return Err(error),
    };
    let attempt = job.attempt;
    let pulled = match pulled(id, job) {
        Ok(pulled) => pulled,
        Err(error) => return Ok(Taken::Refused(attempt, error)),
    };
    let document = Document::new(bulk, &pulled, attempt, retry, unwanted);
    match printer.accept(pulled, document).await {
        Ok(()) => Ok(Taken::Accepted(attempt)),
        Err(error) => Ok(Taken::Refused(attempt, error)),
    }
}

fn is_ours(job: &v1::PrintJob, spool: Uuid) -> bool {
    use v1::PrintJobState as S;
    job.spool_id == spool.to_string() && matches!(job.state(), S::Taken | S::Processing | S::Stopped)
}

/// The server says that the job is not this spool's.
fn is_gone(error: &Error) -> bool {
    [Reason::PrintJobUnknown, Reason::PrintJobEnded, Reason::PrintAttemptStale].into_iter().any(|r| error.is(r))
}

fn pulled(id: Uuid, job: v1::PrintJob) -> Result<PulledJob> {
    let digest = <[u8; 32]>::try_from(&job.digest[..])
        .map_err(|_| Error::new(Reason::PeerMisbehaves, "the server told of a document without its digest"))?;
    Ok(PulledJob {
        id,
        priority: super::priority_of(&job),
        printer: job.printer,
        display_name: job.display_name,
        user: job.user,
        size_bytes: job.size_bytes,
        digest,
        format: job.format,
        options: job.options.unwrap_or_default(),
        may_be_printed_twice: job.may_be_printed_twice,
    })
}

fn state_of(progress: Progress) -> v1::PrintJobState {
    match progress {
        Progress::Waiting => v1::PrintJobState::Taken,
        Progress::Printing => v1::PrintJobState::Processing,
        Progress::Stopped => v1::PrintJobState::Stopped,
        Progress::Canceled => v1::PrintJobState::Canceled,
        Progress::Aborted => v1::PrintJobState::Aborted,
        Progress::Completed => v1::PrintJobState::Completed,
    }
}

fn register(printer: &OfferedPrinter) -> v1::RegisterPrinterRequest {
    let state = match printer.condition {
        PrinterCondition::Idle => v1::PrinterState::Idle,
        PrinterCondition::Processing => v1::PrinterState::Processing,
        PrinterCondition::Stopped => v1::PrinterState::Stopped,
    };
    v1::RegisterPrinterRequest {
        name: printer.name.clone(),
        description: printer.description.clone(),
        location: printer.location.clone(),
        formats: printer.formats.clone(),
        color: printer.color,
        duplex: printer.duplex,
        state: state as i32,
        state_reason: printer.reason.clone(),
    }
}
