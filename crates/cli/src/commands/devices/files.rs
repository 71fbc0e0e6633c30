//! Files of discs: `ls`, `cat` and `get` of addresses like `acme/anna-pc/drives/dvd/docs/a.pdf`.
//!
//! All reads of one command are of one generation of the disc: when it is changed meanwhile they fail, and no file is made
//! of two discs. Names come from the disc and are checked before anything here is called so.

use super::part::{self, Part};
use super::{Context, all, call, patiently};
use crate::args::Ls;
use crate::args::place::Address;
use crate::commands::places::WALK_MAX;
use crate::commands::transfer::{empty, failure, finish};
use crate::exit::Exit;
use crate::output::format::{bytes, minute, rfc3339, safe};
use crate::output::schema::{DiscEntry, Transfer};
use crate::output::{List, Output, usage};
use crate::peer::Peer;
use crate::progress::{Counts, Meter};
use common::error::{Error, Kind, Reason, Result};
use common::model::{EntryName, fold};
use common::status::from_status;
use proto::peer::v1 as wire;
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The segment below which drives are.
const DRIVES: &str = "drives";
/// Deepest directory of a disc that is walked through.
const DEPTH_MAX: usize = 128;

/// Something on a disc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::commands) struct OnDisc {
    /// The drive, as it was typed.
    device: String,
    /// Below the top of the disc; empty for the top.
    path: String,
}

impl OnDisc {
    fn text(&self, path: &str) -> String {
        if path.is_empty() { self.device.clone() } else { format!("{}/{path}", self.device) }
    }
}

/// What an address means if it is on a disc.
///
/// # Errors
/// Whatever listing drives ends with; it is asked for only if the address has the segment.
pub(in crate::commands) async fn on_disc(peer: &Peer, address: &Address) -> Result<Option<OnDisc>> {
    let segments: Vec<&str> = address.as_str().split('/').collect();
    if let Some(own) = split(&segments, 0) {
        return Ok(Some(own));
    }
    let candidates: Vec<OnDisc> = (2..segments.len()).filter_map(|at| split(&segments, at)).collect();
    if candidates.is_empty() {
        return Ok(None);
    }
    let drives = match all(peer, wire::DeviceKind::Drive).await {
        Ok(answer) => answer.devices,
        // A peer of a version without drives.
        Err(error) if error.kind() == Kind::Unimplemented => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(candidates.into_iter().find(|c| drives.iter().any(|d| plain(&d.address) == plain(&c.device))))
}

/// The drive whose name stands behind this segment, and what is below it.
fn split(segments: &[&str], at: usize) -> Option<OnDisc> {
    let (here, below) = (segments.get(..=at + 1)?, segments.get(at + 2..)?);
    let is_it = segments[at] == DRIVES && !here.contains(&"*");
    is_it.then(|| OnDisc { device: here.join("/"), path: below.join("/") })
}

/// An address without the digits that tell machines of one name apart.
fn plain(address: &str) -> String {
    let segments = address.split('/').map(|s| s.rsplit_once('~').map_or(s, |(name, _)| name));
    fold(&segments.collect::<Vec<_>>().join("/"))
}

/// The same for several, which must be all on discs or none.
///
/// # Errors
/// `USAGE` if they are mixed.
pub(in crate::commands) async fn on_discs(peer: &Peer, addresses: &[Address]) -> Result<Option<Vec<OnDisc>>> {
    let mut found = Vec::new();
    for address in addresses {
        found.extend(on_disc(peer, address).await?);
    }
    match found.len() {
        0 => Ok(None),
        n if n == addresses.len() => Ok(Some(found)),
        _ => Err(usage("shares and discs cannot be mixed", "get them one after the other")),
    }
}

/// All entries of a directory.
async fn directory(peer: &Peer, device: &str, generation: &mut u64, path: &str) -> Result<Vec<wire::DiscEntry>> {
    let mut entries = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = wire::ListDiscRequest {
            device: device.to_owned(),
            generation: *generation,
            path: path.to_owned(),
            page_token,
        };
        let page = call(peer.devices().list_disc(request)).await?;
        if *generation != 0 && page.generation != *generation {
            return Err(changed(device));
        }
        *generation = page.generation;
        entries.extend(page.entries);
        if entries.len() > WALK_MAX {
            return Err(Error::new(Reason::TreeTooLarge, format!("there is too much in {}", safe(path))));
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(entries);
        }
    }
}

fn changed(device: &str) -> Error {
    Error::new(Reason::DiscChanged, format!("the disc in {} was changed", safe(device)))
}

/// The name of an entry, if it lies right in the directory and could be a name here.
fn name_of(parent: &str, entry: &wire::DiscEntry) -> Result<EntryName> {
    let path = entry.path.trim_start_matches('/');
    let name = match parent {
        "" => Some(path),
        parent => path.strip_prefix(parent).and_then(|rest| rest.strip_prefix('/')),
    };
    let name = name.ok_or_else(|| {
        Error::new(Reason::NameInvalid, format!("{} is not in {}", safe(path), safe(parent)))
            .why_is("the disc's directory is damaged, or made to do harm")
            .fix_is("copy the whole disc with `atrium disc rip`")
    })?;
    EntryName::new(name).map_err(|e| Error::new(Reason::NameInvalid, safe(e.message())))
}

/// What is at a place of a disc; `None` for its top.
async fn entry(peer: &Peer, place: &OnDisc, generation: &mut u64) -> Result<Option<wire::DiscEntry>> {
    if place.path.is_empty() {
        return Ok(None);
    }
    let (parent, name) = place.path.rsplit_once('/').unwrap_or(("", &place.path));
    let entries = directory(peer, &place.device, generation, parent).await?;
    let found = entries.iter().find(|e| e.path.rsplit('/').next() == Some(name));
    found.cloned().map(Some).ok_or_else(|| {
        Error::new(Reason::EntryUnknown, format!("{} is not on the disc", safe(&place.text(&place.path))))
            .fix_is(format!("`atrium ls {}` shows what is", safe(&place.device)))
    })
}

impl DiscEntry {
    fn of(place: &OnDisc, e: &wire::DiscEntry) -> Self {
        let path = e.path.trim_start_matches('/');
        Self {
            address: place.text(path),
            path: path.to_owned(),
            r#type: if e.directory { "directory" } else { "file" }.into(),
            size_bytes: if e.directory { 0 } else { e.size_bytes },
            modify_time: rfc3339(e.modify_time.as_ref()),
        }
    }
}

pub(in crate::commands) async fn ls(c: &Context, peer: &Peer, place: &OnDisc, args: &Ls) -> Result<Exit> {
    let mut generation = 0;
    let (mut open, mut first) = (Vec::new(), Vec::new());
    match entry(peer, place, &mut generation).await? {
        Some(file) if !file.directory => first.push(file),
        Some(directory) => open.push((directory.path.trim_start_matches('/').to_owned(), 1)),
        None => open.push((String::new(), 1)),
    }
    // The first directory is asked for before anything is written, so that a list begins only if there is one.
    if let Some((path, _)) = open.first() {
        first = directory(peer, &place.device, &mut generation, path).await?;
    }
    let head = [("path", place.text(&place.path).into()), ("generation", generation.into())];
    let mut list = c.out.list::<DiscEntry>(&head)?;
    let mut read = Some(first);
    let single = open.is_empty();
    while let Some((path, depth)) = open.pop().or_else(|| read.is_some().then(|| (String::new(), 1))) {
        let entries = match read.take() {
            Some(entries) => entries,
            None => directory(peer, &place.device, &mut generation, &path).await?,
        };
        let mut below = Vec::new();
        for e in &entries {
            show(&c.out, &mut list, &DiscEntry::of(place, e), args, single)?;
            if args.recursive && e.directory && depth < DEPTH_MAX && name_of(&path, e).is_ok() {
                below.push((e.path.trim_start_matches('/').to_owned(), depth + 1));
            }
        }
        below.reverse();
        open.append(&mut below);
    }
    list.end("(empty)")?;
    Ok(Exit::Ok)
}

fn show(out: &Output, list: &mut List<'_, DiscEntry>, e: &DiscEntry, args: &Ls, single: bool) -> Result<()> {
    list.item(e, |e| {
        let name = if args.recursive { e.address.as_str() } else { e.path.rsplit('/').next().unwrap_or_default() };
        let directory = e.r#type == "directory";
        let name = if directory { out.paint(&format!("{}/", safe(name)), "34;1") } else { safe(name) };
        if !args.long && !single {
            return name;
        }
        let size = if directory { "-".to_owned() } else { bytes(e.size_bytes) };
        format!("{size:>11}  {:16}  {name}", minute(e.modify_time.as_deref()))
    })
}

/// How far a file of a disc has been read. Kept while the connection breaks and comes again.
#[derive(Default)]
struct Reading {
    generation: Cell<u64>,
    offset: Cell<u64>,
    size: Cell<Option<u64>>,
}

/// Reads on from where it is, to the end.
///
/// # Errors
/// `DISC_CHANGED`; whatever the drive's machine or `sink` say.
async fn read_on(
    peer: &Peer,
    device: &str,
    path: &str,
    at: &Reading,
    sink: &dyn Fn(&[u8]) -> Result<()>,
) -> Result<()> {
    let request = wire::ReadDiscFileRequest {
        device: device.to_owned(),
        generation: at.generation.get(),
        path: path.to_owned(),
        offset: at.offset.get(),
        length: 0,
    };
    let mut stream = call(peer.bulk_devices().read_disc_file(request)).await?;
    let mut first = true;
    while let Some(message) = stream.message().await.map_err(|s| from_status(&s))? {
        if std::mem::take(&mut first) {
            let known = at.generation.replace(message.generation);
            let size = at.size.replace(Some(message.size_bytes));
            if (known != 0 && known != message.generation) || size.is_some_and(|s| s != message.size_bytes) {
                return Err(changed(device));
            }
        }
        let end = at.offset.get().checked_add(message.data.len() as u64);
        let end = end.filter(|end| at.size.get().is_some_and(|size| *end <= size));
        let end = end.ok_or_else(|| Error::new(Reason::MessageMalformed, "more came than the file has"))?;
        sink(&message.data)?;
        at.offset.set(end);
    }
    match at.size.get() {
        Some(size) if at.offset.get() < size => {
            Err(super::broke_off(&format!("{} before its end", safe(path)), "give the same command again"))
        }
        _ => Ok(()),
    }
}

pub(in crate::commands) async fn cat(c: &Context, peer: &Peer, place: &OnDisc) -> Result<()> {
    if place.path.is_empty() {
        return Err(Error::new(Reason::IsADirectory, format!("{} is a whole disc", safe(&place.device)))
            .fix_is("name a file on it; `atrium disc rip` copies the whole disc"));
    }
    // It shows nothing: the text goes to the same terminal.
    let mut quiet = c.out.clone();
    quiet.progress = false;
    let (meter, at) = (Meter::new(&quiet, "get"), Reading::default());
    let sink = |data: &[u8]| c.out.raw(data);
    patiently(&meter, || read_on(peer, &place.device, &place.path, &at, &sink)).await
}

/// A file that is got.
struct Target {
    device: String,
    generation: u64,
    entry: wire::DiscEntry,
    local: PathBuf,
}

pub(in crate::commands) async fn get(
    c: &Context,
    peer: &Peer,
    places: Vec<OnDisc>,
    destination: &Path,
    into: bool,
    overwrite: bool,
) -> Result<Exit> {
    let meter = Meter::new(&c.out, "get");
    let mut report = empty("get", false);
    let (mut targets, mut shown) = (Vec::new(), Vec::new());
    for place in &places {
        shown.push(place.text(&place.path));
        plan(peer, place, (destination, into), &mut targets, &mut report).await?;
    }
    let total_bytes = targets.iter().map(|t| t.entry.size_bytes).sum();
    let mut counts = Counts { total_bytes, total_files: targets.len() as u64, ..Counts::default() };
    let mut gone = None;
    for target in &targets {
        if gone.as_ref() == Some(&target.device) {
            continue;
        }
        match file(peer, target, overwrite, &meter, counts).await {
            Ok(Got::Unchanged) => report.unchanged_files += 1,
            Ok(Got::New { moved }) => {
                report.files += 1;
                report.total_bytes += target.entry.size_bytes;
                report.moved_bytes += moved;
            }
            Err(error) => {
                // Nothing else can come from a disc that is not there any more.
                if error.is(Reason::DiscChanged) || error.is(Reason::NoMedium) || error.is(Reason::TrayOpen) {
                    gone = Some(target.device.clone());
                }
                report.failed.push(failure(target.local.display(), &error));
            }
        }
        counts.done_bytes += target.entry.size_bytes;
        counts.done_files += 1;
        meter.set(counts);
    }
    meter.finish();
    report.elapsed_ms = u64::try_from(meter.elapsed().as_millis()).unwrap_or(u64::MAX);
    finish(c, report, &shown)
}

/// What is to be got for a place, and where to. A file goes into a directory that is here; a directory becomes the place
/// that was named, unless it goes into one.
async fn plan(
    peer: &Peer,
    place: &OnDisc,
    (destination, into): (&Path, bool),
    targets: &mut Vec<Target>,
    report: &mut Transfer,
) -> Result<()> {
    let mut generation = 0;
    let found = entry(peer, place, &mut generation).await?;
    let name = match &found {
        Some(e) => EntryName::new(e.path.rsplit('/').next().unwrap_or_default())?,
        None => EntryName::new(place.device.rsplit('/').next().unwrap_or_default())?,
    };
    let inside = || destination.join(name.as_str());
    let top = match found {
        Some(entry) if !entry.directory => {
            let local = if into || destination.is_dir() { inside() } else { destination.to_owned() };
            targets.push(Target { device: place.device.clone(), generation, entry, local });
            return Ok(());
        }
        Some(entry) => entry.path.trim_start_matches('/').to_owned(),
        None => String::new(),
    };
    let local = if into { inside() } else { destination.to_owned() };
    let mut open = vec![(top, local, 1)];
    while let Some((path, local, depth)) = open.pop() {
        let entries = directory(peer, &place.device, &mut generation, &path).await?;
        std::fs::create_dir_all(&local)?;
        for entry in entries {
            let name = match name_of(&path, &entry) {
                Ok(name) => name,
                Err(error) => {
                    report.failed.push(failure(safe(&place.text(&entry.path)), &error));
                    continue;
                }
            };
            let local = local.join(name.as_str());
            if !entry.directory {
                targets.push(Target { device: place.device.clone(), generation, entry, local });
            } else if depth < DEPTH_MAX {
                open.push((entry.path.trim_start_matches('/').to_owned(), local, depth + 1));
            } else {
                let error = Error::new(Reason::TreeTooLarge, format!("{} lies too deep", safe(&entry.path)));
                report.failed.push(failure(local.display(), &error));
            }
            if targets.len() + open.len() > WALK_MAX {
                return Err(Error::new(Reason::TreeTooLarge, "there is too much on the disc"));
            }
        }
    }
    Ok(())
}

/// What became of a file.
enum Got {
    Unchanged,
    New { moved: u64 },
}

async fn file(peer: &Peer, target: &Target, overwrite: bool, meter: &Meter, counts: Counts) -> Result<Got> {
    let entry = &target.entry;
    let path = entry.path.trim_start_matches('/');
    let modified = entry.modify_time.as_ref().and_then(system_time);
    match target.local.symlink_metadata() {
        Ok(m) if m.is_dir() => {
            return Err(Error::new(Reason::IsADirectory, format!("{} is a directory", target.local.display()))
                .why_is("a file cannot take its place")
                .fix_is("name another place"));
        }
        Ok(m) if m.is_file() && m.len() == entry.size_bytes && modified.is_some() && m.modified().ok() == modified => {
            return Ok(Got::Unchanged);
        }
        Ok(_) if !overwrite => return Err(part::exists(&target.local)),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let generation = target.generation.to_le_bytes();
    let mut part = Part::open(&target.local, &[target.device.as_bytes(), &generation, path.as_bytes()])?;
    if part.length() > entry.size_bytes {
        part.restart()?;
    }
    let begin = part.length();
    let at = Reading {
        generation: Cell::new(target.generation),
        offset: Cell::new(begin),
        size: Cell::new(Some(entry.size_bytes)),
    };
    let part = RefCell::new(part);
    let sink = |data: &[u8]| {
        part.borrow_mut().write(data)?;
        meter.set(Counts { done_bytes: counts.done_bytes + part.borrow().length(), ..counts });
        Ok(())
    };
    // A part that has all its bytes needs no more of them.
    let read = match begin < entry.size_bytes {
        true => patiently(meter, || read_on(peer, &target.device, path, &at, &sink)).await,
        false => Ok(()),
    };
    let part = part.into_inner();
    match read {
        Ok(()) => {
            part.finish(overwrite, modified)?;
            Ok(Got::New { moved: entry.size_bytes - begin })
        }
        Err(error) => {
            if error.is(Reason::DiscChanged) {
                part.remove();
            }
            Err(error)
        }
    }
}

fn system_time(time: &prost_types::Timestamp) -> Option<SystemTime> {
    let since = Duration::new(u64::try_from(time.seconds).ok()?, u32::try_from(time.nanos).ok()?);
    UNIX_EPOCH.checked_add(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drive_and_what_is_below_it() {
        let split = |text: &str, at| {
            let segments: Vec<&str> = text.split('/').collect();
            super::split(&segments, at).map(|d| (d.device, d.path))
        };
        let of = |device: &str, path: &str| Some((device.to_owned(), path.to_owned()));
        assert_eq!(split("drives/dvd/docs/a.pdf", 0), of("drives/dvd", "docs/a.pdf"));
        assert_eq!(split("acme/pc/drives/dvd", 2), of("acme/pc/drives/dvd", ""));
        for (text, at) in [("drives", 0), ("acme/pc/drives", 2), ("acme/pc/plans/x", 2), ("acme/*/drives/dvd", 2)] {
            assert_eq!(split(text, at), None, "{text}");
        }
        assert_eq!(plain("acme/PC~0a1b2c3d/drives/dvd"), plain("acme/pc/drives/DVD"));
    }

    #[test]
    fn names_of_a_disc_stay_in_their_directory() {
        let name = |parent: &str, path: &str| {
            name_of(parent, &wire::DiscEntry { path: path.into(), ..Default::default() }).map(|n| n.as_str().to_owned())
        };
        assert_eq!(name("", "a").unwrap(), "a");
        assert_eq!(name("docs", "/docs/a").unwrap(), "a");
        for (parent, path) in [
            ("docs", "a"),
            ("docs", "docs/../a"),
            ("docs", "docs/.."),
            ("docs", "docs/a/b"),
            ("", ""),
            ("d", "dx/a"),
            ("", "a\u{1b}"),
            ("", ".."),
        ] {
            assert!(name(parent, path).is_err(), "{parent} {path}");
        }
    }
}
