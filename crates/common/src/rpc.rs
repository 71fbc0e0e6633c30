//! Calls to a central server or an agent: connections, credentials and errors in words.
//!
//! An [`OfficeConnection`] has one connection for control calls, so that they never queue behind file contents, and some
//! for bulk data, one stream each at a time being the fastest (notes on the byte path: several streams on one connection
//! are slower than on their own). All connect when first used and again whenever they broke; a call that was under way
//! when a connection broke fails with SERVER_UNREACHABLE and may be tried again ([`crate::retry`]). If the other side
//! falls silent, keepalive pings find out within thirty seconds.
//!
//! Every call carries the session token, if there is one, and an `x-request-id` under which the server logs it.

mod address;
mod channel;
mod connect;
mod tuning;

pub use address::{DEFAULT_PORT, ServerAddress};
pub use channel::{OfficeChannel, REQUEST_ID_HEADER};
pub use connect::{ConnectError, explain};
pub use tuning::{BULK, CONTROL, Windows, tuned_server};

use crate::error::{Error, Reason, Result};
use crate::tls::{ClientTls, DeviceCredentials};
use channel::Token;
use connect::{TlsDialer, UnixDialer};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Bulk connections of a client: one per core of a small machine, and enough to fill a gigabit line many times.
pub const BULK_CONNECTIONS: usize = 2;
/// A client never opens more than this, whatever it is told.
pub const MAX_BULK_CONNECTIONS: usize = 8;
/// Name look-up, TCP and TLS together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What is needed to call a central server.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// `host`, `host:port` or `[v6]:port`.
    pub server: String,
    /// The office's CA certificates, PEM.
    pub ca_pem: String,
    /// The session token of the person who calls.
    pub token: Option<String>,
    /// The device that calls.
    pub device: Option<DeviceCredentials>,
    /// Name look-up, TCP and TLS together.
    pub connect_timeout: Duration,
    /// 1 to 8; others are taken as the nearest.
    pub bulk_connections: usize,
}

impl ConnectOptions {
    /// With neither person nor device.
    pub fn new(server: impl Into<String>, ca_pem: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            ca_pem: ca_pem.into(),
            token: None,
            device: None,
            connect_timeout: CONNECT_TIMEOUT,
            bulk_connections: BULK_CONNECTIONS,
        }
    }

    /// Calls as the person with this session.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Calls from this device.
    #[must_use]
    pub fn device(mut self, device: DeviceCredentials) -> Self {
        self.device = Some(device);
        self
    }
}

/// Connections to one server. Clones share them.
#[derive(Clone, Debug)]
pub struct OfficeConnection {
    control: OfficeChannel,
    bulk: Arc<[OfficeChannel]>,
    next: Arc<AtomicUsize>,
    all: Arc<Semaphore>,
    tls: Option<ClientTls>,
}

impl OfficeConnection {
    /// Without connecting: each connection is made when first used. Call it inside a runtime.
    ///
    /// # Errors
    /// FIELD_INVALID for a server address or token that cannot be one, CERTIFICATE_INVALID for a CA or device
    /// certificate that cannot be used.
    pub fn lazy(options: &ConnectOptions) -> Result<Self> {
        let tls = ClientTls::office(&options.ca_pem)?;
        if let Some(device) = &options.device {
            tls.set_device(device)?;
        }
        let connection = Self::over_tls(&options.server, tls, options.connect_timeout, options.bulk_connections)?;
        connection.set_token(options.token.as_deref())?;
        Ok(connection)
    }

    /// With a connection that works: the server was reached, is one of the office's, and takes the device's
    /// certificate.
    ///
    /// # Errors
    /// Also SERVER_UNREACHABLE and TLS_FAILED, saying why.
    pub async fn connect(options: &ConnectOptions) -> Result<Self> {
        let connection = Self::lazy(options)?;
        connection.check().await?;
        Ok(connection)
    }

    /// Without connecting, with TLS settings of one's own.
    pub fn over_tls(server: &str, tls: ClientTls, connect_timeout: Duration, bulk_connections: usize) -> Result<Self> {
        let address: ServerAddress = server.parse()?;
        let dialer = TlsDialer::new(address.clone(), tls.clone(), connect_timeout);
        let token = Token::default();
        let open = |windows| {
            tuning::endpoint(&address, windows)
                .map(|e| OfficeChannel::new(e.connect_with_connector_lazy(dialer.clone()), token.clone()))
        };
        let control = open(CONTROL)?;
        let count = bulk_connections.clamp(1, MAX_BULK_CONNECTIONS);
        let bulk = (0..count).map(|_| open(BULK)).collect::<Result<_>>()?;
        Ok(Self { control, bulk, next: Arc::default(), all: one(), tls: Some(tls) })
    }

    /// To a daemon of this machine by its Unix socket, without connecting. `absent` is the reason to give when nobody
    /// answers there: AGENT_UNREACHABLE or SERVER_UNREACHABLE.
    pub fn unix(path: &Path, absent: Reason) -> Result<Self> {
        let dialer = UnixDialer::new(path, absent, CONNECT_TIMEOUT);
        let address = ServerAddress::local();
        let token = Token::default();
        // A Unix socket has no delay to hide, but a small file must not wait behind a large one either.
        let open = |windows| {
            tuning::endpoint(&address, windows)
                .map(|e| OfficeChannel::new(e.connect_with_connector_lazy(dialer.clone()), token.clone()))
        };
        Ok(Self {
            control: open(CONTROL)?,
            bulk: Arc::from([open(BULK)?]),
            next: Arc::default(),
            all: one(),
            tls: None,
        })
    }

    /// The channel for everything but file contents.
    pub fn control(&self) -> OfficeChannel {
        self.control.clone()
    }

    /// A channel for file contents, the next one in turn.
    pub fn bulk(&self) -> OfficeChannel {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        self.bulk[at % self.bulk.len()].clone()
    }

    /// The right to use all bulk connections at once, for one large transfer at a time: two that share the connections
    /// are slower than one after the other, and need twice the memory. Waits for its turn.
    pub async fn all_bulk(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed, so it is always given.
        self.all.acquire().await.ok()
    }

    /// How many bulk connections there are at most.
    pub fn bulk_count(&self) -> usize {
        self.bulk.len()
    }

    /// Exchanges the session token, for calls that begin from now on; `None` to call without.
    ///
    /// # Errors
    /// FIELD_INVALID if it has characters that no token of ours has.
    pub fn set_token(&self, token: Option<&str>) -> Result<()> {
        self.control.set_token(token)
    }

    /// Exchanges the device's certificate, for connections that are made from now on.
    pub fn set_device(&self, device: &DeviceCredentials) -> Result<()> {
        match &self.tls {
            Some(tls) => tls.set_device(device),
            None => Err(Error::internal("a Unix socket has no device certificate")),
        }
    }

    /// Exchanges the CAs to trust, for connections that are made from now on.
    pub fn set_office(&self, ca_pem: &str) -> Result<()> {
        match &self.tls {
            Some(tls) => tls.set_office(ca_pem),
            None => Err(Error::internal("a Unix socket has no certificate")),
        }
    }

    /// Makes sure that the server answers, by the one question that everyone may ask (`grpc.health.v1`). What it
    /// answers does not matter: with TLS 1.3 only an answer shows that the device's certificate was taken.
    ///
    /// # Errors
    /// SERVER_UNREACHABLE or TLS_FAILED, saying why.
    pub async fn check(&self) -> Result<()> {
        self.control.ask_health().await
    }
}

fn one() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::OfficeCa;

    fn options() -> ConnectOptions {
        let ca = OfficeCa::create("Acme", 1_700_000_000_000).unwrap();
        ConnectOptions::new("example.test", ca.ca_pem())
    }

    #[tokio::test]
    async fn wrong_options_are_refused_before_anything_is_sent() {
        let wrong = |o: ConnectOptions| OfficeConnection::lazy(&o).unwrap_err().reason().to_owned();
        assert_eq!(wrong(ConnectOptions { server: "a b".into(), ..options() }), "FIELD_INVALID");
        assert_eq!(wrong(ConnectOptions { ca_pem: "x".into(), ..options() }), "CERTIFICATE_INVALID");
        assert_eq!(wrong(options().token("a\nb")), "FIELD_INVALID");
        OfficeConnection::lazy(&options().token("abc")).unwrap();
    }

    #[tokio::test]
    async fn the_number_of_bulk_connections_is_bounded() {
        let count =
            |n| OfficeConnection::lazy(&ConnectOptions { bulk_connections: n, ..options() }).unwrap().bulk_count();
        assert_eq!([count(0), count(1), count(2), count(1000)], [1, 1, 2, MAX_BULK_CONNECTIONS]);
    }
}
