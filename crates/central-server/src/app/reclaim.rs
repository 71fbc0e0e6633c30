//! Freeing the space of content that nothing refers to, and checking the content that is there.
//!
//! Metadata says what is needed ([`super::references`]); the chunk store removes the rest by its epoch rules. A chunk that
//! is referred to and not there is data loss and is reported by the file it belongs to.

use super::admin::Problem;
use super::{App, records, references, versions};
use bytes::Bytes;
use common::chunk::{ReclaimReport, ScrubProgress, ScrubReport};
use common::error::{Error, Reason, Result};
use common::model::{ChunkId, ChunkRef};
use common::store::prefix_end;
use proto::record::v1 as record;
use std::collections::HashSet;
use std::ops::ControlFlow;

/// The part under which [`super::admin::Health`] knows lost and damaged content.
pub const PART: &str = "content";
const PAGE: usize = 1_000;
/// Files that are named when content is damaged.
pub const FILES_NAMED: usize = 1_000;

/// One pass. Two passes with nothing between remove everything that nothing refers to.
///
/// # Errors
/// `OVERLOADED` if a pass is running already; those of the stores. Nothing is removed after an error in the marking.
pub async fn pass(app: &App) -> Result<ReclaimReport> {
    let marking = app.clone();
    let report = app.chunks.reclaim(move |mark| references::for_each(&marking, mark)).await?;
    if report.missing > 0 {
        let problem = Problem::new(Reason::ChunkDamaged, format!("{} pieces of content are missing", report.missing));
        app.health.report(PART, Some(problem));
        for id in report.missing_ids.iter().take(10) {
            tracing::error!(chunk = %id, "missing content");
        }
    }
    tracing::info!(
        epoch = report.epoch,
        removed = report.removed_chunks,
        freed_bytes = report.freed_bytes,
        "space reclaimed"
    );
    Ok(report)
}

/// Reads all content and compares it with its digests. Blocks. `progress` is told every few MiB and says whether to go on.
///
/// # Errors
/// `IO_FAILED` if something else than a bad medium keeps it from reading.
pub fn scrub(
    app: &App,
    bytes_per_second: u64,
    progress: impl FnMut(&ScrubProgress) -> ControlFlow<()>,
) -> Result<ScrubReport> {
    let report = app.chunks.scrub(bytes_per_second, progress)?;
    if report.complete {
        let damaged = report.damaged.len();
        let problem = (damaged > 0)
            .then(|| Problem::new(Reason::ChunkDamaged, format!("{damaged} stored pieces of content are damaged")));
        app.health.report(PART, problem);
    }
    Ok(report)
}

/// Files whose content these chunks belong to, as text for an administrator: at most [`FILES_NAMED`]. Blocks: reads all
/// metadata of files.
///
/// # Errors
/// Those of the store.
pub fn files_hit(app: &App, damaged: &[ChunkId]) -> Result<Vec<String>> {
    let damaged: HashSet<ChunkId> = damaged.iter().copied().collect();
    let mut hit = Vec::new();
    if damaged.is_empty() {
        return Ok(hit);
    }
    for prefix in [b"f/", b"t/", b"v/"] {
        let mut from = prefix.to_vec();
        let to = prefix_end(prefix);
        loop {
            let page = app.store.range(&from, &to, PAGE)?;
            let full = page.len() == PAGE;
            for (key, value) in page {
                from = key.to_vec();
                from.push(0);
                let (content, name) = match prefix {
                    b"f/" => {
                        let entry = records::decode::<record::Entry>(value)?;
                        (entry.content, Name::At(key.slice(2..), entry.name))
                    }
                    b"t/" => {
                        let trash = records::decode::<record::Trash>(value)?;
                        (trash.entry.and_then(|e| e.content), Name::Text(format!("{} (in the trash)", trash.path)))
                    }
                    _ => {
                        let version = records::decode::<record::Version>(value)?;
                        let file = key.get(2..18).and_then(|uid| uuid::Uuid::from_slice(uid).ok()).unwrap_or_default();
                        (version.content, Name::Text(format!("version {} of file {file}", version.version)))
                    }
                };
                if let Some(content) = content
                    && refers_to(app, &content, &damaged)?
                {
                    hit.push(name.text(app)?);
                    if hit.len() == FILES_NAMED {
                        return Ok(hit);
                    }
                }
            }
            if !full {
                break;
            }
        }
    }
    Ok(hit)
}

/// How a file is named to an administrator.
enum Name {
    /// In the directory whose id the key begins with, under this name.
    At(Bytes, String),
    /// As it is.
    Text(String),
}

/// Directories above a file that are named; a deeper path begins with "…".
const DEPTH: usize = 256;

impl Name {
    fn text(self, app: &App) -> Result<String> {
        let (key, name) = match self {
            Name::Text(text) => return Ok(text),
            Name::At(key, name) => (key, name),
        };
        let mut names = vec![name];
        let mut directory = key.get(..16).unwrap_or_default().to_vec();
        for _ in 0..DEPTH {
            let above = app.store.get(&[b"p/", &directory[..]].concat())?;
            let Some(above) = above.map(records::decode::<record::Parent>).transpose()? else {
                names.push(root_name(app, &directory)?);
                names.reverse();
                return Ok(names.join("/"));
            };
            names.push(above.name);
            directory = above.parent.to_vec();
        }
        names.push("…".into());
        names.reverse();
        Ok(names.join("/"))
    }
}

/// Name of the private or public directory with this id, "home/anna".
fn root_name(app: &App, uid: &[u8]) -> Result<String> {
    let (mut from, to) = (b"s/".to_vec(), prefix_end(b"s/"));
    loop {
        let page = app.store.range(&from, &to, PAGE)?;
        let Some((last, _)) = page.last() else { return Ok("(unknown)".into()) };
        from = last.to_vec();
        from.push(0);
        for (_, value) in page {
            let root = records::decode::<record::Root>(value)?;
            if root.uid == uid {
                return Ok(root.name);
            }
        }
    }
}

fn refers_to(app: &App, content: &record::Content, damaged: &HashSet<ChunkId>) -> Result<bool> {
    let broken = || Error::new(Reason::StoreCorrupt, "a manifest is damaged");
    if content.manifest_chunks.is_empty() {
        let chunks = ChunkRef::decode_all(&content.inline_chunks).ok_or_else(broken)?;
        return Ok(chunks.iter().any(|c| damaged.contains(&c.id)));
    }
    for id in &content.manifest_chunks {
        if damaged.contains(&ChunkId::from_slice(id).ok_or_else(broken)?) {
            return Ok(true);
        }
        if versions::manifest_chunk(&app.chunks, id)?.iter().any(|c| damaged.contains(&c.id)) {
            return Ok(true);
        }
    }
    Ok(false)
}
