//! Atrium's gRPC contract: generated code and the descriptor set, no logic.
//!
//! The source is `proto/` at the top of the repository; comments there are the reference.
#![allow(missing_docs, clippy::all)]

/// The public contract of the central server.
pub mod v1 {
    tonic::include_proto!("atrium.v1");
}

/// The workstation agent's local contract.
pub mod agent {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("atrium.agent.v1");
    }
}

/// Node to node, and a node's local contract.
pub mod peer {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("atrium.peer.v1");
    }
}

/// Records of the central server's store. Not part of the public contract.
pub mod record {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("atrium.record.v1");
    }
}

/// Encoded `google.protobuf.FileDescriptorSet` of everything, imports included.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Encoded `google.protobuf.FileDescriptorSet` of the public contract, for reflection.
pub const PUBLIC_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/public.bin"));
