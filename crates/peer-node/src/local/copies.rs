//! Copies of two-way shares, and their conflicts.

use super::Parts;
use super::office::timestamp;
use super::shares::absolute;
use crate::twoway::{Conflict, Keep};
use common::error::{Error, Reason, Result};
use proto::peer::v1 as peer;

fn wire_conflict(c: Conflict) -> peer::Conflict {
    peer::Conflict {
        share: c.share_name,
        path: c.path.to_string_lossy().into_owned(),
        other_path: c.other_path.to_string_lossy().into_owned(),
        other_node: c.other_node,
        create_time: Some(timestamp(c.create_ms)),
    }
}

impl Parts {
    pub(super) async fn mirror_share(&self, r: peer::MirrorShareRequest) -> Result<peer::LocalShare> {
        let path = absolute(&r.path, "path")?;
        let share = self.twoway.mirror(&r.address, path).await?;
        Ok(self.wire_share(share))
    }

    pub(super) fn list_conflicts(&self, r: &peer::ListConflictsRequest) -> peer::ListConflictsResponse {
        let share = (!r.share.is_empty()).then_some(r.share.as_str());
        peer::ListConflictsResponse { conflicts: self.twoway.conflicts(share).into_iter().map(wire_conflict).collect() }
    }

    pub(super) async fn resolve_conflict(
        &self,
        r: peer::ResolveConflictRequest,
    ) -> Result<peer::ResolveConflictResponse> {
        use peer::resolve_conflict_request::Keep as Wire;
        let keep = match r.keep() {
            Wire::Mine => Keep::Mine,
            Wire::Theirs => Keep::Theirs,
            Wire::Both => Keep::Both,
            Wire::Unspecified => {
                return Err(
                    Error::new(Reason::FieldInvalid, "it is not said which version stays").with("field", "keep")
                );
            }
        };
        self.twoway.resolve(&absolute(&r.path, "path")?, keep).await?;
        Ok(peer::ResolveConflictResponse {})
    }
}
