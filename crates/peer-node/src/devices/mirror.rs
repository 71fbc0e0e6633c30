//! The place of others' second copies on disks of this machine: calls of their owners.
//!
//! What is kept is sealed by its owner (`device::disk::mirror`) and tells nothing. The owner's side is in `copies`; a place
//! as that side sees it, at another machine, in `far_place`.

use super::Devices;
use super::disk::space_id;
use super::grpc::Asked;
use bytes::{Bytes, BytesMut};
use common::error::{Error, Reason, Result};
use common::model::{DeviceId, Right};
use device::disk::mirror::MirrorPlace;
use device::disk::{LocalPlace, ObjectId};
use futures_util::{StreamExt, stream};
use proto::peer::v1 as wire;

/// Bytes of one message.
pub(super) const PART: usize = 1 << 20;
/// Most bytes of an object that is taken.
pub(super) const OBJECT_MAX: usize = device::disk::mirror::place::OBJECT_MAX;
/// Most bytes that one call brings.
const CALL_MAX: usize = device::disk::mirror::place::BATCH_BYTES_MAX;

pub(super) fn ids_of(bytes: &[Bytes], most: usize) -> Result<Vec<ObjectId>> {
    if bytes.len() > most {
        return Err(Error::new(Reason::MessageTooLarge, format!("at most {most} objects at a time")));
    }
    bytes.iter().map(|b| object_id(b)).collect()
}

pub(super) fn object_id(bytes: &[u8]) -> Result<ObjectId> {
    let wrong = || Error::new(Reason::FieldInvalid, "an object's id has 32 bytes").with("field", "object_id");
    bytes.try_into().map(ObjectId).map_err(|_| wrong())
}

pub(super) fn id_bytes(id: &ObjectId) -> Bytes {
    id.0.to_vec().into()
}

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
        self.note_fetched(&r.space_id, object.len());
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
