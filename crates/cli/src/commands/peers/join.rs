//! Joining an office of peers, and telling one from an office with a central server.

use crate::args::Join;
use crate::args::place::JoinWords;
use crate::commands::{Context, call};
use crate::connect;
use crate::exit::Exit;
use crate::output::format::safe;
use crate::output::schema::Done;
use crate::output::usage;
use crate::prompt::{self, Secret};
use common::error::{Error, Reason, Result};
use common::rpc::{OfficeConnection, ServerAddress};
use common::tls::ClientTls;
use proto::peer::v1 as wire;
use std::time::Duration;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// The service that a peer has and a central server has not.
const PEERS_ENROL: &str = "atrium.peer.v1.EnrolmentService";
/// TCP port of peers; central servers have [`common::rpc::DEFAULT_PORT`].
const PEER_PORT: u16 = 7444;
/// A machine that is there answers within this time.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whom to ask for admission.
pub(in crate::commands) enum Way {
    /// A member of an office of peers; found by itself if no address was given.
    Peers(Option<String>),
    /// The central server.
    Server(String),
}

/// Looks at the command line and, if an address was given, at who answers there.
pub(in crate::commands) async fn way(c: &Context, words: &JoinWords) -> Result<Way> {
    let Some(address) = &words.address else {
        return Ok(Way::Peers(None));
    };
    let with_port = |port| ServerAddress::with_default_port(address, port).map(|a| a.to_string());
    let (peer, server) = (with_port(PEER_PORT)?, with_port(common::rpc::DEFAULT_PORT)?);
    // Without a peer here, only a server can be meant; without an agent, only a peer.
    let (has_peer, has_agent) = (crate::peer::is_there(&c.global), connect::agent_socket(&c.global).exists());
    match (has_peer, has_agent || c.global.agent.is_some()) {
        (true, false) => return Ok(Way::Peers(Some(peer))),
        (false, _) => return Ok(Way::Server(server)),
        (true, true) => {}
    }
    match admits_peers(&peer).await {
        Ok(true) => Ok(Way::Peers(Some(peer))),
        Ok(false) => Ok(Way::Server(server)),
        // At the other port there may be a server.
        Err(_) if peer != server => Ok(Way::Server(server)),
        Err(error) => Err(error),
    }
}

/// Asks who answers there, by the question that everyone may ask.
async fn admits_peers(address: &str) -> Result<bool> {
    let (tls, _) = ClientTls::capture()?;
    let connection = OfficeConnection::over_tls(address, tls, PATIENCE, 1)?;
    let request = HealthCheckRequest { service: PEERS_ENROL.to_owned() };
    let mut client = HealthClient::new(connection.control());
    let asked = tokio::time::timeout(PATIENCE, client.check(request)).await;
    match asked {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(status)) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => Ok(false),
        Ok(Err(status)) => Err(common::status::from_status(&status)),
        Err(_) => Err(Error::new(Reason::ServerUnreachable, format!("nobody answers at {address}"))),
    }
}

/// The code: from the command line, from a file, or asked for.
///
/// # Errors
/// `USAGE` if it is given twice or would have to be asked for but nobody can be asked.
pub(in crate::commands) fn code(c: &Context, words: &JoinWords, args: &Join) -> Result<Secret> {
    match (&words.code, &args.code_file) {
        (Some(_), Some(_)) => Err(usage("the code is given twice", "leave it or --code-file out")),
        (Some(code), None) => Ok(Secret::new(code.clone())),
        (None, file) => prompt::secret(&c.out, file.as_deref(), "one-time code", "--code-file"),
    }
}

/// Joins an office of peers.
pub(in crate::commands) async fn join(c: &Context, address: Option<String>, code: Secret, args: Join) -> Result<Exit> {
    let mut client = c.peer()?.client();
    c.out.note(match &address {
        Some(_) => "joining; a wrong code burns it, so this is tried once",
        None => "looking for the machine that gave out the code, in this network",
    });
    let request = wire::JoinOfficeRequest {
        code: code.trim().to_owned(),
        address: address.unwrap_or_default(),
        display_name: args.name.unwrap_or_default(),
        person: args.person.unwrap_or_default(),
    };
    let answer = call(client.join_office(request)).await?;
    let (office, name) = (safe(&answer.office), safe(&answer.node_name));
    let message = format!("this machine is now a member of {office}: {name}, of {}", safe(&answer.person));
    c.out.changed(&Done::new("join", answer.office, Some(answer.node_name), message), |d| d.message.clone())?;
    c.out.hint("atrium peers");
    Ok(Exit::Ok)
}
