//! Which parts of a local file are what the server has already, found without cutting: the manifest of the file at the
//! target says where its chunks begin, and a chunk that hashes to the same digest there is the same.
//!
//! Cutting would give the same chunks: a cut depends on nothing but the content from the cut before it on. Only the last
//! chunk ended where the file did, so it counts only if the file still ends there. Hashing is done by several threads,
//! each with a small buffer, so it is as fast as memory and cores allow and holds next to nothing.

use super::link::Manifest;
use super::local::{LocalFile, blocking};
use crate::error::Result;
use crate::model::{ChunkId, ChunkRef};
use futures_util::future::try_join_all;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Read and hashed at a time: stays in the processor's cache.
const BUFFER: usize = 128 * 1024;
/// Chunks compared in one go at first, and at most: a file that has changed all over must not be read twice.
const FIRST: usize = 4;
const MOST: usize = 128;
/// Threads that compare.
const THREADS: usize = 4;
/// After chunks were compared in vain, so many are cut before the next comparison; then twice as many each time.
const REST_MOST: usize = 4096;

/// The comparison of one file.
#[derive(Debug)]
pub(super) struct Same {
    file: Arc<LocalFile>,
    chunks: Vec<ChunkRef>,
    /// Offset of each.
    starts: Vec<u64>,
    /// What is known of each.
    found: Vec<Option<bool>>,
    window: usize,
    /// Chunks to be cut before anything is compared again.
    rest: usize,
    next_rest: usize,
}

impl Same {
    pub(super) fn new(file: Arc<LocalFile>, manifest: Manifest) -> Self {
        let mut starts = Vec::with_capacity(manifest.chunks.len());
        let mut at = 0;
        for chunk in &manifest.chunks {
            starts.push(at);
            at += u64::from(chunk.len);
        }
        let mut found = vec![None; starts.len()];
        // The end of the file made the last cut.
        if at != file.stamp.size
            && let Some(last) = found.last_mut()
        {
            *last = Some(false);
        }
        Self { file, chunks: manifest.chunks, starts, found, window: FIRST, rest: 0, next_rest: 1 }
    }

    /// Chunks from this place of the file on that are the server's, perhaps none; ask again behind them.
    ///
    /// # Errors
    /// None of the file's: what cannot be read is not the same.
    pub(super) async fn from(&mut self, offset: u64) -> Result<Vec<ChunkRef>> {
        let Ok(first) = self.starts.binary_search(&offset) else { return Ok(Vec::new()) };
        let end = self.chunks.len().min(first + self.window);
        self.compare(first..end).await?;
        let same = self.found[first..end].iter().take_while(|f| **f == Some(true)).count();
        if same == end - first {
            self.window = MOST.min(self.window * 2);
        } else {
            self.window = FIRST;
        }
        if same > 0 {
            self.next_rest = 1;
        } else {
            self.rest = self.next_rest;
            self.next_rest = REST_MOST.min(self.next_rest * 2);
        }
        Ok(self.chunks[first..first + same].to_vec())
    }

    /// To be told of each chunk that was cut. True if it is time to compare again, from its end on.
    pub(super) fn resumes_at(&mut self, offset: u64) -> bool {
        self.rest = self.rest.saturating_sub(1);
        self.rest == 0 && self.starts.binary_search(&offset).is_ok_and(|n| self.found[n] != Some(false))
    }

    async fn compare(&mut self, range: std::ops::Range<usize>) -> Result<()> {
        let unknown: Vec<usize> = range.filter(|n| self.found[*n].is_none()).collect();
        let jobs: Arc<Vec<(u64, ChunkRef)>> =
            Arc::new(unknown.iter().map(|n| (self.starts[*n], self.chunks[*n])).collect());
        let next = Arc::new(AtomicUsize::new(0));
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS).min(jobs.len());
        let work = (0..threads).map(|_| {
            let (file, jobs, next) = (self.file.clone(), jobs.clone(), next.clone());
            blocking(move || {
                let mut buffer = vec![0; BUFFER];
                let mut found = Vec::new();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some((offset, chunk)) = jobs.get(n) else { return Ok(found) };
                    found.push((n, is_same(&file, *offset, *chunk, &mut buffer)));
                }
            })
        });
        for (n, same) in try_join_all(work).await?.into_iter().flatten() {
            self.found[unknown[n]] = Some(same);
        }
        Ok(())
    }
}

fn is_same(file: &LocalFile, offset: u64, chunk: ChunkRef, buffer: &mut [u8]) -> bool {
    let mut hasher = blake3::Hasher::new();
    let (mut at, mut left) = (offset, chunk.len as usize);
    while left > 0 {
        let part = left.min(buffer.len());
        if file.file.read_exact_at(&mut buffer[..part], at).is_err() {
            return false;
        }
        hasher.update(&buffer[..part]);
        at += part as u64;
        left -= part;
    }
    ChunkId(*hasher.finalize().as_bytes()) == chunk.id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::Chunker;
    use std::path::Path;

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
        out
    }

    fn cut(data: &[u8]) -> Vec<ChunkRef> {
        Chunker::new(data).map(|p| p.unwrap().chunk).collect()
    }

    fn same(old: &[u8], new: &[u8]) -> Same {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(new).unwrap();
        let file = Arc::new(LocalFile::from_file(file, Path::new("x")).unwrap());
        Same::new(file, Manifest { version: 1, size: old.len() as u64, chunks: cut(old) })
    }

    /// Goes through a file as an upload does; gives the manifest and the number of chunks that were cut.
    async fn go(old: &[u8], new: &[u8]) -> (Vec<ChunkRef>, usize) {
        let mut same = same(old, new);
        let (mut out, mut offset, mut cuts) = (Vec::new(), 0u64, 0);
        loop {
            loop {
                let run = same.from(offset).await.unwrap();
                if run.is_empty() {
                    break;
                }
                offset += run.iter().map(|c| u64::from(c.len)).sum::<u64>();
                out.extend(run);
            }
            let mut resumed = false;
            for piece in Chunker::new(&new[offset as usize..]) {
                let chunk = piece.unwrap().chunk;
                offset += u64::from(chunk.len);
                out.push(chunk);
                cuts += 1;
                if same.resumes_at(offset) {
                    resumed = true;
                    break;
                }
            }
            if !resumed {
                return (out, cuts);
            }
        }
    }

    #[tokio::test]
    async fn the_manifest_is_what_cutting_gives() {
        let old = noise(1, 30 << 20);
        let mut middle = old.clone();
        middle[15 << 20..16 << 20].copy_from_slice(&noise(2, 1 << 20));
        let inserted = [&old[..10 << 20], b"inserted", &old[10 << 20..]].concat();
        let longer = [&old[..], &noise(3, 3 << 20)].concat();
        let shorter = old[..20 << 20].to_vec();
        let spread: Vec<u8> = old.iter().enumerate().map(|(n, b)| if n % (1 << 20) == 0 { !b } else { *b }).collect();
        let chunks = cut(&old).len();
        for (name, new, most) in [
            ("equal", &old, 0),
            ("1 MiB in the middle", &middle, 8),
            ("inserted", &inserted, chunks),
            ("longer", &longer, 8),
            ("shorter", &shorter, 4),
            ("changed all over", &spread, chunks + 4),
            ("another file", &noise(4, 30 << 20), 2 * chunks),
            ("nothing", &Vec::new(), 0),
        ] {
            let (manifest, cuts) = go(&old, new).await;
            assert_eq!(manifest, cut(new), "{name}");
            assert!(cuts <= most, "{name}: {cuts} of {} chunks were cut", manifest.len());
        }
    }

    #[tokio::test]
    async fn a_file_that_is_another_one_is_not_compared_in_full() {
        let (old, new) = (noise(1, 40 << 20), noise(2, 40 << 20));
        let mut same = same(&old, &new);
        assert!(same.from(0).await.unwrap().is_empty());
        assert_eq!(same.found.iter().flatten().count(), FIRST);
    }
}
