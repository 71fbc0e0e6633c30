//! The journal of all printers of a node: a small durable map from keys to values, with group commit.
//!
//! # Layout
//!
//! One file, `journal`: a header (magic, 16 random bytes), then frames. A frame is a length, a check and a list of
//! operations (put or delete a key). The check is BLAKE3 over the check before it, the length and the content, keyed by
//! the header's random bytes: a frame is valid only at its place in its file, so neither a torn write nor an old block
//! behind the end is taken for one. The file is filled with zeros ahead of the end, in steps of [`STEP`], so that a commit
//! writes over existing blocks and `fdatasync` has no metadata to write.
//!
//! # Invariants
//!
//! * One thread writes. It takes all waiting batches at once (up to [`GROUP`]), writes them as **one** frame, syncs, and only
//!   then answers: a batch is there as a whole or not at all, and batches are there in the order in which they were given.
//! * Reading after a crash stops at the first frame whose check is wrong; all frames that were answered lie before it.
//! * When more than half of a large file is outdated, what is alive is copied to `journal.new`, synced, and renamed over it.
//!   A crash before the rename leaves the old file, one after it the new one; `journal.new` is removed on opening.
//! * A write that fails before the sync (disk full) changes nothing: the end does not move, all batches of the group are
//!   refused, later ones may succeed. A sync that fails makes the journal refuse everything until it is opened again,
//!   because nobody can say any more what is on disk.
//!
//! Accounting lines go to `accounting.jsonl` after the frame of their batch is on disk; the owner writes those again that a
//! crash kept out (see [`Journal::accounted`]).
//!
//! # Bounds
//!
//! Only keys and places are kept in memory, not values.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use bytes::Bytes;
use common::error::{Error, Reason, Result};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::fault::Faults;

const MAGIC: &[u8; 16] = b"atrium-print-1\n\0";
const HEADER: u64 = 32;
/// The file grows by this.
pub const STEP: u64 = 8 << 20;
/// Bytes of batches that are written as one frame, about; a frame has at most this and one batch.
pub const GROUP: usize = 8 << 20;

/// Length and check before a frame's content.
const FRAME_HEAD: usize = 4 + 16;
/// A smaller file is not copied to make it smaller.
const COMPACT_FROM: u64 = 32 << 20;
/// When the accounting file has this size, it is put aside and a new one begun.
const ACCOUNTING_FILE: u64 = 64 << 20;

/// A change of the map.
#[derive(Clone, Debug)]
pub enum Write {
    /// Sets a value.
    Put(String, Bytes),
    /// Removes a key.
    Delete(String),
    /// Adds a line to the accounting file.
    Account(String),
}

/// Why a batch is not on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// No room; nothing changed.
    Full,
    /// The journal is out of order.
    Failed,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Full => Error::new(Reason::DiskFull, "the print spool's disk is full")
                .why_is("the disk of the printer's machine is nearly full")
                .fix_is("free space on the printer's machine; nothing was lost"),
            Failure::Failed => Error::new(Reason::IoFailed, "the print spool cannot be written"),
        }
    }
}

/// Resolves when a batch is on disk, or is refused.
pub type Ticket = Shared<BoxFuture<'static, Result<(), Failure>>>;

/// Where a value lies.
#[derive(Clone, Debug)]
pub struct Place {
    /// The file; stays readable after the journal was copied.
    pub file: Arc<File>,
    /// Where the value begins.
    pub offset: u64,
    /// Its length.
    pub length: u64,
}

struct Work {
    batch: Vec<Write>,
    done: oneshot::Sender<Result<(), Failure>>,
}

type Index = Arc<Mutex<HashMap<String, Place>>>;

/// The journal, open.
pub struct Journal {
    work: Option<mpsc::Sender<Work>>,
    index: Index,
    thread: Option<JoinHandle<()>>,
    accounted: HashSet<String>,
}

impl Journal {
    /// Opens or makes the journal of a directory, which must be locked by the caller.
    ///
    /// # Errors
    /// If the files cannot be read or written, or are of another kind.
    pub fn open(dir: &Path, faults: Faults) -> Result<Self> {
        let _ = std::fs::remove_file(dir.join("journal.new"));
        let path = dir.join("journal");
        let (log, places) = if path.exists() { Log::read(&path)? } else { (Log::create(&path)?, HashMap::new()) };
        sync_dir(dir)?;
        let index: Index = Arc::new(Mutex::new(places));
        let (accounting, accounted) = Accounting::open(dir)?;
        let mut writer =
            Writer { dir: dir.to_owned(), log, index: Arc::clone(&index), accounting, faults, failed: false };
        writer.compact_if_due()?;
        let (work, waiting) = mpsc::channel();
        let thread = std::thread::Builder::new().name("print-journal".into()).spawn(move || writer.run(&waiting))?;
        Ok(Self { work: Some(work), index, thread: Some(thread), accounted })
    }

    /// Puts a batch on disk, all of it or nothing, after all batches that were given before.
    ///
    /// How many wait is bounded by who calls: the printers' connections and outputs.
    pub fn write(&self, batch: Vec<Write>) -> Ticket {
        let (done, answer) = oneshot::channel();
        if let Some(work) = &self.work
            && !batch.is_empty()
        {
            let _ = work.send(Work { batch, done });
        } else {
            let _ = done.send(Ok(()));
        }
        answer.map(|answer| answer.unwrap_or(Err(Failure::Failed))).boxed().shared()
    }

    /// Resolves when all that was given before is on disk or refused.
    pub fn flush(&self) -> Ticket {
        let (done, answer) = oneshot::channel();
        if let Some(work) = &self.work {
            let _ = work.send(Work { batch: Vec::new(), done });
        }
        answer.map(|answer| answer.unwrap_or(Err(Failure::Failed))).boxed().shared()
    }

    /// Where the value of a key lies, once it is on disk.
    pub fn place(&self, key: &str) -> Option<Place> {
        self.index.lock().get(key).cloned()
    }

    /// All keys that begin so, with their values.
    ///
    /// # Errors
    /// If a value cannot be read.
    pub fn load(&self, prefix: &str) -> Result<BTreeMap<String, Vec<u8>>> {
        let places: Vec<_> = self
            .index
            .lock()
            .iter()
            .filter(|(k, _)| k.starts_with(prefix))
            .map(|(k, p)| (k.clone(), p.clone()))
            .collect();
        let mut values = BTreeMap::new();
        for (key, place) in places {
            let mut value = vec![0; place.length as usize];
            place.file.read_exact_at(&mut value, place.offset)?;
            values.insert(key, value);
        }
        Ok(values)
    }

    /// All keys that begin so.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        self.index.lock().keys().filter(|k| k.starts_with(prefix)).cloned().collect()
    }

    /// True if a job's line was in the accounting file when the journal was opened.
    pub fn accounted(&self, uuid: &str) -> bool {
        self.accounted.contains(uuid)
    }

    /// Writes what waits and ends the thread.
    pub fn close(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

struct Writer {
    dir: PathBuf,
    log: Log,
    index: Index,
    accounting: Accounting,
    faults: Faults,
    failed: bool,
}

impl Writer {
    fn run(&mut self, waiting: &mpsc::Receiver<Work>) {
        while let Ok(first) = waiting.recv() {
            let mut group = vec![first];
            let mut size = 0;
            while size < GROUP {
                let Ok(next) = waiting.try_recv() else { break };
                size += next.batch.iter().map(size_of_write).sum::<usize>();
                group.push(next);
            }
            let result = self.commit(&group);
            for work in group {
                let _ = work.done.send(result);
            }
            if result.is_ok()
                && !self.failed
                && let Err(error) = self.compact_if_due()
            {
                tracing::warn!(?error, "the print journal could not be made smaller; it works on");
            }
        }
    }

    fn commit(&mut self, group: &[Work]) -> Result<(), Failure> {
        if self.failed {
            return Err(Failure::Failed);
        }
        let mut content = Vec::new();
        let mut places = Vec::new();
        for write in group.iter().flat_map(|w| &w.batch) {
            encode_write(write, &mut content, &mut places);
        }
        if !content.is_empty() {
            let written = self.faults.at("journal-write").and_then(|()| self.log.write(&content));
            let base = written.map_err(|error| {
                tracing::error!(%error, "the print journal cannot be written");
                Failure::Full
            })?;
            let synced = self.faults.at("journal-sync").and_then(|()| self.log.file.sync_data());
            if let Err(error) = synced {
                tracing::error!(%error, "the print journal's disk failed; no jobs are taken until the program is restarted");
                self.failed = true;
                return Err(Failure::Failed);
            }
            self.log.accept(content.len());
            self.publish(places, base);
        }
        let lines = group.iter().flat_map(|w| &w.batch).filter_map(|w| match w {
            Write::Account(line) => Some(line.as_str()),
            _ => None,
        });
        if let Err(error) = self.faults.at("account").and_then(|()| self.accounting.append(&self.dir, lines)) {
            // The jobs are over and charged; their lines are written when the journal is opened again.
            tracing::error!(%error, "the accounting file cannot be written");
        }
        self.faults.at("journal-synced").map_err(|_| Failure::Failed)
    }

    fn publish(&mut self, places: Vec<Operation>, base: u64) {
        let mut index = self.index.lock();
        for (key, place) in places {
            let old = match place {
                Some((at, length)) => {
                    self.log.live += length as u64;
                    let place =
                        Place { file: Arc::clone(&self.log.file), offset: base + at as u64, length: length as u64 };
                    index.insert(key, place)
                }
                None => index.remove(&key),
            };
            self.log.live -= old.map_or(0, |p| p.length);
        }
    }

    fn compact_if_due(&mut self) -> Result<()> {
        if self.log.end < COMPACT_FROM || self.log.live * 2 > self.log.end {
            return Ok(());
        }
        let path = self.dir.join("journal.new");
        let mut log = Log::create(&path)?;
        let old: Vec<(String, Place)> = self.index.lock().iter().map(|(k, p)| (k.clone(), p.clone())).collect();
        let mut fresh = HashMap::new();
        for (key, place) in old {
            let mut value = vec![0; place.length as usize];
            place.file.read_exact_at(&mut value, place.offset)?;
            let (mut content, mut places) = (Vec::new(), Vec::new());
            encode_write(&Write::Put(key.clone(), value.into()), &mut content, &mut places);
            let base = log.write(&content)?;
            log.accept(content.len());
            log.live += place.length;
            let at = places.first().and_then(|p| p.1).map_or(0, |p| p.0);
            fresh.insert(key, Place { file: Arc::clone(&log.file), offset: base + at as u64, length: place.length });
        }
        log.file.sync_all()?;
        self.faults.at("journal-copied")?;
        std::fs::rename(&path, self.dir.join("journal"))?;
        sync_dir(&self.dir)?;
        // Nothing was written in between: this thread is the only one that does.
        *self.index.lock() = fresh;
        self.log = log;
        Ok(())
    }
}

fn size_of_write(write: &Write) -> usize {
    match write {
        Write::Put(key, value) => key.len() + value.len() + 16,
        Write::Delete(key) => key.len() + 16,
        Write::Account(line) => line.len(),
    }
}

fn encode_write(write: &Write, out: &mut Vec<u8>, places: &mut Vec<Operation>) {
    let mut head = |kind: u8, key: &str, length: usize| {
        out.push(kind);
        out.extend_from_slice(&(key.len() as u16).to_le_bytes());
        out.extend_from_slice(&(length as u32).to_le_bytes());
        out.extend_from_slice(key.as_bytes());
        out.len()
    };
    match write {
        Write::Put(key, value) => {
            let at = head(1, key, value.len());
            out.extend_from_slice(value);
            places.push((key.clone(), Some((at, value.len()))));
        }
        Write::Delete(key) => {
            head(2, key, 0);
            places.push((key.clone(), None));
        }
        Write::Account(_) => {}
    }
}

/// A key, and where in the content its new value lies; removed if nowhere.
type Operation = (String, Option<(usize, usize)>);

/// Operations of a frame's content: key, and place of the value.
fn decode_content(content: &[u8]) -> Option<Vec<Operation>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < content.len() {
        let head = content.get(at..at + 7)?;
        let key_length = usize::from(u16::from_le_bytes([head[1], head[2]]));
        let length = u32::from_le_bytes(head[3..7].try_into().ok()?) as usize;
        let key = std::str::from_utf8(content.get(at + 7..at + 7 + key_length)?).ok()?;
        at += 7 + key_length;
        content.get(at..at + length)?;
        found.push((key.to_owned(), (head[0] == 1).then_some((at, length))));
        at += length;
    }
    Some(found)
}

/// The file.
struct Log {
    file: Arc<File>,
    key: [u8; 32],
    /// Check of the last frame.
    chain: [u8; 16],
    /// Check of the frame that is written and not accepted yet.
    next: [u8; 16],
    end: u64,
    /// Up to where it is filled with zeros.
    filled: u64,
    /// Bytes of values that are in use.
    live: u64,
}

impl Log {
    fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let salt: [u8; 16] = rand::random();
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&salt);
        file.write_all_at(&header, 0)?;
        file.sync_all()?;
        Ok(Self::of(file, salt))
    }

    fn of(file: File, salt: [u8; 16]) -> Self {
        let key = blake3::derive_key("atrium 2026 print journal", &salt);
        Self { file: Arc::new(file), key, chain: [0; 16], next: [0; 16], end: HEADER, filled: HEADER, live: 0 }
    }

    fn read(path: &Path) -> Result<(Self, HashMap<String, Place>)> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let size = file.metadata()?.len();
        let mut header = [0; HEADER as usize];
        if size < HEADER || file.read_exact_at(&mut header, 0).is_err() || &header[..16] != MAGIC {
            // A file that was being made when the machine stopped holds nothing.
            if size < HEADER {
                return Ok((Self::create(path)?, HashMap::new()));
            }
            return Err(Error::new(Reason::StoreCorrupt, "the print journal is not one that this version can read"));
        }
        let salt: [u8; 16] = std::array::from_fn(|n| header[16 + n]);
        let mut log = Self::of(file, salt);
        log.filled = size;
        let mut places: HashMap<String, Place> = HashMap::new();
        loop {
            let mut head = [0; FRAME_HEAD];
            if log.file.read_exact_at(&mut head, log.end).is_err() {
                break;
            }
            let length = u64::from(u32::from_le_bytes([head[0], head[1], head[2], head[3]]));
            let start = log.end + FRAME_HEAD as u64;
            if length == 0 || start + length > size {
                break;
            }
            let mut content = vec![0; length as usize];
            log.file.read_exact_at(&mut content, start)?;
            let check = log.check(&content);
            if head[4..] != check {
                break;
            }
            let Some(operations) = decode_content(&content) else {
                return Err(Error::new(Reason::StoreCorrupt, "the print journal has a frame that makes no sense"));
            };
            for (key, place) in operations {
                let old = match place {
                    Some((at, length)) => {
                        log.live += length as u64;
                        let offset = start + at as u64;
                        places.insert(key, Place { file: Arc::clone(&log.file), offset, length: length as u64 })
                    }
                    None => places.remove(&key),
                };
                log.live -= old.map_or(0, |p| p.length);
            }
            log.next = check;
            log.accept(content.len());
        }
        Ok((log, places))
    }

    fn check(&self, content: &[u8]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&self.chain).update(&(content.len() as u64).to_le_bytes()).update(content);
        let mut check = [0; 16];
        hasher.finalize_xof().fill(&mut check);
        check
    }

    /// Writes a frame behind the end, which does not move yet; gives where its content begins.
    fn write(&mut self, content: &[u8]) -> io::Result<u64> {
        let length = u32::try_from(content.len()).map_err(io::Error::other)?;
        let after = self.end + (FRAME_HEAD + content.len()) as u64;
        if after + FRAME_HEAD as u64 > self.filled {
            self.fill(after + STEP)?;
        }
        self.next = self.check(content);
        let mut frame = Vec::with_capacity(FRAME_HEAD + content.len());
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(&self.next);
        frame.extend_from_slice(content);
        self.file.write_all_at(&frame, self.end)?;
        Ok(self.end + FRAME_HEAD as u64)
    }

    fn fill(&mut self, to: u64) -> io::Result<()> {
        let zeros = vec![0; 1 << 20];
        let mut at = self.filled;
        while at < to {
            let part = (to - at).min(zeros.len() as u64);
            self.file.write_all_at(&zeros[..part as usize], at)?;
            at += part;
        }
        self.file.sync_all()?;
        self.filled = to;
        Ok(())
    }

    /// The frame is on disk: the end moves behind it.
    fn accept(&mut self, content: usize) {
        self.end += (FRAME_HEAD + content) as u64;
        self.chain = self.next;
    }
}

/// Makes names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

struct Accounting {
    file: File,
    size: u64,
}

impl Accounting {
    /// Opens the file; gives the ids of the jobs in it and in the one before it.
    fn open(dir: &Path) -> Result<(Self, HashSet<String>)> {
        let mut ids = HashSet::new();
        let mut newest: Vec<PathBuf> = std::fs::read_dir(dir)?
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("accounting-")))
            .collect();
        newest.sort();
        let path = dir.join("accounting.jsonl");
        for path in newest.last().into_iter().chain([&path]) {
            let Ok(bytes) = std::fs::read(path) else { continue };
            for line in bytes.split(|b| *b == b'\n') {
                let Ok(line) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
                if let Some(uuid) = line.get("uuid").and_then(serde_json::Value::as_str) {
                    ids.insert(uuid.to_owned());
                }
            }
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        if size > 0 {
            // A line that was cut off by a crash must not swallow the next one.
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != [b'\n'] {
                file.write_all(b"\n")?;
            }
        }
        Ok((Self { file, size }, ids))
    }

    fn append<'a>(&mut self, dir: &Path, lines: impl Iterator<Item = &'a str>) -> io::Result<()> {
        let mut text = String::new();
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        if text.is_empty() {
            return Ok(());
        }
        if self.size > ACCOUNTING_FILE {
            let number = std::fs::read_dir(dir)?.count();
            std::fs::rename(dir.join("accounting.jsonl"), dir.join(format!("accounting-{number:06}.jsonl")))?;
            self.file = OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join("accounting.jsonl"))?;
            sync_dir(dir)?;
            self.size = 0;
        }
        self.file.write_all(text.as_bytes())?;
        self.file.sync_data()?;
        self.size += text.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Write {
        Write::Put(key.into(), Bytes::copy_from_slice(value.as_bytes()))
    }

    fn text(journal: &Journal, prefix: &str) -> Vec<(String, String)> {
        journal.load(prefix).unwrap().into_iter().map(|(k, v)| (k, String::from_utf8(v).unwrap())).collect()
    }

    #[tokio::test]
    async fn what_was_answered_is_there_after_opening_again() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), Faults::none()).unwrap();
        journal.write(vec![put("j/1", "a"), put("j/2", "b")]).await.unwrap();
        journal.write(vec![put("j/1", "c"), Write::Delete("j/2".into()), put("p/x", "d")]).await.unwrap();
        drop(journal);
        let journal = Journal::open(dir.path(), Faults::none()).unwrap();
        assert_eq!(text(&journal, "j/"), [("j/1".to_owned(), "c".to_owned())]);
        assert_eq!(journal.keys("").len(), 2);
    }

    #[tokio::test]
    async fn a_torn_frame_is_forgotten_and_all_before_it_stays() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), Faults::none()).unwrap();
        journal.write(vec![put("a", "1")]).await.unwrap();
        journal.write(vec![put("b", "2")]).await.unwrap();
        let place = journal.place("b").unwrap();
        drop(journal);
        let path = dir.path().join("journal");
        let whole = std::fs::read(&path).unwrap();
        // Each byte of the last frame in turn is not as it was written.
        for at in (place.offset as usize - FRAME_HEAD - 8)..=(place.offset as usize) {
            let mut torn = whole.clone();
            torn[at] ^= 0x40;
            std::fs::write(&path, torn).unwrap();
            let journal = Journal::open(dir.path(), Faults::none()).unwrap();
            assert_eq!(text(&journal, ""), [("a".to_owned(), "1".to_owned())], "{at}");
            // A new frame goes over the torn one, and nothing behind it comes back.
            journal.write(vec![put("c", "3")]).await.unwrap();
            drop(journal);
            let journal = Journal::open(dir.path(), Faults::none()).unwrap();
            assert_eq!(journal.keys("").len(), 2, "{at}");
        }
    }

    #[tokio::test]
    async fn a_full_disk_refuses_and_recovers() {
        let dir = tempfile::tempdir().unwrap();
        let (faults, switch) = Faults::switched();
        let journal = Journal::open(dir.path(), faults).unwrap();
        journal.write(vec![put("a", "1")]).await.unwrap();
        switch.fail("journal-write");
        assert_eq!(journal.write(vec![put("b", "2")]).await, Err(Failure::Full));
        switch.mend();
        journal.write(vec![put("c", "3")]).await.unwrap();
        drop(journal);
        let journal = Journal::open(dir.path(), Faults::none()).unwrap();
        assert_eq!(text(&journal, ""), [("a".to_owned(), "1".to_owned()), ("c".to_owned(), "3".to_owned())]);
    }

    #[tokio::test]
    async fn a_failed_sync_is_never_believed_again() {
        let dir = tempfile::tempdir().unwrap();
        let (faults, switch) = Faults::switched();
        let journal = Journal::open(dir.path(), faults).unwrap();
        switch.fail("journal-sync");
        assert_eq!(journal.write(vec![put("b", "2")]).await, Err(Failure::Failed));
        switch.mend();
        assert_eq!(journal.write(vec![put("c", "3")]).await, Err(Failure::Failed));
    }

    #[tokio::test]
    async fn copying_keeps_what_is_alive_and_old_places_stay_readable() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), Faults::none()).unwrap();
        let big = "x".repeat(1 << 20);
        journal.write(vec![put("keep", "me")]).await.unwrap();
        let before = journal.place("keep").unwrap();
        for _ in 0..40 {
            journal.write(vec![put("big", &big)]).await.unwrap();
        }
        // One more, so that the copying after the last batch is over.
        journal.write(vec![put("last", "1")]).await.unwrap();
        assert!(std::fs::metadata(dir.path().join("journal")).unwrap().len() < COMPACT_FROM);
        let mut value = [0; 2];
        before.file.read_exact_at(&mut value, before.offset).unwrap();
        assert_eq!(&value, b"me");
        drop(journal);
        let journal = Journal::open(dir.path(), Faults::none()).unwrap();
        assert_eq!(text(&journal, "keep"), [("keep".to_owned(), "me".to_owned())]);
        assert_eq!(journal.keys("").len(), 3);
    }

    #[tokio::test]
    async fn accounting_lines_survive_and_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), Faults::none()).unwrap();
        journal.write(vec![Write::Account(r#"{"uuid":"u1"}"#.into())]).await.unwrap();
        drop(journal);
        // The beginning of a line that a crash cut off.
        let mut file = OpenOptions::new().append(true).open(dir.path().join("accounting.jsonl")).unwrap();
        file.write_all(br#"{"uuid":"u2"#).unwrap();
        let journal = Journal::open(dir.path(), Faults::none()).unwrap();
        assert!(journal.accounted("u1") && !journal.accounted("u2"));
        journal.write(vec![Write::Account(r#"{"uuid":"u2"}"#.into())]).await.unwrap();
        drop(journal);
        assert!(Journal::open(dir.path(), Faults::none()).unwrap().accounted("u2"));
    }
}
