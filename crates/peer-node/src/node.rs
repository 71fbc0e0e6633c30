//! A running node: all modules put together.
