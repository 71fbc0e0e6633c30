//! A small office for tests: CA, server with a mirror service, devices.

use atrium_common::clock::{Clock, ManualClock, SystemClock};
use atrium_common::error::{Error, Reason};
use atrium_common::identity::{DeviceId, DeviceKey, DeviceRequest};
use atrium_common::rpc::{ConnectOptions, OfficeChannel, OfficeConnection, REQUEST_ID_HEADER, tuned_server};
use atrium_common::status::to_status;
use atrium_common::tls::{
    AcceptLimits, AcceptStats, Acceptor, DEVICE_LIFETIME, DeviceCredentials, OfficeCa, PeerIdentity, ServerKey,
    ServerTls,
};
use futures_util::Stream;
use parking_lot::Mutex;
use proto::v1;
use proto::v1::enrolment_service_client::EnrolmentServiceClient;
use proto::v1::enrolment_service_server::{EnrolmentService, EnrolmentServiceServer};
use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status};

pub fn now_ms() -> u64 {
    SystemClock.now_ms()
}

pub const DAY_MS: u64 = 86_400_000;

/// A CA and what a server needs. The server's clock can be turned; it begins with the real time.
pub struct Office {
    pub ca: OfficeCa,
    pub key: ServerKey,
    pub tls: ServerTls,
    pub clock: Arc<ManualClock>,
}

impl Office {
    pub fn new() -> Self {
        let ca = OfficeCa::create("Acme", now_ms()).unwrap();
        let key = ServerKey::generate().unwrap();
        let certificate = ca.issue_server(&[], &key, now_ms()).unwrap();
        let clock = Arc::new(ManualClock::new(now_ms()));
        let tls = ServerTls::new(&certificate, ca.ca_pem(), clock.clone()).unwrap();
        Self { ca, key, tls, clock }
    }

    pub fn device(&self) -> DeviceCredentials {
        let key = Arc::new(DeviceKey::generate());
        let request = DeviceRequest::check(&key.certificate_request().unwrap()).unwrap();
        let certificate_pem = self.ca.issue_device(&request, DEVICE_LIFETIME, now_ms()).unwrap();
        DeviceCredentials { key, certificate_pem }
    }

    pub fn options(&self, server: &Server) -> ConnectOptions {
        ConnectOptions::new(server.addr.to_string(), self.ca.ca_pem())
    }
}

/// Tells callers what the server knows of them.
#[derive(Clone, Default)]
pub struct Mirror {
    pub revoked: Arc<Mutex<HashSet<DeviceId>>>,
}

#[tonic::async_trait]
impl EnrolmentService for Mirror {
    async fn begin_enrolment(
        &self,
        request: Request<v1::BeginEnrolmentRequest>,
    ) -> Result<Response<v1::BeginEnrolmentResponse>, Status> {
        let peer = request.extensions().get::<PeerIdentity>().expect("every request has it");
        if peer.device.is_some_and(|d| self.revoked.lock().contains(&d)) {
            return Err(to_status(&Error::new(Reason::DeviceRevoked, "cut off")));
        }
        let header = |name| request.metadata().get(name).and_then(|v| v.to_str().ok()).unwrap_or("-").to_owned();
        let or_none = |id: Option<DeviceId>| id.map_or("-".to_owned(), |d| d.to_string());
        let text = [
            or_none(peer.device),
            or_none(peer.expired_device),
            header("authorization"),
            header(REQUEST_ID_HEADER),
            peer.local_unix.map_or("-".to_owned(), |c| c.uid.to_string()),
            peer.remote_addr.map_or("-".to_owned(), |a| a.ip().to_string()),
            peer.device_public_key.map_or("-".to_owned(), |k| or_none(Some(DeviceId::of_key(&k)))),
        ];
        Ok(Response::new(v1::BeginEnrolmentResponse { exchange_id: text.join("|"), ..Default::default() }))
    }

    async fn finish_enrolment(
        &self,
        _: Request<v1::FinishEnrolmentRequest>,
    ) -> Result<Response<v1::FinishEnrolmentResponse>, Status> {
        Err(Status::unimplemented("a mirror"))
    }
}

/// What the mirror said.
#[derive(Debug, PartialEq, Eq)]
pub struct Reflection {
    pub device: String,
    pub expired: String,
    pub authorization: String,
    pub request_id: String,
    pub uid: String,
    pub remote: String,
    pub key_id: String,
}

pub async fn reflect(channel: OfficeChannel) -> Result<Reflection, Error> {
    let request = v1::BeginEnrolmentRequest::default();
    let answer = EnrolmentServiceClient::new(channel).begin_enrolment(request).await?.into_inner();
    let parts: Vec<String> = answer.exchange_id.split('|').map(str::to_owned).collect();
    let [device, expired, authorization, request_id, uid, remote, key_id]: [String; 7] = parts.try_into().unwrap();
    Ok(Reflection { device, expired, authorization, request_id, uid, remote, key_id })
}

/// A server that stops when this is dropped.
pub struct Server {
    pub addr: SocketAddr,
    pub stats: Arc<AcceptStats>,
    pub mirror: Mirror,
    _stop: DropGuard,
}

pub async fn start(tls: &ServerTls) -> Server {
    start_with(tls, AcceptLimits::default()).await
}

pub async fn start_with(tls: &ServerTls, limits: AcceptLimits) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let acceptor = Acceptor::new(listener, tls.clone(), limits).unwrap();
    let (addr, stats) = (acceptor.local_addr(), acceptor.stats());
    let mirror = Mirror::default();
    let stop = serve(acceptor, mirror.clone());
    Server { addr, stats, mirror, _stop: stop }
}

/// Serves until the guard is dropped.
pub fn serve<S>(incoming: S, service: impl EnrolmentService) -> DropGuard
where
    S: Stream<Item = io::Result<atrium_common::tls::Connection>> + Send + Unpin + 'static,
{
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    tokio::spawn(async move {
        tuned_server()
            .add_service(EnrolmentServiceServer::new(service))
            .serve_with_incoming_shutdown(incoming, stopped)
            .await
            .unwrap();
    });
    stop.drop_guard()
}

/// The error of a connection that must not come about.
pub async fn refused(options: &ConnectOptions) -> Error {
    match OfficeConnection::connect(options).await {
        Ok(_) => panic!("the connection should have been refused"),
        Err(error) => error,
    }
}
