//! Atrium's central server as a library: settings, application, gRPC handlers, background work.
//!
//! `grpc/` decodes, calls `app/`, encodes. `app/` decides and knows no transport. `background/` keeps house. `serve`
//! starts and stops it all.

pub mod app;
pub mod background;
pub mod command;
pub mod grpc;
pub mod metrics;
pub mod serve;
pub mod settings;

pub use serve::{Running, start, start_at};
pub use settings::Settings;
