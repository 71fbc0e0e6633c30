//! `restore`: back from the trash.

use super::{Context, call, places, request_id};
use crate::args::value::{RemotePath, RootArg};
use crate::args::{Restore, RestoreAction};
use crate::connect::Office;
use crate::exit::Exit;
use crate::output::format::{bytes, count, minute, rfc3339, safe};
use crate::output::schema::{Done, TrashItem, kind_word, typed_path};
use crate::output::usage;
use crate::prompt::confirm;
use common::error::{Error, Reason, Result};
use proto::v1;

/// Most items of a trash that are looked through for a path.
const SEARCH_MAX: usize = 100_000;

pub(super) async fn restore(c: &Context, args: Restore) -> Result<Exit> {
    let office = c.office().await?;
    match args.action {
        Some(RestoreAction::List { root }) => list(c, &office, &root).await,
        Some(RestoreAction::Purge { root, id, yes }) => purge(c, &office, &root, id, yes.yes).await,
        None => {
            let path = args.path.ok_or_else(|| usage("what shall come back?", "name what was deleted"))?;
            bring_back(c, &office, &path, args.id, args.to).await
        }
    }
}

async fn page(office: &Office, root: &str, token: String) -> Result<v1::ListTrashResponse> {
    let request = v1::ListTrashRequest { root: root.to_owned(), page_size: places::PAGE, page_token: token };
    call(office.files().list_trash(request)).await
}

fn item(item: &v1::list_trash_response::Item) -> TrashItem {
    let entry = item.entry.clone().unwrap_or_default();
    let path = entry.path.unwrap_or_default();
    TrashItem {
        trash_id: item.trash_id.clone(),
        path: typed_path(&path.root, &path.path),
        r#type: kind_word(entry.kind),
        size_bytes: entry.size_bytes,
        delete_time: rfc3339(item.delete_time.as_ref()),
        deleted_by: item.deleted_by.clone(),
    }
}

async fn list(c: &Context, office: &Office, root: &RootArg) -> Result<Exit> {
    let mut list = c.out.list::<TrashItem>(&[("directory", root.to_string().into())])?;
    let mut token = String::new();
    loop {
        let page = page(office, &root.wire(), token).await?;
        for entry in &page.items {
            list.item(&item(entry), |i| {
                let time = minute(i.delete_time.as_deref());
                format!(
                    "{}  {time}  {:>11}  {}  by {}",
                    i.trash_id,
                    bytes(i.size_bytes),
                    safe(&i.path),
                    safe(&i.deleted_by)
                )
            })?;
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    list.end("the trash is empty")?;
    Ok(Exit::Ok)
}

async fn purge(c: &Context, office: &Office, root: &RootArg, id: Option<String>, yes: bool) -> Result<Exit> {
    let what = match &id {
        Some(id) => format!("{id} in the trash of {root} will be deleted for good"),
        None => format!("everything in the trash of {root} will be deleted for good"),
    };
    confirm(&c.out, yes, &what, &root.to_string()).await?;
    let request = v1::PurgeTrashRequest { root: root.wire(), trash_id: id.unwrap_or_default() };
    let answer = call(office.files().purge_trash(request)).await?;
    let message = format!("deleted {} of the trash of {root} for good", count(answer.item_count, "item", "items"));
    c.out.changed(&Done::new("purge", root, Some(answer.item_count.to_string()), message), |d| d.message.clone())?;
    Ok(Exit::Ok)
}

async fn bring_back(
    c: &Context,
    office: &Office,
    path: &RemotePath,
    id: Option<String>,
    to: Option<RemotePath>,
) -> Result<Exit> {
    let root = path.path.root.to_string();
    let trash_id = match id {
        Some(id) => id,
        None => newest(office, path).await?,
    };
    let request = v1::RestoreTrashRequest {
        root,
        trash_id,
        destination: to.as_ref().map(|t| places::wire(&t.path)),
        request_id: request_id(),
    };
    let entry = call(office.files().restore_trash(request)).await.map_err(|error| {
        if error.is(Reason::EntryExists) {
            error.fix_is(format!("bring it back under another name: `atrium restore {path} --to PATH`"))
        } else {
            error
        }
    })?;
    let now = match (&to, entry.path) {
        (Some(to), _) => to.to_string(),
        (None, Some(at)) if !at.path.is_empty() => typed_path(&path.path.root.to_string(), &at.path),
        (None, _) => path.to_string(),
    };
    let message =
        format!("restored {path}{}", if now == path.to_string() { String::new() } else { format!(" as {now}") });
    c.out.changed(&Done::new("restore", path, Some(now), message), |d| d.message.clone())?;
    Ok(Exit::Ok)
}

/// The newest item of the trash that was at this path.
async fn newest(office: &Office, path: &RemotePath) -> Result<String> {
    let (root, wanted) = (path.path.root.to_string(), path.path.relative());
    let (mut token, mut seen) = (String::new(), 0usize);
    loop {
        let page = page(office, &root, token).await?;
        let at = |i: &v1::list_trash_response::Item| {
            i.entry.as_ref().and_then(|e| e.path.as_ref()).is_some_and(|p| p.path == wanted)
        };
        if let Some(found) = page.items.iter().find(|i| at(i)) {
            return Ok(found.trash_id.clone());
        }
        seen += page.items.len();
        token = page.next_page_token;
        if token.is_empty() || seen > SEARCH_MAX {
            let root = typed_path(&root, "");
            return Err(Error::new(Reason::TrashUnknown, format!("{path} is not in the trash"))
                .why_is("nothing was deleted at this path, or it was deleted together with a directory above it")
                .fix_is(format!("`atrium restore list {root}` shows what is there")));
        }
    }
}
