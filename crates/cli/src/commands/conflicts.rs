//! `conflicts`.

use super::sync::canonical;
use super::{Context, Several, peers};
use crate::args::{Conflicts, ConflictsAction, Keep};
use crate::dirs;
use crate::exit::Exit;
use crate::output::format::{minute, safe};
use crate::output::schema::{Conflict, Done};
use crate::sync::choice;
use crate::sync::state::{KeptConflict, MemoryStore, Pair};
use common::error::Result;
use std::path::Path;

pub(super) async fn conflicts(c: &Context, args: Conflicts) -> Result<Exit> {
    let store = MemoryStore::open(&dirs::state()?)?;
    if let Some(ConflictsAction::Keep { which, paths }) = args.action {
        let mut several = Several::default();
        for path in &paths {
            let kept = match peers::conflicts::is_shared(c, path).await {
                Ok(true) => peers::conflicts::keep(c, which, path).await,
                Ok(false) => keep(c, &store, which, path),
                Err(error) => Err(error),
            };
            several.note(&c.out, kept)?;
        }
        return several.end(&c.out);
    }
    let only = args.directory.as_deref().map(canonical).transpose()?;
    let mut list = c.out.list::<Conflict>(&[])?;
    for memory in store.all()? {
        if only.as_ref().is_some_and(|d| *d != memory.pair.directory) {
            continue;
        }
        for kept in store.open_conflicts(&memory)? {
            list.item(&shown(&memory.pair, &kept), line)?;
        }
    }
    for kept in peers::conflicts::all(c).await? {
        if only.as_ref().is_none_or(|d| d.starts_with(&kept.directory) || Path::new(&kept.directory).starts_with(d)) {
            list.item(&kept, line)?;
        }
    }
    let number = list.end("no conflicts")?;
    if number > 0 {
        c.out.hint("atrium conflicts keep mine|theirs|both FILE");
    }
    Ok(Exit::Ok)
}

/// A conflict in the words of the JSON contract.
pub(super) fn shown(pair: &Pair, kept: &KeptConflict) -> Conflict {
    Conflict {
        directory: pair.directory.display().to_string(),
        remote: pair.remote.clone(),
        path: kept.path.clone(),
        kept_as: kept.kept_as.clone(),
        kept_is: if kept.kept_is_theirs { "theirs" } else { "mine" }.to_owned(),
        time: Some(kept.time.clone()),
    }
}

fn line(k: &Conflict) -> String {
    let base = Path::new(&k.directory);
    let (path, other) = (base.join(&k.path), base.join(&k.kept_as));
    let (path, other) = (safe(&path.display().to_string()), safe(&other.display().to_string()));
    let (this, that) = if k.kept_is == "theirs" { ("mine", "theirs") } else { ("theirs", "mine") };
    format!("{path}  ({})\n  {this:7} {path}\n  {that:7} {other}", minute(k.time.as_deref()))
}

fn keep(c: &Context, store: &MemoryStore, which: Keep, path: &Path) -> Result<()> {
    let (memory, conflict) = choice::find(store, path)?;
    let trashed = choice::carry_out(store, &memory, &conflict, which)?;
    let shown = safe(&memory.pair.directory.join(&conflict.path).display().to_string());
    let said = match which {
        Keep::Mine => format!("{shown} has your version"),
        Keep::Theirs => format!("{shown} has the server's version"),
        Keep::Both => format!("{shown} and its other version both stay"),
    };
    let result = trashed.map(|t| t.display().to_string());
    let tail = result.as_ref().map(|t| format!("; the other one is now {}", safe(t))).unwrap_or_default();
    let done = Done::new("conflicts keep", &shown, result, format!("{said}{tail}"));
    c.out.changed(&done, |d| d.message.clone())
}
