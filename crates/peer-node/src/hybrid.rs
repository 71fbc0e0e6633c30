//! The central server of the office beside its peers: one more source of chunks, its directories beside the shares, and
//! the way from an office without a server to one with a server.
//!
//! ```text
//!  membership  this node's place at the server, on disk      access   connection, session, device certificate
//!  person      signing in without an agent
//!  attach      who brings the server in                      offers   handing invites to members, taking one
//!  address     acme/server/public/plans/a.pdf                browse   listing, and what a fetch needs
//!  ticket      a source that checks read tickets             shelf    which file of the server a chunk is in
//!  swarm       the server as a node that has everything  walk     what is below a directory
//!  renew       tickets that end before their transfer does
//! ```
//!
//! # Rights
//!
//! The server decides who may read: with each call to it, by the person's session. For contents that come from other
//! members it issues a *read ticket*: for one device, for named contents, for a day (`common::ticket`). Whoever is shown
//! one checks it with the certificates in the office's records, without asking anybody, so that members go on giving each
//! other what they have while the server is away. A ticket cannot be taken back before its day is over; a transfer that takes
//! longer gets a new one for the same contents, if the person still may read them.
//!
//! # One swarm
//!
//! `transfer` knows no server. [`Hybrid::peers`] adds to the nodes a device that stands for the server: its calls are
//! answered in this process by asking the server for ranges of files. It has everything in the ticket, and is *spared*: it
//! is asked for what the others do not bring (`transfer::scheduler`). Other members that fetch the same contents are found
//! as always: by asking those who are connected, and by being told. Each shows a ticket of its own; what counts is that the
//! tickets name the same contents.
//!
//! # On disk
//!
//! `STATE/server/membership.json` (this node's certificate), `STATE/server/session.json` (the session with which the server
//! was brought in, and the members that have joined), `STATE/server/person.json` (the session of who has signed in here
//! without an agent), all mode 0600 and replaced as a whole; in the store `h/t/` which
//! files a ticket is about, so that an interrupted transfer goes on after a restart. A crash loses none of what was
//! answered; joining twice is harmless.
//!
//! # Bounds
//!
//! A ticket has 1,000 contents; a larger directory is several fetches. 1,024 tickets are remembered and 64 of them held in
//! memory; the oldest go, and their transfers then take from members only. One offer is taken at a time, eight are made.

mod access;
mod address;
mod attach;
mod browse;
mod membership;
mod offers;
mod person;
mod renew;
mod shelf;
mod swarm;
mod ticket;
mod walk;

pub use address::{Place, server_address, server_word};
pub use attach::Attached;
pub use browse::{ServerFiles, ServerTree, problem};
pub use membership::Membership;
pub use offers::{HybridServer, Members};
pub use swarm::{WithServer, server_device};
pub use ticket::TicketSource;

use self::access::Access;
use self::membership::Memory;
use self::renew::Renewals;
use self::shelf::Shelves;
use crate::office::Office;
use crate::transfer::Peers;
use common::clock::SharedClock;
use common::error::Result;
use common::identity::DeviceKey;
use common::store::Store;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{Mutex, Semaphore};

/// What this module works with.
pub struct HybridParts {
    /// Who belongs, and which server there is.
    pub office: Office,
    /// This device's key.
    pub key: Arc<DeviceKey>,
    /// Remembers tickets.
    pub store: Store,
    /// The time.
    pub clock: SharedClock,
    /// The node's state directory.
    pub state_directory: PathBuf,
    /// Sockets of this machine's agent, tried in this order; they need not exist.
    pub agent_sockets: Vec<PathBuf>,
}

/// See the module. Clones are handles to the same.
#[derive(Clone)]
pub struct Hybrid(Arc<Inner>);

struct Inner {
    office: Office,
    key: Arc<DeviceKey>,
    clock: SharedClock,
    memory: Arc<Memory>,
    access: Access,
    shelves: Shelves,
    renewals: Renewals,
    /// One joining at a time.
    joining: Semaphore,
    /// One round of offers at a time.
    offering: Mutex<()>,
}

impl Hybrid {
    /// Reads what is on disk. Blocks.
    ///
    /// # Errors
    /// IO_FAILED if it cannot be read.
    pub fn open(parts: HybridParts) -> Result<Self> {
        let memory = Arc::new(Memory::open(&parts.state_directory.join("server"))?);
        let access = Access::new(parts.office.clone(), parts.key.clone(), memory.clone(), parts.agent_sockets);
        let shelves = Shelves::open(parts.store)?;
        Ok(Self(Arc::new(Inner {
            office: parts.office,
            key: parts.key,
            clock: parts.clock,
            memory,
            access,
            shelves,
            renewals: Renewals::default(),
            joining: Semaphore::new(1),
            offering: Mutex::new(()),
        })))
    }

    /// What says who may have chunks by a ticket: to be registered beside the other sources.
    pub fn source(&self) -> Arc<TicketSource> {
        Arc::new(TicketSource::new(self.0.office.clone(), self.0.clock.clone()))
    }

    /// The nodes, and the server as one of them. Call it inside a runtime.
    pub fn peers(&self, nodes: Arc<dyn Peers>) -> Arc<dyn Peers> {
        Arc::new(WithServer::new(self.clone(), nodes))
    }

    /// This node's place at the server, if it has joined the one that the office has now.
    pub fn membership(&self) -> Option<Arc<Membership>> {
        let view = self.0.office.view();
        self.0.memory.membership().filter(|m| view.server().is_some_and(|s| m.is_of(s)))
    }

    /// Members that have not joined the server as far as this node knows; none if it makes no offers.
    pub fn waiting(&self) -> usize {
        let view = self.0.office.view();
        let (Some(server), Some(session)) = (view.server(), self.0.memory.session()) else { return 0 };
        if session.ca_pem.trim() != server.ca_pem.trim() {
            return 0;
        }
        view.present().filter(|m| m.device != view.me() && !session.has_joined(&m.device)).count()
    }
}

impl Hybrid {
    /// A connection as this machine, by its certificate, if it has joined the office's server. For what machines do
    /// whoever is signed in.
    pub fn device_connection(&self) -> Option<common::rpc::OfficeConnection> {
        let membership = self.membership()?;
        let server = self.0.office.view().server().cloned()?;
        let certificate_pem = membership.certificate_pem.clone();
        let credentials = common::tls::DeviceCredentials { key: self.0.key.clone(), certificate_pem };
        let options = common::rpc::ConnectOptions::new(&*server.server, &*server.ca_pem).device(credentials);
        common::rpc::OfficeConnection::lazy(&options).ok()
    }
}

/// The sockets where this machine's agent may be: the user's own, then the system's.
pub fn agent_sockets() -> Vec<PathBuf> {
    let named = std::env::var_os("ATRIUM_AGENT_SOCKET").map(PathBuf::from);
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("atrium/agent.sock"));
    named.into_iter().chain(own).filter(|p| p.is_absolute()).chain([PathBuf::from("/run/atrium/agent.sock")]).collect()
}
