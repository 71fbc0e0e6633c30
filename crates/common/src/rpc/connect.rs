//! Making a connection, and saying in words why it could not be made.

use super::ServerAddress;
use crate::error::{Error, Reason};
use crate::tls::ClientTls;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{AlertDescription, CertificateError};
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;
use tower::Service;

/// More addresses than this of one name are not tried.
const MAX_ADDRESSES: usize = 8;
/// Causes are followed no deeper than this.
const MAX_LINKS: usize = 16;

/// Why there is no connection.
#[derive(Debug)]
pub struct ConnectError {
    reason: Reason,
    what: String,
    cause: Option<io::Error>,
}

impl ConnectError {
    fn new(reason: Reason, what: impl Into<String>, cause: Option<io::Error>) -> Self {
        Self { reason, what: what.into(), cause }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl StdError for ConnectError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_ref().map(|c| c as _)
    }
}

/// The error in words for a connection that could not be made or that TLS ended, if the cause is known here.
pub fn explain(cause: &(dyn StdError + 'static)) -> Option<Error> {
    let mut link = Some(cause);
    let mut outer = None;
    for _ in 0..MAX_LINKS {
        let Some(here) = link else { break };
        if let Some(connect) = here.downcast_ref::<ConnectError>() {
            outer.get_or_insert(connect);
        }
        if let Some(tls) = tls_error(here) {
            return Some(explain_tls(tls, outer));
        }
        if let Some(alert) = alert_in_text(&here.to_string()) {
            return Some(explain_tls(&rustls::Error::AlertReceived(alert), outer));
        }
        link = here.source();
    }
    outer.map(|connect| {
        let error = Error::new(connect.reason, connect.what.clone());
        match &connect.cause {
            Some(cause) => error.caused_by(cause.to_string()),
            None => error,
        }
    })
}

/// `source()` of an `io::Error` leaves out the error that it wraps.
fn tls_error<'a>(link: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    link.downcast_ref::<rustls::Error>().or_else(|| link.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref())
}

/// The alert that ended a connection. With TLS 1.3 it comes after the handshake, when HTTP/2 reads already, and that
/// library keeps of an error only its text.
fn alert_in_text(text: &str) -> Option<AlertDescription> {
    let name = text.split_once("received fatal alert: ")?.1.split(|c: char| !c.is_ascii_alphanumeric()).next()?;
    let known = [
        AlertDescription::CertificateExpired,
        AlertDescription::UnknownCA,
        AlertDescription::BadCertificate,
        AlertDescription::CertificateUnknown,
        AlertDescription::UnsupportedCertificate,
        AlertDescription::CertificateRevoked,
        AlertDescription::DecryptError,
        AlertDescription::AccessDenied,
    ];
    Some(known.into_iter().find(|a| format!("{a:?}") == name).unwrap_or(AlertDescription::HandshakeFailure))
}

fn explain_tls(tls: &rustls::Error, connect: Option<&ConnectError>) -> Error {
    const CLOCK: &str = "set the clocks of this machine and of the server";
    let (what, why, fix) = match tls {
        rustls::Error::InvalidCertificate(problem) => match problem {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
                "the server's certificate has expired",
                "the server did not renew it, or one of the clocks is wrong",
                CLOCK,
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                ("the server's certificate is not valid yet", "one of the clocks is wrong", CLOCK)
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
                "the server's certificate is for another name",
                "what answers there is not a central server of this office",
                "check the server's address",
            ),
            _ => (
                "the server is not one of this office",
                "its certificate was not signed by the office that this machine knows",
                "check the server's address; join again if the office was set up anew",
            ),
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => (
                "the server refused this machine's certificate: it has expired",
                "the machine was off for longer than the office allows, or one of the clocks is wrong",
                "set the clocks; if they are right, join again with a new code",
            ),
            AlertDescription::NoApplicationProtocol => (
                "what answers there does not speak gRPC",
                "it is another service, or a proxy is in between",
                "check the server's address and port",
            ),
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied => (
                "the server refused this machine's certificate",
                "it was not signed by the office of that server",
                "check the server's address; join again if the office was set up anew",
            ),
            _ => (
                "the server ended the TLS handshake",
                "the two sides do not agree on how to protect the connection",
                "update the older of the two programs",
            ),
        },
        rustls::Error::InvalidMessage(_) => {
            ("what answers there does not speak TLS", "it is another service", "check the server's address and port")
        }
        _ => (
            "no protected connection to the server",
            "TLS failed",
            "look at the logs of this machine and of the server",
        ),
    };
    let what = match connect {
        Some(connect) => format!("{}: {what}", connect.what),
        None => what.to_owned(),
    };
    Error::new(Reason::TlsFailed, what).why_is(why).fix_is(fix).caused_by(tls.clone())
}

type Dialing<T> = Pin<Box<dyn Future<Output = Result<TokioIo<T>, ConnectError>> + Send>>;

/// Connects by TCP and TLS.
#[derive(Clone)]
pub(super) struct TlsDialer(Arc<TlsTarget>);

struct TlsTarget {
    address: ServerAddress,
    tls: ClientTls,
    timeout: Duration,
}

impl TlsDialer {
    pub(super) fn new(address: ServerAddress, tls: ClientTls, timeout: Duration) -> Self {
        Self(Arc::new(TlsTarget { address, tls, timeout }))
    }
}

impl TlsTarget {
    async fn dial(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let until = Instant::now() + self.timeout;
        match tokio::time::timeout_at(until, self.dial_until(until)).await {
            Ok(result) => result,
            Err(_) => Err(self.failed("no answer in time", None)),
        }
    }

    async fn dial_until(&self, until: Instant) -> Result<TlsStream<TcpStream>, ConnectError> {
        let host = self.address.host();
        let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), self.address.port()))
            .await
            .map_err(|e| self.failed("no machine of this name is known", Some(e)))?
            .take(MAX_ADDRESSES)
            .collect();
        let mut last = self.failed("no machine of this name is known", None);
        for (at, address) in found.iter().enumerate() {
            // Each address gets its share of the time, so that a dead one leaves some for the next.
            let share = until.saturating_duration_since(Instant::now()) / u32::try_from(found.len() - at).unwrap_or(1);
            match tokio::time::timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return self.secure(stream).await,
                Ok(Err(error)) => last = self.failed(words_for(&error), Some(error)),
                Err(_) => last = self.failed("no answer in time", None),
            }
        }
        Err(last)
    }

    async fn secure(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, ConnectError> {
        // Settings only: a connection without them works as well.
        if let Err(error) = crate::tls::tune(&stream) {
            tracing::debug!(%error, "socket options");
        }
        self.tls.handshake(stream).await.map_err(|error| {
            let what = format!("no protected connection to {}", self.address);
            let reason = if tls_error(&error).is_some() { Reason::TlsFailed } else { Reason::ServerUnreachable };
            ConnectError::new(reason, what, Some(error))
        })
    }

    fn failed(&self, why: &str, cause: Option<io::Error>) -> ConnectError {
        ConnectError::new(Reason::ServerUnreachable, format!("no connection to {}: {why}", self.address), cause)
    }
}

fn words_for(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "the machine is there, but no server listens on that port",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "there is no way to that machine",
        io::ErrorKind::TimedOut => "no answer in time",
        io::ErrorKind::ConnectionReset => "the machine closed the connection",
        _ => "the connection failed",
    }
}

impl Service<Uri> for TlsDialer {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = ConnectError;
    type Future = Dialing<TlsStream<TcpStream>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let target = self.0.clone();
        Box::pin(async move { target.dial().await.map(TokioIo::new) })
    }
}

/// Connects to a Unix socket.
#[derive(Clone)]
pub(super) struct UnixDialer {
    path: PathBuf,
    absent: Reason,
    timeout: Duration,
}

impl UnixDialer {
    pub(super) fn new(path: &Path, absent: Reason, timeout: Duration) -> Self {
        Self { path: path.to_owned(), absent, timeout }
    }
}

impl Service<Uri> for UnixDialer {
    type Response = TokioIo<UnixStream>;
    type Error = ConnectError;
    type Future = Dialing<UnixStream>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let failed = |why: &str, cause| {
                ConnectError::new(this.absent, format!("nobody answers at {}: {why}", this.path.display()), cause)
            };
            match tokio::time::timeout(this.timeout, UnixStream::connect(&this.path)).await {
                Ok(Ok(stream)) => Ok(TokioIo::new(stream)),
                Ok(Err(error)) => Err(match error.kind() {
                    io::ErrorKind::NotFound => failed("there is no such socket", Some(error)),
                    io::ErrorKind::ConnectionRefused => failed("the program behind it has ended", Some(error)),
                    io::ErrorKind::PermissionDenied => failed("you may not connect to it", Some(error)),
                    _ => failed("the connection failed", Some(error)),
                }),
                Err(_) => Err(failed("no answer in time", None)),
            }
        })
    }
}
