//! Reading one file into chunks.

use common::chunk::{CHUNK_MIN, Chunker, ParallelChunker};
use common::model::{ChunkId, ChunkRef};
use std::fs::File;
use std::io::{self, Read};

use crate::catalogue::entry::CHUNKS_MAX;

/// Files from this size are cut and hashed by two more threads.
const PARALLEL_MIN: u64 = 16 << 20;

/// Reads with a call after the first part, so that tests can change the file at that moment.
struct Hooked<F> {
    file: File,
    hook: Option<F>,
}

impl<F: FnOnce()> Read for Hooked<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read(buffer)?;
        if let Some(hook) = self.hook.take() {
            hook();
        }
        Ok(got)
    }
}

/// The chunks of a file that has `size` bytes; one more or one less, and the error is `UnexpectedEof`. `stop` is asked
/// between chunks.
///
/// # Errors
/// Those of reading; `FileTooLarge` if there are more chunks than an entry may have; `Interrupted` if stopped.
pub(super) fn chunks(
    file: File,
    size: u64,
    buffer: &mut Vec<u8>,
    hook: Option<impl FnOnce() + Send + 'static>,
    stop: &dyn Fn() -> bool,
) -> io::Result<Vec<ChunkRef>> {
    // One byte more, to see a file that grows.
    let mut reader = Hooked { file, hook }.take(size.saturating_add(1));
    if size <= CHUNK_MIN as u64 {
        buffer.clear();
        reader.read_to_end(buffer)?;
        if buffer.len() as u64 != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let whole = ChunkRef { id: ChunkId::of(buffer), len: buffer.len() as u32 };
        return Ok(if buffer.is_empty() { Vec::new() } else { vec![whole] });
    }
    let mut found = Vec::new();
    let mut take = |piece: io::Result<common::chunk::ChunkedPiece>| -> io::Result<()> {
        if stop() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        found.push(piece?.chunk);
        if found.len() > CHUNKS_MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
    };
    if size < PARALLEL_MIN {
        Chunker::new(reader).try_for_each(&mut take)?;
    } else {
        ParallelChunker::new(reader)?.try_for_each(&mut take)?;
    }
    if found.iter().map(|c| u64::from(c.len)).sum::<u64>() != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(found)
}
