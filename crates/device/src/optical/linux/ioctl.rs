//! The kernel's calls for optical drives (`linux/cdrom.h`). The only unsafe code of the crate: each call below either takes
//! a number and touches no memory, or takes a structure whose layout is the kernel's.
#![expect(unsafe_code, reason = "rustix has no wrappers for these calls; each is checked against linux/cdrom.h")]

use super::Tray;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, ioctl};
use std::ffi::c_void;
use std::fs::File;
use std::io;

const EJECT: Opcode = 0x5309;
const CLOSE_TRAY: Opcode = 0x5319;
const MEDIA_CHANGED: Opcode = 0x5325;
const DRIVE_STATUS: Opcode = 0x5326;
const LOCK_DOOR: Opcode = 0x5329;
const TIMED_MEDIA_CHANGE: Opcode = 0x5396;

/// The drive's only or current slot (`CDSL_CURRENT`).
const SLOT_CURRENT: usize = i32::MAX as usize;

/// A call whose argument is a number and whose answer is the return value.
struct Number<const OPCODE: Opcode>(usize);

// SAFETY: the kernel takes the argument of the opcodes used here as a number, reads and writes no memory, and answers with
// the return value.
unsafe impl<const OPCODE: Opcode> Ioctl for Number<OPCODE> {
    type Output = i64;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        OPCODE
    }
    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.0)
    }
    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i64> {
        Ok(i64::from(out))
    }
}

/// `struct cdrom_timed_media_change_info`.
#[repr(C)]
struct TimedMediaChange {
    last_media_change: i64,
    media_flags: u64,
}

/// Tray and disc. A drive that cannot tell has a disc that is not ready.
pub(super) fn drive_status(drive: &File) -> io::Result<Tray> {
    // SAFETY: CDROM_DRIVE_STATUS takes a slot number.
    let status = unsafe { ioctl(drive, Number::<DRIVE_STATUS>(SLOT_CURRENT)) }?;
    Ok(match status {
        1 => Tray::Empty,
        2 => Tray::Open,
        4 => Tray::Ready,
        _ => Tray::Loading,
    })
}

/// Time of the last change of the disc, and whether it is later than the one given.
pub(super) fn changed_since(drive: &File, last_ms: i64) -> io::Result<(i64, bool)> {
    let mut info = TimedMediaChange { last_media_change: last_ms, media_flags: 0 };
    // SAFETY: CDROM_TIMED_MEDIA_CHANGE reads and writes one such structure, whose layout is that of the kernel's.
    unsafe { ioctl(drive, Updater::<TIMED_MEDIA_CHANGE, TimedMediaChange>::new(&mut info)) }?;
    Ok((info.last_media_change, info.media_flags & 1 != 0))
}

/// Whether the disc has changed since somebody asked last.
pub(super) fn media_changed(drive: &File) -> io::Result<bool> {
    // SAFETY: CDROM_MEDIA_CHANGED takes a slot number.
    Ok(unsafe { ioctl(drive, Number::<MEDIA_CHANGED>(SLOT_CURRENT)) }? == 1)
}

/// Opens the tray.
pub(super) fn eject(drive: &File) -> io::Result<()> {
    // SAFETY: CDROMEJECT ignores its argument.
    unsafe { ioctl(drive, Number::<EJECT>(0)) }?;
    Ok(())
}

/// Closes the tray.
pub(super) fn close_tray(drive: &File) -> io::Result<()> {
    // SAFETY: CDROMCLOSETRAY ignores its argument.
    unsafe { ioctl(drive, Number::<CLOSE_TRAY>(0)) }?;
    Ok(())
}

/// Locks or unlocks the button.
pub(super) fn lock_door(drive: &File, locked: bool) -> io::Result<()> {
    // SAFETY: CDROM_LOCKDOOR takes 0 or 1.
    unsafe { ioctl(drive, Number::<LOCK_DOOR>(usize::from(locked))) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_no_drive_for_any_call() {
        let file = tempfile::tempfile().unwrap();
        assert!(drive_status(&file).is_err() && changed_since(&file, 0).is_err() && media_changed(&file).is_err());
        assert!(eject(&file).is_err() && close_tray(&file).is_err() && lock_door(&file, true).is_err());
    }
}
