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
use common::identity::DeviceKey;
use common::rpc::ServerAddress;
use common::tls::NodeTls;
use hyper_util::rt::TokioIo;
use proto::peer::v1 as wire;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tonic::transport::{Endpoint, Uri};
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

/// Asks who answers there, by the question that everyone may ask, as a device that nobody knows. A central server does
/// not get as far as the question: it shows another sort of certificate.
///
/// # Errors
/// `SERVER_UNREACHABLE` if nobody answers.
async fn admits_peers(address: &str) -> Result<bool> {
    let nobody = |why: String| {
        Error::new(Reason::ServerUnreachable, format!("nobody answers at {address}"))
            .why_is(why)
            .fix_is("check the address and whether that machine is on")
    };
    let asked = async {
        let stream = TcpStream::connect(address).await.map_err(|e| nobody(e.to_string()))?;
        let tls = NodeTls::new(&DeviceKey::generate())?;
        let Ok((stream, _)) = tls.connect_over(stream, None).await else { return Ok(false) };
        let once = Mutex::new(Some(TokioIo::new(stream)));
        let connector = tower::service_fn(move |_: Uri| {
            let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
            async move { stream.ok_or_else(|| std::io::Error::other("the connection has ended")) }
        });
        let endpoint = Endpoint::from_static("http://node.atrium").origin(Uri::from_static("https://node.atrium"));
        let channel = endpoint.connect_with_connector(connector).await.map_err(|e| nobody(e.to_string()))?;
        let request = HealthCheckRequest { service: PEERS_ENROL.to_owned() };
        Ok(HealthClient::new(channel).check(request).await.is_ok())
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(nobody(format!("no answer came within {} seconds", PATIENCE.as_secs()))),
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
