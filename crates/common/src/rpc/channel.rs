//! A tonic channel that adds the session token and a request id to every call.

use crate::error::{Error, Reason, Result};
use crate::status::unreachable_because;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::transport::channel::ResponseFuture;
use tonic::transport::{Channel, Error as TransportError};
use tower::{Service, ServiceExt};
use uuid::Uuid;

/// The header under which a call's request id travels.
pub const REQUEST_ID_HEADER: &str = "x-request-id";

/// The session token that all channels of a connection share.
#[derive(Clone, Default)]
pub(super) struct Token(Arc<ArcSwapOption<HeaderValue>>);

/// What generated clients and the bulk calls are made on. Clones share connection and token.
#[derive(Clone)]
pub struct OfficeChannel {
    channel: Channel,
    token: Token,
}

impl OfficeChannel {
    pub(super) fn new(channel: Channel, token: Token) -> Self {
        Self { channel, token }
    }

    pub(super) fn set_token(&self, token: Option<&str>) -> Result<()> {
        let header = match token {
            None => None,
            Some(token) => {
                let wrong = || Error::new(Reason::FieldInvalid, "the session token has characters that no token has");
                if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
                    return Err(wrong());
                }
                let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| wrong())?;
                // Kept out of header compression tables and of debug output.
                value.set_sensitive(true);
                Some(Arc::new(value))
            }
        };
        self.token.0.store(header);
        Ok(())
    }

    /// Asks for the server's health and takes any answer.
    pub(super) async fn ask_health(&self) -> Result<()> {
        // A gRPC message of no bytes: not compressed, length 0.
        let body = Body::new(Full::new(Bytes::from_static(&[0; 5])));
        let request = Request::post("/grpc.health.v1.Health/Check")
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(body)
            .map_err(|e| Error::internal("the question could not be written").caused_by(e))?;
        self.clone().oneshot(request).await.map_err(|e| unreachable_because(&e))?;
        Ok(())
    }
}

impl Service<Request<Body>> for OfficeChannel {
    type Response = Response<Body>;
    type Error = TransportError;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> ResponseFuture {
        let headers = request.headers_mut();
        if let Some(token) = self.token.0.load().as_deref()
            && !headers.contains_key(header::AUTHORIZATION)
        {
            headers.insert(header::AUTHORIZATION, token.clone());
        }
        // A caller that passes a call on, as the agent does, has set its id already.
        if !headers.contains_key(REQUEST_ID_HEADER)
            && let Ok(id) = HeaderValue::try_from(Uuid::new_v4().to_string())
        {
            headers.insert(REQUEST_ID_HEADER, id);
        }
        self.channel.call(request)
    }
}

impl fmt::Debug for OfficeChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfficeChannel").field("token", &self.token.0.load().is_some()).finish_non_exhaustive()
    }
}
