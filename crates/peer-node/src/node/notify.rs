//! What systemd hears.

use crate::local::Parts;
use common::shutdown::Shutdown;
use std::sync::Arc;
use std::time::Duration;

/// How often the status line is told anew without a watchdog.
const PERIOD: Duration = Duration::from_secs(20);

/// Tells that the node is ready; from then on how it is, and that it is alive, until the shutdown begins.
pub(super) fn start(parts: Arc<Parts>, shutdown: &Shutdown) {
    use sd_notify::NotifyState;
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let period = sd_notify::watchdog_enabled().map_or(PERIOD, |d| d / 2);
    let stop = shutdown.token();
    shutdown.spawn(async move {
        loop {
            let text = parts.status_line();
            let mut states = vec![NotifyState::Status(&text)];
            // A node whose store takes no more changes is restarted.
            if !parts.store.is_failed() && !parts.store.is_stalled() {
                states.push(NotifyState::Watchdog);
            }
            let _ = sd_notify::notify(&states);
            tokio::select! {
                () = tokio::time::sleep(period) => {}
                () = stop.cancelled() => {
                    let _ = sd_notify::notify(&[NotifyState::Stopping]);
                    return;
                }
            }
        }
    });
}
