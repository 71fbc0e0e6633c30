//! What systemd is told (sd_notify(3)): ready, stopping, a status line, and a sign of life that means something.

use crate::app::App;
use sd_notify::NotifyState;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the status line is renewed where no watchdog asks for more.
const STATUS_EVERY: Duration = Duration::from_secs(10);

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// The server begins to stop.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Says that the server is ready, then that it lives as long as its database does: a sign of life is sent only if the
/// database takes commits, so a stuck disk gets the service restarted.
pub(super) async fn watch(app: App, stop: CancellationToken) {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
    let watchdog = sd_notify::watchdog_enabled();
    let every = watchdog.map_or(STATUS_EVERY, |limit| (limit / 3).min(STATUS_EVERY));
    loop {
        let well = !app.store.is_failed() && !app.store.is_stalled();
        if well && watchdog.is_some() {
            tell(&[NotifyState::Watchdog]);
        }
        let problems = app.health.problems();
        let status = match problems.first() {
            Some(first) => format!("serving; {} problems, first: {}", problems.len(), first.message),
            None => format!("serving, revision {}", app.store.revision()),
        };
        tell(&[NotifyState::Status(&status)]);
        if stop.run_until_cancelled(tokio::time::sleep(every)).await.is_none() {
            return;
        }
    }
}
