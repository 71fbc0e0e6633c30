//! Joining over the network: the honest way, and everyone who tries otherwise.

use crate::office::{DAY_MS, Office, serve};
use atrium_common::clock::SystemClock;
use atrium_common::enrol::{Answer, Code, Exchanges, Joiner, Proven, join_office};
use atrium_common::error::{Error, Reason, Result};
use atrium_common::identity::{DeviceKey, DeviceRequest};
use atrium_common::rpc::{CONNECT_TIMEOUT, ConnectOptions, OfficeConnection};
use atrium_common::status::to_status;
use atrium_common::tls::{AcceptLimits, Acceptor, ClientTls, DEVICE_LIFETIME, DeviceCredentials, ServerTls};
use parking_lot::Mutex;
use proto::v1;
use proto::v1::enrolment_service_client::EnrolmentServiceClient;
use proto::v1::enrolment_service_server::EnrolmentService;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::DropGuard;
use tonic::{Request, Response, Status};

const CODE: &str = "7-amber-lion-canal";

/// What a dishonest or broken server does with its answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trick {
    None,
    /// Another office's CA put in after the proof was made.
    OtherCa,
    /// A certificate for another machine, with a proof.
    OtherMachine,
    /// Another machine's id, with a proof.
    OtherId,
    /// A CA that did not sign the server's own certificate, with a proof.
    NotItsOwnCa,
    /// An answer without end.
    Huge,
}

/// The server's side, as the central server has it, in small.
struct Desk {
    office: Office,
    exchanges: Exchanges,
    invites: Mutex<HashMap<String, Code>>,
    trick: Trick,
    begun: Mutex<Vec<v1::BeginEnrolmentRequest>>,
    finished: Mutex<Vec<v1::FinishEnrolmentRequest>>,
}

#[derive(Clone)]
struct Service(Arc<Desk>);

impl Desk {
    fn begin(&self, request: &v1::BeginEnrolmentRequest) -> Result<v1::BeginEnrolmentResponse> {
        let code = self.invites.lock().get(&request.nameplate).cloned();
        let code = code.ok_or_else(|| Error::new(Reason::InviteUnknown, "no such invite"))?;
        let begun = self.exchanges.begin(&code, &request.spake_message, self.office.tls.spki_sha256()?)?;
        Ok(v1::BeginEnrolmentResponse { exchange_id: begun.exchange_id, spake_message: begun.spake_message.into() })
    }

    fn finish(&self, r: &v1::FinishEnrolmentRequest) -> Result<v1::FinishEnrolmentResponse> {
        let finished = self.exchanges.finish(&r.exchange_id, &r.confirmation, &r.certificate_request, &r.display_name);
        let proven = finished.inspect_err(|error| {
            if let Some(nameplate) = error.detail("nameplate") {
                self.invites.lock().remove(nameplate);
            }
        })?;
        self.invites.lock().remove(&proven.nameplate);
        self.admit(&proven)
    }

    fn admit(&self, proven: &Proven) -> Result<v1::FinishEnrolmentResponse> {
        let other = Office::new();
        let stranger = DeviceRequest::check(&DeviceKey::generate().certificate_request()?)?;
        let request = if self.trick == Trick::OtherMachine { stranger } else { proven.request };
        let ca = if self.trick == Trick::NotItsOwnCa { &other.ca } else { &self.office.ca };
        let now_ms = crate::office::now_ms();
        let mut answer = Answer {
            office: ca.office().to_owned(),
            ca_pem: ca.ca_pem().to_owned(),
            certificate_pem: ca.issue_device(&request, DEVICE_LIFETIME, now_ms)?,
            device_id: proven.request.device_id().to_string(),
        };
        match self.trick {
            Trick::OtherId => answer.device_id = stranger.device_id().to_string(),
            Trick::Huge => answer.ca_pem = "x".repeat(1024 * 1024),
            _ => {}
        }
        let confirmation = proven.confirm(&answer).to_vec().into();
        if self.trick == Trick::OtherCa {
            answer.ca_pem = other.ca.ca_pem().to_owned();
        }
        Ok(v1::FinishEnrolmentResponse {
            confirmation,
            office: answer.office,
            ca_pem: answer.ca_pem,
            certificate_pem: answer.certificate_pem,
            device_id: answer.device_id,
        })
    }
}

#[tonic::async_trait]
impl EnrolmentService for Service {
    async fn begin_enrolment(
        &self,
        request: Request<v1::BeginEnrolmentRequest>,
    ) -> Result<Response<v1::BeginEnrolmentResponse>, Status> {
        self.0.begun.lock().push(request.get_ref().clone());
        self.0.begin(request.get_ref()).map(Response::new).map_err(|e| to_status(&e))
    }

    async fn finish_enrolment(
        &self,
        request: Request<v1::FinishEnrolmentRequest>,
    ) -> Result<Response<v1::FinishEnrolmentResponse>, Status> {
        self.0.finished.lock().push(request.get_ref().clone());
        self.0.finish(request.get_ref()).map(Response::new).map_err(|e| to_status(&e))
    }
}

struct Running {
    desk: Arc<Desk>,
    addr: SocketAddr,
    _stop: DropGuard,
}

async fn listen(tls: &ServerTls, service: impl EnrolmentService) -> (SocketAddr, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let acceptor = Acceptor::new(listener, tls.clone(), AcceptLimits::default()).unwrap();
    let addr = acceptor.local_addr();
    (addr, serve(acceptor, service))
}

async fn office_with(code: &str, trick: Trick) -> Running {
    let code: Code = code.parse().unwrap();
    let desk = Arc::new(Desk {
        office: Office::new(),
        exchanges: Exchanges::new(Arc::new(SystemClock)),
        invites: Mutex::new(HashMap::from([(code.nameplate(), code)])),
        trick,
        begun: Mutex::default(),
        finished: Mutex::default(),
    });
    let (addr, stop) = listen(&desk.office.tls, Service(desk.clone())).await;
    Running { desk, addr, _stop: stop }
}

async fn join(addr: SocketAddr, code: &str) -> Result<()> {
    join_office(&addr.to_string(), code, "anna-pc", &DeviceKey::generate()).await.map(|_| ())
}

#[tokio::test]
async fn a_machine_joins_and_is_known_from_then_on() {
    let office = office_with(CODE, Trick::None).await;
    let key = Arc::new(DeviceKey::generate());
    let joined = join_office(&office.addr.to_string(), " 7 AMBER lion canal ", "anna-pc", &key).await.unwrap();
    assert_eq!((joined.office.as_str(), joined.device_id), ("Acme", key.device_id()));
    assert_eq!(joined.server, office.addr.to_string());
    assert!(joined.not_after_ms - joined.not_before_ms >= 7 * DAY_MS);
    let device = DeviceCredentials { key, certificate_pem: joined.certificate_pem };
    OfficeConnection::connect(&ConnectOptions::new(joined.server, joined.ca_pem).device(device)).await.unwrap();
    // The code was for one machine.
    assert!(join(office.addr, CODE).await.unwrap_err().is(Reason::InviteUnknown));
}

#[tokio::test]
async fn one_wrong_guess_burns_the_code() {
    let office = office_with(CODE, Trick::None).await;
    let error = join(office.addr, "7-amber-lion-island").await.unwrap_err();
    assert!(error.is(Reason::InviteCodeWrong), "{error:?}");
    assert!(join(office.addr, CODE).await.unwrap_err().is(Reason::InviteUnknown));
}

#[tokio::test]
async fn an_unknown_number_and_a_slip_burn_nothing() {
    let office = office_with(CODE, Trick::None).await;
    assert!(join(office.addr, "8-amber-lion-canal").await.unwrap_err().is(Reason::InviteUnknown));
    assert!(join(office.addr, "7-amber-lyon-canal").await.unwrap_err().is(Reason::FieldInvalid));
    let nameless = join_office(&office.addr.to_string(), CODE, " ", &DeviceKey::generate()).await.unwrap_err();
    assert!(nameless.is(Reason::FieldInvalid));
    join(office.addr, CODE).await.unwrap();
}

/// Passes everything on between a joiner and the true office, with a TLS key of its own.
#[derive(Clone)]
struct InBetween(OfficeConnection);

#[tonic::async_trait]
impl EnrolmentService for InBetween {
    async fn begin_enrolment(
        &self,
        request: Request<v1::BeginEnrolmentRequest>,
    ) -> Result<Response<v1::BeginEnrolmentResponse>, Status> {
        EnrolmentServiceClient::new(self.0.control()).begin_enrolment(request.into_inner()).await
    }

    async fn finish_enrolment(
        &self,
        request: Request<v1::FinishEnrolmentRequest>,
    ) -> Result<Response<v1::FinishEnrolmentResponse>, Status> {
        EnrolmentServiceClient::new(self.0.control()).finish_enrolment(request.into_inner()).await
    }
}

#[tokio::test]
async fn someone_in_between_is_noticed_and_the_code_is_burned() {
    let office = office_with(CODE, Trick::None).await;
    let (tls, _) = ClientTls::capture().unwrap();
    let onward = OfficeConnection::over_tls(&office.addr.to_string(), tls, CONNECT_TIMEOUT, 1).unwrap();
    let spy = Office::new();
    let (spys_addr, _stop) = listen(&spy.tls, InBetween(onward)).await;
    let error = join(spys_addr, CODE).await.unwrap_err();
    assert!(error.is(Reason::InviteCodeWrong), "{error:?}");
    assert!(join(office.addr, CODE).await.unwrap_err().is(Reason::InviteUnknown));
}

/// A server that does not know the code and says that all is well.
#[derive(Clone)]
struct Pretender(Arc<Office>);

#[tonic::async_trait]
impl EnrolmentService for Pretender {
    async fn begin_enrolment(
        &self,
        request: Request<v1::BeginEnrolmentRequest>,
    ) -> Result<Response<v1::BeginEnrolmentResponse>, Status> {
        let guess: Code = "7-zodiac-zigzag-zinc".parse().map_err(|e: Error| to_status(&e))?;
        let exchanges = Exchanges::new(Arc::new(SystemClock));
        let begun = exchanges.begin(&guess, &request.into_inner().spake_message, [0; 32])?;
        Ok(Response::new(v1::BeginEnrolmentResponse {
            exchange_id: begun.exchange_id,
            spake_message: begun.spake_message.into(),
        }))
    }

    async fn finish_enrolment(
        &self,
        request: Request<v1::FinishEnrolmentRequest>,
    ) -> Result<Response<v1::FinishEnrolmentResponse>, Status> {
        let asked = request.into_inner();
        let device = DeviceRequest::check(&asked.certificate_request)?;
        Ok(Response::new(v1::FinishEnrolmentResponse {
            // The joiner's own proof sent back.
            confirmation: asked.confirmation,
            office: "Acme".into(),
            ca_pem: self.0.ca.ca_pem().into(),
            certificate_pem: self.0.ca.issue_device(&device, DEVICE_LIFETIME, crate::office::now_ms())?,
            device_id: device.device_id().to_string(),
        }))
    }
}

#[tokio::test]
async fn a_server_that_does_not_know_the_code_is_not_believed() {
    let office = Arc::new(Office::new());
    let (addr, _stop) = listen(&office.tls, Pretender(office.clone())).await;
    let error = join(addr, CODE).await.unwrap_err();
    assert!(error.is(Reason::OfficeProofWrong), "{error:?}");
}

#[tokio::test]
async fn an_answer_that_was_changed_or_makes_no_sense_is_not_believed() {
    for (trick, reason) in [
        (Trick::OtherCa, Reason::OfficeProofWrong),
        (Trick::OtherMachine, Reason::CertificateInvalid),
        (Trick::OtherId, Reason::CertificateInvalid),
        (Trick::NotItsOwnCa, Reason::TlsFailed),
        (Trick::Huge, Reason::MessageTooLarge),
    ] {
        let office = office_with(CODE, trick).await;
        let error = join(office.addr, CODE).await.unwrap_err();
        assert!(error.is(reason), "{reason:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_recorded_exchange_is_worth_nothing() {
    let office = office_with(CODE, Trick::None).await;
    join(office.addr, CODE).await.unwrap();
    let (begin, finish) = (office.desk.begun.lock()[0].clone(), office.desk.finished.lock()[0].clone());

    let (tls, _) = ClientTls::capture().unwrap();
    let thief = OfficeConnection::over_tls(&office.addr.to_string(), tls, CONNECT_TIMEOUT, 1).unwrap();
    let mut client = EnrolmentServiceClient::new(thief.control());
    let again = Error::from(client.finish_enrolment(finish.clone()).await.unwrap_err());
    assert!(again.is(Reason::ExchangeUnknown), "{again:?}");

    // Even if the same code were given out a second time.
    office.desk.invites.lock().insert("7".into(), CODE.parse().unwrap());
    let begun = client.begin_enrolment(begin).await.unwrap().into_inner();
    let replayed = v1::FinishEnrolmentRequest { exchange_id: begun.exchange_id, ..finish };
    let error = Error::from(client.finish_enrolment(replayed).await.unwrap_err());
    assert!(error.is(Reason::InviteCodeWrong), "{error:?}");
}

#[tokio::test]
async fn malformed_messages_get_an_error_and_take_no_exchange() {
    let office = office_with(CODE, Trick::None).await;
    let (tls, _) = ClientTls::capture().unwrap();
    let connection = OfficeConnection::over_tls(&office.addr.to_string(), tls, CONNECT_TIMEOUT, 1).unwrap();
    let mut client = EnrolmentServiceClient::new(connection.control());
    for wrong in [&b""[..], b"A", &[b'B'; 33], &[b'A'; 34], &[b'A'; 4096]] {
        let request = v1::BeginEnrolmentRequest { nameplate: "7".into(), spake_message: wrong.to_vec().into() };
        let error = Error::from(client.begin_enrolment(request).await.unwrap_err());
        assert!(error.is(Reason::FieldInvalid), "{error:?}");
    }
    assert!(office.desk.exchanges.is_empty());
    // A message of the right length that is no point of the curve is a wrong guess.
    let (_, mut message) = Joiner::start(&CODE.parse().unwrap());
    message[1..].fill(0xff);
    let request = v1::BeginEnrolmentRequest { nameplate: "7".into(), spake_message: message.into() };
    let begun = client.begin_enrolment(request).await.unwrap().into_inner();
    let finish = v1::FinishEnrolmentRequest { exchange_id: begun.exchange_id, ..Default::default() };
    let error = Error::from(client.finish_enrolment(finish).await.unwrap_err());
    assert!(error.is(Reason::InviteCodeWrong), "{error:?}");
}
