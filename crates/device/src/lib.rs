//! Printers, optical drives and disks of a machine, for everybody in the office.
//!
//! The node that a device hangs on is its lock authority and its only door: it grants leases with fencing tokens and
//! checks them on each use. This crate has what such a node needs, and knows no other node, no membership and no gRPC.
//!
//! ```text
//!   lease     who may use it now, decided without IO          audit     each grant and refusal, hash-chained
//!   printer   queue, durable spool, outputs, accounting        ipp       the codec of RFC 8010 and a client
//!   optical   drives, media generations, files, ripping        nbd       the network block device protocol
//!   disk      lent space that expires, mirror places
//! ```
//!
//! Simulated devices (a folder printer, an ISO-file drive with tray and injected errors, a file-backed disk) go through the
//! same code as real ones.

pub mod audit;
pub mod disk;
pub mod ipp;
pub mod lease;
pub mod model;
pub mod nbd;
pub mod optical;
pub mod printer;
