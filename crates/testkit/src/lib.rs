//! Helpers for tests and benchmarks: a network of machines on this machine.

pub mod lab;
