//! Reaching a device: one address, or all that are known, raced.

use common::identity::DeviceId;
use common::tls::{NodeTls, tune};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

/// TCP and TLS together.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A later address begins so long after the one before it, or at once if that has failed.
const STAGGER: Duration = Duration::from_millis(120);
/// Addresses tried at a time.
const AT_ONCE: usize = 8;

/// Why an address did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The machine is there and nothing listens on the port.
    Refused,
    /// No answer at all.
    NoAnswer,
    /// The network says that there is no such machine (in the own subnet: nobody answers to the address).
    NoSuchMachine,
    /// This machine knows no way there.
    NoWay,
    /// Another device answers at the address.
    OtherDevice,
    /// What answers is no node, or its TLS fails.
    Tls(String),
    /// The connection broke.
    Broken,
    /// It answers, and does not count this machine as a member.
    NotWelcome,
    /// No relay could help.
    NoRelay,
}

impl Failure {
    fn of(error: &io::Error) -> Self {
        if NodeTls::is_other_device(error) {
            return Self::OtherDevice;
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::HostUnreachable => Self::NoSuchMachine,
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable => Self::NoWay,
            io::ErrorKind::TimedOut => Self::NoAnswer,
            io::ErrorKind::InvalidData | io::ErrorKind::Other => Self::Tls(error.to_string()),
            _ => Self::Broken,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "the machine answers, but nothing listens on that port",
            Self::NoAnswer => "no answer",
            Self::NoSuchMachine => "no machine answers to that address",
            Self::NoWay => "this machine knows no way there",
            Self::OtherDevice => "another device answers there",
            Self::Tls(_) => "what answers there is no node",
            Self::Broken => "the connection broke",
            Self::NotWelcome => "it does not know this machine as a member",
            Self::NoRelay => "no member could pass the connection on",
        })
    }
}

/// A connection whose other end has shown its key.
pub(super) struct Dialed {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) key: [u8; 32],
    pub(super) address: SocketAddr,
    pub(super) local: SocketAddr,
    /// Of the TCP handshake.
    pub(super) round_trip: Duration,
}

/// Connects to one address; with `expected` only to that device.
pub(super) async fn dial(
    tls: &NodeTls,
    address: SocketAddr,
    expected: Option<DeviceId>,
    patience: Duration,
) -> Result<Dialed, Failure> {
    let dialing = async {
        let began = Instant::now();
        let stream = TcpStream::connect(address).await?;
        let round_trip = began.elapsed();
        tune(&stream)?;
        let local = stream.local_addr()?;
        let (stream, key) = tls.connect_over(stream, expected).await?;
        io::Result::Ok(Dialed { stream, key, address, local, round_trip })
    };
    match tokio::time::timeout(patience, dialing).await {
        Ok(Ok(dialed)) => Ok(dialed),
        Ok(Err(error)) => Err(Failure::of(&error)),
        Err(_) => Err(Failure::NoAnswer),
    }
}

/// Tries all addresses, the first ones first; the first connection to the device wins and the other attempts are
/// dropped.
pub(super) async fn race(
    tls: &NodeTls,
    addresses: &[SocketAddr],
    device: DeviceId,
    patience: Duration,
    mut failed: impl FnMut(SocketAddr, Failure),
) -> Option<Dialed> {
    let mut waiting = addresses.iter().copied();
    let mut running = FuturesUnordered::new();
    let mut next = waiting.next();
    loop {
        if let Some(address) = next.take() {
            running.push(async move { (address, dial(tls, address, Some(device), patience).await) });
        }
        let room = running.len() < AT_ONCE && waiting.len() > 0;
        tokio::select! {
            biased;
            done = running.next() => match done {
                Some((_, Ok(dialed))) => return Some(dialed),
                Some((address, Err(failure))) => {
                    failed(address, failure);
                    next = waiting.next();
                }
                None => match waiting.next() {
                    Some(address) => next = Some(address),
                    None => return None,
                },
            },
            () = tokio::time::sleep(STAGGER), if room => next = waiting.next(),
        }
    }
}
