//! Connections through a third member, and back over the connection of the other side.

use super::net::{echo, say};
use bytes::Bytes;
use common::error::Reason;
use common::identity::DeviceKey;
use futures_util::StreamExt;
use parking_lot::Mutex;
use peer_node::net::testing::{Members, TestNode, event};
use peer_node::net::{LinkEvent, Network, NodeIdentity, RelayLimits, RelayServer, Way};
use proto::peer::v1 as peer;
use proto::peer::v1::relay_service_client::RelayServiceClient;
use proto::peer::v1::relay_service_server::{RelayService, RelayServiceServer};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

async fn node(members: &Members, relay: RelayLimits) -> TestNode {
    let key = Arc::new(DeviceKey::generate());
    members.admit(key.device_id());
    TestNode::with_key(key, members, relay, echo).await
}

async fn linked(a: &TestNode, b: &TestNode) {
    a.knows(b);
    a.network.link(b.device()).await.unwrap();
}

async fn until_callable(at: &TestNode, device: &TestNode) {
    let waiting = async {
        while !at.network.can_call_back(&device.device()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("it listens");
}

#[tokio::test]
async fn a_node_that_only_calls_out_is_called_back_over_its_own_connection() {
    let members = Members::default();
    let (a, b) = (node(&members, RelayLimits::default()).await, node(&members, RelayLimits::default()).await);
    let mut events = b.network.events();
    linked(&a, &b).await;
    // b knows nothing of a but where it came from, and there nobody listens.
    let way = Way::Relayed(b.device());
    event(&mut events, |e| *e == LinkEvent::Up { device: a.device(), way }).await;
    let link = b.network.link(a.device()).await.unwrap();
    let answer = say(link.bulk(), 3_000_000).await;
    assert_eq!(answer, format!("{} relayed by {:?} 3000000", b.device(), b.device()));
    assert!(link.round_trip() > Duration::ZERO);
    assert_eq!(b.network.relaying(), 0, "a call back is not relaying for others");
    // As soon as an address works, the way becomes direct.
    b.knows(&a);
    event(&mut events, |e| *e == LinkEvent::Up { device: a.device(), way: Way::Direct(a.address()) }).await;
    assert_eq!(b.network.link(a.device()).await.unwrap().way(), Way::Direct(a.address()));
}

#[tokio::test]
async fn two_that_cannot_reach_each_other_call_through_a_third_one() {
    let members = Members::default();
    let relay = node(&members, RelayLimits { rate: 0, ..RelayLimits::on() }).await;
    let (a, c) = (node(&members, RelayLimits::default()).await, node(&members, RelayLimits::default()).await);
    linked(&a, &relay).await;
    linked(&c, &relay).await;
    until_callable(&relay, &c).await;
    let link = a.network.link(c.device()).await.unwrap();
    assert_eq!(link.way(), Way::Relayed(relay.device()));
    let answer = say(link.bulk(), 2_000_000).await;
    assert_eq!(answer, format!("{} relayed by {:?} 2000000", a.device(), relay.device()));
    assert!(relay.network.relaying() >= 2, "{}", relay.network.relaying());
    // One that is cut off loses its relayed link too.
    let mut events = c.network.events();
    c.network.link(a.device()).await.unwrap();
    members.revoke(a.device());
    event(&mut events, |e| matches!(e, LinkEvent::Down { device, .. } if *device == a.device())).await;
    let waiting = async {
        while relay.network.relaying() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("the places come back");
}

#[tokio::test]
async fn relaying_is_off_unless_it_is_switched_on_and_bounded_then() {
    let members = Members::default();
    let off = node(&members, RelayLimits::default()).await;
    let (a, c) = (node(&members, RelayLimits::default()).await, node(&members, RelayLimits::default()).await);
    linked(&a, &off).await;
    linked(&c, &off).await;
    until_callable(&off, &c).await;
    assert!(a.network.link(c.device()).await.unwrap_err().is(Reason::PeerUnreachable));

    let on = node(&members, RelayLimits { connections: 2, for_one: 1, rate: 0 }).await;
    linked(&a, &on).await;
    linked(&c, &on).await;
    until_callable(&on, &c).await;
    // The control connection takes the one place; the bulk connection finds none.
    let link = a.network.link(c.device()).await.unwrap();
    assert_eq!(link.way(), Way::Relayed(on.device()));
    assert!(say(link.control(), 1).await.ends_with(" 1"));
    assert_eq!(on.network.relaying(), 1);
    let mut asking = RelayServiceClient::new(a.network.link(on.device()).await.unwrap().control());
    let message = peer::ConnectRequest { target: c.device().0.to_vec().into(), data: Bytes::new() };
    let refused = asking.connect(futures_util::stream::iter([message])).await.unwrap_err();
    assert!(common::status::from_status(&refused).is(Reason::Overloaded), "{refused:?}");
}

/// A relay that keeps what it passes on.
#[derive(Clone)]
struct Curious {
    inner: RelayServer,
    seen: Arc<Mutex<Vec<u8>>>,
}

type Frames = Pin<Box<dyn futures_util::Stream<Item = Result<peer::RelayFrame, Status>> + Send>>;

impl Curious {
    fn watched(&self, frames: Response<Frames>) -> Response<Frames> {
        let seen = self.seen.clone();
        frames.map(|frames| {
            Box::pin(frames.inspect(move |frame| {
                if let Ok(frame) = frame {
                    seen.lock().extend_from_slice(&frame.data);
                }
            })) as Frames
        })
    }
}

#[tonic::async_trait]
impl RelayService for Curious {
    type ConnectStream = Frames;
    type ListenStream = <RelayServer as RelayService>::ListenStream;
    type AcceptStream = Frames;

    async fn connect(&self, request: Request<Streaming<peer::ConnectRequest>>) -> Result<Response<Frames>, Status> {
        self.inner.connect(request).await.map(|r| self.watched(r))
    }

    async fn listen(&self, request: Request<peer::ListenRequest>) -> Result<Response<Self::ListenStream>, Status> {
        NodeIdentity::member_of(&request)?;
        self.inner.listen(request).await
    }

    async fn accept(&self, request: Request<Streaming<peer::AcceptRequest>>) -> Result<Response<Frames>, Status> {
        self.inner.accept(request).await.map(|r| self.watched(r))
    }
}

#[tokio::test]
async fn the_relay_sees_ciphertext_only() {
    use peer_node::net::{Endpoint, EndpointLimits, NetworkOptions};
    let members = Members::default();
    let key = Arc::new(DeviceKey::generate());
    members.admit(key.device_id());
    let limits = RelayLimits { rate: 0, ..RelayLimits::on() };
    let network =
        Network::new(NetworkOptions { relay: limits, ..NetworkOptions::new(key, Arc::new(members.clone())) }).unwrap();
    let endpoint = Endpoint::bind(&network, &["127.0.0.1:0".parse().unwrap()], EndpointLimits::default()).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let curious = Curious { inner: network.relay_server(), seen: seen.clone() };
    let serving = endpoint.serve(Routes::new(RelayServiceServer::new(curious)));
    let (a, c) = (node(&members, RelayLimits::default()).await, node(&members, RelayLimits::default()).await);
    for node in [&a, &c] {
        node.network.learn(network.me(), serving.addresses()[0], peer_node::net::FoundBy::Typed);
        node.network.link(network.me()).await.unwrap();
    }
    let waiting = async {
        while !network.can_call_back(&c.device()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("c listens");
    let link = a.network.link(c.device()).await.unwrap();
    assert_eq!(link.way(), Way::Relayed(network.me()));
    let answer = say(link.control(), 50_000).await;
    assert!(answer.ends_with(" 50000"));
    let seen = seen.lock().clone();
    assert!(seen.len() > 50_000, "{} bytes passed", seen.len());
    let has = |needle: &[u8]| seen.windows(needle.len()).any(|w| w == needle);
    assert!(!has(&[7; 16]) && !has(answer.as_bytes()) && !has(a.device().to_string().as_bytes()));
}
