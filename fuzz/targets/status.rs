//! Status details and the headers they travel in.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| common::status::fuzz_details(data));
