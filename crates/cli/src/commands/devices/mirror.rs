//! `space mirror`, `space restore` and `space mirrors`.

use super::{Context, call};
use crate::commands::peers::absolute_text;
use crate::exit::Exit;
use crate::output::format::{bytes, count, duration, minute, pad, safe};
use crate::output::schema::{Mirror, MirrorCopy};
use crate::progress::{Counts, Meter};
use common::error::Result;
use common::status::from_status;
use proto::peer::v1 as wire;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::Streaming;

/// How a second copy is wished for.
pub(super) struct Wish {
    pub size: Option<u64>,
    pub retention: Option<Duration>,
    pub next: Option<String>,
}

pub(super) async fn mirror(c: &Context, share: String, disk: String, wish: Wish) -> Result<Exit> {
    // The peer knows folders by their whole path, and names as they are.
    let as_path = share.contains('/') || Path::new(&share).is_dir();
    let request = wire::MirrorToRequest {
        share: if as_path { absolute_text(Path::new(&share))? } else { share.clone() },
        disk,
        size_bytes: wish.size.unwrap_or(0),
        retention_seconds: wish.retention.map_or(0, |t| t.as_secs()),
        next_disk: wish.next.unwrap_or_default(),
    };
    let meter = Meter::new(&c.out, "mirror");
    let stream = call(c.peer()?.local_devices().mirror_to(request)).await?;
    let copy = follow(stream, meter, "mirror", &share).await?;
    c.out.changed(&copy, |m| {
        let key = m.recovery_key.as_deref().unwrap_or_default();
        format!(
            "{}\n  recovery key: {key}\n  If this machine is lost, another one of yours reads the copy with it; keep it apart.",
            text(m, "has a second copy")
        )
    })?;
    Ok(Exit::Ok)
}

pub(super) async fn list(c: &Context) -> Result<Exit> {
    let answer = call(c.peer()?.local_devices().list_mirrors(wire::ListMirrorsRequest {})).await?;
    let mut list = c.out.list::<Mirror>(&[])?;
    let mut alone = false;
    for mirror in answer.mirrors {
        let mirror = Mirror::from(mirror);
        alone |= matches!(mirror.state.as_str(), "lost" | "home");
        list.item(&mirror, line)?;
    }
    if list.end("this machine keeps no second copies of its shares elsewhere")? == 0 {
        c.out.hint("atrium space mirror SHARE DISK");
    }
    // Nobody finds out only when the first copy is gone as well.
    Ok(if alone { Exit::Partly } else { Exit::Ok })
}

fn line(m: &Mirror) -> String {
    let place = if m.disk.is_empty() { "this machine only" } else { &m.disk };
    let proven = match &m.proven_time {
        Some(time) => format!("proven {} ({} of {})", minute(Some(time)), m.proven_count, m.part_count),
        None => "not proven yet".to_owned(),
    };
    let mut text = format!(
        "{}  {}  {}  {proven}, generation {}",
        pad(&safe(&m.share), 16),
        pad(&m.state, 7),
        pad(&safe(place), 28),
        m.generation
    );
    if m.repaired_count > 0 {
        let again = count(m.repaired_count, "part was", "parts were");
        text.push_str(&format!("; {again} sent again, last {}", minute(m.failed_time.as_deref())));
    }
    if let Some(p) = &m.problem {
        text.push_str(&format!("\n  {}\n    why: {}\n    fix: {}", safe(&p.message), safe(&p.why), safe(&p.fix)));
    }
    text
}

pub(super) async fn restore(
    c: &Context,
    share: String,
    to: &Path,
    generation: Option<u64>,
    recovery: Option<(PathBuf, String)>,
) -> Result<Exit> {
    let (recovery_key, disk) = match recovery {
        Some((file, disk)) => (std::fs::read_to_string(file)?.trim().to_owned(), disk),
        None => Default::default(),
    };
    let request = wire::RestoreMirrorRequest {
        recovery_key,
        disk,
        share: share.clone(),
        path: absolute_text(to)?,
        generation: generation.unwrap_or(0),
    };
    let meter = Meter::new(&c.out, "restore");
    let stream = call(c.peer()?.local_devices().restore_mirror(request)).await?;
    let copy = follow(stream, meter, "restore", &share).await?;
    c.out.changed(&copy, |m| text(m, &format!("is in {}", to.display())))?;
    Ok(Exit::Ok)
}

async fn follow(
    mut stream: Streaming<wire::MirrorProgress>,
    meter: Meter,
    action: &str,
    share: &str,
) -> Result<MirrorCopy> {
    let mut end = None;
    while let Some(now) = stream.message().await.map_err(|s| from_status(&s))? {
        meter.set(Counts { done_bytes: now.done_bytes, total_bytes: now.total_bytes, done_files: 0, total_files: 0 });
        if now.done {
            end = Some(now);
            break;
        }
    }
    meter.finish();
    let end = end.ok_or_else(|| {
        super::broke_off("the copy", "give the same command again; what is there already is not sent again")
    })?;
    Ok(MirrorCopy {
        action: action.to_owned(),
        share: share.to_owned(),
        file_count: end.file_count,
        total_bytes: end.total_bytes,
        present_bytes: end.present_bytes,
        generation: end.generation,
        recovery_key: (!end.recovery_key.is_empty()).then_some(end.recovery_key),
        left_out: end.left_out.into_iter().map(Into::into).collect(),
        elapsed_ms: u64::try_from(meter.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

fn text(m: &MirrorCopy, what: &str) -> String {
    let elapsed = duration(Duration::from_millis(m.elapsed_ms));
    let files = count(m.file_count, "file", "files");
    let present =
        if m.present_bytes > 0 { format!(", {} were there already", bytes(m.present_bytes)) } else { String::new() };
    let left: Vec<String> =
        m.left_out.iter().map(|p| format!("\n  left out: {}: {}", safe(&p.message), safe(&p.why))).collect();
    let left = left.concat();
    format!(
        "{} {what}: {files}, {} in {elapsed}{present} (generation {}){left}",
        safe(&m.share),
        bytes(m.total_bytes),
        m.generation
    )
}
