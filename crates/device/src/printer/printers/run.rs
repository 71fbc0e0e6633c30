//! What follows from decisions: outputs get jobs, files are removed, time passes, outputs are asked how they are.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::super::journal::Ticket;
use super::super::model::JobId;
use super::super::output::{Order, Output, Progress, Report};
use super::super::queue::{Event, Outcome};
use super::Inner;

/// A job for an output.
pub(super) struct Start {
    pub(super) printer: String,
    pub(super) job: JobId,
    pub(super) output: String,
    pub(super) repeat: bool,
    pub(super) withdraw: CancellationToken,
}

/// How long an output may take to say how it is.
const PROBE_LIMIT: Duration = Duration::from_secs(20);
/// After how long a queue whose journal is full tries again.
const FULL_RETRY: Duration = Duration::from_secs(5);

/// Does what follows once the batch is on disk.
pub(super) fn after(inner: &Arc<Inner>, ticket: Ticket, starts: Vec<Start>, files: Vec<String>) {
    for start in starts {
        let (own, ticket) = (Arc::clone(inner), ticket.clone());
        inner.tasks.spawn(async move {
            let stop = own.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = print(&own, ticket, start) => {}
            }
        });
    }
    if !files.is_empty() {
        let own = Arc::clone(inner);
        inner.tasks.spawn(async move {
            if ticket.await.is_ok() {
                let paths: Vec<_> = files.iter().map(|f| own.spool_file(f)).collect();
                let remove = move || paths.iter().for_each(|p| drop(std::fs::remove_file(p)));
                let _ = own.tasks.spawn_blocking(remove).await;
            }
        });
    }
}

async fn print(inner: &Arc<Inner>, ticket: Ticket, start: Start) {
    let Start { printer, job: id, output: name, repeat, withdraw } = start;
    let outcome = if ticket.await.is_err() {
        tokio::time::sleep(FULL_RETRY).await;
        Outcome::Refused { reason: "spool-area-full".into() }
    } else if inner.options.faults.at("output-begin").is_err() {
        return;
    } else {
        let Some((output, order)) = order(inner, &printer, id, &name, repeat, withdraw).await else { return };
        match order {
            Ok(order) => output.print(order).await,
            Err(message) => Outcome::Aborted { message },
        }
    };
    if inner.options.faults.at("output-end").is_err() {
        return;
    }
    tracing::debug!(job = id.0, %printer, output = %name, ?outcome, "a print job left its output");
    let _ = inner.core.lock().apply(inner, &printer, Event::Ended(id, outcome), Vec::new());
}

type Prepared = (Arc<dyn Output>, Result<Order, String>);

async fn order(
    inner: &Arc<Inner>,
    printer: &str,
    id: JobId,
    name: &str,
    repeat: bool,
    withdraw: CancellationToken,
) -> Option<Prepared> {
    let (own, printer, name) = (Arc::clone(inner), printer.to_owned(), name.to_owned());
    let report = report(Arc::downgrade(inner), printer.clone(), id);
    // Opens files, therefore on a blocking thread.
    let prepare = move || {
        let (output, job) = {
            let core = own.core.lock();
            let output = core.printer(&printer).ok()?.outputs.get(&name)?.clone();
            (output, core.job(id).ok()?.clone())
        };
        let documents = own.core.lock().pieces(&own, &job);
        let order = documents
            .map(|documents| Order { job: Arc::new(job), documents, repeat, withdraw, report })
            .map_err(|error| error.message().to_owned());
        Some((output, order))
    };
    inner.tasks.spawn_blocking(prepare).await.ok().flatten()
}

fn report(inner: Weak<Inner>, printer: String, id: JobId) -> Report {
    Arc::new(move |progress| {
        let Some(inner) = inner.upgrade() else { return };
        let event = match progress {
            Progress::Going(sides) => Event::Going(id, sides),
            Progress::Stalled(reason, sides) => Event::Stalled(id, reason, sides),
        };
        let _ = inner.core.lock().apply(&inner, &printer, event, Vec::new());
    })
}

/// Starts the timer and the probes, and gives jobs to outputs for the first time.
pub(super) fn start(inner: &Arc<Inner>) {
    tick(inner);
    inner.tasks.spawn(timer(Arc::downgrade(inner), inner.stop.clone()));
    inner.tasks.spawn(probes(Arc::downgrade(inner), inner.stop.clone()));
}

fn tick(inner: &Arc<Inner>) {
    let mut core = inner.core.lock();
    let names: Vec<String> = core.printers.keys().cloned().collect();
    for name in names {
        let _ = core.apply(inner, &name, Event::Tick, Vec::new());
    }
}

async fn timer(inner: Weak<Inner>, stop: CancellationToken) {
    loop {
        let Some(own) = inner.upgrade() else { return };
        let next = own.core.lock().printers.values().filter_map(|p| p.queue.next_tick()).min();
        let now = own.options.clock.now_ms();
        // A clock may jump: never sleep longer than a minute.
        let wait = Duration::from_millis(next.map_or(60_000, |at| at.saturating_sub(now)).min(60_000));
        if wait.is_zero() {
            tick(&own);
            // An event that stays due must not turn this into a busy loop.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep_until(Instant::now() + wait) => {}
            () = own.wake.notified() => {}
        }
    }
}

async fn probes(inner: Weak<Inner>, stop: CancellationToken) {
    let mut last_idle = Instant::now();
    let mut first = true;
    loop {
        let Some(own) = inner.upgrade() else { return };
        let idle = first || last_idle.elapsed() >= own.options.idle_probe_every;
        if idle {
            last_idle = Instant::now();
        }
        first = false;
        for (printer, name, output) in due(&own, idle) {
            let task = Arc::clone(&own);
            own.tasks.spawn(async move {
                let probe = tokio::time::timeout(PROBE_LIMIT, output.probe());
                let stop = task.stop.clone();
                let condition = tokio::select! {
                    () = stop.cancelled() => return,
                    condition = probe => condition.unwrap_or_else(|_| super::super::queue::Condition::unready("timed-out")),
                };
                let _ = task.core.lock().apply(&task, &printer, Event::Condition(name, condition), Vec::new());
            });
        }
        let wait = own.options.probe_every;
        drop(own);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Outputs to ask now: those that are not ready and have no job that reports by itself, and sometimes all idle ones.
fn due(inner: &Inner, idle: bool) -> Vec<(String, String, Arc<dyn Output>)> {
    let core = inner.core.lock();
    let mut found = Vec::new();
    for (name, printer) in &core.printers {
        for slot in printer.queue.slots() {
            if slot.running.is_empty()
                && (idle || !slot.condition.is_ready())
                && let Some(output) = printer.outputs.get(&slot.name)
            {
                found.push((name.clone(), slot.name.clone(), Arc::clone(output)));
            }
        }
    }
    found
}
