//! The key to which parcels for this device are sealed while others keep them.
//!
//! It is derived from the device key, so that there is one secret to keep and none to lose: the secret is BLAKE3 (in key
//! derivation mode) of an Ed25519 signature over a label that nothing else signs. Such a signature is the same each time
//! and never leaves the machine.

use aws_lc_rs::agreement::{PrivateKey, X25519};
use common::error::{Error, Result};
use common::identity::DeviceKey;
use zeroize::Zeroizing;

const LABEL: &[u8] = b"atrium sealing key v1\0";
const CONTEXT: &str = "atrium peer 2025 sealing key v1";

/// The X25519 secret of this device.
pub fn sealing_secret(key: &DeviceKey) -> Zeroizing<[u8; 32]> {
    let signature = Zeroizing::new(key.sign(LABEL));
    Zeroizing::new(blake3::derive_key(CONTEXT, &signature[..]))
}

/// The public key that belongs to it.
///
/// # Errors
/// INTERNAL if the library refuses 32 bytes as a key.
pub fn sealing_key(key: &DeviceKey) -> Result<[u8; 32]> {
    let failed = || Error::internal("the sealing key could not be made");
    let secret = PrivateKey::from_private_key(&X25519, &sealing_secret(key)[..]).map_err(|_| failed())?;
    let public = secret.compute_public_key().map_err(|_| failed())?;
    public.as_ref().try_into().map_err(|_| Error::internal("an X25519 key has not 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::agreement::{UnparsedPublicKey, agree};

    #[test]
    fn the_same_each_time_and_of_use_for_an_agreement() {
        let (one, two) = (DeviceKey::generate(), DeviceKey::generate());
        assert_eq!(sealing_key(&one).unwrap(), sealing_key(&one).unwrap());
        assert_ne!(sealing_key(&one).unwrap(), sealing_key(&two).unwrap());
        let shared = |own: &DeviceKey, other: &DeviceKey| {
            let own = PrivateKey::from_private_key(&X25519, &sealing_secret(own)[..]).unwrap();
            let other = UnparsedPublicKey::new(&X25519, sealing_key(other).unwrap());
            agree(&own, other, (), |secret| Ok(secret.to_vec())).unwrap()
        };
        assert_eq!(shared(&one, &two), shared(&two, &one));
    }
}
