//! `atrium.v1.EnrolmentService`.

use super::session::source;
use crate::app::{App, enrolment};
use proto::v1;
use proto::v1::enrolment_service_server::EnrolmentService;
use tonic::{Request, Response, Status};

/// Admits machines.
#[derive(Clone)]
pub struct Enrolment {
    app: App,
}

impl Enrolment {
    /// The service of this office.
    pub fn new(app: App) -> Self {
        Self { app }
    }
}

#[tonic::async_trait]
impl EnrolmentService for Enrolment {
    async fn begin_enrolment(
        &self,
        request: Request<v1::BeginEnrolmentRequest>,
    ) -> Result<Response<v1::BeginEnrolmentResponse>, Status> {
        let (source, request) = (source(&request), request.into_inner());
        let begun = enrolment::begin(&self.app, &request.nameplate, &request.spake_message, source).await?;
        Ok(Response::new(v1::BeginEnrolmentResponse {
            exchange_id: begun.exchange_id,
            spake_message: begun.spake_message.into(),
        }))
    }

    async fn finish_enrolment(
        &self,
        request: Request<v1::FinishEnrolmentRequest>,
    ) -> Result<Response<v1::FinishEnrolmentResponse>, Status> {
        let (source, request) = (source(&request), request.into_inner());
        let admitted = enrolment::finish(
            &self.app,
            &request.exchange_id,
            &request.confirmation,
            &request.certificate_request,
            &request.display_name,
            source,
        )
        .await?;
        Ok(Response::new(v1::FinishEnrolmentResponse {
            confirmation: admitted.confirmation.to_vec().into(),
            office: admitted.answer.office,
            ca_pem: admitted.answer.ca_pem,
            certificate_pem: admitted.answer.certificate_pem,
            device_id: admitted.answer.device_id,
        }))
    }
}
