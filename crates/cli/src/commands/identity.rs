//! `join`, `login`, `logout`, `whoami`, `password`, `sessions`.

use super::peers::join::{self, Way};
use super::{Context, call};
use crate::args::place::JoinWords;
use crate::args::{Join, Login, Password, Sessions, SessionsAction};
use crate::connect::{self, Office};
use crate::exit::Exit;
use crate::output::format::{minute, rfc3339, safe};
use crate::output::schema::{Done, Session, Whoami, role_word};
use crate::output::usage;
use crate::prompt;
use common::error::Result;
use proto::agent::v1 as agent;
use proto::v1;

pub(super) async fn join(c: &Context, args: Join) -> Result<Exit> {
    let words = JoinWords::of(&args.words).map_err(|e| usage(e, "name an address, a code, or both"))?;
    let server = match join::way(c, &words).await? {
        Way::Peers(address) => {
            let code = join::code(c, &words, &args)?;
            return join::join(c, address, code, args).await;
        }
        Way::Server(server) => server,
    };
    let mut client = c.agent().await?.client();
    let code = join::code(c, &words, &args)?;
    c.out.note("joining; a wrong code burns it, so this is tried once");
    let request =
        agent::JoinRequest { server, code: code.trim().to_owned(), display_name: args.name.unwrap_or_default() };
    let answer = call(client.join(request)).await?;
    let message = format!("this machine is now a member of {}", safe(&answer.office));
    c.out.changed(&Done::new("join", answer.office, Some(answer.device_id), message), |d| d.message.clone())?;
    c.out.hint("atrium login NAME");
    Ok(Exit::Ok)
}

pub(super) async fn login(c: &Context, args: Login) -> Result<Exit> {
    if c.only_peer() {
        return super::peers::office::login(c, args).await;
    }
    if connect::wants_agent(&c.global) {
        let mut client = c.agent().await?.client();
        let password = prompt::secret(&c.out, args.password.password_file.as_deref(), "password", "--password-file")?;
        let request = agent::LoginRequest { user: args.user, password: password.to_string() };
        let answer = call(client.login(request)).await?;
        return signed_in(c, &answer.user, rfc3339(answer.expire_time.as_ref()));
    }
    let target = connect::Target::from_options(&c.global)?;
    let office = connect::open(&target).await?;
    let password = prompt::secret(&c.out, args.password.password_file.as_deref(), "password", "--password-file")?;
    let request = v1::LoginRequest {
        user: args.user,
        password: password.to_string(),
        purpose: format!("atrium {} on {}", env!("CARGO_PKG_VERSION"), connect::host_name()),
        lifetime_seconds: 0,
    };
    let answer = call(office.sessions().login(request)).await?;
    let user = answer.user.map(|u| u.name).unwrap_or_default();
    connect::save_session(&target, &user, &answer.token)?;
    signed_in(c, &user, rfc3339(answer.expire_time.as_ref()))
}

pub(super) fn signed_in(c: &Context, user: &str, until: Option<String>) -> Result<Exit> {
    let shown = until.as_deref().map(|t| format!(" until {}", minute(Some(t)))).unwrap_or_default();
    let message = format!("signed in as {}{shown}", safe(user));
    c.out.changed(&Done::new("login", user, until, message), |d| d.message.clone())?;
    c.out.hint("atrium ls");
    Ok(Exit::Ok)
}

pub(super) async fn logout(c: &Context) -> Result<Exit> {
    if c.only_peer() {
        call(c.peer()?.client().sign_out(proto::peer::v1::SignOutRequest {})).await?;
    } else if connect::wants_agent(&c.global) {
        call(c.agent().await?.client().logout(agent::LogoutRequest {})).await?;
    } else {
        let target = connect::Target::from_options(&c.global)?;
        let office = connect::open(&target).await?;
        let ended = call(office.sessions().logout(v1::LogoutRequest {})).await;
        // The file goes even if the server is away or has forgotten the session.
        connect::remove_session(&target)?;
        match ended {
            Err(error) if error.kind() != common::error::Kind::Unauthenticated => return Err(error),
            _ => {}
        }
    }
    c.out.changed(&Done::new("logout", "session", None, "signed out"), |d| d.message.clone())?;
    Ok(Exit::Ok)
}

pub(super) async fn whoami(c: &Context) -> Result<Exit> {
    let office = c.office().await?;
    let who = ask_whoami(&office).await?;
    c.out.object(&who, |w| {
        let name = match (&w.user, w.local_admin) {
            (Some(user), _) if w.display_name.is_empty() => safe(user),
            (Some(user), _) => format!("{} ({})", safe(user), safe(&w.display_name)),
            (None, true) => "the server machine's own administrator".to_owned(),
            (None, false) => "nobody: not signed in".to_owned(),
        };
        let role = w.role.as_deref().map(|r| format!(", {r}")).unwrap_or_default();
        let groups = if w.groups.is_empty() { String::new() } else { format!(", in {}", safe(&w.groups.join(", "))) };
        format!("{name}{role}{groups} at {}", safe(&w.office))
    })?;
    Ok(Exit::Ok)
}

/// Who the server takes the caller for.
pub(super) async fn ask_whoami(office: &Office) -> Result<Whoami> {
    let answer = call(office.sessions().who_am_i(v1::WhoAmIRequest {})).await?;
    let user = answer.user;
    Ok(Whoami {
        display_name: user.as_ref().map(|u| u.display_name.clone()).unwrap_or_default(),
        role: user.as_ref().map(|u| role_word(u.role)),
        groups: user.as_ref().map(|u| u.groups.clone()).unwrap_or_default(),
        user: user.map(|u| u.name),
        office: answer.office,
        device_id: answer.device_id,
        local_admin: answer.local_admin,
        expire_time: rfc3339(answer.expire_time.as_ref()),
    })
}

pub(super) async fn password(c: &Context, args: Password) -> Result<Exit> {
    let office = c.office().await?;
    let dash = |p: &Option<std::path::PathBuf>| p.as_deref() == Some(std::path::Path::new("-"));
    if dash(&args.old_password_file) && dash(&args.new_password_file) {
        return Err(usage("both passwords cannot come from standard input", "give one of them in a file"));
    }
    let old = prompt::secret(&c.out, args.old_password_file.as_deref(), "present password", "--old-password-file")?;
    let new = prompt::new_password(&c.out, args.new_password_file.as_deref(), "--new-password-file")?;
    let request = v1::ChangePasswordRequest { old_password: old.to_string(), new_password: new.to_string() };
    call(office.sessions().change_password(request)).await?;
    let done = Done::new("password", "account", None, "password changed; your other sessions have ended");
    c.out.changed(&done, |d| d.message.clone())?;
    Ok(Exit::Ok)
}

pub(super) async fn sessions(c: &Context, args: Sessions) -> Result<Exit> {
    let office = c.office().await?;
    if let Some(SessionsAction::Revoke { id }) = args.action {
        call(office.sessions().revoke_session(v1::RevokeSessionRequest { id: id.clone() })).await?;
        let done = Done::new("sessions revoke", &id, None, format!("session {id} has ended"));
        c.out.changed(&done, |d| d.message.clone())?;
        return Ok(Exit::Ok);
    }
    let request = v1::ListSessionsRequest { user: args.user.unwrap_or_default() };
    let answer = call(office.sessions().list_sessions(request)).await?;
    let mut list = c.out.list::<Session>(&[])?;
    for session in answer.sessions {
        let session = Session {
            id: session.id,
            user: session.user,
            purpose: session.purpose,
            create_time: rfc3339(session.create_time.as_ref()),
            expire_time: rfc3339(session.expire_time.as_ref()),
            device_id: session.device_id,
        };
        list.item(&session, |s| {
            let (from, to) = (minute(s.create_time.as_deref()), minute(s.expire_time.as_deref()));
            format!("{}  {}  {from} to {to}  {}", s.id, safe(&s.user), safe(&s.purpose))
        })?;
    }
    list.end("no sessions")?;
    Ok(Exit::Ok)
}
