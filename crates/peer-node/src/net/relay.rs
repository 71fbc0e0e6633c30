//! Passing connections on between members that cannot reach each other, and being reached that way.
//!
//! Every node keeps a `Listen` call open at each neighbour. Whoever wants to reach a node asks a common neighbour to
//! `Connect` to it; the neighbour tells the listener, which takes the connection by `Accept`. The bytes are TLS between
//! the two ends: the relay sees ciphertext and lengths. A neighbour that cannot be reached from here, but listens here,
//! is called the same way without a third one.
//!
//! Passing on for others is off unless the settings allow it, and bounded there in number and rate. A pipe holds at most
//! 2 × 4 messages of 256 KiB; a sender that is faster than its receiver waits.

mod client;
mod hub;
mod server;
mod stream;

pub(super) use client::{connect_through, listen_at};
pub(super) use hub::Hub;
pub use hub::RelayLimits;
pub use server::RelayServer;
pub(super) use stream::RelayStream;

/// Largest piece of a relayed connection in one message.
const MAX_DATA: usize = 256 * 1024;
/// Largest message, with what is around the data.
const MAX_MESSAGE: usize = MAX_DATA + 1024;
/// Messages that wait in one direction of a pipe.
const QUEUE: usize = 4;
