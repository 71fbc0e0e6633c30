//! Second copies of this machine's shares on disks of other machines, and the place of others' copies here.
//!
//! The copy is sealed here (`device::disk::mirror`); what travels and what the lender keeps tells nothing. A mirror's key
//! lies in `STATE/devices/mirrors/SHARE.key` (0600), where the copy is in `SHARE.json`; the *recovery key* is both in one
//! text, for the day when this machine is gone.
//!
//! What is copied is the share as its index has it: ignore rules hold, and each chunk is compared with its digest when it
//! is read from the file.

use super::Devices;
use super::address::Target;
use super::disk::{blocking, space_id};
use super::grpc::Asked;
use crate::catalogue::beneath::Root;
use crate::catalogue::{Catalogue, TreeFile};
use bytes::{Bytes, BytesMut};
use common::error::{Error, Reason, Result};
use common::model::{ChunkRef, DeviceId, Right, fold};
use common::status::from_status;
use device::disk::mirror::{FileEntry, MirrorKey, MirrorPlace, MirrorReader, MirrorWriter, Source, Space};
use device::disk::{LocalPlace, ObjectId, PlaceId};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use proto::peer::v1 as wire;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Bytes of one message.
const PART: usize = 1 << 20;
/// Most bytes of an object that is taken.
const OBJECT_MAX: usize = device::disk::mirror::place::OBJECT_MAX;
/// Most bytes that one call brings.
const CALL_MAX: usize = device::disk::mirror::place::BATCH_BYTES_MAX;
/// Problems that are told.
const LEFT_OUT_MAX: usize = 100;

/// Where a share's copy is.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Kept {
    /// The lender's node.
    node: String,
    /// The disk's name there.
    disk: String,
    /// The place.
    place: uuid::Uuid,
    /// The newest generation that was made: an older newest one means that something is missing.
    generation: u64,
}

fn ids_of(bytes: &[Bytes], most: usize) -> Result<Vec<ObjectId>> {
    if bytes.len() > most {
        return Err(Error::new(Reason::MessageTooLarge, format!("at most {most} objects at a time")));
    }
    bytes.iter().map(|b| object_id(b)).collect()
}

fn object_id(bytes: &[u8]) -> Result<ObjectId> {
    let wrong = || Error::new(Reason::FieldInvalid, "an object's id has 32 bytes").with("field", "object_id");
    bytes.try_into().map(ObjectId).map_err(|_| wrong())
}

fn id_bytes(id: &ObjectId) -> Bytes {
    id.0.to_vec().into()
}

/// The lender's side.
impl Devices {
    fn place(&self, caller: &DeviceId, device: &str, space: &[u8]) -> Result<LocalPlace> {
        let (lender, who) = self.lent_to(caller, device)?;
        Ok(LocalPlace::new(lender, space_id(space)?, who))
    }

    /// The same, to add something: that needs the right to borrow.
    fn place_to_write(&self, caller: &DeviceId, device: &str, space: &[u8]) -> Result<LocalPlace> {
        self.allowed(caller, device, Right::Write, "mirror")?;
        self.place(caller, device, space)
    }

    /// `ListMissing`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, SPACE_UNKNOWN, MESSAGE_TOO_LARGE.
    pub(super) async fn list_missing(
        &self,
        caller: &DeviceId,
        r: wire::ListMissingRequest,
    ) -> Result<wire::ListMissingResponse> {
        let place = self.place(caller, &r.device, &r.space_id)?;
        let missing = place.missing(ids_of(&r.object_ids, 4_096)?).await?;
        Ok(wire::ListMissingResponse { object_ids: missing.iter().map(id_bytes).collect() })
    }

    /// `PutSealed`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, ACCESS_DENIED, SPACE_UNKNOWN, SPACE_FULL, MIRROR_APPEND_ONLY, MESSAGE_TOO_LARGE.
    pub(super) async fn put_sealed(
        &self,
        caller: &DeviceId,
        header: wire::PutSealedHeader,
        mut parts: Asked<wire::put_sealed_request::Part>,
    ) -> Result<wire::PutSealedResponse> {
        use wire::put_sealed_request::Part;
        let place = self.place_to_write(caller, &header.device, &header.space_id)?;
        let _permit = self.permit(caller)?;
        let too_large = || Error::new(Reason::MessageTooLarge, "at most 16 MiB of objects of 4 MiB at a time");
        let early = || Error::new(Reason::FieldInvalid, "an object has another length than was said");
        let (mut objects, mut now, mut sum) = (Vec::new(), None::<(ObjectId, usize, BytesMut)>, 0_usize);
        while let Some(part) = parts.next().await {
            match part? {
                Part::Start(start) if now.is_none() => {
                    let size = start.size_bytes as usize;
                    sum += size;
                    if size > OBJECT_MAX || sum > CALL_MAX || objects.len() >= 4_096 {
                        return Err(too_large());
                    }
                    now = Some((object_id(&start.object_id)?, size, BytesMut::with_capacity(size)));
                }
                Part::Data(data) => {
                    let (id, size, mut have) = now.take().ok_or_else(early)?;
                    have.extend_from_slice(&data);
                    match have.len().cmp(&size) {
                        std::cmp::Ordering::Less => now = Some((id, size, have)),
                        std::cmp::Ordering::Equal => objects.push((id, have.freeze())),
                        std::cmp::Ordering::Greater => return Err(early()),
                    }
                }
                Part::Start(_) | Part::Header(_) => return Err(early()),
            }
        }
        if now.is_some() {
            return Err(early());
        }
        self.checked(caller, &header.device, Right::Write)?;
        place.put(objects).await?;
        Ok(wire::PutSealedResponse {})
    }

    /// `GetSealed`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, SPACE_UNKNOWN, ENTRY_UNKNOWN, CHUNK_DAMAGED.
    pub(super) async fn get_sealed(
        &self,
        caller: &DeviceId,
        r: wire::GetSealedRequest,
    ) -> Result<Asked<wire::GetSealedResponse>> {
        let place = self.place(caller, &r.device, &r.space_id)?;
        let permit = self.permit(caller)?;
        let object = place.get(object_id(&r.object_id)?).await?;
        let (devices, caller) = (self.clone(), *caller);
        // The object is in memory until it is sent: so long its place is taken.
        let parts = stream::iter((0..object.len()).step_by(PART)).map(move |at| {
            let _taken = &permit;
            devices.lent_to(&caller, &r.device)?;
            Ok(wire::GetSealedResponse { data: object.slice(at..(at + PART).min(object.len())) })
        });
        Ok(parts.boxed())
    }

    /// `ListSealed`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, SPACE_UNKNOWN.
    pub(super) async fn list_sealed(
        &self,
        caller: &DeviceId,
        r: wire::ListSealedRequest,
    ) -> Result<wire::ListSealedResponse> {
        let place = self.place(caller, &r.device, &r.space_id)?;
        let after = if r.after.is_empty() { None } else { Some(object_id(&r.after)?) };
        let limit = if r.limit == 0 { 1_000 } else { r.limit.min(4_096) as usize };
        let found = place.list(after, limit).await?;
        let objects =
            found.iter().map(|(id, len)| wire::SealedStart { object_id: id_bytes(id), size_bytes: *len }).collect();
        Ok(wire::ListSealedResponse { objects })
    }

    /// `CommitGeneration`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, ACCESS_DENIED, SPACE_UNKNOWN, SPACE_FULL, VERSION_STALE.
    pub(super) async fn commit_generation(
        &self,
        caller: &DeviceId,
        r: wire::CommitGenerationRequest,
    ) -> Result<wire::CommitGenerationResponse> {
        let place = self.place_to_write(caller, &r.device, &r.space_id)?;
        place.commit(r.generation, r.root).await?;
        Ok(wire::CommitGenerationResponse {})
    }

    /// `ListGenerations`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, SPACE_UNKNOWN.
    pub(super) async fn list_generations(
        &self,
        caller: &DeviceId,
        r: wire::ListGenerationsRequest,
    ) -> Result<wire::ListGenerationsResponse> {
        let place = self.place(caller, &r.device, &r.space_id)?;
        Ok(wire::ListGenerationsResponse { generations: place.generations().await? })
    }

    /// `RetireSealed`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, SPACE_UNKNOWN, MESSAGE_TOO_LARGE.
    pub(super) async fn retire_sealed(
        &self,
        caller: &DeviceId,
        r: wire::RetireSealedRequest,
    ) -> Result<wire::RetireSealedResponse> {
        let place = self.place(caller, &r.device, &r.space_id)?;
        let count = place.retire(ids_of(&r.object_ids, 4_096)?).await?;
        Ok(wire::RetireSealedResponse { count: count as u64 })
    }

    /// `ProveObjects`.
    ///
    /// # Errors
    /// RESOURCE_UNKNOWN, SPACE_UNKNOWN, FIELD_INVALID, MESSAGE_TOO_LARGE.
    pub(super) async fn prove_objects(
        &self,
        caller: &DeviceId,
        r: wire::ProveObjectsRequest,
    ) -> Result<wire::ProveObjectsResponse> {
        let place = self.place(caller, &r.device, &r.space_id)?;
        let wrong = || Error::new(Reason::FieldInvalid, "the nonce has 32 bytes").with("field", "nonce");
        let nonce: [u8; 32] = r.nonce.as_ref().try_into().map_err(|_| wrong())?;
        let _permit = self.permit(caller)?;
        let proofs = place.prove(nonce, ids_of(&r.object_ids, 256)?).await?;
        let bytes = |p: Option<[u8; 32]>| p.map(|p| p.to_vec().into()).unwrap_or_default();
        Ok(wire::ProveObjectsResponse { proofs: proofs.into_iter().map(bytes).collect() })
    }
}

/// A place at another machine.
struct RemotePlace {
    devices: Devices,
    node: DeviceId,
    disk: String,
    space: Bytes,
}

impl RemotePlace {
    async fn client(&self) -> Result<super::remote::Client> {
        self.devices.0.remote.bulk_client(self.node).await
    }
}

/// An answer, or its error in words.
fn said<T>(answer: Result<tonic::Response<T>, tonic::Status>) -> Result<T> {
    answer.map(tonic::Response::into_inner).map_err(|s| from_status(&s))
}

impl MirrorPlace for RemotePlace {
    fn missing(&self, ids: Vec<ObjectId>) -> BoxFuture<'_, Result<Vec<ObjectId>>> {
        Box::pin(async move {
            let (device, space_id) = (self.disk.clone(), self.space.clone());
            let object_ids = ids.iter().map(id_bytes).collect();
            let request = wire::ListMissingRequest { device, space_id, object_ids };
            ids_of(&said(self.client().await?.list_missing(request).await)?.object_ids, ids.len())
        })
    }

    fn put(&self, objects: Vec<(ObjectId, Bytes)>) -> BoxFuture<'_, Result<()>> {
        use wire::put_sealed_request::Part;
        Box::pin(async move {
            let header = wire::PutSealedHeader { device: self.disk.clone(), space_id: self.space.clone() };
            let mut parts = vec![Part::Header(header)];
            for (id, data) in objects {
                parts.push(Part::Start(wire::SealedStart { object_id: id_bytes(&id), size_bytes: data.len() as u32 }));
                let pieces = (0..data.len()).step_by(PART);
                parts.extend(pieces.map(|at| Part::Data(data.slice(at..(at + PART).min(data.len())))));
            }
            let messages = stream::iter(parts.into_iter().map(|part| wire::PutSealedRequest { part: Some(part) }));
            said(self.client().await?.put_sealed(messages).await).map(drop)
        })
    }

    fn get(&self, id: ObjectId) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(async move {
            let (device, space_id) = (self.disk.clone(), self.space.clone());
            let request = wire::GetSealedRequest { device, space_id, object_id: id_bytes(&id) };
            let mut parts = said(self.client().await?.get_sealed(request).await)?;
            let mut object = BytesMut::new();
            while let Some(part) = parts.message().await.map_err(|s| from_status(&s))? {
                if object.len() + part.data.len() > OBJECT_MAX {
                    return Err(Error::new(Reason::PeerMisbehaves, "an object of a mirror is larger than any can be"));
                }
                object.extend_from_slice(&part.data);
            }
            Ok(object.freeze())
        })
    }

    fn list(&self, after: Option<ObjectId>, limit: usize) -> BoxFuture<'_, Result<Vec<(ObjectId, u32)>>> {
        Box::pin(async move {
            let request = wire::ListSealedRequest {
                device: self.disk.clone(),
                space_id: self.space.clone(),
                after: after.as_ref().map(id_bytes).unwrap_or_default(),
                limit: limit.min(4_096) as u32,
            };
            let found = said(self.client().await?.list_sealed(request).await)?.objects;
            found.into_iter().take(4_096).map(|o| Ok((object_id(&o.object_id)?, o.size_bytes))).collect()
        })
    }

    fn commit(&self, generation: u64, root: Bytes) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let (device, space_id) = (self.disk.clone(), self.space.clone());
            let request = wire::CommitGenerationRequest { device, space_id, generation, root };
            said(self.client().await?.commit_generation(request).await).map(drop)
        })
    }

    fn generations(&self) -> BoxFuture<'_, Result<Vec<u64>>> {
        Box::pin(async move {
            let request = wire::ListGenerationsRequest { device: self.disk.clone(), space_id: self.space.clone() };
            Ok(said(self.client().await?.list_generations(request).await)?.generations)
        })
    }

    fn retire(&self, ids: Vec<ObjectId>) -> BoxFuture<'_, Result<usize>> {
        Box::pin(async move {
            let (device, space_id) = (self.disk.clone(), self.space.clone());
            let object_ids = ids.iter().map(id_bytes).collect();
            let request = wire::RetireSealedRequest { device, space_id, object_ids };
            Ok(said(self.client().await?.retire_sealed(request).await)?.count as usize)
        })
    }

    fn prove(&self, key: [u8; 32], ids: Vec<ObjectId>) -> BoxFuture<'_, Result<Vec<Option<[u8; 32]>>>> {
        Box::pin(async move {
            let request = wire::ProveObjectsRequest {
                device: self.disk.clone(),
                space_id: self.space.clone(),
                nonce: key.to_vec().into(),
                object_ids: ids.iter().map(id_bytes).collect(),
            };
            let proofs = said(self.client().await?.prove_objects(request).await)?.proofs;
            Ok(proofs.into_iter().take(ids.len()).map(|p| p.as_ref().try_into().ok()).collect())
        })
    }

    fn space(&self) -> BoxFuture<'_, Result<Space>> {
        Box::pin(async move {
            let request = wire::ListSpacesRequest { device: self.disk.clone() };
            let spaces = said(self.client().await?.list_spaces(request).await)?.spaces;
            let found = spaces.into_iter().find(|s| s.space_id == self.space);
            let gone = || Error::new(Reason::SpaceUnknown, "the mirror place is gone");
            found.map(|s| Space { bytes: s.size_bytes, used: s.used_bytes }).ok_or_else(gone)
        })
    }
}

/// A share is being copied while this lives.
struct Copying {
    devices: Devices,
    share: String,
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.devices.0.mirroring.lock().remove(&self.share);
    }
}

/// A share as its index has it, read from its folder.
struct ShareSource {
    root: Root,
    files: Vec<FileEntry>,
}

impl ShareSource {
    async fn open(catalogue: &Catalogue, share: &str) -> Result<(String, Self)> {
        let local = catalogue.local_share(share)?;
        if !local.complete {
            return Err(Error::new(Reason::Starting, "the share is being looked through")
                .fix_is("try again when `atrium shares` shows no more scanning"));
        }
        let resolved = catalogue.resolve(&local.address).await?;
        let files = catalogue.tree(&resolved).await?.into_iter().filter_map(entry_of).collect();
        let path = local.path.clone();
        let root = blocking(move || Root::open(&path)).await?;
        Ok((local.record.name().to_owned(), Self { root, files }))
    }
}

fn entry_of(file: TreeFile) -> Option<FileEntry> {
    let content = file.content?;
    Some(FileEntry {
        path: file.path,
        mode: file.entry.mode,
        mtime_ms: file.entry.modify_time_ns.div_euclid(1_000_000),
        size: content.size_bytes,
        chunks: content.chunks.to_vec(),
    })
}

impl Source for ShareSource {
    fn files(&self) -> Result<Vec<FileEntry>> {
        Ok(self.files.clone())
    }

    fn read(&self, file: &FileEntry, offset: u64, chunk: &ChunkRef) -> Result<Bytes> {
        let failed = |e: rustix::io::Errno| Error::from(std::io::Error::from(e));
        let (open, _) = self.root.file(&file.path).map_err(failed)?;
        let mut data = vec![0; chunk.len as usize];
        open.read_exact_at(&mut data, offset)?;
        Ok(data.into())
    }
}

/// The owner's side.
impl Devices {
    fn mirrors(&self) -> PathBuf {
        self.0.directory.join("mirrors")
    }

    /// One copy of a share at a time: two would make two keys, and keep one.
    ///
    /// # Errors
    /// RESOURCE_BUSY.
    fn begin_copy(&self, share: &str) -> Result<Copying> {
        if !self.0.mirroring.lock().insert(share.to_owned()) {
            return Err(Error::new(Reason::ResourceBusy, format!("{share} is being copied already")));
        }
        Ok(Copying { devices: self.clone(), share: share.to_owned() })
    }

    fn place_at(&self, node: DeviceId, disk: &str, place: PlaceId) -> Result<Arc<dyn MirrorPlace>> {
        if node == self.me() {
            let (lender, who) = self.lent_to(&node, disk)?;
            return Ok(Arc::new(LocalPlace::new(lender, place, who)));
        }
        let space = place.0.as_bytes().to_vec().into();
        Ok(Arc::new(RemotePlace { devices: self.clone(), node, disk: disk.to_owned(), space }))
    }

    async fn borrow_at(&self, target: &Target, r: wire::BorrowSpaceRequest) -> Result<wire::Space> {
        if target.node == self.me() {
            return self.borrow_space(&self.me(), r).await;
        }
        said(self.client(target.node).await?.borrow_space(r).await)
    }

    /// Copies a share into a mirror place, or what is new of it.
    ///
    /// # Errors
    /// SHARE_UNKNOWN, STARTING, RESOURCE_UNKNOWN, ACCESS_DENIED, SPACE_FULL; what goes wrong later comes in the stream.
    pub(super) async fn mirror_to(&self, r: wire::MirrorToRequest) -> Result<Asked<wire::MirrorProgress>> {
        let (name, source) = ShareSource::open(&self.0.catalogue, &r.share).await?;
        let copying = self.begin_copy(&name)?;
        let total: u64 = source.files.iter().map(|f| f.size).sum();
        let (kept, key) = self.mirror_of(&name, &r, total).await?;
        let node: DeviceId = kept.node.parse().map_err(|()| Error::new(Reason::StoreCorrupt, "where a mirror is"))?;
        let place = self.place_at(node, &kept.disk, PlaceId(kept.place))?;
        let recovery = format!("{}:{}", PlaceId(kept.place), &*key.to_text());
        let (tell, told) = mpsc::channel(4);
        let (files, devices) = (source.files.len() as u64, self.clone());
        let begun = wire::MirrorProgress { total_bytes: total, file_count: files, ..Default::default() };
        let _ = tell.send(Ok(begun.clone())).await;
        self.0.shutdown.spawn_until(async move {
            let _copying = copying;
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let writer = MirrorWriter::new(Arc::new(key), place);
            let made = tokio::select! {
                made = writer.snapshot(Arc::new(source), &name, now.as_millis() as u64) => made,
                // Nobody waits for it any more; the next time goes on from here.
                () = tell.closed() => return,
            };
            let made = match made {
                Ok(report) => devices.note_generation(&name, &kept, report.generation).await.map(|()| report),
                Err(error) => Err(error),
            };
            let last = made.map(|report| wire::MirrorProgress {
                done_bytes: report.sent_bytes,
                present_bytes: total.saturating_sub(report.sent_bytes),
                file_count: report.files as u64,
                done: true,
                generation: report.generation,
                recovery_key: recovery,
                left_out: left_out(report.left_out),
                ..begun
            });
            let _ = tell.send(last).await;
        });
        Ok(tokio_stream::wrappers::ReceiverStream::new(told).boxed())
    }

    /// Where a share's copy is; made if there is none, or if another disk is named.
    async fn mirror_of(&self, name: &str, r: &wire::MirrorToRequest, total: u64) -> Result<(Kept, MirrorKey)> {
        let target = self.find(&r.disk).await?;
        let directory = self.mirrors();
        let (key_path, kept_path) = (directory.join(format!("{name}.key")), directory.join(format!("{name}.json")));
        let read = {
            let (key_path, kept_path) = (key_path.clone(), kept_path.clone());
            blocking(move || {
                std::fs::create_dir_all(&directory)?;
                if !kept_path.exists() {
                    return Ok(None);
                }
                let kept: Kept = serde_json::from_slice(&std::fs::read(&kept_path)?)
                    .map_err(|e| Error::new(Reason::StoreCorrupt, "where a mirror is").caused_by(e))?;
                Ok(Some((kept, MirrorKey::load(&key_path)?)))
            })
            .await?
        };
        let old = read.as_ref().map(|(kept, _)| kept.place);
        if let Some((kept, key)) = read
            && kept.node == target.node.to_string()
            && fold(&kept.disk) == fold(&target.local_name())
        {
            return Ok((kept, key));
        }
        let place = PlaceId::generate();
        let request = wire::BorrowSpaceRequest {
            device: target.local_name(),
            kind: wire::SpaceKind::Mirror as i32,
            size_bytes: if r.size_bytes == 0 { total.saturating_mul(2).max(64 << 20) } else { r.size_bytes },
            label: format!("mirror of {name}").chars().take(60).collect(),
            retention_seconds: if r.retention_seconds == 0 { 30 * 86_400 } else { r.retention_seconds },
            request_id: place.0.as_bytes().to_vec().into(),
            ..Default::default()
        };
        let space = self.borrow_at(&target, request).await?;
        let place = space_id(&space.space_id)?;
        let kept = Kept { node: target.node.to_string(), disk: target.local_name(), place: place.0, generation: 0 };
        let (key, stored) = (MirrorKey::generate(), kept.clone());
        let old = old.unwrap_or(place.0);
        let key = blocking(move || {
            // The old copy's key stays readable under the name of its place: that copy still exists.
            if key_path.exists() {
                std::fs::rename(&key_path, key_path.with_extension(format!("{old}.key")))?;
            }
            key.save(&key_path)?;
            write_kept(&kept_path, &stored)?;
            Ok(key)
        })
        .await?;
        Ok((kept, key))
    }

    async fn note_generation(&self, name: &str, kept: &Kept, generation: u64) -> Result<()> {
        let (path, kept) = (self.mirrors().join(format!("{name}.json")), Kept { generation, ..kept.clone() });
        blocking(move || write_kept(&path, &kept)).await
    }

    /// Gets a mirrored share back.
    ///
    /// # Errors
    /// FIELD_INVALID, ENTRY_UNKNOWN if there is no such mirror; what goes wrong later comes in the stream.
    pub(super) async fn restore_mirror(&self, r: wire::RestoreMirrorRequest) -> Result<Asked<wire::MirrorProgress>> {
        let folder = PathBuf::from(&r.path);
        if !folder.is_absolute() {
            return Err(Error::new(Reason::FieldInvalid, "the path is not absolute").with("field", "path"));
        }
        let (place, key, least) = self.mirror_to_read(&r).await?;
        let generation = (r.generation > 0).then_some(r.generation);
        let (tell, told) = mpsc::channel(4);
        self.0.shutdown.spawn_until(async move {
            let restored = async {
                let reader = MirrorReader::open(Arc::new(key), place, generation, least).await?;
                let total: u64 = reader.files().iter().map(|f| f.size).sum();
                let begun = wire::MirrorProgress {
                    total_bytes: total,
                    file_count: reader.files().len() as u64,
                    generation: reader.root().generation,
                    ..Default::default()
                };
                let _ = tell.send(Ok(begun.clone())).await;
                let restored = reader.restore(&folder).await?;
                Ok(wire::MirrorProgress {
                    done_bytes: restored.bytes,
                    file_count: (restored.files + restored.present) as u64,
                    left_out: left_out(restored.failed),
                    done: true,
                    ..begun
                })
            };
            let restored = tokio::select! {
                restored = restored => restored,
                () = tell.closed() => return,
            };
            let _ = tell.send(restored).await;
        });
        Ok(tokio_stream::wrappers::ReceiverStream::new(told).boxed())
    }

    async fn mirror_to_read(&self, r: &wire::RestoreMirrorRequest) -> Result<(Arc<dyn MirrorPlace>, MirrorKey, u64)> {
        if !r.recovery_key.is_empty() {
            let wrong = || Error::new(Reason::FieldInvalid, "this is no recovery key").with("field", "recovery_key");
            let (place, key) = r.recovery_key.trim().split_once(':').ok_or_else(wrong)?;
            let target = self.find(&r.disk).await?;
            let place = place.parse().map_err(|_| wrong())?;
            let place = self.place_at(target.node, &target.local_name(), place)?;
            return Ok((place, MirrorKey::from_text(key)?, 0));
        }
        let directory = self.mirrors();
        let name = common::model::EntryName::new(r.share.as_str())?;
        let (key, kept) = (directory.join(format!("{name}.key")), directory.join(format!("{name}.json")));
        let unknown = format!("there is no mirror of {:?} that this machine made", r.share);
        let (kept, key) = blocking(move || {
            let bytes = std::fs::read(&kept).map_err(|e| {
                Error::new(Reason::EntryUnknown, unknown)
                    .fix_is("on another machine, give the recovery key and the disk: --recovery-key, --disk")
                    .caused_by(e)
            })?;
            let kept: Kept = serde_json::from_slice(&bytes)
                .map_err(|e| Error::new(Reason::StoreCorrupt, "where a mirror is").caused_by(e))?;
            Ok((kept, MirrorKey::load(&key)?))
        })
        .await?;
        let node = kept.node.parse().map_err(|()| Error::new(Reason::StoreCorrupt, "where a mirror is"))?;
        Ok((self.place_at(node, &kept.disk, PlaceId(kept.place))?, key, kept.generation))
    }
}

fn left_out(files: Vec<(String, String)>) -> Vec<wire::NodeProblem> {
    let problem = |(path, why): (String, String)| wire::NodeProblem {
        reason: Reason::LocalFileChanged.word().to_owned(),
        message: path,
        why,
        fix: "do it again when the file rests".to_owned(),
    };
    files.into_iter().take(LEFT_OUT_MAX).map(problem).collect()
}

fn write_kept(path: &Path, kept: &Kept) -> Result<()> {
    use std::io::Write;
    let directory = path.parent().ok_or_else(|| Error::internal("a path without a directory"))?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(&serde_json::to_vec_pretty(kept).map_err(|e| Error::internal("a mirror's place").caused_by(e))?)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    std::fs::File::open(directory)?.sync_all()?;
    Ok(())
}
