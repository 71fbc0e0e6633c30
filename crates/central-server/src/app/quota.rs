//! What a root holds and may hold.
//!
//! One record per root counts bytes (current content, old versions, trash; each file in full, shared chunks or not) and
//! entries (trash included). It is written in the transaction of every change that it counts, so it is always exact.

use super::records::{self, View, usage_key};
use common::error::{Error, Reason, Result};
use common::model::RootId;
use proto::record::v1 as record;

/// What a root holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes charged.
    pub used_bytes: u64,
    /// Files and directories.
    pub entry_count: u64,
}

/// Reads what a root holds.
///
/// # Errors
/// Those of the store.
pub fn load(view: &impl View, root: RootId) -> Result<Usage> {
    let record: record::Usage = records::load(view, &usage_key(root.as_bytes()))?.unwrap_or_default();
    Ok(Usage { used_bytes: record.used_bytes, entry_count: record.entry_count })
}

impl Usage {
    /// The record.
    pub fn record(self) -> record::Usage {
        record::Usage { used_bytes: self.used_bytes, entry_count: self.entry_count }
    }

    /// What it is after a change, checked against a limit (0: none). A change that adds no bytes is always allowed, so
    /// that a root over its limit can be emptied.
    ///
    /// # Errors
    /// `QUOTA_EXCEEDED`.
    pub fn plus(self, bytes: i64, entries: i64, quota_bytes: u64) -> Result<Self> {
        let used_bytes = self.used_bytes.saturating_add_signed(bytes);
        if bytes > 0 && quota_bytes > 0 && used_bytes > quota_bytes {
            return Err(Error::new(
                Reason::QuotaExceeded,
                format!("{bytes} bytes more do not fit: {} of {quota_bytes} bytes are used", self.used_bytes),
            )
            .with("quota_bytes", quota_bytes)
            .with("used_bytes", self.used_bytes)
            .with("needed_bytes", bytes));
        }
        Ok(Self { used_bytes, entry_count: self.entry_count.saturating_add_signed(entries) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_to_the_byte_and_emptying_is_always_allowed() {
        let used = Usage { used_bytes: 90, entry_count: 3 };
        assert_eq!(used.plus(10, 1, 100).unwrap(), Usage { used_bytes: 100, entry_count: 4 });
        let refused = used.plus(11, 1, 100).unwrap_err();
        assert!(refused.is(Reason::QuotaExceeded));
        assert_eq!(refused.detail("needed_bytes"), Some("11"));
        let over = Usage { used_bytes: 150, entry_count: 3 };
        assert_eq!(over.plus(-20, -1, 100).unwrap(), Usage { used_bytes: 130, entry_count: 2 });
        assert!(over.plus(0, 1, 100).is_ok(), "a directory or an empty file costs no bytes");
        assert!(used.plus(1 << 40, 1, 0).is_ok(), "0 is no limit");
    }
}
