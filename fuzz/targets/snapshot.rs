//! Snapshots of mirrors and their roots: never a panic, never a path that leaves the folder, one way to write each.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| device::disk::mirror::fuzz_snapshot(data));
