//! Compares files and trees byte for byte.

use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Files.
    pub files: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Compares two files.
///
/// # Errors
/// They differ, or one cannot be read.
pub fn files(a: &Path, b: &Path) -> Result<u64> {
    let mut left = File::open(a).with_context(|| a.display().to_string())?;
    let mut right = File::open(b).with_context(|| b.display().to_string())?;
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut total = 0;
    loop {
        let n = fill(&mut left, &mut x)?;
        let m = fill(&mut right, &mut y)?;
        if n != m || x[..n] != y[..m] {
            bail!("{} and {} differ near byte {total}", a.display(), b.display());
        }
        if n == 0 {
            return Ok(total);
        }
        total += n as u64;
    }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match file.read(&mut buffer[n..])? {
            0 => break,
            more => n += more,
        }
    }
    Ok(n)
}

/// Compares two trees of regular files and directories; links are passed over.
///
/// # Errors
/// One has what the other has not, or a file differs.
pub fn trees(a: &Path, b: &Path) -> Result<Compared> {
    let left = names(a)?;
    let right = names(b)?;
    if let Some(odd) = left.symmetric_difference(&right).next() {
        bail!("{odd:?} is only in one of {} and {}", a.display(), b.display());
    }
    let mut sum = Compared::default();
    for name in left {
        let (x, y) = (a.join(&name), b.join(&name));
        match (x.is_dir(), y.is_dir()) {
            (true, true) => {
                let inner = trees(&x, &y)?;
                sum.files += inner.files;
                sum.bytes += inner.bytes;
            }
            (false, false) => {
                sum.files += 1;
                sum.bytes += files(&x, &y)?;
            }
            _ => bail!("{} is a directory on one side only", x.display()),
        }
    }
    Ok(sum)
}

fn names(directory: &Path) -> Result<BTreeSet<std::ffi::OsString>> {
    let mut out = BTreeSet::new();
    for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        if !entry.file_type()?.is_symlink() {
            out.insert(entry.file_name());
        }
    }
    Ok(out)
}
