//! Carries out what the plans say: offers, fetches, seals, keeps, brings receipts.
//!
//! One task looks whenever a node comes or goes, somebody wakes it, or five seconds have passed. What takes time runs in
//! tasks of its own: one for each offer (at most 32), one for each parcel that is fetched (at most 4 at a time), one that
//! seals.

use super::parcel::{Parcel, Receipt, Sealed};
use super::plan::{Action, Answer, Around, Event};
use super::rules::Verdict;
use super::seal::{ParcelKey, SealingKey};
use super::shelf::{ArrivedState, Shelf, plain_id, twin};
use super::spool::{self, Contents};
use super::{MAX_RECEIVERS, Prepared, blocking, place, unknown};
use crate::model::{OfficeId, ParcelId, Scope, TransferId};
use crate::transfer::{Order, OrderDirectory, OrderFile, PeerEvent, Peers, Progress, State};
use common::error::{Error, Reason, Result};
use common::identity::DeviceKey;
use common::model::{ChunkRef, DeviceId};
use common::status::from_status;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message;
use proto::peer::v1 as peer;
use proto::peer::v1::mailbox_service_client::MailboxServiceClient;
use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};

/// Time between looks without a cause.
const LOOK: Duration = Duration::from_secs(5);
/// For each call.
const CALL: Duration = Duration::from_secs(30);
/// Parcels fetched at a time.
const FETCHES: usize = 4;
/// Offers at a time.
const OFFERS: usize = 32;
/// A fetch that failed is tried again after this.
const AGAIN: Duration = Duration::from_secs(60);
/// Largest message of this service.
pub(super) const MAX_MESSAGE: usize = super::MAX_PARCEL_BYTES + 64 * 1024;
/// The signed parcel inside of a sealed one is no longer than this.
const MAX_INNER: u64 = super::MAX_PARCEL_BYTES as u64 + 1024;

/// What the mailbox needs to know of the office.
pub trait Members: Send + Sync + 'static {
    /// The office.
    fn office(&self) -> OfficeId;
    /// Is it a member, and not cut off?
    fn is_member(&self, device: &DeviceId) -> bool;
    /// The key to which parcels for it are sealed, if it has one.
    fn sealing_key(&self, device: &DeviceId) -> Option<[u8; 32]>;
    /// The person a device belongs to; empty if it is not a member.
    fn person(&self, device: &DeviceId) -> String;
    /// Members that keep parcels for others.
    fn keepers(&self) -> Vec<DeviceId>;
}

/// What the mailbox needs of transfers.
pub trait Fetcher: Send + Sync + 'static {
    /// Begins to fetch.
    ///
    /// # Errors
    /// As the order is wrong or cannot be kept.
    fn start(&self, order: Order) -> BoxFuture<'static, Result<TransferId>>;
    /// Progress of a transfer; `None` if it is not known (any more).
    fn watch(&self, id: &TransferId) -> Option<watch::Receiver<Progress>>;
}

pub(super) struct Courier {
    pub shelf: Arc<Shelf>,
    pub members: Arc<dyn Members>,
    key: Arc<DeviceKey>,
    peers: Arc<dyn Peers>,
    fetcher: Arc<dyn Fetcher>,
    wake: Notify,
    fetches: Arc<Semaphore>,
    offers: Arc<Semaphore>,
    /// Parcels with a task of their own.
    busy: Mutex<HashSet<ParcelId>>,
}

/// Takes a parcel out of the busy ones when its task ends, however it ends.
struct Busy(Arc<Courier>, ParcelId);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.lock().remove(&self.1);
    }
}

impl Courier {
    pub fn new(
        shelf: Arc<Shelf>,
        key: Arc<DeviceKey>,
        members: Arc<dyn Members>,
        peers: Arc<dyn Peers>,
        fetcher: Arc<dyn Fetcher>,
    ) -> Self {
        Self {
            shelf,
            members,
            key,
            peers,
            fetcher,
            wake: Notify::new(),
            fetches: Arc::new(Semaphore::new(FETCHES)),
            offers: Arc::new(Semaphore::new(OFFERS)),
            busy: Mutex::default(),
        }
    }

    /// Look now.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    pub fn me(&self) -> DeviceId {
        self.key.device_id()
    }

    /// Runs until dropped.
    pub async fn run(self: Arc<Self>) {
        let mut events = self.peers.events();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for device in self.peers.neighbours() {
            self.came(device);
        }
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(PeerEvent::Up(device)) => self.came(device),
                    Ok(PeerEvent::Down(_)) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                },
                () = self.wake.notified() => {}
                _ = looks.tick() => {
                    let shelf = self.shelf.clone();
                    report(blocking(move || shelf.forget_old()).await, "old parcels");
                }
            }
            self.look(None);
        }
    }

    /// A node is there: it may have parcels for us, wait for receipts, or be a receiver.
    fn came(self: &Arc<Self>, device: DeviceId) {
        let courier = self.clone();
        tokio::spawn(async move {
            report(courier.ask_for_parcels(device).await, "asking for parcels");
            report(courier.bring_receipts(device).await, "bringing receipts");
        });
        self.look(Some(device));
    }

    fn around(&self) -> Around {
        let online: BTreeSet<DeviceId> = self.peers.neighbours().into_iter().collect();
        let keeps = self.members.keepers().into_iter().filter(|k| online.contains(k) && *k != self.me());
        Around { keepers: keeps.collect(), online }
    }

    fn look(self: &Arc<Self>, up: Option<DeviceId>) {
        let ids: Vec<ParcelId> = {
            let books = self.shelf.books.lock();
            books.out.iter().filter(|(_, o)| !o.plan.finished).map(|(id, _)| *id).collect()
        };
        for id in ids {
            self.step(id, up.map_or(Event::Look, Event::Up));
        }
        self.fetch_what_waits();
    }

    /// One step of a parcel's plan, and what it asks for.
    fn step(self: &Arc<Self>, id: ParcelId, event: Event) {
        let around = self.around();
        let (actions, changed) = {
            let mut books = self.shelf.books.lock();
            let Some(out) = books.out.get_mut(&id) else { return };
            let before = out.plan.clone();
            let actions = out.plan.step(event, self.shelf.clock.now_ms(), &around);
            (actions, out.plan != before)
        };
        let courier = self.clone();
        if changed {
            // Offers repeat themselves after a crash; nothing that matters waits for this write.
            tokio::task::spawn_blocking(move || report(courier.shelf.save_out(&id), "a parcel's state"));
        }
        for action in actions {
            let courier = self.clone();
            match action {
                Action::Offer(device) => drop(tokio::spawn(async move {
                    let (answer, message) = courier.offer(id, device).await;
                    courier.step(id, Event::Answered(device, answer, message));
                })),
                Action::OfferKeep(device) => drop(tokio::spawn(async move {
                    let answer = courier.offer_keep(id, device).await;
                    courier.step(id, Event::Kept(device, answer));
                })),
                Action::Seal => drop(tokio::spawn(async move {
                    let sealing = courier.clone();
                    match blocking(move || sealing.seal(&id)).await {
                        Ok(()) => courier.step(id, Event::SealReady),
                        Err(error) => tracing::warn!(parcel = %id, ?error, "a parcel was not sealed for keepers"),
                    }
                })),
                Action::Finish => tracing::info!(parcel = %id, "all deliveries of a parcel have ended"),
            }
        }
    }

    // Sending.

    pub async fn send(
        self: &Arc<Self>,
        contents: Contents,
        mut to: Vec<DeviceId>,
        note: String,
        progress: watch::Sender<Prepared>,
    ) -> Result<ParcelId> {
        let me = self.me();
        let mut seen = HashSet::new();
        to.retain(|d| *d != me && seen.insert(*d));
        if to.is_empty() || to.len() > MAX_RECEIVERS {
            return Err(Error::new(
                Reason::FieldInvalid,
                "a parcel needs 1 to 1,000 receivers other than this machine",
            ));
        }
        if matches!(&contents, Contents::Paths(paths) if paths.is_empty()) {
            return Err(Error::new(Reason::FieldInvalid, "nothing is to be sent"));
        }
        let courier = self.clone();
        blocking(move || courier.write(contents, to, note, &progress)).await
    }

    fn write(
        &self,
        contents: Contents,
        to: Vec<DeviceId>,
        note: String,
        progress: &watch::Sender<Prepared>,
    ) -> Result<ParcelId> {
        let room = self.shelf.outbox_room()?;
        let id = ParcelId::generate();
        let directory = self.shelf.directory("out", &id);
        fs::create_dir_all(&directory)?;
        let written = spool::write(contents, &directory.join("content"), room, progress).and_then(|spooled| {
            progress.send_modify(|p| p.total_bytes = spooled.total_bytes);
            let parcel = Parcel {
                id,
                sender: self.me(),
                sender_key: self.key.public_key(),
                office: self.members.office(),
                receivers: to,
                note,
                title: spooled.title,
                create_ms: self.shelf.clock.now_ms(),
                lifetime_seconds: self.shelf.settings.keep.as_secs(),
                files: spooled.files,
                total_bytes: spooled.total_bytes,
                sealed: None,
            };
            let signed = parcel.sign(&self.key)?;
            // What nobody could take must not be sent.
            let parcel = Parcel::verify(&signed).map_err(|e| match e.is(Reason::ParcelInvalid) {
                true => Error::new(Reason::FieldInvalid, "this cannot be sent").why_is(e.why().to_owned()).caused_by(e),
                false => e,
            })?;
            self.shelf.add_out(parcel, signed)
        });
        if let Err(error) = written {
            let _ = fs::remove_dir_all(&directory);
            return Err(error);
        }
        Ok(id)
    }

    async fn client(&self, device: DeviceId) -> Result<MailboxServiceClient<Wire>> {
        let link = tokio::time::timeout(CALL, self.peers.link(device)).await.map_err(|_| no_answer())??;
        Ok(MailboxServiceClient::new(Wire(link.control))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE))
    }

    async fn call_offer(&self, device: DeviceId, parcel: peer::SignedParcel, keep: bool) -> (Answer, String) {
        let call = async {
            let _slot = self.offers.acquire().await.map_err(|_| no_answer())?;
            let mut client = self.client(device).await?;
            let mut request = tonic::Request::new(peer::OfferRequest { parcel: Some(parcel), keep });
            request.set_timeout(CALL);
            let answer = tokio::time::timeout(CALL, client.offer(request)).await.map_err(|_| no_answer())?;
            answer.map(tonic::Response::into_inner).map_err(|s| from_status(&s))
        };
        match call.await {
            Ok(answer) => {
                let message: String = answer.message.chars().filter(|c| !c.is_control()).take(512).collect();
                (read_answer(answer.answer()), message)
            }
            Err(error) => {
                tracing::debug!(?device, ?error, "an offer came to nothing");
                (Answer::Later, error.message().to_owned())
            }
        }
    }

    async fn offer(&self, id: ParcelId, device: DeviceId) -> (Answer, String) {
        let signed = self.shelf.books.lock().out.get(&id).map(|o| o.signed.clone());
        match signed {
            Some(_) if !self.members.is_member(&device) => {
                (Answer::Refused, "the receiver is no member of the office any longer".into())
            }
            Some(signed) => self.call_offer(device, signed, false).await,
            None => (Answer::Later, String::new()),
        }
    }

    async fn offer_keep(&self, id: ParcelId, device: DeviceId) -> Answer {
        let sealed = self.shelf.books.lock().out.get(&id).and_then(|o| o.sealed.as_ref().map(|s| s.1.clone()));
        match sealed {
            Some(signed) => self.call_offer(device, signed, true).await.0,
            None => Answer::Later,
        }
    }

    /// Writes the sealed form. Blocking.
    fn seal(&self, id: &ParcelId) -> Result<()> {
        let (parcel, signed) = {
            let books = self.shelf.books.lock();
            let out = books.out.get(id).ok_or_else(unknown)?;
            (out.parcel.clone(), out.signed.clone())
        };
        let key = ParcelKey::generate()?;
        let sealed_id = twin(id);
        // A member without a sealing key can only get it from the sender.
        let seal_for = |d: &DeviceId| match self.members.sealing_key(d) {
            Some(public) => key.seal_for(&sealed_id, &public),
            None => Ok(Vec::new()),
        };
        let keys = parcel.receivers.iter().map(seal_for).collect::<Result<Vec<_>>>()?;
        let directory = self.shelf.directory("out", id);
        let inner = signed.encode_to_vec();
        let head = (inner.len() as u64).to_le_bytes();
        let plain = head.chain(&inner[..]).chain(File::open(directory.join("content"))?);
        let mut to = BufWriter::with_capacity(1 << 20, File::create(directory.join("sealed"))?);
        let content = key.seal(plain, &mut to)?;
        to.flush()?;
        to.get_ref().sync_all()?;
        let total_bytes = content.size_bytes;
        let parcel = Parcel {
            id: sealed_id,
            note: String::new(),
            title: String::new(),
            files: Vec::new(),
            total_bytes,
            sealed: Some(Sealed { keys, content }),
            ..Parcel::clone(&parcel)
        };
        let signed = parcel.sign(&self.key)?;
        self.shelf.add_sealed(id, parcel, signed)
    }

    // Receiving.

    /// What to do with a parcel that somebody brings.
    pub async fn offered(
        self: &Arc<Self>,
        by: DeviceId,
        signed: peer::SignedParcel,
        keep: bool,
    ) -> Result<(Answer, String)> {
        let checked = signed.clone();
        let parcel = blocking(move || Parcel::verify(&checked)).await?;
        if parcel.office != self.members.office() || !self.members.is_member(&parcel.sender) {
            return Err(Error::new(Reason::ParcelInvalid, "the parcel's sender is no member of this office"));
        }
        if self.shelf.clock.now_ms() >= parcel.expire_ms() {
            return Ok((Answer::Refused, "the parcel is too old".into()));
        }
        if keep {
            return self.offered_to_keep(by, parcel, signed).await;
        }
        if parcel.receiver(&self.me()).is_none() {
            return Err(Error::new(Reason::ParcelInvalid, "the parcel is not for this machine"));
        }
        let (me, person) = (self.members.person(&self.me()), self.members.person(&parcel.sender));
        let verdict = self.shelf.rules().judge(&me, &person, parcel.total_bytes);
        let (id, shelf) = (plain_id(&parcel), self.shelf.clone());
        let new = blocking(move || shelf.add_in(&parcel, &signed, by, verdict)).await;
        match new {
            Ok(true) if verdict == Verdict::Refuse => self.write_receipt(id, false).await?,
            Ok(_) => {}
            Err(error) if error.is(Reason::InboxFull) => return Ok((Answer::Later, error.message().to_owned())),
            Err(error) => return Err(error),
        }
        self.wake();
        let state = self.shelf.books.lock().inn.get(&id).map(|i| i.incoming.state);
        Ok(match state {
            Some(ArrivedState::Running) => (Answer::Accepted, String::new()),
            Some(ArrivedState::Asks) => (Answer::Asks, "waits for a word of the receiver".into()),
            Some(ArrivedState::Refused) => (Answer::Refused, "refused by the receiver".into()),
            Some(ArrivedState::Done) => {
                // Whoever offers it has not heard: tell again.
                let courier = self.clone();
                tokio::spawn(async move {
                    let shelf = courier.shelf.clone();
                    let told = blocking(move || shelf.change_in(&id, |i| i.receipt_known = false)).await;
                    report(told, "a receipt");
                    report(courier.bring_receipts(by).await, "bringing receipts");
                });
                (Answer::Complete, String::new())
            }
            None => (Answer::Later, String::new()),
        })
    }

    async fn offered_to_keep(
        self: &Arc<Self>,
        by: DeviceId,
        parcel: Parcel,
        signed: peer::SignedParcel,
    ) -> Result<(Answer, String)> {
        if !self.shelf.settings.keeper {
            return Ok((Answer::Refused, "this node keeps nothing for others".into()));
        }
        if parcel.sealed.is_none() || by != parcel.sender {
            return Err(Error::new(Reason::ParcelInvalid, "only sealed parcels are kept, and only for their senders"));
        }
        let shelf = self.shelf.clone();
        let added = blocking(move || shelf.add_kept(&parcel, &signed)).await;
        self.wake();
        match added {
            Ok(true) => Ok((Answer::Accepted, String::new())),
            Ok(false) => Ok((Answer::Complete, String::new())),
            Err(error) if error.is(Reason::KeeperFull) => Ok((Answer::Later, error.message().to_owned())),
            Err(error) => Err(error),
        }
    }

    async fn ask_for_parcels(self: &Arc<Self>, device: DeviceId) -> Result<()> {
        // More than one page only if there are very many; what was taken is not named again.
        let mut known = HashSet::new();
        for _ in 0..10 {
            let mut request = tonic::Request::new(peer::ListParcelsRequest {});
            request.set_timeout(CALL);
            let call = self.client(device).await?;
            let answer = { call }.list_parcels(request).await.map_err(|s| from_status(&s))?.into_inner();
            let mut new = 0;
            for signed in answer.parcels {
                new += usize::from(known.insert(*blake3::hash(&signed.parcel).as_bytes()));
                report(self.offered(device, signed, false).await.map(drop), "a parcel that is kept for us");
            }
            if new == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Starts tasks for accepted parcels that have none, and for those to keep.
    fn fetch_what_waits(self: &Arc<Self>) {
        let (incoming, keeping): (Vec<ParcelId>, Vec<ParcelId>) = {
            let books = self.shelf.books.lock();
            let running = books.inn.iter().filter(|(_, i)| i.incoming.state == ArrivedState::Running);
            let refused =
                |i: &super::shelf::In| i.incoming.state == ArrivedState::Refused && i.incoming.receipt.is_none();
            let refused = books.inn.iter().filter(|(_, i)| refused(i));
            let keeping = books.kept.iter().filter(|(_, k)| !k.keeping.complete);
            (running.chain(refused).map(|(id, _)| *id).collect(), keeping.map(|(id, _)| *id).collect())
        };
        for id in incoming {
            self.spawn_for(id, move |courier| async move { courier.receive(id).await });
        }
        for id in keeping {
            self.spawn_for(id, move |courier| async move { courier.keep(id).await });
        }
    }

    fn spawn_for<F: Future<Output = Result<()>> + Send>(
        self: &Arc<Self>,
        id: ParcelId,
        work: impl FnOnce(Arc<Self>) -> F + Send + 'static,
    ) {
        if !self.busy.lock().insert(id) {
            return;
        }
        let busy = Busy(self.clone(), id);
        let courier = self.clone();
        tokio::spawn(async move {
            if let Err(error) = work(courier).await {
                tracing::warn!(parcel = %id, ?error, "a parcel did not arrive; tried again later");
                tokio::time::sleep(AGAIN).await;
            }
            drop(busy);
        });
    }

    /// From accepted to in the inbox, with receipt. Goes on where an earlier run stopped.
    async fn receive(self: Arc<Self>, id: ParcelId) -> Result<()> {
        let refused = {
            let books = self.shelf.books.lock();
            books.inn.get(&id).is_some_and(|i| i.incoming.state == ArrivedState::Refused)
        };
        if refused {
            return self.write_receipt(id, false).await;
        }
        let _slot = self.fetches.acquire().await.map_err(|_| no_answer())?;
        let mut parcel = self.incoming(&id)?.0;
        let directory = self.shelf.directory("in", &id);
        if parcel.sealed.is_some() {
            self.fetch_incoming(&id, sealed_order(&parcel, &directory.join("sealed"), self.sources(&id)?)).await?;
            let courier = self.clone();
            parcel = blocking(move || courier.unseal(&id)).await?;
        } else {
            let order = plain_order(&parcel, &directory.join("files"), self.sources(&id)?);
            self.fetch_incoming(&id, order).await?;
        }
        tracing::info!(parcel = %id, title = parcel.title, "a parcel has arrived");
        let courier = self.clone();
        blocking(move || courier.put_into_inbox(&id)).await?;
        self.write_receipt(id, true).await
    }

    fn incoming(&self, id: &ParcelId) -> Result<(Arc<Parcel>, super::shelf::Incoming)> {
        let books = self.shelf.books.lock();
        books.inn.get(id).map(|i| (i.parcel.clone(), i.incoming.clone())).ok_or_else(unknown)
    }

    fn sources(&self, id: &ParcelId) -> Result<Vec<DeviceId>> {
        let (parcel, incoming) = self.incoming(id)?;
        let mut sources = vec![parcel.sender];
        sources.extend(incoming.offered_by.iter().chain(&parcel.receivers).copied());
        let (me, mut seen) = (self.me(), HashSet::new());
        sources.retain(|d| *d != me && seen.insert(*d));
        sources.truncate(64);
        Ok(sources)
    }

    async fn fetch_incoming(&self, id: &ParcelId, order: Order) -> Result<()> {
        let known = self.incoming(id)?.1.transfer_id();
        let (watched, transfer) = self.watched(known, order).await?;
        if known != Some(transfer) {
            let (shelf, id) = (self.shelf.clone(), *id);
            blocking(move || shelf.change_in(&id, |i| i.transfer = Some(transfer.to_string()))).await?;
        }
        let tell = |bytes| {
            if let Some(found) = self.shelf.books.lock().inn.get_mut(id) {
                found.incoming.done_bytes = bytes;
            }
        };
        finished(watched, tell).await.inspect_err(|_| self.forget_transfer(*id))
    }

    /// The next try begins a new transfer; what is there already is found and not fetched again.
    fn forget_transfer(&self, id: ParcelId) {
        let shelf = self.shelf.clone();
        tokio::task::spawn_blocking(move || report(shelf.change_in(&id, |i| i.transfer = None), "a parcel's state"));
    }

    /// The transfer that runs for this already, or a new one.
    async fn watched(
        &self,
        known: Option<TransferId>,
        order: Order,
    ) -> Result<(watch::Receiver<Progress>, TransferId)> {
        if let Some(id) = known
            && let Some(watched) = self.fetcher.watch(&id)
        {
            return Ok((watched, id));
        }
        let id = self.fetcher.start(order).await?;
        let watched = self.fetcher.watch(&id).ok_or_else(|| Error::internal("a transfer was not found"))?;
        Ok((watched, id))
    }

    /// Opens a sealed parcel that is all here; its files are under `files/` afterwards. Blocking.
    fn unseal(&self, id: &ParcelId) -> Result<Arc<Parcel>> {
        let (outer, _) = self.incoming(id)?;
        let sealed = outer.sealed.as_ref().ok_or_else(unknown)?;
        let position = outer.receiver(&self.me()).ok_or_else(unknown)?;
        let key = SealingKey::of(&self.key)?.open(&outer.id, &sealed.keys[position])?;
        let directory = self.shelf.directory("in", id);
        let from = File::open(directory.join("sealed/sealed"))?;
        let mut plain = key.open(BufReader::with_capacity(1 << 20, from));
        let mut head = [0; 8];
        plain.read_exact(&mut head)?;
        let length = u64::from_le_bytes(head);
        if length > MAX_INNER {
            return Err(Error::new(Reason::ParcelInvalid, "what was sealed is no parcel"));
        }
        let mut inner = Vec::new();
        (&mut plain).take(length).read_to_end(&mut inner)?;
        let broken = |_| Error::new(Reason::ParcelInvalid, "what was sealed is no parcel");
        let signed = peer::SignedParcel::decode(&inner[..]).map_err(broken)?;
        let parcel = Parcel::verify(&signed)?;
        if parcel.id != *id || parcel.sender != outer.sender || parcel.receivers != outer.receivers {
            return Err(Error::new(Reason::ParcelInvalid, "a sealed parcel holds another one than it says"));
        }
        let content = directory.join("content");
        let mut to = BufWriter::with_capacity(1 << 20, File::create(&content)?);
        std::io::copy(&mut plain, &mut to)?;
        to.flush()?;
        lay_out(&parcel, to.get_ref(), &content, &directory.join("files"))?;
        let parcel = self.shelf.unsealed(id, parcel, &signed)?;
        fs::remove_file(&content)?;
        fs::remove_dir_all(directory.join("sealed"))?;
        Ok(parcel)
    }

    fn put_into_inbox(&self, id: &ParcelId) -> Result<()> {
        let (parcel, incoming) = self.incoming(id)?;
        let inbox = match &incoming.directory {
            Some(directory) => directory.clone(),
            None => self.shelf.rules().directory.join(safe_name(&self.members.person(&parcel.sender))),
        };
        let files = self.shelf.directory("in", id).join("files");
        fs::create_dir_all(&files)?;
        let placed = place::place(&files, &inbox)?;
        self.shelf.change_in(id, |i| {
            i.placed.extend(placed);
            i.state = ArrivedState::Done;
            i.transfer = None;
        })?;
        let _ = fs::remove_dir_all(files);
        Ok(())
    }

    // Keeping for others.

    async fn keep(self: Arc<Self>, id: ParcelId) -> Result<()> {
        let _slot = self.fetches.acquire().await.map_err(|_| no_answer())?;
        let (parcel, known) = {
            let books = self.shelf.books.lock();
            let kept = books.kept.get(&id).ok_or_else(unknown)?;
            (kept.parcel.clone(), kept.keeping.transfer.as_ref().and_then(|t| t.parse().ok()))
        };
        let order = sealed_order(&parcel, &self.shelf.directory("keep", &id), vec![parcel.sender]);
        let (watched, transfer) = self.watched(known, order).await?;
        let shelf = self.shelf.clone();
        blocking(move || shelf.change_kept(&id, |k| k.transfer = Some(transfer.to_string()))).await?;
        let done = finished(watched, |_| {}).await;
        let (shelf, complete) = (self.shelf.clone(), done.is_ok());
        let noted = blocking(move || {
            shelf.change_kept(&id, |k| (k.complete, k.transfer) = (complete, None))?;
            if complete { Ok(()) } else { Err(no_answer()) }
        });
        done.and(noted.await)
    }

    // Receipts.

    async fn write_receipt(self: &Arc<Self>, id: ParcelId, delivered: bool) -> Result<()> {
        let (parcel, _) = self.incoming(&id)?;
        let receipt = Receipt {
            parcel: id,
            receiver: self.me(),
            delivered,
            create_ms: self.shelf.clock.now_ms(),
            message: String::new(),
        };
        let text = to_hex(&receipt.sign(&self.key).encode_to_vec());
        let shelf = self.shelf.clone();
        blocking(move || shelf.change_in(&id, |i| i.receipt = Some(text))).await?;
        let mut to = vec![parcel.sender];
        to.extend(self.incoming(&id)?.1.offered_by);
        for device in to {
            if self.peers.neighbours().contains(&device) {
                report(self.bring_receipts(device).await, "bringing receipts");
            }
        }
        Ok(())
    }

    /// Brings a node all receipts that it waits for or can pass on.
    async fn bring_receipts(self: &Arc<Self>, device: DeviceId) -> Result<()> {
        let (texts, ours, kept): (Vec<String>, Vec<ParcelId>, Vec<ParcelId>) = {
            let books = self.shelf.books.lock();
            let concerned = |i: &super::shelf::In| i.parcel.sender == device || i.incoming.offered_by.contains(&device);
            let ours = books.inn.iter().filter(|(_, i)| !i.incoming.receipt_known && concerned(i));
            let ours: Vec<_> = ours.filter_map(|(id, i)| Some((*id, i.incoming.receipt.clone()?))).take(500).collect();
            let kept = books.kept.iter().filter(|(_, k)| k.parcel.sender == device && !k.keeping.receipts.is_empty());
            let kept: Vec<_> = kept.take(50).map(|(id, k)| (*id, k.keeping.receipts.clone())).collect();
            let texts = ours.iter().map(|(_, t)| t.clone()).chain(kept.iter().flat_map(|(_, t)| t.clone()));
            let to_sender = ours.iter().filter(|(id, _)| books.inn[id].parcel.sender == device).map(|(id, _)| *id);
            (texts.take(1_000).collect(), to_sender.collect(), kept.into_iter().map(|(id, _)| id).collect())
        };
        let receipts: Vec<peer::Receipt> =
            texts.iter().filter_map(|t| peer::Receipt::decode(&from_hex(t)?[..]).ok()).collect();
        if receipts.is_empty() {
            return Ok(());
        }
        let mut request = tonic::Request::new(peer::PushReceiptsRequest { receipts });
        request.set_timeout(CALL);
        self.client(device).await?.push_receipts(request).await.map_err(|s| from_status(&s))?;
        let shelf = self.shelf.clone();
        blocking(move || {
            ours.iter().try_for_each(|id| shelf.change_in(id, |i| i.receipt_known = true))?;
            for id in kept {
                let receivers = shelf.books.lock().kept.get(&id).map_or(0, |k| k.parcel.receivers.len());
                shelf.change_kept(&id, |k| k.receipts.clear())?;
                let done = shelf.books.lock().kept.get(&id).is_some_and(|k| k.keeping.done.len() >= receivers);
                if done {
                    shelf.remove_kept(&id)?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Takes in receipts for parcels that this node sent or keeps. Blocking.
    pub fn receipts(self: &Arc<Self>, receipts: &[peer::Receipt]) -> Result<()> {
        for signed in receipts {
            let receipt = Receipt::verify(signed)?;
            self.shelf.receipt_for_out(&receipt)?;
            let kept = twin(&receipt.parcel);
            let concerns = {
                let books = self.shelf.books.lock();
                books.kept.get(&kept).is_some_and(|k| k.parcel.receiver(&receipt.receiver).is_some())
            };
            if concerns {
                let text = to_hex(&signed.encode_to_vec());
                self.shelf.change_kept(&kept, |k| {
                    if !k.done.contains(&receipt.receiver) {
                        k.done.push(receipt.receiver);
                        k.receipts.push(text);
                    }
                })?;
            }
        }
        self.wake();
        Ok(())
    }

    /// Parcels here that a device has not got yet, as far as they fit into one answer.
    pub fn parcels_for(&self, device: &DeviceId) -> Vec<peer::SignedParcel> {
        let books = self.shelf.books.lock();
        let waits =
            |o: &&super::shelf::Out| o.plan.deliveries.iter().any(|d| d.device == *device && !d.state.is_ended());
        let own = books.out.values().filter(waits).map(|o| &o.signed);
        let keeps = |k: &&super::shelf::Kept| {
            k.keeping.complete && k.parcel.receiver(device).is_some() && !k.keeping.done.contains(device)
        };
        let kept = books.kept.values().filter(keeps).map(|k| &k.signed);
        let mut bytes = 0;
        own.chain(kept)
            .take(100)
            .take_while(|s| {
                bytes += s.encoded_len() + 8;
                bytes <= super::MAX_PARCEL_BYTES
            })
            .cloned()
            .collect()
    }
}

/// A channel whose error is a type of its own: the compiler cannot see that calls with a boxed one may change threads.
#[derive(Clone)]
struct Wire(crate::transfer::peers::Channel);

/// A call that did not come about.
#[derive(Debug, thiserror::Error)]
#[error("the other node could not be called")]
struct CallFailed(#[source] crate::transfer::peers::CallError);

impl tower::Service<http::Request<tonic::body::Body>> for Wire {
    type Response = http::Response<tonic::body::Body>;
    type Error = CallFailed;
    type Future = BoxFuture<'static, Result<Self::Response, CallFailed>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), CallFailed>> {
        self.0.poll_ready(cx).map_err(CallFailed)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let calling = self.0.call(request);
        Box::pin(async move { calling.await.map_err(CallFailed) })
    }
}

/// Waits for the end of a transfer; well only if all of it is on disk.
async fn finished(mut watched: watch::Receiver<Progress>, tell: impl Fn(u64)) -> Result<()> {
    loop {
        let (state, settled, bytes, problem) = {
            let now = watched.borrow_and_update();
            (now.state, now.settled, now.done_bytes, now.problem.clone())
        };
        tell(bytes);
        match state {
            State::Done if settled => return Ok(()),
            State::Failed => {
                let what = problem.map_or_else(String::new, |p| p.message);
                return Err(Error::new(Reason::IoFailed, format!("the parcel could not be fetched: {what}")));
            }
            State::Cancelled => return Err(Error::new(Reason::Cancelled, "the transfer of a parcel was cancelled")),
            _ => {}
        }
        if watched.changed().await.is_err() {
            return Err(Error::new(Reason::Cancelled, "transfers have ended"));
        }
    }
}

fn plain_order(parcel: &Parcel, to: &Path, sources: Vec<DeviceId>) -> Order {
    let files = parcel.files.iter().filter_map(|f| {
        let content = f.content.clone()?;
        Some(OrderFile { path: f.path.clone(), mtime_ns: f.mtime_ns, mode: f.mode, content })
    });
    let directories = parcel.files.iter().filter(|f| f.content.is_none());
    let directories = directories.map(|f| OrderDirectory { path: f.path.clone(), mode: f.mode }).collect();
    let (scope, title) = (Scope::Parcel(parcel.id), parcel.title.clone());
    Order { scope, title, destination: to.to_owned(), files: files.collect(), directories, sources, overwrite: true }
}

fn sealed_order(parcel: &Parcel, to: &Path, sources: Vec<DeviceId>) -> Order {
    let content = parcel.sealed.as_ref().map(|s| s.content.clone());
    let file = content.map(|content| OrderFile { path: "sealed".into(), mtime_ns: 0, mode: 0o600, content });
    Order {
        scope: Scope::Parcel(parcel.id),
        title: "a sealed parcel".into(),
        destination: to.to_owned(),
        files: file.into_iter().collect(),
        directories: Vec::new(),
        sources,
        overwrite: true,
    }
}

/// Writes the files of a parcel from its content file, each chunk checked, all of it synced.
fn lay_out(parcel: &Parcel, content: &File, path: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::{FileExt, PermissionsExt};
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to)?;
    let from = File::open(path)?;
    let places = spool::offsets(&parcel.distinct_chunks());
    for file in &parcel.files {
        let target = to.join(&file.path);
        let Some(wanted) = &file.content else {
            fs::create_dir_all(&target)?;
            continue;
        };
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut out = BufWriter::with_capacity(1 << 20, File::create_new(&target)?);
        for ChunkRef { id, .. } in wanted.chunks.iter() {
            let (offset, len) = places[id];
            let mut bytes = vec![0; len as usize];
            from.read_exact_at(&mut bytes, offset)?;
            if common::model::ChunkId::of(&bytes) != *id {
                return Err(Error::new(Reason::ParcelInvalid, "a sealed parcel does not hold what its list says"));
            }
            out.write_all(&bytes)?;
        }
        out.flush()?;
        let out = out.get_ref();
        out.set_permissions(fs::Permissions::from_mode(file.mode | 0o400))?;
        let mtime = u64::try_from(file.mtime_ns).unwrap_or(0);
        out.set_modified(std::time::UNIX_EPOCH + Duration::from_nanos(mtime))?;
    }
    // One sync of the file system for all files instead of one for each.
    rustix::fs::syncfs(content).map_err(std::io::Error::from)?;
    Ok(())
}

fn read_answer(answer: peer::offer_response::Answer) -> Answer {
    use peer::offer_response::Answer as Wire;
    match answer {
        Wire::Accepted => Answer::Accepted,
        Wire::Asks => Answer::Asks,
        Wire::Refused => Answer::Refused,
        Wire::Complete => Answer::Complete,
        Wire::Later | Wire::Unspecified => Answer::Later,
    }
}

/// A person's name as a folder: what cannot stand in a name gives way.
fn safe_name(person: &str) -> PathBuf {
    let name: String = person.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).take(60).collect();
    match common::model::EntryName::new(name) {
        Ok(name) => PathBuf::from(name.as_str()),
        Err(_) => PathBuf::from("unknown"),
    }
}

fn no_answer() -> Error {
    Error::new(Reason::ServerUnreachable, "the other node does not answer")
}

fn report(result: Result<()>, what: &str) {
    if let Err(error) = result {
        tracing::debug!(?error, "{what}");
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pair = |p: &[u8]| u8::from_str_radix(std::str::from_utf8(p).ok()?, 16).ok();
    if digits.len().is_multiple_of(2) { digits.chunks_exact(2).map(pair).collect() } else { None }
}
