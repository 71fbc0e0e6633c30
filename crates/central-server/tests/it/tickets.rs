//! Read tickets: who gets one, and what is in it.

use crate::desk::{Desk, is, path};
use crate::server::TestServer;
use central_server::app::caller::Caller;
use central_server::app::directories::{self, PrincipalName};
use central_server::app::tickets::{self, Issued};
use common::error::{Reason, Result};
use common::identity::DeviceKey;
use common::model::{DeviceId, EntryPath, RootName};
use common::ticket::Ticket;
use proto::record::v1 as record;
use proto::v1;
use proto::v1::file_service_client::FileServiceClient;

async fn join(desk: &Desk, revoked: bool) -> DeviceId {
    let id = DeviceKey::generate().device_id();
    let device = record::Device { id: id.to_string(), display_name: "pc".into(), revoked, ..Default::default() };
    let key = central_server::app::records::device_key(&device.id);
    let put = move |txn: &mut common::store::Txn<'_>| central_server::app::records::save(txn, &key, &device);
    desk.app.store.transact(put).await.unwrap();
    id
}

fn paths(all: &[&str]) -> Vec<Result<EntryPath>> {
    all.iter().map(|p| Ok(path(p))).collect()
}

async fn issue(desk: &Desk, who: &Caller, all: &[&str], device: &DeviceId) -> Result<Issued> {
    tickets::issue(&desk.app, who, paths(all), &device.0).await
}

fn read(desk: &Desk, issued: &Issued, device: &DeviceId) -> Ticket {
    let (ca, now) = (desk.app.office.ca.ca_pem(), desk.app.clock.now_ms());
    Ticket::verify(ca, &issued.ticket, &issued.signature, device, now).unwrap()
}

#[tokio::test]
async fn a_ticket_names_what_its_caller_may_read_and_nothing_else() {
    let desk = Desk::new().await;
    let device = join(&desk, false).await;
    let plan = desk.file("public:plans/a", b"plan").await;
    let mine = desk.file("home:b", b"mine").await;
    desk.dir("public:plans/d").await;
    let all = ["public:plans/a", "home/anna:b", "public:plans/d", "public:plans/none", "public:board/x"];
    let issued = issue(&desk, &desk.anna, &all, &device).await.unwrap();
    let outcome: Vec<String> =
        issued.items.iter().map(|i| i.as_ref().map_or_else(|e| e.reason().to_owned(), |_| "OK".into())).collect();
    assert_eq!(outcome, ["OK", "OK", "IS_A_DIRECTORY", "ENTRY_UNKNOWN", "ACCESS_DENIED"]);
    let ticket = read(&desk, &issued, &device);
    assert_eq!((ticket.device, ticket.office.as_str(), ticket.manifests.len()), (device, "office", 2));
    assert!(ticket.covers(&plan.manifest_digest.unwrap()) && ticket.covers(&mine.manifest_digest.unwrap()));
    assert_eq!(ticket.expire_ms, desk.app.clock.now_ms() + 24 * 3600 * 1000);

    // Bert may read the plan, and not what is anna's.
    let issued = issue(&desk, &desk.bert, &all[..2], &device).await.unwrap();
    assert!(
        issued.items[0].is_ok() && issued.items[1].as_ref().is_err_and(|e| e.kind() != common::error::Kind::Internal)
    );
    assert_eq!(read(&desk, &issued, &device).manifests, [plan.manifest_digest.unwrap()]);
    let nothing = issue(&desk, &desk.bert, &all[1..2], &device).await.unwrap();
    assert!(nothing.ticket.is_empty() && nothing.signature.is_empty());
}

#[tokio::test]
async fn who_has_lost_the_right_gets_no_new_ticket() {
    let desk = Desk::new().await;
    let device = join(&desk, false).await;
    desk.file("public:cases/a", b"case").await;
    assert!(issue(&desk, &desk.bert, &["public:cases/a"], &device).await.unwrap().items[0].is_ok());
    let (cases, bert) = (RootName::parse("public/cases").unwrap(), PrincipalName::User("bert".into()));
    directories::revoke(&desk.app, &desk.anna, cases, bert).await.unwrap();
    let after = issue(&desk, &desk.bert, &["public:cases/a"], &device).await.unwrap();
    assert!(after.items[0].is_err() && after.ticket.is_empty());
}

#[tokio::test]
async fn tickets_are_for_machines_of_the_office_and_a_machine_asks_for_itself() {
    let desk = Desk::new().await;
    let (one, other, gone) = (join(&desk, false).await, join(&desk, false).await, join(&desk, true).await);
    desk.file("public:plans/a", b"plan").await;
    let all = ["public:plans/a"];
    is(issue(&desk, &desk.anna, &all, &gone).await, Reason::DeviceUnknown);
    is(issue(&desk, &desk.anna, &all, &DeviceId([7; 32])).await, Reason::DeviceUnknown);
    let from_one = Caller { device: Some(one), ..desk.anna.clone() };
    is(issue(&desk, &from_one, &all, &other).await, Reason::AccessDenied);
    issue(&desk, &from_one, &all, &one).await.unwrap();
    is(tickets::issue(&desk.app, &desk.anna, paths(&all), b"short").await, Reason::FieldInvalid);
    is(tickets::issue(&desk.app, &desk.anna, vec![], &one.0).await, Reason::FieldInvalid);
    let many = (0..1_001).map(|_| Ok(path(all[0]))).collect();
    is(tickets::issue(&desk.app, &desk.anna, many, &one.0).await, Reason::FieldInvalid);
    // A thousand times the same file is one content.
    let same = (0..1_000).map(|_| Ok(path(all[0]))).collect();
    let issued = tickets::issue(&desk.app, &desk.anna, same, &one.0).await.unwrap();
    assert_eq!((issued.items.len(), read(&desk, &issued, &one).manifests.len()), (1_000, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_method_answers_over_the_wire() {
    let server = TestServer::start().await;
    let device = server.join().await;
    let connection = server.user("anna", common::model::Role::Member).await;
    let request = v1::IssueReadTicketRequest {
        paths: vec![v1::Path { root: "home".into(), path: "none".into() }, v1::Path::default()],
        device_id: device.key.device_id().0.to_vec().into(),
    };
    let answer = FileServiceClient::new(connection.control()).issue_read_ticket(request).await.unwrap().into_inner();
    let reasons: Vec<String> = answer
        .items
        .into_iter()
        .map(|i| match i.result {
            Some(v1::ticket_item::Result::Error(e)) => e.reason,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(reasons, ["ENTRY_UNKNOWN", "PATH_INVALID"]);
    assert!(answer.ticket.is_empty());
    drop(connection);
    server.stop().await;
}
