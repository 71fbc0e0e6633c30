//! Who is at the other end of a connection.

use super::ca::seconds_to_ms;
use super::limits::Slot;
use crate::identity::DeviceId;
use rustls_pki_types::CertificateDer;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// Who is at the other end; in the extensions of every request.
///
/// A device named here has shown that it holds its key and a certificate of this office. Whether it has been cut off
/// since must be looked up by its id on every call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The device, if it showed a certificate that is valid now.
    pub device: Option<DeviceId>,
    /// The device, if it showed a certificate that expired in the last ninety days: it may renew it, and nothing else.
    pub expired_device: Option<DeviceId>,
    /// The Ed25519 key of either.
    pub device_public_key: Option<[u8; 32]>,
    /// Where it comes from; `None` for a Unix socket.
    pub remote_addr: Option<SocketAddr>,
    /// The process at the other end of a Unix socket, told by the kernel.
    pub local_unix: Option<PeerCredentials>,
}

/// User, group and process of a local peer when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Process id, if the system tells. May belong to another process by now: for logs only.
    pub pid: Option<i32>,
}

impl PeerIdentity {
    /// True for a peer on this machine, root or the user that this process runs as.
    pub fn is_local_admin(&self) -> bool {
        self.local_unix.is_some_and(|c| c.uid == 0 || c.uid == rustix::process::geteuid().as_raw())
    }

    pub(super) fn of_tls(leaf: Option<&CertificateDer<'_>>, remote_addr: SocketAddr, now_ms: u64) -> Self {
        let mut peer = Self { remote_addr: Some(remote_addr), ..Self::default() };
        // The verifier has accepted only certificates that this can read.
        if let Some(device) = leaf.and_then(|l| DeviceLeaf::read(l)) {
            peer.device_public_key = Some(device.public_key);
            let id = Some(DeviceId::of_key(&device.public_key));
            if now_ms <= device.not_after_ms {
                peer.device = id;
            } else {
                peer.expired_device = id;
            }
        }
        peer
    }
}

/// What counts of a device's certificate.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceLeaf {
    pub(super) public_key: [u8; 32],
    pub(super) not_before_ms: u64,
    pub(super) not_after_ms: u64,
}

impl DeviceLeaf {
    /// `None` unless it is an Ed25519 certificate with the id of its key as the only common name.
    pub(super) fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (rest, leaf) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let spki = leaf.public_key();
        if !rest.is_empty() || !crate::identity::is_ed25519(&spki.algorithm) {
            return None;
        }
        let public_key: [u8; 32] = spki.subject_public_key.as_ref().try_into().ok()?;
        let mut names = leaf.subject().iter_common_name();
        let id = DeviceId::of_key(&public_key).to_string();
        if names.next()?.as_str().ok()? != id || names.next().is_some() {
            return None;
        }
        Some(Self {
            public_key,
            not_before_ms: seconds_to_ms(leaf.validity().not_before.timestamp()),
            not_after_ms: seconds_to_ms(leaf.validity().not_after.timestamp()),
        })
    }
}

/// An accepted connection: TLS over TCP, or a Unix socket. Holds its place among the connections that may be open.
#[derive(Debug)]
pub struct Connection {
    io: Io,
    peer: PeerIdentity,
    _slot: Slot,
}

#[derive(Debug)]
enum Io {
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl Connection {
    pub(super) fn tls(stream: TlsStream<TcpStream>, peer: PeerIdentity, slot: Slot) -> Self {
        Self { io: Io::Tls(Box::new(stream)), peer, _slot: slot }
    }

    pub(super) fn unix(stream: UnixStream, peer: PeerIdentity, slot: Slot) -> Self {
        Self { io: Io::Unix(stream), peer, _slot: slot }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerIdentity;

    fn connect_info(&self) -> PeerIdentity {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tls(s) => Pin::new(s).poll_read(cx, buf),
            Io::Unix(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Tls(s) => Pin::new(s).poll_write(cx, buf),
            Io::Unix(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Tls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Io::Unix(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tls(s) => s.is_write_vectored(),
            Io::Unix(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tls(s) => Pin::new(s).poll_flush(cx),
            Io::Unix(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tls(s) => Pin::new(s).poll_shutdown(cx),
            Io::Unix(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
