//! Tests of a node's modules together, one module for each.

mod catalogue;
mod catalogue_office;
mod catalogue_remote;
mod catalogue_rights;
mod devices;
mod devices_office;
mod devices_rights;
mod mailbox;
mod net;
mod office_rule;
mod office_sim;
mod office_world;
mod presence;
mod presence_lab;
mod presence_node;
mod program;
mod program_office;
mod relay;
mod transfer;
