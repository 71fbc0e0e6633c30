//! How the node is.

use super::Parts;
use proto::peer::v1 as peer;

impl Parts {
    /// How it is, in one line for systemd.
    pub fn status_line(&self) -> String {
        match self.store.is_failed() {
            true => "the store has failed; restart the peer".to_owned(),
            false => "running".to_owned(),
        }
    }

    /// How it is, in full.
    pub(super) fn status(&self) -> peer::GetStatusResponse {
        peer::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device_id: self.key.device_id().to_string(),
            problems: self.problems(),
            ..peer::GetStatusResponse::default()
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
        failed.into_iter().collect()
    }
}
