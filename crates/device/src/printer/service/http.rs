//! HTTP: requests to messages, messages to answers, and a page for browsers.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::operations;
use super::{Peer, Shared};
use crate::ipp::codec::{self, DecodeError, Scanner};
use crate::ipp::codes::Status;
use crate::ipp::value::{Message, Value};
use crate::printer::model::Right;

/// What is read and thrown away of a document that was refused, so that the client gets to see the answer.
const DRAIN_BYTES: usize = 8 << 20;
/// For how long.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// The rest of a request: a document that still comes.
pub(super) struct Rest {
    first: Bytes,
    body: Incoming,
    idle: Duration,
    ended: bool,
}

impl Rest {
    /// The next bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ()> {
        if !self.first.is_empty() {
            return Ok(Some(std::mem::take(&mut self.first)));
        }
        loop {
            if self.ended {
                return Ok(None);
            }
            match timeout(self.idle, self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return Ok(Some(data));
                    }
                }
                Ok(None) => {
                    self.ended = true;
                    return Ok(None);
                }
                Ok(Some(Err(_))) | Err(_) => return Err(()),
            }
        }
    }

    /// The document's length, if it is known.
    pub(super) fn expected(&self) -> Option<u64> {
        use http_body::Body as _;
        self.body.size_hint().exact().map(|n| n + self.first.len() as u64)
    }

    async fn drain(mut self) {
        let mut left = DRAIN_BYTES;
        let reading = async {
            while let Ok(Some(part)) = self.next().await {
                left = left.saturating_sub(part.len());
                if left == 0 {
                    break;
                }
            }
        };
        let _ = timeout(DRAIN_TIME, reading).await;
    }
}

/// What a request is about, besides its message.
pub(super) struct Context {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: Peer,
    pub(super) only: Option<Arc<str>>,
    /// Path of the HTTP request.
    pub(super) path: String,
    /// Host and port as the client knows them.
    pub(super) authority: String,
}

type Answer = Response<Full<Bytes>>;

/// Answers one request.
pub(super) async fn answer(
    shared: Arc<Shared>,
    peer: Peer,
    only: Option<Arc<str>>,
    request: Request<Incoming>,
) -> Answer {
    let authority = authority(&shared, &request);
    let context = Context { shared, peer, only, path: request.uri().path().to_owned(), authority };
    match *request.method() {
        Method::GET | Method::HEAD => return page(&context),
        Method::POST => {}
        _ => return plain(StatusCode::METHOD_NOT_ALLOWED, "this is a printer: POST for IPP, GET for its page"),
    }
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().is_some_and(|k| k.trim().eq_ignore_ascii_case("application/ipp")) {
        return plain(StatusCode::BAD_REQUEST, "a printer takes application/ipp");
    }
    let idle = context.shared.options.idle;
    let mut rest = Rest { first: Bytes::new(), body: request.into_body(), idle, ended: false };
    let head = match head(&mut rest).await {
        Ok(head) => head,
        Err(Broken::Slow) => return plain(StatusCode::REQUEST_TIMEOUT, "the request did not come"),
        Err(Broken::Malformed(head, error)) => {
            let answer = malformed(&head, error);
            rest.drain().await;
            return answer;
        }
    };
    let answer = operations::answer(&context, &head, &mut rest).await;
    rest.drain().await;
    ipp(&answer)
}

enum Broken {
    Slow,
    Malformed(Bytes, DecodeError),
}

/// Reads the attributes; what lies behind them stays in `rest`.
async fn head(rest: &mut Rest) -> Result<Message, Broken> {
    let mut scanner = Scanner::new();
    let mut bytes = BytesMut::new();
    loop {
        match scanner.scan(&bytes) {
            Err(error) => return Err(Broken::Malformed(bytes.freeze(), error)),
            Ok(Some(end)) => {
                let head = bytes.split_to(end).freeze();
                rest.first = bytes.freeze();
                return codec::decode(&head).map(|(m, _)| m).map_err(|e| Broken::Malformed(head, e));
            }
            Ok(None) => {}
        }
        match rest.next().await {
            Ok(Some(part)) => bytes.extend_from_slice(&part),
            Ok(None) => return Err(Broken::Malformed(bytes.freeze(), DecodeError::Truncated)),
            Err(()) => return Err(Broken::Slow),
        }
    }
}

fn malformed(head: &[u8], error: DecodeError) -> Answer {
    let Some((version, _, request_id)) = codec::header(head) else {
        return plain(StatusCode::BAD_REQUEST, "the request is shorter than the head of an IPP message");
    };
    let status = match error {
        DecodeError::TooLarge => Status::RequestEntityTooLarge,
        DecodeError::ValueTooLong | DecodeError::NameTooLong => Status::RequestValueTooLong,
        _ => Status::BadRequest,
    };
    ipp(&failure(status, version, request_id, &error.to_string()))
}

/// An answer that says why not.
pub(super) fn failure(status: Status, version: (u8, u8), request_id: i32, words: &str) -> Message {
    let version = if matches!(version.0, 1 | 2) { version } else { (2, 0) };
    let mut answer = Message::answer(status, version, request_id);
    answer.groups[0].put("status-message", Value::text(words));
    answer
}

fn ipp(message: &Message) -> Answer {
    let mut response = Response::new(Full::new(codec::encode(message)));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/ipp"));
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache"));
    response
}

fn plain(status: StatusCode, words: &'static str) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from_static(words.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Host and port as the client wrote them, if they are harmless, or else our own.
fn authority(shared: &Shared, request: &Request<Incoming>) -> String {
    let said = request.uri().authority().map(|a| a.as_str());
    let said = said.or_else(|| request.headers().get(header::HOST).and_then(|v| v.to_str().ok()));
    let harmless = |a: &&str| {
        (1..=255).contains(&a.len())
            && a.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']'))
    };
    said.filter(harmless).unwrap_or(&shared.options.host).to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// What a browser sees: state and jobs in numbers; and the icons that print dialogs show.
fn page(context: &Context) -> Answer {
    if let Some(size) = context.path.strip_prefix("/icons/printer-").and_then(|p| p.strip_suffix(".png")) {
        return match size {
            "48" => png(48),
            "128" => png(128),
            "512" => png(512),
            _ => plain(StatusCode::NOT_FOUND, "there is no such icon"),
        };
    }
    let who = context.shared.access.who(&context.peer, "");
    let mut text = String::from("<!DOCTYPE html><meta charset=utf-8><title>Printers</title><h1>Printers</h1>\n");
    for printer in context.shared.printers.list() {
        let name = printer.config.name.as_str();
        if context.only.as_deref().is_some_and(|only| only != name)
            || !context.shared.access.allows(&who, &context.peer, name, Right::See)
        {
            continue;
        }
        let shown = [&printer.config.info, &printer.config.location].map(|s| escape(s));
        text.push_str(&format!(
            "<p><b>{}</b> {} {}: {} ({}), {} jobs\n",
            escape(name),
            shown[0],
            shown[1],
            printer.state.word(),
            escape(&printer.reasons.join(", ")),
            printer.jobs
        ));
    }
    let mut response = Response::new(Full::new(text.into()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        header::HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    );
    response
}

/// A printer, drawn with rectangles.
fn png(size: u32) -> Answer {
    let parts: [(u32, u32, u32, u32, [u8; 4]); 4] = [
        (14, 6, 34, 20, [0xff, 0xff, 0xff, 0xff]),
        (6, 18, 42, 36, [0x3b, 0x52, 0x6e, 0xff]),
        (12, 30, 36, 42, [0xff, 0xff, 0xff, 0xff]),
        (36, 21, 39, 24, [0x5f, 0xd0, 0x7a, 0xff]),
    ];
    let mut rows = Vec::with_capacity((size * (size * 4 + 1)) as usize);
    for y in 0..size {
        rows.push(0);
        for x in 0..size {
            let (u, v) = (x * 48 / size, y * 48 / size);
            let hit = parts.iter().rev().find(|(x0, y0, x1, y1, _)| u >= *x0 && u < *x1 && v >= *y0 && v < *y1);
            rows.extend_from_slice(&hit.map_or([0, 0, 0, 0], |p| p.4));
        }
    }
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    let packed = encoder.write_all(&rows).and_then(|()| encoder.finish()).unwrap_or_default();
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        let mut crc = flate2::Crc::new();
        crc.update(kind);
        crc.update(data);
        out.extend_from_slice(kind);
        out.extend_from_slice(data);
        out.extend_from_slice(&crc.sum().to_be_bytes());
    };
    let mut head = Vec::new();
    head.extend_from_slice(&size.to_be_bytes());
    head.extend_from_slice(&size.to_be_bytes());
    head.extend_from_slice(&[8, 6, 0, 0, 0]);
    chunk(b"IHDR", &head);
    chunk(b"IDAT", &packed);
    chunk(b"IEND", &[]);
    let mut response = Response::new(Full::new(out.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("image/png"));
    response
}
