//! `atrium.v1.FileService`.

pub mod convert;

pub use convert::encode_entry;

use crate::app::answers::{Once, RequestKey};
use crate::app::caller::Caller;
use crate::app::copies::{self, Copied};
use crate::app::entries::{self, Entry};
use crate::app::moves::{self, Move};
use crate::app::{App, commits, locks, records, tickets, trash, versions};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::status::{to_item_error, to_status};
use common::wire;
use prost::Message;
use proto::v1;
use proto::v1::file_service_server::FileService;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Serves the tree.
#[derive(Clone)]
pub struct Files {
    app: App,
}

impl Files {
    /// Serves this office's files.
    pub fn new(app: App) -> Self {
        Self { app }
    }
}

/// The caller and the message of a call.
pub(super) fn open<T>(request: Request<T>) -> (Caller, T) {
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
    (caller, request.into_inner())
}

/// The end of a call.
pub(super) fn close<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|e| to_status(&e))
}

/// The key of a request.
pub(super) fn key(caller: &Caller, method: &str, id: &str, request: &impl Message) -> Result<Option<RequestKey>> {
    RequestKey::new(caller, method, id, &request.encode_to_vec())
}

fn once_entry(caller: &Caller, method: &str, id: &str, request: &impl Message) -> Result<Once<Entry>> {
    let key = key(caller, method, id, request)?;
    Ok(Once::new(key, |entry: &Entry| Bytes::from(encode_entry(entry).encode_to_vec())))
}

fn encode_copied(copied: &Copied) -> v1::CopyEntryResponse {
    v1::CopyEntryResponse { entry: Some(encode_entry(&copied.entry)), entry_count: copied.entry_count }
}

impl Files {
    async fn list_entries(&self, caller: Caller, request: v1::ListEntriesRequest) -> Result<v1::ListEntriesResponse> {
        let path = convert::path(request.path, "path")?;
        let page = entries::list(&self.app, &caller, &path, request.page_size, &request.page_token).await?;
        Ok(v1::ListEntriesResponse {
            entries: page.entries.iter().map(convert::encode_listed).collect(),
            next_page_token: page.next_page_token,
        })
    }

    async fn make_directory(&self, caller: Caller, request: v1::MakeDirectoryRequest) -> Result<v1::Entry> {
        let once = once_entry(&caller, "MakeDirectory", &request.request_id, &request)?;
        let path = convert::path(request.path, "path")?;
        let made = entries::make_directory(&self.app, &caller, path, request.parents, once).await?;
        made.into(|e| encode_entry(&e), records::decode)
    }

    async fn move_entry(&self, caller: Caller, request: v1::MoveEntryRequest) -> Result<v1::Entry> {
        let once = once_entry(&caller, "MoveEntry", &request.request_id, &request)?;
        let order = Move {
            source: convert::path(request.source, "source")?,
            destination: convert::path(request.destination, "destination")?,
            overwrite: request.overwrite,
            etag: request.etag,
        };
        moves::move_entry(&self.app, &caller, order, once).await?.into(|e| encode_entry(&e), records::decode)
    }

    async fn copy_entry(&self, caller: Caller, request: v1::CopyEntryRequest) -> Result<v1::CopyEntryResponse> {
        let key = key(&caller, "CopyEntry", &request.request_id, &request)?;
        let once = Once::new(key, |copied: &Copied| Bytes::from(encode_copied(copied).encode_to_vec()));
        let source = convert::path(request.source, "source")?;
        let destination = convert::path(request.destination, "destination")?;
        let copied = copies::copy(&self.app, &caller, source, destination, once).await?;
        copied.into(|c| encode_copied(&c), records::decode)
    }

    async fn delete_entry(&self, caller: Caller, request: v1::DeleteEntryRequest) -> Result<v1::DeleteEntryResponse> {
        let key = key(&caller, "DeleteEntry", &request.request_id, &request)?;
        let encode = |id: uuid::Uuid| v1::DeleteEntryResponse { trash_id: id.to_string() };
        let once = Once::new(key, move |id| Bytes::from(encode(*id).encode_to_vec()));
        let path = convert::path(request.path, "path")?;
        let deleted = trash::delete(&self.app, &caller, path, request.recursive, request.etag, once).await?;
        deleted.into(encode, records::decode)
    }

    fn list_trash(&self, caller: Caller, request: v1::ListTrashRequest) -> Result<v1::ListTrashResponse> {
        let root = convert::root(&request.root, "root")?;
        let (items, next_page_token) = trash::list(&self.app, &caller, &root, request.page_size, &request.page_token)?;
        Ok(v1::ListTrashResponse { items: items.iter().map(convert::encode_deleted).collect(), next_page_token })
    }

    async fn restore_trash(&self, caller: Caller, request: v1::RestoreTrashRequest) -> Result<v1::Entry> {
        let once = once_entry(&caller, "RestoreTrash", &request.request_id, &request)?;
        let root = convert::root(&request.root, "root")?;
        let id = convert::trash_id(&request.trash_id)?;
        let destination = match request.destination {
            Some(path) => Some(convert::path(Some(path), "destination")?),
            None => None,
        };
        let restored = trash::restore(&self.app, &caller, root, id, destination, once).await?;
        restored.into(|e| encode_entry(&e), records::decode)
    }

    async fn purge_trash(&self, caller: Caller, request: v1::PurgeTrashRequest) -> Result<v1::PurgeTrashResponse> {
        let root = convert::root(&request.root, "root")?;
        let id = if request.trash_id.is_empty() { None } else { Some(convert::trash_id(&request.trash_id)?) };
        Ok(v1::PurgeTrashResponse { item_count: trash::purge(&self.app, &caller, root, id).await? })
    }

    fn list_versions(&self, caller: Caller, request: v1::ListVersionsRequest) -> Result<v1::ListVersionsResponse> {
        let path = convert::path(request.path, "path")?;
        let (found, next_page_token) =
            versions::list(&self.app, &caller, &path, request.page_size, &request.page_token)?;
        Ok(v1::ListVersionsResponse { versions: found.iter().map(convert::encode_version).collect(), next_page_token })
    }

    async fn restore_version(&self, caller: Caller, request: v1::RestoreVersionRequest) -> Result<v1::Entry> {
        let once = once_entry(&caller, "RestoreVersion", &request.request_id, &request)?;
        let path = convert::path(request.path, "path")?;
        let restored = versions::restore(&self.app, &caller, path, request.version, once).await?;
        restored.into(|e| encode_entry(&e), records::decode)
    }

    async fn lock_entry(&self, caller: Caller, request: v1::LockEntryRequest) -> Result<v1::Entry> {
        let path = convert::path(request.path, "path")?;
        let lifetime = Duration::from_secs(request.lifetime_seconds);
        Ok(encode_entry(&locks::lock(&self.app, &caller, path, lifetime, request.note).await?))
    }

    async fn unlock_entry(&self, caller: Caller, request: v1::UnlockEntryRequest) -> Result<v1::Entry> {
        let path = convert::path(request.path, "path")?;
        Ok(encode_entry(&locks::unlock(&self.app, &caller, path, request.force).await?))
    }

    async fn get_manifest(&self, caller: Caller, request: v1::GetManifestRequest) -> Result<v1::GetManifestResponse> {
        let path = convert::path(request.path, "path")?;
        let (size, token) = (request.page_size, &request.page_token);
        let page = versions::manifest(&self.app, &caller, &path, request.version, size, token).await?;
        Ok(v1::GetManifestResponse {
            chunks: wire::chunks_to(&page.chunks),
            next_page_token: page.next_page_token,
            version: page.version,
            manifest_digest: Bytes::copy_from_slice(&page.manifest_digest),
            size_bytes: page.size_bytes,
        })
    }

    async fn find_missing_chunks(
        &self,
        caller: Caller,
        request: v1::FindMissingChunksRequest,
    ) -> Result<v1::FindMissingChunksResponse> {
        let upload = convert::upload_id(&request.upload_id)?;
        let chunks = wire::chunks_from(&request.chunks, commits::MAX_ASKED)?;
        let bases = request.bases.into_iter().map(|p| convert::path(Some(p), "bases")).collect::<Result<_>>()?;
        let missing = commits::find_missing(&self.app, &caller, upload, chunks, bases).await?;
        Ok(v1::FindMissingChunksResponse { missing })
    }

    async fn commit_files(&self, caller: Caller, request: v1::CommitFilesRequest) -> Result<v1::CommitFilesResponse> {
        let upload = convert::upload_id(&request.upload_id)?;
        if request.files.len() > commits::MAX_FILES {
            return Err(Error::new(Reason::FieldInvalid, "a commit takes up to 1,000 files").with("field", "files"));
        }
        let files = request.files.into_iter().map(convert::file_commit).collect();
        let results = commits::commit(&self.app, &caller, upload, files).await?;
        Ok(v1::CommitFilesResponse { results: results.into_iter().map(convert::encode_published).collect() })
    }

    async fn issue_read_ticket(
        &self,
        caller: Caller,
        request: v1::IssueReadTicketRequest,
    ) -> Result<v1::IssueReadTicketResponse> {
        use v1::ticket_item::Result as Item;
        let paths = request.paths.into_iter().map(|p| convert::path(Some(p), "paths")).collect();
        let issued = tickets::issue(&self.app, &caller, paths, &request.device_id).await?;
        let item = |found: Result<Entry>| {
            let result = match found {
                Ok(entry) => Item::Entry(encode_entry(&entry)),
                Err(error) => Item::Error(to_item_error(&error)),
            };
            v1::TicketItem { result: Some(result) }
        };
        Ok(v1::IssueReadTicketResponse {
            ticket: issued.ticket.into(),
            signature: issued.signature.into(),
            items: issued.items.into_iter().map(item).collect(),
        })
    }
}

#[tonic::async_trait]
impl FileService for Files {
    async fn get_entry(&self, request: Request<v1::GetEntryRequest>) -> Result<Response<v1::Entry>, Status> {
        let (caller, request) = open(request);
        let path = convert::path(request.path, "path");
        close(path.and_then(|path| entries::get(&self.app, &caller, &path)).map(|e| encode_entry(&e)))
    }

    async fn list_entries(
        &self,
        request: Request<v1::ListEntriesRequest>,
    ) -> Result<Response<v1::ListEntriesResponse>, Status> {
        let (caller, request) = open(request);
        close(self.list_entries(caller, request).await)
    }

    async fn make_directory(&self, request: Request<v1::MakeDirectoryRequest>) -> Result<Response<v1::Entry>, Status> {
        let (caller, request) = open(request);
        close(self.make_directory(caller, request).await)
    }

    async fn move_entry(&self, request: Request<v1::MoveEntryRequest>) -> Result<Response<v1::Entry>, Status> {
        let (caller, request) = open(request);
        close(self.move_entry(caller, request).await)
    }

    async fn copy_entry(
        &self,
        request: Request<v1::CopyEntryRequest>,
    ) -> Result<Response<v1::CopyEntryResponse>, Status> {
        let (caller, request) = open(request);
        close(self.copy_entry(caller, request).await)
    }

    async fn delete_entry(
        &self,
        request: Request<v1::DeleteEntryRequest>,
    ) -> Result<Response<v1::DeleteEntryResponse>, Status> {
        let (caller, request) = open(request);
        close(self.delete_entry(caller, request).await)
    }

    async fn list_trash(
        &self,
        request: Request<v1::ListTrashRequest>,
    ) -> Result<Response<v1::ListTrashResponse>, Status> {
        let (caller, request) = open(request);
        close(self.list_trash(caller, request))
    }

    async fn restore_trash(&self, request: Request<v1::RestoreTrashRequest>) -> Result<Response<v1::Entry>, Status> {
        let (caller, request) = open(request);
        close(self.restore_trash(caller, request).await)
    }

    async fn purge_trash(
        &self,
        request: Request<v1::PurgeTrashRequest>,
    ) -> Result<Response<v1::PurgeTrashResponse>, Status> {
        let (caller, request) = open(request);
        close(self.purge_trash(caller, request).await)
    }

    async fn list_versions(
        &self,
        request: Request<v1::ListVersionsRequest>,
    ) -> Result<Response<v1::ListVersionsResponse>, Status> {
        let (caller, request) = open(request);
        close(self.list_versions(caller, request))
    }

    async fn restore_version(
        &self,
        request: Request<v1::RestoreVersionRequest>,
    ) -> Result<Response<v1::Entry>, Status> {
        let (caller, request) = open(request);
        close(self.restore_version(caller, request).await)
    }

    async fn lock_entry(&self, request: Request<v1::LockEntryRequest>) -> Result<Response<v1::Entry>, Status> {
        let (caller, request) = open(request);
        close(self.lock_entry(caller, request).await)
    }

    async fn unlock_entry(&self, request: Request<v1::UnlockEntryRequest>) -> Result<Response<v1::Entry>, Status> {
        let (caller, request) = open(request);
        close(self.unlock_entry(caller, request).await)
    }

    async fn get_manifest(
        &self,
        request: Request<v1::GetManifestRequest>,
    ) -> Result<Response<v1::GetManifestResponse>, Status> {
        let (caller, request) = open(request);
        close(self.get_manifest(caller, request).await)
    }

    async fn find_missing_chunks(
        &self,
        request: Request<v1::FindMissingChunksRequest>,
    ) -> Result<Response<v1::FindMissingChunksResponse>, Status> {
        let (caller, request) = open(request);
        close(self.find_missing_chunks(caller, request).await)
    }

    async fn commit_files(
        &self,
        request: Request<v1::CommitFilesRequest>,
    ) -> Result<Response<v1::CommitFilesResponse>, Status> {
        let (caller, request) = open(request);
        close(self.commit_files(caller, request).await)
    }

    async fn issue_read_ticket(
        &self,
        request: Request<v1::IssueReadTicketRequest>,
    ) -> Result<Response<v1::IssueReadTicketResponse>, Status> {
        let (caller, request) = open(request);
        close(self.issue_read_ticket(caller, request).await)
    }
}
