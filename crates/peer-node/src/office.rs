//! Who belongs: signed records, invites, groups, gossip.
//!
//! # Design
//!
//! Membership is a set of signed records that only grows ([`Ledger`]); who belongs is a pure function of the set
//! (`rule.rs`), so nodes that hold the same records see the same office, in whatever order they came. What a node says
//! about itself (addresses and so on) is an announcement, signed too, of which the newest counts ([`Board`]).
//!
//! ```text
//!  record    what is stated, signed           closure   who ever had which right
//!  ledger    the set that a node keeps        rule      set -> View
//!  announce  the newest word of each node     kept      what is in the store
//!  author    statements of this node (draft)  merge     records of others
//!  invite    codes       enrol   joining      gossip    whom to tell what (pure)   driver  doing it
//!  grpc      the two services                 sealing   the key for sealed parcels
//! ```
//!
//! [`Office`] is the handle. It holds ledger and board in memory behind a lock that is never held across a wait, and
//! publishes a [`View`] after each change. Statements of this node are made one after the other (their sequence is a
//! chain), in tasks of their own, so that a caller that goes away does not leave one half made.
//!
//! # Durable before use
//!
//! Records are in the store before they count here, are acknowledged or are passed on. A crash in between leaves records
//! that are taken in at the next start; a crash before leaves nothing, and nobody was told anything else. An invite is
//! removed in the same transaction as the admission is written.
//!
//! # Bounds
//!
//! 20,000 records (1,000 more for revocations), 4,096 of one author, 16 KiB each: [`Ledger`] says what happens then. One
//! announcement of 16 KiB per member. 100 invites, 64 exchanges. News to the gossip task: 1,024, behind which it asks its
//! neighbours for everything instead.

mod announce;
mod author;
mod closure;
mod draft;
mod driver;
mod enrol;
mod gossip;
mod grpc;
mod invite;
mod kept;
mod ledger;
mod merge;
mod names;
mod record;
mod rule;
mod sealing;
mod view;

pub use announce::{Announced, Announcement, Board, Difference, MAX_ANNOUNCEMENT_BYTES, NodeInfo};
pub use closure::Closure;
pub use draft::{Draft, MemberPatch, found};
pub use driver::{Change, Neighbours, Spread, gossip, say_goodbye};
pub use enrol::{Joined, key_digest};
pub use gossip::{Action, Event, Facts, Gossip, HELLO_EVERY};
pub use grpc::{EnrolmentServer, MembershipServer, Surroundings, enrolment_service, membership_service};
pub use invite::{Invite, InviteOptions, MAX_INVITES};
pub use ledger::{Inserted, Lacking, Ledger, MAX_AUTHOR_RECORDS, MAX_RECORDS, REVOCATION_RESERVE, cut};
pub use merge::{MAX_PUSH_BYTES, MAX_PUSH_RECORDS, MergeReport};
pub use names::{EVERYONE, check_machine, check_office, check_principal, check_unit};
pub use record::{
    Admission as AdmissionRecord, Kind, MAX_RECORD_BYTES, Profile, Record, RecordId, Rights, Statement, StatementId,
    id_of,
};
pub use rule::evaluate;
pub use sealing::{sealing_key, sealing_secret};
pub use view::{CentralServer, Member, View, check_member};

use self::invite::Invites;
use crate::net::{Admission, NodeChannel};
use common::clock::SharedClock;
use common::enrol::Exchanges;
use common::error::{Error, Reason, Result};
use common::identity::DeviceKey;
use common::model::DeviceId;
use common::store::Store;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{Semaphore, broadcast, watch};

/// News that wait for the gossip task.
const NEWS_QUEUE: usize = 1_024;
/// Devices whose misdeeds are counted.
const MAX_BLAMED: usize = 1_000;
/// So often a misdeed is logged.
const BLAME_EVERY_MS: u64 = 60_000;
/// Strangers that may introduce themselves at the same moment.
const INTRODUCTIONS: usize = 4;

/// What happened, for the gossip task.
#[derive(Clone, Debug)]
pub enum News {
    /// Records are kept now that were not before.
    Records {
        /// Which.
        ids: Arc<[RecordId]>,
        /// One of them cuts a device off.
        urgent: bool,
        /// Who brought them; `None`: this node.
        from: Option<DeviceId>,
    },
    /// Announcements are newer now.
    Announcements {
        /// Who brought them; `None`: this node.
        from: Option<DeviceId>,
    },
    /// This neighbour has records that this node needs before it can take what it was given.
    Behind(DeviceId),
    /// What a neighbour said it holds, when it called or answered.
    Heard(DeviceId, Facts),
    /// Where a neighbour saw this node come from.
    Observed {
        /// Who.
        by: DeviceId,
        /// The address.
        address: SocketAddr,
    },
    /// A neighbour said goodbye.
    Left {
        /// Who.
        device: DeviceId,
        /// Which start of its program: one that began since has not ended.
        instance: [u8; 8],
    },
}

/// The office that this node belongs to, or may belong to one day. Clones are handles to the same one.
#[derive(Clone)]
pub struct Office(Arc<Inner>);

struct Inner {
    store: Store,
    key: Arc<DeviceKey>,
    clock: SharedClock,
    state: Mutex<State>,
    invites: Mutex<Invites>,
    exchanges: Exchanges,
    view: watch::Sender<Arc<View>>,
    news: broadcast::Sender<News>,
    /// One statement of this node at a time.
    authoring: Semaphore,
    introductions: Semaphore,
    /// Who brought forged or malformed records: how many, and when it was last logged.
    blamed: Mutex<HashMap<DeviceId, (u64, u64)>>,
}

#[derive(Default)]
struct State {
    ledger: Option<Ledger>,
    board: Board,
}

impl Office {
    /// Reads what is in the store. Blocks.
    ///
    /// # Errors
    /// STORE_CORRUPT if a record cannot be read; those of the store.
    pub fn open(store: Store, key: Arc<DeviceKey>, clock: SharedClock) -> Result<Self> {
        let kept = kept::read(&store)?;
        let me = key.device_id();
        let view = kept.ledger.as_ref().map_or_else(|| View::empty(me), |ledger| evaluate(ledger, me));
        let mut board = Board::default();
        for announcement in kept.announcements {
            board.take(announcement, &view);
        }
        Ok(Self(Arc::new(Inner {
            store,
            key,
            exchanges: Exchanges::new(clock.clone()),
            clock,
            state: Mutex::new(State { ledger: kept.ledger, board }),
            invites: Mutex::new(Invites::of(kept.invites)),
            view: watch::Sender::new(Arc::new(view)),
            news: broadcast::Sender::new(NEWS_QUEUE),
            authoring: Semaphore::new(1),
            introductions: Semaphore::new(INTRODUCTIONS),
            blamed: Mutex::default(),
        })))
    }

    /// Who belongs now: a snapshot.
    pub fn view(&self) -> Arc<View> {
        self.0.view.borrow().clone()
    }

    /// Follows who belongs.
    pub fn subscribe(&self) -> watch::Receiver<Arc<View>> {
        self.0.view.subscribe()
    }

    /// Follows what the gossip task must know. Who falls 1,024 behind is told so by the receiver.
    pub fn news(&self) -> broadcast::Receiver<News> {
        self.0.news.subscribe()
    }

    /// This device.
    pub fn me(&self) -> DeviceId {
        self.0.key.device_id()
    }

    /// This device's key.
    pub fn key(&self) -> &Arc<DeviceKey> {
        &self.0.key
    }

    /// The time by this node's clock.
    pub fn clock(&self) -> &SharedClock {
        &self.0.clock
    }

    /// Runs `f` over the records; `None` before `init` or `join`. It must be short.
    pub fn with_ledger<T>(&self, f: impl FnOnce(&Ledger) -> T) -> Option<T> {
        self.0.state.lock().ledger.as_ref().map(f)
    }

    /// This node as a present member.
    ///
    /// # Errors
    /// NOT_JOINED, DEVICE_REVOKED, NOT_A_MEMBER if its admission does not count any more.
    fn present<'a>(&self, view: &'a View) -> Result<&'a Member> {
        if view.office_id().is_none() {
            return Err(Error::new(Reason::NotJoined, "this machine belongs to no office")
                .fix_is("found one with `atrium init NAME`, or join one with `atrium join`"));
        }
        check_member(view, &self.me())?;
        view.member(&self.me()).ok_or_else(|| Error::internal("a member without an entry"))
    }

    /// Notes that a device brought what no honest node sends on; says so in the log, once a minute for each device.
    fn blame(&self, device: &DeviceId, report: &MergeReport) {
        let Some(problem) = &report.problem else { return };
        let now_ms = self.0.clock.now_ms();
        let (count, say) = {
            let mut blamed = self.0.blamed.lock();
            if blamed.len() >= MAX_BLAMED && !blamed.contains_key(device) {
                return;
            }
            let (count, said_ms) = blamed.entry(*device).or_default();
            *count += report.refused as u64;
            let say = now_ms.abs_diff(*said_ms) >= BLAME_EVERY_MS;
            if say {
                *said_ms = now_ms;
            }
            (*count, say)
        };
        if say {
            let name = self.view().node_name(device);
            tracing::warn!(node = name, %device, count, problem, "a node brings forged or malformed records");
        }
    }

    /// Devices that brought forged or malformed records since the start, with their number.
    pub fn blamed(&self) -> Vec<(DeviceId, u64)> {
        self.0.blamed.lock().iter().map(|(device, (count, _))| (*device, *count)).collect()
    }

    fn tell(&self, news: News) {
        // Nobody may be listening yet: whoever begins to listen compares everything first.
        let _ = self.0.news.send(news);
    }
}

impl Admission for Office {
    fn is_member(&self, device: &DeviceId) -> bool {
        self.0.view.borrow().is_member(device)
    }

    fn is_revoked(&self, device: &DeviceId) -> bool {
        self.0.view.borrow().revoked(device)
    }

    fn introduce(&self, channel: NodeChannel) -> BoxFuture<'static, bool> {
        let office = self.clone();
        Box::pin(async move {
            office.introduce_to(channel).await.unwrap_or_else(|error| {
                tracing::debug!(reason = error.reason(), "the introduction did not help");
                false
            })
        })
    }
}

impl fmt::Debug for Office {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.view();
        write!(f, "Office({:?} {:?}, {} records)", view.name(), view.office_id(), view.record_count())
    }
}
