//! What else goes over the line.

use std::fs;
use std::path::PathBuf;

/// Others use less than this part of the line, or less than [`QUIET_RATE`]: the line is quiet.
const QUIET_PART: f64 = 0.05;
/// Bytes a second.
const QUIET_RATE: f64 = 256e3;
/// Quiet so long, and nothing is held back any more, milliseconds.
const QUIET_MS: u64 = 2_000;
/// What headers, encryption and confirmations add to content at most.
const OVERHEAD: f64 = 1.08;
/// The highest rate seen counts for so long, as time constant in milliseconds.
const MEMORY_MS: f64 = 60_000.0;

/// Bytes that went over a network card since it was switched on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Sent.
    pub sent: u64,
    /// Received.
    pub received: u64,
    /// What the card can do, bytes a second, if it says so.
    pub line_rate: Option<u64>,
}

/// Tells what the network cards have moved.
pub trait Traffic: Send + Sync + 'static {
    /// The busiest card since the last call; `None` if that cannot be told here. May block for a moment.
    fn usage(&mut self) -> Option<Usage>;
}

/// The system's own counters.
#[derive(Debug, Default)]
pub struct NetworkCards {
    last: Vec<(String, Usage)>,
    busiest: Option<String>,
    /// Sums over the changes of whichever card was the busiest.
    sum: Usage,
}

impl Traffic for NetworkCards {
    fn usage(&mut self) -> Option<Usage> {
        let now = read_cards(&fs::read_to_string("/proc/net/dev").ok()?);
        let change = |(name, usage): &(String, Usage)| {
            let before = self.last.iter().find(|(n, _)| n == name)?.1;
            let (sent, received) =
                (usage.sent.saturating_sub(before.sent), usage.received.saturating_sub(before.received));
            Some((sent + received, sent, received, name.clone()))
        };
        // A bridge and its card count the same bytes, so the busiest one counts and not the sum.
        if let Some((_, sent, received, name)) = now.iter().filter_map(change).max() {
            self.sum.sent += sent;
            self.sum.received += received;
            if self.busiest.as_ref() != Some(&name) {
                self.sum.line_rate = line_rate(&name);
                self.busiest = Some(name);
            }
        }
        self.last = now;
        Some(self.sum)
    }
}

fn read_cards(text: &str) -> Vec<(String, Usage)> {
    let card = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map_while(|n| n.parse().ok()).collect();
        let usage = Usage { received: *numbers.first()?, sent: *numbers.get(8)?, line_rate: None };
        (name.trim() != "lo").then(|| (name.trim().to_owned(), usage))
    };
    text.lines().filter_map(card).take(256).collect()
}

/// What a card says that it can do; virtual ones say nothing or nonsense.
fn line_rate(name: &str) -> Option<u64> {
    let speed = PathBuf::from("/sys/class/net").join(name).join("speed");
    let mbit: u64 = fs::read_to_string(speed).ok()?.trim().parse().ok()?;
    (1..=1_000_000).contains(&mbit).then_some(mbit * 125_000)
}

/// The rule, without the counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Yielding {
    last: Option<(u64, Usage, Usage)>,
    up: Direction,
    down: Direction,
}

#[derive(Clone, Copy, Debug, Default)]
struct Direction {
    line: f64,
    others: f64,
    quiet_ms: u64,
    held: Option<u64>,
}

impl Yielding {
    /// What this node may use of each direction (to others, from others); `None` if it need not hold back.
    pub fn step(&mut self, now_ms: u64, all: Usage, own: Usage) -> (Option<u64>, Option<u64>) {
        if let Some((then, all_then, own_then)) = self.last
            && now_ms > then
        {
            let ms = now_ms - then;
            let change = |now: u64, then: u64| now.saturating_sub(then);
            self.up.step(ms, change(all.sent, all_then.sent), change(own.sent, own_then.sent), all.line_rate);
            let received = (change(all.received, all_then.received), change(own.received, own_then.received));
            self.down.step(ms, received.0, received.1, all.line_rate);
        }
        self.last = Some((now_ms, all, own));
        self.held()
    }

    /// As [`Yielding::step`] said last.
    pub fn held(&self) -> (Option<u64>, Option<u64>) {
        (self.up.held, self.down.held)
    }
}

impl Direction {
    fn step(&mut self, ms: u64, all: u64, own: u64, line_rate: Option<u64>) {
        let a_second = 1000.0 / ms as f64;
        let all = all as f64 * a_second;
        let fade = (-(ms as f64) / MEMORY_MS).exp();
        self.line = line_rate.map_or((self.line * fade).max(all), |r| r as f64);
        let others = (all - own as f64 * a_second * OVERHEAD).max(0.0);
        // Follows half a second behind: one look may fall between sending and counting.
        self.others = (self.others + others) / 2.0;
        if self.others < (self.line * QUIET_PART).max(QUIET_RATE) {
            self.quiet_ms += ms;
            if self.quiet_ms >= QUIET_MS {
                self.held = None;
            }
            return;
        }
        self.quiet_ms = 0;
        let left = self.line * 0.9 - 2.0 * self.others;
        self.held = Some(left.max(self.line * 0.1).max(1.0) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Office {
        now: u64,
        all: Usage,
        own: Usage,
        rule: Yielding,
    }

    impl Office {
        /// Half a second in which this node and others received so much a second.
        fn half_second(&mut self, own: u64, others: u64) -> Option<u64> {
            self.now += 500;
            self.own.received += own / 2;
            self.all.received += own * 106 / 200 + others / 2;
            self.rule.step(self.now, self.all, self.own).1
        }
    }

    #[test]
    fn it_leaves_room_for_others_and_takes_it_back() {
        let mut office = Office { now: 0, all: Usage::default(), own: Usage::default(), rule: Yielding::default() };
        for _ in 0..10 {
            assert_eq!(office.half_second(11_000_000, 0), None, "alone on the line");
        }
        let mut held = None;
        for _ in 0..6 {
            held = office.half_second(8_000_000, 3_000_000);
        }
        let held = held.expect("holds back");
        assert!((1_000_000..5_500_000).contains(&held), "{held}");
        for _ in 0..6 {
            let least = office.half_second(1_200_000, 10_000_000).unwrap();
            assert!(least >= 1_000_000, "never nothing: {least}");
        }
        let released = (0..12).position(|_| office.half_second(1_200_000, 0).is_none()).expect("ends");
        assert!((4..=9).contains(&released), "{released} half seconds");
    }

    #[test]
    fn counters_of_the_system_are_read() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  eth0: 100 2 0 0 0 0 0 0 200 3 0 0 0 0 0 0\nbad: x\n";
        let cards = read_cards(text);
        assert_eq!(cards, [("eth0".to_owned(), Usage { sent: 200, received: 100, line_rate: None })]);
    }
}
