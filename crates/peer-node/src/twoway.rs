//! Copies of shares that stay equal.
//!
//! A member keeps a folder as the copy of another node's share. Each copy indexes its own folder (`catalogue`), reads what
//! is new in the others' indexes, fetches what it has not (`transfer`), puts it in place and thereby offers it to others.
//! The owner's folder of a two-way share is a copy like the others. The copy of a read-only share, or one of a member that
//! may not write, follows and makes no versions.
//!
//! ```text
//!   watch ──▶ copy ──▶ want      others' entries that are to be taken, on disk
//!   (news)     │ │       │
//!              │ └─▶ decide ◀── vector      without IO: (here, there, on the disk) → what to do
//!              ▼         │
//!            fetch       ▼
//!        (contents)    place ──▶ trash, conflict      changes of the folder
//! ```
//!
//! # Invariants
//!
//! 1. A file is only replaced or removed if it is what the index says, in the moment in which it comes out of its name; and
//!    then it is in the trash, or beside its successor as a conflict copy. Nothing is deleted but old trash.
//! 2. One vector stands for one content (`vector`). Whoever loses a conflict makes a version that has seen both.
//! 3. Deletions are entries with a vector like any other and are never forgotten: whoever was away learns of them, and what
//!    he has kept does not come back. Only a change that was made without knowing of the deletion brings a file back.
//! 4. What the index says is on the disk before (`place`), so that a power cut never looks like somebody's change.
//! 5. Only the word of a device that may write at that moment is taken (`copy`).
//!
//! # Crashes
//!
//! What was read and is wanted is in the store; what was fetched and not put in place is fetched again, mostly from what is
//! here. Between a change of the folder and its note in the index, the next scan sees the change as one made here, of the
//! same content: it is joined with the other's version, and nobody notices.
//!
//! # Bounds
//!
//! Memory: pages of 1,000 entries, batches of 1,000 files or 300,000 chunks, 10,000 conflicts told for a share, 1,000
//! problems. A device that offers more than 4,000,000 changes is not read on, and named; see `copy`.

pub mod conflict;
mod copy;
pub mod decide;
pub mod fetch;
pub mod place;
mod resolve;
pub mod trash;
pub mod vector;
pub mod want;
mod watch;

#[cfg(test)]
mod sim;

pub use copy::CopyStatus;
pub use fetch::Fetcher;
pub use resolve::{Conflict, Keep};

use common::clock::SharedClock;
use common::error::{Error, Reason, Result};
use common::model::{DeviceId, Right};
use common::shutdown::Shutdown;
use common::store::Store;
use parking_lot::{Mutex, RwLock};
use proto::peer::v1::NodeProblem;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use self::copy::{Copy, blocking};
use self::want::Wants;
use self::watch::{News, no_copy};
use crate::catalogue::{Catalogue, LocalShare, Peers, Roster};
use crate::model::ShareId;

/// Changes of shares and members are gathered for so long before copies and listeners are made to fit them.
const GATHER: Duration = Duration::from_millis(100);

/// How copies are kept.
#[derive(Clone, Copy, Debug)]
pub struct TwoWaySettings {
    /// Days after which what is in the trash goes. Default: 30.
    pub trash_days: u32,
}

impl Default for TwoWaySettings {
    fn default() -> Self {
        Self { trash_days: 30 }
    }
}

/// What copies work with.
pub struct Parts {
    /// Where they keep what they know.
    pub store: Store,
    /// Shares and indexes.
    pub catalogue: Catalogue,
    /// Contents.
    pub fetcher: Arc<dyn Fetcher>,
    /// Who belongs.
    pub roster: Arc<dyn Roster>,
    /// Ways to other nodes.
    pub peers: Arc<dyn Peers>,
    /// Time of day: names what goes to the trash, and says when it goes from there.
    pub clock: SharedClock,
    /// Ends its tasks.
    pub shutdown: Shutdown,
}

/// See the module. Clones are handles to the same copies.
#[derive(Clone)]
pub struct TwoWay(Arc<Inner>);

struct Inner {
    me: DeviceId,
    store: Store,
    catalogue: Catalogue,
    fetcher: Arc<dyn Fetcher>,
    roster: Arc<dyn Roster>,
    peers: Arc<dyn Peers>,
    clock: SharedClock,
    shutdown: Shutdown,
    settings: TwoWaySettings,
    news: News,
    copies: RwLock<HashMap<ShareId, Arc<Copy>>>,
    listeners: Mutex<HashMap<DeviceId, JoinHandle<Option<()>>>>,
}

impl TwoWay {
    /// Opens it, and begins to keep the copies that there are. Call it inside a runtime.
    ///
    /// # Errors
    /// None at present.
    pub fn open(parts: Parts, settings: TwoWaySettings) -> Result<TwoWay> {
        let Parts { store, catalogue, fetcher, roster, peers, clock, shutdown } = parts;
        let inner = Arc::new(Inner {
            me: roster.me(),
            store,
            catalogue,
            fetcher,
            roster,
            peers,
            clock,
            shutdown: shutdown.clone(),
            settings,
            news: News::default(),
            copies: RwLock::default(),
            listeners: Mutex::default(),
        });
        shutdown.spawn_until(inner.clone().supervise());
        Ok(TwoWay(inner))
    }

    /// Makes a folder the copy of another node's share. The folder is made if it is missing, and must be empty: what lay in
    /// it would else be shared, and what was deleted elsewhere would come back.
    ///
    /// # Errors
    /// What resolving the address ends with; FOLDER_INVALID if the folder has something in it; ROOT_FIXED if the address is
    /// below a share; those of [`Catalogue::mirror`].
    pub async fn mirror(&self, address: &str, path: PathBuf) -> Result<LocalShare> {
        let resolved = self.0.catalogue.resolve(address).await?;
        if !resolved.path.is_empty() {
            return Err(Error::new(Reason::RootFixed, "only a whole share can be kept as a copy")
                .fix_is("name the share, or fetch this part with `atrium get`"));
        }
        if resolved.owner == self.0.me {
            return Err(Error::new(Reason::ShareExists, "this machine owns the share"));
        }
        let folder = path.clone();
        blocking(move || match std::fs::read_dir(&folder) {
            Ok(mut inside) => match inside.next() {
                None => Ok(()),
                Some(_) => Err(Error::new(Reason::FolderInvalid, "the folder for the copy is not empty")
                    .why_is("what is in it would be shared with everyone")
                    .fix_is("name an empty or a new folder")),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::new(Reason::FolderInvalid, "the folder cannot be used").caused_by(error)),
        })
        .await?;
        let share = resolved.record.share();
        // What an earlier copy of it knew is of no use to this one.
        let wants = Wants::new(self.0.store.clone(), share);
        blocking(move || wants.forget()).await?;
        let local = self.0.catalogue.mirror(&share, &path).await?;
        self.0.adjust();
        Ok(local)
    }

    /// Keeps a copy no longer; its files stay.
    ///
    /// # Errors
    /// SHARE_UNKNOWN; those of the store.
    pub async fn remove(&self, share: &str) -> Result<()> {
        let local = self.0.catalogue.local_share(share)?;
        if !local.mirror {
            return Err(no_copy());
        }
        self.0.catalogue.unshare(share).await?;
        self.0.adjust();
        let wants = Wants::new(self.0.store.clone(), local.record.share());
        blocking(move || wants.forget()).await
    }

    /// What could not be done, and why: of one share, by name, path or id, or of all.
    pub fn problems(&self, share: Option<&str>) -> Vec<NodeProblem> {
        self.0.copies_of(share).iter().flat_map(|copy| copy.status().problems).collect()
    }

    /// How a copy is, beside what the catalogue says of its folder. `None` if the share has none here.
    pub fn status(&self, share: &ShareId) -> Option<CopyStatus> {
        self.0.copy(share).map(|copy| copy.status())
    }

    /// Tells copies and listeners of shares, members and connections that are others now; they notice by themselves as well.
    pub fn adjust(&self) {
        self.0.adjust();
    }
}

impl Inner {
    fn copy(&self, share: &ShareId) -> Option<Arc<Copy>> {
        self.copies.read().get(share).cloned()
    }

    fn wake(&self, share: &ShareId) {
        if let Some(copy) = self.copy(share) {
            copy.wake();
        }
    }

    fn copies_of(&self, share: Option<&str>) -> Vec<Arc<Copy>> {
        match share {
            None => self.copies.read().values().cloned().collect(),
            Some(which) => self
                .catalogue
                .local_share(which)
                .ok()
                .and_then(|local| self.copy(&local.record.share()))
                .into_iter()
                .collect(),
        }
    }

    async fn supervise(self: Arc<Self>) {
        let mut changes = self.catalogue.changes();
        loop {
            changes.mark_unchanged();
            let office = self.roster.changed();
            self.adjust_with(&self);
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = office => {}
            }
            sleep(GATHER).await;
        }
    }

    fn adjust(self: &Arc<Self>) {
        self.adjust_with(self);
    }

    /// Has a task for each copy, and listens to each node that may have one.
    fn adjust_with(&self, this: &Arc<Self>) {
        let shares: Vec<LocalShare> = self.catalogue.local_shares();
        let is_copy = |s: &&LocalShare| !s.record.removed() && (s.mirror || s.record.terms().two_way);
        let wanted: HashMap<ShareId, &LocalShare> =
            shares.iter().filter(is_copy).map(|s| (s.record.share(), s)).collect();
        let mut fresh = false;
        {
            let mut copies = self.copies.write();
            copies.retain(|share, copy| {
                let stays = wanted.contains_key(share);
                if !stays {
                    copy.ended.cancel();
                    self.news.forget(share);
                }
                stays
            });
            for (share, local) in &wanted {
                if copies.contains_key(share) {
                    continue;
                }
                let Ok(index) = self.catalogue.index(share) else { continue };
                let copy = Copy::new(this.clone(), *share, index, local.path.clone());
                copies.insert(*share, copy.clone());
                self.shutdown.spawn(copy.run());
                fresh = true;
            }
            // Rules and rights may be others now.
            copies.values().for_each(|copy| copy.wake());
        }
        self.listen_to(this, &wanted, fresh);
    }

    fn listen_to(&self, this: &Arc<Self>, wanted: &HashMap<ShareId, &LocalShare>, fresh: bool) {
        let may = |device: &DeviceId| {
            wanted.iter().any(|(share, local)| {
                let two_way = local.record.terms().two_way;
                (two_way || local.record.owner() == *device)
                    && self.catalogue.right(share, device).is_some_and(|r| r >= Right::Read)
            })
        };
        let devices: HashSet<DeviceId> =
            self.roster.nodes().into_iter().map(|n| n.device).filter(|d| *d != self.me && may(d)).collect();
        let mut listeners = self.listeners.lock();
        listeners.retain(|device, task| {
            // For a new copy all is to be heard again.
            let stays = devices.contains(device) && !fresh && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for device in devices {
            listeners.entry(device).or_insert_with(|| self.shutdown.spawn_until(watch::listen(this.clone(), device)));
        }
    }
}
