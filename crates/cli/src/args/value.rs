//! Reading the values of arguments.

use common::error::Error;
use common::model::{DeviceId, EntryPath, Right, Role, RootName};
use proto::v1;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A place on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemotePath {
    /// Where.
    pub path: EntryPath,
    /// Written with a '/' at the end: the last name is a directory.
    pub into: bool,
}

impl FromStr for RemotePath {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let path = EntryPath::parse(text).map_err(|e| explain(&e))?;
        let into = text.ends_with('/') || path.segments.is_empty();
        Ok(Self { path, into })
    }
}

impl fmt::Display for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}

/// A place to list: an entry, or all public directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `public:`
    AllPublic,
    /// An entry.
    Entry(EntryPath),
}

impl FromStr for Place {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if matches!(text, "public:" | "public:/") {
            return Ok(Self::AllPublic);
        }
        EntryPath::parse(text).map(Self::Entry).map_err(|e| explain(&e))
    }
}

/// A private or public directory itself: `home:`, `public:plans`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootArg(pub RootName);

impl RootArg {
    /// As the contract writes it.
    pub fn wire(&self) -> String {
        self.0.to_string()
    }
}

impl FromStr for RootArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let path = EntryPath::parse(text).map_err(|e| explain(&e))?;
        if path.segments.is_empty() {
            Ok(Self(path.root))
        } else {
            let root = EntryPath { root: path.root, segments: Vec::new() };
            Err(format!("this works on a whole private or public directory, not on a part of it; write {root}"))
        }
    }
}

impl fmt::Display for RootArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        EntryPath { root: self.0.clone(), segments: Vec::new() }.fmt(f)
    }
}

/// Whom a right is for: `anna`, `user:anna`, `group:sales`, `device:ID`, `everyone`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// A user.
    User(String),
    /// A group.
    Group(String),
    /// A device.
    Device(DeviceId),
    /// Every member.
    Everyone,
}

impl Whom {
    /// As the contract writes it.
    pub fn wire(&self) -> v1::Principal {
        use v1::principal::Kind;
        let kind = match self {
            Self::User(name) => Kind::User(name.clone()),
            Self::Group(name) => Kind::Group(name.clone()),
            Self::Device(id) => Kind::Device(id.to_string()),
            Self::Everyone => Kind::Everyone(true),
        };
        v1::Principal { kind: Some(kind) }
    }

    /// From the contract; text for kinds that this program does not know.
    pub fn text_of(principal: Option<&v1::Principal>) -> String {
        use v1::principal::Kind;
        match principal.and_then(|p| p.kind.as_ref()) {
            Some(Kind::User(name)) => format!("user:{name}"),
            Some(Kind::Group(name)) => format!("group:{name}"),
            Some(Kind::Device(id)) => format!("device:{id}"),
            Some(Kind::Everyone(_)) => "everyone".to_owned(),
            None => "unknown".to_owned(),
        }
    }
}

impl FromStr for Whom {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = text.split_once(':').unwrap_or(("user", text));
        match kind {
            _ if text == "everyone" => Ok(Self::Everyone),
            "user" if !name.is_empty() => Ok(Self::User(name.to_owned())),
            "group" if !name.is_empty() => Ok(Self::Group(name.to_owned())),
            "device" => name.parse().map(Self::Device).map_err(|()| {
                "a device id has 64 hexadecimal digits; `atrium admin devices list` shows them".to_owned()
            }),
            _ => Err("write it like anna, group:sales, device:ID or everyone".to_owned()),
        }
    }
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Self::text_of(Some(&self.wire())))
    }
}

/// A grant in one word: `anna=write`, `everyone=read`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantArg {
    /// For whom.
    pub whom: Whom,
    /// What they may do.
    pub right: Right,
}

impl FromStr for GrantArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (whom, word) = text.rsplit_once('=').ok_or("write it like anna=write or everyone=read")?;
        Ok(Self { whom: whom.parse()?, right: right(word)? })
    }
}

/// How long a period of a print quota is, in UTC.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrintPeriodArg {
    /// From midnight
    Day,
    /// From Monday
    Week,
    /// From the first of the month
    Month,
}

impl PrintPeriodArg {
    /// As the contract writes it.
    pub fn wire(self) -> v1::PrintPeriod {
        match self {
            Self::Day => v1::PrintPeriod::Day,
            Self::Week => v1::PrintPeriod::Week,
            Self::Month => v1::PrintPeriod::Month,
        }
    }
}

/// What a quota is for: a user's private directory or a public directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuotaTarget {
    /// A user.
    User(String),
    /// A public directory, as the contract writes it.
    Public(String),
}

impl FromStr for QuotaTarget {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains(':') && !text.is_empty() {
            return Ok(Self::User(text.to_owned()));
        }
        match text.parse::<RootArg>()?.0 {
            RootName::Home(user) => Ok(Self::User(user)),
            root @ RootName::Public(_) => Ok(Self::Public(root.to_string())),
            RootName::OwnHome => Err("name the user: write anna, or public:plans for a public directory".to_owned()),
        }
    }
}

/// Reads "see", "read", "write" or "manage".
pub fn right(text: &str) -> Result<Right, String> {
    (1..=4)
        .filter_map(Right::from_number)
        .find(|r| r.word() == text)
        .ok_or_else(|| "a right is one of see, read, write, manage".to_owned())
}

/// Reads "guest", "member", "auditor" or "admin".
pub fn role(text: &str) -> Result<Role, String> {
    (1..=4)
        .filter_map(Role::from_number)
        .find(|r| r.word() == text)
        .ok_or_else(|| "a role is one of guest, member, auditor, admin".to_owned())
}

/// Reads "30s", "5m", "8h", "7d"; a number alone is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let help = || "write a time like 30s, 5m, 8h or 7d".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| help())?;
    let factor = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(help()),
    };
    let seconds = number.checked_mul(factor).filter(|s| (1..=366 * 86_400).contains(s));
    seconds.map(Duration::from_secs).ok_or_else(|| "the time must lie between 1 second and 366 days".to_owned())
}

/// Reads "64MiB", "50G", "1.5GB", "4096", "none" (0): a number with a unit. K, M, G, T are powers of 1,024; KB, MB, GB,
/// TB powers of 1,000.
pub fn size(text: &str) -> Result<u64, String> {
    let help = || "write a size like 500MiB, 50GiB or 1.5GB; none means no limit".to_owned();
    if text == "none" {
        return Ok(0);
    }
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(help()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().map_err(|_| help())?;
    let mut bytes = whole.checked_mul(factor).ok_or_else(help)?;
    if !fraction.is_empty() {
        let digits: u64 = fraction.get(..fraction.len().min(6)).and_then(|f| f.parse().ok()).ok_or_else(help)?;
        let scale = 10u128.pow(fraction.len().min(6) as u32);
        bytes = bytes.checked_add((u128::from(digits) * u128::from(factor) / scale) as u64).ok_or_else(help)?;
    }
    Ok(bytes)
}

/// An error in one line, for the parser's own message.
fn explain(error: &Error) -> String {
    format!("{}: {}; {}", error.message(), error.why(), error.fix())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let file: RemotePath = "home:notes/a.txt".parse().unwrap();
        assert!(!file.into);
        assert!("home:notes/".parse::<RemotePath>().unwrap().into);
        assert!("public:plans".parse::<RemotePath>().unwrap().into);
        assert!("notes/a.txt".parse::<RemotePath>().unwrap_err().contains("home:notes/a.txt"));
        assert_eq!("public:".parse::<Place>().unwrap(), Place::AllPublic);
        assert_eq!("public:plans/".parse::<RootArg>().unwrap().wire(), "public/plans");
        assert!("public:plans/x".parse::<RootArg>().unwrap_err().contains("write public:plans"));
    }

    #[test]
    fn people_and_grants() {
        assert_eq!("anna".parse::<Whom>().unwrap(), Whom::User("anna".into()));
        assert_eq!("group:sales".parse::<Whom>().unwrap().to_string(), "group:sales");
        assert_eq!("everyone".parse::<Whom>().unwrap(), Whom::Everyone);
        assert_eq!("user:everyone".parse::<Whom>().unwrap(), Whom::User("everyone".into()));
        assert!("group:".parse::<Whom>().is_err());
        assert!("device:12".parse::<Whom>().is_err());
        let grant: GrantArg = "group:sales=write".parse().unwrap();
        assert_eq!(grant.right, Right::Write);
        assert!("anna=all".parse::<GrantArg>().is_err());
        assert_eq!("anna".parse::<QuotaTarget>().unwrap(), QuotaTarget::User("anna".into()));
        assert_eq!("public:plans".parse::<QuotaTarget>().unwrap(), QuotaTarget::Public("public/plans".into()));
        assert!("home:".parse::<QuotaTarget>().is_err());
    }

    #[test]
    fn times_and_sizes() {
        assert_eq!(duration("8h").unwrap(), Duration::from_secs(28_800));
        assert_eq!(duration("90").unwrap(), Duration::from_secs(90));
        for bad in ["", "h", "0s", "5y", "-1s", "99999999999999999999s", "400d", "1.5h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(size("50GiB").unwrap(), 50 << 30);
        assert_eq!(size("1.5GB").unwrap(), 1_500_000_000);
        assert_eq!(size("none").unwrap(), 0);
        assert_eq!(size("0.25k").unwrap(), 256);
        for bad in ["", "x", "5x", "1.2.3k", "99999999999999999999", "20000000T", "-1", "1."] {
            assert_eq!(size(bad).is_err(), bad != "1.", "{bad}");
        }
    }
}
