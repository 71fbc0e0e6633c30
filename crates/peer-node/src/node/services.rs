//! What other nodes may call.

use crate::catalogue::Catalogue;
use crate::catalogue::grpc::{CatalogueGrpc, by_connection};
use crate::devices::{self, DeviceGrpc, Devices, Side};
use crate::hybrid::Hybrid;
use crate::mailbox::Mailbox;
use crate::net::Network;
use crate::office::{self, Office};
use crate::transfer::Transfers;
use common::error::{Error, Result};
use std::sync::Arc;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;

/// All services; the endpoint lets strangers through to health and enrolment only.
///
/// # Errors
/// INTERNAL if the descriptors of the contract cannot be read, which is a defect.
pub(super) async fn routes(
    office: &Office,
    network: &Network,
    catalogue: &Catalogue,
    transfers: &Transfers,
    mailbox: &Mailbox,
    hybrid: &Hybrid,
    devices_here: &Devices,
) -> Result<Routes> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::PUBLIC_DESCRIPTORS)
        .build_v1()
        .map_err(|e| Error::internal("reflection").caused_by(e))?;
    let enrolment = office::enrolment_service(office.clone());
    let membership = office::membership_service(office.clone(), Arc::new(network.clone()));
    let shares = CatalogueGrpc::service(catalogue.clone(), by_connection);
    let (chunks, parcels, relay) = (transfers.server(), mailbox.service(), network.relay_server().service());
    let server = hybrid.service();
    let hardware = DeviceGrpc::service(devices_here.clone(), Side::Nodes(devices::by_connection));
    let (joining, records, offers) = (name_of(&enrolment), name_of(&membership), name_of(&server));
    let (folders, bytes, letters, detours) = (name_of(&shares), name_of(&chunks), name_of(&parcels), name_of(&relay));
    for name in [joining, records, offers, folders, bytes, letters, detours, name_of(&hardware)] {
        reporter.set_service_status(name, ServingStatus::Serving).await;
    }
    Ok(Routes::new(health)
        .add_service(reflection)
        .add_service(enrolment)
        .add_service(membership)
        .add_service(shares)
        .add_service(chunks)
        .add_service(parcels)
        .add_service(relay)
        .add_service(server)
        .add_service(hardware))
}

fn name_of<S: NamedService>(_: &S) -> &'static str {
    S::NAME
}
