//! The block device protocol, with our client and with bytes that no client should send.

use crate::discs::noise;
use common::error::Reason;
use device::nbd::client::ClientConfig;
use device::nbd::server::End;
use device::nbd::wire::{self, Request};
use device::nbd::{BlockSource, Client, Export, ExportEntry, Extent, FileSource, Server, ServerConfig, Tls};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;

struct Rig {
    image: Vec<u8>,
    _dir: tempfile::TempDir,
    server: Server,
}

fn rig(writable: bool, config: ServerConfig) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let image = noise(3 << 20, 1);
    let path = dir.path().join("image");
    std::fs::write(&path, &image).unwrap();
    let source = Arc::new(FileSource::open(&path, writable).unwrap());
    let entry = ExportEntry { name: "dvd".into(), description: "Holidays".into() };
    let server = Server::new(Arc::new(vec![Export { entry, source, read_only: !writable }]), config);
    Rig { image, _dir: dir, server }
}

fn connect(server: &Server) -> (DuplexStream, JoinHandle<End>) {
    let (near, far) = tokio::io::duplex(256 << 10);
    let server = server.clone();
    (near, tokio::spawn(async move { server.serve(far).await }))
}

#[tokio::test]
async fn reads_in_parallel_come_back_right_with_both_kinds_of_replies() {
    for structured in [true, false] {
        let rig = rig(false, ServerConfig::default());
        let (stream, serving) = connect(&rig.server);
        let config = ClientConfig { structured, ..ClientConfig::default() };
        let connected = Client::connect(stream, "dvd", config).await.unwrap();
        let client = &connected;
        assert_eq!((client.size_bytes(), client.has_extents()), (3 << 20, structured));
        assert!(client.flags() & wire::TX_READ_ONLY != 0 && client.flags() & wire::TX_CAN_MULTI_CONN != 0);
        let reads = (0..200_u64).map(|n| (n * 15_013, 1 + (n * 7919 % 60_000) as u32));
        let done = reads.map(|(at, len)| async move { (at, client.read(at, len).await.unwrap()) });
        for (at, bytes) in futures_util::future::join_all(done).await {
            assert!(bytes == rig.image[at as usize..at as usize + bytes.len()], "at {at}");
        }
        assert_eq!(client.extents(0, 3 << 20).await.unwrap().iter().map(|e| e.len).sum::<u64>(), 3 << 20);
        client.flush().await.unwrap();
        let refused = client.write(0, bytes::Bytes::from_static(b"x"), false).await.unwrap_err();
        assert!(refused.is(Reason::AccessDenied), "{refused:?}");
        connected.disconnect().await;
        assert_eq!(serving.await.unwrap(), End::Disconnected);
    }
}

#[tokio::test]
async fn what_is_written_is_read_and_holes_are_told() {
    let rig = rig(true, ServerConfig::default());
    let (stream, _serving) = connect(&rig.server);
    let client = Client::connect(stream, "", ClientConfig::default()).await.unwrap();
    assert!(client.writable());
    let data = bytes::Bytes::from(noise(100_000, 2));
    client.write(5000, data.clone(), true).await.unwrap();
    client.write_zeroes(1 << 20, 1 << 20, false, false).await.unwrap();
    client.trim(2 << 20, 4096, true).await.unwrap();
    client.flush().await.unwrap();
    assert!(client.read(5000, 100_000).await.unwrap() == data);
    assert!(client.read(1 << 20, 1 << 20).await.unwrap().iter().all(|b| *b == 0));
    assert!(client.read(0, 5000).await.unwrap() == rig.image[..5000]);
    let extents = client.extents(1 << 20, 1 << 20).await.unwrap();
    assert_eq!(extents[0], Extent::hole(1 << 20), "the file system keeps no holes?");
    let error = client.write((3 << 20) - 1, bytes::Bytes::from_static(b"xy"), false).await.unwrap_err();
    assert_eq!(error.detail("errno"), Some("28"), "{error:?}");
}

#[tokio::test]
async fn unknown_exports_are_unknown() {
    let rig = rig(false, ServerConfig::default());
    let (stream, _serving) = connect(&rig.server);
    let error = Client::connect(stream, "cdrom", ClientConfig::default()).await.err().unwrap();
    assert!(error.is(Reason::ResourceUnknown), "{error:?}");
}

/// A client that says what it likes.
struct Raw(DuplexStream);

impl Raw {
    async fn greeted(server: &Server, flags: u32) -> (Self, JoinHandle<End>) {
        let (mut stream, serving) = connect(server);
        let mut hello = [0; 18];
        stream.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello[..16], b"NBDMAGICIHAVEOPT");
        stream.write_all(&flags.to_be_bytes()).await.unwrap();
        (Self(stream), serving)
    }

    async fn option(&mut self, option: u32, data: &[u8]) -> (u32, Vec<u8>) {
        self.send_option(option, data.len() as u32, data).await;
        self.option_reply(option).await
    }

    async fn send_option(&mut self, option: u32, len: u32, data: &[u8]) {
        let mut out = b"IHAVEOPT".to_vec();
        out.extend_from_slice(&option.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(data);
        let _ = self.0.write_all(&out).await;
    }

    async fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        let mut header = [0; 20];
        self.0.read_exact(&mut header).await.unwrap();
        assert_eq!(wire::be64(&header, 0), wire::OPTION_REPLY_MAGIC);
        assert_eq!(wire::be32(&header, 8), option);
        let mut data = vec![0; wire::be32(&header, 16) as usize];
        self.0.read_exact(&mut data).await.unwrap();
        (wire::be32(&header, 12), data)
    }

    /// Chooses the export; simple replies.
    async fn go(&mut self) {
        self.send_option(wire::OPT_GO, 9, b"\0\0\0\x03dvd\0\0").await;
        while self.option_reply(wire::OPT_GO).await.0 != wire::REP_ACK {}
    }

    async fn request(&mut self, flags: u16, command: u16, offset: u64, len: u32) -> u32 {
        let request = Request { flags, command, cookie: 99, offset, len };
        self.0.write_all(&request.encode()).await.unwrap();
        self.reply().await
    }

    async fn reply(&mut self) -> u32 {
        let mut header = [0; 16];
        self.0.read_exact(&mut header).await.unwrap();
        assert_eq!((wire::be32(&header, 0), wire::be64(&header, 8)), (wire::SIMPLE_REPLY_MAGIC, 99));
        wire::be32(&header, 4)
    }
}

#[tokio::test]
async fn bad_negotiations_end_or_are_refused_in_words() {
    let rig = rig(false, ServerConfig::default());
    for flags in [0, 4, 7, u32::MAX] {
        let (_raw, serving) = Raw::greeted(&rig.server, flags).await;
        assert_eq!(serving.await.unwrap(), End::Violation("client flags"));
    }
    let (mut raw, serving) = Raw::greeted(&rig.server, 3).await;
    assert_eq!(raw.option(77, b"anything").await.0, wire::REP_ERR_UNSUP);
    assert_eq!(raw.option(11, b"").await.0, wire::REP_ERR_UNSUP, "extended headers");
    assert_eq!(raw.option(wire::OPT_GO, b"\0\0\0\x50dvd\0\0").await.0, wire::REP_ERR_INVALID);
    assert_eq!(raw.option(wire::OPT_GO, b"\0\0\0\x03cdr\0\0").await.0, wire::REP_ERR_UNKNOWN);
    assert_eq!(raw.option(wire::OPT_LIST, b"x").await.0, wire::REP_ERR_INVALID);
    assert_eq!(raw.option(wire::OPT_STARTTLS, b"").await.0, wire::REP_ERR_POLICY);
    let meta = b"\0\0\0\x03dvd\0\0\0\x01\0\0\0\x0fbase:allocation";
    assert_eq!(
        raw.option(wire::OPT_SET_META_CONTEXT, meta).await.0,
        wire::REP_ERR_INVALID,
        "no structured replies yet"
    );
    assert_eq!(raw.option(wire::OPT_INFO, &vec![0; 100_000]).await.0, wire::REP_ERR_TOO_BIG);
    let (kind, data) = raw.option(wire::OPT_LIST, b"").await;
    assert_eq!((kind, &data[..]), (wire::REP_SERVER, &b"\0\0\0\x03dvdHolidays"[..]));
    assert_eq!(raw.option_reply(wire::OPT_LIST).await.0, wire::REP_ACK);
    raw.send_option(wire::OPT_GO, u32::MAX, b"").await;
    assert_eq!(serving.await.unwrap(), End::Violation("option length"));

    let (mut raw, serving) = Raw::greeted(&rig.server, 3).await;
    raw.0.write_all(&[b'x'; 16]).await.unwrap();
    assert_eq!(serving.await.unwrap(), End::Violation("option magic"));

    let (mut raw, serving) = Raw::greeted(&rig.server, 3).await;
    raw.send_option(wire::OPT_EXPORT_NAME, 3, b"cdr").await;
    assert!(matches!(serving.await.unwrap(), End::Violation(_)));

    let (mut raw, serving) = Raw::greeted(&rig.server, 3).await;
    for _ in 0..64 {
        if serving.is_finished() {
            break;
        }
        raw.option(77, b"").await;
    }
    assert_eq!(serving.await.unwrap(), End::Violation("too many options"));

    let (mut raw, serving) = Raw::greeted(&rig.server, 3).await;
    assert_eq!(raw.option(wire::OPT_ABORT, b"").await.0, wire::REP_ACK);
    assert_eq!(serving.await.unwrap(), End::Disconnected);
}

#[tokio::test]
async fn bad_requests_are_refused_by_number_and_the_connection_goes_on() {
    let rig = rig(false, ServerConfig::default());
    let (mut raw, serving) = Raw::greeted(&rig.server, 3).await;
    raw.go().await;
    for (flags, command, offset, len, errno) in [
        (0, wire::CMD_READ, 0, 2 << 30, wire::EINVAL),
        (0, wire::CMD_READ, (3 << 20) - 1, 2, wire::EINVAL),
        (0, wire::CMD_READ, u64::MAX, 1, wire::EINVAL),
        (1 << 9, wire::CMD_READ, 0, 1, wire::EINVAL),
        (0, 99, 0, 0, wire::EINVAL),
        (0, wire::CMD_BLOCK_STATUS, 0, 512, wire::EINVAL),
        (0, wire::CMD_TRIM, 0, 512, wire::EPERM),
        (0, wire::CMD_WRITE_ZEROES, 0, 512, wire::EPERM),
        (0, wire::CMD_CACHE, 0, 512, 0),
        (0, wire::CMD_FLUSH, 0, 0, 0),
    ] {
        assert_eq!(raw.request(flags, command, offset, len).await, errno, "{command} {offset} {len}");
    }
    let request = Request { flags: 0, command: wire::CMD_WRITE, cookie: 99, offset: 0, len: 512 };
    raw.0.write_all(&request.encode()).await.unwrap();
    raw.0.write_all(&[7; 512]).await.unwrap();
    assert_eq!(raw.reply().await, wire::EPERM);
    assert_eq!(raw.request(0, wire::CMD_READ, 10, 4).await, 0);
    let mut data = [0; 4];
    raw.0.read_exact(&mut data).await.unwrap();
    assert_eq!(data, rig.image[10..14]);
    let request = Request { flags: 0, command: wire::CMD_WRITE, cookie: 99, offset: 0, len: u32::MAX };
    raw.0.write_all(&request.encode()).await.unwrap();
    assert_eq!(serving.await.unwrap(), End::Violation("write too long"));

    let (mut raw, serving) = Raw::greeted(&rig.server, 3).await;
    raw.go().await;
    raw.0.write_all(&[0; 28]).await.unwrap();
    assert_eq!(serving.await.unwrap(), End::Violation("request magic"));
}

#[tokio::test]
async fn the_old_option_still_works() {
    for (flags, len) in [(3, 10), (1, 134)] {
        let rig = rig(false, ServerConfig::default());
        let (mut raw, _serving) = Raw::greeted(&rig.server, flags).await;
        raw.send_option(wire::OPT_EXPORT_NAME, 3, b"dvd").await;
        let mut reply = vec![0; len];
        raw.0.read_exact(&mut reply).await.unwrap();
        assert_eq!(wire::be64(&reply, 0), 3 << 20);
        assert_eq!(raw.request(0, wire::CMD_FLUSH, 0, 0).await, 0);
    }
}

#[tokio::test]
async fn silence_is_not_waited_for() {
    let (handshake, stall) = (Duration::from_millis(300), Duration::from_millis(300));
    let rig = rig(false, ServerConfig { handshake, stall, ..ServerConfig::default() });
    let (_stream, serving) = connect(&rig.server);
    assert_eq!(serving.await.unwrap(), End::TooSlow);
    let (mut raw, serving) = Raw::greeted(&rig.server, 3).await;
    raw.0.write_all(b"IHAVE").await.unwrap();
    assert_eq!(serving.await.unwrap(), End::TooSlow);
    let (mut raw, serving) = Raw::greeted(&rig.server, 3).await;
    raw.go().await;
    raw.0.write_all(&[0x25]).await.unwrap();
    assert_eq!(serving.await.unwrap(), End::TooSlow, "half a request");
}

#[tokio::test]
async fn a_client_that_takes_no_replies_is_cut_off_with_bounded_memory() {
    let config = ServerConfig { stall: Duration::from_millis(200), ..ServerConfig::default() };
    let rig = rig(false, config);
    let (mut raw, serving) = Raw::greeted(&rig.server, 3).await;
    raw.go().await;
    let request = Request { flags: 0, command: wire::CMD_READ, cookie: 99, offset: 0, len: 2 << 20 };
    // More than the bound of bytes; the server stops reading, so this ends only with the connection.
    for _ in 0..10_000 {
        if raw.0.write_all(&request.encode()).await.is_err() {
            break;
        }
    }
    assert_eq!(serving.await.unwrap(), End::TooSlow);
}

fn certificates() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let certificate = made.cert.der().clone();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let server = server.unwrap().with_no_client_auth().with_single_cert(vec![certificate.clone()], key).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    (Arc::new(server), Arc::new(client.unwrap().with_root_certificates(roots).with_no_client_auth()))
}

#[tokio::test]
async fn where_tls_is_required_nothing_is_told_before() {
    let (server, client) = certificates();
    let rig = rig(false, ServerConfig { tls: Tls::Required(server), ..ServerConfig::default() });
    let (mut raw, _serving) = Raw::greeted(&rig.server, 3).await;
    for option in [wire::OPT_LIST, wire::OPT_STRUCTURED_REPLY, 77] {
        assert_eq!(raw.option(option, b"").await.0, wire::REP_ERR_TLS_REQD);
    }
    let (stream, _serving) = connect(&rig.server);
    assert!(Client::connect(stream, "dvd", ClientConfig::default()).await.err().unwrap().is(Reason::TlsFailed));
    let (stream, serving) = connect(&rig.server);
    let name = "localhost".try_into().unwrap();
    let config = ClientConfig { tls: Some((client, name)), ..ClientConfig::default() };
    let client = Client::connect(stream, "dvd", config).await.unwrap();
    assert!(client.read(1 << 20, 2 << 20).await.unwrap() == rig.image[1 << 20..]);
    client.disconnect().await;
    assert_eq!(serving.await.unwrap(), End::Disconnected);
}
