//! A disc for players and browsers: the image and its files over HTTP/1.1, with ranges (RFC 9110 §14).
//!
//! ```text
//!   /             a page with links            /disc.iso       the image
//!   /files/       directories as pages         /files/PATH     a file
//! ```
//!
//! The validator (ETag) holds the generation of the disc, so a player that goes on with `If-Range` after the disc was
//! changed gets the whole of the new one and never a mixture. A disc that goes away in the middle of a body ends the
//! connection before the length is reached.
//!
//! It is meant for loopback and asks for no password, so it answers only if it is addressed by number, as `localhost` or
//! by a name that it was given: a web page whose name was made to point here cannot read it.
//!
//! **Bounds.** Connections, time for a request's head, 16 KiB of it, two pieces of 256 KiB per body.

mod page;
mod range;

use super::files::{Disc, NodeKind};
use crate::nbd::BlockSource;
use bytes::Bytes;
use common::error::{Error, Kind, Reason, Result};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use range::Part;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Bytes that are read at once for a body.
const PIECE: u64 = 256 << 10;
/// Pieces that are read at the same time for a body.
const AHEAD: usize = 2;
/// Connections at once.
const CONNECTIONS: usize = 64;
/// Time for a request's head.
const HEAD: Duration = Duration::from_secs(10);
/// Most bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;

type Body = UnsyncBoxBody<Bytes, Error>;

/// A disc that can be looked at.
#[derive(Clone)]
pub struct Shelf {
    /// Its title.
    pub title: String,
    /// Its image.
    pub image: Arc<dyn BlockSource>,
    /// Its files, if it has a file system that can be read.
    pub files: Option<Arc<Disc>>,
}

/// Gives the disc that is there now.
pub trait Library: Send + Sync + 'static {
    /// The disc.
    ///
    /// # Errors
    /// NO_MEDIUM, TRAY_OPEN, DEVICE_AWAY and the like.
    fn shelf(&self) -> BoxFuture<'_, Result<Shelf>>;
}

/// Always the same disc.
impl Library for Shelf {
    fn shelf(&self) -> BoxFuture<'_, Result<Shelf>> {
        let same = self.clone();
        Box::pin(async move { Ok(same) })
    }
}

/// The service.
#[derive(Clone)]
pub struct Service {
    library: Arc<dyn Library>,
    /// Names by which it may be addressed besides `localhost` and numbers.
    names: Arc<[String]>,
}

impl Service {
    /// A service for a library. `names` are host names by which it may be addressed besides `localhost` and addresses.
    pub fn new(library: Arc<dyn Library>, names: impl IntoIterator<Item = String>) -> Self {
        Self { library, names: names.into_iter().collect() }
    }

    /// Serves a listener until it is stopped; bodies that are on their way then are cut.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let (service, stop) = (self.clone(), stop.clone());
            tasks.spawn(async move {
                let _place = place;
                let answer = service_fn(|request| async { Ok::<_, Infallible>(service.answer(request).await) });
                let mut builder = hyper::server::conn::http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD);
                let connection = builder.serve_connection(TokioIo::new(stream), answer);
                tokio::select! {
                    () = stop.cancelled() => {}
                    ended = connection => if let Err(error) = ended {
                        tracing::debug!(%error, "a player's connection has ended");
                    },
                }
            });
        }
        tasks.close();
        tasks.wait().await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let head = request.method() == Method::HEAD;
        let result = match *request.method() {
            Method::GET | Method::HEAD => self.get(&request, head).await,
            _ => {
                let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n".to_owned());
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
                Ok(response)
            }
        };
        let mut response = result.unwrap_or_else(|error| text(status_of(&error), describe(&error)));
        let headers = response.headers_mut();
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
        if head { response.map(|_| nothing()) } else { response }
    }

    async fn get<B>(&self, request: &Request<B>, head: bool) -> Result<Response<Body>> {
        if !self.is_addressed(request) {
            return Ok(text(StatusCode::MISDIRECTED_REQUEST, "this is not a name of this service\n".to_owned()));
        }
        let shelf = self.library.shelf().await?;
        let path = request.uri().path();
        if path == "/" {
            return Ok(page(page::index(&shelf.title, shelf.files.is_some())));
        }
        if path == "/disc.iso" {
            let tag = format!("\"{}-image\"", shelf.image.generation());
            return send(shelf.image, &tag, "application/x-iso9660-image", request, head).await;
        }
        let path = path.strip_prefix("/files").filter(|p| p.is_empty() || p.starts_with('/')).and_then(page::unescape);
        let path = path.ok_or_else(|| Error::new(Reason::AddressUnknown, "there is nothing at this path"))?;
        let disc = shelf.files;
        let disc = disc.ok_or_else(|| Error::new(Reason::DiscFormatUnknown, "the disc has no files to show"))?;
        let node = disc.stat(&path).await?;
        if node.kind == NodeKind::Directory {
            return Ok(page(page::directory(path.trim_matches('/'), &disc.list(&path).await?)));
        }
        let file = disc.open_file(&path).await?;
        let tag = format!("\"{}-{:x}-{:x}\"", file.generation(), file.first_offset(), file.size_bytes());
        send(Arc::new(file), &tag, page::content_type(&node.name), request, head).await
    }

    fn is_addressed<B>(&self, request: &Request<B>) -> bool {
        let host = request.uri().host().or_else(|| {
            let host = request.headers().get(header::HOST)?.to_str().ok()?;
            // The colon of a port, not one within an address of IPv6.
            let port = host.rfind(':').filter(|at| host[*at + 1..].bytes().all(|b| b.is_ascii_digit()));
            Some(port.map_or(host, |at| &host[..at]))
        });
        host.is_some_and(|host| {
            let number = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok();
            number || host.eq_ignore_ascii_case("localhost") || self.names.iter().any(|n| n.eq_ignore_ascii_case(host))
        })
    }
}

/// Answers with bytes, or the range of them that is asked for.
async fn send<B>(
    source: Arc<dyn BlockSource>,
    tag: &str,
    kind: &'static str,
    request: &Request<B>,
    head: bool,
) -> Result<Response<Body>> {
    let size = source.size_bytes();
    let headers = request.headers();
    let word = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
    let builder = Response::builder()
        .header(header::ETAG, tag)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CACHE_CONTROL, "no-cache")
        .header(header::CONTENT_TYPE, kind);
    let failed = |e: http::Error| Error::internal("an answer could not be made").caused_by(e);
    if word(header::IF_NONE_MATCH).is_some_and(|tags| tags.split(',').any(|t| t.trim() == tag)) {
        return builder.status(StatusCode::NOT_MODIFIED).body(nothing()).map_err(failed);
    }
    // A date is a validator too, but never ours.
    let current = word(header::IF_RANGE).is_none_or(|validator| validator.trim() == tag);
    let part = match word(header::RANGE) {
        Some(range) if current && request.method() == Method::GET => range::parse(range, size),
        _ => Part::Whole,
    };
    let (builder, range) = match part {
        Part::Whole => (builder.status(StatusCode::OK), 0..size),
        Part::Range(range) => {
            let told = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            (builder.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, told), range)
        }
        Part::Unsatisfiable => {
            let told = format!("bytes */{size}");
            let builder = builder.status(StatusCode::RANGE_NOT_SATISFIABLE).header(header::CONTENT_RANGE, told);
            return builder.header(header::CONTENT_LENGTH, 0).body(nothing()).map_err(failed);
        }
    };
    let builder = builder.header(header::CONTENT_LENGTH, range.end - range.start);
    let body = if head { nothing() } else { body(source, range).await? };
    builder.body(body).map_err(failed)
}

/// The bytes of a range. The first piece is read before, so that what is wrong from the beginning has its own status.
async fn body(source: Arc<dyn BlockSource>, range: Range<u64>) -> Result<Body> {
    if range.is_empty() {
        return Ok(nothing());
    }
    let piece = move |source: Arc<dyn BlockSource>, at: u64, end: u64| async move {
        source.read(at, (end - at).min(PIECE) as u32).await
    };
    let first = piece(source.clone(), range.start, range.end).await?;
    let (from, end) = (range.start + first.len() as u64, range.end);
    let rest = stream::iter((from..end).step_by(PIECE as usize)).map(move |at| piece(source.clone(), at, end));
    let all = stream::iter([Ok(first)]).chain(rest.buffered(AHEAD)).map_ok(Frame::data);
    Ok(BodyExt::boxed_unsync(StreamBody::new(all)))
}

fn nothing() -> Body {
    Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync()
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed_unsync()
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn page(text: String) -> Response<Body> {
    let mut response = Response::new(full(text));
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn describe(error: &Error) -> String {
    format!("{}\n{}\n{}\n{}\n", error.reason(), error.message(), error.why(), error.fix())
}

fn status_of(error: &Error) -> StatusCode {
    match error.kind() {
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::InvalidArgument => StatusCode::BAD_REQUEST,
        Kind::PermissionDenied | Kind::Unauthenticated => StatusCode::FORBIDDEN,
        Kind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        _ if error.is(Reason::DiscChanged) => StatusCode::GONE,
        _ if error.is(Reason::NoMedium) || error.is(Reason::TrayOpen) => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Unavailable | Kind::ResourceExhausted => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
