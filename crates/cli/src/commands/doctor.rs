//! `doctor`: tests the way to the server step by step; the first step that fails is the one to look at.

use super::{Context, call, identity, peers, places, status};
use crate::args::Doctor as Args;
use crate::connect::{self, Office};
use crate::exit::Exit;
use crate::output::format::{bytes, duration, safe};
use crate::output::schema::{Check, Doctor, Problem};
use crate::output::{Output, envelope};
use common::clock::{Clock, SystemClock};
use common::error::{Error, Kind, Reason, Result};
use common::model::{EntryName, EntryPath};
use common::rpc::ServerAddress;
use proto::agent::v1 as agent;
use proto::v1;
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

/// Each step may take this long.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clocks that differ by more disturb certificates, locks and sessions.
const CLOCK_WARN_MS: u64 = 30_000;
/// From here on certificates may already seem invalid.
const CLOCK_FAIL_MS: u64 = 300_000;
/// Certificates live a week, and the agent renews them long before this.
const CERTIFICATE_WARN_MS: u64 = 86_400_000;
/// Less free space than this is too little for work.
const DISK_WARN: u64 = 1 << 30;
/// With less, transfers fail.
const DISK_FAIL: u64 = 64 << 20;

pub(super) async fn doctor(c: &Context, args: Args) -> Result<Exit> {
    let mut checks = Checks { out: c.out.clone(), done: Vec::new() };
    run(c, &args, &mut checks).await?;
    let doctor = Doctor { healthy: checks.done.iter().all(|k| k.result != "fail"), checks: checks.done };
    if c.out.json {
        c.out.json(&doctor)?;
    } else {
        let verdict =
            if doctor.healthy { c.out.paint("all steps work", "32;1") } else { c.out.paint("something fails", "31;1") };
        c.out.line(&verdict)?;
    }
    if let Some(file) = &args.bundle {
        write_bundle(c, file, &doctor).await?;
    }
    Ok(if doctor.healthy { Exit::Ok } else { Exit::Degraded })
}

struct Checks {
    out: Output,
    done: Vec<Check>,
}

impl Checks {
    fn add(&mut self, name: &str, result: &str, message: String, help: Option<(String, String)>) -> Result<()> {
        let (why, fix) = help.unzip();
        let check = Check { name: name.to_owned(), result: result.to_owned(), message, why, fix };
        if !self.out.json {
            self.out.line(&line(&self.out, &check))?;
        }
        self.done.push(check);
        Ok(())
    }

    fn ok(&mut self, name: &str, message: impl Into<String>) -> Result<()> {
        self.add(name, "ok", message.into(), None)
    }

    fn warn(&mut self, name: &str, message: impl Into<String>, why: &str, fix: &str) -> Result<()> {
        self.add(name, "warn", message.into(), Some((why.to_owned(), fix.to_owned())))
    }

    fn fail(&mut self, name: &str, error: &Error) -> Result<()> {
        self.add(name, "fail", error.message().to_owned(), Some((error.why().to_owned(), error.fix().to_owned())))
    }
}

fn line(out: &Output, check: &Check) -> String {
    let mark = match check.result.as_str() {
        "ok" => out.paint("ok  ", "32"),
        "warn" => out.paint("warn", "33;1"),
        "fail" => out.paint("FAIL", "31;1"),
        other => crate::output::format::pad(other, 4),
    };
    let mut text = format!("{mark}  {}  {}", crate::output::format::pad(&check.name, 11), safe(&check.message));
    if let (Some(why), Some(fix)) = (&check.why, &check.fix) {
        text.push_str(&format!("\n      why: {}\n      fix: {}", safe(why), safe(fix)));
    }
    text
}

async fn patiently<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(Reason::DeadlineExceeded, "no answer")
            .why_is(format!("nothing came within {}", duration(PATIENCE)))
            .fix_is("check the network and whether the other machine is overloaded, then try again")),
    }
}

/// Makes the tests in the order in which they depend on one another; stops where the next one cannot succeed.
async fn run(c: &Context, args: &Args, checks: &mut Checks) -> Result<()> {
    disk(checks)?;
    if crate::peer::is_there(&c.global) {
        peer(c, checks).await?;
    }
    if c.only_peer() {
        return Ok(());
    }
    if connect::wants_agent(&c.global) && !agent(c, checks).await? {
        return Ok(());
    }
    let office = match patiently(c.office()).await {
        Ok(office) => office,
        Err(error) => return checks.fail("connection", &error),
    };
    if !network(&office, checks).await? || !tls(&office, checks).await? {
        return Ok(());
    }
    clock(&office, checks).await?;
    let signed_in = login(&office, checks).await?;
    if args.deep && signed_in {
        match patiently(deep(&office)).await {
            Ok(took) => {
                checks.ok("transfer", format!("wrote, read and removed a small directory in {}", duration(took)))?
            }
            Err(error) => checks.fail("transfer", &error)?,
        }
    }
    Ok(())
}

fn disk(checks: &mut Checks) -> Result<()> {
    let here = std::env::current_dir()?;
    let stat = match rustix::fs::statvfs(&here) {
        Ok(stat) => stat,
        Err(error) => {
            let error = Error::new(Reason::IoFailed, "the free space cannot be told").why_is(error.to_string());
            return checks.fail("disk", &error);
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let message = format!("{} free here", bytes(free));
    match free {
        0..DISK_FAIL => {
            let error =
                Error::new(Reason::DiskFull, message).why_is("this disk is nearly full").fix_is("delete something");
            checks.fail("disk", &error)
        }
        DISK_FAIL..DISK_WARN => checks.warn("disk", message, "this disk is getting full", "free some space soon"),
        _ => checks.ok("disk", message),
    }
}

/// This machine's peer, its office, and the way to the other members.
async fn peer(c: &Context, checks: &mut Checks) -> Result<()> {
    let (answer, problems) = match peers::state::ask(c).await {
        Ok(answer) => answer,
        Err(error) => return checks.fail("peer", &error),
    };
    let socket = crate::peer::socket(&c.global);
    checks.ok("peer", format!("version {} answers at {}", answer.version, socket.display()))?;
    for problem in problems {
        checks.warn("peer", problem.message, &problem.why, &problem.fix)?;
    }
    if let Some(problem) = peers::state::membership_problem(&answer) {
        return checks.warn("office", problem.message, &problem.why, &problem.fix);
    }
    checks.ok("office", format!("{}, {} members", answer.node_name, answer.member_count))?;
    match (peers::state::server(&answer), answer.server_joined) {
        (Some(text), true) => checks.ok("server", text)?,
        (Some(text), false) => checks.warn(
            "server",
            text,
            "the machine where the server was attached invites the others when it is connected with them",
            "leave both machines on; `atrium peers` tells whether they reach each other",
        )?,
        (None, _) => {}
    }
    let (discovery, unreachable, reached) = match patiently(peers::state::unreachable(c)).await {
        Ok(found) => found,
        Err(error) => return checks.fail("peers", &error),
    };
    checks.ok("discovery", if discovery.is_empty() { "off".to_owned() } else { discovery.join("; ") })?;
    checks.ok("peers", format!("{reached} reached"))?;
    for (name, problem) in unreachable {
        checks.warn("peers", format!("{name}: {}", problem.message), &problem.why, &problem.fix)?;
    }
    Ok(())
}

/// Whether it makes sense to go on.
async fn agent(c: &Context, checks: &mut Checks) -> Result<bool> {
    let answer = match status::ask_agent(c).await {
        Ok(answer) => answer,
        Err(error) => {
            checks.fail("agent", &error)?;
            return Ok(false);
        }
    };
    checks
        .ok("agent", format!("version {} answers at {}", answer.version, connect::agent_socket(&c.global).display()))?;
    let word = status::connection_word(answer.connection);
    match word {
        "not_joined" => {
            checks.fail(
                "joined",
                &Error::new(Reason::NotJoined, "this machine is a member of no office")
                    .why_is("nobody has joined it yet"),
            )?;
            return Ok(false);
        }
        "revoked" => {
            checks.fail("joined", &Error::new(Reason::DeviceRevoked, "the office has cut this machine off"))?;
            return Ok(false);
        }
        _ => checks.ok("joined", format!("member of {} ({})", answer.office, word.replace('_', " ")))?,
    }
    for problem in answer.problems.iter().cloned().map(Problem::from) {
        checks.warn("agent", problem.message, &problem.why, &problem.fix)?;
    }
    certificate(&answer, checks)?;
    Ok(true)
}

fn certificate(answer: &agent::GetStatusResponse, checks: &mut Checks) -> Result<()> {
    let Some(expires) = &answer.certificate_expire_time else { return Ok(()) };
    let expires_ms = u64::try_from(expires.seconds).unwrap_or(0).saturating_mul(1000);
    let left = expires_ms.saturating_sub(SystemClock.now_ms());
    let message = format!("this machine's certificate is valid for another {}", duration(Duration::from_millis(left)));
    match left {
        0 => {
            let error = Error::new(Reason::TlsFailed, "this machine's certificate has expired")
                .why_is("the agent could not renew it, or this machine's clock is wrong")
                .fix_is("check the clock; if it is right, join again with a new code");
            checks.fail("certificate", &error)
        }
        1..CERTIFICATE_WARN_MS => checks.warn(
            "certificate",
            message,
            "the agent should have renewed it already; it could not reach the server",
            "keep this machine connected for a few minutes",
        ),
        _ => checks.ok("certificate", message),
    }
}

/// Name look-up and TCP, without any of our protocols.
async fn network(office: &Office, checks: &mut Checks) -> Result<bool> {
    if office.server.starts_with("unix:") {
        checks.ok("network", format!("the server's own socket, {}", office.server))?;
        return Ok(true);
    }
    let address: ServerAddress = office.server.parse()?;
    let begin = Instant::now();
    let reached = patiently(async {
        let found: Vec<_> = match tokio::net::lookup_host((address.host().as_str(), address.port())).await {
            Ok(found) => found.take(8).collect(),
            Err(error) => {
                return Err(Error::new(
                    Reason::ServerUnreachable,
                    format!("no machine called {} is known", address.host()),
                )
                .why_is(error.to_string())
                .fix_is("check the name and this machine's DNS settings"));
            }
        };
        let mut last = None;
        for socket in found {
            match tokio::net::TcpStream::connect(socket).await {
                Ok(_) => return Ok(socket),
                Err(error) => last = Some(error),
            }
        }
        Err(Error::new(Reason::ServerUnreachable, format!("{address} cannot be reached"))
            .why_is(last.map_or_else(|| "its name has no address".to_owned(), |e| e.to_string()))
            .fix_is("check that the server runs, and that no firewall is in between"))
    })
    .await;
    match reached {
        Ok(socket) => {
            checks.ok(
                "network",
                format!("{address} is reached at {} in {} ms", socket.ip(), begin.elapsed().as_millis()),
            )?;
            Ok(true)
        }
        Err(error) => {
            checks.fail("network", &error)?;
            Ok(false)
        }
    }
}

async fn tls(office: &Office, checks: &mut Checks) -> Result<bool> {
    match patiently(office.connection.check()).await {
        Ok(()) => {
            checks.ok("tls", "the server is one of this office")?;
            Ok(true)
        }
        Err(error) => {
            checks.fail("tls", &error)?;
            Ok(false)
        }
    }
}

async fn clock(office: &Office, checks: &mut Checks) -> Result<()> {
    let begin = Instant::now();
    let answer = match patiently(call(office.admin().get_server_info(v1::GetServerInfoRequest {}))).await {
        Ok(answer) => answer,
        Err(error) => return checks.fail("clock", &error),
    };
    let Some(time) = answer.time else { return Ok(()) };
    let half_way = u64::try_from(begin.elapsed().as_millis() / 2).unwrap_or(0);
    let theirs = u64::try_from(time.seconds).unwrap_or(0) * 1000 + u64::try_from(time.nanos).unwrap_or(0) / 1_000_000;
    let ours = SystemClock.now_ms().saturating_sub(half_way);
    let apart = ours.abs_diff(theirs);
    let message = format!("this clock and the server's are {} apart", duration(Duration::from_millis(apart)));
    let why = "one of the two clocks is wrong";
    let fix = "let both machines set their clocks by the network, for example `timedatectl set-ntp true`";
    match apart {
        0..CLOCK_WARN_MS => checks.ok("clock", message),
        CLOCK_WARN_MS..CLOCK_FAIL_MS => checks.warn("clock", message, why, fix),
        _ => checks.fail("clock", &Error::new(Reason::TlsFailed, message).why_is(why).fix_is(fix)),
    }
}

async fn login(office: &Office, checks: &mut Checks) -> Result<bool> {
    let who = match patiently(identity::ask_whoami(office)).await {
        Ok(who) => who,
        Err(error) if error.kind() == Kind::Unauthenticated => {
            checks.fail("login", &error)?;
            return Ok(false);
        }
        Err(error) => {
            checks.fail("login", &error)?;
            return Ok(false);
        }
    };
    let admin = status::is_admin(&who);
    match (who.user, who.local_admin) {
        (Some(user), _) => {
            checks.ok("login", format!("signed in as {user}"))?;
            if admin {
                server(office, checks).await?;
            }
            Ok(true)
        }
        (None, true) => {
            checks.ok("login", "the server machine's own administrator")?;
            server(office, checks).await?;
            Ok(false)
        }
        (None, false) => {
            checks.fail("login", &Error::new(Reason::NotSignedIn, "nobody is signed in"))?;
            Ok(false)
        }
    }
}

/// What the server's upkeep has found, for those whom it tells.
async fn server(office: &Office, checks: &mut Checks) -> Result<()> {
    match patiently(status::server_problems(office)).await {
        Ok(problems) if problems.is_empty() => checks.ok("server", "finds nothing wrong with itself"),
        Ok(problems) => problems
            .into_iter()
            .try_for_each(|p| checks.add("server", "fail", safe(&p.message), Some((safe(&p.why), safe(&p.fix))))),
        Err(error) => checks.fail("server", &error),
    }
}

/// Writes a small directory with a file in it, reads it back, and removes it for good.
async fn deep(office: &Office) -> Result<Duration> {
    let begin = Instant::now();
    let name = EntryName::new(format!(".atrium-doctor-{}", uuid::Uuid::now_v7()))?;
    let directory = EntryPath::parse("home:")?.child(name);
    let request = v1::MakeDirectoryRequest {
        path: Some(places::wire(&directory)),
        parents: false,
        request_id: super::request_id(),
    };
    call(office.files().make_directory(request)).await?;
    let tested = super::transfer::write_and_read_back(office, &directory).await;
    // Whatever the test showed, nothing of it stays.
    let request = v1::DeleteEntryRequest {
        path: Some(places::wire(&directory)),
        recursive: true,
        etag: String::new(),
        request_id: super::request_id(),
    };
    let removed = call(office.files().delete_entry(request)).await?;
    call(office.files().purge_trash(v1::PurgeTrashRequest { root: "home".into(), trash_id: removed.trash_id })).await?;
    tested.map(|()| begin.elapsed())
}

/// A report that can be given away: what was found, with people, machines and addresses replaced.
async fn write_bundle(c: &Context, file: &Path, doctor: &Doctor) -> Result<()> {
    let mut words = vec![connect::host_name()];
    words.extend(["USER", "LOGNAME", "HOME"].iter().filter_map(|v| std::env::var(v).ok()));
    if connect::wants_agent(&c.global)
        && let Ok(answer) = status::ask_agent(c).await
    {
        words.extend([answer.office, answer.server.clone(), answer.device_id, answer.user]);
        words.extend(answer.server.parse::<ServerAddress>().map(|a| a.host()));
    }
    if let Some(server) = &c.global.server {
        words.push(server.clone());
        words.extend(server.parse::<ServerAddress>().map(|a| a.host()));
    }
    let system = rustix::system::uname();
    let report = serde_json::json!({
        "schema": crate::output::SCHEMA,
        "kind": "bundle",
        "version": env!("CARGO_PKG_VERSION"),
        "system": format!("{} {} {}", system.sysname().to_string_lossy(), system.release().to_string_lossy(), system.machine().to_string_lossy()),
        "doctor": envelope(doctor),
    });
    let text = serde_json::to_string_pretty(&report).map_err(|e| Error::internal("JSON").caused_by(e))?;
    std::fs::write(file, redact(&text, &words) + "\n").map_err(|e| {
        Error::new(Reason::IoFailed, format!("{} cannot be written", file.display()))
            .why_is(e.to_string())
            .fix_is("name a file in a directory of your own")
            .caused_by(e)
    })?;
    c.out.note(&format!("wrote {}; have a look before you give it away", file.display()));
    Ok(())
}

/// Replaces the given words, IP addresses, and what looks like an id or a token.
fn redact(text: &str, words: &[String]) -> String {
    let mut text = text.to_owned();
    let mut words: Vec<&String> = words.iter().filter(|w| w.chars().count() >= 3).collect();
    words.sort_by_key(|w| std::cmp::Reverse(w.len()));
    for word in words {
        text = text.replace(word.as_str(), "[redacted]");
    }
    let mut out = String::with_capacity(text.len());
    let mut token = String::new();
    for c in text.chars().chain(std::iter::once('\n')) {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '_') {
            token.push(c);
            continue;
        }
        out.push_str(if is_private(&token) { "[redacted]" } else { &token });
        token.clear();
        out.push(c);
    }
    out.pop();
    out
}

fn is_private(token: &str) -> bool {
    let bare = token.trim_matches(['.', ':', '-']);
    bare.parse::<std::net::IpAddr>().is_ok()
        || bare.parse::<std::net::SocketAddr>().is_ok()
        || (bare.len() >= 32 && bare.chars().filter(char::is_ascii_digit).count() >= 4)
        || ["user:", "device:", "unix:"].iter().any(|p| bare.starts_with(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_name_nobody() {
        let words = ["anna".to_owned(), "files.acme.example".to_owned(), "pc".to_owned()];
        let text = "signed in as anna; files.acme.example:7443 is reached at 192.0.2.10 in 3 ms, or 192.0.2.10:7443, \
                    2001:db8::1; device 3f9a2b7c3f9a2b7c3f9a2b7c3f9a2b7c3f9a2b7c3f9a2b7c3f9a2b7c3f9a2b7c; version 0.1.0; pc";
        let safe = redact(text, &words);
        for gone in ["anna", "acme", "192.0.2.10", "2001:db8", "3f9a2b7c"] {
            assert!(!safe.contains(gone), "{gone} in {safe}");
        }
        for kept in ["version 0.1.0", "in 3 ms", "signed in as", "pc"] {
            assert!(safe.contains(kept), "{kept} not in {safe}");
        }
    }
}
