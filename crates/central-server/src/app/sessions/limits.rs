//! How often something may happen, per key, in bounded memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// A burst, and one more each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// As many at once.
    pub burst: u32,
    /// Then one each.
    pub period: Duration,
}

impl Limit {
    fn period_ms(self) -> u64 {
        u64::try_from(self.period.as_millis()).unwrap_or(u64::MAX).max(1)
    }
    fn room_ms(self) -> u64 {
        self.period_ms().saturating_mul(u64::from(self.burst.max(1)))
    }
}

/// One generic cell rate limiter per key (GCRA): the state of a key is the moment from which on its full burst is there
/// again, so that a key whose moment has passed need not be kept. At `capacity` keys the passed ones are dropped; if
/// none has passed, all further keys share one limiter, which refuses sooner but never later than their own would.
#[derive(Debug)]
pub struct Buckets<K> {
    limit: Limit,
    capacity: usize,
    full_at_ms: HashMap<K, u64>,
    shared_ms: u64,
    next_purge_ms: u64,
}

impl<K: Eq + Hash> Buckets<K> {
    /// No key has used anything.
    pub fn new(limit: Limit, capacity: usize) -> Self {
        Self { limit, capacity, full_at_ms: HashMap::new(), shared_ms: 0, next_purge_ms: 0 }
    }

    /// Takes one.
    ///
    /// # Errors
    /// How long to wait until there is one again.
    pub fn take(&mut self, key: K, now_ms: u64) -> Result<(), Duration> {
        let limit = self.limit;
        let full_at = self.slot(key, now_ms);
        // A clock that was set back must not lock anyone out for longer than the limit says.
        let from = (*full_at).clamp(now_ms, now_ms.saturating_add(limit.room_ms()));
        let after = from.saturating_add(limit.period_ms());
        match after.saturating_sub(now_ms).saturating_sub(limit.room_ms()) {
            0 => {
                *full_at = after;
                Ok(())
            }
            wait_ms => Err(Duration::from_millis(wait_ms)),
        }
    }

    /// Gives one back.
    pub fn give_back(&mut self, key: &K) {
        let period_ms = self.limit.period_ms();
        let full_at = self.full_at_ms.get_mut(key).unwrap_or(&mut self.shared_ms);
        *full_at = full_at.saturating_sub(period_ms);
    }

    /// Keys that are kept.
    pub fn len(&self) -> usize {
        self.full_at_ms.len()
    }

    /// True if no key is kept.
    pub fn is_empty(&self) -> bool {
        self.full_at_ms.is_empty()
    }

    fn slot(&mut self, key: K, now_ms: u64) -> &mut u64 {
        if self.full_at_ms.len() >= self.capacity && !self.full_at_ms.contains_key(&key) {
            // Looking at all keys costs time; under a flood of keys it is done once a period.
            if now_ms >= self.next_purge_ms {
                self.full_at_ms.retain(|_, full_at| *full_at > now_ms);
                self.next_purge_ms = now_ms.saturating_add(self.limit.period_ms());
            }
            if self.full_at_ms.len() >= self.capacity {
                return &mut self.shared_ms;
            }
        }
        self.full_at_ms.entry(key).or_insert(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit() -> Limit {
        Limit { burst: 3, period: Duration::from_secs(10) }
    }

    #[test]
    fn a_burst_then_one_each_period() {
        let mut buckets = Buckets::new(limit(), 10);
        for _ in 0..3 {
            assert_eq!(buckets.take("a", 1_000), Ok(()));
        }
        assert_eq!(buckets.take("a", 1_000), Err(Duration::from_secs(10)));
        assert_eq!(buckets.take("a", 6_000), Err(Duration::from_secs(5)));
        assert_eq!(buckets.take("a", 11_000), Ok(()));
        assert_eq!(buckets.take("a", 11_000), Err(Duration::from_secs(10)));
        assert_eq!(buckets.take("b", 11_000), Ok(()), "another key has its own");
        for _ in 0..3 {
            assert_eq!(buckets.take("a", 100_000), Ok(()), "no more than the burst is saved up");
        }
        assert!(buckets.take("a", 100_000).is_err());
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let mut buckets = Buckets::new(limit(), 10);
        for _ in 0..20 {
            assert_eq!(buckets.take("a", 1_000), Ok(()));
            buckets.give_back(&"a");
        }
    }

    #[test]
    fn a_clock_set_back_locks_nobody_out() {
        let mut buckets = Buckets::new(limit(), 10);
        for _ in 0..3 {
            assert_eq!(buckets.take("a", 1_000_000_000), Ok(()));
        }
        assert_eq!(buckets.take("a", 1_000), Err(Duration::from_secs(10)));
    }

    #[test]
    fn the_table_is_bounded_and_stays_safe_at_its_bound() {
        let mut buckets = Buckets::new(limit(), 100);
        let allowed = (0..10_000).filter(|key| buckets.take(*key, 1_000).is_ok()).count();
        assert_eq!(buckets.len(), 100);
        assert_eq!(allowed, 103, "those beyond the bound share one burst");
        assert_eq!(buckets.take(20_000, 60_000), Ok(()), "passed keys make room");
        assert_eq!(buckets.len(), 1);
    }
}
