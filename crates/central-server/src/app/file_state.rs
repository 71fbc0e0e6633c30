//! What the file service keeps in memory. All of it may be lost at any moment: clients then upload chunks again that the
//! server drops as duplicates, and passes over the store begin anew. Uploads in flight are remembered as far as a log goes.

use super::directories::{self, Root};
use super::references::Relocations;
use super::remembered::Remembered;
use super::retention::Progress;
use super::uploads::Uploads;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the file service keeps in memory.
#[derive(Debug)]
pub struct FileState {
    /// Uploads in flight.
    pub uploads: Uploads,
    /// Content whose record moved while a search for references is under way.
    pub relocations: Relocations,
    /// How far the retention rules have been applied.
    pub(super) retention: Mutex<Progress>,
    /// Roots by their full names.
    pub(super) roots: Remembered<String, Arc<Root>>,
    disk_full: AtomicBool,
}

impl Default for FileState {
    fn default() -> Self {
        Self {
            uploads: Uploads::default(),
            relocations: Relocations::default(),
            retention: Mutex::default(),
            roots: Remembered::new(directories::KINDS),
            disk_full: AtomicBool::new(false),
        }
    }
}

impl FileState {
    /// With what is known of uploads that an earlier run left unfinished.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(uploads: &std::path::Path, now_ms: u64) -> common::error::Result<Self> {
        Ok(Self { uploads: Uploads::open(uploads, now_ms)?, ..Self::default() })
    }

    /// Refuses or allows what needs disk space; set by the disk-space guard.
    pub fn set_disk_full(&self, full: bool) {
        self.disk_full.store(full, Ordering::Relaxed);
    }

    /// True while the disk is nearly full.
    pub fn is_disk_full(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed)
    }
}
