//! Tests of a node's modules together, one module for each.

mod mailbox;
mod net;
mod program;
mod program_office;
mod relay;
