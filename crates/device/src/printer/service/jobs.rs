//! Attributes of jobs, and lists of them.

use super::attributes::{Uris, seconds};
use super::http::Context;
use crate::ipp::codes::group;
use crate::ipp::value::{Attribute, DateTime, Group, Value};
use crate::printer::model::{Hold, Job, JobState};

/// What Get-Jobs gives if nothing is asked for.
const BRIEF: [&str; 2] = ["job-id", "job-uri"];

/// True if the job is in the set that `which-jobs` names; `None` if the name is not known.
pub(super) fn which(word: &str) -> Option<fn(&Job) -> bool> {
    Some(match word {
        "completed" => |j| j.state.is_over(),
        "not-completed" => |j| !j.state.is_over(),
        "all" => |_| true,
        "aborted" => |j| j.state == JobState::Aborted,
        "canceled" => |j| j.state == JobState::Canceled,
        "pending" => |j| j.state == JobState::Pending,
        "pending-held" => |j| j.state == JobState::Held,
        "processing" => |j| j.state == JobState::Processing,
        "processing-stopped" => |j| j.state == JobState::Stopped,
        // Nothing is printed as a proof.
        "proof-print" => |_| false,
        _ => return None,
    })
}

/// The attributes that answer an operation that made or changed a job.
pub(super) fn short(context: &Context, job: &Job) -> Group {
    let mut out = Group::new(group::JOB);
    let uris = Uris::new(context, &job.printer);
    out.put("job-id", Value::Integer(job.id.0 as i32));
    out.put("job-uri", Value::uri(uris.job(job.id.0)));
    out.put("job-uuid", Value::uri(format!("urn:uuid:{}", job.uuid)));
    state(job, &mut out);
    out
}

fn state(job: &Job, out: &mut Group) {
    out.put("job-state", Value::Enum(job.state.code()));
    out.put("job-state-reasons", Value::keyword(if job.reason.is_empty() { "none" } else { &job.reason }));
    out.put("job-state-message", Value::text(if job.message.is_empty() { job.state.word() } else { &job.message }));
}

/// All attributes of a job. `open`: the caller may see what it is called and whose it is.
fn all(context: &Context, job: &Job, open: bool) -> Vec<(Attribute, bool)> {
    let mut out = Group::new(group::JOB);
    let uris = Uris::new(context, &job.printer);
    out.put("job-id", Value::Integer(job.id.0 as i32));
    out.put("job-uri", Value::uri(uris.job(job.id.0)));
    out.put("job-uuid", Value::uri(format!("urn:uuid:{}", job.uuid)));
    out.put("job-printer-uri", Value::uri(uris.printer()));
    out.put("job-more-info", Value::uri(uris.web("/")));
    out.put("job-name", Value::name(if open { &job.name } else { "private" }));
    out.put("job-originating-user-name", Value::name(if open { &job.owner.caller.person } else { "private" }));
    state(job, &mut out);
    out.put("number-of-documents", Value::Integer(job.documents.len() as i32));
    let number = |n: u64| Value::Integer(i32::try_from(n).unwrap_or(i32::MAX));
    out.put("number-of-intervening-jobs", number(context.shared.printers.intervening(job) as u64));
    if let Some(output) = &job.output {
        out.put("output-device-assigned", Value::name(output));
    }
    times(context, job, &mut out);
    out.put("job-k-octets", number(job.bytes.div_ceil(1024)));
    out.put("job-impressions", job.impressions.map_or(Value::NoValue, |n| number(u64::from(n))));
    out.put("job-media-sheets", job.impressions.map_or(Value::NoValue, |_| number(u64::from(job.sheets))));
    let done = if job.state == JobState::Completed { job.bytes.div_ceil(1024) } else { 0 };
    out.put("job-k-octets-processed", number(done));
    out.put("job-impressions-completed", number(u64::from(job.impressions_done)));
    out.put("job-media-sheets-completed", number(u64::from(job.sheets_done())));
    if open && let Some(document) = job.documents.first() {
        out.put("document-name-supplied", Value::name(&document.name));
        out.put("document-format-supplied", Value::MimeType(document.format.clone()));
    }
    let described = out.attributes.into_iter().map(|a| (a, false));
    let mut template = Group::new(group::JOB);
    ticket(job, &mut template);
    described.chain(template.attributes.into_iter().map(|a| (a, true))).collect()
}

fn times(context: &Context, job: &Job, out: &mut Group) {
    let moments = [("creation", Some(job.created_ms)), ("processing", job.processing_ms), ("completed", job.ended_ms)];
    for (name, at) in moments {
        out.put(&format!("time-at-{name}"), at.map_or(Value::NoValue, |ms| Value::Integer(seconds(ms))));
        let date = at.map_or(Value::NoValue, |ms| Value::DateTime(DateTime::of_unix_ms(ms)));
        out.put(&format!("date-time-at-{name}"), date);
    }
    out.put("job-printer-up-time", Value::Integer(seconds(context.shared.printers.now_ms()).max(1)));
}

fn ticket(job: &Job, out: &mut Group) {
    let ticket = &job.ticket;
    out.put("copies", Value::Integer(ticket.copies() as i32));
    out.put("job-priority", Value::Integer(i32::from(job.priority)));
    let (name, value) = match job.hold {
        None => ("job-hold-until", Value::keyword("no-hold")),
        Some(Hold::Indefinite) => ("job-hold-until", Value::keyword("indefinite")),
        Some(Hold::Until(at)) => ("job-hold-until-time", Value::DateTime(DateTime::of_unix_ms(at))),
    };
    out.put(name, value);
    out.put("job-sheets", Value::keyword("none"));
    out.put("finishings", Value::Enum(3));
    if let Some(sides) = ticket.sides {
        out.put("sides", Value::keyword(sides.word()));
    }
    if let Some(media) = &ticket.media {
        out.put("media", Value::keyword(media));
    }
    if let Some(color) = &ticket.color {
        out.put("print-color-mode", Value::keyword(color));
    }
    if let Some(quality) = ticket.quality {
        out.put("print-quality", Value::Enum(i32::from(quality)));
    }
    if let Some(orientation) = ticket.orientation {
        out.put("orientation-requested", Value::Enum(i32::from(orientation)));
    }
    if let Some(number) = ticket.number_up {
        out.put("number-up", Value::Integer(number as i32));
    }
    if !ticket.pages.is_empty() {
        let ranges = ticket.pages.iter().map(|(a, b)| Value::Range(*a as i32, *b as i32));
        out.put_all("page-ranges", ranges);
    }
}

/// The attributes of a job that were asked for; `brief` if nothing was and few are wanted then.
pub(super) fn job(context: &Context, job: &Job, open: bool, requested: Option<&[&str]>, brief: bool) -> Group {
    let names = match requested {
        None if brief => &BRIEF[..],
        None => &["all"][..],
        Some(names) => names,
    };
    let wanted = |name: &str, template: bool| {
        names.iter().any(|asked| match *asked {
            "all" => true,
            "job-template" => template,
            "job-description" => !template,
            asked => asked == name,
        })
    };
    let mut out = Group::new(group::JOB);
    // Most lists want the two names only, of many jobs.
    if names == BRIEF {
        out.put("job-id", Value::Integer(job.id.0 as i32));
        out.put("job-uri", Value::uri(Uris::new(context, &job.printer).job(job.id.0)));
        return out;
    }
    out.attributes = all(context, job, open)
        .into_iter()
        .filter(|(a, template)| wanted(&a.name, *template))
        .map(|(a, _)| a)
        .collect();
    out
}
