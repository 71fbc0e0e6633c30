//! From an invite to being cut off, over real connections.

use crate::fixture::{PASSWORD, local, new_user};
use central_server::app::answers::Once;
use central_server::app::{accounts, audit, devices, enrolment};
use central_server::serve::{self, Running};
use central_server::settings::Settings;
use common::enrol::join_office;
use common::error::{Error, Reason};
use common::identity::DeviceKey;
use common::model::Role;
use common::rpc::{ConnectOptions, OfficeConnection};
use common::settings::ByteSize;
use common::shutdown::Shutdown;
use common::status::from_status;
use common::tls::{DeviceCredentials, check_membership, install_provider};
use proto::v1;
use proto::v1::account_service_client::AccountServiceClient;
use proto::v1::device_service_client::DeviceServiceClient;
use proto::v1::session_service_client::SessionServiceClient;
use std::sync::Arc;
use std::time::Duration;

async fn server(directory: &tempfile::TempDir) -> Running {
    install_provider();
    let mut settings = Settings::in_directory(directory.path());
    settings.sessions.hash_memory = ByteSize::kib(8);
    settings.sessions.hash_passes = 1;
    serve::start(settings, Shutdown::new(Duration::from_secs(5))).await.unwrap()
}

fn connect(running: &Running, device: Option<DeviceCredentials>, token: Option<&str>) -> OfficeConnection {
    let mut options = ConnectOptions::new(format!("localhost:{}", running.addr.port()), running.ca_pem());
    if let Some(device) = device {
        options = options.device(device);
    }
    if let Some(token) = token {
        options = options.token(token);
    }
    OfficeConnection::lazy(&options).unwrap()
}

async fn login(connection: &OfficeConnection, user: &str, password: &str) -> Result<v1::LoginResponse, Error> {
    let request = v1::LoginRequest { user: user.into(), password: password.into(), ..v1::LoginRequest::default() };
    let answer = SessionServiceClient::new(connection.control()).login(request).await;
    answer.map(tonic::Response::into_inner).map_err(|s| from_status(&s))
}

async fn who_am_i(connection: &OfficeConnection) -> Result<v1::WhoAmIResponse, Error> {
    let answer = SessionServiceClient::new(connection.control()).who_am_i(v1::WhoAmIRequest {}).await;
    answer.map(tonic::Response::into_inner).map_err(|s| from_status(&s))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_joins_signs_in_renews_and_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let running = server(&directory).await;
    let app = running.app().clone();
    let anna = new_user("anna", Role::Member, PASSWORD);
    accounts::create(&app, &local(), anna, Once::always()).await.unwrap();

    let invite = enrolment::invite(&app, &local(), Duration::ZERO, "").await.unwrap();
    let key = Arc::new(DeviceKey::generate());
    let address = format!("localhost:{}", running.addr.port());
    let joined = join_office(&address, &invite.code, "anna-pc", &key).await.unwrap();
    assert_eq!((joined.device_id, joined.office.as_str()), (key.device_id(), app.office.name.as_str()));
    let again = join_office(&address, &invite.code, "anna-pc", &DeviceKey::generate()).await.unwrap_err();
    assert!(again.is(Reason::InviteUnknown));

    let credentials = DeviceCredentials { key: key.clone(), certificate_pem: joined.certificate_pem };
    let office = connect(&running, Some(credentials.clone()), None);
    let wrong = login(&office, "anna", "wrong password").await.unwrap_err();
    assert!(wrong.is(Reason::LoginFailed) && wrong.request_id().is_some());
    let session = login(&office, "anna", PASSWORD).await.unwrap();
    office.set_token(Some(&session.token)).unwrap();
    let me = who_am_i(&office).await.unwrap();
    assert_eq!(me.device_id, key.device_id().to_string());
    assert_eq!(me.user, session.user);

    let request = v1::RenewCertificateRequest { certificate_request: key.certificate_request().unwrap().into() };
    let renewed = DeviceServiceClient::new(office.control()).renew_certificate(request).await.unwrap().into_inner();
    check_membership(&renewed.ca_pem, &renewed.certificate_pem, &key.public_key()).unwrap();

    // What a member may not do is refused and noted, before anything is looked at.
    let request = v1::CreateUserRequest::default();
    let refused = AccountServiceClient::new(office.control()).create_user(request).await.unwrap_err();
    assert!(from_status(&refused).is(Reason::AdminRequired));

    let elsewhere = connect(&running, None, Some(&session.token));
    who_am_i(&elsewhere).await.unwrap();
    devices::revoke(&app, &local(), &me.device_id[..12]).await.unwrap();
    assert!(who_am_i(&office).await.unwrap_err().is(Reason::DeviceRevoked));
    assert!(who_am_i(&elsewhere).await.unwrap_err().is(Reason::SessionInvalid), "its sessions count no more");

    let page = audit::list(&app.store, &audit::Query { page_size: 1000, ..audit::Query::default() }).unwrap();
    let lines: Vec<(&str, bool)> = page.records.iter().map(|r| (r.action.as_str(), r.success)).collect();
    for expected in [
        ("invite.create", true),
        ("device.join", true),
        ("device.join", false),
        ("login", false),
        ("login", true),
        ("device.renew", true),
        ("/atrium.v1.AccountService/CreateUser", false),
        ("device.revoke", true),
        ("/atrium.v1.SessionService/WhoAmI", false),
    ] {
        assert!(lines.contains(&expected), "{expected:?} is not in {lines:?}");
    }
    let failed = page.records.iter().find(|r| r.action == "login" && !r.success).unwrap();
    assert!(failed.detail.ends_with("127.0.0.1") || failed.detail.ends_with("::1"), "{}", failed.detail);
    assert_eq!(audit::verify(&app.store).unwrap().first_bad, None);

    drop(app);
    running.stop();
    running.wait().await.unwrap();
}
