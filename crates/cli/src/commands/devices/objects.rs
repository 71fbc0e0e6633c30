//! Files in borrowed space: `space put`, `get`, `ls`, `rm`.

use super::part::{self, Part};
use super::space::resolve;
use super::upload::{Before, Source, upload};
use super::{Context, call, patiently};
use crate::commands::Several;
use crate::exit::Exit;
use crate::output::format::{bytes, minute, safe};
use crate::output::schema::{Done, SpaceObject};
use crate::output::usage;
use crate::peer::Peer;
use crate::progress::{Counts, Meter};
use common::error::{Error, Kind, Reason, Result};
use common::model::EntryName;
use common::status::from_status;
use proto::peer::v1 as wire;
use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wire::put_object_request::Part as PutPart;

/// Most objects of a space that are looked through.
const OBJECTS_MAX: usize = 1_000_000;

/// Objects of a space, page by page, until `visit` has seen enough.
async fn each(
    peer: &Peer,
    space: &wire::Space,
    mut visit: impl FnMut(wire::SpaceObject) -> Result<bool>,
) -> Result<()> {
    let mut page_token = String::new();
    let mut seen = 0;
    loop {
        let request =
            wire::ListObjectsRequest { space_id: space.space_id.clone(), page_token, device: space.disk.clone() };
        let page = call(peer.devices().list_objects(request)).await?;
        for object in page.objects {
            seen += 1;
            if !visit(object)? {
                return Ok(());
            }
        }
        if seen > OBJECTS_MAX {
            return Err(Error::new(Reason::TreeTooLarge, "there is too much in the space"));
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(());
        }
    }
}

/// The object of this name.
async fn find(peer: &Peer, space: &wire::Space, name: &str) -> Result<Option<wire::SpaceObject>> {
    let mut found = None;
    each(peer, space, |object| {
        // They come in order of names.
        let over = object.name.as_str() >= name;
        if object.name == name {
            found = Some(object);
        }
        Ok(!over)
    })
    .await?;
    Ok(found)
}

pub(super) async fn put(c: &Context, space: &str, path: &Path, name: Option<String>) -> Result<Exit> {
    let peer = c.peer()?;
    let name = name.or_else(|| path.file_name().map(|n| n.to_string_lossy().into_owned())).unwrap_or_default();
    let name = EntryName::new(name)?;
    let space = resolve(&peer, space).await?;
    let meter = Meter::new(&c.out, "put");
    let local = local(path).await?;
    let put = put_whole(&peer, &space, &name, &local, &meter).await;
    meter.finish();
    let (object, moved) = put?;
    if object.digest != local.digest || object.size_bytes != local.size {
        return Err(Error::new(Reason::ChunkDamaged, format!("{} did not arrive as it was sent", safe(name.as_str())))
            .fix_is("give the same command again"));
    }
    c.out.changed(&SpaceObject::from(object), |o| {
        let was_there = if moved { "" } else { ", was there already" };
        format!("put {} ({}{was_there})", safe(&o.name), bytes(o.size_bytes))
    })?;
    Ok(Exit::Ok)
}

/// A file here.
struct Local {
    file: Arc<File>,
    name: String,
    size: u64,
    digest: bytes::Bytes,
}

async fn local(path: &Path) -> Result<Local> {
    let name = path.display().to_string();
    let opened = path.to_owned();
    let read = tokio::task::spawn_blocking(move || -> std::io::Result<(File, u64, blake3::Hash)> {
        let mut file = File::open(&opened)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("it is no file"));
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(&mut file)?;
        Ok((file, hasher.count(), hasher.finalize()))
    });
    let read = read.await.map_err(|e| Error::internal("a thread ended").caused_by(e))?;
    let (file, size, digest) = read.map_err(|e| {
        let reason = if e.kind() == std::io::ErrorKind::NotFound { Reason::EntryUnknown } else { Reason::IoFailed };
        Error::new(reason, format!("{name} cannot be read"))
            .why_is(e.to_string())
            .fix_is("check the file's name and rights; a directory can be put as an archive (tar)")
    })?;
    Ok(Local { file: Arc::new(file), name, size, digest: digest.as_bytes().to_vec().into() })
}

/// Files above this are asked about before they are sent: others are sent again as fast as the question is answered.
const ASK_ABOVE: u64 = 8 << 20;

/// Puts it, from where an earlier put has stopped; whether anything had to be sent.
async fn put_whole(
    peer: &Peer,
    space: &wire::Space,
    name: &EntryName,
    local: &Local,
    meter: &Meter,
) -> Result<(wire::SpaceObject, bool)> {
    // What was there of an interrupted put turns out to be of another content only when all is there.
    let anew = std::cell::Cell::new(false);
    let attempt = || async {
        let there = find(peer, space, name.as_str()).await?;
        let same = |o: &wire::SpaceObject| o.size_bytes == local.size && o.digest == local.digest;
        if let Some(object) = there.as_ref().filter(|o| o.partial_bytes == 0 && same(o)) {
            return Ok((object.clone(), false));
        }
        let goes_on = |o: &wire::SpaceObject| o.partial_bytes <= local.size && (o.digest.is_empty() || same(o));
        let part = match there {
            None if local.size > ASK_ABOVE => Some(begun(peer, space, name, local).await?),
            there => there,
        };
        let offset = part.filter(|o| !anew.get() && goes_on(o)).map_or(0, |o| o.partial_bytes);
        send(peer, space, name, local, offset, meter).await.inspect_err(|_| anew.set(offset > 0)).map(|o| (o, true))
    };
    match patiently(meter, attempt).await {
        Err(error) if anew.get() && matches!(error.kind(), Kind::DataLoss | Kind::InvalidArgument) => {
            patiently(meter, attempt).await
        }
        other => other,
    }
}

/// What is there of an interrupted put of the same content: a put without data tells.
async fn begun(peer: &Peer, space: &wire::Space, name: &EntryName, local: &Local) -> Result<wire::SpaceObject> {
    let first = wire::PutObjectRequest { part: Some(PutPart::Header(put_header(space, name, local, 0))) };
    super::call(peer.bulk_devices().put_object(futures_util::stream::iter([first]))).await
}

fn put_header(space: &wire::Space, name: &EntryName, local: &Local, offset: u64) -> wire::PutObjectHeader {
    wire::PutObjectHeader {
        space_id: space.space_id.clone(),
        name: name.as_str().to_owned(),
        size_bytes: local.size,
        offset,
        digest: local.digest.clone(),
        device: space.disk.clone(),
    }
}

async fn send(
    peer: &Peer,
    space: &wire::Space,
    name: &EntryName,
    local: &Local,
    offset: u64,
    meter: &Meter,
) -> Result<wire::SpaceObject> {
    let header = put_header(space, name, local, offset);
    let source = Source { file: local.file.clone(), name: safe(&local.name), offset, size: local.size };
    let before = Before { total_bytes: local.size, total_files: 1, ..Before::default() };
    let first = wire::PutObjectRequest { part: Some(PutPart::Header(header)) };
    let data = |piece| wire::PutObjectRequest { part: Some(PutPart::Data(piece)) };
    let mut client = peer.bulk_devices();
    upload(source, first, data, (meter, before), move |messages| async move { client.put_object(messages).await }).await
}

pub(super) async fn get(c: &Context, space: &str, name: &str, file: Option<PathBuf>, overwrite: bool) -> Result<Exit> {
    let peer = c.peer()?;
    let safe_name = EntryName::new(name)?;
    let space = resolve(&peer, space).await?;
    let object = find(&peer, &space, name).await?.ok_or_else(|| {
        Error::new(Reason::EntryUnknown, format!("there is no {} in the space", safe(name)))
            .fix_is("`atrium space ls` shows what is in it")
    })?;
    if object.partial_bytes != 0 {
        return Err(Error::new(Reason::EntryUnknown, format!("{} is not whole", safe(name)))
            .why_is(format!("{} of {} were put", bytes(object.partial_bytes), bytes(object.size_bytes)))
            .fix_is("finish `atrium space put` first"));
    }
    let target = match file {
        Some(file) if file.is_dir() || file.as_os_str().as_encoded_bytes().ends_with(b"/") => {
            file.join(safe_name.as_str())
        }
        Some(file) => file,
        None => PathBuf::from(safe_name.as_str()),
    };
    let meter = Meter::new(&c.out, "get");
    let got = fetch(&peer, &space, &object, &target, overwrite, &meter).await;
    meter.finish();
    let moved = got?;
    c.out.changed(&SpaceObject::from(object), |o| {
        let was_here = if moved { "" } else { ", was here already" };
        format!("got {} to {} ({}{was_here})", safe(&o.name), target.display(), bytes(o.size_bytes))
    })?;
    Ok(Exit::Ok)
}

/// Gets it; whether anything had to be moved.
async fn fetch(
    peer: &Peer,
    space: &wire::Space,
    object: &wire::SpaceObject,
    target: &Path,
    overwrite: bool,
    meter: &Meter,
) -> Result<bool> {
    match target.symlink_metadata() {
        Ok(m) if m.is_dir() => {
            return Err(Error::new(Reason::IsADirectory, format!("{} is a directory", target.display())));
        }
        Ok(m) if m.is_file() && m.len() == object.size_bytes && local(target).await?.digest == object.digest => {
            return Ok(false);
        }
        Ok(_) if !overwrite => return Err(part::exists(target)),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let (path, digest, size) = (target.to_owned(), object.digest.clone(), object.size_bytes);
    let opened = tokio::task::spawn_blocking(move || -> Result<(Part, blake3::Hasher)> {
        let mut part = Part::open(&path, &[&digest])?;
        if part.length() > size {
            part.restart()?;
        }
        let mut hasher = blake3::Hasher::new();
        part.read_all(|data| {
            hasher.update(data);
        })?;
        Ok((part, hasher))
    });
    let opened = opened.await.map_err(|e| Error::internal("a thread ended").caused_by(e))??;
    let state = RefCell::new(opened);
    if state.borrow().0.length() < size || size == 0 {
        patiently(meter, || read_on(peer, space, object, &state, meter)).await?;
    }
    let (part, hasher) = state.into_inner();
    if hasher.finalize().as_bytes().as_slice() != object.digest.as_ref() {
        part.remove();
        return Err(Error::new(Reason::ChunkDamaged, format!("{} is damaged", safe(&object.name)))
            .why_is("what came is not what was put")
            .fix_is("give the same command again; if it stays so, the other machine's disk is failing"));
    }
    part.finish(overwrite, None)?;
    Ok(true)
}

/// Reads on from where the part ends.
async fn read_on(
    peer: &Peer,
    space: &wire::Space,
    object: &wire::SpaceObject,
    state: &RefCell<(Part, blake3::Hasher)>,
    meter: &Meter,
) -> Result<()> {
    let request = wire::GetObjectRequest {
        space_id: space.space_id.clone(),
        name: object.name.clone(),
        offset: state.borrow().0.length(),
        device: space.disk.clone(),
    };
    let mut stream = call(peer.bulk_devices().get_object(request)).await?;
    while let Some(message) = stream.message().await.map_err(|s| from_status(&s))? {
        if message.object.is_some_and(|o| o.digest != object.digest || o.size_bytes != object.size_bytes) {
            return Err(Error::new(Reason::VersionStale, format!("{} was replaced meanwhile", safe(&object.name)))
                .fix_is("give the same command again"));
        }
        let mut state = state.borrow_mut();
        let (part, hasher) = &mut *state;
        if part.length().saturating_add(message.data.len() as u64) > object.size_bytes {
            return Err(Error::new(Reason::MessageMalformed, "more came than the file has"));
        }
        part.write(&message.data)?;
        hasher.update(&message.data);
        meter.set(Counts { done_bytes: part.length(), total_bytes: object.size_bytes, done_files: 0, total_files: 1 });
    }
    if state.borrow().0.length() < object.size_bytes {
        return Err(super::broke_off(&format!("{} before its end", safe(&object.name)), "give the same command again"));
    }
    Ok(())
}

pub(super) async fn ls(c: &Context, space: &str) -> Result<Exit> {
    let peer = c.peer()?;
    let space = resolve(&peer, space).await?;
    let mut list = c.out.list::<SpaceObject>(&[("space", super::uuid_text(&space.space_id).into())])?;
    each(&peer, &space, |object| {
        list.item(&SpaceObject::from(object), |o| {
            let part = o.partial_bytes.map(|n| format!("  [{} are there]", bytes(n))).unwrap_or_default();
            format!("{:>11}  {:16}  {}{part}", bytes(o.size_bytes), minute(o.create_time.as_deref()), safe(&o.name))
        })?;
        Ok(true)
    })
    .await?;
    list.end("(empty)")?;
    Ok(Exit::Ok)
}

pub(super) async fn rm(c: &Context, space: &str, names: &[String]) -> Result<Exit> {
    if names.iter().any(String::is_empty) {
        return Err(usage("a name is empty", "`atrium space ls` shows what is there"));
    }
    let peer = c.peer()?;
    let space = resolve(&peer, space).await?;
    let mut several = Several::default();
    for name in names {
        let request = wire::DeleteObjectRequest {
            space_id: space.space_id.clone(),
            name: name.clone(),
            device: space.disk.clone(),
        };
        let removed = call(peer.devices().delete_object(request)).await;
        let told = removed.and_then(|_| {
            let done = Done::new("rm", name, None, format!("removed {}", safe(name)));
            c.out.changed(&done, |d| d.message.clone())
        });
        several.note(&c.out, told)?;
    }
    several.end(&c.out)
}
