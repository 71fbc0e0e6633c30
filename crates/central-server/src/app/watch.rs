//! The feed of changes: one task reads the store's change log and hands every commit to all watchers.
//!
//! A watcher's position is a store revision. It is served from the shared feed while it keeps up, and from the log itself
//! while it catches up, so nothing is kept per watcher but the position. The feed holds the last [`FEED_COMMITS`] commits;
//! a watcher that falls behind them goes back to the log. Order, completeness and uniqueness follow from the log's.
//!
//! What a watcher may see is asked again before each delivery if the last answer is older than [`RIGHTS_AGE`], so that a
//! right that was taken away, an ended session or a disabled account ends the view within that time. The answer is still
//! the same, and costs nothing, as long as no record that it was read from has changed and the session has not ended.

use crate::app::App;
use crate::app::caller::Caller;
use crate::app::remembered;
use common::error::{Error, Reason, Result};
use common::model::RootId;
use common::store::Store;
use prost::Message;
use proto::record::v1 as record;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Commits kept in memory for watchers that are nearly up to date.
pub const FEED_COMMITS: usize = 1024;
/// Commits read from the log at a time.
const LOG_BATCH: usize = 256;
/// How long an answer about rights holds.
pub const RIGHTS_AGE: Duration = Duration::from_secs(1);

/// First bytes of the keys that a watcher's rights are read from: what says who it is, and the roots.
const RIGHTS_KINDS: &[u8] = b"jxuhms";

/// The changes of one commit.
#[derive(Debug)]
pub struct Commit {
    /// Its revision; the cursor after it.
    pub revision: u64,
    /// In order.
    pub changes: Vec<record::Change>,
}

/// Hands commits to watchers.
#[derive(Clone, Debug)]
pub struct Feed {
    sender: broadcast::Sender<Arc<Commit>>,
}

impl Default for Feed {
    fn default() -> Self {
        Self { sender: broadcast::channel(FEED_COMMITS).0 }
    }
}

impl Feed {
    /// Open watches.
    pub fn watcher_count(&self) -> usize {
        self.sender.receiver_count()
    }

    /// Follows the store until told to stop. Errors of the store end it: then the store is failed and the server unwell.
    ///
    /// # Errors
    /// The change log cannot be read.
    pub async fn run(&self, store: Store, stop: CancellationToken) -> Result<()> {
        let mut revisions = store.subscribe();
        let mut position = *revisions.borrow_and_update();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = revisions.changed() => if changed.is_err() { return Ok(()) },
            }
            // Looked at before the receivers are counted: who subscribes after the count reads the log at least to here,
            // and every later commit wakes this loop again.
            let seen = *revisions.borrow_and_update();
            if seen <= position {
                continue;
            }
            if self.sender.receiver_count() == 0 {
                position = seen;
                continue;
            }
            loop {
                let commits = read_log(&store, position).await?;
                let Some(last) = commits.last() else { break };
                position = last.revision;
                for commit in commits {
                    let _ = self.sender.send(Arc::new(commit));
                }
            }
        }
    }
}

async fn read_log(store: &Store, after: u64) -> Result<Vec<Commit>> {
    let store = store.clone();
    let records = tokio::task::spawn_blocking(move || store.changes(after, LOG_BATCH))
        .await
        .map_err(|e| Error::internal("reading the change log").caused_by(e))??;
    records
        .into_iter()
        .map(|found| {
            let mut changes = Vec::new();
            for payload in &found.payloads {
                let set = record::ChangeSet::decode(payload.clone())
                    .map_err(|e| Error::new(Reason::StoreCorrupt, "a change record cannot be read").caused_by(e))?;
                changes.extend(set.changes);
            }
            Ok(Commit { revision: found.revision, changes })
        })
        .collect()
}

/// A change with the names that its watcher knows the roots by.
#[derive(Debug)]
pub struct Seen {
    /// The change.
    pub change: record::Change,
    /// Name of the root it is in.
    pub root: String,
    /// Name of the root it came from, with moves.
    pub previous_root: Option<String>,
}

/// What a watcher gets.
#[derive(Debug)]
pub struct Delivery {
    /// Continue after this.
    pub cursor: u64,
    /// What the watcher may see of a commit; empty for a mark of progress.
    pub changes: Vec<Seen>,
}

/// One watcher.
pub struct Watcher {
    app: App,
    caller: Caller,
    wanted: Option<Vec<RootId>>,
    visible: HashMap<RootId, String>,
    asked: Instant,
    /// See [`remembered::position`]; nothing before the first answer.
    asked_at: Option<u64>,
    position: u64,
    live: broadcast::Receiver<Arc<Commit>>,
    backlog: std::collections::VecDeque<Arc<Commit>>,
    caught_up: bool,
}

impl Watcher {
    /// Opens a watch. `wanted` are names of roots; none means all readable ones.
    ///
    /// # Errors
    /// `DIRECTORY_UNKNOWN`, `ACCESS_DENIED` for a root that the caller may not read; `CURSOR_TOO_OLD`; a cursor from
    /// the future is `CURSOR_TOO_OLD` as well, because it is of another store.
    pub async fn open(app: App, caller: Caller, wanted: Vec<RootId>, cursor: u64) -> Result<Self> {
        // Subscribe before looking at the revision: what comes in between is in both, and skipped by its revision.
        let live = app.feed.sender.subscribe();
        let now = app.store.revision();
        let position = if cursor == 0 { now } else { cursor };
        if position > now {
            return Err(Error::new(Reason::CursorTooOld, "this cursor is not one of this server")
                .why_is("the server's data was restored or replaced since")
                .with("oldest_cursor", now));
        }
        let mut watcher = Self {
            app,
            caller,
            wanted: (!wanted.is_empty()).then_some(wanted),
            visible: HashMap::new(),
            asked: Instant::now(),
            asked_at: None,
            position,
            live,
            backlog: std::collections::VecDeque::new(),
            caught_up: false,
        };
        watcher.ask_rights().await?;
        // Tells at once if the log does not reach back that far.
        watcher.catch_up().await?;
        Ok(watcher)
    }

    /// The cursor up to which everything was delivered.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Waits for the next commit in which the caller may see something. Safe to cancel.
    ///
    /// # Errors
    /// The session has ended, the device was revoked, the log cannot be read.
    pub async fn next(&mut self) -> Result<Delivery> {
        loop {
            while let Some(commit) = self.backlog.pop_front() {
                if let Some(delivery) = self.deliver(&commit).await? {
                    return Ok(delivery);
                }
            }
            if !self.caught_up {
                self.catch_up().await?;
                continue;
            }
            match self.live.recv().await {
                Ok(commit) => self.backlog.push_back(commit),
                Err(broadcast::error::RecvError::Lagged(_)) => self.caught_up = false,
                Err(broadcast::error::RecvError::Closed) => {
                    return Err(Error::new(Reason::ShuttingDown, "the server is shutting down"));
                }
            }
        }
    }

    /// Checks that the caller still is who it was; called with each mark of progress as well.
    ///
    /// # Errors
    /// `SESSION_INVALID`, `DEVICE_REVOKED`.
    pub async fn ask_rights(&mut self) -> Result<()> {
        if self.asked_at.is_some_and(|at| remembered::holds(&self.app.store, RIGHTS_KINDS, at)) && !self.has_ended() {
            self.asked = Instant::now();
            return Ok(());
        }
        let at = remembered::position(&self.app.store);
        self.caller = crate::app::sessions::refresh(&self.app, &self.caller)?;
        let mut visible = crate::app::directories::readable_roots(&self.app, &self.caller).await?;
        if let Some(wanted) = &self.wanted {
            visible.retain(|id, _| wanted.contains(id));
        }
        self.visible = visible;
        self.asked = Instant::now();
        self.asked_at = Some(at);
        Ok(())
    }

    /// True once the time of the caller's session is over.
    fn has_ended(&self) -> bool {
        self.caller.user.as_ref().is_some_and(|user| user.session_expire_ms <= self.app.clock.now_ms())
    }

    async fn catch_up(&mut self) -> Result<()> {
        let commits = read_log(&self.app.store, self.position).await?;
        self.caught_up = commits.is_empty();
        self.backlog.extend(commits.into_iter().map(Arc::new));
        Ok(())
    }

    async fn deliver(&mut self, commit: &Commit) -> Result<Option<Delivery>> {
        if commit.revision <= self.position {
            return Ok(None);
        }
        if self.asked.elapsed() >= RIGHTS_AGE {
            self.ask_rights().await?;
        }
        self.position = commit.revision;
        let mut changes: Vec<Seen> = Vec::new();
        for change in &commit.changes {
            let name = |id: &[u8]| RootId::from_slice(id).and_then(|id| self.visible.get(&id).cloned());
            let (to, from) = (name(&change.root), name(&change.previous_root));
            // A move out of what the caller sees is a deletion, and a move into it a creation.
            let moved_roots = !change.previous_root.is_empty() && change.previous_root != change.root;
            match (to, from) {
                (Some(root), previous_root) if !moved_roots || previous_root.is_some() => {
                    let previous_root = previous_root.or_else(|| moved(change).then(|| root.clone()));
                    changes.push(Seen { change: change.clone(), root, previous_root });
                }
                (Some(root), _) => {
                    let mut change = change.clone();
                    change.kind = proto::v1::change::Kind::Created as u32;
                    change.previous_path = String::new();
                    changes.push(Seen { change, root, previous_root: None });
                }
                (None, Some(root)) if moved_roots => {
                    let mut change = change.clone();
                    change.kind = proto::v1::change::Kind::Deleted as u32;
                    change.path = std::mem::take(&mut change.previous_path);
                    changes.push(Seen { change, root, previous_root: None });
                }
                _ => {}
            }
        }
        Ok((!changes.is_empty()).then_some(Delivery { cursor: commit.revision, changes }))
    }
}

fn moved(change: &record::Change) -> bool {
    change.kind == proto::v1::change::Kind::Moved as u32
}
