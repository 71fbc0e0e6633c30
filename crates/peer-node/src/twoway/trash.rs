//! Where files go that another copy's version replaces or deletes: `.atrium-trash/YYYYMMDD/` at the top of the folder,
//! each below the directories it was in, with the time of day in its name. The index ignores it. After thirty days it goes.
//!
//! # Age
//!
//! A day's directory goes by its name when it is old enough by the clock. A clock that has jumped must not empty the trash:
//! after a jump nothing goes until the clock has been seen to run evenly for a day ([`Calm`]).

use common::error::Result;
use rustix::fs::{AtFlags, FileType, unlinkat};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

use super::conflict::cut;
use crate::catalogue::beneath::{Root, directory_in, look_at, names};

/// At the top of the folder.
pub const TRASH: &str = ".atrium-trash";
/// Seconds in a day.
const DAY: i64 = 86_400;
/// How deep a directory in the trash can be; deeper ones are left.
const DEPTH_MAX: usize = 160;

/// Year, month and day of a time in seconds since 1970, UTC.
pub(super) fn civil(seconds: i64) -> (i64, i64, i64) {
    // Howard Hinnant's days_to_civil.
    let z = seconds.div_euclid(DAY) + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

/// Hour, minute and second.
pub(super) fn seconds_of_day(seconds: i64) -> (i64, i64, i64) {
    let s = seconds.rem_euclid(DAY);
    (s / 3_600, s / 60 % 60, s % 60)
}

/// The day of a time, as directories of the trash are called.
fn day_name(seconds: i64) -> String {
    let (year, month, day) = civil(seconds);
    format!("{year:04}{month:02}{day:02}")
}

/// The directory in which a file of `directory` goes to the trash now.
pub fn directory_for(directory: &str, now_ms: u64) -> String {
    let day = day_name(now_ms as i64 / 1_000);
    if directory.is_empty() { format!("{TRASH}/{day}") } else { format!("{TRASH}/{day}/{directory}") }
}

/// The name under which it does; `number` counts from 1 where there are several of one second.
pub fn name_for(name: &str, now_ms: u64, number: u32) -> String {
    let (h, m, s) = seconds_of_day(now_ms as i64 / 1_000);
    let number = if number > 1 { format!("-{number}") } else { String::new() };
    let (stem, ext) = match name.rfind('.') {
        Some(at) if at > 0 && name.len() - at <= 17 => name.split_at(at),
        _ => (name, ""),
    };
    let middle = format!(".{h:02}{m:02}{s:02}{number}");
    format!("{}{middle}{ext}", cut(stem, 255 - middle.len() - ext.len()))
}

/// Says when the clock may be believed. Asked about once an hour.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Calm {
    /// The clock at the last time, milliseconds since 1970.
    pub last_ms: u64,
    /// How often it has been seen to run evenly since the last jump.
    pub even: u32,
}

impl Calm {
    /// How much between two looks is no jump: machines are off over holidays.
    const JUMP_MS: u64 = 3 * 86_400_000;
    /// Looks after which the clock is believed.
    const EVEN: u32 = 24;

    /// Notes the time. True if the clock has run evenly long enough.
    pub fn is_calm(&mut self, now_ms: u64) -> bool {
        let even = now_ms >= self.last_ms && now_ms - self.last_ms <= Self::JUMP_MS;
        self.even = if even { (self.even + 1).min(Self::EVEN) } else { 0 };
        self.last_ms = now_ms;
        self.even >= Self::EVEN
    }
}

/// Removes what is older than so many days. Gives back how many directories of days went. Blocks.
///
/// # Errors
/// IO_FAILED; what could be removed is.
pub fn clean(root: &Root, now_ms: u64, days: u32) -> Result<u32> {
    let trash = match root.directory(TRASH) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(0),
        Err(errno) => return Err(std::io::Error::from(errno).into()),
    };
    let oldest = day_name(now_ms as i64 / 1_000 - i64::from(days) * DAY);
    let mut gone = 0;
    for found in names(&trash).map_err(std::io::Error::from)? {
        let Some(name) = found.name.to_str() else { continue };
        let is_day = name.len() == 8 && name.bytes().all(|b| b.is_ascii_digit());
        if is_day && name < oldest.as_str() {
            erase(&trash, name, 0).map_err(std::io::Error::from)?;
            gone += 1;
        }
    }
    Ok(gone)
}

/// Removes a directory with all that is in it; links are removed, not followed.
pub(super) fn erase(parent: &OwnedFd, name: &str, depth: usize) -> Result<(), Errno> {
    if depth > DEPTH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    let directory = directory_in(parent, name)?;
    for found in names(&directory)? {
        match look_at(&directory, found.name.as_os_str())?.kind {
            FileType::Directory => match found.name.to_str() {
                Some(inner) => erase(&directory, inner, depth + 1)?,
                None => return Err(Errno::ILSEQ),
            },
            _ => unlinkat(&directory, found.name.as_os_str(), AtFlags::empty())?,
        }
    }
    drop(directory);
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, day) in [
            (0, "19700101"),
            (-1, "19691231"),
            (951_782_400, "20000229"),
            (1_763_852_940, "20251122"),
            (4_107_542_400, "21000301"),
        ] {
            assert_eq!(day_name(seconds), day);
        }
        assert_eq!(name_for("a.txt", 1_763_852_940_000, 1), "a.230900.txt");
        assert_eq!(name_for(".bashrc", 1_763_852_940_000, 2), ".bashrc.230900-2");
        assert_eq!(name_for(&"x".repeat(255), 0, 1).len(), 255);
    }

    #[test]
    fn old_days_go_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("keep"), "x").unwrap();
        for day in ["20251001/a/b", "20251122/c", "notes", "2025100"] {
            std::fs::create_dir_all(dir.path().join(TRASH).join(day)).unwrap();
        }
        std::fs::write(dir.path().join(TRASH).join("20251001/a/b/f.txt"), "old").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join(TRASH).join("20251001/a/way")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert_eq!(clean(&root, 1_763_852_940_000, 30).unwrap(), 1);
        let left = |name: &str| dir.path().join(TRASH).join(name).exists();
        assert!(!left("20251001") && left("20251122/c") && left("notes") && left("2025100"));
        assert!(outside.path().join("keep").exists(), "links are not followed");
        assert_eq!(clean(&root, 1_763_852_940_000, 30).unwrap(), 0);
    }

    #[test]
    fn a_clock_that_jumps_does_not_empty_the_trash() {
        const HOUR: u64 = 3_600_000;
        let mut calm = Calm::default();
        let mut now = 1_763_852_940_000;
        assert!(!calm.is_calm(now));
        let hours = (1..100).find(|_| {
            now += HOUR;
            calm.is_calm(now)
        });
        assert_eq!(hours, Some(24));
        now += 400 * 24 * HOUR;
        assert!(!calm.is_calm(now), "it jumped");
        now -= 400 * 24 * HOUR;
        assert!(!calm.is_calm(now), "and back");
        assert!((0..24).filter(|i| calm.is_calm(now + i * HOUR)).count() <= 1);
    }
}
