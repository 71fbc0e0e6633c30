//! Settings of the central server.

/// Checked settings.
#[derive(Clone, Debug, Default)]
pub struct Settings {}
