//! Tests of the library through its public functions.

mod bulk_loopback;
mod bulk_wire;
mod chunk_crash;
mod chunk_cut;
mod chunk_reclaim;
mod chunk_store;
mod enrol_join;
mod flow_fake;
mod flow_file;
mod flow_tree;
mod office;
mod powercut;
mod rpc_connection;
mod store_conformance;
mod store_crash;
mod store_model;
mod tls_accept;
mod tls_connection;
