//! Who makes a call, from its connection and its headers; and what becomes of open streams when that changes.

use super::access::{self, Method};
use crate::app::App;
use crate::app::caller::Caller;
use crate::app::{devices, sessions};
use common::error::{Error, Kind, Reason, Result};
use common::model::DeviceId;
use common::tls::PeerIdentity;
use http::{HeaderMap, header};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpConnectInfo;

/// Longest bearer token that is looked at; ours have 43 characters.
const MAX_TOKEN: usize = 256;

/// The other end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// From the client certificate, if there was one.
    pub device: Option<DeviceId>,
    /// From a client certificate whose time is over.
    pub expired_device: Option<DeviceId>,
    /// On the administration socket, as root or as the server's own user.
    pub local_admin: bool,
    /// Both addresses, for `Request::remote_addr`.
    pub connect_info: Option<TcpConnectInfo>,
}

impl Peer {
    /// The other end, as the listener found it.
    pub fn of(identity: &PeerIdentity) -> Self {
        let info = identity.remote_addr.map(|addr| TcpConnectInfo { local_addr: None, remote_addr: Some(addr) });
        Self {
            device: identity.device,
            expired_device: identity.expired_device,
            local_admin: identity.is_local_admin(),
            connect_info: info,
        }
    }
}

/// Finds out who makes a call.
///
/// # Errors
/// `SESSION_INVALID` for a token that does not count, `DEVICE_REVOKED` for a device that was cut off.
pub fn identify(app: &App, peer: &Peer, method: &Method, headers: &HeaderMap, request_id: Arc<str>) -> Result<Caller> {
    // An expired certificate still names its device where it is about to be renewed, and nowhere else.
    let expired = peer.expired_device.filter(|_| method.path == access::RENEW);
    let device = peer.device.or(expired);
    if let Some(device) = &device
        && !devices::is_allowed(app, device)?
    {
        return Err(Error::new(Reason::DeviceRevoked, "this machine was cut off from the office"));
    }
    let user = match bearer(headers)? {
        Some(token) => Some(sessions::authenticate(app, token)?),
        None => None,
    };
    Ok(Caller { user, device, ..anonymous(peer, request_id) })
}

/// The caller without its user.
pub fn anonymous(peer: &Peer, request_id: Arc<str>) -> Caller {
    Caller { user: None, device: peer.device, local_admin: peer.local_admin, request_id }
}

/// The token of "authorization: Bearer TOKEN".
fn bearer(headers: &HeaderMap) -> Result<Option<&str>> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let invalid = || Error::new(Reason::SessionInvalid, "the authorization header holds no session token");
    let text = value.to_str().map_err(|_| invalid())?;
    let (scheme, token) = text.split_once(' ').ok_or_else(invalid)?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.len() > MAX_TOKEN {
        return Err(invalid());
    }
    Ok(Some(token))
}

/// Streams that are open and whose they are. At most as many as calls are let in.
#[derive(Clone, Debug, Default)]
pub struct OpenStreams(Arc<Mutex<Streams>>);

#[derive(Debug, Default)]
struct Streams {
    next: u64,
    open: HashMap<u64, OpenStream>,
}

#[derive(Clone, Debug)]
struct OpenStream {
    method: &'static str,
    caller: Caller,
    cut: CancellationToken,
    why: Arc<OnceLock<Error>>,
}

/// Takes the stream off the list when dropped.
#[derive(Debug)]
pub struct StreamGuard {
    streams: OpenStreams,
    number: u64,
    why: Arc<OnceLock<Error>>,
}

impl OpenStreams {
    /// Puts a stream on the list. `cut` ends it.
    pub fn register(&self, method: &'static str, caller: &Caller, cut: CancellationToken) -> StreamGuard {
        let why = Arc::new(OnceLock::new());
        let mut streams = self.0.lock();
        let number = streams.next;
        streams.next += 1;
        let stream = OpenStream { method, caller: caller.clone(), cut, why: why.clone() };
        streams.open.insert(number, stream);
        StreamGuard { streams: self.clone(), number, why }
    }

    /// How many streams are open.
    pub fn count(&self) -> usize {
        self.0.lock().open.len()
    }

    /// Devices with an open stream of this method.
    pub fn devices(&self, method: &str) -> usize {
        let streams = self.0.lock();
        let of_method = streams.open.values().filter(|s| s.method == method);
        of_method.filter_map(|s| s.caller.device).collect::<HashSet<_>>().len()
    }

    /// Ends the streams of sessions that have ended and of devices that were cut off. Gives back how many.
    ///
    /// # Errors
    /// Those of the store.
    pub fn recheck(&self, app: &App) -> Result<usize> {
        // Looked up without the lock: the store may have to read from disk.
        let open: Vec<OpenStream> = self.0.lock().open.values().cloned().collect();
        let mut ended = 0;
        for stream in open {
            let Err(error) = sessions::refresh(app, &stream.caller) else { continue };
            if !matches!(error.kind(), Kind::Unauthenticated | Kind::PermissionDenied) {
                return Err(error);
            }
            if stream.why.set(error).is_ok() {
                stream.cut.cancel();
                ended += 1;
            }
        }
        Ok(ended)
    }
}

impl StreamGuard {
    /// Why the stream was ended, unless it was because the server stops.
    pub fn why(&self) -> Option<Error> {
        // An error cannot be cloned; its words can.
        self.why
            .get()
            .map(|e| Error::remote(e.kind(), e.reason().into(), e.message().into(), e.why().into(), e.fix().into()))
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.streams.0.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn tokens_are_read_and_nonsense_is_refused() {
        let with = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(text).expect("a header value"));
            headers
        };
        assert_eq!(bearer(&HeaderMap::new()).expect("none"), None);
        assert_eq!(bearer(&with("Bearer abc")).expect("token"), Some("abc"));
        assert_eq!(bearer(&with("bearer  abc ")).expect("token"), Some("abc"));
        for bad in ["Bearer", "Bearer ", "Basic abc", "abc", &format!("Bearer {}", "a".repeat(257))] {
            assert!(bearer(&with(bad)).expect_err("refused").is(Reason::SessionInvalid), "{bad}");
        }
    }

    #[test]
    fn a_stream_is_on_the_list_as_long_as_it_lives() {
        let streams = OpenStreams::default();
        let device = |n| Caller { device: Some(DeviceId([n; 32])), ..Caller::default() };
        let one = streams.register("/w", &device(1), CancellationToken::new());
        let two = streams.register("/w", &device(1), CancellationToken::new());
        let three = streams.register("/d", &device(2), CancellationToken::new());
        assert_eq!((streams.count(), streams.devices("/w"), streams.devices("/d")), (3, 1, 1));
        drop((one, three));
        assert_eq!((streams.count(), streams.devices("/d")), (1, 0));
        assert!(two.why().is_none());
    }
}
