//! Handing members a way to join the server, and taking one.

use super::Hybrid;
use super::membership::{Membership, Session};
use crate::net::{Network, NodeChannel, NodeIdentity};
use crate::office::{CentralServer, check_member};
use common::enrol::join_office;
use common::error::{Error, Kind, Reason, Result};
use common::model::DeviceId;
use common::rpc::{ConnectOptions, OfficeConnection};
use common::shutdown::Shutdown;
use common::status::{from_status, to_status};
use common::tls::{DeviceCredentials, check_membership, renew_at_ms};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use proto::peer::v1 as peer;
use proto::peer::v1::hybrid_service_client::HybridServiceClient;
use proto::peer::v1::hybrid_service_server::{HybridService, HybridServiceServer};
use proto::v1;
use proto::v1::device_service_client::DeviceServiceClient;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status};

/// A member that has not heard of the server yet waits so long for the record before it says no.
const RECORD_WAIT: Duration = Duration::from_secs(5);
/// An offer, with the joining in it.
const OFFER_TIMEOUT: Duration = Duration::from_secs(45);
/// Members that are offered it at the same time.
const OFFERED: usize = 8;
/// Life of an invite for a member that is there.
const INVITE_SECONDS: u64 = 300;
/// Members that did not take an offer are asked again after so long.
const AGAIN: Duration = Duration::from_secs(60);
/// How often the certificate's age is looked at.
const RENEW_LOOK: Duration = Duration::from_secs(3600);
/// Events that come together are answered together.
const GATHER: Duration = Duration::from_millis(100);

/// Members that are connected.
pub trait Members: Send + Sync + 'static {
    /// Who, in whichever direction.
    fn devices(&self) -> Vec<DeviceId>;
    /// A channel to one of them; one that has connected to this node is called back.
    fn channel(&self, device: DeviceId) -> BoxFuture<'static, Result<NodeChannel>>;
}

impl Members for Network {
    fn devices(&self) -> Vec<DeviceId> {
        let all: BTreeSet<DeviceId> = self.neighbours().into_iter().chain(self.incoming().into_keys()).collect();
        all.into_iter().collect()
    }

    fn channel(&self, device: DeviceId) -> BoxFuture<'static, Result<NodeChannel>> {
        let network = self.clone();
        Box::pin(async move { network.link(device).await.map(|link| link.control()) })
    }
}

/// [`HybridService`].
#[derive(Clone)]
pub struct HybridServer {
    hybrid: Hybrid,
}

#[tonic::async_trait]
impl HybridService for HybridServer {
    async fn offer_server(
        &self,
        request: Request<peer::OfferServerRequest>,
    ) -> Result<Response<peer::OfferServerResponse>, Status> {
        let caller = NodeIdentity::of(&request);
        let taken = async {
            check_member(&self.hybrid.0.office.view(), &caller?.device)?;
            self.hybrid.take_offer(request.into_inner()).await
        };
        let joined = taken.await.map_err(|e| to_status(&e))?;
        Ok(Response::new(peer::OfferServerResponse { joined }))
    }
}

fn blocking_failed(error: tokio::task::JoinError) -> Error {
    Error::internal("writing the server's membership").caused_by(error)
}

impl Hybrid {
    /// The service for members.
    pub fn service(&self) -> HybridServiceServer<HybridServer> {
        HybridServiceServer::new(HybridServer { hybrid: self.clone() }).max_decoding_message_size(64 * 1024)
    }

    /// Offers the server to members as they connect, and renews this node's certificate, until the shutdown.
    pub fn start(&self, network: &Network, shutdown: &Shutdown) {
        let (hybrid, network) = (self.clone(), network.clone());
        shutdown.spawn_until(async move {
            let mut events = network.events();
            loop {
                hybrid.offer_to_all(&network).await;
                match tokio::time::timeout(AGAIN, events.recv()).await {
                    Ok(Err(RecvError::Closed)) => return,
                    _ => tokio::time::sleep(GATHER).await,
                }
                events = events.resubscribe();
            }
        });
        let hybrid = self.clone();
        shutdown.spawn_until(async move {
            loop {
                if let Err(error) = hybrid.renew().await {
                    tracing::warn!(%error, "the server's certificate for this machine could not be renewed");
                }
                tokio::time::sleep(RENEW_LOOK).await;
            }
        });
    }

    async fn take_offer(&self, offer: peer::OfferServerRequest) -> Result<bool> {
        let server = self.known_server(&offer.server).await?;
        if self.membership().is_some() {
            return Ok(true);
        }
        if offer.code.is_empty() {
            return Ok(false);
        }
        self.enrol(&server, &offer.code).await.map(|_| true)
    }

    /// The server of the office's records, if it is this one.
    async fn known_server(&self, address: &str) -> Result<CentralServer> {
        let mut views = self.0.office.subscribe();
        let known = views.wait_for(|view| view.server().is_some_and(|s| s.server == address));
        let view = tokio::time::timeout(RECORD_WAIT, known).await.ok().and_then(Result::ok).map(|v| v.clone());
        view.and_then(|v| v.server().cloned()).ok_or_else(|| {
            Error::new(Reason::AccessDenied, "the office's records do not name that server")
                .fix_is("a member that may manage the office attaches it with `atrium office attach`")
        })
    }

    /// Joins the server with this device's key. Joining again after it succeeded does nothing.
    pub(super) async fn enrol(&self, server: &CentralServer, code: &str) -> Result<Membership> {
        let joining = self.0.joining.acquire().await;
        let _joining = joining.map_err(|e| Error::internal("joining the server").caused_by(e))?;
        if let Some(there) = self.0.memory.membership().filter(|m| m.is_of(server)) {
            return Ok((*there).clone());
        }
        let view = self.0.office.view();
        let name = view.member(&view.me()).map_or_else(|| "peer".to_owned(), |m| m.display_name.clone());
        let joined = join_office(&server.server, code, &name, &self.0.key).await?;
        // The code proves who answered; the records say whom the office means.
        if joined.ca_pem.trim() != server.ca_pem.trim() {
            return Err(Error::new(Reason::OfficeProofWrong, "another server answered than the office's records name"));
        }
        let membership = Membership {
            office: joined.office,
            server: server.server.clone(),
            display_name: name,
            device_id: joined.device_id.to_string(),
            ca_pem: joined.ca_pem,
            certificate_pem: joined.certificate_pem,
            certificate_begin_ms: joined.not_before_ms,
            certificate_end_ms: joined.not_after_ms,
        };
        self.remember(membership.clone()).await?;
        tracing::info!(server = server.server, "joined the office's central server");
        Ok(membership)
    }

    async fn remember(&self, membership: Membership) -> Result<()> {
        let memory = self.0.memory.clone();
        tokio::task::spawn_blocking(move || memory.set_membership(membership)).await.map_err(blocking_failed)??;
        self.0.access.forget();
        Ok(())
    }

    pub(super) async fn set_session(&self, session: Option<Session>) -> Result<()> {
        let memory = self.0.memory.clone();
        tokio::task::spawn_blocking(move || memory.set_session(session)).await.map_err(blocking_failed)??;
        self.0.access.forget();
        Ok(())
    }

    /// Offers the server to connected members that have not joined, if this node can make invites; gives the number of
    /// members that have joined by now, this one included.
    pub async fn offer_to_all(&self, members: &dyn Members) -> usize {
        let _round = self.0.offering.lock().await;
        let view = self.0.office.view();
        let server = view.server().cloned();
        let session = self.0.memory.session();
        let (Some(server), Some(session)) = (server, session) else { return 0 };
        if session.ca_pem.trim() != server.ca_pem.trim() {
            return 0;
        }
        let open: Vec<DeviceId> = members
            .devices()
            .into_iter()
            .filter(|d| *d != view.me() && view.is_member(d) && !session.has_joined(d))
            .collect();
        let offers: Vec<BoxFuture<'_, (DeviceId, Result<bool>)>> =
            open.into_iter().map(|device| self.offer_to(&server, &session, members, device)).collect();
        let outcomes: Vec<_> = futures_util::stream::iter(offers).buffer_unordered(OFFERED).collect().await;
        let mut now = Session::clone(&session);
        let mut refused = false;
        for (device, outcome) in outcomes {
            match outcome {
                Ok(true) => drop(now.joined.insert(device.to_string())),
                Ok(false) => {}
                Err(error) => {
                    refused |= error.reason() == Reason::SessionInvalid.word();
                    tracing::debug!(%device, reason = error.reason(), "a member did not join the server");
                }
            }
        }
        let count = view.present().filter(|m| m.device == view.me() || now.has_joined(&m.device)).count();
        // A session that has ended invites nobody any more, and is not worth keeping.
        let next = if refused { None } else { Some(now) };
        if next.as_ref() != Some(&*session)
            && let Err(error) = self.set_session(next).await
        {
            tracing::warn!(%error, "who joined the server could not be noted");
        }
        count
    }

    fn offer_to<'a>(
        &'a self,
        server: &'a CentralServer,
        session: &'a Session,
        members: &'a dyn Members,
        device: DeviceId,
    ) -> BoxFuture<'a, (DeviceId, Result<bool>)> {
        Box::pin(async move {
            let offer = async { self.offer(server, session, members.channel(device).await?).await };
            (device, tokio::time::timeout(OFFER_TIMEOUT, offer).await.unwrap_or_else(|_| Ok(false)))
        })
    }

    async fn offer(&self, server: &CentralServer, session: &Session, channel: NodeChannel) -> Result<bool> {
        let mut client = HybridServiceClient::new(channel);
        let offer = |code: String| peer::OfferServerRequest { server: server.server.clone(), code };
        let asked = client.offer_server(offer(String::new())).await.map_err(|s| from_status(&s))?;
        if asked.into_inner().joined {
            return Ok(true);
        }
        let code = invite(&server_connection(server, &session.token)?, "a member of the office's peers").await?;
        Ok(client.offer_server(offer(code)).await.map_err(|s| from_status(&s))?.into_inner().joined)
    }

    async fn renew(&self) -> Result<()> {
        let Some(membership) = self.membership() else { return Ok(()) };
        let due = renew_at_ms(membership.certificate_begin_ms, membership.certificate_end_ms);
        if self.0.clock.now_ms() < due {
            return Ok(());
        }
        let device = DeviceCredentials { key: self.0.key.clone(), certificate_pem: membership.certificate_pem.clone() };
        // It may have moved since.
        let server = self.0.access.server()?;
        let options = ConnectOptions::new(&*server.server, &*membership.ca_pem).device(device);
        let connection = OfficeConnection::lazy(&options)?;
        let certificate_request = self.0.key.certificate_request()?.into();
        let request = v1::RenewCertificateRequest { certificate_request };
        let renewed = DeviceServiceClient::new(connection.control()).renew_certificate(request).await;
        let renewed = renewed.map_err(|s| from_status(&s))?.into_inner();
        let fresh = check_membership(&membership.ca_pem, &renewed.certificate_pem, &self.0.key.public_key())?;
        self.remember(Membership {
            certificate_pem: renewed.certificate_pem,
            certificate_begin_ms: fresh.not_before_ms,
            certificate_end_ms: fresh.not_after_ms,
            server: server.server,
            ..(*membership).clone()
        })
        .await
    }
}

pub(super) fn server_connection(server: &CentralServer, token: &str) -> Result<OfficeConnection> {
    OfficeConnection::lazy(&ConnectOptions::new(&*server.server, &*server.ca_pem).token(token))
}

/// A new one-time code of the server's.
pub(super) async fn invite(connection: &OfficeConnection, purpose: &str) -> Result<String> {
    let request = v1::CreateInviteRequest { lifetime_seconds: INVITE_SECONDS, purpose: purpose.to_owned() };
    let made = DeviceServiceClient::new(connection.control()).create_invite(request).await;
    made.map(|m| m.into_inner().code).map_err(|s| {
        let error = from_status(&s);
        match error.kind() {
            Kind::PermissionDenied => error.fix_is("use the session of an administrator of the server"),
            _ => error,
        }
    })
}
