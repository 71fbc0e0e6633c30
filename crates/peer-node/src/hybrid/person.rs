//! Signing in at the central server, for machines that have no agent.

use super::Hybrid;
use super::membership::Person;
use common::error::{Error, Kind, Result};
use common::rpc::{ConnectOptions, OfficeConnection};
use common::status::from_status;
use common::tls::DeviceCredentials;
use proto::v1;
use proto::v1::session_service_client::SessionServiceClient;
use std::time::Duration;

/// The server hashes passwords slowly, and one after the other.
const PATIENCE: Duration = Duration::from_secs(30);

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedIn {
    /// As the server writes the name.
    pub user: String,
    /// When it ends by itself.
    pub expire_time: Option<prost_types::Timestamp>,
}

impl Hybrid {
    /// Exchanges name and password for a session, and keeps it.
    ///
    /// # Errors
    /// ADDRESS_UNKNOWN without a server; LOGIN_FAILED, LOGIN_RATE_LIMITED, SERVER_UNREACHABLE; IO_FAILED if it cannot be
    /// kept.
    pub async fn sign_in(&self, user: String, password: String) -> Result<SignedIn> {
        let server = self.0.access.server()?;
        let mut options = ConnectOptions::new(&*server.server, &*server.ca_pem);
        if let Some(membership) = self.membership() {
            let certificate_pem = membership.certificate_pem.clone();
            options = options.device(DeviceCredentials { key: self.0.key.clone(), certificate_pem });
        }
        let connection = OfficeConnection::lazy(&options)?;
        let purpose = format!("peer-node {}", env!("CARGO_PKG_VERSION"));
        let request = v1::LoginRequest { user, password, purpose, lifetime_seconds: 0 };
        let mut client = SessionServiceClient::new(connection.control());
        let answer = tokio::time::timeout(PATIENCE, client.login(request)).await.map_err(|_| super::browse::slow())?;
        let answer = answer.map_err(|s| from_status(&s))?.into_inner();
        let user = answer.user.map(|u| u.name).unwrap_or_default();
        self.keep_person(Some(Person { user: user.clone(), ca_pem: server.ca_pem, token: answer.token })).await?;
        Ok(SignedIn { user, expire_time: answer.expire_time })
    }

    /// Ends the session here, and at the server if it can be reached.
    ///
    /// # Errors
    /// IO_FAILED; what the server says, when the session is forgotten here.
    pub async fn sign_out(&self) -> Result<()> {
        let Some(person) = self.0.memory.person() else { return Ok(()) };
        let server = self.0.access.server();
        self.keep_person(None).await?;
        let server = server?;
        let options = ConnectOptions::new(&*server.server, &*server.ca_pem).token(&*person.token);
        let connection = OfficeConnection::lazy(&options)?;
        let mut client = SessionServiceClient::new(connection.control());
        let ended = tokio::time::timeout(PATIENCE, client.logout(v1::LogoutRequest {})).await;
        match ended.map_err(|_| super::browse::slow())?.map_err(|s| from_status(&s)) {
            Err(error) if error.kind() != Kind::Unauthenticated => Err(error),
            _ => Ok(()),
        }
    }

    /// Who has signed in here.
    pub fn user(&self) -> String {
        let view = self.0.office.view();
        let kept = self.0.memory.person().filter(|p| view.server().is_some_and(|s| s.ca_pem.trim() == p.ca_pem.trim()));
        kept.map(|p| p.user.clone()).unwrap_or_default()
    }

    async fn keep_person(&self, person: Option<Person>) -> Result<()> {
        let memory = self.0.memory.clone();
        let kept = tokio::task::spawn_blocking(move || memory.set_person(person)).await;
        kept.map_err(|e| Error::internal("keeping a session").caused_by(e))??;
        self.0.access.forget();
        Ok(())
    }
}
