//! `ls` of hierarchical addresses, and `find`.

use super::warn_of;
use crate::args::place::Address;
use crate::args::{Find, Ls};
use crate::commands::{Context, call, devices};
use crate::exit::Exit;
use crate::output::format::{bytes, count, minute, pad, safe};
use crate::output::schema::Item;
use crate::output::{List, Output};
use crate::peer::Peer;
use common::error::Result;
use common::status::from_status;
use proto::peer::v1 as wire;

/// Page size: one round trip for most directories.
const PAGE: u32 = 1000;

/// How items are shown.
struct View {
    long: bool,
    /// Whole addresses instead of what follows these segments.
    whole: bool,
    /// Segments of the address that is listed.
    depth: usize,
}

/// Lists what is below an address; the office if there is none.
pub(in crate::commands) async fn ls(c: &Context, address: Option<&Address>, args: &Ls) -> Result<Exit> {
    if let Some(address) = address
        && let Some(disc) = devices::files::on_disc(&c.peer()?, address).await?
    {
        return devices::files::ls(c, &c.peer()?, &disc, args).await;
    }
    let address = address.map(Address::as_str).unwrap_or_default();
    let whole = args.recursive || address.contains('*') || address.is_empty();
    let view = View { long: args.long, whole, depth: address.split('/').count() };
    let mut list = c.out.list::<Item>(&[("path", address.into())])?;
    all(c, &c.peer()?, &mut list, address, args.recursive, &view).await?;
    list.end("(empty)")?;
    Ok(Exit::Ok)
}

/// What the office has, as a part of a longer list for people.
pub(in crate::commands) async fn office(c: &Context, long: bool) -> Result<()> {
    let mut list = c.out.list::<Item>(&[])?;
    all(c, &c.peer()?, &mut list, "", false, &View { long, whole: true, depth: 0 }).await
}

async fn all(
    c: &Context,
    peer: &Peer,
    list: &mut List<'_, Item>,
    address: &str,
    recursive: bool,
    view: &View,
) -> Result<()> {
    let mut client = peer.client();
    let mut page_token = String::new();
    let mut problems = Vec::new();
    loop {
        let request = wire::ListRequest { address: address.to_owned(), recursive, page_size: PAGE, page_token };
        let page = call(client.list(request)).await?;
        for item in page.items {
            list.item(&Item::from(item), |i| line(&c.out, i, view))?;
        }
        problems.extend(page.problems);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    warn_of(c, problems);
    Ok(())
}

fn line(out: &Output, i: &Item, view: &View) -> String {
    let name = if view.whole { i.address.as_str() } else { inside(&i.address, view.depth) };
    let is_file = i.r#type == "file";
    let name = if is_file { safe(name) } else { out.paint(&format!("{}/", safe(name)), "34;1") };
    let away = if i.online || i.r#type == "unit" { "" } else { "  [away]" };
    let away = if !i.online && i.holder_count > 0 { "  [owner away]" } else { away };
    let disputed = if i.disputed { "  [claimed by more than one machine]" } else { "" };
    if !view.long {
        return format!("{name}{away}{disputed}");
    }
    let size = if is_file || i.r#type == "share" { bytes(i.size_bytes) } else { "-".to_owned() };
    let holders = if i.holder_count == 0 { "-".to_owned() } else { count(i.holder_count, "holder", "holders") };
    format!(
        "{size:>11}  {:16}  {:6}  {}  {}  {name}{away}{disputed}",
        minute(i.modify_time.as_deref()),
        i.right.as_deref().unwrap_or("-"),
        pad(&holders, 10),
        pad(&safe(&i.person), 10),
    )
}

/// What follows so many segments, or the last one: of a file that is listed itself.
fn inside(address: &str, depth: usize) -> &str {
    let after = address.match_indices('/').nth(depth.saturating_sub(1)).map(|(at, _)| &address[at + 1..]);
    after.unwrap_or_else(|| address.rsplit('/').next().unwrap_or_default())
}

pub(in crate::commands) async fn find(c: &Context, args: Find) -> Result<Exit> {
    let request = wire::FindRequest {
        words: args.words.join(" "),
        below: args.below.map(|b| b.to_string()).unwrap_or_default(),
        limit: args.limit,
    };
    let mut stream = call(c.peer()?.client().find(request)).await?;
    let view = View { long: args.long, whole: true, depth: 0 };
    let mut list = c.out.list::<Item>(&[])?;
    let mut problems = Vec::new();
    while let Some(found) = stream.message().await.map_err(|s| from_status(&s))? {
        for item in found.items {
            list.item(&Item::from(item), |i| line(&c.out, i, &view))?;
        }
        problems.extend(found.problems);
    }
    list.end("nothing found")?;
    warn_of(c, problems);
    Ok(Exit::Ok)
}

/// Names below an address, for completion; what has something below it ends with '/'.
///
/// # Errors
/// Whatever listing ends with.
pub(in crate::commands) async fn names(peer: &Peer, directory: &str, limit: usize) -> Result<Vec<String>> {
    let request = wire::ListRequest {
        address: directory.trim_end_matches('/').to_owned(),
        page_size: u32::try_from(limit).unwrap_or(PAGE).min(PAGE),
        ..Default::default()
    };
    let page = call(peer.client().list(request)).await?;
    let name = |i: wire::Item| {
        let last = i.address.rsplit('/').next().unwrap_or_default().to_owned();
        if i.kind == wire::item::Kind::File as i32 { last } else { format!("{last}/") }
    };
    Ok(page.items.into_iter().map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_listed_is_told_from_where_one_looks() {
        assert_eq!(inside("acme/anna", 1), "anna");
        assert_eq!(inside("acme/server/public/plans", 1), "server/public/plans");
        assert_eq!(inside("acme/server/public/plans", 2), "public/plans");
        assert_eq!(inside("acme/anna/work/a.txt", 4), "a.txt", "the file itself");
    }
}
