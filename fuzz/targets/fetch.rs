//! Chunks from node to node: never a panic, never another reading than the generated decoder's.
#![no_main]

use common::bulk::{FetchEncoder, Rope};

fn inputs() -> Vec<Vec<u8>> {
    let mut encoder = FetchEncoder::default();
    encoder.chunk(0, &Rope::from(b"a".to_vec()));
    encoder.absent(1);
    encoder.chunk(2, &Rope::from(vec![7; 300]));
    encoder.flush();
    std::iter::from_fn(|| encoder.pop()).map(|message| seeds::body(&message)).collect()
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| common::bulk::fuzz_fetch(data));
