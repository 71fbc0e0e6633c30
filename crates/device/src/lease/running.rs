//! The leases of a node's devices while it runs: tables, clock, stored tokens, audit.
//!
//! All decisions are [`Table`]'s; this file adds the clock, the disk and the waiting. One short lock lies around all tables
//! and is never held across an await. Answers about time come from the clock that was given, so a test turns it.
//!
//! Somebody calls [`Leases::run`], or [`Leases::tick`] at the times that it gives: without that, silence is noticed only when
//! the next event of that device comes, which is soon enough for safety and too late for who waits.
//!
//! Bounds: 256 devices; per device those of [`Rules`].

use super::table::{Action, Answer, Event, HeldView, Table, WaitingView};
use super::{Ask, Grant, LeaseId, Mode, Note, Rules, Standing, Token, TokenStore};
use crate::audit::{Audit, Line};
use crate::model::Caller;
use common::error::{Error, Reason, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Devices of one node.
const DEVICES_MAX: usize = 256;
/// Longest name of a device.
const NAME_MAX: usize = 255;
/// How soon a reservation of tokens that failed is tried again.
const RESERVE_AGAIN: Duration = Duration::from_secs(2);
/// The longest that [`Leases::run`] sleeps.
const TICK_MAX: Duration = Duration::from_secs(5);

/// Tells monotonic time.
pub trait Monotonic: Send + Sync + 'static {
    /// Never goes back.
    fn now(&self) -> Instant;
}

/// The machine's monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemMonotonic;

impl Monotonic for SystemMonotonic {
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// A device's leases as others see them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Overview {
    /// Who holds it.
    pub held: Vec<HeldView>,
    /// Who waits, the next one first.
    pub queue: Vec<WaitingView>,
    /// What those say who would like to have it, for its holders and who manages it.
    pub notes: Vec<Note>,
}

struct Device {
    table: Table,
    changed: watch::Sender<u64>,
}

struct Inner {
    devices: Mutex<HashMap<String, Device>>,
    tokens: Arc<dyn TokenStore>,
    clock: Arc<dyn Monotonic>,
    rules: Rules,
    audit: Option<Audit>,
    wake: Notify,
}

/// The leases of a node's devices. Clones are handles to the same ones.
#[derive(Clone)]
pub struct Leases(Arc<Inner>);

/// An operation at a device under a lease. While it lives, the device is given to nobody else, even if the lease ends;
/// so the operation has a deadline of its own.
pub struct Use {
    leases: Leases,
    device: String,
    token: Token,
}

impl Drop for Use {
    fn drop(&mut self) {
        // A device that is gone has nothing to finish.
        let _ = self.leases.step(&self.device, Event::Finish(self.token));
        self.leases.forget_closed(&self.device);
    }
}

/// Gives up a wish for a lease whose asker has gone.
struct Wish<'a> {
    leases: &'a Leases,
    device: &'a str,
    who: &'a Caller,
    id: LeaseId,
    kept: bool,
}

impl Drop for Wish<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let _ = self.leases.step(self.device, Event::Release(self.who.clone(), self.id));
        }
    }
}

impl Leases {
    /// No devices yet.
    pub fn new(tokens: Arc<dyn TokenStore>, clock: Arc<dyn Monotonic>, rules: Rules, audit: Option<Audit>) -> Self {
        let (devices, wake) = (Mutex::default(), Notify::new());
        Self(Arc::new(Inner { devices, tokens, clock, rules, audit, wake }))
    }

    /// Takes a device in; the first tokens are on disk when this returns. One that is there stays as it is.
    ///
    /// # Errors
    /// `RESOURCE_INVALID` for a name that is empty or too long, or beyond 256 devices; `RESOURCE_BUSY` if it was closed and an
    /// operation of that time still runs; those of the token storage.
    pub async fn open(&self, device: &str) -> Result<()> {
        if device.is_empty() || device.len() > NAME_MAX {
            return Err(Error::new(Reason::ResourceInvalid, "a device's name has 1 to 255 bytes"));
        }
        match self.with(device, |d| d.table.is_closed()) {
            Ok(false) => return Ok(()),
            Ok(true) => {
                return Err(Error::new(Reason::ResourceBusy, "an operation from before still runs at the device")
                    .fix_is("try again when it has ended"));
            }
            Err(_) => {}
        }
        let (first, last) = self.0.tokens.reserve(device, self.0.rules.tokens_at_once.max(1)).await?;
        let mut table = Table::new(self.0.rules.clone());
        table.step(Event::Tokens(first, last), self.0.clock.now(), &mut Vec::new())?;
        // What that ordered is not on its way; the next event orders again.
        table.reservation_failed();
        let mut devices = self.0.devices.lock();
        if devices.len() >= DEVICES_MAX {
            return Err(Error::new(Reason::ResourceInvalid, "a machine shares at most 256 devices"));
        }
        devices.entry(device.to_owned()).or_insert_with(|| Device { table, changed: watch::Sender::new(0) });
        Ok(())
    }

    /// Ends all leases of a device that is no longer shared, and forgets it.
    pub fn close(&self, device: &str) {
        let _ = self.step(device, Event::Close);
        self.forget_closed(device);
    }

    /// Forgets a device that is closed and has no operation running.
    fn forget_closed(&self, device: &str) {
        let mut devices = self.0.devices.lock();
        if devices.get(device).is_some_and(|d| d.table.is_closed() && d.table.is_idle()) {
            devices.remove(device);
        }
    }

    /// Asks for a lease: it is given, or a place in the queue. The same id again gives the same standing.
    ///
    /// The caller's right was checked: *read* for a shared one, *write* for an exclusive one.
    ///
    /// # Errors
    /// `RESOURCE_UNKNOWN`, `RESOURCE_BUSY` (details `holder`, `since_seconds`), `LEASE_QUEUE_FULL`, `LEASE_LOST` if that id
    /// had one which ended, `AUDIT_FAILED`, `OVERLOADED`, those of the token storage.
    pub async fn ask(&self, device: &str, who: &Caller, ask: Ask) -> Result<Standing> {
        let asked = self.try_ask(device, who, ask).await;
        self.note_refusal(device, who, "use", &asked);
        asked
    }

    async fn try_ask(&self, device: &str, who: &Caller, ask: Ask) -> Result<Standing> {
        if let Some(audit) = &self.0.audit {
            audit.admit()?;
        }
        // Seldom: half a batch of tokens is left when the next is ordered.
        if self.with(device, |d| d.table.needs_tokens())? {
            self.reserve(device).await?;
        }
        self.standing(device, Event::Ask(who.clone(), ask))
    }

    /// Asks for a lease and waits for it at most `limit`. If this future is dropped, the wish, or the lease that nobody
    /// got to know of, is given back.
    ///
    /// # Errors
    /// Like [`Leases::ask`]; `RESOURCE_BUSY` when the time is over.
    pub async fn acquire(&self, device: &str, who: &Caller, ask: Ask, limit: Duration) -> Result<Grant> {
        let id = ask.id;
        let mut changed = self.watch(device)?;
        let mut wish = Wish { leases: self, device, who, id, kept: false };
        let end = tokio::time::sleep(limit);
        tokio::pin!(end);
        let keep_every = (self.0.rules.ttl / 3).max(Duration::from_millis(10));
        let mut standing = self.ask(device, who, Ask { wait: true, ..ask }).await?;
        loop {
            if let Standing::Granted(grant) = standing {
                wish.kept = true;
                return Ok(grant);
            }
            tokio::select! {
                () = &mut end => {
                    let error = self.with(device, |d| d.table.held(self.0.clock.now()))?.first().map_or_else(
                        || Error::new(Reason::ResourceBusy, "the device did not come free in time"),
                        |held| Error::new(Reason::ResourceBusy, "the device did not come free in time")
                            .with("holder", &held.holder.person),
                    );
                    self.note_refusal::<()>(device, who, "use", &Err(error));
                    return Err(Error::new(Reason::ResourceBusy, "the device did not come free in time"));
                }
                moved = changed.changed() => {
                    if moved.is_err() {
                        return Err(unknown());
                    }
                }
                () = tokio::time::sleep(keep_every) => {}
            }
            standing = self.renew(device, who, id)?;
        }
    }

    /// Says that a holder or waiter is still there, and where it stands. A holder whose turn is over while others wait is
    /// not prolonged: [`Grant::ttl`] then says what is left.
    ///
    /// # Errors
    /// `LEASE_LOST` with why, `RESOURCE_UNKNOWN`.
    pub fn renew(&self, device: &str, who: &Caller, id: LeaseId) -> Result<Standing> {
        self.standing(device, Event::Renew(who.clone(), id))
    }

    /// Gives a lease or a place in the queue back. Whether there was one; a repeat is harmless.
    ///
    /// # Errors
    /// `RESOURCE_UNKNOWN`.
    pub fn release(&self, device: &str, who: &Caller, id: LeaseId) -> Result<bool> {
        Ok(self.count(device, Event::Release(who.clone(), id))? > 0)
    }

    /// Tells those who hold the device that somebody would like to have it. How many were told; 0 means that it is free.
    ///
    /// # Errors
    /// `RESOURCE_UNKNOWN`, `OVERLOADED` if the same person's last note was a moment ago.
    pub fn request(&self, device: &str, who: &Caller, text: &str) -> Result<usize> {
        let told = self.count(device, Event::Request(who.clone(), text.to_owned()));
        self.note_refusal(device, who, "request", &told);
        if told.is_ok() {
            self.note(|| Line::granted(who, device, "request"));
        }
        told
    }

    /// Takes leases back for somebody who manages the device (the right was checked): one, or a place in the queue, or all
    /// that are held. How many it were.
    ///
    /// # Errors
    /// `RESOURCE_UNKNOWN`, `LEASE_UNKNOWN`.
    pub fn take_back(&self, device: &str, by: &Caller, id: Option<LeaseId>, reason: &str) -> Result<usize> {
        let event = Event::TakeBack { by: by.clone(), id, reason: reason.to_owned() };
        let taken = self.count(device, event);
        self.note_refusal(device, by, "take-back", &taken);
        if taken.is_ok() {
            self.note(|| Line::granted(by, device, "take-back").with_detail(reason));
        }
        taken
    }

    /// Whether a token may be used now, for something short that needs this mode. What takes longer, or must not overlap
    /// with the next holder's first operation, goes through [`Leases::begin`].
    ///
    /// # Errors
    /// `RESOURCE_UNKNOWN`, `LEASE_LOST`, `LEASE_UNKNOWN`, `RESOURCE_BUSY` if a shared lease is shown where an exclusive one is
    /// needed.
    pub fn check(&self, device: &str, who: &Caller, token: Token, mode: Mode) -> Result<()> {
        let now = self.0.clock.now();
        let checked = self.with(device, |d| d.table.check(who, token, mode, now)).and_then(|c| c);
        self.note_refusal(device, who, "check", &checked);
        checked
    }

    /// [`Leases::check`], and keeps the device from being given to others until the operation has returned.
    ///
    /// # Errors
    /// Like [`Leases::check`].
    pub fn begin(&self, device: &str, who: &Caller, token: Token, mode: Mode) -> Result<Use> {
        let begun = self.step(device, Event::Begin(who.clone(), token, mode));
        self.note_refusal(device, who, "check", &begun);
        begun.map(|_| Use { leases: self.clone(), device: device.to_owned(), token })
    }

    /// Who holds a device, who waits, who asks for it.
    ///
    /// # Errors
    /// `RESOURCE_UNKNOWN`.
    pub fn overview(&self, device: &str) -> Result<Overview> {
        let now = self.0.clock.now();
        self.with(device, |d| Overview {
            held: d.table.held(now),
            queue: d.table.queue(now),
            notes: d.table.notes(now),
        })
    }

    /// Follows a device: the number rises with each change of holders, queue or notes. It ends when the device is closed.
    ///
    /// # Errors
    /// `RESOURCE_UNKNOWN`.
    pub fn watch(&self, device: &str) -> Result<watch::Receiver<u64>> {
        self.with(device, |d| d.changed.subscribe())
    }

    /// Lets happen what is due by now; gives the time of the next one.
    pub async fn tick(&self) -> Option<Instant> {
        let names: Vec<String> = self.0.devices.lock().keys().cloned().collect();
        let mut next: Option<Instant> = None;
        for device in names {
            let _ = self.step(&device, Event::Tick);
            if self.with(&device, |d| d.table.needs_tokens()).unwrap_or(false)
                && let Err(error) = self.reserve(&device).await
            {
                tracing::error!(?error, device, "no tokens for leases could be reserved");
                let again = self.0.clock.now() + RESERVE_AGAIN;
                next = Some(next.map_or(again, |n| n.min(again)));
            }
            let due = self.with(&device, |d| d.table.due()).ok().flatten();
            next = next.into_iter().chain(due).min();
        }
        next
    }

    /// Lets happen what is due, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let next = self.tick().await;
            let now = self.0.clock.now();
            let wait = next.map_or(TICK_MAX, |at| at.saturating_duration_since(now)).clamp(
                // Not a busy loop, whatever the clock says.
                Duration::from_millis(5),
                TICK_MAX,
            );
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn reserve(&self, device: &str) -> Result<()> {
        match self.0.tokens.reserve(device, self.0.rules.tokens_at_once.max(1)).await {
            Ok((first, last)) => self.step(device, Event::Tokens(first, last)).map(drop),
            Err(error) => {
                let _ = self.with(device, |d| d.table.reservation_failed());
                Err(error)
            }
        }
    }

    fn with<T>(&self, device: &str, f: impl FnOnce(&mut Device) -> T) -> Result<T> {
        self.0.devices.lock().get_mut(device).map(f).ok_or_else(unknown)
    }

    fn step(&self, device: &str, event: Event) -> Result<Answer> {
        let mut actions = Vec::new();
        let answer = {
            let mut devices = self.0.devices.lock();
            let entry = devices.get_mut(device).ok_or_else(unknown)?;
            let quiet = matches!(event, Event::Begin(..) | Event::Tick | Event::Renew(..) | Event::Tokens(..));
            let answer = entry.table.step(event, self.0.clock.now(), &mut actions);
            let moved = actions.iter().any(|a| !matches!(a, Action::ReserveTokens(_)));
            if moved || (!quiet && answer.is_ok()) {
                entry.changed.send_modify(|n| *n += 1);
            }
            // Within the lock, so that the audit has the order in which things happened.
            actions.iter().for_each(|action| self.note_action(device, action));
            answer
        };
        for action in actions {
            match action {
                Action::ReserveTokens(count) => self.reserve_soon(device, count),
                Action::Granted { .. } => self.0.wake.notify_one(),
                Action::Ended { .. } | Action::Left { .. } => {}
            }
        }
        answer
    }

    fn reserve_soon(&self, device: &str, count: u64) {
        let (leases, device) = (self.clone(), device.to_owned());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            let _ = self.with(&device, |d| d.table.reservation_failed());
            return;
        };
        // Ends with the store's answer, which a shutdown waits for or gives up; nothing depends on its end.
        drop(runtime.spawn(async move {
            match leases.0.tokens.reserve(&device, count).await {
                Ok((first, last)) => drop(leases.step(&device, Event::Tokens(first, last))),
                Err(error) => {
                    tracing::warn!(?error, device, "no tokens for leases could be reserved");
                    let _ = leases.with(&device, |d| d.table.reservation_failed());
                }
            }
        }));
    }

    fn standing(&self, device: &str, event: Event) -> Result<Standing> {
        match self.step(device, event)? {
            Answer::Standing(standing) => Ok(standing),
            other => Err(Error::internal(format!("a lease was answered by {other:?}"))),
        }
    }

    fn count(&self, device: &str, event: Event) -> Result<usize> {
        match self.step(device, event)? {
            Answer::Count(count) => Ok(count),
            other => Err(Error::internal(format!("a lease was answered by {other:?}"))),
        }
    }

    fn note(&self, line: impl FnOnce() -> Line) {
        if let Some(audit) = &self.0.audit {
            audit.note(line());
        }
    }

    fn note_action(&self, device: &str, action: &Action) {
        match action {
            Action::Granted { to, grant, purpose } => self.note(|| {
                let detail = format!("{} lease, token {}: {purpose}", grant.mode.word(), grant.token);
                Line::granted(to, device, "use").with_detail(detail)
            }),
            Action::Ended { of, token, why } => {
                self.note(|| Line::ended(of, device, "use", why.word()).with_detail(format!("token {token}")));
            }
            Action::Left { .. } | Action::ReserveTokens(_) => {}
        }
    }

    fn note_refusal<T>(&self, device: &str, who: &Caller, verb: &'static str, result: &Result<T>) {
        if let Err(error) = result {
            self.note(|| Line::refused(who, device, verb, error));
        }
    }
}

fn unknown() -> Error {
    Error::new(Reason::ResourceUnknown, "there is no such device here")
}
