//! Leases of devices with fencing tokens, decided without IO.
//!
//! The node that owns a device grants its leases and checks them on each use; nobody else can say whose turn it is
//! (`docs/adr/0011-devices.md`). [`Table`] is the decision code of one device: a plain state that takes an [`Event`] and a time
//! and gives an [`Answer`] and [`Action`]s. [`Leases`] keeps the tables of a node's devices, a clock, the stored tokens and
//! the audit. [`Held`] is the other side: what a holder may still believe.
//!
//! # Rules
//!
//! * **Tokens only rise**, also across restarts: a range of them is on disk before the first of it is given
//!   ([`TokenStore`]). A token is accepted only while its lease lives, so a stale one is refused whatever came after it.
//! * **An exclusive lease is alone.** A lease that has ended while its holder's operation still runs at the device
//!   ([`Use`]) blocks the next one until that operation has returned.
//! * **First come, first served**: nobody overtakes, so a shared lease waits behind an exclusive one that waits. Who holds
//!   for longer than [`Rules::turn`] while others wait is not prolonged. With both, everybody who stays gets a turn.
//! * **Silence ends** a lease and a place in the queue after [`Rules::ttl`]. The holder stops by itself [`Rules::skew`]
//!   earlier, counted from when it *asked*, so it stops before the owner gives the device to the next.
//! * **A restart of the owner ends all leases**: they are kept in memory, only tokens are on disk. Old tokens are refused.
//!
//! Time is monotonic. Where it stands still while a machine sleeps, a sleeping owner's leases live longer, which harms
//! nobody since the owner is the door; a holder that slept finds its token refused.
//!
//! # Bounds
//!
//! Those of [`Rules`]: shared holders, places in the queue (and how many of one machine), notes and their length; the
//! devices of a node ([`running`]); 64 leases that ended are remembered per device, to say why.

pub mod running;
pub mod table;
pub mod tokens;

mod holder;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use crate::model::Caller;
use std::fmt;
use std::time::Duration;
use uuid::Uuid;

pub use holder::Held;
pub use running::{Leases, Monotonic, Overview, SystemMonotonic, Use};
pub use table::{Action, Answer, Event, Table};
pub use tokens::{MemoryTokens, StoreTokens, TokenStore};

/// A fencing token: given with a lease, shown on each use. Those of one device only rise. 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Token(pub u64);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lease, or the wish for one: chosen at random by who asks, so that asking again after a lost answer asks for nothing new.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LeaseId(pub Uuid);

impl LeaseId {
    /// A new one.
    pub fn generate() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for LeaseId {
    type Err = uuid::Error;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(s).map(Self)
    }
}

/// How a device is held.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// With others.
    Shared,
    /// Alone.
    Exclusive,
}

impl Mode {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Exclusive => "exclusive",
        }
    }
}

/// The bounds and times of a device's leases.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Silence that ends a lease or a place in the queue. Default: 30 s.
    pub ttl: Duration,
    /// How much earlier than that a holder stops: more than the drift of two clocks in one `ttl`. Default: 3 s.
    pub skew: Duration,
    /// How long one may hold while others wait. Default: 2 h.
    pub turn: Duration,
    /// Shared holders at a time. Default: 256.
    pub holders: usize,
    /// Places in the queue. Default: 64.
    pub waiters: usize,
    /// Leases and places in the queue of one machine. Default: 8.
    pub per_machine: usize,
    /// Notes to the holder that are kept; the oldest goes. Default: 16.
    pub notes: usize,
    /// Longest note or purpose in bytes; longer ones are cut. Default: 280.
    pub text_bytes: usize,
    /// How soon the same person may send another note. Default: 10 s.
    pub note_every: Duration,
    /// Tokens that are reserved on disk at a time. Default: 64.
    pub tokens_at_once: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            skew: Duration::from_secs(3),
            turn: Duration::from_secs(2 * 3600),
            holders: 256,
            waiters: 64,
            per_machine: 8,
            notes: 16,
            text_bytes: 280,
            note_every: Duration::from_secs(10),
            tokens_at_once: 64,
        }
    }
}

/// What somebody wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    /// Chosen by who asks.
    pub id: LeaseId,
    /// Alone or with others.
    pub mode: Mode,
    /// Whether to wait in the queue if it cannot be had now.
    pub wait: bool,
    /// What for, shown to others; may be empty.
    pub purpose: String,
}

impl Ask {
    /// A wish for a lease with a new id.
    pub fn new(mode: Mode, wait: bool, purpose: impl Into<String>) -> Self {
        Self { id: LeaseId::generate(), mode, wait, purpose: purpose.into() }
    }
}

/// A lease as its holder gets it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// Which.
    pub id: LeaseId,
    /// To be shown on each use.
    pub token: Token,
    /// Alone or with others.
    pub mode: Mode,
    /// It ends after this long without [`Leases::renew`], from now on.
    pub ttl: Duration,
    /// Stop using it that much earlier (see [`Held`]).
    pub skew: Duration,
    /// Others wait: give it back when you can.
    pub wanted: bool,
}

/// Where somebody stands who asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Has the lease.
    Granted(Grant),
    /// Is in the queue. The place must be kept by [`Leases::renew`] within [`Rules::ttl`].
    Waiting {
        /// 1 is the next.
        place: usize,
        /// Who has the device now.
        holders: Vec<Caller>,
    },
}

/// Why a lease or a place in the queue came to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Its holder gave it back.
    Released,
    /// Nothing was heard for [`Rules::ttl`].
    Silence,
    /// Somebody who manages the device took it.
    TakenBack {
        /// The person.
        by: String,
        /// What that person said.
        reason: String,
    },
    /// The device is no longer shared.
    Closed,
}

impl Ending {
    /// The word for the audit.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Silence => "silence",
            Self::TakenBack { .. } => "taken-back",
            Self::Closed => "unshared",
        }
    }
}

/// A note of somebody who would like to have the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// Who.
    pub from: Caller,
    /// What was said.
    pub text: String,
    /// How long ago.
    pub age: Duration,
}
