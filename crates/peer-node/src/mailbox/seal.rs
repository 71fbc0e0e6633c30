//! Parcels for keepers: nobody but the receivers can read them.
//!
//! * Each device has an X25519 key, derived from its device key; its public half stands in its membership record.
//! * A parcel has a random key. For each receiver it is sealed with a key from X25519 between a fresh key pair and the
//!   receiver's (as in the sealed boxes of NaCl; derivation by BLAKE3 over shared secret, both public keys and parcel id,
//!   cipher AES-256-GCM).
//! * The content is the signed parcel itself (length first), followed by its content file, cut into segments of 1 MiB,
//!   each sealed by AES-256-GCM under the parcel key. The nonce counts the segments and marks the last one, so that
//!   segments cannot be exchanged, repeated, or left out at the end (the STREAM construction, Hoang et al. 2015).
//!
//! A sealed segment is a chunk of the sealed parcel: peers verify, move and resume it like any other.

use crate::model::{Content, ParcelId};
use crate::office::sealing_secret;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use common::error::{Error, Reason, Result};
use common::identity::{DeviceKey, random_bytes};
use common::model::{ChunkId, ChunkRef};
use std::io::{Read, Write};
use zeroize::Zeroizing;

/// Plaintext of one segment.
pub const SEGMENT: usize = 1024 * 1024;
/// What sealing adds to a segment.
pub const TAG: usize = 16;
/// Public key, key and tag.
const SEALED_KEY_BYTES: usize = 32 + 32 + TAG;
const DERIVE_BOX: &str = "atrium 2026-11 key of a sealed parcel key";

/// The half of a device's sealing key that opens.
pub struct SealingKey {
    private: PrivateKey,
    public: [u8; 32],
}

impl SealingKey {
    /// The one that belongs to a device key.
    ///
    /// # Errors
    /// INTERNAL if the library refuses the key, which it does for none.
    pub fn of(key: &DeviceKey) -> Result<Self> {
        let private = PrivateKey::from_private_key(&X25519, &sealing_secret(key)[..]).map_err(|_| internal())?;
        Ok(Self { public: public_half(&private)?, private })
    }

    /// The half that seals; in the membership record.
    pub fn public(&self) -> [u8; 32] {
        self.public
    }

    /// Opens a parcel key that was sealed for this device.
    ///
    /// # Errors
    /// PARCEL_INVALID if it was not, or was changed.
    pub fn open(&self, parcel: &ParcelId, sealed: &[u8]) -> Result<ParcelKey> {
        if sealed.len() != SEALED_KEY_BYTES {
            return Err(not_for_us());
        }
        let (theirs, box_) = sealed.split_at(32);
        let key = box_key(&self.private, theirs, theirs, &self.public, parcel)?;
        let mut bytes = Zeroizing::new(box_.to_vec());
        let opened = key.open_in_place(nonce(0, true), Aad::empty(), &mut bytes).map_err(|_| not_for_us())?;
        ParcelKey::of(opened)
    }
}

fn public_half(private: &PrivateKey) -> Result<[u8; 32]> {
    let public = private.compute_public_key().map_err(|_| internal())?;
    public.as_ref().try_into().map_err(|_| internal())
}

fn box_key(
    private: &PrivateKey,
    their_public: &[u8],
    fresh: &[u8],
    receiver: &[u8; 32],
    parcel: &ParcelId,
) -> Result<LessSafeKey> {
    let their_public = UnparsedPublicKey::new(&X25519, their_public);
    agree(private, their_public, not_for_us(), |shared| {
        let mut hasher = blake3::Hasher::new_derive_key(DERIVE_BOX);
        hasher.update(shared).update(fresh).update(receiver).update(parcel.as_bytes());
        aead(hasher.finalize().as_bytes())
    })
}

fn aead(key: &[u8]) -> Result<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| internal())
}

fn nonce(counter: u64, last: bool) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[3] = u8::from(last);
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// The key of one parcel.
pub struct ParcelKey {
    secret: Zeroizing<[u8; 32]>,
    cipher: LessSafeKey,
}

impl ParcelKey {
    /// A new random one.
    ///
    /// # Errors
    /// INTERNAL if the library refuses it, which it does for none.
    pub fn generate() -> Result<Self> {
        Self::of(&*Zeroizing::new(random_bytes::<32>()))
    }

    fn of(bytes: &[u8]) -> Result<Self> {
        let secret = Zeroizing::new(<[u8; 32]>::try_from(bytes).map_err(|_| not_for_us())?);
        Ok(Self { cipher: aead(&secret[..])?, secret })
    }

    /// Seals it for the device whose public half this is.
    ///
    /// # Errors
    /// PARCEL_INVALID if that is no usable key.
    pub fn seal_for(&self, parcel: &ParcelId, receiver: &[u8; 32]) -> Result<Vec<u8>> {
        let fresh = PrivateKey::generate(&X25519).map_err(|_| internal())?;
        let public = public_half(&fresh)?;
        let key = box_key(&fresh, receiver, &public, receiver, parcel)?;
        let mut out = self.secret.to_vec();
        key.seal_in_place_append_tag(nonce(0, true), Aad::empty(), &mut out).map_err(|_| internal())?;
        Ok([&public[..], &out].concat())
    }

    /// Encrypts everything that can be read; gives the chunks that were written.
    ///
    /// # Errors
    /// IO_FAILED.
    pub fn seal(&self, mut from: impl Read, mut to: impl Write) -> Result<Content> {
        let mut chunks = Vec::new();
        let mut next = read_segment(&mut from)?;
        for counter in 0.. {
            let mut segment = next;
            next = if segment.len() == SEGMENT { read_segment(&mut from)? } else { Vec::new() };
            let last = next.is_empty();
            let sealed = self.cipher.seal_in_place_append_tag(nonce(counter, last), Aad::empty(), &mut segment);
            sealed.map_err(|_| internal())?;
            chunks.push(ChunkRef { id: ChunkId::of(&segment), len: segment.len() as u32 });
            to.write_all(&segment)?;
            if last {
                break;
            }
        }
        Ok(Content::of(chunks))
    }

    /// A reader of what was encrypted.
    pub fn open<R: Read>(self, from: R) -> Opened<R> {
        Opened { key: self, from, counter: 0, plain: Vec::new(), at: 0, ahead: None, ended: false }
    }
}

fn read_segment(from: &mut impl Read) -> Result<Vec<u8>> {
    let mut segment = Vec::with_capacity(SEGMENT + TAG);
    from.take(SEGMENT as u64).read_to_end(&mut segment)?;
    Ok(segment)
}

/// Decrypts while reading. Ends with an error if anything is missing, changed or too much.
pub struct Opened<R> {
    key: ParcelKey,
    from: R,
    counter: u64,
    plain: Vec<u8>,
    at: usize,
    ahead: Option<Vec<u8>>,
    ended: bool,
}

impl<R: Read> Opened<R> {
    fn sealed_segment(&mut self) -> std::io::Result<Vec<u8>> {
        let mut segment = Vec::with_capacity(SEGMENT + TAG);
        (&mut self.from).take((SEGMENT + TAG) as u64).read_to_end(&mut segment)?;
        Ok(segment)
    }

    fn next(&mut self) -> std::io::Result<()> {
        let mut segment = match self.ahead.take() {
            Some(segment) => segment,
            None => self.sealed_segment()?,
        };
        let after = if segment.len() == SEGMENT + TAG { self.sealed_segment()? } else { Vec::new() };
        let last = after.is_empty();
        let broken = || std::io::Error::new(std::io::ErrorKind::InvalidData, "the sealed parcel is damaged");
        let cipher = &self.key.cipher;
        let opened = cipher.open_in_place(nonce(self.counter, last), Aad::empty(), &mut segment);
        let length = opened.map_err(|_| broken())?.len();
        segment.truncate(length);
        (self.plain, self.at, self.ended) = (segment, 0, last);
        self.ahead = (!last).then_some(after);
        self.counter += 1;
        Ok(())
    }
}

impl<R: Read> Read for Opened<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.plain.len() {
            if self.ended {
                return Ok(0);
            }
            self.next()?;
        }
        let n = buffer.len().min(self.plain.len() - self.at);
        buffer[..n].copy_from_slice(&self.plain[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

fn internal() -> Error {
    Error::internal("the cryptographic library refused")
}

fn not_for_us() -> Error {
    Error::new(Reason::ParcelInvalid, "a sealed parcel cannot be opened")
        .why_is("it was not sealed for this device, or it was changed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(plain: &[u8]) -> (ParcelKey, Vec<u8>, Content) {
        let key = ParcelKey::generate().unwrap();
        let mut out = Vec::new();
        let content = key.seal(plain, &mut out).unwrap();
        (key, out, content)
    }

    fn opened(key: ParcelKey, sealed: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut out = Vec::new();
        key.open(sealed).read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn what_was_sealed_comes_back_whatever_its_length() {
        for length in [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT] {
            let plain: Vec<u8> = (0..length).map(|i| (i * 7 / 3) as u8).collect();
            let (key, out, content) = sealed(&plain);
            assert_eq!(content.size_bytes, out.len() as u64);
            assert_eq!(opened(key, &out).unwrap(), plain, "{length} bytes");
        }
    }

    #[test]
    fn what_was_changed_cut_or_exchanged_is_noticed() {
        let plain = vec![5; 3 * SEGMENT];
        let step = SEGMENT + TAG;
        type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);
        let damage: [Damage<'_>; 5] = [
            &|s| s[step + 9] ^= 1,
            &|s| s.truncate(2 * step),
            &|s| s.truncate(2 * step + 100),
            &|s| s.extend_from_slice(&[0; 10]),
            &|s| {
                let first = s[..step].to_vec();
                s.copy_within(step..2 * step, 0);
                s[step..2 * step].copy_from_slice(&first);
            },
        ];
        for (at, damage) in damage.iter().enumerate() {
            let (key, mut out, _) = sealed(&plain);
            damage(&mut out);
            assert!(opened(key, &out).is_err(), "damage {at}");
        }
    }

    #[test]
    fn only_the_receiver_opens_the_key_and_only_of_that_parcel() {
        let (anna, bert) = (DeviceKey::generate(), DeviceKey::generate());
        let (anna, bert) = (SealingKey::of(&anna).unwrap(), SealingKey::of(&bert).unwrap());
        let (id, key) = (ParcelId::generate(), ParcelKey::generate().unwrap());
        let for_anna = key.seal_for(&id, &anna.public()).unwrap();
        assert_eq!(anna.open(&id, &for_anna).unwrap().secret, key.secret);
        assert!(bert.open(&id, &for_anna).is_err());
        assert!(anna.open(&ParcelId::generate(), &for_anna).is_err());
        assert!(anna.open(&id, &for_anna[1..]).is_err());
        assert!(key.seal_for(&id, &[0; 32]).is_err(), "a key of low order gives no secret");
        let mut changed = for_anna;
        changed[40] ^= 1;
        assert!(anna.open(&id, &changed).is_err());
    }
}
