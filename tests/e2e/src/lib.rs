//! Real processes: start, talk to, kill and compare. Used by the end-to-end tests, the demo, the crash harness and the
//! benchmarks.

pub mod bench;
pub mod compare;
pub mod devices;
pub mod office;
pub mod peers;
pub mod process;
pub mod sample;

pub use office::{Office, Person};
pub use process::{Finished, Process, Programs};
