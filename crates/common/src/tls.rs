//! TLS 1.3 of an office: its CA, the server's and the devices' certificates, and both ends of a connection.
//!
//! Trust is the office CA and nothing else: ECDSA P-256, so that TLS libraries of all languages verify it from one PEM
//! file. Server certificates are ECDSA P-256 too and all carry the name [`SERVER_NAME`], so that a change of address
//! never breaks verification. Device certificates are Ed25519; they are optional at this level, and each call says what
//! it needs. A certificate says *which* device calls; whether that device is still welcome is looked up on every call,
//! because a connection outlives a revocation. For the same reason sessions are never resumed: a resumed session would
//! skip the verifiers.
//!
//! Certificates and CA roots are swapped at run time; open connections keep what they began with, new ones see the
//! change ([`ServerTls::set_certificate`], [`ServerTls::set_client_cas`], [`ClientTls::set_device`]).

/// The methods of a certificate verifier that are about signatures, as another verifier has them. rustls has two traits
/// with the same three.
macro_rules! signatures_as {
    ($this:ident => $inner:expr) => {
        fn verify_tls12_signature(
            &$this,
            message: &[u8],
            certificate: &rustls_pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            $inner.verify_tls12_signature(message, certificate, signature)
        }

        fn verify_tls13_signature(
            &$this,
            message: &[u8],
            certificate: &rustls_pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            $inner.verify_tls13_signature(message, certificate, signature)
        }

        fn supported_verify_schemes(&$this) -> Vec<rustls::SignatureScheme> {
            $inner.supported_verify_schemes()
        }
    };
}

mod accept;
mod ca;
mod client;
mod limits;
mod node;
mod peer;
mod renewal;
mod server;

pub use accept::tune;
pub use accept::{AcceptLimits, AcceptStats, Acceptor, Handshake, UnixAcceptor};
pub use ca::{
    DEVICE_LIFETIME, OfficeCa, SERVER_LIFETIME, ServerCertificate, ServerKey, check_office_signature, local_names,
};
pub use client::{CapturedKey, ClientTls, DeviceCredentials, Membership, check_membership};
pub use limits::Slot;
pub use node::{NodeConnection, NodeTls};
pub use peer::{Connection, PeerCredentials, PeerIdentity};
pub use renewal::{ServerIdentity, renew_after_ms, renew_at_ms};
pub use server::ServerTls;

use crate::error::{Error, Reason, Result};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// The name that every server certificate carries besides its addresses, and that our clients ask for.
pub const SERVER_NAME: &str = "atrium-server";

/// More certificates than this in one PEM file are not read: an office has one CA, and two while it changes.
pub const MAX_PEM_CERTIFICATES: usize = 8;

/// A PEM file of certificates longer than this is not read.
pub const MAX_PEM_BYTES: usize = 64 * 1024;

const ALPN_H2: &[u8] = b"h2";

/// Makes our cryptography the process's default. The first line of every `main`; repeating it is harmless.
pub fn install_provider() {
    // Fails only if one is installed already, which is then ours or one that someone chose on purpose.
    let _ = CryptoProvider::install_default(provider().as_ref().clone());
}

/// aws-lc-rs with the suites of TLS 1.3 only: AES-128-GCM first where the processor has AES, since it is the cheapest
/// per byte; ChaCha20 first where it has not.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let aes =
            [aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256, aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384];
        let chacha = [aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
        let cipher_suites = if has_aes() { [&aes[..], &chacha].concat() } else { [&chacha[..], &aes].concat() };
        Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
    });
    PROVIDER.clone()
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

/// The certificates of a PEM text, at least one and at most [`MAX_PEM_CERTIFICATES`].
pub(crate) fn certificates_of(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |what: &str| Error::new(Reason::CertificateInvalid, format!("certificate file: {what}"));
    if pem.len() > MAX_PEM_BYTES {
        return Err(wrong("longer than 64 KiB"));
    }
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        if found.len() == MAX_PEM_CERTIFICATES {
            return Err(wrong("more than 8 certificates"));
        }
        found.push(certificate.map_err(|_| wrong("not PEM"))?);
    }
    if found.is_empty() {
        return Err(wrong("no certificate in it"));
    }
    Ok(found)
}

/// The certificates of a PEM text as trust anchors; all of them must be usable.
pub(crate) fn roots_of(pem: &str) -> Result<Arc<rustls::RootCertStore>> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates_of(pem)? {
        roots.add(certificate).map_err(|e| {
            Error::new(Reason::CertificateInvalid, "a certificate cannot be used as the office's").caused_by(e)
        })?;
    }
    Ok(Arc::new(roots))
}

/// SHA-256 of a certificate's subject public key info, DER.
pub(crate) fn spki_sha256(certificate: &CertificateDer<'_>) -> Result<[u8; 32]> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| Error::new(Reason::CertificateInvalid, "a certificate is not X.509"))?;
    Ok(sha256(parsed.tbs_certificate.subject_pki.raw))
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

pub(crate) fn unix_time(ms: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn installing_twice_is_harmless_and_only_tls_1_3_is_left() {
        install_provider();
        install_provider();
        let provider = provider();
        assert!(provider.cipher_suites.iter().all(|s| s.tls13().is_some()));
        if has_aes() {
            assert_eq!(provider.cipher_suites[0].suite(), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        }
        let default = CryptoProvider::get_default().unwrap();
        assert_eq!(default.cipher_suites, provider.cipher_suites);
    }

    #[test]
    fn a_file_without_or_with_too_many_certificates_is_refused() {
        let ca = OfficeCa::create("Acme", crate::clock::Clock::now_ms(&crate::clock::SystemClock)).unwrap();
        assert!(certificates_of("").unwrap_err().is(Reason::CertificateInvalid));
        assert!(certificates_of("-----BEGIN CERTIFICATE-----\n!\n").unwrap_err().is(Reason::CertificateInvalid));
        assert_eq!(certificates_of(&ca.ca_pem().repeat(8)).unwrap().len(), 8);
        assert!(certificates_of(&ca.ca_pem().repeat(9)).unwrap_err().message().contains("more than 8"));
        assert!(certificates_of(&" ".repeat(MAX_PEM_BYTES + 1)).unwrap_err().message().contains("64 KiB"));
    }

    proptest! {
        #[test]
        fn random_text_and_random_der_never_panic(text in any::<String>(), bytes in any::<Vec<u8>>()) {
            prop_assert!(roots_of(&text).is_err());
            prop_assert!(spki_sha256(&CertificateDer::from(bytes)).is_err());
        }
    }
}
