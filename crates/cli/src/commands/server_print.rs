//! Printing through the server: what `print --via-server NAME` and `jobs --server-queue` do.

use super::{Context, Several, call, request_id};
use crate::args::value::Whom;
use crate::connect::Office;
use crate::exit::Exit;
use crate::output::format::{bytes, count, minute, pad, rfc3339, safe};
use crate::output::schema::{Grant, ServerPrintJob, ServerPrinter, right_word};
use crate::prompt::{self, Secret};
use ::bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::retry::{RetryPolicy, retry};
use proto::v1;
use proto::v1::print_request::Part;
use std::path::{Path, PathBuf};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// A piece of a document.
const PIECE: usize = 256 * 1024;
/// Pieces that wait to be sent.
const WAITING: usize = 4;
/// Longest document that is read from standard input, which cannot be read again if the connection breaks.
const STDIN_MAX: u64 = 64 << 20;
/// Items of a page.
const PAGE: u32 = 500;

/// What to print on a printer of the server, and how.
#[derive(Default)]
pub struct ServerPrint {
    /// Files; "-" is standard input.
    pub files: Vec<PathBuf>,
    /// The printer's name in the office.
    pub printer: String,
    /// How.
    pub options: v1::PrintOptions,
    /// Wait until it is released.
    pub hold: bool,
    /// 1 to 100; 0: the usual one.
    pub priority: u32,
    /// Wait until somebody states this.
    pub pin: Option<Secret>,
    /// The job's name; empty: the file's.
    pub name: String,
    /// Media type; empty: found out at the printer.
    pub format: String,
}

/// Hands over files to the server, each as a job of its own. A connection that breaks is made again; nothing is printed
/// twice by that.
///
/// # Errors
/// Those of reading, and whatever the server refuses.
pub async fn print(c: &Context, what: ServerPrint) -> Result<Exit> {
    let office = c.office().await?;
    let mut several = Several::default();
    for file in &what.files {
        let printed = match hand_over(&office, &what, file).await {
            Ok(job) => {
                let job = ServerPrintJob::from(&job);
                let hint = match (job.needs_pin, what.hold) {
                    (true, _) => "held until its PIN is stated",
                    (false, true) => "held until it is released",
                    (false, false) => "handed over",
                };
                c.out.changed(&job, |j| format!("{}  {} is {hint} for {}", j.id, safe(&j.name), safe(&j.printer)))
            }
            Err(error) => Err(error),
        };
        several.note(&c.out, printed)?;
    }
    several.end(&c.out)
}

enum Document {
    File(PathBuf),
    Memory(Bytes),
}

async fn hand_over(office: &Office, what: &ServerPrint, file: &Path) -> Result<v1::PrintJob> {
    let is_stdin = file.as_os_str() == "-";
    let (document, size_bytes) = if is_stdin {
        let data = read_stdin().await?;
        let size = data.len() as u64;
        (Document::Memory(data), size)
    } else {
        let size = tokio::fs::metadata(file).await.map_err(|e| unreadable(file, e))?.len();
        (Document::File(file.to_owned()), size)
    };
    let file_name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let header = v1::PrintHeader {
        printer: what.printer.clone(),
        display_name: match (what.name.is_empty(), is_stdin) {
            (false, _) => what.name.clone(),
            (true, true) => "standard input".into(),
            (true, false) => file_name,
        },
        format: what.format.clone(),
        options: Some(what.options.clone()),
        hold: what.hold,
        size_bytes,
        sheets: 0,
        request_id: request_id(),
        priority: what.priority,
        pin: what.pin.as_ref().map_or_else(String::new, |p| p.as_str().to_owned()),
    };
    retry(&RetryPolicy::INTERACTIVE, async |_| send(office, &header, &document).await).await
}

fn unreadable(file: &Path, error: std::io::Error) -> Error {
    Error::new(Reason::IoFailed, format!("{} cannot be read: {error}", file.display())).caused_by(error)
}

async fn read_stdin() -> Result<Bytes> {
    let mut data = Vec::new();
    tokio::io::stdin().take(STDIN_MAX + 1).read_to_end(&mut data).await?;
    if data.len() as u64 > STDIN_MAX {
        return Err(Error::new(Reason::FileTooLarge, "at most 64 MiB are printed from standard input")
            .fix_is("write it to a file, then print that"));
    }
    Ok(data.into())
}

async fn send(office: &Office, header: &v1::PrintHeader, document: &Document) -> Result<v1::PrintJob> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let first = v1::PrintRequest { part: Some(Part::Header(header.clone())) };
    let reading = async {
        // The server ends the call early if it refuses; then nobody takes what is read.
        if sender.send(first).await.is_err() {
            return Ok(());
        }
        let result = pour(document, &sender).await;
        drop(sender);
        result
    };
    let mut client = office.prints();
    let (read, answer) = tokio::join!(reading, client.print(ReceiverStream::new(receiver)));
    // What the server says comes first: a file that is cut off is refused by its size there.
    match (answer, read) {
        (Ok(job), Ok(())) => Ok(job.into_inner()),
        (_, Err(error)) => Err(error),
        (Err(status), Ok(())) => Err(Error::from(status)),
    }
}

async fn pour(document: &Document, sender: &mpsc::Sender<v1::PrintRequest>) -> Result<()> {
    let piece = |data: Bytes| v1::PrintRequest { part: Some(Part::Data(data)) };
    match document {
        Document::Memory(data) => {
            let mut rest = data.clone();
            while !rest.is_empty() {
                let data = rest.split_to(rest.len().min(PIECE));
                if sender.send(piece(data)).await.is_err() {
                    return Ok(());
                }
            }
        }
        Document::File(path) => {
            let mut file = tokio::fs::File::open(path).await.map_err(|e| unreadable(path, e))?;
            loop {
                let mut data = vec![0; PIECE];
                let read = file.read(&mut data).await.map_err(|e| unreadable(path, e))?;
                data.truncate(read);
                if read == 0 || sender.send(piece(data.into())).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Which jobs to list.
#[derive(Clone, Debug, Default)]
pub struct ServerJobs {
    /// Of this printer; empty: of all.
    pub printer: String,
    /// Everybody's; needs MANAGE on the printer, or an administrator.
    pub everyone: bool,
    /// Ended ones too.
    pub ended: bool,
}

/// Lists jobs at the server, the newest first.
///
/// # Errors
/// Whatever the server refuses.
pub async fn jobs(c: &Context, which: ServerJobs) -> Result<Exit> {
    let office = c.office().await?;
    list_jobs(c, &office, which).await
}

/// [`jobs`] over a connection that is there.
///
/// # Errors
/// Whatever the server refuses.
pub async fn list_jobs(c: &Context, office: &Office, which: ServerJobs) -> Result<Exit> {
    let mut list = c.out.list::<ServerPrintJob>(&[])?;
    let mut token = String::new();
    loop {
        let request = v1::ListPrintJobsRequest {
            printer: which.printer.clone(),
            everyone: which.everyone,
            ended: which.ended,
            page_size: PAGE,
            page_token: token,
        };
        let page = call(office.prints().list_print_jobs(request)).await?;
        for job in &page.jobs {
            list.item(&ServerPrintJob::from(job), |j| {
                let pin = if j.needs_pin { "  [waits for its PIN]" } else { "" };
                let twice = if j.may_be_printed_twice { "  [may be printed twice]" } else { "" };
                let cancel = if j.cancel_requested { "  [being canceled]" } else { "" };
                let why = j.state_reason.as_deref().map(|r| format!("  ({})", safe(r))).unwrap_or_default();
                format!(
                    "{}  {}  {}  {}  {}  {}  {}{pin}{cancel}{twice}{why}",
                    j.id,
                    pad(&safe(&j.printer), 12),
                    pad(&safe(&j.user), 10),
                    pad(&j.state, 10),
                    minute(j.create_time.as_deref()),
                    pad(&bytes(j.size_bytes), 9),
                    safe(&j.name),
                )
            })?;
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    list.end("no jobs")?;
    Ok(Exit::Ok)
}

/// What is done to a job at the server.
pub enum ServerJobVerb {
    /// Printed no more.
    Cancel,
    /// Not printed until it is released.
    Hold,
    /// Printed after all; the PIN is asked for where one is needed and none is given.
    Release(Option<Secret>),
    /// Printed earlier or later.
    Priority(u32),
}

/// Does something to jobs at the server, named by their ids.
///
/// # Errors
/// Whatever the server refuses.
pub async fn control(c: &Context, ids: &[String], verb: ServerJobVerb) -> Result<Exit> {
    let office = c.office().await?;
    let mut several = Several::default();
    for id in ids {
        let id = id.clone();
        let done = match &verb {
            ServerJobVerb::Cancel => call(office.prints().cancel_print_job(v1::CancelPrintJobRequest { id })).await,
            ServerJobVerb::Hold => call(office.prints().hold_print_job(v1::HoldPrintJobRequest { id })).await,
            ServerJobVerb::Release(pin) => release(c, &office, id, pin.as_ref()).await,
            ServerJobVerb::Priority(priority) => {
                let request = v1::SetPrintJobPriorityRequest { id, priority: *priority };
                call(office.prints().set_print_job_priority(request)).await
            }
        };
        let told = done.and_then(|job| {
            let job = ServerPrintJob::from(&job);
            c.out.changed(&job, |j| {
                let state = if j.cancel_requested { "to be canceled at the printer" } else { j.state.as_str() };
                format!("{}  {} is {state}, priority {}", j.id, safe(&j.name), j.priority)
            })
        });
        several.note(&c.out, told)?;
    }
    several.end(&c.out)
}

async fn release(c: &Context, office: &Office, id: String, pin: Option<&Secret>) -> Result<v1::PrintJob> {
    let pin = match pin {
        Some(pin) => pin.as_str().to_owned(),
        None => {
            let job = call(office.prints().get_print_job(v1::GetPrintJobRequest { id: id.clone() })).await?;
            match job.needs_pin {
                true => prompt::secret(&c.out, None, &format!("PIN of {id}"), "--pin-file")?.as_str().to_owned(),
                false => String::new(),
            }
        }
    };
    call(office.prints().release_print_job(v1::ReleasePrintJobRequest { id, pin })).await
}

/// Lists the printers of the server.
///
/// # Errors
/// Whatever the server refuses.
pub async fn list_printers(c: &Context, office: &Office) -> Result<Exit> {
    let mut list = c.out.list::<ServerPrinter>(&[])?;
    let mut token = String::new();
    loop {
        let request = v1::ListPrintersRequest { page_size: PAGE, page_token: token };
        let page = call(office.prints().list_printers(request)).await?;
        for printer in &page.printers {
            list.item(&ServerPrinter::from(printer), |p| {
                let why = p.state_reason.as_deref().map(|r| format!("  ({})", safe(r))).unwrap_or_default();
                let grants: Vec<String> = p.grants.iter().map(|g| format!("{}={}", safe(&g.who), g.right)).collect();
                let grants = if grants.is_empty() { String::new() } else { format!("  {}", grants.join(" ")) };
                let jobs = count(p.job_count, "job", "jobs");
                let machine = pad(&safe(&p.machine), 16);
                format!("{}  {}  at {machine}  {jobs}{grants}{why}", pad(&safe(&p.name), 16), pad(&p.state, 10))
            })?;
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    list.end("no printers")?;
    Ok(Exit::Ok)
}

fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or("unknown").to_lowercase()
}

fn said(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

impl From<&v1::PrintJob> for ServerPrintJob {
    fn from(j: &v1::PrintJob) -> Self {
        Self {
            id: j.id.clone(),
            printer: j.printer.clone(),
            name: j.display_name.clone(),
            user: j.user.clone(),
            state: word(j.state().as_str_name(), "PRINT_JOB_STATE_"),
            state_reason: said(&j.state_reason),
            size_bytes: j.size_bytes,
            sheets: j.sheets,
            may_be_printed_twice: j.may_be_printed_twice,
            cancel_requested: j.cancel_requested,
            priority: j.priority.into(),
            needs_pin: j.needs_pin,
            create_time: rfc3339(j.create_time.as_ref()),
            end_time: rfc3339(j.end_time.as_ref()),
        }
    }
}

impl From<&v1::Printer> for ServerPrinter {
    fn from(p: &v1::Printer) -> Self {
        let grants = p.grants.iter().map(|g| Grant {
            who: Whom::text_of(g.principal.as_ref()),
            right: right_word(g.right).unwrap_or_else(|| "unknown".into()),
        });
        Self {
            name: p.name.clone(),
            description: p.description.clone(),
            location: p.location.clone(),
            machine: p.machine.clone(),
            device_id: p.device_id.clone(),
            state: word(p.state().as_str_name(), "PRINTER_STATE_"),
            state_reason: said(&p.state_reason),
            formats: p.formats.clone(),
            color: p.color,
            duplex: p.duplex,
            job_count: u64::from(p.job_count),
            my_right: right_word(p.my_right),
            grants: grants.collect(),
            last_seen_time: rfc3339(p.last_seen_time.as_ref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_said_in_words() {
        let job = |state: v1::PrintJobState| {
            let job = v1::PrintJob { state: state as i32, ..Default::default() };
            ServerPrintJob::from(&job).state
        };
        assert_eq!(job(v1::PrintJobState::Pending), "pending");
        assert_eq!(job(v1::PrintJobState::Canceled), "canceled");
        let away = v1::Printer { state: v1::PrinterState::Away as i32, ..Default::default() };
        assert_eq!(ServerPrinter::from(&away).state, "away");
    }
}
