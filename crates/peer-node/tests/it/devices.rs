//! Devices of several nodes together.

use crate::catalogue_office::{Office, caller};
use crate::devices_office::{DeviceNode, broken_call, liar, member, noise, path_text, printer_to, to, why};
use crate::devices_rights::{document, object};
use common::error::Reason;
use common::model::Right;
use device::ipp::Trust;
use device::printer::pages::pdf;
use device::printer::service::{Open, Service, ServiceOptions};
use device::printer::{Destination, Options, PrinterConfig, Printers};
use peer_node::devices::Side;
use proto::peer::v1 as wire;
use proto::peer::v1::printer_output::Kind as Output;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

fn id() -> bytes::Bytes {
    Uuid::new_v4().as_bytes().to_vec().into()
}

async fn print(
    client: &mut crate::devices_office::Client,
    messages: Vec<wire::PrintRequest>,
) -> Result<wire::PrintJob, tonic::Status> {
    client.print(tokio_stream::iter(messages)).await.map(tonic::Response::into_inner)
}

async fn jobs(client: &mut crate::devices_office::Client, device: &str) -> Vec<wire::PrintJob> {
    let request = wire::ListPrintJobsRequest { device: device.into(), ended: true, limit: 0 };
    client.list_print_jobs(request).await.unwrap().into_inner().jobs
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_member_borrows_is_no_other_members() {
    let office = Office::new();
    let anna = DeviceNode::new(&office, "acme/anna-pc", "anna").await;
    let (ben, carla) = (member(&office, "ben"), member(&office, "carla"));
    anna.share("big", anna.disk("lent"), &[to("ben", Right::Write), to("carla", Right::Write)]).await.unwrap();
    for kind in [wire::SpaceKind::Scratch, wire::SpaceKind::Mirror] {
        let (mut his, mut hers) = (anna.client(ben), anna.client(carla));
        let device = || "disks/big".to_owned();
        let request_id = id();
        let kind = kind as i32;
        let borrow =
            wire::BorrowSpaceRequest { device: device(), kind, size_bytes: 1 << 20, request_id, ..Default::default() };
        let space_id = his.borrow_space(borrow.clone()).await.unwrap().into_inner().space_id;
        assert_eq!(his.borrow_space(borrow.clone()).await.unwrap().into_inner().space_id, space_id, "a repeat");
        assert!(why(hers.borrow_space(borrow).await).is(Reason::FieldInvalid), "the same id is not the same space");
        if kind == wire::SpaceKind::Scratch as i32 {
            his.put_object(tokio_stream::iter(object("disks/big", space_id.clone(), b"mine"))).await.unwrap();
        }
        let listed = |c: &mut crate::devices_office::Client| {
            let mut c = c.clone();
            async move {
                c.list_spaces(wire::ListSpacesRequest { device: "disks/big".into() }).await.unwrap().into_inner().spaces
            }
        };
        assert!(listed(&mut his).await.iter().any(|s| s.space_id == space_id));
        assert!(listed(&mut hers).await.is_empty());
        let space = || space_id.clone();
        let ids = || vec![bytes::Bytes::from(vec![3; 32])];
        let get = wire::GetObjectRequest { device: device(), space_id: space(), name: "a".into(), offset: 0 };
        let sealed = wire::GetSealedRequest { device: device(), space_id: space(), object_id: vec![3; 32].into() };
        let root =
            wire::CommitGenerationRequest { device: device(), space_id: space(), generation: 1, root: vec![1].into() };
        let prove = wire::ProveObjectsRequest {
            device: device(),
            space_id: space(),
            nonce: vec![1; 32].into(),
            object_ids: ids(),
        };
        use wire::put_sealed_request::Part;
        let put = [
            Part::Header(wire::PutSealedHeader { device: device(), space_id: space() }),
            Part::Start(wire::SealedStart { object_id: vec![3; 32].into(), size_bytes: 1 }),
            Part::Data(vec![1].into()),
        ];
        let put = put.map(|part| wire::PutSealedRequest { part: Some(part) }).to_vec();
        let refused = [
            why(hers.renew_space(wire::RenewSpaceRequest { device: device(), space_id: space(), seconds: 60 }).await),
            why(hers.return_space(wire::ReturnSpaceRequest { device: device(), space_id: space() }).await),
            why(hers.put_object(tokio_stream::iter(object("disks/big", space(), b"hers"))).await),
            why(hers.get_object(get).await),
            why(hers
                .list_objects(wire::ListObjectsRequest { device: device(), space_id: space(), ..Default::default() })
                .await),
            why(hers
                .delete_object(wire::DeleteObjectRequest { device: device(), space_id: space(), name: "a".into() })
                .await),
            why(hers
                .list_missing(wire::ListMissingRequest { device: device(), space_id: space(), object_ids: ids() })
                .await),
            why(hers.put_sealed(tokio_stream::iter(put)).await),
            why(hers.get_sealed(sealed).await),
            why(hers
                .list_sealed(wire::ListSealedRequest { device: device(), space_id: space(), ..Default::default() })
                .await),
            why(hers.commit_generation(root).await),
            why(hers.list_generations(wire::ListGenerationsRequest { device: device(), space_id: space() }).await),
            why(hers
                .retire_sealed(wire::RetireSealedRequest { device: device(), space_id: space(), object_ids: ids() })
                .await),
            why(hers.prove_objects(prove).await),
        ];
        for (at, error) in refused.iter().enumerate() {
            assert!(error.is(Reason::SpaceUnknown), "{at} of {kind}: {error:?}");
        }
        assert!(listed(&mut his).await.iter().any(|s| s.space_id == space_id), "still there");
    }
    // Who lost the right to borrow still gets what is his; who never had anything hears of no disk.
    anna.share("big", anna.disk("lent"), &[]).await.unwrap();
    let spaces = anna.client(ben).list_spaces(wire::ListSpacesRequest { device: "disks/big".into() }).await.unwrap();
    assert_eq!(spaces.into_inner().spaces.len(), 2);
    let unseen = anna.client(carla).list_spaces(wire::ListSpacesRequest { device: "disks/big".into() }).await;
    assert!(why(unseen).is(Reason::ResourceUnknown));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lent_is_not_put_out_of_reach() {
    let office = Office::new();
    let anna = DeviceNode::new(&office, "acme/anna-pc", "anna").await;
    let ben = member(&office, "ben");
    let grants = [to("ben", Right::Write)];
    anna.share("big", anna.disk("lent"), &grants).await.unwrap();
    let kind = wire::SpaceKind::Scratch as i32;
    let device = "disks/big".to_owned();
    let borrow = wire::BorrowSpaceRequest { device, kind, size_bytes: 4096, request_id: id(), ..Default::default() };
    anna.client(ben).borrow_space(borrow.clone()).await.unwrap();
    let moved = anna.share("big", anna.disk("elsewhere"), &grants).await.unwrap_err();
    assert!(moved.is(Reason::ResourceBusy), "{moved:?}");
    assert!(anna.devices.unshare("disks/big", false, false).await.unwrap_err().is(Reason::ResourceBusy));
    // Everything is as before, also for new borrowers.
    let request_id = id();
    anna.client(ben).borrow_space(wire::BorrowSpaceRequest { request_id, ..borrow.clone() }).await.unwrap();
    let ask = wire::ListSpacesRequest { device: "disks/big".into() };
    assert_eq!(anna.client(ben).list_spaces(ask.clone()).await.unwrap().into_inner().spaces.len(), 2);

    // Its disk is away at the start: nothing begins anew in its place, and it is not forgotten.
    let (lent, away) = (anna.machine.dir.path().join("lent"), anna.machine.dir.path().join("away"));
    std::fs::rename(&lent, &away).unwrap();
    std::fs::create_dir(&lent).unwrap();
    let anna = anna.restart().await;
    let devices = anna.client(ben).list_devices(wire::ListDevicesRequest {}).await.unwrap().into_inner().devices;
    assert_eq!(devices[0].state, "away");
    assert_eq!(std::fs::read_dir(&lent).unwrap().count(), 0);
    assert!(why(anna.client(ben).list_spaces(ask.clone()).await).is(Reason::DeviceAway));
    assert!(anna.devices.unshare("disks/big", false, false).await.unwrap_err().is(Reason::DeviceAway));
    std::fs::remove_dir(&lent).unwrap();
    std::fs::rename(&away, &lent).unwrap();
    anna.share("big", anna.disk("lent"), &grants).await.unwrap();
    assert_eq!(anna.client(ben).list_spaces(ask).await.unwrap().into_inner().spaces.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_its_holders_while_it_lasts() {
    let office = Office::new();
    let anna = DeviceNode::new(&office, "acme/anna-pc", "anna").await;
    let (ben, carla, mona) = (member(&office, "ben"), member(&office, "carla"), member(&office, "mona"));
    let grants = |ben| [to("ben", ben), to("carla", Right::Write), to("mona", Right::Manage)];
    let drive = anna.drive_with(&noise(4096));
    anna.share("dvd", drive.clone(), &grants(Right::Write)).await.unwrap();
    anna.generation("drives/dvd", 0).await;
    let device = || "drives/dvd".to_owned();
    let ask = || {
        let (mode, request_id) = (wire::LeaseMode::Exclusive as i32, id());
        wire::AcquireLeaseRequest { device: device(), mode, request_id, ..Default::default() }
    };
    let eject = |lease: &wire::Lease| {
        let (fencing_token, lease_id) = (lease.fencing_token, lease.lease_id.clone());
        let verb = wire::DriveVerb::Eject as i32;
        wire::ControlDriveRequest { device: device(), verb, fencing_token, lease_id, ..Default::default() }
    };
    let (mut his, mut hers) = (anna.client(ben), anna.client(carla));
    let first = his.acquire_lease(ask()).await.unwrap().into_inner();
    // Nobody else with it, without it, or with parts of it.
    assert!(why(hers.control_drive(eject(&wire::Lease::default())).await).is(Reason::ResourceBusy));
    let stolen = why(hers.control_drive(eject(&first)).await);
    assert!(stolen.is(Reason::LeaseLost) || stolen.is(Reason::LeaseUnknown), "{stolen:?}");
    let mixed = wire::Lease { lease_id: id(), ..first.clone() };
    assert!(why(his.control_drive(eject(&mixed)).await).is(Reason::LeaseLost));
    let given = first.lease_id.clone();
    let lease_id = || given.clone();
    assert!(hers.renew_lease(wire::RenewLeaseRequest { device: device(), lease_id: lease_id() }).await.is_err());
    let one = wire::ReleaseLeaseRequest { device: device(), lease_id: lease_id() };
    assert!(why(hers.release_lease(one.clone()).await).is(Reason::AccessDenied), "it is another's");
    assert!(why(hers.acquire_lease(ask()).await).is(Reason::ResourceBusy), "it was not released by another");
    // Whoever manages the drive finds its id and takes that one back; its holder hears by whom.
    let mut manager = anna.client(mona);
    let seen = manager.list_devices(wire::ListDevicesRequest {}).await.unwrap().into_inner().devices;
    assert_eq!(seen[0].leases.len(), 1);
    assert_eq!((&seen[0].leases[0].lease_id, seen[0].leases[0].holder.as_str()), (&first.lease_id, "ben at ben-pc"));
    let seen = hers.list_devices(wire::ListDevicesRequest {}).await.unwrap().into_inner().devices;
    assert_eq!(seen[0].leases, [], "nobody else is told ids");
    for _ in 0..2 {
        manager.release_lease(one.clone()).await.unwrap();
    }
    let lost = why(his.renew_lease(wire::RenewLeaseRequest { device: device(), lease_id: lease_id() }).await);
    assert!(lost.is(Reason::LeaseLost) && lost.why().contains("mona has taken it back"), "{lost:?}");
    let audit = anna.own().read_device_audit(wire::ReadDeviceAuditRequest::default()).await.unwrap().into_inner();
    let lines = |person: &str, granted| {
        let of = |r: &&wire::DeviceAuditRecord| r.verb == "take-back" && r.person == person && r.granted == granted;
        audit.records.iter().filter(of).count()
    };
    assert_eq!((lines("mona", true), lines("carla", false)), (1, 1), "{:?}", audit.records);
    let first = his.acquire_lease(ask()).await.unwrap().into_inner();
    let all = wire::ReleaseLeaseRequest { device: device(), lease_id: bytes::Bytes::new() };
    assert!(why(hers.release_lease(all.clone()).await).is(Reason::AccessDenied));
    // Taken back: the old token is refused, whoever has the drive now.
    anna.client(mona).release_lease(all).await.unwrap();
    assert!(why(his.control_drive(eject(&first)).await).is(Reason::LeaseLost));
    let second = hers.acquire_lease(ask()).await.unwrap().into_inner();
    assert!(second.fencing_token > first.fencing_token);
    assert!(why(his.control_drive(eject(&first)).await).is(Reason::LeaseLost));
    let mixed = wire::Lease { fencing_token: second.fencing_token, ..first.clone() };
    assert!(why(his.control_drive(eject(&mixed)).await).is(Reason::LeaseLost));
    hers.control_drive(eject(&second)).await.unwrap();
    hers.release_lease(wire::ReleaseLeaseRequest { device: device(), lease_id: second.lease_id }).await.unwrap();
    // Whoever may only read any more cannot keep it from others.
    let third = his.acquire_lease(ask()).await.unwrap().into_inner();
    anna.share("dvd", drive, &grants(Right::Read)).await.unwrap();
    let renew = wire::RenewLeaseRequest { device: device(), lease_id: third.lease_id };
    assert!(why(his.renew_lease(renew).await).is(Reason::AccessDenied));
    hers.acquire_lease(ask()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_uses_a_device_once_at_a_time_and_again() {
    let office = Office::new();
    let anna = DeviceNode::new(&office, "acme/anna-pc", "anna").await;
    let ben = DeviceNode::new(&office, "acme/ben-pc", "ben").await;
    anna.share("dvd", anna.drive_with(&noise(4096)), &[to("ben", Right::Write)]).await.unwrap();
    let device = || "acme/anna-pc/drives/DVD".to_owned();
    let wish = |watch| wire::UseDeviceRequest { device: device(), watch, ..Default::default() };
    let release = || wire::ReleaseDeviceRequest { device: device(), ..Default::default() };
    let mut own = ben.own();
    let mut first = own.use_device(wish(false)).await.unwrap().into_inner();
    assert_eq!(first.message().await.unwrap().unwrap().state(), wire::LeaseState::Held);
    assert!(first.message().await.unwrap().is_none());
    assert!(why(own.use_device(wish(false)).await).is(Reason::ResourceBusy));
    // The lease goes with what this machine does.
    let verb = wire::DriveVerb::Eject as i32;
    ben.local()
        .control_drive(wire::ControlDriveRequest { device: device(), verb, ..Default::default() })
        .await
        .unwrap();
    own.release_device(release()).await.unwrap();
    assert!(why(own.release_device(release()).await).is(Reason::LeaseUnknown));
    // One that is watched ends with the call, and only that one.
    let mut watched = own.use_device(wish(true)).await.unwrap().into_inner();
    watched.message().await.unwrap().unwrap();
    own.release_device(release()).await.unwrap();
    let mut again = own.use_device(wish(false)).await.unwrap().into_inner();
    again.message().await.unwrap().unwrap();
    drop(watched);
    assert!(why(own.use_device(wish(false)).await).is(Reason::ResourceBusy), "it goes on");
    own.release_device(release()).await.unwrap();
    let mut watched = own.use_device(wish(true)).await.unwrap().into_inner();
    watched.message().await.unwrap().unwrap();
    let mut seen = anna.client(ben.id()).watch_devices(wire::WatchDevicesRequest {}).await.unwrap().into_inner();
    assert_eq!(seen.message().await.unwrap().unwrap().devices[0].holder, "ben at ben-pc");
    drop(watched);
    while !seen.message().await.unwrap().unwrap().devices[0].holder.is_empty() {}
    // Two at the same time: one has it, and what the other was given is given back.
    let shared = || wire::UseDeviceRequest { mode: wire::LeaseMode::Shared as i32, ..wish(false) };
    let (mut one, mut two) = (ben.own(), ben.own());
    let (one, two) = tokio::join!(one.use_device(shared()), two.use_device(shared()));
    assert_ne!(one.is_ok(), two.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_a_disc_come_from_members_only_if_they_are_the_owners() {
    let office = Office::new();
    let anna = DeviceNode::new(&office, "acme/anna-pc", "anna").await;
    let ben = DeviceNode::new(&office, "acme/ben-pc", "ben").await;
    let carla = DeviceNode::new(&office, "acme/carla-pc", "carla").await;
    let evil = member(&office, "evil");
    let lies = liar(&office, evil);
    let image = noise((3 << 20) + 2048);
    let grants = ["ben", "carla", "evil"].map(|p| to(p, Right::Read));
    anna.share("dvd", anna.drive_with(&image), &grants).await.unwrap();
    let generation = anna.generation("drives/dvd", 0).await;
    let device = || "drives/dvd".to_owned();
    // It has read the disc: the owner names it to others.
    let length = image.len() as u64;
    let read = wire::ReadDiscRequest { device: device(), generation, length, whole_blocks: true, ..Default::default() };
    let mut parts = anna.client(evil).read_disc(read.clone()).await.unwrap().into_inner();
    let mut digests = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        digests.push(part.digest);
    }
    assert_eq!(digests.len(), 4);
    let mut parts = anna.client(ben.id()).read_disc(read.clone()).await.unwrap().into_inner();
    let part = parts.message().await.unwrap().unwrap();
    assert!(part.data.is_empty() && part.holders == [evil.0.to_vec()]);
    drop(parts);
    let path = ben.machine.dir.path().join("copy.iso");
    let rip = wire::RipDiscRequest { device: "acme/anna-pc/drives/dvd".into(), path: path_text(&path), retries: 0 };
    let mut told = ben.own().rip_disc(rip).await.unwrap().into_inner();
    let mut last = wire::RipDiscResponse::default();
    while let Some(message) = told.message().await.unwrap() {
        last = message;
    }
    assert!(last.done && std::fs::read(&path).unwrap() == image);
    assert_eq!(lies.load(Ordering::Relaxed), 1, "who lied once is not asked again");
    assert_eq!(last.sources.into_iter().collect::<Vec<_>>(), [("acme/anna-pc".to_owned(), length)]);

    // What ben keeps he gives to who knows the digest, and to nobody else.
    let kept = |digest: &bytes::Bytes, generation| wire::ReadKeptBlockRequest {
        owner: anna.id().0.to_vec().into(),
        device: device(),
        generation,
        block: 1,
        digest: digest.clone(),
    };
    let mut his = ben.client(carla.id());
    let block = his.read_kept_block(kept(&digests[1], generation)).await.unwrap().into_inner().data;
    assert!(block[..] == image[1 << 20..2 << 20]);
    for request in [kept(&digests[2], generation), kept(&digests[1], generation + 1)] {
        assert!(his.read_kept_block(request).await.unwrap().into_inner().data.is_empty());
    }
    // Another disc: the old generation is refused, by the owner and with a copy that is half done.
    let other = anna.machine.write("other.iso", noise(8192));
    let (verb, image_path) = (wire::DriveVerb::Insert as i32, path_text(&other));
    let insert = wire::ControlDriveRequest { device: device(), verb, image_path, ..Default::default() };
    assert!(why(anna.client(ben.id()).control_drive(insert.clone()).await).is(Reason::AccessDenied));
    anna.client(anna.id()).control_drive(insert).await.unwrap();
    anna.generation("drives/dvd", generation).await;
    let old = async { anna.client(ben.id()).read_disc(read).await?.into_inner().message().await };
    assert!(why(old.await).is(Reason::DiscChanged));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_printed_whole_and_once() {
    let office = Office::new();
    let anna = DeviceNode::new(&office, "acme/anna-pc", "anna").await;
    let ben = DeviceNode::new(&office, "acme/ben-pc", "ben").await;
    let carla = member(&office, "carla");
    anna.share("las", anna.folder_printer("printed"), &[to("ben", Right::Write), to("carla", Right::Write)])
        .await
        .unwrap();
    let pages = pdf::sample(3, "a page");
    // It breaks off: at the owner, and on its way through another node.
    let half = document("printers/las", id(), &pages[..pages.len() / 2]);
    let status = broken_call(&anna.devices, Side::Nodes(caller), ben.id(), "Print", &half).await;
    assert_ne!(status, "0");
    let half = document("acme/anna-pc/printers/las", id(), &pages[..pages.len() / 2]);
    let status = broken_call(&ben.devices, Side::Local, ben.id(), "Print", &half).await;
    assert_ne!(status, "0");
    let whole = document("acme/anna-pc/printers/las", id(), &pages);
    assert_ne!(broken_call(&ben.devices, Side::Local, ben.id(), "Print", &whole).await, "0", "its end was not said");
    // Another size than was said.
    for wrong in [pages.len() as u64 - 1, pages.len() as u64 + 1] {
        let mut messages = document("printers/las", id(), &pages);
        let Some(wire::print_request::Part::Header(header)) = &mut messages[0].part else { panic!("no header") };
        header.size_bytes = wrong;
        assert!(why(print(&mut anna.client(ben.id()), messages).await).is(Reason::FieldInvalid), "{wrong}");
    }
    assert!(jobs(&mut anna.client(anna.id()), "printers/las").await.is_empty());

    // Twice under one id is once; under the id of somebody else, nothing.
    let mut messages = document("printers/las", id(), &pages);
    let Some(wire::print_request::Part::Header(header)) = &mut messages[0].part else { panic!("no header") };
    header.hold = true;
    let mut his = anna.client(ben.id());
    let job = print(&mut his, messages.clone()).await.unwrap();
    assert_eq!(print(&mut his, messages.clone()).await.unwrap().job_id, job.job_id);
    assert_eq!(jobs(&mut his, "printers/las").await.len(), 1);
    let mut hers = anna.client(carla);
    assert!(why(print(&mut hers, messages).await).is(Reason::RequestIdReused));
    // Another member's job is like one that is not there.
    assert!(jobs(&mut hers, "printers/las").await.is_empty());
    for verb in [wire::PrintJobVerb::Show, wire::PrintJobVerb::Release, wire::PrintJobVerb::Cancel] {
        let control = |job_id| {
            let (device, verb) = ("printers/las".to_owned(), verb as i32);
            wire::ControlPrintJobRequest { device, job_id, verb, ..Default::default() }
        };
        assert!(why(hers.control_print_job(control(job.job_id)).await).is(Reason::PrintJobUnknown));
    }
    let (device, verb) = ("PRINTERS/las".to_lowercase(), wire::PrintJobVerb::Cancel as i32);
    let cancel = wire::ControlPrintJobRequest { device, job_id: job.job_id, verb, ..Default::default() };
    assert_eq!(his.control_print_job(cancel).await.unwrap().into_inner().state, "canceled");
    assert_eq!(std::fs::read_dir(anna.machine.folder("printed")).unwrap().count(), 0);
}

/// A printer of Atrium's that is no device of the office.
struct FarPrinter {
    _dir: tempfile::TempDir,
    printers: Printers,
    uri: String,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl FarPrinter {
    async fn start(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { reserve_bytes: 0, ..Options::new(dir.path().join("state")) };
        let printers = Printers::open(options).await.unwrap();
        let path = dir.path().join("out");
        let folder = Destination::Folder { path, pages_per_minute: None };
        printers.put(PrinterConfig::new("laser", folder)).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "ipps" } else { "ipp" };
        let uri = format!("{scheme}://{}/ipp/print/laser", listener.local_addr().unwrap());
        let service = Service::new(printers.clone(), Arc::new(Open), ServiceOptions::default());
        let stop = CancellationToken::new();
        let until = stop.clone();
        let serving = tokio::spawn(async move { service.serve(listener, tls, None, until).await });
        Self { _dir: dir, printers, uri, stop, serving }
    }

    async fn end(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
        self.printers.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_printer_of_another_node_is_not_shared_onward() {
    let office = Office::new();
    let anna = DeviceNode::new(&office, "acme/anna-pc", "anna").await;
    let far = FarPrinter::start(None).await;
    let share = || printer_to(Output::Uri(far.uri.clone()));
    // Nobody answers there: it may be any printer.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nowhere = format!("ipp://{}/ipp/print", silent.local_addr().unwrap());
    drop(silent);
    anna.share("other", printer_to(Output::Uri(nowhere)), &[]).await.unwrap();
    assert!(anna.share("laser", share(), &[]).await.unwrap_err().is(Reason::ResourceRemote));
    assert!(anna.share("other", share(), &[]).await.unwrap_err().is(Reason::ResourceRemote), "also a changed output");
    let own = anna.own().list_own_devices(wire::ListOwnDevicesRequest {}).await.unwrap().into_inner().devices;
    assert_eq!(own.len(), 1);
    far.end().await;
}

/// Settings of a printer that has made a certificate for itself, and the certificate.
fn own_certificate() -> (Arc<rustls::ServerConfig>, rcgen::CertifiedKey<rcgen::KeyPair>) {
    let made = rcgen::generate_simple_self_signed(vec!["printer".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    (Arc::new(config), made)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_printer_of_another_node_is_known_by_tls_too() {
    let office = Office::new();
    let anna = DeviceNode::new(&office, "acme/anna-pc", "anna").await;
    let far = FarPrinter::start(Some(own_certificate().0)).await;
    let output = Output::Uri(far.uri.clone());
    assert!(anna.share("laser", printer_to(output), &[]).await.unwrap_err().is(Reason::ResourceRemote));
    far.end().await;
}

/// Speaks TLS and nothing else: a printer whose certificate can be looked at.
async fn tls_only(listener: TcpListener, config: Arc<rustls::ServerConfig>) {
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    while let Ok((io, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move { acceptor.accept(io).await.map(drop) });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_printer_showed_first_is_kept_and_another_certificate_needs_a_word() {
    let office = Office::new();
    let anna = DeviceNode::new(&office, "acme/anna-pc", "anna").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let uri = format!("ipps://{at}/ipp/print");
    let (config, made) = own_certificate();
    let serving = tokio::spawn(tls_only(listener, config));
    let share = |trust: &str| {
        let wire::share_device_request::Kind::Printer(mut printer) = printer_to(Output::Uri(uri.clone())) else {
            panic!()
        };
        printer.trust = trust.to_owned();
        wire::share_device_request::Kind::Printer(printer)
    };
    let kept = |device: wire::LocalDevice| match device.share.unwrap().kind {
        Some(wire::share_device_request::Kind::Printer(p)) => p.trust,
        _ => panic!(),
    };
    let pin = Trust::pin(made.cert.der()).to_string();
    let first = kept(anna.share("laser", share(""), &[]).await.unwrap());
    assert_eq!(first, pin);
    assert_eq!(kept(anna.share("laser", share(""), &[]).await.unwrap()), pin, "kept when nothing is said");
    for (trust, reason) in [
        (format!("sha256:{}", "00".repeat(32)), Reason::PrinterUntrusted),
        ("system".to_owned(), Reason::PrinterUntrusted),
        ("sha256:12".to_owned(), Reason::CertificateInvalid),
    ] {
        let refused = anna.share("laser", share(&trust), &[]).await.unwrap_err();
        assert!(refused.is(reason), "{trust}: {refused:?}");
    }
    assert_eq!(kept(anna.share("laser", share(&made.cert.pem()), &[]).await.unwrap()), made.cert.pem());
    assert_eq!(kept(anna.share("laser", share("new"), &[]).await.unwrap()), pin);
    // Another printer answers there. The settings stay as they are, and the device says what is wrong, until it is told to
    // look anew.
    serving.abort();
    let _ = serving.await;
    let (config, other) = own_certificate();
    let listener = TcpListener::bind(at).await.unwrap();
    let serving = tokio::spawn(tls_only(listener, config));
    assert_eq!(kept(anna.share("laser", share(&pin), &[]).await.unwrap()), pin);
    let told = tokio::time::timeout(std::time::Duration::from_secs(60), async {
        loop {
            let own = anna.own().list_own_devices(wire::ListOwnDevicesRequest {}).await.unwrap().into_inner().devices;
            if let Some(problem) = own[0].problems.first() {
                return problem.clone();
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    let told = told.await.expect("nothing is said of the other certificate");
    assert_eq!(told.reason, "PRINTER_UNTRUSTED");
    assert!(told.fix.contains("--trust new"), "{}", told.fix);
    assert_eq!(kept(anna.share("laser", share("new"), &[]).await.unwrap()), Trust::pin(other.cert.der()).to_string());
    serving.abort();
    let _ = serving.await;
    // One that is away cannot be looked at.
    let away = anna.share("other", share(""), &[]).await.unwrap_err();
    assert!(away.is(Reason::DeviceAway) && away.fix().contains("--trust"), "{away:?}");
    assert_eq!(kept(anna.share("other", share(&pin), &[]).await.unwrap()), pin, "but named");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_printer_is_not_paused_by_a_call_that_is_refused() {
    let office = Office::new();
    let anna = DeviceNode::new(&office, "acme/anna-pc", "anna").await;
    anna.share("laser", anna.folder_printer("printed"), &[]).await.unwrap();
    let device = || "printers/laser".to_owned();
    let paused = Some(true);
    let wrong =
        wire::ControlPrinterRequest { device: device(), paused, quota_period_seconds: Some(7), ..Default::default() };
    assert!(why(anna.local().control_printer(wrong).await).is(Reason::FieldInvalid));
    let list = anna.local().list_devices(wire::ListDevicesRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.devices[0].state, "idle");
    let right =
        wire::ControlPrinterRequest { device: device(), paused, quota_period_seconds: Some(0), ..Default::default() };
    assert_eq!(anna.local().control_printer(right).await.unwrap().into_inner().state, "stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_in_other_letters_is_one_device_and_groups_follow_their_members() {
    let office = Office::new();
    let anna = DeviceNode::new(&office, "acme/anna-pc", "anna").await;
    let ben = member(&office, "ben");
    let image = noise(8192);
    anna.share("dvd", anna.drive_with(&image), &[to("ben", Right::Read)]).await.unwrap();
    let generation = anna.generation("drives/dvd", 0).await;
    anna.share("DVD", anna.drive_with(&image), &[to("ben", Right::Write)]).await.unwrap();
    let own = anna.own().list_own_devices(wire::ListOwnDevicesRequest {}).await.unwrap().into_inner().devices;
    assert_eq!(own.len(), 1);
    assert_eq!(own[0].device.as_ref().unwrap().address, "acme/anna-pc/drives/dvd");
    assert_eq!(anna.generation("drives/dvd", 0).await, generation, "nothing was opened anew");
    for device in ["drives/dvd", "drives/DVD", "drives/Dvd"] {
        let (mode, request_id) = (wire::LeaseMode::Exclusive as i32, id());
        let ask = wire::AcquireLeaseRequest { device: device.into(), mode, request_id, ..Default::default() };
        let lease = anna.client(ben).acquire_lease(ask).await.unwrap().into_inner();
        let release = wire::ReleaseLeaseRequest { device: device.into(), lease_id: lease.lease_id };
        anna.client(ben).release_lease(release).await.unwrap();
    }

    anna.share("las", anna.folder_printer("one"), &[]).await.unwrap();
    let group = |member: &str| printer_to(Output::Group(wire::PrinterGroup { members: vec![member.to_owned()] }));
    anna.share("all", group("LAS"), &[]).await.unwrap();
    assert!(anna.share("nested", group("all"), &[]).await.unwrap_err().is(Reason::ResourceInvalid));
    assert!(
        anna.devices.unshare("printers/las", true, true).await.unwrap_err().is(Reason::ResourceBusy),
        "a group has it"
    );
    // Its member prints elsewhere now, and so does the group.
    anna.share("las", anna.folder_printer("two"), &[]).await.unwrap();
    let mut me = anna.client(anna.id());
    print(&mut me, document("printers/all", id(), &pdf::sample(1, "x"))).await.unwrap();
    while jobs(&mut me, "printers/all").await[0].state != "completed" {
        tokio::task::yield_now().await;
    }
    assert_ne!(std::fs::read_dir(anna.machine.folder("two")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(anna.machine.folder("one")).unwrap().count(), 0);
    anna.devices.unshare("printers/all", true, true).await.unwrap();
    anna.devices.unshare("printers/las", true, true).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_a_copy_has_left_is_given_back_when_it_can_be() {
    let office = Office::new();
    let carla = DeviceNode::new(&office, "acme/carla-pc", "carla").await;
    let ben = DeviceNode::new(&office, "acme/ben-pc", "ben").await;
    carla.share("old", carla.disk("lent"), &[to("ben", Right::Write)]).await.unwrap();
    let (device, place) = ("disks/old".to_owned(), Uuid::new_v4());
    let space = || bytes::Bytes::from(place.as_bytes().to_vec());
    let kind = wire::SpaceKind::Mirror as i32;
    let borrow = wire::BorrowSpaceRequest {
        device: device.clone(),
        kind,
        size_bytes: 1 << 20,
        request_id: space(),
        ..Default::default()
    };
    let mut his = carla.client(ben.id());
    his.borrow_space(borrow).await.unwrap();
    let root = b"root".to_vec().into();
    let commit = wire::CommitGenerationRequest { device: device.clone(), space_id: space(), generation: 1, root };
    his.commit_generation(commit).await.unwrap();
    let generations = || {
        let mut his = his.clone();
        let request = wire::ListGenerationsRequest { device: device.clone(), space_id: space() };
        async move { his.list_generations(request).await.unwrap().into_inner().generations }
    };
    assert_eq!(generations().await, [1]);
    // A copy that is gone elsewhere, and was about to move here.
    let mirrors = ben.machine.dir.path().join("devices/mirrors");
    std::fs::create_dir_all(&mirrors).unwrap();
    device::disk::mirror::MirrorKey::generate().save(&mirrors.join("plans.key")).unwrap();
    let spot = |disk: &str| format!("\"node\": \"{}\", \"disk\": \"{disk}\", \"place\": \"{place}\"", carla.id());
    let kept = |at, left| format!("{{{}, \"generation\": 1, \"left\": [{{{}}}]}}", spot(at), spot(left));
    // Where the copy is again is not left, whatever was noted before.
    std::fs::write(mirrors.join("plans.json"), kept("disks/old", "disks/old")).unwrap();
    let looked = tokio::time::timeout(std::time::Duration::from_secs(30), async {
        // There is no such share here to compare with; that is found after what is left was looked at.
        while ben.devices.mirror_problems().is_empty() {
            tokio::task::yield_now().await;
        }
    });
    looked.await.expect("it is not looked after");
    assert_eq!(generations().await, [1]);
    std::fs::write(mirrors.join("plans.json"), kept("disks/none", "disks/old")).unwrap();
    let wait = tokio::time::timeout(std::time::Duration::from_secs(30), async {
        while !generations().await.is_empty() {
            tokio::task::yield_now().await;
        }
    });
    wait.await.expect("what is left is not let go");
    let listed = ben.own().list_mirrors(wire::ListMirrorsRequest {}).await.unwrap().into_inner().mirrors;
    assert_eq!((listed.len(), listed[0].state()), (1, wire::MirrorState::Lost));
    // Its time is not over; when its lender leaves, it need not be.
    let leave = wire::LeaveDiskRequest { device, force: false };
    let mut told = carla.own().leave_disk(leave).await.unwrap().into_inner();
    let first = told.message().await.unwrap().unwrap();
    assert!(first.done || first.mirrors[0].person == "ben", "{first:?}");
    let left = tokio::time::timeout(std::time::Duration::from_secs(30), async {
        while !told.message().await.unwrap().unwrap().done {}
    });
    if !first.done {
        left.await.expect("it does not leave");
    }
    assert!(
        carla.own().list_own_devices(wire::ListOwnDevicesRequest {}).await.unwrap().into_inner().devices.is_empty()
    );
}
