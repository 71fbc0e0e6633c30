//! The memory of a synchronised pair: what both sides agreed on, and the conflicts that were kept.
//!
//! One JSON file per pair below `$XDG_STATE_HOME/atrium/sync`, named after a hash of the pair, written to a temporary
//! file, synced and renamed. Losing it is harmless: the next run joins both trees and deletes nothing. A lock file
//! beside it keeps two runs of the same pair apart. Conflicts that were ended by keeping both versions are in a file of
//! their own, so that they can be ended while a run has the memory; losing it lists them once more.

use super::plan::{Digest, Node, Tree};
use common::error::{Error, Reason, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Version of the file.
const SCHEMA: u32 = 1;
/// Most conflicts that are remembered; the oldest go first.
const CONFLICTS_MAX: usize = 10_000;

/// Which two directories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// Absolute path here, without symbolic links.
    pub directory: PathBuf,
    /// Office.
    pub office: String,
    /// User.
    pub user: String,
    /// Place on the server, as it is typed.
    pub remote: String,
}

impl Pair {
    fn key(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in [self.directory.as_os_str().as_encoded_bytes(), self.office.as_bytes(), self.user.as_bytes()] {
            hasher.update(part).update(b"\0");
        }
        hasher.update(self.remote.as_bytes());
        hasher.finalize().to_hex()[..32].to_owned()
    }
}

/// How a local file looked when its content was known; if it looks the same, the content is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Bytes.
    pub size: u64,
    /// Modification time in nanoseconds.
    pub mtime: i64,
    /// Change time in nanoseconds: rises with every write, and cannot be set by programs.
    pub ctime: i64,
    /// Inode.
    pub inode: u64,
}

/// What both sides agreed on at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Digest as hex; none for a directory.
    pub digest: Option<String>,
    /// How the local file looked.
    pub stamp: Option<Stamp>,
}

/// A kept conflict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptConflict {
    /// Path of the file.
    pub path: String,
    /// Path of the other version.
    pub kept_as: String,
    /// When, RFC 3339.
    pub time: String,
    /// The other version is the server's; else it is the one from here, as it is with files that both sides changed.
    #[serde(default)]
    pub kept_is_theirs: bool,
}

/// A conflict that was ended by keeping both versions.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Accepted {
    kept_as: String,
    time: String,
}

/// The memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    schema: u32,
    /// Which two.
    pub pair: Pair,
    /// Id of the directory on the server; another one there has nothing to do with this memory.
    pub remote_uid: String,
    /// Device and inode of the directory here, for the same reason: an empty mount point is not an emptied directory.
    pub local_id: (u64, u64),
    /// By path.
    pub entries: BTreeMap<String, Known>,
    /// Oldest first.
    pub conflicts: Vec<KeptConflict>,
}

impl Memory {
    /// An empty one.
    pub fn new(pair: Pair, remote_uid: String, local_id: (u64, u64)) -> Self {
        Self { schema: SCHEMA, pair, remote_uid, local_id, entries: BTreeMap::new(), conflicts: Vec::new() }
    }

    /// What both sides agreed on.
    pub fn base(&self) -> Tree {
        let node = |known: &Known| match &known.digest {
            Some(hex) => parse_digest(hex).map(Node::File),
            None => Some(Node::Directory),
        };
        self.entries.iter().filter_map(|(path, known)| Some((path.clone(), node(known)?))).collect()
    }

    /// Remembers a file.
    pub fn record_file(&mut self, path: &str, digest: &Digest, stamp: Option<Stamp>) {
        let digest = Some(crate::output::format::hex(digest));
        self.entries.insert(path.to_owned(), Known { digest, stamp });
    }

    /// Remembers a directory.
    pub fn record_directory(&mut self, path: &str) {
        self.entries.insert(path.to_owned(), Known { digest: None, stamp: None });
    }

    /// Forgets a path and everything below it.
    pub fn forget(&mut self, path: &str) {
        self.entries.remove(path);
        let below = format!("{path}/");
        let gone: Vec<String> = self
            .entries
            .range(below.clone()..)
            .map(|(p, _)| p)
            .take_while(|p| p.starts_with(&below))
            .cloned()
            .collect();
        gone.iter().for_each(|p| {
            self.entries.remove(p);
        });
    }

    /// Remembers a conflict; at the bound the oldest one is forgotten.
    pub fn keep_conflict(&mut self, conflict: KeptConflict) {
        if self.conflicts.len() >= CONFLICTS_MAX {
            self.conflicts.remove(0);
        }
        self.conflicts.push(conflict);
    }
}

pub(super) fn parse_digest(hex: &str) -> Option<Digest> {
    let id: common::model::DeviceId = hex.parse().ok()?;
    Some(id.0)
}

/// Where memories are kept.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    directory: PathBuf,
}

/// Exclusive use of a pair, until dropped.
#[derive(Debug)]
pub struct PairLock {
    _file: File,
}

impl MemoryStore {
    /// Below the user's state directory.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(state_directory: &Path) -> Result<Self> {
        let directory = state_directory.join("sync");
        crate::dirs::make_private(&directory)?;
        Ok(Self { directory })
    }

    fn path(&self, pair: &Pair) -> PathBuf {
        self.directory.join(format!("{}.json", pair.key()))
    }

    /// Takes the pair for this process.
    ///
    /// # Errors
    /// `STORE_BUSY` if another process has it.
    pub fn lock(&self, pair: &Pair) -> Result<PairLock> {
        let file = File::create(self.directory.join(format!("{}.lock", pair.key())))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Error::new(Reason::StoreBusy, format!("{} is being synchronised already", pair.directory.display()))
                .why_is("another atrium sync of the same two directories is running")
                .fix_is("wait for it, or stop it")
        })?;
        Ok(PairLock { _file: file })
    }

    /// The pair's memory, if there is one that can be read and belongs to it.
    ///
    /// # Errors
    /// If the file exists but cannot be read.
    pub fn load(&self, pair: &Pair) -> Result<Option<Memory>> {
        Ok(read(&self.path(pair))?.filter(|m| m.pair == *pair))
    }

    /// Writes the memory durably.
    ///
    /// # Errors
    /// If it cannot be written; the old one stays.
    pub fn save(&self, memory: &Memory) -> Result<()> {
        let text = serde_json::to_vec(memory).map_err(|e| Error::internal("JSON").caused_by(e))?;
        self.write(&format!("{}.json", memory.pair.key()), &text)
    }

    fn accepted(&self, pair: &Pair) -> Result<Vec<Accepted>> {
        match std::fs::read(self.directory.join(format!("{}.accepted", pair.key()))) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Conflicts whose other version is still here, and which nobody has ended.
    ///
    /// # Errors
    /// If what was ended cannot be read.
    pub fn open_conflicts(&self, memory: &Memory) -> Result<Vec<KeptConflict>> {
        let accepted = self.accepted(&memory.pair)?;
        let open = memory.conflicts.iter().filter(|c| {
            memory.pair.directory.join(&c.kept_as).symlink_metadata().is_ok()
                && !accepted.iter().any(|a| a.kept_as == c.kept_as && a.time == c.time)
        });
        Ok(open.cloned().collect())
    }

    /// Ends a conflict by keeping both versions. What is no conflict any more is forgotten with it, so the list stays
    /// as short as that of conflicts. Of two commands at the same moment one may be forgotten: it is listed again.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn accept(&self, memory: &Memory, conflict: &KeptConflict) -> Result<()> {
        let mut accepted = self.accepted(&memory.pair)?;
        accepted.retain(|a| memory.conflicts.iter().any(|c| c.kept_as == a.kept_as && c.time == a.time));
        accepted.push(Accepted { kept_as: conflict.kept_as.clone(), time: conflict.time.clone() });
        let text = serde_json::to_vec(&accepted).map_err(|e| Error::internal("JSON").caused_by(e))?;
        self.write(&format!("{}.accepted", memory.pair.key()), &text)
    }

    fn write(&self, name: &str, text: &[u8]) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        file.write_all(text)?;
        file.as_file().sync_all()?;
        file.persist(self.directory.join(name)).map_err(|e| Error::from(e.error))?;
        Ok(())
    }

    /// All memories.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn all(&self) -> Result<Vec<Memory>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "json")
                && let Some(memory) = read(&path)?
            {
                found.push(memory);
            }
        }
        found.sort_by(|a, b| a.pair.directory.cmp(&b.pair.directory));
        Ok(found)
    }
}

/// A file that is missing, damaged or of another version is no memory.
fn read(path: &Path) -> Result<Option<Memory>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice::<Memory>(&bytes).ok().filter(|m| m.schema == SCHEMA)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(directory: &Path) -> Pair {
        Pair { directory: directory.into(), office: "o".into(), user: "anna".into(), remote: "home:x".into() }
    }

    #[test]
    fn memories_come_back_and_damage_is_forgetting() {
        let dir = tempfile::tempdir().unwrap();
        let store = MemoryStore::open(dir.path()).unwrap();
        let pair = pair(dir.path());
        assert!(store.load(&pair).unwrap().is_none());
        let mut memory = Memory::new(pair.clone(), "uid".into(), (1, 2));
        memory.record_directory("d");
        memory.record_file("d/a", &[7; 32], None);
        memory.record_file("d2", &[8; 32], None);
        store.save(&memory).unwrap();
        assert_eq!(store.load(&pair).unwrap().unwrap(), memory);
        assert_eq!(memory.base().len(), 3);
        assert_eq!(memory.base()["d/a"], Node::File([7; 32]));
        memory.forget("d");
        assert_eq!(memory.base().keys().collect::<Vec<_>>(), ["d2"]);
        let mut other = pair.clone();
        other.user = "bert".into();
        assert!(store.load(&other).unwrap().is_none());
        std::fs::write(store.path(&pair), "{broken").unwrap();
        assert!(store.load(&pair).unwrap().is_none());
        assert!(store.all().unwrap().is_empty());
    }

    #[test]
    fn a_pair_is_used_by_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let store = MemoryStore::open(dir.path()).unwrap();
        let pair = pair(dir.path());
        let lock = store.lock(&pair).unwrap();
        assert!(store.lock(&pair).unwrap_err().is(Reason::StoreBusy));
        drop(lock);
        assert!(store.lock(&pair).is_ok());
    }
}
