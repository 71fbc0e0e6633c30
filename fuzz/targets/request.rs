//! Certificate requests of devices: bytes as they come, and a good request with some bytes changed.
#![no_main]

use common::identity::{DeviceKey, DeviceRequest};
use std::sync::LazyLock;

static KEY: LazyLock<DeviceKey> = LazyLock::new(DeviceKey::generate);
static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| KEY.certificate_request().expect("a request"));

fn inputs() -> Vec<Vec<u8>> {
    vec![GOOD.clone(), vec![3, 1], Vec::new()]
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| {
    let _ = DeviceRequest::check(data);
    let mut changed = GOOD.clone();
    for change in data.chunks_exact(2) {
        let at = usize::from(change[0]) % changed.len();
        changed[at] ^= change[1];
    }
    // What is accepted is signed by the key that it is about, so it can only be the one that we have.
    if let Ok(request) = DeviceRequest::check(&changed) {
        assert_eq!(request.device_id(), KEY.device_id());
    }
});
