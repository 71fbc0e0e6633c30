//! The lender's own time, by which borrowed space ends: it only goes forward, and never faster than real time.
//!
//! Neither clock of a machine is enough. The monotonic one begins anew with each boot; the wall clock jumps, when a person sets
//! it, when NTP corrects it, when a machine without a battery starts in 1970. So the lender counts for itself:
//!
//! * **While the machine is up, only the clock since boot counts** (`CLOCK_BOOTTIME`, which goes on during sleep). It is the
//!   same clock for each process of one boot, so a restart of the program loses nothing. The wall clock may jump as it likes.
//! * **Time while the machine was off** can only come from the wall clock: what it shows now, less what it showed when it was
//!   last noted, less what has passed since. It is believed only after the machine has been up for ten minutes, so that NTP
//!   has had its chance; only if both readings lie between 2026 and 2200; and only if it is positive.
//!
//! Where that errs it errs to *later*: what was borrowed is kept for longer than agreed, for at most the time that the machine
//! was off. The one exception is a wall clock that is wrong, into the future, for more than ten minutes after a boot, and
//! that no NTP corrects: nobody could know better.
//!
//! `time` on disk holds [`Saved`], written each minute; after a power cut the missing seconds come out of the same rule.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long after a boot the wall clock is not believed.
const GRACE: Duration = Duration::from_secs(600);
/// Between these the wall clock may be right: 2026-01-01 and 2200-01-01.
const BELIEVABLE_MS: std::ops::Range<u64> = 1_767_225_600_000..7_258_118_400_000;

/// What the machine's clocks show.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reading {
    /// Another one with each boot; zeros if the machine does not say.
    pub boot: [u8; 16],
    /// Milliseconds since then.
    pub since_boot_ms: u64,
    /// Milliseconds since 1970, as the wall clock has it.
    pub wall_ms: u64,
}

/// Reads the machine's clocks.
pub trait Clocks: Send + Sync + 'static {
    /// What they show now.
    fn read(&self) -> Reading;
}

/// The clocks of the operating system.
#[derive(Clone, Copy, Debug)]
pub struct SystemClocks {
    boot: [u8; 16],
}

impl SystemClocks {
    /// Finds out which boot this is. Where the system does not tell, each process counts as a boot of its own.
    pub fn new() -> Self {
        let told = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        let boot = told.and_then(|text| uuid::Uuid::parse_str(text.trim()).ok());
        Self { boot: *boot.unwrap_or_else(uuid::Uuid::new_v4).as_bytes() }
    }
}

impl Default for SystemClocks {
    fn default() -> Self {
        Self::new()
    }
}

impl Clocks for SystemClocks {
    fn read(&self) -> Reading {
        let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(up.tv_sec).unwrap_or(0);
        let since_boot_ms = seconds * 1000 + u64::try_from(up.tv_nsec).unwrap_or(0) / 1_000_000;
        let wall_ms = common::clock::Clock::now_ms(&common::clock::SystemClock);
        Reading { boot: self.boot, since_boot_ms, wall_ms }
    }
}

/// What is kept on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Saved {
    /// The lender's time.
    lender_ms: u64,
    boot: [u8; 16],
    since_boot_ms: u64,
    wall_ms: u64,
    /// Wall clock and lender's time when the machine was last known to be up before it was off, if that time is not yet
    /// counted.
    off_since: Option<(u64, u64)>,
}

/// The lender's time while it runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct LenderTime {
    /// The lender's time at `anchor`.
    base_ms: u64,
    /// Since boot.
    anchor_ms: u64,
    boot: [u8; 16],
    off_since: Option<(u64, u64)>,
    newest_ms: u64,
}

impl LenderTime {
    /// Goes on from what was saved.
    pub(super) fn open(saved: Option<Saved>, now: &Reading) -> Self {
        let new = |base_ms, off_since| Self {
            base_ms,
            anchor_ms: now.since_boot_ms,
            boot: now.boot,
            off_since,
            newest_ms: base_ms,
        };
        match saved {
            None => new(0, None),
            Some(s) if s.boot == now.boot && now.since_boot_ms >= s.since_boot_ms => {
                new(s.lender_ms.saturating_add(now.since_boot_ms - s.since_boot_ms), s.off_since)
            }
            Some(s) => {
                // An older time off that was not counted yet begins earlier, and contains this one.
                let off = s.off_since.or(BELIEVABLE_MS.contains(&s.wall_ms).then_some((s.wall_ms, s.lender_ms)));
                new(s.lender_ms, off)
            }
        }
    }

    /// The lender's time, in milliseconds. Never goes back.
    pub(super) fn now_ms(&mut self, now: &Reading) -> u64 {
        if now.boot == self.boot {
            let passed = now.since_boot_ms.saturating_sub(self.anchor_ms);
            self.newest_ms = self.newest_ms.max(self.base_ms.saturating_add(passed));
        }
        self.newest_ms
    }

    /// Counts the time that the machine was off, once the wall clock may be believed.
    pub(super) fn settle(&mut self, now: &Reading) {
        let lender = self.now_ms(now);
        let Some((wall_then, lender_then)) = self.off_since else { return };
        if u128::from(now.since_boot_ms) < GRACE.as_millis() || !BELIEVABLE_MS.contains(&now.wall_ms) {
            return;
        }
        let by_wall = now.wall_ms.saturating_sub(wall_then);
        let counted = lender.saturating_sub(lender_then);
        self.base_ms = self.base_ms.saturating_add(by_wall.saturating_sub(counted));
        self.off_since = None;
        self.now_ms(now);
    }

    /// What goes to disk.
    pub(super) fn save(&mut self, now: &Reading) -> Saved {
        Saved {
            lender_ms: self.now_ms(now),
            boot: now.boot,
            since_boot_ms: now.since_boot_ms,
            wall_ms: now.wall_ms,
            off_since: self.off_since,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: u64 = 3_600_000;
    const W: u64 = 1_800_000_000_000;

    fn at(boot: u8, since_boot_ms: u64, wall_ms: u64) -> Reading {
        Reading { boot: [boot; 16], since_boot_ms, wall_ms }
    }

    #[test]
    fn the_wall_clock_may_jump_while_the_machine_is_up() {
        let mut time = LenderTime::open(None, &at(1, 0, W));
        for wall in [W + HOUR, 0, W + 1_000_000 * HOUR, 5, u64::MAX] {
            time.settle(&at(1, HOUR, wall));
            assert_eq!(time.now_ms(&at(1, HOUR, wall)), HOUR);
            // A restart of the program in the same boot.
            let mut again = LenderTime::open(Some(time.save(&at(1, HOUR, wall))), &at(1, 2 * HOUR, 7));
            assert_eq!(again.now_ms(&at(1, 2 * HOUR, 7)), 2 * HOUR);
        }
    }

    #[test]
    fn time_off_counts_after_the_grace_and_what_ntp_corrects_by_then_does_not() {
        let saved = LenderTime::open(None, &at(1, 0, W)).save(&at(1, HOUR, W + HOUR));
        // Off for ten hours; the clock starts wrong by years.
        let boot = at(2, 5_000, W + 90_000 * HOUR);
        let mut time = LenderTime::open(Some(saved), &boot);
        time.settle(&boot);
        assert_eq!(time.now_ms(&boot), HOUR);
        // The program restarts within the grace; NTP has corrected the clock by then.
        let soon = at(2, 65_000, W + 11 * HOUR + 60_000);
        let mut time = LenderTime::open(Some(time.save(&soon)), &soon);
        time.settle(&soon);
        assert_eq!(time.now_ms(&soon), HOUR + 60_000);
        let later = at(2, 605_000, W + 11 * HOUR + 600_000);
        time.settle(&later);
        assert_eq!(time.now_ms(&later), 11 * HOUR + 600_000);
        time.settle(&at(2, 605_000, W + 99 * HOUR));
        assert_eq!(time.now_ms(&at(2, 605_000, 0)), 11 * HOUR + 600_000, "it is counted once");
    }

    #[test]
    fn clocks_that_cannot_be_right_are_not_believed() {
        for (then, now) in [(5, W), (W, 5), (W, W - HOUR), (W, u64::MAX)] {
            let saved = LenderTime::open(None, &at(1, 0, then)).save(&at(1, HOUR, then));
            let reading = at(2, HOUR, now);
            let mut time = LenderTime::open(Some(saved), &reading);
            time.settle(&reading);
            assert_eq!(time.now_ms(&reading), HOUR, "{then} {now}");
        }
    }

    proptest! {
        /// With a wall clock that is right at each end of a grace, and wrong in any way between, the lender's time is never
        /// ahead of real time and never goes back.
        #[test]
        fn never_ahead_of_real_time(steps in prop::collection::vec((0u64..3 * HOUR, 0u8..6, any::<u64>()), 1..60)) {
            let (mut real, mut boot, mut booted, mut last) = (0u64, 1u8, 0u64, 0u64);
            let mut time = LenderTime::open(None, &at(1, 0, W));
            for (by, what, wrong) in steps {
                let before = at(boot, real - booted, W + real);
                let saved = time.save(&before);
                real += by;
                match what {
                    0 => {
                        boot = boot.wrapping_add(1);
                        booted = real;
                        time = LenderTime::open(Some(saved), &at(boot, 0, wrong));
                    }
                    1 => time = LenderTime::open(Some(saved), &at(boot, real - booted, wrong)),
                    _ => {}
                }
                let up = real - booted;
                let wall = if up >= 600_000 { W + real } else { wrong };
                time.settle(&at(boot, up, wall));
                let now = time.now_ms(&at(boot, up, wrong));
                prop_assert!(now <= real, "{now} {real}");
                prop_assert!(now >= last);
                last = now;
            }
        }
    }
}
