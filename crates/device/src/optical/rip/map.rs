//! What of a disc was read: the map file of GNU ddrescue, so that its tools show and mend it.
//!
//! ```text
//!   # Atrium rip, disc 0123456789abcdef0123456789abcdef
//!   # position      status  pass
//!   0x00000000      +       1
//!   # position      size            status
//!   0x00000000      0x00100000      +
//!   0x00100000      0x00000800      -
//! ```
//!
//! Lines of comment begin with `#`. The first other line says where the program is; the rest are runs without gaps from
//! the first byte to the last: `?` not tried, `*` skipped because something in it is bad, `/` partly tried, `-` a sector
//! that cannot be read, `+` in the image.

use common::error::{Error, Reason, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// Runs that a map has at most: every other sector of a dual-layer Blu-ray disc would be more, and hopeless.
const MAX_RUNS: usize = 4 << 20;

/// What is known about bytes of a disc.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    /// Not tried yet.
    Untried,
    /// Something in it is bad.
    Skipped,
    /// Tried in part.
    Partly,
    /// A sector that cannot be read.
    Bad,
    /// Read.
    Finished,
}

impl Status {
    const ALL: [Self; 5] = [Self::Untried, Self::Skipped, Self::Partly, Self::Bad, Self::Finished];

    fn letter(self) -> char {
        match self {
            Self::Untried => '?',
            Self::Skipped => '*',
            Self::Partly => '/',
            Self::Bad => '-',
            Self::Finished => '+',
        }
    }
}

/// A map. Runs cover the disc without gaps, and neighbours differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Map {
    size: u64,
    identity: String,
    /// Beginnings of runs.
    runs: BTreeMap<u64, Status>,
    /// Bytes of each status.
    totals: [u64; 5],
}

impl Map {
    /// Nothing tried yet.
    pub fn new(size: u64, identity: &str) -> Self {
        let totals = [size, 0, 0, 0, 0];
        Self { size, identity: identity.to_owned(), runs: BTreeMap::from([(0, Status::Untried)]), totals }
    }

    /// Size of the disc.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Which disc it is of.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Bytes of a status.
    pub fn bytes(&self, status: Status) -> u64 {
        self.totals[status as usize]
    }

    /// All runs in order.
    pub fn runs(&self) -> impl Iterator<Item = (Range<u64>, Status)> + '_ {
        let ends = self.runs.keys().skip(1).copied().chain([self.size]);
        self.runs.iter().zip(ends).map(|((start, status), end)| (*start..end, *status))
    }

    /// The first run from `from` on that has one of these statuses, cut to a length.
    pub fn first(&self, wanted: &[Status], from: u64, most: u64) -> Option<Range<u64>> {
        let start = self.runs.range(..=from).next_back().map_or(0, |(start, _)| *start);
        let mut runs = self.runs.range(start..).peekable();
        while let Some((start, status)) = runs.next() {
            let end = runs.peek().map_or(self.size, |(next, _)| **next);
            let start = (*start).max(from);
            if start < end && wanted.contains(status) {
                return Some(start..end.min(start + most));
            }
        }
        None
    }

    /// Sets a range.
    pub fn set(&mut self, range: Range<u64>, status: Status) {
        let (start, end) = (range.start.min(self.size), range.end.min(self.size));
        if start >= end {
            return;
        }
        let at = |map: &Self, place: u64| map.runs.range(..=place).next_back().map_or(Status::Untried, |(_, s)| *s);
        let (before, after) = (start.checked_sub(1).map(|b| at(self, b)), at(self, end - 1));
        let behind = (end < self.size).then(|| at(self, end));
        // What was there is counted out.
        let mut place = start;
        while place < end {
            let next = self.runs.range(place + 1..).next().map_or(self.size, |(n, _)| *n).min(end);
            self.totals[at(self, place) as usize] -= next - place;
            place = next;
        }
        self.totals[status as usize] += end - start;
        let inside: Vec<_> = self.runs.range(start..end).map(|(place, _)| *place).collect();
        for place in inside {
            self.runs.remove(&place);
        }
        if before != Some(status) {
            self.runs.insert(start, status);
        }
        match behind {
            Some(next) if next == status => drop(self.runs.remove(&end)),
            Some(_) if !self.runs.contains_key(&end) => drop(self.runs.insert(end, after)),
            _ => {}
        }
    }

    /// Reads a map of a disc of this size.
    ///
    /// # Errors
    /// STORE_CORRUPT: it is not touched then, because it may be somebody's work of hours.
    pub fn parse(text: &str, size: u64) -> Result<Self> {
        let bad = |line: usize| {
            Error::new(Reason::StoreCorrupt, format!("line {line} of the map is damaged"))
                .fix_is("remove the .map and .part files to begin anew")
        };
        let mut identity = String::new();
        let mut map = Self::new(size, "");
        let (mut expected, mut begun) = (0, false);
        for (number, line) in text.lines().enumerate() {
            let number = number + 1;
            if let Some(comment) = line.strip_prefix('#') {
                if let Some((_, name)) = comment.split_once(", disc ") {
                    name.trim().clone_into(&mut identity);
                }
                continue;
            }
            let mut words = line.split_whitespace();
            let Some(first) = words.next() else { continue };
            if !std::mem::replace(&mut begun, true) {
                continue;
            }
            let position = parse_number(first).filter(|p| *p == expected).ok_or_else(|| bad(number))?;
            let len = words.next().and_then(parse_number).filter(|l| *l > 0).ok_or_else(|| bad(number))?;
            let letter = words.next().filter(|w| w.len() == 1).and_then(|w| w.chars().next());
            let status = Status::ALL.into_iter().find(|s| Some(s.letter()) == letter).ok_or_else(|| bad(number))?;
            expected = position.checked_add(len).filter(|e| *e <= size).ok_or_else(|| bad(number))?;
            map.set(position..expected, status);
            if map.runs.len() > MAX_RUNS {
                return Err(bad(number));
            }
        }
        if expected != size {
            return Err(bad(text.lines().count()));
        }
        map.identity = identity;
        Ok(map)
    }
}

fn parse_number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Atrium rip, disc {}", self.identity)?;
        writeln!(f, "# position      status  pass")?;
        let current = self.runs().find(|(_, status)| *status != Status::Finished);
        let (place, letter) = current.map_or((0, '+'), |(run, status)| (run.start, status.letter()));
        writeln!(f, "0x{place:08X}      {letter}       1")?;
        writeln!(f, "# position      size            status")?;
        for (run, status) in self.runs() {
            writeln!(f, "0x{:08X}      0x{:08X}      {}", run.start, run.end - run.start, status.letter())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn status() -> impl Strategy<Value = Status> {
        proptest::sample::select(Status::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn a_map_says_what_was_set(sets in proptest::collection::vec((0_u64..110, 0_u64..40, status()), 0..40)) {
            let mut map = Map::new(100, "x");
            let mut plain = [Status::Untried; 100];
            for (start, len, status) in sets {
                map.set(start..start + len, status);
                (start..start + len).filter(|p| *p < 100).for_each(|p| plain[p as usize] = status);
                for one in Status::ALL {
                    prop_assert_eq!(map.bytes(one), plain.iter().filter(|s| **s == one).count() as u64);
                }
            }
            let runs: Vec<_> = map.runs().collect();
            prop_assert!(runs.windows(2).all(|w| w[0].0.end == w[1].0.start && w[0].1 != w[1].1));
            let told = runs.iter().flat_map(|(run, status)| run.clone().map(move |_| *status));
            prop_assert!(told.eq(plain.iter().copied()));
            for from in 0..100 {
                let first = map.first(&[Status::Bad], from, 7);
                let place = (from..100).find(|p| plain[*p as usize] == Status::Bad);
                prop_assert_eq!(first.as_ref().map(|r| r.start), place);
                prop_assert!(first.is_none_or(|r| r.end - r.start <= 7 && r.clone().all(|p| plain[p as usize] == Status::Bad)));
            }
            prop_assert_eq!(Map::parse(&map.to_string(), 100).unwrap(), map);
        }

        #[test]
        fn any_text_is_a_map_or_an_error(text in "[#0-9a-fx +?*/\n-]{0,200}") {
            let _ = Map::parse(&text, 4096);
        }
    }

    #[test]
    fn gaps_overlaps_and_other_sizes_are_damage() {
        let head = "# Atrium rip, disc abc\n0x0 ? 1\n";
        assert_eq!(Map::parse(&format!("{head}0x0 0x800 +\n0x800 2048 -\n"), 4096).unwrap().identity(), "abc");
        for body in [
            "",
            "0x0 0x800 +\n",
            "0x800 0x800 +\n",
            "0 0x1800 +\n",
            "0 0x800 +\n0 0x1000 +\n",
            "0 0x1000 x\n",
            "0 0 +\n",
        ] {
            assert!(Map::parse(&format!("{head}{body}"), 4096).is_err(), "{body}");
        }
    }
}
