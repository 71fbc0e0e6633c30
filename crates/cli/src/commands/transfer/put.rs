//! `put`.

use super::cached::{self, Expectation};
use super::sources::{Expanded, Source, Sources, Spool, name_of};
use crate::args::Put;
use crate::bytes::{self as transfer, Expect, PutTreeOptions, TreeSummary, Upload};
use crate::commands::{Context, places};
use crate::connect::{Agent, Office};
use crate::exit::Exit;
use crate::output::format::{bytes, count, duration};
use crate::output::schema::{Failure, FileFailure, Transfer};
use crate::output::usage;
use crate::progress::Meter;
use common::error::{Error, Reason, Result};
use common::model::{EntryName, EntryPath};
use common::retry::RetryPolicy;
use proto::v1;
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

/// With the server away, more files than this are not handed to the agent one by one.
const QUEUE_FILES_MAX: usize = 1000;

pub async fn put(c: &Context, args: Put) -> Result<Exit> {
    let spool = match stdin_target(&args)? {
        true => Some(run_blocking(Spool::of_stdin).await?),
        false => None,
    };
    let spooled = spool.as_ref().map(Spool::path);
    if args.queue {
        let agent = c.agent().await?;
        let sources = gather(&args, spooled.as_deref(), |names| into(&args, names))?;
        return queue_all(c, &agent, sources, expectation(&args)).await;
    }
    let office = c.office().await?;
    let names = names(&args)?;
    let resolved = match places::destinations(&office, &names, &args.destination).await {
        Ok(_) if names_the_tree(&args) => Ok(vec![args.destination.path.clone()]),
        Ok(targets) => Ok(targets),
        Err(error) if server_is_away(&error) && may_queue(&office, &args) => into(&args, &names),
        Err(error) => Err(error),
    };
    let targets = resolved?;
    let sources = gather(&args, spooled.as_deref(), |_| Ok(targets.clone()))?;
    if args.dry_run {
        return dry_run(c, &office, &sources).await;
    }
    match upload(c, &office, &args, &sources).await {
        Err(error) if server_is_away(&error) && may_queue(&office, &args) => {
            c.out.note(&format!("{}; handing it to the agent", error.message()));
            let Some(agent) = &office.agent else { return Err(error) };
            queue_all(c, agent, sources, expectation(&args)).await
        }
        other => other,
    }
}

/// Whether standard input is what shall be put.
fn stdin_target(args: &Put) -> Result<bool> {
    let dash = args.sources.iter().any(|s| s == Path::new("-"));
    if dash && (args.sources.len() > 1 || args.destination.into) {
        return Err(usage(
            "standard input has no name",
            "name the file on the server: `atrium put - home:notes/a.txt`",
        ));
    }
    Ok(dash)
}

async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("a thread ended").caused_by(e))?
}

/// A single directory that is put as a named place: the place is the directory itself, so that the same command again
/// goes on there instead of making a copy in it.
fn names_the_tree(args: &Put) -> bool {
    !args.destination.into && matches!(args.sources.as_slice(), [only] if only.is_dir())
}

fn names(args: &Put) -> Result<Vec<EntryName>> {
    if args.sources.iter().any(|s| s == Path::new("-")) {
        return Ok(vec![places::name_of(&args.destination.path)?]);
    }
    args.sources.iter().map(|s| name_of(s)).collect()
}

/// Where each source goes if the server cannot be asked.
fn into(args: &Put, names: &[EntryName]) -> Result<Vec<EntryPath>> {
    if args.destination.into {
        return Ok(names.iter().map(|n| args.destination.path.child(n.clone())).collect());
    }
    match names {
        [_] => Ok(vec![args.destination.path.clone()]),
        _ => Err(usage("several files cannot all go to one name", "end the place with a '/' if it is a directory")),
    }
}

fn gather(
    args: &Put,
    spooled: Option<&Path>,
    targets: impl FnOnce(&[EntryName]) -> Result<Vec<EntryPath>>,
) -> Result<Sources> {
    let targets = targets(&names(args)?)?;
    let mut sources = Sources::default();
    for (source, target) in args.sources.iter().zip(targets) {
        sources.add(spooled.unwrap_or(source), target)?;
    }
    if let (Some(_), Some(only)) = (spooled, sources.named.first_mut()) {
        // The rights of the temporary file mean nothing.
        only.mode = 0o644;
    }
    if args.if_version.is_some() && (sources.named.len() != 1 || !sources.trees.is_empty()) {
        return Err(usage("--if-version is for one file", "put the files one by one"));
    }
    Ok(sources)
}

fn server_is_away(error: &Error) -> bool {
    error.is(Reason::ServerUnreachable) || error.is(Reason::ShuttingDown)
}

fn may_queue(office: &Office, args: &Put) -> bool {
    office.agent.is_some() && !args.no_queue && !args.dry_run
}

fn expectation(args: &Put) -> Expectation {
    Expectation { absent: args.no_overwrite, version: args.if_version.unwrap_or(0) }
}

async fn dry_run(c: &Context, office: &Office, sources: &Sources) -> Result<Exit> {
    let sources = &sources.expand()?;
    let known = existing(office, sources).await?;
    let mut report = empty("put", true);
    for source in &sources.files {
        if known.get(&source.target).is_some_and(|e| looks_the_same(e, source)) {
            report.unchanged_files += 1;
            continue;
        }
        report.files += 1;
        report.total_bytes += source.size;
        if !c.out.json {
            c.out.line(&format!(
                "would put {} to {} ({})",
                source.local.display(),
                source.target,
                bytes(source.size)
            ))?;
        }
    }
    report.skipped.clone_from(&sources.skipped);
    c.out.object(&report, |r| {
        let (files, same) = (count(r.files, "file", "files"), r.unchanged_files);
        format!("{files} with {} would be put, {same} are there already; nothing was done", bytes(r.total_bytes))
    })?;
    Ok(Exit::Ok)
}

/// A report with nothing in it.
pub fn empty(action: &str, dry_run: bool) -> Transfer {
    Transfer {
        action: action.to_owned(),
        files: 0,
        total_bytes: 0,
        moved_bytes: 0,
        unchanged_files: 0,
        skipped: Vec::new(),
        failed: Vec::new(),
        queued_files: 0,
        elapsed_ms: 0,
        dry_run,
    }
}

/// Entries that are at the targets already: one by one for named files, by listing for trees.
async fn existing(office: &Office, sources: &Expanded) -> Result<HashMap<EntryPath, v1::Entry>> {
    let mut known = HashMap::new();
    for source in &sources.files[..sources.named] {
        if let Some(entry) = places::find(office, &source.target).await? {
            known.insert(source.target.clone(), entry);
        }
    }
    for directory in &sources.directories {
        let mut token = String::new();
        loop {
            match places::page(office, directory, token).await {
                Ok(page) => {
                    for entry in page.entries {
                        known.insert(places::child(directory, &entry)?, entry);
                    }
                    token = page.next_page_token;
                }
                Err(error) if error.is(Reason::EntryUnknown) || error.is(Reason::NotADirectory) => break,
                Err(error) => return Err(error),
            }
            if token.is_empty() {
                break;
            }
        }
    }
    Ok(known)
}

/// Same size and modification time: taken for the same content, as rsync does.
fn looks_the_same(entry: &v1::Entry, source: &Source) -> bool {
    let theirs = entry.modify_time.as_ref().map(|t| (t.seconds, t.nanos));
    let ours = source.modified.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    let ours =
        ours.map(|d| (i64::try_from(d.as_secs()).unwrap_or(i64::MAX), i32::try_from(d.subsec_nanos()).unwrap_or(0)));
    !places::is_directory(entry) && entry.size_bytes == source.size && theirs.is_some() && theirs == ours
}

/// Puts everything. With the server away at the very beginning, nothing has been done when this fails.
async fn upload(c: &Context, office: &Office, args: &Put, sources: &Sources) -> Result<Exit> {
    if may_queue(office, args) {
        // With the server away from the start, the agent takes the files at once. A server that goes away later is
        // waited for as long as people wait.
        office.connection.check().await?;
    }
    let meter = Meter::new(&c.out, "put");
    let mut report = empty("put", false);
    let expect = match (args.no_overwrite, args.if_version) {
        (true, _) => Expect::Absent,
        (false, Some(version)) => Expect::Version(version),
        (false, None) => Expect::Any,
    };
    // Files that were named themselves; those below directories go with their tree.
    let uploads: Vec<Upload> = sources
        .named
        .iter()
        .map(|source| Upload {
            source: source.local.clone(),
            target: source.target.clone(),
            expect,
            make_parents: args.parents,
            mode: Some(source.mode),
            retry: RetryPolicy::INTERACTIVE,
        })
        .collect();
    for (_, target) in &sources.trees {
        parent_exists(office, args, target).await?;
    }
    let mut results = transfer::upload(office, &uploads, &meter).await;
    let nothing_done = results.iter().all(|r| r.as_ref().is_err_and(server_is_away));
    if nothing_done
        && sources.trees.is_empty()
        && let Some(Err(error)) = results.pop()
    {
        return Err(error);
    }
    for (upload, result) in uploads.iter().zip(results) {
        match result {
            Ok(entry) => {
                report.files += 1;
                report.total_bytes += entry.size_bytes;
            }
            Err(error) => report.failed.push(failure(&upload.target, &with_hint(error, args))),
        }
    }
    for (local, target) in &sources.trees {
        let options = PutTreeOptions { expect, retry: RetryPolicy::INTERACTIVE, ..PutTreeOptions::default() };
        match transfer::upload_tree(office, local, target, &options, &meter).await {
            Ok(TreeSummary { files: 0, unchanged: 0, stopped: Some(error), .. })
                if report.files == 0 && sources.trees.len() == 1 =>
            {
                return Err(error);
            }
            Ok(tree) => add_tree(&mut report, &target.to_string(), tree),
            Err(error) if report.files == 0 && sources.trees.len() == 1 => return Err(error),
            Err(error) => report.failed.push(failure(target, &error)),
        }
    }
    meter.finish();
    report.moved_bytes = meter.moved_bytes();
    report.elapsed_ms = u64::try_from(meter.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut shown: Vec<String> = uploads.iter().map(|u| u.target.to_string()).collect();
    shown.extend(sources.trees.iter().map(|(_, target)| target.to_string()));
    finish(c, report, &shown)
}

/// A mistyped parent is a mistake, not a wish: trees are put into directories that are there, unless --parents is given.
async fn parent_exists(office: &Office, args: &Put, target: &EntryPath) -> Result<()> {
    match target.parent() {
        Some(parent) if !args.parents && !parent.segments.is_empty() => {
            places::entry(office, &parent).await.map(|_| ()).map_err(|e| with_hint(e, args))
        }
        _ => Ok(()),
    }
}

fn with_hint(error: Error, args: &Put) -> Error {
    if error.is(Reason::EntryUnknown) && !args.parents {
        return error.fix_is("make missing directories as well: add --parents");
    }
    error
}

/// Adds what became of a tree at `top`.
pub fn add_tree(report: &mut Transfer, top: &str, tree: TreeSummary) {
    let at = |path: &str| match path {
        "" => top.to_owned(),
        path if top.ends_with([':', '/']) => format!("{top}{path}"),
        path => format!("{top}/{path}"),
    };
    report.files += tree.files;
    report.unchanged_files += tree.unchanged;
    report.total_bytes += tree.bytes;
    report.skipped.extend(tree.skipped.iter().map(|(path, why)| format!("{}: {why}", at(path))));
    report.failed.extend(tree.failed.iter().map(|f| failure(at(&f.path), &f.error)));
    report.failed.extend(tree.stopped.iter().map(|error| failure(top, error)));
}

pub fn failure(path: impl ToString, error: &Error) -> FileFailure {
    FileFailure { path: path.to_string(), error: Failure::of(error) }
}

/// Tells the result and gives the exit code: all well, partly, or the code of the only failure.
pub fn finish(c: &Context, report: Transfer, targets: &[String]) -> Result<Exit> {
    for skipped in &report.skipped {
        c.out.note(&format!("passed over {skipped}"));
    }
    let exit = match report.failed.as_slice() {
        [] => Exit::Ok,
        failed if report.files + report.unchanged_files > 0 || failed.len() > 1 => Exit::Partly,
        [only] => exit_of(only),
        _ => Exit::Failed,
    };
    report.failed.iter().for_each(|f| c.out.file_failure(f));
    let only = targets.first().filter(|_| targets.len() == 1);
    if c.out.json || report.failed.is_empty() || report.files + report.unchanged_files > 0 {
        c.out.changed(&report, |r| summary(r, only.map(String::as_str)))?;
    }
    let all_failed = report.files + report.unchanged_files == 0 && report.failed.len() > 1;
    Ok(if all_failed { Exit::Failed } else { exit })
}

fn exit_of(failure: &FileFailure) -> Exit {
    let code = u8::try_from(failure.error.exit_code).unwrap_or(1);
    Exit::ALL.iter().map(|(e, _)| *e).find(|e| e.code() == code).unwrap_or(Exit::Failed)
}

fn summary(r: &Transfer, only: Option<&str>) -> String {
    let done = if r.action == "get" { "got" } else { "put" };
    let elapsed = Duration::from_millis(r.elapsed_ms);
    let what = match (r.files, only) {
        (1, Some(only)) => only.to_owned(),
        _ => count(r.files, "file", "files"),
    };
    let mut text = format!("{done} {what} ({} in {}", bytes(r.total_bytes), duration(elapsed));
    if r.moved_bytes < r.total_bytes {
        text.push_str(&format!(", {} moved", bytes(r.moved_bytes)));
    }
    text.push(')');
    if r.unchanged_files > 0 {
        text.push_str(&format!(", {} unchanged", r.unchanged_files));
    }
    if !r.failed.is_empty() {
        text.push_str(&format!(", {} failed", r.failed.len()));
    }
    text
}

async fn queue_all(c: &Context, agent: &Agent, sources: Sources, expect: Expectation) -> Result<Exit> {
    let sources = sources.expand()?;
    if sources.files.len() > QUEUE_FILES_MAX {
        return Err(Error::new(
            Reason::QueueFull,
            format!("{} files are too many to be put later", sources.files.len()),
        )
        .why_is(format!("at most {QUEUE_FILES_MAX} files are handed to the agent at a time"))
        .fix_is("put them when the server is back, or in smaller parts"));
    }
    let mut report = empty("put", false);
    report.skipped.clone_from(&sources.skipped);
    for source in &sources.files {
        let id = cached::queue(agent, source, expect).await?;
        report.queued_files += 1;
        report.total_bytes += source.size;
        c.out.note(&format!("{} waits in the agent as {id}", source.target));
    }
    for skipped in &report.skipped {
        c.out.note(&format!("passed over {skipped}"));
    }
    c.out.changed(&report, |r| {
        let files = count(r.queued_files, "file", "files");
        format!("handed {files} with {} to the agent, which puts them when it can", bytes(r.total_bytes))
    })?;
    c.out.hint("atrium queue");
    Ok(Exit::Ok)
}
