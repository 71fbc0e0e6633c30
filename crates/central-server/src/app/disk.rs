//! The guard of free space: changes that need room are refused while the disk is nearly full, so that what frees room
//! (deleting, retention, reclaiming) always works and nothing is ever cut off in the middle.

use super::App;
use super::admin::Problem;
use common::error::{Error, Reason, Result};
use common::settings::ByteSize;
use std::path::Path;

/// The part under which [`super::admin::Health`] knows the disk.
pub const PART: &str = "disk";

/// Free bytes of the file system that a path is on, as far as this user may use them.
///
/// # Errors
/// `IO_FAILED`.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path).map_err(std::io::Error::from)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Looks at the free space and remembers whether it is enough. It counts as enough again only with a tenth more than the
/// reserve, so that it does not flicker at the edge.
///
/// # Errors
/// `IO_FAILED`.
pub fn look(app: &App) -> Result<u64> {
    let free = free_bytes(&app.settings.server.data_directory)?;
    let full = is_full(free, app.settings.server.reserve, app.files.is_disk_full());
    app.files.set_disk_full(full);
    let problem = full.then(|| {
        Problem::new(Reason::DiskFull, format!("only {} are free for data; nothing is stored", human(free)))
            .with_help("less than server.reserve is free", "free or add space; what is there can be read and deleted")
    });
    app.health.report(PART, problem);
    Ok(free)
}

fn is_full(free: u64, reserve: ByteSize, was_full: bool) -> bool {
    let enough = if was_full { reserve.bytes().saturating_add(reserve.bytes() / 10) } else { reserve.bytes() };
    free < enough
}

fn human(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

/// Refuses while the disk is nearly full.
///
/// # Errors
/// `DISK_FULL`.
pub fn require_space(app: &App) -> Result<()> {
    if app.files.is_disk_full() {
        return Err(Error::new(Reason::DiskFull, "the server's disk is nearly full"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_full_below_the_reserve_and_enough_a_tenth_above() {
        let reserve = ByteSize(1000);
        assert!(is_full(999, reserve, false) && !is_full(1000, reserve, false));
        assert!(is_full(1099, reserve, true) && !is_full(1100, reserve, true));
        assert!(!is_full(0, ByteSize(0), false));
    }

    #[test]
    fn free_space_is_told_for_a_path_that_exists() {
        let dir = tempfile::tempdir().expect("temp dir");
        assert!(free_bytes(dir.path()).expect("free") > 0);
        assert!(free_bytes(&dir.path().join("nothing")).is_err());
    }
}
