//! `init`, `invite`, `office attach`.

use crate::args::place::Address;
use crate::args::value::RemotePath;
use crate::args::{Init, Invite, Login, Office, OfficeAction};
use crate::commands::{Context, call};
use crate::connect::{self, Target};
use crate::exit::Exit;
use crate::output::format::{count, minute, rfc3339, safe};
use crate::output::schema::{Done, OfficeInvite};
use crate::output::usage;
use crate::prompt;
use common::error::Result;
use common::rpc::ServerAddress;
use proto::peer::v1 as wire;

pub(in crate::commands) async fn init(c: &Context, args: Init) -> Result<Exit> {
    let request = wire::InitOfficeRequest {
        office: args.office.clone(),
        display_name: args.name.unwrap_or_default(),
        person: args.person.unwrap_or_default(),
        unit: args.unit.unwrap_or_default(),
    };
    let answer = call(c.peer()?.client().init_office(request)).await?;
    let message = format!("founded {}; this machine is {}", safe(&args.office), safe(&answer.node_name));
    c.out.changed(&Done::new("init", args.office, Some(answer.node_name), message), |d| d.message.clone())?;
    c.out.hint("atrium invite");
    Ok(Exit::Ok)
}

pub(in crate::commands) async fn invite(c: &Context, args: Invite) -> Result<Exit> {
    let request = wire::CreateInviteRequest {
        lifetime_seconds: args.lifetime.as_secs(),
        person: args.person.unwrap_or_default(),
        may_invite: args.may_invite,
        may_manage: args.may_manage,
        unit: args.unit.unwrap_or_default(),
    };
    let answer = call(c.peer()?.client().create_invite(request)).await?;
    let invite = OfficeInvite {
        code: answer.code,
        expire_time: rfc3339(answer.expire_time.as_ref()),
        addresses: answer.addresses,
    };
    c.out.object(&invite, |i| i.code.clone())?;
    let until = minute(invite.expire_time.as_deref());
    c.out.note(&format!("on the other machine, until {until}: atrium join {}", invite.code));
    if let Some(address) = invite.addresses.first() {
        c.out.note(&format!("if it is not in this network: atrium join {} {}", safe(address), invite.code));
    }
    Ok(Exit::Ok)
}

pub(in crate::commands) async fn office(c: &Context, args: Office) -> Result<Exit> {
    let OfficeAction::Attach { address } = args.action;
    let server = address.parse::<ServerAddress>()?.to_string();
    let (ca_pem, admin_token) = credentials(c, &server).await?;
    let request = wire::AttachServerRequest { server: server.clone(), admin_token, ca_pem };
    let answer = call(c.peer()?.client().attach_server(request)).await?;
    let waiting = match answer.waiting_count {
        0 => String::new(),
        n => format!("; {} when they are there", count(n.into(), "more joins it", "more join it")),
    };
    let joined = count(answer.joined_count.into(), "machine has", "machines have");
    let message = format!("the office has {} as its server: {joined} joined it{waiting}", safe(&server));
    c.out.changed(&Done::new("office attach", server, Some(answer.office), message), |d| d.message.clone())?;
    Ok(Exit::Ok)
}

/// Signs in at the office's server by the peer.
pub(in crate::commands) async fn login(c: &Context, args: Login) -> Result<Exit> {
    let peer = c.peer()?;
    let password = prompt::secret(&c.out, args.password.password_file.as_deref(), "password", "--password-file")?;
    let request = wire::SignInRequest { user: args.user, password: password.to_string() };
    let answer = call(peer.client().sign_in(request)).await?;
    crate::commands::identity::signed_in(c, &answer.user, rfc3339(answer.expire_time.as_ref()))
}

/// The place on the server that an address of the office stands for.
///
/// # Errors
/// `USAGE` if it is none, or if nothing here leads to the server but the peer.
pub(in crate::commands) async fn on_server(c: &Context, address: &Address) -> Result<RemotePath> {
    let status = call(c.peer()?.client().get_status(wire::GetStatusRequest {})).await?;
    let Some(place) = place_of(address.as_str(), &status.server_address) else {
        let shares = "who may do what with a share is told on its own machine: atrium shares --json";
        return Err(usage(format!("{address} is not on the central server"), shares));
    };
    if c.only_peer() {
        let fix = format!("sign in for this command: atrium login NAME --server {} --ca FILE", status.server);
        return Err(usage("the rules are the server's, and only the peer here leads to it", fix));
    }
    place.parse().map_err(|e: String| usage(e, "name a directory or file on the server"))
}

/// "acme/server/public/plans/x" is "public:plans/x".
fn place_of(address: &str, server: &str) -> Option<String> {
    let (above, inside) = address.split_at_checked(server.len())?;
    if server.is_empty() || common::model::fold(above) != common::model::fold(server) {
        return None;
    }
    let (root, path) = match inside.strip_prefix('/')?.split_once('/') {
        Some(("public", path)) => ("public", path),
        Some(("home", path)) => ("home", path),
        None if inside == "/home" => ("home", ""),
        _ => return None,
    };
    Some(format!("{root}:{path}"))
}

/// Certificate and session of an administrator of that server: as given, from `login --server`, or the agent's.
async fn credentials(c: &Context, server: &str) -> Result<(String, String)> {
    let mut global = c.global.clone();
    global.server = Some(server.to_owned());
    let given = Target::from_options(&global);
    let missing =
        || usage(format!("you are not signed in at {server}"), "atrium login NAME --server HOST:PORT --ca FILE");
    if let Ok(Target::Remote { ca_pem, token: Some(token), .. }) = given {
        return Ok((ca_pem, token));
    }
    if connect::agent_socket(&c.global).exists() {
        let request = proto::agent::v1::GetConnectionRequest {};
        let answer = call(c.agent().await?.client().get_connection(request)).await?;
        if answer.server == server && !answer.token.is_empty() {
            return Ok((answer.ca_pem, answer.token));
        }
    }
    Err(given.err().unwrap_or_else(missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_below_the_server_is_a_place_on_it() {
        let of = |address| place_of(address, "acme/server");
        assert_eq!(of("acme/server/public/plans/a/b.pdf").as_deref(), Some("public:plans/a/b.pdf"));
        assert_eq!(of("Acme/Server/home").as_deref(), Some("home:"));
        assert_eq!(of("acme/server/home/x").as_deref(), Some("home:x"));
        for none in ["acme/server", "acme/server/public", "acme/anna/public/x", "acme/servers/home/x", "x"] {
            assert_eq!(of(none), None, "{none}");
        }
        assert_eq!(place_of("acme/server/home/x", ""), None);
    }
}
