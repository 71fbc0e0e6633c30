//! What the file service keeps in memory. All of it may be lost at any moment: clients then upload chunks again that the
//! server drops as duplicates, and passes over the store begin anew.

use super::references::Relocations;
use super::retention::Progress;
use super::uploads::Uploads;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the file service keeps in memory.
#[derive(Debug, Default)]
pub struct FileState {
    /// Uploads in flight.
    pub uploads: Uploads,
    /// Content whose record moved while a search for references is under way.
    pub relocations: Relocations,
    /// How far the retention rules have been applied.
    pub(super) retention: Mutex<Progress>,
    disk_full: AtomicBool,
}

impl FileState {
    /// Refuses or allows what needs disk space; set by the disk-space guard.
    pub fn set_disk_full(&self, full: bool) {
        self.disk_full.store(full, Ordering::Relaxed);
    }

    /// True while the disk is nearly full.
    pub fn is_disk_full(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed)
    }
}
