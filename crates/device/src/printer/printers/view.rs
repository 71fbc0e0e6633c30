//! What others see of printers and jobs.

use std::sync::Arc;

use common::error::{Error, Reason, Result};
use tokio::sync::watch;

use super::super::model::{Allowance, Job, JobId, JobState, PrinterConfig, Who};
use super::super::output::Output;
use super::super::queue::{Condition, Switches};
use super::super::quota::{self, Usage};
use super::Printers;

/// State of a printer, as in RFC 8011 section 5.4.11.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrinterState {
    /// Ready for jobs.
    Idle,
    /// Prints.
    Processing,
    /// Paused, or none of its outputs is ready.
    Stopped,
}

impl PrinterState {
    /// Its number in IPP.
    pub fn code(self) -> i32 {
        match self {
            Self::Idle => 3,
            Self::Processing => 4,
            Self::Stopped => 5,
        }
    }

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Processing => "processing",
            Self::Stopped => "stopped",
        }
    }
}

/// A printer, as it is now.
#[derive(Clone, Debug)]
pub struct PrinterView {
    /// How it is set up.
    pub config: PrinterConfig,
    /// State.
    pub state: PrinterState,
    /// Why, as keywords of `printer-state-reasons`; `none` if there is nothing to say.
    pub reasons: Vec<String>,
    /// Paused, accepting, holding.
    pub switches: Switches,
    /// Its outputs and how they are.
    pub outputs: Vec<(String, Condition)>,
    /// Jobs that are not over.
    pub jobs: usize,
    /// When it was last configured.
    pub configured_ms: u64,
    /// Since when the node's printers are open.
    pub started_ms: u64,
}

/// What changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeKind {
    /// The printer was added or its configuration changed.
    Configured,
    /// The printer is gone.
    Removed,
    /// The printer's state.
    State,
    /// A job came, changed or ended.
    Job,
}

/// A change, for those who watch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Rises by one with each change since the printers were opened.
    pub number: u64,
    /// When it was.
    pub at_ms: u64,
    /// Of which printer.
    pub printer: String,
    /// Of which job.
    pub job: Option<JobId>,
    /// The job's state then.
    pub state: Option<JobState>,
    /// What changed.
    pub kind: ChangeKind,
}

impl Printers {
    /// All printers, by name.
    pub fn list(&self) -> Vec<PrinterView> {
        let names: Vec<String> = self.inner.core.lock().printers.keys().cloned().collect();
        names.iter().filter_map(|n| self.get(n).ok()).collect()
    }

    /// A printer.
    ///
    /// # Errors
    /// `RESOURCE_UNKNOWN`.
    pub fn get(&self, name: &str) -> Result<PrinterView> {
        let core = self.inner.core.lock();
        let printer = core.printer(name)?;
        let slots = printer.queue.slots();
        let switches = printer.queue.switches().clone();
        let mut reasons: Vec<String> = Vec::new();
        if switches.paused {
            reasons.push("paused".into());
        }
        for slot in slots {
            if let Condition::Unready { reason } = &slot.condition
                && !reasons.contains(reason)
            {
                reasons.push(reason.clone());
            }
        }
        let state = if switches.paused || slots.iter().all(|s| !s.condition.is_ready()) {
            PrinterState::Stopped
        } else if slots.iter().any(|s| !s.running.is_empty()) {
            PrinterState::Processing
        } else {
            PrinterState::Idle
        };
        if reasons.is_empty() {
            reasons.push("none".into());
        }
        Ok(PrinterView {
            config: printer.config.clone(),
            state,
            reasons,
            outputs: slots.iter().map(|s| (s.name.clone(), s.condition.clone())).collect(),
            jobs: printer.queue.active_count(),
            switches,
            configured_ms: printer.configured_ms,
            started_ms: self.inner.started_ms,
        })
    }

    /// A job, of anybody: who may see it is for the caller to decide.
    ///
    /// # Errors
    /// `PRINT_JOB_UNKNOWN`.
    pub fn job(&self, id: JobId) -> Result<Job> {
        self.inner.core.lock().job(id).cloned()
    }

    /// Jobs of a printer, or of all: those that are not over in the order of printing, then those that are, newest first;
    /// at most `most`.
    ///
    /// # Errors
    /// `RESOURCE_UNKNOWN`.
    pub fn jobs(&self, printer: Option<&str>, wanted: impl Fn(&Job) -> bool, most: usize) -> Result<Vec<Job>> {
        let core = self.inner.core.lock();
        if let Some(name) = printer {
            core.printer(name)?;
        }
        let mut found: Vec<Job> = Vec::new();
        let queues =
            || core.printers.iter().filter(|(n, _)| printer.is_none_or(|p| p == n.as_str())).map(|(_, p)| &p.queue);
        for queue in queues() {
            let mut active: Vec<&Job> = queue.active().filter(|j| wanted(j)).collect();
            let waits = |j: &Job| !matches!(j.state, JobState::Processing | JobState::Stopped);
            active.sort_by_key(|j| {
                let held = j.state == JobState::Held;
                (waits(j), held, std::cmp::Reverse(j.promoted), std::cmp::Reverse(j.priority), j.id)
            });
            found.extend(active.into_iter().take(most).cloned());
        }
        for queue in queues() {
            found.extend(queue.jobs().rev().filter(|j| j.state.is_over() && wanted(j)).take(most).cloned());
        }
        found.truncate(most);
        Ok(found)
    }

    /// How many jobs are printed before this one.
    pub fn intervening(&self, job: &Job) -> usize {
        let core = self.inner.core.lock();
        let Ok(queue) = core.queue(&job.printer) else { return 0 };
        let running: usize = queue.slots().iter().map(|s| s.running.len()).sum();
        match job.state {
            JobState::Pending => running + queue.waiting().iter().take_while(|id| **id != job.id).count(),
            JobState::Held => running + queue.waiting().len(),
            _ => 0,
        }
    }

    /// What a caller used of a printer in the present period, what waits (sheets, bytes), and what is allowed.
    ///
    /// # Errors
    /// `RESOURCE_UNKNOWN`.
    pub fn usage(&self, printer: &str, who: &Who) -> Result<(Usage, (u64, u64), Allowance)> {
        let core = self.inner.core.lock();
        let allowed = quota::allowance(&core.printer(printer)?.config.quotas, who);
        Ok((core.used(&self.inner, printer, who), core.waiting(printer, who), allowed))
    }

    /// Tells when something changed: the number of the last change.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// Waits until it is so. It is looked at now and after each change.
    ///
    /// # Errors
    /// `SHUTTING_DOWN` if the printers are closed before.
    pub async fn until(&self, so: impl Fn(&Self) -> bool) -> Result<()> {
        let mut changes = self.watch();
        while !so(self) {
            tokio::select! {
                _ = changes.changed() => {}
                () = self.inner.stop.cancelled() => {
                    return Err(Error::new(Reason::ShuttingDown, "the printers are being closed"));
                }
            }
        }
        Ok(())
    }

    /// Waits until a job is over. Gives it as it is then.
    ///
    /// # Errors
    /// `PRINT_JOB_UNKNOWN`, `SHUTTING_DOWN`.
    pub async fn over(&self, id: JobId) -> Result<Job> {
        self.until(|p| !p.job(id).is_ok_and(|j| !j.state.is_over())).await?;
        self.job(id)
    }

    /// Changes after a number, the oldest first; the newest thousand are remembered.
    pub fn changes(&self, after: u64) -> Vec<Change> {
        self.inner.core.lock().changes(after)
    }

    /// Does something to the simulated printer that an output is: for tests and demonstrations.
    ///
    /// # Errors
    /// `RESOURCE_UNKNOWN` if there is no such output or it is not a folder.
    pub fn set_fault(&self, printer: &str, output: &str, fault: super::super::output::Fault) -> Result<()> {
        let found: Option<Arc<dyn Output>> = self.inner.core.lock().printer(printer)?.outputs.get(output).cloned();
        let unknown = || Error::new(Reason::ResourceUnknown, "this printer has no folder of that name");
        let output = found.ok_or_else(unknown)?;
        output.folder().ok_or_else(unknown)?.set_fault(fault);
        Ok(())
    }

    /// The time, in milliseconds since 1970, by the printers' clock.
    pub fn now_ms(&self) -> u64 {
        self.inner.options.clock.now_ms()
    }
}
