//! Bytes in a few pieces.

use crate::model::ChunkId;
use bytes::{Bytes, BytesMut};
use std::fmt;

/// Content as it came off the wire: a few [`Bytes`] after each other, not joined.
///
/// A piece keeps the whole receive buffer alive that it was cut from, so what is kept for long is copied first
/// ([`Rope::compact`]).
#[derive(Clone, Default)]
pub struct Rope {
    pieces: Pieces,
    len: usize,
}

/// Most ropes are one piece; those need no list.
#[derive(Clone, Default)]
enum Pieces {
    #[default]
    None,
    One(Bytes),
    Many(Vec<Bytes>),
}

impl Rope {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes in all pieces together.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a piece; an empty one is left out.
    pub fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.len += piece.len();
        self.pieces = match std::mem::take(&mut self.pieces) {
            Pieces::None => Pieces::One(piece),
            Pieces::One(first) => Pieces::Many(vec![first, piece]),
            Pieces::Many(mut all) => {
                all.push(piece);
                Pieces::Many(all)
            }
        };
    }

    /// The pieces; none is empty.
    pub fn pieces(&self) -> &[Bytes] {
        match &self.pieces {
            Pieces::None => &[],
            Pieces::One(piece) => std::slice::from_ref(piece),
            Pieces::Many(all) => all,
        }
    }

    /// The pieces; none is empty.
    pub fn into_pieces(self) -> Vec<Bytes> {
        match self.pieces {
            Pieces::None => Vec::new(),
            Pieces::One(piece) => vec![piece],
            Pieces::Many(all) => all,
        }
    }

    /// `len` bytes from `start` on, without copying. What lies past the end is left out.
    #[must_use]
    pub fn slice(&self, start: usize, len: usize) -> Rope {
        let mut out = Rope::new();
        let (mut skip, mut left) = (start, len);
        for piece in self.pieces() {
            if left == 0 {
                break;
            }
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let take = left.min(piece.len() - skip);
            out.push(piece.slice(skip..skip + take));
            skip = 0;
            left -= take;
        }
        out
    }

    /// The content as one `Bytes`; copies only if there are several pieces.
    pub fn to_bytes(&self) -> Bytes {
        match &self.pieces {
            Pieces::None => Bytes::new(),
            Pieces::One(piece) => piece.clone(),
            Pieces::Many(_) => self.compact(),
        }
    }

    /// A copy in memory of its own, for keeping.
    pub fn compact(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.len);
        self.pieces().iter().for_each(|p| out.extend_from_slice(p));
        out.freeze()
    }

    /// BLAKE3-256 of the content. Takes 0.3 ms per MiB: not for async threads if it is more than a little.
    pub fn chunk_id(&self) -> ChunkId {
        let mut hasher = blake3::Hasher::new();
        self.pieces().iter().for_each(|p| {
            hasher.update(p);
        });
        ChunkId(*hasher.finalize().as_bytes())
    }
}

impl From<Bytes> for Rope {
    fn from(piece: Bytes) -> Self {
        let mut rope = Rope::new();
        rope.push(piece);
        rope
    }
}

impl From<Vec<u8>> for Rope {
    fn from(content: Vec<u8>) -> Self {
        Bytes::from(content).into()
    }
}

impl FromIterator<Bytes> for Rope {
    fn from_iter<I: IntoIterator<Item = Bytes>>(pieces: I) -> Self {
        let mut rope = Rope::new();
        pieces.into_iter().for_each(|p| rope.push(p));
        rope
    }
}

impl PartialEq for Rope {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.to_bytes() == other.to_bytes()
    }
}

impl Eq for Rope {}

impl fmt::Debug for Rope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rope({} bytes in {} pieces)", self.len, self.pieces().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_slice_is_what_a_joined_copy_would_give(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..9),
            start in 0usize..90,
            len in 0usize..90,
        ) {
            let joined: Vec<u8> = pieces.concat();
            let rope: Rope = pieces.into_iter().map(Bytes::from).collect();
            prop_assert_eq!(rope.len(), joined.len());
            prop_assert!(rope.pieces().iter().all(|p| !p.is_empty()));
            let from = start.min(joined.len());
            let to = (start + len).min(joined.len()).max(from);
            prop_assert_eq!(&rope.slice(start, len).to_bytes()[..], &joined[from..to]);
            prop_assert_eq!(rope.chunk_id(), ChunkId::of(&joined));
            prop_assert_eq!(&rope.compact()[..], &joined[..]);
        }
    }
}
