//! The leases of one device: state, event and time give answer and actions. No IO, no clock.

use super::{Ask, Ending, Grant, LeaseId, Mode, Note, Rules, Standing, Token};
use crate::audit::clean;
use crate::model::Caller;
use common::error::{Error, Reason, Result};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Leases that ended and are remembered, to say why.
const ENDED_MAX: usize = 64;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Somebody asks for a lease.
    Ask(Caller, Ask),
    /// A holder or waiter is still there.
    Renew(Caller, LeaseId),
    /// A holder gives its lease back, or a waiter leaves.
    Release(Caller, LeaseId),
    /// Somebody would like to have the device and says so to who holds it.
    Request(Caller, String),
    /// Somebody who manages the device takes leases back: one, or all.
    TakeBack {
        /// Who; its right was checked.
        by: Caller,
        /// Which, or which place in the queue; all that are held if none is named.
        id: Option<LeaseId>,
        /// For the holder.
        reason: String,
    },
    /// An operation at the device begins under a token.
    Begin(Caller, Token, Mode),
    /// An operation that began has returned.
    Finish(Token),
    /// These tokens, first to last, are ours: they are on disk.
    Tokens(u64, u64),
    /// The device is no longer shared.
    Close,
    /// Nothing happened but that time went on.
    Tick,
}

/// What who caused the event is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// To asking and renewing.
    Standing(Standing),
    /// To a release: whether there was something to release. To requests and taking back: how many it concerned.
    Count(usize),
    /// Nothing to tell.
    Done,
}

/// What is to be done about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Put so many more tokens on disk, then say so by [`Event::Tokens`].
    ReserveTokens(u64),
    /// This lease was given.
    Granted {
        /// To whom.
        to: Caller,
        /// What.
        grant: Grant,
        /// What for.
        purpose: String,
    },
    /// This lease ended, whether or not an operation still runs.
    Ended {
        /// Whose.
        of: Caller,
        /// Its token.
        token: Token,
        /// Why.
        why: Ending,
    },
    /// This place in the queue is gone.
    Left {
        /// Whose.
        of: Caller,
        /// Which.
        id: LeaseId,
        /// Why.
        why: Ending,
    },
}

#[derive(Clone, Debug)]
struct Lease {
    id: LeaseId,
    token: Token,
    mode: Mode,
    holder: Caller,
    purpose: String,
    since: Instant,
    until: Instant,
    /// Operations that run at the device.
    uses: usize,
    ended: bool,
}

#[derive(Clone, Debug)]
struct Waiter {
    id: LeaseId,
    mode: Mode,
    who: Caller,
    purpose: String,
    since: Instant,
    until: Instant,
}

/// A lease as others see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeldView {
    /// Which.
    pub id: LeaseId,
    /// Alone or with others.
    pub mode: Mode,
    /// Whose.
    pub holder: Caller,
    /// What for.
    pub purpose: String,
    /// For how long already.
    pub held_for: Duration,
    /// It has ended, but an operation of it still runs at the device.
    pub finishing: bool,
}

/// A place in the queue as others see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WaitingView {
    /// Which.
    pub id: LeaseId,
    /// Alone or with others.
    pub mode: Mode,
    /// Whose.
    pub who: Caller,
    /// What for.
    pub purpose: String,
    /// For how long already.
    pub waiting_for: Duration,
}

#[derive(Clone, Debug)]
struct KeptNote {
    from: Caller,
    text: String,
    at: Instant,
}

/// The leases of one device.
#[derive(Clone, Debug)]
pub struct Table {
    rules: Rules,
    leases: Vec<Lease>,
    waiting: VecDeque<Waiter>,
    notes: VecDeque<KeptNote>,
    ended: VecDeque<(LeaseId, Ending)>,
    /// Next token, and the last that is on disk.
    next: u64,
    reserved: u64,
    reserving: bool,
    closed: bool,
}

impl Table {
    /// A device that nobody holds, without tokens yet.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            leases: Vec::new(),
            waiting: VecDeque::new(),
            notes: VecDeque::new(),
            ended: VecDeque::new(),
            next: 1,
            reserved: 0,
            reserving: false,
            closed: false,
        }
    }

    /// Takes an event in. What is due by now happens before it.
    ///
    /// # Errors
    /// * to asking: `RESOURCE_BUSY` (details `holder`, `since_seconds`), `LEASE_QUEUE_FULL`, `FIELD_INVALID` if the id is
    ///   somebody else's, `RESOURCE_UNKNOWN` after [`Event::Close`];
    /// * to renewing: `LEASE_LOST`, with why;
    /// * to taking one back: `LEASE_UNKNOWN`;
    /// * to a request: `OVERLOADED` if the same person's last one was a moment ago;
    /// * to beginning an operation: `LEASE_LOST`, or `LEASE_UNKNOWN` if no such token was ever given; `RESOURCE_BUSY` if a
    ///   shared lease is shown where an exclusive one is needed.
    pub fn step(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) -> Result<Answer> {
        self.expire(now, actions);
        let answer = self.take_in(event, now, actions);
        self.fill(now, actions);
        // Half of the next batch is left when it is ordered, so that nobody waits for the disk.
        if !self.reserving && !self.closed && self.left() <= self.rules.tokens_at_once / 2 {
            self.reserving = true;
            actions.push(Action::ReserveTokens(self.rules.tokens_at_once.max(1)));
        }
        answer?.map_or_else(|id| Ok(Answer::Standing(self.standing(id, now)?)), Ok)
    }

    /// What remains to be told: an answer, or the standing of an id once the queue has moved.
    fn take_in(
        &mut self,
        event: Event,
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> Result<std::result::Result<Answer, LeaseId>> {
        Ok(match event {
            Event::Ask(who, ask) => Err(self.ask(who, ask, now)?),
            Event::Renew(who, id) => {
                self.renew(&who, id, now)?;
                Err(id)
            }
            Event::Release(who, id) => Ok(Answer::Count(usize::from(self.release(&who, id, actions)))),
            Event::Request(who, text) => Ok(Answer::Count(self.request(who, &text, now)?)),
            Event::TakeBack { by, id, reason } => Ok(Answer::Count(self.take_back(&by, id, &reason, actions)?)),
            Event::Begin(who, token, mode) => {
                self.check(&who, token, mode, now)?;
                if let Some(lease) = self.leases.iter_mut().find(|l| l.token == token) {
                    lease.uses += 1;
                }
                Ok(Answer::Done)
            }
            Event::Finish(token) => {
                if let Some(lease) = self.leases.iter_mut().find(|l| l.token == token) {
                    lease.uses = lease.uses.saturating_sub(1);
                }
                self.leases.retain(|l| !l.ended || l.uses > 0);
                Ok(Answer::Done)
            }
            Event::Tokens(first, last) => {
                self.reserving = false;
                self.tokens(first, last);
                Ok(Answer::Done)
            }
            Event::Close => {
                self.close(actions);
                Ok(Answer::Done)
            }
            Event::Tick => Ok(Answer::Done),
        })
    }

    /// A reservation failed: it may be tried again.
    pub fn reservation_failed(&mut self) {
        self.reserving = false;
    }

    /// True if the next lease has to wait for tokens.
    pub fn needs_tokens(&self) -> bool {
        self.left() == 0
    }

    /// True after [`Event::Close`].
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// True if nobody holds it and no operation runs.
    pub fn is_idle(&self) -> bool {
        self.leases.is_empty()
    }

    /// Whether a token may be used now, for what needs this mode. Takes no note of it.
    ///
    /// # Errors
    /// As [`Table::step`] says for beginning an operation.
    pub fn check(&self, who: &Caller, token: Token, mode: Mode, now: Instant) -> Result<()> {
        let lease = self.leases.iter().find(|l| l.token == token);
        // Somebody else's token is treated like one that has ended: who guesses learns nothing.
        let lease = lease.filter(|l| !l.ended && l.until > now && l.holder.device == who.device);
        match lease {
            Some(lease) if mode == Mode::Exclusive && lease.mode == Mode::Shared => {
                Err(Error::new(Reason::ResourceBusy, "this needs the device alone, and the lease is a shared one")
                    .why_is("the lease shown is shared with others")
                    .fix_is("take an exclusive lease"))
            }
            Some(_) => Ok(()),
            None if token.0 == 0 || token.0 >= self.next => {
                Err(Error::new(Reason::LeaseUnknown, "no lease with this token was given"))
            }
            None => Err(Error::new(Reason::LeaseLost, "the lease with this token has ended")),
        }
    }

    /// When [`Event::Tick`] has something to do at the latest.
    pub fn due(&self) -> Option<Instant> {
        let leases = self.leases.iter().filter(|l| !l.ended).map(|l| l.until);
        leases.chain(self.waiting.iter().map(|w| w.until)).min()
    }

    /// Who holds it.
    pub fn held(&self, now: Instant) -> Vec<HeldView> {
        let view = |l: &Lease| HeldView {
            id: l.id,
            mode: l.mode,
            holder: l.holder.clone(),
            purpose: l.purpose.clone(),
            held_for: now.saturating_duration_since(l.since),
            finishing: l.ended || l.until <= now,
        };
        self.leases.iter().map(view).collect()
    }

    /// Who waits, the next one first.
    pub fn queue(&self, now: Instant) -> Vec<WaitingView> {
        let view = |w: &Waiter| WaitingView {
            id: w.id,
            mode: w.mode,
            who: w.who.clone(),
            purpose: w.purpose.clone(),
            waiting_for: now.saturating_duration_since(w.since),
        };
        self.waiting.iter().map(view).collect()
    }

    /// Notes to who holds it, oldest first.
    pub fn notes(&self, now: Instant) -> Vec<Note> {
        let view = |n: &KeptNote| Note {
            from: n.from.clone(),
            text: n.text.clone(),
            age: now.saturating_duration_since(n.at),
        };
        self.notes.iter().map(view).collect()
    }

    fn left(&self) -> u64 {
        (self.reserved + 1).saturating_sub(self.next)
    }

    fn tokens(&mut self, first: u64, last: u64) {
        // Never backwards, whatever the storage says.
        if last < first || first < self.next {
            return;
        }
        if self.left() == 0 || first == self.reserved + 1 {
            self.next = if self.left() == 0 { first } else { self.next };
            self.reserved = last;
        } else {
            // Somebody else's tokens lie between: what was left of ours is given up.
            (self.next, self.reserved) = (first, last);
        }
    }

    fn ask(&mut self, who: Caller, ask: Ask, now: Instant) -> Result<LeaseId> {
        if self.closed {
            return Err(Error::new(Reason::ResourceUnknown, "the device is no longer shared"));
        }
        let theirs = |device: &str| device == who.device;
        if let Some(lease) = self.leases.iter().find(|l| l.id == ask.id && !l.ended) {
            return if theirs(&lease.holder.device) { Ok(ask.id) } else { Err(taken_id()) };
        }
        if let Some(waiter) = self.waiting.iter().find(|w| w.id == ask.id) {
            return if theirs(&waiter.who.device) { Ok(ask.id) } else { Err(taken_id()) };
        }
        if self.leases.iter().any(|l| l.id == ask.id) || self.ended.iter().any(|(id, _)| *id == ask.id) {
            return Err(self.lost(ask.id));
        }
        let own = self.leases.iter().filter(|l| theirs(&l.holder.device)).count()
            + self.waiting.iter().filter(|w| theirs(&w.who.device)).count();
        if own >= self.rules.per_machine {
            return Err(Error::new(Reason::LeaseQueueFull, "this machine has and awaits as many leases as it may")
                .fix_is("give one back with `atrium release`"));
        }
        let now_possible = self.waiting.is_empty() && self.fits(ask.mode);
        if !now_possible && !ask.wait {
            return Err(self.busy(now));
        }
        if !now_possible && self.waiting.len() >= self.rules.waiters {
            return Err(Error::new(Reason::LeaseQueueFull, "the queue for the device is full"));
        }
        if now_possible && self.left() == 0 && !ask.wait {
            return Err(Error::new(Reason::Overloaded, "the lease could not be written down in time")
                .retry_after(Duration::from_secs(1)));
        }
        let purpose = clean(&ask.purpose, self.rules.text_bytes);
        let until = now + self.rules.ttl;
        self.waiting.push_back(Waiter { id: ask.id, mode: ask.mode, who, purpose, since: now, until });
        Ok(ask.id)
    }

    fn renew(&mut self, who: &Caller, id: LeaseId, now: Instant) -> Result<()> {
        let until = now + self.rules.ttl;
        if let Some(waiter) = self.waiting.iter_mut().find(|w| w.id == id && w.who.device == who.device) {
            waiter.until = until;
            return Ok(());
        }
        let wanted = !self.waiting.is_empty();
        let turn = self.rules.turn;
        let lease = self.leases.iter_mut().find(|l| l.id == id && !l.ended && l.holder.device == who.device);
        let Some(lease) = lease else { return Err(self.lost(id)) };
        let over = wanted && now.saturating_duration_since(lease.since) >= turn;
        if !over {
            lease.until = until;
        }
        Ok(())
    }

    fn release(&mut self, who: &Caller, id: LeaseId, actions: &mut Vec<Action>) -> bool {
        if let Some(at) = self.waiting.iter().position(|w| w.id == id && w.who.device == who.device) {
            if let Some(waiter) = self.waiting.remove(at) {
                self.left_queue(waiter, Ending::Released, actions);
            }
            return true;
        }
        self.end(|l| l.id == id && l.holder.device == who.device, &Ending::Released, actions) > 0
    }

    fn request(&mut self, who: Caller, text: &str, now: Instant) -> Result<usize> {
        let holders = self.leases.iter().filter(|l| !l.ended).count();
        if holders == 0 {
            return Ok(0);
        }
        let same = |n: &KeptNote| n.from.device == who.device && n.from.person == who.person;
        if let Some(at) = self.notes.iter().position(same) {
            let wait = self.rules.note_every.saturating_sub(now.saturating_duration_since(self.notes[at].at));
            if !wait.is_zero() {
                return Err(Error::new(Reason::Overloaded, "the holder has your note already").retry_after(wait));
            }
            self.notes.remove(at);
        }
        while self.notes.len() >= self.rules.notes.max(1) {
            self.notes.pop_front();
        }
        self.notes.push_back(KeptNote { from: who, text: clean(text, self.rules.text_bytes), at: now });
        Ok(holders)
    }

    fn take_back(
        &mut self,
        by: &Caller,
        id: Option<LeaseId>,
        reason: &str,
        actions: &mut Vec<Action>,
    ) -> Result<usize> {
        let why = Ending::TakenBack { by: by.person.clone(), reason: clean(reason, self.rules.text_bytes) };
        let mut count = self.end(|l| id.is_none_or(|id| l.id == id), &why, actions);
        if let Some(at) = self.waiting.iter().position(|w| Some(w.id) == id)
            && let Some(waiter) = self.waiting.remove(at)
        {
            self.left_queue(waiter, why, actions);
            count += 1;
        }
        if count == 0 && id.is_some() {
            return Err(Error::new(Reason::LeaseUnknown, "there is no such lease"));
        }
        Ok(count)
    }

    fn close(&mut self, actions: &mut Vec<Action>) {
        self.closed = true;
        self.end(|_| true, &Ending::Closed, actions);
        for waiter in std::mem::take(&mut self.waiting) {
            self.left_queue(waiter, Ending::Closed, actions);
        }
    }

    fn expire(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.end(|l| l.until <= now, &Ending::Silence, actions);
        let (gone, stay) = std::mem::take(&mut self.waiting).into_iter().partition(|w| w.until <= now);
        self.waiting = stay;
        let gone: VecDeque<Waiter> = gone;
        for waiter in gone {
            self.left_queue(waiter, Ending::Silence, actions);
        }
    }

    fn left_queue(&mut self, waiter: Waiter, why: Ending, actions: &mut Vec<Action>) {
        self.remember(waiter.id, why.clone());
        actions.push(Action::Left { of: waiter.who, id: waiter.id, why });
    }

    /// Ends the living leases that are meant; those without a running operation are gone at once.
    fn end(&mut self, meant: impl Fn(&Lease) -> bool, why: &Ending, actions: &mut Vec<Action>) -> usize {
        let mut over = Vec::new();
        for lease in self.leases.iter_mut().filter(|l| !l.ended && meant(l)) {
            lease.ended = true;
            over.push(lease.id);
            actions.push(Action::Ended { of: lease.holder.clone(), token: lease.token, why: why.clone() });
        }
        for id in &over {
            self.remember(*id, why.clone());
        }
        self.leases.retain(|l| !l.ended || l.uses > 0);
        if self.leases.is_empty() {
            // Notes were for who held it.
            self.notes.clear();
        }
        over.len()
    }

    fn remember(&mut self, id: LeaseId, why: Ending) {
        while self.ended.len() >= ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back((id, why));
    }

    /// Whether a lease of this mode can stand beside those that are there.
    fn fits(&self, mode: Mode) -> bool {
        match mode {
            Mode::Exclusive => self.leases.is_empty(),
            Mode::Shared => {
                self.leases.iter().all(|l| l.mode == Mode::Shared) && self.leases.len() < self.rules.holders
            }
        }
    }

    /// Gives the device to those whose turn it is.
    fn fill(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while self.left() > 0 && self.waiting.front().is_some_and(|w| self.fits(w.mode)) {
            let Some(waiter) = self.waiting.pop_front() else { return };
            let lease = Lease {
                id: waiter.id,
                token: Token(self.next),
                mode: waiter.mode,
                holder: waiter.who,
                purpose: waiter.purpose,
                since: now,
                until: now + self.rules.ttl,
                uses: 0,
                ended: false,
            };
            self.next += 1;
            let (to, purpose) = (lease.holder.clone(), lease.purpose.clone());
            actions.push(Action::Granted { to, grant: self.grant(&lease, now), purpose });
            self.leases.push(lease);
        }
    }

    fn grant(&self, lease: &Lease, now: Instant) -> Grant {
        Grant {
            id: lease.id,
            token: lease.token,
            mode: lease.mode,
            ttl: lease.until.saturating_duration_since(now),
            skew: self.rules.skew,
            wanted: !self.waiting.is_empty(),
        }
    }

    fn standing(&self, id: LeaseId, now: Instant) -> Result<Standing> {
        if let Some(lease) = self.leases.iter().find(|l| l.id == id && !l.ended) {
            return Ok(Standing::Granted(self.grant(lease, now)));
        }
        match self.waiting.iter().position(|w| w.id == id) {
            Some(at) => {
                let holders = self.leases.iter().map(|l| l.holder.clone()).take(8).collect();
                Ok(Standing::Waiting { place: at + 1, holders })
            }
            None => Err(self.lost(id)),
        }
    }

    fn busy(&self, now: Instant) -> Error {
        let error = Error::new(Reason::ResourceBusy, "the device is in use");
        match self.leases.first() {
            None => error.why_is("others wait for it already"),
            Some(lease) => {
                let name = if lease.holder.person.is_empty() { &lease.holder.machine } else { &lease.holder.person };
                error
                    .with("holder", name)
                    .with("since_seconds", now.saturating_duration_since(lease.since).as_secs())
                    .why_is(format!("{name} uses it"))
            }
        }
    }

    fn lost(&self, id: LeaseId) -> Error {
        let error = Error::new(Reason::LeaseLost, "the lease has ended");
        match self.ended.iter().rev().find(|(ended, _)| *ended == id) {
            Some((_, Ending::TakenBack { by, reason })) if reason.is_empty() => {
                error.why_is(format!("{by} has taken it back"))
            }
            Some((_, Ending::TakenBack { by, reason })) => error.why_is(format!("{by} has taken it back: {reason}")),
            Some((_, Ending::Silence)) => error.why_is("nothing was heard from you for too long"),
            Some((_, Ending::Released)) => error.why_is("it was given back"),
            Some((_, Ending::Closed)) => error.why_is("the device is no longer shared"),
            None => error,
        }
    }

    /// Counts of everything that is kept, for the test of bounds.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 4] {
        [self.leases.len(), self.waiting.len(), self.notes.len(), self.ended.len()]
    }
}

fn taken_id() -> Error {
    Error::new(Reason::FieldInvalid, "the lease's id is in use").fix_is("choose a new random id")
}
