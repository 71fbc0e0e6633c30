//! What every call goes through, whichever listener it came in by: request id, method, deadline, bound, credentials,
//! access, handler, outcome.
//!
//! The order matters. A method that is not in the table is refused before credentials are looked at; access is refused
//! before the handler decodes anything. The permit of the bound is held until the last byte of the response, because a
//! stream costs memory as long as it lives. A panic ends its own call only.

mod body;

use super::access::{self, Access, Method};
use super::auth::{self, Peer};
use super::{deadline, request_id};
use crate::app::caller::Caller;
use crate::app::{App, identity};
use crate::metrics::{Metrics, UNKNOWN_METHOD};
use arc_swap::ArcSwapOption;
pub use body::CallBody;
use body::{CallGuard, RequestBody};
use bytes::Bytes;
use common::error::{Error, Kind, Reason, Result};
use common::status::{code_of, from_headers, from_status, to_status};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Body as HttpBody;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::service::Routes;
use tower::Service;
use tracing::Instrument;

/// The services once everything is open.
#[derive(Debug)]
pub struct Ready {
    /// The application.
    pub app: App,
    /// All services.
    pub routes: Routes,
}

/// Carries calls from the listeners to the services.
#[derive(Clone, Debug)]
pub struct Pipeline(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ready: ArcSwapOption<Ready>,
    /// Health and reflection: answered from the first moment to the last.
    always: Routes,
    calls: Arc<Semaphore>,
    call_timeout: Duration,
    metrics: Arc<Metrics>,
    /// Ends every stream that is still open.
    cut: CancellationToken,
    streams: auth::OpenStreams,
}

impl Pipeline {
    /// A pipeline that answers `always` only, until [`Pipeline::open`].
    pub fn new(always: Routes, max_calls: usize, call_timeout: Duration, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Shared {
            ready: ArcSwapOption::empty(),
            always,
            calls: Arc::new(Semaphore::new(max_calls)),
            call_timeout,
            metrics,
            cut: CancellationToken::new(),
            streams: auth::OpenStreams::default(),
        }))
    }

    /// From now on the services answer.
    pub fn open(&self, ready: Ready) {
        self.0.ready.store(Some(Arc::new(ready)));
    }

    /// Ends every stream that is still open with SHUTTING_DOWN.
    pub fn cut(&self) {
        self.0.cut.cancel();
    }

    /// Lets go of the services, so that what they hold can be closed.
    pub fn close(&self) {
        self.0.ready.store(None);
    }

    /// The open streams and whose they are.
    pub fn streams(&self) -> &auth::OpenStreams {
        &self.0.streams
    }

    /// Answers a call. Never fails: whatever goes wrong is in the response.
    pub async fn call<B>(&self, peer: &Peer, request: Request<B>) -> Response<CallBody>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if let Some(refusal) = not_grpc(&request) {
            return refusal;
        }
        let id = request_id::of(request.headers());
        let method = access::method(request.uri().path());
        let label = method.as_ref().map_or(UNKNOWN_METHOD, |m| m.path);
        self.0.metrics.call_began();
        let span = tracing::info_span!("call", request_id = %id, method = label, actor = tracing::field::Empty);
        let guard = CallGuard::new(self.0.metrics.clone(), label, id, span.clone());
        self.answer(peer, request, method, guard).instrument(span).await
    }

    async fn answer<B>(
        &self,
        peer: &Peer,
        mut request: Request<B>,
        method: Result<&'static Method>,
        mut guard: CallGuard,
    ) -> Response<CallBody>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let prepared = match method {
            Ok(method) => self.prepare(peer, &mut request, method, &mut guard).await,
            Err(error) => Err(error),
        };
        let mut routes = match prepared {
            Ok(routes) => routes,
            Err(error) => return refused(error, guard),
        };
        let metrics = self.0.metrics.clone();
        let request = request.map(|body| tonic::body::Body::new(RequestBody::new(body, metrics)));
        let until = guard.deadline;
        let handler = AssertUnwindSafe(async move { routes.call(request).await }).catch_unwind();
        let outcome = match until {
            Some(until) => match tokio::time::timeout_at(until, handler).await {
                Ok(outcome) => outcome,
                Err(_) => return refused(deadline::exceeded(), guard),
            },
            None => handler.await,
        };
        match outcome {
            Ok(Ok(response)) => finish(response, guard),
            Ok(Err(never)) => match never {},
            Err(_panic) => {
                self.0.metrics.panicked();
                refused(Error::internal("the call ran into a defect"), guard)
            }
        }
    }

    /// Everything that is decided before the handler runs.
    async fn prepare<B: Send>(
        &self,
        peer: &Peer,
        request: &mut Request<B>,
        method: &'static Method,
        guard: &mut CallGuard,
    ) -> Result<Routes> {
        let now = Instant::now();
        let asked = deadline::of(request.headers())?;
        let limit =
            if method.streaming { asked } else { Some(asked.unwrap_or(Duration::MAX).min(self.0.call_timeout)) };
        guard.deadline = limit.and_then(|limit| now.checked_add(limit));
        if !method.path.starts_with("/atrium.") {
            // Health and reflection tell nothing secret and must answer when nothing else does.
            if method.streaming {
                guard.streaming = true;
                guard.cut = Some(self.0.cut.child_token());
            }
            return Ok(self.0.always.clone());
        }
        let permit = self.0.calls.clone().try_acquire_owned().map_err(|_| {
            Error::new(Reason::Overloaded, "the server has as many calls as it takes").retry_after(RETRY_OVERLOADED)
        })?;
        guard.permit = Some(permit);
        let ready = self.0.ready.load_full().ok_or_else(|| {
            let stopping = self.0.cut.is_cancelled();
            let (reason, what) = if stopping {
                (Reason::ShuttingDown, "the server is shutting down")
            } else {
                (Reason::Starting, "the server is starting")
            };
            Error::new(reason, what).retry_after(RETRY_OVERLOADED)
        })?;
        let caller = match auth::identify(&ready.app, peer, method, request.headers(), guard.id.clone()) {
            Ok(caller) => caller,
            Err(error) if method.access == Access::Public && !error.is(Reason::DeviceRevoked) => {
                auth::anonymous(peer, guard.id.clone())
            }
            Err(error) => {
                if error.is(Reason::DeviceRevoked) {
                    let caller = auth::anonymous(peer, guard.id.clone());
                    note_refusal(&ready.app, &caller, method, &error).await;
                }
                return Err(error);
            }
        };
        tracing::Span::current().record("actor", caller.actor());
        if let Err(error) = access::check(method.access, &caller) {
            tracing::info!(reason = error.reason(), "refused");
            // A call without any credentials is no attempt at something: whoever opens the port can make it.
            if error.kind() == Kind::PermissionDenied {
                note_refusal(&ready.app, &caller, method, &error).await;
            }
            return Err(error);
        }
        if method.streaming {
            guard.streaming = true;
            let cut = self.0.cut.child_token();
            guard.stream = Some(self.0.streams.register(method.path, &caller, cut.clone()));
            guard.cut = Some(cut);
        }
        // The credentials have done their work; handlers cannot log what they do not get.
        request.headers_mut().remove(header::AUTHORIZATION);
        request.extensions_mut().insert::<Caller>(caller);
        if let Some(info) = &peer.connect_info {
            request.extensions_mut().insert(info.clone());
        }
        Ok(ready.routes.clone())
    }
}

/// Notes a refusal in the audit log. Boxed: it is rare, and its room would be part of every call.
async fn note_refusal(app: &App, caller: &Caller, method: &Method, error: &Error) {
    Box::pin(identity::refuse(app, caller, method.path, "", error)).await;
}

/// When to come back after an overload or during a start.
const RETRY_OVERLOADED: Duration = Duration::from_secs(1);

fn not_grpc<B>(request: &Request<B>) -> Option<Response<CallBody>> {
    let grpc = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
    let status = if request.method() != http::Method::POST {
        http::StatusCode::METHOD_NOT_ALLOWED
    } else if !request.headers().get(header::CONTENT_TYPE).is_some_and(grpc) {
        http::StatusCode::UNSUPPORTED_MEDIA_TYPE
    } else {
        return None;
    };
    let mut response = Response::new(CallBody::empty());
    *response.status_mut() = status;
    Some(response)
}

/// A response that is an error from the first byte.
fn refused(error: Error, mut guard: CallGuard) -> Response<CallBody> {
    log(&error);
    guard.code = Some(code_of(error.kind()));
    let mut response = Response::new(CallBody::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    insert_id(headers, &guard.id);
    write_status(headers, error.under_request(&*guard.id));
    response
}

/// A response of a handler: the id in it, also in its error, and the guard until its end.
fn finish(response: Response<tonic::body::Body>, mut guard: CallGuard) -> Response<CallBody> {
    let (mut parts, body) = response.into_parts();
    guard.code = stamp(&mut parts.headers, &guard.id);
    insert_id(&mut parts.headers, &guard.id);
    Response::from_parts(parts, CallBody::new(body, guard))
}

fn insert_id(headers: &mut HeaderMap, id: &str) {
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(request_id::HEADER, value);
    }
}

/// Whether these headers or trailers say OK, as nearly all do.
fn ended_well(headers: &HeaderMap) -> bool {
    headers.get("grpc-status").is_some_and(|status| status == "0")
}

/// Reads the outcome out of headers or trailers. An error is written again with the request id, and one that tonic made
/// by itself in the words of the catalogue. `None` if there is no outcome in them.
fn stamp(headers: &mut HeaderMap, id: &str) -> Option<Code> {
    if ended_well(headers) {
        return Some(Code::Ok);
    }
    let status = from_headers(headers)?;
    if status.code() == Code::Ok {
        return Some(Code::Ok);
    }
    let mut error = from_status(&status);
    if error.request_id().is_none() {
        error = error.under_request(id);
    }
    log(&error);
    let code = code_of(error.kind());
    write_status(headers, error);
    Some(code)
}

fn write_status(headers: &mut HeaderMap, error: Error) {
    for name in ["grpc-status", "grpc-message", "grpc-status-details-bin"] {
        headers.remove(name);
    }
    if to_status(&error).add_header(headers).is_err() {
        headers.insert("grpc-status", HeaderValue::from(code_of(error.kind()) as i32));
    }
}

/// An error is logged once, here, at the end of its call. What someone must look at is an ERROR.
fn log(error: &Error) {
    use common::error::Kind;
    match error.kind() {
        Kind::Internal | Kind::DataLoss => tracing::error!(reason = error.reason(), ?error, "call failed"),
        _ => tracing::debug!(reason = error.reason(), ?error, "call failed"),
    }
}

#[cfg(test)]
mod tests;
