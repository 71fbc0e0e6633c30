//! Who is there, and joining by what is found in the network.

use super::Parts;
use crate::office::{self, View};
use crate::presence::PeerView;
use common::enrol::Code;
use common::error::{Error, Kind, Reason, Result};
use common::identity::DeviceId;
use proto::peer::v1 as peer;
use std::time::Duration;

/// A machine of this network that has given out a code is found within this time, also if datagrams get lost.
const LOOK: Duration = Duration::from_secs(10);

fn person_of(view: &View, device: &DeviceId) -> String {
    view.member(device).map(|m| m.person.clone()).unwrap_or_default()
}

fn wire_peer(view: &View, seen: &PeerView) -> peer::Peer {
    let name = match seen.stranger {
        true => seen.display_name.clone(),
        false => view.node_name(&seen.device),
    };
    let relay = seen.relayed_by.map(|by| view.node_name(&by)).unwrap_or_default();
    seen.wire(name, person_of(view, &seen.device), relay)
}

impl Parts {
    pub(super) fn list_peers(&self) -> peer::ListPeersResponse {
        let view = self.office.view();
        let members: Vec<DeviceId> = view.present().map(|m| m.device).collect();
        let seen = self.presence.peers(&members);
        let mut peers: Vec<peer::Peer> = seen.iter().map(|p| wire_peer(&view, p)).collect();
        peers.sort_by(|a, b| (a.stranger, &a.node_name, &a.device_id).cmp(&(b.stranger, &b.node_name, &b.device_id)));
        peer::ListPeersResponse { peers, discovery: self.presence.discovery() }
    }

    pub(super) async fn join_office(&self, r: peer::JoinOfficeRequest) -> Result<peer::JoinOfficeResponse> {
        // Slips are told before anybody is asked.
        let code: Code = r.code.parse()?;
        let joined = match r.address.is_empty() {
            true => self.join_found(&code, &r).await?,
            false => self.join_at(&r.address, &r).await?,
        };
        self.presence.announce();
        Ok(peer::JoinOfficeResponse { office: joined.office, node_name: joined.node_name, person: joined.person })
    }

    /// Joins by a machine that says in this network that it has given out the code, or by a seed. Two offices may use
    /// the same number at the same time: whoever does not know the words is passed over, and the next one is asked.
    async fn join_found(&self, code: &Code, r: &peer::JoinOfficeRequest) -> Result<office::Joined> {
        let mut last = None;
        for seed in &self.settings.discovery.seeds {
            match self.join_at(seed, r).await {
                Err(error) if is_elsewhere(&error) => last = Some(error),
                other => return other,
            }
        }
        let found = match self.presence.find_inviters(&code.nameplate(), LOOK).await {
            Ok(found) => found,
            Err(error) => return Err(last.filter(|e| !e.is(Reason::InviteUnknown)).unwrap_or(error)),
        };
        for (device, addresses) in found {
            for address in addresses {
                let Ok((identity, channel)) = self.network.dial_stranger(address).await else { continue };
                if identity.device != device {
                    continue;
                }
                match self.join_over(identity.key, channel, r).await {
                    Err(error) if is_elsewhere(&error) => last = Some(error),
                    other => return other,
                }
                break;
            }
        }
        Err(last.unwrap_or_else(|| {
            Error::new(Reason::PeerUnreachable, "the machine that gave out the code cannot be reached")
                .why_is("it was heard in this network, but connections to it get no answer")
                .fix_is("check its firewall; `atrium peers` tells more")
        }))
    }
}

/// Whether somebody else may know the code.
fn is_elsewhere(error: &Error) -> bool {
    let not_theirs = [Reason::InviteUnknown, Reason::InviteCodeWrong, Reason::OfficeProofWrong];
    error.kind() == Kind::Unavailable || not_theirs.iter().any(|r| error.is(*r))
}
