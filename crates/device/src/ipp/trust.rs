//! Which certificate of an `ipps:` printer is believed.
//!
//! Printers of offices have certificates that they made themselves, mostly with other names than those by which they are
//! reached. What protects against somebody in between is that the certificate stays the same: it is looked at once
//! ([`peek`]), kept as a [`Trust::Pinned`], and another one is refused from then on. A printer whose certificate comes from
//! an authority needs no pin; it may change its certificate.
//!
//! In all cases the printer has to prove in the handshake that it has the certificate's key.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use common::error::{Error, Reason, Result};
use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme, crypto,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};

use super::client::{Client, Endpoint, Target};

/// Where systems keep the authorities that they believe; the first one that is there counts.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Longest text with certificates.
const PEM_MAX: usize = 64 * 1024;

/// Which certificate is believed. As text: `system`, `sha256:HEX`, or certificates in PEM.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Trust {
    /// One for the printer's name, from an authority that this machine's system believes.
    #[default]
    System,
    /// The one with this SHA-256, whatever is in it.
    Pinned([u8; 32]),
    /// One of these, or one for the printer's name from an authority that is one of these.
    Given(String),
}

impl FromStr for Trust {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |why: &str| {
            Error::new(Reason::CertificateInvalid, "it is not said which certificate of the printer is trusted")
                .why_is(why.to_owned())
                .fix_is("write system, sha256:FINGERPRINT, or name a PEM file with the certificate or its authority")
        };
        if text == "system" {
            return Ok(Self::System);
        }
        if let Some(hex) = text.strip_prefix("sha256:") {
            let hex: String = hex.chars().filter(|c| *c != ':').collect();
            let wrong = || invalid("a fingerprint has 64 hexadecimal digits");
            if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            let mut digest = [0; 32];
            for (at, byte) in digest.iter_mut().enumerate() {
                *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).map_err(|_| wrong())?;
            }
            return Ok(Self::Pinned(digest));
        }
        if text.len() > PEM_MAX {
            return Err(invalid("the certificates have more than 64 KiB"));
        }
        match certificates(text.as_bytes()) {
            Ok(found) if !found.is_empty() => Ok(Self::Given(text.to_owned())),
            _ => Err(invalid("there is no certificate in it")),
        }
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::Pinned(digest) => f.write_str(&fingerprint(digest)),
            Self::Given(pem) => f.write_str(pem),
        }
    }
}

impl TryFrom<String> for Trust {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Trust> for String {
    fn from(trust: Trust) -> Self {
        trust.to_string()
    }
}

impl Trust {
    /// The pin of this certificate.
    pub fn pin(certificate: &[u8]) -> Self {
        Self::Pinned(sha256(certificate))
    }

    /// Settings of a connection that believes this.
    ///
    /// # Errors
    /// `CERTIFICATE_INVALID` if a given certificate is damaged.
    pub fn config(&self) -> Result<Arc<ClientConfig>> {
        let provider = provider();
        let rule = match self {
            Self::System => Rule::Authorities(Vec::new(), authorities(system_roots(), &provider)),
            Self::Pinned(digest) => Rule::Pinned(*digest),
            Self::Given(pem) => {
                let given = certificates(pem.as_bytes())?;
                Rule::Authorities(given.clone(), authorities(given, &provider))
            }
        };
        config(rule, provider)
    }
}

/// `sha256:` and hexadecimal digits.
fn fingerprint(digest: &[u8; 32]) -> String {
    use std::fmt::Write;
    digest.iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found.map_err(|e| Error::new(Reason::CertificateInvalid, "the certificate is damaged").caused_by(e))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(crypto::aws_lc_rs::default_provider())
}

/// The authorities of the system; none if there is no such file. What is damaged is left out.
fn system_roots() -> Vec<CertificateDer<'static>> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let mut files = named.into_iter().chain(SYSTEM_ROOTS.map(PathBuf::from));
    let pem = files.find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
    CertificateDer::pem_slice_iter(&pem).filter_map(std::result::Result::ok).collect()
}

/// Who judges by these authorities; nobody if there are none.
fn authorities(
    roots: Vec<CertificateDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Option<Arc<WebPkiServerVerifier>> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots);
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone()).build().ok()
}

fn config(rule: Rule, provider: Arc<CryptoProvider>) -> Result<Arc<ClientConfig>> {
    let verifier = Arc::new(Verifier { rule, provider: provider.clone() });
    // Printers of many ages are asked.
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|e| Error::internal("settings for TLS to a printer").caused_by(e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Settings of a connection by which a printer is asked what it is and nothing else: any certificate is believed.
///
/// # Errors
/// `INTERNAL`.
pub fn anybody() -> Result<Arc<ClientConfig>> {
    config(Rule::Any(Arc::default()), provider())
}

/// Looks at the certificate that a printer shows. Gives it in DER.
///
/// # Errors
/// `DEVICE_AWAY` if it cannot be reached or does not speak TLS.
pub async fn peek(target: &Target) -> Result<Vec<u8>> {
    let seen = Seen::default();
    let client = Client::new(target.clone(), Some(config(Rule::Any(seen.clone()), provider())?));
    client.handshake().await?;
    let shown = seen.lock().take();
    shown.ok_or_else(|| Error::new(Reason::DeviceAway, "the printer shows no certificate"))
}

/// What to trust of a printer that is looked at for the first time: the authorities of the system if its certificate is
/// from one of them, otherwise this certificate.
///
/// # Errors
/// As [`peek`].
pub async fn first_use(target: &Target) -> Result<Trust> {
    let client = Client::new(target.clone(), Some(Trust::System.config()?));
    match client.handshake().await {
        Ok(()) => Ok(Trust::System),
        Err(error) if error.is(Reason::PrinterUntrusted) => Ok(Trust::pin(&peek(target).await?)),
        Err(error) => Err(error),
    }
}

/// True if a target is reached by TLS.
pub fn is_secure(target: &Target) -> bool {
    matches!(target.endpoint, Endpoint::Tcp { tls: true, .. })
}

/// Where the certificate is put that was shown.
type Seen = Arc<Mutex<Option<Vec<u8>>>>;

#[derive(Debug)]
enum Rule {
    Pinned([u8; 32]),
    Authorities(Vec<CertificateDer<'static>>, Option<Arc<WebPkiServerVerifier>>),
    Any(Seen),
}

#[derive(Debug)]
struct Verifier {
    rule: Rule,
    provider: Arc<CryptoProvider>,
}

/// A certificate that is not believed.
#[derive(Debug, thiserror::Error)]
#[error("the certificate {} is not the one that is trusted", fingerprint(.shown))]
struct Untrusted {
    shown: [u8; 32],
    /// It was to be this one.
    pinned: Option<[u8; 32]>,
    /// What an authority's judge said.
    because: String,
}

impl Untrusted {
    fn tls(self) -> rustls::Error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(self))))
    }
}

/// The error of a handshake that failed because the certificate is not believed.
pub(super) fn untrusted(error: &std::io::Error) -> Option<Error> {
    let tls = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) = tls else { return None };
    let Untrusted { shown, pinned, because } = inner.downcast_ref::<Untrusted>()?;
    let shown = fingerprint(shown);
    let (message, why) = match pinned {
        Some(pinned) => (
            "the printer shows another certificate than the one that is trusted",
            format!(
                "it shows {shown} and not {}: it was reset or replaced, or something is between it and this machine",
                fingerprint(pinned)
            ),
        ),
        None => ("the printer's certificate is not trusted", format!("it shows {shown}: {because}")),
    };
    let fix = "compare the fingerprint with the one that the printer itself shows; if they are the same, \
               atrium share printers/NAME --trust new";
    Some(Error::new(Reason::PrinterUntrusted, message).why_is(why).fix_is(fix).with("certificate", shown))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let shown = sha256(end_entity);
        match &self.rule {
            Rule::Any(seen) => {
                *seen.lock() = Some(end_entity.to_vec());
                Ok(ServerCertVerified::assertion())
            }
            Rule::Pinned(pinned) if *pinned == shown => Ok(ServerCertVerified::assertion()),
            Rule::Pinned(pinned) => Err(Untrusted { shown, pinned: Some(*pinned), because: String::new() }.tls()),
            Rule::Authorities(given, _) if given.contains(end_entity) => Ok(ServerCertVerified::assertion()),
            Rule::Authorities(_, None) => {
                Err(Untrusted { shown, pinned: None, because: "no authority is known here".into() }.tls())
            }
            Rule::Authorities(_, Some(judge)) => judge
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
                .map_err(|e| Untrusted { shown, pinned: None, because: e.to_string() }.tls()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_trusted_is_read_and_written() {
        let made = rcgen::generate_simple_self_signed(vec!["printer".to_owned()]).unwrap();
        let pin = Trust::pin(made.cert.der());
        let text = pin.to_string();
        assert_eq!(text.len(), "sha256:".len() + 64);
        for trust in [Trust::System, pin, Trust::Given(made.cert.pem())] {
            assert_eq!(trust.to_string().parse::<Trust>().unwrap(), trust);
            assert!(trust.config().is_ok());
        }
        let colons = format!("sha256:{}", ["AB"; 32].join(":"));
        assert_eq!(colons.parse::<Trust>().unwrap(), Trust::Pinned([0xab; 32]), "as printers show it");
        for bad in
            ["", "sha256:", "sha256:zz", "everything", "-----BEGIN CERTIFICATE-----\nAAAA\n", &"x".repeat(70_000)]
        {
            assert!(bad.parse::<Trust>().unwrap_err().is(Reason::CertificateInvalid), "{}", &bad[..bad.len().min(40)]);
        }
        let umlauts = format!("sha256:{}", "ä".repeat(32));
        assert!(umlauts.parse::<Trust>().is_err());
    }
}
