//! What of a shared folder is not shared, and why.

use proto::peer::v1::NodeProblem;
use std::collections::BTreeMap;

use super::entry::is_below;

/// Problems kept for one share; more are counted.
const KEPT: usize = 1_000;
/// Problems shown for one share.
pub const SHOWN: usize = 100;

/// Why something is not shared, or not as one might think.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Problem {
    /// The name is not one that every system can have.
    Name(String),
    /// A symbolic link; links are never followed.
    Link,
    /// A device, socket or pipe.
    Special,
    /// Another file system is mounted there.
    OtherFileSystem,
    /// It could not be read.
    Unreadable(String),
    /// It is written to all the time.
    Changing,
    /// The path is too long or too deep.
    TooLong,
    /// The file has more chunks than an entry can have.
    TooLarge,
    /// The share has as many entries as an index can have.
    TooMany,
    /// Another name differs only in letter case or Unicode form. Both are shared.
    CaseClash(String),
    /// The content has changed and the file's times have not. The old content is not given out any longer.
    SilentChange,
    /// A line of the ignore rules.
    Rule(String),
    /// The shared folder itself.
    Folder(String),
    /// Changes are not noticed at once.
    Watch(String),
}

impl Problem {
    fn words(&self) -> (&'static str, String, &'static str) {
        match self {
            Self::Name(why) => ("NAME_INVALID", why.clone(), "rename it"),
            Self::Link => (
                "LINK_NOT_SHARED",
                "it is a symbolic link; links are never followed, since they can lead out of the folder".into(),
                "put the file itself into the folder, or share the folder that it leads to",
            ),
            Self::Special => {
                ("SPECIAL_FILE", "it is a device, a socket or a pipe".into(), "move it out of the folder, or ignore it")
            }
            Self::OtherFileSystem => (
                "OTHER_FILE_SYSTEM",
                "another file system is mounted there; when it is away, its files would seem deleted".into(),
                "share it by itself",
            ),
            Self::Unreadable(why) => ("UNREADABLE", why.clone(), "give yourself the right to read it, or ignore it"),
            Self::Changing => (
                "FILE_CHANGING",
                "a program writes to it all the time; only whole versions are shared".into(),
                "it is shared as soon as it rests; or ignore it",
            ),
            Self::TooLong => {
                ("PATH_INVALID", "its path has more than 4,096 bytes or 128 parts".into(), "move it further up")
            }
            Self::TooLarge => ("FILE_TOO_LARGE", "it has more than 1,500,000 chunks".into(), "divide it"),
            Self::TooMany => ("SHARE_FULL", "the share has 4,000,000 entries".into(), "share its parts one by one"),
            Self::CaseClash(other) => (
                "NAME_CLASH",
                format!(
                    "it differs from {other:?} only in letter case or Unicode form: Windows and macOS keep one of them"
                ),
                "rename one of them",
            ),
            Self::SilentChange => (
                "CONTENT_DAMAGED",
                "its content has changed and its times have not: the disk may be damaged".into(),
                "compare it with a copy; `touch` it if it is as it should be",
            ),
            Self::Rule(why) => ("IGNORE_RULE_INVALID", why.clone(), "correct the line"),
            Self::Folder(why) => {
                ("FOLDER_CHANGED", why.clone(), "attach its disk or bring it back; or share the new folder again")
            }
            Self::Watch(why) => (
                "NOT_WATCHED",
                why.clone(),
                "raise fs.inotify.max_user_watches; until then changes are seen by rescans",
            ),
        }
    }
}

/// The problems of one share. Beyond 1,000, only their number is known.
#[derive(Clone, Debug, Default)]
pub struct Problems {
    by_path: BTreeMap<(String, &'static str), Problem>,
    more: u64,
}

impl Problems {
    /// Notes one.
    pub fn add(&mut self, path: &str, problem: Problem) {
        let key = (path.to_owned(), problem.words().0);
        if self.by_path.len() >= KEPT && !self.by_path.contains_key(&key) {
            self.more += 1;
            return;
        }
        self.by_path.insert(key, problem);
    }

    /// Forgets those of a path, and those below it or not.
    pub fn clear(&mut self, path: &str, below: bool) {
        if path.is_empty() && below {
            *self = Self::default();
        } else {
            self.by_path.retain(|(p, _), _| if below { !is_below(p, path) } else { p != path });
        }
    }

    /// Forgets those of one path but for what a look at it alone cannot tell: clashes of names, and what is wrong with rules.
    pub fn clear_own(&mut self, path: &str) {
        let stays = |problem: &Problem| matches!(problem, Problem::CaseClash(_) | Problem::Rule(_));
        self.by_path.retain(|(p, _), problem| p != path || stays(problem));
    }

    /// Forgets those of the entries of one directory, but for what is wrong with rules: a look does not tell that.
    pub fn clear_entries(&mut self, directory: &str) {
        let begin = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let own = |path: &str| path.strip_prefix(begin.as_str()).is_some_and(|n| !n.is_empty() && !n.contains('/'));
        let below = self.by_path.range((begin.clone(), "")..).take_while(|((p, _), _)| p.starts_with(&begin));
        let gone: Vec<_> = below
            .filter(|((p, _), problem)| own(p) && !matches!(problem, Problem::Rule(_)))
            .map(|(key, _)| key.clone())
            .collect();
        gone.iter().for_each(|key| drop(self.by_path.remove(key)));
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.by_path.len() as u64 + self.more
    }

    /// Is there one of this sort about the path?
    pub fn has(&self, path: &str, reason: &str) -> bool {
        self.by_path.iter().any(|((p, r), _)| p == path && *r == reason)
    }

    /// The first 100, for people.
    pub fn shown(&self) -> Vec<NodeProblem> {
        let show = |((path, reason), problem): (&(String, &'static str), &Problem)| {
            let (_, why, fix) = problem.words();
            let what = if path.is_empty() { "the shared folder".to_owned() } else { printable(path) };
            NodeProblem { reason: (*reason).to_owned(), message: what, why, fix: fix.to_owned() }
        };
        self.by_path.iter().take(SHOWN).map(show).collect()
    }
}

/// A path with everything that could disturb a terminal escaped.
pub fn printable(path: &str) -> String {
    path.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_bounded_and_go_when_their_path_is_looked_at_again() {
        let mut problems = Problems::default();
        (0..5_000).for_each(|i| problems.add(&format!("d/{i}"), Problem::Link));
        assert_eq!(problems.count(), 5_000);
        assert_eq!(problems.shown().len(), SHOWN);
        problems.add("d/deep/x", Problem::Link);
        problems.clear_entries("d");
        assert!(!problems.has("d/1", "LINK_NOT_SHARED"));
        problems.add("d/deep/x", Problem::Link);
        problems.clear_entries("d");
        assert!(problems.has("d/deep/x", "LINK_NOT_SHARED"));
        problems.clear("d", true);
        problems.add("x\u{1b}[31m", Problem::Special);
        assert!(problems.shown().iter().all(|p| !p.message.contains('\u{1b}')));
        problems.clear("", true);
        assert_eq!(problems.count(), 0);
    }
}
