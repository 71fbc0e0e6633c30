//! The Internet Printing Protocol: values, the codec of RFC 8010, and a client.
//!
//! The codec is ours because everything that speaks it listens in the local network, to anybody: it works in one pass
//! without recursion, in time linear in the input, and with limits that are checked before memory is taken for a value
//! ([`codec::MAX_DEPTH`], [`codec::MAX_ATTRIBUTES`], [`codec::MAX_VALUE`], [`codec::MAX_VALUES`]).
//!
//! ```text
//!   value    Value, Attribute, Group, Message        codec    bytes to messages and back, and where the attributes end
//!   codes    operations, status codes, tags          client   requests to another printer or to CUPS, over HTTP
//!   trust    which certificate of a printer is believed
//! ```

pub mod client;
pub mod codec;
pub mod codes;
pub mod trust;
pub mod value;

pub use client::{Client, Endpoint};
pub use codec::{DecodeError, Scanner, decode, encode};
pub use codes::{Operation, Status, group};
pub use trust::Trust;
pub use value::{Attribute, DateTime, Group, Message, Value};
