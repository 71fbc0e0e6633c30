//! Ignore rules: lines in the syntax of gitignore, from the file `.atriumignore` at the top of the folder and from the
//! share's owner. The owner puts both into the share's record, so they travel with the share and hold at every copy.

use common::error::{Error, Reason, Result};
use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::record::{RULES_BYTES_MAX, RULES_LINES_MAX};

/// The file at the top of a shared folder.
pub const RULES_FILE: &str = ".atriumignore";
/// What Atrium itself writes into folders: parts of files that are on their way, and trash. Never shared.
const OWN_PREFIX: &str = ".atrium-";
const PART_SUFFIX: &str = ".atrium-part";

/// Rules that can be asked.
#[derive(Clone, Debug)]
pub struct Rules {
    text: String,
    matcher: Gitignore,
    /// Lines that could not be understood; they are passed over.
    pub mistakes: Vec<String>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { text: String::new(), matcher: Gitignore::empty(), mistakes: Vec::new() }
    }
}

impl Rules {
    /// From lines.
    ///
    /// # Errors
    /// FIELD_INVALID if there are more than 1,000 lines or 16 KiB, or together more than can be matched.
    pub fn new(text: &str) -> Result<Self> {
        if text.len() > RULES_BYTES_MAX || text.lines().nth(RULES_LINES_MAX).is_some() {
            return Err(Error::new(Reason::FieldInvalid, "the ignore rules are too long")
                .why_is("they may have 1,000 lines and 16 KiB, those in .atriumignore included"));
        }
        let mut mistakes = Vec::new();
        let mut builder = GitignoreBuilder::new("");
        for line in text.lines() {
            if let Err(error) = builder.add_line(None, line) {
                mistakes.push(format!("{:?}: {error}", line.chars().take(80).collect::<String>()));
            }
        }
        // Not passed over: without its rules a folder would show more than its person wants.
        let matcher = builder
            .build()
            .map_err(|e| Error::new(Reason::FieldInvalid, "the ignore rules cannot be used").caused_by(e))?;
        Ok(Self { text: text.to_owned(), matcher, mistakes })
    }

    /// The lines.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Is an entry ignored, its parents not being so?
    pub fn ignores(&self, path: &str, is_directory: bool) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        if name.starts_with(OWN_PREFIX) || name.ends_with(PART_SUFFIX) {
            return true;
        }
        matches!(self.matcher.matched(path, is_directory), Match::Ignore(_))
    }

    /// Is an entry or a directory above it ignored?
    pub fn ignores_any(&self, path: &str, is_directory: bool) -> bool {
        let above = path.match_indices('/').any(|(at, _)| self.ignores(&path[..at], true));
        above || self.ignores(path, is_directory)
    }
}

/// The rules of a share: those of the file, then the owner's own.
pub fn joined(file: &str, own: &str) -> String {
    match (file.trim_end(), own.trim_end()) {
        ("", own) => own.to_owned(),
        (file, "") => file.to_owned(),
        (file, own) => format!("{file}\n{own}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_those_of_gitignore() {
        let rules = Rules::new("# build results\n*.o\n/target/\nnotes/*.tmp\n!keep.o\n").unwrap();
        assert!(rules.ignores("a.o", false) && rules.ignores("x/y/a.o", false));
        assert!(!rules.ignores("keep.o", false));
        assert!(rules.ignores("target", true) && !rules.ignores("target", false) && !rules.ignores("x/target", true));
        assert!(rules.ignores("notes/a.tmp", false) && !rules.ignores("a.tmp", false));
        assert!(rules.ignores_any("target/debug/x", false) && !rules.ignores_any("src/x", false));
    }

    #[test]
    fn what_atrium_writes_itself_is_never_shared() {
        let rules = Rules::default();
        assert!(rules.ignores("a/.plan.pdf.atrium-part", false));
        assert!(rules.ignores(".atrium-trash", true));
        assert!(!rules.ignores(".atriumignore", false));
    }

    #[test]
    fn bad_lines_are_told_and_the_others_hold() {
        let rules = Rules::new("a{b\n*.o\n").unwrap();
        assert!(rules.ignores("x.o", false));
        assert!(Rules::new(&"x\n".repeat(1_001)).is_err());
        assert!(Rules::new(&"x".repeat(RULES_BYTES_MAX + 1)).is_err());
    }
}
