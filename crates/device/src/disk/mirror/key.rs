//! The key of a mirror, and what is sealed with it.

use super::place::ObjectId;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::identity::{random_bytes, read_secret, write_secret};
use common::model::{ChunkId, ChunkRef};
use std::fmt;
use std::path::Path;
use zeroize::Zeroizing;

/// Contents are filled up to a multiple of this, so that a size tells less.
const STEP: usize = 4 << 10;
const TAG: usize = 16;
const SALT: usize = 32;

/// What an object is; part of its id and key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// A chunk of a file.
    Data,
    /// A chunk of a snapshot.
    Snapshot,
}

/// The secret of one mirror, kept by its owner: without it the mirror is noise. Keep a copy where the share is not.
pub struct MirrorKey {
    ids: Zeroizing<[u8; 32]>,
    objects: Zeroizing<[u8; 32]>,
    roots: Zeroizing<[u8; 32]>,
    secret: Zeroizing<[u8; 32]>,
}

impl MirrorKey {
    /// A new random one.
    pub fn generate() -> Self {
        Self::of(Zeroizing::new(random_bytes()))
    }

    fn of(secret: Zeroizing<[u8; 32]>) -> Self {
        let derive = |context: &str| Zeroizing::new(blake3::derive_key(context, &secret[..]));
        Self {
            ids: derive("atrium 2026-11 mirror object ids"),
            objects: derive("atrium 2026-11 mirror object keys"),
            roots: derive("atrium 2026-11 mirror root keys"),
            secret,
        }
    }

    /// As text, to be kept elsewhere: 64 hexadecimal digits.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(64));
        for byte in self.secret.iter() {
            text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
            text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
        }
        text
    }

    /// From that text; blanks and line ends around it are passed over.
    ///
    /// # Errors
    /// `KEY_FILE_INVALID`.
    pub fn from_text(text: &str) -> Result<Self> {
        let id: ObjectId = text.trim().parse().map_err(|()| {
            Error::new(Reason::KeyFileInvalid, "this is not the key of a mirror").fix_is("it has 64 hexadecimal digits")
        })?;
        Ok(Self::of(Zeroizing::new(id.0)))
    }

    /// Reads it from a file that only its owner can read.
    ///
    /// # Errors
    /// `KEY_FILE_EXPOSED`, `KEY_FILE_INVALID`, `IO_FAILED`.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = read_secret(path)?;
        Self::from_text(std::str::from_utf8(&bytes).unwrap_or_default())
    }

    /// Writes it to such a file; on disk on return.
    ///
    /// # Errors
    /// `IO_FAILED`, `DISK_FULL`.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_secret(path, self.to_text().as_bytes())
    }

    /// The id of a chunk's object.
    pub(super) fn id(&self, part: Part, chunk: &ChunkId) -> ObjectId {
        let mut hasher = blake3::Hasher::new_keyed(&self.ids);
        hasher.update(&[part as u8]).update(chunk.as_bytes());
        ObjectId(*hasher.finalize().as_bytes())
    }

    fn object_cipher(&self, part: Part, chunk: &ChunkId) -> Result<LessSafeKey> {
        let mut hasher = blake3::Hasher::new_keyed(&self.objects);
        hasher.update(&[part as u8]).update(chunk.as_bytes());
        cipher(hasher.finalize().as_bytes())
    }

    /// Seals a chunk. The same chunk gives the same bytes: the key is used for this content and no other, so one nonce is
    /// enough.
    pub(super) fn seal(&self, part: Part, chunk: &ChunkRef, data: &[u8]) -> Result<(ObjectId, Bytes)> {
        let id = self.id(part, &chunk.id);
        let filled = (4 + data.len()).next_multiple_of(STEP);
        let mut out = Vec::with_capacity(filled + TAG);
        out.extend_from_slice(&(data.len() as u32).to_le_bytes());
        out.extend_from_slice(data);
        out.resize(filled, 0);
        let key = self.object_cipher(part, &chunk.id)?;
        key.seal_in_place_append_tag(nonce(), Aad::from(&id.0), &mut out).map_err(|_| internal())?;
        Ok((id, Bytes::from(out)))
    }

    /// Opens a chunk, and compares it with its digest.
    pub(super) fn open(&self, part: Part, chunk: &ChunkRef, sealed: &[u8]) -> Result<Bytes> {
        let id = self.id(part, &chunk.id);
        let mut bytes = sealed.to_vec();
        let key = self.object_cipher(part, &chunk.id)?;
        let plain = key.open_in_place(nonce(), Aad::from(&id.0), &mut bytes).map_err(|_| damaged())?;
        let (len, data) = plain.split_first_chunk::<4>().ok_or_else(damaged)?;
        let len = u32::from_le_bytes(*len);
        let data = data.get(..len as usize).filter(|_| len == chunk.len).ok_or_else(damaged)?;
        if ChunkId::of(data) != chunk.id {
            return Err(damaged());
        }
        bytes.truncate(4 + len as usize);
        Ok(Bytes::from(bytes).slice(4..))
    }

    fn root_cipher(&self, generation: u64, salt: &[u8]) -> Result<LessSafeKey> {
        let mut hasher = blake3::Hasher::new_keyed(&self.roots);
        hasher.update(&generation.to_le_bytes()).update(salt);
        cipher(hasher.finalize().as_bytes())
    }

    /// Seals the root of a generation. Two attempts at one generation have different salts, so different keys.
    pub(super) fn seal_root(&self, generation: u64, plain: &[u8]) -> Result<Bytes> {
        let salt: [u8; SALT] = random_bytes();
        let mut out = plain.to_vec();
        let key = self.root_cipher(generation, &salt)?;
        let aad = Aad::from(generation.to_le_bytes());
        key.seal_in_place_append_tag(nonce(), aad, &mut out).map_err(|_| internal())?;
        Ok(Bytes::from([&salt[..], &out].concat()))
    }

    /// Opens the root of a generation.
    pub(super) fn open_root(&self, generation: u64, sealed: &[u8]) -> Result<Vec<u8>> {
        let (salt, sealed) = sealed.split_at_checked(SALT).ok_or_else(damaged)?;
        let mut bytes = sealed.to_vec();
        let key = self.root_cipher(generation, salt)?;
        let aad = Aad::from(generation.to_le_bytes());
        let len = key.open_in_place(nonce(), aad, &mut bytes).map_err(|_| damaged())?.len();
        bytes.truncate(len);
        Ok(bytes)
    }
}

impl fmt::Debug for MirrorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MirrorKey(…)")
    }
}

fn cipher(key: &[u8; 32]) -> Result<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| internal())
}

/// Each key seals one content.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

fn internal() -> Error {
    Error::internal("the cryptographic library refused")
}

pub(super) fn damaged() -> Error {
    Error::new(Reason::ChunkDamaged, "an object of the mirror is not what was put there")
        .why_is("it was damaged or exchanged by its lender, or the key is another mirror's")
        .fix_is("restore from another mirror, or write this one anew while the share is there")
}
