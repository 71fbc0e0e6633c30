//! The lab itself: what it promises to tests.

use atrium_testkit::lab::{Lab, MachineId};
use std::process::Command;

fn succeeds(mut command: Command) -> bool {
    command.output().is_ok_and(|o| o.status.success())
}

fn ping(lab: &Lab, from: MachineId, to: &str) -> bool {
    let mut command = lab.command(from, "ping");
    command.args(["-c", "1", "-W", "1", "-q", to]);
    succeeds(command)
}

fn namespaces() -> String {
    String::from_utf8(Command::new("ip").args(["netns", "list"]).output().unwrap().stdout).unwrap()
}

#[test]
fn machines_see_each_other_until_the_cable_is_pulled_and_nothing_stays_behind() {
    let Some(mut lab) = Lab::new(2).unwrap() else { return };
    let (a, b, c) = (lab.machine(&[0]).unwrap(), lab.machine(&[0, 1]).unwrap(), lab.machine(&[1]).unwrap());
    if !ping(&lab, a, "127.0.0.1") {
        eprintln!("skipped: ping is missing");
        return;
    }
    assert!(ping(&lab, a, &lab.address(b, 0).to_string()));
    assert!(ping(&lab, a, &lab.address_v6(b, 0).to_string()));
    assert!(ping(&lab, c, &lab.address(b, 1).to_string()));
    assert!(!ping(&lab, a, &lab.address(c, 1).to_string()), "no way from one switch to the other");
    lab.set_cable(b, 0, false).unwrap();
    assert!(!ping(&lab, a, &lab.address(b, 0).to_string()));
    lab.set_cable(b, 0, true).unwrap();
    assert!(ping(&lab, a, &lab.address(b, 0).to_string()));
    let old = lab.address(b, 0).to_string();
    lab.change_address(b, 0, 77).unwrap();
    assert!(!ping(&lab, a, &old));
    assert!(ping(&lab, a, "10.0.0.77"));
    lab.set_datagram_loss(b, 100).unwrap();
    lab.set_datagram_loss(b, 0).unwrap();
    lab.set_firewall(b, true).unwrap();
    lab.set_firewall(b, false).unwrap();
    let (sent, received) = lab.traffic(a).unwrap();
    assert!(sent > 0 && received > 0);
    // A process that nobody ended must not keep the lab alive.
    let mut sleeper = lab.command(a, "sleep").arg("600").spawn().unwrap();
    let name = format!("{}-", lab.name());
    assert!(namespaces().contains(&name));
    drop(lab);
    sleeper.wait().unwrap();
    assert!(!namespaces().contains(&name), "left: {}", namespaces());
}

#[test]
fn a_rate_is_set_on_both_ends_of_the_cable() {
    let Some(lab) = Lab::with_machines(1).unwrap() else { return };
    let machine = lab.machines().next().unwrap();
    lab.set_rate(machine, 100).unwrap();
    let shown = lab.command(machine, "tc").args(["qdisc", "show", "dev", "eth0"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("tbf") && shown.contains("100Mbit"), "{shown}");
}
