//! What the tasks do.

use crate::app::{App, audit, change_log, devices, disk, expiry, print, reclaim, retention};
use crate::grpc::auth::OpenStreams;
use common::error::{Error, Result};
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// One pass of a task.
pub(super) type Pass = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Steps of a pass; what is left waits for the next.
const STEPS_MAX: usize = 10_000;
/// How often the credentials of open streams are looked at where nothing calls for it sooner: sessions end by time.
const RECHECK: Duration = Duration::from_secs(15);
/// Events of credentials that come together are looked at together.
const RECHECK_PAUSE: Duration = Duration::from_millis(50);

async fn blocking(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("upkeep ran into a defect").caused_by(e))?
}

/// Is there room for data?
pub(super) fn disk_space(app: App) -> Pass {
    Box::pin(blocking(move || disk::look(&app).map(|_| ())))
}

/// Removes sessions, invites and answers whose time is over, sums up refusals that were not noted one by one, and looks
/// whether damaged content was mended.
pub(super) fn expiry(app: App) -> Pass {
    Box::pin(async move {
        audit::flush_refusals(&app).await;
        reclaim::look(&app);
        let removed = expiry::sweep(&app).await?;
        tracing::debug!(removed, "expired records removed");
        Ok(())
    })
}

/// Gives up print jobs that nobody printed, and forgets those that ended long ago.
pub(super) fn print(app: App) -> Pass {
    Box::pin(async move { print::upkeep::pass(&app).await })
}

/// Writes when devices were last seen.
pub(super) fn last_seen(app: App) -> Pass {
    Box::pin(async move { devices::flush_seen(&app).await })
}

/// Old versions and old trash go.
pub(super) fn retention(app: App) -> Pass {
    Box::pin(async move {
        let mut steps = 0;
        while steps < STEPS_MAX && !app.shutdown.is_cancelled() && retention::step(&app).await? {
            steps += 1;
        }
        Ok(())
    })
}

/// What was deleted for good goes, step by step.
pub(super) fn purge(app: App) -> Pass {
    Box::pin(async move {
        let mut steps = 0;
        while steps < STEPS_MAX && !app.shutdown.is_cancelled() && retention::purge_step(&app).await? {
            steps += 1;
        }
        Ok(())
    })
}

/// Keeps the change log as long as watchers are promised.
pub(super) fn change_log(app: App) -> Pass {
    Box::pin(async move { change_log::trim(&app).await.map(drop) })
}

/// Frees the space of content that nothing refers to.
pub(super) fn reclaim(app: App) -> Pass {
    Box::pin(async move { reclaim::pass(&app).await.map(|_| ()) })
}

/// Reads all content and compares it with its digests.
pub(super) fn scrub(app: App) -> Pass {
    Box::pin(blocking(move || {
        let rate = app.settings.chunks.scrub_rate.bytes();
        let report = reclaim::scrub(&app, rate, |_| match app.shutdown.is_cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })?;
        tracing::info!(chunks = report.progress.chunk_count, damaged = report.damaged.len(), "content checked");
        Ok(())
    }))
}

/// A consistent copy of the metadata beside it.
pub(super) fn snapshot(app: App) -> Pass {
    Box::pin(blocking(move || {
        let path = app.store.snapshot()?;
        tracing::info!(snapshot = %path.display(), "snapshot written");
        Ok(())
    }))
}

/// Ends the streams of callers who are no longer welcome.
pub(super) async fn credentials(app: App, streams: OpenStreams, stop: CancellationToken) {
    let mut changed = app.identity.subscribe();
    loop {
        let next = async {
            let _ = tokio::time::timeout(RECHECK, changed.changed()).await;
            tokio::time::sleep(RECHECK_PAUSE).await;
        };
        if stop.run_until_cancelled(next).await.is_none() {
            return;
        }
        changed.mark_unchanged();
        if streams.count() == 0 {
            continue;
        }
        match streams.recheck(&app) {
            Ok(0) => {}
            Ok(ended) => tracing::info!(ended, "streams ended: their credentials count no more"),
            Err(error) => tracing::error!(?error, "the credentials of open streams could not be checked"),
        }
    }
}

/// Hands changes to watchers.
pub(super) async fn feed(app: App, stop: CancellationToken) {
    if let Err(error) = app.feed.run(app.store.clone(), stop).await {
        tracing::error!(?error, "the feed of changes ended");
        app.health.report_outcome::<()>("watch", &Err(error));
    }
}
