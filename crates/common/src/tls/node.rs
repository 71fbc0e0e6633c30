//! TLS between nodes: no CA. Each side shows a self-signed Ed25519 certificate; the handshake shows that it holds the
//! key, and the key is all that is taken from the certificate.
//!
//! The certificate says nothing else that counts: it has no beginning and no end, so that two machines whose clocks
//! disagree still find together, and no name but the device's id. Who the key belongs to, and whether that one is
//! welcome, is decided by those who call this. Sessions are never resumed: a resumed one would skip the verifiers.
//!
//! A client that names the device that it wants breaks off before it shows its own certificate to another one.

use super::accept::{Handshake, part};
use super::limits::Slot;
use super::peer::DeviceLeaf;
use super::server::ClockTime;
use super::{ALPN_H2, SERVER_NAME, provider, tune};
use crate::clock::{SharedClock, SystemClock};
use crate::error::{Error, Result};
use crate::identity::{DeviceId, DeviceKey};
use ed25519_dalek::VerifyingKey;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

/// The last second of the year 9999: a certificate without an end (RFC 5280, section 4.1.2.5).
const NO_END: Duration = Duration::from_secs(253_402_300_799);

/// Both ends of TLS of one node. Clones share the certificate.
#[derive(Clone)]
pub struct NodeTls {
    accepting: Arc<ServerConfig>,
    shown: Arc<SingleCertAndKey>,
    me: DeviceId,
}

impl NodeTls {
    /// Makes the certificate for a device's key.
    ///
    /// # Errors
    /// INTERNAL if the cryptography refuses the key.
    pub fn new(key: &DeviceKey) -> Result<Self> {
        let shown = Arc::new(SingleCertAndKey::from(certified_key(key)?));
        let clock: SharedClock = Arc::new(SystemClock);
        let mut config = ServerConfig::builder_with_details(provider(), Arc::new(ClockTime(clock)))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| Error::internal("TLS 1.3 is not available").caused_by(e))?
            .with_client_cert_verifier(Arc::new(KeyVerifier { expected: None }))
            .with_cert_resolver(shown.clone());
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Self { accepting: Arc::new(config), shown, me: key.device_id() })
    }

    /// The device that shows itself here.
    pub fn me(&self) -> DeviceId {
        self.me
    }

    /// The accepting side over any stream, and the other side's public key. The caller sets the deadline.
    ///
    /// # Errors
    /// Those of the stream and of TLS: the other side shows no Ed25519 certificate of its own, or does not hold its key.
    pub async fn accept_over<S>(&self, stream: S) -> io::Result<(server::TlsStream<S>, [u8; 32])>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = tokio_rustls::TlsAcceptor::from(self.accepting.clone()).accept(stream).await?;
        let key = shown_key(stream.get_ref().1.peer_certificates())?;
        Ok((stream, key))
    }

    /// The connecting side over any stream, and the other side's public key. With `expected` the handshake fails before
    /// this node has shown itself if another device answers. The caller sets the deadline.
    ///
    /// # Errors
    /// As [`NodeTls::accept_over`]; [`NodeTls::is_other_device`] tells whether another device answered.
    pub async fn connect_over<S>(
        &self,
        stream: S,
        expected: Option<DeviceId>,
    ) -> io::Result<(client::TlsStream<S>, [u8; 32])>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(KeyVerifier { expected }))
            .with_client_cert_resolver(self.shown.clone());
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(SERVER_NAME).expect("the constant is a host name");
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "what answers does not speak HTTP/2 over TLS"));
        }
        let key = shown_key(stream.get_ref().1.peer_certificates())?;
        Ok((stream, key))
    }

    /// Whether a handshake failed because another device than the expected one answered.
    pub fn is_other_device(error: &io::Error) -> bool {
        let tls = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        matches!(tls, Some(rustls::Error::InvalidCertificate(CertificateError::NotValidForName)))
    }
}

impl fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeTls({:?})", self.me)
    }
}

/// A connection that a node's listener has accepted. It holds its place among the connections that may be open.
pub struct NodeConnection {
    /// The encrypted stream.
    pub stream: server::TlsStream<TcpStream>,
    /// The Ed25519 key that the other side holds.
    pub key: [u8; 32],
    /// Where it comes from.
    pub remote: SocketAddr,
    /// Its place.
    pub slot: Slot,
}

impl fmt::Debug for NodeConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeConnection({:?} from {})", DeviceId::of_key(&self.key), self.remote)
    }
}

impl Handshake for NodeTls {
    type Connection = NodeConnection;

    async fn accept(self, stream: TcpStream, remote: SocketAddr, slot: Slot) -> io::Result<NodeConnection> {
        tune(&stream)?;
        let accepting = tokio_rustls::TlsAcceptor::from(self.accepting.clone()).accept(stream).into_fallible();
        let stream = match accepting.await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                part(stream).await;
                return Err(error);
            }
        };
        let key = shown_key(stream.get_ref().1.peer_certificates())?;
        Ok(NodeConnection { stream, key, remote, slot })
    }
}

fn certified_key(key: &DeviceKey) -> Result<CertifiedKey> {
    let not_made = |e: rcgen::Error| Error::internal("the node's certificate could not be made").caused_by(e);
    let der = key.pkcs8_der();
    let pkcs8 = PrivatePkcs8KeyDer::from(der.to_vec());
    let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &rcgen::PKCS_ED25519).map_err(not_made)?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, key.device_id().to_string());
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    params.not_before = UNIX_EPOCH.into();
    params.not_after = (UNIX_EPOCH + NO_END).into();
    // A key has one certificate only, so the number need not tell two apart.
    params.serial_number = Some(rcgen::SerialNumber::from(1u64));
    let certificate = params.self_signed(&pair).map_err(not_made)?;
    let signing = provider()
        .key_provider
        .load_private_key(PrivateKeyDer::Pkcs8(pkcs8))
        .map_err(|e| Error::internal("the device key could not be used").caused_by(e))?;
    Ok(CertifiedKey::new(vec![certificate.der().clone()], signing))
}

fn shown_key(certificates: Option<&[CertificateDer<'_>]>) -> io::Result<[u8; 32]> {
    certificates
        .and_then(|c| c.first())
        .and_then(|c| key_of(c))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the other side showed no device's certificate"))
}

/// The key of a device's certificate. A key with which anybody could sign is none.
fn key_of(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let leaf = DeviceLeaf::read(certificate)?;
    let key = VerifyingKey::from_bytes(&leaf.public_key).ok()?;
    (!key.is_weak()).then_some(leaf.public_key)
}

/// Takes any device's certificate, or only that of one device.
#[derive(Debug)]
struct KeyVerifier {
    expected: Option<DeviceId>,
}

impl KeyVerifier {
    fn check(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let key = key_of(leaf).filter(|_| others.is_empty()).ok_or(CertificateError::BadEncoding)?;
        match self.expected {
            Some(expected) if expected != DeviceId::of_key(&key) => Err(CertificateError::NotValidForName.into()),
            _ => Ok(()),
        }
    }
}

fn only_tls_1_3() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not used".into())
}

fn verify(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    rustls::crypto::verify_tls13_signature(
        message,
        certificate,
        signature,
        &provider().signature_verification_algorithms,
    )
}

impl ServerCertVerifier for KeyVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(leaf, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls_1_3())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for KeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(leaf, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls_1_3())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    type Ends = (
        io::Result<(server::TlsStream<tokio::io::DuplexStream>, [u8; 32])>,
        io::Result<(client::TlsStream<tokio::io::DuplexStream>, [u8; 32])>,
    );

    async fn meet(server: &NodeTls, client: &NodeTls, expected: Option<DeviceId>) -> Ends {
        let (a, b) = duplex(64 * 1024);
        tokio::join!(server.accept_over(a), client.connect_over(b, expected))
    }

    #[tokio::test]
    async fn both_sides_know_the_others_key() {
        let (a, b) = (DeviceKey::generate(), DeviceKey::generate());
        let (tls_a, tls_b) = (NodeTls::new(&a).unwrap(), NodeTls::new(&b).unwrap());
        let (accepted, connected) = meet(&tls_a, &tls_b, Some(a.device_id())).await;
        let (mut accepted, of_b) = accepted.unwrap();
        let (mut connected, of_a) = connected.unwrap();
        assert_eq!((of_a, of_b), (a.public_key(), b.public_key()));
        connected.write_all(b"hello").await.unwrap();
        connected.flush().await.unwrap();
        let mut read = [0; 5];
        accepted.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"hello");
    }

    #[tokio::test]
    async fn another_device_than_the_expected_one_never_sees_who_called() {
        let (a, b) = (DeviceKey::generate(), DeviceKey::generate());
        let (tls_a, tls_b) = (NodeTls::new(&a).unwrap(), NodeTls::new(&b).unwrap());
        let (accepted, connected) = meet(&tls_a, &tls_b, Some(DeviceKey::generate().device_id())).await;
        assert!(NodeTls::is_other_device(&connected.unwrap_err()));
        assert!(accepted.is_err());
    }

    #[tokio::test]
    async fn a_certificate_of_somebody_elses_key_is_worth_nothing() {
        let (a, thief, victim) = (DeviceKey::generate(), DeviceKey::generate(), DeviceKey::generate());
        let tls_a = NodeTls::new(&a).unwrap();
        let mut forged = NodeTls::new(&thief).unwrap();
        // The victim's certificate, signed for with the thief's key.
        let shown = certified_key(&victim).unwrap();
        let own = certified_key(&thief).unwrap();
        forged.shown = Arc::new(SingleCertAndKey::from(CertifiedKey::new(shown.cert, own.key)));
        let (accepted, _) = meet(&tls_a, &forged, None).await;
        assert!(accepted.is_err());
    }

    #[tokio::test]
    async fn a_client_without_certificate_and_one_of_a_server_office_are_refused() {
        let a = DeviceKey::generate();
        let tls_a = NodeTls::new(&a).unwrap();
        let (anonymous, _) = super::super::ClientTls::capture().unwrap();
        let (x, y) = duplex(64 * 1024);
        let (accepted, _) = tokio::join!(tls_a.accept_over(x), anonymous.handshake(y));
        assert!(accepted.is_err());
        let ca = super::super::OfficeCa::create("Acme", 1_700_000_000_000).unwrap();
        let der = super::super::certificates_of(ca.ca_pem()).unwrap();
        assert_eq!(key_of(&der[0]), None);
    }

    #[test]
    fn a_weak_key_is_no_identity() {
        let device = DeviceKey::generate();
        let certificate = certified_key(&device).unwrap().cert[0].to_vec();
        assert_eq!(key_of(&CertificateDer::from(certificate.clone())), Some(device.public_key()));
        // The neutral element in place of the key, and the id that belongs to it.
        let mut neutral = [0u8; 32];
        neutral[0] = 1;
        let swap = |bytes: Vec<u8>, from: &[u8], to: &[u8]| -> Vec<u8> {
            let at: Vec<usize> = (0..bytes.len() - from.len()).filter(|i| bytes[*i..].starts_with(from)).collect();
            let mut bytes = bytes;
            at.into_iter().for_each(|i| bytes[i..i + from.len()].copy_from_slice(to));
            bytes
        };
        let ids = [device.device_id().to_string(), DeviceId::of_key(&neutral).to_string()];
        let forged = swap(certificate, &device.public_key(), &neutral);
        let forged = CertificateDer::from(swap(forged, ids[0].as_bytes(), ids[1].as_bytes()));
        assert_eq!(DeviceLeaf::read(&forged).map(|l| l.public_key), Some(neutral));
        assert_eq!(key_of(&forged), None);
    }
}
