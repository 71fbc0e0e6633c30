//! Requests that wait for replies, and the replies.

use super::{gone, malformed};
use crate::nbd::options::MAX_OPTION_SKIPPED;
use crate::nbd::source::Extent;
use crate::nbd::wire::{self, Request};
use bytes::{Bytes, BytesMut};
use common::error::{Error, Reason, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::oneshot;

/// What a request brought.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) data: Bytes,
    pub(super) extents: Vec<Extent>,
}

/// One request that waits.
struct Waiting {
    request: Request,
    data: BytesMut,
    covered: u64,
    extents: Vec<Extent>,
    error: Option<Error>,
    reply: oneshot::Sender<Result<Answer>>,
}

/// All that wait; bounded by the client's places, and by those whose deadline passed while the server is silent.
pub(super) struct Pending {
    structured: bool,
    /// Nothing once the connection is over.
    waiting: Mutex<Option<HashMap<u64, Waiting>>>,
}

impl Pending {
    pub(super) fn new(structured: bool) -> Self {
        Self { structured, waiting: Mutex::new(Some(HashMap::new())) }
    }

    pub(super) fn add(&self, request: Request, reply: oneshot::Sender<Result<Answer>>) -> Result<()> {
        let mut waiting = self.waiting.lock();
        let all = waiting.as_mut().ok_or_else(gone)?;
        if all.len() >= 4 * super::IN_FLIGHT {
            return Err(Error::new(Reason::Overloaded, "the block device server leaves too much unanswered"));
        }
        let data = BytesMut::new();
        all.insert(request.cookie, Waiting { request, data, covered: 0, extents: Vec::new(), error: None, reply });
        Ok(())
    }

    /// The connection is over: whoever waits is told.
    pub(super) fn close(&self) {
        self.waiting.lock().take();
    }

    fn take(&self, cookie: u64) -> Result<Waiting> {
        let mut waiting = self.waiting.lock();
        waiting.as_mut().and_then(|all| all.remove(&cookie)).ok_or_else(|| malformed("a reply to no request"))
    }

    fn put_back(&self, one: Waiting) {
        if let Some(all) = self.waiting.lock().as_mut() {
            all.insert(one.request.cookie, one);
        }
    }

    /// Reads one reply or one chunk of one.
    pub(super) async fn receive<R: AsyncRead + Unpin>(&self, input: &mut R) -> Result<()> {
        let magic = input.read_u32().await.map_err(super::broken)?;
        match magic {
            wire::SIMPLE_REPLY_MAGIC => self.simple(input).await,
            wire::CHUNK_MAGIC if self.structured => self.chunk(input).await,
            _ => Err(malformed("reply magic")),
        }
    }

    async fn simple<R: AsyncRead + Unpin>(&self, input: &mut R) -> Result<()> {
        let error = input.read_u32().await.map_err(super::broken)?;
        let mut one = self.take(input.read_u64().await.map_err(super::broken)?)?;
        if error != 0 {
            one.error = Some(error_of(error, "", None));
        } else if one.request.command == wire::CMD_READ {
            if self.structured {
                return Err(malformed("a simple reply to a read"));
            }
            one.data = BytesMut::zeroed(one.request.len as usize);
            input.read_exact(&mut one.data).await.map_err(super::broken)?;
            one.covered = one.request.len.into();
        }
        one.finish();
        Ok(())
    }

    async fn chunk<R: AsyncRead + Unpin>(&self, input: &mut R) -> Result<()> {
        let mut header = [0; 16];
        input.read_exact(&mut header).await.map_err(super::broken)?;
        let (flags, kind, len) = (wire::be16(&header, 0), wire::be16(&header, 2), wire::be32(&header, 12));
        let mut one = self.take(wire::be64(&header, 4))?;
        one.chunk(kind, len, input).await?;
        if flags & wire::CHUNK_DONE != 0 {
            one.finish();
        } else {
            self.put_back(one);
        }
        Ok(())
    }
}

impl Waiting {
    async fn chunk<R: AsyncRead + Unpin>(&mut self, kind: u16, len: u32, input: &mut R) -> Result<()> {
        if kind == wire::CHUNK_OFFSET_DATA {
            return self.data_chunk(len, input).await;
        }
        if len > MAX_OPTION_SKIPPED {
            return Err(malformed("a chunk that is too long"));
        }
        let mut raw = vec![0; len as usize];
        input.read_exact(&mut raw).await.map_err(super::broken)?;
        match kind {
            wire::CHUNK_NONE if len == 0 => Ok(()),
            wire::CHUNK_OFFSET_HOLE if len == 12 => {
                let (start, end) = self.place(wire::be64(&raw, 0), wire::be32(&raw, 8))?;
                self.room()[start..end].fill(0);
                self.covered += (end - start) as u64;
                Ok(())
            }
            wire::CHUNK_BLOCK_STATUS if len >= 12 && (len - 4).is_multiple_of(8) => {
                self.extents.extend(raw[4..].chunks_exact(8).map(|pair| {
                    let state = wire::be32(pair, 4);
                    let (hole, zero) = (state & wire::STATE_HOLE != 0, state & wire::STATE_ZERO != 0);
                    Extent { len: wire::be32(pair, 0).into(), hole, zero }
                }));
                Ok(())
            }
            kind if kind & (1 << 15) != 0 && len >= 6 => {
                let text_end = 6 + usize::from(wire::be16(&raw, 4));
                let text = raw.get(6..text_end).ok_or_else(|| malformed("an error text that is too long"))?;
                let at =
                    (kind == wire::CHUNK_ERROR_OFFSET && raw.len() == text_end + 8).then(|| wire::be64(&raw, text_end));
                self.error = Some(error_of(wire::be32(&raw, 0), &String::from_utf8_lossy(text), at));
                Ok(())
            }
            _ => Err(malformed("an unknown chunk")),
        }
    }

    async fn data_chunk<R: AsyncRead + Unpin>(&mut self, len: u32, input: &mut R) -> Result<()> {
        let payload = len.checked_sub(8).ok_or_else(|| malformed("a chunk without an offset"))?;
        let offset = input.read_u64().await.map_err(super::broken)?;
        let (start, end) = self.place(offset, payload)?;
        input.read_exact(&mut self.room()[start..end]).await.map_err(super::broken)?;
        self.covered += u64::from(payload);
        Ok(())
    }

    /// Where a piece of the answer goes, if it belongs to what was asked for.
    fn place(&self, offset: u64, len: u32) -> Result<(usize, usize)> {
        let start = offset.checked_sub(self.request.offset).filter(|_| self.request.command == wire::CMD_READ);
        match start.and_then(|s| Some((s, s.checked_add(len.into())?))) {
            Some((start, end)) if end <= u64::from(self.request.len) => Ok((start as usize, end as usize)),
            _ => Err(malformed("bytes that nobody asked for")),
        }
    }

    fn room(&mut self) -> &mut [u8] {
        if self.data.is_empty() {
            self.data = BytesMut::zeroed(self.request.len as usize);
        }
        &mut self.data
    }

    fn finish(self) {
        let whole = self.request.command != wire::CMD_READ || self.covered == u64::from(self.request.len);
        let result = match self.error {
            Some(error) => Err(error),
            None if !whole => Err(malformed("a reply that does not hold all that was asked for")),
            None => Ok(Answer { data: self.data.freeze(), extents: self.extents }),
        };
        let _ = self.reply.send(result);
    }
}

/// An error of the server. Its text begins with our word for the reason if the server is one of ours.
fn error_of(number: u32, text: &str, at: Option<u64>) -> Error {
    let text: String = text.chars().filter(|c| !c.is_control()).take(400).collect();
    let named = text
        .split_once(": ")
        .and_then(|(word, rest)| Reason::ALL.iter().find(|r| r.word() == word).map(|r| Error::new(*r, rest)));
    let by_number = || match number {
        wire::EPERM => Error::new(Reason::AccessDenied, "the block device server does not allow it"),
        wire::ENOSPC => Error::new(Reason::DiskFull, "the block device is full"),
        wire::EINVAL => Error::new(Reason::FieldInvalid, "the block device server calls the request invalid"),
        wire::ESHUTDOWN => Error::new(Reason::ShuttingDown, "the block device server is shutting down"),
        number => Error::new(Reason::DeviceFailed, format!("the block device server reports error {number}: {text}")),
    };
    let error = named.unwrap_or_else(by_number).with("errno", number);
    match at {
        Some(at) => error.with("offset", at).with("sector", at / 2048),
        None => error,
    }
}
