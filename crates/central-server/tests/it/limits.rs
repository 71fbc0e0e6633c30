//! The largest messages that the contract allows.

use crate::server::{RawCodec, TestServer};
use bytes::Bytes;
use central_server::app::caller::Caller;
use central_server::app::{sessions, uploads};
use common::error::Error;
use common::model::{ChunkId, ChunkRef, Role, UploadId};
use common::wire::chunks_to;
use prost::Message;
use proto::v1;
use proto::v1::file_service_client::FileServiceClient;
use tonic::Request;

/// Most chunks of a commit.
const CHUNKS: usize = 262_144;

fn commit(upload: UploadId, chunk: ChunkRef, count: usize) -> v1::CommitFilesRequest {
    let file = v1::FileCommit {
        path: Some(v1::Path { root: "home".into(), path: "very/large".into() }),
        chunks: chunks_to(&vec![chunk; count]),
        make_parents: true,
        expected: Some(v1::file_commit::Expected::Any(true)),
        ..Default::default()
    };
    v1::CommitFilesRequest { upload_id: upload.to_string(), files: vec![file] }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_as_many_chunks_as_there_may_be_is_published_and_read_again() {
    let server = TestServer::start().await;
    let token = server.token("anna", Role::Member).await;
    let app = server.running.app();
    let anna = Caller { user: Some(sessions::authenticate(app, &token).unwrap()), ..Caller::default() };
    let channel = server.with_token(&token);
    let mut files = FileServiceClient::new(channel.control()).max_decoding_message_size(16 << 20);
    // One chunk of the greatest length, so that the message is as long as it can be; the file has a tebibyte.
    let content = Bytes::from(vec![7; common::chunk::CHUNK_MAX]);
    let chunk = ChunkRef { id: ChunkId::of(&content), len: content.len() as u32 };
    let upload = UploadId::generate();
    let owned = uploads::begin(app, &anna, upload).unwrap();
    app.chunks.append(chunk.id, &[content], owned.lease()).unwrap();
    owned.arrived(&[chunk]).unwrap();

    let request = commit(upload, chunk, CHUNKS);
    let length = request.encoded_len();
    assert!((10 << 20..12 << 20).contains(&length), "{length}");
    let answer = files.commit_files(request).await.unwrap().into_inner();
    let Some(v1::file_commit_result::Result::Entry(entry)) = &answer.results[0].result else { panic!("{answer:?}") };
    assert_eq!(entry.size_bytes, CHUNKS as u64 * u64::from(chunk.len));

    let (mut page_token, mut seen) = (String::new(), 0);
    loop {
        let path = Some(v1::Path { root: "home".into(), path: "very/large".into() });
        let request = v1::GetManifestRequest { path, page_size: 65_536, page_token, ..Default::default() };
        let page = files.get_manifest(request).await.unwrap().into_inner();
        assert!(page.chunks.iter().all(|c| c.digest[..] == chunk.id.as_bytes()[..]));
        seen += page.chunks.len();
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, CHUNKS);

    // One chunk more is refused by its number.
    let answer = files.commit_files(commit(upload, chunk, CHUNKS + 1)).await.unwrap().into_inner();
    let Some(v1::file_commit_result::Result::Error(error)) = &answer.results[0].result else { panic!("published") };
    assert_eq!(error.reason, "FIELD_INVALID");
    // Beyond that nothing is read at all; and other services keep the limit of the settings.
    for (path, bytes) in [("FileService/CommitFiles", 17 << 20), ("DirectoryService/ListDirectories", 5 << 20)] {
        let mut client = tonic::client::Grpc::new(channel.control());
        client.ready().await.unwrap();
        let path = format!("/atrium.v1.{path}").parse().unwrap();
        let request = Request::new(Bytes::from(vec![0; bytes]));
        let error = Error::from(client.unary(request, path, RawCodec).await.unwrap_err());
        assert_eq!(error.reason(), "MESSAGE_TOO_LARGE", "{error:?}");
    }
    server.stop().await;
}
