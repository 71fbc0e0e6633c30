//! `atrium.v1.DirectoryService`.

use super::file::convert::{self, invalid, timestamp};
use super::file::{close, key, open};
use crate::app::answers::Once;
use crate::app::caller::Caller;
use crate::app::directories::{self, Directory, NewDirectory, PrincipalName};
use crate::app::{App, records};
use bytes::Bytes;
use common::error::{Error, Reason, Result};
use common::model::{Right, RootName};
use prost::Message;
use proto::v1;
use proto::v1::directory_service_server::DirectoryService;
use tonic::{Request, Response, Status};

/// Serves roots and their rights.
#[derive(Clone)]
pub struct Directories {
    app: App,
}

impl Directories {
    /// Serves this office's roots.
    pub fn new(app: App) -> Self {
        Self { app }
    }
}

/// Longest name of a user or group in a request; longer ones exist nowhere.
const MAX_PRINCIPAL: usize = 256;

/// Whom a message names.
pub(super) fn principal(principal: Option<v1::Principal>) -> Result<PrincipalName> {
    use v1::principal::Kind;
    let kind = principal.and_then(|p| p.kind);
    let named = |name: String, field: &str| match name.len() {
        1..=MAX_PRINCIPAL => Ok(name),
        _ => Err(invalid(field, format!("the {field}'s name is empty or too long"))),
    };
    match kind {
        Some(Kind::User(name)) => Ok(PrincipalName::User(named(name, "user")?)),
        Some(Kind::Group(name)) => Ok(PrincipalName::Group(named(name, "group")?)),
        Some(Kind::Device(id)) => Ok(PrincipalName::Device(named(id, "device")?)),
        Some(Kind::Everyone(true)) => Ok(PrincipalName::Everyone),
        Some(Kind::Everyone(false)) | None => Err(invalid("principal", "it is not said for whom the grant is")),
    }
}

fn encode_principal(principal: &PrincipalName) -> v1::Principal {
    use v1::principal::Kind;
    let kind = match principal {
        PrincipalName::User(name) => Kind::User(name.clone()),
        PrincipalName::Group(name) => Kind::Group(name.clone()),
        PrincipalName::Device(id) => Kind::Device(id.clone()),
        PrincipalName::Everyone => Kind::Everyone(true),
    };
    v1::Principal { kind: Some(kind) }
}

/// A rule out of a message.
pub(super) fn grant(grant: Option<v1::Grant>) -> Result<(PrincipalName, Right)> {
    let grant = grant.ok_or_else(|| invalid("grant", "the grant is not set"))?;
    let right = Right::from_number(grant.right)
        .ok_or_else(|| invalid("right", "the right is not one of see, read, write, manage"))?;
    Ok((principal(grant.principal)?, right))
}

/// Rules as messages.
pub(super) fn encode_grants(grants: &[(PrincipalName, Right)]) -> Vec<v1::Grant> {
    grants.iter().map(|(p, r)| v1::Grant { principal: Some(encode_principal(p)), right: *r as i32 }).collect()
}

fn encode(directory: &Directory) -> v1::Directory {
    let root = &directory.root;
    v1::Directory {
        name: root.name.clone(),
        uid: root.id.to_string(),
        grants: encode_grants(&directory.grants),
        quota_bytes: root.quota_bytes,
        used_bytes: directory.usage.used_bytes,
        entry_count: directory.usage.entry_count,
        my_right: directory.my_right as i32,
        create_time: Some(timestamp(root.create_ms)),
        etag: root.etag(),
        case_sensitive: root.case_sensitive,
    }
}

impl Directories {
    async fn create(&self, caller: Caller, request: v1::CreateDirectoryRequest) -> Result<v1::Directory> {
        let key = key(&caller, "CreateDirectory", &request.request_id, &request)?;
        let once = Once::new(key, |d: &Directory| Bytes::from(encode(d).encode_to_vec()));
        let RootName::Public(name) = convert::root(&request.name, "name")? else {
            return Err(Error::new(Reason::FieldInvalid, "only public directories are made this way")
                .fix_is("private directories come with their users: `atrium admin users add`")
                .with("field", "name"));
        };
        if request.grants.len() > directories::MAX_GRANTS {
            return Err(invalid("grants", format!("a directory takes {} grants", directories::MAX_GRANTS)));
        }
        let new = NewDirectory {
            name,
            grants: request.grants.into_iter().map(|g| grant(Some(g))).collect::<Result<_>>()?,
            quota_bytes: request.quota_bytes,
            case_sensitive: request.case_sensitive,
        };
        directories::create(&self.app, &caller, new, once).await?.into(|d| encode(&d), records::decode)
    }

    async fn set_quota(&self, caller: Caller, request: v1::UpdateDirectoryRequest) -> Result<v1::Directory> {
        let name = convert::root(&request.name, "name")?;
        Ok(encode(&directories::set_quota(&self.app, &caller, name, request.quota_bytes).await?))
    }

    async fn delete(&self, caller: Caller, request: v1::DeleteDirectoryRequest) -> Result<v1::DeleteDirectoryResponse> {
        let name = convert::root(&request.name, "name")?;
        directories::delete(&self.app, &caller, name, request.force).await?;
        Ok(v1::DeleteDirectoryResponse {})
    }

    async fn grant(&self, caller: Caller, request: v1::GrantRightRequest) -> Result<v1::Directory> {
        let name = convert::root(&request.name, "name")?;
        let (principal, right) = grant(request.grant)?;
        Ok(encode(&directories::grant(&self.app, &caller, name, principal, right).await?))
    }

    async fn revoke(&self, caller: Caller, request: v1::RevokeRightRequest) -> Result<v1::Directory> {
        let name = convert::root(&request.name, "name")?;
        let principal = principal(request.principal)?;
        Ok(encode(&directories::revoke(&self.app, &caller, name, principal).await?))
    }

    fn explain(&self, caller: &Caller, request: &v1::ExplainRightRequest) -> Result<v1::ExplainRightResponse> {
        let name = convert::root(&request.name, "name")?;
        if request.user.len() > MAX_PRINCIPAL {
            return Err(invalid("user", "the user's name is too long"));
        }
        let found = directories::explain(&self.app, caller, &name, &request.user)?;
        Ok(v1::ExplainRightResponse {
            right: found.right.map_or(0, |r| r as i32),
            rule: found.rule,
            considered: found.considered,
        })
    }
}

#[tonic::async_trait]
impl DirectoryService for Directories {
    async fn list_directories(
        &self,
        request: Request<v1::ListDirectoriesRequest>,
    ) -> Result<Response<v1::ListDirectoriesResponse>, Status> {
        let (caller, request) = open(request);
        let page = directories::list(&self.app, &caller, request.page_size, &request.page_token);
        close(page.map(|(found, next_page_token)| v1::ListDirectoriesResponse {
            directories: found.iter().map(encode).collect(),
            next_page_token,
        }))
    }

    async fn get_directory(
        &self,
        request: Request<v1::GetDirectoryRequest>,
    ) -> Result<Response<v1::Directory>, Status> {
        let (caller, request) = open(request);
        let name = convert::root(&request.name, "name");
        close(name.and_then(|name| directories::get(&self.app, &caller, &name)).map(|d| encode(&d)))
    }

    async fn create_directory(
        &self,
        request: Request<v1::CreateDirectoryRequest>,
    ) -> Result<Response<v1::Directory>, Status> {
        let (caller, request) = open(request);
        close(self.create(caller, request).await)
    }

    async fn update_directory(
        &self,
        request: Request<v1::UpdateDirectoryRequest>,
    ) -> Result<Response<v1::Directory>, Status> {
        let (caller, request) = open(request);
        close(self.set_quota(caller, request).await)
    }

    async fn delete_directory(
        &self,
        request: Request<v1::DeleteDirectoryRequest>,
    ) -> Result<Response<v1::DeleteDirectoryResponse>, Status> {
        let (caller, request) = open(request);
        close(self.delete(caller, request).await)
    }

    async fn grant_right(&self, request: Request<v1::GrantRightRequest>) -> Result<Response<v1::Directory>, Status> {
        let (caller, request) = open(request);
        close(self.grant(caller, request).await)
    }

    async fn revoke_right(&self, request: Request<v1::RevokeRightRequest>) -> Result<Response<v1::Directory>, Status> {
        let (caller, request) = open(request);
        close(self.revoke(caller, request).await)
    }

    async fn explain_right(
        &self,
        request: Request<v1::ExplainRightRequest>,
    ) -> Result<Response<v1::ExplainRightResponse>, Status> {
        let (caller, request) = open(request);
        close(self.explain(&caller, &request))
    }
}
