//! `/dev/sr*` of Linux.
//!
//! The device is opened without waiting for a disc (`O_NONBLOCK`), which neither closes the tray nor locks its button,
//! and is opened again for each new disc, because that is when the kernel looks at its size. Whether the disc is still the
//! same is told by `CDROM_TIMED_MEDIA_CHANGE` (kernel 5.16), which several programs may ask without taking the answer from
//! each other; older kernels have `CDROM_MEDIA_CHANGED`, an event that only one of them gets.
//!
//! A bad spot keeps the kernel in its own retries for longer than any deadline of ours; only this drive's thread waits.
//! Sectors that cannot be read are an error, whatever the reason: scrambled ones are shipped as they are, and nothing is
//! ever decrypted.

mod ioctl;
mod uevent;

use super::drive::{Condition, Drive, ReadFault, SECTOR_BYTES, Tray, Wake};
use common::error::{Error, Reason, Result};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes that are asked of the kernel at once, so that a deadline is looked at in between.
const PIECE: usize = 64 << 10;

/// A drive of the kernel.
pub struct LinuxDrive {
    path: PathBuf,
    model: String,
    file: File,
    tray: Tray,
    medium: u64,
    last_change_ms: i64,
    events: Option<uevent::Listener>,
}

impl LinuxDrive {
    /// Opens a drive such as `/dev/sr0`.
    ///
    /// # Errors
    /// DEVICE_AWAY, RESOURCE_INVALID if it is no optical drive.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open(path).map_err(|e| Error::new(Reason::DeviceAway, "the drive cannot be opened").caused_by(e))?;
        if ioctl::drive_status(&file).is_err() {
            return Err(Error::new(Reason::ResourceInvalid, "this is not an optical drive"));
        }
        let model = model(path).unwrap_or_else(|| "optical drive".to_owned());
        let path = path.to_owned();
        Ok(Self { path, model, file, tray: Tray::Loading, medium: 0, last_change_ms: 0, events: None })
    }

    fn may_have_changed(&mut self) -> bool {
        match ioctl::changed_since(&self.file, self.last_change_ms) {
            Ok((last_change_ms, changed)) => {
                self.last_change_ms = last_change_ms;
                changed
            }
            // An older kernel.
            Err(_) => ioctl::media_changed(&self.file).unwrap_or(false),
        }
    }
}

/// All optical drives of this machine.
pub fn discover() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = entries.filter_map(|e| e.file_name().into_string().ok());
    let is_optical =
        |name: &String| name.strip_prefix("sr").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    let mut found: Vec<_> = names.filter(is_optical).map(|name| Path::new("/dev").join(name)).collect();
    found.sort();
    found
}

fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    File::options().read(true).custom_flags(flags).open(path)
}

/// Maker and model, as the kernel read them from the drive; they may hold anything.
fn model(path: &Path) -> Option<String> {
    let device = Path::new("/sys/block").join(path.file_name()?).join("device");
    let read = |name| std::fs::read_to_string(device.join(name)).ok();
    let text = format!("{} {}", read("vendor")?.trim(), read("model")?.trim());
    let text: String = text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(64).collect();
    Some(text.trim().to_owned()).filter(|t| !t.is_empty())
}

impl Drive for LinuxDrive {
    fn model(&self) -> String {
        self.model.clone()
    }

    fn condition(&mut self) -> io::Result<Condition> {
        let tray = ioctl::drive_status(&self.file)?;
        let changed = self.may_have_changed();
        if changed || (tray == Tray::Ready) != (self.tray == Tray::Ready) {
            self.medium += 1;
            if tray == Tray::Ready {
                self.file = open(&self.path)?;
            }
        }
        self.tray = tray;
        Ok(Condition { tray, medium: self.medium })
    }

    fn size_bytes(&mut self) -> io::Result<u64> {
        let size = (&self.file).seek(SeekFrom::End(0))?;
        Ok(size - size % u64::from(SECTOR_BYTES))
    }

    fn read(&mut self, sector: u64, into: &mut [u8], deadline: Instant) -> std::result::Result<(), ReadFault> {
        let start = sector.saturating_mul(SECTOR_BYTES.into());
        let mut done = 0;
        while done < into.len() {
            if Instant::now() >= deadline {
                return Err(ReadFault::Late);
            }
            let end = into.len().min(done + PIECE);
            let at = start + done as u64;
            match self.file.read_at(&mut into[done..end], at) {
                Ok(0) => return Err(ReadFault::Sector(at / u64::from(SECTOR_BYTES))),
                Ok(read) => done += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(fault(e, at)),
            }
        }
        Ok(())
    }

    fn eject(&mut self) -> Result<()> {
        let _ = ioctl::lock_door(&self.file, false);
        ioctl::eject(&self.file).map_err(failed)
    }

    fn close_tray(&mut self) -> Result<()> {
        ioctl::close_tray(&self.file).map_err(failed)
    }

    fn lock_tray(&mut self, locked: bool) -> Result<()> {
        ioctl::lock_door(&self.file, locked).map_err(failed)
    }

    fn wake_by(&mut self, wake: Wake) {
        let name = self.path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        match uevent::Listener::start(name, wake) {
            Ok(events) => self.events = Some(events),
            // It is polled in any case.
            Err(error) => tracing::info!(%error, "events of drives cannot be listened to"),
        }
    }
}

fn fault(error: io::Error, at: u64) -> ReadFault {
    match rustix::io::Errno::from_io_error(&error) {
        Some(rustix::io::Errno::NOMEDIUM | rustix::io::Errno::NODEV | rustix::io::Errno::NXIO) => ReadFault::Gone,
        Some(rustix::io::Errno::IO | rustix::io::Errno::NODATA | rustix::io::Errno::ILSEQ) => {
            ReadFault::Sector(at / u64::from(SECTOR_BYTES))
        }
        _ => ReadFault::Failed(error),
    }
}

fn failed(error: io::Error) -> Error {
    let reason = match rustix::io::Errno::from_io_error(&error) {
        Some(rustix::io::Errno::BUSY) => Reason::ResourceBusy,
        _ => Reason::DeviceFailed,
    };
    Error::new(reason, format!("the drive refuses: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_drive_is_refused() {
        assert!(LinuxDrive::open(Path::new("/dev/null")).err().unwrap().is(Reason::ResourceInvalid));
        assert!(LinuxDrive::open(Path::new("/dev/sr99")).err().unwrap().is(Reason::DeviceAway));
        assert!(discover().iter().all(|path| path.starts_with("/dev")));
    }

    #[test]
    fn errors_of_the_kernel_are_told_apart() {
        let of = |errno: rustix::io::Errno| fault(errno.into(), 4096);
        assert!(matches!(of(rustix::io::Errno::IO), ReadFault::Sector(2)));
        assert!(matches!(of(rustix::io::Errno::NOMEDIUM), ReadFault::Gone));
        assert!(matches!(of(rustix::io::Errno::ACCESS), ReadFault::Failed(_)));
    }
}
