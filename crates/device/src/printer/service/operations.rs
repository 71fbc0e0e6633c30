//! From a request to its answer.

use common::error::{Error, Kind, Reason};

use super::attributes;
use super::documents;
use super::http::{Context, Rest, failure};
use super::jobs;
use super::request;
use super::subscriptions::Subscriptions;
use crate::ipp::codes::{Operation, Status, group};
use crate::ipp::value::{Attribute, Group, Message, Value};
use crate::printer::model::{Hold, Job, JobId, Right, Who};
use crate::printer::printers::{PrinterView, Printers, Verb};
use crate::printer::queue::Changes;
use crate::printer::upload::Upload;

/// What is answered; everything else is `server-error-operation-not-supported`.
pub(super) const SUPPORTED: &[Operation] = &[
    Operation::PrintJob,
    Operation::ValidateJob,
    Operation::CreateJob,
    Operation::SendDocument,
    Operation::CancelJob,
    Operation::GetJobAttributes,
    Operation::GetJobs,
    Operation::GetPrinterAttributes,
    Operation::HoldJob,
    Operation::ReleaseJob,
    Operation::RestartJob,
    Operation::PausePrinter,
    Operation::ResumePrinter,
    Operation::PurgeJobs,
    Operation::SetPrinterAttributes,
    Operation::SetJobAttributes,
    Operation::GetPrinterSupportedValues,
    Operation::CreatePrinterSubscriptions,
    Operation::CreateJobSubscriptions,
    Operation::GetSubscriptionAttributes,
    Operation::GetSubscriptions,
    Operation::RenewSubscription,
    Operation::CancelSubscription,
    Operation::GetNotifications,
    Operation::EnablePrinter,
    Operation::DisablePrinter,
    Operation::PausePrinterAfterCurrentJob,
    Operation::HoldNewJobs,
    Operation::ReleaseHeldNewJobs,
    Operation::RestartPrinter,
    Operation::ShutdownPrinter,
    Operation::StartupPrinter,
    Operation::ReprocessJob,
    Operation::CancelCurrentJob,
    Operation::SuspendCurrentJob,
    Operation::ResumeJob,
    Operation::PromoteJob,
    Operation::ScheduleJobAfter,
    Operation::CancelDocument,
    Operation::GetDocumentAttributes,
    Operation::GetDocuments,
    Operation::SetDocumentAttributes,
    Operation::CancelJobs,
    Operation::CancelMyJobs,
    Operation::ResubmitJob,
    Operation::CloseJob,
    Operation::IdentifyPrinter,
];

/// Jobs that a list gives at most.
const LISTED: usize = 1000;

/// Why a request is refused.
type Refused = (Status, String);

fn refuse<T>(status: Status, words: impl Into<String>) -> Result<T, Refused> {
    Err((status, words.into()))
}

/// The status for an error of ours.
fn status_of(error: &Error) -> Refused {
    let words = error.message().to_owned();
    let status = match error.kind() {
        _ if error.is(Reason::PrintQuotaExceeded) => Status::AccountLimitReached,
        _ if error.is(Reason::QueueLimit) => Status::TooManyJobs,
        _ if error.is(Reason::DiskFull) => Status::TemporaryError,
        _ if error.is(Reason::PrintFormatUnknown) => Status::DocumentFormatNotSupported,
        _ if error.is(Reason::PrintJobEnded) => Status::NotPossible,
        _ if error.is(Reason::PrinterUnready) => Status::NotAcceptingJobs,
        _ if error.is(Reason::PinWrong) => Status::NotAuthorized,
        _ if error.detail("field") == Some("compression") => Status::CompressionError,
        Kind::ResourceExhausted => Status::Busy,
        Kind::NotFound => Status::NotFound,
        Kind::PermissionDenied | Kind::Unauthenticated => Status::NotAuthorized,
        Kind::FailedPrecondition | Kind::Aborted => Status::NotPossible,
        Kind::InvalidArgument | Kind::OutOfRange => Status::BadRequest,
        Kind::Unavailable => Status::ServiceUnavailable,
        _ => Status::InternalError,
    };
    (status, words)
}

fn ours(error: Error) -> Refused {
    status_of(&error)
}

/// A request whose frame is in order: who asks what of which printer.
struct Ask<'a> {
    context: &'a Context,
    message: &'a Message,
    operation: Operation,
    printer: String,
    who: Who,
    manage: bool,
    job: Option<JobId>,
}

/// What goes into an answer besides its frame.
struct Reply {
    status: Status,
    operation: Vec<Attribute>,
    groups: Vec<Group>,
}

impl Reply {
    fn ok() -> Self {
        Self { status: Status::Ok, operation: Vec::new(), groups: Vec::new() }
    }

    fn with(groups: Vec<Group>) -> Self {
        Self { groups, ..Self::ok() }
    }
}

/// Answers a request.
pub(super) async fn answer(context: &Context, message: &Message, rest: &mut Rest) -> Message {
    let replied = match frame(context, message) {
        Ok(ask) => ask.perform(rest).await,
        Err(refused) => Err(refused),
    };
    match replied {
        Ok(reply) => {
            let mut answer = Message::answer(reply.status, message.version, message.request_id);
            answer.groups[0].attributes.extend(reply.operation);
            answer.groups.extend(reply.groups);
            answer
        }
        Err((status, words)) => failure(status, message.version, message.request_id, &words),
    }
}

/// Checks what every request must have (RFC 8011 section 4.1) and finds out what it is about.
fn frame<'a>(context: &'a Context, message: &'a Message) -> Result<Ask<'a>, Refused> {
    if !matches!(message.version, (1 | 2, _)) {
        return refuse(Status::VersionNotSupported, "versions 1.0 to 2.2 are spoken here");
    }
    if message.request_id <= 0 {
        return refuse(Status::BadRequest, "request-id begins at 1");
    }
    let Some(operation) = message.groups.first().filter(|g| g.tag == group::OPERATION) else {
        return refuse(Status::BadRequest, "the first group is not that of operation attributes");
    };
    let name = |n: usize| operation.attributes.get(n).map(|a| a.name.as_str());
    if name(0) != Some("attributes-charset") || name(1) != Some("attributes-natural-language") {
        return refuse(Status::BadRequest, "attributes-charset and attributes-natural-language come first");
    }
    match operation.value("attributes-charset") {
        Some(Value::Charset(c)) if c.eq_ignore_ascii_case("utf-8") || c.eq_ignore_ascii_case("us-ascii") => {}
        Some(Value::Charset(_)) => return refuse(Status::CharsetNotSupported, "the charset is utf-8"),
        _ => return refuse(Status::BadRequest, "attributes-charset is no charset"),
    }
    if !matches!(operation.value("attributes-natural-language"), Some(Value::Language(_))) {
        return refuse(Status::BadRequest, "attributes-natural-language is no language");
    }
    let (printer, job) = target(context, operation)?;
    let stated = operation.str("requesting-user-name").unwrap_or_default();
    let who = context.shared.access.who(&context.peer, stated);
    let allows = |right| context.shared.access.allows(&who, &context.peer, &printer, right);
    if !allows(Right::See) || context.shared.printers.get(&printer).is_err() {
        return refuse(Status::NotFound, "there is no such printer");
    }
    let Some(operation) = message.operation().filter(|o| SUPPORTED.contains(o)) else {
        return refuse(Status::OperationNotSupported, "the operation is not supported");
    };
    let manage = allows(Right::Manage);
    let granted = match needs(operation) {
        Right::See => true,
        Right::Print => manage || allows(Right::Print),
        Right::Manage => manage,
    };
    if needs(operation) != Right::See {
        context.shared.access.decided(&who, &context.peer, &printer, operation, granted);
    }
    if !granted {
        return refuse(Status::NotAuthorized, "you do not have the right to do this");
    }
    Ok(Ask { context, message, operation, printer, who, manage, job })
}

/// What right an operation needs at least; whose a job is, is asked besides.
fn needs(operation: Operation) -> Right {
    match operation {
        Operation::GetJobAttributes
        | Operation::GetJobs
        | Operation::GetPrinterAttributes
        | Operation::GetPrinterSupportedValues
        | Operation::CreatePrinterSubscriptions
        | Operation::CreateJobSubscriptions
        | Operation::GetSubscriptionAttributes
        | Operation::GetSubscriptions
        | Operation::RenewSubscription
        | Operation::CancelSubscription
        | Operation::GetNotifications
        | Operation::GetDocumentAttributes
        | Operation::GetDocuments => Right::See,
        Operation::PausePrinter
        | Operation::ResumePrinter
        | Operation::PurgeJobs
        | Operation::SetPrinterAttributes
        | Operation::EnablePrinter
        | Operation::DisablePrinter
        | Operation::PausePrinterAfterCurrentJob
        | Operation::HoldNewJobs
        | Operation::ReleaseHeldNewJobs
        | Operation::RestartPrinter
        | Operation::ShutdownPrinter
        | Operation::StartupPrinter
        | Operation::CancelCurrentJob
        | Operation::SuspendCurrentJob
        | Operation::PromoteJob
        | Operation::ScheduleJobAfter
        | Operation::CancelJobs => Right::Manage,
        _ => Right::Print,
    }
}

/// The printer and job that a request is about.
fn target(context: &Context, operation: &Group) -> Result<(String, Option<JobId>), Refused> {
    let id = operation.int("job-id").map(|n| u32::try_from(n).ok().filter(|n| *n > 0).map(JobId));
    let job_uri = operation.str("job-uri").map(path_of);
    let printer_uri = operation.str("printer-uri").map(path_of);
    let (path, from_uri) = match (printer_uri, job_uri) {
        (Some(path), _) => (path, None),
        (None, Some(path)) => {
            let job = path.strip_prefix("/jobs/").and_then(|n| n.parse().ok()).map(JobId);
            let Some(job) = job else { return refuse(Status::NotFound, "there is no such job") };
            ("", Some(job))
        }
        (None, None) => return refuse(Status::BadRequest, "printer-uri or job-uri is missing"),
    };
    let job = match (from_uri, id) {
        (Some(job), _) | (None, Some(Some(job))) => Some(job),
        (None, Some(None)) => return refuse(Status::NotFound, "there is no such job"),
        (None, None) => None,
    };
    if from_uri.is_some() {
        let Some(found) = job.and_then(|j| context.shared.printers.job(j).ok()) else {
            return refuse(Status::NotFound, "there is no such job");
        };
        if context.only.as_deref().is_some_and(|only| only != found.printer) {
            return refuse(Status::NotFound, "there is no such job");
        }
        return Ok((found.printer, job));
    }
    // A URI without a path means the printer that the request was sent to.
    let printer = printer_of(context, if path == "/" { &context.path } else { path });
    printer.map(|p| (p, job)).ok_or((Status::NotFound, "there is no such printer".into()))
}

/// The path of a URI.
fn path_of(uri: &str) -> &str {
    let after = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let path = after.find('/').map_or("/", |at| &after[at..]);
    path.split(['?', '#']).next().unwrap_or("/")
}

fn printer_of(context: &Context, path: &str) -> Option<String> {
    let named = path.strip_prefix("/ipp/print/").or_else(|| path.strip_prefix("/printers/"));
    let name = match (named, context.only.as_deref()) {
        (Some(name), None) => name.to_owned(),
        (Some(name), Some(only)) if name == only => name.to_owned(),
        (None, Some(only)) if path == "/ipp/print" => only.to_owned(),
        (None, None) if path == "/ipp/print" => {
            // Without a name it is the only printer that there is.
            let mut all = context.shared.printers.list().into_iter();
            let first = all.next()?;
            if all.next().is_some() {
                return None;
            }
            first.config.name
        }
        _ => return None,
    };
    Some(name)
}

impl Ask<'_> {
    fn printers(&self) -> &Printers {
        &self.context.shared.printers
    }

    fn view(&self) -> Result<PrinterView, Refused> {
        self.printers().get(&self.printer).map_err(ours)
    }

    fn operation_group(&self) -> &Group {
        &self.message.groups[0]
    }

    fn job_id(&self) -> Result<JobId, Refused> {
        self.job.ok_or((Status::BadRequest, "job-id is missing".into()))
    }

    /// A job of this printer.
    fn job(&self) -> Result<Job, Refused> {
        let job = self.printers().job(self.job_id()?).map_err(ours)?;
        if job.printer == self.printer { Ok(job) } else { refuse(Status::NotFound, "there is no such job") }
    }

    fn sees(&self, job: &Job) -> bool {
        self.manage || job.owner.same(&self.who)
    }

    async fn perform(&self, rest: &mut Rest) -> Result<Reply, Refused> {
        let printers = self.printers();
        let name = self.printer.as_str();
        match self.operation {
            Operation::PrintJob => self.print_job(rest).await,
            Operation::ValidateJob => self.validate(),
            Operation::CreateJob => self.create_job().await,
            Operation::SendDocument => self.send_document(rest).await,
            Operation::GetPrinterAttributes => self.printer_attributes(),
            Operation::GetPrinterSupportedValues => Ok(Reply::with(vec![Group::new(group::PRINTER)])),
            Operation::GetJobAttributes => self.job_attributes(),
            Operation::GetJobs => self.list_jobs(),
            Operation::CancelJob => self.verb(Verb::Cancel).await,
            Operation::HoldJob => self.verb(Verb::Hold(self.hold()?)).await,
            Operation::ReleaseJob | Operation::ResumeJob => self.release().await,
            Operation::CloseJob => self.verb(Verb::Close).await,
            Operation::PromoteJob => self.verb(Verb::Promote).await,
            Operation::ScheduleJobAfter if self.operation_group().get("predecessor-job-id").is_none() => {
                self.verb(Verb::Promote).await
            }
            Operation::SetJobAttributes => self.set_job().await,
            Operation::RestartJob | Operation::ReprocessJob | Operation::ResubmitJob => {
                self.job()?;
                refuse(Status::NotPossible, "documents are wiped when a job ends, so it cannot be printed again")
            }
            Operation::ScheduleJobAfter | Operation::SuspendCurrentJob => {
                refuse(Status::NotPossible, "jobs are ordered by promotion and priority")
            }
            Operation::CancelCurrentJob => self.cancel_current().await,
            Operation::CancelJobs | Operation::PurgeJobs => self.cancel_many(true).await,
            Operation::CancelMyJobs => self.cancel_many(false).await,
            Operation::PausePrinter | Operation::PausePrinterAfterCurrentJob => {
                printers.pause(name, true).await.map(|()| Reply::ok()).map_err(ours)
            }
            Operation::ResumePrinter | Operation::RestartPrinter => {
                printers.pause(name, false).await.map(|()| Reply::ok()).map_err(ours)
            }
            Operation::EnablePrinter => printers.accept(name, true).await.map(|()| Reply::ok()).map_err(ours),
            Operation::DisablePrinter => printers.accept(name, false).await.map(|()| Reply::ok()).map_err(ours),
            Operation::ShutdownPrinter => self.run(false).await,
            Operation::StartupPrinter => self.run(true).await,
            Operation::HoldNewJobs => printers.hold_new(name, true).await.map(|()| Reply::ok()).map_err(ours),
            Operation::ReleaseHeldNewJobs => printers.hold_new(name, false).await.map(|()| Reply::ok()).map_err(ours),
            Operation::IdentifyPrinter => {
                tracing::info!(printer = name, "the printer is asked to identify itself");
                Ok(Reply::ok())
            }
            Operation::GetDocuments => self.documents(),
            Operation::GetDocumentAttributes => self.document_attributes(),
            Operation::CancelDocument => self.verb(Verb::CancelDocument(self.document_number()?)).await,
            Operation::SetDocumentAttributes | Operation::SetPrinterAttributes => {
                refuse(Status::AttributesNotSettable, "these attributes are not set by clients")
            }
            _ => self.subscriptions(),
        }
    }

    /// The answer to what made or changed a job.
    fn about(&self, job: &Job, unsupported: Vec<Attribute>) -> Reply {
        let mut reply = Reply::ok();
        if !unsupported.is_empty() {
            reply.status = Status::OkIgnored;
            reply.groups.push(Group { tag: group::UNSUPPORTED, attributes: unsupported });
        }
        reply.groups.push(jobs::short(self.context, job));
        reply
    }

    async fn receive(&self, mut upload: Upload, rest: &mut Rest) -> Result<Job, Refused> {
        loop {
            match rest.next().await {
                Ok(Some(part)) => upload.write(&part).await.map_err(ours)?,
                Ok(None) => break,
                Err(()) => return refuse(Status::Timeout, "the document stopped in the middle"),
            }
        }
        upload.finish().await.map_err(ours)
    }

    async fn print_job(&self, rest: &mut Rest) -> Result<Reply, Refused> {
        let asked = request::job(self.message, &self.view()?.config)?;
        let document = request::document(self.message)?;
        let upload =
            self.printers().submit(&self.printer, &self.who, asked.job, document, rest.expected()).map_err(ours)?;
        let job = self.receive(upload, rest).await?;
        Ok(self.about(&job, asked.unsupported))
    }

    fn validate(&self) -> Result<Reply, Refused> {
        let asked = request::job(self.message, &self.view()?.config)?;
        let document = request::document(self.message)?;
        self.printers().validate(&self.printer, &self.who, &asked.job, &document).map_err(ours)?;
        let mut reply = Reply::ok();
        if !asked.unsupported.is_empty() {
            reply.status = Status::OkIgnored;
            reply.groups.push(Group { tag: group::UNSUPPORTED, attributes: asked.unsupported });
        }
        Ok(reply)
    }

    async fn create_job(&self) -> Result<Reply, Refused> {
        let asked = request::job(self.message, &self.view()?.config)?;
        let job = self.printers().create(&self.printer, &self.who, asked.job).await.map_err(ours)?;
        Ok(self.about(&job, asked.unsupported))
    }

    async fn send_document(&self, rest: &mut Rest) -> Result<Reply, Refused> {
        let Some(last) = self.operation_group().bool("last-document") else {
            return refuse(Status::BadRequest, "last-document is missing");
        };
        let job = self.job()?;
        let document = request::document(self.message)?;
        let added = self.printers().add_document(job.id, &self.who, self.manage, document, last, rest.expected());
        let upload = added.map_err(ours)?;
        let job = self.receive(upload, rest).await?;
        Ok(self.about(&job, Vec::new()))
    }

    fn printer_attributes(&self) -> Result<Reply, Refused> {
        let all = attributes::printer(self.context, &self.view()?);
        let requested = request::requested(self.operation_group());
        let group = Group { tag: group::PRINTER, attributes: attributes::chosen(all, requested.as_deref()) };
        Ok(Reply::with(vec![group]))
    }

    fn job_attributes(&self) -> Result<Reply, Refused> {
        let job = self.job()?;
        let requested = request::requested(self.operation_group());
        Ok(Reply::with(vec![jobs::job(self.context, &job, self.sees(&job), requested.as_deref(), false)]))
    }

    fn list_jobs(&self) -> Result<Reply, Refused> {
        let operation = self.operation_group();
        let which = operation.str("which-jobs").unwrap_or("not-completed");
        let Some(set) = jobs::which(which) else {
            return refuse(Status::AttributesNotSupported, "which-jobs has a value that is not supported");
        };
        let mine = operation.bool("my-jobs").unwrap_or(false);
        let limit = operation.int("limit").and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        let most = limit.unwrap_or(LISTED).min(LISTED);
        let first = operation.int("first-job-id").and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        let wanted = |j: &Job| set(j) && j.id.0 >= first && (!mine || j.owner.same(&self.who));
        let found = self.printers().jobs(Some(&self.printer), wanted, most).map_err(ours)?;
        let requested = request::requested(operation);
        let show = |j: &Job| jobs::job(self.context, j, self.sees(j), requested.as_deref(), true);
        Ok(Reply::with(found.iter().map(show).collect()))
    }

    fn hold(&self) -> Result<Hold, Refused> {
        match self.operation_group().str("job-hold-until") {
            None | Some("indefinite") => Ok(Hold::Indefinite),
            _ => refuse(Status::AttributesNotSupported, "job-hold-until is indefinite here"),
        }
    }

    async fn verb(&self, verb: Verb) -> Result<Reply, Refused> {
        let job = self.job()?;
        self.printers().control(job.id, &self.who, self.manage, verb).await.map_err(ours)?;
        Ok(Reply::ok())
    }

    async fn release(&self) -> Result<Reply, Refused> {
        let pin = match self.operation_group().value("job-password") {
            Some(Value::OctetString(bytes)) => std::str::from_utf8(bytes).ok().map(str::to_owned),
            _ => None,
        };
        match pin {
            // Whoever knows the PIN stands before the printer.
            Some(pin) => {
                let job = self.job()?;
                self.printers().release_by_pin(job.id, &pin).await.map_err(ours)?;
                Ok(Reply::ok())
            }
            None => self.verb(Verb::Release(None)).await,
        }
    }

    async fn set_job(&self) -> Result<Reply, Refused> {
        let Some(wanted) = self.message.group(group::JOB) else {
            return refuse(Status::BadRequest, "there are no attributes to set");
        };
        let mut changes = Changes::default();
        let mut not_settable = Vec::new();
        for attribute in &wanted.attributes {
            let first = attribute.first();
            let number = |low, high| first.and_then(Value::as_int).filter(|n| (low..=high).contains(n));
            let done = match attribute.name.as_str() {
                "copies" => number(1, 999).map(|n| changes.copies = Some(n as u32)),
                "job-priority" => number(1, 100).map(|n| changes.priority = Some(n as u8)),
                "job-name" => {
                    first.and_then(Value::as_str).map(|n| changes.name = Some(crate::printer::model::clean(n, 255)))
                }
                "job-hold-until" => match first.and_then(Value::as_str) {
                    Some("no-hold") => {
                        changes.hold = Some(None);
                        Some(())
                    }
                    Some("indefinite") => {
                        changes.hold = Some(Some(Hold::Indefinite));
                        Some(())
                    }
                    _ => None,
                },
                _ => None,
            };
            if done.is_none() {
                not_settable.push(attribute.name.as_str());
            }
        }
        if !not_settable.is_empty() {
            return refuse(Status::AttributesNotSettable, format!("not settable: {}", not_settable.join(", ")));
        }
        self.verb(Verb::Alter(changes)).await
    }

    async fn cancel_current(&self) -> Result<Reply, Refused> {
        let running = |j: &Job| matches!(j.state.word(), "processing" | "stopped");
        let current = self.printers().jobs(Some(&self.printer), running, 1).map_err(ours)?;
        let wanted = self.job.or(current.first().map(|j| j.id));
        let Some(id) = wanted.filter(|id| current.iter().any(|j| j.id == *id)) else {
            return refuse(Status::NotPossible, "no such job is being printed");
        };
        self.printers().control(id, &self.who, self.manage, Verb::Cancel).await.map_err(ours)?;
        Ok(Reply::ok())
    }

    /// Cancels the jobs that are named, or all: everybody's or the caller's own.
    async fn cancel_many(&self, everybody: bool) -> Result<Reply, Refused> {
        let Some(ids) = self.operation_group().get("job-ids") else {
            self.printers().cancel_all(&self.printer, &self.who, everybody).await.map_err(ours)?;
            return Ok(Reply::ok());
        };
        let ids: Vec<JobId> = ids
            .values
            .iter()
            .filter_map(Value::as_int)
            .filter_map(|n| u32::try_from(n).ok())
            .map(JobId)
            .take(1000)
            .collect();
        // All or nothing (PWG 5100.11 section 5.2).
        for id in &ids {
            let job = self.printers().job(*id).map_err(ours)?;
            if job.printer != self.printer {
                return refuse(Status::NotFound, "there is no such job");
            }
            if !(everybody || job.owner.same(&self.who)) {
                return refuse(Status::NotAuthorized, "a job belongs to somebody else");
            }
            if job.state.is_over() {
                return refuse(Status::NotPossible, "a job is over already");
            }
        }
        for id in ids {
            self.printers().control(id, &self.who, everybody, Verb::Cancel).await.map_err(ours)?;
        }
        Ok(Reply::ok())
    }

    async fn run(&self, up: bool) -> Result<Reply, Refused> {
        self.printers().accept(&self.printer, up).await.map_err(ours)?;
        self.printers().pause(&self.printer, !up).await.map_err(ours)?;
        Ok(Reply::ok())
    }

    fn document_number(&self) -> Result<usize, Refused> {
        let number = self.operation_group().int("document-number").and_then(|n| usize::try_from(n).ok());
        number.filter(|n| *n > 0).map(|n| n - 1).ok_or((Status::BadRequest, "document-number is missing".into()))
    }

    fn documents(&self) -> Result<Reply, Refused> {
        let job = self.job()?;
        let requested = request::requested(self.operation_group());
        let show = |n| documents::document(self.context, &job, n, self.sees(&job), requested.as_deref());
        Ok(Reply::with((0..job.documents.len()).filter_map(show).collect()))
    }

    fn document_attributes(&self) -> Result<Reply, Refused> {
        let job = self.job()?;
        let requested = request::requested(self.operation_group());
        let number = self.document_number()?;
        let found = documents::document(self.context, &job, number, self.sees(&job), requested.as_deref());
        found.map(|g| Reply::with(vec![g])).ok_or((Status::NotFound, "there is no such document".into()))
    }

    fn subscriptions(&self) -> Result<Reply, Refused> {
        let operation = self.operation_group();
        let now = self.printers().now_ms();
        let (who, manage) = (&self.who, self.manage);
        let id = operation.int("notify-subscription-id");
        let newest = *self.printers().watch().borrow();
        let changes =
            if self.operation == Operation::GetNotifications { self.printers().changes(0) } else { Vec::new() };
        let mut all = self.context.shared.subscriptions.lock();
        match self.operation {
            Operation::CreatePrinterSubscriptions | Operation::CreateJobSubscriptions => {
                all.create(self.message, &self.printer, who, now, newest).map(Reply::with)
            }
            Operation::GetSubscriptionAttributes => all.get(id, who, manage, now).map(|g| Reply::with(vec![g])),
            Operation::GetSubscriptions => Ok(Reply::with(all.list(&self.printer, who, manage, now))),
            Operation::RenewSubscription => {
                let lease = self.message.group(group::SUBSCRIPTION).and_then(|g| g.int("notify-lease-duration"));
                let lease = lease.or_else(|| operation.int("notify-lease-duration"));
                all.renew(id, lease, who, manage, now).map(|g| Reply::with(vec![g]))
            }
            Operation::CancelSubscription => all.cancel(id, who, manage, now).map(|()| Reply::ok()),
            Operation::GetNotifications => {
                let groups = all.events(operation, who, manage, now, &changes)?;
                Ok(Reply { operation: vec![Subscriptions::interval()], ..Reply::with(groups) })
            }
            _ => refuse(Status::OperationNotSupported, "the operation is not supported"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_from_uris() {
        assert_eq!(path_of("ipp://host:631/ipp/print"), "/ipp/print");
        assert_eq!(path_of("ipp://host"), "/");
        assert_eq!(path_of("ipps://[::1]:631/printers/a?x#y"), "/printers/a");
        assert_eq!(path_of("nonsense"), "/");
    }
}
