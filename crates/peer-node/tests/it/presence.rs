//! Presence on one machine, without rights: two nodes on loopback, seeds, strangers and codes.

use super::presence_node::{Node, Plan, start};
use common::identity::{DeviceId, DeviceKey};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

fn free_udp_port() -> u16 {
    UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
}

fn plan(key: &DeviceKey, members: &[&DeviceKey]) -> Plan {
    Plan {
        key: key.to_pem().to_string(),
        members: members.iter().map(|m| m.device_id().to_string()).collect(),
        mdns: false,
        beacon: false,
        seeds: Vec::new(),
        relay: false,
        inviting: Vec::new(),
        office: true,
        port: 7444,
    }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

async fn until(what: &str, node: &Node, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let said = || node.presence.discovery().join("\n");
    assert!(tokio::time::timeout(SOON, waiting).await.is_ok(), "it never came to be: {what}\n{}", said());
}

#[tokio::test]
async fn nodes_of_one_machine_hear_each_other_and_say_goodbye() {
    let (a, b) = (DeviceKey::generate(), DeviceKey::generate());
    let port = free_udp_port();
    let beacon = |key| Plan { beacon: true, ..plan(key, &[&a, &b]) };
    let first = start(&beacon(&a), loopback(), port);
    let second = start(&beacon(&b), loopback(), port);
    let (of_a, of_b) = (a.device_id(), b.device_id());
    until("both see each other", &first, || first.presence.is_present(&of_b) && second.presence.is_present(&of_a))
        .await;
    until("both are linked", &first, || {
        first.network.linked(&of_b).is_some() && second.network.linked(&of_a).is_some()
    })
    .await;
    let peers = first.presence.peers(&[of_a, of_b]);
    assert_eq!(peers.len(), 1);
    until("both directions are known", &first, || {
        first.presence.peers(&[of_b])[0].reach == peer_node::presence::Reach::Both
    })
    .await;
    second.presence.leave().await;
    second.network.close().await;
    second.serving.stop(Duration::from_secs(5)).await;
    until("one has gone", &first, || !first.presence.is_present(&of_b)).await;
    assert_eq!(first.presence.peers(&[of_b])[0].problem.as_ref().unwrap().reason, "OFF");
}

#[tokio::test]
async fn a_seed_is_found_without_any_announcement_and_also_when_it_comes_later() {
    let (a, b) = (DeviceKey::generate(), DeviceKey::generate());
    // The address of the seed is known before it is there.
    let seed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = seed.local_addr().unwrap();
    drop(seed);
    let seeds = vec![address.to_string(), "no.such.host.invalid".into(), "nonsense:port".into()];
    let first = start(&Plan { seeds, ..plan(&a, &[&a, &b]) }, loopback(), 0);
    until("the seed is said to be silent", &first, || {
        let said = first.presence.discovery().join("\n");
        said.contains("nothing listens") && said.contains("not an address") && said.contains("looked up")
    })
    .await;
    let second = start(&plan(&b, &[&a, &b]), address, 0);
    until("the seed is linked", &first, || first.network.linked(&b.device_id()).is_some()).await;
    // The seed knows nothing of the first but its connection, and calls back over it.
    until("the way back", &second, || second.network.linked(&a.device_id()).is_some()).await;
    until("the seed is named", &first, || first.presence.discovery().join("\n").contains("a member")).await;
    let view = &first.presence.peers(&[b.device_id()])[0];
    assert!(view.found_by.contains(&peer_node::net::FoundBy::Seed) && view.present);
}

#[tokio::test]
async fn a_machine_without_an_office_finds_who_has_given_out_its_code() {
    let (a, joiner) = (DeviceKey::generate(), DeviceKey::generate());
    let port = free_udp_port();
    let inviter = start(&Plan { beacon: true, inviting: vec!["4711".into()], ..plan(&a, &[&a]) }, loopback(), port);
    let new = start(&Plan { beacon: true, office: false, ..plan(&joiner, &[]) }, loopback(), port);
    let found = new.presence.find_inviters("4711", SOON).await.unwrap();
    let device: DeviceId = a.device_id();
    assert_eq!(found[0].0, device);
    let address = found[0].1[0];
    let (identity, _) = new.network.dial_stranger(address).await.unwrap();
    assert_eq!(identity.device, device);
    assert!(new.presence.find_inviters("9", Duration::from_millis(300)).await.is_err());
    // The inviter sees a machine that could be invited, and by which name.
    until("the stranger is shown", &inviter, || {
        inviter.presence.peers(&[]).iter().any(|p| p.stranger && p.display_name == "new-pc")
    })
    .await;
    assert!(new.presence.peers(&[]).iter().all(|p| p.display_name.is_empty()));
}
