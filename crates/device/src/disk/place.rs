//! The lender's side of mirror places: sealed objects that are only ever added.
//!
//! Nothing is overwritten: the same object again is passed over, another one under the same id is refused (one exception: a
//! stored one that does not match its checksum any more is replaced by whole bytes). What its owner retires stays for the
//! retention time and can be claimed again until then; so a stolen machine, or software that encrypts everything for a
//! ransom, can end a mirror only so slowly that somebody notices. A generation's number is never used twice.

use super::lender::{Lender, Place, Retired, Sealed};
use super::mirror::place::{GENERATIONS, ObjectId, root_generation};
use super::object::{self, MIRROR_HEADER};
use super::{Kind, PlaceId, record};
use crate::model::Caller;
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, IoSlice};
use std::ops::Bound;

use super::mirror::place::{BATCH_BYTES_MAX, BATCH_MAX, OBJECT_MAX};

/// Objects of all mirrors of one lender.
const SEALED_MAX: usize = 1_000_000;

/// Lists of retired objects of one mirror. They are not charged, so they are few.
const RETIRED_MAX: usize = 1024;

/// Objects that go at a time.
#[derive(Serialize, Deserialize)]
struct Batch {
    due_ms: u64,
    ids: Vec<String>,
}

fn file_name(id: PlaceId, object: &ObjectId) -> String {
    format!("m-{id}-{object}")
}

fn batch_name(id: PlaceId, batch: u64) -> String {
    format!("r-{id}-{batch:016x}")
}

fn append_only(what: &str) -> Error {
    Error::new(Reason::MirrorAppendOnly, what)
}

/// Who reads: its owner, or the lender itself, which copies what is sealed elsewhere.
pub(super) type Reader<'a> = Option<&'a Caller>;

impl Lender {
    fn readable(&self, reader: Reader<'_>, id: PlaceId) -> Result<()> {
        match reader {
            Some(caller) => self.owned(caller, id, Kind::Mirror).map(drop),
            None => self.state(|s| {
                let place = s.place(id)?;
                if place.record.kind != Kind::Mirror { Err(super::lender::unknown()) } else { place.is_live(0) }
            }),
        }
    }

    /// Which of these are not there. Those that are there and retired are taken out of what will go, on disk on return.
    pub(super) fn mirror_missing(&self, caller: &Caller, id: PlaceId, ids: &[ObjectId]) -> Result<Vec<ObjectId>> {
        if ids.len() > BATCH_MAX {
            return Err(Error::new(Reason::MessageTooLarge, "too many objects were asked for at once"));
        }
        let order = self.lock(id)?;
        let _order = order.lock();
        self.owned(caller, id, Kind::Mirror)?;
        let (missing, retired) = self.state(|s| {
            let place = s.place(id)?;
            let missing = ids.iter().filter(|i| !place.sealed.contains_key(i)).copied().collect::<Vec<_>>();
            let retired = |i: &&ObjectId| place.sealed.get(i).is_some_and(|o| o.retired.is_some());
            Ok::<_, Error>((missing, ids.iter().filter(retired).copied().collect::<Vec<_>>()))
        })?;
        self.claim(id, &retired)?;
        Ok(missing)
    }

    /// Takes objects out of what will go.
    fn claim(&self, id: PlaceId, ids: &[ObjectId]) -> Result<()> {
        let mut batches: BTreeMap<BatchKey, Vec<ObjectId>> = BTreeMap::new();
        let claimed: BTreeSet<&ObjectId> = ids.iter().collect();
        let touched: BTreeSet<u64> = self.state(|s| {
            let place = s.place(id)?;
            Ok::<_, Error>(ids.iter().filter_map(|i| place.sealed.get(i)?.retired.map(|r| r.batch)).collect())
        })?;
        if touched.is_empty() {
            return Ok(());
        }
        self.state(|s| {
            for batch in &touched {
                batches.insert((*batch, 0), Vec::new());
            }
            for (object, sealed) in &s.place(id)?.sealed {
                if let Some(r) = sealed.retired.filter(|r| touched.contains(&r.batch) && !claimed.contains(object)) {
                    batches.remove(&(r.batch, 0));
                    batches.entry((r.batch, r.due_ms)).or_default().push(*object);
                }
            }
            Ok::<_, Error>(())
        })?;
        for ((batch, due_ms), left) in batches {
            let name = batch_name(id, batch);
            if left.is_empty() {
                self.disk().remove(&name)?;
                self.disk().sync_names()?;
            } else {
                record::write(
                    self.disk(),
                    &name,
                    &Batch { due_ms, ids: left.iter().map(ToString::to_string).collect() },
                )?;
            }
        }
        self.state(|s| {
            let place = s.place(id)?;
            for object in ids {
                if let Some(sealed) = place.sealed.get_mut(object) {
                    sealed.retired = None;
                }
            }
            Ok(())
        })
    }

    /// Adds objects; all of them on disk on return. After an error some may be there.
    pub(super) fn mirror_put(&self, caller: &Caller, id: PlaceId, objects: &[(ObjectId, Bytes)]) -> Result<()> {
        if objects.iter().any(|(id, _)| root_generation(id).is_some()) {
            return Err(Error::new(Reason::FieldInvalid, "this id is kept for generations"));
        }
        let order = self.lock(id)?;
        let _order = order.lock();
        self.owned(caller, id, Kind::Mirror)?;
        self.put_sealed(id, objects)
    }

    /// Adds the root of a generation, which must be newer than all before it. The same again is passed over.
    pub(super) fn mirror_commit(&self, caller: &Caller, id: PlaceId, generation: u64, root: Bytes) -> Result<()> {
        let order = self.lock(id)?;
        let _order = order.lock();
        let record = self.owned(caller, id, Kind::Mirror)?;
        let object = ObjectId::root(generation);
        let (newest, there) = self.state(|s| {
            let place = s.place(id)?;
            let newest = place.sealed.range(GENERATIONS).next_back().and_then(|(id, _)| root_generation(id));
            Ok::<_, Error>((newest, place.sealed.contains_key(&object)))
        })?;
        let next = newest.map_or(0, |n| n.saturating_add(1)).max(record.generation);
        let same = there && self.stored(id, &object)?.is_some_and(|stored| stored[..] == root[..]);
        if !same && generation < next {
            return Err(Error::new(Reason::VersionStale, "this generation of the mirror was there already")
                .with("next", next)
                .why_is("another copy of the share was written to the mirror meanwhile"));
        }
        self.put_sealed(id, &[(object, root)])
    }

    fn put_sealed(&self, id: PlaceId, objects: &[(ObjectId, Bytes)]) -> Result<()> {
        let total: usize = objects.iter().map(|(_, data)| data.len()).sum();
        let large = objects.iter().any(|(_, data)| data.len() > OBJECT_MAX || data.is_empty());
        if objects.len() > BATCH_MAX || total > BATCH_BYTES_MAX || large {
            return Err(Error::new(Reason::MessageTooLarge, "too many or too large objects at once"));
        }
        let mut fresh: Vec<(String, String, ObjectId, u32)> = Vec::new();
        let mut again = Vec::new();
        let written = self.write_sealed(id, objects, &mut fresh, &mut again);
        if let Err(error) = written {
            for (temporary, _, _, len) in &fresh {
                // One that cannot be removed is no object, is removed at the next open, and counts until then.
                if self.disk().remove(temporary).is_ok() {
                    self.refund(id, MIRROR_HEADER + u64::from(*len));
                }
            }
            return Err(error);
        }
        for (n, (temporary, name, _, len)) in fresh.iter().enumerate() {
            if let Err(error) = self.disk().rename(temporary, name) {
                self.show(id, &fresh[..n]);
                for (temporary, _, _, len) in &fresh[n..] {
                    if self.disk().remove(temporary).is_ok() {
                        self.refund(id, MIRROR_HEADER + u64::from(*len));
                    }
                }
                tracing::warn!(?error, len, "an object of a mirror could not get its name");
                return Err(error.into());
            }
        }
        self.show(id, &fresh);
        if !fresh.is_empty() {
            self.disk().sync_names()?;
        }
        self.claim(id, &again)
    }

    /// Lets objects count whose files have their names.
    fn show(&self, id: PlaceId, fresh: &[(String, String, ObjectId, u32)]) {
        self.state(|s| {
            let Some(place) = s.places.get_mut(&id) else { return };
            for (_, _, object, len) in fresh {
                // One that was damaged has been replaced: its file is gone.
                if let Some(old) = place.sealed.insert(*object, Sealed { len: *len, retired: None }) {
                    let gone = MIRROR_HEADER + u64::from(old.len);
                    place.used = place.used.saturating_sub(gone);
                    s.books.refund(gone);
                    s.sealed_total -= 1;
                }
                s.sealed_total += 1;
            }
        });
    }

    /// Writes and syncs those that are not there, under temporary names.
    fn write_sealed(
        &self,
        id: PlaceId,
        objects: &[(ObjectId, Bytes)],
        fresh: &mut Vec<(String, String, ObjectId, u32)>,
        again: &mut Vec<ObjectId>,
    ) -> Result<()> {
        let now_ms = self.now_ms();
        let mut files = Vec::new();
        for (object, data) in objects {
            if fresh.iter().any(|(_, _, other, _)| other == object) {
                return Err(append_only("an object comes twice"));
            }
            let there = self.state(|s| Ok::<_, Error>(s.place(id)?.sealed.contains_key(object)))?;
            if there && let Some(stored) = self.stored(id, object)? {
                if stored[..] != data[..] {
                    return Err(append_only("another object has this id"));
                }
                again.push(*object);
                continue;
            }
            if self.state(|s| s.sealed_total) + fresh.len() >= SEALED_MAX {
                return Err(Error::new(Reason::SpaceFull, "the machine keeps as many objects as it may"));
            }
            let bytes = object::mirror_file(object, now_ms, data);
            let temporary = format!("t-{id}-{object}");
            match self.disk().remove(&temporary) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
            self.admit(id, bytes.len() as u64)?;
            let made = self.disk().create(&temporary);
            let made = match made {
                Ok(file) => {
                    fresh.push((temporary, file_name(id, object), *object, data.len() as u32));
                    file.write_at(0, &mut [IoSlice::new(&bytes)]).map(|()| files.push(file))
                }
                Err(e) => {
                    self.refund(id, bytes.len() as u64);
                    Err(e)
                }
            };
            self.landed(bytes.len() as u64);
            made?;
        }
        // All are with the disk before the first is waited for.
        Ok(files.iter().try_for_each(|file| file.sync_data())?)
    }

    /// What lies on disk under an id; `None` if it is damaged or not there.
    fn stored(&self, id: PlaceId, object: &ObjectId) -> Result<Option<Vec<u8>>> {
        let file = match self.disk().open(&file_name(id, object)) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let len = file.len()?;
        if len > MIRROR_HEADER + OBJECT_MAX as u64 {
            return Ok(None);
        }
        Ok(object::mirror_content(object, file.read_at(0, len as usize)?))
    }

    /// An object.
    pub(super) fn mirror_get(&self, reader: Reader<'_>, id: PlaceId, object: &ObjectId) -> Result<Bytes> {
        self.readable(reader, id)?;
        if !self.state(|s| Ok::<_, Error>(s.place(id)?.sealed.contains_key(object)))? {
            return Err(Error::new(Reason::EntryUnknown, "the mirror has no such object"));
        }
        let stored = self.stored(id, object)?;
        stored.map(Bytes::from).ok_or_else(|| {
            Error::new(Reason::ChunkDamaged, "an object of the mirror is damaged on the lender's disk")
                .fix_is("put it again, or restore from another mirror")
        })
    }

    /// Objects with their lengths in the order of their ids, generations first.
    pub(super) fn mirror_list(
        &self,
        reader: Reader<'_>,
        id: PlaceId,
        after: Option<&ObjectId>,
        limit: usize,
    ) -> Result<Vec<(ObjectId, u32)>> {
        self.readable(reader, id)?;
        self.state(|s| {
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            let range = s.place(id)?.sealed.range::<ObjectId, _>((from, Bound::Unbounded));
            Ok(range.take(limit.min(BATCH_MAX)).map(|(id, o)| (*id, o.len)).collect())
        })
    }

    /// Numbers of the generations that are there, oldest first.
    pub(super) fn mirror_generations(&self, reader: Reader<'_>, id: PlaceId) -> Result<Vec<u64>> {
        self.readable(reader, id)?;
        self.state(|s| {
            let roots = s.place(id)?.sealed.range(GENERATIONS).filter(|(_, o)| o.retired.is_none());
            Ok(roots.filter_map(|(id, _)| root_generation(id)).collect())
        })
    }

    /// Lets objects go after the retention time. Those that are not there, or will go already, are passed over. Also possible
    /// when the lender will leave.
    pub(super) fn mirror_retire(&self, caller: &Caller, id: PlaceId, ids: &[ObjectId]) -> Result<usize> {
        if ids.len() > BATCH_MAX {
            return Err(Error::new(Reason::MessageTooLarge, "too many objects were named at once"));
        }
        let order = self.lock(id)?;
        let _order = order.lock();
        let due_ms = self.now_ms().saturating_add(self.owned(caller, id, Kind::Mirror)?.retention_ms);
        let (mut meant, batch) = self.state(|s| {
            let batch = s.number;
            s.number += 1;
            let place = s.place(id)?;
            let lives = |i: &&ObjectId| place.sealed.get(i).is_some_and(|o| o.retired.is_none());
            Ok::<_, Error>((ids.iter().filter(lives).copied().collect::<Vec<_>>(), batch))
        })?;
        meant.sort();
        meant.dedup();
        if meant.is_empty() {
            return Ok(0);
        }
        let batches: BTreeSet<u64> = self
            .state(|s| Ok::<_, Error>(s.place(id)?.sealed.values().filter_map(|o| Some(o.retired?.batch)).collect()))?;
        if batches.len() >= RETIRED_MAX {
            return Err(Error::new(Reason::QueueFull, "too many lists of retired objects wait for their time")
                .fix_is("retire more objects at once, or wait"));
        }
        let ids = meant.iter().map(ToString::to_string).collect();
        record::write(self.disk(), &batch_name(id, batch), &Batch { due_ms, ids })?;
        self.state(|s| {
            let place = s.place(id)?;
            for object in &meant {
                if let Some(sealed) = place.sealed.get_mut(object) {
                    sealed.retired = Some(Retired { batch, due_ms });
                }
            }
            Ok(meant.len())
        })
    }

    /// Takes in what was retired before a restart.
    pub(super) fn recover_retired(&self, names: &[String]) -> Result<()> {
        for name in names.iter().filter(|n| n.starts_with("r-") && !n.ends_with(".tmp")) {
            let mut parts = name.splitn(3, '-').skip(1);
            let (id, number) = (parts.next().and_then(|p| p.parse().ok()), parts.next());
            let number = number.and_then(|n| u64::from_str_radix(n, 16).ok());
            let (Some(id), Some(batch)) = (id, number) else { continue };
            self.state(|s| s.number = s.number.max(batch.saturating_add(1)));
            let read = match record::read::<Batch>(self.disk(), name) {
                Ok(Some(read)) => read,
                Ok(None) => continue,
                // What was to go stays; its owner can retire it again.
                Err(e) if e.is(Reason::StoreCorrupt) => {
                    self.disk().remove(name)?;
                    continue;
                }
                Err(e) => return Err(e),
            };
            self.state(|s| {
                let Some(place) = s.places.get_mut(&id) else { return };
                for object in read.ids.iter().filter_map(|i| i.parse::<ObjectId>().ok()) {
                    if let Some(sealed) = place.sealed.get_mut(&object) {
                        sealed.retired = Some(Retired { batch, due_ms: read.due_ms });
                    }
                }
            });
        }
        Ok(())
    }

    /// Removes what was retired long enough ago.
    pub(super) fn remove_retired(&self, now_ms: u64) -> Result<()> {
        let due: BTreeSet<PlaceId> = self.state(|s| {
            let due = |p: &Place| p.sealed.values().any(|o| o.retired.is_some_and(|r| r.due_ms <= now_ms));
            s.places.iter().filter(|(_, p)| due(p)).map(|(id, _)| *id).collect()
        });
        for id in due {
            let order = self.lock(id)?;
            let _order = order.lock();
            let (gone, mut record) = self.state(|s| {
                let place = s.place(id)?;
                let due = |o: &Sealed| o.retired.filter(|r| r.due_ms <= now_ms);
                let gone: Vec<_> = place.sealed.iter().filter_map(|(i, o)| Some((*i, o.len, due(o)?.batch))).collect();
                Ok::<_, Error>((gone, place.record.clone()))
            })?;
            let newest = gone.iter().filter_map(|(object, ..)| root_generation(object)).max();
            if let Some(newest) = newest.filter(|n| *n >= record.generation) {
                // Noted before its root goes, so that the number is never given again.
                record.generation = newest.saturating_add(1);
                self.write_record(id, record)?;
            }
            for (object, len, _) in &gone {
                match self.disk().remove(&file_name(id, object)) {
                    Err(e) if e.kind() != ErrorKind::NotFound => return Err(e.into()),
                    _ => {}
                }
                self.state(|s| {
                    s.sealed_total -= usize::from(s.place(id).is_ok_and(|p| p.sealed.remove(object).is_some()));
                });
                self.refund(id, MIRROR_HEADER + u64::from(*len));
            }
            self.disk().sync_names()?;
            let batches: BTreeSet<u64> = gone.iter().map(|(_, _, batch)| *batch).collect();
            for batch in batches {
                match self.disk().remove(&batch_name(id, batch)) {
                    Err(e) if e.kind() != ErrorKind::NotFound => return Err(e.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// For each object, a hash of all its content under a key that the asker has just chosen: only who has the content can
    /// give it. `None` for one that is missing or damaged.
    pub(super) fn mirror_prove(
        &self,
        caller: &Caller,
        id: PlaceId,
        key: &[u8; 32],
        ids: &[ObjectId],
    ) -> Result<Vec<Option<[u8; 32]>>> {
        if ids.len() > 256 {
            return Err(Error::new(Reason::MessageTooLarge, "at most 256 objects are proven at once"));
        }
        self.owned(caller, id, Kind::Mirror)?;
        ids.iter()
            .map(|object| Ok(self.stored(id, object)?.map(|data| *blake3::keyed_hash(key, &data).as_bytes())))
            .collect()
    }
}

/// A batch and when it is due.
type BatchKey = (u64, u64);
