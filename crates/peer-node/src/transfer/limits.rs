//! Bandwidth: taken as needed, released when free; capped, scheduled and yielding on demand.
//!
//! Nothing is reserved. Without a cap, transfers share what the lines give as TCP shares it. With one, they take turns at a
//! [`Bucket`]: who waits longest is next, each takes about a piece, so all get the same. Only content goes through the
//! buckets; control messages are never throttled.
//!
//! *Yielding*: twice a second the bytes of the busiest network card are compared with those of this node ([`Yielding`]). If
//! others use more than a twentieth of the line, this node leaves them twice what they use and a tenth of the line, and
//! keeps at least a tenth for itself. Two quiet seconds end it.

mod schedule;
mod traffic;

pub use schedule::Schedule;
pub use traffic::{NetworkCards, Traffic, Usage, Yielding};

use common::error::Result;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How much may be taken at once after a pause: so much time at the rate, and at least [`MIN_BURST`].
const BURST: Duration = Duration::from_millis(100);
const MIN_BURST: f64 = 64.0 * 1024.0;

/// Caps; 0 means none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Bytes a second to others.
    pub upload_rate: u64,
    /// Bytes a second from others.
    pub download_rate: u64,
    /// When the caps hold, for example `mon-fri 08:00-18:00`; empty means always.
    pub schedule: String,
    /// Stay out of the way of this machine's other traffic.
    pub yields: bool,
}

impl Limits {
    /// Checks the schedule.
    ///
    /// # Errors
    /// FIELD_INVALID.
    pub fn check(&self) -> Result<()> {
        Schedule::parse(&self.schedule).map(drop)
    }
}

/// What a bucket holds. The rule without the waiting.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Level {
    /// Bytes a second; `None` means no cap.
    rate: Option<f64>,
    /// May be negative: a piece is not divided.
    tokens: f64,
}

impl Level {
    fn fill(&mut self, passed: Duration) {
        if let Some(rate) = self.rate {
            let most = (rate * BURST.as_secs_f64()).max(MIN_BURST);
            self.tokens = (self.tokens + rate * passed.as_secs_f64()).min(most);
        }
    }

    /// How long until something may be taken; `None` if now.
    fn wait(&self) -> Option<Duration> {
        let rate = self.rate?;
        (self.tokens <= 0.0).then(|| Duration::from_secs_f64((1.0 - self.tokens) / rate.max(1.0)))
    }
}

/// Gives out bandwidth in turn.
#[derive(Debug)]
pub struct Bucket {
    level: Mutex<(Level, Instant)>,
    /// Held while waiting, first come, first served.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
    used: AtomicU64,
}

impl Default for Bucket {
    fn default() -> Self {
        let level = Level { rate: None, tokens: 0.0 };
        Self {
            level: Mutex::new((level, Instant::now())),
            turn: tokio::sync::Mutex::new(()),
            changed: Notify::new(),
            used: AtomicU64::new(0),
        }
    }
}

impl Bucket {
    /// Changes the rate, bytes a second; `None` lifts the cap.
    pub fn set_rate(&self, rate: Option<u64>) {
        let mut level = self.level.lock();
        let passed = level.1.elapsed();
        level.0.fill(passed);
        level.1 = Instant::now();
        let rate = rate.map(|r| r as f64);
        if rate != level.0.rate {
            level.0 = Level { rate, tokens: level.0.tokens.min(0.0) };
            drop(level);
            self.changed.notify_one();
        }
    }

    /// True if there is a cap now.
    pub fn is_capped(&self) -> bool {
        self.level.lock().0.rate.is_some()
    }

    /// Bytes that have moved in all.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Counts bytes that have moved.
    pub fn count(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes bytes out. May bring the bucket below zero; the next one waits for it.
    pub fn take(&self, bytes: u64) {
        let mut level = self.level.lock();
        if level.0.rate.is_some() {
            level.0.tokens -= bytes as f64;
        }
    }

    /// Waits until something may be taken. Who waits first is first.
    pub async fn ready(&self) {
        if !self.is_capped() {
            return;
        }
        let _turn = self.turn.lock().await;
        loop {
            let wait = {
                let mut level = self.level.lock();
                let passed = level.1.elapsed();
                level.0.fill(passed);
                level.1 = Instant::now();
                level.0.wait()
            };
            let Some(wait) = wait else { return };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.changed.notified() => {}
            }
        }
    }
}

/// Both directions, and what decides their rates.
#[derive(Clone)]
pub struct Limiter(Arc<Inner>);

struct Inner {
    upload: Bucket,
    download: Bucket,
    limits: Mutex<(Limits, Schedule)>,
    yields: Mutex<(Yielding, bool)>,
}

impl Limiter {
    /// With these limits; they must have been checked.
    ///
    /// # Errors
    /// FIELD_INVALID if the schedule cannot be read.
    pub fn new(limits: Limits) -> Result<Self> {
        let schedule = Schedule::parse(&limits.schedule)?;
        let limiter = Self(Arc::new(Inner {
            upload: Bucket::default(),
            download: Bucket::default(),
            limits: Mutex::new((limits, schedule)),
            yields: Mutex::new((Yielding::default(), false)),
        }));
        Ok(limiter)
    }

    /// What goes to others.
    pub fn upload(&self) -> &Bucket {
        &self.0.upload
    }

    /// What comes from others.
    pub fn download(&self) -> &Bucket {
        &self.0.download
    }

    /// Those in force.
    pub fn limits(&self) -> Limits {
        self.0.limits.lock().0.clone()
    }

    /// Puts others in force, from now on.
    ///
    /// # Errors
    /// FIELD_INVALID if the schedule cannot be read; then nothing was changed.
    pub fn set(&self, limits: Limits, now_ms: u64) -> Result<()> {
        let schedule = Schedule::parse(&limits.schedule)?;
        *self.0.limits.lock() = (limits, schedule);
        self.apply(now_ms, None);
        Ok(())
    }

    /// True while this node holds back for other traffic.
    pub fn is_yielding(&self) -> bool {
        self.0.yields.lock().1
    }

    /// Sets the rates anew; to be called twice a second with what the network cards have moved.
    pub fn apply(&self, now_ms: u64, usage: Option<Usage>) {
        let (limits, holds) = {
            let limits = self.0.limits.lock();
            (limits.0.clone(), limits.1.holds_at(now_ms))
        };
        let own = Usage { sent: self.0.upload.used(), received: self.0.download.used(), line_rate: None };
        let held = {
            let mut yields = self.0.yields.lock();
            let held = match usage {
                Some(usage) => yields.0.step(now_ms, usage, own),
                None => yields.0.held(),
            };
            let held = if limits.yields { held } else { (None, None) };
            yields.1 = held != (None, None);
            held
        };
        let cap = |rate: u64, held: Option<u64>| {
            let rate = (holds && rate > 0).then_some(rate);
            match (rate, held) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            }
        };
        self.0.upload.set_rate(cap(limits.upload_rate, held.0));
        self.0.download.set_rate(cap(limits.download_rate, held.1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capped_bucket_gives_its_rate_and_no_more() {
        let mut level = Level { rate: Some(1_000_000.0), tokens: 0.0 };
        let (mut given, mut time) = (0.0, Duration::ZERO);
        for n in 0..1000 {
            let piece = 1000.0 + f64::from(n % 7) * 40_000.0;
            if let Some(wait) = level.wait() {
                time += wait;
                level.fill(wait);
            }
            level.tokens -= piece;
            given += piece;
        }
        let rate = given / time.as_secs_f64();
        assert!((0.97e6..1.03e6).contains(&rate), "{rate}");
    }

    #[test]
    fn an_idle_bucket_saves_a_tenth_of_a_second() {
        let mut level = Level { rate: Some(10e6), tokens: 0.0 };
        level.fill(Duration::from_secs(60));
        assert_eq!(level.tokens, 1e6);
    }

    #[tokio::test]
    async fn lifting_the_cap_frees_who_waits() {
        let bucket = Arc::new(Bucket::default());
        bucket.set_rate(Some(1));
        bucket.take(1_000_000);
        let waiting = tokio::spawn({
            let bucket = bucket.clone();
            async move { bucket.ready().await }
        });
        tokio::task::yield_now().await;
        bucket.set_rate(None);
        waiting.await.unwrap();
    }

    #[test]
    fn caps_hold_when_the_schedule_says() {
        let limits = Limits { upload_rate: 5, download_rate: 0, schedule: String::new(), yields: false };
        let limiter = Limiter::new(limits.clone()).unwrap();
        limiter.apply(0, None);
        assert!(limiter.upload().is_capped() && !limiter.download().is_capped());
        assert!(Limiter::new(Limits { schedule: "whenever".into(), ..limits }).is_err());
    }
}
