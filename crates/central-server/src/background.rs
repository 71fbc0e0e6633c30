//! Work that goes on by itself. Each task is a loop of passes, so it never overlaps itself; a pass that fails is logged,
//! counted and shown as a problem until one goes well, and is tried again at its next time. Tasks end between passes when
//! the server stops, and a pass in a blocking thread is waited for.

mod tasks;

use crate::metrics::Metrics;
use crate::serve::Shared;
use common::error::Result;
use common::shutdown::Shutdown;
use common::tls::ServerIdentity;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// When a task makes its passes.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    /// Its name, in metrics and problems.
    name: &'static str,
    /// Time to the first pass.
    first: Duration,
    /// Time from one pass to the next, give or take a tenth, so that many servers do not do it at the same moment.
    every: Duration,
}

/// Starts everything. It ends with the shutdown, which waits for it.
pub fn spawn(shared: &Shared, identity: ServerIdentity, shutdown: &Shutdown) {
    let app = &shared.app;
    let settings = &app.settings;
    let start = |schedule: Schedule, task: fn(crate::app::App) -> tasks::Pass| {
        let (app, metrics, stop) = (app.clone(), shared.metrics.clone(), shutdown.token());
        shutdown.spawn(async move {
            let health = app.health.clone();
            let outcome = |outcome: &Result<()>| health.report_outcome(schedule.name, outcome);
            repeat(schedule, &stop, &metrics, outcome, || task(app.clone())).await;
        });
    };
    let minute = Duration::from_secs(60);
    let at = |name, first, every| Schedule { name, first, every };
    start(at("disk-space", Duration::ZERO, Duration::from_secs(5)), tasks::disk_space);
    start(at("expiry", minute, minute), tasks::expiry);
    start(at("print", minute, minute), tasks::print);
    start(at("last-seen", minute, minute), tasks::last_seen);
    start(at("retention", minute, settings.files.retention_interval.get()), tasks::retention);
    start(at("purge", Duration::from_secs(5), Duration::from_secs(30)), tasks::purge);
    start(at("change-log", minute, Duration::from_secs(300)), tasks::change_log);
    start(at(crate::app::reclaim::PART_PASS, minute * 10, settings.chunks.reclaim_interval.get()), tasks::reclaim);
    start(at("scrub", settings.chunks.scrub_interval.get() / 2, settings.chunks.scrub_interval.get()), tasks::scrub);
    // At the start too, if the newest one is older than the interval.
    let age = Duration::from_millis(app.clock.now_ms().saturating_sub(crate::app::admin::snapshot_ms(app)));
    let due = settings.store.snapshot_interval.get().saturating_sub(age).max(Duration::from_secs(10));
    start(at("snapshot", due, settings.store.snapshot_interval.get()), tasks::snapshot);

    shutdown.spawn(identity.keep_fresh(app.office.tls.clone(), app.clock.clone(), shutdown.clone()));
    shutdown.spawn(tasks::credentials(app.clone(), shared.pipeline.streams().clone(), shutdown.token()));
    shutdown.spawn(tasks::feed(app.clone(), shutdown.token()));
}

async fn repeat<F: Future<Output = Result<()>>>(
    schedule: Schedule,
    stop: &CancellationToken,
    metrics: &Arc<Metrics>,
    outcome: impl Fn(&Result<()>),
    mut pass: impl FnMut() -> F,
) {
    let mut wait = schedule.first;
    loop {
        if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
        // Not cut off: what a pass does in a blocking thread goes on anyway, and is to be waited for.
        let result = pass().await;
        if stop.is_cancelled() {
            return;
        }
        metrics.task_ran(schedule.name, result.is_ok());
        outcome(&result);
        wait = jittered(schedule.every);
    }
}

fn jittered(every: Duration) -> Duration {
    every.mul_f64(0.9 + 0.2 * rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::error::{Error, Reason};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn passes_go_on_after_a_failure_and_end_with_the_server() {
        let stop = CancellationToken::new();
        let passes = AtomicUsize::new(0);
        let outcomes = Mutex::new(Vec::new());
        let schedule = Schedule { name: "t", first: Duration::ZERO, every: Duration::from_millis(1) };
        let metrics = Arc::new(Metrics::default());
        let note = |outcome: &Result<()>| outcomes.lock().expect("lock").push(outcome.is_ok());
        repeat(schedule, &stop, &metrics, note, || {
            let number = passes.fetch_add(1, Ordering::Relaxed);
            let stop = stop.clone();
            async move {
                match number {
                    0 => Err(Error::new(Reason::IoFailed, "once")),
                    1 => Ok(()),
                    _ => {
                        stop.cancel();
                        Ok(())
                    }
                }
            }
        })
        .await;
        assert_eq!(*outcomes.lock().expect("lock"), [false, true]);
        assert_eq!(passes.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn the_time_between_passes_varies_by_a_tenth() {
        for _ in 0..1000 {
            let wait = jittered(Duration::from_secs(100));
            assert!((Duration::from_secs(90)..=Duration::from_secs(110)).contains(&wait));
        }
    }
}
