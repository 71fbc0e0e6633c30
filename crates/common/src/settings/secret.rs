//! Secrets come from files that others cannot read.

use crate::error::{Error, Reason, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Largest secret that is read.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Bits of a file mode that make a secret public: anything for others, writing for the group. Reading by the group is
/// allowed, because file access lists (which systemd's credentials use) show their mask there.
const FORBIDDEN_MODE: u32 = 0o027;

/// The path of a file that holds a secret. The setting itself tells nothing secret.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretFile(PathBuf);

/// A secret in memory: not shown in logs, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a text as a secret.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
    /// The secret itself. Do not log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl SecretFile {
    /// Names a file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
    /// Where it is; empty if not set.
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// True if a file is named.
    pub fn is_set(&self) -> bool {
        !self.0.as_os_str().is_empty()
    }

    /// Reads the secret: the file's content without its last line end.
    ///
    /// # Errors
    /// `SETTINGS_INVALID` if the file cannot be read, is readable by others, writable by others or the group, is empty,
    /// larger than 64 KiB or no UTF-8.
    pub fn read(&self) -> Result<Secret> {
        let wrong = |what: String| Error::new(Reason::SettingsInvalid, format!("{}: {what}", self.0.display()));
        let mut file = File::open(&self.0).map_err(|e| wrong(format!("cannot be opened: {e}")))?;
        // The opened file is asked, not the path, so that it cannot be exchanged in between.
        let meta = file.metadata().map_err(|e| wrong(format!("cannot be examined: {e}")))?;
        if !meta.is_file() {
            return Err(wrong("is not a file".into()));
        }
        if meta.mode() & FORBIDDEN_MODE != 0 {
            return Err(wrong(format!("holds a secret, but its mode {:04o} lets others at it", meta.mode() & 0o7777))
                .why_is("a secret that others can read is none")
                .fix_is(format!("chmod 600 {}", self.0.display())));
        }
        let mut text = Zeroizing::new(String::new());
        file.by_ref()
            .take(MAX_SECRET_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(|e| wrong(format!("cannot be read: {e}")))?;
        if text.len() as u64 > MAX_SECRET_BYTES {
            return Err(wrong("is larger than 64 KiB".into()));
        }
        let end = text.strip_suffix('\n').map_or(text.len(), str::len);
        text.truncate(end);
        let end = text.strip_suffix('\r').map_or(text.len(), str::len);
        text.truncate(end);
        if text.is_empty() {
            return Err(wrong("is empty".into()));
        }
        Ok(Secret(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, SecretFile) {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("secret");
        std::fs::write(&path, content).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        (dir, SecretFile::new(path))
    }

    #[test]
    fn reads_a_private_file_without_its_line_end() {
        for (content, mode) in [("s3cret\n", 0o600), ("s3cret\r\n", 0o400), ("s3cret", 0o440)] {
            let (_dir, secret) = file(content.as_bytes(), mode);
            assert_eq!(secret.read().expect("reads").expose(), "s3cret");
        }
    }

    #[test]
    fn refuses_what_others_can_read_and_what_is_no_secret() {
        for (content, mode, word) in [
            (&b"x"[..], 0o604, "0604"),
            (b"x", 0o644, "0644"),
            (b"x", 0o620, "0620"),
            (b"\n", 0o600, "empty"),
            (b"", 0o600, "empty"),
            (b"\xff\xfe", 0o600, "read"),
            (&[b'a'; 70_000], 0o600, "larger"),
        ] {
            let (_dir, secret) = file(content, mode);
            let error = secret.read().expect_err("refused");
            assert!(error.is(Reason::SettingsInvalid));
            assert!(error.message().contains(word), "{error}");
        }
        assert!(SecretFile::new("/nonexistent/x").read().is_err());
        assert!(SecretFile::new("/").read().is_err());
    }

    #[test]
    fn never_shows_itself() {
        assert_eq!(format!("{:?}", Secret::new("s3cret".into())), "***");
    }
}
