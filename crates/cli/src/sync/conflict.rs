//! Names for the second version of a file that was changed on both sides.

use common::model::fold;
use std::collections::HashSet;

/// Longest name in bytes.
const NAME_MAX: usize = 255;

/// Gives out conflict names that nothing else has.
#[derive(Debug)]
pub struct ConflictNames {
    who: String,
    date: String,
    taken: HashSet<String>,
}

impl ConflictNames {
    /// For this person and day, avoiding the given paths (and those that differ only in letter case).
    pub fn new<'a>(who: &str, date: &str, taken: impl Iterator<Item = &'a String>) -> Self {
        // A name on the server may be anything; in a file name it must not be a path or a control sequence.
        let who: String =
            who.chars().filter(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-')).take(32).collect();
        let who = if who.is_empty() { "someone".to_owned() } else { who };
        Self { who, date: date.to_owned(), taken: taken.map(|p| fold(p)).collect() }
    }

    /// `notes/a.txt` becomes `notes/a (conflict anna 2026-11-22).txt`; a number is added if that is taken.
    pub fn name_for(&mut self, path: &str) -> String {
        let (parent, name) = match path.rsplit_once('/') {
            Some((parent, name)) => (format!("{parent}/"), name),
            None => (String::new(), path),
        };
        let (stem, extension) = match name.rfind('.') {
            Some(dot) if dot > 0 && name.len() - dot <= 16 => name.split_at(dot),
            _ => (name, ""),
        };
        let mut number = 1u64;
        loop {
            let serial = if number == 1 { String::new() } else { format!(" {number}") };
            let tail = format!(" (conflict {} {}{serial}){extension}", self.who, self.date);
            let mut keep = stem.len().min(NAME_MAX.saturating_sub(tail.len()));
            while !stem.is_char_boundary(keep) {
                keep -= 1;
            }
            let candidate = format!("{parent}{}{tail}", &stem[..keep]);
            if self.taken.insert(fold(&candidate)) {
                return candidate;
            }
            // Every round takes a new number, and only finitely many names are taken.
            number += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_readable_unique_and_short_enough() {
        let taken = ["b (conflict anna 2026-11-22).txt".to_owned()];
        let mut names = ConflictNames::new("anna", "2026-11-22", taken.iter());
        assert_eq!(names.name_for("notes/a.txt"), "notes/a (conflict anna 2026-11-22).txt");
        assert_eq!(names.name_for("notes/a.txt"), "notes/a (conflict anna 2026-11-22 2).txt");
        assert_eq!(names.name_for("B.txt"), "B (conflict anna 2026-11-22 2).txt");
        assert_eq!(names.name_for(".bashrc"), ".bashrc (conflict anna 2026-11-22)");
        let long = names.name_for(&format!("{}.txt", "ü".repeat(125)));
        assert!(long.len() <= 255 && long.ends_with(").txt"));
        let mut odd = ConflictNames::new("../\x1b[31m", "2026-11-22", [].iter());
        assert_eq!(odd.name_for("a"), "a (conflict ..31m 2026-11-22)");
    }
}
