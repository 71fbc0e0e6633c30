//! Download messages: never a panic, never another reading than the generated decoder's.
#![no_main]

use common::bulk::{DownloadEncoder, Rope};
use common::error::{Error, Reason};
use common::model::{ChunkId, ChunkRef};

fn inputs() -> Vec<Vec<u8>> {
    let mut encoder = DownloadEncoder::new(0);
    let entry = proto::v1::Entry { size_bytes: 300, ..Default::default() };
    encoder.header(0, &entry, &[ChunkRef { id: ChunkId([1; 32]), len: 300 }]);
    encoder.data(0, 0, &Rope::from(vec![7; 200]));
    encoder.data(0, 200, &Rope::from(vec![8; 100]));
    encoder.trailer(0, &[2; 32], 300);
    encoder.failed(1, &Error::new(Reason::PathInvalid, "no"));
    encoder.flush();
    std::iter::from_fn(|| encoder.pop()).map(|message| seeds::body(&message)).collect()
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| common::bulk::fuzz_download(data));
