//! The caller's side of both methods.

use super::body::{MessageSender, Side, channel};
use super::download::{ItemPart, MAX_DOWNLOAD_MESSAGE, decode_download};
use super::fetch::{FetchPart, MAX_FETCH_MESSAGE, decode_fetch, strange_fetch};
use super::message::Encoded;
use super::reader::MessageReader;
use super::upload::UploadEncoder;
use super::{DOWNLOAD_PATH, FETCH_PATH, IDLE, QUEUE_BYTES, Rope, UPLOAD_PATH};
use crate::error::{Error, Reason, Result};
use crate::model::{ChunkId, UploadId};
use crate::status::{from_headers, from_status};
use futures_util::{Stream, StreamExt};
use http::{HeaderValue, Method, Request, Response, Version, header};
use prost::Message;
use proto::{peer, v1};
use std::collections::VecDeque;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

/// What calls are made on: a tonic channel, with or without interceptors.
pub trait GrpcChannel:
    Service<
        Request<Body>,
        Response = Response<Body>,
        Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
        Future: Send,
    > + Clone
    + Send
    + 'static
{
}

impl<T> GrpcChannel for T
where
    T: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    T::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    T::Future: Send,
{
}

/// Largest answer to an upload.
const MAX_ANSWER: usize = 64 * 1024;
/// After its last message an upload waits so many idle timeouts for the answer: what is still queued and in the windows
/// must cross the line first.
const ANSWER_PATIENCE: u32 = 10;

/// An upload in progress. Dropping it ends the call; chunks that arrived before are kept by the server.
#[derive(Debug)]
pub struct UploadCall {
    encoder: UploadEncoder,
    sender: Option<MessageSender>,
    answer: AbortOnDropHandle<Result<v1::UploadChunksResponse>>,
}

impl UploadCall {
    /// Begins a call. Must be called within a tokio runtime.
    pub fn start(channel_to_server: impl GrpcChannel, upload: UploadId) -> Self {
        let (sender, body) = channel(Side::Client, QUEUE_BYTES, IDLE);
        let answer = tokio::spawn(upload_answer(channel_to_server, Body::new(body)));
        Self { encoder: UploadEncoder::new(upload), sender: Some(sender), answer: AbortOnDropHandle::new(answer) }
    }

    /// Sends a chunk of 1 byte to 4 MiB, waiting for room. Small ones are kept until a message is full.
    ///
    /// # Errors
    /// What the server said if it has ended the call, or what broke the connection.
    pub async fn send(&mut self, id: ChunkId, data: Rope) -> Result<()> {
        match self.encoder.push(id, data) {
            Some(message) => self.send_message(message).await,
            None => Ok(()),
        }
    }

    /// Sends what is left and waits for the answer.
    ///
    /// # Errors
    /// As [`UploadCall::send`].
    pub async fn finish(mut self) -> Result<v1::UploadChunksResponse> {
        if let Some(message) = self.encoder.flush() {
            self.send_message(message).await?;
        }
        if let Some(sender) = self.sender.take() {
            sender.finish(Ok(()));
        }
        match tokio::time::timeout(IDLE * ANSWER_PATIENCE, &mut self.answer).await {
            Ok(answer) => joined(answer),
            Err(_) => Err(Error::new(Reason::IdleTimeout, "the server does not confirm the upload")),
        }
    }

    async fn send_message(&mut self, message: Encoded) -> Result<()> {
        let sent = match &mut self.sender {
            Some(sender) => sender.send(message).await,
            None => Err(Error::new(Reason::Cancelled, "the upload has ended")),
        };
        let Err(error) = sent else { return Ok(()) };
        self.sender = None;
        if !error.is(Reason::Cancelled) {
            return Err(error);
        }
        // The body was dropped, so the answer is there or about to be; it says why.
        match tokio::time::timeout(IDLE, &mut self.answer).await {
            Ok(answer) => match joined(answer) {
                Ok(_) => Err(Error::new(Reason::Cancelled, "the server ended the upload before it was complete")),
                Err(error) => Err(error),
            },
            Err(_) => Err(error),
        }
    }
}

fn joined<T>(answer: Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    answer.unwrap_or_else(|e| Err(Error::internal("the task of a call ended").caused_by(e)))
}

async fn upload_answer(service: impl GrpcChannel, body: Body) -> Result<v1::UploadChunksResponse> {
    let mut reader = open(service, UPLOAD_PATH, body, MAX_ANSWER).await?;
    let message = read(&mut reader).await?;
    let Some(message) = message else {
        return Err(Error::new(Reason::MessageMalformed, "the server confirmed the upload without an answer"));
    };
    // The status follows in the trailers.
    if read(&mut reader).await?.is_some() {
        return Err(Error::new(Reason::MessageMalformed, "the server sent two answers"));
    }
    v1::UploadChunksResponse::decode(message.to_bytes())
        .map_err(|e| Error::new(Reason::MessageMalformed, "the answer could not be decoded").caused_by(e))
}

/// Sends all chunks of a stream in one call.
///
/// # Errors
/// What the server said, or what broke the connection.
pub async fn upload_chunks(
    channel_to_server: impl GrpcChannel,
    upload: UploadId,
    chunks: impl Stream<Item = (ChunkId, Rope)>,
) -> Result<v1::UploadChunksResponse> {
    let mut chunks = std::pin::pin!(chunks);
    let mut call = UploadCall::start(channel_to_server, upload);
    while let Some((id, data)) = chunks.next().await {
        call.send(id, data).await?;
    }
    call.finish().await
}

/// Asks for files or parts of files.
///
/// # Errors
/// What the server said at once; later errors come from [`DownloadStream::next`].
pub async fn download(channel_to_server: impl GrpcChannel, request: &v1::DownloadRequest) -> Result<DownloadStream> {
    let message: Rope = Encoded::of(request).frames.into_iter().collect();
    let body = Body::new(http_body_util::Full::new(message.to_bytes()));
    let opening = open(channel_to_server, DOWNLOAD_PATH, body, MAX_DOWNLOAD_MESSAGE);
    let reader = tokio::time::timeout(IDLE, opening)
        .await
        .map_err(|_| Error::new(Reason::IdleTimeout, "the server does not answer"))??;
    Ok(DownloadStream { reader, ready: VecDeque::new(), items: request.items.len(), ended: false })
}

/// The parts of a download as they come. Dropping it ends the call.
#[derive(Debug)]
pub struct DownloadStream {
    reader: MessageReader<Body>,
    ready: VecDeque<ItemPart>,
    items: usize,
    ended: bool,
}

impl DownloadStream {
    /// The next part; `None` at the end, which only an undisturbed stream has.
    ///
    /// # Errors
    /// What the server said, or what broke the connection. The stream has ended then.
    pub async fn next(&mut self) -> Result<Option<ItemPart>> {
        loop {
            if let Some(part) = self.ready.pop_front() {
                return Ok(Some(part));
            }
            if self.ended {
                return Ok(None);
            }
            match self.read().await {
                Ok(Some(parts)) => self.ready = parts.into(),
                Ok(None) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    return Err(error);
                }
            }
        }
    }

    async fn read(&mut self) -> Result<Option<Vec<ItemPart>>> {
        let Some(message) = read(&mut self.reader).await? else { return Ok(None) };
        let parts = decode_download(&message)?;
        if parts.iter().any(|p| p.item as usize >= self.items) {
            return Err(Error::new(Reason::MessageMalformed, "the server sent an item that was not asked for"));
        }
        Ok(Some(parts))
    }
}

/// Asks a node for chunks (`atrium.peer.v1.TransferService/Fetch`).
///
/// # Errors
/// What the node said at once; later errors come from [`FetchStream::next`].
pub async fn fetch(channel_to_node: impl GrpcChannel, request: &peer::v1::FetchRequest) -> Result<FetchStream> {
    let message: Rope = Encoded::of(request).frames.into_iter().collect();
    let body = Body::new(http_body_util::Full::new(message.to_bytes()));
    let opening = open(channel_to_node, FETCH_PATH, body, MAX_FETCH_MESSAGE);
    let reader = tokio::time::timeout(IDLE, opening)
        .await
        .map_err(|_| Error::new(Reason::IdleTimeout, "the node does not answer"))??;
    Ok(FetchStream { reader, chunks: request.digests.len() / 32, ended: false })
}

/// The messages of a fetch as they come. Dropping it ends the call.
#[derive(Debug)]
pub struct FetchStream {
    reader: MessageReader<Body>,
    chunks: usize,
    ended: bool,
}

impl FetchStream {
    /// The parts of the next message; `None` at the end, which only an undisturbed stream has.
    ///
    /// # Errors
    /// What the node said, or what broke the connection. The stream has ended then.
    pub async fn next(&mut self) -> Result<Option<Vec<FetchPart>>> {
        if self.ended {
            return Ok(None);
        }
        let parts = self.read().await;
        self.ended = !matches!(parts, Ok(Some(_)));
        parts
    }

    async fn read(&mut self) -> Result<Option<Vec<FetchPart>>> {
        let Some(message) = read(&mut self.reader).await? else { return Ok(None) };
        let parts = decode_fetch(&message)?;
        if parts.iter().any(|p| p.index as usize >= self.chunks) {
            return Err(strange_fetch());
        }
        Ok(Some(parts))
    }
}

/// Sends a request and looks at the head of the response.
async fn open(service: impl GrpcChannel, path: &'static str, body: Body, limit: usize) -> Result<MessageReader<Body>> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = http::Uri::from_static(path);
    request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let response = service.oneshot(request).await.map_err(|e| from_status(&Status::from_error(e.into())))?;
    let (head, body) = response.into_parts();
    if let Some(status) = from_headers(&head.headers) {
        if status.code() != Code::Ok {
            return Err(from_status(&status));
        }
    } else if head.status != http::StatusCode::OK {
        return Err(http_error(head.status));
    }
    Ok(MessageReader::new(body, limit, IDLE))
}

/// The next message; at the end looks at the status.
async fn read(reader: &mut MessageReader<Body>) -> Result<Option<Rope>> {
    let message = reader.next().await;
    let status = reader.trailers().and_then(from_headers);
    match (message, status) {
        (_, Some(status)) if status.code() != Code::Ok => Err(from_status(&status)),
        (Err(error), _) => Err(error),
        (Ok(Some(message)), _) => Ok(Some(message)),
        (Ok(None), Some(_)) => Ok(None),
        (Ok(None), None) => Err(Error::new(Reason::ServerUnreachable, "the stream broke off")),
    }
}

/// Answers of something between here and the server.
fn http_error(status: http::StatusCode) -> Error {
    let reason = match status.as_u16() {
        401 => Reason::CredentialsMissing,
        403 => Reason::AccessDenied,
        404 => Reason::MethodUnknown,
        429 | 502..=504 => Reason::ServerUnreachable,
        _ => Reason::Internal,
    };
    Error::new(reason, format!("the answer has the HTTP status {}", status.as_u16()))
}
