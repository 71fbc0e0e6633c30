//! What a listener bears: silent, broken and too many connections.

use crate::office::{Mirror, Office, reflect, serve, start_with};
use atrium_common::error::Reason;
use atrium_common::rpc::OfficeConnection;
use atrium_common::tls::{AcceptLimits, Acceptor, UnixAcceptor};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Waits until the other side has closed, by end or by reset.
async fn closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
}

async fn silent(addr: SocketAddr) -> TcpStream {
    TcpStream::connect(addr).await.unwrap()
}

/// Lets other tasks work until it is so.
async fn until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn silent_connections_give_way_and_keep_nobody_out() {
    let office = Office::new();
    // No handshake times out here: the deadline is an hour.
    let limits =
        AcceptLimits { handshakes: 2, handshake_timeout: Duration::from_secs(3600), ..AcceptLimits::default() };
    let server = start_with(&office.tls, limits).await;
    let mut waiting = Vec::new();
    for _ in 0..7 {
        waiting.push(silent(server.addr).await);
    }
    let anna = OfficeConnection::connect(&office.options(&server).device(office.device())).await.unwrap();
    reflect(anna.control()).await.unwrap();
    assert_eq!(server.stats.handshakes_dropped(), 6, "all but one had to give way");
    for gone in waiting.drain(..6) {
        closed(gone).await;
    }
    assert_eq!(server.stats.accepted(), 1);
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_dropped() {
    let office = Office::new();
    let limits = AcceptLimits { handshake_timeout: Duration::from_millis(20), ..AcceptLimits::default() };
    let server = start_with(&office.tls, limits).await;
    let nothing = silent(server.addr).await;
    let mut begun = silent(server.addr).await;
    // The first bytes of a handshake, and no more.
    begun.write_all(&[22, 3, 1, 0, 200, 1]).await.unwrap();
    closed(nothing).await;
    closed(begun).await;
    until(|| server.stats.handshakes_timed_out() == 2).await;
    assert_eq!(server.stats.accepted(), 0);
}

#[tokio::test]
async fn nonsense_is_answered_with_the_end_of_the_connection() {
    let office = Office::new();
    let server = start_with(&office.tls, AcceptLimits::default()).await;
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[0xff; 5000], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut stream = silent(server.addr).await;
        let _ = stream.write_all(nonsense).await;
        let _ = stream.shutdown().await;
        closed(stream).await;
    }
    until(|| server.stats.handshakes_failed() == 4).await;
    OfficeConnection::connect(&office.options(&server)).await.unwrap();
}

#[tokio::test]
async fn connections_are_bounded_in_all_and_from_one_place() {
    let office = Office::new();
    for (connections, connections_from_one) in [(2, 100), (100, 2)] {
        let limits = AcceptLimits { connections, connections_from_one, ..AcceptLimits::default() };
        let server = start_with(&office.tls, limits).await;
        let first = OfficeConnection::connect(&office.options(&server)).await.unwrap();
        let second = OfficeConnection::connect(&office.options(&server)).await.unwrap();
        let error = crate::office::refused(&office.options(&server)).await;
        assert!(error.is(Reason::ServerUnreachable), "{error:?}");
        let counted = [server.stats.refused_full(), server.stats.refused_origin()];
        assert_eq!(counted.map(|n| n > 0), [connections == 2, connections_from_one == 2]);
        // Those inside go on, and a place that is given back can be taken.
        reflect(second.control()).await.unwrap();
        drop(first);
        while OfficeConnection::connect(&office.options(&server)).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn dropping_the_listener_ends_listening_and_handshakes() {
    let office = Office::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let acceptor = Acceptor::new(listener, office.tls.clone(), AcceptLimits::default()).unwrap();
    let addr = acceptor.local_addr();
    let waiting = silent(addr).await;
    until(|| acceptor.open() == 1).await;
    drop(acceptor);
    closed(waiting).await;
    // The listening socket closes when its task has been dropped.
    while TcpStream::connect(addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

fn unix(path: &Path) -> OfficeConnection {
    OfficeConnection::unix(path, Reason::AgentUnreachable).unwrap()
}

#[tokio::test]
async fn a_unix_socket_tells_who_calls() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let acceptor = UnixAcceptor::bind(&path, 0o660, AcceptLimits::default()).unwrap();
    let file = std::fs::symlink_metadata(&path).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o660);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left there");
    let _server = serve(acceptor, Mirror::default());
    let seen = reflect(unix(&path).control()).await.unwrap();
    assert_eq!(seen.uid, rustix::process::geteuid().as_raw().to_string());
    assert_eq!((seen.device.as_str(), seen.remote.as_str()), ("-", "-"));
}

#[tokio::test]
async fn a_socket_left_behind_is_replaced_and_a_living_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a dead process leaves its socket");
    let living = UnixAcceptor::bind(&path, 0o600, AcceptLimits::default()).unwrap();
    let second = UnixAcceptor::bind(&path, 0o600, AcceptLimits::default()).unwrap_err();
    assert!(second.is(Reason::StoreBusy), "{second:?}");
    assert!(path.exists());
    drop(living);
    assert!(!path.exists(), "it is removed at the end");

    std::fs::write(&path, "not a socket").unwrap();
    assert!(UnixAcceptor::bind(&path, 0o600, AcceptLimits::default()).unwrap_err().is(Reason::IoFailed));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "not a socket");
}

#[tokio::test]
async fn another_ones_socket_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let first = UnixAcceptor::bind(&path, 0o600, AcceptLimits::default()).unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = UnixAcceptor::bind(&path, 0o600, AcceptLimits::default()).unwrap();
    drop(first);
    let _server = serve(second, Mirror::default());
    reflect(unix(&path).control()).await.unwrap();
}

#[tokio::test]
async fn connections_of_one_user_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let limits = AcceptLimits { connections_from_one: 1, ..AcceptLimits::default() };
    let acceptor = UnixAcceptor::bind(&path, 0o600, limits).unwrap();
    let stats = acceptor.stats();
    let _server = serve(acceptor, Mirror::default());
    let first = unix(&path);
    reflect(first.control()).await.unwrap();
    reflect(unix(&path).control()).await.unwrap_err();
    assert!(stats.refused_origin() > 0);
    reflect(first.control()).await.unwrap();
}
