//! Opening a chunk store: segments and index files made of what the input says, with bytes of them changed and cut off.
//!
//! No panic; what is given out matches its digest; and what one opening has found, the next one finds again.
#![no_main]

use common::chunk::disk::{Disk, DiskFile};
use common::chunk::format::{
    IndexFile, RECORD_ALIGN, RECORD_HEADER, RecordHeader, RecordKind, SEGMENT_HEADER, SegmentHeader,
};
use common::chunk::{ChunkStore, ChunkStoreSettings};
use common::model::ChunkId;
use std::any::Any;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, IoSlice};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Default)]
struct Memory(Mutex<BTreeMap<String, Arc<Content>>>);

#[derive(Default)]
struct Content(Mutex<Vec<u8>>);

impl Memory {
    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Content>>> {
        self.0.lock().expect("no holder panics")
    }

    fn put(&self, name: String, bytes: Vec<u8>) {
        self.files().insert(name, Arc::new(Content(Mutex::new(bytes))));
    }
}

fn missing() -> io::Error {
    ErrorKind::NotFound.into()
}

impl Disk for Memory {
    fn lock(&self) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        Ok(Some(Box::new(())))
    }
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files().keys().cloned().collect())
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = self.files();
        if files.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        Ok(files.entry(name.to_owned()).or_default().clone())
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.files().get(name).cloned().map(|file| file as Arc<dyn DiskFile>).ok_or_else(missing)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files();
        let file = files.remove(from).ok_or_else(missing)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.files().remove(name).map(drop).ok_or_else(missing)
    }
    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
    fn free_bytes(&self) -> io::Result<u64> {
        Ok(1 << 40)
    }
    fn path(&self, _: &str) -> Option<PathBuf> {
        None
    }
}

impl DiskFile for Content {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().expect("no holder panics").len() as u64)
    }
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let bytes = self.0.lock().expect("no holder panics");
        let from = usize::try_from(offset).map_err(|_| ErrorKind::UnexpectedEof)?;
        let to = from.checked_add(len).ok_or(ErrorKind::UnexpectedEof)?;
        Ok(bytes.get(from..to).ok_or(ErrorKind::UnexpectedEof)?.to_vec())
    }
    fn write_at(&self, offset: u64, data: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut bytes = self.0.lock().expect("no holder panics");
        let mut at = usize::try_from(offset).map_err(|_| ErrorKind::FileTooLarge)?;
        for slice in data {
            let end = at + slice.len();
            assert!(end < 1 << 30, "a write far behind the end");
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[at..end].copy_from_slice(slice);
            at = end;
        }
        Ok(())
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.lock().expect("no holder panics").truncate(len as usize);
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn forget_pages(&self) {}
}

/// The next number of the input; 0 at its end.
fn next(input: &mut &[u8]) -> u8 {
    let Some((first, rest)) = input.split_first() else { return 0 };
    *input = rest;
    *first
}

/// Lays out up to three segments. Gives back the contents that are in them.
fn lay_out(disk: &Memory, input: &mut &[u8]) -> Vec<(ChunkId, Vec<u8>)> {
    let mut contents = Vec::new();
    for number in 1..=1 + u32::from(next(input) % 3) {
        let header = SegmentHeader {
            id: if next(input) == 255 { number + 1 } else { number },
            key: [next(input); 32],
            first_sequence: u64::from(next(input)),
        };
        let mut segment = header.encode().to_vec();
        let mut records = Vec::new();
        for _ in 0..next(input) % 9 {
            let content = vec![next(input) % 16; 1 + usize::from(next(input) % 48)];
            let id = ChunkId::of(&content);
            let stone = next(input) % 4 == 0;
            let record = RecordHeader {
                kind: if stone { RecordKind::Tombstone } else { RecordKind::Chunk },
                id,
                len: if stone { 0 } else { content.len() as u32 },
                sequence: u64::from(next(input)),
                names: if stone { u32::from(next(input) % 4) } else { 0 },
                synced: if stone { 0 } else { u32::from(next(input)) * 8 },
                offset: segment.len() as u32,
            };
            segment.extend_from_slice(&record.encode(&header.key));
            if !stone {
                segment.extend_from_slice(&content);
                contents.push((id, content));
            }
            segment.resize(segment.len().next_multiple_of(RECORD_ALIGN), 0);
            records.push(record);
        }
        if next(input) % 2 == 0 {
            let index = IndexFile { segment: header, segment_bytes: segment.len() as u64, records };
            disk.put(format!("{number:08x}.idx"), index.encode());
        }
        disk.put(format!("{number:08x}.seg"), segment);
    }
    contents
}

/// Changes and cuts off what was laid out.
fn damage(disk: &Memory, mut input: &[u8]) {
    let files: Vec<_> = disk.files().values().cloned().collect();
    while input.len() >= 4 {
        let file = &files[usize::from(next(&mut input)) % files.len()];
        let at = usize::from(next(&mut input)) << 8 | usize::from(next(&mut input));
        let how = next(&mut input);
        let mut bytes = file.0.lock().expect("no holder panics");
        if bytes.is_empty() {
            continue;
        }
        let at = at % bytes.len();
        if how == 0 { bytes.truncate(at) } else { bytes[at] ^= how }
    }
}

fn inputs() -> Vec<Vec<u8>> {
    // Numbers for `lay_out`: segments, their records, whether there is an index; then what is damaged.
    vec![
        vec![0; 64],
        (0..200).collect(),
        vec![2, 1, 5, 0, 4, 3, 9, 1, 1, 0, 1, 9, 2, 1, 1, 0, 2, 0, 1, 5, 0, 0, 90, 255],
    ]
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| {
    const { assert!(RECORD_HEADER == 64 && SEGMENT_HEADER == 64) };
    let _ = IndexFile::decode(data);
    let _ = common::chunk::format::decode_damaged(data);
    let disk = Arc::new(Memory::default());
    let mut input = data;
    let contents = lay_out(&disk, &mut input);
    damage(&disk, input);
    let settings = ChunkStoreSettings::new("/nowhere");
    let Ok(store) = ChunkStore::open_on(disk.clone(), &settings) else { return };
    let mut found = Vec::new();
    for (id, content) in &contents {
        if store.length(id).is_some()
            && let Ok(read) = store.read(id, 0..content.len() as u32, true)
        {
            assert_eq!(&read[..], &content[..]);
            found.push((id, content));
        }
    }
    drop(store);
    let store = ChunkStore::open_on(disk, &settings).expect("what could be opened once");
    for (id, content) in found {
        let read = store.read(id, 0..content.len() as u32, true).expect("a chunk that was there before");
        assert_eq!(&read[..], &content[..]);
    }
});
