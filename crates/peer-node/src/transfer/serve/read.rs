//! Reading chunks from their places.

use crate::model::Scope;
use crate::source::{FileStamp, Place, Sources};
use bytes::Bytes;
use common::error::Result;
use common::model::ChunkId;
use parking_lot::Mutex;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Buffers that wait to be used again.
const SPARE_MAX: usize = 32;
/// Buffers below this are not worth coming back for.
const SMALL: usize = 64 * 1024;

/// Buffers for chunks: using them again saves having the system clear fresh memory for every chunk.
#[derive(Clone, Default)]
pub struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// A buffer with the content of one chunk at its beginning; it goes back when the content is no longer used.
struct Lent {
    buffer: Vec<u8>,
    len: usize,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut spare = self.home.0.lock();
        if spare.len() < SPARE_MAX && self.buffer.len() >= SMALL {
            spare.push(std::mem::take(&mut self.buffer));
        }
    }
}

impl Buffers {
    fn take(&self, len: usize) -> Lent {
        let found = {
            let mut spare = self.0.lock();
            let fits = if len < SMALL { None } else { spare.iter().rposition(|b| b.len() >= len) };
            fits.map(|at| spare.swap_remove(at))
        };
        let size = if len < SMALL { len } else { len.next_power_of_two() };
        Lent { buffer: found.unwrap_or_else(|| vec![0; size]), len, home: self.clone() }
    }
}

/// Reads chunks; keeps the last file open, for chunks that lie side by side.
pub struct Reader {
    sources: Sources,
    buffers: Buffers,
    last: Option<(PathBuf, File)>,
}

impl Reader {
    /// Reads what these sources have.
    pub fn new(sources: Sources, buffers: Buffers) -> Self {
        Self { sources, buffers, last: None }
    }

    /// The content of a chunk of a scope; `None` if it is not here. It is what its digest says, or the file that it is in
    /// has not changed since it was hashed.
    ///
    /// # Errors
    /// Those of the sources.
    pub fn read(&mut self, scope: &Scope, chunk: &ChunkId) -> Result<Option<Bytes>> {
        // A part file takes its name when it is whole: then the chunk is at the new place.
        for _ in 0..2 {
            let places = self.sources.locate(scope, chunk)?;
            if places.is_empty() {
                return Ok(None);
            }
            for (source, place) in places {
                match self.read_at(chunk, &place) {
                    Some(content) => return Ok(Some(content)),
                    None => source.moved(scope, chunk, &place),
                }
            }
        }
        Ok(None)
    }

    /// What is at a place, if it is the chunk.
    pub fn read_at(&mut self, chunk: &ChunkId, place: &Place) -> Option<Bytes> {
        match place {
            Place::Store { len } => self.sources.store()?.read(chunk, 0..*len, true).ok(),
            Place::File { path, offset, len, stamp } => {
                let kept = self.last.as_ref().is_some_and(|(last, _)| last == path);
                let found = self.read_file(chunk, path, *offset, *len as usize, stamp.as_ref());
                if found.is_some() || !kept {
                    return found;
                }
                // Another file may have taken the name of the one that is open.
                self.last = None;
                self.read_file(chunk, path, *offset, *len as usize, stamp.as_ref())
            }
        }
    }

    fn read_file(
        &mut self,
        chunk: &ChunkId,
        path: &Path,
        at: u64,
        len: usize,
        stamp: Option<&FileStamp>,
    ) -> Option<Bytes> {
        let is = |file: &File| stamp.is_some_and(|s| file.metadata().is_ok_and(|m| FileStamp::of(&m) == *s));
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            self.last = Some((path.to_owned(), open(path)?));
        }
        let (_, file) = self.last.as_ref()?;
        let before = is(file);
        let mut lent = self.buffers.take(len);
        file.read_exact_at(&mut lent.buffer[..len], at).ok()?;
        let sure = before && is(file);
        (sure || ChunkId::of(lent.as_ref()) == *chunk).then(|| Bytes::from_owner(lent))
    }
}

fn open(path: &Path) -> Option<File> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}
