use super::*;
use crate::presence::simulation::Simulation;

fn id(n: u16) -> DeviceId {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    DeviceId(bytes)
}

fn at(n: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 7444))
}

fn heard(n: u16, instance: u8, sequence: u64) -> Sighting {
    Sighting {
        device: id(n),
        how: FoundBy::Beacon,
        addresses: vec![at(n)],
        instance: Some(([instance; 8], sequence)),
        claimed: None,
        from: Some((at(n), false)),
        office: Some([1; 8]),
        version: "0.1.0".into(),
        inviting: Vec::new(),
        display_name: String::new(),
        clock_ahead_ms: Some(0),
    }
}

fn member(_: &DeviceId) -> bool {
    true
}

/// A table whose first announcements are over.
fn rested() -> Table {
    let mut table = Table::new(id(0), 0);
    for n in 0..=5 {
        table.handle(n * 500, Event::Tick, member);
    }
    table
}

#[test]
fn a_newcomer_is_answered_once_and_learnt() {
    let mut table = rested();
    let actions = table.handle(3000, Event::Heard(heard(1, 1, 1)), member);
    assert_eq!(actions, [Action::Answer(at(1)), Action::Appeared(id(1)), Action::Learn(id(1), at(1), FoundBy::Beacon)]);
    let actions = table.handle(3100, Event::Heard(heard(1, 1, 2)), member);
    assert_eq!(actions, [Action::Learn(id(1), at(1), FoundBy::Beacon)]);
    let asking = Sighting { from: Some((at(1), true)), ..heard(1, 1, 3) };
    assert!(table.handle(3110, Event::Heard(asking.clone()), member).iter().all(|a| !matches!(a, Action::Answer(_))));
    let later = Sighting { instance: Some(([1; 8], 4)), ..asking };
    assert!(table.handle(3300, Event::Heard(later), member).contains(&Action::Answer(at(1))));
    assert!(table.handle(3400, Event::Heard(heard(0, 9, 1)), member).is_empty(), "the own beacon");
}

#[test]
fn goodbyes_count_at_once_and_old_or_replayed_beacons_do_not_bring_anyone_back() {
    let mut table = rested();
    table.handle(3000, Event::Heard(heard(1, 1, 5)), member);
    let goodbye = Event::Goodbye { device: id(1), instance: [1; 8] };
    assert_eq!(table.handle(3100, goodbye.clone(), member), [Action::Left(id(1))]);
    assert!(table.handle(3150, goodbye, member).is_empty());
    assert!(table.handle(3200, Event::Heard(heard(1, 1, 6)), member).is_empty());
    assert!(!table.get(&id(1)).unwrap().present);
    // The next start of the program is another thing, and the goodbye of the old one does not touch it.
    assert!(table.handle(3300, Event::Heard(heard(1, 2, 1)), member).contains(&Action::Appeared(id(1))));
    table.handle(3400, Event::Goodbye { device: id(1), instance: [1; 8] }, member);
    assert!(table.get(&id(1)).unwrap().present);
}

#[test]
fn a_connection_that_outlives_the_goodbye_by_a_moment_does_not_bring_anyone_back() {
    let mut table = rested();
    table.handle(3000, Event::Heard(heard(1, 1, 5)), member);
    table.handle(3000, Event::Connected(id(1)), member);
    let goodbye = Event::Goodbye { device: id(1), instance: [1; 8] };
    assert_eq!(table.handle(3100, goodbye, member), [Action::Left(id(1))]);
    assert!(table.handle(3110, Event::Connected(id(1)), member).is_empty());
    assert!(table.handle(3120, Event::Disconnected(id(1)), member).is_empty());
    assert!(table.handle(3130, Event::Connected(id(1)), member).is_empty(), "made while it ended");
    let actions = pass(&mut table, 3500, 4500);
    assert!(!actions.contains(&Action::Appeared(id(1))));
    // One that stays is of a new start.
    assert!(table.handle(4700, Event::Tick, member).contains(&Action::Appeared(id(1))));
    // Known by multicast DNS and a connection only, it has gone when both have.
    let mdns = Sighting { how: FoundBy::Mdns, instance: None, from: None, ..heard(2, 0, 0) };
    table.handle(5000, Event::Heard(mdns), member);
    table.handle(5000, Event::Connected(id(2)), member);
    table.handle(6000, Event::Unlisted(id(2)), member);
    assert!(table.get(&id(2)).unwrap().present);
    assert!(table.handle(6100, Event::Disconnected(id(2)), member).contains(&Action::Left(id(2))));
}

#[test]
fn multicast_dns_adds_addresses_and_cannot_say_which_start_lives() {
    let mut table = rested();
    table.handle(3000, Event::Heard(heard(1, 1, 1)), member);
    let claim = Sighting { how: FoundBy::Mdns, instance: None, from: None, addresses: vec![at(9)], ..heard(1, 7, 9) };
    let actions = table.handle(3100, Event::Heard(claim), member);
    assert_eq!(actions, [Action::Learn(id(1), at(9), FoundBy::Mdns)]);
    table.handle(3200, Event::Heard(heard(1, 1, 2)), member);
    assert_eq!(table.get(&id(1)).unwrap().addresses.len(), 2);
    table.handle(3300, Event::Unlisted(id(1)), member);
    assert_eq!(table.get(&id(1)).unwrap().addresses, [(at(1), FoundBy::Beacon)]);
    assert!(table.get(&id(1)).unwrap().present);
}

fn pass(table: &mut Table, from: u64, to: u64) -> Vec<Action> {
    (from / 500..=to / 500).flat_map(|n| table.handle(n * 500, Event::Tick, member)).collect()
}

#[test]
fn silence_ends_an_entry_but_not_a_connected_one() {
    let mut table = rested();
    table.handle(3000, Event::Heard(heard(1, 1, 1)), member);
    table.handle(3000, Event::Heard(heard(2, 1, 1)), member);
    table.handle(3000, Event::Connected(id(2)), member);
    let actions = pass(&mut table, 3500, 3000 + BEACON_LIFE_MS);
    assert!(actions.contains(&Action::Left(id(1))) && !actions.contains(&Action::Left(id(2))));
    // A connection that breaks makes everyone be asked; who stays silent is gone.
    let broke = 3000 + BEACON_LIFE_MS + 500;
    assert!(table.handle(broke, Event::Disconnected(id(2)), member).contains(&Action::Announce(true)));
    assert!(table.get(&id(2)).unwrap().present);
    assert!(pass(&mut table, broke, broke + DOUBT_MS + 500).contains(&Action::Left(id(2))));
}

#[test]
fn after_a_sleep_everyone_is_asked_before_anyone_is_given_up() {
    let mut table = rested();
    table.handle(3000, Event::Heard(heard(1, 1, 1)), member);
    let morning = 8 * 3600 * 1000;
    let actions = table.handle(morning, Event::Tick, member);
    assert_eq!(actions, [Action::Announce(true)]);
    table.handle(morning + 500, Event::Heard(heard(1, 1, 2)), member);
    assert!(pass(&mut table, morning + 1000, morning + 60_000).iter().all(|a| !matches!(a, Action::Left(_))));
}

#[test]
fn a_clock_that_goes_back_is_passed_over() {
    let mut table = rested();
    table.handle(50_000, Event::Tick, member);
    table.handle(1, Event::Heard(heard(1, 1, 1)), member);
    assert_eq!(table.get(&id(1)).unwrap().alive_ms, 50_000);
}

#[test]
fn strangers_have_little_room_and_members_are_not_pushed_out() {
    let mut table = rested();
    let is_member = |d: &DeviceId| d.0[0] == 0;
    for n in 1..200 {
        table.handle(3000, Event::Heard(heard(n, 1, 1)), is_member);
    }
    for n in 0..5000u16 {
        table.handle(3001, Event::Heard(heard(256 + n, 1, 1)), is_member);
    }
    let members = table.all().filter(|(d, _)| is_member(d)).count();
    assert_eq!((members, table.all().count() - members), (199, MAX_STRANGERS));
    let many = Sighting { addresses: (0..5000).map(at).collect(), ..heard(1, 1, 2) };
    assert!(table.handle(3002, Event::Heard(many), is_member).len() <= MAX_ADDRESSES + 1);
    assert!(table.get(&id(1)).unwrap().addresses.len() <= MAX_ADDRESSES);
}

/// A third of all datagrams lost, programs killed and started, addresses changed, clocks turned and machines asleep: in
/// the end everyone who is there sees everyone who is there, where it is, and nobody else.
#[test]
fn simulated_offices_find_together() {
    let seeds =
        std::env::var("ATRIUM_SEED").ok().and_then(|s| s.parse().ok()).map_or(0..300, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let mut simulation = Simulation::new(seed, 2 + (seed % 7) as usize, 0.3);
        simulation.run_wildly(120_000);
        // The life of a beacon, and of one that was held up on its way.
        simulation.settle(110_000);
        simulation.assert_everyone_sees_everyone();
    }
}

#[test]
fn a_simulated_newcomer_is_seen_within_the_burst_in_spite_of_loss() {
    let mut times = Vec::new();
    for seed in 0..300 {
        let mut simulation = Simulation::new(seed, 5, 0.3);
        simulation.settle(40_000);
        times.push(simulation.time_until_a_newcomer_is_seen());
    }
    times.sort();
    println!("simulated: seen by all four others after {} ms (median), {} ms (worst)", times[150], times[299]);
    assert!(times[150] < 1000 && times[290] < 3000, "{times:?}");
}
