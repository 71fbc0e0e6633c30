//! Who is let in, and whom a client believes.

use crate::office::{DAY_MS, Office, now_ms, reflect, refused, start};
use atrium_common::error::Reason;
use atrium_common::identity::{DeviceKey, DeviceRequest};
use atrium_common::rpc::{CONNECT_TIMEOUT, OfficeConnection};
use atrium_common::tls::{
    ClientTls, DEVICE_LIFETIME, DeviceCredentials, OfficeCa, ServerIdentity, ServerKey, ServerTls, check_membership,
    renew_at_ms,
};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

#[tokio::test]
async fn the_server_knows_the_device_or_that_there_is_none() {
    let office = Office::new();
    let server = start(&office.tls).await;
    let nobody = OfficeConnection::connect(&office.options(&server)).await.unwrap();
    let seen = reflect(nobody.control()).await.unwrap();
    assert_eq!((seen.device.as_str(), seen.expired.as_str(), seen.remote.as_str()), ("-", "-", "127.0.0.1"));

    let device = office.device();
    let id = device.key.device_id().to_string();
    let anna = OfficeConnection::connect(&office.options(&server).device(device)).await.unwrap();
    let seen = reflect(anna.control()).await.unwrap();
    assert_eq!((&seen.device, &seen.key_id, seen.uid.as_str()), (&id, &id, "-"));
    assert_eq!(reflect(anna.bulk()).await.unwrap().device, id);
}

#[tokio::test]
async fn a_server_of_another_office_is_not_believed() {
    let (ours, theirs) = (Office::new(), Office::new());
    let server = start(&theirs.tls).await;
    // The same name, another key.
    assert_eq!(ours.ca.office(), theirs.ca.office());
    let error = refused(&ours.options(&server)).await;
    assert!(error.is(Reason::TlsFailed), "{error:?}");
    assert!(error.message().contains("not one of this office"), "{error:?}");
    assert_eq!(server.stats.accepted(), 0);
}

#[tokio::test]
async fn a_device_of_another_office_is_refused_in_words() {
    let (ours, theirs) = (Office::new(), Office::new());
    let server = start(&ours.tls).await;
    let error = refused(&ours.options(&server).device(theirs.device())).await;
    assert!(error.is(Reason::TlsFailed), "{error:?}");
    assert!(error.message().contains("refused this machine's certificate"), "{error:?}");
}

#[tokio::test]
async fn an_expired_or_future_server_certificate_is_refused_in_words() {
    let office = Office::new();
    for (now_ms, word) in [(now_ms() - 91 * DAY_MS, "has expired"), (now_ms() + 2 * DAY_MS, "not valid yet")] {
        let certificate = office.ca.issue_server(&[], &office.key, now_ms).unwrap();
        office.tls.set_certificate(&certificate).unwrap();
        let server = start(&office.tls).await;
        let error = refused(&office.options(&server)).await;
        assert!(error.is(Reason::TlsFailed) && error.message().contains(word), "{error:?}");
        assert!(error.fix().contains("clock"), "{error:?}");
    }
}

#[tokio::test]
async fn an_expired_device_may_renew_for_a_while_and_is_then_refused() {
    let office = Office::new();
    let server = start(&office.tls).await;
    let device = office.device();
    let id = device.key.device_id().to_string();
    office.clock.advance(DEVICE_LIFETIME + Duration::from_secs(60));
    let late = OfficeConnection::connect(&office.options(&server).device(device.clone())).await.unwrap();
    let seen = reflect(late.control()).await.unwrap();
    assert_eq!((seen.device.as_str(), seen.expired, seen.key_id), ("-", id.clone(), id));

    office.clock.advance(Duration::from_secs(91 * 86_400));
    let error = refused(&office.options(&server).device(device)).await;
    assert!(error.is(Reason::TlsFailed) && error.message().contains("expired"), "{error:?}");
}

#[tokio::test]
async fn an_expired_device_of_another_office_is_refused_too() {
    let (ours, theirs) = (Office::new(), Office::new());
    let server = start(&ours.tls).await;
    ours.clock.advance(DEVICE_LIFETIME + Duration::from_secs(60));
    assert!(refused(&ours.options(&server).device(theirs.device())).await.is(Reason::TlsFailed));
}

#[tokio::test]
async fn a_new_server_certificate_needs_no_restart() {
    let office = Office::new();
    let server = start(&office.tls).await;
    let old = OfficeConnection::connect(&office.options(&server)).await.unwrap();
    let before = shown_key(&server).await;
    assert_eq!(before, office.tls.spki_sha256().unwrap());

    let key = ServerKey::generate().unwrap();
    office.tls.set_certificate(&office.ca.issue_server(&[], &key, now_ms()).unwrap()).unwrap();
    let after = shown_key(&server).await;
    assert_ne!(before, after);
    assert_eq!(after, office.tls.spki_sha256().unwrap());
    // The connection that was open still works, and new ones are believed.
    let connections = server.stats.accepted();
    reflect(old.control()).await.unwrap();
    assert_eq!(server.stats.accepted(), connections);
    OfficeConnection::connect(&office.options(&server)).await.unwrap();
}

async fn shown_key(server: &crate::office::Server) -> [u8; 32] {
    let (tls, captured) = ClientTls::capture().unwrap();
    let connection = OfficeConnection::over_tls(&server.addr.to_string(), tls, CONNECT_TIMEOUT, 1).unwrap();
    connection.check().await.unwrap();
    captured.spki_sha256().unwrap()
}

#[tokio::test]
async fn capturing_refuses_a_second_key() {
    let office = Office::new();
    let server = start(&office.tls).await;
    let (tls, captured) = ClientTls::capture().unwrap();
    let connection = OfficeConnection::over_tls(&server.addr.to_string(), tls, CONNECT_TIMEOUT, 1).unwrap();
    assert_eq!(captured.spki_sha256(), None);
    connection.check().await.unwrap();
    let first = captured.spki_sha256();
    let other = ServerKey::generate().unwrap();
    office.tls.set_certificate(&office.ca.issue_server(&[], &other, now_ms()).unwrap()).unwrap();
    // The bulk channel has not connected yet.
    assert!(reflect(connection.bulk()).await.unwrap_err().is(Reason::TlsFailed));
    assert_eq!(captured.spki_sha256(), first);
}

/// Shows a certificate whose key it does not have.
#[derive(Debug)]
struct Borrowed(Arc<rustls::sign::CertifiedKey>);

impl rustls::server::ResolvesServerCert for Borrowed {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(self.0.clone())
    }
}

#[tokio::test]
async fn a_certificate_without_its_key_is_not_captured_as_a_connection() {
    let office = Office::new();
    let shown = office.ca.issue_server(&[], &office.key, now_ms()).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(shown.pem().as_bytes()).unwrap()];
    let own = KeyPair::generate().unwrap();
    let own = PrivateKeyDer::try_from(own.serialize_der()).unwrap();
    let own = rustls::crypto::aws_lc_rs::sign::any_supported_type(&own).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Borrowed(Arc::new(rustls::sign::CertifiedKey::new(chain, own)))));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let config = Arc::new(config);
    for tls in [ClientTls::capture().unwrap().0, ClientTls::office(office.ca.ca_pem()).unwrap()] {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let acceptor = tokio_rustls::TlsAcceptor::from(config.clone());
        let serving = tokio::spawn(async move { acceptor.accept(server).await.map(|_| ()) });
        let error = tls.handshake(client).await.unwrap_err();
        assert!(error.to_string().contains("BadSignature"), "{error}");
        serving.await.unwrap().unwrap_err();
    }
}

#[tokio::test]
async fn roots_and_device_certificates_are_exchanged_at_run_time() {
    let (old, new) = (Office::new(), Office::new());
    let server = start(&old.tls).await;
    let device = new.device();
    assert!(refused(&old.options(&server).device(device.clone())).await.is(Reason::TlsFailed));
    old.tls.set_client_cas(&format!("{}{}", new.ca.ca_pem(), old.ca.ca_pem())).unwrap();
    OfficeConnection::connect(&old.options(&server).device(device)).await.unwrap();

    // The client's side: the bulk channels connect after the exchange.
    let connection = OfficeConnection::connect(&old.options(&server)).await.unwrap();
    let device = old.device();
    connection.set_device(&device).unwrap();
    assert_eq!(reflect(connection.bulk()).await.unwrap().device, device.key.device_id().to_string());
    assert_eq!(reflect(connection.control()).await.unwrap().device, "-");
    connection.set_office(new.ca.ca_pem()).unwrap();
    assert!(reflect(connection.bulk()).await.unwrap_err().is(Reason::TlsFailed));
}

#[tokio::test]
async fn cutting_a_device_off_counts_on_the_open_connection() {
    let office = Office::new();
    let server = start(&office.tls).await;
    let (anna, ben) = (office.device(), office.device());
    let annas = OfficeConnection::connect(&office.options(&server).device(anna.clone())).await.unwrap();
    let bens = OfficeConnection::connect(&office.options(&server).device(ben)).await.unwrap();
    reflect(annas.control()).await.unwrap();
    let connections = server.stats.accepted();
    server.mirror.revoked.lock().insert(anna.key.device_id());
    assert!(reflect(annas.control()).await.unwrap_err().is(Reason::DeviceRevoked));
    reflect(bens.control()).await.unwrap();
    assert_eq!(server.stats.accepted(), connections);
}

#[tokio::test]
async fn names_and_addresses_are_checked_when_asked_for() {
    let office = Office::new();
    let names = ["office.example".to_owned(), "192.0.2.7".to_owned(), "2001:db8::7".to_owned()];
    office.tls.set_certificate(&office.ca.issue_server(&names, &office.key, now_ms()).unwrap()).unwrap();
    let server = start(&office.tls).await;
    let ask = |name: &str| {
        let tls = ClientTls::office(office.ca.ca_pem()).unwrap().verify_as(name).unwrap();
        OfficeConnection::over_tls(&server.addr.to_string(), tls, CONNECT_TIMEOUT, 1).unwrap()
    };
    for good in ["office.example", "192.0.2.7", "2001:db8::7", "localhost", "127.0.0.1", "::1", "atrium-server"] {
        ask(good).check().await.unwrap();
    }
    for bad in ["other.example", "192.0.2.8", "::2", "sub.office.example"] {
        let error = ask(bad).check().await.unwrap_err();
        assert!(error.is(Reason::TlsFailed) && error.message().contains("another name"), "{bad}: {error:?}");
    }
    for wrong in ["", "a b", "*.example", "a/b", "ä"] {
        let names = [wrong.to_owned()];
        let error = office.ca.issue_server(&names, &office.key, now_ms()).unwrap_err();
        assert!(error.is(Reason::FieldInvalid), "{wrong:?}");
    }
    let many: Vec<String> = (0..101).map(|n| format!("h{n}")).collect();
    assert!(office.ca.issue_server(&many, &office.key, now_ms()).unwrap_err().is(Reason::FieldInvalid));
}

#[tokio::test]
async fn a_devices_certificate_makes_no_server() {
    let office = Office::new();
    let device = office.device();
    let chain = vec![CertificateDer::from_pem_slice(device.certificate_pem.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(device.key.to_pem().as_bytes()).unwrap();
    atrium_common::tls::install_provider();
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let (client, server) = tokio::io::duplex(64 * 1024);
    let serving =
        tokio::spawn(async move { tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(server).await.map(|_| ()) });
    // Even under its own name it is no server.
    let tls = ClientTls::office(office.ca.ca_pem()).unwrap();
    tls.handshake(client).await.unwrap_err();
    serving.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_certificate_signed_by_a_device_is_worth_nothing() {
    let office = Office::new();
    let anna = office.device();
    let annas_key = KeyPair::from_pem(&anna.key.to_pem()).unwrap();
    let annas = CertificateDer::from_pem_slice(anna.certificate_pem.as_bytes()).unwrap();
    let issuer = Issuer::from_ca_cert_der(&annas, &annas_key).unwrap();
    let guest = DeviceKey::generate();
    let guests_key = KeyPair::from_pem(&guest.to_pem()).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, guest.device_id().to_string());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let forged = params.signed_by(&guests_key, &issuer).unwrap();
    let certificate_pem = format!("{}{}", forged.pem(), anna.certificate_pem);
    let error = check_membership(office.ca.ca_pem(), &certificate_pem, &guest.public_key()).unwrap_err();
    assert!(error.is(Reason::CertificateInvalid), "{error:?}");
    let server = start(&office.tls).await;
    let forged = DeviceCredentials { key: Arc::new(guest), certificate_pem };
    assert!(refused(&office.options(&server).device(forged)).await.is(Reason::TlsFailed));
}

/// Certificates that the CA's key did sign, but that are not a device's.
#[tokio::test]
async fn only_certificates_for_devices_are_taken() {
    // A CA of our own make, whose key is at hand.
    let key = KeyPair::generate().unwrap();
    let dir = tempfile::tempdir().unwrap();
    atrium_common::identity::write_secret(&dir.path().join("ca.key"), key.serialize_pem().as_bytes()).unwrap();
    let ca = OfficeCa::load_or_create(dir.path(), "Acme", now_ms()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(ca.ca_pem(), &key).unwrap();
    let office = Office::new();
    let certificate = ca.issue_server(&[], &office.key, now_ms()).unwrap();
    let tls = ServerTls::new(&certificate, ca.ca_pem(), office.clock.clone()).unwrap();
    let server = start(&tls).await;

    let device = Arc::new(DeviceKey::generate());
    let pair = KeyPair::from_pem(&device.to_pem()).unwrap();
    let make = |name: &str, usage: ExtendedKeyUsagePurpose| {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let certificate_pem = params.signed_by(&pair, &issuer).unwrap().pem();
        DeviceCredentials { key: device.clone(), certificate_pem }
    };
    let id = device.device_id().to_string();
    let options = |d| atrium_common::rpc::ConnectOptions::new(server.addr.to_string(), ca.ca_pem()).device(d);
    OfficeConnection::connect(&options(make(&id, ExtendedKeyUsagePurpose::ClientAuth))).await.unwrap();
    for wrong in [
        make(&id, ExtendedKeyUsagePurpose::ServerAuth),
        make("anna", ExtendedKeyUsagePurpose::ClientAuth),
        make(&DeviceKey::generate().device_id().to_string(), ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        assert!(refused(&options(wrong)).await.is(Reason::TlsFailed));
    }
}

#[tokio::test]
async fn tls_1_2_is_refused_and_nothing_is_resumed() {
    let office = Office::new();
    let server = start(&office.tls).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(office.ca.ca_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = |versions: &[&'static rustls::SupportedProtocolVersion]| {
        let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        tokio_rustls::TlsConnector::from(Arc::new(config))
    };
    let name = || ServerName::try_from("localhost").unwrap();

    let old = client(&[&rustls::version::TLS12]);
    old.connect(name(), TcpStream::connect(server.addr).await.unwrap()).await.unwrap_err();

    let new = client(&[&rustls::version::TLS13]);
    for _ in 0..2 {
        let mut stream = new.connect(name(), TcpStream::connect(server.addr).await.unwrap()).await.unwrap();
        // Reads the server's first frame, and with it any ticket.
        tokio::io::AsyncReadExt::read_u8(&mut stream).await.unwrap();
        let session = stream.get_ref().1;
        assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(session.tls13_tickets_received(), 0);
        assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
}

#[test]
fn certificates_say_what_they_are_for() {
    let office = Office::new();
    let parse = |pem: &str| x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1;
    let ca = parse(office.ca.ca_pem());
    let ca = ca.parse_x509().unwrap();
    let basic = ca.basic_constraints().unwrap().unwrap();
    assert!(basic.critical && basic.value.ca && basic.value.path_len_constraint == Some(0));
    let usage = ca.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && !usage.value.digital_signature());
    let years = (ca.validity().not_after.timestamp() - ca.validity().not_before.timestamp()) / (365 * 86_400);
    assert_eq!(years, 10);

    let device = parse(&office.device().certificate_pem);
    let device = device.parse_x509().unwrap();
    let server = office.ca.issue_server(&[], &office.key, now_ms()).unwrap();
    let server_pem = parse(server.pem());
    let server = server_pem.parse_x509().unwrap();
    for (leaf, client) in [(&device, true), (&server, false)] {
        assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
        assert!(leaf.key_usage().unwrap().unwrap().value.digital_signature());
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert_eq!((usage.client_auth, usage.server_auth, usage.any), (client, !client, false));
        assert_eq!(leaf.issuer(), ca.subject());
        leaf.verify_signature(Some(ca.public_key())).unwrap();
    }
    let again = office.ca.issue_server(&[], &office.key, now_ms()).unwrap();
    let again_pem = parse(again.pem());
    assert_ne!(again_pem.parse_x509().unwrap().raw_serial(), server.raw_serial(), "serial numbers are never reused");
}

#[test]
fn a_device_certificate_ends_with_the_ca_at_the_latest() {
    let office = Office::new();
    let request = DeviceRequest::check(&DeviceKey::generate().certificate_request().unwrap()).unwrap();
    let pem = office.ca.issue_device(&request, Duration::from_secs(u64::MAX / 4), now_ms()).unwrap();
    let membership = check_membership(office.ca.ca_pem(), &pem, request.public_key()).unwrap();
    assert_eq!(membership.not_after_ms, office.ca.not_after_ms());
    assert_eq!(membership.device_id, request.device_id());
}

#[test]
fn the_ca_comes_back_from_disk_and_a_foreign_key_is_noticed() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let made = OfficeCa::load_or_create(dir.path(), "Müller & Söhne", now_ms()).unwrap();
    let again = OfficeCa::load_or_create(dir.path(), "another name", now_ms()).unwrap();
    assert_eq!((made.ca_pem(), again.office()), (again.ca_pem(), "Müller & Söhne"));
    assert_eq!(made.fingerprint().unwrap(), again.fingerprint().unwrap());
    OfficeCa::load_or_create(other.path(), "Other", now_ms()).unwrap();
    std::fs::copy(other.path().join("ca.key"), dir.path().join("ca.key")).unwrap();
    assert!(OfficeCa::load(dir.path()).unwrap_err().is(Reason::CertificateInvalid));
    // A first start that was cut off before the certificate was written goes on with the same key.
    std::fs::remove_file(other.path().join("ca.pem")).unwrap();
    let key = std::fs::read(other.path().join("ca.key")).unwrap();
    OfficeCa::load_or_create(other.path(), "Other", now_ms()).unwrap();
    assert_eq!(std::fs::read(other.path().join("ca.key")).unwrap(), key);
    for wrong in ["", " a", "a\n", &"x".repeat(65)] {
        assert!(OfficeCa::create(wrong, now_ms()).unwrap_err().is(Reason::FieldInvalid));
    }
}

#[test]
fn the_server_certificate_is_renewed_when_it_is_due_or_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Arc::new(OfficeCa::create("Acme", now_ms()).unwrap());
    let with = |ca: &Arc<OfficeCa>, names: &[&str]| {
        ServerIdentity::new(dir.path(), ca.clone(), names.iter().map(|n| (*n).to_owned()).collect())
    };
    let start = now_ms();
    let first = with(&ca, &["a", "10.0.0.1"]).certificate(start).unwrap();
    let due = renew_at_ms(first.not_before_ms(), first.not_after_ms());
    assert!((59 * DAY_MS..=60 * DAY_MS).contains(&(due - start)), "two thirds of ninety days");
    let pem_at = |ca: &Arc<OfficeCa>, names: &[&str], at| with(ca, names).certificate(at).unwrap().pem().to_owned();
    assert_eq!(pem_at(&ca, &["a", "10.0.0.1"], due - 1), first.pem());
    assert_eq!(pem_at(&ca, &["a"], start), first.pem(), "it has all the names");
    let renewed = with(&ca, &["a"]).certificate(due).unwrap();
    assert_ne!(renewed.pem(), first.pem());
    assert_eq!(renewed.spki_sha256(), first.spki_sha256(), "the key stays");
    assert_ne!(pem_at(&ca, &["b"], due), renewed.pem(), "it lacks a name");
    let other = Arc::new(OfficeCa::create("Acme", now_ms()).unwrap());
    let others = pem_at(&other, &["b"], due);
    assert_eq!(pem_at(&other, &["b"], due), others);
    assert_ne!(pem_at(&ca, &["b"], due), others, "another CA signed it");
    std::fs::write(dir.path().join("server.pem"), "damaged").unwrap();
    with(&ca, &["b"]).certificate(due).unwrap();
}

#[tokio::test]
async fn renewal_reaches_the_listener_and_ends_with_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let office = Office::new();
    let server = start(&office.tls).await;
    let ca = Arc::new(OfficeCa::create("New", now_ms()).unwrap());
    let identity = ServerIdentity::new(dir.path(), ca.clone(), Vec::new());
    let shutdown = atrium_common::shutdown::Shutdown::new(Duration::from_secs(60));
    let before = office.tls.spki_sha256().unwrap();
    let task = shutdown.spawn(identity.keep_fresh(office.tls.clone(), office.clock.clone(), shutdown.clone()));
    while office.tls.spki_sha256().unwrap() == before {
        tokio::task::yield_now().await;
    }
    let options = atrium_common::rpc::ConnectOptions::new(server.addr.to_string(), ca.ca_pem());
    OfficeConnection::connect(&options).await.unwrap();
    shutdown.begin();
    assert_eq!(shutdown.drained().await, atrium_common::shutdown::Drained::Cleanly);
    task.await.unwrap();
}

#[test]
fn a_key_and_a_certificate_that_do_not_fit_are_refused() {
    let office = Office::new();
    let (anna, ben) = (office.device(), office.device());
    let mixed = DeviceCredentials { key: anna.key.clone(), certificate_pem: ben.certificate_pem.clone() };
    assert!(ClientTls::with_device(office.ca.ca_pem(), &mixed).unwrap_err().is(Reason::CertificateInvalid));
    let check = |ca: &OfficeCa| check_membership(ca.ca_pem(), &anna.certificate_pem, &ben.key.public_key());
    assert!(check(&office.ca).unwrap_err().is(Reason::CertificateInvalid));
    let other = Office::new();
    let error = check_membership(other.ca.ca_pem(), &anna.certificate_pem, &anna.key.public_key()).unwrap_err();
    assert!(error.message().contains("not signed by this office"), "{error:?}");
}
