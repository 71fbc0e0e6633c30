//! The office's certificate authority and the certificates it signs.
//!
//! | certificate | key | life | may be used as |
//! |---|---|---|---|
//! | office CA, self-signed, path length 0 | ECDSA P-256 | 10 years | issuer of the two below, nothing else |
//! | server | ECDSA P-256 | 90 days, renewed by itself after 60 | TLS server |
//! | device, common name = device id | Ed25519 | 7 days by default | TLS client |
//!
//! All begin an hour in the past, because clocks in an office differ. Serial numbers are random.

use super::{SERVER_NAME, certificates_of, spki_sha256};
use crate::error::{Error, Reason, Result};
use crate::identity::{DeviceRequest, random_bytes, read_secret, write_public, write_secret};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, SigningKey,
};
use rustls_pki_types::CertificateDer;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};
use zeroize::Zeroizing;

/// Life of the office CA.
pub const CA_LIFETIME: Duration = Duration::from_secs(3653 * 86_400);
/// Life of a server certificate.
pub const SERVER_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// Life of a device certificate when the setting says nothing.
pub const DEVICE_LIFETIME: Duration = Duration::from_secs(7 * 86_400);
/// How far before its making a certificate begins to count.
const BACKDATE: Duration = Duration::from_secs(3600);
/// More names than this make a certificate that some TLS libraries refuse.
const MAX_NAMES: usize = 100;

const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";

/// The office's certificate authority, with its private key.
pub struct OfficeCa {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    pem: String,
    office: String,
    not_after_ms: u64,
}

impl OfficeCa {
    /// A new CA for the office of this name.
    pub fn create(office: &str, now_ms: u64) -> Result<Self> {
        Self::sign_itself(office, generate_p256()?, now_ms)
    }

    fn sign_itself(office: &str, key: KeyPair, now_ms: u64) -> Result<Self> {
        check_office(office)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, office);
        params.distinguished_name.push(DnType::CommonName, "Atrium office CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_life(&mut params, now_ms, CA_LIFETIME, u64::MAX);
        let certificate = params.self_signed(&key).map_err(not_made)?;
        Self::from_parts(&certificate.pem(), key)
    }

    /// From the certificate and the key (PKCS#8), both PEM.
    ///
    /// # Errors
    /// CERTIFICATE_INVALID or KEY_FILE_INVALID if one of them is damaged or they do not belong together.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self> {
        Self::from_parts(certificate_pem, p256_from_pem(key_pem)?)
    }

    fn from_parts(certificate_pem: &str, key: KeyPair) -> Result<Self> {
        let wrong = |what: &str| Error::new(Reason::CertificateInvalid, format!("office CA: {what}"));
        let certificate = certificates_of(certificate_pem)?.swap_remove(0);
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|_| wrong("not X.509"))?;
        if !parsed.is_ca() {
            return Err(wrong("the certificate is not a CA's"));
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(wrong("certificate and key do not belong together"));
        }
        let organization = parsed.subject().iter_organization().next();
        let office = organization.and_then(|o| o.as_str().ok()).unwrap_or_default().to_owned();
        let not_after_ms = seconds_to_ms(parsed.validity().not_after.timestamp());
        Ok(Self { key, certificate, pem: certificate_pem.to_owned(), office, not_after_ms })
    }

    /// Loads `ca.pem` and `ca.key` from a directory.
    pub fn load(directory: &Path) -> Result<Self> {
        let pem = std::fs::read_to_string(directory.join(CA_CERTIFICATE))?;
        Self::from_pem(&pem, &text(&read_secret(&directory.join(CA_KEY))?)?)
    }

    /// Saves `ca.key` (mode 0600), then `ca.pem`: the certificate is there only if its key is.
    pub fn save(&self, directory: &Path) -> Result<()> {
        write_secret(&directory.join(CA_KEY), Zeroizing::new(self.key.serialize_pem()).as_bytes())?;
        write_public(&directory.join(CA_CERTIFICATE), self.pem.as_bytes())
    }

    /// Loads it, or makes and saves a new one if the directory has no `ca.pem`. A key without its certificate (the
    /// first start was cut off) is used, never overwritten.
    pub fn load_or_create(directory: &Path, office: &str, now_ms: u64) -> Result<Self> {
        if directory.join(CA_CERTIFICATE).try_exists()? {
            return Self::load(directory);
        }
        let key_file = directory.join(CA_KEY);
        let ca = if key_file.try_exists()? {
            Self::sign_itself(office, p256_from_pem(&text(&read_secret(&key_file)?)?)?, now_ms)?
        } else {
            Self::create(office, now_ms)?
        };
        ca.save(directory)?;
        Ok(ca)
    }

    /// The certificate, PEM: the one file that clients in any language need. Further certificates in `ca.pem` (those of
    /// an earlier CA that still count) are kept.
    pub fn ca_pem(&self) -> &str {
        &self.pem
    }

    /// The office's name, as it is in the certificate.
    pub fn office(&self) -> &str {
        &self.office
    }

    /// Signs a file that this office has made: ECDSA P-256 with SHA-256, in DER. What is signed must not be mistakable for
    /// a certificate; JSON, for one, never is.
    ///
    /// # Errors
    /// INTERNAL.
    pub fn sign(&self, content: &[u8]) -> Result<Vec<u8>> {
        self.key.sign(content).map_err(not_made)
    }

    /// End of the CA's life.
    pub fn not_after_ms(&self) -> u64 {
        self.not_after_ms
    }

    /// SHA-256 of the CA's public key, for people to compare: 64 hex digits.
    pub fn fingerprint(&self) -> Result<String> {
        Ok(spki_sha256(&self.certificate)?.iter().map(|b| format!("{b:02x}")).collect())
    }

    /// Signs a server certificate for these names and addresses, and for localhost and [`SERVER_NAME`].
    ///
    /// # Errors
    /// FIELD_INVALID if a name is neither an address nor a host name, or there are more than 100.
    pub fn issue_server(&self, names: &[String], key: &ServerKey, now_ms: u64) -> Result<ServerCertificate> {
        let mut params = self.leaf(ExtendedKeyUsagePurpose::ServerAuth);
        params.distinguished_name.push(DnType::CommonName, SERVER_NAME);
        params.subject_alt_names = subject_names(names)?;
        set_life(&mut params, now_ms, SERVER_LIFETIME, self.not_after_ms);
        let certificate = params.signed_by(key.pair.as_ref(), &self.issuer()?).map_err(not_made)?;
        ServerCertificate::from_pem(&certificate.pem(), key.clone())
    }

    /// Signs a device's certificate: PEM chain, leaf first. It ends with the CA's life at the latest.
    pub fn issue_device(&self, request: &DeviceRequest, lifetime: Duration, now_ms: u64) -> Result<String> {
        let mut params = self.leaf(ExtendedKeyUsagePurpose::ClientAuth);
        params.distinguished_name.push(DnType::CommonName, request.device_id().to_string());
        set_life(&mut params, now_ms, lifetime, self.not_after_ms);
        let certificate =
            params.signed_by(&DevicePublicKey(*request.public_key()), &self.issuer()?).map_err(not_made)?;
        Ok(certificate.pem())
    }

    fn leaf(&self, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, self.office.as_str());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        params
    }

    fn issuer(&self) -> Result<Issuer<'static, &KeyPair>> {
        Issuer::from_ca_cert_der(&self.certificate, &self.key).map_err(not_made)
    }
}

impl fmt::Debug for OfficeCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfficeCa").field("office", &self.office).finish_non_exhaustive()
    }
}

/// A server's private key (ECDSA P-256). It stays the same when its certificate is renewed, so that a join in progress
/// does not see the server's key change.
#[derive(Clone)]
pub struct ServerKey {
    pair: std::sync::Arc<KeyPair>,
}

impl ServerKey {
    /// A new random key.
    pub fn generate() -> Result<Self> {
        Ok(Self { pair: generate_p256()?.into() })
    }

    /// Reads PKCS#8 in PEM.
    pub fn from_pem(pem: &str) -> Result<Self> {
        Ok(Self { pair: p256_from_pem(pem)?.into() })
    }

    /// Loads it from a file that only its owner can read.
    pub fn load(path: &Path) -> Result<Self> {
        Self::from_pem(&text(&read_secret(path)?)?)
    }

    /// Saves it to a file of mode 0600.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_secret(path, Zeroizing::new(self.pair.serialize_pem()).as_bytes())
    }

    pub(super) fn pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.pair.serialize_der())
    }

    fn spki(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }
}

impl fmt::Debug for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerKey")
    }
}

/// A server's certificate with its key.
#[derive(Clone, Debug)]
pub struct ServerCertificate {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: ServerKey,
    pem: String,
    not_before_ms: u64,
    not_after_ms: u64,
}

impl ServerCertificate {
    /// From a PEM chain, leaf first.
    ///
    /// # Errors
    /// CERTIFICATE_INVALID if it is damaged or belongs to another key.
    pub fn from_pem(pem: &str, key: ServerKey) -> Result<Self> {
        let wrong = |what: &str| Error::new(Reason::CertificateInvalid, format!("server certificate: {what}"));
        let chain = certificates_of(pem)?;
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).map_err(|_| wrong("not X.509"))?;
        if leaf.public_key().raw != key.spki() {
            return Err(wrong("it belongs to another key"));
        }
        let not_before_ms = seconds_to_ms(leaf.validity().not_before.timestamp());
        let not_after_ms = seconds_to_ms(leaf.validity().not_after.timestamp());
        Ok(Self { key, pem: pem.to_owned(), not_before_ms, not_after_ms, chain })
    }

    /// PEM chain, leaf first.
    pub fn pem(&self) -> &str {
        &self.pem
    }
    /// When its life begins.
    pub fn not_before_ms(&self) -> u64 {
        self.not_before_ms
    }
    /// When its life ends.
    pub fn not_after_ms(&self) -> u64 {
        self.not_after_ms
    }
    /// SHA-256 of the public key (subject public key info, DER), as an enrolling device sees it.
    pub fn spki_sha256(&self) -> [u8; 32] {
        super::sha256(&self.key.spki())
    }

    /// True if it carries all of these names and was signed by this CA.
    pub(super) fn serves(&self, ca: &OfficeCa, names: &[String]) -> Result<bool> {
        let (_, leaf) = x509_parser::parse_x509_certificate(&self.chain[0])
            .map_err(|_| Error::new(Reason::CertificateInvalid, "server certificate: not X.509"))?;
        let (_, issuer) = x509_parser::parse_x509_certificate(&ca.certificate)
            .map_err(|_| Error::new(Reason::CertificateInvalid, "office CA: not X.509"))?;
        if leaf.verify_signature(Some(issuer.public_key())).is_err() {
            return Ok(false);
        }
        let has: BTreeSet<String> = match leaf.subject_alternative_name() {
            Ok(Some(san)) => san.value.general_names.iter().map(ToString::to_string).collect(),
            _ => return Ok(false),
        };
        // Compared in the parser's own notation, by putting the wanted names through a certificate of their own.
        let wanted = ca.issue_server(names, &self.key, self.not_before_ms)?;
        let (_, wanted) = x509_parser::parse_x509_certificate(&wanted.chain[0])
            .map_err(|_| Error::internal("a fresh certificate cannot be read"))?;
        Ok(match wanted.subject_alternative_name() {
            Ok(Some(san)) => san.value.general_names.iter().all(|name| has.contains(&name.to_string())),
            _ => false,
        })
    }
}

/// The names by which this machine is likely to be reached: its host name and the addresses it would send from. No
/// packet is sent to find out.
pub fn local_names() -> Vec<String> {
    let mut names = BTreeSet::new();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if is_host_name(&host) {
        names.insert(host);
    }
    // Documentation addresses (RFC 5737, RFC 3849): connecting a datagram socket only chooses a route.
    let probes: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    ];
    for (from, to) in probes {
        let found = UdpSocket::bind((from, 0)).and_then(|s| s.connect((to, 9)).and_then(|()| s.local_addr()));
        if let Ok(address) = found
            && !address.ip().is_unspecified()
        {
            names.insert(address.ip().to_string());
        }
    }
    names.into_iter().collect()
}

fn subject_names(names: &[String]) -> Result<Vec<SanType>> {
    let wrong = |what: String| Error::new(Reason::FieldInvalid, what);
    let mut all: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    if all.len() > MAX_NAMES {
        return Err(wrong(format!("a certificate has at most {MAX_NAMES} names")));
    }
    all.extend([SERVER_NAME, "localhost", "127.0.0.1", "::1"]);
    all.into_iter()
        .map(|name| match name.parse::<IpAddr>() {
            Ok(address) => Ok(SanType::IpAddress(address)),
            Err(_) if is_host_name(name) => {
                Ok(SanType::DnsName(name.to_owned().try_into().map_err(|_| wrong(format!("not ASCII: {name:?}")))?))
            }
            Err(_) => Err(wrong(format!("neither an address nor a host name: {name:?}"))),
        })
        .collect()
}

/// A host name by the rules of RFC 1123, with `_` tolerated since machines have it. Also rustls's idea of a name, so
/// that no certificate is made that our own clients cannot ask for.
fn is_host_name(name: &str) -> bool {
    rustls_pki_types::DnsName::try_from(name).is_ok()
}

fn check_office(office: &str) -> Result<()> {
    // 64 is the upper bound of X.520 for organizationName.
    let length = office.chars().count();
    if length == 0 || length > 64 || office.trim() != office || office.chars().any(char::is_control) {
        let what = "the office's name has 1 to 64 characters, no control characters, no blanks around it";
        return Err(Error::new(Reason::FieldInvalid, what));
    }
    Ok(())
}

fn set_life(params: &mut CertificateParams, now_ms: u64, life: Duration, at_most_ms: u64) {
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    // A certificate of today's formats cannot go past the year 9999.
    const LAST_MS: u64 = 253_402_300_799_000;
    let from = now_ms.saturating_sub(millis(BACKDATE)).min(LAST_MS);
    let until = now_ms.saturating_add(millis(life)).min(at_most_ms).min(LAST_MS);
    params.not_before = (UNIX_EPOCH + Duration::from_secs(from / 1000)).into();
    params.not_after = (UNIX_EPOCH + Duration::from_secs(until / 1000)).into();
    let mut serial = random_bytes::<16>();
    // Positive, and never shorter for leading zeros.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
}

/// Checks a signature of [`OfficeCa::sign`] with the office's certificate (PEM; several may follow one another, of which
/// one must fit). Anyone can do the same: `openssl dgst -sha256 -verify`.
///
/// # Errors
/// CERTIFICATE_INVALID if the certificates cannot be read, or none of them fits.
pub fn check_office_signature(ca_pem: &str, content: &[u8], signature: &[u8]) -> Result<()> {
    for certificate in certificates_of(ca_pem)? {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&certificate) else { continue };
        let key = parsed.public_key().subject_public_key.data.as_ref();
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key);
        if key.verify(content, signature).is_ok() {
            return Ok(());
        }
    }
    Err(Error::new(Reason::CertificateInvalid, "the signature is not of this office"))
}

fn generate_p256() -> Result<KeyPair> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(not_made)
}

fn p256_from_pem(pem: &str) -> Result<KeyPair> {
    KeyPair::from_pkcs8_pem_and_sign_algo(pem, &rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|_| Error::new(Reason::KeyFileInvalid, "the key is not an ECDSA P-256 key in PEM (PKCS#8)"))
}

fn not_made(error: rcgen::Error) -> Error {
    Error::internal("a certificate could not be made").caused_by(error)
}

fn text(bytes: &[u8]) -> Result<Zeroizing<String>> {
    let text =
        std::str::from_utf8(bytes).map_err(|_| Error::new(Reason::KeyFileInvalid, "the key file is not text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

pub(super) fn seconds_to_ms(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
}

struct DevicePublicKey([u8; 32]);

impl PublicKeyData for DevicePublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}
