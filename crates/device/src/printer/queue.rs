//! The decisions of one printer's queue: (state, event, now) gives actions. No IO, no clock, no randomness.
//!
//! A queue has jobs and slots. A slot is an output: it can do certain things, is ready or not, and prints at most `lanes`
//! jobs at a time. After every event, waiting jobs are given to slots:
//!
//! * promoted jobs first, then by priority, then by number;
//! * to a slot that suffices for the job (colour, sides, size, format), is ready and has a free lane; among several, the one
//!   with the fewest sheets before it, then the first in the owner's order;
//! * a job that an output may have something of (`begun`) goes back to that output and to no other, marked as a
//!   repetition, so that the output first looks whether it has it already. Nothing is printed twice by two machines.
//!
//! A printer that stops in the middle of a job stalls it. If another slot could print it now, the job is withdrawn from the
//! first one, and only when that one confirms that it will print no more of it, the job goes to the other, once in its
//! life. Otherwise it waits, and goes on when the printer does.
//!
//! # Invariants (checked by the simulation in the tests)
//!
//! * A job is at one slot at most. It ends once, and after that nothing is done with it.
//! * No slot has more jobs than lanes; no job starts while the queue is paused or the job is held.
//! * Every change of a job is followed by `Save` or `Ended` for it in the same list of actions.

mod event;

use std::collections::{BTreeMap, BTreeSet};

use common::model::Guess;
use serde::{Deserialize, Serialize};

pub use common::model::pin::{PIN_LIFE_MS, PIN_LOCK_MS, PIN_TRIES};

pub use self::event::{Action, Changes, Condition, Event, Outcome, Refusal};
use super::model::{Capabilities, Document, Hold, Job, JobId, JobState, OutputConfig, PrinterConfig, QueueLimits};

/// How long a job waits for its next document (`multiple-operation-time-out`).
pub const DOCUMENT_WAIT_MS: u64 = 120_000;

/// The part of a queue's state that is kept besides its jobs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Switches {
    /// No job begins.
    pub paused: bool,
    /// New jobs are taken.
    pub accepting: bool,
    /// New jobs are held.
    pub hold_new: bool,
    /// When one of these last changed, in milliseconds since 1970.
    pub changed_ms: u64,
}

impl Default for Switches {
    fn default() -> Self {
        Self { paused: false, accepting: true, hold_new: false, changed_ms: 0 }
    }
}

/// An output, as the queue sees it.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Jobs that it prints at a time.
    pub lanes: usize,
    /// Whether it can print.
    pub condition: Condition,
    /// Jobs that it has.
    pub running: BTreeSet<JobId>,
}

/// One printer's queue.
#[derive(Clone, Debug)]
pub struct Queue {
    limits: QueueLimits,
    slots: Vec<Slot>,
    jobs: BTreeMap<JobId, Job>,
    /// Jobs that are not over.
    active: BTreeSet<JobId>,
    withdrawing: BTreeSet<JobId>,
    switches: Switches,
    held_new: BTreeSet<JobId>,
}

impl Queue {
    /// The queue of a printer, with what was kept of it. `lanes` says how many jobs an output prints at a time.
    ///
    /// Jobs that were being printed are given to their outputs again by the first event, as repetitions.
    pub fn new(
        config: &PrinterConfig,
        lanes: impl Fn(&OutputConfig) -> usize,
        switches: Switches,
        jobs: Vec<Job>,
    ) -> Self {
        let slots = config.outputs.iter().map(|o| slot(o, lanes(o))).collect();
        let mut queue = Self {
            limits: config.limits,
            slots,
            jobs: BTreeMap::new(),
            active: BTreeSet::new(),
            withdrawing: BTreeSet::new(),
            switches,
            held_new: BTreeSet::new(),
        };
        for mut job in jobs {
            if job.state == JobState::Processing || job.state == JobState::Stopped {
                // Whatever was kept of it: somebody has to look.
                job.begun = true;
                job.state = JobState::Stopped;
            }
            if !job.state.is_over() {
                queue.active.insert(job.id);
            }
            queue.jobs.insert(job.id, job);
        }
        queue
    }

    /// Takes a new configuration. Jobs at an output that is gone go to another one only if nothing was begun.
    pub fn configure(&mut self, config: &PrinterConfig, lanes: impl Fn(&OutputConfig) -> usize) {
        self.limits = config.limits;
        let old = std::mem::take(&mut self.slots);
        self.slots = config.outputs.iter().map(|o| slot(o, lanes(o))).collect();
        for was in old {
            if let Some(now) = self.slots.iter_mut().find(|s| s.name == was.name) {
                now.running = was.running;
                now.condition = was.condition;
            }
        }
    }

    /// A job.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// All jobs, by number.
    pub fn jobs(&self) -> impl DoubleEndedIterator<Item = &Job> {
        self.jobs.values()
    }

    /// Jobs that are not over, by number.
    pub fn active(&self) -> impl Iterator<Item = &Job> {
        self.active.iter().filter_map(|id| self.jobs.get(id))
    }

    /// How many jobs are not over.
    pub fn active_count(&self) -> usize {
        self.active.len()
    }

    /// Outputs.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Paused, accepting, holding.
    pub fn switches(&self) -> &Switches {
        &self.switches
    }

    /// Jobs that wait, in the order in which they are going to be printed.
    pub fn waiting(&self) -> Vec<JobId> {
        let mut waiting: Vec<&Job> = self.active().filter(|j| j.state == JobState::Pending).collect();
        waiting.sort_by_key(|j| (std::cmp::Reverse(j.promoted), std::cmp::Reverse(j.priority), j.id));
        waiting.into_iter().map(|j| j.id).collect()
    }

    /// Whether a job with this ticket and these formats could be taken now.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, job: &Job) -> Result<(), Refusal> {
        if !self.switches.accepting {
            return Err(Refusal::NotAccepting);
        }
        let count = |(own, bytes): (usize, u64), j: &Job| {
            (own + usize::from(j.owner.same_account(&job.owner)), bytes + j.bytes)
        };
        let (own, bytes) = self.active().fold((0, 0), count);
        if self.active.len() >= self.limits.jobs
            || own >= self.limits.person_jobs
            || bytes + job.bytes > self.limits.bytes
        {
            return Err(Refusal::Full);
        }
        if !self.slots.iter().any(|s| suffices(s, job)) {
            return Err(Refusal::Unsuitable);
        }
        Ok(())
    }

    /// Something came of a job that is not complete: its wait begins anew.
    pub fn touch(&mut self, id: JobId, now: u64) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.touched_ms = now;
        }
    }

    /// A job that never came to be: nobody was told of it.
    pub fn forget(&mut self, id: JobId) {
        self.jobs.remove(&id);
        self.active.remove(&id);
        self.held_new.remove(&id);
        self.withdrawing.remove(&id);
        for slot in &mut self.slots {
            slot.running.remove(&id);
        }
    }

    /// When a [`Event::Tick`] is due next.
    pub fn next_tick(&self) -> Option<u64> {
        self.active()
            .flat_map(|job| {
                let until = match job.hold {
                    Some(Hold::Until(at)) if job.pin.is_none() => Some(at),
                    _ => None,
                };
                let wipe = (job.pin.is_some() && job.state == JobState::Held).then_some(job.created_ms + PIN_LIFE_MS);
                let close = (!job.complete).then_some(job.touched_ms + DOCUMENT_WAIT_MS);
                [until, wipe, close]
            })
            .flatten()
            .min()
    }

    /// Decides.
    ///
    /// # Errors
    /// If the event is not possible now.
    pub fn apply(&mut self, event: Event, now: u64) -> Result<Vec<Action>, Refusal> {
        let mut actions = Vec::new();
        self.on_event(event, now, &mut actions)?;
        self.dispatch(now, &mut actions);
        Ok(actions)
    }

    fn on_event(&mut self, event: Event, now: u64, actions: &mut Vec<Action>) -> Result<(), Refusal> {
        match event {
            Event::Submit(job) => self.on_submit(*job, actions)?,
            Event::AddDocument(id, document, last) => self.on_document(id, document, last, now, actions)?,
            Event::Close(id) => self.on_close(id, now, actions)?,
            Event::Hold(id, hold) => self.on_hold(id, hold, actions)?,
            Event::Release(id, pin) => return self.on_release(id, pin.as_deref(), now, actions),
            Event::Cancel(id) => self.on_cancel(id, now, actions)?,
            Event::CancelDocument(id, number) => self.on_cancel_document(id, number, now, actions)?,
            Event::Alter(id, changes) => self.on_alter(id, changes, actions)?,
            Event::Promote(id) => {
                let next = self.active().map(|j| j.promoted).max().unwrap_or(0) + 1;
                let job = self.waiting_job(id)?;
                job.promoted = next;
                actions.push(Action::Save(id));
            }
            Event::Pause => self.switch(now, actions, |s| s.paused = true),
            Event::Resume => self.switch(now, actions, |s| s.paused = false),
            Event::Accept(accept) => self.switch(now, actions, |s| s.accepting = accept),
            Event::HoldNew(hold) => self.on_hold_new(hold, now, actions),
            Event::Condition(name, condition) => {
                if let Some(slot) = self.slots.iter_mut().find(|s| s.name == name) {
                    slot.condition = condition;
                }
            }
            Event::Stalled(id, reason, done) => self.on_stalled(id, reason, done, actions),
            Event::Going(id, _) => self.on_going(id, actions),
            Event::Ended(id, outcome) => self.on_ended(id, outcome, now, actions),
            Event::Tick => self.on_tick(now, actions),
        }
        Ok(())
    }

    fn switch(&mut self, now: u64, actions: &mut Vec<Action>, change: impl FnOnce(&mut Switches)) {
        let before = self.switches.clone();
        change(&mut self.switches);
        if self.switches != before {
            self.switches.changed_ms = now;
            actions.push(Action::SavePrinter);
        }
    }

    fn on_submit(&mut self, mut job: Job, actions: &mut Vec<Action>) -> Result<(), Refusal> {
        self.admit(&job)?;
        let id = job.id;
        job.recount();
        if self.switches.hold_new && job.hold.is_none() {
            job.hold = Some(Hold::Indefinite);
            self.held_new.insert(id);
        }
        settle(&mut job);
        self.jobs.insert(id, job);
        self.active.insert(id);
        actions.push(Action::Save(id));
        Ok(())
    }

    fn on_document(
        &mut self,
        id: JobId,
        document: Document,
        last: bool,
        now: u64,
        actions: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let job = self.open_job(id)?;
        job.documents.push(document);
        job.touched_ms = now;
        job.complete = last;
        job.recount();
        settle(job);
        actions.push(Action::Save(id));
        Ok(())
    }

    fn on_close(&mut self, id: JobId, now: u64, actions: &mut Vec<Action>) -> Result<(), Refusal> {
        let job = self.open_job(id)?;
        job.complete = true;
        if job.documents.is_empty() {
            self.end(id, JobState::Aborted, "job-data-insufficient", "it was closed without a document", now, actions);
        } else {
            settle(job);
            actions.push(Action::Save(id));
        }
        Ok(())
    }

    fn on_hold(&mut self, id: JobId, hold: Hold, actions: &mut Vec<Action>) -> Result<(), Refusal> {
        let job = self.waiting_job(id)?;
        job.hold = Some(hold);
        settle(job);
        actions.push(Action::Save(id));
        Ok(())
    }

    fn on_release(&mut self, id: JobId, pin: Option<&str>, now: u64, actions: &mut Vec<Action>) -> Result<(), Refusal> {
        let job = self.waiting_job(id)?;
        if let Some(kept) = &mut job.pin {
            match kept.guess(pin, now) {
                Guess::Right => job.pin = None,
                Guess::Wrong(left) => return Err(Refusal::PinWrong(left)),
                Guess::Locked(until) => return Err(Refusal::PinLocked(until)),
            }
        }
        if job.hold.take().is_none() && job.state != JobState::Held {
            return Err(Refusal::NotNow("it is not held"));
        }
        settle(job);
        self.held_new.remove(&id);
        actions.push(Action::Save(id));
        self.dispatch(now, actions);
        Ok(())
    }

    fn on_cancel(&mut self, id: JobId, now: u64, actions: &mut Vec<Action>) -> Result<(), Refusal> {
        let at_slot = self.slots.iter().any(|s| s.running.contains(&id));
        let job = self.live_job(id)?;
        if at_slot {
            if job.canceling {
                return Err(Refusal::NotNow("it is being canceled already"));
            }
            job.canceling = true;
            job.reason = "processing-to-stop-point".into();
            actions.extend([Action::Save(id), Action::Withdraw(id)]);
            self.withdrawing.insert(id);
            return Ok(());
        }
        let message = if job.begun { "its printer could not be asked and may still print it" } else { "" };
        self.end(id, JobState::Canceled, "job-canceled-by-user", message, now, actions);
        Ok(())
    }

    fn on_cancel_document(
        &mut self,
        id: JobId,
        number: usize,
        now: u64,
        actions: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let job = self.waiting_job(id)?;
        match job.documents.get_mut(number) {
            None => return Err(Refusal::Unknown),
            Some(document) if document.canceled => return Err(Refusal::NotNow("the document is canceled already")),
            Some(document) => document.canceled = true,
        }
        job.recount();
        if job.complete && job.printed().next().is_none() {
            self.end(id, JobState::Canceled, "job-canceled-by-user", "", now, actions);
        } else {
            actions.push(Action::Save(id));
        }
        Ok(())
    }

    fn on_alter(&mut self, id: JobId, changes: Changes, actions: &mut Vec<Action>) -> Result<(), Refusal> {
        let job = self.waiting_job(id)?;
        if changes.hold == Some(None) && job.pin.is_some() {
            return Err(Refusal::PinWrong(PIN_TRIES));
        }
        if let Some(name) = changes.name {
            job.name = name;
        }
        if let Some(priority) = changes.priority {
            job.priority = priority.clamp(1, 100);
        }
        if let Some(copies) = changes.copies {
            job.ticket.copies = copies.clamp(1, 999);
        }
        if let Some(hold) = changes.hold {
            job.hold = hold;
        }
        job.recount();
        settle(job);
        actions.push(Action::Save(id));
        Ok(())
    }

    fn on_hold_new(&mut self, hold: bool, now: u64, actions: &mut Vec<Action>) {
        self.switch(now, actions, |s| s.hold_new = hold);
        if hold {
            return;
        }
        for id in std::mem::take(&mut self.held_new) {
            if let Some(job) = self.jobs.get_mut(&id)
                && job.state == JobState::Held
                && job.pin.is_none()
            {
                job.hold = None;
                settle(job);
                actions.push(Action::Save(id));
            }
        }
    }

    fn on_stalled(&mut self, id: JobId, reason: String, done: u32, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.iter_mut().find(|s| s.running.contains(&id)) else { return };
        slot.condition = Condition::unready(reason.clone());
        let name = slot.name.clone();
        if let Some(job) = self.jobs.get_mut(&id) {
            job.state = JobState::Stopped;
            if !job.canceling {
                job.reason = "printer-stopped".into();
            }
            job.message = format!("{name} stopped ({reason}) after {done} sides");
            actions.push(Action::Save(id));
        }
    }

    fn on_going(&mut self, id: JobId, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.iter_mut().find(|s| s.running.contains(&id)) else { return };
        slot.condition = Condition::READY;
        if let Some(job) = self.jobs.get_mut(&id)
            && job.state == JobState::Stopped
        {
            job.state = JobState::Processing;
            if !job.canceling {
                job.reason = "job-printing".into();
            }
            job.message.clear();
            actions.push(Action::Save(id));
        }
    }

    fn on_ended(&mut self, id: JobId, outcome: Outcome, now: u64, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.iter_mut().find(|s| s.running.contains(&id)) else { return };
        slot.running.remove(&id);
        let name = slot.name.clone();
        match &outcome {
            Outcome::Refused { reason } | Outcome::Lost { reason } => {
                slot.condition = Condition::unready(reason.clone());
                actions.push(Action::Probe(name.clone()));
            }
            _ => {}
        }
        let moving = self.withdrawing.remove(&id);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let canceling = job.canceling;
        match outcome {
            Outcome::Done { impressions } => {
                let printed = impressions.or(job.impressions).unwrap_or(1);
                job.impressions_done = job.impressions_done.saturating_add(printed);
                self.end(id, JobState::Completed, "job-completed-successfully", "", now, actions);
            }
            Outcome::Aborted { message } => {
                self.end(id, JobState::Aborted, "aborted-by-system", &message, now, actions)
            }
            Outcome::Withdrawn { impressions } => {
                job.impressions_done = job.impressions_done.saturating_add(impressions);
                job.begun = false;
                if canceling {
                    self.end(id, JobState::Canceled, "job-canceled-by-user", "", now, actions);
                    return;
                }
                job.moved |= moving;
                wait(job);
                if impressions > 0 {
                    job.message = format!("{impressions} sides came out of {name} before it was taken from there");
                }
                actions.push(Action::Save(id));
            }
            Outcome::Refused { reason } => {
                job.begun = false;
                if canceling {
                    self.end(id, JobState::Canceled, "job-canceled-by-user", "", now, actions);
                    return;
                }
                wait(job);
                job.message = format!("{name} is not ready: {reason}");
                actions.push(Action::Save(id));
            }
            Outcome::Lost { reason } => {
                if canceling {
                    let message = "its printer could not be asked and may still print it";
                    self.end(id, JobState::Canceled, "job-canceled-by-user", message, now, actions);
                    return;
                }
                job.state = JobState::Stopped;
                job.reason = "printer-stopped".into();
                job.message = format!("{name} does not say how far it is ({reason})");
                actions.push(Action::Save(id));
            }
        }
    }

    fn on_tick(&mut self, now: u64, actions: &mut Vec<Action>) {
        let ids: Vec<JobId> = self.active.iter().copied().collect();
        for id in ids {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            if !job.complete && now >= job.touched_ms + DOCUMENT_WAIT_MS {
                self.end(id, JobState::Aborted, "job-data-insufficient", "its documents did not come", now, actions);
            } else if job.pin.is_some() && job.state == JobState::Held && now >= job.created_ms + PIN_LIFE_MS {
                self.end(
                    id,
                    JobState::Canceled,
                    "job-canceled-at-device",
                    "nobody released it in 24 hours",
                    now,
                    actions,
                );
            } else if let Some(Hold::Until(at)) = job.hold
                && job.pin.is_none()
                && now >= at
            {
                job.hold = None;
                settle(job);
                actions.push(Action::Save(id));
            }
        }
    }

    /// The job is over.
    fn end(&mut self, id: JobId, state: JobState, reason: &str, message: &str, now: u64, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.state = state;
        job.reason = reason.to_owned();
        job.message = message.to_owned();
        job.ended_ms = Some(now);
        job.complete = true;
        job.hold = None;
        job.pin = None;
        self.active.remove(&id);
        self.held_new.remove(&id);
        actions.push(Action::Ended(id));
        let over = self.jobs.len() - self.active.len();
        // At least the one that is just over stays: whoever does what follows looks at it.
        if over > self.limits.history.max(1)
            && let Some(oldest) = self.jobs.keys().copied().find(|old| *old != id && !self.active.contains(old))
        {
            self.jobs.remove(&oldest);
            actions.push(Action::Forget(oldest));
        }
    }

    fn live_job(&mut self, id: JobId) -> Result<&mut Job, Refusal> {
        let job = self.jobs.get_mut(&id).ok_or(Refusal::Unknown)?;
        if job.state.is_over() { Err(Refusal::Over) } else { Ok(job) }
    }

    fn waiting_job(&mut self, id: JobId) -> Result<&mut Job, Refusal> {
        let job = self.live_job(id)?;
        match job.state {
            JobState::Pending | JobState::Held => Ok(job),
            _ => Err(Refusal::NotNow("it is being printed")),
        }
    }

    fn open_job(&mut self, id: JobId) -> Result<&mut Job, Refusal> {
        let job = self.live_job(id)?;
        if job.complete { Err(Refusal::NotNow("its last document came already")) } else { Ok(job) }
    }

    /// Gives waiting jobs to slots.
    fn dispatch(&mut self, now: u64, actions: &mut Vec<Action>) {
        self.withdraw_stalled(actions);
        if self.switches.paused || self.slots.iter().all(|s| !free(s)) {
            return;
        }
        let lost: Vec<JobId> =
            self.active().filter(|j| j.state == JobState::Stopped && j.begun).map(|j| j.id).collect();
        for id in lost {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let home = job.output.clone();
            if !self.slots.iter().any(|s| Some(&s.name) == home.as_ref()) {
                job.begun = false;
                job.hold = Some(Hold::Indefinite);
                settle(job);
                job.message = "the output that had it is gone; release it to print it again".into();
                actions.push(Action::Save(id));
                continue;
            }
            let home = home.as_deref();
            if let Some(slot) = self.slots.iter().position(|s| Some(s.name.as_str()) == home && free(s))
                && !self.slots.iter().any(|s| s.running.contains(&id))
            {
                self.start(id, slot, true, now, actions);
                if self.jobs.get(&id).is_some_and(|j| j.canceling) {
                    // It was being canceled when the process ended.
                    self.withdrawing.insert(id);
                    actions.push(Action::Withdraw(id));
                }
            }
        }
        for id in self.waiting() {
            if self.slots.iter().all(|s| !free(s)) {
                break;
            }
            let Some(job) = self.jobs.get(&id) else { continue };
            let best = (0..self.slots.len())
                .filter(|n| free(&self.slots[*n]) && suffices(&self.slots[*n], job))
                .min_by_key(|n| (self.load(*n), *n));
            if let Some(slot) = best {
                self.start(id, slot, false, now, actions);
            }
        }
    }

    /// Sheets before a new job at a slot; a job of others counts as one.
    fn load(&self, slot: usize) -> u64 {
        let slot = &self.slots[slot];
        let own: u64 = slot.running.iter().filter_map(|id| self.jobs.get(id)).map(|j| u64::from(j.sheets)).sum();
        let others = match slot.condition {
            Condition::Ready { backlog } => u64::from(backlog),
            Condition::Unready { .. } => 0,
        };
        own + others
    }

    fn start(&mut self, id: JobId, slot: usize, repeat: bool, now: u64, actions: &mut Vec<Action>) {
        let slot = &mut self.slots[slot];
        slot.running.insert(id);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.state = JobState::Processing;
        job.reason = "job-printing".into();
        job.message.clear();
        job.begun = true;
        job.output = Some(slot.name.clone());
        job.processing_ms.get_or_insert(now);
        actions.push(Action::Save(id));
        actions.push(Action::Start { job: id, output: slot.name.clone(), repeat });
    }

    /// Jobs that stand still at one slot and could be printed by another one now.
    fn withdraw_stalled(&mut self, actions: &mut Vec<Action>) {
        if self.switches.paused {
            return;
        }
        for slot in &self.slots {
            for id in &slot.running {
                let Some(job) = self.jobs.get(id) else { continue };
                let stands = job.state == JobState::Stopped && !job.moved && !job.canceling;
                if stands
                    && !self.withdrawing.contains(id)
                    && self.slots.iter().any(|s| s.name != slot.name && free(s) && suffices(s, job))
                {
                    self.withdrawing.insert(*id);
                    actions.push(Action::Withdraw(*id));
                }
            }
        }
    }
}

fn slot(output: &OutputConfig, lanes: usize) -> Slot {
    Slot {
        name: output.name.clone(),
        capabilities: output.capabilities.clone(),
        lanes: lanes.max(1),
        condition: Condition::READY,
        running: BTreeSet::new(),
    }
}

fn free(slot: &Slot) -> bool {
    slot.condition.is_ready() && slot.running.len() < slot.lanes
}

fn suffices(slot: &Slot, job: &Job) -> bool {
    let formats: Vec<&str> = job.printed().map(|(_, d)| d.format.as_str()).collect();
    slot.capabilities.suffice(&job.ticket, &formats)
}

/// State of a job that is not printed yet, from what it waits for.
fn settle(job: &mut Job) {
    (job.state, job.reason) = if !job.complete {
        (JobState::Held, "job-incoming".into())
    } else if job.pin.is_some() {
        (JobState::Held, "job-password-wait".into())
    } else if job.hold.is_some() {
        (JobState::Held, "job-hold-until-specified".into())
    } else {
        (JobState::Pending, "none".into())
    };
}

/// Back to the waiting ones.
fn wait(job: &mut Job) {
    job.state = JobState::Pending;
    job.reason = "none".into();
}

#[cfg(test)]
mod tests;
