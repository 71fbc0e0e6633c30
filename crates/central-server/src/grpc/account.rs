//! `atrium.v1.AccountService`.

use super::session::caller;
use crate::app::App;
use crate::app::accounts::{self, NewUser, User, UserChange};
use crate::app::answers::{Once, RequestKey};
use crate::app::caller::Caller;
use crate::app::groups::{self, Group, NewGroup};
use crate::app::sessions::Password;
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::model::Role;
use common::wire::timestamp_if_known as timestamp;
use prost::Message;
use proto::v1;
use proto::v1::account_service_server::AccountService;
use tonic::{Request, Response, Status};

/// Manages users and groups.
#[derive(Clone)]
pub struct Accounts {
    app: App,
}

pub(super) fn user_message(user: User) -> v1::User {
    v1::User {
        name: user.name,
        uid: user.uid.to_string(),
        display_name: user.display_name,
        role: user.role as i32,
        quota_bytes: user.quota_bytes,
        disabled: user.disabled,
        create_time: timestamp(user.create_ms),
        update_time: timestamp(user.update_ms),
        etag: user.etag,
        groups: user.groups,
        used_bytes: user.used_bytes,
    }
}

fn group_message(group: Group) -> v1::Group {
    v1::Group {
        name: group.name,
        uid: group.uid.to_string(),
        display_name: group.display_name,
        members: group.members,
        create_time: timestamp(group.create_ms),
        update_time: timestamp(group.update_ms),
        etag: group.etag,
    }
}

/// A first answer that is given again.
pub(super) fn repeated<M: Message + Default>(bytes: Bytes) -> Result<M> {
    M::decode(bytes).map_err(|e| Error::new(Reason::StoreCorrupt, "a remembered answer could not be read").caused_by(e))
}

fn role(number: i32, default: Option<Role>) -> Result<Role> {
    let bad = || {
        Error::new(Reason::FieldInvalid, "the role is none of guest, member, auditor and admin")
            .with("field", "user.role")
    };
    match (number, default) {
        (0, Some(default)) => Ok(default),
        _ => Role::from_number(number).ok_or_else(bad),
    }
}

fn missing(field: &'static str) -> Error {
    Error::new(Reason::FieldInvalid, format!("{field} is missing")).with("field", field)
}

impl Accounts {
    /// The service of this office.
    pub fn new(app: App) -> Self {
        Self { app }
    }

    async fn do_create_user(&self, caller: Caller, request: v1::CreateUserRequest) -> Result<v1::User> {
        // The password is no part of what is compared under a request id: a stored digest of it could be guessed.
        let compared = v1::CreateUserRequest { password: String::new(), request_id: String::new(), ..request.clone() };
        let key = RequestKey::new(&caller, "CreateUser", &request.request_id, &compared.encode_to_vec())?;
        let user = request.user.ok_or_else(|| missing("user"))?;
        let new = NewUser {
            role: role(user.role, Some(Role::Member))?,
            name: user.name,
            display_name: user.display_name,
            quota_bytes: user.quota_bytes,
            password: Password::new(request.password),
        };
        let once = Once::new(key, |user: &User| user_message(user.clone()).encode_to_vec().into());
        let answer = accounts::create(&self.app, &caller, new, once).await?;
        answer.into(user_message, repeated)
    }

    async fn do_update_user(&self, caller: Caller, request: v1::UpdateUserRequest) -> Result<v1::User> {
        let compared = v1::UpdateUserRequest { password: String::new(), request_id: String::new(), ..request.clone() };
        let key = RequestKey::new(&caller, "UpdateUser", &request.request_id, &compared.encode_to_vec())?;
        let user = request.user.ok_or_else(|| missing("user"))?;
        let mask = request.update_mask.filter(|m| !m.paths.is_empty()).ok_or_else(|| missing("update_mask"))?;
        let password = Password::new(request.password);
        let mut change = UserChange { etag: Some(user.etag).filter(|e| !e.is_empty()), ..UserChange::default() };
        for path in &mask.paths {
            match path.as_str() {
                "display_name" => change.display_name = Some(user.display_name.clone()),
                "role" => change.role = Some(role(user.role, None)?),
                "quota_bytes" => change.quota_bytes = Some(user.quota_bytes),
                "disabled" => change.disabled = Some(user.disabled),
                "password" => change.password = Some(password.clone()),
                _ => {
                    let why = "of a user, display_name, role, quota_bytes, disabled and password can be changed";
                    return Err(Error::new(
                        Reason::FieldInvalid,
                        "the update mask names a field that cannot be changed",
                    )
                    .why_is(why)
                    .with("field", "update_mask"));
                }
            }
        }
        let once = Once::new(key, |user: &User| user_message(user.clone()).encode_to_vec().into());
        let answer = accounts::update(&self.app, &caller, &user.name, change, once).await?;
        answer.into(user_message, repeated)
    }

    async fn do_create_group(&self, caller: Caller, request: v1::CreateGroupRequest) -> Result<v1::Group> {
        let compared = v1::CreateGroupRequest { request_id: String::new(), ..request.clone() };
        let key = RequestKey::new(&caller, "CreateGroup", &request.request_id, &compared.encode_to_vec())?;
        let group = request.group.ok_or_else(|| missing("group"))?;
        let new = NewGroup { name: group.name, display_name: group.display_name, members: group.members };
        let once = Once::new(key, |group: &Group| group_message(group.clone()).encode_to_vec().into());
        groups::create(&self.app, &caller, new, once).await?.into(group_message, repeated)
    }
}

#[tonic::async_trait]
impl AccountService for Accounts {
    async fn get_user(&self, request: Request<v1::GetUserRequest>) -> Result<Response<v1::User>, Status> {
        let user = accounts::get(&self.app, &caller(&request), &request.get_ref().name)?;
        Ok(Response::new(user_message(user)))
    }

    async fn list_users(
        &self,
        request: Request<v1::ListUsersRequest>,
    ) -> Result<Response<v1::ListUsersResponse>, Status> {
        let (caller, request) = (caller(&request), request.into_inner());
        let page = accounts::list(&self.app, &caller, request.page_size, &request.page_token)?;
        Ok(Response::new(v1::ListUsersResponse {
            users: page.users.into_iter().map(user_message).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn create_user(&self, request: Request<v1::CreateUserRequest>) -> Result<Response<v1::User>, Status> {
        Ok(Response::new(self.do_create_user(caller(&request), request.into_inner()).await?))
    }

    async fn update_user(&self, request: Request<v1::UpdateUserRequest>) -> Result<Response<v1::User>, Status> {
        Ok(Response::new(self.do_update_user(caller(&request), request.into_inner()).await?))
    }

    async fn delete_user(
        &self,
        request: Request<v1::DeleteUserRequest>,
    ) -> Result<Response<v1::DeleteUserResponse>, Status> {
        accounts::delete(&self.app, &caller(&request), &request.get_ref().name).await?;
        Ok(Response::new(v1::DeleteUserResponse {}))
    }

    async fn get_group(&self, request: Request<v1::GetGroupRequest>) -> Result<Response<v1::Group>, Status> {
        let group = groups::get(&self.app, &caller(&request), &request.get_ref().name)?;
        Ok(Response::new(group_message(group)))
    }

    async fn list_groups(
        &self,
        request: Request<v1::ListGroupsRequest>,
    ) -> Result<Response<v1::ListGroupsResponse>, Status> {
        let (caller, request) = (caller(&request), request.into_inner());
        let page = groups::list(&self.app, &caller, request.page_size, &request.page_token)?;
        Ok(Response::new(v1::ListGroupsResponse {
            groups: page.groups.into_iter().map(group_message).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn create_group(&self, request: Request<v1::CreateGroupRequest>) -> Result<Response<v1::Group>, Status> {
        Ok(Response::new(self.do_create_group(caller(&request), request.into_inner()).await?))
    }

    async fn update_group(&self, request: Request<v1::UpdateGroupRequest>) -> Result<Response<v1::Group>, Status> {
        let (caller, request) = (caller(&request), request.into_inner());
        let (add, remove) = (request.add_members, request.remove_members);
        let group = groups::update(&self.app, &caller, &request.name, add, remove).await?;
        Ok(Response::new(group_message(group)))
    }

    async fn delete_group(
        &self,
        request: Request<v1::DeleteGroupRequest>,
    ) -> Result<Response<v1::DeleteGroupResponse>, Status> {
        groups::delete(&self.app, &caller(&request), &request.get_ref().name).await?;
        Ok(Response::new(v1::DeleteGroupResponse {}))
    }
}
