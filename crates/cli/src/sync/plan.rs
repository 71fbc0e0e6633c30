//! What to do about two trees and their common past. No input or output here.

use super::conflict::ConflictNames;
use common::model::fold;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Digest of a file's manifest: equal digests mean equal content.
pub type Digest = [u8; 32];

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// A file with this content.
    File(Digest),
    /// A directory.
    Directory,
}

/// Paths below the synchronised directory, '/'-separated. The directory itself is not in it. Each entry's parents are.
pub type Tree = BTreeMap<String, Node>;

/// What an action expects to find where it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Absent,
    /// What the tree says.
    AsSeen,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Both sides agree already; remember it.
    Record(String),
    /// Both sides have lost it; forget it.
    Forget(String),
    /// Give the file here a conflict name, to keep it beside the server's.
    RenameLocal {
        /// Now.
        path: String,
        /// Then.
        to: String,
    },
    /// Give the file on the server a conflict name, to keep it beside the directory from here.
    MoveRemote {
        /// Now.
        path: String,
        /// Then.
        to: String,
    },
    /// Move to the trash here; a directory with everything in it.
    DeleteLocal(String),
    /// Move to the trash of the server; a directory with everything in it.
    DeleteRemote(String),
    /// Make a directory here.
    MakeLocal(String),
    /// Make a directory on the server.
    MakeRemote(String),
    /// Put the file on the server.
    Upload {
        /// Which.
        path: String,
        /// Expected there.
        before: Before,
    },
    /// Get the file from the server.
    Download {
        /// Which.
        path: String,
        /// Expected here.
        before: Before,
    },
}

/// What is to be done, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Steps.
    pub actions: Vec<Action>,
    /// Path and conflict name of each file whose both versions are kept.
    pub conflicts: Vec<(String, String)>,
}

impl Plan {
    /// Steps that change something.
    pub fn changes(&self) -> impl Iterator<Item = &Action> {
        self.actions.iter().filter(|a| !matches!(a, Action::Record(_) | Action::Forget(_)))
    }
}

/// Decides. `names` gives names for conflict copies.
pub fn plan(local: &Tree, remote: &Tree, base: &Tree, names: &mut ConflictNames) -> Plan {
    let mut planner = Planner { names, needed: HashSet::new(), actions: Vec::new(), conflicts: Vec::new() };
    let paths: BTreeSet<&String> = local.keys().chain(remote.keys()).chain(base.keys()).collect();
    // Deepest first: whether a directory must stay depends on what stays below it.
    let mut paths: Vec<&String> = paths.into_iter().collect();
    paths.sort_by_key(|p| std::cmp::Reverse(depth(p)));
    for path in paths {
        planner.decide(path, local.get(path), remote.get(path), base.get(path));
    }
    planner.finish(local, remote)
}

fn depth(path: &str) -> usize {
    path.bytes().filter(|b| *b == b'/').count()
}

/// Whether `path` lies below `directory`.
pub fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

struct Planner<'a> {
    names: &'a mut ConflictNames,
    /// Directories that something below needs.
    needed: HashSet<String>,
    actions: Vec<Action>,
    conflicts: Vec<(String, String)>,
}

impl Planner<'_> {
    fn decide(&mut self, path: &str, local: Option<&Node>, remote: Option<&Node>, base: Option<&Node>) {
        use Node::{Directory, File};
        let needed = self.needed.contains(path);
        let at = || path.to_owned();
        match (local, remote) {
            (None, None) => return self.act(Action::Forget(at())),
            (Some(l), Some(r)) if l == r => {
                if base != Some(l) {
                    self.act(Action::Record(at()));
                }
            }
            (Some(File(_)), Some(File(_))) => {
                if local == base {
                    self.act(Action::Download { path: at(), before: Before::AsSeen });
                } else if remote == base {
                    self.act(Action::Upload { path: at(), before: Before::AsSeen });
                } else {
                    self.keep_both_here(path);
                    self.act(Action::Download { path: at(), before: Before::Absent });
                }
            }
            (Some(_), None) if local == base && !needed => return self.act(Action::DeleteLocal(at())),
            (Some(File(_)), None) => self.act(Action::Upload { path: at(), before: Before::Absent }),
            (Some(Directory), None) => self.act(Action::MakeRemote(at())),
            (None, Some(_)) if remote == base && !needed => return self.act(Action::DeleteRemote(at())),
            (None, Some(File(_))) => self.act(Action::Download { path: at(), before: Before::Absent }),
            (None, Some(Directory)) => self.act(Action::MakeLocal(at())),
            (Some(Directory), Some(_)) => {
                if remote == base {
                    self.act(Action::DeleteRemote(at()));
                    self.act(Action::MakeRemote(at()));
                } else if local == base && !needed {
                    self.act(Action::DeleteLocal(at()));
                    self.act(Action::Download { path: at(), before: Before::Absent });
                } else {
                    self.keep_both_there(path);
                    self.act(Action::MakeRemote(at()));
                }
            }
            (Some(File(_)), Some(Directory)) => {
                if local == base {
                    self.act(Action::DeleteLocal(at()));
                    self.act(Action::MakeLocal(at()));
                } else if remote == base && !needed {
                    self.act(Action::DeleteRemote(at()));
                    self.act(Action::Upload { path: at(), before: Before::Absent });
                } else {
                    self.keep_both_here(path);
                    self.act(Action::MakeLocal(at()));
                }
            }
        }
        // Something stays at this path, so its parents must be directories.
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.needed.insert(parent.to_owned());
        }
    }

    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// The file here makes room under a conflict name and goes to the server under it.
    fn keep_both_here(&mut self, path: &str) {
        let to = self.names.name_for(path);
        self.act(Action::RenameLocal { path: path.to_owned(), to: to.clone() });
        self.act(Action::Upload { path: to.clone(), before: Before::Absent });
        self.conflicts.push((path.to_owned(), to));
    }

    /// The file on the server makes room under a conflict name and comes here under it.
    fn keep_both_there(&mut self, path: &str) {
        let to = self.names.name_for(path);
        self.act(Action::MoveRemote { path: path.to_owned(), to: to.clone() });
        self.act(Action::Download { path: to.clone(), before: Before::Absent });
        self.conflicts.push((path.to_owned(), to));
    }

    /// Brings the steps into an order in which content is safe on both sides before anything is removed, except where
    /// a removal must make room for what replaces it.
    fn finish(self, local: &Tree, remote: &Tree) -> Plan {
        let mut created_local = HashSet::new();
        let mut created_remote = HashSet::new();
        for action in &self.actions {
            match action {
                Action::MakeLocal(path) | Action::Download { path, .. } => created_local.insert(fold(path)),
                Action::MakeRemote(path) | Action::Upload { path, .. } => created_remote.insert(fold(path)),
                _ => continue,
            };
        }
        let gone_local = deleted_directories(&self.actions, local, |a| match a {
            Action::DeleteLocal(path) => Some(path),
            _ => None,
        });
        let gone_remote = deleted_directories(&self.actions, remote, |a| match a {
            Action::DeleteRemote(path) => Some(path),
            _ => None,
        });
        let mut ordered: Vec<(u8, usize, Action)> = Vec::with_capacity(self.actions.len());
        for action in self.actions {
            let (stage, order) = match &action {
                Action::Record(_) | Action::Forget(_) => (0, 0),
                Action::RenameLocal { .. } | Action::MoveRemote { .. } => (1, 0),
                // Whatever goes with a directory needs no step of its own.
                Action::DeleteLocal(path) if below_any(path, &gone_local) => continue,
                Action::DeleteRemote(path) if below_any(path, &gone_remote) => continue,
                Action::DeleteLocal(path) => (if created_local.contains(&fold(path)) { 2 } else { 5 }, 0),
                Action::DeleteRemote(path) => (if created_remote.contains(&fold(path)) { 2 } else { 5 }, 0),
                Action::MakeLocal(path) | Action::MakeRemote(path) => (3, depth(path)),
                Action::Upload { .. } | Action::Download { .. } => (4, 0),
            };
            ordered.push((stage, order, action));
        }
        ordered.sort_by_key(|(stage, order, _)| (*stage, *order));
        Plan { actions: ordered.into_iter().map(|(_, _, action)| action).collect(), conflicts: self.conflicts }
    }
}

fn deleted_directories<'a>(
    actions: &'a [Action],
    tree: &Tree,
    path_of: impl Fn(&'a Action) -> Option<&'a String>,
) -> HashSet<String> {
    actions.iter().filter_map(path_of).filter(|p| tree.get(*p) == Some(&Node::Directory)).cloned().collect()
}

fn below_any(path: &str, directories: &HashSet<String>) -> bool {
    path.match_indices('/').any(|(i, _)| directories.contains(&path[..i]))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
