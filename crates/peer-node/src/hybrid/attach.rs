//! Bringing the central server into an office of peers.
//!
//! Names, members and shares stay what they are: one record says that there is a server, and each machine joins it with the
//! key that it has. Attaching again goes on where it was interrupted.

use super::Hybrid;
use super::membership::Session;
use super::offers::{Members, invite};
use crate::office::{CentralServer, check_member};
use common::error::{Error, Reason, Result};
use common::rpc::{ConnectOptions, OfficeConnection, ServerAddress};

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The server's office name.
    pub office: String,
    /// Members that have joined it, this one included.
    pub joined: usize,
    /// Members that will when they are there.
    pub waiting: usize,
}

impl Hybrid {
    /// Checks the server, joins it, says in the office's records that there is one, and offers it to the members that are
    /// connected; the others join when they connect.
    ///
    /// # Errors
    /// NOT_JOINED, ACCESS_DENIED without the right to manage the office; FIELD_INVALID for a malformed address;
    /// SERVER_UNREACHABLE, TLS_FAILED if the server does not answer or is not the one of the certificates; ADMIN_REQUIRED,
    /// SESSION_INVALID if the session makes no invites; those of the store.
    pub async fn attach(&self, server: &str, ca_pem: &str, token: &str, members: &dyn Members) -> Result<Attached> {
        self.may_manage()?;
        let address = server.parse::<ServerAddress>()?.to_string();
        let connection = OfficeConnection::connect(&ConnectOptions::new(&*address, ca_pem).token(token)).await?;
        let server = CentralServer { server: address, ca_pem: ca_pem.to_owned() };
        let code = invite(&connection, "the machine that attaches the server to the office").await?;
        let membership = self.enrol(&server, &code).await?;
        if self.0.office.view().server() != Some(&server) {
            self.0.office.set_server(&server.server, &server.ca_pem).await?;
        }
        let joined = self.0.memory.session().filter(|s| s.ca_pem == server.ca_pem).map(|s| s.joined.clone());
        self.set_session(Some(Session {
            server: server.server.clone(),
            ca_pem: server.ca_pem.clone(),
            token: token.to_owned(),
            joined: joined.unwrap_or_default(),
        }))
        .await?;
        let joined = self.offer_to_all(members).await;
        let present = self.0.office.view().present().count();
        Ok(Attached { office: membership.office, joined, waiting: present.saturating_sub(joined) })
    }

    fn may_manage(&self) -> Result<()> {
        let view = self.0.office.view();
        if view.office_id().is_none() {
            return Err(Error::new(Reason::NotJoined, "this machine belongs to no office"));
        }
        check_member(&view, &view.me())?;
        match view.member(&view.me()) {
            Some(member) if member.may_manage => Ok(()),
            _ => Err(Error::new(Reason::AccessDenied, "this machine may not manage the office")),
        }
    }
}
