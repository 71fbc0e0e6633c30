//! How the node is.

use super::Parts;
use proto::peer::v1 as peer;
use std::net::SocketAddr;

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Parts {
    /// How it is, in one line for systemd.
    pub fn status_line(&self) -> String {
        if self.store.is_failed() {
            return "the store has failed; restart the peer".to_owned();
        }
        let view = self.office.view();
        match (view.office_id(), view.revoked(&view.me())) {
            (None, _) => "in no office yet: atrium init NAME, or atrium join CODE".to_owned(),
            (_, true) => "cut off from the office".to_owned(),
            _ => format!("{}, {} connected", view.node_name(&view.me()), self.network.neighbours().len()),
        }
    }

    /// How it is, in full.
    pub(super) fn status(&self) -> peer::GetStatusResponse {
        let view = self.office.view();
        let own = view.member(&view.me());
        let (outbox, inbox) = self.parcel_counts();
        peer::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device_id: self.key.device_id().to_string(),
            office: view.name().to_owned(),
            node_name: own.map(|_| view.node_name(&view.me())).unwrap_or_default(),
            person: own.map(|m| m.person.clone()).unwrap_or_default(),
            addresses: self.network.addresses().iter().map(SocketAddr::to_string).collect(),
            member_count: count(view.present().count()),
            connected_count: count(self.network.neighbours().len()),
            share_count: count(self.catalogue.local_shares().iter().filter(|s| !s.mirror).count()),
            transfer_count: count(self.transfer_count()),
            outbox_count: count(outbox),
            inbox_waiting_count: count(inbox),
            server: view.server().map(|s| s.server.clone()).unwrap_or_default(),
            revoked: view.revoked(&view.me()),
            problems: self.problems(),
            server_joined: self.hybrid.membership().is_some(),
            server_waiting_count: count(self.hybrid.waiting()),
            server_user: self.hybrid.user(),
            server_address: crate::hybrid::server_address(&view).unwrap_or_default(),
        }
    }

    fn problems(&self) -> Vec<peer::NodeProblem> {
        use common::error::Reason;
        let failed = self.store.is_failed().then(|| peer::NodeProblem {
            reason: Reason::StoreFailed.word().into(),
            message: "this peer's database has failed".into(),
            why: Reason::StoreFailed.why().into(),
            fix: Reason::StoreFailed.fix().into(),
        });
        failed.into_iter().chain(self.devices.mirror_problems()).collect()
    }
}
