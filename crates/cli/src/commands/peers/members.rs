//! `peers` and `members`.

use crate::args::{MemberSet, Members, MembersAction, PeerGroupsAction};
use crate::commands::{Context, call};
use crate::exit::Exit;
use crate::output::Output;
use crate::output::format::{duration, minute, pad, safe};
use crate::output::schema::{Done, Member, Peer, PeerGroup};
use crate::prompt;
use common::error::Result;
use proto::peer::v1 as wire;
use std::time::Duration;

/// Beginning of a device id that people are shown.
const ID_SHOWN: usize = 12;

pub(in crate::commands) async fn peers(c: &Context) -> Result<Exit> {
    let answer = call(c.peer()?.client().list_peers(wire::ListPeersRequest {})).await?;
    let mut list = c.out.list::<Peer>(&[("discovery", answer.discovery.clone().into())])?;
    for peer in answer.peers {
        list.item(&Peer::from(peer), |p| line(&c.out, p))?;
    }
    let number = list.end("nobody else is there")?;
    for line in &answer.discovery {
        c.out.note(&safe(line));
    }
    if number == 0 {
        c.out.hint("atrium invite");
    }
    Ok(Exit::Ok)
}

fn line(out: &Output, p: &Peer) -> String {
    let (word, colour) = match p.reach.as_str() {
        "both" => ("there", "32"),
        "out_only" => ("one way", "33"),
        "in_only" => ("one way", "33"),
        "relayed" => ("relayed", "33"),
        "none" => ("away", "31"),
        other => (other, "0"),
    };
    let name = if p.node_name.is_empty() { short(&p.device_id) } else { safe(&p.node_name) };
    let name = if p.stranger { format!("{name} (no member)") } else { name };
    let how = match (&p.round_trip_us, p.reach.as_str()) {
        (_, "none") => format!("last seen {}", minute(p.last_seen_time.as_deref())),
        (Some(us), _) => micros(*us),
        (None, _) => String::new(),
    };
    let by = p.relayed_by.as_deref().map(|by| format!(" by {}", safe(by))).unwrap_or_default();
    let mut text = format!(
        "{}  {}  {}  {}  {how}{by}",
        pad(&name, 32),
        out.paint(&pad(word, 7), colour),
        pad(&safe(&p.person), 10),
        pad(&safe(&p.address), 21),
    );
    if let Some(problem) = &p.problem {
        text.push_str(&format!(
            "\n    {}\n    why: {}\n    fix: {}",
            safe(&problem.message),
            safe(&problem.why),
            safe(&problem.fix)
        ));
    }
    text
}

fn short(id: &str) -> String {
    safe(id.get(..ID_SHOWN).unwrap_or(id))
}

pub(in crate::commands) async fn members(c: &Context, args: Members) -> Result<Exit> {
    match args.action {
        None | Some(MembersAction::List) => list(c).await,
        Some(MembersAction::Set(change)) => set(c, change).await,
        Some(MembersAction::Revoke { member, reason, yes }) => {
            let what = format!("{} is cut off from the office", safe(&member));
            prompt::confirm(&c.out, yes.yes, &what, &member).await?;
            let request = wire::RevokeMemberRequest { member, reason };
            let revoked = Member::from(call(c.peer()?.client().revoke_member(request)).await?);
            c.out.changed(&revoked, |m| format!("{} of {} is cut off", safe(&m.display_name), safe(&m.person)))?;
            Ok(Exit::Ok)
        }
        Some(MembersAction::Groups { action }) => groups(c, action.unwrap_or(PeerGroupsAction::List)).await,
    }
}

async fn list(c: &Context) -> Result<Exit> {
    let answer = call(c.peer()?.client().list_members(wire::ListMembersRequest {})).await?;
    let mut list = c.out.list::<Member>(&[])?;
    for member in answer.members {
        list.item(&Member::from(member), member_line)?;
    }
    list.end("no members")?;
    Ok(Exit::Ok)
}

fn member_line(m: &Member) -> String {
    let mut rights: Vec<&str> = Vec::new();
    rights.extend(m.revoked.then_some("revoked"));
    rights.extend((m.may_invite && !m.revoked).then_some("invites"));
    rights.extend((m.may_manage && !m.revoked).then_some("manages"));
    let unit = if m.unit.is_empty() { "-".to_owned() } else { safe(&m.unit) };
    format!(
        "{}  {}  {}  {}  since {}  {}",
        pad(&safe(&m.display_name), 16),
        pad(&safe(&m.person), 10),
        pad(&unit, 12),
        short(&m.device_id),
        minute(m.create_time.as_deref()),
        rights.join(", ")
    )
}

async fn set(c: &Context, change: MemberSet) -> Result<Exit> {
    let request = wire::ChangeMemberRequest {
        member: change.member,
        may_invite: change.may_invite,
        may_manage: change.may_manage,
        person: change.person,
        unit: change.unit,
        display_name: change.name,
    };
    let changed = Member::from(call(c.peer()?.client().change_member(request)).await?);
    c.out.changed(&changed, |m| format!("changed: {}", member_line(m).trim_end()))?;
    Ok(Exit::Ok)
}

async fn groups(c: &Context, action: PeerGroupsAction) -> Result<Exit> {
    let mut client = c.peer()?.client();
    match action {
        PeerGroupsAction::List => {
            let answer = call(client.list_groups(wire::ListGroupsRequest {})).await?;
            let mut list = c.out.list::<PeerGroup>(&[])?;
            for group in answer.groups {
                list.item(&PeerGroup::from(group), group_line)?;
            }
            list.end("no groups")?;
        }
        PeerGroupsAction::Set { name, add, remove } => {
            let request = wire::SetGroupRequest { name, add_persons: add, remove_persons: remove, remove: false };
            let group = PeerGroup::from(call(client.set_group(request)).await?);
            c.out.changed(&group, group_line)?;
        }
        PeerGroupsAction::Delete { name, yes } => {
            let what = format!("the group {} goes, and with it all rights that it has", safe(&name));
            prompt::confirm(&c.out, yes.yes, &what, &name).await?;
            let request = wire::SetGroupRequest { name: name.clone(), remove: true, ..Default::default() };
            call(client.set_group(request)).await?;
            let done = Done::new("members groups delete", &name, None, format!("group {} is gone", safe(&name)));
            c.out.changed(&done, |d| d.message.clone())?;
        }
    }
    Ok(Exit::Ok)
}

fn group_line(g: &PeerGroup) -> String {
    let people = if g.persons.is_empty() { "nobody".to_owned() } else { safe(&g.persons.join(", ")) };
    format!("{}  {people}", pad(&safe(&g.name), 16))
}

/// Microseconds for people.
fn micros(us: u64) -> String {
    if us < 1_000_000 { format!("{}.{} ms", us / 1000, us % 1000 / 100) } else { duration(Duration::from_micros(us)) }
}
