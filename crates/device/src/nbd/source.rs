//! What an export reads from and, if it may, writes to.

use bytes::Bytes;
use common::error::{Error, Reason, Result};
use futures_util::future::BoxFuture;

/// A run of bytes that are alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// How many bytes.
    pub len: u64,
    /// Nothing is stored for them (`NBD_STATE_HOLE`).
    pub hole: bool,
    /// They read as zeroes (`NBD_STATE_ZERO`).
    pub zero: bool,
}

impl Extent {
    /// Stored bytes.
    pub fn data(len: u64) -> Self {
        Self { len, hole: false, zero: false }
    }
    /// A hole, which reads as zeroes.
    pub fn hole(len: u64) -> Self {
        Self { len, hole: true, zero: true }
    }
}

/// Bytes with a fixed size that are read by offset: a disc of a certain generation, an image file, or one of these on
/// another machine.
///
/// Callers ask for ranges inside `size_bytes` only, and for at most [`MAX_READ`] bytes at once; an implementation refuses
/// anything else with RANGE_INVALID (see [`check_range`]). Every call ends by itself: an implementation has a deadline of
/// its own. Calls may be made at the same time from many tasks.
pub trait BlockSource: Send + Sync + 'static {
    /// Its size; never changes.
    fn size_bytes(&self) -> u64;

    /// Which disc it is, for validators of caches; 0 where that says nothing.
    fn generation(&self) -> u64 {
        0
    }

    /// Reads exactly `len` bytes.
    ///
    /// # Errors
    /// DISC_CHANGED once the disc is not that of the generation, SECTOR_BAD with the details `sector` and `offset`, and
    /// whatever else the device says.
    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<Bytes>>;

    /// What is known about a range: extents from `offset` on that cover at least one byte and at most `len`.
    ///
    /// # Errors
    /// As [`BlockSource::read`].
    fn extents(&self, offset: u64, len: u64) -> BoxFuture<'_, Result<Vec<Extent>>> {
        let _ = offset;
        Box::pin(async move { Ok(vec![Extent::data(len)]) })
    }

    /// Says that a range will be read soon. May do nothing.
    ///
    /// # Errors
    /// As [`BlockSource::read`].
    fn prefetch(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<()>> {
        let _ = (offset, len);
        Box::pin(async { Ok(()) })
    }

    /// True if it can be written to at all. What may write is decided at each write (a lease may be lost meanwhile).
    fn writable(&self) -> bool {
        false
    }

    /// Writes; with `durable` they are on disk when it returns.
    ///
    /// # Errors
    /// ACCESS_DENIED for what is read-only, LEASE_LOST, DISK_FULL.
    fn write(&self, offset: u64, data: Bytes, durable: bool) -> BoxFuture<'_, Result<()>> {
        let _ = (offset, data, durable);
        Box::pin(async { Err(read_only()) })
    }

    /// Makes a range read as zeroes; with `keep_space` the space stays reserved.
    ///
    /// # Errors
    /// As [`BlockSource::write`].
    fn write_zeroes(&self, offset: u64, len: u64, keep_space: bool, durable: bool) -> BoxFuture<'_, Result<()>> {
        let _ = (offset, len, keep_space, durable);
        Box::pin(async { Err(read_only()) })
    }

    /// Gives a range back: what it reads as afterwards is not defined.
    ///
    /// # Errors
    /// As [`BlockSource::write`].
    fn trim(&self, offset: u64, len: u64, durable: bool) -> BoxFuture<'_, Result<()>> {
        let _ = (offset, len, durable);
        Box::pin(async { Err(read_only()) })
    }

    /// Returns when everything whose write has returned is on disk.
    ///
    /// # Errors
    /// IO_FAILED.
    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// The most that is read or written at once: the protocol's recommendation for clients that know nothing of a server.
pub const MAX_READ: u32 = 32 << 20;

/// The refusal of a write.
pub fn read_only() -> Error {
    Error::new(Reason::AccessDenied, "the export is read-only").why_is("a disc cannot be written to")
}

/// Checks a range against a size.
///
/// # Errors
/// RANGE_INVALID with the size.
pub fn check_range(offset: u64, len: u64, size: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::new(Reason::RangeInvalid, format!("{len} bytes at {offset} are past the end"))
            .with("size_bytes", size)),
    }
}
