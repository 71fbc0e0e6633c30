//! Content to move.

use anyhow::{Context, Result, bail};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bytes that do not repeat or compress, the same for the same seed.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut data);
    data
}

/// Writes a file of such bytes.
///
/// # Errors
/// I/O.
pub fn file(path: &Path, seed: u64, length: u64) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut buffer = vec![0; 1 << 20];
    let mut left = length;
    while left > 0 {
        let n = left.min(buffer.len() as u64) as usize;
        rng.fill_bytes(&mut buffer[..n]);
        out.write_all(&buffer[..n])?;
        left -= n as u64;
    }
    out.flush()?;
    Ok(())
}

/// The directory of the Rust toolchain.
///
/// # Errors
/// There is none.
pub fn toolchain() -> Result<PathBuf> {
    let out = Command::new("rustc").args(["--print", "sysroot"]).output().context("rustc")?;
    let path = PathBuf::from(String::from_utf8(out.stdout)?.trim());
    if !path.is_dir() {
        bail!("rustc names no toolchain directory");
    }
    Ok(path)
}

/// A real tree of thousands of files: the toolchain's own documentation, or else its libraries and sources.
///
/// # Errors
/// There is no toolchain.
pub fn tree() -> Result<PathBuf> {
    let root = toolchain()?;
    let documentation = root.join("share/doc/rust/html");
    Ok(if documentation.is_dir() { documentation } else { root.join("lib") })
}

/// Writes a real file of exactly this size: an archive of the toolchain, again and again until it is long enough.
///
/// # Errors
/// I/O, no tar.
pub fn archive(path: &Path, length: u64) -> Result<()> {
    let root = toolchain()?;
    let mut out = File::create(path)?;
    let mut left = length;
    while left > 0 {
        let mut tar = Command::new("tar")
            .args(["--sort=name", "-c", "-C"])
            .arg(&root)
            .args(["lib", "bin"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("tar")?;
        let stdout = tar.stdout.take().context("tar")?;
        let copied = std::io::copy(&mut stdout.take(left), &mut out)?;
        let _ = tar.kill();
        let _ = tar.wait();
        if copied == 0 {
            bail!("tar wrote nothing");
        }
        left -= copied;
    }
    Ok(())
}
