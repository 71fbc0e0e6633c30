//! Chunks from node to node: never a panic, never another reading than the generated decoder's.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| common::bulk::fuzz_fetch(data));
