//! Offices of processes: founded, joined by address, folders shared and read, members that go and come and are cut off.

use crate::program::{Node, Place, until};
use common::error::Reason;
use common::status::from_status;
use proto::peer::v1 as peer;
use proto::v1;

fn everyone(right: v1::Right) -> v1::Grant {
    let principal = v1::Principal { kind: Some(v1::principal::Kind::Everyone(true)) };
    v1::Grant { principal: Some(principal), right: right as i32 }
}

async fn init(node: &Node, name: &str, person: &str) {
    let request = peer::InitOfficeRequest {
        office: "acme".into(),
        display_name: name.into(),
        person: person.into(),
        unit: "sales".into(),
    };
    let answer = node.client().init_office(request).await.unwrap().into_inner();
    assert_eq!(answer.node_name, format!("acme/sales/{name}"));
}

async fn join(node: &Node, by: &Node, name: &str, person: &str) {
    let invite = peer::CreateInviteRequest { unit: "sales".into(), ..Default::default() };
    let invite = by.client().create_invite(invite).await.unwrap().into_inner();
    assert!(invite.addresses.contains(&by.address()), "{invite:?}");
    let request = peer::JoinOfficeRequest {
        code: invite.code,
        address: by.address(),
        display_name: name.into(),
        person: person.into(),
    };
    let joined = node.client().join_office(request).await.unwrap().into_inner();
    assert_eq!((joined.office.as_str(), joined.node_name), ("acme", format!("acme/sales/{name}")));
}

async fn connected(node: &Node) -> u32 {
    node.client().get_status(peer::GetStatusRequest {}).await.unwrap().into_inner().connected_count
}

async fn list(node: &Node, address: &str) -> Result<Vec<peer::Item>, common::error::Error> {
    let request = peer::ListRequest { address: address.into(), ..Default::default() };
    node.client().list(request).await.map(|a| a.into_inner().items).map_err(|s| from_status(&s))
}

/// The names below an address, once they are these.
async fn lists(node: &Node, address: &str, wanted: &[&str]) {
    until(&format!("{address} lists {wanted:?}"), || async {
        let items = list(node, address).await.ok()?;
        let names: Vec<String> =
            items.iter().map(|i| i.address.rsplit('/').next().unwrap_or_default().to_owned()).collect();
        (names == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_code_alone_is_enough_where_the_others_are_found() {
    let founder = Place::new();
    let a = founder.start();
    init(&a, "anna-pc", "anna").await;
    let other = Place::new();
    let stranger = other.start();
    let seeded = Place::with_seeds(&[stranger.address(), a.address()]);
    let b = seeded.start();
    let invite = peer::CreateInviteRequest { person: "bert".into(), ..Default::default() };
    let code = a.client().create_invite(invite).await.unwrap().into_inner().code;
    let request = peer::JoinOfficeRequest { code, display_name: "bert-pc".into(), ..Default::default() };
    let joined = b.client().join_office(request).await.unwrap().into_inner();
    assert_eq!((joined.node_name.as_str(), joined.person.as_str()), ("acme/bert-pc", "bert"));
    let anna = until("the founder is there", || async {
        let answer = b.client().list_peers(peer::ListPeersRequest {}).await.unwrap().into_inner();
        answer.peers.into_iter().find(|p| p.person == "anna" && p.reach() == peer::peer::Reach::Both)
    })
    .await;
    assert_eq!((anna.node_name.as_str(), anna.address, anna.stranger), ("acme/sales/anna-pc", a.address(), false));
    assert!(anna.found_by.contains(&"seed".to_owned()), "{:?}", anna.found_by);
    assert!(anna.problem.is_none() && anna.last_seen_time.is_some());
}

#[tokio::test]
async fn founded_joined_by_address_shared_restarted_and_cut_off() {
    let (here, there) = (Place::new(), Place::new());
    let (a, b) = (here.start(), there.start());
    init(&a, "anna-pc", "anna").await;
    let wrong = peer::JoinOfficeRequest { code: "7-nonsense".into(), address: a.address(), ..Default::default() };
    let slip = from_status(&b.client().join_office(wrong).await.unwrap_err());
    assert!(slip.is(Reason::FieldInvalid), "{slip:?}");
    join(&b, &a, "bert-pc", "bert").await;
    until("both are connected", || async { (connected(&a).await == 1 && connected(&b).await == 1).then_some(()) })
        .await;
    let members = a.client().list_members(peer::ListMembersRequest {}).await.unwrap().into_inner().members;
    let people: Vec<&str> = members.iter().map(|m| m.person.as_str()).collect();
    assert_eq!(people, ["anna", "bert"]);

    let folder = here.folder("Plans", &[("a.txt", b"hello"), ("drawings/hall.dwg", b"hall")]);
    let request = peer::CreateShareRequest {
        path: folder.to_str().unwrap().into(),
        grants: vec![everyone(v1::Right::Read)],
        ..Default::default()
    };
    let share = a.client().create_share(request).await.unwrap().into_inner();
    assert_eq!(share.address, "acme/sales/anna-pc/plans");
    lists(&b, "", &["acme"]).await;
    lists(&b, "acme/sales", &["anna-pc", "bert-pc"]).await;
    lists(&b, "acme/sales/anna-pc", &["plans"]).await;
    lists(&b, "acme/sales/anna-pc/plans", &["a.txt", "drawings"]).await;
    std::fs::write(folder.join("b.txt"), b"new").unwrap();
    lists(&b, "acme/sales/anna-pc/plans", &["a.txt", "b.txt", "drawings"]).await;
    let unknown = list(&b, "acme/sales/anna-pc/nothing").await.unwrap_err();
    assert!(unknown.is(Reason::AddressUnknown), "{unknown:?}");

    let (code, log) = a.stop();
    assert_eq!(code, Some(0), "{log}");
    until("its end is noticed", || async { (connected(&b).await == 0).then_some(()) }).await;
    let a = here.start();
    // It listens at another port now, and says so to those whom it knows.
    until("it is there again", || async { (connected(&b).await == 1).then_some(()) }).await;
    lists(&b, "acme/sales/anna-pc/plans", &["a.txt", "b.txt", "drawings"]).await;

    let revoke = peer::RevokeMemberRequest { member: "bert-pc".into(), reason: "test".into() };
    assert!(a.client().revoke_member(revoke).await.unwrap().into_inner().revoked);
    until("the other one knows that it was cut off", || async {
        let status = b.client().get_status(peer::GetStatusRequest {}).await.unwrap().into_inner();
        status.revoked.then_some(())
    })
    .await;
    until("it is not connected any longer", || async { (connected(&a).await == 0).then_some(()) }).await;
    let refused = list(&b, "acme/sales/anna-pc/plans").await;
    assert!(refused.is_err() || refused.unwrap().is_empty(), "who was cut off sees nothing");
}
