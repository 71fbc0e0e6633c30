//! Conflicts of two-way shares, beside those of `sync`.

use crate::args::Keep;
use crate::commands::{Context, call};
use crate::output::format::{rfc3339, safe};
use crate::output::schema::{Conflict, Done};
use crate::peer;
use common::error::Result;
use proto::peer::v1 as wire;
use std::path::{Path, PathBuf};

/// Conflicts of the folders that this machine shares with others, or keeps copies of; none without a peer.
pub(in crate::commands) async fn all(c: &Context) -> Result<Vec<Conflict>> {
    if !peer::is_there(&c.global) {
        return Ok(Vec::new());
    }
    let mut client = c.peer()?.client();
    let shares = call(client.list_local_shares(wire::ListLocalSharesRequest {})).await?.shares;
    let found = call(client.list_conflicts(wire::ListConflictsRequest::default())).await?.conflicts;
    Ok(found.into_iter().map(|k| conflict(&shares, k)).collect())
}

fn conflict(shares: &[wire::LocalShare], k: wire::Conflict) -> Conflict {
    let share = shares.iter().find(|s| Path::new(&k.path).starts_with(&s.path));
    let directory = share.map(|s| s.path.clone()).unwrap_or_default();
    let below = |path: &str| match Path::new(path).strip_prefix(&directory) {
        Ok(rest) => rest.to_string_lossy().into_owned(),
        Err(_) => path.to_owned(),
    };
    Conflict {
        path: below(&k.path),
        kept_as: below(&k.other_path),
        kept_is: "theirs".to_owned(),
        remote: share.map_or(k.share, |s| s.address.clone()),
        time: rfc3339(k.create_time.as_ref()),
        directory,
    }
}

/// Whether the path lies in a folder of this machine's peer.
pub(in crate::commands) async fn is_shared(c: &Context, path: &Path) -> Result<bool> {
    if !peer::is_there(&c.global) {
        return Ok(false);
    }
    let shares = call(c.peer()?.client().list_local_shares(wire::ListLocalSharesRequest {})).await?.shares;
    let path = resolved(path)?;
    Ok(shares.iter().any(|s| path.starts_with(&s.path)))
}

/// Without links in the directories that lead to it; the file itself may be missing.
fn resolved(path: &Path) -> Result<PathBuf> {
    let absolute = super::absolute(path)?;
    Ok(match (absolute.parent().map(Path::canonicalize), absolute.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => absolute,
    })
}

/// Ends one.
pub(in crate::commands) async fn keep(c: &Context, which: Keep, path: &Path) -> Result<()> {
    use wire::resolve_conflict_request::Keep as Word;
    let (word, said) = match which {
        Keep::Mine => (Word::Mine, "has your version; the other one is in the share's trash"),
        Keep::Theirs => (Word::Theirs, "has the other machine's version; yours is in the share's trash"),
        Keep::Both => (Word::Both, "and its other version both stay"),
    };
    let text = super::absolute_text(&resolved(path)?)?;
    let request = wire::ResolveConflictRequest { path: text.clone(), keep: word as i32 };
    call(c.peer()?.client().resolve_conflict(request)).await?;
    let shown = safe(&text);
    let done = Done::new("conflicts keep", &shown, None, format!("{shown} {said}"));
    c.out.changed(&done, |d| d.message.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_is_told_relative_to_its_folder() {
        let share = wire::LocalShare {
            path: "/home/anna/Plans".into(),
            address: "acme/anna-pc/plans".into(),
            ..Default::default()
        };
        let k = wire::Conflict {
            share: "plans".into(),
            path: "/home/anna/Plans/x/a.txt".into(),
            other_path: "/home/anna/Plans/x/a (bert).txt".into(),
            ..Default::default()
        };
        let told = conflict(&[share], k.clone());
        assert_eq!((told.directory.as_str(), told.path.as_str()), ("/home/anna/Plans", "x/a.txt"));
        assert_eq!((told.kept_as.as_str(), told.remote.as_str()), ("x/a (bert).txt", "acme/anna-pc/plans"));
        assert_eq!(conflict(&[], k).path, "/home/anna/Plans/x/a.txt");
    }
}
