//! Founding, inviting, joining, members and groups.

use super::Parts;
use crate::office::{self, InviteOptions, MemberPatch};
use crate::settings::DEFAULT_PORT;
use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use common::rpc::ServerAddress;
use proto::peer::v1 as peer;
use std::net::SocketAddr;
use std::time::Duration;

/// Addresses that a host name may lead to, and that are tried.
const TRIED: usize = 8;

pub(super) fn timestamp(ms: u64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: (ms / 1000) as i64, nanos: (ms % 1000 * 1_000_000) as i32 }
}

fn or(text: String, default: impl FnOnce() -> String) -> String {
    if text.is_empty() { default() } else { text }
}

fn wire_member(m: &office::Member) -> peer::Member {
    peer::Member {
        device_id: m.device.to_string(),
        display_name: m.display_name.clone(),
        person: m.person.clone(),
        unit: m.unit.clone(),
        may_invite: m.may_invite,
        may_manage: m.may_manage,
        revoked: m.revoked,
        admitted_by: m.admitted_by.map(|d| d.to_string()).unwrap_or_default(),
        create_time: Some(timestamp(m.create_ms)),
    }
}

impl Parts {
    pub(super) async fn init_office(&self, r: peer::InitOfficeRequest) -> Result<peer::InitOfficeResponse> {
        let display_name = or(r.display_name, || self.settings.machine_name());
        let person = or(r.person, crate::settings::user_name);
        let unit = or(r.unit, || self.settings.node.unit.clone());
        self.office.create(&r.office, &display_name, &person, &unit).await?;
        self.presence.announce();
        let view = self.office.view();
        Ok(peer::InitOfficeResponse {
            office_id: view.office_id().map(|id| id.to_string()).unwrap_or_default(),
            node_name: view.node_name(&view.me()),
        })
    }

    pub(super) async fn create_invite(&self, r: peer::CreateInviteRequest) -> Result<peer::CreateInviteResponse> {
        let options = InviteOptions {
            lifetime: Duration::from_secs(r.lifetime_seconds),
            person: r.person,
            may_invite: r.may_invite,
            may_manage: r.may_manage,
            unit: r.unit,
        };
        let invite = self.office.invite(options).await?;
        // Machines that look for the code find this one at once.
        self.presence.announce();
        Ok(peer::CreateInviteResponse {
            code: invite.code,
            expire_time: Some(timestamp(invite.expires_ms)),
            addresses: self.network.addresses().iter().map(SocketAddr::to_string).collect(),
        })
    }

    /// Joins by an address: the first of those that the name leads to at which a peer answers decides, since a code is
    /// burned by one wrong use.
    pub(super) async fn join_at(&self, address: &str, r: &peer::JoinOfficeRequest) -> Result<office::Joined> {
        let address = ServerAddress::with_default_port(address, DEFAULT_PORT)?;
        let found = tokio::net::lookup_host((address.host(), address.port())).await.map_err(|e| {
            Error::new(Reason::PeerUnreachable, format!("{address} was not found"))
                .why_is(e.to_string())
                .fix_is("check the address; `atrium invite` tells it on the other machine")
        })?;
        let mut last = Error::new(Reason::PeerUnreachable, format!("nobody answers at {address}"));
        for address in found.take(TRIED) {
            match self.network.dial_stranger(address).await {
                Ok((identity, channel)) => return self.join_over(identity.key, channel, r).await,
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Joins by a channel to the node that shows this key.
    pub(super) async fn join_over(
        &self,
        key: [u8; 32],
        channel: crate::net::NodeChannel,
        r: &peer::JoinOfficeRequest,
    ) -> Result<office::Joined> {
        let display_name = or(r.display_name.clone(), || self.settings.machine_name());
        let person = or(r.person.clone(), crate::settings::user_name);
        self.office.join(channel, key, &r.code, &display_name, &person).await
    }

    pub(super) fn list_members(&self) -> Result<peer::ListMembersResponse> {
        let view = self.in_office()?;
        let mut members: Vec<peer::Member> = view.members().map(wire_member).collect();
        members.sort_by(|a, b| (a.revoked, &a.display_name).cmp(&(b.revoked, &b.display_name)));
        Ok(peer::ListMembersResponse { members })
    }

    /// The office as it is now.
    ///
    /// # Errors
    /// NOT_JOINED before there is one.
    pub(super) fn in_office(&self) -> Result<std::sync::Arc<office::View>> {
        let view = self.office.view();
        match view.office_id() {
            Some(_) => Ok(view),
            None => Err(Error::new(Reason::NotJoined, "this machine belongs to no office")
                .fix_is("found one with `atrium init NAME`, or join one with `atrium join CODE`")),
        }
    }

    fn find(&self, member: &str) -> Result<DeviceId> {
        Ok(self.in_office()?.find_member(member)?.device)
    }

    fn member(&self, device: &DeviceId) -> Result<peer::Member> {
        let view = self.office.view();
        view.member(device).map(wire_member).ok_or_else(|| Error::internal("a member has gone"))
    }

    pub(super) async fn change_member(&self, r: peer::ChangeMemberRequest) -> Result<peer::Member> {
        let device = self.find(&r.member)?;
        let patch = MemberPatch {
            may_invite: r.may_invite,
            may_manage: r.may_manage,
            person: r.person,
            unit: r.unit,
            display_name: r.display_name,
        };
        self.office.change_member(device, patch).await?;
        self.member(&device)
    }

    pub(super) async fn revoke_member(&self, r: peer::RevokeMemberRequest) -> Result<peer::Member> {
        let device = self.find(&r.member)?;
        self.office.revoke(device, &r.reason).await?;
        self.member(&device)
    }

    pub(super) fn list_groups(&self) -> Result<peer::ListGroupsResponse> {
        let view = self.in_office()?;
        let group =
            |(name, persons): (&String, &Vec<String>)| peer::Group { name: name.clone(), persons: persons.clone() };
        Ok(peer::ListGroupsResponse { groups: view.groups().iter().map(group).collect() })
    }

    pub(super) async fn set_group(&self, r: peer::SetGroupRequest) -> Result<peer::Group> {
        self.in_office()?;
        self.office.set_group(&r.name, r.add_persons, r.remove_persons, r.remove).await?;
        let view = self.office.view();
        let key = common::model::fold(&r.name);
        let found = view.groups().iter().find(|(name, _)| common::model::fold(name) == key);
        Ok(match found {
            Some((name, persons)) => peer::Group { name: name.clone(), persons: persons.clone() },
            None => peer::Group { name: r.name, persons: Vec::new() },
        })
    }
}
