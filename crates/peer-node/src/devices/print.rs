//! Printers of this machine, for other machines and for its own person.
//!
//! Queue, spool and accounting are in `crates/device`; here are rights and the translation. Whose a job is comes from the
//! connection. One's own jobs are seen and changed with the right to print; those of others with *manage*.

use super::book::Entry;
use super::grpc::Asked;
use super::{Devices, access};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::model::{DeviceId, EntryName, Pin, Right, fold};
use device::audit::Line;
use device::model::Kind;
use device::printer::model::{
    Allowance, Capabilities, Destination, Hold, Job, JobId, JobState, OutputConfig, Period, PrinterConfig, QueueLimits,
    Sides, Ticket, Who,
};
use device::printer::queue::Changes;
use device::printer::{DocumentRequest, JobRequest, PrinterView, Verb};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use proto::peer::v1 as wire;
use std::path::PathBuf;
use std::sync::Arc;
use uuid::Uuid;

/// Jobs in one answer unless the caller says.
const JOBS: usize = 100;
/// Most jobs in one answer.
const JOBS_MAX: usize = 1_000;
/// Printers behind one queue.
const MEMBERS_MAX: usize = 16;

/// A job's state as IPP names it.
fn state_word(state: JobState) -> &'static str {
    match state {
        JobState::Pending => "pending",
        JobState::Held => "pending-held",
        JobState::Processing => "processing",
        JobState::Stopped => "processing-stopped",
        JobState::Canceled => "canceled",
        JobState::Aborted => "aborted",
        JobState::Completed => "completed",
    }
}

fn timestamp(ms: u64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: (ms / 1_000) as i64, nanos: (ms % 1_000 * 1_000_000) as i32 }
}

fn field(name: &'static str, what: &str) -> Error {
    Error::new(Reason::FieldInvalid, what.to_owned()).with("field", name)
}

/// What a job asks of its printer.
///
/// # Errors
/// FIELD_INVALID.
fn ticket_of(header: &wire::PrintHeader) -> Result<Ticket> {
    if header.copies > 999 {
        return Err(field("copies", "a job has at most 999 copies"));
    }
    let sides = match header.sides.as_str() {
        "" => None,
        word => Some(Sides::of(word).ok_or_else(|| field("sides", "the sides are no keyword of IPP"))?),
    };
    let color = match header.color_mode.as_str() {
        "" => None,
        word @ ("color" | "monochrome") => Some(word.to_owned()),
        _ => return Err(field("color_mode", "the colour mode is neither color nor monochrome")),
    };
    let media = (!header.media.is_empty()).then(|| header.media.clone());
    Ok(Ticket { copies: header.copies, sides, color, media, pages: pages_of(&header.pages)?, ..Ticket::default() })
}

/// "1-3,7" as ranges.
pub(super) fn pages_of(text: &str) -> Result<Vec<(u32, u32)>> {
    let wrong = || field("pages", "the pages are not written like 1-3,7");
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    if text.len() > 1_000 {
        return Err(wrong());
    }
    let range = |part: &str| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let low: u32 = low.trim().parse().map_err(|_| wrong())?;
        let high: u32 = if high.trim().is_empty() { u32::MAX } else { high.trim().parse().map_err(|_| wrong())? };
        if low == 0 || high < low { Err(wrong()) } else { Ok((low, high)) }
    };
    text.split(',').map(range).collect()
}

/// The printers of a group.
fn members_of(entry: &Entry) -> &[String] {
    use wire::printer_output::Kind as Output;
    let Some(wire::share_device_request::Kind::Printer(share)) = &entry.share.kind else { return &[] };
    match share.output.as_ref().and_then(|o| o.kind.as_ref()) {
        Some(Output::Group(group)) => &group.members,
        _ => &[],
    }
}

impl Devices {
    /// Where a printer's pages go, as the person named it.
    fn outputs_of(&self, entry: &Entry, share: &wire::PrinterShare) -> Result<Vec<OutputConfig>> {
        use wire::printer_output::Kind as Output;
        let invalid = |what: &str| Error::new(Reason::ResourceInvalid, what.to_owned());
        let mut capabilities = Capabilities { color: share.color, duplex: share.duplex, ..Capabilities::default() };
        if !share.formats.is_empty() {
            capabilities.formats = share.formats.clone();
        }
        let destination = match share.output.as_ref().and_then(|o| o.kind.as_ref()) {
            Some(Output::Folder(path)) => {
                let path = PathBuf::from(path);
                if !path.is_absolute() {
                    return Err(invalid("the folder is not an absolute path"));
                }
                Destination::Folder { path, pages_per_minute: None }
            }
            Some(Output::CupsQueue(queue)) => Destination::Cups { queue: queue.clone(), server: None },
            Some(Output::Uri(uri)) => Destination::Ipp { uri: uri.clone(), trust: super::trust::of_share(share)? },
            Some(Output::Group(group)) => return self.group_outputs(entry, &group.members),
            None => return Err(invalid("it is not said where the pages go")),
        };
        Ok(vec![OutputConfig { name: entry.name.clone(), destination, capabilities }])
    }

    /// A group prints where its members print, with what each of them can do.
    fn group_outputs(&self, entry: &Entry, members: &[String]) -> Result<Vec<OutputConfig>> {
        if members.is_empty() || members.len() > MEMBERS_MAX {
            return Err(Error::new(Reason::ResourceInvalid, "a group has 1 to 16 printers"));
        }
        let mut outputs = Vec::new();
        for member in members {
            let name = EntryName::new(member.trim_start_matches("printers/"))?;
            let known = self.0.book.get(Kind::Printer, name.as_str());
            let known = known.ok_or_else(|| access::unknown(member))?;
            let (name, group) = (&known.name, !members_of(&known).is_empty());
            let view = self.0.printers.get(name)?;
            if group || view.config.outputs.len() != 1 || fold(name) == fold(&entry.name) {
                return Err(Error::new(Reason::ResourceInvalid, format!("{member} is itself a group"))
                    .fix_is("name single printers of this machine"));
            }
            outputs.extend(view.config.outputs.into_iter().map(|o| OutputConfig { name: name.clone(), ..o }));
        }
        Ok(outputs)
    }

    /// Opens a printer of this machine, or changes it; jobs, quotas and use stay.
    ///
    /// # Errors
    /// RESOURCE_INVALID; RESOURCE_REMOTE for a new output that is a printer of another node; disk errors.
    pub(super) async fn open_printer(
        &self,
        entry: &Entry,
        share: &wire::PrinterShare,
        shared: Option<&Entry>,
    ) -> Result<()> {
        let known = shared.and_then(|s| match &s.share.kind {
            Some(wire::share_device_request::Kind::Printer(p)) => Some(&p.output),
            _ => None,
        });
        if known != Some(&share.output) {
            super::onward::refuse(share).await?;
        }
        let before = self.0.printers.get(&entry.name).ok().map(|v| v.config);
        let config = PrinterConfig {
            name: entry.name.clone(),
            uuid: before.as_ref().map_or_else(Uuid::new_v4, |b| b.uuid),
            info: entry.share.description.clone(),
            location: share.location.clone(),
            geo: None,
            organization: String::new(),
            outputs: self.outputs_of(entry, share)?,
            quotas: before.as_ref().map(|b| b.quotas.clone()).unwrap_or_default(),
            limits: QueueLimits { bytes: self.0.ipp.spool_limit(), ..before.map(|b| b.limits).unwrap_or_default() },
        };
        self.0.printers.put(config).await
    }

    /// The first group that prints on a printer of this machine.
    pub(super) fn group_with(&self, printer: &Entry) -> Option<Arc<Entry>> {
        self.groups_with(printer).into_iter().next()
    }

    fn groups_with(&self, printer: &Entry) -> Vec<Arc<Entry>> {
        if printer.kind != Kind::Printer {
            return Vec::new();
        }
        let key = fold(&printer.name);
        let is_in = |e: &Arc<Entry>| members_of(e).iter().any(|m| fold(m.trim_start_matches("printers/")) == key);
        self.0.book.all().into_iter().filter(is_in).collect()
    }

    /// Groups print where their members print now.
    pub(super) async fn refresh_groups(&self, printer: &Entry) {
        for group in self.groups_with(printer) {
            let Some(wire::share_device_request::Kind::Printer(share)) = &group.share.kind else { continue };
            if let Err(error) = self.open_printer(&group, share, Some(&group)).await {
                let problem = super::remote::own_problem(&group.local_name(), &error);
                self.0.problems.lock().insert(group.local_name(), problem);
            }
        }
    }

    /// Removes a printer; refused while jobs of it wait, unless forced.
    pub(super) async fn close_printer(&self, name: &str, force: bool) -> Result<()> {
        let view = match self.0.printers.get(name) {
            Err(error) if error.is(Reason::ResourceUnknown) => return Ok(()),
            view => view?,
        };
        if view.jobs > 0 && !force {
            return Err(Error::new(Reason::ResourceBusy, format!("{} jobs wait for the printer", view.jobs))
                .fix_is("wait until they are printed, or unshare it with --force, which cancels them"));
        }
        self.note_pulled(name).await?;
        self.0.printers.remove(name).await
    }

    /// What the printer shows of itself to this caller.
    pub(super) fn printer_words(
        &self,
        entry: &Entry,
        caller: &DeviceId,
    ) -> Result<(String, String, wire::PrinterDetail)> {
        let view = self.0.printers.get(&entry.name)?;
        let who = self.printing(caller)?;
        let (used, waiting, allowed) = self.0.printers.usage(&entry.name, &who)?;
        let left = |most: Option<u64>, used: u64, waiting: u64| most.map(|m| m.saturating_sub(used + waiting));
        let any = |f: fn(&Capabilities) -> bool| view.config.outputs.iter().any(|o| f(&o.capabilities));
        let mut formats: Vec<String> =
            view.config.outputs.iter().flat_map(|o| o.capabilities.formats.iter().cloned()).collect();
        formats.sort();
        formats.dedup();
        let group = view.config.outputs.len() > 1 || view.config.outputs.iter().any(|o| o.name != entry.name);
        let detail = wire::PrinterDetail {
            job_count: u32::try_from(view.jobs).unwrap_or(u32::MAX),
            formats,
            color: any(|c| c.color),
            duplex: any(|c| c.duplex),
            uris: self.uris_of(entry),
            location: view.config.location.clone(),
            sheets_left: left(allowed.sheets, used.sheets, waiting.0),
            bytes_left: left(allowed.bytes, used.bytes, waiting.1),
            members: if group { view.config.outputs.iter().map(|o| o.name.clone()).collect() } else { Vec::new() },
        };
        let reasons = reasons_of(&view);
        Ok((view.state.word().to_owned(), reasons, detail))
    }

    fn printing(&self, caller: &DeviceId) -> Result<Who> {
        access::caller(&*self.0.roster, caller).map(Who::member)
    }

    /// A printer that the caller may use like this: its plain name, who the caller is, whether it may manage.
    fn printer(
        &self,
        caller: &DeviceId,
        device: &str,
        right: Right,
        verb: &'static str,
    ) -> Result<(String, Who, bool)> {
        let (entry, who) = self.allowed(caller, device, right, verb)?;
        if entry.kind != Kind::Printer {
            return Err(Error::new(Reason::ResourceInvalid, format!("{device} is no printer")));
        }
        let manages = access::right_of(&*self.0.roster, caller, &entry) == Some(Right::Manage);
        Ok((entry.name.clone(), Who::member(who), manages))
    }

    /// The address of a printer of this machine.
    fn printer_address(&self, name: &str) -> String {
        let entry = self.0.book.get(Kind::Printer, name);
        entry.map_or_else(|| format!("printers/{name}"), |e| self.address_of(&e))
    }

    pub(super) fn wire_job(&self, job: &Job) -> wire::PrintJob {
        self.wire_job_at(self.printer_address(&job.printer), job)
    }

    /// The same of many jobs of a printer: its address is looked up once.
    fn wire_job_at(&self, printer: String, job: &Job) -> wire::PrintJob {
        wire::PrintJob {
            job_id: job.id.0.into(),
            printer,
            job_name: job.name.clone(),
            person: job.owner.caller.person.clone(),
            machine: job.owner.caller.machine.clone(),
            state: state_word(job.state).to_owned(),
            state_reason: if job.message.is_empty() { job.reason.clone() } else { job.message.clone() },
            size_bytes: job.documents.iter().map(|d| d.bytes).sum(),
            sheets: job.sheets.into(),
            priority: job.priority.into(),
            create_time: Some(timestamp(job.created_ms)),
            end_time: job.ended_ms.map(timestamp),
            position: u32::try_from(self.0.printers.intervening(job)).unwrap_or(u32::MAX),
            format: job.documents.first().map(|d| d.format.clone()).unwrap_or_default(),
            needs_pin: job.pin.is_some() && job.state == JobState::Held,
        }
    }

    /// `Print`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, ACCESS_DENIED, FIELD_INVALID; those of submitting.
    pub(super) async fn print(
        &self,
        caller: &DeviceId,
        header: wire::PrintHeader,
        mut data: Asked<Bytes>,
    ) -> Result<wire::PrintJob> {
        let (name, who, _) = self.printer(caller, &header.device, Right::Write, "print")?;
        let printed = self.print_as(caller, &name, &who, &header, &mut data).await;
        match &printed {
            Ok(job) => {
                let detail = format!("job {}", job.job_id);
                self.0.audit.note(Line::granted(&who.caller, &header.device, "print").with_detail(detail));
            }
            Err(error) => self.0.audit.note(Line::refused(&who.caller, &header.device, "print", error)),
        }
        self.changed();
        printed
    }

    async fn print_as(
        &self,
        caller: &DeviceId,
        name: &str,
        who: &Who,
        header: &wire::PrintHeader,
        data: &mut Asked<Bytes>,
    ) -> Result<wire::PrintJob> {
        self.0.audit.admit()?;
        let _permit = self.permit(caller)?;
        let ticket = ticket_of(header)?;
        if header.priority > 100 {
            return Err(field("priority", "a priority is 1 to 100"));
        }
        if !header.pin.is_empty() && !Pin::is_good(&header.pin) {
            return Err(field("pin", "a PIN has 4 to 32 characters"));
        }
        let uuid = match header.request_id.len() {
            0 => None,
            _ => {
                Some(Uuid::from_slice(&header.request_id).map_err(|_| field("request_id", "the id has not 16 bytes"))?)
            }
        };
        let request = JobRequest {
            name: header.job_name.clone(),
            ticket,
            priority: header.priority as u8,
            hold: header.hold.then_some(Hold::Indefinite),
            pin: (!header.pin.is_empty()).then(|| header.pin.clone()),
            uuid,
        };
        if let Some(job) = self.0.printers.repeated(name, who, uuid).await? {
            return Ok(self.wire_job(&job));
        }
        let format = (!header.format.is_empty()).then(|| header.format.clone());
        let document = DocumentRequest { name: header.job_name.clone(), format, ..DocumentRequest::default() };
        let expected = (header.size_bytes > 0).then_some(header.size_bytes);
        let mut upload = self.0.printers.submit(name, who, request, document, expected)?;
        while let Some(part) = data.next().await {
            upload.write(&part?).await?;
            // Whoever was cut off or lost the right in the middle prints no more.
            self.checked(caller, &header.device, Right::Write)?;
            if expected.is_some_and(|e| upload.received() > e) {
                break;
            }
        }
        if expected.is_some_and(|e| e != upload.received()) {
            return Err(field("size_bytes", "the document has another size than was said"));
        }
        upload.finish().await.map(|job| self.wire_job(&job))
    }

    /// `ListPrintJobs`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, ACCESS_DENIED.
    pub(super) async fn list_print_jobs(
        &self,
        caller: &DeviceId,
        r: wire::ListPrintJobsRequest,
    ) -> Result<wire::ListPrintJobsResponse> {
        let (name, who, manages) = self.printer(caller, &r.device, Right::Read, "jobs")?;
        let most = if r.limit == 0 { JOBS } else { (r.limit as usize).min(JOBS_MAX) };
        let wanted = |j: &Job| (manages || j.owner.same(&who)) && (r.ended || !j.state.is_over());
        let jobs = self.0.printers.jobs(Some(&name), wanted, most)?;
        let address = self.printer_address(&name);
        let jobs = jobs.iter().map(|j| self.wire_job_at(address.clone(), j)).collect();
        Ok(wire::ListPrintJobsResponse { jobs })
    }

    /// `ControlPrintJob`. A job of somebody else is answered like one that is not there.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, ACCESS_DENIED, PRINT_JOB_UNKNOWN, PRINT_JOB_ENDED, PIN_WRONG, FIELD_INVALID.
    pub(super) async fn control_print_job(
        &self,
        caller: &DeviceId,
        r: wire::ControlPrintJobRequest,
    ) -> Result<wire::PrintJob> {
        let (name, who, manages) = self.printer(caller, &r.device, Right::Read, "job")?;
        let unknown = || Error::new(Reason::PrintJobUnknown, format!("there is no job {} of yours", r.job_id));
        let id = JobId(u32::try_from(r.job_id).map_err(|_| unknown())?);
        let job = self.0.printers.job(id).map_err(|_| unknown())?;
        if job.printer != name || !(manages || job.owner.same(&who)) {
            return Err(unknown());
        }
        let pin = (!r.pin.is_empty()).then(|| r.pin.clone());
        let verb = match r.verb() {
            wire::PrintJobVerb::Show => return Ok(self.wire_job(&job)),
            wire::PrintJobVerb::Hold => Verb::Hold(Hold::Indefinite),
            wire::PrintJobVerb::Release => Verb::Release(pin),
            wire::PrintJobVerb::Cancel => Verb::Cancel,
            wire::PrintJobVerb::Priority => {
                let priority = u8::try_from(r.priority).ok().filter(|p| (1..=100).contains(p));
                let priority = priority.ok_or_else(|| field("priority", "a priority is 1 to 100"))?;
                Verb::Alter(Changes { priority: Some(priority), ..Changes::default() })
            }
            wire::PrintJobVerb::Unspecified => return Err(field("verb", "it is not said what to do")),
        };
        let job = self.0.printers.control(id, &who, manages, verb).await?;
        self.changed();
        Ok(self.wire_job(&job))
    }

    /// `ControlPrinter`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, ACCESS_DENIED, FIELD_INVALID.
    pub(super) async fn control_printer(
        &self,
        caller: &DeviceId,
        r: wire::ControlPrinterRequest,
    ) -> Result<wire::Device> {
        let (name, who, _) = self.printer(caller, &r.device, Right::Manage, "manage")?;
        // All is checked before anything is done.
        let period = match r.quota_period_seconds {
            None => None,
            Some(86_400) => Some(Period::Day),
            Some(604_800) => Some(Period::Week),
            Some(0 | 2_592_000) => Some(Period::Month),
            Some(_) => return Err(field("quota_period_seconds", "a period is a day, a week or 30 days (a month)")),
        };
        if let Some(paused) = r.paused {
            self.0.printers.pause(&name, paused).await?;
        }
        if r.quota_sheets.is_some() || r.quota_bytes.is_some() || r.quota_period_seconds.is_some() {
            let _one_at_a_time = self.0.managing.lock().await;
            let mut config = self.0.printers.get(&name)?.config;
            let set = |old: Option<u64>, new: Option<u64>| new.map_or(old, |n| (n > 0).then_some(n));
            let members = &mut config.quotas.members;
            *members =
                Allowance { sheets: set(members.sheets, r.quota_sheets), bytes: set(members.bytes, r.quota_bytes) };
            config.quotas.unauthenticated = *members;
            config.quotas.period = period.unwrap_or(config.quotas.period);
            self.0.printers.put(config).await?;
        }
        self.0.audit.note(Line::granted(&who.caller, &r.device, "manage"));
        self.changed();
        let entry = self.checked(caller, &r.device, Right::Manage)?;
        Ok(self.describe(&entry, caller, Right::Manage))
    }

    /// This person's jobs on all printers that are there.
    pub(super) async fn jobs_everywhere(&self, ended: bool) -> wire::ListJobsResponse {
        let me = self.me();
        let asked = wire::ListPrintJobsRequest { ended, limit: JOBS as u32, ..Default::default() };
        let (mut jobs, mut problems) = (Vec::new(), Vec::new());
        for entry in self.0.book.all().iter().filter(|e| e.kind == Kind::Printer) {
            let request = wire::ListPrintJobsRequest { device: entry.local_name(), ..asked.clone() };
            match self.list_print_jobs(&me, request).await {
                Ok(found) => jobs.extend(found.jobs),
                Err(error) => problems.push(super::remote::own_problem(&entry.local_name(), &error)),
            }
        }
        let (devices, failed) = self.0.remote.all(|_| true).await;
        problems.extend(failed);
        let printers = devices.into_iter().filter(|d| d.online && d.right >= Right::Read as i32);
        let printers = printers.filter(|d| super::kind_of(d.kind) == Some(Kind::Printer));
        let asks: Vec<BoxFuture<'_, _>> = printers.map(|d| self.ask_jobs(d, asked.clone()).boxed()).collect();
        let mut answers = stream::iter(asks).buffer_unordered(16);
        while let Some((address, found)) = answers.next().await {
            match found {
                Ok(found) => jobs.extend(found),
                Err(error) => problems.push(super::remote::own_problem(&address, &error)),
            }
        }
        jobs.sort_by_key(|j: &wire::PrintJob| std::cmp::Reverse(j.create_time.map(|t| (t.seconds, t.nanos))));
        wire::ListJobsResponse { jobs, problems }
    }

    async fn ask_jobs(&self, d: wire::Device, r: wire::ListPrintJobsRequest) -> (String, Result<Vec<wire::PrintJob>>) {
        let found = self.remote_jobs(&d, r).await;
        (d.address, found)
    }

    async fn remote_jobs(&self, d: &wire::Device, asked: wire::ListPrintJobsRequest) -> Result<Vec<wire::PrintJob>> {
        let node = d.owner_device_id.parse().map_err(|()| Error::internal("a device id"))?;
        let request = wire::ListPrintJobsRequest { device: format!("printers/{}", d.name), ..asked };
        let mut jobs = super::remote::in_time(async {
            let mut client = self.client(node).await?;
            let answer = client.list_print_jobs(request).await.map_err(|s| common::status::from_status(&s))?;
            Ok(answer.into_inner().jobs)
        })
        .await?;
        jobs.truncate(JOBS);
        jobs.iter_mut().for_each(|j| j.printer = d.address.clone());
        Ok(jobs)
    }
}

pub(super) fn reasons_of(view: &PrinterView) -> String {
    let told = view.reasons.iter().filter(|r| *r != "none").cloned();
    told.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_ranges() {
        assert_eq!(pages_of("").unwrap(), []);
        assert_eq!(pages_of("1-3, 7,9-").unwrap(), [(1, 3), (7, 7), (9, u32::MAX)]);
        for bad in ["0", "3-1", "a", "1,,2", "-4", &"1,".repeat(600)] {
            assert!(pages_of(bad).unwrap_err().is(Reason::FieldInvalid), "{bad}");
        }
    }
}
