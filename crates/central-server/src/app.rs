//! What the server decides. Signatures here carry no generated and no transport type.

pub mod caller;

use crate::settings::Settings;
use common::chunk::ChunkStore;
use common::clock::SharedClock;
use common::store::Store;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The running office: everything a decision needs. Cheap to clone.
#[derive(Clone)]
pub struct App {
    /// Metadata.
    pub store: Store,
    /// Content.
    pub chunks: ChunkStore,
    /// Time.
    pub clock: SharedClock,
    /// Checked settings.
    pub settings: Arc<Settings>,
    /// Cancelled when the server begins to stop: open streams end with SHUTTING_DOWN.
    pub shutdown: CancellationToken,
}

impl App {
    /// An application over these parts.
    pub fn new(store: Store, chunks: ChunkStore, clock: SharedClock, settings: Arc<Settings>) -> Self {
        Self { store, chunks, clock, settings, shutdown: CancellationToken::new() }
    }
}
