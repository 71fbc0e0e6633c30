//! Chunks of one file down, in order, each verified before it is used.

use super::link::{Link, strange};
use crate::bulk::{DownloadStream, Part, Rope, download};
use crate::error::{Error, Reason, Result};
use crate::model::{ChunkRef, EntryPath};
use crate::wire::path_to;
use futures_util::stream::{FuturesOrdered, StreamExt};
use proto::v1;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;

/// Chunks that are being verified and used at a time: 8 MiB at most.
const CHECKING: usize = 2;
/// Ranges of one request; the server takes more.
const MAX_RANGES: usize = 1000;

/// A chunk to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) chunk: ChunkRef,
    /// Where it is in the file.
    pub(super) offset: u64,
    /// Where else it belongs.
    pub(super) also: Vec<u64>,
}

/// The version to fetch from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    pub(super) path: &'a EntryPath,
    pub(super) version: u64,
}

/// What is done with a verified chunk, on a thread that may block.
pub(super) type Use = Arc<dyn Fn(&Wanted, &Rope) -> Result<()> + Send + Sync>;

type Checked = (Wanted, Rope, Result<()>);

/// Fetches these chunks, which must be in ascending order. Each is verified, given to `work`, and then, in order, to
/// `deliver`. A chunk that arrives damaged is asked for once more, checked by the server too.
///
/// # Errors
/// `CHUNK_DAMAGED` if it is damaged again; what the server said; the last error when the policy is exhausted.
pub(super) async fn fetch<F, Fut>(
    link: &Link<'_>,
    source: Source<'_>,
    wanted: Vec<Wanted>,
    work: &Use,
    mut deliver: F,
) -> Result<Option<v1::Entry>>
where
    F: FnMut(Wanted, Rope) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let mut fetcher = Fetcher {
        link,
        source,
        pending: wanted.into(),
        checking: FuturesOrdered::new(),
        work,
        verify_there: false,
        entry: None,
        suspect: None,
    };
    let mut backoff = link.retry.delays();
    while !fetcher.is_done() {
        let before = fetcher.pending.len();
        let result = fetcher.round(&mut deliver).await;
        if fetcher.pending.len() < before {
            backoff.reset();
        }
        if let Err(error) = result {
            fetcher.settle(&mut deliver).await?;
            link.pause(error, &mut backoff).await?;
        }
    }
    Ok(fetcher.entry)
}

/// Only the entry: asks for as little content as the contract allows.
pub(super) async fn fetch_entry(link: &Link<'_>, source: Source<'_>, size: u64) -> Result<v1::Entry> {
    let ranges = (size > 0).then_some(v1::ByteRange { offset_bytes: 0, length_bytes: 1 }).into_iter().collect();
    let request = request(source, ranges, true);
    let mut backoff = link.retry.delays();
    loop {
        let found = async {
            let mut stream = download(link.connection.bulk(), &request).await?;
            match stream.next().await?.map(|p| p.part) {
                Some(Part::Header { entry: Some(entry), .. }) => Ok(*entry),
                Some(Part::Failed(error)) => Err(error),
                _ => Err(strange("no header")),
            }
        };
        match found.await {
            Ok(entry) => return Ok(entry),
            Err(error) => link.pause(error, &mut backoff).await?,
        }
    }
}

fn request(source: Source<'_>, ranges: Vec<v1::ByteRange>, client_verifies: bool) -> v1::DownloadRequest {
    let path = Some(path_to(source.path));
    let item = v1::DownloadItem { path, version: source.version, ranges, with_manifest: false };
    v1::DownloadRequest { items: vec![item], client_verifies, block_size_bytes: 0 }
}

struct Fetcher<'a> {
    link: &'a Link<'a>,
    source: Source<'a>,
    /// Not yet arrived.
    pending: VecDeque<Wanted>,
    checking: FuturesOrdered<AbortOnDropHandle<Checked>>,
    work: &'a Use,
    /// The next request is for one chunk that arrived damaged.
    verify_there: bool,
    entry: Option<v1::Entry>,
    /// The chunk that arrived damaged.
    suspect: Option<Wanted>,
}

impl Fetcher<'_> {
    fn is_done(&self) -> bool {
        self.pending.is_empty() && self.checking.is_empty() && self.suspect.is_none()
    }

    /// One request, to its end.
    async fn round<F, Fut>(&mut self, deliver: &mut F) -> Result<()>
    where
        F: FnMut(Wanted, Rope) -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        if let Some(suspect) = self.suspect.take() {
            // What comes after it waits, so that the order is kept.
            self.pending.push_front(suspect);
            self.verify_there = true;
        }
        if self.pending.is_empty() {
            return self.settle(deliver).await;
        }
        let first = if self.verify_there { 1 } else { self.pending.len() };
        let (ranges, count) = ranges(self.pending.iter().take(first));
        let asked = request(self.source, ranges, !self.verify_there);
        let until = self.pending.len() - count;
        let mut stream = download(self.link.connection.bulk(), &asked).await?;
        self.receive(&mut stream, until, deliver).await?;
        self.settle(deliver).await?;
        if self.suspect.is_none() {
            self.verify_there = false;
        }
        Ok(())
    }

    /// Takes chunks off a stream until only so many are pending.
    async fn receive<F, Fut>(&mut self, stream: &mut DownloadStream, until: usize, deliver: &mut F) -> Result<()>
    where
        F: FnMut(Wanted, Rope) -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        let mut have = Rope::new();
        while let Some(part) = stream.next().await? {
            match part.part {
                Part::Header { entry, .. } => {
                    if let Some(entry) = entry {
                        self.entry = Some(*entry);
                    }
                }
                Part::Data { offset, data } => {
                    let mut at = 0;
                    while at < data.len() {
                        let Some(wanted) = self.pending.front().filter(|_| self.pending.len() > until) else {
                            return Err(strange("more than was asked for"));
                        };
                        if offset + at as u64 != wanted.offset + have.len() as u64 {
                            return Err(strange("content of another place than was asked for"));
                        }
                        let piece = data.slice(at, wanted.chunk.len as usize - have.len());
                        at += piece.len();
                        piece.into_pieces().into_iter().for_each(|p| have.push(p));
                        if have.len() == wanted.chunk.len as usize {
                            self.check(std::mem::take(&mut have));
                            while self.checking.len() >= CHECKING {
                                self.settle_one(deliver).await?;
                                if self.suspect.is_some() {
                                    return Ok(());
                                }
                            }
                        }
                    }
                }
                Part::Trailer { .. } => {}
                Part::Failed(error) => return Err(error),
            }
        }
        if self.pending.len() > until {
            return Err(Error::new(Reason::ServerUnreachable, "the stream ended before everything had come"));
        }
        Ok(())
    }

    /// Begins to verify the first pending chunk.
    fn check(&mut self, content: Rope) {
        let Some(wanted) = self.pending.pop_front() else { return };
        let work = self.work.clone();
        let task = tokio::task::spawn_blocking(move || {
            let result =
                if content.chunk_id() == wanted.chunk.id { work(&wanted, &content) } else { Err(damaged(&wanted)) };
            (wanted, content, result)
        });
        self.checking.push_back(AbortOnDropHandle::new(task));
    }

    /// Waits for everything that is being verified.
    async fn settle<F, Fut>(&mut self, deliver: &mut F) -> Result<()>
    where
        F: FnMut(Wanted, Rope) -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        while !self.checking.is_empty() {
            self.settle_one(deliver).await?;
        }
        Ok(())
    }

    async fn settle_one<F, Fut>(&mut self, deliver: &mut F) -> Result<()>
    where
        F: FnMut(Wanted, Rope) -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        let Some(checked) = self.checking.next().await else { return Ok(()) };
        let (wanted, content, result) =
            checked.map_err(|e| Error::internal("a thread of a transfer ended").caused_by(e))?;
        if self.suspect.is_some() {
            // Something before it was damaged: it comes again, after that.
            self.put_back(wanted);
            return Ok(());
        }
        match result {
            Ok(()) => {
                let (len, copies) = (u64::from(wanted.chunk.len), wanted.also.len() as u64);
                deliver(wanted, content).await?;
                self.link.tracker.done(len * (1 + copies), len);
                Ok(())
            }
            Err(error) if error.is(Reason::ChunkDamaged) && !self.verify_there => {
                tracing::debug!(offset = wanted.offset, "a chunk arrived damaged; it is asked for again");
                self.suspect = Some(wanted);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn put_back(&mut self, wanted: Wanted) {
        let at = self.pending.partition_point(|p| p.offset < wanted.offset);
        self.pending.insert(at, wanted);
    }
}

fn damaged(wanted: &Wanted) -> Error {
    Error::new(Reason::ChunkDamaged, format!("the content at byte {} does not match its digest", wanted.offset))
        .with("offset", wanted.offset)
        .with("chunk", wanted.chunk.id)
}

/// Ranges that cover the first of these chunks, neighbours joined, and how many chunks those are.
fn ranges<'a>(wanted: impl Iterator<Item = &'a Wanted>) -> (Vec<v1::ByteRange>, usize) {
    let mut out: Vec<v1::ByteRange> = Vec::new();
    let mut count = 0;
    for w in wanted {
        let length_bytes = u64::from(w.chunk.len);
        let full = out.len() == MAX_RANGES;
        match out.last_mut() {
            Some(last) if last.offset_bytes + last.length_bytes == w.offset => last.length_bytes += length_bytes,
            _ if full => break,
            _ => out.push(v1::ByteRange { offset_bytes: w.offset, length_bytes }),
        }
        count += 1;
    }
    (out, count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ChunkId;

    #[test]
    fn neighbours_become_one_range() {
        let wanted = |offset, len| Wanted { chunk: ChunkRef { id: ChunkId([0; 32]), len }, offset, also: Vec::new() };
        let list = [wanted(0, 5), wanted(5, 5), wanted(20, 1)];
        let (out, count) = ranges(list.iter());
        assert_eq!(count, 3);
        assert_eq!(out.iter().map(|r| (r.offset_bytes, r.length_bytes)).collect::<Vec<_>>(), [(0, 10), (20, 1)]);
        let many: Vec<Wanted> = (0..3000).map(|n| wanted(n * 10, 1)).collect();
        let (out, count) = ranges(many.iter());
        assert_eq!((out.len(), count), (MAX_RANGES, MAX_RANGES));
    }
}
