//! The command line from outside: what it accepts, what it prints, what it promises.

mod agent;
mod contract;
mod devices;
mod parser;
mod process;
mod reference;
