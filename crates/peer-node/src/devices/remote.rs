//! Devices of other machines: asking for them, and remembering what was said.
//!
//! Where a device is and whose it is does not come from the answer but from who gave it: the connection says which node
//! that is, and this node's view of the office how it is called. What was said last is kept for machines that are away,
//! and shown as not online.
//!
//! Bounds: [`ASKED_AT_ONCE`] machines at a time, [`PATIENCE`] each; of one machine 64 devices with texts that are cut; lists
//! of [`LISTS_MAX`] machines are remembered, beyond which all are forgotten.

use crate::catalogue::names::{self, Claim};
use crate::catalogue::{Node, PeerChannel, Peers, Roster};
use common::error::{Error, Reason, Result};
use common::model::{DeviceId, EntryName, fold};
use common::status::from_status;
use device::model::Kind;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use proto::peer::v1 as wire;
use proto::peer::v1::device_service_client::DeviceServiceClient;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

use super::address::Target;
use super::book::DEVICES_MAX;
use super::{kind_of, wire_kind};

/// How long a machine may take to list its devices.
const PATIENCE: Duration = Duration::from_secs(3);
/// Machines that are asked at a time.
const ASKED_AT_ONCE: usize = 32;
/// Machines whose lists are remembered.
const LISTS_MAX: usize = 2_000;
/// Leases of a device and places in its queue that are shown.
const LEASES_MAX: usize = 512;
/// Longest text that is shown of another machine's device.
const TEXT_MAX: usize = 512;
/// Largest message of a call between nodes about devices: 1 MiB of data and what is around it.
pub const MESSAGE_MAX: usize = (1 << 20) + (64 << 10);

/// A client of another node's devices.
pub type Client = DeviceServiceClient<PeerChannel>;

/// What others share.
pub struct Remote {
    roster: Arc<dyn Roster>,
    peers: Arc<dyn Peers>,
    kept: Mutex<HashMap<DeviceId, Vec<wire::Device>>>,
}

fn client_over(channel: PeerChannel) -> Client {
    DeviceServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
}

/// Cuts a text that another machine wrote to one line of bounded length.
fn cut(text: &mut String) {
    text.retain(|c| !c.is_control());
    if text.len() > TEXT_MAX {
        let end = (0..=TEXT_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
}

impl Remote {
    /// Nothing is known yet.
    pub fn new(roster: Arc<dyn Roster>, peers: Arc<dyn Peers>) -> Self {
        Self { roster, peers, kept: Mutex::default() }
    }

    /// All members' machines with their claims to names.
    pub fn claims(&self) -> Vec<Claim<Node>> {
        names::claims(self.roster.nodes().into_iter().map(|n| (n.name.clone(), n.device.to_string(), n)))
    }

    /// A client of a node.
    ///
    /// # Errors
    /// PEER_UNREACHABLE and the like.
    pub async fn client(&self, node: DeviceId) -> Result<Client> {
        Ok(client_over(self.peers.channel(node).await?))
    }

    /// A client of a node, for many bytes.
    ///
    /// # Errors
    /// PEER_UNREACHABLE and the like.
    pub async fn bulk_client(&self, node: DeviceId) -> Result<Client> {
        Ok(client_over(self.peers.bulk_channel(node).await?))
    }

    /// Is there a connection to a node now?
    pub fn is_connected(&self, node: &DeviceId) -> bool {
        self.peers.is_connected(node)
    }

    /// Asks one node for its devices.
    ///
    /// # Errors
    /// PEER_UNREACHABLE and the like; what the node answers.
    pub async fn of(&self, claim: &Claim<Node>) -> Result<Vec<wire::Device>> {
        let node = claim.what.device;
        let answer = in_time(async {
            let mut client = self.client(node).await?;
            client.list_devices(wire::ListDevicesRequest {}).await.map_err(|s| from_status(&s))
        })
        .await?;
        let devices: Vec<wire::Device> = answer
            .into_inner()
            .devices
            .into_iter()
            .take(DEVICES_MAX)
            .filter_map(|device| believed(claim, device))
            .collect();
        let mut kept = self.kept.lock();
        if kept.len() >= LISTS_MAX && !kept.contains_key(&node) {
            kept.clear();
        }
        kept.insert(node, devices.clone());
        Ok(devices)
    }

    /// Devices of all other machines whose claims pass, and what went wrong. Machines that are not connected are not
    /// waited for: what they said last is shown.
    pub async fn all(&self, wanted: impl Fn(&Claim<Node>) -> bool) -> (Vec<wire::Device>, Vec<wire::NodeProblem>) {
        let me = self.roster.me();
        let claims: Vec<Claim<Node>> = self.claims().into_iter().filter(|c| c.what.device != me && wanted(c)).collect();
        drop(wanted);
        self.ask_all(claims).await
    }

    async fn ask_all(&self, claims: Vec<Claim<Node>>) -> (Vec<wire::Device>, Vec<wire::NodeProblem>) {
        self.kept.lock().retain(|node, _| self.roster.is_member(node));
        let asked: Vec<BoxFuture<'_, _>> = claims.iter().map(|claim| self.ask(claim).boxed()).collect();
        let mut answers = stream::iter(asked).buffer_unordered(ASKED_AT_ONCE);
        let (mut devices, mut problems) = (Vec::new(), Vec::new());
        while let Some((found, problem)) = answers.next().await {
            devices.extend(found);
            problems.extend(problem);
        }
        (devices, problems)
    }

    async fn ask(&self, claim: &Claim<Node>) -> (Vec<wire::Device>, Option<wire::NodeProblem>) {
        if !self.peers.is_connected(&claim.what.device) {
            return (self.last(&claim.what.device), None);
        }
        match self.of(claim).await {
            Ok(devices) => (devices, None),
            Err(error) => (self.last(&claim.what.device), Some(problem(claim, &error))),
        }
    }

    /// What a machine said last.
    fn last(&self, node: &DeviceId) -> Vec<wire::Device> {
        let mut devices = self.kept.lock().get(node).cloned().unwrap_or_default();
        devices.iter_mut().for_each(|d| d.online = false);
        devices
    }

    /// What is remembered, for short names.
    pub fn remembered(&self) -> Vec<(String, Target)> {
        let kept = self.kept.lock();
        kept.iter()
            .flat_map(|(node, devices)| {
                devices.iter().filter_map(|d| {
                    let kind = kind_of(d.kind)?;
                    let target = Target { node: *node, kind, name: d.name.clone(), below: Vec::new() };
                    Some((d.address.clone(), target))
                })
            })
            .collect()
    }
}

/// The device as this node knows it: names from the claim, texts cut. `None` if it cannot be one.
fn believed(claim: &Claim<Node>, mut device: wire::Device) -> Option<wire::Device> {
    let kind: Kind = kind_of(device.kind)?;
    EntryName::new(device.name.as_str()).ok()?;
    device.kind = wire_kind(kind) as i32;
    device.address = format!("{}/{}/{}", claim.shown(), kind.segment(), device.name);
    device.owner_device_id = claim.what.device.to_string();
    device.person = claim.what.person.clone();
    device.online = true;
    for text in [&mut device.description, &mut device.state, &mut device.state_reason, &mut device.holder] {
        cut(text);
    }
    device.leases.truncate(LEASES_MAX);
    device.leases.iter_mut().flat_map(|l| [&mut l.holder, &mut l.purpose]).for_each(cut);
    match &mut device.detail {
        Some(wire::device::Detail::Printer(p)) => {
            p.formats.truncate(32);
            p.uris.truncate(16);
            p.members.truncate(DEVICES_MAX);
            p.formats.iter_mut().chain(&mut p.uris).chain(&mut p.members).for_each(cut);
            cut(&mut p.location);
        }
        Some(wire::device::Detail::Drive(d)) => {
            cut(&mut d.title);
            cut(&mut d.format);
        }
        _ => {}
    }
    Some(device)
}

/// Waits for an answer of another machine, not for ever.
///
/// # Errors
/// PEER_UNREACHABLE after [`PATIENCE`].
pub async fn in_time<T>(asked: impl Future<Output = Result<T>>) -> Result<T> {
    let late = || Error::new(Reason::PeerUnreachable, "the machine does not answer");
    timeout(PATIENCE, asked).await.map_err(|_| late())?
}

/// An error of a machine, for lists.
fn problem(claim: &Claim<Node>, error: &Error) -> wire::NodeProblem {
    own_problem(&claim.shown(), error)
}

/// An error about something that has a name, for lists.
pub fn own_problem(name: &str, error: &Error) -> wire::NodeProblem {
    wire::NodeProblem {
        reason: error.reason().to_owned(),
        message: format!("{name}: {}", error.message()),
        why: error.why().to_owned(),
        fix: error.fix().to_owned(),
    }
}

/// True if an address is the beginning of another one.
pub fn is_below(address: &str, below: &str) -> bool {
    let (address, below) = (fold(address), fold(below.trim_matches('/')));
    below.is_empty() || address == below || address.strip_prefix(&below).is_some_and(|rest| rest.starts_with('/'))
}
