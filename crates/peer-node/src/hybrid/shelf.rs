//! Which file of the server a chunk is in, for each ticket that this node has got.
//!
//! What a ticket is about is kept in the store; where each chunk is in its file is worked out from the manifests, which are
//! asked for again after a restart.

use crate::model::{Content, ShownTicket};
use common::error::{Error, Reason, Result};
use common::model::ChunkId;
use common::store::{Store, prefix_end};
use parking_lot::Mutex;
use prost::Message;
use proto::v1;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Tickets that are remembered.
pub const REMEMBERED: usize = 1_024;
/// Tickets whose chunks are in memory.
const HELD: usize = 64;
/// Their chunks together, if there is more than one: about 400 MB at most.
const HELD_CHUNKS: usize = 4_000_000;
/// What a ticket is about is written in pieces of this size.
const PIECE: usize = 60 * 1024;
/// Most pieces: 1,000 files with long paths.
const PIECES_MAX: usize = 100;
/// When each ticket was remembered.
const TIMES: &[u8] = b"h/i/";
/// The pieces.
const TICKETS: &[u8] = b"h/t/";

/// A file version on the server.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerFile {
    /// Where.
    pub path: v1::Path,
    /// Which version.
    pub version: u64,
    /// Its content.
    pub digest: [u8; 32],
}

/// Where a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Which file of the shelf.
    pub file: u32,
    /// Position in it.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

/// The files of one ticket.
#[derive(Debug, Default)]
pub struct Shelf {
    /// In the order of the ticket's request.
    pub files: Vec<ServerFile>,
    chunks: HashMap<ChunkId, Spot>,
}

impl Shelf {
    /// From files with their contents.
    pub fn new(files: Vec<(ServerFile, Content)>) -> Self {
        let mut shelf = Self::default();
        for (file, content) in files {
            let number = shelf.files.len() as u32;
            let mut offset = 0;
            for chunk in content.chunks.iter() {
                shelf.chunks.entry(chunk.id).or_insert(Spot { file: number, offset, len: chunk.len });
                offset += u64::from(chunk.len);
            }
            shelf.files.push(file);
        }
        shelf
    }

    /// Where a chunk is; `None` if it is in none of the files.
    pub fn spot(&self, chunk: &ChunkId) -> Option<Spot> {
        self.chunks.get(chunk).copied()
    }
}

type Key = [u8; 32];

#[derive(Clone, PartialEq, Message)]
struct ShelfRecord {
    #[prost(message, repeated, tag = "1")]
    files: Vec<FileRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct FileRecord {
    #[prost(message, optional, tag = "1")]
    path: Option<v1::Path>,
    #[prost(uint64, tag = "2")]
    version: u64,
    #[prost(bytes = "vec", tag = "3")]
    digest: Vec<u8>,
}

/// All of them.
pub struct Shelves {
    store: Store,
    held: Mutex<VecDeque<(Key, Arc<Shelf>)>>,
    /// When each of the remembered ones was made, and its key.
    remembered: Mutex<Vec<(u64, Key)>>,
}

fn key_of(ticket: &ShownTicket) -> Key {
    *blake3::hash(ticket.ticket()).as_bytes()
}

fn time_key(key: &Key) -> Vec<u8> {
    [TIMES, key].concat()
}

fn pieces_key(key: &Key) -> Vec<u8> {
    [TICKETS, key].concat()
}

fn piece_key(key: &Key, piece: usize) -> Vec<u8> {
    [TICKETS, key, &(piece as u16).to_be_bytes()].concat()
}

impl Shelves {
    /// Those that are in the store. Blocks.
    ///
    /// # Errors
    /// Those of the store.
    pub fn open(store: Store) -> Result<Self> {
        let mut remembered = Vec::new();
        for (key, value) in store.range(TIMES, &prefix_end(TIMES), REMEMBERED)? {
            if let (Ok(key), Ok(time)) = (Key::try_from(&key[TIMES.len()..]), value[..].try_into()) {
                remembered.push((u64::from_be_bytes(time), key));
            }
        }
        Ok(Self { store, held: Mutex::default(), remembered: Mutex::new(remembered) })
    }

    /// Remembers what a ticket is about.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn put(&self, ticket: &ShownTicket, files: Vec<(ServerFile, Content)>, now_ms: u64) -> Result<()> {
        self.keep(ticket, Arc::new(Shelf::new(files)), now_ms).await
    }

    /// The same with a shelf that there is already.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn keep(&self, ticket: &ShownTicket, shelf: Arc<Shelf>, now_ms: u64) -> Result<()> {
        let key = key_of(ticket);
        let record = ShelfRecord {
            files: shelf
                .files
                .iter()
                .map(|f| FileRecord { path: Some(f.path.clone()), version: f.version, digest: f.digest.to_vec() })
                .collect(),
        };
        self.hold(key, shelf);
        let value = record.encode_to_vec();
        if value.len() > PIECE * PIECES_MAX {
            // Goes on with members only after a restart.
            return Ok(());
        }
        let gone = {
            let mut remembered = self.remembered.lock();
            remembered.push((now_ms, key));
            let oldest = (0..remembered.len()).min_by_key(|n| remembered[*n].0);
            oldest.filter(|_| remembered.len() > REMEMBERED).map(|n| remembered.swap_remove(n).1)
        };
        let put = move |txn: &mut common::store::Txn<'_>| {
            if let Some(gone) = &gone {
                let prefix = pieces_key(gone);
                for (key, _) in txn.range(&prefix, &prefix_end(&prefix), PIECES_MAX)? {
                    txn.delete(&key)?;
                }
                txn.delete(time_key(gone))?;
            }
            for (n, piece) in value.chunks(PIECE).enumerate() {
                txn.put(piece_key(&key, n), piece.to_vec())?;
            }
            txn.put(time_key(&key), now_ms.to_be_bytes().to_vec())
        };
        self.store.transact(put).await.map(drop)
    }

    fn hold(&self, key: Key, shelf: Arc<Shelf>) {
        let mut held = self.held.lock();
        held.retain(|(k, _)| *k != key);
        held.push_back((key, shelf));
        let chunks = |all: &VecDeque<(Key, Arc<Shelf>)>| all.iter().map(|(_, s)| s.chunks.len()).sum::<usize>();
        while held.len() > HELD || held.len() > 1 && chunks(&held) > HELD_CHUNKS {
            held.pop_front();
        }
    }

    /// The shelf of a ticket, if it is in memory.
    pub fn held(&self, ticket: &ShownTicket) -> Option<Arc<Shelf>> {
        let key = key_of(ticket);
        let mut held = self.held.lock();
        let at = held.iter().position(|(k, _)| *k == key)?;
        let found = held.remove(at)?;
        held.push_back(found.clone());
        Some(found.1)
    }

    /// The files of a ticket, if they are remembered. Blocks.
    ///
    /// # Errors
    /// STORE_CORRUPT; those of the store.
    pub fn remembered(&self, ticket: &ShownTicket) -> Result<Option<Vec<ServerFile>>> {
        let prefix = pieces_key(&key_of(ticket));
        let pieces = self.store.range(&prefix, &prefix_end(&prefix), PIECES_MAX)?;
        if pieces.is_empty() {
            return Ok(None);
        }
        let damaged = || Error::new(Reason::StoreCorrupt, "what a read ticket is about cannot be read");
        let value: Vec<u8> = pieces.iter().flat_map(|(_, piece)| piece.iter().copied()).collect();
        let record = ShelfRecord::decode(&value[..]).map_err(|e| damaged().caused_by(e))?;
        let file =
            |f: FileRecord| Some(ServerFile { path: f.path?, version: f.version, digest: f.digest.try_into().ok()? });
        record.files.into_iter().map(|f| file(f).ok_or_else(damaged)).collect::<Result<_>>().map(Some)
    }

    /// Puts the files of a remembered ticket back into memory.
    pub fn restore(&self, ticket: &ShownTicket, files: Vec<(ServerFile, Content)>) -> Arc<Shelf> {
        let shelf = Arc::new(Shelf::new(files));
        self.hold(key_of(ticket), shelf.clone());
        shelf
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::model::{ChunkRef, DeviceId};
    use common::ticket::Ticket;
    use common::tls::OfficeCa;

    fn file(n: u8, chunks: &[ChunkRef]) -> (ServerFile, Content) {
        let content = Content::of(chunks.to_vec());
        let path = v1::Path { root: "home".into(), path: n.to_string() };
        (ServerFile { path, version: u64::from(n), digest: content.digest }, content)
    }

    #[tokio::test]
    async fn chunks_are_found_in_their_files_also_after_a_restart() {
        let chunk = |n: u8, len: u32| ChunkRef { id: ChunkId::of(&[n]), len };
        // Long paths, so that it takes more than one piece.
        let mut files = vec![file(1, &[chunk(1, 10), chunk(2, 20)]), file(2, &[chunk(2, 20), chunk(3, 5)])];
        files[0].0.path.path = "x".repeat(2 * PIECE);
        let ca = OfficeCa::create("acme", 1_700_000_000_000).unwrap();
        let ticket = Ticket::new("acme", DeviceId([1; 32]), files.iter().map(|f| f.0.digest), 1_700_000_000_000);
        let (bytes, signature) = ticket.sign(&ca).unwrap();
        let ticket = ShownTicket::read(&bytes, &signature).unwrap();
        let store = Store::memory();
        let shelves = Shelves::open(store.clone()).unwrap();
        shelves.put(&ticket, files.clone(), 5).await.unwrap();
        let shelf = shelves.held(&ticket).unwrap();
        assert_eq!(shelf.spot(&ChunkId::of(&[2])), Some(Spot { file: 0, offset: 10, len: 20 }));
        assert_eq!(shelf.spot(&ChunkId::of(&[3])), Some(Spot { file: 1, offset: 20, len: 5 }));
        assert_eq!(shelf.spot(&ChunkId::of(&[4])), None);

        let again = Shelves::open(store).unwrap();
        assert!(again.held(&ticket).is_none());
        let found = again.remembered(&ticket).unwrap().unwrap();
        assert_eq!(found, files.into_iter().map(|f| f.0).collect::<Vec<_>>());
    }
}
