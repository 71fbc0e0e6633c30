//! Verbs of printers, drives and disks: they ask this machine's own peer, which asks the machine that a device hangs on.

mod child;
mod convert;
pub(super) mod disc;
pub(super) mod files;
pub(super) mod jobs;
pub(super) mod lease;
pub(super) mod list;
mod mirror;
mod objects;
mod part;
pub(super) mod print;
pub(super) mod share;
pub(super) mod space;
mod upload;

use super::{Context, call};
use crate::output::format::{duration, safe};
use crate::peer::Peer;
use crate::progress::Meter;
use common::error::{Error, Reason, Result};
use common::retry::RetryPolicy;
use proto::peer::v1 as wire;
use std::future::Future;

/// All devices that the person may see, and machines that did not answer.
async fn all(peer: &Peer, kind: wire::DeviceKind) -> Result<wire::ListAllDevicesResponse> {
    let request = wire::ListAllDevicesRequest { kind: kind as i32, below: String::new() };
    call(peer.local_devices().list_all_devices(request)).await
}

/// A fresh id under which a device's machine recognizes a repeated wish.
fn wish_id() -> bytes::Bytes {
    uuid::Uuid::new_v4().as_bytes().to_vec().into()
}

/// The text of a UUID of the contract; hexadecimal digits of anything else.
fn uuid_text(id: &[u8]) -> String {
    uuid::Uuid::from_slice(id).map_or_else(|_| crate::output::format::hex(id), |u| u.to_string())
}

/// The beginning of a text, at most so many bytes, cut between two characters.
fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

/// Does it again, after growing delays, while the other side is away for now. Says so.
async fn patiently<T, F: Future<Output = Result<T>>>(meter: &Meter, mut operation: impl FnMut() -> F) -> Result<T> {
    let mut delays = RetryPolicy::INTERACTIVE.delays();
    loop {
        let error = match operation().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        // Paper and plugs take longer than anybody waits at a prompt.
        let delay = match error.is(Reason::PrinterUnready) || error.is(Reason::DeviceAway) || is_hopeless(&error) {
            true => None,
            false => delays.after(&error),
        };
        let Some(delay) = delay else { return Err(error) };
        meter.say(&format!("{}; trying again in {}", safe(error.message()), duration(delay)));
        tokio::time::sleep(delay).await;
    }
}

/// A call that never reached anybody: there is no peer to wait for.
fn is_hopeless(error: &Error) -> bool {
    error.detail(NOTHING_SENT).is_some()
}

/// Detail of errors of calls of which nobody has taken a byte.
const NOTHING_SENT: &str = "nothing-sent";

/// What a stream of answers ended without.
fn broke_off(what: &str, fix: &str) -> Error {
    Error::new(Reason::ShuttingDown, format!("the peer stopped telling about {what}"))
        .why_is("it was stopped or restarted")
        .fix_is(fix)
}
