//! What readers see: the last durable state, whole commits only.
//!
//! While the engine applies a batch, the values from before it (its *pre-images*) lie over the engine, so that it makes no
//! difference how much of the batch the engine shows already. When the batch is durable they are taken away, which makes
//! all its commits visible at one moment. Each reading call holds the lock that guards this, so it sees one state.
//!
//! A [`Frozen`] state keeps the pre-images of all batches since its beginning, minus what its reader has passed, so that
//! an export or a check sees one revision while writers go on.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};

use super::engine::Guarded;
use super::record::{self, END, Header, Meta, SPACE_LOG};
use super::{ChangeRecord, RANGE_MAX, log};
use crate::error::{Error, Reason, Result};

/// Keys with their stored values; `None` hides a key.
pub(super) type Layer = BTreeMap<Bytes, Option<Bytes>>;

/// `changes` stops after about this much, so that one call stays small.
const CHANGES_BYTES: usize = 4 << 20;

/// The state behind the readers' lock.
pub(super) struct Visible {
    /// Nothing once the store is closed.
    pub engine: Option<Arc<Guarded>>,
    /// Pre-images of the batch in flight.
    pub before: Layer,
    /// As of the last durable batch.
    pub meta: Meta,
    pub header: Header,
    pub frozen: Vec<Arc<Frozen>>,
}

/// A record met in a scan of a layer over an engine.
pub(super) enum Found<'a> {
    /// From the engine.
    Stored(&'a [u8], &'a [u8]),
    /// From the layer.
    Layered(&'a Bytes, &'a Bytes),
}

/// Scans `layer` over `engine`.
pub(super) fn scan(
    engine: &Guarded,
    layer: &Layer,
    (from, to): (&[u8], &[u8]),
    back: bool,
    visit: &mut dyn FnMut(Found<'_>) -> ControlFlow<()>,
) -> Result<()> {
    if from >= to {
        return Ok(());
    }
    let mut over = layer.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
    let mut next = if back { over.next_back() } else { over.next() };
    let mut stopped = false;
    engine.scan(from, to, back, &mut |key, value| {
        while let Some((layered, new)) = next {
            let order = if back { key.cmp(&layered[..]) } else { layered[..].cmp(key) };
            if order.is_gt() {
                break;
            }
            next = if back { over.next_back() } else { over.next() };
            if let Some(new) = new
                && visit(Found::Layered(layered, new)).is_break()
            {
                stopped = true;
                return ControlFlow::Break(());
            }
            if order.is_eq() {
                return ControlFlow::Continue(());
            }
        }
        let flow = visit(Found::Stored(key, value));
        stopped = flow.is_break();
        flow
    })?;
    while let (false, Some((layered, new))) = (stopped, next) {
        next = if back { over.next_back() } else { over.next() };
        if let Some(new) = new {
            stopped = visit(Found::Layered(layered, new)).is_break();
        }
    }
    Ok(())
}

/// Refuses a list that would be longer than one call gives.
pub(super) fn too_many() -> Error {
    Error::new(Reason::StoreLimit, format!("the range has more than {RANGE_MAX} records; read it in parts"))
}

/// One state of the store, for as long as it is borrowed.
///
/// Commits wait while it exists: read, and let go. Calling a method of the [`Store`](super::Store) itself while holding it
/// can stop both for ever.
pub struct ReadView<'a>(pub(super) &'a Visible);

impl ReadView<'_> {
    fn engine(&self) -> Result<&Guarded> {
        self.0.engine.as_deref().ok_or_else(closed)
    }

    /// The revision of this state.
    pub fn revision(&self) -> u64 {
        self.0.meta.revision
    }

    /// See [`Store::get`](super::Store::get).
    ///
    /// # Errors
    /// `STORE_CORRUPT`, `STORE_FAILED`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let key = record::user_key(key);
        let raw = match self.0.before.get(&key[..]) {
            Some(raw) => raw.clone(),
            None => self.engine()?.get(&key)?,
        };
        raw.map(|raw| record::open(&key, &raw)).transpose()
    }

    /// See [`Store::range`](super::Store::range).
    ///
    /// # Errors
    /// `STORE_LIMIT`, `STORE_CORRUPT`, `STORE_FAILED`.
    pub fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        self.list(from, to, limit, false)
    }

    /// See [`Store::range_back`](super::Store::range_back).
    ///
    /// # Errors
    /// `STORE_LIMIT`, `STORE_CORRUPT`, `STORE_FAILED`.
    pub fn range_back(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        self.list(from, to, limit, true)
    }

    fn list(&self, from: &[u8], to: &[u8], limit: usize, back: bool) -> Result<Vec<(Bytes, Bytes)>> {
        let mut out = Vec::new();
        if limit == 0 {
            return Ok(out);
        }
        let mut trouble = None;
        let (from, to) = (record::user_key(from), record::user_bound(to));
        scan(self.engine()?, &self.0.before, (&from, &to), back, &mut |found| {
            let (key, raw) = match found {
                Found::Stored(key, raw) => (Bytes::copy_from_slice(key), Bytes::copy_from_slice(raw)),
                Found::Layered(key, raw) => (key.clone(), raw.clone()),
            };
            match record::open(&key, &raw) {
                Ok(_) if out.len() == RANGE_MAX => trouble = Some(too_many()),
                Ok(value) => out.push((key.slice(1..), value)),
                Err(error) => trouble = Some(error),
            }
            if trouble.is_some() || out.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        trouble.map_or(Ok(out), Err)
    }

    /// See [`Store::changes`](super::Store::changes).
    ///
    /// # Errors
    /// `CURSOR_TOO_OLD`, `STORE_CORRUPT`, `STORE_FAILED`.
    pub fn changes(&self, after: u64, limit: usize) -> Result<Vec<ChangeRecord>> {
        let meta = &self.0.meta;
        if after < meta.oldest || after > meta.revision {
            return Err(Error::new(Reason::CursorTooOld, format!("there is no change log from revision {after} on"))
                .with("oldest_cursor", meta.oldest)
                .with("newest_cursor", meta.revision));
        }
        let mut out = Vec::new();
        if limit == 0 || after == meta.revision {
            return Ok(out);
        }
        let mut bytes = 0;
        let mut trouble = None;
        let mut reader = log::Reader::new(after);
        let from = log::key(after + 1, 0);
        scan(self.engine()?, &self.0.before, (&from, &[SPACE_LOG + 1]), false, &mut |found| {
            let opened = match found {
                Found::Stored(key, raw) => record::open(key, &Bytes::copy_from_slice(raw)),
                Found::Layered(key, raw) => record::open(key, raw),
            };
            let read = opened.and_then(|block| {
                bytes += block.len();
                reader.block(block, &mut |change| {
                    if out.len() < limit {
                        out.push(change);
                    }
                })
            });
            if let Err(error) = read {
                trouble = Some(error);
                return ControlFlow::Break(());
            }
            let enough = out.len() == limit || (bytes > CHANGES_BYTES && !out.is_empty());
            if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if trouble.is_none() && out.is_empty() {
            trouble = Some(Error::new(Reason::StoreCorrupt, "the change log has a gap").with("revision", after + 1));
        }
        trouble.map_or(Ok(out), Err)
    }
}

/// What callers get from a closed store.
pub(super) fn closed() -> Error {
    Error::new(Reason::ShuttingDown, "the store is closed")
}

/// A state of the past that is still being read.
pub(super) struct Frozen {
    pub meta: Meta,
    pub header: Header,
    state: Mutex<FrozenState>,
    room: Condvar,
    limit_bytes: u64,
    patience: Duration,
}

#[derive(Default)]
struct FrozenState {
    /// Everything up to and including this key has been read.
    cursor: Vec<u8>,
    before: Layer,
    bytes: u64,
    given_up: bool,
}

impl FrozenState {
    fn give_up(&mut self) {
        self.given_up = true;
        self.before = Layer::new();
        self.bytes = 0;
    }
}

/// Memory that a pre-image takes, with its place in the map.
fn held(key: &Bytes, raw: Option<&Bytes>) -> u64 {
    (key.len() + raw.map_or(0, Bytes::len) + 96) as u64
}

const PAGE_RECORDS: usize = 512;
const PAGE_BYTES: usize = 1 << 20;

impl Frozen {
    /// Freezes the present state. The caller adds it to [`Visible::frozen`] under the same lock.
    pub fn new(visible: &Visible, limit_bytes: u64, patience: Duration) -> Self {
        let before = visible.before.clone();
        let bytes = before.iter().map(|(key, raw)| held(key, raw.as_ref())).sum();
        let state = FrozenState { before, bytes, ..FrozenState::default() };
        Self {
            meta: visible.meta,
            header: visible.header,
            state: Mutex::new(state),
            room: Condvar::new(),
            limit_bytes,
            patience,
        }
    }

    /// Waits until there is room for more pre-images. A reader that does not make room in time loses its state.
    pub fn wait_for_room(&self) {
        let deadline = Instant::now() + self.patience;
        let mut state = self.state.lock();
        while state.bytes > self.limit_bytes && !state.given_up {
            if self.room.wait_until(&mut state, deadline).timed_out() && state.bytes > self.limit_bytes {
                state.give_up();
            }
        }
    }

    /// Frees what is held, and a committer that waits for room.
    fn let_go(&self) {
        self.state.lock().give_up();
        self.room.notify_all();
    }

    /// Takes the pre-images of a batch that is about to be applied.
    pub fn keep(&self, batch: &Layer) {
        let mut state = self.state.lock();
        if state.given_up {
            return;
        }
        let state = &mut *state;
        for (key, raw) in batch {
            if key[..] > state.cursor[..] && !state.before.contains_key(key) {
                state.bytes += held(key, raw.as_ref());
                state.before.insert(key.clone(), raw.clone());
            }
        }
    }

    /// The next records, stored form, in key order; an empty list at the end.
    ///
    /// # Errors
    /// `OVERLOADED` if this reader was too slow and the committer gave it up; errors of the engine.
    pub fn page(&self, visible: &Visible) -> Result<Vec<(Bytes, Bytes)>> {
        let engine = visible.engine.as_deref().ok_or_else(closed)?;
        let mut state = self.state.lock();
        if state.given_up {
            return Err(Error::new(Reason::Overloaded, "the store changed faster than its copy was written"));
        }
        let mut from = state.cursor.clone();
        if from.is_empty() {
            from.push(SPACE_LOG);
        } else {
            from.push(0);
        }
        let mut out: Vec<(Bytes, Bytes)> = Vec::new();
        let mut bytes = 0;
        scan(engine, &state.before, (&from, END), false, &mut |found| {
            let (key, raw) = match found {
                Found::Stored(key, raw) => (Bytes::copy_from_slice(key), Bytes::copy_from_slice(raw)),
                Found::Layered(key, raw) => (key.clone(), raw.clone()),
            };
            bytes += key.len() + raw.len();
            out.push((key, raw));
            if out.len() == PAGE_RECORDS || bytes > PAGE_BYTES {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        let state = &mut *state;
        state.cursor = out.last().map_or_else(|| END.to_vec(), |(key, _)| key.to_vec());
        while let Some(first) = state.before.first_entry()
            && first.key()[..] <= state.cursor[..]
        {
            let (key, raw) = first.remove_entry();
            state.bytes = state.bytes.saturating_sub(held(&key, raw.as_ref()));
        }
        self.room.notify_all();
        Ok(out)
    }
}

/// Reads a frozen state to its end; while it lives, the committer keeps what it still needs.
pub(super) struct FrozenScan<'a> {
    visible: &'a RwLock<Visible>,
    pub frozen: Arc<Frozen>,
}

impl<'a> FrozenScan<'a> {
    /// Freezes the last durable state.
    pub fn begin(visible: &'a RwLock<Visible>, limit_bytes: u64, patience: Duration) -> Result<Self> {
        let mut state = visible.write();
        if state.engine.is_none() {
            return Err(closed());
        }
        let frozen = Arc::new(Frozen::new(&state, limit_bytes, patience));
        state.frozen.push(frozen.clone());
        drop(state);
        Ok(Self { visible, frozen })
    }

    /// See [`Frozen::page`].
    pub fn page(&self) -> Result<Vec<(Bytes, Bytes)>> {
        self.frozen.page(&self.visible.read())
    }
}

impl Drop for FrozenScan<'_> {
    fn drop(&mut self) {
        self.visible.write().frozen.retain(|other| !Arc::ptr_eq(other, &self.frozen));
        self.frozen.let_go();
    }
}
