//! What members say of themselves and of each other, with good signatures: records of the office, announcements, beacons,
//! read tickets. What can be read can be written, and reads the same again.
#![no_main]

use common::identity::DeviceKey;
use common::ticket::Ticket;
use peer_node::office::{self, Announcement, NodeInfo, Profile, Record};
use peer_node::presence::beacon::fuzz_beacon;
use prost::Message;
use proto::peer::v1 as peer;
use std::sync::LazyLock;

static KEY: LazyLock<DeviceKey> = LazyLock::new(DeviceKey::generate);

fn inputs() -> Vec<Vec<u8>> {
    let profile = Profile {
        display_name: "anna-pc".into(),
        person: "anna".into(),
        unit: "sales/north".into(),
        may_invite: true,
        may_manage: true,
    };
    let founding = office::found(&KEY, "acme", [1; 16], [2; 32], profile, 1_700_000_000_000).expect("a record");
    let info = NodeInfo {
        office: founding.office(),
        device_key: KEY.public_key(),
        device: KEY.device_id(),
        sequence: 7,
        node_name: "acme/sales/anna-pc".into(),
        addresses: vec!["10.0.0.1:7444".parse().expect("an address"), "[fd00::1]:7444".parse().expect("an address")],
        version: "0.1.0".into(),
        relays: true,
        keeps_parcels: true,
        instance: [3; 8],
    };
    let statement = |kind| peer::Statement {
        office_id: founding.office().0.to_vec().into(),
        author_key: KEY.public_key().to_vec().into(),
        sequence: 2,
        create_time: None,
        previous: founding.statement_id().0.to_vec().into(),
        kind: Some(kind),
    };
    let founding_wire = peer::Statement::decode(founding.wire().statement).expect("a statement");
    let announced = Announcement::sign(&KEY, &info).expect("an announcement").wire().info.to_vec();
    let beacon = peer::Beacon {
        instance_id: vec![3; 8].into(),
        sequence: 7,
        port: 7444,
        office_tag: vec![9; 8].into(),
        version: "0.1.0".into(),
        inviting: vec!["42".into(), "7".into()],
        display_name: "anna-pc".into(),
        clock_ms: 1_700_000_000_000,
        ..Default::default()
    };
    let ticket = proto::v1::ReadTicket {
        office: "acme".into(),
        device_id: vec![1; 32].into(),
        manifest_digests: vec![vec![2; 32].into(), vec![3; 32].into()],
        expire_time: Some(common::wire::timestamp_from_ms(1_700_000_000_000)),
    };
    let mut inputs: Vec<Vec<u8>> = vec![
        [&[0][..], &founding_wire.encode_to_vec()].concat(),
        [&[1][..], &announced].concat(),
        [&[2][..], &beacon.encode_to_vec()].concat(),
        [&[3][..], &ticket.encode_to_vec()].concat(),
    ];
    use peer::statement::Kind;
    let heads = vec![founding.statement_id().0.to_vec().into()];
    for kind in [
        Kind::Revocation(peer::Revocation {
            device_id: vec![4; 32].into(),
            last_sequence: 3,
            heads,
            reason: "lost".into(),
        }),
        Kind::GroupChange(peer::GroupChange {
            group: "sales".into(),
            revision: 2,
            persons: vec!["anna".into(), "bert".into()],
            removed: false,
        }),
    ] {
        inputs.push([&[0][..], &statement(kind).encode_to_vec()].concat());
    }
    inputs
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| {
    let Some((which, data)) = data.split_first() else { return };
    match which % 4 {
        0 => {
            let wire = peer::Record { statement: data.to_vec().into(), signature: vec![0; 64].into() };
            if let Ok(record) = Record::decode(&wire) {
                let again = Record::sign(&KEY, record.statement()).expect("what could be read can be written");
                assert_eq!(again.statement(), record.statement());
            }
        }
        1 => {
            let wire = peer::Announcement { info: data.to_vec().into(), signature: vec![0; 64].into() };
            if let Ok(read) = Announcement::decode(&wire) {
                let again = Announcement::sign(&KEY, read.info()).expect("what could be read can be written");
                assert_eq!(again.info().addresses, read.info().addresses);
            }
        }
        2 => fuzz_beacon(&KEY, data),
        _ => {
            if let Ok(ticket) = Ticket::read(data) {
                assert!(!ticket.manifests.is_empty() && ticket.manifests.is_sorted_by(|a, b| a < b));
            }
        }
    }
});
