//! The central server of the office as one more source.
