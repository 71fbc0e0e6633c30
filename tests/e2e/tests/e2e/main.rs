//! Real programs, started, used, killed and compared.

mod agent;
mod devices;
mod disk_full;
mod files;
mod hybrid;
mod mirror;
mod office;
mod peers;
mod prints;
mod second_copies;
mod tour;
