//! When the owner of a mirror asks its place for proof, which parts it asks for, and what follows from the answers.
//!
//! Decided without IO: [`Standing`] is what is remembered of a mirror, [`Standing::step`] says what to do now, and the
//! other methods take in what came of it. Whoever calls it keeps the standing on disk.
//!
//! # Rules
//!
//! * A proof is due [`Rules::every`] after the last one. It covers a sample: round *n* asks for every k-th part beginning
//!   with the n-th, so k rounds ask for all of them, and the first round is at random ([`sample`]). The question's key is
//!   fresh each time, so an answer can only be given by who has the part then.
//! * A part that cannot be proven makes the mirror *damaged*. Then everything is proven and sent again where needed, at
//!   once and after that each [`Rules::again`], until a proof of the same round succeeds.
//! * A place that does not answer is asked again when it does; that is no failure. One that leaves is moved from before
//!   anything else. A clock that went back makes a proof due, and never late.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Most parts of a proof.
pub const PROVE: usize = 256;

/// How often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Between two proofs of a mirror that is whole.
    pub every: Duration,
    /// Between two attempts at one that is not, or that could not be asked.
    pub again: Duration,
}

/// What came of a proof.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Proof {
    /// Parts that were asked for.
    pub asked: usize,
    /// Parts of the newest generation.
    pub parts: usize,
    /// Paths of files with parts that could not be proven.
    pub wrong: Vec<String>,
}

/// How a place looks at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// It answers.
    There,
    /// It wants its space back.
    Leaving,
    /// It does not answer.
    Away,
    /// It says that it has no such mirror.
    Gone,
}

/// What to do now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing.
    Wait,
    /// Ask for proof of this round.
    Prove(u64),
    /// Prove everything, send again what is not there, then ask for proof of this round.
    Repair(u64),
    /// Copy the mirror elsewhere.
    Move,
}

/// What is remembered of a mirror. Times are milliseconds since 1970, by the owner's clock.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    /// When a proof succeeded last.
    pub proven_ms: Option<u64>,
    /// How many parts it was about.
    pub proven_count: u64,
    /// Of how many.
    pub part_count: u64,
    /// When a proof was attempted last.
    pub tried_ms: Option<u64>,
    /// When a proof failed last.
    pub failed_ms: Option<u64>,
    /// Parts that were sent again since the mirror was made.
    pub repaired: u64,
    /// Something could not be proven, and was not repaired since.
    pub damaged: bool,
    /// Of the next proof.
    pub round: u64,
}

impl Standing {
    /// Of a mirror that nothing was asked of yet. `seed` chooses the first round.
    pub fn new(seed: u64) -> Self {
        // Far from the end, so that counting never comes to it.
        Self { round: seed >> 32, ..Self::default() }
    }

    /// What to do now.
    pub fn step(&self, seen: Seen, now_ms: u64, rules: &Rules) -> Step {
        let rests = |since: Option<u64>, for_: Duration| {
            since.is_some_and(|since| since <= now_ms && u128::from(now_ms - since) < for_.as_millis())
        };
        match seen {
            Seen::Away | Seen::Gone => Step::Wait,
            Seen::Leaving => Step::Move,
            Seen::There if rests(self.tried_ms, rules.again) => Step::Wait,
            Seen::There if self.damaged => Step::Repair(self.round),
            Seen::There if rests(self.proven_ms, rules.every) => Step::Wait,
            Seen::There => Step::Prove(self.round),
        }
    }

    /// A proof was answered; whether the mirror must be repaired.
    pub fn proven(&mut self, proof: &Proof, now_ms: u64) -> bool {
        self.tried_ms = Some(now_ms);
        self.part_count = proof.parts as u64;
        self.damaged = !proof.wrong.is_empty();
        if self.damaged {
            self.failed_ms = Some(now_ms);
        } else {
            self.proven_ms = Some(now_ms);
            self.proven_count = proof.asked as u64;
            self.round = self.round.wrapping_add(1);
        }
        self.damaged
    }

    /// What would say which parts there are is itself damaged or missing.
    pub fn unreadable(&mut self, now_ms: u64) {
        self.tried_ms = Some(now_ms);
        self.failed_ms = Some(now_ms);
        self.damaged = true;
    }

    /// A proof or a repair was broken off.
    pub fn broken_off(&mut self, now_ms: u64) {
        self.tried_ms = Some(now_ms);
    }

    /// So many parts were sent again.
    pub fn repaired(&mut self, parts: usize) {
        self.repaired = self.repaired.saturating_add(parts as u64);
    }
}

/// Which of so many parts a round asks for: at most [`PROVE`], and all of them in as many rounds as that takes.
pub fn sample(parts: usize, round: u64) -> impl Iterator<Item = usize> {
    let step = parts.div_ceil(PROVE).max(1);
    // Below `step`, which is a usize.
    let first = (round % step as u64) as usize;
    (first..parts).step_by(step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::seq::IteratorRandom;
    use rand::{Rng, SeedableRng};
    use std::collections::BTreeSet;

    const RULES: Rules = Rules { every: Duration::from_secs(86_400), again: Duration::from_secs(600) };
    const HOUR: u64 = 3_600_000;

    #[test]
    fn all_rounds_together_ask_for_every_part_once() {
        for parts in [0_usize, 1, 255, 256, 257, 511, 512, 513, 1_000, 70_000] {
            let rounds = parts.div_ceil(PROVE).max(1) as u64;
            let mut asked = Vec::new();
            for round in 7..7 + rounds {
                let of_round: Vec<usize> = sample(parts, round).collect();
                assert!(of_round.len() <= PROVE, "{parts}");
                asked.extend(of_round);
            }
            asked.sort_unstable();
            assert!(asked.iter().copied().eq(0..parts), "{parts}: {} asked", asked.len());
        }
    }

    /// A place that loses parts, is away, and takes them again; its owner, who is restarted and whose clock jumps.
    struct World {
        rng: StdRng,
        standing: Standing,
        lost: BTreeSet<usize>,
        parts: usize,
        now_ms: u64,
        away: bool,
        /// Proofs and repairs that nothing called for, and what was sent.
        proofs: u64,
        sent: u64,
    }

    impl World {
        fn new(seed: u64) -> Self {
            let mut rng = StdRng::seed_from_u64(seed);
            let (parts, first) = (rng.random_range(1..3_000), rng.random());
            Self {
                rng,
                standing: Standing::new(first),
                lost: BTreeSet::new(),
                parts,
                now_ms: 1_800_000_000_000,
                away: false,
                proofs: 0,
                sent: 0,
            }
        }

        fn ask(&mut self, round: u64) -> Proof {
            let asked: Vec<usize> = sample(self.parts, round).collect();
            let wrong = asked.iter().filter(|n| self.lost.contains(n)).map(ToString::to_string).collect();
            self.proofs += 1;
            Proof { asked: asked.len(), parts: self.parts, wrong }
        }

        /// What the owner does once; as it is done by a node.
        fn look(&mut self) {
            let seen = if self.away { Seen::Away } else { Seen::There };
            let (mut round, mut repair) = match self.standing.step(seen, self.now_ms, &RULES) {
                Step::Wait => return,
                Step::Move => panic!("nobody leaves"),
                Step::Prove(round) => (round, false),
                Step::Repair(round) => (round, true),
            };
            assert!(!self.away, "nothing is asked of who is away");
            for _ in 0..2 {
                if repair {
                    if self.rng.random_bool(0.3) {
                        // Broken off in the middle: a part of it was sent.
                        let some = self.lost.iter().copied().choose_multiple(&mut self.rng, self.lost.len() / 2);
                        self.lost.retain(|n| !some.contains(n));
                        self.sent += some.len() as u64;
                        self.standing.repaired(some.len());
                        return self.standing.broken_off(self.now_ms);
                    }
                    self.sent += self.lost.len() as u64;
                    self.standing.repaired(self.lost.len());
                    self.lost.clear();
                }
                let proof = self.ask(round);
                let failed = !proof.wrong.is_empty();
                repair = self.standing.proven(&proof, self.now_ms);
                assert_eq!(repair, failed);
                if !repair {
                    return;
                }
                round = self.standing.round;
            }
            panic!("a repair that was done is not proven");
        }

        fn disturb(&mut self) {
            match self.rng.random_range(0..12) {
                0 => {
                    let count = self.rng.random_range(1..=self.parts.min(40));
                    let lost = (0..self.parts).choose_multiple(&mut self.rng, count);
                    self.lost.extend(lost);
                }
                1 => self.away = true,
                2 | 3 => self.away = false,
                // The program begins anew with what was written down.
                4 => {
                    let text = serde_json::to_string(&self.standing).unwrap();
                    self.standing = serde_json::from_str(&text).unwrap();
                }
                5 => self.now_ms = self.now_ms.saturating_sub(self.rng.random_range(0..400 * HOUR)),
                _ => self.now_ms += self.rng.random_range(0..30 * HOUR),
            }
        }
    }

    #[test]
    fn whatever_is_lost_is_found_and_sent_again() {
        for seed in 0..300 {
            let mut world = World::new(seed);
            for _ in 0..200 {
                world.disturb();
                world.look();
                assert_eq!(world.standing.repaired, world.sent, "seed {seed}");
            }
            // From now on nothing goes wrong: all rounds find everything, each at its time.
            world.away = false;
            let rounds = world.parts.div_ceil(PROVE);
            let before = world.proofs;
            let begun = world.now_ms;
            for _ in 0..(rounds + 2) * 24 * 7 {
                world.now_ms += HOUR / 6;
                world.look();
            }
            assert!(world.lost.is_empty(), "seed {seed}: {} parts stay lost", world.lost.len());
            assert!(!world.standing.damaged && world.standing.proven_ms.unwrap() > begun, "seed {seed}");
            let days = (world.now_ms - begun).div_ceil(24 * HOUR);
            let failed = world.standing.failed_ms.is_some_and(|at| at >= begun);
            assert!(world.proofs - before <= days + 2 * rounds as u64 + 4, "seed {seed}: asked too often");
            assert!(!failed || world.sent > 0, "seed {seed}");
        }
    }

    #[test]
    fn a_quiet_mirror_is_asked_at_its_time_and_a_leaving_one_is_moved() {
        let mut standing = Standing::new(u64::MAX);
        let now = 1_800_000_000_000;
        let step = |standing: &Standing, seen, now_ms| standing.step(seen, now_ms, &RULES);
        let Step::Prove(round) = step(&standing, Seen::There, now) else { panic!("never proven is due") };
        assert!(!standing.proven(&Proof { asked: 3, parts: 3, wrong: Vec::new() }, now));
        assert_eq!(step(&standing, Seen::There, now + 24 * HOUR - 1), Step::Wait);
        assert_eq!(step(&standing, Seen::There, now + 24 * HOUR), Step::Prove(round + 1));
        assert_eq!(step(&standing, Seen::There, now - 1), Step::Prove(round + 1), "the clock went back");
        assert_eq!(step(&standing, Seen::Away, now + 48 * HOUR), Step::Wait);
        assert_eq!(step(&standing, Seen::Gone, now + 48 * HOUR), Step::Wait);
        assert_eq!(step(&standing, Seen::Leaving, now), Step::Move);
        assert!(standing.proven(&Proof { asked: 3, parts: 3, wrong: vec!["a".into()] }, now + 24 * HOUR));
        assert_eq!(standing.proven_ms, Some(now), "what failed is no proof");
        standing.broken_off(now + 25 * HOUR);
        assert_eq!(step(&standing, Seen::There, now + 25 * HOUR + 599_999), Step::Wait);
        assert_eq!(step(&standing, Seen::There, now + 25 * HOUR + 600_000), Step::Repair(round + 1));
    }
}
