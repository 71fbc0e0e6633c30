//! Where tokens are counted, so that they rise across restarts.

use common::error::{Error, Reason, Result};
use common::store::Store;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Most tokens that are reserved at a time.
const AT_ONCE_MAX: u64 = 1 << 20;

/// Counts the tokens of devices.
pub trait TokenStore: Send + Sync + 'static {
    /// The next `count` tokens of a device, first and last: above all that were reserved before, and on disk when this
    /// returns, so that they are never reserved again.
    ///
    /// # Errors
    /// Those of the storage; what was reserved then may be lost, which harms nothing.
    fn reserve(&self, device: &str, count: u64) -> BoxFuture<'_, Result<(u64, u64)>>;
}

/// In the node's store: `PREFIX DEVICE` holds the last reserved token, eight bytes, little-endian. The record stays when a
/// device is no longer shared, so that one shared again under its name goes on counting.
pub struct StoreTokens {
    store: Store,
    prefix: Vec<u8>,
}

impl StoreTokens {
    /// Under this prefix of the store.
    pub fn new(store: Store, prefix: &[u8]) -> Self {
        Self { store, prefix: prefix.to_vec() }
    }
}

impl TokenStore for StoreTokens {
    fn reserve(&self, device: &str, count: u64) -> BoxFuture<'_, Result<(u64, u64)>> {
        let key = [&self.prefix, device.as_bytes()].concat();
        Box::pin(async move {
            let reserved = self.store.transact(move |txn| {
                let last = match txn.get(&key)? {
                    None => 0,
                    Some(value) => u64::from_le_bytes((&value[..]).try_into().map_err(|_| {
                        Error::new(Reason::StoreCorrupt, "the number of a device's last lease cannot be read")
                    })?),
                };
                let range = next_range(last, count)?;
                txn.put(key.clone(), range.1.to_le_bytes().to_vec())?;
                Ok(range)
            });
            Ok(reserved.await?.value)
        })
    }
}

fn next_range(last: u64, count: u64) -> Result<(u64, u64)> {
    let end = last.checked_add(count.clamp(1, AT_ONCE_MAX));
    end.map(|end| (last + 1, end)).ok_or_else(|| Error::internal("a device has used up its numbers"))
}

/// In memory: for tests. Clones count together, as if they were the same disk.
#[derive(Clone, Default)]
pub struct MemoryTokens(Arc<Mutex<HashMap<String, u64>>>);

impl TokenStore for MemoryTokens {
    fn reserve(&self, device: &str, count: u64) -> BoxFuture<'_, Result<(u64, u64)>> {
        let mut map = self.0.lock();
        let last = map.entry(device.to_owned()).or_default();
        let range = next_range(*last, count);
        if let Ok((_, end)) = range {
            *last = end;
        }
        Box::pin(async move { range })
    }
}
