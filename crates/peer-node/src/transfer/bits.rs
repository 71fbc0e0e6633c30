//! A set of small numbers as bits.

/// Which of the numbers `0..len` are in the set.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bits {
    words: Vec<u64>,
    len: usize,
    count: usize,
}

impl Bits {
    /// The empty set of numbers below `len`.
    pub fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)], len, count: 0 }
    }

    /// All numbers below `len`.
    pub fn full(len: usize) -> Self {
        let mut words = vec![u64::MAX; len.div_ceil(64)];
        if let (Some(last), rest @ 1..) = (words.last_mut(), len % 64) {
            *last = (1 << rest) - 1;
        }
        Self { words, len, count: len }
    }

    /// Numbers in the set.
    pub fn count(&self) -> usize {
        self.count
    }

    /// True if no number is in the set.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// True if every number below the bound is in the set.
    pub fn is_full(&self) -> bool {
        self.count == self.len
    }

    /// Is the number in the set?
    pub fn has(&self, n: usize) -> bool {
        n < self.len && self.words[n / 64] & (1 << (n % 64)) != 0
    }

    /// Puts a number in; true if it was not. Numbers past the bound are left out.
    pub fn insert(&mut self, n: usize) -> bool {
        if n >= self.len || self.has(n) {
            return false;
        }
        self.words[n / 64] |= 1 << (n % 64);
        self.count += 1;
        true
    }

    /// Takes a number out; true if it was in.
    pub fn remove(&mut self, n: usize) -> bool {
        if !self.has(n) {
            return false;
        }
        self.words[n / 64] &= !(1 << (n % 64));
        self.count -= 1;
        true
    }

    /// The first number in `from..to` that is in the set.
    pub fn next(&self, from: usize, to: usize) -> Option<usize> {
        self.search(from, to, |_| u64::MAX)
    }

    /// The first number in `from..to` that is in both sets.
    pub fn next_common(&self, other: &Bits, from: usize, to: usize) -> Option<usize> {
        self.search(from, to, |w| other.words.get(w).copied().unwrap_or(0))
    }

    /// The last number in `from..to` that is in the set.
    pub fn last(&self, from: usize, to: usize) -> Option<usize> {
        let to = to.min(self.len);
        if from >= to {
            return None;
        }
        let (first, last) = (from / 64, (to - 1) / 64);
        for w in (first..=last).rev() {
            let mut word = self.words[w];
            if w == last && !to.is_multiple_of(64) {
                word &= (1 << (to % 64)) - 1;
            }
            if w == first {
                word &= u64::MAX << (from % 64);
            }
            if word != 0 {
                return Some(w * 64 + 63 - word.leading_zeros() as usize);
            }
        }
        None
    }

    /// The numbers in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let found = self.next(at, self.len)?;
            at = found + 1;
            Some(found)
        })
    }

    fn search(&self, from: usize, to: usize, mask: impl Fn(usize) -> u64) -> Option<usize> {
        let to = to.min(self.len);
        if from >= to {
            return None;
        }
        for w in from / 64..=(to - 1) / 64 {
            let mut word = self.words[w] & mask(w);
            if w == from / 64 {
                word &= u64::MAX << (from % 64);
            }
            if word != 0 {
                let found = w * 64 + word.trailing_zeros() as usize;
                return (found < to).then_some(found);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(
            len in 0usize..300,
            steps in prop::collection::vec((any::<bool>(), 0usize..310), 0..200),
            from in 0usize..310,
            to in 0usize..310,
        ) {
            let (mut bits, mut other, mut model) = (Bits::new(len), Bits::new(len), BTreeSet::new());
            for (put, n) in steps {
                if put {
                    prop_assert_eq!(bits.insert(n), n < len && model.insert(n));
                } else {
                    prop_assert_eq!(bits.remove(n), model.remove(&n));
                }
                other.insert(n / 2);
            }
            prop_assert_eq!(bits.count(), model.len());
            prop_assert!(bits.iter().eq(model.iter().copied()));
            let within = || model.iter().copied().filter(|n| (from..to).contains(n));
            prop_assert_eq!(bits.next(from, to), within().next());
            prop_assert_eq!(bits.last(from, to), within().next_back());
            prop_assert_eq!(bits.next_common(&other, from, to), within().find(|n| other.has(*n)));
            prop_assert_eq!(Bits::full(len).count(), Bits::full(len).iter().count());
        }
    }
}
