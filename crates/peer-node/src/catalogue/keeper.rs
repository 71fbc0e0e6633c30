//! Keeps the index of one folder fresh: one task for each.

use common::error::{Error, Reason, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::Catalogue;
use super::events::{self, Due, Gathering, Patience};
use super::folder::{Folder, Request};
use super::problem::Problem;
use super::rules::RULES_FILE;
use super::scan::{self, ScanOptions, ScanReport, Target};

/// After this a file that was written to while it was read is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often everything is looked at if the system does not tell of changes.
const BLIND_MS: u64 = 60_000;

/// What a keeper works with.
pub(super) struct Keeper {
    pub catalogue: Catalogue,
    pub folder: Arc<Folder>,
    pub asked: mpsc::Receiver<Request>,
    /// Scans of everything that may run at a time, over all folders.
    pub turns: Arc<Semaphore>,
}

impl Keeper {
    pub async fn run(mut self) {
        let begin = Instant::now();
        let now = |at: Instant| u64::try_from(at.duration_since(begin).as_millis()).unwrap_or(u64::MAX);
        let settings = self.catalogue.settings().clone();
        // Kept for as long as this runs.
        let _watcher = if settings.watch { self.watch().await } else { None };
        let rescan_ms = settings.rescan.as_millis() as u64;
        let patience = Patience {
            quiet_ms: settings.quiet.as_millis() as u64,
            longest_ms: settings.quiet.as_millis() as u64 * 10,
            rescan_ms,
            overflow_ms: 10_000,
        };
        let mut gathering = Gathering::new(patience, 0);
        let mut waiting: Vec<oneshot::Sender<Result<ScanReport>>> = Vec::new();
        loop {
            let wake = begin.checked_add(Duration::from_millis(gathering.due_at().min(1 << 40))).unwrap_or(begin);
            tokio::select! {
                biased;
                () = self.folder.ended.cancelled() => return,
                request = self.asked.recv() => match request {
                    None => return,
                    Some(request) => self.note(request, &mut gathering, &mut waiting, now(Instant::now())).await,
                },
                () = sleep_until(wake) => {}
            }
            // All that was told up to now, so that a burst is one piece of work.
            while let Ok(request) = self.asked.try_recv() {
                self.note(request, &mut gathering, &mut waiting, now(Instant::now())).await;
            }
            if self.folder.took_overflow() {
                gathering.overflowed(now(Instant::now()));
            }
            let Some(due) = gathering.take(now(Instant::now())) else { continue };
            let all = due == Due::All;
            let answer = if all { std::mem::take(&mut waiting) } else { Vec::new() };
            let done = self.look(due).await;
            let at = now(Instant::now());
            if all {
                let blind = self.folder.watch_problem().is_some();
                gathering.rescan_every(if blind { rescan_ms.min(BLIND_MS) } else { rescan_ms });
                gathering.all_done(at, done.is_ok());
            }
            if let Ok(report) = &done {
                report.again.iter().for_each(|path| gathering.later(path, at + AGAIN.as_millis() as u64));
            }
            Self::answer(answer, &done);
        }
    }

    fn answer(waiting: Vec<oneshot::Sender<Result<ScanReport>>>, done: &Result<ScanReport>) {
        for answer in waiting {
            let same = match done {
                Ok(report) => Ok(report.clone()),
                Err(e) => {
                    Err(Error::remote(e.kind(), e.reason().into(), e.message().into(), e.why().into(), e.fix().into()))
                }
            };
            // Who asked may have gone.
            let _ = answer.send(same);
        }
    }

    async fn watch(&self) -> Option<notify::RecommendedWatcher> {
        let folder = self.folder.clone();
        let watched = tokio::task::spawn_blocking(move || events::watch(&folder)).await;
        match watched.unwrap_or_else(|_| Err("the watcher could not be started".into())) {
            Ok(watcher) => Some(watcher),
            Err(why) => {
                tracing::warn!(share = %self.folder.share(), why, "changes in a shared folder are only seen by rescans");
                self.folder.set_watch_problem(Some(why));
                None
            }
        }
    }

    async fn note(
        &mut self,
        request: Request,
        gathering: &mut Gathering,
        waiting: &mut Vec<oneshot::Sender<Result<ScanReport>>>,
        now: u64,
    ) {
        match request {
            Request::Touched { path, .. } if path == RULES_FILE => {
                gathering.touched(&path, false, now);
                if self.refresh_rules().await {
                    gathering.all_now(now);
                }
            }
            Request::Touched { path, below } => gathering.touched(&path, below, now),
            Request::Doubted { path } => {
                let verify = ScanOptions { verify: true, ..self.options() };
                if let Err(error) = self.scan(vec![Target { path, below: false }], verify).await {
                    tracing::debug!(?error, "a doubted file could not be looked at");
                }
            }
            Request::Overflow => gathering.overflowed(now),
            Request::Everything => gathering.all_now(now),
            Request::Scan(answer) => {
                waiting.push(answer);
                gathering.all_now(now);
            }
        }
    }

    fn options(&self) -> ScanOptions {
        ScanOptions { threads: self.catalogue.settings().scan_threads, ..self.catalogue.scan_options() }
    }

    /// Reads the rules file. True if the rules are others now.
    async fn refresh_rules(&self) -> bool {
        let refreshed = self.catalogue.refresh_rules(&self.folder).await;
        let problem = refreshed.as_ref().err().map(|e| format!("{}; the rules from before are in force", e.message()));
        let mut problems = self.folder.problems.lock();
        problems.clear(RULES_FILE, false);
        if let Some(why) = &problem {
            problems.add(RULES_FILE, Problem::Rule(why.clone()));
        }
        drop(problems);
        self.folder.set_rules_problem(problem);
        refreshed.unwrap_or(false)
    }

    async fn look(&self, due: Due) -> Result<ScanReport> {
        let targets = match due {
            Due::Some(targets) => return self.scan(targets, ScanOptions { paced: true, ..self.options() }).await,
            Due::All => vec![Target { path: String::new(), below: true }],
        };
        let _turn =
            self.turns.acquire().await.map_err(|_| Error::new(Reason::ShuttingDown, "the node is shutting down"))?;
        self.refresh_rules().await;
        self.folder.forget_device();
        let progress = &self.folder.progress;
        progress.seen.store(0, Ordering::Relaxed);
        progress.running.store(true, Ordering::Relaxed);
        let done = self.scan(targets, self.options()).await;
        progress.running.store(false, Ordering::Relaxed);
        if done.is_ok() {
            self.folder.complete.store(true, Ordering::Relaxed);
        }
        self.catalogue.changed();
        done
    }

    async fn scan(&self, targets: Vec<Target>, options: ScanOptions) -> Result<ScanReport> {
        let (folder, cancel) = (self.folder.clone(), self.folder.ended.clone());
        let done = tokio::task::spawn_blocking(move || scan::run(&folder, &targets, &options, &cancel)).await;
        let done = done.unwrap_or_else(|_| Err(Error::internal("a scan panicked")));
        match &done {
            Ok(report) if report.changed + report.removed > 0 => self.catalogue.changed(),
            Ok(_) => {}
            Err(error) if error.is(Reason::Cancelled) => {}
            Err(error) => {
                tracing::warn!(share = %self.folder.share(), ?error, "a shared folder could not be looked through")
            }
        }
        done
    }
}
