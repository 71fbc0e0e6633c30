//! Uploads in flight: whose they are, and which chunks they may name.
//!
//! Knowing a chunk's digest must not give its content. So a commit may only name chunks that this upload has *proven*: the
//! bytes came in under it, or they belong to a file that the caller named as a base and can read. What is not proven
//! counts as missing, whether the server has it or not. What arrived is noted in a log ([`super::proof_log`]), so that an
//! upload that a restart interrupted goes on; what the log lost is sent again, and dropped by the chunk store.
//!
//! An upload belongs to who named it first. It is forgotten an hour after it was last named, as its lease is.
//!
//! Bounds: [`UPLOADS_MAX`] uploads in total and [`UPLOADS_PER_OWNER`] of one owner, beyond which the least recently named
//! one is forgotten (of the same owner; for the total, of the owner with most). Proofs are kept as keyed 64-bit hashes in
//! two generations of [`GENERATION`], so that the last half million of an upload always count, twice as many as a commit
//! can name. At [`PROOFS_MAX`] in total, uploads of the owner with most proofs are forgotten first. Forgetting costs a
//! client that chunks are sent again, nothing else.

use super::App;
use super::caller::Caller;
use super::file_state::FileState;
use super::proof_log::ProofLog;
use common::chunk::{LEASE_IDLE, Lease};
use common::error::{Error, Reason, Result};
use common::model::{ChunkId, ChunkRef, UploadId};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use uuid::Uuid;

/// Most uploads.
pub const UPLOADS_MAX: usize = 8_192;
/// Most uploads of one owner.
pub const UPLOADS_PER_OWNER: usize = 256;
/// Proofs of one generation of an upload.
pub const GENERATION: usize = 524_288;
/// Most proofs of all uploads: some 80 MiB.
pub const PROOFS_MAX: usize = 4 * 1024 * 1024;

/// All uploads in flight.
#[derive(Default)]
pub struct Uploads {
    table: Mutex<Table>,
    /// Secret, so that nobody can look for another chunk with the same short hash.
    key: RandomState,
    log: ProofLog,
}

#[derive(Default)]
struct Table {
    uploads: HashMap<UploadId, Upload>,
    /// The same by owner, in the order of their last use: at the bound that is asked for with every new upload.
    by_use: HashMap<Arc<str>, BTreeSet<(u64, Uuid)>>,
    proofs: usize,
}

struct Upload {
    owner: Arc<str>,
    last_ms: u64,
    newer: HashSet<u64>,
    older: HashSet<u64>,
}

impl Upload {
    fn proofs(&self) -> usize {
        self.newer.len() + self.older.len()
    }
    fn is_over(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.last_ms) >= LEASE_IDLE.as_millis() as u64
    }
}

impl Table {
    fn forget(&mut self, upload: UploadId) {
        let Some(gone) = self.uploads.remove(&upload) else { return };
        self.proofs -= gone.proofs();
        if let Some(own) = self.by_use.get_mut(&gone.owner) {
            own.remove(&(gone.last_ms, upload.0));
            if own.is_empty() {
                self.by_use.remove(&gone.owner);
            }
        }
    }

    fn touch(&mut self, id: UploadId, owner: &str, now_ms: u64) -> Result<bool> {
        let Some(upload) = self.uploads.get_mut(&id) else { return Ok(false) };
        if upload.is_over(now_ms) {
            self.forget(id);
            return Ok(false);
        }
        if *upload.owner != *owner {
            return Err(Error::new(Reason::UploadInvalid, "the upload id is another's").with("field", "upload_id"));
        }
        let then = upload.last_ms;
        upload.last_ms = then.max(now_ms);
        let (owner, now) = (upload.owner.clone(), upload.last_ms);
        if let Some(own) = self.by_use.get_mut(&owner) {
            own.remove(&(then, id.0));
            own.insert((now, id.0));
        }
        Ok(true)
    }

    fn insert(&mut self, id: UploadId, owner: &str, now_ms: u64) {
        let owner: Arc<str> = match self.by_use.get_key_value(owner) {
            Some((owner, _)) => owner.clone(),
            None => owner.into(),
        };
        self.by_use.entry(owner.clone()).or_default().insert((now_ms, id.0));
        self.uploads.insert(id, Upload { owner, last_ms: now_ms, newer: HashSet::new(), older: HashSet::new() });
    }

    /// The owner with most, by this measure.
    fn largest(&self, measure: impl Fn(&Upload) -> usize) -> Option<Arc<str>> {
        let mut sums: HashMap<&Arc<str>, usize> = HashMap::new();
        for upload in self.uploads.values() {
            *sums.entry(&upload.owner).or_default() += measure(upload);
        }
        sums.into_iter().max_by_key(|(_, sum)| *sum).map(|(owner, _)| owner.clone())
    }

    fn least_recent_of(&self, owner: &str, except: UploadId) -> Option<UploadId> {
        self.by_use.get(owner)?.iter().map(|(_, id)| UploadId(*id)).find(|id| *id != except)
    }

    fn make_room(&mut self, owner: &str, now_ms: u64) {
        if self.by_use.get(owner).map_or(0, BTreeSet::len) >= UPLOADS_PER_OWNER
            && let Some(oldest) = self.least_recent_of(owner, UploadId(uuid::Uuid::nil()))
        {
            self.forget(oldest);
        }
        if self.uploads.len() >= UPLOADS_MAX {
            self.expire(now_ms);
        }
        if self.uploads.len() >= UPLOADS_MAX
            && let Some(largest) = self.by_use.iter().max_by_key(|(_, own)| own.len()).map(|(owner, _)| owner.clone())
            && let Some(oldest) = self.least_recent_of(&largest, UploadId(uuid::Uuid::nil()))
        {
            self.forget(oldest);
        }
    }

    fn expire(&mut self, now_ms: u64) {
        let is_over = |last_ms: u64| now_ms.saturating_sub(last_ms) >= LEASE_IDLE.as_millis() as u64;
        let own = self.by_use.values();
        let over: Vec<Uuid> =
            own.flat_map(|own| own.iter().take_while(|(last_ms, _)| is_over(*last_ms))).map(|(_, id)| *id).collect();
        over.into_iter().for_each(|id| self.forget(UploadId(id)));
    }

    fn add(&mut self, id: UploadId, proofs: impl Iterator<Item = u64>) {
        for proof in proofs {
            let Some(upload) = self.uploads.get_mut(&id) else { return };
            if upload.newer.len() >= GENERATION && !upload.newer.contains(&proof) {
                let dropped = std::mem::replace(&mut upload.older, std::mem::take(&mut upload.newer));
                self.proofs -= dropped.len();
            }
            if upload.newer.insert(proof) {
                self.proofs += 1;
            }
        }
        while self.proofs > PROOFS_MAX {
            let victim = self.largest(Upload::proofs).and_then(|owner| self.least_recent_of(&owner, id));
            match victim {
                Some(victim) => self.forget(victim),
                // The largest owner has only this upload: its older generation has to do.
                None => {
                    let Some(upload) = self.uploads.get_mut(&id) else { return };
                    let dropped = std::mem::take(&mut upload.older).len();
                    self.proofs -= dropped;
                    if dropped == 0 {
                        return;
                    }
                }
            }
        }
    }
}

impl Uploads {
    /// With a log in this directory, and what it remembers of uploads that are not over.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(directory: &std::path::Path, now_ms: u64) -> Result<Self> {
        let (log, arrived) = ProofLog::open(directory)?;
        let uploads = Self { log, ..Self::default() };
        for record in arrived {
            let over = now_ms.saturating_sub(record.time_ms) >= LEASE_IDLE.as_millis() as u64;
            if !over && uploads.enter(record.upload, &record.owner, record.time_ms).is_ok() {
                uploads.add(record.upload, record.chunks.into_iter());
            }
        }
        Ok(uploads)
    }

    /// Uploads and proofs that are kept now.
    pub fn count(&self) -> (usize, usize) {
        let table = self.table.lock();
        (table.uploads.len(), table.proofs)
    }

    /// Forgets what was not named for an hour.
    pub fn expire(&self, now_ms: u64) {
        self.table.lock().expire(now_ms);
    }

    /// Keeps an upload for another hour. False if there is none of this id.
    fn touch(&self, id: UploadId, owner: &str, now_ms: u64) -> Result<bool> {
        self.table.lock().touch(id, owner, now_ms)
    }

    fn enter(&self, id: UploadId, owner: &str, now_ms: u64) -> Result<()> {
        let mut table = self.table.lock();
        if !table.touch(id, owner, now_ms)? {
            table.make_room(owner, now_ms);
            table.insert(id, owner, now_ms);
        }
        Ok(())
    }

    fn add(&self, id: UploadId, chunks: impl Iterator<Item = ChunkId>) {
        self.table.lock().add(id, chunks.map(|c| self.key.hash_one(c.0)));
    }

    fn unproven(&self, id: UploadId, chunks: &[ChunkRef]) -> Vec<usize> {
        let table = self.table.lock();
        let Some(upload) = table.uploads.get(&id) else { return (0..chunks.len()).collect() };
        let proven = |c: &ChunkRef| {
            let proof = self.key.hash_one(c.id.0);
            upload.newer.contains(&proof) || upload.older.contains(&proof)
        };
        (0..chunks.len()).filter(|at| !proven(&chunks[*at])).collect()
    }
}

impl fmt::Debug for Uploads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (uploads, proofs) = self.count();
        write!(f, "Uploads({uploads} uploads, {proofs} proofs)")
    }
}

/// A caller's upload.
#[derive(Clone)]
pub struct Owned {
    files: Arc<FileState>,
    id: UploadId,
    owner: String,
    begin_ms: u64,
    lease: Lease,
}

fn check_id(id: UploadId) -> Result<()> {
    if id.0.is_nil() {
        return Err(Error::new(Reason::UploadInvalid, "the upload id is nil").with("field", "upload_id"));
    }
    Ok(())
}

/// Names an upload: the first time makes it the caller's, each time keeps it and its chunks for another hour.
///
/// # Errors
/// `UPLOAD_INVALID` for the nil UUID and for somebody else's upload.
pub fn begin(app: &App, caller: &Caller, id: UploadId) -> Result<Owned> {
    check_id(id)?;
    let (owner, begin_ms) = (caller.actor(), app.clock.now_ms());
    app.files.uploads.enter(id, &owner, begin_ms)?;
    Ok(Owned { files: app.files.clone(), id, owner, begin_ms, lease: app.chunks.lease(id) })
}

/// Names an upload for files without any chunks, which need neither proofs nor a lease: nothing is begun by it.
///
/// # Errors
/// As [`begin`].
pub fn name(app: &App, caller: &Caller, id: UploadId) -> Result<()> {
    check_id(id)?;
    app.files.uploads.touch(id, &caller.actor(), app.clock.now_ms()).map(drop)
}

impl Owned {
    /// What its chunks are kept under.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Notes that these chunks came in under the upload, each checked against its digest.
    ///
    /// # Errors
    /// None at present.
    pub fn arrived(&self, chunks: &[ChunkRef]) -> Result<()> {
        self.prove(chunks.iter().map(|c| c.id));
        let ids: Vec<ChunkId> = chunks.iter().map(|c| c.id).collect();
        self.files.uploads.log.note(self.id, &self.owner, self.begin_ms, &ids);
        Ok(())
    }

    /// Notes that the caller may read these chunks.
    pub fn prove(&self, chunks: impl Iterator<Item = ChunkId>) {
        self.files.uploads.add(self.id, chunks);
    }

    /// Positions of chunks that the caller has not shown to have.
    pub fn unproven(&self, chunks: &[ChunkRef]) -> Vec<usize> {
        self.files.uploads.unproven(self.id, chunks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> UploadId {
        UploadId(Uuid::from_u128(n))
    }
    fn chunk(n: u64) -> ChunkId {
        ChunkId::of(&n.to_le_bytes())
    }
    fn unproven(uploads: &Uploads, upload: UploadId, chunks: impl Iterator<Item = u64>) -> usize {
        let chunks: Vec<ChunkRef> = chunks.map(|n| ChunkRef { id: chunk(n), len: 8 }).collect();
        uploads.unproven(upload, &chunks).len()
    }

    #[test]
    fn an_upload_is_its_owners_and_proves_what_was_shown() {
        let uploads = Uploads::default();
        uploads.enter(id(1), "user:anna", 0).unwrap();
        uploads.add(id(1), [chunk(1), chunk(2)].into_iter());
        assert_eq!(unproven(&uploads, id(1), 1..=3), 1);
        assert!(uploads.enter(id(1), "user:bert", 10).unwrap_err().is(Reason::UploadInvalid));
        uploads.enter(id(2), "user:bert", 10).unwrap();
        assert_eq!(unproven(&uploads, id(2), 1..=2), 2, "another upload proves nothing");
        assert_eq!(unproven(&uploads, id(3), 1..=2), 2, "neither does one that nobody began");
    }

    #[test]
    fn an_idle_upload_is_forgotten_and_free() {
        let uploads = Uploads::default();
        let hour = LEASE_IDLE.as_millis() as u64;
        uploads.enter(id(1), "user:anna", 0).unwrap();
        uploads.add(id(1), [chunk(1)].into_iter());
        uploads.enter(id(1), "user:anna", hour - 1).unwrap();
        assert_eq!(unproven(&uploads, id(1), 1..=1), 0, "named within the hour");
        uploads.enter(id(1), "user:bert", 2 * hour).unwrap();
        assert_eq!(unproven(&uploads, id(1), 1..=1), 1, "the next owner begins with nothing");
        uploads.expire(4 * hour);
        assert_eq!(uploads.count(), (0, 0));
    }

    #[test]
    fn the_number_of_uploads_is_bounded_for_one_owner_and_for_all() {
        let uploads = Uploads::default();
        for n in 0..UPLOADS_PER_OWNER as u128 + 1 {
            uploads.enter(id(n + 1), "user:anna", n as u64).unwrap();
            uploads.add(id(n + 1), [chunk(7)].into_iter());
        }
        assert_eq!(uploads.count(), (UPLOADS_PER_OWNER, UPLOADS_PER_OWNER));
        assert_eq!(unproven(&uploads, id(1), 7..=7), 1, "the oldest went");
        uploads.enter(id(1_000_000), "user:bert", 1).unwrap();
        for n in 0..UPLOADS_MAX as u128 {
            uploads.enter(id(2_000_000 + n), &format!("user:{}", n / 200), 400).unwrap();
        }
        assert_eq!(uploads.count().0, UPLOADS_MAX);
        assert!(uploads.table.lock().uploads.contains_key(&id(1_000_000)), "who has one keeps it");
    }

    #[test]
    fn proofs_are_bounded_and_the_newest_stay() {
        let uploads = Uploads::default();
        uploads.enter(id(1), "user:anna", 0).unwrap();
        uploads.add(
            id(1),
            (0..2 * GENERATION as u64 + 10).map(|n| {
                let mut raw = [0; 32];
                raw[..8].copy_from_slice(&n.to_le_bytes());
                ChunkId(raw)
            }),
        );
        let (_, proofs) = uploads.count();
        assert!(proofs <= 2 * GENERATION, "{proofs}");
        let newest = 2 * GENERATION as u64;
        let of = |n: u64| {
            let mut raw = [0; 32];
            raw[..8].copy_from_slice(&n.to_le_bytes());
            ChunkRef { id: ChunkId(raw), len: 1 }
        };
        let last: Vec<ChunkRef> = (newest - GENERATION as u64..newest).map(of).collect();
        assert!(uploads.unproven(id(1), &last).is_empty());
        assert_eq!(uploads.unproven(id(1), &[of(0)]), [0]);
    }
}
