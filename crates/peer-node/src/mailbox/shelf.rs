//! Parcels on disk and in memory: what was sent, what came in, what is kept for others.

use super::parcel::{Parcel, Receipt};
use super::plan::{Delivery, Outgoing, Seal};
use super::rules::{Rules, Verdict};
use super::{MailboxSettings, spool, unknown};
use crate::model::{ParcelId, TransferId};
use crate::source::{Holdings, Place};
use common::clock::SharedClock;
use common::error::{Error, Reason, Result};
use common::identity::write_secret as write_whole;
use common::model::{ChunkId, DeviceId};
use parking_lot::Mutex;
use prost::Message;
use proto::peer::v1 as peer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// Most parcels in each place.
const MAX_PARCELS: usize = 10_000;
/// What ended stays in the lists for so long: 90 days.
const REMEMBERED_MS: u64 = 90 * 86_400_000;

/// A parcel that was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    /// Which.
    pub id: ParcelId,
    /// What it is called.
    pub title: String,
    /// Its content.
    pub total_bytes: u64,
    /// When it was sent.
    pub create_ms: u64,
    /// One for each receiver.
    pub deliveries: Vec<Delivery>,
    /// Others that keep it for receivers that are away.
    pub keepers: Vec<DeviceId>,
}

/// State of a parcel that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArrivedState {
    /// Waits for a word of the person.
    Asks,
    /// Coming.
    Running,
    /// In the inbox.
    Done,
    /// Not wanted.
    Refused,
}

/// A parcel that came in.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrived {
    /// Which.
    pub id: ParcelId,
    /// Who sent it.
    pub sender: DeviceId,
    /// What it is called; a sealed one tells only when it is open.
    pub title: String,
    /// A word.
    pub note: String,
    /// Files.
    pub file_count: u64,
    /// Their bytes.
    pub total_bytes: u64,
    /// Bytes that are here.
    pub done_bytes: u64,
    /// See the enum.
    pub state: ArrivedState,
    /// When it was sent.
    pub create_ms: u64,
    /// Where it is.
    pub paths: Vec<PathBuf>,
}

/// `state` of a parcel that came in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Incoming {
    pub state: ArrivedState,
    /// Where it shall go instead of the inbox.
    pub directory: Option<PathBuf>,
    /// The transfer that brings it.
    pub transfer: Option<String>,
    /// Names under which its top-level entries are in the inbox.
    pub placed: Vec<(String, PathBuf)>,
    /// What to tell the sender; hexadecimal.
    pub receipt: Option<String>,
    /// The sender knows.
    pub receipt_known: bool,
    /// Who has offered it: other sources.
    #[serde(with = "devices_text")]
    pub offered_by: Vec<DeviceId>,
    /// When it came or ended, by our clock.
    pub change_ms: u64,
    #[serde(skip)]
    pub done_bytes: u64,
}

/// `state` of a parcel kept for others.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Keeping {
    /// All of it is here.
    pub complete: bool,
    /// The transfer that brings it.
    pub transfer: Option<String>,
    /// Receipts of receivers, hexadecimal, until the sender has them.
    pub receipts: Vec<String>,
    /// Receivers that need it no longer.
    #[serde(with = "devices_text")]
    pub done: Vec<DeviceId>,
}

pub(super) struct Out {
    pub parcel: Arc<Parcel>,
    pub signed: peer::SignedParcel,
    pub plan: Outgoing,
    pub sealed: Option<(Arc<Parcel>, peer::SignedParcel)>,
    pub content_bytes: u64,
    news: watch::Sender<Sent>,
}

pub(super) struct In {
    pub parcel: Arc<Parcel>,
    pub incoming: Incoming,
}

pub(super) struct Kept {
    pub parcel: Arc<Parcel>,
    pub signed: peer::SignedParcel,
    pub keeping: Keeping,
}

/// Everything, in memory; what is to survive is on disk first.
#[derive(Default)]
pub(super) struct Books {
    pub out: BTreeMap<ParcelId, Out>,
    pub inn: BTreeMap<ParcelId, In>,
    pub kept: BTreeMap<ParcelId, Kept>,
    /// Chunk places of parcels that are being fetched from here.
    places: HashMap<ParcelId, Arc<HashMap<ChunkId, Place>>>,
}

pub(super) struct Shelf {
    pub settings: MailboxSettings,
    pub clock: SharedClock,
    pub books: Mutex<Books>,
    rules: Mutex<Rules>,
}

/// The sealed form of a parcel is a parcel of its own with this id; the other way round it gives the plain one.
pub(super) fn twin(id: &ParcelId) -> ParcelId {
    let mut bytes = *id.as_bytes();
    bytes[15] ^= 0xa5;
    ParcelId(uuid::Uuid::from_bytes(bytes))
}

impl Shelf {
    pub fn open(settings: MailboxSettings, clock: SharedClock) -> Result<Self> {
        for place in ["out", "in", "keep"] {
            fs::create_dir_all(settings.directory.join(place))?;
        }
        let rules = match fs::read(settings.directory.join("rules")) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| damaged("rules", e))?,
            Err(_) => Rules { directory: settings.inbox.clone(), ..settings.rules.clone() },
        };
        let shelf = Self { settings, clock, books: Mutex::default(), rules: Mutex::new(rules) };
        shelf.load()?;
        Ok(shelf)
    }

    fn load(&self) -> Result<()> {
        let mut books = self.books.lock();
        for (id, directory) in self.parcels("out")? {
            let (parcel, signed) = read_parcel(&directory.join("parcel"))?;
            let mut plan: Outgoing = read_state(&directory)?;
            plan.after_restart();
            let sealed = match plan.seal {
                Seal::Ready => Some(read_parcel(&directory.join("sealed-parcel"))?),
                _ => None,
            };
            let content_bytes = fs::metadata(directory.join("content")).map_or(0, |m| m.len());
            let (news, _) = watch::channel(sent_of(&parcel, &plan));
            books.out.insert(id, Out { parcel, signed, plan, sealed, content_bytes, news });
        }
        for (id, directory) in self.parcels("in")? {
            let (parcel, _) = read_parcel(&directory.join("parcel"))?;
            books.inn.insert(id, In { parcel, incoming: read_state(&directory)? });
        }
        for (id, directory) in self.parcels("keep")? {
            let (parcel, signed) = read_parcel(&directory.join("parcel"))?;
            books.kept.insert(id, Kept { parcel, signed, keeping: read_state(&directory)? });
        }
        Ok(())
    }

    /// Directories with a state; those without were never acknowledged and go.
    fn parcels(&self, place: &str) -> Result<Vec<(ParcelId, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.settings.directory.join(place))? {
            let path = entry?.path();
            let id = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
            match id {
                Some(id) if path.join("state").exists() => found.push((id, path)),
                _ if path.is_dir() => fs::remove_dir_all(&path)?,
                _ => fs::remove_file(&path)?,
            }
        }
        Ok(found)
    }

    pub fn directory(&self, place: &str, id: &ParcelId) -> PathBuf {
        self.settings.directory.join(place).join(id.to_string())
    }

    pub fn rules(&self) -> Rules {
        self.rules.lock().clone()
    }

    pub fn set_rules(&self, mut rules: Rules) -> Result<Rules> {
        if rules.directory.as_os_str().is_empty() {
            rules.directory = self.settings.inbox.clone();
        }
        let names = rules.accept.len() + rules.refuse.len();
        if !rules.directory.is_absolute() || names > super::rules::MAX_NAMES {
            return Err(Error::new(
                Reason::FieldInvalid,
                "the inbox must be an absolute path, the names at most 1,000",
            ));
        }
        let bytes = serde_json::to_vec_pretty(&rules).map_err(|e| Error::internal("rules").caused_by(e))?;
        write_whole(&self.settings.directory.join("rules"), &bytes)?;
        *self.rules.lock() = rules.clone();
        Ok(rules)
    }

    /// Room for another parcel in the outbox, in bytes.
    pub fn outbox_room(&self) -> Result<u64> {
        let books = self.books.lock();
        let open = books.out.values().filter(|o| !o.plan.finished);
        let (count, bytes) = open.fold((0, 0), |(n, b), o| (n + 1, b + o.content_bytes));
        match self.settings.outbox_bytes.checked_sub(bytes) {
            Some(room) if count < MAX_PARCELS => Ok(room),
            _ => Err(Error::new(Reason::OutboxFull, "there is no room in the outbox")),
        }
    }

    /// A new parcel whose content is in `out/<id>/content`. On disk when this returns.
    pub fn add_out(&self, parcel: Parcel, signed: peer::SignedParcel) -> Result<()> {
        let directory = self.directory("out", &parcel.id);
        let plan = Outgoing::new(parcel.create_ms, parcel.expire_ms(), &parcel.receivers);
        write_parcel(&directory.join("parcel"), &signed)?;
        write_state(&directory, &plan)?;
        sync(&self.settings.directory.join("out"))?;
        let content_bytes = fs::metadata(directory.join("content"))?.len();
        let (id, parcel) = (parcel.id, Arc::new(parcel));
        let (news, _) = watch::channel(sent_of(&parcel, &plan));
        self.books.lock().out.insert(id, Out { parcel, signed, plan, sealed: None, content_bytes, news });
        Ok(())
    }

    /// Writes a changed plan and tells those who watch. If it has finished, the content goes.
    pub fn save_out(&self, id: &ParcelId) -> Result<()> {
        let (plan, finished) = {
            let books = self.books.lock();
            let out = books.out.get(id).ok_or_else(unknown)?;
            let _ = out.news.send_replace(sent_of(&out.parcel, &out.plan));
            (out.plan.clone(), out.plan.finished)
        };
        let directory = self.directory("out", id);
        write_state(&directory, &plan)?;
        if finished {
            self.books.lock().places.retain(|held, _| held != id && *held != twin(id));
            for name in ["content", "sealed"] {
                remove_if_there(&directory.join(name))?;
            }
        }
        Ok(())
    }

    /// The sealed form is in `out/<id>/sealed`.
    pub fn add_sealed(&self, id: &ParcelId, parcel: Parcel, signed: peer::SignedParcel) -> Result<()> {
        write_parcel(&self.directory("out", id).join("sealed-parcel"), &signed)?;
        let mut books = self.books.lock();
        let out = books.out.get_mut(id).ok_or_else(unknown)?;
        out.sealed = Some((Arc::new(parcel), signed));
        Ok(())
    }

    pub fn sent(&self) -> Vec<Sent> {
        self.books.lock().out.values().rev().map(|o| sent_of(&o.parcel, &o.plan)).collect()
    }

    pub fn watch_sent(&self, id: &ParcelId) -> Option<watch::Receiver<Sent>> {
        self.books.lock().out.get(id).map(|o| o.news.subscribe())
    }

    pub fn cancel(&self, id: &ParcelId) -> Result<Sent> {
        let now = self.clock.now_ms();
        let sent = {
            let mut books = self.books.lock();
            let out = books.out.get_mut(id).ok_or_else(unknown)?;
            out.plan.step(super::plan::Event::Cancel, now, &Default::default());
            sent_of(&out.parcel, &out.plan)
        };
        self.save_out(id)?;
        Ok(sent)
    }

    /// A parcel that is offered to this node. `Ok(false)`: it was here already, and who offers it now is noted.
    pub fn add_in(&self, parcel: &Parcel, signed: &peer::SignedParcel, by: DeviceId, verdict: Verdict) -> Result<bool> {
        let id = plain_id(parcel);
        let state = match verdict {
            Verdict::Accept => ArrivedState::Running,
            Verdict::Ask => ArrivedState::Asks,
            Verdict::Refuse => ArrivedState::Refused,
        };
        let incoming = Incoming {
            state,
            directory: None,
            transfer: None,
            placed: Vec::new(),
            receipt: None,
            receipt_known: false,
            offered_by: vec![by],
            change_ms: self.clock.now_ms(),
            done_bytes: 0,
        };
        {
            let mut books = self.books.lock();
            if let Some(known) = books.inn.get_mut(&id) {
                let sources = &mut known.incoming.offered_by;
                if !sources.contains(&by) && sources.len() < 64 {
                    sources.push(by);
                }
                return Ok(false);
            }
            if books.inn.len() >= MAX_PARCELS {
                return Err(Error::new(Reason::InboxFull, "10,000 parcels are in the inbox's list"));
            }
        }
        let directory = self.directory("in", &id);
        fs::create_dir_all(&directory)?;
        write_parcel(&directory.join("parcel"), signed)?;
        write_state(&directory, &incoming)?;
        sync(&self.settings.directory.join("in"))?;
        self.books.lock().inn.entry(id).or_insert(In { parcel: Arc::new(parcel.clone()), incoming });
        Ok(true)
    }

    /// A sealed parcel was opened: from now on it is the plain one.
    pub fn unsealed(&self, id: &ParcelId, parcel: Parcel, signed: &peer::SignedParcel) -> Result<Arc<Parcel>> {
        write_parcel(&self.directory("in", id).join("parcel"), signed)?;
        let parcel = Arc::new(parcel);
        self.books.lock().inn.get_mut(id).ok_or_else(unknown)?.parcel = parcel.clone();
        Ok(parcel)
    }

    /// Changes the state of a parcel that came in; on disk when this returns.
    pub fn change_in(&self, id: &ParcelId, change: impl FnOnce(&mut Incoming)) -> Result<()> {
        let incoming = {
            let mut books = self.books.lock();
            let found = books.inn.get_mut(id).ok_or_else(unknown)?;
            let before = found.incoming.state;
            change(&mut found.incoming);
            if found.incoming.state != before {
                found.incoming.change_ms = self.clock.now_ms();
            }
            let incoming = found.incoming.clone();
            books.places.remove(id);
            incoming
        };
        write_state(&self.directory("in", id), &incoming)
    }

    pub fn arrived(&self) -> Vec<Arrived> {
        let books = self.books.lock();
        books.inn.iter().rev().map(|(id, found)| arrived_of(id, found)).collect()
    }

    pub fn answer(&self, id: &ParcelId, accept: bool, directory: Option<PathBuf>) -> Result<Arrived> {
        if directory.as_ref().is_some_and(|d| !d.is_absolute()) {
            return Err(Error::new(Reason::FieldInvalid, "the directory is not an absolute path"));
        }
        let state = self.books.lock().inn.get(id).ok_or_else(unknown)?.incoming.state;
        if state != ArrivedState::Asks {
            return Err(Error::new(Reason::ParcelAnswered, "this parcel does not ask (any more)"));
        }
        self.change_in(id, |incoming| {
            incoming.state = if accept { ArrivedState::Running } else { ArrivedState::Refused };
            incoming.directory = directory;
        })?;
        let books = self.books.lock();
        books.inn.get(id).map(|found| arrived_of(id, found)).ok_or_else(unknown)
    }

    /// A parcel to keep for others. `Ok(false)`: it is here already.
    pub fn add_kept(&self, parcel: &Parcel, signed: &peer::SignedParcel) -> Result<bool> {
        {
            let books = self.books.lock();
            if books.kept.contains_key(&parcel.id) {
                return Ok(false);
            }
            let bytes: u64 = books.kept.values().map(|k| k.parcel.total_bytes).sum();
            let full = bytes.saturating_add(parcel.total_bytes) > self.settings.keeper_bytes;
            if full || books.kept.len() >= MAX_PARCELS {
                return Err(Error::new(Reason::KeeperFull, "this node keeps as much for others as it may"));
            }
        }
        let directory = self.directory("keep", &parcel.id);
        fs::create_dir_all(&directory)?;
        write_parcel(&directory.join("parcel"), signed)?;
        let keeping = Keeping::default();
        write_state(&directory, &keeping)?;
        let kept = Kept { parcel: Arc::new(parcel.clone()), signed: signed.clone(), keeping };
        self.books.lock().kept.entry(parcel.id).or_insert(kept);
        Ok(true)
    }

    pub fn change_kept(&self, id: &ParcelId, change: impl FnOnce(&mut Keeping)) -> Result<()> {
        let keeping = {
            let mut books = self.books.lock();
            let kept = books.kept.get_mut(id).ok_or_else(unknown)?;
            change(&mut kept.keeping);
            kept.keeping.clone()
        };
        write_state(&self.directory("keep", id), &keeping)
    }

    pub fn remove_kept(&self, id: &ParcelId) -> Result<()> {
        let mut books = self.books.lock();
        books.kept.remove(id);
        books.places.remove(id);
        drop(books);
        remove_directory(&self.directory("keep", id))
    }

    /// Forgets what ended long ago.
    pub fn forget_old(&self) -> Result<()> {
        let now = self.clock.now_ms();
        let old = |ms: u64| ms.saturating_add(REMEMBERED_MS) < now;
        let (out, inn, kept): (Vec<_>, Vec<_>, Vec<_>) = {
            let books = self.books.lock();
            let ended = |i: &In| matches!(i.incoming.state, ArrivedState::Done | ArrivedState::Refused);
            (
                books.out.iter().filter(|(_, o)| o.plan.finished && old(o.plan.create_ms)).map(|(id, _)| *id).collect(),
                books.inn.iter().filter(|(_, i)| ended(i) && old(i.incoming.change_ms)).map(|(id, _)| *id).collect(),
                books.kept.iter().filter(|(_, k)| k.parcel.expire_ms() < now).map(|(id, _)| *id).collect(),
            )
        };
        for id in &out {
            self.books.lock().out.remove(id);
            remove_directory(&self.directory("out", id))?;
        }
        for id in &inn {
            self.books.lock().inn.remove(id);
            remove_directory(&self.directory("in", id))?;
        }
        kept.iter().try_for_each(|id| self.remove_kept(id))
    }

    /// May the device have chunks of the parcel? `None` if no such parcel is here.
    pub fn may_have(&self, id: &ParcelId, asker: &DeviceId) -> Option<bool> {
        let books = self.books.lock();
        if let Some(out) = books.out.get(id) {
            let wants = |d: &&Delivery| d.device == *asker && !matches!(d.state, super::DeliveryState::Cancelled);
            return Some(out.plan.deliveries.iter().any(|d| wants(&d)));
        }
        if let Some(out) = books.out.get(&twin(id)) {
            let receives = out.parcel.receiver(asker).is_some();
            return Some(
                out.sealed.is_some() && (receives || out.plan.keepers.contains(asker) || out.plan.may_keep(asker)),
            );
        }
        if let Some(found) = books.inn.get(id) {
            return Some(found.parcel.sealed.is_none() && found.parcel.receiver(asker).is_some());
        }
        books.kept.get(id).map(|kept| kept.parcel.receiver(asker).is_some())
    }

    pub fn locate(&self, id: &ParcelId, chunk: &ChunkId) -> Result<Option<Place>> {
        Ok(self.places(id)?.and_then(|places| places.get(chunk).cloned()))
    }

    pub fn holdings(&self, id: &ParcelId) -> Result<Holdings> {
        let complete = {
            let books = self.books.lock();
            books.out.contains_key(id)
                || books.out.contains_key(&twin(id))
                || books.kept.get(id).is_some_and(|k| k.keeping.complete)
        };
        if complete {
            return Ok(Holdings { complete, have: Vec::new() });
        }
        let have = self.places(id)?.map(|p| p.keys().copied().collect()).unwrap_or_default();
        Ok(Holdings { complete, have })
    }

    pub fn moved(&self, id: &ParcelId, chunk: &ChunkId) {
        let mut books = self.books.lock();
        if let Some(places) = books.places.get(id) {
            let mut fewer = HashMap::clone(places);
            fewer.remove(chunk);
            books.places.insert(*id, Arc::new(fewer));
        }
    }

    /// Where the chunks of a parcel are; made when first asked for, for at most 8 parcels at a time.
    fn places(&self, id: &ParcelId) -> Result<Option<Arc<HashMap<ChunkId, Place>>>> {
        let mut books = self.books.lock();
        if let Some(places) = books.places.get(id) {
            return Ok(Some(places.clone()));
        }
        let places = if let Some(out) = books.out.get(id).filter(|o| !o.plan.finished) {
            in_one_file(&out.parcel.distinct_chunks(), &self.directory("out", id).join("content"))
        } else if let Some(sealed) = books.out.get(&twin(id)).and_then(|o| o.sealed.as_ref()) {
            in_one_file(&sealed.0.sealed_chunks(), &self.directory("out", &twin(id)).join("sealed"))
        } else if let Some(found) = books.inn.get(id).filter(|i| i.incoming.state == ArrivedState::Done) {
            in_the_inbox(&found.parcel, &found.incoming.placed)
        } else if let Some(kept) = books.kept.get(id).filter(|k| k.keeping.complete) {
            in_one_file(&kept.parcel.sealed_chunks(), &self.directory("keep", id).join("sealed"))
        } else {
            return Ok(None);
        };
        if books.places.len() >= 8 {
            books.places.clear();
        }
        let places = Arc::new(places);
        books.places.insert(*id, places.clone());
        Ok(Some(places))
    }

    /// Takes in a receipt that somebody brings. True if it was new.
    pub fn receipt_for_out(&self, receipt: &Receipt) -> Result<bool> {
        let event = super::plan::Event::Receipt {
            device: receipt.receiver,
            delivered: receipt.delivered,
            at_ms: receipt.create_ms,
            message: receipt.message.clone(),
        };
        {
            let mut books = self.books.lock();
            let Some(out) = books.out.get_mut(&receipt.parcel) else { return Ok(false) };
            let Some(delivery) = out.plan.deliveries.iter().find(|d| d.device == receipt.receiver) else {
                return Ok(false);
            };
            if matches!(delivery.state, super::DeliveryState::Delivered | super::DeliveryState::Refused) {
                return Ok(false);
            }
            out.plan.receipt(event, self.clock.now_ms());
        }
        self.save_out(&receipt.parcel)?;
        Ok(true)
    }
}

/// The id under which a parcel is known to people, whatever form it has.
pub(super) fn plain_id(parcel: &Parcel) -> ParcelId {
    if parcel.sealed.is_some() { twin(&parcel.id) } else { parcel.id }
}

fn in_one_file(chunks: &[common::model::ChunkRef], path: &Path) -> HashMap<ChunkId, Place> {
    let place = |(offset, len)| Place::File { path: path.to_owned(), offset, len, stamp: None };
    spool::offsets(chunks).into_iter().map(|(id, at)| (id, place(at))).collect()
}

fn in_the_inbox(parcel: &Parcel, placed: &[(String, PathBuf)]) -> HashMap<ChunkId, Place> {
    let names: HashMap<&str, &PathBuf> = placed.iter().map(|(name, path)| (name.as_str(), path)).collect();
    let mut places = HashMap::new();
    for file in &parcel.files {
        let (top, rest) = file.path.split_once('/').unwrap_or((&file.path, ""));
        let (Some(top), Some(content)) = (names.get(top), &file.content) else { continue };
        let path = if rest.is_empty() { (*top).clone() } else { top.join(rest) };
        let mut offset = 0;
        for chunk in content.chunks.iter() {
            places.entry(chunk.id).or_insert_with(|| Place::File {
                path: path.clone(),
                offset,
                len: chunk.len,
                stamp: None,
            });
            offset += u64::from(chunk.len);
        }
    }
    places
}

fn sent_of(parcel: &Parcel, plan: &Outgoing) -> Sent {
    Sent {
        id: parcel.id,
        title: parcel.title.clone(),
        total_bytes: parcel.total_bytes,
        create_ms: parcel.create_ms,
        deliveries: plan.deliveries.clone(),
        keepers: plan.keepers.clone(),
    }
}

fn arrived_of(id: &ParcelId, found: &In) -> Arrived {
    let (parcel, incoming) = (&found.parcel, &found.incoming);
    let done = incoming.state == ArrivedState::Done;
    Arrived {
        id: *id,
        sender: parcel.sender,
        title: if parcel.sealed.is_some() { "(sealed)".into() } else { parcel.title.clone() },
        note: parcel.note.clone(),
        file_count: parcel.files.iter().filter(|f| f.content.is_some()).count() as u64,
        total_bytes: parcel.total_bytes,
        done_bytes: if done { parcel.total_bytes } else { incoming.done_bytes },
        state: incoming.state,
        create_ms: parcel.create_ms,
        paths: incoming.placed.iter().map(|(_, path)| path.clone()).collect(),
    }
}

impl Incoming {
    pub fn transfer_id(&self) -> Option<TransferId> {
        self.transfer.as_ref().and_then(|t| t.parse().ok())
    }
}

fn damaged(what: &str, error: impl std::fmt::Display) -> Error {
    Error::new(Reason::ParcelInvalid, format!("{what} of the mailbox cannot be read"))
        .why_is(error.to_string())
        .fix_is("remove the file that is named in the log, or restore it from a backup")
}

fn read_parcel(path: &Path) -> Result<(Arc<Parcel>, peer::SignedParcel)> {
    let bytes = fs::read(path)?;
    let signed = peer::SignedParcel::decode(&bytes[..]).map_err(|e| damaged(&path.display().to_string(), e))?;
    Ok((Arc::new(Parcel::verify(&signed)?), signed))
}

fn write_parcel(path: &Path, signed: &peer::SignedParcel) -> Result<()> {
    write_whole(path, &signed.encode_to_vec())
}

fn read_state<T: DeserializeOwned>(directory: &Path) -> Result<T> {
    let path = directory.join("state");
    serde_json::from_slice(&fs::read(&path)?).map_err(|e| damaged(&path.display().to_string(), e))
}

fn write_state(directory: &Path, state: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(state).map_err(|e| Error::internal("a state").caused_by(e))?;
    write_whole(&directory.join("state"), &bytes)
}

fn sync(directory: &Path) -> Result<()> {
    Ok(File::open(directory)?.sync_all()?)
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn remove_directory(path: &Path) -> Result<()> {
    // Without its state it is no parcel any more, whatever is left when the power fails here.
    remove_if_there(&path.join("state"))?;
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// A device id as text in JSON.
pub(super) mod device_text {
    use common::model::DeviceId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(id: &DeviceId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<DeviceId, D::Error> {
        String::deserialize(from)?.parse().map_err(|()| D::Error::custom("not a device id"))
    }
}

/// Several of them.
pub(super) mod devices_text {
    use common::model::DeviceId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(ids: &[DeviceId], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(ids.iter().map(ToString::to_string))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<DeviceId>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|t| t.parse().map_err(|()| D::Error::custom("not a device id"))).collect()
    }
}
