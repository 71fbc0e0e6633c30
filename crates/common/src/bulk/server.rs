//! The server's side of both methods, as a tower service beside the generated ones.

use super::body::{MessageBody, MessageSender, Side, channel, trailers};
use super::download::DownloadEncoder;
use super::message::Encoded;
use super::reader::MessageReader;
use super::upload::{MAX_UPLOAD_MESSAGE, decode_upload};
use super::{DOWNLOAD_PATH, IDLE, QUEUE_BYTES, Rope, SERVICE, UPLOAD_PATH};
use crate::error::{Error, Reason, Result};
use crate::model::{ChunkId, ChunkRef, UploadId};
use crate::status::to_status;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::request::Parts;
use http::{HeaderValue, Request, Response, header};
use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message;
use proto::v1;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::body::Body;

/// What a server does with both methods. `context` is the head of the request, with the extensions that layers in front
/// have put there.
pub trait BulkHandler: Send + Sync + 'static {
    /// Takes chunks. Returning early ends the call; the caller gets the error.
    fn upload(
        &self,
        context: Parts,
        stream: UploadStream,
    ) -> impl Future<Output = Result<v1::UploadChunksResponse>> + Send;

    /// Sends files. The caller gets what was sent before an error, then the error. Runs in a task of its own, which is
    /// dropped when the caller goes away.
    fn download(
        &self,
        context: Parts,
        request: v1::DownloadRequest,
        sink: &mut DownloadSink,
    ) -> impl Future<Output = Result<()>> + Send;
}

/// Bounds of the streams.
#[derive(Clone, Copy, Debug)]
pub struct BulkSettings {
    /// Nothing may stand still for longer; 60 s unless told.
    pub idle: Duration,
    /// Bytes that wait between a handler and its connection; 512 KiB unless told.
    pub queue_bytes: usize,
    /// Largest request for a download; 1,000 items with paths of 4 KiB and many ranges fit into the default of 8 MiB.
    pub max_request_bytes: usize,
}

impl Default for BulkSettings {
    fn default() -> Self {
        Self { idle: IDLE, queue_bytes: QUEUE_BYTES, max_request_bytes: 8 * 1024 * 1024 }
    }
}

/// Serves `atrium.v1.TransferService`.
#[derive(Debug)]
pub struct BulkServer<H> {
    handler: Arc<H>,
    settings: BulkSettings,
}

impl<H> BulkServer<H> {
    /// Serves with this handler.
    pub fn new(handler: Arc<H>, settings: BulkSettings) -> Self {
        Self { handler, settings }
    }
}

impl<H> Clone for BulkServer<H> {
    fn clone(&self) -> Self {
        Self { handler: self.handler.clone(), settings: self.settings }
    }
}

impl<H> tonic::server::NamedService for BulkServer<H> {
    const NAME: &'static str = SERVICE;
}

impl<H: BulkHandler> tower::Service<Request<Body>> for BulkServer<H> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { handler, settings } = self.clone();
        Box::pin(async move { Ok(answer(handler, settings, request).await.unwrap_or_else(|e| respond_error(&e))) })
    }
}

async fn answer<H: BulkHandler>(
    handler: Arc<H>,
    settings: BulkSettings,
    request: Request<Body>,
) -> Result<Response<Body>> {
    let (context, body) = request.into_parts();
    let content_type = context.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if context.method != http::Method::POST || !content_type.starts_with(b"application/grpc") {
        return Err(Error::new(Reason::MessageMalformed, "this is not a gRPC call"));
    }
    match context.uri.path() {
        UPLOAD_PATH => {
            let reader = MessageReader::new(body, MAX_UPLOAD_MESSAGE, settings.idle);
            let answer = handler.upload(context, UploadStream { reader, upload: None }).await?;
            Ok(respond_message(&answer))
        }
        DOWNLOAD_PATH => {
            let mut reader = MessageReader::new(body, settings.max_request_bytes, settings.idle);
            let request = read_request(&mut reader).await?;
            let (sender, body) = channel(Side::Server, settings.queue_bytes, settings.idle);
            let mut sink = DownloadSink { encoder: DownloadEncoder::new(request.block_size_bytes as usize), sender };
            let task = tokio::spawn(async move {
                let mut result = handler.download(context, request, &mut sink).await;
                if let Err(error) = sink.flush().await {
                    result = result.and(Err(error));
                }
                sink.sender.finish(result);
            });
            Ok(respond_stream(WithTask { body, _task: AbortOnDropHandle::new(task) }))
        }
        path => Err(Error::new(Reason::MethodUnknown, format!("there is no method {path:.100}"))),
    }
}

async fn read_request(reader: &mut MessageReader<Body>) -> Result<v1::DownloadRequest> {
    let message = reader.next().await?.ok_or_else(|| Error::new(Reason::MessageMalformed, "the request is missing"))?;
    v1::DownloadRequest::decode(message.to_bytes())
        .map_err(|e| Error::new(Reason::MessageMalformed, "the request could not be decoded").caused_by(e))
}

/// The messages of an upload.
#[derive(Debug)]
pub struct UploadStream {
    reader: MessageReader<Body>,
    upload: Option<UploadId>,
}

impl UploadStream {
    /// The chunks of the next message with the upload they belong to; `None` at the end. Digests are as the caller
    /// claims them.
    ///
    /// # Errors
    /// `UPLOAD_INVALID` if the first message names no upload or a later one another; `MESSAGE_MALFORMED`,
    /// `FIELD_INVALID`, `MESSAGE_TOO_LARGE`, `IDLE_TIMEOUT`; what broke the connection.
    pub async fn next(&mut self) -> Result<Option<(UploadId, Vec<(ChunkId, Rope)>)>> {
        let Some(message) = self.reader.next().await? else { return Ok(None) };
        let message = decode_upload(&message)?;
        let upload = match (self.upload, message.upload) {
            (None, Some(first)) => first,
            (Some(first), None) => first,
            (Some(first), Some(again)) if first == again => first,
            (Some(_), Some(_)) => return Err(Error::new(Reason::UploadInvalid, "one call serves one upload")),
            (None, None) => return Err(Error::new(Reason::UploadInvalid, "the first message names no upload")),
        };
        self.upload = Some(upload);
        Ok(Some((upload, message.chunks)))
    }
}

/// Where a handler puts what a download sends. Small parts gather until a message is full; call
/// [`DownloadSink::flush`] before waiting for something slow.
#[derive(Debug)]
pub struct DownloadSink {
    encoder: DownloadEncoder,
    sender: MessageSender,
}

impl DownloadSink {
    /// First part of an item, with the manifest if it was asked for.
    ///
    /// # Errors
    /// `CANCELLED` if the caller has gone, `IDLE_TIMEOUT` if it takes nothing. So do all the others.
    pub async fn header(&mut self, item: u32, entry: &v1::Entry, chunks: &[ChunkRef]) -> Result<()> {
        self.encoder.header(item, entry, chunks);
        self.send_full().await
    }

    /// Content at this position of the file.
    ///
    /// # Errors
    /// As [`DownloadSink::header`].
    pub async fn data(&mut self, item: u32, offset: u64, data: impl Into<Rope>) -> Result<()> {
        self.encoder.data(item, offset, &data.into());
        self.send_full().await
    }

    /// Last part of an item that went well.
    ///
    /// # Errors
    /// As [`DownloadSink::header`].
    pub async fn trailer(&mut self, item: u32, manifest_digest: &[u8; 32], sent_bytes: u64) -> Result<()> {
        self.encoder.trailer(item, manifest_digest, sent_bytes);
        self.send_full().await
    }

    /// Last part of an item that went wrong.
    ///
    /// # Errors
    /// As [`DownloadSink::header`].
    pub async fn failed(&mut self, item: u32, error: &Error) -> Result<()> {
        self.encoder.failed(item, error);
        self.send_full().await
    }

    /// Sends what has gathered.
    ///
    /// # Errors
    /// As [`DownloadSink::header`].
    pub async fn flush(&mut self) -> Result<()> {
        self.encoder.flush();
        self.send_full().await
    }

    /// Gives the encoder to code on a blocking thread, which puts many parts into it and hands it back to
    /// [`DownloadSink::absorb`].
    pub fn detach(&mut self, block_bytes: usize) -> DownloadEncoder {
        std::mem::replace(&mut self.encoder, DownloadEncoder::new(block_bytes))
    }

    /// Takes an encoder back and sends its full messages.
    ///
    /// # Errors
    /// As [`DownloadSink::header`].
    pub async fn absorb(&mut self, encoder: DownloadEncoder) -> Result<()> {
        self.encoder = encoder;
        self.send_full().await
    }

    async fn send_full(&mut self) -> Result<()> {
        while let Some(message) = self.encoder.pop() {
            self.sender.send(message).await?;
        }
        Ok(())
    }
}

/// A response of messages that ends with trailers of its own.
pub fn respond_stream(body: impl http_body::Body<Data = Bytes, Error = Status> + Send + 'static) -> Response<Body> {
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// A response of one message.
pub fn respond_message(message: &impl prost::Message) -> Response<Body> {
    let message: Rope = Encoded::of(message).frames.into_iter().collect();
    let frames = [Ok::<_, Status>(Frame::data(message.to_bytes())), Ok(Frame::trailers(trailers(Ok(()))))];
    respond_stream(StreamBody::new(tokio_stream::iter(frames)))
}

/// A response that is nothing but a status.
pub fn respond_error(error: &Error) -> Response<Body> {
    to_status(error).into_http()
}

/// A body whose producer ends with it.
struct WithTask {
    body: MessageBody,
    _task: AbortOnDropHandle<()>,
}

impl http_body::Body for WithTask {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
}
