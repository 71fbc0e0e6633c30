//! `versions`: what a file was.

use super::{Context, call, places, request_id, transfer};
use crate::args::value::RemotePath;
use crate::args::{Get, Versions, VersionsAction};
use crate::exit::Exit;
use crate::output::format::{bytes, hex, minute, rfc3339, safe};
use crate::output::schema::{Done, Version};
use crate::output::usage;
use common::error::Result;
use proto::v1;

pub(super) async fn versions(c: &Context, args: Versions) -> Result<Exit> {
    match args.action {
        Some(VersionsAction::Restore { path, version_number }) => restore(c, &path, version_number).await,
        Some(VersionsAction::Get { path, version_number, destination, overwrite }) => {
            let mut paths = vec![path.to_string()];
            paths.extend(destination.map(|d| d.to_string_lossy().into_owned()));
            let version_number = Some(version_number);
            transfer::get(c, Get { paths, version_number, overwrite, no_cache: true, detach: false }).await
        }
        None => {
            let path = args.path.ok_or_else(|| usage("which file?", "name one, like home:notes/a.txt"))?;
            list(c, &path).await
        }
    }
}

async fn list(c: &Context, path: &RemotePath) -> Result<Exit> {
    let office = c.office().await?;
    let mut list = c.out.list::<Version>(&[("path", path.to_string().into())])?;
    let mut token = String::new();
    loop {
        let request = v1::ListVersionsRequest {
            path: Some(places::wire(&path.path)),
            page_size: places::PAGE,
            page_token: token,
        };
        let page = call(office.files().list_versions(request)).await?;
        for version in page.versions {
            let version = Version {
                version: version.version,
                size_bytes: version.size_bytes,
                modify_time: rfc3339(version.modify_time.as_ref()),
                update_time: rfc3339(version.update_time.as_ref()),
                author: version.author,
                manifest_digest: hex(&version.manifest_digest),
                current: version.current,
            };
            list.item(&version, |v| {
                let mark = if v.current { "  (current)" } else { "" };
                let time = minute(v.update_time.as_deref());
                format!("{:>5}  {time}  {:>11}  {}{mark}", v.version, bytes(v.size_bytes), safe(&v.author))
            })?;
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    list.end("no versions")?;
    c.out.hint(&format!("atrium versions restore {path} --version N"));
    Ok(Exit::Ok)
}

async fn restore(c: &Context, path: &RemotePath, version: u64) -> Result<Exit> {
    let office = c.office().await?;
    let request = v1::RestoreVersionRequest { path: Some(places::wire(&path.path)), version, request_id: request_id() };
    let entry = call(office.files().restore_version(request)).await?;
    let message = format!("{path} has the content of version {version} again, as version {}", entry.version);
    let done = Done::new("versions restore", path, Some(entry.version.to_string()), message);
    c.out.changed(&done, |d| d.message.clone())?;
    Ok(Exit::Ok)
}
