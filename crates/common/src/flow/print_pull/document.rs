//! A document on its way from the server.

use super::Client;
use crate::error::{Error, Reason, Result};
use crate::retry::{Backoff, RetryPolicy};
use bytes::Bytes;
use proto::v1;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use uuid::Uuid;

/// A stream on which nothing comes for so long is taken for broken.
const IDLE: Duration = Duration::from_secs(60);

/// A document, piece by piece. A connection that breaks is made anew and the document goes on where it was; at the end
/// its digest is compared.
#[derive(Debug)]
pub struct Document {
    client: Client,
    id: Uuid,
    attempt: u32,
    size: u64,
    digest: [u8; 32],
    offset: u64,
    hasher: blake3::Hasher,
    stream: Option<Streaming<v1::FetchPrintDocumentResponse>>,
    delays: Backoff,
    /// Cancelled when nobody wants the document any more.
    unwanted: CancellationToken,
}

impl Document {
    pub(super) fn new(
        client: Client,
        job: &super::PulledJob,
        attempt: u32,
        retry: RetryPolicy,
        unwanted: CancellationToken,
    ) -> Self {
        Self {
            client,
            id: job.id,
            attempt,
            size: job.size_bytes,
            digest: job.digest,
            offset: 0,
            hasher: blake3::Hasher::new(),
            stream: None,
            delays: retry.delays(),
            unwanted,
        }
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that were given so far, and those that were there.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes of the document are there already, from an attempt that was cut off. Only before the first
    /// [`Document::next`]. If they are others, the end says so.
    pub fn have(&mut self, data: &[u8]) {
        self.hasher.update(data);
        self.offset += data.len() as u64;
    }

    /// The next piece; none at the end, when the whole document was compared with its digest.
    ///
    /// # Errors
    /// `PRINT_JOB_ENDED`, `PRINT_ATTEMPT_STALE`, `PRINT_JOB_UNKNOWN` if it is not to be printed any more;
    /// `PEER_MISBEHAVES` for a document that is another one than was said.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.offset >= self.size {
                return self.check().map(|()| None);
            }
            let unwanted = self.unwanted.clone();
            let got = match unwanted.run_until_cancelled(self.receive()).await {
                Some(got) => got,
                None => return Err(Error::new(Reason::PrintJobEnded, "the job is not wanted any more")),
            };
            let error = match got {
                Ok(piece) => {
                    self.delays.reset();
                    self.hasher.update(&piece);
                    self.offset += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Err(error) => error,
            };
            self.stream = None;
            let Some(delay) = self.delays.after(&error) else { return Err(error) };
            tracing::debug!(reason = error.reason(), ?delay, "a document's stream broke, it goes on");
            let _ = unwanted.run_until_cancelled(tokio::time::sleep(delay)).await;
        }
    }

    async fn receive(&mut self) -> Result<Bytes> {
        let broken = || Error::new(Reason::ServerUnreachable, "the document's stream ended too early");
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = v1::FetchPrintDocumentRequest {
                    id: self.id.to_string(),
                    attempt: self.attempt,
                    offset_bytes: self.offset,
                };
                let opened = tokio::time::timeout(IDLE, self.client.fetch_print_document(request));
                self.stream.insert(opened.await.map_err(|_| broken())??.into_inner())
            }
        };
        let message = tokio::time::timeout(IDLE, stream.message()).await.map_err(|_| broken())??.ok_or_else(broken)?;
        let end = self.offset.checked_add(message.data.len() as u64);
        if message.data.is_empty() || message.offset_bytes != self.offset || end.is_none_or(|end| end > self.size) {
            return Err(Error::new(
                Reason::PeerMisbehaves,
                "the server sent another part of the document than was asked for",
            ));
        }
        Ok(message.data)
    }

    fn check(&self) -> Result<()> {
        match self.offset == self.size && *self.hasher.finalize().as_bytes() == self.digest {
            true => Ok(()),
            false => Err(Error::new(Reason::PeerMisbehaves, "the document is another one than the server said")),
        }
    }
}
