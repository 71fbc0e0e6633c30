//! `atrium.agent.v1.AgentService` on the local socket. The caller is whom the kernel says it is.

use crate::cache::ChunkCache;
use crate::fetch::Fetch;
use crate::known::KnownFiles;
use crate::link::{Link, Problem, State};
use crate::membership::{Member, Membership};
use crate::people::{People, Session};
use crate::queue::{Expected, Item, Queue};
use common::clock::SharedClock;
use common::enrol::join_office;
use common::error::{Error, Reason, Result};
use common::model::EntryPath;
use common::status::{from_status, to_status};
use common::tls::PeerIdentity;
use common::wire::timestamp_from_ms;
use proto::agent::v1 as agent;
use proto::agent::v1::agent_service_server::AgentService;
use proto::v1;
use proto::v1::session_service_client::SessionServiceClient;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

/// Messages of a file that wait for the caller.
const WAITING: usize = 8;

/// The agent's parts, as its service sees them.
pub struct Service {
    /// The place in the office.
    pub member: Arc<Member>,
    /// Sessions.
    pub people: Arc<People>,
    /// Connections.
    pub link: Arc<Link>,
    /// Uploads that wait.
    pub queue: Arc<Queue>,
    /// Chunks.
    pub cache: Arc<ChunkCache>,
    /// Manifests.
    pub known: Arc<KnownFiles>,
    /// Time.
    pub clock: SharedClock,
}

fn uid_of<T>(request: &Request<T>) -> Result<u32> {
    peer_of(request)?
        .local_unix
        .map(|c| c.uid)
        .ok_or_else(|| Error::internal("a local call without the peer's credentials"))
}

fn peer_of<T>(request: &Request<T>) -> Result<PeerIdentity> {
    let found = request.extensions().get::<PeerIdentity>().cloned();
    found.ok_or_else(|| Error::internal("a local call without the peer's credentials"))
}

fn reply<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|e| to_status(&e))
}

fn problem(p: Problem) -> agent::AgentProblem {
    agent::AgentProblem { reason: p.reason, message: p.message, why: p.why, fix: p.fix }
}

impl Service {
    fn status(&self, uid: u32) -> agent::GetStatusResponse {
        use agent::get_status_response::Connection;
        let membership = self.member.get().ok();
        let state = self.link.state().borrow().clone();
        let (queued_count, queued_bytes) = self.queue.totals();
        let mut problems = Vec::new();
        let connection = match state {
            State::NotJoined => Connection::NotJoined,
            State::Connecting => Connection::Connecting,
            State::Connected => Connection::Connected,
            State::Lost(p) => {
                problems.push(problem(p));
                Connection::Lost
            }
            State::Revoked(p) => {
                problems.push(problem(p));
                Connection::Revoked
            }
        };
        for item in self.queue.list().into_iter().filter(|i| i.held && i.uid == uid) {
            problems.push(agent::AgentProblem {
                reason: "UPLOAD_HELD".into(),
                message: format!("the upload of {}:{} is held", item.root, item.path),
                why: item.last_error,
                fix: format!("put it elsewhere, or give it up: `atrium queue cancel {}`", item.id),
            });
        }
        agent::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            connection: connection as i32,
            office: membership.as_ref().map(|m| m.office.clone()).unwrap_or_default(),
            server: membership.as_ref().map(|m| m.server.clone()).unwrap_or_default(),
            device_id: self.member.key.device_id().to_string(),
            certificate_expire_time: membership.as_ref().map(|m| timestamp_from_ms(m.certificate_end_ms)),
            queued_count: queued_count as u64,
            queued_bytes,
            cache_bytes: self.cache.used_bytes(),
            cache_limit_bytes: self.cache.limit_bytes(),
            problems,
            user: self.people.get(uid).map(|s| s.user).unwrap_or_default(),
        }
    }

    async fn join(&self, request: Request<agent::JoinRequest>) -> Result<agent::JoinResponse> {
        if !peer_of(&request)?.is_local_admin() {
            return Err(Error::new(Reason::AccessDenied, "only root may let this machine join an office")
                .why_is("the membership is the whole machine's")
                .fix_is("run it as root: `sudo atrium join …`"));
        }
        if self.member.get().is_ok() {
            return Err(Error::new(Reason::AlreadyJoined, "this machine is in an office already"));
        }
        let request = request.into_inner();
        let display_name = match request.display_name.is_empty() {
            true => rustix::system::uname().nodename().to_string_lossy().into_owned(),
            false => request.display_name,
        };
        let joined = join_office(&request.server, &request.code, &display_name, &self.member.key).await?;
        let membership = Membership {
            office: joined.office.clone(),
            server: joined.server,
            display_name,
            device_id: joined.device_id.to_string(),
            ca_pem: joined.ca_pem,
            certificate_pem: joined.certificate_pem,
            certificate_begin_ms: joined.not_before_ms,
            certificate_end_ms: joined.not_after_ms,
        };
        self.member.set(membership)?;
        self.link.reset();
        // The next thing people do is to use it; so it is told when it works, or why not.
        let mut state = self.link.state();
        let settled = state.wait_for(|s| !matches!(s, State::Connecting | State::NotJoined));
        let _ = tokio::time::timeout(std::time::Duration::from_secs(5), settled).await;
        Ok(agent::JoinResponse { office: joined.office, device_id: joined.device_id.to_string() })
    }

    async fn login(&self, request: Request<agent::LoginRequest>) -> Result<agent::LoginResponse> {
        let uid = uid_of(&request)?;
        let request = request.into_inner();
        let membership = self.member.get()?;
        let mut sessions = SessionServiceClient::new(self.link.machine()?.control());
        let asked = v1::LoginRequest {
            user: request.user,
            password: request.password,
            purpose: format!("{}, atrium {}", membership.display_name, env!("CARGO_PKG_VERSION")),
            lifetime_seconds: 0,
        };
        let answer = sessions.login(asked).await.map_err(|s| from_status(&s))?.into_inner();
        let expire_ms = answer.expire_time.as_ref().map_or(0, |t| (t.seconds.max(0) as u64) * 1000);
        let user = answer.user.map(|u| u.name).unwrap_or_default();
        if let Some(old) = self.people.get(uid) {
            self.end_session(&old).await;
        }
        self.people.set(uid, Session { user: user.clone(), token: answer.token, expire_ms })?;
        self.link.forget(uid);
        self.queue.release(uid)?;
        Ok(agent::LoginResponse { user, expire_time: Some(timestamp_from_ms(expire_ms)) })
    }

    async fn logout(&self, uid: u32) -> Result<agent::LogoutResponse> {
        if let Some(session) = self.people.remove(uid)? {
            self.end_session(&session).await;
        }
        self.link.forget(uid);
        Ok(agent::LogoutResponse {})
    }

    /// Tells the server; if it is away, the session ends there by its own time.
    async fn end_session(&self, session: &Session) {
        let Ok(connection) = self.link.machine() else { return };
        let mut sessions = SessionServiceClient::new(connection.control());
        let mut request = Request::new(v1::LogoutRequest {});
        if let Ok(value) = format!("Bearer {}", session.token).parse() {
            request.metadata_mut().insert("authorization", value);
            request.set_timeout(std::time::Duration::from_secs(5));
            let _ = sessions.logout(request).await;
        }
    }

    fn connection(&self, uid: u32) -> Result<agent::GetConnectionResponse> {
        let membership = self.member.get()?;
        let session = self.people.get(uid);
        Ok(agent::GetConnectionResponse {
            server: membership.server.clone(),
            ca_pem: membership.ca_pem.clone(),
            token: session.as_ref().map(|s| s.token.clone()).unwrap_or_default(),
            user: session.map(|s| s.user).unwrap_or_default(),
        })
    }

    async fn queue_upload(&self, request: Request<Streaming<agent::QueueUploadRequest>>) -> Result<Uuid> {
        use agent::queue_upload_request::Part;
        let uid = uid_of(&request)?;
        if self.people.get(uid).is_none() {
            return Err(Error::new(Reason::NotSignedIn, "nobody is signed in as this user on this machine"));
        }
        let mut stream = request.into_inner();
        let header = match stream.message().await.map_err(|s| from_status(&s))?.and_then(|m| m.part) {
            Some(Part::Header(header)) => header,
            _ => return Err(Error::new(Reason::FieldInvalid, "the first message is no header")),
        };
        let path = EntryPath::new(&header.root, &header.path)?;
        if path.segments.is_empty() {
            return Err(Error::new(Reason::RootFixed, "a root cannot be uploaded"));
        }
        let expected = match (header.expect_absent, header.expect_version) {
            (true, _) => Expected::Absent,
            (false, 0) => Expected::Any,
            (false, version) => Expected::Version(version),
        };
        let modify_ms = header.modify_time.as_ref().map_or_else(
            || self.clock.now_ms(),
            |t| (t.seconds.max(0) as u64) * 1000 + (t.nanos.clamp(0, 999_999_999) as u64) / 1_000_000,
        );
        let item = Item {
            id: Uuid::nil(),
            uid,
            root: header.root,
            path: header.path,
            size_bytes: 0,
            modify_ms,
            mode: header.mode & 0o777,
            expected,
            create_ms: self.clock.now_ms(),
            attempts: 0,
            last_error: String::new(),
            held: false,
        };
        // One writer thread; the stream waits for it, so nothing piles up.
        let (sender, mut receiver) = mpsc::channel::<bytes::Bytes>(WAITING);
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let queue = self.queue.clone();
        let size = header.size_bytes;
        let writing = tokio::task::spawn_blocking(move || -> Result<Uuid> {
            let mut incoming = queue.begin(size)?;
            while let Some(data) = receiver.blocking_recv() {
                incoming.write(&data)?;
            }
            // Only a stream that ended well is queued.
            finished.blocking_recv().map_err(|_| Error::new(Reason::Cancelled, "the caller broke off"))?;
            incoming.finish(item)
        });
        while let Some(message) = stream.next().await {
            let part = message.map_err(|s| from_status(&s))?.part;
            let Some(Part::Data(data)) = part else {
                return Err(Error::new(Reason::FieldInvalid, "a later message is no data"));
            };
            if sender.send(data).await.is_err() {
                break;
            }
        }
        let _ = finish.send(());
        drop(sender);
        writing.await.map_err(|e| Error::internal("writing into the queue").caused_by(e))?
    }

    fn queued(&self, uid: u32) -> agent::ListQueueResponse {
        let items = self.queue.list().into_iter().filter(|i| i.uid == uid);
        let items = items.map(|i| agent::list_queue_response::Item {
            id: i.id.to_string(),
            root: i.root,
            path: i.path,
            size_bytes: i.size_bytes,
            create_time: Some(timestamp_from_ms(i.create_ms)),
            attempt_count: i.attempts,
            last_error: i.last_error,
            held: i.held,
        });
        agent::ListQueueResponse { items: items.collect() }
    }

    fn fetch(&self, uid: u32, request: agent::FetchRequest) -> Result<Fetch> {
        EntryPath::new(&request.root, &request.path)?;
        let session = self
            .people
            .get(uid)
            .ok_or_else(|| Error::new(Reason::NotSignedIn, "nobody is signed in as this user on this machine"))?;
        let connection = if request.cache_only { None } else { Some(self.link.person(uid)?) };
        Ok(Fetch {
            cache: self.cache.clone(),
            known: self.known.clone(),
            connection,
            account: session.user,
            root: request.root,
            path: request.path,
        })
    }
}

#[tonic::async_trait]
impl AgentService for Service {
    async fn get_status(
        &self,
        request: Request<agent::GetStatusRequest>,
    ) -> Result<Response<agent::GetStatusResponse>, Status> {
        reply(uid_of(&request).map(|uid| self.status(uid)))
    }

    async fn join(&self, request: Request<agent::JoinRequest>) -> Result<Response<agent::JoinResponse>, Status> {
        reply(self.join(request).await)
    }

    async fn login(&self, request: Request<agent::LoginRequest>) -> Result<Response<agent::LoginResponse>, Status> {
        reply(self.login(request).await)
    }

    async fn logout(&self, request: Request<agent::LogoutRequest>) -> Result<Response<agent::LogoutResponse>, Status> {
        let uid = uid_of(&request).map_err(|e| to_status(&e))?;
        reply(self.logout(uid).await)
    }

    async fn get_connection(
        &self,
        request: Request<agent::GetConnectionRequest>,
    ) -> Result<Response<agent::GetConnectionResponse>, Status> {
        reply(uid_of(&request).and_then(|uid| self.connection(uid)))
    }

    async fn queue_upload(
        &self,
        request: Request<Streaming<agent::QueueUploadRequest>>,
    ) -> Result<Response<agent::QueueUploadResponse>, Status> {
        reply(self.queue_upload(request).await.map(|id| agent::QueueUploadResponse { id: id.to_string() }))
    }

    async fn list_queue(
        &self,
        request: Request<agent::ListQueueRequest>,
    ) -> Result<Response<agent::ListQueueResponse>, Status> {
        reply(uid_of(&request).map(|uid| self.queued(uid)))
    }

    async fn cancel_upload(
        &self,
        request: Request<agent::CancelUploadRequest>,
    ) -> Result<Response<agent::CancelUploadResponse>, Status> {
        let cancelled = uid_of(&request).and_then(|uid| {
            let unknown = |_| Error::new(Reason::QueueItemUnknown, "this is no upload's id");
            let id = Uuid::parse_str(&request.get_ref().id).map_err(unknown)?;
            self.queue.remove(&id, (uid != 0).then_some(uid))
        });
        reply(cancelled.map(|()| agent::CancelUploadResponse {}))
    }

    type FetchStream = ReceiverStream<Result<agent::FetchResponse, Status>>;

    async fn fetch(&self, request: Request<agent::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let uid = uid_of(&request).map_err(|e| to_status(&e))?;
        let fetch = self.fetch(uid, request.into_inner()).map_err(|e| to_status(&e))?;
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            if let Err(error) = fetch.run(&sender).await {
                let _ = sender.send(Err(to_status(&error))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn clear_cache(
        &self,
        request: Request<agent::ClearCacheRequest>,
    ) -> Result<Response<agent::ClearCacheResponse>, Status> {
        let peer = peer_of(&request).map_err(|e| to_status(&e))?;
        if !peer.is_local_admin() {
            return reply(Err(Error::new(Reason::AccessDenied, "only root may empty the machine's cache")));
        }
        let (cache, known) = (self.cache.clone(), self.known.clone());
        let freed = tokio::task::spawn_blocking(move || {
            known.clear();
            cache.clear()
        })
        .await
        .map_err(|e| to_status(&Error::internal("emptying the cache").caused_by(e)))?;
        Ok(Response::new(agent::ClearCacheResponse { freed_bytes: freed }))
    }
}
