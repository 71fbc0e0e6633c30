//! The two services: membership for members, enrolment for everyone.
//!
//! The gate of `net` lets only members through to [`MembershipServer`]; each call looks once more.

use super::announce::{Announcement, MAX_IN_MESSAGE};
use super::driver::{MAX_MESSAGE, facts_of};
use super::enrol::Finish;
use super::merge::MAX_PUSH_RECORDS;
use super::record::{Record, RecordId};
use super::view::check_member;
use super::{MAX_RECORDS, News, Office, REVOCATION_RESERVE};
use crate::net::{Network, NodeIdentity};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::model::DeviceId;
use common::status::to_status;
use proto::peer::v1 as peer;
use proto::peer::v1::enrolment_service_server::{EnrolmentService, EnrolmentServiceServer};
use proto::peer::v1::membership_service_server::{MembershipService, MembershipServiceServer};
use std::sync::Arc;
use tonic::{Request, Response, Status, async_trait};

/// Addresses that one probe tries.
const MAX_PROBED: usize = 8;

/// What the membership service needs from the network.
#[async_trait]
pub trait Surroundings: Send + Sync + 'static {
    /// Whom this node is connected with now.
    fn neighbours(&self) -> Vec<DeviceId>;

    /// Connects to a device at some addresses. Gives back the addresses where it was reached and, for each of the others,
    /// why not.
    ///
    /// # Errors
    /// If this node does not probe now.
    async fn probe(&self, device: DeviceId, addresses: &[String]) -> Result<(Vec<String>, Vec<String>)>;
}

#[async_trait]
impl Surroundings for Network {
    fn neighbours(&self) -> Vec<DeviceId> {
        Network::neighbours(self)
    }

    async fn probe(&self, device: DeviceId, addresses: &[String]) -> Result<(Vec<String>, Vec<String>)> {
        let answer = Network::probe(self, device, addresses).await?;
        Ok((answer.reached.iter().map(ToString::to_string).collect(), answer.problems))
    }
}

/// [`MembershipService`].
#[derive(Clone)]
pub struct MembershipServer {
    office: Office,
    surroundings: Arc<dyn Surroundings>,
}

/// [`EnrolmentService`].
#[derive(Clone, Debug)]
pub struct EnrolmentServer {
    office: Office,
}

/// The service for members.
pub fn membership_service(
    office: Office,
    surroundings: Arc<dyn Surroundings>,
) -> MembershipServiceServer<MembershipServer> {
    MembershipServiceServer::new(MembershipServer { office, surroundings }).max_decoding_message_size(MAX_MESSAGE)
}

/// The service for everyone.
pub fn enrolment_service(office: Office) -> EnrolmentServiceServer<EnrolmentServer> {
    EnrolmentServiceServer::new(EnrolmentServer { office }).max_decoding_message_size(64 * 1024)
}

fn answer<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| to_status(&error))
}

fn too_many(field: &str) -> Error {
    Error::new(Reason::FieldInvalid, format!("{field} has too many entries")).with("field", field)
}

impl MembershipServer {
    fn caller<T>(&self, request: &Request<T>) -> Result<NodeIdentity> {
        let identity = NodeIdentity::of(request)?;
        check_member(&self.office.view(), &identity.device)?;
        Ok(identity)
    }

    async fn greet(&self, request: Request<peer::HelloRequest>) -> Result<peer::HelloResponse> {
        let caller = self.caller(&request)?;
        let message = request.into_inner();
        let facts = facts_of(&message.records_digest, &message.announcements_digest, &message.neighbours)?;
        if let Some(announcement) = message.announcement {
            self.office.merge_announcements(vec![announcement], Some(caller.device)).await?;
        }
        self.office.tell(News::Heard(caller.device, facts));
        let own = self.office.hello(self.surroundings.neighbours());
        Ok(peer::HelloResponse {
            announcement: own.announcement,
            records_digest: own.records_digest,
            announcements_digest: own.announcements_digest,
            neighbours: own.neighbours,
            observed_address: caller.way.address().map(|a| a.to_string()).unwrap_or_default(),
        })
    }

    async fn exchange(&self, request: Request<peer::ExchangeRecordsRequest>) -> Result<peer::ExchangeRecordsResponse> {
        self.caller(&request)?;
        let ids = request.into_inner().record_ids;
        if ids.len() > MAX_RECORDS + REVOCATION_RESERVE {
            return Err(too_many("record_ids"));
        }
        let wrong = || Error::new(Reason::FieldInvalid, "record_ids has an id that has not 32 bytes");
        let ids: Vec<RecordId> =
            ids.iter().map(|id| RecordId::from_slice(id).ok_or_else(wrong)).collect::<Result<_>>()?;
        let lacking = self.office.lacking(&ids);
        Ok(peer::ExchangeRecordsResponse {
            records: lacking.records.iter().map(Record::wire).collect(),
            wanted_ids: lacking.wanted.iter().map(|id| Bytes::copy_from_slice(&id.0)).collect(),
            more: lacking.more,
        })
    }

    async fn take(&self, request: Request<peer::PushRecordsRequest>) -> Result<peer::PushRecordsResponse> {
        let caller = self.caller(&request)?;
        let records = request.into_inner().records;
        if records.len() > MAX_PUSH_RECORDS {
            return Err(too_many("records"));
        }
        let report = self.office.merge(records, Some(caller.device)).await?;
        self.office.blame(&caller.device, &report);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(peer::PushRecordsResponse {
            accepted_count: count(report.accepted.len()),
            refused_count: count(report.refused),
            early_count: count(report.early),
        })
    }

    async fn compare(
        &self,
        request: Request<peer::ExchangeAnnouncementsRequest>,
    ) -> Result<peer::ExchangeAnnouncementsResponse> {
        let caller = self.caller(&request)?;
        let message = request.into_inner();
        if message.announcements.len() > MAX_IN_MESSAGE {
            return Err(too_many("announcements"));
        }
        self.office.merge_announcements(message.announcements, Some(caller.device)).await?;
        let difference = self.office.compare_announcements(&message.held)?;
        Ok(peer::ExchangeAnnouncementsResponse {
            announcements: difference.newer.iter().map(Announcement::wire).collect(),
            wanted: difference.wanted.iter().map(|d| Bytes::copy_from_slice(&d.0)).collect(),
            more: difference.more,
        })
    }

    async fn try_back(&self, request: Request<peer::ProbeRequest>) -> Result<peer::ProbeResponse> {
        let caller = self.caller(&request)?;
        let addresses = request.into_inner().addresses;
        if addresses.len() > MAX_PROBED {
            return Err(too_many("addresses"));
        }
        let (reached, problems) = self.surroundings.probe(caller.device, &addresses).await?;
        Ok(peer::ProbeResponse { reached, problems })
    }

    fn goodbye(&self, request: &Request<peer::LeaveRequest>) -> Result<peer::LeaveResponse> {
        let caller = self.caller(request)?;
        let wrong = |_| Error::new(Reason::FieldInvalid, "instance_id has not 8 bytes");
        let instance = request.get_ref().instance_id[..].try_into().map_err(wrong)?;
        self.office.tell(News::Left { device: caller.device, instance });
        Ok(peer::LeaveResponse {})
    }
}

#[async_trait]
impl MembershipService for MembershipServer {
    async fn hello(&self, request: Request<peer::HelloRequest>) -> Result<Response<peer::HelloResponse>, Status> {
        answer(self.greet(request).await)
    }

    async fn exchange_records(
        &self,
        request: Request<peer::ExchangeRecordsRequest>,
    ) -> Result<Response<peer::ExchangeRecordsResponse>, Status> {
        answer(self.exchange(request).await)
    }

    async fn push_records(
        &self,
        request: Request<peer::PushRecordsRequest>,
    ) -> Result<Response<peer::PushRecordsResponse>, Status> {
        answer(self.take(request).await)
    }

    async fn exchange_announcements(
        &self,
        request: Request<peer::ExchangeAnnouncementsRequest>,
    ) -> Result<Response<peer::ExchangeAnnouncementsResponse>, Status> {
        answer(self.compare(request).await)
    }

    async fn probe(&self, request: Request<peer::ProbeRequest>) -> Result<Response<peer::ProbeResponse>, Status> {
        answer(self.try_back(request).await)
    }

    async fn leave(&self, request: Request<peer::LeaveRequest>) -> Result<Response<peer::LeaveResponse>, Status> {
        answer(self.goodbye(&request))
    }
}

#[async_trait]
impl EnrolmentService for EnrolmentServer {
    async fn begin_enrolment(
        &self,
        request: Request<peer::BeginEnrolmentRequest>,
    ) -> Result<Response<peer::BeginEnrolmentResponse>, Status> {
        let message = request.into_inner();
        let begun = self.office.begin_enrolment(&message.nameplate, &message.spake_message);
        answer(begun.map(|begun| peer::BeginEnrolmentResponse {
            exchange_id: begun.exchange_id,
            spake_message: begun.spake_message.into(),
        }))
    }

    async fn finish_enrolment(
        &self,
        request: Request<peer::FinishEnrolmentRequest>,
    ) -> Result<Response<peer::FinishEnrolmentResponse>, Status> {
        let message = request.into_inner();
        let finish = Finish {
            exchange_id: message.exchange_id,
            confirmation: message.confirmation,
            certificate_request: message.certificate_request,
            display_name: message.display_name,
            person: message.person,
            sealing_key: message.sealing_key,
        };
        answer(self.office.finish_enrolment(finish).await)
    }

    async fn introduce(
        &self,
        request: Request<peer::IntroduceRequest>,
    ) -> Result<Response<peer::IntroduceResponse>, Status> {
        let introduced = async {
            let caller = NodeIdentity::of(&request)?;
            let records = request.into_inner().records;
            if records.len() > MAX_PUSH_RECORDS {
                return Err(too_many("records"));
            }
            self.office.introduce(caller.device, records).await
        };
        answer(introduced.await)
    }
}
