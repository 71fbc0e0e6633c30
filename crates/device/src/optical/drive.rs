//! What a drive can do.

use common::error::Result;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a sector.
pub const SECTOR_BYTES: u32 = 2048;
/// Bytes of a block: what is read, kept and hashed at once.
pub const BLOCK_BYTES: u32 = 1 << 20;
/// Sectors of a block.
pub const BLOCK_SECTORS: u64 = (BLOCK_BYTES / SECTOR_BYTES) as u64;

/// Where the tray is and what lies in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tray {
    /// Closed, no disc.
    Empty,
    /// Open.
    Open,
    /// Closed, the disc is not ready yet.
    Loading,
    /// A disc can be read.
    Ready,
}

/// What a drive says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Condition {
    /// Tray and disc.
    pub tray: Tray,
    /// Another number whenever the disc may be another one than before. Means something within this process only.
    pub medium: u64,
}

/// Why sectors could not be read.
#[derive(Debug)]
pub enum ReadFault {
    /// The disc cannot be read at this sector.
    Sector(u64),
    /// The disc has gone.
    Gone,
    /// The deadline has passed.
    Late,
    /// The drive reports something else.
    Failed(io::Error),
}

/// Called by a drive when its condition may have changed. May be called from any thread and often.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// One drive. Its methods may block; [`super::Drives`] runs each drive on a thread of its own.
pub trait Drive: Send + 'static {
    /// What it is, for people.
    fn model(&self) -> String;

    /// Tray and disc. Cheap: it is asked after every read.
    ///
    /// # Errors
    /// The drive does not answer.
    fn condition(&mut self) -> io::Result<Condition>;

    /// Size of the disc that is ready, a multiple of [`SECTOR_BYTES`].
    ///
    /// # Errors
    /// The drive does not answer.
    fn size_bytes(&mut self) -> io::Result<u64>;

    /// Fills `into`, whose length is a multiple of [`SECTOR_BYTES`], from a sector on. Should give up at the deadline,
    /// where the drive lets it.
    ///
    /// # Errors
    /// See [`ReadFault`].
    fn read(&mut self, sector: u64, into: &mut [u8], deadline: Instant) -> std::result::Result<(), ReadFault>;

    /// Opens the tray. A locked tray stays.
    ///
    /// # Errors
    /// DEVICE_FAILED, RESOURCE_BUSY for a locked tray.
    fn eject(&mut self) -> Result<()>;

    /// Closes the tray.
    ///
    /// # Errors
    /// DEVICE_FAILED.
    fn close_tray(&mut self) -> Result<()>;

    /// Locks or unlocks the button of the tray.
    ///
    /// # Errors
    /// DEVICE_FAILED.
    fn lock_tray(&mut self, locked: bool) -> Result<()>;

    /// Takes a function to call when the condition may have changed. Drives that cannot tell are polled.
    fn wake_by(&mut self, wake: Wake) {
        let _ = wake;
    }

    /// True if the system keeps what was read anyway, so that keeping it once more only costs memory.
    fn is_kept_below(&self) -> bool {
        false
    }

    /// How often its condition is asked for while nothing is read: a change is to be seen within a second.
    fn poll_every(&self) -> Duration {
        Duration::from_millis(500)
    }
}

/// The sector that ends a range, for the arithmetic of blocks.
pub fn sectors(bytes: u64) -> u64 {
    bytes / u64::from(SECTOR_BYTES)
}
