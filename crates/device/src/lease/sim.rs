//! The decision code under a seed: holders that freeze, messages that are late, lost or doubled, an owner that restarts at any
//! moment (also with a reservation on its way to the disk), clocks that run at different rates, a manager who takes leases
//! back. What must hold is checked at each step.

use super::{Action, Answer, Ask, Event, Grant, Held, LeaseId, Mode, Rules, Standing, Table, Token};
use crate::model::Caller;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::time::{Duration, Instant};
use uuid::Uuid;

const HOLDERS: usize = 7;
const CHAOS_MS: u64 = 600_000;
const QUIET_MS: u64 = 600_000;

fn rules() -> Rules {
    Rules {
        ttl: Duration::from_secs(10),
        skew: Duration::from_secs(1),
        turn: Duration::from_secs(30),
        waiters: 5,
        per_machine: 2,
        notes: 3,
        tokens_at_once: 4,
        ..Rules::default()
    }
}

#[derive(Clone, Debug)]
enum Message {
    ToOwner(usize, ToOwner),
    Standing { to: usize, id: LeaseId, sent: Instant, answer: Result<Standing, String> },
    TokensOnDisk { life: u32, first: u64, last: u64 },
    OperationDone { life: u32, token: Token, operation: u64 },
    Wake(usize),
}

#[derive(Clone, Debug)]
enum ToOwner {
    Ask(Ask, Instant),
    Renew(LeaseId, Instant),
    Release(LeaseId),
    Write(Token),
    Note,
}

#[derive(Default)]
struct Holder {
    wish: Option<(LeaseId, Mode)>,
    held: Option<Held>,
    since_ms: u64,
    frozen_until: u64,
    /// Per mille that its clock is slower or faster.
    rate: i64,
}

struct World {
    rng: StdRng,
    base: Instant,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    messages: HashMap<u64, Message>,
    count: u64,
    wishes: u64,
    table: Table,
    life: u32,
    /// What was on disk when this life of the owner began: its tokens are above.
    life_floor: u64,
    on_disk: u64,
    holders: Vec<Holder>,
    newest: u64,
    newest_exclusive: u64,
    /// Order in which wishes of this life came, and those granted.
    order: BTreeMap<u64, LeaseId>,
    /// Running operations: token, mode.
    running: HashMap<u64, (Token, Mode)>,
    /// Tokens that ended other than by silence.
    ended_early: Vec<Token>,
    modes: HashMap<Token, Mode>,
    accepted: u64,
    refused: u64,
}

fn caller(n: usize) -> Caller {
    Caller { person: format!("p{n}"), machine: format!("m{n}"), device: format!("d{n}") }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let holders = (0..HOLDERS).map(|_| Holder { rate: rng.random_range(-40..40), ..Holder::default() }).collect();
        let mut world = Self {
            rng,
            base: Instant::now(),
            now: 0,
            queue: BinaryHeap::new(),
            messages: HashMap::new(),
            count: 0,
            wishes: 0,
            table: Table::new(rules()),
            life: 0,
            life_floor: 0,
            on_disk: 0,
            holders,
            newest: 0,
            newest_exclusive: 0,
            order: BTreeMap::new(),
            running: HashMap::new(),
            ended_early: Vec::new(),
            modes: HashMap::new(),
            accepted: 0,
            refused: 0,
        };
        (0..HOLDERS).for_each(|n| world.send(n as u64 * 100, Message::Wake(n)));
        let _ = world.step_owner(Event::Tick);
        world
    }

    fn at(&self, ms: u64) -> Instant {
        self.base + Duration::from_millis(ms)
    }

    /// A holder's own clock.
    fn clock(&self, holder: usize) -> Instant {
        let rate = 1000 + self.holders[holder].rate;
        self.at(1_000_000 + self.now * rate as u64 / 1000)
    }

    fn send(&mut self, delay: u64, message: Message) {
        self.count += 1;
        self.queue.push(Reverse((self.now + delay, self.count)));
        self.messages.insert(self.count, message);
    }

    /// Over the network: late, lost, doubled.
    fn network(&mut self, message: Message, chaos: bool) {
        let copies = match self.rng.random_range(0..20) {
            0 if chaos => 0,
            1 if chaos => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let late = if chaos && self.rng.random_ratio(1, 20) { 15_000 } else { 300 };
            let delay = self.rng.random_range(0..late);
            self.send(delay, message.clone());
        }
    }

    fn restart_owner(&mut self) {
        (self.life, self.life_floor) = (self.life + 1, self.on_disk);
        self.table = Table::new(rules());
        self.order.clear();
        self.running.clear();
        let _ = self.step_owner(Event::Tick);
    }

    fn step_owner(&mut self, event: Event) -> common::error::Result<Answer> {
        let mut actions = Vec::new();
        let answer = self.table.step(event, self.at(self.now), &mut actions);
        for action in actions {
            self.act(action);
        }
        let sizes = self.table.sizes();
        assert!(sizes[0] <= rules().holders && sizes[1] <= 5 && sizes[2] <= 3 && sizes[3] <= 64, "{sizes:?}");
        answer
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::ReserveTokens(count) => {
                // On disk at once or only after a while; a restart in between leaves the numbers used up.
                let (first, last) = (self.on_disk + 1, self.on_disk + count);
                self.on_disk = last;
                let delay = self.rng.random_range(0..2_000);
                let life = self.life;
                self.send(delay, Message::TokensOnDisk { life, first, last });
            }
            Action::Granted { grant, .. } => self.granted(grant),
            Action::Ended { token, why, .. } => {
                if why != super::Ending::Silence {
                    self.ended_early.push(token);
                }
            }
            Action::Left { id, .. } => self.order.retain(|_, other| *other != id),
        }
    }

    fn granted(&mut self, grant: Grant) {
        assert!(grant.token.0 > self.newest, "tokens rise");
        assert!(grant.token.0 <= self.on_disk, "a token is on disk before it is given");
        self.newest = grant.token.0;
        self.modes.insert(grant.token, grant.mode);
        if grant.mode == Mode::Exclusive {
            self.newest_exclusive = grant.token.0;
            assert!(self.running.is_empty(), "given alone while an operation of another runs");
        } else {
            assert!(self.running.values().all(|(_, mode)| *mode == Mode::Shared));
        }
        let first = self.order.first_key_value().map(|(n, id)| (*n, *id));
        let (number, id) = first.expect("who is granted has asked");
        assert_eq!(id, grant.id, "nobody overtakes");
        self.order.remove(&number);
    }

    fn owner_hears(&mut self, from: usize, message: ToOwner, chaos: bool) {
        let who = caller(from);
        let (id, sent, event) = match message {
            ToOwner::Ask(ask, sent) => {
                let id = ask.id;
                let known = self.order.values().any(|other| *other == id);
                // Entered before, because it may be granted within the step; taken out if it was refused or known.
                self.wishes += 1;
                let number = self.wishes;
                if !known {
                    self.order.insert(number, id);
                }
                let answer = self.step_owner(Event::Ask(who, ask));
                if !matches!(answer, Ok(Answer::Standing(Standing::Waiting { .. }))) {
                    // Granted, refused, or a repeat of one that has its lease.
                    self.order.retain(|_, other| *other != id);
                }
                return self.answer(from, id, sent, answer, chaos);
            }
            ToOwner::Renew(id, sent) => (id, sent, Event::Renew(who, id)),
            ToOwner::Release(id) => {
                let _ = self.step_owner(Event::Release(who, id));
                return;
            }
            ToOwner::Note => {
                let _ = self.step_owner(Event::Request(who, "please\n".repeat(200)));
                return;
            }
            ToOwner::Write(token) => return self.write(who, token),
        };
        let answer = self.step_owner(event);
        self.answer(from, id, sent, answer, chaos);
    }

    fn answer(&mut self, to: usize, id: LeaseId, sent: Instant, answer: common::error::Result<Answer>, chaos: bool) {
        let answer = match answer {
            Ok(Answer::Standing(standing)) => Ok(standing),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.reason().to_owned()),
        };
        self.network(Message::Standing { to, id, sent, answer }, chaos);
    }

    fn write(&mut self, who: Caller, token: Token) {
        let Some(mode) = self.modes.get(&token).copied() else { return };
        match self.step_owner(Event::Begin(who, token, mode)) {
            Ok(_) => {
                self.accepted += 1;
                if mode == Mode::Exclusive {
                    assert_eq!(token.0, self.newest, "a stale token was accepted after a newer one was given");
                } else {
                    assert!(token.0 > self.newest_exclusive, "a shared token from before an exclusive one");
                }
                let operation = self.accepted;
                assert!(
                    self.running
                        .values()
                        .all(|(other, m)| *other == token || (*m, mode) == (Mode::Shared, Mode::Shared)),
                    "two that should be alone are at the device together"
                );
                self.running.insert(operation, (token, mode));
                let (life, delay) = (self.life, self.rng.random_range(1..3_000));
                self.send(delay, Message::OperationDone { life, token, operation });
            }
            Err(_) => self.refused += 1,
        }
    }

    fn holder_wakes(&mut self, n: usize, chaos: bool) {
        let clock = self.clock(n);
        if self.now < self.holders[n].frozen_until {
            let delay = self.holders[n].frozen_until - self.now;
            return self.send(delay, Message::Wake(n));
        }
        if let Some(held) = self.holders[n].held.clone() {
            self.use_it(n, &held, clock, chaos);
        } else if let Some((id, _)) = self.holders[n].wish {
            self.network(Message::ToOwner(n, ToOwner::Renew(id, clock)), chaos);
        } else if chaos && self.rng.random_ratio(1, 3) {
            let mode = if self.rng.random_ratio(1, 3) { Mode::Shared } else { Mode::Exclusive };
            let id = LeaseId(Uuid::from_u128(self.rng.random()));
            let ask = Ask { id, mode, wait: self.rng.random_ratio(4, 5), purpose: "x".repeat(1000) };
            self.holders[n].wish = Some((id, mode));
            self.holders[n].since_ms = self.now;
            self.network(Message::ToOwner(n, ToOwner::Ask(ask, clock)), chaos);
        }
        if chaos && self.rng.random_ratio(1, 10) {
            self.network(Message::ToOwner(n, ToOwner::Note), chaos);
        }
        let delay = self.rng.random_range(500..2_500);
        self.send(delay, Message::Wake(n));
    }

    fn use_it(&mut self, n: usize, held: &Held, clock: Instant, chaos: bool) {
        if !held.is_usable(clock) {
            (self.holders[n].held, self.holders[n].wish) = (None, None);
            return;
        }
        // Whoever believes that it may use it is right, unless somebody took it or the owner began anew.
        if self.table.check(&caller(n), held.token(), Mode::Shared, self.at(self.now)).is_err() {
            let of_this_life = held.token().0 > self.life_floor;
            assert!(!of_this_life || self.ended_early.contains(&held.token()), "the holder stops too late");
        }
        if chaos && self.rng.random_ratio(1, 12) {
            // It has just looked at its clock, and now stands still: what it sends later is sent without another look.
            let frozen = self.rng.random_range(1_000..40_000);
            self.holders[n].frozen_until = self.now + frozen;
            self.send(frozen, Message::ToOwner(n, ToOwner::Write(held.token())));
            return;
        }
        self.network(Message::ToOwner(n, ToOwner::Write(held.token())), chaos);
        let enough = self.now > self.holders[n].since_ms + 20_000;
        if enough && (!chaos || self.rng.random_ratio(1, 4)) {
            (self.holders[n].held, self.holders[n].wish) = (None, None);
            self.network(Message::ToOwner(n, ToOwner::Release(held.id())), chaos);
        } else {
            self.network(Message::ToOwner(n, ToOwner::Renew(held.id(), clock)), chaos);
        }
    }

    fn holder_hears(&mut self, to: usize, id: LeaseId, sent: Instant, answer: Result<Standing, String>) {
        let holder = &mut self.holders[to];
        if self.now < holder.frozen_until || holder.wish.is_none_or(|(wish, _)| wish != id) {
            return;
        }
        match answer {
            Ok(Standing::Granted(grant)) => match &mut holder.held {
                Some(held) => held.renewed(grant, sent),
                None => {
                    holder.since_ms = self.now;
                    holder.held = Some(Held::new(grant, sent));
                }
            },
            Ok(Standing::Waiting { place, .. }) => assert!((1..=5).contains(&place)),
            Err(_) => (holder.held, holder.wish) = (None, None),
        }
    }

    fn run(&mut self, until: u64, chaos: bool) {
        while let Some(Reverse((at, number))) = self.queue.peek().copied() {
            if at > until {
                break;
            }
            self.queue.pop();
            let message = self.messages.remove(&number).expect("it was put there");
            self.now = at;
            if chaos && self.rng.random_ratio(1, 1500) {
                self.restart_owner();
            }
            if chaos && self.rng.random_ratio(1, 300) {
                let event = Event::TakeBack { by: caller(99), id: None, reason: "needed".to_owned() };
                let _ = self.step_owner(event);
            }
            match message {
                Message::ToOwner(from, message) => self.owner_hears(from, message, chaos),
                Message::Standing { to, id, sent, answer } => self.holder_hears(to, id, sent, answer),
                Message::TokensOnDisk { life, first, last } if life == self.life => {
                    let _ = self.step_owner(Event::Tokens(first, last));
                }
                Message::OperationDone { life, token, operation } if life == self.life => {
                    self.running.remove(&operation);
                    let _ = self.step_owner(Event::Finish(token));
                }
                Message::TokensOnDisk { .. } | Message::OperationDone { .. } => {}
                Message::Wake(n) => self.holder_wakes(n, chaos),
            }
            let _ = self.step_owner(Event::Tick);
        }
        self.now = until;
    }
}

#[test]
fn no_stale_token_is_accepted_and_nobody_starves_whatever_happens() {
    let (mut accepted, mut refused, mut lives) = (0, 0, 0);
    for seed in 0..150 {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.run(CHAOS_MS, true);
            // Quiet now: no new wishes, no faults. Everybody who still waits gets a turn.
            world.run(CHAOS_MS + QUIET_MS, false);
            assert_eq!(world.table.queue(world.at(world.now)), [], "somebody still waits");
            assert!(world.order.is_empty());
            assert!(world.holders.iter().all(|h| h.wish.is_none()), "somebody still wants");
            (world.accepted, world.refused, world.life)
        });
        let Ok(figures) = outcome else { panic!("seed {seed}") };
        (accepted, refused, lives) = (accepted + figures.0, refused + figures.1, lives + figures.2);
    }
    // The simulation is worth nothing if it does not reach what it is about.
    assert!(accepted > 10_000 && refused > 1_000 && lives > 100, "{accepted} {refused} {lives}");
}
