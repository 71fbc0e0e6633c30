//! Helpers for tests and benchmarks: a network of machines on this machine, and a disk that fails.

pub mod disk;
pub mod lab;
