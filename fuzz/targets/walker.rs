//! The protobuf walker, on ropes cut at any place.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| common::bulk::fuzz_walk(data));
