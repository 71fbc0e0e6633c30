//! `ls`.

use super::{Context, call, peers, places};
use crate::args::place::AnyPlace;
use crate::args::{Ls, value::Place};
use crate::connect::Office;
use crate::exit::Exit;
use crate::output::format::{bytes, limit, minute, pad, safe};
use crate::output::schema::{Directory, Entry};
use crate::output::{List, Output};
use common::error::{Reason, Result};
use common::model::EntryPath;
use proto::v1;

pub(super) async fn ls(c: &Context, args: Ls) -> Result<Exit> {
    let place = match &args.place {
        Some(AnyPlace::Peers(address)) => return peers::browse::ls(c, Some(address), &args).await,
        None if c.only_peer() => return peers::browse::ls(c, None, &args).await,
        Some(AnyPlace::Server(place)) => Some(place.clone()),
        None => None,
    };
    let office = c.office().await?;
    let view = View { long: args.long, recursive: args.recursive };
    let path = match place {
        None => {
            let exit = directories(c, &office, false).await?;
            // A JSON list has items of one kind; what machines share is listed by `ls OFFICE`.
            if !c.out.json && crate::peer::is_there(&c.global) {
                peers::browse::office(c, args.long).await?;
            }
            return Ok(exit);
        }
        Some(Place::AllPublic) => return directories(c, &office, true).await,
        Some(Place::Entry(path)) => path,
    };
    let mut list = c.out.list::<Entry>(&[("path", path.to_string().into())])?;
    match directory(c, &office, &mut list, &path, &view).await {
        Err(error) if error.is(Reason::NotADirectory) => {
            let entry = places::entry(&office, &path).await?;
            let view = View { long: true, recursive: false };
            list.item(&Entry::of(&entry, &path), |e| line(&c.out, e, &view))?;
        }
        other => other?,
    }
    list.end("(empty)")?;
    Ok(Exit::Ok)
}

/// How entries are shown.
struct View {
    long: bool,
    recursive: bool,
}

async fn directory(
    c: &Context,
    office: &Office,
    list: &mut List<'_, Entry>,
    top: &EntryPath,
    view: &View,
) -> Result<()> {
    // Depth first, so that what belongs together stands together; each level remembers where its page ended.
    let mut open: Vec<EntryPath> = vec![top.clone()];
    while let Some(path) = open.pop() {
        let mut token = String::new();
        let mut below = Vec::new();
        loop {
            let page = places::page(office, &path, token).await?;
            for entry in &page.entries {
                let at = places::child(&path, entry)?;
                list.item(&Entry::of(entry, &at), |e| line(&c.out, e, view))?;
                if view.recursive && places::is_directory(entry) {
                    below.push(at);
                }
            }
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        below.reverse();
        open.append(&mut below);
    }
    Ok(())
}

fn line(out: &Output, entry: &Entry, view: &View) -> String {
    let directory = entry.r#type == "directory";
    let shown = if view.recursive { safe(&entry.path) } else { safe(&entry.name) };
    let shown = if directory { out.paint(&format!("{shown}/"), "34;1") } else { shown };
    if !view.long {
        return shown;
    }
    let size = if directory { "-".to_owned() } else { bytes(entry.size_bytes) };
    let version = if directory { "-".to_owned() } else { format!("v{}", entry.version) };
    let time = minute(entry.modify_time.as_deref().or(entry.update_time.as_deref()));
    let lock = entry.lock.as_ref().map(|l| format!("  [checked out by {}]", safe(&l.user))).unwrap_or_default();
    let author = safe(&entry.author);
    format!("{size:>11}  {time:17}  {version:>5}  {}  {shown}{lock}", pad(&author, 10))
}

/// All private and public directories that the caller may see.
pub(super) async fn directories(c: &Context, office: &Office, public_only: bool) -> Result<Exit> {
    let mut list = c.out.list::<Directory>(&[])?;
    let mut token = String::new();
    loop {
        let request = v1::ListDirectoriesRequest { page_size: places::PAGE, page_token: token };
        let page = call(office.directories().list_directories(request)).await?;
        for directory in &page.directories {
            let mut shown = Directory::from(directory);
            if !shown.name.starts_with("public/") {
                if public_only {
                    continue;
                }
                // The only private directory in the list is the caller's own.
                shown.path = "home:".to_owned();
            }
            list.item(&shown, |d| root_line(&c.out, d))?;
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    list.end("(none)")?;
    Ok(Exit::Ok)
}

fn root_line(out: &Output, d: &Directory) -> String {
    let right = d.my_right.as_deref().unwrap_or("none");
    let quota = if d.quota_bytes == 0 { String::new() } else { format!(" of {}", limit(d.quota_bytes)) };
    let name = out.paint(&pad(&safe(&d.path), 24), "34;1");
    format!("{name}  {right:7} {:>11}{quota}", bytes(d.used_bytes))
}
