//! Who may do what with a device, over the service as other nodes call it.

use crate::catalogue_office::Office;
use crate::devices_office::{DeviceNode, member, noise, to, why};
use common::error::Reason;
use common::identity::DeviceKey;
use common::model::{DeviceId, Right};
use common::status::from_status;
use device::printer::pages::pdf;
use prost::Message;
use proto::peer::v1 as wire;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use uuid::Uuid;

/// The right that a call needs, the kind of device it is about, and what it says to whoever has the right: nothing if it
/// succeeds, else what is missing apart from the right.
fn rule(method: &str) -> (Right, &'static str, Option<Reason>) {
    use Reason::{DiscFormatUnknown, LeaseLost, PrintJobUnknown, SpaceUnknown};
    match method {
        "AcquireLease" => (Right::Write, "drives", None),
        "RenewLease" => (Right::Read, "drives", Some(LeaseLost)),
        "ReleaseLease" => (Right::See, "drives", None),
        "RequestDevice" => (Right::Read, "drives", None),
        "Print" => (Right::Write, "printers", None),
        "ListPrintJobs" => (Right::Read, "printers", None),
        "ControlPrintJob" => (Right::Read, "printers", Some(PrintJobUnknown)),
        "ControlPrinter" => (Right::Manage, "printers", None),
        "ReadDisc" => (Right::Read, "drives", None),
        "ListDisc" | "ReadDiscFile" => (Right::Read, "drives", Some(DiscFormatUnknown)),
        "ControlDrive" => (Right::Write, "drives", None),
        "BorrowSpace" => (Right::Write, "disks", None),
        "RenewSpace" | "PutObject" | "PutSealed" | "CommitGeneration" => (Right::Write, "disks", Some(SpaceUnknown)),
        "ListSpaces" => (Right::See, "disks", None),
        "ReturnSpace" | "GetObject" | "ListObjects" | "DeleteObject" | "ListMissing" | "GetSealed" | "ListSealed"
        | "ListGenerations" | "RetireSealed" | "ProveObjects" => (Right::See, "disks", Some(SpaceUnknown)),
        other => panic!("{other} has no authorization test"),
    }
}

/// Those that are about no device in particular.
const GENERAL: [&str; 3] = ["ListDevices", "WatchDevices", "ReadKeptBlock"];

/// The first message of an answer decides.
async fn first<T>(answer: Result<tonic::Response<tonic::Streaming<T>>, Status>) -> Result<(), Status> {
    answer?.into_inner().message().await.map(drop)
}

/// Calls one method about a device, with everything else as it should be.
async fn call(node: &DeviceNode, from: DeviceId, method: &str, device: &str, space: &[u8]) -> Result<(), Status> {
    let mut c = node.client(from);
    let device = device.to_owned();
    let space_id: bytes::Bytes = space.to_vec().into();
    let id = || bytes::Bytes::from(Uuid::new_v4().as_bytes().to_vec());
    let object_ids = || vec![bytes::Bytes::from(vec![3; 32])];
    let parts = |parts| tokio_stream::iter(parts);
    match method {
        "AcquireLease" => {
            let (mode, request_id) = (wire::LeaseMode::Exclusive as i32, id());
            let r = wire::AcquireLeaseRequest { device: device.clone(), mode, request_id, ..Default::default() };
            let lease = c.acquire_lease(r).await?.into_inner();
            let lease_id = lease.lease_id;
            c.release_lease(wire::ReleaseLeaseRequest { device, lease_id }).await.map(drop)
        }
        "RenewLease" => c.renew_lease(wire::RenewLeaseRequest { device, lease_id: id() }).await.map(drop),
        "ReleaseLease" => c.release_lease(wire::ReleaseLeaseRequest { device, lease_id: id() }).await.map(drop),
        "RequestDevice" => {
            c.request_device(wire::RequestDeviceRequest { device, text: "please".into() }).await.map(drop)
        }
        "Print" => c.print(tokio_stream::iter(document(&device, id(), &pdf::sample(1, "hello")))).await.map(drop),
        "ListPrintJobs" => {
            c.list_print_jobs(wire::ListPrintJobsRequest { device, ..Default::default() }).await.map(drop)
        }
        "ControlPrintJob" => {
            let verb = wire::PrintJobVerb::Cancel as i32;
            let r = wire::ControlPrintJobRequest { device, job_id: 999, verb, ..Default::default() };
            c.control_print_job(r).await.map(drop)
        }
        "ControlPrinter" => {
            let r = wire::ControlPrinterRequest { device, paused: Some(false), ..Default::default() };
            c.control_printer(r).await.map(drop)
        }
        "ReadDisc" => {
            let generation = node.generation("drives/dvd", 0).await;
            first(c.read_disc(wire::ReadDiscRequest { device, generation, length: 2048, ..Default::default() }).await)
                .await
        }
        "ListDisc" => c.list_disc(wire::ListDiscRequest { device, ..Default::default() }).await.map(drop),
        "ReadDiscFile" => {
            let r = wire::ReadDiscFileRequest { device, path: "a".into(), ..Default::default() };
            first(c.read_disc_file(r).await).await
        }
        "ControlDrive" => {
            let verb = wire::DriveVerb::Close as i32;
            c.control_drive(wire::ControlDriveRequest { device, verb, ..Default::default() }).await.map(drop)
        }
        "BorrowSpace" => {
            let kind = wire::SpaceKind::Scratch as i32;
            let r = wire::BorrowSpaceRequest { device, kind, size_bytes: 4096, request_id: id(), ..Default::default() };
            c.borrow_space(r).await.map(drop)
        }
        "RenewSpace" => c.renew_space(wire::RenewSpaceRequest { device, space_id, seconds: 60 }).await.map(drop),
        "ReturnSpace" => c.return_space(wire::ReturnSpaceRequest { device, space_id }).await.map(drop),
        "ListSpaces" => c.list_spaces(wire::ListSpacesRequest { device }).await.map(drop),
        "PutObject" => c.put_object(tokio_stream::iter(object(&device, space_id, b"data"))).await.map(drop),
        "GetObject" => {
            let r = wire::GetObjectRequest { device, space_id, name: "a".into(), offset: 0 };
            first(c.get_object(r).await).await
        }
        "ListObjects" => {
            c.list_objects(wire::ListObjectsRequest { device, space_id, ..Default::default() }).await.map(drop)
        }
        "DeleteObject" => {
            c.delete_object(wire::DeleteObjectRequest { device, space_id, name: "a".into() }).await.map(drop)
        }
        "ListMissing" => {
            c.list_missing(wire::ListMissingRequest { device, space_id, object_ids: object_ids() }).await.map(drop)
        }
        "PutSealed" => {
            use wire::put_sealed_request::Part;
            let all = [
                Part::Header(wire::PutSealedHeader { device, space_id }),
                Part::Start(wire::SealedStart { object_id: vec![3; 32].into(), size_bytes: 4 }),
                Part::Data(b"data".to_vec().into()),
            ];
            let all = all.map(|part| wire::PutSealedRequest { part: Some(part) });
            c.put_sealed(parts(all.to_vec())).await.map(drop)
        }
        "GetSealed" => {
            first(c.get_sealed(wire::GetSealedRequest { device, space_id, object_id: vec![3; 32].into() }).await).await
        }
        "ListSealed" => {
            c.list_sealed(wire::ListSealedRequest { device, space_id, ..Default::default() }).await.map(drop)
        }
        "CommitGeneration" => {
            let r = wire::CommitGenerationRequest { device, space_id, generation: 9, root: b"root".to_vec().into() };
            c.commit_generation(r).await.map(drop)
        }
        "ListGenerations" => c.list_generations(wire::ListGenerationsRequest { device, space_id }).await.map(drop),
        "RetireSealed" => {
            c.retire_sealed(wire::RetireSealedRequest { device, space_id, object_ids: object_ids() }).await.map(drop)
        }
        "ProveObjects" => {
            let nonce = vec![1; 32].into();
            let r = wire::ProveObjectsRequest { device, space_id, nonce, object_ids: object_ids() };
            c.prove_objects(r).await.map(drop)
        }
        "ListDevices" => c.list_devices(wire::ListDevicesRequest {}).await.map(drop),
        "WatchDevices" => first(c.watch_devices(wire::WatchDevicesRequest {}).await).await,
        "ReadKeptBlock" => {
            let (owner, digest) = (vec![1; 32].into(), vec![2; 32].into());
            let r = wire::ReadKeptBlockRequest { owner, device, generation: 1, block: 0, digest };
            let kept = c.read_kept_block(r).await?.into_inner();
            assert!(kept.data.is_empty());
            Ok(())
        }
        other => panic!("{other} has no authorization test"),
    }
}

/// The messages of a document.
pub fn document(device: &str, request_id: bytes::Bytes, data: &[u8]) -> Vec<wire::PrintRequest> {
    use wire::print_request::Part;
    let header = wire::PrintHeader { device: device.into(), job_name: "a".into(), request_id, ..Default::default() };
    let parts = data.chunks(1 << 20).map(|d| Part::Data(d.to_vec().into()));
    std::iter::once(Part::Header(header)).chain(parts).map(|p| wire::PrintRequest { part: Some(p) }).collect()
}

/// The messages of an object.
pub fn object(device: &str, space_id: bytes::Bytes, data: &[u8]) -> Vec<wire::PutObjectRequest> {
    use wire::put_object_request::Part;
    let digest = blake3::hash(data).as_bytes().to_vec().into();
    let (device, size_bytes) = (device.to_owned(), data.len() as u64);
    let header = wire::PutObjectHeader { device, space_id, name: "a".into(), size_bytes, digest, offset: 0 };
    let parts = data.chunks(1 << 20).map(|d| Part::Data(d.to_vec().into()));
    std::iter::once(Part::Header(header)).chain(parts).map(|p| wire::PutObjectRequest { part: Some(p) }).collect()
}

fn methods() -> BTreeSet<String> {
    let set = prost_types::FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
    let services = set.file.iter().filter(|f| f.package() == "atrium.peer.v1").flat_map(|f| &f.service);
    let methods = services.filter(|s| s.name() == "DeviceService").flat_map(|s| &s.method);
    methods.map(|m| m.name().to_owned()).collect()
}

/// A node with a device of each kind, and members with each right.
async fn world(office: &Arc<Office>) -> (DeviceNode, [(DeviceId, Option<Right>); 5]) {
    let anna = DeviceNode::new(office, "acme/anna-pc", "anna").await;
    let rights = [
        ("dora", None),
        ("sam", Some(Right::See)),
        ("rita", Some(Right::Read)),
        ("will", Some(Right::Write)),
        ("mona", Some(Right::Manage)),
    ];
    let grants: Vec<_> = rights.iter().filter_map(|(person, right)| right.map(|r| to(person, r))).collect();
    anna.share("las", anna.folder_printer("printed"), &grants).await.unwrap();
    anna.share("dvd", anna.drive_with(&noise(8 << 20)), &grants).await.unwrap();
    anna.share("big", anna.disk("lent"), &grants).await.unwrap();
    anna.generation("drives/dvd", 0).await;
    (anna, rights.map(|(person, right)| (member(office, person), right)))
}

fn named(kind: &str) -> &'static str {
    match kind {
        "printers" => "printers/las",
        "drives" => "drives/dvd",
        _ => "disks/big",
    }
}

/// The same answer with one name in the place of another of the same length.
fn renamed(status: &Status, from: &str, to: &str) -> (String, Vec<u8>) {
    let details = status.details().to_vec();
    let mut out = Vec::new();
    let mut rest = &details[..];
    while let Some(first) = rest.first() {
        match rest.strip_prefix(from.as_bytes()) {
            Some(behind) => {
                out.extend_from_slice(to.as_bytes());
                rest = behind;
            }
            None => {
                out.push(*first);
                rest = &rest[1..];
            }
        }
    }
    (status.message().replace(from, to), out)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_asks_for_rights_first() {
    let office = Office::new();
    let (anna, people) = world(&office).await;
    let stranger = DeviceKey::generate().device_id();
    let methods = methods();
    assert_eq!(methods.len(), 31);
    for method in methods.iter().filter(|m| !GENERAL.contains(&m.as_str())) {
        let (needed, kind, missing) = rule(method);
        let device = named(kind);
        for (who, right) in people.iter().copied().chain([(anna.id(), Some(Right::Manage))]) {
            let answer = call(&anna, who, method, device, &[5; 16]).await;
            match right {
                Some(right) if right >= needed => match (missing, answer) {
                    (None, answer) => answer.unwrap_or_else(|e| panic!("{method} {right:?}: {e:?}")),
                    (Some(reason), answer) => {
                        let error = why(answer);
                        assert!(error.is(reason), "{method} {right:?}: {error:?}");
                    }
                },
                Some(right) => {
                    let error = why(answer);
                    assert!(error.is(Reason::AccessDenied), "{method} {right:?}: {error:?}");
                }
                None => {
                    // What one may not see is answered like what does not exist: the same words and details.
                    let nowhere = format!("{kind}/zzz");
                    let unseen = answer.expect_err(method);
                    let nothing = call(&anna, who, method, &nowhere, &[5; 16]).await.expect_err(method);
                    assert!(from_status(&unseen).is(Reason::ResourceUnknown), "{method}: {unseen:?}");
                    assert_eq!(unseen.code(), nothing.code(), "{method}");
                    assert_eq!(renamed(&nothing, &nowhere, device), renamed(&unseen, &nowhere, device), "{method}");
                    // In other letters, neither.
                    let other = device.to_uppercase().replace(&kind.to_uppercase(), kind);
                    let unseen = call(&anna, who, method, &other, &[5; 16]).await.expect_err(method);
                    assert_eq!(renamed(&nothing, &nowhere, &other), renamed(&unseen, &nowhere, &other), "{method}");
                }
            }
        }
        let strange = why(call(&anna, stranger, method, device, &[5; 16]).await);
        assert!(strange.is(Reason::NotAMember), "{method}: a stranger: {strange:?}");
    }
    for method in GENERAL {
        call(&anna, people[0].0, method, "drives/dvd", &[]).await.unwrap();
        assert!(why(call(&anna, stranger, method, "drives/dvd", &[]).await).is(Reason::NotAMember), "{method}");
    }
    for (who, right) in people {
        let seen = anna.client(who).list_devices(wire::ListDevicesRequest {}).await.unwrap().into_inner().devices;
        assert_eq!(seen.len(), if right.is_some() { 3 } else { 0 }, "{right:?}");
        assert!(seen.iter().all(|d| Right::from_number(d.right) == right), "{right:?}");
    }
    // Cut off: everything ends at once, although the grants are still there.
    office.change(|m| m.revoked.extend(people.map(|(who, _)| who)));
    for method in &methods {
        let device = if GENERAL.contains(&method.as_str()) { "drives/dvd" } else { named(rule(method).1) };
        for (who, _) in people {
            let error = why(call(&anna, who, method, device, &[5; 16]).await);
            assert!(error.is(Reason::NotAMember), "{method}: cut off: {error:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_cut_off_in_the_middle_of_a_call_gets_no_further() {
    let office = Office::new();
    let (anna, people) = world(&office).await;
    let [.., (will, _), (mona, _)] = people;
    let generation = anna.generation("drives/dvd", 0).await;
    let mut client = anna.client(will);
    let request_id = bytes::Bytes::from(vec![8; 16]);
    let (device, kind) = ("disks/big".to_owned(), wire::SpaceKind::Scratch as i32);
    let borrow = wire::BorrowSpaceRequest { device, kind, size_bytes: 16 << 20, request_id, ..Default::default() };
    let space = client.borrow_space(borrow).await.unwrap().into_inner().space_id;
    let content = noise(8 << 20);
    client.put_object(tokio_stream::iter(object("disks/big", space.clone(), &content))).await.unwrap();

    let device = "drives/dvd".to_owned();
    let read = wire::ReadDiscRequest { device, generation, length: 8 << 20, ..Default::default() };
    let mut disc = client.read_disc(read).await.unwrap().into_inner();
    disc.message().await.unwrap().unwrap();
    let (device, space_id) = ("disks/big".to_owned(), space.clone());
    let get = wire::GetObjectRequest { device, space_id, name: "a".into(), offset: 0 };
    let mut got = client.get_object(get).await.unwrap().into_inner();
    got.message().await.unwrap().unwrap();
    let mut news = client.watch_devices(wire::WatchDevicesRequest {}).await.unwrap().into_inner();
    assert_eq!(news.message().await.unwrap().unwrap().devices.len(), 3);
    let mut others = anna.client(mona).watch_devices(wire::WatchDevicesRequest {}).await.unwrap().into_inner();
    assert_eq!(others.message().await.unwrap().unwrap().devices.len(), 3);
    // A document and an object that are on their way.
    let (to_print, pages) = tokio::sync::mpsc::channel(1);
    let (to_put, parts) = tokio::sync::mpsc::channel(1);
    let (mut printing, mut putting) = (anna.client(will), anna.client(will));
    let printing = tokio::spawn(async move { printing.print(ReceiverStream::new(pages)).await });
    let putting = tokio::spawn(async move { putting.put_object(ReceiverStream::new(parts)).await });
    let mut document = document("printers/las", bytes::Bytes::new(), &pdf::sample(1, "secret"));
    let last = document.pop().unwrap();
    for message in document {
        to_print.send(message).await.unwrap();
    }
    let other = noise(3 << 20);
    let mut other = object("disks/big", space, &other).into_iter();
    to_put.send(other.next().unwrap()).await.unwrap();
    to_put.send(other.next().unwrap()).await.unwrap();

    office.change(|m| m.revoked.extend([will]));
    let _ = to_print.send(last).await;
    drop(to_print);
    for message in other {
        let _ = to_put.send(message).await;
    }
    drop(to_put);
    assert!(why(printing.await.unwrap()).is(Reason::NotAMember));
    assert!(why(putting.await.unwrap()).is(Reason::NotAMember));
    let mut more = 0;
    let ended = loop {
        match disc.message().await {
            Ok(part) => more += part.expect("it went on to the end").data.len(),
            Err(status) => break status,
        }
    };
    assert!(more <= 2 << 20 && from_status(&ended).is(Reason::NotAMember), "{more}: {ended:?}");
    let mut more = 0;
    let ended = loop {
        match got.message().await {
            Ok(part) => more += part.expect("it went on to the end").data.len(),
            Err(status) => break status,
        }
    };
    assert!(more <= 2 << 20 && from_status(&ended).is(Reason::NotAMember), "{more}: {ended:?}");
    // The watcher hears of it although no device has changed; nobody else's watch ends.
    assert!(why(news.message().await).is(Reason::NotAMember));
    let jobs = wire::ListPrintJobsRequest { device: "printers/las".into(), ended: true, limit: 0 };
    assert!(anna.client(mona).list_print_jobs(jobs).await.unwrap().into_inner().jobs.is_empty());
    assert_eq!(std::fs::read_dir(anna.machine.folder("printed")).unwrap().count(), 0);
}
