//! `CatalogueService`: decodes, asks who may, answers.
//!
//! Every method first finds out who calls, then whether it may; only then it looks. Long reads check again with each
//! page, so that whoever is cut off or loses a right in the middle gets no more of it.
//!
//! Bounds: 256 reads, 1,024 watchers and 4 searches at a time, beyond which OVERLOADED; two pages wait for a reader, and one that takes
//! none for a minute is given up.

use common::error::{Error, Reason, Result};
use common::model::{DeviceId, Right};
use common::status::to_status;
use common::wire as convert;
use http::Extensions;
use prost::Message;
use proto::peer::v1 as wire;
use proto::peer::v1::catalogue_service_server::{CatalogueService, CatalogueServiceServer};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::access::{require, right_of};
use super::entry::{check_path, is_below};
use super::folder::Folder;
use super::record::ShareRecord;
use super::remote::SHARES_MAX;
use super::{Catalogue, blocking};
use super::{names, search};
use crate::model::{Content, Scope, ShareId};

const READS: usize = 256;
const WATCHERS: usize = 1_024;
/// Each reads through whole indexes; others wait for their turn.
const SEARCHES: usize = 4;
const SEARCH_WAIT: Duration = Duration::from_secs(3);
/// Entries of one message.
const PAGE: usize = 1_000;
/// Bytes after which a message is sent.
const PAGE_BYTES: usize = 900 << 10;
/// Chunks of one message.
const MANIFEST_PAGE: usize = 16_384;
const QUEUE: usize = 2;
const IDLE: Duration = Duration::from_secs(60);
/// Changes are gathered for so long.
const GATHER: Duration = Duration::from_millis(50);

/// Tells from a request's extensions which device calls; `None` if nobody has proven to be one.
pub type Identify = fn(&Extensions) -> Option<DeviceId>;

/// The device at the other end of a node's connection.
pub fn by_connection(extensions: &Extensions) -> Option<DeviceId> {
    extensions.get::<crate::net::NodeIdentity>().map(|identity| identity.device)
}

/// See the module.
#[derive(Clone)]
pub struct CatalogueGrpc {
    catalogue: Catalogue,
    identify: Identify,
    reads: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
    searches: Arc<Semaphore>,
}

type Pages<T> = ReceiverStream<Result<T, Status>>;

fn overloaded() -> Error {
    Error::new(Reason::Overloaded, "too many are reading at the moment").retry_after(Duration::from_secs(2))
}

fn share_id(bytes: &[u8]) -> Result<ShareId> {
    ShareId::from_slice(bytes)
        .ok_or_else(|| Error::new(Reason::FieldInvalid, "the share's id has not 16 bytes").with("field", "share_id"))
}

fn below(path: &str) -> Result<()> {
    if path.is_empty() { Ok(()) } else { check_path(path) }
}

/// Gives a page to whoever reads; false if it is gone or has not taken any for too long.
async fn give<T>(to: &mpsc::Sender<Result<T, Status>>, page: Result<T>) -> bool {
    let page = page.map_err(|e| to_status(&e));
    matches!(tokio::time::timeout(IDLE, to.send(page)).await, Ok(Ok(())))
}

impl CatalogueGrpc {
    /// The service, for a tonic router.
    pub fn service(catalogue: Catalogue, identify: Identify) -> CatalogueServiceServer<CatalogueGrpc> {
        CatalogueServiceServer::new(Self {
            catalogue,
            identify,
            reads: Arc::new(Semaphore::new(READS)),
            watchers: Arc::new(Semaphore::new(WATCHERS)),
            searches: Arc::new(Semaphore::new(SEARCHES)),
        })
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<DeviceId> {
        let device = (self.identify)(request.extensions());
        let device = device.ok_or_else(|| Error::new(Reason::DeviceRequired, "the caller has not shown a key"))?;
        self.catalogue.check_member(&device).map(|()| device)
    }

    /// The folder of a share that the caller may use like this.
    fn folder(&self, caller: &DeviceId, share: &[u8], needed: Right) -> Result<Arc<Folder>> {
        let share = share_id(share)?;
        require(self.catalogue.right(&share, caller), needed)?;
        self.catalogue.folder(&share)
    }

    fn read_permit(&self) -> Result<OwnedSemaphorePermit> {
        self.reads.clone().try_acquire_owned().map_err(|_| overloaded())
    }
}

impl Catalogue {
    fn check_member(&self, device: &DeviceId) -> Result<()> {
        if self.0.roster.is_member(device) {
            return Ok(());
        }
        Err(Error::new(Reason::NotAMember, "only members of the office may ask"))
    }

    fn state(&self, record: &ShareRecord, folder: Option<&Folder>) -> wire::ShareState {
        let head = folder.map(|f| f.index.head());
        wire::ShareState {
            record: Some(record.signed().clone()),
            index_id: head.map_or(0, |h| h.index_id),
            max_sequence: head.map_or(0, |h| h.max_sequence),
            file_count: head.map_or(0, |h| h.file_count),
            total_bytes: head.map_or(0, |h| h.total_bytes),
            complete: folder.is_some_and(|f| f.complete.load(std::sync::atomic::Ordering::Relaxed)),
        }
    }

    /// What a device may see: shares with a folder here, in order of names, then own records that are removed and that
    /// it could see before.
    fn visible(&self, device: &DeviceId) -> Vec<(ShareRecord, wire::ShareState)> {
        let mut seen: Vec<(ShareRecord, wire::ShareState)> = self
            .folders()
            .into_iter()
            .filter_map(|folder| {
                let record = self.record(&folder.share()).ok()?;
                right_of(&*self.0.roster, device, &record)?;
                let state = self.state(&record, Some(&folder));
                Some((record, state))
            })
            .collect();
        seen.sort_by(|a, b| (a.0.name(), a.0.share()).cmp(&(b.0.name(), b.0.share())));
        let me = self.0.roster.me();
        let removed = self.0.book.all(|k| k.record.owner() == me && k.record.removed());
        let mut removed: Vec<ShareRecord> = removed
            .into_iter()
            .map(|k| k.record)
            .filter(|r| *device == me || self.0.roster.right(device, &r.terms().grants).is_some())
            .collect();
        removed.sort_by_key(ShareRecord::share);
        seen.extend(removed.into_iter().map(|record| {
            let state = self.state(&record, None);
            (record, state)
        }));
        seen.truncate(SHARES_MAX);
        seen
    }

    /// A content of a scope that the asker may have.
    fn manifest(&self, scope: &Scope, asker: &DeviceId, digest: &[u8; 32]) -> Result<Content> {
        let unknown = || Error::new(Reason::EntryUnknown, "there is no such content in this scope");
        if let Scope::Share(share) = scope {
            require(self.right(share, asker), Right::Read)?;
            let index = self.index(share)?;
            return index.by_digest(digest)?.map(|found| found.1).ok_or_else(unknown);
        }
        let sources = self.0.manifests.read().clone();
        for source in sources {
            if let Some(content) = source.manifest(scope, asker, digest)? {
                return Ok(content);
            }
        }
        Err(unknown())
    }
}

/// Entries as one message, cut where it is large enough.
fn page_of(entries: Vec<super::Entry>, wanted: &str) -> (Vec<wire::IndexEntry>, Option<u64>) {
    let (mut page, mut bytes, mut last) = (Vec::new(), 0, None);
    for entry in entries {
        if is_below(&entry.path, wanted) {
            let wire = entry.to_wire();
            bytes += wire.encoded_len();
            if bytes > PAGE_BYTES && !page.is_empty() {
                break;
            }
            page.push(wire);
        }
        last = Some(entry.sequence);
    }
    (page, last)
}

#[tonic::async_trait]
impl CatalogueService for CatalogueGrpc {
    async fn list_shares(
        &self,
        request: Request<wire::ListSharesRequest>,
    ) -> Result<Response<wire::ListSharesResponse>, Status> {
        let caller = self.caller(&request).map_err(|e| to_status(&e))?;
        let shares = self.catalogue.visible(&caller).into_iter().map(|s| s.1).collect();
        Ok(Response::new(wire::ListSharesResponse { shares }))
    }

    type ReadIndexStream = Pages<wire::ReadIndexResponse>;

    async fn read_index(
        &self,
        request: Request<wire::ReadIndexRequest>,
    ) -> Result<Response<Self::ReadIndexStream>, Status> {
        let begin = || {
            let caller = self.caller(&request)?;
            let folder = self.folder(&caller, &request.get_ref().share_id, Right::Read)?;
            below(&request.get_ref().below)?;
            Ok((caller, folder, self.read_permit()?))
        };
        let (caller, folder, permit) = begin().map_err(|e: Error| to_status(&e))?;
        let wanted = request.into_inner();
        let head = folder.index.head();
        let index_id = head.index_id;
        let mut after = if wanted.index_id == index_id { wanted.after_sequence } else { 0 };
        let (give_to, pages) = mpsc::channel(QUEUE);
        let catalogue = self.catalogue.clone();
        self.catalogue.0.shutdown.spawn_until(async move {
            let _permit = permit;
            loop {
                if let Err(error) = require(catalogue.right(&folder.share(), &caller), Right::Read) {
                    give(&give_to, Err(error)).await;
                    return;
                }
                let (index, below) = (folder.index.clone(), wanted.below.clone());
                let read = blocking(move || {
                    let entries = index.after(after, PAGE)?;
                    Ok(page_of(entries, &below))
                });
                let (entries, last) = match read.await {
                    Ok(read) => read,
                    Err(error) => {
                        give(&give_to, Err(error)).await;
                        return;
                    }
                };
                let end = last.is_none();
                // Entries that were replaced since have higher sequences: they come later, here or with the next read.
                after = last.unwrap_or_else(|| after.max(head.max_sequence));
                // Also one without entries: whoever reads sees that it goes on.
                let page = wire::ReadIndexResponse { index_id, entries, up_to_sequence: after };
                if !give(&give_to, Ok(page)).await || end {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(pages)))
    }

    async fn list_entries(
        &self,
        request: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<wire::ListEntriesResponse>, Status> {
        let begin = || {
            let caller = self.caller(&request)?;
            let folder = self.folder(&caller, &request.get_ref().share_id, Right::Read)?;
            below(&request.get_ref().path)?;
            Ok(folder)
        };
        let folder = begin().map_err(|e: Error| to_status(&e))?;
        let wanted = request.into_inner();
        let read = blocking(move || {
            if wanted.itself {
                let entry = folder.index.present(&wanted.path)?;
                return Ok(wire::ListEntriesResponse {
                    entries: vec![entry.to_wire()],
                    next_page_token: String::new(),
                });
            }
            if !wanted.path.is_empty() && !folder.index.present(&wanted.path)?.is_directory() {
                return Err(Error::new(Reason::NotADirectory, "the path is a file"));
            }
            let limit = if wanted.page_size == 0 { PAGE } else { (wanted.page_size as usize).min(PAGE) };
            let (mut entries, mut bytes, mut after, mut next) = (Vec::new(), 0, wanted.page_token, String::new());
            'pages: loop {
                let page = folder.index.directory(&wanted.path, &after, PAGE)?;
                let end = page.len() < PAGE;
                for stored in page {
                    if !stored.entry.deleted {
                        let wire = stored.entry.to_wire();
                        bytes += wire.encoded_len();
                        if entries.len() == limit || (bytes > PAGE_BYTES && !entries.is_empty()) {
                            next = after;
                            break 'pages;
                        }
                        entries.push(wire);
                    }
                    stored.entry.name().clone_into(&mut after);
                }
                if end {
                    break;
                }
            }
            Ok(wire::ListEntriesResponse { entries, next_page_token: next })
        });
        read.await.map(Response::new).map_err(|e| to_status(&e))
    }

    type ReadManifestStream = Pages<wire::ReadManifestResponse>;

    async fn read_manifest(
        &self,
        request: Request<wire::ReadManifestRequest>,
    ) -> Result<Response<Self::ReadManifestStream>, Status> {
        let begin = || {
            let caller = self.caller(&request)?;
            let scope = Scope::read(request.get_ref().scope.as_ref())?;
            let digest: [u8; 32] = request.get_ref().manifest_digest[..]
                .try_into()
                .map_err(|_| Error::new(Reason::FieldInvalid, "the digest has not 32 bytes"))?;
            Ok((caller, scope, digest, self.read_permit()?))
        };
        let (caller, scope, digest, permit) = begin().map_err(|e: Error| to_status(&e))?;
        let catalogue = self.catalogue.clone();
        let content =
            blocking(move || catalogue.manifest(&scope, &caller, &digest)).await.map_err(|e| to_status(&e))?;
        let (give_to, pages) = mpsc::channel(QUEUE);
        self.catalogue.0.shutdown.spawn_until(async move {
            let _permit = permit;
            for part in content.chunks.chunks(MANIFEST_PAGE) {
                if !give(&give_to, Ok(wire::ReadManifestResponse { chunks: convert::chunks_to(part) })).await {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(pages)))
    }

    type WatchSharesStream = Pages<wire::WatchSharesResponse>;

    async fn watch_shares(
        &self,
        request: Request<wire::WatchSharesRequest>,
    ) -> Result<Response<Self::WatchSharesStream>, Status> {
        let caller = self.caller(&request).map_err(|e| to_status(&e))?;
        let permit = self.watchers.clone().try_acquire_owned().map_err(|_| to_status(&overloaded()))?;
        let (give_to, pages) = mpsc::channel(QUEUE);
        let catalogue = self.catalogue.clone();
        self.catalogue.0.shutdown.spawn_until(async move {
            let _permit = permit;
            watch(&catalogue, caller, &give_to).await;
        });
        Ok(Response::new(ReceiverStream::new(pages)))
    }

    async fn search(&self, request: Request<wire::SearchRequest>) -> Result<Response<wire::SearchResponse>, Status> {
        let begin = || Ok((self.caller(&request)?, names::words(&request.get_ref().words)?));
        let (caller, words) = begin().map_err(|e: Error| to_status(&e))?;
        let turn = tokio::time::timeout(SEARCH_WAIT, self.searches.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = turn else { return Err(to_status(&overloaded())) };
        let limit = if request.get_ref().limit == 0 { 100 } else { (request.get_ref().limit as usize).min(1_000) };
        let catalogue = self.catalogue.clone();
        let search = blocking(move || {
            let _permit = permit;
            let (mut found, mut truncated) = (Vec::new(), false);
            for folder in catalogue.folders() {
                if catalogue.right(&folder.share(), &caller).is_none_or(|r| r < Right::Read) {
                    continue;
                }
                let (matches, more) = search::search_index(&folder.index, &words, limit)?;
                truncated |= more;
                found.extend(matches.into_iter().map(|(rank, entry)| (rank, folder.share(), entry)));
            }
            found.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| names::order(&a.2.path, &b.2.path)));
            truncated |= found.len() > limit;
            let matches = found.into_iter().take(limit).map(|(_, share, entry)| wire::search_response::Match {
                share_id: share.as_bytes().to_vec().into(),
                entry: Some(wire::IndexEntry { chunks: Vec::new(), ..entry.to_wire() }),
            });
            Ok(wire::SearchResponse { matches: matches.collect(), truncated })
        });
        search.await.map(Response::new).map_err(|e| to_status(&e))
    }
}

async fn watch(
    catalogue: &Catalogue,
    caller: DeviceId,
    give_to: &mpsc::Sender<Result<wire::WatchSharesResponse, Status>>,
) {
    let mut changes = catalogue.changes();
    let mut told: HashMap<ShareId, wire::ShareState> = HashMap::new();
    let mut first = true;
    loop {
        changes.mark_unchanged();
        let office = catalogue.0.roster.changed();
        if let Err(error) = catalogue.check_member(&caller) {
            give(give_to, Err(error)).await;
            return;
        }
        let mut now: HashMap<ShareId, wire::ShareState> = HashMap::new();
        let mut changed = Vec::new();
        for (record, state) in catalogue.visible(&caller) {
            if told.get(&record.share()) != Some(&state) {
                changed.push(state.clone());
            }
            now.insert(record.share(), state);
        }
        let gone: Vec<_> = told.keys().filter(|s| !now.contains_key(s)).map(|s| s.as_bytes().to_vec().into()).collect();
        if first || !changed.is_empty() || !gone.is_empty() {
            first = false;
            if !give(give_to, Ok(wire::WatchSharesResponse { changed, gone })).await {
                return;
            }
        }
        told = now;
        tokio::select! {
            () = give_to.closed() => return,
            _ = changes.changed() => {}
            () = office => {}
        }
        tokio::time::sleep(GATHER).await;
    }
}
