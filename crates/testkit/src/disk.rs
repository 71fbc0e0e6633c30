//! A disk in memory that can be cut off from power, fail at any step, and be full.
//!
//! What was not synced survives a power cut in part: each 512-byte sector of each write by chance, each change of length
//! by chance, and the changes of names up to some point of their order.

use std::any::Any;
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use common::chunk::disk::{Disk, DiskFile};
use parking_lot::{Mutex, MutexGuard};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Truncate(u64),
}

#[derive(Clone, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum NameChange {
    Set(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Clone, Default)]
struct World {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    name_changes: Vec<NameChange>,
    steps: u64,
    die_at: Option<u64>,
    dead: bool,
    capacity: Option<u64>,
    fail_syncs: bool,
    fail_truncate: bool,
    locked: bool,
    open_files: usize,
    open_files_max: usize,
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, data) => {
            let end = *at as usize + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at as usize..end].copy_from_slice(data);
        }
        Change::Truncate(len) => bytes.resize(*len as usize, 0),
    }
}

fn apply_name(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Set(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameChange::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
    }
}

impl World {
    /// Counts a step that changes the disk; the chosen one is the last.
    fn step(&mut self) -> io::Result<()> {
        self.alive()?;
        self.steps += 1;
        if self.die_at == Some(self.steps) {
            self.dead = true;
        }
        self.alive()
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    fn used(&self) -> u64 {
        self.names.values().map(|i| self.inodes[*i].now.len() as u64).sum()
    }
}

/// The disk; clones are the same disk. Its methods panic where a test names what is not there.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<World>>);

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SimDisk").field(&self.steps()).finish()
    }
}

impl SimDisk {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock()
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.world().steps
    }

    /// Every step from this one on fails; the write that is this step may be done in part.
    pub fn die_at(&self, step: u64) {
        self.world().die_at = Some(step);
    }

    /// Whether that step has come.
    pub fn is_dead(&self) -> bool {
        self.world().dead
    }

    /// At most this many bytes fit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.world().capacity = bytes;
    }

    /// Nothing can be synced from now on.
    pub fn fail_syncs(&self, fail: bool) {
        self.world().fail_syncs = fail;
    }

    /// No file can be made shorter from now on.
    pub fn fail_truncate(&self, fail: bool) {
        self.world().fail_truncate = fail;
    }

    /// Most files that were open at a time.
    pub fn open_files_max(&self) -> usize {
        self.world().open_files_max
    }

    /// The disk as a new process finds it after this one was killed: nothing is lost.
    pub fn after_kill(&self) -> SimDisk {
        let mut world = self.world().clone();
        (world.dead, world.die_at, world.locked, world.open_files) = (false, None, false, 0);
        SimDisk(Arc::new(Mutex::new(world)))
    }

    /// The disk after a power cut.
    pub fn after_power_cut(&self, seed: u64) -> SimDisk {
        let mut rng = StdRng::seed_from_u64(seed);
        let old = self.world().clone();
        let mut new = World { steps: old.steps, ..World::default() };
        // All, none, or half of what was not synced.
        let chance = [0.0, 0.5, 1.0, 0.9][rng.random_range(0..4)];
        for inode in &old.inodes {
            let mut bytes = inode.durable.clone();
            for change in &inode.pending {
                match change {
                    Change::Write(at, data) => {
                        for (n, sector) in data.chunks(512).enumerate() {
                            if rng.random_bool(chance) {
                                apply(&mut bytes, &Change::Write(at + 512 * n as u64, sector.to_vec()));
                            }
                        }
                    }
                    truncate if rng.random_bool(chance) => apply(&mut bytes, truncate),
                    Change::Truncate(_) => {}
                }
            }
            new.inodes.push(Inode { now: bytes.clone(), durable: bytes, pending: Vec::new() });
        }
        new.durable_names = old.durable_names.clone();
        let kept = rng.random_range(0..=old.name_changes.len());
        old.name_changes[..kept].iter().for_each(|c| apply_name(&mut new.durable_names, c));
        new.names = new.durable_names.clone();
        SimDisk(Arc::new(Mutex::new(new)))
    }

    /// Names and contents.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let world = self.world();
        world.names.iter().map(|(n, i)| (n.clone(), world.inodes[*i].now.clone())).collect()
    }

    /// Puts a file there, on disk.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut world = self.world();
        world.inodes.push(Inode { now: bytes.to_vec(), durable: bytes.to_vec(), pending: Vec::new() });
        let inode = world.inodes.len() - 1;
        world.names.insert(name.to_owned(), inode);
        world.durable_names.insert(name.to_owned(), inode);
    }

    /// Takes a file away.
    pub fn take(&self, name: &str) {
        let mut world = self.world();
        world.names.remove(name);
        world.durable_names.remove(name);
    }

    /// Flips one bit of a file.
    pub fn flip(&self, name: &str, at: usize) {
        let mut world = self.world();
        let inode = world.names[name];
        world.inodes[inode].now[at] ^= 0x10;
        if let Some(b) = world.inodes[inode].durable.get_mut(at) {
            *b ^= 0x10;
        }
    }

    fn handle(&self, inode: usize) -> Arc<dyn DiskFile> {
        let mut world = self.world();
        world.open_files += 1;
        world.open_files_max = world.open_files_max.max(world.open_files);
        Arc::new(SimFile { disk: self.clone(), inode })
    }
}

struct Unlock(SimDisk);

impl Drop for Unlock {
    fn drop(&mut self) {
        self.0.world().locked = false;
    }
}

impl Disk for SimDisk {
    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        let mut world = self.world();
        world.alive()?;
        if world.locked {
            return Ok(None);
        }
        world.locked = true;
        Ok(Some(Box::new(Unlock(self.clone()))))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let world = self.world();
        world.alive()?;
        Ok(world.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inode = {
            let mut world = self.world();
            world.step()?;
            if world.names.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            world.inodes.push(Inode::default());
            let inode = world.inodes.len() - 1;
            world.names.insert(name.to_owned(), inode);
            world.name_changes.push(NameChange::Set(name.to_owned(), inode));
            inode
        };
        Ok(self.handle(inode))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inode = {
            let world = self.world();
            world.alive()?;
            *world.names.get(name).ok_or(io::ErrorKind::NotFound)?
        };
        Ok(self.handle(inode))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.world();
        world.step()?;
        let change = NameChange::Rename(from.to_owned(), to.to_owned());
        apply_name(&mut world.names, &change);
        world.name_changes.push(change);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.world();
        world.alive()?;
        if !world.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.step()?;
        let change = NameChange::Remove(name.to_owned());
        apply_name(&mut world.names, &change);
        world.name_changes.push(change);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut world = self.world();
        world.step()?;
        if world.fail_syncs {
            return Err(io::Error::other("the disk reports an error"));
        }
        world.durable_names = world.names.clone();
        world.name_changes.clear();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let world = self.world();
        world.alive()?;
        Ok(world.capacity.map_or(u64::MAX, |c| c.saturating_sub(world.used())))
    }

    fn path(&self, _: &str) -> Option<PathBuf> {
        None
    }
}

struct SimFile {
    disk: SimDisk,
    inode: usize,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut world = self.disk.world();
        world.open_files = world.open_files.saturating_sub(1);
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        let world = self.disk.world();
        world.alive()?;
        Ok(world.inodes[self.inode].now.len() as u64)
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let world = self.disk.world();
        world.alive()?;
        let bytes = &world.inodes[self.inode].now;
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        Ok(bytes.get(from..from + len).ok_or(io::ErrorKind::UnexpectedEof)?.to_vec())
    }

    fn write_at(&self, offset: u64, data: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut bytes: Vec<u8> = data.iter().flat_map(|d| d.iter().copied()).collect();
        let mut world = self.disk.world();
        let result = world.step();
        if result.is_err() {
            if world.die_at != Some(world.steps) {
                return result;
            }
            // The step that dies is done in part; further ones not at all.
            bytes.truncate(bytes.len() * (world.steps as usize % 4) / 3);
            world.die_at = None;
        }
        let grows = (offset + bytes.len() as u64).saturating_sub(world.inodes[self.inode].now.len() as u64);
        let room = world.capacity.map_or(u64::MAX, |c| c.saturating_sub(world.used()));
        let full = grows > room;
        if full {
            bytes.truncate((bytes.len() as u64).saturating_sub(grows - room) as usize);
        }
        if !bytes.is_empty() {
            let change = Change::Write(offset, bytes);
            let inode = &mut world.inodes[self.inode];
            apply(&mut inode.now, &change);
            inode.pending.push(change);
        }
        if full { Err(io::ErrorKind::StorageFull.into()) } else { result }
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut world = self.disk.world();
        world.step()?;
        if world.fail_truncate {
            return Err(io::Error::other("the disk reports an error"));
        }
        let change = Change::Truncate(len);
        let inode = &mut world.inodes[self.inode];
        apply(&mut inode.now, &change);
        inode.pending.push(change);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut world = self.disk.world();
        world.step()?;
        if world.fail_syncs {
            return Err(io::Error::other("the disk reports an error"));
        }
        let inode = &mut world.inodes[self.inode];
        inode.durable = inode.now.clone();
        inode.pending.clear();
        Ok(())
    }

    fn forget_pages(&self) {}
}
