//! Who a device is: its Ed25519 key, and the request by which it asks for a certificate.
//!
//! The private key never leaves the machine. It is kept as PKCS#8 in PEM, in a file that only its owner can read; a file
//! that others can read is refused, because nobody can tell who has read it. A device's id is BLAKE3 of its public key,
//! so an id cannot be claimed without the key.

mod request;
mod secret_file;

pub(crate) use request::is_ed25519;
pub use request::{DeviceRequest, MAX_REQUEST_BYTES};
pub use secret_file::{read_secret, write_public, write_secret};

pub use crate::model::DeviceId;

use crate::error::{Error, Reason, Result};
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use ed25519_dalek::{Signer, SigningKey};
use rand::TryRngCore;
use std::fmt;
use std::path::Path;
use zeroize::Zeroizing;

/// Fills a buffer with bytes that nobody can predict.
///
/// # Panics
/// If the operating system has no random bytes to give, since nothing secret could be made then.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// A device's private key. Shows only the device id when printed.
pub struct DeviceKey {
    signing: SigningKey,
}

impl DeviceKey {
    /// A new random key.
    pub fn generate() -> Self {
        let seed = Zeroizing::new(random_bytes::<32>());
        Self { signing: SigningKey::from_bytes(&seed) }
    }

    /// Reads PKCS#8 in PEM.
    ///
    /// # Errors
    /// KEY_FILE_INVALID if it is not an Ed25519 key.
    pub fn from_pem(pem: &str) -> Result<Self> {
        let signing = SigningKey::from_pkcs8_pem(pem)
            .map_err(|_| Error::new(Reason::KeyFileInvalid, "the device key is not an Ed25519 key in PEM (PKCS#8)"))?;
        Ok(Self { signing })
    }

    /// PKCS#8 version 1 in PEM, as every TLS library reads it.
    pub fn to_pem(&self) -> Zeroizing<String> {
        self.pkcs8().to_pkcs8_pem(LineEnding::LF).expect("32 bytes always encode")
    }

    /// Loads the key from a file.
    ///
    /// # Errors
    /// KEY_FILE_EXPOSED if others can read the file, KEY_FILE_INVALID if it holds something else.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = read_secret(path)?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| Error::new(Reason::KeyFileInvalid, "the device key file is not text"))?;
        Self::from_pem(text)
    }

    /// Saves the key to a file of mode 0600: whole or not at all, and on disk when this returns.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_secret(path, self.to_pem().as_bytes())
    }

    /// Loads the key, or makes and saves one if the file does not exist.
    pub fn load_or_generate(path: &Path) -> Result<Self> {
        match path.try_exists() {
            Ok(true) => Self::load(path),
            Ok(false) => {
                let key = Self::generate();
                key.save(path)?;
                Ok(key)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.signing.verifying_key().to_bytes()
    }

    /// The device id: BLAKE3 of the public key.
    pub fn device_id(&self) -> DeviceId {
        DeviceId::of_key(&self.public_key())
    }

    /// Signs a message (Ed25519).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signing.sign(message).to_bytes()
    }

    /// A PKCS#10 certificate request, DER, whose subject carries the device id.
    pub fn certificate_request(&self) -> Result<Vec<u8>> {
        request::create(self)
    }

    pub(crate) fn pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        self.pkcs8().to_pkcs8_der().expect("32 bytes always encode").to_bytes()
    }

    fn pkcs8(&self) -> KeypairBytes {
        KeypairBytes { secret_key: self.signing.to_bytes(), public_key: None }
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceKey({:?})", self.device_id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_saved_key_comes_back_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device.key");
        let key = DeviceKey::load_or_generate(&path).unwrap();
        let again = DeviceKey::load_or_generate(&path).unwrap();
        assert_eq!(key.device_id(), again.device_id());
        assert_eq!(key.sign(b"x"), again.sign(b"x"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["device.key"], "no temporary file stays behind");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device.key");
        DeviceKey::generate().save(&path).unwrap();
        for mode in [0o640, 0o604, 0o660, 0o644] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = DeviceKey::load(&path).unwrap_err();
            assert!(error.is(Reason::KeyFileExposed), "{mode:o}: {error:?}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        DeviceKey::load(&path).unwrap();
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device.key");
        let p256 = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let cut: String = DeviceKey::generate().to_pem().chars().take(60).collect();
        for text in [p256.as_bytes(), cut.as_bytes(), b"", b"\xff\xfe", &[b'x'; 20_000]] {
            write_secret(&path, text).unwrap();
            assert!(DeviceKey::load(&path).unwrap_err().is(Reason::KeyFileInvalid));
        }
    }

    #[test]
    fn printing_a_key_shows_only_its_id() {
        let key = DeviceKey::generate();
        assert_eq!(format!("{key:?}"), format!("DeviceKey({:?})", key.device_id()));
    }
}
