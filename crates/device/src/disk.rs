//! Disks: lent space that expires, and mirror places.
//!
//! A [`Lender`] offers a directory of this machine with a stated size, and keeps a reserve of the disk free for its owner. Space
//! is lent in *places*, each with a limit of its own that counts towards the size that was offered, so nothing is promised
//! twice:
//!
//! * **scratch** ([`Kind::Scratch`]): N bytes for T hours; named objects that are put resumably, read and deleted; wiped at
//!   its end and never before;
//! * **mirror place** ([`Kind::Mirror`]): sealed objects that are only ever added, for a second copy of a share; what its
//!   owner takes out goes only after a retention time. [`mirror`] is the side of that owner: it encrypts, and can check.
//!
//! # Layout
//!
//! One flat directory. Nothing in it tells names or contents of what was lent but the objects themselves, and those of
//! mirrors are sealed.
//!
//! ```text
//! lock                    held while the lender is open
//! time                    the lender's own time (see time.rs)
//! leaving                 there while the lender is about to leave
//! place-PLACE             record of a place: owner, limit, end, state
//! o-PLACE-NUMBER          an object of scratch space: header with its name, then blocks with their checksums (object.rs)
//! p-PLACE-NUMBER          one that is being put; its synced blocks are kept over a restart
//! m-PLACE-ID              an object of a mirror place
//! t-PLACE-ID              one that is being put; removed at open
//! r-PLACE-NUMBER          objects that their owner has retired, and when they go
//! *.tmp                   a record that is being written; removed at open
//! ```
//!
//! # Promises
//!
//! * Whatever is acknowledged is synced first. After a crash it is there, and nothing is half visible: an object becomes
//!   visible by a rename of a file that is whole and synced.
//! * The owner's reserve: bytes land only if the disk has that much free *beyond* the reserve, counting all that others
//!   are writing at the moment. The used bytes of a place equal the sum of its files, also after a crash. A place that is
//!   full, or a disk that is, refuses writes with `SPACE_FULL`; reads and deletes go on.
//! * Wiping is noted first, then done; a crash in between is finished at the next open.
//! * A record that is damaged (a flipped bit on the disk) locks its place: nothing in it is read, changed or wiped, and its
//!   bytes go on counting.
//!
//! # Bounds
//!
//! [`Settings`]; 1,024 places; 10,000 objects of a scratch space and 16 that are being put; 1,000,000 objects of mirrors;
//! 256 events that a slow listener may be behind. Methods block on the disk: call them on blocking threads.

mod books;
mod fake;
mod lender;
pub mod mirror;
mod object;
mod place;
mod record;
mod recover;
mod scratch;
mod time;

#[cfg(test)]
mod tests;

pub use fake::SmallDisk;
pub use lender::Lender;
pub use mirror::place::{LocalPlace, ObjectId};
pub use scratch::{ObjectStat, Upload};
pub use time::{Clocks, Reading, SystemClocks};

use crate::model::Caller;
use std::fmt;
use std::time::Duration;
use uuid::Uuid;

/// A place that was lent: chosen at random by who borrows, so that asking again after a lost answer borrows nothing new.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PlaceId(pub Uuid);

impl PlaceId {
    /// A new one.
    pub fn generate() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for PlaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.simple().fmt(f)
    }
}

impl std::str::FromStr for PlaceId {
    type Err = uuid::Error;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(s).map(Self)
    }
}

/// What a place is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Space for a time.
    Scratch,
    /// A second copy of a share, append-only.
    Mirror,
}

/// What a lender offers.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes that are lent at most, over all places.
    pub size_bytes: u64,
    /// Bytes of the disk that stay free for its owner.
    pub reserve_bytes: u64,
    /// Bytes that one person borrows at most, over all places. Default: no limit beyond the size.
    pub per_borrower_bytes: u64,
    /// Longest time for which scratch space is lent, from now on. Default: 30 days.
    pub term_max: Duration,
    /// How long what a mirror's owner has retired stays, at least. Default: 30 days.
    pub retention: Duration,
    /// Share of a place's limit, in percent, at which its borrower is warned. Default: 80.
    pub warn_percent: u64,
}

impl Settings {
    /// With this size and reserve, and defaults for the rest.
    pub fn new(size_bytes: u64, reserve_bytes: u64) -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self {
            size_bytes,
            reserve_bytes,
            per_borrower_bytes: u64::MAX,
            term_max: DAY * 30,
            retention: DAY * 30,
            warn_percent: 80,
        }
    }
}

/// What somebody wants to borrow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Borrow {
    /// Chosen by who borrows.
    pub id: PlaceId,
    /// For what.
    pub kind: Kind,
    /// Limit in bytes as they lie on disk: each scratch object costs 512 bytes and 32 for each 128 KiB more than it has,
    /// each mirror object 84 bytes more.
    pub bytes: u64,
    /// For how long, for scratch space; how long retired objects stay, for a mirror, if longer than the lender's own time.
    pub time: Duration,
    /// What for, for people; up to 64 bytes.
    pub label: String,
}

/// A place as others see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlaceView {
    /// Which.
    pub id: PlaceId,
    /// For what.
    pub kind: Kind,
    /// Whose.
    pub owner: Caller,
    /// What for.
    pub label: String,
    /// Limit in bytes.
    pub bytes: u64,
    /// Bytes used, as they lie on disk.
    pub used: u64,
    /// Visible objects.
    pub objects: usize,
    /// What is left of a scratch space's time; none for a mirror.
    pub left: Option<Duration>,
    /// How long retired objects of a mirror stay.
    pub retention: Duration,
}

/// A lender as others see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overview {
    /// Bytes that are offered.
    pub size: u64,
    /// Bytes that the limits of all places add up to.
    pub promised: u64,
    /// Bytes used.
    pub used: u64,
    /// Bytes that the disk could take now without touching the reserve.
    pub room: u64,
    /// It takes nothing new, because it will leave.
    pub leaving: bool,
    /// Places that a damaged record has locked.
    pub damaged: usize,
}

/// Something that a borrower or the owner should hear of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A place's use has passed the warning share.
    AlmostFull(PlaceView),
    /// A scratch space was wiped: its time is over, or it was given or taken back.
    Wiped(PlaceId, Caller),
    /// The disk has come down to its owner's reserve: nothing more is taken until there is room again.
    ReserveReached,
    /// The lender will leave: mirrors should be copied elsewhere.
    Leaving,
}
