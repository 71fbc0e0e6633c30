//! The client's end: trust in the office CA, the device's certificate, and the one case without trust, enrolment.

use super::peer::DeviceLeaf;
use super::{ALPN_H2, SERVER_NAME, certificates_of, provider, roots_of, spki_sha256, unix_time};
use crate::error::{Error, Reason, Result};
use crate::identity::{DeviceId, DeviceKey};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use std::fmt;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;

/// What a device shows to the office.
#[derive(Clone)]
pub struct DeviceCredentials {
    /// Its key.
    pub key: Arc<DeviceKey>,
    /// Its certificate chain, PEM, leaf first.
    pub certificate_pem: String,
}

impl fmt::Debug for DeviceCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceCredentials({:?})", self.key.device_id())
    }
}

/// A client's end of TLS. Clones share roots and certificate.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    office: Option<Arc<OfficeVerifier>>,
    device: Arc<DeviceCertificate>,
}

impl ClientTls {
    /// Trusts servers with a certificate of this office CA (PEM; several CAs may follow one another), by whatever
    /// address they were reached.
    ///
    /// # Errors
    /// CERTIFICATE_INVALID if the PEM cannot be used.
    pub fn office(ca_pem: &str) -> Result<Self> {
        let verifier = Arc::new(OfficeVerifier(ArcSwap::new(server_verifier(ca_pem)?)));
        let device = Arc::new(DeviceCertificate(ArcSwap::from_pointee(None)));
        let config = config_with(verifier.clone(), device.clone())?;
        let name = ServerName::try_from(SERVER_NAME).expect("the constant is a host name");
        Ok(Self { config, name, office: Some(verifier), device })
    }

    /// The same, showing a device's certificate.
    pub fn with_device(ca_pem: &str, device: &DeviceCredentials) -> Result<Self> {
        let tls = Self::office(ca_pem)?;
        tls.set_device(device)?;
        Ok(tls)
    }

    /// For enrolment only: takes any certificate and remembers its key, which the enrolment's proofs then cover. A
    /// second connection must show the same key.
    pub fn capture() -> Result<(Self, CapturedKey)> {
        let captured = CapturedKey::default();
        let device = Arc::new(DeviceCertificate(ArcSwap::from_pointee(None)));
        let config = config_with(Arc::new(CapturingVerifier(captured.clone())), device.clone())?;
        let name = ServerName::try_from(SERVER_NAME).expect("the constant is a host name");
        Ok((Self { config, name, office: None, device }, captured))
    }

    /// Asks for this name or address in the server's certificate instead of the name that all servers carry.
    ///
    /// # Errors
    /// FIELD_INVALID if it is neither.
    pub fn verify_as(mut self, name: &str) -> Result<Self> {
        self.name = ServerName::try_from(name.to_owned())
            .map_err(|_| Error::new(Reason::FieldInvalid, format!("neither an address nor a host name: {name:?}")))?;
        Ok(self)
    }

    /// Exchanges the device's certificate; connections that are open keep the old one.
    pub fn set_device(&self, device: &DeviceCredentials) -> Result<()> {
        self.device.0.store(Arc::new(Some(certified_key(device)?)));
        Ok(())
    }

    /// Exchanges the CAs that are trusted; connections that are open stay.
    pub fn set_office(&self, ca_pem: &str) -> Result<()> {
        if let Some(office) = &self.office {
            office.0.store(server_verifier(ca_pem)?);
        }
        Ok(())
    }

    /// The handshake over a connection. The caller sets the deadline.
    pub async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        let connector = tokio_rustls::TlsConnector::from(self.config.clone());
        let stream = connector.connect(self.name.clone(), stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the server does not speak HTTP/2 over TLS"));
        }
        Ok(stream)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientTls({:?})", self.name)
    }
}

fn config_with(
    verifier: Arc<dyn ServerCertVerifier>,
    device: Arc<dyn ResolvesClientCert>,
) -> Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| Error::internal("TLS 1.3 is not available").caused_by(e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(device);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn server_verifier(ca_pem: &str) -> Result<Arc<WebPkiServerVerifier>> {
    WebPkiServerVerifier::builder_with_provider(roots_of(ca_pem)?, provider())
        .build()
        .map_err(|e| Error::new(Reason::CertificateInvalid, "the office CA cannot be used").caused_by(e))
}

fn certified_key(device: &DeviceCredentials) -> Result<Arc<CertifiedKey>> {
    let wrong = |e| Error::new(Reason::CertificateInvalid, "the device certificate cannot be used").caused_by(e);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(device.key.pkcs8_der().to_vec()));
    let key = provider().key_provider.load_private_key(key).map_err(wrong)?;
    let certified = CertifiedKey::new(certificates_of(&device.certificate_pem)?, key);
    certified.keys_match().map_err(wrong)?;
    Ok(Arc::new(certified))
}

struct DeviceCertificate(ArcSwap<Option<Arc<CertifiedKey>>>);

impl ResolvesClientCert for DeviceCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.load().as_ref().clone()
    }

    fn has_certs(&self) -> bool {
        self.0.load().is_some()
    }
}

impl fmt::Debug for DeviceCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceCertificate")
    }
}

#[derive(Debug)]
struct OfficeVerifier(ArcSwap<WebPkiServerVerifier>);

impl ServerCertVerifier for OfficeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.load().verify_server_cert(leaf, intermediates, name, ocsp, now)
    }

    signatures_as!(self => self.0.load());
}

/// The key that a server showed during enrolment.
#[derive(Clone, Debug, Default)]
pub struct CapturedKey(Arc<Mutex<Option<CertificateDer<'static>>>>);

impl CapturedKey {
    /// SHA-256 of its subject public key info, DER; `None` before the first handshake.
    pub fn spki_sha256(&self) -> Option<[u8; 32]> {
        self.0.lock().as_ref().and_then(|c| spki_sha256(c).ok())
    }

    /// Checks that the certificate that was shown is one of this office's servers.
    ///
    /// # Errors
    /// TLS_FAILED if it is not.
    pub fn belongs_to(&self, ca_pem: &str) -> Result<()> {
        let name = ServerName::try_from(SERVER_NAME).expect("the constant is a host name");
        let shown = self.0.lock().clone();
        let shown = shown.ok_or_else(|| Error::internal("no certificate was captured"))?;
        server_verifier(ca_pem)?
            .verify_server_cert(&shown, &[], &name, &[], UnixTime::now())
            .map(|_| ())
            .map_err(|e| Error::new(Reason::TlsFailed, "the server's certificate is not its office's").caused_by(e))
    }

    fn take(&self, leaf: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let new = spki_sha256(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let mut held = self.0.lock();
        match held.as_ref().map(spki_sha256) {
            None => *held = Some(leaf.clone().into_owned()),
            Some(Ok(old)) if old == new => {}
            Some(_) => return Err(CertificateError::ApplicationVerificationFailure.into()),
        }
        Ok(())
    }
}

/// Believes any certificate, but not without a signature by its key: what is captured is the key of whoever is at the
/// other end.
#[derive(Debug)]
struct CapturingVerifier(CapturedKey);

impl ServerCertVerifier for CapturingVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.take(leaf)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not used".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What a device's certificate says, after it was checked against the office CA and the device's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The device.
    pub device_id: DeviceId,
    /// Begin of the certificate's life.
    pub not_before_ms: u64,
    /// End of it.
    pub not_after_ms: u64,
}

/// Checks a device certificate as the office's server will: signed by the CA, for use by a client, for this key. Being
/// expired is no error, since it can be renewed.
///
/// # Errors
/// CERTIFICATE_INVALID with what is wrong.
pub fn check_membership(ca_pem: &str, certificate_pem: &str, public_key: &[u8; 32]) -> Result<Membership> {
    let wrong = |what: &str| Error::new(Reason::CertificateInvalid, format!("device certificate: {what}"));
    let chain = certificates_of(certificate_pem)?;
    let leaf = DeviceLeaf::read(&chain[0]).ok_or_else(|| wrong("it is not a device's"))?;
    if leaf.public_key != *public_key {
        return Err(wrong("it belongs to another key"));
    }
    WebPkiClientVerifier::builder_with_provider(roots_of(ca_pem)?, provider())
        .build()
        .map_err(|e| Error::new(Reason::CertificateInvalid, "the office CA cannot be used").caused_by(e))?
        .verify_client_cert(&chain[0], &chain[1..], unix_time(leaf.not_after_ms))
        .map_err(|e| wrong("it was not signed by this office").caused_by(e))?;
    Ok(Membership {
        device_id: DeviceId::of_key(public_key),
        not_before_ms: leaf.not_before_ms,
        not_after_ms: leaf.not_after_ms,
    })
}
