//! Upload messages: never a panic, never another reading than the generated decoder's.
#![no_main]

use common::bulk::{Rope, UploadEncoder};
use common::model::{ChunkId, UploadId};

fn inputs() -> Vec<Vec<u8>> {
    let mut encoder = UploadEncoder::new(UploadId::generate());
    let begun = encoder.flush();
    for content in [&b"a"[..], &[7; 300]] {
        assert!(encoder.push(ChunkId::of(content), Rope::from(content.to_vec())).is_none(), "a message holds more");
    }
    [begun, encoder.flush()].iter().flatten().map(seeds::body).collect()
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| common::bulk::fuzz_upload(data));
