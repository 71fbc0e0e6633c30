//! Print queues over the wire.

use crate::fixture::local;
use crate::server::TestServer;
use bytes::Bytes;
use central_server::app::devices;
use common::error::{Error, Reason, Result};
use common::model::Role;
use common::rpc::{OfficeChannel, OfficeConnection};
use common::tls::DeviceCredentials;
use proto::v1;
use proto::v1::print_request::Part;
use proto::v1::print_service_client::PrintServiceClient;
use tonic::Streaming;
use uuid::Uuid;

type Client = PrintServiceClient<OfficeChannel>;

fn client(connection: &OfficeConnection) -> Client {
    PrintServiceClient::new(connection.control())
}

fn header(printer: &str, request_id: &str) -> v1::PrintRequest {
    let header = v1::PrintHeader {
        printer: printer.into(),
        display_name: "a.pdf".into(),
        request_id: request_id.into(),
        options: Some(v1::PrintOptions { copies: 2, ..Default::default() }),
        ..Default::default()
    };
    v1::PrintRequest { part: Some(Part::Header(header)) }
}

fn data(bytes: &[u8]) -> v1::PrintRequest {
    v1::PrintRequest { part: Some(Part::Data(Bytes::copy_from_slice(bytes))) }
}

async fn send(client: &mut Client, messages: Vec<v1::PrintRequest>) -> Result<v1::PrintJob> {
    Ok(client.print(tokio_stream::iter(messages)).await.map_err(Error::from)?.into_inner())
}

async fn register(server: &TestServer, machine: &DeviceCredentials, name: &str) -> OfficeConnection {
    let connection = server.device(machine);
    let request =
        v1::RegisterPrinterRequest { name: name.into(), state: v1::PrinterState::Idle as i32, ..Default::default() };
    let answer = client(&connection).register_printer(request).await.unwrap().into_inner();
    assert_eq!((answer.renew_seconds, answer.printer.unwrap().my_right), (60, 0));
    connection
}

async fn everyone_prints(server: &TestServer, name: &str) {
    let principal = v1::Principal { kind: Some(v1::principal::Kind::Everyone(true)) };
    let grant = v1::Grant { principal: Some(principal), right: v1::Right::Write as i32 };
    let request = v1::GrantPrinterRequest { printer: name.into(), grant: Some(grant) };
    let printer = client(&server.local()).grant_printer(request).await.unwrap().into_inner();
    assert_eq!(printer.grants.len(), 1);
}

async fn watch(connection: &OfficeConnection) -> Streaming<v1::WatchPrintJobsResponse> {
    client(connection).watch_print_jobs(v1::WatchPrintJobsRequest {}).await.unwrap().into_inner()
}

/// The next message with jobs.
async fn told(stream: &mut Streaming<v1::WatchPrintJobsResponse>) -> Vec<v1::PrintJob> {
    loop {
        let message = stream.message().await.unwrap().expect("the watch goes on");
        if !message.jobs.is_empty() {
            return message.jobs;
        }
    }
}

async fn fetch(connection: &OfficeConnection, id: &str, offset: u64) -> Vec<u8> {
    let request = v1::FetchPrintDocumentRequest { id: id.into(), attempt: 1, offset_bytes: offset };
    let mut stream = client(connection).fetch_print_document(request).await.unwrap().into_inner();
    let mut got = Vec::new();
    while let Some(piece) = stream.message().await.unwrap() {
        assert_eq!(piece.offset_bytes, offset + got.len() as u64);
        got.extend_from_slice(&piece.data);
    }
    got
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_printed_across_a_restart_of_the_server() {
    let server = TestServer::start().await;
    let machine = server.join().await;
    register(&server, &machine, "laser").await;
    everyone_prints(&server, "laser").await;
    let token = server.token("anna", Role::Member).await;
    let mut anna = client(&server.with_token(&token));
    let document: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
    let mut messages = vec![header("laser", &Uuid::from_u128(1).to_string())];
    messages.extend(document.chunks(1 << 20).map(data));
    let job = send(&mut anna, messages.clone()).await.unwrap();
    assert_eq!((job.state(), job.size_bytes, job.user.as_str()), (v1::PrintJobState::Pending, 3_000_000, "anna"));
    assert_eq!(job.options.as_ref().unwrap().copies, 2);
    assert_eq!(send(&mut anna, messages.clone()).await.unwrap().id, job.id, "the same request id");
    drop(anna);

    let server = TestServer::in_directory(server.stop().await, |_| {}).await;
    let mut anna = client(&server.with_token(&token));
    assert_eq!(send(&mut anna, messages).await.unwrap().id, job.id, "also after a restart");
    let list = |ended| v1::ListPrintJobsRequest { ended, ..Default::default() };
    assert_eq!(anna.list_print_jobs(list(true)).await.unwrap().into_inner().jobs.len(), 1);
    let pc = server.device(&machine);
    let mut jobs = watch(&pc).await;
    assert_eq!(told(&mut jobs).await[0].id, job.id);
    let claim = v1::ClaimPrintJobRequest { id: job.id.clone(), spool_id: Uuid::from_u128(9).to_string() };
    let taken = client(&pc).claim_print_job(claim).await.unwrap().into_inner();
    assert_eq!(
        (taken.state(), taken.attempt, taken.spool_id),
        (v1::PrintJobState::Taken, 1, Uuid::from_u128(9).to_string())
    );
    assert!(fetch(&pc, &job.id, 0).await == document);
    assert!(fetch(&pc, &job.id, 2_999_999).await == document[2_999_999..]);
    assert_eq!(fetch(&pc, &job.id, 3_000_000).await, b"");
    let update = |state: v1::PrintJobState| v1::UpdatePrintJobRequest {
        id: job.id.clone(),
        attempt: 1,
        state: state as i32,
        sheets: 2,
        ..Default::default()
    };
    client(&pc).update_print_job(update(v1::PrintJobState::Processing)).await.unwrap();
    client(&pc).update_print_job(update(v1::PrintJobState::Completed)).await.unwrap();
    client(&pc).update_print_job(update(v1::PrintJobState::Completed)).await.unwrap();
    assert!(anna.list_print_jobs(list(false)).await.unwrap().into_inner().jobs.is_empty());
    let ended = anna.get_print_job(v1::GetPrintJobRequest { id: job.id.clone() }).await.unwrap().into_inner();
    assert_eq!((ended.state(), ended.sheets, ended.spool_id.as_str()), (v1::PrintJobState::Completed, 2, ""));
    let (_, page) = server.web("/metrics").await;
    for line in ["atrium_print_jobs_ended_total{state=\"completed\"} 1", "atrium_print_jobs 0"] {
        assert!(page.contains(line), "{line} is missing");
    }
    drop((jobs, pc, anna));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_break_the_contract_are_refused_and_leave_nothing() {
    let server = TestServer::start().await;
    let machine = server.join().await;
    let pc = register(&server, &machine, "laser").await;
    everyone_prints(&server, "laser").await;
    let mut anna = client(&server.user("anna", Role::Member).await);
    let h = || header("laser", "");
    let empty = v1::PrintRequest { part: None };
    for (messages, reason) in [
        (vec![], Reason::FieldInvalid),
        (vec![data(b"x")], Reason::FieldInvalid),
        (vec![empty.clone()], Reason::FieldInvalid),
        (vec![h()], Reason::FieldInvalid),
        (vec![h(), data(b"")], Reason::FieldInvalid),
        (vec![h(), data(b"x"), h()], Reason::FieldInvalid),
        (vec![h(), data(b"x"), empty], Reason::FieldInvalid),
        (vec![h(), data(&vec![0; (1 << 20) + 1])], Reason::FieldInvalid),
        (vec![header("laser", "no uuid"), data(b"x")], Reason::FieldInvalid),
        (vec![header("none", ""), data(b"x")], Reason::ResourceUnknown),
        (vec![header(&"x".repeat(10_000), ""), data(b"x")], Reason::ResourceUnknown),
    ] {
        let error = send(&mut anna, messages).await.expect_err("refused");
        assert!(error.is(reason), "{error:?}");
    }
    let left = std::fs::read_dir(server.directory.path().join("data/print")).map_or(0, Iterator::count);
    assert_eq!(left, 0);
    let refusal = |status: tonic::Status| Error::from(status).reason().to_owned();
    let id = |id: &str| v1::CancelPrintJobRequest { id: id.into() };
    assert_eq!(refusal(anna.cancel_print_job(id("x")).await.unwrap_err()), "FIELD_INVALID");
    assert_eq!(refusal(anna.cancel_print_job(id(&Uuid::now_v7().to_string())).await.unwrap_err()), "PRINT_JOB_UNKNOWN");
    let state = |state| v1::RegisterPrinterRequest { name: "b".into(), state, ..Default::default() };
    for bad in [0, 4, 77] {
        assert_eq!(refusal(client(&pc).register_printer(state(bad)).await.unwrap_err()), "FIELD_INVALID");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_when_the_machine_is_cut_off_and_when_the_server_stops() {
    let server = TestServer::start().await;
    let (one, two) = (server.join().await, server.join().await);
    let pc = register(&server, &one, "laser").await;
    let other = register(&server, &two, "inkjet").await;
    let mut cut = watch(&pc).await;
    let mut open = watch(&other).await;
    assert!(cut.message().await.unwrap().unwrap().complete && open.message().await.unwrap().unwrap().complete);
    devices::revoke(server.running.app(), &local(), &one.key.device_id().to_string()).await.unwrap();
    let error = Error::from(cut.message().await.expect_err("it ends"));
    assert!(error.is(Reason::DeviceRevoked), "{error:?}");
    server.running.stop();
    let error = Error::from(open.message().await.expect_err("it ends"));
    assert!(error.is(Reason::ShuttingDown), "{error:?}");
    drop((cut, open, pc, other));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_reaches_the_machine_that_has_the_job() {
    let server = TestServer::start().await;
    let machine = server.join().await;
    let pc = register(&server, &machine, "laser").await;
    everyone_prints(&server, "laser").await;
    let mut anna = client(&server.user("anna", Role::Member).await);
    let mut jobs = watch(&pc).await;
    let job = send(&mut anna, vec![header("laser", ""), data(b"x")]).await.unwrap();
    assert_eq!(told(&mut jobs).await[0].id, job.id);
    let claim = v1::ClaimPrintJobRequest { id: job.id.clone(), spool_id: Uuid::from_u128(9).to_string() };
    client(&pc).claim_print_job(claim).await.unwrap();
    assert_eq!(told(&mut jobs).await[0].state(), v1::PrintJobState::Taken);
    let asked = anna.cancel_print_job(v1::CancelPrintJobRequest { id: job.id.clone() }).await.unwrap().into_inner();
    assert!(asked.cancel_requested);
    assert!(told(&mut jobs).await[0].cancel_requested);
    let update = v1::UpdatePrintJobRequest {
        id: job.id.clone(),
        attempt: 1,
        state: v1::PrintJobState::Canceled as i32,
        ..Default::default()
    };
    client(&pc).update_print_job(update).await.unwrap();
    let ended = anna.get_print_job(v1::GetPrintJobRequest { id: job.id }).await.unwrap().into_inner();
    assert_eq!((ended.state(), ended.cancel_requested), (v1::PrintJobState::Canceled, false));
    drop(jobs);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_a_pin_waits_for_it_and_the_machine_is_told_of_priorities() {
    let server = TestServer::start().await;
    let machine = server.join().await;
    let pc = register(&server, &machine, "laser").await;
    everyone_prints(&server, "laser").await;
    let mut anna = client(&server.user("anna", Role::Member).await);
    let request_id = Uuid::from_u128(7).to_string();
    let with_pin = |pin: &str| {
        let v1::PrintRequest { part: Some(Part::Header(mut header)) } = header("laser", &request_id) else { panic!() };
        (header.pin, header.priority) = (pin.into(), 70);
        vec![v1::PrintRequest { part: Some(Part::Header(header)) }, data(b"secret")]
    };
    assert!(send(&mut anna, with_pin("123")).await.expect_err("too short").is(Reason::FieldInvalid));
    let job = send(&mut anna, with_pin("0815")).await.unwrap();
    assert_eq!((job.state(), job.needs_pin, job.priority), (v1::PrintJobState::Held, true, 70));
    assert_eq!(send(&mut anna, with_pin("0815")).await.unwrap().id, job.id, "the same request");
    let release = |pin: &str| v1::ReleasePrintJobRequest { id: job.id.clone(), pin: pin.into() };
    for wrong in ["", "4711"] {
        let error = Error::from(anna.release_print_job(release(wrong)).await.unwrap_err());
        assert!(error.is(Reason::PinWrong), "{error:?}");
    }
    let released = anna.release_print_job(release("0815")).await.unwrap().into_inner();
    assert_eq!((released.state(), released.needs_pin), (v1::PrintJobState::Pending, false));
    let mut jobs = watch(&pc).await;
    assert_eq!(told(&mut jobs).await[0].priority, 70);
    let claim = v1::ClaimPrintJobRequest { id: job.id.clone(), spool_id: Uuid::from_u128(9).to_string() };
    client(&pc).claim_print_job(claim).await.unwrap();
    assert_eq!(told(&mut jobs).await[0].state(), v1::PrintJobState::Taken);
    let set = |priority| v1::SetPrintJobPriorityRequest { id: job.id.clone(), priority };
    assert!(Error::from(anna.set_print_job_priority(set(0)).await.unwrap_err()).is(Reason::FieldInvalid));
    anna.set_print_job_priority(set(90)).await.unwrap();
    assert_eq!(told(&mut jobs).await[0].priority, 90, "also when the machine has it");
    let too_many = v1::WithdrawOtherPrintersRequest { keep: vec!["x".into(); 65] };
    assert!(Error::from(client(&pc).withdraw_other_printers(too_many).await.unwrap_err()).is(Reason::FieldInvalid));
    drop(jobs);
    server.stop().await;
}
