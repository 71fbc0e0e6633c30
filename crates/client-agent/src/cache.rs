//! Chunks that were fetched before, up to a limit of bytes.
//!
//! Layout: `DIR/xx/HEX`, one file per chunk, `xx` the first byte of its digest. Files are written under a temporary name
//! and renamed; they are not synced, because a cache may forget: each chunk is checked against its digest when it is
//! read, and one that does not match is removed and fetched again.
//!
//! Which chunk goes first: the one that was not used for longest. The order lives in memory; after a restart it is the
//! order of the files' modification times, which `get` refreshes.

use common::model::ChunkId;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A chunk cache in a directory. All methods block on the disk.
pub struct ChunkCache {
    directory: PathBuf,
    limit_bytes: u64,
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    known: HashMap<ChunkId, (u64, u32)>,
    by_age: BTreeMap<u64, ChunkId>,
    next_tick: u64,
    used_bytes: u64,
}

impl Index {
    fn touch(&mut self, id: ChunkId, len: u32) {
        if let Some((tick, old)) = self.known.remove(&id) {
            self.by_age.remove(&tick);
            self.used_bytes -= u64::from(old);
        }
        let tick = self.next_tick;
        self.next_tick += 1;
        self.known.insert(id, (tick, len));
        self.by_age.insert(tick, id);
        self.used_bytes += u64::from(len);
    }

    fn forget(&mut self, id: &ChunkId) {
        if let Some((tick, len)) = self.known.remove(id) {
            self.by_age.remove(&tick);
            self.used_bytes -= u64::from(len);
        }
    }
}

impl ChunkCache {
    /// Opens a cache and reads which chunks it has.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(directory: &Path, limit_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut found: Vec<(SystemTime, ChunkId, u32)> = Vec::new();
        for sub in fs::read_dir(directory)? {
            let sub = sub?.path();
            if !sub.is_dir() {
                continue;
            }
            for file in fs::read_dir(&sub)? {
                let file = file?;
                let meta = file.metadata()?;
                let name = file.file_name();
                match (parse(name.to_str().unwrap_or("")), u32::try_from(meta.len())) {
                    (Some(id), Ok(len)) => found.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), id, len)),
                    // What a crash left half written.
                    _ => fs::remove_file(file.path())?,
                }
            }
        }
        found.sort();
        let mut index = Index::default();
        found.into_iter().for_each(|(_, id, len)| index.touch(id, len));
        let cache = Self { directory: directory.to_owned(), limit_bytes, index: Mutex::new(index) };
        cache.evict();
        Ok(cache)
    }

    /// The chunk's content, if it is here and whole.
    pub fn get(&self, id: &ChunkId) -> Option<Vec<u8>> {
        let len = self.index.lock().known.get(id).map(|(_, len)| *len)?;
        let path = self.path(id);
        match fs::read(&path) {
            Ok(data) if data.len() == len as usize && ChunkId::of(&data) == *id => {
                self.index.lock().touch(*id, len);
                if let Ok(file) = fs::File::options().write(true).open(&path) {
                    let _ = file.set_modified(SystemTime::now());
                }
                Some(data)
            }
            _ => {
                self.index.lock().forget(id);
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// True if the chunk is believed to be here.
    pub fn has(&self, id: &ChunkId) -> bool {
        self.index.lock().known.contains_key(id)
    }

    /// Keeps a chunk whose digest the caller has checked. A chunk that does not fit, or a disk that does not take it, is
    /// no error: it is just not cached.
    pub fn put(&self, id: &ChunkId, data: &[u8]) {
        if data.len() as u64 > self.limit_bytes / 4 || self.has(id) {
            return;
        }
        let path = self.path(id);
        let Some(parent) = path.parent() else { return };
        let temporary = parent.join(format!("{}.tmp", uuid::Uuid::new_v4().simple()));
        let written = fs::create_dir_all(parent)
            .and_then(|()| fs::write(&temporary, data))
            .and_then(|()| fs::rename(&temporary, &path));
        match written {
            Ok(()) => {
                self.index.lock().touch(*id, data.len() as u32);
                self.evict();
            }
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                tracing::warn!(%error, "a chunk could not be cached");
            }
        }
    }

    /// Removes everything; returns the bytes freed.
    pub fn clear(&self) -> u64 {
        let mut index = self.index.lock();
        let freed = index.used_bytes;
        for id in index.known.keys() {
            let _ = fs::remove_file(self.path(id));
        }
        *index = Index { next_tick: index.next_tick, ..Index::default() };
        freed
    }

    /// Bytes kept now.
    pub fn used_bytes(&self) -> u64 {
        self.index.lock().used_bytes
    }

    /// Most bytes kept.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    fn evict(&self) {
        let mut index = self.index.lock();
        while index.used_bytes > self.limit_bytes {
            let Some((_, id)) = index.by_age.first_key_value().map(|(t, id)| (*t, *id)) else { break };
            index.forget(&id);
            let _ = fs::remove_file(self.path(&id));
        }
    }

    fn path(&self, id: &ChunkId) -> PathBuf {
        let hex = id.to_string();
        self.directory.join(&hex[..2]).join(&hex)
    }
}

fn parse(name: &str) -> Option<ChunkId> {
    if name.len() != 64 || !name.is_ascii() {
        return None;
    }
    let mut out = [0u8; 32];
    for (i, o) in out.iter_mut().enumerate() {
        *o = u8::from_str_radix(&name[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(ChunkId(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(n: u8) -> (ChunkId, Vec<u8>) {
        let data = vec![n; 1000];
        (ChunkId::of(&data), data)
    }

    #[test]
    fn the_longest_unused_goes_first_and_the_order_survives() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ChunkCache::open(dir.path(), 4000).unwrap();
        for n in 0..4 {
            let (id, data) = chunk(n);
            cache.put(&id, &data);
        }
        assert!(cache.get(&chunk(0).0).is_some());
        cache.put(&chunk(4).0, &chunk(4).1);
        assert!(cache.has(&chunk(0).0) && !cache.has(&chunk(1).0));
        assert_eq!(cache.used_bytes(), 4000);
        let again = ChunkCache::open(dir.path(), 2000).unwrap();
        assert_eq!(again.used_bytes(), 2000);
        assert_eq!(again.clear(), 2000);
        assert!(again.get(&chunk(4).0).is_none());
    }

    #[test]
    fn a_flipped_bit_is_never_served() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ChunkCache::open(dir.path(), 100_000).unwrap();
        let (id, data) = chunk(7);
        cache.put(&id, &data);
        let mut bad = data.clone();
        bad[500] ^= 1;
        fs::write(cache.path(&id), &bad).unwrap();
        assert_eq!(cache.get(&id), None);
        assert!(!cache.has(&id));
        cache.put(&id, &data);
        assert_eq!(cache.get(&id), Some(data));
    }

    #[test]
    fn what_a_crash_left_is_cleaned_up() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("ab")).unwrap();
        let half = dir.path().join("ab/half.tmp");
        fs::write(&half, b"x").unwrap();
        ChunkCache::open(dir.path(), 1000).unwrap();
        assert!(!half.exists());
    }
}
