//! Tests of a node's modules together, one module for each.

mod catalogue;
mod catalogue_office;
mod catalogue_remote;
mod catalogue_rights;
mod mailbox;
mod net;
mod program;
mod program_office;
mod presence;
mod presence_lab;
mod presence_node;
mod relay;
mod transfer;
