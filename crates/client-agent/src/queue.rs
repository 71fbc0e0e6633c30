//! Uploads that wait for the server, on disk.
//!
//! Layout: `DIR/ID.data` (the content) and `DIR/ID.json` (what it is for). The content is synced before the description
//! is renamed into place, and the directory after it: an upload is queued exactly if its description is there.
//! A crash before that leaves a `.data` or `.tmp` without description, which `open` removes. A finished upload loses its
//! description first. Nothing is ever uploaded twice with another effect: each item has one upload id for its life.

use common::error::{Error, Reason, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tokio::sync::Notify;
use uuid::Uuid;

/// What must be there when the upload is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// Whatever is there becomes an old version.
    Any,
    /// Nothing may be there.
    Absent,
    /// This version.
    Version(u64),
}

/// A queued upload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Item {
    /// Its name in the queue, and the upload's id.
    pub id: Uuid,
    /// Unix user who queued it.
    pub uid: u32,
    /// As in `atrium.v1.Path`.
    pub root: String,
    /// As in `atrium.v1.Path`.
    pub path: String,
    /// Content length.
    pub size_bytes: u64,
    /// Milliseconds since 1970; the content's own time.
    pub modify_ms: u64,
    /// Unix permission bits.
    pub mode: u32,
    /// What must be there.
    pub expected: Expected,
    /// Milliseconds since 1970.
    pub create_ms: u64,
    /// Tries so far.
    #[serde(default)]
    pub attempts: u32,
    /// Last failure, for people.
    #[serde(default)]
    pub last_error: String,
    /// Set aside: it will not succeed by itself.
    #[serde(default)]
    pub held: bool,
}

/// The queue. Methods block on the disk.
pub struct Queue {
    directory: PathBuf,
    limit_bytes: u64,
    limit_items: usize,
    items: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    items: BTreeMap<Uuid, Item>,
    reserved_bytes: u64,
}

impl State {
    fn bytes(&self) -> u64 {
        self.reserved_bytes + self.items.values().map(|i| i.size_bytes).sum::<u64>()
    }
}

impl Queue {
    /// Opens the queue and removes what a crash left half done.
    ///
    /// # Errors
    /// The directory cannot be made or read. A description that cannot be read is kept aside as `.bad`, not lost.
    pub fn open(directory: &Path, limit_bytes: u64, limit_items: usize) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut items = BTreeMap::new();
        let mut data = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => match fs::read(&path).ok().and_then(|b| serde_json::from_slice::<Item>(&b).ok()) {
                    Some(item) => {
                        items.insert(item.id, item);
                    }
                    None => {
                        tracing::error!(file = %path.display(), "a queued upload's description cannot be read; set aside");
                        fs::rename(&path, path.with_extension("bad"))?;
                    }
                },
                Some("data") => data.push(path),
                Some("tmp") => fs::remove_file(&path)?,
                _ => {}
            }
        }
        for path in data {
            let id = path.file_stem().and_then(|s| s.to_str()).and_then(|s| Uuid::parse_str(s).ok());
            let wanted = id.is_some_and(|id| items.contains_key(&id)) || path.with_extension("bad").exists();
            if !wanted {
                fs::remove_file(&path)?;
            }
        }
        let state = State { items, reserved_bytes: 0 };
        Ok(Self {
            directory: directory.to_owned(),
            limit_bytes,
            limit_items,
            items: Mutex::new(state),
            changed: Notify::new(),
        })
    }

    /// Begins to take in a file of this size. Nothing is queued until [`Incoming::finish`].
    ///
    /// # Errors
    /// `QUEUE_FULL`, I/O.
    pub fn begin(&self, size_bytes: u64) -> Result<Incoming<'_>> {
        {
            let mut state = self.items.lock();
            if state.items.len() >= self.limit_items || state.bytes().saturating_add(size_bytes) > self.limit_bytes {
                return Err(Error::new(Reason::QueueFull, "the upload queue of this machine is full"));
            }
            state.reserved_bytes += size_bytes;
        }
        let id = Uuid::now_v7();
        match File::create_new(self.data_path(&id)) {
            Ok(file) => Ok(Incoming { queue: self, id, file, size_bytes, written: 0 }),
            Err(error) => {
                self.items.lock().reserved_bytes -= size_bytes;
                Err(error.into())
            }
        }
    }

    /// All items, oldest first.
    pub fn list(&self) -> Vec<Item> {
        self.items.lock().items.values().cloned().collect()
    }

    /// Number of items and their bytes.
    pub fn totals(&self) -> (usize, u64) {
        let state = self.items.lock();
        (state.items.len(), state.bytes())
    }

    /// Where an item's content is.
    pub fn data_path(&self, id: &Uuid) -> PathBuf {
        self.directory.join(format!("{id}.data"))
    }

    /// Writes an item's progress down.
    ///
    /// # Errors
    /// I/O.
    pub fn update(&self, item: &Item) -> Result<()> {
        let mut state = self.items.lock();
        if !state.items.contains_key(&item.id) {
            return Ok(());
        }
        self.write_description(item)?;
        state.items.insert(item.id, item.clone());
        Ok(())
    }

    /// Takes an item out, with its content.
    ///
    /// # Errors
    /// `QUEUE_ITEM_UNKNOWN` if it is not there or is not this user's (root, `None`, may take all).
    pub fn remove(&self, id: &Uuid, uid: Option<u32>) -> Result<()> {
        let mut state = self.items.lock();
        let mine = state.items.get(id).is_some_and(|i| uid.is_none_or(|u| u == i.uid));
        if !mine {
            return Err(Error::new(Reason::QueueItemUnknown, "this upload is not in the queue"));
        }
        fs::remove_file(self.directory.join(format!("{id}.json")))?;
        sync_directory(&self.directory)?;
        let _ = fs::remove_file(self.data_path(id));
        state.items.remove(id);
        Ok(())
    }

    /// Lets all held items of a user be tried again.
    ///
    /// # Errors
    /// I/O.
    pub fn release(&self, uid: u32) -> Result<()> {
        for mut item in self.list().into_iter().filter(|i| i.uid == uid && i.held) {
            item.held = false;
            self.update(&item)?;
        }
        self.changed.notify_one();
        Ok(())
    }

    /// Waits until something was queued or released.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Wakes who waits in [`Queue::changed`].
    pub fn poke(&self) {
        self.changed.notify_one();
    }

    fn write_description(&self, item: &Item) -> Result<()> {
        let temporary = self.directory.join(format!("{}.tmp", item.id));
        let text = serde_json::to_vec(item).map_err(|e| Error::internal("an upload's description").caused_by(e))?;
        let mut file = File::create(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&temporary, self.directory.join(format!("{}.json", item.id)))?;
        sync_directory(&self.directory)?;
        Ok(())
    }
}

/// A file on its way into the queue; dropped without [`Incoming::finish`] it leaves nothing behind.
pub struct Incoming<'a> {
    queue: &'a Queue,
    id: Uuid,
    file: File,
    size_bytes: u64,
    written: u64,
}

impl Incoming<'_> {
    /// The item's id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Appends content.
    ///
    /// # Errors
    /// `FIELD_INVALID` if more comes than was announced; I/O.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        self.written += data.len() as u64;
        if self.written > self.size_bytes {
            return Err(Error::new(Reason::FieldInvalid, "more content came than was announced"));
        }
        self.file.write_all(data)?;
        Ok(())
    }

    /// Makes it durable and queues it. `item.id` and `item.size_bytes` are set here.
    ///
    /// # Errors
    /// `FIELD_INVALID` if less came than was announced; I/O.
    pub fn finish(mut self, mut item: Item) -> Result<Uuid> {
        if self.written != self.size_bytes {
            return Err(Error::new(Reason::FieldInvalid, "less content came than was announced"));
        }
        self.file.sync_all()?;
        item.id = self.id;
        item.size_bytes = self.size_bytes;
        self.queue.write_description(&item)?;
        let mut state = self.queue.items.lock();
        state.reserved_bytes -= self.size_bytes;
        state.items.insert(item.id, item);
        drop(state);
        // Drop must not undo what is done.
        self.size_bytes = 0;
        self.written = u64::MAX;
        self.queue.changed.notify_one();
        Ok(self.id)
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        if self.written != u64::MAX {
            self.queue.items.lock().reserved_bytes -= self.size_bytes;
            let _ = fs::remove_file(self.queue.data_path(&self.id));
        }
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(uid: u32) -> Item {
        Item {
            id: Uuid::nil(),
            uid,
            root: "home".into(),
            path: "a.txt".into(),
            size_bytes: 0,
            modify_ms: 1,
            mode: 0o644,
            expected: Expected::Version(3),
            create_ms: 2,
            attempts: 0,
            last_error: String::new(),
            held: false,
        }
    }

    #[test]
    fn a_queued_upload_survives_and_a_half_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(dir.path(), 1000, 10).unwrap();
        let mut incoming = queue.begin(5).unwrap();
        incoming.write(b"hello").unwrap();
        let id = incoming.finish(item(7)).unwrap();
        let mut half = queue.begin(5).unwrap();
        half.write(b"he").unwrap();
        let half_path = queue.data_path(&half.id());
        std::mem::forget(half);
        assert!(half_path.exists());
        let queue = Queue::open(dir.path(), 1000, 10).unwrap();
        assert!(!half_path.exists());
        let items = queue.list();
        assert_eq!(items.len(), 1);
        assert_eq!((items[0].id, items[0].uid, items[0].expected), (id, 7, Expected::Version(3)));
        assert_eq!(fs::read(queue.data_path(&id)).unwrap(), b"hello");
        assert!(queue.remove(&id, Some(8)).is_err(), "another user's");
        queue.remove(&id, Some(7)).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn limits_hold_and_what_is_given_up_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(dir.path(), 10, 2).unwrap();
        let first = queue.begin(8).unwrap();
        assert!(queue.begin(8).is_err_and(|e| e.is(Reason::QueueFull)));
        drop(first);
        let mut next = queue.begin(8).unwrap();
        assert!(next.write(b"123456789").is_err());
        drop(next);
        let mut short = queue.begin(8).unwrap();
        short.write(b"1").unwrap();
        assert!(short.finish(item(1)).is_err());
        assert_eq!(queue.totals(), (0, 0));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_description_that_cannot_be_read_is_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        let id = Uuid::now_v7();
        fs::write(dir.path().join(format!("{id}.json")), b"{").unwrap();
        fs::write(dir.path().join(format!("{id}.data")), b"precious").unwrap();
        let queue = Queue::open(dir.path(), 10, 2).unwrap();
        assert!(queue.list().is_empty());
        assert_eq!(fs::read(dir.path().join(format!("{id}.data"))).unwrap(), b"precious");
        Queue::open(dir.path(), 10, 2).unwrap();
        assert_eq!(fs::read(dir.path().join(format!("{id}.data"))).unwrap(), b"precious");
    }
}
