//! One call of Fetch: content off the line, put together to pieces.

use super::Event;
use crate::transfer::peers::Channel;
use crate::transfer::scheduler::{CallKey, Piece, SourceKey};
use common::bulk::{FetchPart, Rope, fetch};
use common::error::{Error, Reason, Result};
use common::model::ChunkRef;
use proto::peer::v1::{FetchRequest, Scope};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};

/// Unit in which the memory of pieces that wait to be written is counted.
pub const MEMORY_UNIT: usize = 64 * 1024;

/// What to ask whom for.
pub struct Call {
    /// The call's number.
    pub key: CallKey,
    /// The source's number.
    pub source: SourceKey,
    /// Where the right comes from.
    pub scope: Scope,
    /// The pieces in order.
    pub pieces: Vec<(Piece, ChunkRef)>,
    /// Memory for pieces that wait to be written.
    pub memory: Arc<Semaphore>,
    /// Where to tell.
    pub events: mpsc::Sender<Event>,
}

impl Call {
    /// Runs it to its end, and tells of that.
    pub async fn run(self, channel: Channel) {
        let failed = self.receive(channel).await.err();
        let ended = Event::CallEnded { call: self.key, source: self.source, failed };
        // Nobody listens when the transfer has ended.
        let _ = self.events.send(ended).await;
    }

    async fn receive(&self, channel: Channel) -> Result<()> {
        let digests: Vec<u8> = self.pieces.iter().flat_map(|(_, chunk)| *chunk.id.as_bytes()).collect();
        let request = FetchRequest { scope: Some(self.scope.clone()), digests: digests.into() };
        let mut stream = fetch(channel, &request).await?;
        let mut gathering = Gathering { pieces: &self.pieces, next: 0, content: Rope::new() };
        while let Some(parts) = stream.next().await? {
            let mut event = Arrival { call: self.key, source: self.source, ..Arrival::default() };
            for part in parts {
                event.bytes += part.data.len() as u64;
                gathering.take(part, &mut event)?;
                if !event.wrong.is_empty() {
                    break;
                }
            }
            let wrong = !event.wrong.is_empty();
            let whole: usize = event.whole.iter().map(|(_, content)| content.len()).sum();
            let units = u32::try_from(whole.div_ceil(MEMORY_UNIT)).unwrap_or(u32::MAX);
            if units > 0 {
                event.memory = self.memory.clone().acquire_many_owned(units).await.ok();
            }
            if self.events.send(Event::Arrived(event)).await.is_err() {
                return Ok(());
            }
            if wrong {
                return Err(strange("a chunk has another length than it should have"));
            }
        }
        if gathering.next < self.pieces.len() {
            return Err(Error::new(Reason::ServerUnreachable, "the stream ended before everything had come"));
        }
        Ok(())
    }
}

/// What one message brought.
#[derive(Default)]
pub struct Arrival {
    /// Which call.
    pub call: CallKey,
    /// From whom.
    pub source: SourceKey,
    /// Content in it.
    pub bytes: u64,
    /// Pieces that are whole now, not verified.
    pub whole: Vec<(Piece, Rope)>,
    /// Pieces that the source does not have.
    pub absent: Vec<Piece>,
    /// Pieces of another length than they should have.
    pub wrong: Vec<Piece>,
    /// Their memory.
    pub memory: Option<tokio::sync::OwnedSemaphorePermit>,
}

fn strange(what: &'static str) -> Error {
    Error::new(Reason::MessageMalformed, "a node answered strangely").why_is(what)
}

struct Gathering<'a> {
    pieces: &'a [(Piece, ChunkRef)],
    /// The one that is coming.
    next: usize,
    content: Rope,
}

impl Gathering<'_> {
    fn take(&mut self, part: FetchPart, event: &mut Arrival) -> Result<()> {
        let Some((piece, chunk)) = self.pieces.get(self.next).copied() else {
            return Err(strange("it sent more than was asked for"));
        };
        if part.index as usize != self.next || part.offset as usize != self.content.len() {
            return Err(strange("it sent chunks in another order than they were asked for"));
        }
        if part.absent {
            event.absent.push(piece);
            self.next += 1;
            self.content = Rope::new();
            return Ok(());
        }
        let told = if part.offset == 0 { part.length } else { chunk.len };
        let end = self.content.len() + part.data.len();
        if told != chunk.len || end > chunk.len as usize {
            event.wrong.push(piece);
            return Ok(());
        }
        part.data.into_pieces().into_iter().for_each(|p| self.content.push(p));
        if end == chunk.len as usize {
            event.whole.push((piece, std::mem::take(&mut self.content)));
            self.next += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::model::ChunkId;

    fn part(index: u32, offset: u32, length: u32, data: &[u8]) -> FetchPart {
        FetchPart { index, offset, length, absent: data.is_empty(), data: Rope::from(data.to_vec()) }
    }

    #[test]
    fn parts_become_pieces_and_nothing_else_is_taken() {
        let chunk = |n: u8, len: u32| ChunkRef { id: ChunkId([n; 32]), len };
        let pieces = [(7, chunk(1, 3)), (9, chunk(2, 2)), (4, chunk(3, 1))];
        let new = || Gathering { pieces: &pieces, next: 0, content: Rope::new() };
        let (mut gathering, mut event) = (new(), Arrival::default());
        for p in [part(0, 0, 3, b"ab"), part(0, 2, 0, b"c"), part(1, 0, 0, b""), part(2, 0, 1, b"x")] {
            gathering.take(p, &mut event).unwrap();
        }
        assert_eq!(event.whole, [(7, Rope::from(b"abc".to_vec())), (4, Rope::from(b"x".to_vec()))]);
        assert_eq!(event.absent, [9]);
        assert!(gathering.take(part(3, 0, 1, b"y"), &mut event).is_err());
        for bad in [part(1, 0, 2, b"ab"), part(0, 1, 3, b"ab")] {
            assert!(new().take(bad.clone(), &mut Arrival::default()).is_err(), "{bad:?}");
        }
        for wrong in [part(0, 0, 4, b"ab"), part(0, 0, 3, b"abcd"), part(0, 0, 0, b"abc")] {
            let mut event = Arrival::default();
            new().take(wrong.clone(), &mut event).unwrap();
            assert_eq!((event.wrong, event.whole.len()), (vec![7], 0), "{wrong:?}");
        }
    }
}
