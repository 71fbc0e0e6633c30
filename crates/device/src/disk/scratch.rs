//! Objects of scratch space: put resumably, read, deleted, listed.
//!
//! An object is put in three steps: [`Lender::begin`] notes what comes, [`Lender::write`] takes bytes in order and says how far
//! they are on disk, [`Lender::finish`] compares the whole with its digest and makes it visible under its name, in one step
//! and in place of an earlier one. Until then the earlier one is there, and both are charged.

use super::lender::{Lender, Place, object_name, part_name};
use super::object::{self, BLOCK, HEADER, Header};
use super::{Kind, PlaceId};
use crate::model::Caller;
use bytes::Bytes;
use common::chunk::disk::DiskFile;
use common::error::{Error, Reason, Result};
use common::model::EntryName;
use std::io::{ErrorKind, IoSlice};
use std::ops::Bound;

/// Objects of one space.
const OBJECTS_MAX: usize = 10_000;
/// Uploads of one space at a time.
const PARTS_MAX: usize = 16;
/// Most bytes of one write or read.
const PIECE_MAX: usize = 4 << 20;
const PAGE_MAX: usize = 1_000;

/// A visible object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Visible {
    pub(super) number: u64,
    pub(super) sequence: u64,
    pub(super) size: u64,
    pub(super) digest: [u8; 32],
}

/// An object that is being put.
pub(super) struct Part {
    header: Header,
    /// Content that is on disk; not known before the blocks were looked at.
    durable: Option<u64>,
    /// Bytes of its file.
    len: u64,
    /// Over the durable content.
    hasher: blake3::Hasher,
    pub(super) touched_ms: Option<u64>,
}

impl Part {
    pub(super) fn found(header: Header, len: u64) -> Self {
        Self { header, durable: None, len, hasher: blake3::Hasher::new(), touched_ms: None }
    }
}

/// An object that is being put, as its borrower sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Upload {
    /// For [`Lender::write`] and [`Lender::finish`].
    pub number: u64,
    /// So much of it is on disk: go on there.
    pub offset: u64,
}

/// What a scratch space has under a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectStat {
    /// Its name.
    pub name: EntryName,
    /// Bytes.
    pub size: u64,
    /// BLAKE3 of the content.
    pub digest: [u8; 32],
}

impl Lender {
    /// Begins to put an object, or goes on with one of the same name, size and digest.
    ///
    /// # Errors
    /// `SPACE_UNKNOWN`, `SPACE_EXPIRED`, `SPACE_FULL` before any byte is sent, `QUEUE_FULL` beyond 16 uploads, `DEVICE_AWAY` if
    /// the lender will leave, `IO_FAILED`.
    pub fn begin(&self, caller: &Caller, id: PlaceId, name: &EntryName, size: u64, digest: [u8; 32]) -> Result<Upload> {
        let order = self.lock(id)?;
        let _order = order.lock();
        self.owned(caller, id, Kind::Scratch)?;
        let now_ms = self.now_ms();
        let same_name = self.state(|s| {
            let parts = s.places.get(&id).map(|p| &p.parts);
            parts
                .and_then(|parts| parts.iter().find(|(_, p)| p.header.name == *name))
                .map(|(number, p)| (*number, (p.header.size, p.header.digest) == (size, digest)))
        });
        match same_name {
            Some((number, true)) => return self.resume(id, number, now_ms),
            Some((number, false)) => self.drop_part(id, number)?,
            None => {}
        }
        let number = self.state(|s| {
            if s.leaving {
                return Err(super::lender::leaving());
            }
            let number = s.number;
            let place = s.place(id)?;
            room_for_one(place, size)?;
            s.number += 1;
            Ok(number)
        })?;
        let header = Header { place: id, sequence: number, size, digest, name: name.clone() };
        self.admit(id, HEADER)?;
        let file = part_name(id, number);
        let made = self.disk().create(&file).and_then(|made| {
            made.write_at(0, &mut [IoSlice::new(&header.encode())])?;
            made.sync_data()?;
            self.disk().sync_names()
        });
        self.landed(HEADER);
        if let Err(error) = made {
            // If it stays, the next open counts it, and removes it if its header is not whole.
            if self.disk().remove(&file).is_ok() {
                self.refund(id, HEADER);
            }
            return Err(error.into());
        }
        self.state(|s| {
            if let Some(place) = s.places.get_mut(&id) {
                let part = Part { durable: Some(0), touched_ms: Some(now_ms), ..Part::found(header, HEADER) };
                place.parts.insert(number, part);
            }
        });
        Ok(Upload { number, offset: 0 })
    }

    /// Where to go on; looks at what a crash has left, once.
    fn resume(&self, id: PlaceId, number: u64, now_ms: u64) -> Result<Upload> {
        let known = self.part(id, number, |part| {
            part.touched_ms = Some(now_ms);
            (part.durable, part.header.size, part.len)
        })?;
        if let (Some(offset), ..) = known {
            return Ok(Upload { number, offset });
        }
        let (_, size, len) = known;
        let file = self.disk().open(&part_name(id, number))?;
        let (mut hasher, mut whole) = (blake3::Hasher::new(), 0);
        while whole < size
            && let Some(data) = object::read_block(&*file, size, whole / BLOCK)?
        {
            hasher.update(&data);
            whole += data.len() as u64;
        }
        let keep = object::disk_len(whole);
        if keep < len {
            file.truncate(keep)?;
            // Blocks that are whole may still be in memory only.
        }
        file.sync_data()?;
        self.refund(id, len - keep.min(len));
        self.part(id, number, |part| (part.durable, part.len, part.hasher) = (Some(whole), keep, hasher))?;
        Ok(Upload { number, offset: whole })
    }

    fn part<T>(&self, id: PlaceId, number: u64, f: impl FnOnce(&mut Part) -> T) -> Result<T> {
        self.state(|s| {
            let part = s.place(id)?.parts.get_mut(&number);
            part.map(f).ok_or_else(|| Error::new(Reason::UploadInvalid, "there is no such upload; begin again"))
        })
    }

    /// Takes bytes of an object from `offset` on. Gives how much of the object is on disk now: go on there. Whole blocks of
    /// 128 KiB are taken, and the rest with the end of the object, so that may be less than was sent; bytes that are there
    /// already are passed over.
    ///
    /// # Errors
    /// `UPLOAD_INVALID`, `RANGE_INVALID` (detail `offset`) beyond what is there or beyond the object's end, `MESSAGE_TOO_LARGE`
    /// beyond 4 MiB, `SPACE_FULL`, `SPACE_EXPIRED`, `IO_FAILED`.
    pub fn write(&self, caller: &Caller, id: PlaceId, number: u64, offset: u64, data: &[u8]) -> Result<u64> {
        if data.len() > PIECE_MAX {
            return Err(Error::new(Reason::MessageTooLarge, "at most 4 MiB are taken at once"));
        }
        let order = self.lock(id)?;
        let _order = order.lock();
        self.owned(caller, id, Kind::Scratch)?;
        let now_ms = self.now_ms();
        let durable = self.resume(id, number, now_ms)?.offset;
        let (size, len, mut hasher) = self.part(id, number, |p| (p.header.size, p.len, p.hasher.clone()))?;
        let end = offset.saturating_add(data.len() as u64);
        if offset > durable || end > size {
            return Err(Error::new(Reason::RangeInvalid, "these bytes are not the next ones").with("offset", durable));
        }
        let Some(fresh) = data.get((durable - offset) as usize..) else { return Ok(durable) };
        let take = if end == size { fresh.len() } else { fresh.len() - fresh.len() % BLOCK as usize };
        if take == 0 {
            return Ok(durable);
        }
        let stored = object::blocks(durable / BLOCK, &fresh[..take]);
        let grows = stored.len() as u64;
        self.admit(id, grows)?;
        let file = self.disk().open(&part_name(id, number));
        let written = file.and_then(|file| {
            file.write_at(len, &mut [IoSlice::new(&stored)]).inspect_err(|_| {
                let left = cut(&*file, len, grows);
                self.refund(id, grows - left);
                let _ = self.part(id, number, |p| (p.len, p.durable) = (len + left, None));
            })?;
            file.sync_data().inspect_err(|_| {
                // What the disk has now nobody knows; the next attempt finds out by the checksums, from a fresh read.
                file.forget_pages();
                let _ = self.part(id, number, |p| (p.len, p.durable) = (len + grows, None));
            })
        });
        self.landed(grows);
        written?;
        hasher.update(&fresh[..take]);
        let durable = durable + take as u64;
        self.part(id, number, |p| (p.durable, p.len, p.hasher) = (Some(durable), len + grows, hasher))?;
        Ok(durable)
    }

    /// Makes an object visible whose bytes are all there, in place of an earlier one of its name. On disk on return.
    ///
    /// # Errors
    /// `UPLOAD_INVALID`, `RANGE_INVALID` (detail `offset`) if bytes are missing, `CHUNK_DIGEST_MISMATCH` (the upload is gone
    /// then), `SPACE_EXPIRED`, `IO_FAILED`.
    pub fn finish(&self, caller: &Caller, id: PlaceId, number: u64) -> Result<ObjectStat> {
        let order = self.lock(id)?;
        let _order = order.lock();
        self.owned(caller, id, Kind::Scratch)?;
        let durable = self.resume(id, number, self.now_ms())?.offset;
        let (header, digest) = self.part(id, number, |p| (p.header.clone(), *p.hasher.finalize().as_bytes()))?;
        if durable < header.size {
            return Err(Error::new(Reason::RangeInvalid, "bytes of the object are missing").with("offset", durable));
        }
        if digest != header.digest {
            self.drop_part(id, number)?;
            return Err(Error::new(Reason::ChunkDigestMismatch, "the object is not the one that was announced"));
        }
        self.disk().rename(&part_name(id, number), &object_name(id, number))?;
        let synced = self.disk().sync_names();
        // It is visible now, even if the disk could not say that it will stay.
        let new = Visible { number, sequence: header.sequence, size: header.size, digest };
        let old = self.state(|s| {
            let place = s.places.get_mut(&id)?;
            place.parts.remove(&number);
            place.visible.insert(header.name.clone(), new)
        });
        synced?;
        if let Some(old) = old {
            // If it comes back after a power cut, the next open removes it: the later one of a name counts.
            self.state(|s| s.places.get_mut(&id).map(|p| p.doubles.push(old.number)));
            if let Err(error) = self.remove_doubles() {
                tracing::warn!(?error, place = %id, "an object that was replaced could not be removed yet");
            }
        }
        Ok(ObjectStat { name: header.name, size: header.size, digest })
    }

    /// Gives up putting an object.
    ///
    /// # Errors
    /// `SPACE_UNKNOWN`, `SPACE_EXPIRED`, `IO_FAILED`. One that is not there is no error.
    pub fn abandon(&self, caller: &Caller, id: PlaceId, number: u64) -> Result<()> {
        let order = self.lock(id)?;
        let _order = order.lock();
        self.owned(caller, id, Kind::Scratch)?;
        self.drop_part(id, number)
    }

    /// Removes an upload. The place's order is held by the caller.
    pub(super) fn drop_part(&self, id: PlaceId, number: u64) -> Result<()> {
        let Ok(len) = self.part(id, number, |p| p.len) else { return Ok(()) };
        match self.disk().remove(&part_name(id, number)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
        self.state(|s| s.places.get_mut(&id).map(|p| p.parts.remove(&number)));
        self.refund(id, len);
        Ok(())
    }

    /// Bytes of an object from `offset` on, at most `len` and at most 4 MiB; each block is compared with its checksum. None at
    /// its end.
    ///
    /// # Errors
    /// `SPACE_UNKNOWN`, `SPACE_EXPIRED`, `ENTRY_UNKNOWN`, `RANGE_INVALID` beyond the end, `CHUNK_DAMAGED`, `IO_FAILED`.
    pub fn read(&self, caller: &Caller, id: PlaceId, name: &EntryName, offset: u64, len: usize) -> Result<Bytes> {
        let mut attempts = 0;
        loop {
            self.owned(caller, id, Kind::Scratch)?;
            let found = self.state(|s| Ok::<_, Error>(s.place(id)?.visible.get(name).copied()))?;
            let object = found.ok_or_else(no_object)?;
            match self.disk().open(&object_name(id, object.number)) {
                Ok(file) => return read_from(&*file, &object, offset, len),
                // Another one has just come in its place.
                Err(e) if e.kind() == ErrorKind::NotFound && attempts < 8 => attempts += 1,
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// What is there under a name.
    ///
    /// # Errors
    /// `SPACE_UNKNOWN`, `SPACE_EXPIRED`, `ENTRY_UNKNOWN`.
    pub fn stat(&self, caller: &Caller, id: PlaceId, name: &EntryName) -> Result<ObjectStat> {
        self.owned(caller, id, Kind::Scratch)?;
        let found = self.state(|s| Ok::<_, Error>(s.place(id)?.visible.get(name).map(|o| stat(name, o))))?;
        found.ok_or_else(no_object)
    }

    /// Objects in the order of their names, after `after`, at most `limit` and at most 1,000.
    ///
    /// # Errors
    /// `SPACE_UNKNOWN`, `SPACE_EXPIRED`.
    pub fn list(
        &self,
        caller: &Caller,
        id: PlaceId,
        after: Option<&EntryName>,
        limit: usize,
    ) -> Result<Vec<ObjectStat>> {
        self.owned(caller, id, Kind::Scratch)?;
        self.state(|s| {
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            let range = s.place(id)?.visible.range::<EntryName, _>((from, Bound::Unbounded));
            Ok(range.take(limit.min(PAGE_MAX)).map(|(name, o)| stat(name, o)).collect())
        })
    }

    /// Deletes an object; gone on disk on return. Also possible when the disk is full.
    ///
    /// # Errors
    /// `SPACE_UNKNOWN`, `SPACE_EXPIRED`, `ENTRY_UNKNOWN`, `IO_FAILED`.
    pub fn delete(&self, caller: &Caller, id: PlaceId, name: &EntryName) -> Result<()> {
        let order = self.lock(id)?;
        let _order = order.lock();
        self.owned(caller, id, Kind::Scratch)?;
        let found = self.state(|s| Ok::<_, Error>(s.place(id)?.visible.get(name).copied()))?;
        let object = found.ok_or_else(no_object)?;
        // An earlier one of this name that is still there would come to light.
        self.remove_doubles()?;
        match self.disk().remove(&object_name(id, object.number)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
        self.state(|s| s.places.get_mut(&id).map(|p| p.visible.remove(name)));
        self.refund(id, object::disk_len(object.size));
        Ok(self.disk().sync_names()?)
    }
}

fn room_for_one(place: &Place, size: u64) -> Result<()> {
    if place.parts.len() >= PARTS_MAX {
        return Err(Error::new(Reason::QueueFull, "too many objects are being put into this space at a time"));
    }
    let full = |why: &str| Error::new(Reason::SpaceFull, "the object has no room in this space").why_is(why);
    if place.visible.len() + place.parts.len() >= OBJECTS_MAX {
        return Err(full("a space holds at most 10,000 objects"));
    }
    if place.used.saturating_add(object::disk_len(size)) > place.record.bytes {
        let left = place.record.bytes.saturating_sub(place.used);
        return Err(full("the space that was borrowed would be used up").with("left_bytes", left));
    }
    Ok(())
}

/// After a write that failed: cuts the file back to `len`. How many of the `grows` bytes are still there.
fn cut(file: &dyn DiskFile, len: u64, grows: u64) -> u64 {
    if file.truncate(len).is_ok() {
        return 0;
    }
    file.len().map_or(grows, |now| now.saturating_sub(len)).min(grows)
}

fn read_from(file: &dyn DiskFile, object: &Visible, offset: u64, len: usize) -> Result<Bytes> {
    if offset > object.size {
        return Err(Error::new(Reason::RangeInvalid, "the object ends before").with("size", object.size));
    }
    let end = object.size.min(offset.saturating_add(len.min(PIECE_MAX) as u64));
    let mut out = Vec::with_capacity((end - offset) as usize);
    let mut at = offset;
    while at < end {
        let block = at / BLOCK;
        let data = object::read_block(file, object.size, block)?;
        let data = data.ok_or_else(|| {
            Error::new(Reason::ChunkDamaged, "a part of the object is damaged on the lender's disk").with("offset", at)
        })?;
        let from = (at - block * BLOCK) as usize;
        let to = data.len().min(from + (end - at) as usize);
        out.extend_from_slice(&data[from..to]);
        at += (to - from) as u64;
    }
    Ok(Bytes::from(out))
}

fn stat(name: &EntryName, object: &Visible) -> ObjectStat {
    ObjectStat { name: name.clone(), size: object.size, digest: object.digest }
}

fn no_object() -> Error {
    Error::new(Reason::EntryUnknown, "there is no object of this name in the space")
        .fix_is("`atrium devices` shows the space, and its list what is in it")
}
