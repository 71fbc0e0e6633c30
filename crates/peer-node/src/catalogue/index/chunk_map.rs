//! Where to look for a chunk: digest to [`Spot`]s, in 16 bytes each.
//!
//! A sorted list, and a small table of what came since. Nothing is removed when an entry changes: its old sequence leads
//! nowhere, and who follows it sees that. Stale pairs go when the map is read from the store again.

use std::collections::HashMap;

/// Places of one digest that are kept.
const PLACES_MAX: usize = 8;
/// The table is merged into the list when it is larger than this and than an eighth of the list.
const FRESH_MIN: usize = 16_384;

/// Bits of a spot that hold the position in the content: more than an entry can have chunks.
const POSITION_BITS: u32 = 21;

/// A sequence, and the position of the chunk in the content of the entry that changed then; the highest position stands
/// for the content as a whole. Later ones are greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Spot(u64);

impl Spot {
    /// Of a chunk.
    pub fn chunk(sequence: u64, position: usize) -> Self {
        Self((sequence << POSITION_BITS) | (position as u64 & Self::WHOLE))
    }
    /// Of a whole content.
    pub fn whole(sequence: u64) -> Self {
        Self((sequence << POSITION_BITS) | Self::WHOLE)
    }
    pub fn sequence(self) -> u64 {
        self.0 >> POSITION_BITS
    }
    /// `None` for a whole content.
    pub fn position(self) -> Option<usize> {
        let position = self.0 & Self::WHOLE;
        (position != Self::WHOLE).then_some(position as usize)
    }
    const WHOLE: u64 = (1 << POSITION_BITS) - 1;
}

#[derive(Default)]
pub(super) struct ChunkMap {
    /// By digest, newest first.
    base: Vec<(u64, Spot)>,
    fresh: HashMap<u64, Vec<Spot>>,
    fresh_count: usize,
}

fn arrange(pairs: &mut Vec<(u64, Spot)>) {
    pairs.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    pairs.dedup();
    let (mut digest, mut count) = (0, 0);
    pairs.retain(|pair| {
        if pair.0 != digest {
            (digest, count) = (pair.0, 0);
        }
        count += 1;
        count <= PLACES_MAX
    });
    pairs.shrink_to_fit();
}

impl ChunkMap {
    /// From all pairs.
    pub fn of(mut pairs: Vec<(u64, Spot)>) -> Self {
        arrange(&mut pairs);
        Self { base: pairs, ..Self::default() }
    }

    pub fn add(&mut self, digest: u64, spot: Spot) {
        let places = self.fresh.entry(digest).or_default();
        if places.contains(&spot) {
            return;
        }
        if places.len() == PLACES_MAX {
            // The oldest: it is the one most likely to be stale.
            places.remove(0);
        } else {
            self.fresh_count += 1;
        }
        places.push(spot);
        if self.fresh_count > FRESH_MIN.max(self.base.len() / 8) {
            self.merge();
        }
    }

    fn merge(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        self.fresh_count = 0;
        self.base.reserve(fresh.len());
        self.base.extend(fresh.into_iter().flat_map(|(digest, places)| places.into_iter().map(move |s| (digest, s))));
        arrange(&mut self.base);
    }

    /// Forgets what leads from a digest to a sequence.
    pub fn remove(&mut self, digest: u64, sequence: u64) {
        if let Some(places) = self.fresh.get_mut(&digest) {
            places.retain(|s| s.sequence() != sequence);
        }
        let from = self.base.partition_point(|p| p.0 < digest);
        let count = self.base[from..].iter().take_while(|p| p.0 == digest).count();
        for at in (from..from + count).rev() {
            if self.base[at].1.sequence() == sequence {
                self.base.remove(at);
            }
        }
    }

    /// Where it may be, newest first.
    pub fn places(&self, digest: u64) -> Vec<Spot> {
        let from = self.base.partition_point(|p| p.0 < digest);
        let mut found: Vec<Spot> = self.fresh.get(&digest).cloned().unwrap_or_default();
        found.extend(self.base[from..].iter().take_while(|p| p.0 == digest).map(|p| p.1));
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.dedup();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(sequence: u64) -> Spot {
        Spot::chunk(sequence, 3)
    }

    #[test]
    fn spots_hold_sequence_and_position() {
        let spot = Spot::chunk(1 << 40, 1_499_999);
        assert_eq!((spot.sequence(), spot.position()), (1 << 40, Some(1_499_999)));
        assert_eq!((Spot::whole(7).sequence(), Spot::whole(7).position()), (7, None));
        assert!(Spot::chunk(8, 0) > Spot::whole(7));
    }

    #[test]
    fn what_was_added_is_found_after_merging_too() {
        let mut map = ChunkMap::of((0..50_000).map(|i| (i, spot(i + 1))).collect());
        for i in 0..60_000 {
            map.add(i, spot(i + 100_000));
        }
        for i in (0..60_000).step_by(997) {
            let expected = if i < 50_000 { vec![spot(i + 100_000), spot(i + 1)] } else { vec![spot(i + 100_000)] };
            assert_eq!(map.places(i), expected);
        }
        assert!(map.places(60_000).is_empty());
        map.remove(997, 100_997);
        map.remove(997, 998);
        assert!(map.places(997).is_empty());
    }

    #[test]
    fn a_chunk_that_is_everywhere_takes_a_few_places() {
        let mut map = ChunkMap::of((0..1000).map(|s| (5, spot(s))).collect());
        (1000..100_000).for_each(|s| map.add(5, spot(s)));
        assert!(map.places(5).len() <= 2 * PLACES_MAX);
        assert_eq!(map.places(5)[0], spot(99_999));
        assert!(map.base.len() + map.fresh_count < 100);
    }
}
