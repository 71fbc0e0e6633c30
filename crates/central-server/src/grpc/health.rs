//! Health as gRPC knows it: NOT_SERVING while the server starts and while it drains.

use super::access::METHODS;
use std::collections::BTreeSet;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::{HealthReporter, HealthService};

/// Tells clients whether the server serves. The empty name is the whole server; each service has its own name as well.
#[derive(Clone, Debug)]
pub struct HealthReport(HealthReporter);

impl HealthReport {
    /// Not serving yet.
    pub async fn new() -> Self {
        let report = Self(HealthReporter::new());
        report.serving(false).await;
        report
    }

    /// Says how it is from now on; open health watches are told.
    pub async fn serving(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in names() {
            self.0.set_service_status(name, status).await;
        }
    }

    /// The service that answers health checks.
    pub fn service(&self) -> HealthServer<impl Health> {
        HealthServer::new(HealthService::from_health_reporter(self.0.clone()))
    }
}

fn names() -> BTreeSet<&'static str> {
    let services = METHODS.iter().filter_map(|m| m.path[1..].split_once('/')).map(|(service, _)| service);
    services.filter(|service| service.starts_with("atrium.")).chain([""]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_has_a_name_and_so_has_the_whole() {
        let names = names();
        assert!(names.contains("") && names.contains("atrium.v1.FileService"));
        assert_eq!(names.len(), 11);
    }
}
