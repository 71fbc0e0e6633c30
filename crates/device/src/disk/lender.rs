//! A lender: opening and recovery, borrowing, ends and wiping. Scratch objects are in `scratch.rs`, mirror objects in `place.rs`.
//!
//! Locks: `state` lies around the accounts and lists, and is held only for a moment and never while bytes move; each place
//! has a lock of its own that orders what changes it. The place's lock is always taken first.

use super::books::{Books, Limits};
use super::mirror::place::ObjectId;
use super::record::{self, PlaceRecord, State, place_name};
use super::scratch::{Part, Visible};
use super::time::{Clocks, LenderTime, Reading};
use super::{Borrow, Event, Kind, Overview, PlaceId, PlaceView, Settings};
use crate::audit::clean;
use crate::model::Caller;
use common::chunk::disk::{Disk, OsDisk};
use common::error::{Error, Reason, Result};
use common::model::EntryName;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;

/// Places of one lender.
const PLACES_MAX: usize = 1024;
/// Wiped places that are remembered, and for how long.
const WIPED_MAX: usize = 512;
const WIPED_KEPT_MS: u64 = 7 * 24 * 3_600_000;
const LABEL_BYTES: usize = 64;
/// The record of whether the lender will leave.
const LEAVING: &str = "leaving";
const EVENTS: usize = 256;
/// How often the lender's time is written down.
const SAVE_EVERY_MS: u64 = 60_000;
/// Uploads that nothing was heard of for this long are removed.
const PART_IDLE_MS: u64 = 24 * 3_600_000;

/// A retired object's end: which batch, in the lender's time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Retired {
    pub(super) batch: u64,
    pub(super) due_ms: u64,
}

/// An object of a mirror.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sealed {
    /// Bytes of its content.
    pub(super) len: u32,
    pub(super) retired: Option<Retired>,
}

/// A place and what is in it.
pub(super) struct Place {
    pub(super) record: PlaceRecord,
    /// Bytes of its files.
    pub(super) used: u64,
    pub(super) visible: BTreeMap<EntryName, Visible>,
    pub(super) parts: HashMap<u64, Part>,
    pub(super) sealed: BTreeMap<ObjectId, Sealed>,
    pub(super) warned: bool,
    /// Its record is not on disk yet: nobody may know of it.
    fresh: bool,
    /// Numbers of objects whose name has a later one; found at open.
    pub(super) doubles: Vec<u64>,
    pub(super) lock: Arc<Mutex<()>>,
}

impl Place {
    pub(super) fn new(record: PlaceRecord) -> Self {
        Self {
            record,
            used: 0,
            visible: BTreeMap::new(),
            parts: HashMap::new(),
            sealed: BTreeMap::new(),
            warned: false,
            fresh: false,
            doubles: Vec::new(),
            lock: Arc::default(),
        }
    }
}

pub(super) struct Ledger {
    pub(super) books: Books,
    pub(super) places: HashMap<PlaceId, Place>,
    pub(super) time: LenderTime,
    pub(super) leaving: bool,
    pub(super) sealed_total: usize,
    /// Number of the next file; above all that are there.
    pub(super) number: u64,
    saved_ms: u64,
    pub(super) damaged: BTreeSet<PlaceId>,
    reserve_reached: bool,
}

struct Inner {
    disk: Arc<dyn Disk>,
    settings: Settings,
    clocks: Arc<dyn Clocks>,
    state: Mutex<Ledger>,
    events: broadcast::Sender<Event>,
    #[expect(dead_code, reason = "held, not read")]
    lock: Box<dyn Any + Send + Sync>,
}

/// An open lender. Clones are handles to the same one. See the [module](super) for what it promises.
#[derive(Clone)]
pub struct Lender(Arc<Inner>);

/// Whose limit counts: a person's, with all machines; or a machine's that belongs to nobody.
pub(super) fn borrower(caller: &Caller) -> &str {
    if caller.person.is_empty() { &caller.device } else { &caller.person }
}

fn is_nobody(caller: &Caller) -> bool {
    borrower(caller).is_empty()
}

impl Lender {
    /// Opens a directory of this machine, which is made if it is missing.
    ///
    /// # Errors
    /// Like [`Lender::on`].
    pub fn open(directory: &Path, settings: Settings, clocks: Arc<dyn Clocks>) -> Result<Self> {
        Self::on(Arc::new(OsDisk::open(directory)?), settings, clocks)
    }

    /// Opens what was lent on a disk, and finishes what a crash left unfinished. Reads the names of all files and the headers
    /// of scratch objects.
    ///
    /// # Errors
    /// `STORE_BUSY` if another process has the directory; `IO_FAILED`.
    pub fn on(disk: Arc<dyn Disk>, settings: Settings, clocks: Arc<dyn Clocks>) -> Result<Self> {
        let Some(lock) = disk.lock()? else {
            return Err(Error::new(Reason::StoreBusy, "another process lends space in this directory"));
        };
        let now = clocks.read();
        // Time that cannot be read begins anew, which keeps everything for longer: ends are set again below.
        let saved = match record::read(&*disk, "time") {
            Ok(saved) => saved,
            Err(e) if e.is(Reason::StoreCorrupt) => None,
            Err(e) => return Err(e),
        };
        let state = Ledger {
            books: Books::default(),
            places: HashMap::new(),
            time: LenderTime::open(saved, &now),
            leaving: match record::read::<bool>(&*disk, LEAVING) {
                Ok(leaving) => leaving.unwrap_or(false),
                // Somebody wrote it: it was about to leave, and whoever wants it to stay says so again.
                Err(e) if e.is(Reason::StoreCorrupt) => true,
                Err(e) => return Err(e),
            },
            sealed_total: 0,
            number: 1,
            saved_ms: 0,
            damaged: BTreeSet::new(),
            reserve_reached: false,
        };
        let (events, _) = broadcast::channel(EVENTS);
        let lender = Self(Arc::new(Inner { disk, settings, clocks, state: Mutex::new(state), events, lock }));
        lender.recover()?;
        lender.save_time(&now)?;
        Ok(lender)
    }

    pub(super) fn disk(&self) -> &dyn Disk {
        &*self.0.disk
    }

    pub(super) fn state<T>(&self, f: impl FnOnce(&mut Ledger) -> T) -> T {
        f(&mut self.0.state.lock())
    }

    pub(super) fn now_ms(&self) -> u64 {
        let now = self.0.clocks.read();
        self.state(|s| s.time.now_ms(&now))
    }

    fn save_time(&self, now: &Reading) -> Result<()> {
        let saved = self.state(|s| {
            s.saved_ms = s.time.now_ms(now);
            s.time.save(now)
        });
        record::write(self.disk(), "time", &saved)
    }

    /// Gives back what a place was charged for.
    pub(super) fn refund(&self, id: PlaceId, bytes: u64) {
        self.state(|s| {
            s.books.refund(bytes);
            if let Some(place) = s.places.get_mut(&id) {
                place.used = place.used.saturating_sub(bytes);
            }
        });
    }

    fn limits(&self) -> Limits {
        let s = &self.0.settings;
        Limits { size: s.size_bytes, reserve: s.reserve_bytes, per_borrower: s.per_borrower_bytes }
    }

    /// Charges a place for bytes that are about to be written. To be followed by [`Lender::landed`].
    pub(super) fn admit(&self, id: PlaceId, bytes: u64) -> Result<()> {
        let limits = self.limits();
        let (result, event) = self.state(|s| {
            if s.leaving {
                return (Err(leaving()), None);
            }
            // Asked within the lock: what another has written is either seen in it or still in flight.
            let free = match self.disk().free_bytes() {
                Ok(free) => free,
                Err(error) => return (Err(error.into()), None),
            };
            let Some(place) = s.places.get_mut(&id) else { return (Err(unknown()), None) };
            let admitted = s.books.admit(place.used, place.record.bytes, bytes, &limits, free);
            let mut event = None;
            match &admitted {
                Ok(()) => {
                    place.used += bytes;
                    s.reserve_reached = false;
                    let now = s.time.now_ms(&self.0.clocks.read());
                    event = place.warning(id, self.0.settings.warn_percent, now).map(Event::AlmostFull);
                }
                Err(e) if e.detail("room_bytes").is_some() && !s.reserve_reached => {
                    s.reserve_reached = true;
                    event = Some(Event::ReserveReached);
                }
                Err(_) => {}
            }
            (admitted, event)
        });
        event.into_iter().for_each(|event| self.tell(event));
        result
    }

    /// Bytes that were admitted are written, or given up.
    pub(super) fn landed(&self, bytes: u64) {
        self.state(|s| s.books.landed(bytes));
    }

    pub(super) fn tell(&self, event: Event) {
        // Nobody may be listening.
        let _ = self.0.events.send(event);
    }

    /// Follows what borrowers and the owner should hear of.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.0.events.subscribe()
    }

    /// Lends space. The caller's right was checked (*write*). The same id again, by the same borrower, gives the same place.
    ///
    /// # Errors
    /// `SPACE_FULL` (detail `left_bytes`), `FIELD_INVALID`, `ACCESS_DENIED` for callers without an identity, `DEVICE_AWAY` if
    /// the lender will leave, `SPACE_EXPIRED` if the id was one that is over.
    pub fn borrow(&self, caller: &Caller, wanted: &Borrow) -> Result<PlaceView> {
        if is_nobody(caller) {
            return Err(Error::new(Reason::AccessDenied, "space is lent only to members of the office"));
        }
        if wanted.bytes == 0 {
            return Err(Error::new(Reason::FieldInvalid, "no bytes were asked for"));
        }
        let term_ms = millis(wanted.time);
        if wanted.kind == Kind::Scratch && (term_ms == 0 || wanted.time > self.0.settings.term_max) {
            return Err(Error::new(Reason::FieldInvalid, "space is not lent for that time")
                .with("longest_seconds", self.0.settings.term_max.as_secs()));
        }
        let now_ms = self.now_ms();
        let record = PlaceRecord {
            kind: wanted.kind,
            owner: caller.clone(),
            label: clean(&wanted.label, LABEL_BYTES),
            bytes: wanted.bytes,
            ends_ms: (wanted.kind == Kind::Scratch).then(|| now_ms.saturating_add(term_ms)),
            retention_ms: millis(self.0.settings.retention.max(wanted.time)),
            state: State::Live,
            generation: 0,
        };
        let limits = self.limits();
        let new = self.state(|s| {
            match s.places.get(&wanted.id) {
                Some(place) if !place.fresh && owns(&place.record, caller) && place.record.kind == wanted.kind => {
                    return place.is_live(now_ms).map(|()| false);
                }
                Some(_) => {
                    return Err(Error::new(Reason::FieldInvalid, "the id of the place is in use")
                        .fix_is("choose a new random id"));
                }
                None if s.damaged.contains(&wanted.id) => return Err(locked()),
                None if s.leaving => return Err(leaving()),
                None => {}
            }
            if s.places.len() >= PLACES_MAX {
                return Err(Error::new(Reason::SpaceFull, "the machine has lent as many places as it may"));
            }
            s.books.promise(borrower(caller), wanted.bytes, &limits)?;
            // Not to be seen before it is on disk.
            s.places.insert(wanted.id, Place { fresh: true, ..Place::new(record.clone()) });
            Ok(true)
        })?;
        if new {
            let written = record::write(self.disk(), &place_name(wanted.id), &record);
            self.state(|s| match &written {
                Ok(()) => {
                    if let Some(place) = s.places.get_mut(&wanted.id) {
                        place.fresh = false;
                    }
                }
                Err(_) => {
                    s.places.remove(&wanted.id);
                    s.books.release(borrower(caller), wanted.bytes);
                }
            });
            written?;
        }
        self.view(caller, wanted.id)
    }

    /// Lends scratch space for longer: until `time` from now, if that is later than its end.
    ///
    /// # Errors
    /// `SPACE_UNKNOWN`, `SPACE_EXPIRED`, `FIELD_INVALID`, `DEVICE_AWAY`.
    pub fn renew(&self, caller: &Caller, id: PlaceId, time: Duration) -> Result<PlaceView> {
        let order = self.lock(id)?;
        let _order = order.lock();
        let mut record = self.owned(caller, id, Kind::Scratch)?;
        if time > self.0.settings.term_max {
            return Err(Error::new(Reason::FieldInvalid, "space is not lent for that time")
                .with("longest_seconds", self.0.settings.term_max.as_secs()));
        }
        if self.state(|s| s.leaving) {
            return Err(leaving());
        }
        record.ends_ms = record.ends_ms.max(Some(self.now_ms().saturating_add(millis(time))));
        self.write_record(id, record)?;
        self.view(caller, id)
    }

    /// Writes a changed record, and then lets it count.
    pub(super) fn write_record(&self, id: PlaceId, record: PlaceRecord) -> Result<()> {
        record::write(self.disk(), &place_name(id), &record)?;
        self.state(|s| {
            if let Some(place) = s.places.get_mut(&id) {
                place.record = record;
            }
        });
        Ok(())
    }

    /// The places of one borrower, or all for who manages the lender.
    pub fn places(&self, of: Option<&Caller>) -> Vec<PlaceView> {
        let now_ms = self.now_ms();
        let mut views: Vec<PlaceView> = self.state(|s| {
            let shown = |place: &Place| {
                !place.fresh && of.is_none_or(|of| owns(&place.record, of)) && place.is_live(now_ms).is_ok()
            };
            s.places.iter().filter(|(_, p)| shown(p)).map(|(id, p)| p.view(*id, now_ms)).collect()
        });
        views.sort_by_key(|view| view.id);
        views
    }

    /// One of the caller's places.
    ///
    /// # Errors
    /// `SPACE_UNKNOWN`, also if it is somebody else's; `SPACE_EXPIRED`; `STORE_CORRUPT` if its record is damaged.
    pub fn view(&self, caller: &Caller, id: PlaceId) -> Result<PlaceView> {
        let now_ms = self.now_ms();
        self.state(|s| {
            let place = s.place(id)?;
            if !owns(&place.record, caller) {
                return Err(unknown());
            }
            place.is_live(now_ms)?;
            Ok(place.view(id, now_ms))
        })
    }

    /// The lender as a whole.
    ///
    /// # Errors
    /// `IO_FAILED` if the disk does not say how much is free.
    pub fn overview(&self) -> Result<Overview> {
        let (limits, free) = (self.limits(), self.disk().free_bytes()?);
        Ok(self.state(|s| Overview {
            size: limits.size,
            promised: s.books.promised(),
            used: s.books.used(),
            room: s.books.room(&limits, free),
            leaving: s.leaving,
            damaged: s.damaged.len(),
        }))
    }

    /// Gives scratch space back before its end: it is wiped. So is a mirror of a lender that will leave; any other is retired
    /// instead, see [`super::LocalPlace`].
    ///
    /// # Errors
    /// `SPACE_UNKNOWN`, `SPACE_EXPIRED`, `MIRROR_APPEND_ONLY` for a mirror that has objects.
    pub fn give_back(&self, caller: &Caller, id: PlaceId) -> Result<()> {
        let kind = self.view(caller, id)?.kind;
        let has_objects = |s: &mut Ledger| s.places.get(&id).is_some_and(|p| !p.sealed.is_empty());
        if kind == Kind::Mirror && self.state(|s| !s.leaving && has_objects(s)) {
            return Err(Error::new(Reason::MirrorAppendOnly, "the mirror still has objects")
                .fix_is("retire them; the place can be given back when their time is over"));
        }
        self.wipe(id, None)
    }

    /// Takes space back from a borrower, whatever its end: for who manages the lender (the right was checked).
    ///
    /// # Errors
    /// `SPACE_UNKNOWN`.
    pub fn take_back(&self, id: PlaceId) -> Result<()> {
        self.state(|s| s.place(id).map(drop))?;
        self.wipe(id, None)
    }

    /// Whether the lender will leave: nothing new is taken, everything is still given out, so that it can be copied elsewhere.
    /// On disk on return, so that a restart changes nothing; only on a full disk it holds until then.
    ///
    /// # Errors
    /// `IO_FAILED`; it is then as it was.
    pub fn set_leaving(&self, leaving: bool) -> Result<()> {
        if self.state(|s| s.leaving == leaving) {
            return Ok(());
        }
        match leaving {
            true => match record::write(self.disk(), LEAVING, &true) {
                Err(e) if !e.is(Reason::DiskFull) => return Err(e),
                _ => {}
            },
            false => {
                match self.disk().remove(LEAVING) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                    _ => {}
                }
                self.disk().sync_names()?;
            }
        }
        let begins = self.state(|s| !std::mem::replace(&mut s.leaving, leaving) && leaving);
        if begins {
            self.tell(Event::Leaving);
        }
        Ok(())
    }

    /// Does what is due: wipes what is over, removes retired objects whose time has come and uploads that were left, notes the
    /// time. To be called every few seconds.
    ///
    /// # Errors
    /// `IO_FAILED`, `DISK_FULL`; the next call goes on.
    pub fn tick(&self) -> Result<()> {
        let now = self.0.clocks.read();
        let (now_ms, save) = self.state(|s| {
            s.time.settle(&now);
            let now_ms = s.time.now_ms(&now);
            (now_ms, now_ms >= s.saved_ms + SAVE_EVERY_MS)
        });
        // An old time only keeps things for longer, so a full disk must not stop the wiping that makes room.
        let saved = if save { self.save_time(&now) } else { Ok(()) };
        let over: Vec<PlaceId> = self.state(|s| {
            let over = |p: &Place| match p.record.state {
                State::Live => p.record.ends_ms.is_some_and(|end| end <= now_ms),
                State::Wiping => true,
                State::Wiped(_) => false,
            };
            s.places.iter().filter(|(_, p)| !p.fresh && over(p)).map(|(id, _)| *id).collect()
        });
        // One place that cannot be wiped keeps no other from it.
        let mut wiped = Ok(());
        for id in over {
            wiped = wiped.and(self.wipe(id, Some(now_ms)));
        }
        self.remove_idle_parts(now_ms)?;
        self.remove_retired(now_ms)?;
        self.forget_wiped(now_ms)?;
        wiped.and(saved)
    }

    fn remove_idle_parts(&self, now_ms: u64) -> Result<()> {
        let idle: Vec<(PlaceId, u64)> = self.state(|s| {
            let mut idle = Vec::new();
            for (id, place) in &mut s.places {
                for (number, part) in &mut place.parts {
                    // One that was found at open begins to count then.
                    let touched = *part.touched_ms.get_or_insert(now_ms);
                    if now_ms.saturating_sub(touched) >= PART_IDLE_MS {
                        idle.push((*id, *number));
                    }
                }
            }
            idle
        });
        for (id, number) in idle {
            let Ok(order) = self.lock(id) else { continue };
            let _order = order.lock();
            self.drop_part(id, number)?;
        }
        Ok(())
    }

    fn forget_wiped(&self, now_ms: u64) -> Result<()> {
        let mut wiped: Vec<(u64, PlaceId)> = self.state(|s| {
            let wiped = |(id, p): (&PlaceId, &Place)| match p.record.state {
                State::Wiped(at) => Some((at, *id)),
                _ => None,
            };
            s.places.iter().filter_map(wiped).collect()
        });
        wiped.sort();
        let many = wiped.len().saturating_sub(WIPED_MAX);
        for (n, (at, id)) in wiped.into_iter().enumerate() {
            if n < many || now_ms.saturating_sub(at) >= WIPED_KEPT_MS {
                self.disk().remove(&place_name(id))?;
                self.state(|s| s.places.remove(&id));
            }
        }
        Ok(())
    }

    /// Notes that a place is being wiped, then wipes it. With a time: only if its end is not after that, asked again in the
    /// place's order, because it may have been renewed.
    fn wipe(&self, id: PlaceId, if_over: Option<u64>) -> Result<()> {
        {
            let order = self.lock(id)?;
            let _order = order.lock();
            let mut record = self.state(|s| s.place(id).map(|p| p.record.clone()))?;
            if matches!(record.state, State::Wiped(_)) {
                return Ok(());
            }
            let renewed = |now| record.ends_ms.is_none_or(|end| end > now);
            if record.state == State::Live && if_over.is_some_and(renewed) {
                return Ok(());
            }
            if record.state == State::Live {
                record.state = State::Wiping;
                if let Err(error) = self.write_record(id, record.clone()) {
                    if !error.is(Reason::DiskFull) {
                        return Err(error);
                    }
                    // No room for the note that would make room: the record itself goes, which means the same.
                    self.disk().remove(&place_name(id))?;
                    self.disk().sync_names()?;
                    self.state(|s| s.places.get_mut(&id).map(|p| p.record.state = State::Wiping));
                }
            }
        }
        self.finish_wiping(id)
    }

    pub(super) fn finish_wiping(&self, id: PlaceId) -> Result<()> {
        let order = self.lock(id)?;
        let _order = order.lock();
        let mine = |name: &String| {
            let rest = name.split_once('-').filter(|(letter, _)| letter.len() == 1).map(|(_, rest)| rest);
            rest.and_then(|rest| rest.split_once('-')).and_then(|(place, _)| place.parse().ok()) == Some(id)
        };
        for name in self.disk().list()?.iter().filter(|name| mine(name)) {
            match self.disk().remove(name) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
        self.disk().sync_names()?;
        let now_ms = self.now_ms();
        let record = self.state(|s| {
            let place = s.places.get_mut(&id)?;
            let (used, sealed) = (place.used, place.sealed.len());
            let (owner, bytes) = (place.record.owner.clone(), place.record.bytes);
            *place = Place { lock: place.lock.clone(), ..Place::new(place.record.clone()) };
            place.record.state = State::Wiped(now_ms);
            let record = place.record.clone();
            s.books.refund(used);
            s.books.release(borrower(&owner), bytes);
            s.sealed_total -= sealed;
            Some(record)
        });
        if let Some(record) = record {
            self.tell(Event::Wiped(id, record.owner.clone()));
            // Only to say later what became of it. If this fails, the next open finds an empty place to wipe.
            if let Err(error) = record::write(self.disk(), &place_name(id), &record) {
                tracing::warn!(?error, "it could not be noted that lent space was wiped");
            }
        }
        Ok(())
    }

    pub(super) fn lock(&self, id: PlaceId) -> Result<Arc<Mutex<()>>> {
        self.state(|s| s.place(id).map(|p| p.lock.clone()))
    }

    /// The record of a live place of this kind that is the caller's.
    pub(super) fn owned(&self, caller: &Caller, id: PlaceId, kind: Kind) -> Result<PlaceRecord> {
        let now_ms = self.now_ms();
        self.state(|s| {
            let place = s.place(id)?;
            if !owns(&place.record, caller) || place.record.kind != kind {
                return Err(unknown());
            }
            place.is_live(now_ms)?;
            Ok(place.record.clone())
        })
    }

    /// Sums of what is charged and what lies on disk, for tests.
    #[cfg(test)]
    pub(super) fn charges(&self) -> (u64, BTreeMap<PlaceId, u64>) {
        self.state(|s| (s.books.used(), s.places.iter().map(|(id, p)| (*id, p.used)).collect()))
    }
}

impl Ledger {
    pub(super) fn place(&mut self, id: PlaceId) -> Result<&mut Place> {
        if self.damaged.contains(&id) {
            return Err(locked());
        }
        self.places.get_mut(&id).filter(|place| !place.fresh).ok_or_else(unknown)
    }
}

impl Place {
    pub(super) fn is_live(&self, now_ms: u64) -> Result<()> {
        if self.record.state != State::Live || self.record.ends_ms.is_some_and(|end| end <= now_ms) {
            return Err(Error::new(Reason::SpaceExpired, "the time of this space is over"));
        }
        Ok(())
    }

    fn view(&self, id: PlaceId, now_ms: u64) -> PlaceView {
        let record = &self.record;
        PlaceView {
            id,
            kind: record.kind,
            owner: record.owner.clone(),
            label: record.label.clone(),
            bytes: record.bytes,
            used: self.used,
            objects: self.visible.len() + self.sealed.len(),
            left: record.ends_ms.map(|end| Duration::from_millis(end.saturating_sub(now_ms))),
            retention: Duration::from_millis(record.retention_ms),
        }
    }

    /// What to warn of: once each time that the use passes the share, and again after it was well below.
    fn warning(&mut self, id: PlaceId, percent: u64, now_ms: u64) -> Option<PlaceView> {
        let share = u128::from(self.used) * 100;
        let full = share >= u128::from(self.record.bytes) * u128::from(percent);
        let well_below = share < u128::from(self.record.bytes) * u128::from(percent.saturating_sub(5));
        let warn = full && !self.warned;
        self.warned = full || (self.warned && !well_below);
        warn.then(|| self.view(id, now_ms))
    }
}

pub(super) fn owns(record: &PlaceRecord, caller: &Caller) -> bool {
    !is_nobody(caller) && borrower(&record.owner) == borrower(caller)
        // A person's name and a machine's id are never taken for each other.
        && record.owner.person.is_empty() == caller.person.is_empty()
}

pub(super) fn object_name(id: PlaceId, number: u64) -> String {
    format!("o-{id}-{number:016x}")
}

pub(super) fn part_name(id: PlaceId, number: u64) -> String {
    format!("p-{id}-{number:016x}")
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn unknown() -> Error {
    Error::new(Reason::SpaceUnknown, "there is no such lent space of yours")
}

fn locked() -> Error {
    Error::new(Reason::StoreCorrupt, "the record of this lent space is damaged")
        .why_is("its record on the lender's disk was changed by something else; its bytes are kept, and locked")
        .fix_is("ask the owner of the disk to look at it")
}

pub(super) fn leaving() -> Error {
    Error::new(Reason::DeviceAway, "the machine takes nothing new, because it is about to leave")
        .fix_is("borrow from another machine; what is there can still be read")
}
