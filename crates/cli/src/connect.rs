//! Who to talk to, and as whom.
//!
//! In this order: `--server`; the agent of this machine (`--agent`, `$ATRIUM_AGENT_SOCKET`, the user's own, the
//! system's); the server that the user signed in to last with `login --server`. The agent only tells the way (address,
//! office certificate, session token); calls then go to the server directly.

mod session;

pub use session::{remove as remove_session, save as save_session};

use crate::args::Global;
use crate::output::usage;
use common::error::{Error, Reason, Result};
use common::rpc::{ConnectOptions, OfficeChannel, OfficeConnection, ServerAddress};
use common::status::from_status;
use proto::agent::v1::agent_service_client::AgentServiceClient;
use proto::agent::v1::{self as agent_v1};
use proto::v1::account_service_client::AccountServiceClient;
use proto::v1::admin_service_client::AdminServiceClient;
use proto::v1::device_service_client::DeviceServiceClient;
use proto::v1::directory_service_client::DirectoryServiceClient;
use proto::v1::file_service_client::FileServiceClient;
use proto::v1::print_service_client::PrintServiceClient;
use proto::v1::session_service_client::SessionServiceClient;
use proto::v1::watch_service_client::WatchServiceClient;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Agent of the whole machine.
const SYSTEM_AGENT: &str = "/run/atrium/agent.sock";
/// The central server's own socket, as installed.
const SYSTEM_SERVER: &str = "/var/lib/atrium/admin.sock";
/// Largest answer of a control call: a page of 65,536 chunks, or of 5,000 entries with long names.
const ANSWER_MAX: usize = 16 * 1024 * 1024;

/// A server, and who calls.
#[derive(Clone, Debug)]
pub enum Target {
    /// The server's own socket on this machine.
    Local(PathBuf),
    /// By the network.
    Remote {
        /// "host:port".
        server: String,
        /// The office's certificate.
        ca_pem: String,
        /// Session token.
        token: Option<String>,
        /// Whose session it is, if known.
        user: Option<String>,
    },
}

impl Target {
    /// From `--server`, `--ca` and `--token-file`; what is left out is taken from a session file of that server.
    ///
    /// # Errors
    /// `USAGE` if the certificate is missing, `FIELD_INVALID` for a malformed address.
    pub fn from_options(global: &Global) -> Result<Self> {
        let Some(server) = &global.server else {
            return match session::current()? {
                Some(saved) => Ok(saved.into_target()),
                None => Err(usage("no server is named", "name it with --server HOST:PORT and --ca FILE")),
            };
        };
        if let Some(path) = server.strip_prefix("unix:") {
            return Ok(Self::Local(path.into()));
        }
        let server = server.parse::<ServerAddress>()?.to_string();
        let saved = session::of(&server)?;
        let ca_pem = match (&global.ca, &saved) {
            (Some(path), _) => read_text(path, "the office's certificate")?,
            (None, Some(saved)) => saved.ca_pem.clone(),
            (None, None) => {
                return Err(usage(
                    format!("the certificate to verify {server} by is not known"),
                    "give it with --ca FILE; an administrator has it as ca.pem of the server",
                ));
            }
        };
        let (token, user) = match (&global.token_file, saved) {
            (Some(path), _) => (Some(crate::prompt::secret_file(path)?.trim().to_owned()), None),
            (None, Some(saved)) => (Some(saved.token), Some(saved.user)),
            (None, None) => (None, None),
        };
        Ok(Self::Remote { server, ca_pem, token, user })
    }
}

fn read_text(path: &Path, what: &str) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| {
        Error::new(Reason::IoFailed, format!("{what} in {} cannot be read", path.display()))
            .why_is(e.to_string())
            .fix_is("check the file's name and rights")
            .caused_by(e)
    })
}

/// The agent of this machine.
#[derive(Clone, Debug)]
pub struct Agent {
    connection: OfficeConnection,
}

impl Agent {
    /// For its calls.
    pub fn client(&self) -> AgentServiceClient<OfficeChannel> {
        AgentServiceClient::new(self.connection.control()).max_decoding_message_size(ANSWER_MAX)
    }

    /// For its streams of file contents.
    pub fn bulk_client(&self) -> AgentServiceClient<OfficeChannel> {
        AgentServiceClient::new(self.connection.bulk()).max_decoding_message_size(ANSWER_MAX)
    }
}

/// The office: its server, and the agent if it showed the way.
#[derive(Clone, Debug)]
pub struct Office {
    /// Connections to the server.
    pub connection: OfficeConnection,
    /// The agent that showed the way.
    pub agent: Option<Agent>,
    /// Who is signed in, if known.
    pub user: Option<String>,
    /// "host:port", or the socket.
    pub server: String,
}

macro_rules! clients {
    ($($(#[$doc:meta])* $name:ident: $client:ident;)*) => {
        impl Office {
            $($(#[$doc])* pub fn $name(&self) -> $client<OfficeChannel> {
                $client::new(self.connection.control()).max_decoding_message_size(ANSWER_MAX)
            })*
        }
    };
}

clients! {
    /// Files and directories below a root.
    files: FileServiceClient;
    /// Private and public directories.
    directories: DirectoryServiceClient;
    /// Signing in and out.
    sessions: SessionServiceClient;
    /// People and groups.
    accounts: AccountServiceClient;
    /// Machines and invites.
    devices: DeviceServiceClient;
    /// Information and upkeep.
    admin: AdminServiceClient;
    /// Print queues.
    prints: PrintServiceClient;
    /// Changes as they happen.
    watch: WatchServiceClient;
}

/// Where the agent's socket is, or would be.
pub fn agent_socket(global: &Global) -> PathBuf {
    if let Some(path) = &global.agent {
        return path.clone();
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("atrium/agent.sock"));
    own.filter(|path| path.exists()).unwrap_or_else(|| SYSTEM_AGENT.into())
}

/// Whether the agent is the way, rather than a server that was named or signed in to directly.
pub fn wants_agent(global: &Global) -> bool {
    if global.server.is_some() {
        return false;
    }
    global.agent.is_some() || agent_socket(global).exists() || !matches!(session::current(), Ok(Some(_)))
}

/// The agent of this machine, without asking it anything yet.
///
/// # Errors
/// `AGENT_UNREACHABLE` if there is no socket.
pub async fn agent(global: &Global) -> Result<Agent> {
    let socket = agent_socket(global);
    Ok(Agent { connection: OfficeConnection::unix(&socket, Reason::AgentUnreachable)? })
}

/// The office, by the way described above.
///
/// # Errors
/// `AGENT_UNREACHABLE`, `NOT_JOINED`; whether the server answers shows at the first call.
pub async fn office(global: &Global) -> Result<Office> {
    if !wants_agent(global) {
        return open(&Target::from_options(global)?).await;
    }
    let agent = agent(global).await?;
    let answer = match agent.client().get_connection(agent_v1::GetConnectionRequest {}).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Err(from_status(&status)),
    };
    if answer.server.is_empty() {
        return Err(Error::new(Reason::NotJoined, "this machine is not a member of an office yet"));
    }
    let filled = |text: String| (!text.is_empty()).then_some(text);
    let target = Target::Remote {
        server: answer.server,
        ca_pem: answer.ca_pem,
        token: filled(answer.token),
        user: filled(answer.user),
    };
    let mut office = open(&target).await?;
    office.agent = Some(agent);
    Ok(office)
}

/// The office for an administrator: on the server machine, the server's own socket is taken if it lets us in and no
/// other way was asked for.
///
/// # Errors
/// As [`office`].
pub async fn admin_office(global: &Global) -> Result<Office> {
    let own_way = global.server.is_none() && global.agent.is_none();
    if own_way && UnixStream::connect(SYSTEM_SERVER).is_ok() {
        return open(&Target::Local(SYSTEM_SERVER.into())).await;
    }
    office(global).await
}

/// The office behind a target.
///
/// # Errors
/// `FIELD_INVALID`, `CERTIFICATE_INVALID`.
pub async fn open(target: &Target) -> Result<Office> {
    let (connection, server, user) = match target {
        Target::Local(path) => {
            (OfficeConnection::unix(path, Reason::ServerUnreachable)?, format!("unix:{}", path.display()), None)
        }
        Target::Remote { server, ca_pem, token, user } => {
            let mut options = ConnectOptions::new(server, ca_pem);
            options.token.clone_from(token);
            (OfficeConnection::lazy(&options)?, server.clone(), user.clone())
        }
    };
    Ok(Office { connection, agent: None, user, server })
}

/// This machine's name, for descriptions.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::Parser;

    fn global(line: &[&str]) -> Global {
        Cli::try_parse_from([&["atrium"], line, &["whoami"]].concat()).unwrap().global
    }

    #[test]
    fn a_named_server_beats_the_agent() {
        let g = global(&["--server", "unix:/x/admin.sock"]);
        assert!(!wants_agent(&g));
        assert!(matches!(Target::from_options(&g).unwrap(), Target::Local(p) if p == Path::new("/x/admin.sock")));
        assert!(wants_agent(&global(&["--agent", "/x/agent.sock"])));
        assert_eq!(agent_socket(&global(&["--agent", "/x/agent.sock"])), Path::new("/x/agent.sock"));
    }

    #[test]
    fn a_missing_certificate_says_what_to_give() {
        let error = Target::from_options(&global(&["--server", "never-signed-in.example"])).unwrap_err();
        assert!(error.fix().contains("--ca"), "{error:?}");
        let missing = global(&["--server", "x.example", "--ca", "/nonexistent/ca.pem"]);
        assert!(Target::from_options(&missing).unwrap_err().is(Reason::IoFailed));
    }
}
