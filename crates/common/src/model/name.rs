//! Names of files and directories.

use crate::error::{Error, Reason, Result};
use std::fmt;
use unicode_normalization::UnicodeNormalization;

/// Longest name in bytes, as on every common file system.
pub const MAX_NAME_BYTES: usize = 255;

/// A valid name: 1 to 255 bytes of UTF-8, no '/', no control characters, not "." or "..".
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EntryName(String);

impl EntryName {
    /// Checks a name.
    ///
    /// # Errors
    /// `NAME_INVALID`.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let problem = if name.is_empty() {
            "it is empty"
        } else if name.len() > MAX_NAME_BYTES {
            "it is longer than 255 bytes"
        } else if name == "." || name == ".." {
            "it is '.' or '..'"
        } else if name.contains('/') {
            "it contains '/'"
        } else if name.chars().any(is_forbidden) {
            "it contains control or invisible direction characters"
        } else {
            return Ok(Self(name));
        };
        Err(Error::new(Reason::NameInvalid, format!("the name {:?} cannot be used", shorten(&name))).why_is(problem))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key under which the name is unique in its directory.
    pub fn key(&self, case_sensitive: bool) -> String {
        if case_sensitive { self.0.clone() } else { fold(&self.0) }
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Control characters (C0, DEL, C1), and the bidirectional controls that make one name look like another.
fn is_forbidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}')
}

fn shorten(name: &str) -> String {
    name.chars().take(64).collect()
}

/// Unicode default caseless matching (Unicode 3.13, D145): NFD, case fold, NFC. Names that fold alike cannot stand side
/// by side where letter case does not count.
pub fn fold(name: &str) -> String {
    if name.is_ascii() {
        return name.to_ascii_lowercase();
    }
    let folded = caseless::default_case_fold_str(&name.nfd().collect::<String>());
    folded.nfc().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        for bad in ["", ".", "..", "a/b", "a\0", "a\nb", "\u{7f}", "\u{85}", "x\u{202e}gpj.exe", &"x".repeat(256)] {
            assert!(EntryName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "...", ".hidden", "Straße.txt", "a b", "日本", "con", &"x".repeat(255)] {
            assert!(EntryName::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn folding_joins_what_other_systems_cannot_tell_apart() {
        assert_eq!(fold("PLAN.txt"), fold("plan.TXT"));
        assert_eq!(fold("e\u{301}"), fold("\u{e9}"));
        assert_eq!(fold("STRASSE"), fold("straße"));
        assert_ne!(fold("a"), fold("b"));
    }
}
