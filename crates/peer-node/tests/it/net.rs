//! Links and listeners: who is let in, what a stranger can do, how connections end and come back.

use bytes::Bytes;
use common::error::Reason;
use common::identity::{DeviceId, DeviceKey};
use common::status::from_status;
use common::tls::{AcceptLimits, NodeTls};
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::BodyExt;
use peer_node::net::testing::{Members, TestNode, event, nothing, pair};
use peer_node::net::{Endpoint, FoundBy, LinkEvent, Network, NetworkOptions, NodeIdentity, RelayLimits, Way, WhyDown};
use proto::peer::v1 as peer;
use proto::peer::v1::enrolment_service_client::EnrolmentServiceClient;
use proto::peer::v1::enrolment_service_server::{EnrolmentService, EnrolmentServiceServer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::{Service, ServiceExt};

/// Generous: the machine that runs the tests is busy.
const SOON: Duration = Duration::from_secs(30);

/// A service that says who calls it, or keeps a call open for ever.
#[derive(Clone, Default)]
pub struct Echo {
    calls: Arc<AtomicUsize>,
}

impl tonic::server::NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl Service<Request<Body>> for Echo {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let identity = *request.extensions().get::<NodeIdentity>().unwrap();
            if request.uri().path() == "/test.Echo/Forever" {
                let first = futures_util::stream::once(std::future::ready(Ok::<_, Infallible>(
                    http_body::Frame::data(Bytes::from_static(b"open")),
                )));
                let stream = futures_util::StreamExt::chain(first, futures_util::stream::pending());
                return Ok(Response::new(Body::new(http_body_util::StreamBody::new(stream))));
            }
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let text = format!("{} {} {}", identity.device, identity.way, body.len());
            Ok(Response::new(Body::new(http_body_util::Full::from(text))))
        })
    }
}

pub fn echo(_: &Network) -> Routes {
    Routes::new(Echo::default())
}

pub async fn say<C>(channel: C, bytes: usize) -> String
where
    C: Service<Request<Body>, Response = Response<Body>>,
    C::Error: std::fmt::Debug,
{
    let body = Body::new(http_body_util::Full::from(vec![7u8; bytes]));
    let request = Request::post("/test.Echo/Say").body(body).unwrap();
    let answer = channel.oneshot(request).await.unwrap();
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return from_status(&status).reason().to_owned();
    }
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(SOON, waiting).await.is_ok(), "it never came to be: {what}");
}

#[tokio::test]
async fn two_members_call_each_other_and_each_knows_who_calls() {
    let (a, b, _) = pair(echo, echo).await;
    let link = a.network.link(b.device()).await.unwrap();
    assert_eq!(link.way(), Way::Direct(b.address()));
    assert!(link.round_trip() > Duration::ZERO);
    let answer = say(link.control(), 3).await;
    assert!(answer.starts_with(&format!("{} 127.0.0.1:", a.device())) && answer.ends_with(" 3"), "{answer}");
    // Bulk connections come from ports of their own, in turn.
    let mut ports = std::collections::HashSet::new();
    for _ in 0..link.bulk_count() {
        ports.insert(say(link.bulk(), 1_000_000).await);
    }
    assert_eq!(ports.len(), link.bulk_count());
    let back = b.network.link(a.device()).await.unwrap();
    assert!(say(back.bulk(), 0).await.starts_with(&b.device().to_string()));
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn links_to_members_are_made_by_themselves_and_everyone_asks_for_the_same_one() {
    let (a, b, _) = pair(echo, echo).await;
    let mut events = a.network.events();
    let links = join_all((0..50).map(|_| a.network.link(b.device()))).await;
    assert!(links.into_iter().all(|l| l.unwrap().is_up()));
    until("one connection", || b.network.incoming_count() == (1, 0)).await;
    event(&mut events, |e| matches!(e, LinkEvent::Incoming { .. })).await;
    // Nobody asked for this direction.
    until("a link back", || b.network.linked(&a.device()).is_some()).await;
    assert_eq!(a.network.neighbours(), [b.device()]);
}

#[tokio::test]
async fn of_many_addresses_the_one_that_works_is_found() {
    let members = Members::default();
    let (a, b) = (TestNode::start(&members, echo).await, TestNode::start(&members, echo).await);
    let other = TestNode::start(&members, echo).await;
    // One that takes connections and says nothing, one where nobody listens, one of another device.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    a.knows(&b);
    for address in [mute.local_addr().unwrap(), closed, other.address(), "192.0.2.1:7444".parse().unwrap()] {
        a.network.learn(b.device(), address, FoundBy::Typed);
    }
    let link = a.network.link(b.device()).await.unwrap();
    assert_eq!(link.way(), Way::Direct(b.address()));
    assert!(say(link.control(), 0).await.starts_with(&a.device().to_string()));
}

#[tokio::test]
async fn a_device_that_is_nowhere_is_said_so_with_the_reasons() {
    let members = Members::default();
    let a = TestNode::start(&members, echo).await;
    let missing = DeviceKey::generate().device_id();
    assert!(a.network.link(missing).await.unwrap_err().is(Reason::NotAMember));
    members.admit(missing);
    assert!(a.network.link(missing).await.unwrap_err().is(Reason::PeerUnreachable));
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    a.network.learn(missing, closed, FoundBy::Beacon);
    let error = a.network.link(missing).await.unwrap_err();
    assert!(error.is(Reason::PeerUnreachable) && error.message().contains("nothing listens"), "{error:?}");
    assert_eq!(a.network.last_failure(&missing).unwrap().reason(), "PEER_UNREACHABLE");
    members.revoke(missing);
    assert!(a.network.link(missing).await.unwrap_err().is(Reason::DeviceRevoked));
}

/// Answers enrolments with an error that shows that they came through.
#[derive(Clone, Default)]
struct Door;

#[tonic::async_trait]
impl EnrolmentService for Door {
    async fn begin_enrolment(
        &self,
        request: tonic::Request<peer::BeginEnrolmentRequest>,
    ) -> Result<tonic::Response<peer::BeginEnrolmentResponse>, Status> {
        assert!(!NodeIdentity::of(&request).unwrap().member);
        let exchange_id = request.into_inner().nameplate;
        Ok(tonic::Response::new(peer::BeginEnrolmentResponse { exchange_id, ..Default::default() }))
    }

    async fn introduce(
        &self,
        _: tonic::Request<peer::IntroduceRequest>,
    ) -> Result<tonic::Response<peer::IntroduceResponse>, Status> {
        Err(Status::aborted("no"))
    }

    async fn finish_enrolment(
        &self,
        _: tonic::Request<peer::FinishEnrolmentRequest>,
    ) -> Result<tonic::Response<peer::FinishEnrolmentResponse>, Status> {
        Err(Status::aborted("no"))
    }
}

#[tokio::test]
async fn a_stranger_may_enrol_and_nothing_else() {
    let members = Members::default();
    let calls = Echo::default();
    let counted = calls.clone();
    let a = TestNode::start(&members, |_| Routes::new(counted).add_service(EnrolmentServiceServer::new(Door))).await;
    let stranger = DeviceKey::generate();
    let nobody = Members::default();
    let x = TestNode::with_key(Arc::new(stranger), &nobody, RelayLimits::default(), nothing).await;
    let (identity, channel) = x.network.dial_stranger(a.address()).await.unwrap();
    assert_eq!((identity.device, identity.key), (a.device(), a.key.public_key()));
    assert_eq!(say(channel.clone(), 5).await, "NOT_A_MEMBER");
    assert_eq!(calls.calls.load(Ordering::SeqCst), 0);
    let mut client = EnrolmentServiceClient::new(channel.clone());
    let begin = |n: usize| peer::BeginEnrolmentRequest { nameplate: "7".repeat(n), spake_message: Bytes::new() };
    assert_eq!(client.begin_enrolment(begin(3)).await.unwrap().into_inner().exchange_id, "777");
    // More than a stranger may say.
    client.begin_enrolment(begin(100_000)).await.unwrap_err();
    // It becomes a member while connected, and is cut off again.
    members.admit(x.device());
    assert!(say(channel.clone(), 5).await.starts_with(&x.device().to_string()));
    members.revoke(x.device());
    assert_eq!(say(channel, 5).await, "DEVICE_REVOKED");
}

#[tokio::test]
async fn one_that_is_not_known_as_a_member_yet_is_told_so_and_gets_in_later() {
    let (known_to_a, known_to_b) = (Members::default(), Members::default());
    let a = TestNode::start(&known_to_a, echo).await;
    let b = TestNode::start(&known_to_b, echo).await;
    known_to_b.admit(a.device());
    b.knows(&a);
    assert!(b.network.link(a.device()).await.unwrap_err().is(Reason::NotAMember));
    let mut events = b.network.events();
    known_to_a.admit(b.device());
    event(&mut events, |e| *e == LinkEvent::Up { device: a.device(), way: Way::Direct(a.address()) }).await;
}

#[tokio::test]
async fn connections_of_a_device_that_is_cut_off_end_with_their_calls() {
    let (a, b, members) = pair(echo, echo).await;
    let link = b.network.link(a.device()).await.unwrap();
    let request = Request::post("/test.Echo/Forever").body(Body::empty()).unwrap();
    let mut forever = link.bulk().oneshot(request).await.unwrap().into_body();
    assert_eq!(forever.frame().await.unwrap().unwrap().into_data().unwrap(), "open");
    until("a link to b", || a.network.linked(&b.device()).is_some()).await;
    let mut of_a = a.network.events();
    let mut of_b = b.network.events();
    members.revoke(b.device());
    let ended = tokio::time::timeout(SOON, forever.frame()).await.expect("the call ends");
    assert!(!matches!(ended, Some(Ok(_))));
    event(&mut of_a, |e| *e == LinkEvent::Down { device: b.device(), why: WhyDown::NotAMember }).await;
    event(&mut of_b, |e| matches!(e, LinkEvent::Down { device, .. } if *device == a.device())).await;
    assert!(a.network.link(b.device()).await.unwrap_err().is(Reason::DeviceRevoked));
    // It comes again, and is a stranger.
    let (_, channel) = b.network.dial_stranger(a.address()).await.unwrap();
    assert_eq!(say(channel, 0).await, "DEVICE_REVOKED");
}

#[tokio::test]
async fn a_node_that_ends_is_noticed_at_once_and_found_again_when_it_is_back_elsewhere() {
    let (a, b, members) = pair(echo, echo).await;
    a.network.link(b.device()).await.unwrap();
    let mut events = a.network.events();
    let (key, device) = (b.key.clone(), b.device());
    b.stop().await;
    event(&mut events, |e| *e == LinkEvent::Down { device, why: WhyDown::Gone }).await;
    let b = TestNode::with_key(key, &members, RelayLimits::default(), echo).await;
    a.knows(&b);
    let way = Way::Direct(b.address());
    event(&mut events, |e| *e == LinkEvent::Up { device, way }).await;
    assert_eq!(a.network.link(device).await.unwrap().way(), way);
}

/// Passes bytes on until it is told to swallow them, as a cable that is cut.
async fn cable(to: SocketAddr) -> (SocketAddr, tokio::sync::watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (cut, is_cut) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(to).await else { continue };
            for (mut from, mut to) in both(near, far) {
                let is_cut = is_cut.clone();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(n) = from.read(&mut buffer).await {
                        if *is_cut.borrow() {
                            std::future::pending::<()>().await;
                        }
                        if n == 0 || to.write_all(&buffer[..n]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    (address, cut)
}

type Half = (tokio::net::tcp::OwnedReadHalf, tokio::net::tcp::OwnedWriteHalf);

fn both(near: TcpStream, far: TcpStream) -> [Half; 2] {
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    [(near_read, far_write), (far_read, near_write)]
}

#[tokio::test]
async fn a_machine_that_falls_silent_is_noticed() {
    let members = Members::default();
    let (a, b) = (TestNode::start(&members, echo).await, TestNode::start(&members, echo).await);
    let (address, cut) = cable(b.address()).await;
    a.network.learn(b.device(), address, FoundBy::Typed);
    a.network.link(b.device()).await.unwrap();
    let mut events = a.network.events();
    let began = std::time::Instant::now();
    cut.send(true).unwrap();
    event(&mut events, |e| *e == LinkEvent::Down { device: b.device(), why: WhyDown::Gone }).await;
    println!("measured: a silent machine was noticed after {:?}", began.elapsed());
}

#[tokio::test]
async fn a_link_over_an_address_that_is_gone_ends_and_is_made_anew() {
    let (a, b, _) = pair(echo, echo).await;
    let mut events = a.network.events();
    // Loopback never counts as gone; what another address would do is seen by the event and the new attempt.
    a.network.set_own_addresses(["10.9.9.9".parse().unwrap()].into());
    event(&mut events, |e| *e == LinkEvent::AddressChanged).await;
    assert!(a.network.link(b.device()).await.unwrap().is_up());
    a.network.set_own_addresses(["10.9.9.9".parse().unwrap()].into());
    assert!(!matches!(events.try_recv(), Ok(LinkEvent::AddressChanged)));
    assert_eq!(a.network.addresses(), [a.address()]);
}

#[tokio::test]
async fn a_probe_connects_back_and_says_why_not() {
    let (a, b, _) = pair(echo, echo).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let other = TestNode::start(&Members::default(), echo).await;
    let asked = [
        a.address().to_string(),
        closed.to_string(),
        other.address().to_string(),
        "224.0.0.1:7444".into(),
        "127.0.0.1:22".into(),
        "nonsense\u{7}".into(),
    ];
    let answer = b.network.probe(a.device(), &asked).await.unwrap();
    assert_eq!(answer.reached, [a.address()]);
    let said = answer.problems.join("\n");
    for words in ["nothing listens", "another device", "224.0.0.1:7444: nothing of a node", "nonsense: not an address"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(answer.problems.len(), 5);
    let many = vec![closed.to_string(); 100];
    assert_eq!(b.network.probe(a.device(), &many).await.unwrap().problems.len(), 8);
}

// ---- the hostile side

async fn small_node(members: &Members, limits: AcceptLimits) -> (Network, peer_node::net::Serving, DeviceId) {
    let key = Arc::new(DeviceKey::generate());
    members.admit(key.device_id());
    let network = Network::new(NetworkOptions::new(key, Arc::new(members.clone()))).unwrap();
    let endpoint = Endpoint::bind(&network, &["127.0.0.1:0".parse().unwrap()], limits).unwrap();
    let device = network.me();
    let serving = endpoint.serve(echo(&network));
    (network, serving, device)
}

#[tokio::test]
async fn a_thousand_half_open_connections_do_not_keep_a_member_out() {
    let members = Members::default();
    let (_network, serving, device) = small_node(&members, AcceptLimits::default()).await;
    let address = serving.addresses()[0];
    let mut held = Vec::new();
    for n in 0..1000 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // Some say nothing, some begin a handshake and stop.
        if n % 2 == 0 {
            let _ = stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await;
        }
        held.push(stream);
    }
    let a = TestNode::start(&members, nothing).await;
    a.network.learn(device, address, FoundBy::Typed);
    let link = a.network.link(device).await.unwrap();
    assert!(say(link.bulk(), 100_000).await.starts_with(&a.device().to_string()));
    drop(held);
}

#[tokio::test]
async fn slow_handshakes_are_dropped_and_strangers_hold_few_places() {
    let members = Members::default();
    let limits = AcceptLimits { handshake_timeout: Duration::from_millis(200), ..AcceptLimits::default() };
    let (network, serving, device) = small_node(&members, limits).await;
    let address = serving.addresses()[0];
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(&[0x16]).await.unwrap();
    let ended = tokio::time::timeout(SOON, slow.read(&mut [0; 16])).await.expect("the handshake is dropped");
    assert!(matches!(ended, Ok(0) | Err(_)));
    // Strangers that finish the handshake and then only sit there.
    let mut held = Vec::new();
    for _ in 0..40 {
        let tls = NodeTls::new(&DeviceKey::generate()).unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        held.push(tls.connect_over(stream, Some(device)).await.unwrap());
    }
    let mut sample = held.pop().unwrap().0;
    until("strangers are counted", || network.incoming_count().1 > 0).await;
    assert!(network.incoming_count().1 <= 8, "{:?}", network.incoming_count());
    let a = TestNode::start(&members, nothing).await;
    a.network.learn(device, address, FoundBy::Typed);
    assert!(say(a.network.link(device).await.unwrap().control(), 1).await.ends_with(" 1"));
    assert!(network.incoming_count().0 >= 1);
    // What the newest stranger says is not HTTP/2.
    let _ = sample.write_all(&vec![0xff; 1_000_000]).await;
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(SOON, sample.read_to_end(&mut rest)).await;
    assert!(ended.is_ok() && rest.len() < 10_000, "{} bytes of answer", rest.len());
}

#[tokio::test]
async fn huge_frames_and_headers_end_the_connection_that_sent_them_only() {
    let members = Members::default();
    let (_network, serving, device) = small_node(&members, AcceptLimits::default()).await;
    let address = serving.addresses()[0];
    let a = TestNode::start(&members, nothing).await;
    a.network.learn(device, address, FoundBy::Typed);
    let link = a.network.link(device).await.unwrap();
    for frame_type in [0u8, 1, 4, 9, 0xee] {
        let tls = NodeTls::new(&DeviceKey::generate()).unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut stream, _) = tls.connect_over(stream, None).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        // A frame of 16 MiB less one byte, announced and begun.
        let _ = stream.write_all(&[0xff, 0xff, 0xff, frame_type, 0, 0, 0, 0, 1]).await;
        let _ = stream.write_all(&vec![0x41; 300_000]).await;
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "a connection with a huge frame of type {frame_type} stayed open");
    }
    assert!(say(link.control(), 2).await.ends_with(" 2"));
}
