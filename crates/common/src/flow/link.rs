//! Control calls with patience: what all transfers ask the server.

use super::progress::{Event, Tracker};
use crate::error::{Error, Reason, Result};
use crate::model::{ChunkRef, EntryPath, UploadId, manifest_digest};
use crate::retry::{Backoff, RetryPolicy};
use crate::rpc::{OfficeChannel, OfficeConnection};
use crate::status::from_status;
use crate::wire::{chunks_from, chunks_to, path_to};
use proto::v1;
use proto::v1::file_service_client::FileServiceClient;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// A control call takes no longer, retries not counted. A commit of a thousand files on a slow disk takes seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Chunks asked about in one call when many are in doubt.
const ASK_CHUNKS: usize = 16_384;
/// Largest manifest that is taken: 16 TiB of average chunks.
const MAX_MANIFEST: usize = 16 * 1024 * 1024;
/// Answers hold at most 1,000 entries with paths of 4 KiB, or 5,000 without.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// The way to the server during one transfer.
#[derive(Debug)]
pub(super) struct Link<'a> {
    pub(super) connection: &'a OfficeConnection,
    pub(super) tracker: &'a Tracker<'a>,
    pub(super) retry: RetryPolicy,
}

/// A file's manifest.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    pub(super) version: u64,
    pub(super) size: u64,
    pub(super) chunks: Vec<ChunkRef>,
}

impl Link<'_> {
    /// Waits after an error, if it may be tried again.
    ///
    /// # Errors
    /// The error itself, if not.
    pub(super) async fn pause(&self, error: Error, backoff: &mut Backoff) -> Result<()> {
        let Some(delay) = backoff.after(&error) else { return Err(error) };
        tracing::debug!(reason = error.reason(), ?delay, "trying again");
        self.tracker.event(Event::Waiting { error: &error, delay });
        tokio::time::sleep(delay).await;
        Ok(())
    }

    async fn call<M, T, F, Fut>(&self, message: &M, mut call: F) -> Result<T>
    where
        M: Clone,
        F: FnMut(FileServiceClient<OfficeChannel>, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let mut backoff = self.retry.delays();
        loop {
            let client = FileServiceClient::new(self.connection.control()).max_decoding_message_size(MAX_ANSWER);
            let mut request = Request::new(message.clone());
            request.set_timeout(CALL_TIMEOUT);
            match call(client, request).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => self.pause(from_status(&status), &mut backoff).await?,
            }
        }
    }

    /// The entry; `None` if there is none.
    pub(super) async fn entry(&self, path: &EntryPath) -> Result<Option<v1::Entry>> {
        let request = v1::GetEntryRequest { path: Some(path_to(path)) };
        match self.call(&request, |mut c, r| async move { c.get_entry(r).await }).await {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if error.is(Reason::EntryUnknown) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A page of a directory and the token of the next.
    pub(super) async fn list(&self, path: &EntryPath, page_token: String) -> Result<(Vec<v1::Entry>, String)> {
        let request = v1::ListEntriesRequest { path: Some(path_to(path)), page_size: 5000, page_token };
        let page = self.call(&request, |mut c, r| async move { c.list_entries(r).await }).await?;
        Ok((page.entries, page.next_page_token))
    }

    pub(super) async fn make_directory(&self, path: &EntryPath) -> Result<()> {
        let request = v1::MakeDirectoryRequest {
            path: Some(path_to(path)),
            parents: true,
            request_id: uuid::Uuid::new_v4().to_string(),
        };
        self.call(&request, |mut c, r| async move { c.make_directory(r).await }).await.map(drop)
    }

    /// Positions of the chunks that must be uploaded.
    pub(super) async fn find_missing(
        &self,
        upload: UploadId,
        chunks: &[ChunkRef],
        bases: &[EntryPath],
    ) -> Result<Vec<usize>> {
        let mut out = Vec::new();
        for (n, part) in chunks.chunks(ASK_CHUNKS).enumerate() {
            let request = v1::FindMissingChunksRequest {
                upload_id: upload.to_string(),
                chunks: chunks_to(part),
                bases: bases.iter().map(path_to).collect(),
            };
            let answer = self.call(&request, |mut c, r| async move { c.find_missing_chunks(r).await }).await?;
            for position in answer.missing {
                let position = position as usize;
                if position >= part.len() {
                    return Err(strange("a missing chunk that was not asked about"));
                }
                out.push(n * ASK_CHUNKS + position);
            }
        }
        Ok(out)
    }

    /// Publishes; as many results as files.
    pub(super) async fn commit(
        &self,
        upload: UploadId,
        files: Vec<v1::FileCommit>,
    ) -> Result<Vec<v1::FileCommitResult>> {
        let count = files.len();
        let request = v1::CommitFilesRequest { upload_id: upload.to_string(), files };
        let answer = self.call(&request, |mut c, r| async move { c.commit_files(r).await }).await?;
        if answer.results.len() != count {
            return Err(strange("another number of results than files"));
        }
        Ok(answer.results)
    }

    /// The manifest of a version, 0 being the present one.
    pub(super) async fn manifest(&self, path: &EntryPath, version: u64) -> Result<Manifest> {
        let mut request = v1::GetManifestRequest { path: Some(path_to(path)), version, ..Default::default() };
        let mut chunks = Vec::new();
        loop {
            let page = self.call(&request, |mut c, r| async move { c.get_manifest(r).await }).await?;
            if chunks.len() + page.chunks.len() > MAX_MANIFEST
                || (page.chunks.is_empty() && !page.next_page_token.is_empty())
            {
                return Err(strange("a manifest without end"));
            }
            chunks.extend(chunks_from(&page.chunks, MAX_MANIFEST)?);
            // Later pages are of the version of the first.
            request.version = page.version;
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return check_manifest(chunks, page.version, page.size_bytes, &page.manifest_digest);
            }
        }
    }
}

/// What a server sends must fit together.
pub(super) fn check_manifest(chunks: Vec<ChunkRef>, version: u64, size: u64, digest: &[u8]) -> Result<Manifest> {
    let sum: u64 = chunks.iter().map(|c| u64::from(c.len)).sum();
    if sum != size || manifest_digest(&chunks)[..] != *digest {
        return Err(strange("a manifest that does not match its size or digest"));
    }
    Ok(Manifest { version, size, chunks })
}

/// The error for an answer that makes no sense.
pub(super) fn strange(what: &str) -> Error {
    Error::new(Reason::MessageMalformed, format!("the server sent {what}"))
}
