//! `status`: one look at the agent and the server, and what to do if something is wrong.

use super::{Context, call, identity, peers};
use crate::connect::{self, Agent, Office};
use crate::exit::Exit;
use crate::output::Output;
use crate::output::format::{bytes, count, minute, rfc3339, safe};
use crate::output::schema::{AgentStatus, Problem, ServerInfo, Status, Whoami};
use crate::peer;
use common::error::{Error, Kind, Reason, Result};
use common::model::Role;
use proto::agent::v1 as agent;
use proto::v1;
use std::time::{Duration, Instant};

/// The server must answer within this time; a status command that hangs says nothing.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn status(c: &Context) -> Result<Exit> {
    let mut problems = Vec::new();
    let mut agent_status = None;
    let mut user = String::new();
    let only_peer = c.only_peer();
    let mut peer_status = None;
    if peer::is_there(&c.global) {
        match peers::state::ask(c).await {
            Ok((answer, found)) => {
                problems.extend(found);
                // A peer that nobody has asked for yet is no problem beside a working server.
                problems.extend(peers::state::membership_problem(&answer).filter(|_| only_peer || answer.revoked));
                peer_status = Some(answer);
            }
            Err(error) => problems.push(Problem::of(&error)),
        }
    }
    if !only_peer && connect::wants_agent(&c.global) {
        match ask_agent(c).await {
            Ok(answer) => {
                user = answer.user.clone();
                problems.extend(answer.problems.iter().cloned().map(Problem::from));
                problems.extend(membership_problem(answer.connection).filter(|_| problems.is_empty()));
                agent_status = Some(agent_of(answer));
            }
            Err(error) => problems.push(Problem::of(&error)),
        }
    }
    let mut server = None;
    if !only_peer && problems_allow_asking(&problems) {
        match patiently(ask_server(c)).await {
            Ok((info, who, found)) => {
                server = Some(info);
                problems.extend(found);
                match who {
                    Ok(name) => user = name,
                    Err(error) => add(&mut problems, Problem::of(&error)),
                }
            }
            Err(error) => add(&mut problems, Problem::of(&error)),
        }
    }
    let status =
        Status { healthy: problems.is_empty(), user, agent: agent_status, server, peer: peer_status, problems };
    c.out.object(&status, |s| human(&c.out, s))?;
    Ok(if status.healthy { Exit::Ok } else { Exit::Degraded })
}

/// What a state means, if the agent itself names no problem.
pub(super) fn membership_problem(connection: i32) -> Option<Problem> {
    let error = match connection_word(connection) {
        "not_joined" => Error::new(Reason::NotJoined, "this machine is not a member of an office"),
        "revoked" => Error::new(Reason::DeviceRevoked, "this machine was cut off"),
        "lost" => Error::new(Reason::ServerUnreachable, "the agent has lost the server"),
        _ => return None,
    };
    Some(Problem::of(&error))
}

/// An agent that is away or not a member cannot tell the way to the server.
fn problems_allow_asking(problems: &[Problem]) -> bool {
    let hopeless = [Reason::AgentUnreachable, Reason::NotJoined, Reason::DeviceRevoked];
    !problems.iter().any(|p| hopeless.iter().any(|r| r.word() == p.reason))
}

fn add(problems: &mut Vec<Problem>, problem: Problem) {
    if !problems.iter().any(|p| p.reason == problem.reason) {
        problems.push(problem);
    }
}

async fn patiently<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(Reason::ServerUnreachable, "the server does not answer")
            .why_is(format!("no answer came within {} seconds", PATIENCE.as_secs()))),
    }
}

/// The agent's own view.
pub(super) async fn ask_agent(c: &Context) -> Result<agent::GetStatusResponse> {
    let client: Agent = c.agent().await?;
    patiently(call(client.client().get_status(agent::GetStatusRequest {}))).await
}

type WhoResult = Result<String>;

async fn ask_server(c: &Context) -> Result<(ServerInfo, WhoResult, Vec<Problem>)> {
    let office = c.office().await?;
    let info = server_info(&office).await?;
    let mut problems = Vec::new();
    let asked = identity::ask_whoami(&office).await;
    if let Ok(who) = &asked
        && is_admin(who)
    {
        problems = server_problems(&office).await?;
    }
    let who = match asked {
        Ok(who) => match (who.user, who.local_admin) {
            (Some(user), _) => Ok(user),
            (None, true) => Ok(String::new()),
            (None, false) => Err(Error::new(Reason::NotSignedIn, "nobody is signed in")),
        },
        Err(error) if error.kind() == Kind::Unauthenticated && error.is(Reason::CredentialsMissing) => {
            Err(Error::new(Reason::NotSignedIn, "nobody is signed in"))
        }
        Err(error) => Err(error),
    };
    Ok((info, who, problems))
}

/// Whether the server tells this caller what is wrong with it.
pub(super) fn is_admin(who: &Whoami) -> bool {
    who.local_admin || who.role.as_deref() == Some(Role::Admin.word())
}

/// What the server's upkeep has found, for administrators.
pub(super) async fn server_problems(office: &Office) -> Result<Vec<Problem>> {
    let answer = call(office.admin().get_status(v1::GetStatusRequest {})).await?;
    Ok(answer.problems.into_iter().map(Problem::from).collect())
}

/// What the server tells everybody, and how long it took.
pub(super) async fn server_info(office: &Office) -> Result<ServerInfo> {
    let begin = Instant::now();
    let answer = call(office.admin().get_server_info(v1::GetServerInfoRequest {})).await?;
    Ok(ServerInfo {
        version: answer.version,
        office: answer.office,
        time: rfc3339(answer.time.as_ref()),
        round_trip_ms: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
        features: answer.features,
    })
}

fn agent_of(answer: agent::GetStatusResponse) -> AgentStatus {
    AgentStatus {
        connection: connection_word(answer.connection).to_owned(),
        version: answer.version,
        office: answer.office,
        server: answer.server,
        device_id: answer.device_id,
        certificate_expire_time: rfc3339(answer.certificate_expire_time.as_ref()),
        queued_count: answer.queued_count,
        queued_bytes: answer.queued_bytes,
        cache_bytes: answer.cache_bytes,
        cache_limit_bytes: answer.cache_limit_bytes,
    }
}

/// "connected", "lost" …; "unknown" for those of newer agents.
pub(super) fn connection_word(connection: i32) -> &'static str {
    use agent::get_status_response::Connection;
    match Connection::try_from(connection) {
        Ok(Connection::NotJoined) => "not_joined",
        Ok(Connection::Connecting) => "connecting",
        Ok(Connection::Connected) => "connected",
        Ok(Connection::Lost) => "lost",
        Ok(Connection::Revoked) => "revoked",
        Ok(Connection::Unspecified) | Err(_) => "unknown",
    }
}

fn human(out: &Output, s: &Status) -> String {
    let mut lines = Vec::new();
    for p in &s.problems {
        lines.push(out.paint(&format!("! {}", safe(&p.message)), "31;1"));
        lines.push(format!("  why: {}", safe(&p.why)));
        lines.push(format!("  fix: {}", safe(&p.fix)));
    }
    if s.healthy {
        lines.push(out.paint("all is well", "32;1"));
    }
    match &s.server {
        Some(server) => {
            let (office, version) = (safe(&server.office), safe(&server.version));
            lines.push(format!("server  {office}, version {version}, answers in {} ms", server.round_trip_ms));
        }
        None if s.agent.is_none() && s.peer.is_some() => {}
        None => lines.push("server  not reached".to_owned()),
    }
    lines.extend(s.peer.iter().flat_map(peers::state::lines));
    if !s.user.is_empty() {
        lines.push(format!("user    {}", safe(&s.user)));
    }
    if let Some(agent) = &s.agent {
        let until = minute(agent.certificate_expire_time.as_deref());
        lines.push(format!(
            "agent   version {}, {}, certificate until {until}",
            safe(&agent.version),
            agent.connection.replace('_', " ")
        ));
        lines.push(format!("cache   {} of {}", bytes(agent.cache_bytes), bytes(agent.cache_limit_bytes)));
        if agent.queued_count > 0 {
            let queued = count(agent.queued_count, "upload waits", "uploads wait");
            lines.push(format!("queue   {queued} ({})", bytes(agent.queued_bytes)));
        }
    }
    lines.join("\n")
}
