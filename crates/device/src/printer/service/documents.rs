//! Documents of jobs as objects (PWG 5100.5).

use super::attributes::Uris;
use super::http::Context;
use crate::ipp::codes::group;
use crate::ipp::value::{Group, Value};
use crate::printer::model::{Job, JobState};

/// Attributes of one document, counted from 0.
pub(super) fn document(
    context: &Context,
    job: &Job,
    number: usize,
    open: bool,
    requested: Option<&[&str]>,
) -> Option<Group> {
    let document = job.documents.get(number)?;
    let mut out = Group::new(group::DOCUMENT);
    let uris = Uris::new(context, &job.printer);
    let state = if document.canceled { JobState::Canceled } else { job.state };
    out.put("document-number", Value::Integer(number as i32 + 1));
    out.put("document-job-id", Value::Integer(job.id.0 as i32));
    out.put("document-job-uri", Value::uri(uris.job(job.id.0)));
    out.put("document-printer-uri", Value::uri(uris.printer()));
    out.put("document-name", Value::name(if open { &document.name } else { "private" }));
    out.put("document-format", Value::MimeType(document.format.clone()));
    out.put("document-state", Value::Enum(state.code()));
    out.put("document-state-reasons", Value::keyword(if job.reason.is_empty() { "none" } else { &job.reason }));
    out.put("k-octets", Value::Integer(i32::try_from(document.bytes.div_ceil(1024)).unwrap_or(i32::MAX)));
    let pages = document.pages.map_or(Value::NoValue, |n| Value::Integer(i32::try_from(n).unwrap_or(i32::MAX)));
    out.put("pages", pages);
    let last = job.complete && number + 1 == job.documents.len();
    out.put("last-document", Value::Boolean(last));
    if let Some(names) = requested
        && !names.iter().any(|n| matches!(*n, "all" | "document-description"))
    {
        out.attributes.retain(|a| names.contains(&a.name.as_str()));
    }
    Some(out)
}
