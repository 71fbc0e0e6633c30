//! What was promised and what is used: plain accounting, without IO.

use common::error::{Error, Reason, Result};
use std::collections::HashMap;

/// A lender's accounts.
#[derive(Clone, Debug, Default)]
pub(super) struct Books {
    promised: HashMap<String, u64>,
    promised_total: u64,
    used_total: u64,
    /// Bytes that were admitted and may not have reached the disk yet, so the file system still counts them as free.
    in_flight: u64,
}

/// What the lender allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) size: u64,
    pub(super) reserve: u64,
    pub(super) per_borrower: u64,
}

impl Books {
    pub(super) fn promised(&self) -> u64 {
        self.promised_total
    }

    pub(super) fn used(&self) -> u64 {
        self.used_total
    }

    /// What the disk could take now.
    pub(super) fn room(&self, limits: &Limits, free: u64) -> u64 {
        free.saturating_sub(limits.reserve).saturating_sub(self.in_flight)
    }

    /// Promises space to a borrower.
    pub(super) fn promise(&mut self, borrower: &str, bytes: u64, limits: &Limits) -> Result<()> {
        let full = |what: &str| Error::new(Reason::SpaceFull, "the space cannot be borrowed").why_is(what);
        if self.promised_total.saturating_add(bytes) > limits.size {
            let left = limits.size.saturating_sub(self.promised_total);
            return Err(full("the machine lends less than that").with("left_bytes", left));
        }
        let own = self.promised.get(borrower).copied().unwrap_or(0);
        if own.saturating_add(bytes) > limits.per_borrower {
            let left = limits.per_borrower.saturating_sub(own);
            return Err(full("one person may not borrow that much here").with("left_bytes", left));
        }
        self.restore(borrower, bytes);
        Ok(())
    }

    /// Takes in what was promised before a restart, whatever the limits say now.
    pub(super) fn restore(&mut self, borrower: &str, bytes: u64) {
        let own = self.promised.entry(borrower.to_owned()).or_default();
        *own = own.saturating_add(bytes);
        self.promised_total = self.promised_total.saturating_add(bytes);
    }

    /// A promise has ended.
    pub(super) fn release(&mut self, borrower: &str, bytes: u64) {
        self.promised_total = self.promised_total.saturating_sub(bytes);
        if let Some(own) = self.promised.get_mut(borrower) {
            *own = own.saturating_sub(bytes);
            if *own == 0 {
                self.promised.remove(borrower);
            }
        }
    }

    /// Charges bytes that are about to land in a place.
    pub(super) fn admit(&mut self, used: u64, limit: u64, bytes: u64, limits: &Limits, free: u64) -> Result<()> {
        let full = |what: &str| Error::new(Reason::SpaceFull, "the bytes were not taken").why_is(what.to_owned());
        if used.saturating_add(bytes) > limit {
            let left = limit.saturating_sub(used);
            return Err(full("the space that was borrowed is used up").with("left_bytes", left));
        }
        if self.used_total.saturating_add(bytes) > limits.size {
            return Err(full("the machine lends less than before").with("left_bytes", 0));
        }
        let room = self.room(limits, free);
        if bytes > room {
            return Err(full("the owner of the disk needs the rest of it").with("room_bytes", room));
        }
        self.used_total += bytes;
        self.in_flight += bytes;
        Ok(())
    }

    /// Bytes that were admitted are on disk, or will never be.
    pub(super) fn landed(&mut self, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
    }

    /// Bytes that are there without having been admitted, found at open.
    pub(super) fn found(&mut self, bytes: u64) {
        self.used_total += bytes;
    }

    /// Bytes that are gone.
    pub(super) fn refund(&mut self, bytes: u64) {
        self.used_total = self.used_total.saturating_sub(bytes);
    }
}
