//! Which chunks arrived under which upload, on disk, so that an upload that a crash interrupted goes on from where it was
//! instead of from the beginning.
//!
//! Two files in `DATA/uploads`: `current`, appended to, and `previous`, what `current` was before it reached
//! `LIMIT_BYTES`. A record: length (u32 little-endian) of what follows, upload id (16), time (u64), owner (u8 length and
//! text), chunk ids (32 each), and the first 16 bytes of the BLAKE3 of all that. Reading ends at the first record that is
//! not whole. Nothing is synced: what is lost costs a client that it sends chunks again. What is read back proves only
//! that a chunk arrived; whether the store still has it is asked at the commit, as always.

use common::model::{ChunkId, UploadId};
use parking_lot::Mutex;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Size at which the files take turns: about half a million chunks each.
const LIMIT_BYTES: u64 = 16 * 1024 * 1024;
/// Chunk ids in one record.
const IDS_MAX: usize = 4096;
const CHECK: usize = 16;

/// The log. Without a directory it keeps nothing, for tests.
#[derive(Default)]
pub struct ProofLog {
    open: Mutex<Option<Open>>,
}

struct Open {
    directory: PathBuf,
    file: File,
    length: u64,
}

/// A record.
#[derive(Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Under which upload.
    pub upload: UploadId,
    /// Whose it is.
    pub owner: String,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// What.
    pub chunks: Vec<ChunkId>,
}

impl ProofLog {
    /// Opens the log and gives what it holds, oldest first.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(directory: &Path) -> io::Result<(Self, Vec<Arrived>)> {
        fs::create_dir_all(directory)?;
        let mut found = Vec::new();
        for name in ["previous", "current"] {
            match fs::read(directory.join(name)) {
                Ok(bytes) => decode(&bytes, &mut found),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // What follows a torn record would never be read: begin a file of its own.
        rotate(directory)?;
        let file = File::options().create(true).append(true).open(directory.join("current"))?;
        let mut open = Open { directory: directory.to_owned(), file, length: 0 };
        // What was in `previous` before is worth keeping while it is fresh; it is small beside what it saves.
        for record in found.iter().rev().take(1024).rev() {
            open.append(&encode(record))?;
        }
        Ok((Self { open: Mutex::new(Some(open)) }, found))
    }

    /// Notes chunks that arrived. Failing to costs only that they may have to be sent again, so it is logged, not given
    /// back.
    pub fn note(&self, upload: UploadId, owner: &str, time_ms: u64, chunks: &[ChunkId]) {
        let mut open = self.open.lock();
        let Some(log) = open.as_mut() else { return };
        for part in chunks.chunks(IDS_MAX) {
            let record = Arrived { upload, owner: owner.to_owned(), time_ms, chunks: part.to_vec() };
            if let Err(error) = log.append(&encode(&record)) {
                tracing::warn!(%error, "arrived chunks could not be noted; interrupted uploads begin anew");
                *open = None;
                return;
            }
        }
    }
}

impl fmt::Debug for ProofLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProofLog")
    }
}

impl Open {
    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        if self.length + record.len() as u64 > LIMIT_BYTES {
            rotate(&self.directory)?;
            self.file = File::options().create(true).append(true).open(self.directory.join("current"))?;
            self.length = 0;
        }
        self.file.write_all(record)?;
        self.length += record.len() as u64;
        Ok(())
    }
}

fn rotate(directory: &Path) -> io::Result<()> {
    match fs::rename(directory.join("current"), directory.join("previous")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn encode(record: &Arrived) -> Vec<u8> {
    // Account names have 64 bytes at most; a longer owner would only make the record unreadable.
    let owner = &record.owner.as_bytes()[..record.owner.len().min(255)];
    let mut out = vec![0; 4];
    out.extend_from_slice(record.upload.as_bytes());
    out.extend_from_slice(&record.time_ms.to_le_bytes());
    out.push(owner.len() as u8);
    out.extend_from_slice(owner);
    record.chunks.iter().for_each(|c| out.extend_from_slice(c.as_bytes()));
    let length = (out.len() - 4 + CHECK) as u32;
    out[..4].copy_from_slice(&length.to_le_bytes());
    let check = blake3::hash(&out);
    out.extend_from_slice(&check.as_bytes()[..CHECK]);
    out
}

fn decode(mut bytes: &[u8], out: &mut Vec<Arrived>) {
    while let Some((record, rest)) = decode_one(bytes) {
        out.push(record);
        bytes = rest;
    }
}

fn decode_one(bytes: &[u8]) -> Option<(Arrived, &[u8])> {
    let length = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let whole = bytes.get(..4 + length)?;
    let (body, check) = whole.split_at_checked(whole.len().checked_sub(CHECK)?)?;
    if blake3::hash(body).as_bytes()[..CHECK] != *check {
        return None;
    }
    let upload = UploadId(Uuid::from_slice(body.get(4..20)?).ok()?);
    let time_ms = u64::from_le_bytes(body.get(20..28)?.try_into().ok()?);
    let end = 29 + usize::from(*body.get(28)?);
    let owner = std::str::from_utf8(body.get(29..end)?).ok()?.to_owned();
    let ids = body.get(end..)?;
    let chunks = ids.chunks(32).map(ChunkId::from_slice).collect::<Option<Vec<_>>>()?;
    Some((Arrived { upload, owner, time_ms, chunks }, &bytes[4 + length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u8) -> Arrived {
        let chunks = (0..n).map(|i| ChunkId::of(&[n, i])).collect();
        Arrived { upload: UploadId(Uuid::from_u128(n.into())), owner: format!("user:u{n}"), time_ms: n.into(), chunks }
    }

    #[test]
    fn what_arrived_is_known_after_a_restart_up_to_the_torn_end() {
        let dir = tempfile::tempdir().unwrap();
        let (log, found) = ProofLog::open(dir.path()).unwrap();
        assert!(found.is_empty());
        for n in 1..4 {
            let r = record(n);
            log.note(r.upload, &r.owner, r.time_ms, &r.chunks);
        }
        drop(log);
        let path = dir.path().join("current");
        let bytes = fs::read(&path).unwrap();
        for end in 0..bytes.len() {
            let mut found = Vec::new();
            decode(&bytes[..end], &mut found);
            assert!(found.len() < 3);
            assert!(found.iter().zip(1..).all(|(r, n)| *r == record(n)));
        }
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let (log, found) = ProofLog::open(dir.path()).unwrap();
        assert_eq!(found, [record(1), record(2)]);
        log.note(record(3).upload, &record(3).owner, 3, &record(3).chunks);
        drop(log);
        let (_, found) = ProofLog::open(dir.path()).unwrap();
        assert!(found.contains(&record(1)) && found.contains(&record(3)));
    }

    #[test]
    fn a_flipped_bit_ends_the_reading() {
        let bytes: Vec<u8> = [record(1), record(2)].iter().flat_map(encode).collect();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            let mut found = Vec::new();
            decode(&bad, &mut found);
            assert!(found.len() < 2, "byte {at}");
        }
    }

    #[test]
    fn the_files_take_turns_at_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = ProofLog::open(dir.path()).unwrap();
        let chunks: Vec<ChunkId> = (0..IDS_MAX).map(|i| ChunkId::of(&i.to_le_bytes())).collect();
        for n in 0..300u64 {
            log.note(UploadId(Uuid::from_u128(n.into())), "user:anna", n, &chunks);
        }
        let total: u64 = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(total <= 2 * LIMIT_BYTES);
    }
}
