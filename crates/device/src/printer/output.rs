//! Outputs: how a printer's jobs become paper, or files.

pub mod folder;
pub mod remote;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

pub use folder::{Fault, Folder};
pub use remote::Remote;

use super::model::Job;
use super::queue::{Condition, Outcome};
use crate::ipp::client::Piece;

/// What an output reports while it prints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// So many sides are printed; it goes on.
    Going(u32),
    /// It stopped for this reason (a keyword of `printer-state-reasons`), after so many sides.
    Stalled(String, u32),
}

/// Takes reports.
pub type Report = Arc<dyn Fn(Progress) + Send + Sync>;

/// A job for an output.
#[derive(Clone)]
pub struct Order {
    /// The job as it was when it was given to the output.
    pub job: Arc<Job>,
    /// Its documents, in the spool: name, media type, bytes.
    pub documents: Vec<(String, String, Piece)>,
    /// The output may have it already: it has to look before it prints.
    pub repeat: bool,
    /// Ends when the job is to be let go.
    pub withdraw: CancellationToken,
    /// Where progress is reported.
    pub report: Report,
}

/// Prints jobs.
///
/// The future of [`Output::print`] may be dropped at any moment, as by a killed process; then the same order comes again with
/// `repeat`, and must not lead to a second print.
pub trait Output: Send + Sync + 'static {
    /// Prints a job, reports progress, and says how it ended.
    fn print(&self, order: Order) -> BoxFuture<'_, Outcome>;

    /// Whether it can print now.
    fn probe(&self) -> BoxFuture<'_, Condition>;

    /// Jobs that it prints at a time.
    fn lanes(&self) -> usize {
        1
    }

    /// The simulated printer, if it is one.
    fn folder(&self) -> Option<&Folder> {
        None
    }
}
