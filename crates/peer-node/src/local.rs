//! What the person of this machine asks: `NodeService` on the Unix socket.
//!
//! The socket has mode 0600, and besides each call is judged by the caller's user, which the kernel vouches for: the user
//! that the node runs as, or root. Anybody else gets LOCAL_ONLY, whatever the file's mode has become.
//!
//! Handlers read the request, call the module that knows, and write the answer; nothing is decided here. Lists are
//! bounded as `node.proto` says; a stream whose reader is slow makes its source wait.

mod cat;
mod copies;
mod guard;
mod mailbox;
mod office;
mod peers;
mod server;
mod shares;
mod status;
mod transfers;

use crate::catalogue::Catalogue;
use crate::devices::{DeviceGrpc, Devices, OwnGrpc, Side};
use crate::hybrid::Hybrid;
use crate::mailbox::Mailbox;
use crate::net::Network;
use crate::office::Office;
use crate::presence::Presence;
use crate::settings::Settings;
use crate::transfer::{Peers, Transfers};
use crate::twoway::TwoWay;
use common::clock::SharedClock;
use common::error::{Error, Result};
use common::identity::DeviceKey;
use common::shutdown::Shutdown;
use common::status::to_status;
use common::store::Store;
use common::tls::UnixAcceptor;
use proto::peer::v1 as peer;
use proto::peer::v1::node_service_server::{NodeService, NodeServiceServer};
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Largest message on the local socket: a note and a few thousand addresses.
const MESSAGE_MAX: usize = 2 * 1024 * 1024;

/// The service's name, for health checks.
pub const SERVICE: &str = proto::peer::v1::node_service_server::SERVICE_NAME;

/// The modules of a node, as the local service uses them.
pub struct Parts {
    /// Resolved settings.
    pub settings: Arc<Settings>,
    /// The key of this device.
    pub key: Arc<DeviceKey>,
    /// The time.
    pub clock: SharedClock,
    /// The records of all modules.
    pub store: Store,
    /// Who belongs.
    pub office: Office,
    /// Connections.
    pub network: Network,
    /// Who is there.
    pub presence: Presence,
    /// What is shared, here and elsewhere.
    pub catalogue: Catalogue,
    /// What is fetched.
    pub transfers: Transfers,
    /// What is sent.
    pub mailbox: Mailbox,
    /// Copies of two-way shares.
    pub twoway: TwoWay,
    /// The office's central server.
    pub hybrid: Hybrid,
    /// Printers, drives and disks.
    pub devices: Devices,
    /// Where content is fetched from: the members, and the server as one of them.
    pub peers: Arc<dyn Peers>,
}

/// The local service. Clones share everything.
#[derive(Clone)]
pub struct Local {
    parts: Arc<Parts>,
}

impl Local {
    /// Serves the local socket until the shutdown begins: the service, health and reflection.
    ///
    /// # Errors
    /// INTERNAL if the descriptors of the contract cannot be read, which is a defect.
    pub async fn serve(parts: Arc<Parts>, acceptor: UnixAcceptor, shutdown: &Shutdown) -> Result<LocalServing> {
        let devices = DeviceGrpc::service(parts.devices.clone(), Side::Local);
        let own_devices = OwnGrpc::service(parts.devices.clone());
        let service = NodeServiceServer::new(Local { parts }).max_decoding_message_size(MESSAGE_MAX);
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::PUBLIC_DESCRIPTORS)
            .build_v1()
            .map_err(|e| Error::internal("reflection").caused_by(e))?;
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_serving::<NodeServiceServer<Local>>().await;
        let router = common::rpc::tuned_server()
            .layer(guard::guard())
            .add_service(health)
            .add_service(reflection)
            .add_service(service)
            .add_service(devices)
            .add_service(own_devices);
        Ok(tokio::spawn(router.serve_with_incoming_shutdown(acceptor, shutdown.signal())))
    }
}

/// A server under way.
pub type LocalServing = JoinHandle<std::result::Result<(), tonic::transport::Error>>;

fn reply<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|e| to_status(&e))
}

/// A stream of answers.
type Answers<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl NodeService for Local {
    async fn get_status(
        &self,
        _: Request<peer::GetStatusRequest>,
    ) -> Result<Response<peer::GetStatusResponse>, Status> {
        reply(Ok(self.parts.status()))
    }

    async fn init_office(
        &self,
        request: Request<peer::InitOfficeRequest>,
    ) -> Result<Response<peer::InitOfficeResponse>, Status> {
        reply(self.parts.init_office(request.into_inner()).await)
    }

    async fn create_invite(
        &self,
        request: Request<peer::CreateInviteRequest>,
    ) -> Result<Response<peer::CreateInviteResponse>, Status> {
        reply(self.parts.create_invite(request.into_inner()).await)
    }

    async fn join_office(
        &self,
        request: Request<peer::JoinOfficeRequest>,
    ) -> Result<Response<peer::JoinOfficeResponse>, Status> {
        reply(self.parts.join_office(request.into_inner()).await)
    }

    async fn list_peers(
        &self,
        _: Request<peer::ListPeersRequest>,
    ) -> Result<Response<peer::ListPeersResponse>, Status> {
        reply(Ok(self.parts.list_peers()))
    }

    async fn list_members(
        &self,
        _: Request<peer::ListMembersRequest>,
    ) -> Result<Response<peer::ListMembersResponse>, Status> {
        reply(self.parts.list_members())
    }

    async fn change_member(
        &self,
        request: Request<peer::ChangeMemberRequest>,
    ) -> Result<Response<peer::Member>, Status> {
        reply(self.parts.change_member(request.into_inner()).await)
    }

    async fn revoke_member(
        &self,
        request: Request<peer::RevokeMemberRequest>,
    ) -> Result<Response<peer::Member>, Status> {
        reply(self.parts.revoke_member(request.into_inner()).await)
    }

    async fn list_groups(
        &self,
        _: Request<peer::ListGroupsRequest>,
    ) -> Result<Response<peer::ListGroupsResponse>, Status> {
        reply(self.parts.list_groups())
    }

    async fn set_group(&self, request: Request<peer::SetGroupRequest>) -> Result<Response<peer::Group>, Status> {
        reply(self.parts.set_group(request.into_inner()).await)
    }

    async fn attach_server(
        &self,
        request: Request<peer::AttachServerRequest>,
    ) -> Result<Response<peer::AttachServerResponse>, Status> {
        reply(self.parts.attach_server(request.into_inner()).await)
    }

    async fn sign_in(&self, request: Request<peer::SignInRequest>) -> Result<Response<peer::SignInResponse>, Status> {
        reply(self.parts.sign_in(request.into_inner()).await)
    }

    async fn sign_out(&self, _: Request<peer::SignOutRequest>) -> Result<Response<peer::SignOutResponse>, Status> {
        reply(self.parts.hybrid.sign_out().await.map(|()| peer::SignOutResponse {}))
    }

    async fn create_share(
        &self,
        request: Request<peer::CreateShareRequest>,
    ) -> Result<Response<peer::LocalShare>, Status> {
        reply(self.parts.create_share(request.into_inner()).await)
    }

    async fn update_share(
        &self,
        request: Request<peer::UpdateShareRequest>,
    ) -> Result<Response<peer::LocalShare>, Status> {
        reply(self.parts.update_share(request.into_inner()).await)
    }

    async fn remove_share(
        &self,
        request: Request<peer::RemoveShareRequest>,
    ) -> Result<Response<peer::RemoveShareResponse>, Status> {
        reply(self.parts.remove_share(request.into_inner()).await)
    }

    async fn list_local_shares(
        &self,
        _: Request<peer::ListLocalSharesRequest>,
    ) -> Result<Response<peer::ListLocalSharesResponse>, Status> {
        reply(Ok(self.parts.list_local_shares()))
    }

    async fn mirror_share(
        &self,
        request: Request<peer::MirrorShareRequest>,
    ) -> Result<Response<peer::LocalShare>, Status> {
        reply(self.parts.mirror_share(request.into_inner()).await)
    }

    async fn list_conflicts(
        &self,
        request: Request<peer::ListConflictsRequest>,
    ) -> Result<Response<peer::ListConflictsResponse>, Status> {
        reply(Ok(self.parts.list_conflicts(request.get_ref())))
    }

    async fn resolve_conflict(
        &self,
        request: Request<peer::ResolveConflictRequest>,
    ) -> Result<Response<peer::ResolveConflictResponse>, Status> {
        reply(self.parts.resolve_conflict(request.into_inner()).await)
    }

    async fn list(&self, request: Request<peer::ListRequest>) -> Result<Response<peer::ListResponse>, Status> {
        reply(self.parts.list(request.into_inner()).await)
    }

    type FindStream = Answers<peer::FindResponse>;

    async fn find(&self, request: Request<peer::FindRequest>) -> Result<Response<Self::FindStream>, Status> {
        reply(self.parts.find_entries(request.get_ref()).map(ReceiverStream::new))
    }

    type GetStream = Answers<peer::TransferProgress>;

    async fn get(&self, request: Request<peer::GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        reply(self.parts.get(request.into_inner()).await)
    }

    type CatStream = Answers<peer::CatResponse>;

    async fn cat(&self, request: Request<peer::CatRequest>) -> Result<Response<Self::CatStream>, Status> {
        reply(self.parts.cat(&request.get_ref().address).await.map(ReceiverStream::new))
    }

    async fn list_transfers(
        &self,
        _: Request<peer::ListTransfersRequest>,
    ) -> Result<Response<peer::ListTransfersResponse>, Status> {
        reply(Ok(self.parts.list_transfers()))
    }

    type WatchTransferStream = Answers<peer::TransferProgress>;

    async fn watch_transfer(
        &self,
        request: Request<peer::WatchTransferRequest>,
    ) -> Result<Response<Self::WatchTransferStream>, Status> {
        reply(self.parts.watch_transfer(&request.get_ref().transfer_id))
    }

    async fn control_transfer(
        &self,
        request: Request<peer::ControlTransferRequest>,
    ) -> Result<Response<peer::TransferProgress>, Status> {
        reply(self.parts.control_transfer(request.into_inner()).await)
    }

    async fn set_limits(&self, request: Request<peer::SetLimitsRequest>) -> Result<Response<peer::Limits>, Status> {
        reply(self.parts.set_limits(request.into_inner()).await)
    }

    type SendStream = Answers<peer::SendResponse>;

    async fn send(&self, request: Request<Streaming<peer::SendRequest>>) -> Result<Response<Self::SendStream>, Status> {
        reply(self.parts.send(request.into_inner()).await)
    }

    async fn list_inbox(
        &self,
        _: Request<peer::ListInboxRequest>,
    ) -> Result<Response<peer::ListInboxResponse>, Status> {
        reply(Ok(self.parts.list_inbox()))
    }

    async fn answer_parcel(
        &self,
        request: Request<peer::AnswerParcelRequest>,
    ) -> Result<Response<peer::InboxItem>, Status> {
        reply(self.parts.answer_parcel(request.into_inner()).await)
    }

    async fn list_outbox(
        &self,
        _: Request<peer::ListOutboxRequest>,
    ) -> Result<Response<peer::ListOutboxResponse>, Status> {
        reply(Ok(self.parts.list_outbox()))
    }

    async fn cancel_parcel(
        &self,
        request: Request<peer::CancelParcelRequest>,
    ) -> Result<Response<peer::OutboxItem>, Status> {
        reply(self.parts.cancel_parcel(request.into_inner()).await)
    }

    async fn set_accept_rules(
        &self,
        request: Request<peer::SetAcceptRulesRequest>,
    ) -> Result<Response<peer::AcceptRules>, Status> {
        reply(self.parts.set_accept_rules(request.into_inner()).await)
    }
}
