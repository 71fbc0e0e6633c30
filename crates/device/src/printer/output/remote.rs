//! Another printer by IPP, or a queue of CUPS, which speaks IPP too.
//!
//! # Neither lost nor doubled
//!
//! The printer's name for a job is the job's own name with a mark made of its universal name. An order that may be a
//! repetition first looks for the mark in the printer's lists of jobs: one that is found alive is followed, one that was
//! completed is done, one that was canceled or aborted, or is not there, is sent again. Every job is sent by one Print-Job
//! request a document, so a printer has it whole or not at all.
//!
//! A printer that forgets completed jobs at once cannot be asked: after a crash between its last answer and ours it prints
//! such a job again.

use std::sync::Arc;
use std::time::Duration;

use common::error::{Error, Reason, Result};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Order, Output, Progress};
use crate::ipp::client::{Client, Piece, never_sent, refusal};
use crate::ipp::codes::{Operation, Status, group};
use crate::ipp::value::{Group, Message, Value};
use crate::printer::model::{Document, Job};
use crate::printer::queue::{Condition, Outcome};

/// How often a job is asked after while it is printed: at first quickly, for short jobs, then at this pace.
const FOLLOW: Duration = Duration::from_secs(1);
/// First wait between two questions.
const FOLLOW_FIRST: Duration = Duration::from_millis(20);
/// Questions in a row without an answer after which a job counts as lost from sight.
const PATIENCE: u32 = 5;
/// Why nothing is sent to a printer whose certificate is not the one that is trusted.
pub const UNTRUSTED: &str = "certificate-untrusted";
/// Jobs that are listed when a mark is looked for.
const LISTED: i32 = 1000;

/// A printer that is reached by IPP.
pub struct Remote {
    client: Client,
}

/// What the printer says about a job of ours.
struct Seen {
    id: i32,
    state: i32,
    reasons: Vec<String>,
    impressions: Option<u32>,
}

impl Remote {
    /// The printer that this client talks to.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    fn request(&self, operation: Operation) -> Message {
        let mut request = Message::request(operation, self.client.next_id());
        request.group_mut(group::OPERATION).put("printer-uri", Value::uri(&self.client.target().uri));
        request
    }

    fn user(message: &mut Message, job: &Job) {
        let person = if job.owner.caller.person.is_empty() { "anonymous" } else { &job.owner.caller.person };
        message.group_mut(group::OPERATION).put("requesting-user-name", Value::name(person));
    }

    /// Looks for the job in the printer's lists; the newest if it is there more than once.
    ///
    /// It is asked for in the name of the job's owner: CUPS shows the names of jobs to nobody else.
    async fn find(&self, job: &Job, name: &str) -> Result<Option<Seen>> {
        let mut found: Option<Seen> = None;
        for which in ["not-completed", "completed"] {
            let mut request = self.request(Operation::GetJobs);
            Self::user(&mut request, job);
            let operation = request.group_mut(group::OPERATION);
            operation.put("limit", Value::Integer(LISTED));
            let wanted = ["job-id", "job-name", "job-state", "job-state-reasons", "job-impressions-completed"];
            operation.put_all("requested-attributes", wanted.map(Value::keyword));
            operation.put("which-jobs", Value::keyword(which));
            let answer = self.client.ask(&request, None).await?;
            for job in answer.groups.iter().filter(|g| g.tag == group::JOB && g.str("job-name") == Some(name)) {
                let seen = Seen::of(job);
                // What is alive or printed counts more than an attempt that failed.
                let better = |s: &Seen| matches!(s.state, 3..=6 | 9);
                if let Some(seen) = seen
                    && found.as_ref().is_none_or(|f| (better(&seen), seen.id) > (better(f), f.id))
                {
                    found = Some(seen);
                }
            }
        }
        Ok(found)
    }

    async fn look(&self, id: i32, job: &Job) -> Result<Option<Seen>> {
        let mut request = self.request(Operation::GetJobAttributes);
        request.group_mut(group::OPERATION).put("job-id", Value::Integer(id));
        Self::user(&mut request, job);
        let operation = request.group_mut(group::OPERATION);
        let wanted = ["job-id", "job-state", "job-state-reasons", "job-impressions-completed"];
        operation.put_all("requested-attributes", wanted.map(Value::keyword));
        let answer = self.client.send(&request, None).await?;
        match answer.status() {
            Some(Status::NotFound | Status::Gone) => Ok(None),
            Some(status) if status.is_success() => Ok(answer.group(group::JOB).and_then(Seen::of)),
            _ => Err(refusal(&answer)),
        }
    }

    async fn cancel(&self, id: i32, job: &Job) -> Result<()> {
        let mut request = self.request(Operation::CancelJob);
        request.group_mut(group::OPERATION).put("job-id", Value::Integer(id));
        Self::user(&mut request, job);
        self.client.ask(&request, None).await.map(|_| ())
    }

    async fn send(&self, job: &Job, name: &str, document: &Document, piece: &Piece) -> Result<i32> {
        let mut request = self.request(Operation::PrintJob);
        Self::user(&mut request, job);
        let operation = request.group_mut(group::OPERATION);
        operation.put("job-name", Value::name(name));
        operation.put("ipp-attribute-fidelity", Value::Boolean(false));
        operation.put("document-name", Value::name(&document.name));
        operation.put("document-format", Value::MimeType(document.format.clone()));
        let wanted = request.group_mut(group::JOB);
        template(job, wanted);
        if wanted.attributes.is_empty() {
            request.groups.retain(|g| g.tag != group::JOB);
        }
        let answer = self.client.ask(&request, Some(vec![piece.clone()])).await?;
        let id = answer.group(group::JOB).and_then(|g| g.int("job-id"));
        id.ok_or_else(|| Error::new(Reason::DeviceFailed, "the printer took the job and gave it no number"))
    }

    /// Follows a job until it is over.
    async fn follow(&self, id: i32, order: &Order, before: u32) -> Outcome {
        let mut wait = FOLLOW_FIRST;
        let mut silent = 0;
        let mut withdrawn = false;
        let mut standing = false;
        loop {
            if order.withdraw.is_cancelled() && !withdrawn {
                withdrawn = self.cancel(id, &order.job).await.is_ok();
            }
            match self.look(id, &order.job).await {
                Err(_) if silent < PATIENCE => silent += 1,
                Err(_) => return Outcome::Lost { reason: "timed-out".into() },
                // Forgotten: a printer without a history forgets what it printed, not what it is printing.
                Ok(None) if withdrawn => return Outcome::Withdrawn { impressions: before },
                Ok(None) => return Outcome::Done { impressions: None },
                Ok(Some(seen)) => {
                    silent = 0;
                    let sides = before + seen.impressions.unwrap_or(0);
                    match seen.state {
                        9 => return Outcome::Done { impressions: seen.impressions.filter(|n| *n > 0) },
                        7 | 8 if withdrawn => return Outcome::Withdrawn { impressions: sides },
                        // Not by us: whoever did it there meant it.
                        7 => return Outcome::Aborted { message: "it was canceled at the printer".into() },
                        8 => return Outcome::Aborted { message: "the printer could not print it".into() },
                        _ => {
                            let stopped = seen.state == 6 || seen.reasons.iter().any(|r| r == "printer-stopped");
                            if stopped && !standing {
                                let reason = match self.probe().await {
                                    Condition::Unready { reason } => reason,
                                    Condition::Ready { .. } => "paused".to_owned(),
                                };
                                (order.report)(Progress::Stalled(reason, sides));
                            } else if !stopped && (standing || seen.impressions.is_some()) {
                                (order.report)(Progress::Going(sides));
                            }
                            standing = stopped;
                        }
                    }
                }
            }
            if withdrawn {
                tokio::time::sleep(wait).await;
            } else {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = order.withdraw.cancelled() => {}
                }
            }
            wait = (wait * 2).min(FOLLOW);
        }
    }

    async fn run(&self, order: Order) -> Outcome {
        let printed: Vec<Document> = order.job.printed().map(|(_, d)| d.clone()).collect();
        let several = printed.len() > 1;
        let mut total = 0u32;
        let mut known = true;
        for (n, (document, (_, _, piece))) in printed.iter().zip(&order.documents).enumerate() {
            let name = marked_name(&order.job, several.then_some(n));
            let seen = if order.repeat { self.find(&order.job, &name).await } else { Ok(None) };
            let id = match seen {
                Err(error) => return Outcome::Lost { reason: reason_of(&error) },
                Ok(Some(seen)) if matches!(seen.state, 3..=6 | 9) => seen.id,
                Ok(_) if order.withdraw.is_cancelled() => return Outcome::Withdrawn { impressions: total },
                Ok(_) => match self.send(&order.job, &name, document, piece).await {
                    Ok(id) => id,
                    Err(error) if n == 0 && never_sent(&error) => {
                        return Outcome::Refused { reason: reason_of(&error) };
                    }
                    Err(error) if n > 0 || error.is(Reason::DeviceAway) => match self.find(&order.job, &name).await {
                        // It may have taken it all the same, without an answer reaching us.
                        Ok(Some(seen)) if matches!(seen.state, 3..=6 | 9) => seen.id,
                        Ok(_) if n == 0 => return Outcome::Refused { reason: reason_of(&error) },
                        _ => return Outcome::Lost { reason: reason_of(&error) },
                    },
                    Err(error) if error.is(Reason::PrinterUnready) => {
                        return Outcome::Refused { reason: "paused".into() };
                    }
                    Err(error) => return Outcome::Aborted { message: error.message().to_owned() },
                },
            };
            match self.follow(id, &order, total).await {
                Outcome::Done { impressions } => {
                    known &= impressions.is_some();
                    total = total.saturating_add(impressions.unwrap_or(0));
                }
                other => return other,
            }
        }
        Outcome::Done { impressions: known.then_some(total) }
    }
}

impl Seen {
    fn of(group: &Group) -> Option<Self> {
        let reasons = group.get("job-state-reasons").map(|a| &a.values[..]).unwrap_or_default();
        Some(Self {
            id: group.int("job-id")?,
            state: group.int("job-state")?,
            reasons: reasons.iter().filter_map(|v| v.as_str()).map(str::to_owned).collect(),
            impressions: group.int("job-impressions-completed").and_then(|n| u32::try_from(n).ok()),
        })
    }
}

fn reason_of(error: &Error) -> String {
    let reason = match error {
        error if error.is(Reason::DeviceAway) => "connecting-to-device",
        error if error.is(Reason::PrinterUntrusted) => UNTRUSTED,
        _ => "other",
    };
    reason.to_owned()
}

/// The job's name with its mark; the same for the same document of the same job.
fn marked_name(job: &Job, document: Option<usize>) -> String {
    let uuid = job.uuid.simple().to_string();
    let number = document.map_or_else(String::new, |n| format!("-{}", n + 1));
    format!("{} [{}{number}]", crate::ipp::codec::cut(&job.name, 180), &uuid[..16])
}

/// What the job asks for, as attributes.
fn template(job: &Job, group: &mut Group) {
    let ticket = &job.ticket;
    if ticket.copies() > 1 {
        group.put("copies", Value::Integer(ticket.copies() as i32));
    }
    if let Some(sides) = ticket.sides {
        group.put("sides", Value::keyword(sides.word()));
    }
    if let Some(media) = &ticket.media {
        group.put("media", Value::keyword(media));
    }
    if let Some(color) = &ticket.color {
        group.put("print-color-mode", Value::keyword(color));
    }
    if let Some(quality) = ticket.quality {
        group.put("print-quality", Value::Enum(i32::from(quality)));
    }
    if let Some(orientation) = ticket.orientation {
        group.put("orientation-requested", Value::Enum(i32::from(orientation)));
    }
    if let Some(number) = ticket.number_up {
        group.put("number-up", Value::Integer(number as i32));
    }
    if !ticket.pages.is_empty() {
        let ranges = ticket.pages.iter().map(|(a, b)| Value::Range(*a as i32, (*b).min(i32::MAX as u32) as i32));
        group.put_all("page-ranges", ranges);
    }
}

impl Output for Remote {
    fn print(&self, order: Order) -> BoxFuture<'_, Outcome> {
        self.run(order).boxed()
    }

    fn probe(&self) -> BoxFuture<'_, Condition> {
        async {
            let mut request = self.request(Operation::GetPrinterAttributes);
            let wanted = ["printer-state", "printer-state-reasons", "printer-is-accepting-jobs", "queued-job-count"];
            request.group_mut(group::OPERATION).put_all("requested-attributes", wanted.map(Value::keyword));
            let answer = match self.client.ask(&request, None).await {
                Ok(answer) => answer,
                Err(error) if error.is(Reason::PrinterUntrusted) => return Condition::unready(UNTRUSTED),
                Err(_) => return Condition::unready("connecting-to-device"),
            };
            let Some(printer) = answer.group(group::PRINTER) else { return Condition::unready("other") };
            if printer.int("printer-state") == Some(5) || printer.bool("printer-is-accepting-jobs") == Some(false) {
                let reasons = printer.get("printer-state-reasons").map(|a| &a.values[..]).unwrap_or_default();
                let words: Vec<&str> = reasons.iter().filter_map(|v| v.as_str()).filter(|r| *r != "none").collect();
                // An error says more than a warning.
                let best = words.iter().find(|w| w.ends_with("-error")).or(words.first()).copied().unwrap_or("paused");
                return Condition::unready(best.chars().filter(|c| c.is_ascii_graphic()).take(60).collect::<String>());
            }
            let backlog = printer.int("queued-job-count").and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
            Condition::Ready { backlog }
        }
        .boxed()
    }
}

/// Makes the output of an `ipp:` address or a CUPS queue.
pub(crate) fn connect(target: crate::ipp::client::Target, tls: Option<Arc<rustls::ClientConfig>>) -> Remote {
    Remote::new(Client::new(target, tls))
}
