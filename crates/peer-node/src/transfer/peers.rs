//! How transfers reach other nodes: a small interface, so that tests and the central server can stand in for a node.

use crate::model::Scope;
use common::error::Result;
use common::model::DeviceId;
use futures_util::future::BoxFuture;
use std::fmt;
use std::time::Duration;
use tokio::sync::broadcast;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;

/// Cause of a call that did not come about.
#[derive(Debug)]
pub struct CallError(Box<dyn std::error::Error + Send + Sync>);

impl CallError {
    /// For this cause.
    pub fn new(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(cause.into())
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the call did not come about")
    }
}

impl std::error::Error for CallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

/// What calls are made on.
pub type Channel = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, CallError>;

/// How a node is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// By a connection of its own.
    Direct,
    /// Through another member.
    Relayed,
}

impl Way {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
        }
    }
}

/// A node that can be called now. Clones are cheap.
#[derive(Clone)]
pub struct PeerLink {
    /// For small calls.
    pub control: Channel,
    /// For chunks; several, if they are to be used in turn. Not empty.
    pub bulk: Vec<Channel>,
    /// How it is reached.
    pub way: Way,
    /// As measured; zero if not known.
    pub round_trip: Duration,
}

/// What happened to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerEvent {
    /// It can be reached now, or at another address than before.
    Up(DeviceId),
    /// It cannot be reached any longer.
    Down(DeviceId),
}

/// The other nodes.
pub trait Peers: Send + Sync + 'static {
    /// This device.
    fn me(&self) -> DeviceId;

    /// How people call a node.
    fn name_of(&self, device: &DeviceId) -> String;

    /// Connects, or gives the connection that there is.
    ///
    /// # Errors
    /// SERVER_UNREACHABLE and the like.
    fn link(&self, device: DeviceId) -> BoxFuture<'static, Result<PeerLink>>;

    /// True of a node that gives to everybody and should send little more than one copy: it is asked for what the others
    /// cannot bring.
    fn is_spared(&self, device: &DeviceId) -> bool {
        let _ = device;
        false
    }

    /// The scope as it is to be shown now: a right that ends and was renewed is shown as the new one.
    fn shown(&self, scope: &Scope) -> Scope {
        scope.clone()
    }

    /// The same, and renews the right first if it is about to end. Gives the old one if it cannot.
    fn renewed(&self, scope: Scope) -> BoxFuture<'static, Scope> {
        Box::pin(std::future::ready(scope))
    }

    /// The nodes that are connected now.
    fn neighbours(&self) -> Vec<DeviceId>;

    /// Tells of nodes that come and go.
    fn events(&self) -> broadcast::Receiver<PeerEvent>;
}
