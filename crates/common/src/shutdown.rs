//! How a daemon stops: intake ends, work drains, a deadline cuts the rest.
//!
//! Three steps. *Begin*: on SIGTERM, SIGINT or by call; listeners stop, streams end with SHUTTING_DOWN, loops leave.
//! *Drain*: whoever was started with [`Shutdown::spawn`] may finish, until the deadline or a second signal. *Cut*: what
//! is left is dropped when the runtime goes; nothing acknowledged depends on it.

use crate::error::{Error, Reason, Result};
use std::future::Future;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What a daemon gives its work when the setting says nothing: longer than any single call, shorter than the ninety
/// seconds after which systemd kills.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(10);

/// Shared by all parts of a daemon; clones mean the same shutdown.
#[derive(Clone, Debug)]
pub struct Shutdown {
    begun: CancellationToken,
    hurried: CancellationToken,
    tracker: TaskTracker,
    drain: Duration,
}

/// How draining ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All tasks have finished.
    Cleanly,
    /// The deadline or a second signal came first; so many tasks were still running.
    Cut {
        /// Tasks that had not finished.
        left: usize,
    },
}

impl Shutdown {
    /// One that begins only by [`Shutdown::begin`].
    pub fn new(drain: Duration) -> Self {
        Self { begun: CancellationToken::new(), hurried: CancellationToken::new(), tracker: TaskTracker::new(), drain }
    }

    /// One that also begins on SIGTERM or SIGINT; a second signal ends the draining at once. Call it inside a runtime.
    ///
    /// # Errors
    /// INTERNAL if the signals cannot be caught.
    pub fn on_signals(drain: Duration) -> Result<Self> {
        let shutdown = Self::new(drain);
        let caught = |kind| {
            signal(kind).map_err(|e| Error::new(Reason::Internal, "the signals could not be caught").caused_by(e))
        };
        let terminate = caught(SignalKind::terminate())?;
        let interrupt = caught(SignalKind::interrupt())?;
        // Not tracked: it lives as long as the process.
        tokio::spawn(shutdown.clone().listen(terminate, interrupt));
        Ok(shutdown)
    }

    async fn listen(self, mut terminate: Signal, mut interrupt: Signal) {
        loop {
            let name = tokio::select! {
                Some(()) = terminate.recv() => "SIGTERM",
                Some(()) = interrupt.recv() => "SIGINT",
                else => return,
            };
            if self.begun.is_cancelled() {
                tracing::warn!(signal = name, "second signal: not waiting for running work any longer");
                self.hurried.cancel();
                return;
            }
            tracing::info!(signal = name, "shutting down");
            self.begin();
        }
    }

    /// Begins. Repeating it is harmless.
    pub fn begin(&self) {
        self.begun.cancel();
    }

    /// Ends the draining, as a second signal does.
    pub fn hurry(&self) {
        self.begin();
        self.hurried.cancel();
    }

    /// True from the beginning on.
    pub fn is_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Waits for the beginning.
    pub async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// The same as a future that borrows nothing, for `serve_with_incoming_shutdown`.
    pub fn signal(&self) -> impl Future<Output = ()> + Send + 'static {
        self.begun.clone().cancelled_owned()
    }

    /// A token that is cancelled at the beginning. Cancelling a child of it does not begin the shutdown.
    pub fn token(&self) -> CancellationToken {
        self.begun.child_token()
    }

    /// Starts a task that [`Shutdown::drained`] waits for. The task watches [`Shutdown::begun`] by itself.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// Starts a task that is dropped at its next `await` when the shutdown begins.
    pub fn spawn_until<F>(&self, task: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let begun = self.begun.clone();
        self.tracker.spawn(async move { begun.run_until_cancelled(task).await })
    }

    /// Runs blocking work that [`Shutdown::drained`] waits for.
    pub fn spawn_blocking<F, T>(&self, work: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.tracker.spawn_blocking(work)
    }

    /// Has a future counted that someone else drives, for example a stream of a connection.
    pub fn track<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        self.tracker.track_future(future)
    }

    /// Waits for the beginning, then for all tasks, for the deadline at most.
    pub async fn drained(&self) -> Drained {
        self.begun().await;
        self.tracker.close();
        tokio::select! {
            biased;
            () = self.tracker.wait() => return Drained::Cleanly,
            () = self.hurried.cancelled() => {}
            () = tokio::time::sleep(self.drain) => {}
        }
        match self.tracker.len() {
            0 => Drained::Cleanly,
            left => Drained::Cut { left },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn tasks_finish_before_it_is_drained() {
        let shutdown = Shutdown::new(Duration::from_secs(3600));
        let (done, mut is_done) = oneshot::channel();
        let inside = shutdown.clone();
        shutdown.spawn(async move {
            inside.begun().await;
            tokio::task::yield_now().await;
            done.send(()).unwrap();
        });
        assert!(!shutdown.is_begun());
        shutdown.begin();
        assert_eq!(shutdown.drained().await, Drained::Cleanly);
        is_done.try_recv().unwrap();
    }

    #[tokio::test]
    async fn a_task_that_does_not_end_is_cut_at_the_deadline() {
        let shutdown = Shutdown::new(Duration::from_millis(20));
        shutdown.spawn(std::future::pending::<()>());
        shutdown.begin();
        assert_eq!(shutdown.drained().await, Drained::Cut { left: 1 });
    }

    #[tokio::test]
    async fn hurry_does_not_wait_for_the_deadline() {
        let shutdown = Shutdown::new(Duration::from_secs(3600));
        shutdown.spawn(std::future::pending::<()>());
        shutdown.hurry();
        assert_eq!(shutdown.drained().await, Drained::Cut { left: 1 });
    }

    #[tokio::test]
    async fn loops_started_with_spawn_until_end_by_themselves() {
        let shutdown = Shutdown::new(Duration::from_secs(3600));
        let task = shutdown.spawn_until(std::future::pending::<()>());
        shutdown.token().cancel();
        assert!(!shutdown.is_begun(), "a child token does not stop the daemon");
        shutdown.begin();
        assert_eq!(shutdown.drained().await, Drained::Cleanly);
        assert_eq!(task.await.unwrap(), None);
    }

    #[tokio::test]
    async fn work_started_while_draining_is_still_waited_for() {
        let shutdown = Shutdown::new(Duration::from_secs(3600));
        let (open, gate) = oneshot::channel::<()>();
        let inside = shutdown.clone();
        shutdown.spawn(async move {
            inside.begun().await;
            inside.spawn(async move {
                gate.await.unwrap();
            });
            open.send(()).unwrap();
        });
        shutdown.begin();
        assert_eq!(shutdown.drained().await, Drained::Cleanly);
    }
}
