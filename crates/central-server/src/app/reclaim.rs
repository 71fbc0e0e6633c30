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

/// The part under which [`super::admin::Health`] knows passes that free space: why none is freed.
pub const PART_PASS: &str = "reclaim";
/// The part under which it knows damaged content, as scrubs and reads have found it.
pub const PART_CONTENT: &str = "content";
/// The part under which it knows content that files refer to and that is missing, as the last pass found it.
pub const PART_REFERENCES: &str = "references";
const PAGE: usize = 1_000;
/// Files that are named when content is damaged.
pub const FILES_NAMED: usize = 1_000;
/// Files that a problem names; the log has them all.
const NAMED_IN_PROBLEM: usize = 5;

/// One pass. Two passes with nothing between remove everything that nothing refers to. What it finds missing is a problem
/// of the server's health until a pass finds it mended.
///
/// # Errors
/// `OVERLOADED` if a pass is running already; `CHUNK_DAMAGED` if the list of a file's chunks cannot be read: what that file
/// needs is not known then, so no space is freed until it is mended; those of the stores. Nothing is removed after an error
/// in the marking.
pub async fn pass(app: &App) -> Result<ReclaimReport> {
    let marking = app.clone();
    let report = match app.chunks.reclaim(move |mark| references::for_each(&marking, mark)).await {
        Err(error) if error.is(Reason::ChunkDamaged) => {
            let outcome = Err(unreadable(app, error).await?);
            app.health.report_outcome(PART_PASS, &outcome);
            return outcome;
        }
        other => other?,
    };
    app.health.report(PART_PASS, None);
    look(app);
    for id in report.missing_ids.iter().take(10) {
        tracing::error!(chunk = %id, "missing content");
    }
    let missing = (report.missing > 0).then(|| {
        Problem::new(Reason::ChunkDamaged, format!("{} pieces of content that files need are missing", report.missing))
    });
    app.health.report(PART_REFERENCES, missing);
    tracing::info!(
        epoch = report.epoch,
        removed = report.removed_chunks,
        freed_bytes = report.freed_bytes,
        "space reclaimed"
    );
    Ok(report)
}

/// Says which files' lists of chunks cannot be read, and that no space is freed until they are mended.
async fn unreadable(app: &App, error: Error) -> Result<Error> {
    let looking = app.clone();
    let hit = tokio::task::spawn_blocking(move || unreadable_files(&looking)).await;
    let hit = hit.map_err(|e| Error::internal("looking for unreadable files").caused_by(e))??;
    for file in &hit {
        tracing::error!(%file, "the list of this file's chunks cannot be read");
    }
    let (named, more) = hit.split_at(hit.len().min(NAMED_IN_PROBLEM));
    let mut names = named.join(", ");
    if !more.is_empty() {
        names.push_str(&format!(" and {} more", more.len()));
    }
    Ok(Error::new(Reason::ChunkDamaged, format!("no space is freed, because {}: {names}", error.message()))
        .why_is("a list of chunks is damaged on disk or missing, so it is not known what its file needs")
        .fix_is("put these files again or restore them from a backup, or delete them for good; then run `atrium admin reclaim`")
        .caused_by(error))
}

/// Says how stored content is, as far as scrubs and reads have found: what was stored again is mended. Takes no time.
pub fn look(app: &App) {
    let damaged = app.chunks.stats().damaged_count;
    let problem = (damaged > 0)
        .then(|| Problem::new(Reason::ChunkDamaged, format!("{damaged} stored pieces of content are damaged")));
    app.health.report(PART_CONTENT, problem);
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
    look(app);
    Ok(report)
}

/// Files whose content these chunks belong to, as text for an administrator: at most [`FILES_NAMED`]. A file whose list of
/// chunks cannot be read is among them. Blocks: reads all metadata of files.
///
/// # Errors
/// Those of the store.
pub fn files_hit(app: &App, damaged: &[ChunkId]) -> Result<Vec<String>> {
    if damaged.is_empty() {
        return Ok(Vec::new());
    }
    let damaged: HashSet<ChunkId> = damaged.iter().copied().collect();
    files_where(app, |content| refers_to(app, content, &damaged))
}

/// Files whose list of chunks cannot be read, like [`files_hit`].
fn unreadable_files(app: &App) -> Result<Vec<String>> {
    files_where(app, |content| refers_to(app, content, &HashSet::new()))
}

fn files_where(app: &App, test: impl Fn(&record::Content) -> Result<bool>) -> Result<Vec<String>> {
    let mut hit = Vec::new();
    for prefix in [b"f/", b"t/", b"v/"] {
        let mut from = prefix.to_vec();
        let to = prefix_end(prefix);
        loop {
            let page = app.store.range(&from, &to, PAGE)?;
            let full = page.len() == PAGE;
            for (key, value) in page {
                from = key.to_vec();
                from.push(0);
                let (content, name) = named_content(prefix, &key, value)?;
                if let Some(content) = content
                    && test(&content)?
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

/// The content in a record of a file, of the trash or of an old version, and what it is called.
fn named_content(prefix: &[u8; 2], key: &Bytes, value: Bytes) -> Result<(Option<record::Content>, Name)> {
    Ok(match prefix {
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
    })
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

/// Whether a content needs one of these chunks, or cannot tell.
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
        match versions::manifest_chunk(&app.chunks, id) {
            Ok(chunks) if chunks.iter().any(|c| damaged.contains(&c.id)) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.is(Reason::ChunkDamaged) => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}
