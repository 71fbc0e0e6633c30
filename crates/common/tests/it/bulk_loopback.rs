//! Both methods over real HTTP/2: our server with a generated client, our client with a generated server, ours with ours.

use atrium_common::bulk::{
    self, BulkHandler, BulkServer, BulkSettings, DownloadSink, Part, Rope, UploadCall, UploadStream,
};
use atrium_common::error::{Error, Reason, Result};
use atrium_common::model::{ChunkId, ChunkRef, UploadId};
use atrium_common::status::from_status;
use bytes::Bytes;
use http::request::Parts;
use proto::v1::transfer_service_client::TransferServiceClient;
use proto::v1::transfer_service_server::{TransferService, TransferServiceServer};
use proto::v1::{self, download_part::Part as WirePart};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

/// Content of a file that is named by its size: the same on both sides without sending it ahead.
fn file(size: usize) -> Bytes {
    (0..size).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

fn request(sizes: &[&str]) -> v1::DownloadRequest {
    let item = |path: &&str| v1::DownloadItem {
        path: Some(v1::Path { root: "home".into(), path: (*path).into() }),
        with_manifest: true,
        ..Default::default()
    };
    v1::DownloadRequest { items: sizes.iter().map(item).collect(), ..Default::default() }
}

fn size_of(item: &v1::DownloadItem) -> Result<usize> {
    let path = item.path.as_ref().map_or("", |p| p.path.as_str());
    path.parse().map_err(|_| Error::new(Reason::EntryUnknown, format!("{path} is not there")))
}

struct Ours;

impl BulkHandler for Ours {
    async fn upload(&self, _: Parts, mut stream: UploadStream) -> Result<v1::UploadChunksResponse> {
        let mut answer = v1::UploadChunksResponse::default();
        while let Some((_, chunks)) = stream.next().await? {
            for (id, data) in chunks {
                if data.chunk_id() != id {
                    return Err(
                        Error::new(Reason::ChunkDigestMismatch, "a chunk is not what it says").with("chunk", id)
                    );
                }
                answer.chunk_count += 1;
                answer.received_bytes += data.len() as u64;
            }
        }
        Ok(answer)
    }

    async fn download(&self, _: Parts, request: v1::DownloadRequest, sink: &mut DownloadSink) -> Result<()> {
        for (n, item) in request.items.iter().enumerate() {
            let item_number = n as u32;
            match size_of(item) {
                Err(error) if item.version == 9 => return Err(error),
                Err(error) => sink.failed(item_number, &error).await?,
                Ok(size) => {
                    let data = file(size);
                    let chunk = ChunkRef { id: ChunkId::of(&data), len: size as u32 };
                    let entry = v1::Entry { size_bytes: size as u64, ..Default::default() };
                    sink.header(item_number, &entry, &[chunk]).await?;
                    sink.data(item_number, 0, data).await?;
                    sink.trailer(item_number, &chunk.id.0, size as u64).await?;
                }
            }
        }
        Ok(())
    }
}

struct Generated;

#[tonic::async_trait]
impl TransferService for Generated {
    async fn upload_chunks(
        &self,
        request: Request<Streaming<v1::UploadChunksRequest>>,
    ) -> Result<Response<v1::UploadChunksResponse>, Status> {
        let mut stream = request.into_inner();
        let mut answer = v1::UploadChunksResponse::default();
        while let Some(message) = stream.message().await? {
            for chunk in message.chunks {
                if ChunkId::of(&chunk.data).0[..] != chunk.digest[..] {
                    return Err(Error::new(Reason::ChunkDigestMismatch, "a chunk is not what it says").into());
                }
                answer.chunk_count += 1;
                answer.received_bytes += chunk.data.len() as u64;
            }
        }
        Ok(Response::new(answer))
    }

    type DownloadStream = Pin<Box<dyn Stream<Item = Result<v1::DownloadResponse, Status>> + Send>>;

    async fn download(&self, request: Request<v1::DownloadRequest>) -> Result<Response<Self::DownloadStream>, Status> {
        let mut responses = Vec::new();
        for (n, item) in request.into_inner().items.iter().enumerate() {
            let item_number = n as u32;
            let mut send = |part| {
                let part = v1::DownloadPart { item: item_number, part: Some(part) };
                responses.push(Ok(v1::DownloadResponse { parts: vec![part] }));
            };
            match size_of(item) {
                Err(error) => send(WirePart::Error(atrium_common::status::to_item_error(&error))),
                Ok(size) => {
                    let data = file(size);
                    let digest = Bytes::copy_from_slice(&ChunkId::of(&data).0);
                    send(WirePart::Header(v1::DownloadHeader {
                        entry: Some(v1::Entry { size_bytes: size as u64, ..Default::default() }),
                        chunks: vec![v1::Chunk { digest: digest.clone(), length_bytes: size as u32 }],
                    }));
                    for (n, block) in data.chunks(1 << 20).enumerate() {
                        let offset_bytes = (n as u64) << 20;
                        send(WirePart::Data(v1::DataBlock { offset_bytes, data: Bytes::copy_from_slice(block) }));
                    }
                    send(WirePart::Trailer(v1::DownloadTrailer { manifest_digest: digest, sent_bytes: size as u64 }));
                }
            }
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(responses))))
    }
}

enum Kind {
    Ours(BulkSettings),
    Generated,
}

/// A server on a port of its own that ends with the test.
async fn serve(kind: Kind) -> (Channel, tokio_util::task::AbortOnDropHandle<()>) {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = incoming.local_addr().unwrap();
    let mut builder = Server::builder().max_frame_size(256 * 1024);
    let router = match kind {
        Kind::Ours(settings) => builder.add_service(BulkServer::new(Arc::new(Ours), settings)),
        Kind::Generated => {
            builder.add_service(TransferServiceServer::new(Generated).max_decoding_message_size(8 << 20))
        }
    };
    let task = tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() });
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    (channel, tokio_util::task::AbortOnDropHandle::new(task))
}

fn ours() -> Kind {
    Kind::Ours(BulkSettings::default())
}

const SIZES: [usize; 7] = [1, 8 * 1024, 8 * 1024 + 1, 100_000, 3_000_000, 4 << 20, 17];

async fn upload_with_our_client(channel: Channel) {
    let mut call = UploadCall::start(channel, UploadId::generate());
    for size in SIZES {
        let data = file(size);
        call.send(ChunkId::of(&data), data.into()).await.unwrap();
    }
    let answer = call.finish().await.unwrap();
    assert_eq!((answer.chunk_count, answer.received_bytes), (7, SIZES.iter().sum::<usize>() as u64));
}

async fn download_with_our_client(channel: Channel) {
    let names: Vec<String> = SIZES.iter().map(|s| s.to_string()).chain(["gone".to_owned(), "5".to_owned()]).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut stream = bulk::download(channel, &request(&names)).await.unwrap();
    let mut contents = vec![Rope::new(); names.len()];
    let mut whole = 0;
    while let Some(part) = stream.next().await.unwrap() {
        let item = part.item as usize;
        match part.part {
            Part::Header { entry, chunks } => {
                assert_eq!(entry.unwrap().size_bytes, u64::from(chunks[0].len));
            }
            Part::Data { offset, data } => {
                assert_eq!(offset, contents[item].len() as u64);
                data.into_pieces().into_iter().for_each(|p| contents[item].push(p));
            }
            Part::Trailer { manifest_digest, sent_bytes } => {
                assert_eq!(sent_bytes, contents[item].len() as u64);
                assert_eq!(contents[item].chunk_id().0, manifest_digest);
                whole += 1;
            }
            Part::Failed(error) => assert!(error.is(Reason::EntryUnknown) && item == SIZES.len()),
        }
    }
    assert_eq!(whole, SIZES.len() + 1);
}

#[tokio::test]
async fn our_client_and_our_server() {
    let (channel, _server) = serve(ours()).await;
    upload_with_our_client(channel.clone()).await;
    download_with_our_client(channel).await;
}

#[tokio::test]
async fn our_client_and_a_generated_server() {
    let (channel, _server) = serve(Kind::Generated).await;
    upload_with_our_client(channel.clone()).await;
    download_with_our_client(channel).await;
}

#[tokio::test]
async fn a_generated_client_and_our_server() {
    let (channel, _server) = serve(ours()).await;
    let mut client = TransferServiceClient::new(channel);
    let upload_id = UploadId::generate().to_string();
    let messages = SIZES.map(|size| {
        let data = file(size);
        v1::UploadChunksRequest {
            upload_id: upload_id.clone(),
            chunks: vec![v1::ChunkData { digest: ChunkId::of(&data).0.to_vec().into(), data }],
        }
    });
    let answer = client.upload_chunks(tokio_stream::iter(messages)).await.unwrap().into_inner();
    assert_eq!((answer.chunk_count, answer.received_bytes), (7, SIZES.iter().sum::<usize>() as u64));

    let mut stream = client.download(request(&["3000000", "x", "17"])).await.unwrap().into_inner();
    let mut contents = [Vec::new(), Vec::new(), Vec::new()];
    let mut ends = Vec::new();
    while let Some(message) = stream.next().await {
        for part in message.unwrap().parts {
            match part.part.unwrap() {
                WirePart::Header(header) => assert_eq!(header.chunks.len(), 1),
                WirePart::Data(block) => contents[part.item as usize].extend_from_slice(&block.data),
                WirePart::Trailer(_) => ends.push((part.item, String::new())),
                WirePart::Error(error) => ends.push((part.item, error.reason)),
            }
        }
    }
    assert_eq!(ends, [(0, String::new()), (1, "ENTRY_UNKNOWN".to_owned()), (2, String::new())]);
    assert_eq!((contents[0].clone(), contents[2].clone()), (file(3_000_000).to_vec(), file(17).to_vec()));
}

#[tokio::test]
async fn errors_keep_their_words_through_both_kinds_of_client() {
    let (channel, _server) = serve(ours()).await;
    let wrong = || (ChunkId([0; 32]), Rope::from(vec![1, 2, 3]));
    let mut call = UploadCall::start(channel.clone(), UploadId::generate());
    let mut error = None;
    // The server ends the call at the first message; a later send or the end tells.
    for _ in 0..100_000 {
        let (id, data) = wrong();
        if let Err(e) = call.send(id, data).await {
            error = Some(e);
            break;
        }
    }
    let error = match error {
        Some(error) => error,
        None => call.finish().await.unwrap_err(),
    };
    assert!(error.is(Reason::ChunkDigestMismatch), "{error:?}");
    assert_eq!(error.detail("chunk"), Some("0".repeat(64).as_str()));

    let mut items = request(&["100000", "x"]);
    items.items[1].version = 9;
    let mut stream = bulk::download(channel.clone(), &items).await.unwrap();
    let mut parts = 0;
    let error = loop {
        match stream.next().await {
            Ok(part) => {
                assert!(part.is_some(), "a status ends the stream");
                parts += 1;
            }
            Err(error) => break error,
        }
    };
    assert!(error.is(Reason::EntryUnknown) && parts == 3, "what was sent before arrives");
    assert!(stream.next().await.unwrap().is_none());

    let mut client = TransferServiceClient::new(channel);
    let first = v1::UploadChunksRequest::default();
    let status = client.upload_chunks(tokio_stream::iter([first])).await.unwrap_err();
    assert!(from_status(&status).is(Reason::UploadInvalid));
    let mut stream = client.download(items).await.unwrap().into_inner();
    let status = loop {
        if let Err(status) = stream.message().await {
            break status;
        }
    };
    assert!(from_status(&status).is(Reason::EntryUnknown));
}

#[tokio::test]
async fn a_generated_client_cannot_send_what_is_too_large() {
    let (channel, _server) = serve(ours()).await;
    let mut client = TransferServiceClient::new(channel);
    let huge = v1::UploadChunksRequest {
        upload_id: UploadId::generate().to_string(),
        chunks: vec![v1::ChunkData { digest: vec![0; 32].into(), data: vec![0; 9 << 20].into() }],
    };
    let status = client.upload_chunks(tokio_stream::iter([huge])).await.unwrap_err();
    assert!(from_status(&status).is(Reason::MessageTooLarge), "{status:?}");
}

#[tokio::test]
async fn nobody_home_is_unreachable() {
    let (channel, server) = serve(ours()).await;
    drop(server);
    // The listener closes when its task is gone; a call may still get through on the open connection.
    let error = loop {
        match bulk::download(channel.clone(), &request(&["1"])).await {
            Ok(mut stream) => while let Ok(Some(_)) = stream.next().await {},
            Err(error) => break error,
        }
        tokio::task::yield_now().await;
    };
    assert!(error.is(Reason::ServerUnreachable) && error.is_transient(), "{error:?}");
}

#[tokio::test]
async fn silent_callers_are_sent_away() {
    let (channel, _server) =
        serve(Kind::Ours(BulkSettings { idle: Duration::from_millis(50), ..Default::default() })).await;
    let mut client = TransferServiceClient::new(channel);
    let status = client.upload_chunks(tokio_stream::pending()).await.unwrap_err();
    assert!(from_status(&status).is(Reason::IdleTimeout));
}
