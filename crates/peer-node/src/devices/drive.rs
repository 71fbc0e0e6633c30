//! Optical drives of this machine, for other machines and for its own person.
//!
//! A drive has its thread and its cache in `crates/device`; here are rights, leases and the way of blocks to readers. A
//! disc is read in blocks of 1 MiB: a reader that keeps blocks gets them whole with their digests, or is told which
//! members have them, so that the drive reads each block once.

use super::book::Entry;
use super::grpc::Asked;
use super::kept::{BLOCK, BlockKey};
use super::lease::lease_id;
use super::{Devices, access};
use bytes::{Bytes, BytesMut};
use common::error::{Error, Reason, Result};
use common::model::{DeviceId, Right};
use device::audit::Line;
use device::lease::{Leases, Mode, Token};
use device::nbd::BlockSource;
use device::optical::files::{Disc, NodeKind, Tree};
use device::optical::iso::{IsoControl, IsoDrive};
use device::optical::linux::LinuxDrive;
use device::optical::{Drive, DriveHandle, Medium, SECTOR_BYTES, State, TrayGuard};
use futures_util::{StreamExt, stream};
use proto::peer::v1 as wire;
use std::path::Path;
use std::sync::Arc;

/// Most bytes of a disc that one call reads.
const LENGTH_MAX: u64 = 1 << 30;
/// How long a tray takes to show that it has moved.
const SETTLE: std::time::Duration = std::time::Duration::from_secs(2);
/// Entries of a directory in one answer.
const PAGE: usize = 1_000;

/// Who may move a tray: whoever holds the exclusive lease, or anybody with the right while nobody holds the drive. The
/// right was checked before.
pub(super) struct LeasedTray(pub Leases);

impl TrayGuard for LeasedTray {
    fn check(&self, drive: &str, token: Option<u64>) -> Result<()> {
        let held = self.0.overview(drive)?.held;
        match token {
            Some(token) => {
                let by = held.iter().find(|h| h.mode == Mode::Exclusive).map(|h| h.holder.clone());
                let lost = || Error::new(Reason::LeaseLost, "the lease has ended");
                self.0.check(drive, &by.ok_or_else(lost)?, Token(token), Mode::Exclusive)
            }
            None if held.is_empty() => Ok(()),
            None => Err(busy(&held.iter().map(|h| super::lease::who_text(&h.holder)).collect::<Vec<_>>().join(", "))),
        }
    }
}

fn busy(holders: &str) -> Error {
    Error::new(Reason::ResourceBusy, format!("the drive is in use by {holders}")).with("holder", holders)
}

/// A drive of this machine and, if it is simulated, the hand at it.
pub(super) struct OpenDrive {
    pub handle: DriveHandle,
    pub control: Option<IsoControl>,
}

/// Opens what a person named.
///
/// # Errors
/// RESOURCE_INVALID, IO_FAILED.
fn open_drive(share: &wire::DriveShare) -> Result<(Box<dyn Drive>, Option<IsoControl>)> {
    use wire::drive_share::Kind;
    match &share.kind {
        Some(Kind::DeviceFile(path)) => {
            let path = Path::new(path);
            if !path.is_absolute() {
                return Err(Error::new(Reason::ResourceInvalid, "the device file is not an absolute path"));
            }
            Ok((Box::new(LinuxDrive::open(path)?), None))
        }
        Some(Kind::Image(path)) => {
            let (drive, control) = IsoDrive::new();
            if !path.is_empty() {
                if !Path::new(path).is_absolute() {
                    return Err(Error::new(Reason::ResourceInvalid, "the image is not an absolute path"));
                }
                control.insert(Path::new(path))?;
            }
            Ok((Box::new(drive), Some(control)))
        }
        None => Err(Error::new(Reason::ResourceInvalid, "neither a device file nor an image was named")),
    }
}

/// A drive's state in words, and what is in it.
pub(super) fn drive_words(state: &State) -> (&'static str, wire::DriveDetail) {
    let mut detail = wire::DriveDetail::default();
    let word = match &state.medium {
        Medium::Away => "away",
        Medium::Empty => "empty",
        Medium::TrayOpen => "open",
        Medium::Loading => "loading",
        Medium::Ready { title, size_bytes } => {
            (detail.title, detail.size_bytes, detail.generation) = (title.clone(), *size_bytes, state.generation);
            "ready"
        }
    };
    (word, detail)
}

impl Devices {
    /// Opens a drive of this machine, in the place of an older one of its name.
    pub(super) async fn open_drive(&self, entry: &Entry, share: &wire::DriveShare) -> Result<()> {
        let (share, name) = (share.clone(), entry.local_name());
        let opened = tokio::task::spawn_blocking(move || open_drive(&share)).await;
        let (drive, control) = opened.map_err(|e| Error::internal("opening a drive").caused_by(e))??;
        self.0.leases.open(&name).await?;
        self.close_drive(&name);
        let handle = self.0.drives.add(&name, drive)?;
        self.0.opened.lock().insert(name, OpenDrive { handle, control });
        Ok(())
    }

    /// Ends its thread.
    pub(super) fn close_drive(&self, name: &str) {
        if self.0.opened.lock().remove(name).is_some() {
            self.0.drives.remove(name);
            self.0.holders.forget(name);
        }
    }

    /// A drive that the caller may use like this.
    fn drive(&self, caller: &DeviceId, name: &str, right: Right, verb: &'static str) -> Result<DriveHandle> {
        self.allowed(caller, name, right, verb)?;
        self.own_drive(name)
    }

    /// A drive of this machine.
    pub(super) fn own_drive(&self, name: &str) -> Result<DriveHandle> {
        let opened = self.0.opened.lock();
        opened.get(name).map(|d| d.handle.clone()).ok_or_else(|| match name.starts_with("drives/") {
            true => Error::new(Reason::DeviceAway, format!("{name} could not be opened")),
            false => Error::new(Reason::ResourceInvalid, format!("{name} is no drive")),
        })
    }

    /// `ReadDisc`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, ACCESS_DENIED, DISC_CHANGED, RANGE_INVALID, OVERLOADED; those of reading.
    pub(super) async fn read_disc(
        &self,
        caller: &DeviceId,
        r: wire::ReadDiscRequest,
    ) -> Result<Asked<wire::ReadDiscResponse>> {
        let drive = self.drive(caller, &r.device, Right::Read, "read")?;
        let permit = self.permit(caller)?;
        let size = match drive.state() {
            State { medium: Medium::Ready { size_bytes, .. }, generation, .. } if generation == r.generation => {
                size_bytes
            }
            // The drive says what is wrong.
            _ => return drive.read(r.generation, r.offset, SECTOR_BYTES).await.map(|_| stream::empty().boxed()),
        };
        if r.length > LENGTH_MAX || r.offset.checked_add(r.length).is_none_or(|end| end > size) {
            return Err(Error::new(Reason::RangeInvalid, "the range lies outside of the disc or is over 1 GiB")
                .with("size_bytes", size));
        }
        self.note_read(caller, &r.device, r.generation)?;
        let (devices, caller) = (self.clone(), *caller);
        let end = r.offset + r.length;
        let from = if r.whole_blocks { r.offset / BLOCK * BLOCK } else { r.offset };
        let state = Some((devices, drive, from, permit));
        let answers = stream::unfold(state, move |state| {
            let r = r.clone();
            async move {
                let (devices, drive, at, permit) = state?;
                if at >= end {
                    return None;
                }
                let to = ((at / BLOCK + 1) * BLOCK).min(if r.whole_blocks { size } else { end });
                // Whoever was cut off or lost the right in the middle gets no more.
                let part = match devices.checked(&caller, &r.device, Right::Read) {
                    Ok(_) => devices.part(&caller, &drive, &r, at, to).await,
                    Err(error) => Err(error),
                };
                let next = part.is_ok().then_some((devices, drive, to, permit));
                Some((part, next))
            }
        });
        Ok(answers.boxed())
    }

    /// Once for each machine and disc, not for each read.
    fn note_read(&self, caller: &DeviceId, name: &str, generation: u64) -> Result<()> {
        let first = self.0.noted.lock().insert((*caller, name.to_owned(), generation));
        if first {
            let mut noted = self.0.noted.lock();
            if noted.len() > 10_000 {
                noted.clear();
            }
            drop(noted);
            let who = access::caller(&*self.0.roster, caller)?;
            self.0.audit.note(Line::granted(&who, name, "read").with_detail(format!("disc {generation}")));
        }
        Ok(())
    }

    async fn part(
        &self,
        caller: &DeviceId,
        drive: &DriveHandle,
        r: &wire::ReadDiscRequest,
        at: u64,
        to: u64,
    ) -> Result<wire::ReadDiscResponse> {
        let len = u32::try_from(to - at).map_err(|_| Error::internal("a part of a disc is too long"))?;
        let mut part = wire::ReadDiscResponse { offset: at, ..Default::default() };
        if !r.whole_blocks {
            (part.data, part.bad_sectors) = read_around(drive, r.generation, at, len).await?;
            return Ok(part);
        }
        let index = at / BLOCK;
        if !r.direct
            && let Some((digest, holders)) = self.0.holders.of(&r.device, r.generation, index)
        {
            let others = holders.into_iter().filter(|d| d != caller && self.is_near(d));
            part.holders = others.map(|d| d.0.to_vec().into()).collect();
            if !part.holders.is_empty() {
                part.digest = digest.to_vec().into();
                return Ok(part);
            }
        }
        match drive.block(r.generation, index).await {
            Ok(block) => {
                let digest = *block.digest().as_bytes();
                self.0.holders.note(&r.device, r.generation, index, digest, *caller);
                (part.data, part.digest) = (block.bytes().clone(), digest.to_vec().into());
            }
            Err(error) if error.is(Reason::SectorBad) => {
                (part.data, part.bad_sectors) = read_around(drive, r.generation, at, len).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(part)
    }

    fn is_near(&self, device: &DeviceId) -> bool {
        self.0.roster.is_member(device) && self.0.remote.is_connected(device)
    }

    /// `ReadKeptBlock`.
    pub(super) async fn read_kept_block(&self, r: wire::ReadKeptBlockRequest) -> Result<wire::ReadKeptBlockResponse> {
        let digest = |bytes: &Bytes| <[u8; 32]>::try_from(&bytes[..]).ok();
        let wrong = || Error::new(Reason::FieldInvalid, "the owner and the digest have 32 bytes");
        let (owner, digest) = (digest(&r.owner).ok_or_else(wrong)?, digest(&r.digest).ok_or_else(wrong)?);
        let key = BlockKey { owner: DeviceId(owner), device: r.device, generation: r.generation, block: r.block };
        let kept = self.0.kept.clone();
        let data = tokio::task::spawn_blocking(move || kept.get(&key, &digest)).await.ok().flatten();
        Ok(wire::ReadKeptBlockResponse { data: data.unwrap_or_default() })
    }

    /// The files of the disc of a generation; 0: of the one that is in.
    async fn disc(&self, drive: &DriveHandle, generation: u64) -> Result<(Arc<Disc>, u64)> {
        let source = drive.source()?;
        let now = source.generation();
        if generation != 0 && generation != now {
            return Err(
                Error::new(Reason::DiscChanged, "the disc is not the one that you opened").with("generation", now)
            );
        }
        let known = self.0.discs.lock().get(drive.name()).filter(|(g, _)| *g == now).map(|(_, d)| d.clone());
        if let Some(disc) = known {
            return Ok((disc, now));
        }
        let disc = Arc::new(Disc::open(Arc::new(source)).await?);
        let mut discs = self.0.discs.lock();
        if discs.len() > super::book::DEVICES_MAX {
            discs.clear();
        }
        discs.insert(drive.name().to_owned(), (now, disc.clone()));
        Ok((disc, now))
    }

    /// `ListDisc`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, ACCESS_DENIED, NO_MEDIUM, TRAY_OPEN, DISC_CHANGED, DISC_FORMAT_UNKNOWN, ENTRY_UNKNOWN.
    pub(super) async fn list_disc(
        &self,
        caller: &DeviceId,
        r: wire::ListDiscRequest,
    ) -> Result<wire::ListDiscResponse> {
        let drive = self.drive(caller, &r.device, Right::Read, "read")?;
        let _permit = self.permit(caller)?;
        let (disc, generation) = self.disc(&drive, r.generation).await?;
        let mut entries = disc.list(r.path.trim_matches('/')).await?.nodes;
        // Links are not followed, so they are nothing that could be read.
        entries.retain(|e| matches!(e.kind, NodeKind::File | NodeKind::Directory));
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let after = r.page_token.as_str();
        let mut rest = entries.into_iter().filter(|e| after.is_empty() || e.name.as_str() > after);
        let page: Vec<_> = rest.by_ref().take(PAGE).collect();
        let more = rest.next().is_some();
        let below = r.path.trim_matches('/');
        let path = |name: &str| if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        Ok(wire::ListDiscResponse {
            next_page_token: if more { page.last().map(|e| e.name.clone()).unwrap_or_default() } else { String::new() },
            entries: page
                .into_iter()
                .map(|e| wire::DiscEntry {
                    path: path(&e.name),
                    directory: e.kind == NodeKind::Directory,
                    size_bytes: e.size_bytes,
                    modify_time: e.modified_ms.map(|ms| prost_types::Timestamp {
                        seconds: ms.div_euclid(1_000),
                        nanos: (ms.rem_euclid(1_000) * 1_000_000) as i32,
                    }),
                })
                .collect(),
            generation,
        })
    }

    /// `ReadDiscFile`.
    ///
    /// # Errors
    /// As [`Devices::list_disc`]; IS_A_DIRECTORY, RANGE_INVALID.
    pub(super) async fn read_disc_file(
        &self,
        caller: &DeviceId,
        r: wire::ReadDiscFileRequest,
    ) -> Result<Asked<wire::ReadDiscFileResponse>> {
        let drive = self.drive(caller, &r.device, Right::Read, "read")?;
        let permit = self.permit(caller)?;
        let (disc, generation) = self.disc(&drive, r.generation).await?;
        let file = disc.open_file(r.path.trim_matches('/')).await?;
        self.note_read(caller, &r.device, generation)?;
        let size = file.size_bytes();
        let end = if r.length == 0 { size } else { r.offset.saturating_add(r.length).min(size) };
        if r.offset > size {
            return Err(Error::new(Reason::RangeInvalid, "the range lies outside of the file").with("size_bytes", size));
        }
        let first = wire::ReadDiscFileResponse { size_bytes: size, generation, ..Default::default() };
        let (devices, caller, name) = (self.clone(), *caller, r.device);
        let state = Some((devices, file, r.offset, permit));
        let rest = stream::unfold(state, move |state| {
            let name = name.clone();
            async move {
                let (devices, file, at, permit) = state?;
                if at >= end {
                    return None;
                }
                let len = BLOCK.min(end - at);
                let read = match devices.checked(&caller, &name, Right::Read) {
                    Ok(_) => file.read(at, len as u32).await,
                    Err(error) => Err(error),
                };
                let next = read.is_ok().then_some((devices, file, at + len, permit));
                Some((read.map(|data| wire::ReadDiscFileResponse { data, ..Default::default() }), next))
            }
        });
        Ok(stream::iter([Ok(first)]).chain(rest).boxed())
    }

    /// `ControlDrive`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, ACCESS_DENIED, RESOURCE_BUSY, LEASE_LOST, RESOURCE_INVALID; those of the drive.
    pub(super) async fn control_drive(&self, caller: &DeviceId, r: wire::ControlDriveRequest) -> Result<wire::Device> {
        let verb = match r.verb() {
            wire::DriveVerb::Eject => "eject",
            wire::DriveVerb::Close => "close",
            wire::DriveVerb::Insert => "insert",
            wire::DriveVerb::Unspecified => {
                return Err(Error::new(Reason::FieldInvalid, "it is not said what to do").with("field", "verb"));
            }
        };
        let (entry, who) = self.allowed(caller, &r.device, Right::Write, verb)?;
        let before = self.own_drive(&r.device).ok().map(|d| d.state());
        let done = self.move_tray(caller, &who, &r).await;
        match &done {
            Ok(()) => self.0.audit.note(Line::granted(&who, &r.device, verb)),
            Err(error) => self.0.audit.note(Line::refused(&who, &r.device, verb, error)),
        }
        done?;
        self.settle(&r.device, before).await;
        self.changed();
        let right = access::right_of(&*self.0.roster, caller, &entry).unwrap_or(Right::See);
        Ok(self.describe(&entry, caller, right))
    }

    /// Waits until the drive says something else than before, or for as long as a tray takes.
    async fn settle(&self, name: &str, before: Option<State>) {
        let Ok(drive) = self.own_drive(name) else { return };
        let mut states = drive.watch();
        let moved = states.wait_for(|now| Some(now) != before.as_ref() && now.medium != Medium::Loading);
        let _ = tokio::time::timeout(SETTLE, moved).await;
    }

    /// What kind of file system the disc has, once somebody has looked at its files.
    pub(super) fn disc_format(&self, name: &str, generation: u64) -> String {
        let discs = self.0.discs.lock();
        let known = discs.get(name).filter(|(g, _)| *g == generation && generation > 0);
        let trees = known.map(|(_, disc)| disc.trees()).unwrap_or_default();
        let udf = trees.contains(&Tree::Udf);
        let iso = trees.iter().any(|t| *t != Tree::Udf);
        match (iso, udf) {
            (true, true) => "iso9660+udf",
            (true, false) => "iso9660",
            (false, true) => "udf",
            (false, false) => "",
        }
        .to_owned()
    }

    /// Looks at the files of discs that have come, so that what they are is known before anybody asks.
    pub(super) async fn look_at_discs(&self) {
        let ready: Vec<DriveHandle> = {
            let (opened, discs) = (self.0.opened.lock(), self.0.discs.lock());
            let fresh = |d: &&OpenDrive| {
                let state = d.handle.state();
                let known = discs.get(d.handle.name()).is_some_and(|(g, _)| *g == state.generation);
                matches!(state.medium, Medium::Ready { .. }) && !known
            };
            opened.values().filter(fresh).map(|d| d.handle.clone()).collect()
        };
        for drive in ready {
            if let Err(error) = self.disc(&drive, 0).await {
                tracing::debug!(drive = drive.name(), %error, "the files of a disc cannot be read");
            }
        }
    }

    async fn move_tray(
        &self,
        caller: &DeviceId,
        who: &device::model::Caller,
        r: &wire::ControlDriveRequest,
    ) -> Result<()> {
        let drive = self.own_drive(&r.device)?;
        let token = (r.fencing_token != 0).then_some(r.fencing_token);
        // While it lives nobody else gets the drive, even if the lease ends meanwhile.
        let _using = match token {
            Some(token) => {
                // The token is of that lease and no other of the same machine.
                let id = lease_id(&r.lease_id)?;
                if !self.0.leases.overview(&r.device)?.held.iter().any(|h| h.id == id && h.holder == *who) {
                    return Err(Error::new(Reason::LeaseLost, "the lease has ended"));
                }
                Some(self.0.leases.begin(&r.device, who, Token(token), Mode::Exclusive)?)
            }
            None => None,
        };
        match r.verb() {
            wire::DriveVerb::Eject => drive.eject(token).await,
            wire::DriveVerb::Close => drive.close_tray(token).await,
            _ => {
                if *caller != self.me() {
                    return Err(Error::new(Reason::LocalOnly, "only the drive's own person puts a disc into it"));
                }
                let control = self.0.opened.lock().get(&r.device).and_then(|d| d.control.clone());
                let control = control.ok_or_else(|| {
                    Error::new(Reason::ResourceInvalid, "the drive is no simulated one")
                        .fix_is("put the disc in by hand")
                })?;
                if !Path::new(&r.image_path).is_absolute() {
                    return Err(Error::new(Reason::FieldInvalid, "the image is not an absolute path"));
                }
                let path = std::path::PathBuf::from(&r.image_path);
                if token.is_none() {
                    LeasedTray(self.0.leases.clone()).check(&r.device, None)?;
                }
                let put = tokio::task::spawn_blocking(move || control.insert(&path)).await;
                put.map_err(|e| Error::internal("inserting an image").caused_by(e))??;
                drive.look();
                Ok(())
            }
        }
    }
}

/// A range with zeros where sectors are bad, and the numbers of those.
async fn read_around(drive: &DriveHandle, generation: u64, offset: u64, len: u32) -> Result<(Bytes, Vec<u64>)> {
    match drive.read(generation, offset, len).await {
        Ok(data) => return Ok((data, Vec::new())),
        Err(error) if error.is(Reason::SectorBad) => {}
        Err(error) => return Err(error),
    }
    let sector_bytes = u64::from(SECTOR_BYTES);
    let (mut data, mut bad) = (BytesMut::with_capacity(len as usize), Vec::new());
    let (mut at, end) = (offset, offset + u64::from(len));
    while at < end {
        let sector = at / sector_bytes;
        let to = ((sector + 1) * sector_bytes).min(end);
        match drive.read(generation, at, (to - at) as u32).await {
            Ok(read) => data.extend_from_slice(&read),
            Err(error) if error.is(Reason::SectorBad) => {
                bad.push(sector);
                data.resize(data.len() + (to - at) as usize, 0);
            }
            Err(error) => return Err(error),
        }
        at = to;
    }
    Ok((data.freeze(), bad))
}
