//! Chunking on two threads of its own: one reads and cuts, one hashes.
//!
//! Both queues are bounded, so that at most 2 pieces (8 MiB) wait and a consumer that stops taking stops the reading.
//! Dropping the consumer's end ends both threads at their next piece.

use std::io::{self, Read};
use std::sync::mpsc::sync_channel;
use std::thread;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::cut::{ChunkedPiece, Cutter};

/// Pieces that wait between two stages.
const QUEUE: usize = 1;

enum Step<T> {
    Piece(T),
    /// All has been read. A channel that closes without it tells of a thread that died: never taken for the end.
    End,
}

/// Gives the chunks of a reader in order, cut and hashed by other threads. For big files; small ones are quicker with
/// [`super::Chunker`]. Taken from by [`ParallelChunker::recv`] in async code, or as an iterator on a thread.
pub struct ParallelChunker {
    pieces: mpsc::Receiver<io::Result<Step<ChunkedPiece>>>,
    ended: bool,
}

impl ParallelChunker {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub fn new(reader: impl Read + Send + 'static) -> io::Result<Self> {
        let (cut_to, cut_from) = sync_channel::<io::Result<Step<(u64, Bytes)>>>(QUEUE);
        let (hashed_to, pieces) = mpsc::channel(QUEUE);
        thread::Builder::new().name("chunk-cut".into()).spawn(move || {
            let end = std::iter::once(Ok(Step::End));
            for piece in Cutter::new(reader).map(|p| p.map(Step::Piece)).chain(end) {
                let failed = piece.is_err();
                if cut_to.send(piece).is_err() || failed {
                    return;
                }
            }
        })?;
        thread::Builder::new().name("chunk-hash".into()).spawn(move || {
            for piece in cut_from {
                let hashed = piece.map(|step| match step {
                    Step::Piece((offset, data)) => Step::Piece(ChunkedPiece::of(offset, data)),
                    Step::End => Step::End,
                });
                if hashed_to.blocking_send(hashed).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { pieces, ended: false })
    }

    /// The next chunk; `None` at the end. After an error it has ended.
    pub async fn recv(&mut self) -> Option<io::Result<ChunkedPiece>> {
        if self.ended {
            return None;
        }
        let step = self.pieces.recv().await;
        self.step(step)
    }

    fn step(&mut self, step: Option<io::Result<Step<ChunkedPiece>>>) -> Option<io::Result<ChunkedPiece>> {
        let step = step.unwrap_or_else(|| Err(io::Error::other("a chunking thread ended before the content did")));
        match step {
            Ok(Step::Piece(piece)) => Some(Ok(piece)),
            Ok(Step::End) => {
                self.ended = true;
                None
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        }
    }
}

impl Iterator for ParallelChunker {
    type Item = io::Result<ChunkedPiece>;

    /// Blocks; not for async code.
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let step = self.pieces.blocking_recv();
        self.step(step)
    }
}
