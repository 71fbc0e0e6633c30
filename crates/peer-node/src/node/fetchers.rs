//! Transfers as parcels and copies use them.

use crate::model::TransferId;
use crate::transfer::{Order, Progress, State, Transfers, Verb};
use crate::{mailbox, twoway};
use common::error::{Error, Kind, Reason, Result};
use futures_util::future::BoxFuture;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;

/// What parcels need is what transfers offer.
impl mailbox::Fetcher for Transfers {
    fn start(&self, order: Order) -> BoxFuture<'static, Result<TransferId>> {
        let transfers = self.clone();
        Box::pin(async move { Transfers::start(&transfers, order).await })
    }

    fn watch(&self, id: &TransferId) -> Option<watch::Receiver<Progress>> {
        Transfers::watch(self, id).ok()
    }
}

impl twoway::Fetcher for Transfers {
    fn fetch(&self, order: Order, patience: Duration) -> BoxFuture<'static, Result<()>> {
        let transfers = self.clone();
        Box::pin(async move {
            let id = Transfers::start(&transfers, order).await?;
            let outcome = while_it_moves(&transfers, &id, patience).await;
            if outcome.is_err() {
                // Nothing may be written any more when this returns.
                let _ = transfers.control(&id, Verb::Cancel);
                transfers.wait(&id).await?;
            }
            outcome
        })
    }

    fn give_up(&self, below: PathBuf) -> BoxFuture<'static, ()> {
        let transfers = self.clone();
        Box::pin(async move {
            let open =
                transfers.list().into_iter().filter(|p| !p.state.is_ended() && p.destination.starts_with(&below));
            for progress in open {
                // One that has gone meanwhile writes nothing either.
                let _ = transfers.control(&progress.id, Verb::Cancel);
                let _ = transfers.wait(&progress.id).await;
            }
        })
    }
}

/// Waits until it is done and safe; an error if it failed, or if nothing moved for the patience.
async fn while_it_moves(transfers: &Transfers, id: &TransferId, patience: Duration) -> Result<()> {
    let mut progress = transfers.watch(id)?;
    let mut moved = 0;
    let stands = || {
        Error::new(Reason::PeerUnreachable, "nobody who has the content is there").why_is("nothing moved for too long")
    };
    loop {
        let now = progress.borrow_and_update().clone();
        match now.state {
            State::Done => return transfers.wait_settled(id).await.map(drop),
            State::Failed => return Err(now.problem.map_or_else(|| Error::internal("a transfer failed"), error_of)),
            State::Cancelled => return Err(Error::new(Reason::Cancelled, "the transfer was cancelled")),
            _ => {}
        }
        let further = progress.wait_for(|p| p.state.is_ended() || p.done_bytes > moved);
        match tokio::time::timeout(patience, further).await {
            Ok(Ok(p)) => moved = p.done_bytes,
            Ok(Err(_)) => return Err(Error::new(Reason::ShuttingDown, "the node stops")),
            Err(_) => return Err(stands()),
        }
    }
}

/// A transfer's problem as the error that it was.
fn error_of(problem: crate::transfer::Problem) -> Error {
    let known = Reason::ALL.iter().find(|r| r.word() == problem.reason);
    Error::remote(known.map_or(Kind::Internal, |r| r.kind()), problem.reason, problem.message, problem.why, problem.fix)
}
