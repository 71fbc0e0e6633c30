//! This machine's own peer, on its Unix socket.
//!
//! Which socket, in this order: `--peer` or `$ATRIUM_PEER_SOCKET`; the peer that the user started
//! (`$XDG_RUNTIME_DIR/atrium/peer.sock`, else in its state directory); one that the system runs for the user
//! (`/run/atrium-peer/NAME/peer.sock`, by the owner of the directory); the one of the whole machine.

use crate::args::Global;
use common::error::{Error, Reason, Result};
use common::rpc::{OfficeChannel, OfficeConnection};
use proto::peer::v1::device_service_client::DeviceServiceClient;
use proto::peer::v1::local_device_service_client::LocalDeviceServiceClient;
use proto::peer::v1::node_service_client::NodeServiceClient;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The peer of the whole machine, started by root.
const SYSTEM_PEER: &str = "/run/atrium/peer.sock";
/// Peers that the system runs for people: one directory each.
const PEERS_OF_PEOPLE: &str = "/run/atrium-peer";
/// Largest answer: a page of 10,000 addresses.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// The peer of this machine.
#[derive(Clone, Debug)]
pub struct Peer {
    connection: OfficeConnection,
}

impl Peer {
    /// For its calls.
    pub fn client(&self) -> NodeServiceClient<OfficeChannel> {
        NodeServiceClient::new(self.connection.control()).max_decoding_message_size(ANSWER_MAX)
    }

    /// For its streams of file contents.
    pub fn bulk_client(&self) -> NodeServiceClient<OfficeChannel> {
        NodeServiceClient::new(self.connection.bulk()).max_decoding_message_size(ANSWER_MAX)
    }

    /// For calls about devices of all machines.
    pub fn devices(&self) -> DeviceServiceClient<OfficeChannel> {
        DeviceServiceClient::new(self.connection.control()).max_decoding_message_size(ANSWER_MAX)
    }

    /// For documents, discs and objects.
    pub fn bulk_devices(&self) -> DeviceServiceClient<OfficeChannel> {
        DeviceServiceClient::new(self.connection.bulk()).max_decoding_message_size(ANSWER_MAX)
    }

    /// For what only this machine's person may do with devices.
    pub fn local_devices(&self) -> LocalDeviceServiceClient<OfficeChannel> {
        LocalDeviceServiceClient::new(self.connection.control()).max_decoding_message_size(ANSWER_MAX)
    }
}

/// Where the peer's socket is; where it would be if there is none.
pub fn socket(global: &Global) -> PathBuf {
    match &global.peer {
        Some(path) => path.clone(),
        None => existing().unwrap_or_else(|| candidates().into_iter().next().unwrap_or_else(|| SYSTEM_PEER.into())),
    }
}

/// Whether there is a peer to ask: one that was named, or one that is found.
pub fn is_there(global: &Global) -> bool {
    global.peer.is_some() || existing().is_some()
}

fn candidates() -> Vec<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    let runtime = absolute("XDG_RUNTIME_DIR").map(|dir| dir.join("atrium/peer.sock"));
    runtime.into_iter().chain(state.map(|dir| dir.join("atrium-peer/peer.sock"))).collect()
}

fn existing() -> Option<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let own = candidates().into_iter().find(|p| p.exists());
    own.or_else(|| of_user(Path::new(PEERS_OF_PEOPLE), uid))
        .or_else(|| Some(PathBuf::from(SYSTEM_PEER)).filter(|p| uid == 0 && p.exists()))
}

/// The only socket below the directory that belongs to the user; for root, the only one of all.
fn of_user(directory: &Path, uid: u32) -> Option<PathBuf> {
    let sockets = std::fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path().join("peer.sock"));
    let mut mine = sockets.filter(|s| s.metadata().is_ok_and(|m| uid == 0 || m.uid() == uid));
    let first = mine.next();
    if mine.next().is_some() { None } else { first }
}

/// The peer of this machine, without asking it anything yet.
///
/// # Errors
/// `PEER_NOT_RUNNING` if there is no socket.
pub fn peer(global: &Global) -> Result<Peer> {
    let socket = socket(global);
    if !socket.exists() {
        return Err(Error::new(Reason::PeerNotRunning, format!("no peer answers at {}", socket.display())));
    }
    Ok(Peer { connection: OfficeConnection::unix(&socket, Reason::PeerNotRunning)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_of_the_system_is_found_by_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(of_user(dir.path(), own), None);
        let make = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("peer.sock"), b"").unwrap();
            path.join("peer.sock")
        };
        let anna = make("anna");
        assert_eq!(of_user(dir.path(), own), Some(anna));
        assert_eq!(of_user(dir.path(), 4_000_000_000), None, "somebody else's");
        make("bert");
        assert_eq!(of_user(dir.path(), own), None, "which one is meant?");
    }
}
