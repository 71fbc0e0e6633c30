//! HTTP/2 settings, measured once for all (see `docs/performance.md`).

use super::ServerAddress;
use crate::error::{Error, Result};
use std::time::Duration;
use tonic::transport::{Endpoint, Server};

/// The largest HTTP/2 frame that either side takes: beyond this nothing is gained, and over TLS something is lost.
const MAX_FRAME: u32 = 256 * 1024;
/// How long a connection may be silent before a ping asks whether the other side is still there.
const PING_AFTER: Duration = Duration::from_secs(20);
/// How long the answer may take.
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// Streams of one connection at a time. Bounds memory to windows and messages of so many.
const MAX_STREAMS: u32 = 256;
/// A server ends connections of this age, gently, so that clients pick up new certificates.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// How much the other side may send before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Bytes on one stream.
    pub stream: u32,
    /// Bytes on all streams of a connection.
    pub connection: u32,
}

/// For control calls: they are small.
pub const CONTROL: Windows = Windows { stream: 1024 * 1024, connection: 2 * 1024 * 1024 };
/// For file contents: 200 MB/s at 10 ms delay on each of a client's connections. What a receiver cannot keep up with waits
/// in its memory, so this bounds a server with many clients.
pub const BULK: Windows = Windows { stream: 2 * 1024 * 1024, connection: 4 * 1024 * 1024 };

pub(super) fn endpoint(address: &ServerAddress, windows: Windows) -> Result<Endpoint> {
    let not_made = |e| Error::internal("the connection could not be prepared").caused_by(e);
    let authority = address.to_string();
    // The scheme of the endpoint says that tonic has no part in TLS; the one of the origin is what is sent.
    let origin = format!("https://{authority}").parse().map_err(not_made)?;
    Ok(Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|e| Error::internal("the connection could not be prepared").caused_by(e))?
        .origin(origin)
        .user_agent(concat!("atrium/", env!("CARGO_PKG_VERSION")))
        .map_err(|e| Error::internal("the connection could not be prepared").caused_by(e))?
        .initial_stream_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .max_frame_size(MAX_FRAME)
        .http2_keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PONG_WITHIN)
        .keep_alive_while_idle(true))
}

/// A server with the same settings, for central server and agent. It cannot tell control from bulk connections, so it
/// gives all of them the windows of [`BULK`].
pub fn tuned_server() -> Server {
    Server::builder()
        .initial_stream_window_size(BULK.stream)
        .initial_connection_window_size(BULK.connection)
        .max_frame_size(MAX_FRAME)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(PING_AFTER))
        .http2_keepalive_timeout(Some(PONG_WITHIN))
        .max_connection_age(MAX_AGE)
}
