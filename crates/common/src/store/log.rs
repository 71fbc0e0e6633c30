//! The change log: what each commit changed, in commit order, without gaps.
//!
//! Commits of one batch share blocks of about 8 KiB, so that a busy store writes one log record for many commits. A block's
//! key is the log space, the revision of its last item (big-endian) and a part number (big-endian, above 0 only where one
//! commit fills several blocks). A block is a row of items: revision (8 bytes, little-endian like all that follows), its
//! part of the commit times two plus one if the commit goes on in the next block (4), number of payloads (4), then length
//! (4) and bytes of each.

use bytes::{Buf, Bytes};

use super::ChangeRecord;
use super::record::SPACE_LOG;
use crate::error::{Error, Reason, Result};

/// Aim for the size of a block; a single payload may make it longer.
const BLOCK_BYTES: usize = 8 << 10;
const ITEM_HEADER: usize = 16;

/// Key of the block that ends with this revision and part.
pub(super) fn key(revision: u64, part: u32) -> Vec<u8> {
    let mut key = Vec::with_capacity(13);
    key.push(SPACE_LOG);
    key.extend_from_slice(&revision.to_be_bytes());
    key.extend_from_slice(&part.to_be_bytes());
    key
}

/// The revision in a block's key.
pub(super) fn key_revision(key: &[u8]) -> Option<u64> {
    if key.len() != 13 || key[0] != SPACE_LOG {
        return None;
    }
    key[1..9].try_into().ok().map(u64::from_be_bytes)
}

#[derive(Default)]
struct Writer {
    blocks: Vec<(Bytes, Vec<u8>)>,
    block: Vec<u8>,
    /// Last finished item in `block`.
    last: Option<u64>,
    /// Revision and part of the last block that was cut.
    cut: Option<(u64, u32)>,
}

impl Writer {
    fn cut(&mut self, revision: u64) {
        let part = match self.cut {
            Some((r, part)) if r == revision => part + 1,
            _ => 0,
        };
        self.cut = Some((revision, part));
        self.blocks.push((Bytes::from(key(revision, part)), std::mem::take(&mut self.block)));
        self.last = None;
    }

    fn begin(&mut self, revision: u64) -> usize {
        let at = self.block.len();
        self.block.extend_from_slice(&revision.to_le_bytes());
        self.block.extend_from_slice(&[0; 8]);
        at
    }

    fn finish(&mut self, at: usize, part: u32, more: bool, count: u32) {
        self.block[at + 8..at + 12].copy_from_slice(&(part << 1 | u32::from(more)).to_le_bytes());
        self.block[at + 12..at + ITEM_HEADER].copy_from_slice(&count.to_le_bytes());
    }

    fn commit(&mut self, change: &ChangeRecord) {
        if let Some(last) = self.last
            && self.block.len() + ITEM_HEADER > BLOCK_BYTES
        {
            self.cut(last);
        }
        let mut at = self.begin(change.revision);
        let (mut count, mut part) = (0, 0);
        for payload in &change.payloads {
            if self.block.len() + 4 + payload.len() > BLOCK_BYTES {
                if count > 0 {
                    self.finish(at, part, true, count);
                    self.cut(change.revision);
                    part += 1;
                    at = self.begin(change.revision);
                    count = 0;
                } else if let Some(last) = self.last {
                    self.block.truncate(at);
                    self.cut(last);
                    at = self.begin(change.revision);
                }
            }
            self.block.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            self.block.extend_from_slice(payload);
            count += 1;
        }
        self.finish(at, part, false, count);
        self.last = Some(change.revision);
    }
}

/// The blocks for the commits of one batch.
pub(super) fn encode(changes: &[ChangeRecord]) -> Vec<(Bytes, Vec<u8>)> {
    let mut writer = Writer::default();
    for change in changes {
        writer.commit(change);
    }
    if let Some(last) = writer.last {
        writer.cut(last);
    }
    writer.blocks
}

fn damaged() -> Error {
    Error::new(Reason::StoreCorrupt, "the change log is damaged")
}

/// Puts commits together from blocks that come in order, and checks that none is missing.
pub(super) struct Reader {
    /// The last whole commit.
    after: u64,
    /// A commit whose end has not come yet.
    open: Option<ChangeRecord>,
    /// The part of it that comes next.
    part: u32,
}

impl Reader {
    /// Expects the commit after this revision first.
    pub fn new(after: u64) -> Self {
        Self { after, open: None, part: 0 }
    }

    /// The last whole commit.
    pub fn position(&self) -> u64 {
        self.after
    }

    /// Takes one block and gives the commits that end in it to `each`.
    ///
    /// # Errors
    /// `STORE_CORRUPT` if the block is malformed or does not continue what came before.
    pub fn block(&mut self, mut block: Bytes, each: &mut dyn FnMut(ChangeRecord)) -> Result<()> {
        while !block.is_empty() {
            if block.len() < ITEM_HEADER {
                return Err(damaged());
            }
            let revision = block.get_u64_le();
            let part = block.get_u32_le();
            let (part, more) = (part >> 1, part & 1 == 1);
            let count = block.get_u32_le() as usize;
            if count > block.len() / 4 {
                return Err(damaged());
            }
            let mut payloads = Vec::with_capacity(count);
            for _ in 0..count {
                if block.len() < 4 {
                    return Err(damaged());
                }
                let length = block.get_u32_le() as usize;
                if length > block.len() {
                    return Err(damaged());
                }
                payloads.push(block.split_to(length));
            }
            if revision <= self.after {
                continue;
            }
            let mut change = match self.open.take() {
                Some(open) if open.revision == revision && part == self.part => open,
                None if revision == self.after + 1 && part == 0 => ChangeRecord { revision, payloads: Vec::new() },
                _ => return Err(damaged().with("revision", revision).with("expected", self.after + 1)),
            };
            change.payloads.append(&mut payloads);
            if more {
                self.open = Some(change);
                self.part = part + 1;
            } else {
                self.after = revision;
                each(change);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(after: u64, blocks: &[(Bytes, Vec<u8>)]) -> Result<Vec<ChangeRecord>> {
        let mut out = Vec::new();
        let mut reader = Reader::new(after);
        for (key, block) in blocks {
            if key_revision(key).unwrap() > after {
                reader.block(Bytes::copy_from_slice(block), &mut |c| out.push(c))?;
            }
        }
        Ok(out)
    }

    proptest! {
        #[test]
        fn commits_come_back_from_any_cursor(sizes in proptest::collection::vec(proptest::collection::vec(0usize..6000, 0..12), 1..40)) {
            let changes: Vec<_> = sizes.iter().enumerate().map(|(i, sizes)| ChangeRecord {
                revision: 10 + i as u64,
                payloads: sizes.iter().map(|&n| Bytes::from(vec![i as u8; n])).collect(),
            }).collect();
            let blocks = encode(&changes);
            prop_assert!(blocks.windows(2).all(|w| w[0].0 < w[1].0));
            prop_assert!(blocks.iter().all(|(_, b)| b.len() <= BLOCK_BYTES + 2 * ITEM_HEADER));
            for skip in 0..=changes.len() {
                let got = decode(9 + skip as u64, &blocks).unwrap();
                prop_assert_eq!(&got[..], &changes[skip..]);
            }
            if blocks.len() > 2 {
                let mut gap = blocks.clone();
                gap.remove(1);
                let got = decode(9, &gap);
                prop_assert!(got.is_err(), "a missing block was not noticed");
            }
        }

        #[test]
        fn any_bytes_are_refused_or_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut commits = 0;
            let _ = Reader::new(0).block(Bytes::from(bytes), &mut |_| commits += 1);
            prop_assert!(commits <= 200 / ITEM_HEADER);
        }
    }
}
