//! How many calls are served at a time, so that no device can take everything.

use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Lets a number of calls in, in all and of each device; others wait.
pub struct Gate {
    all: Arc<Semaphore>,
    each: usize,
    waiting: usize,
    devices: Arc<Mutex<HashMap<DeviceId, Device>>>,
}

struct Device {
    calls: Arc<Semaphore>,
    /// Calls that are served or wait.
    count: usize,
}

/// A call that was let in; the next one comes in when it is dropped.
pub struct Pass {
    _all: Option<OwnedSemaphorePermit>,
    _own: Option<OwnedSemaphorePermit>,
    devices: Arc<Mutex<HashMap<DeviceId, Device>>>,
    device: DeviceId,
}

impl Gate {
    /// So many in all, of each device, and waiting for each device.
    pub fn new(all: usize, each: usize, waiting: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), each, waiting, devices: Arc::default() }
    }

    /// Waits to be let in.
    ///
    /// # Errors
    /// OVERLOADED if too many of this device wait already, or if nobody may wait.
    pub async fn enter(&self, device: DeviceId) -> Result<Pass> {
        let calls = {
            let mut devices = self.devices.lock();
            let state = devices
                .entry(device)
                .or_insert_with(|| Device { calls: Arc::new(Semaphore::new(self.each)), count: 0 });
            if state.count >= self.each + self.waiting {
                return Err(overloaded());
            }
            state.count += 1;
            state.calls.clone()
        };
        let mut pass = Pass { _all: None, _own: None, devices: self.devices.clone(), device };
        if self.waiting == 0 {
            pass._own = Some(calls.try_acquire_owned().map_err(|_| overloaded())?);
            pass._all = Some(self.all.clone().try_acquire_owned().map_err(|_| overloaded())?);
        } else {
            pass._own = Some(calls.acquire_owned().await.map_err(|_| overloaded())?);
            pass._all = Some(self.all.clone().acquire_owned().await.map_err(|_| overloaded())?);
        }
        Ok(pass)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut devices = self.devices.lock();
        if let Some(state) = devices.get_mut(&self.device) {
            state.count -= 1;
            if state.count == 0 {
                devices.remove(&self.device);
            }
        }
    }
}

fn overloaded() -> Error {
    Error::new(Reason::Overloaded, "too many calls of this node are open here").retry_after(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: DeviceId = DeviceId([1; 32]);
    const TWO: DeviceId = DeviceId([2; 32]);

    #[tokio::test]
    async fn a_device_has_its_share_and_no_more() {
        let gate = Gate::new(3, 2, 1);
        let first = gate.enter(ONE).await.unwrap();
        let _second = gate.enter(ONE).await.unwrap();
        let third = gate.enter(ONE);
        tokio::pin!(third);
        assert!(futures_util::poll!(third.as_mut()).is_pending());
        assert!(gate.enter(ONE).await.is_err_and(|e| e.is(Reason::Overloaded)));
        let other = gate.enter(TWO).await.unwrap();
        drop(first);
        drop(third.await.unwrap());
        drop(other);
        drop(_second);
        assert!(gate.devices.lock().is_empty(), "nothing is kept of devices that have no calls");
        let none = Gate::new(1, 1, 0);
        let _one = none.enter(ONE).await.unwrap();
        assert!(none.enter(TWO).await.is_err());
    }
}
