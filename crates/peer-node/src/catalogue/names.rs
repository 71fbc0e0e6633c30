//! Hierarchical names: `office/unit.../machine/share/path`. No IO.
//!
//! A node owns what is below its name, by signature: its record says the name, and everything below it comes from that
//! device. Nothing keeps two nodes from claiming one name. Then both are shown, each with `~` and the beginning of its
//! device id, and the plain name is an error that lists them. The same holds for two shares of one name at one node.
//!
//! Names of offices, units, machines and shares are compared without regard to letter case; paths within a share exactly.

use common::error::{Error, Reason, Result};
use common::model::path::{MAX_DEPTH, MAX_PATH_BYTES};
use common::model::{EntryName, fold};
use std::cmp::Ordering;
use std::collections::HashMap;

/// Characters of an id that are shown behind `~`.
const SHOWN: usize = 8;
/// Fewest that are accepted.
const LEAST: usize = 4;

/// Any segment.
pub const ANY: &str = "*";

/// Splits an address into segments. Slashes at both ends are passed over; empty is the office itself.
///
/// # Errors
/// PATH_INVALID, NAME_INVALID.
pub fn parse(address: &str) -> Result<Vec<String>> {
    let address = address.trim_matches('/');
    if address.is_empty() {
        return Ok(Vec::new());
    }
    if address.len() > 2 * MAX_PATH_BYTES || address.split('/').count() > 2 * MAX_DEPTH {
        return Err(Error::new(Reason::PathInvalid, "the address is too long"));
    }
    address.split('/').map(|s| EntryName::new(s).map(|name| name.as_str().to_owned())).collect()
}

/// Order of addresses: segment by segment, so that what is below an address follows it directly.
pub fn order(a: &str, b: &str) -> Ordering {
    a.split('/').cmp(b.split('/'))
}

/// Something with a name and an id that it can be told apart by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim<T> {
    /// Its name; '/'-separated for nodes.
    pub name: String,
    /// Hexadecimal.
    pub id: String,
    /// What claims the name.
    pub what: T,
    /// Others claim it too.
    pub disputed: bool,
}

impl<T> Claim<T> {
    /// The name, with `~` and the beginning of the id if it is disputed.
    pub fn shown(&self) -> String {
        if self.disputed {
            format!("{}~{}", self.name, &self.id[..SHOWN.min(self.id.len())])
        } else {
            self.name.clone()
        }
    }
}

/// Finds out who claims a name that others claim too, and puts all in the order of what is shown.
pub fn claims<T>(all: impl IntoIterator<Item = (String, String, T)>) -> Vec<Claim<T>> {
    let mut found: Vec<Claim<T>> =
        all.into_iter().map(|(name, id, what)| Claim { name, id, what, disputed: false }).collect();
    let mut counts: HashMap<String, usize> = HashMap::new();
    found.iter().for_each(|c| *counts.entry(fold(&c.name)).or_default() += 1);
    found.iter_mut().for_each(|c| c.disputed = counts.get(&fold(&c.name)).is_some_and(|n| *n > 1));
    found.sort_by(|a, b| order(&a.shown(), &b.shown()).then_with(|| a.id.cmp(&b.id)));
    found
}

/// How a claim fits to what was typed for its last segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fit {
    No,
    /// By the plain name or '*'.
    Plain,
    /// By name and beginning of the id.
    Exact,
}

fn fit<T>(claim: &Claim<T>, name: &str, typed: &str) -> Fit {
    if typed == ANY || fold(typed) == fold(name) {
        return Fit::Plain;
    }
    if let Some((plain, id)) = typed.rsplit_once('~')
        && fold(plain) == fold(name)
        && id.len() >= LEAST
        && claim.id.starts_with(&id.to_ascii_lowercase())
    {
        return Fit::Exact;
    }
    Fit::No
}

/// How the beginning of an address stands to a node's name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Elsewhere.
    Apart,
    /// The address is above the node: this many segments of its name fit.
    Above(usize),
    /// The address names the node, or something at it: the rest of the address.
    At(Vec<String>),
}

/// Compares an address (with '*' as wildcard) with a node's name.
pub fn standing<T>(claim: &Claim<T>, address: &[String]) -> Standing {
    let name: Vec<&str> = claim.name.split('/').collect();
    let common = name.len().min(address.len());
    for at in 0..common {
        let (part, typed) = (name[at], address[at].as_str());
        let fits = if at + 1 == name.len() {
            fit(claim, part, typed) != Fit::No
        } else {
            typed == ANY || fold(typed) == fold(part)
        };
        if !fits {
            return Standing::Apart;
        }
    }
    if address.len() < name.len() { Standing::Above(common) } else { Standing::At(address[common..].to_vec()) }
}

/// True if the address names this claim by its plain name, although others claim it too.
pub fn is_ambiguous<T>(claim: &Claim<T>, typed: &str) -> bool {
    claim.disputed && typed != ANY && fit(claim, claim.name.rsplit('/').next().unwrap_or_default(), typed) == Fit::Plain
}

/// Picks the claims that a typed segment means.
///
/// # Errors
/// ADDRESS_AMBIGUOUS, with all of them listed, if the plain name is claimed more than once.
pub fn pick<'a, T>(claims: &'a [Claim<T>], typed: &str) -> Result<Vec<&'a Claim<T>>> {
    let last = |c: &'a Claim<T>| c.name.rsplit('/').next().unwrap_or_default();
    let found: Vec<&Claim<T>> = claims.iter().filter(|c| fit(c, last(c), typed) != Fit::No).collect();
    if typed != ANY && found.len() > 1 {
        let exact: Vec<&Claim<T>> = found.iter().copied().filter(|c| fit(c, last(c), typed) == Fit::Exact).collect();
        return if exact.len() == 1 { Ok(exact) } else { Err(ambiguous(typed, &found)) };
    }
    Ok(found)
}

/// The error that lists all who claim a name.
pub fn ambiguous<T>(typed: &str, found: &[&Claim<T>]) -> Error {
    let all: Vec<String> = found.iter().take(8).map(|c| c.shown()).collect();
    let all = all.join(", ");
    Error::new(Reason::AddressAmbiguous, format!("{typed:?} is claimed more than once: {all}")).with("claims", all)
}

/// Splits what people look for into words, folded.
///
/// # Errors
/// FIELD_INVALID if there is none, or more than 16 or 1,024 bytes.
pub fn words(text: &str) -> Result<Vec<String>> {
    let words: Vec<String> = text.split_whitespace().map(fold).collect();
    if words.is_empty() || words.len() > 16 || text.len() > 1_024 {
        return Err(Error::new(Reason::FieldInvalid, "look for 1 to 16 words of together 1,024 bytes at most"));
    }
    Ok(words)
}

/// How well a path fits to folded words; `None` if one of them is not in it. Smaller is better: the name itself, names
/// that begin with the words, names that have all of them, then paths.
pub fn rank(path: &str, words: &[String]) -> Option<u8> {
    let folded = fold(path);
    if !words.iter().all(|w| folded.contains(w.as_str())) {
        return None;
    }
    let name = folded.rsplit('/').next().unwrap_or_default();
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let whole = words.join(" ");
    Some(if name == whole || stem == whole {
        0
    } else if name.starts_with(&whole) {
        1
    } else if words.iter().all(|w| name.contains(w.as_str())) {
        2
    } else {
        3
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[(&str, &str)]) -> Vec<Claim<u32>> {
        claims(names.iter().zip(0..).map(|((name, id), at)| ((*name).to_owned(), (*id).to_owned(), at)))
    }

    fn stand(claim: &Claim<u32>, address: &str) -> Standing {
        standing(claim, &parse(address).unwrap())
    }

    #[test]
    fn an_address_is_above_at_or_apart_from_a_node() {
        let all = nodes(&[("acme/sales/anna-pc", "11111111aa")]);
        let anna = &all[0];
        assert_eq!(stand(anna, ""), Standing::Above(0));
        assert_eq!(stand(anna, "acme"), Standing::Above(1));
        assert_eq!(stand(anna, "/ACME/sales/"), Standing::Above(2));
        assert_eq!(stand(anna, "acme/*"), Standing::Above(2));
        assert_eq!(stand(anna, "acme/sales/anna-pc"), Standing::At(vec![]));
        assert_eq!(stand(anna, "acme/*/*/plans/a"), Standing::At(vec!["plans".into(), "a".into()]));
        assert_eq!(stand(anna, "acme/sales/anna-pc~1111/x"), Standing::At(vec!["x".into()]));
        assert_eq!(stand(anna, "acme/sales/anna-pc~2222/x"), Standing::Apart);
        assert_eq!(stand(anna, "acme/other"), Standing::Apart);
    }

    #[test]
    fn double_claims_are_shown_and_the_plain_name_is_an_error() {
        let all = nodes(&[("acme/pc", "aaaa5555ff"), ("acme/PC", "bbbb6666ff"), ("acme/other", "cccc")]);
        let shown: Vec<String> = all.iter().map(Claim::shown).collect();
        assert_eq!(shown, ["acme/PC~bbbb6666", "acme/other", "acme/pc~aaaa5555"]);
        let error = pick(&all, "pc").unwrap_err();
        assert!(error.is(Reason::AddressAmbiguous));
        assert!(error.message().contains("~aaaa5555") && error.message().contains("~bbbb6666"), "{error}");
        assert_eq!(pick(&all, "pc~bbbb").unwrap().len(), 1);
        assert_eq!(pick(&all, "pc~bbbb").unwrap()[0].what, 1);
        assert_eq!(pick(&all, "*").unwrap().len(), 3);
        assert_eq!(pick(&all, "other").unwrap().len(), 1);
        assert!(pick(&all, "pc~bb").unwrap().is_empty(), "too short");
    }

    #[test]
    fn what_is_below_an_address_follows_it() {
        let mut all = vec!["a/b-c", "a/b/z", "a/b", "a"];
        all.sort_by(|a, b| order(a, b));
        assert_eq!(all, ["a", "a/b", "a/b/z", "a/b-c"]);
    }

    #[test]
    fn hostile_addresses_are_refused() {
        for bad in ["a//b", "a/../b", "a/\u{7}", &"x/".repeat(300), &"x".repeat(9_000)] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn better_matches_rank_first() {
        let words = words("Plan Berlin").unwrap();
        let ranks: Vec<_> = ["x/plan berlin.pdf", "plan berlin 2", "berlin plan", "berlin/plan", "plan"]
            .iter()
            .map(|p| rank(p, &words))
            .collect();
        assert_eq!(ranks, [Some(0), Some(1), Some(2), Some(3), None]);
    }
}
