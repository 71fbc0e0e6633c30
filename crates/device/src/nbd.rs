//! The network block device protocol: a server, a small client, and what stands behind an export.
//!
//! Written after the protocol document of the NBD project (`doc/proto.md`): fixed newstyle negotiation, `GO`, `INFO`,
//! `LIST`, `STARTTLS`, structured replies, the `base:allocation` context. The old style, extended headers and
//! compression are left out; a client that asks for them is told so and may go on.
//!
//! ```text
//!   source     BlockSource: what an export reads from (a drive, a file, something remote) and writes to
//!   wire       numbers and headers of the protocol; pure
//!   options    one option of a client, decoded and answered; pure
//!   server     connections: negotiation with a deadline, requests in parallel with bounds
//!   client     one connection to a server, used for ripping and as a BlockSource
//!   listen     Unix sockets that survive a crash of whoever had them before
//!   file       an image file as a BlockSource
//! ```
//!
//! What a client gets for bad input: unknown client flags, a wrong magic number, options or writes longer than the
//! limits end the connection; unknown options `ERR_UNSUP`; unknown exports `ERR_UNKNOWN`; reads past the end, unknown
//! commands and flags `EINVAL`; writes to a read-only export `EPERM`; silence in the negotiation ends it at a deadline.

pub mod client;
pub mod file;
pub mod listen;
pub mod options;
pub mod server;
pub mod source;
pub mod wire;

pub use client::Client;
pub use file::FileSource;
pub use server::{Export, ExportEntry, Exports, Server, ServerConfig, Tls};
pub use source::{BlockSource, Extent};
