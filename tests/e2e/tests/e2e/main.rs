//! Real programs, started, used, killed and compared.

mod agent;
mod files;
mod office;
mod tour;
