//! Presence, reachability and relays in network namespaces, where there is root. Measured times are printed.

use super::presence_node::{PLAN, Plan, now_ms};
use common::identity::{DeviceId, DeviceKey};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use testkit::lab::{Lab, MachineId};

/// Nothing here takes so long, on the busiest machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A node in a namespace.
struct Remote {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    /// Lines that were read while another one was waited for.
    passed: VecDeque<String>,
    device: DeviceId,
    begun_ms: u128,
}

impl Remote {
    fn start(lab: &Lab, machine: MachineId, plan: &Plan) -> Self {
        let mut child = lab
            .command(machine, std::env::current_exe().unwrap())
            .args(["presence_node::child", "--exact", "--nocapture", "--test-threads", "1"])
            .env(PLAN, serde_json::to_string(plan).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, told)) = line.split_once('@') {
                    let _ = sender.send(told.to_owned());
                }
            }
        });
        let input = child.stdin.take();
        let device = DeviceKey::from_pem(&plan.key).unwrap().device_id();
        let mut remote = Self { child, input, lines, passed: VecDeque::new(), device, begun_ms: 0 };
        remote.begun_ms = remote.wait("begun").split(' ').nth(1).unwrap().parse().unwrap();
        remote
    }

    /// The next line that begins so; others are kept for later.
    fn wait(&mut self, begins: &str) -> String {
        if let Some(at) = self.passed.iter().position(|line| line.starts_with(begins)) {
            return self.passed.remove(at).unwrap();
        }
        let until = Instant::now() + DEADLINE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.starts_with(begins) => return line,
                Ok(line) => self.passed.push_back(line),
                Err(_) => panic!("{:?} never said {begins:?}; it said {:#?}", self.device, self.passed),
            }
        }
    }

    /// Forgets what was said until now.
    fn forget(&mut self) {
        self.passed.clear();
        while self.lines.try_recv().is_ok() {}
    }

    /// When it said that.
    fn when(&mut self, begins: &str) -> u128 {
        self.wait(begins).split(' ').nth(2).unwrap().parse().unwrap()
    }

    fn command(&mut self, text: &str) {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{text}").unwrap();
        input.flush().unwrap();
    }

    fn ask(&mut self, text: &str) -> Vec<String> {
        self.command(text);
        let mut answer = Vec::new();
        loop {
            let line = self.lines.recv_timeout(DEADLINE).expect("an answer");
            // What it says by itself comes in between.
            let by_itself = ["seen ", "gone ", "up ", "down "].iter().any(|word| line.starts_with(word));
            match line.as_str() {
                "end" => return answer,
                _ if by_itself => self.passed.push_back(line),
                _ => answer.push(line),
            }
        }
    }

    /// Reach and reason of a device, as soon as they are so.
    fn until_peer(&mut self, device: DeviceId, fits: impl Fn(&[&str]) -> bool) -> String {
        let until = Instant::now() + DEADLINE;
        loop {
            let lines = self.ask("peers");
            let of = |line: &&String| line.starts_with(&format!("peer {device} "));
            let line = lines.iter().find(of).cloned().unwrap_or_default();
            if fits(&line.split(' ').collect::<Vec<_>>()) {
                return line;
            }
            assert!(Instant::now() < until, "{line}\n{lines:?}");
            // Asked again no faster than the node looks itself.
            if let Ok(line) = self.lines.recv_timeout(Duration::from_millis(100)) {
                self.passed.push_back(line);
            }
        }
    }

    /// A clean exit.
    fn leave(mut self) -> u128 {
        self.input = None;
        let at = self.wait("leaving").split(' ').nth(1).unwrap().parse().unwrap();
        self.child.wait().unwrap();
        at
    }

    fn kill(&mut self) {
        // The child of `ip netns exec` is this process itself: it executes, it does not fork.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Office {
    keys: Vec<DeviceKey>,
}

impl Office {
    fn of(count: usize) -> Self {
        Self { keys: (0..count).map(|_| DeviceKey::generate()).collect() }
    }

    fn plan(&self, n: usize) -> Plan {
        Plan {
            key: self.keys[n].to_pem().to_string(),
            members: self.keys.iter().map(|k| k.device_id().to_string()).collect(),
            mdns: false,
            beacon: true,
            seeds: Vec::new(),
            relay: false,
            inviting: Vec::new(),
            office: true,
            port: 7444,
        }
    }

    fn id(&self, n: usize) -> DeviceId {
        self.keys[n].device_id()
    }
}

fn machines(lab: &Lab) -> Vec<MachineId> {
    lab.machines().collect()
}

/// Has the third of three come and go, and prints how long the first two needed to notice.
fn come_and_go(what: &str, lab: &Lab, office: &Office, change: impl Fn(Plan) -> Plan, rounds: usize) {
    let at = machines(lab);
    let mut others = [0, 1].map(|n| Remote::start(lab, at[n], &change(office.plan(n))));
    let newcomer = office.id(2);
    let (mut seen, mut gone) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut third = Remote::start(lab, at[2], &change(office.plan(2)));
        let begun = third.begun_ms;
        for other in &mut others {
            seen.push(other.when(&format!("seen {newcomer}")).saturating_sub(begun));
            seen.push(third.when(&format!("seen {}", other.device)).saturating_sub(begun));
        }
        let left = third.leave();
        for other in &mut others {
            gone.push(other.when(&format!("gone {newcomer}")).saturating_sub(left));
        }
    }
    seen.sort();
    gone.sort();
    let (s, g) = (seen.len(), gone.len());
    println!(
        "measured, {what}: seen after {} ms (median), {} ms (worst of {s}); gone after {} ms (median), {} ms (worst)",
        seen[s / 2],
        seen[s - 1],
        gone[g / 2],
        gone[g - 1]
    );
}

#[test]
fn nodes_are_seen_and_gone_by_beacon() {
    let Some(lab) = Lab::with_machines(3).unwrap() else { return };
    come_and_go("beacon", &lab, &Office::of(3), |p| p, 5);
}

#[test]
fn nodes_are_seen_and_gone_by_beacon_though_a_third_of_the_datagrams_is_lost() {
    let Some(lab) = Lab::with_machines(3).unwrap() else { return };
    for machine in lab.machines() {
        lab.set_datagram_loss(machine, 30).unwrap();
    }
    come_and_go("beacon, 30 % loss", &lab, &Office::of(3), |p| p, 10);
}

#[test]
fn nodes_are_seen_and_gone_by_multicast_dns() {
    let Some(lab) = Lab::with_machines(3).unwrap() else { return };
    come_and_go("mDNS", &lab, &Office::of(3), |p| Plan { beacon: false, mdns: true, ..p }, 3);
}

#[test]
fn nodes_are_seen_and_gone_by_both_with_loss() {
    let Some(lab) = Lab::with_machines(3).unwrap() else { return };
    for machine in lab.machines() {
        lab.set_datagram_loss(machine, 30).unwrap();
    }
    come_and_go("beacon and mDNS, 30 % loss", &lab, &Office::of(3), |p| Plan { mdns: true, ..p }, 5);
}

#[test]
fn a_killed_node_is_gone_and_a_new_address_is_followed() {
    let Some(lab) = Lab::with_machines(2).unwrap() else { return };
    let (office, at) = (Office::of(2), machines(&lab));
    let mut first = Remote::start(&lab, at[0], &office.plan(0));
    let mut second = Remote::start(&lab, at[1], &office.plan(1));
    first.wait(&format!("up {}", office.id(1)));
    second.wait(&format!("up {}", office.id(0)));
    first.until_peer(office.id(1), |w| w[2] == "Both");

    first.forget();
    let changed = now_ms();
    lab.change_address(at[1], 0, 77).unwrap();
    let new = lab.address(at[1], 0).to_string();
    let line = loop {
        let line = first.wait(&format!("up {}", office.id(1)));
        if line.contains(&new) || line.contains(&lab.address_v6(at[1], 0).to_string()) || line.contains("fe80") {
            break line;
        }
    };
    let found: u128 = line.split(' ').nth(2).unwrap().parse().unwrap();
    println!("measured: found at its new address after {} ms ({line})", found.saturating_sub(changed));
    first.until_peer(office.id(1), |w| w[2] == "Both");

    first.forget();
    let killed = now_ms();
    second.kill();
    let gone = first.when(&format!("gone {}", office.id(1)));
    println!("measured: a killed program was gone after {} ms", gone.saturating_sub(killed));

    let second = Remote::start(&lab, at[1], &office.plan(1));
    first.wait(&format!("up {}", second.device));
    first.forget();
    let cut = now_ms();
    lab.set_cable(at[1], 0, false).unwrap();
    let gone = first.when(&format!("gone {}", office.id(1)));
    println!("measured: a machine whose cable was pulled was gone after {} ms", gone.saturating_sub(cut));
    lab.set_cable(at[1], 0, true).unwrap();
    let back = first.when(&format!("up {}", office.id(1)));
    println!("measured: it was linked again at {} ms after the pull", back.saturating_sub(cut));
}

#[test]
fn a_node_with_two_cards_is_found_in_both_networks_and_is_no_bridge_for_addresses() {
    let Some(mut lab) = Lab::new(2).unwrap() else { return };
    let left = lab.machine(&[0]).unwrap();
    let both = lab.machine(&[0, 1]).unwrap();
    let right = lab.machine(&[1]).unwrap();
    let office = Office::of(3);
    let mut middle = Remote::start(&lab, both, &office.plan(1));
    let mut one = Remote::start(&lab, left, &office.plan(0));
    let mut two = Remote::start(&lab, right, &office.plan(2));
    one.until_peer(office.id(1), |w| w[2] == "Both");
    two.until_peer(office.id(1), |w| w[2] == "Both");
    middle.until_peer(office.id(0), |w| w[2] == "Both");
    middle.until_peer(office.id(2), |w| w[2] == "Both");
    // Those of different networks do not hear each other, and it is said so.
    one.until_peer(office.id(2), |w| w[2] == "None" && w[3] == "NEVER_SEEN");
    let said = middle.ask("discovery").join("\n");
    for way in ["eth0 to 10.0.0.255:7445", "eth1 to 10.1.0.255:7445", "eth0 to [ff12::6174:7269", "eth1 to [ff12"] {
        assert!(said.contains(way), "{way}\n{said}");
    }
}

#[test]
fn a_firewall_is_named_on_both_sides_and_worked_around() {
    let Some(lab) = Lab::with_machines(2).unwrap() else { return };
    let (office, at) = (Office::of(2), machines(&lab));
    lab.set_firewall(at[1], true).unwrap();
    let mut open = Remote::start(&lab, at[0], &office.plan(0));
    let mut closed = Remote::start(&lab, at[1], &office.plan(1));
    // The one behind the firewall can call; the other one calls back over that connection.
    closed.until_peer(office.id(0), |w| w[2] == "OutOnly" && w[3] == "FIREWALL_HERE");
    open.until_peer(office.id(1), |w| w[2] == "InOnly" && w[3] == "FIREWALL_THERE");
    open.command(&format!("call {}", office.id(1)));
    let called = open.wait("called");
    assert!(called.starts_with(&format!("called relayed {}", office.id(0))) && called.ends_with("500000"), "{called}");
    lab.set_firewall(at[1], false).unwrap();
    open.until_peer(office.id(1), |w| w[2] == "Both");
}

#[test]
fn two_that_reach_a_third_only_exchange_a_call_through_it() {
    let Some(mut lab) = Lab::new(2).unwrap() else { return };
    let left = lab.machine(&[0]).unwrap();
    let both = lab.machine(&[0, 1]).unwrap();
    let right = lab.machine(&[1]).unwrap();
    let office = Office::of(3);
    let relay = Remote::start(&lab, both, &Plan { relay: true, ..office.plan(1) });
    let mut one = Remote::start(&lab, left, &office.plan(0));
    let mut two = Remote::start(&lab, right, &office.plan(2));
    one.until_peer(office.id(1), |w| w[2] == "Both");
    two.until_peer(office.id(1), |w| w[2] == "Both");
    one.command(&format!("call {}", office.id(2)));
    let called = one.wait("called");
    assert!(called.starts_with(&format!("called relayed {}", office.id(1))), "{called}");
    assert!(called.contains(&office.id(0).to_string()) && called.ends_with("500000"), "{called}");
    one.until_peer(office.id(2), |w| w[2] == "Relayed");
    let (sent, _) = lab.traffic(both).unwrap();
    assert!(sent > 500_000, "the call went through the third one: {sent}");
    drop(relay);
    one.wait(&format!("down {}", office.id(2)));
}

#[test]
fn a_joiner_finds_the_inviter_and_seeds_reach_where_announcements_do_not() {
    let Some(lab) = Lab::with_machines(3).unwrap() else { return };
    let (office, at) = (Office::of(2), machines(&lab));
    let inviter = Remote::start(&lab, at[0], &Plan { inviting: vec!["42".into()], ..office.plan(0) });
    let joiner = DeviceKey::generate();
    let plan = Plan { key: joiner.to_pem().to_string(), members: Vec::new(), office: false, ..office.plan(0) };
    let mut new = Remote::start(&lab, at[1], &plan);
    let found = new.ask("inviters 42");
    assert!(found[0].starts_with(&format!("inviter {}", inviter.device)), "{found:?}");
    assert!(found[0].contains(&format!("{}:7444", lab.address(at[0], 0))) || found[0].contains("fe80"), "{found:?}");
    // Hears no announcement, and has a seed.
    let seeds = vec![lab.address(at[0], 0).to_string()];
    let mut deaf = Remote::start(&lab, at[2], &Plan { beacon: false, seeds, ..office.plan(1) });
    deaf.until_peer(office.id(0), |w| w[2] == "Both" && w[4].contains("seed"));
}
