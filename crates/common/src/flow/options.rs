//! What callers choose, and what they get back.

use crate::error::Error;
use crate::model::{EntryPath, UploadId};
use crate::retry::RetryPolicy;
use proto::v1;
use std::path::PathBuf;
use std::time::SystemTime;

/// What must be at the target when the file is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expect {
    /// Whatever is there becomes an old version.
    #[default]
    Any,
    /// Nothing, else ENTRY_EXISTS.
    Absent,
    /// This version, else VERSION_STALE.
    Version(u64),
}

impl Expect {
    pub(super) fn message(self) -> v1::file_commit::Expected {
        match self {
            Self::Any => v1::file_commit::Expected::Any(true),
            Self::Absent => v1::file_commit::Expected::Absent(true),
            Self::Version(version) => v1::file_commit::Expected::Version(version),
        }
    }
}

/// How to put one file.
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    /// What must be there.
    pub expect: Expect,
    /// Further files whose chunks may be reused, at most 15; the target itself always is one.
    pub bases: Vec<EntryPath>,
    /// Make missing parent directories.
    pub make_parents: bool,
    /// Permission bits; the local file's unless told.
    pub mode: Option<u32>,
    /// Modification time; the local file's unless told.
    pub modified: Option<SystemTime>,
    /// Goes on with this upload, whose chunks may have arrived in part; a new one unless told.
    pub upload: Option<UploadId>,
    /// Of the caller's lock, if it holds one; 0 otherwise.
    pub fencing_token: u64,
    /// Give back the present entry, without a new version, if the content is the same.
    pub skip_unchanged: bool,
    /// How long to go on when the server is away.
    pub retry: RetryPolicy,
}

/// One of many files to put.
#[derive(Clone, Debug)]
pub struct PutItem {
    /// The file here.
    pub local: PathBuf,
    /// Its place there.
    pub to: EntryPath,
    /// What must be there.
    pub expect: Expect,
}

/// How to put a directory.
#[derive(Clone, Debug, Default)]
pub struct PutTreeOptions {
    /// What must be at each file's place. [`Expect::Version`] makes no sense here and is taken as [`Expect::Any`].
    pub expect: Expect,
    /// Put every file, even if the server has the same content.
    pub even_unchanged: bool,
    /// How long to go on when the server is away.
    pub retry: RetryPolicy,
}

/// How to get one file.
#[derive(Clone, Debug)]
pub struct GetOptions {
    /// Version; 0 is the present one.
    pub version: u64,
    /// Replace what is at the target; ENTRY_EXISTS otherwise.
    pub replace: bool,
    /// Wait until file and directory are on the disk. Off unless told: a file that was got can be got again.
    pub sync: bool,
    /// How long to go on when the server is away.
    pub retry: RetryPolicy,
}

impl Default for GetOptions {
    fn default() -> Self {
        Self { version: 0, replace: true, sync: false, retry: RetryPolicy::default() }
    }
}

/// How to get a directory.
#[derive(Clone, Debug)]
pub struct GetTreeOptions {
    /// Replace files that are there and differ; otherwise they are problems with ENTRY_EXISTS.
    pub replace: bool,
    /// Wait until everything is on the disk.
    pub sync: bool,
    /// How long to go on when the server is away.
    pub retry: RetryPolicy,
}

impl Default for GetTreeOptions {
    fn default() -> Self {
        Self { replace: true, sync: false, retry: RetryPolicy::default() }
    }
}

/// A file or directory of a tree that was left out.
#[derive(Debug)]
pub struct TreeProblem {
    /// Its path below the tree, with '/'; "" is the tree itself.
    pub path: String,
    /// Why.
    pub error: Error,
}

/// What became of a tree. One bad file never stops the others.
#[derive(Debug, Default)]
pub struct TreeSummary {
    /// Files put or got.
    pub files: u64,
    /// Files that were the same on both sides already.
    pub unchanged: u64,
    /// Directories made by themselves: empty ones when putting, all when getting.
    pub directories: u64,
    /// Content of the files put or got.
    pub bytes: u64,
    /// Content that was handed to or came from a connection, what had to be sent again included.
    pub moved_bytes: u64,
    /// What is not a file or directory (symbolic links, sockets, devices) and unfinished downloads, by path. The first
    /// 10,000.
    pub skipped: Vec<(String, &'static str)>,
    /// All that was skipped.
    pub skipped_count: u64,
    /// What failed. The first 10,000.
    pub failed: Vec<TreeProblem>,
    /// All that failed.
    pub failed_count: u64,
    /// Set if the work could not go on: the server stayed away, or the session ended. What is not counted above was not
    /// tried.
    pub stopped: Option<Error>,
}

/// Problems that are listed one by one; all are counted.
const LISTED: usize = 10_000;

impl TreeSummary {
    /// True if everything that could be moved was.
    pub fn is_complete(&self) -> bool {
        self.failed_count == 0 && self.stopped.is_none()
    }

    pub(super) fn skip(&mut self, path: String, why: &'static str) {
        self.skipped_count += 1;
        if self.skipped.len() < LISTED {
            self.skipped.push((path, why));
        }
    }

    pub(super) fn fail(&mut self, path: String, error: Error) {
        self.failed_count += 1;
        if self.failed.len() < LISTED {
            self.failed.push(TreeProblem { path, error });
        }
    }
}
