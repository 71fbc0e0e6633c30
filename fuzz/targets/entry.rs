//! Entries of other nodes' indexes: what is accepted has a path below its share, and is the same once it was sent on.
#![no_main]

use common::model::{ChunkId, ChunkRef, manifest_digest};
use peer_node::catalogue::Entry;
use prost::Message;
use proto::peer::v1 as peer;

fn inputs() -> Vec<Vec<u8>> {
    let chunks = [ChunkRef { id: ChunkId([3; 32]), len: 10 }, ChunkRef { id: ChunkId([4; 32]), len: 7 }];
    let file = peer::IndexEntry {
        path: "a/b.txt".into(),
        kind: peer::EntryKind::File.into(),
        size_bytes: 17,
        modify_time_ns: -5,
        mode: 0o644,
        chunks: chunks
            .iter()
            .map(|c| proto::v1::Chunk { digest: c.id.0.to_vec().into(), length_bytes: c.len })
            .collect(),
        manifest_digest: manifest_digest(&chunks).to_vec().into(),
        chunk_count: 2,
        sequence: 7,
        version: vec![peer::VersionCount { device: 1, count: 2 }, peer::VersionCount { device: 5, count: 1 }],
        modified_by: 5,
        deleted: false,
    };
    let gone = peer::IndexEntry { deleted: true, ..file.clone() };
    let folder = peer::IndexEntry {
        path: "a".into(),
        kind: peer::EntryKind::Directory.into(),
        chunks: Vec::new(),
        manifest_digest: Default::default(),
        ..file.clone()
    };
    vec![file.encode_to_vec(), gone.encode_to_vec(), folder.encode_to_vec()]
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| {
    let Ok(wire) = peer::IndexEntry::decode(data) else { return };
    let _ = Entry::brief_from_wire(wire.clone());
    if let Ok(entry) = Entry::from_wire(wire) {
        assert!(entry.path.split('/').all(|s| !matches!(s, "" | "." | "..")));
        let again = Entry::from_wire(entry.to_wire()).expect("what was taken is taken again");
        assert_eq!(again, entry);
        assert_eq!(entry.version.merged(&entry.version), entry.version);
    }
});
