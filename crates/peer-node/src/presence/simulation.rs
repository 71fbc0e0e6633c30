//! An office of tables with a bad network between them, under a seed. For tests.

use super::table::{Action, Event, Sighting, Table};
use crate::net::FoundBy;
use common::identity::DeviceId;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// What one machine is doing.
struct Machine {
    table: Option<Table>,
    instance: u8,
    sequence: u64,
    address: SocketAddr,
    /// Milliseconds by which its clock differs: leaps ahead when it wakes.
    offset_ms: u64,
    asleep: bool,
    learnt: BTreeSet<(DeviceId, SocketAddr)>,
    connected: BTreeSet<usize>,
}

enum Delivery {
    Datagram { to: usize, sighting: Box<Sighting>, goodbye: bool },
    Connected { a: usize, b: usize },
    Broken { at: usize, with: usize },
}

pub(super) struct Simulation {
    seed: u64,
    random: StdRng,
    loss: f64,
    now_ms: u64,
    machines: Vec<Machine>,
    underway: BTreeMap<(u64, u64), Delivery>,
    next: u64,
    next_address: u16,
}

fn id(n: usize) -> DeviceId {
    DeviceId([n as u8 + 1; 32])
}

fn number(device: &DeviceId) -> usize {
    usize::from(device.0[0]) - 1
}

impl Simulation {
    pub(super) fn new(seed: u64, machines: usize, loss: f64) -> Self {
        let mut this = Self {
            seed,
            random: StdRng::seed_from_u64(seed),
            loss,
            now_ms: 0,
            machines: Vec::new(),
            underway: BTreeMap::new(),
            next: 0,
            next_address: 1,
        };
        for n in 0..machines {
            let address = this.fresh_address();
            let offset_ms = this.random.random_range(0..1_000_000);
            this.machines.push(Machine {
                table: None,
                instance: 0,
                sequence: 0,
                address,
                offset_ms,
                asleep: false,
                learnt: BTreeSet::new(),
                connected: BTreeSet::new(),
            });
            this.start(n);
        }
        this
    }

    fn fresh_address(&mut self) -> SocketAddr {
        self.next_address += 1;
        SocketAddr::from(([10, 0, (self.next_address >> 8) as u8, self.next_address as u8], 7444))
    }

    fn start(&mut self, n: usize) {
        let machine = &mut self.machines[n];
        machine.instance += 1;
        machine.sequence = 0;
        machine.learnt.clear();
        machine.table = Some(Table::new(id(n), self.now_ms + machine.offset_ms));
        self.feed(n, Event::Tick);
    }

    fn stop(&mut self, n: usize, politely: bool) {
        if self.machines[n].table.is_none() {
            return;
        }
        if politely {
            for _ in 0..3 {
                self.call(n, None, false, true);
            }
        }
        self.machines[n].table = None;
        self.disconnect_all(n);
    }

    fn disconnect_all(&mut self, n: usize) {
        for with in std::mem::take(&mut self.machines[n].connected) {
            self.machines[with].connected.remove(&n);
            let late = self.random.random_range(1..8000);
            self.deliver(late, Delivery::Broken { at: with, with: n });
            self.deliver(1, Delivery::Broken { at: n, with });
        }
    }

    fn deliver(&mut self, delay_ms: u64, delivery: Delivery) {
        self.next += 1;
        self.underway.insert((self.now_ms + delay_ms, self.next), delivery);
    }

    /// A beacon, to everyone or to one.
    fn call(&mut self, n: usize, only: Option<usize>, asks: bool, goodbye: bool) {
        self.machines[n].sequence += 1;
        let machine = &self.machines[n];
        let sighting = Sighting {
            device: id(n),
            how: FoundBy::Beacon,
            addresses: vec![machine.address],
            instance: Some(([machine.instance; 8], machine.sequence)),
            claimed: None,
            from: Some((machine.address, asks)),
            office: None,
            version: String::new(),
            inviting: Vec::new(),
            display_name: String::new(),
            clock_ahead_ms: None,
        };
        for to in (0..self.machines.len()).filter(|to| *to != n && only.is_none_or(|o| o == *to)) {
            if self.random.random_bool(1.0 - self.loss) {
                let delay = self.random.random_range(0..20);
                // Now and then a datagram is held up for long, or comes twice.
                let delay = if self.random.random_bool(0.02) { delay * 500 } else { delay };
                let sighting = Box::new(sighting.clone());
                self.deliver(delay, Delivery::Datagram { to, sighting: sighting.clone(), goodbye });
                if self.random.random_bool(0.02) {
                    self.deliver(delay + 5, Delivery::Datagram { to, sighting, goodbye });
                }
            }
        }
    }

    fn feed(&mut self, n: usize, event: Event) {
        let machine = &mut self.machines[n];
        let Some(table) = &mut machine.table else { return };
        let actions = table.handle(self.now_ms + machine.offset_ms, event, |_| true);
        for action in actions {
            match action {
                Action::Announce(asks) => self.call(n, None, asks, false),
                Action::Answer(to) => {
                    if let Some(to) = self.machines.iter().position(|m| m.address == to) {
                        self.call(n, Some(to), false, false);
                    }
                }
                Action::Learn(device, address, _) => {
                    self.machines[n].learnt.insert((device, address));
                    self.connect(n, number(&device), address);
                }
                Action::Appeared(_) | Action::Left(_) => {}
            }
        }
    }

    fn connect(&mut self, a: usize, b: usize, address: SocketAddr) {
        let there = self.machines[b].table.is_some() && !self.machines[b].asleep && self.machines[b].address == address;
        if there && !self.machines[a].connected.contains(&b) {
            let delay = self.random.random_range(1..30);
            self.deliver(delay, Delivery::Connected { a, b });
        }
    }

    fn step(&mut self, to_ms: u64) {
        while let Some(entry) = self.underway.first_entry().filter(|e| e.key().0 <= to_ms) {
            let ((at, _), delivery) = entry.remove_entry();
            self.now_ms = self.now_ms.max(at);
            let awake = |this: &Self, n: usize| this.machines[n].table.is_some() && !this.machines[n].asleep;
            match delivery {
                Delivery::Datagram { to, sighting, goodbye } if awake(self, to) => {
                    let event = match (goodbye, sighting.instance) {
                        (true, Some((instance, _))) => Event::Goodbye { device: sighting.device, instance },
                        _ => Event::Heard(*sighting),
                    };
                    self.feed(to, event);
                }
                Delivery::Connected { a, b } if awake(self, a) && awake(self, b) => {
                    self.machines[a].connected.insert(b);
                    self.machines[b].connected.insert(a);
                    self.feed(a, Event::Connected(id(b)));
                    self.feed(b, Event::Connected(id(a)));
                }
                Delivery::Broken { at, with } if !self.machines[at].connected.contains(&with) => {
                    self.feed(at, Event::Disconnected(id(with)));
                }
                _ => {}
            }
        }
        self.now_ms = to_ms;
        for n in 0..self.machines.len() {
            if !self.machines[n].asleep {
                self.feed(n, Event::Tick);
            }
        }
    }

    /// Lets time pass in which everything goes wrong.
    pub(super) fn run_wildly(&mut self, for_ms: u64) {
        let end = self.now_ms + for_ms;
        while self.now_ms < end {
            let n = self.random.random_range(0..self.machines.len());
            match self.random.random_range(0..100) {
                0 => self.stop(n, true),
                1 => self.stop(n, false),
                2..=4 if self.machines[n].table.is_none() => self.start(n),
                5 => {
                    self.machines[n].address = self.fresh_address();
                    self.disconnect_all(n);
                    if !self.machines[n].asleep {
                        self.feed(n, Event::Changed);
                    }
                }
                6 => {
                    self.machines[n].asleep = true;
                    self.disconnect_all(n);
                }
                7..=9 if self.machines[n].asleep => {
                    self.machines[n].asleep = false;
                    self.machines[n].offset_ms += self.random.random_range(0..10_000_000);
                }
                _ => {}
            }
            self.step(self.now_ms + 100);
        }
        for n in 0..self.machines.len() {
            self.machines[n].asleep = false;
        }
        // One stays away, so that there is somebody not to be seen.
        self.stop(0, self.seed.is_multiple_of(2));
    }

    /// Lets time pass in which nothing happens but loss.
    pub(super) fn settle(&mut self, for_ms: u64) {
        let end = self.now_ms + for_ms;
        while self.now_ms < end {
            self.step(self.now_ms + 250);
        }
    }

    fn sees(&self, a: usize, b: usize) -> bool {
        let machine = &self.machines[a];
        machine.table.as_ref().and_then(|t| t.get(&id(b))).is_some_and(|s| s.present)
    }

    pub(super) fn assert_everyone_sees_everyone(&self) {
        for (a, machine) in self.machines.iter().enumerate().filter(|(_, m)| m.table.is_some()) {
            for (b, other) in self.machines.iter().enumerate().filter(|(b, _)| *b != a) {
                let seed = self.seed;
                assert_eq!(self.sees(a, b), other.table.is_some(), "seed {seed}: machine {a} and machine {b}");
                if other.table.is_some() {
                    let knows = machine.learnt.contains(&(id(b), other.address)) || machine.connected.contains(&b);
                    assert!(knows, "seed {seed}: machine {a} does not know where machine {b} is");
                }
            }
        }
    }

    /// Restarts the last machine and measures until all others see it, and it sees them.
    pub(super) fn time_until_a_newcomer_is_seen(&mut self) -> u64 {
        let newcomer = self.machines.len() - 1;
        self.stop(newcomer, true);
        self.settle(10_000);
        let began = self.now_ms;
        self.start(newcomer);
        while self.now_ms < began + 60_000 {
            if (0..newcomer).all(|n| self.sees(n, newcomer) && self.sees(newcomer, n)) {
                return self.now_ms - began;
            }
            self.step(self.now_ms + 10);
        }
        panic!("seed {}: the newcomer was never seen", self.seed);
    }
}
