//! `get` and `cat`.

use super::cached::{self, CACHED_MAX};
use super::put::{add_tree, empty, failure, finish};
use crate::args::place::AnyPath;
use crate::args::value::RemotePath;
use crate::args::{Cat, Get};
use crate::bytes::{self as transfer, Download, GetTreeOptions};
use crate::commands::{Context, peers, places};
use crate::connect::Office;
use crate::exit::Exit;
use crate::output::schema::Transfer;
use crate::output::usage;
use crate::progress::Meter;
use common::error::{Error, Reason, Result};
use common::model::EntryPath;
use proto::v1;
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::NamedTempFile;

/// More files than this are not asked for one by one through the cache.
const CACHED_FILES_MAX: usize = 32;

/// What is got, and where to.
struct Target {
    source: EntryPath,
    entry: v1::Entry,
    local: PathBuf,
}

pub async fn get(c: &Context, args: Get) -> Result<Exit> {
    if peers::fetch::wants(&args) {
        return peers::fetch::get(c, args).await;
    }
    if args.detach {
        return Err(usage("--detach is for addresses", "leave it out"));
    }
    let (sources, destination) = divide(&args.paths)?;
    let office = c.office().await?;
    let into = sources.len() > 1 || ends_with_slash(&destination) || is_dots(&destination);
    let meter = Meter::new(&c.out, "get");
    let mut report = empty("get", false);
    let (mut targets, mut shown) = (Vec::new(), Vec::new());
    if into {
        make_directory(&destination)?;
    }
    // A file goes into a directory that is there. A directory becomes the place that was named, so that the same command
    // again goes on there instead of making a copy in it.
    let there = destination.is_dir();
    for source in &sources {
        let local = if into { destination.join(entry_name(source)) } else { destination.clone() };
        shown.push(source.to_string());
        let entry = match places::entry(&office, &source.path).await {
            Ok(entry) => entry,
            Err(error) if away(&error) && by_cache(&office, &args) => {
                let local = if there && !into { destination.join(entry_name(source)) } else { local };
                from_cache_alone(c, &office, &source.path, &local, &args).await?;
                report.files += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        if !places::is_directory(&entry) {
            let local = if there && !into { destination.join(entry_name(source)) } else { local };
            targets.push(Target { source: source.path.clone(), entry, local });
            continue;
        }
        if args.version_number.is_some() {
            return Err(usage(format!("{source} is a directory and has no versions"), "name a file"));
        }
        let options = GetTreeOptions { replace: args.overwrite, ..GetTreeOptions::default() };
        let tree = transfer::download_tree(&office, &source.path, &local, &options, &meter).await?;
        add_tree(&mut report, &local.display().to_string(), tree);
    }
    let mut wanted = Vec::new();
    for target in targets {
        match in_the_way(&target, &args).await {
            Ok(true) => report.unchanged_files += 1,
            Ok(false) => wanted.push(target),
            Err(error) => report.failed.push(failure(target.local.display(), &error)),
        }
    }
    fetch(&office, &args, wanted, &meter, &mut report).await;
    meter.finish();
    report.moved_bytes = meter.moved_bytes();
    report.elapsed_ms = u64::try_from(meter.elapsed().as_millis()).unwrap_or(u64::MAX);
    finish(c, report, &shown)
}

fn make_directory(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|e| cannot_write(path, e))
}

/// Places on the server, and at the end the place here.
fn divide(paths: &[String]) -> Result<(Vec<RemotePath>, PathBuf)> {
    let remote = |text: &String| text.parse::<RemotePath>();
    let (last, rest) = paths.split_last().ok_or_else(|| usage("what shall be got?", "name a place like home:a.txt"))?;
    let mut sources = Vec::new();
    for path in rest {
        sources.push(remote(path).map_err(|e| usage(e, "name places on the server first, the place here last"))?);
    }
    match remote(last) {
        Ok(path) => {
            sources.push(path);
            Ok((sources, PathBuf::from(".")))
        }
        Err(error) if rest.is_empty() => Err(usage(error, "name a place on the server, like home:a.txt")),
        Err(_) => Ok((sources, PathBuf::from(last))),
    }
}

fn entry_name(source: &RemotePath) -> String {
    source.path.name().map_or_else(|| root_name(&source.path), |n| n.as_str().to_owned())
}

/// ".", "..", "x/..": a directory that is there, not a name for a new one.
fn is_dots(path: &Path) -> bool {
    !matches!(path.components().next_back(), Some(std::path::Component::Normal(_)))
}

fn ends_with_slash(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// "plans" for public:plans, "home" for home:.
fn root_name(path: &EntryPath) -> String {
    path.root.to_string().rsplit('/').next().unwrap_or("home").to_owned()
}

fn away(error: &Error) -> bool {
    error.is(Reason::ServerUnreachable) || error.is(Reason::ShuttingDown)
}

fn by_cache(office: &Office, args: &Get) -> bool {
    office.agent.is_some() && !args.no_cache && args.version_number.is_none()
}

/// True if the file is here already; an error if another one is and may not be replaced.
async fn in_the_way(target: &Target, args: &Get) -> Result<bool> {
    let metadata = match target.local.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(cannot_write(&target.local, error)),
    };
    if metadata.is_dir() {
        return Err(Error::new(Reason::IsADirectory, format!("{} is a directory", target.local.display()))
            .why_is("a file cannot take its place")
            .fix_is("name another place"));
    }
    if args.version_number.is_none() && metadata.is_file() && metadata.len() == target.entry.size_bytes {
        let same_time = modified(&target.entry).is_some_and(|t| metadata.modified().is_ok_and(|m| m == t));
        if same_time || same_content(target.local.clone(), target.entry.manifest_digest.to_vec()).await? {
            return Ok(true);
        }
    }
    if args.overwrite {
        return Ok(false);
    }
    Err(Error::new(Reason::EntryExists, format!("{} is here already and differs", target.local.display()))
        .why_is("replacing it would lose what is in it")
        .fix_is("name another place, or replace it with --overwrite"))
}

async fn same_content(path: PathBuf, digest: Vec<u8>) -> Result<bool> {
    let work = move || transfer::content_digest(File::open(path)?);
    let joined = tokio::task::spawn_blocking(work).await;
    Ok(joined.map_err(|e| Error::internal("a thread ended").caused_by(e))??.as_slice() == digest)
}

fn modified(entry: &v1::Entry) -> Option<SystemTime> {
    let time = entry.modify_time.as_ref()?;
    let since = Duration::new(u64::try_from(time.seconds).ok()?, u32::try_from(time.nanos).ok()?);
    UNIX_EPOCH.checked_add(since)
}

async fn fetch(office: &Office, args: &Get, wanted: Vec<Target>, meter: &Meter, report: &mut Transfer) {
    let small = wanted.iter().all(|t| t.entry.size_bytes <= CACHED_MAX) && wanted.len() <= CACHED_FILES_MAX;
    let mut direct = Vec::new();
    for target in wanted {
        let by_agent = office.agent.as_ref().filter(|_| small && by_cache(office, args));
        let Some(agent) = by_agent else {
            direct.push(target);
            continue;
        };
        match through_cache(agent, &target.source, &target.local).await {
            Ok(header) => {
                meter.add_finished(header.size_bytes);
                report.files += 1;
                report.total_bytes += header.size_bytes;
            }
            // The agent is a help, not a condition.
            Err(error) if worth_asking_the_server(&error) => direct.push(target),
            Err(error) => report.failed.push(failure(&target.source, &error)),
        }
    }
    let downloads: Vec<Download> = direct
        .into_iter()
        .map(|t| Download { source: t.source, version: args.version_number.unwrap_or(0), target: t.local })
        .collect();
    let results = transfer::download(office, &downloads, meter).await;
    for (download, result) in downloads.iter().zip(results) {
        match result {
            Ok(entry) => {
                report.files += 1;
                report.total_bytes += entry.size_bytes;
            }
            Err(error) => report.failed.push(failure(&download.source, &error)),
        }
    }
}

fn worth_asking_the_server(error: &Error) -> bool {
    use common::error::Kind;
    // The agent has asked it just now, and it was away.
    if error.is(Reason::NotCached) {
        return false;
    }
    matches!(
        error.kind(),
        Kind::Unavailable | Kind::Internal | Kind::Unimplemented | Kind::DataLoss | Kind::DeadlineExceeded
    )
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Through the agent's cache into a temporary file, then into place.
async fn through_cache(
    agent: &crate::connect::Agent,
    source: &EntryPath,
    local: &Path,
) -> Result<proto::agent::v1::FetchHeader> {
    let parent = parent_of(local);
    let mut file = temporary(&parent)?;
    let header = cached::fetch(agent, source, |data| Ok(file.write_all(&data)?)).await?;
    let entry = v1::Entry {
        size_bytes: header.size_bytes,
        modify_time: header.modify_time,
        mode: header.mode,
        version: header.version,
        ..v1::Entry::default()
    };
    place(file, local, &entry)?;
    Ok(header)
}

/// With the server away, a file may still be in the cache.
async fn from_cache_alone(c: &Context, office: &Office, source: &EntryPath, local: &Path, args: &Get) -> Result<()> {
    let Some(agent) = &office.agent else { return Err(Error::new(Reason::ServerUnreachable, "the server is away")) };
    if local.symlink_metadata().is_ok() && !args.overwrite {
        return Err(Error::new(Reason::EntryExists, format!("{} is here already", local.display()))
            .why_is("the server is away, so it cannot be told whether it differs")
            .fix_is("name another place, or replace it with --overwrite"));
    }
    let header = through_cache(agent, source, local).await?;
    if header.maybe_stale {
        c.out
            .warn(&format!("the server is away; {source} is version {} from the cache and may be old", header.version));
    }
    Ok(())
}

/// A temporary file beside where the content will be, so that it can be renamed into place.
pub fn temporary(directory: &Path) -> Result<NamedTempFile> {
    NamedTempFile::with_prefix_in(".atrium-part-", directory).map_err(|e| cannot_write(directory, e))
}

/// Gives a finished file its attributes and its name.
fn place(file: NamedTempFile, local: &Path, entry: &v1::Entry) -> Result<()> {
    let mode = if entry.mode == 0 { 0o644 } else { entry.mode & 0o777 };
    let done = || -> std::io::Result<()> {
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        if let Some(time) = modified(entry) {
            file.as_file().set_modified(time)?;
        }
        Ok(())
    };
    done().map_err(|e| cannot_write(local, e))?;
    file.persist(local).map_err(|e| cannot_write(local, e.error))?;
    Ok(())
}

fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    let shell = Error::from(std::io::Error::from(error.kind()));
    let reason = if shell.is(Reason::DiskFull) { Reason::DiskFull } else { Reason::IoFailed };
    Error::new(reason, format!("{} cannot be written", path.display()))
        .why_is(error.to_string())
        .fix_is("check the rights of the directory and the free space, or name another place")
        .caused_by(error)
}

pub async fn cat(c: &Context, args: Cat) -> Result<Exit> {
    let mut connected = None;
    for path in &args.paths {
        let path = match path {
            AnyPath::Server(path) => path,
            AnyPath::Peers(address) => {
                peers::fetch::cat(c, &c.peer()?, address).await?;
                continue;
            }
        };
        let office = match &connected {
            Some(office) => office,
            None => connected.insert(c.office().await?),
        };
        let mut written = false;
        let mut sink = |data: bytes::Bytes| {
            written |= !data.is_empty();
            c.out.raw(&data)
        };
        let version = args.version_number.unwrap_or(0);
        let agent = office.agent.as_ref().filter(|_| version == 0 && !args.no_cache);
        if let Some(agent) = agent
            && small(office, &path.path).await?
        {
            match cached::fetch(agent, &path.path, &mut sink).await {
                Ok(header) => {
                    if header.maybe_stale {
                        let version = header.version;
                        c.out.warn(&format!(
                            "the server is away; {path} is version {version} from the cache and may be old"
                        ));
                    }
                    continue;
                }
                // What has been written cannot be taken back, so only an untouched output is tried again.
                Err(error) if worth_asking_the_server(&error) && !written => {}
                Err(error) => return Err(error),
            }
        }
        transfer::stream(office, &path.path, version, |data| c.out.raw(data)).await?;
    }
    Ok(Exit::Ok)
}

/// Whether the cache is the way: small files, and all if the server cannot be asked.
async fn small(office: &Office, path: &EntryPath) -> Result<bool> {
    match places::entry(office, path).await {
        Ok(entry) if places::is_directory(&entry) => {
            Err(Error::new(Reason::IsADirectory, format!("{path} is a directory")).fix_is(format!("atrium ls {path}")))
        }
        Ok(entry) => Ok(entry.size_bytes <= CACHED_MAX),
        Err(error) if away(&error) => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divided(paths: &[&str]) -> Option<(Vec<String>, String)> {
        let paths: Vec<String> = paths.iter().map(|p| (*p).to_owned()).collect();
        let (sources, destination) = divide(&paths).ok()?;
        Some((sources.iter().map(ToString::to_string).collect(), destination.display().to_string()))
    }

    #[test]
    fn the_last_place_is_here_unless_it_is_on_the_server() {
        assert_eq!(divided(&["home:a"]).unwrap(), (vec!["home:a".to_owned()], ".".to_owned()));
        assert_eq!(divided(&["home:a", "b"]).unwrap().1, "b");
        assert_eq!(divided(&["home:a", "public:p/b"]).unwrap().0.len(), 2);
        assert!(divided(&["a"]).is_none());
        assert!(divided(&["a", "home:b"]).is_none());
    }

    #[test]
    fn finished_files_have_their_attributes_and_unfinished_ones_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let local = dir.path().join("a");
        let mut file = temporary(dir.path()).unwrap();
        file.write_all(b"1").unwrap();
        let time = prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5 };
        let entry = v1::Entry { mode: 0o4750, modify_time: Some(time), ..v1::Entry::default() };
        place(file, &local, &entry).unwrap();
        let metadata = local.metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o750, "special bits are not taken over");
        assert_eq!(metadata.modified().unwrap(), modified(&entry).unwrap());
        drop(temporary(dir.path()).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
