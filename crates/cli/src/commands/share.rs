//! `share` and `why`: rights on public directories.

use super::{Context, call, devices, peers};
use crate::args::place::{AnyPath, ShareTarget};
use crate::args::value::RootArg;
use crate::args::{Share, Why};
use crate::connect::Office;
use crate::exit::Exit;
use crate::output::format::safe;
use crate::output::schema::{self, Directory, Done, right_word};
use crate::output::usage;
use common::error::{Error, Reason, Result};
use common::model::{Right, RootName};
use proto::v1;

pub(super) async fn share(c: &Context, args: Share) -> Result<Exit> {
    let directory = match &args.target {
        ShareTarget::Server(directory) => directory.clone(),
        ShareTarget::Folder(folder) => {
            let folder = folder.clone();
            return match devices::share::meant(c, &folder, &args).await? {
                Some((device, known)) => devices::share::share(c, &device, known, args).await,
                None => peers::shares::share(c, &folder, args).await,
            };
        }
    };
    if args.device.any() {
        return Err(usage(
            "options of devices do not fit a public directory",
            "name a device: printers/NAME, drives/NAME, disks/NAME",
        ));
    }
    if args.name.is_some() || args.two_way.is_some() || !args.ignore.is_empty() {
        return Err(usage(
            "--name, --two-way and --ignore are for folders of this machine",
            "leave them out, or name a folder instead of a public directory",
        ));
    }
    if !matches!(directory.0, RootName::Public(_)) {
        return Err(usage(
            format!("{} cannot be shared: a private directory is its owner's alone", directory),
            "put what others shall have into a public directory, for example `atrium cp home:plans public:plans/`",
        ));
    }
    let office = c.office().await?;
    if args.with.is_empty() && args.revoke.is_empty() {
        return show(c, &office, &directory).await;
    }
    for whom in &args.revoke {
        let request = v1::RevokeRightRequest { name: directory.wire(), principal: Some(whom.wire()) };
        call(office.directories().revoke_right(request)).await.map_err(|e| with_hint(e, &directory))?;
        let message = format!("{whom} no longer has a right of their own on {}", directory);
        let done = Done::new("revoke", &directory, Some(whom.to_string()), message);
        c.out.changed(&done, |d| d.message.clone())?;
    }
    for with in &args.with {
        let whom = &with.whom;
        let right = with.right.unwrap_or_else(|| args.right_or(Right::Read));
        let grant = v1::Grant { principal: Some(whom.wire()), right: right as i32 };
        let request = v1::GrantRightRequest { name: directory.wire(), grant: Some(grant) };
        call(office.directories().grant_right(request)).await.map_err(|e| with_hint(e, &directory))?;
        let message = format!("{whom} may now {} {}", right.word(), directory);
        let done = Done::new("share", &directory, Some(whom.to_string()), message);
        c.out.changed(&done, |d| d.message.clone())?;
    }
    Ok(Exit::Ok)
}

fn with_hint(error: Error, directory: &RootArg) -> Error {
    if error.is(Reason::DirectoryUnknown) {
        error.fix_is(format!("an administrator makes it with `atrium admin directories add {directory}`"))
    } else {
        error
    }
}

async fn show(c: &Context, office: &Office, directory: &RootArg) -> Result<Exit> {
    let request = v1::GetDirectoryRequest { name: directory.wire() };
    let answer = call(office.directories().get_directory(request)).await.map_err(|e| with_hint(e, directory))?;
    c.out.object(&Directory::from(&answer), |d| {
        if d.grants.is_empty() {
            return format!("nobody but administrators may use {}", d.path);
        }
        let lines: Vec<String> = d.grants.iter().map(|g| format!("{:7} {}", g.right, safe(&g.who))).collect();
        lines.join("\n")
    })?;
    Ok(Exit::Ok)
}

pub(super) async fn why(c: &Context, args: Why) -> Result<Exit> {
    let path = match &args.path {
        AnyPath::Server(path) => path.clone(),
        AnyPath::Peers(address) => peers::office::on_server(c, address).await?,
    };
    let office = c.office().await?;
    let root = RootArg(path.path.root);
    let request = v1::ExplainRightRequest { name: root.wire(), user: args.user.clone().unwrap_or_default() };
    let answer = call(office.directories().explain_right(request)).await?;
    let why = schema::Why {
        directory: root.to_string(),
        user: args.user,
        right: right_word(answer.right),
        rule: answer.rule,
        considered: answer.considered,
    };
    c.out.object(&why, |w| {
        let who = w.user.as_deref().unwrap_or("you");
        let may = match &w.right {
            Some(right) => format!("may {right}"),
            None => "may do nothing with".to_owned(),
        };
        let mut text = format!("{who} {may} {}: {}", w.directory, safe(&w.rule));
        for rule in w.considered.iter().skip(1) {
            text.push_str(&format!("\n  also: {}", safe(rule)));
        }
        text
    })?;
    Ok(Exit::Ok)
}
