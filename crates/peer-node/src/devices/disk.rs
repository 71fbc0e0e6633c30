//! Disk space of this machine, lent to other machines and to its own person.
//!
//! Who may borrow is said by the device's grants; whose a space is, and that only its borrower uses it, by the lender
//! (`device::disk`). Whoever lost the right to borrow may still read, delete and give back what is his.

use super::book::Entry;
use super::grpc::Asked;
use super::{Devices, access};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::model::{DeviceId, EntryName, Right};
use device::audit::Line;
use device::disk::{Borrow, Kind as PlaceKind, Lender, ObjectStat, PlaceId, PlaceView, Settings, SystemClocks};
use device::model::{Caller, Kind};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use proto::peer::v1 as wire;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How long scratch space is lent unless the borrower says.
const TERM: u64 = 4 * 3_600;
/// Free space that is left to the owner unless he says.
pub(super) const RESERVE: u64 = 5 << 30;
/// Bytes of one message.
const PART: usize = 1 << 20;
/// Objects of one answer.
const PAGE: usize = 1_000;
/// How often ends are looked for.
const TICK: Duration = Duration::from_secs(1);
/// The folder of lent space in the one that is named.
const LENT: &str = "atrium-lent";
/// How often it is looked whether a disk that was away is there again: each so many [`TICK`]s.
const RETURN_TICKS: u32 = 10;
/// How often it is tried to close a folder that is in use.
const CLOSE_TRIES: u32 = 50;

/// Reads a space's id.
///
/// # Errors
/// FIELD_INVALID.
pub(super) fn space_id(bytes: &[u8]) -> Result<PlaceId> {
    Uuid::from_slice(bytes)
        .map(PlaceId)
        .map_err(|_| Error::new(Reason::FieldInvalid, "a space's id has 16 bytes").with("field", "space_id"))
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("work at a disk").caused_by(e))?
}

fn wire_object(stat: &ObjectStat) -> wire::SpaceObject {
    wire::SpaceObject {
        name: stat.name.as_str().to_owned(),
        size_bytes: stat.size,
        digest: stat.digest.to_vec().into(),
        ..wire::SpaceObject::default()
    }
}

pub(super) fn lent(count: usize) -> Error {
    Error::new(Reason::ResourceBusy, format!("{count} spaces are lent"))
        .fix_is("wait until they are given back, or unshare it with --force, which wipes them")
}

fn mirrors_here(count: usize) -> Error {
    Error::new(Reason::ResourceBusy, format!("{count} second copies of shares are on it"))
        .why_is("their owners may have no other")
        .fix_is("let them leave first: atrium unshare; or unshare it with --now, which wipes them")
}

fn settings_of(share: &wire::DiskShare) -> Result<Settings> {
    let invalid = |what: &str| Err(Error::new(Reason::ResourceInvalid, what.to_owned()));
    if share.size_bytes == 0 {
        return invalid("it is not said how much is lent");
    }
    let reserve = if share.reserve_bytes == 0 { RESERVE } else { share.reserve_bytes };
    let per_person = if share.per_person_bytes == 0 { u64::MAX } else { share.per_person_bytes };
    Ok(Settings { per_borrower_bytes: per_person, ..Settings::new(share.size_bytes, reserve) })
}

impl Devices {
    /// Opens the folder that is lent, or changes how much of it.
    ///
    /// A folder that was lent before must be there as it was: what is lent begins anew only where nothing was.
    pub(super) async fn open_disk(&self, entry: &Entry, share: &wire::DiskShare, before: Option<&Entry>) -> Result<()> {
        let (name, settings) = (entry.local_name(), settings_of(share)?);
        let folder = PathBuf::from(&share.folder);
        if !folder.is_absolute() {
            return Err(Error::new(Reason::ResourceInvalid, "the folder is not an absolute path"));
        }
        let old = before.and_then(|b| match &b.share.kind {
            Some(wire::share_device_request::Kind::Disk(d)) => Some(d.folder.clone()),
            _ => None,
        });
        match old {
            Some(old) if old != share.folder => self.nothing_lent(&name)?,
            Some(_) if !folder.join(LENT).is_dir() => {
                return Err(Error::new(Reason::DeviceAway, format!("{} is not there", folder.join(LENT).display()))
                    .fix_is("attach or mount the disk; or unshare it with --force, and share it anew"));
            }
            _ => {}
        }
        // One process, one opening: the one from before is closed first.
        let before = self.0.lenders.lock().remove(&name);
        drop(before);
        for tries in 0.. {
            let (folder, settings) = (folder.clone(), settings.clone());
            let opened = blocking(move || Lender::open(&folder.join(LENT), settings, Arc::new(SystemClocks::new())));
            match opened.await {
                Ok(lender) => {
                    self.0.lenders.lock().insert(name, lender);
                    return Ok(());
                }
                // A call that is under way still has it open.
                Err(error) if error.is(Reason::StoreBusy) && tries < CLOSE_TRIES => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::internal("a folder that is lent"))
    }

    /// Ends lending; refused while something is in it, unless forced: then it is taken back. Second copies of shares are
    /// taken back only if that is said for itself.
    pub(super) async fn close_disk(&self, name: &str, force: bool, now: bool) -> Result<()> {
        let Some(lender) = self.0.lenders.lock().get(name).cloned() else {
            if force {
                return Ok(());
            }
            return Err(Error::new(Reason::DeviceAway, "what is lent there cannot be looked at")
                .fix_is("attach or mount the disk, or unshare it with --force"));
        };
        let work = move || {
            // First nothing new is lent, then it is looked what is.
            let was = lender.overview()?.leaving;
            lender.set_leaving(true)?;
            let places = lender.places(None);
            let mirrors = places.iter().filter(|p| p.kind == PlaceKind::Mirror).count();
            let scratch = places.len() - mirrors;
            let taken = match (scratch > 0 && !force, mirrors > 0 && !now) {
                (true, _) => Err(lent(scratch)),
                (_, true) => Err(mirrors_here(mirrors)),
                _ => places.iter().try_for_each(|p| lender.take_back(p.id)).and_then(|()| lender.tick()),
            };
            if taken.is_err() && !was {
                lender.set_leaving(false)?;
            }
            taken
        };
        blocking(work).await?;
        self.0.lenders.lock().remove(name);
        Ok(())
    }

    /// A disk that is shared again stays, although it was about to leave.
    pub(super) async fn stay(&self, name: &str) -> Result<()> {
        let lender = self.0.lenders.lock().get(name).cloned();
        match lender {
            Some(lender) => blocking(move || lender.set_leaving(false)).await,
            None => Ok(()),
        }
    }

    /// Refuses while something is lent: it would be out of its borrowers' reach.
    fn nothing_lent(&self, name: &str) -> Result<()> {
        let lender = self.0.lenders.lock().get(name).cloned();
        match lender.map(|l| l.places(None).len()) {
            Some(0) => Ok(()),
            Some(count) => Err(lent(count)),
            None => Err(Error::new(Reason::DeviceAway, "what is lent in the folder from before cannot be looked at")
                .fix_is("attach or mount its disk; or unshare it with --force, and share it anew")),
        }
    }

    /// Looks for spaces whose time is over, and for disks that have come back, for ever.
    pub(super) async fn tick_disks(self) {
        for count in 1_u32.. {
            tokio::time::sleep(TICK).await;
            let mut lenders: Vec<Lender> = self.0.lenders.lock().values().cloned().collect();
            lenders.extend(self.0.home.lock().clone());
            let tick = move || {
                // One that fails keeps no other from it.
                for lender in &lenders {
                    if let Err(error) = lender.tick() {
                        tracing::warn!(%error, "space that was lent could not be looked after");
                    }
                }
                Ok(())
            };
            let _ = blocking(tick).await;
            if count % RETURN_TICKS == 0 {
                self.open_disks_that_are_back().await;
            }
        }
    }

    async fn open_disks_that_are_back(&self) {
        use wire::share_device_request::Kind as Share;
        let _one_at_a_time = self.0.managing.lock().await;
        for entry in self.0.book.all() {
            let Some(Share::Disk(share)) = &entry.share.kind else { continue };
            let name = entry.local_name();
            if self.0.lenders.lock().contains_key(&name) || !Path::new(&share.folder).join(LENT).is_dir() {
                continue;
            }
            match self.open_disk(&entry, share, Some(&entry)).await {
                Ok(()) => drop(self.0.problems.lock().remove(&name)),
                Err(error) => tracing::warn!(%error, device = name, "a disk that is back could not be opened"),
            }
            self.changed();
        }
    }

    pub(super) fn lender(&self, name: &str) -> Result<Lender> {
        self.0.lenders.lock().get(name).cloned().ok_or_else(|| match name.starts_with("disks/") {
            true => Error::new(Reason::DeviceAway, format!("{name} could not be opened")),
            false => Error::new(Reason::ResourceInvalid, format!("{name} is no disk")),
        })
    }

    pub(super) fn disk_words(&self, name: &str) -> Result<(&'static str, wire::DiskDetail)> {
        let overview = self.lender(name)?.overview()?;
        let per_person =
            match self.0.book.get(Kind::Disk, name.trim_start_matches("disks/")).map(|e| e.share.kind.clone()) {
                Some(Some(wire::share_device_request::Kind::Disk(d))) if d.per_person_bytes > 0 => d.per_person_bytes,
                _ => overview.size,
            };
        let free = overview.size.saturating_sub(overview.promised).min(overview.room);
        let detail = wire::DiskDetail {
            size_bytes: overview.size,
            used_bytes: overview.used,
            free_bytes: free,
            per_person_bytes: per_person,
        };
        Ok((
            if overview.leaving {
                "leaving"
            } else if free == 0 {
                "full"
            } else {
                "ready"
            },
            detail,
        ))
    }

    /// A lender that a member may have something at: whose it is, the lender finds out. Who neither sees the disk nor has
    /// something there hears that there is none.
    pub(super) fn lent_to(&self, caller: &DeviceId, name: &str) -> Result<(Lender, Caller)> {
        let who = access::caller(&*self.0.roster, caller)?;
        let seen = self.checked(caller, name, Right::See).is_ok();
        match self.lender(name) {
            Ok(lender) if seen || !lender.places(Some(&who)).is_empty() => Ok((lender, who)),
            Err(error) if seen => Err(error),
            _ => Err(access::unknown(name)),
        }
    }

    fn wire_space(&self, name: &str, view: &PlaceView, leaving: bool) -> wire::Space {
        let address = self.0.book.get(Kind::Disk, name.trim_start_matches("disks/")).map(|e| self.address_of(&e));
        let expire = view.left.map(|left| std::time::SystemTime::now() + left);
        wire::Space {
            space_id: view.id.0.as_bytes().to_vec().into(),
            disk: address.unwrap_or_else(|| name.to_owned()),
            kind: match view.kind {
                PlaceKind::Scratch => wire::SpaceKind::Scratch as i32,
                PlaceKind::Mirror => wire::SpaceKind::Mirror as i32,
            },
            size_bytes: view.bytes,
            used_bytes: view.used,
            expire_time: expire.map(Into::into),
            label: view.label.clone(),
            person: view.owner.person.clone(),
            device_id: view.owner.device.clone(),
            nearly_full: view.used / 4 >= view.bytes / 5,
            leaving,
            object_count: view.objects as u64,
            proven_time: None,
        }
    }

    /// `BorrowSpace`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, ACCESS_DENIED, FIELD_INVALID, SPACE_FULL, DEVICE_AWAY.
    pub(super) async fn borrow_space(&self, caller: &DeviceId, r: wire::BorrowSpaceRequest) -> Result<wire::Space> {
        let (_, who) = self.allowed(caller, &r.device, Right::Write, "borrow")?;
        self.0.audit.admit()?;
        let borrowed = self.borrow_as(&who, &r).await;
        let line = match &borrowed {
            Ok(space) => Line::granted(&who, &r.device, "borrow").with_detail(format!("{} bytes", space.size_bytes)),
            Err(error) => Line::refused(&who, &r.device, "borrow", error),
        };
        self.0.audit.note(line);
        self.changed();
        borrowed
    }

    async fn borrow_as(&self, who: &Caller, r: &wire::BorrowSpaceRequest) -> Result<wire::Space> {
        let lender = self.lender(&r.device)?;
        let (kind, time) = match r.kind() {
            wire::SpaceKind::Scratch => (PlaceKind::Scratch, if r.seconds == 0 { TERM } else { r.seconds }),
            wire::SpaceKind::Mirror => (PlaceKind::Mirror, r.retention_seconds),
            wire::SpaceKind::Unspecified => {
                return Err(Error::new(Reason::FieldInvalid, "it is not said what for").with("field", "kind"));
            }
        };
        let wanted = Borrow {
            id: space_id(&r.request_id)?,
            kind,
            bytes: r.size_bytes,
            time: Duration::from_secs(time),
            label: r.label.clone(),
        };
        let (who, name) = (who.clone(), r.device.clone());
        let view = blocking(move || lender.borrow(&who, &wanted)).await?;
        Ok(self.wire_space(&name, &view, false))
    }

    /// `RenewSpace`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, ACCESS_DENIED without the right to borrow, SPACE_UNKNOWN, SPACE_EXPIRED.
    pub(super) async fn renew_space(&self, caller: &DeviceId, r: wire::RenewSpaceRequest) -> Result<wire::Space> {
        self.allowed(caller, &r.device, Right::Write, "borrow")?;
        let (lender, who) = self.lent_to(caller, &r.device)?;
        let (id, time) = (space_id(&r.space_id)?, Duration::from_secs(r.seconds));
        let view = blocking(move || lender.renew(&who, id, time)).await?;
        Ok(self.wire_space(&r.device, &view, false))
    }

    /// `ReturnSpace`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, SPACE_UNKNOWN.
    pub(super) async fn return_space(
        &self,
        caller: &DeviceId,
        r: wire::ReturnSpaceRequest,
    ) -> Result<wire::ReturnSpaceResponse> {
        let (lender, who) = self.lent_to(caller, &r.device)?;
        let id = space_id(&r.space_id)?;
        let manages = self.checked(caller, &r.device, Right::Manage).is_ok();
        let line = Line::ended(&who, &r.device, "borrow", "returned");
        blocking(move || {
            match lender.give_back(&who, id) {
                Err(error) if error.is(Reason::SpaceUnknown) && manages => lender.take_back(id)?,
                given => given?,
            }
            lender.tick()
        })
        .await?;
        self.0.audit.note(line);
        self.changed();
        Ok(wire::ReturnSpaceResponse {})
    }

    /// `ListSpaces`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN.
    pub(super) async fn list_spaces(
        &self,
        caller: &DeviceId,
        r: wire::ListSpacesRequest,
    ) -> Result<wire::ListSpacesResponse> {
        let (lender, who) = self.lent_to(caller, &r.device)?;
        let all = self.checked(caller, &r.device, Right::Manage).is_ok();
        let (views, overview) =
            blocking(move || Ok((lender.places(if all { None } else { Some(&who) }), lender.overview()?))).await?;
        let spaces = views.iter().map(|v| self.wire_space(&r.device, v, overview.leaving)).collect();
        Ok(wire::ListSpacesResponse { spaces })
    }

    /// `PutObject`. What is there from an interrupted put is passed over; if the data end early, the answer tells how
    /// much is there.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, ACCESS_DENIED, SPACE_UNKNOWN, SPACE_EXPIRED, SPACE_FULL, FIELD_INVALID, CHUNK_DIGEST_MISMATCH.
    pub(super) async fn put_object(
        &self,
        caller: &DeviceId,
        header: wire::PutObjectHeader,
        mut data: Asked<Bytes>,
    ) -> Result<wire::SpaceObject> {
        self.allowed(caller, &header.device, Right::Write, "borrow")?;
        let (lender, who) = self.lent_to(caller, &header.device)?;
        let _permit = self.permit(caller)?;
        let (id, name) = (space_id(&header.space_id)?, EntryName::new(header.name.as_str())?);
        let wrong = || Error::new(Reason::FieldInvalid, "the digest has not 32 bytes").with("field", "digest");
        let digest: [u8; 32] = header.digest.as_ref().try_into().map_err(|_| wrong())?;
        let size = header.size_bytes;
        let begun = {
            let (lender, who, name) = (lender.clone(), who.clone(), name.clone());
            blocking(move || lender.begin(&who, id, &name, size, digest)).await?
        };
        let (mut at, mut there) = (header.offset, begun.offset);
        if at > there {
            return Err(Error::new(Reason::RangeInvalid, "what comes before this offset is not there")
                .with("partial_bytes", there));
        }
        while let Some(part) = data.next().await {
            let part = part?;
            // Whoever was cut off or lost the right in the middle writes no more.
            self.checked(caller, &header.device, Right::Write)?;
            let known = usize::try_from(there.saturating_sub(at)).unwrap_or(usize::MAX).min(part.len());
            at += part.len() as u64;
            let fresh = part.slice(known..);
            if fresh.is_empty() {
                continue;
            }
            let (lender, who) = (lender.clone(), who.clone());
            there = blocking(move || lender.write(&who, id, begun.number, there, &fresh)).await?;
        }
        if there < size {
            let name = name.as_str().to_owned();
            return Ok(wire::SpaceObject { name, size_bytes: size, partial_bytes: there, ..Default::default() });
        }
        let stat = blocking(move || lender.finish(&who, id, begun.number)).await?;
        Ok(wire_object(&stat))
    }

    /// `GetObject`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, SPACE_UNKNOWN, SPACE_EXPIRED, ENTRY_UNKNOWN, RANGE_INVALID, CHUNK_DAMAGED.
    pub(super) async fn get_object(
        &self,
        caller: &DeviceId,
        r: wire::GetObjectRequest,
    ) -> Result<Asked<wire::GetObjectResponse>> {
        let (lender, who) = self.lent_to(caller, &r.device)?;
        let permit = self.permit(caller)?;
        let (id, name) = (space_id(&r.space_id)?, EntryName::new(r.name.as_str())?);
        let stat = {
            let (lender, who, name) = (lender.clone(), who.clone(), name.clone());
            blocking(move || lender.stat(&who, id, &name)).await?
        };
        if r.offset > stat.size {
            return Err(Error::new(Reason::RangeInvalid, "the object is shorter").with("size_bytes", stat.size));
        }
        let first = wire::GetObjectResponse { object: Some(wire_object(&stat)), ..Default::default() };
        let state = Some((lender, who, name, r.offset, permit));
        let (devices, caller, disk) = (self.clone(), *caller, r.device);
        let rest = stream::unfold(state, move |state| {
            let (devices, disk) = (devices.clone(), disk.clone());
            async move {
                let (lender, who, name, at, permit) = state?;
                if at >= stat.size {
                    return None;
                }
                let read = match devices.lent_to(&caller, &disk) {
                    Ok(_) => {
                        let (lender, who, name) = (lender.clone(), who.clone(), name.clone());
                        blocking(move || lender.read(&who, id, &name, at, PART)).await
                    }
                    Err(error) => Err(error),
                };
                match read {
                    Ok(data) if data.is_empty() => None,
                    Ok(data) => {
                        let next = at + data.len() as u64;
                        Some((
                            Ok(wire::GetObjectResponse { data, ..Default::default() }),
                            Some((lender, who, name, next, permit)),
                        ))
                    }
                    Err(error) => Some((Err(error), None)),
                }
            }
        });
        Ok(stream::iter([Ok(first)]).chain(rest).boxed())
    }

    /// `ListObjects`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, SPACE_UNKNOWN, SPACE_EXPIRED, PAGE_TOKEN_INVALID.
    pub(super) async fn list_objects(
        &self,
        caller: &DeviceId,
        r: wire::ListObjectsRequest,
    ) -> Result<wire::ListObjectsResponse> {
        let (lender, who) = self.lent_to(caller, &r.device)?;
        let id = space_id(&r.space_id)?;
        let invalid = || Error::new(Reason::PageTokenInvalid, "the page token is of another list");
        let after = match r.page_token.as_str() {
            "" => None,
            name => Some(EntryName::new(name).map_err(|_| invalid())?),
        };
        let found = blocking(move || lender.list(&who, id, after.as_ref(), PAGE)).await?;
        let next = if found.len() == PAGE { found.last().map(|o| o.name.as_str().to_owned()) } else { None };
        Ok(wire::ListObjectsResponse {
            objects: found.iter().map(wire_object).collect(),
            next_page_token: next.unwrap_or_default(),
        })
    }

    /// `DeleteObject`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, SPACE_UNKNOWN, SPACE_EXPIRED, ENTRY_UNKNOWN, MIRROR_APPEND_ONLY.
    pub(super) async fn delete_object(
        &self,
        caller: &DeviceId,
        r: wire::DeleteObjectRequest,
    ) -> Result<wire::DeleteObjectResponse> {
        let (lender, who) = self.lent_to(caller, &r.device)?;
        let (id, name) = (space_id(&r.space_id)?, EntryName::new(r.name.as_str())?);
        blocking(move || lender.delete(&who, id, &name)).await?;
        Ok(wire::DeleteObjectResponse {})
    }

    /// What this machine has borrowed everywhere, or what it has lent.
    pub(super) async fn spaces_everywhere(&self, lent: bool) -> wire::ListBorrowedResponse {
        let me = self.me();
        let (mut spaces, mut problems) = (Vec::new(), Vec::new());
        for entry in self.0.book.all().iter().filter(|e| e.kind == Kind::Disk) {
            let name = entry.local_name();
            match self.list_spaces(&me, wire::ListSpacesRequest { device: name.clone() }).await {
                Ok(found) => spaces.extend(found.spaces),
                Err(error) => problems.push(super::remote::own_problem(&name, &error)),
            }
        }
        if lent {
            return wire::ListBorrowedResponse { spaces, problems };
        }
        let person = self.person_of(&me);
        spaces.retain(|s| s.person == person);
        let (devices, failed) = self.0.remote.all(|_| true).await;
        problems.extend(failed);
        let disks = devices.into_iter().filter(|d| d.online && super::kind_of(d.kind) == Some(Kind::Disk));
        let asks: Vec<BoxFuture<'_, _>> = disks.map(|d| self.ask_spaces(d).boxed()).collect();
        let mut answers = stream::iter(asks).buffer_unordered(16);
        while let Some((disk, found)) = answers.next().await {
            match found {
                Ok(mut found) => {
                    found.iter_mut().for_each(|s| s.disk = disk.address.clone());
                    spaces.extend(found.into_iter().filter(|s| s.person == person));
                }
                Err(error) => problems.push(super::remote::own_problem(&disk.address, &error)),
            }
        }
        let proven = self.proven_times().await;
        for space in &mut spaces {
            let of_it = proven.iter().find(|(place, _)| space.space_id == place.as_bytes()[..]);
            space.proven_time = of_it.map(|(_, time)| *time);
        }
        wire::ListBorrowedResponse { spaces, problems }
    }

    async fn ask_spaces(&self, disk: wire::Device) -> (wire::Device, Result<Vec<wire::Space>>) {
        let found = self.remote_spaces(&disk).await;
        (disk, found)
    }

    async fn remote_spaces(&self, disk: &wire::Device) -> Result<Vec<wire::Space>> {
        let node = disk.owner_device_id.parse().map_err(|()| Error::internal("a device id"))?;
        let request = wire::ListSpacesRequest { device: format!("disks/{}", disk.name) };
        super::remote::in_time(async {
            let mut client = self.client(node).await?;
            let answer = client.list_spaces(request).await.map_err(|s| common::status::from_status(&s))?;
            Ok(answer.into_inner().spaces)
        })
        .await
    }
}
