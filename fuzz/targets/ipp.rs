//! IPP messages: never a panic; what can be read can be written and reads the same again; both ways of finding the end agree.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| device::ipp::codec::fuzz(data));
