//! Numbers of discs that only rise, also across restarts.
//!
//! One small file per drive holds the last number that was given. The next one is on disk (file and directory synced)
//! before it is used, so a crash skips a number at worst. A file that cannot be read as a number is an error and not a
//! new beginning: a generation that was used before could make bytes of an old disc pass for those of a new one.

use common::error::{Error, Reason, Result};
use common::identity::write_secret;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::PathBuf;

/// Gives generations. Called on blocking threads.
pub trait Generations: Send + Sync + 'static {
    /// A number that is higher than any other that was ever given for this drive, durable when it is returned.
    ///
    /// # Errors
    /// It cannot be kept; no disc is shown then.
    fn next(&self, drive: &str) -> Result<u64>;
}

/// Generations in files of a directory.
pub struct FileGenerations {
    dir: PathBuf,
    one_at_a_time: Mutex<()>,
}

impl FileGenerations {
    /// Keeps them in this directory, which is made.
    ///
    /// # Errors
    /// IO_FAILED.
    pub fn open(dir: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir, one_at_a_time: Mutex::new(()) })
    }
}

impl Generations for FileGenerations {
    fn next(&self, drive: &str) -> Result<u64> {
        let _alone = self.one_at_a_time.lock();
        let path = self.dir.join(format!("{}.generation", &blake3::hash(drive.as_bytes()).to_hex()[..32]));
        let last = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse::<u64>().map_err(|e| {
                Error::new(Reason::StoreCorrupt, format!("the generation of drive {drive} is damaged")).caused_by(e)
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
            Err(e) => return Err(e.into()),
        };
        let next = last.checked_add(1).ok_or_else(|| Error::internal("generations are used up"))?;
        write_secret(&path, format!("{next}\n").as_bytes())?;
        Ok(next)
    }
}

/// Generations that are forgotten at the end; for tests and for exports of a single run.
#[derive(Default)]
pub struct MemoryGenerations(Mutex<HashMap<String, u64>>);

impl Generations for MemoryGenerations {
    fn next(&self, drive: &str) -> Result<u64> {
        let mut all = self.0.lock();
        let last = all.entry(drive.to_owned()).or_default();
        *last += 1;
        Ok(*last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_across_restarts_and_per_drive() {
        let dir = tempfile::tempdir().unwrap();
        let open = || FileGenerations::open(dir.path().join("g")).unwrap();
        assert_eq!((open().next("a").unwrap(), open().next("a").unwrap(), open().next("b").unwrap()), (1, 2, 1));
    }

    #[test]
    fn a_damaged_number_is_not_a_new_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let numbers = FileGenerations::open(dir.path().to_owned()).unwrap();
        numbers.next("a").unwrap();
        let file = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        std::fs::write(file, "").unwrap();
        assert!(numbers.next("a").unwrap_err().is(Reason::StoreCorrupt));
    }
}
