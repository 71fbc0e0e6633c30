//! Real programs, started, used, killed and compared.

mod agent;
mod disk_full;
mod files;
mod hybrid;
mod office;
mod peers;
mod tour;
