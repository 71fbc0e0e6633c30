//! A drive whose discs are image files: with a tray, and with the faults that discs and drives have.
//!
//! It goes through the same code as a real drive. Its [`IsoControl`] is the person at the machine: puts discs in, presses
//! the button, pulls a disc out in the middle of a read, scratches it.

mod control;

use super::drive::{Condition, Drive, ReadFault, SECTOR_BYTES, Tray, Wake, sectors};
use common::error::{Error, Reason, Result};
pub use control::IsoControl;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is wrong with a disc or its drive.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Faults {
    /// Sectors that cannot be read.
    pub bad: Vec<Range<u64>>,
    /// Share of all other sectors that cannot be read, chosen by a seed.
    pub random: Option<(f64, u64)>,
    /// A bad sector can be read at this attempt; never if absent.
    pub heals_after: Option<u32>,
    /// Time that each read takes.
    pub delay: Duration,
    /// Time between putting a disc in and its being ready.
    pub loading: Duration,
}

impl Faults {
    /// The first sector of a range that cannot be read.
    pub fn first_bad(&self, range: Range<u64>) -> Option<u64> {
        if self.bad.is_empty() && self.random.is_none() {
            return None;
        }
        range.into_iter().find(|sector| self.is_bad(*sector))
    }

    /// True for a sector that cannot be read.
    pub fn is_bad(&self, sector: u64) -> bool {
        let listed = self.bad.iter().any(|range| range.contains(&sector));
        listed || self.random.is_some_and(|(share, seed)| (mix(seed ^ mix(sector)) as f64) < share * u64::MAX as f64)
    }
}

/// SplitMix64: spreads a number evenly over all numbers.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Attempts that are counted at most.
const MAX_ATTEMPTS: usize = 1 << 20;

/// A disc that is an image file.
#[derive(Clone)]
struct Image {
    file: Arc<File>,
    size: u64,
}

/// The drive's insides.
struct Inside {
    open: bool,
    locked: bool,
    image: Option<Image>,
    medium: u64,
    ready_at: Instant,
    faults: Faults,
    attempts: HashMap<u64, u32>,
    wake: Option<Wake>,
}

/// Shared by the drive and its control.
struct Shared {
    inside: Mutex<Inside>,
    changed: Condvar,
}

impl Shared {
    /// Changes something; slow reads and the drive's thread are told.
    fn change<T>(&self, change: impl FnOnce(&mut Inside) -> T) -> T {
        let mut inside = self.inside.lock();
        let result = change(&mut inside);
        let wake = inside.wake.clone();
        drop(inside);
        self.changed.notify_all();
        if let Some(wake) = wake {
            wake();
        }
        result
    }
}

impl Inside {
    fn tray(&self) -> Tray {
        match &self.image {
            _ if self.open => Tray::Open,
            None => Tray::Empty,
            Some(_) if Instant::now() < self.ready_at => Tray::Loading,
            Some(_) => Tray::Ready,
        }
    }

    fn open_tray(&mut self) -> Result<()> {
        if self.locked {
            return Err(Error::new(Reason::ResourceBusy, "the tray is locked"));
        }
        self.open = true;
        self.medium += 1;
        Ok(())
    }

    fn close_tray(&mut self) {
        if self.open {
            self.open = false;
            self.medium += 1;
            self.ready_at = Instant::now() + self.faults.loading;
        }
    }
}

/// See the module.
pub struct IsoDrive(Arc<Shared>);

impl IsoDrive {
    /// A drive with its tray closed and empty.
    pub fn new() -> (Self, IsoControl) {
        let inside = Inside {
            open: false,
            locked: false,
            image: None,
            medium: 1,
            ready_at: Instant::now(),
            faults: Faults::default(),
            attempts: HashMap::new(),
            wake: None,
        };
        let shared = Arc::new(Shared { inside: Mutex::new(inside), changed: Condvar::new() });
        (Self(shared.clone()), IsoControl::new(shared))
    }

    /// Waits as long as the faults say, and no longer than the disc is there.
    fn wait(&self, medium: u64, deadline: Instant) -> Result<Image, ReadFault> {
        let mut inside = self.0.inside.lock();
        let until = Instant::now() + inside.faults.delay;
        loop {
            let image = inside.image.clone().filter(|_| inside.medium == medium && inside.tray() == Tray::Ready);
            let Some(image) = image else { return Err(ReadFault::Gone) };
            let now = Instant::now();
            if now >= until {
                return Ok(image);
            }
            if now >= deadline {
                return Err(ReadFault::Late);
            }
            self.0.changed.wait_until(&mut inside, until.min(deadline));
        }
    }

    /// Fails as the faults say.
    fn scratch(&self, range: Range<u64>) -> Result<(), ReadFault> {
        let mut inside = self.0.inside.lock();
        let Inside { faults, attempts, .. } = &mut *inside;
        let mut from = range.start;
        while let Some(bad) = faults.first_bad(from..range.end) {
            let Some(heals) = faults.heals_after else { return Err(ReadFault::Sector(bad)) };
            if attempts.len() < MAX_ATTEMPTS || attempts.contains_key(&bad) {
                let tried = attempts.entry(bad).or_default();
                *tried += 1;
                if *tried < heals {
                    return Err(ReadFault::Sector(bad));
                }
            }
            from = bad + 1;
        }
        Ok(())
    }
}

impl Drive for IsoDrive {
    fn model(&self) -> String {
        "image file".to_owned()
    }

    fn condition(&mut self) -> io::Result<Condition> {
        let inside = self.0.inside.lock();
        Ok(Condition { tray: inside.tray(), medium: inside.medium })
    }

    fn size_bytes(&mut self) -> io::Result<u64> {
        Ok(self.0.inside.lock().image.as_ref().map_or(0, |image| image.size))
    }

    fn read(&mut self, sector: u64, into: &mut [u8], deadline: Instant) -> std::result::Result<(), ReadFault> {
        let medium = self.0.inside.lock().medium;
        let image = self.wait(medium, deadline)?;
        self.scratch(sector..sector.saturating_add(sectors(into.len() as u64)))?;
        match image.file.read_exact_at(into, sector.saturating_mul(SECTOR_BYTES.into())) {
            Ok(()) => Ok(()),
            // Somebody has shortened the file.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(ReadFault::Sector(sector)),
            Err(e) => Err(ReadFault::Failed(e)),
        }
    }

    fn eject(&mut self) -> Result<()> {
        self.0.change(|inside| {
            inside.locked = false;
            inside.open_tray()
        })
    }

    fn close_tray(&mut self) -> Result<()> {
        self.0.change(Inside::close_tray);
        Ok(())
    }

    fn lock_tray(&mut self, locked: bool) -> Result<()> {
        self.0.inside.lock().locked = locked;
        Ok(())
    }

    fn wake_by(&mut self, wake: Wake) {
        self.0.inside.lock().wake = Some(wake);
    }

    fn is_kept_below(&self) -> bool {
        true
    }

    fn poll_every(&self) -> Duration {
        // Changes are told at once, all but the end of loading.
        Duration::from_millis(100)
    }
}
