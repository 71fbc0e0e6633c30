//! Certificate requests (PKCS#10, RFC 2986) of devices.

use super::DeviceKey;
use crate::error::{Error, Reason, Result};
use crate::model::DeviceId;
use ed25519_dalek::{Signature, VerifyingKey};
use rustls_pki_types::PrivatePkcs8KeyDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_SIG_ED25519, Oid};
use x509_parser::prelude::FromDer;
use x509_parser::x509::AlgorithmIdentifier;

/// A request of ours has about 220 bytes; this leaves room for those of other programs.
pub const MAX_REQUEST_BYTES: usize = 4096;

pub(super) fn create(key: &DeviceKey) -> Result<Vec<u8>> {
    let der = key.pkcs8_der();
    let pair =
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der.as_slice()), &rcgen::PKCS_ED25519)
            .map_err(|e| Error::internal("the device key could not be used").caused_by(e))?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, key.device_id().to_string());
    let request = params
        .serialize_request(&pair)
        .map_err(|e| Error::internal("the certificate request could not be made").caused_by(e))?;
    Ok(request.der().to_vec())
}

/// A certificate request that has been checked: the sender holds the private key of [`DeviceRequest::public_key`].
///
/// Only key and id are kept. Whatever else the request asks for (names, extensions, validity) is not looked at: the
/// office decides what a certificate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRequest {
    public_key: [u8; 32],
}

impl DeviceRequest {
    /// Checks a request in DER: an Ed25519 key, a good signature by that key, and the device id of that key as the only
    /// common name.
    ///
    /// # Errors
    /// CERTIFICATE_REQUEST_INVALID with what is wrong.
    pub fn check(der: &[u8]) -> Result<Self> {
        let wrong = |what: &str| Error::new(Reason::CertificateRequestInvalid, format!("certificate request: {what}"));
        if der.len() > MAX_REQUEST_BYTES {
            return Err(wrong("longer than 4,096 bytes"));
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| wrong("not PKCS#10 in DER"))?;
        if !rest.is_empty() {
            return Err(wrong("bytes after its end"));
        }
        let info = &request.certification_request_info;
        if !is_ed25519(&info.subject_pki.algorithm) || !is_ed25519(&request.signature_algorithm) {
            return Err(wrong("the key is not an Ed25519 key"));
        }
        let public_key = ed25519_key(info.subject_pki.subject_public_key.as_ref())
            .ok_or_else(|| wrong("the public key has not 32 bytes"))?;
        let verifier = VerifyingKey::from_bytes(&public_key).map_err(|_| wrong("the public key is no point"))?;
        if verifier.is_weak() {
            return Err(wrong("the public key is weak"));
        }
        let signature = Signature::from_slice(request.signature_value.as_ref())
            .map_err(|_| wrong("the signature has not 64 bytes"))?;
        verifier.verify_strict(info.raw, &signature).map_err(|_| wrong("the signature is wrong"))?;
        let checked = Self { public_key };
        let mut names = info.subject.iter_common_name();
        let named = names.next().and_then(|n| n.as_str().ok()) == Some(checked.device_id().to_string().as_str());
        if !named || names.next().is_some() {
            return Err(wrong("the subject is not the device id of the key"));
        }
        Ok(checked)
    }

    /// The device's public key.
    pub fn public_key(&self) -> &[u8; 32] {
        &self.public_key
    }

    /// The device's id.
    pub fn device_id(&self) -> DeviceId {
        DeviceId::of_key(&self.public_key)
    }
}

/// True for id-Ed25519 without parameters (RFC 8410 section 3).
pub(crate) fn is_ed25519(algorithm: &AlgorithmIdentifier<'_>) -> bool {
    let oid: &Oid<'_> = &OID_SIG_ED25519;
    algorithm.algorithm == *oid && algorithm.parameters.is_none()
}

/// The key out of a subject public key bit string.
pub(crate) fn ed25519_key(bits: &[u8]) -> Option<[u8; 32]> {
    bits.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request_with(pair: &rcgen::KeyPair, name: &str) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.serialize_request(pair).unwrap().der().to_vec()
    }

    fn reason(der: &[u8]) -> String {
        let error = DeviceRequest::check(der).unwrap_err();
        assert!(error.is(Reason::CertificateRequestInvalid), "{error:?}");
        error.message().to_owned()
    }

    #[test]
    fn our_own_request_is_good() {
        let key = DeviceKey::generate();
        let checked = DeviceRequest::check(&key.certificate_request().unwrap()).unwrap();
        assert_eq!(checked.device_id(), key.device_id());
        assert_eq!(checked.public_key(), &key.public_key());
    }

    #[test]
    fn another_kind_of_key_is_refused() {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        assert!(reason(&request_with(&pair, "x")).contains("not an Ed25519"));
    }

    #[test]
    fn another_devices_id_is_refused() {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let other = DeviceKey::generate().device_id().to_string();
        assert!(reason(&request_with(&pair, &other)).contains("device id"));
        assert!(reason(&request_with(&pair, "")).contains("device id"));
    }

    #[test]
    fn a_request_with_another_key_put_in_is_refused() {
        let der = DeviceKey::generate().certificate_request().unwrap();
        let other = DeviceKey::generate();
        let old = DeviceRequest::check(&der).unwrap();
        let at = der.windows(32).position(|w| w == old.public_key()).unwrap();
        let mut forged = der.clone();
        forged[at..at + 32].copy_from_slice(&other.public_key());
        assert!(reason(&forged).contains("signature is wrong"));
    }

    #[test]
    fn bytes_behind_and_too_long_are_refused() {
        let mut der = DeviceKey::generate().certificate_request().unwrap();
        der.push(0);
        assert!(reason(&der).contains("after its end"));
        assert!(reason(&vec![0x30; MAX_REQUEST_BYTES + 1]).contains("4,096"));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(DeviceRequest::check(&bytes).is_err());
        }

        #[test]
        fn no_changed_byte_goes_unnoticed(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let key = DeviceKey::generate();
            let mut der = key.certificate_request().unwrap();
            let at = at.index(der.len());
            der[at] ^= 1 << bit;
            // A flip may at most leave a request that proves the same key.
            if let Ok(checked) = DeviceRequest::check(&der) {
                prop_assert_eq!(checked.device_id(), key.device_id());
            }
        }

        #[test]
        fn cut_requests_never_panic(keep in any::<prop::sample::Index>()) {
            let der = DeviceKey::generate().certificate_request().unwrap();
            let keep = keep.index(der.len());
            prop_assert!(DeviceRequest::check(&der[..keep]).is_err());
        }
    }
}
