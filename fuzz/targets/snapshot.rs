//! Snapshots of mirrors and their roots: never a panic, never a path that leaves the folder, one way to write each.
#![no_main]

use common::model::{ChunkId, ChunkRef};
use device::disk::mirror::{FileEntry, Manifest};

fn inputs() -> Vec<Vec<u8>> {
    let file = |path: &str, len: u32| FileEntry {
        path: path.into(),
        mode: 0o644,
        mtime_ms: -5,
        size: len.into(),
        chunks: vec![ChunkRef { id: ChunkId([1; 32]), len }],
    };
    [vec![], vec![file("a/b", 1), file("a/c", 70_000), file("a!", 3)]]
        .into_iter()
        .map(|files| Manifest::new(files).and_then(|m| m.encode()).expect("a snapshot"))
        .collect()
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| device::disk::mirror::fuzz_snapshot(data));
