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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ShareId, ShownTicket};
    use common::clock::SystemClock;
    use common::error::Reason;
    use common::identity::DeviceKey;
    use common::store::Store;
    use common::tls::OfficeCa;
    use std::sync::Arc;

    #[tokio::test]
    async fn only_a_ticket_of_this_server_for_this_device_gives_anything() {
        let clock: SharedClock = Arc::new(SystemClock);
        let now = clock.now_ms();
        let office = Office::open(Store::memory(), Arc::new(DeviceKey::generate()), clock.clone()).unwrap();
        office.create("acme", "pc", "anna", "").await.unwrap();
        let (ca, other) = (OfficeCa::create("acme", now).unwrap(), OfficeCa::create("acme", now).unwrap());
        let source = TicketSource::new(office.clone(), clock);
        let (device, stranger) = (DeviceId([1; 32]), DeviceId([2; 32]));
        let shown = |ca: &OfficeCa, begin_ms: u64| {
            let (bytes, signature) = Ticket::new("acme", device, [[7; 32]], begin_ms).sign(ca).unwrap();
            Scope::Ticket(ShownTicket::read(&bytes, &signature).unwrap())
        };
        let refused = |scope: &Scope, asker: &DeviceId| source.may_have(scope, asker).unwrap_err();
        // Before there is a server, nobody's word counts.
        assert!(refused(&shown(&ca, now), &device).is(Reason::EntryUnknown));
        office.set_server("localhost:7443", ca.ca_pem()).await.unwrap();
        assert!(source.may_have(&shown(&ca, now), &device).unwrap());
        assert!(refused(&shown(&ca, now), &stranger).is(Reason::AccessDenied), "somebody else's ticket");
        assert!(refused(&shown(&other, now), &device).is(Reason::AccessDenied), "another server's");
        assert!(refused(&shown(&ca, now - 25 * 3_600_000), &device).is(Reason::AccessDenied), "an old one");
        assert!(!source.may_have(&Scope::Share(ShareId::generate()), &device).unwrap(), "no ticket");
    }
}
