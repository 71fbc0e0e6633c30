//! Chunks and manifests.

use std::fmt;

/// Largest chunk: FastCDC's maximum.
pub const MAX_CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// BLAKE3-256 of a chunk's content; the chunk's name everywhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// The id of this content.
    pub fn of(data: &[u8]) -> Self {
        Self(*blake3::hash(data).as_bytes())
    }
    /// From 32 bytes; `None` for any other length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// A chunk in a manifest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ChunkRef {
    /// Which.
    pub id: ChunkId,
    /// Its length in bytes, 1 to [`MAX_CHUNK_BYTES`].
    pub len: u32,
}

impl ChunkRef {
    /// Bytes of one encoded entry.
    pub const ENCODED: usize = 36;

    /// Appends digest and length (little-endian).
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(&self.len.to_le_bytes());
    }

    /// Encodes a list.
    pub fn encode_all(chunks: &[ChunkRef]) -> Vec<u8> {
        let mut out = Vec::with_capacity(chunks.len() * Self::ENCODED);
        chunks.iter().for_each(|c| c.encode_into(&mut out));
        out
    }

    /// Decodes a list; `None` if the length or an entry is not valid.
    pub fn decode_all(bytes: &[u8]) -> Option<Vec<ChunkRef>> {
        if !bytes.len().is_multiple_of(Self::ENCODED) {
            return None;
        }
        bytes
            .chunks_exact(Self::ENCODED)
            .map(|e| {
                let id = ChunkId::from_slice(&e[..32])?;
                let len = u32::from_le_bytes(e[32..].try_into().ok()?);
                (len >= 1 && len as usize <= MAX_CHUNK_BYTES).then_some(ChunkRef { id, len })
            })
            .collect()
    }
}

/// The digest of a whole manifest: BLAKE3-256 over all encoded entries. Equal digests mean equal content.
pub fn manifest_digest(chunks: &[ChunkRef]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for c in chunks {
        hasher.update(&c.id.0);
        hasher.update(&c.len.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}
