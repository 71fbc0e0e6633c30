//! Calls to the central server: as which person, from which device.
//!
//! The person's session is the one of `SignIn`; else that of this machine's agent, if it is signed in to the same office;
//! else the one with which the server was brought in here. A session that has ended is looked up once more before a call
//! fails for it.

use super::membership::Memory;
use crate::office::{CentralServer, Office};
use common::error::{Error, Kind, Reason, Result};
use common::identity::DeviceKey;
use common::rpc::{ConnectOptions, OfficeConnection};
use common::tls::DeviceCredentials;
use parking_lot::Mutex;
use proto::agent::v1 as agent;
use proto::agent::v1::agent_service_client::AgentServiceClient;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// An agent that takes longer is not asked.
const AGENT_TIMEOUT: Duration = Duration::from_secs(2);

struct Open {
    server: CentralServer,
    certificate: Option<String>,
    connection: OfficeConnection,
}

/// How the server is called.
pub struct Access {
    office: Office,
    key: Arc<DeviceKey>,
    memory: Arc<Memory>,
    agents: Vec<PathBuf>,
    open: Mutex<Option<Open>>,
}

/// There is no server.
pub(super) fn no_server() -> Error {
    Error::new(Reason::AddressUnknown, "this office has no central server")
        .why_is("nobody has attached one, or this node has not heard of it yet")
        .fix_is("attach one with `atrium office attach`, or look at `atrium status`")
}

impl Access {
    pub fn new(office: Office, key: Arc<DeviceKey>, memory: Arc<Memory>, agents: Vec<PathBuf>) -> Self {
        Self { office, key, memory, agents, open: Mutex::new(None) }
    }

    /// The office's server.
    ///
    /// # Errors
    /// ADDRESS_UNKNOWN if there is none.
    pub fn server(&self) -> Result<CentralServer> {
        self.office.view().server().cloned().ok_or_else(no_server)
    }

    /// A connection as the person, from this device if it has joined.
    ///
    /// # Errors
    /// ADDRESS_UNKNOWN without a server, NOT_SIGNED_IN without a session.
    pub async fn connection(&self) -> Result<OfficeConnection> {
        let server = self.server()?;
        let certificate = self.certificate(&server);
        if let Some(open) = &*self.open.lock()
            && open.server == server
            && open.certificate == certificate
        {
            return Ok(open.connection.clone());
        }
        let token = self.token(&server).await?;
        let mut options = ConnectOptions::new(&*server.server, &*server.ca_pem).token(token);
        if let Some(certificate_pem) = &certificate {
            let certificate_pem = certificate_pem.clone();
            options = options.device(DeviceCredentials { key: self.key.clone(), certificate_pem });
        }
        let connection = OfficeConnection::lazy(&options)?;
        *self.open.lock() = Some(Open { server, certificate, connection: connection.clone() });
        Ok(connection)
    }

    /// Makes a call; once more with a fresh session if the one that was used has ended.
    ///
    /// # Errors
    /// As [`Access::connection`], and what the call ends with.
    pub async fn call<T, F: Future<Output = Result<T>>>(&self, f: impl Fn(OfficeConnection) -> F) -> Result<T> {
        match f(self.connection().await?).await {
            Err(error) if error.kind() == Kind::Unauthenticated => {
                self.forget();
                f(self.connection().await?).await
            }
            result => result,
        }
    }

    /// Looks for session and certificate anew with the next call.
    pub fn forget(&self) {
        *self.open.lock() = None;
    }

    fn certificate(&self, server: &CentralServer) -> Option<String> {
        self.memory.membership().filter(|m| m.is_of(server)).map(|m| m.certificate_pem.clone())
    }

    async fn token(&self, server: &CentralServer) -> Result<String> {
        if let Some(person) = self.memory.person().filter(|p| p.ca_pem.trim() == server.ca_pem.trim()) {
            return Ok(person.token.clone());
        }
        for socket in self.agents.iter().filter(|s| s.exists()) {
            let asked = tokio::time::timeout(AGENT_TIMEOUT, ask_agent(socket)).await;
            match asked {
                Ok(Ok(way)) if way.ca_pem.trim() == server.ca_pem.trim() && !way.token.is_empty() => {
                    return Ok(way.token);
                }
                // Not joined, of another office, or nobody is signed in.
                _ => {}
            }
        }
        let kept = self.memory.session().filter(|s| s.ca_pem.trim() == server.ca_pem.trim());
        kept.map(|s| s.token.clone()).ok_or_else(|| {
            Error::new(Reason::NotSignedIn, "nobody is signed in to the central server on this machine")
                .fix_is("atrium login NAME")
        })
    }
}

async fn ask_agent(socket: &std::path::Path) -> Result<agent::GetConnectionResponse> {
    let connection = OfficeConnection::unix(socket, Reason::AgentUnreachable)?;
    let mut client = AgentServiceClient::new(connection.control());
    let answer = client.get_connection(agent::GetConnectionRequest {}).await;
    answer.map(tonic::Response::into_inner).map_err(|s| common::status::from_status(&s))
}
