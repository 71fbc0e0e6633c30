//! Against a peer that is made up: printers, discs, leases and borrowed space.

use crate::process::{atrium, failure, run};
use common::error::{Error, Reason};
use common::status::to_status;
use proto::peer::v1::device_service_server::{DeviceService, DeviceServiceServer};
use proto::peer::v1::local_device_service_server::{LocalDeviceService, LocalDeviceServiceServer};
use proto::peer::v1::*;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What is on the disc, and what the peer was told.
#[derive(Clone, Default)]
struct Fake(Arc<State>);

#[derive(Default)]
struct State {
    devices: Vec<Device>,
    own: Mutex<Vec<LocalDevice>>,
    told: Mutex<Vec<String>>,
    jobs: Mutex<Vec<(PrintHeader, Vec<u8>)>>,
    /// Calls of Print and of ReadDiscFile that break before they are answered wholly.
    break_next: Mutex<u32>,
    /// They break for good, so that trying again does not help.
    for_good: Mutex<bool>,
    disc: BTreeMap<String, Vec<u8>>,
    generation: u64,
    objects: Mutex<BTreeMap<String, (SpaceObject, Vec<u8>)>>,
    /// The lease is lost as soon as it is held.
    lose: bool,
    bad_sectors: u64,
    /// Second copies do not leave the disk while the call lasts.
    stays: bool,
}

impl Fake {
    fn note(&self, text: String) {
        self.0.told.lock().unwrap().push(text);
    }

    fn breaks(&self) -> bool {
        let mut left = self.0.break_next.lock().unwrap();
        *left = left.saturating_sub(1);
        *left > 0
    }

    fn job(&self, number: u64) -> Result<PrintJob, Status> {
        let jobs = self.0.jobs.lock().unwrap();
        let (header, data) = jobs.get(number as usize - 1).ok_or_else(|| Status::not_found("no such job"))?;
        Ok(PrintJob {
            job_id: number,
            printer: "acme/anna-pc/printers/laser".into(),
            job_name: header.job_name.clone(),
            person: "bert".into(),
            state: if header.hold { "pending-held" } else { "pending" }.into(),
            size_bytes: data.len() as u64,
            sheets: 2,
            priority: if header.priority == 0 { 50 } else { header.priority },
            needs_pin: !header.pin.is_empty(),
            ..Default::default()
        })
    }
}

fn answers<T: Send + 'static>(all: Vec<Result<T, Status>>) -> Answer<Answers<T>> {
    Ok(Response::new(Box::pin(tokio_stream::iter(all))))
}

fn not_here<T>() -> Result<T, Status> {
    Err(Status::unimplemented("these tests do not call it"))
}

/// A directory of the disc: what lies right in it.
fn entries(disc: &BTreeMap<String, Vec<u8>>, path: &str) -> Vec<DiscEntry> {
    let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
    let mut found: BTreeMap<String, DiscEntry> = BTreeMap::new();
    for (name, data) in disc {
        let Some(rest) = name.strip_prefix(&prefix) else { continue };
        let (first, directory) = rest.split_once('/').map_or((rest, false), |(first, _)| (first, true));
        let time = prost_types::Timestamp { seconds: 1_000_000_000, nanos: 0 };
        found.entry(first.to_owned()).or_insert(DiscEntry {
            path: format!("{prefix}{first}"),
            directory,
            size_bytes: if directory { 0 } else { data.len() as u64 },
            modify_time: Some(time),
        });
    }
    found.into_values().collect()
}

fn space() -> Space {
    Space {
        space_id: vec![0x11; 16].into(),
        disk: "acme/anna-pc/disks/big".into(),
        kind: SpaceKind::Scratch as i32,
        size_bytes: 1 << 30,
        label: "video".into(),
        object_count: 1,
        ..Default::default()
    }
}

#[tonic::async_trait]
impl DeviceService for Fake {
    type WatchDevicesStream = Answers<ListDevicesResponse>;
    type ReadDiscStream = Answers<ReadDiscResponse>;
    type ReadDiscFileStream = Answers<ReadDiscFileResponse>;
    type GetObjectStream = Answers<GetObjectResponse>;
    async fn list_devices(&self, _: Request<ListDevicesRequest>) -> Answer<ListDevicesResponse> {
        not_here()
    }
    async fn watch_devices(&self, _: Request<WatchDevicesRequest>) -> Answer<Self::WatchDevicesStream> {
        not_here()
    }
    async fn acquire_lease(&self, _: Request<AcquireLeaseRequest>) -> Answer<Lease> {
        not_here()
    }
    async fn renew_lease(&self, _: Request<RenewLeaseRequest>) -> Answer<Lease> {
        not_here()
    }
    async fn release_lease(&self, _: Request<ReleaseLeaseRequest>) -> Answer<ReleaseLeaseResponse> {
        not_here()
    }
    async fn request_device(&self, r: Request<RequestDeviceRequest>) -> Answer<RequestDeviceResponse> {
        let r = r.into_inner();
        self.note(format!("request {} {}", r.device, r.text));
        Ok(Response::new(RequestDeviceResponse { holder: "anna at anna-pc".into() }))
    }
    async fn print(&self, r: Request<Streaming<PrintRequest>>) -> Answer<PrintJob> {
        let mut stream = r.into_inner();
        let breaks = self.breaks();
        let (mut header, mut data) = (None, Vec::new());
        while let Some(message) = stream.next().await {
            match message?.part {
                Some(print_request::Part::Header(h)) => header = Some(h),
                Some(print_request::Part::Data(piece)) => data.extend_from_slice(&piece),
                None => {}
            }
        }
        let header = header.ok_or_else(|| Status::invalid_argument("no header"))?;
        self.note(format!("print {} at {}: {} bytes", header.job_name, header.device, data.len()));
        let number = {
            let mut jobs = self.0.jobs.lock().unwrap();
            let known = jobs.iter().position(|(h, _)| h.request_id == header.request_id);
            known.unwrap_or_else(|| {
                jobs.push((header, data));
                jobs.len() - 1
            }) as u64
                + 1
        };
        if breaks {
            // The job is on disk, but the caller does not hear of it.
            return Err(Status::unavailable("the connection broke"));
        }
        self.job(number).map(Response::new)
    }
    async fn list_print_jobs(&self, r: Request<ListPrintJobsRequest>) -> Answer<ListPrintJobsResponse> {
        let r = r.into_inner();
        self.note(format!("jobs of {} ended={}", r.device, r.ended));
        let count = self.0.jobs.lock().unwrap().len() as u64;
        let jobs = (1..=count).rev().map(|n| self.job(n)).collect::<Result<_, _>>()?;
        Ok(Response::new(ListPrintJobsResponse { jobs }))
    }
    async fn control_print_job(&self, r: Request<ControlPrintJobRequest>) -> Answer<PrintJob> {
        let r = r.into_inner();
        self.note(format!("{} {}#{} {} {}", r.verb().as_str_name(), r.device, r.job_id, r.priority, r.pin));
        let mut job = self.job(r.job_id)?;
        if r.priority > 0 {
            job.priority = r.priority;
        }
        Ok(Response::new(job))
    }
    async fn control_printer(&self, r: Request<ControlPrinterRequest>) -> Answer<Device> {
        let r = r.into_inner();
        self.note(format!(
            "printer {} {:?} {:?} {:?} {:?}",
            r.device, r.paused, r.quota_sheets, r.quota_bytes, r.quota_period_seconds
        ));
        Ok(Response::new(Device { address: "acme/anna-pc/printers/laser".into(), ..Default::default() }))
    }
    async fn read_disc(&self, _: Request<ReadDiscRequest>) -> Answer<Self::ReadDiscStream> {
        not_here()
    }
    async fn list_disc(&self, r: Request<ListDiscRequest>) -> Answer<ListDiscResponse> {
        let r = r.into_inner();
        if r.generation != 0 && r.generation != self.0.generation {
            return Err(to_status(&Error::new(Reason::DiscChanged, "the disc was changed")));
        }
        let entries = entries(&self.0.disc, r.path.trim_matches('/'));
        // Pages of two, so that there is more than one.
        let from: usize = r.page_token.parse().unwrap_or(0);
        let next = from + 2;
        let next_page_token = if next < entries.len() { next.to_string() } else { String::new() };
        let entries = entries.into_iter().skip(from).take(2).collect();
        Ok(Response::new(ListDiscResponse { entries, next_page_token, generation: self.0.generation }))
    }
    async fn read_disc_file(&self, r: Request<ReadDiscFileRequest>) -> Answer<Self::ReadDiscFileStream> {
        let r = r.into_inner();
        self.note(format!("read {} {} from {}", r.device, r.path, r.offset));
        let data = self.0.disc.get(&r.path).ok_or_else(|| Status::not_found("no such file"))?;
        let part = |data: &[u8]| ReadDiscFileResponse { data: data.to_vec().into(), ..Default::default() };
        let mut all: Vec<Result<_, Status>> = data[r.offset as usize..].chunks(1000).map(|d| Ok(part(d))).collect();
        if all.is_empty() {
            all.push(Ok(part(&[])));
        }
        if let Some(Ok(first)) = all.first_mut() {
            (first.size_bytes, first.generation) = (data.len() as u64, self.0.generation);
        }
        if self.breaks() {
            all.truncate(2);
            let for_good = *self.0.for_good.lock().unwrap();
            all.push(Err(if for_good {
                Status::internal("broken")
            } else {
                Status::unavailable("the connection broke")
            }));
        }
        answers(all)
    }
    async fn control_drive(&self, r: Request<ControlDriveRequest>) -> Answer<Device> {
        let r = r.into_inner();
        self.note(format!("{} {} {}", r.verb().as_str_name(), r.device, r.image_path));
        Ok(Response::new(Device {
            address: "acme/anna-pc/drives/dvd".into(),
            state: "open".into(),
            ..Default::default()
        }))
    }
    async fn read_kept_block(&self, _: Request<ReadKeptBlockRequest>) -> Answer<ReadKeptBlockResponse> {
        not_here()
    }
    async fn borrow_space(&self, r: Request<BorrowSpaceRequest>) -> Answer<Space> {
        let r = r.into_inner();
        self.note(format!("borrow {} {} {}s {:?}", r.device, r.size_bytes, r.seconds, r.label));
        Ok(Response::new(space()))
    }
    async fn renew_space(&self, r: Request<RenewSpaceRequest>) -> Answer<Space> {
        let r = r.into_inner();
        self.note(format!("renew {} {}s", r.device, r.seconds));
        Ok(Response::new(space()))
    }
    async fn return_space(&self, r: Request<ReturnSpaceRequest>) -> Answer<ReturnSpaceResponse> {
        let r = r.into_inner();
        self.note(format!("return {}", r.device));
        Ok(Response::new(ReturnSpaceResponse {}))
    }
    async fn list_spaces(&self, _: Request<ListSpacesRequest>) -> Answer<ListSpacesResponse> {
        not_here()
    }
    async fn put_object(&self, r: Request<Streaming<PutObjectRequest>>) -> Answer<SpaceObject> {
        let mut stream = r.into_inner();
        let Some(PutObjectRequest { part: Some(put_object_request::Part::Header(header)) }) = stream.message().await?
        else {
            return Err(Status::invalid_argument("no header"));
        };
        self.note(format!("put {} from {}", header.name, header.offset));
        let before = self.0.objects.lock().unwrap().get(&header.name).map(|(_, data)| data.clone());
        let mut data = before.unwrap_or_default();
        data.truncate(header.offset as usize);
        let breaks = self.breaks();
        while let Some(message) = stream.next().await {
            if let Some(put_object_request::Part::Data(piece)) = message?.part {
                data.extend_from_slice(&piece);
            }
            if breaks {
                break;
            }
        }
        let whole = data.len() as u64 == header.size_bytes;
        let object = SpaceObject {
            name: header.name.clone(),
            size_bytes: header.size_bytes,
            digest: header.digest.clone(),
            create_time: None,
            partial_bytes: if whole { 0 } else { data.len() as u64 },
        };
        let damaged = whole && blake3::hash(&data).as_bytes().as_slice() != header.digest.as_ref();
        if damaged {
            self.0.objects.lock().unwrap().remove(&header.name);
            return Err(to_status(&Error::new(Reason::ChunkDamaged, "the digest is wrong")));
        }
        self.0.objects.lock().unwrap().insert(header.name, (object.clone(), data));
        if breaks {
            return Err(Status::unavailable("the connection broke"));
        }
        Ok(Response::new(object))
    }
    async fn get_object(&self, r: Request<GetObjectRequest>) -> Answer<Self::GetObjectStream> {
        let r = r.into_inner();
        self.note(format!("get {} from {}", r.name, r.offset));
        let objects = self.0.objects.lock().unwrap();
        let (object, data) = objects.get(&r.name).ok_or_else(|| Status::not_found("no such object"))?;
        let part = |data: &[u8]| GetObjectResponse { data: data.to_vec().into(), object: None };
        let mut all = vec![Ok(GetObjectResponse { object: Some(object.clone()), ..Default::default() })];
        all.extend(data[r.offset as usize..].chunks(1000).map(|d| Ok(part(d))));
        if self.breaks() {
            all.truncate(3);
            all.push(Err(Status::unavailable("the connection broke")));
        }
        answers(all)
    }
    async fn list_objects(&self, r: Request<ListObjectsRequest>) -> Answer<ListObjectsResponse> {
        let r = r.into_inner();
        let objects = self.0.objects.lock().unwrap();
        let from: usize = r.page_token.parse().unwrap_or(0);
        let next_page_token = if from + 1 < objects.len() { (from + 1).to_string() } else { String::new() };
        let objects = objects.values().skip(from).take(1).map(|(o, _)| o.clone()).collect();
        Ok(Response::new(ListObjectsResponse { objects, next_page_token }))
    }
    async fn delete_object(&self, r: Request<DeleteObjectRequest>) -> Answer<DeleteObjectResponse> {
        let name = r.into_inner().name;
        let removed = self.0.objects.lock().unwrap().remove(&name);
        let unknown = || to_status(&Error::new(Reason::EntryUnknown, "no such object"));
        removed.map(|_| Response::new(DeleteObjectResponse {})).ok_or_else(unknown)
    }
    type GetSealedStream = Answers<GetSealedResponse>;
    async fn list_missing(&self, _: Request<ListMissingRequest>) -> Answer<ListMissingResponse> {
        not_here()
    }
    async fn put_sealed(&self, _: Request<Streaming<PutSealedRequest>>) -> Answer<PutSealedResponse> {
        not_here()
    }
    async fn get_sealed(&self, _: Request<GetSealedRequest>) -> Answer<Self::GetSealedStream> {
        not_here()
    }
    async fn list_sealed(&self, _: Request<ListSealedRequest>) -> Answer<ListSealedResponse> {
        not_here()
    }
    async fn commit_generation(&self, _: Request<CommitGenerationRequest>) -> Answer<CommitGenerationResponse> {
        not_here()
    }
    async fn list_generations(&self, _: Request<ListGenerationsRequest>) -> Answer<ListGenerationsResponse> {
        not_here()
    }
    async fn retire_sealed(&self, _: Request<RetireSealedRequest>) -> Answer<RetireSealedResponse> {
        not_here()
    }
    async fn prove_objects(&self, _: Request<ProveObjectsRequest>) -> Answer<ProveObjectsResponse> {
        not_here()
    }
}

#[tonic::async_trait]
impl LocalDeviceService for Fake {
    type UseDeviceStream = Answers<Lease>;
    type RipDiscStream = Answers<RipDiscResponse>;
    type ExportDiscStream = Answers<ExportDiscResponse>;
    type MirrorToStream = Answers<MirrorProgress>;
    type RestoreMirrorStream = Answers<MirrorProgress>;
    type LeaveDiskStream = Answers<LeaveProgress>;
    async fn list_all_devices(&self, r: Request<ListAllDevicesRequest>) -> Answer<ListAllDevicesResponse> {
        let kind = r.into_inner().kind;
        let devices = self.0.devices.iter().filter(|d| kind == 0 || d.kind == kind).cloned().collect();
        Ok(Response::new(ListAllDevicesResponse { devices, problems: Vec::new() }))
    }
    async fn share_device(&self, r: Request<ShareDeviceRequest>) -> Answer<LocalDevice> {
        let share = r.into_inner();
        let (segment, kind) = match &share.kind {
            Some(share_device_request::Kind::Printer(_)) => ("printers", 1),
            Some(share_device_request::Kind::Drive(_)) => ("drives", 2),
            _ => ("disks", 3),
        };
        let address = format!("acme/bert-pc/{segment}/{}", share.name);
        self.note(format!("share {address}"));
        let device = Device { address, kind, name: share.name.clone(), state: "idle".into(), ..Default::default() };
        let local = LocalDevice { device: Some(device), share: Some(share), problems: Vec::new() };
        let mut own = self.0.own.lock().unwrap();
        own.retain(|d| d.device.as_ref().map(|d| &d.address) != local.device.as_ref().map(|d| &d.address));
        own.push(local.clone());
        Ok(Response::new(local))
    }
    async fn unshare_device(&self, r: Request<UnshareDeviceRequest>) -> Answer<UnshareDeviceResponse> {
        let r = r.into_inner();
        self.note(format!("unshare {} force={} now={}", r.device, r.force, r.now));
        Ok(Response::new(UnshareDeviceResponse {}))
    }
    async fn list_own_devices(&self, r: Request<ListOwnDevicesRequest>) -> Answer<ListOwnDevicesResponse> {
        drop(r);
        Ok(Response::new(ListOwnDevicesResponse { devices: self.0.own.lock().unwrap().clone() }))
    }
    async fn read_device_audit(&self, r: Request<ReadDeviceAuditRequest>) -> Answer<ReadDeviceAuditResponse> {
        let r = r.into_inner();
        let record = |sequence, resource: &str, granted| DeviceAuditRecord {
            sequence,
            time_ms: 1_795_374_245_000,
            person: "bert".into(),
            machine: "bert-pc".into(),
            resource: resource.into(),
            verb: "print".into(),
            granted,
            reason: if granted { String::new() } else { "ACCESS_DENIED".into() },
            ..Default::default()
        };
        let problem =
            NodeProblem { reason: "STORE_CORRUPT".into(), message: "line 1 is damaged".into(), ..Default::default() };
        Ok(Response::new(ReadDeviceAuditResponse {
            records: vec![record(2, "printers/laser", false), record(1, "drives/dvd", true)],
            verified: false,
            problem: r.verify.then_some(problem),
        }))
    }
    async fn use_device(&self, r: Request<UseDeviceRequest>) -> Answer<Self::UseDeviceStream> {
        let r = r.into_inner();
        self.note(format!(
            "use {} {} {}s wait={} watch={}",
            r.device,
            r.mode().as_str_name(),
            r.seconds,
            r.wait,
            r.watch
        ));
        let lease = |state: LeaseState, position| Lease {
            device: "drives/dvd".into(),
            lease_id: vec![1; 16].into(),
            fencing_token: 7,
            mode: r.mode,
            state: state as i32,
            position,
            ..Default::default()
        };
        let mut held = lease(LeaseState::Held, 0);
        held.notes.push(DeviceNote { from: "carl at carl-pc".into(), text: "please".into(), age_ms: 1_000 });
        let all = vec![Ok(lease(LeaseState::Waiting, 1)), Ok(held)];
        if self.0.lose {
            let lost = Err(to_status(&Error::new(Reason::LeaseLost, "the lease was taken back")));
            return answers([all, vec![lost]].concat());
        }
        // Held until the call ends.
        Ok(Response::new(Box::pin(tokio_stream::iter(all).chain(tokio_stream::pending()))))
    }
    async fn release_device(&self, r: Request<ReleaseDeviceRequest>) -> Answer<ReleaseDeviceResponse> {
        let r = r.into_inner();
        let lease = uuid::Uuid::from_slice(&r.lease_id).map(|id| format!(" lease={id}")).unwrap_or_default();
        self.note(format!("release {} take_back={}{lease}", r.device, r.take_back));
        Ok(Response::new(ReleaseDeviceResponse {}))
    }
    async fn list_jobs(&self, r: Request<ListJobsRequest>) -> Answer<ListJobsResponse> {
        self.note(format!("all jobs ended={}", r.into_inner().ended));
        let count = self.0.jobs.lock().unwrap().len() as u64;
        let jobs = (1..=count).rev().map(|n| self.job(n)).collect::<Result<_, _>>()?;
        Ok(Response::new(ListJobsResponse { jobs, problems: Vec::new() }))
    }
    async fn rip_disc(&self, r: Request<RipDiscRequest>) -> Answer<Self::RipDiscStream> {
        let r = r.into_inner();
        self.note(format!("rip {} to {} retries={}", r.device, r.path, r.retries));
        let now = |done_bytes, done| RipDiscResponse {
            done_bytes,
            total_bytes: 4096,
            bad_sectors: self.0.bad_sectors,
            done,
            sources: HashMap::from([("anna-pc".to_owned(), done_bytes)]),
            title: "PLANS".into(),
        };
        answers(vec![Ok(now(2048, false)), Ok(now(4096, true))])
    }
    async fn export_disc(&self, r: Request<ExportDiscRequest>) -> Answer<Self::ExportDiscStream> {
        let r = r.into_inner();
        let mut uris = Vec::new();
        uris.extend(r.nbd.then(|| "nbd://127.0.0.1:10809".to_owned()));
        uris.extend(r.http.then(|| "http://127.0.0.1:8080/".to_owned()));
        uris.extend((!r.nbd_socket.is_empty()).then(|| format!("nbd+unix:///?socket={}", r.nbd_socket)));
        let scheme = if r.tls { "nbds" } else { "nbd" };
        uris.extend((!r.nbd_listen.is_empty()).then(|| format!("{scheme}://{}", r.nbd_listen)));
        let pem = |what: &str| format!("{what} of the export");
        let keys = r.tls.then(|| ExportKeys {
            ca_certificate: pem("authority"),
            client_certificate: pem("certificate"),
            client_key: pem("key"),
        });
        answers(vec![
            Ok(ExportDiscResponse { uris, disc_changed: false, keys }),
            Ok(ExportDiscResponse { uris: Vec::new(), disc_changed: true, keys: None }),
        ])
    }
    async fn leave_disk(&self, r: Request<LeaveDiskRequest>) -> Answer<Self::LeaveDiskStream> {
        let r = r.into_inner();
        self.note(format!("leave {} force={}", r.device, r.force));
        let mirror = LeavingMirror {
            person: "bert".into(),
            node_name: "acme/bert-pc".into(),
            label: "mirror of plans".into(),
            total_bytes: 9,
            fetched_bytes: 4,
            online: true,
        };
        let mut told = vec![Ok(LeaveProgress { mirrors: vec![mirror], done: false })];
        if !self.0.stays {
            told.push(Ok(LeaveProgress { mirrors: Vec::new(), done: true }));
        }
        answers(told)
    }
    async fn list_mirrors(&self, _: Request<ListMirrorsRequest>) -> Answer<ListMirrorsResponse> {
        let mirror = Mirror {
            share: "plans".into(),
            disk: "acme/anna-pc/disks/big".into(),
            state: MirrorState::Whole as i32,
            generation: 3,
            proven_time: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 0 }),
            proven_count: 256,
            part_count: 900,
            repaired_count: 2,
            ..Default::default()
        };
        let lost = Mirror { share: "songs".into(), state: MirrorState::Lost as i32, ..Default::default() };
        Ok(Response::new(ListMirrorsResponse { mirrors: vec![mirror, lost] }))
    }
    async fn list_borrowed(&self, r: Request<ListBorrowedRequest>) -> Answer<ListBorrowedResponse> {
        self.note(format!("borrowed lent={}", r.into_inner().lent));
        Ok(Response::new(ListBorrowedResponse { spaces: vec![space()], problems: Vec::new() }))
    }
    async fn mirror_to(&self, r: Request<MirrorToRequest>) -> Answer<Self::MirrorToStream> {
        let r = r.into_inner();
        let next = if r.next_disk.is_empty() { String::new() } else { format!(" then {}", r.next_disk) };
        self.note(format!("mirror {} to {} {} {}s{next}", r.share, r.disk, r.size_bytes, r.retention_seconds));
        let now = |done_bytes, done| MirrorProgress {
            done_bytes,
            total_bytes: 9,
            present_bytes: 4,
            file_count: 3,
            done,
            generation: 2,
            ..Default::default()
        };
        answers(vec![Ok(now(4, false)), Ok(now(9, true))])
    }
    async fn restore_mirror(&self, r: Request<RestoreMirrorRequest>) -> Answer<Self::RestoreMirrorStream> {
        let r = r.into_inner();
        self.note(format!("restore {} to {} {}", r.share, r.path, r.generation));
        // It ends without having been done.
        answers(vec![Ok(MirrorProgress::default())])
    }
}

struct Running {
    home: TempDir,
    socket: PathBuf,
    fake: Fake,
    _runtime: tokio::runtime::Runtime,
}

impl Running {
    fn start(state: State) -> Self {
        let home = tempfile::tempdir().unwrap();
        let socket = home.path().join("peer.sock");
        let fake = Fake(Arc::new(state));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(async { UnixListener::bind(&socket).unwrap() });
        let served = fake.clone();
        runtime.spawn(async move {
            tonic::transport::Server::builder()
                .add_service(DeviceServiceServer::new(served.clone()))
                .add_service(LocalDeviceServiceServer::new(served))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
        });
        Self { home, socket, fake, _runtime: runtime }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [&["--peer", self.socket.to_str().unwrap()], args].concat()
    }

    fn run(&self, args: &[&str]) -> std::process::Output {
        run(self.home.path(), &self.args(args))
    }

    /// In the home directory.
    fn run_there(&self, args: &[&str]) -> std::process::Output {
        atrium(self.home.path(), &self.args(args)).current_dir(self.home.path()).output().unwrap()
    }

    fn json(&self, args: &[&str]) -> (i32, serde_json::Value) {
        let output = self.run(&[&["--json"], args].concat());
        let value = serde_json::from_slice(&output.stdout);
        let value = value.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code().unwrap(), value)
    }

    /// What the peer was told since the last time.
    fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.fake.0.told.lock().unwrap())
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn code(output: &std::process::Output) -> i32 {
    output.status.code().unwrap()
}

fn ok(output: &std::process::Output) {
    assert_eq!(code(output), 0, "{}", text(&output.stderr));
}

fn device(address: &str, kind: DeviceKind, right: i32) -> Device {
    Device {
        address: address.into(),
        kind: kind as i32,
        name: address.rsplit('/').next().unwrap().into(),
        right,
        state: "ready".into(),
        online: true,
        ..Default::default()
    }
}

fn devices() -> Vec<Device> {
    vec![
        device("acme/anna-pc/drives/dvd", DeviceKind::Drive, 2),
        device("acme/anna-pc/printers/laser", DeviceKind::Printer, 3),
        device("acme/carl-pc/printers/ink", DeviceKind::Printer, 1),
    ]
}

fn disc() -> State {
    let big: Vec<u8> = (0..5000u32).map(|n| (n % 251) as u8).collect();
    let files =
        [("docs/a.pdf", big), ("docs/deep/b.txt", b"bee".to_vec()), ("docs/empty", vec![]), ("readme", b"hi".to_vec())];
    State {
        devices: devices(),
        disc: files.into_iter().map(|(n, d)| (n.to_owned(), d)).collect(),
        generation: 7,
        ..State::default()
    }
}

#[test]
fn devices_are_listed_and_shown() {
    let peer = Running::start(disc());
    let (exit, list) = peer.json(&["devices"]);
    assert_eq!((exit, list["kind"].as_str()), (0, Some("shared_device_list")));
    assert_eq!(list["items"].as_array().unwrap().len(), 3);
    let (_, printers) = peer.json(&["devices", "--kind", "printer"]);
    assert_eq!(printers["items"].as_array().unwrap().len(), 2);
    let (_, one) = peer.json(&["devices", "laser"]);
    assert_eq!((one["kind"].as_str(), one["right"].as_str()), (Some("shared_device"), Some("write")));
    let (_, below) = peer.json(&["devices", "acme/carl-pc"]);
    assert_eq!(below["items"][0]["name"], "ink");
    let missing = peer.run(&["devices", "nothing", "--json"]);
    assert_eq!((code(&missing), failure(&missing)["reason"].as_str()), (4, Some("RESOURCE_UNKNOWN")));
    let shown = text(&peer.run(&["devices"]).stdout);
    assert!(shown.starts_with("acme/anna-pc/drives/dvd      drive    ready"), "{shown}");
}

#[test]
fn the_audit_is_shown_and_a_broken_chain_is_a_failure() {
    let peer = Running::start(State::default());
    let (exit, list) = peer.json(&["devices", "--audit"]);
    assert_eq!((exit, list["kind"].as_str()), (0, Some("device_audit_record_list")));
    assert_eq!(
        (list["items"][0]["granted"].as_bool(), list["items"][0]["reason"].as_str()),
        (Some(false), Some("ACCESS_DENIED"))
    );
    let (_, dvd) = peer.json(&["devices", "--audit", "acme/bert-pc/drives/dvd"]);
    assert_eq!(dvd["items"].as_array().unwrap().len(), 1);
    let output = peer.run(&["devices", "--audit", "--verify", "--json"]);
    assert_eq!((code(&output), failure(&output)["reason"].as_str()), (1, Some("STORE_CORRUPT")));
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list["verified"], false);
}

#[test]
fn a_device_is_shared_changed_and_unshared() {
    let peer = Running::start(State::default());
    let share = ["share", "printers/laser", "--output", "folder:out", "--with", "everyone", "--duplex"];
    let (exit, shared) = peer.json(&share);
    assert_eq!((exit, shared["kind"].as_str()), (0, Some("own_device")));
    assert_eq!(shared["grants"][0], serde_json::json!({"who": "everyone", "right": "write"}));
    let target = shared["target"].as_str().unwrap();
    assert!(target.starts_with("folder:/") && target.ends_with("/out"), "{target}");
    // Without an option of devices, it is the device because it is one already.
    let (_, changed) = peer.json(&["share", "printers/laser", "--with", "anna=manage", "--revoke", "everyone"]);
    assert_eq!(changed["grants"], serde_json::json!([{"who": "user:anna", "right": "manage"}]));
    assert_eq!(changed["target"], target);
    assert_eq!(peer.told(), ["share acme/bert-pc/printers/laser"; 2]);
    let (_, own) = peer.json(&["devices", "--own"]);
    assert_eq!(own["items"][0]["device"]["name"], "laser");
    ok(&peer.run(&["unshare", "printers/laser", "--force"]));
    assert_eq!(peer.told(), ["unshare acme/bert-pc/printers/laser force=true now=false"]);
    let wrong = peer.run(&["share", "drives/dvd", "--description", "x", "--with", "anna", "--json"]);
    assert_eq!(code(&wrong), 2);
    assert!(failure(&wrong)["fix"].as_str().unwrap().contains("--device"));
    let folder = peer.run(&["share", "folder", "--output", "cups:x", "--with", "anna", "--json"]);
    assert_eq!((code(&folder), peer.told().len()), (2, 0), "a folder is no printer");
}

#[test]
fn a_document_that_is_sent_twice_is_printed_once() {
    // The first answer is lost, the second time the printer knows the job.
    let peer = Running::start(State { break_next: Mutex::new(2), ..disc() });
    let file = peer.path("plan.pdf");
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n % 253) as u8).collect();
    std::fs::write(&file, &content).unwrap();
    let (exit, job) = peer.json(&["print", file.to_str().unwrap(), "--at", "laser", "--media", "a4"]);
    assert_eq!(
        (exit, job["kind"].as_str(), job["id"].as_str()),
        (0, Some("print_job"), Some("acme/anna-pc/printers/laser#1"))
    );
    assert_eq!(peer.told(), ["print plan.pdf at laser: 3000000 bytes"; 2]);
    let jobs = peer.fake.0.jobs.lock().unwrap();
    assert_eq!(jobs.len(), 1);
    assert!(jobs[0].1 == content);
    assert_eq!((jobs[0].0.size_bytes, jobs[0].0.media.as_str()), (3_000_000, "iso_a4_210x297mm"));
}

#[test]
fn several_files_and_standard_input_are_printed_at_the_only_printer() {
    let peer = Running::start(disc());
    std::fs::write(peer.path("a"), "first").unwrap();
    let missing = peer.run_there(&["print", "a", "missing", "--hold"]);
    assert_eq!(code(&missing), 3, "{}", text(&missing.stderr));
    assert_eq!(peer.told(), ["print a at acme/anna-pc/printers/laser: 5 bytes"], "the other one is only seen");
    let mut command = atrium(peer.home.path(), &peer.args(&["print", "-", "--name", "from a pipe"]));
    let input = std::fs::File::open(peer.path("a")).unwrap();
    ok(&command.stdin(input).output().unwrap());
    assert_eq!(peer.told(), ["print from a pipe at acme/anna-pc/printers/laser: 5 bytes"]);
    let ids: Vec<_> = peer.fake.0.jobs.lock().unwrap().iter().map(|(h, _)| h.request_id.clone()).collect();
    assert_ne!(ids[0], ids[1], "each file is a wish of its own");
    let pin = peer.run_there(&["print", "a", "--pin", "--json"]);
    assert!(failure(&pin)["fix"].as_str().unwrap().contains("--pin-file"), "nobody can be asked");
    std::fs::write(peer.path("pin"), "12\n").unwrap();
    assert_eq!(code(&peer.run_there(&["print", "a", "--pin-file", "pin"])), 2, "too short");
    assert!(peer.told().is_empty());
}

#[test]
fn jobs_are_listed_and_changed_by_the_name_that_is_listed() {
    let peer = Running::start(disc());
    std::fs::write(peer.path("a"), "x").unwrap();
    std::fs::write(peer.path("pin"), "4711\n").unwrap();
    ok(&peer.run_there(&["print", "a"]));
    ok(&peer.run_there(&["print", "a", "--pin-file", "pin"]));
    peer.told();
    let (exit, list) = peer.json(&["jobs"]);
    assert_eq!((exit, list["kind"].as_str()), (0, Some("print_job_list")));
    assert_eq!(list["items"][1]["id"], "acme/anna-pc/printers/laser#1");
    let shown = text(&peer.run(&["jobs", "laser", "--all"]).stdout);
    assert!(shown.lines().next().unwrap().contains("laser#2") && shown.contains("waits for its PIN"), "{shown}");
    ok(&peer.run(&["jobs", "hold", "laser#1"]));
    ok(&peer.run(&["jobs", "priority", "laser#1", "90"]));
    ok(&peer.run(&["jobs", "release", "acme/anna-pc/printers/laser#1"]));
    ok(&peer.run_there(&["jobs", "release", "laser#2", "--pin-file", "pin"]));
    assert_eq!(code(&peer.run(&["jobs", "cancel", "laser#1", "laser#9"])), 3);
    let asked = peer.run(&["jobs", "release", "laser#2", "--json"]);
    assert!(failure(&asked)["fix"].as_str().unwrap().contains("--pin-file"));
    assert_eq!(
        peer.told(),
        [
            "all jobs ended=false",
            "jobs of laser ended=true",
            "PRINT_JOB_VERB_HOLD laser#1 0 ",
            "PRINT_JOB_VERB_PRIORITY laser#1 90 ",
            "PRINT_JOB_VERB_SHOW acme/anna-pc/printers/laser#1 0 ",
            "PRINT_JOB_VERB_RELEASE acme/anna-pc/printers/laser#1 0 ",
            "PRINT_JOB_VERB_RELEASE laser#2 0 4711",
            "PRINT_JOB_VERB_CANCEL laser#1 0 ",
            "PRINT_JOB_VERB_CANCEL laser#9 0 ",
            "PRINT_JOB_VERB_SHOW laser#2 0 ",
        ]
    );
    ok(&peer.run(&["printer", "pause", "laser"]));
    ok(&peer.run(&["printer", "quota", "laser", "--sheets", "none", "--period", "7d"]));
    assert_eq!(
        peer.told(),
        ["printer laser Some(true) None None None", "printer laser None Some(0) None Some(604800)"]
    );
}

#[test]
fn a_disc_is_listed_like_a_share() {
    let peer = Running::start(disc());
    let (exit, top) = peer.json(&["ls", "acme/anna-pc/drives/dvd"]);
    assert_eq!((exit, top["kind"].as_str(), top["generation"].as_u64()), (0, Some("disc_entry_list"), Some(7)));
    assert_eq!(top["items"][0]["address"], "acme/anna-pc/drives/dvd/docs");
    assert_eq!(text(&peer.run(&["ls", "drives/dvd/docs"]).stdout), "a.pdf\ndeep/\nempty\n");
    let all = text(&peer.run(&["ls", "-R", "drives/dvd"]).stdout);
    assert!(all.lines().any(|l| l == "drives/dvd/docs/deep/b.txt"), "{all}");
    let one = text(&peer.run(&["ls", "drives/dvd/docs/a.pdf"]).stdout);
    assert!(one.contains("4.9 KiB") && one.trim_end().ends_with("a.pdf"), "{one}");
    let missing = peer.run(&["ls", "drives/dvd/x", "--json"]);
    assert_eq!((code(&missing), failure(&missing)["reason"].as_str()), (4, Some("ENTRY_UNKNOWN")));
    assert!(missing.stdout.is_empty());
}

#[test]
fn cat_goes_on_where_the_connection_broke() {
    let peer = Running::start(State { break_next: Mutex::new(2), ..disc() });
    let output = peer.run(&["cat", "acme/anna-pc/drives/dvd/docs/a.pdf"]);
    ok(&output);
    assert!(output.stdout == peer.fake.0.disc["docs/a.pdf"]);
    assert_eq!(peer.told().last().unwrap(), "read acme/anna-pc/drives/dvd docs/a.pdf from 2000");
}

#[test]
fn a_directory_of_a_disc_is_got_and_nothing_is_replaced() {
    let peer = Running::start(disc());
    let (exit, got) = peer.json(&["get", "drives/dvd", peer.path("copy").to_str().unwrap()]);
    assert_eq!((exit, got["files"].as_u64(), got["kind"].as_str()), (0, Some(4), Some("transfer")));
    for (name, data) in &peer.fake.0.disc {
        assert!(std::fs::read(peer.path("copy").join(name)).unwrap() == *data, "{name}");
    }
    assert_eq!(std::fs::read_dir(peer.path("copy/docs")).unwrap().count(), 3, "no parts are left");
    peer.told();
    let (_, again) = peer.json(&["get", "drives/dvd", peer.path("copy").to_str().unwrap()]);
    assert_eq!((again["files"].as_u64(), again["unchanged_files"].as_u64()), (Some(0), Some(4)));
    assert!(peer.told().is_empty(), "nothing was read again");
    std::fs::write(peer.path("copy/readme"), "mine").unwrap();
    assert_eq!(code(&peer.run(&["get", "drives/dvd", peer.path("copy").to_str().unwrap()])), 3);
    assert_eq!(std::fs::read(peer.path("copy/readme")).unwrap(), b"mine");
    ok(&peer.run(&["get", "-f", "drives/dvd/readme", peer.path("copy").to_str().unwrap()]));
    assert_eq!(std::fs::read(peer.path("copy/readme")).unwrap(), b"hi");
}

#[test]
fn an_interrupted_file_of_a_disc_goes_on_and_another_disc_begins_anew() {
    let peer = Running::start(State { break_next: Mutex::new(2), for_good: Mutex::new(true), ..disc() });
    let target = peer.path("a.pdf");
    assert_eq!(code(&peer.run(&["get", "drives/dvd/docs/a.pdf", target.to_str().unwrap()])), 1);
    assert!(!target.exists(), "nothing is called so before it is whole");
    ok(&peer.run(&["get", "drives/dvd/docs/a.pdf", target.to_str().unwrap()]));
    assert_eq!(peer.told(), ["read drives/dvd docs/a.pdf from 0", "read drives/dvd docs/a.pdf from 2000"]);
    assert!(std::fs::read(&target).unwrap() == peer.fake.0.disc["docs/a.pdf"]);
    // Half of the file is here, and then there is another disc in the drive.
    std::fs::remove_file(&target).unwrap();
    *peer.fake.0.break_next.lock().unwrap() = 2;
    assert_eq!(code(&peer.run(&["get", "drives/dvd/docs/a.pdf", target.to_str().unwrap()])), 1);
    let other = Running::start(State { generation: 8, ..disc() });
    let args = ["--peer", other.socket.to_str().unwrap(), "get", "drives/dvd/docs/a.pdf", target.to_str().unwrap()];
    ok(&run(peer.home.path(), &args));
    assert_eq!(other.told(), ["read drives/dvd docs/a.pdf from 0"]);
}

#[test]
fn a_disc_that_wants_to_do_harm_reaches_nothing() {
    let mut state = disc();
    state.disc.insert("..".into(), b"out".to_vec());
    state.disc.insert("a\u{1b}b".into(), b"control".to_vec());
    let peer = Running::start(state);
    let inside = peer.path("inside");
    assert_eq!(code(&peer.run(&["get", "drives/dvd", inside.to_str().unwrap()])), 3);
    assert_eq!(std::fs::read_dir(&inside).unwrap().count(), 2, "docs and readme");
    assert!(!text(&peer.run(&["ls", "drives/dvd"]).stdout).contains('\u{1b}'));
}

#[test]
fn a_command_runs_while_the_device_is_held() {
    let peer = Running::start(State::default());
    let script = "test \"$ATRIUM_FENCING_TOKEN\" = 7 && echo $ATRIUM_DEVICE && exit 42";
    let output = peer.run(&["use", "dvd", "--wait", "--for", "30m", "--", "sh", "-c", script]);
    assert_eq!((code(&output), text(&output.stdout).as_str()), (42, "dvd\n"));
    let said = text(&output.stderr);
    assert!(said.contains("1 is before you") && said.contains("carl at carl-pc asks for dvd: please"), "{said}");
    assert_eq!(peer.told(), ["use dvd LEASE_MODE_EXCLUSIVE 1800s wait=true watch=true"]);
    ok(&peer.run(&["use", "dvd", "--", "true"]));
    assert_eq!(code(&peer.run(&["use", "dvd", "--", "/nonexistent"])), 2);
    let (exit, lease) = peer.json(&["use", "dvd", "--shared"]);
    assert_eq!((exit, lease["kind"].as_str(), lease["state"].as_str()), (0, Some("lease"), Some("held")));
    assert_eq!(peer.told().last().unwrap(), "use dvd LEASE_MODE_SHARED 0s wait=false watch=false");
    ok(&peer.run(&["release", "dvd", "--take-back"]));
    let id = "0199e2a4-5b1c-7d3e-8f90-a1b2c3d4e5f6";
    ok(&peer.run(&["release", "dvd", "--lease", id]));
    assert_eq!(code(&peer.run(&["release", "dvd", "--lease", "7"])), 2);
    let told = peer.run(&["request", "dvd", "only", "five", "minutes"]);
    assert_eq!(text(&told.stdout), "anna at anna-pc was told\n");
    let one = format!("release dvd take_back=false lease={id}");
    assert_eq!(peer.told(), ["release dvd take_back=true", &one, "request dvd only five minutes"]);
}

#[test]
fn a_disk_waits_for_second_copies_to_leave_unless_told_otherwise() {
    let disk = || device("acme/bert-pc/disks/big", DeviceKind::Disk, 4);
    let own = || Mutex::new(vec![LocalDevice { device: Some(disk()), ..Default::default() }]);
    let peer = Running::start(State { own: own(), ..State::default() });
    let left = peer.run(&["unshare", "disks/big"]);
    ok(&left);
    let said = text(&left.stderr);
    assert!(said.contains("mirror of plans of bert leaves for acme/bert-pc"), "{said}");
    assert_eq!(peer.told(), ["leave acme/bert-pc/disks/big force=false"]);
    ok(&peer.run(&["unshare", "disks/big", "--force"]));
    ok(&peer.run(&["unshare", "disks/big", "--now"]));
    let told = peer.told();
    let now = "unshare acme/bert-pc/disks/big force=false now=true";
    assert_eq!(told, ["leave acme/bert-pc/disks/big force=true", now]);
    let stays = Running::start(State { own: own(), stays: true, ..State::default() });
    let broken = stays.run(&["unshare", "disks/big", "--json"]);
    assert_eq!(code(&broken), 6, "{}", text(&broken.stderr));
    assert!(failure(&broken)["fix"].as_str().unwrap().contains("atrium share acme/bert-pc/disks/big"));
    // Second copies that are nowhere else are no success.
    let (exit, list) = peer.json(&["space", "mirrors"]);
    assert_eq!((exit, list["items"][0]["state"].as_str()), (3, Some("whole")));
    assert_eq!(list["items"][1]["state"], "lost");
    let shown = text(&peer.run(&["space", "mirrors"]).stdout);
    assert!(shown.contains("(256 of 900), generation 3; 2 parts were sent again"), "{shown}");
}

#[test]
fn a_command_is_stopped_when_the_device_is_lost() {
    let peer = Running::start(State { lose: true, ..State::default() });
    // Far longer than any test may take.
    let output = peer.run(&["use", "dvd", "--json", "--", "sleep", "100000"]);
    assert_eq!(code(&output), 8, "{}", text(&output.stderr));
    assert_eq!(failure(&output)["reason"], "LEASE_LOST");
}

#[test]
fn discs_are_copied_offered_and_taken_out() {
    let peer = Running::start(disc());
    let file = peer.path("film.iso");
    let (exit, copy) = peer.json(&["disc", "rip", "dvd", file.to_str().unwrap()]);
    assert_eq!(
        (exit, copy["kind"].as_str(), copy["sources"][0]["received_bytes"].as_u64()),
        (0, Some("disc_copy"), Some(4096))
    );
    assert_eq!(peer.told(), [format!("rip dvd to {} retries=0", file.display())]);
    let bad = Running::start(State { bad_sectors: 3, ..disc() });
    let output = bad.run(&["disc", "rip", "dvd", file.to_str().unwrap(), "--retries", "9"]);
    assert_eq!(code(&output), 3, "done, with bad sectors");
    assert!(text(&output.stderr).contains("film.iso.map"), "{}", text(&output.stderr));
    let export = peer.run(&["disc", "export", "dvd"]);
    assert_eq!(text(&export.stdout), "nbd://127.0.0.1:10809\nhttp://127.0.0.1:8080/\n");
    assert!(text(&export.stderr).contains("the disc was changed"));
    let socket = peer.run_there(&["disc", "export", "dvd", "--nbd-socket", "dvd.sock"]);
    assert_eq!(text(&socket.stdout), format!("nbd+unix:///?socket={}\n", peer.path("dvd.sock").display()));
    let open = peer.run_there(&["disc", "export", "dvd", "--listen", "192.0.2.1", "--tls", "new/keys"]);
    let keys = peer.path("new/keys");
    assert_eq!(
        text(&open.stdout),
        format!("nbds://192.0.2.1:10809/?tls-certificates={}\n", keys.display().to_string().replace(' ', "%20"))
    );
    for (file, holds, mode) in [
        ("ca-cert.pem", "authority of the export", 0o644),
        ("client-cert.pem", "certificate of the export", 0o644),
        ("client-key.pem", "key of the export", 0o600),
    ] {
        assert_eq!(std::fs::read_to_string(keys.join(file)).unwrap(), holds);
        assert_eq!(std::fs::metadata(keys.join(file)).unwrap().permissions().mode() & 0o777, mode, "{file}");
    }
    for wrong in [&["--tls", "keys"][..], &["--plain"], &["--listen", "::", "--tls", "keys", "--plain"]] {
        assert_eq!(code(&peer.run(&[&["disc", "export", "dvd"], wrong].concat())), 2, "{wrong:?}");
    }
    ok(&peer.run(&["disc", "eject", "dvd"]));
    ok(&peer.run(&["disc", "insert", "drives/dvd", file.to_str().unwrap()]));
    let told = peer.told();
    assert_eq!(told, ["DRIVE_VERB_EJECT dvd ".to_owned(), format!("DRIVE_VERB_INSERT drives/dvd {}", file.display())]);
}

#[test]
fn files_go_to_borrowed_space_and_come_back_whole() {
    let peer = Running::start(State { break_next: Mutex::new(2), ..State::default() });
    let content: Vec<u8> = (0..2_000_000u32).map(|n| (n % 249) as u8).collect();
    std::fs::write(peer.path("raw.mov"), &content).unwrap();
    // The first put breaks in the middle and goes on from there.
    let output = peer.run_there(&["space", "put", "video", "raw.mov", "--json"]);
    ok(&output);
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((object["kind"].as_str(), object["partial_bytes"].as_u64()), (Some("space_object"), None));
    let told = peer.told();
    assert_eq!(told[1], "put raw.mov from 0");
    let from: u64 = told.last().unwrap().strip_prefix("put raw.mov from ").unwrap().parse().unwrap();
    assert!(from > 0, "{told:?}");
    assert!(peer.fake.0.objects.lock().unwrap()["raw.mov"].1 == content);
    let again = peer.run_there(&["space", "put", "1111", "raw.mov"]);
    assert!(text(&again.stdout).contains("was there already"));
    assert!(!peer.told().iter().any(|t| t.starts_with("put")));
    // It breaks on the way back too.
    *peer.fake.0.break_next.lock().unwrap() = 2;
    let (exit, _) = peer.json(&["space", "get", "video", "raw.mov", peer.path("back.mov").to_str().unwrap()]);
    assert_eq!(exit, 0);
    assert!(std::fs::read(peer.path("back.mov")).unwrap() == content);
    let told = peer.told();
    assert_eq!(told[1..], ["get raw.mov from 0", "get raw.mov from 2000"]);
    let here = peer.run(&["space", "get", "video", "raw.mov", peer.path("back.mov").to_str().unwrap()]);
    assert!(text(&here.stdout).contains("was here already"));
    std::fs::write(peer.path("back.mov"), "mine").unwrap();
    let kept = peer.run(&["space", "get", "video", "raw.mov", peer.path("back.mov").to_str().unwrap()]);
    assert_eq!((code(&kept), std::fs::read(peer.path("back.mov")).unwrap()), (8, b"mine".to_vec()));
}

#[test]
fn a_part_of_another_content_is_put_anew_and_damage_is_found() {
    let peer = Running::start(State::default());
    std::fs::write(peer.path("a"), "0123456789").unwrap();
    let part = SpaceObject { name: "a".into(), size_bytes: 10, partial_bytes: 4, ..Default::default() };
    peer.fake.0.objects.lock().unwrap().insert("a".into(), (part, b"zzzz".to_vec()));
    ok(&peer.run_there(&["space", "put", "video", "a"]));
    assert_eq!(peer.told()[1..], ["put a from 4", "put a from 0"]);
    peer.fake.0.objects.lock().unwrap().get_mut("a").unwrap().1[3] = b'x';
    let damaged = peer.run_there(&["space", "get", "video", "a", "b", "--json"]);
    assert_eq!(failure(&damaged)["reason"], "CHUNK_DAMAGED");
    assert!(!peer.path("b").exists());
    let (_, list) = peer.json(&["space", "ls", "video"]);
    assert_eq!((list["kind"].as_str(), list["items"][0]["name"].as_str()), (Some("space_object_list"), Some("a")));
    assert_eq!(code(&peer.run(&["space", "rm", "video", "a", "missing"])), 3);
    assert!(peer.fake.0.objects.lock().unwrap().is_empty());
}

#[test]
fn space_is_borrowed_renewed_given_back_and_mirrored() {
    let peer = Running::start(State::default());
    let (exit, space) = peer.json(&["space", "borrow", "big", "1GiB", "--for", "8h", "--label", "video"]);
    assert_eq!((exit, space["kind"].as_str(), space["type"].as_str()), (0, Some("space"), Some("scratch")));
    ok(&peer.run(&["space", "renew", "video", "--for", "1h"]));
    let unasked = peer.run(&["space", "return", "video", "--json"]);
    assert_eq!(code(&unasked), 2, "something is in it");
    ok(&peer.run(&["space", "return", "video", "--yes"]));
    ok(&peer.run(&["space", "list", "--lent"]));
    assert_eq!(
        peer.told(),
        [
            "borrow big 1073741824 28800s \"video\"",
            "borrowed lent=false",
            "renew acme/anna-pc/disks/big 3600s",
            "borrowed lent=false",
            "borrowed lent=false",
            "return acme/anna-pc/disks/big",
            "borrowed lent=true",
        ]
    );
    let (exit, copy) = peer.json(&["space", "mirror", "plans", "big", "--retention", "90d", "--next", "old"]);
    assert_eq!((exit, copy["kind"].as_str(), copy["generation"].as_u64()), (0, Some("mirror_copy"), Some(2)));
    let broken = peer.run(&["space", "restore", "plans", peer.path("again").to_str().unwrap(), "--json"]);
    assert_eq!(code(&broken), 6, "it was not done");
    let again = peer.path("again");
    assert_eq!(
        peer.told(),
        ["mirror plans to big 0 7776000s then old".to_owned(), format!("restore plans to {} 0", again.display())]
    );
}
