//! What keeps the modules together while the node runs: who belongs, where others are, what this node says of itself.
//!
//! * Announcements of others: their addresses are where they are tried.
//! * This node's announcement: made anew when it joins, when its name changes, and when its addresses do.
//!
//! Nothing here closes the connections of a device that was cut off: each of its calls is refused from then on, and the
//! network ends what is open at its next look. Meanwhile gossip brings the device itself the news, so that it knows.

use crate::local::Parts;
use crate::net::{FoundBy, LinkEvent};
use crate::office::{Announced, News};
use common::error::Kind;
use common::shutdown::Shutdown;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;

/// Addresses come and go together when a cable is plugged in.
const GATHER: Duration = Duration::from_millis(100);
/// A store that was busy is asked again after this time.
const AGAIN: Duration = Duration::from_secs(5);
/// Commits that the store's change log keeps: nobody follows it here.
const CHANGES_KEPT: u64 = 1_000;
/// How often it is cut.
const TRIM_EVERY: Duration = Duration::from_secs(600);

/// Starts all of it.
pub(super) fn start(parts: &Arc<Parts>, shutdown: &Shutdown) {
    let gossip = crate::office::gossip(parts.office.clone(), parts.network.clone(), shutdown.token());
    shutdown.spawn(gossip);
    shutdown.spawn_until(learn(parts.clone()));
    shutdown.spawn_until(announce(parts.clone()));
    shutdown.spawn_until(trim(parts.clone()));
}

async fn learn(parts: Arc<Parts>) {
    let mut news = parts.office.news();
    loop {
        let me = parts.office.me();
        for announcement in parts.office.announcements() {
            let info = announcement.info();
            if info.device == me {
                continue;
            }
            for address in &info.addresses {
                parts.network.learn(info.device, *address, FoundBy::Member);
            }
            parts.network.set_relay(info.device, info.relays);
        }
        loop {
            match news.recv().await {
                Ok(News::Announcements { .. } | News::Records { .. }) | Err(RecvError::Lagged(_)) => break,
                Ok(_) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }
}

async fn announce(parts: Arc<Parts>) {
    let mut views = parts.office.subscribe();
    let mut events = parts.network.events();
    let mut said = None;
    loop {
        let view = views.borrow_and_update().clone();
        let now = (view.node_name(&view.me()), parts.network.addresses());
        if view.is_member(&view.me()) && said.as_ref() != Some(&now) {
            match parts.office.announce(parts.announced()).await {
                Ok(_) => said = Some(now),
                // Cut off meanwhile, for example: there is nobody to tell.
                Err(error) if error.kind() == Kind::Unauthenticated => {}
                Err(error) => {
                    tracing::warn!(%error, "this node could not be announced; trying again");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
        }
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            () = addresses_changed(&mut events) => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}

async fn addresses_changed(events: &mut tokio::sync::broadcast::Receiver<LinkEvent>) {
    loop {
        match events.recv().await {
            Ok(LinkEvent::AddressChanged) | Err(RecvError::Lagged(_)) => return,
            Ok(_) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

async fn trim(parts: Arc<Parts>) {
    loop {
        let keep_after = parts.store.revision().saturating_sub(CHANGES_KEPT);
        if let Err(error) = parts.store.trim_changes(keep_after).await {
            tracing::warn!(%error, "the store's change log could not be cut");
        }
        tokio::time::sleep(TRIM_EVERY).await;
    }
}

impl Parts {
    /// What this node says of itself.
    fn announced(&self) -> Announced {
        Announced {
            addresses: self.network.addresses(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            relays: self.network.relays(),
            keeps_parcels: self.settings.outbox.keeper,
            instance: self.presence.instance(),
        }
    }
}
