//! `atrium.v1.DeviceService`.

use super::session::caller;
use crate::app::devices::{self, Device};
use crate::app::{App, enrolment};
use common::wire::timestamp_if_known as timestamp;
use proto::v1;
use proto::v1::device_service_server::DeviceService;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Manages machines and invites.
#[derive(Clone)]
pub struct Devices {
    app: App,
}

impl Devices {
    /// The service of this office.
    pub fn new(app: App) -> Self {
        Self { app }
    }
}

fn device_message(device: Device) -> v1::Device {
    v1::Device {
        id: device.id,
        display_name: device.display_name,
        create_time: timestamp(device.create_ms),
        certificate_expire_time: timestamp(device.certificate_expire_ms),
        last_seen_time: timestamp(device.last_seen_ms),
        revoked: device.revoked,
        address: device.address,
    }
}

#[tonic::async_trait]
impl DeviceService for Devices {
    async fn create_invite(
        &self,
        request: Request<v1::CreateInviteRequest>,
    ) -> Result<Response<v1::CreateInviteResponse>, Status> {
        let (caller, request) = (caller(&request), request.into_inner());
        let lifetime = Duration::from_secs(request.lifetime_seconds);
        let made = enrolment::invite(&self.app, &caller, lifetime, &request.purpose).await?;
        Ok(Response::new(v1::CreateInviteResponse {
            code: made.code,
            nameplate: made.nameplate,
            expire_time: timestamp(made.expire_ms),
        }))
    }

    async fn list_invites(
        &self,
        request: Request<v1::ListInvitesRequest>,
    ) -> Result<Response<v1::ListInvitesResponse>, Status> {
        let found = enrolment::invites(&self.app, &caller(&request)).await?;
        let invites = found.into_iter().map(|invite| v1::list_invites_response::Invite {
            nameplate: invite.nameplate,
            purpose: invite.purpose,
            expire_time: timestamp(invite.expire_ms),
            creator: invite.creator,
        });
        Ok(Response::new(v1::ListInvitesResponse { invites: invites.collect() }))
    }

    async fn delete_invite(
        &self,
        request: Request<v1::DeleteInviteRequest>,
    ) -> Result<Response<v1::DeleteInviteResponse>, Status> {
        enrolment::take_back(&self.app, &caller(&request), &request.get_ref().nameplate).await?;
        Ok(Response::new(v1::DeleteInviteResponse {}))
    }

    async fn list_devices(
        &self,
        request: Request<v1::ListDevicesRequest>,
    ) -> Result<Response<v1::ListDevicesResponse>, Status> {
        let (caller, request) = (caller(&request), request.into_inner());
        let page = devices::list(&self.app, &caller, request.page_size, &request.page_token).await?;
        Ok(Response::new(v1::ListDevicesResponse {
            devices: page.devices.into_iter().map(device_message).collect(),
            next_page_token: page.next_page_token,
        }))
    }

    async fn revoke_device(&self, request: Request<v1::RevokeDeviceRequest>) -> Result<Response<v1::Device>, Status> {
        let device = devices::revoke(&self.app, &caller(&request), &request.get_ref().id).await?;
        Ok(Response::new(device_message(device)))
    }

    async fn renew_certificate(
        &self,
        request: Request<v1::RenewCertificateRequest>,
    ) -> Result<Response<v1::RenewCertificateResponse>, Status> {
        let renewed = devices::renew(&self.app, &caller(&request), &request.get_ref().certificate_request).await?;
        Ok(Response::new(v1::RenewCertificateResponse {
            certificate_pem: renewed.certificate_pem,
            ca_pem: renewed.ca_pem,
        }))
    }
}
