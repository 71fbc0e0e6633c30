//! What the mailbox asks of the office, answered from its records and announcements.

use super::courier::Members;
use crate::model::OfficeId;
use crate::office::Office;
use common::model::DeviceId;

impl Members for Office {
    fn office(&self) -> OfficeId {
        // Before there is an office nothing is sent and nobody calls; no office has this id.
        self.view().office_id().unwrap_or(OfficeId([0; 32]))
    }

    fn is_member(&self, device: &DeviceId) -> bool {
        self.view().is_member(device)
    }

    fn sealing_key(&self, device: &DeviceId) -> Option<[u8; 32]> {
        self.view().member(device).map(|m| m.sealing_key)
    }

    fn person(&self, device: &DeviceId) -> String {
        self.view().member(device).map(|m| m.person.clone()).unwrap_or_default()
    }

    fn keepers(&self) -> Vec<DeviceId> {
        let view = self.view();
        let keeps = self.announcements().into_iter().filter(|a| a.info().keeps_parcels).map(|a| a.info().device);
        keeps.filter(|device| view.is_member(device)).collect()
    }
}
