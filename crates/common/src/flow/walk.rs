//! Looking through a local directory, depth first, on a thread of its own.

use super::local::{is_part, local_error};
use crate::error::{Error, Reason, Result};
use crate::model::{EntryName, EntryPath};
use std::fs::{self, DirEntry};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// Deepest path of the contract.
const MAX_DEPTH: usize = 128;
/// Longest path of the contract.
const MAX_PATH: usize = 4096;
/// Finds that wait to be looked at.
pub(super) const WAITING: usize = 2048;

/// What was found. Every `Enter` is followed by what the directory holds, then by `Leave`.
#[derive(Debug)]
pub(super) enum Found {
    /// A directory begins.
    Enter { to: EntryPath },
    /// A regular file.
    File { local: PathBuf, to: EntryPath, name: String, size: u64 },
    /// The directory ends; `empty` if there was no file or directory in it.
    Leave { to: EntryPath, empty: bool },
    /// Neither a file nor a directory.
    Skipped { name: String, why: &'static str },
    /// Cannot be read, or cannot be named on the server.
    Failed { name: String, error: Error },
}

/// Walks until done or until nobody listens any more. Symbolic links are reported, never followed, except for `root`
/// itself.
pub(super) fn walk(root: &Path, to: &EntryPath, found: &mpsc::Sender<Found>) {
    // Ends early only if the receiver has gone.
    let _ = directory(root, to, String::new(), found);
}

struct Gone;

fn directory(local: &Path, to: &EntryPath, name: String, found: &mpsc::Sender<Found>) -> Result<(), Gone> {
    let send = |f: Found| found.blocking_send(f).map_err(|_| Gone);
    let entries = match fs::read_dir(local) {
        Ok(entries) => entries,
        Err(e) => return send(Found::Failed { name, error: local_error(local, "read", e) }),
    };
    send(Found::Enter { to: to.clone() })?;
    let mut empty = true;
    let mut directories = Vec::new();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                send(Found::Failed { name: name.clone(), error: local_error(local, "read", e) })?;
                break;
            }
        };
        match look(&entry, to, &name) {
            Found::Enter { to } => {
                empty = false;
                directories.push((entry.path(), to));
            }
            other => {
                empty &= matches!(other, Found::Skipped { .. });
                send(other)?;
            }
        }
    }
    // After the handle of this directory is closed: depth costs no open files, and no more than 128 frames.
    for (local, to) in directories {
        let name = join(&name, to.name().map_or("", EntryName::as_str));
        directory(&local, &to, name, found)?;
    }
    send(Found::Leave { to: to.clone(), empty })
}

fn look(entry: &DirEntry, parent: &EntryPath, parent_name: &str) -> Found {
    let raw = entry.file_name();
    let name = join(parent_name, &raw.to_string_lossy());
    let failed = |name: String, e| Found::Failed { name, error: local_error(&entry.path(), "read", e) };
    let kind = match entry.file_type() {
        Ok(kind) => kind,
        Err(e) => return failed(name, e),
    };
    if kind.is_symlink() {
        return Found::Skipped { name, why: "a symbolic link" };
    }
    if !kind.is_dir() && !kind.is_file() {
        return Found::Skipped { name, why: "a device, a pipe or a socket" };
    }
    let Some(text) = raw.to_str() else {
        let error =
            Error::new(Reason::NameInvalid, format!("the name {raw:?} cannot be used")).why_is("it is not UTF-8");
        return Found::Failed { name, error };
    };
    if kind.is_file() && is_part(text) {
        return Found::Skipped { name, why: "an unfinished download" };
    }
    let to = match child(parent, text) {
        Ok(to) => to,
        Err(error) => return Found::Failed { name, error },
    };
    if kind.is_dir() {
        return Found::Enter { to };
    }
    match entry.metadata() {
        Ok(meta) => Found::File { local: entry.path(), to, name, size: meta.len() },
        Err(e) => failed(name, e),
    }
}

/// The path of a child, within the contract's bounds.
pub(super) fn child(parent: &EntryPath, name: &str) -> Result<EntryPath> {
    let child = parent.child(EntryName::new(name)?);
    let len: usize = child.segments.iter().map(|s| s.as_str().len() + 1).sum();
    if child.segments.len() > MAX_DEPTH || len > MAX_PATH + 1 {
        return Err(Error::new(Reason::PathInvalid, "the path is too long or too deep")
            .why_is("it would have more than 128 parts or 4,096 bytes"));
    }
    Ok(child)
}

/// A path below the tree, for reports.
pub(super) fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}
