//! `atrium.v1.TransferService`: content in and out, without copying it.
//!
//! An upload's messages are handed, one at a time and at most one waiting, to one blocking thread per stream that checks
//! digests and appends. A download is filled by blocking steps of about `STEP_BYTES` while the step before is on its way
//! to the caller. So a stream holds a few messages of content and no more.

use crate::app::App;
use crate::app::caller::Caller;
use crate::app::{disk, uploads, versions};
use crate::grpc::file::encode_entry;
use bytes::{Bytes, BytesMut};
use common::bulk::{BulkHandler, DownloadEncoder, DownloadSink, MAX_BLOCK, MIN_BLOCK, Rope, UploadStream};
use common::error::{Error, Reason, Result};
use common::model::{ChunkId, ChunkRef, EntryPath, UploadId};
use http::request::Parts;
use proto::v1;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Content that a blocking step of a download gathers.
const STEP_BYTES: usize = 512 * 1024;
/// Content read at a time: what is read is encrypted soon after, and should still be in the processor's cache then. A chunk
/// that is verified here is read in one piece.
const PIECE_BYTES: u64 = 256 * 1024;
/// Buffers of that size that a download remembers for reading into them again; about as many are on their way.
const BUFFERS: usize = 8;
/// Items that a blocking step of a download opens at most, so that many small files do not hold a thread for long.
const STEP_ITEMS: usize = 250;
/// Most items of a request.
const ITEMS_MAX: usize = 1000;
/// Most ranges of an item.
const RANGES_MAX: usize = 10_000;
/// Messages that wait for the appending thread.
const WAITING: usize = 1;

/// Serves both bulk methods.
#[derive(Clone)]
pub struct Transfer {
    app: App,
}

impl Transfer {
    /// Serves this office's content.
    pub fn new(app: App) -> Self {
        Self { app }
    }
}

fn caller_of(context: &Parts) -> Caller {
    context.extensions.get::<Caller>().cloned().unwrap_or_default()
}

fn lost(error: tokio::task::JoinError) -> Error {
    Error::internal("a transfer's thread").caused_by(error)
}

impl BulkHandler for Transfer {
    async fn upload(&self, context: Parts, mut stream: UploadStream) -> Result<v1::UploadChunksResponse> {
        let caller = caller_of(&context);
        caller.require_user()?;
        disk::require_space(&self.app)?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let app = self.app.clone();
        let appending = tokio::task::spawn_blocking(move || append(&app, &caller, receiver));
        loop {
            let message = match stream.next().await {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => {
                    // What arrived before is kept: the upload goes on from there.
                    drop(sender);
                    let _ = appending.await;
                    return Err(error);
                }
            };
            if sender.send(message).await.is_err() {
                break;
            }
        }
        drop(sender);
        let (chunk_count, received_bytes) = appending.await.map_err(lost)??;
        Ok(v1::UploadChunksResponse { chunk_count, received_bytes })
    }

    async fn download(&self, context: Parts, request: v1::DownloadRequest, sink: &mut DownloadSink) -> Result<()> {
        let caller = caller_of(&context);
        caller.require_user()?;
        let mut work = Download::new(self.app.clone(), caller, request)?;
        let block = work.block;
        loop {
            let mut encoder = sink.detach(block);
            let (back, encoder, more) = tokio::task::spawn_blocking(move || {
                let more = work.step(&mut encoder);
                (work, encoder, more)
            })
            .await
            .map_err(lost)?;
            work = back;
            sink.absorb(encoder).await?;
            if !more {
                return sink.flush().await;
            }
        }
    }
}

type Message = (UploadId, Vec<(ChunkId, Rope)>);

/// Appends chunks until the stream ends; gives their number and bytes.
fn append(app: &App, caller: &Caller, mut messages: mpsc::Receiver<Message>) -> Result<(u64, u64)> {
    let (mut count, mut bytes) = (0, 0);
    while let Some((upload, chunks)) = messages.blocking_recv() {
        disk::require_space(app)?;
        let owned = uploads::begin(app, caller, upload)?;
        let found: Vec<ChunkRef> = chunks
            .iter()
            .map(|(id, data)| ChunkRef { id: *id, len: u32::try_from(data.len()).unwrap_or(u32::MAX) })
            .collect();
        let ropes: Vec<(ChunkId, Vec<Bytes>)> = chunks.into_iter().map(|(id, data)| (id, data.into_pieces())).collect();
        app.chunks.append_many(&ropes, owned.lease())?;
        owned.arrived(&found)?;
        count += found.len() as u64;
        bytes += found.iter().map(|c| u64::from(c.len)).sum::<u64>();
    }
    Ok((count, bytes))
}

/// A download's state between steps.
struct Download {
    app: App,
    caller: Caller,
    items: std::iter::Enumerate<std::vec::IntoIter<v1::DownloadItem>>,
    verify: bool,
    block: usize,
    open: Option<Open>,
    buffers: Buffers,
}

/// Buffers that are read into again when what was in them has been sent: fresh memory costs more than reading into it.
#[derive(Default)]
struct Buffers(VecDeque<Bytes>);

impl Buffers {
    /// A buffer of this size, of what content may be in it already.
    fn take(&mut self, len: usize) -> BytesMut {
        // The one that was sent first is free first; if it is not, the others are not either.
        let free = match self.0.front() {
            Some(first) if self.0.len() > BUFFERS || first.is_unique() => self.0.pop_front(),
            _ => None,
        };
        match free.map(Bytes::try_into_mut) {
            Some(Ok(mut free)) if free.capacity() >= len => {
                free.resize(len, 0);
                free
            }
            _ if len as u64 <= PIECE_BYTES / 8 => BytesMut::zeroed(len),
            _ => {
                let mut fresh = BytesMut::zeroed(PIECE_BYTES as usize);
                fresh.truncate(len);
                fresh
            }
        }
    }

    /// Gives the filled buffer to be sent, and remembers it.
    fn keep(&mut self, buffer: BytesMut) -> Bytes {
        let filled = buffer.freeze();
        if filled.len() as u64 > PIECE_BYTES / 8 {
            self.0.push_back(filled.clone());
        }
        filled
    }
}

/// The item that is being sent.
struct Open {
    item: u32,
    digest: [u8; 32],
    chunks: Arc<[ChunkRef]>,
    /// Offset of each chunk in the file.
    starts: Vec<u64>,
    ranges: VecDeque<(u64, u64)>,
    sent: u64,
}

impl Download {
    fn new(app: App, caller: Caller, request: v1::DownloadRequest) -> Result<Self> {
        if request.items.len() > ITEMS_MAX {
            return Err(Error::new(Reason::FieldInvalid, "more than 1,000 items"));
        }
        let block = match request.block_size_bytes as usize {
            0 => MAX_BLOCK,
            size if (MIN_BLOCK..=MAX_BLOCK).contains(&size) => size,
            _ => return Err(Error::new(Reason::FieldInvalid, "block_size_bytes is not 4 KiB to 1 MiB")),
        };
        Ok(Self {
            app,
            caller,
            items: request.items.into_iter().enumerate(),
            verify: !request.client_verifies,
            block,
            open: None,
            buffers: Buffers::default(),
        })
    }

    /// Adds the next few MiB to the encoder; false when everything was added. Blocks on the disk.
    fn step(&mut self, encoder: &mut DownloadEncoder) -> bool {
        let mut gathered = 0;
        for _ in 0..STEP_ITEMS {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => {
                    let Some((index, item)) = self.items.next() else { return false };
                    // At most 1,000 items: the index fits.
                    let index = index as u32;
                    match self.begin(index, item, encoder) {
                        Ok(open) => open,
                        Err(error) => {
                            encoder.failed(index, &error);
                            continue;
                        }
                    }
                }
            };
            loop {
                match self.send_chunk(&mut open, encoder) {
                    Ok(0) => {
                        encoder.trailer(open.item, &open.digest, open.sent);
                        break;
                    }
                    Ok(sent) => {
                        gathered += sent;
                        if gathered >= STEP_BYTES {
                            self.open = Some(open);
                            return true;
                        }
                    }
                    Err(error) => {
                        encoder.failed(open.item, &error);
                        break;
                    }
                }
            }
        }
        true
    }

    fn begin(&self, index: u32, item: v1::DownloadItem, encoder: &mut DownloadEncoder) -> Result<Open> {
        let path = item.path.ok_or_else(|| Error::new(Reason::FieldInvalid, "an item has no path"))?;
        let path = EntryPath::new(&path.root, &path.path)?;
        let file = versions::open(&self.app, &self.caller, &path, item.version)?;
        let size: u64 = file.chunks.iter().map(|c| u64::from(c.len)).sum();
        let ranges = check_ranges(&item.ranges, size)?;
        let manifest: &[ChunkRef] = if item.with_manifest { &file.chunks } else { &[] };
        encoder.header(index, &encode_entry(&file.entry), manifest);
        let mut starts = Vec::with_capacity(file.chunks.len());
        let mut at = 0;
        for chunk in file.chunks.iter() {
            starts.push(at);
            at += u64::from(chunk.len);
        }
        Ok(Open { item: index, digest: file.digest, chunks: file.chunks, starts, ranges, sent: 0 })
    }

    /// Sends what the next range wants of the chunk it begins in; gives the number of bytes, 0 at the end.
    fn send_chunk(&mut self, open: &mut Open, encoder: &mut DownloadEncoder) -> Result<usize> {
        let Some((offset, length)) = open.ranges.pop_front() else { return Ok(0) };
        let index = open.starts.partition_point(|start| *start <= offset) - 1;
        let chunk = open.chunks[index];
        // Below 4 MiB both: a chunk's length is a u32.
        let from = (offset - open.starts[index]) as u32;
        let piece = if self.verify { u64::from(chunk.len) } else { PIECE_BYTES };
        let to = u64::from(chunk.len).min(u64::from(from) + length.min(piece)) as u32;
        let data = if self.verify {
            self.app.chunks.read(&chunk.id, from..to, true)?
        } else {
            let mut buffer = self.buffers.take((to - from) as usize);
            self.app.chunks.read_into(&chunk.id, from, &mut buffer)?;
            self.buffers.keep(buffer)
        };
        let taken = data.len() as u64;
        let mut at = 0;
        while at < data.len() {
            let end = data.len().min(at + self.block);
            encoder.data(open.item, offset + at as u64, &Rope::from(data.slice(at..end)));
            at = end;
        }
        if length > taken {
            open.ranges.push_front((offset + taken, length - taken));
        }
        open.sent += taken;
        Ok(data.len())
    }
}

/// Ranges as (offset, length), empty ones left out; the whole file if none is asked for.
fn check_ranges(asked: &[v1::ByteRange], size: u64) -> Result<VecDeque<(u64, u64)>> {
    if asked.is_empty() {
        return Ok((size > 0).then_some((0, size)).into_iter().collect());
    }
    if asked.len() > RANGES_MAX {
        return Err(Error::new(Reason::FieldInvalid, "more than 10,000 ranges of one item"));
    }
    let mut out = VecDeque::with_capacity(asked.len());
    let mut last = 0;
    for range in asked {
        let outside = || Error::new(Reason::RangeInvalid, "a range lies outside of the file").with("size_bytes", size);
        let length = match range.length_bytes {
            0 => size.checked_sub(range.offset_bytes).ok_or_else(outside)?,
            length => length,
        };
        let end = range.offset_bytes.checked_add(length).filter(|end| *end <= size).ok_or_else(outside)?;
        if range.offset_bytes < last {
            return Err(Error::new(Reason::FieldInvalid, "the ranges are not ascending, or overlap"));
        }
        last = end;
        if length > 0 {
            out.push_back((range.offset_bytes, length));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset_bytes: u64, length_bytes: u64) -> v1::ByteRange {
        v1::ByteRange { offset_bytes, length_bytes }
    }

    #[test]
    fn ranges_are_checked_against_the_file() {
        assert_eq!(check_ranges(&[], 0).unwrap(), []);
        assert_eq!(check_ranges(&[], 10).unwrap(), [(0, 10)]);
        assert_eq!(check_ranges(&[range(2, 3), range(5, 0)], 10).unwrap(), [(2, 3), (5, 5)]);
        assert_eq!(check_ranges(&[range(10, 0)], 10).unwrap(), []);
        for bad in [[range(11, 0)], [range(5, 6)], [range(u64::MAX, 2)], [range(1, u64::MAX)]] {
            assert!(check_ranges(&bad, 10).is_err_and(|e| e.is(Reason::RangeInvalid)), "{bad:?}");
        }
        for bad in [[range(4, 2), range(5, 1)], [range(4, 0), range(0, 1)]] {
            assert!(check_ranges(&bad, 10).is_err_and(|e| e.is(Reason::FieldInvalid)), "{bad:?}");
        }
    }
}
