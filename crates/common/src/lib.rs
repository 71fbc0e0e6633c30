//! What Atrium's programs share.
//!
//! `model` is plain values. `wire` turns messages into them. `store` and `chunk` keep things on disk. `bulk` and `flow`
//! move bytes. `identity`, `tls` and `enrol` say who is who. Everything exchanges [`error::Error`].

pub mod bulk;
pub mod chunk;
pub mod clock;
pub mod enrol;
pub mod error;
pub mod flow;
pub mod identity;
pub mod model;
pub mod retry;
pub mod rpc;
pub mod settings;
pub mod shutdown;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod ticket;
pub mod tls;
pub mod wire;
