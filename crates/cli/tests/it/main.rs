//! The command line from outside: what it accepts, what it prints, what it promises.

mod agent;
mod contract;
mod devices;
mod discs;
mod fake_peer;
mod parser;
mod prints;
mod process;
mod reference;
mod space;
