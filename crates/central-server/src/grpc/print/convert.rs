//! Messages of print queues into what the application takes, and back. Received messages are checked here, once.

use crate::app::print::accounts::{Period, Quota};
use crate::app::print::owner::Report;
use crate::app::print::printers::{FORMAT_LEN, Offer, Shown};
use crate::app::print::submit::NewJob;
use crate::app::print::{Condition, Job, JobState, records};
use crate::grpc::directory::encode_grants;
use crate::grpc::file::convert::invalid;
use bytes::Bytes;
use common::error::Result;
use common::model::Pin;
use common::wire::timestamp_if_known as timestamp;
use prost::Message;
use proto::v1;
use uuid::Uuid;

/// Longest name of a job.
const NAME_LEN: usize = 255;
/// Longest reason that a printer's machine gives.
const REASON_LEN: usize = 255;
/// Most copies.
const COPIES_MAX: u32 = 999;
/// Most sheets that are believed.
const SHEETS_MAX: u64 = 10_000_000;

/// A UUID.
///
/// # Errors
/// `FIELD_INVALID`.
pub fn uuid(text: &str, field: &str) -> Result<Uuid> {
    Uuid::try_parse(text).ok().filter(|id| !id.is_nil()).ok_or_else(|| invalid(field, "this is no UUID"))
}

/// A text for people: without control characters, cut at so many bytes.
fn text(text: &str, most: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let c = if c.is_control() { '\u{FFFD}' } else { c };
        if out.len() + c.len_utf8() > most {
            break;
        }
        out.push(c);
    }
    out
}

fn word(value: &str, field: &str, allowed: &[&str]) -> Result<()> {
    match value.is_empty() || allowed.contains(&value) {
        true => Ok(()),
        false => Err(invalid(field, format!("this is none of: {}", allowed.join(", ")))),
    }
}

fn options(options: Option<v1::PrintOptions>) -> Result<Bytes> {
    let options = options.unwrap_or_default();
    if options.copies > COPIES_MAX {
        return Err(invalid("options.copies", "more than 999 copies"));
    }
    word(&options.sides, "options.sides", &["one-sided", "two-sided-long-edge", "two-sided-short-edge"])?;
    word(&options.color_mode, "options.color_mode", &["color", "monochrome"])?;
    let media = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if options.media.len() > 64 || !options.media.chars().all(media) {
        return Err(invalid("options.media", "this is no name of a medium"));
    }
    if options.pages.len() > 255 || !options.pages.chars().all(|c| c.is_ascii_digit() || ",-".contains(c)) {
        return Err(invalid("options.pages", "pages are written like 1-3,7"));
    }
    Ok(options.encode_to_vec().into())
}

/// A priority.
///
/// # Errors
/// `FIELD_INVALID`.
pub fn priority(number: u32) -> Result<u32> {
    match number {
        1..=100 => Ok(number),
        _ => Err(invalid("priority", "a priority is 1 to 100")),
    }
}

/// A document that somebody wants printed.
///
/// # Errors
/// `FIELD_INVALID`.
pub fn new_job(header: v1::PrintHeader) -> Result<NewJob> {
    let format = &header.format;
    if format.len() > FORMAT_LEN || !format.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(invalid("format", "this is no media type"));
    }
    if header.sheets > SHEETS_MAX {
        return Err(invalid("sheets", "nobody prints that many"));
    }
    let pin = match header.pin.as_str() {
        "" => None,
        pin if Pin::is_good(pin) => Some(Pin::new(pin, rand::random())),
        _ => return Err(invalid("pin", "a PIN has 4 to 32 characters")),
    };
    Ok(NewJob {
        options: options(header.options)?,
        priority: if header.priority == 0 { records::PRIORITY } else { priority(header.priority)? },
        pin,
        printer: header.printer,
        display_name: text(&header.display_name, NAME_LEN),
        format: header.format,
        hold: header.hold,
        size_bytes: header.size_bytes,
        sheets: header.sheets,
    })
}

/// A printer that a machine offers.
///
/// # Errors
/// `FIELD_INVALID`.
pub fn offer(request: v1::RegisterPrinterRequest) -> Result<Offer> {
    let condition = match request.state() {
        v1::PrinterState::Idle => Condition::Idle,
        v1::PrinterState::Processing => Condition::Processing,
        v1::PrinterState::Stopped => Condition::Stopped,
        _ => return Err(invalid("state", "it is not said whether the printer is idle, processing or stopped")),
    };
    Ok(Offer {
        name: request.name,
        description: request.description,
        location: request.location,
        formats: request.formats,
        color: request.color,
        duplex: request.duplex,
        condition,
        reason: request.state_reason,
    })
}

/// What a machine says of a job.
///
/// # Errors
/// `FIELD_INVALID`.
pub fn report(request: v1::UpdatePrintJobRequest) -> Result<Report> {
    let state = u32::try_from(request.state).ok().and_then(JobState::from_number);
    if request.sheets > SHEETS_MAX {
        return Err(invalid("sheets", "nobody prints that many"));
    }
    Ok(Report {
        attempt: request.attempt,
        state: state.ok_or_else(|| invalid("state", "the state is not set, or unknown"))?,
        reason: text(&request.state_reason, REASON_LEN),
        sheets: request.sheets,
    })
}

/// Limits that are to be set.
///
/// # Errors
/// `FIELD_INVALID`.
pub fn quota(quota: Option<v1::PrintQuota>) -> Result<Quota> {
    let quota = quota.ok_or_else(|| invalid("quota", "the quota is not set"))?;
    let period = match quota.period {
        0 => Some(Period::Month),
        number => u32::try_from(number).ok().and_then(Period::from_number),
    };
    if quota.user.len() > 256 {
        return Err(invalid("quota.user", "the user's name is too long"));
    }
    Ok(Quota {
        user: quota.user,
        sheets: quota.sheets,
        bytes: quota.size_bytes,
        period: period.ok_or_else(|| invalid("quota.period", "the period is unknown"))?,
    })
}

/// Limits as message.
pub fn encode_quota(quota: &Quota) -> v1::PrintQuota {
    v1::PrintQuota {
        user: quota.user.clone(),
        sheets: quota.sheets,
        size_bytes: quota.bytes,
        period: quota.period as i32,
    }
}

/// A printer as message.
pub fn encode_printer(shown: &Shown) -> v1::Printer {
    let printer = &shown.printer;
    v1::Printer {
        name: printer.name.clone(),
        uid: printer.uid.to_string(),
        description: printer.description.clone(),
        location: printer.location.clone(),
        device_id: printer.device.clone(),
        machine: shown.machine.clone(),
        state: shown.presence.condition as i32,
        state_reason: shown.presence.reason.clone(),
        formats: printer.formats.clone(),
        color: printer.color,
        duplex: printer.duplex,
        job_count: shown.job_count,
        my_right: shown.my_right.map_or(0, |r| r as i32),
        grants: encode_grants(&shown.grants),
        create_time: timestamp(printer.create_ms),
        last_seen_time: timestamp(shown.presence.seen_ms),
    }
}

/// A job as message for people.
pub fn encode_job(job: &Job) -> v1::PrintJob {
    v1::PrintJob {
        id: Uuid::from_slice(&job.id).unwrap_or_default().to_string(),
        printer: job.printer_name.clone(),
        display_name: job.display_name.clone(),
        user: job.user_name.clone(),
        state: records::state(job) as i32,
        state_reason: job.state_reason.clone(),
        size_bytes: job.size_bytes,
        digest: job.digest.clone(),
        format: job.format.clone(),
        options: v1::PrintOptions::decode(job.options.clone()).ok(),
        sheets: job.sheets,
        attempt: job.attempt,
        spool_id: String::new(),
        may_be_printed_twice: job.may_be_printed_twice,
        cancel_requested: job.cancel_requested,
        create_time: timestamp(job.create_ms),
        end_time: timestamp(job.end_ms),
        etag: format!("{:x}", job.revision),
        priority: records::priority(job),
        needs_pin: job.pin.is_some(),
    }
}

/// A job as message for the printer's machine.
pub fn encode_owned(job: &Job) -> v1::PrintJob {
    let spool_id = Uuid::from_slice(&job.spool).map(|id| id.to_string()).unwrap_or_default();
    v1::PrintJob { spool_id, ..encode_job(job) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::error::Reason;

    #[test]
    fn what_is_not_as_the_contract_says_is_refused_with_its_field() {
        let good = v1::PrintOptions { copies: 999, sides: "one-sided".into(), ..Default::default() };
        assert!(options(Some(good.clone())).is_ok() && options(None).is_ok());
        for (bad, field) in [
            (v1::PrintOptions { copies: 1_000, ..good.clone() }, "options.copies"),
            (v1::PrintOptions { sides: "three-sided".into(), ..good.clone() }, "options.sides"),
            (v1::PrintOptions { color_mode: "sepia".into(), ..good.clone() }, "options.color_mode"),
            (v1::PrintOptions { media: "iso a4".into(), ..good.clone() }, "options.media"),
            (v1::PrintOptions { media: "x".repeat(65), ..good.clone() }, "options.media"),
            (v1::PrintOptions { pages: "1;3".into(), ..good }, "options.pages"),
        ] {
            let error = options(Some(bad)).expect_err(field);
            assert!(error.is(Reason::FieldInvalid));
            assert_eq!(error.detail("field"), Some(field));
        }
        let header = |format: &str| v1::PrintHeader { format: format.into(), ..Default::default() };
        assert!(new_job(header("application/pdf")).is_ok());
        assert!(new_job(header("application/ pdf")).is_err() && new_job(header(&"x".repeat(128))).is_err());
        assert!(new_job(v1::PrintHeader { sheets: u64::MAX, ..header("") }).is_err());
        assert!(new_job(v1::PrintHeader { priority: 101, ..header("") }).is_err() && priority(0).is_err());
        assert!(new_job(v1::PrintHeader { pin: "123".into(), ..header("") }).is_err());
        for state in [0, 4, 99, -1] {
            assert!(offer(v1::RegisterPrinterRequest { state, ..Default::default() }).is_err(), "{state}");
        }
        for state in [0, 9, -1] {
            assert!(report(v1::UpdatePrintJobRequest { state, ..Default::default() }).is_err(), "{state}");
        }
        assert!(quota(None).is_err());
        assert!(quota(Some(v1::PrintQuota { period: 4, ..Default::default() })).is_err());
        assert!(uuid("", "id").is_err() && uuid(&Uuid::nil().to_string(), "id").is_err());
    }

    #[test]
    fn names_are_cut_and_cleaned() {
        assert_eq!(text("a\nb\u{1b}", 255), "a\u{FFFD}b\u{FFFD}");
        assert_eq!(text(&"ä".repeat(200), 255).len(), 254);
    }
}
