//! Tests of a node's modules together, one module for each.

mod net;
mod relay;
