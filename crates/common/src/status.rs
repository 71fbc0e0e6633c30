//! The only place where an [`Error`] becomes a gRPC status and a status becomes an [`Error`].
//!
//! A status carries the code of the error's kind, the message, and as standard `google.rpc.Status` details:
//! `google.rpc.ErrorInfo` (the reason, domain "atrium", metadata), `google.rpc.RetryInfo` if a delay is known,
//! `google.rpc.BadRequest` if the metadata names a `field`, and `atrium.v1.ErrorHelp` (why, fix, request id). Details
//! travel in a header, and peers take 16 KiB of headers at most (often 8), so every text is cut and the whole is smaller
//! than [`MAX_DETAILS_BYTES`]; what does not fit any more is left out, metadata first.
//!
//! Causes (`Error::source`) never leave the machine.

use crate::error::{Error, Kind, Reason};
use bytes::Bytes;
use prost::Message;
use proto::v1;
use std::error::Error as StdError;
use std::time::Duration;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::pb;

/// The domain of our reasons in `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "atrium";
/// Largest encoded `google.rpc.Status`; base64 makes it 4 KiB.
pub const MAX_DETAILS_BYTES: usize = 3 * 1024;

const MAX_TEXT: usize = 512;
const MAX_WORD: usize = 64;
const MAX_METADATA: usize = 16;
const MAX_METADATA_VALUE: usize = 256;
/// Most details of a foreign status that are looked at.
const MAX_DETAILS: usize = 16;
/// Longest delay that is taken from a foreign status.
const MAX_RETRY: Duration = Duration::from_secs(24 * 3600);

const TYPE_ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";
const TYPE_RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";
const TYPE_BAD_REQUEST: &str = "type.googleapis.com/google.rpc.BadRequest";
const TYPE_ERROR_HELP: &str = "type.googleapis.com/atrium.v1.ErrorHelp";

/// The gRPC code of a kind.
pub fn code_of(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Aborted => Code::Aborted,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::DataLoss => Code::DataLoss,
        Kind::OutOfRange => Code::OutOfRange,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::Cancelled => Code::Cancelled,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::Internal => Code::Internal,
    }
}

/// The kind of a gRPC code. `Ok` where an error was expected and `Unknown` are somebody's defect.
pub fn kind_of(code: Code) -> Kind {
    match code {
        Code::InvalidArgument => Kind::InvalidArgument,
        Code::Unauthenticated => Kind::Unauthenticated,
        Code::PermissionDenied => Kind::PermissionDenied,
        Code::NotFound => Kind::NotFound,
        Code::AlreadyExists => Kind::AlreadyExists,
        Code::FailedPrecondition => Kind::FailedPrecondition,
        Code::Aborted => Kind::Aborted,
        Code::ResourceExhausted => Kind::ResourceExhausted,
        Code::Unavailable => Kind::Unavailable,
        Code::DataLoss => Kind::DataLoss,
        Code::OutOfRange => Kind::OutOfRange,
        Code::DeadlineExceeded => Kind::DeadlineExceeded,
        Code::Cancelled => Kind::Cancelled,
        Code::Unimplemented => Kind::Unimplemented,
        Code::Internal | Code::Unknown | Code::Ok => Kind::Internal,
    }
}

/// The status that tells a caller of this error.
pub fn to_status(error: &Error) -> Status {
    let code = code_of(error.kind());
    let message = cut(error.message(), MAX_TEXT);
    let details = encode_details(error, code, message);
    Status::with_details(code, message, details)
}

/// The error that a status tells of: one of Atrium with all its words, or a plain one of another origin (the transport,
/// a proxy, another implementation) translated into the nearest reason.
pub fn from_status(status: &Status) -> Error {
    let mut error = match decode_details(status) {
        Some(error) => error,
        None => from_plain(status),
    };
    if let Some(source) = status.source() {
        // Kept as text: the chain itself cannot be cloned.
        error = error.caused_by(chain_text(source));
    }
    error
}

/// An error about one item of many, for a message.
pub fn to_item_error(error: &Error) -> v1::ItemError {
    v1::ItemError {
        code: code_of(error.kind()) as i32,
        reason: cut(error.reason(), MAX_WORD).to_owned(),
        message: cut(error.message(), MAX_TEXT).to_owned(),
        why: cut(error.why(), MAX_TEXT).to_owned(),
        fix: cut(error.fix(), MAX_TEXT).to_owned(),
    }
}

/// The error that a message tells of.
pub fn from_item_error(item: &v1::ItemError) -> Error {
    let kind = kind_of(Code::from_i32(item.code));
    remote(kind, &item.reason, &item.message, &item.why, &item.fix)
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        to_status(&error)
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        from_status(&status)
    }
}

impl From<tonic::transport::Error> for Error {
    fn from(error: tonic::transport::Error) -> Self {
        unreachable_because(&error)
    }
}

/// The error for a connection that could not be made or broke: `TLS_FAILED` if a certificate was the cause, else
/// `SERVER_UNREACHABLE`.
pub fn unreachable_because(cause: &(dyn StdError + 'static)) -> Error {
    if let Some(error) = crate::rpc::explain(cause) {
        return error;
    }
    let reason = if is_tls(cause) { Reason::TlsFailed } else { Reason::ServerUnreachable };
    let message = match reason {
        Reason::TlsFailed => "the server could not be trusted",
        _ => "the connection to the server failed",
    };
    Error::new(reason, message).caused_by(chain_text(cause))
}

/// Reads the status of a response's headers or trailers. Unlike tonic's own reader it takes damaged details for absent
/// ones instead of panicking.
pub fn from_headers(headers: &http::HeaderMap) -> Option<Status> {
    let code = Code::from_bytes(headers.get("grpc-status")?.as_bytes());
    let message = headers.get("grpc-message").map_or_else(String::new, |v| percent_decode(v.as_bytes()));
    let details = headers
        .get("grpc-status-details-bin")
        .and_then(|v| base64_decode(v.as_bytes()))
        .map_or_else(Bytes::new, Bytes::from);
    Some(Status::with_details_and_metadata(code, message, details, MetadataMap::new()))
}

/// For fuzzing: reads arbitrary bytes as the details of a status.
pub fn fuzz_details(data: &[u8]) {
    let status = Status::with_details(Code::Internal, "x", Bytes::copy_from_slice(data));
    let error = from_status(&status);
    let again = to_status(&error);
    assert!(again.details().len() < MAX_DETAILS_BYTES);
    let mut headers = http::HeaderMap::new();
    if let Ok(value) = http::HeaderValue::from_bytes(data) {
        headers.insert("grpc-status", value.clone());
        headers.insert("grpc-message", value.clone());
        headers.insert("grpc-status-details-bin", value);
        let _ = from_headers(&headers);
    }
}

fn encode_details(error: &Error, code: Code, message: &str) -> Bytes {
    let mut info = pb::ErrorInfo {
        reason: cut(error.reason(), MAX_WORD).to_owned(),
        domain: DOMAIN.to_owned(),
        metadata: Default::default(),
    };
    let help = v1::ErrorHelp {
        why: cut(error.why(), MAX_TEXT).to_owned(),
        fix: cut(error.fix(), MAX_TEXT).to_owned(),
        request_id: cut(error.request_id().unwrap_or_default(), MAX_WORD).to_owned(),
    };
    let mut rest = vec![pack(TYPE_ERROR_HELP, &help)];
    if let Some(delay) = error.retry_delay() {
        let delay = delay.min(MAX_RETRY);
        let retry_delay = prost_types::Duration {
            seconds: i64::try_from(delay.as_secs()).unwrap_or(0),
            nanos: i32::try_from(delay.subsec_nanos()).unwrap_or(0),
        };
        rest.push(pack(TYPE_RETRY_INFO, &pb::RetryInfo { retry_delay: Some(retry_delay) }));
    }
    if let Some(field) = error.detail("field") {
        let violation = pb::bad_request::FieldViolation {
            field: cut(field, MAX_WORD).to_owned(),
            description: cut(message, MAX_METADATA_VALUE).to_owned(),
            ..Default::default()
        };
        rest.push(pack(TYPE_BAD_REQUEST, &pb::BadRequest { field_violations: vec![violation] }));
    }
    let fixed: usize = rest.iter().map(Message::encoded_len).sum::<usize>() + message.len() + 256;
    let mut room = MAX_DETAILS_BYTES.saturating_sub(fixed);
    for (key, value) in error.metadata().iter().take(MAX_METADATA) {
        let (key, value) = (cut(key, MAX_WORD), cut(value, MAX_METADATA_VALUE));
        let Some(left) = room.checked_sub(key.len() + value.len() + 12) else { break };
        room = left;
        info.metadata.insert(key.to_owned(), value.to_owned());
    }
    let mut details = vec![pack(TYPE_ERROR_INFO, &info)];
    details.append(&mut rest);
    pb::Status { code: code as i32, message: message.to_owned(), details }.encode_to_vec().into()
}

fn pack(type_url: &str, message: &impl Message) -> prost_types::Any {
    prost_types::Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

/// `None` if the status was not made by Atrium.
fn decode_details(status: &Status) -> Option<Error> {
    if status.details().is_empty() || status.details().len() > 64 * 1024 {
        return None;
    }
    let decoded = pb::Status::decode(status.details()).ok()?;
    let mut info = None;
    let mut help = v1::ErrorHelp::default();
    let mut retry = None;
    for detail in decoded.details.iter().take(MAX_DETAILS) {
        match detail.type_url.as_str() {
            TYPE_ERROR_INFO => {
                info = pb::ErrorInfo::decode(detail.value.as_slice()).ok().filter(|i| i.domain == DOMAIN)
            }
            TYPE_ERROR_HELP => help = v1::ErrorHelp::decode(detail.value.as_slice()).unwrap_or_default(),
            TYPE_RETRY_INFO => retry = pb::RetryInfo::decode(detail.value.as_slice()).ok().and_then(|r| r.retry_delay),
            _ => {}
        }
    }
    let info = info.filter(|i| !i.reason.is_empty())?;
    let mut error = remote(kind_of(status.code()), &info.reason, status.message(), &help.why, &help.fix);
    let mut metadata: Vec<_> = info.metadata.iter().take(MAX_METADATA).collect();
    metadata.sort();
    for (key, value) in metadata {
        error = error.with(cut(key, MAX_WORD), cut(value, MAX_METADATA_VALUE));
    }
    if let Some(delay) = retry.and_then(|d| Duration::try_from(d).ok()) {
        error = error.retry_after(delay.min(MAX_RETRY));
    }
    if !help.request_id.is_empty() {
        error = error.under_request(cut(&help.request_id, MAX_WORD));
    }
    Some(error)
}

/// An error in another machine's words; empty ones are filled in from the catalogue if it knows the reason.
fn remote(kind: Kind, reason: &str, message: &str, why: &str, fix: &str) -> Error {
    let known = Reason::ALL.iter().find(|r| r.word() == reason);
    let or = |text: &str, known: Option<&'static str>, other: &'static str| match text {
        "" => known.unwrap_or(other).to_owned(),
        text => cut(text, MAX_TEXT).to_owned(),
    };
    let reason_word = match reason {
        "" => word_of(code_of(kind)).to_owned(),
        word => cut(word, MAX_WORD).to_owned(),
    };
    Error::remote(
        kind,
        reason_word,
        or(message, None, "the call failed"),
        or(why, known.map(|r| r.why()), "the other side gave no further reason"),
        or(fix, known.map(|r| r.fix()), "look at the other side's log"),
    )
}

fn from_plain(status: &Status) -> Error {
    let message = match status.message() {
        "" => "the call failed",
        text => cut(text, MAX_TEXT),
    };
    if message == "Timeout expired" {
        return Error::new(Reason::DeadlineExceeded, "the call took too long");
    }
    // A status with a source was made on this side of the connection: by the transport.
    if let Some(source) = status.source() {
        if is_our_own(source) {
            return Error::new(Reason::Cancelled, message);
        }
        return unreachable_because(source);
    }
    match status.code() {
        Code::Unavailable => Error::new(Reason::ServerUnreachable, message),
        Code::DeadlineExceeded => Error::new(Reason::DeadlineExceeded, message),
        Code::Cancelled => Error::new(Reason::Cancelled, message),
        Code::Unimplemented => Error::new(Reason::MethodUnknown, message),
        Code::OutOfRange if message.contains("message length too large") => {
            Error::new(Reason::MessageTooLarge, message)
        }
        Code::Internal if message.contains("decode") => Error::new(Reason::MessageMalformed, message),
        // tonic's "transport error" and "Service was not ready" are of this sort when their cause got lost.
        Code::Unknown if message.contains("transport error") || message.contains("not ready") => {
            Error::new(Reason::ServerUnreachable, message)
        }
        code => remote(kind_of(code), word_of(code), message, "", ""),
    }
}

/// The gRPC name of a code: the reason of errors whose sender named none.
fn word_of(code: Code) -> &'static str {
    match code {
        Code::Ok | Code::Unknown => "UNKNOWN",
        Code::Cancelled => "CANCELLED",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// True if our own request body ended the call, so that the connection is not to blame.
fn is_our_own(cause: &(dyn StdError + 'static)) -> bool {
    links(cause).any(|link| link.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_user))
}

fn is_tls(cause: &(dyn StdError + 'static)) -> bool {
    links(cause).any(|link| {
        link.is::<rustls::Error>()
            || link
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::get_ref)
                .is_some_and(|inner| inner.is::<rustls::Error>())
    })
}

fn links<'a>(cause: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(cause), |link| (**link).source()).take(16)
}

fn chain_text(cause: &(dyn StdError + 'static)) -> String {
    let texts: Vec<String> = links(cause).map(|link| link.to_string()).collect();
    cut(&texts.join(": "), 1024).to_owned()
}

/// The longest prefix of at most `limit` bytes that ends at a character's end.
fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|i| text.is_char_boundary(*i));
    &text[..end.unwrap_or(0)]
}

fn percent_decode(text: &[u8]) -> String {
    let hex = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut out = Vec::with_capacity(text.len());
    let mut i = 0;
    while i < text.len() {
        let escaped = match &text[i..] {
            [b'%', high, low, ..] => hex(*high).zip(hex(*low)).map(|(h, l)| h << 4 | l),
            _ => None,
        };
        out.push(escaped.unwrap_or(text[i]));
        i += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Standard alphabet, padding optional; `None` for anything else.
fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    if text.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut bits = 0u32;
        for byte in group {
            let six = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(six);
        }
        bits <<= 6 * (4 - group.len());
        out.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(out)
}

#[cfg(test)]
mod tests;
