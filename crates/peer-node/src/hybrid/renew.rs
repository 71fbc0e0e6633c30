//! Tickets that end before their transfer does.
//!
//! A transfer keeps the ticket with which it began: it names the transfer's scope. What is shown to others is the newest
//! ticket for the same contents, which this module gets from the server shortly before the old one ends. It forgets all of
//! them when the node ends; after a start each is renewed again when it is needed. If a file has changed or may not be
//! read any more, the old ticket stays, and what can be had by it.

use super::Hybrid;
use crate::model::{Scope, ShownTicket};
use common::error::Result;
use common::ticket::Ticket;
use parking_lot::Mutex;
use proto::v1;
use std::collections::HashMap;
use std::time::Duration;

/// A ticket is renewed when it has less than this.
const BEFORE_MS: u64 = 60 * 60 * 1000;
/// Not tried more often.
const AGAIN_MS: u64 = 60 * 1000;
/// The server gets this time; the transfer waits for it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Tickets that are known to have been renewed, or to be asked for again later.
const KNOWN: usize = 1_024;

struct Renewal {
    tried_ms: u64,
    newest: Option<ShownTicket>,
}

/// By the ticket with which a transfer began.
#[derive(Default)]
pub struct Renewals(Mutex<HashMap<ShownTicket, Renewal>>);

impl Renewals {
    fn newest(&self, ticket: &ShownTicket) -> ShownTicket {
        self.0.lock().get(ticket).and_then(|r| r.newest.clone()).unwrap_or_else(|| ticket.clone())
    }

    /// True if it may be tried now; notes that it is.
    fn may_try(&self, ticket: &ShownTicket, now_ms: u64) -> bool {
        let mut all = self.0.lock();
        if let Some(known) = all.get_mut(ticket) {
            let due = now_ms.saturating_sub(known.tried_ms) >= AGAIN_MS;
            if due {
                known.tried_ms = now_ms;
            }
            return due;
        }
        if all.len() >= KNOWN {
            let oldest = all.iter().min_by_key(|(_, r)| r.tried_ms).map(|(t, _)| t.clone());
            oldest.map(|t| all.remove(&t));
        }
        all.insert(ticket.clone(), Renewal { tried_ms: now_ms, newest: None });
        true
    }

    fn put(&self, ticket: &ShownTicket, newest: ShownTicket) {
        if let Some(known) = self.0.lock().get_mut(ticket) {
            known.newest = Some(newest);
        }
    }
}

/// True if it has ended or soon will.
fn is_due(ticket: &ShownTicket, now_ms: u64) -> bool {
    Ticket::read(ticket.ticket()).is_ok_and(|t| t.expire_ms <= now_ms.saturating_add(BEFORE_MS))
}

impl Hybrid {
    /// The scope as it is to be shown now.
    pub(super) fn shown(&self, scope: &Scope) -> Scope {
        match scope {
            Scope::Ticket(ticket) => Scope::Ticket(self.0.renewals.newest(ticket)),
            other => other.clone(),
        }
    }

    /// The same, renewed first if it is about to end.
    pub(super) async fn renewed(&self, scope: Scope) -> Scope {
        let Scope::Ticket(ticket) = &scope else { return scope };
        let now = self.0.clock.now_ms();
        if is_due(&self.0.renewals.newest(ticket), now) && self.0.renewals.may_try(ticket, now) {
            match tokio::time::timeout(PATIENCE, self.renew_ticket(ticket)).await {
                Ok(Ok(Some(newest))) => self.0.renewals.put(ticket, newest),
                Ok(Ok(None)) => {
                    tracing::info!("the files of a transfer have changed; its read ticket cannot be renewed")
                }
                Ok(Err(error)) => tracing::info!(%error, "a read ticket could not be renewed yet"),
                Err(_) => tracing::info!("a read ticket could not be renewed yet: the server does not answer"),
            }
        }
        self.shown(&scope)
    }

    /// A new ticket for just the same contents; `None` if the files have others now.
    async fn renew_ticket(&self, ticket: &ShownTicket) -> Result<Option<ShownTicket>> {
        let shelf = self.shelf(ticket).await?;
        let request = v1::IssueReadTicketRequest {
            paths: shelf.files.iter().map(|f| f.path.clone()).collect(),
            device_id: self.0.office.me().0.to_vec().into(),
        };
        let issued = self.issue(request).await?;
        if issued.ticket.is_empty() {
            return Ok(None);
        }
        let newest = ShownTicket::read(&issued.ticket, &issued.signature)?;
        if newest.manifests() != ticket.manifests() {
            return Ok(None);
        }
        self.0.shelves.keep(&newest, shelf, self.0.clock.now_ms()).await?;
        Ok(Some(newest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::model::DeviceId;
    use common::tls::OfficeCa;

    const NOW: u64 = 1_700_000_000_000;

    fn ticket(ca: &OfficeCa, begin_ms: u64) -> ShownTicket {
        let (bytes, signature) = Ticket::new("acme", DeviceId([1; 32]), [[7; 32]], begin_ms).sign(ca).unwrap();
        ShownTicket::read(&bytes, &signature).unwrap()
    }

    #[test]
    fn a_ticket_is_renewed_in_its_last_hour_and_not_asked_for_all_the_time() {
        let ca = OfficeCa::create("acme", NOW).unwrap();
        let (old, new) = (ticket(&ca, NOW), ticket(&ca, NOW + 80_000_000));
        assert!(!is_due(&old, NOW) && is_due(&old, NOW + 24 * 3_600_000 - BEFORE_MS) && is_due(&old, u64::MAX));
        let renewals = Renewals::default();
        assert_eq!(renewals.newest(&old), old);
        assert!(
            renewals.may_try(&old, NOW) && !renewals.may_try(&old, NOW + 1) && renewals.may_try(&old, NOW + AGAIN_MS)
        );
        renewals.put(&old, new.clone());
        assert_eq!(renewals.newest(&old), new);
        for n in 0..2 * KNOWN as u64 {
            renewals.may_try(&ticket(&ca, NOW + n * 1_000), NOW + n);
        }
        assert!(renewals.0.lock().len() <= KNOWN);
    }
}
