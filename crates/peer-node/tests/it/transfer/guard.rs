//! Who may have what, and callers that ask for too much.

use super::node::{Node, Office, assert_done, order, random};
use common::bulk::{FetchStream, fetch};
use common::error::{Reason, Result};
use common::model::ChunkId;
use common::status::from_status;
use peer_node::model::{Scope, ShareId};
use peer_node::net::testing::{TestNode, nothing};
use proto::peer::v1::transfer_service_client::TransferServiceClient;
use proto::peer::v1::{FetchRequest, FollowRequest};
use std::time::Duration;

async fn ask(from: &TestNode, to: &Node, scope: &Scope, chunks: &[ChunkId]) -> Result<FetchStream> {
    let link = from.network.link(to.test.device()).await.unwrap();
    let digests: Vec<u8> = chunks.iter().flat_map(|c| c.0).collect();
    fetch(link.bulk(), &FetchRequest { scope: Some(scope.wire()), digests: digests.into() }).await
}

async fn follow(
    from: &TestNode,
    to: &Node,
    scope: &Scope,
) -> Result<tonic::Streaming<proto::peer::v1::FollowResponse>> {
    let link = from.network.link(to.test.device()).await.unwrap();
    let request = FollowRequest { scope: Some(scope.wire()), takes_part: true, manifest_digests: Vec::new() };
    let answer = TransferServiceClient::new(link.control()).follow(request).await;
    answer.map(tonic::Response::into_inner).map_err(|s| from_status(&s))
}

/// The first word of either method.
async fn fetch_error(from: &TestNode, to: &Node, scope: &Scope, chunk: ChunkId) -> String {
    match ask(from, to, scope, &[chunk]).await {
        Ok(mut stream) => stream.next().await.map_or_else(|e| e.reason().to_owned(), |p| format!("{p:?}")),
        Err(error) => error.reason().to_owned(),
    }
}

async fn follow_error(from: &TestNode, to: &Node, scope: &Scope) -> String {
    match follow(from, to, scope).await {
        Ok(mut stream) => {
            stream.message().await.map_or_else(|s| from_status(&s).reason().to_owned(), |m| format!("{m:?}"))
        }
        Err(error) => error.reason().to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_asks_who_may() {
    let office = Office::new();
    let a = Node::start(&office, "a").await;
    let b = TestNode::start(&office.members, nothing).await;
    b.knows(&a.test);
    let data = random(31, 1000);
    let chunk = a.share("x", &data).content.chunks[0].id;

    // A test for each method that there is.
    let set = <prost_types::FileDescriptorSet as prost::Message>::decode(proto::DESCRIPTORS).unwrap();
    let service =
        set.file.iter().flat_map(|f| &f.service).find(|s| s.name() == "TransferService" && s.method.len() == 2);
    let methods: Vec<&str> = service.unwrap().method.iter().map(|m| m.name()).collect();
    assert_eq!(methods, ["Fetch", "Follow"]);

    let other = Scope::Share(ShareId::generate());
    assert_eq!(fetch_error(&b, &a, &other, chunk).await, "ENTRY_UNKNOWN");
    assert_eq!(follow_error(&b, &a, &other).await, "ENTRY_UNKNOWN");
    a.folder.refused.write().insert(b.device());
    assert_eq!(fetch_error(&b, &a, &office.scope, chunk).await, "ACCESS_DENIED");
    assert_eq!(follow_error(&b, &a, &office.scope).await, "ACCESS_DENIED");
    a.folder.refused.write().clear();
    let mut stream = ask(&b, &a, &office.scope, &[ChunkId([9; 32]), chunk]).await.unwrap();
    let parts = stream.next().await.unwrap().unwrap();
    assert!(parts[0].absent && parts[1].data.to_bytes() == data[..], "what is not in the scope is absent");
    assert!(follow(&b, &a, &office.scope).await.unwrap().message().await.unwrap().unwrap().complete);

    // Who was cut off gets nothing more.
    let mut following = follow(&b, &a, &office.scope).await.unwrap();
    following.message().await.unwrap();
    office.members.revoke(b.device());
    let ended =
        tokio::time::timeout(Duration::from_secs(20), async { while let Ok(Some(_)) = following.message().await {} });
    ended.await.expect("the stream ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_refused() {
    let office = Office::new();
    let a = Node::start(&office, "a").await;
    let b = TestNode::start(&office.members, nothing).await;
    b.knows(&a.test);
    let link = b.network.link(a.test.device()).await.unwrap();
    let scope = Some(office.scope.wire());
    for digests in [vec![], vec![1; 31], vec![1; 33], vec![1; 32 * 1025]] {
        let refused = fetch(link.bulk(), &FetchRequest { scope: scope.clone(), digests: digests.clone().into() }).await;
        assert!(refused.is_err_and(|e| e.is(Reason::FieldInvalid)), "{} bytes", digests.len());
    }
    let refused = fetch(link.bulk(), &FetchRequest { scope: None, digests: vec![1; 32].into() }).await;
    assert!(refused.is_err_and(|e| e.is(Reason::FieldInvalid)));
    let huge = fetch(link.bulk(), &FetchRequest { scope: scope.clone(), digests: vec![1; 1 << 20].into() }).await;
    assert!(huge.is_err_and(|e| e.is(Reason::MessageTooLarge)));
    let mut client = TransferServiceClient::new(link.control());
    for manifest_digests in [vec![vec![1; 5].into()], vec![vec![1; 32].into(); 20_001]] {
        let request = FollowRequest { scope: scope.clone(), takes_part: false, manifest_digests };
        assert!(client.follow(request).await.is_err_and(|s| from_status(&s).is(Reason::FieldInvalid)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_keep_nobody_else_waiting() {
    let office = Office::new();
    let (a, c) = (Node::start(&office, "a").await, Node::start(&office, "c").await);
    let slow = TestNode::start(&office.members, nothing).await;
    slow.knows(&a.test);
    c.test.knows(&a.test);
    let data = random(32, 24 << 20);
    let file = a.share("x", &data);
    let chunks: Vec<ChunkId> = file.content.chunks.iter().map(|c| c.id).collect();
    let mut open = Vec::new();
    for _ in 0..60 {
        // Asks for everything and reads nothing.
        open.push(ask(&slow, &a, &office.scope, &chunks).await);
    }
    let done = c.fetch(&[&a], order(&office, &[file])).await;
    assert_done(&c, &done, "x", &data);
    let mut refused = 0;
    for stream in open.iter_mut().rev().take(20) {
        let error = match stream {
            Ok(stream) => stream.next().await.err(),
            Err(error) => Some(common::error::Error::internal(error.reason().to_owned())),
        };
        refused += u32::from(error.is_some());
    }
    assert!(refused >= 20, "the last 20 of 60 calls are too many: {refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_followers_are_bounded() {
    let office = Office::new();
    let a = Node::start(&office, "a").await;
    a.share("x", &random(33, 100));
    let greedy = TestNode::start(&office.members, nothing).await;
    let modest = TestNode::start(&office.members, nothing).await;
    greedy.knows(&a.test);
    modest.knows(&a.test);
    let mut streams = Vec::new();
    let mut links = Vec::new();
    let mut refused = 0;
    // One connection carries 256 streams at a time: the bulk connections help.
    let link = greedy.network.link(a.test.device()).await.unwrap();
    for n in 0..300 {
        let channel = link.bulk();
        let request =
            FollowRequest { scope: Some(office.scope.wire()), takes_part: true, manifest_digests: Vec::new() };
        match TransferServiceClient::new(channel.clone()).follow(request).await {
            Ok(stream) => streams.push(stream.into_inner()),
            Err(status) => {
                assert!(from_status(&status).is(Reason::Overloaded), "call {n}: {status:?}");
                refused += 1;
            }
        }
        links.push(channel);
    }
    assert_eq!((streams.len(), refused), (256, 44));
    assert!(follow(&modest, &a, &office.scope).await.unwrap().message().await.unwrap().is_some(), "others are served");
    drop(streams);
    // Those that are gone make room.
    let again = tokio::time::timeout(Duration::from_secs(30), async {
        while follow(&greedy, &a, &office.scope).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    again.await.expect("room again");
}
