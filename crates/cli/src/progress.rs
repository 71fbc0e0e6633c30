//! Progress of long work: a bar on a terminal, JSON lines with `--json`, nothing otherwise. Always on standard error.

use crate::output::Output;
use crate::output::format::{bytes, duration};
use crate::output::schema::Progress;
use common::flow::{Event, Progress as _, Totals};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// JSON lines come at most this often.
const EVERY: Duration = Duration::from_millis(250);
/// The rate follows changes with this half-life: calm enough to read, quick enough to believe.
const HALF_LIFE: f64 = 5.0;

/// How far the work is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes that the other side has.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Files that are finished.
    pub done_files: u64,
    /// Files in all.
    pub total_files: u64,
}

/// Shows progress. Clones share it.
#[derive(Clone)]
pub struct Meter(Arc<Mutex<Inner>>);

struct Inner {
    out: Output,
    action: &'static str,
    bar: Option<ProgressBar>,
    rate: Rate,
    counts: Counts,
    moved_bytes: u64,
    begin: Instant,
    last_line: Option<Instant>,
    finished: bool,
    remark: Option<String>,
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meter")
    }
}

impl Meter {
    /// For this work; `action` is the word in JSON lines.
    pub fn new(out: &Output, action: &'static str) -> Self {
        let bar = out.progress.then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8));
            let style = ProgressStyle::with_template("{bar:24} {percent:>3} %  {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        let now = Instant::now();
        Self(Arc::new(Mutex::new(Inner {
            out: out.clone(),
            action,
            bar,
            rate: Rate::new(now),
            counts: Counts::default(),
            moved_bytes: 0,
            begin: now,
            last_line: None,
            finished: false,
            remark: None,
        })))
    }

    /// The work is this far now.
    pub fn set(&self, counts: Counts) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.show(counts, Instant::now());
    }

    /// What else is worth knowing while it goes on, from now on.
    pub fn remark(&self, text: Option<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remark = text;
    }

    /// Says something on a line of its own, above the bar.
    pub fn say(&self, text: &str) {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &inner.bar {
            Some(bar) => bar.suspend(|| inner.out.note(text)),
            None => inner.out.note(text),
        }
    }

    /// Ends the display; says the last figures once in JSON.
    pub fn finish(&self) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.finish();
    }

    /// Time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).begin.elapsed()
    }
}

impl Meter {
    /// For one transfer of several: its figures are added to those of the others.
    pub fn part(&self) -> MeterPart {
        MeterPart { meter: self.clone(), last: Mutex::default() }
    }

    /// Adds a finished file that was moved in another way.
    pub fn add_finished(&self, bytes: u64) {
        let part = self.part();
        part.totals(Totals {
            done_bytes: bytes,
            total_bytes: bytes,
            done_files: 1,
            total_files: 1,
            moved_bytes: bytes,
        });
    }

    /// Content that crossed the line so far.
    pub fn moved_bytes(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).moved_bytes
    }
}

/// One transfer's share of a [`Meter`].
#[derive(Debug)]
pub struct MeterPart {
    meter: Meter,
    last: Mutex<Totals>,
}

impl common::flow::Progress for MeterPart {
    fn totals(&self, now: Totals) {
        let last = std::mem::replace(&mut *self.last.lock().unwrap_or_else(PoisonError::into_inner), now);
        let mut inner = self.meter.0.lock().unwrap_or_else(PoisonError::into_inner);
        let moved = |sum: u64, now: u64, last: u64| (sum + now).saturating_sub(last);
        let sum = inner.counts;
        let counts = Counts {
            done_bytes: moved(sum.done_bytes, now.done_bytes, last.done_bytes),
            total_bytes: moved(sum.total_bytes, now.total_bytes, last.total_bytes),
            done_files: moved(sum.done_files, now.done_files, last.done_files),
            total_files: moved(sum.total_files, now.total_files, last.total_files),
        };
        inner.moved_bytes = moved(inner.moved_bytes, now.moved_bytes, last.moved_bytes);
        inner.show(counts, Instant::now());
    }

    fn event(&self, event: Event<'_>) {
        let text = match event {
            Event::Waiting { error, delay } => format!("{error}; trying again in {}", duration(delay)),
            Event::Restarted { path } => format!("{path} was changed while it was read; reading it again"),
            Event::Finished { .. } | Event::Unchanged { .. } | Event::Skipped { .. } | Event::Failed { .. } => return,
        };
        self.meter.say(&text);
    }
}

impl Inner {
    fn show(&mut self, counts: Counts, now: Instant) {
        if self.finished {
            return;
        }
        self.counts = counts;
        self.rate.update(counts.done_bytes, now);
        if let Some(bar) = &self.bar {
            bar.set_length(counts.total_bytes.max(1));
            bar.set_position(counts.done_bytes.min(counts.total_bytes.max(1)));
            bar.set_message(self.text());
        } else if self.out.json && self.last_line.is_none_or(|last| now - last >= EVERY) {
            self.last_line = Some(now);
            self.line(false);
        }
    }

    fn text(&self) -> String {
        let c = &self.counts;
        let mut text = format!("{} of {}", bytes(c.done_bytes), bytes(c.total_bytes));
        if c.total_files > 1 {
            text.push_str(&format!(", {} of {} files", c.done_files, c.total_files));
        }
        text.push_str(&format!(", {}/s", bytes(self.rate.per_second() as u64)));
        if let Some(left) = self.seconds_left() {
            text.push_str(&format!(", {} left", duration(Duration::from_secs(left))));
        }
        if let Some(remark) = &self.remark {
            text.push_str(&format!("; {remark}"));
        }
        text
    }

    fn seconds_left(&self) -> Option<u64> {
        let left = self.counts.total_bytes.checked_sub(self.counts.done_bytes)?;
        let rate = self.rate.per_second();
        (rate >= 1.0).then(|| (left as f64 / rate).ceil() as u64)
    }

    fn line(&self, finished: bool) {
        let c = &self.counts;
        let progress = Progress {
            action: self.action.into(),
            done_bytes: c.done_bytes,
            total_bytes: c.total_bytes,
            done_files: c.done_files,
            total_files: c.total_files,
            bytes_per_second: self.rate.per_second() as u64,
            seconds_left: self.seconds_left(),
            remark: self.remark.clone(),
            finished,
        };
        self.out.err_line(&crate::output::envelope_text(&progress));
    }

    fn finish(&mut self) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        } else if self.out.json && self.last_line.is_some() {
            self.line(true);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A bar that was left standing would be mixed up with an error message.
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A rate that is smoothed over time, whatever the distance of the measurements.
#[derive(Debug)]
struct Rate {
    begin: Instant,
    last: Instant,
    last_bytes: u64,
    average: f64,
    weight: f64,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self { begin: now, last: now, last_bytes: 0, average: 0.0, weight: 0.0 }
    }

    fn update(&mut self, bytes: u64, now: Instant) {
        let seconds = now.saturating_duration_since(self.last).as_secs_f64();
        if seconds < 0.05 {
            return;
        }
        let rate = bytes.saturating_sub(self.last_bytes) as f64 / seconds;
        let keep = 0.5f64.powf(seconds / HALF_LIFE);
        self.average = self.average * keep + rate * (1.0 - keep);
        self.weight = self.weight * keep + (1.0 - keep);
        (self.last, self.last_bytes) = (now, bytes);
    }

    fn per_second(&self) -> f64 {
        if self.weight > 0.0 {
            return self.average / self.weight;
        }
        let seconds = self.last.saturating_duration_since(self.begin).as_secs_f64();
        if seconds > 0.0 { self.last_bytes as f64 / seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_right_from_the_start_and_follows() {
        let begin = Instant::now();
        let mut rate = Rate::new(begin);
        assert_eq!(rate.per_second() as u64, 0);
        let at = |ms| begin + Duration::from_millis(ms);
        for i in 1..=20u64 {
            rate.update(i * 100, at(i * 100));
            assert!((rate.per_second() - 1000.0).abs() < 1e-6);
        }
        let mut total = 2000;
        for i in 1..=300u64 {
            total += 10;
            rate.update(total, at(2000 + i * 100));
        }
        assert!((rate.per_second() - 100.0).abs() < 20.0, "{}", rate.per_second());
    }
}
