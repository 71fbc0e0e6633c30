//! The scheduler in an office that exists only in memory: lines with rates and delays, nodes that die, lie or come late.
//!
//! Each node's line sends quanta of 64 KiB in turn over its open streams, each stream with at most a few of them under way,
//! as TCP does; they queue at the receiver's line. Calls to one node are served one after the other, as `serve` does. What
//! a node has is told to the others every 50 ms. All of it is decided by one seed.

use super::bits::Bits;
use super::scheduler::{Action, CallKey, Piece, Scheduler};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

const QUANTUM: u64 = 64 << 10;
/// Quanta of one stream that are under way.
const UNDER_WAY: u32 = 6;
const TELL_US: u64 = 50_000;
const TICK_US: u64 = 100_000;
/// So long a node waits for word of others before it asks a source that is to be spared.
const OPEN_US: u64 = 150_000;

/// How a node is.
#[derive(Clone, Debug)]
pub struct SimNode {
    /// Bytes a second that it can send.
    pub up: f64,
    /// Bytes a second that it can take.
    pub down: f64,
    /// Has everything from the beginning.
    pub seed: bool,
    /// Is to be spared, as the central server is.
    pub spared: bool,
    /// Sends wrong bytes.
    pub liar: bool,
    /// Begins then.
    pub joins_us: u64,
    /// Is off from then on.
    pub dies_us: u64,
}

impl SimNode {
    /// A node with the same rate in both directions.
    pub fn new(rate: f64) -> Self {
        Self { up: rate, down: rate, seed: false, spared: false, liar: false, joins_us: 0, dies_us: u64::MAX }
    }
}

/// What is simulated.
#[derive(Clone, Debug)]
pub struct SimSetup {
    /// Decides everything that is left open.
    pub seed: u64,
    /// The nodes.
    pub nodes: Vec<SimNode>,
    /// Lengths of the pieces.
    pub pieces: Vec<u32>,
    /// Delay of everything, microseconds.
    pub latency_us: u64,
    /// End of the simulation.
    pub until_us: u64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct SimOutcome {
    /// When each node had everything; `None` if it never did.
    pub done_us: Vec<Option<u64>>,
    /// Bytes that each node sent.
    pub sent: Vec<u64>,
    /// Bytes that each node received.
    pub received: Vec<u64>,
    /// Nodes that each node banned.
    pub banned: Vec<Vec<usize>>,
    /// When the first node, the seed or server, sent something last.
    pub server_last_us: u64,
}

impl SimOutcome {
    /// When the last of those that came to an end did, in seconds.
    pub fn last(&self) -> f64 {
        self.done_us.iter().flatten().max().map_or(0.0, |us| *us as f64 / 1e6)
    }

    /// When half of them had, in seconds.
    pub fn median(&self) -> f64 {
        let mut all: Vec<u64> = self.done_us.iter().flatten().copied().filter(|us| *us > 0).collect();
        all.sort_unstable();
        all.get(all.len() / 2).map_or(0.0, |us| *us as f64 / 1e6)
    }
}

/// The least time in which all can have everything, in seconds.
pub fn floor(setup: &SimSetup) -> f64 {
    let bytes: f64 = setup.pieces.iter().map(|l| f64::from(*l)).sum();
    let seeds: f64 = setup.nodes.iter().filter(|n| n.seed).map(|n| n.up).sum();
    let takers: Vec<&SimNode> = setup.nodes.iter().filter(|n| !n.seed).collect();
    let slowest = takers.iter().map(|n| n.down).fold(f64::MAX, f64::min);
    let up: f64 = takers.iter().map(|n| n.up).sum();
    (bytes / seeds).max(bytes / slowest).max(takers.len() as f64 * bytes / (seeds + up))
}

/// Lengths as content-defined chunking makes them: 256 KiB to 4 MiB, places to cut rarer below 1 MiB than above.
pub fn lengths(total: u64, random: &mut Random) -> Vec<u32> {
    let mut out = Vec::new();
    let mut left = total;
    while left > 0 {
        let mut len: u64 = 256 << 10;
        while len < 4 << 20 && random.below(if len < 1 << 20 { 128 } else { 32 }) != 0 {
            len += 16 << 10;
        }
        let len = len.min(left);
        out.push(len as u32);
        left -= len;
    }
    out
}

/// Numbers from a seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    /// The next one.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    /// One below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.draw() >> 16) % n.max(1)
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Event {
    /// Has heard the others.
    Open(usize),
    Begin(usize),
    Die(usize),
    Tick(usize),
    Tell(usize),
    /// `from` tells `to` of pieces.
    Told {
        from: usize,
        to: usize,
        pieces: Vec<Piece>,
    },
    /// A call reaches the source.
    Call {
        from: usize,
        to: usize,
        call: CallKey,
        pieces: Vec<Piece>,
    },
    Cancelled {
        from: usize,
        to: usize,
        call: CallKey,
    },
    /// The source's line is free.
    Sent(usize),
    /// A quantum reaches the receiver's line.
    Reached {
        from: usize,
        to: usize,
        call: CallKey,
        piece: Piece,
        bytes: u64,
        last: bool,
    },
    /// ... and has gone through it.
    Taken {
        to: usize,
    },
}

#[derive(Debug, Default)]
struct Stream {
    calls: VecDeque<(CallKey, VecDeque<Piece>)>,
    offset: u64,
    under_way: u32,
}

struct State {
    setup: SimNode,
    scheduler: Option<Scheduler>,
    have: Bits,
    news: Vec<Piece>,
    told_us: u64,
    telling: bool,
    alive: bool,
    streams: Vec<Stream>,
    turn: usize,
    sending: bool,
    queue: VecDeque<(usize, CallKey, Piece, u64, bool)>,
    taking: bool,
    calls: HashMap<CallKey, usize>,
}

struct Sim {
    now: u64,
    order: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    nodes: Vec<State>,
    len: Vec<u32>,
    latency: u64,
    out: SimOutcome,
}

/// Runs it.
pub fn run(setup: &SimSetup) -> SimOutcome {
    let count = setup.nodes.len();
    let n = setup.pieces.len();
    let nodes = setup.nodes.iter().map(|node| State {
        setup: node.clone(),
        scheduler: None,
        have: if node.seed { Bits::full(n) } else { Bits::new(n) },
        news: Vec::new(),
        told_us: 0,
        telling: false,
        alive: false,
        streams: (0..count).map(|_| Stream::default()).collect(),
        turn: 0,
        sending: false,
        queue: VecDeque::new(),
        taking: false,
        calls: HashMap::new(),
    });
    let mut sim = Sim {
        now: 0,
        order: 0,
        events: BinaryHeap::new(),
        nodes: nodes.collect(),
        len: setup.pieces.clone(),
        latency: setup.latency_us,
        out: SimOutcome {
            done_us: vec![None; count],
            sent: vec![0; count],
            received: vec![0; count],
            banned: vec![Vec::new(); count],
            server_last_us: 0,
        },
    };
    let mut random = Random::new(setup.seed);
    for (at, node) in setup.nodes.iter().enumerate() {
        // Nobody begins in the same microsecond.
        sim.at(node.joins_us + random.below(20_000), Event::Begin(at));
        if node.dies_us < u64::MAX {
            sim.at(node.dies_us, Event::Die(at));
        }
        sim.nodes[at].turn = random.below(count as u64) as usize;
        if !node.seed {
            sim.nodes[at].scheduler = Some(Scheduler::new(setup.pieces.clone(), random.draw()));
        }
    }
    while let Some(Reverse((at, _, event))) = sim.events.pop() {
        if at > setup.until_us || sim.is_over() {
            break;
        }
        sim.now = at;
        sim.handle(event);
    }
    sim.out
}

impl Sim {
    fn at(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((at, self.order, event)));
    }

    fn is_over(&self) -> bool {
        self.nodes.iter().zip(&self.out.done_us).all(|(n, done)| {
            n.setup.seed || done.is_some() || n.setup.dies_us < u64::MAX && !n.alive && self.now > n.setup.dies_us
        })
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Begin(node) => self.begin(node),
            Event::Die(node) => self.die(node),
            Event::Open(node) => {
                if let Some(s) = self.scheduler(node) {
                    s.open_spared();
                    self.poll(node);
                }
            }
            Event::Tick(node) => {
                if self.nodes[node].alive && self.out.done_us[node].is_none() {
                    self.poll(node);
                    self.at(self.now + TICK_US, Event::Tick(node));
                }
            }
            Event::Tell(node) => self.tell(node),
            Event::Told { from, to, pieces } => {
                let complete = pieces.len() == self.len.len();
                if let Some(s) = self.scheduler(to) {
                    pieces.iter().for_each(|p| s.has(from as u32, *p));
                    if complete {
                        s.complete(from as u32);
                    }
                    self.poll(to);
                }
            }
            Event::Call { from, to, call, pieces } => {
                if !self.nodes[to].alive {
                    return;
                }
                self.nodes[to].streams[from].calls.push_back((call, pieces.into()));
                self.send(to);
            }
            Event::Cancelled { from, to, call } => {
                let stream = &mut self.nodes[to].streams[from];
                if stream.calls.front().is_some_and(|(key, _)| *key == call) {
                    stream.offset = 0;
                }
                stream.calls.retain(|(key, _)| *key != call);
            }
            Event::Sent(node) => {
                self.nodes[node].sending = false;
                self.send(node);
            }
            Event::Reached { from, to, call, piece, bytes, last } => {
                self.nodes[to].queue.push_back((from, call, piece, bytes, last));
                self.take(to);
            }
            Event::Taken { to } => self.taken(to),
        }
    }

    fn scheduler(&mut self, node: usize) -> Option<&mut Scheduler> {
        let node = &mut self.nodes[node];
        node.scheduler.as_mut().filter(|_| node.alive)
    }

    fn begin(&mut self, node: usize) {
        self.nodes[node].alive = true;
        let now = self.now;
        for other in 0..self.nodes.len() {
            if other == node || !self.nodes[other].alive {
                continue;
            }
            // Both learn of each other, and of what the other has.
            for (a, b) in [(node, other), (other, node)] {
                let pieces: Vec<Piece> = self.nodes[a].have.iter().map(|p| p as Piece).collect();
                let spared = self.nodes[a].setup.spared;
                if let Some(s) = self.scheduler(b) {
                    s.join(a as u32, now);
                    if spared {
                        s.spare(a as u32);
                    }
                    self.at(now + self.latency, Event::Told { from: a, to: b, pieces });
                }
            }
        }
        self.place();
        self.at(now + OPEN_US, Event::Open(node));
        self.at(now + TICK_US, Event::Tick(node));
    }

    fn place(&mut self) {
        let takers: Vec<usize> =
            (0..self.nodes.len()).filter(|n| self.nodes[*n].alive && self.nodes[*n].scheduler.is_some()).collect();
        for (position, node) in takers.iter().enumerate() {
            let count = takers.len();
            if let Some(s) = self.scheduler(*node) {
                s.set_position(position, count);
            }
        }
    }

    fn die(&mut self, node: usize) {
        self.nodes[node].alive = false;
        self.nodes[node].streams.iter_mut().for_each(|s| s.calls.clear());
        for other in 0..self.nodes.len() {
            // A call that is under way still arrives, and is served from its beginning.
            let stream = &mut self.nodes[other].streams[node];
            stream.calls.clear();
            stream.offset = 0;
            // Silent, as a pulled cable: the others notice only that nothing comes.
        }
        self.place();
    }

    fn tell(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        state.telling = false;
        state.told_us = self.now;
        let pieces = std::mem::take(&mut state.news);
        if !state.alive {
            return;
        }
        for to in 0..self.nodes.len() {
            if to != node && self.nodes[to].alive && self.nodes[to].scheduler.is_some() {
                self.at(self.now + self.latency, Event::Told { from: node, to, pieces: pieces.clone() });
            }
        }
    }

    /// News go out at once, but not more often than every 50 ms.
    fn tell_soon(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        if !state.telling {
            state.telling = true;
            let at = self.now.max(state.told_us + TELL_US);
            self.at(at, Event::Tell(node));
        }
    }

    fn poll(&mut self, node: usize) {
        let now = self.now;
        let Some(s) = self.scheduler(node) else { return };
        let actions = s.poll(now, u64::MAX);
        self.act(node, actions);
    }

    fn act(&mut self, node: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Ask { call, source, pieces } => {
                    self.nodes[node].calls.insert(call, source as usize);
                    let at = self.now + self.latency;
                    self.at(at, Event::Call { from: node, to: source as usize, call, pieces });
                }
                Action::Cancel { call } => {
                    if let Some(to) = self.nodes[node].calls.remove(&call) {
                        self.at(self.now + self.latency, Event::Cancelled { from: node, to, call });
                    }
                }
                Action::Ban { source } => self.out.banned[node].push(source as usize),
            }
        }
    }

    /// The next quantum of a node's line.
    fn send(&mut self, node: usize) {
        let count = self.nodes.len();
        let state = &mut self.nodes[node];
        if state.sending || !state.alive {
            return;
        }
        for step in 1..=count {
            let to = (state.turn + step) % count;
            let stream = &mut state.streams[to];
            while stream.calls.front().is_some_and(|(_, pieces)| pieces.is_empty()) {
                stream.calls.pop_front();
            }
            let Some((call, pieces)) = stream.calls.front_mut() else { continue };
            if stream.under_way >= UNDER_WAY {
                continue;
            }
            let (call, piece) = (*call, pieces[0]);
            let len = u64::from(self.len[piece as usize]);
            let bytes = QUANTUM.min(len - stream.offset);
            stream.offset += bytes;
            stream.under_way += 1;
            let last = stream.offset == len;
            if last {
                pieces.pop_front();
                stream.offset = 0;
            }
            state.turn = to;
            state.sending = true;
            let free = self.now + (bytes as f64 * 1e6 / state.setup.up) as u64;
            self.out.sent[node] += bytes;
            if node == 0 {
                self.out.server_last_us = free;
            }
            self.at(free, Event::Sent(node));
            self.at(free + self.latency, Event::Reached { from: node, to, call, piece, bytes, last });
            return;
        }
    }

    fn take(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        if state.taking {
            return;
        }
        let Some((_, _, _, bytes, _)) = state.queue.front() else { return };
        state.taking = true;
        let at = self.now + (*bytes as f64 * 1e6 / state.setup.down) as u64;
        self.at(at, Event::Taken { to: node });
    }

    fn taken(&mut self, node: usize) {
        self.nodes[node].taking = false;
        let Some((from, call, piece, bytes, last)) = self.nodes[node].queue.pop_front() else { return };
        self.take(node);
        self.nodes[from].streams[node].under_way -= 1;
        self.send(from);
        self.out.received[node] += bytes;
        let (now, lies) = (self.now, self.nodes[from].setup.liar);
        let Some(s) = self.scheduler(node) else { return };
        s.moved(from as u32, bytes, now);
        if last && s.arrived(call, piece) {
            let actions = if lies { s.wrong(from as u32, piece) } else { s.verified(piece) };
            let done = s.left() == 0;
            self.act(node, actions);
            if !lies {
                self.nodes[node].have.insert(piece as usize);
                self.nodes[node].news.push(piece);
                self.tell_soon(node);
            }
            if done && self.out.done_us[node].is_none() {
                self.out.done_us[node] = Some(now);
            }
        }
        if last {
            self.end_if_empty(node, call);
            self.poll(node);
        }
    }

    /// The source ends a call when it has sent everything of it.
    fn end_if_empty(&mut self, node: usize, call: CallKey) {
        let Some(source) = self.nodes[node].calls.get(&call).copied() else { return };
        let open = self.nodes[source].streams[node].calls.iter().any(|(key, p)| *key == call && !p.is_empty());
        let coming = self.nodes[node].queue.iter().any(|(_, key, ..)| *key == call);
        let now = self.now;
        if !open && !coming && self.nodes[source].streams[node].under_way == 0
            || self.scheduler(node).is_some_and(|s| s.is_empty_call(call))
        {
            self.nodes[node].calls.remove(&call);
            if let Some(s) = self.scheduler(node) {
                s.ended(call, false, now);
            }
        }
    }
}
