//! What `status` and `doctor` tell of this machine's peer.

use crate::commands::{Context, call};
use crate::output::format::{count, safe};
use crate::output::schema::{PeerStatus, Problem};
use common::error::{Error, Reason, Result};
use proto::peer::v1 as wire;
use std::time::Duration;

/// A peer is on this machine: it answers at once or not at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// Its own view, and what it finds wrong.
pub(in crate::commands) async fn ask(c: &Context) -> Result<(PeerStatus, Vec<Problem>)> {
    let peer = c.peer()?;
    let asked = async { call(peer.client().get_status(wire::GetStatusRequest {})).await };
    let mut answer = match tokio::time::timeout(PATIENCE, asked).await {
        Ok(answer) => answer?,
        Err(_) => {
            return Err(Error::new(Reason::PeerNotRunning, "this machine's peer does not answer")
                .why_is(format!("no answer came within {} seconds", PATIENCE.as_secs()))
                .fix_is("look at its log; restart it"));
        }
    };
    let problems = std::mem::take(&mut answer.problems).into_iter().map(Problem::from).collect();
    let status = PeerStatus::from(answer);
    Ok((status, problems))
}

/// A machine that is in no office, or no longer, is not as it should be.
pub(in crate::commands) fn membership_problem(s: &PeerStatus) -> Option<Problem> {
    let error = match (s.revoked, &s.office) {
        (true, _) => Error::new(Reason::DeviceRevoked, "this machine was cut off from the office"),
        (false, None) => Error::new(Reason::NotJoined, "this machine's peer is a member of no office yet")
            .fix_is("found one with `atrium init NAME`, or join one with `atrium join CODE`"),
        (false, Some(_)) => return None,
    };
    Some(Problem::of(&error))
}

/// The lines of `status`.
pub(in crate::commands) fn lines(s: &PeerStatus) -> Vec<String> {
    let Some(_) = &s.office else {
        return vec![format!("peer    version {}, member of no office", safe(&s.version))];
    };
    let others = s.member_count.saturating_sub(1);
    let mut lines = vec![format!(
        "peer    {}, of {}, version {}; {} of {} there",
        safe(&s.node_name),
        safe(&s.person),
        safe(&s.version),
        s.connected_count,
        count(others, "other member", "other members"),
    )];
    let mut work = Vec::new();
    work.extend((s.share_count > 0).then(|| count(s.share_count, "share", "shares")));
    work.extend((s.transfer_count > 0).then(|| count(s.transfer_count, "transfer", "transfers")));
    work.extend((s.outbox_count > 0).then(|| count(s.outbox_count, "parcel waits", "parcels wait") + " for receivers"));
    work.extend(
        (s.inbox_waiting_count > 0)
            .then(|| count(s.inbox_waiting_count, "parcel waits", "parcels wait") + " for your answer: atrium inbox"),
    );
    if !work.is_empty() {
        lines.push(format!("        {}", work.join(", ")));
    }
    lines.extend(server(s).map(|text| format!("        {text}")));
    lines
}

/// The office's central server, in a line.
pub(in crate::commands) fn server(s: &PeerStatus) -> Option<String> {
    let address = s.server.as_ref()?;
    let mut parts = vec![format!("server of the office: {}", safe(address))];
    parts.extend(s.server_address.as_ref().map(|a| format!("its directories: atrium ls {}", safe(a))));
    if !s.server_joined {
        parts.push("this machine has not joined it yet".to_owned());
    }
    parts.extend(s.server_user.as_ref().map(|u| format!("signed in as {}", safe(u))));
    if s.server_waiting_count > 0 {
        parts.push(count(s.server_waiting_count, "member has yet to join it", "members have yet to join it"));
    }
    Some(parts.join("; "))
}

/// Others that cannot be reached, or in one direction only.
pub(in crate::commands) async fn unreachable(c: &Context) -> Result<(Vec<String>, Vec<(String, Problem)>, u64)> {
    let answer = call(c.peer()?.client().list_peers(wire::ListPeersRequest {})).await?;
    let members = answer.peers.into_iter().filter(|p| !p.stranger);
    let mut reached = 0;
    let mut problems = Vec::new();
    for peer in members {
        let one_way = matches!(peer.reach(), wire::peer::Reach::OutOnly | wire::peer::Reach::InOnly);
        reached +=
            u64::from(peer.reach() == wire::peer::Reach::Both || peer.reach() == wire::peer::Reach::Relayed || one_way);
        if let Some(problem) = peer.problem {
            problems.push((peer.node_name, Problem::from(problem)));
        }
    }
    Ok((answer.discovery, problems, reached))
}
