//! Files that hold secrets: written whole, readable by their owner only.

use crate::error::{Error, Reason, Result};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use zeroize::Zeroizing;

/// A key or certificate file is a few hundred bytes; anything beyond this is something else.
const MAX_SECRET_BYTES: u64 = 16 * 1024;

/// Reads a small secret file.
///
/// # Errors
/// KEY_FILE_EXPOSED if group or others have any right to it, or it belongs to neither this user nor root;
/// KEY_FILE_INVALID if it is no plain file or larger than 16 KiB; IO_FAILED if it cannot be read.
pub fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    // Non-blocking, so that a FIFO in the file's place cannot hold us up.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    // Asked of the open file, so that it cannot be exchanged between the question and the reading.
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Error::new(Reason::KeyFileInvalid, "the key file is not a plain file"));
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::new(Reason::KeyFileExposed, format!("the key file has mode {mode:04o}")));
    }
    let us = rustix::process::geteuid().as_raw();
    if metadata.uid() != us && metadata.uid() != 0 {
        return Err(Error::new(Reason::KeyFileExposed, "the key file belongs to another user"));
    }
    if metadata.len() > MAX_SECRET_BYTES {
        return Err(Error::new(Reason::KeyFileInvalid, "the key file is larger than 16 KiB"));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0)));
    file.take(MAX_SECRET_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a file of mode 0600. It is replaced as a whole, and on disk when this returns.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, bytes, 0o600)
}

/// Writes a file that everyone may read (mode 0644), for certificates. Replaced as a whole, and on disk on return.
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, bytes, 0o644)
}

fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file =
        tempfile::Builder::new().prefix(".new-").permissions(Permissions::from_mode(0o600)).tempfile_in(directory)?;
    file.write_all(bytes)?;
    // The umask does not count here: the mode is the meaning of the file.
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    File::open(directory)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_or_a_fifo_is_no_key_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_secret(dir.path()).unwrap_err().is(Reason::KeyFileInvalid));
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(read_secret(&fifo).unwrap_err().is(Reason::KeyFileInvalid));
    }

    #[test]
    fn replacing_a_file_keeps_its_new_mode_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_public(&path, b"one").unwrap();
        write_secret(&path, b"two").unwrap();
        assert_eq!(read_secret(&path).unwrap().as_slice(), b"two");
        write_public(&path, b"three").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
    }
}
