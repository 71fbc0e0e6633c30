//! A client: requests to another printer or to a CUPS server, over HTTP on TCP, TLS or a Unix socket.
//!
//! One connection a request: printing is rare, and a connection that is kept says nothing about the printer. Answers are
//! bounded like requests; every wait has a deadline.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::error::{Error, Reason, Result};
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::codec::{self, MAX_ATTRIBUTES, decode, encode};
use super::codes::Status;
use super::value::Message;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take once the request was sent; printers that wake up are slow.
const ANSWER: Duration = Duration::from_secs(60);
/// How long a printer may take nothing of a document; one without paper reads no more.
const STALL: Duration = Duration::from_secs(300);
/// Bytes of a document that are read and sent at a time.
const PART: usize = 256 * 1024;

/// Where a printer or print server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// A host, by name or address, and a port.
    Tcp {
        /// Name or address.
        host: String,
        /// Port; 631 unless said otherwise.
        port: u16,
        /// TLS, as with `ipps:`.
        tls: bool,
    },
    /// A Unix socket, such as CUPS's own.
    Unix(PathBuf),
}

/// A printer's URI, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Where to connect.
    pub endpoint: Endpoint,
    /// The path of the HTTP request, such as `/ipp/print`.
    pub path: String,
    /// The value of `printer-uri`.
    pub uri: String,
}

impl Target {
    /// Takes `ipp://HOST[:PORT]/PATH` or `ipps://…` apart.
    ///
    /// # Errors
    /// `RESOURCE_INVALID` for anything else.
    pub fn of_uri(uri: &str) -> Result<Self> {
        let invalid = || {
            Error::new(Reason::ResourceInvalid, format!("'{uri}' is not the address of a printer"))
                .fix_is("write ipp://HOST:PORT/ipp/print or ipps://HOST:PORT/ipp/print")
        };
        let parsed: http::Uri = uri.parse().map_err(|_| invalid())?;
        let tls = match parsed.scheme_str() {
            Some("ipp") => false,
            Some("ipps") => true,
            _ => return Err(invalid()),
        };
        let host = parsed.host().filter(|h| !h.is_empty()).ok_or_else(invalid)?;
        let endpoint = Endpoint::Tcp { host: host.to_owned(), port: parsed.port_u16().unwrap_or(631), tls };
        let path = match parsed.path() {
            "" => "/".to_owned(),
            path => path.to_owned(),
        };
        Ok(Self { endpoint, path, uri: uri.to_owned() })
    }

    /// A queue of the CUPS server of this machine or of another place.
    ///
    /// # Errors
    /// `RESOURCE_INVALID` if the queue's name has characters that CUPS does not allow.
    pub fn of_cups(queue: &str, endpoint: Endpoint) -> Result<Self> {
        let valid = !queue.is_empty()
            && queue.len() <= 127
            && queue.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'#' | b'?' | b'%' | b'"' | b'\\'));
        if !valid {
            return Err(Error::new(Reason::ResourceInvalid, "that is not the name of a CUPS queue"));
        }
        let path = format!("/printers/{queue}");
        Ok(Self { endpoint, uri: format!("ipp://localhost{path}"), path })
    }
}

/// A piece of a file that is sent as a document.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The file, read by position.
    pub file: Arc<File>,
    /// Where the document begins in it.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// Sends requests to one printer.
#[derive(Clone, Debug)]
pub struct Client {
    target: Target,
    tls: Option<Arc<rustls::ClientConfig>>,
    next: Arc<AtomicI32>,
}

impl Client {
    /// A client for a printer. `tls` is needed for `ipps:` and decides which certificates are believed.
    pub fn new(target: Target, tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        Self { target, tls, next: Arc::new(AtomicI32::new(1)) }
    }

    /// The printer.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// A number for the next request, from 1.
    pub fn next_id(&self) -> i32 {
        self.next.fetch_add(1, Ordering::Relaxed) & 0x7fff_ffff | 1
    }

    /// Sends a request and gives the answer, whatever its status is.
    ///
    /// # Errors
    /// `DEVICE_AWAY` if the printer cannot be reached, does not answer in time or answers what is not IPP;
    /// `PRINTER_UNTRUSTED` for its certificate.
    pub async fn send(&self, request: &Message, document: Option<Vec<Piece>>) -> Result<Message> {
        let deadline = if document.is_some() { None } else { Some(ANSWER) };
        let body = body(encode(request), document.unwrap_or_default());
        let call = async {
            match &self.target.endpoint {
                Endpoint::Unix(path) => {
                    let io = connect(UnixStream::connect(path)).await?;
                    self.exchange(io, "localhost", body).await
                }
                Endpoint::Tcp { host, port, tls } => {
                    let authority = format!("{host}:{port}");
                    match tls {
                        true => self.exchange(self.secure(host, *port).await?, &authority, body).await,
                        false => self.exchange(reach(host, *port).await?, &authority, body).await,
                    }
                }
            }
        };
        match deadline {
            Some(limit) => timeout(limit, call).await.map_err(away)?,
            None => call.await,
        }
    }

    /// Sends a request and gives the answer if its status is a successful one.
    ///
    /// # Errors
    /// As [`Client::send`], and `DEVICE_FAILED` with the printer's words for other statuses.
    pub async fn ask(&self, request: &Message, document: Option<Vec<Piece>>) -> Result<Message> {
        let answer = self.send(request, document).await?;
        match answer.status() {
            Some(status) if status.is_success() => Ok(answer),
            _ => Err(refusal(&answer)),
        }
    }

    /// Connects, looks at the printer's certificate and hangs up. Nothing happens with what is not reached by TLS.
    ///
    /// # Errors
    /// `DEVICE_AWAY` if the printer cannot be reached, `PRINTER_UNTRUSTED`.
    pub async fn handshake(&self) -> Result<()> {
        match &self.target.endpoint {
            Endpoint::Tcp { host, port, tls: true } => self.secure(host, *port).await.map(drop),
            _ => Ok(()),
        }
    }

    async fn secure(&self, host: &str, port: u16) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let config = self.tls.clone().ok_or_else(|| {
            Error::new(Reason::ResourceInvalid, "no settings are given for TLS to this printer").with("sent", "nothing")
        })?;
        let name = ServerName::try_from(bare(host).to_owned()).map_err(away)?;
        let io = reach(host, port).await?;
        connect(tokio_rustls::TlsConnector::from(config).connect(name, io)).await
    }

    async fn exchange<I>(&self, io: I, authority: &str, body: BoxBody<Bytes, std::io::Error>) -> Result<Message>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(away)?;
        let driver = tokio::spawn(connection);
        let _end = AbortOnDrop(driver.abort_handle());
        let request = http::Request::post(self.target.path.as_str())
            .header(http::header::HOST, authority)
            .header(http::header::CONTENT_TYPE, "application/ipp")
            .header(http::header::USER_AGENT, concat!("Atrium/", env!("CARGO_PKG_VERSION"), " IPP/2.0"))
            .body(body)
            .map_err(away)?;
        let response = timeout(STALL, sender.send_request(request)).await.map_err(away)?.map_err(away)?;
        if response.status() != http::StatusCode::OK {
            let said = format!("the printer answered HTTP status {}", response.status().as_u16());
            return Err(Error::new(Reason::DeviceAway, said));
        }
        let limited = Limited::new(response.into_body(), MAX_ATTRIBUTES + 64 * 1024);
        let bytes =
            timeout(ANSWER, limited.collect()).await.map_err(away)?.map_err(|e| away(e.to_string()))?.to_bytes();
        let (answer, _) = decode(&bytes).map_err(away)?;
        Ok(answer)
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A host without the brackets of an IPv6 address.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

async fn reach(host: &str, port: u16) -> Result<TcpStream> {
    let io = connect(TcpStream::connect((bare(host), port))).await?;
    let _ = io.set_nodelay(true);
    Ok(io)
}

/// Connects; a failure says that nothing was sent yet (see [`never_sent`]).
async fn connect<T>(connecting: impl Future<Output = std::io::Result<T>>) -> Result<T> {
    let failed = |error: std::io::Error| super::trust::untrusted(&error).unwrap_or_else(|| away(error));
    let connected = timeout(CONNECT, connecting).await.map_err(away).and_then(|c| c.map_err(failed));
    connected.map_err(|error| error.with("sent", "nothing"))
}

/// True if a request failed before anything of it was sent.
pub fn never_sent(error: &Error) -> bool {
    error.detail("sent") == Some("nothing")
}

fn away(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(Reason::DeviceAway, "the printer does not answer").caused_by(cause)
}

/// What a printer said in refusing.
pub fn refusal(answer: &Message) -> Error {
    let status = answer.status().map_or_else(|| format!("status {:#06x}", answer.code), |s| s.word().to_owned());
    let words = answer.operation_str("status-message").unwrap_or_default();
    let words: String = words.chars().filter(|c| !c.is_control()).take(200).collect();
    let reason = match answer.status() {
        Some(Status::Busy | Status::ServiceUnavailable | Status::NotAcceptingJobs | Status::TemporaryError) => {
            Reason::PrinterUnready
        }
        _ => Reason::DeviceFailed,
    };
    Error::new(reason, format!("the printer said {status}: {words}")).with("status", status)
}

/// The bytes of a request: attributes, then the document, read on blocking threads as the connection takes them.
fn body(head: Bytes, document: Vec<Piece>) -> BoxBody<Bytes, std::io::Error> {
    if document.is_empty() {
        return Full::new(head).map_err(|never| match never {}).boxed();
    }
    let state = (Some(head), document, 0usize, 0u64);
    let parts = stream::unfold(state, |(head, pieces, at, done)| async move {
        if let Some(head) = head {
            return Some((Ok(Frame::data(head)), (None, pieces, at, done)));
        }
        let piece = pieces.get(at)?.clone();
        let left = piece.length.saturating_sub(done);
        let length = left.min(PART as u64);
        let offset = piece.offset + done;
        let read = tokio::task::spawn_blocking(move || {
            let mut part = vec![0; length as usize];
            piece.file.read_exact_at(&mut part, offset).map(|()| Bytes::from(part))
        });
        let part = read.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        let next = if length == left { (None, pieces, at + 1, 0) } else { (None, pieces, at, done + length) };
        Some((part.map(Frame::data), next))
    });
    BodyExt::boxed(StreamBody::new(SyncStream(Box::pin(parts))))
}

/// A stream that one task at a time polls; `BoxBody` wants it to be `Sync`.
struct SyncStream<S>(std::pin::Pin<Box<S>>);

impl<S: stream::Stream> stream::Stream for SyncStream<S> {
    type Item = S::Item;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

/// The status and attributes of an answer from bytes, for tests of services.
///
/// # Errors
/// If they are no message.
pub fn read_answer(bytes: &[u8]) -> std::result::Result<Message, codec::DecodeError> {
    decode(bytes).map(|(message, _)| message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let target = Target::of_uri("ipps://printer.local/ipp/print").unwrap();
        assert_eq!(target.endpoint, Endpoint::Tcp { host: "printer.local".into(), port: 631, tls: true });
        assert_eq!(target.path, "/ipp/print");
        let target = Target::of_uri("ipp://[::1]:8631/x").unwrap();
        assert_eq!(target.endpoint, Endpoint::Tcp { host: "[::1]".into(), port: 8631, tls: false });
        for bad in ["http://a/", "ipp:", "", "ipp:///x", "file:///etc/passwd"] {
            assert!(Target::of_uri(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_queue_name_cannot_leave_its_path() {
        let socket = Endpoint::Unix("/run/cups/cups.sock".into());
        assert_eq!(Target::of_cups("laser", socket.clone()).unwrap().path, "/printers/laser");
        for bad in ["", "a/b", "../admin", "a b", "a?b", "a%2fb", "a\nb"] {
            assert!(Target::of_cups(bad, socket.clone()).is_err(), "{bad:?}");
        }
    }
}
