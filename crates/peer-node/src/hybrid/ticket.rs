//! Read tickets as rights: whether a device that shows one may have chunks.

use crate::model::Scope;
use crate::office::Office;
use crate::source::{ChunkSource, Holdings, Place, unknown_scope};
use common::clock::SharedClock;
use common::error::Result;
use common::model::{ChunkId, DeviceId};
use common::ticket::Ticket;

/// Says who may have chunks by a ticket. It has none itself: what transfers of the same contents have is theirs.
pub struct TicketSource {
    office: Office,
    clock: SharedClock,
}

impl TicketSource {
    /// For tickets of this office's server.
    pub fn new(office: Office, clock: SharedClock) -> Self {
        Self { office, clock }
    }
}

impl ChunkSource for TicketSource {
    fn may_have(&self, scope: &Scope, asker: &DeviceId) -> Result<bool> {
        let Scope::Ticket(shown) = scope else { return Ok(false) };
        let view = self.office.view();
        // Without a server there is nobody whose word it could be.
        let server = view.server().ok_or_else(unknown_scope)?;
        let now_ms = self.clock.now_ms();
        Ticket::verify(&server.ca_pem, shown.ticket(), shown.signature(), asker, now_ms).map(|_| true)
    }

    fn locate(&self, _: &Scope, _: &ChunkId) -> Result<Option<Place>> {
        Ok(None)
    }

    fn holdings(&self, _: &Scope, _: &[[u8; 32]]) -> Result<Holdings> {
        Ok(Holdings::default())
    }

    fn moved(&self, _: &Scope, _: &ChunkId, _: &Place) {}
}
