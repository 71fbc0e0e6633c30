//! Addresses and listing over all nodes.

use common::error::{Error, Kind, Reason, Result};
use common::model::{DeviceId, Right};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use proto::peer::v1::NodeProblem;
use std::sync::Arc;

use super::access::{Node, right_of};
use super::entry::{Entry, join, split};
use super::index::IndexHandle;
use super::names::{self, ANY, Claim, Standing};
use super::record::ShareRecord;
use super::remote::RemoteShare;
use super::{Catalogue, blocking};
use crate::model::{Content, ShareId};

/// Nodes asked at the same time.
pub(super) const ASKED: usize = 32;
/// Manifests read at the same time.
const MANIFESTS: usize = 8;
/// And so many are begun at a time.
const MANIFESTS_BATCH: usize = 64;
/// Most entries looked at for one '*' in a path.
const WILD_MAX: usize = 10_000;
/// Most files of one tree.
pub const TREE_MAX: usize = 1_000_000;

/// What an address stands for.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Full address, with `~` where the name is disputed.
    pub address: String,
    /// Whose share.
    pub owner: DeviceId,
    /// As its owner states it.
    pub record: ShareRecord,
    /// What this device may do.
    pub right: Right,
    /// The owner has just answered; else this is what is remembered.
    pub online: bool,
    /// Below the share; empty is its top.
    pub path: String,
    /// The entry; `None` for the top.
    pub entry: Option<Entry>,
}

/// A file or directory of a tree.
#[derive(Clone, Debug)]
pub struct TreeFile {
    /// Below what was resolved; the file's own name if that is a file.
    pub path: String,
    /// The entry.
    pub entry: Entry,
    /// Of a file.
    pub content: Option<Content>,
}

/// What a listed thing is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ItemKind {
    /// Part of the hierarchy.
    Unit,
    /// A machine.
    Node,
    /// A shared folder.
    Share,
    /// A directory in one.
    Directory,
    /// A file in one.
    File,
}

/// One thing in a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    /// What it is.
    pub kind: ItemKind,
    /// Full address.
    pub address: String,
    /// Bytes: of a file, or of all in a share.
    pub size_bytes: u64,
    /// Nanoseconds since 1970, of files and directories.
    pub modify_time_ns: Option<i64>,
    /// What this device may do, of shares and what is in them.
    pub right: Option<Right>,
    /// Nodes from which it can be had now, as far as is known.
    pub holder_count: u32,
    /// The owner is there.
    pub online: bool,
    /// The name is claimed more than once.
    pub disputed: bool,
    /// The owner's person.
    pub person: String,
    /// Of files.
    pub manifest_digest: Option<[u8; 32]>,
}

/// A page of a list.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// In order of addresses.
    pub items: Vec<Item>,
    /// Address of the last item, if there are more.
    pub next: Option<String>,
    /// Nodes that did not answer.
    pub problems: Vec<NodeProblem>,
}

/// Where the entries of a share are read.
#[derive(Clone)]
pub(super) enum Reading {
    /// In the index of a folder here.
    Here(IndexHandle),
    /// At the owner.
    There(DeviceId, ShareId),
    /// In what is kept.
    Kept(IndexHandle),
}

/// A share of a node, under the name that is shown.
#[derive(Clone)]
pub(super) struct Shown {
    pub(super) share: RemoteShare,
    address: String,
    disputed: bool,
    person: String,
    holders: u32,
    pub(super) reading: Reading,
}

fn unknown_address(address: &str) -> Error {
    Error::new(Reason::AddressUnknown, format!("there is nothing at {address:?}"))
}

pub(super) fn problem(node: &str, error: &Error) -> NodeProblem {
    NodeProblem {
        reason: error.reason().to_owned(),
        message: format!("{node}: {}", error.message()),
        why: error.why().to_owned(),
        fix: error.fix().to_owned(),
    }
}

impl Reading {
    /// An entry that is there.
    async fn entry(&self, catalogue: &Catalogue, path: &str) -> Result<Entry> {
        match self {
            Self::Here(index) | Self::Kept(index) => {
                let (index, path) = (index.clone(), path.to_owned());
                blocking(move || index.present(&path)).await
            }
            Self::There(owner, share) => {
                let found = catalogue.list_remote(*owner, *share, path, true, "", 1).await?;
                found.0.into_iter().next().ok_or_else(|| Error::new(Reason::EntryUnknown, "there is no such entry"))
            }
        }
    }

    /// Entries of a directory that are there, after a name, `limit` of them.
    async fn directory(&self, catalogue: &Catalogue, path: &str, after: &str, limit: usize) -> Result<Vec<Entry>> {
        let mut found: Vec<Entry> = Vec::new();
        let mut after = after.to_owned();
        loop {
            let want = (limit - found.len()).min(1_000);
            if want == 0 {
                return Ok(found);
            }
            let (page, more): (Vec<Entry>, bool) = match self {
                Self::Here(index) | Self::Kept(index) => {
                    let (index, path, after) = (index.clone(), path.to_owned(), after.clone());
                    let page = blocking(move || index.directory(&path, &after, want)).await?;
                    let full = page.len() == want;
                    (page.into_iter().map(|s| s.entry).collect(), full)
                }
                Self::There(owner, share) => catalogue.list_remote(*owner, *share, path, false, &after, want).await?,
            };
            if let Some(last) = page.last() {
                last.name().clone_into(&mut after);
            }
            found.extend(page.into_iter().filter(|e| !e.deleted));
            if !more {
                return Ok(found);
            }
        }
    }

    /// The whole index, here or brought here.
    async fn whole(&self, catalogue: &Catalogue) -> Result<IndexHandle> {
        match self {
            Self::Here(index) | Self::Kept(index) => Ok(index.clone()),
            Self::There(owner, share) => catalogue.refresh_kept(*owner, *share).await,
        }
    }
}

impl Shown {
    fn item(&self) -> Item {
        Item {
            kind: ItemKind::Share,
            address: self.address.clone(),
            size_bytes: self.share.total_bytes,
            modify_time_ns: None,
            right: Some(self.share.right),
            holder_count: self.holders,
            online: self.share.online,
            disputed: self.disputed,
            person: self.person.clone(),
            manifest_digest: None,
        }
    }

    pub(super) fn entry_item(&self, entry: &Entry) -> Item {
        Item {
            kind: if entry.is_file() { ItemKind::File } else { ItemKind::Directory },
            address: join(&self.address, &entry.path),
            size_bytes: entry.size_bytes,
            modify_time_ns: Some(entry.modify_time_ns),
            manifest_digest: entry.is_file().then_some(entry.digest),
            disputed: false,
            ..self.item()
        }
    }
}

impl Catalogue {
    pub(super) fn node_claims(&self) -> Vec<Claim<Node>> {
        names::claims(self.0.roster.nodes().into_iter().map(|n| (n.name.clone(), n.device.to_string(), n)))
    }

    fn own_shares(&self) -> Vec<RemoteShare> {
        let me = self.0.roster.me();
        let folders = self.folders();
        let own = folders.iter().filter_map(|folder| {
            let record = self.record(&folder.share()).ok()?;
            let right = right_of(&*self.0.roster, &me, &record)?;
            let head = folder.index.head();
            (record.owner() == me).then_some(RemoteShare {
                record,
                right,
                online: true,
                file_count: head.file_count,
                total_bytes: head.total_bytes,
                max_sequence: head.max_sequence,
                index_id: head.index_id,
                complete: true,
            })
        });
        own.collect()
    }

    /// The shares of a node, under the names that are shown. If it does not answer: what is remembered, and why.
    pub(super) async fn shown_shares(&self, node: &Claim<Node>) -> (Vec<Claim<Shown>>, Option<NodeProblem>) {
        let device = node.what.device;
        let (shares, problem) = if device == self.0.roster.me() {
            (self.own_shares(), None)
        } else {
            match self.shares_of(device).await {
                Ok(shares) => (shares, None),
                Err(error) => (self.remembered_shares_of(&device), Some(problem(&node.shown(), &error))),
            }
        };
        let named = shares.into_iter().map(|s| (s.record.name().to_owned(), s.record.share().to_string(), s));
        let shown = names::claims(named).into_iter().filter_map(|claim| {
            let share = claim.what.record.share();
            let reading = match self.folder(&share) {
                // A copy is complete only when it is: the owner's index says what there is.
                Ok(folder) if device == self.0.roster.me() || !claim.what.online => Reading::Here(folder.index.clone()),
                _ if claim.what.online => Reading::There(device, share),
                _ => Reading::Kept(self.0.kept_index(share).ok()?),
            };
            let online = u32::from(claim.what.online);
            let what = Shown {
                address: join(&node.shown(), &claim.shown()),
                disputed: claim.disputed,
                person: node.what.person.clone(),
                holders: self.copies_of(&share).len() as u32 + online,
                reading,
                share: claim.what,
            };
            Some(Claim { name: claim.name, id: claim.id, what, disputed: claim.disputed })
        });
        (shown.collect(), problem)
    }

    /// Finds out what an address stands for. Asks the owner; if it is away, what is kept answers.
    ///
    /// # Errors
    /// ADDRESS_UNKNOWN if nothing that this device may see has it, ADDRESS_AMBIGUOUS with all claims listed,
    /// PATH_INVALID, NAME_INVALID, ENTRY_UNKNOWN, PEER_UNREACHABLE if the owner is away and nothing is kept.
    pub async fn resolve(&self, address: &str) -> Result<Resolved> {
        let segments = names::parse(address)?;
        let claims = self.node_claims();
        let mut at: Vec<(&Claim<Node>, Vec<String>)> = claims
            .iter()
            .filter_map(|claim| match names::standing(claim, &segments) {
                Standing::At(rest) => Some((claim, rest)),
                _ => None,
            })
            .collect();
        // The longest name first: it is the one that is meant if a unit is called like a machine.
        at.sort_by_key(|(claim, _)| std::cmp::Reverse(claim.name.split('/').count()));
        let Some(longest) = at.first().map(|(claim, _)| claim.name.split('/').count()) else {
            return Err(unknown_address(address));
        };
        let same: Vec<&Claim<Node>> =
            at.iter().filter(|(c, _)| c.name.split('/').count() == longest).map(|(c, _)| *c).collect();
        if same.len() > 1 {
            let exact =
                segments.get(longest - 1).is_some_and(|typed| same.iter().any(|c| !names::is_ambiguous(*c, typed)));
            if !exact || segments[..longest].iter().any(|s| s == ANY) {
                return Err(names::ambiguous(address, &same));
            }
        }
        let mut failure = None;
        for (node, rest) in at {
            match self.resolve_at(node, &rest, address).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) if error.is(Reason::AddressUnknown) => drop(failure.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(|| unknown_address(address)))
    }

    async fn resolve_at(&self, node: &Claim<Node>, rest: &[String], address: &str) -> Result<Resolved> {
        let Some((share_name, path)) = rest.split_first() else {
            return Err(unknown_address(address)
                .why_is("it names a machine, not a share")
                .fix_is("list it to see its shares"));
        };
        let (shares, problem) = self.shown_shares(node).await;
        let found = names::pick(&shares, share_name)?;
        let shown = match found[..] {
            [one] => &one.what,
            [] => {
                return Err(match problem {
                    Some(p) => Error::new(Reason::PeerUnreachable, p.message).why_is(p.why),
                    None => unknown_address(address),
                });
            }
            _ => return Err(names::ambiguous(share_name, &found)),
        };
        let path = path.join("/");
        let entry = if path.is_empty() { None } else { Some(shown.reading.entry(self, &path).await?) };
        Ok(Resolved {
            address: join(&shown.address, &path).trim_end_matches('/').to_owned(),
            owner: node.what.device,
            record: shown.share.record.clone(),
            right: shown.share.right,
            online: shown.share.online,
            path,
            entry,
        })
    }

    /// Everything below a resolved address (or the file itself), with contents: what a fetch needs. Directories come
    /// before what is in them.
    ///
    /// # Errors
    /// ACCESS_DENIED without read, TREE_TOO_LARGE beyond 1,000,000 entries, PEER_UNREACHABLE if the owner is away and a
    /// long content was never read, and as [`Catalogue::resolve`].
    pub async fn tree(&self, resolved: &Resolved) -> Result<Vec<TreeFile>> {
        super::access::require(Some(resolved.right), Right::Read)?;
        let share = resolved.record.share();
        let local = self.folder(&share).ok().filter(|_| resolved.owner == self.0.roster.me() || !resolved.online);
        let entries = match &resolved.entry {
            Some(file) if file.is_file() => vec![(file.name().to_owned(), file.clone())],
            _ => {
                let index = match (&local, resolved.online) {
                    (Some(folder), _) => folder.index.clone(),
                    (None, true) => {
                        self.looked_through(resolved.owner, share).await;
                        match self.refresh_kept(resolved.owner, share).await {
                            // It went away since it was asked what it shares: what is kept is what there is now.
                            Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::DeadlineExceeded) => {
                                let kept = self.0.kept_index(share)?;
                                if kept.head().entry_count == 0 {
                                    return Err(error);
                                }
                                kept
                            }
                            refreshed => refreshed?,
                        }
                    }
                    (None, false) => self.0.kept_index(share)?,
                };
                let top = resolved.path.clone();
                blocking(move || below(&index, &top)).await?
            }
        };
        let (index, owner) = (local.map(|f| f.index.clone()), resolved.owner);
        let (mut files, mut long) = (Vec::with_capacity(entries.len()), Vec::new());
        for (path, entry) in entries {
            let content = entry.inline_content();
            if entry.is_file() && content.is_none() {
                long.push(files.len());
            }
            files.push(TreeFile { path, entry, content });
        }
        // The few that have so many chunks that their entries do not carry them.
        for batch in long.chunks(MANIFESTS_BATCH) {
            let work: Vec<_> = batch
                .iter()
                .map(|&at| self.long_content(owner, share, index.clone(), files[at].entry.clone()))
                .collect();
            let contents: Vec<Result<Option<Content>>> = stream::iter(work).buffered(MANIFESTS).collect().await;
            for (&at, content) in batch.iter().zip(contents) {
                files[at].content = content?;
            }
        }
        // A file here that has changed since is left to the next fetch.
        files.retain(|f| !f.entry.is_file() || f.content.is_some());
        Ok(files)
    }

    fn long_content(
        &self,
        owner: DeviceId,
        share: ShareId,
        index: Option<IndexHandle>,
        entry: Entry,
    ) -> BoxFuture<'static, Result<Option<Content>>> {
        let this = self.clone();
        Box::pin(async move {
            match index {
                Some(index) => blocking(move || index.content(&entry)).await,
                None => this.content_of(owner, share, &entry).await.map(Some),
            }
        })
    }

    /// What is below an address, or the file itself; `*` as a whole segment matches any one, and one at the end lists
    /// what it matches. `after` is where the last page ended. A node that does not answer is a problem in the page.
    ///
    /// # Errors
    /// ADDRESS_UNKNOWN, ADDRESS_AMBIGUOUS, PATH_INVALID, NAME_INVALID, ENTRY_UNKNOWN.
    pub async fn list(&self, address: &str, recursive: bool, after: Option<&str>, limit: usize) -> Result<Page> {
        let mut segments = names::parse(address)?;
        let wild = segments.iter().any(|s| s == ANY);
        let children = segments.last().is_some_and(|s| s == ANY);
        if children {
            segments.pop();
        }
        let claims = self.node_claims();
        let (mut items, mut inside) = (Vec::new(), Vec::new());
        let office: Vec<String> = claims.iter().filter_map(|c| c.name.split('/').next().map(str::to_owned)).collect();
        for claim in &claims {
            match names::standing(claim, &segments) {
                Standing::Apart => {}
                Standing::Above(depth) => {
                    self.hierarchy(claim, depth, recursive, &mut items);
                    if recursive {
                        inside.push((claim, Vec::new()));
                    }
                }
                Standing::At(rest) => inside.push((claim, rest)),
            }
        }
        if !wild && let Some(at) = segments.len().checked_sub(1) {
            let same: Vec<&Claim<Node>> = inside
                .iter()
                .map(|(c, _)| *c)
                .filter(|c| {
                    segments.get(c.name.split('/').count() - 1).is_some_and(|typed| names::is_ambiguous(*c, typed))
                })
                .collect();
            if same.len() > 1 {
                return Err(names::ambiguous(&segments[at], &same));
            }
        }
        let found_nothing = items.is_empty() && inside.is_empty() && !office.is_empty();
        if found_nothing {
            return Err(unknown_address(address));
        }
        let alone = inside.len() == 1 && items.is_empty();
        let mut page = Page::default();
        let limits =
            Arc::new(Limits { recursive, children, after: after.map(str::to_owned), limit: limit.saturating_add(1) });
        // Collected, so that no borrow of this call lives in the stream.
        let work: Vec<BoxFuture<'static, Inside>> =
            inside.into_iter().map(|(node, rest)| self.inside(node.clone(), rest, limits.clone())).collect();
        let mut asked = stream::iter(work).buffer_unordered(ASKED);
        while let Some((node, found, problem)) = asked.next().await {
            page.problems.extend(problem);
            match found {
                Ok(found) => items.extend(found),
                Err(error) if alone && !wild => return Err(error),
                Err(error) if error.kind() == common::error::Kind::NotFound => {}
                Err(error) => page.problems.push(self::problem(&node, &error)),
            }
        }
        items.sort_by(|a, b| names::order(&a.address, &b.address));
        items.dedup_by(|a, b| a.address == b.address && a.kind == b.kind);
        if let Some(after) = after {
            items.retain(|i| names::order(&i.address, after).is_gt());
        }
        if items.len() > limit {
            items.truncate(limit);
            page.next = items.last().map(|i| i.address.clone());
        }
        page.items = items;
        Ok(page)
    }

    /// Units and the machine above which an address is.
    fn hierarchy(&self, claim: &Claim<Node>, depth: usize, recursive: bool, items: &mut Vec<Item>) {
        let name: Vec<&str> = claim.name.split('/').collect();
        let deepest = if recursive { name.len() } else { depth + 1 };
        for end in depth + 1..=deepest {
            let is_node = end == name.len();
            let me = claim.what.device == self.0.roster.me();
            items.push(Item {
                kind: if is_node { ItemKind::Node } else { ItemKind::Unit },
                address: if is_node { claim.shown() } else { name[..end].join("/") },
                size_bytes: 0,
                modify_time_ns: None,
                right: None,
                holder_count: 0,
                online: is_node && (me || self.0.peers.is_connected(&claim.what.device)),
                disputed: is_node && claim.disputed,
                person: if is_node { claim.what.person.clone() } else { String::new() },
                manifest_digest: None,
            });
        }
    }

    fn inside(&self, node: Claim<Node>, rest: Vec<String>, limits: Arc<Limits>) -> BoxFuture<'static, Inside> {
        let this = self.clone();
        Box::pin(async move {
            let (shares, problem) = this.shown_shares(&node).await;
            let mut items = Vec::new();
            let found = this.inside_shares(&shares, &rest, &limits, &mut items).await;
            // A node that is away and of which nothing is remembered is not an empty one.
            let found = match (found, &problem) {
                (Err(e), Some(p)) if e.is(Reason::AddressUnknown) => {
                    Err(Error::new(Reason::PeerUnreachable, p.message.clone()).why_is(p.why.clone()))
                }
                (found, _) => found,
            };
            (node.shown(), found.map(|()| items), problem)
        })
    }

    async fn inside_shares(
        &self,
        shares: &[Claim<Shown>],
        rest: &[String],
        limits: &Limits,
        items: &mut Vec<Item>,
    ) -> Result<()> {
        let Some((name, path)) = rest.split_first() else {
            for claim in shares {
                items.push(claim.what.item());
                if limits.recursive && claim.what.share.right >= Right::Read {
                    self.inside_share(&claim.what, &[], limits, items).await?;
                }
            }
            return Ok(());
        };
        let found = names::pick(shares, name)?;
        if found.is_empty() {
            return Err(unknown_address(name));
        }
        let alone = found.len() == 1;
        for claim in found {
            match self.inside_share(&claim.what, path, limits, items).await {
                Err(error) if !alone && error.kind() == common::error::Kind::NotFound => {}
                done => done?,
            }
        }
        Ok(())
    }

    async fn inside_share(&self, shown: &Shown, path: &[String], limits: &Limits, items: &mut Vec<Item>) -> Result<()> {
        super::access::require(Some(shown.share.right), Right::Read)?;
        let mut tops = vec![String::new()];
        for (at, segment) in path.iter().enumerate() {
            let mut next = Vec::new();
            for top in tops {
                if segment == ANY {
                    let found = shown.reading.directory(self, &top, "", WILD_MAX).await?;
                    next.extend(found.into_iter().filter(|e| e.is_directory() || at + 1 == path.len()).map(|e| e.path));
                } else {
                    next.push(join(&top, segment));
                }
                next.truncate(WILD_MAX);
            }
            tops = next;
        }
        let alone = tops.len() == 1;
        for top in tops {
            match self.entries(shown, &top, limits, items).await {
                Err(error) if !alone && error.is(Reason::EntryUnknown) => {}
                done => done?,
            }
        }
        Ok(())
    }

    async fn entries(&self, shown: &Shown, top: &str, limits: &Limits, items: &mut Vec<Item>) -> Result<()> {
        if !top.is_empty() {
            let entry = shown.reading.entry(self, top).await?;
            if entry.is_file() {
                if !limits.children {
                    items.push(shown.entry_item(&entry));
                }
                return Ok(());
            }
        }
        let base = join(&shown.address, top);
        let base = base.trim_end_matches('/');
        let inside = limits.after.as_ref().and_then(|a| a.strip_prefix(base)?.strip_prefix('/').map(str::to_owned));
        if limits.recursive {
            let index = shown.reading.whole(self).await?;
            let (top, after) = (top.to_owned(), inside.map(|rest| join(top, &rest)).unwrap_or_default());
            let limit = limits.limit;
            let found: Vec<Entry> =
                blocking(move || index.walk(&top, &after).take(limit).map(|s| s.map(|s| s.entry)).collect()).await?;
            items.extend(found.iter().map(|e| shown.entry_item(e)));
        } else {
            let after = inside.as_ref().and_then(|rest| rest.split('/').next()).unwrap_or_default();
            let found = shown.reading.directory(self, top, after, limits.limit).await?;
            items.extend(found.iter().map(|e| shown.entry_item(e)));
        }
        Ok(())
    }
}

/// A node's name, what was found there, and why it is only what is remembered.
type Inside = (String, Result<Vec<Item>>, Option<NodeProblem>);

struct Limits {
    recursive: bool,
    /// Only what is in something: a file itself does not count.
    children: bool,
    after: Option<String>,
    limit: usize,
}

/// Everything that is there below a directory, with paths below it.
fn below(index: &IndexHandle, top: &str) -> Result<Vec<(String, Entry)>> {
    let mut found = Vec::new();
    for stored in index.walk(top, "") {
        let entry = stored?.entry;
        if found.len() == TREE_MAX {
            return Err(Error::new(Reason::TreeTooLarge, "there are more than 1,000,000 entries below this address"));
        }
        let inside = if top.is_empty() { entry.path.clone() } else { entry.path[top.len() + 1..].to_owned() };
        found.push((inside, entry));
    }
    Ok(found)
}

/// The name of what an address stands for, for a place to put it.
impl Resolved {
    /// The last segment: the file's, the directory's or the share's name.
    pub fn name(&self) -> &str {
        if self.path.is_empty() { self.record.name() } else { split(&self.path).1 }
    }
}
