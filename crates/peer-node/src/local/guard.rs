//! Who may call on the local socket.

use common::error::{Error, Reason, Result};
use common::status::to_status;
use common::tls::PeerIdentity;
use tonic::service::interceptor::InterceptorLayer;
use tonic::{Request, Status};

/// Looks at the caller's user before any method of any service.
pub(super) type Guard = InterceptorLayer<fn(Request<()>) -> Result<Request<()>, Status>>;

/// The guard.
pub(super) fn guard() -> Guard {
    InterceptorLayer::new(check)
}

fn check(request: Request<()>) -> Result<Request<()>, Status> {
    match allowed(request.extensions().get::<PeerIdentity>()) {
        Ok(()) => Ok(request),
        Err(error) => Err(to_status(&error)),
    }
}

/// The user that the node runs as, and root.
fn allowed(peer: Option<&PeerIdentity>) -> Result<()> {
    if peer.is_some_and(PeerIdentity::is_local_admin) {
        return Ok(());
    }
    Err(Error::new(Reason::LocalOnly, "this peer belongs to another user")
        .why_is("only the user whose files a peer serves, and root, may use it")
        .fix_is("run the command as that user, or start a peer of your own"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::tls::PeerCredentials;

    fn of_uid(uid: u32) -> PeerIdentity {
        let local_unix = Some(PeerCredentials { uid, gid: uid, pid: None });
        PeerIdentity { local_unix, ..PeerIdentity::default() }
    }

    #[test]
    fn only_its_own_user_and_root_may_call() {
        let own = rustix::process::geteuid().as_raw();
        assert!(allowed(Some(&of_uid(own))).is_ok());
        assert!(allowed(Some(&of_uid(0))).is_ok());
        for other in [own.wrapping_add(1).max(1), 65_534] {
            assert!(allowed(Some(&of_uid(other))).unwrap_err().is(Reason::LocalOnly), "{other}");
        }
        assert!(allowed(None).is_err(), "not a Unix socket");
        let from_network = PeerIdentity { remote_addr: Some(([127, 0, 0, 1], 1).into()), ..PeerIdentity::default() };
        assert!(allowed(Some(&from_network)).is_err());
    }
}
