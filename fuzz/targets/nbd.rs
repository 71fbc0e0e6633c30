//! The block device protocol from both sides: whatever a client or a server sends, the other one ends by itself.
#![no_main]

use device::nbd::client::ClientConfig;
use device::nbd::source::{BlockSource, check_range};
use device::nbd::{Client, Export, Server, ServerConfig, options};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::sync::Arc;

struct Zeroes;

impl BlockSource for Zeroes {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }
    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, common::error::Result<Bytes>> {
        check_range(offset, len.into(), self.size_bytes()).unwrap();
        Box::pin(async move { Ok(Bytes::from(vec![0; len as usize])) })
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((option, rest)) = data.split_first() else { return };
    let _ = options::decode(u32::from(option % 12), rest);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = Server::new(Arc::new(vec![Export::read_only("d", "", Arc::new(Zeroes))]), ServerConfig::default());
        server.serve(tokio::io::join(data, tokio::io::sink())).await;
        // A client that has come as far as requests.
        let mut chosen = 3_u32.to_be_bytes().to_vec();
        chosen.extend_from_slice(b"IHAVEOPT\0\0\0\x08\0\0\0\0IHAVEOPT\0\0\0\x07\0\0\0\x07\0\0\0\x01d\0\0");
        chosen.extend_from_slice(data);
        server.serve(tokio::io::join(&chosen[..], tokio::io::sink())).await;
        let stream = tokio::io::join(std::io::Cursor::new(data.to_vec()), tokio::io::sink());
        if let Ok(client) = Client::connect(stream, "d", ClientConfig::default()).await {
            let len = client.size_bytes().min(4096) as u32;
            let _ = client.read(0, len).await;
        }
    });
});
