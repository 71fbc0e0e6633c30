//! Unix sockets for servers.

use common::error::{Error, Reason, Result};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use tokio::net::{UnixListener, UnixStream};

/// Listens on a Unix socket that only this user can connect to. A socket that a crashed process left behind is removed:
/// it is one on which nobody answers. Anything else at that path stays.
///
/// # Errors
/// RESOURCE_BUSY if somebody listens there, IO_FAILED if it is something else or cannot be made.
pub async fn bind_unix(path: &Path) -> Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e.into()),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(Error::new(Reason::IoFailed, "there is something at the socket's path that is not a socket"));
        }
        Ok(_) => remove_stale(path).await?,
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn remove_stale(path: &Path) -> Result<()> {
    match UnixStream::connect(path).await {
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Ok(std::fs::remove_file(path)?),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        // A full backlog, or a socket of another user: somebody is there.
        _ => Err(Error::new(Reason::ResourceBusy, "another process listens on this socket")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let first = bind_unix(&path).await.unwrap();
        assert!(bind_unix(&path).await.unwrap_err().is(Reason::ResourceBusy));
        drop(first);
        assert!(path.exists());
        let again = bind_unix(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(again);
    }

    #[tokio::test]
    async fn a_file_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thesis.txt");
        std::fs::write(&path, "x").unwrap();
        assert!(bind_unix(&path).await.unwrap_err().is(Reason::IoFailed));
        assert!(path.exists());
    }
}
