//! The person at a drive of image files.

use super::super::drive::SECTOR_BYTES;
use super::{Faults, Image, Shared};
use common::error::{Error, Reason, Result};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Puts discs in, presses the button, breaks things. Clones mean the same drive.
#[derive(Clone)]
pub struct IsoControl(Arc<Shared>);

impl IsoControl {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Puts a disc in, in place of another, and closes the tray.
    ///
    /// # Errors
    /// IO_FAILED, RESOURCE_INVALID for what is not a whole number of sectors, RESOURCE_BUSY for a locked tray.
    pub fn insert(&self, path: &Path) -> Result<()> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        let size = meta.len();
        if !meta.is_file() || size == 0 || size % u64::from(SECTOR_BYTES) != 0 {
            return Err(Error::new(Reason::ResourceInvalid, "a disc image is a file of whole sectors of 2,048 bytes"));
        }
        self.0.change(|inside| {
            inside.open_tray()?;
            inside.image = Some(Image { file: Arc::new(file), size });
            inside.attempts.clear();
            inside.close_tray();
            Ok(())
        })
    }

    /// Presses the button: the tray opens, unless it is locked.
    ///
    /// # Errors
    /// RESOURCE_BUSY.
    pub fn press_eject(&self) -> Result<()> {
        self.0.change(super::Inside::open_tray)
    }

    /// Pushes the tray in.
    pub fn close(&self) {
        self.0.change(super::Inside::close_tray);
    }

    /// Takes the disc out whatever the drive does, as with a paper clip or by pulling the cable of a drive.
    pub fn pull(&self) {
        self.0.change(|inside| {
            inside.image = None;
            inside.open = false;
            inside.medium += 1;
        });
    }

    /// Sets what is wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.change(|inside| {
            inside.faults = faults;
            inside.attempts.clear();
        });
    }

    /// What is wrong now.
    pub fn faults(&self) -> Faults {
        self.0.inside.lock().faults.clone()
    }

    /// True while the button is locked.
    pub fn is_locked(&self) -> bool {
        self.0.inside.lock().locked
    }

    /// Obeys a line, for demonstrations and scripts:
    ///
    /// ```text
    /// insert PATH | eject | close | pull | bad 100-199,300 | random 1% SEED | heals N | slow MS | loading MS | mend
    /// ```
    ///
    /// # Errors
    /// FIELD_INVALID for anything else, and what the acts say.
    pub fn obey(&self, line: &str) -> Result<()> {
        let (verb, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let rest = rest.trim();
        let mut faults = self.faults();
        match verb {
            "insert" => return self.insert(Path::new(rest)),
            "eject" => return self.press_eject(),
            "close" => {
                self.close();
                return Ok(());
            }
            "pull" => {
                self.pull();
                return Ok(());
            }
            "mend" => faults = Faults::default(),
            "bad" => faults.bad = rest.split(',').map(parse_range).collect::<Result<_>>()?,
            "random" => faults.random = Some(parse_random(rest)?),
            "heals" => faults.heals_after = Some(number(rest)? as u32),
            "slow" => faults.delay = Duration::from_millis(number(rest)?),
            "loading" => faults.loading = Duration::from_millis(number(rest)?),
            _ => return Err(unclear(line)),
        }
        self.set_faults(faults);
        Ok(())
    }
}

fn parse_range(text: &str) -> Result<Range<u64>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    let end = last.checked_add(1).filter(|end| *end > first);
    end.map(|end| first..end).ok_or_else(|| unclear(text))
}

fn parse_random(text: &str) -> Result<(f64, u64)> {
    let (share, seed) = text.split_once(' ').unwrap_or((text, "1"));
    let percent = share.strip_suffix('%').and_then(|p| p.parse::<f64>().ok()).filter(|p| (0.0..=100.0).contains(p));
    Ok((percent.ok_or_else(|| unclear(text))? / 100.0, number(seed)?))
}

fn number(text: &str) -> Result<u64> {
    text.trim().parse().map_err(|_| unclear(text))
}

fn unclear(text: &str) -> Error {
    Error::new(Reason::FieldInvalid, format!("{:?} is not understood", text.chars().take(64).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::super::IsoDrive;
    use super::*;

    #[test]
    fn lines_are_obeyed() {
        let (_drive, control) = IsoDrive::new();
        for line in ["bad 100-199,300", "random 1% 7", "heals 3", "slow 20"] {
            control.obey(line).unwrap();
        }
        let faults = control.faults();
        assert_eq!(faults.bad, [100..200, 300..301]);
        assert_eq!((faults.random, faults.heals_after), (Some((0.01, 7)), Some(3)));
        let bad = (1000..101_000).filter(|s| faults.is_bad(*s)).count();
        assert!((800..1200).contains(&bad), "{bad} of 100,000 sectors are one per cent");
        for line in ["bad", "bad 9-3", "random x", "random 101%", "burn", "insert /nonexistent"] {
            assert!(control.obey(line).is_err(), "{line}");
        }
        control.obey("mend").unwrap();
        assert_eq!(control.faults(), Faults::default());
    }

    #[test]
    fn a_locked_tray_stays() {
        let (mut drive, control) = IsoDrive::new();
        crate::optical::Drive::lock_tray(&mut drive, true).unwrap();
        assert!(control.press_eject().unwrap_err().is(Reason::ResourceBusy));
        assert!(control.is_locked());
    }
}
