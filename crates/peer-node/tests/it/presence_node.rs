//! A node in a process of its own, so that it can live in a network namespace: this test binary, started again.
//!
//! It reads one command a line and writes one answer a line, each beginning with `@`, since the test harness writes lines
//! of its own.

use super::net::{Echo, say};
use common::clock::SystemClock;
use common::identity::{DeviceId, DeviceKey};
use common::status::to_status;
use peer_node::model::OfficeId;
use peer_node::net::testing::Members;
use peer_node::net::{
    Endpoint, EndpointLimits, LinkEvent, Network, NetworkOptions, NodeIdentity, Prober, RelayLimits, Way,
};
use peer_node::presence::{About, Presence, PresenceOptions};
use proto::peer::v1 as peer;
use proto::peer::v1::membership_service_server::{MembershipService, MembershipServiceServer};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncBufReadExt, BufReader};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// How the parent tells a child what it is.
pub const PLAN: &str = "ATRIUM_TEST_NODE";

/// What a node is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Its key, PEM.
    pub key: String,
    /// Ids of all members.
    pub members: Vec<String>,
    pub mdns: bool,
    pub beacon: bool,
    pub seeds: Vec<String>,
    pub relay: bool,
    pub inviting: Vec<String>,
    pub office: bool,
    pub port: u16,
}

/// Only `Probe` is needed here.
#[derive(Clone)]
struct Membership(Arc<dyn Prober>);

#[tonic::async_trait]
impl MembershipService for Membership {
    async fn probe(&self, request: Request<peer::ProbeRequest>) -> Result<Response<peer::ProbeResponse>, Status> {
        let caller = NodeIdentity::member_of(&request)?;
        let answer = self.0.probe(caller, &request.into_inner().addresses).await.map_err(|e| to_status(&e))?;
        Ok(Response::new(answer.into()))
    }
    async fn hello(&self, _: Request<peer::HelloRequest>) -> Result<Response<peer::HelloResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn exchange_records(
        &self,
        _: Request<peer::ExchangeRecordsRequest>,
    ) -> Result<Response<peer::ExchangeRecordsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn push_records(
        &self,
        _: Request<peer::PushRecordsRequest>,
    ) -> Result<Response<peer::PushRecordsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn exchange_announcements(
        &self,
        _: Request<peer::ExchangeAnnouncementsRequest>,
    ) -> Result<Response<peer::ExchangeAnnouncementsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn leave(&self, _: Request<peer::LeaveRequest>) -> Result<Response<peer::LeaveResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

pub struct Fixed {
    pub office: bool,
    pub inviting: Vec<String>,
}

impl About for Fixed {
    fn office(&self) -> Option<OfficeId> {
        self.office.then_some(OfficeId([5; 32]))
    }
    fn inviting(&self) -> Vec<String> {
        self.inviting.clone()
    }
    fn display_name(&self) -> String {
        "new-pc".into()
    }
}

/// A whole node but for the office.
pub struct Node {
    pub network: Network,
    pub presence: Presence,
    pub serving: peer_node::net::Serving,
}

/// Starts one.
pub fn start(plan: &Plan, listen: SocketAddr, beacon_port: u16) -> Node {
    let key = Arc::new(DeviceKey::from_pem(&plan.key).unwrap());
    let members = Members::default();
    plan.members.iter().for_each(|id| members.admit(id.parse().unwrap()));
    let relay = if plan.relay { RelayLimits::on() } else { RelayLimits::default() };
    let options = NetworkOptions { relay, ..NetworkOptions::new(key.clone(), Arc::new(members)) };
    let network = Network::new(options).unwrap();
    let endpoint = Endpoint::bind(&network, &[listen], EndpointLimits::default()).unwrap();
    let membership = Membership(Arc::new(network.clone()));
    let routes = Routes::new(Echo::default())
        .add_service(MembershipServiceServer::new(membership))
        .add_service(network.relay_server().service());
    let serving = endpoint.serve(routes);
    let about = Arc::new(Fixed { office: plan.office, inviting: plan.inviting.clone() });
    let options = PresenceOptions {
        key,
        mdns: plan.mdns,
        beacon: plan.beacon,
        beacon_port,
        seeds: plan.seeds.clone(),
        default_port: plan.port,
        clock: Arc::new(SystemClock),
    };
    let presence = Presence::start(network.clone(), about, options).unwrap();
    Node { network, presence, serving }
}

pub fn now_ms() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()
}

fn tell(line: &str) {
    println!("@{line}");
}

/// Does nothing unless it is started by another test, as a node of a lab.
#[test]
fn child() {
    let Ok(plan) = std::env::var(PLAN) else { return };
    let plan: Plan = serde_json::from_str(&plan).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(plan));
}

async fn run(plan: Plan) {
    let listen = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, plan.port));
    let node = start(&plan, listen, 7445);
    tell(&format!("begun {}", now_ms()));
    let mut seen = node.presence.changes();
    let mut links = node.network.events();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut present = std::collections::BTreeSet::new();
    loop {
        tokio::select! {
            _ = seen.changed() => {
                for id in &plan.members {
                    let device: DeviceId = id.parse().unwrap();
                    let is = node.presence.is_present(&device);
                    if is && present.insert(device) {
                        tell(&format!("seen {id} {}", now_ms()));
                    } else if !is && present.remove(&device) {
                        tell(&format!("gone {id} {}", now_ms()));
                    }
                }
            }
            Ok(event) = links.recv() => match event {
                LinkEvent::Up { device, way } => tell(&format!("up {device} {} {way}", now_ms())),
                LinkEvent::Down { device, .. } => tell(&format!("down {device} {}", now_ms())),
                _ => {}
            },
            line = lines.next_line() => match line.ok().flatten().as_deref() {
                Some("peers") => {
                    let members: Vec<DeviceId> = plan.members.iter().map(|m| m.parse().unwrap()).collect();
                    for view in node.presence.peers(&members) {
                        let reason = view.problem.as_ref().map_or("-", |p| p.reason);
                        let found: Vec<&str> = view.found_by.iter().map(|f| f.word()).collect();
                        let address = view.address.map(|a| a.to_string()).unwrap_or_default();
                        let (device, reach, found) = (view.device, view.reach, found.join(","));
                        tell(&format!("peer {device} {reach:?} {reason} {found} {address} {}", view.stranger));
                    }
                    tell("end");
                }
                Some("discovery") => {
                    node.presence.discovery().iter().for_each(|line| tell(line));
                    tell("end");
                }
                Some(command) if command.starts_with("inviters ") => {
                    let found = node.presence.find_inviters(&command[9..], Duration::from_secs(20)).await;
                    for (device, addresses) in found.unwrap_or_default() {
                        tell(&format!("inviter {device} {addresses:?}"));
                    }
                    tell("end");
                }
                Some(command) if command.starts_with("call ") => {
                    let device: DeviceId = command[5..].parse().unwrap();
                    match node.network.link(device).await {
                        Ok(link) => {
                            let way = match link.way() {
                                Way::Direct(address) => format!("direct {address}"),
                                Way::Relayed(by) => format!("relayed {by}"),
                            };
                            tell(&format!("called {way} {}", say(link.bulk(), 500_000).await));
                        }
                        Err(error) => tell(&format!("failed {} {}", error.reason(), error.message())),
                    }
                }
                // The end of the commands, or of the parent.
                _ => break,
            },
        }
    }
    tell(&format!("leaving {}", now_ms()));
    node.presence.leave().await;
    node.network.close().await;
    node.serving.stop(Duration::from_secs(2)).await;
}
