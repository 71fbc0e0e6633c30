//! Parcels whose signatures are good, and journals of transfers: what can be read can be written, and reads the same again.
#![no_main]

use prost::Message;
use proto::peer::v1 as peer;

fn inputs() -> Vec<Vec<u8>> {
    let entry = |path: &str, kind: peer::EntryKind, len: u32| peer::IndexEntry {
        path: path.into(),
        kind: kind.into(),
        size_bytes: len.into(),
        mode: 0o644,
        chunks: (0..len.min(1)).map(|_| proto::v1::Chunk { digest: vec![5; 32].into(), length_bytes: len }).collect(),
        chunk_count: len.min(1),
        ..Default::default()
    };
    let open = peer::Parcel {
        parcel_id: vec![1; 16].into(),
        sender_key: vec![7; 32].into(),
        office_id: vec![2; 32].into(),
        receivers: vec![vec![3; 32].into(), vec![4; 32].into()],
        note: "for tomorrow".into(),
        title: "plans".into(),
        create_time: Some(common::wire::timestamp_from_ms(1_700_000_000_123)),
        lifetime_seconds: 60,
        entries: vec![entry("plans", peer::EntryKind::Directory, 0), entry("plans/a.pdf", peer::EntryKind::File, 3)],
        total_bytes: 3,
        ..Default::default()
    };
    let chunk = [&[6; 32][..], &9_u32.to_le_bytes()].concat();
    let sealing = peer::Sealing { keys: vec![vec![8; 80].into(), vec![9; 80].into()], chunks: chunk.into() };
    let sealed = peer::Parcel { entries: Vec::new(), sealing: Some(sealing), total_bytes: 9, ..open.clone() };
    vec![open.encode_to_vec(), sealed.encode_to_vec(), (0..64).collect()]
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| {
    peer_node::mailbox::fuzz_parcel(data);
    peer_node::transfer::fuzz_journal(data);
});
