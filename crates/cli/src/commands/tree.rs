//! `mkdir`, `mv`, `cp`, `rm`.

use super::{Context, Several, call, places, request_id};
use crate::args::{Cp, Mkdir, Mv, Rm};
use crate::connect::Office;
use crate::exit::Exit;
use crate::output::format::{bytes, count};
use crate::output::schema::{Done, Entry};
use common::error::{Error, Reason, Result};
use common::model::{EntryName, EntryPath};
use proto::v1;

pub(super) async fn mkdir(c: &Context, args: Mkdir) -> Result<Exit> {
    let office = c.office().await?;
    let mut several = Several::default();
    for path in &args.paths {
        let result = make(c, &office, &path.path, args.parents).await;
        several.note(&c.out, result)?;
    }
    several.end(&c.out)
}

async fn make(c: &Context, office: &Office, path: &EntryPath, parents: bool) -> Result<()> {
    let request = v1::MakeDirectoryRequest { path: Some(places::wire(path)), parents, request_id: request_id() };
    call(office.files().make_directory(request)).await.map_err(|error| {
        if error.is(Reason::EntryUnknown) && !parents {
            error.fix_is(format!("make the parents as well: `atrium mkdir -p {path}`"))
        } else {
            error
        }
    })?;
    c.out.changed(&Done::new("mkdir", path, None, format!("made {path}")), |d| d.message.clone())
}

pub(super) async fn mv(c: &Context, args: Mv) -> Result<Exit> {
    let office = c.office().await?;
    let names: Vec<EntryName> = args.sources.iter().map(|s| places::name_of(&s.path)).collect::<Result<_>>()?;
    let targets = places::destinations(&office, &names, &args.destination).await?;
    let mut several = Several::default();
    for (source, target) in args.sources.iter().zip(&targets) {
        let result = move_one(c, &office, &source.path, target, args.overwrite).await;
        several.note(&c.out, result)?;
    }
    several.end(&c.out)
}

async fn move_one(c: &Context, office: &Office, source: &EntryPath, target: &EntryPath, overwrite: bool) -> Result<()> {
    let request = v1::MoveEntryRequest {
        source: Some(places::wire(source)),
        destination: Some(places::wire(target)),
        overwrite,
        etag: String::new(),
        request_id: request_id(),
    };
    call(office.files().move_entry(request)).await.map_err(|error| {
        if error.is(Reason::EntryExists) && !overwrite {
            error.fix_is("choose another name, or replace the file that is there with --overwrite")
        } else {
            error
        }
    })?;
    let done = Done::new("mv", source, Some(target.to_string()), format!("moved {source} to {target}"));
    c.out.changed(&done, |d| d.message.clone())
}

pub(super) async fn cp(c: &Context, args: Cp) -> Result<Exit> {
    let office = c.office().await?;
    let names: Vec<EntryName> = args.sources.iter().map(|s| places::name_of(&s.path)).collect::<Result<_>>()?;
    let targets = places::destinations(&office, &names, &args.destination).await?;
    let mut several = Several::default();
    for (source, target) in args.sources.iter().zip(&targets) {
        let result = copy_one(c, &office, &source.path, target).await;
        several.note(&c.out, result)?;
    }
    several.end(&c.out)
}

async fn copy_one(c: &Context, office: &Office, source: &EntryPath, target: &EntryPath) -> Result<()> {
    let request = v1::CopyEntryRequest {
        source: Some(places::wire(source)),
        destination: Some(places::wire(target)),
        request_id: request_id(),
    };
    let answer = call(office.files().copy_entry(request)).await?;
    let what = count(answer.entry_count, "entry", "entries");
    let done = Done::new("cp", source, Some(target.to_string()), format!("copied {source} to {target} ({what})"));
    c.out.changed(&done, |d| d.message.clone())
}

pub(super) async fn rm(c: &Context, args: Rm) -> Result<Exit> {
    let office = c.office().await?;
    if args.dry_run {
        return dry_run(c, &office, &args).await;
    }
    let mut several = Several::default();
    for path in &args.paths {
        let result = remove_one(c, &office, &path.path, args.recursive).await;
        several.note(&c.out, result)?;
    }
    several.end(&c.out)
}

async fn remove_one(c: &Context, office: &Office, path: &EntryPath, recursive: bool) -> Result<()> {
    places::name_of(path)?;
    let request = v1::DeleteEntryRequest {
        path: Some(places::wire(path)),
        recursive,
        etag: String::new(),
        request_id: request_id(),
    };
    let answer = call(office.files().delete_entry(request)).await.map_err(|error| {
        if error.is(Reason::DirectoryNotEmpty) && !recursive {
            error.fix_is(format!("remove it with everything in it: `atrium rm -r {path}`"))
        } else {
            error
        }
    })?;
    let done = Done::new("rm", path, Some(answer.trash_id), format!("moved {path} to the trash"));
    c.out.changed(&done, |d| d.message.clone())?;
    c.out.hint(&format!("atrium restore {path}  (takes it back)"));
    Ok(())
}

async fn dry_run(c: &Context, office: &Office, args: &Rm) -> Result<Exit> {
    let mut list = c.out.list::<Entry>(&[("dry_run", true.into())])?;
    let (mut files, mut total) = (0u64, 0u64);
    for path in &args.paths {
        places::name_of(&path.path)?;
        let top = places::entry(office, &path.path).await?;
        let mut found = vec![(path.path.clone(), top.clone())];
        if places::is_directory(&top) {
            let below = places::walk(office, &path.path).await?;
            if !below.is_empty() && !args.recursive {
                return Err(Error::new(Reason::DirectoryNotEmpty, format!("{path} is not empty"))
                    .fix_is(format!("remove it with everything in it: `atrium rm -r {path}`")));
            }
            found.extend(below);
        }
        for (at, entry) in &found {
            files += u64::from(!places::is_directory(entry));
            total += entry.size_bytes;
            list.item(&Entry::of(entry, at), |e| format!("would remove {}", e.path))?;
        }
    }
    list.end("nothing")?;
    c.out.note(&format!(
        "{} with {} would go to the trash; nothing was done",
        count(files, "file", "files"),
        bytes(total)
    ));
    Ok(Exit::Ok)
}
