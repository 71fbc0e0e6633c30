//! A peer that is made up: printers, discs, leases and borrowed space.

use crate::process::{atrium, run};
use common::error::{Error, Reason};
use common::status::to_status;
use proto::peer::v1::device_service_server::{DeviceService, DeviceServiceServer};
use proto::peer::v1::local_device_service_server::{LocalDeviceService, LocalDeviceServiceServer};
use proto::peer::v1::*;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

pub type Answer<T> = Result<Response<T>, Status>;
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What is on the disc, and what the peer was told.
#[derive(Clone, Default)]
pub struct Fake(pub Arc<State>);

#[derive(Default)]
pub struct State {
    pub devices: Vec<Device>,
    pub own: Mutex<Vec<LocalDevice>>,
    pub told: Mutex<Vec<String>>,
    pub jobs: Mutex<Vec<(PrintHeader, Vec<u8>)>>,
    /// Calls of Print and of ReadDiscFile that break before they are answered wholly.
    pub break_next: Mutex<u32>,
    /// They break for good, so that trying again does not help.
    pub for_good: Mutex<bool>,
    pub disc: BTreeMap<String, Vec<u8>>,
    pub generation: u64,
    pub objects: Mutex<BTreeMap<String, (SpaceObject, Vec<u8>)>>,
    /// The lease is lost as soon as it is held.
    pub lose: bool,
    /// Second copies do not leave the disk while the call lasts.
    pub stays: bool,
    pub bad_sectors: u64,
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

pub fn answers<T: Send + 'static>(all: Vec<Result<T, Status>>) -> Answer<Answers<T>> {
    Ok(Response::new(Box::pin(tokio_stream::iter(all))))
}

pub fn not_here<T>() -> Result<T, Status> {
    Err(Status::unimplemented("these tests do not call it"))
}

/// A directory of the disc: what lies right in it.
pub fn entries(disc: &BTreeMap<String, Vec<u8>>, path: &str) -> Vec<DiscEntry> {
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

pub fn space() -> Space {
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

pub struct Running {
    pub home: TempDir,
    pub socket: PathBuf,
    pub fake: Fake,
    pub _runtime: tokio::runtime::Runtime,
}

impl Running {
    pub fn start(state: State) -> Self {
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [&["--peer", self.socket.to_str().unwrap()], args].concat()
    }

    pub fn run(&self, args: &[&str]) -> std::process::Output {
        run(self.home.path(), &self.args(args))
    }

    /// In the home directory.
    pub fn run_there(&self, args: &[&str]) -> std::process::Output {
        atrium(self.home.path(), &self.args(args)).current_dir(self.home.path()).output().unwrap()
    }

    pub fn json(&self, args: &[&str]) -> (i32, serde_json::Value) {
        let output = self.run(&[&["--json"], args].concat());
        let value = serde_json::from_slice(&output.stdout);
        let value = value.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code().unwrap(), value)
    }

    /// What the peer was told since the last time.
    pub fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.fake.0.told.lock().unwrap())
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub fn code(output: &std::process::Output) -> i32 {
    output.status.code().unwrap()
}

pub fn ok(output: &std::process::Output) {
    assert_eq!(code(output), 0, "{}", text(&output.stderr));
}

pub fn device(address: &str, kind: DeviceKind, right: i32) -> Device {
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

pub fn devices() -> Vec<Device> {
    vec![
        device("acme/anna-pc/drives/dvd", DeviceKind::Drive, 2),
        device("acme/anna-pc/printers/laser", DeviceKind::Printer, 3),
        device("acme/carl-pc/printers/ink", DeviceKind::Printer, 1),
    ]
}

pub fn disc() -> State {
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
