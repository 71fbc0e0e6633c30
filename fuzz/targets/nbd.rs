//! The block device protocol from both sides: whatever a client or a server sends, the other one ends by itself.
#![no_main]

use bytes::Bytes;
use device::nbd::client::ClientConfig;
use device::nbd::source::{BlockSource, check_range};
use device::nbd::{Client, Export, Server, ServerConfig, options, wire};
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

/// A conversation of each kind, as one side sends it; the first byte is an option for the decoder of options.
fn inputs() -> Vec<Vec<u8>> {
    let option = |kind: u32, data: &[u8]| {
        [&wire::OPTION_MAGIC.to_be_bytes()[..], &kind.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
    };
    let info = b"\0\0\0\x01d\0\0";
    let meta = [&b"\0\0\0\x01d\0\0\0\x01\0\0\0\x0f"[..], wire::BASE_ALLOCATION.as_bytes()].concat();
    let request =
        |command: u16, offset: u64, len: u32| wire::Request { flags: 0, command, cookie: 7, offset, len }.encode();
    let requests = [
        request(wire::CMD_READ, 0, 4096),
        request(wire::CMD_BLOCK_STATUS, 0, 65_536),
        request(wire::CMD_WRITE, 0, 0),
        request(wire::CMD_DISC, 0, 0),
    ]
    .concat();
    let client = [
        vec![0, 0, 0, 3],
        option(wire::OPT_STRUCTURED_REPLY, b""),
        option(wire::OPT_SET_META_CONTEXT, &meta),
        option(wire::OPT_LIST, b""),
        option(wire::OPT_INFO, info),
        option(wire::OPT_GO, info),
        requests.clone(),
    ]
    .concat();
    let export = [&wire::INFO_EXPORT.to_be_bytes()[..], &(1_u64 << 20).to_be_bytes(), &[0, 3]].concat();
    let mut meta_reply = wire::BASE_ALLOCATION_ID.to_be_bytes().to_vec();
    meta_reply.extend_from_slice(wire::BASE_ALLOCATION.as_bytes());
    let mut server = wire::NBD_MAGIC.to_be_bytes().to_vec();
    server.extend_from_slice(&wire::OPTION_MAGIC.to_be_bytes());
    server.extend_from_slice(&[0, 3]);
    for (kind, reply, data) in [
        (wire::OPT_STRUCTURED_REPLY, wire::REP_ACK, &b""[..]),
        (wire::OPT_SET_META_CONTEXT, wire::REP_META_CONTEXT, &meta_reply[..]),
        (wire::OPT_SET_META_CONTEXT, wire::REP_ACK, &b""[..]),
        (wire::OPT_GO, wire::REP_INFO, &export[..]),
        (wire::OPT_GO, wire::REP_ACK, &b""[..]),
    ] {
        server.extend_from_slice(&wire::option_reply(kind, reply, data));
    }
    for cookie in 0..3 {
        let offset = 0_u64.to_be_bytes();
        let head = wire::chunk(wire::CHUNK_DONE, wire::CHUNK_OFFSET_DATA, cookie, 8 + 4096, 0);
        server.extend_from_slice(&[&head[..], &offset, &[5; 4096]].concat());
    }
    let options = [(7, info.to_vec()), (10, meta)].map(|(kind, data)| [vec![kind], data].concat());
    [vec![requests, client, server], options.to_vec()].concat()
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| {
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
