//! Reading an index.

use common::error::{Error, Reason, Result};
use common::model::{ChunkId, ChunkRef};
use common::store::prefix_end;
use std::ops::ControlFlow;

use super::chunk_map::{ChunkMap, Spot};
use super::{
    IndexHandle, PAGE_CHUNKS, SPACE_ENTRY, SPACE_SEQUENCE, damaged, key, manifest_key, page_from, path_key, place,
    spots,
};
use crate::catalogue::entry::{Entry, EntryKind, INLINE_CHUNKS, Stored, check_content, join, prefix_of};
use crate::model::Content;

/// What takes the path and the stored form of an entry, until it breaks.
type Visit<'a> = dyn FnMut(&str, &[u8]) -> Result<ControlFlow<()>> + 'a;

/// Records read from the store at a time.
const PAGE: usize = 1_000;

impl IndexHandle {
    /// The entry of a path, also one that is deleted.
    ///
    /// # Errors
    /// Those of the store.
    pub fn entry(&self, path: &str) -> Result<Option<Entry>> {
        Ok(self.stored(path)?.map(|s| s.entry))
    }

    /// The entry of a path, with what is known of its local file.
    ///
    /// # Errors
    /// Those of the store.
    pub fn stored(&self, path: &str) -> Result<Option<Stored>> {
        let found = self.0.store.get(&key(SPACE_ENTRY, self.0.share, &place(path)))?;
        found.map(|bytes| Stored::decode(&bytes)).transpose()
    }

    /// Entries of a directory in order of names, after a name (empty: from the first), deleted ones included.
    ///
    /// # Errors
    /// Those of the store.
    pub fn directory(&self, path: &str, after: &str, limit: usize) -> Result<Vec<Stored>> {
        let directory = key(SPACE_ENTRY, self.0.share, &path_key(path));
        let mut from = directory.clone();
        if !after.is_empty() {
            from.extend_from_slice(after.as_bytes());
            from.push(0);
        }
        let found = self.0.store.range(&from, &prefix_end(&directory), limit)?;
        found.iter().map(|(_, bytes)| Stored::decode(bytes)).collect()
    }

    /// Entries that changed after a sequence, in order, at most `limit`.
    ///
    /// # Errors
    /// Those of the store.
    pub fn after(&self, sequence: u64, limit: usize) -> Result<Vec<Entry>> {
        let index = &*self.0;
        let Some(from) = sequence.checked_add(1) else { return Ok(Vec::new()) };
        let from = key(SPACE_SEQUENCE, index.share, &from.to_be_bytes());
        let to = prefix_end(&key(SPACE_SEQUENCE, index.share, &[]));
        // One state, so that the entry is the one that the sequence stands for.
        index.store.read(|view| {
            let places = view.range(&from, &to, limit)?;
            places
                .iter()
                .map(|(_, place)| {
                    let bytes = view.get(&key(SPACE_ENTRY, index.share, place))?.ok_or_else(damaged)?;
                    Ok(Stored::decode(&bytes)?.entry)
                })
                .collect()
        })
    }

    /// The entry that last changed at exactly this sequence.
    fn at(&self, sequence: u64) -> Result<Option<Stored>> {
        let index = &*self.0;
        index.store.read(|view| {
            let Some(place) = view.get(&key(SPACE_SEQUENCE, index.share, &sequence.to_be_bytes()))? else {
                return Ok(None);
            };
            let bytes = view.get(&key(SPACE_ENTRY, index.share, &place))?.ok_or_else(damaged)?;
            Stored::decode(&bytes).map(Some)
        })
    }

    /// The content of a file's entry; `None` if the entry has changed and its chunks are gone, or it is no file.
    ///
    /// # Errors
    /// Those of the store.
    pub fn content(&self, entry: &Entry) -> Result<Option<Content>> {
        if !entry.is_file() {
            return Ok(None);
        }
        if entry.chunk_count as usize <= INLINE_CHUNKS {
            return Ok(entry.inline_content());
        }
        let Some(chunks) = self.pages(&entry.path, &entry.digest)? else { return Ok(None) };
        if check_content(&chunks, entry).is_err() {
            return Ok(None);
        }
        Ok(Some(Content { chunks: chunks.into(), digest: entry.digest, size_bytes: entry.size_bytes }))
    }

    fn pages(&self, path: &str, digest: &[u8; 32]) -> Result<Option<Vec<ChunkRef>>> {
        let from = manifest_key(self.0.share, path, digest);
        let pages = self.0.store.range(&from, &prefix_end(&from), usize::MAX)?;
        let mut chunks = Vec::new();
        for (_, page) in &pages {
            chunks.extend(page_from(page)?.1);
        }
        Ok((!chunks.is_empty()).then_some(chunks))
    }

    /// A file that has this content now, and the content.
    ///
    /// # Errors
    /// Those of the store.
    pub fn by_digest(&self, digest: &[u8; 32]) -> Result<Option<(Entry, Content)>> {
        for spot in self.places(prefix_of(digest))? {
            if spot.position().is_none()
                && let Some(stored) = self.at(spot.sequence())?
                && stored.entry.digest == *digest
                && let Some(content) = self.content(&stored.entry)?
            {
                return Ok(Some((stored.entry, content)));
            }
        }
        Ok(None)
    }

    /// Files that have this chunk now, with its offset and length there; a few of them, the newest first.
    ///
    /// # Errors
    /// Those of the store.
    pub fn by_chunk(&self, chunk: &ChunkId) -> Result<Vec<(Stored, u64, u32)>> {
        let mut found = Vec::new();
        for spot in self.places(prefix_of(&chunk.0))? {
            if let Some(position) = spot.position()
                && let Some(stored) = self.at(spot.sequence())?
                && let Some((offset, there)) = self.chunk_at(&stored.entry, position)?
                && there.id == *chunk
            {
                found.push((stored, offset, there.len));
            }
        }
        Ok(found)
    }

    /// The chunk at a position of a file's content, and its offset.
    fn chunk_at(&self, entry: &Entry, position: usize) -> Result<Option<(u64, ChunkRef)>> {
        let pick = |begin: u64, chunks: &[ChunkRef], at: usize| {
            let before: u64 = chunks.iter().take(at).map(|c| u64::from(c.len)).sum();
            chunks.get(at).map(|c| (begin + before, *c))
        };
        if !entry.is_file() || entry.chunk_count as usize <= INLINE_CHUNKS {
            return Ok(pick(0, &entry.chunks, position));
        }
        let mut page = manifest_key(self.0.share, &entry.path, &entry.digest);
        page.extend_from_slice(&((position / PAGE_CHUNKS) as u32).to_be_bytes());
        let Some(bytes) = self.0.store.get(&page)? else { return Ok(None) };
        let (begin, chunks) = page_from(&bytes)?;
        Ok(pick(begin, &chunks, position % PAGE_CHUNKS))
    }

    fn places(&self, digest: u64) -> Result<Vec<Spot>> {
        self.load_map()?;
        Ok(self.0.map.read().as_ref().map(|m| m.places(digest)).unwrap_or_default())
    }

    /// Does not look for a chunk at an entry any longer.
    pub(in crate::catalogue) fn forget_place(&self, chunk: &ChunkId, sequence: u64) {
        if let Some(map) = self.0.map.write().as_mut() {
            map.remove(prefix_of(&chunk.0), sequence);
        }
    }

    /// Reads the map of chunks, if that has not been done. Changes wait for it.
    pub(in crate::catalogue) fn load_map(&self) -> Result<()> {
        if self.0.map.read().is_some() {
            return Ok(());
        }
        let _one_at_a_time = self.0.loading.lock();
        if self.0.map.read().is_some() {
            return Ok(());
        }
        let mut pairs = Vec::new();
        self.each(&mut |stored| {
            let entry = &stored.entry;
            if let Some(content) = self.content(entry)? {
                pairs.extend(spots(entry.sequence, &entry.digest, &content.chunks));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        *self.0.map.write() = Some(ChunkMap::of(pairs));
        Ok(())
    }

    /// Visits all entries, in no order that means anything.
    fn each(&self, visit: &mut dyn FnMut(Stored) -> Result<ControlFlow<()>>) -> Result<()> {
        self.each_record(&mut |_, bytes| visit(Stored::decode(bytes)?))
    }

    /// Visits the path and the stored form of all entries.
    fn each_record(&self, visit: &mut Visit<'_>) -> Result<()> {
        let mut from = key(SPACE_ENTRY, self.0.share, &[]);
        let to = prefix_end(&from);
        loop {
            let page = self.0.store.range(&from, &to, PAGE)?;
            for (_, bytes) in &page {
                let path = Stored::peek_path(bytes).ok_or_else(damaged)?;
                if visit(path, bytes)?.is_break() {
                    return Ok(());
                }
            }
            let Some((last, _)) = page.last() else { return Ok(()) };
            if page.len() < PAGE {
                return Ok(());
            }
            from = last.to_vec();
            from.push(0);
        }
    }

    /// Entries that are there and whose path passes the test, until `limit` of them are found or `give_up` says so.
    /// Gives them back with "there may be more".
    ///
    /// # Errors
    /// Those of the store.
    pub(in crate::catalogue) fn search(
        &self,
        matches: &dyn Fn(&str) -> bool,
        limit: usize,
        give_up: &dyn Fn() -> bool,
    ) -> Result<(Vec<Entry>, bool)> {
        let (mut found, mut more, mut seen) = (Vec::new(), false, 0_usize);
        self.each_record(&mut |path, bytes| {
            seen += 1;
            if seen.is_multiple_of(1024) && give_up() {
                more = true;
                return Ok(ControlFlow::Break(()));
            }
            if matches(path) {
                let entry = Stored::decode(bytes)?.entry;
                if !entry.deleted {
                    if found.len() == limit {
                        more = true;
                        return Ok(ControlFlow::Break(()));
                    }
                    found.push(entry);
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((found, more))
    }

    /// Everything below a directory that is there: depth first, in order of names, each directory before what is in it.
    /// Starts after `after` (a path; empty: from the first).
    pub fn walk(&self, directory: &str, after: &str) -> Walk {
        let mut stack = vec![Level { path: directory.to_owned(), after: String::new(), ready: Vec::new(), end: false }];
        let rest = match directory {
            "" => Some(after),
            _ => after.strip_prefix(directory).and_then(|r| r.strip_prefix('/')),
        };
        // Down the path of the last one: what is below it comes first, then what follows on each level.
        let mut path = directory.to_owned();
        for segment in rest.into_iter().flat_map(|r| r.split('/')).filter(|s| !s.is_empty()) {
            if let Some(level) = stack.last_mut() {
                level.after = segment.to_owned();
            }
            path = join(&path, segment);
            stack.push(Level { path: path.clone(), after: String::new(), ready: Vec::new(), end: false });
        }
        Walk { index: self.clone(), stack }
    }

    /// Like [`IndexHandle::entry`], for one that is there.
    ///
    /// # Errors
    /// ENTRY_UNKNOWN, and those of the store.
    pub fn present(&self, path: &str) -> Result<Entry> {
        self.entry(path)?
            .filter(|e| !e.deleted)
            .ok_or_else(|| Error::new(Reason::EntryUnknown, "there is no such file or directory in the share"))
    }
}

struct Level {
    path: String,
    after: String,
    /// Last one first.
    ready: Vec<Stored>,
    end: bool,
}

/// See [`IndexHandle::walk`]. Holds a page for each level of directories.
pub struct Walk {
    index: IndexHandle,
    stack: Vec<Level>,
}

impl Iterator for Walk {
    type Item = Result<Stored>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let level = self.stack.last_mut()?;
            if let Some(stored) = level.ready.pop() {
                if stored.entry.deleted {
                    continue;
                }
                if stored.entry.kind == EntryKind::Directory {
                    let path = stored.entry.path.clone();
                    self.stack.push(Level { path, after: String::new(), ready: Vec::new(), end: false });
                }
                return Some(Ok(stored));
            }
            if level.end {
                self.stack.pop();
                continue;
            }
            match self.index.directory(&level.path, &level.after, PAGE) {
                Ok(mut page) => {
                    level.end = page.len() < PAGE;
                    if let Some(last) = page.last() {
                        level.after = last.entry.name().to_owned();
                    }
                    page.reverse();
                    level.ready = page;
                }
                Err(error) => {
                    self.stack.clear();
                    return Some(Err(error));
                }
            }
        }
    }
}
