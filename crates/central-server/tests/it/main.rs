//! Tests of the central server as a whole, one module per resource.

mod access;
mod accounts;
mod audit;
mod backup;
mod commits;
mod desk;
mod devices;
mod directories;
mod enrolment;
mod files;
mod fixture;
mod frame;
mod history;
mod hostile;
mod limits;
mod membership;
mod model;
mod print;
mod print_pull;
mod print_service;
mod program;
mod server;
mod sessions;
mod tickets;
mod upkeep;
