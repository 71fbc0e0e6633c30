//! Trying again, without making things worse.
//!
//! Only errors that say so themselves ([`Error::is_transient`]) are tried again, after delays that double, have random
//! jitter (so that a thousand clients do not come back in one instant) and are bounded in length and in number. If the
//! other side said when to come back, that is when we come, however short our own delay would be.

use crate::error::{Error, Result};
use backon::BackoffBuilder;
use std::future::Future;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A server that asks for more patience than this is not waited for.
pub const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// How often and how long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// First delay, before jitter.
    pub first: Duration,
    /// Longest delay, before jitter; jitter adds less than the delay itself.
    pub longest: Duration,
    /// How many times to try again; 0 means never.
    pub retries: usize,
    /// No retry begins when the delays already add up to this.
    pub in_all: Duration,
}

impl RetryPolicy {
    /// For a person who waits: about half a minute.
    pub const INTERACTIVE: Self = Self {
        first: Duration::from_millis(100),
        longest: Duration::from_secs(4),
        retries: 10,
        in_all: Duration::from_secs(30),
    };

    /// For work in the background that must get through: about an hour, then the caller decides.
    pub const PATIENT: Self = Self {
        first: Duration::from_millis(200),
        longest: Duration::from_secs(60),
        retries: 80,
        in_all: Duration::from_secs(3600),
    };

    /// The delays of one piece of work.
    pub fn delays(&self) -> Backoff {
        Backoff { policy: *self, inner: self.build(), waited: Duration::ZERO }
    }

    fn build(&self) -> backon::ExponentialBackoff {
        backon::ExponentialBuilder::default()
            .with_min_delay(self.first)
            .with_max_delay(self.longest)
            .with_max_times(self.retries)
            .with_jitter()
            .build()
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::INTERACTIVE
    }
}

/// Gives one delay after the other.
#[derive(Debug)]
pub struct Backoff {
    policy: RetryPolicy,
    inner: backon::ExponentialBackoff,
    waited: Duration,
}

impl Backoff {
    /// How long to wait after this error; `None` if it is not to be tried again.
    pub fn after(&mut self, error: &Error) -> Option<Duration> {
        if !error.is_transient() || self.waited >= self.policy.in_all {
            return None;
        }
        let own = self.inner.next()?;
        let delay = match error.retry_delay() {
            Some(asked) if asked > LONGEST_ASKED => return None,
            Some(asked) => asked.max(own),
            None => own,
        };
        self.waited = self.waited.saturating_add(delay);
        Some(delay)
    }

    /// Begins anew, because something went well.
    pub fn reset(&mut self) {
        *self = self.policy.delays();
    }
}

/// Does it, again and again if need be. `operation` gets the number of the attempt, from 0.
///
/// # Errors
/// The last error, when it is not transient or the policy is exhausted.
pub async fn retry<T, F, Fut>(policy: &RetryPolicy, mut operation: F) -> Result<T>
where
    F: FnMut(u32) -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let mut delays = policy.delays();
    let mut attempt = 0u32;
    loop {
        let error = match operation(attempt).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let Some(delay) = delays.after(&error) else { return Err(error) };
        tracing::debug!(reason = error.reason(), attempt, ?delay, "trying again");
        tokio::time::sleep(delay).await;
        attempt = attempt.saturating_add(1);
    }
}

/// The same, until it is told to stop; then the last error is given back, or CANCELLED if there was none.
pub async fn retry_until<T, F, Fut>(policy: &RetryPolicy, stop: &CancellationToken, mut operation: F) -> Result<T>
where
    F: FnMut(u32) -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let mut delays = policy.delays();
    let mut attempt = 0u32;
    let mut last = None;
    loop {
        let given_up = || Error::new(crate::error::Reason::Cancelled, "given up because the program is stopping");
        let Some(done) = stop.run_until_cancelled(operation(attempt)).await else {
            return Err(last.unwrap_or_else(given_up));
        };
        let error = match done {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let Some(delay) = delays.after(&error) else { return Err(error) };
        tracing::debug!(reason = error.reason(), attempt, ?delay, "trying again");
        if stop.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
            return Err(error);
        }
        last = Some(error);
        attempt = attempt.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;
    use proptest::prelude::*;

    const FAST: RetryPolicy = RetryPolicy {
        first: Duration::from_micros(10),
        longest: Duration::from_micros(50),
        retries: 5,
        in_all: Duration::from_secs(60),
    };

    fn away() -> Error {
        Error::new(Reason::ServerUnreachable, "away")
    }

    #[tokio::test]
    async fn a_transient_error_is_tried_again_until_it_works() {
        let mut seen = Vec::new();
        let result = retry(&FAST, |attempt| {
            seen.push(attempt);
            async move { if attempt < 3 { Err(away()) } else { Ok(attempt) } }
        })
        .await;
        assert_eq!(result.unwrap(), 3);
        assert_eq!(seen, [0, 1, 2, 3]);
    }

    #[tokio::test]
    async fn any_other_error_comes_back_at_once() {
        let mut calls = 0;
        let result: Result<()> = retry(&FAST, |_| {
            calls += 1;
            async { Err(Error::new(Reason::EtagStale, "stale")) }
        })
        .await;
        assert!(result.unwrap_err().is(Reason::EtagStale));
        assert_eq!(calls, 1);
    }

    #[tokio::test]
    async fn the_number_of_retries_is_bounded() {
        let mut calls = 0;
        let result: Result<()> = retry(&FAST, |_| {
            calls += 1;
            async { Err(away()) }
        })
        .await;
        assert!(result.unwrap_err().is(Reason::ServerUnreachable));
        assert_eq!(calls, 6);
    }

    #[tokio::test]
    async fn stopping_ends_a_wait_and_an_attempt() {
        let slow = RetryPolicy { first: Duration::from_secs(3600), longest: Duration::from_secs(3600), ..FAST };
        let stop = CancellationToken::new();
        let result: Result<()> = retry_until(&slow, &stop, |_| {
            let stop = stop.clone();
            async move {
                stop.cancel();
                Err(away())
            }
        })
        .await;
        assert!(result.unwrap_err().is(Reason::ServerUnreachable));
        let result: Result<()> = retry_until(&slow, &stop, |_| std::future::pending()).await;
        assert!(result.unwrap_err().is(Reason::Cancelled));
    }

    #[test]
    fn the_other_sides_delay_is_kept_and_a_mad_one_is_not() {
        let mut delays = RetryPolicy::PATIENT.delays();
        let asked = Duration::from_secs(17);
        assert!(delays.after(&away().retry_after(asked)).unwrap() >= asked);
        assert_eq!(delays.after(&away().retry_after(LONGEST_ASKED + Duration::from_secs(1))), None);
    }

    #[test]
    fn success_starts_the_delays_anew() {
        let policy = RetryPolicy { retries: 1, ..FAST };
        let mut delays = policy.delays();
        assert!(delays.after(&away()).is_some());
        assert!(delays.after(&away()).is_none());
        delays.reset();
        assert!(delays.after(&away()).is_some());
    }

    proptest! {
        #[test]
        fn delays_stay_in_their_bounds(first in 1u64..500, longest in 500u64..5_000, retries in 0usize..40) {
            let policy = RetryPolicy {
                first: Duration::from_millis(first),
                longest: Duration::from_millis(longest),
                retries,
                in_all: Duration::from_secs(20),
            };
            let mut delays = policy.delays();
            let (mut count, mut sum) = (0, Duration::ZERO);
            while let Some(delay) = delays.after(&away()) {
                prop_assert!(delay >= policy.first && delay <= 2 * policy.longest, "{delay:?}");
                count += 1;
                sum += delay;
                prop_assert!(count <= retries);
            }
            prop_assert!(sum <= policy.in_all + 2 * policy.longest);
        }
    }
}
