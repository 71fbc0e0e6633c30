//! The protobuf walker, on ropes cut at any place.
#![no_main]

use common::bulk::{FetchEncoder, Rope};

fn inputs() -> Vec<Vec<u8>> {
    let mut encoder = FetchEncoder::default();
    encoder.chunk(7, &Rope::from(vec![7; 300]));
    encoder.absent(1);
    encoder.flush();
    std::iter::from_fn(|| encoder.pop()).map(|message| [&[20][..], &seeds::body(&message)].concat()).collect()
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| common::bulk::fuzz_walk(data));
