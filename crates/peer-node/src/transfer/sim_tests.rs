//! The swarm in virtual time. A failing seed is printed; put it into the list of kept ones.

use super::scheduler::{Action, Scheduler};
use super::sim::{Random, SimNode, SimOutcome, SimSetup, floor, lengths, run};

const MBIT_100: f64 = 12.5e6;

fn swarm(seed: u64, takers: usize, total: u64, rate: f64) -> SimSetup {
    let mut nodes = vec![SimNode { seed: true, ..SimNode::new(rate) }];
    nodes.extend((0..takers).map(|_| SimNode::new(rate)));
    let pieces = lengths(total, &mut Random::new(seed + 1_000));
    SimSetup { seed, nodes, pieces, latency_us: 300, until_us: 100_000_000_000 }
}

fn total(setup: &SimSetup) -> u64 {
    setup.pieces.iter().map(|l| u64::from(*l)).sum()
}

/// Every node that lives to the end has everything.
fn check(setup: &SimSetup, outcome: &SimOutcome) {
    for (n, node) in setup.nodes.iter().enumerate() {
        let lives = node.dies_us == u64::MAX && !node.seed;
        assert!(!lives || outcome.done_us[n].is_some(), "seed {}: node {n} never had everything", setup.seed);
    }
}

fn ratios(setup: &SimSetup) -> (f64, f64, f64) {
    let outcome = run(setup);
    check(setup, &outcome);
    let floor = floor(setup);
    (outcome.last() / floor, outcome.median() / floor, outcome.sent[0] as f64 / total(setup) as f64)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

#[test]
fn eight_nodes_are_near_the_floor() {
    let all: Vec<_> = (0..9).map(|seed| ratios(&swarm(seed, 8, 200_000_000, MBIT_100))).collect();
    for (seed, (last, _, copies)) in all.iter().enumerate() {
        println!("8 x 200 MB, seed {seed}: last {last:.3} x floor, seed sent {copies:.3} copies");
        assert!(*last <= 1.15 && *copies <= 1.15, "seed {seed}");
    }
    assert!(median(all.iter().map(|a| a.0).collect()) <= 1.11);
    assert!(median(all.iter().map(|a| a.2).collect()) <= 1.12);
}

#[test]
fn twenty_nodes_are_near_the_floor() {
    let (last, half, copies) = ratios(&swarm(1, 20, 400_000_000, MBIT_100));
    println!("20 x 400 MB: last {last:.3}, median {half:.3} x floor, seed sent {copies:.3} copies");
    assert!(last <= 1.25 && half <= 1.25 && copies <= 1.25);
}

#[test]
fn small_swarms_come_to_an_end_near_the_floor() {
    // Few pieces: each one weighs more, and the floor knows nothing of pieces.
    let (mut all, mut worst) = (Vec::new(), 0.0f64);
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let takers = 2 + random.below(6) as usize;
        let setup = swarm(seed, takers, 40_000_000, MBIT_100);
        let (last, _, copies) = ratios(&setup);
        worst = worst.max(last);
        all.push(last);
        assert!(last <= 2.0, "seed {seed}: {last:.2} x floor with {takers} nodes");
        assert!(copies <= 2.0, "seed {seed}: {copies:.2} copies with {takers} nodes");
    }
    let half = median(all);
    println!("2 to 7 x 40 MB: median {half:.3}, worst {worst:.3} x floor");
    assert!(half <= 1.45);
}

#[test]
fn nothing_is_sent_twice_without_need() {
    for seed in 0..50 {
        let setup = swarm(seed, 4, 60_000_000, MBIT_100);
        let outcome = run(&setup);
        check(&setup, &outcome);
        let received: u64 = outcome.received.iter().sum();
        let over = received as f64 / (4 * total(&setup)) as f64;
        assert!(over <= 1.08, "seed {seed}: {over:.3} times what was needed");
    }
}

#[test]
fn dead_lying_late_and_slow_nodes_hold_nobody_up() {
    for seed in 0..200 {
        let mut random = Random::new(seed * 31);
        let takers = 4 + random.below(4) as usize;
        let mut setup = swarm(seed, takers, 25_000_000, MBIT_100);
        setup.nodes.push(SimNode { seed: true, ..SimNode::new(MBIT_100 / 2.0) });
        let mut liars = 0;
        for n in 1..=takers {
            let node = &mut setup.nodes[n];
            match random.below(6) {
                0 => node.dies_us = random.below(4_000_000),
                1 if liars < 2 => {
                    node.liar = true;
                    liars += 1;
                }
                2 => node.joins_us = random.below(3_000_000),
                3 => (node.up, node.down) = (MBIT_100 / 10.0, MBIT_100 / 4.0),
                _ => {}
            }
        }
        if random.below(3) == 0 {
            // The first source goes; another one that has everything stays.
            setup.nodes[0].dies_us = random.below(3_000_000);
        }
        let outcome = run(&setup);
        check(&setup, &outcome);
        for (n, banned) in outcome.banned.iter().enumerate() {
            assert!(banned.iter().all(|b| setup.nodes[*b].liar), "seed {seed}: node {n} banned an honest one");
        }
    }
}

#[test]
fn fast_sources_are_used_more() {
    for seed in 0..20 {
        let mut setup = swarm(seed, 1, 60_000_000, 40e6);
        setup.nodes[0].up = 10e6;
        setup.nodes.push(SimNode { seed: true, ..SimNode::new(2e6) });
        let outcome = run(&setup);
        check(&setup, &outcome);
        let part = outcome.sent[0] as f64 / outcome.sent[2] as f64;
        assert!(
            (3.0..8.0).contains(&part),
            "seed {seed}: {part:.1} times as much from the one that is 5 times as fast"
        );
        let ratio = outcome.last() / (60e6 / 12e6);
        assert!(ratio <= 1.15, "seed {seed}: {ratio:.2}");
    }
}

/// A server of this rate that is to be spared, and nodes that begin within a third of a second.
fn office(seed: u64, takers: usize, total: u64, server: f64) -> SimSetup {
    let mut setup = swarm(seed, takers, total, MBIT_100);
    let mut random = Random::new(seed * 17 + 3);
    setup.nodes[0] = SimNode { seed: true, spared: true, ..SimNode::new(server) };
    setup.nodes.iter_mut().skip(1).for_each(|n| n.joins_us = random.below(300_000));
    setup
}

#[test]
fn a_server_sends_little_more_than_one_copy_however_fast_it_is() {
    for (takers, total, most) in [(3, 60_000_000, 1.2), (3, 400_000_000, 1.1), (20, 400_000_000, 1.2)] {
        for server in [0.5, 1.0, 10.0] {
            let mut all = Vec::new();
            for seed in 0..if takers > 3 { 3 } else { 20 } {
                let setup = office(seed, takers, total, MBIT_100 * server);
                let (last, _, copies) = ratios(&setup);
                assert!(copies <= most, "seed {seed}: {takers} nodes, server x {server}: {copies:.3} copies");
                all.push((copies, last));
            }
            let copies = median(all.iter().map(|a| a.0).collect());
            let last = median(all.iter().map(|a| a.1).collect());
            println!("{takers} x {total}, server x {server}: {copies:.3} copies, last {last:.3} x floor");
            assert!(last <= 1.6, "{takers} nodes, server x {server}: {last:.3} x floor");
        }
    }
}

#[test]
fn a_spared_server_is_asked_when_the_others_cannot_do() {
    for seed in 0..40 {
        // One of three has a line of a tenth: the others do not wait for its third.
        let mut setup = office(seed, 3, 60_000_000, MBIT_100 * 10.0);
        (setup.nodes[1].up, setup.nodes[1].down) = (MBIT_100 / 10.0, MBIT_100 / 10.0);
        let outcome = run(&setup);
        check(&setup, &outcome);
        let fast = outcome.done_us[2].max(outcome.done_us[3]).unwrap() as f64 / 1e6;
        let alone = 60e6 / MBIT_100;
        assert!(fast <= 3.0 * alone, "seed {seed}: {fast:.1} s, alone it takes {alone:.1}");
        // One dies in the middle: the others have everything all the same.
        let mut setup = office(seed, 3, 60_000_000, MBIT_100);
        setup.nodes[1].dies_us = 500_000 + seed * 100_000;
        check(&setup, &run(&setup));
    }
}

#[test]
fn when_a_server_dies_after_its_copy_the_nodes_have_it_among_themselves() {
    for seed in 0..40 {
        let mut setup = office(seed, 3, 60_000_000, MBIT_100 * 10.0);
        let whole = run(&setup);
        check(&setup, &whole);
        let copies = whole.sent[0] as f64 / total(&setup) as f64;
        assert!(copies >= 1.0);
        // After its last byte has gone and nothing is asked of it any more.
        setup.nodes[0].dies_us = whole.server_last_us + 100_000;
        check(&setup, &run(&setup));
    }
}

#[test]
fn who_lies_and_goes_and_comes_back_is_banned_all_the_same() {
    let mut scheduler = Scheduler::new(vec![1000; 50], 1);
    let wrong = |scheduler: &mut Scheduler, now: u64| -> Vec<Action> {
        scheduler.join(1, now);
        scheduler.complete(1);
        let asked = scheduler.poll(now, u64::MAX);
        let Some(Action::Ask { call, pieces, .. }) = asked.first() else { panic!("{asked:?}") };
        assert!(scheduler.arrived(*call, pieces[0]));
        // Found out when it is away again.
        scheduler.leave(1);
        scheduler.wrong(1, pieces[0])
    };
    assert_eq!(wrong(&mut scheduler, 0), []);
    assert_eq!(wrong(&mut scheduler, 1), []);
    assert_eq!(scheduler.blame(1), (2, false));
    assert_eq!(wrong(&mut scheduler, 2), [Action::Ban { source: 1 }]);
    assert_eq!(scheduler.blame(1), (3, true));
    scheduler.join(1, 3);
    scheduler.complete(1);
    assert_eq!(scheduler.poll(3, u64::MAX), []);
}

#[test]
fn a_source_that_may_not_be_asked_for_what_is_left_helps_with_the_rest() {
    let mut scheduler = Scheduler::new(vec![1_000_000; 20], 1);
    for source in [1, 2] {
        scheduler.join(source, 0);
        scheduler.complete(source);
    }
    // The first one brings much at once and is asked for all that the second one has not been asked for.
    let first = scheduler.poll(0, u64::MAX);
    for action in &first {
        let Action::Ask { call, source, pieces } = action else { panic!("{action:?}") };
        if *source == 1 {
            scheduler.moved(1, 1_000_000, 1);
            assert!(scheduler.arrived(*call, pieces[0]));
            scheduler.verified(pieces[0]);
            scheduler.ended(*call, false, 1);
        }
    }
    scheduler.poll(1, u64::MAX);
    // The second one sends a wrong piece. It is missing again, and the first one has no room for it.
    let of_second = first.iter().find_map(|a| match a {
        Action::Ask { call, source: 2, pieces } => Some((*call, pieces.clone())),
        _ => None,
    });
    let (call, pieces) = of_second.expect("both are asked");
    assert!(scheduler.arrived(call, pieces[0]));
    scheduler.ended(call, false, 2);
    assert_eq!(scheduler.wrong(2, pieces[0]), []);
    // Ten seconds without anything from the first one make it slow.
    scheduler.moved(1, 1, 2_000_000);
    let asked = scheduler.poll(2_000_001, u64::MAX);
    assert!(asked.iter().any(|a| matches!(a, Action::Ask { source: 2, .. })), "{asked:?}");
}
