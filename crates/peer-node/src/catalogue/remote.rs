//! Other nodes' shares: asking for them, checking what comes, and keeping it.
//!
//! Nothing that another node says is believed without a check: records are verified by their owner's signature, entries
//! by `entry`, contents by their digests. A read-only share's index is only taken from its owner. What was read is kept,
//! so that an address resolves while its owner is away.

use common::error::{Error, Reason, Result};
use common::model::{ChunkRef, DeviceId, Right};
use common::status::from_status;
use common::store::{Store, prefix_end};
use common::wire as convert;
use parking_lot::{Mutex, RwLock};
use prost::Message;
use proto::peer::v1 as wire;
use proto::peer::v1::catalogue_service_client::CatalogueServiceClient;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

use super::access::{PeerChannel, right_of};
use super::entry::{CHUNKS_MAX, Entry, check_content, is_below, split};
use super::index::{HeadRecord, IndexHandle, SPACE_HEAD};
use super::record::ShareRecord;
use super::{Catalogue, Inner, blocking};
use crate::model::{Content, Scope, ShareId};

/// Most shares in one answer.
pub(super) const SHARES_MAX: usize = 1_000;
/// After this a node that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// How long a fetch waits for the owner's first look through the folder; then it takes what there is.
const LOOKING: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Most entries in one message.
const PAGE_MAX: usize = 1_000;
/// Lists of shares that are remembered; beyond it all are forgotten.
const LISTS_MAX: usize = 2_000;
/// How long a stream may stand still.
const IDLE: Duration = Duration::from_secs(30);

/// Another node's share, as far as this device may see it.
#[derive(Clone, Debug)]
pub struct RemoteShare {
    /// As its owner states it.
    pub record: ShareRecord,
    /// What this device may do.
    pub right: Right,
    /// The owner has just said so; else it is what is remembered.
    pub online: bool,
    /// Files in it.
    pub file_count: u64,
    /// Their bytes.
    pub total_bytes: u64,
    /// Highest sequence of the owner's index; 0 if not online.
    pub max_sequence: u64,
    /// The owner's index; 0 if not online.
    pub index_id: u64,
    /// The owner has looked through the whole folder since it started.
    pub complete: bool,
}

struct Listed {
    at: Instant,
    shares: Result<Vec<RemoteShare>, (String, String)>,
}

/// What is kept of other nodes.
pub(super) struct Kept {
    indexes: RwLock<HashMap<ShareId, IndexHandle>>,
    /// Entries and time of last use of kept indexes.
    sizes: Mutex<HashMap<ShareId, (u64, u64)>>,
    lists: Mutex<HashMap<DeviceId, Listed>>,
    /// Nodes that have a copy of a share, besides its owner.
    copies: Mutex<HashMap<ShareId, HashSet<DeviceId>>>,
}

impl Kept {
    pub fn open(store: &Store) -> Result<Self> {
        let mut sizes = HashMap::new();
        for (key, bytes) in store.range(SPACE_HEAD, &prefix_end(SPACE_HEAD), usize::MAX)? {
            if let (Some(share), Ok(head)) =
                (ShareId::from_slice(&key[SPACE_HEAD.len()..]), HeadRecord::decode(&bytes[..]))
            {
                sizes.insert(share, (head.entries, head.used_ms));
            }
        }
        Ok(Self {
            indexes: RwLock::default(),
            sizes: Mutex::new(sizes),
            lists: Mutex::default(),
            copies: Mutex::default(),
        })
    }

    /// The share has a folder here now.
    pub fn forget(&self, share: &ShareId) {
        if let Some(index) = self.indexes.write().remove(share) {
            index.close();
        }
        self.sizes.lock().remove(share);
    }
}

impl Inner {
    /// What was kept of another node's index.
    pub(super) fn kept_index(&self, share: ShareId) -> Result<IndexHandle> {
        if let Some(index) = self.kept.indexes.read().get(&share) {
            return Ok(index.clone());
        }
        let index = IndexHandle::open(self.store.clone(), share, super::short_id(&self.key.device_id()))?;
        Ok(self.kept.indexes.write().entry(share).or_insert(index).clone())
    }

    /// Makes room: the indexes that were not used for longest go. Blocks.
    fn make_room(&self, keep: ShareId) -> Result<()> {
        let index = self.kept_index(keep)?;
        let mut sizes = self.kept.sizes.lock();
        sizes.insert(keep, (index.head().entry_count, self.clock.now_ms()));
        let folders = self.folders.read();
        sizes.retain(|share, _| !folders.contains_key(share));
        let mut total: u64 = sizes.values().map(|s| s.0).sum();
        let mut gone = Vec::new();
        while total > self.settings.kept_entries {
            let oldest =
                sizes.iter().filter(|(share, _)| **share != keep).min_by_key(|(_, s)| s.1).map(|(share, _)| *share);
            let Some(share) = oldest else { break };
            total -= sizes.remove(&share).map_or(0, |s| s.0);
            gone.push(share);
        }
        drop((sizes, folders));
        for share in gone {
            self.drop_kept(share)?;
        }
        Ok(())
    }

    fn drop_kept(&self, share: ShareId) -> Result<()> {
        if self.folders.read().contains_key(&share) {
            return Ok(());
        }
        self.kept.forget(&share);
        IndexHandle::erase(&self.store, share)
    }
}

fn late(device: &str) -> Error {
    Error::new(Reason::DeadlineExceeded, format!("{device} did not answer in time"))
}

/// Forgets kept entries of a directory between two names (to the end if there is no second) but for these names.
fn gone_between(index: &IndexHandle, path: &str, after: &str, to: Option<&str>, names: &HashSet<&str>) -> Result<()> {
    let mut after = after.to_owned();
    loop {
        let page = index.directory(path, &after, PAGE_MAX)?;
        let Some(last) = page.last() else { return Ok(()) };
        last.entry.name().clone_into(&mut after);
        let end = page.len() < PAGE_MAX || to.is_some_and(|to| *after >= *to);
        let within = page.into_iter().map(|s| s.entry).filter(|e| to.is_none_or(|to| e.name() <= to));
        let gone = within.filter(|e| !names.contains(e.name())).map(|e| Entry { deleted: true, ..e });
        index.keep(gone.collect())?;
        if end {
            return Ok(());
        }
    }
}

/// A page of another node's index.
#[derive(Debug)]
pub struct IndexPage {
    /// The index.
    pub index_id: u64,
    /// Checked entries in order of sequence.
    pub entries: Vec<Entry>,
    /// Everything up to here has been read.
    pub up_to_sequence: u64,
}

/// Pages of another node's index, checked as they come.
pub struct IndexReader {
    name: String,
    below: String,
    asked: (u64, u64),
    seen: u64,
    index_id: Option<u64>,
    pages: tonic::Streaming<wire::ReadIndexResponse>,
}

impl IndexReader {
    /// The next page; `None` at the end.
    ///
    /// # Errors
    /// What the node says, IDLE_TIMEOUT, PEER_MISBEHAVES (naming it) if anything in the page cannot be.
    pub async fn next(&mut self) -> Result<Option<IndexPage>> {
        let page = timeout(IDLE, self.pages.message()).await;
        let page =
            page.map_err(|_| Error::new(Reason::IdleTimeout, format!("{} stopped sending its index", self.name)))?;
        page.map_err(|s| from_status(&s))?.map(|page| self.check(page)).transpose()
    }

    fn check(&mut self, page: wire::ReadIndexResponse) -> Result<IndexPage> {
        let name = self.name.clone();
        let wrong =
            |what: &str| Error::new(Reason::PeerMisbehaves, format!("the index that {name} sent was refused: {what}"));
        if self.index_id.is_none() && page.index_id == self.asked.0 {
            self.seen = self.asked.1;
        }
        if *self.index_id.get_or_insert(page.index_id) != page.index_id || page.entries.len() > PAGE_MAX {
            return Err(wrong("its id changed, or a page has more than 1,000 entries"));
        }
        let mut entries = Vec::with_capacity(page.entries.len());
        for entry in page.entries {
            let entry = Entry::from_wire(entry).map_err(|e| wrong(e.message()))?;
            if entry.sequence <= self.seen
                || entry.sequence > page.up_to_sequence
                || !is_below(&entry.path, &self.below)
            {
                return Err(wrong("its entries are not in order, or not those that were asked for"));
            }
            self.seen = entry.sequence;
            entries.push(entry);
        }
        if page.up_to_sequence < self.seen {
            return Err(wrong("its sequence goes back"));
        }
        self.seen = page.up_to_sequence;
        Ok(IndexPage { index_id: page.index_id, entries, up_to_sequence: self.seen })
    }
}

impl Catalogue {
    async fn client(&self, device: DeviceId) -> Result<CatalogueServiceClient<PeerChannel>> {
        Ok(CatalogueServiceClient::new(self.0.peers.channel(device).await?))
    }

    /// The shares of another node, asked for now or a moment ago.
    ///
    /// # Errors
    /// PEER_UNREACHABLE, DEADLINE_EXCEEDED, and what the node says.
    pub async fn shares_of(&self, device: DeviceId) -> Result<Vec<RemoteShare>> {
        if let Some(listed) = self.0.kept.lists.lock().get(&device) {
            let age = listed.at.elapsed();
            match &listed.shares {
                Ok(shares) if age < self.0.settings.fresh && shares.iter().all(|s| s.complete) => {
                    return Ok(shares.clone());
                }
                Err((message, why)) if age < ASK_AGAIN && !self.0.peers.is_connected(&device) => {
                    return Err(Error::new(Reason::PeerUnreachable, message.clone()).why_is(why.clone()));
                }
                _ => {}
            }
        }
        let asked = async {
            let mut client = self.client(device).await?;
            let answer = client.list_shares(wire::ListSharesRequest {}).await.map_err(|s| from_status(&s))?;
            Ok(answer.into_inner().shares)
        };
        let answer = timeout(self.0.settings.patience, asked).await;
        let shares = match answer.unwrap_or_else(|_| Err(late(&self.node_name(&device)))) {
            Ok(states) => {
                let this = self.clone();
                blocking(move || this.take_states(device, states)).await
            }
            Err(error) => Err(error),
        };
        let remembered = shares.as_ref().map(Clone::clone).map_err(|e| (e.message().to_owned(), e.why().to_owned()));
        let mut lists = self.0.kept.lists.lock();
        if lists.len() >= LISTS_MAX {
            lists.clear();
        }
        lists.insert(device, Listed { at: Instant::now(), shares: remembered });
        drop(lists);
        shares
    }

    /// Checks what a node says about shares, and keeps it.
    fn take_states(&self, device: DeviceId, states: Vec<wire::ShareState>) -> Result<Vec<RemoteShare>> {
        let inner = &*self.0;
        let me = inner.roster.me();
        let (mut shares, mut shown) = (Vec::new(), HashSet::new());
        for state in states.into_iter().take(2 * SHARES_MAX) {
            let record = state.record.as_ref().ok_or_else(|| Error::new(Reason::ShareInvalid, "no record"));
            let record = match record.and_then(ShareRecord::verify).and_then(|r| inner.merge(&r, false).map(|_| r)) {
                Ok(record) => record,
                Err(error) => {
                    tracing::warn!(%device, ?error, "a node's share record was refused");
                    continue;
                }
            };
            shown.insert(record.share());
            // A newer one may be known than the node has.
            let Some(known) = inner.book.get(&record.share()).map(|k| k.record) else { continue };
            let Some(right) = right_of(&*inner.roster, &me, &known) else { continue };
            if known.owner() != device {
                let mut copies = inner.kept.copies.lock();
                if copies.len() < super::book::RECORDS_MAX {
                    copies.entry(known.share()).or_default().insert(device);
                }
                continue;
            }
            shares.push(RemoteShare {
                record: known,
                right,
                online: true,
                file_count: state.file_count,
                total_bytes: state.total_bytes,
                max_sequence: state.max_sequence,
                index_id: state.index_id,
                complete: state.complete,
            });
        }
        for known in inner.book.of_owner(&device) {
            if !known.hidden && !shown.contains(&known.record.share()) {
                inner.book.merge(&known.record, true)?;
            }
        }
        Ok(shares)
    }

    /// What is remembered of a node's shares.
    pub fn remembered_shares_of(&self, device: &DeviceId) -> Vec<RemoteShare> {
        let inner = &*self.0;
        let me = inner.roster.me();
        let known = inner.book.of_owner(device).into_iter().filter(|k| !k.hidden);
        known
            .filter_map(|k| {
                let right = right_of(&*inner.roster, &me, &k.record)?;
                let head = inner.kept_index(k.record.share()).ok()?.head();
                Some(RemoteShare {
                    record: k.record,
                    right,
                    online: false,
                    file_count: head.file_count,
                    total_bytes: head.total_bytes,
                    max_sequence: 0,
                    index_id: 0,
                    complete: true,
                })
            })
            .collect()
    }

    /// Nodes that are known to have a copy of a share, besides its owner.
    pub fn copies_of(&self, share: &ShareId) -> Vec<DeviceId> {
        self.0.kept.copies.lock().get(share).map(|c| c.iter().copied().collect()).unwrap_or_default()
    }

    /// Begins to read a share's index at a node, from after a sequence of the index with that id (of another index: from
    /// the beginning), below a path or all of it.
    ///
    /// # Errors
    /// What the node says, PEER_UNREACHABLE, DEADLINE_EXCEEDED.
    pub async fn read_index_of(
        &self,
        device: DeviceId,
        share: ShareId,
        (index_id, after_sequence): (u64, u64),
        below: &str,
    ) -> Result<IndexReader> {
        let name = self.node_name(&device);
        let request = wire::ReadIndexRequest {
            share_id: share.as_bytes().to_vec().into(),
            index_id,
            after_sequence,
            below: below.to_owned(),
        };
        let mut client = self.client(device).await?;
        let answer = timeout(IDLE, client.read_index(request)).await.map_err(|_| late(&name))?;
        let pages = answer.map_err(|s| from_status(&s))?.into_inner();
        Ok(IndexReader {
            name,
            below: below.to_owned(),
            asked: (index_id, after_sequence),
            seen: 0,
            index_id: None,
            pages,
        })
    }

    /// Waits until the owner has looked through the whole folder, for at most [`LOOKING`]: what was shared a moment ago
    /// is else fetched in part.
    pub(super) async fn looked_through(&self, owner: DeviceId, share: ShareId) {
        let until = Instant::now() + LOOKING;
        while Instant::now() < until {
            match self.shares_of(owner).await {
                Ok(shares) if shares.iter().any(|s| s.record.share() == share && !s.complete) => {
                    sleep(LOOK_AGAIN).await
                }
                _ => return,
            }
        }
    }

    /// Brings what is kept of a share's index up to its owner's, and gives it.
    pub(super) async fn refresh_kept(&self, owner: DeviceId, share: ShareId) -> Result<IndexHandle> {
        let inner = self.0.clone();
        let index = inner.kept_index(share)?;
        let (index_id, read_up_to, _) = index.read_state();
        let mut current = index_id;
        let mut seen = 0_u64;
        let mut pages = self.read_index_of(owner, share, (index_id, read_up_to), "").await?;
        while let Some(page) = pages.next().await? {
            seen += page.entries.len() as u64;
            if seen > inner.settings.kept_entries {
                return Err(Error::new(
                    Reason::StoreLimit,
                    "the share has more entries than this node keeps of others",
                ));
            }
            let (inner, begins) = (inner.clone(), page.index_id != current);
            current = page.index_id;
            blocking(move || {
                if begins {
                    inner.drop_kept(share)?;
                }
                let index = inner.kept_index(share)?;
                index.keep(page.entries)?;
                index.note_read(page.index_id, page.up_to_sequence, inner.clock.now_ms())
            })
            .await?;
        }
        let inner = self.0.clone();
        blocking(move || {
            inner.make_room(share)?;
            inner.kept_index(share)
        })
        .await
    }

    /// Entries of a directory at its owner, or an entry itself, and whether there are more. What comes is kept, and what
    /// is not there any longer is not.
    pub(super) async fn list_remote(
        &self,
        owner: DeviceId,
        share: ShareId,
        path: &str,
        itself: bool,
        after: &str,
        limit: usize,
    ) -> Result<(Vec<Entry>, bool)> {
        let name = self.node_name(&owner);
        let request = wire::ListEntriesRequest {
            share_id: share.as_bytes().to_vec().into(),
            path: path.to_owned(),
            itself,
            page_size: limit.min(PAGE_MAX) as u32,
            page_token: after.to_owned(),
        };
        let mut client = self.client(owner).await?;
        let answer = timeout(self.0.settings.patience, client.list_entries(request)).await.map_err(|_| late(&name))?;
        let answer = answer.map_err(|s| from_status(&s))?.into_inner();
        let (wire_entries, more) = (answer.entries, !answer.next_page_token.is_empty());
        let wrong = || Error::new(Reason::PeerMisbehaves, format!("{name} listed entries that were not asked for"));
        // A page with nothing in it has nothing behind it, or a reader would ask for ever.
        if wire_entries.len() > PAGE_MAX || (more && wire_entries.is_empty()) {
            return Err(wrong());
        }
        let mut entries = Vec::with_capacity(wire_entries.len());
        let mut last = after.to_owned();
        for entry in wire_entries {
            let entry = Entry::from_wire(entry)?;
            let asked = if itself { entry.path == path } else { split(&entry.path).0 == path && *entry.name() > *last };
            if !asked || entry.deleted {
                return Err(wrong());
            }
            entry.name().clone_into(&mut last);
            entries.push(entry);
        }
        let (inner, kept, path, after) = (self.0.clone(), entries.clone(), path.to_owned(), after.to_owned());
        blocking(move || {
            let index = inner.kept_index(share)?;
            if !itself {
                let names: HashSet<&str> = kept.iter().map(Entry::name).collect();
                let bound = more.then_some(last.as_str());
                gone_between(&index, &path, &after, bound, &names)?;
            }
            index.keep(kept)?;
            inner.make_room(share)
        })
        .await?;
        Ok((entries, more))
    }

    /// The content of a file's entry at a node that has it; long ones are asked for. What comes is checked, and kept if
    /// the entry is.
    ///
    /// # Errors
    /// What the node says, PEER_MISBEHAVES (naming it), IDLE_TIMEOUT, PEER_UNREACHABLE; ENTRY_UNKNOWN if it is no file.
    pub async fn content_of(&self, device: DeviceId, share: ShareId, entry: &Entry) -> Result<Content> {
        if let Some(content) = entry.inline_content() {
            return Ok(content);
        }
        if !entry.is_file() {
            return Err(Error::new(Reason::EntryUnknown, "only files have content"));
        }
        let (inner, theirs) = (self.0.clone(), entry.clone());
        let index = blocking(move || Ok((inner.kept_index(share)?.content(&theirs)?, inner))).await?;
        if let (Some(content), _) = index {
            return Ok(content);
        }
        let chunks = self.read_manifest(device, share, entry).await?;
        let content = Content { chunks: chunks.into(), digest: entry.digest, size_bytes: entry.size_bytes };
        let (inner, theirs, kept) = (self.0.clone(), entry.clone(), content.clone());
        blocking(move || {
            let index = inner.kept_index(share)?;
            if index.entry(&theirs.path)?.is_some_and(|e| e.digest == theirs.digest) {
                index.keep_content(&theirs, &kept.chunks)?;
            }
            Ok(())
        })
        .await?;
        Ok(content)
    }

    async fn read_manifest(&self, device: DeviceId, share: ShareId, entry: &Entry) -> Result<Vec<ChunkRef>> {
        let name = self.node_name(&device);
        let wrong =
            |what: &str| Error::new(Reason::PeerMisbehaves, format!("a manifest that {name} sent was refused: {what}"));
        let request = wire::ReadManifestRequest {
            scope: Some(Scope::Share(share).wire()),
            manifest_digest: entry.digest.to_vec().into(),
        };
        let mut client = self.client(device).await?;
        let answer = timeout(IDLE, client.read_manifest(request)).await.map_err(|_| late(&name))?;
        let mut parts = answer.map_err(|s| from_status(&s))?.into_inner();
        let most = (entry.chunk_count as usize).min(CHUNKS_MAX);
        let mut chunks = Vec::new();
        loop {
            let part = timeout(IDLE, parts.message()).await;
            let part =
                part.map_err(|_| Error::new(Reason::IdleTimeout, format!("{name} stopped sending a manifest")))?;
            let Some(part) = part.map_err(|s| from_status(&s))? else { break };
            if chunks.len() + part.chunks.len() > most {
                return Err(wrong("it has more chunks than the entry says"));
            }
            chunks.extend(convert::chunks_from(&part.chunks, most).map_err(|_| wrong("a chunk is malformed"))?);
        }
        check_content(&chunks, entry).map_err(wrong)?;
        Ok(chunks)
    }
}
