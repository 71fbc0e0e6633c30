//! Connections by device id: TLS with both sides identified, direct or through a relay.
//!
//! ```text
//!              learn(device, address)                         routes (tonic services)
//!   presence ─────────────┐                                         ▲
//!                         ▼                                         │ gate: who calls, may it?
//!   callers ─ link() ─▶ Network ─ dial: all addresses raced ─▶   Endpoint  ◀─ TCP, relayed streams
//!                 Link: control + bulk channels              hyper HTTP/2 over TLS 1.3
//! ```
//!
//! [`Network`] is the calling side and knows all connections of both directions; [`Endpoint`] is the listening side. A
//! connection carries calls one way: who wants to call connects. There is one [`Link`] for each device, made when first
//! asked for or, for members that presence has found, by itself. It has one connection for control calls and a few for
//! bulk data that are made when first used. A node that cannot be reached from here is called over a relayed stream: the
//! bytes go through a third member, or back over the connection that the other node keeps here, as TLS between the two
//! ends.
//!
//! # Who may do what
//! A connection says which key is at the other end, nothing more. What that key may do is asked of [`Admission`] at the
//! handshake, on each call, and twice a second for everything that is open. Members may call everything. A stranger, or a
//! device that was cut off, may ask for health and enrol; its connections have small windows, few streams and a short
//! life, so that it is told why it is refused at little cost. Calls from here go to members only, but for joining
//! ([`Network::dial_stranger`]). A member that has not heard of this node yet is shown the records that make it one
//! ([`NetworkOptions::introduction`]).
//!
//! # How connections end
//! A dead machine is noticed by HTTP/2 pings ([`link::PING_AFTER`] + [`link::PONG_WITHIN`]), one that ends cleanly at once,
//! by the end of its connection. The connection of a device that was cut off ends within [`network::TICK`]. When an address
//! of this machine goes away, the links that used it end at once instead of waiting for pings. Links to members are made
//! again by themselves, after delays that double from half a second to a minute; a new address tries at once.
//!
//! # Bounds
//! | what | bound | at the bound |
//! |---|---|---|
//! | handshakes in progress, a listener | 256, 10 s each | the oldest is dropped |
//! | connections, a listener | 8,192, 2,048 from one address | the new one is closed |
//! | connections of one member | 64 | the new one is closed |
//! | strangers' connections | 64, 8 from one address, 60 s each | the oldest is closed |
//! | a stranger's request | 64 KiB (1 MiB to introduce itself, 8 at a time), 30 s | refused |
//! | devices with known addresses | 4,096, 16 addresses each | the longest unheard goes |
//! | links kept by themselves | 64 | others are made when asked for |
//! | addresses tried for one link | 8 at a time | the next ones follow |
//! | relayed connections through here | settings, 0 unless switched on | refused |

mod admission;
pub mod book;
mod dial;
mod endpoint;
mod gate;
mod identity;
pub mod link;
pub mod network;
mod registry;
mod relay;
#[doc(hidden)]
pub mod testing;

pub use admission::Admission;
pub use book::FoundBy;
pub use dial::Failure;
pub use endpoint::{Endpoint, EndpointLimits, Serving};
pub use identity::{NodeIdentity, Way};
pub use link::{Link, NodeChannel};
pub use network::{Introduction, LinkEvent, Network, NetworkOptions, ProbeAnswer, Prober, WhyDown};
pub use relay::{RelayLimits, RelayServer};
