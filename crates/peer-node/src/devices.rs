//! Printers, optical drives and disks: this machine's for the others, and the others' for its person.
//!
//! ```text
//!   other nodes ── DeviceService ──▶ grpc ──▶ lease  print  drive  disk ──▶ crates/device
//!   this person ── local socket  ──▶ grpc ─┬─▶    (here)                   (does it)
//!                                          └─▶ remote: the owner's node, under this machine's identity
//!   book     what is shared here, on disk      own      sharing and unsharing, lists, the audit
//!   access   who may do what                   uses     leases that this machine holds
//!   address  which device an address means     kept     blocks of others' discs
//!   mirror   others' second copies here        copies   this machine's second copies elsewhere, looked after by keeper
//! ```
//!
//! The node that a device hangs on decides and checks (`docs/adr/0011-devices.md`): every call about a device comes here
//! with the caller's device id from the connection, is checked against the device's grants, and refusals and grants go
//! to the audit. A device that the caller may not see is answered like one that is not there.
//!
//! # In the store
//!
//! `d/s/` what is shared (`book`), `d/t/` fencing tokens, `d/a/` the audit; beside it, below `STATE/devices/`, spooled
//! print jobs. Lent space lies in the folder that its owner names.
//!
//! # Bounds
//!
//! 64 devices of a node; 64 streams of reading and of writing at a time, of one other machine half of them, beyond which
//! OVERLOADED; those of `crates/device` for each kind.

mod access;
mod address;
mod book;
mod copies;
mod disc;
mod disk;
mod door;
mod drive;
mod far_place;
mod grpc;
mod ipp;
mod keeper;
mod kept;
mod lease;
mod leave;
mod media;
mod mirror;
mod onward;
mod own;
mod print;
mod pull;
mod remote;
mod trust;
mod uses;

pub use address::{Target, local};
pub use grpc::{DeviceGrpc, Side, by_connection};
pub use own::OwnGrpc;

use self::book::{Book, Entry};
use self::drive::{LeasedTray, OpenDrive, drive_words};
use self::ipp::Doors;
use self::kept::{Holders, KeptBlocks};
use self::remote::{Client, Remote};
use self::uses::Uses;
use crate::catalogue::{Catalogue, Peers, Roster};
use crate::settings::DeviceSettings;
use common::clock::SharedClock;
use common::error::{Error, Reason, Result};
use common::model::{DeviceId, Right};
use common::shutdown::Shutdown;
use common::store::Store;
use device::audit::{Audit, Line};
use device::disk::Lender;
use device::lease::{Leases, Rules, StoreTokens, SystemMonotonic};
use device::model::{Caller, Kind};
use device::optical::files::Disc;
use device::optical::{Drives, FileGenerations};
use device::printer::{Options, Printers};
use futures_util::StreamExt;
use parking_lot::Mutex;
use proto::peer::v1 as wire;
use proto::peer::v1::share_device_request::Kind as Share;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Streams of reading and writing at a time.
const STREAMS: usize = 64;
/// Of them for one other machine: nobody can keep all of them.
const STREAMS_OF_ONE: usize = 32;
/// Changes are gathered for so long.
const GATHER: Duration = Duration::from_millis(50);
/// Where fencing tokens are.
const SPACE_TOKENS: &[u8] = b"d/t/";
/// Where the audit is.
const SPACE_AUDIT: &[u8] = b"d/a/";

/// What this module works with.
pub struct DeviceParts {
    /// Keeps what is shared, tokens and the audit.
    pub store: Store,
    /// Who belongs.
    pub roster: Arc<dyn Roster>,
    /// Ways to other nodes.
    pub peers: Arc<dyn Peers>,
    /// The time of day.
    pub clock: SharedClock,
    /// Ends its tasks.
    pub shutdown: Shutdown,
    /// Keeps spooled jobs, disc generations and blocks of others' discs.
    pub directory: PathBuf,
    /// Where printers listen, and how much is kept.
    pub settings: DeviceSettings,
    /// What this machine shares: for second copies.
    pub catalogue: Catalogue,
}

/// See the module. Clones are handles to the same.
#[derive(Clone)]
pub struct Devices(Arc<Inner>);

/// A place among the streams; free again when it is dropped.
struct Permit {
    devices: Devices,
    caller: DeviceId,
    _place: OwnedSemaphorePermit,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut all = self.devices.0.streams_of.lock();
        if let Some(count) = all.get_mut(&self.caller) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                all.remove(&self.caller);
            }
        }
    }
}

struct Inner {
    directory: PathBuf,
    catalogue: Catalogue,
    roster: Arc<dyn Roster>,
    shutdown: Shutdown,
    book: Book,
    remote: Remote,
    leases: Leases,
    audit: Audit,
    uses: Uses,
    printers: Printers,
    drives: Drives,
    /// Drives that could be opened, by local name.
    opened: Mutex<HashMap<String, OpenDrive>>,
    /// The files of the discs that are in them, by drive, with the generation.
    discs: Mutex<HashMap<String, (u64, Arc<Disc>)>>,
    /// Who has read which disc: noted once.
    noted: Mutex<HashSet<(DeviceId, String, u64)>>,
    kept: KeptBlocks,
    holders: Holders,
    lenders: Mutex<HashMap<String, Lender>>,
    ipp: Doors,
    /// What is wrong with a device of this machine, by local name.
    problems: Mutex<HashMap<String, wire::NodeProblem>>,
    /// What the central server says against printers of this machine, by name.
    refused: Mutex<HashMap<String, String>>,
    /// One change of what is shared at a time.
    managing: tokio::sync::Mutex<()>,
    streams: Arc<Semaphore>,
    /// Streams of each other machine.
    streams_of: Mutex<HashMap<DeviceId, usize>>,
    /// Shares that are being copied to a mirror place, and by whom.
    mirroring: Mutex<HashMap<String, copies::Copier>>,
    /// What is wrong with the copy of a share, as it was looked at last.
    mirror_problems: Mutex<HashMap<String, wire::NodeProblem>>,
    /// Between two looks at copies, and between two proofs.
    mirror_look: Duration,
    mirror_proof: Duration,
    /// Copies that were taken home; open once one was.
    home: Mutex<Option<Lender>>,
    fetched: Mutex<leave::Fetched>,
    changes: watch::Sender<u64>,
}

/// The kind on the wire.
fn wire_kind(kind: Kind) -> wire::DeviceKind {
    match kind {
        Kind::Printer => wire::DeviceKind::Printer,
        Kind::Drive => wire::DeviceKind::Drive,
        Kind::Disk => wire::DeviceKind::Disk,
    }
}

/// The kind of a number on the wire.
fn kind_of(number: i32) -> Option<Kind> {
    match wire::DeviceKind::try_from(number).ok()? {
        wire::DeviceKind::Printer => Some(Kind::Printer),
        wire::DeviceKind::Drive => Some(Kind::Drive),
        wire::DeviceKind::Disk => Some(Kind::Disk),
        wire::DeviceKind::Unspecified => None,
    }
}

/// The address of a device at a node of this name.
fn address_at(node: &str, entry: &Entry) -> String {
    format!("{node}/{}", entry.local_name())
}

impl Devices {
    /// Opens what is shared, and begins to serve it. What cannot be opened is shown as away, with the reason.
    ///
    /// # Errors
    /// Those of the store; STORE_BUSY, IO_FAILED for the directory.
    pub async fn open(parts: DeviceParts) -> Result<Self> {
        let DeviceParts { store, roster, peers, clock, shutdown, directory, settings, catalogue } = parts;
        let (directory_, store_, clock_, keep) = (directory.clone(), store.clone(), clock.clone(), settings.disc_cache);
        let opened = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&directory_)?;
            let audit = Audit::open(store_.clone(), SPACE_AUDIT, clock_, device::audit::Settings::default())?;
            let generations = FileGenerations::open(directory_.join("generations"))?;
            let kept = KeptBlocks::open(&directory_.join("blocks"), keep.bytes())?;
            Ok((Book::open(store_)?, audit, generations, kept))
        });
        let opened: Result<_> = opened.await.map_err(|e| Error::internal("opening devices").caused_by(e))?;
        let (book, audit, generations, kept) = opened?;
        let tokens = Arc::new(StoreTokens::new(store, SPACE_TOKENS));
        let leases = Leases::new(tokens, Arc::new(SystemMonotonic), Rules::default(), Some(audit.clone()));
        let options = Options { clock, ..Options::new(directory.join("printers")) };
        let printers = Printers::open(options).await?;
        let guard = Arc::new(LeasedTray(leases.clone()));
        let (mirror_look, mirror_proof) = (settings.mirror_look.0, settings.mirror_proof.0);
        let devices = Self(Arc::new(Inner {
            directory,
            catalogue,
            remote: Remote::new(roster.clone(), peers),
            roster,
            shutdown: shutdown.clone(),
            book,
            uses: Uses::default(),
            drives: Drives::new(Arc::new(generations), guard, device::optical::Limits::default()),
            printers,
            opened: Mutex::default(),
            discs: Mutex::default(),
            noted: Mutex::default(),
            kept,
            holders: Holders::default(),
            lenders: Mutex::default(),
            ipp: Doors::new(settings),
            problems: Mutex::default(),
            refused: Mutex::default(),
            managing: tokio::sync::Mutex::new(()),
            streams: Arc::new(Semaphore::new(STREAMS)),
            streams_of: Mutex::default(),
            mirroring: Mutex::default(),
            mirror_problems: Mutex::default(),
            mirror_look,
            mirror_proof,
            home: Mutex::default(),
            fetched: Mutex::default(),
            changes: watch::Sender::new(0),
            leases: leases.clone(),
            audit: audit.clone(),
        }));
        shutdown.spawn(audit.run(shutdown.token()));
        shutdown.spawn(leases.run(shutdown.token()));
        for entry in devices.0.book.all() {
            if let Err(error) = devices.open_device(&entry, Some(&entry)).await {
                tracing::warn!(device = entry.local_name(), %error, "a shared device could not be opened");
                let problem = remote::own_problem(&entry.local_name(), &error);
                devices.0.problems.lock().insert(entry.local_name(), problem);
            }
        }
        devices.open_doors().await;
        shutdown.spawn_until(devices.clone().tell());
        shutdown.spawn_until(devices.clone().tick_disks());
        shutdown.spawn_until(devices.clone().keep_mirrors());
        Ok(devices)
    }

    /// Tells of what the devices themselves do.
    async fn tell(self) {
        let (mut drives, mut printers) = (self.0.drives.changes(), self.0.printers.watch());
        loop {
            tokio::select! {
                changed = drives.changed() => {
                    if changed.is_err() { return }
                    self.changed();
                    self.look_at_discs().await;
                }
                changed = printers.changed() => if changed.is_err() { return },
            }
            self.changed();
        }
    }

    /// Ends what goes on: printing goes on at the next start, readers get errors.
    pub async fn close(&self) {
        self.close_doors().await;
        self.0.printers.close().await;
        self.0.drives.shutdown().await;
    }

    /// Opens a device of this machine, in the place of what it was before.
    async fn open_device(&self, entry: &Entry, before: Option<&Entry>) -> Result<()> {
        let name = entry.local_name();
        match &entry.share.kind {
            Some(Share::Printer(share)) => self.open_printer(entry, share, before).await?,
            Some(Share::Drive(share)) => {
                let same = before.is_some_and(|b| b.share.kind == entry.share.kind);
                if !same || !self.0.opened.lock().contains_key(&name) {
                    self.open_drive(entry, share).await?;
                }
            }
            Some(Share::Disk(share)) => self.open_disk(entry, share, before).await?,
            None => return Err(Error::new(Reason::ResourceInvalid, "it is no device")),
        }
        self.0.problems.lock().remove(&name);
        Ok(())
    }

    /// Closes a device of this machine.
    async fn close_device(&self, entry: &Entry, force: bool, now: bool) -> Result<()> {
        let name = entry.local_name();
        match entry.kind {
            Kind::Printer => self.close_printer(&entry.name, force).await?,
            Kind::Drive => {
                let held = self.0.leases.overview(&name).map(|o| o.held).unwrap_or_default();
                if let (Some(held), false) = (held.first(), force) {
                    let who = lease::who_text(&held.holder);
                    return Err(Error::new(Reason::ResourceBusy, format!("{name} is in use by {who}")));
                }
                self.0.leases.close(&name);
                self.close_drive(&name);
            }
            Kind::Disk => self.close_disk(&name, force, now).await?,
        }
        self.0.problems.lock().remove(&name);
        Ok(())
    }

    /// A device of this machine as this caller may see it.
    fn describe(&self, entry: &Entry, caller: &DeviceId, right: Right) -> wire::Device {
        self.describe_at(&self.node_name(), entry, caller, right)
    }

    /// The same of many devices: the node's name is looked up once.
    fn describe_at(&self, node: &str, entry: &Entry, caller: &DeviceId, right: Right) -> wire::Device {
        let name = entry.local_name();
        let overview = self.0.leases.overview(&name).unwrap_or_default();
        let mut device = wire::Device {
            address: address_at(node, entry),
            kind: wire_kind(entry.kind) as i32,
            name: entry.name.clone(),
            description: entry.share.description.clone(),
            owner_device_id: self.me().to_string(),
            person: self.person_of(&self.me()),
            right: right as i32,
            holder: self.holder(&name),
            waiting_count: u32::try_from(overview.queue.len()).unwrap_or(u32::MAX),
            simulated: book::is_simulated(&entry.share),
            online: true,
            leases: if right >= Right::Manage { self.leases_of(&name) } else { Vec::new() },
            ..wire::Device::default()
        };
        let detail = match entry.kind {
            Kind::Printer => self
                .printer_words(entry, caller)
                .map(|(state, why, detail)| (state, why, wire::device::Detail::Printer(detail))),
            Kind::Drive => self.own_drive(&name).map(|drive| {
                let (state, mut detail) = drive_words(&drive.state());
                detail.format = self.disc_format(&name, detail.generation);
                (state.to_owned(), String::new(), wire::device::Detail::Drive(detail))
            }),
            Kind::Disk => self
                .disk_words(&name)
                .map(|(state, detail)| (state.to_owned(), String::new(), wire::device::Detail::Disk(detail))),
        };
        match detail {
            Ok((state, why, detail)) => {
                (device.state, device.state_reason, device.detail) = (state, why, Some(detail));
            }
            Err(error) => {
                device.state = "away".to_owned();
                let problem = self.0.problems.lock().get(&name).map(|p| p.message.clone());
                device.state_reason = problem.unwrap_or_else(|| error.message().to_owned());
            }
        }
        device
    }

    fn problems_of(&self, entry: &Entry) -> Vec<wire::NodeProblem> {
        let noted = self.0.problems.lock().get(&entry.local_name()).cloned();
        noted.into_iter().chain(self.untrusted(entry)).chain(self.refused_by_server(entry)).collect()
    }

    /// This device.
    fn me(&self) -> DeviceId {
        self.0.roster.me()
    }

    fn check_member(&self, device: &DeviceId) -> Result<()> {
        access::caller(&*self.0.roster, device).map(drop)
    }

    /// Tells everybody who watches that something may have changed.
    fn changed(&self) {
        self.0.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// A device of this machine that the caller may use like this, and who the caller is. Refusals are noted.
    fn allowed(&self, caller: &DeviceId, name: &str, right: Right, verb: &'static str) -> Result<(Arc<Entry>, Caller)> {
        let who = access::caller(&*self.0.roster, caller)?;
        let checked = self.checked(caller, name, right);
        if let Err(error) = &checked {
            self.0.audit.note(Line::refused(&who, name, verb, error));
        }
        Ok((checked?, who))
    }

    fn checked(&self, caller: &DeviceId, name: &str, right: Right) -> Result<Arc<Entry>> {
        if !self.0.roster.is_member(caller) {
            return Err(access::stranger());
        }
        let (kind, plain) = address::local(name)?;
        let entry = self.0.book.get(kind, &plain).ok_or_else(|| access::unknown(name))?;
        access::require(access::right_of(&*self.0.roster, caller, &entry), right, name)?;
        Ok(entry)
    }

    /// The name at this node as it is written here, for one who may see the device; anybody else gets his own words back.
    fn written(&self, caller: &DeviceId, kind: Kind, name: &str) -> String {
        let seen = |e: &Arc<Entry>| access::right_of(&*self.0.roster, caller, e).is_some();
        match self.0.book.get(kind, name).filter(seen) {
            Some(entry) => entry.local_name(),
            None => format!("{}/{name}", kind.segment()),
        }
    }

    /// A place among the streams that run.
    ///
    /// # Errors
    /// OVERLOADED.
    fn permit(&self, caller: &DeviceId) -> Result<Permit> {
        let overloaded = || {
            Error::new(Reason::Overloaded, "too many are reading or writing at the moment")
                .retry_after(Duration::from_secs(1))
        };
        let place = self.0.streams.clone().try_acquire_owned().map_err(|_| overloaded())?;
        let mut all = self.0.streams_of.lock();
        let mine = all.entry(*caller).or_default();
        if *mine >= STREAMS_OF_ONE && *caller != self.me() {
            return Err(overloaded());
        }
        *mine += 1;
        drop(all);
        Ok(Permit { devices: self.clone(), caller: *caller, _place: place })
    }

    /// Finds what an address means.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, ADDRESS_AMBIGUOUS, PATH_INVALID.
    pub async fn find(&self, address: &str) -> Result<Target> {
        let claims = self.0.remote.claims();
        if let Some(mut target) = address::full(&claims, self.me(), address)? {
            if target.node == self.me()
                && let Some(entry) = self.0.book.get(target.kind, &target.name)
            {
                // As it is written here: leases and opened devices go by that.
                target.name.clone_from(&entry.name);
            }
            return Ok(target);
        }
        if address.contains('/') {
            return Err(access::unknown(address));
        }
        let own = self.0.book.all();
        let node = self.node_name();
        let own: Vec<(String, Target)> = own.iter().map(|e| (address_at(&node, e), self.target_of(e))).collect();
        let known = self.0.remote.remembered();
        let all = || own.iter().chain(&known).map(|(a, t)| (a.as_str(), t.clone()));
        match address::short(all(), address) {
            Err(error) if error.is(Reason::ResourceUnknown) => {
                // Perhaps nobody has asked the others yet.
                self.0.remote.all(|_| true).await;
                let known = self.0.remote.remembered();
                address::short(own.iter().chain(&known).map(|(a, t)| (a.as_str(), t.clone())), address)
            }
            found => found,
        }
    }

    /// A client of another node.
    async fn client(&self, node: DeviceId) -> Result<Client> {
        self.0.remote.client(node).await
    }

    fn target_of(&self, entry: &Entry) -> Target {
        Target { node: self.me(), kind: entry.kind, name: entry.name.clone(), below: Vec::new() }
    }

    /// The address of this node. All names in the office are looked at for it.
    fn node_name(&self) -> String {
        let me = self.me();
        let claim = self.0.remote.claims().into_iter().find(|c| c.what.device == me);
        claim.map(|c| c.shown()).unwrap_or_default()
    }

    fn address_of(&self, entry: &Entry) -> String {
        address_at(&self.node_name(), entry)
    }

    /// The devices of this machine as this caller may see them.
    fn list_for(&self, caller: &DeviceId) -> wire::ListDevicesResponse {
        let node = self.node_name();
        let seen = |entry: Arc<Entry>| {
            let right = access::right_of(&*self.0.roster, caller, &entry)?;
            Some(self.describe_at(&node, &entry, caller, right))
        };
        wire::ListDevicesResponse { devices: self.0.book.all().into_iter().filter_map(seen).collect() }
    }

    /// The same, and again after each change that the caller could notice.
    fn watch_for(&self, caller: DeviceId) -> Result<grpc::Asked<wire::ListDevicesResponse>> {
        let (devices, changes) = (self.clone(), self.0.changes.subscribe());
        let state = Some((devices, changes, None::<wire::ListDevicesResponse>));
        let answers = futures_util::stream::unfold(state, move |state| async move {
            let (devices, mut changes, last) = state?;
            loop {
                // Rights change with the office: who lost one, or was cut off, hears of it at once.
                let office = devices.0.roster.changed();
                if let Err(error) = devices.check_member(&caller) {
                    return Some((Err(error), None));
                }
                let now = devices.list_for(&caller);
                if last.as_ref() != Some(&now) {
                    return Some((Ok(now.clone()), Some((devices, changes, Some(now)))));
                }
                tokio::select! {
                    changed = changes.changed() => changed.ok()?,
                    () = office => {}
                }
                tokio::time::sleep(GATHER).await;
                changes.mark_unchanged();
            }
        });
        Ok(answers.boxed())
    }

    fn person_of(&self, device: &DeviceId) -> String {
        access::caller(&*self.0.roster, device).map(|c| c.person).unwrap_or_default()
    }
}
