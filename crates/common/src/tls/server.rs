//! The server's end: configuration, the certificate that can be exchanged, the check of device certificates.

use super::ca::ServerCertificate;
use super::peer::DeviceLeaf;
use super::{ALPN_H2, provider, roots_of, unix_time};
use crate::clock::SharedClock;
use crate::error::{Error, Reason, Result};
use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, DistinguishedName, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How long after its end a device certificate still lets its device renew it: a machine may be off for a quarter of a
/// year. The certificate's end is no protection against a stolen key, since a thief would renew in time; cutting the
/// device off is.
pub(super) const RENEWABLE_AFTER_END: Duration = Duration::from_secs(90 * 86_400);

/// The server's end of TLS. Clones share certificate and roots.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    certificate: Arc<Certificate>,
    clients: Arc<DeviceVerifier>,
    clock: SharedClock,
}

impl ServerTls {
    /// TLS 1.3, ALPN h2, client certificates wanted but not needed, no resumption.
    ///
    /// # Errors
    /// CERTIFICATE_INVALID if the certificate or a client CA cannot be used.
    pub fn new(certificate: &ServerCertificate, client_cas: &str, clock: SharedClock) -> Result<Self> {
        let provider = provider();
        let resolver = Arc::new(Certificate(ArcSwap::new(certified_key(&provider, certificate)?)));
        let clients = Arc::new(DeviceVerifier(ArcSwap::from_pointee(verifier_for(client_cas)?)));
        let mut config = ServerConfig::builder_with_details(provider, Arc::new(ClockTime(clock.clone())))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| Error::internal("TLS 1.3 is not available").caused_by(e))?
            .with_client_cert_verifier(clients.clone())
            .with_cert_resolver(resolver.clone());
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        // A resumed session would skip the check of the device's certificate.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Self { config: Arc::new(config), certificate: resolver, clients, clock })
    }

    /// Exchanges the certificate; connections that are open keep the old one.
    pub fn set_certificate(&self, certificate: &ServerCertificate) -> Result<()> {
        self.certificate.0.store(certified_key(self.config.crypto_provider(), certificate)?);
        Ok(())
    }

    /// Exchanges the CAs whose device certificates are accepted; connections that are open stay.
    pub fn set_client_cas(&self, ca_pem: &str) -> Result<()> {
        self.clients.0.store(Arc::new(verifier_for(ca_pem)?));
        Ok(())
    }

    /// SHA-256 of the public key (subject public key info, DER) that new connections see; enrolment covers it.
    pub fn spki_sha256(&self) -> Result<[u8; 32]> {
        super::spki_sha256(&self.certificate.0.load().cert[0])
    }

    /// The configuration, for a listener that is not gRPC; it must set its own ALPN on a copy.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

fn certified_key(provider: &CryptoProvider, certificate: &ServerCertificate) -> Result<Arc<CertifiedKey>> {
    let wrong = |e| Error::new(Reason::CertificateInvalid, "the server certificate cannot be used").caused_by(e);
    let der = certificate.key.pkcs8_der();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.to_vec()));
    let key = provider.key_provider.load_private_key(key).map_err(wrong)?;
    let certified = CertifiedKey::new(certificate.chain.clone(), key);
    certified.keys_match().map_err(wrong)?;
    Ok(Arc::new(certified))
}

fn verifier_for(ca_pem: &str) -> Result<Inner> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots_of(ca_pem)?, provider())
        .allow_unauthenticated()
        .clear_root_hint_subjects()
        .build()
        .map_err(|e| Error::new(Reason::CertificateInvalid, "the office CA cannot be used").caused_by(e))?;
    Ok(Inner(verifier))
}

struct Certificate(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate")
    }
}

/// The time of our own clock, so that tests can turn it.
pub(super) struct ClockTime(pub(super) SharedClock);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(self.0.now_ms()))
    }
}

impl fmt::Debug for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockTime")
    }
}

#[derive(Debug)]
struct Inner(Arc<dyn ClientCertVerifier>);

/// Lets in whoever shows no certificate, or one of the office's that is a device's.
#[derive(Debug)]
struct DeviceVerifier(ArcSwap<Inner>);

impl ClientCertVerifier for DeviceVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // None: clients have one certificate and send it always. Hints would say the office's name to everyone.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let inner = self.0.load();
        let verified = match inner.0.verify_client_cert(leaf, intermediates, now) {
            Err(error @ rustls::Error::InvalidCertificate(_)) if is_expired(&error) => {
                let Some(device) = DeviceLeaf::read(leaf) else { return Err(error) };
                let end = Duration::from_millis(device.not_after_ms);
                if now.as_secs() > (end + RENEWABLE_AFTER_END).as_secs() {
                    return Err(error);
                }
                // Everything but the end must be right; `PeerIdentity` says that it has expired.
                inner.0.verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(end))?
            }
            other => other?,
        };
        match DeviceLeaf::read(leaf) {
            Some(_) => Ok(verified),
            None => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    signatures_as!(self => self.0.load().0);
}

fn is_expired(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })
    )
}
