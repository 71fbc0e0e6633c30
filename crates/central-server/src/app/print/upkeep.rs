//! What is done at the start and from time to time.

use super::super::App;
use super::super::audit;
use super::super::records::View;
use super::records::{self, ended_since, job_in, open_since};
use super::{Job, jobs, transitions};
use common::error::Result;
use common::model::pin::PIN_LIFE_MS;
use common::store::Txn;
use uuid::Uuid;

/// Jobs of one transaction.
const STEP: usize = 200;
/// Steps of one pass; what is left waits for the next.
const STEPS_MAX: usize = 100;
/// Why a job is given up whose document is gone.
pub const LOST: &str = "the document is not on the server any more";
/// Why a job is given up whose PIN nobody stated.
pub const NO_PIN: &str = "its PIN was not stated in time";
/// Why a job is given up that nobody printed.
pub const TOO_OLD: &str = "it was not printed in time";

/// Puts documents and jobs in accord: documents without an open job are removed, open jobs without a document aborted
/// (they come from a restored backup). Before anything else is done. Blocks.
///
/// # Errors
/// Those of the store and of the directory.
pub fn recover(app: &App) -> Result<()> {
    let (store, spool) = (&app.store, &app.prints.spool);
    let open = |id: Uuid| Ok(records::load_job(store, id)?.is_some_and(|j| !records::state(&j).is_end()));
    let removed = spool.sweep(open)?;
    let mut lost = 0;
    let (mut from, to) = (open_since(0), common::store::prefix_end(b"w/c/"));
    loop {
        let page = store.range(&from, &to, STEP)?;
        let ended = page.len() < STEP;
        let mut without = Vec::new();
        for (key, _) in page {
            from = [&key[..], b"\0"].concat();
            if let Some(id) = job_in(&key)
                && !spool.has(id)?
            {
                without.push(id);
            }
        }
        lost += without.len();
        let now_ms = app.clock.now_ms();
        if !without.is_empty() {
            store.transact_blocking(move |txn| give_up(txn, &without, LOST, now_ms))?;
        }
        if ended {
            break;
        }
    }
    if removed > 0 || lost > 0 {
        tracing::info!(removed, lost, "print queues put in order");
    }
    Ok(())
}

fn give_up(txn: &mut Txn<'_>, ids: &[Uuid], reason: &str, now_ms: u64) -> Result<Vec<Job>> {
    let mut ended = Vec::new();
    for id in ids {
        let Some(job) = records::load_job(&*txn, *id)? else { continue };
        let Some(next) = transitions::abort(&job, reason, now_ms) else { continue };
        let next = records::put_job(txn, Some(&job), next)?;
        audit::record(
            txn,
            now_ms,
            "server",
            "print.abort",
            &jobs::subject(&next),
            true,
            &format!("job {id}: {reason}"),
        )?;
        ended.push(next);
    }
    Ok(ended)
}

fn due(view: &impl View, from: &[u8], to: &[u8]) -> Result<Vec<Uuid>> {
    Ok(view.range(from, to, STEP)?.iter().filter_map(|(key, _)| job_in(key)).collect())
}

/// Gives up jobs that wait for their PIN for too long.
async fn forget_unclaimed(app: &App, now_ms: u64) -> Result<()> {
    let (mut from, to) = (open_since(0), open_since(now_ms.saturating_sub(PIN_LIFE_MS)));
    for _ in 0..STEPS_MAX {
        let page = app.store.range(&from, &to, STEP)?;
        let Some((last, _)) = page.last() else { break };
        from = [&last[..], b"\0"].concat();
        let mut ids = Vec::new();
        for id in page.iter().filter_map(|(key, _)| job_in(key)) {
            ids.extend(records::load_job(&app.store, id)?.filter(|j| j.pin.is_some()).map(|_| id));
        }
        if ids.is_empty() {
            continue;
        }
        let given_up = move |txn: &mut Txn<'_>| {
            // A PIN that was stated since is gone from the job.
            let waits = |id: &Uuid| Ok(records::load_job(&*txn, *id)?.is_some_and(|j| j.pin.is_some()));
            let mut still = Vec::new();
            for id in &ids {
                let waits: Result<bool> = waits(id);
                still.extend(waits?.then_some(*id));
            }
            give_up(txn, &still, NO_PIN, now_ms)
        };
        for job in &app.store.transact(given_up).await?.value {
            jobs::settle(app, job).await;
        }
    }
    Ok(())
}

/// Gives up jobs that nobody printed in time, and forgets jobs that ended long ago.
///
/// # Errors
/// Those of the store.
pub async fn pass(app: &App) -> Result<()> {
    let now_ms = app.clock.now_ms();
    let before = |keep: u64| now_ms.saturating_sub(keep);
    let oldest_open = before(app.settings.print.keep_waiting.as_millis());
    for _ in 0..STEPS_MAX {
        let ids = due(&app.store, &open_since(0), &open_since(oldest_open))?;
        if ids.is_empty() {
            break;
        }
        let ended = app.store.transact(move |txn| give_up(txn, &ids, TOO_OLD, now_ms)).await?.value;
        for job in &ended {
            jobs::settle(app, job).await;
        }
    }
    forget_unclaimed(app, now_ms).await?;
    let oldest_ended = before(app.settings.print.keep_ended.as_millis());
    for _ in 0..STEPS_MAX {
        let ids = due(&app.store, &ended_since(0), &ended_since(oldest_ended))?;
        if ids.is_empty() {
            break;
        }
        app.store
            .transact(move |txn| {
                for id in &ids {
                    if let Some(job) = records::load_job(&*txn, *id)? {
                        records::forget_job(txn, &job)?;
                    }
                }
                Ok(())
            })
            .await?;
    }
    Ok(())
}
