//! Where each chunk is: digest to place, in memory, 56 to 68 bytes a chunk (one terabyte of files: about 65 MB).
//!
//! Sixty-four shards, each a table of 48-byte slots with linear probing, at most 85 % full, growing by a fifth; removal
//! shifts the followers back, so that there are no marks to sweep. Slots are chosen by a keyed mix of the digest: whoever
//! makes up content cannot make up collisions. Everything that decides about a chunk's life happens under its shard's
//! lock (see `store.rs`).

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use parking_lot::{Mutex, MutexGuard};

use super::format::SegmentId;
use crate::model::ChunkId;

const SHARDS: usize = 64;
const SLOTS_MIN: usize = 8;
const LEN_MASK: u32 = (1 << 24) - 1;
const DAMAGED: u32 = 1 << 30;
const CONDEMNED: u32 = 1 << 31;

/// What the index knows about a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which segment.
    pub segment: SegmentId,
    /// Where its record begins.
    pub offset: u32,
    /// Length of the content.
    pub len: u32,
    /// Last epoch in which it was known to be needed.
    pub seen: u32,
    /// Its bytes were found not to match.
    pub damaged: bool,
    /// The sweep has decided to remove it; it counts as absent.
    pub condemned: bool,
}

impl Entry {
    /// True if a new reference may rest on it.
    pub fn usable(&self) -> bool {
        !self.damaged && !self.condemned
    }

    /// True if it is this record.
    pub fn is_at(&self, segment: SegmentId, offset: u32) -> bool {
        self.segment == segment && self.offset == offset
    }
}

#[derive(Clone, Copy)]
struct Slot {
    id: ChunkId,
    segment: SegmentId,
    offset: u32,
    // Length in the low 24 bits, flags above; 0 is an empty slot, for no chunk is empty.
    word: u32,
    seen: u32,
}

const EMPTY: Slot = Slot { id: ChunkId([0; 32]), segment: 0, offset: 0, word: 0, seen: 0 };

impl Slot {
    fn new(id: ChunkId, e: Entry) -> Self {
        let flags = if e.damaged { DAMAGED } else { 0 } | if e.condemned { CONDEMNED } else { 0 };
        Self { id, segment: e.segment, offset: e.offset, word: (e.len & LEN_MASK) | flags, seen: e.seen }
    }

    fn entry(&self) -> Entry {
        Entry {
            segment: self.segment,
            offset: self.offset,
            len: self.word & LEN_MASK,
            seen: self.seen,
            damaged: self.word & DAMAGED != 0,
            condemned: self.word & CONDEMNED != 0,
        }
    }
}

/// One shard.
pub struct Table {
    slots: Vec<Slot>,
    used: usize,
    seed: (u64, u64),
}

impl Table {
    fn new(seed: (u64, u64)) -> Self {
        Self { slots: vec![EMPTY; SLOTS_MIN], used: 0, seed }
    }

    fn home(&self, id: &ChunkId) -> usize {
        // The bits below those that chose the shard, spread over any number of slots.
        let hash = mix(id, self.seed) << SHARDS.trailing_zeros();
        ((u128::from(hash) * self.slots.len() as u128) >> 64) as usize
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }

    /// Where the id is, or the empty slot where it would go. There is always an empty one.
    fn find(&self, id: &ChunkId) -> usize {
        let mut at = self.home(id);
        while self.slots[at].word != 0 && self.slots[at].id != *id {
            at = self.next(at);
        }
        at
    }

    /// The chunk's entry.
    pub fn get(&self, id: &ChunkId) -> Option<Entry> {
        let slot = &self.slots[self.find(id)];
        (slot.word != 0).then(|| slot.entry())
    }

    /// Sets the chunk's entry, new or not.
    pub fn set(&mut self, id: ChunkId, entry: Entry) {
        debug_assert!(entry.len > 0 && entry.len <= LEN_MASK);
        let at = self.find(&id);
        if self.slots[at].word == 0 {
            if (self.used + 1) * 100 > self.slots.len() * 85 {
                self.resize(self.slots.len() * 6 / 5 + SLOTS_MIN);
                return self.set(id, entry);
            }
            self.used += 1;
        }
        self.slots[at] = Slot::new(id, entry);
    }

    /// Removes the chunk's entry.
    pub fn remove(&mut self, id: &ChunkId) {
        let mut hole = self.find(id);
        if self.slots[hole].word == 0 {
            return;
        }
        self.used -= 1;
        // Followers that could not stand where they would have liked move back, so that no search stops at the hole.
        let mut at = self.next(hole);
        while self.slots[at].word != 0 {
            let home = self.home(&self.slots[at].id);
            let reaches = if hole <= at { home <= hole || home > at } else { home <= hole && home > at };
            if reaches {
                self.slots[hole] = self.slots[at];
                hole = at;
            }
            at = self.next(at);
        }
        self.slots[hole] = EMPTY;
        if self.used * 4 < self.slots.len() && self.slots.len() > 16 * SLOTS_MIN {
            self.resize(self.slots.len() / 2);
        }
    }

    /// All entries, in no order.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = (ChunkId, Entry)> + '_ {
        self.slots.iter().filter(|s| s.word != 0).map(|s| (s.id, s.entry()))
    }

    /// Lets a function change each entry in place; length and place must stay.
    pub fn for_each_mut(&mut self, mut f: impl FnMut(&ChunkId, &mut Entry)) {
        for slot in self.slots.iter_mut().filter(|s| s.word != 0) {
            let mut entry = slot.entry();
            f(&slot.id, &mut entry);
            *slot = Slot::new(slot.id, entry);
        }
    }

    fn resize(&mut self, slots: usize) {
        let old = std::mem::replace(&mut self.slots, vec![EMPTY; slots]);
        for slot in old.into_iter().filter(|s| s.word != 0) {
            let at = self.find(&slot.id);
            self.slots[at] = slot;
        }
    }
}

fn mix(id: &ChunkId, seed: (u64, u64)) -> u64 {
    let word = |at: usize| u64::from_le_bytes(id.0[at..at + 8].try_into().expect("eight bytes"));
    let product = u128::from(word(0) ^ seed.0) * u128::from(word(8) ^ seed.1);
    (product as u64) ^ ((product >> 64) as u64)
}

/// All shards.
pub struct Index {
    shards: Vec<Mutex<Table>>,
    seed: (u64, u64),
}

impl Default for Index {
    fn default() -> Self {
        // RandomState is the standard library's source of unforeseeable numbers.
        let random = || RandomState::new().build_hasher().finish();
        let seed = (random(), random());
        Self { shards: (0..SHARDS).map(|_| Mutex::new(Table::new(seed))).collect(), seed }
    }
}

impl Index {
    /// The locked shard of this chunk. Held for moments only: no file operation happens under it.
    pub fn shard(&self, id: &ChunkId) -> MutexGuard<'_, Table> {
        let at = mix(id, self.seed) >> (64 - SHARDS.trailing_zeros());
        self.shards[at as usize].lock()
    }

    /// A copy of the chunk's entry.
    pub fn get(&self, id: &ChunkId) -> Option<Entry> {
        self.shard(id).get(id)
    }

    /// Each shard in turn.
    pub fn shards(&self) -> impl Iterator<Item = MutexGuard<'_, Table>> {
        self.shards.iter().map(|s| s.lock())
    }

    /// Number of entries, and bytes of memory that they take.
    pub fn size(&self) -> (u64, u64) {
        self.shards().fold((0, 0), |(n, b), t| (n + t.used as u64, b + (t.slots.capacity() * size_of::<Slot>()) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn entry(offset: u32) -> Entry {
        Entry {
            segment: 1,
            offset,
            len: 5,
            seen: 1,
            damaged: offset.is_multiple_of(3),
            condemned: offset.is_multiple_of(5),
        }
    }

    fn id(n: u16) -> ChunkId {
        ChunkId::of(&n.to_le_bytes())
    }

    proptest! {
        #[test]
        fn agrees_with_a_hash_map(ops in proptest::collection::vec((any::<bool>(), 0u16..300, any::<u32>()), 0..1500)) {
            let (index, mut model) = (Index::default(), HashMap::new());
            // One shard gets everything as well, so that probing runs are long.
            let mut table = Table::new((1, 2));
            for (set, n, offset) in ops {
                if set {
                    index.shard(&id(n)).set(id(n), entry(offset));
                    table.set(id(n), entry(offset));
                    model.insert(id(n), entry(offset));
                } else {
                    index.shard(&id(n)).remove(&id(n));
                    table.remove(&id(n));
                    model.remove(&id(n));
                }
            }
            for n in 0..300 {
                prop_assert_eq!(index.get(&id(n)), model.get(&id(n)).copied());
                prop_assert_eq!(table.get(&id(n)), model.get(&id(n)).copied());
            }
            prop_assert_eq!(table.iter().collect::<HashMap<_, _>>(), model.clone());
            prop_assert_eq!(index.size().0, model.len() as u64);
        }
    }

    #[test]
    fn a_chunk_takes_at_most_68_bytes() {
        let index = Index::default();
        for n in 0..200_000u32 {
            let id = ChunkId::of(&n.to_le_bytes());
            index.shard(&id).set(id, entry(n));
        }
        let (chunks, bytes) = index.size();
        assert_eq!(chunks, 200_000);
        assert!(bytes / chunks <= 70, "{} bytes a chunk", bytes / chunks);
    }
}
