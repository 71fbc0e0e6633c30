//! Roots and paths below them.

use super::name::EntryName;
use crate::error::{Error, Reason, Result};
use std::fmt;

/// Most segments of a path.
pub const MAX_DEPTH: usize = 128;
/// Longest path in bytes.
pub const MAX_PATH_BYTES: usize = 4096;

/// Which root: "home" (the caller's), "home/anna" or "public/plans".
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum RootName {
    /// The caller's own private directory.
    OwnHome,
    /// A user's private directory.
    Home(String),
    /// A public directory.
    Public(EntryName),
}

impl RootName {
    /// Reads "home", "home/NAME" or "public/NAME".
    ///
    /// # Errors
    /// `PATH_INVALID`.
    pub fn parse(text: &str) -> Result<Self> {
        match text.split_once('/') {
            None if text == "home" => return Ok(Self::OwnHome),
            Some(("home", user)) if !user.is_empty() && user.len() <= 64 && !user.contains('/') => {
                return Ok(Self::Home(user.to_owned()));
            }
            Some(("public", name)) => {
                if let Ok(name) = EntryName::new(name) {
                    return Ok(Self::Public(name));
                }
            }
            _ => {}
        }
        Err(Error::new(Reason::PathInvalid, "the root is not \"home\", \"home/NAME\" or \"public/NAME\""))
    }
}

impl fmt::Display for RootName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnHome => f.write_str("home"),
            Self::Home(user) => write!(f, "home/{user}"),
            Self::Public(name) => write!(f, "public/{name}"),
        }
    }
}

/// A path below a root; no segments is the root itself.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EntryPath {
    /// Which root.
    pub root: RootName,
    /// The way down.
    pub segments: Vec<EntryName>,
}

impl EntryPath {
    /// Checks a root and a '/'-separated path.
    ///
    /// # Errors
    /// `PATH_INVALID`, `NAME_INVALID`.
    pub fn new(root: &str, path: &str) -> Result<Self> {
        let root = RootName::parse(root)?;
        if path.len() > MAX_PATH_BYTES {
            return Err(Error::new(Reason::PathInvalid, "the path is too long").why_is("it has more than 4,096 bytes"));
        }
        let segments: Vec<EntryName> = match path {
            "" => Vec::new(),
            _ => path.split('/').map(EntryName::new).collect::<Result<_>>()?,
        };
        if segments.len() > MAX_DEPTH {
            return Err(Error::new(Reason::PathInvalid, "the path is too deep").why_is("it has more than 128 parts"));
        }
        Ok(Self { root, segments })
    }

    /// Reads what people type: `home:notes/a.txt`, `public:plans/x.pdf`, `home:`, `home/anna:x`. One trailing '/' is
    /// passed over. `public:` alone is not an entry (it is the list of public directories).
    ///
    /// # Errors
    /// `PATH_INVALID`, `NAME_INVALID`.
    pub fn parse(text: &str) -> Result<Self> {
        let (scheme, rest) = text
            .split_once(':')
            .ok_or_else(|| Error::new(Reason::PathInvalid, format!("{text:?} does not name a place on the server")))?;
        let rest = rest.strip_prefix('/').unwrap_or(rest);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        match scheme {
            "public" => {
                let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
                Self::new(&format!("public/{name}"), path)
            }
            _ if scheme == "home" || scheme.starts_with("home/") => Self::new(scheme, rest),
            _ => Err(Error::new(Reason::PathInvalid, format!("{text:?} does not name a place on the server"))),
        }
    }

    /// The '/'-separated path below the root.
    pub fn relative(&self) -> String {
        let parts: Vec<&str> = self.segments.iter().map(EntryName::as_str).collect();
        parts.join("/")
    }

    /// The last segment.
    pub fn name(&self) -> Option<&EntryName> {
        self.segments.last()
    }

    /// The path without its last segment; `None` for a root.
    pub fn parent(&self) -> Option<EntryPath> {
        let (_, rest) = self.segments.split_last()?;
        Some(EntryPath { root: self.root.clone(), segments: rest.to_vec() })
    }

    /// The path of a child.
    pub fn child(&self, name: EntryName) -> EntryPath {
        let mut segments = self.segments.clone();
        segments.push(name);
        EntryPath { root: self.root.clone(), segments }
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.root {
            RootName::Public(name) if self.segments.is_empty() => write!(f, "public:{name}"),
            RootName::Public(name) => write!(f, "public:{name}/{}", self.relative()),
            root => write!(f, "{root}:{}", self.relative()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_is_read_and_written_back() {
        for text in ["home:", "home:notes/a.txt", "public:plans", "public:plans/x.pdf", "home/anna:b"] {
            assert_eq!(EntryPath::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(EntryPath::parse("public:plans/").unwrap().to_string(), "public:plans");
        assert_eq!(EntryPath::parse("home:/notes/").unwrap().to_string(), "home:notes");
    }

    #[test]
    fn hostile_paths_are_refused() {
        for bad in
            ["", "x", "public:", "home:a//b", "home:../x", "home:a/./b", "other:x", "home/:x", "home/a/b:x", "c:\\x"]
        {
            assert!(EntryPath::parse(bad).is_err(), "{bad:?}");
        }
        assert!(EntryPath::new("home", &"a/".repeat(200)).is_err());
        assert!(EntryPath::new("home", &vec!["a"; 129].join("/")).is_err());
    }
}
