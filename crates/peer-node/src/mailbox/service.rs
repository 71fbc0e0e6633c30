//! `atrium.peer.v1.MailboxService`, for members only.

use super::blocking;
use super::courier::{Courier, MAX_MESSAGE};
use super::plan::Answer;
use crate::net::NodeIdentity;
use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use common::status::to_status;
use proto::peer::v1 as peer;
use proto::peer::v1::mailbox_service_server::{MailboxService, MailboxServiceServer};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The service as it is mounted.
pub type MailboxServer = MailboxServiceServer<Desk>;

/// Answers the calls.
#[derive(Clone)]
pub struct Desk(Arc<Courier>);

/// Makes the service with its limits.
pub(super) fn serve(courier: Arc<Courier>) -> MailboxServer {
    MailboxServiceServer::new(Desk(courier))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

impl Desk {
    fn caller<T>(&self, request: &Request<T>) -> Result<DeviceId, Status> {
        let device = request.extensions().get::<NodeIdentity>().map(|n| n.device);
        match device {
            Some(device) if self.0.members.is_member(&device) => Ok(device),
            _ => Err(to_status(&Error::new(Reason::AccessDenied, "only members of the office may call this"))),
        }
    }
}

#[tonic::async_trait]
impl MailboxService for Desk {
    async fn offer(&self, request: Request<peer::OfferRequest>) -> Result<Response<peer::OfferResponse>, Status> {
        let caller = self.caller(&request)?;
        let offer = request.into_inner();
        let missing = || to_status(&Error::new(Reason::FieldInvalid, "no parcel is offered"));
        let parcel = offer.parcel.ok_or_else(missing)?;
        let (answer, message) = self.0.offered(caller, parcel, offer.keep).await.map_err(|e| to_status(&e))?;
        use peer::offer_response::Answer as Wire;
        let answer = match answer {
            Answer::Accepted => Wire::Accepted,
            Answer::Asks => Wire::Asks,
            Answer::Refused => Wire::Refused,
            Answer::Complete => Wire::Complete,
            Answer::Later => Wire::Later,
        };
        Ok(Response::new(peer::OfferResponse { answer: answer.into(), message }))
    }

    async fn list_parcels(
        &self,
        request: Request<peer::ListParcelsRequest>,
    ) -> Result<Response<peer::ListParcelsResponse>, Status> {
        let caller = self.caller(&request)?;
        Ok(Response::new(peer::ListParcelsResponse { parcels: self.0.parcels_for(&caller) }))
    }

    async fn push_receipts(
        &self,
        request: Request<peer::PushReceiptsRequest>,
    ) -> Result<Response<peer::PushReceiptsResponse>, Status> {
        self.caller(&request)?;
        let receipts = request.into_inner().receipts;
        if receipts.len() > 1_000 {
            return Err(to_status(&Error::new(Reason::FieldInvalid, "more than 1,000 receipts at a time")));
        }
        let courier = self.0.clone();
        blocking(move || courier.receipts(&receipts)).await.map_err(|e| to_status(&e))?;
        Ok(Response::new(peer::PushReceiptsResponse {}))
    }
}
