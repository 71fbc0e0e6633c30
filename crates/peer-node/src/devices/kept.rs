//! Blocks of discs: those of other machines that were read here and are kept for others, and who has which block of a
//! disc of this machine.
//!
//! A drive is slow and a scratched disc slower, so a block that some member has read is fetched from that member. The
//! owner stays the door: it tells a reader the block's digest and who has it, and only whoever knows the digest gets the
//! block from a holder. What comes is checked against the digest; if it does not come, the owner reads the disc after all.
//!
//! # On disk
//!
//! `DIRECTORY/NAME`, one file for each block, named by its key's hash. It is a cache: emptied when the node starts, never
//! synced, the oldest go at the limit. A block that was damaged on disk is not given out, since its digest is checked.

use bytes::Bytes;
use common::error::Result;
use common::model::DeviceId;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a block: the unit in which discs are kept and exchanged.
pub const BLOCK: u64 = 1 << 20;
/// Members that are remembered for a block.
const HOLDERS_MAX: usize = 4;
/// Blocks of one machine's discs whose holders are remembered: 200 GB.
const TRACKED_MAX: usize = 200_000;

/// Which block.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BlockKey {
    /// Whose drive.
    pub owner: DeviceId,
    /// The drive's name at its owner.
    pub device: String,
    /// Of which disc.
    pub generation: u64,
    /// Number of the block.
    pub block: u64,
}

impl BlockKey {
    fn file(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.owner.0).update(&self.generation.to_le_bytes()).update(&self.block.to_le_bytes());
        hasher.update(self.device.as_bytes());
        hasher.finalize().to_hex().to_string()
    }
}

#[derive(Default)]
struct State {
    digests: HashMap<BlockKey, ([u8; 32], u64)>,
    /// The oldest first.
    order: VecDeque<BlockKey>,
    bytes: u64,
}

/// Blocks of others' discs.
#[derive(Clone)]
pub struct KeptBlocks(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    limit: u64,
    state: Mutex<State>,
}

impl KeptBlocks {
    /// Begins with nothing: what an earlier process kept is removed. Blocks.
    ///
    /// # Errors
    /// IO_FAILED.
    pub fn open(directory: &Path, limit: u64) -> Result<Self> {
        match std::fs::remove_dir_all(directory) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e.into()),
            _ => std::fs::create_dir_all(directory)?,
        }
        Ok(Self(Arc::new(Inner { directory: directory.to_owned(), limit, state: Mutex::default() })))
    }

    /// A block with this digest, if it is here and whole. Blocks.
    pub fn get(&self, key: &BlockKey, digest: &[u8; 32]) -> Option<Bytes> {
        self.0.state.lock().digests.get(key).filter(|(known, _)| known == digest)?;
        let bytes = std::fs::read(self.0.directory.join(key.file())).ok()?;
        (blake3::hash(&bytes).as_bytes() == digest).then(|| bytes.into())
    }

    /// Keeps a block whose digest was checked; the oldest ones give way. A disk that is full is no error. Blocks.
    pub fn put(&self, key: BlockKey, digest: [u8; 32], data: &[u8]) {
        let len = data.len() as u64;
        if len > self.0.limit || self.0.state.lock().digests.get(&key).is_some_and(|(known, _)| *known == digest) {
            return;
        }
        let path = self.0.directory.join(key.file());
        if std::fs::write(&path, data).is_err() {
            let _ = std::fs::remove_file(&path);
            return;
        }
        let mut gone = Vec::new();
        {
            let mut state = self.0.state.lock();
            if let Some((_, before)) = state.digests.insert(key.clone(), (digest, len)) {
                state.bytes = state.bytes.saturating_sub(before);
                state.order.retain(|k| *k != key);
            }
            state.order.push_back(key);
            state.bytes += len;
            while state.bytes > self.0.limit {
                let Some(oldest) = state.order.pop_front() else { break };
                if let Some((_, len)) = state.digests.remove(&oldest) {
                    state.bytes = state.bytes.saturating_sub(len);
                }
                gone.push(oldest);
            }
        }
        for key in gone {
            let _ = std::fs::remove_file(self.0.directory.join(key.file()));
        }
    }
}

/// Who has which blocks of this machine's discs.
#[derive(Default)]
pub struct Holders(Mutex<Tracked>);

#[derive(Default)]
struct Tracked {
    /// By drive: the generation, and its blocks.
    drives: HashMap<String, (u64, HashMap<u64, Block>)>,
    count: usize,
}

#[derive(Clone)]
struct Block {
    digest: [u8; 32],
    devices: Vec<DeviceId>,
}

impl Holders {
    /// A member was given a block whole. Blocks of an older disc of the drive are forgotten.
    pub fn note(&self, drive: &str, generation: u64, block: u64, digest: [u8; 32], device: DeviceId) {
        let mut guard = self.0.lock();
        let tracked = &mut *guard;
        let (known, blocks) = tracked.drives.entry(drive.to_owned()).or_insert_with(|| (generation, HashMap::new()));
        if *known != generation {
            tracked.count = tracked.count.saturating_sub(blocks.len());
            (*known, *blocks) = (generation, HashMap::new());
        }
        if !blocks.contains_key(&block) {
            if tracked.count >= TRACKED_MAX {
                return;
            }
            tracked.count += 1;
        }
        let entry = blocks.entry(block).or_insert_with(|| Block { digest, devices: Vec::new() });
        if entry.digest != digest {
            *entry = Block { digest, devices: Vec::new() };
        }
        if !entry.devices.contains(&device) {
            if entry.devices.len() >= HOLDERS_MAX {
                entry.devices.remove(0);
            }
            entry.devices.push(device);
        }
    }

    /// The digest of a block and who has it, the newest first.
    pub fn of(&self, drive: &str, generation: u64, block: u64) -> Option<([u8; 32], Vec<DeviceId>)> {
        let tracked = self.0.lock();
        let (known, blocks) = tracked.drives.get(drive)?;
        let block = blocks.get(&block).filter(|_| *known == generation)?;
        Some((block.digest, block.devices.iter().rev().copied().collect()))
    }

    /// The drive is shared no more.
    pub fn forget(&self, drive: &str) {
        let mut tracked = self.0.lock();
        if let Some((_, blocks)) = tracked.drives.remove(drive) {
            tracked.count = tracked.count.saturating_sub(blocks.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(block: u64) -> BlockKey {
        BlockKey { owner: DeviceId([1; 32]), device: "drives/dvd".into(), generation: 3, block }
    }

    fn put(kept: &KeptBlocks, block: u64, data: &[u8]) -> [u8; 32] {
        let digest = *blake3::hash(data).as_bytes();
        kept.put(key(block), digest, data);
        digest
    }

    #[test]
    fn blocks_are_given_to_who_knows_their_digest_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let kept = KeptBlocks::open(&dir.path().join("blocks"), 25).unwrap();
        let first = put(&kept, 1, b"0123456789");
        let second = put(&kept, 2, b"abcdefghij");
        assert_eq!(kept.get(&key(1), &first).unwrap(), &b"0123456789"[..]);
        assert_eq!(kept.get(&key(1), &second), None, "another digest");
        assert_eq!(kept.get(&BlockKey { generation: 4, ..key(1) }, &first), None, "another disc");
        let third = put(&kept, 3, b"ABCDEFGHIJ");
        assert_eq!(kept.get(&key(1), &first), None, "made room");
        assert!(kept.get(&key(2), &second).is_some() && kept.get(&key(3), &third).is_some());
        assert_eq!(std::fs::read_dir(dir.path().join("blocks")).unwrap().count(), 2);
        put(&kept, 4, &[0; 26]);
        assert!(kept.get(&key(3), &third).is_some(), "what is larger than all room is not kept");
    }

    #[test]
    fn a_block_damaged_on_disk_is_not_given() {
        let dir = tempfile::tempdir().unwrap();
        let kept = KeptBlocks::open(dir.path(), 100).unwrap();
        let digest = put(&kept, 1, b"0123456789");
        std::fs::write(dir.path().join(key(1).file()), b"0123456780").unwrap();
        assert_eq!(kept.get(&key(1), &digest), None);
        let again = KeptBlocks::open(dir.path(), 100).unwrap();
        assert_eq!(again.get(&key(1), &digest), None, "a new process begins with nothing");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn holders_are_of_one_disc_and_few() {
        let holders = Holders::default();
        for device in 1..=6 {
            holders.note("drives/dvd", 1, 7, [9; 32], DeviceId([device; 32]));
        }
        let (digest, devices) = holders.of("drives/dvd", 1, 7).unwrap();
        assert_eq!((digest, devices.len(), devices[0]), ([9; 32], HOLDERS_MAX, DeviceId([6; 32])));
        assert!(holders.of("drives/dvd", 2, 7).is_none() && holders.of("drives/x", 1, 7).is_none());
        holders.note("drives/dvd", 2, 8, [8; 32], DeviceId([1; 32]));
        assert!(holders.of("drives/dvd", 1, 7).is_none(), "the disc was changed");
        holders.forget("drives/dvd");
        assert!(holders.of("drives/dvd", 2, 8).is_none());
    }
}
