//! `space`: borrowing, listing, renewing, giving back.

use super::{Context, call, mirror, objects, uuid_text, wish_id};
use crate::args::{Space as Args, SpaceAction};
use crate::commands::peers::warn_of;
use crate::exit::Exit;
use crate::output::format::{bytes, count, minute, pad, safe};
use crate::output::schema::{Done, Space};
use crate::output::usage;
use crate::peer::Peer;
use crate::prompt;
use common::error::{Error, Reason, Result};
use proto::peer::v1 as wire;
use std::time::Duration;

/// Shortest beginning of an id.
const ID_MIN: usize = 4;
/// Longest label.
const LABEL_MAX: usize = 255;

pub(in crate::commands) async fn space(c: &Context, args: Args) -> Result<Exit> {
    match args.action {
        SpaceAction::Borrow { disk, size, lifetime, label } => borrow(c, disk.as_str(), size, lifetime, label).await,
        SpaceAction::List { lent } => list(c, lent).await,
        SpaceAction::Put { space, file, name } => objects::put(c, &space, &file, name).await,
        SpaceAction::Get { space, name, file, overwrite } => objects::get(c, &space, &name, file, overwrite).await,
        SpaceAction::Ls { space } => objects::ls(c, &space).await,
        SpaceAction::Rm { space, names } => objects::rm(c, &space, &names).await,
        SpaceAction::Renew { space, lifetime } => renew(c, &space, lifetime).await,
        SpaceAction::Return { space, yes } => give_back(c, &space, yes.yes).await,
        SpaceAction::Mirror { share, disk, size, retention, next } => {
            let next = next.map(|n| n.to_string());
            mirror::mirror(c, share, disk.to_string(), mirror::Wish { size, retention, next }).await
        }
        SpaceAction::Mirrors => mirror::list(c).await,
        SpaceAction::Restore { share, directory, generation, recovery_key_file, disk } => {
            mirror::restore(c, share, &directory, generation, recovery_key_file.zip(disk)).await
        }
    }
}

async fn borrow(c: &Context, disk: &str, size: u64, lifetime: Duration, label: String) -> Result<Exit> {
    if size == 0 {
        return Err(usage("how much space?", "write a size like 20GiB"));
    }
    if label.len() > LABEL_MAX {
        return Err(usage("the label is too long", format!("write at most {LABEL_MAX} bytes")));
    }
    let request = wire::BorrowSpaceRequest {
        device: disk.to_owned(),
        kind: wire::SpaceKind::Scratch as i32,
        size_bytes: size,
        seconds: lifetime.as_secs(),
        label,
        retention_seconds: 0,
        request_id: wish_id(),
    };
    let space = Space::from(call(c.peer()?.devices().borrow_space(request)).await?);
    c.out.changed(&space, |s| {
        format!(
            "{} on {} is yours until {}: {}",
            bytes(s.size_bytes),
            safe(&s.disk),
            minute(s.expire_time.as_deref()),
            s.id
        )
    })?;
    let name = if space.label.is_empty() { &space.id } else { &space.label };
    c.out.hint(&format!("atrium space put {} FILE", safe(name)));
    Ok(Exit::Ok)
}

async fn borrowed(peer: &Peer, lent: bool) -> Result<wire::ListBorrowedResponse> {
    call(peer.local_devices().list_borrowed(wire::ListBorrowedRequest { lent })).await
}

async fn list(c: &Context, lent: bool) -> Result<Exit> {
    let answer = borrowed(&c.peer()?, lent).await?;
    let mut list = c.out.list::<Space>(&[])?;
    for space in answer.spaces {
        list.item(&Space::from(space), |s| line(s, lent))?;
    }
    let nothing = if lent { "this machine has lent no space" } else { "this machine has borrowed no space" };
    list.end(nothing)?;
    warn_of(c, answer.problems);
    Ok(Exit::Ok)
}

fn line(s: &Space, lent: bool) -> String {
    let used = format!("{} of {}", bytes(s.used_bytes), bytes(s.size_bytes));
    let until = match (&s.expire_time, s.r#type.as_str()) {
        (Some(time), _) => format!("until {}", minute(Some(time))),
        (None, "mirror") => "mirror".to_owned(),
        (None, _) => "-".to_owned(),
    };
    let mut text = format!(
        "{}  {}  {}  {}  {}",
        s.id,
        pad(&used, 22),
        pad(&until, 22),
        pad(&count(s.object_count, "file", "files"), 9),
        safe(&s.disk)
    );
    if !s.label.is_empty() {
        text.push_str(&format!("  {}", safe(&s.label)));
    }
    if lent {
        text.push_str(&format!("  {}", safe(&s.person)));
    }
    if let Some(time) = &s.proven_time {
        text.push_str(&format!("  proven {}", minute(Some(time))));
    }
    text.push_str(if s.nearly_full { "  [nearly full]" } else { "" });
    text.push_str(if s.leaving { "  [its owner wants it back]" } else { "" });
    text
}

/// The space that a label, an id or its beginning means.
///
/// # Errors
/// `SPACE_UNKNOWN`; `USAGE` if it may be several.
pub(super) async fn resolve(peer: &Peer, text: &str) -> Result<wire::Space> {
    one(borrowed(peer, false).await?.spaces, text)
}

fn one(spaces: Vec<wire::Space>, text: &str) -> Result<wire::Space> {
    let by_label = |s: &wire::Space| s.label == text;
    let by_id = |s: &wire::Space| text.len() >= ID_MIN && uuid_text(&s.space_id).starts_with(&text.to_lowercase());
    let labelled = spaces.iter().any(by_label);
    let mut fitting = spaces.into_iter().filter(|s| if labelled { by_label(s) } else { by_id(s) });
    let unknown = || {
        Error::new(Reason::SpaceUnknown, format!("this machine has borrowed no space {}", safe(text)))
            .fix_is("`atrium space list` shows all")
    };
    let first = fitting.next().ok_or_else(unknown)?;
    match fitting.next() {
        None => Ok(first),
        Some(_) => Err(usage(
            format!("{} may be more than one space", safe(text)),
            "write more of its id; `atrium space list` shows all",
        )),
    }
}

async fn renew(c: &Context, space: &str, lifetime: Duration) -> Result<Exit> {
    let peer = c.peer()?;
    let space = resolve(&peer, space).await?;
    let request = wire::RenewSpaceRequest { space_id: space.space_id, seconds: lifetime.as_secs(), device: space.disk };
    let space = Space::from(call(peer.devices().renew_space(request)).await?);
    c.out.changed(&space, |s| format!("{} is yours until {}", s.id, minute(s.expire_time.as_deref())))?;
    Ok(Exit::Ok)
}

async fn give_back(c: &Context, text: &str, yes: bool) -> Result<Exit> {
    let peer = c.peer()?;
    let space = resolve(&peer, text).await?;
    let shown = Space::from(space.clone());
    let what = format!(
        "{} in {} on {} will be wiped",
        count(shown.object_count, "file", "files"),
        safe(text),
        safe(&shown.disk)
    );
    // Nothing is lost with an empty one.
    prompt::confirm(&c.out, yes || shown.object_count == 0 && shown.used_bytes == 0, &what, &safe(text)).await?;
    let request = wire::ReturnSpaceRequest { space_id: space.space_id, device: space.disk };
    call(peer.devices().return_space(request)).await?;
    let done = Done::new("return", &shown.id, None, format!("{} is given back", safe(text)));
    c.out.changed(&done, |d| d.message.clone())?;
    Ok(Exit::Ok)
}

/// Names for completion: labels, and the ids of those without.
///
/// # Errors
/// Whatever listing ends with.
pub(in crate::commands) async fn names(peer: &Peer) -> Result<Vec<String>> {
    let name = |s: wire::Space| if s.label.is_empty() { uuid_text(&s.space_id) } else { s.label };
    Ok(borrowed(peer, false).await?.spaces.into_iter().map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_space_is_named_by_label_or_by_the_beginning_of_its_id() {
        let space = |id: u8, label: &str| wire::Space {
            space_id: vec![id; 16].into(),
            label: label.into(),
            ..Default::default()
        };
        let all = || vec![space(0x11, "video"), space(0x12, ""), space(0x12, "twice"), space(0x33, "twice")];
        let of = |text: &str| one(all(), text).map(|s| s.space_id[0]).map_err(|e| e.reason().to_owned());
        assert_eq!(of("video"), Ok(0x11));
        assert_eq!(of("1111"), Ok(0x11));
        assert_eq!(of("33333333-3333"), Ok(0x33));
        assert_eq!(of("1212"), Err("USAGE".to_owned()));
        assert_eq!(of("twice"), Err("USAGE".to_owned()));
        assert_eq!(of("111"), Err("SPACE_UNKNOWN".to_owned()), "too short to be sure");
        assert_eq!(of("x"), Err("SPACE_UNKNOWN".to_owned()));
    }
}
