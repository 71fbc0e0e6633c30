//! `jobs` and `printer`.

use super::{Context, call};
use crate::args::device_value::JobRef;
use crate::args::{Jobs, JobsAction, Printer, PrinterAction};
use crate::commands::Several;
use crate::commands::peers::warn_of;
use crate::commands::server_print::{self, ServerJobVerb, ServerJobs};
use crate::exit::Exit;
use crate::output::format::{bytes, count, minute, pad, safe};
use crate::output::schema::{PrintJob, SharedDevice};
use crate::prompt;
use common::error::Result;
use proto::peer::v1 as wire;
use std::path::Path;
use wire::PrintJobVerb as Verb;

/// Most jobs of one printer that are listed.
const JOBS_MAX: u32 = 1000;

pub(in crate::commands) async fn jobs(c: &Context, args: Jobs) -> Result<Exit> {
    match args.action {
        None if args.at_server => {
            let printer = args.printer.map(|p| p.to_string()).unwrap_or_default();
            server_print::jobs(c, ServerJobs { printer, everyone: false, ended: args.all }).await
        }
        Some(JobsAction::CancelAtServer { jobs }) => server_print::control(c, &jobs, ServerJobVerb::Cancel).await,
        Some(JobsAction::HoldAtServer { jobs }) => server_print::control(c, &jobs, ServerJobVerb::Hold).await,
        Some(JobsAction::ReleaseAtServer { jobs, pin_file }) => {
            // Read once: it may come from standard input.
            let pin = pin_file.as_deref().map(prompt::secret_file).transpose()?;
            server_print::control(c, &jobs, ServerJobVerb::Release(pin)).await
        }
        Some(JobsAction::PriorityAtServer { job, priority }) => {
            server_print::control(c, &[job], ServerJobVerb::Priority(priority)).await
        }
        None => list(c, args.printer.map(|p| p.to_string()), args.all).await,
        Some(JobsAction::Show { job }) => {
            let job = PrintJob::from(control(c, &job, Verb::Show, 0, String::new()).await?);
            c.out.object(&job, full)?;
            Ok(Exit::Ok)
        }
        Some(JobsAction::Hold { jobs }) => each(c, &jobs, Verb::Hold, None, "is held").await,
        Some(JobsAction::Release { jobs, pin_file }) => {
            each(c, &jobs, Verb::Release, pin_file.as_deref(), "is released").await
        }
        Some(JobsAction::Cancel { jobs }) => each(c, &jobs, Verb::Cancel, None, "is cancelled").await,
        Some(JobsAction::Priority { job, priority }) => {
            let job = PrintJob::from(control(c, &job, Verb::Priority, priority, String::new()).await?);
            c.out.changed(&job, |j| changed_text(j, &format!("has priority {}", j.priority)))?;
            Ok(Exit::Ok)
        }
    }
}

async fn list(c: &Context, printer: Option<String>, ended: bool) -> Result<Exit> {
    let peer = c.peer()?;
    let (jobs, problems) = match printer {
        Some(device) => {
            let request = wire::ListPrintJobsRequest { device, ended, limit: JOBS_MAX };
            (call(peer.devices().list_print_jobs(request)).await?.jobs, Vec::new())
        }
        None => {
            let answer = call(peer.local_devices().list_jobs(wire::ListJobsRequest { ended })).await?;
            (answer.jobs, answer.problems)
        }
    };
    let jobs: Vec<PrintJob> = jobs.into_iter().map(PrintJob::from).collect();
    let width = jobs.iter().map(|j| j.id.chars().count()).max().unwrap_or(0);
    let mut list = c.out.list::<PrintJob>(&[])?;
    for job in &jobs {
        list.item(job, |j| line(j, width))?;
    }
    list.end("no jobs")?;
    warn_of(c, problems);
    Ok(Exit::Ok)
}

fn line(j: &PrintJob, width: usize) -> String {
    let sheets = if j.sheets == 0 { "-".to_owned() } else { count(j.sheets, "sheet", "sheets") };
    let mut text = format!(
        "{}  {}  {}  {:>11}  {:>10}  {}  {}",
        pad(&safe(&j.id), width),
        pad(&safe(&j.state), 12),
        pad(&safe(&j.person), 10),
        bytes(j.size_bytes),
        sheets,
        minute(j.create_time.as_deref()),
        safe(&j.name)
    );
    if j.needs_pin {
        text.push_str("  [waits for its PIN]");
    }
    if let Some(reason) = &j.state_reason {
        text.push_str(&format!("\n    {}", safe(reason)));
    }
    text
}

fn full(j: &PrintJob) -> String {
    let reason = j.state_reason.as_deref().map(|r| format!(": {}", safe(r))).unwrap_or_default();
    let mut lines = vec![
        format!("{}  {}", safe(&j.id), safe(&j.name)),
        format!("  state     {}{reason}", safe(&j.state)),
        format!("  from      {} at {}", safe(&j.person), safe(&j.machine)),
        format!("  document  {}, {}", bytes(j.size_bytes), safe(&j.format)),
        format!("  sheets    {}", j.sheets),
        format!("  priority  {}, {} before it", j.priority, j.position),
        format!("  taken     {}", minute(j.create_time.as_deref())),
    ];
    lines.extend(j.end_time.as_deref().map(|t| format!("  ended     {}", minute(Some(t)))));
    lines.extend(j.needs_pin.then(|| "  waits for its PIN: atrium jobs release".to_owned()));
    lines.join("\n")
}

fn changed_text(j: &PrintJob, what: &str) -> String {
    format!("{} {what}: {}", safe(&j.id), safe(&j.name))
}

async fn control(c: &Context, job: &JobRef, verb: Verb, priority: u32, pin: String) -> Result<wire::PrintJob> {
    let request = wire::ControlPrintJobRequest {
        device: job.printer.to_string(),
        job_id: job.number,
        verb: verb as i32,
        priority,
        pin,
    };
    call(c.peer()?.devices().control_print_job(request)).await
}

async fn each(c: &Context, jobs: &[JobRef], verb: Verb, pin_file: Option<&Path>, what: &str) -> Result<Exit> {
    // Read once: it may come from standard input.
    let pin = pin_file.map(prompt::secret_file).transpose()?;
    let mut several = Several::default();
    for job in jobs {
        let done = async {
            let pin = match (&pin, verb) {
                (Some(pin), _) => pin.as_str().to_owned(),
                (None, Verb::Release) => needed_pin(c, job).await?,
                (None, _) => String::new(),
            };
            let job = PrintJob::from(control(c, job, verb, 0, pin).await?);
            c.out.changed(&job, |j| changed_text(j, what))
        };
        let done = done.await;
        several.note(&c.out, done)?;
    }
    several.end(&c.out)
}

/// The PIN of a job that has one; asked for.
async fn needed_pin(c: &Context, job: &JobRef) -> Result<String> {
    if !control(c, job, Verb::Show, 0, String::new()).await?.needs_pin {
        return Ok(String::new());
    }
    Ok(prompt::secret(&c.out, None, &format!("PIN of {job}"), "--pin-file")?.as_str().to_owned())
}

pub(in crate::commands) async fn printer(c: &Context, args: Printer) -> Result<Exit> {
    let (request, what) = match args.action {
        PrinterAction::Pause { printer } => {
            let request =
                wire::ControlPrinterRequest { device: printer.to_string(), paused: Some(true), ..Default::default() };
            (request, "is paused; jobs wait".to_owned())
        }
        PrinterAction::Resume { printer } => {
            let request =
                wire::ControlPrinterRequest { device: printer.to_string(), paused: Some(false), ..Default::default() };
            (request, "goes on".to_owned())
        }
        PrinterAction::Quota(q) => {
            let text = |n: Option<u64>, unit: &dyn Fn(u64) -> String, what: &str| match n {
                None => None,
                Some(0) => Some(format!("no limit of {what}")),
                Some(n) => Some(unit(n)),
            };
            let mut words: Vec<String> = Vec::new();
            words.extend(text(q.sheets, &|n| count(n, "sheet", "sheets"), "sheets"));
            words.extend(text(q.bytes, &bytes, "bytes"));
            words.extend(q.period.map(|p| format!("in {}", crate::output::format::duration(p))));
            let request = wire::ControlPrinterRequest {
                device: q.printer.to_string(),
                paused: None,
                quota_sheets: q.sheets,
                quota_bytes: q.bytes,
                quota_period_seconds: q.period.map(|p| p.as_secs()),
            };
            (request, format!("gives each person {}", words.join(", ")))
        }
    };
    let device = SharedDevice::from(call(c.peer()?.devices().control_printer(request)).await?);
    c.out.changed(&device, |d| format!("{} {what}", safe(&d.address)))?;
    Ok(Exit::Ok)
}
