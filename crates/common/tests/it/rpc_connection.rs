//! Connections of a client: what they carry, how they come back, and what is said when they fail.

use crate::office::{Mirror, Office, reflect, refused, serve, start};
use atrium_common::error::Reason;
use atrium_common::rpc::{ConnectOptions, OfficeConnection, REQUEST_ID_HEADER};
use atrium_common::tls::{AcceptLimits, UnixAcceptor};
use http::Request;
use std::collections::HashSet;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tower::{Service, ServiceExt};

#[tokio::test]
async fn every_call_carries_the_token_of_the_moment_and_an_id_of_its_own() {
    let office = Office::new();
    let server = start(&office.tls).await;
    let connection = OfficeConnection::connect(&office.options(&server).token("s3cret")).await.unwrap();
    let mut ids = HashSet::new();
    for channel in [connection.control(), connection.bulk(), connection.control()] {
        let seen = reflect(channel).await.unwrap();
        assert_eq!(seen.authorization, "Bearer s3cret");
        assert_eq!(seen.request_id.len(), 36);
        assert!(ids.insert(seen.request_id));
    }
    let held = connection.control();
    connection.set_token(Some("other")).unwrap();
    assert_eq!(reflect(held.clone()).await.unwrap().authorization, "Bearer other");
    connection.set_token(None).unwrap();
    assert_eq!(reflect(held.clone()).await.unwrap().authorization, "-");
    for wrong in ["", "a b", "a\r\nx: y", "ä"] {
        assert!(connection.set_token(Some(wrong)).unwrap_err().is(Reason::FieldInvalid), "{wrong:?}");
    }
    connection.set_token(Some("hidden")).unwrap();
    assert!(!format!("{held:?}{connection:?}").contains("hidden"));
}

#[tokio::test]
async fn an_id_that_is_there_is_passed_on() {
    let office = Office::new();
    let server = start(&office.tls).await;
    let connection = OfficeConnection::connect(&office.options(&server)).await.unwrap();
    let mut channel = connection.control();
    let request = Request::post("/atrium.v1.EnrolmentService/BeginEnrolment")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(REQUEST_ID_HEADER, "from-elsewhere")
        .body(tonic::body::Body::new(http_body_util::Full::new(bytes::Bytes::from_static(&[0; 5]))))
        .unwrap();
    let answer = channel.ready().await.unwrap().call(request).await.unwrap();
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    assert!(body.windows(14).any(|w| w == b"from-elsewhere"), "{body:?}");
}

#[tokio::test]
async fn bulk_calls_take_turns_on_their_own_connections() {
    let office = Office::new();
    let server = start(&office.tls).await;
    let connection = OfficeConnection::connect(&office.options(&server)).await.unwrap();
    assert_eq!(server.stats.accepted(), 1);
    for _ in 0..4 {
        reflect(connection.bulk()).await.unwrap();
        reflect(connection.control()).await.unwrap();
    }
    assert_eq!(server.stats.accepted(), 3, "one for control, two for bulk");
}

#[tokio::test]
async fn a_connection_comes_back_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.sock");
    let start = || serve(UnixAcceptor::bind(&path, 0o600, AcceptLimits::default()).unwrap(), Mirror::default());
    let connection = OfficeConnection::unix(&path, Reason::ServerUnreachable).unwrap();
    let error = reflect(connection.control()).await.unwrap_err();
    assert!(error.is(Reason::ServerUnreachable) && error.message().contains("no such socket"), "{error:?}");
    for _ in 0..3 {
        let server = start();
        reflect(connection.control()).await.unwrap();
        drop(server);
        while path.exists() {
            tokio::task::yield_now().await;
        }
        let error = reflect(connection.control()).await.unwrap_err();
        assert!(error.is_transient(), "{error:?}");
    }
}

#[tokio::test]
async fn a_port_where_nobody_listens() {
    let office = Office::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = refused(&ConnectOptions::new(server.clone(), office.ca.ca_pem())).await;
    assert!(error.is(Reason::ServerUnreachable), "{error:?}");
    assert!(error.message().contains(&server) && error.message().contains("no server listens"), "{error:?}");
}

#[tokio::test]
async fn a_server_that_says_nothing() {
    let office = Office::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let options = ConnectOptions {
        connect_timeout: Duration::from_millis(50),
        ..ConnectOptions::new(server, office.ca.ca_pem())
    };
    let error = refused(&options).await;
    assert!(error.is(Reason::ServerUnreachable) && error.message().contains("no answer in time"), "{error:?}");
}

#[tokio::test]
async fn a_server_that_speaks_something_else() {
    let office = Office::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
            // Until the client leaves.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    });
    let error = refused(&ConnectOptions::new(server, office.ca.ca_pem())).await;
    assert!(error.is(Reason::TlsFailed) && error.message().contains("does not speak TLS"), "{error:?}");
}

#[tokio::test]
async fn an_agent_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let call = || async {
        reflect(OfficeConnection::unix(&path, Reason::AgentUnreachable).unwrap().control()).await.unwrap_err()
    };
    let error = call().await;
    assert!(error.is(Reason::AgentUnreachable) && error.message().contains("no such socket"), "{error:?}");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let error = call().await;
    assert!(error.is(Reason::AgentUnreachable) && error.message().contains("has ended"), "{error:?}");
}
