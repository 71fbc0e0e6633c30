//! Places that may be on the central server or in the office of peers.
//!
//! A place on the server begins with a word and ':' (`home:notes/a.txt`); a hierarchical address does not
//! (`acme/sales/anna-pc/plans/a.pdf`).

use super::value::{Place, RemotePath, RootArg, Whom, right};
use common::model::{EntryName, Right};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Longest address.
const ADDRESS_MAX: usize = 8 * 1024;

/// Whether it is written like a place on the server: the first part has a ':', or the second one of `home/NAME:`.
pub fn is_server_place(text: &str) -> bool {
    let mut parts = text.split('/');
    let first = parts.next().unwrap_or_default();
    first.contains(':') || (first == "home" && parts.next().is_some_and(|name| name.contains(':')))
}

/// A hierarchical address, or the beginning of one; `*` stands for one whole segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(String);

impl Address {
    /// As it was typed, without '/' at the end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let trimmed = text.trim_end_matches('/');
        if text.len() > ADDRESS_MAX {
            return Err("the address is too long".to_owned());
        }
        for segment in trimmed.split('/') {
            EntryName::new(segment).map_err(|e| {
                format!("{}: {}; write an address like acme/anna-pc/plans, or home:{trimmed}", e.message(), e.why())
            })?;
        }
        Ok(Self(trimmed.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Something to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnyPlace {
    /// On the central server.
    Server(Place),
    /// In the office of peers.
    Peers(Address),
}

impl FromStr for AnyPlace {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if is_server_place(text) { text.parse().map(Self::Server) } else { text.parse().map(Self::Peers) }
    }
}

/// A file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnyPath {
    /// On the central server.
    Server(RemotePath),
    /// In the office of peers.
    Peers(Address),
}

impl FromStr for AnyPath {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if is_server_place(text) { text.parse().map(Self::Server) } else { text.parse().map(Self::Peers) }
    }
}

/// What is shared: a public directory of the server, or a folder of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShareTarget {
    /// `public:NAME`.
    Server(RootArg),
    /// A folder.
    Folder(PathBuf),
}

impl FromStr for ShareTarget {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("home" | "public", _)) => text.parse().map(Self::Server),
            _ if text.is_empty() => Err("name a folder, or public:NAME".to_owned()),
            _ => Ok(Self::Folder(text.into())),
        }
    }
}

/// Whom something is shared with, and with which right: `anna`, `group:sales=write`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WithArg {
    /// Who.
    pub whom: Whom,
    /// What they may do, if it was said.
    pub right: Option<Right>,
}

impl FromStr for WithArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.rsplit_once('=') {
            Some((whom, word)) => Ok(Self { whom: whom.parse()?, right: Some(right(word)?) }),
            None => Ok(Self { whom: text.parse()?, right: None }),
        }
    }
}

/// What `join` is told: an address, a code, or both, in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JoinWords {
    /// HOST or HOST:PORT.
    pub address: Option<String>,
    /// The one-time code.
    pub code: Option<String>,
}

impl JoinWords {
    /// Tells them apart: a code is a number and three words.
    ///
    /// # Errors
    /// A sentence about what is there twice.
    pub fn of(words: &[String]) -> Result<Self, String> {
        let mut found = Self::default();
        for word in words {
            let (place, what) = match is_code(word) {
                true => (&mut found.code, "codes"),
                false => (&mut found.address, "addresses"),
            };
            if place.replace(word.clone()).is_some() {
                return Err(format!("there are two {what}; give one"));
            }
        }
        Ok(found)
    }
}

/// Whether it is written like a code, right or wrong: "7-amber-lion-canal".
fn is_code(text: &str) -> bool {
    let parts: Vec<&str> = text.split(['-', ' ', '_']).filter(|p| !p.is_empty()).collect();
    match parts.as_slice() {
        [number, words @ ..] => {
            words.len() == 3
                && number.bytes().all(|b| b.is_ascii_digit())
                && words.iter().all(|w| w.chars().all(char::is_alphabetic))
        }
        [] => false,
    }
}

/// Reads "yes" or "no".
pub fn yes_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("write yes or no".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_server_and_peers_are_told_apart() {
        assert!(matches!("home:".parse().unwrap(), AnyPlace::Server(_)));
        assert!(matches!("home/anna:x".parse().unwrap(), AnyPlace::Server(_)));
        assert!(matches!("public:plans/x".parse().unwrap(), AnyPath::Server(_)));
        assert!("nonsense:x".parse::<AnyPlace>().is_err());
        let AnyPlace::Peers(address) = "acme/anna-pc/plans/a:b.pdf/".parse().unwrap() else { panic!() };
        assert_eq!((address.as_str(), address.name()), ("acme/anna-pc/plans/a:b.pdf", "a:b.pdf"));
        assert!(matches!("acme/*/printers".parse().unwrap(), AnyPlace::Peers(_)));
        for bad in ["", "/", "acme//x", "../x", "acme/./x", "/etc/passwd"] {
            assert!(bad.parse::<AnyPath>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn folders_and_public_directories_are_told_apart() {
        assert!(matches!("public:plans".parse().unwrap(), ShareTarget::Server(_)));
        assert!(matches!("/home/anna/Plans".parse().unwrap(), ShareTarget::Folder(_)));
        assert!(matches!("a:b".parse().unwrap(), ShareTarget::Folder(_)));
        assert!("public:plans/x".parse::<ShareTarget>().unwrap_err().contains("public:plans"));
        let with: WithArg = "group:sales=write".parse().unwrap();
        assert_eq!(with, WithArg { whom: Whom::Group("sales".into()), right: Some(Right::Write) });
        assert_eq!("anna".parse::<WithArg>().unwrap().right, None);
        assert!("anna=all".parse::<WithArg>().is_err());
    }

    #[test]
    fn address_and_code_may_stand_in_any_order() {
        let of = |words: &[&str]| JoinWords::of(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        let both = of(&["192.0.2.7:7444", "7-amber-lion-canal"]).unwrap();
        assert_eq!(both, of(&["7-amber-lion-canal", "192.0.2.7:7444"]).unwrap());
        assert_eq!(both.address.as_deref(), Some("192.0.2.7:7444"));
        assert_eq!(of(&["7-amber-lyon-canal"]).unwrap().address, None, "a slip is still a code");
        assert_eq!(of(&["anna-pc"]).unwrap().code, None);
        assert_eq!(of(&["7 amber lion canal"]).unwrap().address, None);
        assert!(of(&["a", "b"]).is_err());
        assert!(of(&["7-amber-lion-canal", "8-amber-lion-canal"]).is_err());
    }
}
