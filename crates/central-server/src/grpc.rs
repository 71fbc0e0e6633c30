//! gRPC handlers: decode, call the application, encode.

pub mod access;
pub mod account;
pub mod admin;
pub mod auth;
pub mod deadline;
pub mod device;
pub mod directory;
pub mod enrolment;
pub mod file;
pub mod health;
pub mod pipeline;
pub mod print;
pub mod request_id;
pub mod session;
pub mod transfer;
pub mod watch;

use crate::serve::Shared;
use crate::settings::Settings;
use common::bulk::{BulkServer, BulkSettings};
use common::error::{Error, Reason, Result};
use health::HealthReport;
use prost::Message;
use proto::v1;
use std::sync::Arc;
use tonic::service::Routes;

/// What is answered from the first moment to the last: health, and reflection unless it is switched off.
///
/// # Errors
/// `INTERNAL` if the descriptors of this build are damaged.
pub fn always(settings: &Settings, health: &HealthReport) -> Result<Routes> {
    let mut routes = Routes::new(health.service());
    if settings.grpc.reflection {
        let damaged = |e| Error::internal("the descriptors of this build are damaged").caused_by(e);
        let descriptors = descriptors()?;
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(&descriptors)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        routes = routes
            .add_service(builder().build_v1().map_err(damaged)?)
            .add_service(builder().build_v1alpha().map_err(damaged)?);
    }
    Ok(routes.prepare())
}

/// Descriptors of the services that are served here, and of what they import.
fn descriptors() -> Result<Vec<u8>> {
    let mut set = prost_types::FileDescriptorSet::decode(proto::PUBLIC_DESCRIPTORS)
        .map_err(|e| Error::internal("the descriptors of this build are damaged").caused_by(e))?;
    set.file.retain(|file| file.package() == "atrium.v1" || file.package().starts_with("google."));
    Ok(set.encode_to_vec())
}

/// Largest commit, whatever `grpc.max_message` is: 262,144 chunks of at most 41 bytes, and 1,000 files with the longest
/// paths.
const COMMIT_MAX: usize = 16 << 20;

/// All services of the contract.
pub fn routes(shared: &Shared) -> Routes {
    use v1::account_service_server::AccountServiceServer;
    use v1::admin_service_server::AdminServiceServer;
    use v1::device_service_server::DeviceServiceServer;
    use v1::directory_service_server::DirectoryServiceServer;
    use v1::enrolment_service_server::EnrolmentServiceServer;
    use v1::file_service_server::FileServiceServer;
    use v1::print_service_server::PrintServiceServer;
    use v1::session_service_server::SessionServiceServer;
    use v1::watch_service_server::WatchServiceServer;
    let app = || shared.app.clone();
    let max = shared.app.settings.grpc.max_message.as_usize();
    let bulk = BulkSettings { idle: shared.app.settings.files.transfer_idle.get(), ..BulkSettings::default() };
    let transfer = BulkServer::new(Arc::new(transfer::Transfer::new(app())), bulk);
    Routes::new(AdminServiceServer::new(admin::Admin::new(shared.clone())).max_decoding_message_size(max))
        .add_service(SessionServiceServer::new(session::Sessions::new(app())).max_decoding_message_size(max))
        .add_service(AccountServiceServer::new(account::Accounts::new(app())).max_decoding_message_size(max))
        .add_service(EnrolmentServiceServer::new(enrolment::Enrolment::new(app())).max_decoding_message_size(max))
        .add_service(DeviceServiceServer::new(device::Devices::new(app())).max_decoding_message_size(max))
        .add_service(DirectoryServiceServer::new(directory::Directories::new(app())).max_decoding_message_size(max))
        .add_service(PrintServiceServer::new(print::Print::new(app())).max_decoding_message_size(max))
        .add_service(FileServiceServer::new(file::Files::new(app())).max_decoding_message_size(max.max(COMMIT_MAX)))
        .add_service(
            WatchServiceServer::new(watch::Watch::new(app(), shared.app.shutdown.clone()))
                .max_decoding_message_size(max),
        )
        .add_service(transfer)
        .prepare()
}

/// What an open stream ends with when the server stops.
pub fn shutting_down() -> Error {
    Error::new(Reason::ShuttingDown, "the server is shutting down")
}
