//! From a peer's messages to the objects of the JSON contract.

use crate::args::value::Whom;
use crate::output::format::rfc3339;
use crate::output::schema::{
    AcceptRules, Delivery, FolderShare, Grant, InboxItem, Item, Limits, Member, OutboxItem, Peer, PeerGroup,
    PeerStatus, PeerTransfer, Problem, TransferSource, right_word,
};
use proto::peer::v1 as wire;

pub(in crate::commands) fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// The word of an enum's value: its name in the contract without the prefix, in lower case; "unknown" for none and for
/// those of newer peers.
pub(in crate::commands) fn word(name: Option<&'static str>, prefix: &str) -> String {
    match name.and_then(|n| n.strip_prefix(prefix)) {
        None | Some("UNSPECIFIED") => "unknown".to_owned(),
        Some(word) => word.to_lowercase(),
    }
}

impl From<wire::GetStatusResponse> for PeerStatus {
    fn from(s: wire::GetStatusResponse) -> Self {
        Self {
            version: s.version,
            device_id: s.device_id,
            office: filled(s.office),
            node_name: s.node_name,
            person: s.person,
            addresses: s.addresses,
            member_count: s.member_count.into(),
            connected_count: s.connected_count.into(),
            share_count: s.share_count.into(),
            transfer_count: s.transfer_count.into(),
            outbox_count: s.outbox_count.into(),
            inbox_waiting_count: s.inbox_waiting_count.into(),
            server: filled(s.server),
            server_address: filled(s.server_address),
            server_joined: s.server_joined,
            server_user: filled(s.server_user),
            server_waiting_count: s.server_waiting_count.into(),
            revoked: s.revoked,
        }
    }
}

impl From<wire::Peer> for Peer {
    fn from(p: wire::Peer) -> Self {
        Self {
            reach: word(wire::peer::Reach::try_from(p.reach).ok().map(|r| r.as_str_name()), "REACH_"),
            device_id: p.device_id,
            node_name: p.node_name,
            person: p.person,
            address: p.address,
            found_by: p.found_by,
            round_trip_us: (p.round_trip_us != 0).then_some(p.round_trip_us),
            last_seen_time: rfc3339(p.last_seen_time.as_ref()),
            problem: p.problem.map(Problem::from),
            version: p.version,
            relayed_by: filled(p.relayed_by),
            stranger: p.stranger,
        }
    }
}

impl From<wire::Member> for Member {
    fn from(m: wire::Member) -> Self {
        Self {
            create_time: rfc3339(m.create_time.as_ref()),
            device_id: m.device_id,
            display_name: m.display_name,
            person: m.person,
            unit: m.unit,
            may_invite: m.may_invite,
            may_manage: m.may_manage,
            revoked: m.revoked,
            admitted_by: m.admitted_by,
        }
    }
}

impl From<wire::Group> for PeerGroup {
    fn from(g: wire::Group) -> Self {
        Self { name: g.name, persons: g.persons }
    }
}

impl From<wire::LocalShare> for FolderShare {
    fn from(s: wire::LocalShare) -> Self {
        let grants = s.grants.iter().map(|g| Grant {
            who: Whom::text_of(g.principal.as_ref()),
            right: right_word(g.right).unwrap_or_else(|| "unknown".into()),
        });
        Self {
            grants: grants.collect(),
            share_id: s.share_id,
            name: s.name,
            address: s.address,
            path: s.path,
            two_way: s.two_way,
            mirror: s.mirror,
            file_count: s.file_count,
            total_bytes: s.total_bytes,
            scanning_count: (s.scanning_count != 0).then_some(s.scanning_count),
            conflict_count: s.conflict_count.into(),
            missing_count: s.missing_count,
            problems: s.problems.into_iter().map(Problem::from).collect(),
            ignore_rules: s.ignore_rules,
        }
    }
}

impl From<wire::Item> for Item {
    fn from(i: wire::Item) -> Self {
        Self {
            r#type: word(wire::item::Kind::try_from(i.kind).ok().map(|k| k.as_str_name()), "KIND_"),
            address: i.address,
            size_bytes: i.size_bytes,
            modify_time: rfc3339(i.modify_time.as_ref()),
            right: right_word(i.right),
            holder_count: i.holder_count.into(),
            online: i.online,
            disputed: i.disputed,
            person: i.person,
            manifest_digest: i.manifest_digest,
        }
    }
}

impl From<wire::TransferProgress> for PeerTransfer {
    fn from(t: wire::TransferProgress) -> Self {
        use wire::transfer_progress::State;
        let left = t.total_bytes.saturating_sub(t.done_bytes);
        let moving = t.rate > 0 && t.state == State::Running as i32;
        let sources = t.sources.into_iter().map(|s| TransferSource {
            node_name: s.node_name,
            received_bytes: s.received_bytes,
            bytes_per_second: s.rate,
            bad_chunk_count: s.bad_chunk_count.into(),
            way: s.way,
        });
        Self {
            id: t.transfer_id,
            state: word(State::try_from(t.state).ok().map(|s| s.as_str_name()), "STATE_"),
            title: t.title,
            destination: t.destination,
            file_count: t.file_count,
            done_file_count: t.done_file_count,
            total_bytes: t.total_bytes,
            done_bytes: t.done_bytes,
            local_bytes: t.local_bytes,
            bytes_per_second: t.rate,
            seconds_left: moving.then(|| left.div_ceil(t.rate)),
            served_bytes: t.served_bytes,
            sources: sources.collect(),
            limit: t.limit,
            floor_ratio: (t.floor_ratio.is_finite() && t.floor_ratio > 0.0).then_some(t.floor_ratio),
            elapsed_ms: t.elapsed_ms,
            problem: t.problem.map(Problem::from),
        }
    }
}

impl From<wire::Limits> for Limits {
    fn from(l: wire::Limits) -> Self {
        Self { upload_rate: l.upload_rate, download_rate: l.download_rate, schedule: l.schedule, yields: l.yields }
    }
}

impl From<wire::Delivery> for Delivery {
    fn from(d: wire::Delivery) -> Self {
        use wire::delivery::State;
        Self {
            state: word(State::try_from(d.state).ok().map(|s| s.as_str_name()), "STATE_"),
            receipt_time: rfc3339(d.receipt_time.as_ref()),
            node_name: d.node_name,
            person: d.person,
            message: d.message,
            kept_by: d.kept_by,
        }
    }
}

impl From<wire::OutboxItem> for OutboxItem {
    fn from(i: wire::OutboxItem) -> Self {
        Self {
            create_time: rfc3339(i.create_time.as_ref()),
            parcel_id: i.parcel_id,
            title: i.title,
            total_bytes: i.total_bytes,
            deliveries: i.deliveries.into_iter().map(Delivery::from).collect(),
        }
    }
}

impl From<wire::InboxItem> for InboxItem {
    fn from(i: wire::InboxItem) -> Self {
        use wire::inbox_item::State;
        Self {
            state: word(State::try_from(i.state).ok().map(|s| s.as_str_name()), "STATE_"),
            create_time: rfc3339(i.create_time.as_ref()),
            parcel_id: i.parcel_id,
            node_name: i.node_name,
            person: i.person,
            title: i.title,
            note: i.note,
            file_count: i.file_count,
            total_bytes: i.total_bytes,
            done_bytes: i.done_bytes,
            path: i.path,
        }
    }
}

impl From<wire::AcceptRules> for AcceptRules {
    fn from(r: wire::AcceptRules) -> Self {
        Self {
            accept_persons: r.accept_persons,
            accept_all: r.accept_all,
            ask_above_bytes: r.ask_above_bytes,
            refuse_persons: r.refuse_persons,
            directory: r.directory,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_newer_peers_have_a_word_too() {
        let transfer = |state| PeerTransfer::from(wire::TransferProgress { state, ..Default::default() });
        assert_eq!(transfer(2).state, "running");
        assert_eq!(transfer(99).state, "unknown");
        assert_eq!(transfer(0).state, "unknown");
        assert_eq!(Peer::from(wire::Peer { reach: 2, ..Default::default() }).reach, "out_only");
        assert_eq!(Item::from(wire::Item { kind: 6, ..Default::default() }).r#type, "server_directory");
    }

    #[test]
    fn the_time_left_is_told_only_while_bytes_move() {
        let mut t =
            wire::TransferProgress { state: 2, total_bytes: 100, done_bytes: 10, rate: 40, ..Default::default() };
        assert_eq!(PeerTransfer::from(t.clone()).seconds_left, Some(3));
        t.rate = 0;
        assert_eq!(PeerTransfer::from(t.clone()).seconds_left, None);
        (t.rate, t.state) = (40, 3);
        assert_eq!(PeerTransfer::from(t.clone()).seconds_left, None);
        t.floor_ratio = f64::NAN;
        assert_eq!(PeerTransfer::from(t).floor_ratio, None);
    }
}
