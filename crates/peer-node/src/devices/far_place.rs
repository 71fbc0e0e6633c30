//! A mirror place at another machine, as the copy's owner uses it.

use super::Devices;
use super::mirror::{OBJECT_MAX, PART, id_bytes, ids_of, object_id};
use bytes::{Bytes, BytesMut};
use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use common::status::from_status;
use device::disk::ObjectId;
use device::disk::mirror::{MirrorPlace, Space};
use futures_util::future::BoxFuture;
use futures_util::stream;
use proto::peer::v1 as wire;

/// See the module.
pub(super) struct FarPlace {
    pub devices: Devices,
    pub node: DeviceId,
    /// The disk's name there.
    pub disk: String,
    /// The place's id.
    pub space: Bytes,
}

impl FarPlace {
    async fn client(&self) -> Result<super::remote::Client> {
        self.devices.0.remote.bulk_client(self.node).await
    }
}

/// An answer, or its error in words.
pub(super) fn said<T>(answer: Result<tonic::Response<T>, tonic::Status>) -> Result<T> {
    answer.map(tonic::Response::into_inner).map_err(|s| from_status(&s))
}

impl MirrorPlace for FarPlace {
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
