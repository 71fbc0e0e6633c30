//! Moving files between this machine and a central server: what the command line and the agent call.
//!
//! * [`put_file`], [`put_reader`]: one file up. Cutting and hashing, asking what the server lacks, and sending run side
//!   by side; only what is missing is sent; one commit publishes it.
//! * [`put_tree()`], [`put_many`]: many files up, small ones in batches.
//! * [`get_file`], [`read_file`]: one file down, every chunk verified before it is used, only what is not here yet.
//! * [`get_tree()`]: a directory down, small files in batches.
//!
//! A connection that breaks, a server that restarts, an answer that is lost: work goes on from what has arrived, for as
//! long as [`RetryPolicy`] says. Uploads are idempotent (one upload id, one result); downloads keep what is verified in a
//! file beside the target. Nothing half-done becomes visible: on the server the commit publishes, here the rename does.
//!
//! * [`print_pull`]: print jobs from the server to the machine that has the printer.
//!
//! Every function may be dropped at any point. An upload that was begun is forgotten by the server after an hour; a
//! download leaves its unfinished file, from which the next one goes on.
//!
//! Memory is bounded: a big file upload holds about 100 MiB at most (pieces that are being cut, hashed, asked about and
//! sent), a big download 40 MiB, trees four batches of 8 MiB each way.

mod fetch;
mod get;
mod get_tree;
mod link;
mod local;
mod options;
pub mod print_pull;
mod progress;
mod put;
mod put_batch;
mod put_tree;
mod same;
mod send;
mod walk;

pub use get::{get_file, read_file};
pub use get_tree::get_tree;
pub use options::{Expect, GetOptions, GetTreeOptions, PutItem, PutOptions, PutTreeOptions, TreeProblem, TreeSummary};
pub use progress::{Event, NoProgress, Progress, Totals};
pub use put::{put_file, put_reader};
pub use put_tree::{put_many, put_tree};

pub use crate::retry::RetryPolicy;

/// Files up to this size travel in batches: they are one chunk.
pub const SMALL_FILE: u64 = crate::chunk::CHUNK_MIN as u64;
/// Most files of a batch; the contract's bound for a commit and for a download.
pub const BATCH_FILES: usize = 1000;
/// Most content of a batch. Reading, hashing, sending and committing of different batches overlap.
pub const BATCH_BYTES: u64 = 8 * 1024 * 1024;
/// Batches under way at a time.
pub const BATCHES: usize = 4;
/// Files larger than a batch's that are under way at a time.
pub const LARGE_FILES: usize = 2;
/// From here on a file uses all bulk connections at once.
pub const PARALLEL_FROM: u64 = 64 * 1024 * 1024;
