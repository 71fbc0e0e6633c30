//! `atrium.v1.SessionService`.

use super::account::user_message;
use crate::app::caller::Caller;
use crate::app::sessions::{self, Attempt, Password, Session};
use crate::app::{App, accounts};
use common::error::Result;
use common::wire::timestamp_if_known as timestamp;
use proto::v1;
use proto::v1::session_service_server::SessionService;
use std::net::IpAddr;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Signs people in and out.
#[derive(Clone)]
pub struct Sessions {
    app: App,
}

impl Sessions {
    /// The service of this office.
    pub fn new(app: App) -> Self {
        Self { app }
    }

    async fn do_login(&self, request: Request<v1::LoginRequest>) -> Result<v1::LoginResponse> {
        let (source, device) = (source(&request), caller(&request).device);
        let request = request.into_inner();
        let attempt = Attempt {
            user: request.user,
            password: Password::new(request.password),
            purpose: request.purpose,
            lifetime: Duration::from_secs(request.lifetime_seconds),
            source,
            device,
        };
        let login = sessions::login(&self.app, attempt).await?;
        Ok(v1::LoginResponse {
            token: login.token,
            expire_time: timestamp(login.expire_ms),
            user: Some(user_message(login.user)),
        })
    }

    fn do_who_am_i(&self, caller: &Caller) -> Result<v1::WhoAmIResponse> {
        let user = match &caller.user {
            Some(user) => Some(user_message(accounts::get(&self.app, caller, &user.name)?)),
            None => None,
        };
        Ok(v1::WhoAmIResponse {
            user,
            device_id: caller.device.map(|d| d.to_string()).unwrap_or_default(),
            office: self.app.office.name.clone(),
            local_admin: caller.local_admin,
            expire_time: caller.user.as_ref().and_then(|u| timestamp(u.session_expire_ms)),
        })
    }
}

/// Who makes the call, as the authentication layer found out.
pub(super) fn caller<T>(request: &Request<T>) -> Caller {
    request.extensions().get::<Caller>().cloned().unwrap_or_default()
}

/// The address that the call comes from; none on the local socket.
pub(super) fn source<T>(request: &Request<T>) -> Option<IpAddr> {
    request.remote_addr().map(|a| a.ip())
}

fn session_message(session: Session) -> v1::Session {
    v1::Session {
        id: session.id.to_string(),
        user: session.user,
        purpose: session.purpose,
        create_time: timestamp(session.create_ms),
        expire_time: timestamp(session.expire_ms),
        device_id: session.device,
    }
}

#[tonic::async_trait]
impl SessionService for Sessions {
    async fn login(&self, request: Request<v1::LoginRequest>) -> Result<Response<v1::LoginResponse>, Status> {
        Ok(Response::new(self.do_login(request).await?))
    }

    async fn logout(&self, request: Request<v1::LogoutRequest>) -> Result<Response<v1::LogoutResponse>, Status> {
        sessions::logout(&self.app, &caller(&request)).await?;
        Ok(Response::new(v1::LogoutResponse {}))
    }

    async fn who_am_i(&self, request: Request<v1::WhoAmIRequest>) -> Result<Response<v1::WhoAmIResponse>, Status> {
        Ok(Response::new(self.do_who_am_i(&caller(&request))?))
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let found = sessions::list(&self.app, &caller(&request), &request.get_ref().user).await?;
        Ok(Response::new(v1::ListSessionsResponse { sessions: found.into_iter().map(session_message).collect() }))
    }

    async fn revoke_session(
        &self,
        request: Request<v1::RevokeSessionRequest>,
    ) -> Result<Response<v1::RevokeSessionResponse>, Status> {
        sessions::revoke(&self.app, &caller(&request), &request.get_ref().id).await?;
        Ok(Response::new(v1::RevokeSessionResponse {}))
    }

    async fn change_password(
        &self,
        request: Request<v1::ChangePasswordRequest>,
    ) -> Result<Response<v1::ChangePasswordResponse>, Status> {
        let (caller, source) = (caller(&request), source(&request));
        let request = request.into_inner();
        let (old, new) = (Password::new(request.old_password), Password::new(request.new_password));
        sessions::change_password(&self.app, &caller, &old, &new, source).await?;
        Ok(Response::new(v1::ChangePasswordResponse {}))
    }
}
