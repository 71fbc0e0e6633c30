//! Which chunks are referenced: all manifests in the metadata.
//!
//! Content is named by entries (`f/`), old versions (`v/`) and the trash (`t/`). A search reads these ranges piece by piece
//! while writers go on, so a record could move from a place that is still to be read to one that was read already: a file
//! that is renamed, overwritten, deleted, restored or copied. Every transaction that moves content to another key
//! therefore notes it in [`Relocations`] while a search is under way, and the search counts what was noted as found.
//! Content that is new meanwhile is protected by the chunk store's commit guard.
//!
//! At the bound of noted content the search fails; nothing is reclaimed then, and the next search begins anew.

use super::versions;
use super::{App, records};
use common::chunk::ChunkStore;
use common::error::{Error, Reason, Result};
use common::model::{ChunkId, ChunkRef};
use common::store::prefix_end;
use parking_lot::Mutex;
use proto::record::v1 as record;

/// Most content that is noted during one search.
const MAX_NOTED: usize = 200_000;
const PAGE: usize = 1_000;

/// Content whose record moved during a search.
#[derive(Debug, Default)]
pub struct Relocations(Mutex<Option<Vec<record::Content>>>);

impl Relocations {
    /// Notes content that moves. Does nothing unless a search is under way.
    pub fn note(&self, content: &record::Content) {
        if let Some(noted) = &mut *self.0.lock()
            && noted.len() <= MAX_NOTED
        {
            noted.push(content.clone());
        }
    }
}

/// Ends noting when the search ends, however it ends.
struct Search<'a>(&'a Relocations);

impl<'a> Search<'a> {
    fn begin(relocations: &'a Relocations) -> Result<Self> {
        let mut noted = relocations.0.lock();
        if noted.is_some() {
            return Err(Error::new(Reason::Overloaded, "a search for references is under way already"));
        }
        *noted = Some(Vec::new());
        drop(noted);
        Ok(Self(relocations))
    }
}

impl Drop for Search<'_> {
    fn drop(&mut self) {
        *self.0.0.lock() = None;
    }
}

/// Calls `mark` with every chunk that is referenced, manifest chunks included; with some more than once. Blocks: it reads
/// all metadata of files.
///
/// # Errors
/// `OVERLOADED` if another search is under way or too much moved meanwhile, `CHUNK_DAMAGED` if a manifest cannot be read.
/// After an error not all references are known: nothing may be reclaimed.
pub fn for_each(app: &App, mark: &mut dyn FnMut(ChunkId)) -> Result<()> {
    let search = Search::begin(&app.files.relocations)?;
    // Whoever ran before this is durable when it is answered, so the ranges below show it; whoever runs later notes.
    app.store.transact_blocking(|_| Ok(()))?;
    for prefix in [b"f/", b"t/", b"v/"] {
        let mut from = prefix.to_vec();
        let to = prefix_end(prefix);
        loop {
            let page = app.store.range(&from, &to, PAGE)?;
            let full = page.len() == PAGE;
            for (key, value) in page {
                from = key.to_vec();
                from.push(0);
                let content = match prefix {
                    b"f/" => records::decode::<record::Entry>(value)?.content,
                    b"t/" => records::decode::<record::Trash>(value)?.entry.and_then(|e| e.content),
                    _ => records::decode::<record::Version>(value)?.content,
                };
                if let Some(content) = content {
                    mark_content(&app.chunks, &content, mark)?;
                }
            }
            if !full {
                break;
            }
        }
    }
    let noted = search.0.0.lock().replace(Vec::new()).unwrap_or_default();
    if noted.len() > MAX_NOTED {
        return Err(Error::new(Reason::Overloaded, "too many files moved during the search for references"));
    }
    noted.iter().try_for_each(|content| mark_content(&app.chunks, content, mark))
}

fn mark_content(chunks: &ChunkStore, content: &record::Content, mark: &mut dyn FnMut(ChunkId)) -> Result<()> {
    if content.manifest_chunks.is_empty() {
        let inline = ChunkRef::decode_all(&content.inline_chunks);
        let inline = inline.ok_or_else(|| Error::new(Reason::StoreCorrupt, "a manifest is damaged"))?;
        inline.iter().for_each(|c| mark(c.id));
        return Ok(());
    }
    for id in &content.manifest_chunks {
        versions::manifest_chunk(chunks, id)?.iter().for_each(|c| mark(c.id));
        mark(ChunkId::from_slice(id).ok_or_else(|| Error::new(Reason::StoreCorrupt, "a manifest is damaged"))?);
    }
    Ok(())
}
