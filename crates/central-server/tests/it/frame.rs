//! The server as a whole: start, stop, health, reflection, limits, request ids.

use crate::fixture::local;
use crate::server::{RawCodec, TestServer, call_raw, call_with, settings};
use bytes::Bytes;
use central_server::app::{devices, sessions};
use common::error::{Error, Kind, Reason};
use common::model::Role;
use common::settings::HumanDuration;
use common::shutdown::Shutdown;
use proto::v1;
use proto::v1::admin_service_client::AdminServiceClient;
use proto::v1::session_service_client::SessionServiceClient;
use proto::v1::watch_service_client::WatchServiceClient;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use tonic::Request;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

const INFO: &str = "/atrium.v1.AdminService/GetServerInfo";

#[tokio::test(flavor = "multi_thread")]
async fn it_says_what_it_is_and_that_it_serves() {
    let server = TestServer::with(|s| s.office.name = "Acme".into()).await;
    let connection = server.anonymous();
    let mut admin = AdminServiceClient::new(connection.control());
    let info = admin.get_server_info(v1::GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.office.as_str(), info.version.as_str()), ("Acme", env!("CARGO_PKG_VERSION")));
    assert!(info.features.iter().any(|f| f == "files") && info.time.is_some());
    for service in ["", "atrium.v1.FileService", "atrium.v1.TransferService"] {
        let request = HealthCheckRequest { service: service.into() };
        let health = HealthClient::new(connection.control()).check(request).await.unwrap().into_inner();
        assert_eq!(health.status(), ServingStatus::Serving, "{service}");
    }
    let (status, _) = server.web("/healthz").await;
    assert!(status.contains("200"), "{status}");
    let (_, metrics) = server.web("/metrics").await;
    assert!(metrics.contains(&format!("atrium_rpc_total{{method=\"{INFO}\",code=\"OK\"}} 1")), "{metrics}");
    assert!(metrics.contains("atrium_connections 1") && metrics.contains("atrium_healthy 1"), "{metrics}");
    let (status, _) = server.web("/etc/passwd").await;
    assert!(status.contains("404"), "{status}");
    let data = server.stop().await;
    assert!(!data.path().join("data/admin.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_tells_counts_and_problems() {
    let server = TestServer::start().await;
    server.token("anna", Role::Member).await;
    server.join().await;
    let mut admin = AdminServiceClient::new(server.local().control());
    let status = admin.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert!(status.healthy, "{:?}", status.problems);
    assert_eq!((status.user_count, status.device_count, status.engine.as_str()), (1, 1, "sled"));
    assert!(status.revision > 0 && status.disk_free_bytes > 0 && status.start_time.is_some());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_a_problem_and_reading_goes_on() {
    // Nobody has that much.
    let server = TestServer::with(|s| s.server.reserve = common::settings::ByteSize(u64::MAX / 4)).await;
    let mut admin = AdminServiceClient::new(server.local().control());
    let status = admin.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert!(!status.healthy);
    let problem = &status.problems[0];
    assert_eq!(problem.reason, "DISK_FULL");
    assert!(!problem.why.is_empty() && !problem.fix.is_empty());
    let (line, body) = server.web("/healthz").await;
    assert!(line.contains("503") && body.contains("DISK_FULL"), "{line} {body}");
    server.stop().await;
}

async fn reflected(server: &TestServer, version: &str) -> String {
    let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
    let mut client = tonic::client::Grpc::new(server.anonymous().control());
    client.ready().await.unwrap();
    // ServerReflectionRequest { list_services: "" } as bytes: field 7, text, empty.
    let request = Request::new(tokio_stream::once(Bytes::from_static(&[0x3a, 0])));
    let response = client.streaming(request, path.parse().unwrap(), RawCodec).await.unwrap();
    String::from_utf8_lossy(&response.into_inner().message().await.unwrap().unwrap()).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_what_is_served_in_both_versions_unless_switched_off() {
    let server = TestServer::start().await;
    for version in ["v1", "v1alpha"] {
        let text = reflected(&server, version).await;
        for service in ["atrium.v1.FileService", "atrium.v1.AdminService", "grpc.health.v1.Health"] {
            assert!(text.contains(service), "{service} is not in {text:?}");
        }
        assert!(!text.contains("atrium.agent") && !text.contains("atrium.record"), "{text:?}");
    }
    server.stop().await;
    let server = TestServer::with(|s| s.grpc.reflection = false).await;
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let error = call_raw(server.anonymous().control(), path).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unimplemented);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_has_one_request_id_in_answers_and_errors() {
    let server = TestServer::start().await;
    let connection = server.anonymous();
    let with_id = |id: &str| {
        let mut request = Request::new(v1::GetServerInfoRequest {});
        request.metadata_mut().insert("x-request-id", id.parse().unwrap());
        request
    };
    let mut admin = AdminServiceClient::new(connection.control());
    let response = admin.get_server_info(with_id("build-7")).await.unwrap();
    assert_eq!(response.metadata().get("x-request-id").unwrap(), "build-7");
    let response = admin.get_server_info(with_id("not good")).await.unwrap();
    assert_ne!(response.metadata().get("x-request-id").unwrap(), "not good");
    let mut request = Request::new(());
    request.metadata_mut().insert("x-request-id", "mine-9".parse().unwrap());
    let error = call_with(connection.control(), request, "/atrium.v1.AdminService/GetStatus").await.unwrap_err();
    assert_eq!((error.reason(), error.request_id()), ("CREDENTIALS_MISSING", Some("mine-9")));
    assert!(!error.why().is_empty() && !error.fix().is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_a_handler_and_one_of_the_codec_have_reason_and_request_id() {
    let server = TestServer::start().await;
    let mut sessions = SessionServiceClient::new(server.anonymous().control());
    let login = v1::LoginRequest { user: "nobody".into(), password: "wrong".into(), ..v1::LoginRequest::default() };
    let error = Error::from(sessions.login(login).await.unwrap_err());
    assert_eq!(error.reason(), "LOGIN_FAILED");
    assert!(error.request_id().is_some());
    // Field 1 announces ten bytes and has none.
    let mut client = tonic::client::Grpc::new(server.anonymous().control());
    client.ready().await.unwrap();
    let request = Request::new(Bytes::from_static(&[0x0a, 10]));
    let path = "/atrium.v1.SessionService/Login".parse().unwrap();
    let error = Error::from(client.unary(request, path, RawCodec).await.unwrap_err());
    assert_eq!(error.reason(), "MESSAGE_MALFORMED", "{error:?}");
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.request_id().is_some());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_the_limit_is_refused() {
    let server = TestServer::with(|s| s.grpc.max_message = common::settings::ByteSize::kib(64)).await;
    let mut client = tonic::client::Grpc::new(server.anonymous().control());
    client.ready().await.unwrap();
    let request = Request::new(Bytes::from(vec![0; 70_000]));
    let path = "/atrium.v1.SessionService/Login".parse().unwrap();
    let error = Error::from(client.unary(request, path, RawCodec).await.unwrap_err());
    assert_eq!(error.reason(), "MESSAGE_TOO_LARGE", "{error:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_call_and_a_stream_with_its_own_code() {
    let server = TestServer::start().await;
    let anna = server.user("anna", Role::Member).await;
    let mut watch = WatchServiceClient::new(anna.control());
    let mut request = Request::new(v1::WatchRequest::default());
    request.set_timeout(Duration::from_millis(300));
    let mut stream = watch.watch(request).await.unwrap().into_inner();
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status:?}");
    for bad in ["soon", "5", "-1S"] {
        let mut request = Request::new(());
        request.metadata_mut().insert("grpc-timeout", bad.parse().unwrap());
        let error = call_with(server.anonymous().control(), request, INFO).await.unwrap_err();
        assert_eq!(error.reason(), "FIELD_INVALID", "{bad}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_bound_of_calls_more_are_refused_and_health_still_answers() {
    let server = TestServer::with(|s| s.grpc.max_calls = 1).await;
    let anna = server.user("anna", Role::Member).await;
    let mut watch = WatchServiceClient::new(anna.control());
    let stream = watch.watch(v1::WatchRequest::default()).await.unwrap();
    let error = call_raw(server.anonymous().control(), INFO).await.unwrap_err();
    assert!(error.is(Reason::Overloaded) && error.retry_delay().is_some(), "{error:?}");
    let health = HealthClient::new(server.anonymous().control()).check(HealthCheckRequest::default()).await;
    assert_eq!(health.unwrap().into_inner().status(), ServingStatus::Serving);
    drop(stream);
    // The place is free again as soon as the server has seen the stream end.
    while call_raw(server.anonymous().control(), INFO).await.is_err() {
        tokio::task::yield_now().await;
    }
    server.stop().await;
}

/// The next status that is not this one.
async fn changed_from(
    status: ServingStatus,
    stream: &mut tonic::Streaming<HealthCheckResponse>,
) -> Option<ServingStatus> {
    while let Ok(Some(answer)) = stream.message().await {
        if answer.status() != status {
            return Some(answer.status());
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_watches_with_a_reason_and_tells_health_first() {
    let server = TestServer::with(|s| s.server.drain = HumanDuration::secs(20)).await;
    let anna = server.user("anna", Role::Member).await;
    let mut watch =
        WatchServiceClient::new(anna.control()).watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    let mut health = HealthClient::new(server.anonymous().control())
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    let seen = tokio::spawn(async move { changed_from(ServingStatus::Serving, &mut health).await });
    let address = server.running.addr;
    let ended = tokio::spawn(async move {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a status"),
                Err(status) => return Error::from(status),
            }
        }
    });
    // Both streams are open when their first messages have come; the watch has sent its first mark by then or will end.
    server.running.stop();
    let error = ended.await.unwrap();
    assert_eq!((error.reason(), error.kind()), ("SHUTTING_DOWN", Kind::Unavailable));
    assert_eq!(seen.await.unwrap(), Some(ServingStatus::NotServing));
    server.running.wait().await.unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_starts_again_with_everything() {
    let server = TestServer::start().await;
    let ca = server.running.ca_pem().to_owned();
    let token = server.token("anna", Role::Member).await;
    let revision = server.running.app().store.revision();
    let directory = server.stop().await;
    let mode = directory.path().join("data").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let server = TestServer::in_directory(directory, |_| {}).await;
    assert_eq!(server.running.ca_pem(), ca);
    assert!(server.running.app().store.revision() >= revision);
    let app = server.running.app();
    assert_eq!(&*sessions::authenticate(app, &token).unwrap().name, "anna");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use_is_refused_and_so_is_a_port_in_use() {
    let server = TestServer::start().await;
    let mut second = settings(server.directory.path());
    let error = central_server::start(second.clone(), Shutdown::new(Duration::ZERO)).await.unwrap_err();
    assert!(error.is(Reason::StoreBusy), "{error:?}");
    let other = tempfile::tempdir().unwrap();
    second.server.data_directory = other.path().join("data");
    second.grpc.listen = server.running.addr;
    let error = central_server::start(second, Shutdown::new(Duration::ZERO)).await.unwrap_err();
    assert!(error.is(Reason::IoFailed) && error.message().contains("listened"), "{error:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_cut_off_loses_open_streams_and_all_calls() {
    let server = TestServer::start().await;
    let device = server.join().await;
    let id = device.key.device_id();
    let machine = server.device(&device);
    let token = server.token("anna", Role::Member).await;
    machine.set_token(Some(&token)).unwrap();
    let mut stream =
        WatchServiceClient::new(machine.control()).watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    let mut sessions = SessionServiceClient::new(machine.control());
    let me = sessions.who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!((me.device_id, me.user.unwrap().name), (id.to_string(), "anna".to_owned()));
    devices::revoke(server.running.app(), &local(), &id.to_string()).await.unwrap();
    let error = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a status"),
            Err(status) => break Error::from(status),
        }
    };
    assert!(["DEVICE_REVOKED", "SESSION_INVALID"].contains(&error.reason()), "{error:?}");
    // Even what is public, on the connection that is still there.
    let error = call_raw(machine.control(), INFO).await.unwrap_err();
    assert_eq!(error.reason(), "DEVICE_REVOKED");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_counts_no_more_is_refused_but_not_at_public_methods() {
    let server = TestServer::start().await;
    let connection = server.anonymous();
    for token in ["atr_00", &format!("atr_{}", "0".repeat(64)), &"x".repeat(300)] {
        connection.set_token(Some(token)).unwrap();
        let error = call_raw(connection.control(), "/atrium.v1.SessionService/WhoAmI").await.unwrap_err();
        assert_eq!(error.reason(), "SESSION_INVALID");
        call_raw(connection.control(), INFO).await.unwrap();
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_administration_socket_is_for_its_owner_only() {
    let server = TestServer::start().await;
    let mode = server.running.admin_socket.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut sessions = SessionServiceClient::new(server.local().control());
    let me = sessions.who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner();
    assert!(me.local_admin && me.user.is_none() && me.device_id.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_grpc_gets_an_http_answer() {
    let server = TestServer::start().await;
    let stream = tokio::net::UnixStream::connect(&server.running.admin_socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake::<_, _, http_body_util::Empty<Bytes>>(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    for (method, kind, status) in [("GET", "application/grpc", 405), ("POST", "text/plain", 415)] {
        let request = http::Request::builder()
            .method(method)
            .uri("http://localhost/atrium.v1.AdminService/GetStatus")
            .header("content-type", kind)
            .body(http_body_util::Empty::new())
            .unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), status);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_idle_connections_are_told_to_go_at_once() {
    let server = TestServer::with(|s| s.server.drain = HumanDuration::secs(60)).await;
    let connections: Vec<_> = (0..100).map(|_| server.anonymous()).collect();
    let calls = connections.iter().map(|c| call_raw(c.control(), INFO));
    for answer in futures_util::future::join_all(calls).await {
        answer.unwrap();
    }
    let (_, metrics) = server.web("/metrics").await;
    assert!(metrics.contains("atrium_connections 100"), "{metrics}");
    // A drain that waited for idle connections would take a minute, and the test runner would say so.
    server.stop().await;
}
