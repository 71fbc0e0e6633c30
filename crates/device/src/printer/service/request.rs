//! What a request asks for, in the words of the model.

use super::super::model::{Capabilities, Hold, PrinterConfig, Sides, Ticket};
use super::super::printers::JobRequest;
use super::super::upload::{Compression, DocumentRequest};
use crate::ipp::codes::{Status, group};
use crate::ipp::value::{Attribute, Group, Message, Value, days_of_civil};
use crate::printer::service::attributes::media_size;

/// A job's request, and what of it is not supported.
pub(super) struct Asked {
    pub(super) job: JobRequest,
    pub(super) unsupported: Vec<Attribute>,
}

/// Reads the job of Print-Job, Create-Job and Validate-Job.
pub(super) fn job(message: &Message, config: &PrinterConfig) -> Result<Asked, (Status, String)> {
    let capabilities = config.capabilities();
    let mut asked = Asked { job: JobRequest::default(), unsupported: Vec::new() };
    let words = |name| message.operation_str(name).unwrap_or_default().to_owned();
    asked.job.name = words("job-name");
    if asked.job.name.is_empty() {
        asked.job.name = words("document-name");
    }
    asked.job.pin = pin(message)?;
    if let Some(template) = message.group(group::JOB) {
        for attribute in &template.attributes {
            if !apply(&mut asked.job, attribute, &capabilities) {
                asked.unsupported.push(attribute.clone());
            }
        }
    }
    let fidelity = message.group(group::OPERATION).and_then(|g| g.bool("ipp-attribute-fidelity")).unwrap_or(false);
    if fidelity && !asked.unsupported.is_empty() {
        let names: Vec<&str> = asked.unsupported.iter().map(|a| a.name.as_str()).take(5).collect();
        return Err((Status::AttributesNotSupported, format!("not supported: {}", names.join(", "))));
    }
    Ok(asked)
}

fn pin(message: &Message) -> Result<Option<String>, (Status, String)> {
    let Some(password) = message.operation_attribute("job-password") else { return Ok(None) };
    let encryption = message.operation_str("job-password-encryption").unwrap_or("none");
    let refuse = |words: &str| Err((Status::AttributesNotSupported, words.to_owned()));
    if encryption != "none" {
        return refuse("job-password is taken without encryption of its own only; use ipps");
    }
    match password.first() {
        Some(Value::OctetString(bytes)) if (1..=32).contains(&bytes.len()) => match std::str::from_utf8(bytes) {
            Ok(pin) => Ok(Some(pin.to_owned())),
            Err(_) => refuse("job-password is not UTF-8"),
        },
        _ => refuse("job-password has 1 to 32 octets"),
    }
}

/// Reads the document of Print-Job, Send-Document and Validate-Job.
pub(super) fn document(message: &Message) -> Result<DocumentRequest, (Status, String)> {
    let compression = match message.operation_str("compression") {
        None | Some("none") => Compression::None,
        Some("gzip") => Compression::Gzip,
        Some("deflate") => Compression::Deflate,
        Some(_) => return Err((Status::CompressionNotSupported, "compression is none, gzip or deflate".into())),
    };
    Ok(DocumentRequest {
        name: message.operation_str("document-name").unwrap_or_default().to_owned(),
        format: message.operation_str("document-format").map(|f| f.to_ascii_lowercase()),
        compression,
    })
}

/// Takes one attribute of a job; false if it or its value is not supported.
fn apply(job: &mut JobRequest, attribute: &Attribute, can: &Capabilities) -> bool {
    let Some(first) = attribute.first() else { return false };
    let ticket = &mut job.ticket;
    let number = |low: i32, high: i32| first.as_int().filter(|n| (low..=high).contains(n));
    match attribute.name.as_str() {
        "copies" => set(number(1, 999), |n| ticket.copies = n as u32),
        "job-priority" => set(number(1, 100), |n| job.priority = n as u8),
        "print-quality" => set(number(3, 5), |n| ticket.quality = Some(n as u8)),
        "orientation-requested" => set(number(3, 6), |n| ticket.orientation = Some(n as u8)),
        "number-up" => set(number(1, 16).filter(|n| NUMBER_UP.contains(n)), |n| ticket.number_up = Some(n as u32)),
        "sides" => {
            let sides = first.as_str().and_then(Sides::of).filter(|s| can.duplex || *s == Sides::OneSided);
            set(sides, |s| ticket.sides = Some(s))
        }
        "media" => set(first.as_str().filter(|m| supports(can, m)), |m| ticket.media = Some(m.to_owned())),
        "media-col" => set(first.as_collection().and_then(|c| media_of(c, can)), |m| ticket.media = m),
        "print-color-mode" => {
            let mode = first.as_str().filter(|m| matches!(*m, "auto" | "monochrome") || (*m == "color" && can.color));
            set(mode, |m| ticket.color = Some(m.to_owned()))
        }
        "job-hold-until" => match first.as_str() {
            Some("no-hold") => true,
            Some("indefinite") => {
                job.hold = Some(Hold::Indefinite);
                true
            }
            _ => false,
        },
        "job-hold-until-time" => match first {
            Value::DateTime(date) => set(unix_ms(&date.octets), |at| job.hold = Some(Hold::Until(at))),
            _ => false,
        },
        "page-ranges" => ranges(ticket, attribute),
        "finishings" => attribute.values.iter().all(|v| v.as_int() == Some(3)),
        "job-sheets" => first.as_str() == Some("none"),
        "output-bin" => first.as_str() == Some("face-down"),
        "print-content-optimize" | "print-rendering-intent" | "print-scaling" => first.as_str() == Some("auto"),
        "printer-resolution" => {
            matches!(first, Value::Resolution { x, y, unit: 3 } if x == y && can.resolutions.iter().any(|r| *r as i32 == *x))
        }
        "multiple-document-handling" => first.as_str() == Some("separate-documents-collated-copies"),
        _ => false,
    }
}

/// Pages on a side that printers take.
pub(super) const NUMBER_UP: [i32; 6] = [1, 2, 4, 6, 9, 16];

fn set<T>(value: Option<T>, put: impl FnOnce(T)) -> bool {
    value.map(put).is_some()
}

fn supports(can: &Capabilities, media: &str) -> bool {
    can.media.iter().any(|m| m == media)
}

/// The size that a `media-col` asks for; `Some(None)` if it asks for none.
fn media_of(members: &[Attribute], can: &Capabilities) -> Option<Option<String>> {
    let get = |list: &[Attribute], name: &str| list.iter().find(|a| a.name == name).and_then(|a| a.first().cloned());
    if let Some(name) = get(members, "media-size-name").as_ref().and_then(Value::as_str) {
        return supports(can, name).then(|| Some(name.to_owned()));
    }
    let Some(Value::Collection(size)) = get(members, "media-size") else { return Some(None) };
    let side = |name| get(&size, name).as_ref().and_then(Value::as_int);
    let wanted = (side("x-dimension")?, side("y-dimension")?);
    can.media.iter().find(|m| media_size(m) == Some(wanted)).map(|m| Some(m.clone()))
}

fn ranges(ticket: &mut Ticket, attribute: &Attribute) -> bool {
    let mut last = 0;
    let mut pages = Vec::new();
    for value in attribute.values.iter().take(100) {
        match value {
            Value::Range(low, high) if *low > last && low <= high => {
                pages.push((*low as u32, *high as u32));
                last = *high;
            }
            _ => return false,
        }
    }
    ticket.pages = pages;
    attribute.values.len() <= 100
}

/// Milliseconds since 1970 of a date with its zone.
fn unix_ms(octets: &[u8; 11]) -> Option<u64> {
    let [y1, y0, month, day, hour, minute, second, tenth, sign, zone_hour, zone_minute] = *octets;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = days_of_civil(i64::from(u16::from_be_bytes([y1, y0])), month, day);
    let zone = (i64::from(zone_hour) * 60 + i64::from(zone_minute)) * if sign == b'-' { -1 } else { 1 };
    let minutes = days * 1440 + i64::from(hour) * 60 + i64::from(minute) - zone;
    u64::try_from(minutes * 60_000 + i64::from(second) * 1000 + i64::from(tenth) * 100).ok()
}

/// Names that `requested-attributes` asks for; `None` if it is missing.
pub(super) fn requested(operation: &Group) -> Option<Vec<&str>> {
    let attribute = operation.get("requested-attributes")?;
    Some(attribute.values.iter().filter_map(Value::as_str).collect())
}
