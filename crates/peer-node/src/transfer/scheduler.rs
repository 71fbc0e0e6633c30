//! Which source is asked for which piece, and when.
//!
//! A plain struct: it is told what happens and when, and says whom to ask for what. No IO, no clock, no tasks; its random
//! numbers come from a seed. Pieces are the different chunks of a transfer, numbered in the order of its files.
//!
//! # What is asked first
//!
//! * A source that has everything is the scarce one when many fetch the same: each of the `n` nodes that take part asks it
//!   for *its own n-th* of the bytes first, so that they hold different pieces early and need not ask for the same one. Then
//!   for pieces that no other node has yet, from the far end of somebody else's n-th. Only then for any other piece.
//! * A source that has some pieces is asked for the *rarest* of them first. Of many equal ones, for a random one.
//!
//! # A source that is to be spared
//!
//! The central server gives to the whole office and should send little more than one copy, however fast it is. Such a
//! source is not asked before those who may take part have been heard ([`Scheduler::open_spared`]), since what two nodes
//! ask for without knowing of each other is sent twice; then for the own n-th, of which a small window is under way. For
//! anything else, one piece at a time, only if the other sources cannot do: they bring nothing for [`HUNGRY_US`], or are
//! far slower by measured rate ([`SPARED_RATIO`]).
//!
//! # How much is asked at a time
//!
//! Per source a window of `rate × 0.3 s`, never less than two pieces or [`MIN_WINDOW`] bytes, never more than
//! [`MAX_WINDOW`]; cut into calls of half a window, so that the next call waits at the other side when one ends. Slow
//! sources thus hold few pieces, and fast ones are never idle.
//!
//! # When something goes wrong
//!
//! * When nothing is left that a source could be asked for the first time (*endgame*), an idle one is also asked for a
//!   piece that another one will bring much later by its measured rate. The first answer counts, the other call is
//!   cancelled. Pieces that a source sent wrong do not keep it from that.
//! * A source that brings nothing for [`STALL_US`] or longer gives its pieces back, and is tried again after a pause that
//!   doubles.
//! * A wrong piece is counted against the source that sent it and is not asked of it again. The third wrong piece bans it;
//!   going away and coming back does not help.
//!
//! So no piece is asked for twice but in the endgame, after a wrong answer, and from a source that has fallen silent.
//!
//! Memory: 12 bytes a piece and one bit a piece and incomplete source; calls are bounded by sources × [`MAX_CALLS`].

use super::bits::Bits;
use std::collections::{BTreeMap, HashSet, VecDeque};

/// A piece's number.
pub type Piece = u32;
/// A source's number, given by the caller.
pub type SourceKey = u32;
/// A call's number, given by the scheduler.
pub type CallKey = u64;

/// A spared source is asked for what others may bring when those have brought nothing for so long, and for as long as
/// three pieces take at the rate of the sources: on a slow line others have news seldom.
pub const HUNGRY_US: u64 = 250_000;
/// See [`HUNGRY_US`].
const HUNGRY_PIECES: f64 = 3.0;
/// But never longer than this.
const HUNGRY_MAX_US: u64 = 3_000_000;
/// Or when all others together have less than this part of its rate.
pub const SPARED_RATIO: f64 = 0.25;
/// Or, while its rate is not known, when they would take longer than this for the rest, seconds.
const SPARED_PATIENCE: f64 = 3.0;
/// The window of a spared source is at most this part of all bytes, but [`SPARED_WINDOW`] at least.
const SPARED_PART: u64 = 16;
/// See [`SPARED_PART`].
const SPARED_WINDOW: u64 = 4 << 20;
/// In the endgame a spared source must be better by so much, microseconds.
const SPARED_ENDGAME_US: f64 = 1_500_000.0;
/// Smallest window in bytes.
pub const MIN_WINDOW: u64 = 256 << 10;
/// Window of a source whose rate is not known yet.
pub const FIRST_WINDOW: u64 = 256 << 10;
/// Largest window in bytes: 0.3 s of 100 MB/s and more than what is under way on any line of an office. A larger one would
/// only be memory.
pub const MAX_WINDOW: u64 = 32 << 20;
/// Window as time at the measured rate, microseconds.
pub const WINDOW_US: u64 = 300_000;
/// Calls of one source at a time.
pub const MAX_CALLS: usize = 4;
/// Pieces of one call.
pub const MAX_CALL_PIECES: usize = 1_024;
/// A source that brings nothing for so long, and for three times what its rate would need for a message of 256 KiB, has
/// stalled.
pub const STALL_US: u64 = 3_000_000;
/// Bytes that come at once.
const MESSAGE: u64 = 256 << 10;
/// Wrong pieces that ban a source.
pub const BAN_AT: u32 = 3;
/// Time constant of the measured rate, microseconds.
const RATE_US: f64 = 1_000_000.0;
/// Rate of a source that is not known, if none is: bytes a second.
const UNKNOWN_RATE: f64 = 1e6;
/// Small pieces that are asked for before and after the others.
const SMALL_PIECES: usize = 4;
/// Candidates that are looked at to find a rare one.
const SAMPLES: usize = 48;
/// In the endgame a second source must be better by so much, microseconds.
const ENDGAME_US: f64 = 100_000.0;

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Ask a source for pieces, in this order.
    Ask {
        /// The call's number from now on.
        call: CallKey,
        /// Whom.
        source: SourceKey,
        /// For what.
        pieces: Vec<Piece>,
    },
    /// End a call: nothing of it is needed any more.
    Cancel {
        /// Which.
        call: CallKey,
    },
    /// A source has sent too many wrong pieces; it is not asked again. Its calls are cancelled by actions of their own.
    Ban {
        /// Which.
        source: SourceKey,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Nobody was asked yet.
    Missing,
    /// May be on this disk: not to be asked for.
    Withheld,
    /// Asked for.
    Asked,
    /// Arrived, and is being verified and written.
    Checking,
    /// Here.
    Have,
}

/// Bytes a second, as an average that forgets.
#[derive(Clone, Debug, Default)]
struct Meter {
    bytes: f64,
    time_us: f64,
    at_us: u64,
}

impl Meter {
    fn pass(&mut self, now_us: u64, busy: bool) {
        let dt = now_us.saturating_sub(self.at_us) as f64;
        self.at_us = self.at_us.max(now_us);
        if busy && dt > 0.0 {
            let keep = (-dt / RATE_US).exp();
            self.bytes *= keep;
            self.time_us = self.time_us * keep + dt;
        }
    }

    fn rate(&self) -> Option<f64> {
        (self.bytes > 0.0 && self.time_us > 0.0).then(|| self.bytes * 1e6 / self.time_us)
    }
}

#[derive(Debug)]
struct Source {
    complete: bool,
    spared: bool,
    have: Bits,
    /// Pieces that it sent wrong, or did not have although it said so.
    refused: HashSet<Piece>,
    calls: Vec<CallKey>,
    outstanding: u64,
    outstanding_pieces: usize,
    /// What has come of pieces that are not whole yet.
    partial: u64,
    meter: Meter,
    moved_us: u64,
    /// Not to be asked before; the pause that brought it there.
    paused_until_us: u64,
    pause_us: u64,
    wrong: Wrong,
}

/// How many wrong pieces a source has sent.
#[derive(Clone, Copy, Debug, Default)]
struct Wrong(u32);

impl Wrong {
    /// One more; true if it is the one that bans.
    fn count(&mut self) -> bool {
        self.0 = self.0.saturating_add(1);
        self.0 == BAN_AT
    }

    fn bans(self) -> bool {
        self.0 >= BAN_AT
    }
}

impl Source {
    fn is_banned(&self) -> bool {
        self.wrong.bans()
    }

    fn has(&self, piece: Piece) -> bool {
        (self.complete || self.have.has(piece as usize)) && !self.refused.contains(&piece)
    }

    fn stall_us(&self) -> u64 {
        let slow = self.meter.rate().map_or(10e6, |r| MESSAGE as f64 * 3e6 / r);
        STALL_US.max(slow.min(60e6) as u64)
    }

    fn window(&self) -> u64 {
        match self.meter.rate() {
            None => FIRST_WINDOW,
            Some(rate) => ((rate * WINDOW_US as f64 / 1e6) as u64).clamp(MIN_WINDOW, MAX_WINDOW),
        }
    }
}

#[derive(Debug)]
struct Call {
    source: SourceKey,
    /// What has not arrived yet, in order.
    left: VecDeque<Piece>,
}

/// See the module.
#[derive(Debug)]
pub struct Scheduler {
    len: Vec<u32>,
    steps: Vec<Step>,
    /// How many incomplete sources have it.
    copies: Vec<u16>,
    /// Missing ones.
    fresh: Bits,
    /// Missing ones that no incomplete source has.
    unique: Bits,
    left: usize,
    sources: BTreeMap<SourceKey, Source>,
    /// Wrong pieces of sources that are away.
    away: BTreeMap<SourceKey, Wrong>,
    calls: BTreeMap<CallKey, Call>,
    /// Pieces that two calls are to bring, or were.
    doubled: HashSet<Piece>,
    next_call: CallKey,
    /// Own part of the pieces, and where to begin in it.
    own: (usize, usize),
    /// The own part in the order in which a complete source is asked for it, and how far that has come; empty while nobody
    /// else takes part.
    order: Vec<Piece>,
    order_at: usize,
    count: usize,
    start: usize,
    random: u64,
    total: u64,
    /// Spared sources may be asked.
    spared_open: bool,
    /// Since when the others bring nothing, though something is missing.
    hungry_since_us: Option<u64>,
}

impl Scheduler {
    /// For pieces of these lengths. `seed` should differ from node to node.
    pub fn new(len: Vec<u32>, seed: u64) -> Self {
        let n = len.len();
        let mut new = Self {
            steps: vec![Step::Missing; n],
            copies: vec![0; n],
            fresh: Bits::full(n),
            unique: Bits::full(n),
            left: n,
            sources: BTreeMap::new(),
            away: BTreeMap::new(),
            calls: BTreeMap::new(),
            doubled: HashSet::new(),
            next_call: 1,
            own: (0, n),
            order: Vec::new(),
            order_at: 0,
            count: 1,
            start: 0,
            random: seed | 1,
            total: len.iter().map(|l| u64::from(*l)).sum(),
            spared_open: false,
            hungry_since_us: None,
            len,
        };
        // Nodes that begin together and do not know of each other yet begin at different places.
        new.start = new.below(n.max(1));
        new
    }

    /// This node is the `position`-th (from 0) of `count` that fetch the same.
    pub fn set_position(&mut self, position: usize, count: usize) {
        let count = count.max(1);
        let position = position.min(count - 1);
        let total = self.total;
        let bound = |n: usize| (u128::from(total) * n as u128 / count as u128) as u64;
        let (low, high) = (bound(position), bound(position + 1));
        let (mut at, mut from, mut to) = (0u64, self.len.len(), self.len.len());
        for (n, len) in self.len.iter().enumerate() {
            if at >= low && from > n {
                from = n;
            }
            if at >= high {
                to = n;
                break;
            }
            at += u64::from(*len);
        }
        if (from, to) != self.own || (count > 1) != (self.count > 1) {
            self.own = (from, to);
            self.order_at = 0;
            self.order = if count > 1 { self.own_order() } else { Vec::new() };
        }
        self.count = count;
    }

    /// A few small pieces first, so that there is something to give to others soon, and a few in the end, so that those who
    /// wait for the last ones do not wait long; the rest in any order, so that not all nodes wait for large ones at the same
    /// time.
    fn own_order(&mut self) -> Vec<Piece> {
        let (from, to) = self.own;
        let mut order: Vec<Piece> = (from..to).filter(|p| self.unique.has(*p)).map(|p| p as Piece).collect();
        order.sort_by_key(|p| self.len[*p as usize]);
        let small = SMALL_PIECES.min(order.len() / 4);
        for at in 2 * small..order.len() {
            let other = 2 * small + self.below(order.len() - 2 * small);
            order.swap(at, other);
        }
        order[small..].reverse();
        order
    }

    /// The piece is here.
    pub fn hold(&mut self, piece: Piece) -> Vec<Action> {
        let asked = self.step(piece) == Some(Step::Asked) || self.doubled.contains(&piece);
        self.set_step(piece, Step::Have);
        if asked { self.drop_from_calls(piece) } else { Vec::new() }
    }

    /// The piece may be on this disk: it is not asked for until [`Scheduler::release`].
    pub fn withhold(&mut self, piece: Piece) {
        if self.step(piece) == Some(Step::Missing) {
            self.set_step(piece, Step::Withheld);
        }
    }

    /// It is not on this disk after all.
    pub fn release(&mut self, piece: Piece) {
        if self.step(piece) == Some(Step::Withheld) {
            self.set_step(piece, Step::Missing);
        }
    }

    /// The piece was here and is no longer.
    pub fn lose(&mut self, piece: Piece) {
        if self.step(piece) == Some(Step::Have) {
            self.set_step(piece, Step::Missing);
        }
    }

    /// Pieces that are not here yet.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Pieces that are missing and that no source which can be asked has, now or soon.
    pub fn is_stuck(&self, now_us: u64) -> bool {
        self.calls.is_empty()
            && !self.fresh.is_empty()
            && !self.sources.values().any(|s| {
                let n = self.len.len();
                let wanted = if s.refused.is_empty() {
                    s.complete || self.fresh.next_common(&s.have, 0, n).is_some()
                } else {
                    self.fresh.iter().any(|p| s.has(p as Piece))
                };
                !s.is_banned() && s.paused_until_us <= now_us.saturating_add(STALL_US) && wanted
            })
    }

    /// A source is there. Being told again of one changes nothing.
    pub fn join(&mut self, source: SourceKey, now_us: u64) {
        let pieces = self.len.len();
        let wrong = self.away.remove(&source);
        self.sources.entry(source).or_insert_with(|| Source {
            complete: false,
            spared: false,
            have: Bits::new(pieces),
            refused: HashSet::new(),
            calls: Vec::new(),
            outstanding: 0,
            outstanding_pieces: 0,
            partial: 0,
            meter: Meter { at_us: now_us, ..Meter::default() },
            moved_us: now_us,
            paused_until_us: 0,
            pause_us: 0,
            wrong: wrong.unwrap_or_default(),
        });
    }

    /// The source is to be spared.
    pub fn spare(&mut self, source: SourceKey) {
        if let Some(s) = self.sources.get_mut(&source) {
            s.spared = true;
        }
    }

    /// Those who may take part have been heard, or there was no more time to wait for them: spared sources may be asked.
    pub fn open_spared(&mut self) {
        self.spared_open = true;
    }

    /// The source has everything.
    pub fn complete(&mut self, source: SourceKey) {
        let Some(s) = self.sources.get_mut(&source) else { return };
        if !s.complete {
            s.complete = true;
            let had = std::mem::take(&mut s.have);
            had.iter().for_each(|p| self.count_copy(p, false));
        }
    }

    /// The source has this piece.
    pub fn has(&mut self, source: SourceKey, piece: Piece) {
        let Some(s) = self.sources.get_mut(&source) else { return };
        s.refused.remove(&piece);
        if !s.complete && s.have.insert(piece as usize) {
            self.count_copy(piece as usize, true);
        }
    }

    /// The source has this piece no longer.
    pub fn lacks(&mut self, source: SourceKey, piece: Piece) {
        let Some(s) = self.sources.get_mut(&source) else { return };
        if s.complete {
            s.refused.insert(piece);
        } else if s.have.remove(piece as usize) {
            self.count_copy(piece as usize, false);
        }
    }

    /// The source is gone, and its calls with it.
    pub fn leave(&mut self, source: SourceKey) {
        let Some(s) = self.sources.remove(&source) else { return };
        for call in s.calls {
            if let Some(call) = self.calls.remove(&call) {
                call.left.into_iter().for_each(|p| self.give_back(p));
            }
        }
        s.have.iter().for_each(|p| self.count_copy(p, false));
        if s.wrong.0 > 0 {
            self.away.insert(source, s.wrong);
        }
    }

    /// Content came from a source.
    pub fn moved(&mut self, source: SourceKey, bytes: u64, now_us: u64) {
        let Some(s) = self.sources.get_mut(&source) else { return };
        s.meter.pass(now_us, true);
        s.meter.bytes += bytes as f64;
        s.partial = (s.partial + bytes).min(s.outstanding);
        s.moved_us = now_us;
        s.pause_us = 0;
    }

    /// A piece of a call has arrived whole and goes to be verified. False if it is not wanted any more.
    pub fn arrived(&mut self, call: CallKey, piece: Piece) -> bool {
        if !self.take_from_call(call, piece) {
            return false;
        }
        let wanted = self.step(piece) == Some(Step::Asked);
        if wanted {
            self.set_step(piece, Step::Checking);
        }
        wanted
    }

    /// A piece that arrived is good, and written.
    pub fn verified(&mut self, piece: Piece) -> Vec<Action> {
        self.hold(piece)
    }

    /// A piece that arrived could not be written.
    pub fn not_written(&mut self, piece: Piece) {
        if self.step(piece) == Some(Step::Checking) {
            self.set_step(piece, if self.is_asked(piece) { Step::Asked } else { Step::Missing });
        }
    }

    /// A piece that this source sent is not what it should be.
    pub fn wrong(&mut self, source: SourceKey, piece: Piece) -> Vec<Action> {
        self.not_written(piece);
        let banned = match self.sources.get_mut(&source) {
            Some(s) => {
                s.refused.insert(piece);
                s.wrong.count()
            }
            None => self.away.entry(source).or_default().count(),
        };
        if !banned {
            return Vec::new();
        }
        let mut actions = vec![Action::Ban { source }];
        actions.extend(self.end_calls(source));
        actions
    }

    /// A piece of a call is not at the source although it said so.
    pub fn absent(&mut self, call: CallKey, piece: Piece) {
        let Some(source) = self.calls.get(&call).map(|c| c.source) else { return };
        if self.take_from_call(call, piece) {
            self.give_back(piece);
        }
        if let Some(s) = self.sources.get_mut(&source) {
            s.refused.insert(piece);
        }
        self.lacks(source, piece);
    }

    /// A call has ended, well or not; what it has not brought goes back. After a failure the source is left alone for a
    /// while.
    pub fn ended(&mut self, call: CallKey, failed: bool, now_us: u64) {
        let Some(call) = self.remove_call(call) else { return };
        call.left.iter().for_each(|p| self.give_back(*p));
        if (failed || !call.left.is_empty())
            && let Some(s) = self.sources.get_mut(&call.source)
        {
            s.rest(now_us);
        }
    }

    /// True if everything of a call has arrived, and the source has yet to end it.
    pub fn is_empty_call(&self, call: CallKey) -> bool {
        self.calls.get(&call).is_some_and(|c| c.left.is_empty())
    }

    /// Gives sources that are not banned another chance with pieces that they did not have, or sent wrong. For when nothing
    /// else is left to try.
    pub fn forgive(&mut self) {
        self.sources.values_mut().filter(|s| !s.is_banned()).for_each(|s| s.refused.clear());
    }

    /// Wrong pieces from a source, and whether it is banned.
    pub fn blame(&self, source: SourceKey) -> (u32, bool) {
        let here = self.sources.get(&source).map(|s| s.wrong);
        let wrong = here.or_else(|| self.away.get(&source).copied()).unwrap_or_default();
        (wrong.0, wrong.bans())
    }

    /// Measured rate of a source, bytes a second.
    pub fn rate(&self, source: SourceKey) -> u64 {
        self.sources.get(&source).and_then(|s| s.meter.rate()).unwrap_or(0.0) as u64
    }

    /// Bytes that are asked for and have not arrived.
    pub fn outstanding(&self) -> u64 {
        self.sources.values().map(|s| s.outstanding).sum()
    }

    /// Calls that are open.
    pub fn call_count(&self) -> usize {
        self.calls.len()
    }

    /// True if some source has used up its window, so that it is the source which limits.
    pub fn is_source_bound(&self) -> bool {
        self.sources.values().any(|s| s.outstanding > 0)
    }

    /// What to do now; at most about `budget` bytes are asked for. To be called after every event and every 100 ms.
    pub fn poll(&mut self, now_us: u64, budget: u64) -> Vec<Action> {
        let mut actions = self.end_stalled(now_us);
        let mut budget = budget;
        let fed = self.sources.values().any(|s| !s.spared && s.outstanding > 0);
        if fed || self.fresh.is_empty() {
            self.hungry_since_us = None;
        } else {
            self.hungry_since_us.get_or_insert(now_us);
        }
        for source in self.by_rate() {
            loop {
                if budget == 0 {
                    return actions;
                }
                let Some(pieces) = self.choose(source, now_us, budget) else { break };
                budget = budget.saturating_sub(self.bytes(&pieces));
                actions.push(self.ask(source, pieces, now_us));
            }
        }
        actions
    }

    fn by_rate(&self) -> Vec<SourceKey> {
        let mut order: Vec<(u64, SourceKey)> = self
            .sources
            .iter()
            .filter(|(_, s)| !s.is_banned())
            .map(|(key, s)| (s.meter.rate().unwrap_or(f64::MAX) as u64, *key))
            .collect();
        order.sort_unstable_by(|a, b| b.cmp(a));
        order.into_iter().map(|(_, key)| key).collect()
    }

    fn ask(&mut self, source: SourceKey, pieces: Vec<Piece>, now_us: u64) -> Action {
        let call = self.next_call;
        self.next_call += 1;
        let bytes = self.bytes(&pieces);
        for piece in &pieces {
            if self.step(*piece) == Some(Step::Missing) {
                self.set_step(*piece, Step::Asked);
            }
        }
        if let Some(s) = self.sources.get_mut(&source) {
            if s.calls.is_empty() {
                // The time in which it had nothing to do does not count.
                s.meter.pass(now_us, false);
                s.moved_us = now_us;
            }
            s.calls.push(call);
            s.outstanding += bytes;
            s.outstanding_pieces += pieces.len();
        }
        self.calls.insert(call, Call { source, left: pieces.iter().copied().collect() });
        Action::Ask { call, source, pieces }
    }

    /// The next call for a source, if it should have one.
    fn choose(&mut self, source: SourceKey, now_us: u64, budget: u64) -> Option<Vec<Piece>> {
        let s = self.sources.get(&source)?;
        if s.is_banned() || s.paused_until_us > now_us || s.calls.len() >= MAX_CALLS || s.spared && !self.spared_open {
            return None;
        }
        let most = if s.spared { (self.total / SPARED_PART).max(SPARED_WINDOW) } else { MAX_WINDOW };
        let window = s.window().min(most);
        let due = s.outstanding - s.partial;
        let room = window.saturating_sub(due);
        if room < window / 2 {
            return None;
        }
        let (spared, idle) = (s.spared, s.outstanding == 0);
        let limit = room.min(window / 2).min(budget);
        let mut pieces = Vec::new();
        let mut bytes = 0;
        while pieces.len() < MAX_CALL_PIECES {
            let own = if spared { self.own_choice(source) } else { self.first_choice(source) };
            let needed = spared && own.is_none() && idle && pieces.is_empty() && self.others_cannot_do(source, now_us);
            let Some(piece) = (if needed { self.first_choice(source) } else { own }) else { break };
            let len = u64::from(self.len[piece as usize]);
            // One piece may be larger than the room: pieces are not divided.
            if bytes + len > limit && !pieces.is_empty() {
                break;
            }
            self.set_step(piece, Step::Asked);
            pieces.push(piece);
            bytes += len;
            if bytes >= limit || needed {
                break;
            }
        }
        let refused = |piece: usize| self.is_refused(source, piece);
        if pieces.is_empty() && self.fresh.iter().all(refused) {
            let piece = self.second_choice(source)?;
            self.doubled.insert(piece);
            return Some(vec![piece]);
        }
        (!pieces.is_empty()).then_some(pieces)
    }

    /// True if a spared source has to be asked for what others have or will have.
    fn others_cannot_do(&self, source: SourceKey, now_us: u64) -> bool {
        if self.hungry_since_us.is_some_and(|since| now_us.saturating_sub(since) >= self.hungry_us()) {
            return true;
        }
        let others = self.sources.values().filter(|s| !s.spared && !s.is_banned() && s.paused_until_us <= now_us);
        let theirs: f64 = others.filter_map(|s| s.meter.rate()).sum();
        if theirs <= 0.0 {
            // Nothing is known of them yet.
            return false;
        }
        match self.sources.get(&source).and_then(|s| s.meter.rate()) {
            Some(rate) => theirs < rate * SPARED_RATIO,
            None => self.left as f64 * self.mean_len() / theirs > SPARED_PATIENCE,
        }
    }

    /// How long others may bring nothing.
    fn hungry_us(&self) -> u64 {
        ((HUNGRY_PIECES * self.mean_len() * 1e6 / self.mean_rate()) as u64).clamp(HUNGRY_US, HUNGRY_MAX_US)
    }

    fn mean_len(&self) -> f64 {
        self.total as f64 / self.len.len().max(1) as f64
    }

    /// A piece that nobody was asked for.
    fn first_choice(&mut self, source: SourceKey) -> Option<Piece> {
        let complete = self.sources.get(&source)?.complete;
        let found = if complete { self.unique_choice(source) } else { None };
        let found = found.or_else(|| self.rare_choice(source))?;
        (!self.comes_late(source, found)).then_some(found)
    }

    /// Of a complete source: a piece of the own part, then one of a part that somebody else will come to last.
    fn unique_choice(&mut self, source: SourceKey) -> Option<Piece> {
        self.own_choice(source).or_else(|| self.foreign_choice(source))
    }

    fn is_refused(&self, source: SourceKey, piece: usize) -> bool {
        self.sources.get(&source).is_some_and(|s| s.refused.contains(&(piece as Piece)))
    }

    /// A piece of the own part that no incomplete source has.
    fn own_choice(&mut self, source: SourceKey) -> Option<Piece> {
        let (from, to) = self.own;
        let start = self.start.clamp(from, to);
        while self.order.get(self.order_at).is_some_and(|p| !self.unique.has(*p as usize)) {
            self.order_at += 1;
        }
        let ordered = self.order.iter().skip(self.order_at).take(SAMPLES);
        let mut ordered =
            ordered.copied().filter(|p| self.unique.has(*p as usize) && !self.is_refused(source, *p as usize));
        if let Some(piece) = ordered.next() {
            return Some(piece);
        }
        for (low, high) in [(start, to), (from, start)] {
            let mut at = low;
            while let Some(found) = self.unique.next(at, high) {
                if !self.is_refused(source, found) {
                    return Some(found as Piece);
                }
                at = found + 1;
            }
        }
        None
    }

    /// A piece that no incomplete source has, from the far end of somebody's part; of a spared source from anywhere, since
    /// whoever else is as hungry should choose another one.
    fn foreign_choice(&mut self, source: SourceKey) -> Option<Piece> {
        let n = self.len.len();
        if self.unique.is_empty() {
            return None;
        }
        let end = match self.sources.get(&source)?.spared {
            true => self.below(n) + 1,
            false => (self.below(self.count) + 1) * n / self.count,
        };
        for (low, high) in [(0, end), (end, n)] {
            let mut at = high;
            while let Some(found) = self.unique.last(low, at) {
                if !self.is_refused(source, found) {
                    return Some(found as Piece);
                }
                at = found;
            }
        }
        None
    }

    /// The rarest of some of the pieces that the source has.
    fn rare_choice(&mut self, source: SourceKey) -> Option<Piece> {
        let n = self.len.len();
        let start = self.below(n.max(1));
        let s = self.sources.get(&source)?;
        let mut best: Option<(u16, usize)> = None;
        let mut seen = 0;
        for (low, high) in [(start, n), (0, start)] {
            let mut at = low;
            while seen < SAMPLES {
                let found =
                    if s.complete { self.fresh.next(at, high) } else { self.fresh.next_common(&s.have, at, high) };
                let Some(found) = found else { break };
                at = found + 1;
                seen += 1;
                let rank = self.copies[found];
                if best.is_none_or(|(least, _)| rank < least) && !s.refused.contains(&(found as Piece)) {
                    best = Some((rank, found));
                }
            }
        }
        best.map(|(_, found)| found as Piece)
    }

    /// True if a slow source would bring the piece long after everything else is there, and another one has it too.
    fn comes_late(&self, source: SourceKey, piece: Piece) -> bool {
        let Some(s) = self.sources.get(&source) else { return true };
        let Some(rate) = s.meter.rate() else { return false };
        let all: f64 = self.sources.values().filter(|s| !s.is_banned()).filter_map(|s| s.meter.rate()).sum();
        if rate * 8.0 > all {
            return false;
        }
        let fresh = self.fresh.count() as f64 * f64::from(self.len[piece as usize]);
        let rest = (fresh + self.outstanding() as f64) / all;
        let mine = (s.outstanding as f64 + f64::from(self.len[piece as usize])) / rate;
        mine > 2.0 * rest + 1.0
            && self.sources.iter().any(|(key, o)| {
                *key != source && !o.is_banned() && o.has(piece) && o.meter.rate().is_some_and(|r| r > 4.0 * rate)
            })
    }

    /// In the endgame: a piece that was asked of another source, which will bring it much later.
    fn second_choice(&self, source: SourceKey) -> Option<Piece> {
        let s = self.sources.get(&source)?;
        if s.outstanding > 0 {
            return None;
        }
        let rate = s.meter.rate().unwrap_or_else(|| self.mean_rate());
        let least = if s.spared { SPARED_ENDGAME_US } else { ENDGAME_US };
        let mut best: Option<(f64, Piece)> = None;
        for (key, other) in &self.sources {
            if *key == source || other.outstanding == 0 {
                continue;
            }
            let theirs = other.meter.rate().unwrap_or(UNKNOWN_RATE).max(1.0);
            let mut ahead = 0u64;
            for piece in other.calls.iter().filter_map(|c| self.calls.get(c)).flat_map(|c| &c.left) {
                let len = u64::from(self.len[*piece as usize]);
                ahead += len;
                let (then, now) = (ahead as f64 * 1e6 / theirs, len as f64 * 1e6 / rate);
                let gain = then - 2.0 * now - least;
                if gain > 0.0
                    && self.step(*piece) == Some(Step::Asked)
                    && s.has(*piece)
                    && best.is_none_or(|(most, _)| gain > most)
                    && !self.is_doubled(*piece)
                {
                    best = Some((gain, *piece));
                }
            }
        }
        best.map(|(_, piece)| piece)
    }

    fn is_doubled(&self, piece: Piece) -> bool {
        self.doubled.contains(&piece) && self.calls.values().filter(|c| c.left.contains(&piece)).count() > 1
    }

    fn mean_rate(&self) -> f64 {
        let rates: Vec<f64> = self.sources.values().filter_map(|s| s.meter.rate()).collect();
        if rates.is_empty() { UNKNOWN_RATE } else { (rates.iter().sum::<f64>() / rates.len() as f64).max(1.0) }
    }

    fn end_stalled(&mut self, now_us: u64) -> Vec<Action> {
        let stalled: Vec<SourceKey> = self
            .sources
            .iter()
            .filter(|(_, s)| s.outstanding > 0 && now_us.saturating_sub(s.moved_us) > s.stall_us())
            .map(|(key, _)| *key)
            .collect();
        let mut actions = Vec::new();
        for source in stalled {
            actions.extend(self.end_calls(source));
            if let Some(s) = self.sources.get_mut(&source) {
                s.rest(now_us);
            }
        }
        actions
    }

    fn end_calls(&mut self, source: SourceKey) -> Vec<Action> {
        let calls = self.sources.get(&source).map(|s| s.calls.clone()).unwrap_or_default();
        let mut actions = Vec::new();
        for key in calls {
            if let Some(call) = self.remove_call(key) {
                call.left.iter().for_each(|p| self.give_back(*p));
                actions.push(Action::Cancel { call: key });
            }
        }
        actions
    }

    fn remove_call(&mut self, key: CallKey) -> Option<Call> {
        let call = self.calls.remove(&key)?;
        let bytes: u64 = call.left.iter().map(|p| u64::from(self.len[*p as usize])).sum();
        if let Some(s) = self.sources.get_mut(&call.source) {
            s.calls.retain(|c| *c != key);
            s.sink(bytes, call.left.len());
            s.partial = 0;
        }
        Some(call)
    }

    /// Takes a piece out of a call; false if it is not in it. A call that has nothing left ends by itself at the source.
    fn take_from_call(&mut self, key: CallKey, piece: Piece) -> bool {
        let Some(call) = self.calls.get_mut(&key) else { return false };
        let Some(at) = call.left.iter().position(|p| *p == piece) else { return false };
        call.left.remove(at);
        let source = call.source;
        let len = u64::from(self.len[piece as usize]);
        if let Some(s) = self.sources.get_mut(&source) {
            s.sink(len, 1);
        }
        true
    }

    fn drop_from_calls(&mut self, piece: Piece) -> Vec<Action> {
        self.doubled.remove(&piece);
        let holders: Vec<CallKey> =
            self.calls.iter().filter(|(_, call)| call.left.contains(&piece)).map(|(key, _)| *key).collect();
        let mut actions = Vec::new();
        for key in holders {
            self.take_from_call(key, piece);
            if self.calls.get(&key).is_some_and(|c| c.left.is_empty()) {
                self.remove_call(key);
                actions.push(Action::Cancel { call: key });
            }
        }
        actions
    }

    /// A piece that a call does not bring any more.
    fn give_back(&mut self, piece: Piece) {
        if self.step(piece) == Some(Step::Asked) && !self.is_asked(piece) {
            self.set_step(piece, Step::Missing);
        }
    }

    /// True if a call is to bring the piece, of one that has just been taken out of a call.
    fn is_asked(&self, piece: Piece) -> bool {
        self.doubled.contains(&piece) && self.calls.values().any(|c| c.left.contains(&piece))
    }

    fn step(&self, piece: Piece) -> Option<Step> {
        self.steps.get(piece as usize).copied()
    }

    fn set_step(&mut self, piece: Piece, step: Step) {
        let at = piece as usize;
        let Some(now) = self.steps.get_mut(at) else { return };
        if (*now == Step::Have) != (step == Step::Have) {
            self.left = if step == Step::Have { self.left - 1 } else { self.left + 1 };
        }
        *now = step;
        if step == Step::Missing {
            self.fresh.insert(at);
            if self.copies[at] == 0 {
                self.unique.insert(at);
            }
        } else {
            self.fresh.remove(at);
            self.unique.remove(at);
        }
    }

    fn count_copy(&mut self, at: usize, more: bool) {
        let copies = &mut self.copies[at];
        *copies = if more { copies.saturating_add(1) } else { copies.saturating_sub(1) };
        if *copies == 0 && self.fresh.has(at) {
            self.unique.insert(at);
        } else {
            self.unique.remove(at);
        }
    }

    fn bytes(&self, pieces: &[Piece]) -> u64 {
        pieces.iter().map(|p| u64::from(self.len[*p as usize])).sum()
    }

    /// A random number below `n` (xorshift: it need not be more than different from node to node).
    fn below(&mut self, n: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n.max(1)
    }
}

impl Source {
    /// So much less is outstanding.
    fn sink(&mut self, bytes: u64, pieces: usize) {
        self.outstanding = self.outstanding.saturating_sub(bytes);
        self.outstanding_pieces = self.outstanding_pieces.saturating_sub(pieces);
        self.partial = self.partial.saturating_sub(bytes).min(self.outstanding);
    }

    /// Leaves it alone for a while, longer each time.
    fn rest(&mut self, now_us: u64) {
        self.pause_us = (self.pause_us * 2).clamp(500_000, 30_000_000);
        self.paused_until_us = now_us + self.pause_us;
    }
}
