//! What transfers have fetched so far, as a source for others: from the first piece on, and for some time after the end.
//!
//! Rights are not decided here: whoever knows a scope (the catalogue a share, the mailbox a parcel, the office's server a
//! ticket) says who may have it. A ticket opens what was fetched by tickets, of any machine, as far as it names the content.

use super::feed::Feeds;
use super::plan::Plan;
use super::scheduler::Piece;
use super::writer::Writer;
use crate::model::{Scope, Subject, TransferId};
use crate::source::{ChunkSource, Holdings, Place};
use common::error::Result;
use common::model::{ChunkId, DeviceId};
use parking_lot::RwLock;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::mpsc;

/// One transfer's pieces.
pub struct Holding {
    /// What was ordered.
    pub plan: Arc<Plan>,
    /// What is there of it.
    pub writer: Arc<Writer>,
    /// Told of pieces that were found damaged, while the transfer runs.
    pub lost: mpsc::Sender<Piece>,
}

/// All transfers that can be served from.
pub struct Parts {
    all: RwLock<HashMap<TransferId, Arc<Holding>>>,
    feeds: Feeds,
}

impl Parts {
    /// None yet. News of lost pieces go to `feeds`.
    pub fn new(feeds: Feeds) -> Self {
        Self { all: RwLock::new(HashMap::new()), feeds }
    }

    /// One more.
    pub fn add(&self, id: TransferId, holding: Holding) {
        self.all.write().insert(id, Arc::new(holding));
    }

    /// One less.
    pub fn remove(&self, id: &TransferId) {
        self.all.write().remove(id);
    }

    /// The transfers that have something of a subject.
    fn of(&self, subject: &Subject) -> Vec<Arc<Holding>> {
        self.all.read().values().filter(|h| h.plan.order.scope.subject().overlaps(subject)).cloned().collect()
    }

    fn place(holding: &Holding, chunk: &ChunkId) -> Option<Place> {
        let piece = holding.plan.piece_of(chunk)?;
        let len = holding.plan.pieces.get(piece as usize)?.len;
        let (path, offset, stamp) = holding.writer.locate(piece)?;
        Some(Place::File { path, offset, len, stamp })
    }

    fn drop_piece(&self, holding: &Holding, chunk: &ChunkId, place: &Place) {
        let Some(piece) = holding.plan.piece_of(chunk) else { return };
        // A file that took its name while it was read is no loss: look again where it is now.
        if Self::place(holding, chunk).is_none_or(|now| !same_spot(&now, place)) {
            return;
        }
        if let Err(error) = holding.writer.lost(piece) {
            tracing::warn!(%error, "a lost piece could not be noted");
        }
        self.feeds.publish_pieces(&holding.plan, &[], &[piece]);
        // Nobody listens after the end of the transfer, and then nobody need know.
        let _ = holding.lost.try_send(piece);
    }
}

fn same_spot(a: &Place, b: &Place) -> bool {
    match (a, b) {
        (Place::File { path: p, offset: o, .. }, Place::File { path: q, offset: r, .. }) => p == q && o == r,
        _ => false,
    }
}

impl ChunkSource for Parts {
    fn may_have(&self, _: &Scope, _: &DeviceId) -> Result<bool> {
        Ok(false)
    }

    fn locate(&self, scope: &Scope, chunk: &ChunkId) -> Result<Option<Place>> {
        let subject = scope.subject();
        let reached = |h: &Arc<Holding>| {
            let piece = h.plan.piece_of(chunk)?;
            h.plan.is_about(piece, &subject).then(|| Self::place(h, chunk))?
        };
        Ok(self.of(&subject).iter().find_map(reached))
    }

    fn holdings(&self, scope: &Scope, manifests: &[[u8; 32]]) -> Result<Holdings> {
        let subject = scope.subject();
        let asked: HashSet<&[u8; 32]> = manifests.iter().collect();
        let mut have = HashSet::new();
        for holding in self.of(&subject) {
            let held = holding.writer.have();
            let all = manifests.is_empty() && holding.plan.order.scope.subject() == subject;
            if all || held.is_empty() {
                have.extend(held.iter().map(|p| holding.plan.pieces[p].id));
                continue;
            }
            for (n, file) in holding.plan.order.files.iter().enumerate() {
                let digest = &file.content.digest;
                if (manifests.is_empty() || asked.contains(digest)) && subject.reaches(digest) {
                    let pieces = holding.plan.pieces_of(n as u32).iter().filter(|p| held.has(**p as usize));
                    have.extend(pieces.map(|p| holding.plan.pieces[*p as usize].id));
                }
            }
        }
        Ok(Holdings { complete: false, have: have.into_iter().collect() })
    }

    fn moved(&self, scope: &Scope, chunk: &ChunkId, place: &Place) {
        self.of(&scope.subject()).iter().for_each(|h| self.drop_piece(h, chunk, place));
    }

    fn find(&self, chunk: &ChunkId) -> Option<Place> {
        let all: Vec<Arc<Holding>> = self.all.read().values().cloned().collect();
        all.iter().find_map(|h| Self::place(h, chunk))
    }

    fn stale(&self, chunk: &ChunkId, place: &Place) {
        let all: Vec<Arc<Holding>> = self.all.read().values().cloned().collect();
        all.iter().for_each(|h| self.drop_piece(h, chunk, place));
    }
}
