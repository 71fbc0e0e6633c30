//! Devices: lists, shares, leases.

use crate::fake_peer::{Running, State, code, device, disc, ok, text};
use crate::process::failure;
use proto::peer::v1::{DeviceKind, LocalDevice};
use std::sync::Mutex;

#[test]
fn devices_are_listed_and_shown() {
    let peer = Running::start(disc());
    let (exit, list) = peer.json(&["devices"]);
    assert_eq!((exit, list["kind"].as_str()), (0, Some("shared_device_list")));
    assert_eq!(list["items"].as_array().unwrap().len(), 3);
    let (_, printers) = peer.json(&["devices", "--kind", "printer"]);
    assert_eq!(printers["items"].as_array().unwrap().len(), 2);
    let (_, one) = peer.json(&["devices", "laser"]);
    assert_eq!((one["kind"].as_str(), one["right"].as_str()), (Some("shared_device"), Some("write")));
    let (_, below) = peer.json(&["devices", "acme/carl-pc"]);
    assert_eq!(below["items"][0]["name"], "ink");
    let missing = peer.run(&["devices", "nothing", "--json"]);
    assert_eq!((code(&missing), failure(&missing)["reason"].as_str()), (4, Some("RESOURCE_UNKNOWN")));
    let shown = text(&peer.run(&["devices"]).stdout);
    assert!(shown.starts_with("acme/anna-pc/drives/dvd      drive    ready"), "{shown}");
}

#[test]
fn the_audit_is_shown_and_a_broken_chain_is_a_failure() {
    let peer = Running::start(State::default());
    let (exit, list) = peer.json(&["devices", "--audit"]);
    assert_eq!((exit, list["kind"].as_str()), (0, Some("device_audit_record_list")));
    assert_eq!(
        (list["items"][0]["granted"].as_bool(), list["items"][0]["reason"].as_str()),
        (Some(false), Some("ACCESS_DENIED"))
    );
    let (_, dvd) = peer.json(&["devices", "--audit", "acme/bert-pc/drives/dvd"]);
    assert_eq!(dvd["items"].as_array().unwrap().len(), 1);
    let output = peer.run(&["devices", "--audit", "--verify", "--json"]);
    assert_eq!((code(&output), failure(&output)["reason"].as_str()), (1, Some("STORE_CORRUPT")));
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list["verified"], false);
}

#[test]
fn a_device_is_shared_changed_and_unshared() {
    let peer = Running::start(State::default());
    let share = ["share", "printers/laser", "--output", "folder:out", "--with", "everyone", "--duplex"];
    let (exit, shared) = peer.json(&share);
    assert_eq!((exit, shared["kind"].as_str()), (0, Some("own_device")));
    assert_eq!(shared["grants"][0], serde_json::json!({"who": "everyone", "right": "write"}));
    let target = shared["target"].as_str().unwrap();
    assert!(target.starts_with("folder:/") && target.ends_with("/out"), "{target}");
    // Without an option of devices, it is the device because it is one already.
    let (_, changed) = peer.json(&["share", "printers/laser", "--with", "anna=manage", "--revoke", "everyone"]);
    assert_eq!(changed["grants"], serde_json::json!([{"who": "user:anna", "right": "manage"}]));
    assert_eq!(changed["target"], target);
    assert_eq!(peer.told(), ["share acme/bert-pc/printers/laser"; 2]);
    let (_, own) = peer.json(&["devices", "--own"]);
    assert_eq!(own["items"][0]["device"]["name"], "laser");
    ok(&peer.run(&["unshare", "printers/laser", "--force"]));
    assert_eq!(peer.told(), ["unshare acme/bert-pc/printers/laser force=true now=false"]);
    let wrong = peer.run(&["share", "drives/dvd", "--description", "x", "--with", "anna", "--json"]);
    assert_eq!(code(&wrong), 2);
    assert!(failure(&wrong)["fix"].as_str().unwrap().contains("--device"));
    let folder = peer.run(&["share", "folder", "--output", "cups:x", "--with", "anna", "--json"]);
    assert_eq!((code(&folder), peer.told().len()), (2, 0), "a folder is no printer");
}

#[test]
fn a_command_runs_while_the_device_is_held() {
    let peer = Running::start(State::default());
    let script = "test \"$ATRIUM_FENCING_TOKEN\" = 7 && echo $ATRIUM_DEVICE && exit 42";
    let output = peer.run(&["use", "dvd", "--wait", "--for", "30m", "--", "sh", "-c", script]);
    assert_eq!((code(&output), text(&output.stdout).as_str()), (42, "dvd\n"));
    let said = text(&output.stderr);
    assert!(said.contains("1 is before you") && said.contains("carl at carl-pc asks for dvd: please"), "{said}");
    assert_eq!(peer.told(), ["use dvd LEASE_MODE_EXCLUSIVE 1800s wait=true watch=true"]);
    ok(&peer.run(&["use", "dvd", "--", "true"]));
    assert_eq!(code(&peer.run(&["use", "dvd", "--", "/nonexistent"])), 2);
    let (exit, lease) = peer.json(&["use", "dvd", "--shared"]);
    assert_eq!((exit, lease["kind"].as_str(), lease["state"].as_str()), (0, Some("lease"), Some("held")));
    assert_eq!(peer.told().last().unwrap(), "use dvd LEASE_MODE_SHARED 0s wait=false watch=false");
    ok(&peer.run(&["release", "dvd", "--take-back"]));
    let id = "0199e2a4-5b1c-7d3e-8f90-a1b2c3d4e5f6";
    ok(&peer.run(&["release", "dvd", "--lease", id]));
    assert_eq!(code(&peer.run(&["release", "dvd", "--lease", "7"])), 2);
    let told = peer.run(&["request", "dvd", "only", "five", "minutes"]);
    assert_eq!(text(&told.stdout), "anna at anna-pc was told\n");
    let one = format!("release dvd take_back=false lease={id}");
    assert_eq!(peer.told(), ["release dvd take_back=true", &one, "request dvd only five minutes"]);
}

#[test]
fn a_disk_waits_for_second_copies_to_leave_unless_told_otherwise() {
    let disk = || device("acme/bert-pc/disks/big", DeviceKind::Disk, 4);
    let own = || Mutex::new(vec![LocalDevice { device: Some(disk()), ..Default::default() }]);
    let peer = Running::start(State { own: own(), ..State::default() });
    let left = peer.run(&["unshare", "disks/big"]);
    ok(&left);
    let said = text(&left.stderr);
    assert!(said.contains("mirror of plans of bert leaves for acme/bert-pc"), "{said}");
    assert_eq!(peer.told(), ["leave acme/bert-pc/disks/big force=false"]);
    ok(&peer.run(&["unshare", "disks/big", "--force"]));
    ok(&peer.run(&["unshare", "disks/big", "--now"]));
    let told = peer.told();
    let now = "unshare acme/bert-pc/disks/big force=false now=true";
    assert_eq!(told, ["leave acme/bert-pc/disks/big force=true", now]);
    let stays = Running::start(State { own: own(), stays: true, ..State::default() });
    let broken = stays.run(&["unshare", "disks/big", "--json"]);
    assert_eq!(code(&broken), 6, "{}", text(&broken.stderr));
    assert!(failure(&broken)["fix"].as_str().unwrap().contains("atrium share acme/bert-pc/disks/big"));
    // Second copies that are nowhere else are no success.
    let (exit, list) = peer.json(&["space", "mirrors"]);
    assert_eq!((exit, list["items"][0]["state"].as_str()), (3, Some("whole")));
    assert_eq!(list["items"][1]["state"], "lost");
    let shown = text(&peer.run(&["space", "mirrors"]).stdout);
    assert!(shown.contains("(256 of 900), generation 3; 2 parts were sent again"), "{shown}");
}

#[test]
fn a_command_is_stopped_when_the_device_is_lost() {
    let peer = Running::start(State { lose: true, ..State::default() });
    // Far longer than any test may take.
    let output = peer.run(&["use", "dvd", "--json", "--", "sleep", "100000"]);
    assert_eq!(code(&output), 8, "{}", text(&output.stderr));
    assert_eq!(failure(&output)["reason"], "LEASE_LOST");
}
