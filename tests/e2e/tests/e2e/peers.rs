//! Real peer-nodes: on loopback, and on machines of a network lab (as root; skipped with a line elsewhere).

use anyhow::{Result, ensure};
use atrium_e2e::peers::{Peer, PeerOffice, Place};
use atrium_e2e::process::poll;
use atrium_e2e::{compare, sample};
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use testkit::lab::{Lab, MachineId};

const PATIENCE: Duration = Duration::from_secs(120);

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Folders with small files, an empty one, and a file of several chunks.
fn folder(at: &Path, big: u64) -> Result<()> {
    fs::create_dir_all(at.join("notes/empty"))?;
    for i in 0..40u64 {
        fs::write(at.join(format!("notes/{i:02}.txt")), sample::bytes(i, 100 + i as usize * 37))?;
    }
    sample::file(&at.join("big.bin"), 99, big)
}

fn share(peer: &Peer, folder: &Path, with: &str) -> Result<()> {
    peer.atrium(&["share", text(folder), "--name", "work", "--with", with]).map(drop)
}

/// Waits until the newest transfer of a peer satisfies.
fn wait_transfer(peer: &Peer, is_so: impl Fn(&serde_json::Value) -> bool) -> Result<serde_json::Value> {
    let mut last = serde_json::Value::Null;
    let found = poll(PATIENCE, || {
        let answer = peer.try_atrium(&["transfers", "--json"], "").ok().and_then(|f| f.json().ok());
        last = answer.map(|a| a["items"][0].clone()).unwrap_or_default();
        is_so(&last)
    });
    ensure!(found, "{}: the transfer is still {last}\n{}", peer.name, peer.log_tail());
    Ok(last)
}

fn bytes_done(transfer: &serde_json::Value) -> u64 {
    transfer["done_bytes"].as_u64().unwrap_or(0)
}

#[test]
fn a_folder_is_shared_listed_fetched_read_and_shared_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let office = PeerOffice::found(dir.path(), &["anna", "bert"], |_| Place::Loopback, "").unwrap();
    office.wait_connected().unwrap();
    let [anna, bert] = &office.peers[..] else { unreachable!() };
    let source = dir.path().join("source");
    folder(&source, 3_000_000).unwrap();
    share(anna, &source, "bert").unwrap();
    let listed = bert.wait_until(&["ls", "acme/anna/work", "--json"], |a| a.contains("big.bin")).unwrap();
    assert!(listed.contains("acme/anna/work/notes"), "{listed}");
    let to = dir.path().join("got");
    bert.atrium(&["get", "acme/anna/work", text(&to)]).unwrap();
    compare::trees(&source, &to).unwrap();
    let read = bert.atrium(&["cat", "acme/anna/work/notes/07.txt"]).unwrap();
    assert_eq!(read.stdout, fs::read(source.join("notes/07.txt")).unwrap());
    // What changes is fresh at the other end, and only what changed is fetched.
    fs::write(source.join("notes/07.txt"), "changed").unwrap();
    bert.wait_until(&["cat", "acme/anna/work/notes/07.txt"], |a| a == "changed").unwrap();
    bert.atrium(&["get", "-f", "acme/anna/work", text(&to)]).unwrap();
    compare::trees(&source, &to).unwrap();
    anna.atrium(&["unshare", "work"]).unwrap();
    bert.wait_until(&["ls", "acme/anna/work"], |a| a.contains("error")).unwrap();
    assert!(source.join("big.bin").exists(), "unsharing leaves the files");
}

#[test]
fn who_has_no_right_sees_nothing_and_who_is_cut_off_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let office = PeerOffice::found(dir.path(), &["anna", "bert", "cleo"], |_| Place::Loopback, "").unwrap();
    office.wait_connected().unwrap();
    let [anna, bert, cleo] = &office.peers[..] else { unreachable!() };
    let source = dir.path().join("source");
    folder(&source, 100_000).unwrap();
    share(anna, &source, "bert").unwrap();
    bert.wait_until(&["ls", "acme/anna/work"], |a| a.contains("big.bin")).unwrap();
    let seen = cleo.atrium(&["ls", "acme/anna", "--json"]).unwrap().text();
    assert!(!seen.contains("work"), "{seen}");
    let refused = cleo.try_atrium(&["get", "acme/anna/work/big.bin", text(&dir.path().join("x"))], "").unwrap();
    let unknown = cleo.try_atrium(&["get", "acme/anna/none/big.bin", text(&dir.path().join("x"))], "").unwrap();
    assert_ne!(refused.code, 0);
    assert_eq!(refused.code, unknown.code, "not told apart from what does not exist: {}", refused.stderr);
    anna.atrium(&["members", "revoke", "bert", "--yes"]).unwrap();
    let cut_off = poll(PATIENCE, || {
        bert.try_atrium(&["get", "acme/anna/work/big.bin", text(&dir.path().join("y"))], "").is_ok_and(|f| f.code != 0)
    });
    assert!(cut_off);
}

#[test]
fn a_killed_receiver_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut office = PeerOffice::found(dir.path(), &["anna", "bert"], |_| Place::Loopback, "").unwrap();
    office.wait_connected().unwrap();
    let [anna, bert] = &mut office.peers[..] else { unreachable!() };
    let source = dir.path().join("source");
    folder(&source, 60_000_000).unwrap();
    share(anna, &source, "everyone").unwrap();
    bert.wait_until(&["ls", "acme/anna/work"], |a| a.contains("big.bin")).unwrap();
    anna.atrium(&["limit", "--upload", "10MiB"]).unwrap();
    let to = dir.path().join("got");
    let mut get = bert.begin_atrium(&["get", "acme/anna/work", text(&to)]).unwrap();
    wait_transfer(bert, |t| bytes_done(t) > 20_000_000).unwrap();
    bert.kill().unwrap();
    let _ = get.wait();
    bert.restart().unwrap();
    anna.atrium(&["limit", "--upload", "none"]).unwrap();
    let done = wait_transfer(bert, |t| t["state"] == "done").unwrap();
    compare::trees(&source, &to).unwrap();
    assert!(bytes_done(&done) >= 60_000_000);
}

#[test]
fn a_parcel_waits_for_who_is_off() {
    let dir = tempfile::tempdir().unwrap();
    let mut office = PeerOffice::found(dir.path(), &["anna", "bert"], |_| Place::Loopback, "").unwrap();
    office.wait_connected().unwrap();
    let [anna, bert] = &mut office.peers[..] else { unreachable!() };
    let source = dir.path().join("plans");
    folder(&source, 2_000_000).unwrap();
    bert.stop().unwrap();
    let sent = anna.atrium(&["send", text(&source), "bert", "--json"]).unwrap().text();
    assert!(sent.contains("queued"), "{sent}");
    fs::rename(&source, dir.path().join("renamed")).unwrap();
    anna.kill().unwrap();
    anna.restart().unwrap();
    bert.restart().unwrap();
    anna.wait_until(&["outbox", "--json"], |a| a.contains("\"delivered\"")).unwrap();
    compare::trees(&dir.path().join("renamed"), &bert.inbox().join("anna/plans")).unwrap();
}

fn lab(machines: usize) -> Option<(Rc<Lab>, Vec<MachineId>)> {
    let lab = Lab::with_machines(machines).unwrap()?;
    let ids = lab.machines().collect();
    Some((Rc::new(lab), ids))
}

#[test]
fn machines_on_one_cable_find_each_other_by_code_alone_though_datagrams_are_lost() {
    let Some((lab, machines)) = lab(2) else { return };
    for machine in &machines {
        lab.set_datagram_loss(*machine, 30).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let start = |at: usize, name: &str| {
        Peer::start(&dir.path().join(name), name, Place::Machine(lab.clone(), machines[at]), &[], "").unwrap()
    };
    let (anna, bert) = (start(0, "anna"), start(1, "bert"));
    anna.atrium(&["init", "acme", "--name", "anna", "--person", "anna"]).unwrap();
    let code = anna.atrium(&["invite"]).unwrap().text();
    let joined = bert.try_atrium(&["join", "--code-file", "-", "--name", "bert"], code.trim()).unwrap();
    assert_eq!(joined.code, 0, "{}", joined.stderr);
    for (peer, other) in [(&anna, "acme/bert"), (&bert, "acme/anna")] {
        peer.wait_until(&["peers", "--json"], |a| a.contains(other) && a.contains("\"both\"")).unwrap();
    }
}

#[test]
fn a_transfer_survives_a_pulled_cable_and_another_address() {
    let Some(lab) = Lab::with_machines(2).unwrap() else { return };
    let machines: Vec<MachineId> = lab.machines().collect();
    for machine in &machines {
        lab.set_rate(*machine, 100).unwrap();
    }
    let lab = Rc::new(lab);
    let dir = tempfile::tempdir().unwrap();
    let place = |at: usize| Place::Machine(lab.clone(), machines[at]);
    let office = PeerOffice::found(dir.path(), &["anna", "bert"], place, "").unwrap();
    office.wait_connected().unwrap();
    let [anna, bert] = &office.peers[..] else { unreachable!() };
    let source = dir.path().join("source");
    folder(&source, 60_000_000).unwrap();
    share(anna, &source, "everyone").unwrap();
    bert.wait_until(&["ls", "acme/anna/work"], |a| a.contains("big.bin")).unwrap();
    let to = dir.path().join("got");
    let mut get = bert.begin_atrium(&["get", "acme/anna/work", text(&to)]).unwrap();
    wait_transfer(bert, |t| bytes_done(t) > 10_000_000).unwrap();
    lab.set_cable(machines[0], 0, false).unwrap();
    let before = wait_transfer(bert, |t| t["state"] == "waiting").unwrap();
    lab.set_cable(machines[0], 0, true).unwrap();
    wait_transfer(bert, |t| bytes_done(t) > bytes_done(&before)).unwrap();
    lab.change_address(machines[0], 0, 99).unwrap();
    wait_transfer(bert, |t| t["state"] == "done").unwrap();
    assert!(get.wait().unwrap().success());
    compare::trees(&source, &to).unwrap();
}

#[test]
fn two_who_cannot_reach_each_other_are_relayed_by_one_who_reaches_both() {
    let Some(mut lab) = Lab::new(2).unwrap() else { return };
    // The founder stands between.
    let machines = [lab.machine(&[0, 1]).unwrap(), lab.machine(&[0]).unwrap(), lab.machine(&[1]).unwrap()];
    let lab = Rc::new(lab);
    let dir = tempfile::tempdir().unwrap();
    let relay = "[relay]\nenabled = true\n";
    let place = |at: usize| Place::Machine(lab.clone(), machines[at]);
    let between = Peer::start(&dir.path().join("between"), "between", place(0), &[], relay).unwrap();
    between.atrium(&["init", "acme", "--name", "between", "--person", "x"]).unwrap();
    let mut others = Vec::new();
    for (at, name) in [(1, "anna"), (2, "bert")] {
        let seed = std::net::SocketAddr::from((lab.address(machines[0], at as u8 - 1), 7444));
        let peer = Peer::start(&dir.path().join(name), name, place(at), &[seed], "").unwrap();
        let code = between.atrium(&["invite", "--for", name]).unwrap().text();
        let joined =
            peer.try_atrium(&["join", &seed.to_string(), "--code-file", "-", "--name", name], code.trim()).unwrap();
        assert_eq!(joined.code, 0, "{}", joined.stderr);
        others.push(peer);
    }
    let [anna, bert] = &others[..] else { unreachable!() };
    let source = dir.path().join("source");
    folder(&source, 3_000_000).unwrap();
    share(anna, &source, "bert").unwrap();
    bert.wait_until(&["ls", "acme/anna/work"], |a| a.contains("big.bin")).unwrap();
    let to = dir.path().join("got");
    bert.atrium(&["get", "acme/anna/work", text(&to)]).unwrap();
    compare::trees(&source, &to).unwrap();
    let peers = bert.atrium(&["peers", "--json"]).unwrap().text();
    assert!(peers.contains("\"relayed\""), "{peers}");
}
