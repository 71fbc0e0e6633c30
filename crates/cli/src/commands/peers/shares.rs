//! `share` and `unshare` of folders, `shares`, `mirror`.

use super::{absolute, absolute_text};
use crate::args::{Mirror, Share, Unshare};
use crate::commands::{Context, call, devices};
use crate::exit::Exit;
use crate::output::Output;
use crate::output::format::{bytes, count, safe};
use crate::output::schema::{Done, FolderShare};
use crate::output::usage;
use common::error::{Error, Reason, Result};
use common::model::Right;
use common::rpc::OfficeChannel;
use proto::peer::v1 as wire;
use proto::peer::v1::node_service_client::NodeServiceClient;
use proto::v1;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long `share` waits for the first look through the folder.
const LOOKING: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub(in crate::commands) async fn share(c: &Context, folder: &Path, args: Share) -> Result<Exit> {
    if args.device.any() {
        return Err(usage(
            format!("{} is not named like a device", folder.display()),
            "name it printers/NAME, drives/NAME or disks/NAME, or leave the options of devices out",
        ));
    }
    let right = args.right_or(Right::Read);
    let grants = args.with.iter().map(|w| {
        let right = w.right.unwrap_or(right) as i32;
        v1::Grant { principal: Some(w.whom.wire()), right }
    });
    let grants: Vec<v1::Grant> = grants.collect();
    let path = folder_text(folder)?;
    let mut client = c.peer()?.client();
    let known = call(client.list_local_shares(wire::ListLocalSharesRequest {})).await?.shares;
    let known = known.into_iter().find(|s| s.path == path);
    let changes = !grants.is_empty() || !args.revoke.is_empty() || args.two_way.is_some() || !args.ignore.is_empty();
    let ignore_rules = (!args.ignore.is_empty()).then(|| args.ignore.join("\n"));
    let shared = match known {
        Some(share) if !changes && args.name.is_none() => {
            c.out.object(&FolderShare::from(share), |s| full(&c.out, s))?;
            return Ok(Exit::Ok);
        }
        Some(share) => {
            if args.name.as_ref().is_some_and(|n| *n != share.name) {
                return Err(usage(
                    format!("{path} is shared already, as {}", safe(&share.name)),
                    format!("leave --name out, or end it first: atrium unshare {}", safe(&share.name)),
                ));
            }
            let request = wire::UpdateShareRequest {
                share: share.name,
                set_grants: grants,
                remove_principals: args.revoke.iter().map(|w| w.wire()).collect(),
                ignore_rules,
                two_way: args.two_way,
            };
            call(client.update_share(request)).await?
        }
        None if grants.is_empty() => {
            return Err(usage(
                format!("{path} is not shared"),
                format!("say with whom: atrium share {} --with anna, or --with everyone", folder.display()),
            ));
        }
        None => {
            let request = wire::CreateShareRequest {
                path,
                name: args.name.unwrap_or_default(),
                grants,
                two_way: args.two_way.unwrap_or(false),
                ignore_rules: ignore_rules.unwrap_or_default(),
            };
            let made = call(client.create_share(request)).await?;
            looked_through(&mut client, made).await?
        }
    };
    let shared = FolderShare::from(shared);
    c.out.changed(&shared, |s| {
        let files = match s.scanning_count {
            Some(n) => format!("still looking through it, {n} so far"),
            None => format!("{} in {}", bytes(s.total_bytes), count(s.file_count, "file", "files")),
        };
        format!("{} is shared as {}: {}; {files}", safe(&s.path), safe(&s.address), whom(s))
    })?;
    c.out.hint("atrium shares");
    Ok(Exit::Ok)
}

/// Waits until the peer has looked through a new share, so that what is said of it is true and others get all of it; a very
/// large one goes on by itself.
async fn looked_through(
    client: &mut NodeServiceClient<OfficeChannel>,
    made: wire::LocalShare,
) -> Result<wire::LocalShare> {
    let until = Instant::now() + LOOKING;
    let mut share = made;
    while share.scanning_count > 0 && Instant::now() < until {
        tokio::time::sleep(LOOK_AGAIN).await;
        let known = call(client.list_local_shares(wire::ListLocalSharesRequest {})).await?.shares;
        let Some(now) = known.into_iter().find(|s| s.share_id == share.share_id) else { break };
        share = now;
    }
    Ok(share)
}

/// The folder as the peer knows it: with no links in its path, so that the same folder has one name.
fn folder_text(folder: &Path) -> Result<String> {
    let failed = |e: std::io::Error| {
        Error::new(Reason::EntryUnknown, format!("{} cannot be shared", folder.display()))
            .why_is(e.to_string())
            .fix_is("name a directory that is there and that you can read")
    };
    let path = folder.canonicalize().map_err(failed)?;
    if !path.metadata().map_err(failed)?.is_dir() {
        return Err(Error::new(Reason::NotADirectory, format!("{} is not a directory", folder.display()))
            .fix_is("share the directory that it is in, or send it: atrium send FILE WHO"));
    }
    absolute_text(&path)
}

fn whom(s: &FolderShare) -> String {
    let shown: Vec<String> = s.grants.iter().map(|g| format!("{} may {}", safe(&g.who), g.right)).collect();
    if shown.is_empty() { "with nobody".to_owned() } else { shown.join(", ") }
}

fn line(out: &Output, s: &FolderShare) -> String {
    let mut remarks = vec![format!("{} in {}", bytes(s.total_bytes), count(s.file_count, "file", "files"))];
    remarks.extend(s.two_way.then(|| "two-way".to_owned()));
    remarks.extend(s.mirror.then(|| "copy".to_owned()));
    remarks.extend(s.scanning_count.map(|n| format!("looking through it: {n} so far")));
    remarks.extend((s.missing_count > 0).then(|| format!("{} missing", s.missing_count)));
    remarks.extend((s.conflict_count > 0).then(|| count(s.conflict_count, "conflict", "conflicts")));
    remarks.extend((!s.problems.is_empty()).then(|| format!("{} not shared", s.problems.len())));
    let address = out.paint(&safe(&s.address), "34;1");
    format!("{address}\n  {}\n  {}\n  {}", safe(&s.path), remarks.join(", "), whom(s))
}

fn full(out: &Output, s: &FolderShare) -> String {
    let mut text = line(out, s);
    for rule in s.ignore_rules.lines() {
        text.push_str(&format!("\n  ignored: {}", safe(rule)));
    }
    for p in &s.problems {
        text.push_str(&format!(
            "\n  not shared: {}\n    why: {}\n    fix: {}",
            safe(&p.message),
            safe(&p.why),
            safe(&p.fix)
        ));
    }
    text
}

pub(in crate::commands) async fn unshare(c: &Context, args: Unshare) -> Result<Exit> {
    // A name stays a name; what is written as a path, or is there as one, is made absolute.
    let path = Path::new(&args.share);
    let written_as_path = args.share.contains('/') || path.is_dir();
    let by_path = || path.canonicalize().or_else(|_| absolute(path).map_err(std::io::Error::other));
    let mut client = c.peer()?.client();
    if let Some(device) = devices::share::own(c, &args.share).await? {
        return devices::share::unshare(c, &device, args.force, args.now).await;
    }
    if args.now {
        return Err(usage("--now is for disks", "leave it out"));
    }
    let known = call(client.list_local_shares(wire::ListLocalSharesRequest {})).await?.shares;
    let share = match known.iter().find(|s| s.name == args.share) {
        Some(_) => args.share.clone(),
        None if written_as_path => absolute_text(&by_path()?)?,
        None => args.share.clone(),
    };
    call(client.remove_share(wire::RemoveShareRequest { share: share.clone() })).await?;
    let message = format!("{} is shared no longer; its files stay", safe(&share));
    c.out.changed(&Done::new("unshare", share, None, message), |d| d.message.clone())?;
    Ok(Exit::Ok)
}

pub(in crate::commands) async fn shares(c: &Context) -> Result<Exit> {
    let answer = call(c.peer()?.client().list_local_shares(wire::ListLocalSharesRequest {})).await?;
    let own = devices::share::all_own(c).await?;
    // A JSON list has items of one kind, so the devices stand beside it.
    let as_json = serde_json::to_value(&own).map_err(|e| Error::internal("JSON").caused_by(e))?;
    let mut list = c.out.list::<FolderShare>(&[("devices", as_json)])?;
    for share in answer.shares {
        let share = FolderShare::from(share);
        list.item(&share, |s| if c.out.verbose { full(&c.out, s) } else { line(&c.out, s) })?;
    }
    if !c.out.json {
        for device in &own {
            c.out.line(&devices::share::text(&c.out, device))?;
        }
    }
    let nothing = if own.is_empty() { "this machine shares nothing" } else { "no folders" };
    if list.end(nothing)? == 0 && own.is_empty() {
        c.out.hint("atrium share FOLDER --with everyone");
    }
    Ok(Exit::Ok)
}

pub(in crate::commands) async fn mirror(c: &Context, args: Mirror) -> Result<Exit> {
    let path = absolute_text(&args.directory)?;
    let request = wire::MirrorShareRequest { address: args.address.to_string(), path };
    let share = FolderShare::from(call(c.peer()?.client().mirror_share(request)).await?);
    c.out.changed(&share, |s| format!("{} is now a copy of {}", safe(&s.path), safe(&s.address)))?;
    c.out.hint("atrium shares");
    Ok(Exit::Ok)
}
