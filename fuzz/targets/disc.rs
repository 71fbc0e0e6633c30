//! File systems of discs. The input is a list of patches of an empty disc: sector, length, bytes.
#![no_main]

use device::nbd::source::{BlockSource, check_range};
use device::optical::Disc;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::sync::Arc;

struct Memory(Vec<u8>);

impl BlockSource for Memory {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, common::error::Result<Bytes>> {
        check_range(offset, len.into(), self.size_bytes()).unwrap();
        let bytes = Bytes::copy_from_slice(&self.0[offset as usize..][..len as usize]);
        Box::pin(async move { Ok(bytes) })
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut image = vec![0; 600 * 2048];
    let mut rest = data;
    while let [sector_high, sector_low, len_high, len_low, tail @ ..] = rest {
        let at = usize::from(u16::from_be_bytes([*sector_high, *sector_low]) % 600) * 2048;
        let len = usize::from(u16::from_be_bytes([*len_high, *len_low]) % 2049).min(tail.len());
        image[at..at + len].copy_from_slice(&tail[..len]);
        rest = &tail[len..];
    }
    let work = async {
        let Ok(mut disc) = Disc::open(Arc::new(Memory(image))).await else { return };
        for tree in disc.trees() {
            disc.use_tree(tree).unwrap();
            for (path, _) in disc.walk("", 1000).await.unwrap_or_default().into_iter().take(100) {
                if let Ok(file) = disc.open_file(&path).await {
                    let len = file.size_bytes().min(4096) as u32;
                    let _ = file.read(file.size_bytes() - u64::from(len), len).await;
                }
            }
        }
    };
    work.now_or_never().expect("nothing waits for a disc in memory");
});
