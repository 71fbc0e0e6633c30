//! A few nodes with devices that reach each other without a network.

use crate::catalogue_office::{Machine, Office, Seat, caller, grant, in_process};
use common::error::{Error, Result};
use common::identity::DeviceKey;
use common::model::{DeviceId, Right};
use common::settings::{ByteSize, HumanDuration};
use common::shutdown::Shutdown;
use common::status::from_status;
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use peer_node::catalogue::{Node, PeerChannel};
use peer_node::devices::{DeviceGrpc, DeviceParts, Devices, OwnGrpc, Side};
use peer_node::settings::DeviceSettings;
use prost::Message;
use proto::peer::v1 as wire;
use proto::peer::v1::device_service_client::DeviceServiceClient;
use proto::peer::v1::local_device_service_client::LocalDeviceServiceClient;
use proto::peer::v1::share_device_request::Kind as Share;
use proto::v1::Grant;
use proto::v1::principal::Kind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tonic::Status;

pub type Client = DeviceServiceClient<PeerChannel>;

/// A node with devices.
pub struct DeviceNode {
    pub machine: Machine,
    pub devices: Devices,
    pub shutdown: Shutdown,
}

impl DeviceNode {
    pub async fn new(office: &Arc<Office>, name: &str, person: &str) -> Self {
        let machine = Machine::new(office, name, person);
        let (devices, shutdown) = Self::open(&machine).await;
        Self { machine, devices, shutdown }
    }

    async fn open(machine: &Machine) -> (Devices, Shutdown) {
        let shutdown = Shutdown::new(Duration::from_secs(30));
        let seat = Seat::new(&machine.office, machine.id());
        let settings = DeviceSettings {
            ipp_listen: Vec::new(),
            ipps_listen: Vec::new(),
            announce: false,
            spool_limit: ByteSize::mib(64),
            disc_cache: ByteSize::mib(64),
            mirror_look: HumanDuration::millis(100),
            ..DeviceSettings::default()
        };
        let parts = DeviceParts {
            store: machine.store.clone(),
            roster: seat.clone(),
            peers: seat,
            clock: machine.clock.clone(),
            shutdown: shutdown.clone(),
            directory: machine.dir.path().join("devices"),
            settings,
            catalogue: machine.catalogue.clone(),
        };
        let devices = Devices::open(parts).await.unwrap();
        let service = DeviceGrpc::service(devices.clone(), Side::Nodes(caller));
        let made = Arc::new(move |from| in_process(service.clone(), from));
        machine.office.services.lock().insert(machine.id(), made);
        (devices, shutdown)
    }

    /// As after a restart of the program.
    pub async fn restart(self) -> Self {
        let Self { machine, devices, shutdown } = self;
        devices.close().await;
        shutdown.begin();
        shutdown.drained().await;
        drop(devices);
        machine.office.services.lock().remove(&machine.id());
        let (devices, shutdown) = Self::open(&machine).await;
        Self { machine, devices, shutdown }
    }

    pub fn id(&self) -> DeviceId {
        self.machine.id()
    }

    /// A client of this node's service, as another device.
    pub fn client(&self, from: DeviceId) -> Client {
        let service = self.machine.office.services.lock().get(&self.id()).unwrap().clone();
        wide(service(from))
    }

    /// A client on this node's own socket.
    pub fn local(&self) -> Client {
        wide(in_process(DeviceGrpc::service(self.devices.clone(), Side::Local), self.id()))
    }

    /// The same, for what only its person may do.
    pub fn own(&self) -> LocalDeviceServiceClient<PeerChannel> {
        LocalDeviceServiceClient::new(in_process(OwnGrpc::service(self.devices.clone()), self.id()))
    }

    pub async fn share(&self, name: &str, kind: Share, grants: &[Grant]) -> Result<wire::LocalDevice> {
        let grants = grants.to_vec();
        let share = wire::ShareDeviceRequest { name: name.into(), kind: Some(kind), grants, ..Default::default() };
        self.devices.share(share).await
    }

    /// A printer whose jobs become files in a folder.
    pub fn folder_printer(&self, folder: &str) -> Share {
        let kind = wire::printer_output::Kind::Folder(path_text(&self.machine.folder(folder)));
        printer_to(kind)
    }

    /// A drive with a disc of these bytes.
    pub fn drive_with(&self, image: &[u8]) -> Share {
        let path = self.machine.write("disc.iso", image);
        Share::Drive(wire::DriveShare { kind: Some(wire::drive_share::Kind::Image(path_text(&path))) })
    }

    pub fn disk(&self, folder: &str) -> Share {
        let folder = path_text(&self.machine.folder(folder));
        Share::Disk(wire::DiskShare { folder, size_bytes: 64 << 20, reserve_bytes: 1, per_person_bytes: 0 })
    }

    /// The disc that is in a drive of this node, when it is ready.
    pub async fn generation(&self, device: &str, above: u64) -> u64 {
        let mut seen = self.client(self.id()).watch_devices(wire::WatchDevicesRequest {}).await.unwrap().into_inner();
        let wait = async {
            loop {
                let devices = seen.message().await.unwrap().unwrap().devices;
                for device in devices.iter().filter(|d| d.address.ends_with(device) && d.state == "ready") {
                    if let Some(wire::device::Detail::Drive(d)) = &device.detail
                        && d.generation > above
                    {
                        return d.generation;
                    }
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("no disc within 30 s")
    }
}

pub fn printer_to(kind: wire::printer_output::Kind) -> Share {
    let output = Some(wire::PrinterOutput { kind: Some(kind) });
    Share::Printer(wire::PrinterShare { output, ..Default::default() })
}

pub fn path_text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn wide(channel: PeerChannel) -> Client {
    let most = (1 << 20) + (64 << 10);
    DeviceServiceClient::new(channel).max_decoding_message_size(most).max_encoding_message_size(most)
}

/// A machine of a member that has no devices itself.
pub fn member(office: &Arc<Office>, person: &str) -> DeviceId {
    let device = DeviceKey::generate().device_id();
    let node = Node { device, name: format!("acme/{person}-pc"), person: person.to_owned() };
    office.change(|m| m.nodes.push(node));
    device
}

pub fn to(person: &str, right: Right) -> Grant {
    grant(Kind::User(person.into()), right)
}

/// Bytes that differ everywhere.
pub fn noise(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut out);
    out
}

/// The error in words.
pub fn why<T>(answer: Result<T, Status>) -> Error {
    from_status(&answer.err().expect("it was granted"))
}

/// A call that sends these messages and then breaks off: what came as its status.
pub async fn broken_call<M: Message>(
    devices: &Devices,
    side: Side,
    from: DeviceId,
    method: &str,
    messages: &[M],
) -> String {
    use tower::Service;
    let frame = |m: &M| {
        let bytes = m.encode_to_vec();
        let mut frame = vec![0];
        frame.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        frame.extend_from_slice(&bytes);
        Ok(http_body::Frame::data(bytes::Bytes::from(frame)))
    };
    let mut frames: Vec<Result<_, Status>> = messages.iter().map(frame).collect();
    frames.push(Err(Status::unavailable("the connection broke off")));
    let body = tonic::body::Body::new(StreamBody::new(tokio_stream::iter(frames)));
    let request = http::Request::post(format!("/atrium.peer.v1.DeviceService/{method}"))
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap();
    let mut service = in_process(DeviceGrpc::service(devices.clone(), side), from);
    let answer = service.call(request).await.unwrap();
    let status = |headers: &http::HeaderMap| headers.get("grpc-status").map(|s| s.to_str().unwrap().to_owned());
    match status(answer.headers()) {
        Some(status) => status,
        None => status(answer.into_body().collect().await.unwrap().trailers().unwrap()).unwrap(),
    }
}

/// A node that answers every call about a kept block with bytes that are not the block's; counts the calls.
pub fn liar(office: &Arc<Office>, device: DeviceId) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let service = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
        let counted = counted.clone();
        async move {
            assert!(request.uri().path().ends_with("/ReadKeptBlock"), "{}", request.uri());
            counted.fetch_add(1, Ordering::Relaxed);
            let bytes = wire::ReadKeptBlockResponse { data: vec![7; 1 << 20].into() }.encode_to_vec();
            let mut frame = vec![0];
            frame.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            frame.extend_from_slice(&bytes);
            let trailers = http::HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                http::HeaderValue::from_static("0"),
            )]);
            let frames: Vec<Result<_, Status>> =
                vec![Ok(http_body::Frame::data(bytes::Bytes::from(frame))), Ok(http_body::Frame::trailers(trailers))];
            let body = tonic::body::Body::new(StreamBody::new(tokio_stream::iter(frames)));
            let answer = http::Response::builder().header("content-type", "application/grpc").body(body);
            Ok::<_, std::convert::Infallible>(answer.unwrap())
        }
    });
    let service = Mutex::new(service);
    let made = Arc::new(move |from| in_process(service.lock().clone(), from));
    office.services.lock().insert(device, made);
    count
}
