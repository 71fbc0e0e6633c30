//! What a holder may still believe about its lease.

use super::{Grant, LeaseId, Token};
use std::time::{Duration, Instant};

/// A lease as its holder counts it: always shorter than the owner does.
///
/// Time runs from when the question was *sent*, not from when the answer came, and ends [`Grant::skew`] earlier: whatever the
/// network did in between, the owner's time of the same lease ends later. It is a courtesy that saves refused operations;
/// safety is the owner's check of the token.
#[derive(Clone, Debug)]
pub struct Held {
    grant: Grant,
    sent: Instant,
}

impl Held {
    /// From the answer to a question that was sent at `sent`.
    pub fn new(grant: Grant, sent: Instant) -> Self {
        Self { grant, sent }
    }

    /// Takes in the answer to a renewal that was sent at `sent`. An answer that was overtaken by a later one changes nothing.
    pub fn renewed(&mut self, grant: Grant, sent: Instant) {
        if grant.id == self.grant.id && sent >= self.sent {
            *self = Self { grant, sent };
        }
    }

    /// Which.
    pub fn id(&self) -> LeaseId {
        self.grant.id
    }

    /// To be shown on each use.
    pub fn token(&self) -> Token {
        self.grant.token
    }

    /// Others wait for the device.
    pub fn is_wanted(&self) -> bool {
        self.grant.wanted
    }

    /// From then on it must not be used, unless it is renewed before.
    pub fn stop_at(&self) -> Instant {
        self.sent + self.grant.ttl.saturating_sub(self.grant.skew)
    }

    /// Whether it may be used now.
    pub fn is_usable(&self, now: Instant) -> bool {
        now < self.stop_at()
    }

    /// When to renew it: after a third of its time, so that two attempts may be lost.
    pub fn renew_at(&self) -> Instant {
        self.sent + (self.grant.ttl / 3).max(Duration::from_millis(1))
    }
}
