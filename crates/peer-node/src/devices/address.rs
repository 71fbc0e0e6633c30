//! Which device of which machine an address means. No IO.
//!
//! Three ways to write it: full (`acme/anna-pc/printers/laser`), below this node (`printers/laser`), or a name that only
//! one device has (`laser`). The last one is looked up among those that are known.

use crate::catalogue::Node;
use crate::catalogue::names::{self, Claim, Standing};
use common::error::{Error, Reason, Result};
use common::model::{DeviceId, EntryName, fold};
use device::model::Kind;

use super::access::unknown;

/// A device of a machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// The machine.
    pub node: DeviceId,
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// What is below it, for discs: segments.
    pub below: Vec<String>,
}

impl Target {
    /// As its owner calls it: "printers/laser".
    pub fn local_name(&self) -> String {
        format!("{}/{}", self.kind.segment(), self.name)
    }
}

/// Splits the name that a node gives its own device.
///
/// # Errors
/// RESOURCE_UNKNOWN if it is not of the form "printers/laser".
pub fn local(name: &str) -> Result<(Kind, String)> {
    let (segment, rest) = name.split_once('/').ok_or_else(|| unknown(name))?;
    let kind = Kind::of_segment(segment).ok_or_else(|| unknown(name))?;
    let rest = EntryName::new(rest).map_err(|_| unknown(name))?;
    Ok((kind, rest.as_str().to_owned()))
}

/// Reads a full address, or one below this node. `None` if it is of neither form.
///
/// # Errors
/// PATH_INVALID, NAME_INVALID; ADDRESS_AMBIGUOUS if several machines claim the name.
pub fn full(nodes: &[Claim<Node>], me: DeviceId, address: &str) -> Result<Option<Target>> {
    let segments = names::parse(address)?;
    let target = |node: DeviceId, rest: &[String]| {
        let [segment, name, below @ ..] = rest else { return None };
        let kind = Kind::of_segment(segment)?;
        Some(Target { node, kind, name: name.clone(), below: below.to_vec() })
    };
    let mut found: Vec<(&Claim<Node>, Target)> = Vec::new();
    for claim in nodes {
        if let Standing::At(rest) = names::standing(claim, &segments)
            && let Some(target) = target(claim.what.device, &rest)
        {
            found.push((claim, target));
        }
    }
    match found.as_slice() {
        [] => Ok(target(me, &segments)),
        [(_, one)] => Ok(Some(one.clone())),
        several => {
            let claims: Vec<&Claim<Node>> = several.iter().map(|(claim, _)| *claim).collect();
            Err(names::ambiguous(address, &claims))
        }
    }
}

/// Finds the only device of this name.
///
/// # Errors
/// RESOURCE_UNKNOWN; ADDRESS_AMBIGUOUS with all of them.
pub fn short<'a>(known: impl Iterator<Item = (&'a str, Target)>, name: &str) -> Result<Target> {
    let key = fold(name);
    let found: Vec<(&str, Target)> = known.filter(|(_, t)| fold(&t.name) == key).collect();
    match found.as_slice() {
        [] => Err(unknown(name)),
        [(_, one)] => Ok(one.clone()),
        several => {
            let all: Vec<&str> = several.iter().take(8).map(|(address, _)| *address).collect();
            let all = all.join(", ");
            Err(Error::new(Reason::AddressAmbiguous, format!("{name:?} may be {all}"))
                .fix_is("write the full address")
                .with("claims", all))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[&str]) -> Vec<Claim<Node>> {
        let node = |name: &str, at: u8| {
            let device = DeviceId([at; 32]);
            (name.to_owned(), device.to_string(), Node { device, name: name.to_owned(), person: "anna".into() })
        };
        names::claims(names.iter().zip(1..).map(|(name, at)| node(name, at)))
    }

    fn me() -> DeviceId {
        DeviceId([1; 32])
    }

    #[test]
    fn full_addresses_and_those_below_this_node() {
        let all = nodes(&["acme/anna-pc", "acme/sales/bert-pc"]);
        let found = full(&all, me(), "acme/sales/bert-pc/printers/laser").unwrap().unwrap();
        assert_eq!((found.node, found.kind, &*found.name), (DeviceId([2; 32]), Kind::Printer, "laser"));
        assert_eq!(found.local_name(), "printers/laser");
        let own = full(&all, me(), "drives/dvd/docs/a.pdf").unwrap().unwrap();
        assert_eq!((own.node, own.kind, own.below), (me(), Kind::Drive, vec!["docs".into(), "a.pdf".into()]));
        for other in ["acme/anna-pc/plans/a", "laser", "", "acme/anna-pc/printers", "plans/printers/x"] {
            assert_eq!(full(&all, me(), other).unwrap(), None, "{other}");
        }
        assert!(full(&all, me(), "acme/../printers/x").is_err());
    }

    #[test]
    fn machines_of_one_name_are_listed() {
        let all = nodes(&["acme/pc", "acme/pc"]);
        assert!(full(&all, me(), "acme/pc/printers/laser").unwrap_err().is(Reason::AddressAmbiguous));
        let exact = format!("acme/pc~{}/printers/laser", &DeviceId([2; 32]).to_string()[..8]);
        assert_eq!(full(&all, me(), &exact).unwrap().unwrap().node, DeviceId([2; 32]));
    }

    #[test]
    fn a_short_name_must_be_the_only_one() {
        let target = |at: u8, name: &str| Target {
            node: DeviceId([at; 32]),
            kind: Kind::Printer,
            name: name.into(),
            below: vec![],
        };
        let known = [("acme/a/printers/laser", target(1, "laser")), ("acme/b/printers/Ink", target(2, "Ink"))];
        assert_eq!(short(known.iter().cloned(), "ink").unwrap().node, DeviceId([2; 32]));
        assert!(short(known.iter().cloned(), "x").unwrap_err().is(Reason::ResourceUnknown));
        let twice = [known[0].clone(), ("acme/c/printers/laser", target(3, "LASER"))];
        let error = short(twice.iter().cloned(), "laser").unwrap_err();
        assert!(error.is(Reason::AddressAmbiguous) && error.message().contains("acme/c/printers/laser"), "{error}");
    }

    #[test]
    fn names_at_a_node() {
        assert_eq!(local("printers/laser").unwrap(), (Kind::Printer, "laser".into()));
        for bad in ["laser", "printers/", "printers/a/b", "shares/x", "printers/..", "disks/\u{7}"] {
            assert!(local(bad).unwrap_err().is(Reason::ResourceUnknown), "{bad}");
        }
    }
}
