//! Cutting content.

use std::io::{self, Cursor, Read};

use atrium_common::chunk::{CHUNK_MAX, CHUNK_MIN, ChunkedPiece, Chunker, ParallelChunker, cut_points};
use atrium_common::model::ChunkId;
use bytes::Bytes;
use proptest::prelude::*;

/// Bytes without a pattern, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Gives at most so many bytes at a time, in changing portions.
struct Slow<R>(R, usize);

impl<R: Read> Read for Slow<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.1 = self.1 % 70_001 + 977;
        let len = buf.len().min(self.1);
        self.0.read(&mut buf[..len])
    }
}

fn pieces(data: &[u8]) -> Vec<ChunkedPiece> {
    Chunker::new(data).collect::<io::Result<_>>().unwrap()
}

fn check(data: &[u8], pieces: &[ChunkedPiece]) {
    let mut at = 0;
    for (n, piece) in pieces.iter().enumerate() {
        assert_eq!(piece.offset, at as u64);
        assert_eq!(piece.data, data[at..at + piece.data.len()]);
        assert_eq!(piece.chunk.id, ChunkId::of(&piece.data));
        assert_eq!(piece.chunk.len as usize, piece.data.len());
        assert!(piece.data.len() <= CHUNK_MAX && !piece.data.is_empty());
        assert!(piece.data.len() >= CHUNK_MIN || n + 1 == pieces.len());
        at += piece.data.len();
    }
    assert_eq!(at, data.len());
}

#[test]
fn small_files_are_one_chunk_and_empty_ones_none() {
    assert_eq!(pieces(&[]), []);
    for len in [1, 4096, CHUNK_MIN - 1, CHUNK_MIN] {
        assert_eq!(pieces(&noise(1, len)).len(), 1, "{len}");
    }
}

#[test]
fn cuts_are_those_of_the_published_algorithm() {
    let data = noise(7, 40 << 20);
    let reference: Vec<(u64, u32)> = fastcdc::v2020::FastCDC::new(&data, 256 << 10, 1 << 20, 4 << 20)
        .map(|c| (c.offset as u64, c.length as u32))
        .collect();
    assert!(reference.len() > 20);
    let slow = cut_points(Slow(Cursor::new(&data), 0)).collect::<io::Result<Vec<_>>>().unwrap();
    assert_eq!(slow, reference);
    let pieces = pieces(&data);
    check(&data, &pieces);
    assert_eq!(pieces.iter().map(|p| (p.offset, p.chunk.len)).collect::<Vec<_>>(), reference);
}

#[test]
fn content_without_cuts_comes_in_the_largest_chunks() {
    let data = vec![0; 3 * CHUNK_MAX + 5];
    let lens: Vec<usize> = pieces(&data).iter().map(|p| p.data.len()).collect();
    assert_eq!(lens, [CHUNK_MAX, CHUNK_MAX, CHUNK_MAX, 5]);
}

#[test]
fn an_insertion_changes_only_the_chunks_around_it() {
    let before = noise(3, 48 << 20);
    let mut after = before.clone();
    after.splice(20_000_000..20_000_000, noise(4, 1234));
    let (old, new) = (pieces(&before), pieces(&after));
    let fresh: Vec<_> = new.iter().filter(|p| old.iter().all(|o| o.chunk != p.chunk)).collect();
    assert!((1..=4).contains(&fresh.len()), "{} of {} chunks are new", fresh.len(), new.len());
    assert!(fresh.iter().any(|p| (p.offset..p.offset + p.data.len() as u64).contains(&20_000_000)));
}

#[test]
fn two_threads_give_what_one_gives() {
    for len in [0, 5, 1 << 20, 30 << 20] {
        let data = noise(len as u64, len);
        let parallel: Vec<_> =
            ParallelChunker::new(Cursor::new(data.clone())).unwrap().collect::<io::Result<_>>().unwrap();
        assert_eq!(parallel, pieces(&data), "{len}");
    }
}

#[tokio::test]
async fn the_parallel_form_serves_async_code_and_may_be_dropped_early() {
    let data = Bytes::from(noise(9, 24 << 20));
    let mut whole = ParallelChunker::new(Cursor::new(data.clone())).unwrap();
    let mut got = Vec::new();
    while let Some(piece) = whole.recv().await {
        got.extend_from_slice(&piece.unwrap().data);
    }
    assert_eq!(got, data);
    assert!(whole.recv().await.is_none());
    let mut dropped = ParallelChunker::new(io::repeat(1)).unwrap();
    assert_eq!(dropped.recv().await.unwrap().unwrap().data.len(), CHUNK_MAX);
}

/// Fails after its content; panics if it is asked to.
struct Bad(Cursor<Vec<u8>>, bool);

impl Read for Bad {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf)? {
            0 if self.1 => std::panic::resume_unwind(Box::new("a reader that panics")),
            0 => Err(io::Error::other("bad sector")),
            n => Ok(n),
        }
    }
}

#[test]
fn a_reader_that_fails_never_looks_like_the_end() {
    let data = noise(2, 3 << 20);
    let last = |mut all: Vec<io::Result<ChunkedPiece>>| all.pop().unwrap();
    assert!(last(Chunker::new(Bad(Cursor::new(data.clone()), false)).collect()).is_err());
    for panics in [false, true] {
        let parallel = ParallelChunker::new(Bad(Cursor::new(data.clone()), panics)).unwrap();
        assert!(last(parallel.collect()).is_err(), "panics: {panics}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn chunks_put_together_are_the_content(seed: u64, len in 0usize..6_000_000, period in 1usize..200_000, slow: bool) {
        // Half of the cases repeat themselves, as real content does.
        let mut data = noise(seed, len);
        if seed % 2 == 0 {
            for at in period..len {
                data[at] = data[at - period];
            }
        }
        let read = if slow {
            Chunker::new(Slow(Cursor::new(&data), seed as usize % 999)).collect::<io::Result<Vec<_>>>().unwrap()
        } else {
            pieces(&data)
        };
        check(&data, &read);
        prop_assert_eq!(&read, &pieces(&data));
        let points = cut_points(&data[..]).collect::<io::Result<Vec<_>>>().unwrap();
        prop_assert_eq!(points, read.iter().map(|p| (p.offset, p.chunk.len)).collect::<Vec<_>>());
    }
}
