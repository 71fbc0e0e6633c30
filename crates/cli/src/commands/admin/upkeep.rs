//! `admin backup`, `restore`, `scrub`, `reclaim`, `status`.

use super::{Context, call};
use crate::connect::Office;
use crate::exit::Exit;
use crate::output::format::{bytes, count, minute, rfc3339, safe};
use crate::output::schema::{Backup, Problem, Reclaim, Scrub, ServerStatus};
use crate::output::usage;
use crate::progress::{Counts, Meter};
use common::error::{Error, Reason, Result};
use common::status::from_status;
use proto::v1;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

/// The server's program, which restores backups.
const SERVER_PROGRAM: &str = "central-server";
/// Most damaged chunks and files that are shown.
const DAMAGE_MAX: usize = 100_000;

pub(super) async fn backup(c: &Context, office: &Office, directory: &Path) -> Result<Exit> {
    let text = directory.to_str().filter(|_| directory.is_absolute()).ok_or_else(|| {
        usage(
            "the backup's directory must be an absolute path in UTF-8",
            "write it from the root, like /srv/backup/atrium",
        )
    })?;
    let mut stream = call(office.admin().backup(v1::BackupRequest { directory: text.to_owned() })).await?;
    let meter = Meter::new(&c.out, "backup");
    let mut last = v1::BackupResponse::default();
    while let Some(progress) = stream.message().await.map_err(|s| from_status(&s))? {
        meter.set(Counts { done_bytes: progress.copied_bytes, total_bytes: progress.total_bytes, ..Counts::default() });
        last = progress;
    }
    meter.finish();
    ended(last.done)?;
    let report = Backup {
        directory: text.to_owned(),
        copied_bytes: last.copied_bytes,
        total_bytes: last.total_bytes,
        revision: last.revision,
    };
    c.out.changed(&report, |r| {
        format!(
            "backed up revision {} to {}: {} copied of {}",
            r.revision,
            r.directory,
            bytes(r.copied_bytes),
            bytes(r.total_bytes)
        )
    })?;
    Ok(Exit::Ok)
}

/// A stream that ends without its last message did not do what it should.
fn ended(done: bool) -> Result<()> {
    if done {
        return Ok(());
    }
    Err(Error::new(Reason::ShuttingDown, "the server ended before it was done"))
}

/// Runs the server's own `restore`: this process becomes it.
pub(super) fn restore(c: &Context, from: &Path, to: &Path, arguments: &[String]) -> Result<Exit> {
    if !from.is_dir() {
        return Err(Error::new(Reason::EntryUnknown, format!("{} is not a directory", from.display()))
            .why_is("a backup is a directory of this machine")
            .fix_is("name the directory that was given to `atrium admin backup`"));
    }
    let Some(program) = find_server_program() else {
        return Err(Error::new(Reason::EntryUnknown, format!("{SERVER_PROGRAM} is not installed here"))
            .why_is("a backup is restored on the server machine, while the server is stopped, by the server's program")
            .fix_is(format!("on that machine, run: {SERVER_PROGRAM} restore {} {}", from.display(), to.display())));
    };
    c.out.note(&format!("running {} restore {} {}", program.display(), from.display(), to.display()));
    let error = std::process::Command::new(&program).arg("restore").arg(from).arg(to).args(arguments).exec();
    Err(Error::new(Reason::IoFailed, format!("{} cannot be run", program.display()))
        .why_is(error.to_string())
        .fix_is("check the file's rights")
        .caused_by(error))
}

/// Beside this program, or in PATH.
fn find_server_program() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|p| Some(p.parent()?.join(SERVER_PROGRAM)));
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = beside.into_iter().chain(std::env::split_paths(&in_path).map(|d| d.join(SERVER_PROGRAM)));
    candidates.find(|p| p.is_file())
}

pub(super) async fn scrub(c: &Context, office: &Office, rate: u64) -> Result<Exit> {
    let mut stream = call(office.admin().scrub(v1::ScrubRequest { rate_bytes_per_second: rate })).await?;
    let meter = Meter::new(&c.out, "scrub");
    let mut report = Scrub { chunk_count: 0, read_bytes: 0, damaged: Vec::new(), damaged_files: Vec::new() };
    let mut done = false;
    while let Some(progress) = stream.message().await.map_err(|s| from_status(&s))? {
        meter.set(Counts { done_bytes: progress.read_bytes, total_bytes: progress.total_bytes, ..Counts::default() });
        (report.chunk_count, report.read_bytes) = (progress.chunk_count, progress.read_bytes);
        collect(&mut report.damaged, progress.damaged);
        collect(&mut report.damaged_files, progress.damaged_files);
        done |= progress.done;
    }
    meter.finish();
    ended(done)?;
    let read = format!("read {} in {}", bytes(report.read_bytes), count(report.chunk_count, "chunk", "chunks"));
    c.out.object(&report, |r| {
        let files: Vec<String> = r.damaged_files.iter().map(|f| format!("\n  damaged: {}", safe(f))).collect();
        if r.damaged.is_empty() { format!("{read}, all intact") } else { format!("{read}{}", files.join("")) }
    })?;
    if report.damaged.is_empty() {
        return Ok(Exit::Ok);
    }
    let damaged = count(report.damaged.len() as u64, "chunk is", "chunks are");
    Err(Error::new(Reason::ChunkDamaged, format!("{damaged} damaged")))
}

/// Both messages that repeat what was said before and those that only add are understood.
fn collect(all: &mut Vec<String>, new: Vec<String>) {
    for item in new {
        if all.len() < DAMAGE_MAX && !all.contains(&item) {
            all.push(item);
        }
    }
}

pub(super) async fn reclaim(c: &Context, office: &Office) -> Result<Exit> {
    let answer = call(office.admin().reclaim_space(v1::ReclaimSpaceRequest {})).await?;
    let report = Reclaim {
        candidate_count: answer.candidate_count,
        removed_count: answer.removed_count,
        freed_bytes: answer.freed_bytes,
    };
    c.out.changed(&report, |r| {
        let removed = count(r.removed_count, "chunk", "chunks");
        format!("freed {}: {removed} removed, {} wait for the next pass", bytes(r.freed_bytes), r.candidate_count)
    })?;
    Ok(Exit::Ok)
}

pub(super) async fn status(c: &Context, office: &Office) -> Result<Exit> {
    let s = call(office.admin().get_status(v1::GetStatusRequest {})).await?;
    let status = ServerStatus {
        healthy: s.healthy && s.problems.is_empty(),
        user_count: s.user_count,
        device_count: s.device_count,
        connected_count: s.connected_count,
        entry_count: s.entry_count,
        used_bytes: s.used_bytes,
        stored_bytes: s.stored_bytes,
        disk_free_bytes: s.disk_free_bytes,
        revision: s.revision,
        engine: s.engine,
        start_time: rfc3339(s.start_time.as_ref()),
        snapshot_time: rfc3339(s.snapshot_time.as_ref()),
        problems: s.problems.into_iter().map(Problem::from).collect(),
    };
    c.out.object(&status, |s| {
        let mut lines = Vec::new();
        for p in &s.problems {
            lines.push(c.out.paint(&format!("! {}", safe(&p.message)), "31;1"));
            lines.push(format!("  why: {}\n  fix: {}", safe(&p.why), safe(&p.fix)));
        }
        if s.healthy {
            lines.push(c.out.paint("all is well", "32;1"));
        }
        lines.push(format!("people    {}", s.user_count));
        lines.push(format!("machines  {} ({} connected)", s.device_count, s.connected_count));
        lines.push(format!("entries   {}, {} in files", s.entry_count, bytes(s.used_bytes)));
        lines.push(format!("on disk   {}, {} free", bytes(s.stored_bytes), bytes(s.disk_free_bytes)));
        lines.push(format!("store     {}, revision {}", safe(&s.engine), s.revision));
        let (up, snapshot) = (minute(s.start_time.as_deref()), minute(s.snapshot_time.as_deref()));
        lines.push(format!("since     {up}, newest snapshot {snapshot}"));
        lines.join("\n")
    })?;
    Ok(if status.healthy { Exit::Ok } else { Exit::Degraded })
}
