//! Exports that the store keeps beside itself.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::ExportSummary;
use super::directory;
use crate::error::{Error, Reason, Result};

const PREFIX: &str = "rev-";
const SUFFIX: &str = ".atr";
const UNFINISHED: &str = "unfinished-snapshot";

/// Path of a revision's snapshot. The number has a fixed width, so that names sort like revisions.
fn path(snapshots: &Path, revision: u64) -> PathBuf {
    snapshots.join(format!("{PREFIX}{revision:020}{SUFFIX}"))
}

fn revision_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
}

/// The snapshots that are there, oldest first.
pub(super) fn list(snapshots: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if snapshots.is_dir() {
        for entry in fs::read_dir(snapshots)? {
            let entry = entry?;
            if let Some(revision) = entry.file_name().to_str().and_then(revision_of) {
                found.push((revision, entry.path()));
            }
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Writes a snapshot so that it is either wholly there or not at all, then removes all but the newest `keep`.
///
/// A crash leaves at most one unfinished file, which the next snapshot overwrites.
pub(super) fn write(
    snapshots: &Path,
    keep: usize,
    export: impl FnOnce(&mut dyn Write) -> Result<ExportSummary>,
) -> Result<PathBuf> {
    directory::create(snapshots)?;
    let unfinished = snapshots.join(UNFINISHED);
    let mut options = File::options();
    options.create(true).write(true).truncate(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut out = BufWriter::with_capacity(1 << 20, options.open(&unfinished)?);
    let summary = match export(&mut out) {
        Ok(summary) => summary,
        Err(error) => {
            drop(out);
            fs::remove_file(&unfinished)?;
            return Err(error);
        }
    };
    let file = out
        .into_inner()
        .map_err(|e| Error::new(Reason::IoFailed, "a snapshot could not be written").caused_by(e.into_error()))?;
    file.sync_all()?;
    drop(file);
    let finished = path(snapshots, summary.revision);
    fs::rename(&unfinished, &finished)?;
    directory::sync(snapshots)?;
    let all = list(snapshots)?;
    for old in all.iter().rev().skip(keep.max(1)) {
        fs::remove_file(old)?;
    }
    Ok(finished)
}
