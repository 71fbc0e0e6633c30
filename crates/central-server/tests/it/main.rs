//! Tests of the central server as a whole, one module per resource.

mod access;
mod accounts;
mod audit;
mod backup;
mod devices;
mod enrolment;
mod fixture;
mod frame;
mod membership;
mod server;
mod sessions;
