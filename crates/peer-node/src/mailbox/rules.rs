//! Who may send without asking.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Most names in a rule.
pub const MAX_NAMES: usize = 1_000;

/// Accept rules. Without any, every parcel of another person asks; one's own machines never do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Persons whose parcels are taken.
    pub accept: BTreeSet<String>,
    /// Parcels of everyone in the office are taken.
    pub accept_all: bool,
    /// Larger ones ask in any case; 0 means no limit.
    pub ask_above_bytes: u64,
    /// Persons whose parcels are refused.
    pub refuse: BTreeSet<String>,
    /// The inbox.
    pub directory: PathBuf,
}

/// What to do with a parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Fetch it.
    Accept,
    /// Ask the person.
    Ask,
    /// Do not take it.
    Refuse,
}

impl Rules {
    /// What to do with a parcel of this person and size; `me` is the person of this machine. Refusing goes before
    /// accepting, and size before both kinds of accepting.
    pub fn judge(&self, me: &str, person: &str, bytes: u64) -> Verdict {
        if self.refuse.contains(person) {
            return Verdict::Refuse;
        }
        let welcome = self.accept_all || self.accept.contains(person) || (person == me && !me.is_empty());
        let small = self.ask_above_bytes == 0 || bytes <= self.ask_above_bytes;
        if welcome && small { Verdict::Accept } else { Verdict::Ask }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_let_in_without_a_word_and_refusing_goes_first() {
        let mut rules = Rules::default();
        assert_eq!(rules.judge("anna", "bert", 1), Verdict::Ask);
        assert_eq!(rules.judge("anna", "anna", 1), Verdict::Accept);
        assert_eq!(rules.judge("", "", 1), Verdict::Ask, "an unknown person is not oneself");
        rules.accept.insert("bert".into());
        rules.ask_above_bytes = 100;
        assert_eq!(rules.judge("anna", "bert", 100), Verdict::Accept);
        assert_eq!(rules.judge("anna", "bert", 101), Verdict::Ask);
        rules.accept_all = true;
        assert_eq!(rules.judge("anna", "carl", 1), Verdict::Accept);
        rules.refuse.insert("carl".into());
        assert_eq!(rules.judge("anna", "carl", 1), Verdict::Refuse);
    }
}
