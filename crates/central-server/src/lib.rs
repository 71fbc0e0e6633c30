//! Atrium's central server as a library: settings, application, gRPC handlers, background work.
//!
//! `grpc/` decodes, calls `app/`, encodes. `app/` decides and knows no transport. `background/` keeps house.

pub mod app;
pub mod background;
pub mod grpc;
pub mod settings;
