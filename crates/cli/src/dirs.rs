//! Where this program keeps things of the calling user.

use common::error::{Error, Reason, Result};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// `$XDG_STATE_HOME/atrium`, or `~/.local/state/atrium`.
///
/// # Errors
/// `IO_FAILED` if neither variable is set.
pub fn state() -> Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("atrium"))
        .ok_or_else(|| {
            Error::new(Reason::IoFailed, "there is no place to keep state in")
                .why_is("neither XDG_STATE_HOME nor HOME is set")
                .fix_is("set HOME")
        })
}

/// Makes a directory, and missing parents, that only the user can enter.
///
/// # Errors
/// `IO_FAILED`; `ACCESS_DENIED` if somebody else owns it.
pub fn make_private(path: &Path) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::new(Reason::IoFailed, format!("{} cannot be made", path.display()))
            .why_is(error.to_string())
            .fix_is("check the rights of its parent, or set XDG_STATE_HOME to another place")
            .caused_by(error)
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let metadata = path.metadata().map_err(failed)?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::new(Reason::AccessDenied, format!("{} belongs to somebody else", path.display()))
            .why_is("what is kept there must not be readable by others")
            .fix_is("set XDG_STATE_HOME to a directory of your own"));
    }
    if metadata.mode() & 0o077 != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}
