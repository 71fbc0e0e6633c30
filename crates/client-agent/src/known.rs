//! Which chunks the newest known version of a file has, so that it can be read while the server is away.
//!
//! One small file per known file, named by the BLAKE3 of who may read what (account, root, path), with its own digest in
//! front. Like the chunk cache it may forget: what cannot be read counts as unknown.

use common::model::ChunkRef;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A file as it was when it was last read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownFile {
    /// Bytes.
    pub size_bytes: u64,
    /// Version.
    pub version: u64,
    /// Modification time: seconds and nanoseconds since 1970.
    pub modified: (i64, i32),
    /// Unix permission bits.
    pub mode: u32,
    /// Encoded chunk list.
    chunks: String,
}

impl KnownFile {
    /// A file with these chunks.
    pub fn new(size_bytes: u64, version: u64, modified: (i64, i32), mode: u32, chunks: &[ChunkRef]) -> Self {
        let mut text = String::with_capacity(chunks.len() * ChunkRef::ENCODED * 2);
        for byte in ChunkRef::encode_all(chunks) {
            text.push_str(&format!("{byte:02x}"));
        }
        Self { size_bytes, version, modified, mode, chunks: text }
    }

    /// The chunks; `None` if the list is damaged.
    pub fn chunks(&self) -> Option<Vec<ChunkRef>> {
        let digits = self.chunks.as_bytes();
        if !digits.len().is_multiple_of(2) || !self.chunks.is_ascii() {
            return None;
        }
        let bytes: Option<Vec<u8>> =
            (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&self.chunks[i..i + 2], 16).ok()).collect();
        ChunkRef::decode_all(&bytes?)
    }
}

/// The known files.
pub struct KnownFiles {
    directory: PathBuf,
    most: usize,
    count: Mutex<usize>,
}

impl KnownFiles {
    /// Opens the directory.
    ///
    /// # Errors
    /// It cannot be made or read.
    pub fn open(directory: &Path, most: usize) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let count = fs::read_dir(directory)?.count();
        Ok(Self { directory: directory.to_owned(), most, count: Mutex::new(count) })
    }

    /// What is known of a file that this account may read.
    pub fn get(&self, account: &str, root: &str, path: &str) -> Option<KnownFile> {
        let bytes = fs::read(self.path(account, root, path)).ok()?;
        let (digest, body) = bytes.split_at_checked(32)?;
        if blake3::hash(body).as_bytes() != digest {
            return None;
        }
        serde_json::from_slice(body).ok()
    }

    /// Remembers a file. Failing to is no error.
    pub fn put(&self, account: &str, root: &str, path: &str, file: &KnownFile) {
        let place = self.path(account, root, path);
        let Ok(body) = serde_json::to_vec(file) else { return };
        let mut bytes = blake3::hash(&body).as_bytes().to_vec();
        bytes.extend_from_slice(&body);
        let mut count = self.count.lock();
        let fresh = !place.exists();
        let temporary = place.with_extension("tmp");
        if fs::write(&temporary, &bytes).and_then(|()| fs::rename(&temporary, &place)).is_err() {
            let _ = fs::remove_file(&temporary);
            return;
        }
        *count += usize::from(fresh);
        if *count > self.most {
            *count = self.drop_oldest();
        }
    }

    /// Forgets a file: it is gone, or not to be read any more.
    pub fn forget(&self, account: &str, root: &str, path: &str) {
        let mut count = self.count.lock();
        if fs::remove_file(self.path(account, root, path)).is_ok() {
            *count = count.saturating_sub(1);
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut count = self.count.lock();
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let _ = fs::remove_file(entry.path());
        }
        *count = 0;
    }

    /// Removes the oldest tenth; gives what is left.
    fn drop_oldest(&self) -> usize {
        let mut all: Vec<(SystemTime, PathBuf)> = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path())))
            .collect();
        all.sort();
        let drop = (all.len().saturating_sub(self.most)).max(self.most / 10).max(1).min(all.len());
        for (_, path) in &all[..drop] {
            let _ = fs::remove_file(path);
        }
        all.len() - drop
    }

    fn path(&self, account: &str, root: &str, path: &str) -> PathBuf {
        let mut hasher = blake3::Hasher::new();
        for part in [account, root, path] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        self.directory.join(hasher.finalize().to_hex().as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::model::ChunkId;

    fn file(n: u64) -> KnownFile {
        KnownFile::new(n, n, (5, 6), 0o600, &[ChunkRef { id: ChunkId::of(&n.to_le_bytes()), len: 8 }])
    }

    #[test]
    fn what_one_account_knows_no_other_does() {
        let dir = tempfile::tempdir().unwrap();
        let known = KnownFiles::open(dir.path(), 10).unwrap();
        known.put("anna", "home", "a", &file(1));
        assert_eq!(known.get("anna", "home", "a"), Some(file(1)));
        assert_eq!(known.get("anna", "home", "a").unwrap().chunks().unwrap()[0].len, 8);
        assert_eq!(known.get("bert", "home", "a"), None);
        assert_eq!(known.get("anna", "hom", "ea"), None);
        known.forget("anna", "home", "a");
        assert_eq!(known.get("anna", "home", "a"), None);
    }

    #[test]
    fn damage_is_unknown_and_the_number_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let known = KnownFiles::open(dir.path(), 10).unwrap();
        for n in 0..50 {
            known.put("anna", "home", &n.to_string(), &file(n));
        }
        assert!(fs::read_dir(dir.path()).unwrap().count() <= 10);
        assert_eq!(known.get("anna", "home", "49"), Some(file(49)));
        let place = known.path("anna", "home", "49");
        let mut bytes = fs::read(&place).unwrap();
        bytes[40] ^= 1;
        fs::write(&place, bytes).unwrap();
        assert_eq!(known.get("anna", "home", "49"), None);
        known.clear();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
