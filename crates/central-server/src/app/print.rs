//! Print queues of the whole office.
//!
//! A person hands a document to the server; the machine that the printer hangs on pulls it (`proto/atrium/v1/print.proto`
//! tells how). The server decides who may print and how much, keeps the document until the job has ended, and says which
//! machine's word about a job counts.
//!
//! ```text
//! DATA/print/.ID.part   a document that is coming in
//! DATA/print/ID         the document of a job that has not ended
//! ```
//! Records and the keys that follow from them are in [`records`]; nothing else writes them. What a job may become is
//! decided by the plain functions of [`transitions`].
//!
//! **Order.** A document is synced, renamed, and its directory synced, before the job's record is committed; the commit is
//! durable before the caller is answered. A job's end is durable before its document is removed. So a crash leaves a
//! document without a job at worst, which the next start removes ([`upkeep::recover`]), never a job without its document.
//! (A restored backup has jobs without documents, since documents are not backed up: those are aborted, and say so.)
//!
//! **Once.** A request id makes handing over a document happen once. Claiming makes printing happen once: see
//! [`transitions::claim`].
//!
//! **Bounds.** Size of a document, of all documents, open jobs of a person and of a printer, printers of a machine and in
//! all, documents that come in at a time: see the settings and constants below. All are refused with the code that says
//! so; nothing waits. How printers are is kept in memory: after a restart all are away until their machines say something.

pub mod accounts;
pub mod jobs;
pub mod owner;
pub mod printers;
pub mod records;
pub mod spool;
pub mod submit;
pub mod transitions;
pub mod upkeep;

use crate::settings::Settings;
use parking_lot::Mutex;
pub use records::{Charge, JobState, Printer};
use spool::Spool;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// Most printers of the office.
pub const PRINTERS_MAX: usize = 1_000;
/// Most printers of one machine.
pub const PRINTERS_PER_DEVICE: usize = 32;
/// Most open jobs of one printer.
pub const JOBS_PER_PRINTER: usize = 500;
/// A machine says how its printer is after this time at the latest.
pub const RENEW_SECONDS: u32 = 60;
/// A printer whose machine was silent for so long is away; sooner if the machine's watch for jobs has ended.
pub const AWAY_AFTER_MS: u64 = 150_000;

/// A print job's record.
pub type Job = proto::record::v1::PrintJob;

/// What print queues keep in memory.
#[derive(Debug)]
pub struct PrintState {
    pub(super) spool: Spool,
    presence: Mutex<HashMap<String, Presence>>,
    machines: Mutex<Machines>,
    changed: watch::Sender<u64>,
    ended: [AtomicU64; 3],
}

/// Which machines are there.
#[derive(Debug, Default)]
struct Machines {
    /// Watches for jobs that are open, by device.
    watches: HashMap<String, usize>,
    /// Machines whose last watch ended, and that were not heard of since.
    gone: HashSet<String>,
}

/// A machine's watch for jobs. When the last one of a machine ends, its printers are away.
#[derive(Debug)]
pub(super) struct Watching {
    state: Arc<PrintState>,
    device: String,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut machines = self.state.machines.lock();
        match machines.watches.get_mut(&self.device) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                machines.watches.remove(&self.device);
                machines.gone.insert(std::mem::take(&mut self.device));
            }
        }
    }
}

/// How a printer is, as its machine said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// When it said so.
    pub seen_ms: u64,
    /// How it is.
    pub condition: Condition,
    /// Why it is stopped.
    pub reason: String,
}

/// How a printer is; the numbers of `atrium.v1.PrinterState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Ready.
    Idle = 1,
    /// Prints.
    Processing = 2,
    /// Needs somebody.
    Stopped = 3,
    /// Its machine is silent.
    Away = 4,
}

impl PrintState {
    /// With nothing known of any printer.
    pub fn new(settings: &Settings) -> Self {
        Self {
            spool: Spool::new(settings.server.data_directory.join("print")),
            presence: Mutex::default(),
            machines: Mutex::default(),
            changed: watch::Sender::new(0),
            ended: Default::default(),
        }
    }

    /// Wakes those who wait for jobs.
    pub(super) fn announce(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Changes with every change of a job.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn note(&self, printer: &str, device: &str, presence: Presence) {
        self.machines.lock().gone.remove(device);
        self.presence.lock().insert(printer.to_owned(), presence);
    }

    /// A machine begins to watch for jobs.
    pub(super) fn begin_watch(self: &Arc<Self>, device: &str) -> Watching {
        let mut machines = self.machines.lock();
        *machines.watches.entry(device.to_owned()).or_default() += 1;
        machines.gone.remove(device);
        Watching { state: self.clone(), device: device.to_owned() }
    }

    fn forget(&self, printer: &str) {
        self.presence.lock().remove(printer);
    }

    /// How a printer of this machine is now.
    fn presence(&self, printer: &str, device: &str, now_ms: u64) -> Presence {
        let known = self.presence.lock().get(printer).cloned();
        let mut presence = known.unwrap_or(Presence { seen_ms: 0, condition: Condition::Away, reason: String::new() });
        let silent = now_ms.saturating_sub(presence.seen_ms) >= AWAY_AFTER_MS;
        if silent || self.machines.lock().gone.contains(device) {
            presence.condition = Condition::Away;
        }
        presence
    }

    fn count_end(&self, state: JobState) {
        let at = match state {
            JobState::Completed => 0,
            JobState::Canceled => 1,
            JobState::Aborted => 2,
            _ => return,
        };
        self.ended[at].fetch_add(1, Ordering::Relaxed);
    }

    /// Jobs that were completed, canceled and aborted since the start.
    pub fn ended_counts(&self) -> [u64; 3] {
        [0, 1, 2].map(|at| self.ended[at].load(Ordering::Relaxed))
    }
}
