//! What every call goes through: who calls, may it, how much may it send.

use super::admission::Admission;
use super::identity::NodeIdentity;
use bytes::Bytes;
use common::error::{Error, Reason};
use common::status::to_status;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body::Body as HttpBody;
use http_body_util::Limited;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

/// Says in every answer what the caller counts as: `member`, `stranger` or `revoked`.
pub(super) const STANDING: HeaderName = HeaderName::from_static("x-atrium-standing");
/// Value of [`STANDING`] for members.
pub(super) const MEMBER: HeaderValue = HeaderValue::from_static("member");
const STRANGER: HeaderValue = HeaderValue::from_static("stranger");
const REVOKED: HeaderValue = HeaderValue::from_static("revoked");

/// What a stranger may send in one call: an enrolment's messages have a few hundred bytes.
const STRANGERS_BODY: usize = 64 * 1024;
/// A member that is not known yet shows the records that make it one: 1 MiB and what is around it.
const INTRODUCTION: usize = 1024 * 1024 + 16 * 1024;
/// Introductions at a time.
const INTRODUCTIONS: usize = 8;
/// Their method.
const INTRODUCE: &str = "/atrium.peer.v1.EnrolmentService/Introduce";
/// How long a stranger's call may take.
const STRANGERS_TIME: Duration = Duration::from_secs(30);
/// Services for everyone.
const FOR_ALL: [&str; 2] = ["/atrium.peer.v1.EnrolmentService/", "/grpc.health.v1.Health/Check"];

/// Carries calls to the services of those who may make them.
#[derive(Clone)]
pub(super) struct Gate {
    admission: Arc<dyn Admission>,
    routes: Routes,
    introductions: Arc<Semaphore>,
}

impl Gate {
    pub(super) fn new(admission: Arc<dyn Admission>, routes: Routes) -> Self {
        Self { admission, routes, introductions: Arc::new(Semaphore::new(INTRODUCTIONS)) }
    }

    /// Answers a call. Whatever goes wrong is in the answer.
    pub(super) async fn call<B>(&self, mut identity: NodeIdentity, mut request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        identity.member = self.admission.is_member(&identity.device);
        request.extensions_mut().insert(identity);
        if identity.member {
            return stand(self.pass(request).await, MEMBER);
        }
        let revoked = self.admission.is_revoked(&identity.device);
        let standing = if revoked { REVOKED } else { STRANGER };
        if !FOR_ALL.iter().any(|open| request.uri().path().starts_with(open)) {
            return stand(refusal(revoked), standing);
        }
        let introduces = request.uri().path() == INTRODUCE;
        let _place = match introduces.then(|| self.introductions.try_acquire()) {
            None => None,
            Some(Ok(place)) => Some(place),
            Some(Err(_)) => return stand(overloaded(), standing),
        };
        let limit = if introduces { INTRODUCTION } else { STRANGERS_BODY };
        let request = request.map(|body| Body::new(Limited::new(body, limit)));
        let answer = match tokio::time::timeout(STRANGERS_TIME, self.pass(request)).await {
            Ok(answer) => answer,
            Err(_) => to_status(&Error::new(Reason::DeadlineExceeded, "the call took too long")).into_http(),
        };
        stand(answer, standing)
    }

    async fn pass<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.routes.clone().call(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        }
    }
}

fn overloaded() -> Response<Body> {
    let error = Error::new(Reason::Overloaded, "many machines introduce themselves at the moment");
    to_status(&error.retry_after(Duration::from_secs(1))).into_http()
}

fn refusal(revoked: bool) -> Response<Body> {
    let error = if revoked {
        Error::new(Reason::DeviceRevoked, "this machine was cut off from the office")
    } else {
        Error::new(Reason::NotAMember, "this machine is not a member of the office, or the other one does not know yet")
    };
    to_status(&error).into_http()
}

fn stand(mut answer: Response<Body>, standing: HeaderValue) -> Response<Body> {
    answer.headers_mut().insert(STANDING, standing);
    answer
}
